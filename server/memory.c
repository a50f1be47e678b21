#include "server/memory.h"

#include <math.h>
#include <string.h>

#include "config/check.h"
#include "config/log.h"
#include "config/size.h"
#include "offload/probe.h"
#include "server/kv_tiers.h"
#include "server/probe.h"
#include "server/staging.h"
#include "server/startup.h"

/* Of the planned workload, where nothing was said: what 64 people who chat need. */
#define BATCH_DEFAULT 64
#define CONTEXT_DEFAULT 1024
/* Of the usable memory, what their KV cache may take: one part in so many. */
#define KV_WANTED_PART 4
/* KV memory of an unbounded CPU: one gibibyte, or one longest sequence where that is more. */
#define KV_DEFAULT_BYTES (1ull << 30)
/* Dense bfloat16 of a Hopper GPU, by its datasheet. */
#define FLOPS 989e12
/* Of the host's memory, what is left for everybody else: one part in so many. */
#define HOST_RESERVE 8
#define STAGING_ROUNDS 16
/* Local pages of each of --max-num-seqs, however much KV leaves: that being filled, and the next.
 */
#define NEAR_PAGES_MIN 2
/* Of the rate of products on chip, what those of a step of many sequences reach: measured, 600 to
 * 730 of 860 TFLOPS (kernels/cuda/prefill_gemm.cuh). */
#define PRODUCT_USE 0.76

/* How many pages of KV are wanted, and how many at most. */
struct pages {
    uint64_t bytes; /* of a page */
    int64_t per_seq, wanted, most;
    int64_t far;      /* beside local ones, in the tier of --kv-remote */
    int64_t workload; /* of the planned workload, at most */
};

/* --- what there is ---------------------------------------------------------------------------- */

static enum status measure_memory(const struct options *o, struct kn *kn,
                                  const struct eng_model_options *mo,
                                  const struct eng_model_info *info, struct srv_memory *m,
                                  char *err)
{
    double share =
        o->gpu_memory_utilization > 0 ? o->gpu_memory_utilization : SRV_GPU_UTILIZATION_DEFAULT;
    enum status st = kn_memory(kn, &m->total, &m->available, err);
    if (st && m->gpu) return st;
    if (st) m->total = m->available = 0; /* a system without /proc: try, and see */
    m->bounded = m->gpu || o->hbm_size;
    m->usable = o->hbm_size ? o->hbm_size : m->available;
    if (!m->gpu) return ST_OK;
    uint64_t others = m->total - m->available, allowed = m->total;
    if (o->hbm_size) allowed = size_min(allowed, o->hbm_size);
    allowed = (uint64_t)(share * (double)allowed);
    m->usable = allowed > others ? allowed - others : 0;
    m->step = srv_startup_step_bytes(mo, info, m->model_len);
    return ST_OK;
}

/* The step that is planned for. */
static enum status choose_workload(const struct options *o, const struct kn_kv *kv,
                                   struct srv_memory *m, char *err)
{
    int64_t batch = o->plan_batch, context = o->plan_context;
    if (!batch) batch = o->max_num_seqs < BATCH_DEFAULT ? o->max_num_seqs : BATCH_DEFAULT;
    if (!context) context = m->model_len < CONTEXT_DEFAULT ? m->model_len : CONTEXT_DEFAULT;
    if (context > m->model_len)
        return err_set(err, ST_INVALID,
                       "--plan-context %lld is more than the %d tokens of a longest sequence",
                       (long long)context, m->model_len);
    m->workload = (struct eng_step){.seq_count = (int32_t)batch,
                                    .context = (int32_t)context,
                                    .kv_dtype = kv->dtype,
                                    .flops_per_s = FLOPS};
    return ST_OK;
}

/* What products of the planned step compute at, where it is so large that they may wait for it. */
static enum status measure_arithmetic(struct kn *kn, struct srv_memory *m, char *err)
{
    struct off_probe_config once = off_probe_config_default();
    double flops_per_s;
    once.round_count = 1;
    if (!m->gpu || m->workload.seq_count <= KN_STAGE_TOKENS) return ST_OK;
    enum status st = off_probe_matrix(kn, &once, &flops_per_s, err);
    if (!st && flops_per_s > 0) m->workload.flops_per_s = PRODUCT_USE * flops_per_s;
    return st;
}

static int64_t pages_of(int64_t tokens)
{
    return (int64_t)div_up((size_t)tokens, KN_PAGE_TOKENS);
}

static struct pages choose_pages(const struct options *o, const struct kn_kv *kv,
                                 const struct srv_memory *m)
{
    struct pages p = {.bytes = kn_kv_page_bytes(kv), .per_seq = pages_of(m->model_len)};
    const bool stated = o->plan_batch || o->plan_context;
    if (m->kv_in_place) p.far = (int64_t)(m->remote.pool_bytes[m->kv_tier - 1] / p.bytes);
    p.most = (p.per_seq + 1) * o->max_num_seqs; /* one each in reserve: sched.c */
    p.wanted = m->workload.seq_count * (pages_of(m->workload.context) + 1);
    /* Heads that are not shared make a cache larger than the weights. */
    int64_t part = (int64_t)size_max(m->usable / KV_WANTED_PART / p.bytes, 2);
    if (m->bounded && !stated && p.wanted > part) p.wanted = part;
    if (o->max_model_len && p.wanted < p.per_seq - p.far) p.wanted = p.per_seq - p.far;
    if (o->kv_cache_memory_bytes) p.wanted = (int64_t)(o->kv_cache_memory_bytes / p.bytes);
    if (p.wanted > p.most) p.wanted = p.most;
    if (o->kv_cache_memory_bytes) p.most = p.wanted;
    /* Far pages are for more than what is usual, unless that was asked for. */
    p.workload = stated && o->kv_cache_memory_bytes ? p.wanted + p.far : p.wanted;
    return p;
}

/* A workload whose KV the cache holds, where it was told to be small. */
static void shrink_workload(struct eng_step *w, int64_t pages)
{
    int64_t each = pages_of(w->context) + 1;
    if (w->seq_count * each <= pages) return;
    w->seq_count = (int32_t)(pages / each);
    if (w->seq_count > 0) return;
    w->seq_count = 1;
    w->context = pages > 1 ? (int32_t)((pages - 1) * KN_PAGE_TOKENS) : 1;
}

/* --- where weights go ------------------------------------------------------------------------- */

static uint64_t kv_bytes(const struct pages *p)
{
    return (uint64_t)p->wanted * p->bytes;
}

/* What must leave local memory, for all that is wanted to fit. */
static uint64_t excess(const struct srv_memory *m, const struct eng_model_info *info,
                       const struct pages *p)
{
    uint64_t need = info->weight_bytes + m->step + kv_bytes(p);
    return m->bounded && need > m->usable ? need - m->usable : 0;
}

/* The tier of --kv-remote, in m->remote as it is now. */
static enum status add_kv_tier(const struct options *o, struct srv_memory *m, char *err)
{
    if (!o->kv_remote[0]) return ST_OK;
    m->kv_in_place = strcmp(o->kv_policy, "in-place") == 0;
    return off_remote_add_pool(o->kv_remote, "--kv-remote", &m->remote, &m->kv_tier, err);
}

uint64_t srv_memory_host_room(uint64_t total, uint64_t available)
{
    const uint64_t reserve = total / HOST_RESERVE;
    return available > reserve ? available - reserve : 0;
}

/* The host's memory, as much as is needed, where --remote names nothing. */
static enum status offer_host(const struct options *o, uint64_t needed, struct srv_memory *m,
                              char *err)
{
    uint64_t total, available, pool = 0;
    char need[SIZE_TEXT_CAP], may[SIZE_TEXT_CAP], free_text[SIZE_TEXT_CAP], all[SIZE_TEXT_CAP];
    enum status st = kn_host_memory(&total, &available, err);
    if (st) return st;
    if (m->kv_tier && m->remote.spec[m->kv_tier - 1].mem == KN_MEM_HOST)
        pool = m->remote.pool_bytes[m->kv_tier - 1];
    const uint64_t room = srv_memory_host_room(total, available);
    uint64_t offered = room > pool ? room - pool : 0;
    if (!m->gpu) offered = offered > m->usable ? offered - m->usable : 0; /* one memory */
    if (needed > offered)
        return err_set(err, ST_LIMIT,
                       "%s of the model do not fit in local memory beside its KV cache, and of the "
                       "host's memory %s may be taken (%s are available, an eighth of %s is left "
                       "to others%s): name more with --remote, or lower --plan-batch, "
                       "--plan-context or --kv-cache-memory-bytes",
                       size_text(needed, need), size_text(offered, may),
                       size_text(available, free_text), size_text(total, all),
                       pool ? ", and --kv-remote has its own" : "");
    m->remote = (struct off_remote){.count = 1, .spec = {{KN_MEM_HOST, 0, offered}}};
    return add_kv_tier(o, m, err);
}

/* At which a step of the planned workload reads a link: the copy engine's rate where it brings the
 * weights (kn_fetch_reserve). */
static double link_rate(const struct off_link *link, const struct srv_memory *m)
{
    const bool copied = m->staging > 0 && m->workload.seq_count > KN_FETCH_TOKENS;
    return copied && link->copy_bytes_per_s > 0 ? link->copy_bytes_per_s : link->read_bytes_per_s;
}

/* Bandwidths and capacities.  No tier may take more than what must leave: by the model, a step is
 * shortest with the free fraction of every weight on the link, but measured so far it is not, since
 * products with remote tiles finish their sums in a slower way. */
static void set_tiers(uint64_t local_bytes, uint64_t leaving, struct srv_memory *m)
{
    struct off_plan *p = &m->plan;
    const uint64_t tile = eng_operations_tile_max(p);
    p->tier_count = 1 + m->remote.count;
    p->tier[0] = (struct off_plan_tier){
        "hbm", m->gpu ? m->links.hbm_bytes_per_s : SRV_NOMINAL_HBM_BYTES_PER_S, local_bytes};
    for (int t = 1; t < p->tier_count; t++) {
        const struct off_tier_spec *spec = &m->remote.spec[t - 1];
        const struct off_link *link = off_links_of(&m->links, spec);
        p->tier[t] = (struct off_plan_tier){
            .name = link ? link->name : "remote",
            .bytes_per_s = link ? link_rate(link, m) : srv_nominal_link_bytes_per_s(spec->mem),
            .bytes = size_min(spec->bytes / KN_ALIGN * KN_ALIGN, leaving + 2 * tile)};
    }
}

/* Of the operations that are KV's, all bytes. */
static uint64_t kv_in_plan(const struct off_plan *p)
{
    uint64_t bytes = 0;
    for (int i = 0; i < p->op_count; i++) {
        const struct off_plan_op *op = &p->op[i];
        if (eng_operation_is_kv(op))
            bytes += (uint64_t)op->count * (uint64_t)op->tile_count * op->tile_bytes;
    }
    return bytes;
}

/* Lets KV leave, where there is a tier for it.  The bytes of local memory that are kept free beside
 * the plan's: for what is wanted beyond the workload and has no room in that tier, or what
 * --kv-cache-memory-bytes states. */
static uint64_t open_kv(const struct options *o, const struct pages *pages, struct srv_memory *m)
{
    /* The workload's KV is an operation; what is wanted beyond it is kept free.  A cache of one
     * page is less than the workload of one token has. */
    const uint64_t in_plan = kv_in_plan(&m->plan), wanted = size_max(kv_bytes(pages), in_plan);
    if (!m->kv_in_place) return wanted - in_plan;
    const uint64_t pool = (uint64_t)pages->far * pages->bytes;
    const uint64_t given = o->kv_cache_memory_bytes ? kv_bytes(pages) : 0;
    const int64_t leave = pages->wanted - NEAR_PAGES_MIN * o->max_num_seqs;
    const uint64_t most = given ? pool : leave > 0 ? (uint64_t)leave * pages->bytes : 0;
    eng_operations_open_kv(&m->plan, m->kv_tier, size_min(pool, most), given);
    const uint64_t may_leave = m->plan.pool_bytes[m->kv_tier];
    if (given) m->plan.pool_bytes[0] = size_max(given, in_plan - may_leave);
    if (given) return m->plan.pool_bytes[0];
    const uint64_t more = wanted - in_plan, beside = pool - may_leave;
    return more > beside ? more - beside : 0;
}

/* The plan, in which no more leaves than must: where KV has left for its free fraction of the link,
 * weights that need not leave beside it stay. */
static enum status solve(struct srv_memory *m, char *err)
{
    struct off_plan *p = &m->plan;
    enum status st = eng_operations_solve(p, err);
    if (st || !m->kv_in_place) return st;
    const uint64_t tile = eng_operations_tile_max(p);
    uint64_t used = 0, out[KN_TIER_MAX] = {0};
    for (int i = 0; i < p->op_count; i++) {
        const bool kv = eng_operation_is_kv(&p->op[i]);
        if (!kv || !p->pool_bytes[0]) used += off_plan_stored_bytes(&p->op[i], 0);
        for (int t = 1; t < p->tier_count && !kv; t++)
            out[t] += off_plan_stored_bytes(&p->op[i], t);
    }
    uint64_t spare = p->tier[0].bytes - used;
    if (spare <= tile) return ST_OK;
    for (int t = p->tier_count - 1; t > 0; t--) {
        const uint64_t stays = size_min(out[t], spare);
        spare -= stays;
        p->tier[t].bytes = size_min(p->tier[t].bytes, out[t] - stays + tile);
    }
    return eng_operations_solve(p, err);
}

/* What is known before anything is planned: where weights may go, and how fast that is. */
static enum status prepare_plan(const struct options *o, struct kn *kn, uint64_t leaving,
                                const struct pages *pages, struct srv_memory *m, char *err)
{
    const uint64_t pool = (uint64_t)pages->far * pages->bytes;
    enum status st = ST_OK;
    if (!o->remote[0]) st = offer_host(o, leaving > pool ? leaving - pool : 0, m, err);
    if (st || (st = measure_arithmetic(kn, m, err))) return st;
    return m->gpu ? srv_probe_links(o, kn, &m->remote, &m->links, err) : ST_OK;
}

static enum status make_plan(const struct eng_shape *shape, const struct options *o,
                             const struct pages *pages, struct srv_memory *m, char *err)
{
    char why[ERR_CAP] = "";
    uint64_t leaving = excess(m, &shape->info, pages);
    enum status st = eng_operations(shape, &m->workload, &m->plan, err);
    if (st) return st;
    const uint64_t in_plan = kv_in_plan(&m->plan), taken = m->step + open_kv(o, pages, m);
    if (in_plan > kv_bytes(pages)) leaving += in_plan - kv_bytes(pages);
    set_tiers(m->usable > taken ? m->usable - taken : 0, leaving, m);
    if (!(st = solve(m, why))) return ST_OK;
    return err_set(err, st,
                   "%.300s: raise --gpu-memory-utilization or --remote, or lower --plan-batch, "
                   "--plan-context, --max-model-len or --kv-cache-memory-bytes",
                   why);
}

/* A share of the weights, where the planned workload's step suffers least. */
static enum status plan_share(const struct options *o, struct kn *kn, const struct eng_shape *shape,
                              struct srv_memory *m, char *err)
{
    uint64_t all = 0, tiles = 0;
    char why[ERR_CAP] = "";
    enum status st = measure_arithmetic(kn, m, err);
    if (st || (st = eng_operations(shape, &m->workload, &m->plan, err)) ||
        (m->gpu && (st = srv_probe_links(o, kn, &m->remote, &m->links, err))))
        return st;
    for (int i = 0; i < m->plan.op_count; i++) {
        const struct off_plan_op *op = &m->plan.op[i];
        const uint64_t bytes = (uint64_t)op->count * (uint64_t)op->tile_count * op->tile_bytes;
        all += bytes;
        if (!op->pinned) tiles += bytes;
    }
    const uint64_t leaving = (uint64_t)(o->offload * (double)tiles);
    set_tiers(all - leaving, leaving, m);
    m->planned = true;
    if (!(st = eng_operations_solve(&m->plan, why))) return ST_OK;
    return err_set(err, st, "--offload %g: %.400s: raise --remote", o->offload, why);
}

/* How the weights lie by --offload and --placement, or all in one place: in the plan's tiles. */
static enum status preview(const struct eng_shape *shape, const struct eng_model_options *mo,
                           struct kn *kn, struct srv_memory *m, char *err)
{
    struct eng_weights w;
    struct off_tiers *tiers;
    enum status st = eng_operations(shape, &m->workload, &m->plan, err);
    if (st || (st = off_tiers_open(kn, 0, &m->remote, &tiers, err))) return st;
    if (!(st = eng_weights_preview(shape, tiers, mo, &w, err))) {
        eng_operations_count(shape, &w, &m->plan);
        eng_weights_deinit(&w);
    }
    off_tiers_close(tiers);
    return st;
}

/* Of the weights, what the plan has in a tier. */
static uint64_t weights_in(const struct off_plan *p, int tier)
{
    uint64_t bytes = 0;
    for (int i = 0; i < p->op_count; i++)
        if (!eng_operation_is_kv(&p->op[i])) bytes += off_plan_stored_bytes(&p->op[i], tier);
    return bytes;
}

/* Of all, what a step reads there. */
static double read_in(const struct off_plan *p, int tier)
{
    double bytes = 0;
    for (int i = 0; i < p->op_count; i++) bytes += off_plan_read_bytes(&p->op[i], tier);
    return bytes;
}

/* What each tier is to hold: the plan's bytes, or a share's, divided by capacity. */
static void set_requests(const struct eng_model_options *mo, const struct eng_model_info *info,
                         struct srv_memory *m)
{
    uint64_t tiles = info->weight_bytes;
    double capacity = 0;
    for (int i = 0; i < m->plan.op_count; i++)
        if (m->plan.op[i].pinned && !eng_operation_is_kv(&m->plan.op[i]))
            tiles -= m->plan.op[i].tile_bytes;
    for (int i = 0; i < m->remote.count; i++) capacity += (double)m->remote.spec[i].bytes;
    uint64_t out = 0;
    for (int t = KN_TIER_MAX - 1; t >= 0; t--) {
        struct srv_share *s = &m->share[t];
        *s = (struct srv_share){.requested = weights_in(&m->plan, t),
                                .predicted_read = read_in(&m->plan, t)};
        if (m->planned || mo->offload == 0) continue;
        if (t == 0) s->requested = info->weight_bytes - out;
        else if (t <= m->remote.count)
            s->requested = (uint64_t)(mo->offload * (double)tiles *
                                      (double)m->remote.spec[t - 1].bytes / capacity);
        out += s->requested;
    }
}

/* Memory that remote weights are copied through, of prompts and of decode steps, where so much of
 * them is remote.  bare: what a step works on beside it. */
static enum status set_aside(const struct options *o, const struct eng_model_info *info,
                             double share, uint64_t bare, struct srv_memory *m, char *err)
{
    uint64_t ring = 0;
    enum status st = srv_staging_choose(o, info, share, m->gpu, &m->staging, err);
    if (st || (st = srv_mode_reserve(o, info, share, m->gpu, m->ring, err))) return st;
    for (int k = 0; k < OFF_MODE_COUNT; k++) ring = size_max(ring, m->ring[k]);
    m->step = bare + m->staging + ring;
    return ST_OK;
}

/* What is set aside is memory that weights must leave: what leaves and what it needs are found in
 * turn, each round adding a layer's part of the one before. */
static enum status set_staging(const struct options *o, const struct eng_model_info *info,
                               const struct pages *p, struct srv_memory *m, char *err)
{
    const uint64_t bare = m->step;
    const int rounds = m->planned ? STAGING_ROUNDS : 1;
    double share = o->offload > 0 ? o->offload : 0;
    enum status st = ST_OK;
    for (int i = 0; i < rounds && !st; i++) {
        if (m->planned) share = fmin((double)excess(m, info, p) / (double)info->weight_bytes, 1);
        st = set_aside(o, info, share, bare, m, err);
    }
    return st;
}

/* The same where KV may leave too, so that only a plan says how much of the weights does. */
static enum status plan_both(const struct options *o, const struct eng_shape *shape,
                             const struct pages *p, struct srv_memory *m, char *err)
{
    const uint64_t bare = m->step;
    double share = 0;
    for (int i = 0; i < STAGING_ROUNDS; i++) {
        uint64_t out = 0;
        enum status st = set_aside(o, &shape->info, share, bare, m, err);
        if (st || (st = make_plan(shape, o, p, m, err))) return st;
        for (int t = 1; t < KN_TIER_MAX; t++) out += weights_in(&m->plan, t);
        if ((double)out <= share * (double)shape->info.weight_bytes) break;
        share = fmin(1.001 * (double)out / (double)shape->info.weight_bytes, 1);
    }
    return ST_OK;
}

/* Of local memory, what does not fit leaves it, as the planner says. */
static enum status place_by_plan(const struct options *o, uint64_t leaving,
                                 const struct eng_shape *shape, const struct pages *p,
                                 struct kn *kn, struct srv_memory *m, char *err)
{
    enum status st;
    if (!m->kv_in_place && (st = set_staging(o, &shape->info, p, m, err))) return st;
    if (!m->kv_in_place) leaving = excess(m, &shape->info, p);
    if ((st = prepare_plan(o, kn, leaving, p, m, err))) return st;
    return m->kv_in_place ? plan_both(o, shape, p, m, err) : make_plan(shape, o, p, m, err);
}

/* A share that was asked for, or none. */
static enum status place_by_share(const struct options *o, uint64_t leaving,
                                  const struct eng_shape *shape, struct kn *kn,
                                  struct eng_model_options *mo, struct srv_memory *m, char *err)
{
    if (o->offload > 0 && !o->remote[0])
        return err_set(err, ST_INVALID, "--offload %g needs a remote tier: --remote host:SIZE",
                       o->offload);
    if (o->offload > 0 && leaving == 0 && !o->force_offload)
        return err_set(err, ST_INVALID,
                       "--offload %g would move weights out of local memory, where the model fits "
                       "whole with its KV cache: leave it out, or add --force-offload",
                       o->offload);
    if (o->offload > 0 && strcmp(o->placement, "planned") == 0)
        return plan_share(o, kn, shape, m, err);
    mo->offload = o->offload > 0 ? o->offload : 0;
    enum status st = preview(shape, mo, kn, m, err);
    /* Not for the places, which a share decides, but for windows. */
    if (st || !m->gpu || (mo->offload == 0 && !m->kv_tier)) return st;
    return srv_probe_links(o, kn, &m->remote, &m->links, err);
}

/* --- KV gets the rest ------------------------------------------------------------------------- */

static enum status too_little_kv(const struct options *o, const struct pages *p, int64_t count,
                                 const struct srv_memory *m, char *err)
{
    char need[SIZE_TEXT_CAP], have[SIZE_TEXT_CAP];
    (void)size_text((uint64_t)p->per_seq * p->bytes, need);
    if (o->kv_cache_memory_bytes)
        return err_set(err, ST_LIMIT,
                       "one sequence of --max-model-len %d needs %s of KV cache, and "
                       "--kv-cache-memory-bytes allows %s: raise the one or lower the other",
                       m->model_len, need, size_text((uint64_t)o->kv_cache_memory_bytes, have));
    return err_set(err, ST_LIMIT,
                   "one sequence of --max-model-len %d needs %s of KV cache, and %s of local "
                   "memory are left beside the weights: lower --max-model-len, raise "
                   "--gpu-memory-utilization, or leave out --offload",
                   m->model_len, need, size_text((uint64_t)count * p->bytes, have));
}

/* Pages of the remote tier, as many as sequences may fill beside the local ones, or as many as make
 * steps shortest where that is more; its pool is made as large as they are. */
static enum status give_far_kv(const struct options *o, const struct pages *p, int64_t near,
                               struct srv_memory *m, char *err)
{
    if (!m->kv_tier) return ST_OK;
    uint64_t *pool = &m->remote.pool_bytes[m->kv_tier - 1];
    int64_t most = (p->per_seq + 1) * o->max_num_seqs - near;
    if (m->kv_in_place)
        most = (int64_t)size_max(
            most > 0 ? (size_t)most : 0,
            (size_t)off_residency_best(&m->residency, p->per_seq * o->max_num_seqs));
    int64_t count = (int64_t)(*pool / p->bytes);
    char page[SIZE_TEXT_CAP];
    if (count == 0)
        return err_set(err, ST_INVALID, "--kv-remote %s has no room for one page of KV, %s",
                       o->kv_remote, size_text(p->bytes, page));
    if (count > most) count = most > 0 ? most : 0;
    if (count > 0x0FFFFFFF)
        return err_set(err, ST_LIMIT, "--kv-remote would hold more than 2^28 pages");
    if (near < o->max_num_seqs)
        log_warn("startup",
                 "the KV cache has %lld pages in local memory, where each sequence needs one: at "
                 "most so many of --max-num-seqs %lld run at once",
                 (long long)near, (long long)o->max_num_seqs);
    *pool = (uint64_t)count * p->bytes;
    m->far_page_count = (int32_t)count;
    return ST_OK;
}

static enum status no_room(const struct options *o, const struct pages *p, uint64_t weights,
                           const struct srv_memory *m, char *err)
{
    const uint64_t kv = size_max(p->bytes, o->kv_cache_memory_bytes ? kv_bytes(p) : 0);
    char need[3][SIZE_TEXT_CAP], have[SIZE_TEXT_CAP];
    return err_set(err, ST_LIMIT,
                   "the model needs %s of local memory for weights, %s for KV and %s to work in, "
                   "and %s may be used: raise --gpu-memory-utilization, lower "
                   "--kv-cache-memory-bytes, or leave out --offload",
                   size_text(weights, need[0]), size_text(kv, need[1]), size_text(m->step, need[2]),
                   size_text(m->usable, have));
}

static enum status give_kv(const struct options *o, const struct eng_model_info *info,
                           const struct pages *p, struct srv_memory *m, char *err)
{
    int64_t count = p->most;
    const uint64_t local = weights_in(&m->plan, 0);
    const uint64_t weights = o->everywhere ? info->weight_bytes : local;
    m->spare_bytes = weights - local;
    if (m->bounded) {
        uint64_t fixed = weights + m->step;
        uint64_t left = m->usable > fixed ? m->usable - fixed : 0;
        if (o->kv_cache_memory_bytes ? kv_bytes(p) > left : left < p->bytes)
            return no_room(o, p, weights, m, err);
        if ((uint64_t)count > left / p->bytes) count = (int64_t)(left / p->bytes);
    } else if (!o->kv_cache_memory_bytes) {
        int64_t usual = (int64_t)size_max(KV_DEFAULT_BYTES / p->bytes, (size_t)p->per_seq);
        if (count > usual) count = usual;
    }
    enum status st = give_far_kv(o, p, count, m, err);
    if (st) return st;
    const int64_t all = m->kv_in_place ? count + m->far_page_count : count;
    if (count < 1 ||
        (all < p->per_seq && (!m->bounded || o->max_model_len || o->kv_cache_memory_bytes)))
        return too_little_kv(o, p, all, m, err);
    if (all < p->per_seq) {
        m->model_len = (int32_t)(all * KN_PAGE_TOKENS);
        log_info("startup",
                 "sequences of up to %d tokens, for which there is KV: the model allows more, and "
                 "--max-model-len would ask for it",
                 m->model_len);
    }
    if (count > 0x0FFFFFFF)
        return err_set(err, ST_LIMIT, "the KV cache would hold more than 2^28 pages");
    m->page_count = (int32_t)count;
    return ST_OK;
}

/* --- all of it -------------------------------------------------------------------------------- */

uint64_t srv_memory_local_bytes(const struct srv_memory *m, const struct kn_kv *kv)
{
    return weights_in(&m->plan, 0) + m->spare_bytes +
           (uint64_t)m->page_count * kn_kv_page_bytes(kv);
}

/* A tier that nobody sized is as large as what goes there. */
static void trim_offered(const struct options *o, struct srv_memory *m)
{
    if (o->remote[0]) return;
    for (int i = 0; i < m->remote.count; i++) m->remote.spec[i].bytes = m->share[i + 1].requested;
}

static void log_plan(const struct srv_memory *m, uint64_t leaving)
{
    const struct eng_step *w = &m->workload;
    char text[SIZE_TEXT_CAP], usable[SIZE_TEXT_CAP];
    if (leaving > 0)
        log_info("startup", "%s of weights and KV cache do not fit in the %s that may be used",
                 size_text(leaving, text), size_text(m->usable, usable));
    log_info("startup",
             "what leaves is planned for a step of %d sequence%s of %d tokens, at least %.2f ms%s",
             w->seq_count, w->seq_count == 1 ? "" : "s", w->context, m->plan.seconds * 1e3,
             m->gpu ? "" : " on an H200");
}

enum status srv_memory_decide(const struct options *o, struct kn *kn, bool gpu,
                              const struct eng_shape *shape, const struct kn_kv *kv,
                              struct eng_model_options *mo, struct srv_memory *m, char *err)
{
    enum status st;
    const struct eng_model_info *info = &shape->info;
    *m = (struct srv_memory){.gpu = gpu, .model_len = info->context_max};
    if (o->max_model_len) m->model_len = (int32_t)o->max_model_len;
    if (strcmp(o->kv_policy, "swap") == 0 && !o->kv_remote[0])
        return err_set(err, ST_INVALID,
                       "--kv-policy swap moves pages to a remote tier: name one with --kv-remote, "
                       "such as host:16GiB");
    if (strcmp(o->kv_policy, "swap") == 0 && o->prefix_cache)
        return err_set(err, ST_INVALID,
                       "--kv-policy swap moves pages of one sequence alone, and the prefix cache "
                       "shares them: add --no-prefix-cache");
    if (strcmp(o->kv_policy, "recompute") == 0 && o->kv_remote[0])
        return err_set(err, ST_INVALID,
                       "--kv-policy recompute keeps no pages in a remote tier: leave --kv-remote "
                       "out, or it");
    if (o->force_offload && o->offload <= 0)
        return err_set(err, ST_INVALID,
                       "--force-offload is of a share: say which with --offload, such as 0.1");
    if ((st = off_remote_parse(o->remote, &m->remote, err)) || (st = add_kv_tier(o, m, err)) ||
        (st = measure_memory(o, kn, mo, info, m, err)) || (st = choose_workload(o, kv, m, err)))
        return st;
    const struct pages pages = choose_pages(o, kv, m);
    uint64_t leaving = excess(m, info, &pages);
    shrink_workload(&m->workload, pages.workload);
    m->planned = o->offload == OPT_AUTO && leaving > 0;
    if (m->planned) st = place_by_plan(o, leaving, shape, &pages, kn, m, err);
    else if (!(st = set_staging(o, info, &pages, m, err)))
        st = place_by_share(o, leaving, shape, kn, mo, m, err);
    if (st) return st;
    m->residency = srv_kv_residency(m, kv);
    if ((st = give_kv(o, info, &pages, m, err))) return st;
    srv_kv_place(m, &m->workload, &m->plan);
    if (m->planned) {
        mo->plan = &m->plan;
        leaving = excess(m, info, &pages);
        off_plan_sum_up(&m->plan);
    }
    set_requests(mo, info, m);
    trim_offered(o, m);
    if (!m->planned && o->offload == OPT_AUTO && o->remote[0])
        log_info("startup", "the model fits with its KV cache: the tiers of --remote stay empty");
    if (m->planned) log_plan(m, leaving);
    return ST_OK;
}

/* --- afterwards ------------------------------------------------------------------------------- */

enum status srv_memory_place(const struct options *o, const struct eng_model_options *mo,
                             const struct off_tiers *tiers, const struct eng_model *model,
                             const struct kn_kv *kv, struct srv_memory *m, char *err)
{
    const struct eng_shape *shape = eng_model_shape(model);
    CHECK(o->everywhere && !m->planned);
    enum status st = eng_operations(shape, &m->workload, &m->plan, err);
    if (st || (st = srv_staging_choose(o, &shape->info, mo->offload, m->gpu, &m->staging, err)) ||
        (st = srv_mode_reserve(o, &shape->info, mo->offload, m->gpu, m->ring, err)))
        return st;
    eng_operations_count(shape, eng_model_weights(model), &m->plan);
    srv_kv_place(m, &m->workload, &m->plan);
    set_requests(mo, &shape->info, m);
    return srv_memory_check(m, tiers, model, kv, err);
}
