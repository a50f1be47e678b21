/*
 * stream.cu - reads memory of any tier once, by bulk copies into shared memory: what a bandwidth
 * probe times, and so the floor that decode steps are held against.  It should show what memory
 * gives, not what this kernel loses.
 *
 * One producer lane keeps `blocks` copies of 16 KB in flight; four warps add up what arrived, one
 * block in 0.1 us, well under the 0.46 us that a block takes an SM at full HBM bandwidth.
 *
 * SMs are not equally fast, and with equal shares all would wait for the slowest: after a first
 * share, CTAs take runs of blocks as they come to need them.  A run is asked for one ahead.
 *
 * Readings in a row join without a gap: the next one's CTAs may start once every producer has
 * issued its last copy, and fetch their first shares while these drain.  Only then do they wait for
 * the readings before, so what follows in the stream finds all of them complete, and so that a
 * ticket counter is never used by two: readings use two counters in turn, each clearing the
 * other's.
 */
#include <cuda_runtime.h>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/release.cuh"
#include "kernels/cuda/stream.h"

#define CONSUMERS 128
#define THREADS (CONSUMERS + 32)
#define RUN_BYTES ((size_t)4 * KN_BLOCK_BYTES)
#define FIRST_RUNS 2 /* runs of a CTA that nobody else may take */

static __device__ uint32_t sum_block(const uint8_t *block, uint32_t bytes)
{
    uint32_t sum = 0;
    for (uint32_t at = threadIdx.x * 16; at < bytes; at += CONSUMERS * 16) {
        const uint4 v = *(const uint4 *)(block + at);
        sum += v.x + v.y + v.z + v.w;
    }
    return sum;
}

/* Issues the blocks of a run, and counts them in n. */
struct stream_ring {
    uint8_t *data; /* [blocks][16 KB] */
    uint64_t *full, *empty;
    uint32_t *bytes; /* of the block in each slot; 0: there are no more */
    int blocks;
};

static __device__ void issue_run(const stream_ring &r, const uint8_t *from, size_t bytes,
                                 size_t run, uint32_t *n, uint64_t policy)
{
    for (size_t at = run * RUN_BYTES; at < bytes && at < (run + 1) * RUN_BYTES;
         at += KN_BLOCK_BYTES, ++*n) {
        const uint32_t size = (uint32_t)min((size_t)KN_BLOCK_BYTES, bytes - at), s = *n % r.blocks;
        ptx_mbarrier_wait(&r.empty[s], (*n / r.blocks & 1) ^ 1);
        r.bytes[s] = size;
        ptx_mbarrier_expect_tx(&r.full[s], size);
        ptx_bulk_load_hint(r.data + s * KN_BLOCK_BYTES, from + at, size, &r.full[s], policy);
    }
}

static __device__ void produce(const stream_ring &r, const uint8_t *from, size_t bytes,
                               struct kn_cu_stream_state *state, unsigned turn)
{
    const uint64_t once = ptx_policy_evict_first();
    uint32_t n = 0;
    for (int i = 0; i < FIRST_RUNS; i++)
        issue_run(r, from, bytes, blockIdx.x + i * gridDim.x, &n, once);
    ptx_griddep_wait();
    if (blockIdx.x == 0) state->ticket[turn ^ 1] = 0;
    const size_t first = FIRST_RUNS * gridDim.x, end = (bytes + RUN_BYTES - 1) / RUN_BYTES;
    size_t run = first + atomicAdd(&state->ticket[turn], 1u);
    while (run < end) {
        const uint32_t next = atomicAdd(&state->ticket[turn], 1u);
        issue_run(r, from, bytes, run, &n, once);
        run = first + next;
    }
    ptx_griddep_launch();
    const uint32_t s = n % r.blocks;
    ptx_mbarrier_wait(&r.empty[s], (n / r.blocks & 1) ^ 1);
    r.bytes[s] = 0;
    ptx_mbarrier_arrive(&r.full[s]);
}

static __global__ void __launch_bounds__(THREADS, 1)
    sm90_stream_read(const uint8_t *from, size_t bytes, int blocks,
                     struct kn_cu_stream_state *state, unsigned turn)
{
    extern __shared__ __align__(128) uint8_t ring[];
    __shared__ uint64_t full[KN_CU_STREAM_BLOCKS_MAX], empty[KN_CU_STREAM_BLOCKS_MAX];
    __shared__ uint32_t sizes[KN_CU_STREAM_BLOCKS_MAX];
    const stream_ring r = {ring, full, empty, sizes, blocks};
    if (threadIdx.x == 0) {
        for (int s = 0; s < blocks; s++) {
            ptx_mbarrier_init(&full[s], 1);
            ptx_mbarrier_init(&empty[s], CU_ARRIVALS * CONSUMERS / 32);
        }
        ptx_fence_mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x == CONSUMERS) produce(r, from, bytes, state, turn);
    if (threadIdx.x >= CONSUMERS) return;
    uint32_t sum = 0;
    for (uint32_t n = 0;; n++) {
        const uint32_t s = n % blocks;
        ptx_mbarrier_wait(&full[s], n / blocks & 1);
        const uint32_t size = sizes[s];
        if (size == 0) break;
        sum += sum_block(ring + s * KN_BLOCK_BYTES, size);
        __syncwarp();
        cu_release(&empty[s], threadIdx.x % 32);
    }
    ptx_griddep_wait();
    sum = __reduce_add_sync(0xffffffffu, sum);
    if (threadIdx.x % 32 == 0) atomicAdd((unsigned long long *)&state->sum, sum);
}

enum status kn_cu_stream_launch(const void *ptr, size_t bytes, int ctas, int blocks,
                                struct kn_cu_stream_state *state, unsigned turn, void *stream,
                                char *err)
{
    const int shared = blocks * KN_BLOCK_BYTES;
    cudaError_t e =
        cudaFuncSetAttribute(sm90_stream_read, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    const cu_launch l(ctas, THREADS, (size_t)shared, stream);
    if (e == cudaSuccess)
        e = cudaLaunchKernelEx(&l.config, sm90_stream_read, (const uint8_t *)ptr, bytes, blocks,
                               state, turn & 1);
    if (e == cudaSuccess) return ST_OK;
    return err_set(err, ST_DEVICE, "the streaming read could not be launched: %s",
                   cudaGetErrorString(e));
}
