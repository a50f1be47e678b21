/*
 * gpu_check.cuh - what the GPU test programs share: counted checks, checked CUDA calls, and random
 * data that is a function of (seed, row, column), so that kernels under test read it from memory
 * and the reference computes it anew, without going through any layout.
 */
#ifndef DAKD_TESTS_GPU_CHECK_CUH
#define DAKD_TESTS_GPU_CHECK_CUH

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <vector>

struct tally {
    int passed, failed;
};

#define EXPECT(tally, cond, ...)                                                                   \
    do {                                                                                           \
        if (cond) {                                                                                \
            (tally)->passed++;                                                                     \
        } else {                                                                                   \
            (tally)->failed++;                                                                     \
            printf("FAILED %s:%d: %s: ", __FILE__, __LINE__, #cond);                               \
            printf(__VA_ARGS__);                                                                   \
            printf("\n");                                                                          \
        }                                                                                          \
    } while (0)

/* A failed CUDA call ends the program: nothing after it could be trusted. */
#define CUDA(call)                                                                                 \
    do {                                                                                           \
        cudaError_t cuda_error = (call);                                                           \
        if (cuda_error != cudaSuccess) {                                                           \
            printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(cuda_error));  \
            exit(2);                                                                               \
        }                                                                                          \
    } while (0)

#define STATUS(call, err)                                                                          \
    do {                                                                                           \
        if ((call) != ST_OK) {                                                                     \
            printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, err);                             \
            exit(2);                                                                               \
        }                                                                                          \
    } while (0)

/* A copy in the device's memory, which the caller frees. */
template <typename T> static T *to_device(const std::vector<T> &v)
{
    T *p;
    CUDA(cudaMalloc(&p, std::max<size_t>(v.size(), 1) * sizeof(T)));
    CUDA(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}

__host__ __device__ static inline uint32_t random_bits(uint32_t seed, uint32_t row, uint32_t col)
{
    uint32_t h = seed * 0x9E3779B9u ^ row * 0x85EBCA6Bu ^ col * 0xC2B2AE35u;
    h = (h ^ h >> 16) * 0x7FEB352Du;
    h = (h ^ h >> 15) * 0x846CA68Bu;
    return h ^ h >> 16;
}

/* Uniform in [-scale, scale), rounded to bf16. */
__host__ __device__ static inline float random_bf16(uint32_t seed, uint32_t row, uint32_t col,
                                                    float scale)
{
    float u = (float)(random_bits(seed, row, col) >> 8) * 0x1p-23f - 1.f;
    return __bfloat162float(__float2bfloat16(u * scale));
}

#endif
