/*
 * gemm.cu - the host side of the decode GEMM: which tiles a shape gets, and its launch.  The
 * kernels and their reasons are in decode_gemm.cuh (up to 32 tokens), wide_gemm.cuh and loads.cuh.
 */
#include <cuda_runtime.h>
#include <string.h>

#include "config/check.h"
#include "kernels/cuda/decode_gemm.cuh"
#include "kernels/cuda/launch.cuh"

template <int TB> static constexpr cu_gemm_variant decode()
{
    using S = cu_gemm_shape<TB>;
    return {TB,
            1,
            S::THREADS,
            S::SHARED_USED,
            S::RESIDENT,
            sm90_bf16_decode_gemm<TB, false>,
            sm90_bf16_decode_gemm<TB, true>,
            sm90_bf16_decode_gemm<TB, false, false, true>,
            sm90_bf16_decode_gemm<TB, true, false, true>};
}

static const cu_gemm_variant variants[] = {decode<8>(), decode<16>(), decode<32>()};

static const cu_gemm_variant *find_in(const cu_gemm_variant *v, size_t count, int32_t bucket,
                                      int32_t group_tiles)
{
    for (size_t i = 0; i < count; i++)
        if (v[i].bucket == bucket && v[i].group_tiles == group_tiles) return &v[i];
    return NULL;
}

static const cu_gemm_variant *find_variant(int32_t bucket, int32_t group_tiles, bool loads)
{
    size_t count;
    const cu_gemm_variant *others = loads ? cu_loads_variants(&count) : cu_wide_variants(&count),
                          *v = find_in(others, count, bucket, group_tiles);
    return v || loads ? v : find_in(variants, ARRAY_COUNT(variants), bucket, group_tiles);
}

extern "C" int32_t kn_cu_gemm_resident(int32_t bucket, int32_t group_tiles)
{
    const cu_gemm_variant *v = find_variant(bucket, group_tiles, false);
    return v ? v->resident : 0;
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

static cudaError_t reserve_shared(const cu_gemm_variant *v, size_t count)
{
    cudaError_t e = cudaSuccess;
    for (size_t i = 0; i < count; i++) {
        void (*const kernels[])(cu_gemm) = {v[i].kernel, v[i].norm_kernel, v[i].staged_kernel,
                                            v[i].staged_norm_kernel};
        for (size_t k = 0; k < ARRAY_COUNT(kernels) && e == cudaSuccess; k++)
            if (kernels[k])
                e = cudaFuncSetAttribute((const void *)kernels[k],
                                         cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         v[i].shared_bytes);
    }
    return e;
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
    size_t count;
    const cu_gemm_variant *wide = cu_wide_variants(&count);
    e = reserve_shared(variants, ARRAY_COUNT(variants));
    if (e == cudaSuccess) e = reserve_shared(wide, count);
    const cu_gemm_variant *loads = cu_loads_variants(&count);
    if (e == cudaSuccess) e = reserve_shared(loads, count);
    if (e != cudaSuccess) return cuda_failed(e, "reserving shared memory for the decode GEMM", err);
    return ST_OK;
}

extern "C" void kn_cu_gemm_plan_derive(int32_t rows, int32_t sm_count, struct kn_cu_gemm_plan *plan)
{
    int32_t tiles = (rows + 63) / 64;
    plan->group_count = (tiles + plan->group_tiles - 1) / plan->group_tiles;
    int32_t ctas = sm_count * plan->ctas_per_sm;
    int32_t units = plan->group_count << plan->part_shift;
    plan->grid = units < ctas ? units : ctas;
}

extern "C" void kn_cu_gemm_plan(int32_t rows, int32_t cols, int32_t tokens, int32_t sm_count,
                                bool parts, struct kn_cu_gemm_plan *out)
{
    CHECK(rows > 0 && cols > 0 && sm_count > 0 && tokens <= KN_CU_DECODE_MAX);
    const int32_t bucket = kn_cu_bucket(tokens), blocks = (cols + 127) / 128;
    struct kn_cu_gemm_plan p = {bucket, bucket <= 32 ? 1 : 2, bucket <= 32 ? 2 : 1, 0, 0, 0};
    const int32_t groups = ((rows + 63) / 64 + p.group_tiles - 1) / p.group_tiles;
    if (parts) p.part_shift = kn_cut_shift(groups, blocks, sm_count, p.ctas_per_sm);
    kn_cu_gemm_plan_derive(rows, sm_count, &p);
    *out = p;
}

extern "C" bool kn_cu_gemm_takes_turn(const struct kn_cu_gemm_plan *plan, const struct kn_weight *w,
                                      const struct kn_cu_staged *staged, int32_t sm_count)
{
    int32_t local = w->span[0].tile_count;
    if (staged) local += staged->tile_end - staged->tile_begin;
    return local < w->tile_count && 2 * plan->grid > sm_count * plan->ctas_per_sm;
}

/* The tiles of each tier as the kernel reads them: what is staged is local. */
static void assign_tiles(const struct kn_weight *w, const struct kn_cu_staged *staged, cu_gemm *g)
{
    const int32_t begin = staged->tile_begin, end = staged->tile_end;
    for (int j = 0; j < KN_TIER_MAX; j++) {
        cu_gemm_tier *t = &g->tier[j];
        t->base = (const uint8_t *)w->span[j].base;
        t->tile_begin = w->span[j].tile_begin;
        t->tile_end = w->span[j].tile_begin + w->span[j].tile_count;
        if (begin == end || j == 0) continue;
        int32_t from = max(begin, t->tile_begin), to = min(end, t->tile_end);
        if (from >= to) continue;
        CHECK(from == t->tile_begin || to == t->tile_end);
        if (from == t->tile_begin) {
            t->base += (size_t)(to - from) * kn_weight_tile_bytes(w);
            t->tile_begin = to;
        } else {
            t->tile_end = from;
        }
    }
    if (begin == end) return;
    cu_gemm_tier *t = &g->tier[0];
    const bool alone = t->tile_begin == t->tile_end;
    CHECK(alone || begin == t->tile_end || end == t->tile_begin);
    const int32_t first = alone ? begin : min(begin, t->tile_begin);
    const intptr_t tile_bytes = (intptr_t)kn_weight_tile_bytes(w);
    /* Both bases are those of the run's first tile, wherever it lies. */
    t->base = (const uint8_t *)((intptr_t)t->base - (t->tile_begin - first) * tile_bytes);
    t->tile_end = alone ? end : max(end, t->tile_end);
    t->tile_begin = first;
    g->staged.base = (const uint8_t *)((intptr_t)staged->base - (begin - first) * tile_bytes);
    g->staged.tile_begin = begin;
    g->staged.tile_end = end;
    g->staged.word = staged->word;
}

/* Which groups are read as which tier's: a remote tier's are those with any of its tiles, less
 * those an earlier remote tier has; the local tier's are the rest, and lie together because spans
 * do. */
static void assign_groups(const struct kn_cu_gemm_plan *plan, cu_gemm *g)
{
    const int32_t rt = plan->group_tiles;
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

extern "C" void kn_cu_gemm_check(const struct kn_cu_gemm_args *a)
{
    const struct kn_weight *w = a->w;
    int32_t tiles = 0, remote = 0;
    for (int j = 0; j < KN_TIER_MAX; j++) {
        tiles += w->span[j].tile_count;
        if (j > 0) remote += w->span[j].tile_count;
        CHECK(w->span[j].tile_count == 0 || (uintptr_t)w->span[j].base % KN_ALIGN == 0);
    }
    CHECK(tiles == w->tile_count);
    CHECK(remote == 0 || a->windows || a->fetched);
    CHECK(a->tokens > 0 && (uintptr_t)a->in % KN_ALIGN == 0);
}

static void check_args(const struct kn_cu_gemm_plan *plan, const struct kn_cu_gemm_args *a)
{
    const struct kn_weight *w = a->w;
    kn_cu_gemm_check(a);
    CHECK(!a->fetched);
    CHECK(plan->bucket == kn_cu_bucket(a->tokens));
    CHECK(plan->group_count == (w->tile_count + plan->group_tiles - 1) / plan->group_tiles);
    CHECK(plan->part_shift == 0 || a->partial || a->norm.y);
    CHECK(!a->partial || a->epilogue == KN_EPI_ADD || a->epilogue == KN_EPI_STORE);
    CHECK(!a->scale.sums || (a->tokens <= KN_CU_SQUARES_TOKENS && a->scale.cols == w->cols &&
                             plan->group_tiles == 1));
    CHECK(!a->norm.y || (a->tokens <= KN_CU_SQUARES_TOKENS && a->epilogue == KN_EPI_ADD &&
                         !a->partial && plan->group_tiles == 1));
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
    cu_gemm g;
    memset(&g, 0, sizeof g);
    assign_tiles(w, &a->staged, &g);
    assign_groups(plan, &g);
    g.staged.read = a->staged.read;
    g.tile_count = w->tile_count;
    g.blocks_per_tile = w->blocks_per_tile;
    g.part_shift = plan->part_shift;
    g.part_blocks = (w->blocks_per_tile + (1 << plan->part_shift) - 1) >> plan->part_shift;
    g.x = (const uint8_t *)a->in;
    g.bias = a->bias;
    g.out = a->out;
    g.partial = a->partial;
    g.scale = a->scale;
    g.norm = a->norm;
    g.rows = w->rows;
    g.tokens = a->tokens;
    g.epilogue = a->epilogue;
    g.windows = g.tier[0].group_count == plan->group_count ? NULL : a->windows;
    g.traffic = a->traffic;
    const cu_gemm_variant *v = find_variant(plan->bucket, plan->group_tiles, a->loads && g.windows);
    CHECK(v);
    CHECK(!a->norm.y || ((g.part_blocks << g.part_shift) - g.part_blocks) < g.blocks_per_tile);
    g.turn = a->turn < 0 || !a->traffic ? -1 : a->turn % KN_CU_TURNS;

    const cu_launch l(plan->grid, v->threads, (size_t)v->shared_bytes, stream, a->dependent);
    const bool staged = g.staged.word || g.staged.read;
    void (*const kernel)(cu_gemm) = staged ? a->norm.y ? v->staged_norm_kernel : v->staged_kernel
                                    : a->norm.y ? v->norm_kernel
                                                : v->kernel;
    CHECK(kernel); /* none that reads by plain loads knows staged tiles */
    cudaError_t e = cudaLaunchKernelEx(&l.config, kernel, g);
    return e == cudaSuccess ? ST_OK : cuda_failed(e, "launching a decode GEMM", err);
}
