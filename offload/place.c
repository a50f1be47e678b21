/*
 * place.c - see place.h.
 *
 * Each weight's tiles are handed out one by one to the tier that is owed most, counting what
 * earlier weights left over. Deficits sum to the bytes still to be handed out, so the largest is
 * positive, and giving a tile to it leaves it at more than minus one tile.  Hence after every
 * weight
 *
 *     -tile_max < owed_bytes[t] < (tier_count - 1) * tile_max        and        sum of owed_bytes =
 * 0
 *
 * (up to rounding of doubles), where tile_max is the largest tile seen: the total of each tier is
 * met to within a tile or two, however many weights there are.  A tier whose fraction is zero gets
 * nothing at all.
 */
#include "offload/place.h"

#include <string.h>

#include "config/check.h"

enum status off_placer_init(struct off_placer *p, double share, const struct off_tiers *tiers,
                            char *err)
{
    *p = (struct off_placer){.share = share, .tier_count = off_tiers_count(tiers)};
    if (!(share >= 0 && share <= 1))
        return err_set(err, ST_INVALID, "--offload must be between 0 and 1, not %g", share);
    p->weight[0] = 1 - share;
    if (share == 0) return ST_OK;
    if (p->tier_count == 1)
        return err_set(err, ST_INVALID,
                       "--offload %g needs a remote tier to put weights in: name one with "
                       "--remote, for example "
                       "--remote host:64GiB",
                       share);
    double remote = 0;
    for (int t = 1; t < p->tier_count; t++) remote += (double)off_tier_capacity(tiers, t);
    if (remote <= 0)
        return err_set(err, ST_INVALID, "--offload %g: the remote tiers of --remote hold no bytes",
                       share);
    for (int t = 1; t < p->tier_count; t++)
        p->weight[t] = share * ((double)off_tier_capacity(tiers, t) / remote);
    return ST_OK;
}

void off_place(struct off_placer *p, int32_t tile_count, uint64_t tile_bytes,
               int32_t counts[KN_TIER_MAX])
{
    CHECK(tile_count >= 0 && p->tier_count >= 1 && p->tier_count <= KN_TIER_MAX);
    double tile = (double)tile_bytes, deficit[KN_TIER_MAX];
    memset(counts, 0, KN_TIER_MAX * sizeof counts[0]);
    for (int t = 0; t < p->tier_count; t++)
        deficit[t] = p->weight[t] * tile * tile_count + p->owed_bytes[t];
    for (int32_t i = 0; i < tile_count; i++) {
        int most = -1;
        for (int t = 0; t < p->tier_count; t++)
            if (p->weight[t] > 0 && (most < 0 || deficit[t] > deficit[most])) most = t;
        CHECK(most >= 0);
        counts[most]++;
        deficit[most] -= tile;
    }
    memcpy(p->owed_bytes, deficit, (size_t)p->tier_count * sizeof deficit[0]);
}
