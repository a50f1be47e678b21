#include "server/bench_stats.h"

#include <math.h>
#include <stdlib.h>

#include "config/check.h"
#include "config/clock.h"

static const struct srv_bench_token *token_at(const struct srv_bench_record *r, int32_t sequence,
                                              int32_t index)
{
    return &r->tokens[(size_t)sequence * (size_t)r->output_len + (size_t)index];
}

static double seconds(uint64_t from_ns, uint64_t to_ns)
{
    return (double)(to_ns - from_ns) / (double)NS_PER_S;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile(const double *sorted, int64_t count, double share)
{
    double at = share * (double)(count - 1), below = floor(at);
    int64_t i = (int64_t)below, next = i + 1 < count ? i + 1 : i;
    return sorted[i] + (at - below) * (sorted[next] - sorted[i]);
}

void srv_bench_summarise(double *values, int64_t count, struct srv_bench_summary *out)
{
    double sum = 0;
    CHECK(count >= 1);
    qsort(values, (size_t)count, sizeof values[0], by_value);
    for (int64_t i = 0; i < count; i++) sum += values[i];
    *out = (struct srv_bench_summary){.mean = sum / (double)count,
                                      .median = percentile(values, count, 0.5),
                                      .p99 = percentile(values, count, 0.99)};
}

int32_t srv_bench_steady_min(double step_s)
{
    if (step_s < 0.01) return SRV_BENCH_STEADY_MIN;
    return step_s < 0.05 ? 5 : 3;
}

/* --- clients ---------------------------------------------------------------------------------- */

/* values has room for B * (M - 1). */
static void client_stats(const struct srv_bench_record *r, double *values,
                         struct srv_bench_stats *out)
{
    const int32_t last = r->output_len - 1;
    uint64_t begin = UINT64_MAX, all_begun = 0, end = 0;
    int64_t n = 0;
    for (int32_t s = 0; s < r->batch; s++) {
        uint64_t first_ns = token_at(r, s, 0)->ns, last_ns = token_at(r, s, last)->ns;
        values[s] = seconds(r->submit_ns[s], first_ns);
        if (r->submit_ns[s] < begin) begin = r->submit_ns[s];
        if (first_ns > all_begun) all_begun = first_ns;
        if (last_ns > end) end = last_ns;
    }
    srv_bench_summarise(values, r->batch, &out->ttft_s);
    for (int32_t s = 0; s < r->batch; s++)
        values[s] = seconds(token_at(r, s, 0)->ns, token_at(r, s, last)->ns) / last;
    srv_bench_summarise(values, r->batch, &out->tpot_s);
    for (int32_t s = 0; s < r->batch; s++)
        for (int32_t i = 1; i <= last; i++)
            values[n++] = seconds(token_at(r, s, i - 1)->ns, token_at(r, s, i)->ns);
    srv_bench_summarise(values, n, &out->itl_s);
    out->duration_s = seconds(begin, end);
    out->prefill_tokens_per_s = (double)r->batch * (double)r->input_len / seconds(begin, all_begun);
}

/* --- steady steps ----------------------------------------------------------------------------- */

/* When the last token of a step was there.  Every sequence has one from it. */
static uint64_t step_ns(const struct srv_bench_record *r, uint64_t step)
{
    uint64_t ns = 0;
    for (int32_t s = 0; s < r->batch; s++) {
        uint64_t first = token_at(r, s, 0)->step;
        const struct srv_bench_token *t = token_at(r, s, (int32_t)(step - first));
        CHECK(t->step == step); /* a running sequence has a token from every step */
        if (t->ns > ns) ns = t->ns;
    }
    return ns;
}

static enum status steady_stats(const struct srv_bench_record *r, double *values,
                                struct srv_bench_stats *out, char *err)
{
    uint64_t begin = 0, end = UINT64_MAX; /* steps: the last first token, the first last token */
    double first_mean = 0;
    for (int32_t s = 0; s < r->batch; s++) {
        uint64_t first = token_at(r, s, 0)->step, last = token_at(r, s, r->output_len - 1)->step;
        if (first > begin) begin = first;
        if (last < end) end = last;
        first_mean += (double)first / r->batch;
    }
    int64_t count = end > begin ? (int64_t)(end - begin) : 0;
    if (count < r->steady_min) {
        int64_t more = (int64_t)(begin - end) + r->steady_min;
        return err_set(err, ST_LIMIT,
                       "all %d sequences decoded together in %lld steps only, and a TPOT is not "
                       "reported from fewer than %d: raise --output-len to %lld, or give prompts "
                       "more room in a step by --max-num-batched-tokens",
                       r->batch, (long long)count, r->steady_min,
                       (long long)(r->output_len + more));
    }
    uint64_t window_begin = step_ns(r, begin), before = window_begin;
    struct srv_bench_summary summary;
    for (int64_t i = 0; i < count; i++) {
        uint64_t now = step_ns(r, begin + 1 + (uint64_t)i);
        values[i] = seconds(before, now);
        before = now;
    }
    srv_bench_summarise(values, count, &summary);
    out->steady_step_count = count;
    out->steady_begin_step = begin;
    out->steady_tpot_s = summary.median;
    out->decode_tokens_per_s = (double)r->batch * (double)count / seconds(window_begin, before);
    /* A step that gives a sequence its token i (from 0) has a context of N + i tokens. */
    out->steady_context_tokens = r->input_len + ((double)begin + 1 + (double)end) / 2 - first_mean;
    return ST_OK;
}

enum status srv_bench_stats(const struct srv_bench_record *r, struct srv_bench_stats *out,
                            char *err)
{
    CHECK(r->batch >= 1 && r->input_len >= 1 && r->output_len >= 2);
    *out = (struct srv_bench_stats){0};
    double *values = calloc((size_t)r->batch * (size_t)r->output_len, sizeof *values);
    if (!values) return err_set(err, ST_NOMEM, "no memory for the results");
    client_stats(r, values, out);
    enum status st = steady_stats(r, values, out, err);
    free(values);
    return st;
}
