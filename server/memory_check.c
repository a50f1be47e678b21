/*
 * memory_check.c - start-up's check (memory.h): what was loaded is held against what was decided,
 * weights by operation and tier, KV by its pools, and what a step of the planned workload reads.
 */
#include "server/memory.h"

#include <math.h>

#include "config/log.h"
#include "engine/traffic.h"
#include "server/kv_tiers.h"

#define GIB 1073741824.0
#define MIB 1048576.0

enum status srv_share_check(const struct srv_share *s, const char *name, uint64_t tolerance,
                            char *err)
{
    uint64_t off = s->placed > s->requested ? s->placed - s->requested : s->requested - s->placed;
    double missed = fabs(s->placed_read - s->predicted_read);
    if (off > tolerance)
        return err_set(err, ST_DEVICE,
                       "tier %s was to hold %llu bytes of weights and holds %llu: this is a fault "
                       "of dakd, not of the settings",
                       name, (unsigned long long)s->requested, (unsigned long long)s->placed);
    if (missed > MIB + 1e-3 * s->predicted_read)
        return err_set(err, ST_DEVICE,
                       "a decode step was to read %.0f bytes from tier %s and reads %.0f: this is "
                       "a fault of dakd, not of the settings",
                       s->predicted_read, name, s->placed_read);
    return ST_OK;
}

static enum status check_operations(const struct srv_memory *m, const struct off_tiers *tiers,
                                    const struct eng_model *model, char *err)
{
    struct off_plan placed = m->plan;
    eng_operations_count(eng_model_shape(model), eng_model_weights(model), &placed);
    srv_kv_place(m, &m->workload, &placed);
    for (int i = 0; i < placed.op_count; i++)
        for (int t = 0; t < off_tiers_count(tiers); t++)
            if (placed.op[i].tiles[t] != m->plan.op[i].tiles[t])
                return err_set(err, ST_DEVICE,
                               "%s was to have %lld tiles in tier %s and has %lld: this is a fault "
                               "of dakd, not of the settings",
                               placed.op[i].name, (long long)m->plan.op[i].tiles[t],
                               off_tier_name(tiers, t), (long long)placed.op[i].tiles[t]);
    return ST_OK;
}

static void log_shares(const struct srv_memory *m, const struct off_tiers *tiers)
{
    log_info("startup", "%-8s %12s %12s %12s   %26s   %23s", "", "weights GiB", "", "capacity",
             "a step reads MB", "KV GiB, of it read MB");
    log_info("startup", "%-8s %12s %12s %12s   %12s %13s   %11s %11s", "tier", "requested",
             "placed", "GiB", "predicted", "of the placed", "", "");
    for (int t = 0; t < off_tiers_count(tiers); t++) {
        const struct srv_share *s = &m->share[t];
        log_info("startup", "%-8s %12.3f %12.3f %12.3f   %12.3f %13.3f   %11.3f %11.3f",
                 off_tier_name(tiers, t), (double)s->requested / GIB, (double)s->placed / GIB,
                 (double)off_tier_capacity(tiers, t) / GIB, s->predicted_read / 1e6,
                 s->placed_read / 1e6, (double)s->kv_bytes / GIB, s->kv_read / 1e6);
    }
}

/* What a step of the planned workload reads of what was loaded, and of the KV pools there are. */
static void measure_shares(struct srv_memory *m, const struct off_tiers *tiers,
                           const struct eng_model *model)
{
    const struct eng_step *w = &m->workload;
    struct eng_traffic traffic;
    uint64_t read[KN_TIER_MAX];
    double kv_share[KN_TIER_MAX];
    eng_model_traffic(model, w->kv_dtype, &traffic);
    eng_traffic_decode(&traffic, w->seq_count, w->context, read);
    const double kv = (double)w->seq_count * (double)eng_traffic_kv_bytes(&traffic, w->context);
    srv_kv_shares(m, w, kv_share);
    for (int t = 0; t < off_tiers_count(tiers); t++) {
        struct srv_share *s = &m->share[t];
        s->placed = eng_model_tier_bytes(model, t);
        s->kv_read = kv_share[t] * kv;
        s->placed_read = (double)read[t] - (t ? 0 : kv) + s->kv_read;
    }
}

/* The pools of KV are as large as was decided. */
static enum status check_kv(struct srv_memory *m, const struct off_tiers *tiers,
                            const struct kn_kv *kv, char *err)
{
    const uint64_t page = kn_kv_page_bytes(kv);
    for (int t = 0; t < off_tiers_count(tiers); t++) {
        const int32_t pages = t == 0 ? m->page_count : t == m->kv_tier ? m->far_page_count : 0;
        const uint64_t pool = off_tier_pool_bytes(tiers, t);
        m->share[t].kv_bytes = (uint64_t)pages * page;
        if (t > 0 && pool != m->share[t].kv_bytes)
            return err_set(err, ST_DEVICE,
                           "tier %s was to hold %llu bytes of KV and has a pool of %llu: this is a "
                           "fault of dakd, not of the settings",
                           off_tier_name(tiers, t), (unsigned long long)m->share[t].kv_bytes,
                           (unsigned long long)pool);
        if (pages && !kv->base[t])
            return err_set(err, ST_DEVICE,
                           "tier %s was to hold %d pages of KV and has no pool: this is a fault of "
                           "dakd, not of the settings",
                           off_tier_name(tiers, t), pages);
    }
    return ST_OK;
}

enum status srv_memory_check(struct srv_memory *m, const struct off_tiers *tiers,
                             const struct eng_model *model, const struct kn_kv *kv, char *err)
{
    const uint64_t tile = eng_operations_tile_max(&m->plan);
    measure_shares(m, tiers, model);
    enum status st = check_kv(m, tiers, kv, err);
    log_shares(m, tiers);
    if (!st) st = check_operations(m, tiers, model, err);
    /* A share is met to within half a tile in every tier, and so to within one in the first. */
    for (int t = 0; t < off_tiers_count(tiers) && !st; t++)
        st = srv_share_check(&m->share[t], off_tier_name(tiers, t),
                             m->planned ? 0 : tile * (uint64_t)(m->remote.count + 1), err);
    return st;
}
