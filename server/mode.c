#include "server/mode.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "config/check.h"
#include "config/log.h"
#include "config/size.h"
#include "server/kv_tiers.h"
#include "server/staging.h"
#include "server/startup.h"

#define MIB 1048576.0
#define MS 1e3
/* The ring of auto: of two layers, so that copies are a layer ahead, at most so much. */
#define AUTO_LAYERS 2
#define AUTO_BYTES_MAX (512ull << 20)
/* What rounding to whole tiles may add to a layer's four products. */
#define LAYER_SLACK_BYTES (16ull << 20)
#define MOSTLY 0.9 /* copied: what is left tells too little of its link to adapt to */

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
    uint64_t most = AUTO_BYTES_MAX;
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

/* A decode step on this machine: its bytes, and what of them may be copied.  False where the links
 * are unknown. */
static bool describe(const struct srv_machine *m, const struct srv_mode *mode,
                     const struct eng_stage_room *room, const double may[KN_TIER_MAX],
                     struct off_mix *mix)
{
    const struct srv_memory *mem = &m->memory;
    *mix = (struct off_mix){.hbm_bytes_per_s = mem->links.hbm_bytes_per_s,
                            .hbm_bytes = mode->step_bytes[0],
                            .tier_count = 1 + mem->remote.count};
    for (int t = 1; t < mix->tier_count; t++) {
        if (mode->step_bytes[t] <= 0) continue;
        const struct off_link *link = off_links_of(&mem->links, &mem->remote.spec[t - 1]);
        if (!link) return false;
        off_mix_set_link(&mix->tier[t], &mem->links, link);
        mix->tier[t].bytes = mode->step_bytes[t];
        if (off_mix_is_beyond(mix, t))
            mix->tier[t].share_max = fmin(may[t] / mode->step_bytes[t], 1);
        mix->tier[t].group_count = eng_model_info(m->model)->layer_count;
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

static enum status no_ring(enum status st, const struct options *o, const char *why, char *err)
{
    const bool prefetch = strcmp(o->offload_mode, "prefetch") == 0;
    return err_set(err, st, "--offload-mode %s: %.300s: %s", o->offload_mode, why,
                   prefetch ? "lower --prefetch-layers or --offload"
                            : "lower --offload-staging-bytes, or give 0, with which decode steps "
                              "read remote weights where they lie");
}

/* Chooses the share, and has it staged. */
static enum status stage(const struct options *o, struct srv_machine *m,
                         const struct eng_traffic *traffic, struct srv_mode *mode, char *err)
{
    const uint64_t ring = m->memory.ring[mode->mode];
    struct eng_stage_room room;
    double layers[KN_TIER_MAX] = {0}, may[KN_TIER_MAX] = {0};
    struct eng_stage_want want = {.layers = AUTO_LAYERS,
                                  .ring_bytes_max = ring,
                                  .copy_bytes_min = least_copy(m),
                                  .product_bytes_max = ring / 2};
    struct off_mix mix;
    char why[ERR_CAP] = "";
    if (mode->mode == OFF_MODE_PREFETCH) {
        want.layers = (int32_t)o->prefetch_layers + 1;
        want.copy_bytes_min = 0;
        want.product_bytes_max = UINT64_MAX;
    }
    enum status st = eng_stage_room(m->model, &want, &room, err);
    if (st) return st;
    for (int t = 1; t < KN_TIER_MAX; t++) {
        if (!room.bytes[t]) continue;
        layers[t] = (double)(traffic->weight_bytes[t] - traffic->head_bytes[t]);
        may[t] = layers[t] * (double)room.room[t] / (double)room.bytes[t];
    }
    const bool known = describe(m, mode, &room, may, &mix);
    if (known && mode->mode == OFF_MODE_AUTO) off_mix_solve(&mix);
    for (int t = 1; t < KN_TIER_MAX; t++) {
        if (mode->mode == OFF_MODE_PREFETCH && room.bytes[t]) want.share[t] = 1;
        if (layers[t] > 0 && mix.share[t] > 0)
            want.share[t] = fmin(mix.share[t] * mode->step_bytes[t] / layers[t], 1);
    }
    st = eng_model_stage(m->model, &want, &mode->staged, why);
    if (st == ST_UNSUPPORTED && mode->mode == OFF_MODE_AUTO) {
        log_warn("startup", "auto: all remote weights are read where they lie: %s", why);
        st = ST_OK;
    }
    if (st) return no_ring(st, o, why, err);
    for (int t = 1; t < KN_TIER_MAX; t++) {
        if (!room.bytes[t]) continue;
        mode->copied_bytes[t] = layers[t] * (double)mode->staged.bytes[t] / (double)room.bytes[t];
        mode->share[t] = mode->copied_bytes[t] / mode->step_bytes[t];
    }
    if (!known) return ST_OK;
    mode->predicted_s = off_mix_seconds(&mix, mode->share);
    mode->direct_s = off_mix_seconds(&mix, (const double[KN_TIER_MAX]){0});
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
    enum status st =
        srv_staging_open(o, traffic, m->memory.gpu, prompts, m->kn, &m->staging_bytes, err);
    if (st || (st = kn_set_remote_access(m->kn, KN_REMOTE_BULK, err)) ||
        (st = stage(o, m, traffic, mode, err)))
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
