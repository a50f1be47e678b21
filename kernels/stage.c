#include "kernels/stage.h"

#include "config/check.h"

bool kn_stage_tiles_of(const struct kn_stage_item *items, int32_t count, struct kn_stage_tiles *all,
                       struct kn_stage_tiles *each)
{
    const struct kn_weight *w = items[0].w;
    const struct kn_span *local = &w->span[0];
    struct kn_stage_tiles run = {local->tile_begin, local->tile_begin + local->tile_count};
    bool left = false, right = false; /* the run has grown that way */
    for (int32_t i = 0; i < count; i++) {
        const struct kn_span *s = &w->span[items[i].tier];
        const int32_t end = s->tile_begin + s->tile_count, tiles = items[i].tiles;
        if (run.begin == run.end) run = (struct kn_stage_tiles){s->tile_begin, s->tile_begin};
        if (s->tile_begin == run.end) {
            each[i] = (struct kn_stage_tiles){run.end, run.end + tiles};
            run.end += tiles;
            right = true;
        } else if (end == run.begin) {
            each[i] = (struct kn_stage_tiles){run.begin - tiles, run.begin};
            run.begin -= tiles;
            left = true;
        } else {
            return false;
        }
    }
    /* Local tiles between two staged runs: these are not one. */
    if (left && right && local->tile_count > 0) return false;
    *all = each[0];
    for (int32_t i = 1; i < count; i++) {
        if (each[i].begin < all->begin) all->begin = each[i].begin;
        if (each[i].end > all->end) all->end = each[i].end;
    }
    return true;
}

/* Puts all places into laps of `bytes`, and returns the number of laps. */
static int32_t put(struct kn_stage_place *places, int32_t count, size_t bytes)
{
    int32_t laps = 1;
    size_t at = 0;
    for (int32_t i = 0; i < count; i++) {
        if (places[i].bytes > bytes - at) at = 0, laps++;
        places[i].begin = at;
        at += places[i].bytes;
    }
    return laps;
}

/* The smallest ring, in blocks, that takes no more laps; it takes more the smaller it is. */
static size_t even_laps(struct kn_stage_place *places, int32_t count, size_t least, size_t most)
{
    const int32_t laps = put(places, count, most * KN_BLOCK_BYTES);
    while (least < most) {
        size_t half = least + (most - least) / 2;
        if (put(places, count, half * KN_BLOCK_BYTES) > laps) least = half + 1;
        else most = half;
    }
    (void)put(places, count, least * KN_BLOCK_BYTES);
    return least;
}

/* The last place before i, back to i itself a step ago, that shares a byte with it. */
static int32_t way_of(const struct kn_stage_place *places, int32_t count, int32_t i)
{
    const size_t begin = places[i].begin, end = begin + places[i].bytes;
    for (int32_t back = 1; back < count; back++) {
        int32_t k = (i - back + count) % count;
        if (places[k].begin < end && begin < places[k].begin + places[k].bytes) return k;
    }
    return i;
}

int32_t kn_stage_layout(const struct kn_stage_item *items, int32_t count, size_t bytes,
                        struct kn_stage_place *places, size_t *used)
{
    int32_t n = 0, largest = 0;
    *used = 0;
    for (int32_t i = 0; i < count; n++) {
        struct kn_stage_place *p = &places[n];
        struct kn_stage_tiles each[KN_TIER_MAX];
        int32_t end = i + 1;
        while (end < count && items[end].w == items[i].w) end++;
        *p = (struct kn_stage_place){.w = items[i].w, .item = i, .item_count = end - i};
        CHECK(end - i < KN_TIER_MAX && kn_stage_tiles_of(&items[i], end - i, &p->tiles, each));
        p->bytes = (size_t)(p->tiles.end - p->tiles.begin) * kn_weight_tile_bytes(p->w);
        if (p->bytes > places[largest].bytes) largest = n;
        i = end;
    }
    if (n == 0) return 0;
    if (places[largest].bytes > bytes) {
        places[0] = places[largest];
        return -1;
    }
    size_t blocks =
        even_laps(places, n, places[largest].bytes / KN_BLOCK_BYTES, bytes / KN_BLOCK_BYTES);
    *used = blocks * KN_BLOCK_BYTES;
    for (int32_t i = 0; i < n; i++) places[i].way = way_of(places, n, i);
    return n;
}
