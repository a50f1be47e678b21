/*
 * model.c - see model.h: opening and closing; forward.c computes.
 *
 * Weights lie in the tiers.  What a step works on (activations, the rope table) is memory of the
 * model's own, from kn_alloc, allocated before the weights are read so that too large a step fails
 * at once.
 */
#include "engine/model.h"

#include <math.h>
#include <stdlib.h>

#include "config/check.h"
#include "engine/model_state.h"

#define TOKENS_MAX (1 << 20)
#define ROPE_CHUNK_ROWS 1024

enum status eng_model_read_shape(const char *dir, const struct eng_model_options *opt,
                                 struct eng_shape *shape, char *err)
{
    enum kn_dtype dtype;
    if (opt->hf_overrides && *opt->hf_overrides && opt->load_format != ENG_LOAD_DUMMY)
        return err_set(err, ST_INVALID,
                       "--hf-overrides changes sizes of the model, and a checkpoint has those of "
                       "its config.json: add --load-format dummy, or leave it out");
    enum status st = eng_shape_read(dir, opt->dtype, opt->hf_overrides, shape, err);
    if (st) return st;
    if (!shape->dtype_known && opt->load_format == ENG_LOAD_SAFETENSORS) {
        if ((st = eng_weights_stored_dtype(dir, shape, &dtype, err))) return st;
        eng_shape_set_dtype(shape, dtype);
    }
    return eng_weights_bytes(shape, &shape->info.weight_bytes, err);
}

enum status eng_model_read_info(const char *dir, const struct eng_model_options *opt,
                                struct eng_model_info *out, char *err)
{
    struct eng_shape shape;
    enum status st = eng_model_read_shape(dir, opt, &shape, err);
    if (!st) *out = shape.info;
    return st;
}

static enum status check_options(const struct eng_model_options *opt, const struct eng_shape *shape,
                                 char *err)
{
    if (opt->tokens_max < 1 || opt->tokens_max > TOKENS_MAX)
        return err_set(err, ST_INVALID,
                       "a step of %d tokens (--max-num-batched-tokens) is not "
                       "between 1 and %d",
                       opt->tokens_max, TOKENS_MAX);
    if (opt->rows_max < 1 || opt->rows_max > opt->tokens_max)
        return err_set(err, ST_INVALID,
                       "a step of %d sequences (--max-num-seqs) is not between 1 and "
                       "its %d tokens (--max-num-batched-tokens)",
                       opt->rows_max, opt->tokens_max);
    if (opt->model_len_max < 0 || opt->model_len_max > shape->info.context_max)
        return err_set(
            err, ST_INVALID,
            "--max-model-len %d is not between 1 and the %d positions the model was made "
            "for",
            opt->model_len_max, shape->info.context_max);
    return ST_OK;
}

static size_t elements(int32_t rows, int32_t cols)
{
    return (size_t)rows * (size_t)cols;
}

static enum status alloc_buffers(struct eng_model *m, char *err)
{
    const struct eng_model_info *i = &m->shape.info;
    int32_t T = m->tokens_max, R = m->rows_max;
    int32_t qkv = (i->q_heads + 2 * i->kv_heads) * i->head_dim;
    int32_t mlp = (int32_t)round_up((size_t)i->intermediate, 8);
    size_t *bytes = m->buffer_bytes;
    bytes[ENG_BUFFER_X] = elements(T, i->hidden) * sizeof(float);
    bytes[ENG_BUFFER_H] = kn_act_bytes(m->kn, T > R ? T : R, i->hidden);
    bytes[ENG_BUFFER_QKV] = kn_act_bytes(m->kn, T, qkv);
    bytes[ENG_BUFFER_ATTN] = kn_act_bytes(m->kn, T, i->q_heads * i->head_dim);
    bytes[ENG_BUFFER_MLP] = kn_act_bytes(m->kn, T, mlp);
    bytes[ENG_BUFFER_ROWS] = elements(R, i->hidden) * sizeof(float);
    if (m->shape.has & ENG_HAS_ROPE)
        bytes[ENG_BUFFER_ROPE] = elements(m->model_len_max, i->head_dim) * sizeof(float);
    for (int b = 0; b < ENG_BUFFER_COUNT; b++) {
        if (bytes[b] == 0) continue;
        enum status st = kn_alloc(m->kn, KN_MEM_LOCAL, 0, bytes[b], &m->buffer[b], err);
        if (st) return st;
    }
    return ST_OK;
}

static enum status fill_rope(struct eng_model *m, char *err)
{
    size_t row_bytes = (size_t)m->shape.info.head_dim * sizeof(float);
    enum status st = ST_OK;
    if (!m->buffer[ENG_BUFFER_ROPE]) return ST_OK;
    float *rows = malloc(ROPE_CHUNK_ROWS * row_bytes);
    if (!rows) return err_set(err, ST_NOMEM, "no memory for the table of rotary positions");
    for (int32_t p = 0; p < m->model_len_max && !st; p += ROPE_CHUNK_ROWS) {
        int32_t left = m->model_len_max - p,
                count = left < ROPE_CHUNK_ROWS ? left : ROPE_CHUNK_ROWS;
        char *dst = (char *)m->buffer[ENG_BUFFER_ROPE] + (size_t)p * row_bytes;
        eng_rope_table(&m->shape.rope, p, count, rows);
        st = kn_upload(m->kn, dst, rows, (size_t)count * row_bytes);
        if (st)
            err_set(err, st, "the table of rotary positions could not be copied: %s",
                    status_text(st));
    }
    free(rows);
    return st;
}

enum status eng_model_open(struct kn *kn, struct off_tiers *tiers, const char *dir,
                           const struct eng_model_options *opt, struct eng_model **out, char *err)
{
    enum status st;
    struct kn_kv kv;
    *out = NULL;
    struct eng_model *m = calloc(1, sizeof *m);
    if (!m) return err_set(err, ST_NOMEM, "no memory for a model");
    m->kn = kn;
    if ((st = eng_model_read_shape(dir, opt, &m->shape, err))) goto fail;
    if ((st = check_options(opt, &m->shape, err))) goto fail;
    eng_model_kv(m, &kv);
    if ((st = kn_check_model(kn, m->shape.info.dtype, m->shape.info.q_heads, &kv, err))) goto fail;
    m->tokens_max = opt->tokens_max;
    m->rows_max = opt->rows_max;
    m->model_len_max = opt->model_len_max ? opt->model_len_max : m->shape.info.context_max;
    m->attention_scale = (float)(1 / sqrt(m->shape.info.head_dim));
    if ((st = alloc_buffers(m, err))) goto fail;
    if ((st = eng_weights_load(kn, tiers, dir, &m->shape, opt, &m->weights, err))) goto fail;
    if ((st = fill_rope(m, err))) goto fail;
    *out = m;
    return ST_OK;
fail:
    eng_model_close(m);
    return st;
}

void eng_model_close(struct eng_model *m)
{
    if (!m) return;
    for (int b = 0; b < ENG_BUFFER_COUNT; b++)
        if (m->buffer[b]) kn_free(m->kn, KN_MEM_LOCAL, m->buffer[b], m->buffer_bytes[b]);
    eng_weights_deinit(&m->weights);
    free(m);
}

enum status eng_model_place(struct eng_model *m, const struct off_tiers *tiers,
                            const struct eng_model_options *opt, char *err)
{
    enum status st = kn_stage(m->kn, NULL, 0, 0, err);
    return st ? st : eng_weights_place(&m->shape, tiers, opt, &m->weights, err);
}

const struct eng_model_info *eng_model_info(const struct eng_model *m)
{
    return &m->shape.info;
}

const struct eng_shape *eng_model_shape(const struct eng_model *m)
{
    return &m->shape;
}

const struct eng_weights *eng_model_weights(const struct eng_model *m)
{
    return &m->weights;
}

uint64_t eng_model_tier_bytes(const struct eng_model *m, int tier)
{
    CHECK(tier >= 0 && tier < KN_TIER_MAX);
    return m->weights.tier_bytes[tier];
}

void eng_model_kv(const struct eng_model *m, struct kn_kv *kv)
{
    *kv = (struct kn_kv){.dtype = m->shape.info.kv_dtype,
                         .layer_count = m->shape.info.layer_count,
                         .kv_heads = m->shape.info.kv_heads,
                         .head_dim = m->shape.info.head_dim};
}
