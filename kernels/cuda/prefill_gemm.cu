/*
 * prefill_gemm.cu - the host side of the prefill GEMM: which tiles and clusters a product gets, and
 * its launch.  The kernel and its reasons are in prefill_gemm.cuh.
 */
#include <cuda_runtime.h>
#include <string.h>

#include "config/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/prefill.h"
#include "kernels/cuda/prefill_gemm.cuh"

/* The workspace: a flag for every warpgroup of consumers of every CTA, then the sums of each CTA.
 */
#define FLAG_BYTES ((size_t)8192)
#define HANDOVER_BYTES ((size_t)128 * 256 * 4)
/* Tokens whose products with some rows follow each other. */
#define BAND_TOKENS 2048

template <int RT, int TN, int CR, int CT> static constexpr cu_prefill_variant make_variant()
{
    using S = cu_prefill_shape<RT, TN, CR, CT>;
    return {RT, TN, CR, CT, S::THREADS, S::SHARED_USED, sm90_bf16_prefill_gemm<S>};
}

static const cu_prefill_variant variants[] = {
    make_variant<2, 256, 2, 1>(), make_variant<2, 128, 2, 1>(), make_variant<3, 128, 1, 2>(),
    make_variant<2, 256, 1, 2>(), make_variant<2, 256, 1, 4>(), make_variant<2, 256, 1, 8>(),
    make_variant<2, 128, 1, 2>(), make_variant<1, 256, 2, 1>(),
};

static const cu_prefill_variant *find_variant(const struct kn_cu_prefill_plan *p, bool loads)
{
    size_t count = ARRAY_COUNT(variants);
    const cu_prefill_variant *v = loads ? cu_prefill_loads_variants(&count) : variants;
    for (size_t i = 0; i < count; i++)
        if (v[i].group_tiles == p->group_tiles && v[i].tile_tokens == p->tile_tokens &&
            v[i].cluster_rows == p->cluster_rows && v[i].cluster_tokens == p->cluster_tokens)
            return &v[i];
    return NULL;
}

static enum status cuda_failed(cudaError_t e, const char *what, char *err)
{
    return err_set(err, ST_DEVICE, "%s failed: %s", what, cudaGetErrorString(e));
}

static cudaError_t reserve_shared(const cu_prefill_variant *v, size_t count)
{
    cudaError_t e = cudaSuccess;
    for (size_t i = 0; i < count && e == cudaSuccess; i++)
        e = cudaFuncSetAttribute((const void *)v[i].kernel,
                                 cudaFuncAttributeMaxDynamicSharedMemorySize, v[i].shared_bytes);
    return e;
}

extern "C" enum status kn_cu_prefill_init(char *err)
{
    size_t count;
    const cu_prefill_variant *loads = cu_prefill_loads_variants(&count);
    cudaError_t e = reserve_shared(variants, ARRAY_COUNT(variants));
    if (e == cudaSuccess) e = reserve_shared(loads, count);
    if (e != cudaSuccess)
        return cuda_failed(e, "reserving shared memory for the prefill GEMM", err);
    return ST_OK;
}

static int32_t sets(int32_t count, int32_t tile, int32_t cluster)
{
    const int32_t tiles = (count + tile - 1) / tile;
    return (tiles + cluster - 1) / cluster;
}

static int32_t count_units(int32_t rows, int32_t tokens, const struct kn_cu_prefill_plan *plan)
{
    return sets(rows, plan->group_tiles * KN_TILE_ROWS, plan->cluster_rows) *
           sets(tokens, plan->tile_tokens, plan->cluster_tokens) * plan->parts;
}

extern "C" enum status kn_cu_prefill_derive(int32_t rows, int32_t tokens, int32_t sm_count,
                                            struct kn_cu_prefill_plan *plan, char *err)
{
    const cu_prefill_variant *v = find_variant(plan, false);
    if (!v)
        return err_set(err, ST_UNSUPPORTED, "there is no prefill GEMM of %d x %d in %d x %d",
                       plan->group_tiles, plan->tile_tokens, plan->cluster_rows,
                       plan->cluster_tokens);
    const int32_t ctas = v->cluster_rows * v->cluster_tokens;
    /* Pairs fit every SM; larger clusters leave some out where a group of SMs is no multiple. */
    int clusters = sm_count / ctas;
    if (ctas > 2) {
        const cu_launch l(clusters * ctas, v->threads, (size_t)v->shared_bytes, NULL, false, ctas);
        const cudaError_t e =
            cudaOccupancyMaxActiveClusters(&clusters, (const void *)v->kernel, &l.config);
        if (e != cudaSuccess) return cuda_failed(e, "asking how many clusters fit the GPU", err);
        CHECK(clusters > 0);
        if (clusters > sm_count / ctas) clusters = sm_count / ctas;
    }
    const int32_t units = count_units(rows, tokens, plan);
    plan->clusters = units < clusters ? units : clusters;
    return ST_OK;
}

/* What a launch costs, in ns, measured with the GPU at its power limit. */
struct cost {
    struct kn_cu_prefill_plan plan;
    int32_t stage, unit; /* a stage of a tile; what nothing hides of its beginning and end */
    int32_t launch, cut; /* what the launch has beside, and beside that where its units are cut */
};

/* Writing and adding up parts beyond the first, in bytes a ns. */
#define PARTS_PACE 2000

/* What a plan takes, in ns; sets plan->cut.  Two rounds of cut units take a sixteenth longer: fewer
 * clusters read the same at the same time. */
static int64_t plan_cost(int32_t rows, int32_t blocks, int32_t tokens, const struct cost *c,
                         struct kn_cu_prefill_plan *plan)
{
    const int64_t units = count_units(rows, tokens, plan), clusters = plan->clusters,
                  rounds = (int64_t)div_up((size_t)units, (size_t)clusters),
                  stages = 2 * (int64_t)div_up((size_t)blocks, (size_t)plan->parts);
    const int64_t whole = rounds * stages * c->stage,
                  cut = units * stages * c->stage / clusters + 2 * stages * c->stage / 16 + c->cut;
    plan->cut = plan->parts == 1 && units > clusters && cut < whole;
    return (plan->cut ? cut : whole) + rounds * c->unit + c->launch +
           (plan->parts - 1) * (int64_t)rows * tokens * 8 / PARTS_PACE;
}

/* No part of K may be empty. */
static bool cuts_evenly(int32_t blocks, int32_t parts)
{
    return (parts - 1) * (int32_t)div_up((size_t)blocks, (size_t)parts) < blocks;
}

static const struct cost costs[] = {{{1, 256, 2, 1, 1, false, 0}, 388, 300, 4000, 5000},
                                    {{2, 256, 2, 1, 1, false, 0}, 760, 3000, 1000, 5000},
                                    {{2, 128, 2, 1, 1, false, 0}, 388, 1500, 1000, 5000},
                                    {{2, 128, 1, 2, 1, false, 0}, 385, 1500, 1000, 5000},
                                    {{3, 128, 1, 2, 1, false, 0}, 580, 1500, 1000, 7000}};

/* The cheapest of `costs` in parts_min to parts_max parts; alone: where no CTA shares weights, and
 * as few as can be want the same. */
static enum status cheapest(const struct kn_weight *w, int32_t tokens, int32_t parts_min,
                            int32_t parts_max, bool alone, int32_t sm_count,
                            struct kn_cu_prefill_plan *out, char *err)
{
    /* Of few tokens weights cross the link once by every plan, so that none depends on where they
     * lie. */
    const bool few = tokens <= KN_CU_TOKENS_MAX;
    enum status st;
    int64_t least = INT64_MAX;
    if (few) tokens = kn_cu_bucket_of(tokens);
    for (size_t i = 0; i < ARRAY_COUNT(costs); i++)
        for (int32_t n = parts_min; n <= parts_max; n++) {
            struct kn_cu_prefill_plan p = costs[i].plan;
            p.parts = n;
            if (!cuts_evenly(w->blocks_per_tile, n)) continue;
            if (alone && (p.cluster_tokens > 1 || p.tile_tokens < KN_CU_TOKENS_MAX)) continue;
            if (few && p.tile_tokens * p.cluster_tokens < tokens) continue;
            if ((st = kn_cu_prefill_derive(w->rows, tokens, sm_count, &p, err))) return st;
            const int64_t cost = plan_cost(w->rows, w->blocks_per_tile, tokens, &costs[i], &p);
            if (cost >= least) continue;
            least = cost;
            *out = p;
        }
    return ST_OK;
}

extern "C" enum status kn_cu_prefill_plan(const struct kn_weight *w, int32_t tokens, bool parts,
                                          int32_t sm_count, struct kn_cu_prefill_plan *out,
                                          char *err)
{
    CHECK(w->rows > 0 && tokens > 0 && sm_count > 0 && (!parts || tokens <= KN_CU_TOKENS_MAX));
    enum status st;
    if (tokens > KN_CU_TOKENS_MAX && w->span[0].tile_count < w->tile_count) {
        /* As few crossings of the link as clusters allow. */
        const int32_t shared = tokens <= 512 ? 2 : tokens <= 1024 ? 4 : 8;
        struct kn_cu_prefill_plan p = {2, 256, 1, shared, 1, false, 0};
        if ((st = kn_cu_prefill_derive(w->rows, tokens, sm_count, &p, err))) return st;
        (void)plan_cost(w->rows, w->blocks_per_tile, tokens, &costs[1], &p);
        *out = p;
        return ST_OK;
    }
    return cheapest(w, tokens, 1, parts ? KN_CU_PARTS_MAX : 1, false, sm_count, out, err);
}

extern "C" enum status kn_cu_prefill_unshare(const struct kn_weight *w, int32_t tokens,
                                             int32_t sm_count, struct kn_cu_prefill_plan *plan,
                                             char *err)
{
    return cheapest(w, tokens, plan->parts, plan->parts, true, sm_count, plan, err);
}

extern "C" size_t kn_cu_prefill_workspace_bytes(int32_t sm_count)
{
    return FLAG_BYTES + (size_t)sm_count * HANDOVER_BYTES;
}

/* Row sets that hold remote tiles: at the beginning, and at the end. */
static void count_remote(const struct kn_weight *w, int32_t set_tiles, cu_prefill *p)
{
    int32_t begin = w->span[0].tile_begin, end = begin + w->span[0].tile_count;
    if (begin == end) {
        p->remote_before = p->row_sets;
        return;
    }
    const int32_t first = (begin + set_tiles - 1) / set_tiles;
    const int32_t last = end == w->tile_count ? p->row_sets : end / set_tiles;
    p->remote_before = first < last ? first : p->row_sets;
    p->remote_after = first < last ? p->row_sets - last : 0;
}

/* Which units are dealt whole, and how the rest, those of the last round and of the one before, are
 * cut so that all clusters have the same of them. */
static void share_units(const struct kn_cu_prefill_plan *plan, int32_t stages, cu_prefill *p)
{
    const int32_t units = p->row_sets * p->token_sets * plan->parts, clusters = plan->clusters;
    CHECK(clusters > 0 && clusters <= units);
    CHECK(plan->parts == 1 || !plan->cut);
    p->parts = plan->parts;
    p->part_stages = 2 * (int32_t)div_up((size_t)stages / 2, (size_t)plan->parts);
    CHECK((plan->parts - 1) * p->part_stages < stages);
    p->abreast = p->token_sets % 2 == 0 && p->band % 2 == 0 && clusters % 2 == 0 ? 2 : 1;
    p->whole_units = units;
    if (!plan->cut || units % clusters == 0) return;
    p->whole_units = (units / clusters - 1) * clusters;
    p->cut_stages =
        (int32_t)div_up((size_t)(units - p->whole_units) * (size_t)stages, (size_t)clusters);
}

extern "C" enum status kn_cu_prefill_launch(const struct kn_cu_prefill_plan *plan,
                                            const struct kn_cu_gemm_args *a, void *workspace,
                                            void *stream, char *err)
{
    const struct kn_weight *w = a->w;
    if (w->dtype != KN_BF16)
        return err_set(err, ST_UNSUPPORTED,
                       "%s weights are not supported on the GPU yet: convert the model to bfloat16",
                       kn_dtype_name(w->dtype));
    kn_cu_gemm_check(a);
    CHECK(plan->parts == 1 || a->partial);
    CHECK(!a->partial || a->epilogue == KN_EPI_ADD || a->epilogue == KN_EPI_STORE);
    const cu_prefill_variant *v = find_variant(plan, a->loads);
    CHECK(v);
    cu_prefill p;
    memset(&p, 0, sizeof p);
    cu_gemm *g = &p.gemm;
    for (int j = 0; j < KN_TIER_MAX; j++) {
        g->tier[j].base = (const uint8_t *)w->span[j].base;
        g->tier[j].tile_begin = w->span[j].tile_begin;
        g->tier[j].tile_end = w->span[j].tile_begin + w->span[j].tile_count;
    }
    g->tile_count = w->tile_count;
    g->blocks_per_tile = w->blocks_per_tile;
    g->x = (const uint8_t *)a->in;
    g->bias = a->bias;
    g->out = a->out;
    g->partial = a->partial;
    g->rows = w->rows;
    g->tokens = a->tokens;
    g->epilogue = a->epilogue;
    g->traffic = a->traffic;
    p.row_sets = sets(w->rows, v->group_tiles * KN_TILE_ROWS, v->cluster_rows);
    p.token_sets = sets(a->tokens, v->tile_tokens, v->cluster_tokens);
    p.band = BAND_TOKENS / (v->tile_tokens * v->cluster_tokens);
    p.handed = (uint32_t *)workspace;
    p.handover = (float4 *)((char *)workspace + FLAG_BYTES);
    share_units(plan, 2 * w->blocks_per_tile, &p);
    if (!a->fetched) count_remote(w, v->group_tiles * v->cluster_rows, &p);
    g->windows = p.remote_before + p.remote_after > 0 && !a->loads ? a->windows : NULL;

    const int32_t ctas = v->cluster_rows * v->cluster_tokens;
    const cu_launch l(plan->clusters * ctas, v->threads, (size_t)v->shared_bytes, stream,
                      a->dependent, ctas);
    const cudaError_t e = cudaLaunchKernelEx(&l.config, v->kernel, p);
    return e == cudaSuccess ? ST_OK : cuda_failed(e, "launching a prefill GEMM", err);
}
