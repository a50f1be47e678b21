/*
 * decode_attention.cuh - one token's attention over its sequence's KV pages, for many tokens.
 *
 * Floor: the bytes of K and V over the bandwidth of the tier they lie in.  At 4.7 TB/s an SM takes
 * a 64-token page of one 128-wide head (32 KB) every 0.92 us, some 1,650 cycles.  Four warps need
 * 1,100 for it, one long chain of dependent instructions each (ldmatrix, products, maximum,
 * exponentials, products), so wgmma would gain little, and between its first page and its last a
 * CTA runs at 0.99 of the streaming rate.  What matters is that all CTAs end at once, and that
 * little is left to do then.
 *
 * One CTA per SM, of four kinds of warps:
 *
 * Producer (attention_ring.cuh): takes items from the work list and keeps five or six 16 KB copies
 * in flight.  The next item's ticket, words and page table are read while this one's pages are
 * issued, so that no latency empties the ring.  Pages that this step does not write are fetched
 * before griddepcontrol.wait, and of those it does write the rest is brought to L2.
 *
 * Consumers (here): warp w takes tokens 16w..16w+15 of every page, with a softmax and an
 * accumulator of its own, so they need no barrier among themselves.  All is transposed: tokens are
 * the rows of K.Q, dimensions those of V.P, and the group's query heads the 8 or 16 columns, so
 * that a group of up to eight fills the instruction.  P turns from accumulator to operand by
 * movmatrix.  At head dimension 256 two teams of four share a page: both compute all scores, each
 * half the output.  At a unit's end the warps leave their accumulators in shared memory and go on.
 *
 * Combiners (attention_combine.cuh): make a unit of the warps' accumulators, fold it onto its
 * group or store it, and count in items that are not all there is of their token; who completes a
 * group folds it, who completes a token's groups folds those and writes the result.  They stand
 * apart because an atomic and the partials' loads take microseconds under load.
 *
 * Poller (attention_ring.cuh): where the CTA reads a remote tier, stamps landings.
 *
 * Invariants
 *
 *  1. A unit's partial depends on q and the keys the token sees: keys outside [key_begin, key_end)
 *     get score -inf, and their V is cleared bit by bit, so NaN in unwritten memory stays there.
 *
 *  2. Folds run left to right over warps, units, groups, whoever performs them.
 *
 *  3. Counters and partials are zero before and after a launch.  The plan and pages older than the
 *     step are the only memory read before griddepcontrol.wait.
 *
 *  4. A stage is filled again after all consumer warps (and the poller) have arrived on its empty
 *     barrier; the accumulators' place after all combiner threads have.
 *
 *  5. Every CTA takes its first items by rank and the rest by ticket, so a CTA that reads slow
 *     memory is simply given fewer local items.
 *
 *  6. A CTA waits for another only where both hold one item each (a spread plan), or for stores
 *     that the other has already issued.
 *
 * P is rounded to bf16 for V.P and the sum of weights is of the rounded values, so the weights are
 * exactly normalised: |error| <= 2^-8 * (sum p|v| / sum p + |out|), then the result's rounding.
 *
 * The next kernel's CTAs may come in when the previous kernel is complete, not before: its weights,
 * 13 MB at once, are what everybody's trips to memory would wait behind.  One of its CTAs must fit
 * beside one of these: 128 registers a thread just do (a quarter of an SM has three of our warps
 * and two of theirs), 136 do not.
 *
 * Measured on an H200, 32/8 heads of 128, as a share of a kernel that only streams (4.69 TB/s),
 * and cuDNN's time over this one's in the same run: 64 x 4,096 0.963, 1.005; 1 x 131,072 0.913,
 * 0.988; 8 x 16,384 0.940, 1.018; 128 x 1,024 0.955, 1.035; a lone sequence of 512 4.2 us, 2.04,
 * of 4,096 8.6 us, 1.34.  Between its first page and its last a CTA runs at 0.99 of the streaming
 * rate; what is lost is lost in the last microseconds, to CTAs that end unevenly and to the folds.
 *
 * In a step of the 8B shape, 1,024 tokens of context, from the previous kernel's end to this one's:
 * 10.1 us at 1 token (0.9 at the floor), 13.4 at 8 (7.2), 36.8 at 32 (28.8), 130.8 at 128 (115.0).
 * At 1 token: inputs at 0.8, queries at 1.4, four pages done at 3.6, most units in memory at 4.5
 * but the last, while the next kernel's weights come in, at 7.3; folded at 8.9.
 *
 * Tried in steps and dropped: the next kernel let in at once (1 to 2.5 per cent of a step at 8 and
 * 32 tokens), and when the units are stored (1 to 4 more); queries read by the consumers themselves
 * (0.2 us alone, nothing in a step); a rehearsal of the combiners' code before the wait (nothing);
 * eight partials in flight per thread of the fold (registers, see above); counts looked at when the
 * next item has ended (slower where one sequence is long, no faster where lengths are mixed); q, k
 * and v made here in steps of more than 32 tokens, not by the kernel before (1 per cent of a step
 * at 128, but the branches for it, not taken, cost a lone sequence 1.6 us; at 1 and 8 tokens it
 * was 1 and 3 per cent slower).
 *
 * After FlashDecoding and FlashMLA; the ring and its remote window after DAK; words that carry
 * their own mark after NCCL's low-latency protocol.
 */
#ifndef DAKD_KERNELS_CUDA_DECODE_ATTENTION_CUH
#define DAKD_KERNELS_CUDA_DECODE_ATTENTION_CUH

#include "kernels/cuda/attention_combine.cuh"
#include "kernels/cuda/attention_ring.cuh"
#include "kernels/cuda/trace.h"

/* --- consumers --- */

/* A warp's share of a unit, transposed: dimensions are the rows of the mma's accumulators (lane / 4
 * and that + 8 of a tile of 16), query heads its columns (2 * (lane % 4) and that + 1 of 8). */
template <int ATOMS, int ROWS> struct cu_att_state {
    using shape = cu_att_shape<ATOMS, ROWS>;
    uint32_t q[shape::STEPS][2 * shape::HALVES];
    float out[shape::HALVES][shape::TILES][4];
    float max[shape::HALVES][2]; /* of scale * score, log2 domain */
    float sum[shape::HALVES][2]; /* this thread's part */
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
    for (int h = 0; h < shape::HALVES; h++) {
#pragma unroll
        for (int n = 0; n < shape::TILES; n++)
            st.out[h][n][0] = st.out[h][n][1] = st.out[h][n][2] = st.out[h][n][3] = 0.f;
        st.max[h][0] = st.max[h][1] = -INFINITY;
        st.sum[h][0] = st.sum[h][1] = 0.f;
    }
}

/* Four 8x8 matrices of the warp's 16 tokens by 16 dimensions, piece `piece` of the atoms there. */
PTX_INLINE uint32_t cu_att_piece(uint32_t atoms, int piece, int row, int half)
{
    const uint32_t chunk = ((piece & 3) * 2 + half) ^ (row & 7);
    return atoms + (piece >> 2) * KN_ATOM_BYTES + row * 128 + (chunk << 4);
}

/* score[chain][half] += k . q over STEP_COUNT steps; their K atoms begin at `atoms`.  All K is read
 * before the first product, and steps add up in several chains, for less of dependent
 * instructions. */
template <int ATOMS, int ROWS, int FIRST_STEP, int STEP_COUNT>
PTX_INLINE void cu_att_score(
    const cu_att_state<ATOMS, ROWS> &st,
    float (&score)[cu_att_shape<ATOMS, ROWS>::CHAINS][cu_att_shape<ATOMS, ROWS>::HALVES][4],
    uint32_t atoms, int row, int half)
{
    using shape = cu_att_shape<ATOMS, ROWS>;
    uint32_t k[STEP_COUNT][4];
#pragma unroll
    for (int i = 0; i < STEP_COUNT; i++) ptx_ldmatrix_x4(k[i], cu_att_piece(atoms, i, row, half));
#pragma unroll
    for (int i = 0; i < STEP_COUNT; i++)
#pragma unroll
        for (int h = 0; h < shape::HALVES; h++)
            ptx_mma_m16n8k16(score[i % shape::CHAINS][h], k[i], st.q[FIRST_STEP + i][h],
                             st.q[FIRST_STEP + i][shape::HALVES + h]);
}

/* Keys outside [begin, end) of the page: score -inf.  first: the thread's first key. */
template <int HALVES>
PTX_INLINE void cu_att_mask_scores(float (&score)[HALVES][4], int first, int begin, int end)
{
#pragma unroll
    for (int n = 0; n < 2; n++) {
        const int key = first + n * 8;
        if (key >= begin && key < end) continue;
#pragma unroll
        for (int h = 0; h < HALVES; h++) score[h][2 * n] = score[h][2 * n + 1] = -INFINITY;
    }
}

/* The same keys' V as the A operand holds it: zeros.  first: of the thread's two neighbours, of
 * whom a piece has two words; the two of the keys 8 on lie STEP further. */
template <int STEP, int PIECES>
PTX_INLINE void cu_att_mask_values(uint32_t (&v)[PIECES][4], int first, int begin, int end)
{
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int key = first + n * 8 + j;
            if (key >= begin && key < end) continue;
            const uint32_t mask = j ? 0x0000ffffu : 0xffff0000u;
#pragma unroll
            for (int d = 0; d < PIECES; d++) {
                v[d][STEP * n] &= mask;
                v[d][STEP * n + 3 - STEP] &= mask;
            }
        }
}

PTX_INLINE float cu_att_widen(uint32_t pair, int high)
{
    return __uint_as_float(high ? pair & 0xffff0000u : pair << 16);
}

/* Raises a head's maximum to that of its scores times `scale`, of which this thread has two and its
 * neighbours the others.  Returns what exponents count from; rescale: for cu_att_rescale. */
template <int ATOMS, int ROWS>
PTX_INLINE float cu_att_raise(cu_att_state<ATOMS, ROWS> &st, const float (&score)[4], float scale,
                              int h, int j, float &rescale)
{
    float most = fmaxf(score[j], score[2 + j]);
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 4));
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 8));
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 16));
    const float max = fmaxf(st.max[h][j], most * scale);
    const float shift = max == -INFINITY ? 0.f : max;
    rescale = ptx_ex2(st.max[h][j] - shift);
    st.max[h][j] = max;
    return shift;
}

/* Multiplies what the warp has so far, for each head. */
template <int ATOMS, int ROWS, int HALVES>
PTX_INLINE void cu_att_rescale(cu_att_state<ATOMS, ROWS> &st, const float (&rescale)[HALVES][2])
{
    using shape = cu_att_shape<ATOMS, ROWS>;
    bool same = true;
#pragma unroll
    for (int h = 0; h < HALVES; h++)
#pragma unroll
        for (int j = 0; j < 2; j++) same = same && rescale[h][j] == 1.f;
    if (__all_sync(0xffffffffu, same)) return; /* times one: the same bits */
#pragma unroll
    for (int h = 0; h < HALVES; h++)
#pragma unroll
        for (int n = 0; n < shape::TILES; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) st.out[h][n][i] *= rescale[h][i & 1];
}

/* Scores to weights, as the B operand of V.P; rescales what the warp has so far. */
template <int ATOMS, int ROWS>
PTX_INLINE void cu_att_soften(cu_att_state<ATOMS, ROWS> &st,
                              const float (&score)[cu_att_shape<ATOMS, ROWS>::HALVES][4],
                              float scale_log2,
                              uint32_t (&weight)[cu_att_shape<ATOMS, ROWS>::HALVES][2])
{
    using shape = cu_att_shape<ATOMS, ROWS>;
    float rescale[shape::HALVES][2];
#pragma unroll
    for (int h = 0; h < shape::HALVES; h++) {
        float w[2][2]; /* [token, token + 8][head, head + 1] */
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const float shift = cu_att_raise(st, score[h], scale_log2, h, j, rescale[h][j]);
            w[0][j] = ptx_ex2(fmaf(score[h][j], scale_log2, -shift));
            w[1][j] = ptx_ex2(fmaf(score[h][2 + j], scale_log2, -shift));
        }
        uint32_t bits[2];
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const __nv_bfloat162 pair = __floats2bfloat162_rn(w[n][0], w[n][1]);
            bits[n] = *(const uint32_t *)&pair;
            weight[h][n] = ptx_movmatrix_trans(bits[n]);
        }
#pragma unroll
        for (int j = 0; j < 2; j++)
            st.sum[h][j] = fmaf(st.sum[h][j], rescale[h][j],
                                cu_att_widen(bits[0], j) + cu_att_widen(bits[1], j));
    }
    cu_att_rescale(st, rescale);
}

/* Reads COUNT 16-wide pieces of the warp's 16 tokens of V from piece FIRST on. */
template <int FIRST, int COUNT>
PTX_INLINE void cu_att_read_values(uint32_t (&v)[COUNT][4], uint32_t atoms, int row, int half)
{
#pragma unroll
    for (int d = 0; d < COUNT; d++)
        ptx_ldmatrix_x4_trans(v[d], cu_att_piece(atoms, FIRST + d, row, half));
}

/* out += V . weights for these pieces. */
template <int FIRST, int COUNT, int HALVES, int TILES>
PTX_INLINE void cu_att_add_values(float (&out)[HALVES][TILES][4],
                                  const uint32_t (&weight)[HALVES][2],
                                  const uint32_t (&v)[COUNT][4])
{
#pragma unroll
    for (int d = 0; d < COUNT; d++)
#pragma unroll
        for (int h = 0; h < HALVES; h++)
            ptx_mma_m16n8k16(out[h][(FIRST + d) % TILES], v[d], weight[h][0], weight[h][1]);
}

/* One warp lets go of a stage. */
template <typename SHARED>
PTX_INLINE void cu_att_release(SHARED &sh, cu_att_cursor *at, int stages, int lane)
{
    __syncwarp();
    cu_release(&sh.empty[at->stage], lane);
    cu_att_next(at, stages);
}

/* Waits until the combiners have merged all of `count` units. */
template <typename SHARED> PTX_INLINE void cu_att_wait_merged(SHARED &sh, int count)
{
    if (count) ptx_mbarrier_wait(&sh.finished_empty, (count & 1) ^ 1);
}

/* One warp's part: tells the combiners which unit ends with a page, after `count` others. */
template <typename SHARED>
PTX_INLINE void cu_att_announce(SHARED &sh, const cu_att_page &page, int flags, int count, int lane)
{
    cu_att_wait_merged(sh, count);
    if (lane == 0)
        sh.finished = {page.token, page.slot, page.first_slot, page.unit_count, page.head, flags};
}

/* Tells the combiners that there is no more after `count` units. */
template <typename SHARED>
PTX_INLINE void cu_att_announce_end(SHARED &sh, int count, int warp, int lane)
{
    cu_att_wait_merged(sh, count);
    if (warp == 0 && lane == 0) sh.finished.flags = CU_ATT_END;
    ptx_mbarrier_arrive(&sh.finished_full);
}

/* Leaves the warp's accumulators to the combiners, who merge those of all that had a part. */
template <int ATOMS, int ROWS>
PTX_INLINE void cu_att_hand_over(const cu_att_params &p, cu_att_shared<ATOMS, ROWS> &sh,
                                 cu_att_state<ATOMS, ROWS> &st, int count, int warp, int lane)
{
    using shape = cu_att_shape<ATOMS, ROWS>;
    cu_att_wait_merged(sh, count);
#pragma unroll
    for (int h = 0; h < shape::HALVES; h++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int row = h * 8 + (lane & 3) * 2 + j;
            float sum = st.sum[h][j];
            sum += __shfl_xor_sync(0xffffffffu, sum, 4);
            sum += __shfl_xor_sync(0xffffffffu, sum, 8);
            sum += __shfl_xor_sync(0xffffffffu, sum, 16);
            if (row >= p.group) continue;
            if (warp < shape::PARTS && lane < 4) sh.ml[warp][row] = make_float2(st.max[h][j], sum);
            float *to = cu_att_dump(sh) + (warp * p.group + row) * shape::DUMP_ROW +
                        (lane >> 2) * shape::ROW_DIMS;
#pragma unroll
            for (int n = 0; n < shape::TILES; n++) {
                to[n * 16] = st.out[h][n][j];
                to[n * 16 + shape::ROW_8_DIMS] = st.out[h][n][2 + j];
            }
        }
    ptx_mbarrier_arrive(&sh.finished_full);
}

template <int ATOMS, int ROWS>
PTX_INLINE void cu_att_consume(const cu_att_params &p, cu_att_shared<ATOMS, ROWS> &sh, int warp,
                               int lane)
{
    using shape = cu_att_shape<ATOMS, ROWS>;
    const int team = warp >> 2, w = warp & 3;
    /* ldmatrix rows: for K the second matrix is tokens + 8, the third dimensions + 8; for V the
     * second is dimensions + 8, the third tokens + 8. */
    const int k_row = w * 16 + ((lane >> 3) & 1) * 8 + (lane & 7), k_half = lane >> 4;
    const int v_row = w * 16 + (lane >> 4) * 8 + (lane & 7), v_half = (lane >> 3) & 1;
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
        if (last && warp == 0) cu_att_announce(sh, page, flags, finished, lane);

        float parts[shape::CHAINS][shape::HALVES][4] = {};
        uint32_t v[shape::PIECES][4];
        uint32_t stage = ring + at.stage * shape::STAGE_BYTES;
        if (ATOMS == 4) {
            cu_att_score<ATOMS, ROWS, 0, 8>(st, parts, stage, k_row, k_half);
            cu_att_release(sh, &at, p.stages, lane);
            ptx_mbarrier_wait(&sh.full[at.stage], at.parity);
            stage = ring + at.stage * shape::STAGE_BYTES;
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
            stage = ring + at.stage * shape::STAGE_BYTES;
        }
        cu_att_read_values<0>(v, stage, v_row, v_half);
        if (shape::PIECES == shape::TILES) cu_att_release(sh, &at, p.stages, lane);
        float score[shape::HALVES][4];
#pragma unroll
        for (int h = 0; h < shape::HALVES; h++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                score[h][j] = parts[0][h][j] + parts[1][h][j];
                if (shape::CHAINS == 4)
                    score[h][j] += parts[shape::CHAINS - 2][h][j] + parts[shape::CHAINS - 1][h][j];
            }
        const bool partial = key_begin > 0 || key_end < KN_PAGE_TOKENS;
        const int v_key = w * 16 + (lane & 3) * 2;
        if (partial) cu_att_mask_scores(score, w * 16 + (lane >> 2), key_begin, key_end);
        uint32_t weight[shape::HALVES][2];
        cu_att_soften(st, score, p.scale_log2, weight);
        if (partial) cu_att_mask_values<2>(v, v_key, key_begin, key_end);
        cu_att_add_values<0>(st.out, weight, v);
        if (shape::PIECES < shape::TILES) {
            cu_att_read_values<shape::TILES - shape::PIECES>(v, stage, v_row, v_half);
            cu_att_release(sh, &at, p.stages, lane);
            if (partial) cu_att_mask_values<2>(v, v_key, key_begin, key_end);
            cu_att_add_values<shape::TILES - shape::PIECES>(st.out, weight, v);
        }
        if (shape::TEAMS == 2 && team == 0) { /* the other half of V */
            ptx_mbarrier_wait(&sh.full[at.stage], at.parity);
            cu_att_release(sh, &at, p.stages, lane);
        }
        if (last) cu_att_hand_over(p, sh, st, finished++, warp, lane);
    }
    cu_att_announce_end(sh, finished, warp, lane);
}

#endif
