/*
 * qkv.c - what happens between the QKV product and attention: per-head RMSNorm, rotary embedding,
 * and appending K and V to the pages.  An append writes the whole 128-byte rows of its atoms, zeros
 * beyond the head dimension included, so a page taken over from another sequence, or memory never
 * cleared, shows nothing of its past to attention.
 */
#include <string.h>

#include "config/check.h"
#include "kernels/cpu/cpu.h"

struct qkv_job {
    const struct kn_batch *batch;
    const struct kn_qkv_args *args;
};

char *kn_cpu_kv_head(const struct kn_kv *kv, int32_t layer, int32_t kv_head, kn_page page)
{
    unsigned tier = kn_page_tier(page);
    CHECK(page != KN_PAGE_NONE && tier < KN_TIER_MAX && kv->base[tier]);
    return (char *)kv->base[tier] + (size_t)kn_page_index(page) * kn_kv_page_bytes(kv) +
           (size_t)layer * kn_kv_layer_bytes(kv) + (size_t)kv_head * kn_kv_head_bytes(kv);
}

/* x[D] = rope(norm(x)), either left out where its table is NULL. */
static void turn_head(const struct kn_qkv_args *a, const float *norm, int32_t position, float *x)
{
    int32_t dim = a->kv->head_dim, half = dim / 2;
    if (norm) kn_cpu_rms_norm_row(x, norm, a->norm_eps, dim, x);
    if (!a->rope) return;
    const float *cosine = a->rope + (size_t)position * (size_t)dim;
    const float *sine = cosine + half;
    for (int32_t d = 0; d < half; d++) {
        float low = x[d], high = x[d + half];
        x[d] = low * cosine[d] - high * sine[d];
        x[d + half] = high * cosine[d] + low * sine[d];
    }
}

static void qkv_item(const void *arg, int32_t token, int worker)
{
    (void)worker;
    const struct qkv_job *job = arg;
    const struct kn_qkv_args *a = job->args;
    const struct kn_batch *batch = job->batch;
    const struct kn_kv *kv = a->kv;
    const struct kn_seq *seq = &batch->seqs[batch->token_seq[token]];
    int32_t dim = kv->head_dim, position = batch->positions[token];
    CHECK(position == seq->kv_count - seq->token_count + token - seq->token_begin);

    size_t head_count = (size_t)a->q_heads + 2 * (size_t)kv->kv_heads;
    float *q = (float *)a->qkv + (size_t)token * head_count * (size_t)dim;
    const float *k = q + (size_t)a->q_heads * (size_t)dim;
    const float *v = k + (size_t)kv->kv_heads * (size_t)dim;
    for (int32_t h = 0; h < a->q_heads; h++) turn_head(a, a->q_norm, position, q + h * dim);

    kn_page page = batch->pages[seq->page_begin + position / KN_PAGE_TOKENS];
    unsigned row = (unsigned)position % KN_PAGE_TOKENS;
    for (int32_t h = 0; h < kv->kv_heads; h++) {
        float turned[KN_HEAD_DIM_MAX];
        memcpy(turned, k + h * dim, (size_t)dim * sizeof(float));
        turn_head(a, a->k_norm, position, turned);
        char *head = kn_cpu_kv_head(kv, a->layer, h, page);
        kn_kv_put_row(kv, head, false, row, turned);
        kn_kv_put_row(kv, head, true, row, v + h * dim);
    }
}

void kn_cpu_qkv(struct kn *kn, const struct kn_batch *batch, const struct kn_qkv_args *a)
{
    struct qkv_job job = {batch, a};
    size_t head_count = (size_t)a->q_heads + 2 * (size_t)a->kv->kv_heads;
    kn_cpu_for((struct kn_cpu *)kn, qkv_item, &job, batch->token_count,
               (size_t)batch->token_count * head_count * (size_t)a->kv->head_dim);
}
