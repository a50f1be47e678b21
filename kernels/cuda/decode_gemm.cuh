/*
 * decode_gemm.cuh - out[T,N] = epilogue(x[T,K] . W[N,K]^T + bias) for steps of up to 32 tokens.
 *
 * Floor: N*K*2 bytes over the bandwidth of the tier they lie in.  An SM has 0.46 us for a 16 KB
 * block at 4.7 TB/s and its tensor cores a fraction of that, so everything here serves one aim:
 * keep every SM's rings of bulk copies full from the first microsecond to the last.
 *
 * Roles.  A warpgroup of consumers, then three lanes of their own warps:
 *     weights      fills the ring of weight blocks.  Weights do not depend on the previous kernel,
 *                  so it starts before griddepcontrol.wait and never waits for it.
 *     activations  fills a second ring with the inputs of all tokens, after the wait.
 *     poller       watches remote blocks land: keeps the window and stamps round trips.
 * Two CTAs share an SM: the next kernel's rings fill while this one's drain.
 *
 * In flight.  A ring that asks for all it has room for keeps HBM's queues long, and whoever else
 * needs something of L2, the small kernels between two products above all, waits in them: 2 us in
 * place of 0.7.  HBM gives its rate to 64 to 96 KB an SM; so a CTA has 2 blocks in flight while the
 * ring fills for the first time (the kernel before still runs then; 1 is too few, beside attention
 * as well) and 2 or 3 after.  Measured on an H200, a step of Llama-3.1-8B with 1,024 tokens of
 * context, in ms, for no limit, 4, 3 and 2 blocks at first, then 2 and then 4, 3, 2: at 1 sequence
 * 3.96, 3.92, 3.88, 3.83, 3.81, 3.80, 3.82; at 8 4.23, 4.19, 4.15, 4.11, 4.07, 4.05, 4.07; at 32
 * 5.25, 5.23, 5.22, 5.21, 5.19, 5.14, 5.12.
 *
 * Weights are the wgmma M operand (64 rows), tokens the N operand, so each weight byte is read
 * once.
 *
 * Units.  A row tile is a unit, done by one CTA from first block to last.  Products with fewer row
 * tiles than CTAs have K cut into 2 or 4 parts, each a unit of its own that leaves fp32 partial
 * sums.  Where the next kernel must read the result anyway (the finish of q, k and v), it adds them
 * up in order of k.  Where an RMS norm comes next, the parts add themselves up and do half of the
 * norm, and the product after it the other half (gemm_norm.cuh); nowhere else does a CTA wait for
 * another.
 *
 * Invariants
 *  1. How K is cut depends on shape and bucket alone, hence the result is bitwise the same
 *     whichever CTA computes which unit: for every placement, window and run.
 *  2. Who computes a unit, and in which order a CTA has them, gemm_work.cuh decides; tier and
 *     window take part in nothing else.
 *  3. At most window blocks of a remote tier are in flight per CTA: block n is issued when the
 *     poller has seen block n - window land.  The poller sees every block up to the last remote one
 *     land, local ones too: a phase of a slot it missed would pass for the next.
 *  4. All CTAs of a launch read the same control block, or they would disagree on who does what.
 *
 * Measured on an H200, the 129 GEMMs of a Llama-3.1-8B step in one graph, as a share of one launch
 * that streams the same bytes: 0.98 at 1 token, 0.97 at 16, 0.93 at 32.  Before, clusters of CTAs
 * cut K and exchanged partial sums through shared memory: 0.86 and 0.85, for a cluster's launch and
 * exchange cost 3 to 5 us a kernel.  Tried and dropped too: partial sums through L2 behind fences
 * with the last arriver reducing (6 to 10 us a kernel); fetching ahead into L2, by bulk prefetches
 * or by prefetch instructions, while streaming or at a kernel's end (0.6 to 0.83: the stream's own
 * rate falls by an eighth, and what is fetched more than 30 MB ahead is read twice); one launch for
 * o, gate-up, down and the next layer's qkv, whose weights run ahead across products and whose CTAs
 * wait for each other's counters in place of kernel boundaries (a step 3 to 4 % longer: fence,
 * counter and poll take 12 us an edge while memory is busy, more than rings hold).
 *
 * Sources: CUTLASS (swapped operands, split K), Marlin (fixed-order reduction); PTX ISA 9.0.
 */
#ifndef DAKD_KERNELS_CUDA_DECODE_GEMM_CUH
#define DAKD_KERNELS_CUDA_DECODE_GEMM_CUH

#include "kernels/cuda/gemm_epilogue.cuh"
#include "kernels/cuda/gemm_norm.cuh"
#include "kernels/cuda/gemm_work.cuh"
#include "kernels/cuda/loads.cuh"
#include "kernels/cuda/release.cuh"
#include "kernels/cuda/trace.h"

/* Constants of a bucket. */
template <int TOKENS> struct cu_gemm_shape {
    static constexpr int TB = TOKENS, RT = 1;
    static constexpr int WARPS = 4; /* consumers: one warpgroup */
    static constexpr int THREADS = (WARPS + 3) * 32;
    static constexpr int RESIDENT = 2;
    static constexpr int SHARED = 113 * 1024;
    static constexpr int BARRIERS = 512; /* and what consumers share */
    static constexpr int X_BYTES = TB * 256;
    static constexpr int X_SLOTS = TB == 8 ? 8 : 4;
    static constexpr int W_SLOTS = (SHARED - BARRIERS - X_SLOTS * X_BYTES) / KN_BLOCK_BYTES;
    static constexpr int SHARED_USED = W_SLOTS * KN_BLOCK_BYTES + X_SLOTS * X_BYTES + BARRIERS;
    /* Local blocks in flight at most: while the ring fills for the first time, and after. */
    static constexpr int FIRST_FLIGHT = 2, FLIGHT = TB == 32 ? 2 : 3;
    static constexpr int LOADS_FLIGHT = 2; /* remote blocks in flight by loads (loads.cuh) */
    static_assert(FLIGHT <= W_SLOTS, "a slot is filled again before its landing is looked at");
};

template <class S> struct cu_gemm_ring {
    uint8_t weights[S::W_SLOTS][KN_BLOCK_BYTES];
    uint8_t x[S::X_SLOTS][S::X_BYTES];
    uint64_t w_full[S::W_SLOTS], w_empty[S::W_SLOTS];
    uint64_t x_full[S::X_SLOTS], x_empty[S::X_SLOTS];
    uint32_t issue_clock[S::W_SLOTS];
    uint32_t landed; /* blocks the poller has seen land */
    cu_norm_shared<S::TB> norm;
};

/* --- producers --- */

template <class S, bool STAGED>
PTX_INLINE void cu_produce_weights(const cu_gemm &g, const cu_work &w, cu_gemm_ring<S> &ring,
                                   int32_t begun)
{
    const uint64_t once = ptx_policy_evict_first();
    uint32_t local_issued = 0, remote_issued = 0;
    int32_t n = 0;
    if (w.remote_count > 0) cu_link_enter(g, w);
    for (int32_t i = 0; i < w.remote_count + w.local_count; i++) {
        const cu_unit u = cu_gemm_unit(g, w, i);
        const bool remote = cu_gemm_remote(w, i);
        const cu_gemm_tier &tier = g.tier[remote ? w.tier : 0];
        const uint8_t *base = tier.base;
        if (!remote) cu_find_staged<STAGED>(g, u.group, &base);
        const uint8_t *from =
            base + (size_t)((u.group - tier.tile_begin) * g.blocks_per_tile + u.block_begin) *
                       KN_BLOCK_BYTES;
        const int32_t reach = remote ? w.window : S::W_SLOTS;
        for (int32_t b = 0; b < u.block_count; b++, n++, from += KN_BLOCK_BYTES) {
            if (n < begun) continue; /* cu_gemm_begin has issued it */
            const int32_t slot = n % S::W_SLOTS;
            if (n >= S::W_SLOTS) ptx_mbarrier_wait(&ring.w_empty[slot], (n / S::W_SLOTS - 1) & 1);
            cu_bound_flight<S>(ring, n, !remote);
            const int32_t landed = min(n - reach + 1, w.watched_blocks);
            if (landed > 0)
                PTX_SPIN_UNTIL((int32_t)ptx_load_acquire_shared(&ring.landed) >= landed);
            if (remote) ring.issue_clock[slot] = ptx_clock();
            ptx_mbarrier_expect_tx(&ring.w_full[slot], KN_BLOCK_BYTES);
            ptx_bulk_load_hint(ring.weights[slot], from, KN_BLOCK_BYTES, &ring.w_full[slot], once);
        }
        remote_issued += remote ? u.block_count : 0;
        if (i == w.remote_at + w.remote_count - 1 && remote) cu_link_leave(g, w);
        local_issued += remote ? 0 : u.block_count;
    }
    cu_count_blocks(g, w, local_issued, remote_issued);
}

template <class S, bool STAGED>
PTX_INLINE void cu_produce_activations(const cu_gemm &g, const cu_work &w, cu_gemm_ring<S> &ring)
{
    const uint64_t often = ptx_policy_evict_last();
    ptx_griddep_wait();
    cu_staged_read<STAGED>(g);
    int32_t n = 0;
    for (int32_t i = 0; i < w.remote_count + w.local_count; i++) {
        const cu_unit u = cu_gemm_unit(g, w, i);
        const uint8_t *from = g.x + (size_t)u.block_begin * S::X_BYTES;
        for (int32_t b = 0; b < u.block_count; b++, n++, from += S::X_BYTES) {
            const int32_t slot = n % S::X_SLOTS;
            if (n >= S::X_SLOTS) ptx_mbarrier_wait(&ring.x_empty[slot], (n / S::X_SLOTS - 1) & 1);
            ptx_mbarrier_expect_tx(&ring.x_full[slot], S::X_BYTES);
            ptx_bulk_load_hint(ring.x[slot], from, S::X_BYTES, &ring.x_full[slot], often);
        }
    }
}

/* Sees blocks land, in order, up to the last remote one, and says so to the weight producer. */
template <class S>
PTX_INLINE void cu_poll_remote(const cu_gemm &g, const cu_work &w, cu_gemm_ring<S> &ring)
{
    uint32_t trips = 0, trip_min = UINT32_MAX, trip_max = 0;
    uint64_t clocks = 0;
    int32_t n = 0;
    const int32_t units = w.remote_count > 0 ? w.remote_at + w.remote_count : 0;
    for (int32_t i = 0; i < units; i++) {
        const int32_t blocks = cu_gemm_unit(g, w, i).block_count;
        for (int32_t b = 0; b < blocks; b++, n++) {
            const int32_t slot = n % S::W_SLOTS;
            PTX_SPIN_UNTIL(ptx_mbarrier_test_wait(&ring.w_full[slot], (n / S::W_SLOTS) & 1));
            const uint32_t now = ptx_clock();
            if (cu_gemm_remote(w, i)) {
                const uint32_t trip = now - *(volatile uint32_t *)&ring.issue_clock[slot];
                trips++;
                clocks += trip;
                trip_min = min(trip_min, trip);
                trip_max = max(trip_max, trip);
            }
            ptx_store_release_shared(&ring.landed, n + 1);
        }
    }
    cu_count_trips(g.traffic, w.tier, trips, clocks, trip_min, trip_max);
}

/* --- consumers --- */

/* Sums of one unit; n counts the slots used so far.  HOLD: the last one's activations are not
 * released. */
template <class S, bool HOLD>
PTX_INLINE void cu_multiply(float (&acc)[S::TB / 2], cu_gemm_ring<S> &ring, int32_t blocks,
                            int32_t n, int lane)
{
    for (int32_t b = 0; b < blocks; b++, n++) {
        const int32_t w_slot = n % S::W_SLOTS, x_slot = n % S::X_SLOTS;
        ptx_mbarrier_wait(&ring.x_full[x_slot], (n / S::X_SLOTS) & 1);
        ptx_mbarrier_wait(&ring.w_full[w_slot], (n / S::W_SLOTS) & 1);
        ptx_wgmma_fence();
#pragma unroll
        for (int atom = 0; atom < 2; atom++) {
            const uint64_t xd =
                ptx_wgmma_descriptor(ptx_shared(ring.x[x_slot] + atom * S::TB * 128));
            const uint64_t wd =
                ptx_wgmma_descriptor(ptx_shared(ring.weights[w_slot] + atom * KN_ATOM_BYTES));
#pragma unroll
            for (int k = 0; k < 4; k++)
                ptx_wgmma<S::TB>(acc, wd + 2 * k, xd + 2 * k, b + atom + k > 0);
        }
        ptx_wgmma_commit();
        ptx_wgmma_wait<0>();
        if (lane == 0) ptx_mbarrier_arrive(&ring.w_empty[w_slot]);
        if (!HOLD || b + 1 < blocks) cu_release(&ring.x_empty[x_slot], lane);
    }
}

template <class S>
PTX_INLINE void cu_store_unit(const cu_gemm &g, const cu_unit &u, const float (&acc)[S::TB / 2],
                              int warp, int lane)
{
#pragma unroll
    for (int c = 0; c < S::TB / 8; c++) {
        const float4 sum = make_float4(acc[4 * c], acc[4 * c + 1], acc[4 * c + 2], acc[4 * c + 3]);
        if (g.partial) cu_gemm_store_partial(g, u.part, u.group, warp, c, lane, sum);
        else
            cu_gemm_store<S::TB>(g, u.group, warp, c, lane, sum,
                                 cu_gemm_old(g, u.group, warp, c, lane));
    }
}

template <class S, bool NORM>
PTX_INLINE void cu_consume(const cu_gemm &g, const cu_work &w, cu_gemm_ring<S> &ring, int warp,
                           int lane)
{
    const int thread = warp * 32 + lane;
    /* The epilogue touches what the previous kernel wrote and read, so every consumer waits. */
    cu_squares<S::TB> squares;
    if (g.scale.sums) squares = cu_read_squares<S::TB>(g, thread);
    else ptx_griddep_wait();
    int32_t n = 0;
    for (int32_t i = 0; i < w.remote_count + w.local_count; i++) {
        const cu_unit u = cu_gemm_unit(g, w, i);
        float acc[S::TB / 2] = {};
        cu_norm_rows rows;
        if constexpr (NORM) rows = cu_rows_of(g, u.group, thread);
        cu_multiply<S, NORM>(acc, ring, u.block_count, n, lane);
        n += u.block_count;
        if (g.scale.sums) {
            if (i == 0) cu_token_scales(g, ring.norm, squares, thread);
            cu_scale_sums(acc, ring.norm, lane);
        }
        if constexpr (NORM) {
            const int32_t held = (n - 1) % S::X_SLOTS;
            static_assert(S::X_BYTES >= S::TB * 64 * sizeof(float), "a tile's sums do not fit");
            cu_finish(g, w, ring.norm, (float *)ring.x[held], u, acc, rows, thread);
            ptx_fence_proxy_async(); /* the slot is written by a bulk copy next */
            __syncwarp();
            cu_release(&ring.x_empty[held], lane);
        } else {
            cu_store_unit<S>(g, u, acc, warp, lane);
        }
    }
}

/* LOADS: remote weights by plain loads (loads.cuh).  STAGED: for a launch with cu_gemm.staged; the
 * others have not even the branches. */
template <int TB, bool NORM, bool LOADS = false, bool STAGED = false>
__global__ void __launch_bounds__(cu_gemm_shape<TB>::THREADS, cu_gemm_shape<TB>::RESIDENT)
    sm90_bf16_decode_gemm(const __grid_constant__ cu_gemm g)
{
    CU_TRACE(GEMM, g.tile_count << 12 | g.blocks_per_tile);
    using S = cu_gemm_shape<TB>;
    extern __shared__ __align__(1024) uint8_t shared[];
    cu_gemm_ring<S> &ring = *(cu_gemm_ring<S> *)shared;
    static_assert(sizeof(cu_gemm_ring<S>) <= S::SHARED_USED, "the ring outgrew its shared memory");
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x >> 5, 0), lane = threadIdx.x & 31;
    ptx_griddep_launch();
    if (threadIdx.x == 0) {
        if (ptx_shared(shared) & 1023) __trap(); /* the swizzle counts from 1 KB boundaries */
        for (int s = 0; s < S::W_SLOTS; s++) {
            ptx_mbarrier_init(&ring.w_full[s], LOADS ? CU_ARRIVALS : 1);
            ptx_mbarrier_init(&ring.w_empty[s], S::WARPS);
        }
        for (int s = 0; s < S::X_SLOTS; s++) {
            ptx_mbarrier_init(&ring.x_full[s], 1);
            ptx_mbarrier_init(&ring.x_empty[s], S::WARPS * CU_ARRIVALS);
        }
        ring.landed = 0;
        ptx_fence_mbarrier_init();
    }
    __syncthreads();
    int32_t begun = 0;
    if (warp == S::WARPS && lane == 0) begun = cu_gemm_begin<S, STAGED>(g, ring, S::FIRST_FLIGHT);
    const cu_work w = cu_gemm_work<S>(g);
    if (warp < S::WARPS) {
        CU_TRACE_WAITED();
        cu_consume<S, NORM>(g, w, ring, warp, lane);
    } else if (LOADS && warp == S::WARPS) {
        cu_load_weights<S>(g, w, ring, __shfl_sync(0xffffffffu, begun, 0), lane);
    } else if (lane == 0) {
        if (warp == S::WARPS) cu_produce_weights<S, STAGED>(g, w, ring, begun);
        if (warp == S::WARPS + 1) cu_produce_activations<S, STAGED>(g, w, ring);
        if (!LOADS && warp == S::WARPS + 2) cu_poll_remote<S>(g, w, ring);
    }
}

#endif
