/*
 * small.cu - embed, norm and gather: a row in, a row out, one CTA a row.
 *
 * Floor: these move a few KB per token and are bound by latency, a launch and trips to L2 (about 2
 * us each while memory is busy).  So the design is about few trips: sm90_norm reads its row once,
 * with all parts of the product that is to be added to it, keeps it in registers (rows of up to
 * 4,096 elements; what is beyond is read again) and writes it where the next product's bulk copies
 * want it.  Of up to 32 tokens an RMS norm after a product has no kernel (gemm_norm.cuh);
 * sm90_square does it elsewhere.
 *
 * Invariants
 *  1. How a row's sum is cut depends on its length alone, so a row comes out the same in every
 * batch.
 *  2. Nothing but weights is read before griddepcontrol.wait, and nothing is written.
 *  3. A norm writes zeros for inputs beyond cols, up to the end of the block of 128.
 */
#include <cuda_runtime.h>

#include "config/check.h"
#include "kernels/cuda/gemm_norm.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/small.h"
#include "kernels/cuda/trace.h"

#define CHUNK 8 /* bf16 elements in 16 bytes: what a thread takes at a time */
#define THREADS_MAX 1024
#define NORM_THREADS 512

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

/* Row `row` of w is read, once. */
static __device__ void count_row(const kn_weight &w, int32_t row, kn_cu_traffic *traffic)
{
    const int32_t tile = row / KN_TILE_ROWS;
#pragma unroll
    for (int t = 0; t < KN_TIER_MAX; t++)
        if ((uint32_t)(tile - w.span[t].tile_begin) < (uint32_t)w.span[t].tile_count)
            ptx_atomic_add_relaxed_u64(&traffic[t].row_bytes, (uint64_t)w.cols * 2);
}

static __global__ void sm90_embed(const __grid_constant__ kn_weight table,
                                  const __grid_constant__ kn_weight pos_table, bool has_positions,
                                  int32_t pos_offset, const int32_t *tokens,
                                  const int32_t *positions, const int32_t *chosen, float *x,
                                  kn_cu_traffic *traffic)
{
    CU_TRACE(EMBED, 0);
    ptx_griddep_launch();
    ptx_griddep_wait();
    CU_TRACE_WAITED();
    const int32_t cols = table.cols;
    int32_t token = tokens[blockIdx.x];
    if (token < 0) token = chosen ? chosen[-1 - token] : 0; /* kn_token_chosen */
    if (token < 0) token = 0; /* none could be chosen: the step is worth nothing, and fails */
    if (traffic && threadIdx.x == 0) {
        count_row(table, token, traffic);
        if (has_positions) count_row(pos_table, positions[blockIdx.x] + pos_offset, traffic);
    }
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

/* Elements 4c..4c+3 of a row of n; zero beyond it.  WHOLE: n is a multiple of 4. */
template <bool WHOLE> static __device__ float4 read_quad(const float *row, int32_t n, int32_t c)
{
    const float *at = row + 4 * c;
    if (WHOLE) return 4 * c < n ? __ldcg((const float4 *)at) : make_float4(0.f, 0.f, 0.f, 0.f);
    return make_float4(4 * c < n ? __ldcg(at) : 0.f, 4 * c + 1 < n ? __ldcg(at + 1) : 0.f,
                       4 * c + 2 < n ? __ldcg(at + 2) : 0.f, 4 * c + 3 < n ? __ldcg(at + 3) : 0.f);
}

template <bool WHOLE> static __device__ void write_quad(float *row, int32_t n, int32_t c, float4 v)
{
    float *at = row + 4 * c;
    if (4 * c >= n) return;
    if (WHOLE) {
        *(float4 *)at = v;
        return;
    }
    at[0] = v.x;
    if (4 * c + 1 < n) at[1] = v.y;
    if (4 * c + 2 < n) at[2] = v.z;
    if (4 * c + 3 < n) at[3] = v.w;
}

static __device__ float4 add(float4 a, float4 b)
{
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

/* To COUNT quads of a row, `step` apart from c on, adds a product's parts, whose row begins at `at`
 * in each.  All loads are on their way before the first is used. */
template <bool WHOLE, int COUNT>
static __device__ void add_parts(float4 (&v)[COUNT], const kn_cu_parts &p, size_t at, int32_t n,
                                 int32_t c, int32_t step)
{
    float4 part[COUNT][KN_CU_PARTS_MAX], bias[COUNT];
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        const int32_t q = c + k * step;
#pragma unroll
        for (int i = 0; i < KN_CU_PARTS_MAX; i++)
            if (i < p.count) part[k][i] = read_quad<WHOLE>(p.sum + i * p.stride + at, n, q);
        if (p.bias) bias[k] = read_quad<WHOLE>(p.bias, n, q);
    }
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        float4 sum = part[k][0];
#pragma unroll
        for (int i = 1; i < KN_CU_PARTS_MAX; i++)
            if (i < p.count) sum = add(sum, part[k][i]);
        v[k] = add(v[k], p.bias ? add(sum, bias[k]) : sum);
    }
}

/* A thread's elements are quads threadIdx.x + k * blockDim.x; it keeps the first HELD of them. */
#define HELD 2

/* The sum of the thread's elements of (x - shift)^power, power 1 or 2. */
template <bool WHOLE>
static __device__ float quad_sums(const float *row, int32_t n, const float4 (&held)[HELD],
                                  float shift, int power)
{
    float sum = 0.f;
#pragma unroll
    for (int k = 0; k < HELD; k++) {
        const int32_t c = threadIdx.x + k * blockDim.x;
        const float d[4] = {held[k].x - shift, held[k].y - shift, held[k].z - shift,
                            held[k].w - shift};
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (4 * c + i < n) sum += power == 2 ? d[i] * d[i] : d[i];
    }
#pragma unroll 1
    for (int32_t c = threadIdx.x + HELD * blockDim.x; 4 * c < n; c += blockDim.x) {
        const float4 v = read_quad<WHOLE>(row, n, c);
        const float d[4] = {v.x - shift, v.y - shift, v.z - shift, v.w - shift};
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (4 * c + i < n) sum += power == 2 ? d[i] * d[i] : d[i];
    }
    return sum;
}

/* Where a token's row goes, and how it is brought there. */
struct norm_out {
    uint8_t *y;
    int32_t bucket, token;
    float mean, scale;
};

static __device__ __forceinline__ int32_t norm_padded(int32_t n)
{
    return (n + 127) / 128 * 128;
}

/* Where a token's row of n goes: y is laid out in chunks of KN_CU_TOKENS_MAX tokens. */
static __device__ __forceinline__ norm_out norm_place(const kn_norm_args &a, int32_t n,
                                                      int32_t token)
{
    const int32_t chunk_begin = token / KN_CU_TOKENS_MAX * KN_CU_TOKENS_MAX;
    const int32_t left = a.row_count - chunk_begin;
    norm_out o;
    o.y = (uint8_t *)a.y + (size_t)chunk_begin * norm_padded(n) * 2;
    o.bucket = kn_cu_bucket_of(left < KN_CU_TOKENS_MAX ? left : KN_CU_TOKENS_MAX);
    o.token = token - chunk_begin;
    return o;
}

/* Beyond the row weight and bias are zero, and so is y. */
static __device__ void write_norm(const norm_out &o, int32_t c, float4 x, float4 w, float4 b)
{
    const __nv_bfloat162 low = __floats2bfloat162_rn((x.x - o.mean) * o.scale * w.x + b.x,
                                                     (x.y - o.mean) * o.scale * w.y + b.y);
    const __nv_bfloat162 high = __floats2bfloat162_rn((x.z - o.mean) * o.scale * w.z + b.z,
                                                      (x.w - o.mean) * o.scale * w.w + b.w);
    *(uint2 *)(o.y + kn_cu_act_offset(o.bucket, o.token, 4 * c)) =
        make_uint2(*(const uint32_t *)&low, *(const uint32_t *)&high);
}

/* 512 threads of 72 registers fit beside two CTAs of the decode GEMM; 1,024 would wait for an SM of
 * their own. */
template <bool WHOLE>
static __global__ void __maxnreg__(WHOLE ? 72 : 80)
    sm90_norm(const __grid_constant__ kn_norm_args a, const __grid_constant__ kn_cu_parts parts)
{
    __shared__ float scratch[32];
    CU_TRACE(NORM, 0);
    ptx_griddep_launch();
    const int32_t n = a.cols, token = blockIdx.x, mine = threadIdx.x, step = blockDim.x;
    const size_t at = (size_t)token * n;
    float *row = (float *)a.x + at;
    const float4 zero = make_float4(0.f, 0.f, 0.f, 0.f);
    float4 weight[HELD], x[HELD];
#pragma unroll
    for (int k = 0; k < HELD; k++) weight[k] = read_quad<WHOLE>(a.weight, n, mine + k * step);
    ptx_griddep_wait(); /* no kernel writes weights */
    CU_TRACE_WAITED();
#pragma unroll
    for (int k = 0; k < HELD; k++) x[k] = read_quad<WHOLE>(row, n, mine + k * step);
    if (parts.count > 0) {
        add_parts<WHOLE>(x, parts, at, n, mine, step);
#pragma unroll
        for (int k = 0; k < HELD; k++) write_quad<WHOLE>(row, n, mine + k * step, x[k]);
#pragma unroll 1
        for (int32_t c = mine + HELD * step; 4 * c < n; c += step) {
            float4 v[1] = {read_quad<WHOLE>(row, n, c)};
            add_parts<WHOLE>(v, parts, at, n, c, 0);
            write_quad<WHOLE>(row, n, c, v[0]);
        }
    }
    norm_out o = norm_place(a, n, token);
    const int32_t padded = norm_padded(n);
    o.mean =
        a.kind == KN_LAYER_NORM ? block_sum(quad_sums<WHOLE>(row, n, x, 0.f, 1), scratch) / n : 0.f;
    o.scale = 1.f / sqrtf(block_sum(quad_sums<WHOLE>(row, n, x, o.mean, 2), scratch) / n + a.eps);
#pragma unroll
    for (int k = 0; k < HELD; k++) {
        const int32_t c = mine + k * step;
        if (4 * c < padded)
            write_norm(o, c, x[k], weight[k], a.bias ? read_quad<WHOLE>(a.bias, n, c) : zero);
    }
#pragma unroll 1
    for (int32_t c = mine + HELD * step; 4 * c < padded; c += step)
        write_norm(o, c, read_quad<WHOLE>(row, n, c), read_quad<WHOLE>(a.weight, n, c),
                   a.bias ? read_quad<WHOLE>(a.bias, n, c) : zero);
}

/* The same of the rows of a prompt, of which there are many and which come in one part.  One CTA of
 * sm90_norm fills an SM's registers and its row's trip to L2 is all there is in flight: measured,
 * 34 us for 2,048 rows of 4,096, where 50 MB take 11.  Here a thread stands for EACH of
 * sm90_norm's, `step` apart, so that six rows of 16 KB are in flight on an SM; what it adds up, and
 * in which order, is the same, bit for bit.  This takes 19 us; with five rows an SM as well, and
 * with CTAs that stay and ask for their next row ahead 22. */
template <int EACH> static __device__ float rows_sum(const float (&v)[EACH], float *scratch)
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    __syncthreads();
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        float sum = v[e];
#pragma unroll
        for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, d);
        if (lane == 0) scratch[e * warps + warp] = sum;
    }
    __syncthreads();
    float sum = lane < EACH * warps ? scratch[lane] : 0.f;
#pragma unroll
    for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, d);
    return sum;
}

template <int EACH, int QUADS>
static __device__ float rows_sums(const float4 (&x)[EACH][QUADS], int32_t n, float shift, int power,
                                  float *scratch)
{
    const int32_t all = EACH * blockDim.x;
    float sums[EACH];
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        sums[e] = 0.f;
#pragma unroll
        for (int k = 0; k < QUADS; k++) {
            const int32_t c = threadIdx.x + e * blockDim.x + k * all;
            const float d[4] = {x[e][k].x - shift, x[e][k].y - shift, x[e][k].z - shift,
                                x[e][k].w - shift};
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (4 * c + i < n) sums[e] += power == 2 ? d[i] * d[i] : d[i];
        }
    }
    return rows_sum<EACH>(sums, scratch);
}

/* As read_quad, of what every row reads: it stays in L1, which nothing else uses. */
static __device__ float4 read_kept(const float *row, int32_t n, int32_t c)
{
    return 4 * c < n ? __ldg((const float4 *)(row + 4 * c)) : make_float4(0.f, 0.f, 0.f, 0.f);
}

template <int EACH, int QUADS>
static __global__ void __launch_bounds__(NORM_THREADS / EACH, EACH == 4 ? 6 : 3)
    sm90_norm_rows(const __grid_constant__ kn_norm_args a)
{
    __shared__ float scratch[32];
    CU_TRACE(NORM, 1);
    ptx_griddep_launch();
    const int32_t n = a.cols, token = blockIdx.x, all = EACH * blockDim.x;
    const float *row = a.x + (size_t)token * n;
    const float4 zero = make_float4(0.f, 0.f, 0.f, 0.f);
    float4 x[EACH][QUADS];
    ptx_griddep_wait();
    CU_TRACE_WAITED();
#pragma unroll
    for (int e = 0; e < EACH; e++)
#pragma unroll
        for (int k = 0; k < QUADS; k++)
            x[e][k] = read_quad<true>(row, n, threadIdx.x + e * blockDim.x + k * all);
    norm_out o = norm_place(a, n, token);
    const int32_t padded = norm_padded(n);
    o.mean = a.kind == KN_LAYER_NORM ? rows_sums<EACH, QUADS>(x, n, 0.f, 1, scratch) / n : 0.f;
    o.scale = 1.f / sqrtf(rows_sums<EACH, QUADS>(x, n, o.mean, 2, scratch) / n + a.eps);
#pragma unroll
    for (int e = 0; e < EACH; e++)
#pragma unroll
        for (int k = 0; k < QUADS; k++) {
            const int32_t c = threadIdx.x + e * blockDim.x + k * all;
            if (4 * c < padded)
                write_norm(o, c, x[e][k], read_kept(a.weight, n, c),
                           a.bias ? read_kept(a.bias, n, c) : zero);
        }
}

/* What a product with a norm after it does at its end (gemm_norm.cuh), where none comes before the
 * norm: four elements a thread. */
static __global__ void sm90_square(const __grid_constant__ kn_norm_args a, float *sums)
{
    CU_TRACE(NORM, 0);
    ptx_griddep_launch();
    const int32_t n = a.cols, bucket = kn_cu_bucket_of(a.row_count), each = gridDim.x / a.row_count;
    const int32_t token = blockIdx.x / each, k = (blockIdx.x % each * 128 + threadIdx.x) * 4;
    const float4 gain = cu_read_four(a.weight, n, k);
    ptx_griddep_wait(); /* no kernel writes weights */
    CU_TRACE_WAITED();
    const float4 x = cu_read_four(a.x + (size_t)token * n, n, k);
    const float squares = cu_sum_squares(x);
    if (k < (n + 127) / 128 * 128)
        *(uint2 *)((char *)a.y + kn_cu_act_offset(bucket, token, k)) = cu_act_four(x, gain);
    if (k % 64 == 0 && k < n) sums[(size_t)token * kn_cu_sums_stride(n) + k / 64] = squares;
}

/* --- parts ------------------------------------------------------------------------------------ */

/* out[T,N] = or += the sum of the parts. */
template <bool WHOLE>
static __global__ void __launch_bounds__(THREADS_MAX)
    sm90_settle(const __grid_constant__ kn_cu_parts parts, int32_t n, bool to_old, float *out)
{
    CU_TRACE(SETTLE, 0);
    ptx_griddep_launch();
    ptx_griddep_wait();
    CU_TRACE_WAITED();
    const size_t at = (size_t)blockIdx.x * n;
    for (int32_t c = threadIdx.x; 4 * c < n; c += blockDim.x) {
        float4 v[1] = {to_old ? read_quad<WHOLE>(out + at, n, c) : make_float4(0.f, 0.f, 0.f, 0.f)};
        add_parts<WHOLE>(v, parts, at, n, c, 0);
        write_quad<WHOLE>(out + at, n, c, v[0]);
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

/* A CTA a row, a thread for every `each` elements of it. */
static int threads_for(int32_t cols, int32_t each, int32_t most)
{
    return (int)size_min(round_up(div_up((size_t)cols, (size_t)each), 32), (size_t)most);
}

static enum status launched(cudaError_t e, const char *what, char *err)
{
    if (e == cudaSuccess) return ST_OK;
    return err_set(err, ST_DEVICE, "%s could not be launched: %s (%s)", what, cudaGetErrorName(e),
                   cudaGetErrorString(e));
}

extern "C" enum status kn_cu_embed_launch(const struct kn_batch *batch,
                                          const struct kn_embed_args *a, const int32_t *chosen,
                                          struct kn_cu_traffic *traffic, void *stream, char *err)
{
    const cu_launch l(batch->token_count, threads_for(a->table->cols, CHUNK, THREADS_MAX), 0,
                      stream);
    const kn_weight none = {};
    CHECK(a->table->dtype == KN_BF16 && (!a->pos_table || a->pos_table->dtype == KN_BF16));
    return launched(cudaLaunchKernelEx(&l.config, sm90_embed, *a->table,
                                       a->pos_table ? *a->pos_table : none, a->pos_table != NULL,
                                       a->pos_offset, batch->tokens, batch->positions, chosen, a->x,
                                       traffic),
                    "embed", err);
}

/* The kernel for the rows of a prompt whose CTAs would have `threads` in sm90_norm, and how many of
 * these a thread stands for; 0 where there is none. */
static int rows_each(const struct kn_norm_args *a, int threads)
{
    if (a->row_count <= KN_CU_TOKENS_MAX || a->cols % 4) return 0;
    const int32_t quads = (a->cols / 4 + threads - 1) / threads;
    if (quads <= 2 && threads % 128 == 0) return 4;
    return quads <= 4 && threads % 64 == 0 ? 2 : 0;
}

extern "C" enum status kn_cu_norm_launch(const struct kn_norm_args *a,
                                         const struct kn_cu_parts *parts, void *stream, char *err)
{
    const kn_cu_parts none = {};
    const int threads = threads_for(a->cols, 4 * HELD, NORM_THREADS),
              each = parts ? 0 : rows_each(a, threads);
    if (each) {
        const cu_launch l(a->row_count, threads / each, 0, stream);
        return launched(cudaLaunchKernelEx(
                            &l.config, each == 4 ? sm90_norm_rows<4, 2> : sm90_norm_rows<2, 4>, *a),
                        "norm", err);
    }
    const cu_launch l(a->row_count, threads, 0, stream);
    return launched(cudaLaunchKernelEx(&l.config, a->cols % 4 ? sm90_norm<false> : sm90_norm<true>,
                                       *a, parts ? *parts : none),
                    "norm", err);
}

extern "C" enum status kn_cu_square_launch(const struct kn_norm_args *a, float *sums, void *stream,
                                           char *err)
{
    CHECK(a->kind == KN_RMS_NORM && !a->bias && a->row_count <= KN_CU_SQUARES_TOKENS);
    const int32_t each = (a->cols + 511) / 512; /* CTAs of a token */
    const cu_launch l(each * a->row_count, 128, 0, stream);
    return launched(cudaLaunchKernelEx(&l.config, sm90_square, *a, sums), "norm", err);
}

extern "C" enum status kn_cu_settle_launch(const struct kn_cu_parts *parts, int32_t rows,
                                           int32_t cols, bool add, float *out, void *stream,
                                           char *err)
{
    const cu_launch l(rows, threads_for(cols, 4, NORM_THREADS), 0, stream);
    return launched(cudaLaunchKernelEx(&l.config, cols % 4 ? sm90_settle<false> : sm90_settle<true>,
                                       *parts, cols, add, out),
                    "adding up a product's parts", err);
}

extern "C" enum status kn_cu_gather_launch(const struct kn_batch *batch, int32_t cols,
                                           const float *x, float *out, void *stream, char *err)
{
    const cu_launch l(batch->row_count, threads_for(cols, 4, NORM_THREADS), 0, stream);
    return launched(cudaLaunchKernelEx(&l.config, sm90_gather, batch->rows, cols, x, out), "gather",
                    err);
}
