/*
 * place.h - which row tiles of each weight lie in which tier, for a stated remote share.
 *
 * `--offload X` puts the share X of the weights' bytes into the remote tiers, the same share of
 * every weight up to a row tile; what rounding leaves over in one weight is carried to the next, so
 * that the total is met to within a tile.  Among several remote tiers the remote tiles are divided
 * in proportion to the tiers' capacities.  Pure.
 */
#ifndef DAKD_OFFLOAD_PLACE_H
#define DAKD_OFFLOAD_PLACE_H

#include "offload/tiers.h"

struct off_placer {
    double share;                   /* 0..1 */
    double weight[KN_TIER_MAX];     /* fraction of all tiles wanted in each tier; sums to 1 */
    double owed_bytes[KN_TIER_MAX]; /* what earlier weights left over, by tier */
    int tier_count;
};

MUST_USE enum status off_placer_init(struct off_placer *p, double share,
                                     const struct off_tiers *tiers, char *err);
/* Divides tile_count tiles of tile_bytes each: counts[tier] sums to tile_count. */
void off_place(struct off_placer *p, int32_t tile_count, uint64_t tile_bytes,
               int32_t counts[KN_TIER_MAX]);

#endif
