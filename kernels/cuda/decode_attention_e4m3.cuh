/*
 * decode_attention_e4m3.cuh - the consumer warps of decode attention where KV is in fp8 (kernels.h;
 * everything else of the kernel is in decode_attention.cuh).
 *
 * Floor: half of bf16's, 16.5 KB a page of a 128-wide head: at 4.7 TB/s an SM takes one every 0.46
 * us, 830 cycles.  A warp's chain of dependent instructions does not halve with the bytes, so there
 * are two teams of four warps that take a unit's pages in turn, each with a softmax of its own; the
 * combiners fold all eight.  With two combiners in place of four there are twelve warps, and at 128
 * registers the next kernel's CTA still fits.  Converting costs 64 cvt and 16 prmt a page and warp,
 * some 150 of the 830 cycles of a scheduler; an SM converts 128 numbers a cycle and takes in 20.
 * Predicted: 1,100 cycles a page and team, of the 1,660 it has: bound by HBM, 0.95 of its rate.
 * Measured (H200, 32/8 heads): 0.84 to 0.85 of it at 64 x 4,096, 0.76 to 0.78 at 128 x 1,024 and
 * 1 x 131,072: the chain is longer than that.
 *
 * Numbers.  e4m3 is exact in f16, so both products run in f16 with fp32 sums: a query is rounded to
 * 11 bits where bf16 has 8, and so is a weight.  Scales are powers of two and fold in exactly: a
 * key's multiplies its score; a value's is added to the score's logarithm, so that the weight of
 * token t is w = 2^(s + k - m), with s its score in the log2 domain, 2^k its value's scale, and m
 * the running maximum of s + k.  Then w is at most 2^CU_ATT_TOP whatever the scales, and the sum
 * that divides the result in the end is that of w * 2^-k, in fp32 and not rounded to f16.
 *     |error| <= 2^-11 * sum p|v| / sum p + n * 2^-39 * max p|v| / sum p, then the result's
 * rounding
 *
 * Which dimension is where.  ldmatrix moves pairs of bytes as if they were one element: a thread
 * has dimensions 4c .. 4c + 3 of a key's 16 (c: lane % 4), where the product wants 2c, 2c + 1, 2c +
 * 8 and 2c + 9; queries are stored with their dimensions in that order (cu_att_e4m3_slot).
 * Transposed, a thread has dimensions 2r and 2r + 1 (r: lane / 4) of two tokens of V: dimension 2r
 * becomes the tile's row r and 2r + 1 row r + 8, and the hand-over writes them where they belong.
 *
 * Whose turn a page is depends on its place in the unit alone, so results are the same bits for
 * every placement and neighbour.  The other team goes past it: it waits for the page's words, no
 * more.
 *
 * Tried and dropped: one team whose warps take two pages side by side, the registers and barriers
 * of one bf16 page for both: 0.836 of HBM's rate at 64 x 4,096, 0.758 at 128 x 1,024.
 */
#ifndef DAKD_KERNELS_CUDA_DECODE_ATTENTION_E4M3_CUH
#define DAKD_KERNELS_CUDA_DECODE_ATTENTION_E4M3_CUH

#include <cuda_fp16.h>

#include "kernels/cuda/decode_attention.cuh"
#include "kernels/e4m3.h"

/* log2 of the largest weight: f16 ends at 2^16, and what is 2^-38 of the largest is zero. */
constexpr float CU_ATT_TOP = 14.f;

/* What of a page a thread needs beside its elements: of its tokens lane / 4 and that + 8 of the
 * warp's 16. */
struct cu_att_e4m3_scales {
    float key[2];     /* times the softmax's scale, log2 domain */
    float value[2];   /* log2 */
    float inverse[2]; /* 1 / of value's scale */
};

/* The first of the thread's two tokens is `token`; those outside [begin, end) have any scale. */
PTX_INLINE void cu_att_read_scales(cu_att_e4m3_scales &s, const uint8_t *exponents, int token,
                                   int begin, int end, float scale_log2)
{
#pragma unroll
    for (int n = 0; n < 2; n++) {
        const int t = token + n * 8;
        const bool seen = t >= begin && t < end;
        const uint32_t key = seen ? exponents[t] : 127,
                       value = seen ? exponents[KN_PAGE_TOKENS + t] : 127;
        s.key[n] = __uint_as_float(key << 23) * scale_log2;
        s.value[n] = (float)((int)value - 127);
        s.inverse[n] = __uint_as_float(254 - value << 23);
    }
}

/* score[chain][half] += k . q for the warp's 16 tokens of a page. */
template <int ROWS>
PTX_INLINE void cu_att_score_e4m3(const cu_att_state<CU_ATT_E4M3, ROWS> &st,
                                  float (&score)[2][ROWS / 8][4], const uint32_t (&k)[4][4])
{
    constexpr int HALVES = ROWS / 8;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            const uint32_t *word = &k[i][2 * c];
            const uint32_t a[4] = {
                ptx_f16x2_of_e4m3x2_low(word[0]), ptx_f16x2_of_e4m3x2_low(word[1]),
                ptx_f16x2_of_e4m3x2_high(word[0]), ptx_f16x2_of_e4m3x2_high(word[1])};
#pragma unroll
            for (int h = 0; h < HALVES; h++)
                ptx_mma_f16_m16n8k16(score[c][h], a, st.q[2 * i + c][h],
                                     st.q[2 * i + c][HALVES + h]);
        }
}

/* Scores to weights, as the B operand of V.P; rescales what the warp has so far. */
template <int ROWS>
PTX_INLINE void
cu_att_soften_e4m3(cu_att_state<CU_ATT_E4M3, ROWS> &st, const float (&score)[ROWS / 8][4],
                   const cu_att_e4m3_scales &scales, uint32_t (&weight)[ROWS / 8][2])
{
    constexpr int HALVES = ROWS / 8;
    float rescale[HALVES][2];
#pragma unroll
    for (int h = 0; h < HALVES; h++) {
        float w[2][2]; /* [token, token + 8][head, head + 1] */
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const float shift = cu_att_raise(st, score[h], 1.f, h, j, rescale[h][j]);
#pragma unroll
            for (int n = 0; n < 2; n++)
                w[n][j] = ptx_ex2(score[h][2 * n + j] - (shift - CU_ATT_TOP));
            st.sum[h][j] = fmaf(st.sum[h][j], rescale[h][j],
                                fmaf(w[1][j], scales.inverse[1], w[0][j] * scales.inverse[0]));
        }
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const __half2 pair = __floats2half2_rn(w[n][0], w[n][1]);
            weight[h][n] = ptx_movmatrix_trans(*(const uint32_t *)&pair);
        }
    }
    cu_att_rescale(st, rescale);
}

/* out += V . weights. */
template <int ROWS>
PTX_INLINE void cu_att_add_values_e4m3(cu_att_state<CU_ATT_E4M3, ROWS> &st,
                                       const uint32_t (&weight)[ROWS / 8][2],
                                       const uint32_t (&v)[4][4])
{
#pragma unroll
    for (int n = 0; n < 8; n++) {
        /* Of tokens t, t + 1 and dimensions d, d + 1: (t, d), (t + 1, d), (t, d + 1), (t + 1, d +
         * 1). */
        const uint32_t near = __byte_perm(v[n / 2][n % 2 * 2], 0, 0x3120),
                       far = __byte_perm(v[n / 2][n % 2 * 2 + 1], 0, 0x3120);
        const uint32_t a[4] = {ptx_f16x2_of_e4m3x2_low(near), ptx_f16x2_of_e4m3x2_high(near),
                               ptx_f16x2_of_e4m3x2_low(far), ptx_f16x2_of_e4m3x2_high(far)};
#pragma unroll
        for (int h = 0; h < ROWS / 8; h++)
            ptx_mma_f16_m16n8k16(st.out[h][n], a, weight[h][0], weight[h][1]);
    }
}

/* A page of the warp's team, whose stage has landed; lets go of the stage. */
template <int ROWS>
PTX_INLINE void cu_att_take_page_e4m3(const cu_att_params &p, cu_att_shared<CU_ATT_E4M3, ROWS> &sh,
                                      cu_att_state<CU_ATT_E4M3, ROWS> &st, cu_att_cursor &at,
                                      int part, int lane)
{
    using shape = cu_att_shape<CU_ATT_E4M3, ROWS>;
    constexpr int HALVES = shape::HALVES;
    const uint8_t *page = cu_att_ring(sh, p.stages, at.stage);
    const uint32_t keys = ptx_shared(page);
    /* ldmatrix rows, of K and of V: the second matrix is tokens + 8, the third 16 bytes on. */
    const int row = part * 16 + ((lane >> 3) & 1) * 8 + (lane & 7), half = lane >> 4;
    const int begin = sh.page[at.stage].key_begin, end = sh.page[at.stage].key_end;
    const int token = part * 16 + (lane >> 2);
    uint32_t k[4][4], v[4][4];
#pragma unroll
    for (int i = 0; i < 4; i++) ptx_ldmatrix_x4(k[i], cu_att_piece(keys, i, row, half));
    cu_att_e4m3_scales scales;
    cu_att_read_scales(scales, page + CU_ATT_E4M3_ATOMS_BYTES, token, begin, end, p.scale_log2);
    float parts[2][HALVES][4] = {}, score[HALVES][4];
    cu_att_score_e4m3<ROWS>(st, parts, k);
#pragma unroll
    for (int i = 0; i < 4; i++)
        ptx_ldmatrix_x4_trans(v[i], cu_att_piece(keys + KN_ATOM_BYTES, i, row, half));
    cu_att_release(sh, &at, p.stages, lane);
#pragma unroll
    for (int h = 0; h < HALVES; h++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            score[h][j] =
                fmaf(parts[0][h][j] + parts[1][h][j], scales.key[j >> 1], scales.value[j >> 1]);
    if (begin > 0 || end < KN_PAGE_TOKENS) {
        cu_att_mask_scores(score, token, begin, end);
        cu_att_mask_values<1>(v, part * 16 + (lane & 3) * 2, begin, end);
    }
    uint32_t weight[HALVES][2];
    cu_att_soften_e4m3<ROWS>(st, score, scales, weight);
    cu_att_add_values_e4m3<ROWS>(st, weight, v);
}

template <int ROWS>
PTX_INLINE void cu_att_consume_e4m3(const cu_att_params &p, cu_att_shared<CU_ATT_E4M3, ROWS> &sh,
                                    int warp, int lane)
{
    using shape = cu_att_shape<CU_ATT_E4M3, ROWS>;
    cu_att_state<CU_ATT_E4M3, ROWS> st;
    cu_att_cursor at;
    int q_slot = 0, finished = 0, turn = 0;
    for (;; turn ^= 1) {
        ptx_mbarrier_wait(&sh.full[at.stage], at.parity);
        const cu_att_page &page = sh.page[at.stage];
        const int flags = page.flags;
        if (flags & CU_ATT_END) break;
        if (flags & CU_ATT_ITEM) cu_att_read_q(st, sh.q[q_slot], lane);
        if (flags & CU_ATT_FIRST) {
            cu_att_begin(st);
            turn = 0;
        }
        if (++q_slot == shape::Q_SLOTS) q_slot = 0;
        if ((flags & CU_ATT_LAST) && warp == 0) cu_att_announce(sh, page, flags, finished, lane);
        if (warp >> 2 == turn) cu_att_take_page_e4m3<ROWS>(p, sh, st, at, warp & 3, lane);
        else cu_att_release(sh, &at, p.stages, lane);
        if (flags & CU_ATT_LAST) cu_att_hand_over(p, sh, st, finished++, warp, lane);
    }
    cu_att_announce_end(sh, finished, warp, lane);
}

#endif
