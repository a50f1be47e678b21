/*
 * pages.h - which KV pages are free, tier by tier.
 *
 * One stack of free indices per tier, sized at open; taking and giving back are O(1) and never
 * allocate.  The page given back last is taken first, while its lines may still be in a cache.  A
 * page given back twice, or never taken, stops at CHECK.
 *
 * Not thread-safe: the scheduler's, hence the engine thread's.
 */
#ifndef DAKD_ENGINE_PAGES_H
#define DAKD_ENGINE_PAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

/* Pages a tier can have: what the index bits of kn_page hold. */
#define ENG_PAGES_TIER_MAX 0x0FFFFFFF

struct eng_pages;

/* count[t]: pages of tier t, 0..ENG_PAGES_TIER_MAX, all free at first.  ST_NOMEM. */
MUST_USE enum status eng_pages_open(const int32_t count[KN_TIER_MAX], struct eng_pages **out);
void eng_pages_close(struct eng_pages *p);

/* False where every page of the tier is taken. */
bool eng_pages_take(struct eng_pages *p, int tier, kn_page *out);
/* One of the lowest-numbered remote tier that has one. */
bool eng_pages_take_far(struct eng_pages *p, kn_page *out);
void eng_pages_give(struct eng_pages *p, kn_page page);

int32_t eng_pages_free(const struct eng_pages *p);  /* of all tiers */
int32_t eng_pages_total(const struct eng_pages *p); /* of all tiers */
int32_t eng_pages_tier_free(const struct eng_pages *p, int tier);
int32_t eng_pages_tier_total(const struct eng_pages *p, int tier);
bool eng_pages_is_taken(const struct eng_pages *p, kn_page page);
/* Dense number of a page, 0 .. total - 1: tier 0's pages, then tier 1's, ... */
int32_t eng_pages_slot(const struct eng_pages *p, kn_page page);

/* CHECKs that every page is either on its tier's stack, once, or taken.  Linear in the pages. */
void eng_pages_check(const struct eng_pages *p);

#endif
