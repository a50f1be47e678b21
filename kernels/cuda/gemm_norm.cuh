/*
 * gemm_norm.cuh - the RMS norm between two products, done by the two: what a consumer warpgroup of
 * decode_gemm.cuh does besides multiplying.
 *
 * Floor: nothing is read that must come from HBM, so it is all latency.  A kernel of its own cost
 * 6.3 us a norm on an H200: 1.2 until it had its inputs, two trips to L2, 0.7 to 1 us each, its own
 * end, and in all that time only the next product's rings, 5.6 us of HBM, to fill.
 *
 * The product before (cu_finish).  K is cut into parts, each of them a CTA's.  A CTA leaves its
 * sums in memory as its threads hold them, so that the same threads of another read them, 16 bytes
 * each and all sectors whole, and counts itself in.  The last to come adds up the tile: old
 * residual stream, parts in order of k, bias; its own part from registers at its place, so that it
 * does not matter who was last.  It stores the residual stream, the activations x * gain, and the
 * tile's sum of squares.  All others end at once, and the next product's rings fill in their place.
 * Trips after the last multiplication: stores and fence, the counter, parts.
 *
 * The product after (cu_token_scales, cu_scale_sums).  The division by the root mean square is
 * linear, so it waits for the sums of this product: they are multiplied by its inverse, which each
 * CTA adds up while its first activations are on their way.  bf16 is as good for x * gain as for
 * the quotient, for its error is relative.
 *
 * Prediction: 2 us more for the product before, 6.3 us of norm less; at 1 token of Llama-3.1-8B 64
 * x 4.3 us = 0.28 ms of 3.91.
 *
 * Invariants
 *  1. Bits are those of parts left to sm90_settle, and its sum to sm90_square (small.cu), which do
 *     the same where no product comes right before the norm: same orders, same roundings.  (Hence
 *     the explicit ones: a product fused into an addition would not be rounded.)
 *  2. A tile's counter is zero before and after each launch.  Parts without blocks count, too.
 *  3. Nobody waits for another CTA.
 *  4. Activations beyond the columns are zero, up to the end of the block of 128.
 */
#ifndef DAKD_KERNELS_CUDA_GEMM_NORM_CUH
#define DAKD_KERNELS_CUDA_GEMM_NORM_CUH

#include "kernels/cuda/gemm_epilogue.cuh"
#include "kernels/cuda/gemm_work.cuh"

/* What the four warps share. */
template <int TB> struct cu_norm_shared {
    uint32_t last; /* whether this CTA is the last of a tile's parts */
    float scale[TB];
    float squares[4][TB];
};

/* --- the product after --- */

/* What each token's sums are to be multiplied by. */
template <int TB>
PTX_INLINE void cu_token_scales(const cu_gemm &g, cu_norm_shared<TB> &shared, int thread)
{
    constexpr int LANES = 128 / TB; /* that share a token */
    const int token = thread / LANES, lane = thread % LANES;
    const int32_t stride = kn_cu_sums_stride(g.scale.cols), count = (g.scale.cols + 63) / 64;
    float sum = 0.f;
    if (token < g.tokens) {
        const float4 *row = (const float4 *)(g.scale.sums + (size_t)token * stride);
#pragma unroll 4
        for (int q = lane; 4 * q < count; q += LANES) {
            const float4 v = __ldcg(row + q);
            sum += v.x;
            sum += 4 * q + 1 < count ? v.y : 0.f;
            sum += 4 * q + 2 < count ? v.z : 0.f;
            sum += 4 * q + 3 < count ? v.w : 0.f;
        }
    }
#pragma unroll
    for (int d = LANES / 2; d > 0; d /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, d);
    if (lane == 0) shared.scale[token] = 1.f / sqrtf(sum / (float)g.scale.cols + g.scale.eps);
    ptx_bar_sync(1, 128);
}

template <int REGISTERS>
PTX_INLINE void cu_scale_sums(float (&acc)[REGISTERS], const cu_norm_shared<REGISTERS * 2> &shared,
                              int lane)
{
#pragma unroll
    for (int i = 0; i < REGISTERS; i++) {
        const int token = i / 4 * 8 + (lane & 3) * 2 + (i & 1);
        acc[i] = __fmul_rn(acc[i], shared.scale[token]);
    }
}

/* --- the product before --- */

/* A thread's two rows of a tile, and what is known of them beforehand. */
struct cu_norm_rows {
    int32_t r[2];
    bool real[2]; /* not beyond the last */
    float gain[2], bias[2];
};

PTX_INLINE cu_norm_rows cu_rows_of(const cu_gemm &g, int32_t tile, int warp, int lane)
{
    cu_norm_rows rows;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        rows.r[i] = tile * 64 + warp * 16 + (lane >> 2) + 8 * i;
        rows.real[i] = rows.r[i] < g.rows;
        rows.gain[i] = rows.real[i] ? __ldg(g.norm.gain + rows.r[i]) : 0.f;
        rows.bias[i] = rows.real[i] && g.bias ? __ldg(g.bias + rows.r[i]) : 0.f;
    }
    return rows;
}

/* Leaves a unit's sums for the last of the tile's parts; whether this is the last. */
template <int TB>
PTX_INLINE bool cu_leave_part(const cu_gemm &g, cu_norm_shared<TB> &shared, const cu_unit &u,
                              const float (&acc)[TB / 2], int thread)
{
    const int parts = 1 << g.part_shift;
    float4 *out =
        (float4 *)g.norm.fragments + (size_t)(u.group * parts + u.part) * (TB / 8) * 128 + thread;
    if (parts > 1)
#pragma unroll
        for (int c = 0; c < TB / 8; c++)
            __stcg(out + c * 128,
                   make_float4(acc[4 * c], acc[4 * c + 1], acc[4 * c + 2], acc[4 * c + 3]));
    ptx_bar_sync(1, 128); /* also: what the unit before left in shared memory has been read */
    if (parts == 1) return true;
    if (thread == 0) {
        uint32_t *arrived = &g.norm.arrived[u.group];
        shared.last = ptx_atomic_add_acq_rel(arrived, 1) == (uint32_t)parts - 1;
        if (shared.last) *arrived = 0;
    }
    ptx_bar_sync(1, 128);
    return shared.last;
}

/* The sum of the old residual stream, all parts and the bias, to acc.  All loads are on their way
 * before the first is used. */
template <int TB>
PTX_INLINE void cu_add_parts(const cu_gemm &g, const cu_unit &u, float (&acc)[TB / 2],
                             const cu_norm_rows &rows, int warp, int lane)
{
    const int parts = 1 << g.part_shift;
    const float4 *in = (const float4 *)g.norm.fragments + (size_t)u.group * parts * (TB / 8) * 128 +
                       warp * 32 + lane;
    float4 old[TB / 8], part[TB / 8][KN_CU_PARTS_MAX];
#pragma unroll
    for (int c = 0; c < TB / 8; c++) {
        old[c] = cu_gemm_old(g, u.group, warp, c, lane);
#pragma unroll
        for (int p = 0; p < KN_CU_PARTS_MAX; p++) {
            part[c][p] = make_float4(acc[4 * c], acc[4 * c + 1], acc[4 * c + 2], acc[4 * c + 3]);
            if (p < parts && p != u.part) part[c][p] = __ldcg(in + (p * (TB / 8) + c) * 128);
        }
    }
#pragma unroll
    for (int c = 0; c < TB / 8; c++) {
        float v[4] = {old[c].x, old[c].y, old[c].z, old[c].w};
#pragma unroll
        for (int p = 0; p < KN_CU_PARTS_MAX; p++) {
            if (p >= parts) continue;
            v[0] += part[c][p].x;
            v[1] += part[c][p].y;
            v[2] += part[c][p].z;
            v[3] += part[c][p].w;
        }
#pragma unroll
        for (int i = 0; i < 4; i++) acc[4 * c + i] = g.bias ? v[i] + rows.bias[i / 2] : v[i];
    }
}

/* The end of a unit of a product with a norm after it. */
template <int TB>
PTX_INLINE void cu_finish(const cu_gemm &g, cu_norm_shared<TB> &shared, const cu_unit &u,
                          float (&acc)[TB / 2], const cu_norm_rows &rows, int warp, int lane)
{
    const int thread = warp * 32 + lane;
    const int limit = u.group == g.tile_count - 1 ? (g.tile_count * 64 + 127) & ~127 : 0;
    if (!cu_leave_part<TB>(g, shared, u, acc, thread)) return;
    cu_add_parts<TB>(g, u, acc, rows, warp, lane);
#pragma unroll
    for (int i = 0; i < TB / 4; i++) { /* a token of two rows each */
        const int t = i / 2 * 8 + (lane & 3) * 2 + (i & 1);
        float x[2];
#pragma unroll
        for (int j = 0; j < 2; j++) {
            x[j] = rows.real[j] ? acc[i / 2 * 4 + 2 * j + (i & 1)] : 0.f;
            if (t < g.tokens && rows.real[j])
                ((float *)g.out)[(size_t)t * g.rows + rows.r[j]] = x[j];
            cu_store_act(g, g.norm.y, TB, t, rows.r[j], 64, limit, x[j] * rows.gain[j]);
        }
        float sum = __fmaf_rn(x[0], x[0], __fmul_rn(x[1], x[1]));
#pragma unroll
        for (int d = 4; d < 32; d *= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, d);
        if (lane < 4) shared.squares[warp][t] = sum;
    }
    ptx_bar_sync(1, 128);
    if (thread < g.tokens) {
        float *sums = (float *)((char *)g.norm.y + (size_t)((g.rows + 127) / 128) * TB * 256);
        float sum = shared.squares[0][thread];
#pragma unroll
        for (int i = 1; i < 4; i++) sum += shared.squares[i][thread];
        sums[(size_t)thread * kn_cu_sums_stride(g.rows) + u.group] = sum;
    }
}

#endif
