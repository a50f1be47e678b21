/*
 * bench_run.h - one measurement: B sequences of N prompt and M answer tokens, submitted at once to
 * an engine that is open, and the figures of their steps.
 *
 * A short run comes first, so that the measured one pays for no first touch; where controllers look
 * for their windows, several, until they have them or `find_steps_max` is spent.
 */
#ifndef DAKD_SERVER_BENCH_RUN_H
#define DAKD_SERVER_BENCH_RUN_H

#include "server/bench_clock.h"
#include "server/bench_report.h"

/* Steps that look for windows, before what there is is measured: more than the search takes. */
#define SRV_BENCH_FIND_STEPS 320

#define SRV_BENCH_BATCHES_MAX 8
#define SRV_BENCH_BATCH_MAX 4096

struct srv_bench_workload {
    int32_t batch, input_len, output_len; /* B, N, M */
    bool given;                           /* KV of the prompts but their last tokens is given */
    int32_t find_steps_max;
    /* Above 0, a run whose steps take as long as those of the short one before it takes about so
     * long: M, and the steps that look for windows, are no more than that has room for, but as many
     * as a TPOT needs.  Steps then have up to `step_tokens` tokens. */
    double seconds;
    int32_t step_tokens;
    int32_t steady_min; /* steps: SRV_BENCH_STEADY_MIN, or where time is bounded what
                         * srv_bench_steady_min says */
};

struct srv_bench_run {
    struct srv_machine *machine; /* borrowed */
    struct kn_copy *copy;        /* borrowed: what else uses a link; NULL: none */
    struct srv_bench_clock clock;
    uint64_t seed;
    struct srv_bench_workload now;  /* of the measurement under way */
    struct eng_request *requests;   /* [B], owned, as all that follow; of the largest workload */
    int32_t *tokens;                /* [B, N + M] */
    uint64_t *submit_ns;            /* [B] */
    struct srv_bench_token *record; /* [B,M] */
    /* Of the run under way. */
    uint64_t step_first, step_last; /* the first, and the last that gave a token */
    int32_t unfinished;
};

/* "1,32,128".  ST_INVALID says what --batch wants. */
MUST_USE enum status srv_bench_batches_read(const char *text, int32_t out[SRV_BENCH_BATCHES_MAX],
                                            int *count, char *err);
int32_t srv_bench_batch_max(const int32_t *batches, int count);

/* What the flags of a run must allow.  ST_INVALID: `most` sequences do not decode in one step; a
 * sequence is longer than --max-model-len; than the positions a model was made for. */
MUST_USE enum status srv_bench_check_batch(const struct options *o, int32_t most, char *err);
MUST_USE enum status srv_bench_check_length(const struct options *o, char *err);
MUST_USE enum status srv_bench_check_positions(const struct options *o, int32_t context_max,
                                               char *err);

/* Room for `measurements` of workloads no larger than `most` in any of its numbers, on engines that
 * srv_bench_clock_start is told of.  ST_NOMEM. */
MUST_USE enum status srv_bench_run_open(struct srv_bench_run *b, struct srv_machine *machine,
                                        const struct srv_bench_workload *most, int measurements,
                                        uint64_t seed, char *err);
/* After the engine is closed, which wakes the clock. */
void srv_bench_run_close(struct srv_bench_run *b);
/* KV pages for all of a workload's sequences: the scheduler keeps one in reserve for each of
 * several.  ST_LIMIT says how many bytes are wanted. */
MUST_USE enum status srv_bench_check_pages(const struct srv_machine *m,
                                           const struct srv_bench_workload *w, char *err);
/* The least M with which enough steps are steady, in steps of up to w->step_tokens tokens, and some
 * to spare. */
int32_t srv_bench_output_least(const struct srv_bench_workload *w);
/* One run of the workload `w` to its last step's mark, of which requests, submit_ns, record and
 * step_last tell.  The engine's failures. */
MUST_USE enum status srv_bench_once(struct srv_bench_run *b, const struct srv_bench_workload *w,
                                    char *err);
/* Warms up, runs, and fills in what follows from the run: r->batch, control and bandwidth are the
 * caller's.  ST_LIMIT where too few steps were steady, or sequences were preempted; the engine's
 * failures. */
MUST_USE enum status srv_bench_measure(struct srv_bench_run *b, const struct srv_bench_workload *w,
                                       struct srv_bench_result *r, char *err);

#endif
