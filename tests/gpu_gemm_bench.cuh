/*
 * gpu_gemm_bench.cuh - the 129 GEMMs of a Llama-3.1-8B decode step as one CUDA graph, against the
 * floor and against cuBLAS in the same run.
 *
 * Floor: one launch that streams the same 15 GB through rings of 6 x 16 KB, with no arithmetic.
 * cuBLAS: bf16 in and out, fp32 accumulation, the same sizes over the same bytes, in a graph.
 * Remote: a share of every weight's tiles in pinned host memory or in a peer's; the floor is the
 * larger of local bytes over the HBM rate and remote bytes over the link's, both probed in the same
 * run.
 * Every figure is the median of replays; weights are random and distinct, 250 times the L2.
 */
#ifndef DAKD_TESTS_GPU_GEMM_BENCH_CUH
#define DAKD_TESTS_GPU_GEMM_BENCH_CUH

#include <dlfcn.h>
#include <math.h>
#include <string.h>

#include "config/check.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/prefill.h"
#include "kernels/cuda/ptx.cuh"
extern "C" {
#include "offload/place.h"
}
#include "tests/gpu_check.cuh"

#define LAYERS 32
#define OPS_MAX (4 * LAYERS + 1)
#define REPLAYS 9

#define PARTIAL_BYTES(rows) ((size_t)KN_CU_PARTS_MAX * KN_CU_TOKENS_MAX * (rows) * sizeof(float))

/* Whether a product is left in parts for another kernel to add up. */
static bool in_parts(enum kn_epilogue e)
{
    return e == KN_EPI_ADD || e == KN_EPI_STORE;
}

struct bench_op {
    int rows, cols;
    enum kn_epilogue epilogue;
    const uint8_t *weights;
};

struct bench {
    int sm_count, op_count;
    struct bench_op ops[OPS_MAX];
    uint8_t *weights, *pinned;
    size_t bytes, pinned_bytes;
    uint8_t *x, *wide; /* activations of 4,096 and of 14,336 inputs */
    float *qkv, *residual, *logits, *partial;
    __nv_bfloat16 *plain_x, *plain_out; /* row-major, for cuBLAS */
    struct kn_cu_window *windows;
    struct kn_cu_traffic *traffic;
    void *workspace; /* of the prefill GEMM */
    int turn;        /* of the next launch that takes one */
    cudaStream_t stream;
    double floor_ms, link_gbps; /* the floor of all bytes in HBM */
    struct off_tiers *tiers;    /* for off_place alone */
};

/* bf16 of both signs and magnitudes 2^-9..2^-5: finite sums, random bits. */
__global__ void fill_random(uint32_t *to, size_t words, uint32_t seed)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < words;
         i += (size_t)gridDim.x * blockDim.x)
        to[i] = (random_bits(seed, (uint32_t)(i >> 20), (uint32_t)i) & 0x81FF81FFu) | 0x3C003C00u;
}

/* Reads blocks dealt over the grid, `depth` in flight per CTA, and does nothing with them. */
__global__ void __launch_bounds__(32) stream_blocks(const uint8_t *from, int32_t blocks, int depth)
{
    extern __shared__ __align__(1024) uint8_t ring[];
    __shared__ uint64_t full[8];
    if (threadIdx.x) return;
    for (int s = 0; s < depth; s++) ptx_mbarrier_init(&full[s], 1);
    ptx_fence_mbarrier_init();
    const uint64_t once = ptx_policy_evict_first();
    int32_t mine = (blocks - (int32_t)blockIdx.x + (int32_t)gridDim.x - 1) / (int32_t)gridDim.x;
    for (int32_t i = 0; i < mine + depth; i++) {
        if (i >= depth) ptx_mbarrier_wait(&full[i % depth], (i / depth - 1) & 1);
        if (i >= mine) continue;
        ptx_mbarrier_expect_tx(&full[i % depth], KN_BLOCK_BYTES);
        ptx_bulk_load_hint(ring + i % depth * KN_BLOCK_BYTES,
                           from + ((size_t)i * gridDim.x + blockIdx.x) * KN_BLOCK_BYTES,
                           KN_BLOCK_BYTES, &full[i % depth], once);
    }
}

static int compare_floats(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Median time of a graph's replays in ms; destroys the graph. */
static double time_graph(struct bench *b, cudaGraph_t graph, int replays)
{
    cudaGraphExec_t exec;
    cudaEvent_t begin, end;
    float ms[32];
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    CUDA(cudaEventCreate(&begin));
    CUDA(cudaEventCreate(&end));
    for (int i = 0; i < replays + 2; i++) {
        CUDA(cudaEventRecord(begin, b->stream));
        CUDA(cudaGraphLaunch(exec, b->stream));
        CUDA(cudaEventRecord(end, b->stream));
        CUDA(cudaEventSynchronize(end));
        CUDA(cudaEventElapsedTime(&ms[i < 2 ? 0 : i - 2], begin, end));
    }
    CUDA(cudaEventDestroy(begin));
    CUDA(cudaEventDestroy(end));
    CUDA(cudaGraphExecDestroy(exec));
    CUDA(cudaGraphDestroy(graph));
    qsort(ms, (size_t)replays, sizeof ms[0], compare_floats);
    return ms[replays / 2];
}

static void capture_begin(struct bench *b)
{
    CUDA(cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeThreadLocal));
}

static cudaGraph_t capture_end(struct bench *b)
{
    cudaGraph_t graph;
    CUDA(cudaStreamEndCapture(b->stream, &graph));
    return graph;
}

static size_t op_bytes(const struct bench_op *op)
{
    return (size_t)op->rows * (size_t)op->cols * 2;
}

static void bench_open(struct bench *b, int sm_count)
{
    static const struct bench_op layer[] = {{6144, 4096, KN_EPI_STORE, NULL},
                                            {4096, 4096, KN_EPI_ADD, NULL},
                                            {28672, 4096, KN_EPI_SWIGLU, NULL},
                                            {4096, 14336, KN_EPI_ADD, NULL}};
    memset(b, 0, sizeof *b);
    b->sm_count = sm_count;
    for (int i = 0; i < 4 * LAYERS; i++) b->ops[b->op_count++] = layer[i % 4];
    b->ops[b->op_count++] = {128256, 4096, KN_EPI_F32, NULL};
    for (int i = 0; i < b->op_count; i++) b->bytes += op_bytes(&b->ops[i]);
    CUDA(cudaMalloc(&b->weights, b->bytes));
    fill_random<<<sm_count * 8, 256>>>((uint32_t *)b->weights, b->bytes / 4, 7);
    size_t at = 0;
    for (int i = 0; i < b->op_count; i++) {
        b->ops[i].weights = b->weights + at;
        at += op_bytes(&b->ops[i]);
    }
    CUDA(cudaMalloc(&b->x, kn_cu_act_bytes(256, 4096)));
    CUDA(cudaMalloc(&b->wide, kn_cu_act_bytes(256, 14336)));
    CUDA(cudaMalloc(&b->qkv, (size_t)256 * 6144 * 4));
    CUDA(cudaMalloc(&b->partial, PARTIAL_BYTES(6144)));
    CUDA(cudaMalloc(&b->residual, (size_t)256 * 4096 * 4));
    CUDA(cudaMalloc(&b->logits, (size_t)256 * 128256 * 4));
    CUDA(cudaMalloc(&b->plain_x, (size_t)256 * 14336 * 2));
    CUDA(cudaMalloc(&b->plain_out, (size_t)256 * 128256 * 2));
    CUDA(cudaMalloc(&b->windows, KN_TIER_MAX * sizeof *b->windows));
    CUDA(cudaMalloc(&b->traffic, KN_TIER_MAX * sizeof *b->traffic));
    CUDA(cudaMalloc(&b->workspace, kn_cu_prefill_workspace_bytes(sm_count)));
    CUDA(cudaMemset(b->workspace, 0, kn_cu_prefill_workspace_bytes(sm_count)));
    fill_random<<<64, 256>>>((uint32_t *)b->x, kn_cu_act_bytes(256, 4096) / 4, 8);
    fill_random<<<64, 256>>>((uint32_t *)b->wide, kn_cu_act_bytes(256, 14336) / 4, 9);
    fill_random<<<64, 256>>>((uint32_t *)b->plain_x, (size_t)256 * 14336 / 2, 10);
    CUDA(cudaMemset(b->residual, 0, (size_t)256 * 4096 * 4));
    CUDA(cudaStreamCreate(&b->stream));
    CUDA(cudaFuncSetAttribute(stream_blocks, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              8 * KN_BLOCK_BYTES));
    CUDA(cudaDeviceSynchronize());
}

static double time_stream(struct bench *b, const uint8_t *from, size_t bytes, int ctas, int depth)
{
    capture_begin(b);
    stream_blocks<<<ctas, 32, depth * KN_BLOCK_BYTES, b->stream>>>(
        from, (int32_t)(bytes / KN_BLOCK_BYTES), depth);
    CUDA(cudaGetLastError());
    return time_graph(b, capture_end(b), REPLAYS);
}

/* Of one op; the last remote_tiles of it lie at remote. */
static struct kn_cu_gemm_args bench_args(struct bench *b, const struct bench_op *op, int tokens,
                                         const uint8_t *remote, int remote_tiles,
                                         struct kn_weight *w)
{
    kn_weight_init(w, KN_BF16, op->rows, op->cols);
    w->span[0] = {op->weights, 0, w->tile_count - remote_tiles};
    w->span[1] = {remote, w->tile_count - remote_tiles, remote_tiles};
    struct kn_cu_gemm_args a = {};
    a.w = w;
    a.tokens = tokens;
    a.in = op->cols == 4096 ? b->x : b->wide;
    a.epilogue = op->epilogue;
    a.out = op->epilogue == KN_EPI_STORE    ? (void *)b->qkv
            : op->epilogue == KN_EPI_ADD    ? (void *)b->residual
            : op->epilogue == KN_EPI_SWIGLU ? (void *)b->wide
                                            : (void *)b->logits;
    a.partial = in_parts(op->epilogue) ? b->partial : NULL;
    a.windows = b->windows;
    a.traffic = remote_tiles > 0 ? b->traffic : NULL;
    a.turn = -1;
    a.dependent = true;
    return a;
}

/* Adds one op to the stream, by the kernel that is chosen for many tokens. */
static void bench_launch_prompt(struct bench *b, const struct bench_op *op, int tokens,
                                const uint8_t *remote, int remote_tiles)
{
    char err[ERR_CAP] = "";
    struct kn_weight w;
    struct kn_cu_prefill_plan plan;
    const struct kn_cu_gemm_args a = bench_args(b, op, tokens, remote, remote_tiles, &w);
    STATUS(kn_cu_prefill_plan(&w, tokens, in_parts(op->epilogue), b->sm_count, &plan, err), err);
    STATUS(kn_cu_prefill_launch(&plan, &a, b->workspace, b->stream, err), err);
}

/* Adds one op to the stream, by the decode GEMM. */
static void bench_launch(struct bench *b, const struct bench_op *op, int tokens,
                         const struct kn_cu_gemm_plan *plan, const uint8_t *remote,
                         int remote_tiles)
{
    char err[ERR_CAP] = "";
    struct kn_weight w;
    struct kn_cu_gemm_args a = bench_args(b, op, tokens, remote, remote_tiles, &w);
    if (kn_cu_gemm_takes_turn(plan, &w, NULL, b->sm_count)) a.turn = b->turn++;
    STATUS(kn_cu_gemm_launch(plan, &a, b->stream, err), err);
}

/* One step with the plans of shapes that are left in parts, and of those that are not, replaced:
 * what a choice is worth among its neighbours, which tune_shape cannot see. */
static double tune_step(struct bench *b, const struct kn_cu_gemm_plan *qkv,
                        const struct kn_cu_gemm_plan *other, const struct kn_cu_gemm_plan *whole,
                        int tokens)
{
    capture_begin(b);
    for (int i = 0; i < b->op_count; i++) {
        const struct bench_op *op = &b->ops[i];
        struct kn_cu_gemm_plan p = !in_parts(op->epilogue)        ? *whole
                                   : op->epilogue == KN_EPI_STORE ? *qkv
                                                                  : *other;
        kn_cu_gemm_plan_derive(op->rows, b->sm_count, &p);
        bench_launch(b, op, tokens, &p, NULL, 0);
    }
    return time_graph(b, capture_end(b), 5);
}

static void tune_steps(struct bench *b, int tokens)
{
    const int32_t bucket = kn_cu_bucket(tokens);
    printf("T %3d step, tiles x parts (qkv, o and down) x CTAs per SM, tiles x CTAs where whole:",
           tokens);
    for (int whole_tiles = 1; whole_tiles <= 2; whole_tiles *= 2)
        for (int whole_ctas = 1; whole_ctas <= kn_cu_gemm_resident(bucket, whole_tiles);
             whole_ctas++)
            for (int tiles = 1; tiles <= 2; tiles *= 2)
                for (int ctas = 1; ctas <= kn_cu_gemm_resident(bucket, tiles); ctas++) {
                    printf("\n   ");
                    for (int v = 0; v < 4; v++) {
                        struct kn_cu_gemm_plan qkv = {}, other, whole;
                        qkv.bucket = bucket;
                        qkv.group_tiles = tiles, qkv.ctas_per_sm = ctas;
                        qkv.part_shift = 1 + v / 2;
                        other = whole = qkv;
                        other.part_shift = 1 + v % 2;
                        whole.part_shift = 0;
                        whole.group_tiles = whole_tiles, whole.ctas_per_sm = whole_ctas;
                        printf(" %dx%d,%dx%d %dx%d: %.3f", tiles, 1 << qkv.part_shift,
                               1 << other.part_shift, ctas, whole_tiles, whole_ctas,
                               tune_step(b, &qkv, &other, &whole, tokens));
                    }
                }
    printf("\n");
    fflush(stdout);
}

/* How many tiles of each op are remote. */
static void bench_place(struct bench *b, double share, enum off_placement placement,
                        struct off_weight *placed)
{
    char err[ERR_CAP] = "";
    for (int i = 0; i < b->op_count; i++)
        placed[i] = {
            b->ops[i].rows / KN_TILE_ROWS, (uint64_t)b->ops[i].cols * 128, false, false, {}};
    STATUS(off_place(placed, b->op_count, share, placement, b->tiers, err), err);
}

/* One step; a share of the tiles remote.  With alone, one CTA an SM where remote tiles are. */
static double time_step(struct bench *b, int tokens, double share, enum off_placement placement,
                        bool alone, size_t *remote_bytes)
{
    struct off_weight placed[OPS_MAX];
    size_t at = 0;
    bench_place(b, share, placement, placed);
    capture_begin(b);
    for (int i = 0; i < b->op_count; i++) {
        const struct bench_op *op = &b->ops[i];
        const int tiles = placed[i].tiles[1];
        const size_t bytes = tiles * placed[i].tile_bytes;
        if (at + bytes > b->pinned_bytes && tiles) at = 0;
        if (tokens > KN_CU_DECODE_MAX) {
            bench_launch_prompt(b, op, tokens, b->pinned + at, tiles);
        } else {
            struct kn_cu_gemm_plan plan;
            kn_cu_gemm_plan(op->rows, op->cols, tokens, b->sm_count, in_parts(op->epilogue), &plan);
            if (alone && tiles) {
                plan.ctas_per_sm = 1;
                kn_cu_gemm_plan_derive(op->rows, b->sm_count, &plan);
            }
            bench_launch(b, op, tokens, &plan, b->pinned + at, tiles);
        }
        at += bytes;
        if (remote_bytes) *remote_bytes += bytes;
    }
    return time_graph(b, capture_end(b), share > 0.04 * b->link_gbps / 50 ? 3 : REPLAYS);
}

/* --- cuBLAS, loaded where it is installed --- */

typedef int (*cublas_create)(void **);
typedef int (*cublas_set_stream)(void *, cudaStream_t);
typedef int (*cublas_set_workspace)(void *, void *, size_t);
typedef int (*cublas_gemm)(void *, int, int, int, int, int, const void *, const void *, int, int,
                           const void *, int, int, const void *, void *, int, int, int, int);

struct cublas {
    void *handle;
    cublas_gemm gemm;
};

static bool cublas_open(struct cublas *c, struct bench *b, const char *path)
{
    void *library = dlopen(path ? path : "libcublas.so.13", RTLD_NOW);
    if (!library) {
        printf("no comparison with cuBLAS: %s\n", dlerror());
        return false;
    }
    cublas_create create = (cublas_create)dlsym(library, "cublasCreate_v2");
    cublas_set_stream set_stream = (cublas_set_stream)dlsym(library, "cublasSetStream_v2");
    cublas_set_workspace set_workspace =
        (cublas_set_workspace)dlsym(library, "cublasSetWorkspace_v2");
    c->gemm = (cublas_gemm)dlsym(library, "cublasGemmEx");
    CHECK(create && set_stream && set_workspace && c->gemm);
    void *workspace;
    CUDA(cudaMalloc(&workspace, (size_t)64 << 20));
    return !create(&c->handle) && !set_stream(c->handle, b->stream) &&
           !set_workspace(c->handle, workspace, (size_t)64 << 20);
}

static double time_cublas(struct bench *b, struct cublas *c, int tokens)
{
    enum { OP_N = 0, OP_T = 1, BF16 = 14, COMPUTE_32F = 68, DEFAULT = -1 };
    const float one = 1.f, zero = 0.f;
    capture_begin(b);
    for (int i = 0; i < b->op_count; i++) {
        const struct bench_op *op = &b->ops[i];
        int failed = c->gemm(c->handle, OP_T, OP_N, op->rows, tokens, op->cols, &one, op->weights,
                             BF16, op->cols, b->plain_x, BF16, op->cols, &zero, b->plain_out, BF16,
                             op->rows, COMPUTE_32F, DEFAULT);
        CHECK(!failed);
    }
    return time_graph(b, capture_end(b), REPLAYS);
}

/* --- what is printed --- */

/* In turn, and the median of a few: at 256 tokens the card's clock falls while it works. */
static void bench_steps(struct bench *b, int from, const char *cublas_path)
{
    static const int tokens[] = {1, 8, 16, 32, 64, 128, 256};
    enum { ROUNDS = 3 };
    struct cublas c;
    bool has_cublas = cublas_open(&c, b, cublas_path);
    for (size_t i = 0; i < ARRAY_COUNT(tokens); i++) {
        if (tokens[i] < from) continue;
        float ours[ROUNDS], theirs[ROUNDS];
        for (int round = 0; round < ROUNDS; round++) {
            ours[round] = (float)time_step(b, tokens[i], 0, OFF_PLACE_EVEN, false, NULL);
            theirs[round] = has_cublas ? (float)time_cublas(b, &c, tokens[i]) : 0;
        }
        qsort(ours, ROUNDS, sizeof ours[0], compare_floats);
        qsort(theirs, ROUNDS, sizeof theirs[0], compare_floats);
        const double ms = ours[ROUNDS / 2], cublas_ms = theirs[ROUNDS / 2];
        printf("T %3d: %.3f ms, floor/time %.3f", tokens[i], ms, b->floor_ms / ms);
        if (has_cublas)
            printf(", cuBLAS %.3f ms (floor/time %.3f), cuBLAS/ours %.3f", cublas_ms,
                   b->floor_ms / cublas_ms, cublas_ms / ms);
        printf("\n");
        fflush(stdout);
    }
}

struct bench_window {
    int ctas, blocks;
    float cost; /* of the probed ratio of bandwidths */
    bool alone;
};

/* The remote memory, and its link's rate. */
static void bench_remote_open(struct bench *b, bool peer, size_t bytes)
{
    const size_t probe = (size_t)1 << 30;
    b->pinned_bytes = bytes;
    if (peer) CUDA(cudaSetDevice(1));
    if (peer) CUDA(cudaMalloc(&b->pinned, b->pinned_bytes));
    else CUDA(cudaHostAlloc(&b->pinned, b->pinned_bytes, cudaHostAllocMapped));
    fill_random<<<b->sm_count * 4, 256>>>((uint32_t *)b->pinned, b->pinned_bytes / 4, 11);
    CUDA(cudaDeviceSynchronize());
    if (peer) CUDA(cudaSetDevice(0));
    char err[ERR_CAP] = "";
    struct off_remote remote;
    STATUS(off_remote_parse(peer ? "peer:1:64GiB" : "host:64GiB", &remote, err), err);
    off_tiers_close(b->tiers);
    STATUS(off_tiers_open(NULL, 0, &remote, &b->tiers, err), err);
    b->link_gbps = (double)probe / time_stream(b, b->pinned, probe, 16, peer ? 6 : 1) / 1e6;
    printf("link to the %s: %.1f GB/s\n", peer ? "peer" : "host", b->link_gbps);
}

static void bench_cell(struct bench *b, int tokens, double share, enum off_placement placement,
                       const struct bench_window *w, double all_local_ms)
{
    struct kn_cu_window window[KN_TIER_MAX] = {};
    struct kn_cu_traffic t[KN_TIER_MAX] = {};
    size_t remote = 0;
    double hbm_gbps = (double)b->bytes / b->floor_ms / 1e6;
    window[1] = {w->ctas, w->blocks, (float)(w->cost * hbm_gbps / b->link_gbps)};
    for (int j = 0; j < KN_TIER_MAX; j++) t[j].trip_min = UINT32_MAX;
    CUDA(cudaMemcpy(b->windows, window, sizeof window, cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy(b->traffic, t, sizeof t, cudaMemcpyHostToDevice));
    double ms = time_step(b, tokens, share, placement, w->alone, &remote);
    CUDA(cudaMemcpy(t, b->traffic, sizeof t, cudaMemcpyDeviceToHost));
    double local_ms = (double)(b->bytes - remote) / hbm_gbps / 1e6;
    double link_ms = (double)remote / b->link_gbps / 1e6;
    double trip = t[1].trips ? (double)t[1].trip_clocks / (double)t[1].trips / 1980 : 0;
    printf(" %6.3f %5.3f %5.1f |", all_local_ms / ms, fmax(local_ms, link_ms) / ms, trip);
    fflush(stdout);
}

/* What it costs to have a remote tier at all: HBM itself stands for one, read by everybody. */
static void bench_stand_in(struct bench *b, int tokens, double all_local_ms)
{
    const struct bench_window w = {KN_WINDOW_NO_BOUND, KN_WINDOW_NO_BOUND, 1, false};
    uint8_t *far = b->pinned;
    const double link_gbps = b->link_gbps;
    b->pinned = b->weights;
    b->link_gbps = (double)b->bytes / b->floor_ms / 1e6;
    printf("HBM for a tier, 5, 30, 100 %%:");
    bench_cell(b, tokens, 0.05, OFF_PLACE_EVEN, &w, all_local_ms);
    bench_cell(b, tokens, 0.3, OFF_PLACE_EVEN, &w, all_local_ms);
    bench_cell(b, tokens, 1, OFF_PLACE_EVEN, &w, all_local_ms);
    printf("\n");
    b->pinned = far;
    b->link_gbps = link_gbps;
}

/* Cells: all-local time / time, floor / time, mean round trip in us at 1.98 GHz. */
static void bench_remote(struct bench *b, bool peer)
{
    enum { N = KN_WINDOW_NO_BOUND };
    static const double host_shares[] = {0.004, 0.008, 0.01, 0.02, 0.05, 0.1, 0.3, 0.5};
    static const double peer_shares[] = {0.02, 0.04, 0.06, 0.07, 0.08, 0.1, 0.2, 0.3, 0.5};
    static const struct bench_window host_windows[] = {
        {16, 1, 1, false}, {16, 2, 1, false}, {32, 1, 1, false}, {N, N, 1, false}};
    static const struct bench_window peer_windows[] = {
        {16, 4, 1, false}, {16, 4, 1, true},  {16, 4, 1.5, false}, {32, 2, 1, false},
        {32, 4, 1, false}, {64, 1, 1, false}, {N, 1, 1, false},    {N, 2, 1, false},
        {N, 4, 1, false},  {N, 4, 1, true},   {N, N, 1, false}};
    static const int tokens[] = {1, 16, 32};
    const double *shares = peer ? peer_shares : host_shares;
    const struct bench_window *windows = peer ? peer_windows : host_windows;
    const size_t share_count = peer ? ARRAY_COUNT(peer_shares) : ARRAY_COUNT(host_shares);
    const size_t window_count = peer ? ARRAY_COUNT(peer_windows) : ARRAY_COUNT(host_windows);
    bench_remote_open(b, peer, (size_t)7600 << 20);
    for (size_t j = 0; j < ARRAY_COUNT(tokens); j++) {
        double all_local_ms = time_step(b, tokens[j], 0, OFF_PLACE_EVEN, false, NULL);
        bench_stand_in(b, tokens[j], all_local_ms);
        printf("T %d, all local %.3f ms, floor/time %.3f; windows:\n    remote", tokens[j],
               all_local_ms, b->floor_ms / all_local_ms);
        for (size_t k = 0; k < window_count; k++) {
            const struct bench_window *w = &windows[k];
            char name[64], ctas[12], blocks[12];
            snprintf(ctas, sizeof ctas, w->ctas == N ? "all" : "%d", w->ctas);
            snprintf(blocks, sizeof blocks, w->blocks == N ? "ring" : "%d", w->blocks);
            snprintf(name, sizeof name, "%sx%s%s cost %g", ctas, blocks, w->alone ? " alone" : "",
                     w->cost);
            printf(" %19s |", name);
        }
        for (size_t i = 0; i < share_count; i++) {
            if (j > 0 && (i % 2 == 0 || shares[i] > 0.1)) continue;
            for (int p = OFF_PLACE_EVEN; p >= OFF_PLACE_AUTO; p--) {
                if (p == OFF_PLACE_AUTO && shares[i] > (peer ? 0.1 : 0.02)) continue;
                printf("\n%s %4.1f %%", p == OFF_PLACE_EVEN ? "even" : "auto", shares[i] * 100);
                for (size_t k = 0; k < window_count; k++)
                    bench_cell(b, tokens[j], shares[i], (enum off_placement)p, &windows[k],
                               all_local_ms);
            }
        }
        printf("\n");
    }
}

/* Every tile choice of every shape, in a graph of that op over distinct weights: group height x
 * parts x CTAs per SM and its time in us; the planned one first. */
static void tune_shape(struct bench *b, int first, int stride, int tokens)
{
    const struct bench_op *op = &b->ops[first];
    const int shift_max = in_parts(op->epilogue) ? KN_CU_PART_SHIFT_MAX : 0;
    struct kn_cu_gemm_plan planned;
    int count = 0;
    kn_cu_gemm_plan(op->rows, op->cols, tokens, b->sm_count, in_parts(op->epilogue), &planned);
    for (int i = first; i < b->op_count && count < 20; i += stride)
        count += b->ops[i].rows == op->rows;
    printf("T %3d %6dx%5d floor %5.1f us; planned %dx%dx%d;", tokens, op->rows, op->cols,
           b->floor_ms * 1e3 * (double)op_bytes(op) / (double)b->bytes, planned.group_tiles,
           1 << planned.part_shift, planned.ctas_per_sm);
    for (int tiles = 1; tiles <= 2; tiles *= 2)
        for (int shift = 0; shift <= shift_max; shift++)
            for (int ctas = 1; ctas <= kn_cu_gemm_resident(planned.bucket, tiles); ctas++) {
                struct kn_cu_gemm_plan p = planned;
                p.group_tiles = tiles;
                p.part_shift = shift;
                p.ctas_per_sm = ctas;
                kn_cu_gemm_plan_derive(op->rows, b->sm_count, &p);
                capture_begin(b);
                for (int i = first, n = 0; n < count; i += stride, n++)
                    bench_launch(b, &b->ops[i], tokens, &p, NULL, 0);
                printf("  %dx%dx%d %.1f", tiles, 1 << shift, ctas,
                       time_graph(b, capture_end(b), 3) / count * 1e3);
            }
    printf("\n");
    fflush(stdout);
}

static void bench_windows(struct bench *b, bool peer); /* gpu_window_bench.cuh */

static void bench_gemm(int sm_count, bool tune, bool steps, bool remote, bool windows, bool peer,
                       int from, const char *cublas)
{
    static const int tokens[] = {8, 16, 32, 64, 128};
    struct bench b;
    char err[ERR_CAP] = "";
    bench_open(&b, sm_count);
    b.link_gbps = 50;
    STATUS(off_tiers_open(NULL, 0, NULL, &b.tiers, err), err);
    b.floor_ms = time_stream(&b, b.weights, b.bytes, sm_count, 6);
    printf("floor: %.3f ms for %.2f GB, %.0f GB/s\n", b.floor_ms, (double)b.bytes / 1e9,
           (double)b.bytes / b.floor_ms / 1e6);
    if (steps) bench_steps(&b, from, cublas);
    for (size_t i = 0; tune && i < ARRAY_COUNT(tokens); i++)
        if (tokens[i] >= from) tune_steps(&b, tokens[i]);
    if (tune)
        for (size_t i = 0; i < ARRAY_COUNT(tokens); i++)
            for (int op = 0; op < 5 && tokens[i] >= from; op++)
                tune_shape(&b, op < 4 ? op : b.op_count - 1, 4, tokens[i]);
    if (remote) bench_remote(&b, peer);
    if (windows) bench_windows(&b, peer);
}

#endif
