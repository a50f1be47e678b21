/*
 * decode_attention.cu - the workspace of attention, its kernel, and the kernel's launcher.
 */
#include <cuda_runtime.h>

#include "kernels/cuda/decode_attention_e4m3.cuh"
#include "kernels/cuda/launch.cuh"

extern "C" {
#include "config/check.h"
}

enum { MEMORY_ALIGN = 256 };

/* --- the kernel --- */

template <int ATOMS, int ROWS>
__global__ void __launch_bounds__(cu_att_shape<ATOMS, ROWS>::THREADS)
    __maxnreg__((cu_att_shape<ATOMS, ROWS>::REGISTERS))
        sm90_decode_attention(const __grid_constant__ cu_att_params p)
{
    CU_TRACE(ATTENTION, 0);
    using shape = cu_att_shape<ATOMS, ROWS>;
    extern __shared__ __align__(1024) uint8_t shared[]; /* no swizzle unit reads it: 16 would do */
    cu_att_shared<ATOMS, ROWS> &sh =
        *(cu_att_shared<ATOMS, ROWS> *)(shared + p.stages * shape::STAGE_BYTES);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const cu_att_role role = cu_att_role_of(p, blockIdx.x, gridDim.x);
    /* Nothing to do: lets the next kernel in, which waits for those who have. */
    if (role.spread_pages && role.rank >= role.local_items) return;
    if (threadIdx.x == 0) {
        for (int s = 0; s < p.stages; s++) {
            ptx_mbarrier_init(&sh.full[s], 1);
            ptx_mbarrier_init(&sh.empty[s], CU_ARRIVALS * shape::CONSUMERS + (role.tier != 0));
        }
        ptx_mbarrier_init(&sh.finished_full, 32 * shape::CONSUMERS);
        ptx_mbarrier_init(&sh.finished_empty, 32 * shape::COMBINERS);
        ptx_fence_mbarrier_init();
    }
    __syncthreads();
    if (warp < shape::CONSUMERS) {
        if constexpr (ATOMS == CU_ATT_E4M3) cu_att_consume_e4m3<ROWS>(p, sh, warp, lane);
        else cu_att_consume<ATOMS, ROWS>(p, sh, warp, lane);
    } else if (warp == shape::CONSUMERS) {
        if (role.tier == 0) cu_att_produce<ATOMS, ROWS, false>(p, sh, role, lane);
        else cu_att_produce<ATOMS, ROWS, true>(p, sh, role, lane);
    } else if (warp == shape::CONSUMERS + 1) {
        if (role.tier == 0) CU_TRACE_WAITED();
        else if (lane == 0) cu_att_poll(p, sh);
    } else {
        cu_att_combine(p, sh, role.spread_pages, threadIdx.x - 32 * (shape::CONSUMERS + 2));
    }
}

/* --- sizes and layout --- */

static enum status launched(cudaError_t e, const char *what, char *err)
{
    if (e == cudaSuccess) return ST_OK;
    return err_set(err, ST_DEVICE, "launching %s failed: %s", what, cudaGetErrorString(e));
}

static int32_t units_max(const struct kn_cu_attention_shape *s)
{
    return CU_ATT_FAN * s->tokens_max + s->pages_max / 4;
}

static size_t padded(size_t bytes)
{
    return (bytes + MEMORY_ALIGN - 1) / MEMORY_ALIGN * MEMORY_ALIGN;
}

static uint8_t *carve(uint8_t **at, size_t bytes)
{
    uint8_t *p = *at;
    *at += padded(bytes);
    return p;
}

static enum status check_head_dim(int32_t head_dim, char *err)
{
    const int32_t atoms = cu_att_atoms(head_dim);
    if (head_dim > 0 && head_dim % 8 == 0 && (atoms == 1 || atoms == 2 || atoms == 4)) return ST_OK;
    return err_set(err, ST_UNSUPPORTED,
                   "head dimension %d: the GPU kernels take multiples of 8 up to 128, and from "
                   "200 to 256; run this model on the CPU backend",
                   head_dim);
}

extern "C" enum status kn_cu_kv_check(const struct kn_kv *kv, char *err)
{
    enum status st = check_head_dim(kv->head_dim, err);
    if (st || kv->dtype == KN_BF16) return st;
    if (kv->dtype != KN_E4M3)
        return err_set(err, ST_UNSUPPORTED,
                       "the GPU keeps KV in bfloat16 or fp8, not %s: give --kv-cache-dtype "
                       "bfloat16, or --device cpu",
                       kn_dtype_name(kv->dtype));
    if (kv->head_dim > 64 && kv->head_dim <= 128) return ST_OK;
    return err_set(err, ST_UNSUPPORTED,
                   "fp8 KV for heads of %d dimensions: the GPU has kernels for 65 to 128; give "
                   "--kv-cache-dtype bfloat16, or --device cpu",
                   kv->head_dim);
}

extern "C" int32_t kn_cu_attention_unit_count(int32_t pages)
{
    return ((pages - 1) >> kn_cut_unit_shift(pages)) + 1;
}

extern "C" size_t kn_cu_attention_plan_bytes(const struct kn_cu_attention *a)
{
    return padded(sizeof(kn_cu_plan_head)) +
           padded(KN_TIER_MAX * sizeof(kn_cu_unit) * a->units_max);
}

extern "C" void kn_cu_attention_plan_init(const struct kn_cu_attention *a,
                                          struct kn_cu_attention_plan *plan, void *memory)
{
    uint8_t *at = (uint8_t *)memory;
    plan->head = (kn_cu_plan_head *)carve(&at, sizeof(kn_cu_plan_head));
    plan->units = (kn_cu_unit *)carve(&at, KN_TIER_MAX * sizeof(kn_cu_unit) * a->units_max);
}

/* Lays out from `base` and returns the end. */
static uint8_t *lay_out(struct kn_cu_attention *a, uint8_t *base)
{
    const struct kn_cu_attention_shape *s = &a->shape;
    const size_t units = a->units_max, group = s->q_heads / s->kv_heads;
    uint8_t *at = base;
    kn_cu_attention_plan_init(a, &a->plan, carve(&at, kn_cu_attention_plan_bytes(a)));
    a->q = carve(&at, (size_t)s->tokens_max * s->kv_heads * cu_att_q_bytes(group, s->head_dim));
    const size_t groups = units / 4 + s->tokens_max, row_bytes = s->q_heads * sizeof(uint32_t);
    a->partial = (uint32_t *)carve(&at, units * s->head_dim * row_bytes);
    a->partial_ml = (uint32_t *)carve(&at, units * 2 * row_bytes);
    a->group_partial = (uint32_t *)carve(&at, groups * s->head_dim * row_bytes);
    a->group_ml = (uint32_t *)carve(&at, groups * 2 * row_bytes);
    a->group_count = (uint32_t *)carve(&at, units * s->kv_heads * sizeof(uint32_t));
    a->root_count = (uint32_t *)carve(&at, units * s->kv_heads * sizeof(uint32_t));
    return at;
}

extern "C" enum status kn_cu_attention_bytes(const struct kn_cu_attention_shape *s, size_t *bytes,
                                             char *err)
{
    if (s->q_heads <= 0 || s->kv_heads <= 0 || s->q_heads % s->kv_heads || s->tokens_max <= 0 ||
        s->pages_max <= 0)
        return err_set(err, ST_INVALID,
                       "attention of %d query and %d kv-heads, %d tokens, %d pages", s->q_heads,
                       s->kv_heads, s->tokens_max, s->pages_max);
    if (s->tokens_max > KN_CU_ATTENTION_TOKENS)
        return err_set(err, ST_UNSUPPORTED, "attention of %d tokens at once: at most %d",
                       s->tokens_max, KN_CU_ATTENTION_TOKENS);
    enum status st = check_head_dim(s->head_dim, err);
    if (st) return st;
    if (s->q_heads / s->kv_heads > CU_ATT_GROUP_MAX)
        return err_set(err, ST_UNSUPPORTED,
                       "%d query heads for a kv-head: the GPU kernels take at most %d; run this "
                       "model on the CPU backend",
                       s->q_heads / s->kv_heads, CU_ATT_GROUP_MAX);
    struct kn_cu_attention a = {};
    a.shape = *s;
    a.units_max = units_max(s);
    *bytes = (size_t)(lay_out(&a, NULL) - (uint8_t *)NULL);
    return ST_OK;
}

enum {
    SHARED_MAX = 227 * 1024,
    SHARED_HALF = 113 * 1024, /* leaves an SM room for the next kernel's CTA */
};

/* Ring stages: six keep HBM busy; five do where that lets the next kernel in. */
template <int ATOMS, int ROWS> static int ring_stages(int group)
{
    for (int stages = CU_ATT_STAGES_MAX; stages >= 5; stages--)
        if (cu_att_shared_bytes<ATOMS, ROWS>(stages, group) <= SHARED_HALF) return stages;
    return CU_ATT_STAGES_MAX;
}

template <int ATOMS, int ROWS> static cudaError_t allow_shared()
{
    static_assert(cu_att_shared_bytes<ATOMS, ROWS>(CU_ATT_STAGES_MAX, ROWS) <= SHARED_MAX);
    return cudaFuncSetAttribute(sm90_decode_attention<ATOMS, ROWS>,
                                cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_MAX);
}

extern "C" enum status kn_cu_attention_init(struct kn_cu_attention *a,
                                            const struct kn_cu_attention_shape *s, void *memory,
                                            char *err)
{
    size_t bytes;
    enum status st = kn_cu_attention_bytes(s, &bytes, err);
    if (st) return st;
    memset(a, 0, sizeof *a);
    a->shape = *s;
    a->units_max = units_max(s);
    lay_out(a, (uint8_t *)memory);
    int device;
    cudaError_t e = cudaGetDevice(&device);
    if (!e) e = cudaDeviceGetAttribute(&a->cta_count, cudaDevAttrMultiProcessorCount, device);
    if (!e) e = allow_shared<1, 8>();
    if (!e) e = allow_shared<1, 16>();
    if (!e) e = allow_shared<2, 8>();
    if (!e) e = allow_shared<2, 16>();
    if (!e) e = allow_shared<4, 8>();
    if (!e) e = allow_shared<4, 16>();
    if (!e) e = allow_shared<CU_ATT_E4M3, 8>();
    if (!e) e = allow_shared<CU_ATT_E4M3, 16>();
    if (e) return err_set(err, ST_DEVICE, "setting up attention failed: %s", cudaGetErrorString(e));
    return ST_OK;
}

/* --- launchers --- */

template <int ATOMS, int ROWS>
static cudaError_t launch(const struct kn_cu_attention *a, cu_att_params &p, void *stream)
{
    p.stages = ring_stages<ATOMS, ROWS>(p.group);
    p.row_shift = 0;
    while (p.group << p.row_shift < 32 * cu_att_shape<ATOMS, ROWS>::COMBINERS) p.row_shift++;
    if (p.group << p.row_shift > 32 * cu_att_shape<ATOMS, ROWS>::COMBINERS) p.row_shift--;
    const cu_launch l(a->cta_count, cu_att_shape<ATOMS, ROWS>::THREADS,
                      cu_att_shared_bytes<ATOMS, ROWS>(p.stages, p.group), stream);
    return cudaLaunchKernelEx(&l.config, sm90_decode_attention<ATOMS, ROWS>, p);
}

extern "C" enum status kn_cu_decode_attention(const struct kn_cu_attention *a,
                                              const struct kn_cu_attention_plan *plan,
                                              const struct kn_batch *batch,
                                              const struct kn_cu_attention_args *args, void *stream,
                                              char *err)
{
    const struct kn_cu_attention_shape *s = &a->shape;
    const struct kn_kv *kv = args->kv;
    enum status st = kn_cu_kv_check(kv, err);
    if (st) return st;
    CHECK(kv->kv_heads == s->kv_heads && kv->head_dim == s->head_dim);
    CHECK(args->scale > 0 && args->token_rows % 8 == 0);
    CHECK(args->query_begin + batch->token_count <= s->tokens_max);
    CHECK(batch->token_count <= KN_CU_TOKENS_MAX || args->token_rows == KN_CU_TOKENS_MAX);
    cu_att_params p;
    p.units = plan->units;
    p.head = plan->head;
    p.pages = batch->pages;
    for (int t = 0; t < KN_TIER_MAX; t++)
        p.base[t] = (const uint8_t *)kv->base[t] + args->layer * kn_kv_layer_bytes(kv);
    p.page_bytes = kn_kv_page_bytes(kv);
    p.q = a->q + (size_t)args->query_begin * s->kv_heads *
                     cu_att_q_bytes(s->q_heads / s->kv_heads, s->head_dim);
    p.partial = a->partial;
    p.partial_ml = a->partial_ml;
    p.group_partial = a->group_partial;
    p.group_ml = a->group_ml;
    p.group_count = a->group_count;
    p.root_count = a->root_count;
    p.out = (uint8_t *)args->out;
    p.traffic = args->traffic;
    p.units_max = a->units_max;
    p.token_rows = args->token_rows;
    p.chunk_skip = (int32_t)args->chunk_bytes - KN_CU_TOKENS_MAX * KN_ATOM_ROW_BYTES;
    p.q_heads = s->q_heads;
    p.kv_heads = s->kv_heads;
    p.kv_heads_inverse = s->kv_heads == 1 ? 0 : (uint32_t)((1ull << 32) / s->kv_heads + 1);
    p.group = s->q_heads / s->kv_heads;
    p.head_dim = s->head_dim;
    p.scale_log2 = args->scale * 1.44269504088896340736f;
    const bool wide = cu_att_rows(p.group) == 16;
    cudaError_t e = cudaErrorInvalidValue;
    switch (kv->dtype == KN_E4M3 ? CU_ATT_E4M3 : cu_att_atoms(s->head_dim)) {
    case 1: e = wide ? launch<1, 16>(a, p, stream) : launch<1, 8>(a, p, stream); break;
    case 2: e = wide ? launch<2, 16>(a, p, stream) : launch<2, 8>(a, p, stream); break;
    case 4: e = wide ? launch<4, 16>(a, p, stream) : launch<4, 8>(a, p, stream); break;
    case CU_ATT_E4M3:
        e = wide ? launch<CU_ATT_E4M3, 16>(a, p, stream) : launch<CU_ATT_E4M3, 8>(a, p, stream);
        break;
    }
    return launched(e, "decode attention", err);
}
