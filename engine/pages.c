/*
 * pages.c - see pages.h.
 *
 * Tier t's stack is free_index[first[t] .. first[t] + free_count[t]); `taken` has one byte per page
 * beside it, so that giving back a page that is free is noticed where it happens and not when two
 * sequences write to it.
 */
#include "engine/pages.h"

#include <stdlib.h>

#include "config/check.h"

struct eng_pages {
    int32_t total;
    int32_t free_total;
    int32_t tier_total[KN_TIER_MAX];
    int32_t first[KN_TIER_MAX]; /* slot of the tier's page 0 */
    int32_t free_count[KN_TIER_MAX];
    uint32_t *free_index; /* owned, [total]; by tier, top of the stack last */
    uint8_t *taken;       /* owned, [total], by slot */
    uint8_t *mark;        /* owned, [total]: scratch of eng_pages_check */
};

enum status eng_pages_open(const int32_t count[KN_TIER_MAX], struct eng_pages **out)
{
    *out = NULL;
    struct eng_pages *p = calloc(1, sizeof *p);
    if (!p) return ST_NOMEM;
    for (int t = 0; t < KN_TIER_MAX; t++) {
        CHECK(count[t] >= 0 && count[t] <= ENG_PAGES_TIER_MAX);
        p->tier_total[t] = p->free_count[t] = count[t];
        p->first[t] = p->total;
        p->total += count[t];
    }
    p->free_total = p->total;
    size_t n = size_max((size_t)p->total, 1);
    p->free_index = malloc(n * sizeof *p->free_index);
    p->taken = calloc(n, 1);
    p->mark = calloc(n, 1);
    if (!p->free_index || !p->taken || !p->mark) {
        eng_pages_close(p);
        return ST_NOMEM;
    }
    for (int t = 0; t < KN_TIER_MAX; t++)
        for (int32_t i = 0; i < count[t]; i++)
            p->free_index[p->first[t] + i] = (uint32_t)(count[t] - 1 - i);
    *out = p;
    return ST_OK;
}

void eng_pages_close(struct eng_pages *p)
{
    if (!p) return;
    free(p->mark);
    free(p->taken);
    free(p->free_index);
    free(p);
}

bool eng_pages_take(struct eng_pages *p, int tier, kn_page *out)
{
    CHECK(tier >= 0 && tier < KN_TIER_MAX);
    if (p->free_count[tier] == 0) return false;
    uint32_t index = p->free_index[p->first[tier] + --p->free_count[tier]];
    p->free_total--;
    p->taken[p->first[tier] + (int32_t)index] = 1;
    *out = kn_page_make((unsigned)tier, index);
    return true;
}

bool eng_pages_take_far(struct eng_pages *p, kn_page *out)
{
    for (int t = 1; t < KN_TIER_MAX; t++)
        if (eng_pages_take(p, t, out)) return true;
    return false;
}

void eng_pages_give(struct eng_pages *p, kn_page page)
{
    int32_t slot = eng_pages_slot(p, page);
    unsigned t = kn_page_tier(page);
    CHECK(p->taken[slot]);
    p->taken[slot] = 0;
    p->free_index[p->first[t] + p->free_count[t]++] = kn_page_index(page);
    p->free_total++;
}

int32_t eng_pages_free(const struct eng_pages *p)
{
    return p->free_total;
}

int32_t eng_pages_total(const struct eng_pages *p)
{
    return p->total;
}

int32_t eng_pages_tier_free(const struct eng_pages *p, int tier)
{
    CHECK(tier >= 0 && tier < KN_TIER_MAX);
    return p->free_count[tier];
}

int32_t eng_pages_tier_total(const struct eng_pages *p, int tier)
{
    CHECK(tier >= 0 && tier < KN_TIER_MAX);
    return p->tier_total[tier];
}

bool eng_pages_is_taken(const struct eng_pages *p, kn_page page)
{
    return p->taken[eng_pages_slot(p, page)];
}

int32_t eng_pages_slot(const struct eng_pages *p, kn_page page)
{
    unsigned t = kn_page_tier(page);
    CHECK(t < KN_TIER_MAX && kn_page_index(page) < (uint32_t)p->tier_total[t]);
    return p->first[t] + (int32_t)kn_page_index(page);
}

void eng_pages_check(const struct eng_pages *p)
{
    int32_t free_total = 0;
    for (int32_t i = 0; i < p->total; i++) p->mark[i] = p->taken[i];
    for (int t = 0; t < KN_TIER_MAX; t++) {
        CHECK(p->free_count[t] >= 0 && p->free_count[t] <= p->tier_total[t]);
        free_total += p->free_count[t];
        for (int32_t i = 0; i < p->free_count[t]; i++) {
            uint32_t index = p->free_index[p->first[t] + i];
            CHECK(index < (uint32_t)p->tier_total[t]);
            uint8_t *mark = &p->mark[p->first[t] + (int32_t)index];
            CHECK(!*mark);
            *mark = 1;
        }
    }
    CHECK(free_total == p->free_total);
    for (int32_t i = 0; i < p->total; i++) CHECK(p->mark[i]);
}
