/*
 * predict.h - how long a steady decode step takes: a figure to hold against what is measured, where
 * the planner's floor (offload/plan.h) only says what it cannot be below.  Pure: from shapes, from
 * where the weights lie and from bandwidths.
 *
 * Nothing that computes depends on it: it is printed by `dakd plan`, at start-up and by `dakd
 * bench`.
 */
#ifndef DAKD_ENGINE_PREDICT_H
#define DAKD_ENGINE_PREDICT_H

#include "engine/operations.h"

/* Steps of more sequences have not been measured, and are not predicted. */
#define ENG_PREDICT_TOKENS_MAX 512
/* What step.flops_per_s is of an H200: the datasheet's rate of dense bfloat16. */
#define ENG_PREDICT_FLOPS_PER_S 989e12

/* Of a step's remote bytes, those that the copy engine brings to tier 0 ahead of the products. */
struct eng_staging {
    /* Of the layers' weights in that tier, 0..1; the rest, and the head's, are read in place. */
    double share[KN_TIER_MAX];
    double bytes_per_s[KN_TIER_MAX]; /* of the link, with both ways of reading at once */
};

/* Seconds of a step.  `seconds` is the sum of the others. */
struct eng_prediction {
    double seconds;
    double products_s;  /* products while HBM or arithmetic bound them, */
    double links_s;     /* and what they, and attention, wait longer for a link */
    double attention_s; /* its reading of local KV, and what comes with it */
    double between_s;   /* kernels handing over, norms, sampling, the host */
};

/* Whether the GPU's kernels keep KV of such heads so. */
bool eng_predict_knows_kv(enum kn_dtype dtype, int32_t head_dim);

/* The step `step` of a model whose weights and KV lie as placed->op[].tiles says (off_plan_solve,
 * eng_operations_count, eng_operations_place_kv; the operations are eng_operations' of the same
 * step), in tiers as fast as placed->tier[].bytes_per_s.  staging: NULL where all is read in place.
 *
 * The constants are those of dakd's kernels on an H200 (predict.c): for another GPU of its kind
 * only the bandwidths are its own, and nobody has held the sum against one.  False, and *out is
 * zero, where there is nothing to go by: weights that are not bfloat16, KV that the GPU has no
 * kernels for, more sequences than ENG_PREDICT_TOKENS_MAX, a tier in use whose rate is not known.
 */
bool eng_predict(const struct eng_shape *shape, const struct eng_step *step,
                 const struct off_plan *placed, const struct eng_staging *staging,
                 struct eng_prediction *out);

#endif
