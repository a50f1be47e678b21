/*
 * gpu_window_bench.cuh - what windows are for: the rate of HBM while a link is read, with the
 * window and without one, in one run.
 *
 * Beside a stream: every SM streams HBM (kernels/cuda/probe.cu, as dakd probe does), and beside it
 * the decode GEMM reads a matrix that lies in the remote tier altogether, with one CTA an SM.  As
 * the link is all that this GEMM waits for, twice as much is in flight as its window says.
 *
 * Measured over PCIe, HBM in TB/s (4.62 alone) and the link in GB/s by KB in flight: 256: 4.60 and
 * 44; 512: 4.59 and 51.2; 1,024: 4.46; 2,048: 2.56; without a window, 12,672: 0.34 (in other runs
 * 0.05 and 0.1) with round trips of 0.2 ms.  Over NVLink, 4.72 alone: 1,024: 4.73 and 370; 4,096:
 * 4.72 and 375; 8,192: 4.31; without a window 1.84.
 *
 * In one kernel: the decode GEMM over a matrix of 2 GB of which a share is remote.  Up to the free
 * fraction it should take no longer than without; no more of it can be in flight than each remote
 * tile's reader has slots.
 */
#ifndef DAKD_TESTS_GPU_WINDOW_BENCH_CUH
#define DAKD_TESTS_GPU_WINDOW_BENCH_CUH

#include "kernels/cuda/probe.h"
#include "tests/gpu_gemm_bench.cuh"

#define WINDOW_TILES 3900 /* of the matrix in one kernel: 2 GB, its logits fit b->logits */
#define WINDOW_STREAM 0.9 /* of the time that the link takes, HBM is streamed */
#define WINDOW_CLOCK_MHZ 1980

struct window_case {
    int ctas, blocks;
};

static void window_name(const struct window_case *w, char out[24])
{
    if (w->ctas == KN_WINDOW_NO_BOUND) snprintf(out, 24, "off");
    else snprintf(out, 24, "%d x %d", w->ctas, w->blocks);
}

static void window_set(struct bench *b, const struct window_case *w)
{
    struct kn_cu_window window[KN_TIER_MAX] = {};
    struct kn_cu_traffic t[KN_TIER_MAX] = {};
    const double hbm_gbps = (double)b->bytes / b->floor_ms / 1e6;
    window[1] = {w->ctas, w->blocks, (float)(hbm_gbps / b->link_gbps)};
    for (int j = 0; j < KN_TIER_MAX; j++) t[j].trip_min = UINT32_MAX;
    CUDA(cudaMemcpy(b->windows, window, sizeof window, cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy(b->traffic, t, sizeof t, cudaMemcpyHostToDevice));
}

static void window_print_trips(struct bench *b)
{
    struct kn_cu_traffic t[KN_TIER_MAX];
    CUDA(cudaMemcpy(t, b->traffic, sizeof t, cudaMemcpyDeviceToHost));
    if (t[1].trips)
        printf("%9.1f %9.1f", (double)t[1].trip_clocks / (double)t[1].trips / WINDOW_CLOCK_MHZ,
               (double)t[1].trip_max / WINDOW_CLOCK_MHZ);
    printf("\n");
    fflush(stdout);
}

/* Of the GEMM that the link alone is waited for. */
static double window_in_flight_kb(const struct bench *b, const struct window_case *w)
{
    const int ring = 6, all = b->sm_count * ring; /* slots at 1 token */
    return (w->ctas >= b->sm_count || 2 * w->ctas * w->blocks > all ? all
                                                                    : 2 * w->ctas * w->blocks) *
           KN_BLOCK_BYTES / 1024.;
}

/* HBM's rate in TB/s while the link is read, and the link's in GB/s; w NULL: HBM alone. */
static void window_beside(struct bench *b, const struct window_case *w, bool peer)
{
    const double gigabytes = peer ? 3 : 0.5; /* 10 ms of the link */
    const struct bench_op far = {(int)(gigabytes * (1 << 17) / 64) * 64, 4096, KN_EPI_F32,
                                 b->weights};
    struct kn_cu_gemm_plan plan;
    cudaStream_t other;
    cudaEvent_t at[2]; /* of the GEMM */
    float link_ms;
    struct kn_cu_probe_out *rates = (struct kn_cu_probe_out *)calloc(b->sm_count, sizeof *rates),
                           *o;
    char name[24] = "alone", err[ERR_CAP];
    double hbm = 0;
    const struct kn_cu_probe_read stream = {
        .local = b->weights,
        .remote = NULL,
        .local_bytes = b->bytes / KN_BLOCK_BYTES * KN_BLOCK_BYTES,
        .remote_bytes = 0,
        .ctas = b->sm_count,
        .readers = 0,
        .slots = 0,
        .ns = (uint64_t)(WINDOW_STREAM * (double)op_bytes(&far) / b->link_gbps)};
    kn_cu_gemm_plan(far.rows, far.cols, 1, b->sm_count, false, &plan);
    plan.ctas_per_sm = 1;
    kn_cu_gemm_plan_derive(far.rows, b->sm_count, &plan);
    for (int i = 0; i < 2; i++) CUDA(cudaEventCreate(&at[i]));
    CUDA(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
    CUDA(cudaMalloc(&o, b->sm_count * sizeof *o));
    if (w) window_set(b, w);
    if (w) window_name(w, name);
    CUDA(cudaDeviceSynchronize());
    if (kn_cu_probe_read_launch(&stream, o, other, err)) fprintf(stderr, "%s\n", err);
    CUDA(cudaEventRecord(at[0], b->stream));
    if (w) bench_launch(b, &far, 1, &plan, b->pinned, far.rows / KN_TILE_ROWS);
    CUDA(cudaEventRecord(at[1], b->stream));
    CUDA(cudaDeviceSynchronize());
    CUDA(cudaMemcpy(rates, o, b->sm_count * sizeof *o, cudaMemcpyDeviceToHost));
    CUDA(cudaEventElapsedTime(&link_ms, at[0], at[1]));
    for (int i = 0; i < b->sm_count; i++)
        hbm += (double)rates[i].local_blocks * KN_BLOCK_BYTES / (double)rates[i].local_ns / 1e3;
    printf("%-8s %8.0f %10.3f %8.1f ", name, w ? window_in_flight_kb(b, w) : 0, hbm,
           w ? (double)op_bytes(&far) / link_ms / 1e6 : 0);
    if (w) window_print_trips(b);
    else printf("\n");
    for (int i = 0; i < 2; i++) CUDA(cudaEventDestroy(at[i]));
    CUDA(cudaStreamDestroy(other));
    CUDA(cudaFree(o));
    free(rates);
}

static void window_in_kernel(struct bench *b, double share, const struct window_case *w,
                             double alone_ms)
{
    const struct bench_op op = {WINDOW_TILES * KN_TILE_ROWS, 4096, KN_EPI_F32, b->weights};
    const int remote = (int)(share * WINDOW_TILES + 0.5);
    const double bytes = (double)op_bytes(&op), far = bytes / WINDOW_TILES * remote;
    const double hbm_gbps = (double)b->bytes / b->floor_ms / 1e6;
    struct kn_cu_gemm_plan plan;
    char name[24];
    kn_cu_gemm_plan(op.rows, op.cols, 1, b->sm_count, false, &plan);
    window_set(b, w);
    window_name(w, name);
    capture_begin(b);
    bench_launch(b, &op, 1, &plan, b->pinned, remote);
    const double ms = time_graph(b, capture_end(b), REPLAYS);
    printf("%5.1f %% %-8s %9.3f %9.3f %9.3f %10.3f %8.1f ", share * 100, name, ms, alone_ms / ms,
           fmax((bytes - far) / hbm_gbps, far / b->link_gbps) / 1e6 / ms, (bytes - far) / ms / 1e9,
           far / ms / 1e6);
    window_print_trips(b);
}

static double window_alone(struct bench *b)
{
    const struct bench_op op = {WINDOW_TILES * KN_TILE_ROWS, 4096, KN_EPI_F32, b->weights};
    struct kn_cu_gemm_plan plan;
    kn_cu_gemm_plan(op.rows, op.cols, 1, b->sm_count, false, &plan);
    capture_begin(b);
    bench_launch(b, &op, 1, &plan, NULL, 0);
    const double ms = time_graph(b, capture_end(b), REPLAYS);
    printf("%5.1f %% %-8s %9.3f %9.3f %9.3f %10.3f %8.1f\n", 0., "-", ms, 1.,
           (double)op_bytes(&op) / ((double)b->bytes / b->floor_ms) / ms,
           (double)op_bytes(&op) / ms / 1e9, 0.);
    return ms;
}

static void bench_windows(struct bench *b, bool peer)
{
    enum { N = KN_WINDOW_NO_BOUND };
    static const struct window_case host_beside[] = {{4, 1},  {8, 1},  {16, 1},
                                                     {32, 1}, {64, 1}, {N, N}};
    static const struct window_case peer_beside[] = {{8, 2},  {8, 4},  {16, 4},
                                                     {32, 4}, {64, 4}, {N, N}};
    static const double host_shares[] = {0.005, 0.01, 0.02, 0.05};
    static const double peer_shares[] = {0.04, 0.07, 0.1};
    const struct kn_window fits = kn_window_default(peer ? KN_MEM_PEER : KN_MEM_HOST);
    const struct window_case in_kernel[] = {{fits.ctas, fits.blocks}, {N, N}};
    bench_remote_open(b, peer, (size_t)3 << 30);
    printf("Every SM streams HBM, and beside it a GEMM reads the link:\n"
           "window   KB far   HBM TB/s link GB/s  trip us: mean, largest\n");
    window_beside(b, NULL, peer);
    for (size_t i = 0; i < ARRAY_COUNT(host_beside); i++)
        window_beside(b, peer ? &peer_beside[i] : &host_beside[i], peer);
    window_beside(b, NULL, peer);
    printf("One GEMM, 1 token, a share of its %.2f GB remote:\n"
           "  share window      ms      alone/ms floor/ms   HBM TB/s link GB/s trip us: mean, "
           "largest\n",
           (double)WINDOW_TILES * 32 * KN_BLOCK_BYTES / 1e9);
    const double alone_ms = window_alone(b);
    const size_t count = peer ? ARRAY_COUNT(peer_shares) : ARRAY_COUNT(host_shares);
    for (size_t i = 0; i < count; i++)
        for (size_t k = 0; k < ARRAY_COUNT(in_kernel); k++)
            window_in_kernel(b, peer ? peer_shares[i] : host_shares[i], &in_kernel[k], alone_ms);
}

#endif
