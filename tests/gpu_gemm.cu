/*
 * gpu_gemm.cu - the decode GEMM against an fp64 reference, and against itself: every result must be
 * bitwise the same for every run, placement, window and neighbour.  With --bench it measures the
 * GEMMs of a decode step (gpu_gemm_bench.cuh), with --remote those of a step with a share of the
 * weights remote, with --windows HBM beside the link (gpu_window_bench.cuh); --peer takes the
 * second GPU's memory for remote, not the host's; --quick runs small shapes alone, for
 * compute-sanitizer; --from T leaves out steps of less than T tokens.
 *
 * The reference is a kernel in fp64 that computes each element from the random data directly; it is
 * itself held to a loop on the host.  Outputs, workspaces and padding are poisoned before each run.
 *
 * Tolerance: |error| <= 4e-6 of the sum of absolute products (a single product missed of K = 14,336
 * is 7e-5 of it), plus half a unit of bf16 where the output is bf16.
 */
#include <math.h>
#include <string.h>
#include <time.h>

#include "config/check.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/small.h"
#include "tests/gpu_check.cuh"
#include "tests/gpu_differ.cuh"
#include "tests/gpu_gemm_bench.cuh"
#include "tests/gpu_window_bench.cuh"

#define GUARD_BYTES 4096
#define POISON 0xFF /* NaN in fp32 and bf16 */

enum { SEED_W = 1, SEED_X, SEED_BIAS, SEED_OUT };
static const float W_SCALE = 0.0625f, X_SCALE = 1.f;

/* --- data --- */

__global__ void fill_tiles(uint8_t *to, int rows, int cols, int blocks_per_tile, size_t elements)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < elements;
         i += (size_t)gridDim.x * blockDim.x) {
        size_t block = i / 8192;
        int e = (int)(i % 8192), atom = e / 4096, r = e % 4096 / 64, c = e % 64;
        int row = (int)(block / blocks_per_tile) * 64 + r;
        int col = (int)(block % blocks_per_tile) * 128 + atom * 64 + c;
        float v = row < rows && col < cols ? random_bf16(SEED_W, row, col, W_SCALE) : 0.f;
        size_t at = (size_t)r * 128 + (((c * 2 / 16) ^ (r & 7)) * 16) + c * 2 % 16;
        *(__nv_bfloat16 *)(to + block * KN_BLOCK_BYTES + atom * KN_ATOM_BYTES + at) =
            __float2bfloat16(v);
    }
}

/* Token t of the buffer is row first + t of the data; tokens beyond T are NaN. */
__global__ void fill_act(uint8_t *to, int bucket, int tokens, int cols, int first)
{
    int padded = (cols + 127) / 128 * 128;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < padded * bucket;
         i += gridDim.x * blockDim.x) {
        int t = i / padded, k = i % padded;
        float v = t >= tokens ? NAN : k < cols ? random_bf16(SEED_X, first + t, k, X_SCALE) : 0.f;
        *(__nv_bfloat16 *)(to + kn_cu_act_offset(bucket, t, k)) = __float2bfloat16(v);
    }
}

__global__ void fill_floats(float *to, uint32_t seed, size_t n)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x)
        to[i] = random_bf16(seed, 0, (uint32_t)i, 1.f);
}

/* --- reference --- */

/* Sum of products, and of their absolute values, for one output. */
__host__ __device__ static void dot(int t, int row, int cols, double *sum, double *absolute)
{
    *sum = *absolute = 0;
    for (int k = 0; k < cols; k++) {
        double p =
            (double)random_bf16(SEED_X, t, k, X_SCALE) * random_bf16(SEED_W, row, k, W_SCALE);
        *sum += p;
        *absolute += fabs(p);
    }
}

struct reference {
    int rows, cols, tokens, bias;
};

__global__ void reference_kernel(reference r, double *sum, double *absolute)
{
    int row = blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y;
    if (row >= r.rows) return;
    double s, a;
    dot(t, row, r.cols, &s, &a);
    if (r.bias) s += random_bf16(SEED_BIAS, 0, row, 1.f);
    sum[(size_t)t * r.rows + row] = s;
    absolute[(size_t)t * r.rows + row] = a;
}

/* Counts outputs beyond tolerance, and padding columns that are not zero. */
__global__ void compare_kernel(reference r, int epilogue, int bucket, const void *out,
                               const double *sum, const double *absolute, uint32_t *bad)
{
    bool act = epilogue == KN_EPI_RELU || epilogue == KN_EPI_SWIGLU;
    int cols = epilogue == KN_EPI_SWIGLU ? r.rows / 2 : r.rows;
    int i = blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y;
    if (i >= (act ? (cols + 127) / 128 * 128 : cols)) return;
    const uint8_t *bytes = (const uint8_t *)out;
    double got = act ? (double)__bfloat162float(
                           *(const __nv_bfloat16 *)(bytes + kn_cu_act_offset(bucket, t, i)))
                     : (double)((const float *)out)[(size_t)t * cols + i];
    double want = 0, tolerance = 0;
    const double *s = sum + (size_t)t * r.rows, *a = absolute + (size_t)t * r.rows;
    if (i >= cols) {
        want = 0;
    } else if (epilogue == KN_EPI_SWIGLU) {
        int g = i / 8 * 16 + i % 8, u = g + 8; /* kn_glu_row */
        double silu = s[g] / (1 + exp(-s[g]));
        want = silu * s[u];
        tolerance =
            4e-6 * (1.1 * a[g] * fabs(s[u]) + a[u] * fabs(silu)) + 0.004 * fabs(want) + 1e-6;
    } else {
        want = epilogue == KN_EPI_RELU ? fmax(s[i], 0.) : s[i];
        if (epilogue == KN_EPI_ADD) want += random_bf16(SEED_OUT, 0, t * cols + i, 1.f);
        tolerance = 4e-6 * a[i] + 1e-6 + (act ? 0.004 * fabs(want) : 2e-7 * fabs(want));
    }
    if (!(fabs(got - want) <= tolerance)) atomicAdd(bad, 1);
}

/* Counts bytes of padding tokens that were written. */
__global__ void padding_kernel(const uint8_t *out, int bucket, int tokens, int cols, uint32_t *bad)
{
    int k = blockIdx.x * blockDim.x + threadIdx.x, t = tokens + blockIdx.y;
    if (k >= (cols + 127) / 128 * 128) return;
    if (*(const uint16_t *)(out + kn_cu_act_offset(bucket, t, k)) != 0xFFFF) atomicAdd(bad, 1);
}

/* --- a GEMM under test --- */

struct bed {
    struct tally *tally;
    int sm_count;
    struct kn_weight w;
    bool peer;
    uint8_t *local, *pinned; /* all tiles, in HBM and in remote memory */
    uint8_t *x;
    float *bias;
    uint8_t *out, *first; /* of this run, and of the one it must equal */
    float *partial;       /* [4 parts][256 tokens][N] */
    double *sum, *absolute;
    uint32_t *bad;
    struct kn_cu_window *windows;
    struct kn_cu_traffic *traffic;
    int32_t turn; /* of the next launch that takes one */
    size_t out_capacity;
};

static size_t out_bytes(const struct bed *b, enum kn_epilogue e, int tokens)
{
    if (e == KN_EPI_SWIGLU) return kn_cu_act_bytes(kn_cu_bucket(tokens), b->w.rows / 2);
    if (e == KN_EPI_RELU) return kn_cu_act_bytes(kn_cu_bucket(tokens), b->w.rows);
    return (size_t)tokens * b->w.rows * sizeof(float);
}

/* Remote memory: of the second GPU with --peer, else the host's. */
static uint8_t *remote_alloc(size_t bytes, bool peer)
{
    uint8_t *memory;
    if (peer) {
        CUDA(cudaSetDevice(1));
        CUDA(cudaMalloc(&memory, bytes));
        CUDA(cudaSetDevice(0));
    } else {
        CUDA(cudaHostAlloc(&memory, bytes, cudaHostAllocMapped));
    }
    return memory;
}

static void remote_free(uint8_t *memory, bool peer)
{
    if (peer) CUDA(cudaFree(memory));
    else CUDA(cudaFreeHost(memory));
}

static void bed_open(struct bed *b, int rows, int cols, bool pinned)
{
    kn_weight_init(&b->w, KN_BF16, rows, cols);
    size_t bytes = (size_t)b->w.tile_count * b->w.blocks_per_tile * KN_BLOCK_BYTES;
    CUDA(cudaMalloc(&b->local, bytes));
    fill_tiles<<<1024, 256>>>(b->local, rows, cols, b->w.blocks_per_tile, bytes / 2);
    b->pinned = NULL;
    if (pinned) {
        b->pinned = remote_alloc(bytes, b->peer);
        CUDA(cudaMemcpy(b->pinned, b->local, bytes, cudaMemcpyDefault));
    }
    b->out_capacity = (size_t)256 * (rows + 256) * sizeof(float) + GUARD_BYTES;
    CUDA(cudaMalloc(&b->x, kn_cu_act_bytes(256, cols)));
    CUDA(cudaMalloc(&b->bias, rows * sizeof(float)));
    CUDA(cudaMalloc(&b->out, b->out_capacity));
    CUDA(cudaMalloc(&b->first, b->out_capacity));
    CUDA(cudaMalloc(&b->sum, (size_t)256 * rows * sizeof(double)));
    CUDA(cudaMalloc(&b->partial, PARTIAL_BYTES(rows)));
    CUDA(cudaMalloc(&b->absolute, (size_t)256 * rows * sizeof(double)));
    CUDA(cudaMalloc(&b->bad, sizeof(uint32_t)));
    CUDA(cudaMalloc(&b->windows, KN_TIER_MAX * sizeof *b->windows));
    CUDA(cudaMalloc(&b->traffic, KN_TIER_MAX * sizeof *b->traffic));
    fill_floats<<<64, 256>>>(b->bias, SEED_BIAS, rows);
    CUDA(cudaDeviceSynchronize());
}

static void bed_close(struct bed *b)
{
    void *device[] = {b->local,    b->x,   b->bias,    b->out,     b->first,  b->sum,
                      b->absolute, b->bad, b->windows, b->traffic, b->partial};
    for (size_t i = 0; i < ARRAY_COUNT(device); i++) CUDA(cudaFree(device[i]));
    if (b->pinned) remote_free(b->pinned, b->peer);
}

/* Tiles [0, before) and the last `after` in remote memory as tiers 2 and 1, the rest local. */
static void bed_place(struct bed *b, int before, int after)
{
    size_t tile = (size_t)b->w.blocks_per_tile * KN_BLOCK_BYTES;
    int last = b->w.tile_count - after;
    memset(b->w.span, 0, sizeof b->w.span);
    b->w.span[0] = {b->local + before * tile, before, last - before};
    b->w.span[1] = {b->pinned + last * tile, last, after};
    b->w.span[2] = {b->pinned, 0, before};
    if (!b->pinned) b->w.span[1].base = b->w.span[2].base = NULL;
}

static void bed_window(struct bed *b, int ctas, int blocks, float cost)
{
    struct kn_cu_window windows[KN_TIER_MAX] = {};
    for (int j = 1; j < KN_TIER_MAX; j++) windows[j] = {ctas, blocks, cost};
    CUDA(cudaMemcpy(b->windows, windows, sizeof windows, cudaMemcpyHostToDevice));
}

static void bed_plan(struct bed *b, enum kn_epilogue e, int tokens, struct kn_cu_gemm_plan *p)
{
    kn_cu_gemm_plan(b->w.rows, b->w.cols, tokens, b->sm_count, in_parts(e), p);
}

static struct kn_cu_gemm_args bed_args(struct bed *b, enum kn_epilogue e, int tokens, bool bias,
                                       void *out, bool dependent)
{
    struct kn_cu_gemm_args a = {};
    a.w = &b->w;
    a.bias = bias ? b->bias : NULL;
    a.tokens = tokens;
    a.in = b->x;
    a.epilogue = e;
    a.out = out;
    a.partial = in_parts(e) ? b->partial : NULL;
    a.windows = b->windows;
    a.traffic = b->traffic;
    a.dependent = dependent;
    return a;
}

/* Launches a product, and what adds its parts up. */
static void bed_launch(struct bed *b, const struct kn_cu_gemm_plan *plan,
                       const struct kn_cu_gemm_args *a)
{
    char err[ERR_CAP] = "";
    struct kn_cu_gemm_args args = *a;
    args.turn = kn_cu_gemm_takes_turn(plan, a->w, NULL, b->sm_count) ? b->turn++ : -1;
    STATUS(kn_cu_gemm_launch(plan, &args, NULL, err), err);
    if (!a->partial) return;
    const struct kn_cu_parts parts = {a->partial, 1 << plan->part_shift,
                                      (size_t)a->tokens * b->w.rows, a->bias};
    STATUS(kn_cu_settle_launch(&parts, a->tokens, b->w.rows, a->epilogue == KN_EPI_ADD,
                               (float *)a->out, NULL, err),
           err);
}

/* Poisons everything the launch writes, launches, waits. */
static void bed_run(struct bed *b, const struct kn_cu_gemm_plan *plan, enum kn_epilogue e,
                    int tokens, bool bias)
{
    size_t bytes = out_bytes(b, e, tokens);
    CHECK(bytes + GUARD_BYTES <= b->out_capacity);
    CUDA(cudaMemset(b->out, POISON, bytes + GUARD_BYTES));
    CUDA(cudaMemset(b->partial, POISON, PARTIAL_BYTES(b->w.rows)));
    CUDA(cudaMemset(b->traffic, 0, KN_TIER_MAX * sizeof *b->traffic));
    if (e == KN_EPI_ADD)
        fill_floats<<<512, 256>>>((float *)b->out, SEED_OUT, (size_t)tokens * b->w.rows);
    const struct kn_cu_gemm_args a = bed_args(b, e, tokens, bias, b->out, true);
    bed_launch(b, plan, &a);
    CUDA(cudaDeviceSynchronize());
}

static void bed_compare(struct bed *b, const struct kn_cu_gemm_plan *p, enum kn_epilogue e,
                        int tokens, bool bias, const char *what)
{
    struct reference r = {b->w.rows, b->w.cols, tokens, bias};
    int cols = e == KN_EPI_SWIGLU ? r.rows / 2 : r.rows;
    bool act = e == KN_EPI_SWIGLU || e == KN_EPI_RELU;
    compare_kernel<<<dim3((cols + 255) / 128, tokens), 128>>>(r, e, p->bucket, b->out, b->sum,
                                                              b->absolute, b->bad);
    uint32_t bad = gpu_count(b->bad);
    if (act && tokens < p->bucket)
        padding_kernel<<<dim3((cols + 255) / 128, p->bucket - tokens), 128>>>(b->out, p->bucket,
                                                                              tokens, cols, b->bad);
    uint32_t written = gpu_count(b->bad);
    uint32_t guard =
        gpu_differs(b->bad, b->out + out_bytes(b, e, tokens), NULL, POISON, GUARD_BYTES);
    EXPECT(b->tally, bad == 0 && written == 0 && guard == 0,
           "%s %dx%d T %d epilogue %d tiles %d parts %d: %u wrong, %u padding, %u guard", what,
           r.rows, r.cols, tokens, e, p->group_tiles, 1 << p->part_shift, bad, written, guard);
}

static void bed_reference(struct bed *b, int tokens, bool bias)
{
    struct reference r = {b->w.rows, b->w.cols, tokens, bias};
    reference_kernel<<<dim3((r.rows + 127) / 128, tokens), 128>>>(r, b->sum, b->absolute);
    CUDA(cudaDeviceSynchronize());
}

/* --- the tests --- */

/* The fp64 kernel is itself right. */
static void test_reference(struct bed *b)
{
    int tokens = 3;
    bed_reference(b, tokens, true);
    double *sum = (double *)malloc((size_t)tokens * b->w.rows * sizeof *sum);
    CHECK(sum);
    CUDA(cudaMemcpy(sum, b->sum, (size_t)tokens * b->w.rows * sizeof *sum, cudaMemcpyDeviceToHost));
    double worst = 0;
    for (int t = 0; t < tokens; t++)
        for (int row = 0; row < b->w.rows; row++) {
            double s, a;
            dot(t, row, b->w.cols, &s, &a);
            s += random_bf16(SEED_BIAS, 0, row, 1.f);
            worst = fmax(worst, fabs(s - sum[(size_t)t * b->w.rows + row]));
        }
    EXPECT(b->tally, worst < 1e-12, "reference differs from the host by %g", worst);
    free(sum);
}

/* Against the reference, then again: bitwise the same. */
static void test_shape(struct bed *b, enum kn_epilogue e, int tokens, bool bias)
{
    struct kn_cu_gemm_plan p;
    bed_plan(b, e, tokens, &p);
    fill_act<<<256, 256>>>(b->x, p.bucket, tokens, b->w.cols, 0);
    bed_reference(b, tokens, bias);
    bed_place(b, 0, 0);
    bed_run(b, &p, e, tokens, bias);
    bed_compare(b, &p, e, tokens, bias, "planned");
    size_t bytes = out_bytes(b, e, tokens);
    CUDA(cudaMemcpy(b->first, b->out, bytes, cudaMemcpyDeviceToDevice));
    bed_run(b, &p, e, tokens, bias);
    EXPECT(b->tally, gpu_differs(b->bad, b->out, b->first, 0, bytes) == 0,
           "two runs differ: %dx%d T %d", b->w.rows, b->w.cols, tokens);
}

/* Every group height and cut of K, each against the reference. */
static void test_plans(struct bed *b, enum kn_epilogue e, int tokens)
{
    struct kn_cu_gemm_plan p;
    bed_plan(b, e, tokens, &p);
    fill_act<<<256, 256>>>(b->x, p.bucket, tokens, b->w.cols, 0);
    bed_reference(b, tokens, true);
    bed_place(b, 0, 0);
    const int shifts = in_parts(e) ? KN_CU_PART_SHIFT_MAX : 0;
    for (int tiles = 1; tiles <= 2; tiles *= 2)
        for (int ctas = 1; ctas <= kn_cu_gemm_resident(p.bucket, tiles); ctas++)
            for (int shift = 0; shift <= shifts; shift++) {
                p.group_tiles = tiles;
                p.part_shift = shift;
                p.ctas_per_sm = ctas;
                kn_cu_gemm_plan_derive(b->w.rows, b->sm_count, &p);
                bed_run(b, &p, e, tokens, true);
                bed_compare(b, &p, e, tokens, true, "forced");
            }
}

/* Every placement and window: bitwise what all-local gives; and the traffic counters add up. */
static void test_placements(struct bed *b, enum kn_epilogue e, int tokens)
{
    static const int windows[][2] = {{1, 1},
                                     {16, 1},
                                     {16, 4},
                                     {5, 6},
                                     {132, 8},
                                     {KN_WINDOW_NO_BOUND, 2},
                                     {KN_WINDOW_NO_BOUND, KN_WINDOW_NO_BOUND}};
    static const float costs[] = {0.f, 12.5f, 1000.f};
    struct kn_cu_gemm_plan p;
    bed_plan(b, e, tokens, &p);
    fill_act<<<256, 256>>>(b->x, p.bucket, tokens, b->w.cols, 0);
    bed_place(b, 0, 0);
    bed_run(b, &p, e, tokens, true);
    size_t bytes = out_bytes(b, e, tokens);
    CUDA(cudaMemcpy(b->first, b->out, bytes, cudaMemcpyDeviceToDevice));
    int n = b->w.tile_count, some = (n * 7 + 99) / 100, third = (n * 30 + 99) / 100;
    const int places[][2] = {{0, some}, {0, third}, {0, n}, {some, third}, {n, 0}, {third, some}};
    for (size_t i = 0; i < ARRAY_COUNT(places); i++)
        for (size_t j = 0; j < ARRAY_COUNT(windows); j++) {
            int before = size_min(places[i][0], n - 1 + (i == 4)), after = places[i][1];
            if (before + after > n) after = n - before;
            float cost = costs[(i + j) % ARRAY_COUNT(costs)];
            bed_place(b, before, after);
            bed_window(b, windows[j][0], windows[j][1], cost);
            bed_run(b, &p, e, tokens, true);
            uint32_t bad = gpu_differs(b->bad, b->out, b->first, 0, bytes);
            struct kn_cu_traffic t[KN_TIER_MAX];
            CUDA(cudaMemcpy(t, b->traffic, sizeof t, cudaMemcpyDeviceToHost));
            uint64_t all = t[0].blocks + t[1].blocks + t[2].blocks;
            uint64_t local = (uint64_t)(n - before - after) * b->w.blocks_per_tile;
            EXPECT(b->tally, bad == 0,
                   "%dx%d T %d with %d + %d of %d tiles remote, window %d x %d: %u bytes differ",
                   b->w.rows, b->w.cols, tokens, before, after, n, windows[j][0], windows[j][1],
                   bad);
            EXPECT(b->tally,
                   all == (uint64_t)n * b->w.blocks_per_tile && t[0].blocks == local &&
                       t[1].trips + t[2].trips == all - local,
                   "traffic %llu local %llu trips of %llu blocks, %llu local",
                   (unsigned long long)t[0].blocks, (unsigned long long)(t[1].trips + t[2].trips),
                   (unsigned long long)all, (unsigned long long)local);
        }
}

/* Each token's row is what it is alone, within one bucket. */
static void test_neighbours(struct bed *b, int tokens, int alone)
{
    struct kn_cu_gemm_plan p;
    bed_plan(b, KN_EPI_F32, tokens, &p);
    fill_act<<<256, 256>>>(b->x, p.bucket, tokens, b->w.cols, 0);
    bed_place(b, 0, 0);
    bed_run(b, &p, KN_EPI_F32, tokens, true);
    CUDA(cudaMemcpy(b->first, b->out, out_bytes(b, KN_EPI_F32, tokens), cudaMemcpyDeviceToDevice));
    size_t row = b->w.rows * sizeof(float);
    for (int t = 0; t + alone <= tokens; t += alone) {
        fill_act<<<256, 256>>>(b->x, p.bucket, alone, b->w.cols, t);
        bed_run(b, &p, KN_EPI_F32, alone, true);
        EXPECT(b->tally, gpu_differs(b->bad, b->out, b->first + t * row, 0, alone * row) == 0,
               "token %d alone differs from among %d", t, tokens);
    }
}

/* Launches that overlap give what launches one by one give. */
static void test_overlap(struct bed *b, int tokens)
{
    struct kn_cu_gemm_plan p;
    bed_plan(b, KN_EPI_ADD, tokens, &p);
    fill_act<<<256, 256>>>(b->x, p.bucket, tokens, b->w.cols, 0);
    bed_place(b, 0, b->w.tile_count / 5);
    bed_window(b, 16, 1, 91.f);
    size_t bytes = out_bytes(b, KN_EPI_ADD, tokens);
    for (int dependent = 0; dependent < 2; dependent++) {
        uint8_t *out = dependent ? b->out : b->first;
        CUDA(cudaMemset(out, 0, bytes));
        CUDA(cudaDeviceSynchronize());
        const struct kn_cu_gemm_args a = bed_args(b, KN_EPI_ADD, tokens, true, out, dependent != 0);
        for (int i = 0; i < 40; i++) {
            bed_launch(b, &p, &a);
            if (!dependent) CUDA(cudaDeviceSynchronize());
        }
        CUDA(cudaDeviceSynchronize());
    }
    EXPECT(b->tally, gpu_differs(b->bad, b->out, b->first, 0, bytes) == 0,
           "40 overlapping launches differ, T %d", tokens);
}

static void test_refusals(struct tally *tally)
{
    char err[ERR_CAP] = "";
    struct kn_weight w;
    memset(&w, 0, sizeof w);
    w.dtype = KN_F32;
    struct kn_cu_gemm_plan p;
    kn_cu_gemm_plan(64, 128, 1, 132, false, &p);
    struct kn_cu_gemm_args a = {};
    a.w = &w;
    a.tokens = 1;
    EXPECT(tally, kn_cu_gemm_launch(&p, &a, NULL, err) == ST_UNSUPPORTED && strstr(err, "float32"),
           "float32 weights: %s", err);
}

struct test_shape {
    int rows, cols;
    enum kn_epilogue epilogue;
    bool bias, quick;
};

static void run_tests(struct tally *tally, int sm_count, bool quick, bool peer, int from)
{
    static const struct test_shape shapes[] = {
        {65, 129, KN_EPI_F32, true, true},          {320, 200, KN_EPI_SWIGLU, true, true},
        {1000, 257, KN_EPI_RELU, true, true},       {1000, 257, KN_EPI_ADD, false, true},
        {64, 128, KN_EPI_STORE, false, true},       {1008, 5000, KN_EPI_SWIGLU, true, true},
        {6144, 4096, KN_EPI_STORE, false, false},   {4096, 4096, KN_EPI_ADD, false, false},
        {28672, 4096, KN_EPI_SWIGLU, false, false}, {4096, 14336, KN_EPI_ADD, true, false},
        {16384, 4096, KN_EPI_RELU, true, false},    {128256, 4096, KN_EPI_F32, false, false},
    };
    static const int tokens[] = {1, 3, 7, 8, 9, 16, 17, 32, 33, 64, 65, 127, 128};
    static const int few[] = {1, 9, 33, 65, 100};
    for (size_t i = 0; i < ARRAY_COUNT(shapes); i++) {
        const struct test_shape *s = &shapes[i];
        if (quick && !s->quick) continue;
        bool head = s->rows > 100000;
        struct bed b = {};
        b.tally = tally;
        b.sm_count = sm_count;
        b.peer = peer;
        bed_open(&b, s->rows, s->cols, !head);
        CUDA(cudaMemset(b.bad, 0, sizeof(uint32_t)));
        if (s->quick) test_reference(&b);
        for (size_t j = 0; j < ARRAY_COUNT(tokens); j++) {
            if (tokens[j] < from || (quick && tokens[j] % 2 == 0 && tokens[j] != 128)) continue;
            if (head && tokens[j] % 8 != 1 && tokens[j] != 128) continue;
            test_shape(&b, s->epilogue, tokens[j], s->bias);
        }
        for (size_t j = 0; j < ARRAY_COUNT(few) && !head; j++) {
            if (few[j] < from) continue;
            if (s->quick || s->rows == 4096) test_plans(&b, s->epilogue, few[j]);
            if (!quick || j % 2) test_placements(&b, s->epilogue, few[j]);
            if (!quick || j % 2) test_overlap(&b, few[j]);
        }
        if (s->epilogue == KN_EPI_F32 || s->epilogue == KN_EPI_STORE) {
            if (from <= 7) test_neighbours(&b, 7, 1);
            if (from <= 48) test_neighbours(&b, 48, 4 * 9);
            test_neighbours(&b, 120, 70);
        }
        bed_close(&b);
        printf("%6d x %5d: %d passed, %d failed so far, %.1f s of CPU time\n", s->rows, s->cols,
               tally->passed, tally->failed, (double)clock() / CLOCKS_PER_SEC);
        fflush(stdout);
    }
    test_refusals(tally);
}

int main(int argc, char **argv)
{
    struct tally tally = {0, 0};
    char err[ERR_CAP] = "";
    bool quick = false, bench = false, tune = false, remote = false, windows = false, peer = false;
    int from = 1;
    const char *cublas = NULL;
    for (int i = 1; i < argc; i++) {
        quick |= !strcmp(argv[i], "--quick");
        bench |= !strcmp(argv[i], "--bench");
        tune |= !strcmp(argv[i], "--tune");
        remote |= !strcmp(argv[i], "--remote");
        windows |= !strcmp(argv[i], "--windows");
        peer |= !strcmp(argv[i], "--peer");
        if (!strcmp(argv[i], "--from") && i + 1 < argc) from = atoi(argv[++i]);
        if (!strcmp(argv[i], "--cublas") && i + 1 < argc) cublas = argv[++i];
    }
    STATUS(kn_cu_gemm_init(err), err);
    int device, sm_count;
    CUDA(cudaGetDevice(&device));
    CUDA(cudaDeviceGetAttribute(&sm_count, cudaDevAttrMultiProcessorCount, device));
    if (peer) CUDA(cudaDeviceEnablePeerAccess(1, 0));
    if (bench || tune || remote || windows) {
        STATUS(kn_cu_prefill_init(err), err);
        bench_gemm(sm_count, tune, bench, remote, windows, peer, from, cublas);
        return 0;
    }
    run_tests(&tally, sm_count, quick, peer, from);
    printf("%d passed, %d failed\n", tally.passed, tally.failed);
    return tally.failed != 0;
}
