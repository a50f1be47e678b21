/*
 * qkv.cuh - a head of q, k or v between the QKV product and attention: the sum of the product's
 * parts, RMSNorm, rotary embedding, bf16.  Two kernels do that: qkv.cu for whole steps, and decode
 * attention (attention_qkv.cuh) for what its CTAs need.
 *
 * Invariant: both come to the same bits.  Hence the same orders, and every rounding spelt out, for
 * a compiler may fuse a product into an addition in one place and not in another.
 */
#ifndef DAKD_KERNELS_CUDA_QKV_CUH
#define DAKD_KERNELS_CUDA_QKV_CUH

#include "kernels/cuda/attention_plan.cuh"

/* A head is LANES lanes': 16 where it has up to 128 dimensions, 32 up to 256.  Lane l holds
 * dimensions 4l..4l+3 and their partners half a head above. */
struct cu_qkv_quads {
    float4 low, high;
};

PTX_INLINE cu_qkv_quads cu_qkv_zero()
{
    return {make_float4(0.f, 0.f, 0.f, 0.f), make_float4(0.f, 0.f, 0.f, 0.f)};
}

PTX_INLINE void cu_qkv_add_quad(float4 &x, const float4 &y)
{
    x.x = __fadd_rn(x.x, y.x);
    x.y = __fadd_rn(x.y, y.y);
    x.z = __fadd_rn(x.z, y.z);
    x.w = __fadd_rn(x.w, y.w);
}
/* Parts are added from zero on, in order, the bias last; one that is not there adds zero, which
 * changes nothing. */
PTX_INLINE void cu_qkv_add(cu_qkv_quads &x, const cu_qkv_quads &y)
{
    cu_qkv_add_quad(x.low, y.low);
    cu_qkv_add_quad(x.high, y.high);
}

/* Of two dimensions and their partners. */
PTX_INLINE float cu_qkv_squares(float low_x, float low_y, float high_x, float high_y)
{
    const float low = __fmaf_rn(low_y, low_y, __fmul_rn(low_x, low_x));
    return __fmaf_rn(high_y, high_y, __fmaf_rn(high_x, high_x, low));
}
PTX_INLINE float cu_qkv_inverse_root(float sum, int dim, float eps)
{
    return __fdiv_rn(1.f, __fsqrt_rn(__fadd_rn(__fdiv_rn(sum, (float)dim), eps)));
}
PTX_INLINE float cu_qkv_scaled(float x, float scale, float weight)
{
    return __fmul_rn(__fmul_rn(x, scale), weight);
}
/* 1 / root mean square of the head, for all of its lanes; those without dimensions hold zeros.  The
 * order is that of qkv.cu, where a lane holds two dimensions, or two and those 64 above: what is
 * farthest apart first, neighbours last. */
template <int LANES>
PTX_INLINE float cu_qkv_scale(const cu_qkv_quads &x, float eps, int dim, int lane)
{
    const uint32_t head = LANES == 32 ? 0xffffffffu : 0xffffu << (lane & 16);
    float even = cu_qkv_squares(x.low.x, x.low.y, x.high.x, x.high.y),
          odd = cu_qkv_squares(x.low.z, x.low.w, x.high.z, x.high.w);
#pragma unroll
    for (int d = LANES / 2; d; d /= 2) {
        even = __fadd_rn(even, __shfl_xor_sync(head, even, d));
        odd = __fadd_rn(odd, __shfl_xor_sync(head, odd, d));
    }
    return cu_qkv_inverse_root(__fadd_rn(even, odd), dim, eps);
}

PTX_INLINE void cu_qkv_norm_quad(float4 &x, float scale, const float4 &weight)
{
    x.x = cu_qkv_scaled(x.x, scale, weight.x);
    x.y = cu_qkv_scaled(x.y, scale, weight.y);
    x.z = cu_qkv_scaled(x.z, scale, weight.z);
    x.w = cu_qkv_scaled(x.w, scale, weight.w);
}

PTX_INLINE void cu_qkv_rotate_pair(float &low, float &high, float cos, float sin)
{
    const float x = low;
    low = __fmaf_rn(x, cos, -__fmul_rn(high, sin));
    high = __fmaf_rn(high, cos, __fmul_rn(x, sin));
}
PTX_INLINE void cu_qkv_rotate(cu_qkv_quads &x, const float4 &cos, const float4 &sin)
{
    cu_qkv_rotate_pair(x.low.x, x.high.x, cos.x, sin.x);
    cu_qkv_rotate_pair(x.low.y, x.high.y, cos.y, sin.y);
    cu_qkv_rotate_pair(x.low.z, x.high.z, cos.z, sin.z);
    cu_qkv_rotate_pair(x.low.w, x.high.w, cos.w, sin.w);
}

PTX_INLINE uint2 cu_qkv_pack(const float4 &x)
{
    const __nv_bfloat162 low = __floats2bfloat162_rn(x.x, x.y),
                         high = __floats2bfloat162_rn(x.z, x.w);
    return make_uint2(*(const uint32_t *)&low, *(const uint32_t *)&high);
}

/* Byte of dimension d in a page's row of K or V. */
PTX_INLINE size_t cu_qkv_row_offset(int row, int d)
{
    return (size_t)(d >> 6) * KN_ATOM_BYTES + cu_atom_offset(row, (d & 63) * 2);
}

/* k or v to row `row` of its atoms in a page: all of the row, zeros beyond the head included. */
template <int LANES>
PTX_INLINE void cu_qkv_append(const cu_qkv_quads &x, uint8_t *atoms, int row, int dim, int lane)
{
    const int l = lane & (LANES - 1), half = dim / 2;
    if (4 * l < half) {
        *(uint2 *)(atoms + cu_qkv_row_offset(row, 4 * l)) = cu_qkv_pack(x.low);
        *(uint2 *)(atoms + cu_qkv_row_offset(row, half + 4 * l)) = cu_qkv_pack(x.high);
    }
    for (int d = dim + 4 * l; d < cu_att_atoms(dim) * 64; d += 4 * LANES)
        *(uint2 *)(atoms + cu_qkv_row_offset(row, d)) = make_uint2(0, 0);
}

/* q to row `row` of a query tile; what is beyond the head is left. */
template <int LANES>
PTX_INLINE void cu_qkv_lay_out(const cu_qkv_quads &x, uint8_t *q, int rows, int row, int dim,
                               int lane)
{
    const int d = 4 * (lane & (LANES - 1)), half = dim / 2;
    if (d >= half) return;
    const uint2 low = cu_qkv_pack(x.low), high = cu_qkv_pack(x.high);
    *(uint32_t *)(q + cu_att_q_offset(rows, row, d)) = low.x;
    *(uint32_t *)(q + cu_att_q_offset(rows, row, d + 2)) = low.y;
    *(uint32_t *)(q + cu_att_q_offset(rows, row, half + d)) = high.x;
    *(uint32_t *)(q + cu_att_q_offset(rows, row, half + d + 2)) = high.y;
}

#endif
