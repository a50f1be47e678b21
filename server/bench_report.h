/*
 * bench_report.h - the results of a benchmark for people (standard output) and for programs (JSON,
 * units in the names of the keys), from one list of figures.
 */
#ifndef DAKD_SERVER_BENCH_REPORT_H
#define DAKD_SERVER_BENCH_REPORT_H

#include <stdio.h>

#include "config/buf.h"
#include "engine/predict.h"
#include "engine/traffic.h"
#include "offload/probe.h"
#include "server/bench_control.h"
#include "server/bench_parts.h"
#include "server/bench_stats.h"
#include "server/startup.h"

/* Round trips of remote copies in the steady steps; none where count is 0. */
struct srv_bench_trips {
    uint64_t count;
    double mean_s, min_s, max_s;
};

/* The steps that read prompts, up to the last first token: each reads the weights once, whatever
 * its tokens, and the head where it gives a token. */
struct srv_bench_prompt {
    int64_t step_count;
    double s;        /* from the first submission to the end of the last of them */
    double device_s; /* of it, the machine busy */
    /* Of all these steps: weights that lie in the tier, and what was read there or copied from
     * there, as counted. */
    uint64_t weight_bytes[KN_TIER_MAX], counted_bytes[KN_TIER_MAX];
    double link_s; /* what the slowest link needs for its weights; 0 without remote ones */
};

struct srv_bench_result {
    int64_t unix_s;                                    /* when it began */
    int32_t batch;                                     /* sequences */
    const struct srv_bench_part *part;                 /* what was left out; NULL: nothing */
    const struct srv_bench_control *control;           /* how remote tiers were to be read */
    struct eng_tier_control tier_control[KN_TIER_MAX]; /* and how they were at the end */
    struct off_bandwidth bandwidth;
    /* Of a steady step, by tier. */
    uint64_t step_bytes[KN_TIER_MAX], weight_bytes[KN_TIER_MAX], kv_bytes[KN_TIER_MAX];
    /* Read by a steady step as the kernels counted, padding and all, and those of them that came by
     * the copy engine; 0 where they told less than twice. */
    double counted_bytes[KN_TIER_MAX], copied_bytes[KN_TIER_MAX];
    /* What the floor takes of each tier, and what its copy engine was probed to give; 0: unknown.
     */
    double best_bytes_per_s[KN_TIER_MAX], engine_bytes_per_s[KN_TIER_MAX];
    struct srv_mode mode; /* how remote weights were read */
    struct srv_bench_trips trips[KN_TIER_MAX];
    /* Where a remote tier has KV pages: moved to it and back, and steps that waited for one, since
     * the engine was opened. */
    uint64_t pages_out, pages_back, move_waits;
    /* Of a step, from where its weights lie and `bandwidth`; all 0 where there is none. */
    struct eng_prediction prediction;
    double floor_s;            /* of a step */
    int floor_tier;            /* the tier that decides it */
    double step_flops;         /* of a steady step (engine/flops.h) */
    double copy_bytes_per_s;   /* of --background-copy beside it; 0: there was none */
    double device_s, host_s;   /* of a step: the machine busy, and waiting for the engine */
    uint64_t played_count;     /* steady steps that were recorded ones */
    double prefill_flops;      /* of all prompts (engine/flops.h) */
    double matrix_flops_per_s; /* probed (off_probe_matrix); 0: no matrix units */
    struct srv_bench_prompt prompt;
    struct srv_bench_stats stats;
};

/* What was measured: the model and where it lies, the beginning of a line. */
void srv_bench_print_model(const struct options *o, const struct srv_machine *m);
/* Options as the run had them. */
void srv_bench_print(const struct options *o, const struct srv_machine *m,
                     const struct srv_bench_result *r);
/* One line each of several results: times beside the best of the static ones of as many
 * sequences. */
void srv_bench_print_controls(const struct srv_machine *m, const struct srv_bench_result *r,
                              int count);
/* One line each of results with all parts and without each of some: times beside the former's of as
 * many sequences. */
void srv_bench_print_parts(const struct srv_bench_result *r, int count);
/* What every result begins with: "{", and what was run on what.  No comma at its end. */
void srv_bench_json_head(struct buf *b, const struct options *o, const struct srv_machine *m,
                         const char *control, int64_t unix_s);
/* Writes the results there: one is an object, several are an array of them. */
MUST_USE enum status srv_bench_json(const struct options *o, const struct srv_machine *m,
                                    const struct srv_bench_result *r, int count, char *err);

#endif
