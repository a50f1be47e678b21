/*
 * prefill_attention.cuh - causal attention of prompt chunks over KV pages, by warpgroup matrices.
 *
 * Floor: 4 * D operations for each query row and key it sees.  An H200 is rated at 989 TFLOPS; what
 * wgmma alone gives on random data is probed beside (tests/gpu_prefill_attention_bench.cuh).  A
 * step of 128 rows by 128 keys of 128 dimensions is 8.4 MFLOP: 2,048 cycles of the tensor cores;
 * its softmax needs 16,384 exponentials, 1,024 cycles of the units that make them.  At 64
 * dimensions both take as long.  A CTA takes in 64 KB a step, 36 GB/s at 600 TFLOPS, of the 73 that
 * L2 gives every SM at once.
 *
 * A tile is 128 query rows of one kv-head's group, 192 of heads with up to 64 dimensions.  One CTA
 * per SM works off tiles: two or three warpgroups multiply, 64 rows each; one with few registers
 * has up to three busy warps (prefill_attention_ring.cuh).  Where KV is in fp8 one more turns what
 * has landed into bf16 on its way to the ring (prefill_attention_e4m3.cuh).
 *
 * Query warp: takes tiles, heaviest first, the first two of a CTA by its number and then by ticket;
 * tells the others; gathers the tile's rows of q in the swizzle wgmma reads, while the tile before
 * is computed.
 *
 * Producer: copies K and V of one step after another into a ring, K a step ahead of V.  Keys are
 * taken two pages a step (one at dimension 256).  An atom's rows of both pages are neighbours in a
 * slot of K, so that a product has 128 keys; V stays as the page has it.
 *
 * Consumers: per step, S = Q.K^T of this step and O += P.V of the step before are issued together;
 * while P.V goes on, this step's scores become weights.  One warpgroup's softmax runs under
 * another's products; nothing but the ring keeps them together.  P never leaves the registers:
 * accumulators of one product are the operand of the next.  A row's maximum counts only where it
 * exceeds the one that counts by a factor of more than 2^8 in weight: sums are hardly ever rescaled
 * after a section's first step, and weights of up to 2^8 are as exact as those of up to 1.
 *
 * L2: tiles of a few kv-heads at a time, as many as have 32 MB of KV, so that what all SMs read at
 * about the same time is read from HBM once.
 *
 * Sections: every KN_CU_PREFILL_SECTION keys, counted from position 0, a row's sums begin anew, and
 * are added to those of the sections before, from left to right.  They wait in memory meanwhile.
 * Mostly a CTA computes all sections of a tile, one after another; its sums wait in a slot of its
 * own.  Where a step has few tiles (a short chunk at the end of a long context), its list has an
 * entry for each section: CTAs take them in the list's order, all tiles' first sections before
 * their second ones, and a tile has a slot that goes from CTA to CTA.  A warp waits there for the
 * warp that has the same rows in the section before.
 *
 * Remote tiers: tiles read pages where they lie, once for each tile that sees them.  All CTAs share
 * a tier's window, of window.ctas * window.blocks blocks: before copies are issued they take their
 * place in a line, two words in memory that count what was asked for and what has landed
 * (cu_pre_admit), and are let through when all but a window of what was asked for before them has
 * landed.  The poller counts landings.
 *
 * Invariants
 *
 *  1. A row's result depends on its query and the keys it sees: steps and sections begin at
 *     multiples of their keys, counted from position 0; a step that shows a row nothing leaves its
 *     maximum, multiplies its sums by exactly one and adds exactly zero; so does a section.  So it
 *     is the same bits for every chunking of the prompt, neighbour, placement, window and run, and
 *     however sections are shared out.
 *
 *  2. Keys a row does not see have score -inf.  Weights of zero meet values, which must be finite:
 *     rows of V that no token has written yet, and pages before the window's first, are zeroed in
 *     the slot.  Values of later tokens of the same step are taken to be finite.
 *
 *  3. Pages that no row of the tile sees because of the window are never touched, nor their entries
 *     used.
 *
 *  4. A slot is filled again after all consumer warps have let go of it, each when its own products
 *     have read it, and where there are windows the poller.  All roles take slots in one order:
 *     K0, K1, V0, K2, V1, .. V(n-1) of each section.
 *
 *  5. A warp may wait for another CTA's in one place, cu_pre_join.  It waits for an entry that was
 *     taken before its own, by a CTA that therefore runs, and whose entries before that were taken
 *     earlier still: the earliest entry that is not done never waits.
 *
 *  6. Whoever stands in a tier's line has an empty slot for what it asks, and issues it at once
 *     when let through; several tiers' lines are stood in in their order.  The poller waits for
 *     nothing but copies that were issued.  So what has been asked for lands, whatever else waits.
 *
 *  7. Between launches the tickets and counts of folded sections are zero, and all that was asked
 *     for has landed.
 *
 * Measured on an H200 (causal, bf16, 32/8 heads; cuDNN's time over this one's in the same job, two
 * runs of this one): 128 dimensions 1.24 at 2,048 tokens, 1.12 to 1.13 at 8,192 (670 TFLOPS), 1.06
 * to 1.09 at 32,768; 64 dimensions 1.00 to 1.10, 0.98 to 1.05 (32/32 heads: 0.94) and 1.01; 96 at
 * 8,192 tokens 1.21 to 1.23; 256 (16/2 heads) 1.13.  256 tokens at the end of 32,768: 0.24 ms, of
 * 0.42 without sections in that job; 64 tokens 0.13, of 0.42.  KV in host memory with the window of
 * 16 * 2 blocks: 51 GB/s, round trips of 9 us, where without a bound they are 270.  A launch's time
 * varies by 4 % from run to run: how warpgroups fall in step with each other is left to chance.
 *
 * The producer's state stays in uniform registers only while the compiler sees that the warp is
 * together: where one lane alone stood in line for a window, each copy was issued later and a step
 * of a long context took 5 to 8 % longer (cu_pre_uniform).
 *
 * Tried and dropped.  Scores of two steps in registers, at 64 dimensions: 0.83 of the speed.  One
 * slot for queries and one more for keys and values, at 96 and 128 dimensions: 0.87 of the speed.
 * Sections of 4,096 keys: no better but where very few tiles meet a long context.  Warpgroups that
 * take turns at issuing products (ping-pong), which no result depends on: 0.98 of the speed at 8k
 * tokens, 0.92 for 512 tokens at the end of 32k, 1.01 at 2k.  Weights added up as they are made:
 * the same.  Half or a quarter of the exponentials by a polynomial: 0.87 and 0.94 of the speed at
 * 128 dimensions, for the units that make them are not what is short there (8 cycles a warp,
 * measured).  An empty group committed where a tile's first step has no P.V: the compiler puts a
 * product there and waits for one too many.  One loop for all steps: 0.86 to 0.98.
 *
 * After FlashAttention-3 (products of two steps in flight) and FlashInfer (heads of a group packed
 * into rows).
 */
#ifndef DAKD_KERNELS_CUDA_PREFILL_ATTENTION_CUH
#define DAKD_KERNELS_CUDA_PREFILL_ATTENTION_CUH

#include "kernels/cuda/prefill_attention_e4m3.cuh"
#include "kernels/cuda/prefill_attention_ring.cuh"
#include "kernels/cuda/trace.h"

/* --- consumers --- */

/* Whole tokens among the first `rows` rows, of up to 192 + 128 and groups of up to 128. */
PTX_INLINE int32_t cu_pre_tokens(const cu_pre_params &p, int32_t rows)
{
    return (int32_t)(rows * p.group_inverse >> 16);
}

/* What a thread knows of its two rows. */
struct cu_pre_rows {
    float max[2]; /* of the scores so far */
    float sum[2]; /* of the weights so far, this thread's columns */
    int32_t position[2];
    int32_t low, high; /* positions of the warp's rows */
};

template <class S>
PTX_INLINE void cu_pre_begin(cu_pre_rows &r, const cu_pre_params &p, const cu_pre_tile &t, int row)
{
#pragma unroll
    for (int j = 0; j < 2; j++) {
        const int32_t within = min(row + 8 * j, t.row_count - 1);
        r.position[j] = t.position + cu_pre_tokens(p, t.head + within);
    }
    r.low = __reduce_min_sync(0xffffffffu, r.position[0]);
    r.high = __reduce_max_sync(0xffffffffu, r.position[1]);
}

/* Scores of keys that a row does not see become -inf; first_key: of the step. */
template <class S>
PTX_INLINE void cu_pre_mask(float (&s)[S::KEYS / 2], const cu_pre_params &p, const cu_pre_rows &r,
                            int32_t first_key, int lane)
{
    const bool windowed = p.window > 0 && first_key <= r.high - p.window;
    if (first_key + S::KEYS - 1 <= r.low && !windowed) return;
#pragma unroll
    for (int j = 0; j < 2; j++) {
        const int32_t last = r.position[j] - first_key - (lane & 3) * 2,
                      before = windowed ? last - p.window : -1 - S::KEYS;
#pragma unroll
        for (int n = 0; n < S::KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                if (n * 8 + i > last || n * 8 + i <= before) s[n * 4 + j * 2 + i] = -INFINITY;
    }
}

/* A maximum counts where it exceeds the one before by more than a factor of 2^8 of the weights. */
constexpr float CU_PRE_SLACK = 8;

/* Scores to weights; rescale: what the sums before are to be multiplied by. */
template <class S>
PTX_INLINE void cu_pre_soften(float (&s)[S::KEYS / 2], cu_pre_rows &r, float (&rescale)[2],
                              float scale_log2)
{
#pragma unroll
    for (int j = 0; j < 2; j++) {
        float most[2] = {-INFINITY, -INFINITY};
#pragma unroll
        for (int n = 0; n < S::KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) most[i] = fmaxf(most[i], s[n * 4 + j * 2 + i]);
        float max = fmaxf(most[0], most[1]);
        max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 1));
        max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 2));
        const bool grown =
            (max - r.max[j]) * scale_log2 > CU_PRE_SLACK; /* false where both are -inf */
        rescale[j] = grown ? ptx_ex2((r.max[j] - max) * scale_log2) : 1.f;
        r.max[j] = grown ? max : r.max[j];
        const float shift = r.max[j] == -INFINITY ? 0.f : r.max[j] * scale_log2;
#pragma unroll
        for (int n = 0; n < S::KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float &x = s[n * 4 + j * 2 + i];
                x = ptx_ex2(fmaf(x, scale_log2, -shift));
            }
    }
}

/* Adds up the weights: apart from their making, for additions among the exponentials wait for each
 * of them. */
template <class S>
PTX_INLINE void cu_pre_add(const float (&s)[S::KEYS / 2], cu_pre_rows &r, const float (&rescale)[2])
{
#pragma unroll
    for (int j = 0; j < 2; j++) {
        float sum[2] = {0.f, 0.f};
#pragma unroll
        for (int n = 0; n < S::KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) sum[i] += s[n * 4 + j * 2 + i];
        r.sum[j] = fmaf(r.sum[j], rescale[j], sum[0] + sum[1]);
    }
}

template <int COUNT> PTX_INLINE void cu_pre_pin(float (&x)[COUNT])
{
#pragma unroll
    for (int i = 0; i < COUNT; i++) ptx_wgmma_pin(x[i]);
}

/* Weights as the operand of P.V. */
template <class S>
PTX_INLINE void cu_pre_pack(uint32_t (&weight)[S::KEYS / 16][4], const float (&s)[S::KEYS / 2])
{
#pragma unroll
    for (int k = 0; k < S::KEYS / 16; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const __nv_bfloat162 pair =
                __floats2bfloat162_rn(s[k * 8 + i * 2], s[k * 8 + i * 2 + 1]);
            weight[k][i] = *(const uint32_t *)&pair;
        }
}

/* Waits for P.V and rescales its sums, where that changes a bit of them.  The branch keeps the
 * compiler from waiting first and softening then. */
template <class S> PTX_INLINE void cu_pre_rescale(float (&o)[S::DIM / 2], const float (&rescale)[2])
{
    if (__all_sync(0xffffffffu, rescale[0] == 1.f && rescale[1] == 1.f)) return;
    ptx_wgmma_wait<0>();
    cu_pre_pin(o);
#pragma unroll
    for (int n = 0; n < S::DIM / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) o[n * 4 + i] *= rescale[i >> 1];
}

/* Issues S = Q.K^T; q and keys: shared addresses. */
template <class S>
PTX_INLINE void cu_pre_issue_scores(float (&s)[S::KEYS / 2], uint32_t q, uint32_t keys)
{
    const uint64_t a = ptx_wgmma_descriptor(q), b = ptx_wgmma_descriptor(keys);
#pragma unroll
    for (int k = 0; k < (S::DIM + 15) / 16; k++)
        ptx_wgmma<S::KEYS>(s, a + (k / 4) * (S::WARPGROUPS * KN_ATOM_BYTES >> 4) + (k % 4) * 2,
                           b + (k / 4) * (S::PAGES * KN_ATOM_BYTES >> 4) + (k % 4) * 2, k > 0);
    ptx_wgmma_commit();
}

/* Issues O += P.V. */
template <class S>
PTX_INLINE void cu_pre_issue_output(float (&o)[S::DIM / 2],
                                    const uint32_t (&weight)[S::KEYS / 16][4], uint32_t values)
{
    const uint64_t b = ptx_wgmma_descriptor_transposed(values);
#pragma unroll
    for (int k = 0; k < S::KEYS / 16; k++)
        ptx_wgmma_transposed<S::DIM>(o, weight[k],
                                     b + (k / 4) * (S::HEAD_BYTES >> 4) +
                                         (k % 4) * (16 * KN_ATOM_ROW_BYTES >> 4));
    ptx_wgmma_commit();
}

/* Nothing has been seen yet. */
template <class S> PTX_INLINE void cu_pre_clear(float (&o)[S::DIM / 2], cu_pre_rows &r)
{
#pragma unroll
    for (int i = 0; i < S::DIM / 2; i++) o[i] = 0.f;
#pragma unroll
    for (int j = 0; j < 2; j++) {
        r.max[j] = -INFINITY;
        r.sum[j] = 0.f;
    }
}

/* O and the sums of a tile's 64 rows over steps [begin, end) of one section; returns when all
 * products are done and all slots released.  From step q_last on the tile's queries are not needed
 * again. */
template <class S>
PTX_INLINE void cu_pre_multiply(const cu_pre_params &p, cu_pre_shared<S> &sh, int32_t begin,
                                int32_t end, float (&o)[S::DIM / 2], cu_pre_rows &r,
                                cu_pre_place &at, uint32_t q, uint64_t *q_empty, int32_t q_last,
                                int lane)
{
    const uint32_t ring = ptx_shared(sh.ring[0]);
    float s[S::KEYS / 2], rescale[2];
    uint32_t weight[S::KEYS / 16][4];
    int32_t first_key = begin * S::KEYS;

    ptx_mbarrier_wait(&sh.full[at.slot], at.parity);
    ptx_wgmma_fence();
    cu_pre_issue_scores<S>(s, q, ring + at.slot * S::SLOT_BYTES);
    cu_pre_clear<S>(o, r);
    ptx_wgmma_wait<0>();
    cu_pre_pin(s);
    cu_pre_release(&sh.empty[at.slot], lane);
    if (begin == q_last) cu_release(q_empty, lane);
    cu_pre_next<S::SLOTS>(at);
    cu_pre_mask<S>(s, p, r, first_key, lane);
    cu_pre_soften<S>(s, r, rescale, p.scale_log2);
    cu_pre_pin(s);
    cu_pre_add<S>(s, r, rescale);
    cu_pre_pack<S>(weight, s);

#pragma unroll 1
    for (int32_t step = begin + 1; step < end; step++) {
        const int32_t key_slot = at.slot;
        first_key += S::KEYS;
        ptx_mbarrier_wait(&sh.full[at.slot], at.parity);
        cu_pre_pin(o);
        ptx_wgmma_fence();
        cu_pre_issue_scores<S>(s, q, ring + at.slot * S::SLOT_BYTES);
        cu_pre_next<S::SLOTS>(at);
        ptx_mbarrier_wait(&sh.full[at.slot], at.parity);
        ptx_wgmma_fence();
        cu_pre_issue_output<S>(o, weight, ring + at.slot * S::SLOT_BYTES);
        ptx_wgmma_wait<1>();
        cu_pre_pin(s);
        cu_pre_release(&sh.empty[key_slot], lane);
        if (step == q_last) cu_release(q_empty, lane);
        cu_pre_mask<S>(s, p, r, first_key, lane);
        cu_pre_soften<S>(s, r, rescale, p.scale_log2);
        cu_pre_pin(s);
        cu_pre_rescale<S>(o, rescale);
        ptx_wgmma_wait<0>();
        cu_pre_pin(o);
        cu_pre_pin(s);
        cu_pre_release(&sh.empty[at.slot], lane);
        cu_pre_next<S::SLOTS>(at);
        cu_pre_add<S>(s, r, rescale);
        cu_pre_pack<S>(weight, s);
    }

    ptx_mbarrier_wait(&sh.full[at.slot], at.parity);
    cu_pre_pin(o);
    ptx_wgmma_fence();
    cu_pre_issue_output<S>(o, weight, ring + at.slot * S::SLOT_BYTES);
    ptx_wgmma_wait<0>();
    cu_pre_pin(o);
    cu_pre_release(&sh.empty[at.slot], lane);
    cu_pre_next<S::SLOTS>(at);
}

/* Four words of each of a quad's threads, transposed: thread i gets everyone's i-th. */
PTX_INLINE void cu_pre_transpose(uint32_t (&w)[4], int lane)
{
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint32_t got = __shfl_xor_sync(0xffffffffu, lane & 1 ? w[i] : w[i + 1], 1);
        if (lane & 1) w[i] = got;
        else w[i + 1] = got;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t got = __shfl_xor_sync(0xffffffffu, lane & 2 ? w[i] : w[i + 2], 2);
        if (lane & 2) w[i] = got;
        else w[i + 2] = got;
    }
}

/* Divides, rounds and stores row j of the thread's two; a quad has a row, and stores 64 bytes of it
 * at a time. */
template <class S>
PTX_INLINE void cu_pre_store_row(const cu_pre_params &p, const cu_pre_tile &t,
                                 const float (&o)[S::DIM / 2], float sum, int j, int row, int lane)
{
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const float inverse = 1.f / sum;
    const int32_t within = t.head + row, ahead = cu_pre_tokens(p, within), token = t.token + ahead,
                  head = t.kv_head * p.group + within - ahead * p.group,
                  chunk = token / KN_CU_TOKENS_MAX, in_chunk = token % KN_CU_TOKENS_MAX;
    const int32_t rows = chunk == p.last_chunk ? p.last_rows : KN_CU_TOKENS_MAX;
    uint8_t *out = p.out + chunk * p.chunk_bytes;
    const bool there = row < t.row_count;
#pragma unroll
    for (int g = 0; g < S::DIM / 32; g++) {
        uint32_t w[4];
#pragma unroll
        for (int n = 0; n < 4; n++) {
            const float *x = &o[(g * 4 + n) * 4 + j * 2];
            const __nv_bfloat162 pair = __floats2bfloat162_rn(x[0] * inverse, x[1] * inverse);
            w[n] = *(const uint32_t *)&pair;
        }
        cu_pre_transpose(w, lane);
        const int32_t d = (g * 4 + (lane & 3)) * 8;
        if (there && d < p.head_dim)
            *(uint4 *)(out + kn_cu_act_offset(rows, in_chunk, head * p.head_dim + d)) =
                make_uint4(w[0], w[1], w[2], w[3]);
    }
    const int32_t cols = p.q_heads * p.head_dim;
    if (!there || head != p.q_heads - 1) return;
    for (int32_t k = cols + (lane & 3) * 8; k < (cols + 127) / 128 * 128; k += 32)
        *(uint4 *)(out + kn_cu_act_offset(rows, in_chunk, k)) = make_uint4(0, 0, 0, 0);
}

/* --- sections --- */

/* What the sums of two sections are to be multiplied by, to be added up. */
PTX_INLINE float cu_pre_share(float own_max, float max, float scale_log2)
{
    return own_max == max ? 1.f : ptx_ex2((own_max - max) * scale_log2);
}

/* Adds the sums of the sections before, which come from memory.  Where one side saw nothing, the
 * other stays as it is. */
template <class S>
PTX_INLINE void cu_pre_fold(float (&o)[S::DIM / 2], cu_pre_rows &r, const float4 *parked,
                            float scale_log2)
{
    const float4 rows = __ldcg(parked + 32 * (S::DIM / 8));
    const float max_before[2] = {rows.x, rows.y}, sum_before[2] = {rows.z, rows.w};
    float before[2], now[2];
#pragma unroll
    for (int j = 0; j < 2; j++) {
        const float max = fmaxf(max_before[j], r.max[j]);
        before[j] = cu_pre_share(max_before[j], max, scale_log2);
        now[j] = cu_pre_share(r.max[j], max, scale_log2);
        r.max[j] = max;
        r.sum[j] = fmaf(r.sum[j], now[j], __fmul_rn(sum_before[j], before[j]));
    }
#pragma unroll
    for (int n = 0; n < S::DIM / 8; n++) {
        const uint4 x = ptx_load_relaxed_v4(parked + 32 * n);
        const uint32_t old[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
        for (int i = 0; i < 4; i++)
            o[n * 4 + i] =
                fmaf(o[n * 4 + i], now[i >> 1], __fmul_rn(__uint_as_float(old[i]), before[i >> 1]));
        if (n % 8 == 7) cu_pre_pin(o); /* no more loads at once than there are registers */
    }
}

template <class S>
PTX_INLINE void cu_pre_park(const float (&o)[S::DIM / 2], const cu_pre_rows &r, float4 *parked)
{
#pragma unroll
    for (int n = 0; n < S::DIM / 8; n++)
        __stcg(parked + 32 * n, make_float4(o[n * 4], o[n * 4 + 1], o[n * 4 + 2], o[n * 4 + 3]));
    __stcg(parked + 32 * (S::DIM / 8), make_float4(r.max[0], r.max[1], r.sum[0], r.sum[1]));
}

/* Makes of a section's sums those of all sections up to it.  Between sections they wait in memory,
 * where the same thread finds them, or by section the same lane of another CTA. */
template <class S>
PTX_INLINE void cu_pre_join(const cu_pre_params &p, const cu_pre_tile &t, int32_t begin,
                            int32_t end, float (&o)[S::DIM / 2], cu_pre_rows &r, int warp, int lane)
{
    const bool first = begin == t.first_step, last = end == t.last_step + 1;
    if (first && last) return;
    const int32_t place = ptx_opaque(t.slot * S::CONSUMER_WARPS + warp),
                  section = begin / S::SECTION;
    uint32_t *folded = p.state->folded + place;
    float4 *parked = p.parked + (size_t)place * (32 * (S::DIM / 8 + 1)) + lane;
    if (!first) {
        if (p.by_section) {
            PTX_SPIN_UNTIL(ptx_load_acquire(folded) == (uint32_t)section);
            __syncwarp();
        }
        cu_pre_fold<S>(o, r, parked, p.scale_log2);
    }
    if (!last) cu_pre_park<S>(o, r, parked);
    if (!p.by_section) return;
    __syncwarp();
    if (lane == 0) ptx_store_release(folded, last ? 0 : section + 1);
}

template <class S>
PTX_INLINE void cu_pre_consume(const cu_pre_params &p, cu_pre_shared<S> &sh, int warp, int lane)
{
    const int wg = warp >> 2, row = warp * 16 + (lane >> 2);
    cu_pre_place at;
    for (uint32_t n = 0;; n++) {
        const int slot = cu_pre_q_slot<S>(n);
        ptx_mbarrier_wait(&sh.q_full[slot], cu_pre_q_parity<S>(n));
        const cu_pre_tile &t = sh.tile[n % S::TILE_SLOTS];
        if (!t.row_count) break;
        cu_pre_rows r;
        cu_pre_begin<S>(r, p, t, row);
        const uint32_t rows = ptx_shared(sh.q[slot]) + wg * KN_ATOM_BYTES;
#pragma unroll 1
        for (int32_t begin = t.step_begin, end; begin < t.step_end; begin = end) {
            float o[S::DIM / 2];
            end = cu_pre_section_end<S>(t.step_end, begin);
            cu_pre_multiply<S>(p, sh, begin, end, o, r, at, rows, &sh.q_empty[slot], t.step_end - 1,
                               lane);
            cu_pre_join<S>(p, t, begin, end, o, r, warp, lane);
            if (end <= t.last_step) continue;
#pragma unroll
            for (int j = 0; j < 2; j++)
                cu_pre_store_row<S>(p, t, o, r.sum[j], j, row + 8 * j, lane);
        }
    }
}

/* --- the kernel --- */

template <int DIM, bool PACKED>
__global__ void __launch_bounds__(cu_pre_shape<DIM, PACKED>::THREADS, 1)
    sm90_prefill_attention(const __grid_constant__ cu_pre_params p)
{
    CU_TRACE(ATTENTION, 1);
    using S = cu_pre_shape<DIM, PACKED>;
    extern __shared__ __align__(1024) uint8_t shared[];
    cu_pre_shared<S> &sh = *(cu_pre_shared<S> *)shared;
    static_assert(sizeof(cu_pre_shared<S>) <= 227 * 1024, "the ring outgrew its shared memory");
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x >> 5, 0), lane = threadIdx.x & 31;
    ptx_griddep_launch();
    if (threadIdx.x == 0) {
        if (ptx_shared(shared) & 1023) __trap(); /* the swizzle counts from 1 KB boundaries */
        for (int i = 0; i < S::SLOTS; i++) {
            ptx_mbarrier_init(&sh.full[i], S::PACKED ? CU_PRE_CONVERTERS : 1);
            ptx_mbarrier_init(&sh.empty[i],
                              CU_ARRIVALS * S::CONSUMER_WARPS + (p.windows && !S::PACKED ? 1 : 0));
        }
        if constexpr (S::PACKED) cu_pre_init_stages<S>(sh, p.windows);
        for (int i = 0; i < S::Q_SLOTS; i++) {
            ptx_mbarrier_init(&sh.q_full[i], 32);
            ptx_mbarrier_init(&sh.q_empty[i], CU_ARRIVALS * S::CONSUMER_WARPS);
        }
        for (int i = 0; i < S::TILE_SLOTS; i++) ptx_mbarrier_init(&sh.tile_full[i], 1);
        ptx_fence_mbarrier_init();
    }
    __syncthreads();
    if (warp < S::CONSUMER_WARPS) {
        ptx_setmaxnreg_inc<S::CONSUMER_REGISTERS>();
        CU_TRACE_WAITED();
        cu_pre_consume<S>(p, sh, warp, lane);
    } else if (S::PACKED && warp >= S::CONSUMER_WARPS + 4) {
        if constexpr (S::PACKED) {
            ptx_setmaxnreg_dec<S::CONVERTER_REGISTERS>();
            cu_pre_convert<S>(sh, threadIdx.x % CU_PRE_CONVERTERS, lane);
        }
    } else {
        ptx_setmaxnreg_dec<S::PRODUCER_REGISTERS>();
        if (warp == S::CONSUMER_WARPS) cu_pre_produce<S>(p, sh, lane);
        if (warp == S::CONSUMER_WARPS + 1) cu_pre_query<S>(p, sh, lane);
        if (warp == S::CONSUMER_WARPS + 2 && lane == 0 && p.windows) cu_pre_poll<S>(p, sh);
    }
}

#endif
