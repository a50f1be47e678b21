/*
 * place_weights.c - weights that lie in every tier, read somewhere else: eng_weights_place of
 * weights.h.
 *
 * A comparison of many shares would load the model for each, which takes longer than measuring it.
 * Where all tiers hold all weights, a share is a choice of addresses: the same tiles, bit for bit,
 * in the one memory or the other.
 */
#include <string.h>

#include "config/check.h"
#include "engine/weights.h"

/* Weight i of a model, in no order that matters; NULL behind the last. */
static struct kn_weight *weight_at(const struct eng_shape *shape, struct eng_weights *w, int32_t i)
{
    struct kn_weight *const outside[] = {&w->embed, &w->positions, &w->head};
    if (i < (int32_t)ARRAY_COUNT(outside)) return outside[i];
    i -= (int32_t)ARRAY_COUNT(outside);
    if (i >= shape->info.layer_count * ENG_LAYER_PRODUCTS) return NULL;
    return eng_layer_product(&w->layers[i / ENG_LAYER_PRODUCTS], i % ENG_LAYER_PRODUCTS);
}

static void take_spans(struct kn_weight *w, const struct kn_weight *wanted)
{
    for (int t = 0; t < KN_TIER_MAX; t++) {
        const struct kn_span span = wanted->span[t];
        void *base = w->span[t].base ? eng_span_tile(w, t, span.tile_begin) : NULL;
        CHECK(base || span.tile_count == 0);
        w->span[t] = (struct kn_span){base, span.tile_begin, span.tile_count};
    }
}

enum status eng_weights_place(const struct eng_shape *shape, const struct off_tiers *tiers,
                              const struct eng_model_options *opt, struct eng_weights *w, char *err)
{
    struct eng_weights wanted;
    struct kn_weight *own;
    CHECK(opt->everywhere && !opt->plan);
    enum status st = eng_weights_preview(shape, tiers, opt, &wanted, err);
    if (st) return st;
    memset(w->tier_bytes, 0, sizeof w->tier_bytes);
    w->tier_bytes[0] = shape->info.weight_bytes; /* norms and biases are nowhere else */
    for (int32_t i = 0; (own = weight_at(shape, w, i)); i++) {
        take_spans(own, weight_at(shape, &wanted, i));
        if (own == &w->head && !(shape->has & ENG_HAS_HEAD)) continue; /* it is the table */
        for (int t = 1; t < KN_TIER_MAX; t++) {
            const uint64_t out = (uint64_t)own->span[t].tile_count * kn_weight_tile_bytes(own);
            w->tier_bytes[t] += out;
            w->tier_bytes[0] -= out;
        }
    }
    eng_weights_deinit(&wanted);
    return ST_OK;
}
