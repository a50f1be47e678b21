/*
 * wide_gemm.cu - the kernels of wide_gemm.cuh, in a file of their own for the compiler's sake.
 */
#include "config/check.h"
#include "kernels/cuda/wide_gemm.cuh"

template <int TB> static constexpr cu_gemm_variant variant()
{
    using S = cu_wide_shape<TB>;
    return {TB,         S::RT,
            S::THREADS, S::SHARED_USED,
            1,          sm90_bf16_wide_gemm<TB>,
            NULL,       sm90_bf16_wide_gemm<TB, false, true>,
            NULL};
}

static const cu_gemm_variant variants[] = {variant<64>(), variant<128>()};

const cu_gemm_variant *cu_wide_variants(size_t *count)
{
    *count = ARRAY_COUNT(variants);
    return variants;
}
