/*
 * gemm.cu - the host side of the decode GEMM: which tiles a shape gets, and its launch.  The kernel
 * and its reasons are in decode_gemm.cuh.
 */
#include <cuda_runtime.h>
#include <string.h>

#include "config/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/decode_gemm.cuh"

typedef void (*cu_gemm_kernel)(cu_gemm);

struct cu_gemm_variant {
    int32_t bucket, group_tiles, threads, shared_bytes, resident, fragments;
    cu_gemm_kernel kernel;
};

template <int TB, int RT> static constexpr cu_gemm_variant variant()
{
    using S = cu_gemm_shape<TB, RT>;
    return {TB,
            RT,
            S::THREADS,
            S::SHARED_USED,
            S::RESIDENT,
            S::FRAGMENTS,
            sm90_bf16_decode_gemm<TB, RT>};
}

static const cu_gemm_variant variants[] = {
    variant<8, 1>(),   variant<8, 2>(),   variant<8, 4>(),   variant<16, 1>(), variant<16, 2>(),
    variant<16, 4>(),  variant<32, 2>(),  variant<32, 4>(),  variant<64, 2>(), variant<64, 4>(),
    variant<128, 2>(), variant<128, 4>(), variant<256, 2>(),
};

static const cu_gemm_variant *find_variant(int32_t bucket, int32_t group_tiles)
{
    for (size_t i = 0; i < ARRAY_COUNT(variants); i++)
        if (variants[i].bucket == bucket && variants[i].group_tiles == group_tiles)
            return &variants[i];
    return NULL;
}

extern "C" int32_t kn_cu_gemm_resident(int32_t bucket, int32_t group_tiles)
{
    const cu_gemm_variant *v = find_variant(bucket, group_tiles);
    return v ? v->resident : 0;
}

extern "C" int32_t kn_cu_gemm_cluster_max(int32_t bucket, int32_t group_tiles)
{
    const cu_gemm_variant *v = find_variant(bucket, group_tiles);
    return !v ? 0 : v->fragments < 8 ? v->fragments : 8;
}

static enum status cuda_failed(cudaError_t e, const char *what, char *err)
{
    return err_set(err, ST_DEVICE, "%s failed: %s", what, cudaGetErrorString(e));
}

extern "C" int32_t kn_cu_bucket(int32_t tokens)
{
    CHECK(tokens >= 1 && tokens <= KN_CU_TOKENS_MAX);
    return kn_cu_bucket_of(tokens);
}

extern "C" size_t kn_cu_act_bytes(int32_t bucket, int32_t cols)
{
    return div_up((size_t)cols, 128) * (size_t)bucket * 256;
}

extern "C" enum status kn_cu_gemm_init(char *err)
{
    int device, major = 0, minor = 0;
    cudaError_t e = cudaGetDevice(&device);
    if (e == cudaSuccess)
        e = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (e == cudaSuccess)
        e = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    if (e != cudaSuccess) return cuda_failed(e, "asking the GPU for its compute capability", err);
    if (major != 9 || minor != 0)
        return err_set(err, ST_UNSUPPORTED,
                       "the GPU has compute capability %d.%d; the CUDA kernels need 9.0 (Hopper)",
                       major, minor);
    for (size_t i = 0; i < ARRAY_COUNT(variants); i++) {
        e = cudaFuncSetAttribute((const void *)variants[i].kernel,
                                 cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 variants[i].shared_bytes);
        if (e != cudaSuccess)
            return cuda_failed(e, "reserving shared memory for the decode GEMM", err);
    }
    return ST_OK;
}

extern "C" void kn_cu_gemm_plan_derive(int32_t rows, int32_t sm_count, struct kn_cu_gemm_plan *plan)
{
    int32_t tiles = (rows + 63) / 64;
    plan->group_count = (tiles + plan->group_tiles - 1) / plan->group_tiles;
    int32_t clusters = sm_count * plan->ctas_per_sm / plan->cluster;
    if (clusters < 1) clusters = 1;
    plan->grid = (plan->group_count < clusters ? plan->group_count : clusters) * plan->cluster;
}

/* Measured over the choices of group height, cluster and CTAs per SM at the shapes of an 8B model
 * on an H200, each shape alone and within a step (tests/gpu_gemm.cu --tune).  A cluster costs 1 to
 * 2 us at the end of each unit that the ring has no room to hide, so K is cut only where there are
 * too few groups for all SMs; two CTAs per SM hide one another's waits where both fit. */
extern "C" void kn_cu_gemm_plan(int32_t rows, int32_t cols, int32_t tokens, int32_t sm_count,
                                struct kn_cu_gemm_plan *out)
{
    CHECK(rows > 0 && cols > 0 && sm_count > 0);
    const int32_t bucket = kn_cu_bucket(tokens), blocks = (cols + 127) / 128;
    const bool few = bucket <= 16;
    struct kn_cu_gemm_plan p = {bucket, few ? 1 : 2, 1, bucket <= 32 ? 2 : 1, 0, 0};
    const int32_t cluster_max = kn_cu_gemm_cluster_max(bucket, p.group_tiles);
    const int32_t groups = ((rows + 63) / 64 + p.group_tiles - 1) / p.group_tiles;
    if (groups < (few ? 2 : 1) * sm_count) {
        int32_t wanted = bucket == 32 ? 4 : 2;
        while (groups * wanted * (bucket <= 32 ? 2 : 4) <= sm_count) wanted *= 2;
        while (p.cluster < wanted && p.cluster < cluster_max && blocks >= p.cluster * 4)
            p.cluster *= 2;
        if (few) p.ctas_per_sm = 1;
    }
    kn_cu_gemm_plan_derive(rows, sm_count, &p);
    *out = p;
}

/* Which groups are read as which tier's: a remote tier's are those with any of its tiles, less
 * those an earlier remote tier has; the local tier's are the rest, and lie together because spans
 * do. */
static void assign_groups(const struct kn_weight *w, const struct kn_cu_gemm_plan *plan, cu_gemm *g)
{
    const int32_t rt = plan->group_tiles;
    for (int j = 0; j < KN_TIER_MAX; j++) {
        g->tier[j].base = (const uint8_t *)w->span[j].base;
        g->tier[j].tile_begin = w->span[j].tile_begin;
        g->tier[j].tile_end = w->span[j].tile_begin + w->span[j].tile_count;
    }
    for (int j = 1; j < KN_TIER_MAX; j++) {
        cu_gemm_tier *t = &g->tier[j];
        if (t->tile_begin == t->tile_end) continue;
        int32_t begin = t->tile_begin / rt, end = (t->tile_end + rt - 1) / rt;
        for (int i = 1; i < j; i++) {
            const cu_gemm_tier *o = &g->tier[i];
            if (o->group_count == 0) continue;
            if (begin >= o->group_begin && begin < o->group_begin + o->group_count)
                begin = o->group_begin + o->group_count;
            if (end > o->group_begin && end <= o->group_begin + o->group_count)
                end = o->group_begin;
        }
        t->group_begin = begin;
        t->group_count = end > begin ? end - begin : 0;
    }
    int32_t begin = -1, count = 0;
    for (int32_t group = 0; group < plan->group_count; group++) {
        bool remote = false;
        for (int j = 1; j < KN_TIER_MAX; j++)
            remote |= group >= g->tier[j].group_begin &&
                      group < g->tier[j].group_begin + g->tier[j].group_count;
        if (remote) continue;
        if (begin < 0) begin = group;
        CHECK(group == begin + count);
        count++;
    }
    g->tier[0].group_begin = begin < 0 ? 0 : begin;
    g->tier[0].group_count = count;
}

static void check_args(const struct kn_cu_gemm_plan *plan, const struct kn_cu_gemm_args *a)
{
    const struct kn_weight *w = a->w;
    int32_t tiles = 0, remote = 0;
    for (int j = 0; j < KN_TIER_MAX; j++) {
        tiles += w->span[j].tile_count;
        if (j > 0) remote += w->span[j].tile_count;
        CHECK(w->span[j].tile_count == 0 || (uintptr_t)w->span[j].base % KN_ALIGN == 0);
    }
    CHECK(tiles == w->tile_count);
    CHECK(remote == 0 || a->windows);
    CHECK(plan->bucket == kn_cu_bucket(a->tokens));
    CHECK(plan->group_count == (w->tile_count + plan->group_tiles - 1) / plan->group_tiles);
    CHECK((uintptr_t)a->in % KN_ALIGN == 0);
    CHECK(plan->cluster <= kn_cu_gemm_cluster_max(plan->bucket, plan->group_tiles));
}

extern "C" enum status kn_cu_gemm_launch(const struct kn_cu_gemm_plan *plan,
                                         const struct kn_cu_gemm_args *a, void *stream, char *err)
{
    const struct kn_weight *w = a->w;
    if (w->dtype != KN_BF16)
        return err_set(err, ST_UNSUPPORTED,
                       "%s weights are not supported on the GPU yet: convert the model to bfloat16",
                       kn_dtype_name(w->dtype));
    check_args(plan, a);
    const cu_gemm_variant *v = find_variant(plan->bucket, plan->group_tiles);
    CHECK(v);
    cu_gemm g;
    memset(&g, 0, sizeof g);
    assign_groups(w, plan, &g);
    g.tile_count = w->tile_count;
    g.blocks_per_tile = w->blocks_per_tile;
    g.cluster = plan->cluster;
    g.rank_blocks = (w->blocks_per_tile + plan->cluster - 1) / plan->cluster;
    g.x = (const uint8_t *)a->in;
    g.bias = a->bias;
    g.out = a->out;
    g.rows = w->rows;
    g.tokens = a->tokens;
    g.epilogue = a->epilogue;
    g.windows = g.tier[0].group_count == plan->group_count ? NULL : a->windows;
    g.traffic = a->traffic;

    const cu_launch l(plan->grid, v->threads, (size_t)v->shared_bytes, stream, a->dependent,
                      plan->cluster);
    cudaError_t e = cudaLaunchKernelEx(&l.config, v->kernel, g);
    return e == cudaSuccess ? ST_OK : cuda_failed(e, "launching a decode GEMM", err);
}
