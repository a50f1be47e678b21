#include "server/bench_report.h"

#include <math.h>
#include <string.h>

#include "config/buf.h"
#include "config/check.h"
#include "config/clock.h"
#include "config/version.h"
#include "offload/window.h"
#include "server/output.h"

#define JSON_BYTES_MAX 65536 /* of one result */
#define MS 1e3
#define TERA 1e12

/* A heading where key is NULL. */
struct figure {
    const char *key, *label;
    double value;
    int decimals; /* for people */
};
#define FIGURES_MAX 56

struct list {
    struct figure at[FIGURES_MAX];
    size_t count;
};

static void add(struct list *l, const char *key, const char *label, double value, int decimals)
{
    CHECK(l->count < FIGURES_MAX);
    l->at[l->count++] = (struct figure){key, label, value, decimals};
}

/* All that a steady step must read, over its time. */
static double effective_bytes_per_s(const struct srv_bench_result *r)
{
    double bytes = 0;
    for (int t = 0; t < r->bandwidth.tier_count; t++) bytes += (double)r->step_bytes[t];
    return bytes / r->stats.steady_tpot_s;
}

static void list_decode(const struct srv_bench_result *r, struct list *l)
{
    const struct srv_bench_stats *s = &r->stats;
    add(l, NULL, "decode, steady steps", 0, 0);
    add(l, "steady_step_count", "steps in which every sequence decoded",
        (double)s->steady_step_count, 0);
    add(l, "steady_context_mean_tokens", "mean context of a sequence (tokens)",
        s->steady_context_tokens, 1);
    add(l, "floor_per_step_ms", "floor of a step (ms)", r->floor_s * MS, 4);
    add(l, "tpot_steady_median_ms", "TPOT, median (ms)", s->steady_tpot_s * MS, 4);
    add(l, "floor_over_tpot_ratio", "floor / TPOT", r->floor_s / s->steady_tpot_s, 4);
    if (r->matrix_flops_per_s > 0) {
        const double arithmetic_s = r->step_flops / r->matrix_flops_per_s;
        add(l, "arithmetic_per_step_ms", "arithmetic of a step at the probed peak (ms)",
            arithmetic_s * MS, 4);
        add(l, "larger_floor_over_tpot_ratio", "the larger of it and the floor / TPOT",
            fmax(arithmetic_s, r->floor_s) / s->steady_tpot_s, 4);
    }
    add(l, "effective_gb_per_s", "effective bandwidth: all a step reads / TPOT (GB/s)",
        effective_bytes_per_s(r) / 1e9, 2);
    if (r->mode.staged.ring_bytes && r->mode.predicted_s > 0)
        add(l, "mode_predicted_step_ms", "at least, by the links' rates in this mode (ms)",
            r->mode.predicted_s * MS, 4);
    if (r->prediction.seconds > 0) {
        const double predicted_s = r->prediction.seconds;
        add(l, "predicted_per_step_ms", "predicted (ms)", predicted_s * MS, 4);
        add(l, "predicted_over_tpot_ratio", "predicted / TPOT", predicted_s / s->steady_tpot_s, 4);
    }
    add(l, "decode_tokens_per_s", "decode throughput (tokens/s)", s->decode_tokens_per_s, 2);
    add(l, "steady_played_step_count", "of the steady steps, played from recordings",
        (double)r->played_count, 0);
    if (r->copy_bytes_per_s > 0)
        add(l, "background_copy_bytes_per_s", "copied beside it (bytes/s)", r->copy_bytes_per_s, 0);
    add(l, "device_per_step_ms", "device busy, mean of a step (ms)", r->device_s * MS, 4);
    add(l, "engine_outside_device_per_step_ms", "engine outside the device, mean of a step (ms)",
        r->host_s * MS, 4);
    add(l, "engine_outside_device_share_ratio", "engine outside the device / all",
        r->host_s / (r->host_s + r->device_s), 4);
}

/* What prompts took, and what they reached of the peak that products of their kind have on this
 * machine. */
static void list_prompt(const struct options *o, const struct srv_bench_result *r, struct list *l)
{
    const struct srv_bench_prompt *p = &r->prompt;
    double tokens = (double)r->batch * (double)o->input_len;
    double flops_per_s = r->prefill_flops * r->stats.prefill_tokens_per_s / tokens;
    if (o->given_context) return; /* there were none */
    add(l, NULL, "prompts, up to the last first token", 0, 0);
    add(l, "prompt_step_count", "steps (chunks)", (double)p->step_count, 0);
    add(l, "prompt_ms", "time from submission (ms)", p->s * MS, 3);
    add(l, "prompt_device_ms", "of it, device busy (ms)", p->device_s * MS, 3);
    add(l, "prefill_tokens_per_s", "prefill throughput (tokens/s)", r->stats.prefill_tokens_per_s,
        2);
    add(l, "prefill_tflops", "prefill (TFLOPS)", flops_per_s / TERA, 2);
    if (r->matrix_flops_per_s > 0) {
        add(l, "matrix_peak_tflops", "peak of bf16 products on chip, probed (TFLOPS)",
            r->matrix_flops_per_s / TERA, 2);
        add(l, "prefill_mfu_ratio", "MFU: prefill / that peak", flops_per_s / r->matrix_flops_per_s,
            4);
    }
    if (p->link_s == 0) return;
    add(l, "prompt_link_floor_ms", "remote weights / probed link (ms)", p->link_s * MS, 3);
    add(l, "prompt_over_link_floor_ratio", "time / link's", p->s / p->link_s, 4);
}

static void list_clients(const struct options *o, const struct srv_bench_result *r, struct list *l)
{
    const struct srv_bench_stats *s = &r->stats;
    double input = (double)r->batch * (double)o->input_len;
    double output = (double)r->batch * (double)o->output_len;
    add(l, NULL, "whole run", 0, 0);
    add(l, "completed_request_count", "completed requests", (double)r->batch, 0);
    add(l, "duration_s", "duration (s)", s->duration_s, 3);
    if (!o->given_context) add(l, "total_input_tokens", "input tokens", input, 0);
    add(l, "total_output_tokens", "output tokens", output, 0);
    add(l, "request_throughput_per_s", "requests/s", (double)r->batch / s->duration_s, 3);
    add(l, "output_tokens_per_s", "output throughput (tokens/s)", output / s->duration_s, 2);
    if (!o->given_context) {
        add(l, "total_tokens_per_s", "total throughput (tokens/s)",
            (input + output) / s->duration_s, 2);
        add(l, NULL, "time to first token (TTFT)", 0, 0);
        add(l, "ttft_mean_ms", "mean (ms)", s->ttft_s.mean * MS, 3);
        add(l, "ttft_median_ms", "median (ms)", s->ttft_s.median * MS, 3);
        add(l, "ttft_p99_ms", "P99 (ms)", s->ttft_s.p99 * MS, 3);
    }
    add(l, NULL, "time per output token (TPOT), of requests", 0, 0);
    add(l, "tpot_mean_ms", "mean (ms)", s->tpot_s.mean * MS, 3);
    add(l, "tpot_median_ms", "median (ms)", s->tpot_s.median * MS, 3);
    add(l, "tpot_p99_ms", "P99 (ms)", s->tpot_s.p99 * MS, 3);
    add(l, NULL, "inter-token latency (ITL)", 0, 0);
    add(l, "itl_mean_ms", "mean (ms)", s->itl_s.mean * MS, 3);
    add(l, "itl_median_ms", "median (ms)", s->itl_s.median * MS, 3);
    add(l, "itl_p99_ms", "P99 (ms)", s->itl_s.p99 * MS, 3);
}

static void list_pages(const struct options *o, const struct srv_bench_result *r, struct list *l)
{
    if (!o->kv_remote[0]) return;
    add(l, NULL, "KV pages in two tiers, since start", 0, 0);
    add(l, "kv_pages_out_count", "pages moved out of local memory", (double)r->pages_out, 0);
    add(l, "kv_pages_back_count", "and back into it", (double)r->pages_back, 0);
    add(l, "kv_move_wait_step_count", "steps that waited for a page", (double)r->move_waits, 0);
}

static void list_all(const struct options *o, const struct srv_bench_result *r, struct list *l)
{
    l->count = 0;
    list_decode(r, l);
    list_pages(o, r, l);
    list_prompt(o, r, l);
    list_clients(o, r, l);
}

/* What a steady step's reading of a tier takes at least; 0 of one that it reads nothing of. */
static double tier_s(const struct srv_bench_result *r, int tier)
{
    if (!r->step_bytes[tier]) return 0;
    return (double)r->step_bytes[tier] / r->best_bytes_per_s[tier];
}

/* What of its copy engine's rate alone a link reached, by either way; 0: unknown. */
static double of_engine(const struct srv_bench_result *r, int tier)
{
    if (r->engine_bytes_per_s[tier] <= 0) return 0;
    return r->counted_bytes[tier] / r->stats.steady_tpot_s / r->engine_bytes_per_s[tier];
}

/* What a tier delivered: the bytes a steady step must read over its time. */
static double achieved_bytes_per_s(const struct srv_bench_result *r, int tier)
{
    return (double)r->step_bytes[tier] / r->stats.steady_tpot_s;
}

static void window_text(const struct kn_window *w, char out[32])
{
    if (w->ctas == 0) snprintf(out, 32, "-");
    else if (off_window_bytes(w) == UINT64_MAX) snprintf(out, 32, "none");
    else snprintf(out, 32, "%dx%d", w->ctas, w->blocks);
}

static const char *control_name(const struct options *o, const struct srv_bench_result *r)
{
    return r->control->name[0] ? r->control->name : o->congestion_control;
}

/* --- for people ------------------------------------------------------------------------------- */

/* How an adaptive tier came to its window. */
static void print_found(const struct eng_tier_control *c)
{
    if (c->found_step_count) printf("found in %llu steps", (unsigned long long)c->found_step_count);
    else printf("not found yet in %llu steps", (unsigned long long)c->step_count);
    printf(", %llu up, %llu down", (unsigned long long)c->up_count,
           (unsigned long long)c->down_count);
}

/* How each tier was read in steady steps. */
static void print_reading(const struct srv_machine *m, const struct srv_bench_result *r)
{
    printf("\n%-8s %12s %12s %9s %12s   %33s\n", "", "", "of what was", "", "counted",
           "round trip (us)");
    printf("%-8s %12s %12s %9s %12s %12s %10s %10s\n", "tier", "got GB/s", "probed", "window", "MB",
           "mean", "least", "largest");
    for (int t = 0; t < r->bandwidth.tier_count; t++) {
        const struct srv_bench_trips *trips = &r->trips[t];
        char window[32];
        window_text(&r->tier_control[t].window, window);
        printf("%-8s %12.3f", off_tier_name(m->tiers, t), achieved_bytes_per_s(r, t) / 1e9);
        if (r->bandwidth.read_bytes_per_s[t] > 0)
            printf(" %12.3f", achieved_bytes_per_s(r, t) / r->bandwidth.read_bytes_per_s[t]);
        else printf(" %12s", "-");
        printf(" %9s %12.3f", window, r->counted_bytes[t] / 1e6);
        if (trips->count)
            printf(" %12.2f %10.2f %10.2f\n", trips->mean_s * 1e6, trips->min_s * 1e6,
                   trips->max_s * 1e6);
        else printf(" %12s %10s %10s\n", "-", "-", "-");
    }
    for (int t = 1; t < r->bandwidth.tier_count; t++) {
        if (r->tier_control[t].mode != OFF_CONTROL_ADAPTIVE) continue;
        printf("%-8s window ", off_tier_name(m->tiers, t));
        print_found(&r->tier_control[t]);
        putchar('\n');
    }
}

/* By which way a steady step's bytes crossed each link, as counted. */
static void print_crossing(const struct srv_machine *m, const struct srv_bench_result *r)
{
    if (r->bandwidth.tier_count < 2 || r->counted_bytes[0] <= 0) return;
    printf("\n%-8s %12s %12s %12s %12s   --offload-mode %s\n", "link", "copied MB", "in place MB",
           "GB/s", "of copies", off_mode_name(r->mode.mode));
    for (int t = 1; t < r->bandwidth.tier_count; t++) {
        printf("%-8s %12.3f %12.3f %12.3f ", off_tier_name(m->tiers, t), r->copied_bytes[t] / 1e6,
               (r->counted_bytes[t] - r->copied_bytes[t]) / 1e6,
               r->counted_bytes[t] / r->stats.steady_tpot_s / 1e9);
        if (r->engine_bytes_per_s[t] > 0) printf("%12.4f\n", of_engine(r, t));
        else printf("%12s\n", "-");
    }
}

/* Of the weights, as they lie; what was asked for to within half a tile. */
static double remote_share(const struct srv_machine *m)
{
    double all = 0, remote = 0;
    for (int t = 0; t < off_tiers_count(m->tiers); t++) {
        all += (double)m->memory.share[t].placed;
        if (t) remote += (double)m->memory.share[t].placed;
    }
    return remote / all;
}

static const char *placement_text(const struct options *o, const struct srv_machine *m)
{
    return m->memory.planned ? "planned" : o->placement;
}

/* What one step of the prompts has of the weights in a tier, and what was counted there. */
static double prompt_weights(const struct srv_bench_prompt *p, int tier)
{
    return (double)p->weight_bytes[tier] / (double)p->step_count;
}

static double prompt_counted(const struct srv_bench_prompt *p, int tier)
{
    return (double)p->counted_bytes[tier] / (double)p->step_count;
}

static void print_prompt(const struct options *o, const struct srv_machine *m,
                         const struct srv_bench_result *r)
{
    const struct srv_bench_prompt *p = &r->prompt;
    if (p->link_s == 0 || o->given_context) return;
    printf("\n%-8s %12s %12s %12s\n", "link", "weights MB", "crossed MB", "times");
    for (int t = 1; t < r->bandwidth.tier_count; t++) {
        if (!p->weight_bytes[t]) continue; /* of KV alone, or empty */
        printf("%-8s %12.3f %12.3f %12.4f   of a step of the prompts\n", off_tier_name(m->tiers, t),
               prompt_weights(p, t) / 1e6, prompt_counted(p, t) / 1e6,
               prompt_counted(p, t) / prompt_weights(p, t));
    }
}

void srv_bench_print_model(const struct options *o, const struct srv_machine *m)
{
    const struct eng_model_info *info = eng_model_info(m->model);
    printf("%s%s%s (%s), weights %s, KV %s, offload %s%.4g%s%s", o->model_dir,
           o->hf_overrides[0] ? " " : "", o->hf_overrides, info->architecture,
           kn_dtype_name(info->dtype), kn_dtype_name(m->kv.dtype),
           o->offload == OPT_AUTO ? "auto: " : "", remote_share(m), o->remote[0] ? " to " : "",
           o->remote);
}

void srv_bench_print(const struct options *o, const struct srv_machine *m,
                     const struct srv_bench_result *r)
{
    struct list l;
    char date[CLOCK_TEXT_CAP];
    printf("dakd %s (%s), %s, %s\n", version_string(), version_commit(), kn_name(m->kn),
           clock_text(r->unix_s, date));
    srv_bench_print_model(o, m);
    printf(", placement %s, congestion control %s\n", placement_text(o, m), control_name(o, r));
    printf(
        "%lld sequences, %lld prompt and %lld answer tokens each, steps of up to %lld tokens%s\n",
        (long long)r->batch, (long long)o->input_len, (long long)o->output_len,
        (long long)o->max_num_batched_tokens,
        o->given_context ? "; the prompts' KV is random and was not computed" : "");
    printf("\n%-8s %12s   %33s %12s\n", "", "", "read by a steady decode step", "at least");
    printf("%-8s %12s %12s %10s %12s %12s\n", "tier", "read GB/s", "weights MB", "KV MB", "all MB",
           "ms");
    for (int t = 0; t < r->bandwidth.tier_count; t++)
        printf("%-8s %12.3f %12.3f %10.3f %12.3f %12.4f%s\n", off_tier_name(m->tiers, t),
               r->bandwidth.read_bytes_per_s[t] / 1e9, (double)r->weight_bytes[t] / 1e6,
               (double)r->kv_bytes[t] / 1e6, (double)r->step_bytes[t] / 1e6, tier_s(r, t) * MS,
               t == r->floor_tier ? "  <- the floor" : "");
    print_reading(m, r);
    print_crossing(m, r);
    print_prompt(o, m, r);
    list_all(o, r, &l);
    for (size_t i = 0; i < l.count; i++) {
        const struct figure *f = &l.at[i];
        if (f->key) printf("  %-44s %14.*f\n", f->label, f->decimals, f->value);
        else printf("\n%s\n", f->label);
    }
    if (!(r->prediction.seconds > 0))
        puts(m->memory.gpu ? "\nNo time is predicted of such steps (engine/predict.h)."
                           : "\nNo time is predicted: that is for GPUs, and the CPU computed.");
    if (r->floor_s > r->stats.steady_tpot_s)
        puts("\nSteps are faster than their floor: what they read fits in a cache, which the probe "
             "avoids.");
}

static bool is_static(const struct srv_bench_result *r)
{
    for (int t = 1; t < r->bandwidth.tier_count; t++)
        if (r->tier_control[t].mode != OFF_CONTROL_STATIC) return false;
    return true;
}

/* The least TPOT of the static ones among results of as many sequences; 0: there is none. */
static double best_static_s(const struct srv_bench_result *r, int count, int32_t batch)
{
    double best = 0;
    for (int i = 0; i < count; i++)
        if (r[i].batch == batch && is_static(&r[i]) &&
            (best <= 0 || r[i].stats.steady_tpot_s < best))
            best = r[i].stats.steady_tpot_s;
    return best;
}

static void print_tier_control(const struct srv_machine *m, const struct srv_bench_result *r, int t)
{
    const struct eng_tier_control *c = &r->tier_control[t];
    char window[32];
    window_text(&c->window, window);
    printf("  %s %s %.1f GB/s %.1f us", off_tier_name(m->tiers, t), window,
           achieved_bytes_per_s(r, t) / 1e9, r->trips[t].mean_s * 1e6);
    if (c->mode != OFF_CONTROL_ADAPTIVE) return;
    printf(" ");
    print_found(c);
}

void srv_bench_print_controls(const struct srv_machine *m, const struct srv_bench_result *r,
                              int count)
{
    printf("%5s %-10s %10s %10s %10s  %s\n", "batch", "control", "TPOT ms", "floor/TPOT", "/ best",
           "tiers");
    for (int i = 0; i < count; i++) {
        const double best = best_static_s(r, count, r[i].batch), s = r[i].stats.steady_tpot_s;
        printf("%5d %-10s %10.4f %10.4f ", r[i].batch, r[i].control->name, s * MS,
               r[i].floor_s / s);
        if (best > 0) printf("%10.4f ", s / best);
        else printf("%10s ", "-");
        for (int t = 1; t < r[i].bandwidth.tier_count; t++) print_tier_control(m, &r[i], t);
        if (r[i].copy_bytes_per_s > 0) printf("  copy %.1f GB/s", r[i].copy_bytes_per_s / 1e9);
        putchar('\n');
    }
}

void srv_bench_print_parts(const struct srv_bench_result *r, int count)
{
    printf("%5s %-17s %10s %10s %10s %10s\n", "batch", "without", "TPOT ms", "/ with all",
           "prompt ms", "/ with all");
    for (int i = 0; i < count; i++) {
        int all = 0;
        while (r[all].batch != r[i].batch || r[all].part->without) all++;
        printf("%5d %-17s %10.4f %10.4f %10.3f %10.4f\n", r[i].batch,
               r[i].part->without ? r[i].part->name : "-", r[i].stats.steady_tpot_s * MS,
               r[i].stats.steady_tpot_s / r[all].stats.steady_tpot_s, r[i].prompt.s * MS,
               r[i].prompt.s / r[all].prompt.s);
    }
}

/* --- for programs ----------------------------------------------------------------------------- */

static void put_text(struct buf *b, const char *key, const char *value)
{
    buf_printf(b, ",\n  \"%s\": ", key);
    buf_put_json_string(b, value, strlen(value));
}

static void put_number(struct buf *b, const char *key, double value)
{
    buf_printf(b, ",\n  \"%s\": %.12g", key, value);
}

static void put_reading(struct buf *b, const struct srv_bench_result *r, int tier)
{
    const struct eng_tier_control *c = &r->tier_control[tier];
    const struct kn_window *w = &c->window;
    const struct srv_bench_trips *trips = &r->trips[tier];
    buf_printf(b, ", \"achieved_bytes_per_s\": %.12g, \"step_counted_bytes\": %.12g",
               achieved_bytes_per_s(r, tier), r->counted_bytes[tier]);
    if (tier > 0)
        buf_printf(b,
                   ", \"step_copied_bytes\": %.12g, \"step_in_place_bytes\": %.12g, "
                   "\"copy_engine_bytes_per_s\": %.12g, \"of_copy_engine_ratio\": %.6g, "
                   "\"copied_share_ratio\": %.6g",
                   r->copied_bytes[tier], r->counted_bytes[tier] - r->copied_bytes[tier],
                   r->engine_bytes_per_s[tier], of_engine(r, tier), r->mode.share[tier]);
    if (w->ctas && off_window_bytes(w) != UINT64_MAX)
        buf_printf(b, ", \"window_ctas\": %d, \"window_blocks\": %d", w->ctas, w->blocks);
    if (tier > 0)
        buf_printf(b,
                   ", \"control\": \"%s\", \"window_found_steps\": %llu, \"window_ups\": %llu, "
                   "\"window_downs\": %llu",
                   off_control_mode_name(c->mode), (unsigned long long)c->found_step_count,
                   (unsigned long long)c->up_count, (unsigned long long)c->down_count);
    if (trips->count)
        buf_printf(b,
                   ", \"round_trip_count\": %llu, \"round_trip_mean_us\": %.6g, "
                   "\"round_trip_min_us\": %.6g, \"round_trip_max_us\": %.6g",
                   (unsigned long long)trips->count, trips->mean_s * 1e6, trips->min_s * 1e6,
                   trips->max_s * 1e6);
    buf_putc(b, '}');
}

static void put_tiers(struct buf *b, const struct options *o, const struct srv_machine *m,
                      const struct srv_bench_result *r)
{
    buf_puts(b, ",\n  \"tiers\": [");
    for (int t = 0; t < r->bandwidth.tier_count; t++) {
        const char *name = off_tier_name(m->tiers, t);
        buf_printf(b, "%s\n    {\"name\": ", t ? "," : "");
        buf_put_json_string(b, name, strlen(name));
        buf_printf(b, ", \"read_bytes_per_s\": %.12g, \"capacity_bytes\": %llu",
                   r->bandwidth.read_bytes_per_s[t],
                   (unsigned long long)off_tier_capacity(m->tiers, t));
        buf_printf(b, ", \"step_weight_bytes\": %llu, \"step_kv_bytes\": %llu",
                   (unsigned long long)r->weight_bytes[t], (unsigned long long)r->kv_bytes[t]);
        buf_printf(b, ", \"step_bytes\": %llu, \"step_at_least_ms\": %.12g",
                   (unsigned long long)r->step_bytes[t], tier_s(r, t) * MS);
        if (t && !o->given_context)
            buf_printf(b,
                       ", \"prompt_step_weight_bytes\": %.12g, "
                       "\"prompt_step_counted_bytes\": %.12g",
                       prompt_weights(&r->prompt, t), prompt_counted(&r->prompt, t));
        put_reading(b, r, t);
    }
    buf_puts(b, "\n  ]");
}

void srv_bench_json_head(struct buf *b, const struct options *o, const struct srv_machine *m,
                         const char *control, int64_t unix_s)
{
    const struct eng_model_info *info = eng_model_info(m->model);
    char date[CLOCK_TEXT_CAP];
    buf_puts(b, "{\n  \"version\": ");
    buf_put_json_string(b, version_string(), strlen(version_string()));
    put_text(b, "commit", version_commit());
    put_text(b, "date", clock_text(unix_s, date));
    put_text(b, "backend", kn_name(m->kn));
    put_text(b, "model", o->model_dir);
    put_text(b, "hf_overrides", o->hf_overrides);
    put_text(b, "architecture", info->architecture);
    put_text(b, "load_format", o->load_format);
    put_text(b, "weight_dtype", kn_dtype_name(info->dtype));
    put_text(b, "kv_cache_dtype", kn_dtype_name(m->kv.dtype));
    put_text(b, "remote", o->remote);
    put_text(b, "kv_remote", o->kv_remote);
    put_number(b, "offload_ratio", remote_share(m));
    put_text(b, "placement", placement_text(o, m));
    put_text(b, "congestion_control", control);
    put_text(b, "remote_window", o->remote_window);
    put_text(b, "offload_mode", o->offload_mode);
    put_number(b, "ring_bytes", (double)m->mode.staged.ring_bytes);
    put_text(b, "prefill_staging_bytes", o->prefill_staging_bytes);
    put_number(b, "staging_bytes", (double)m->staging_bytes);
    put_number(b, "seed", (double)o->seed);
    put_number(b, "parameter_count", (double)info->parameter_count);
}

static void put_json(struct buf *b, const struct options *o, const struct srv_machine *m,
                     const struct srv_bench_result *r)
{
    struct list l;
    srv_bench_json_head(b, o, m, control_name(o, r), r->unix_s);
    put_text(b, "without", r->part ? r->part->name : "");
    put_number(b, "batch_sequences", (double)r->batch);
    put_number(b, "input_tokens_per_sequence", (double)o->input_len);
    put_number(b, "output_tokens_per_sequence", (double)o->output_len);
    buf_printf(b, ",\n  \"given_context\": %s", o->given_context ? "true" : "false");
    put_number(b, "step_tokens_max", (double)o->max_num_batched_tokens);
    put_tiers(b, o, m, r);
    put_text(b, "floor_tier", off_tier_name(m->tiers, r->floor_tier));
    list_all(o, r, &l);
    for (size_t i = 0; i < l.count; i++)
        if (l.at[i].key) put_number(b, l.at[i].key, l.at[i].value);
    buf_puts(b, "\n}");
}

enum status srv_bench_json(const struct options *o, const struct srv_machine *m,
                           const struct srv_bench_result *r, int count, char *err)
{
    struct buf b;
    buf_init(&b, JSON_BYTES_MAX * (size_t)(count + 1));
    if (count > 1) buf_puts(&b, "[\n");
    for (int i = 0; i < count; i++) {
        if (i) buf_puts(&b, ",\n");
        put_json(&b, o, m, &r[i]);
    }
    buf_puts(&b, count > 1 ? "\n]\n" : "\n");
    enum status st = srv_output_write("--json", o->json, &b, err);
    buf_deinit(&b);
    return st;
}
