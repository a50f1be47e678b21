#include "server/plan.h"

#include <stdio.h>
#include <string.h>

#include "config/buf.h"
#include "config/check.h"
#include "config/log.h"
#include "config/machine.h"
#include "config/size.h"
#include "config/version.h"
#include "engine/predict.h"
#include "engine/weights.h"
#include "server/mode.h"
#include "server/output.h"
#include "server/staging.h"
#include "server/startup.h"

#define GIB 1073741824.0
#define MS 1e3
#define JSON_BYTES_MAX 65536

enum { HBM, LINK, TIERS };

#define CONTEXT_DEFAULT 1024
#define STAGING_ROUNDS 64

struct report {
    const struct options *o;
    struct eng_shape shape;
    struct off_plan plan;
    enum kn_dtype kv_dtype;
    double tflops, utilization;
    uint64_t hbm_bytes, work_bytes;
    /* Of HBM, that remote weights are copied through: prompts', and those of decode steps. */
    uint64_t staging_bytes, ring_bytes;
    uint64_t pool_bytes;                /* of the link's tier, that is for KV (--kv-remote) */
    double read[TIERS], kv_read[TIERS]; /* by a step */
    uint64_t stored[TIERS];
    double all_read;
    bool is_predicted;
    struct eng_prediction prediction; /* of a step */
};

/* --- the problem ------------------------------------------------------------------------------ */

static double or_else(double given, double otherwise)
{
    return given > 0 ? given : otherwise;
}

static enum status set_tiers(struct report *r, char *err)
{
    const struct options *o = r->o;
    const struct machine *m = machine_find(o->machine);
    struct options sized = *o;
    char need[SIZE_TEXT_CAP], have[SIZE_TEXT_CAP];
    CHECK(m); /* options.c lets no other name through */
    sized.max_num_seqs = o->plan_batch;
    if (sized.max_num_batched_tokens < o->plan_batch) sized.max_num_batched_tokens = o->plan_batch;
    const struct eng_model_options mo = srv_startup_model_options(&sized);
    r->utilization = or_else(o->gpu_memory_utilization, SRV_GPU_UTILIZATION_DEFAULT);
    r->tflops = or_else(o->tflops, MACHINE_TFLOPS);
    r->hbm_bytes = o->hbm_size ? o->hbm_size : (uint64_t)(m->hbm_gib * GIB);
    r->work_bytes = srv_startup_step_bytes(&mo, &r->shape.info, (int32_t)o->plan_context);
    uint64_t usable = (uint64_t)(r->utilization * (double)r->hbm_bytes);
    if (usable <= r->work_bytes)
        return err_set(err, ST_LIMIT,
                       "a step needs %s to work in, and %s of the GPU's memory may be used: raise "
                       "--hbm-size or --gpu-memory-utilization",
                       size_text(r->work_bytes, need), size_text(usable, have));
    r->plan.tier_count = TIERS;
    r->plan.tier[HBM] = (struct off_plan_tier){"hbm", or_else(o->hbm_gbps, m->hbm_gbps) * 1e9,
                                               usable - r->work_bytes};
    r->plan.tier[LINK] =
        (struct off_plan_tier){m->link_name, or_else(o->link_gbps, m->link_gbps) * 1e9,
                               o->link_size ? o->link_size : (uint64_t)(m->link_gib * GIB)};
    return ST_OK;
}

/* What of the link's tier is for KV, which then may leave too. */
static enum status open_kv(struct report *r, char *err)
{
    struct off_remote kv = {0};
    struct off_plan_tier *link = &r->plan.tier[LINK];
    char pool[SIZE_TEXT_CAP], all[SIZE_TEXT_CAP];
    int tier;
    if (!r->o->kv_remote[0]) return ST_OK;
    enum status st = off_remote_add_pool(r->o->kv_remote, "--kv-remote", &kv, &tier, err);
    if (st) return st;
    if (!off_tier_is_named(&kv.spec[0], link->name))
        return err_set(err, ST_INVALID, "--kv-remote %s: the remote tier of %s is %s",
                       r->o->kv_remote, r->o->machine, link->name);
    r->pool_bytes = kv.pool_bytes[0];
    if (r->pool_bytes > link->bytes)
        return err_set(err, ST_LIMIT,
                       "--kv-remote asks for %s of %s, which has %s: raise --link-size",
                       size_text(r->pool_bytes, pool), link->name, size_text(link->bytes, all));
    link->bytes -= r->pool_bytes;
    eng_operations_open_kv(&r->plan, LINK, r->pool_bytes, 0);
    return ST_OK;
}

static enum status read_model(struct report *r, char *err)
{
    const struct options *o = r->o;
    struct kn_kv kv;
    enum status st = eng_shape_read(o->model_dir, srv_startup_model_options(o).dtype,
                                    o->hf_overrides, &r->shape, err);
    if (st) return st;
    if (!r->shape.dtype_known)
        return err_set(err, ST_INVALID,
                       "config.json of %s names no type, and dakd plan reads no weights: say "
                       "--dtype bfloat16",
                       o->model_dir);
    if (o->plan_context > r->shape.info.context_max)
        return err_set(err, ST_INVALID,
                       "--plan-context %lld is more than the %d positions this model was made for",
                       (long long)o->plan_context, r->shape.info.context_max);
    if ((st = eng_weights_bytes(&r->shape, &r->shape.info.weight_bytes, err)) ||
        (st = srv_startup_shape_kv(o, &r->shape.info, &kv, err)))
        return st;
    r->kv_dtype = kv.dtype;
    return ST_OK;
}

/* Of the weights, in the remote tier. */
static double remote_share(const struct report *r)
{
    uint64_t bytes = 0;
    for (int i = 0; i < r->plan.op_count; i++)
        if (!eng_operation_is_kv(&r->plan.op[i]))
            bytes += off_plan_stored_bytes(&r->plan.op[i], LINK);
    return (double)bytes / (double)r->shape.info.weight_bytes;
}

/* What remote weights need to be copied through, where so much of them is remote. */
static enum status choose_staging(const struct report *r, uint64_t *staging, uint64_t *ring,
                                  char *err)
{
    const double share = remote_share(r);
    uint64_t rings[OFF_MODE_COUNT];
    enum status st = srv_staging_choose(r->o, &r->shape.info, share, true, staging, err);
    if (st || (st = srv_mode_reserve(r->o, &r->shape.info, share, true, rings, err))) return st;
    *ring = 0;
    for (int m = 0; m < OFF_MODE_COUNT; m++) *ring = size_max(*ring, rings[m]);
    return ST_OK;
}

/* What remote weights are copied through is HBM that weights must leave, and the more of them
 * leave, the more it is: found in turn, from nothing upwards, so that what is set aside is enough
 * for what lies outside. */
static enum status solve(struct report *r, char *err)
{
    char why[ERR_CAP] = "";
    enum status st = ST_OK;
    const uint64_t usable = r->plan.tier[HBM].bytes;
    for (int i = 0; i < STAGING_ROUNDS; i++) {
        uint64_t staging, ring, aside = r->staging_bytes + r->ring_bytes;
        r->plan.tier[HBM].bytes = aside < usable ? usable - aside : 0;
        if ((st = eng_operations_solve(&r->plan, why)) ||
            (st = choose_staging(r, &staging, &ring, why)))
            break;
        if (staging <= r->staging_bytes && ring <= r->ring_bytes) break;
        r->staging_bytes = size_max(staging, r->staging_bytes);
        r->ring_bytes = size_max(ring, r->ring_bytes);
    }
    if (st != ST_LIMIT) return st ? err_set(err, st, "%s", why) : ST_OK;
    return err_set(err, st,
                   "%.300s: lower --plan-batch or --plan-context, or give more with --hbm-size or "
                   "--link-size",
                   why);
}

static void sum_up(struct report *r)
{
    for (int i = 0; i < r->plan.op_count; i++) {
        const struct off_plan_op *op = &r->plan.op[i];
        for (int t = 0; t < TIERS; t++) {
            double read = off_plan_read_bytes(op, t);
            r->read[t] += read;
            r->all_read += read;
            if (eng_operation_is_kv(op)) r->kv_read[t] += read;
            r->stored[t] += off_plan_stored_bytes(op, t);
        }
    }
}

static enum status make_plan(struct report *r, char *err)
{
    enum status st;
    if ((st = read_model(r, err)) || (st = set_tiers(r, err))) return st;
    const struct eng_step step = {.seq_count = (int32_t)r->o->plan_batch,
                                  .context = (int32_t)r->o->plan_context,
                                  .kv_dtype = r->kv_dtype,
                                  .flops_per_s = r->tflops * 1e12};
    if ((st = eng_operations(&r->shape, &step, &r->plan, err)) || (st = open_kv(r, err)) ||
        (st = solve(r, err)))
        return st;
    sum_up(r);
    r->is_predicted = eng_predict(&r->shape, &step, &r->plan, NULL, &r->prediction);
    return ST_OK;
}

/* --- for people ------------------------------------------------------------------------------- */

static const char *bound_name(const struct report *r, int bound)
{
    return bound == OFF_PLAN_COMPUTE ? "compute" : r->plan.tier[bound].name;
}

static double op_read(const struct off_plan_op *op)
{
    return op->read_bytes * op->count;
}

/* 0 of what no step reads. */
static double op_rate(const struct off_plan_op *op)
{
    return op->seconds > 0 ? op_read(op) / op->seconds : 0;
}

static void print_operations(const struct report *r)
{
    printf("\n%-16s %6s %9s   %22s %10s %10s %10s\n", "", "", "", "lies in (MB)", "read by a",
           "at least", "read");
    printf("%-16s %6s %9s %12s %12s %10s %10s %10s  %s\n", "operation", "times", "tile KB",
           r->plan.tier[HBM].name, r->plan.tier[LINK].name, "step MB", "ms", "GB/s", "bound by");
    for (int i = 0; i < r->plan.op_count; i++) {
        const struct off_plan_op *op = &r->plan.op[i];
        printf("%-16s %6d %9.1f %12.3f %12.3f %10.3f %10.4f %10.1f  %s\n", op->name, op->count,
               (double)op->tile_bytes / 1e3, (double)off_plan_stored_bytes(op, HBM) / 1e6,
               (double)off_plan_stored_bytes(op, LINK) / 1e6, op_read(op) / 1e6, op->seconds * MS,
               op_rate(op) / 1e9, op->seconds > 0 ? bound_name(r, op->bound) : "nothing");
    }
}

/* Of weights, and of KV. */
static uint64_t capacity(const struct report *r, int tier)
{
    return r->plan.tier[tier].bytes + (tier == LINK ? r->pool_bytes : 0);
}

static void print_tiers(const struct report *r)
{
    printf("\n%-8s %12s   %22s   %33s %12s\n", "", "", "may hold, holds (GiB)",
           "read by a steady decode step", "at least");
    printf("%-8s %12s %12s %11s %12s %10s %12s %12s\n", "tier", "read GB/s", "", "", "weights MB",
           "KV MB", "all MB", "ms");
    for (int t = 0; t < TIERS; t++) {
        const struct off_plan_tier *tier = &r->plan.tier[t];
        printf("%-8s %12.3f %12.3f %11.3f %12.3f %10.3f %12.3f %12.4f\n", tier->name,
               tier->bytes_per_s / 1e9, (double)capacity(r, t) / GIB, (double)r->stored[t] / GIB,
               (r->read[t] - r->kv_read[t]) / 1e6, r->kv_read[t] / 1e6, r->read[t] / 1e6,
               r->read[t] / tier->bytes_per_s * MS);
    }
}

/* Whether dakd ran on a machine as fast as this one. */
static bool was_measured(const struct options *o)
{
    return !strcmp(machine_find(o->machine)->source, "measured") && !(o->hbm_gbps > 0) &&
           !(o->link_gbps > 0) && !(o->tflops > 0);
}

static void print_prediction(const struct report *r)
{
    const struct eng_prediction *p = &r->prediction;
    puts("\ndecode, predicted of dakd's kernels");
    if (!r->is_predicted && r->shape.info.dtype != KN_BF16)
        printf("  nothing: on a GPU dakd computes in bfloat16 alone, and these weights are %s\n",
               kn_dtype_name(r->shape.info.dtype));
    else if (!r->is_predicted && !eng_predict_knows_kv(r->kv_dtype, r->shape.info.head_dim))
        printf(
            "  nothing: on a GPU dakd keeps KV in bfloat16, or in fp8 where heads have 65 to 128 "
            "dimensions; this is %s of %d\n",
            kn_dtype_name(r->kv_dtype), r->shape.info.head_dim);
    else if (!r->is_predicted)
        printf("  nothing: steps of more than %d sequences were never measured\n",
               ENG_PREDICT_TOKENS_MAX);
    if (!r->is_predicted) return;
    printf("  %-44s %14.4f\n", "a step, TPOT (ms)", p->seconds * MS);
    printf("  %-44s %14.2f\n", "decode throughput (tokens/s)",
           (double)r->o->plan_batch / p->seconds);
    printf("  %-44s %14.4f\n", "of it products", p->products_s * MS);
    printf("  %-44s %14.4f\n", "what waits longer for the link", p->links_s * MS);
    printf("  %-44s %14.4f\n", "attention", p->attention_s * MS);
    printf("  %-44s %14.4f\n", "between kernels, norms, sampling, the host", p->between_s * MS);
    if (!was_measured(r->o))
        puts("Unverified: what kernels lose was measured on an H200, and is taken to be the same "
             "here.");
}

static void print_plan(const struct report *r)
{
    const struct options *o = r->o;
    const struct off_plan *p = &r->plan;
    const struct eng_model_info *info = &r->shape.info;
    char staging[SIZE_TEXT_CAP], ring[SIZE_TEXT_CAP], pool[SIZE_TEXT_CAP];
    printf("dakd %s (%s), plan for %s, %g TFLOPS\n", version_string(), version_commit(), o->machine,
           r->tflops);
    printf("%s%s%s (%s), %.2f B parameters, weights %s, KV %s\n", o->model_dir,
           o->hf_overrides[0] ? " " : "", o->hf_overrides, info->architecture,
           (double)info->parameter_count / 1e9, kn_dtype_name(info->dtype),
           kn_dtype_name(r->kv_dtype));
    printf("batch %lld, context %lld; HBM %.2f GiB x %g, less %.2f GiB to work in",
           (long long)o->plan_batch, (long long)o->plan_context, (double)r->hbm_bytes / GIB,
           r->utilization, (double)r->work_bytes / GIB);
    if (r->staging_bytes + r->ring_bytes)
        printf(
            " and that\nremote weights are copied through, %s for prompts and %s for decode steps",
            size_text(r->staging_bytes, staging), size_text(r->ring_bytes, ring));
    putchar('\n');
    if (r->pool_bytes)
        printf("KV may leave, up to %s; %.1f %% of what a step reads of it has left\n",
               size_text(r->pool_bytes, pool),
               100 * r->kv_read[LINK] / (r->kv_read[HBM] + r->kv_read[LINK]));
    print_operations(r);
    print_tiers(r);
    puts("\ndecode, at least");
    printf("  %-44s %14.4f  <- bound by %s\n", "floor of a step, of TPOT (ms)", p->seconds * MS,
           bound_name(r, p->bound));
    printf("  %-44s %14.4f\n", "the same, were tiles as small as one likes", p->relaxed_s * MS);
    printf("  %-44s %14.2f\n", "decode throughput, at most (tokens/s)",
           (double)o->plan_batch / p->seconds);
    printf("  %-44s %14.1f\n", "read by a step, over the floor (GB/s)",
           r->all_read / p->seconds / 1e9);
    print_prediction(r);
    puts("\nA floor, not a time, is what bandwidths and arithmetic alone allow, each operation "
         "waiting for the one\nbefore.  dakd serve places by the same planner what does not fit in "
         "HBM, with the bandwidths that\ndakd probe measured; a model that fits it leaves there "
         "whole.");
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

static void put_tiers(struct buf *b, const struct report *r)
{
    buf_puts(b, ",\n  \"tiers\": [");
    for (int t = 0; t < TIERS; t++) {
        const struct off_plan_tier *tier = &r->plan.tier[t];
        buf_printf(b, "%s\n    {\"name\": \"%s\", \"read_bytes_per_s\": %.12g", t ? "," : "",
                   tier->name, tier->bytes_per_s);
        buf_printf(b, ", \"capacity_bytes\": %llu, \"stored_bytes\": %llu",
                   (unsigned long long)capacity(r, t), (unsigned long long)r->stored[t]);
        buf_printf(b, ", \"step_weight_bytes\": %.17g, \"step_kv_bytes\": %.17g",
                   r->read[t] - r->kv_read[t], r->kv_read[t]);
        buf_printf(b, ", \"step_bytes\": %.17g, \"step_at_least_ms\": %.12g}", r->read[t],
                   r->read[t] / tier->bytes_per_s * MS);
    }
    buf_puts(b, "\n  ]");
}

static void put_operations(struct buf *b, const struct report *r)
{
    buf_puts(b, ",\n  \"operations\": [");
    for (int i = 0; i < r->plan.op_count; i++) {
        const struct off_plan_op *op = &r->plan.op[i];
        buf_printf(b, "%s\n    {\"name\": \"%s\", \"count\": %d, \"tile_bytes\": %llu",
                   i ? "," : "", op->name, op->count, (unsigned long long)op->tile_bytes);
        for (int t = 0; t < TIERS; t++)
            buf_printf(b, ", \"%s_bytes\": %llu", t == HBM ? "local" : "remote",
                       (unsigned long long)off_plan_stored_bytes(op, t));
        buf_printf(b, ", \"step_bytes\": %.17g, \"compute_ms\": %.12g, \"at_least_ms\": %.12g",
                   op_read(op), op->compute_s * op->count * MS, op->seconds * MS);
        buf_printf(b, ", \"read_bytes_per_s\": %.12g, \"bound\": \"%s\"}", op_rate(op),
                   op->seconds > 0 ? bound_name(r, op->bound) : "nothing");
    }
    buf_puts(b, "\n  ]");
}

static void put_prediction(struct buf *b, double seqs, const struct eng_prediction *p)
{
    put_number(b, "predicted_per_step_ms", p->seconds * MS);
    put_number(b, "predicted_tokens_per_s", seqs / p->seconds);
    put_number(b, "predicted_products_ms", p->products_s * MS);
    put_number(b, "predicted_links_ms", p->links_s * MS);
    put_number(b, "predicted_attention_ms", p->attention_s * MS);
    put_number(b, "predicted_between_ms", p->between_s * MS);
}

static void put_json(struct buf *b, const struct report *r)
{
    const struct options *o = r->o;
    const struct eng_model_info *info = &r->shape.info;
    buf_puts(b, "{\n  \"version\": ");
    buf_put_json_string(b, version_string(), strlen(version_string()));
    put_text(b, "commit", version_commit());
    put_text(b, "machine", o->machine);
    put_text(b, "model", o->model_dir);
    put_text(b, "hf_overrides", o->hf_overrides);
    put_text(b, "architecture", info->architecture);
    put_text(b, "weight_dtype", kn_dtype_name(info->dtype));
    put_text(b, "kv_cache_dtype", kn_dtype_name(r->kv_dtype));
    put_number(b, "parameter_count", (double)info->parameter_count);
    put_number(b, "batch_sequences", (double)o->plan_batch);
    put_number(b, "context_tokens", (double)o->plan_context);
    put_number(b, "flops_per_s", r->tflops * 1e12);
    put_number(b, "hbm_size_bytes", (double)r->hbm_bytes);
    put_number(b, "gpu_memory_utilization", r->utilization);
    put_number(b, "workspace_bytes", (double)r->work_bytes);
    put_number(b, "prefill_staging_bytes", (double)r->staging_bytes);
    put_number(b, "decode_staging_bytes", (double)r->ring_bytes);
    put_number(b, "kv_pool_bytes", (double)r->pool_bytes);
    put_tiers(b, r);
    put_operations(b, r);
    put_number(b, "floor_per_step_ms", r->plan.seconds * MS);
    put_number(b, "relaxed_floor_per_step_ms", r->plan.relaxed_s * MS);
    put_number(b, "tile_error_at_most_ms", off_plan_tile_error_s(&r->plan) * MS);
    put_text(b, "floor_bound", bound_name(r, r->plan.bound));
    if (r->is_predicted) put_prediction(b, (double)o->plan_batch, &r->prediction);
    put_number(b, "decode_tokens_per_s", (double)o->plan_batch / r->plan.seconds);
    put_number(b, "step_read_bytes_per_s", r->all_read / r->plan.seconds);
    buf_puts(b, "\n}\n");
}

static enum status write_json(const struct report *r, char *err)
{
    struct buf b;
    buf_init(&b, JSON_BYTES_MAX);
    put_json(&b, r);
    enum status st = srv_output_write("--json", r->o->json, &b, err);
    buf_deinit(&b);
    return st;
}

int srv_plan(const struct options *given)
{
    struct options o = *given;
    struct report r = {.o = &o};
    char err[ERR_CAP] = "";
    if (!o.plan_batch) o.plan_batch = 1;
    if (!o.plan_context) o.plan_context = CONTEXT_DEFAULT;
    if (make_plan(&r, err) || write_json(&r, err)) {
        log_error("plan", "%s", err);
        return 1;
    }
    print_plan(&r);
    return 0;
}
