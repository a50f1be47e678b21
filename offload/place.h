/*
 * place.h - which row tiles of each weight lie in which tier, for a stated remote share.
 *
 * `--offload X` puts the share X of the weights' bytes into the remote tiers, to within half a tile
 * of the weights.  Among several remote tiers the bytes are divided in proportion to capacity, each
 * met to within half a tile too.  Which tiles, --placement says:
 *
 *     auto   where a remote byte costs a step least
 *     even   the same load of the link in every kernel: about the same share of every weight, as
 *            near as tiles allow; a total too small for a tile of each goes where tiles are small
 *            parts
 *
 * Pure and deterministic: the same weights, tiers and share give the same tiles everywhere.
 */
#ifndef DAKD_OFFLOAD_PLACE_H
#define DAKD_OFFLOAD_PLACE_H

#include "offload/plan.h"
#include "offload/tiers.h"

enum off_placement { OFF_PLACE_AUTO, OFF_PLACE_EVEN };

/* Weights come in the order in which a step reads them. */
struct off_weight {
    int32_t tile_count;
    uint64_t tile_bytes;
    /* Of a table a step reads a row a token; of any other weight it reads everything. */
    bool table;
    bool after_attention; /* its product comes right after attention, not after another product */
    int32_t tiles[KN_TIER_MAX]; /* out: by tier; sums to tile_count */
};

/* Fills in tiles[] of every weight.  ST_INVALID: a share that is none, or has no tier to go to. */
MUST_USE enum status off_place(struct off_weight *weights, int32_t count, double share,
                               enum off_placement placement, const struct off_tiers *tiers,
                               char *err);
/* The same of one weight, the given instance of an operation, as a plan has it (plan.h), which
 * divides an operation evenly among its instances. */
void off_place_planned(struct off_weight *w, const struct off_plan_op *op, int32_t instance);

#endif
