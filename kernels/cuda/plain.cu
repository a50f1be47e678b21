/*
 * plain.cu - what happens between the QKV product and attention, and attention in its plainest
 * form: a CTA for each token and query head, which walks the pages in order with plain loads from
 * whatever tier they lie in.  Correct for every shape (any head size up to 512, any group, windows,
 * mixed steps) and slow: it reads a page once for every query.  For shapes the fast kernels do not
 * take.
 *
 * Invariant: the order of every sum depends on the head's size and the sequence's length alone.
 */
#include <cuda_runtime.h>

#include "config/check.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/plain.h"
#include "kernels/cuda/ptx.cuh"

#define WARPS 8
#define LANE_DIMS (KN_HEAD_DIM_MAX / 32)
#define ATTENTION_THREADS 128

static __device__ float warp_sum(float v)
{
#pragma unroll
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xFFFFFFFFu, v, d);
    return v;
}

static __device__ size_t head_bytes(const kn_kv &kv)
{
    return (size_t)((kv.head_dim + 63) / 64) * 2 * KN_ATOM_BYTES;
}

/* The K atoms of a head in a page; its V atoms follow, head_bytes / 2 later. */
static __device__ uint8_t *kv_head(const kn_kv &kv, int32_t layer, int32_t head, kn_page page)
{
    const size_t layer_bytes = kv.kv_heads * head_bytes(kv);
    return (uint8_t *)kv.base[page >> 28] +
           (size_t)(page & 0x0FFFFFFFu) * kv.layer_count * layer_bytes + layer * layer_bytes +
           head * head_bytes(kv);
}

static __device__ __nv_bfloat16 *kv_element(uint8_t *atoms, uint32_t row, uint32_t d)
{
    const uint32_t byte = d % 64 * 2;
    return (__nv_bfloat16 *)(atoms + (size_t)(d / 64) * KN_ATOM_BYTES + row * KN_ATOM_ROW_BYTES +
                             ((byte / 16) ^ (row & 7)) * 16 + byte % 16);
}

/* A warp for each token and head; lane l has dimensions l, l + 32, ... */
static __global__ void sm90_plain_qkv(const __grid_constant__ kn_batch b,
                                      const __grid_constant__ kn_qkv_args a,
                                      const __grid_constant__ kn_kv kv)
{
    __shared__ float head_of[WARPS][KN_HEAD_DIM_MAX];
    ptx_griddep_launch();
    ptx_griddep_wait();
    const int32_t lane = threadIdx.x % 32, heads = a.q_heads + 2 * kv.kv_heads;
    const int32_t head = blockIdx.x * WARPS + threadIdx.x / 32, token = blockIdx.y;
    const int32_t dim = kv.head_dim, half = dim / 2, position = b.positions[token];
    if (head >= heads) return;
    float *x = (float *)a.qkv + ((size_t)token * heads + head) * dim;
    float *h = head_of[threadIdx.x / 32];
    const bool is_q = head < a.q_heads, is_v = head >= a.q_heads + kv.kv_heads;
    const float *norm = is_v ? NULL : is_q ? a.q_norm : a.k_norm;

    float square = 0.f;
    for (int32_t d = lane; d < dim; d += 32) {
        h[d] = __ldcg(x + d);
        square += h[d] * h[d];
    }
    if (norm) {
        const float scale = 1.f / sqrtf(warp_sum(square) / dim + a.norm_eps);
        for (int32_t d = lane; d < dim; d += 32) h[d] = h[d] * scale * norm[d];
    }
    __syncwarp();
    if (a.rope && !is_v) {
        const float *cosine = a.rope + (size_t)position * dim, *sine = cosine + half;
        for (int32_t d = lane; d < half; d += 32) {
            const float low = h[d], high = h[d + half];
            h[d] = low * cosine[d] - high * sine[d];
            h[d + half] = high * cosine[d] + low * sine[d];
        }
        __syncwarp();
    }
    if (is_q) {
        for (int32_t d = lane; d < dim; d += 32) x[d] = h[d];
        return;
    }
    const kn_seq seq = b.seqs[b.token_seq[token]];
    const kn_page page = b.pages[seq.page_begin + position / KN_PAGE_TOKENS];
    uint8_t *atoms = kv_head(kv, a.layer, (head - a.q_heads) % kv.kv_heads, page) +
                     (is_v ? head_bytes(kv) / 2 : 0);
    for (int32_t d = lane; d < (dim + 63) / 64 * 64; d += 32)
        *kv_element(atoms, position % KN_PAGE_TOKENS, d) = __float2bfloat16(d < dim ? h[d] : 0.f);
}

/* One query head of one token.  Scores of a page: two threads a position, each half the dimensions;
 * then each thread sums its dimensions of V. */
static __global__ void sm90_plain_attention(const __grid_constant__ kn_batch b,
                                            const __grid_constant__ kn_attention_args a,
                                            const __grid_constant__ kn_kv kv)
{
    __shared__ float q[KN_HEAD_DIM_MAX], score[KN_PAGE_TOKENS];
    ptx_griddep_launch();
    ptx_griddep_wait();
    const int32_t tid = threadIdx.x, head = blockIdx.x, token = blockIdx.y;
    const int32_t dim = kv.head_dim, group = a.q_heads / kv.kv_heads;
    const kn_seq seq = b.seqs[b.token_seq[token]];
    const int32_t position = b.positions[token];
    const int32_t first = a.window > 0 && position >= a.window ? position - a.window + 1 : 0;
    const float *from =
        (const float *)a.qkv + ((size_t)token * (a.q_heads + 2 * kv.kv_heads) + head) * dim;
    for (int32_t d = tid; d < dim; d += ATTENTION_THREADS) q[d] = __ldcg(from + d);
    __syncthreads();

    float top = -INFINITY, total = 0.f, acc[KN_HEAD_DIM_MAX / ATTENTION_THREADS] = {0.f};
    for (int32_t p = first / KN_PAGE_TOKENS; p <= position / KN_PAGE_TOKENS; p++) {
        uint8_t *k = kv_head(kv, a.layer, head / group, b.pages[seq.page_begin + p]);
        uint8_t *v = k + head_bytes(kv) / 2;
        const int32_t row = tid / 2, at = p * KN_PAGE_TOKENS + row;
        float dot = 0.f;
        for (int32_t d = tid % 2; d < dim; d += 2)
            dot += q[d] * __bfloat162float(*kv_element(k, row, d));
        dot += __shfl_xor_sync(0xFFFFFFFFu, dot, 1);
        if (tid % 2 == 0) score[row] = at >= first && at <= position ? dot * a.scale : -INFINITY;
        __syncthreads();
        float page_top = -INFINITY;
        for (int32_t r = 0; r < KN_PAGE_TOKENS; r++) page_top = fmaxf(page_top, score[r]);
        const float next = fmaxf(top, page_top), keep = __expf(top - next);
        total *= keep;
#pragma unroll
        for (int i = 0; i < KN_HEAD_DIM_MAX / ATTENTION_THREADS; i++) acc[i] *= keep;
        for (int32_t r = 0; r < KN_PAGE_TOKENS; r++) {
            if (score[r] == -INFINITY) continue; /* beyond the sequence memory may hold anything */
            const float weight = __expf(score[r] - next);
            total += weight;
#pragma unroll
            for (int i = 0; i < KN_HEAD_DIM_MAX / ATTENTION_THREADS; i++) {
                const int32_t d = i * ATTENTION_THREADS + tid;
                if (d < dim) acc[i] += weight * __bfloat162float(*kv_element(v, r, d));
            }
        }
        top = next;
        __syncthreads();
    }

    const int32_t begin = token / KN_CU_TOKENS_MAX * KN_CU_TOKENS_MAX, left = b.token_count - begin;
    int32_t bucket = 8, cols = a.q_heads * dim;
    while (bucket < KN_CU_TOKENS_MAX && bucket < left) bucket *= 2;
    uint8_t *out = (uint8_t *)a.out + (size_t)begin * ((cols + 127) / 128 * 128) * 2;
#pragma unroll
    for (int i = 0; i < KN_HEAD_DIM_MAX / ATTENTION_THREADS; i++) {
        const int32_t d = i * ATTENTION_THREADS + tid;
        if (d < dim)
            *(__nv_bfloat16 *)(out + kn_cu_act_offset(bucket, token - begin, head * dim + d)) =
                __float2bfloat16(acc[i] / total);
    }
    if (head > 0) return;
    for (int32_t k = cols + tid; k < (cols + 127) / 128 * 128; k += ATTENTION_THREADS)
        *(__nv_bfloat16 *)(out + kn_cu_act_offset(bucket, token - begin, k)) =
            __float2bfloat16(0.f);
}

static enum status launched(const char *what, cudaError_t e, char *err)
{
    if (e == cudaSuccess) return ST_OK;
    return err_set(err, ST_DEVICE, "%s could not be launched: %s (%s)", what, cudaGetErrorName(e),
                   cudaGetErrorString(e));
}

static void dependent(cudaLaunchConfig_t *c, cudaLaunchAttribute *attribute, void *stream)
{
    attribute->id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute->val.programmaticStreamSerializationAllowed = 1;
    c->stream = (cudaStream_t)stream;
    c->attrs = attribute;
    c->numAttrs = 1;
}

extern "C" enum status kn_cu_plain_qkv_launch(const struct kn_batch *batch,
                                              const struct kn_qkv_args *a, void *stream, char *err)
{
    cudaLaunchConfig_t c = {};
    cudaLaunchAttribute attribute = {};
    const int32_t heads = a->q_heads + 2 * a->kv->kv_heads;
    CHECK(batch->token_count < 65536);
    dependent(&c, &attribute, stream);
    c.gridDim = dim3((unsigned)div_up((size_t)heads, WARPS), (unsigned)batch->token_count);
    c.blockDim = dim3(WARPS * 32);
    return launched("qkv", cudaLaunchKernelEx(&c, sm90_plain_qkv, *batch, *a, *a->kv), err);
}

extern "C" enum status kn_cu_plain_attention_launch(const struct kn_batch *batch,
                                                    const struct kn_attention_args *a, void *stream,
                                                    char *err)
{
    cudaLaunchConfig_t c = {};
    cudaLaunchAttribute attribute = {};
    CHECK(batch->token_count < 65536);
    dependent(&c, &attribute, stream);
    c.gridDim = dim3((unsigned)a->q_heads, (unsigned)batch->token_count);
    c.blockDim = dim3(ATTENTION_THREADS);
    return launched("attention", cudaLaunchKernelEx(&c, sm90_plain_attention, *batch, *a, *a->kv),
                    err);
}
