/*
 * qkv.cu - what happens between the QKV product and attention: RMSNorm per head, rotary embedding,
 * k and v appended to the pages in bf16 or fp8, q laid out for the matrix instruction.
 *
 * Floor: nothing but latency; a decode step has T * (Hq + 2 Hkv) heads of D floats.  One warp per
 * head, a thread holding pairs (2i, 2i + 1) of the lower half and their partners of the upper half,
 * so that rotation needs no exchange and all accesses are of 4 or 8 bytes.  An append writes the
 * whole 128-byte rows of its atoms, zeros beyond the head dimension included.
 *
 * Room.  This kernel's CTAs stand beside those of the product before it, waiting, and as long as
 * they do they are in the way of attention's, which fetch old pages meanwhile.  Every CTA takes
 * 1 KB of an SM's shared memory, and two of the product leave just that; one of the product and one
 * of attention little more.  So there is one CTA an SM, of 4 to 16 warps, and heads of up to 128
 * have a kernel of their own with 48 registers in place of 64.  Measured in a step of an 8B model
 * on an H200: 12 warps in place of 4 take 1.2 us a layer less at 32 tokens; with 64 registers they
 * took 2.0 us more; 2 warps in place of 4 took 1.4 us more at 8 tokens.
 */
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels/cuda/attention_plan.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/trace.h"
#include "kernels/e4m3.h"

extern "C" {
#include "config/check.h"
}

enum { QKV_WARPS_MIN = 4, QKV_WARPS_MAX = 16 };

struct qkv_params {
    kn_cu_parts qkv;
    const float *q_norm, *k_norm, *rope;
    const int32_t *positions, *token_seq;
    const kn_seq *seqs;
    const kn_page *pages;
    uint8_t *base[KN_TIER_MAX]; /* of this layer's heads */
    size_t page_bytes;
    uint8_t *q, *q_rows; /* where q_rows is not NULL, q goes there */
    float norm_eps;
    int32_t token_count, q_heads, kv_heads, group, head_dim;
};

/* A warp's head: lane l holds dimensions 2l + 64i, 2l + 64i + 1 and those half a head above.
 * PAIRS is 1 for heads of up to 128, 2 for up to 256. */
template <int PAIRS> struct qkv_head {
    float2 low[PAIRS], high[PAIRS];
};

template <int PAIRS>
PTX_INLINE void qkv_norm(qkv_head<PAIRS> &x, const float *weight, float eps, int dim, int lane)
{
    const int half = dim / 2;
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < PAIRS; i++)
        sum += x.low[i].x * x.low[i].x + x.low[i].y * x.low[i].y + x.high[i].x * x.high[i].x +
               x.high[i].y * x.high[i].y;
#pragma unroll
    for (int d = 16; d; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    const float scale = 1.f / sqrtf(sum / (float)dim + eps);
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        const int d = 2 * lane + 64 * i;
        if (d >= half) break;
        const float2 low = *(const float2 *)(weight + d),
                     high = *(const float2 *)(weight + half + d);
        x.low[i] = make_float2(x.low[i].x * scale * low.x, x.low[i].y * scale * low.y);
        x.high[i] = make_float2(x.high[i].x * scale * high.x, x.high[i].y * scale * high.y);
    }
}

/* What a lane needs of a row of the table: D/2 cosines, then D/2 sines. */
template <int PAIRS> struct qkv_angles {
    float2 cos[PAIRS], sin[PAIRS];
};

template <int PAIRS>
PTX_INLINE void qkv_read_angles(qkv_angles<PAIRS> &a, const float *table, int half, int lane)
{
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        const int d = 2 * lane + 64 * i;
        a.cos[i] = table && d < half ? *(const float2 *)(table + d) : make_float2(1.f, 1.f);
        a.sin[i] = table && d < half ? *(const float2 *)(table + half + d) : make_float2(0.f, 0.f);
    }
}

template <int PAIRS> PTX_INLINE void qkv_rotate(qkv_head<PAIRS> &x, const qkv_angles<PAIRS> &a)
{
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        const float2 c = a.cos[i], s = a.sin[i], low = x.low[i], high = x.high[i];
        x.low[i] = make_float2(low.x * c.x - high.x * s.x, low.y * c.y - high.y * s.y);
        x.high[i] = make_float2(high.x * c.x + low.x * s.x, high.y * c.y + low.y * s.y);
    }
}

PTX_INLINE uint32_t qkv_pack(float2 v)
{
    const __nv_bfloat162 pair = __floats2bfloat162_rn(v.x, v.y);
    return *(const uint32_t *)&pair;
}

/* Byte of dimension d in a page's row of K or V. */
PTX_INLINE size_t qkv_row_offset(int row, int d)
{
    return (size_t)(d >> 6) * KN_ATOM_BYTES + cu_atom_offset(row, (d & 63) * 2);
}

template <int PAIRS>
PTX_INLINE void qkv_append(const qkv_params &p, const qkv_head<PAIRS> &x, kn_page page,
                           int position, int kv_head, bool value, int lane)
{
    const int dim = p.head_dim, half = dim / 2, atoms = cu_att_atoms(dim);
    const int row = position % KN_PAGE_TOKENS;
    uint8_t *to = p.base[cu_page_tier(page)] + cu_page_index(page) * p.page_bytes +
                  (size_t)(2 * kv_head + value) * atoms * KN_ATOM_BYTES;
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        const int d = 2 * lane + 64 * i;
        if (d >= half) break;
        *(uint32_t *)(to + qkv_row_offset(row, d)) = qkv_pack(x.low[i]);
        *(uint32_t *)(to + qkv_row_offset(row, half + d)) = qkv_pack(x.high[i]);
    }
    for (int d = dim + 2 * lane; d < atoms * 64; d += 64)
        *(uint32_t *)(to + qkv_row_offset(row, d)) = 0;
}

/* The same in fp8 (kernels/e4m3.h). */
PTX_INLINE void qkv_append_e4m3(const qkv_params &p, const qkv_head<1> &x, kn_page page,
                                int position, int kv_head, bool value, int lane)
{
    const int dim = p.head_dim, half = dim / 2, row = position % KN_PAGE_TOKENS;
    uint8_t *head = p.base[cu_page_tier(page)] + cu_page_index(page) * p.page_bytes +
                    (size_t)kv_head * CU_ATT_E4M3_HEAD_BYTES;
    const float element[4] = {x.low[0].x, x.low[0].y, x.high[0].x, x.high[0].y};
    uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) most = max(most, __float_as_uint(element[i]) & 0x7FFFFFFFu);
    const uint32_t exponent = kn_e4m3_exponent(__reduce_max_sync(0xffffffffu, most));
    const float inverse =
        __uint_as_float(exponent == KN_E4M3_NAN ? 0x7FC00000u : 254 - exponent << 23);
    const uint16_t low = ptx_e4m3x2_of_f32(element[0] * inverse, element[1] * inverse),
                   high = ptx_e4m3x2_of_f32(element[2] * inverse, element[3] * inverse);
    uint8_t *to = head + value * KN_ATOM_BYTES;
    const int d = 2 * lane;
    if (d < half) {
        *(uint16_t *)(to + cu_atom_offset(row, d)) = low;
        *(uint16_t *)(to + cu_atom_offset(row, half + d)) = high;
    }
    for (int i = dim + d; i < KN_ATOM_ROW_BYTES; i += 64)
        *(uint16_t *)(to + cu_atom_offset(row, i)) = 0;
    if (lane == 0) head[CU_ATT_E4M3_ATOMS_BYTES + value * KN_PAGE_TOKENS + row] = (uint8_t)exponent;
}

template <bool E4M3, int PAIRS>
PTX_INLINE void qkv_append_as(const qkv_params &p, const qkv_head<PAIRS> &x, kn_page page,
                              int position, int kv_head, bool value, int lane)
{
    if constexpr (E4M3) qkv_append_e4m3(p, x, page, position, kv_head, value, lane);
    else qkv_append(p, x, page, position, kv_head, value, lane);
}

/* A query head as a row of bf16. */
template <int PAIRS>
PTX_INLINE void qkv_store_row(const qkv_head<PAIRS> &x, uint8_t *to, int dim, int lane)
{
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        const int d = 2 * lane + 64 * i;
        if (d >= dim / 2) break;
        *(uint32_t *)(to + d * 2) = qkv_pack(x.low[i]);
        *(uint32_t *)(to + (dim / 2 + d) * 2) = qkv_pack(x.high[i]);
    }
}

/* Two elements of a query tile, and where the first of a pair lies. */
template <bool E4M3> PTX_INLINE uint32_t qkv_pack_q(float2 v)
{
    if (!E4M3) return qkv_pack(v);
    const __half2 pair = __floats2half2_rn(v.x, v.y);
    return *(const uint32_t *)&pair;
}
template <bool E4M3> PTX_INLINE uint32_t qkv_q_offset(int rows, int row, int d)
{
    return cu_att_q_offset(rows, row, E4M3 ? cu_att_e4m3_slot(d) : d);
}

/* A query head as a row of its tile in the workspace; of a key's the tile's idle rows, zero. */
template <int PAIRS, bool E4M3>
PTX_INLINE void qkv_store_tile(const qkv_params &p, const qkv_head<PAIRS> &x, int token, int head,
                               bool is_q, int lane)
{
    const int dim = p.head_dim, rows = cu_att_rows(p.group), padded = cu_att_atoms(dim) * 64;
    const int kv_head = is_q ? head / p.group : head - p.q_heads;
    uint8_t *q = p.q + ((size_t)token * p.kv_heads + kv_head) * cu_att_q_bytes(p.group, dim);
    if (!is_q) {
        for (int row = p.group; row < rows; row++)
            for (int d = 2 * lane; d < padded; d += 64)
                *(uint32_t *)(q + cu_att_q_offset(rows, row, d)) = 0;
        return;
    }
    const int row = head - kv_head * p.group, half = dim / 2;
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        const int d = 2 * lane + 64 * i;
        if (d >= half) break;
        *(uint32_t *)(q + qkv_q_offset<E4M3>(rows, row, d)) = qkv_pack_q<E4M3>(x.low[i]);
        *(uint32_t *)(q + qkv_q_offset<E4M3>(rows, row, half + d)) = qkv_pack_q<E4M3>(x.high[i]);
    }
    for (int d = dim + 2 * lane; d < padded; d += 64)
        *(uint32_t *)(q + qkv_q_offset<E4M3>(rows, row, d)) = 0;
}

/* The head that begins at `at` of each part. */
template <int PAIRS>
PTX_INLINE void qkv_read(qkv_head<PAIRS> &x, const kn_cu_parts &parts, size_t at, int bias_at,
                         int half, int lane)
{
    float2 low[KN_CU_PARTS_MAX + 1][PAIRS], high[KN_CU_PARTS_MAX + 1][PAIRS];
    const float2 none = make_float2(0.f, 0.f);
#pragma unroll
    for (int k = 0; k <= KN_CU_PARTS_MAX; k++) {
        const bool bias = k == KN_CU_PARTS_MAX, there = bias ? parts.bias != NULL : k < parts.count;
        const float *from = bias ? parts.bias + bias_at : parts.sum + k * parts.stride + at;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            const int d = 2 * lane + 64 * i;
            low[k][i] = there && d < half ? __ldcg((const float2 *)(from + d)) : none;
            high[k][i] = there && d < half ? __ldcg((const float2 *)(from + half + d)) : none;
        }
    }
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        x.low[i] = low[0][i], x.high[i] = high[0][i];
#pragma unroll
        for (int k = 1; k <= KN_CU_PARTS_MAX; k++) {
            x.low[i].x += low[k][i].x, x.low[i].y += low[k][i].y;
            x.high[i].x += high[k][i].x, x.high[i].y += high[k][i].y;
        }
    }
}

/* ROWS: q goes to q_rows; E4M3: KV is in fp8.  Not decided while it runs, for registers are short
 * beside the products. */
template <int PAIRS, bool ROWS, bool E4M3>
__global__ void __launch_bounds__(QKV_WARPS_MAX * 32, 2)
    sm90_qkv_finish(const __grid_constant__ qkv_params p)
{
    CU_TRACE(QKV, 0);
    ptx_griddep_launch();
    const int lane = threadIdx.x & 31, task = (blockIdx.x * blockDim.x + threadIdx.x) >> 5;
    const int heads = p.q_heads + 2 * p.kv_heads, dim = p.head_dim;
    const int token = task / heads, head = task - token * heads;
    if (token >= p.token_count) return;
    /* The batch's arrays and the tables are older than the step's first kernel. */
    const int seq = p.token_seq[token];
    if (seq < 0) return;
    const int position = p.positions[token];
    const kn_page page = p.pages[p.seqs[seq].page_begin + position / KN_PAGE_TOKENS];
    const bool is_q = head < p.q_heads, is_v = head >= p.q_heads + p.kv_heads;
    const float *norm = is_q ? p.q_norm : p.k_norm;
    qkv_angles<PAIRS> angles;
    qkv_read_angles(angles, p.rope ? p.rope + (size_t)position * dim : NULL, dim / 2, lane);
    ptx_griddep_wait();
    CU_TRACE_WAITED();
    qkv_head<PAIRS> x;
    qkv_read(x, p.qkv, ((size_t)token * heads + head) * dim, head * dim, dim / 2, lane);
    if (!is_v && norm) qkv_norm(x, norm, p.norm_eps, dim, lane);
    if (!is_v && p.rope) qkv_rotate(x, angles);
    if (!is_q) {
        const int kv_head = head - p.q_heads - (is_v ? p.kv_heads : 0);
        qkv_append_as<E4M3>(p, x, page, position, kv_head, is_v, lane);
        if (is_v) return;
    }
    if constexpr (ROWS) {
        __syncwarp(); /* all lanes have read what may lie in the same place */
        if (is_q) qkv_store_row(x, p.q_rows + ((size_t)token * heads + head) * dim * 4, dim, lane);
        return;
    }
    qkv_store_tile<PAIRS, E4M3>(p, x, token, head, is_q, lane);
}

/* --- many tokens ---
 *
 * In one part and without a bias: a warp takes MANY_HEADS heads of a token, whose loads are all on
 * their way before the first is used.  One head a warp has 20 KB of them in flight on an SM:
 * measured, with queries for q_rows, 49 us for 2,048 tokens of 48 heads of 128, whose 75 MB take
 * 16; this takes 24, with 8 warps a CTA 27, with 8 heads a warp 26. */
enum { MANY_HEADS = 4, MANY_WARPS = 4 };

template <int PAIRS>
PTX_INLINE void qkv_read_plain(qkv_head<PAIRS> &x, const float *from, int half, int lane)
{
    const float2 none = make_float2(0.f, 0.f);
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        const int d = 2 * lane + 64 * i;
        x.low[i] = d < half ? __ldcg((const float2 *)(from + d)) : none;
        x.high[i] = d < half ? __ldcg((const float2 *)(from + half + d)) : none;
    }
}

template <int PAIRS, bool ROWS, bool E4M3>
__global__ void __launch_bounds__(MANY_WARPS * 32, PAIRS == 1 ? 8 : 4)
    sm90_qkv_many(const __grid_constant__ qkv_params p)
{
    CU_TRACE(QKV, 1);
    ptx_griddep_launch();
    const int lane = threadIdx.x & 31, task = (blockIdx.x * blockDim.x + threadIdx.x) >> 5;
    const int heads = p.q_heads + 2 * p.kv_heads, dim = p.head_dim;
    const int sets = (heads + MANY_HEADS - 1) / MANY_HEADS;
    const int token = task / sets, first = (task - token * sets) * MANY_HEADS;
    if (token >= p.token_count) return;
    ptx_griddep_wait();
    CU_TRACE_WAITED();
    /* First what there is most of: the batch's arrays are three trips to L2 one after another. */
    qkv_head<PAIRS> x[MANY_HEADS];
#pragma unroll
    for (int h = 0; h < MANY_HEADS; h++)
        if (first + h < heads)
            qkv_read_plain(x[h], p.qkv.sum + ((size_t)token * heads + first + h) * dim, dim / 2,
                           lane);
    const int seq = p.token_seq[token], position = p.positions[token];
    if (seq < 0) return;
    qkv_angles<PAIRS> angles;
    qkv_read_angles(angles, p.rope ? p.rope + (size_t)position * dim : NULL, dim / 2, lane);
    const kn_page page = p.pages[p.seqs[seq].page_begin + position / KN_PAGE_TOKENS];
    __syncwarp(); /* all lanes have read what may lie in the same place */
#pragma unroll
    for (int h = 0; h < MANY_HEADS; h++) {
        const int head = first + h;
        if (head >= heads) break;
        const bool is_q = head < p.q_heads, is_v = head >= p.q_heads + p.kv_heads;
        const float *norm = is_q ? p.q_norm : p.k_norm;
        if (!is_v && norm) qkv_norm(x[h], norm, p.norm_eps, dim, lane);
        if (!is_v && p.rope) qkv_rotate(x[h], angles);
        if (!is_q)
            qkv_append_as<E4M3>(p, x[h], page, position, head - p.q_heads - (is_v ? p.kv_heads : 0),
                                is_v, lane);
        else if (ROWS)
            qkv_store_row(x[h], p.q_rows + ((size_t)token * heads + head) * dim * 4, dim, lane);
        if (!ROWS && !is_v) qkv_store_tile<PAIRS, E4M3>(p, x[h], token, head, is_q, lane);
    }
}

typedef void qkv_kernel(qkv_params);

template <bool ROWS> static qkv_kernel *kernel(const struct kn_kv *kv)
{
    if (kv->dtype == KN_E4M3) return sm90_qkv_finish<1, ROWS, true>;
    return kv->head_dim <= 128 ? sm90_qkv_finish<1, ROWS, false> : sm90_qkv_finish<2, ROWS, false>;
}
template <bool ROWS> static qkv_kernel *many_kernel(const struct kn_kv *kv)
{
    if (kv->dtype == KN_E4M3) return sm90_qkv_many<1, ROWS, true>;
    return kv->head_dim <= 128 ? sm90_qkv_many<1, ROWS, false> : sm90_qkv_many<2, ROWS, false>;
}

/* Warps of a CTA: enough to have one CTA an SM, or few where that cannot be. */
static int warps_for(int tasks, int sms)
{
    const int warps = (tasks + 4 * sms - 1) / (4 * sms) * 4;
    return warps <= QKV_WARPS_MAX ? warps : QKV_WARPS_MIN;
}

static enum status launched(cudaError_t e, char *err)
{
    if (e == cudaSuccess) return ST_OK;
    return err_set(err, ST_DEVICE, "launching the QKV finish failed: %s", cudaGetErrorString(e));
}

extern "C" enum status kn_cu_qkv_finish(const struct kn_cu_attention *a,
                                        const struct kn_batch *batch,
                                        const struct kn_cu_qkv_args *args, void *stream, char *err)
{
    const struct kn_cu_attention_shape *s = &a->shape;
    const struct kn_kv *kv = args->kv;
    enum status st = kn_cu_kv_check(kv, err);
    if (st) return st;
    CHECK(kv->kv_heads == s->kv_heads && kv->head_dim == s->head_dim);
    CHECK(args->q_rows || batch->token_count <= s->tokens_max);
    qkv_params p;
    p.qkv = args->qkv;
    p.q_norm = args->q_norm;
    p.k_norm = args->k_norm;
    p.rope = args->rope;
    p.positions = batch->positions;
    p.token_seq = batch->token_seq;
    p.seqs = batch->seqs;
    p.pages = batch->pages;
    for (int t = 0; t < KN_TIER_MAX; t++)
        p.base[t] = (uint8_t *)kv->base[t] + args->layer * kn_kv_layer_bytes(kv);
    p.page_bytes = kn_kv_page_bytes(kv);
    p.q = a->q;
    p.q_rows = (uint8_t *)args->q_rows;
    p.norm_eps = args->norm_eps;
    p.token_count = batch->token_count;
    p.q_heads = s->q_heads;
    p.kv_heads = s->kv_heads;
    p.group = s->q_heads / s->kv_heads;
    p.head_dim = s->head_dim;
    cudaError_t e;
    const int heads = p.q_heads + 2 * p.kv_heads, tasks = p.token_count * heads;
    if ((p.q_rows || p.token_count > KN_CU_TOKENS_MAX) && p.qkv.count == 1 && !p.qkv.bias) {
        const int sets = p.token_count * ((heads + MANY_HEADS - 1) / MANY_HEADS);
        const cu_launch l((sets + MANY_WARPS - 1) / MANY_WARPS, MANY_WARPS * 32, 0, stream);
        e = cudaLaunchKernelEx(&l.config, p.q_rows ? many_kernel<true>(kv) : many_kernel<false>(kv),
                               p);
        return launched(e, err);
    }
    const int warps = warps_for(tasks, a->cta_count);
    const cu_launch l((tasks + warps - 1) / warps, warps * 32, 0, stream);
    e = cudaLaunchKernelEx(&l.config, p.q_rows ? kernel<true>(kv) : kernel<false>(kv), p);
    return launched(e, err);
}
