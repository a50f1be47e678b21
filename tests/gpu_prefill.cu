/*
 * gpu_prefill.cu - the prefill GEMM against an fp64 reference, and against itself: every result
 * must be bitwise the same for every run, tile, cluster, placement and window, and the wide GEMM's
 * where that computes as many tokens.  With --bench it is measured against cuBLASLt
 * (gpu_prefill_bench.cuh; --cublaslt PATH), with --tune by every plan, with --cross at the tokens
 * where it takes over from the wide GEMM; --quick runs small shapes alone and --tiny the smallest
 * that goes round the ring more than once, for compute-sanitizer.
 *
 * The reference computes each element from the random data directly, in fp64; of large outputs a
 * sample.  Outputs and padding are poisoned before each run.
 *
 * Tolerance: as in gpu_gemm.cu, |error| <= 4e-6 of the sum of absolute products, plus half a unit
 * of bf16 where the output is bf16.
 */
#include <math.h>
#include <string.h>

#include "config/check.h"
#include "kernels/cuda/prefill.h"
#include "tests/gpu_check.cuh"
#include "tests/gpu_differ.cuh"
#include "tests/gpu_prefill_bench.cuh"

#define GUARD_BYTES 4096
#define POISON 0xFF /* NaN in fp32 and bf16 */

/* Tiles and clusters for few tokens. */
static const struct kn_cu_prefill_plan few_plans[] = {
    {2, 256, 2, 1, 1, false, 0}, {1, 256, 2, 1, 1, false, 0}, {2, 128, 2, 1, 1, false, 0},
    {2, 128, 1, 2, 1, false, 0}, {3, 128, 1, 2, 1, false, 0},
};

enum { SEED_W = 1, SEED_X, SEED_BIAS, SEED_OUT };
static const float W_SCALE = 0.0625f, X_SCALE = 1.f;

/* --- data --- */

/* Byte of element (token, k) of activations of so many tokens. */
__device__ static size_t act_at(int tokens, int cols, int token, int k)
{
    const int chunk = token / 256, left = tokens - chunk * 256;
    const int bucket = left >= 256 ? 256 : kn_cu_bucket_of(left);
    return (size_t)chunk * ((cols + 127) / 128) * 65536 +
           kn_cu_act_offset(bucket, token - chunk * 256, k);
}

static size_t act_bytes(int tokens, int cols)
{
    size_t bytes = (size_t)(tokens / 256) * kn_cu_act_bytes(256, cols);
    return tokens % 256 ? bytes + kn_cu_act_bytes(kn_cu_bucket(tokens % 256), cols) : bytes;
}

__global__ void fill_tiles(uint8_t *to, int rows, int cols, int blocks_per_tile, size_t elements)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < elements;
         i += (size_t)gridDim.x * blockDim.x) {
        size_t block = i / 8192;
        int e = (int)(i % 8192), atom = e / 4096, r = e % 4096 / 64, c = e % 64;
        int row = (int)(block / blocks_per_tile) * 64 + r;
        int col = (int)(block % blocks_per_tile) * 128 + atom * 64 + c;
        float v = row < rows && col < cols ? random_bf16(SEED_W, row, col, W_SCALE) : 0.f;
        *(__nv_bfloat16 *)(to + block * KN_BLOCK_BYTES + atom * KN_ATOM_BYTES +
                           kn_cu_act_offset(64, r, c)) = __float2bfloat16(v);
    }
}

/* Where no token is, bytes stay as they were: NaN. */
__global__ void fill_act(uint8_t *to, int tokens, int cols)
{
    const int padded = (cols + 127) / 128 * 128, k = blockIdx.x * blockDim.x + threadIdx.x,
              t = blockIdx.y;
    if (k >= padded) return;
    const float v = k < cols ? random_bf16(SEED_X, t, k, X_SCALE) : 0.f;
    *(__nv_bfloat16 *)(to + act_at(tokens, cols, t, k)) = __float2bfloat16(v);
}

__global__ void fill_floats(float *to, uint32_t seed, size_t n)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x)
        to[i] = random_bf16(seed, 0, (uint32_t)i, 1.f);
}

/* --- reference --- */

struct product {
    int rows, cols, tokens, bias;
    enum kn_epilogue epilogue;
};

/* Sum of products with the bias, and of absolute products, for one output. */
__device__ static void dot(const product &p, int t, int row, double *sum, double *absolute)
{
    *sum = *absolute = 0;
    for (int k = 0; k < p.cols; k++) {
        double v =
            (double)random_bf16(SEED_X, t, k, X_SCALE) * random_bf16(SEED_W, row, k, W_SCALE);
        *sum += v;
        *absolute += fabs(v);
    }
    if (p.bias) *sum += random_bf16(SEED_BIAS, 0, row, 1.f);
}

static bool is_act(enum kn_epilogue e)
{
    return e == KN_EPI_RELU || e == KN_EPI_SWIGLU;
}

static int out_cols(const product &p)
{
    return p.epilogue == KN_EPI_SWIGLU ? p.rows / 2 : p.rows;
}

/* Counts outputs beyond tolerance, of every stride-th of a token; and padding columns that are not
 * zero. */
__global__ void compare_kernel(product p, int cols, bool act, const uint8_t *out, int stride,
                               uint32_t *bad)
{
    const int t = blockIdx.y;
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    const int shown = (cols + stride - 1) / stride;
    if (i < shown) i = min(i * stride + t % stride, cols - 1);
    else if (act) i += cols - shown;
    if (i >= (act ? (cols + 127) / 128 * 128 : cols)) return;
    const double got =
        act ? (double)__bfloat162float(*(const __nv_bfloat16 *)(out + act_at(p.tokens, cols, t, i)))
            : (double)((const float *)out)[(size_t)t * cols + i];
    double want = 0, tolerance = 0, s, a;
    if (i < cols && p.epilogue == KN_EPI_SWIGLU) {
        double up, up_absolute;
        const int gate = i / 8 * 16 + i % 8; /* kn_glu_row */
        dot(p, t, gate, &s, &a);
        dot(p, t, gate + 8, &up, &up_absolute);
        const double silu = s / (1 + exp(-s));
        want = silu * up;
        tolerance =
            4e-6 * (1.1 * a * fabs(up) + up_absolute * fabs(silu)) + 0.004 * fabs(want) + 1e-6;
    } else if (i < cols) {
        dot(p, t, i, &s, &a);
        want = p.epilogue == KN_EPI_RELU ? fmax(s, 0.) : s;
        if (p.epilogue == KN_EPI_ADD) want += random_bf16(SEED_OUT, 0, t * cols + i, 1.f);
        tolerance = 4e-6 * a + 1e-6 + (act ? 0.004 * fabs(want) : 2e-7 * fabs(want));
    }
    if (!(fabs(got - want) <= tolerance)) atomicAdd(bad, 1);
}

/* Counts activations of tokens of the last bucket that are not there, and were written. */
__global__ void padding_kernel(const uint8_t *out, int tokens, int cols, uint32_t *bad)
{
    const int chunk = tokens / 256, bucket = kn_cu_bucket_of(tokens % 256);
    const int k = blockIdx.x * blockDim.x + threadIdx.x, t = tokens % 256 + blockIdx.y;
    if (k >= (cols + 127) / 128 * 128 || t >= bucket) return;
    out += (size_t)chunk * ((cols + 127) / 128) * 65536;
    if (*(const uint16_t *)(out + kn_cu_act_offset(bucket, t, k)) != 0xFFFF) atomicAdd(bad, 1);
}

/* --- a product under test --- */

struct bed {
    struct tally *tally;
    int sm_count, tokens_max;
    struct kn_weight w;
    uint8_t *local, *pinned; /* all tiles, in HBM and in the host's memory */
    uint8_t *x;
    float *bias;
    uint8_t *out, *first; /* of this run, and of the one it must equal */
    uint32_t *bad;
    struct kn_cu_window *windows;
    struct kn_cu_traffic *traffic;
    void *workspace;
    float *partial; /* parts of a product of up to 256 tokens */
    size_t capacity;
};

static size_t partial_bytes(int rows)
{
    return (size_t)KN_CU_PARTS_MAX * KN_CU_TOKENS_MAX * rows * sizeof(float);
}

static void bed_open(struct bed *b, int rows, int cols, int tokens_max)
{
    b->tokens_max = tokens_max;
    kn_weight_init(&b->w, KN_BF16, rows, cols);
    const size_t bytes = (size_t)b->w.tile_count * b->w.blocks_per_tile * KN_BLOCK_BYTES;
    CUDA(cudaMalloc(&b->local, bytes));
    fill_tiles<<<1024, 256>>>(b->local, rows, cols, b->w.blocks_per_tile, bytes / 2);
    CUDA(cudaHostAlloc(&b->pinned, bytes, cudaHostAllocMapped));
    CUDA(cudaMemcpy(b->pinned, b->local, bytes, cudaMemcpyDefault));
    b->capacity = (size_t)(tokens_max + 255) / 256 * 256 * (rows + 256) * 4 + GUARD_BYTES;
    CUDA(cudaMalloc(&b->x, act_bytes((tokens_max + 255) / 256 * 256, cols)));
    CUDA(cudaMalloc(&b->bias, rows * sizeof(float)));
    CUDA(cudaMalloc(&b->out, b->capacity));
    CUDA(cudaMalloc(&b->first, b->capacity));
    CUDA(cudaMalloc(&b->bad, sizeof(uint32_t)));
    CUDA(cudaMemset(b->bad, 0, sizeof(uint32_t)));
    CUDA(cudaMalloc(&b->workspace, kn_cu_prefill_workspace_bytes(b->sm_count)));
    CUDA(cudaMemset(b->workspace, 0, kn_cu_prefill_workspace_bytes(b->sm_count)));
    CUDA(cudaMalloc(&b->partial, partial_bytes(rows)));
    CUDA(cudaMalloc(&b->windows, KN_TIER_MAX * sizeof *b->windows));
    CUDA(cudaMalloc(&b->traffic, KN_TIER_MAX * sizeof *b->traffic));
    fill_floats<<<64, 256>>>(b->bias, SEED_BIAS, rows);
    CUDA(cudaDeviceSynchronize());
}

static void bed_close(struct bed *b)
{
    void *device[] = {b->local, b->x,       b->bias,    b->out,       b->first,
                      b->bad,   b->windows, b->traffic, b->workspace, b->partial};
    for (size_t i = 0; i < ARRAY_COUNT(device); i++) CUDA(cudaFree(device[i]));
    CUDA(cudaFreeHost(b->pinned));
}

/* Tiles [0, before) and the last `after` in remote memory as tiers 2 and 1, the rest local. */
static void bed_place(struct bed *b, int before, int after)
{
    const size_t tile = (size_t)b->w.blocks_per_tile * KN_BLOCK_BYTES;
    const int last = b->w.tile_count - after;
    memset(b->w.span, 0, sizeof b->w.span);
    b->w.span[0] = {b->local + before * tile, before, last - before};
    b->w.span[1] = {b->pinned + last * tile, last, after};
    b->w.span[2] = {b->pinned, 0, before};
}

static void bed_window(struct bed *b, int blocks)
{
    struct kn_cu_window windows[KN_TIER_MAX] = {};
    for (int j = 1; j < KN_TIER_MAX; j++) windows[j] = {16, blocks, 1.f};
    CUDA(cudaMemcpy(b->windows, windows, sizeof windows, cudaMemcpyHostToDevice));
}

static void bed_input(struct bed *b, int tokens)
{
    CUDA(cudaMemset(b->x, POISON, act_bytes((b->tokens_max + 255) / 256 * 256, b->w.cols)));
    fill_act<<<dim3((b->w.cols + 255) / 128, tokens), 128>>>(b->x, tokens, b->w.cols);
}

static size_t out_bytes(const product &p)
{
    return is_act(p.epilogue) ? act_bytes(p.tokens, out_cols(p))
                              : (size_t)p.tokens * p.rows * sizeof(float);
}

static struct kn_cu_gemm_args bed_args(struct bed *b, const product &p, void *out, bool dependent)
{
    struct kn_cu_gemm_args a = {};
    a.w = &b->w;
    a.bias = p.bias ? b->bias : NULL;
    a.tokens = p.tokens;
    a.in = b->x;
    a.epilogue = p.epilogue;
    a.out = out;
    a.windows = b->windows;
    a.traffic = b->traffic;
    a.dependent = dependent;
    return a;
}

/* Poisons everything the launch writes, launches, waits. */
static void bed_run(struct bed *b, const struct kn_cu_prefill_plan *plan, const product &p)
{
    char err[ERR_CAP] = "";
    const size_t bytes = out_bytes(p);
    CHECK(bytes + GUARD_BYTES <= b->capacity);
    CUDA(cudaMemset(b->out, POISON, bytes + GUARD_BYTES));
    CUDA(cudaMemset(b->traffic, 0, KN_TIER_MAX * sizeof *b->traffic));
    if (p.epilogue == KN_EPI_ADD)
        fill_floats<<<512, 256>>>((float *)b->out, SEED_OUT, (size_t)p.tokens * p.rows);
    const struct kn_cu_gemm_args a = bed_args(b, p, b->out, true);
    STATUS(kn_cu_prefill_launch(plan, &a, b->workspace, NULL, err), err);
    CUDA(cudaDeviceSynchronize());
}

static void bed_compare(struct bed *b, const struct kn_cu_prefill_plan *plan, const product &p,
                        int stride)
{
    const int cols = out_cols(p);
    const bool act = is_act(p.epilogue);
    compare_kernel<<<dim3((cols / stride + 383) / 128, p.tokens), 128>>>(p, cols, act, b->out,
                                                                         stride, b->bad);
    const uint32_t wrong = gpu_count(b->bad);
    if (act && p.tokens % 256)
        padding_kernel<<<dim3((cols + 255) / 128, 128), 128>>>(b->out, p.tokens, cols, b->bad);
    const uint32_t padding = gpu_count(b->bad);
    const uint32_t guard = gpu_differs(b->bad, b->out + out_bytes(p), NULL, POISON, GUARD_BYTES);
    EXPECT(b->tally, wrong == 0 && padding == 0 && guard == 0,
           "%dx%d T %d epilogue %d, tile %dx%d, cluster %dx%d: %u wrong, %u padding, %u guard",
           p.rows, p.cols, p.tokens, p.epilogue, plan->group_tiles, plan->tile_tokens,
           plan->cluster_rows, plan->cluster_tokens, wrong, padding, guard);
}

/* --- the tests --- */

/* Plan i of the tests: each on all SMs and on 22 of them, where small products are cut as well. */
enum { TEST_PLANS = 2 * ARRAY_COUNT(bench_plans) };
static struct kn_cu_prefill_plan bed_plan(struct bed *b, const product &p, int i)
{
    char err[ERR_CAP] = "";
    struct kn_cu_prefill_plan plan = bench_plans[i / 2];
    STATUS(kn_cu_prefill_derive(p.rows, p.tokens, i % 2 ? 22 : b->sm_count, &plan, err), err);
    return plan;
}

static void bed_expect_same(struct bed *b, const struct kn_cu_prefill_plan *plan, const product &p,
                            const char *what)
{
    const uint32_t bad = gpu_differs(b->bad, b->out, b->first, 0, out_bytes(p));
    const uint32_t guard = gpu_differs(b->bad, b->out + out_bytes(p), NULL, POISON, GUARD_BYTES);
    EXPECT(
        b->tally, bad == 0 && guard == 0,
        "%s: %dx%d T %d epilogue %d, tile %dx%d, %d clusters of %dx%d: %u bytes differ, %u guard",
        what, p.rows, p.cols, p.tokens, p.epilogue, plan->group_tiles, plan->tile_tokens,
        plan->clusters, plan->cluster_rows, plan->cluster_tokens, bad, guard);
}

/* Against the reference, then every plan, bitwise the same. */
static void test_plans(struct bed *b, const product &p, int stride)
{
    bed_input(b, p.tokens);
    bed_place(b, 0, 0);
    for (int i = -1; i < TEST_PLANS; i++) {
        const struct kn_cu_prefill_plan plan = bed_plan(b, p, i < 0 ? 0 : i);
        bed_run(b, &plan, p);
        if (i >= 0) {
            bed_expect_same(b, &plan, p, "by another plan");
            continue;
        }
        bed_compare(b, &plan, p, stride);
        CUDA(cudaMemcpy(b->first, b->out, out_bytes(p), cudaMemcpyDeviceToDevice));
    }
}

/* Tiles [0, before) and the last `after` remote: bitwise what all-local gives; and the traffic
 * counters add up. */
static void test_placement(struct bed *b, const struct kn_cu_prefill_plan *plan, const product &p,
                           int before, int after, int window)
{
    const int n = b->w.tile_count, span = plan->tile_tokens * plan->cluster_tokens;
    const uint64_t reads = (uint64_t)(p.tokens + span - 1) / span * b->w.blocks_per_tile;
    struct kn_cu_traffic t[KN_TIER_MAX];
    bed_place(b, before, after);
    bed_window(b, window);
    bed_run(b, plan, p);
    bed_expect_same(b, plan, p, "with remote tiles");
    CUDA(cudaMemcpy(t, b->traffic, sizeof t, cudaMemcpyDeviceToHost));
    EXPECT(b->tally,
           t[0].blocks == reads * (n - before - after) && t[1].blocks == reads * after &&
               t[2].blocks == reads * before && t[1].trips + t[2].trips > 0,
           "traffic %llu, %llu, %llu blocks of %llu a tile", (unsigned long long)t[0].blocks,
           (unsigned long long)t[1].blocks, (unsigned long long)t[2].blocks,
           (unsigned long long)reads);
}

/* --- parts --- */

/* out[i] = what it is, for ADD, + the parts in order + bias. */
__global__ void add_parts(float *out, const float *partial, const float *bias, int parts, size_t n,
                          int rows, bool add)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x) {
        float sum = 0;
        for (int j = 0; j < parts; j++) sum += partial[j * n + i];
        out[i] = (add ? out[i] : 0.f) + sum + (bias ? bias[i % rows] : 0.f);
    }
}

/* The parts of a product by the plan, or by the wide GEMM for NULL; then their sum in b->out. */
static void bed_run_parts(struct bed *b, const struct kn_cu_prefill_plan *plan,
                          const struct kn_cu_gemm_plan *wide, const product &p, int parts)
{
    char err[ERR_CAP] = "";
    const size_t n = (size_t)p.tokens * p.rows;
    CUDA(cudaMemset(b->partial, POISON, partial_bytes(p.rows)));
    CUDA(cudaMemset(b->out, POISON, out_bytes(p) + GUARD_BYTES));
    if (p.epilogue == KN_EPI_ADD) fill_floats<<<512, 256>>>((float *)b->out, SEED_OUT, n);
    struct kn_cu_gemm_args a = bed_args(b, p, NULL, true);
    a.partial = b->partial;
    a.turn = -1;
    if (plan) STATUS(kn_cu_prefill_launch(plan, &a, b->workspace, NULL, err), err);
    else STATUS(kn_cu_gemm_launch(wide, &a, NULL, err), err);
    CUDA(cudaDeviceSynchronize());
    add_parts<<<512, 256>>>((float *)b->out, b->partial, p.bias ? b->bias : NULL, parts, n, p.rows,
                            p.epilogue == KN_EPI_ADD);
}

/* K in so many parts: against the reference, and bitwise the same parts for every tile, every
 * placement, and, where it can cut K so, the wide GEMM. */
static void test_parts(struct bed *b, const product &p, int parts, int stride)
{
    const size_t bytes = (size_t)parts * p.tokens * p.rows * sizeof(float);
    const int n = b->w.tile_count;
    char err[ERR_CAP] = "";
    bed_input(b, p.tokens);
    for (int i = 0; i < (int)ARRAY_COUNT(few_plans) * 2; i++) {
        struct kn_cu_prefill_plan plan = few_plans[i / 2];
        plan.parts = parts;
        STATUS(kn_cu_prefill_derive(p.rows, p.tokens, i % 2 ? 22 : b->sm_count, &plan, err), err);
        bed_place(b, i % 2 ? n / 3 : 0, i % 2 ? n / 4 : 0);
        bed_window(b, 1 + i % 3);
        bed_run_parts(b, &plan, NULL, p, parts);
        if (i == 0) {
            bed_compare(b, &plan, p, stride);
            CUDA(cudaMemcpy(b->first, b->partial, bytes, cudaMemcpyDeviceToDevice));
        }
        EXPECT(b->tally,
               gpu_differs(b->bad, (uint8_t *)b->partial, b->first, 0, bytes) == 0 &&
                   gpu_differs(b->bad, (uint8_t *)b->partial + bytes, NULL, POISON,
                               partial_bytes(p.rows) - bytes) == 0,
               "%d parts: %dx%d T %d, tile %dx%d, %d clusters of %dx%d differ", parts, p.rows,
               p.cols, p.tokens, plan.group_tiles, plan.tile_tokens, plan.clusters,
               plan.cluster_rows, plan.cluster_tokens);
    }
    if (parts == 3 || p.tokens > KN_CU_DECODE_MAX) return;
    struct kn_cu_gemm_plan wide;
    bed_place(b, 0, 0);
    kn_cu_gemm_plan(p.rows, p.cols, p.tokens, b->sm_count, true, &wide);
    wide.part_shift = parts / 2;
    kn_cu_gemm_plan_derive(p.rows, b->sm_count, &wide);
    bed_run_parts(b, NULL, &wide, p, parts);
    EXPECT(b->tally, gpu_differs(b->bad, (uint8_t *)b->partial, b->first, 0, bytes) == 0,
           "%d parts: %dx%d T %d: the wide GEMM differs", parts, p.rows, p.cols, p.tokens);
}

/* Whole products of up to 256 tokens: bitwise the same by every tile, and by the wide GEMM, where
 * that computes as many. */
static void test_wide(struct bed *b, const product &p)
{
    char err[ERR_CAP] = "";
    bed_input(b, p.tokens);
    bed_place(b, 0, 0);
    for (int i = 0; i < (int)ARRAY_COUNT(few_plans) * 2; i++) {
        struct kn_cu_prefill_plan plan = few_plans[i / 2];
        plan.cut = i % 2;
        STATUS(kn_cu_prefill_derive(p.rows, p.tokens, i % 2 ? 6 : b->sm_count, &plan, err), err);
        bed_run(b, &plan, p);
        if (i == 0) {
            bed_compare(b, &plan, p, p.rows > 2000 ? 211 : 1);
            CUDA(cudaMemcpy(b->first, b->out, out_bytes(p), cudaMemcpyDeviceToDevice));
        }
        bed_expect_same(b, &plan, p, "by another plan");
    }
    if (p.tokens > KN_CU_DECODE_MAX) return;
    struct kn_cu_gemm_plan wide;
    kn_cu_gemm_plan(p.rows, p.cols, p.tokens, b->sm_count, false, &wide);
    CUDA(cudaMemset(b->out, POISON, out_bytes(p)));
    if (p.epilogue == KN_EPI_ADD)
        fill_floats<<<512, 256>>>((float *)b->out, SEED_OUT, (size_t)p.tokens * p.rows);
    struct kn_cu_gemm_args a = bed_args(b, p, b->out, true);
    a.turn = -1;
    STATUS(kn_cu_gemm_launch(&wide, &a, NULL, err), err);
    EXPECT(b->tally, gpu_differs(b->bad, b->out, b->first, 0, out_bytes(p)) == 0,
           "%dx%d T %d epilogue %d: the wide GEMM differs", p.rows, p.cols, p.tokens, p.epilogue);
}

/* A token's sums do not depend on how many others a step of the same bucket has. */
static void test_neighbours(struct bed *b, product p, int tokens, int fewer)
{
    bed_place(b, 0, 0);
    for (int i = 0; i < (int)ARRAY_COUNT(few_plans); i++) {
        struct kn_cu_prefill_plan plan = few_plans[i];
        char err[ERR_CAP] = "";
        for (int run = 0; run < 2; run++) {
            p.tokens = run ? fewer : tokens;
            bed_input(b, p.tokens);
            STATUS(kn_cu_prefill_derive(p.rows, p.tokens, b->sm_count, &plan, err), err);
            bed_run(b, &plan, p);
            if (!run) CUDA(cudaMemcpy(b->first, b->out, out_bytes(p), cudaMemcpyDeviceToDevice));
        }
        bed_expect_same(b, &plan, p, "with fewer neighbours");
    }
}

static void run_wide(struct tally *tally, int sm_count, bool quick)
{
    static const int tokens[] = {40, 64, 100, 128, 129, 256};
    static const product products[] = {{320, 1000, 0, true, KN_EPI_SWIGLU},
                                       {1001, 520, 0, true, KN_EPI_RELU},
                                       {200, 129, 0, true, KN_EPI_ADD},
                                       {1001, 2000, 0, false, KN_EPI_F32},
                                       {28672, 4096, 0, false, KN_EPI_SWIGLU}};
    for (size_t i = 0; i < ARRAY_COUNT(products) - quick; i++) {
        struct bed b = {};
        b.tally = tally;
        b.sm_count = sm_count;
        bed_open(&b, products[i].rows, products[i].cols, KN_CU_TOKENS_MAX);
        for (size_t j = 0; j < ARRAY_COUNT(tokens); j++) {
            product p = products[i];
            p.tokens = tokens[j];
            test_wide(&b, p);
        }
        if (products[i].epilogue == KN_EPI_F32) test_neighbours(&b, products[i], 250, 130);
        bed_close(&b);
    }
    printf("as the wide GEMM: %d passed, %d failed so far\n", tally->passed, tally->failed);
}

static void run_parts(struct tally *tally, int sm_count, bool quick)
{
    static const int tokens[] = {40, 64, 100, 128, 200, 256};
    static const product products[] = {{200, 1000, 0, true, KN_EPI_ADD},
                                       {1001, 900, 0, false, KN_EPI_STORE},
                                       {4096, 4096, 0, false, KN_EPI_ADD},
                                       {6144, 4096, 0, true, KN_EPI_STORE}};
    for (size_t i = 0; i < (quick ? 2 : ARRAY_COUNT(products)); i++) {
        struct bed b = {};
        b.tally = tally;
        b.sm_count = sm_count;
        bed_open(&b, products[i].rows, products[i].cols, KN_CU_PARTS_MAX * KN_CU_TOKENS_MAX);
        for (size_t j = 0; j < ARRAY_COUNT(tokens); j++)
            for (int parts = 1; parts <= KN_CU_PARTS_MAX; parts++) {
                product p = products[i];
                p.tokens = tokens[j];
                test_parts(&b, p, parts, p.rows > 2000 ? 211 : 1);
            }
        bed_close(&b);
    }
    printf("parts: %d passed, %d failed so far\n", tally->passed, tally->failed);
}

/* --- placements --- */

/* Every plan, placement and window. */
static void test_placements(struct bed *b, const product &p)
{
    static const int windows[] = {1, 2, KN_WINDOW_NO_BOUND};
    const int n = b->w.tile_count, some = (n * 7 + 99) / 100, third = (n * 30 + 99) / 100;
    const int places[][2] = {{0, some}, {0, n}, {some, third}, {n, 0}, {third, some}};
    bed_input(b, p.tokens);
    for (int i = 0; i < TEST_PLANS; i++) {
        const struct kn_cu_prefill_plan plan = bed_plan(b, p, i);
        if (i == 0) {
            bed_place(b, 0, 0);
            bed_run(b, &plan, p);
            CUDA(cudaMemcpy(b->first, b->out, out_bytes(p), cudaMemcpyDeviceToDevice));
        }
        for (int j = 0; j < (int)ARRAY_COUNT(places); j++) {
            const int before = places[j][0] < n ? places[j][0] : n;
            const int after = before + places[j][1] > n ? n - before : places[j][1];
            test_placement(b, &plan, p, before, after, windows[(i + j) % ARRAY_COUNT(windows)]);
        }
    }
}

/* Launches that overlap give what launches one by one give. */
static void test_overlap(struct bed *b, const product &p)
{
    char err[ERR_CAP] = "";
    bed_input(b, p.tokens);
    bed_place(b, 0, b->w.tile_count / 5);
    bed_window(b, 1);
    for (int dependent = 0; dependent < 2; dependent++) {
        uint8_t *out = dependent ? b->out : b->first;
        CUDA(cudaMemset(out, 0, out_bytes(p)));
        CUDA(cudaDeviceSynchronize());
        for (int i = 0; i < TEST_PLANS; i++) {
            const struct kn_cu_prefill_plan plan = bed_plan(b, p, i);
            const struct kn_cu_gemm_args a = bed_args(b, p, out, dependent != 0);
            STATUS(kn_cu_prefill_launch(&plan, &a, b->workspace, NULL, err), err);
            if (!dependent) CUDA(cudaDeviceSynchronize());
        }
        CUDA(cudaDeviceSynchronize());
    }
    EXPECT(b->tally, gpu_differs(b->bad, b->out, b->first, 0, out_bytes(p)) == 0,
           "overlapping launches differ, T %d", p.tokens);
}

struct test_shape {
    int rows, cols;
    enum kn_epilogue epilogue;
    bool bias, quick;
};

/* SMs on which a product's last units are cut. */
static int tiny_sms(const struct kn_cu_prefill_plan *p, int rows, int tokens)
{
    const int set_rows = p->group_tiles * p->cluster_rows * 64,
              set_tokens = p->tile_tokens * p->cluster_tokens,
              units = (rows + set_rows - 1) / set_rows * ((tokens + set_tokens - 1) / set_tokens);
    int clusters = 2;
    while (units % clusters == 0) clusters++;
    return clusters * p->cluster_rows * p->cluster_tokens;
}

/* Every plan, all local and with a remote tier in a window of one block; and in parts. */
static void run_tiny(struct tally *tally, int sm_count)
{
    static const product products[] = {{200, 1000, 520, true, KN_EPI_ADD},
                                       {192, 400, 520, false, KN_EPI_SWIGLU}};
    for (size_t i = 0; i < ARRAY_COUNT(products); i++) {
        product p = products[i];
        struct bed b = {};
        b.tally = tally;
        b.sm_count = sm_count;
        bed_open(&b, p.rows, p.cols, KN_CU_PARTS_MAX * KN_CU_TOKENS_MAX);
        bed_input(&b, p.tokens);
        bed_place(&b, 0, i == 0 ? 2 : 0);
        bed_window(&b, 1);
        for (int j = 0; j < (int)ARRAY_COUNT(bench_plans); j++) {
            char err[ERR_CAP] = "";
            struct kn_cu_prefill_plan plan = bench_plans[j];
            STATUS(kn_cu_prefill_derive(p.rows, p.tokens, tiny_sms(&plan, p.rows, p.tokens), &plan,
                                        err),
                   err);
            bed_run(&b, &plan, p);
            bed_compare(&b, &plan, p, 1);
        }
        p.tokens = 200;
        if (i == 0) test_parts(&b, p, 3, 1);
        bed_close(&b);
    }
}

static void run_tests(struct tally *tally, int sm_count, bool quick)
{
    static const struct test_shape shapes[] = {
        {65, 129, KN_EPI_F32, true, true},          {320, 200, KN_EPI_SWIGLU, true, true},
        {1000, 257, KN_EPI_RELU, true, true},       {1000, 257, KN_EPI_ADD, false, true},
        {1001, 130, KN_EPI_ADD, true, true},        {64, 128, KN_EPI_STORE, false, true},
        {6144, 4096, KN_EPI_STORE, true, false},    {4096, 4096, KN_EPI_ADD, false, false},
        {28672, 4096, KN_EPI_SWIGLU, false, false},
    };
    static const int small[] = {257, 300, 511, 512, 513, 1024, 2047}, few[] = {300, 1300};
    for (size_t i = 0; i < ARRAY_COUNT(shapes); i++) {
        const struct test_shape *s = &shapes[i];
        if (quick && !s->quick) continue;
        struct bed b = {};
        b.tally = tally;
        b.sm_count = sm_count;
        bed_open(&b, s->rows, s->cols, 2047);
        product p = {s->rows, s->cols, 0, s->bias, s->epilogue};
        for (size_t j = 0; s->quick && j < ARRAY_COUNT(small); j++) {
            if (quick && small[j] != 300) continue;
            p.tokens = small[j];
            test_plans(&b, p, 1);
        }
        for (size_t j = 0; j < ARRAY_COUNT(few); j++) {
            if (quick && j > 0) continue;
            p.tokens = few[j];
            if (!s->quick) test_plans(&b, p, 211);
            if (s->rows < 10000) test_placements(&b, p);
            if (s->epilogue == KN_EPI_ADD) test_overlap(&b, p);
        }
        bed_close(&b);
        printf("%6d x %5d: %d passed, %d failed so far\n", s->rows, s->cols, tally->passed,
               tally->failed);
        fflush(stdout);
    }
}

int main(int argc, char **argv)
{
    struct tally tally = {0, 0};
    char err[ERR_CAP] = "";
    bool quick = false, tiny = false, bench = false, tune = false, cross = false;
    const char *cublaslt = NULL;
    for (int i = 1; i < argc; i++) {
        quick |= !strcmp(argv[i], "--quick");
        tiny |= !strcmp(argv[i], "--tiny");
        bench |= !strcmp(argv[i], "--bench");
        tune |= !strcmp(argv[i], "--tune");
        cross |= !strcmp(argv[i], "--cross");
        if (!strcmp(argv[i], "--cublaslt") && i + 1 < argc) cublaslt = argv[++i];
    }
    int device, sm_count;
    CUDA(cudaGetDevice(&device));
    CUDA(cudaDeviceGetAttribute(&sm_count, cudaDevAttrMultiProcessorCount, device));
    STATUS(kn_cu_prefill_init(err), err);
    if (cross) bench_cross(sm_count, cublaslt);
    if (bench) bench_prefill(sm_count, cublaslt, tune);
    if (bench || cross) return 0;
    if (tiny) {
        run_tiny(&tally, sm_count);
    } else {
        STATUS(kn_cu_gemm_init(err), err);
        run_parts(&tally, sm_count, quick);
        run_wide(&tally, sm_count, quick);
        run_tests(&tally, sm_count, quick);
    }
    printf("%d passed, %d failed\n", tally.passed, tally.failed);
    return tally.failed != 0;
}
