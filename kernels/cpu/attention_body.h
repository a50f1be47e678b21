/*
 * attention_body.h - causal attention of a run of one sequence's tokens for one kv-head, for the
 * instruction set of the including isa_*.c.
 *
 * A row is one (token, query head) pair; up to 24 rows go through the pages together, so that each
 * page is widened to fp32 once for all of them.  Per page, in the order of positions: scores scale
 * * q . k for the keys a row may see, minus infinity for the others of the page; softmax  online:
 * the running maximum m, the sum l and the output so far are rescaled by e^(m_old - m_new); output
 * out += p . v, key by key. A row's result depends on its q, its position, the window and the KV it
 * may see: pages begin at multiples of 64 whatever the batch, pages a row does not see leave it
 * alone, and keys it does not see enter neither sum, so neither chunking nor bytes not yet written
 * reach it.
 */
#ifndef DAKD_KERNELS_CPU_ATTENTION_BODY_H
#define DAKD_KERNELS_CPU_ATTENTION_BODY_H

#include <math.h>

#include "kernels/cpu/gemm_body.h"
#include "kernels/e4m3.h"

/* Up to 24 rows on their way through the pages. */
struct attend {
    const struct kn_attention_args *a;
    struct kn_cpu_attention_scratch *s;
    int row_count;
    int padded_dim;                       /* elements of an atom row times atoms: row stride in s */
    int32_t begin[KN_CPU_ATTENTION_ROWS]; /* the row sees positions [begin, end) */
    int32_t end[KN_CPU_ATTENTION_ROWS];
    float max[KN_CPU_ATTENTION_ROWS], sum[KN_CPU_ATTENTION_ROWS];
    float *out[KN_CPU_ATTENTION_ROWS]; /* [D] in the operation's output */
};

/* What a row sees of the page that begins at position `first`: keys [*from, *to) of it.  False:
 * nothing. */
INLINE bool seen_keys(const struct attend *at, int row, int32_t first, int *from, int *to)
{
    int32_t begin = at->begin[row] - first, end = at->end[row] - first;
    *from = begin > 0 ? begin : 0;
    *to = end < KN_PAGE_TOKENS ? end : KN_PAGE_TOKENS;
    return *from < *to;
}

INLINE float sum_lanes(v8 v)
{
    float t[KN_CPU_LANES];
    v8_store(t, v);
    return ((t[0] + t[1]) + (t[2] + t[3])) + ((t[4] + t[5]) + (t[6] + t[7]));
}

/* Elements of a K or V row with its padding: the row stride in scratch. */
static int padded_dim_of(const struct kn_kv *kv)
{
    if (kv->dtype == KN_E4M3) return kn_e4m3_width(kv->head_dim);
    int atom_cols = kv->dtype == KN_F32 ? 32 : 64;
    return (kv->head_dim + atom_cols - 1) / atom_cols * atom_cols;
}

/* One row of fp8; exact.  Elements of NaN come with a scale of NaN. */
static void widen_e4m3(const struct kn_kv *kv, const char *head, bool value, int row, float *out)
{
    const char *exponents = head + kn_e4m3_exponents_at(kv->head_dim);
    const float scale = kn_e4m3_scale((uint8_t)exponents[(value ? KN_PAGE_TOKENS : 0) + row]);
    for (int32_t d = 0; d < kn_e4m3_width(kv->head_dim); d += 16) {
        const char *chunk = head + kn_e4m3_at(kv->head_dim, value, (unsigned)row, d);
        for (int i = 0; i < 16; i++)
            out[d + i] = kn_f32_from_e4m3_number((uint8_t)chunk[i]) * scale;
    }
}

/* Widens rows [row_begin, row_end) of a head's K, or of its V, into s->page. */
static void widen_keys(struct attend *at, const char *head, bool value, int row_begin, int row_end)
{
    const struct kn_kv *kv = at->a->kv;
    if (kv->dtype == KN_E4M3) {
        for (int r = row_begin; r < row_end; r++)
            widen_e4m3(kv, head, value, r, at->s->page + (size_t)r * (size_t)at->padded_dim);
        return;
    }
    const char *atoms = head + (value ? kn_kv_head_bytes(kv) / 2 : 0);
    int atom_cols = kv->dtype == KN_F32 ? 32 : 64;
    for (int c = 0; c < at->padded_dim; c += atom_cols, atoms += KN_ATOM_BYTES)
        widen_atom(kv->dtype, atoms, row_begin, row_end, at->s->page + c, (size_t)at->padded_dim);
}

/* s->score of all rows against keys [8 * group_begin, 8 * group_end) of the widened page. */
static void score_keys(struct attend *at, int group_begin, int group_end)
{
    struct kn_cpu_attention_scratch *s = at->s;
    size_t dim = (size_t)at->padded_dim;
    for (int g = group_begin; g < group_end; g++) {
        memset(s->acc[g], 0, (size_t)at->row_count * sizeof s->acc[g][0]);
        dot_group(s->page + (size_t)g * 8 * dim, dim, s->q, dim, at->row_count, (int)dim / 8,
                  s->acc[g]);
        for (int r = 0; r < at->row_count; r++) {
            v8 dot = v8_sum_each((const float(*)[KN_CPU_LANES])s->acc[g][r]);
            v8_store(s->score[r] + g * 8, v8_mul(dot, v8_set(at->a->scale)));
        }
    }
}

/* Turns a row's scores into e^(score - m), 0 for keys outside [from, to), and rescales what the row
 * has so far. */
static void soften_row(struct attend *at, int row, int from, int to)
{
    float *score = at->s->score[row];
    for (int i = 0; i < from; i++) score[i] = -INFINITY;
    for (int i = to; i < KN_PAGE_TOKENS; i++) score[i] = -INFINITY;
    v8 max = v8_load(score);
    for (int i = 8; i < KN_PAGE_TOKENS; i += 8) max = v8_max(max, v8_load(score + i));
    float new_max = at->max[row];
    float lane[KN_CPU_LANES];
    v8_store(lane, max);
    for (int i = 0; i < KN_CPU_LANES; i++) new_max = lane[i] > new_max ? lane[i] : new_max;

    v8 sum = v8_set(0.0f);
    for (int i = 0; i < KN_PAGE_TOKENS; i += 8) {
        v8 p = v8_exp(v8_sub(v8_load(score + i), v8_set(new_max)));
        v8_store(score + i, p);
        sum = v8_add(sum, p);
    }
    v8 rescale = v8_exp(v8_set(at->max[row] - new_max));
    v8_store(lane, rescale);
    at->sum[row] = at->sum[row] * lane[0] + sum_lanes(sum);
    at->max[row] = new_max;
    float *out = at->s->out + (size_t)row * (size_t)at->padded_dim;
    for (int d = 0; d < at->padded_dim; d += 8)
        v8_store(out + d, v8_mul(v8_load(out + d), rescale));
}

/* 32 outputs of one row: out += sum over keys of p[key] * v[key]. */
INLINE void add_values_32(const float *p, const float *v, size_t v_stride, int from, int to,
                          float *out)
{
    v8 s0 = v8_load(out), s1 = v8_load(out + 8), s2 = v8_load(out + 16), s3 = v8_load(out + 24);
    v += (size_t)from * v_stride;
    for (int key = from; key < to; key++, v += v_stride) {
        v8 weight = v8_set(p[key]);
        s0 = v8_fma(weight, v8_load(v), s0);
        s1 = v8_fma(weight, v8_load(v + 8), s1);
        s2 = v8_fma(weight, v8_load(v + 16), s2);
        s3 = v8_fma(weight, v8_load(v + 24), s3);
    }
    v8_store(out, s0);
    v8_store(out + 8, s1);
    v8_store(out + 16, s2);
    v8_store(out + 24, s3);
}

/* 64 outputs of one row: eight sums at a time keep both multipliers busy. */
INLINE void add_values_64(const float *p, const float *v, size_t v_stride, int from, int to,
                          float *out)
{
    v8 s0 = v8_load(out), s1 = v8_load(out + 8), s2 = v8_load(out + 16), s3 = v8_load(out + 24);
    v8 s4 = v8_load(out + 32), s5 = v8_load(out + 40), s6 = v8_load(out + 48);
    v8 s7 = v8_load(out + 56);
    v += (size_t)from * v_stride;
    for (int key = from; key < to; key++, v += v_stride) {
        v8 weight = v8_set(p[key]);
        s0 = v8_fma(weight, v8_load(v), s0);
        s1 = v8_fma(weight, v8_load(v + 8), s1);
        s2 = v8_fma(weight, v8_load(v + 16), s2);
        s3 = v8_fma(weight, v8_load(v + 24), s3);
        s4 = v8_fma(weight, v8_load(v + 32), s4);
        s5 = v8_fma(weight, v8_load(v + 40), s5);
        s6 = v8_fma(weight, v8_load(v + 48), s6);
        s7 = v8_fma(weight, v8_load(v + 56), s7);
    }
    v8_store(out, s0);
    v8_store(out + 8, s1);
    v8_store(out + 16, s2);
    v8_store(out + 24, s3);
    v8_store(out + 32, s4);
    v8_store(out + 40, s5);
    v8_store(out + 48, s6);
    v8_store(out + 56, s7);
}

/* All rows against the widened V of the page at `first`, 64 columns at a time so that they stay in
 * the L1 cache. */
static void add_page_values(struct attend *at, int32_t first)
{
    struct kn_cpu_attention_scratch *s = at->s;
    size_t dim = (size_t)at->padded_dim;
    int from, to;
    size_t d = 0;
    for (; d + 64 <= dim; d += 64)
        for (int r = 0; r < at->row_count; r++)
            if (seen_keys(at, r, first, &from, &to))
                add_values_64(s->score[r], s->page + d, dim, from, to,
                              s->out + (size_t)r * dim + d);
    for (; d < dim; d += 32)
        for (int r = 0; r < at->row_count; r++)
            if (seen_keys(at, r, first, &from, &to))
                add_values_32(s->score[r], s->page + d, dim, from, to,
                              s->out + (size_t)r * dim + d);
}

static void attend_page(struct attend *at, const char *head, int32_t first)
{
    int row_begin = KN_PAGE_TOKENS, row_end = 0; /* keys that any row sees */
    int from, to;
    for (int r = 0; r < at->row_count; r++) {
        if (!seen_keys(at, r, first, &from, &to)) continue;
        row_begin = from < row_begin ? from : row_begin;
        row_end = to > row_end ? to : row_end;
    }
    if (row_begin >= row_end) return;
    int group_begin = row_begin / 8, group_end = (row_end + 7) / 8;
    widen_keys(at, head, false, group_begin * 8, group_end * 8);
    score_keys(at, group_begin, group_end);
    for (int r = 0; r < at->row_count; r++)
        if (seen_keys(at, r, first, &from, &to)) soften_row(at, r, from, to);
    widen_keys(at, head, true, row_begin, row_end);
    add_page_values(at, first);
}

static void attend_rows(const struct kn_cpu_attention_item *item, struct attend *at)
{
    const struct kn_seq *seq = &item->batch->seqs[item->seq];
    int32_t begin = INT32_MAX, end = 0;
    for (int r = 0; r < at->row_count; r++) {
        begin = at->begin[r] < begin ? at->begin[r] : begin;
        end = at->end[r] > end ? at->end[r] : end;
    }
    for (int32_t page = begin / KN_PAGE_TOKENS; page * KN_PAGE_TOKENS < end; page++) {
        kn_page entry = item->batch->pages[seq->page_begin + page];
        const char *head = kn_cpu_kv_head(at->a->kv, at->a->layer, item->kv_head, entry);
        attend_page(at, head, page * KN_PAGE_TOKENS);
    }
    int32_t dim = at->a->kv->head_dim;
    for (int r = 0; r < at->row_count; r++) {
        const float *out = at->s->out + (size_t)r * (size_t)at->padded_dim;
        for (int32_t d = 0; d < dim; d++) at->out[r][d] = out[d] / at->sum[r];
    }
}

/* Takes row r, query head `head` of `token`, into the scratch. */
static void begin_row(const struct kn_cpu_attention_item *item, struct attend *at, int r,
                      int32_t token, int32_t head)
{
    const struct kn_attention_args *a = item->args;
    size_t dim = (size_t)a->kv->head_dim, padded = (size_t)at->padded_dim;
    size_t heads = (size_t)a->q_heads + 2 * (size_t)a->kv->kv_heads;
    int32_t position = item->batch->positions[token];
    at->begin[r] = a->window > 0 && position >= a->window ? position - a->window + 1 : 0;
    at->end[r] = position + 1;
    at->max[r] = -INFINITY;
    at->sum[r] = 0.0f;
    at->out[r] = (float *)a->out + ((size_t)token * (size_t)a->q_heads + (size_t)head) * dim;
    const float *q = (const float *)a->qkv + ((size_t)token * heads + (size_t)head) * dim;
    float *row = at->s->q + (size_t)r * padded;
    memcpy(row, q, dim * sizeof(float));
    memset(row + dim, 0, (padded - dim) * sizeof(float));
    memset(at->s->out + (size_t)r * padded, 0, padded * sizeof(float));
}

static void isa_attention(const struct kn_cpu_attention_item *item,
                          struct kn_cpu_attention_scratch *s)
{
    const struct kn_kv *kv = item->args->kv;
    struct attend at = {.a = item->args, .s = s};
    at.padded_dim = padded_dim_of(kv);
    int32_t group = item->args->q_heads / kv->kv_heads;
    int64_t row_total = (int64_t)item->token_count * group;
    for (int64_t first = 0; first < row_total; first += at.row_count) {
        int64_t left = row_total - first;
        at.row_count = left < KN_CPU_ATTENTION_ROWS ? (int)left : KN_CPU_ATTENTION_ROWS;
        for (int r = 0; r < at.row_count; r++) {
            int32_t token = item->token_begin + (int32_t)((first + r) / group);
            int32_t head = item->kv_head * group + (int32_t)((first + r) % group);
            begin_row(item, &at, r, token, head);
        }
        attend_rows(item, &at);
    }
}

#endif
