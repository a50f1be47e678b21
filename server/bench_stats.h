/*
 * bench_stats.h - from the moments at which tokens came to the figures of a benchmark.  Pure.
 *
 * A decode step is steady when each of the B sequences gets a token other than its first from it:
 * prompts are over, and nobody has finished.  Only steady steps make the TPOT that is compared with
 * a floor.  The figures a client would see (TTFT, TPOT, ITL of each request, as `vllm bench`
 * reports them) count all steps.
 */
#ifndef DAKD_SERVER_BENCH_STATS_H
#define DAKD_SERVER_BENCH_STATS_H

#include <stdint.h>

#include "config/status.h"

/* Fewer steady steps than this make no TPOT; where time is bounded, fewer of slow steps will do,
 * whose times differ by less (srv_bench_steady_min). */
#define SRV_BENCH_STEADY_MIN 8

/* One token: which step gave it, and when it was over. */
struct srv_bench_token {
    uint64_t step, ns;
};

struct srv_bench_record {
    int32_t batch, input_len, output_len; /* B, N, M */
    int32_t steady_min;                   /* steps */
    const uint64_t *submit_ns;            /* [B] */
    const struct srv_bench_token *tokens; /* [B,M] */
};

struct srv_bench_summary {
    double mean, median, p99; /* percentiles interpolate linearly between ranks, as numpy's do */
};

struct srv_bench_stats {
    /* Of the steady steps. */
    int64_t steady_step_count;
    uint64_t steady_begin_step;   /* the step before the first of them */
    double steady_context_tokens; /* of a sequence, the step's token included; mean */
    double steady_tpot_s;         /* median of the steps' durations */
    double decode_tokens_per_s;
    /* Of the whole run: first submission to last token. */
    double duration_s;
    double prefill_tokens_per_s; /* all prompts / time to the last first token */
    struct srv_bench_summary ttft_s, tpot_s, itl_s;
};

/* How many steps that take about so long make a TPOT: their median's error is then about the same
 * part of it. */
int32_t srv_bench_steady_min(double step_s);
/* Sorts values; count >= 1. */
void srv_bench_summarise(double *values, int64_t count, struct srv_bench_summary *out);
/* M >= 2.  ST_LIMIT where there are too few steady steps, with the --output-len that would give
 * enough; ST_NOMEM. */
MUST_USE enum status srv_bench_stats(const struct srv_bench_record *record,
                                     struct srv_bench_stats *out, char *err);

#endif
