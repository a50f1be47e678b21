/*
 * kv_tiers.h - KV pages in two tiers as start-up sees them: how many of those that a decode step
 * reads will lie behind the link, which the engine decides as it runs (offload/residency.h), by the
 * same rule.
 */
#ifndef DAKD_SERVER_KV_TIERS_H
#define DAKD_SERVER_KV_TIERS_H

#include "server/memory.h"

/* What moving pages costs and saves; of a link that was not measured, what its kind gives.  Zero
 * where no tier but local memory has any. */
struct off_residency srv_kv_residency(const struct srv_memory *m, const struct kn_kv *kv);
/* Of the pages that a steady step reads, those behind the link: the best number, or what local
 * memory has no room for beside a page each in reserve.  0 where steps read local ones alone. */
int64_t srv_kv_far_pages(const struct srv_memory *m, const struct eng_step *step);
/* Of the KV bytes that such a step reads, the share by tier; [0] is 1 where it is all local. */
void srv_kv_shares(const struct srv_memory *m, const struct eng_step *step,
                   double share[KN_TIER_MAX]);
/* Puts them into a plan's operations. */
void srv_kv_place(const struct srv_memory *m, const struct eng_step *step, struct off_plan *plan);
/* Has pages give way where a mode's copies bring weights over their link. */
void srv_kv_make_way(const struct srv_memory *m, const struct srv_mode *mode,
                     struct off_residency *r);

#endif
