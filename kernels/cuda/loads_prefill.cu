/*
 * loads_prefill.cu - the kernels of prefill_gemm.cuh that read remote weights by plain loads
 * (loads.cuh), in a file of their own for the compiler's sake.
 */
#include "config/check.h"
#include "kernels/cuda/loads.cuh"
#include "kernels/cuda/prefill_gemm.cuh"

/* Of a whole warp: waits until no more than KEEP of the `pending` stages before `at` have loads on
 * their way, and says of the others that what was loaded is there, beside `local` bytes in bulk. */
template <class S, int KEEP>
PTX_INLINE void cu_prefill_loads_land(cu_prefill_ring<S> &ring, const cu_ring_place &at,
                                      int32_t &pending, uint32_t local, int lane)
{
    if (pending <= KEEP) return;
    ptx_cp_async_wait<KEEP>();
    ptx_fence_proxy_async();
    __syncwarp();
    for (; pending > KEEP; pending--) {
        uint64_t *full = &ring.full[(at.slot + S::STAGES - pending) % S::STAGES];
        if (lane == 0 && local) ptx_mbarrier_expect_tx(full, local);
        else cu_release(full, lane);
    }
}

template <class S>
PTX_INLINE void cu_prefill_load_weights(const cu_prefill &p, cu_prefill_ring<S> &ring, int lane)
{
    static_assert(S::CT == 1, "loads are not multicast");
    constexpr int FLIGHT = S::STAGES - 2; /* a consumer waits for the next stage to let go of one */
    const cu_gemm &g = p.gemm;
    cu_ring_place at;
    at.parity = 1;
    CU_PREFILL_TILES(S, p, tile)
    {
        const uint8_t *from[S::RT];
        int32_t tier[S::RT], pending = 0;
        uint32_t local = 0;
        bool remote = false;
#pragma unroll
        for (int t = 0; t < S::RT; t++) {
            const int32_t w = tile.group * S::RT + t;
            tier[t] = cu_gemm_tile_tier(g, w);
            const cu_gemm_tier &in = g.tier[max(tier[t], 0)];
            from[t] = in.base + (size_t)(w - in.tile_begin) * g.blocks_per_tile * KN_BLOCK_BYTES +
                      tile.first_stage * KN_ATOM_BYTES;
            local += tier[t] == 0 ? KN_ATOM_BYTES : 0;
            remote |= tier[t] > 0;
            const uint32_t blocks = (tile.first_stage + tile.stages) / 2 - tile.first_stage / 2;
            if (g.traffic && tier[t] >= 0 && lane == 0)
                ptx_atomic_add_relaxed_u64(&g.traffic[tier[t]].blocks, blocks);
        }
        for (int32_t s = 0; s < tile.stages; s++) {
            ptx_mbarrier_wait(&ring.empty[at.slot], at.parity);
#pragma unroll
            for (int t = 0; t < S::RT; t++) {
                uint8_t *to = ring.w[at.slot] + t * KN_ATOM_BYTES;
                const uint8_t *source = from[t] + (size_t)s * KN_ATOM_BYTES;
                if (tier[t] == 0 && lane == 0)
                    ptx_bulk_load(to, source, KN_ATOM_BYTES, &ring.full[at.slot]);
                if (tier[t] > 0) cu_load_bytes<KN_ATOM_BYTES>(to, source, lane);
            }
            ptx_cp_async_commit();
            pending++;
            cu_ring_step<S::STAGES>(at);
            if (remote) cu_prefill_loads_land<S, FLIGHT - 1>(ring, at, pending, local, lane);
            else cu_prefill_loads_land<S, 0>(ring, at, pending, local, lane);
        }
        cu_prefill_loads_land<S, 0>(ring, at, pending, local, lane);
    }
    /* Peers arrive at the barriers of this CTA: it stays until all have. */
    for (int s = 0; s < S::STAGES; s++, cu_ring_step<S::STAGES>(at))
        ptx_mbarrier_wait(&ring.empty[at.slot], at.parity);
}

template <int RT> static constexpr cu_prefill_variant variant()
{
    using S = cu_prefill_shape<RT, KN_CU_TOKENS_MAX, 2, 1>;
    return {RT, S::TN, S::CR, S::CT, S::THREADS, S::SHARED_USED, sm90_bf16_prefill_gemm<S, true>};
}

static const cu_prefill_variant variants[] = {variant<1>(), variant<2>()};

const cu_prefill_variant *cu_prefill_loads_variants(size_t *count)
{
    *count = ARRAY_COUNT(variants);
    return variants;
}
