/*
 * plan.h - what of a model lies in which tier so that a step is shortest, and how long it then
 * takes at least.  Pure arithmetic: no I/O, no memory beyond the stack.
 *
 * A step is a chain of operations.  Operation i reads C_i bytes and computes for T_i seconds; with
 * a share x_ij of its bytes in tier j, all tiers read side by side,
 *
 *     time_i = max(T_i, max_j C_i x_ij / B_j)        step = sum of time_i
 *
 * under the capacities of the tiers, which are one memory for all operations or, for those that are
 * pooled (KV pages), one of their own.  plan.c finds the least step of this model for any number of
 * tiers, then takes whole tiles, which costs at most off_plan_tile_error_s.
 */
#ifndef DAKD_OFFLOAD_PLAN_H
#define DAKD_OFFLOAD_PLAN_H

#include "kernels/kernels.h"

#define OFF_PLAN_OPS_MAX 16
#define OFF_PLAN_COMPUTE (-1) /* what binds, where it is no tier */

/* An operation that a step has `count` times alike, once a layer; figures are of one of them. */
struct off_plan_op {
    const char *name; /* borrowed */
    int tag;          /* the caller's */
    int32_t count, tile_count;
    uint64_t tile_bytes; /* stored; tiles are never divided */
    double read_bytes;   /* by a step, over all tiles alike */
    double compute_s;
    bool pinned; /* lies in tier 0, whatever that costs */
    bool pooled; /* lies in the plan's pools */
    /* Out, of all `count` together. */
    int64_t tiles[KN_TIER_MAX]; /* by tier */
    double seconds;             /* of a step */
    int bound;                  /* a tier or OFF_PLAN_COMPUTE: what most of `seconds` waits for */
};

struct off_plan_tier {
    const char *name;   /* borrowed */
    double bytes_per_s; /* > 0 */
    uint64_t bytes;     /* capacity; of tier 0 the budget */
};

struct off_plan {
    struct off_plan_op op[OFF_PLAN_OPS_MAX];
    struct off_plan_tier tier[KN_TIER_MAX]; /* 0 is local */
    int op_count, tier_count;
    /* What the pooled operations have of each tier, beside tier[].bytes, which are the others'.  Of
     * tier 0: 0 where all share tier[0].bytes. */
    uint64_t pool_bytes[KN_TIER_MAX];
    /* Out. */
    double seconds;   /* of a step, with whole tiles */
    double relaxed_s; /* the least of the model, were tiles as small as one likes */
    int bound;        /* what most of `seconds` waits for */
};

/* Fills in what is marked Out.  ST_LIMIT with a sentence where the model does not fit. */
MUST_USE enum status off_plan_solve(struct off_plan *plan, char *err);
/* The rest of what is marked Out (but relaxed_s) of tiles that somebody else chose. */
void off_plan_sum_up(struct off_plan *plan);
/* Of one instance (a layer), how many tiles lie in a tier: as even over instances as tiles allow.
 */
int32_t off_plan_instance_tiles(const struct off_plan_op *op, int32_t instance, int tier);
/* Bytes of all instances that lie in a tier, and those that a step reads there. */
uint64_t off_plan_stored_bytes(const struct off_plan_op *op, int tier);
double off_plan_read_bytes(const struct off_plan_op *op, int tier);
/* What `seconds` may exceed `relaxed_s` by, and so any placement of whole tiles. */
double off_plan_tile_error_s(const struct off_plan *plan);

#endif
