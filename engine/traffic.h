/*
 * traffic.h - how many bytes a step must read from each tier.  Pure: from the model's shapes
 * and the placement of its weights.
 *
 * A step of S sequences reads once, whatever S is, every weight of every layer, the norms and
 * biases, and the head; of the embedding table (and of learned positions) one row a token; and of
 * each sequence the keys and values of its context, in every layer, the layer's window applied.
 * Activations are not counted, nor is the padding of blocks and pages: the figure is what the
 * mathematics needs, so that a floor made of it is not flattered by a format.
 */
#ifndef DAKD_ENGINE_TRAFFIC_H
#define DAKD_ENGINE_TRAFFIC_H

#include "engine/weights.h"

struct eng_traffic {
    uint64_t weight_bytes[KN_TIER_MAX]; /* read once a step */
    uint64_t head_bytes[KN_TIER_MAX];   /* of these, the head's: only where logits are wanted */
    uint64_t far_bytes_max; /* of a layer's product, most bytes outside tier 0, padding and all */
    double row_bytes[KN_TIER_MAX]; /* of embeddings, a token; where tokens fall evenly */
    uint64_t kv_token_bytes;       /* eng_traffic_kv_token_bytes */
    int32_t layer_count;
    int32_t window[ENG_LAYER_MAX]; /* 0: none */
};

void eng_traffic_init(struct eng_traffic *t, const struct eng_shape *shape,
                      const struct eng_weights *weights, enum kn_dtype kv_dtype);
/* The same of an opened model. */
void eng_model_traffic(const struct eng_model *model, enum kn_dtype kv_dtype,
                       struct eng_traffic *t);

/* Keys and values of one token in one layer. */
uint64_t eng_traffic_kv_token_bytes(const struct eng_model_info *info, enum kn_dtype kv_dtype);
/* KV a step reads for one sequence whose context, the new token included, is `context` tokens. */
uint64_t eng_traffic_kv_bytes(const struct eng_traffic *t, int32_t context);
/* What of this lies in the sequence's first far_tokens positions, whose pages are not local. */
uint64_t eng_traffic_kv_far_bytes(const struct eng_traffic *t, int32_t context, int32_t far_tokens);
/* bytes[tier] of a decode step of seq_count sequences of that context.  KV pages lie in tier 0. */
void eng_traffic_decode(const struct eng_traffic *t, int32_t seq_count, int32_t context,
                        uint64_t bytes[KN_TIER_MAX]);
/* bytes[tier] of weights, norms and biases that steps of prompts read, once each: `steps` of them,
 * with logits in `sampled`, and `tokens` rows of embeddings.  KV is left out. */
void eng_traffic_prompt(const struct eng_traffic *t, int64_t steps, int64_t sampled, int64_t tokens,
                        uint64_t bytes[KN_TIER_MAX]);

#endif
