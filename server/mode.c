#include "server/mode.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "config/check.h"
#include "config/log.h"
#include "config/size.h"
#include "engine/trial.h"
#include "server/kv_tiers.h"
#include "server/staging.h"
#include "server/startup.h"

#define MIB 1048576.0
#define MS 1e3
/* The ring of auto: of two layers, so that copies are a layer ahead.  Where what leaves HBM is
 * planned, the ring's bytes might have been weights': then at most so much. */
#define AUTO_LAYERS 2
#define AUTO_BYTES_MAX (512ull << 20)
/* What rounding to whole tiles may add to a layer's four products. */
#define LAYER_SLACK_BYTES (16ull << 20)
#define MOSTLY 0.9 /* copied: what is left tells too little of its link to adapt to */
enum { WAYS = 7, ROUNDS = 2 };
/* Ways whose shares differ by less are one. */
#define ALIKE 0.03
/* How wrong offload/mix.h may be of a step: by a part of it, and by what starting, ending and
 * waiting for words cost a product. */
#define DOUBT 0.02
/* Ways that differ by less are timed twice, where steps are so short that it matters. */
#define NEAR 0.08
#define SHORT_S 20e-3
#define DOUBT_KERNEL_S 4e-6

/* --- the flags -------------------------------------------------------------------------------- */

static bool is_auto(const char *text)
{
    return strcmp(text, "auto") == 0;
}

static enum status foreign(const char *flag, const char *of, const struct options *o, char *err)
{
    return err_set(err, ST_INVALID,
                   "%s is of --offload-mode %s, and the mode is %s: leave one of them out", flag,
                   of, o->offload_mode);
}

enum status srv_mode_read(const struct options *o, bool gpu, enum off_mode *out, char *err)
{
    if (!off_mode_parse(o->offload_mode, out))
        return err_set(err, ST_INVALID,
                       "--offload-mode '%s' is none of auto, direct, prefetch and uva",
                       o->offload_mode);
    const enum off_mode mode = *out;
    if (!gpu && (mode == OFF_MODE_PREFETCH || mode == OFF_MODE_UVA))
        return err_set(err, ST_UNSUPPORTED,
                       "--offload-mode %s is a way for a GPU to read remote weights, and the CPU "
                       "computes, which reads all memory alike: leave it out, or say direct",
                       o->offload_mode);
    if (o->offload_modes_more) return ST_OK; /* flags of all of them */
    if (mode != OFF_MODE_AUTO && !is_auto(o->offload_staging_bytes))
        return foreign("--offload-staging-bytes", "auto", o, err);
    if (mode != OFF_MODE_PREFETCH && o->prefetch_layers > 1)
        return foreign("--prefetch-layers", "prefetch", o, err);
    if (!srv_mode_fetches_prompts(o) && !is_auto(o->prefill_staging_bytes) &&
        strcmp(o->prefill_staging_bytes, "0"))
        return foreign("--prefill-staging-bytes", "auto or prefetch", o, err);
    return ST_OK;
}

/* Those of this loading, as bits. */
static unsigned modes_of(const struct options *o)
{
    enum off_mode now;
    return o->offload_modes_more | (off_mode_parse(o->offload_mode, &now) ? 1u << now : 0);
}

bool srv_mode_fetches_prompts(const struct options *o)
{
    const unsigned modes = modes_of(o);
    for (int m = 0; m < OFF_MODE_COUNT; m++)
        if (modes & 1u << m && off_mode_fetches_prompts((enum off_mode)m)) return true;
    return false;
}

enum status srv_mode_reserve(const struct options *o, const struct eng_model_info *info,
                             double share, bool gpu, uint64_t out[OFF_MODE_COUNT], char *err)
{
    const unsigned modes = modes_of(o);
    const double layer = share * (double)info->weight_bytes / info->layer_count;
    const uint64_t each = (uint64_t)layer + LAYER_SLACK_BYTES;
    uint64_t most = o->offload > 0 ? UINT64_MAX : AUTO_BYTES_MAX;
    memset(out, 0, OFF_MODE_COUNT * sizeof out[0]);
    if (!is_auto(o->offload_staging_bytes) && size_parse(o->offload_staging_bytes, &most))
        return err_set(err, ST_INVALID,
                       "--offload-staging-bytes: '%s' is neither auto nor a size such as 256MiB",
                       o->offload_staging_bytes);
    if (!gpu || share == 0) return ST_OK;
    if (modes & 1u << OFF_MODE_AUTO)
        out[OFF_MODE_AUTO] = size_min(AUTO_LAYERS * each, most) / KN_ALIGN * KN_ALIGN;
    if (modes & 1u << OFF_MODE_PREFETCH)
        out[OFF_MODE_PREFETCH] = (1 + (uint64_t)o->prefetch_layers) * round_up(each, KN_ALIGN);
    return ST_OK;
}

/* --- what is copied --------------------------------------------------------------------------- */

static struct eng_step workload_of(const struct options *o, const struct srv_machine *m)
{
    struct eng_step w = m->memory.workload;
    if (o->plan_batch) w.seq_count = (int32_t)o->plan_batch;
    if (o->plan_context) w.context = (int32_t)o->plan_context;
    return w;
}

/* A way to share out a step's remote bytes. */
struct way {
    struct eng_stage_want want;
    double predicted_s, measured_s; /* of a step; 0: unknown */
};

/* A choice under way. */
struct choice {
    const struct options *o;
    struct srv_machine *m;
    const struct eng_traffic *traffic;
    struct srv_mode *mode;
    struct off_mix mix;
    bool known;                   /* mix is: the links' rates are */
    double layers[KN_TIER_MAX];   /* bytes of the layers' weights in a tier, */
    uint64_t stored[KN_TIER_MAX]; /* padding and all */
    struct way way[WAYS];
    int count;
};

/* Their bounds and nothing copied. */
static struct eng_stage_want want_of(const struct choice *c, uint64_t copy_bytes_min)
{
    const uint64_t ring = c->m->memory.ring[c->mode->mode];
    const bool prefetch = c->mode->mode == OFF_MODE_PREFETCH;
    return (struct eng_stage_want){.layers =
                                       prefetch ? (int32_t)c->o->prefetch_layers + 1 : AUTO_LAYERS,
                                   .ring_bytes_max = ring,
                                   .copy_bytes_min = copy_bytes_min,
                                   .product_bytes_max = prefetch ? UINT64_MAX : ring / 2};
}

/* Of a step's bytes in each tier, the shares that may be copied so. */
static enum status find_room(struct choice *c, const struct eng_stage_want *want,
                             struct eng_stage_room *room, double share[KN_TIER_MAX], char *err)
{
    enum status st = eng_stage_room(c->m->model, want, room, err);
    if (st) return st;
    for (int t = 0; t < KN_TIER_MAX; t++) {
        share[t] = 0;
        c->stored[t] = t ? room->bytes[t] : 0;
        if (!c->stored[t]) continue;
        c->layers[t] = (double)(c->traffic->weight_bytes[t] - c->traffic->head_bytes[t]);
        share[t] = c->layers[t] * (double)room->room[t] / (double)room->bytes[t];
        share[t] = fmin(share[t] / c->mode->step_bytes[t], 1);
    }
    return ST_OK;
}

/* A decode step on this machine, but for what may be copied.  False where the links are unknown. */
static bool describe(const struct choice *c, const struct eng_stage_room *room, struct off_mix *mix)
{
    const struct srv_memory *mem = &c->m->memory;
    *mix = (struct off_mix){.hbm_bytes_per_s = mem->links.hbm_bytes_per_s,
                            .hbm_bytes = c->mode->step_bytes[0],
                            .apart_bytes = c->mode->local_kv_bytes,
                            .tier_count = 1 + mem->remote.count};
    for (int t = 1; t < mix->tier_count; t++) {
        if (c->mode->step_bytes[t] <= 0) continue;
        const struct off_link *link = off_links_of(&mem->links, &mem->remote.spec[t - 1]);
        if (!link) return false;
        off_mix_set_link(&mix->tier[t], &mem->links, link);
        mix->tier[t].bytes = c->mode->step_bytes[t];
        mix->tier[t].group_count = eng_model_info(c->m->model)->layer_count;
        mix->tier[t].item_count = ENG_LAYER_PRODUCTS;
        memcpy(mix->tier[t].item_bytes, room->product_bytes[t], sizeof room->product_bytes[t]);
    }
    return true;
}

/* What a copy engine moves in ten gaps, of the slowest link: 3 MB over PCIe, 24 over NVLink.  Steps
 * with smaller copies were no faster, and up to a tenth slower. */
static uint64_t least_copy(const struct srv_machine *m)
{
    const struct off_links *links = &m->memory.links;
    double least = INFINITY;
    for (int i = 0; i < links->link_count; i++)
        least = fmin(least, links->link[i].copy_bytes_per_s);
    return links->link_count ? (uint64_t)(10 * least * OFF_MIX_GAP_S) : 0;
}

static double share_of(const struct way *w)
{
    double share = 0;
    for (int t = 1; t < KN_TIER_MAX; t++) share += w->want.share[t];
    return share;
}

/* Whether a way shares out bytes as one of those before does; nothing, there is one way to. */
static bool is_listed(const struct choice *c, const struct way *w)
{
    for (int i = 0; i < c->count; i++) {
        double most = 0;
        for (int t = 1; t < KN_TIER_MAX; t++)
            most = fmax(most, fabs(c->way[i].want.share[t] - w->want.share[t]));
        if (most < ALIKE && (c->way[i].want.even == w->want.even || share_of(w) == 0)) return true;
    }
    return false;
}

/* Copies a part of these shares of a step's bytes; no more of the layers' than there is. */
static void add_way(struct choice *c, struct eng_stage_want want, double part,
                    const double share[KN_TIER_MAX])
{
    struct way w = {.want = want};
    double copied[KN_TIER_MAX] = {0};
    for (int t = 1; t < KN_TIER_MAX; t++) {
        if (!(c->layers[t] > 0)) continue;
        copied[t] = part * share[t];
        w.want.share[t] = fmin(copied[t] * c->mode->step_bytes[t] / c->layers[t], 1);
    }
    if (c->known) w.predicted_s = off_mix_seconds(&c->mix, copied);
    if (is_listed(c, &w)) return;
    CHECK(c->count < WAYS);
    c->way[c->count++] = w;
}

/* Whether there is room for any step to be tried. */
static bool has_pages(const struct srv_machine *m)
{
    return m->page_count > 0 && m->kv.base[0] && m->model_len_max > 0;
}

/* Whether steps of the workload can be tried: what is staged is of no other. */
static bool can_try(const struct choice *c)
{
    return c->mode->workload.seq_count <= KN_STAGE_TOKENS && has_pages(c->m);
}

/* The workload's step, as far as the model's buffers go. */
static struct eng_trial trial_of(const struct options *o, const struct srv_machine *m,
                                 const struct eng_step *w)
{
    const size_t rows = size_min((size_t)o->max_num_seqs, (size_t)o->max_num_batched_tokens);
    return (struct eng_trial){.seq_count = (int32_t)size_min((size_t)w->seq_count, rows),
                              .context =
                                  (int32_t)size_min((size_t)w->context, (size_t)m->model_len_max),
                              .page_count = m->page_count,
                              .record = !strcmp(o->cuda_graphs, "on")};
}

/* What may be copied as the model of the links likes best. */
static void add_best(struct choice *c, struct eng_stage_want want, const double may[KN_TIER_MAX])
{
    for (int t = 1; t < KN_TIER_MAX; t++)
        c->mix.tier[t].share_max = can_try(c) || off_mix_is_beyond(&c->mix, t) ? may[t] : 0;
    off_mix_solve(&c->mix);
    add_way(c, want, 1, c->mix.share);
}

/* Nothing copied; the model's share in large copies; where steps can be tried the same in any
 * copies, parts, for which of them is best is not in the model, and all. */
static enum status list_ways(struct choice *c, char *err)
{
    const struct eng_stage_want large = want_of(c, least_copy(c->m)), any = want_of(c, 0);
    struct eng_stage_want even = any;
    struct eng_stage_room room;
    double may[KN_TIER_MAX], all[KN_TIER_MAX];
    enum status st;
    even.even = true;
    if ((st = find_room(c, &any, &room, all, err)) || (st = find_room(c, &large, &room, may, err)))
        return st;
    c->known = describe(c, &room, &c->mix);
    if (c->mode->mode == OFF_MODE_PREFETCH) {
        add_way(c, any, 1, all);
        return ST_OK;
    }
    add_way(c, large, 0, all);
    if (c->mode->mode != OFF_MODE_AUTO || !c->known) return ST_OK;
    add_best(c, large, may);
    if (!can_try(c)) return ST_OK;
    add_best(c, any, all);
    add_way(c, even, 0.2, all);
    add_way(c, any, 0.25, all);
    add_way(c, any, 0.5, all);
    add_way(c, any, 1, all);
    return ST_OK;
}

/* Drops the ways that the model rules out: what it leaves out is less than that.  The one that
 * copies most stays, so that no step is slower than prefetched: of OPT-30B with 20 % over NVLink,
 * 64 sequences of 1,056 tokens, the model had it as slower than the rest, and it took 3.96 ms where
 * what was left took 4.80. */
static void prune(struct choice *c)
{
    const double kernels = (double)ENG_LAYER_PRODUCTS * eng_model_info(c->m->model)->layer_count;
    double least = INFINITY, most = 0;
    int kept = 0;
    for (int i = 0; i < c->count; i++) {
        least = fmin(least, c->way[i].predicted_s);
        most = fmax(most, share_of(&c->way[i]));
    }
    for (int i = 0; i < c->count; i++)
        if (c->way[i].predicted_s <= (1 + DOUBT) * least + kernels * DOUBT_KERNEL_S ||
            share_of(&c->way[i]) >= most)
            c->way[kept++] = c->way[i];
    c->count = kept;
}

static enum status take(struct choice *c, const struct way *w, char *err)
{
    return eng_model_stage(c->m->model, &w->want, &c->mode->staged, err);
}

static uint64_t staged_bytes(const struct eng_staged *s)
{
    uint64_t bytes = 0;
    for (int t = 1; t < KN_TIER_MAX; t++) bytes += s->bytes[t];
    return bytes;
}

/* Times a step one way; again, where it has been: then the less counts, for others on the host are
 * in the way of a link now and then. */
static enum status try_way(struct choice *c, struct way *w, char *err)
{
    const struct eng_trial trial = trial_of(c->o, c->m, &c->mode->workload);
    double seconds = 0;
    enum status st = take(c, w, err);
    if (!st) st = eng_model_try_step(c->m->model, &c->m->kv, &trial, &seconds, err);
    if (st) return st;
    w->measured_s = w->measured_s > 0 ? fmin(w->measured_s, seconds) : seconds;
    log_info("startup",
             "auto: a step of %d sequences of %d tokens takes %.3f ms with %.1f MB of it copied",
             trial.seq_count, trial.context, seconds * MS,
             (double)staged_bytes(&c->mode->staged) / 1e6);
    return ST_OK;
}

/* Of tiers that kernels read. */
static void set_windows(struct srv_machine *m)
{
    for (int t = 1; t <= m->memory.remote.count; t++)
        if (m->control_read[t].window.ctas > 0) kn_set_window(m->kn, t, &m->control_read[t].window);
}

/* Times all ways, and those near the best once more.  Of equals the one of fewer copies. */
static enum status try_ways(struct choice *c, const struct way **best, char *err)
{
    struct srv_machine *m = c->m;
    enum status st = ST_OK;
    *best = &c->way[0];
    set_windows(m);
    for (int n = 0; n < ROUNDS * c->count && !st; n++) {
        struct way *w = &c->way[n % c->count];
        const double near_s = fmin((1 + NEAR) * (*best)->measured_s, SHORT_S);
        if (n >= c->count && w->measured_s > near_s) continue;
        st = try_way(c, w, err);
        if (n < c->count && w->measured_s < (*best)->measured_s) *best = w;
    }
    *best = &c->way[0];
    for (int i = 1; i < c->count; i++)
        if (c->way[i].measured_s < (1 - OFF_MIX_GAIN) * (*best)->measured_s) *best = &c->way[i];
    return st;
}

static enum status no_ring(enum status st, const struct options *o, const char *why, char *err)
{
    const bool prefetch = strcmp(o->offload_mode, "prefetch") == 0;
    return err_set(err, st, "--offload-mode %s: %.300s: %s", o->offload_mode, why,
                   prefetch ? "lower --prefetch-layers or --offload"
                            : "lower --offload-staging-bytes, or give 0, with which decode steps "
                              "read remote weights where they lie");
}

/* What is said of the way that was taken. */
static void note_way(struct choice *c, const struct way *w)
{
    static const double none[KN_TIER_MAX] = {0};
    struct srv_mode *mode = c->mode;
    for (int t = 1; t < KN_TIER_MAX; t++) {
        if (!c->stored[t]) continue;
        mode->copied_bytes[t] = c->layers[t] * (double)mode->staged.bytes[t] / (double)c->stored[t];
        mode->share[t] = mode->copied_bytes[t] / mode->step_bytes[t];
    }
    mode->measured_s = w->measured_s;
    if (!c->known) return;
    mode->predicted_s = off_mix_seconds(&c->mix, mode->share);
    mode->direct_s = off_mix_seconds(&c->mix, none);
}

/* Chooses the way, and has it staged. */
static enum status stage(const struct options *o, struct srv_machine *m,
                         const struct eng_traffic *traffic, struct srv_mode *mode, char *err)
{
    struct choice c = {.o = o, .m = m, .traffic = traffic, .mode = mode};
    const struct way *best = &c.way[0];
    char why[ERR_CAP] = "";
    enum status st = list_ways(&c, err);
    if (st) return st;
    if (mode->mode == OFF_MODE_AUTO && can_try(&c)) prune(&c);
    if (c.count > 1 && can_try(&c)) st = try_ways(&c, &best, why);
    else best = &c.way[c.count - 1];
    if (!st) st = take(&c, best, why);
    if (st == ST_UNSUPPORTED && mode->mode == OFF_MODE_AUTO) {
        log_warn("startup", "auto: all remote weights are read where they lie: %s", why);
        best = &c.way[0];
        st = ST_OK;
    }
    if (st) return no_ring(st, o, why, err);
    note_way(&c, best);
    return ST_OK;
}

/* --- steps of more sequences than are staged -------------------------------------------------- */

/* Products of that many tokens fetch what is remote, as those of prompts do, or read it in place:
 * where arithmetic and the link are both busy, no sum of bytes tells which is shorter. */
static enum status choose_fetch(const struct options *o, struct srv_machine *m,
                                struct srv_mode *mode, char *err)
{
    const struct eng_trial trial = trial_of(o, m, &mode->workload);
    double fetched_s, in_place_s = 0;
    if (mode->mode != OFF_MODE_AUTO || !m->staging_bytes || trial.seq_count <= KN_FETCH_TOKENS ||
        !has_pages(m))
        return ST_OK;
    set_windows(m);
    enum status st = eng_model_try_step(m->model, &m->kv, &trial, &fetched_s, err);
    kn_fetch_beyond(m->kn, trial.seq_count);
    if (!st) st = eng_model_try_step(m->model, &m->kv, &trial, &in_place_s, err);
    if (st || in_place_s > (1 - OFF_MIX_GAIN) * fetched_s) kn_fetch_beyond(m->kn, KN_FETCH_TOKENS);
    if (st) return st;
    log_info("startup",
             "auto: a step of %d sequences of %d tokens takes %.3f ms with remote weights fetched "
             "for all of them, %.3f with these read in place",
             trial.seq_count, trial.context, fetched_s * MS, in_place_s * MS);
    return ST_OK;
}

/* --- taking it on ----------------------------------------------------------------------------- */

static void set_controls(struct srv_machine *m, const struct srv_mode *mode)
{
    memcpy(m->control, m->control_read, sizeof m->control);
    for (int t = 1; t <= m->memory.remote.count; t++) {
        struct off_control *c = &m->control[t];
        if (mode->mode == OFF_MODE_UVA) {
            c->mode = OFF_CONTROL_NONE;
            c->window.ctas = c->window.blocks = KN_WINDOW_NO_BOUND;
        } else if (mode->share[t] >= MOSTLY && c->mode == OFF_CONTROL_ADAPTIVE)
            c->mode = OFF_CONTROL_STATIC;
    }
}

/* Plain loads and the ring are never both: the way back goes through neither. */
static enum status set_ways(const struct options *o, struct srv_machine *m,
                            const struct eng_traffic *traffic, struct srv_mode *mode, char *err)
{
    const uint64_t prompts = off_mode_fetches_prompts(mode->mode) ? m->memory.staging : 0;
    kn_fetch_beyond(m->kn, KN_FETCH_TOKENS);
    enum status st =
        srv_staging_open(o, traffic, m->memory.gpu, prompts, m->kn, &m->staging_bytes, err);
    if (st || (st = kn_set_remote_access(m->kn, KN_REMOTE_BULK, err)) ||
        (st = stage(o, m, traffic, mode, err)) || (st = choose_fetch(o, m, mode, err)))
        return st;
    if (mode->mode == OFF_MODE_UVA) st = kn_set_remote_access(m->kn, KN_REMOTE_LOADS, err);
    return st;
}

/* Of KV, attention reads local pages alone from HBM. */
static void leave_out_far_kv(const struct srv_machine *m, const struct eng_traffic *traffic,
                             struct srv_mode *mode)
{
    const struct eng_step *w = &mode->workload;
    const double all = (double)w->seq_count * (double)eng_traffic_kv_bytes(traffic, w->context);
    double share[KN_TIER_MAX];
    srv_kv_shares(&m->memory, w, share);
    mode->local_kv_bytes = share[0] * all;
    mode->step_bytes[0] -= all - mode->local_kv_bytes;
}

enum status srv_mode_apply(const struct options *o, struct srv_machine *m, char *err)
{
    struct srv_mode next = {.workload = workload_of(o, m)};
    struct eng_traffic traffic;
    uint64_t bytes[KN_TIER_MAX];
    CHECK(!m->engine);
    enum status st = srv_mode_read(o, m->memory.gpu, &next.mode, err);
    if (st) return st;
    if (m->mode.applied && m->mode.mode == next.mode &&
        m->mode.workload.seq_count == next.workload.seq_count &&
        m->mode.workload.context == next.workload.context)
        return ST_OK;
    m->mode.applied = false;
    eng_model_traffic(m->model, m->kv.dtype, &traffic);
    eng_traffic_decode(&traffic, next.workload.seq_count, next.workload.context, bytes);
    for (int t = 0; t < KN_TIER_MAX; t++) next.step_bytes[t] = (double)bytes[t];
    leave_out_far_kv(m, &traffic, &next);
    if ((st = set_ways(o, m, &traffic, &next, err))) return st;
    set_controls(m, &next);
    next.applied = true;
    m->mode = next;
    srv_mode_log(m);
    return ST_OK;
}

void srv_mode_log(const struct srv_machine *m)
{
    const struct srv_mode *mode = &m->mode;
    const char *name = off_mode_name(mode->mode);
    double remote_bytes = 0;
    for (int t = 1; t < off_tiers_count(m->tiers); t++) {
        const char *tier = off_tier_name(m->tiers, t);
        remote_bytes += mode->step_bytes[t];
        if (mode->step_bytes[t] == 0) continue;
        if (mode->mode == OFF_MODE_UVA)
            log_info("startup", "uva: %s's weights are read by plain loads, with no window", tier);
        else if (mode->share[t] == 0)
            log_info("startup", "%s: %s's weights are read where they lie", name, tier);
        else
            log_info(
                "startup",
                "%s: %.1f %% of the %.1f MB that a decode step of %d sequence%s reads of %s come "
                "by the copy engine, through %.1f MiB of GPU memory",
                name, 100 * mode->share[t], mode->step_bytes[t] / 1e6, mode->workload.seq_count,
                mode->workload.seq_count == 1 ? "" : "s", tier,
                (double)mode->staged.ring_bytes / MIB);
    }
    if (remote_bytes <= 0 && mode->mode != OFF_MODE_AUTO)
        log_info("startup", "--offload-mode %s: no weights are remote, and nothing is different",
                 name);
    if (mode->staged.ring_bytes && mode->predicted_s > 0)
        log_info("startup",
                 "%s: at least %.3f ms a step by the links' rates, %.3f with none copied", name,
                 mode->predicted_s * MS, mode->direct_s * MS);
}
