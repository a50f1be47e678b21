/*
 * bench_mixed_report.h - the results of bench_mixed.h for people (a table, a line a setting) and
 * for programs (JSON: an array, an object a setting).
 */
#ifndef DAKD_SERVER_BENCH_MIXED_REPORT_H
#define DAKD_SERVER_BENCH_MIXED_REPORT_H

#include <stdio.h>

#include "server/bench_stats.h"
#include "server/startup.h"

/* What all settings have in common. */
struct srv_bench_mixed_run {
    int64_t unix_s; /* when it began */
    int32_t beside, beside_prompt, beside_length;
    const struct options *options;
    const struct srv_machine *machine;
};

struct srv_bench_mixed_result {
    int32_t tokens_step_max;
    double itl_target_ms;
    struct srv_bench_summary ttft_s; /* of the prompts that arrived */
    struct srv_bench_summary alone_s,
        itl_s;         /* of who decodes: before the first, and from then on */
    double duration_s; /* from the first arrival to the last first token */
    double decode_tokens_per_s, prompt_tokens_per_s; /* in that time */
    /* Of all steps of the setting: with decodes and tokens of prompts, and those tokens on average;
     * from which the target kept tokens; with decodes and longer than the target. */
    uint64_t mixed_steps, held_back_steps, over_steps;
    double mixed_prompt_tokens;
    uint64_t preempted;
};

void srv_bench_mixed_print(const struct srv_bench_mixed_run *run,
                           const struct srv_bench_mixed_result *results, int count);
/* Writes --json, where there is one.  ST_IO, ST_NOMEM. */
MUST_USE enum status srv_bench_mixed_json(const struct srv_bench_mixed_run *run,
                                          const struct srv_bench_mixed_result *results, int count,
                                          char *err);

#endif
