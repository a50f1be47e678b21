/*
 * weights.h - the weights of a model where the forward pass finds them, and the loader that puts
 * them there (load.c).
 */
#ifndef DAKD_ENGINE_WEIGHTS_H
#define DAKD_ENGINE_WEIGHTS_H

#include "engine/arch.h"

/* H hidden, D head dim, Hq and Hkv heads, I intermediate, I' = I rounded up to 8 where gated. */
struct eng_layer {
    struct kn_weight qkv;  /* [(Hq + 2 Hkv) * D, H]: rows of q, then k, then v */
    struct kn_weight o;    /* [H, Hq * D] */
    struct kn_weight up;   /* gated: [2 I', H], interleaved as kn_glu_row says; else [I, H] */
    struct kn_weight down; /* [H, I'] or [H, I] */
    /* fp32, as the weights above have rows; NULL where the model has none. */
    const float *qkv_bias, *o_bias, *up_bias, *down_bias;
    const float *attn_norm, *attn_norm_bias, *mlp_norm, *mlp_norm_bias; /* [H] */
    const float *q_norm, *k_norm;                                       /* [D] */
};

#define ENG_LAYER_PRODUCTS 4
/* A layer's products in the order of forward.c: qkv, o, up, down. */
static inline struct kn_weight *eng_layer_product(struct eng_layer *layer, int32_t i)
{
    struct kn_weight *const products[ENG_LAYER_PRODUCTS] = {&layer->qkv, &layer->o, &layer->up,
                                                            &layer->down};
    return products[i];
}

struct eng_weights {
    struct kn_weight embed;     /* [V,H] */
    struct kn_weight positions; /* [P,H] with ENG_HAS_POSITIONS */
    struct kn_weight head;      /* [V,H]; the same spans as embed where the embedding is the head */
    const float *final_norm, *final_norm_bias; /* [H] */
    struct eng_layer *layers;                  /* [L], owned */
    /* By the spans.  Of weights that are everywhere a tier holds all, and span.base is where the
     * span's first tile would lie, of empty spans too. */
    uint64_t tier_bytes[KN_TIER_MAX];
};

/* Where a tile lies in a tier, of weights that are everywhere. */
static inline void *eng_span_tile(const struct kn_weight *w, int tier, int32_t tile)
{
    const ptrdiff_t ahead = tile - w->span[tier].tile_begin;
    return (char *)w->span[tier].base + ahead * (ptrdiff_t)kn_weight_tile_bytes(w);
}

/* The bytes all tiers together will hold: tiles with their padding, norms and biases. */
MUST_USE enum status eng_weights_bytes(const struct eng_shape *shape, uint64_t *bytes, char *err);
/* The weights' shapes alone: spans and vectors stay empty.  eng_weights_deinit frees the table. */
MUST_USE enum status eng_weights_shapes(const struct eng_shape *shape, struct eng_weights *out,
                                        char *err);
/* The same with the spans that eng_weights_load would give them, of NULL bases: nothing is read or
 * allocated but the table. */
MUST_USE enum status eng_weights_preview(const struct eng_shape *shape,
                                         const struct off_tiers *tiers,
                                         const struct eng_model_options *opt,
                                         struct eng_weights *out, char *err);
/* The type auto takes where config.json names none: that of the embedding table in the checkpoint.
 */
MUST_USE enum status eng_weights_stored_dtype(const char *dir, const struct eng_shape *shape,
                                              enum kn_dtype *dtype, char *err);
/* Places and packs everything.  A weight's place follows off_place; norms and biases lie in tier 0.
 * Calls opt->progress from this thread.  On failure nothing is left allocated outside the tiers. */
MUST_USE enum status eng_weights_load(struct kn *kn, struct off_tiers *tiers, const char *dir,
                                      const struct eng_shape *shape,
                                      const struct eng_model_options *opt, struct eng_weights *out,
                                      char *err);
/* Of weights loaded with opt->everywhere: gives them the spans that eng_weights_load would choose
 * by opt.  ST_INVALID, ST_NOMEM; they are as they were then. */
MUST_USE enum status eng_weights_place(const struct eng_shape *shape, const struct off_tiers *tiers,
                                       const struct eng_model_options *opt, struct eng_weights *w,
                                       char *err);
void eng_weights_deinit(struct eng_weights *w);

#endif
