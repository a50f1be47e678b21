/*
 * loads.cuh - remote weights read by plain loads, in the place of bulk copies: the baseline of
 * KN_REMOTE_LOADS, which stands for products that take the host's memory for their own.
 *
 * The weight producer of a CTA is then a whole warp.  A local block is one lane's bulk copy, as
 * ever; of a remote one the lanes load an atom at a time, 16 loads of 16 bytes each, all of them in
 * flight before the first is stored, and store it into the ring where the copy would have put it.
 * What consumers do is the same, so results are the same, bit for bit.
 *
 * There are no roles and no window: every CTA that remote units fall to reads them in their order
 * (a window of all CTAs, gemm_work.cuh), and nobody takes turns.  In flight are 8 KB a CTA that
 * reads, for that is what registers hold, and nothing while a warp stores: what bounds it is the
 * trip, 8 KB in 2 us of it over PCIe, 4 GB/s a CTA.  (Products that load into rings past the
 * registers have more in flight; what that does, bulk copies without a window show.)  Nobody stamps
 * trips.
 *
 * Prediction.  With remote units for all CTAs, 264 of them ask for 2 MB: PCIe is full, with trips
 * of 40 us, so that HBM gives two thirds of its rate where it is not the link that is waited for;
 * NVLink is full without harm.  With few units, as of 1 % of a product, 4 CTAs read 16 GB/s of the
 * 51 that PCIe has.  Steps that wait for the link: up to 1.1 times as long as with bulk copies;
 * those whose share is small, 1.5 to 3 times as long as the link would need.
 *
 * Prompts read so too, in the prefill GEMM's producer (loads_prefill.cu), and not through a buffer
 * in HBM that a kernel of loads fills before each product: no room need be found for a product's
 * tiles, and what such products do to a link is shown as it is.  Weights cannot be multicast by
 * loads, so CTAs with other tokens read them again, and remote memory is cached nowhere: they cross
 * the link once for every 256 tokens.
 *
 * Measured on H200s, products of an 8B model's layers (tests/gpu_loads --bench), time by loads over
 * that by bulk copies in the same run, for shares of 1, 10, 30 and 100 %:
 *                   host memory over PCIe      another GPU over NVLink
 *     1 token       2.04  1.01  1.01  1.00     1.51  1.55  1.04  1.00
 *     64 tokens     4.96  1.26  1.02  1.00     3.77  4.96  2.05  1.16
 * and of prompts at 10 %, where bulk copies are shared among clusters: 256, 512 and 2,048 tokens
 * 1.51, 2.55, 6.24 and 4.57, 3.40, 3.33.  So a link is as full by loads where every SM reads it;
 * what is lost is lost where few have something to read, most of all where an SM has one CTA (more
 * than 32 tokens), and where more than one wants the same.
 */
#ifndef DAKD_KERNELS_CUDA_LOADS_CUH
#define DAKD_KERNELS_CUDA_LOADS_CUH

#include "kernels/cuda/gemm_work.cuh"
#include "kernels/cuda/release.cuh"

/* An atom, by a whole warp. */
PTX_INLINE void cu_load_atom(uint8_t *shared, const uint8_t *from, int lane)
{
    constexpr int LOADS = KN_ATOM_BYTES / (32 * 16);
    uint4 v[LOADS];
#pragma unroll
    for (int i = 0; i < LOADS; i++) v[i] = __ldcs((const uint4 *)from + i * 32 + lane);
#pragma unroll
    for (int i = 0; i < LOADS; i++) ((uint4 *)shared)[i * 32 + lane] = v[i];
}

/* One lane's part: the bulk copy of a local block as the ring's n-th, unless cu_gemm_begin issued
 * it; false where there is none, beyond the last tile (what it multiplies is never stored). */
template <class S, class Ring>
PTX_INLINE bool cu_copy_block(Ring &ring, int32_t n, int32_t begun, const uint8_t *from, bool there)
{
    const int32_t slot = n % S::W_SLOTS;
    if (n < begun) return true;
    if (!there) return false;
    cu_bound_flight<S>(ring, n, true);
    ptx_mbarrier_expect_tx(&ring.w_full[slot], KN_BLOCK_BYTES);
    ptx_bulk_load_hint(ring.weights[slot], from, KN_BLOCK_BYTES, &ring.w_full[slot],
                       ptx_policy_evict_first());
    return true;
}

/* The weight producer of a decode GEMM; of a whole warp.  `begun` blocks are on their way
 * (cu_gemm_begin), issued by lane 0. */
template <class S, class Ring>
PTX_INLINE void cu_load_weights(const cu_gemm &g, const cu_work &w, Ring &ring, int32_t begun,
                                int lane)
{
    int32_t n = 0;
    for (int32_t i = 0; i < w.remote_count + w.local_count; i++) {
        const cu_unit u = cu_gemm_unit(g, w, i);
        for (int32_t b = 0; b < u.block_count; b++)
            for (int t = 0; t < S::RT; t++, n++) {
                const int32_t slot = n % S::W_SLOTS, tile = u.group * S::RT + t,
                              tier = cu_gemm_tile_tier(g, tile);
                const cu_gemm_tier &in = g.tier[max(tier, 0)];
                const uint8_t *from =
                    in.base +
                    (size_t)((tile - in.tile_begin) * g.blocks_per_tile + u.block_begin + b) *
                        KN_BLOCK_BYTES;
                bool copied = false; /* in bulk, which arrives for itself */
                if (b == 0 && g.traffic && tier >= 0 && lane == 0)
                    ptx_atomic_add_relaxed_u64(&g.traffic[tier].blocks, u.block_count);
                if (n >= S::W_SLOTS)
                    ptx_mbarrier_wait(&ring.w_empty[slot], (n / S::W_SLOTS - 1) & 1);
                if (tier > 0) {
#pragma unroll 1
                    for (int atom = 0; atom < KN_BLOCK_BYTES; atom += KN_ATOM_BYTES)
                        cu_load_atom(ring.weights[slot] + atom, from + atom, lane);
                    ptx_fence_proxy_async();
                } else if (lane == 0) {
                    copied = cu_copy_block<S>(ring, n, begun, from, tier == 0);
                }
                __syncwarp();
                if (!copied) cu_release(&ring.w_full[slot], lane);
            }
    }
}

#endif
