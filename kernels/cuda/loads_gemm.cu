/*
 * loads_gemm.cu - the kernels of decode_gemm.cuh and wide_gemm.cuh that read remote weights by
 * plain loads (loads.cuh), in a file of their own for the compiler's sake.
 */
#include "config/check.h"
#include "kernels/cuda/decode_gemm.cuh"
#include "kernels/cuda/wide_gemm.cuh"

template <int TB> static constexpr cu_gemm_variant decode()
{
    using S = cu_gemm_shape<TB>;
    return {TB,
            S::RT,
            S::THREADS,
            S::SHARED_USED,
            S::RESIDENT,
            sm90_bf16_decode_gemm<TB, false, true>,
            sm90_bf16_decode_gemm<TB, true, true>,
            NULL,
            NULL};
}

template <int TB> static constexpr cu_gemm_variant wide()
{
    using S = cu_wide_shape<TB>;
    return {TB,   S::RT, S::THREADS, S::SHARED_USED, 1, sm90_bf16_wide_gemm<TB, true>,
            NULL, NULL,  NULL};
}

static const cu_gemm_variant variants[] = {decode<8>(), decode<16>(), decode<32>(), wide<64>(),
                                           wide<128>()};

const cu_gemm_variant *cu_loads_variants(size_t *count)
{
    *count = ARRAY_COUNT(variants);
    return variants;
}
