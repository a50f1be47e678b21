/* metrics.c - see metrics.h. */
#include "server/metrics.h"

#include <math.h>
#include <string.h>

#include "config/check.h"

static const double latency_bounds[] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075,
                                        0.1,   0.25,   0.5,   0.75, 1,     2.5,  5,
                                        10,    20,     40,    80,   160,   640,  2560};
static const double tokens_bounds[] = {1,    2,    5,    10,    20,    50,    100,    200,   500,
                                       1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000};

void srv_metrics_init(struct srv_metrics *m)
{
    *m = (struct srv_metrics){0};
#define X(member, family, help, kind)                                                              \
    _Static_assert(ARRAY_COUNT(kind##_bounds) < SRV_BUCKETS_MAX, "room");                          \
    m->member.bounds = kind##_bounds;                                                              \
    m->member.bound_count = (int)ARRAY_COUNT(kind##_bounds);
    SRV_HISTOGRAM_MAP(X)
#undef X
}

void srv_histogram_observe(struct srv_histogram *h, double value)
{
    int i = 0;
    while (i < h->bound_count && value > h->bounds[i]) i++;
    h->bucket[i]++;
    h->count++;
    h->sum += value;
}

static void put_family(struct buf *out, const char *name, const char *type, const char *help)
{
    buf_printf(out, "# HELP dakd_%s %s\n# TYPE dakd_%s %s\n", name, help, name, type);
}

static void put_counter(struct buf *out, const char *name, const char *help, uint64_t value)
{
    put_family(out, name, "counter", help);
    buf_printf(out, "dakd_%s %llu\n", name, (unsigned long long)value);
}

static void put_gauge(struct buf *out, const char *name, const char *help, double value)
{
    put_family(out, name, "gauge", help);
    buf_printf(out, "dakd_%s %.17g\n", name, value);
}

/* A label's value: backslash, quote and line feed escaped. */
static void put_label(struct buf *out, const char *text)
{
    buf_putc(out, '"');
    for (; *text; text++) {
        if (*text == '\n') buf_puts(out, "\\n");
        else if (*text == '\\' || *text == '"') buf_printf(out, "\\%c", *text);
        else buf_putc(out, *text);
    }
    buf_putc(out, '"');
}

static void put_histogram(struct buf *out, const char *name, const char *help,
                          const struct srv_histogram *h)
{
    uint64_t sum = 0;
    put_family(out, name, "histogram", help);
    for (int i = 0; i < h->bound_count; i++) {
        sum += h->bucket[i];
        buf_printf(out, "dakd_%s_bucket{le=\"%g\"} %llu\n", name, h->bounds[i],
                   (unsigned long long)sum);
    }
    buf_printf(out, "dakd_%s_bucket{le=\"+Inf\"} %llu\n", name, (unsigned long long)h->count);
    buf_printf(out, "dakd_%s_sum %.17g\ndakd_%s_count %llu\n", name, h->sum, name,
               (unsigned long long)h->count);
}

static void put_steps(struct buf *out, const struct eng_stats *e)
{
    static const char name[] = "iteration_tokens_total";
    uint64_t sum = 0;
    put_family(out, name, "histogram", "Tokens computed per engine step.");
    for (int i = 0; i < ENG_STEP_BUCKETS; i++) {
        sum += e->step_tokens_bucket[i];
        if (i < ENG_STEP_BUCKETS - 1)
            buf_printf(out, "dakd_%s_bucket{le=\"%d\"} %llu\n", name, (int)eng_step_bounds[i],
                       (unsigned long long)sum);
        else buf_printf(out, "dakd_%s_bucket{le=\"+Inf\"} %llu\n", name, (unsigned long long)sum);
    }
    buf_printf(out, "dakd_%s_sum %llu\ndakd_%s_count %llu\n", name,
               (unsigned long long)e->step_tokens_sum, name, (unsigned long long)sum);
    put_counter(out, "engine_steps_total", "Engine steps computed.", e->step_count);
    put_family(out, "engine_step_seconds_total", "counter", "Time spent in engine steps.");
    buf_printf(out, "dakd_engine_step_seconds_total %.9f\n", (double)e->step_ns_sum * 1e-9);
}

/* Prompts beside decodes. */
static void put_mixed(struct buf *out, const struct eng_stats *e)
{
    put_counter(out, "mixed_steps_total", "Steps with decodes and tokens of prompts.",
                e->mixed_step_count);
    put_counter(out, "mixed_step_prompt_tokens_total", "Tokens of prompts in these steps.",
                e->mixed_prompt_tokens);
    put_family(out, "mixed_step_seconds_total", "counter", "Time spent in these steps.");
    buf_printf(out, "dakd_mixed_step_seconds_total %.9f\n", (double)e->mixed_ns_sum * 1e-9);
    put_counter(out, "itl_held_back_steps_total",
                "Steps with decodes that --itl-target-ms kept tokens of prompts from.",
                e->held_back_step_count);
    put_counter(out, "itl_over_target_steps_total",
                "Steps with decodes that took longer than --itl-target-ms.",
                e->itl_over_step_count);
}

/* What the prefix cache alone holds is free for whoever needs it: not in use. */
static int32_t pages_in_use(const struct eng_sched_stats *s, int t)
{
    return s->pages_used[t] - s->pages_cached[t];
}

static void put_engine(struct buf *out, const struct eng_stats *e)
{
    int64_t used = 0, total = 0;
    for (int t = 0; t < KN_TIER_MAX; t++) {
        used += pages_in_use(&e->sched, t);
        total += e->sched.pages_total[t];
    }
    const uint64_t busy_ns = e->device_ns_sum + e->host_ns_sum;
    put_gauge(out, "engine_outside_gpu_ratio",
              "Share of the time there was work in which the machine that computes waited for the "
              "engine, since start.",
              busy_ns > 0 ? (double)e->host_ns_sum / (double)busy_ns : 0);
    put_gauge(out, "num_requests_running", "Sequences in the running batch.", e->sched.running);
    put_gauge(out, "num_requests_waiting", "Sequences waiting to run.", e->sched.waiting);
    put_gauge(out, "kv_cache_usage_perc", "Share of the KV pages that sequences use, 0 to 1.",
              total ? (double)used / (double)total : 0);
    put_gauge(out, "engine_healthy", "1 while the engine serves, 0 after it failed.", !e->failed);
    put_counter(out, "prompt_tokens_total", "Prompt tokens computed.", e->prompt_tokens);
    put_counter(out, "generation_tokens_total", "Tokens generated.", e->generated_tokens);
    put_counter(out, "recomputed_tokens_total", "Tokens computed again after a preemption.",
                e->recomputed_tokens);
    put_counter(out, "num_preemptions_total", "Sequences put back for lack of KV pages.",
                e->sched.preempt_count);
    put_counter(out, "kv_pages_moved_out_total",
                "KV pages moved from local memory to a remote tier.", e->sched.pages_out_count);
    put_counter(out, "kv_pages_moved_back_total", "KV pages moved back into local memory.",
                e->sched.pages_back_count);
    put_counter(out, "kv_move_wait_steps_total", "Steps that waited for a KV page to be moved.",
                e->sched.move_wait_count);
    put_gauge(out, "kv_pages_moving", "KV pages on their way, which have two places meanwhile.",
              e->sched.pages_moving);
    put_steps(out, e);
    put_mixed(out, e);
}

static void put_own(struct buf *out, const struct srv_metrics *m)
{
    static const char *const ends[] = {"stop", "length", "abort", "error"};
    put_family(out, "request_success_total", "counter", "Sequences ended, by reason.");
    for (int i = 0; i < SRV_END_COUNT; i++)
        buf_printf(out, "dakd_request_success_total{finished_reason=\"%s\"} %llu\n", ends[i],
                   (unsigned long long)m->ended[i]);
    put_counter(out, "requests_client_left_total", "Requests whose client left before the answer.",
                m->client_left);
    put_counter(out, "requests_rejected_total", "Requests refused because the server was full.",
                m->rejected);
#define X(member, family, help, kind) put_histogram(out, family, help, &m->member);
    SRV_HISTOGRAM_MAP(X)
#undef X
}

static void put_tier_value(struct buf *out, const char *family, const char *tier, double value)
{
    buf_printf(out, "dakd_%s{tier=", family);
    put_label(out, tier);
    if (isinf(value)) buf_puts(out, "} +Inf\n");
    else buf_printf(out, "} %.17g\n", value);
}

/* +Inf where there is no bound. */
static double window_bytes(const struct kn_window *w)
{
    const uint64_t bytes = off_window_bytes(w);
    return bytes == UINT64_MAX ? INFINITY : (double)bytes;
}

static void put_prefix(struct buf *out, const struct srv_metrics_view *v)
{
    const struct eng_sched_stats *s = &v->engine->sched;
    uint64_t hits = 0;
    for (int t = 0; t < KN_TIER_MAX; t++) hits += s->prefix_hit_tokens[t];
    put_counter(out, "prefix_cache_queries_total",
                "Tokens of prompts that were looked up in the prefix cache.",
                s->prefix_query_tokens);
    put_counter(out, "prefix_cache_hits_total", "Of these, tokens whose KV was there.", hits);
    put_family(out, "tier_prefix_cache_hits_total", "counter",
               "Of these, tokens whose KV lay in a memory tier.");
    for (int t = 0; t < v->tier_count; t++)
        put_tier_value(out, "tier_prefix_cache_hits_total", v->tiers[t].name,
                       (double)s->prefix_hit_tokens[t]);
    put_counter(out, "prefix_cache_pages_sent_total",
                "Pages that the prefix cache sent from local memory to a remote tier.",
                s->prefix_sent_count);
    put_family(out, "tier_prefix_cache_pages_dropped_total", "counter",
               "Pages of a memory tier that the prefix cache gave up.");
    for (int t = 0; t < v->tier_count; t++)
        put_tier_value(out, "tier_prefix_cache_pages_dropped_total", v->tiers[t].name,
                       (double)s->prefix_dropped_count[t]);
}

/* How the tiers are read: tier 0 has neither window nor round trips. */
static void put_reading(struct buf *out, const struct srv_metrics_view *v)
{
    static const struct {
        const char *name, *type, *help;
        bool remote;
    } families[] = {
        {"tier_read_bytes_total", "counter", "Bytes that steps read from a memory tier.", false},
        {"tier_read_bandwidth_bytes_per_second", "gauge",
         "Bytes read from a memory tier over the device time of the latest steps.", false},
        {"tier_round_trips_total", "counter", "Copies from a remote tier that were timed.", true},
        {"tier_round_trip_seconds_total", "counter",
         "Sum of their round trips, from issue to landing.", true},
        {"tier_round_trip_min_seconds", "gauge", "Least round trip of the latest step.", true},
        {"tier_round_trip_max_seconds", "gauge", "Largest round trip of the latest step.", true},
        {"tier_fetched_bytes_total", "counter",
         "Of the bytes read, those that were copied ahead of the products.", true},
        {"tier_kv_moved_bytes_total", "counter",
         "Bytes of KV pages moved from a remote tier or to it, beside what steps read.", true},
        {"tier_kv_read_bytes_total", "counter",
         "Bytes of KV that steps read of a remote tier, each once a step.", true}};
    for (size_t f = 0; f < ARRAY_COUNT(families); f++) {
        if (families[f].remote && v->tier_count < 2) continue;
        put_family(out, families[f].name, families[f].type, families[f].help);
        for (int t = families[f].remote; t < v->tier_count; t++) {
            const struct kn_traffic *r = &v->engine->traffic[t];
            const double values[] = {(double)r->bytes,
                                     v->engine->read_bytes_per_s[t],
                                     (double)r->trip_count,
                                     (double)r->trip_ns_sum * 1e-9,
                                     (double)r->trip_ns_min * 1e-9,
                                     (double)r->trip_ns_max * 1e-9,
                                     (double)r->fetched_bytes,
                                     (double)r->moved_bytes,
                                     (double)v->engine->kv_read_bytes[t]};
            put_tier_value(out, families[f].name, v->tiers[t].name, values[f]);
        }
    }
}

/* The windows, and the model they follow from: of the controller's last epoch, 0 before. */
static void put_windows(struct buf *out, const struct srv_metrics_view *v)
{
    static const struct {
        const char *name, *help;
    } families[] = {
        {"tier_window_bytes", "Bytes in flight from a remote tier, at most."},
        {"tier_window_ctas", "Thread blocks, one or two an SM, that read a remote tier, at most."},
        {"tier_window_blocks", "Blocks of 16 KiB that each of them has in flight, at most."},
        {"tier_round_trip_mean_seconds",
         "Mean round trip from a remote tier that the window was last judged by."},
        {"tier_round_trip_floor_seconds", "What it takes when nothing queues."},
        {"tier_round_trip_ceiling_seconds", "Above it the window shrinks."},
        {"tier_delivery_bytes_per_second",
         "Rate of a remote tier that the window was last judged by."},
        {"tier_delivery_peak_bytes_per_second", "The largest such rate of late."},
        {"tier_in_flight_mean_bytes", "In flight from a remote tier on average."}};
    for (size_t f = 0; f < ARRAY_COUNT(families); f++) {
        put_family(out, families[f].name, "gauge", families[f].help);
        for (int t = 1; t < v->tier_count; t++) {
            const struct eng_tier_control *c = &v->engine->control[t];
            const struct off_congestion_decision *d = &c->last;
            const bool bound = c->mode != OFF_CONTROL_NONE;
            const double values[] = {window_bytes(&c->window),
                                     bound ? c->window.ctas : INFINITY,
                                     bound ? c->window.blocks : INFINITY,
                                     d->trip_ns * 1e-9,
                                     d->floor_ns * 1e-9,
                                     d->ceiling_ns * 1e-9,
                                     d->bytes_per_s,
                                     d->peak_bytes_per_s,
                                     d->in_flight_bytes};
            put_tier_value(out, families[f].name, v->tiers[t].name, values[f]);
        }
    }
}

static void put_modes(struct buf *out, const struct srv_metrics_view *v)
{
    put_family(out, "tier_offload_mode_info", "gauge", "How a remote tier's weights are read.");
    for (int t = 1; t < v->tier_count; t++) {
        buf_puts(out, "dakd_tier_offload_mode_info{tier=");
        put_label(out, v->tiers[t].name);
        buf_puts(out, ",mode=");
        put_label(out, v->tiers[t].mode);
        buf_puts(out, "} 1\n");
    }
}

static void put_labelled(struct buf *out, const char *family, const char *tier, const char *label,
                         const char *value, uint64_t count)
{
    buf_printf(out, "dakd_%s{tier=", family);
    put_label(out, tier);
    buf_printf(out, ",%s=\"%s\"} %llu\n", label, value, (unsigned long long)count);
}

static void put_control(struct buf *out, const struct srv_metrics_view *v)
{
    static const char moves[] = "tier_window_moves_total", state[] = "tier_congestion_state";
    put_windows(out, v);
    put_family(out, moves, "counter", "Changes of a remote tier's window.");
    for (int t = 1; t < v->tier_count; t++) {
        const struct eng_tier_control *c = &v->engine->control[t];
        put_labelled(out, moves, v->tiers[t].name, "direction", "up", c->up_count);
        put_labelled(out, moves, v->tiers[t].name, "direction", "down", c->down_count);
    }
    put_family(out, state, "gauge", "1 for what a remote tier's congestion control is doing.");
    for (int t = 1; t < v->tier_count; t++)
        for (int s = 0; s < ENG_CONTROL_STATES; s++)
            put_labelled(out, state, v->tiers[t].name, "state", eng_control_state_names[s],
                         s == eng_control_state(&v->engine->control[t]));
}

static void put_tiers(struct buf *out, const struct srv_metrics_view *v)
{
    const struct eng_sched_stats *s = &v->engine->sched;
    const struct {
        const char *name, *help;
    } families[] = {{"tier_weight_bytes", "Bytes of weights that lie in a memory tier."},
                    {"tier_weight_requested_bytes", "Bytes of weights that were to lie there."},
                    {"tier_step_bytes",
                     "Bytes that a decode step of the planned workload must read, as weights lie."},
                    {"tier_step_predicted_bytes", "The same as the plan predicted."},
                    {"tier_step_copied_bytes",
                     "Of these, bytes that the copy engine brings ahead of the products."},
                    {"tier_capacity_bytes", "Capacity of a memory tier."},
                    {"tier_kv_pages", "KV pages a memory tier holds."},
                    {"tier_kv_pages_used", "KV pages of a memory tier that sequences use."},
                    {"tier_kv_pages_cached", "KV pages of a memory tier that the prefix cache "
                                             "alone holds: free for whoever needs them."}};
    for (size_t f = 0; f < ARRAY_COUNT(families); f++) {
        put_family(out, families[f].name, "gauge", families[f].help);
        for (int t = 0; t < v->tier_count; t++) {
            const struct srv_tier *tier = &v->tiers[t];
            const uint64_t values[] = {tier->weight_bytes,
                                       tier->requested_bytes,
                                       (uint64_t)tier->step_bytes,
                                       (uint64_t)tier->predicted_step_bytes,
                                       (uint64_t)tier->copied_step_bytes,
                                       tier->capacity_bytes,
                                       (uint64_t)s->pages_total[t],
                                       (uint64_t)pages_in_use(s, t),
                                       (uint64_t)s->pages_cached[t]};
            buf_printf(out, "dakd_%s{tier=", families[f].name);
            put_label(out, v->tiers[t].name);
            buf_printf(out, "} %llu\n", (unsigned long long)values[f]);
        }
    }
    put_reading(out, v);
    if (v->tier_count > 1) {
        put_modes(out, v);
        put_control(out, v);
    }
    put_gauge(out, "kv_page_bytes", "Size of one KV page.", (double)v->kv_page_bytes);
}

static void put_routes(struct buf *out, const struct srv_http_stats *h,
                       const struct srv_route *routes)
{
    static const char *const classes[SRV_CLASS_COUNT] = {"1xx", "2xx", "3xx", "4xx", "5xx", "499"};
    put_family(out, "http_responses_total", "counter",
               "Responses by route and class; 499 counts clients that left.");
    for (size_t r = 0; r <= h->route_count; r++) {
        for (int c = 0; c < SRV_CLASS_COUNT; c++) {
            if (!h->routes[r].responses[c]) continue;
            bool known = r < h->route_count;
            buf_printf(out, "dakd_http_responses_total{method=\"%s\",route=",
                       known ? routes[r].method : "");
            put_label(out, known ? routes[r].path : "other");
            buf_printf(out, ",code=\"%s\"} %llu\n", classes[c],
                       (unsigned long long)h->routes[r].responses[c]);
        }
    }
}

static void put_http(struct buf *out, const struct srv_http_stats *h,
                     const struct srv_route *routes)
{
    put_gauge(out, "http_connections", "Open connections.", (double)h->conn_open);
    put_gauge(out, "http_requests_active", "Requests being answered.", (double)h->requests_active);
    put_gauge(out, "http_body_bytes_held", "Bytes of request bodies in memory.",
              (double)h->body_bytes_held);
    put_gauge(out, "http_queue_bytes_peak", "Largest output queue a stream has had.",
              (double)h->queue_bytes_peak);
    put_counter(out, "http_connections_total", "Connections accepted.", h->conn_accepted);
    put_counter(out, "http_connections_refused_total", "Connections over the limit.",
                h->conn_refused);
    put_counter(out, "http_connections_timed_out_total", "Connections closed for a slow request.",
                h->conn_timed_out);
    put_counter(out, "http_connections_stalled_total", "Connections closed for a reader at rest.",
                h->conn_stalled);
    put_counter(out, "http_received_bytes_total", "Bytes received.", h->bytes_in);
    put_counter(out, "http_sent_bytes_total", "Bytes sent.", h->bytes_out);
    put_routes(out, h, routes);
}

void srv_metrics_format(const struct srv_metrics_view *v, struct buf *out)
{
    put_family(out, "build_info", "gauge", "Version of the daemon and name of the model.");
    buf_puts(out, "dakd_build_info{version=");
    put_label(out, v->version);
    buf_puts(out, ",commit=");
    put_label(out, v->commit);
    buf_puts(out, ",model_name=");
    put_label(out, v->model_name);
    buf_puts(out, "} 1\n");
    put_engine(out, v->engine);
    put_own(out, v->own);
    put_prefix(out, v);
    put_tiers(out, v);
    if (v->http) put_http(out, v->http, v->routes);
}
