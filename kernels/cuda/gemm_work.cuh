/*
 * gemm_work.cuh - what a launch of a GEMM needs, and who computes which part of it.
 *
 * A unit is a part of K of a group of row tiles, computed by one CTA, whichever tier it lies in.
 * How a remote tier is read, its window says:
 *
 * Roles: a few CTAs, as many as the window has CTAs, read all of the tier's units, before any
 * local ones, so that the link is busy from the start.  As few CTAs as leave all of them
 * equally many units; they share the window of all that might have read.  Where a launch has a CTA
 * for each unit, as many read as have a block of the window: nobody then has two units.
 *
 * Where the link needs longer for its units than HBM for the local ones, HBM would wait, and can
 * bear to be slower by as much: the window grows in that ratio, to at most twice (a link has no use
 * for more), and as many CTAs read as have nothing else to do, as far as the window has a block for
 * each.  What counts then is that the link never idles: the rings of many readers hold what it
 * delivers between two products.
 *
 * In turn: the readers of a launch begin when those of the launch before have issued their last
 * copy, where the link takes three quarters of HBM's time or more.  CTAs of both share the machine
 * long before, once local work is done; readers that began at once would take the link from the
 * launch that is waited for, have their rings full when it ends, and leave the link idle until
 * their own launch may go on.  Only launches of more than half the CTAs the GPU holds take turns
 * (kn_cu_gemm_takes_turn): the oldest of them that runs, the next, none of whose CTAs ends before,
 * and a part of the one after it are all that can run at once, so KN_CU_TURNS counters in turn are
 * enough.  (Without that, four launches of 32 CTAs waited for each other in a circle.)
 *
 * No roles, for a window of as many CTAs as the grid: every CTA reads its part, one unit for
 * most that have any.  Each has it at another place among its local units, so that at any time as
 * many read the tier as its share of the work.
 *
 * Local units are dealt so that all CTAs end together: the link takes window.cost times as long for
 * a block as HBM, so a reader's remote units cost it a known part of its time, and it gets as many
 * whole local ones as fit beside them.  All CTAs of a launch read the same control block, or they
 * would disagree.
 *
 * What is sure.  A kernel has no more readers than remote units, so a CTA beyond these needs no
 * window to know what to begin with: one local unit is its own.  It fills its ring with that before
 * anything is read from memory or divided (cu_gemm_begin).
 *
 * Order.  With roles, a CTA has its remote units before its local ones, and of each tier in order:
 * remote ones go up in steps, the sure unit comes before all that are dealt, and these are
 * consecutive.  (A reader has no sure unit, and reads one tier.)  So there is one order of all
 * units of a launch, by tier and then number, local ones last, in which every CTA has its own; the
 * first of those that are not done is always some CTA's next.  gemm_norm.cuh builds on that.
 *
 * Staged tiles are brought to local memory by the copy engine while other kernels run (stage.c),
 * and are local in all of this but their address; they lie next to the local ones, so that the
 * units of tier 0 stay one run.  Who is to read one waits for the weight's word first.  That closes
 * no circle: the copy waits for kernels before this one alone, or for this one's first CTA to know
 * that they have ended, which waits for nothing else.
 *
 * Measured on an H200, steps of an 8B model at 1, 32 and 128 tokens.  Sure units: 0.4 % over PCIe,
 * the same placement, 4.03 to 3.96 ms at 1 token (3.93 without a remote tier).  Turns and more
 * readers, floor over time: PCIe 5 % 0.964, 0.949, 0.901 to 0.981, 0.975, 0.913; NVLink 30 % 0.936,
 * 0.925 to 0.976, 0.968 (128 tokens: 0.881); 10 % 0.860, 0.837, 0.689 without turns, 0.904, 0.887,
 * 0.695 with.  At 128 tokens a product has an SM to itself, and few of its CTAs run before
 * attention has ended.  Turns near balance too, not only a quarter beyond it: gate-up just beyond
 * it over NVLink 3.67 to 3.53 ms at 1 token, 4.17 to 4.07 at 32; 1 % over PCIe with a tile of o
 * 3.89 to 3.73.  A CTA for each unit, so that parts share the end of a tile (gemm_norm.cuh): 7 %
 * over NVLink, the same placement, 4.03 to 3.86 ms at 32 tokens.
 *
 * Tried and dropped: one CTA an SM for products with remote tiles (0.94); windows passed with the
 * launch in place of a load at its start (no difference); windows of 8, 24 and 48 blocks over PCIe
 * in place of 32 (4.69, 4.29 and 4.28 ms against 4.27 at 1 % and 1 token); 32 x 2 over NVLink (3.77
 * against 3.73 ms at 7 %).  A kernel is not done, for those who wait for it (griddepcontrol), while
 * the next one's remote copies are on their way, 4 to 8 us over PCIe: memory synchronization
 * domains, one a launch, take that away for NVLink in single launches, and change nothing in a
 * graph; remote copies that wait for the kernel before lose more (3.80 to 3.81, PCIe 4.10 to 4.42).
 * Windows dealt to the block, so that some readers have one more: those end first and the link runs
 * dry (10 % over NVLink 4.35 to 4.82).
 */
#ifndef DAKD_KERNELS_CUDA_GEMM_WORK_CUH
#define DAKD_KERNELS_CUDA_GEMM_WORK_CUH

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/ptx.cuh"

/* From this ratio of the link's time to HBM's on, a launch's readers wait for those of the launch
 * before: what they would do without is its rings' worth of the link. */
#define IN_TURN_RATIO 0.75f

/* A tier's tiles, and the groups that are read as its own: those with at least one of its tiles,
 * for tier 0 those with no other.  Staged tiles are tier 0's. */
struct cu_gemm_tier {
    const uint8_t *base;
    int32_t tile_begin, tile_end;
    int32_t group_begin, group_count;
};

/* Of tier 0's tiles, those that are staged. */
struct cu_gemm_staged {
    const uint8_t *base; /* where tier 0's first tile would lie, were all of its tiles here */
    int32_t tile_begin, tile_end;
    const uint32_t *word; /* not 0: they are there */
    uint32_t *read;       /* 0 says that what was staged before has been read; or NULL */
};

/* What a launch needs; passed by value. */
struct cu_gemm {
    cu_gemm_tier tier[KN_TIER_MAX];
    int32_t tile_count, blocks_per_tile;
    int32_t part_shift;  /* log2 of the parts K is cut into, each a unit of its own */
    int32_t part_blocks; /* blocks of K of a part; the last may have fewer or none */
    const uint8_t *x;
    const float *bias;
    void *out;
    float *partial; /* [parts][T][N] sums that another kernel adds up, in place of out; or NULL */
    kn_cu_scale scale;
    kn_cu_gemm_norm norm;
    int32_t rows, tokens; /* N, T */
    kn_epilogue epilogue;
    const kn_cu_window *windows;
    kn_cu_traffic *traffic;
    int32_t turn; /* 0..KN_CU_TURNS - 1; -1: takes none */
    cu_gemm_staged staged;
};

/* A kernel of one bucket and group height. */
struct cu_gemm_variant {
    int32_t bucket, group_tiles, threads, shared_bytes;
    int32_t resident; /* CTAs an SM holds */
    void (*kernel)(cu_gemm);
    void (*norm_kernel)(cu_gemm); /* with cu_gemm.norm; NULL: there is none */
    void (*staged_kernel)(cu_gemm), (*staged_norm_kernel)(cu_gemm); /* with cu_gemm.staged */
};
/* Those of more than 32 tokens (wide_gemm.cu), and all that read by plain loads (loads_gemm.cu). */
const cu_gemm_variant *cu_wide_variants(size_t *count);
const cu_gemm_variant *cu_loads_variants(size_t *count);

/* The units of one CTA, in its order: remote_at local ones, the remote ones (of at
 * most one tier), the other local ones.  Of those the first `sure` is unit sure_begin, the others
 * are consecutive from local_begin. */
struct cu_work {
    int32_t tier, window; /* of the remote units; blocks in flight of this CTA */
    bool in_turn;         /* they wait for the launch before */
    /* Of the launch: each CTA has one unit; each has remote units first, and of each tier those
     * before come first, for every tier with units is read by roles. */
    bool single, ordered;
    int32_t remote_at, remote_begin, remote_step, remote_count; /* units of that tier */
    int32_t sure, sure_begin;                                   /* 0 or 1 */
    int32_t local_begin, local_count;                           /* units of tier 0, sure too */
    int32_t watched_blocks; /* its blocks up to the last remote one, absent tiles too */
};

/* Whether unit i of a CTA is read from its remote tier. */
PTX_INLINE bool cu_gemm_remote(const cu_work &w, int32_t i)
{
    return i >= w.remote_at && i < w.remote_at + w.remote_count;
}

/* A unit as one CTA has it. */
struct cu_unit {
    int32_t group, part;
    int32_t block_begin, block_count; /* of K */
};

/* Unit n of a tier. */
PTX_INLINE cu_unit cu_gemm_unit_at(const cu_gemm &g, int32_t tier, int32_t n)
{
    cu_unit u;
    u.part = n & ((1 << g.part_shift) - 1);
    u.group = g.tier[tier].group_begin + (n >> g.part_shift);
    u.block_begin = u.part * g.part_blocks;
    u.block_count = max(min(g.part_blocks, g.blocks_per_tile - u.block_begin), 0);
    return u;
}

/* Unit i of a CTA. */
PTX_INLINE cu_unit cu_gemm_unit(const cu_gemm &g, const cu_work &w, int32_t i)
{
    const bool remote = cu_gemm_remote(w, i);
    const int32_t k = i < w.remote_at ? i : i - w.remote_count; /* local ones before it */
    const int32_t n = remote       ? w.remote_begin + (i - w.remote_at) * w.remote_step
                      : k < w.sure ? w.sure_begin
                                   : w.local_begin + k - w.sure;
    return cu_gemm_unit_at(g, remote ? w.tier : 0, n);
}

/* CTAs from this one on surely begin with local unit 0, 1, ...: a launch has at least as many units
 * as CTAs. */
PTX_INLINE int32_t cu_gemm_sure_from(const cu_gemm &g)
{
    int32_t groups = 0;
#pragma unroll
    for (int j = 1; j < KN_TIER_MAX; j++) groups += g.tier[j].group_count;
    return min(groups << g.part_shift, (int32_t)gridDim.x);
}

/* For who reads a tile of tier 0 at *from: where it is staged, waits until it is there, and moves
 * *from there.  Bytes that the copy engine wrote are read by bulk copies, of
 * another proxy than the load that saw the word. */
template <bool STAGED>
PTX_INLINE void cu_find_staged(const cu_gemm &g, int32_t tile, const uint8_t **from)
{
    if constexpr (STAGED)
        if (tile >= g.staged.tile_begin && tile < g.staged.tile_end) {
            PTX_SPIN_UNTIL(ptx_load_acquire_sys(g.staged.word) != 0);
            ptx_fence_proxy_async_global();
            *from += g.staged.base - g.tier[0].base;
        }
}

/* Whether a unit of tier 0 has staged tiles. */
template <class S> PTX_INLINE bool cu_unit_staged(const cu_gemm &g, const cu_unit &u)
{
    return u.group * S::RT < g.staged.tile_end && (u.group + 1) * S::RT > g.staged.tile_begin;
}

/* Says that what the product before staged has been read: the caller has waited for the kernels
 * before.  A plain word will do, for there is nothing of theirs that the copy engine should see. */
template <bool STAGED> PTX_INLINE void cu_staged_read(const cu_gemm &g)
{
    if (STAGED && blockIdx.x == 0 && g.staged.read) ptx_store_relaxed_sys(g.staged.read, 0);
}

/* Fills up to `most` slots of the ring, which is empty, with the CTA's sure unit; how many that
 * took: none where it would have to wait for what is staged.  One thread, which then issues the
 * rest (cu_gemm_work). */
template <class S, bool STAGED, class Ring>
PTX_INLINE int32_t cu_gemm_begin(const cu_gemm &g, Ring &ring, int32_t most)
{
    const int32_t sure = (int32_t)blockIdx.x - cu_gemm_sure_from(g);
    if (sure < 0) return 0;
    const uint64_t once = ptx_policy_evict_first();
    const cu_unit u = cu_gemm_unit_at(g, 0, sure);
    int32_t n = 0;
    if (STAGED && cu_unit_staged<S>(g, u)) return 0;
    for (int32_t b = 0; b < u.block_count && n + S::RT <= most; b++)
#pragma unroll
        for (int t = 0; t < S::RT; t++, n++) {
            const int32_t tile = u.group * S::RT + t;
            if (tile >= g.tile_count) { /* what it multiplies is never stored */
                ptx_mbarrier_arrive(&ring.w_full[n]);
                continue;
            }
            const int32_t block =
                (tile - g.tier[0].tile_begin) * g.blocks_per_tile + u.block_begin + b;
            ptx_mbarrier_expect_tx(&ring.w_full[n], KN_BLOCK_BYTES);
            ptx_bulk_load_hint(ring.weights[n], g.tier[0].base + (size_t)block * KN_BLOCK_BYTES,
                               KN_BLOCK_BYTES, &ring.w_full[n], once);
        }
    return n;
}

/* CTAs of a launch in their order: the readers of each tier, those that have a sure unit, and
 * between them those that might have been readers.  What is left of the local units is dealt by
 * weight. */
struct cu_deal {
    int32_t first[KN_TIER_MAX + 1]; /* readers of tier j: [first[j], first[j + 1]) */
    int32_t sure_from, ctas;
    float weight[KN_TIER_MAX]; /* of a reader */
    float plain, sure;         /* of the others */
};

/* Units before CTA c of those that are dealt.  A CTA's end must be its neighbour's begin, so every
 * rounding is written down; the error is below half a unit up to a million of them. */
PTX_INLINE float cu_deal_before(const cu_deal &d, int32_t c)
{
    const int32_t end = d.first[KN_TIER_MAX];
    float before = __fmul_rn(d.plain, (float)(min(max(c, end), d.sure_from) - end));
    before = __fadd_rn(before, __fmul_rn(d.sure, (float)max(c - d.sure_from, 0)));
#pragma unroll
    for (int j = 1; j < KN_TIER_MAX; j++)
        before = __fadd_rn(
            before,
            __fmul_rn(d.weight[j], (float)(min(max(c, d.first[j]), d.first[j + 1]) - d.first[j])));
    return before;
}

PTX_INLINE void cu_deal_units(const cu_deal &d, int32_t units, int32_t cta, int32_t *begin,
                              int32_t *count)
{
    const float all = cu_deal_before(d, d.ctas);
    const bool any = all > 0.f;
    const float scale = __fdiv_rn((float)units, any ? all : (float)d.ctas);
    const float before = any ? cu_deal_before(d, cta) : (float)cta;
    const float after = any ? cu_deal_before(d, cta + 1) : (float)(cta + 1);
    *begin = __float2int_rn(__fmul_rn(scale, before));
    *count = __float2int_rn(__fmul_rn(scale, after)) - *begin;
}

/* Weights that level all CTAs, from what each tier's part costs one of its readers in local units:
 * those whose load is above the level get no local work. */
PTX_INLINE void cu_deal_level(cu_deal &d, int32_t local, const float (&load)[KN_TIER_MAX])
{
    const int32_t others = d.ctas - d.first[KN_TIER_MAX];
    bool over[KN_TIER_MAX] = {}, settled = false;
    float level = 0.f;
    while (!settled) {
        float sum = (float)local, count = (float)others;
#pragma unroll
        for (int j = 1; j < KN_TIER_MAX; j++) {
            const float readers = over[j] ? 0.f : (float)(d.first[j + 1] - d.first[j]);
            sum += load[j] * readers;
            count += readers;
        }
        level = count > 0.f ? sum / count : 0.f;
        settled = true;
#pragma unroll
        for (int j = 1; j < KN_TIER_MAX; j++) {
            if (over[j] || d.first[j + 1] == d.first[j] || load[j] < level) continue;
            over[j] = true;
            settled = false;
        }
    }
    d.plain = level;
    d.sure = fmaxf(level - 1.f, 0.f);
    /* Whole units alone beside remote ones, where others can take what is left: half a unit on a
     * reader would make all wait for it. */
#pragma unroll
    for (int j = 1; j < KN_TIER_MAX; j++) {
        const float free = over[j] ? 0.f : level - load[j];
        d.weight[j] = others > 0 ? floorf(free) : free;
    }
}

/* How the link and HBM share a launch's time: CTAs that may read a tier, blocks they have in flight
 * together, and the link's time for its units over HBM's for the local ones. */
struct cu_link_share {
    int32_t readers, blocks;
    float ratio;
};

PTX_INLINE cu_link_share cu_link_share_of(const kn_cu_window &window, int32_t units, int32_t local,
                                          bool all_fit)
{
    const int32_t ctas = gridDim.x, wanted = min(max(window.ctas, 1), ctas);
    const int32_t blocks = wanted * min(max(window.blocks, 1), 1024); /* more than a ring has */
    const float ratio = window.cost * (float)units / (float)max(local, 1);
    const int32_t least = all_fit ? max(wanted, min(units, blocks)) : wanted;
    if (ratio <= 1.f) return {least, blocks, ratio};
    /* HBM may be slower by what it would wait, and that many CTAs have nothing else to do. */
    const int32_t all = (int32_t)((float)blocks * fminf(ratio, 2.f));
    const int32_t spare = (int32_t)((1.f - 1.f / ratio) * (float)ctas);
    return {min(max(spare, least), all), all, ratio};
}

template <class S> PTX_INLINE cu_work cu_gemm_work(const cu_gemm &g)
{
    const int32_t ctas = gridDim.x, cta = blockIdx.x;
    const int32_t local = g.tier[0].group_count << g.part_shift;
    cu_work w = {};
    cu_deal d = {};
    d.ctas = ctas;
    d.sure_from = cu_gemm_sure_from(g);
    d.plain = d.sure = 1.f;
    w.ordered = true;
    w.single = local == ctas;
    if (g.windows) {
        /* Reading CTAs of the remote tiers, side by side, and what each tier's part costs one of
         * them.  Every tier still to come keeps a CTA: there are as many as units. */
        int32_t tiers_left = 0, remote = 0;
        float load[KN_TIER_MAX] = {};
#pragma unroll
        for (int j = 1; j < KN_TIER_MAX; j++) {
            tiers_left += g.tier[j].group_count > 0;
            remote += g.tier[j].group_count << g.part_shift;
        }
        const bool all_fit = local + remote == ctas;
#pragma unroll
        for (int j = 1; j < KN_TIER_MAX; j++) {
            const int32_t units = g.tier[j].group_count << g.part_shift;
            int32_t readers = 0;
            if (units > 0) {
                const kn_cu_window window = g.windows[j];
                const bool roles = window.ctas < ctas;
                const cu_link_share link = cu_link_share_of(window, units, local, all_fit);
                tiers_left--;
                w.ordered &= roles;
                readers = min(roles ? link.readers : ctas, ctas - d.first[j] - tiers_left);
                const int32_t each = (units + readers - 1) / readers;
                readers = (units + each - 1) / each;
                /* The link's time for all of it; a reader takes at least what local units would. */
                load[j] = fmaxf(window.cost * (float)units / (float)ctas, (float)each);
                const int32_t rank = cta - d.first[j];
                if (rank >= 0 && rank < readers) {
                    w.tier = j;
                    w.in_turn = roles && g.turn >= 0 && link.ratio > IN_TURN_RATIO;
                    w.window =
                        min(roles ? (link.blocks + readers - 1) / readers : max(window.blocks, 1),
                            S::W_SLOTS);
                    w.remote_at = roles ? 0 : rank; /* of `readers` places: see below */
                    w.remote_begin = rank;
                    w.remote_step = readers;
                    w.remote_count = (units - rank + readers - 1) / readers;
                }
            }
            d.first[j + 1] = d.first[j] + readers;
        }
        cu_deal_level(d, local, load);
        w.single = all_fit && d.first[KN_TIER_MAX] == remote;
    }
    w.sure = cta >= d.sure_from;
    w.sure_begin = cta - d.sure_from;
    cu_deal_units(d, local - (ctas - d.sure_from), cta, &w.local_begin, &w.local_count);
    w.local_begin += ctas - d.sure_from;
    w.local_count += w.sure;
    if (w.remote_count > 0) {
        w.remote_at = w.remote_at * (w.local_count + 1) / w.remote_step;
        for (int32_t i = 0; i < w.remote_at + w.remote_count; i++)
            w.watched_blocks += cu_gemm_unit(g, w, i).block_count * S::RT;
    }
    return w;
}

/* Before a block is issued as the ring's n-th: where it is local, waits until no more than the
 * ring's flight are on their way. */
template <class S, class Ring> PTX_INLINE void cu_bound_flight(Ring &ring, int32_t n, bool local)
{
    const int32_t flight = n < S::W_SLOTS ? S::FIRST_FLIGHT : S::FLIGHT;
    if (local && n >= flight) {
        const int32_t before = n - flight;
        ptx_mbarrier_wait(&ring.w_full[before % S::W_SLOTS], (before / S::W_SLOTS) & 1);
    }
}

/* What a CTA has issued, and what its poller has seen, added to the counters. */
PTX_INLINE void cu_count_blocks(const cu_gemm &g, const cu_work &w, uint32_t local, uint32_t remote)
{
    if (g.traffic) {
        if (local) ptx_atomic_add_relaxed_u64(&g.traffic[0].blocks, local);
        if (remote) ptx_atomic_add_relaxed_u64(&g.traffic[w.tier].blocks, remote);
    }
}
PTX_INLINE void cu_count_trips(kn_cu_traffic *traffic, int32_t tier, uint32_t trips,
                               uint64_t clocks, uint32_t trip_min, uint32_t trip_max)
{
    if (!traffic || !trips) return;
    traffic += tier;
    ptx_atomic_add_relaxed_u64(&traffic->trips, trips);
    ptx_atomic_add_relaxed_u64(&traffic->trip_clocks, clocks);
    ptx_atomic_min_relaxed(&traffic->trip_min, trip_min);
    ptx_atomic_max_relaxed(&traffic->trip_max, trip_max);
}

/* The link in turn: a launch's readers begin when those of the launch before have issued their last
 * copy.  That one never waits for this one: all its CTAs run, for this one was launched, and what
 * it reads or waits for is older. */
PTX_INLINE void cu_link_enter(const cu_gemm &g, const cu_work &w)
{
    if (!w.in_turn) return;
    uint32_t *readers = g.traffic[w.tier].readers;
    ptx_atomic_add_relaxed(&readers[g.turn], 1);
    PTX_SPIN_UNTIL(ptx_load_relaxed(&readers[(g.turn + KN_CU_TURNS - 1) % KN_CU_TURNS]) == 0);
}

PTX_INLINE void cu_link_leave(const cu_gemm &g, const cu_work &w)
{
    if (w.in_turn) ptx_atomic_add_relaxed(&g.traffic[w.tier].readers[g.turn], ~0u);
}

/* The tier of a tile, or -1 beyond the last. */
PTX_INLINE int32_t cu_gemm_tile_tier(const cu_gemm &g, int32_t tile)
{
    int32_t tier = -1;
#pragma unroll
    for (int j = 0; j < KN_TIER_MAX; j++)
        if (tile >= g.tier[j].tile_begin && tile < g.tier[j].tile_end) tier = j;
    return tier;
}

#endif
