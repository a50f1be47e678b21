/*
 * loads.cuh - remote weights read by plain loads, in the place of bulk copies: the baseline of
 * KN_REMOTE_LOADS, which stands for products that take the host's memory for their own.
 *
 * The weight producer of a CTA is then a whole warp.  A local block is one lane's bulk copy, as
 * ever; a remote one is brought by all lanes, 16 bytes a load (cp.async: the load's bytes go to
 * shared memory past the registers), to where the copy would have put it.  What consumers do is the
 * same, so results are the same, bit for bit.
 *
 * There are no roles and no window: every CTA that remote units fall to reads them in their order
 * (a window of all CTAs, gemm_work.cuh), and nobody takes turns.  A CTA has LOADS_FLIGHT blocks in
 * flight, local ones among them, as pipelines of other products have; of remote ones consumers are
 * told in order, once all lanes' loads of a block have landed and a fence has shown them to the
 * tensor cores.  Nobody stamps trips.
 *
 * Prediction.  32 KB in flight a CTA of decode_gemm.cuh, 64 of wide_gemm.cuh: where every SM has
 * remote units that is 8 MB, so that links are full and HBM stands nearly still meanwhile: steps
 * take the link's time and HBM's one after the other, up to 1.1 times the time of bulk copies over
 * PCIe and 1.5 over NVLink at 10 %.  Where few have any, links are not full: 2 us a trip make 16
 * GB/s a CTA.
 *
 * Invariant: a CTA's producer waits for room in the ring with at most LOADS_FLIGHT - 1 blocks not
 * told of, all of them newer than what consumers need to make that room; the bound of local blocks'
 * flight looks back LOADS_FLIGHT at least; and it waits for nothing else before it has told of all.
 *
 * Prompts read so too, in the prefill GEMM's producer (loads_prefill.cu), and not through a buffer
 * in HBM that a kernel of loads fills before each product: no room need be found for a product's
 * tiles, and what such products do to a link is shown as it is.  Weights cannot be multicast by
 * loads, so CTAs with other tokens read them again, and remote memory is cached nowhere: they cross
 * the link once for every 256 tokens.
 *
 * Measured on H200s, products of an 8B model's layers (tests/gpu_loads --bench), time by loads over
 * that by bulk copies in the same run, for shares of 1, 10, 30 and 100 %, and GB/s over the link at
 * 10 and 100 %:
 *                   host memory over PCIe                  another GPU over NVLink
 *     1 token       1.05  1.01  1.01  1.01   50.1 50.9     1.01  1.02  1.02  1.01   312 370
 *     64 tokens     1.19  1.07  1.04  0.99   44.0 51.1     1.30  1.15  1.03  1.01   261 368
 * and of prompts at 10 %, where bulk copies are shared among clusters: 256, 512 and 2,048 tokens
 * 1.02, 1.95, 5.46 and 1.35, 1.11, 1.22.  So links are full, sooner than was predicted, and what is
 * lost is lost where few CTAs have something to read, or more than one wants the same.
 *
 * Before, loads went through registers, 8 KB of them at a time: at 64 tokens 4.96, 1.26, 1.02, 1.00
 * and 3.77, 4.96, 2.05, 1.16; prompts 1.51, 2.55, 6.24 and 4.57, 3.40, 3.33.
 */
#ifndef DAKD_KERNELS_CUDA_LOADS_CUH
#define DAKD_KERNELS_CUDA_LOADS_CUH

#include "kernels/cuda/gemm_work.cuh"
#include "kernels/cuda/release.cuh"

/* Bytes of a multiple of 512 on their way to shared memory, by a whole warp. */
template <int BYTES> PTX_INLINE void cu_load_bytes(uint8_t *shared, const uint8_t *from, int lane)
{
#pragma unroll
    for (int at = 0; at < BYTES; at += 32 * 16)
        ptx_cp_async_16(shared + at + lane * 16, from + at + lane * 16, 16);
}

/* The newest blocks of a ring that were issued and not told of, `count` of them; bit k of `remote`
 * says that the k-th newest came by loads.  Others tell of themselves, or were told of. */
struct cu_pending {
    int32_t count;
    uint32_t remote;
};

/* Of a whole warp, when blocks before the n-th are issued: tells of all but the newest KEEP, which
 * may be on their way. */
template <class S, int KEEP, class Ring>
PTX_INLINE void cu_loads_land(Ring &ring, int32_t n, cu_pending &pending, int lane)
{
    for (; pending.count > KEEP; pending.count--) {
        if (!(pending.remote >> (pending.count - 1) & 1)) continue;
        ptx_cp_async_wait<KEEP>();
        ptx_fence_proxy_async();
        __syncwarp();
        cu_release(&ring.w_full[(n - pending.count) % S::W_SLOTS], lane);
    }
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
 * (cu_gemm_begin), issued by lane 0.  Every block is a group of loads, of none where it is local,
 * so that groups are waited for as blocks are told of. */
template <class S, class Ring>
PTX_INLINE void cu_load_weights(const cu_gemm &g, const cu_work &w, Ring &ring, int32_t begun,
                                int lane)
{
    constexpr int FLIGHT = S::LOADS_FLIGHT;
    static_assert(FLIGHT < S::W_SLOTS - S::RT, "consumers want the next block to let go of one");
    static_assert(FLIGHT <= S::FIRST_FLIGHT && FLIGHT <= S::FLIGHT,
                  "what the bound looks back to is told of");
    cu_pending pending = {};
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
                if (tier > 0) cu_load_bytes<KN_BLOCK_BYTES>(ring.weights[slot], from, lane);
                else if (lane == 0) copied = cu_copy_block<S>(ring, n, begun, from, tier == 0);
                ptx_cp_async_commit();
                __syncwarp();
                if (tier <= 0 && !copied) cu_release(&ring.w_full[slot], lane);
                pending.remote = pending.remote << 1 | (tier > 0);
                pending.count++;
                cu_loads_land<S, FLIGHT - 1>(ring, n + 1, pending, lane);
            }
    }
    cu_loads_land<S, 0>(ring, n, pending, lane);
}

#endif
