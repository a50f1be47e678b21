/*
 * operations.h - a decode step as the planner sees it (offload/plan.h): per kind of layer what is
 * stored, what a step reads of it and how long it computes.  From config.json alone.
 */
#ifndef DAKD_ENGINE_OPERATIONS_H
#define DAKD_ENGINE_OPERATIONS_H

#include "engine/weights.h"
#include "offload/plan.h"

/* The operation whose bytes are KV and no weights. */
#define ENG_OPERATION_KV "attention KV"

struct eng_step {
    int32_t seq_count, context; /* sequences, and tokens of each, the new one included */
    enum kn_dtype kv_dtype;
    double flops_per_s;
};

/* Fills plan->op and op_count.  Reads are what the mathematics needs (engine/traffic.h), stored
 * bytes whole tiles and pages, with the page a sequence has in reserve.  KV, norms and biases are
 * pinned: dakd keeps them in HBM.  Names are literals. */
MUST_USE enum status eng_operations(const struct eng_shape *shape, const struct eng_step *step,
                                    struct off_plan *plan, char *err);
/* off_plan_solve, but that tables leave before products whose bytes would hide behind their
 * arithmetic: a step reads next to nothing of a table, and what the model takes for hidden a
 * machine does not hide entirely.  A table may so cost the time that the slowest tier takes for its
 * rows.  ST_LIMIT as there. */
MUST_USE enum status eng_operations_solve(struct off_plan *plan, char *err);
/* The operation whose weight begins with a part: one of EMBED, POSITIONS, Q, O, GATE or UP, DOWN,
 * HEAD.  NULL where there is none. */
const struct off_plan_op *eng_operation_of(const struct off_plan *plan, enum eng_part part);
/* Puts into the operations' tiles how these weights lie, by their spans. */
void eng_operations_count(const struct eng_shape *shape, const struct eng_weights *weights,
                          struct off_plan *plan);

#endif
