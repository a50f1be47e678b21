/*
 * gemm_norm.cuh - the RMS norm between two products, done by the two: what a consumer warpgroup of
 * decode_gemm.cuh does besides multiplying.
 *
 * Floor: nothing is read that must come from HBM, so it is all latency.  A kernel of its own cost
 * 6.3 us a norm on an H200: 1.2 until it had its inputs, two trips to L2, 0.7 to 1 us each, its own
 * end, and in all that time only the next product's rings, 5.6 us of HBM, to fill.
 *
 * The product before (cu_finish).  K is cut into parts, each of them a CTA's.  A CTA leaves its
 * sums as its threads hold them, so that the same thread of another reads them, 16 bytes each and
 * all sectors whole; as words that say by themselves whether they have been written (a float's
 * bits, complemented; zero: not yet), so that nobody waits for a fence.  Eight tokens of a tile, an
 * octet, are finished by one CTA: it adds up the parts in order of k, its own from registers at its
 * place, so that it does not matter whose it is; then bias and residual stream, and stores the new
 * residual stream, x * gain and the tile's sum of squares, all in whole sectors.  Trips to memory
 * after the last multiplication: the words', on their way there and back, with which the residual
 * stream's and constants' coincide.  The code for an octet exists once: what is run once in a
 * kernel is fetched, and unrolled over 32 tokens it took longer to fetch than to run.
 *
 * Who finishes?  Where no CTA has two units, the parts take turns, from the last on: at up to 8
 * tokens it is the last, and all others end at once, so that the next product's rings fill in their
 * place.  Else the last part finishes all of the tile, where units are ordered
 * (gemm_work.cuh): the others leave their words and go on.  Else, where a window is of all CTAs,
 * who counts in last does: the others' stores are then on their way.  To count costs two barriers
 * and a trip to memory before the words', about 2 us.
 *
 * The product after (cu_read_squares, cu_token_scales).  The division by the root mean square is
 * linear, so it waits for the sums of this product: they are multiplied by its inverse, which each
 * CTA adds up while its first activations are on their way.  bf16 is as good for x * gain as for
 * the quotient, for its error is relative.
 *
 * Prediction: 2 us more for the product before, 6.3 us of norm less; at 1 token of Llama-3.1-8B 64
 * x 4.3 us = 0.28 ms of 3.91.  In order in place of counted: 2 us less for each product before that
 * has remote tiles, 0.13 ms of such a step.
 *
 * Measured there, steps of 1, 8 and 32 tokens after 1,024: 4.05, 4.39 and 5.38 ms before, 3.97,
 * 4.25 and 5.31 with this.  The products before take 1.9 us longer, as predicted.  What they cost
 * beyond that, the next product's rings do: a norm's time was enough to fill them, and now the end
 * of the product before is all there is of it, in which moreover everything waits behind that
 * burst (4.3 us until inputs are seen, 1.1 when memory is quiet).
 *
 * Invariants
 *  1. Bits are those of parts left to sm90_settle, and its sum to sm90_square (small.cu), which do
 *     the same where no product comes right before the norm: same orders, same roundings.  (Hence
 *     the explicit ones: a product fused into an addition would not be rounded.)
 *  2. Words and counters are zero before and after each launch.
 *  3. Nobody waits in a circle.  A CTA waits for others of its launch alone, for words of its
 *     unit's tile.  Counted: they have been issued.  Shared: each CTA's words come before its
 *     waiting, and it has one unit.  Ordered: only for units of lower number of the same tier, and
 *     every CTA has its units in one order, by tier and then number; so the first unit of that
 *     order that is not finished is its CTA's next one, and waits for none.  Producers wait for
 *     their own CTA's consumers, so theirs is no other order.
 *     Nor does a turn on a link (cu_link_enter) close one: it is a wait for an older launch, which
 *     never waits for a younger.
 *     All this holds where all CTAs of a launch run: the grid is at most the SMs' times the CTAs
 *     that fit one (kn_cu_gemm_plan_derive, launch bounds, shared memory), older launches end by
 *     themselves, and a younger one begins when the last CTA of this has (griddepcontrol).  Not so
 *     beside another process that waits in the same way on the same SMs at once (MPS).
 *  4. Activations beyond the columns are zero, up to the end of the block of 128.
 *
 * Tried and dropped: partial sums behind a fence and counted in by acquire and release, the last of
 * the parts finishing the tile with code unrolled over its tokens: o 16 us at 32 tokens in place of
 * 6.5 without a norm and 8.1 with this; the last part finishing all octets where parts could share
 * them: 5.42 ms a step of 32 tokens in place of 5.30; scales added up before the first
 * multiplication: 0.03 ms of 3.97 at 1 token, 0.05 of 5.31 at 32 (against none at all).
 */
#ifndef DAKD_KERNELS_CUDA_GEMM_NORM_CUH
#define DAKD_KERNELS_CUDA_GEMM_NORM_CUH

#include "kernels/cuda/gemm_epilogue.cuh"
#include "kernels/cuda/gemm_work.cuh"

/* What the four warps share. */
template <int TB> struct cu_norm_shared {
    float scale[TB];
    uint32_t last; /* whether this CTA is the last of a tile's parts */
};

/* The sum of four squares, and of a row of 64 of which each of 16 threads has four: in the one
 * order for whoever computes it. */
PTX_INLINE float cu_sum_squares(const float4 &x)
{
    float sum = __fmul_rn(x.x, x.x);
    sum = __fmaf_rn(x.y, x.y, sum);
    sum = __fmaf_rn(x.z, x.z, sum);
    sum = __fmaf_rn(x.w, x.w, sum);
#pragma unroll
    for (int d = 1; d < 16; d *= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, d);
    return sum;
}

/* Four activations. */
PTX_INLINE uint2 cu_act_four(const float4 &x, const float4 &gain)
{
    const __nv_bfloat162 low = __floats2bfloat162_rn(x.x * gain.x, x.y * gain.y),
                         high = __floats2bfloat162_rn(x.z * gain.z, x.w * gain.w);
    return make_uint2(*(const uint32_t *)&low, *(const uint32_t *)&high);
}

/* Elements k..k+3 of a row of n, k a multiple of 4; zeros beyond it. */
PTX_INLINE float4 cu_read_four(const float *row, int32_t n, int32_t k)
{
    if (n % 4 == 0)
        return k < n ? __ldcg((const float4 *)(row + k)) : make_float4(0.f, 0.f, 0.f, 0.f);
    return make_float4(k < n ? __ldcg(row + k) : 0.f, k + 1 < n ? __ldcg(row + k + 1) : 0.f,
                       k + 2 < n ? __ldcg(row + k + 2) : 0.f,
                       k + 3 < n ? __ldcg(row + k + 3) : 0.f);
}

PTX_INLINE void cu_write_four(float *row, int32_t n, int32_t k, const float4 &x)
{
    if (n % 4 == 0) {
        if (k < n) *(float4 *)(row + k) = x;
        return;
    }
    if (k < n) row[k] = x.x;
    if (k + 1 < n) row[k + 1] = x.y;
    if (k + 2 < n) row[k + 2] = x.z;
    if (k + 3 < n) row[k + 3] = x.w;
}

/* --- the product after --- */

/* Sums of squares on their way: those of 64 tiles, and the sum of what is beyond. */
template <int TB> struct cu_squares {
    float4 v[TB / 8];
    float beyond;
};

/* A thread's place among the sums of its token: quads lane, lane + LANES, .. */
template <int TB> struct cu_scale_seat {
    static constexpr int LANES = 128 / TB; /* that share a token */
    int token, lane;
    int32_t count;

    PTX_INLINE cu_scale_seat(const cu_gemm &g, int thread)
        : token(thread / LANES), lane(thread % LANES),
          count(token < g.tokens ? (g.scale.cols + 63) / 64 : 0)
    {
    }
    PTX_INLINE float4 read(const cu_gemm &g, int q) const
    {
        const float *row = g.scale.sums + (size_t)token * kn_cu_sums_stride(g.scale.cols);
        return 4 * q < count ? __ldcg((const float4 *)row + q) : make_float4(0.f, 0.f, 0.f, 0.f);
    }
    /* What lies beyond the last tile may be anything. */
    PTX_INLINE float sum(const float4 &v, int q) const
    {
        return (v.x + (4 * q + 1 < count ? v.y : 0.f)) +
               ((4 * q + 2 < count ? v.z : 0.f) + (4 * q + 3 < count ? v.w : 0.f));
    }
};

/* Begins to read what the first unit's end needs; waits for the kernel before. */
template <int TB> PTX_INLINE cu_squares<TB> cu_read_squares(const cu_gemm &g, int thread)
{
    const cu_scale_seat<TB> seat(g, thread);
    cu_squares<TB> r;
    ptx_griddep_wait();
    r.beyond = 0.f;
#pragma unroll
    for (int i = 0; i < TB / 8; i++) r.v[i] = seat.read(g, seat.lane + i * seat.LANES);
#pragma unroll 4
    for (int q = seat.lane + TB / 8 * seat.LANES; 4 * q < seat.count; q += seat.LANES)
        r.beyond += seat.sum(seat.read(g, q), q);
    return r;
}

/* What each token's sums are to be multiplied by. */
template <int TB>
PTX_INLINE void cu_token_scales(const cu_gemm &g, cu_norm_shared<TB> &shared,
                                const cu_squares<TB> &r, int thread)
{
    const cu_scale_seat<TB> seat(g, thread);
    float sum = r.beyond;
#pragma unroll
    for (int i = 0; i < TB / 8; i++) sum += seat.sum(r.v[i], seat.lane + i * seat.LANES);
#pragma unroll
    for (int d = seat.LANES / 2; d > 0; d /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, d);
    if (seat.lane == 0)
        shared.scale[seat.token] = 1.f / sqrtf(sum / (float)g.scale.cols + g.scale.eps);
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

/* --- the product before: parts --- */

/* A float as a word that is not zero: its complement.  The one NaN that has none passes as another.
 */
PTX_INLINE uint32_t cu_norm_word(float x)
{
    const uint32_t word = ~__float_as_uint(x);
    return word ? word : 0x80000000u;
}

/* Where a thread of part 0 of a tile has its words of an octet of tokens; the other parts' are
 * cu_words_step further on each. */
template <int TB>
PTX_INLINE uint32_t *cu_words_at(const cu_gemm &g, int32_t tile, int octet, int thread)
{
    return g.norm.words + (size_t)((tile << g.part_shift) * (TB / 8) + octet) * 512 + thread * 4;
}
template <int TB> PTX_INLINE constexpr int cu_words_step()
{
    return TB / 8 * 512;
}

/* Counts a part in; whether it is the tile's last.  It orders nothing: words speak for themselves.
 */
template <int TB>
PTX_INLINE bool cu_count_part(const cu_gemm &g, cu_norm_shared<TB> &shared, int32_t tile,
                              int thread)
{
    ptx_bar_sync(1, 128);
    if (thread == 0) {
        uint32_t *arrived = &g.norm.arrived[tile];
        shared.last = ptx_atomic_add_relaxed(arrived, 1) == (1u << g.part_shift) - 1;
        if (shared.last) *arrived = 0;
    }
    ptx_bar_sync(1, 128);
    return shared.last;
}

/* Which octets of tokens a CTA finishes. */
struct cu_octets {
    int32_t begin, step, end;
};

/* Where no CTA has two units the parts share them, from the last part on; else all are the last
 * part's, if units are ordered; else all are whose part comes last.  What others finish is left
 * where they find it. */
template <int TB>
PTX_INLINE cu_octets cu_leave_parts(const cu_gemm &g, const cu_work &w, cu_norm_shared<TB> &shared,
                                    const cu_unit &u, const float (&acc)[TB / 2], int thread)
{
    const int parts = 1 << g.part_shift, after = parts - 1 - u.part, step = w.single ? parts : 1;
    const bool counts = !(w.single || w.ordered || parts == 1);
    /* Ordered: beyond all octets for all parts but the last. */
    cu_octets mine = {counts ? 0 : after * (w.single ? 1 : TB / 8), step, (g.tokens + 7) / 8};
    uint32_t *out = cu_words_at<TB>(g, u.group, 0, thread) + u.part * cu_words_step<TB>();
#pragma unroll
    for (int c = 0; c < TB / 8; c++)
        if (c < mine.end && (counts || (c & step - 1) != mine.begin))
            ptx_store_relaxed_v4(out + c * 512,
                                 make_uint4(cu_norm_word(acc[4 * c]), cu_norm_word(acc[4 * c + 1]),
                                            cu_norm_word(acc[4 * c + 2]),
                                            cu_norm_word(acc[4 * c + 3])));
    if (counts && !cu_count_part(g, shared, u.group, thread)) mine.end = 0;
    return mine;
}

/* What a thread reads to finish an octet: words of all parts but its own, and of four rows of a
 * token the residual stream. */
struct cu_octet_reads {
    uint4 word[KN_CU_PARTS_MAX];
    float4 old;
};

template <int TB>
PTX_INLINE void cu_read_words(const cu_gemm &g, const cu_unit &u, int octet, int thread,
                              cu_octet_reads &r)
{
    const uint32_t *from = cu_words_at<TB>(g, u.group, octet, thread);
#pragma unroll
    for (int p = 0; p < KN_CU_PARTS_MAX; p++)
        if (p < 1 << g.part_shift && p != u.part)
            r.word[p] = ptx_load_relaxed_v4(from + p * cu_words_step<TB>());
}

PTX_INLINE bool cu_words_there(const cu_gemm &g, const cu_unit &u, const cu_octet_reads &r)
{
    bool there = true;
#pragma unroll
    for (int p = 0; p < KN_CU_PARTS_MAX; p++)
        if (p < 1 << g.part_shift && p != u.part)
            there &= r.word[p].x && r.word[p].y && r.word[p].z && r.word[p].w;
    return there;
}

template <int TB>
PTX_INLINE void cu_read_octet(const cu_gemm &g, const cu_unit &u, int octet, int32_t k, int thread,
                              cu_octet_reads &r)
{
    const int token = octet * 8 + thread / 16;
    cu_read_words<TB>(g, u, octet, thread, r);
    r.old = cu_read_four((const float *)g.out + (size_t)token * g.rows,
                         token < g.tokens ? g.rows : 0, k);
}

/* The sum of all parts, `own` at its place; their words are zero again. */
template <int TB>
PTX_INLINE float4 cu_add_parts(const cu_gemm &g, const cu_unit &u, int octet, int thread,
                               cu_octet_reads &r, const float4 &own)
{
    const uint4 word = make_uint4(~__float_as_uint(own.x), ~__float_as_uint(own.y),
                                  ~__float_as_uint(own.z), ~__float_as_uint(own.w));
    uint32_t *at = cu_words_at<TB>(g, u.group, octet, thread);
    float4 sum = own;
    PTX_SPIN_UNTIL(cu_words_there(g, u, r) || (cu_read_words<TB>(g, u, octet, thread, r), false));
#pragma unroll
    for (int p = 0; p < KN_CU_PARTS_MAX; p++) {
        if (p >= 1 << g.part_shift) continue;
        const uint4 w = p == u.part ? word : r.word[p];
        const float4 f = make_float4(__uint_as_float(~w.x), __uint_as_float(~w.y),
                                     __uint_as_float(~w.z), __uint_as_float(~w.w));
        sum = p == 0 ? f : make_float4(sum.x + f.x, sum.y + f.y, sum.z + f.z, sum.w + f.w);
        ptx_store_relaxed_v4(at + p * cu_words_step<TB>(), make_uint4(0, 0, 0, 0));
    }
    return sum;
}

/* --- the product before: the end of a tile --- */

/* Four rows of a tile and what is known of them beforehand.  A thread has them for one of 8 tokens.
 */
struct cu_norm_rows {
    int32_t k;
    float4 gain, bias;
};

PTX_INLINE cu_norm_rows cu_rows_of(const cu_gemm &g, int32_t tile, int thread)
{
    cu_norm_rows rows;
    rows.k = tile * 64 + thread % 16 * 4;
    rows.gain = cu_read_four(g.norm.gain, g.rows, rows.k);
    rows.bias = g.bias ? cu_read_four(g.bias, g.rows, rows.k) : make_float4(0.f, 0.f, 0.f, 0.f);
    return rows;
}

/* Sums change hands through shared memory [token of 8][row].  Rows are permuted within a token, so
 * that neither side meets a bank twice. */
PTX_INLINE int cu_norm_at(int token, int row)
{
    return token * 64 + (row ^ ((token >> 1 & 3) << 3 | (token & 1) << 2));
}

/* Four rows of a token: the residual stream, the activations, and the tile's sum of squares. */
template <int TB>
PTX_INLINE void cu_finish_rows(const cu_gemm &g, int32_t tile, const cu_norm_rows &rows, int token,
                               float4 sum, const float4 &old)
{
    const int32_t k = rows.k, n = g.rows;
    if (g.bias) {
        sum.x += rows.bias.x;
        sum.y += rows.bias.y;
        sum.z += rows.bias.z;
        sum.w += rows.bias.w;
    }
    const float4 x = make_float4(k < n ? old.x + sum.x : 0.f, k + 1 < n ? old.y + sum.y : 0.f,
                                 k + 2 < n ? old.z + sum.z : 0.f, k + 3 < n ? old.w + sum.w : 0.f);
    const float squares = cu_sum_squares(x);
    if (token >= g.tokens) return;
    uint8_t *y = (uint8_t *)g.norm.y;
    cu_write_four((float *)g.out + (size_t)token * n, n, k, x);
    *(uint2 *)(y + kn_cu_act_offset(TB, token, k)) = cu_act_four(x, rows.gain);
    if (tile == g.tile_count - 1 && tile % 2 == 0)
        *(uint2 *)(y + kn_cu_act_offset(TB, token, k + 64)) = make_uint2(0, 0);
    float *sums = (float *)(y + (size_t)((n + 127) / 128) * TB * 256);
    if (k % 64 == 0) sums[(size_t)token * kn_cu_sums_stride(n) + tile] = squares;
}

/* The end of a unit of a product with a norm after it; stage: [TB][64] floats of shared memory that
 * the unit's last multiplications may still read.  The next octet is read while one is finished. */
template <int TB>
PTX_INLINE void cu_finish(const cu_gemm &g, const cu_work &w, cu_norm_shared<TB> &shared,
                          float *stage, const cu_unit &u, const float (&acc)[TB / 2],
                          const cu_norm_rows &rows, int thread)
{
    const int row = thread / 32 * 16 + (thread % 32 >> 2), t = (thread & 3) * 2;
    const cu_octets mine = cu_leave_parts<TB>(g, w, shared, u, acc, thread);
    if (mine.begin >= mine.end) return;
    ptx_bar_sync(1, 128);
#pragma unroll
    for (int c = 0; c < TB / 8; c++)
        ((float4 *)stage)[c * 128 + thread] =
            make_float4(acc[4 * c], acc[4 * c + 1], acc[4 * c + 2], acc[4 * c + 3]);
    cu_octet_reads next;
    cu_read_octet<TB>(g, u, mine.begin, rows.k, thread, next);
#pragma unroll 1
    for (int c = mine.begin; c < mine.end; c += mine.step) {
        cu_octet_reads r = next;
        if (c + mine.step < mine.end) cu_read_octet<TB>(g, u, c + mine.step, rows.k, thread, next);
        float *octet = stage + c * 512;
        const float4 sum = cu_add_parts<TB>(g, u, c, thread, r, ((const float4 *)octet)[thread]);
        ptx_bar_sync(1, 128);
        octet[cu_norm_at(t, row)] = sum.x;
        octet[cu_norm_at(t + 1, row)] = sum.y;
        octet[cu_norm_at(t, row + 8)] = sum.z;
        octet[cu_norm_at(t + 1, row + 8)] = sum.w;
        ptx_bar_sync(1, 128);
        cu_finish_rows<TB>(g, u.group, rows, c * 8 + thread / 16,
                           *(const float4 *)&octet[cu_norm_at(thread / 16, thread % 16 * 4)],
                           r.old);
    }
}

#endif
