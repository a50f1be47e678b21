/*
 * stage.h - what kn_stage brings to local memory and where it lies there: the places of one step in
 * a ring of bytes, which every step uses alike.  Pure: who copies and who reads is the backend's.
 *
 *     step n    | 0 |  1  | 2 |   3   | 4 |  5  |          a lap of the ring ..
 *               |   6    |  7  | 8 | 9 |   10  |           .. and the next, to the same bytes
 *     step n+1  | 0 |  1  | 2 | ...
 *
 * A place holds all that is staged of one weight, as one run of tiles.  Items come in one order,
 * step after step, so place and way of each are known beforehand.  The way of a place is the last
 * place before it in that order, this step's or the step's before, that shares a byte with it: when
 * that has been read, so have all others in the way, for places are read in order.
 *
 * Laps are made even: of the rings that take no more laps than all of the bytes would, the smallest
 * is used.  A last lap of a few bytes would leave its neighbours, the first places of the next
 * step, to be filled only when it has been read; with even laps a copy is always about a lap ahead.
 *
 * Invariants
 *  1. Whoever fills place i when its way has been read, and reads it then, shares no byte with
 *     another at any time.
 *  2. A way is before its place, hence nobody waits for ever: the first place that is not read yet
 *     waits for places that are.
 */
#ifndef DAKD_KERNELS_STAGE_H
#define DAKD_KERNELS_STAGE_H

#include "kernels/kernels.h"

/* Tiles [begin, end) of a weight. */
struct kn_stage_tiles {
    int32_t begin, end;
};

struct kn_stage_place {
    const struct kn_weight *w; /* borrowed */
    int32_t item, item_count;  /* those of the weight */
    struct kn_stage_tiles tiles;
    size_t begin, bytes; /* in the ring */
    int32_t way;         /* a place; of the step before where it is not below this one */
};

/* The tiles that items[0..count), all of one weight, name together, and in `each` [count] those of
 * each; false where they are not one run next to the local tiles, as kn_stage wants them. */
MUST_USE bool kn_stage_tiles_of(const struct kn_stage_item *items, int32_t count,
                                struct kn_stage_tiles *all, struct kn_stage_tiles *each);

/* Lays out the items of a step in a ring; places [count] has room for as many as there are items.
 * Returns how many there are, or -1 where one has more than `bytes`; then places[0] is the largest.
 * *used: of these bytes. */
MUST_USE int32_t kn_stage_layout(const struct kn_stage_item *items, int32_t count, size_t bytes,
                                 struct kn_stage_place *places, size_t *used);

#endif
