#include "server/startup.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "config/check.h"
#include "config/log.h"
#include "config/size.h"
#include "engine/traffic.h"
#include "offload/window.h"
#include "server/given.h"
#include "server/kv_tiers.h"
#include "server/predict.h"

/* Workspaces of the GPU's kernels, and by layer what recorded steps take. */
#define STEP_WORK_BYTES (384ull << 20)
#define LAYER_WORK_BYTES (6ull << 20)
/* Rows of logits computed at a time; prompts that are scored take several rounds. */
#define LOGIT_ROWS_MIN 64
#define EVENT_RING 4096

struct loading {
    const struct srv_startup_hooks *hooks;
    int percent;
};

static void on_load(void *user, uint64_t done, uint64_t total)
{
    struct loading *l = user;
    int percent = total ? (int)(100.0 * (double)done / (double)total) : 100;
    if (percent <= l->percent) return;
    l->percent = percent;
    if (l->hooks->progress) l->hooks->progress(l->hooks->progress_user, percent);
}

static enum status choose_kv_dtype(const char *name, enum kn_dtype automatic, enum kn_dtype *out)
{
    if (strcmp(name, "fp8") == 0) name = kn_dtype_name(KN_E4M3);
    for (int d = 0; d <= KN_E4M3; d++)
        if (strcmp(name, kn_dtype_name((enum kn_dtype)d)) == 0) {
            *out = (enum kn_dtype)d;
            return ST_OK;
        }
    *out = automatic;
    return strcmp(name, "auto") == 0 ? ST_OK : ST_INVALID;
}

/* With room for the padding of recorded steps, which have a power of two of them. */
static int32_t logit_rows(const struct options *o)
{
    int64_t rows = LOGIT_ROWS_MIN;
    while (rows < o->max_num_seqs) rows *= 2;
    return (int32_t)(rows < o->max_num_batched_tokens ? rows : o->max_num_batched_tokens);
}

struct eng_model_options srv_startup_model_options(const struct options *o)
{
    static const char *const dtypes[] = {[ENG_DTYPE_AUTO] = "auto",
                                         [ENG_DTYPE_F32] = "float32",
                                         [ENG_DTYPE_BF16] = "bfloat16",
                                         [ENG_DTYPE_F16] = "float16"};
    struct eng_model_options m = {
        .load_format = strcmp(o->load_format, "dummy") ? ENG_LOAD_SAFETENSORS : ENG_LOAD_DUMMY,
        .hf_overrides = o->hf_overrides,
        .everywhere = o->everywhere,
        .seed = o->seed,
        .offload = o->offload > 0 ? o->offload : 0, /* auto: memory.c */
        .placement = strcmp(o->placement, "even") ? OFF_PLACE_AUTO : OFF_PLACE_EVEN,
        .tokens_max = (int32_t)o->max_num_batched_tokens,
        .rows_max = logit_rows(o),
    };
    for (int i = 0; i < (int)ARRAY_COUNT(dtypes); i++)
        if (strcmp(o->dtype, dtypes[i]) == 0) m.dtype = (enum eng_dtype)i;
    return m;
}

static enum status check_model_len(const struct options *o, const struct eng_model_info *info,
                                   char *err)
{
    if (o->max_model_len <= info->context_max) return ST_OK;
    return err_set(err, ST_INVALID,
                   "--max-model-len %d is more than the %d positions this model was made for",
                   (int)o->max_model_len, info->context_max);
}

/* auto takes the GPU where there is a supported one.  One that is there and fails is an error: the
 * CPU would serve, but a hundred times slower than whoever set up this machine expects. */
enum status srv_startup_backend(const struct options *o, bool *gpu, struct kn **kn, char *err)
{
    char why[ERR_CAP] = "";
    enum status st = ST_UNSUPPORTED;
    if (strcmp(o->device, "cpu")) st = kn_open_cuda(0, kn, why);
    if (st && strcmp(o->device, "cuda") == 0) return err_set(err, st, "--device cuda: %.400s", why);
    if (st && st != ST_UNSUPPORTED)
        return err_set(err, st, "%.400s; --device cpu does without it", why);
    *gpu = st == ST_OK;
    if (!*gpu && o->gpu_memory_utilization > 0)
        return err_set(err, ST_INVALID,
                       "--gpu-memory-utilization %g was given, and the CPU computes%s%.400s: leave "
                       "it out, and size the "
                       "KV cache by --kv-cache-memory-bytes",
                       o->gpu_memory_utilization, why[0] ? ": " : "", why);
    if (*gpu && o->threads > 0)
        log_warn("startup", "--threads %" PRId64 " is of the CPU backend, and the GPU computes",
                 o->threads);
    if (!*gpu && (st = kn_open_cpu((int)o->threads, kn, err))) return st;
    log_info("startup", "backend: %s%s%s", kn_name(*kn), why[0] ? "; no GPU: " : "", why);
    return ST_OK;
}

/* What a step works on, generously: fp32 for everything, padding, and the workspaces of the GPU's
 * kernels. */
uint64_t srv_startup_step_bytes(const struct eng_model_options *mo,
                                const struct eng_model_info *info, int32_t model_len)
{
    uint64_t qkv = (uint64_t)(info->q_heads + 2 * info->kv_heads) * (uint64_t)info->head_dim;
    uint64_t row = 2 * (uint64_t)info->hidden + qkv +
                   (uint64_t)info->q_heads * (uint64_t)info->head_dim +
                   (uint64_t)info->intermediate + 4 * 128;
    uint64_t tokens = (uint64_t)mo->tokens_max + 8, rows = (uint64_t)mo->rows_max;
    return 4 * (tokens * row + rows * (uint64_t)(info->hidden + info->vocab) +
                (uint64_t)model_len * (uint64_t)info->head_dim) +
           STEP_WORK_BYTES + (uint64_t)info->layer_count * LAYER_WORK_BYTES;
}

/* What was measured of a tier's link, where the settings leave it open: the cost that work is dealt
 * by, and the window that fills it, which adaptive control begins with. */
static void take_measured(const struct options *o, const struct srv_memory *mem, int tier,
                          struct off_control *c)
{
    const struct off_link *link = off_links_of(&mem->links, &mem->remote.spec[tier - 1]);
    struct kn_window measured;
    if (!link || !off_link_window(&mem->links, link, &measured)) return;
    c->window.cost = c->config.cost = measured.cost;
    if (c->mode == OFF_CONTROL_NONE || *o->remote_window) return;
    const int32_t start = measured.ctas * measured.blocks;
    if (start < c->config.least || start > c->config.cap) return;
    c->window = measured;
    c->config.start = start;
}

static enum status read_controls(const struct options *o, struct srv_machine *m, char *err)
{
    const struct srv_memory *mem = &m->memory;
    const struct off_remote *remote = &mem->remote;
    enum status st =
        off_control_read(o->congestion_control, o->remote_window, remote, m->control_read, err);
    if (st) return st;
    for (int t = 1; t <= remote->count; t++) take_measured(o, mem, t, &m->control_read[t]);
    if (!mem->gpu && remote->count &&
        (*o->remote_window || strcmp(o->congestion_control, "adaptive")))
        log_warn("startup",
                 "--congestion-control and --remote-window are of the GPU's kernels, and "
                 "the CPU computes");
    return ST_OK;
}

/* Local memory for the weights that stay, norms and all, and the KV pool; refused before anything
 * is read. */
static enum status open_tiers(const struct eng_model_info *info, struct srv_machine *m, char *err)
{
    const struct srv_memory *mem = &m->memory;
    uint64_t local = srv_memory_local_bytes(mem, &m->kv);
    /* All tiers are one memory on a CPU, which is taken when it is written. */
    const uint64_t page_bytes = kn_kv_page_bytes(&m->kv);
    const uint64_t kv_bytes = (uint64_t)mem->page_count * page_bytes;
    const uint64_t all_kv = kv_bytes + (uint64_t)mem->far_page_count * page_bytes;
    const uint64_t all_weights = info->weight_bytes + mem->spare_bytes;
    char weights[SIZE_TEXT_CAP], kv[SIZE_TEXT_CAP], have[SIZE_TEXT_CAP];
    if (!mem->gpu && mem->available && all_weights + all_kv > mem->available)
        return err_set(err, ST_LIMIT,
                       "the model needs %s for weights and %s for KV, and %s are available: lower "
                       "--kv-cache-memory-bytes or --max-model-len, or serve a smaller model",
                       size_text(all_weights, weights), size_text(all_kv, kv),
                       size_text(mem->available, have));
    enum status st = off_tiers_open(m->kn, local, &mem->remote, &m->tiers, err);
    if (st) return st;
    if (mem->far_page_count &&
        (st = off_tier_pool(m->tiers, mem->kv_tier, &m->kv.base[mem->kv_tier], err)))
        return st;
    return off_tier_alloc(m->tiers, 0, kv_bytes, "the KV cache", &m->kv.base[0], err);
}

static void report(const struct srv_machine *m, const struct eng_model_info *info)
{
    char size[SIZE_TEXT_CAP];
    log_info("startup", "%s: %.2f B parameters, %d layers, weights %s, KV %s", info->architecture,
             (double)info->parameter_count / 1e9, info->layer_count, kn_dtype_name(info->dtype),
             kn_dtype_name(m->kv.dtype));
    for (int t = 1; t < off_tiers_count(m->tiers); t++)
        if (m->control[t].mode == OFF_CONTROL_NONE)
            log_info("startup", "tier %s: read with no bound on bytes in flight",
                     off_tier_name(m->tiers, t));
        else
            log_info("startup",
                     "tier %s: %s control, %s %d CTAs with %d blocks in flight each, %g KiB",
                     off_tier_name(m->tiers, t), off_control_mode_name(m->control[t].mode),
                     m->control[t].mode == OFF_CONTROL_ADAPTIVE ? "from" : "read by",
                     m->control[t].window.ctas, m->control[t].window.blocks,
                     (double)off_window_bytes(&m->control[t].window) / 1024);
    const uint64_t page_bytes = kn_kv_page_bytes(&m->kv);
    const int32_t far = m->memory.far_page_count;
    log_info("startup", "KV cache: %d pages of %d tokens, %s; sequences of up to %d tokens",
             m->page_count, KN_PAGE_TOKENS, size_text((uint64_t)m->page_count * page_bytes, size),
             m->model_len_max);
    if (far)
        log_info("startup",
                 "KV cache: %d pages, %s, more in tier %s, for what local memory has no room "
                 "for; up to %.1f %% of what a step reads there, beside local ones, costs nothing",
                 far, size_text((uint64_t)far * page_bytes, size),
                 off_tier_name(m->tiers, m->memory.kv_tier),
                 (double)off_residency_free(&m->memory.residency, 100000) / 1000);
    else if (m->memory.kv_tier)
        log_info("startup", "KV cache: local memory holds all there can be: --kv-remote stays "
                            "empty");
}

/* Of pages, in the mode that the machine has taken on. */
static struct off_residency residency_of(const struct srv_machine *m)
{
    struct off_residency r = m->memory.residency;
    srv_kv_make_way(&m->memory, &m->mode, &r);
    return r;
}

/* What a step takes beside attention, at least: its weights, where they lie. */
static double step_base_s(const struct srv_machine *m, const struct off_bandwidth *rates)
{
    struct eng_traffic traffic;
    uint64_t bytes[KN_TIER_MAX];
    double seconds = 0;
    eng_model_traffic(m->model, m->kv.dtype, &traffic);
    eng_traffic_decode(&traffic, 1, 1, bytes);
    for (int t = 0; t < rates->tier_count; t++)
        if (rates->read_bytes_per_s[t] > 0)
            seconds = fmax(seconds, (double)bytes[t] / rates->read_bytes_per_s[t]);
    return seconds;
}

static enum eng_kv_policy kv_policy(const struct options *o)
{
    return strcmp(o->kv_policy, "swap") == 0        ? ENG_KV_SWAP
           : strcmp(o->kv_policy, "recompute") == 0 ? ENG_KV_RECOMPUTE
                                                    : ENG_KV_IN_PLACE;
}

static enum status open_engine(const struct options *o, const struct srv_startup_hooks *hooks,
                               const struct eng_model_options *mo, struct srv_machine *m, char *err)
{
    struct eng_config config = {
        .sched = {.seqs_max = (int32_t)o->max_num_seqs,
                  .tokens_step_max = (int32_t)o->max_num_batched_tokens,
                  .page_count = {m->page_count},
                  .residency = residency_of(m),
                  .kv_policy = kv_policy(o),
                  .admission =
                      strcmp(o->kv_admission, "all") ? ENG_ADMIT_THROUGHPUT : ENG_ADMIT_ALL,
                  .step_base_s = m->step_base_s,
                  .prefix_cache = o->prefix_cache,
                  .itl_target_s = o->itl_target_ms / 1e3},
        .model_len_max = m->model_len_max,
        .queue_max = (int32_t)(o->max_num_seqs + o->max_waiting),
        .event_ring = EVENT_RING,
        .tokens_max = mo->tokens_max,
        .rows_max = mo->rows_max,
        .ahead = strcmp(o->async_scheduling, "auto") ? !strcmp(o->async_scheduling, "on")
                                                     : kn_is_async(m->kn),
        .record = !strcmp(o->cuda_graphs, "on"),
        .wake = hooks->wake,
        .user = hooks->wake_user,
    };
    _Static_assert(sizeof config.record_only == sizeof o->record_only, "as many");
    memcpy(config.record_only, o->record_only, sizeof config.record_only);
    config.record_only_count = o->record_only_count;
    if (m->memory.kv_tier) config.sched.page_count[m->memory.kv_tier] = m->memory.far_page_count;
    memcpy(config.control, m->control, sizeof config.control);
    m->queue_max = config.queue_max;
    return eng_open(m->kn, m->model, &m->kv, &config, &m->engine, err);
}

enum status srv_startup_engine(const struct options *o, const struct srv_startup_hooks *hooks,
                               struct srv_machine *m, char *err)
{
    const struct eng_model_options mo = srv_startup_model_options(o);
    if (m->engine) eng_close(m->engine);
    m->engine = NULL;
    enum status st = srv_mode_apply(o, m, err);
    return st ? st : open_engine(o, hooks, &mo, m, err);
}

enum status srv_startup_place(const struct options *o, struct srv_machine *m, char *err)
{
    const struct eng_model_options mo = srv_startup_model_options(o);
    if (m->engine) eng_close(m->engine);
    m->engine = NULL;
    m->mode.applied = false;
    enum status st = eng_model_place(m->model, m->tiers, &mo, err);
    return st ? st : srv_memory_place(o, &mo, m->tiers, m->model, &m->kv, &m->memory, err);
}

/* Shapes of the KV cache before the model is there, so that memory can be checked first. */
enum status srv_startup_shape_kv(const struct options *o, const struct eng_model_info *info,
                                 struct kn_kv *kv, char *err)
{
    *kv = (struct kn_kv){
        .layer_count = info->layer_count, .kv_heads = info->kv_heads, .head_dim = info->head_dim};
    if (choose_kv_dtype(o->kv_cache_dtype, info->kv_dtype, &kv->dtype))
        return err_set(err, ST_INVALID, "--kv-cache-dtype %s is not supported", o->kv_cache_dtype);
    return ST_OK;
}

/* How much of the GPU is taken once everything is open, beside what may be. */
static void report_use(const struct srv_machine *m)
{
    const struct srv_memory *mem = &m->memory;
    uint64_t total, available, before = mem->available;
    if (!mem->gpu || kn_memory(m->kn, &total, &available, NULL)) return;
    uint64_t taken = before > available ? before - available : 0;
    char text[SIZE_TEXT_CAP], usable[SIZE_TEXT_CAP];
    log_info("startup", "GPU memory: %s taken of %s that may be", size_text(taken, text),
             size_text(mem->usable, usable));
    if (taken > mem->usable)
        log_warn("startup", "that is more than --gpu-memory-utilization allows");
}

enum status srv_startup(const struct options *o, const struct srv_startup_hooks *hooks,
                        struct srv_machine *m, char *err)
{
    enum status st;
    bool gpu;
    struct eng_shape shape;
    enum off_mode mode;
    struct off_bandwidth rates;
    struct loading loading = {.hooks = hooks, .percent = -1};
    struct eng_model_options mo = srv_startup_model_options(o);
    *m = (struct srv_machine){0};
    mo.progress = on_load;
    mo.user = &loading;
    if ((st = srv_startup_backend(o, &gpu, &m->kn, err))) return st;
    if ((st = srv_mode_read(o, gpu, &mode, err)) ||
        (st = eng_model_read_shape(o->model_dir, &mo, &shape, err)) ||
        (st = check_model_len(o, &shape.info, err)) ||
        (st = srv_startup_shape_kv(o, &shape.info, &m->kv, err)) ||
        (st = kn_check_model(m->kn, shape.info.dtype, shape.info.q_heads, &m->kv, err)) ||
        (st = srv_memory_decide(o, m->kn, gpu, &shape, &m->kv, &mo, &m->memory, err)))
        goto fail;
    m->model_len_max = mo.model_len_max = m->memory.model_len;
    m->page_count = m->memory.page_count;
    srv_predict_rates(o, m, &rates);
    if ((st = read_controls(o, m, err)) || (st = open_tiers(&shape.info, m, err)) ||
        (st = eng_model_open(m->kn, m->tiers, o->model_dir, &mo, &m->model, err)) ||
        (st = srv_memory_check(&m->memory, m->tiers, m->model, &m->kv, err)))
        goto fail;
    if ((st = srv_mode_apply(o, m, err))) goto fail;
    m->step_base_s = step_base_s(m, &rates);
    report(m, eng_model_info(m->model));
    if (o->given_context && (st = srv_given_fill(m, o->seed, err))) goto fail;
    if ((st = open_engine(o, hooks, &mo, m, err))) goto fail;
    report_use(m);
    srv_predict_report(m, &rates);
    return ST_OK;
fail:
    srv_shutdown(m);
    return st;
}

void srv_shutdown(struct srv_machine *m)
{
    if (m->engine) eng_close(m->engine);
    if (m->model) eng_model_close(m->model);
    if (m->tiers) off_tiers_close(m->tiers);
    if (m->kn) kn_close(m->kn);
    *m = (struct srv_machine){0};
}
