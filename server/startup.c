#include "server/startup.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "config/check.h"
#include "config/log.h"
#include "offload/window.h"
#include "server/staging.h"

#define GIB 1073741824.0
/* KV memory when nothing was asked for: one gibibyte, or one longest sequence where that is more.
 */
#define KV_DEFAULT_BYTES (1ull << 30)
/* What rounding to whole row tiles, norms and biases may add to the local share of the weights. */
#define TIER_SLACK_BYTES (64ull << 20)
/* Workspaces of the GPU's kernels. */
#define STEP_WORK_BYTES (512ull << 20)
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

static enum status choose_dtype(const char *name, enum kn_dtype automatic, enum kn_dtype *out)
{
    for (int d = 0; d < KN_DTYPE_COUNT; d++)
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
        .seed = o->seed,
        .offload = o->offload,
        .placement = strcmp(o->placement, "even") ? OFF_PLACE_AUTO : OFF_PLACE_EVEN,
        .tokens_max = (int32_t)o->max_num_batched_tokens,
        .rows_max = logit_rows(o),
    };
    for (int i = 0; i < (int)ARRAY_COUNT(dtypes); i++)
        if (strcmp(o->dtype, dtypes[i]) == 0) m.dtype = (enum eng_dtype)i;
    return m;
}

static enum status choose_model_len(const struct options *o, const struct eng_model_info *info,
                                    int32_t *out, char *err)
{
    *out = o->max_model_len ? (int32_t)o->max_model_len : info->context_max;
    if (*out > info->context_max)
        return err_set(err, ST_INVALID,
                       "--max-model-len %d is more than the %d positions this model was made for",
                       *out, info->context_max);
    return ST_OK;
}

/* What the machine has, and who gets how much of it. */
struct budget {
    bool gpu;
    uint64_t total, available; /* bytes of local memory; 0 where the system does not say */
    uint64_t usable;           /* for weights, KV and a step */
    uint64_t weights;          /* that stay local */
    uint64_t step;             /* what a step works on, beside the tiers: */
    uint64_t staging;          /* of it, for the remote weights of prompts */
    uint64_t kv;               /* left for KV */
};

/* auto takes the GPU where there is a supported one.  One that is there and fails is an error: the
 * CPU would serve, but a hundred times slower than whoever set up this machine expects. */
static enum status open_backend(const struct options *o, struct budget *b, struct kn **kn,
                                char *err)
{
    char why[ERR_CAP] = "";
    enum status st = ST_UNSUPPORTED;
    if (strcmp(o->device, "cpu")) st = kn_open_cuda(0, kn, why);
    if (st && strcmp(o->device, "cuda") == 0) return err_set(err, st, "--device cuda: %.400s", why);
    if (st && st != ST_UNSUPPORTED)
        return err_set(err, st, "%.400s; --device cpu does without it", why);
    b->gpu = st == ST_OK;
    if (!b->gpu && o->gpu_memory_utilization > 0)
        return err_set(err, ST_INVALID,
                       "--gpu-memory-utilization %g was given, and the CPU computes%s%.400s: leave "
                       "it out, and size the "
                       "KV cache by --kv-cache-memory-bytes",
                       o->gpu_memory_utilization, why[0] ? ": " : "", why);
    if (b->gpu && o->threads > 0)
        log_warn("startup", "--threads %" PRId64 " is of the CPU backend, and the GPU computes",
                 o->threads);
    if (!b->gpu && (st = kn_open_cpu((int)o->threads, kn, err))) return st;
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
           STEP_WORK_BYTES;
}

static enum status make_budget(const struct options *o, const struct eng_model_options *mo,
                               const struct eng_model_info *info, int32_t model_len, struct kn *kn,
                               struct budget *b, char *err)
{
    double share =
        o->gpu_memory_utilization > 0 ? o->gpu_memory_utilization : SRV_GPU_UTILIZATION_DEFAULT;
    enum status st = kn_memory(kn, &b->total, &b->available, err);
    if (st && b->gpu) return st;
    if (st) b->total = b->available = 0; /* a system without /proc: try, and see */
    b->usable = b->available;
    if (b->gpu) {
        uint64_t allowed = (uint64_t)(share * (double)b->total), others = b->total - b->available;
        b->usable = allowed > others ? allowed - others : 0;
        b->step = srv_startup_step_bytes(mo, info, model_len) + b->staging;
    }
    /* Shares are met to within a tile or two. */
    b->weights = (uint64_t)((1 - o->offload) * (double)info->weight_bytes) + TIER_SLACK_BYTES;
    if (b->weights > info->weight_bytes + TIER_SLACK_BYTES)
        b->weights = info->weight_bytes + TIER_SLACK_BYTES;
    uint64_t fixed = b->weights + b->step;
    b->kv = b->usable > fixed ? b->usable - fixed : 0;
    if (!b->gpu || b->kv > 0) return ST_OK;
    return err_set(err, ST_LIMIT,
                   "the model needs %.2f GiB of GPU memory for weights and %.2f GiB to work in, "
                   "and %.2f GiB of %.2f may "
                   "be used: raise --gpu-memory-utilization (%g), or move weights out with "
                   "--remote and --offload",
                   (double)b->weights / GIB, (double)b->step / GIB, (double)b->usable / GIB,
                   (double)b->total / GIB, share);
}

/* Pages of the KV pool: as told, or as many as the running sequences can use within what is left,
 * on the CPU within the default. */
static enum status choose_pages(const struct options *o, const struct kn_kv *kv, int32_t model_len,
                                const struct budget *b, int32_t *out, char *err)
{
    uint64_t page = kn_kv_page_bytes(kv);
    uint64_t per_seq = div_up((size_t)model_len, KN_PAGE_TOKENS);
    uint64_t wanted = (per_seq + 1) * (uint64_t)o->max_num_seqs; /* one each in reserve: sched.c */
    uint64_t count = o->kv_cache_memory_bytes / page;
    if (!o->kv_cache_memory_bytes)
        count = b->gpu ? b->kv / page : size_max(KV_DEFAULT_BYTES / page, per_seq);
    if (count > wanted) count = wanted;
    if (count < per_seq && !o->kv_cache_memory_bytes)
        return err_set(err, ST_LIMIT,
                       "one sequence of --max-model-len %d needs %.2f GiB of KV cache, and %.2f "
                       "GiB of GPU memory are "
                       "left beside the weights: lower --max-model-len, raise "
                       "--gpu-memory-utilization, or move weights "
                       "out with --remote and --offload",
                       model_len, (double)(per_seq * page) / GIB, (double)b->kv / GIB);
    if (count < per_seq)
        return err_set(err, ST_LIMIT,
                       "one sequence of --max-model-len %d needs %.2f GiB of KV cache, and "
                       "--kv-cache-memory-bytes allows %.2f GiB: raise the one or lower the other",
                       model_len, (double)(per_seq * page) / GIB,
                       (double)o->kv_cache_memory_bytes / GIB);
    if (count > 0x0FFFFFFF)
        return err_set(err, ST_LIMIT, "the KV cache would hold more than 2^28 pages");
    *out = (int32_t)count;
    return ST_OK;
}

static enum status read_controls(const struct options *o, const struct off_remote *remote,
                                 const struct budget *b, struct srv_machine *m, char *err)
{
    enum status st =
        off_control_read(o->congestion_control, o->remote_window, remote, m->control, err);
    if (st) return st;
    if (!b->gpu && remote->count &&
        (*o->remote_window || strcmp(o->congestion_control, "adaptive")))
        log_warn("startup",
                 "--congestion-control and --remote-window are of the GPU's kernels, and "
                 "the CPU computes");
    return ST_OK;
}

/* Local memory for the share that stays, norms and all, and the KV pool; refused before anything is
 * read. */
static enum status open_tiers(const struct options *o, const struct eng_model_info *info,
                              uint64_t kv_bytes, const struct budget *b, struct srv_machine *m,
                              char *err)
{
    struct off_remote remote;
    enum status st = off_remote_parse(o->remote, &remote, err);
    if (st || (st = read_controls(o, &remote, b, m, err))) return st;
    if (o->offload > 0 && remote.count == 0)
        return err_set(err, ST_INVALID, "--offload %g needs a remote tier: --remote host:SIZE",
                       o->offload);
    if (b->gpu && kv_bytes > b->kv)
        return err_set(err, ST_LIMIT,
                       "the model needs %.2f GiB of GPU memory for weights, %.2f GiB for KV and "
                       "%.2f GiB to work in, and "
                       "%.2f GiB may be used: lower --kv-cache-memory-bytes, raise "
                       "--gpu-memory-utilization, or move "
                       "weights out with --remote and --offload",
                       (double)b->weights / GIB, (double)kv_bytes / GIB, (double)b->step / GIB,
                       (double)b->usable / GIB);
    if (b->gpu) return off_tiers_open(m->kn, b->weights + kv_bytes, &remote, &m->tiers, err);
    /* All tiers are one memory here, which is taken when it is written: a tier may be larger than
     * what it gets. */
    uint64_t need = info->weight_bytes + kv_bytes;
    uint64_t local = info->weight_bytes + TIER_SLACK_BYTES + kv_bytes;
    if (b->available && need > b->available)
        return err_set(err, ST_LIMIT,
                       "the model needs %.2f GiB for weights and %.2f GiB for KV, and %.2f GiB are "
                       "available: lower "
                       "--kv-cache-memory-bytes or --max-model-len, or serve a smaller model",
                       (double)info->weight_bytes / GIB, (double)kv_bytes / GIB,
                       (double)b->available / GIB);
    return off_tiers_open(m->kn, local, &remote, &m->tiers, err);
}

static void report(const struct srv_machine *m, const struct eng_model_info *info)
{
    char dir[64];
    snprintf(dir, sizeof dir, "%s", info->architecture);
    log_info("startup", "%s: %.2f B parameters, %d layers, weights %s, KV %s", dir,
             (double)info->parameter_count / 1e9, info->layer_count, kn_dtype_name(info->dtype),
             kn_dtype_name(m->kv.dtype));
    for (int t = 0; t < off_tiers_count(m->tiers); t++)
        log_info("startup", "tier %s: %.3f GiB of weights, %.3f of %.3f GiB used",
                 off_tier_name(m->tiers, t), (double)eng_model_tier_bytes(m->model, t) / GIB,
                 (double)off_tier_used(m->tiers, t) / GIB,
                 (double)off_tier_capacity(m->tiers, t) / GIB);
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
    log_info("startup", "KV cache: %d pages of %d tokens, %.3f GiB; sequences of up to %d tokens",
             m->page_count, KN_PAGE_TOKENS,
             (double)m->page_count * (double)kn_kv_page_bytes(&m->kv) / GIB, m->model_len_max);
}

static enum status open_engine(const struct options *o, const struct srv_startup_hooks *hooks,
                               const struct eng_model_options *mo, struct srv_machine *m, char *err)
{
    struct eng_config config = {
        .sched = {.seqs_max = (int32_t)o->max_num_seqs,
                  .tokens_step_max = (int32_t)o->max_num_batched_tokens,
                  .page_count = {m->page_count},
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
    return open_engine(o, hooks, &mo, m, err);
}

/* Shapes of the KV cache before the model is there, so that memory can be checked first. */
enum status srv_startup_shape_kv(const struct options *o, const struct eng_model_info *info,
                                 struct kn_kv *kv, char *err)
{
    *kv = (struct kn_kv){
        .layer_count = info->layer_count, .kv_heads = info->kv_heads, .head_dim = info->head_dim};
    if (choose_dtype(o->kv_cache_dtype, info->kv_dtype, &kv->dtype))
        return err_set(err, ST_INVALID, "--kv-cache-dtype %s is not supported", o->kv_cache_dtype);
    return ST_OK;
}

enum status srv_startup(const struct options *o, const struct srv_startup_hooks *hooks,
                        struct srv_machine *m, char *err)
{
    enum status st;
    struct eng_model_info info;
    struct loading loading = {.hooks = hooks, .percent = -1};
    struct eng_model_options mo = srv_startup_model_options(o);
    struct budget budget = {0};
    struct eng_traffic traffic;
    *m = (struct srv_machine){0};
    mo.progress = on_load;
    mo.user = &loading;
    if ((st = open_backend(o, &budget, &m->kn, err))) return st;
    if ((st = eng_model_read_info(o->model_dir, &mo, &info, err)) ||
        (st = choose_model_len(o, &info, &m->model_len_max, err)) ||
        (st = srv_startup_shape_kv(o, &info, &m->kv, err)) ||
        (st = kn_check_model(m->kn, info.dtype, info.q_heads, &m->kv, err)) ||
        (st = srv_staging_choose(o, &info, o->offload, budget.gpu, &budget.staging, err)) ||
        (st = make_budget(o, &mo, &info, m->model_len_max, m->kn, &budget, err)) ||
        (st = choose_pages(o, &m->kv, m->model_len_max, &budget, &m->page_count, err)))
        goto fail;
    mo.model_len_max = m->model_len_max;
    uint64_t kv_bytes = (uint64_t)m->page_count * kn_kv_page_bytes(&m->kv);
    if ((st = open_tiers(o, &info, kv_bytes, &budget, m, err)) ||
        (st = off_tier_alloc(m->tiers, 0, kv_bytes, "the KV cache", &m->kv.base[0], err)) ||
        (st = eng_model_open(m->kn, m->tiers, o->model_dir, &mo, &m->model, err)))
        goto fail;
    report(m, eng_model_info(m->model));
    eng_model_traffic(m->model, m->kv.dtype, &traffic);
    if ((st = srv_staging_open(o, &traffic, budget.gpu, budget.staging, m->kn, &m->staging_bytes,
                               err)) ||
        (st = open_engine(o, hooks, &mo, m, err)))
        goto fail;
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
