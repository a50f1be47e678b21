/*
 * prefill_attention_e4m3.cuh - the warps of prefill attention that turn KV in fp8 into bf16.
 *
 * Where pages are in fp8 copies land in two stages, of K or V of a step's two pages each, elements
 * and scales; a warpgroup of converters reads a stage and writes a slot of the ring just as a copy
 * of bf16 pages would have filled it.  Consumers do not know: e4m3 times a power of two is exact in
 * bf16, so results are those of bf16 pages that hold the same numbers, bit for bit.
 *
 * Cost: a step of 128 keys of 128 dimensions has 32 K elements and 2,048 cycles of products.  A
 * thread has a key: it reads 8 times 16 bytes of K and 8 of V and writes 32 times 16; the SM's
 * shared memory moves 32 KB in and 64 KB out for it, 750 cycles of the 2,048, of which the products
 * read 1,250.  Five instructions for two elements are 640 a thread, a scheduler's third. Predicted:
 * 0.8 of bf16's speed; the bytes that cross a link are half.
 *
 * An e4m3 pair becomes f16, exactly; shifted by three bits an f16 with no more than seven bits of
 * mantissa is a bf16 with its exponent's bias 112 too small; one product with 2^(k + 112) makes up
 * for it and applies the scale 2^k.  -32 <= k <= 7 (e4m3.h), so nothing overflows or is denormal.
 * A row of NaN has a scale of NaN.
 *
 * Rows of V that no token has written become zeros, as do V's pages that no row sees; K's rows may
 * become anything there, for their scores are masked.
 */
#ifndef DAKD_KERNELS_CUDA_PREFILL_ATTENTION_E4M3_CUH
#define DAKD_KERNELS_CUDA_PREFILL_ATTENTION_E4M3_CUH

#include "kernels/cuda/prefill_attention_ring.cuh"
#include "kernels/e4m3.h"

enum { CU_PRE_CONVERTERS = 128 }; /* threads: one for each key of a step */

template <class S> PTX_INLINE void cu_pre_init_stages(cu_pre_shared<S> &sh, bool windows)
{
    static_assert(S::KEYS == CU_PRE_CONVERTERS, "a thread has a key");
    for (int i = 0; i < S::STAGES; i++) {
        ptx_mbarrier_init(&sh.stages.full[i], 1);
        ptx_mbarrier_init(&sh.stages.empty[i], CU_ARRIVALS * CU_PRE_CONVERTERS / 32 + windows);
    }
}

/* Two e4m3 numbers in f16, times the scale, as bf16. */
PTX_INLINE uint32_t cu_pre_scale_pair(uint32_t half2, __nv_bfloat162 scale)
{
    const uint32_t bits = (half2 & 0x7FFF7FFFu) >> 3 | (half2 & 0x80008000u);
    const __nv_bfloat162 scaled = __hmul2(*(const __nv_bfloat162 *)&bits, scale);
    return *(const uint32_t *)&scaled;
}

/* Sixteen dimensions of a key: 16 bytes to twice 16. */
PTX_INLINE void cu_pre_convert_chunk(const uint4 &packed, uint8_t *low, uint8_t *high,
                                     __nv_bfloat162 scale)
{
    const uint32_t word[4] = {packed.x, packed.y, packed.z, packed.w};
    uint32_t pair[8];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        pair[2 * i] = cu_pre_scale_pair(ptx_f16x2_of_e4m3x2_low(word[i]), scale);
        pair[2 * i + 1] = cu_pre_scale_pair(ptx_f16x2_of_e4m3x2_high(word[i]), scale);
    }
    *(uint4 *)low = make_uint4(pair[0], pair[1], pair[2], pair[3]);
    *(uint4 *)high = make_uint4(pair[4], pair[5], pair[6], pair[7]);
}

/* Thread `key` of the converters, until the producer says that there is no more. */
template <class S> PTX_INLINE void cu_pre_convert(cu_pre_shared<S> &sh, int key, int lane)
{
    constexpr int CHUNKS = KN_ATOM_ROW_BYTES / 16;
    const int page = key / KN_PAGE_TOKENS, row = key % KN_PAGE_TOKENS, swizzle = row & 7;
    cu_pre_place from, to;
    for (;; cu_pre_next<S::SLOTS>(to)) {
        ptx_mbarrier_wait(&sh.stages.full[from.slot], from.parity);
        const int what = sh.stages.what[from.slot];
        if (what == CU_PRE_END) break;
        const uint8_t *in = sh.stages.bytes[from.slot] + page * S::STAGE_PAGE_BYTES;
        const bool written = what == CU_PRE_KEYS || row < sh.stages.rows[from.slot][page];
        const uint32_t exponent = in[KN_ATOM_BYTES + row],
                       bits = exponent == KN_E4M3_NAN ? 0x7FC0u : exponent + 112 << 7;
        const uint32_t both = bits << 16 | (bits & 0xFFFF);
        const __nv_bfloat162 scale = *(const __nv_bfloat162 *)&both;
        uint4 packed[CHUNKS]; /* all on their way before the first is used */
#pragma unroll
        for (int c = 0; c < CHUNKS; c++)
            packed[c] = *(const uint4 *)(in + row * KN_ATOM_ROW_BYTES + ((c ^ swizzle) << 4));
#pragma unroll
        for (int c = 0; c < CHUNKS && !written; c++) packed[c] = make_uint4(0, 0, 0, 0);
        cu_pre_release(&sh.stages.empty[from.slot], lane);
        cu_pre_next<S::STAGES>(from);
        uint8_t *out = sh.ring[to.slot] + row * KN_ATOM_ROW_BYTES +
                       page * (what == CU_PRE_KEYS ? KN_ATOM_BYTES : S::HEAD_BYTES);
        const int atom_bytes = what == CU_PRE_KEYS ? S::PAGES * KN_ATOM_BYTES : KN_ATOM_BYTES;
        ptx_mbarrier_wait(&sh.empty[to.slot], to.parity ^ 1);
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            uint8_t *atom = out + c / 4 * atom_bytes;
            cu_pre_convert_chunk(packed[c], atom + ((2 * (c % 4) ^ swizzle) << 4),
                                 atom + ((2 * (c % 4) + 1 ^ swizzle) << 4),
                                 written ? scale : __float2bfloat162_rn(0.f));
        }
        ptx_fence_proxy_async();
        ptx_mbarrier_arrive(&sh.full[to.slot]);
    }
}

#endif
