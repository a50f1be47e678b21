/*
 * gpu_attention_e4m3.cu - the GPU's attention over KV in fp8 against fp64 on the host, and its
 * speed.
 *
 *     gpu_attention_e4m3 [--quick | --small]  checks; the last line is "N passed, N failed"
 *     gpu_attention_e4m3 --bench              times against the HBM bandwidth probed in the same
 * run
 *
 * Cached keys and values are e4m3 numbers and exponents that are a function of (sequence, position,
 * head), decoded anew by the reference; everything else in the pools is NaN.  The step's own keys
 * and values must be in the pages as kernels/e4m3.h makes them, bit for bit, rows of NaN, infinity
 * and zeros among them.  Decode attention is held to
 *     |out - ref| <= 1.02 * 2^-11 * sum p|v| / sum p + 2^-8 |ref| + 1e-5 * sum p|v| / sum p
 * (f16 weights, a bf16 result, fp32 everything else; queries are rounded to f16 on both sides), and
 * to the same bits in every placement.  Prefill attention: gpu_prefill_e4m3.cuh.
 */
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/e4m3.h"
#include "tests/gpu_attention_run.cuh"

static tally g_tally;

/* --- cached rows --- */

__host__ __device__ static inline uint8_t cached_bits(uint32_t seed, int position, int head,
                                                      int which, int d)
{
    const uint32_t bits = random_bits(seed, position, (head * 2 + which) * 512 + d) & 0xFF;
    return (uint8_t)((bits & 0x7F) == 0x7F ? bits ^ 1 : bits);
}
/* Scales differ much between tokens, those of values more so. */
__host__ __device__ static inline uint8_t cached_exponent(uint32_t seed, int position, int head,
                                                          int which)
{
    const uint32_t bits = random_bits(seed + 1, position, head * 2 + which);
    if (which && bits % 61 == 0) return 127 - 30;
    return (uint8_t)(127 - 10 + (int)(bits % (which ? 9 : 3)));
}

enum { HEAD_BYTES = 2 * KN_ATOM_BYTES + 2 * KN_PAGE_TOKENS };

/* One CTA a page: NaN everywhere, the cached tokens of one layer. */
__global__ void fill_kernel(const fill_page *list, pool pools, size_t page_bytes, int layer,
                            int heads, int dim)
{
    const fill_page f = list[blockIdx.x];
    uint8_t *page = pools.base[f.page >> 28] + (size_t)(f.page & 0x0FFFFFFF) * page_bytes;
    for (size_t i = threadIdx.x; i < page_bytes; i += blockDim.x) page[i] = 0xFF;
    __syncthreads();
    for (int i = threadIdx.x; i < heads * 2 * f.valid * 128; i += blockDim.x) {
        const int d = i % 128, row = i / 128 % f.valid, in = i / 128 / f.valid, which = in % 2,
                  head = in / 2, position = f.first + row;
        uint8_t *at = page + (size_t)(layer * heads + head) * HEAD_BYTES;
        at[which * KN_ATOM_BYTES + row * 128 + (((d >> 4) ^ (row & 7)) << 4) + (d & 15)] =
            d < dim ? cached_bits(f.seed, position, head, which, d) : 0;
        if (d == 0)
            at[2 * KN_ATOM_BYTES + which * KN_PAGE_TOKENS + row] =
                cached_exponent(f.seed, position, head, which);
    }
}

/* --- a problem and one way of running it --- */

struct problem {
    int dim, q_heads, kv_heads, window;
    std::vector<kn_seq> seqs; /* token_count and kv_count */
    bool special;             /* the first sequence's last token has rows of NaN and the like */
};

enum placement { LOCAL, HOST, MIXED, PEER };
struct way {
    placement where;
    uint32_t shuffle;
    int ctas, blocks;
    bool graph;
    int item_pages; /* of the plan's items; 0: the rule */
};

enum { LAYERS = 2, LAYER = 1, TIERS = 3 };
static const size_t LOCAL_BYTES = (size_t)1 << 30, HOST_BYTES = (size_t)1 << 28;
static pool g_pools; /* local, host, and where there is another GPU its memory */
static kn_cu_window *g_windows;
static kn_cu_traffic *g_traffic;

/* The QKV product's output, a function of where it stands. */
static float input(const problem &p, int seq, int position, int head, int d)
{
    const float u = (float)(random_bits(900 + seq, position, head * 512 + d) >> 8) * 0x1p-23f - 1.f;
    if (head < p.q_heads) return u * 5.f;
    const int kv_head = (head - p.q_heads) % p.kv_heads;
    if (p.special && seq == 0 && position == p.seqs[0].kv_count - 1 && kv_head) {
        switch (kv_head) {
        case 1: return d == 5 ? INFINITY : u;
        case 2: return d == 7 ? NAN : u;
        case 3: return 0.f;
        case 4: return u * 1e9f;
        case 5: return u * 1e-20f;
        case 6: return u * 0x1p-28f;
        }
    }
    return head % 3 ? u : u * expf(3 * (float)(random_bits(5, position, d) % 7) - 9);
}

struct outcome {
    std::vector<uint16_t> out;      /* [T][Hq*D] */
    std::vector<int> seq, position; /* [T] */
    bool clean;                     /* what nobody should write is as it was */
};

static void place(const problem &p, const way &w, size_t page_bytes, std::vector<kn_seq> *seqs,
                  std::vector<kn_page> *pages, std::vector<fill_page> *fills)
{
    std::vector<uint32_t> free_pages[TIERS];
    const size_t room[TIERS] = {LOCAL_BYTES / page_bytes, HOST_BYTES / page_bytes,
                                g_pools.base[2] ? HOST_BYTES / page_bytes : 0};
    size_t need = 0;
    for (const kn_seq &s : p.seqs) need += (s.kv_count + 63) / 64;
    for (int t = 0; t < TIERS; t++) {
        for (uint32_t i = 0; i < std::min(room[t], 2 * need); i++) free_pages[t].push_back(i);
        for (size_t i = free_pages[t].size(); i > 1; i--)
            std::swap(free_pages[t][i - 1], free_pages[t][random_bits(w.shuffle, t, i) % i]);
    }
    for (size_t s = 0; s < p.seqs.size(); s++) {
        kn_seq seq = p.seqs[s];
        seq.page_begin = (int)pages->size();
        seqs->push_back(seq);
        for (int first = 0; first < seq.kv_count; first += 64) {
            const uint32_t die = random_bits(w.shuffle, s, first) % 8;
            int tier = w.where == HOST ? 1 : w.where == PEER ? 2 : 0;
            if (w.where == MIXED) tier = die < 2 ? 1 : die < 5 ? 2 : 0;
            for (int i = 0; i < TIERS && free_pages[tier].empty(); i++) tier = (tier + 1) % TIERS;
            const kn_page page = kn_page_make(tier, free_pages[tier].back());
            free_pages[tier].pop_back();
            pages->push_back(page);
            const int valid = std::min(64, std::max(0, seq.kv_count - seq.token_count - first));
            fills->push_back({page, (uint32_t)(40 + 2 * s), first, valid});
        }
    }
}

/* Rows that a step appended, against what e4m3.h makes of them. */
static void check_appended(const problem &p, const kn_kv &kv, const outcome &o,
                           const std::vector<kn_seq> &seqs, const std::vector<kn_page> &pages)
{
    std::vector<uint8_t> head(HEAD_BYTES);
    int wrong = 0, rows = 0;
    for (size_t t = 0; t < o.position.size(); t++) {
        if (o.seq[t] < 0) continue;
        const kn_page page = pages[seqs[o.seq[t]].page_begin + o.position[t] / 64];
        const int row = o.position[t] % 64;
        for (int h = 0; h < p.kv_heads; h++) {
            CUDA(cudaMemcpy(head.data(),
                            g_pools.base[kn_page_tier(page)] +
                                kn_page_index(page) * kn_kv_page_bytes(&kv) +
                                LAYER * kn_kv_layer_bytes(&kv) + h * kn_kv_head_bytes(&kv),
                            head.size(), cudaMemcpyDefault));
            for (int which = 0; which < 2; which++) {
                float x[128];
                uint8_t want[128] = {0};
                for (int d = 0; d < p.dim; d++)
                    x[d] = input(p, o.seq[t], o.position[t], p.q_heads + which * p.kv_heads + h, d);
                const uint8_t exponent = kn_e4m3_row(x, p.dim, want);
                bool same = head[kn_e4m3_exponents_at(p.dim) + which * 64 + row] == exponent;
                for (int d = 0; d < 128; d++)
                    same = same && head[kn_e4m3_at(p.dim, which, row, d)] == want[d];
                wrong += !same;
                rows++;
            }
        }
    }
    EXPECT(&g_tally, wrong == 0, "D %d: %d of %d appended rows", p.dim, wrong, rows);
}

static outcome run(const problem &p, const way &w)
{
    kn_kv kv = {
        KN_E4M3, LAYERS, p.kv_heads, p.dim, {g_pools.base[0], g_pools.base[1], g_pools.base[2]}};
    EXPECT(&g_tally, kn_kv_head_bytes(&kv) == HEAD_BYTES, "%zu bytes", kn_kv_head_bytes(&kv));
    std::vector<kn_seq> seqs;
    std::vector<kn_page> pages;
    std::vector<fill_page> fills;
    place(p, w, kn_kv_page_bytes(&kv), &seqs, &pages, &fills);
    fill_page *fill_list = to_device(fills);
    fill_kernel<<<fills.size(), 256>>>(fill_list, g_pools, kn_kv_page_bytes(&kv), LAYER, p.kv_heads,
                                       p.dim);
    CUDA(cudaGetLastError());

    outcome o;
    const int heads = p.q_heads + 2 * p.kv_heads;
    std::vector<float> qkv;
    int pages_seen = 0;
    for (size_t s = 0; s < seqs.size(); s++) {
        seqs[s].token_begin = (int)o.position.size();
        for (int i = 0; i < seqs[s].token_count; i++) {
            const int position = seqs[s].kv_count - seqs[s].token_count + i;
            o.position.push_back(position);
            o.seq.push_back((int)s);
            pages_seen += position / 64 + 1;
            for (int h = 0; h < heads; h++)
                for (int d = 0; d < p.dim; d++) qkv.push_back(input(p, (int)s, position, h, d));
        }
        if (s == 0) { /* an absent token among the others */
            o.position.push_back(0);
            o.seq.push_back(-1);
            for (int i = 0; i < heads * p.dim; i++) qkv.push_back(NAN);
        }
    }
    std::vector<int32_t> positions(o.position.begin(), o.position.end()),
        token_seq(o.seq.begin(), o.seq.end());
    const int tokens = (int)positions.size(), rows = (tokens + 7) / 8 * 8;
    kn_batch b = {};
    b.token_count = tokens;
    b.positions = to_device(positions);
    b.token_seq = to_device(token_seq);
    b.seq_count = (int)seqs.size();
    b.seqs = to_device(seqs);
    b.pages = to_device(pages);

    const kn_cu_attention_shape shape = {p.q_heads, p.kv_heads, p.dim, tokens, pages_seen};
    attention x = open_attention(shape);
    uint8_t *out;
    const size_t out_cols = (p.q_heads * p.dim + 127) / 128 * 128, out_bytes = out_cols * rows * 2;
    CUDA(cudaMalloc(&out, out_bytes));
    CUDA(cudaMemset(out, 0xFF, out_bytes));
    float *qkv_device = to_device(qkv);
    set_windows(g_windows, w.ctas, w.blocks);
    CUDA(cudaMemset(g_traffic, 0, sizeof(kn_cu_traffic) * KN_TIER_MAX));

    const kn_cu_plan_args plan = {&b, 0, p.window, g_windows, 0, w.item_pages, w.graph};
    const kn_cu_qkv_args finish = {
        {qkv_device, 1, 0, NULL}, NULL, NULL, 1e-5f, NULL, &kv, LAYER, NULL};
    const kn_cu_attention_args attend = {
        &kv, LAYER, 1.f / sqrtf((float)p.dim), rows, out, g_traffic, 0, 0};
    run_attention(&x, b, plan, finish, attend, w.graph);

    o.clean = counters_clean(x);
    std::vector<uint16_t> image(out_bytes / 2);
    CUDA(cudaMemcpy(image.data(), out, out_bytes, cudaMemcpyDeviceToHost));
    for (int t = 0; t < rows; t++)
        for (int k = 0; k < (int)out_cols; k++) {
            const uint16_t v = image[kn_cu_act_offset(rows, t, k) / 2];
            if (t >= tokens || token_seq[t] < 0) o.clean = o.clean && v == 0xFFFF;
            else if (k >= p.q_heads * p.dim) o.clean = o.clean && v == 0;
            if (t < tokens && k < p.q_heads * p.dim) o.out.push_back(v);
        }
    check_appended(p, kv, o, seqs, pages);
    for (const void *m : {(const void *)fill_list, (const void *)b.positions,
                          (const void *)b.token_seq, (const void *)b.seqs, (const void *)b.pages,
                          (const void *)x.memory, (const void *)out, (const void *)qkv_device})
        CUDA(cudaFree((void *)m));
    return o;
}

/* --- reference --- */

/* A row as attention sees it. */
static void stored_row(const problem &p, int seq, int position, int head, int which, double *to)
{
    uint8_t bits[128];
    float x[128];
    uint8_t exponent;
    if (position < p.seqs[seq].kv_count - p.seqs[seq].token_count) {
        for (int d = 0; d < p.dim; d++)
            bits[d] = cached_bits(40 + 2 * seq, position, head, which, d);
        exponent = cached_exponent(40 + 2 * seq, position, head, which);
    } else {
        for (int d = 0; d < p.dim; d++)
            x[d] = input(p, seq, position, p.q_heads + which * p.kv_heads + head, d);
        exponent = kn_e4m3_row(x, p.dim, bits);
    }
    for (int d = 0; d < p.dim; d++)
        to[d] = (double)kn_f32_from_e4m3(bits[d]) * kn_e4m3_scale(exponent);
}

/* Largest |error| over its bound among a token's heads of one kv-head; a NaN where there should be
 * none, or none where there should, counts as infinite. */
static double attention_error(const problem &p, const outcome &o, int t, int kv_head)
{
    const int group = p.q_heads / p.kv_heads, position = o.position[t], seq = o.seq[t];
    const int begin = p.window > 0 ? std::max(0, position - p.window + 1) : 0,
              n = position + 1 - begin;
    std::vector<double> k((size_t)n * p.dim), v((size_t)n * p.dim), w(n), acc(p.dim), mag(p.dim);
    for (int i = 0; i < n; i++) {
        stored_row(p, seq, begin + i, kv_head, 0, &k[(size_t)i * p.dim]);
        stored_row(p, seq, begin + i, kv_head, 1, &v[(size_t)i * p.dim]);
    }
    double worst = 0;
    for (int h = kv_head * group; h < (kv_head + 1) * group; h++) {
        double most = -1e300, sum = 0;
        for (int i = 0; i < n; i++) {
            double s = 0;
            for (int d = 0; d < p.dim; d++)
                s += (double)__half2float(__float2half_rn(input(p, seq, position, h, d))) *
                     k[(size_t)i * p.dim + d];
            w[i] = s / sqrt((double)p.dim);
            most = std::max(most, w[i]);
        }
        std::fill(acc.begin(), acc.end(), 0.0);
        std::fill(mag.begin(), mag.end(), 0.0);
        for (int i = 0; i < n; i++) {
            const double e = exp(w[i] - most);
            sum += e;
            for (int d = 0; d < p.dim; d++) {
                acc[d] += e * v[(size_t)i * p.dim + d];
                mag[d] += e * fabs(v[(size_t)i * p.dim + d]);
            }
        }
        for (int d = 0; d < p.dim; d++) {
            const double ref = acc[d] / sum,
                         got = kn_f32_from_bf16(o.out[((size_t)t * p.q_heads + h) * p.dim + d]);
            const double bound = (1.02 * 0x1p-11 + 1e-5) * mag[d] / sum + 0x1p-8 * fabs(ref);
            if (isnan(ref) != isnan(got)) return INFINITY;
            if (!isnan(ref)) worst = std::max(worst, fabs(got - ref) / (bound + 1e-30));
        }
    }
    return worst;
}

static void check(const problem &p, const char *name)
{
    const way ways[] = {{LOCAL, 1, 16, 1, false, 0}, {LOCAL, 2, 16, 1, true, 0},
                        {MIXED, 3, 16, 1, false, 0}, {MIXED, 4, 4, 4, true, 0},
                        {HOST, 5, 8, 2, false, 0},   {LOCAL, 6, 16, 1, false, 32},
                        {PEER, 7, 32, 4, false, 0}};
    const outcome first = run(p, ways[0]);
    EXPECT(&g_tally, first.clean, "%s", name);
    for (size_t i = 1; i < sizeof ways / sizeof *ways; i++) {
        const outcome o = run(p, ways[i]);
        size_t differ = 0;
        for (size_t t = 0; t < o.position.size(); t++)
            for (int k = 0; k < p.q_heads * p.dim && o.seq[t] >= 0; k++)
                differ += o.out[t * p.q_heads * p.dim + k] != first.out[t * p.q_heads * p.dim + k];
        EXPECT(&g_tally, differ == 0 && o.clean, "%s: way %zu: %zu of %zu elements, clean %d", name,
               i, differ, o.out.size(), o.clean);
    }
    std::vector<double> errors(first.position.size() * p.kv_heads);
    parallel((int)errors.size(), [&](int i) {
        const int t = i / p.kv_heads;
        if (first.seq[t] >= 0) errors[i] = attention_error(p, first, t, i % p.kv_heads);
    });
    const double worst = *std::max_element(errors.begin(), errors.end());
    EXPECT(&g_tally, worst <= 1, "%s: %.3f of the bound", name, worst);
    printf("%s: worst %.3f of the bound\n", name, worst);
    fflush(stdout);
}

static std::vector<kn_seq> lengths(std::vector<std::pair<int, int>> counts)
{
    std::vector<kn_seq> seqs;
    for (auto &c : counts) seqs.push_back({0, c.first, c.second, 0});
    return seqs;
}

static void open_pools()
{
    CUDA(cudaMalloc(&g_pools.base[0], LOCAL_BYTES));
    CUDA(cudaHostAlloc(&g_pools.base[1], HOST_BYTES, cudaHostAllocDefault));
    int gpus, able = 0;
    CUDA(cudaGetDeviceCount(&gpus));
    if (gpus > 1) CUDA(cudaDeviceCanAccessPeer(&able, 0, 1));
    if (able) {
        CUDA(cudaSetDevice(1));
        CUDA(cudaMalloc(&g_pools.base[2], HOST_BYTES));
        CUDA(cudaSetDevice(0));
        CUDA(cudaDeviceEnablePeerAccess(1, 0));
    }
    printf("%s\n", able ? "pages in local, host and peer memory" : "no peer: pages in two tiers");
    CUDA(cudaMalloc(&g_windows, sizeof(kn_cu_window) * KN_TIER_MAX));
    CUDA(cudaMalloc(&g_traffic, sizeof(kn_cu_traffic) * KN_TIER_MAX));
}

static void checks(bool small)
{
    check({128, 32, 8, 0, lengths({{1, 1}, {1, 64}, {2, 65}, {1, 200}}), true}, "128, 32/8");
    check({96, 6, 2, 70, lengths({{1, 300}, {3, 130}}), false}, "96, 6/2, window 70");
    check({128, 16, 1, 0, lengths({{1, 500}, {2, 77}}), false}, "128, 16/1");
    if (small) return;
    check({128, 28, 4, 0, lengths({{1, 1000}, {1, 5}, {1, 129}, {4, 260}}), false}, "128, 28/4");
    check({128, 32, 8, 0, lengths({{1, 20000}, {1, 3000}}), false}, "128, 32/8, long");
    check({80, 8, 8, 0, lengths({{1, 2100}, {1, 64}, {1, 63}}), false}, "80, 8/8");
    check({128, 64, 8, 1024, lengths({{2, 5000}, {1, 1024}, {1, 1025}}), false},
          "128, 64/8, window 1024");
    std::vector<kn_seq> many;
    for (int i = 0; i < 200; i++) many.push_back({0, 1, 1 + (int)(random_bits(3, i, 0) % 700), 0});
    check({128, 8, 2, 0, many, false}, "128, 8/2, 200 sequences");
}

#include "tests/gpu_attention_bench.cuh"
#include "tests/gpu_prefill_e4m3.cuh"

int main(int argc, char **argv)
{
    char err[ERR_CAP];
    const bool small = argc > 1 && (!strcmp(argv[1], "--small") || !strcmp(argv[1], "--quick")),
               timed = argc > 1 && !strcmp(argv[1], "--bench");
    open_pools();
    STATUS(kn_cu_prefill_attention_init(err), err);
    if (timed) {
        chunk_bench();
        bench(KN_E4M3);
    } else {
        checks(small);
        chunk_checks(small);
    }
    printf("%d passed, %d failed\n", g_tally.passed, g_tally.failed);
    return g_tally.failed != 0;
}
