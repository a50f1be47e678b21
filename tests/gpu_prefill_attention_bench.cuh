/*
 * gpu_prefill_attention_bench.cuh - prefill attention timed, beside the rate of wgmma alone in the
 * same run (operands in shared memory, random data), and beside decode attention for short chunks.
 * tests/gpu_cudnn_prefill.py times cuDNN for the same shapes.  TFLOPS: 4 * D for each query head,
 * token and key it sees.
 */
#ifndef DAKD_TESTS_GPU_PREFILL_ATTENTION_BENCH_CUH
#define DAKD_TESTS_GPU_PREFILL_ATTENTION_BENCH_CUH

/* bf16 of random sign and mantissa, between 1/2 and 2. */
__global__ void bench_fill(uint32_t *p, size_t n)
{
    const size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += step)
        p[i] = (random_bits(1, (uint32_t)i, (uint32_t)(i >> 32)) & 0x80FF80FFu) | 0x3F003F00u;
}

/* Median milliseconds. */
template <typename CALL> static double bench_time(int calls, CALL call)
{
    cudaEvent_t a, b;
    CUDA(cudaEventCreate(&a));
    CUDA(cudaEventCreate(&b));
    std::vector<float> times;
    for (int i = 0; i < calls + 1; i++) {
        float ms;
        CUDA(cudaEventRecord(a));
        call();
        CUDA(cudaEventRecord(b));
        CUDA(cudaEventSynchronize(b));
        CUDA(cudaEventElapsedTime(&ms, a, b));
        if (i >= 1) times.push_back(ms);
    }
    CUDA(cudaEventDestroy(a));
    CUDA(cudaEventDestroy(b));
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

enum { PEAK_ROUNDS = 4096, PEAK_WARPGROUPS = 2 };
__global__ void __launch_bounds__(PEAK_WARPGROUPS * 128, 1)
    bench_peak(const uint32_t *from, float *sink)
{
    extern __shared__ __align__(1024) uint8_t shared[]; /* 64 KB of A, 64 KB of B */
    for (int i = threadIdx.x; i < 128 * 256; i += blockDim.x) ((uint32_t *)shared)[i] = from[i];
    ptx_fence_proxy_async();
    __syncthreads();
    float d[128] = {};
    const uint64_t a = ptx_wgmma_descriptor(ptx_shared(shared) + threadIdx.x / 128 * KN_ATOM_BYTES),
                   b = ptx_wgmma_descriptor(ptx_shared(shared) + 65536);
    for (int round = 0; round < PEAK_ROUNDS / 4; round++) {
        ptx_wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; k++) ptx_wgmma<256>(d, a + 2 * k, b + 2 * k, true);
        ptx_wgmma_commit();
        ptx_wgmma_wait<0>();
    }
    float sum = 0;
    for (int i = 0; i < 128; i++) sum += d[i];
    if (sum == 12345.f) *sink = sum;
}

static double bench_peak_tflops(const uint32_t *random)
{
    CUDA(cudaFuncSetAttribute(bench_peak, cudaFuncAttributeMaxDynamicSharedMemorySize, 131072));
    const double ms = bench_time(
        5, [&] { bench_peak<<<132, PEAK_WARPGROUPS * 128, 131072>>>(random, (float *)g_traffic); });
    CUDA(cudaGetLastError());
    return 2.0 * 64 * 256 * 16 * PEAK_ROUNDS * PEAK_WARPGROUPS * 132 / ms / 1e9;
}

/* One layer's step of `sequences` chunks, KV already there. */
struct bench_step {
    heads h;
    int sequences, tokens, kv_count; /* of each */
    kn_kv kv;
    kn_batch b;               /* on the device */
    std::vector<kn_seq> seqs; /* on the host */
    uint8_t *q, *out;
    size_t q_bytes;
    bool remote;
};

/* remote: KV in host memory. */
static bench_step bench_step_open(heads h, int sequences, int tokens, int kv_count,
                                  bool remote = false)
{
    bench_step s = {h, sequences, tokens, kv_count, {KN_BF16, 1, h.kv, h.dim, {}}, {}, {},
                    0, 0,         0,      remote};
    const int each = (kv_count + 63) / 64, all = each * sequences;
    const size_t bytes = all * kn_kv_page_bytes(&s.kv);
    if (remote) CUDA(cudaHostAlloc(&s.kv.base[1], bytes, 0));
    else CUDA(cudaMalloc(&s.kv.base[0], bytes));
    bench_fill<<<1024, 256>>>((uint32_t *)s.kv.base[remote], bytes / 4);
    std::vector<kn_page> pages;
    for (int i = 0; i < all; i++) pages.push_back(kn_page_make(remote, (uint32_t)i));
    for (int i = all; i > 1; i--) std::swap(pages[i - 1], pages[random_bits(9, i, 2) % i]);
    std::vector<int32_t> positions, token_seq;
    for (int i = 0; i < sequences; i++) {
        s.seqs.push_back({i * tokens, tokens, kv_count, i * each});
        for (int t = 0; t < tokens; t++) {
            positions.push_back(kv_count - tokens + t);
            token_seq.push_back(i);
        }
    }
    s.b.token_count = sequences * tokens;
    s.b.seq_count = sequences;
    s.b.positions = to_device(positions);
    s.b.token_seq = to_device(token_seq);
    s.b.seqs = to_device(s.seqs);
    s.b.pages = to_device(pages);
    s.q_bytes = (size_t)h.q * h.dim * 2;
    CUDA(cudaMalloc(&s.q, s.q_bytes * s.b.token_count));
    bench_fill<<<1024, 256>>>((uint32_t *)s.q, s.q_bytes * s.b.token_count / 4);
    CUDA(cudaMalloc(&s.out, kn_cu_act_bytes(256, h.q * h.dim) * (s.b.token_count / 256 + 1)));
    return s;
}

static void bench_step_close(bench_step &s)
{
    for (const void *p :
         {(const void *)s.kv.base[0], (const void *)s.b.positions, (const void *)s.b.token_seq,
          (const void *)s.b.seqs, (const void *)s.b.pages, (const void *)s.q, (const void *)s.out})
        CUDA(cudaFree((void *)p));
    if (s.kv.base[1]) CUDA(cudaFreeHost(s.kv.base[1]));
}

static double bench_prefill_ms(const bench_step &s, int calls, bool whole = false)
{
    char err[ERR_CAP];
    kn_batch host = s.b;
    host.seqs = s.seqs.data();
    std::vector<kn_cu_prefill_tile> tiles(kn_cu_prefill_tile_max(&host, s.h.q / s.h.kv));
    kn_cu_prefill_work work;
    const kn_cu_prefill_shape shape = {s.h.q, s.h.kv, s.h.dim, 1, whole};
    kn_cu_prefill_tiles(&host, &shape, tiles.data(), &work);
    CUDA(cudaMemset(g_state, 0, kn_cu_prefill_state_bytes(s.h.dim)));
    kn_cu_prefill_tile *list = to_device(tiles);
    work.tiles = list;
    const kn_cu_prefill_args args = {&work,
                                     s.b.pages,
                                     s.q,
                                     s.q_bytes,
                                     (size_t)s.h.dim * 2,
                                     s.h.q,
                                     &s.kv,
                                     0,
                                     1.f / sqrtf((float)s.h.dim),
                                     0,
                                     s.b.token_count,
                                     s.out,
                                     g_state,
                                     s.remote ? g_windows : NULL,
                                     s.remote ? g_traffic : NULL};
    const double ms =
        bench_time(calls, [&] { STATUS(kn_cu_prefill_attention_launch(&args, NULL, err), err); });
    CUDA(cudaFree(list));
    return ms;
}

/* The same by decode attention, without its plan. */
static double bench_decode_ms(const bench_step &s)
{
    char err[ERR_CAP];
    const kn_cu_attention_shape shape = {s.h.q, s.h.kv, s.h.dim, s.b.token_count,
                                         s.b.token_count * (s.kv_count / 64 + 1)};
    size_t bytes;
    uint8_t *memory;
    kn_cu_attention a;
    STATUS(kn_cu_attention_bytes(&shape, &bytes, err), err);
    CUDA(cudaMalloc(&memory, bytes));
    CUDA(cudaMemset(memory, 0, bytes));
    STATUS(kn_cu_attention_init(&a, &shape, memory, err), err);
    const kn_cu_plan_args plan = {&s.b, 0, 0, NULL, 0, 0, false};
    STATUS(kn_cu_attention_plan(&a, &a.plan, &plan, NULL, err), err);
    const kn_cu_attention_args args = {
        &s.kv, 0, 1.f / sqrtf((float)s.h.dim), kn_cu_bucket(s.b.token_count), s.out, NULL, 0, 0};
    const double ms = bench_time(
        7, [&] { STATUS(kn_cu_decode_attention(&a, &a.plan, &s.b, &args, NULL, err), err); });
    CUDA(cudaFree(memory));
    return ms;
}

/* KV in host memory: what the link gives, and what its round trips are, by window. */
static void bench_remote()
{
    int khz;
    CUDA(cudaDeviceGetAttribute(&khz, cudaDevAttrClockRate, 0));
    for (int tokens : {256, 64})
        for (int ctas : {8, 16, 32, KN_WINDOW_NO_BOUND}) {
            const int blocks = ctas == KN_WINDOW_NO_BOUND ? ctas : 2;
            const kn_cu_window windows[KN_TIER_MAX] = {{}, {ctas, blocks, 1}};
            CUDA(cudaMemcpy(g_windows, windows, sizeof windows, cudaMemcpyHostToDevice));
            CUDA(cudaMemset(g_traffic, 0, sizeof(kn_cu_traffic) * KN_TIER_MAX));
            bench_step s = bench_step_open({32, 8, 128}, 1, tokens, 16384, true);
            const double ms = bench_prefill_ms(s, 2);
            kn_cu_traffic t[KN_TIER_MAX];
            CUDA(cudaMemcpy(t, g_traffic, sizeof t, cudaMemcpyDeviceToHost));
            printf("host memory, %d tokens to 16384, window %d x %d: %.3f ms, %.1f GB/s, round "
                   "trip %.1f us\n",
                   tokens, ctas, blocks, ms, (double)t[1].blocks * KN_BLOCK_BYTES / 3 / ms / 1e6,
                   (double)t[1].trip_clocks / (double)t[1].trips / khz * 1e3);
            bench_step_close(s);
        }
}

static void bench()
{
    static const struct {
        heads h;
        int sequences, tokens, kv_count;
    } cases[] = {{{32, 32, 128}, 1, 2048, 2048},  {{32, 8, 128}, 1, 2048, 2048},
                 {{32, 4, 128}, 1, 2048, 2048},   {{32, 32, 128}, 1, 8192, 8192},
                 {{32, 8, 128}, 1, 8192, 8192},   {{32, 4, 128}, 1, 8192, 8192},
                 {{32, 8, 128}, 1, 32768, 32768}, {{32, 32, 64}, 1, 2048, 2048},
                 {{32, 8, 64}, 1, 2048, 2048},    {{32, 32, 64}, 1, 8192, 8192},
                 {{32, 8, 64}, 1, 8192, 8192},    {{32, 4, 64}, 1, 8192, 8192},
                 {{32, 8, 64}, 1, 32768, 32768},  {{32, 8, 96}, 1, 2048, 2048},
                 {{32, 32, 96}, 1, 8192, 8192},   {{32, 8, 96}, 1, 8192, 8192},
                 {{16, 16, 256}, 1, 2048, 2048},  {{16, 2, 256}, 1, 8192, 8192},
                 {{32, 8, 128}, 4, 2048, 2048},   {{32, 8, 128}, 1, 2048, 32768},
                 {{32, 8, 128}, 1, 512, 32768},   {{32, 8, 128}, 1, 256, 32768},
                 {{32, 8, 128}, 1, 64, 32768},    {{32, 8, 64}, 1, 256, 32768},
                 {{32, 8, 128}, 1, 512, 4096},    {{32, 8, 128}, 1, 256, 131072}};
    uint32_t *random;
    CUDA(cudaMalloc(&random, 1 << 20));
    bench_fill<<<64, 256>>>(random, 1 << 18);
    const double peak = bench_peak_tflops(random);
    printf("wgmma alone: %.0f TFLOPS\n", peak);
    for (const auto &c : cases) {
        bench_step s = bench_step_open(c.h, c.sequences, c.tokens, c.kv_count);
        const double ms = bench_prefill_ms(s, c.tokens > 8192 ? 3 : 9);
        const double seen =
            (double)c.tokens * (c.kv_count - c.tokens) + (double)c.tokens * (c.tokens + 1) / 2;
        const double tflops = 4.0 * c.h.dim * c.h.q * c.sequences * seen / ms / 1e9;
        printf("heads %d/%d of %3d, %d x %5d tokens to %5d: %8.3f ms %6.1f TFLOPS, %.3f of wgmma\n",
               c.h.q, c.h.kv, c.h.dim, c.sequences, c.tokens, c.kv_count, ms, tflops,
               tflops / peak);
        bench_step_close(s);
    }
    printf("wgmma alone: %.0f TFLOPS\n", bench_peak_tflops(random));
    CUDA(cudaFree(random));
    bench_remote();
    for (int kv_count : {512, 4096, 32768})
        for (int tokens : {2, 4, 8, 16, 32, 64}) {
            bench_step s = bench_step_open({32, 8, 128}, 1, tokens, kv_count);
            const double prefill = bench_prefill_ms(s, 7), decode = bench_decode_ms(s);
            printf("%2d tokens to %5d: prefill %7.1f us, decode %7.1f us\n", tokens, kv_count,
                   prefill * 1e3, decode * 1e3);
            bench_step_close(s);
        }
}

#endif
