/*
 * gpu_prefill_e4m3.cuh - prefill attention over KV in fp8 against itself over bf16 pages that hold
 * the same numbers: the same bits, in every placement, and how much longer it takes.
 */
#ifndef DAKD_TESTS_GPU_PREFILL_E4M3_CUH
#define DAKD_TESTS_GPU_PREFILL_E4M3_CUH

#include "kernels/cuda/prefill_attention.h"

__device__ static float cached_value(uint32_t seed, int position, int head, int which, int d)
{
    const uint32_t pair = ptx_f16x2_of_e4m3x2_low(cached_bits(seed, position, head, which, d));
    const uint32_t exponent = cached_exponent(seed, position, head, which);
    return __half2float(__ushort_as_half((unsigned short)pair)) *
           __uint_as_float(exponent == KN_E4M3_NAN ? 0x7FC00000u : exponent << 23);
}

/* fill_kernel's numbers in bf16. */
__global__ void fill_wide(const fill_page *list, uint8_t *base, size_t page_bytes, int layer,
                          int heads, int dim)
{
    const fill_page f = list[blockIdx.x];
    uint8_t *page = base + (size_t)(f.page & 0x0FFFFFFF) * page_bytes;
    for (size_t i = threadIdx.x; i < page_bytes; i += blockDim.x) page[i] = 0xFF;
    __syncthreads();
    for (int i = threadIdx.x; i < heads * 2 * f.valid * 128; i += blockDim.x) {
        const int d = i % 128, row = i / 128 % f.valid, in = i / 128 / f.valid, which = in % 2,
                  head = in / 2;
        const float x = d < dim ? cached_value(f.seed, f.first + row, head, which, d) : 0.f;
        uint8_t *at = page + (size_t)(layer * heads + head) * 4 * KN_ATOM_BYTES;
        *(__nv_bfloat16 *)(at + (which * 2 + d / 64) * KN_ATOM_BYTES + row * 128 +
                           (((d % 64 >> 3) ^ (row & 7)) << 4) + (d & 7) * 2) = __float2bfloat16(x);
    }
}

__global__ void fill_queries(__nv_bfloat16 *q, size_t n)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x)
        q[i] = __float2bfloat16(random_bf16(11, (uint32_t)i, (uint32_t)(i >> 32), 3.f));
}

struct chunk_problem {
    int dim, q_heads, kv_heads, window;
    std::vector<kn_seq> seqs; /* token_count and kv_count */
};
struct chunk_way {
    kn_dtype dtype;
    placement where;
    uint32_t shuffle;
    bool whole;
    int ctas, blocks, repeats;
};

static kn_cu_prefill_state *g_state;

/* The activations, and the milliseconds of the fastest launch. */
static std::vector<uint16_t> run_chunks(const chunk_problem &p, const chunk_way &w, double *ms)
{
    char err[ERR_CAP];
    kn_kv kv = {
        w.dtype, LAYERS, p.kv_heads, p.dim, {g_pools.base[0], g_pools.base[1], g_pools.base[2]}};
    const size_t page_bytes = kn_kv_page_bytes(&kv);
    const way plain = {w.where, w.shuffle, w.ctas, w.blocks, false, 0};
    problem pages_of = {p.dim, p.q_heads, p.kv_heads, 0, p.seqs, false};
    std::vector<kn_seq> seqs;
    std::vector<kn_page> pages;
    std::vector<fill_page> fills;
    for (kn_seq &s : pages_of.seqs) s.token_count = 0; /* all of it is cached */
    place(pages_of, plain, page_bytes, &seqs, &pages, &fills);
    fill_page *fill_list = to_device(fills);
    if (w.dtype == KN_E4M3)
        fill_kernel<<<fills.size(), 256>>>(fill_list, g_pools, page_bytes, LAYER, p.kv_heads,
                                           p.dim);
    else
        fill_wide<<<fills.size(), 256>>>(fill_list, g_pools.base[0], page_bytes, LAYER, p.kv_heads,
                                         p.dim);
    int tokens = 0;
    for (size_t s = 0; s < seqs.size(); s++) {
        seqs[s].token_begin = tokens;
        seqs[s].token_count = p.seqs[s].token_count;
        tokens += seqs[s].token_count;
        /* Pages that no token sees any more are gone. */
        for (int i = 0;
             p.window && (i + 1) * 64 <= seqs[s].kv_count - seqs[s].token_count - p.window + 1; i++)
            pages[seqs[s].page_begin + i] = KN_PAGE_NONE;
    }
    kn_page *table = to_device(pages);
    const size_t q_bytes = (size_t)p.q_heads * p.dim * 2,
                 out_bytes = kn_cu_act_bytes(256, p.q_heads * p.dim) * (tokens / 256 + 1);
    uint8_t *q, *out;
    CUDA(cudaMalloc(&q, q_bytes * tokens));
    CUDA(cudaMalloc(&out, out_bytes));
    CUDA(cudaMemset(out, 0, out_bytes));
    fill_queries<<<512, 256>>>((__nv_bfloat16 *)q, q_bytes * tokens / 2);
    kn_batch host = {};
    host.token_count = tokens;
    host.seq_count = (int)seqs.size();
    host.seqs = seqs.data();
    std::vector<kn_cu_prefill_tile> tiles(kn_cu_prefill_tile_max(&host, p.q_heads / p.kv_heads));
    kn_cu_prefill_work work;
    const kn_cu_prefill_shape shape = {p.q_heads, p.kv_heads, p.dim, 1, w.whole};
    kn_cu_prefill_tiles(&host, &shape, tiles.data(), &work);
    kn_cu_prefill_tile *list = to_device(tiles);
    work.tiles = list;
    const kn_cu_window windows[KN_TIER_MAX] = {{}, {w.ctas, w.blocks, 1}, {w.ctas, w.blocks, 1}};
    CUDA(cudaMemcpy(g_windows, windows, sizeof windows, cudaMemcpyHostToDevice));
    CUDA(cudaMemset(g_state, 0, kn_cu_prefill_state_bytes(p.dim)));
    const kn_cu_prefill_args args = {&work,
                                     table,
                                     q,
                                     q_bytes,
                                     (size_t)p.dim * 2,
                                     p.q_heads,
                                     &kv,
                                     LAYER,
                                     1.f / sqrtf((float)p.dim),
                                     p.window,
                                     tokens,
                                     out,
                                     g_state,
                                     w.where == LOCAL ? NULL : g_windows,
                                     g_traffic};
    cudaEvent_t before, after;
    CUDA(cudaEventCreate(&before));
    CUDA(cudaEventCreate(&after));
    *ms = 1e30;
    for (int i = 0; i < w.repeats; i++) {
        float t;
        CUDA(cudaEventRecord(before));
        STATUS(kn_cu_prefill_attention_launch(&args, NULL, err), err);
        CUDA(cudaEventRecord(after));
        CUDA(cudaEventSynchronize(after));
        CUDA(cudaEventElapsedTime(&t, before, after));
        *ms = std::min(*ms, (double)t);
    }
    CUDA(cudaDeviceSynchronize());
    static kn_cu_prefill_state state;
    CUDA(cudaMemcpy(&state, g_state, sizeof state, cudaMemcpyDeviceToHost));
    bool clean = state.ticket == 0 && state.done == 0;
    for (auto &f : state.flight) clean = clean && f.asked == f.landed;
    for (uint32_t folded : state.folded) clean = clean && folded == 0;
    EXPECT(&g_tally, clean, "D %d: the state after a launch", p.dim);
    std::vector<uint16_t> image(out_bytes / 2);
    CUDA(cudaMemcpy(image.data(), out, out_bytes, cudaMemcpyDeviceToHost));
    for (const void *x : {(const void *)fill_list, (const void *)table, (const void *)q,
                          (const void *)out, (const void *)list})
        CUDA(cudaFree((void *)x));
    return image;
}

static void check_chunks(const chunk_problem &p, const char *name, bool timed)
{
    const chunk_way ways[] = {{KN_E4M3, LOCAL, 1, false, 1, 1, 3},
                              {KN_E4M3, LOCAL, 2, true, 1, 1, 1},
                              {KN_E4M3, MIXED, 3, false, 16, 2, 1},
                              {KN_E4M3, HOST, 4, false, 4, 1, 1},
                              {KN_E4M3, PEER, 5, false, 32, 4, 1}};
    double wide_ms, ms, first_ms = 0;
    const chunk_way wide = {KN_BF16, LOCAL, 1, false, 1, 1, 3};
    const std::vector<uint16_t> want = run_chunks(p, wide, &wide_ms);
    for (size_t i = 0; i < (timed ? 1 : sizeof ways / sizeof *ways); i++) {
        const std::vector<uint16_t> got = run_chunks(p, ways[i], &ms);
        size_t differ = 0;
        for (size_t k = 0; k < got.size(); k++) differ += got[k] != want[k];
        EXPECT(&g_tally, differ == 0, "%s, way %zu: %zu of %zu elements", name, i, differ,
               got.size());
        if (i == 0) first_ms = ms;
    }
    printf("prefill %s: fp8 %.3f ms, bf16 %.3f ms, %.3f\n", name, first_ms, wide_ms,
           wide_ms / first_ms);
    fflush(stdout);
}

static void chunk_checks(bool small)
{
    CUDA(cudaMalloc(&g_state, kn_cu_prefill_state_bytes(256)));
    check_chunks({128, 8, 2, 0, lengths({{40, 40}, {20, 200}})}, "128, 8/2", false);
    check_chunks({96, 6, 2, 100, lengths({{150, 400}})}, "96, 6/2, window 100", false);
    if (small) return;
    check_chunks({128, 32, 8, 0, lengths({{300, 300}, {130, 1000}, {64, 64}, {65, 513}})},
                 "128, 32/8", false);
    check_chunks({80, 8, 8, 0, lengths({{333, 777}, {2, 900}})}, "80, 8/8", false);
    check_chunks({128, 8, 2, 0, lengths({{100, 9000}, {64, 17000}})}, "128, 8/2, sections", false);
    check_chunks({128, 28, 4, 700, lengths({{600, 3000}, {64, 9000}})}, "128, 28/4, window 700",
                 false);
}

static void chunk_bench()
{
    CUDA(cudaMalloc(&g_state, kn_cu_prefill_state_bytes(256)));
    check_chunks({128, 32, 8, 0, lengths({{2048, 2048}})}, "32/8, 2048 tokens", true);
    check_chunks({128, 32, 8, 0, lengths({{8192, 8192}})}, "32/8, 8192 tokens", true);
    check_chunks({128, 32, 8, 0, lengths({{2048, 32768}})}, "32/8, 2048 tokens to 32768", true);
    check_chunks({128, 32, 8, 0, lengths({{256, 32768}})}, "32/8, 256 tokens to 32768", true);
    check_chunks({128, 32, 8, 0, lengths({{64, 32768}})}, "32/8, 64 tokens to 32768", true);
}

#endif
