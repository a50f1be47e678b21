#include "server/kv_tiers.h"

#include <math.h>

#include "config/check.h"

/* What a step must win, a layer, before pages leave that have room: attention with pages behind a
 * link cannot have all its CTAs wait for each other (kernels/cuda/attention_plan.cu), which costs
 * it some microseconds. */
#define WORTH_LAYER_S 4e-6

struct off_residency srv_kv_residency(const struct srv_memory *m, const struct kn_kv *kv)
{
    if (!m->kv_tier) return (struct off_residency){0};
    const struct off_tier_spec *spec = &m->remote.spec[m->kv_tier - 1];
    const struct off_link *link = off_links_of(&m->links, spec);
    const double nominal = srv_nominal_link_bytes_per_s(spec->mem);
    return (struct off_residency){.page_bytes = kn_kv_page_bytes(kv),
                                  .local_bytes_per_s =
                                      link ? m->links.hbm_bytes_per_s : SRV_NOMINAL_HBM_BYTES_PER_S,
                                  .link_bytes_per_s = link ? link->read_bytes_per_s : nominal,
                                  .copy_bytes_per_s = link ? link->busy_copy_bytes_per_s : nominal,
                                  .worth_s = WORTH_LAYER_S * kv->layer_count};
}

static int64_t pages_of(const struct eng_step *step)
{
    return step->seq_count * (int64_t)div_up((size_t)step->context, KN_PAGE_TOKENS);
}

int64_t srv_kv_far_pages(const struct srv_memory *m, const struct eng_step *step)
{
    const int64_t pages = pages_of(step), full = pages - step->seq_count;
    if (!m->kv_in_place) return 0;
    const int64_t near = m->page_count > step->seq_count ? m->page_count - step->seq_count : 0;
    int64_t far = off_residency_steady(&m->residency, pages, near);
    if (far > full) far = full;
    return far < m->far_page_count ? far : m->far_page_count;
}

void srv_kv_shares(const struct srv_memory *m, const struct eng_step *step,
                   double share[KN_TIER_MAX])
{
    const double far = (double)srv_kv_far_pages(m, step) / (double)pages_of(step);
    for (int t = 0; t < KN_TIER_MAX; t++) share[t] = t == m->kv_tier ? far : 0;
    share[0] = 1 - far;
}

void srv_kv_place(const struct srv_memory *m, const struct eng_step *step, struct off_plan *plan)
{
    if (m->kv_in_place) eng_operations_place_kv(plan, m->kv_tier, srv_kv_far_pages(m, step));
}

void srv_kv_make_way(const struct srv_memory *m, const struct srv_mode *mode,
                     struct off_residency *r)
{
    const int t = m->kv_tier;
    if (!t || mode->copied_bytes[t] <= 0) return;
    r->busy_s = mode->step_bytes[t] / r->link_bytes_per_s;
    r->other_s = fmax(mode->step_bytes[0] - mode->local_kv_bytes, 0) / r->local_bytes_per_s;
}
