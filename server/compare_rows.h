/*
 * compare_rows.h - what a comparison measured: one row a configuration, and how rows stand to each
 * other.  Pure.
 */
#ifndef DAKD_SERVER_COMPARE_ROWS_H
#define DAKD_SERVER_COMPARE_ROWS_H

#include "offload/link.h"
#include "offload/plan.h"
#include "server/bench_run.h"

enum { SRV_COMPARE_HBM, SRV_COMPARE_LINK, SRV_COMPARE_TIERS }; /* the memories compared */

#define SRV_COMPARE_SHARES_MAX 24
#define SRV_COMPARE_MODES_MAX 4
#define SRV_COMPARE_PLACEMENTS_MAX 2
/* Of rows of which nothing is remote: all modes are the same, and measured once. */
#define SRV_COMPARE_NO_MODE "hbm"
/* The mode that the others are held against. */
#define SRV_COMPARE_AUTO "auto"

/* Where the time of a comparison goes. */
enum srv_compare_phase {
    SRV_COMPARE_PROBING,
    SRV_COMPARE_LOADING,
    SRV_COMPARE_PLACING, /* a share, of what is loaded */
    SRV_COMPARE_OPENING, /* engines: a mode taken on, steps recorded */
    SRV_COMPARE_MEASURING,
    SRV_COMPARE_PHASES
};

struct srv_compare_row {
    const char *placement, *mode; /* borrowed */
    double offload;               /* of the weights, as asked for */
    bool free;                    /* it is the free fraction */
    int32_t batch;
    char missing[ERR_CAP]; /* why nothing was measured; "": it was, and what follows holds */
    double placed;         /* of the weights, as they lie */
    int64_t steps;         /* steady ones */
    double context, tpot_s, tokens_per_s;
    uint64_t bytes[SRV_COMPARE_TIERS]; /* a steady step must read */
    double counted[SRV_COMPARE_TIERS]; /* and what the kernels counted there; 0: too few readings */
    double copied[SRV_COMPARE_TIERS];  /* of these, what the copy engine brought */
    double predicted_s;                /* by the model that auto chooses by (offload/mix.h); or 0 */
    double host_share;                 /* of a step, the machine waits for the engine */
    double model_s; /* the planner's floor of this placement (offload/plan.h), with best rates */
    int bound;      /* what binds there: a memory, or OFF_PLAN_COMPUTE */
    /* And the limit of any way to bring the bytes: all of a memory's at its best rate, or all that
     * is computed, whichever is longest.  The planner has each operation wait for the one before,
     * which copies that run ahead need not. */
    double limit_s;
    int limit_bound;
};

struct srv_comparison {
    const struct options *options; /* borrowed */
    int64_t unix_s;
    char backend[128], device[192], architecture[64], dtype[16];
    char tier[OFF_TIER_NAME_CAP];   /* of the link */
    double rate[SRV_COMPARE_TIERS]; /* bytes/s, read by kernels, probed */
    double copy_bytes_per_s;        /* of the link's copy engine, alone; 0: there is none */
    /* What limits are made of: the same, and of the link the better of the two, so that no mode's
     * floor is another's. */
    double best[SRV_COMPARE_TIERS];
    struct off_links links; /* points of the probe; link_count 0: not measured */
    const char *placements[SRV_COMPARE_PLACEMENTS_MAX];
    const char *modes[SRV_COMPARE_MODES_MAX];
    double shares[SRV_COMPARE_SHARES_MAX];  /* ascending */
    int free_index;                         /* of the free fraction among them; -1: not asked for */
    int32_t batches[SRV_BENCH_BATCHES_MAX]; /* ascending */
    int placement_count, mode_count, share_count, batch_count;
    struct srv_compare_row *rows; /* [row_max], owned */
    int row_count, row_max;
    bool one_loading;   /* of all weights into both memories */
    int left_out_count; /* of the rows, for want of time */
    double spent_s[SRV_COMPARE_PHASES];
};

/* The share of all bytes that the link delivers while HBM delivers the rest: both end together. */
double srv_compare_free_share(const double rate[SRV_COMPARE_TIERS]);

/* Shares such as "0,free,0.1,1", into c->shares, ascending; a second one within a thousandth of
 * another is left out.  c->rate is known where `free` is to be found; until then it counts as 0.
 * ST_INVALID says what is wrong. */
MUST_USE enum status srv_compare_shares_read(struct srv_comparison *c, const char *text, char *err);
/* A list without repetitions of what `known` [known_count] has.  ST_INVALID names the flag. */
MUST_USE enum status srv_compare_names_read(const char *flag, const char *text,
                                            const char *const *known, int known_count,
                                            const char **out, int *count, char *err);

/* The row, or where nothing is remote the one of its batch; NULL: there is none, or nothing was
 * measured. */
const struct srv_compare_row *srv_compare_find(const struct srv_comparison *c,
                                               const char *placement, int share, int32_t batch,
                                               const char *mode);
/* The fastest of the modes but auto; NULL: none was measured. */
const struct srv_compare_row *srv_compare_best_other(const struct srv_comparison *c,
                                                     const char *placement, int share,
                                                     int32_t batch);
/* What auto comes to over all cells that were measured: the median, and the worst with its row. */
struct srv_compare_figure {
    int count;
    double median, worst;
    const struct srv_compare_row *row; /* of the worst; NULL: no cell has it */
};
struct srv_compare_sum {
    /* Time over that of the fastest other mode: more is worse.  Of the others less is: the link's
     * rate over its copy engine's, alone, where the link's is the limit; effective bandwidth over
     * EB(x); the limit over the time. */
    struct srv_compare_figure over_best, of_copy, of_model, of_limit;
};
/* The best rate of the link in any row, where the copy engine's was probed below it: something else
 * used the link meanwhile, and ratios to it are too high by as much.  0: none. */
double srv_compare_faster_than_copy(const struct srv_comparison *c);
void srv_compare_sum_up(const struct srv_comparison *c, struct srv_compare_sum *out);
/* All bytes of a step over its time, and over the planner's floor: EB(x). */
double srv_compare_bandwidth(const struct srv_compare_row *r);
double srv_compare_model_bandwidth(const struct srv_compare_row *r);
/* What the link delivered. */
double srv_compare_link_bandwidth(const struct srv_compare_row *r);
/* That over the rate of its copy engine, alone; NaN where there is none, or nothing was remote. */
double srv_compare_of_copy(const struct srv_comparison *c, const struct srv_compare_row *r);
/* Of a row's bound or limit_bound. */
const char *srv_compare_bound_name(const struct srv_comparison *c, int bound);

#endif
