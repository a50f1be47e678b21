/* The page of /metrics against the grammar and the rules of Prometheus' text format 0.0.4. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "config/check.h"
#include "server/metrics.h"

const int32_t eng_step_bounds[ENG_STEP_BUCKETS - 1] = {1,   8,   16,   32,   64,  128,
                                                       256, 512, 1024, 2048, 4096};

struct family {
    char name[96], type[16];
};

/* Reads the page line by line and checks it. */
struct page {
    struct family families[128];
    int family_count;
    char bucket_of[160]; /* histogram series being read: name without its le label */
    double last_le, last_count;
    int samples;
};

static bool is_name(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!(s[i] == '_' || (s[i] >= 'a' && s[i] <= 'z') || (i && s[i] >= '0' && s[i] <= '9')))
            return false;
    return n > 0;
}

static const struct family *family_of(const struct page *p, const char *name, size_t len)
{
    static const char *const suffixes[] = {"_bucket", "_sum", "_count"};
    for (int i = 0; i < p->family_count; i++) {
        const struct family *f = &p->families[i];
        size_t n = strlen(f->name);
        if (len == n && !memcmp(f->name, name, n)) return f;
        if (strcmp(f->type, "histogram")) continue;
        for (size_t k = 0; k < 3; k++)
            if (len == n + strlen(suffixes[k]) && !memcmp(name, f->name, n) &&
                !memcmp(name + n, suffixes[k], strlen(suffixes[k])))
                return f;
    }
    return NULL;
}

/* {a="b",c="d\"e"}; returns what follows. */
static const char *skip_labels(const char *s)
{
    if (*s != '{') return s;
    do {
        const char *name = ++s;
        while (*s && *s != '=') s++;
        assert_true(is_name(name, (size_t)(s - name)));
        assert_true(s[1] == '"');
        for (s += 2; *s != '"'; s++) {
            assert_true(*s && *s != '\n');
            if (*s == '\\') {
                s++;
                assert_non_null(strchr("\\\"n", *s));
            }
        }
        s++;
    } while (*s == ',');
    assert_true(*s == '}');
    return s + 1;
}

static void read_comment(struct page *p, const char *line)
{
    char kind[8], name[96], rest[200];
    _Static_assert(sizeof "histogram" <= 16, "room");
    assert_int_equal(sscanf(line, "# %7s %95s %199[^\n]", kind, name, rest), 3);
    assert_true(is_name(name, strlen(name)) && !strncmp(name, "dakd_", 5));
    if (!strcmp(kind, "HELP")) {
        assert_null(family_of(p, name, strlen(name))); /* once */
        assert_true(p->family_count < 128);
        snprintf(p->families[p->family_count++].name, 96, "%s", name);
        return;
    }
    assert_string_equal(kind, "TYPE");
    struct family *f = &p->families[p->family_count - 1];
    assert_string_equal(f->name, name); /* right after its HELP */
    assert_string_equal(f->type, "");
    assert_true(!strcmp(rest, "gauge") || !strcmp(rest, "counter") || !strcmp(rest, "histogram"));
    memcpy(f->type, rest, strlen(rest) + 1); /* one of the three */
}

static void read_sample(struct page *p, const char *line)
{
    size_t len = strcspn(line, "{ ");
    const struct family *f = family_of(p, line, len);
    assert_true(is_name(line, len));
    assert_non_null(f);
    assert_ptr_equal(f, &p->families[p->family_count - 1]); /* families are not mixed */
    const char *value = skip_labels(line + len);
    char *end;
    assert_true(*value == ' ');
    double v = strtod(value + 1, &end);
    assert_true(*end == '\0' && isfinite(v));
    if (!strcmp(f->type, "counter")) {
        bool named = strlen(f->name) > 6 && !strcmp(f->name + strlen(f->name) - 6, "_total");
        assert_true(named && v >= 0);
    }
    const char *le = strstr(line, "le=\"");
    if (le && !strcmp(f->type, "histogram")) {
        double bound = strtod(le + 4, NULL); /* "+Inf" too */
        if (strcmp(p->bucket_of, f->name)) {
            snprintf(p->bucket_of, sizeof p->bucket_of, "%s", f->name);
            p->last_le = -INFINITY;
            p->last_count = 0;
        }
        assert_true(bound > p->last_le && v >= p->last_count); /* rising and cumulative */
        p->last_le = bound;
        p->last_count = v;
    } else if (!strcmp(f->type, "histogram") && !strncmp(line + strlen(f->name), "_count", 6)) {
        assert_true(isinf(p->last_le));
        assert_true(v == p->last_count); /* the +Inf bucket is the count */
    }
    p->samples++;
}

static void read_page(struct page *p, char *text)
{
    *p = (struct page){0};
    size_t len = strlen(text);
    assert_true(len > 0 && text[len - 1] == '\n');
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
        if (*line == '#') read_comment(p, line);
        else read_sample(p, line);
}

static struct srv_metrics metrics;
static struct eng_stats stats;
static const struct srv_tier tiers[] = {
    {.name = "hbm", .weight_bytes = 100, .capacity_bytes = 1000},
    {.name = "ho\"st\\\n",
     .weight_bytes = 50,
     .capacity_bytes = 500,
     .copied_step_bytes = 7,
     .mode = "auto"}};
static const struct srv_route routes[] = {{"GET", "/metrics", NULL},
                                          {"POST", "/v1/completions", NULL}};
static const struct srv_http_route_stats route_stats[] = {{.responses = {0, 5, 0, 0, 0, 0}},
                                                          {.responses = {0, 7, 0, 1, 0, 2}},
                                                          {.responses = {0, 0, 0, 3, 0, 0}}};
static const struct srv_http_stats http = {.conn_open = 1, .route_count = 2, .routes = route_stats};

static char *page_text(void)
{
    struct srv_metrics_view view = {.own = &metrics,
                                    .engine = &stats,
                                    .http = &http,
                                    .routes = routes,
                                    .tiers = tiers,
                                    .tier_count = 2,
                                    .kv_page_bytes = 4096,
                                    .model_name = "a\"b",
                                    .version = "0.1.0",
                                    .commit = "abc"};
    struct buf b;
    buf_init(&b, 1 << 20);
    srv_metrics_format(&view, &b);
    assert_int_equal(buf_status(&b), ST_OK);
    return b.data;
}

static void test_valid_exposition(void **state)
{
    (void)state;
    struct page *p = malloc(sizeof *p);
    srv_metrics_init(&metrics);
    stats.control[1] = (struct eng_tier_control){.mode = OFF_CONTROL_STATIC, .window = {16, 1, 91}};
    char *text = page_text();
    read_page(p, text);
    free(text);
    assert_true(p->samples > 100);
    static const char *const wanted[] = {
        "num_requests_running",        "num_requests_waiting",
        "kv_cache_usage_perc",         "prompt_tokens_total",
        "generation_tokens_total",     "num_preemptions_total",
        "request_success_total",       "time_to_first_token_seconds",
        "inter_token_latency_seconds", "e2e_request_latency_seconds",
        "request_queue_time_seconds",  "request_prefill_time_seconds",
        "request_decode_time_seconds", "request_prompt_tokens",
        "request_generation_tokens",   "iteration_tokens_total",
        "tier_weight_bytes",           "tier_kv_pages",
        "tier_window_bytes",           "tier_congestion_state",
        "http_responses_total",        "mixed_steps_total",
        "mixed_step_seconds_total",    "itl_over_target_steps_total",
        "prefix_cache_queries_total",  "prefix_cache_hits_total",
        "tier_kv_pages_cached",        "tier_prefix_cache_hits_total"};
    for (size_t i = 0; i < ARRAY_COUNT(wanted); i++) {
        char name[96];
        snprintf(name, sizeof name, "dakd_%s", wanted[i]);
        if (!family_of(p, name, strlen(name))) fail_msg("no family %s", name);
    }
    free(p);
}

static double sample(const char *text, const char *series)
{
    const char *at = strstr(text, series);
    while (at && at != text && at[-1] != '\n') at = strstr(at + 1, series);
    if (!at || at[strlen(series)] != ' ') fail_msg("no sample %s", series);
    return strtod(at + strlen(series), NULL);
}

static void test_values(void **state)
{
    (void)state;
    srv_metrics_init(&metrics);
    stats = (struct eng_stats){.prompt_tokens = 11,
                               .generated_tokens = 22,
                               .step_count = 3,
                               .step_tokens_sum = 30,
                               .mixed_step_count = 7,
                               .mixed_ns_sum = 1500000000,
                               .mixed_prompt_tokens = 700,
                               .held_back_step_count = 6,
                               .itl_over_step_count = 2,
                               .device_ns_sum = 900,
                               .host_ns_sum = 100};
    stats.sched = (struct eng_sched_stats){.running = 4,
                                           .waiting = 5,
                                           .pages_used = {4, 2},
                                           .pages_cached = {1, 1},
                                           .pages_total = {6, 2},
                                           .prefix_query_tokens = 900,
                                           .prefix_hit_tokens = {300, 200},
                                           .prefix_sent_count = 12,
                                           .prefix_dropped_count = {3, 4},
                                           .preempt_count = 9};
    stats.traffic[0].bytes = 1000;
    stats.traffic[1] = (struct kn_traffic){.bytes = 32768,
                                           .fetched_bytes = 16384,
                                           .trip_count = 2,
                                           .trip_ns_sum = 3000,
                                           .trip_ns_min = 1000,
                                           .trip_ns_max = 2000};
    stats.read_bytes_per_s[1] = 5e9;
    stats.control[1] = (struct eng_tier_control){.mode = OFF_CONTROL_ADAPTIVE,
                                                 .window = {8, 2, 91},
                                                 .last = {.trip_ns = 4000,
                                                          .floor_ns = 2000,
                                                          .ceiling_ns = 8000,
                                                          .bytes_per_s = 5e10,
                                                          .peak_bytes_per_s = 6e10,
                                                          .in_flight_bytes = 200000},
                                                 .phase = OFF_CC_HOLD,
                                                 .up_count = 3,
                                                 .down_count = 2};
    stats.step_tokens_bucket[1] = 2;
    stats.step_tokens_bucket[ENG_STEP_BUCKETS - 1] = 1;
    srv_histogram_observe(&metrics.ttft, 0.001); /* a bound belongs to its bucket */
    srv_histogram_observe(&metrics.ttft, 0.002);
    srv_histogram_observe(&metrics.ttft, 1e9);
    metrics.ended[SRV_END_STOP] = 6;
    char *t = page_text();
    assert_true(sample(t, "dakd_num_requests_running") == 4);
    assert_true(sample(t, "dakd_num_requests_waiting") == 5);
    assert_true(sample(t, "dakd_kv_cache_usage_perc") == 0.5); /* what the cache holds is free */
    assert_true(sample(t, "dakd_prefix_cache_queries_total") == 900);
    assert_true(sample(t, "dakd_prefix_cache_hits_total") == 500);
    assert_true(sample(t, "dakd_prefix_cache_pages_sent_total") == 12);
    assert_true(sample(t, "dakd_engine_outside_gpu_ratio") == 0.1);
    assert_true(sample(t, "dakd_prompt_tokens_total") == 11);
    assert_true(sample(t, "dakd_generation_tokens_total") == 22);
    assert_true(sample(t, "dakd_num_preemptions_total") == 9);
    assert_true(sample(t, "dakd_mixed_steps_total") == 7);
    assert_true(sample(t, "dakd_mixed_step_seconds_total") == 1.5);
    assert_true(sample(t, "dakd_mixed_step_prompt_tokens_total") == 700);
    assert_true(sample(t, "dakd_itl_held_back_steps_total") == 6);
    assert_true(sample(t, "dakd_itl_over_target_steps_total") == 2);
    assert_true(sample(t, "dakd_request_success_total{finished_reason=\"stop\"}") == 6);
    assert_true(sample(t, "dakd_time_to_first_token_seconds_bucket{le=\"0.001\"}") == 1);
    assert_true(sample(t, "dakd_time_to_first_token_seconds_bucket{le=\"0.0025\"}") == 2);
    assert_true(sample(t, "dakd_time_to_first_token_seconds_bucket{le=\"2560\"}") == 2);
    assert_true(sample(t, "dakd_time_to_first_token_seconds_bucket{le=\"+Inf\"}") == 3);
    assert_true(sample(t, "dakd_time_to_first_token_seconds_count") == 3);
    assert_true(sample(t, "dakd_iteration_tokens_total_bucket{le=\"1\"}") == 0);
    assert_true(sample(t, "dakd_iteration_tokens_total_bucket{le=\"8\"}") == 2);
    assert_true(sample(t, "dakd_iteration_tokens_total_bucket{le=\"+Inf\"}") == 3);
    assert_true(sample(t, "dakd_iteration_tokens_total_sum") == 30);
    assert_true(sample(t, "dakd_tier_kv_pages_used{tier=\"hbm\"}") == 3);
    assert_true(sample(t, "dakd_tier_weight_bytes{tier=\"ho\\\"st\\\\\\n\"}") == 50);
    assert_true(sample(t, "dakd_tier_read_bytes_total{tier=\"hbm\"}") == 1000);
    assert_true(sample(t, "dakd_tier_kv_pages_cached{tier=\"hbm\"}") == 1);
    assert_true(sample(t, "dakd_tier_prefix_cache_hits_total{tier=\"hbm\"}") == 300);
#define REMOTE "{tier=\"ho\\\"st\\\\\\n\"}"
    assert_true(sample(t, "dakd_tier_prefix_cache_hits_total" REMOTE) == 200);
    assert_true(sample(t, "dakd_tier_prefix_cache_pages_dropped_total" REMOTE) == 4);
    assert_true(sample(t, "dakd_tier_kv_pages_used" REMOTE) == 1);
    assert_true(sample(t, "dakd_tier_read_bytes_total" REMOTE) == 32768);
    assert_true(sample(t, "dakd_tier_read_bandwidth_bytes_per_second" REMOTE) == 5e9);
    assert_true(sample(t, "dakd_tier_fetched_bytes_total" REMOTE) == 16384);
    assert_true(sample(t, "dakd_tier_step_copied_bytes" REMOTE) == 7);
    assert_true(sample(t, "dakd_tier_offload_mode_info{tier=\"ho\\\"st\\\\\\n\",mode=\"auto\"}") ==
                1);
    assert_true(sample(t, "dakd_tier_window_bytes" REMOTE) == 262144);
    assert_true(sample(t, "dakd_tier_window_ctas" REMOTE) == 8);
    assert_true(sample(t, "dakd_tier_window_blocks" REMOTE) == 2);
    assert_true(fabs(sample(t, "dakd_tier_round_trip_mean_seconds" REMOTE) - 4e-6) < 1e-12);
    assert_true(fabs(sample(t, "dakd_tier_round_trip_floor_seconds" REMOTE) - 2e-6) < 1e-12);
    assert_true(fabs(sample(t, "dakd_tier_round_trip_ceiling_seconds" REMOTE) - 8e-6) < 1e-12);
    assert_true(sample(t, "dakd_tier_delivery_bytes_per_second" REMOTE) == 5e10);
    assert_true(sample(t, "dakd_tier_delivery_peak_bytes_per_second" REMOTE) == 6e10);
    assert_true(sample(t, "dakd_tier_in_flight_mean_bytes" REMOTE) == 200000);
#define REMOTE_AND "{tier=\"ho\\\"st\\\\\\n\","
    assert_true(sample(t, "dakd_tier_window_moves_total" REMOTE_AND "direction=\"up\"}") == 3);
    assert_true(sample(t, "dakd_tier_window_moves_total" REMOTE_AND "direction=\"down\"}") == 2);
    assert_true(sample(t, "dakd_tier_congestion_state" REMOTE_AND "state=\"hold\"}") == 1);
    assert_true(sample(t, "dakd_tier_congestion_state" REMOTE_AND "state=\"search\"}") == 0);
    assert_true(sample(t, "dakd_tier_round_trips_total" REMOTE) == 2);
    assert_true(fabs(sample(t, "dakd_tier_round_trip_seconds_total" REMOTE) - 3e-6) < 1e-12);
    assert_true(fabs(sample(t, "dakd_tier_round_trip_min_seconds" REMOTE) - 1e-6) < 1e-12);
    assert_true(fabs(sample(t, "dakd_tier_round_trip_max_seconds" REMOTE) - 2e-6) < 1e-12);
    assert_null(strstr(t, "dakd_tier_window_bytes{tier=\"hbm\"}")); /* local: no window */
    assert_true(sample(t, "dakd_http_responses_total{method=\"POST\",route=\"/v1/completions\","
                          "code=\"499\"}") == 2);
    assert_true(sample(t, "dakd_http_responses_total{method=\"\",route=\"other\",code=\"4xx\"}") ==
                3);
    free(t);
}

/* A tier with no bound says so, and a machine without remote tiers has no families of theirs. */
static void test_windows(void **state)
{
    struct srv_tier unbounded[2] = {{.name = "hbm"}, {.name = "host", .mode = "uva"}};
    struct srv_metrics_view view = {.own = &metrics,
                                    .engine = &stats,
                                    .tiers = unbounded,
                                    .tier_count = 2,
                                    .model_name = "m",
                                    .version = "1",
                                    .commit = "c"};
    struct buf b;
    (void)state;
    stats.control[1] = (struct eng_tier_control){
        .mode = OFF_CONTROL_NONE, .window = {KN_WINDOW_NO_BOUND, KN_WINDOW_NO_BOUND, 91}};
    buf_init(&b, 1 << 20);
    srv_metrics_format(&view, &b);
    assert_non_null(strstr(b.data, "dakd_tier_window_bytes{tier=\"host\"} +Inf\n"));
    assert_non_null(strstr(b.data, "dakd_tier_window_ctas{tier=\"host\"} +Inf\n"));
    assert_non_null(strstr(b.data, "dakd_tier_congestion_state{tier=\"host\",state=\"off\"} 1\n"));
    buf_deinit(&b);
    buf_init(&b, 1 << 20);
    view.tier_count = 1;
    srv_metrics_format(&view, &b);
    assert_null(strstr(b.data, "dakd_tier_window_bytes"));
    assert_non_null(strstr(b.data, "dakd_tier_read_bytes_total{tier=\"hbm\"}"));
    buf_deinit(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_valid_exposition),
                                       cmocka_unit_test(test_values),
                                       cmocka_unit_test(test_windows)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
