/*
 * wide_gemm.cuh - the decode GEMM of decode_gemm.cuh for steps of 33 to 128 tokens.  (More go
 * through prefill_gemm.cuh.)
 *
 * Roles, units, parts of K, windows of remote tiers and invariants are the same.  What differs is
 * that activations and tensor cores cost something here.
 *
 * Floor, per 128 rows x 128 inputs on an SM: 32 KB of weights take 0.92 us of its share of HBM; its
 * tensor cores take 0.28 us at 64 tokens, 0.57 at 128; with the activations (16, 32 KB) it takes in
 * 52 and 71 GB/s of the 89 that L2 was seen to give.  So both can keep HBM busy, and 64 rows a CTA
 * would not do.  Predicted for the 129 GEMMs of a Llama-3.1-8B step, with 4 us lost a kernel: 0.86
 * and 0.82 of the floor.
 *
 * Tiles.  A unit is 128 rows by all tokens: one row tile for each of two consumer warpgroups, which
 * share the activations.  One CTA has an SM: 10 blocks of weights (8 at 128 tokens) and 3 to 4
 * k-blocks of activations.  A step is one slot of activations; the next step's products are issued
 * before the last one's are waited for, and only then is its slot released.
 *
 * Invariant beside those of decode_gemm.cuh: a warpgroup waits for its own row tile's blocks alone,
 * and misses no phase of their barriers.  There are as many slots for each row tile of a unit as
 * for the other, dealt in turn, so that a slot is always the same warpgroup's; that one waits for
 * every filling of it, and the next begins only when it has released the last.  Of the other's
 * slots it waits for none: those may be released and filled again while it lags, and a parity seen
 * too late looks like one that has not come.
 *
 * Measured on an H200 (floor 3.20 ms; cuBLAS in a graph in the same run; medians of three runs):
 * 0.881 of the floor at 64 tokens, 0.793 at 128: 1.15 and 1.12 times cuBLAS; 256 tokens had 0.459
 * and 0.89.  Before, with 64 rows a warpgroup, one step at a time and clusters that exchanged
 * partial sums: 0.696, 0.507 and 0.282.  What made it: parts in place of clusters (fewer than 32
 * clusters of four seem to fit the SMs, so that a second wave ran); the epilogue's code once, where
 * 8 to 32 copies for as many registers made ten times as much of it, fetched anew at every unit;
 * whole sectors stored (1.5 to 5 us a unit); all of an SM's memory for one CTA at 64 tokens (4.54
 * to 3.73 ms).
 *
 * Tried and dropped, a step's time over that of what is here, played in turn, at 64, 128 and 256
 * tokens:
 *     gate-up's blocks cut evenly over the CTAs, sums meeting in L2       1.02  1.08  1.03
 *     the head's                                                          1.00  1.00  1.01
 *     gate-up in groups of 256 rows, the better of three rings            1.04  1.00
 *     less of the rings for activations, more for weights                 1.03  1.03  1.02
 *     activations in slots of other size                                  1.00  1.01  1.14
 * and earlier two CTAs an SM, and waiting for each step.  Even cuts brought gate-up's 224 units for
 * 132 SMs, two rounds, down to the 1.7 that they are work for; they were to give a tenth at 256
 * tokens.  But at 128 and more it is power that binds: within 0.3 s the card draws its 700 W and
 * lowers its clock from 1.98 to 1.5 GHz, and then SMs without work leave the others a higher clock,
 * while sums cost their way through L2.  At 64 tokens HBM binds, which the SMs share anyway.
 * Halving the loads of activations, which is what 256 rows do, gave nothing.
 *
 * Against the prefill GEMM with K in as many parts, whose clusters of two share activations, at 96
 * and 128 tokens, us a product: qkv 17.7 here, 19.5 there, o 12.7 and 13.4, gate-up 59.4 and 63.7,
 * down 32.0 and 34.4; a step at 128 takes 1.00 to 1.04 times as long with any one of them replaced.
 * Of a 70B model's, qkv (52.5 and 50.5) and gate-up (250 and 230) would gain.
 *
 * At 32 tokens a step whose gate-up is done by such a kernel takes what it takes with decode_gemm
 * (3.644 against 3.634 to 3.662 ms; 3.83 with two CTAs an SM), at 16 more (3.71 against 3.49).
 *
 * Sources: CUTLASS (two consumer warpgroups, registers moved from producers), the notes on skinny
 * products of SGLang and vLLM (weights as the M operand); PTX ISA 9.0.
 */
#ifndef DAKD_KERNELS_CUDA_WIDE_GEMM_CUH
#define DAKD_KERNELS_CUDA_WIDE_GEMM_CUH

#include "kernels/cuda/gemm_epilogue.cuh"
#include "kernels/cuda/gemm_work.cuh"
#include "kernels/cuda/loads.cuh"
#include "kernels/cuda/release.cuh"
#include "kernels/cuda/trace.h"

/* Constants of a bucket. */
template <int TOKENS> struct cu_wide_shape {
    static constexpr int TB = TOKENS;
    static constexpr int RT = 2; /* row tiles of a unit: one for each consumer warpgroup */
    static constexpr int WARPS = RT * 4;
    static constexpr int THREADS = (RT + 1) * 128;
    /* An SM quarter's 512 registers a lane, for two consumer warps and one of producers. */
    static constexpr int CONSUMER_REGISTERS = 232, PRODUCER_REGISTERS = 40;
    static_assert(RT * CONSUMER_REGISTERS + PRODUCER_REGISTERS <= 3 * 168,
                  "more registers than the launch gave: setmaxnreg would wait forever");
    static constexpr int SHARED = 227 * 1024;
    static constexpr int BARRIERS = 1024;
    static constexpr int X_ATOMS = TB == 64 ? 2 : 1; /* atoms of a slot of activations */
    static constexpr int X_BYTES = TB * 128 * X_ATOMS;
    static constexpr int X_SLOTS = TB == 128 ? 6 : 4;
    static constexpr int STEPS = 2 / X_ATOMS; /* slots of a k-block */
    static constexpr int W_SLOTS =
        (SHARED - BARRIERS - X_SLOTS * X_BYTES) / (RT * KN_BLOCK_BYTES) * RT;
    /* Local blocks in flight at most, as in decode_gemm.cuh.  Measured on an H200, a step of
     * Llama-3.1-8B of 128 sequences of 1,024 tokens, in ms: no limit 8.83, 8 8.83, 6 8.75, 6 and
     * then 8 8.76, 4 and then 8, 6, 5 8.76, 8.72, 8.70, 2 and then 4 8.76. */
    static constexpr int FIRST_FLIGHT = 4, FLIGHT = 5;
    static constexpr int LOADS_FLIGHT = 4; /* remote blocks in flight by loads (loads.cuh) */
    static_assert(FLIGHT <= W_SLOTS, "a slot is filled again before its landing is looked at");
    static constexpr int SHARED_USED = X_SLOTS * X_BYTES + W_SLOTS * KN_BLOCK_BYTES + BARRIERS;
    static constexpr int ROUNDS = TB / 32; /* of the epilogue, 32 tokens each */
    static_assert(W_SLOTS >= 2 * RT, "two k-blocks of a unit must fit");
    static_assert(W_SLOTS % RT == 0, "a slot must always be the same warpgroup's");
};

template <class S> struct cu_wide_ring {
    uint8_t x[S::X_SLOTS][S::X_BYTES];
    uint8_t weights[S::W_SLOTS][KN_BLOCK_BYTES];
    uint64_t w_full[S::W_SLOTS], w_empty[S::W_SLOTS];
    uint64_t x_full[S::X_SLOTS], x_empty[S::X_SLOTS];
    uint32_t issue_clock[S::W_SLOTS];
    uint32_t landed; /* blocks the poller has seen land */
};

/* A place in a ring, and the parity of the pass. */
struct cu_ring_place {
    int32_t slot = 0;
    uint32_t parity = 0;
};
template <int SLOTS> PTX_INLINE void cu_ring_step(cu_ring_place &p)
{
    if (++p.slot == SLOTS) {
        p.slot = 0;
        p.parity ^= 1;
    }
}

/* --- producers --- */

template <class S, bool STAGED>
PTX_INLINE void cu_wide_weights(const cu_gemm &g, const cu_work &w, cu_wide_ring<S> &ring,
                                int32_t begun)
{
    const uint64_t once = ptx_policy_evict_first();
    uint32_t local_issued = 0, remote_issued = 0;
    cu_ring_place p;
    p.parity = 1; /* an empty ring lets the first pass through */
    int32_t n = 0;
    if (w.remote_count > 0) cu_link_enter(g, w);
    for (int32_t i = 0; i < w.remote_count + w.local_count; i++) {
        const cu_unit u = cu_gemm_unit(g, w, i);
        const uint8_t *from[S::RT];
        bool remote[S::RT];
#pragma unroll
        for (int t = 0; t < S::RT; t++) {
            const int32_t tile = u.group * S::RT + t, tier = cu_gemm_tile_tier(g, tile);
            const int32_t block =
                (tile - g.tier[max(tier, 0)].tile_begin) * g.blocks_per_tile + u.block_begin;
            from[t] = tier < 0 ? nullptr : g.tier[tier].base + (size_t)block * KN_BLOCK_BYTES;
            if (tier == 0) cu_find_staged<STAGED>(g, tile, &from[t]);
            remote[t] = tier > 0;
        }
        const int32_t reach = cu_gemm_remote(w, i) ? w.window : S::W_SLOTS;
        for (int32_t b = 0; b < u.block_count; b++) {
#pragma unroll
            for (int t = 0; t < S::RT; t++, n++, cu_ring_step<S::W_SLOTS>(p)) {
                if (n < begun) { /* cu_gemm_begin has issued it */
                    local_issued += from[t] != nullptr;
                    from[t] += from[t] ? KN_BLOCK_BYTES : 0;
                    continue;
                }
                ptx_mbarrier_wait(&ring.w_empty[p.slot], p.parity);
                cu_bound_flight<S>(ring, n, !remote[t]);
                const int32_t landed = min(n - reach + 1, w.watched_blocks);
                if (landed > 0)
                    PTX_SPIN_UNTIL((int32_t)ptx_load_acquire_shared(&ring.landed) >= landed);
                if (!from[t]) { /* beyond the last tile: what it multiplies is never stored */
                    ptx_mbarrier_arrive(&ring.w_full[p.slot]);
                    continue;
                }
                if (remote[t]) ring.issue_clock[p.slot] = ptx_clock();
                ptx_mbarrier_expect_tx(&ring.w_full[p.slot], KN_BLOCK_BYTES);
                ptx_bulk_load_hint(ring.weights[p.slot], from[t], KN_BLOCK_BYTES,
                                   &ring.w_full[p.slot], once);
                from[t] += KN_BLOCK_BYTES;
                remote_issued += remote[t];
                local_issued += !remote[t];
            }
        }
        if (w.remote_count > 0 && i == w.remote_at + w.remote_count - 1) cu_link_leave(g, w);
    }
    cu_count_blocks(g, w, local_issued, remote_issued);
}

template <class S, bool STAGED>
PTX_INLINE void cu_wide_activations(const cu_gemm &g, const cu_work &w, cu_wide_ring<S> &ring)
{
    const uint64_t often = ptx_policy_evict_last();
    ptx_griddep_wait();
    cu_staged_read<STAGED>(g);
    cu_ring_place p;
    p.parity = 1;
    for (int32_t i = 0; i < w.remote_count + w.local_count; i++) {
        const cu_unit u = cu_gemm_unit(g, w, i);
        const uint8_t *from = g.x + (size_t)u.block_begin * S::TB * 256;
        for (int32_t b = 0; b < u.block_count * S::STEPS; b++, from += S::X_BYTES) {
            ptx_mbarrier_wait(&ring.x_empty[p.slot], p.parity);
            ptx_mbarrier_expect_tx(&ring.x_full[p.slot], S::X_BYTES);
            ptx_bulk_load_hint(ring.x[p.slot], from, S::X_BYTES, &ring.x_full[p.slot], often);
            cu_ring_step<S::X_SLOTS>(p);
        }
    }
}

/* Sees blocks land, in order, up to the last remote one, and says so to the weight producer. */
template <class S>
PTX_INLINE void cu_wide_poll(const cu_gemm &g, const cu_work &w, cu_wide_ring<S> &ring)
{
    uint32_t trips = 0, trip_min = UINT32_MAX, trip_max = 0;
    uint64_t clocks = 0;
    cu_ring_place p;
    int32_t n = 0;
    const int32_t units = w.remote_count > 0 ? w.remote_at + w.remote_count : 0;
    for (int32_t i = 0; i < units; i++) {
        const cu_unit u = cu_gemm_unit(g, w, i);
        for (int32_t b = 0; b < u.block_count; b++)
            for (int t = 0; t < S::RT; t++, n++, cu_ring_step<S::W_SLOTS>(p)) {
                PTX_SPIN_UNTIL(ptx_mbarrier_test_wait(&ring.w_full[p.slot], p.parity));
                const uint32_t now = ptx_clock();
                if (cu_gemm_tile_tier(g, u.group * S::RT + t) > 0) {
                    const uint32_t trip = now - *(volatile uint32_t *)&ring.issue_clock[p.slot];
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

/* Sums of one unit for the tile of a warpgroup.  Returns the slot of its last block, which is not
 * released: the epilogue passes through it. */
template <class S>
PTX_INLINE int32_t cu_wide_multiply(float (&acc)[S::TB / 2], cu_wide_ring<S> &ring, int32_t blocks,
                                    cu_ring_place &w, cu_ring_place &x, int wg, int lane)
{
    int32_t slot = 0, old_slot = 0, old_x = 0;
    for (int32_t b = 0; b < blocks; b++) {
        old_slot = slot;
#pragma unroll
        for (int t = 0; t < S::RT; t++) {
            if (t == wg) {
                ptx_mbarrier_wait(&ring.w_full[w.slot], w.parity);
                slot = w.slot;
            }
            cu_ring_step<S::W_SLOTS>(w);
        }
#pragma unroll
        for (int s = 0; s < S::STEPS; s++) {
            ptx_mbarrier_wait(&ring.x_full[x.slot], x.parity);
            ptx_wgmma_fence();
#pragma unroll
            for (int a = 0; a < S::X_ATOMS; a++) {
                const int atom = s * S::X_ATOMS + a;
                const uint64_t xd =
                    ptx_wgmma_descriptor(ptx_shared(ring.x[x.slot]) + a * S::TB * 128);
                const uint64_t wd =
                    ptx_wgmma_descriptor(ptx_shared(ring.weights[slot]) + atom * KN_ATOM_BYTES);
#pragma unroll
                for (int k = 0; k < 4; k++)
                    ptx_wgmma<S::TB>(acc, wd + 2 * k, xd + 2 * k, b + atom + k > 0);
            }
            ptx_wgmma_commit();
            ptx_wgmma_wait<1>();
            if (lane == 0 && b + s > 0) ptx_mbarrier_arrive(&ring.x_empty[old_x]);
            if (s == 0 && b > 0) cu_release(&ring.w_empty[old_slot], lane);
            old_x = x.slot;
            cu_ring_step<S::X_SLOTS>(x);
        }
    }
    ptx_wgmma_wait<0>();
    if (lane == 0) ptx_mbarrier_arrive(&ring.x_empty[old_x]);
    return slot;
}

/* --- the epilogue ---
 *
 * Sums leave the registers 32 tokens at a time through a buffer [32 tokens][64 rows] of the
 * warpgroup, so that each token's rows are stored as whole sectors, and so that the code exists
 * once: unrolled over the registers it does not fit the instruction cache, and costs more than the
 * stores.  Rows are permuted within a token: neither side meets a bank twice. */

PTX_INLINE int32_t cu_stage_at(int32_t token, int32_t row)
{
    return token * 64 + (row ^ ((token >> 1 & 3) << 3 | (token & 1) << 2));
}

PTX_INLINE void cu_stage_write(float *stage, const float *acc, int warp, int lane)
{
    const int row = warp * 16 + (lane >> 2);
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            stage[cu_stage_at(n * 8 + (lane & 3) * 2 + (i & 1), row + (i >> 1) * 8)] =
                acc[4 * n + i];
}

/* Rows row..row + 3 of a token, with their bias. */
PTX_INLINE float4 cu_stage_read(const cu_gemm &g, const float *stage, int token, int32_t tile,
                                int row)
{
    float4 v = *(const float4 *)&stage[cu_stage_at(token, row)];
    if (!g.bias || g.partial) return v;
    float *f = &v.x;
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (tile * 64 + row + i < g.rows) f[i] += g.bias[tile * 64 + row + i];
    return v;
}

/* STORE, F32, ADD, and parts. */
PTX_INLINE void cu_rows_floats(const cu_gemm &g, const cu_unit &u, const float *stage, int32_t tile,
                               int32_t first, int thread)
{
    float *base = g.partial ? g.partial + (size_t)u.part * g.tokens * g.rows : (float *)g.out;
    const bool add = g.epilogue == KN_EPI_ADD && !g.partial;
    const int row = thread % 16 * 4, r = tile * 64 + row;
    const bool whole = r + 3 < g.rows && g.rows % 4 == 0 && ((uintptr_t)base & 15) == 0;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int token = thread / 16 + 8 * j;
        if (first + token >= g.tokens) continue;
        float4 v = cu_stage_read(g, stage, token, tile, row);
        float *to = base + (size_t)(first + token) * g.rows + r;
        if (whole) {
            const float4 old = add ? *(float4 *)to : make_float4(0.f, 0.f, 0.f, 0.f);
            *(float4 *)to =
                add ? make_float4(old.x + v.x, old.y + v.y, old.z + v.z, old.w + v.w) : v;
        } else {
            const float *f = &v.x;
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (r + i < g.rows) to[i] = add ? to[i] + f[i] : f[i];
        }
    }
}

/* Eight activations of one token from column i on; the last tile also clears what the next GEMM's
 * last block reads beyond the columns. */
PTX_INLINE void cu_rows_act(const cu_gemm &g, int tb, int token, int32_t i, int32_t stride,
                            int32_t limit, const float (&v)[8])
{
    uint32_t pair[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const __nv_bfloat162 b = __floats2bfloat162_rn(v[2 * k], v[2 * k + 1]);
        pair[k] = *(const uint32_t *)&b;
    }
    uint8_t *out = (uint8_t *)g.out;
    *(uint4 *)(out + kn_cu_act_offset(tb, token, i)) =
        make_uint4(pair[0], pair[1], pair[2], pair[3]);
    for (int32_t k = i + stride; k < limit; k += stride)
        *(uint4 *)(out + kn_cu_act_offset(tb, token, k)) = make_uint4(0, 0, 0, 0);
}

/* Of 16 rows the first 8 are gates and the others their ups (kn_glu_row). */
PTX_INLINE void cu_rows_swiglu(const cu_gemm &g, int tb, const float *stage, int32_t tile,
                               int32_t first, int thread)
{
    const int token = thread / 4, row = thread % 4 * 16;
    if (first + token >= g.tokens || tile >= g.tile_count) return;
    float v[8];
#pragma unroll
    for (int k = 0; k < 2; k++) {
        const float4 gate = cu_stage_read(g, stage, token, tile, row + 4 * k),
                     up = cu_stage_read(g, stage, token, tile, row + 8 + 4 * k);
        v[4 * k] = cu_swiglu(gate.x, up.x);
        v[4 * k + 1] = cu_swiglu(gate.y, up.y);
        v[4 * k + 2] = cu_swiglu(gate.z, up.z);
        v[4 * k + 3] = cu_swiglu(gate.w, up.w);
    }
    const bool last = tile == g.tile_count - 1;
    cu_rows_act(g, tb, first + token, tile * 32 + row / 2, 32,
                last ? (g.tile_count * 32 + 127) & ~127 : 0, v);
}

PTX_INLINE void cu_rows_relu(const cu_gemm &g, int tb, const float *stage, int32_t tile,
                             int32_t first, int thread)
{
    const bool last = tile == g.tile_count - 1;
    const int row = thread % 8 * 8;
    if (tile >= g.tile_count) return;
#pragma unroll 1
    for (int token = thread / 8; token < 32 && first + token < g.tokens; token += 16) {
        const float4 a = cu_stage_read(g, stage, token, tile, row),
                     b = cu_stage_read(g, stage, token, tile, row + 4);
        const float v[8] = {fmaxf(a.x, 0.f), fmaxf(a.y, 0.f), fmaxf(a.z, 0.f), fmaxf(a.w, 0.f),
                            fmaxf(b.x, 0.f), fmaxf(b.y, 0.f), fmaxf(b.z, 0.f), fmaxf(b.w, 0.f)};
        cu_rows_act(g, tb, first + token, tile * 64 + row, 64,
                    last ? (g.tile_count * 64 + 127) & ~127 : 0, v);
    }
}

/* Stores a warpgroup's sums through two buffers in turn: who has passed the barrier of a round has
 * read the buffer of the round before. */
template <class S>
PTX_INLINE void cu_wide_store(const cu_gemm &g, const float (&acc)[S::TB / 2], const cu_unit &u,
                              float *stage, int wg, int thread)
{
    const int32_t tile = u.group * S::RT + wg;
#pragma unroll 1
    for (int32_t round = 0; round < S::ROUNDS; round++) {
        float *buffer = stage + (round & 1) * 32 * 64;
#pragma unroll
        for (int c = 0; c < S::ROUNDS; c++)
            if (c == round) cu_stage_write(buffer, &acc[c * 16], thread / 32, thread % 32);
        ptx_bar_sync(1 + wg, 128);
        if (g.epilogue == KN_EPI_SWIGLU) cu_rows_swiglu(g, S::TB, buffer, tile, round * 32, thread);
        else if (g.epilogue == KN_EPI_RELU)
            cu_rows_relu(g, S::TB, buffer, tile, round * 32, thread);
        else cu_rows_floats(g, u, buffer, tile, round * 32, thread);
    }
}

/* The sums of a part beyond the last block. */
template <class S>
PTX_INLINE void cu_wide_store_nothing(const cu_gemm &g, const cu_unit &u, int wg, int warp,
                                      int lane)
{
#pragma unroll 1
    for (int n = 0; n < S::TB / 8; n++)
        cu_gemm_store_partial(g, u.part, u.group * S::RT + wg, warp, n, lane,
                              make_float4(0.f, 0.f, 0.f, 0.f));
}

template <class S>
PTX_INLINE void cu_wide_consume(const cu_gemm &g, const cu_work &w, cu_wide_ring<S> &ring, int warp,
                                int lane)
{
    /* The epilogue touches what the previous kernel wrote and read, so every consumer waits. */
    ptx_griddep_wait();
    const int wg = warp >> 2;
    cu_ring_place w_at, x_at;
    for (int32_t i = 0; i < w.remote_count + w.local_count; i++) {
        const cu_unit u = cu_gemm_unit(g, w, i);
        if (u.block_count == 0) {
            cu_wide_store_nothing<S>(g, u, wg, warp & 3, lane);
            continue;
        }
        float acc[S::TB / 2];
        const int32_t held = cu_wide_multiply<S>(acc, ring, u.block_count, w_at, x_at, wg, lane);
        ptx_bar_sync(1 + wg, 128); /* the whole warpgroup has multiplied the last block */
        cu_wide_store<S>(g, acc, u, (float *)ring.weights[held], wg, (warp & 3) * 32 + lane);
        ptx_fence_proxy_async(); /* the slot is written by a bulk copy next */
        __syncwarp();
        cu_release(&ring.w_empty[held], lane);
    }
}

/* LOADS, STAGED: as in decode_gemm.cuh. */
template <int TB, bool LOADS = false, bool STAGED = false>
__global__ void __launch_bounds__(cu_wide_shape<TB>::THREADS, 1)
    sm90_bf16_wide_gemm(const __grid_constant__ cu_gemm g)
{
    CU_TRACE(GEMM, g.tile_count << 12 | g.blocks_per_tile);
    using S = cu_wide_shape<TB>;
    extern __shared__ __align__(1024) uint8_t shared[];
    cu_wide_ring<S> &ring = *(cu_wide_ring<S> *)shared;
    static_assert(sizeof(cu_wide_ring<S>) <= S::SHARED_USED, "the ring outgrew its shared memory");
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x >> 5, 0), lane = threadIdx.x & 31;
    ptx_griddep_launch();
    if (threadIdx.x == 0) {
        if (ptx_shared(shared) & 1023) __trap(); /* the swizzle counts from 1 KB boundaries */
        for (int s = 0; s < S::W_SLOTS; s++) {
            ptx_mbarrier_init(&ring.w_full[s], LOADS ? CU_ARRIVALS : 1);
            ptx_mbarrier_init(&ring.w_empty[s], 4 * CU_ARRIVALS);
        }
        for (int s = 0; s < S::X_SLOTS; s++) {
            ptx_mbarrier_init(&ring.x_full[s], 1);
            ptx_mbarrier_init(&ring.x_empty[s], S::WARPS);
        }
        ring.landed = 0;
        ptx_fence_mbarrier_init();
    }
    __syncthreads();
    int32_t begun = 0;
    if (warp == S::WARPS && lane == 0) begun = cu_gemm_begin<S, STAGED>(g, ring, S::FIRST_FLIGHT);
    const cu_work w = cu_gemm_work<S>(g);
    if (warp < S::WARPS) {
        ptx_setmaxnreg_inc<S::CONSUMER_REGISTERS>();
        CU_TRACE_WAITED();
        cu_wide_consume<S>(g, w, ring, warp, lane);
    } else {
        ptx_setmaxnreg_dec<S::PRODUCER_REGISTERS>();
        if (LOADS && warp == S::WARPS) {
            cu_load_weights<S>(g, w, ring, __shfl_sync(0xffffffffu, begun, 0), lane);
        } else if (lane == 0) {
            if (warp == S::WARPS) cu_wide_weights<S, STAGED>(g, w, ring, begun);
            if (warp == S::WARPS + 1) cu_wide_activations<S, STAGED>(g, w, ring);
            if (!LOADS && warp == S::WARPS + 2) cu_wide_poll<S>(g, w, ring);
        }
    }
}

#endif
