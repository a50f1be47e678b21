/*
 * operations.h - a decode step as the planner sees it (offload/plan.h): per kind of layer what is
 * stored, what a step reads of it and how long it computes.  From config.json alone.
 */
#ifndef DAKD_ENGINE_OPERATIONS_H
#define DAKD_ENGINE_OPERATIONS_H

#include "engine/weights.h"
#include "offload/plan.h"

/* The operations whose bytes are KV and no weights: the pages that attention reads, a tile being a
 * page in all layers, of which therefore each reads the same share behind a link; and those that
 * sequences have in reserve, which nobody reads. */
#define ENG_OPERATION_KV "attention KV"
#define ENG_OPERATION_KV_RESERVE "KV in reserve"

struct eng_step {
    int32_t seq_count, context; /* sequences, and tokens of each, the new one included */
    enum kn_dtype kv_dtype;
    double flops_per_s;
};

/* Fills plan->op and op_count.  Reads are what the mathematics needs (engine/traffic.h), stored
 * bytes whole tiles and pages, with the page a sequence has in reserve.  KV, norms and biases are
 * pinned: dakd keeps them in HBM, but for KV by eng_operations_open_kv.  Names are literals. */
MUST_USE enum status eng_operations(const struct eng_shape *shape, const struct eng_step *step,
                                    struct off_plan *plan, char *err);
/* off_plan_solve, but that tables leave before products whose bytes would hide behind their
 * arithmetic: a step reads next to nothing of a table, and what the model takes for hidden a
 * machine does not hide entirely.  A table may so cost the time that the slowest tier takes for its
 * rows.  ST_LIMIT as there. */
MUST_USE enum status eng_operations_solve(struct off_plan *plan, char *err);
/* KV may lie in a tier too, up to pool_bytes there and but for the last page of each sequence.
 * near_bytes: of tier 0, that are KV's alone; 0: it shares tier 0's bytes with the weights. */
void eng_operations_open_kv(struct off_plan *plan, int tier, uint64_t pool_bytes,
                            uint64_t near_bytes);
/* So many of the pages that attention reads lie in a tier, the others in tier 0. */
void eng_operations_place_kv(struct off_plan *plan, int tier, int64_t page_count);
bool eng_operation_is_kv(const struct off_plan_op *op);
/* The largest tile of weights that may leave. */
uint64_t eng_operations_tile_max(const struct off_plan *plan);
/* That of ENG_OPERATION_KV. */
const struct off_plan_op *eng_operation_kv(const struct off_plan *plan);
/* The operation whose weight begins with a part: one of EMBED, POSITIONS, Q, O, GATE or UP, DOWN,
 * HEAD.  NULL where there is none. */
const struct off_plan_op *eng_operation_of(const struct off_plan *plan, enum eng_part part);
/* Puts into the operations' tiles how these weights lie, by their spans; KV lies in tier 0. */
void eng_operations_count(const struct eng_shape *shape, const struct eng_weights *weights,
                          struct off_plan *plan);

#endif
