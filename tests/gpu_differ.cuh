/*
 * gpu_differ.cuh - memories of the device compared where they lie.  `bad` is a counter on the
 * device, zero before and after each call.
 */
#ifndef DAKD_TESTS_GPU_DIFFER_CUH
#define DAKD_TESTS_GPU_DIFFER_CUH

#include "tests/gpu_check.cuh"

__global__ void differ_kernel(const uint8_t *a, const uint8_t *b, uint8_t value, size_t n,
                              uint32_t *bad)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x)
        if (a[i] != (b ? b[i] : value)) atomicAdd(bad, 1);
}

/* What kernels have counted. */
static uint32_t gpu_count(uint32_t *bad)
{
    uint32_t n;
    CUDA(cudaMemcpy(&n, bad, sizeof n, cudaMemcpyDeviceToHost));
    CUDA(cudaMemset(bad, 0, sizeof n));
    return n;
}

/* Bytes that x and y differ in, or, where y is NULL, that are not `value`. */
static uint32_t gpu_differs(uint32_t *bad, const void *x, const void *y, uint8_t value, size_t n)
{
    differ_kernel<<<512, 256>>>((const uint8_t *)x, (const uint8_t *)y, value, n, bad);
    return gpu_count(bad);
}

#endif
