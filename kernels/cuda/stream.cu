/*
 * stream.cu - reads memory of any tier once, by bulk copies into shared memory: what a bandwidth
 * probe times, and so the floor that decode steps are held against.
 *
 * One producer lane keeps `blocks` copies of 16 KB in flight; four warps add up what arrived, one
 * block in 0.1 us, well under the 0.46 us that a block takes an SM at full HBM bandwidth.  Blocks
 * are dealt to the CTAs in turn, so that all of them walk through memory together.
 *
 * Readings in a row join without a gap: the next one's CTAs may start once every producer has issued
 * its last copy, and fill their rings while these drain.  Each waits for the one before at its end,
 * so what follows in the stream still finds all of them complete.
 */
#include <cuda_runtime.h>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/stream.h"

#define CONSUMERS 128
#define THREADS (CONSUMERS + 32)

static __device__ uint32_t sum_block(const uint8_t *block, uint32_t bytes)
{
    uint32_t sum = 0;
    for (uint32_t at = threadIdx.x * 16; at < bytes; at += CONSUMERS * 16) {
        const uint4 v = *(const uint4 *)(block + at);
        sum += v.x + v.y + v.z + v.w;
    }
    return sum;
}

static __global__ void __launch_bounds__(THREADS, 1)
    sm90_stream_read(const uint8_t *from, size_t bytes, int blocks, unsigned long long *total)
{
    extern __shared__ __align__(128) uint8_t ring[];
    __shared__ uint64_t full[KN_CU_STREAM_BLOCKS_MAX], empty[KN_CU_STREAM_BLOCKS_MAX];
    const size_t count = (bytes + KN_BLOCK_BYTES - 1) / KN_BLOCK_BYTES;
    if (threadIdx.x == 0) {
        for (int s = 0; s < blocks; s++) {
            ptx_mbarrier_init(&full[s], 1);
            ptx_mbarrier_init(&empty[s], CONSUMERS);
        }
        ptx_fence_mbarrier_init();
    }
    __syncthreads();
    uint32_t parity = 0, sum = 0;
    int s = 0;
    if (threadIdx.x == CONSUMERS) {
        const uint64_t once = ptx_policy_evict_first();
        for (size_t b = blockIdx.x; b < count; b += gridDim.x) {
            const uint32_t size = (uint32_t)min((size_t)KN_BLOCK_BYTES, bytes - b * KN_BLOCK_BYTES);
            ptx_mbarrier_wait(&empty[s], parity ^ 1);
            ptx_mbarrier_expect_tx(&full[s], size);
            ptx_bulk_load_hint(ring + s * KN_BLOCK_BYTES, from + b * KN_BLOCK_BYTES, size, &full[s],
                               once);
            if (++s == blocks) s = 0, parity ^= 1;
        }
        ptx_griddep_launch();
    } else if (threadIdx.x < CONSUMERS) {
        for (size_t b = blockIdx.x; b < count; b += gridDim.x) {
            const uint32_t size = (uint32_t)min((size_t)KN_BLOCK_BYTES, bytes - b * KN_BLOCK_BYTES);
            ptx_mbarrier_wait(&full[s], parity);
            sum += sum_block(ring + s * KN_BLOCK_BYTES, size);
            ptx_mbarrier_arrive(&empty[s]);
            if (++s == blocks) s = 0, parity ^= 1;
        }
        sum = __reduce_add_sync(0xffffffffu, sum);
        if (threadIdx.x % 32 == 0) atomicAdd(total, (unsigned long long)sum);
    }
    ptx_griddep_wait();
}

enum status kn_cu_stream_launch(const void *ptr, size_t bytes, int ctas, int blocks, uint64_t *sum,
                                void *stream, char *err)
{
    const int shared = blocks * KN_BLOCK_BYTES;
    cudaError_t e = cudaFuncSetAttribute(sm90_stream_read,
                                         cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    const cu_launch l(ctas, THREADS, (size_t)shared, stream);
    if (e == cudaSuccess)
        e = cudaLaunchKernelEx(&l.config, sm90_stream_read, (const uint8_t *)ptr, bytes, blocks,
                               (unsigned long long *)sum);
    if (e == cudaSuccess) return ST_OK;
    return err_set(err, ST_DEVICE, "the streaming read could not be launched: %s",
                   cudaGetErrorString(e));
}
