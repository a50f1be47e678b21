/*
 * attention_combine.cuh - the combiner warps of a decode attention CTA: from the accumulators of a
 * unit's warps to the unit, from units to their group, from groups to the result; always left to
 * right (decode_attention.cuh, invariant 2).
 *
 * The units of a whole group never leave the combiners' registers.  Other partials go through
 * memory as words that say by themselves whether they have been written: a float's bits,
 * complemented, and zero for "not yet".  Who wants them reads them until all are there, then makes
 * them zero again.  Nobody waits for a store to become visible: neither fences nor acquires, which
 * take a microsecond or two each while memory is busy.
 *
 * Who wants them?  Under a spread plan, where every item has a CTA of its own, the CTA that has the
 * token's last unit.  Else who counts in last, of a group's units, then of a token's groups: the
 * others' stores are then at least on their way, so no CTA waits for one that has yet to begin.
 */
#ifndef DAKD_KERNELS_CUDA_ATTENTION_COMBINE_CUH
#define DAKD_KERNELS_CUDA_ATTENTION_COMBINE_CUH

#include "kernels/cuda/attention_ring.cuh"

/* A thread's part of a unit, a group or the result: some four-element pieces of one row, and the
 * row's maximum (log2 domain) and sum. */
template <int QUADS> struct cu_att_value {
    float4 out[QUADS];
    float max, sum;
};

template <int QUADS> PTX_INLINE void cu_att_clear(cu_att_value<QUADS> &v)
{
#pragma unroll
    for (int i = 0; i < QUADS; i++) v.out[i] = make_float4(0.f, 0.f, 0.f, 0.f);
    v.max = -INFINITY;
    v.sum = 0.f;
}

/* Where a thread stands in its team: row `row` of the group's heads, pieces first, first + step..
 */
struct cu_att_seat {
    int32_t thread, row, first, step;
};

PTX_INLINE cu_att_seat cu_att_sit(const cu_att_params &p, int thread)
{
    const int step = 1 << p.row_shift;
    return {thread, thread >> p.row_shift, thread & (step - 1), step};
}

/* v = v and then x.  Spelt out, for it must round alike wherever it is compiled. */
PTX_INLINE void cu_att_fold_ml(float &max, float &sum, float x_max, float x_sum, float &factor,
                               float &x_factor)
{
    const float most = fmaxf(max, x_max);
    factor = ptx_ex2(max - most);
    x_factor = ptx_ex2(x_max - most);
    max = most;
    sum = __fmaf_rn(x_factor, x_sum, __fmul_rn(factor, sum));
}
PTX_INLINE void cu_att_fold_quad(float4 &v, float factor, const float4 &x, float x_factor)
{
    v.x = __fmaf_rn(x_factor, x.x, __fmul_rn(factor, v.x));
    v.y = __fmaf_rn(x_factor, x.y, __fmul_rn(factor, v.y));
    v.z = __fmaf_rn(x_factor, x.z, __fmul_rn(factor, v.z));
    v.w = __fmaf_rn(x_factor, x.w, __fmul_rn(factor, v.w));
}
PTX_INLINE void cu_att_fold(cu_att_value<1> &v, const float4 &x, float x_max, float x_sum)
{
    float factor, x_factor;
    cu_att_fold_ml(v.max, v.sum, x_max, x_sum, factor, x_factor);
    cu_att_fold_quad(v.out[0], factor, x, x_factor);
}
/* --- partials in memory --- */

/* No float is without a word: the one NaN whose complement would be zero passes as another NaN. */
PTX_INLINE uint32_t cu_att_word(float x)
{
    const uint32_t word = ~__float_as_uint(x);
    return word ? word : 0x80000000u;
}
PTX_INLINE float cu_att_unword(uint32_t word)
{
    return __uint_as_float(~word);
}
PTX_INLINE float4 cu_att_unword4(uint4 w)
{
    return make_float4(cu_att_unword(w.x), cu_att_unword(w.y), cu_att_unword(w.z),
                       cu_att_unword(w.w));
}

/* Partials of one row: the first's row in the workspace, and how many rows on the next is. */
struct cu_att_words {
    uint32_t *out, *ml;
    uint32_t row, step;
};

/* Units from `slot` on, every `stride`-th. */
PTX_INLINE cu_att_words cu_att_units_at(const cu_att_params &p, const cu_att_finished &u,
                                        const cu_att_seat &seat, int slot, int stride)
{
    const uint32_t row = slot * p.q_heads + u.head * p.group + seat.row;
    return {p.partial, p.partial_ml, row, (uint32_t)(stride * p.q_heads)};
}
/* The token's groups, from that of unit `first` on.  A group has 4 units at least, unless it is the
 * token's last: hence a place of its own for each. */
PTX_INLINE cu_att_words cu_att_groups_at(const cu_att_params &p, const cu_att_finished &u,
                                         const cu_att_seat &seat, int first, int group_shift)
{
    const uint32_t slot = (u.first_slot + first) / 4 + u.token;
    const uint32_t row = slot * p.q_heads + u.head * p.group + seat.row;
    return {p.group_partial, p.group_ml, row, (uint32_t)((1 << group_shift) / 4 * p.q_heads)};
}

PTX_INLINE void cu_att_put_quad(const cu_att_params &p, const cu_att_words &to, int quad,
                                const float4 &x)
{
    ptx_store_relaxed_v4(
        to.out + to.row * p.head_dim + quad * 4,
        make_uint4(cu_att_word(x.x), cu_att_word(x.y), cu_att_word(x.z), cu_att_word(x.w)));
}
PTX_INLINE void cu_att_put_ml(const cu_att_words &to, float max, float sum)
{
    ptx_store_relaxed_v2(to.ml + 2 * to.row, make_uint2(cu_att_word(max), cu_att_word(sum)));
}

/* A piece of the fold of `count` partials, which it waits for.  `fan`: they are folded by so many
 * (a multiple of 4) first; 1: at once.  A batch's loads are in flight together. */
PTX_INLINE cu_att_value<1> cu_att_fold_words(const cu_att_words &from, int head_dim, int count,
                                             int fan, int quad)
{
    constexpr int BATCH = 4;
    cu_att_value<1> result, group;
    cu_att_clear(result);
    cu_att_clear(group);
    for (int begin = 0; begin < count; begin += BATCH) {
        uint4 x[BATCH];
        uint2 ml[BATCH];
        bool there;
        do {
            there = true;
#pragma unroll
            for (int b = 0; b < BATCH; b++) {
                if (begin + b >= count) continue;
                const uint32_t row = from.row + (begin + b) * from.step;
                ml[b] = ptx_load_relaxed_v2(from.ml + 2 * row);
                x[b] = ptx_load_relaxed_v4(from.out + row * head_dim + quad * 4);
            }
#pragma unroll
            for (int b = 0; b < BATCH; b++)
                there = there && (begin + b >= count ||
                                  (ml[b].x && ml[b].y && x[b].x && x[b].y && x[b].z && x[b].w));
        } while (!there);
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            if (begin + b >= count) continue;
            cu_att_fold(group, cu_att_unword4(x[b]), cu_att_unword(ml[b].x),
                        cu_att_unword(ml[b].y));
            if (begin + b + 1 < count && (fan == 1 || (begin + b + 1 & fan - 1))) continue;
            cu_att_fold(result, group.out[0], group.max, group.sum);
            cu_att_clear(group);
        }
    }
    return result;
}

/* Makes their words zero again. */
PTX_INLINE void cu_att_clear_words(const cu_att_params &p, const cu_att_words &at,
                                   const cu_att_seat &seat, int count)
{
    for (int i = 0; i < count; i++) {
        const uint32_t row = at.row + i * at.step;
        for (int quad = seat.first; quad < p.head_dim / 4; quad += seat.step)
            ptx_store_relaxed_v4(at.out + row * p.head_dim + quad * 4, make_uint4(0, 0, 0, 0));
        if (seat.first == 0) ptx_store_relaxed_v2(at.ml + 2 * row, make_uint2(0, 0));
    }
}

/* --- a unit --- */

/* The unit from what the warps that had a part of it have left: folded onto `group` if the item is
 * whole, else to memory. */
template <int ATOMS, int ROWS>
PTX_INLINE void cu_att_take_unit(const cu_att_params &p, cu_att_shared<ATOMS, ROWS> &sh,
                                 const cu_att_finished &u, const cu_att_seat &seat,
                                 cu_att_value<cu_att_shape<ATOMS, ROWS>::QUADS> &group)
{
    using shape = cu_att_shape<ATOMS, ROWS>;
    constexpr int TEAM_QUADS = shape::TILES * 4;
    const bool whole = u.flags & CU_ATT_WHOLE;
    const cu_att_words to = cu_att_units_at(p, u, seat, u.slot, 1);
    float warp_factor[shape::PARTS], most = -INFINITY, sum = 0.f, factor, x_factor;
    float2 ml[shape::PARTS];
#pragma unroll
    for (int w = 0; w < shape::PARTS; w++) {
        ml[w] = sh.ml[w][seat.row];
        most = fmaxf(most, ml[w].x);
    }
#pragma unroll
    for (int w = 0; w < shape::PARTS; w++) {
        warp_factor[w] = ptx_ex2(ml[w].x - most);
        sum = __fmaf_rn(warp_factor[w], ml[w].y, sum);
    }
    if (whole) cu_att_fold_ml(group.max, group.sum, most, sum, factor, x_factor);
    else if (seat.first == 0) cu_att_put_ml(to, most, sum);
#pragma unroll
    for (int i = 0; i < shape::QUADS; i++) {
        const int quad = seat.first + i * seat.step;
        if (quad >= p.head_dim / 4) break;
        const int team = quad / TEAM_QUADS;
        const float *from = cu_att_dump(sh) + (team * 4 * p.group + seat.row) * shape::DUMP_ROW +
                            (quad - team * TEAM_QUADS) * 4;
        float4 x = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
        for (int w = 0; w < shape::PARTS; w++) {
            const float4 y = *(const float4 *)(from + w * p.group * shape::DUMP_ROW);
            x.x = __fmaf_rn(warp_factor[w], y.x, x.x);
            x.y = __fmaf_rn(warp_factor[w], y.y, x.y);
            x.z = __fmaf_rn(warp_factor[w], y.z, x.z);
            x.w = __fmaf_rn(warp_factor[w], y.w, x.w);
        }
        if (whole) cu_att_fold_quad(group.out[i], factor, x, x_factor);
        else cu_att_put_quad(p, to, quad, x);
    }
}

/* --- results --- */

/* Threads that work together, and the barrier among them. */
template <int COUNT, int NAMED_BARRIER> struct cu_att_team {
    static constexpr int THREADS = COUNT, BARRIER = NAMED_BARRIER;
};

/* Where element k of a token's result lies: in the activation layout, in chunks. */
PTX_INLINE uint2 *cu_att_out_at(const cu_att_params &p, int token, int k)
{
    return (uint2 *)(p.out + kn_cu_act_offset(p.token_rows, token, k) +
                     token / KN_CU_TOKENS_MAX * p.chunk_skip);
}

/* A piece of the result, in bf16. */
PTX_INLINE void cu_att_write(const cu_att_params &p, const cu_att_finished &u,
                             const cu_att_seat &seat, int quad, const float4 &out, float sum)
{
    const float inverse = 1.f / sum;
    const __nv_bfloat162 low = __floats2bfloat162_rn(out.x * inverse, out.y * inverse);
    const __nv_bfloat162 high = __floats2bfloat162_rn(out.z * inverse, out.w * inverse);
    const int k = (u.head * p.group + seat.row) * p.head_dim + quad * 4;
    *cu_att_out_at(p, u.token, k) = make_uint2(*(const uint32_t *)&low, *(const uint32_t *)&high);
}

/* Inputs beyond Hq * D of the activation's last block are zero. */
PTX_INLINE void cu_att_clear_tail(const cu_att_params &p, int token, int thread, int threads)
{
    const int begin = p.q_heads * p.head_dim, end = (begin + 127) / 128 * 128;
    for (int k = begin + thread * 4; k < end; k += threads * 4)
        *cu_att_out_at(p, token, k) = make_uint2(0, 0);
}

/* Folds partials, to the result or to the place of a group, and clears them. */
template <typename TEAM>
PTX_INLINE void cu_att_reduce(const cu_att_params &p, const cu_att_finished &u,
                              const cu_att_seat &seat, const cu_att_words &from, int count, int fan,
                              bool result, const cu_att_words &to)
{
    const int quads = seat.row < p.group ? p.head_dim / 4 : 0;
    for (int quad = seat.first; quad < quads; quad += seat.step) {
        const cu_att_value<1> v = cu_att_fold_words(from, p.head_dim, count, fan, quad);
        if (result) {
            cu_att_write(p, u, seat, quad, v.out[0], v.sum);
        } else {
            cu_att_put_quad(p, to, quad, v.out[0]);
            if (quad == 0) cu_att_put_ml(to, v.max, v.sum);
        }
    }
    __syncwarp();
    ptx_bar_sync(TEAM::BARRIER, TEAM::THREADS); /* all have read the maxima and sums */
    if (quads) cu_att_clear_words(p, from, seat, count);
}

/* What of a token lies in memory under a spread plan: `count` values, `stride` slots apart; a group
 * is `fan` of them, or what is left. */
struct cu_att_spread_list {
    int32_t count, stride, fan;
};
PTX_INLINE cu_att_spread_list cu_att_spread_list_of(int unit_count, int spread_pages,
                                                    int unit_shift, int group_shift)
{
    const int fan = 1 << group_shift, item = max(1, spread_pages >> unit_shift);
    const int groups = (unit_count + fan - 1) >> group_shift, full = (groups - 1) << group_shift;
    if (item >= fan) return {groups, fan, 1};
    return {item >= unit_count - full ? full + 1 : unit_count, 1, fan};
}

/* Counts `units` in; true for all of the team where they were the last, which also clears the
 * count.  It orders nothing: partials speak for themselves. */
template <typename TEAM, typename SHARED>
PTX_INLINE bool cu_att_arrive(SHARED &sh, uint32_t *count, int units, int expected, int thread)
{
    ptx_bar_sync(TEAM::BARRIER, TEAM::THREADS);
    if (thread == 0) {
        const bool last = ptx_atomic_add_relaxed(count, units) == (uint32_t)(expected - units);
        if (last) *count = 0;
        sh.count_last = last;
    }
    ptx_bar_sync(TEAM::BARRIER, TEAM::THREADS);
    return sh.count_last;
}

/* Where an item stands in its token. */
struct cu_att_place {
    int32_t unit_shift, group_shift;
    int32_t last;        /* its last unit */
    int32_t first, size; /* its group's units */
    bool whole, alone;   /* it is all of its group; its group is all of the token */
};
PTX_INLINE cu_att_place cu_att_place_of(const cu_att_finished &u)
{
    cu_att_place at;
    at.unit_shift = u.flags >> CU_ATT_SHIFT_AT & 7;
    at.group_shift = kn_cut_group_shift(at.unit_shift);
    const int fan = 1 << at.group_shift;
    at.last = u.slot - u.first_slot;
    at.first = at.last & -fan;
    at.size = min(fan, u.unit_count - at.first);
    at.whole = u.flags & CU_ATT_WHOLE;
    at.alone = u.unit_count <= fan;
    return at;
}

/* What an item that is not all of its token completes: under a spread plan the token, if it is the
 * token's last; else its group, or the token, or both, if it is the last to be counted in.  There
 * is one copy of the fold, in line: as a function, its arguments in memory, it took 1.8 us more. */
template <typename TEAM, typename SHARED>
PTX_INLINE void cu_att_complete(const cu_att_params &p, SHARED &sh, const cu_att_finished &u,
                                const cu_att_seat &seat, int spread_pages)
{
    const cu_att_place at = cu_att_place_of(u);
    bool root = at.whole, done = false;
    while (!done) {
        cu_att_words from, to = cu_att_words();
        int count, fan = 1;
        if (spread_pages) {
            if (at.last != u.unit_count - 1) return;
            const cu_att_spread_list list =
                cu_att_spread_list_of(u.unit_count, spread_pages, at.unit_shift, at.group_shift);
            from = cu_att_units_at(p, u, seat, u.first_slot, list.stride);
            count = list.count;
            fan = list.fan;
            done = true;
        } else {
            const int slot = root ? u.first_slot : u.first_slot + at.first;
            uint32_t *arrivals =
                (root ? p.root_count : p.group_count) + (size_t)slot * p.kv_heads + u.head;
            count = root ? (u.unit_count - 1 >> at.group_shift) + 1 : at.size;
            if (!cu_att_arrive<TEAM>(sh, arrivals, root ? 1 : u.flags >> CU_ATT_UNITS_AT & 31,
                                     count, seat.thread))
                return;
            from = root ? cu_att_groups_at(p, u, seat, 0, at.group_shift)
                        : cu_att_units_at(p, u, seat, slot, 1);
            to = cu_att_groups_at(p, u, seat, at.first, at.group_shift);
            done = root || at.alone;
            root = true;
        }
        cu_att_reduce<TEAM>(p, u, seat, from, count, fan, done, to);
    }
    if (u.head == p.kv_heads - 1) cu_att_clear_tail(p, u.token, seat.thread, TEAM::THREADS);
}

/* The end of an item, `group` its value if it is whole: true where that is the result. */
template <typename TEAM, int QUADS>
PTX_INLINE bool cu_att_end_item(const cu_att_params &p, const cu_att_finished &u,
                                const cu_att_seat &seat, int spread_pages,
                                const cu_att_value<QUADS> &group)
{
    const cu_att_place at = cu_att_place_of(u);
    if (!at.whole) return false;
    if (seat.row < p.group) {
        const cu_att_words to = spread_pages
                                    ? cu_att_units_at(p, u, seat, u.first_slot + at.first, 1)
                                    : cu_att_groups_at(p, u, seat, at.first, at.group_shift);
#pragma unroll
        for (int i = 0; i < QUADS; i++) {
            const int quad = seat.first + i * seat.step;
            if (quad >= p.head_dim / 4) break;
            if (at.alone) cu_att_write(p, u, seat, quad, group.out[i], group.sum);
            else cu_att_put_quad(p, to, quad, group.out[i]);
        }
        if (!at.alone && seat.first == 0) cu_att_put_ml(to, group.max, group.sum);
    }
    if (at.alone && u.head == p.kv_heads - 1)
        cu_att_clear_tail(p, u.token, seat.thread, TEAM::THREADS);
    return at.alone;
}

template <int ATOMS, int ROWS>
PTX_INLINE void cu_att_combine(const cu_att_params &p, cu_att_shared<ATOMS, ROWS> &sh,
                               int spread_pages, int thread)
{
    using shape = cu_att_shape<ATOMS, ROWS>;
    using team = cu_att_team<32 * shape::COMBINERS, 3>;
    const cu_att_seat seat = cu_att_sit(p, thread);
    cu_att_value<shape::QUADS> group;
    cu_att_clear(group);
    for (int n = 0;; n++) {
        ptx_mbarrier_wait(&sh.finished_full, n & 1);
        const cu_att_finished u = sh.finished;
        if (u.flags & CU_ATT_END) break;
        if (seat.row < p.group) cu_att_take_unit(p, sh, u, seat, group);
        ptx_mbarrier_arrive(&sh.finished_empty);
        if (!(u.flags & CU_ATT_ITEM_LAST)) continue;
        if (!cu_att_end_item<team>(p, u, seat, spread_pages, group))
            cu_att_complete<team>(p, sh, u, seat, spread_pages);
        cu_att_clear(group);
    }
}

#endif
