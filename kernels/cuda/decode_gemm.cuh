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
 * Clusters.  A group of row tiles is one unit of work, done by one cluster of 1 to 8 CTAs that cut
 * K among them.  They exchange partial sums through each other's shared memory: every CTA owns an
 * equal part of the group's fragments, adds the partials in order of k and runs the epilogue.  A
 * partial sum that goes through L2 instead costs 5 us at the end of every kernel (fence, arrival,
 * wait and load, each a round trip of a memory system that the next kernel's ring is filling).  The
 * exchange of one unit is finished after the products of the next, so its latency is hidden.
 *
 * Invariants
 *  1. How K is cut depends on shape and bucket alone, hence the result is bitwise the same
 * whichever cluster computes which unit: for every placement, window and run.
 *  2. Clusters never wait for one another.
 *  3. Remote units come first and are read by the first clusters, tier after tier; the local ones
 * are dealt so that a cluster with remote work gets less of them.
 *  4. At most window blocks of a remote tier are in flight per CTA: block n is issued when the
 *     poller has seen block n - window land.
 *  5. All CTAs of a launch read the same control block, or they would disagree on who does what.
 *  6. A ring slot belongs to one warpgroup: one that skipped a phase of a barrier could not tell
 * the next from the last.
 *
 * Measured on an H200, the 129 GEMMs of a Llama-3.1-8B step in one graph, floor 3.27 ms (predicted
 * 0.93 of it at up to 8 tokens, 0.90 at 32): 0.86 at 1 and 8 tokens, 0.85 at 16, 0.71 at 32 and 64.
 * Weights of 16,384 rows and more run at 0.95 of the floor at up to 16 tokens; what is lost is lost
 * where K is cut, 4 to 5 us a kernel: launch, first activations, exchange and residual follow one
 * another while a ring of 96 KB, all of it in flight, hides 2.7 us.  From 64 tokens on the SM's
 * intake from L2 binds (activations are half of the weights there, twice them at 256), and the
 * answer would be to multicast activations within a cluster of row groups. Tried and dropped:
 * partial sums through a workspace in L2 with the last arriver reducing (6 to 10 us a kernel: each
 * fence, arrival and load is a round trip of a saturated memory system); remote stores released by
 * a fence (waits for the epilogue's global stores); the poller as a second lane of the activation
 * warp (starved by its try_wait: round trips read 20 us instead of 5).
 *
 * Sources: CUTLASS (swapped operands, split K), Marlin (fixed-order reduction); PTX ISA 9.0.
 */
#ifndef DAKD_KERNELS_CUDA_DECODE_GEMM_CUH
#define DAKD_KERNELS_CUDA_DECODE_GEMM_CUH

#include "kernels/cuda/gemm_epilogue.cuh"
#include "kernels/cuda/gemm_work.cuh"
#include "kernels/cuda/trace.h"

/* Constants of a bucket and group height. */
template <int TOKENS, int TILES> struct cu_gemm_shape {
    static constexpr int TB = TOKENS, RT = TILES;
    static constexpr int WG = TB <= 16 || RT == 1 ? 1 : 2; /* consumer warpgroups */
    static constexpr int TPW = RT / WG;                    /* tiles of a warpgroup */
    static constexpr int WARPS = WG * 4;                   /* consumer warps */
    static constexpr int THREADS = (WARPS + 3) * 32;
    /* Up to 32 tokens two CTAs share an SM: the next kernel fills its ring while this one drains.
     * Above, one CTA takes it all. */
    static constexpr int RESIDENT = TB <= 32 ? 2 : 1;
    static constexpr int SHARED = RESIDENT == 2 ? 113 * 1024 : 227 * 1024;
    static constexpr int X_ATOMS = TB <= 64 ? 2 : 1; /* atoms of an activation slot */
    static constexpr int X_BYTES = TB * 128 * X_ATOMS;
    /* The exchange holds the partial sums of a piece of the group from all ranks: warp fragments of
     * 16 rows x 8 tokens, one float4 a lane. */
    static constexpr int PIECES = TB == 256 ? 8 : RT * TB > 256 ? 4 : TB == 32 ? 2 : 1;
    static constexpr int PIECE_N = TB / 8 / PIECES; /* fragments of a warp, tile and piece */
    static constexpr int FRAGMENTS = RT * 4 * PIECE_N;
    static constexpr int EXCHANGE_BYTES = FRAGMENTS * 512;
    /* Activation slots for the blocks in flight, and one more; the rest is weights. */
    static constexpr int X_SLOTS = TB >= 64 ? 4 : TB == 32 ? 3 : 6 / RT + 1;
    static constexpr int BARRIERS = 512;
    static constexpr int W_FIT =
        (SHARED - BARRIERS - X_SLOTS * X_BYTES - EXCHANGE_BYTES) / KN_BLOCK_BYTES;
    /* A slot belongs to one warpgroup (invariant 6). */
    static constexpr int W_SLOTS = (W_FIT < 10 ? W_FIT : 10) / WG * WG;
    static constexpr int SHARED_USED =
        W_SLOTS * KN_BLOCK_BYTES + X_SLOTS * X_BYTES + EXCHANGE_BYTES + BARRIERS;
    static_assert(W_SLOTS >= RT, "a k-block of the group must fit");
};

template <class S> struct cu_gemm_ring {
    uint8_t weights[S::W_SLOTS][KN_BLOCK_BYTES];
    uint8_t x[S::X_SLOTS][S::X_BYTES];
    float4 exchange[S::FRAGMENTS][32]; /* [owned fragment][source rank] */
    uint64_t exchange_full, exchange_empty;
    uint64_t w_full[S::W_SLOTS], w_empty[S::W_SLOTS];
    uint64_t x_full[S::X_SLOTS], x_empty[S::X_SLOTS];
    uint32_t issue_clock[S::W_SLOTS];
    uint32_t landed; /* remote blocks the poller has seen land */
};

/* --- producers --- */

template <class S>
PTX_INLINE void cu_produce_weights(const cu_gemm &g, const cu_work &w, cu_gemm_ring<S> &ring)
{
    const uint64_t once = ptx_policy_evict_first();
    uint32_t local_issued = 0, remote_issued = 0;
    int32_t n = 0;
    for (int32_t i = 0; i < w.remote_count + w.local_count; i++) {
        const int32_t group = cu_gemm_group(g, w, i);
        const uint8_t *from[S::RT];
        bool remote[S::RT];
#pragma unroll
        for (int t = 0; t < S::RT; t++) {
            const int32_t tile = group * S::RT + t, tier = cu_gemm_tile_tier(g, tile);
            const int32_t block =
                (tile - g.tier[max(tier, 0)].tile_begin) * g.blocks_per_tile + w.block_begin;
            from[t] = tier < 0 ? nullptr : g.tier[tier].base + (size_t)block * KN_BLOCK_BYTES;
            remote[t] = tier > 0;
        }
        const int32_t reach = i < w.remote_count ? w.window : S::W_SLOTS;
        for (int32_t b = 0; b < w.block_count; b++) {
#pragma unroll
            for (int t = 0; t < S::RT; t++, n++) {
                const int32_t slot = n % S::W_SLOTS;
                if (n >= S::W_SLOTS)
                    ptx_mbarrier_wait(&ring.w_empty[slot], (n / S::W_SLOTS - 1) & 1);
                const int32_t landed = min(n - reach + 1, w.remote_blocks);
                if (landed > 0)
                    PTX_SPIN_UNTIL((int32_t)ptx_load_acquire_shared(&ring.landed) >= landed);
                if (!from[t]) { /* beyond the last tile: what it multiplies is never stored */
                    ptx_mbarrier_arrive(&ring.w_full[slot]);
                    continue;
                }
                if (remote[t]) ring.issue_clock[slot] = ptx_clock();
                ptx_mbarrier_expect_tx(&ring.w_full[slot], KN_BLOCK_BYTES);
                ptx_bulk_load_hint(ring.weights[slot], from[t], KN_BLOCK_BYTES, &ring.w_full[slot],
                                   once);
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
        const uint8_t *from = g.x + (size_t)w.block_begin * S::TB * 256;
        for (int32_t b = 0; b < w.block_count * SLOTS_PER_BLOCK; b++, n++, from += S::X_BYTES) {
            const int32_t slot = n % S::X_SLOTS;
            if (n >= S::X_SLOTS) ptx_mbarrier_wait(&ring.x_empty[slot], (n / S::X_SLOTS - 1) & 1);
            ptx_mbarrier_expect_tx(&ring.x_full[slot], S::X_BYTES);
            ptx_bulk_load_hint(ring.x[slot], from, S::X_BYTES, &ring.x_full[slot], often);
        }
    }
}

/* Sees each remote block land, in order, and says so to the weight producer. */
template <class S>
PTX_INLINE void cu_poll_remote(const cu_gemm &g, const cu_work &w, cu_gemm_ring<S> &ring)
{
    uint32_t trips = 0, trip_min = UINT32_MAX, trip_max = 0;
    uint64_t clocks = 0;
    int32_t n = 0;
    for (int32_t i = 0; i < w.remote_count; i++) {
        const int32_t group = cu_gemm_group(g, w, i);
        for (int32_t b = 0; b < w.block_count; b++)
            for (int t = 0; t < S::RT; t++, n++) {
                const int32_t slot = n % S::W_SLOTS;
                PTX_SPIN_UNTIL(ptx_mbarrier_test_wait(&ring.w_full[slot], (n / S::W_SLOTS) & 1));
                const uint32_t now = ptx_clock();
                if (cu_gemm_tile_tier(g, group * S::RT + t) > 0) {
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

/* Sums of one unit for the tiles of a warpgroup; n and m count the slots used so far. */
template <class S>
PTX_INLINE void cu_multiply(float (&acc)[S::TPW][S::TB / 2], cu_gemm_ring<S> &ring, int32_t blocks,
                            int32_t n, int32_t m, int wg, int lane)
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
                const uint8_t *x =
                    ring.x[x_slot[atom % X_PER_BLOCK]] + atom % S::X_ATOMS * S::TB * 128;
                const uint64_t xd = ptx_wgmma_descriptor(ptx_shared(x));
                const uint64_t wd = ptx_wgmma_descriptor(
                    ptx_shared(ring.weights[w_slot[j]] + atom * KN_ATOM_BYTES));
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

/* A warpgroup's partial sums of one piece, to the CTAs that own its fragments; e counts pieces. */
template <class S>
PTX_INLINE void cu_exchange_write(const cu_gemm &g, const float (&acc)[S::TPW][S::TB / 2],
                                  cu_gemm_ring<S> &ring, int piece, int32_t e, int32_t rank, int wg,
                                  int warp, int lane)
{
    const int32_t owned = S::FRAGMENTS / g.cluster;
    if (e > 0) PTX_SPIN_UNTIL(ptx_cluster_mbarrier_try_wait(&ring.exchange_empty, (e - 1) & 1));
#pragma unroll
    for (int j = 0; j < S::TPW; j++)
#pragma unroll
        for (int n = 0; n < S::PIECE_N; n++) {
            const int32_t f = ((wg + j * S::WG) * 4 + warp) * S::PIECE_N + n, owner = f / owned;
            const float *d = &acc[j][4 * (piece * S::PIECE_N + n)];
            ptx_store_async(
                ptx_mapa(ptx_shared(&ring.exchange[(f - owner * owned) * g.cluster + rank][lane]),
                         owner),
                make_float4(d[0], d[1], d[2], d[3]),
                ptx_mapa(ptx_shared(&ring.exchange_full), owner));
        }
}

/* Adds up the fragments this CTA owns of a piece, in order of k, and stores them.  The buffer is
 * free again before the stores: a release after them would wait until they reach L2. */
template <class S>
PTX_INLINE void cu_exchange_reduce(const cu_gemm &g, cu_gemm_ring<S> &ring, int32_t group,
                                   int piece, int32_t e, int32_t rank, int warp, int lane)
{
    constexpr int OWNED_MAX = (S::FRAGMENTS / 2 + S::WARPS - 1) / S::WARPS; /* of a warp */
    const int32_t owned = S::FRAGMENTS / g.cluster;
    const int32_t live = (g.blocks_per_tile + g.rank_blocks - 1) / g.rank_blocks;
    if (warp == 0 && lane == 0) ptx_mbarrier_expect_tx(&ring.exchange_full, owned * live * 512);
    /* The residual is asked for before the wait, where there are registers to hold it. */
    constexpr bool EARLY = OWNED_MAX <= 2;
    float4 sum[OWNED_MAX], old[OWNED_MAX];
#pragma unroll
    for (int k = 0; EARLY && k < OWNED_MAX; k++) {
        const int32_t i = warp + k * S::WARPS, f = rank * owned + i;
        if (i < owned)
            old[k] = cu_gemm_old(g, group * S::RT + f / (4 * S::PIECE_N), f / S::PIECE_N % 4,
                                 piece * S::PIECE_N + f % S::PIECE_N, lane);
    }
    PTX_SPIN_UNTIL(ptx_cluster_mbarrier_try_wait(&ring.exchange_full, e & 1));
#pragma unroll
    for (int k = 0; k < OWNED_MAX; k++) {
        const int32_t i = warp + k * S::WARPS;
        if (i >= owned) break;
        sum[k] = ring.exchange[i * g.cluster][lane];
        for (int32_t r = 1; r < live; r++) {
            const float4 v = ring.exchange[i * g.cluster + r][lane];
            sum[k] = make_float4(sum[k].x + v.x, sum[k].y + v.y, sum[k].z + v.z, sum[k].w + v.w);
        }
    }
    __syncwarp();
    if (lane < g.cluster)
        ptx_cluster_mbarrier_arrive(ptx_mapa(ptx_shared(&ring.exchange_empty), lane));
#pragma unroll
    for (int k = 0; k < OWNED_MAX; k++) {
        const int32_t i = warp + k * S::WARPS, f = rank * owned + i, tile = f / (4 * S::PIECE_N);
        if (i >= owned) break;
        const int q = f / S::PIECE_N % 4, n = piece * S::PIECE_N + f % S::PIECE_N;
        if (!EARLY) old[k] = cu_gemm_old(g, group * S::RT + tile, q, n, lane);
        cu_gemm_store<S::TB>(g, group * S::RT + tile, q, n, lane, sum[k], old[k]);
    }
}

template <class S>
PTX_INLINE void cu_consume(const cu_gemm &g, const cu_work &w, cu_gemm_ring<S> &ring, int warp,
                           int lane)
{
    /* The epilogue touches what the previous kernel wrote and read, so every consumer waits. */
    ptx_griddep_wait();
    if (g.cluster > 1) ptx_cluster_wait(); /* the peers' barriers are there */
    const int wg = warp >> 2;
    const int32_t units = w.remote_count + w.local_count, rank = blockIdx.x % g.cluster;
    int32_t n = 0, m = 0, e = 0;
    for (int32_t i = 0; i < units; i++) {
        const int32_t group = cu_gemm_group(g, w, i);
        float acc[S::TPW][S::TB / 2];
        cu_multiply<S>(acc, ring, w.block_count, n, m, wg, lane);
        n += w.block_count * S::RT;
        m += w.block_count * (2 / S::X_ATOMS);
        if (g.cluster == 1) {
#pragma unroll
            for (int j = 0; j < S::TPW; j++)
#pragma unroll
                for (int c = 0; c < S::TB / 8; c++)
                    cu_gemm_store<S::TB>(
                        g, group * S::RT + wg + j * S::WG, warp & 3, c, lane,
                        make_float4(acc[j][4 * c], acc[j][4 * c + 1], acc[j][4 * c + 2],
                                    acc[j][4 * c + 3]),
                        cu_gemm_old(g, group * S::RT + wg + j * S::WG, warp & 3, c, lane));
            continue;
        }
#pragma unroll
        for (int p = 0; p < S::PIECES; p++, e++) {
            /* The piece before this one: of this unit, or the last of the unit before. */
            if (e > 0)
                cu_exchange_reduce<S>(g, ring, p > 0 ? group : cu_gemm_group(g, w, i - 1),
                                      (p + S::PIECES - 1) % S::PIECES, e - 1, rank, warp, lane);
            if (w.block_count > 0)
                cu_exchange_write<S>(g, acc, ring, p, e, rank, wg, warp & 3, lane);
        }
    }
    if (e > 0)
        cu_exchange_reduce<S>(g, ring, cu_gemm_group(g, w, units - 1), S::PIECES - 1, e - 1, rank,
                              warp, lane);
}

template <int TB, int RT>
__global__ void __launch_bounds__(cu_gemm_shape<TB, RT>::THREADS, cu_gemm_shape<TB, RT>::RESIDENT)
    sm90_bf16_decode_gemm(const __grid_constant__ cu_gemm g)
{
    CU_TRACE(GEMM, g.tile_count << 12 | g.blocks_per_tile);
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
        ptx_mbarrier_init(&ring.exchange_full, 1);
        ptx_mbarrier_init(&ring.exchange_empty, S::WARPS * g.cluster);
        ring.landed = 0;
        ptx_fence_mbarrier_init();
    }
    __syncthreads();
    if (g.cluster > 1) ptx_cluster_arrive();
    const cu_work w = cu_gemm_work<S>(g);
    if (warp < S::WARPS) {
        CU_TRACE_WAITED();
        cu_consume<S>(g, w, ring, warp, lane);
    } else {
        if (lane == 0) {
            if (warp == S::WARPS) cu_produce_weights<S>(g, w, ring);
            if (warp == S::WARPS + 1) cu_produce_activations<S>(g, w, ring);
            if (warp == S::WARPS + 2) cu_poll_remote<S>(g, w, ring);
        }
        if (g.cluster > 1) ptx_cluster_wait();
    }
    if (g.cluster > 1) { /* peers may still reach into this CTA's shared memory */
        ptx_cluster_arrive();
        ptx_cluster_wait();
    }
}

#endif
