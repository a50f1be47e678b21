/*
 * gpu_prefill_bench.cuh - the products of a layer of Llama-3.1-8B and of 70B at 512 to 8,192
 * tokens, by every plan, against cuBLAS in the same run.
 *
 * cuBLAS: bf16 in and out, fp32 accumulation, no epilogue; and with fp32 out (added to it, where
 * ours adds), which is what ours writes but for SWIGLU.  Both read the same random normal data; the
 * weights in turn from copies that together exceed L2.  Medians of five.
 * Share of peak: of 989 TFLOPS.
 */
#ifndef DAKD_TESTS_GPU_PREFILL_BENCH_CUH
#define DAKD_TESTS_GPU_PREFILL_BENCH_CUH

#include <dlfcn.h>
#include <math.h>
#include <string.h>

#include "config/check.h"
#include "kernels/cuda/prefill.h"
#include "tests/gpu_check.cuh"

#define BENCH_ROUNDS 5
#define BENCH_WEIGHT_BYTES ((size_t)1 << 30)
#define BENCH_PEAK_TFLOPS 989.

static const struct kn_cu_prefill_plan bench_plans[] = {
    {2, 256, 2, 1, true, 0}, {2, 256, 2, 1, false, 0}, {2, 128, 2, 1, true, 0},
    {3, 128, 1, 2, true, 0}, {2, 256, 1, 2, true, 0},  {2, 256, 1, 4, true, 0},
    {2, 256, 1, 8, true, 0},
};

struct bench_op {
    const char *name;
    int rows, cols;
    enum kn_epilogue epilogue;
};

struct bench {
    int sm_count;
    uint8_t *weights, *x, *out;
    void *workspace;
    struct kn_cu_window *windows;
    cudaEvent_t begin, end;
    void *cublas; /* NULL: none */
    int (*gemm)(void *, int, int, int, int, int, const void *, const void *, int, int, const void *,
                int, int, const void *, void *, int, int, int, int);
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

static void bench_cublas_open(struct bench *b, const char *path)
{
    void *library = dlopen(path ? path : "libcublas.so.13", RTLD_NOW);
    if (!library) {
        printf("no comparison with cuBLAS: %s\n", dlerror());
        return;
    }
    int (*create)(void **) = (int (*)(void **))dlsym(library, "cublasCreate_v2");
    int (*workspace)(void *, void *, size_t) =
        (int (*)(void *, void *, size_t))dlsym(library, "cublasSetWorkspace_v2");
    *(void **)&b->gemm = dlsym(library, "cublasGemmEx");
    CHECK(create && workspace && b->gemm);
    void *memory;
    CUDA(cudaMalloc(&memory, (size_t)64 << 20));
    CHECK(!create(&b->cublas) && !workspace(b->cublas, memory, (size_t)64 << 20));
}

static void bench_open(struct bench *b, int sm_count, const char *cublas)
{
    const size_t x = (size_t)8192 * 28672;
    memset(b, 0, sizeof *b);
    b->sm_count = sm_count;
    CUDA(cudaMalloc(&b->weights, BENCH_WEIGHT_BYTES));
    CUDA(cudaMalloc(&b->x, x * 2));
    CUDA(cudaMalloc(&b->out, (size_t)8192 * 57344 * 4));
    CUDA(cudaMalloc(&b->workspace, kn_cu_prefill_workspace_bytes(sm_count)));
    CUDA(cudaMemset(b->workspace, 0, kn_cu_prefill_workspace_bytes(sm_count)));
    CUDA(cudaMalloc(&b->windows, KN_TIER_MAX * sizeof *b->windows));
    CUDA(cudaMemset(b->out, 0, (size_t)8192 * 57344 * 4));
    fill_normal<<<sm_count * 8, 256>>>((__nv_bfloat16 *)b->weights, BENCH_WEIGHT_BYTES / 2, 7,
                                       0.02f);
    fill_normal<<<sm_count * 8, 256>>>((__nv_bfloat16 *)b->x, x, 9, 1.f);
    CUDA(cudaEventCreate(&b->begin));
    CUDA(cudaEventCreate(&b->end));
    bench_cublas_open(b, cublas);
    CUDA(cudaDeviceSynchronize());
}

/* One product; NULL plan: cuBLAS, whose output is fp32 or bf16. */
static void bench_launch(struct bench *b, const struct bench_op *op, int tokens,
                         const struct kn_cu_prefill_plan *plan, bool fp32, const uint8_t *weights,
                         const uint8_t *remote, int remote_tiles)
{
    if (!plan) {
        enum { OP_N = 0, OP_T = 1, F32 = 0, BF16 = 14, COMPUTE_32F = 68, DEFAULT = -1 };
        const float one = 1.f, zero = 0.f;
        const bool add = fp32 && op->epilogue == KN_EPI_ADD;
        CHECK(!b->gemm(b->cublas, OP_T, OP_N, op->rows, tokens, op->cols, &one, weights, BF16,
                       op->cols, b->x, BF16, op->cols, add ? &one : &zero, b->out,
                       fp32 ? F32 : BF16, op->rows, COMPUTE_32F, DEFAULT));
        return;
    }
    char err[ERR_CAP] = "";
    struct kn_weight w;
    kn_weight_init(&w, KN_BF16, op->rows, op->cols);
    w.span[0] = {weights, 0, w.tile_count - remote_tiles};
    w.span[1] = {remote, w.tile_count - remote_tiles, remote_tiles};
    struct kn_cu_gemm_args a = {};
    a.w = &w;
    a.tokens = tokens;
    a.in = b->x;
    a.epilogue = op->epilogue;
    a.out = b->out;
    a.windows = b->windows;
    a.dependent = true;
    STATUS(kn_cu_prefill_launch(plan, &a, b->workspace, NULL, err), err);
}

/* Milliseconds a launch, of as many in a row as take a while. */
static float bench_time(struct bench *b, const struct bench_op *op, int tokens,
                        const struct kn_cu_prefill_plan *plan, bool fp32)
{
    const size_t bytes = (size_t)op->rows * op->cols * 2;
    const double flops = (double)bytes * tokens;
    const int reps = (int)fmin(fmax(1e12 / flops, 2), 16);
    const size_t copies = BENCH_WEIGHT_BYTES / bytes;
    float ms;
    CUDA(cudaEventRecord(b->begin));
    for (int i = 0; i < reps; i++)
        bench_launch(b, op, tokens, plan, fp32, b->weights + i % copies * bytes, NULL, 0);
    CUDA(cudaEventRecord(b->end));
    CUDA(cudaEventSynchronize(b->end));
    CUDA(cudaEventElapsedTime(&ms, b->begin, b->end));
    return ms / (float)reps;
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

/* The planned kernel between two measurements of cuBLAS, in every round: the card's clock falls
 * while it works. */
static void bench_shape(struct bench *b, const struct bench_op *op, int tokens)
{
    float own[BENCH_ROUNDS], theirs[2][2 * BENCH_ROUNDS];
    struct kn_cu_prefill_plan plan;
    struct kn_weight w;
    char err[ERR_CAP] = "";
    kn_weight_init(&w, KN_BF16, op->rows, op->cols);
    w.span[0].tile_count = w.tile_count;
    STATUS(kn_cu_prefill_plan(&w, tokens, b->sm_count, &plan, err), err);
    for (int round = 0; round < BENCH_ROUNDS; round++)
        for (int side = 0; side < 2; side++) {
            for (int fp32 = 0; fp32 < 2; fp32++)
                theirs[fp32][2 * round + side] =
                    b->cublas ? bench_time(b, op, tokens, NULL, fp32) : INFINITY;
            if (side == 0) own[round] = bench_time(b, op, tokens, &plan, false);
        }
    const double tflop = 2e-9 * op->rows * op->cols * tokens;
    const float ms = bench_median(own, BENCH_ROUNDS),
                bf16 = bench_median(theirs[0], 2 * BENCH_ROUNDS),
                fp32 = bench_median(theirs[1], 2 * BENCH_ROUNDS);
    printf("%-11s T %4d %dx%d,%dx%d%s %8.3f ms, %3.0f TFLOPS, %2.0f %% of peak", op->name, tokens,
           plan.group_tiles, plan.tile_tokens, plan.cluster_rows, plan.cluster_tokens,
           plan.cut ? " cut" : "", ms, tflop / ms, 100 * tflop / ms / BENCH_PEAK_TFLOPS);
    if (b->cublas)
        printf("; cuBLAS/ours: bf16 %.3f (%3.0f), fp32 %.3f (%3.0f)", bf16 / ms, tflop / bf16,
               fp32 / ms, tflop / fp32);
}

/* Every plan, in turn. */
static void bench_tune(struct bench *b, const struct bench_op *op, int tokens)
{
    float ms[ARRAY_COUNT(bench_plans)][BENCH_ROUNDS];
    char err[ERR_CAP] = "";
    for (int round = 0; round < BENCH_ROUNDS; round++)
        for (size_t i = 0; i < ARRAY_COUNT(bench_plans); i++) {
            struct kn_cu_prefill_plan plan = bench_plans[i];
            STATUS(kn_cu_prefill_derive(op->rows, tokens, b->sm_count, &plan, err), err);
            ms[i][round] = bench_time(b, op, tokens, &plan, false);
        }
    printf(";");
    for (size_t i = 0; i < ARRAY_COUNT(bench_plans); i++)
        printf(" %3.0f", 2e-9 * op->rows * op->cols * tokens / bench_median(ms[i], BENCH_ROUNDS));
}

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
        struct kn_cu_prefill_plan plan = {2, 256, 1, c[1], true, 0};
        struct kn_cu_window windows[KN_TIER_MAX] = {};
        float ms[BENCH_ROUNDS];
        windows[1] = {16, c[3], 1.f};
        CUDA(cudaMemcpy(b->windows, windows, sizeof windows, cudaMemcpyHostToDevice));
        STATUS(kn_cu_prefill_derive(op.rows, c[0], b->sm_count, &plan, err), err);
        for (int round = 0; round < BENCH_ROUNDS; round++) {
            CUDA(cudaEventRecord(b->begin));
            bench_launch(b, &op, c[0], &plan, false, b->weights, pinned, tiles);
            CUDA(cudaEventRecord(b->end));
            CUDA(cudaEventSynchronize(b->end));
            CUDA(cudaEventElapsedTime(&ms[round], b->begin, b->end));
        }
        const float t = bench_median(ms, BENCH_ROUNDS);
        printf("%s T %4d, clusters of %d (%d run), %3d %% in host memory, window %d: %7.3f ms, "
               "%5.1f GB/s of weights from it\n",
               op.name, c[0], c[1], plan.clusters, c[2], c[3], t,
               (double)tiles * op.cols * 128 / t / 1e6);
    }
    CUDA(cudaFreeHost(pinned));
}

static void bench_prefill(int sm_count, const char *cublas, bool tune)
{
    static const struct bench_op ops[] = {
        {"8B qkv", 6144, 4096, KN_EPI_STORE},        {"8B o", 4096, 4096, KN_EPI_ADD},
        {"8B gate-up", 28672, 4096, KN_EPI_SWIGLU},  {"8B down", 4096, 14336, KN_EPI_ADD},
        {"70B qkv", 10240, 8192, KN_EPI_STORE},      {"70B o", 8192, 8192, KN_EPI_ADD},
        {"70B gate-up", 57344, 8192, KN_EPI_SWIGLU}, {"70B down", 8192, 28672, KN_EPI_ADD},
    };
    static const int tokens[] = {512, 1024, 2048, 8192};
    struct bench b;
    bench_open(&b, sm_count, cublas);
    if (tune) {
        printf("TFLOPS by plan (row tiles x tokens, cluster rows x tokens):");
        for (size_t i = 0; i < ARRAY_COUNT(bench_plans); i++)
            printf(" %dx%d,%dx%d%s", bench_plans[i].group_tiles, bench_plans[i].tile_tokens,
                   bench_plans[i].cluster_rows, bench_plans[i].cluster_tokens,
                   bench_plans[i].cut ? " cut" : "");
        printf("\n");
    }
    for (size_t i = 0; i < ARRAY_COUNT(ops); i++)
        for (size_t j = 0; j < ARRAY_COUNT(tokens); j++) {
            bench_shape(&b, &ops[i], tokens[j]);
            if (tune && tokens[j] <= 1024) bench_tune(&b, &ops[i], tokens[j]);
            printf("\n");
            fflush(stdout);
        }
    bench_remote(&b);
}

#endif
