/*
 * metrics.h - what GET /metrics says, in Prometheus' text format 0.0.4: HELP and TYPE once per
 * family, base units, cumulative buckets that end in +Inf.  Families that vLLM also has keep its
 * names under `dakd_`.
 *
 * Three sources: what the API layer observes itself (struct srv_metrics, loop thread), the engine's
 * counters, and the transport's.  Counters start at zero with the process and never fall.
 */
#ifndef DAKD_SERVER_METRICS_H
#define DAKD_SERVER_METRICS_H

#include <stdint.h>

#include "config/buf.h"
#include "engine/engine.h"
#include "server/http.h"

#define SRV_BUCKETS_MAX 24

struct srv_histogram {
    const double *bounds; /* [bound_count], static, rising */
    int bound_count;
    uint64_t
        bucket[SRV_BUCKETS_MAX]; /* not cumulative; [bound_count] is what lies above all bounds */
    uint64_t count;
    double sum;
};

/* How a sequence ended, as the label finished_reason says it. */
enum srv_end { SRV_END_STOP, SRV_END_LENGTH, SRV_END_ABORT, SRV_END_ERROR, SRV_END_COUNT };

/* Histograms: member, family, what it measures, bounds. */
#define SRV_HISTOGRAM_MAP(X)                                                                       \
    X(ttft, "time_to_first_token_seconds", "Request complete to its first token.", latency)        \
    X(itl, "inter_token_latency_seconds", "Between two tokens of a sequence.", latency)            \
    X(e2e, "e2e_request_latency_seconds", "Request complete to the end of its sequence.", latency) \
    X(queue, "request_queue_time_seconds", "Submission to the sequence's first step.", latency)    \
    X(prefill, "request_prefill_time_seconds", "First step of a sequence to its first token.",     \
      latency)                                                                                     \
    X(decode, "request_decode_time_seconds", "First token of a sequence to its last.", latency)    \
    X(prompt, "request_prompt_tokens", "Tokens of a sequence's prompt.", tokens)                   \
    X(generation, "request_generation_tokens", "Tokens of a sequence's answer.", tokens)

struct srv_metrics {
#define X(member, family, help, bounds) struct srv_histogram member;
    SRV_HISTOGRAM_MAP(X)
#undef X
    uint64_t ended[SRV_END_COUNT];
    uint64_t client_left; /* answers nobody waited for (499) */
    uint64_t rejected;    /* refused with 503: queue or memory full */
};

void srv_metrics_init(struct srv_metrics *m);
void srv_histogram_observe(struct srv_histogram *h, double value);

/* A tier as shown; all borrowed. */
struct srv_tier {
    const char *name;
    uint64_t weight_bytes, capacity_bytes;
    uint64_t requested_bytes;                /* of weights */
    double predicted_step_bytes, step_bytes; /* that a decode step of the planned workload reads */
    double copied_step_bytes; /* of them, by the copy engine */
    const char *mode;         /* how a remote tier is read (--offload-mode) */
};

/* What one page of /metrics is made of. */
struct srv_metrics_view {
    const struct srv_metrics *own;
    const struct eng_stats *engine;
    const struct srv_http_stats *http; /* may be NULL */
    const struct srv_route *routes;    /* [http->route_count] */
    const struct srv_tier *tiers;
    int tier_count;
    uint64_t kv_page_bytes;
    const char *model_name, *version, *commit;
};
void srv_metrics_format(const struct srv_metrics_view *view, struct buf *out);

#endif
