/*
 * gpu_attention_bench.cuh - decode attention timed in graphs of as many launches as there are
 * layers, each layer with KV of its own so that nothing is found in L2, against a kernel that
 * streams the same bytes by bulk copies and does nothing with them.
 */
#ifndef DAKD_TESTS_GPU_ATTENTION_BENCH_CUH
#define DAKD_TESTS_GPU_ATTENTION_BENCH_CUH

__global__ void bench_fill(uint32_t *p, size_t n)
{
    const size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += step)
        p[i] = (random_bits(1, (uint32_t)i, (uint32_t)(i >> 32)) & 0x807F807Fu) | 0x3F003F00u;
}

enum { PROBE_STAGES = 6 };
__global__ void __launch_bounds__(32) bench_stream(const uint8_t *from, size_t blocks)
{
    extern __shared__ __align__(128) uint8_t ring[];
    __shared__ uint64_t full[PROBE_STAGES];
    if (threadIdx.x) return;
    for (int s = 0; s < PROBE_STAGES; s++) ptx_mbarrier_init(&full[s], 1);
    ptx_fence_mbarrier_init();
    const uint64_t policy = ptx_policy_evict_first();
    const size_t begin = blocks * blockIdx.x / gridDim.x,
                 end = blocks * (blockIdx.x + 1) / gridDim.x;
    for (size_t i = begin; i < end + PROBE_STAGES; i++) {
        const int s = (int)((i - begin) % PROBE_STAGES), use = (int)((i - begin) / PROBE_STAGES);
        if (use && i - PROBE_STAGES < end) ptx_mbarrier_wait(&full[s], (use - 1) & 1);
        if (i >= end) continue;
        ptx_mbarrier_expect_tx(&full[s], KN_BLOCK_BYTES);
        ptx_bulk_load_hint(ring + s * KN_BLOCK_BYTES, from + i * KN_BLOCK_BYTES, KN_BLOCK_BYTES,
                           &full[s], policy);
    }
}

/* Median milliseconds of a graph's replays. */
static double bench_graph(cudaStream_t stream, int replays)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CUDA(cudaStreamEndCapture(stream, &graph));
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    cudaEvent_t a, b;
    CUDA(cudaEventCreate(&a));
    CUDA(cudaEventCreate(&b));
    std::vector<float> times;
    for (int i = 0; i < replays + 2; i++) {
        float ms;
        CUDA(cudaEventRecord(a, stream));
        CUDA(cudaGraphLaunch(exec, stream));
        CUDA(cudaEventRecord(b, stream));
        CUDA(cudaEventSynchronize(b));
        CUDA(cudaEventElapsedTime(&ms, a, b));
        if (i >= 2) times.push_back(ms);
    }
    CUDA(cudaGraphExecDestroy(exec));
    CUDA(cudaGraphDestroy(graph));
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

struct bench_case {
    int sequences, length, layers; /* length 0: 64 .. 4096 */
};

/* How tokens are cut: the rules, or by hand. */
struct bench_cut {
    const char *name;
    int split_pages, item_pages;
};

static int bench_length(const bench_case &c, int s)
{
    return c.length ? c.length : 64 + (int)(random_bits(17, s, 0) % 4033);
}

static double bench_case_run(const bench_case &c, kn_dtype dtype, uint8_t *kv_memory,
                             const bench_cut &cut, bool finish, cudaStream_t stream)
{
    char err[ERR_CAP];
    kn_kv kv = {dtype, c.layers, 8, 128, {kv_memory}};
    int total = 0;
    for (int s = 0; s < c.sequences; s++) total += (bench_length(c, s) + 63) / 64;
    std::vector<kn_page> pages;
    for (int i = 0; i < total; i++) pages.push_back(kn_page_make(0, i));
    for (int i = total; i > 1; i--) std::swap(pages[i - 1], pages[random_bits(9, i, 2) % i]);
    std::vector<kn_seq> seqs;
    std::vector<int32_t> positions, token_seq;
    for (int s = 0, at = 0; s < c.sequences; s++) {
        const int length = bench_length(c, s);
        seqs.push_back({s, 1, length, at});
        positions.push_back(length - 1);
        token_seq.push_back(s);
        at += (length + 63) / 64;
    }
    kn_batch b = {};
    b.token_count = b.seq_count = c.sequences;
    b.positions = to_device(positions);
    b.token_seq = to_device(token_seq);
    b.seqs = to_device(seqs);
    b.pages = to_device(pages);
    const kn_cu_attention_shape shape = {32, 8, 128, c.sequences, 8 * total};
    size_t bytes;
    uint8_t *memory, *out;
    float *qkv;
    kn_cu_attention a;
    STATUS(kn_cu_attention_bytes(&shape, &bytes, err), err);
    CUDA(cudaMalloc(&memory, bytes));
    CUDA(cudaMemset(memory, 0, bytes));
    STATUS(kn_cu_attention_init(&a, &shape, memory, err), err);
    const int rows = (c.sequences + 7) / 8 * 8;
    CUDA(cudaMalloc(&out, (size_t)rows * 32 * 128 * 2));
    const size_t qkv_floats = (size_t)c.sequences * 48 * 128;
    CUDA(cudaMalloc(&qkv, qkv_floats * 4));
    bench_fill<<<132, 256, 0, stream>>>((uint32_t *)qkv, qkv_floats);
    const kn_cu_plan_args plan = {&b, 0, 0, NULL, cut.split_pages, cut.item_pages, true};
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    STATUS(kn_cu_attention_plan(&a, &a.plan, &plan, stream, err), err);
    const double plan_ms = bench_graph(stream, 5);
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    for (int l = 0; l < c.layers; l++) {
        const kn_cu_qkv_args fin = {{qkv, 1, 0, NULL}, NULL, NULL, 0.f, NULL, &kv, l, NULL};
        const kn_cu_attention_args att = {&kv, l, 0.08838834764f, rows, out, NULL, 0, 0};
        if (finish || l == 0) STATUS(kn_cu_qkv_finish(&a, &b, &fin, stream, err), err);
        STATUS(kn_cu_decode_attention(&a, &a.plan, &b, &att, stream, err), err);
    }
    const double us = bench_graph(stream, 9) * 1e3 / c.layers;
    if (finish) printf("    plan %.1f us\n", plan_ms * 1e3);
    for (const void *x :
         {(const void *)b.positions, (const void *)b.token_seq, (const void *)b.seqs,
          (const void *)b.pages, (const void *)memory, (const void *)out, (const void *)qkv})
        CUDA(cudaFree((void *)x));
    return us;
}

static int bench(kn_dtype dtype)
{
    const size_t capacity = (size_t)5 << 30;
    uint8_t *kv;
    int sms;
    CUDA(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));
    CUDA(cudaMalloc(&kv, capacity));
    cudaStream_t stream;
    CUDA(cudaStreamCreate(&stream));
    bench_fill<<<sms * 8, 256, 0, stream>>>((uint32_t *)kv, capacity / 4);
    CUDA(cudaFuncSetAttribute(bench_stream, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              PROBE_STAGES * KN_BLOCK_BYTES));
    const size_t probe = (size_t)4 << 30;
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    bench_stream<<<sms, 32, PROBE_STAGES * KN_BLOCK_BYTES, stream>>>(kv, probe / KN_BLOCK_BYTES);
    const double peak = probe / bench_graph(stream, 9) / 1e6;
    printf("probe: %.0f GB/s over 4 GiB in one launch\n", peak);
    const bench_cut cuts[] = {{"by rule", 0, 0},           {"4 pages a unit", 4, 0},
                              {"8 pages a unit", 8, 0},    {"16 pages a unit", 16, 0},
                              {"32 pages a unit", 32, 0},  {"items by what's left", 0, -1},
                              {"items of 32 pages", 0, 32}};
    const bench_case cases[] = {{64, 4096, 4}, {1, 131072, 8}, {8, 16384, 8},  {128, 1024, 8},
                                {128, 0, 4},   {256, 512, 8},  {32, 1024, 24}, {8, 1024, 64},
                                {8, 512, 64},  {1, 512, 64},   {1, 1024, 64},  {1, 4096, 64},
                                {1, 8192, 64}};
    for (const bench_case &c : cases) {
        size_t pages = 0;
        for (int s = 0; s < c.sequences; s++) pages += (bench_length(c, s) + 63) / 64;
        const kn_kv one = {dtype, 1, 8, 128, {}};
        const size_t bytes = pages * kn_kv_layer_bytes(&one);
        if (c.length) printf("%3d x %6d: ", c.sequences, c.length);
        else printf("%3d x 64..4096: ", c.sequences);
        printf("%7.1f MB, %.1f us at the probe's rate\n", bytes / 1e6, bytes / peak / 1e3);
        for (const bench_cut &cut : cuts) {
            if (cut.split_pages > 1 && c.length && cut.split_pages * 64 > c.length) continue;
            const double us = bench_case_run(c, dtype, kv, cut, false, stream);
            printf("    %-20s %8.2f us, %5.0f GB/s, %.3f of the probe\n", cut.name, us,
                   bytes / us / 1e3, bytes / us / 1e3 / peak);
        }
        printf("    with the qkv finish  %8.2f us\n",
               bench_case_run(c, dtype, kv, bench_cut(), true, stream));
        fflush(stdout);
    }
    return 0;
}

#endif
