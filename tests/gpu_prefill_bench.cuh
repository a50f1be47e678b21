/*
 * gpu_prefill_bench.cuh - the products of a layer of Llama-3.1-8B and of 70B against cuBLASLt in
 * the same run: at 512 to 8,192 tokens by the planned kernel (and by every plan), and at 96 to 512
 * tokens by every kernel there is.
 *
 * cuBLASLt: the fastest of its algorithms (gpu_cublaslt.cuh).  Ours writes what the engine wants
 * (fp32, added for KN_EPI_ADD; bf16 of half the rows for SWIGLU), and bf16 as cuBLASLt does, which
 * is the epilogue RELU.  Both read the same random normal data; the weights in turn from copies
 * that together exceed L2.  Medians of five.  Share of peak: of 989 TFLOPS.
 */
#ifndef DAKD_TESTS_GPU_PREFILL_BENCH_CUH
#define DAKD_TESTS_GPU_PREFILL_BENCH_CUH

#include <math.h>
#include <string.h>

#include "config/check.h"
#include "kernels/cuda/prefill.h"
#include "tests/gpu_check.cuh"
#include "tests/gpu_cublaslt.cuh"

#define BENCH_ROUNDS 5
#define BENCH_WEIGHT_BYTES ((size_t)1 << 30)
#define BENCH_PEAK_TFLOPS 989.
#define BENCH_PARTIAL_BYTES ((size_t)KN_CU_PARTS_MAX * 512 * 10240 * 4)

static const struct kn_cu_prefill_plan bench_plans[] = {
    {2, 256, 2, 1, 1, true, 0},  {2, 256, 2, 1, 1, false, 0}, {1, 256, 2, 1, 1, true, 0},
    {1, 256, 2, 1, 1, false, 0}, {2, 128, 2, 1, 1, true, 0},  {2, 128, 1, 2, 1, true, 0},
    {3, 128, 1, 2, 1, true, 0},  {2, 256, 1, 2, 1, true, 0},  {2, 256, 1, 4, 1, true, 0},
    {2, 256, 1, 8, 1, true, 0},
};

struct bench_op {
    const char *name;
    int rows, cols;
    enum kn_epilogue epilogue;
};

static const struct bench_op bench_ops[] = {
    {"8B qkv", 6144, 4096, KN_EPI_STORE},        {"8B o", 4096, 4096, KN_EPI_ADD},
    {"8B gate-up", 28672, 4096, KN_EPI_SWIGLU},  {"8B down", 4096, 14336, KN_EPI_ADD},
    {"70B qkv", 10240, 8192, KN_EPI_STORE},      {"70B o", 8192, 8192, KN_EPI_ADD},
    {"70B gate-up", 57344, 8192, KN_EPI_SWIGLU}, {"70B down", 8192, 28672, KN_EPI_ADD},
};

/* Who computes a product: cuBLASLt's algorithm, the wide GEMM, or the prefill GEMM. */
enum bench_kind { BENCH_LT, BENCH_WIDE, BENCH_PREFILL };
struct bench_kernel {
    enum bench_kind kind;
    int algorithm;
    struct kn_cu_gemm_plan wide;
    struct kn_cu_prefill_plan plan;
    enum kn_epilogue epilogue;
    float ms[BENCH_ROUNDS * 2];
    int count;
};

struct bench {
    int sm_count;
    uint8_t *weights, *x, *out;
    float *partial;
    void *workspace;
    struct kn_cu_window *windows;
    cudaEvent_t begin, end;
    struct lt lt;
    struct lt_product product; /* of the shape at hand */
};

__global__ void fill_normal(__nv_bfloat16 *to, size_t n, uint32_t seed, float scale)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x) {
        const uint32_t row = (uint32_t)(i >> 30), col = (uint32_t)i;
        const float u = ((float)(random_bits(seed, row, col) >> 8) + 1.f) * 0x1p-24f,
                    v = (float)(random_bits(seed + 1, row, col) >> 8) * 0x1p-24f;
        to[i] = __float2bfloat16(sqrtf(-2.f * __logf(u)) * __cosf(6.2831853f * v) * scale);
    }
}

static void bench_open(struct bench *b, int sm_count, const char *cublaslt)
{
    const size_t x = (size_t)8192 * 28672;
    memset(b, 0, sizeof *b);
    b->sm_count = sm_count;
    CUDA(cudaMalloc(&b->weights, BENCH_WEIGHT_BYTES));
    CUDA(cudaMalloc(&b->x, x * 2));
    CUDA(cudaMalloc(&b->out, (size_t)8192 * 57344 * 4));
    CUDA(cudaMalloc(&b->partial, BENCH_PARTIAL_BYTES));
    CUDA(cudaMalloc(&b->workspace, kn_cu_prefill_workspace_bytes(sm_count)));
    CUDA(cudaMemset(b->workspace, 0, kn_cu_prefill_workspace_bytes(sm_count)));
    CUDA(cudaMalloc(&b->windows, KN_TIER_MAX * sizeof *b->windows));
    CUDA(cudaMemset(b->out, 0, (size_t)8192 * 57344 * 4));
    fill_normal<<<sm_count * 8, 256>>>((__nv_bfloat16 *)b->weights, BENCH_WEIGHT_BYTES / 2, 7,
                                       0.02f);
    fill_normal<<<sm_count * 8, 256>>>((__nv_bfloat16 *)b->x, x, 9, 1.f);
    CUDA(cudaEventCreate(&b->begin));
    CUDA(cudaEventCreate(&b->end));
    lt_open(&b->lt, cublaslt);
    CUDA(cudaDeviceSynchronize());
}

/* One product of ours. */
static void bench_launch(struct bench *b, const struct bench_op *op, int tokens,
                         const struct bench_kernel *k, const uint8_t *weights,
                         const uint8_t *remote, int remote_tiles)
{
    char err[ERR_CAP] = "";
    struct kn_weight w;
    kn_weight_init(&w, KN_BF16, op->rows, op->cols);
    w.span[0] = {weights, 0, w.tile_count - remote_tiles};
    w.span[1] = {remote, w.tile_count - remote_tiles, remote_tiles};
    struct kn_cu_gemm_args a = {};
    a.w = &w;
    a.tokens = tokens;
    a.in = b->x;
    a.epilogue = k->epilogue;
    a.out = b->out;
    a.windows = b->windows;
    a.turn = -1;
    a.dependent = true;
    const bool parts = a.epilogue == KN_EPI_STORE || a.epilogue == KN_EPI_ADD;
    if (k->kind == BENCH_WIDE) {
        a.partial = parts ? b->partial : NULL;
        STATUS(kn_cu_gemm_launch(&k->wide, &a, NULL, err), err);
    } else {
        a.partial = k->plan.parts > 1 ? b->partial : NULL;
        STATUS(kn_cu_prefill_launch(&k->plan, &a, b->workspace, NULL, err), err);
    }
}

/* Notes the milliseconds of a launch, of as many in a row as take a while. */
static void bench_time(struct bench *b, const struct bench_op *op, int tokens,
                       struct bench_kernel *k)
{
    const size_t bytes = (size_t)op->rows * op->cols * 2;
    const double flops = (double)bytes * tokens;
    const int reps = (int)fmin(fmax(4e11 / flops, 2), 16);
    const size_t copies = BENCH_WEIGHT_BYTES / bytes;
    float ms;
    CUDA(cudaEventRecord(b->begin));
    for (int i = 0; i < reps; i++) {
        const uint8_t *weights = b->weights + i % copies * bytes;
        if (k->kind == BENCH_LT)
            lt_launch(&b->lt, &b->product, k->algorithm, weights, b->x, b->out, NULL);
        else bench_launch(b, op, tokens, k, weights, NULL, 0);
    }
    CUDA(cudaEventRecord(b->end));
    CUDA(cudaEventSynchronize(b->end));
    CUDA(cudaEventElapsedTime(&ms, b->begin, b->end));
    CHECK(k->count < (int)ARRAY_COUNT(k->ms));
    k->ms[k->count++] = ms / (float)reps;
}

static int compare_floats(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static float bench_median(float *v, int count)
{
    qsort(v, (size_t)count, sizeof *v, compare_floats);
    return v[count / 2];
}

/* Median milliseconds of each kernel, played in turn. */
static void bench_turns(struct bench *b, const struct bench_op *op, int tokens,
                        struct bench_kernel *k, int count, int rounds)
{
    for (int i = 0; i < count; i++) k[i].count = 0;
    for (int round = 0; round < rounds; round++)
        for (int i = 0; i < count; i++) bench_time(b, op, tokens, &k[i]);
}

/* Opens the product and finds the fastest algorithm of cuBLASLt. */
static int bench_lt_open(struct bench *b, const struct bench_op *op, int tokens)
{
    struct bench_kernel k[LT_ALGORITHMS] = {};
    int best = 0;
    float least = INFINITY;
    lt_product_open(&b->lt, op->rows, op->cols, tokens, &b->product);
    for (int i = 0; i < b->product.count; i++) k[i].kind = BENCH_LT, k[i].algorithm = i;
    bench_turns(b, op, tokens, k, b->product.count, 3);
    for (int i = 0; i < b->product.count; i++) {
        const float ms = bench_median(k[i].ms, k[i].count);
        if (ms < least) least = ms, best = i;
    }
    return best;
}

/* The planned kernel and its like with bf16 out, in turn with cuBLASLt's first and fastest
 * algorithms: the card's clock falls while it works. */
static void bench_shape(struct bench *b, const struct bench_op *op, int tokens)
{
    const bool lt = b->lt.handle != NULL;
    struct bench_kernel k[4] = {};
    struct kn_weight w;
    char err[ERR_CAP] = "";
    kn_weight_init(&w, KN_BF16, op->rows, op->cols);
    w.span[0].tile_count = w.tile_count;
    k[0].kind = k[1].kind = BENCH_PREFILL;
    STATUS(kn_cu_prefill_plan(&w, tokens, false, b->sm_count, &k[0].plan, err), err);
    k[1].plan = k[0].plan;
    k[0].epilogue = op->epilogue;
    k[1].epilogue = KN_EPI_RELU;
    if (lt) k[2].algorithm = bench_lt_open(b, op, tokens);
    bench_turns(b, op, tokens, k, lt ? 4 : 2, BENCH_ROUNDS);
    float ms[4];
    for (int i = 0; i < (lt ? 4 : 2); i++) ms[i] = bench_median(k[i].ms, k[i].count);
    const double tflop = 2e-9 * op->rows * op->cols * tokens;
    const struct kn_cu_prefill_plan *p = &k[0].plan;
    printf("%-11s T %4d %dx%d,%dx%d%s %8.3f ms, %3.0f TFLOPS, %2.0f %%; bf16 out %8.3f ms",
           op->name, tokens, p->group_tiles, p->tile_tokens, p->cluster_rows, p->cluster_tokens,
           p->cut ? " cut" : "", ms[0], tflop / ms[0], 100 * tflop / ms[0] / BENCH_PEAK_TFLOPS,
           ms[1]);
    if (!lt) return;
    printf("; cuBLASLt (%2d of %2d) %8.3f ms: /ours %.3f, /bf16 %.3f; its first /bf16 %.3f",
           k[2].algorithm, b->product.count, ms[2], ms[2] / ms[0], ms[2] / ms[1], ms[3] / ms[1]);
    lt_product_close(&b->lt, &b->product);
}

/* Every plan, in turn. */
static void bench_tune(struct bench *b, const struct bench_op *op, int tokens)
{
    struct bench_kernel k[ARRAY_COUNT(bench_plans)] = {};
    char err[ERR_CAP] = "";
    for (size_t i = 0; i < ARRAY_COUNT(bench_plans); i++) {
        k[i].kind = BENCH_PREFILL;
        k[i].plan = bench_plans[i];
        k[i].epilogue = op->epilogue;
        STATUS(kn_cu_prefill_derive(op->rows, tokens, b->sm_count, &k[i].plan, err), err);
    }
    bench_turns(b, op, tokens, k, ARRAY_COUNT(bench_plans), 3);
    printf(";");
    for (size_t i = 0; i < ARRAY_COUNT(bench_plans); i++)
        printf(" %3.0f", 2e-9 * op->rows * op->cols * tokens / bench_median(k[i].ms, k[i].count));
}

/* --- few tokens --- */

enum { CROSS_MAX = 64, CROSS_SHOWN = 6 };

/* The plans of the prefill GEMM that keep most SMs busy. */
static int cross_plans(struct bench *b, const struct bench_op *op, int tokens,
                       struct bench_kernel *k, int count)
{
    static const int shapes[][4] = {
        {2, 256, 2, 1}, {1, 256, 2, 1}, {2, 128, 2, 1}, {2, 128, 1, 2}, {3, 128, 1, 2}};
    const bool parts = op->epilogue == KN_EPI_STORE || op->epilogue == KN_EPI_ADD;
    char err[ERR_CAP] = "";
    for (size_t i = 0; i < ARRAY_COUNT(shapes); i++) {
        const int *s = shapes[i];
        if (tokens <= 128 && (s[1] == 256 || s[3] == 2)) continue;
        for (int n = 1; n <= (parts ? KN_CU_PARTS_MAX : 1); n++)
            for (int cut = 0; cut < (n == 1 ? 2 : 1); cut++) {
                struct kn_cu_prefill_plan p = {s[0], s[1], s[2], s[3], n, cut != 0, 0};
                STATUS(kn_cu_prefill_derive(op->rows, tokens, b->sm_count, &p, err), err);
                const int set_rows = s[0] * s[2] * 64, set_tokens = s[1] * s[3],
                          units = (op->rows + set_rows - 1) / set_rows *
                                  ((tokens + set_tokens - 1) / set_tokens) * n,
                          rounds = (units + p.clusters - 1) / p.clusters;
                if (p.clusters * s[2] * s[3] < 90 || (cut && rounds == 1)) continue;
                if (n > 1 && units > 3 * p.clusters) continue;
                CHECK(count < CROSS_MAX);
                k[count].kind = BENCH_PREFILL;
                k[count].plan = p;
                k[count++].epilogue = op->epilogue;
            }
    }
    return count;
}

static void cross_shape(struct bench *b, const struct bench_op *op, int tokens)
{
    struct bench_kernel k[CROSS_MAX] = {};
    const bool parts = op->epilogue == KN_EPI_STORE || op->epilogue == KN_EPI_ADD;
    int count = 0;
    if (b->lt.handle) k[count++].algorithm = bench_lt_open(b, op, tokens);
    const int wide = count;
    if (tokens <= KN_CU_DECODE_MAX) {
        k[count].kind = BENCH_WIDE;
        k[count].epilogue = op->epilogue;
        kn_cu_gemm_plan(op->rows, op->cols, tokens, b->sm_count, parts, &k[count++].wide);
    }
    const int first = count;
    count = cross_plans(b, op, tokens, k, count);
    bench_turns(b, op, tokens, k, count, 3);
    float ms[CROSS_MAX];
    for (int i = 0; i < count; i++) ms[i] = bench_median(k[i].ms, k[i].count);
    printf("%-11s T %3d", op->name, tokens);
    if (wide) printf(" Lt %6.1f", ms[0] * 1e3);
    if (first > wide) printf(" wide(%d) %6.1f", 1 << k[wide].wide.part_shift, ms[wide] * 1e3);
    printf(" |");
    for (int shown = 0; shown < CROSS_SHOWN; shown++) {
        int best = -1;
        for (int i = first; i < count; i++)
            if (ms[i] > 0 && (best < 0 || ms[i] < ms[best])) best = i;
        if (best < 0) break;
        const struct kn_cu_prefill_plan *p = &k[best].plan;
        printf(" %dx%d,%dx%d/%d%s %.1f", p->group_tiles, p->tile_tokens, p->cluster_rows,
               p->cluster_tokens, p->parts, p->cut ? "c" : "", ms[best] * 1e3);
        ms[best] = 0;
    }
    printf("\n");
    fflush(stdout);
    if (wide) lt_product_close(&b->lt, &b->product);
}

/* Every kernel at the tokens where one takes over from the other, us a product: cuBLASLt, the wide
 * GEMM (parts of K), and the fastest plans (row tiles x tokens, cluster, parts, cut). */
static void bench_cross(int sm_count, const char *cublaslt)
{
    static const int tokens[] = {96, 128, 192, 256, 320, 384, 512};
    struct bench b;
    char err[ERR_CAP] = "";
    STATUS(kn_cu_gemm_init(err), err);
    bench_open(&b, sm_count, cublaslt);
    for (size_t i = 0; i < ARRAY_COUNT(bench_ops); i++)
        for (size_t j = 0; j < ARRAY_COUNT(tokens); j++) cross_shape(&b, &bench_ops[i], tokens[j]);
}

/* --- remote --- */

/* All or a part of the weights in the host's memory. */
static void bench_remote(struct bench *b)
{
    static const struct bench_op op = {"8B gate-up", 28672, 4096, KN_EPI_SWIGLU};
    /* tokens, cluster tokens, per cent, blocks */
    static const int cases[][4] = {{512, 2, 0, 1},   {512, 2, 5, 1},    {512, 2, 100, 1},
                                   {1024, 4, 0, 1},  {1024, 2, 10, 1},  {1024, 4, 10, 1},
                                   {1024, 4, 30, 1}, {1024, 4, 100, 1}, {2048, 8, 0, 1},
                                   {2048, 8, 10, 1}, {2048, 8, 30, 1},  {2048, 8, 100, 1}};
    const size_t bytes = (size_t)op.rows * op.cols * 2;
    char err[ERR_CAP] = "";
    uint8_t *pinned;
    CUDA(cudaHostAlloc(&pinned, bytes, cudaHostAllocMapped));
    CUDA(cudaMemcpy(pinned, b->weights, bytes, cudaMemcpyDefault));
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        const int *c = cases[i], tiles = op.rows / 64 * c[2] / 100;
        struct bench_kernel k = {};
        struct kn_cu_window windows[KN_TIER_MAX] = {};
        float ms[BENCH_ROUNDS];
        windows[1] = {16, c[3], 1.f};
        CUDA(cudaMemcpy(b->windows, windows, sizeof windows, cudaMemcpyHostToDevice));
        k.kind = BENCH_PREFILL;
        k.plan = {2, 256, 1, c[1], 1, true, 0};
        k.epilogue = op.epilogue;
        STATUS(kn_cu_prefill_derive(op.rows, c[0], b->sm_count, &k.plan, err), err);
        for (int round = 0; round < BENCH_ROUNDS; round++) {
            CUDA(cudaEventRecord(b->begin));
            bench_launch(b, &op, c[0], &k, b->weights, pinned, tiles);
            CUDA(cudaEventRecord(b->end));
            CUDA(cudaEventSynchronize(b->end));
            CUDA(cudaEventElapsedTime(&ms[round], b->begin, b->end));
        }
        const float t = bench_median(ms, BENCH_ROUNDS);
        printf("%s T %4d, clusters of %d (%d run), %3d %% in host memory, window %d: %7.3f ms, "
               "%5.1f GB/s of weights from it\n",
               op.name, c[0], c[1], k.plan.clusters, c[2], c[3], t,
               (double)tiles * op.cols * 128 / t / 1e6);
    }
    CUDA(cudaFreeHost(pinned));
}

static void bench_prefill(int sm_count, const char *cublaslt, bool tune)
{
    static const int tokens[] = {512, 1024, 2048, 8192};
    struct bench b;
    bench_open(&b, sm_count, cublaslt);
    if (tune) {
        printf("TFLOPS by plan (row tiles x tokens, cluster rows x tokens):");
        for (size_t i = 0; i < ARRAY_COUNT(bench_plans); i++)
            printf(" %dx%d,%dx%d%s", bench_plans[i].group_tiles, bench_plans[i].tile_tokens,
                   bench_plans[i].cluster_rows, bench_plans[i].cluster_tokens,
                   bench_plans[i].cut ? " cut" : "");
        printf("\n");
    }
    for (size_t i = 0; i < ARRAY_COUNT(bench_ops); i++)
        for (size_t j = 0; j < ARRAY_COUNT(tokens); j++) {
            bench_shape(&b, &bench_ops[i], tokens[j]);
            if (tune) bench_tune(&b, &bench_ops[i], tokens[j]);
            printf("\n");
            fflush(stdout);
        }
    bench_remote(&b);
}

#endif
