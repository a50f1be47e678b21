/*
 * gpu_prefill_attention.cu - attention of prompt chunks against fp64 on the GPU, and its speed.
 *
 *     gpu_prefill_attention [--quick | --small]
 *                                      checks; the last line is "N passed, N failed"
 *     gpu_prefill_attention --bench    TFLOPS, beside what wgmma alone does in the same run, and
 *                                      where it overtakes decode attention
 *
 * Queries, keys and values are functions of (sequence, position, head, dimension), computed anew by
 * the reference, so the layout of q, of pages and of the result is under test.  Everything else in
 * the pools and around q is NaN: other layers, rows no token has written, pages outside a window.
 * Bound, with weights and results rounded to bf16 and fp32 everywhere else:
 *     |out - ref| <= 2^-8 * 1.02 * (sum p|v| / sum p + |ref|) + 2e-5 * sum p|v| / sum p
 */
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/prefill_attention.h"
#include "kernels/cuda/ptx.cuh"
#include "tests/gpu_check.cuh"

static tally g_tally;

enum { LAYERS = 2, LAYER = 1, KEYS_MAX = 20000 };
static const size_t LOCAL_BYTES = (size_t)1 << 30, HOST_BYTES = (size_t)1 << 28;

struct pool {
    uint8_t *base[KN_TIER_MAX];
};
static pool g_pools;
static kn_cu_prefill_state *g_state;
static kn_cu_window *g_windows;
static kn_cu_traffic *g_traffic;

/* Element d of what: query heads first, then key and value heads. */
__host__ __device__ static inline float element(uint32_t seed, int position, int head, int d)
{
    return random_bf16(seed, position, head * 512 + d, 1.f);
}

/* --- filling --- */

struct heads {
    int q, kv, dim;
};
struct fill_page {
    kn_page page;
    uint32_t seed;
    int32_t first, valid; /* positions first.. of which `valid` are written */
};

/* One CTA a page: NaN everywhere but in what is written of one layer. */
__global__ void fill_pages(const fill_page *list, pool pools, size_t page_bytes, heads h)
{
    const fill_page f = list[blockIdx.x];
    uint16_t *page =
        (uint16_t *)(pools.base[f.page >> 28] + (size_t)(f.page & 0x0FFFFFFF) * page_bytes);
    const int atoms = (h.dim + 63) / 64, per_head = 2 * atoms * 4096;
    for (int i = threadIdx.x; i < (int)(page_bytes / 2); i += blockDim.x) page[i] = 0xFFFF;
    __syncthreads();
    for (int i = threadIdx.x; i < h.kv * per_head; i += blockDim.x) {
        const int head = i / per_head, which = i % per_head / (atoms * 4096);
        const int atom = i / 4096 % atoms, row = i % 4096 / 64, col = i % 64, d = atom * 64 + col;
        if (row >= f.valid) continue;
        const float v =
            d < h.dim ? element(f.seed, f.first + row, h.q + which * h.kv + head, d) : 0.f;
        page[(size_t)LAYER * h.kv * per_head + i / 4096 * 4096 + row * 64 +
             (((col >> 3) ^ (row & 7)) << 3) + (col & 7)] = (uint16_t)(__float_as_uint(v) >> 16);
    }
}

/* q as kn_qkv's buffer may hold it: a row of (Hq + 2 Hkv) * D floats a token, bf16 in the first
 * half of each query head's place. */
__global__ void fill_q(uint8_t *q, const int32_t *positions, const uint32_t *seeds, heads h)
{
    const size_t row_bytes = (size_t)(h.q + 2 * h.kv) * h.dim * 4;
    for (int i = threadIdx.x; i < h.q * h.dim; i += blockDim.x) {
        const float v =
            3.f * element(seeds[blockIdx.x], positions[blockIdx.x], i / h.dim, i % h.dim);
        *(__nv_bfloat16 *)(q + blockIdx.x * row_bytes + (size_t)(i / h.dim) * h.dim * 4 +
                           i % h.dim * 2) = __float2bfloat16(v);
    }
}

/* --- the reference --- */

/* One CTA a (token, head): ref and bound [T,Hq,D]. */
__global__ void reference(const int32_t *positions, const uint32_t *seeds, heads h, int window,
                          double scale, float *ref, float *bound)
{
    extern __shared__ double score[];
    __shared__ float q[256];
    __shared__ double part[256], part_abs[256];
    const int t = blockIdx.x / h.q, head = blockIdx.x % h.q, kv_head = head / (h.q / h.kv);
    const int position = positions[t], begin = window > 0 ? max(0, position - window + 1) : 0;
    const int count = position + 1 - begin, tid = threadIdx.x;
    const uint32_t seed = seeds[t];
    for (int d = tid; d < h.dim; d += blockDim.x)
        q[d] = __bfloat162float(__float2bfloat16(3.f * element(seed, position, head, d)));
    __syncthreads();
    double most = -1e300, sum = 0;
    for (int k = tid; k < count; k += blockDim.x) {
        double s = 0;
        for (int d = 0; d < h.dim; d++)
            s += (double)q[d] * element(seed, begin + k, h.q + kv_head, d);
        score[k] = s * scale;
        most = max(most, score[k]);
    }
    part[tid] = most;
    __syncthreads();
    for (int i = 0; i < (int)blockDim.x; i++) most = max(most, part[i]);
    __syncthreads();
    for (int k = tid; k < count; k += blockDim.x) {
        score[k] = exp(score[k] - most);
        sum += score[k];
    }
    part[tid] = sum;
    __syncthreads();
    sum = 0;
    for (int i = 0; i < (int)blockDim.x; i++) sum += part[i];
    __syncthreads();
    const int splits = blockDim.x / h.dim, d = tid % h.dim, split = tid / h.dim;
    double out = 0, out_abs = 0;
    for (int k = split; split < splits && k < count; k += splits) {
        const double v = element(seed, begin + k, h.q + h.kv + kv_head, d);
        out += score[k] * v;
        out_abs += score[k] * fabs(v);
    }
    part[tid] = out;
    part_abs[tid] = out_abs;
    __syncthreads();
    if (tid >= h.dim) return;
    for (int i = 1; i < splits; i++) {
        out += part[i * h.dim + d];
        out_abs += part_abs[i * h.dim + d];
    }
    out /= sum;
    out_abs /= sum;
    const size_t at = (size_t)blockIdx.x * h.dim + d;
    ref[at] = (float)out;
    bound[at] = (float)(1.02 / 256 * (out_abs + fabs(out)) + 2e-5 * out_abs);
}

/* --- a problem and one way of running it --- */

struct chunk {
    int offset, tokens;
};
struct problem {
    heads h;
    int window;
    std::vector<chunk> seqs;
};
enum placement { LOCAL, HOST, MIXED };
struct way {
    placement where;
    uint32_t shuffle;
    int chunk;        /* tokens of each sequence a launch; 0: all */
    int token_min;    /* of a sequence whose chunk is computed */
    bool whole;       /* never by section */
    int ctas, blocks; /* window of host memory; 0: no bound */
};

/* A launch's batch: every sequence's tokens [first, first + count) of its chunk. */
struct batch {
    std::vector<int32_t> positions, token_seq;
    std::vector<uint32_t> seeds;
    std::vector<kn_seq> seqs;
    std::vector<kn_page> pages;
    std::vector<fill_page> fills;
    std::vector<int> index; /* of each token in the problem */
};

static batch make_batch(const problem &p, const way &w, const kn_kv &kv, int first)
{
    batch b;
    const uint32_t room[2] = {(uint32_t)(LOCAL_BYTES / kn_kv_page_bytes(&kv)),
                              (uint32_t)(HOST_BYTES / kn_kv_page_bytes(&kv))};
    std::vector<uint32_t> order[2];
    for (int t = 0; t < 2; t++) {
        for (uint32_t i = 0; i < std::min(room[t], 1024u); i++) order[t].push_back(i);
        for (size_t i = order[t].size(); i > 1; i--)
            std::swap(order[t][i - 1], order[t][random_bits(w.shuffle, t, (uint32_t)i) % i]);
    }
    int index = 0;
    for (size_t s = 0; s < p.seqs.size(); index += p.seqs[s].tokens, s++) {
        const chunk &c = p.seqs[s];
        const int count = w.chunk ? std::min(w.chunk, c.tokens - first) : c.tokens;
        if (count <= 0) continue;
        const kn_seq seq = {(int)b.positions.size(), count, c.offset + first + count,
                            (int)b.pages.size()};
        for (int i = 0; i < count; i++) {
            b.positions.push_back(c.offset + first + i);
            b.token_seq.push_back((int)b.seqs.size());
            b.seeds.push_back(100 + (uint32_t)s);
            b.index.push_back(index + first + i);
        }
        b.seqs.push_back(seq);
        const int seen = p.window ? std::max(0, c.offset + first - p.window + 1) / 64 : 0;
        for (int page = 0; page * 64 < seq.kv_count; page++) {
            int tier =
                w.where == HOST || (w.where == MIXED && random_bits(w.shuffle, s, page) % 3 == 0);
            if (order[tier].empty()) tier ^= 1;
            const bool there = page >= seen;
            b.pages.push_back(there ? kn_page_make(tier, order[tier].back()) : KN_PAGE_NONE);
            if (!there) continue;
            b.fills.push_back({b.pages.back(), 100 + (uint32_t)s, page * 64,
                               std::min(64, seq.kv_count - page * 64)});
            order[tier].pop_back();
        }
    }
    return b;
}

struct outcome {
    std::vector<uint16_t> out; /* [T][Hq*D] of the problem */
    bool clean;                /* zero tails, untouched rows, the state as it was */
    uint64_t blocks[2], expected[2];
    uint64_t trips, trip_clocks; /* of host memory */
    double clocks;               /* at least that many passed, at most */
};

/* Blocks that tiles have to read of each tier: every page of every step that a row sees, once. */
static void expect_blocks(const problem &p, const batch &b, const kn_cu_prefill_work &work,
                          const kn_cu_prefill_tile *tiles, outcome *o)
{
    const int keys = p.h.dim > 128 ? 64 : 128, atoms = (p.h.dim + 63) / 64;
    for (int i = 0; i < work.tile_count; i++) {
        const kn_cu_prefill_tile &t = tiles[i];
        if (t.section > 0) continue; /* its first section stands for all of them */
        const int seen = p.window ? std::max(0, t.position - p.window + 1) : 0;
        const int end = std::min((t.last_position / keys + 1) * keys, t.kv_count);
        for (int page = seen / 64; page * 64 < end; page++)
            o->expected[b.pages[t.table + page] >> 28] += (uint64_t)p.h.kv * atoms;
    }
}

/* The state as launches must leave it: zero but for the sums, and what was asked for has landed. */
static bool state_clean()
{
    static const kn_cu_prefill_state zero = {};
    static kn_cu_prefill_state s;
    CUDA(cudaMemcpy(&s, g_state, sizeof s, cudaMemcpyDeviceToHost));
    bool landed = true;
    for (auto &flight : s.flight) {
        landed = landed && flight.asked == flight.landed;
        flight = {0, 0};
    }
    return landed && !memcmp(&s, &zero, sizeof s);
}

static void run_batch(const problem &p, const way &w, const kn_kv &kv, const batch &b, outcome *o)
{
    char err[ERR_CAP];
    const heads h = p.h;
    const int tokens = (int)b.positions.size(), group = h.q / h.kv, cols = h.q * h.dim;
    fill_page *fills = to_device(b.fills);
    int32_t *positions = to_device(b.positions);
    uint32_t *seeds = to_device(b.seeds);
    kn_page *pages = to_device(b.pages);
    uint8_t *q, *out;
    const size_t row_bytes = (size_t)(h.q + 2 * h.kv) * h.dim * 4;
    CUDA(cudaMalloc(&q, row_bytes * tokens));
    CUDA(cudaMemset(q, 0xFF, row_bytes * tokens));
    fill_pages<<<(unsigned)b.fills.size(), 256>>>(fills, g_pools, kn_kv_page_bytes(&kv), h);
    fill_q<<<tokens, 256>>>(q, positions, seeds, h);
    const int whole = tokens / 256, rest = kn_cu_bucket_of(tokens % 256);
    const size_t chunk_bytes = kn_cu_act_bytes(256, cols),
                 out_bytes = whole * chunk_bytes + kn_cu_act_bytes(rest, cols);
    CUDA(cudaMalloc(&out, out_bytes));
    CUDA(cudaMemset(out, 0xFF, out_bytes));
    CUDA(cudaMemset(g_traffic, 0, sizeof(kn_cu_traffic) * KN_TIER_MAX));

    kn_batch host = {};
    host.token_count = tokens;
    host.seq_count = (int)b.seqs.size();
    host.seqs = b.seqs.data();
    std::vector<kn_cu_prefill_tile> tiles(kn_cu_prefill_tile_max(&host, group));
    kn_cu_prefill_work work;
    const kn_cu_prefill_shape shape = {h.q, h.kv, h.dim, w.token_min, w.whole};
    kn_cu_prefill_tiles(&host, &shape, tiles.data(), &work);
    EXPECT(&g_tally, work.tile_count <= (int)tiles.size(), "%d tiles", work.tile_count);
    bool long_one = false;
    for (const kn_seq &s : b.seqs)
        long_one |= s.token_count >= w.token_min && s.kv_count > KN_CU_PREFILL_SECTION;
    EXPECT(&g_tally, work.by_section == (long_one && !w.whole), "by section: %d", work.by_section);
    expect_blocks(p, b, work, tiles.data(), o);
    const int bound = KN_WINDOW_NO_BOUND;
    const kn_cu_window windows[KN_TIER_MAX] = {
        {}, {w.ctas ? w.ctas : bound, w.blocks ? w.blocks : bound, 1}};
    CUDA(cudaMemcpy(g_windows, windows, sizeof windows, cudaMemcpyHostToDevice));
    kn_cu_prefill_tile *list = to_device(tiles);
    work.tiles = list;
    const kn_cu_prefill_args args = {&work,
                                     pages,
                                     q,
                                     row_bytes,
                                     (size_t)h.dim * 4,
                                     h.q,
                                     &kv,
                                     LAYER,
                                     1.f / sqrtf((float)h.dim),
                                     p.window,
                                     tokens,
                                     out,
                                     g_state,
                                     w.where == LOCAL ? NULL : g_windows,
                                     g_traffic};
    cudaEvent_t before, after;
    CUDA(cudaEventCreate(&before));
    CUDA(cudaEventCreate(&after));
    CUDA(cudaDeviceSynchronize());
    CUDA(cudaEventRecord(before));
    STATUS(kn_cu_prefill_attention_launch(&args, NULL, err), err);
    CUDA(cudaEventRecord(after));
    CUDA(cudaDeviceSynchronize());
    float ms;
    CUDA(cudaEventElapsedTime(&ms, before, after));
    int khz;
    CUDA(cudaDeviceGetAttribute(&khz, cudaDevAttrClockRate, 0));
    o->clocks += (double)ms * khz;
    CUDA(cudaEventDestroy(before));
    CUDA(cudaEventDestroy(after));

    std::vector<uint16_t> image(out_bytes / 2);
    CUDA(cudaMemcpy(image.data(), out, out_bytes, cudaMemcpyDeviceToHost));
    for (int t = 0; t < whole * 256 + rest; t++) {
        const int bucket = t / 256 == whole ? rest : 256;
        const bool there = t < tokens && b.seqs[b.token_seq[t]].token_count >= w.token_min;
        for (int k = 0; k < (cols + 127) / 128 * 128; k++) {
            const uint16_t v =
                image[(t / 256 * chunk_bytes + kn_cu_act_offset(bucket, t % 256, k)) / 2];
            if (there && k < cols) o->out[(size_t)b.index[t] * cols + k] = v;
            else o->clean = o->clean && v == (there ? 0 : 0xFFFF);
        }
    }
    o->clean = o->clean && state_clean();
    kn_cu_traffic traffic[KN_TIER_MAX];
    CUDA(cudaMemcpy(traffic, g_traffic, sizeof traffic, cudaMemcpyDeviceToHost));
    for (int t = 0; t < 2; t++) o->blocks[t] += traffic[t].blocks;
    o->trips += traffic[1].trips;
    o->trip_clocks += traffic[1].trip_clocks;
    for (void *x : {(void *)fills, (void *)positions, (void *)seeds, (void *)pages, (void *)q,
                    (void *)out, (void *)list})
        CUDA(cudaFree(x));
}

static outcome run(const problem &p, const way &w)
{
    kn_kv kv = {KN_BF16, LAYERS, p.h.kv, p.h.dim, {g_pools.base[0], g_pools.base[1]}};
    outcome o = {};
    o.clean = true;
    int tokens = 0, longest = 0;
    for (const chunk &c : p.seqs) {
        tokens += c.tokens;
        longest = std::max(longest, c.tokens);
    }
    o.out.assign((size_t)tokens * p.h.q * p.h.dim, 0xFFFF);
    for (int first = 0; first < longest; first += w.chunk ? w.chunk : longest)
        run_batch(p, w, kv, make_batch(p, w, kv, first), &o);
    return o;
}

/* --- checks --- */

static void check_reference(const problem &p, const outcome &o, const char *name)
{
    std::vector<int32_t> positions;
    std::vector<uint32_t> seeds;
    for (size_t s = 0; s < p.seqs.size(); s++)
        for (int i = 0; i < p.seqs[s].tokens; i++) {
            positions.push_back(p.seqs[s].offset + i);
            seeds.push_back(100 + (uint32_t)s);
        }
    const size_t count = positions.size() * p.h.q * p.h.dim;
    float *ref, *bound;
    CUDA(cudaMalloc(&ref, count * 4));
    CUDA(cudaMalloc(&bound, count * 4));
    int32_t *dp = to_device(positions);
    uint32_t *ds = to_device(seeds);
    reference<<<(unsigned)(positions.size() * p.h.q), 256, KEYS_MAX * sizeof(double)>>>(
        dp, ds, p.h, p.window, 1.0 / sqrt((double)p.h.dim), ref, bound);
    CUDA(cudaGetLastError());
    std::vector<float> r(count), b(count);
    CUDA(cudaMemcpy(r.data(), ref, count * 4, cudaMemcpyDeviceToHost));
    CUDA(cudaMemcpy(b.data(), bound, count * 4, cudaMemcpyDeviceToHost));
    double worst = 0;
    size_t wrong = 0, first = 0;
    for (size_t i = 0; i < count; i++) {
        const uint32_t bits = (uint32_t)o.out[i] << 16;
        float f;
        memcpy(&f, &bits, 4);
        const double e = fabs((double)f - r[i]) / b[i];
        if (!(e <= 1) && !wrong++) first = i;
        if (!(e <= worst)) worst = e;
    }
    const size_t row = (size_t)p.h.q * p.h.dim;
    EXPECT(&g_tally, wrong == 0,
           "%s: %zu of %zu beyond the bound, worst %.3g; first: token %zu (position %d) head %zu d "
           "%zu, %.6g expected",
           name, wrong, count, worst, first / row, positions[first / row], first % row / p.h.dim,
           first % p.h.dim, r[first]);
    if (!wrong) printf("  %-44s error/bound at most %.3f\n", name, worst);
    for (void *x : {(void *)ref, (void *)bound, (void *)dp, (void *)ds}) CUDA(cudaFree(x));
}

/* What was counted is what tiles have to read; and as many copies as the window lets be under way
 * take no more time together than so often passed. */
static void check_traffic(const outcome &o, const way &w, const char *name)
{
    for (int t = 0; t < 2; t++)
        EXPECT(&g_tally, o.blocks[t] == o.expected[t],
               "%s: placement %d: %llu blocks of tier %d, "
               "not %llu",
               name, w.where, (unsigned long long)o.blocks[t], t,
               (unsigned long long)o.expected[t]);
    EXPECT(&g_tally, (w.where == LOCAL) == (o.blocks[1] == 0), "%s: remote blocks", name);
    EXPECT(&g_tally, (o.blocks[1] == 0) == (o.trips == 0) && o.trips <= 2 * o.blocks[1],
           "%s: %llu trips", name, (unsigned long long)o.trips);
    EXPECT(&g_tally, !w.ctas || (double)o.trip_clocks <= o.clocks * 2 * w.ctas * w.blocks,
           "%s: window of %d: copies took %.0f clocks of %.0f", name, w.ctas * w.blocks,
           (double)o.trip_clocks, o.clocks);
}

enum ways { NO_OTHER, ONE_OTHER, ALL };

static void check(const problem &p, ways others)
{
    char name[96];
    snprintf(name, sizeof name, "D %d heads %d/%d window %d, %zu sequences", p.h.dim, p.h.q, p.h.kv,
             p.window, p.seqs.size());
    const outcome base = run(p, {LOCAL, 1, 0, 1, true, 0, 0});
    check_reference(p, base, name);
    EXPECT(&g_tally, base.clean, "%s: tails, absent rows or state", name);
    static const way ways[] = {{LOCAL, 1, 0, 1, true, 0, 0},    {LOCAL, 2, 0, 1, false, 0, 0},
                               {HOST, 3, 0, 1, false, 16, 2},   {MIXED, 4, 0, 1, true, 1, 1},
                               {LOCAL, 5, 90, 1, false, 0, 0},  {LOCAL, 6, 128, 1, true, 0, 0},
                               {MIXED, 7, 200, 1, false, 0, 0}, {LOCAL, 8, 0, 64, false, 0, 0},
                               {MIXED, 9, 50, 1, false, 3, 1},  {HOST, 10, 0, 1, false, 1, 1}};
    for (const way &w : ways) {
        if (others == NO_OTHER || (others == ONE_OTHER && w.shuffle != 9)) continue;
        const outcome o = run(p, w);
        size_t at = 0, differ = 0;
        const size_t row = (size_t)p.h.q * p.h.dim;
        for (size_t s = 0; s < p.seqs.size(); at += p.seqs[s].tokens * row, s++)
            for (size_t i = at; i < at + p.seqs[s].tokens * row; i++)
                differ += o.out[i] != (p.seqs[s].tokens >= w.token_min ? base.out[i] : 0xFFFF);
        EXPECT(&g_tally, differ == 0, "%s: placement %d shuffle %u chunks %d least %d: %zu differ",
               name, w.where, w.shuffle, w.chunk, w.token_min, differ);
        EXPECT(&g_tally, o.clean, "%s: chunks %d: tails, absent rows or state", name, w.chunk);
        check_traffic(o, w, name);
    }
}

static void check_all(bool quick)
{
    static const heads shapes[] = {{2, 2, 128}, {8, 2, 128}, {14, 2, 128}, {16, 2, 128},
                                   {2, 2, 64},  {14, 2, 64}, {16, 2, 64},  {4, 1, 96},
                                   {8, 1, 96},  {2, 2, 256}, {8, 2, 256},  {8, 1, 256},
                                   {6, 2, 80},  {3, 1, 40},  {10, 2, 128}};
    static const int offsets[] = {0, 1, 63, 64, 100, 4000};
    static const int lengths[] = {1, 2, 63, 64, 65, 127, 128, 129, 300, 1000};
    static const int windows[] = {0, 100, 0, 1, 1024, 0, 64};
    size_t turn = 0;
    for (const heads &h : shapes) {
        problem p = {h, quick ? 0 : windows[turn % 7], {}};
        if (quick) p.seqs = {{100, 65}, {0, 7}};
        else
            for (size_t i = 0; i < 10; i++)
                p.seqs.push_back({offsets[(i + turn) % 6], lengths[(i * 3 + turn) % 10]});
        check(p, quick ? NO_OTHER : ALL);
        turn++;
    }
    if (quick) check({{8, 2, 128}, 50, {{100, 65}, {0, 7}}}, ALL);
}

/* Contexts of several sections, chunks and windows across their boundaries. */
static void check_sections(bool quick)
{
    static const heads shapes[] = {{8, 2, 128}, {8, 2, 64}, {4, 1, 96}, {8, 1, 256}, {14, 2, 128}};
    static const int windows[] = {0, 8192, 100, 12000, 8300};
    for (int i = 0; i < 5; i++) {
        if (quick && i > 0) continue;
        check({shapes[i], 0, {{8100, 130}, {16370, 40}, {17000, 20}, {0, 50}}},
              quick ? ONE_OTHER : ALL);
        if (quick) continue;
        check({shapes[i], windows[i], {{8190, 70}, {16380, 16}, {19000, 150}}}, ALL);
        check({shapes[i], 100, {{16383, 2}, {16450, 200}}}, ALL);
    }
}

/* A few tiles of each kernel, for racecheck. */
static void check_small()
{
    for (const heads &h : {heads{4, 2, 64}, heads{4, 1, 96}, heads{4, 2, 128}, heads{2, 1, 256}})
        check({h, 0, {{300, 40}, {0, 70}}}, NO_OTHER);
    check({{4, 2, 64}, 0, {{8180, 20}}}, ONE_OTHER);
}

#include "tests/gpu_prefill_attention_bench.cuh"

int main(int argc, char **argv)
{
    char err[ERR_CAP];
    const bool quick = argc > 1 && !strcmp(argv[1], "--quick");
    const bool small = argc > 1 && !strcmp(argv[1], "--small");
    setvbuf(stdout, NULL, _IOLBF, 0);
    STATUS(kn_cu_prefill_attention_init(err), err);
    CUDA(cudaMalloc(&g_state, kn_cu_prefill_state_bytes(256)));
    CUDA(cudaMalloc(&g_windows, sizeof(kn_cu_window) * KN_TIER_MAX));
    CUDA(cudaMemset(g_state, 0, kn_cu_prefill_state_bytes(256)));
    CUDA(cudaMalloc(&g_traffic, sizeof(kn_cu_traffic) * KN_TIER_MAX));
    if (argc > 1 && !strcmp(argv[1], "--bench")) {
        bench();
        return 0;
    }
    CUDA(cudaFuncSetAttribute(reference, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              KEYS_MAX * sizeof(double)));
    CUDA(cudaMalloc(&g_pools.base[0], LOCAL_BYTES));
    CUDA(cudaHostAlloc((void **)&g_pools.base[1], HOST_BYTES, 0));
    if (small) check_small();
    else {
        check_all(quick);
        check_sections(quick);
    }
    printf("%d passed, %d failed\n", g_tally.passed, g_tally.failed);
    return g_tally.failed || !g_tally.passed;
}
