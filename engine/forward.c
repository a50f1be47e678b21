/*
 * forward.c - one step of the model, as the list of its operations.
 *
 * T tokens, R rows wanted, H hidden, Hq and Hkv heads, D head dim, I' padded intermediate,
 * V vocabulary.  x is the residual stream, fp32; h, qkv, attn and mlp are activations in the
 * backend's own type.  What differs between models (biases, norms of q and k, a gate, rope or
 * learned positions) is a NULL pointer or an enumerator in the arguments, so that every model goes
 * through the same lines.
 */
#include "config/check.h"
#include "engine/model_state.h"

static void norm(struct eng_model *m, int32_t rows, const float *x, const float *weight,
                 const float *bias)
{
    kn_norm(m->kn, &(struct kn_norm_args){.kind = m->shape.norm,
                                          .eps = m->shape.norm_eps,
                                          .row_count = rows,
                                          .cols = m->shape.info.hidden,
                                          .x = x,
                                          .weight = weight,
                                          .bias = bias,
                                          .y = m->buffer[ENG_BUFFER_H]});
}

static void gemm(struct eng_model *m, int32_t rows, const kn_act *in, const struct kn_weight *w,
                 const float *bias, enum kn_epilogue epilogue, void *out)
{
    kn_gemm(
        m->kn,
        &(struct kn_gemm_args){
            .w = w, .bias = bias, .row_count = rows, .in = in, .epilogue = epilogue, .out = out});
}

static void embed(struct eng_model *m, const struct kn_batch *batch)
{
    bool positions = m->shape.has & ENG_HAS_POSITIONS;
    kn_embed(m->kn, batch,
             &(struct kn_embed_args){.table = &m->weights.embed,
                                     .pos_table = positions ? &m->weights.positions : NULL,
                                     .pos_offset = m->shape.position_offset,
                                     .x = m->buffer[ENG_BUFFER_X]});
}

/* Norms of q and k, rope, and the append of k and v to the cache. */
static void finish_qkv(struct eng_model *m, const struct kn_batch *batch, const struct kn_kv *kv,
                       int32_t layer)
{
    const struct eng_layer *l = &m->weights.layers[layer];
    kn_qkv(m->kn, batch,
           &(struct kn_qkv_args){.qkv = m->buffer[ENG_BUFFER_QKV],
                                 .q_heads = m->shape.info.q_heads,
                                 .q_norm = l->q_norm,
                                 .k_norm = l->k_norm,
                                 .norm_eps = m->shape.norm_eps,
                                 .rope = m->buffer[ENG_BUFFER_ROPE],
                                 .kv = kv,
                                 .layer = layer});
}

static void attention(struct eng_model *m, const struct kn_batch *batch, const struct kn_kv *kv,
                      int32_t layer)
{
    kn_attention(m->kn, batch,
                 &(struct kn_attention_args){.qkv = m->buffer[ENG_BUFFER_QKV],
                                             .q_heads = m->shape.info.q_heads,
                                             .scale = m->attention_scale,
                                             .window = m->shape.window[layer],
                                             .kv = kv,
                                             .layer = layer,
                                             .out = m->buffer[ENG_BUFFER_ATTN]});
}

void eng_model_forward(struct eng_model *m, const struct kn_batch *batch, const struct kn_kv *kv)
{
    const struct eng_weights *w = &m->weights;
    const enum kn_epilogue activate = m->shape.has & ENG_HAS_GATE ? KN_EPI_SWIGLU : KN_EPI_RELU;
    const int32_t T = batch->token_count;
    float *x = m->buffer[ENG_BUFFER_X];
    kn_act *h = m->buffer[ENG_BUFFER_H], *qkv = m->buffer[ENG_BUFFER_QKV];
    kn_act *attn = m->buffer[ENG_BUFFER_ATTN], *mlp = m->buffer[ENG_BUFFER_MLP];
    CHECK(T > 0 && T <= m->tokens_max);

    embed(m, batch); /* x[T,H] */
    for (int32_t i = 0; i < m->shape.info.layer_count; i++) {
        const struct eng_layer *l = &w->layers[i];
        norm(m, T, x, l->attn_norm, l->attn_norm_bias);         /* h[T,H] */
        gemm(m, T, h, &l->qkv, l->qkv_bias, KN_EPI_STORE, qkv); /* qkv[T,(Hq+2Hkv)*D] */
        finish_qkv(m, batch, kv, i);                            /* qkv, pages */
        attention(m, batch, kv, i);                             /* attn[T,Hq*D] */
        gemm(m, T, attn, &l->o, l->o_bias, KN_EPI_ADD, x);      /* x[T,H] += */
        norm(m, T, x, l->mlp_norm, l->mlp_norm_bias);           /* h[T,H] */
        gemm(m, T, h, &l->up, l->up_bias, activate, mlp);       /* mlp[T,I'] */
        gemm(m, T, mlp, &l->down, l->down_bias, KN_EPI_ADD, x); /* x[T,H] += */
    }
}

void eng_model_logits(struct eng_model *m, const struct kn_batch *batch, float *logits)
{
    const struct eng_weights *w = &m->weights;
    const int32_t R = batch->row_count;
    float *x = m->buffer[ENG_BUFFER_X], *rows = m->buffer[ENG_BUFFER_ROWS];
    kn_act *h = m->buffer[ENG_BUFFER_H];
    CHECK(R > 0 && R <= m->rows_max);

    if (!kn_rows_in_order(batch)) {
        kn_gather(m->kn, batch, m->shape.info.hidden, x, rows); /* rows[R,H] */
        x = rows;
    }
    norm(m, R, x, w->final_norm, w->final_norm_bias);  /* h[R,H] */
    gemm(m, R, h, &w->head, NULL, KN_EPI_F32, logits); /* logits[R,V] */
}
