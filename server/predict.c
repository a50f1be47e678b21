/*
 * predict.c - see predict.h.
 *
 * A model that fits in HBM needs no link, and so nothing was measured when its step is to be
 * foretold.  HBM's rate is then taken from the file that probes are kept in, or measured, which
 * takes some hundredths of a second once.
 */
#include "server/predict.h"

#include <math.h>

#include "config/log.h"
#include "server/kv_tiers.h"
#include "server/probe.h"

/* Of the layers' products in a tier. */
static double layer_bytes(const struct off_plan *placed, int tier)
{
    double bytes = 0;
    for (int i = 0; i < placed->op_count; i++)
        if (placed->op[i].tag >= ENG_PART_LAYER) bytes += off_plan_read_bytes(&placed->op[i], tier);
    return bytes;
}

/* As the machine's mode has it.  A link with both ways of reading at once gives what the copy
 * engine gets alone, within 3 % over PCIe and NVLink. */
static struct eng_staging staging_of(const struct srv_machine *m, const struct off_plan *placed)
{
    struct eng_staging s = {0};
    for (int t = 1; t < placed->tier_count; t++) {
        const double bytes = layer_bytes(placed, t);
        const struct off_link *link = off_links_find(&m->memory.links, off_tier_name(m->tiers, t));
        if (!(m->mode.copied_bytes[t] > 0 && bytes > 0)) continue;
        s.share[t] = fmin(m->mode.copied_bytes[t] / bytes, 1);
        s.bytes_per_s[t] = link ? link->copy_bytes_per_s : placed->tier[t].bytes_per_s;
    }
    return s;
}

/* By the bytes that were read of each tier. */
static void place_read(const struct srv_memory *m, const uint64_t bytes[KN_TIER_MAX],
                       struct off_plan *placed)
{
    double all = 0;
    for (int t = 0; t < KN_TIER_MAX; t++) all += (double)bytes[t];
    if (!m->kv_tier || all <= 0) return;
    const double share = (double)bytes[m->kv_tier] / all;
    eng_operations_place_kv(placed, m->kv_tier,
                            llround(share * eng_operation_kv(placed)->tile_count));
}

struct eng_prediction srv_predict(const struct srv_machine *m, const struct off_bandwidth *b,
                                  int32_t seq_count, int32_t context,
                                  const uint64_t kv_bytes[KN_TIER_MAX])
{
    const struct eng_shape *shape = eng_model_shape(m->model);
    const struct eng_step step = {.seq_count = seq_count,
                                  .context = context,
                                  .kv_dtype = m->kv.dtype,
                                  .flops_per_s = ENG_PREDICT_FLOPS_PER_S};
    struct off_plan placed = {.tier_count = b->tier_count};
    struct eng_prediction p = {0};
    if (!m->memory.gpu || m->mode.mode == OFF_MODE_UVA) return p;
    if (eng_operations(shape, &step, &placed, NULL)) return p;
    eng_operations_count(shape, eng_model_weights(m->model), &placed);
    if (kv_bytes) place_read(&m->memory, kv_bytes, &placed);
    else srv_kv_place(&m->memory, &step, &placed);
    for (int t = 0; t < b->tier_count; t++) placed.tier[t].bytes_per_s = b->read_bytes_per_s[t];
    const struct eng_staging staging = staging_of(m, &placed);
    (void)eng_predict(shape, &step, &placed, &staging, &p); /* or it is 0 */
    return p;
}

void srv_predict_rates(const struct options *o, const struct srv_machine *m,
                       struct off_bandwidth *out)
{
    const struct srv_memory *mem = &m->memory;
    const struct off_remote none = {0};
    struct off_links links = mem->links;
    char why[ERR_CAP] = "";
    *out = (struct off_bandwidth){.tier_count = 1 + mem->remote.count};
    if (!mem->gpu) return;
    if (!(links.hbm_bytes_per_s > 0) && srv_probe_links(o, m->kn, &none, &links, why)) {
        log_info("startup", "HBM's rate is not known: %s", why);
        return;
    }
    out->read_bytes_per_s[0] = links.hbm_bytes_per_s;
    for (int t = 1; t < out->tier_count; t++) {
        const struct off_link *link = off_links_of(&links, &mem->remote.spec[t - 1]);
        if (link) out->read_bytes_per_s[t] = link->read_bytes_per_s;
    }
}

void srv_predict_report(const struct srv_machine *m, const struct off_bandwidth *b)
{
    const struct eng_step *w = &m->memory.workload;
    const struct eng_prediction p = srv_predict(m, b, w->seq_count, w->context, NULL);
    if (!m->memory.gpu)
        log_info("startup", "no step's time is predicted: that is for GPUs, and the CPU computes");
    else if (!(p.seconds > 0))
        log_info("startup", "no time is predicted of a step of %d sequence%s of %d tokens",
                 w->seq_count, w->seq_count == 1 ? "" : "s", w->context);
    else
        log_info("startup",
                 "predicted %.3g ms a step at the planned workload, %d sequence%s of %d tokens: "
                 "products %.3g, attention %.3g, waiting for links %.3g, the rest %.3g",
                 p.seconds * 1e3, w->seq_count, w->seq_count == 1 ? "" : "s", w->context,
                 p.products_s * 1e3, p.attention_s * 1e3, p.links_s * 1e3, p.between_s * 1e3);
}
