#include "engine/traffic.h"

#include <math.h>
#include <string.h>

#include "config/check.h"
#include "engine/model_state.h"

/* Rows of a weight that lie in a tier, the last tile's padding left out. */
static int64_t span_rows(const struct kn_weight *w, int tier)
{
    const struct kn_span *span = &w->span[tier];
    int64_t begin = (int64_t)span->tile_begin * KN_TILE_ROWS;
    int64_t end = begin + (int64_t)span->tile_count * KN_TILE_ROWS;
    if (end > w->rows) end = w->rows;
    return span->tile_count ? end - begin : 0;
}

static uint64_t row_bytes(const struct kn_weight *w)
{
    return (uint64_t)w->cols * kn_dtype_bytes(w->dtype);
}

static void add_weight(struct eng_traffic *t, const struct kn_weight *w)
{
    for (int tier = 0; tier < KN_TIER_MAX; tier++)
        t->weight_bytes[tier] += (uint64_t)span_rows(w, tier) * row_bytes(w);
}

/* A table of which a token reads one row. */
static void add_table(struct eng_traffic *t, const struct kn_weight *w)
{
    for (int tier = 0; tier < KN_TIER_MAX; tier++)
        t->row_bytes[tier] += (double)span_rows(w, tier) / w->rows * (double)row_bytes(w);
}

/* Norms and biases are fp32 and lie in tier 0. */
static void add_vector(struct eng_traffic *t, const float *vector, int32_t count)
{
    if (vector) t->weight_bytes[0] += (uint64_t)count * sizeof *vector;
}

static void add_layer(struct eng_traffic *t, const struct eng_shape *shape, struct eng_layer *l)
{
    const int32_t H = shape->info.hidden, D = shape->info.head_dim;
    for (int32_t i = 0; i < ENG_LAYER_PRODUCTS; i++) {
        const struct kn_weight *w = eng_layer_product(l, i);
        const int32_t far = w->tile_count - w->span[0].tile_count;
        const uint64_t far_bytes = (uint64_t)far * kn_weight_tile_bytes(w);
        if (far_bytes > t->far_bytes_max) t->far_bytes_max = far_bytes;
        add_weight(t, w);
    }
    add_vector(t, l->qkv_bias, l->qkv.rows);
    add_vector(t, l->o_bias, H);
    add_vector(t, l->up_bias, l->up.rows);
    add_vector(t, l->down_bias, H);
    add_vector(t, l->attn_norm, H);
    add_vector(t, l->attn_norm_bias, H);
    add_vector(t, l->mlp_norm, H);
    add_vector(t, l->mlp_norm_bias, H);
    add_vector(t, l->q_norm, D);
    add_vector(t, l->k_norm, D);
}

void eng_traffic_init(struct eng_traffic *t, const struct eng_shape *shape,
                      const struct eng_weights *weights, enum kn_dtype kv_dtype)
{
    const struct eng_model_info *info = &shape->info;
    *t = (struct eng_traffic){.layer_count = info->layer_count};
    for (int32_t i = 0; i < info->layer_count; i++) add_layer(t, shape, &weights->layers[i]);
    add_vector(t, weights->final_norm, info->hidden);
    add_vector(t, weights->final_norm_bias, info->hidden);
    memcpy(t->head_bytes, t->weight_bytes, sizeof t->head_bytes);
    add_weight(t, &weights->head);
    for (int i = 0; i < KN_TIER_MAX; i++) t->head_bytes[i] = t->weight_bytes[i] - t->head_bytes[i];
    add_table(t, &weights->embed);
    if (shape->has & ENG_HAS_POSITIONS) add_table(t, &weights->positions);
    t->kv_token_bytes = eng_traffic_kv_token_bytes(info, kv_dtype);
    memcpy(t->window, shape->window, sizeof t->window);
}

uint64_t eng_traffic_kv_token_bytes(const struct eng_model_info *info, enum kn_dtype kv_dtype)
{
    const uint64_t row_bytes =
        (uint64_t)info->head_dim * kn_dtype_bytes(kv_dtype) + (kv_dtype == KN_E4M3); /* its scale */
    return 2 * (uint64_t)info->kv_heads * row_bytes;
}

void eng_model_traffic(const struct eng_model *model, enum kn_dtype kv_dtype, struct eng_traffic *t)
{
    eng_traffic_init(t, &model->shape, &model->weights, kv_dtype);
}

uint64_t eng_traffic_kv_bytes(const struct eng_traffic *t, int32_t context)
{
    return eng_traffic_kv_far_bytes(t, context, context);
}

uint64_t eng_traffic_kv_far_bytes(const struct eng_traffic *t, int32_t context, int32_t far_tokens)
{
    uint64_t tokens = 0;
    CHECK(far_tokens >= 0 && far_tokens <= context);
    for (int32_t i = 0; i < t->layer_count; i++) {
        const bool cut = t->window[i] > 0 && t->window[i] < context;
        const int32_t first = cut ? context - t->window[i] : 0; /* that is seen */
        if (far_tokens > first) tokens += (uint64_t)(far_tokens - first);
    }
    return tokens * t->kv_token_bytes;
}

void eng_traffic_decode(const struct eng_traffic *t, int32_t seq_count, int32_t context,
                        uint64_t bytes[KN_TIER_MAX])
{
    CHECK(seq_count >= 0);
    for (int tier = 0; tier < KN_TIER_MAX; tier++)
        bytes[tier] = t->weight_bytes[tier] + (uint64_t)llround(seq_count * t->row_bytes[tier]);
    bytes[0] += (uint64_t)seq_count * eng_traffic_kv_bytes(t, context);
}

void eng_traffic_prompt(const struct eng_traffic *t, int64_t steps, int64_t sampled, int64_t tokens,
                        uint64_t bytes[KN_TIER_MAX])
{
    CHECK(sampled >= 0 && sampled <= steps);
    for (int tier = 0; tier < KN_TIER_MAX; tier++)
        bytes[tier] = (uint64_t)steps * (t->weight_bytes[tier] - t->head_bytes[tier]) +
                      (uint64_t)sampled * t->head_bytes[tier] +
                      (uint64_t)llround((double)tokens * t->row_bytes[tier]);
}
