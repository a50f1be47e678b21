/*
 * decode_attention.cuh - one token's attention over its sequence's KV pages, for many tokens.
 *
 * Floor: the bytes of K and V over the bandwidth of the tier they lie in.  At 4.7 TB/s an SM takes
 * a 64-token page of one 128-wide head (32 KB) every 0.92 us, some 1,560 cycles.  Four warps keep
 * up with that: each reads 8 KB of the page by ldmatrix, multiplies 32 times with mma.sync and
 * exponentiates 4 or 8 scores a thread (left out, the softmax changes no timing).  So wgmma would
 * gain nothing; what matters is that the ring of bulk copies is full from the first microsecond to
 * the last.
 *
 * One CTA per SM, of four kinds of warps:
 *
 * Producer (attention_ring.cuh): takes items from the work list and keeps five or six 16 KB copies
 * in flight.  The next items' tickets, words and page tables are read while this one's pages are
 * issued, so that no latency empties the ring.  Pages that this step does not write are fetched
 * before griddepcontrol.wait.
 *
 * Consumers (here): warp w takes tokens 16w..16w+15 of every page, with a softmax and an
 * accumulator of its own, so they need no barrier among themselves.  The group's query heads are
 * the 16 rows of the MMA (8 or fewer leave the upper half idle); the scores' accumulator layout is
 * the A operand of P.V, so P never leaves its registers.  At head dimension 256 two teams of four
 * share a page: both compute all scores, each half the output.  At a unit's end the warps leave
 * their accumulators in shared memory and go on.
 *
 * Combiners (attention_combine.cuh): merge the four warps' accumulators into the unit's partial and
 * count a run of units in.  Who completes a group of 16 units merges them, who completes a token's
 * groups merges those and writes the result.  They stand apart because a release and an atomic take
 * a microsecond or two under load.
 *
 * Poller (attention_ring.cuh): where the CTA reads a remote tier, stamps landings.
 *
 * Invariants
 *
 *  1. A unit's partial depends on q and the keys the token sees: keys outside [key_begin, key_end)
 *     get score -inf, and their V is cleared bit by bit, so NaN in unwritten memory stays there.
 *
 *  2. Merges run left to right over warps, units, groups, whoever performs them.
 *
 *  3. All counters are zero before and after a launch.  The plan and pages older than the step are
 *     the only memory read before griddepcontrol.wait.
 *
 *  4. A stage is filled again after all consumer warps (and the poller) have arrived on its empty
 *     barrier; the accumulators' place after all combiner threads have.
 *
 *  5. Every CTA takes its first items by rank and the rest by ticket, so a CTA that reads slow
 *     memory is simply given fewer local items.
 *
 * P is rounded to bf16 for P.V and the sum of weights is of the rounded values, so the weights are
 * exactly normalised: |error| <= 2^-8 * (sum p|v| / sum p + |out|), then the result's rounding.
 *
 * Measured on an H200, 32/8 heads of 128, as a share of a kernel that only streams (4.70 TB/s):
 * 64 x 4,096 0.93, 1 x 131,072 0.92, 8 x 16,384 0.93, 128 x 1,024 0.92.  A lone sequence of 512
 * takes 6 us, of 4,096 9.8 us.  Lost are the last items' unevenness, the final merge (about 3 us),
 * and some 0.36 us a unit, which neither softmax nor the partials' stores account for.
 *
 * After FlashDecoding and FlashMLA; the ring and its remote window after DAK.
 */
#ifndef DAKD_KERNELS_CUDA_DECODE_ATTENTION_CUH
#define DAKD_KERNELS_CUDA_DECODE_ATTENTION_CUH

#include "kernels/cuda/attention_combine.cuh"
#include "kernels/cuda/attention_ring.cuh"

/* --- consumers --- */

/* A warp's share of a unit: rows as the mma's accumulators hold them, row lane / 4 and that + 8. */
template <int ATOMS, int ROWS> struct cu_att_state {
    using shape = cu_att_shape<ATOMS, ROWS>;
    uint32_t q[shape::STEPS][2 * shape::HALVES];
    float out[shape::TILES][4];
    float max[shape::HALVES]; /* of scale * score, log2 domain */
    float sum[shape::HALVES]; /* this thread's part */
};

template <int ATOMS, int ROWS>
PTX_INLINE void cu_att_read_q(cu_att_state<ATOMS, ROWS> &st, const uint8_t *q, int lane)
{
    using shape = cu_att_shape<ATOMS, ROWS>;
#pragma unroll
    for (int k = 0; k < shape::STEPS; k++) {
        if (ROWS == 8) {
            const uint2 r = *(const uint2 *)(q + k * 256 + lane * 8);
            st.q[k][0] = r.x;
            st.q[k][1] = r.y;
        } else {
            const uint4 r = *(const uint4 *)(q + k * 512 + lane * 16);
            st.q[k][0] = r.x;
            st.q[k][1] = r.y;
            st.q[k][2 * shape::HALVES - 2] = r.z;
            st.q[k][2 * shape::HALVES - 1] = r.w;
        }
    }
}

template <int ATOMS, int ROWS> PTX_INLINE void cu_att_begin(cu_att_state<ATOMS, ROWS> &st)
{
    using shape = cu_att_shape<ATOMS, ROWS>;
#pragma unroll
    for (int n = 0; n < shape::TILES; n++)
        st.out[n][0] = st.out[n][1] = st.out[n][2] = st.out[n][3] = 0.f;
#pragma unroll
    for (int h = 0; h < shape::HALVES; h++) {
        st.max[h] = -INFINITY;
        st.sum[h] = 0.f;
    }
}

/* score[tile of 8 tokens] += q . k over STEP_COUNT steps; their K atoms begin at `atoms`.  All K is
 * read before the first product, and even and odd steps add up apart, for two chains of dependent
 * instructions in place of one. */
template <int ATOMS, int ROWS, int FIRST_STEP, int STEP_COUNT>
PTX_INLINE void cu_att_score(const cu_att_state<ATOMS, ROWS> &st, float (&score)[2][2][4],
                             uint32_t atoms, int row, int chunk_half)
{
    uint32_t k[STEP_COUNT][4];
#pragma unroll
    for (int i = 0; i < STEP_COUNT; i++) {
        const uint32_t chunk = ((i & 3) * 2 + chunk_half) ^ (row & 7);
        ptx_ldmatrix_x4(k[i], atoms + (i >> 2) * KN_ATOM_BYTES + row * 128 + (chunk << 4));
    }
#pragma unroll
    for (int i = 0; i < STEP_COUNT; i++) {
        const uint32_t *q = st.q[FIRST_STEP + i];
        const uint32_t a[4] = {q[0], ROWS == 8 ? 0 : q[1], ROWS == 8 ? q[1] : q[ROWS / 8],
                               ROWS == 8 ? 0 : q[ROWS / 4 - 1]};
        ptx_mma_m16n8k16(score[i & 1][0], a, k[i][0], k[i][1]);
        ptx_mma_m16n8k16(score[i & 1][1], a, k[i][2], k[i][3]);
    }
}

/* Keys outside [begin, end) of the page: score -inf, and a zero in the mask of V. */
PTX_INLINE void cu_att_mask(float (&score)[2][4], uint32_t (&mask)[2], int first, int begin,
                            int end)
{
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int key = first + n * 8 + j;
            if (key >= begin && key < end) continue;
            score[n][j] = score[n][2 + j] = -INFINITY;
            mask[n] &= j ? 0x0000ffffu : 0xffff0000u;
        }
}

PTX_INLINE float cu_att_widen(uint32_t pair, int high)
{
    return __uint_as_float(high ? pair & 0xffff0000u : pair << 16);
}

/* Scores to weights, as the A operand of P.V; rescales what the warp has so far. */
template <int ATOMS, int ROWS>
PTX_INLINE void cu_att_soften(cu_att_state<ATOMS, ROWS> &st, const float (&score)[2][4],
                              float scale_log2, uint32_t (&weight)[4])
{
    using shape = cu_att_shape<ATOMS, ROWS>;
    float rescale[shape::HALVES];
    bool same = true;
    weight[1] = weight[3] = 0;
#pragma unroll
    for (int h = 0; h < shape::HALVES; h++) {
        float most = fmaxf(fmaxf(score[0][2 * h], score[0][2 * h + 1]),
                           fmaxf(score[1][2 * h], score[1][2 * h + 1]));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
        const float max = fmaxf(st.max[h], most * scale_log2);
        const float shift = max == -INFINITY ? 0.f : max;
        rescale[h] = ptx_ex2(st.max[h] - shift);
        same = same && rescale[h] == 1.f;
        st.max[h] = max;
        float sum = 0.f;
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const float w0 = ptx_ex2(fmaf(score[n][2 * h], scale_log2, -shift));
            const float w1 = ptx_ex2(fmaf(score[n][2 * h + 1], scale_log2, -shift));
            const __nv_bfloat162 pair = __floats2bfloat162_rn(w0, w1);
            const uint32_t bits = *(const uint32_t *)&pair;
            weight[2 * n + h] = bits;
            sum += cu_att_widen(bits, 0) + cu_att_widen(bits, 1);
        }
        st.sum[h] = fmaf(st.sum[h], rescale[h], sum);
    }
    if (__all_sync(0xffffffffu, same)) return; /* times one: the same bits */
#pragma unroll
    for (int n = 0; n < shape::TILES; n++)
#pragma unroll
        for (int h = 0; h < shape::HALVES; h++) {
            st.out[n][2 * h] *= rescale[h];
            st.out[n][2 * h + 1] *= rescale[h];
        }
}

/* Reads four 16-wide pieces of the warp's 16 tokens of V from piece FIRST on. */
template <int FIRST>
PTX_INLINE void cu_att_read_values(uint32_t (&v)[4][4], uint32_t atoms, int row, int chunk_half)
{
#pragma unroll
    for (int d = 0; d < 4; d++) {
        const uint32_t chunk = (d * 2 + chunk_half) ^ (row & 7);
        ptx_ldmatrix_x4_trans(v[d], atoms + FIRST / 4 * KN_ATOM_BYTES + row * 128 + (chunk << 4));
    }
}

/* out += weights . V for these pieces. */
template <int FIRST, int TILES>
PTX_INLINE void cu_att_add_values(float (&out)[TILES][4], const uint32_t (&weight)[4],
                                  const uint32_t (&mask)[2], const uint32_t (&v)[4][4])
{
#pragma unroll
    for (int d = 0; d < 4; d++) {
        float(&low)[4] = out[(2 * (FIRST + d)) % TILES],
        (&high)[4] = out[(2 * (FIRST + d) + 1) % TILES];
        ptx_mma_m16n8k16(low, weight, v[d][0] & mask[0], v[d][1] & mask[1]);
        ptx_mma_m16n8k16(high, weight, v[d][2] & mask[0], v[d][3] & mask[1]);
    }
}

/* One warp lets go of a stage. */
template <typename SHARED>
PTX_INLINE void cu_att_release(SHARED &sh, cu_att_cursor *at, int stages, int lane)
{
    __syncwarp();
    if (CU_ATT_ARRIVALS == 32 || lane == 0) ptx_mbarrier_arrive(&sh.empty[at->stage]);
    cu_att_next(at, stages);
}

/* Leaves the warp's accumulators to the combiners, who merge the four warps of a team. */
template <int ATOMS, int ROWS>
PTX_INLINE void cu_att_hand_over(const cu_att_params &p, cu_att_shared<ATOMS, ROWS> &sh,
                                 cu_att_state<ATOMS, ROWS> &st, int count, int warp, int lane)
{
    using shape = cu_att_shape<ATOMS, ROWS>;
    if (count)
        ptx_mbarrier_wait(&sh.finished_empty, (count & 1) ^ 1); /* the unit before is merged */
#pragma unroll
    for (int h = 0; h < shape::HALVES; h++) {
        const int row = h * 8 + (lane >> 2);
        st.sum[h] += __shfl_xor_sync(0xffffffffu, st.sum[h], 1);
        st.sum[h] += __shfl_xor_sync(0xffffffffu, st.sum[h], 2);
        if (row >= p.group) continue;
        if (warp < 4 && (lane & 3) == 0) sh.ml[warp][row] = make_float2(st.max[h], st.sum[h]);
        float *to = cu_att_dump(sh) + (warp * p.group + row) * shape::DUMP_ROW + (lane & 3) * 2;
#pragma unroll
        for (int n = 0; n < shape::TILES; n++)
            *(float2 *)(to + n * 8) = make_float2(st.out[n][2 * h], st.out[n][2 * h + 1]);
    }
    ptx_mbarrier_arrive(&sh.finished_full);
}

template <int ATOMS, int ROWS>
PTX_INLINE void cu_att_consume(const cu_att_params &p, cu_att_shared<ATOMS, ROWS> &sh, int warp,
                               int lane)
{
    using shape = cu_att_shape<ATOMS, ROWS>;
    const int team = warp >> 2, w = warp & 3;
    /* ldmatrix rows: for K the second pair of matrices is tokens + 8, for V dims + 8. */
    const int k_row = w * 16 + (lane >> 4) * 8 + (lane & 7), k_half = (lane >> 3) & 1;
    const int v_row = w * 16 + ((lane >> 3) & 1) * 8 + (lane & 7), v_half = lane >> 4;
    const uint32_t ring = ptx_shared(cu_att_ring(sh, p.stages, 0));
    cu_att_state<ATOMS, ROWS> st;
    cu_att_cursor at;
    int q_slot = 0, finished = 0;
    for (;;) {
        ptx_mbarrier_wait(&sh.full[at.stage], at.parity);
        const cu_att_page &page = sh.page[at.stage];
        const int key_begin = page.key_begin, key_end = page.key_end, flags = page.flags;
        if (flags & CU_ATT_END) break;
        if (flags & CU_ATT_ITEM) cu_att_read_q(st, sh.q[q_slot], lane);
        if (flags & CU_ATT_FIRST) cu_att_begin(st);
        if (++q_slot == shape::Q_SLOTS) q_slot = 0;

        const bool last = flags & CU_ATT_LAST;
        if (last && warp == 0) {
            if (finished) ptx_mbarrier_wait(&sh.finished_empty, (finished & 1) ^ 1);
            if (lane == 0)
                sh.finished = {page.token,      page.slot, page.first_slot,
                               page.unit_count, page.head, flags};
        }

        float parts[2][2][4] = {};
        uint32_t v[4][4];
        uint32_t stage = ring + at.stage * CU_ATT_STAGE_BYTES;
        if (ATOMS == 4) {
            cu_att_score<ATOMS, ROWS, 0, 8>(st, parts, stage, k_row, k_half);
            cu_att_release(sh, &at, p.stages, lane);
            ptx_mbarrier_wait(&sh.full[at.stage], at.parity);
            stage = ring + at.stage * CU_ATT_STAGE_BYTES;
        }
        cu_att_score<ATOMS, ROWS, ATOMS == 4 ? shape::STEPS - 8 : 0, ATOMS == 1 ? 4 : 8>(
            st, parts, stage, k_row, k_half);
        if (ATOMS == 1) {
            stage += KN_ATOM_BYTES;
        } else {
            cu_att_release(sh, &at, p.stages, lane);
            ptx_mbarrier_wait(&sh.full[at.stage], at.parity);
            if (shape::TEAMS == 2 && team == 1) { /* its half of V is the next stage */
                cu_att_release(sh, &at, p.stages, lane);
                ptx_mbarrier_wait(&sh.full[at.stage], at.parity);
            }
            stage = ring + at.stage * CU_ATT_STAGE_BYTES;
        }
        cu_att_read_values<0>(v, stage, v_row, v_half);
        float score[2][4];
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) score[n][j] = parts[0][n][j] + parts[1][n][j];
        uint32_t mask[2] = {~0u, ~0u}, weight[4];
        if (key_begin > 0 || key_end < KN_PAGE_TOKENS)
            cu_att_mask(score, mask, w * 16 + (lane & 3) * 2, key_begin, key_end);
        cu_att_soften(st, score, p.scale_log2, weight);
        cu_att_add_values<0>(st.out, weight, mask, v);
        if (ATOMS > 1) {
            cu_att_read_values<4>(v, stage, v_row, v_half);
            cu_att_add_values<4>(st.out, weight, mask, v);
        }
        cu_att_release(sh, &at, p.stages, lane);
        if (shape::TEAMS == 2 && team == 0) { /* the other half of V */
            ptx_mbarrier_wait(&sh.full[at.stage], at.parity);
            cu_att_release(sh, &at, p.stages, lane);
        }
        if (last) cu_att_hand_over(p, sh, st, finished++, warp, lane);
    }
    if (finished) ptx_mbarrier_wait(&sh.finished_empty, (finished & 1) ^ 1);
    if (warp == 0 && lane == 0) sh.finished.flags = CU_ATT_END;
    ptx_mbarrier_arrive(&sh.finished_full);
}

/* --- the kernel --- */

template <int ATOMS, int ROWS>
__global__ void __launch_bounds__(cu_att_shape<ATOMS, ROWS>::THREADS)
    __maxnreg__((cu_att_shape<ATOMS, ROWS>::REGISTERS))
        sm90_bf16_decode_attention(const __grid_constant__ cu_att_params p)
{
    using shape = cu_att_shape<ATOMS, ROWS>;
    extern __shared__ __align__(1024) uint8_t shared[]; /* no swizzle unit reads it: 16 would do */
    cu_att_shared<ATOMS, ROWS> &sh =
        *(cu_att_shared<ATOMS, ROWS> *)(shared + p.stages * CU_ATT_STAGE_BYTES);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    ptx_griddep_launch();
    const cu_att_role role = cu_att_role_of(p, blockIdx.x, gridDim.x);
    if (threadIdx.x == 0) {
        for (int s = 0; s < p.stages; s++) {
            ptx_mbarrier_init(&sh.full[s], 1);
            ptx_mbarrier_init(&sh.empty[s], CU_ATT_ARRIVALS * shape::CONSUMERS + (role.tier != 0));
        }
        ptx_mbarrier_init(&sh.finished_full, 32 * shape::CONSUMERS);
        ptx_mbarrier_init(&sh.finished_empty, 32 * shape::COMBINERS);
        ptx_fence_mbarrier_init();
    }
    __syncthreads();
    if (warp < shape::CONSUMERS) {
        cu_att_consume<ATOMS, ROWS>(p, sh, warp, lane);
    } else if (warp == shape::CONSUMERS) {
        if (role.tier == 0) cu_att_produce<ATOMS, ROWS, false>(p, sh, role, lane);
        else cu_att_produce<ATOMS, ROWS, true>(p, sh, role, lane);
    } else if (warp == shape::CONSUMERS + 1) {
        if (role.tier != 0 && lane == 0) cu_att_poll(p, sh);
    } else {
        cu_att_combine(p, sh, threadIdx.x - 32 * (shape::CONSUMERS + 2));
    }
}

#endif
