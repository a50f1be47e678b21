/*
 * matrix.cu - what the tensor cores give: bf16 products m64n256k16 of random matrices that lie in
 * shared memory, two warpgroups on every SM, nothing fetched and nothing stored.  A probe of the
 * peak times it, and what prefill reaches is held against that.
 *
 * Which peak it is.  An SM does 4,096 operations a clock in bf16, 989 TFLOPS of 132 SMs at 1.83
 * GHz. Random operands make a Hopper card reach its power limit within milliseconds, and the clock
 * falls: so the datasheet's figure is none that any product can have.  This one is: the rate over
 * at least 100 ms (offload/probe.c) of the instruction that the products of prompts use, with
 * operands as they have them (both from shared memory, 64 inputs a stage, four stages in turn,
 * random signs, exponents and mantissas), less everything a product must do besides.  A real
 * product moves its operands too, and the power that takes the tensor cores cannot have.
 */
#include <cuda_runtime.h>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/matrix.h"
#include "kernels/cuda/ptx.cuh"

enum {
    WARPGROUPS = 2,
    TOKENS = 256,
    STAGES = 4,
    ROUNDS = 2048, /* stages multiplied by a launch: 0.5 us each */
    A_BYTES = WARPGROUPS * KN_ATOM_BYTES,
    B_BYTES = TOKENS * KN_ATOM_ROW_BYTES,
    SHARED_BYTES = STAGES * (A_BYTES + B_BYTES)
};

/* Two bf16 of random sign and mantissa, between 1/2 and 2. */
static __device__ uint32_t random_pair(uint32_t i)
{
    i = (i + 1) * 0x9E3779B9u;
    i = (i ^ i >> 16) * 0x85EBCA6Bu;
    i = (i ^ i >> 13) * 0xC2B2AE35u;
    return ((i ^ i >> 16) & 0x80FF80FFu) | 0x3F003F00u;
}

static __global__ void __launch_bounds__(WARPGROUPS * 128, 1) sm90_matrix(float *sink)
{
    extern __shared__ __align__(1024) uint8_t shared[];
    for (int i = threadIdx.x; i < SHARED_BYTES / 4; i += blockDim.x)
        ((uint32_t *)shared)[i] = random_pair(blockIdx.x * (SHARED_BYTES / 4) + i);
    ptx_fence_proxy_async();
    __syncthreads();
    float d[TOKENS / 2] = {};
    const uint32_t a = ptx_shared(shared) + threadIdx.x / 128 * KN_ATOM_BYTES,
                   b = ptx_shared(shared) + STAGES * A_BYTES;
    ptx_wgmma_registers(d);
    for (int round = 0; round < ROUNDS; round++) {
        const int s = round % STAGES;
        const uint64_t ad = ptx_wgmma_descriptor(a + s * A_BYTES),
                       bd = ptx_wgmma_descriptor(b + s * B_BYTES);
        ptx_wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; k++) ptx_wgmma<TOKENS>(d, ad + 2 * k, bd + 2 * k, true);
        ptx_wgmma_commit();
        ptx_wgmma_wait<1>();
    }
    ptx_wgmma_wait<0>();
    float sum = 0;
#pragma unroll
    for (int i = 0; i < TOKENS / 2; i++) sum += d[i];
    if (sum == 12345.678f) *sink = sum; /* so that no compiler leaves the products out */
}

extern "C" double kn_cu_matrix_operations(int sm_count)
{
    return 2.0 * sm_count * ROUNDS * WARPGROUPS * 64 * TOKENS * 64;
}

extern "C" enum status kn_cu_matrix_launch(int sm_count, float *sink, void *stream, char *err)
{
    cudaError_t e = cudaFuncSetAttribute(sm90_matrix, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         SHARED_BYTES);
    const cu_launch l(sm_count, WARPGROUPS * 128, SHARED_BYTES, stream, false);
    if (e == cudaSuccess) e = cudaLaunchKernelEx(&l.config, sm90_matrix, sink);
    if (e == cudaSuccess) return ST_OK;
    return err_set(err, ST_DEVICE, "the products of matrices could not be launched: %s",
                   cudaGetErrorString(e));
}
