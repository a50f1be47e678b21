/*
 * decode_gemm.cuh - out[T,N] = epilogue(x[T,K] . W[N,K]^T + bias) for steps of up to 256 tokens.
 *
 * Floor: N*K*2 bytes over the bandwidth of the tier they lie in.  An SM has 0.46 us for a 16 KB
 * block at 4.7 TB/s; its tensor cores need that long at about 200 tokens.  So up to 128 tokens
 * everything here serves one aim: keep every SM's ring of bulk copies full from the first
 * microsecond to the last.
 *
 * Roles.  Warpgroups of consumers, then three lanes of their own warps:
 *     weights      fills the ring of weight blocks.  Weights do not depend on the previous kernel,
 *                  so it starts before griddepcontrol.wait and never waits for it.
 *     activations  fills a second ring with the inputs of all tokens, after the wait.
 *     poller       watches remote blocks land: keeps the window and stamps round trips.
 *
 * Tiles.  Weights are the wgmma M operand (64 rows), tokens the N operand, so each weight byte is
 * read once.  A CTA multiplies a group of RT row tiles with the same activations: their traffic is
 * TB / (64 RT) of the weights', and an SM takes in about 45 GB/s from L2 against 36 GB/s of
 * weights.
 *
 * Quanta.  A group is cut along K into quanta of equal length.  Each quantum's partial sums go to a
 * workspace (it stays in L2).  When a CTA has computed all its quanta it comes back to each, waits
 * until all of its group's are there, and for its share of the group adds the partials in order of k
 * and runs the epilogue: so the reduction is spread over all SMs.  A group that is one quantum goes
 * from registers to the epilogue.
 *
 * Invariants
 *  1. The length of a quantum depends on shape and bucket alone, hence the result is bitwise the
 *     same whoever computes which quantum: for every placement, window and run.
 *  2. Every CTA computes all its quanta before it waits for another's, and all CTAs are resident
 *     together (the grid is at most what the SMs hold, and the next kernel cannot start before all
 *     of this one's have), so the wait ends.
 *  3. Remote quanta come first and are read by the first CTAs, tier after tier; the local ones are
 *     dealt so that a CTA with remote work gets less of them.
 *  4. At most window blocks of a remote tier are in flight per CTA: block n is issued when the
 *     poller has seen block n - window land.
 *  5. All CTAs of a launch read the same control block, or they would disagree on who does what.
 *  6. Arrival counters are zero before and after every launch.
 *
 * Sources: CUTLASS's stream-K and swapped operands, Marlin's striped quanta; PTX ISA 9.0.
 */
#ifndef DAKD_KERNELS_CUDA_DECODE_GEMM_CUH
#define DAKD_KERNELS_CUDA_DECODE_GEMM_CUH

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
    int32_t quantum_blocks, quanta_per_group;
    const uint8_t *x;
    float4 *partial;  /* [group][quantum][RT tiles][4 warps][TB/8][32 lanes] */
    uint32_t *arrive; /* [group] */
    const float *bias;
    void *out;
    int32_t rows, tokens; /* N, T */
    kn_epilogue epilogue;
    const kn_cu_window *windows;
    kn_cu_traffic *traffic;
};

/* Constants of a bucket and group height. */
template <int TOKENS, int TILES> struct cu_gemm_shape {
    static constexpr int TB = TOKENS, RT = TILES;
    static constexpr int WG = RT == 1 ? 1 : 2;        /* consumer warpgroups */
    static constexpr int TPW = RT / WG;               /* tiles of a warpgroup */
    static constexpr int WARPS = WG * 4;              /* consumer warps */
    static constexpr int THREADS = (WARPS + 3) * 32;
    /* With at most 32 accumulators a thread two CTAs share an SM: the next kernel fills its ring while
     * this one drains.  Above, one CTA takes it all. */
    static constexpr int RESIDENT = TPW * TB / 2 <= 32 ? 2 : 1;
    static constexpr int SHARED = RESIDENT == 2 ? 113 * 1024 : 227 * 1024;
    static constexpr int X_ATOMS = TB <= 64 ? 2 : 1; /* atoms of an activation slot */
    static constexpr int X_BYTES = TB * 128 * X_ATOMS;
    /* Activation slots for the blocks in flight, and one more; the rest is weights. */
    static constexpr int X_SLOTS =
        TB == 256 ? 4 : TB == 128 ? 5 : TB == 64 ? 3 : 6 / RT + 1;
    static constexpr int BARRIERS = 512;
    static constexpr int W_FIT = (SHARED - BARRIERS - X_SLOTS * X_BYTES) / KN_BLOCK_BYTES;
    /* A slot belongs to one warpgroup: one that skipped a phase of a barrier could not tell the next
     * from the last. */
    static constexpr int W_SLOTS = (W_FIT < 10 ? W_FIT : 10) / WG * WG;
    static constexpr int SHARED_USED = W_SLOTS * KN_BLOCK_BYTES + X_SLOTS * X_BYTES + BARRIERS;
    /* Warp fragments (16 rows x 8 tokens, one float4 a lane) of a group. */
    static constexpr int FRAGMENTS = RT * 4 * (TB / 8);
    static_assert(W_SLOTS >= RT, "a k-block of the group must fit");
};

template <class S> struct cu_gemm_ring {
    uint8_t weights[S::W_SLOTS][KN_BLOCK_BYTES];
    uint8_t x[S::X_SLOTS][S::X_BYTES];
    uint64_t w_full[S::W_SLOTS], w_empty[S::W_SLOTS];
    uint64_t x_full[S::X_SLOTS], x_empty[S::X_SLOTS];
    uint32_t issue_clock[S::W_SLOTS];
    uint32_t landed; /* remote blocks the poller has seen land */
};

/* --- who computes what --- */

/* The quanta of one CTA, in its order: remote ones (of at most one tier), then local ones. */
struct cu_work {
    int32_t tier, window;                              /* of the remote quanta */
    int32_t remote_begin, remote_step, remote_count;   /* quanta of that tier */
    int32_t local_begin, local_count;                  /* consecutive quanta of tier 0 */
    int32_t remote_blocks;                             /* blocks in the remote quanta, absent tiles too */
};

/* Local quanta before CTA c, when the CTAs [first[j], first[j + 1]) of tier j have weight share[j] and
 * the rest share[0].  In integers: a CTA's end must be its neighbour's begin. */
PTX_INLINE int32_t cu_local_before(int32_t quanta, int32_t grid, const int32_t (&first)[KN_TIER_MAX + 1],
                                   const int64_t (&share)[KN_TIER_MAX], int32_t c)
{
    int64_t before = share[0] * max(c - first[KN_TIER_MAX], 0);
    int64_t all = share[0] * (grid - first[KN_TIER_MAX]);
#pragma unroll
    for (int j = 1; j < KN_TIER_MAX; j++) {
        before += share[j] * (min(max(c, first[j]), first[j + 1]) - first[j]);
        all += share[j] * (first[j + 1] - first[j]);
    }
    return all > 0 ? (int32_t)((quanta * before + all / 2) / all) : (int32_t)((int64_t)quanta * c / grid);
}

template <class S> PTX_INLINE cu_work cu_gemm_work(const cu_gemm &g)
{
    const int32_t grid = gridDim.x, cta = blockIdx.x;
    cu_work w = {};
    const int32_t local = g.tier[0].group_count * g.quanta_per_group;
    if (!g.windows) {
        w.local_begin = (int32_t)((int64_t)local * cta / grid);
        w.local_count = (int32_t)((int64_t)local * (cta + 1) / grid) - w.local_begin;
        return w;
    }
    /* Readers of the remote tiers, side by side, and what each tier's part costs one of them. */
    int32_t first[KN_TIER_MAX + 1] = {0, 0};
    float load[KN_TIER_MAX] = {};
#pragma unroll
    for (int j = 1; j < KN_TIER_MAX; j++) {
        const int32_t quanta = g.tier[j].group_count * g.quanta_per_group;
        int32_t readers = 0;
        if (quanta > 0) {
            const kn_cu_window window = g.windows[j];
            const int32_t wanted = max(window.ctas, 1), in_flight = max(window.blocks, 1);
            readers = max(min(min(wanted, quanta), grid - first[j]), 1);
            const int32_t begin = min(first[j], grid - 1);
            load[j] = window.cost * (float)(quanta * g.quantum_blocks * S::RT) / (float)readers;
            if (cta >= begin && cta < begin + readers) {
                w.tier = j;
                /* Fewer readers than wanted share the window of all. */
                w.window = min(max(in_flight * wanted / readers, 1), S::W_SLOTS);
                w.remote_begin = cta - begin;
                w.remote_step = readers;
                w.remote_count = (quanta - w.remote_begin + readers - 1) / readers;
            }
        }
        first[j + 1] = min(first[j] + readers, grid);
    }
    for (int32_t i = 0; i < w.remote_count; i++) {
        const int32_t index = (w.remote_begin + i * w.remote_step) % g.quanta_per_group;
        w.remote_blocks +=
            min(g.quantum_blocks, g.blocks_per_tile - index * g.quantum_blocks) * S::RT;
    }
    /* Level all CTAs: those whose remote load is above the level get no local work. */
    int64_t share[KN_TIER_MAX] = {};
    bool over[KN_TIER_MAX] = {};
    const float local_blocks = (float)(local * g.quantum_blocks * S::RT);
#pragma unroll
    for (int round = 1; round < KN_TIER_MAX; round++) {
        float sum = local_blocks, ctas = (float)(grid - first[KN_TIER_MAX]);
#pragma unroll
        for (int j = 1; j < KN_TIER_MAX; j++)
            if (!over[j]) {
                sum += load[j] * (float)(first[j + 1] - first[j]);
                ctas += (float)(first[j + 1] - first[j]);
            }
        const float level = ctas > 0.f ? sum / ctas : 0.f;
        share[0] = (int64_t)(level * 256.f);
#pragma unroll
        for (int j = 1; j < KN_TIER_MAX; j++) {
            over[j] |= load[j] >= level;
            share[j] = over[j] ? 0 : (int64_t)((level - load[j]) * 256.f);
        }
    }
    w.local_begin = cu_local_before(local, grid, first, share, cta);
    w.local_count = cu_local_before(local, grid, first, share, cta + 1) - w.local_begin;
    return w;
}

struct cu_quantum {
    int32_t group, index, block_begin, block_count;
    bool remote;
};

PTX_INLINE cu_quantum cu_gemm_quantum(const cu_gemm &g, const cu_work &w, int32_t i)
{
    cu_quantum q;
    q.remote = i < w.remote_count;
    const int32_t id = q.remote ? w.remote_begin + i * w.remote_step : w.local_begin + i - w.remote_count;
    const int32_t group = id / g.quanta_per_group;
    q.group = group + g.tier[q.remote ? w.tier : 0].group_begin;
    q.index = id - group * g.quanta_per_group;
    q.block_begin = q.index * g.quantum_blocks;
    q.block_count = min(g.quantum_blocks, g.blocks_per_tile - q.block_begin);
    return q;
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

/* --- producers --- */

template <class S> PTX_INLINE void cu_produce_weights(const cu_gemm &g, const cu_work &w, cu_gemm_ring<S> &ring)
{
    const uint64_t once = ptx_policy_evict_first();
    uint32_t local_issued = 0, remote_issued = 0;
    int32_t n = 0;
    for (int32_t i = 0; i < w.remote_count + w.local_count; i++) {
        const cu_quantum q = cu_gemm_quantum(g, w, i);
        const uint8_t *from[S::RT];
        bool remote[S::RT];
#pragma unroll
        for (int t = 0; t < S::RT; t++) {
            const int32_t tile = q.group * S::RT + t, tier = cu_gemm_tile_tier(g, tile);
            const int32_t block = (tile - g.tier[max(tier, 0)].tile_begin) * g.blocks_per_tile + q.block_begin;
            from[t] = tier < 0 ? nullptr : g.tier[tier].base + (size_t)block * KN_BLOCK_BYTES;
            remote[t] = tier > 0;
        }
        const int32_t reach = q.remote ? w.window : S::W_SLOTS;
        for (int32_t b = 0; b < q.block_count; b++) {
#pragma unroll
            for (int t = 0; t < S::RT; t++, n++) {
                const int32_t slot = n % S::W_SLOTS;
                if (n >= S::W_SLOTS) ptx_mbarrier_wait(&ring.w_empty[slot], (n / S::W_SLOTS - 1) & 1);
                const int32_t landed = min(n - reach + 1, w.remote_blocks);
                if (landed > 0)
                    PTX_SPIN_UNTIL((int32_t)ptx_load_acquire_shared(&ring.landed) >= landed);
                if (!from[t]) { /* beyond the last tile: what it multiplies is never stored */
                    ptx_mbarrier_arrive(&ring.w_full[slot]);
                    continue;
                }
                if (remote[t]) ring.issue_clock[slot] = ptx_clock();
                ptx_mbarrier_expect_tx(&ring.w_full[slot], KN_BLOCK_BYTES);
                ptx_bulk_load_hint(ring.weights[slot], from[t], KN_BLOCK_BYTES, &ring.w_full[slot], once);
                from[t] += KN_BLOCK_BYTES;
                remote_issued += remote[t];
                local_issued += !remote[t];
            }
        }
    }
    if (g.traffic) {
        if (local_issued) ptx_atomic_add_relaxed_u64(&g.traffic[0].blocks, local_issued);
        if (remote_issued) ptx_atomic_add_relaxed_u64(&g.traffic[w.tier].blocks, remote_issued);
    }
}

template <class S>
PTX_INLINE void cu_produce_activations(const cu_gemm &g, const cu_work &w, cu_gemm_ring<S> &ring)
{
    constexpr int SLOTS_PER_BLOCK = 2 / S::X_ATOMS;
    const uint64_t often = ptx_policy_evict_last();
    ptx_griddep_wait();
    int32_t n = 0;
    for (int32_t i = 0; i < w.remote_count + w.local_count; i++) {
        const cu_quantum q = cu_gemm_quantum(g, w, i);
        const uint8_t *from = g.x + (size_t)q.block_begin * S::TB * 256;
        for (int32_t b = 0; b < q.block_count * SLOTS_PER_BLOCK; b++, n++, from += S::X_BYTES) {
            const int32_t slot = n % S::X_SLOTS;
            if (n >= S::X_SLOTS) ptx_mbarrier_wait(&ring.x_empty[slot], (n / S::X_SLOTS - 1) & 1);
            ptx_mbarrier_expect_tx(&ring.x_full[slot], S::X_BYTES);
            ptx_bulk_load_hint(ring.x[slot], from, S::X_BYTES, &ring.x_full[slot], often);
        }
    }
}

/* Sees each remote block land, in order, and says so to the weight producer. */
template <class S> PTX_INLINE void cu_poll_remote(const cu_gemm &g, const cu_work &w, cu_gemm_ring<S> &ring)
{
    uint32_t trips = 0, trip_min = UINT32_MAX, trip_max = 0;
    uint64_t clocks = 0;
    int32_t n = 0;
    for (int32_t i = 0; i < w.remote_count; i++) {
        const cu_quantum q = cu_gemm_quantum(g, w, i);
        for (int32_t b = 0; b < q.block_count; b++)
            for (int t = 0; t < S::RT; t++, n++) {
                const int32_t slot = n % S::W_SLOTS;
                PTX_SPIN_UNTIL(ptx_mbarrier_test_wait(&ring.w_full[slot], (n / S::W_SLOTS) & 1));
                const uint32_t now = ptx_clock();
                if (cu_gemm_tile_tier(g, q.group * S::RT + t) > 0) {
                    const uint32_t trip = now - *(volatile uint32_t *)&ring.issue_clock[slot];
                    trips++;
                    clocks += trip;
                    trip_min = min(trip_min, trip);
                    trip_max = max(trip_max, trip);
                }
                ptx_store_release_shared(&ring.landed, n + 1);
            }
    }
    if (!g.traffic || !trips) return;
    kn_cu_traffic *traffic = &g.traffic[w.tier];
    ptx_atomic_add_relaxed_u64(&traffic->trips, trips);
    ptx_atomic_add_relaxed_u64(&traffic->trip_clocks, clocks);
    ptx_atomic_min_relaxed(&traffic->trip_min, trip_min);
    ptx_atomic_max_relaxed(&traffic->trip_max, trip_max);
}

/* --- consumers --- */

/* A warp fragment of the finished product: rows r and r + 8, tokens t and t + 1. */
PTX_INLINE void cu_store_act(const cu_gemm &g, int tb, int t, int i, int stride, int limit, float v)
{
    uint8_t *out = (uint8_t *)g.out;
    if (t >= g.tokens) return;
    *(__nv_bfloat16 *)(out + kn_cu_act_offset(tb, t, i)) = __float2bfloat16(v);
    /* The last tile also clears what the next GEMM's last block reads beyond the columns. */
    for (int k = i + stride; k < limit; k += stride)
        *(__nv_bfloat16 *)(out + kn_cu_act_offset(tb, t, k)) = __float2bfloat16(0.f);
}

template <int TB> PTX_INLINE void cu_gemm_store(const cu_gemm &g, int tile, int warp, int n, int lane, float4 v)
{
    const int r0 = tile * 64 + warp * 16 + (lane >> 2), r1 = r0 + 8, t = n * 8 + (lane & 3) * 2;
    const float b0 = g.bias && r0 < g.rows ? g.bias[r0] : 0.f, b1 = g.bias && r1 < g.rows ? g.bias[r1] : 0.f;
    const float r0t[2] = {v.x + b0, v.y + b0}, r1t[2] = {v.z + b1, v.w + b1};
    const bool last = tile == g.tile_count - 1;
    if (tile >= g.tile_count) return;
    if (g.epilogue == KN_EPI_SWIGLU) {
        /* r0 is a gate row, r1 its up row (kn_glu_row). */
        const int i = tile * 32 + warp * 8 + (lane >> 2), limit = last ? (g.tile_count * 32 + 127) & ~127 : 0;
#pragma unroll
        for (int j = 0; j < 2; j++)
            cu_store_act(g, TB, t + j, i, 32, limit, r0t[j] / (1.f + __expf(-r0t[j])) * r1t[j]);
    } else if (g.epilogue == KN_EPI_RELU) {
        const int limit = last ? (g.tile_count * 64 + 127) & ~127 : 0;
#pragma unroll
        for (int j = 0; j < 2; j++) {
            cu_store_act(g, TB, t + j, r0, 64, limit, fmaxf(r0t[j], 0.f));
            cu_store_act(g, TB, t + j, r1, 64, limit, fmaxf(r1t[j], 0.f));
        }
    } else {
        const bool add = g.epilogue == KN_EPI_ADD;
#pragma unroll
        for (int j = 0; j < 2; j++) {
            if (t + j >= g.tokens) continue;
            float *out = (float *)g.out + (size_t)(t + j) * g.rows;
            if (r0 < g.rows) out[r0] = add ? out[r0] + r0t[j] : r0t[j];
            if (r1 < g.rows) out[r1] = add ? out[r1] + r1t[j] : r1t[j];
        }
    }
}

/* Sums of one quantum for the tiles of a warpgroup; n and m count the slots used so far. */
template <class S>
PTX_INLINE void cu_multiply(float (&acc)[S::TPW][S::TB / 2], cu_gemm_ring<S> &ring, int32_t blocks, int32_t n,
                            int32_t m, int wg, int lane)
{
    constexpr int X_PER_BLOCK = 2 / S::X_ATOMS;
    for (int32_t b = 0; b < blocks; b++, n += S::RT, m += X_PER_BLOCK) {
        int32_t w_slot[S::TPW], x_slot[X_PER_BLOCK];
#pragma unroll
        for (int i = 0; i < X_PER_BLOCK; i++) {
            x_slot[i] = (m + i) % S::X_SLOTS;
            ptx_mbarrier_wait(&ring.x_full[x_slot[i]], ((m + i) / S::X_SLOTS) & 1);
        }
#pragma unroll
        for (int j = 0; j < S::TPW; j++) {
            const int32_t tile = n + wg + j * S::WG;
            w_slot[j] = tile % S::W_SLOTS;
            ptx_mbarrier_wait(&ring.w_full[w_slot[j]], (tile / S::W_SLOTS) & 1);
        }
        ptx_wgmma_fence();
#pragma unroll
        for (int j = 0; j < S::TPW; j++)
#pragma unroll
            for (int atom = 0; atom < 2; atom++) {
                const uint8_t *x = ring.x[x_slot[atom % X_PER_BLOCK]] + atom % S::X_ATOMS * S::TB * 128;
                const uint64_t xd = ptx_wgmma_descriptor(ptx_shared(x));
                const uint64_t wd = ptx_wgmma_descriptor(ptx_shared(ring.weights[w_slot[j]] + atom * KN_ATOM_BYTES));
#pragma unroll
                for (int k = 0; k < 4; k++)
                    ptx_wgmma<S::TB>(acc[j], wd + 2 * k, xd + 2 * k, b + atom + k > 0);
            }
        ptx_wgmma_commit();
        ptx_wgmma_wait<0>();
        if (lane == 0) {
#pragma unroll
            for (int j = 0; j < S::TPW; j++) ptx_mbarrier_arrive(&ring.w_empty[w_slot[j]]);
#pragma unroll
            for (int i = 0; i < X_PER_BLOCK; i++) ptx_mbarrier_arrive(&ring.x_empty[x_slot[i]]);
        }
    }
}

/* A warpgroup's partial sums of one quantum, to the workspace. */
template <class S>
PTX_INLINE void cu_hand_in(const cu_gemm &g, const float (&acc)[S::TPW][S::TB / 2], const cu_quantum &q, int wg,
                           int warp, int lane)
{
    float4 *mine = g.partial + ((size_t)q.group * g.quanta_per_group + q.index) * S::FRAGMENTS * 32;
#pragma unroll
    for (int j = 0; j < S::TPW; j++)
#pragma unroll
        for (int n = 0; n < S::TB / 8; n++)
            __stcg(mine + (((wg + j * S::WG) * 4 + warp) * (S::TB / 8) + n) * 32 + lane,
                   make_float4(acc[j][4 * n], acc[j][4 * n + 1], acc[j][4 * n + 2], acc[j][4 * n + 3]));
}

/* The share that quanta [begin, end) of a group have in its reduction. */
template <class S>
PTX_INLINE void cu_reduce(const cu_gemm &g, int32_t group, int32_t begin, int32_t end, int warp, int lane)
{
    const int32_t quanta = g.quanta_per_group, stop = end * S::FRAGMENTS / quanta;
    const float4 *from = g.partial + (size_t)group * quanta * S::FRAGMENTS * 32 + lane;
    for (int32_t f = begin * S::FRAGMENTS / quanta + warp; f < stop; f += S::WARPS) {
        float4 sum = __ldcg(from + f * 32);
#pragma unroll 8
        for (int32_t i = 1; i < quanta; i++) {
            const float4 v = __ldcg(from + ((size_t)i * S::FRAGMENTS + f) * 32);
            sum = make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
        }
        constexpr int N = S::TB / 8;
        cu_gemm_store<S::TB>(g, group * S::RT + f / (4 * N), f / N % 4, f % N, lane, sum);
    }
}

/* After all its quanta a warp says so for all at once, one lane a quantum, waits for everybody
 * else's, and does its share of the reductions.  A counter goes from 0 to `all` as quanta arrive and
 * on to twice that as warps stop watching it; the last of these clears it. */
template <class S>
PTX_INLINE void cu_reduce_all(const cu_gemm &g, const cu_work &w, int warp, int lane)
{
    const int32_t count = w.remote_count + w.local_count;
    const uint32_t all = (uint32_t)(g.quanta_per_group * S::WARPS);
    __syncwarp();
    __threadfence();
    for (int32_t i = lane; i < count; i += 32)
        ptx_atomic_add_relaxed(&g.arrive[cu_gemm_quantum(g, w, i).group], 1);
    for (int32_t i = lane; i < count; i += 32) {
        uint32_t *arrive = &g.arrive[cu_gemm_quantum(g, w, i).group];
        PTX_SPIN_UNTIL(ptx_load_acquire(arrive) >= all);
        if (ptx_atomic_add_relaxed(arrive, 1) == 2 * all - 1) *arrive = 0;
    }
    __syncwarp();
    /* Quanta that follow one another in a group are reduced together. */
    for (int32_t i = 0; i < count;) {
        const cu_quantum q = cu_gemm_quantum(g, w, i);
        int32_t end = q.index + 1;
        for (i++; i < count; i++, end++) {
            const cu_quantum next = cu_gemm_quantum(g, w, i);
            if (next.group != q.group || next.index != end) break;
        }
        cu_reduce<S>(g, q.group, q.index, end, warp, lane);
    }
}

template <class S>
PTX_INLINE void cu_consume(const cu_gemm &g, const cu_work &w, cu_gemm_ring<S> &ring, int warp, int lane)
{
    /* The epilogue touches what the previous kernel wrote and read, so every consumer waits. */
    ptx_griddep_wait();
    const int wg = warp >> 2;
    const int32_t quanta = w.remote_count + w.local_count;
    int32_t n = 0, m = 0;
    for (int32_t i = 0; i < quanta; i++) {
        const cu_quantum q = cu_gemm_quantum(g, w, i);
        float acc[S::TPW][S::TB / 2];
        cu_multiply<S>(acc, ring, q.block_count, n, m, wg, lane);
        n += q.block_count * S::RT;
        m += q.block_count * (2 / S::X_ATOMS);
        if (g.quanta_per_group > 1) {
            cu_hand_in<S>(g, acc, q, wg, warp & 3, lane);
            continue;
        }
#pragma unroll
        for (int j = 0; j < S::TPW; j++)
#pragma unroll
            for (int c = 0; c < S::TB / 8; c++)
                cu_gemm_store<S::TB>(
                    g, q.group * S::RT + wg + j * S::WG, warp & 3, c, lane,
                    make_float4(acc[j][4 * c], acc[j][4 * c + 1], acc[j][4 * c + 2], acc[j][4 * c + 3]));
    }
    if (g.quanta_per_group > 1) cu_reduce_all<S>(g, w, warp, lane);
}

template <int TB, int RT>
__global__ void __launch_bounds__(cu_gemm_shape<TB, RT>::THREADS, cu_gemm_shape<TB, RT>::RESIDENT)
    sm90_bf16_decode_gemm(const __grid_constant__ cu_gemm g)
{
    using S = cu_gemm_shape<TB, RT>;
    extern __shared__ __align__(1024) uint8_t shared[];
    cu_gemm_ring<S> &ring = *(cu_gemm_ring<S> *)shared;
    static_assert(sizeof(cu_gemm_ring<S>) <= S::SHARED_USED, "the ring outgrew its shared memory");
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x >> 5, 0), lane = threadIdx.x & 31;
    ptx_griddep_launch();
    if (threadIdx.x == 0) {
        if (ptx_shared(shared) & 1023) __trap(); /* the swizzle counts from 1 KB boundaries */
        for (int s = 0; s < S::W_SLOTS; s++) {
            ptx_mbarrier_init(&ring.w_full[s], 1);
            ptx_mbarrier_init(&ring.w_empty[s], 4);
        }
        for (int s = 0; s < S::X_SLOTS; s++) {
            ptx_mbarrier_init(&ring.x_full[s], 1);
            ptx_mbarrier_init(&ring.x_empty[s], S::WARPS);
        }
        ring.landed = 0;
        ptx_fence_mbarrier_init();
    }
    __syncthreads();
    const cu_work w = cu_gemm_work<S>(g);
    if (warp < S::WARPS) {
        cu_consume<S>(g, w, ring, warp, lane);
    } else if (lane == 0) {
        if (warp == S::WARPS) cu_produce_weights<S>(g, w, ring);
        if (warp == S::WARPS + 1) cu_produce_activations<S>(g, w, ring);
        if (warp == S::WARPS + 2) cu_poll_remote<S>(g, w, ring);
    }
}

#endif
