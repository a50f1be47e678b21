#include "engine/stage.h"

#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "engine/model_state.h"

/* Product i of a step, heads left out. */
static const struct kn_weight *product_of(const struct eng_model *m, int32_t i)
{
    return eng_layer_product(&m->weights.layers[i / ENG_LAYER_PRODUCTS], i % ENG_LAYER_PRODUCTS);
}

static int32_t product_count(const struct eng_model *m)
{
    return m->shape.info.layer_count * ENG_LAYER_PRODUCTS;
}

/* Of every product, what lies where; NULL without memory. */
static struct off_mix_product *list_products(const struct eng_model *m, char *err)
{
    const int32_t count = product_count(m);
    struct off_mix_product *products = calloc((size_t)count, sizeof *products);
    if (!products) err_set(err, ST_NOMEM, "no memory for a list of %d products", count);
    for (int32_t i = 0; i < count && products; i++) {
        const struct kn_weight *w = product_of(m, i);
        products[i].tile_bytes = kn_weight_tile_bytes(w);
        for (int t = 0; t < KN_TIER_MAX; t++) products[i].tiles[t] = w->span[t].tile_count;
    }
    return products;
}

static struct off_mix_deal deal_of(const struct eng_stage_want *want, bool all)
{
    struct off_mix_deal d = {.group = want->even ? 1 : ENG_LAYER_PRODUCTS,
                             .copy_bytes_min = want->copy_bytes_min,
                             .product_bytes_max = want->product_bytes_max};
    for (int t = 1; t < KN_TIER_MAX; t++) d.share[t] = all ? 1 : want->share[t];
    return d;
}

static int by_falling(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

enum status eng_stage_room(const struct eng_model *m, const struct eng_stage_want *want,
                           struct eng_stage_room *out, char *err)
{
    const struct off_mix_deal deal = deal_of(want, true);
    struct off_mix_product *products = list_products(m, err);
    *out = (struct eng_stage_room){0};
    if (!products) return ST_NOMEM;
    off_mix_deal(products, product_count(m), &deal, out->room);
    for (int t = 1; t < KN_TIER_MAX; t++) {
        for (int32_t i = 0; i < product_count(m); i++) {
            const uint64_t bytes = (uint64_t)products[i].tiles[t] * products[i].tile_bytes;
            out->bytes[t] += bytes;
            out->product_bytes[t][i % ENG_LAYER_PRODUCTS] +=
                (double)bytes / m->shape.info.layer_count;
        }
        qsort(out->product_bytes[t], ENG_LAYER_PRODUCTS, sizeof(double), by_falling);
    }
    free(products);
    return ST_OK;
}

static uint64_t copied_bytes(const struct off_mix_product *p)
{
    uint64_t tiles = 0;
    for (int t = 1; t < KN_TIER_MAX; t++) tiles += (uint64_t)p->copied[t];
    return tiles * p->tile_bytes;
}

/* The most that so many layers in a row have, and the ring for them. */
static uint64_t ring_bytes(const struct off_mix_product *products, int32_t count,
                           const struct eng_stage_want *want, uint64_t product_bytes)
{
    uint64_t layer_most = 0;
    for (int32_t i = 0; i < count; i += ENG_LAYER_PRODUCTS) {
        uint64_t layer = 0;
        for (int32_t k = 0; k < ENG_LAYER_PRODUCTS; k++) layer += copied_bytes(&products[i + k]);
        layer_most = size_max(layer_most, layer);
    }
    const uint64_t ring = size_max((uint64_t)want->layers * layer_most, 2 * product_bytes);
    return size_min(round_up(ring, KN_ALIGN), want->ring_bytes_max);
}

/* Deals the tiles, and lists those that are staged in items, which has room for all. */
static int32_t choose(const struct eng_model *m, const struct eng_stage_want *want,
                      struct off_mix_product *products, struct kn_stage_item *items,
                      struct eng_staged *out)
{
    const struct off_mix_deal deal = deal_of(want, false);
    const int32_t count = product_count(m);
    int32_t item_count = 0;
    off_mix_deal(products, count, &deal, out->bytes);
    for (int32_t i = 0; i < count; i++) {
        const uint64_t bytes = copied_bytes(&products[i]);
        out->product_bytes = size_max(out->product_bytes, bytes);
        out->product_count += bytes > 0;
        for (int t = 1; t < KN_TIER_MAX; t++)
            if (products[i].copied[t])
                items[item_count++] =
                    (struct kn_stage_item){product_of(m, i), t, products[i].copied[t]};
    }
    if (item_count) out->ring_bytes = ring_bytes(products, count, want, out->product_bytes);
    return item_count;
}

enum status eng_model_stage(struct eng_model *m, const struct eng_stage_want *want,
                            struct eng_staged *out, char *err)
{
    const size_t most = (size_t)product_count(m) * (KN_TIER_MAX - 1);
    struct off_mix_product *products = list_products(m, err);
    struct kn_stage_item *items = products ? calloc(most, sizeof *items) : NULL;
    enum status st = ST_NOMEM;
    *out = (struct eng_staged){0};
    if (products && !items) err_set(err, st, "no memory for a list of %zu items", most);
    if (items) {
        const int32_t count = choose(m, want, products, items, out);
        st = kn_stage(m->kn, items, count, out->ring_bytes, err);
    }
    if (st) *out = (struct eng_staged){0};
    free(products);
    free(items);
    return st;
}
