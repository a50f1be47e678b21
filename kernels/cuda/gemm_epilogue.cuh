/*
 * gemm_epilogue.cuh - what happens to a finished sum of a GEMM before it is stored.
 *
 * Sums come as warp fragments of the m64 wgmma: a lane holds rows r and r + 8 of 16, tokens t and
 * t + 1 of 8.
 */
#ifndef DAKD_KERNELS_CUDA_GEMM_EPILOGUE_CUH
#define DAKD_KERNELS_CUDA_GEMM_EPILOGUE_CUH

#include "kernels/cuda/gemm_work.cuh"

/* silu(gate) * up, of products of more than 32 tokens. */
PTX_INLINE float cu_swiglu(float gate, float up)
{
    return gate * ptx_rcp(1.f + ptx_ex2(gate * -1.4426950408889634f)) * up;
}

/* An activation; the last tile also clears what the next GEMM's last block reads beyond the
 * columns. */
PTX_INLINE void cu_store_act(const cu_gemm &g, void *act, int tb, int t, int i, int stride,
                             int limit, float v)
{
    uint8_t *out = (uint8_t *)act;
    if (t >= g.tokens) return;
    *(__nv_bfloat16 *)(out + kn_cu_act_offset(tb, t, i)) = __float2bfloat16(v);
    for (int k = i + stride; k < limit; k += stride)
        *(__nv_bfloat16 *)(out + kn_cu_act_offset(tb, t, k)) = __float2bfloat16(0.f);
}

/* What KN_EPI_ADD finds at the four outputs of a lane's fragment; zeros for the others. */
PTX_INLINE float4 cu_gemm_old(const cu_gemm &g, int tile, int warp, int n, int lane)
{
    const int r0 = tile * 64 + warp * 16 + (lane >> 2), r1 = r0 + 8, t = n * 8 + (lane & 3) * 2;
    float4 old = make_float4(0.f, 0.f, 0.f, 0.f);
    if (g.epilogue != KN_EPI_ADD) return old;
    const float *out = (const float *)g.out + (size_t)t * g.rows;
    if (t < g.tokens && r0 < g.rows) old.x = out[r0];
    if (t < g.tokens && r1 < g.rows) old.z = out[r1];
    if (t + 1 < g.tokens && r0 < g.rows) old.y = out[g.rows + r0];
    if (t + 1 < g.tokens && r1 < g.rows) old.w = out[g.rows + r1];
    return old;
}

/* A warp fragment of the finished product: rows r and r + 8, tokens t and t + 1. */
template <int TB>
PTX_INLINE void cu_gemm_store(const cu_gemm &g, int tile, int warp, int n, int lane, float4 v,
                              float4 old)
{
    const int r0 = tile * 64 + warp * 16 + (lane >> 2), r1 = r0 + 8, t = n * 8 + (lane & 3) * 2;
    const float b0 = g.bias && r0 < g.rows ? g.bias[r0] : 0.f,
                b1 = g.bias && r1 < g.rows ? g.bias[r1] : 0.f;
    const float r0t[2] = {v.x + b0, v.y + b0}, r1t[2] = {v.z + b1, v.w + b1};
    const bool last = tile == g.tile_count - 1;
    if (tile >= g.tile_count) return;
    if (g.epilogue == KN_EPI_SWIGLU) {
        /* r0 is a gate row, r1 its up row (kn_glu_row). */
        const int i = tile * 32 + warp * 8 + (lane >> 2),
                  limit = last ? (g.tile_count * 32 + 127) & ~127 : 0;
#pragma unroll
        for (int j = 0; j < 2; j++)
            cu_store_act(g, g.out, TB, t + j, i, 32, limit,
                         r0t[j] / (1.f + __expf(-r0t[j])) * r1t[j]);
    } else if (g.epilogue == KN_EPI_RELU) {
        const int limit = last ? (g.tile_count * 64 + 127) & ~127 : 0;
#pragma unroll
        for (int j = 0; j < 2; j++) {
            cu_store_act(g, g.out, TB, t + j, r0, 64, limit, fmaxf(r0t[j], 0.f));
            cu_store_act(g, g.out, TB, t + j, r1, 64, limit, fmaxf(r1t[j], 0.f));
        }
    } else {
        const float o0[2] = {old.x, old.y}, o1[2] = {old.z, old.w};
#pragma unroll
        for (int j = 0; j < 2; j++) {
            if (t + j >= g.tokens) continue;
            float *out = (float *)g.out + (size_t)(t + j) * g.rows;
            if (r0 < g.rows) out[r0] = o0[j] + r0t[j];
            if (r1 < g.rows) out[r1] = o1[j] + r1t[j];
        }
    }
}

/* A part's sum, for another kernel to add up. */
PTX_INLINE void cu_gemm_store_partial(const cu_gemm &g, int part, int tile, int warp, int n,
                                      int lane, float4 v)
{
    const int r0 = tile * 64 + warp * 16 + (lane >> 2), r1 = r0 + 8, t = n * 8 + (lane & 3) * 2;
    float *out = g.partial + ((size_t)part * g.tokens + t) * g.rows;
    if (t < g.tokens && r0 < g.rows) out[r0] = v.x;
    if (t < g.tokens && r1 < g.rows) out[r1] = v.z;
    if (t + 1 < g.tokens && r0 < g.rows) out[g.rows + r0] = v.y;
    if (t + 1 < g.tokens && r1 < g.rows) out[g.rows + r1] = v.w;
}

#endif
