/*
 * gemm_work.cuh - what a launch of a GEMM needs, and who computes which part of it.
 *
 * A unit is a part of K of a group of row tiles, computed by one CTA, whichever tier it lies in.
 * How a remote tier is read, its window says:
 *
 * Roles: a few CTAs, as many as the window has CTAs, read all of the tier's units, before any
 * local ones, so that the link is busy from the start.  As few CTAs as leave all of them
 * equally many units; they share the window of all that might have read.  Where the link needs
 * longer for its units than HBM for the local ones, HBM can bear more bytes in flight, and twice as
 * many read.
 *
 * No roles, for a window of as many CTAs as the grid: every CTA reads its part, one unit for
 * most that have any.  Each has it at another place among its local units, so that at any time as
 * many read the tier as its share of the work.
 *
 * Local units are dealt so that all CTAs end together: the link takes window.cost times as long for
 * a block as HBM, so a reader's remote units cost it a known part of its time.  All CTAs of a
 * launch read the same control block, or they would disagree.
 *
 * Measured on an H200 over NVLink, the products of a Llama-3.1-8B step at 1 token, all-local time
 * over time: 16 x 4 blocks 1.010 with 4 % of the tiles remote, 1.034 with 6, 0.994 with 7, 0.924
 * with 8, 0.764 with 10; 32 x 4 1.018, 1.022, 0.981, 0.971, 0.794; no roles and 4 blocks 1.017,
 * 1.024, 1.002, 0.919, 0.783.  Tried and dropped: one CTA an SM for products with remote tiles
 * (0.94); windows passed with the launch in place of a load at its start (no difference).
 */
#ifndef DAKD_KERNELS_CUDA_GEMM_WORK_CUH
#define DAKD_KERNELS_CUDA_GEMM_WORK_CUH

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/ptx.cuh"

/* A tier's tiles, and the groups that are read as its own: those with at least one of its tiles,
 * for tier 0 those with no other. */
struct cu_gemm_tier {
    const uint8_t *base;
    int32_t tile_begin, tile_end;
    int32_t group_begin, group_count;
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
    bool norm_spread;     /* no CTA has two units */
    int32_t rows, tokens; /* N, T */
    kn_epilogue epilogue;
    const kn_cu_window *windows;
    kn_cu_traffic *traffic;
};

/* A kernel of one bucket and group height. */
struct cu_gemm_variant {
    int32_t bucket, group_tiles, threads, shared_bytes;
    int32_t resident; /* CTAs an SM holds */
    void (*kernel)(cu_gemm);
    void (*norm_kernel)(cu_gemm); /* with cu_gemm.norm; NULL: there is none */
};
/* Those of more than 32 tokens (wide_gemm.cu). */
const cu_gemm_variant *cu_wide_variants(size_t *count);

/* The units of one CTA, in its order: remote_at local ones, the remote ones (of at
 * most one tier), the other local ones. */
struct cu_work {
    int32_t tier, window; /* of the remote units; blocks in flight of this CTA */
    int32_t remote_at, remote_begin, remote_step, remote_count; /* units of that tier */
    int32_t local_begin, local_count;                           /* consecutive units of tier 0 */
    int32_t watched_blocks; /* its blocks up to the last remote one, absent tiles too */
};

/* Whether unit i of a CTA is read from its remote tier. */
PTX_INLINE bool cu_gemm_remote(const cu_work &w, int32_t i)
{
    return i >= w.remote_at && i < w.remote_at + w.remote_count;
}

/* Local units before CTA c, when the CTAs [first[j], first[j + 1]) of tier j have weight
 * share[j] and the rest share[0].  A CTA's end must be its neighbour's begin, so every rounding
 * is written down; the error is below half a unit up to a million of them.  (A 64-bit division
 * would take each CTA 0.1 us before its first copy.) */
PTX_INLINE int32_t cu_local_before(int32_t units, int32_t ctas,
                                   const int32_t (&first)[KN_TIER_MAX + 1],
                                   const int64_t (&share)[KN_TIER_MAX], int32_t c)
{
    int64_t before = share[0] * max(c - first[KN_TIER_MAX], 0);
    int64_t all = share[0] * (ctas - first[KN_TIER_MAX]);
#pragma unroll
    for (int j = 1; j < KN_TIER_MAX; j++) {
        before += share[j] * (min(max(c, first[j]), first[j + 1]) - first[j]);
        all += share[j] * (first[j + 1] - first[j]);
    }
    const float part =
        all > 0 ? __fdiv_rn((float)before, (float)all) : __fdiv_rn((float)c, (float)ctas);
    return __float2int_rn(__fmul_rn((float)units, part));
}

/* A unit as one CTA has it. */
struct cu_unit {
    int32_t group, part;
    int32_t block_begin, block_count; /* of K */
};

/* Unit i of a CTA. */
PTX_INLINE cu_unit cu_gemm_unit(const cu_gemm &g, const cu_work &w, int32_t i)
{
    const bool remote = cu_gemm_remote(w, i);
    const int32_t n = remote ? w.remote_begin + (i - w.remote_at) * w.remote_step
                             : w.local_begin + (i < w.remote_at ? i : i - w.remote_count);
    cu_unit u;
    u.part = n & ((1 << g.part_shift) - 1);
    u.group = g.tier[remote ? w.tier : 0].group_begin + (n >> g.part_shift);
    u.block_begin = u.part * g.part_blocks;
    u.block_count = max(min(g.part_blocks, g.blocks_per_tile - u.block_begin), 0);
    return u;
}

template <class S> PTX_INLINE cu_work cu_gemm_work(const cu_gemm &g)
{
    const int32_t ctas = gridDim.x, cta = blockIdx.x;
    const int32_t local = g.tier[0].group_count << g.part_shift;
    cu_work w = {};
    if (!g.windows) {
        w.local_begin = (int32_t)((int64_t)local * cta / ctas);
        w.local_count = (int32_t)((int64_t)local * (cta + 1) / ctas) - w.local_begin;
        return w;
    }
    /* Reading CTAs of the remote tiers, side by side, and what each tier's part costs one of
     * them in local blocks.  Every tier still to come keeps a CTA: there are as many as
     * units. */
    int32_t first[KN_TIER_MAX + 1] = {0, 0}, tiers_left = 0;
    float load[KN_TIER_MAX] = {};
#pragma unroll
    for (int j = 1; j < KN_TIER_MAX; j++) tiers_left += g.tier[j].group_count > 0;
#pragma unroll
    for (int j = 1; j < KN_TIER_MAX; j++) {
        const int32_t units = g.tier[j].group_count << g.part_shift;
        int32_t readers = 0;
        if (units > 0) {
            const kn_cu_window window = g.windows[j];
            const int32_t wider = window.cost * (float)units > (float)local ? 2 : 1;
            const int32_t wanted = min(max(window.ctas, 1) * wider, ctas);
            const int32_t blocks = min(max(window.blocks, 1), S::W_SLOTS * ctas);
            const bool roles = window.ctas < ctas;
            tiers_left--;
            readers = min(wanted, ctas - first[j] - tiers_left);
            const int32_t each = (units + readers - 1) / readers;
            readers = (units + each - 1) / each;
            /* The link's time for all of it; a reader takes at least what local units would. */
            load[j] = max(window.cost * (float)units / (float)ctas, (float)each) *
                      (float)(g.part_blocks * S::RT);
            const int32_t rank = cta - first[j];
            if (rank >= 0 && rank < readers) {
                w.tier = j;
                w.window =
                    min(roles ? (blocks * wanted + readers - 1) / readers : blocks, S::W_SLOTS);
                w.remote_at = roles ? 0 : rank; /* of `readers` places: see below */
                w.remote_begin = rank;
                w.remote_step = readers;
                w.remote_count = (units - rank + readers - 1) / readers;
            }
        }
        first[j + 1] = first[j] + readers;
    }
    /* Level all CTAs: those whose remote load is above the level get no local work. */
    int64_t share[KN_TIER_MAX] = {};
    bool over[KN_TIER_MAX] = {};
#pragma unroll
    for (int round = 1; round < KN_TIER_MAX; round++) {
        float sum = (float)(local * g.part_blocks * S::RT),
              count = (float)(ctas - first[KN_TIER_MAX]);
#pragma unroll
        for (int j = 1; j < KN_TIER_MAX; j++)
            if (!over[j]) {
                sum += load[j] * (float)(first[j + 1] - first[j]);
                count += (float)(first[j + 1] - first[j]);
            }
        const float level = count > 0.f ? sum / count : 0.f;
        share[0] = (int64_t)(level * 256.f);
#pragma unroll
        for (int j = 1; j < KN_TIER_MAX; j++) {
            over[j] |= load[j] >= level;
            share[j] = over[j] ? 0 : (int64_t)((level - load[j]) * 256.f);
        }
    }
    w.local_begin = cu_local_before(local, ctas, first, share, cta);
    w.local_count = cu_local_before(local, ctas, first, share, cta + 1) - w.local_begin;
    if (w.remote_count > 0) {
        w.remote_at = w.remote_at * (w.local_count + 1) / w.remote_step;
        for (int32_t i = 0; i < w.remote_at + w.remote_count; i++)
            w.watched_blocks += cu_gemm_unit(g, w, i).block_count * S::RT;
    }
    return w;
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
