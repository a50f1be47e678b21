/*
 * attention_combine.cuh - the combiner warps of a decode attention CTA: from the accumulators of a
 * unit's four warps to its partial, from a group's partials to one, from a token's groups to the
 * result; always left to right (decode_attention.cuh, invariant 2).
 */
#ifndef DAKD_KERNELS_CUDA_ATTENTION_COMBINE_CUH
#define DAKD_KERNELS_CUDA_ATTENTION_COMBINE_CUH

#include "kernels/cuda/attention_ring.cuh"

/* Four elements of the result. */
PTX_INLINE void cu_att_write(const cu_att_params &p, const cu_att_finished &u, int row, int quad,
                             float4 out, float sum)
{
    const float inverse = 1.f / sum;
    const __nv_bfloat162 low = __floats2bfloat162_rn(out.x * inverse, out.y * inverse);
    const __nv_bfloat162 high = __floats2bfloat162_rn(out.z * inverse, out.w * inverse);
    const int k = (u.head * p.group + row) * p.head_dim + quad * 4;
    *(uint2 *)(p.out + cu_att_out_offset(p.token_rows, u.token, k)) =
        make_uint2(*(const uint32_t *)&low, *(const uint32_t *)&high);
}

/* Merges what the four warps of a team have left of a unit: its partial, or the result where the
 * token has no other unit. */
template <int ATOMS, int ROWS>
PTX_INLINE void cu_att_merge_warps(const cu_att_params &p, cu_att_shared<ATOMS, ROWS> &sh,
                                   const cu_att_finished &u, int thread)
{
    using shape = cu_att_shape<ATOMS, ROWS>;
    const int quads = p.head_dim / 4;
    const size_t row0 = (size_t)u.slot * p.q_heads + u.head * p.group;
    for (int e = thread; e < p.group * quads; e += shape::COMBINERS * 32) {
        const int row = e / quads, quad = e - row * quads;
        const int team = quad / (shape::TILES * 2), in_team = quad - team * shape::TILES * 2;
        float4 out = make_float4(0.f, 0.f, 0.f, 0.f);
        float2 ml[4];
        float most = -INFINITY, sum = 0.f;
#pragma unroll
        for (int w = 0; w < 4; w++) {
            ml[w] = sh.ml[w][row];
            most = fmaxf(most, ml[w].x);
        }
#pragma unroll
        for (int w = 0; w < 4; w++) {
            const float *from =
                cu_att_dump(sh) + ((team * 4 + w) * p.group + row) * shape::DUMP_ROW;
            const float4 x = *(const float4 *)(from + in_team * 4);
            const float factor = ptx_ex2(ml[w].x - most);
            sum = fmaf(factor, ml[w].y, sum);
            out.x = fmaf(factor, x.x, out.x);
            out.y = fmaf(factor, x.y, out.y);
            out.z = fmaf(factor, x.z, out.z);
            out.w = fmaf(factor, x.w, out.w);
        }
        if (u.split_count == 1) {
            cu_att_write(p, u, row, quad, out, sum);
        } else {
            __stcg((float4 *)(p.partial + (row0 + row) * p.head_dim) + quad, out);
            if (quad == 0) __stcg(p.partial_ml + row0 + row, make_float2(most, sum));
        }
    }
}

/* Merges `count` partials, every `stride` slots from `slot` on, left to right.  A group's outcome
 * replaces the output of its first slot, each element by the thread that read it, and has a maximum
 * and sum of its own (group_ml); the root's is divided by the sum and written out. */
template <bool ROOT, int THREADS>
PTX_INLINE void cu_att_merge(const cu_att_params &p, const cu_att_finished &u, const float2 *all_ml,
                             int slot, int stride, int count, int thread)
{
    constexpr int BATCH = 8;
    const int quads = p.head_dim / 4;
    const size_t step = (size_t)stride * p.q_heads;
    const size_t row0 = (size_t)slot * p.q_heads + u.head * p.group;
    for (int e = thread; e < p.group * quads; e += THREADS) {
        const int row = e / quads, quad = e - row * quads;
        const float *from = p.partial + (row0 + row) * p.head_dim + quad * 4;
        float2 ml[CU_ATT_FAN];
        float4 out = make_float4(0.f, 0.f, 0.f, 0.f);
        float most = -INFINITY, sum = 0.f;
#pragma unroll
        for (int i = 0; i < CU_ATT_FAN; i++) {
            ml[i] = make_float2(-INFINITY, 0.f);
            if (i < count) ml[i] = __ldcg(all_ml + row0 + i * step + row);
        }
#pragma unroll
        for (int i = 0; i < CU_ATT_FAN; i++) most = fmaxf(most, ml[i].x);
#pragma unroll
        for (int begin = 0; begin < CU_ATT_FAN; begin += BATCH) { /* so many loads in flight */
            float4 x[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                x[i] = make_float4(0.f, 0.f, 0.f, 0.f);
                if (begin + i < count)
                    x[i] = __ldcg((const float4 *)(from + (begin + i) * step * p.head_dim));
            }
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                const float factor = ptx_ex2(ml[begin + i].x - most);
                sum = fmaf(factor, ml[begin + i].y, sum);
                out.x = fmaf(factor, x[i].x, out.x);
                out.y = fmaf(factor, x[i].y, out.y);
                out.z = fmaf(factor, x[i].z, out.z);
                out.w = fmaf(factor, x[i].w, out.w);
            }
        }
        if (ROOT) {
            cu_att_write(p, u, row, quad, out, sum);
        } else {
            __stcg((float4 *)(p.partial + (row0 + row) * p.head_dim) + quad, out);
            if (quad == 0) __stcg(p.group_ml + row0 + row, make_float2(most, sum));
        }
    }
}

/* Inputs beyond Hq * D of the activation's last block are zero. */
PTX_INLINE void cu_att_clear_tail(const cu_att_params &p, int token, int thread, int threads)
{
    const int begin = p.q_heads * p.head_dim, end = (begin + 127) / 128 * 128;
    for (int k = begin + thread * 4; k < end; k += threads * 4)
        *(uint2 *)(p.out + cu_att_out_offset(p.token_rows, token, k)) = make_uint2(0, 0);
}

/* Counts `units` in; true for all combiners where they were the last, which also clears the count.
 * Where the item is all that is expected there is nothing to count. */
template <int THREADS, typename SHARED>
PTX_INLINE bool cu_att_arrive(SHARED &sh, uint32_t *count, int units, int expected, int thread)
{
    ptx_bar_sync(3, THREADS);
    if (units == expected) return true;
    if (thread == 0) {
        const bool last = ptx_atomic_add_acq_rel(count, units) == (uint32_t)(expected - units);
        if (last) *count = 0;
        sh.combine_last = last;
    }
    ptx_bar_sync(3, THREADS);
    return sh.combine_last;
}

template <int ATOMS, int ROWS>
PTX_INLINE void cu_att_combine(const cu_att_params &p, cu_att_shared<ATOMS, ROWS> &sh, int thread)
{
    constexpr int THREADS = 32 * cu_att_shape<ATOMS, ROWS>::COMBINERS;
    for (int n = 0;; n++) {
        ptx_mbarrier_wait(&sh.finished_full, n & 1);
        const cu_att_finished u = sh.finished;
        if (u.end) break;
        cu_att_merge_warps(p, sh, u, thread);
        ptx_mbarrier_arrive(&sh.finished_empty);
        if (!u.units) continue;
        const float2 *ml = p.partial_ml;
        int stride = 1, count = u.split_count, units = u.units;
        if (count > CU_ATT_FAN) {
            const int group = (u.slot - u.first_slot) / CU_ATT_FAN * CU_ATT_FAN;
            const int first = u.first_slot + group, size = min(CU_ATT_FAN, count - group);
            uint32_t *arrivals = p.group_count + (size_t)first * p.kv_heads + u.head;
            if (!cu_att_arrive<THREADS>(sh, arrivals, units, size, thread)) continue;
            cu_att_merge<false, THREADS>(p, u, ml, first, 1, size, thread);
            ml = p.group_ml;
            stride = CU_ATT_FAN;
            count = (count + CU_ATT_FAN - 1) / CU_ATT_FAN;
            units = 1;
        }
        if (u.split_count > 1) {
            uint32_t *arrivals = p.root_count + (size_t)u.first_slot * p.kv_heads + u.head;
            if (!cu_att_arrive<THREADS>(sh, arrivals, units, count, thread)) continue;
            cu_att_merge<true, THREADS>(p, u, ml, u.first_slot, stride, count, thread);
        }
        if (u.head == p.kv_heads - 1) cu_att_clear_tail(p, u.token, thread, THREADS);
    }
}

#endif
