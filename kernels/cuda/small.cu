/*
 * small.cu - embed, norm and gather: a row in, a row out, one CTA a row.
 *
 * Floor: these move a few KB per token and are bound by latency, a launch and two or three trips to
 * L2 (about 2 us each).  Prediction for a step of 64 layers: norms cost 128 x 2 us, of which
 * programmatic dependent launch hides the launch.  So the design is about few trips: a norm reads
 * its row once, eight elements a thread, keeps them in registers (rows of up to 8,192 elements;
 * longer ones are read again) and writes 16-byte chunks where the next product's bulk copies want
 * them.
 *
 * Invariants
 *  1. How a row's sum is cut depends on its length alone, so a row comes out the same in every
 * batch.
 *  2. Nothing is read or written before griddepcontrol.wait: these kernels pass on what a kernel
 *     before the previous one wrote.
 *  3. A norm writes zeros for inputs beyond cols, up to the end of the block of 128.
 */
#include <cuda_runtime.h>

#include "config/check.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/small.h"
#include "kernels/cuda/trace.h"

#define CHUNK 8 /* bf16 elements in 16 bytes: what a thread takes at a time */
#define THREADS_MAX 1024

/* --- embed ------------------------------------------------------------------------------------ */

/* Elements 8c..8c+7 of a row of a bf16 weight. */
static __device__ void weight_chunk(const kn_weight &w, int32_t row, int32_t c, float out[CHUNK])
{
    const int32_t tile = row / KN_TILE_ROWS;
    const uint8_t *base = NULL;
#pragma unroll
    for (int t = 0; t < KN_TIER_MAX; t++) {
        const int32_t i = tile - w.span[t].tile_begin;
        if (i >= 0 && i < w.span[t].tile_count)
            base = (const uint8_t *)w.span[t].base + (size_t)i * w.blocks_per_tile * KN_BLOCK_BYTES;
    }
    const size_t atom = (size_t)(c / 8) * KN_ATOM_BYTES;
    const unsigned r = (unsigned)row % KN_TILE_ROWS;
    const uint4 raw =
        *(const uint4 *)(base + atom + r * KN_ATOM_ROW_BYTES + (((unsigned)c % 8) ^ (r & 7)) * 16);
    const uint32_t word[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[2 * i] = __uint_as_float(word[i] << 16);
        out[2 * i + 1] = __uint_as_float(word[i] & 0xFFFF0000u);
    }
}

static __global__ void sm90_embed(const __grid_constant__ kn_weight table,
                                  const __grid_constant__ kn_weight pos_table, bool has_positions,
                                  int32_t pos_offset, const int32_t *tokens,
                                  const int32_t *positions, float *x)
{
    CU_TRACE(EMBED, 0);
    ptx_griddep_launch();
    ptx_griddep_wait();
    CU_TRACE_WAITED();
    const int32_t cols = table.cols, token = tokens[blockIdx.x];
    float *out = x + (size_t)blockIdx.x * cols;
    for (int32_t c = threadIdx.x; c * CHUNK < cols; c += blockDim.x) {
        float v[CHUNK], p[CHUNK];
        weight_chunk(table, token, c, v);
        if (has_positions) weight_chunk(pos_table, positions[blockIdx.x] + pos_offset, c, p);
#pragma unroll
        for (int i = 0; i < CHUNK; i++)
            if (c * CHUNK + i < cols) out[c * CHUNK + i] = has_positions ? v[i] + p[i] : v[i];
    }
}

/* --- norm ------------------------------------------------------------------------------------- */

/* The sum of one value a thread, in every thread; the order depends on the CTA's size alone. */
static __device__ float block_sum(float v, float *scratch)
{
#pragma unroll
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xFFFFFFFFu, v, d);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    __syncthreads();
    if (lane == 0) scratch[warp] = v;
    __syncthreads();
    v = lane < warps ? scratch[lane] : 0.f;
#pragma unroll
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xFFFFFFFFu, v, d);
    return v;
}

/* Elements 8c..8c+7 of a row of n; zero beyond it. */
static __device__ void row_chunk(const float *row, int32_t n, int32_t c, float out[CHUNK])
{
    if (n % 4 == 0 && c * CHUNK + CHUNK <= n) {
        const float4 a = __ldcg((const float4 *)(row + c * CHUNK));
        const float4 b = __ldcg((const float4 *)(row + c * CHUNK + 4));
        out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
        out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
        return;
    }
#pragma unroll
    for (int i = 0; i < CHUNK; i++) out[i] = c * CHUNK + i < n ? __ldcg(row + c * CHUNK + i) : 0.f;
}

/* The sum over the thread's chunks of (x - shift)^power, power 1 or 2.  first is its first chunk.
 */
static __device__ float chunk_sums(const float *row, int32_t n, const float first[CHUNK],
                                   float shift, int power)
{
    float sum = 0.f, v[CHUNK];
    for (int32_t c = threadIdx.x; c * CHUNK < n; c += blockDim.x) {
        if (c != (int32_t)threadIdx.x) row_chunk(row, n, c, v);
#pragma unroll
        for (int i = 0; i < CHUNK; i++) {
            const float d = (c == (int32_t)threadIdx.x ? first[i] : v[i]) - shift;
            if (c * CHUNK + i < n) sum += power == 2 ? d * d : d;
        }
    }
    return sum;
}

static __global__ void __launch_bounds__(THREADS_MAX)
    sm90_norm(const __grid_constant__ kn_norm_args a)
{
    __shared__ float scratch[32];
    CU_TRACE(NORM, 0);
    ptx_griddep_launch();
    ptx_griddep_wait();
    CU_TRACE_WAITED();
    const int32_t n = a.cols, token = blockIdx.x;
    const float *row = a.x + (size_t)token * n;
    float first[CHUNK], v[CHUNK], mean = 0.f;
    row_chunk(row, n, threadIdx.x, first);
    if (a.kind == KN_LAYER_NORM) mean = block_sum(chunk_sums(row, n, first, 0.f, 1), scratch) / n;
    const float square = block_sum(chunk_sums(row, n, first, mean, 2), scratch) / n;
    const float scale = 1.f / sqrtf(square + a.eps);

    const int32_t chunk_begin = token / KN_CU_TOKENS_MAX * KN_CU_TOKENS_MAX;
    const int32_t left = a.row_count - chunk_begin;
    const int32_t bucket = kn_cu_bucket_of(left < KN_CU_TOKENS_MAX ? left : KN_CU_TOKENS_MAX);
    const size_t padded = ((size_t)n + 127) / 128 * 128;
    uint8_t *y = (uint8_t *)a.y + (size_t)chunk_begin * padded * 2;
    for (int32_t c = threadIdx.x; c * CHUNK < (int32_t)padded; c += blockDim.x) {
        uint32_t word[CHUNK / 2];
        if (c == (int32_t)threadIdx.x) {
#pragma unroll
            for (int i = 0; i < CHUNK; i++) v[i] = first[i];
        } else {
            row_chunk(row, n, c, v);
        }
#pragma unroll
        for (int i = 0; i < CHUNK; i++) {
            const int32_t k = c * CHUNK + i;
            v[i] = k < n ? (v[i] - mean) * scale * a.weight[k] + (a.bias ? a.bias[k] : 0.f) : 0.f;
        }
#pragma unroll
        for (int i = 0; i < CHUNK / 2; i++) {
            const __nv_bfloat162 pair = __floats2bfloat162_rn(v[2 * i], v[2 * i + 1]);
            word[i] = *(const uint32_t *)&pair;
        }
        *(uint4 *)(y + kn_cu_act_offset(bucket, token - chunk_begin, c * CHUNK)) =
            make_uint4(word[0], word[1], word[2], word[3]);
    }
}

/* --- gather ----------------------------------------------------------------------------------- */

static __global__ void sm90_gather(const int32_t *rows, int32_t cols, const float *x, float *out)
{
    CU_TRACE(GATHER, 0);
    ptx_griddep_launch();
    ptx_griddep_wait();
    CU_TRACE_WAITED();
    const float *from = x + (size_t)rows[blockIdx.x] * cols;
    float *to = out + (size_t)blockIdx.x * cols;
    for (int32_t i = threadIdx.x; i < cols; i += blockDim.x) to[i] = __ldcg(from + i);
}

/* --- launches --------------------------------------------------------------------------------- */

/* A CTA a row, a thread for each chunk of it. */
static int threads_for(int32_t cols)
{
    return (int)size_min(round_up(div_up((size_t)cols, CHUNK), 32), THREADS_MAX);
}

static enum status launched(cudaError_t e, const char *what, char *err)
{
    if (e == cudaSuccess) return ST_OK;
    return err_set(err, ST_DEVICE, "%s could not be launched: %s (%s)", what, cudaGetErrorName(e),
                   cudaGetErrorString(e));
}

extern "C" enum status kn_cu_embed_launch(const struct kn_batch *batch,
                                          const struct kn_embed_args *a, void *stream, char *err)
{
    const cu_launch l(batch->token_count, threads_for(a->table->cols), 0, stream);
    const kn_weight none = {};
    CHECK(a->table->dtype == KN_BF16 && (!a->pos_table || a->pos_table->dtype == KN_BF16));
    return launched(cudaLaunchKernelEx(&l.config, sm90_embed, *a->table,
                                       a->pos_table ? *a->pos_table : none, a->pos_table != NULL,
                                       a->pos_offset, batch->tokens, batch->positions, a->x),
                    "embed", err);
}

extern "C" enum status kn_cu_norm_launch(const struct kn_norm_args *a, void *stream, char *err)
{
    const cu_launch l(a->row_count, threads_for(a->cols), 0, stream);
    return launched(cudaLaunchKernelEx(&l.config, sm90_norm, *a), "norm", err);
}

extern "C" enum status kn_cu_gather_launch(const struct kn_batch *batch, int32_t cols,
                                           const float *x, float *out, void *stream, char *err)
{
    const cu_launch l(batch->row_count, threads_for(cols), 0, stream);
    return launched(cudaLaunchKernelEx(&l.config, sm90_gather, batch->rows, cols, x, out), "gather",
                    err);
}
