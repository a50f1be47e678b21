/*
 * gpu_attention_run.cuh - what the tests of attention over bf16 and over fp8 share: where pages
 * lie, what a step's attention works in, and that step in a stream or replayed as a graph.
 */
#ifndef DAKD_TESTS_GPU_ATTENTION_RUN_CUH
#define DAKD_TESTS_GPU_ATTENTION_RUN_CUH

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "kernels/cuda/attention.h"
#include "tests/gpu_check.cuh"

/* A page to be filled with what is cached of a sequence. */
struct fill_page {
    kn_page page;
    uint32_t seed;
    int32_t first, valid; /* positions first.. of which `valid` are cached */
};
struct pool {
    uint8_t *base[KN_TIER_MAX];
};

/* f(0) to f(n - 1) on all cores. */
template <typename F> static void parallel(int n, F f)
{
    std::atomic<int> next(0);
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < std::max(1u, std::thread::hardware_concurrency()); i++)
        threads.emplace_back([&] {
            for (int j; (j = next++) < n;) f(j);
        });
    for (std::thread &t : threads) t.join();
}

/* The same window for every tier. */
static void set_windows(kn_cu_window *to, int ctas, int blocks)
{
    const std::vector<kn_cu_window> windows(KN_TIER_MAX, {ctas, blocks, 0.f});
    CUDA(
        cudaMemcpy(to, windows.data(), sizeof(kn_cu_window) * KN_TIER_MAX, cudaMemcpyHostToDevice));
}

/* A step's attention, and its memory, which the caller frees. */
struct attention {
    kn_cu_attention a;
    uint8_t *memory;
    size_t bytes;
};

static attention open_attention(const kn_cu_attention_shape &shape)
{
    char err[ERR_CAP];
    attention x;
    STATUS(kn_cu_attention_bytes(&shape, &x.bytes, err), err);
    CUDA(cudaMalloc(&x.memory, x.bytes));
    CUDA(cudaMemset(x.memory, 0, x.bytes));
    STATUS(kn_cu_attention_init(&x.a, &shape, x.memory, err), err);
    return x;
}

/* Once in a stream; as a graph of two, replayed: counters are left as they were found. */
static void run_attention(attention *x, const kn_batch &b, const kn_cu_plan_args &plan,
                          const kn_cu_qkv_args &finish, const kn_cu_attention_args &attend,
                          bool as_graph)
{
    char err[ERR_CAP];
    cudaStream_t stream;
    CUDA(cudaStreamCreate(&stream));
    CUDA(cudaDeviceSynchronize());
    if (as_graph) CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    for (int i = 0; i < (as_graph ? 2 : 1); i++) {
        STATUS(kn_cu_qkv_finish(&x->a, &b, &finish, stream, err), err);
        if (i == 0) STATUS(kn_cu_attention_plan(&x->a, &x->a.plan, &plan, stream, err), err);
        STATUS(kn_cu_decode_attention(&x->a, &x->a.plan, &b, &attend, stream, err), err);
    }
    if (as_graph) {
        cudaGraph_t graph;
        cudaGraphExec_t exec;
        CUDA(cudaStreamEndCapture(stream, &graph));
        CUDA(cudaGraphInstantiate(&exec, graph, 0));
        for (int i = 0; i < 2; i++) CUDA(cudaGraphLaunch(exec, stream));
        CUDA(cudaStreamSynchronize(stream));
        CUDA(cudaGraphExecDestroy(exec));
        CUDA(cudaGraphDestroy(graph));
    }
    CUDA(cudaStreamSynchronize(stream));
    CUDA(cudaStreamDestroy(stream));
}

/* Whether partials and counts are zero, as they were found. */
static bool counters_clean(const attention &x)
{
    std::vector<uint32_t> left((x.memory + x.bytes - (uint8_t *)x.a.partial) / 4);
    CUDA(cudaMemcpy(left.data(), x.a.partial, left.size() * 4, cudaMemcpyDeviceToHost));
    return std::all_of(left.begin(), left.end(), [](uint32_t w) { return w == 0; });
}

#endif
