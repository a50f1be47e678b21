/*
 * place.c - see place.h.
 *
 * What a remote byte costs.  A kernel reads its local and its remote part side by side and takes as
 * long as the slower.  In units of the time HBM takes for a byte, and with cost = HBM bandwidth
 * over the link's,
 *
 *     time of a weight = max(local bytes, cost * remote bytes of each tier)
 *
 * so a tile moved out saves its bytes while the link keeps up, and costs `cost` times them after;
 * between the two lies the tile at which the link becomes the slower one, dear where tiles are few
 * and large: one tile of a down projection of an 8B model takes PCIe longer than the rest of it
 * takes HBM.  A table costs nothing: a step reads a row of it a token.  The sum over all weights is
 * a sum of convex functions, so taking the cheapest tile each time is best but for what the last
 * one leaves over.  Among equally cheap tiles the weight that has the smallest share out so far
 * gives the next, so that a plateau is filled evenly: every kernel then keeps the link busy for the
 * same part of its time.
 *
 * Three things the model takes from measurement rather than from bandwidths: a chain of kernels
 * keeps a link busy 93 % of the time (LINK_USE); what a slow link adds to HBM, 1 % over PCIe, its
 * window takes away, so that there tables go first (GAINLESS_COST); and the link's cost is that of
 * kn_window_default, so that a placement does not depend on the day's probe.
 *
 * Even.  The same load of the link in every kernel, as near as tiles allow: a chain of kernels is
 * as fast as it can be when none of them waits for the link longer than the others.  Load is the
 * link's time over HBM's, which is the share of the weight, but for what the link delivers before
 * the kernel begins or misses after.  So
 *
 *     level of a weight = (its tiles in the tier - those the link delivers ahead) / all its tiles
 *
 * Ahead.  A kernel's first CTAs find room while the one before still runs, and fill their rings;
 * where that one leaves the link idle, because one tile of its weight would be more than it hides,
 * they fill them over the link (AHEAD_BYTES): one of two tiles of qkv arrives over PCIe during
 * the down projection before it.  A product right after attention is the opposite: its CTAs come
 * late, and its link begins when HBM has filled the other rings (START_BYTES, what HBM delivers
 * until then).  Of an 8B model's o, 6 of 64 tiles over NVLink took 5 to 7 us more than the 9 of
 * none.
 *
 * Tiles decide how near.  A tile of down is 1.6 % of an 8B model's matrix, 36 us of PCIe in a
 * kernel of 25 us of HBM; one of gate-up is 0.22 %.  So each tile goes to the weight that it leaves
 * at the lowest level.  A small total then lies in the weights of many tiles alone, the others keep
 * none, and as long as one weight has room below the level of the link's free fraction, no other
 * goes above it.  From there on each has one tile with which its link is the later one, by part of
 * that tile's time; those come next, the least part first, and then all rise alike again.  Giving
 * each weight its own share, rounded, made single kernels wait for the link while it idled in the
 * rest: 4 % of a step with 0.4 % over PCIe.
 *
 * Measured on an H200, a step of an 8B model over that of all in HBM, at 1, 32 and 128 tokens, with
 * o as loaded as the others and no tiles ahead, and with this: NVLink 7 % 1.00, 1.05, 1.04 and
 * 0.97, 0.96, 1.03 (0.03 of 32 tokens' are the kernels'); PCIe 1 % 1.15, 1.13, 1.05
 * and 1.05, 1.04, 1.08, where at 128 tokens the rings of qkv are not filled ahead.
 *
 * Totals.  A tile is taken only while more than half of it is still wanted, hence the total ends
 * within half a tile of what was asked: above by less than half the last tile, below by less than
 * half of the smallest tile that is left.
 */
#include "offload/place.h"

#include <math.h>
#include <string.h>

#include "config/check.h"

#define LINK_USE 0.93
#define GAINLESS_COST 32
#define START_BYTES 16e6
#define AHEAD_BYTES (32.0 * KN_BLOCK_BYTES)
#define LEVEL_ROUNDS 50 /* of halving: far below one tile of the largest weight */

/* The cost of each tier's link, its idle times included, in eighths: sums of bytes times it are
 * exact, and equal tiles compare equal. */
struct links {
    double cost[KN_TIER_MAX];
    int count; /* of tiers */
};

static struct links links_of(const struct off_tiers *tiers)
{
    struct links l = {.count = off_tiers_count(tiers)};
    for (int t = 1; t < l.count; t++)
        l.cost[t] = round(kn_window_default(off_tier_spec(tiers, t)->mem).cost / LINK_USE * 8) / 8;
    return l;
}

/* What a weight takes of a step when `moved` more of its tiles lie in `tier`, in tiles' times. */
static double time_of(const struct off_weight *w, int tier, int32_t moved, const struct links *l)
{
    double time = w->tiles[0] - moved;
    for (int t = 1; t < l->count; t++) {
        int32_t tiles = w->tiles[t] + (t == tier ? moved : 0);
        double link = tiles * l->cost[t];
        if (tiles > 0 && w->after_attention) link += START_BYTES / (double)w->tile_bytes;
        if (link > time) time = link;
    }
    return time;
}

/* What it adds to a step to move one more tile of w to a tier, per byte. */
static double marginal(const struct off_weight *w, int tier, const struct links *l)
{
    if (w->table) return l->cost[tier] > GAINLESS_COST ? -2 : 0;
    return time_of(w, tier, 1, l) - time_of(w, tier, 0, l);
}

static double share_out(const struct off_weight *w)
{
    return (double)(w->tile_count - w->tiles[0]) / w->tile_count;
}

/* Moves `bytes` to a tier, the cheapest tile each time. */
static void fill_cheapest(struct off_weight *weights, int32_t count, int tier, double bytes,
                          const struct links *l)
{
    for (;;) {
        struct off_weight *best = NULL;
        double best_cost = 0;
        for (int32_t i = 0; i < count; i++) {
            struct off_weight *w = &weights[i];
            if (w->tiles[0] == 0 || (double)w->tile_bytes >= 2 * bytes) continue;
            double cost = marginal(w, tier, l);
            if (best &&
                (cost > best_cost || (cost == best_cost && share_out(w) >= share_out(best))))
                continue;
            best = w;
            best_cost = cost;
        }
        if (!best) return;
        best->tiles[0]--;
        best->tiles[tier]++;
        bytes -= (double)best->tile_bytes;
    }
}

static double bytes_of(const struct off_weight *w)
{
    return (double)w->tile_bytes * w->tile_count;
}

/* Whether a tier's link is idle while the kernel of w runs, at any load that HBM hides. */
static bool rests(const struct off_weight *w, int tier, const struct links *l)
{
    return !w->table && l->cost[tier] * (double)w->tile_bytes > bytes_of(w);
}

/* Tiles of weight i that a tier's link delivers before its kernel begins; less than none where it
 * begins later. */
static double lead_tiles(const struct off_weight *weights, int32_t i, int tier,
                         const struct links *l)
{
    const struct off_weight *w = &weights[i];
    double bytes = 0;
    if (w->after_attention) bytes = -START_BYTES / l->cost[tier];
    else if (i > 0 && rests(w - 1, tier, l) && bytes_of(w - 1) >= AHEAD_BYTES * l->cost[tier])
        bytes = AHEAD_BYTES;
    return w->table ? 0 : bytes / (double)w->tile_bytes;
}

/* Of weight i, how many tiles may lie in a tier at a level of load, beside those of other tiers. */
static int32_t tiles_at(const struct off_weight *weights, int32_t i, int tier, double level,
                        const struct links *l)
{
    const struct off_weight *w = &weights[i];
    double tiles = floor(level * w->tile_count + lead_tiles(weights, i, tier, l));
    return (int32_t)fmin(fmax(tiles, w->tiles[tier]), w->tiles[0] + w->tiles[tier]);
}

/* The level that one more tile of weight i makes. */
static double next_level(const struct off_weight *weights, int32_t i, int tier,
                         const struct links *l)
{
    const struct off_weight *w = &weights[i];
    return (w->tiles[tier] + 1 - lead_tiles(weights, i, tier, l)) / w->tile_count;
}

/* The weight that one more tile leaves at the lowest level; of equals the smallest, whose link is
 * the soonest done.  NULL where no tile fits. */
static struct off_weight *find_least_loaded(struct off_weight *weights, int32_t count, int tier,
                                            double bytes, const struct links *l)
{
    struct off_weight *best = NULL;
    double best_level = 0;
    for (int32_t i = 0; i < count; i++) {
        struct off_weight *w = &weights[i];
        if (w->tiles[0] == 0 || (double)w->tile_bytes >= 2 * bytes) continue;
        double level = next_level(weights, i, tier, l);
        if (best && (level > best_level || (level == best_level && bytes_of(w) >= bytes_of(best))))
            continue;
        best = w;
        best_level = level;
    }
    return best;
}

/* The weight whose link would be the least behind HBM with one more tile, of those whose link is
 * not behind yet, and not tables, which have no load.  NULL where there is none. */
static struct off_weight *find_least_behind(struct off_weight *weights, int32_t count, int tier,
                                            double bytes, const struct links *l)
{
    struct off_weight *best = NULL;
    double least = 0;
    for (int32_t i = 0; i < count; i++) {
        struct off_weight *w = &weights[i];
        if (w->table || w->tiles[0] == 0 || (double)w->tile_bytes > bytes) continue;
        double link = (w->tiles[tier] - lead_tiles(weights, i, tier, l)) * l->cost[tier];
        if (link >= w->tiles[0]) continue;
        double behind = (link + l->cost[tier] - w->tiles[0] + 1) * (double)w->tile_bytes;
        if (best && behind >= least) continue;
        best = w;
        least = behind;
    }
    return best;
}

static void take_tiles(struct off_weight *w, int tier, int32_t tiles, double *bytes)
{
    w->tiles[0] -= tiles;
    w->tiles[tier] += tiles;
    *bytes -= (double)w->tile_bytes * tiles;
}

/* Raises all weights to the highest level that the bytes allow, at most to `most`, less than a tile
 * below it.  Whether that was reached. */
static bool raise_level(struct off_weight *weights, int32_t count, int tier, double most,
                        double *bytes, const struct links *l)
{
    double low = -1, high = most, level = most;
    for (int32_t i = 0; i < count; i++) low = fmin(low, -1 - lead_tiles(weights, i, tier, l));
    for (int round = 0; round < LEVEL_ROUNDS; round++) {
        double need = 0;
        for (int32_t i = 0; i < count; i++)
            need += (double)weights[i].tile_bytes *
                    (tiles_at(weights, i, tier, level, l) - weights[i].tiles[tier]);
        if (need <= *bytes) low = level;
        else high = level;
        if (low == most) break;
        level = (low + high) / 2;
    }
    for (int32_t i = 0; i < count; i++) {
        struct off_weight *w = &weights[i];
        take_tiles(w, tier, tiles_at(weights, i, tier, low, l) - w->tiles[tier], bytes);
    }
    return low == most;
}

static void fill_evenly(struct off_weight *weights, int32_t count, int tier, double bytes,
                        const struct links *l)
{
    struct off_weight *w;
    if (raise_level(weights, count, tier, 1 / (1 + l->cost[tier]), &bytes, l)) {
        while ((w = find_least_behind(weights, count, tier, bytes, l)))
            take_tiles(w, tier, 1, &bytes);
        raise_level(weights, count, tier, 1, &bytes, l);
    }
    while ((w = find_least_loaded(weights, count, tier, bytes, l))) take_tiles(w, tier, 1, &bytes);
}

static enum status check_share(double share, const struct off_tiers *tiers, double *capacity,
                               char *err)
{
    *capacity = 0;
    if (!(share >= 0 && share <= 1))
        return err_set(err, ST_INVALID, "--offload must be between 0 and 1, not %g", share);
    for (int t = 1; t < off_tiers_count(tiers); t++)
        *capacity += (double)off_tier_capacity(tiers, t);
    if (share == 0 || *capacity > 0) return ST_OK;
    if (off_tiers_count(tiers) > 1)
        return err_set(err, ST_INVALID, "--offload %g: the remote tiers of --remote hold no bytes",
                       share);
    return err_set(err, ST_INVALID,
                   "--offload %g needs a remote tier to put weights in: name one with "
                   "--remote, for example --remote host:64GiB",
                   share);
}

enum status off_place(struct off_weight *weights, int32_t count, double share,
                      enum off_placement placement, const struct off_tiers *tiers, char *err)
{
    double total = 0, capacity;
    enum status st = check_share(share, tiers, &capacity, err);
    if (st) return st;
    for (int32_t i = 0; i < count; i++) {
        CHECK(weights[i].tile_count > 0 && weights[i].tile_bytes > 0);
        memset(weights[i].tiles, 0, sizeof weights[i].tiles);
        weights[i].tiles[0] = weights[i].tile_count;
        total += (double)weights[i].tile_bytes * weights[i].tile_count;
    }
    const struct links links = links_of(tiers);
    double wanted = share * total, left = wanted, given = 0;
    for (int t = 1; t < off_tiers_count(tiers) && share > 0; t++) {
        double part = (double)off_tier_capacity(tiers, t) / capacity;
        /* The last one gets what the others left of the whole. */
        bool last = t == off_tiers_count(tiers) - 1;
        double bytes = last ? left : wanted * part;
        if (placement == OFF_PLACE_EVEN) fill_evenly(weights, count, t, bytes, &links);
        else fill_cheapest(weights, count, t, bytes, &links);
        given = 0;
        for (int32_t i = 0; i < count; i++)
            given += (double)weights[i].tile_bytes * (weights[i].tile_count - weights[i].tiles[0]);
        left = wanted - given;
    }
    return ST_OK;
}

void off_place_planned(struct off_weight *w, const struct off_plan_op *op, int32_t instance)
{
    CHECK(op->tile_count == w->tile_count && op->tile_bytes == w->tile_bytes);
    for (int t = 0; t < KN_TIER_MAX; t++) w->tiles[t] = off_plan_instance_tiles(op, instance, t);
}
