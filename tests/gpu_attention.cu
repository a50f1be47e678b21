/*
 * gpu_attention.cu - the GPU's attention against fp64 on the host, and its speed.
 *
 *     gpu_attention [--quick | --small]  checks; the last line is "N passed, N failed"
 *     gpu_attention --bench              times against the HBM bandwidth probed in the same run
 *
 * Cached keys and values are a function of (sequence, position, head, dimension), computed anew by
 * the reference, so page layout and placement are under test; everything else in the pools is NaN.
 * The step's own keys, values and queries go through kn_cu_qkv_finish, are read back and compared
 * with fp64 norm and rotation, and then serve the reference, whose bound is thus attention's alone:
 *     |out - ref| <= 1.02 * 2^-8 * (sum p|v| / sum p + 2 |ref|) + 1e-5 * sum p|v| / sum p
 * (bf16 weights, a bf16 result, fp32 everything else).
 */
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "kernels/convert.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/ptx.cuh"
#include "tests/gpu_attention_run.cuh"

static tally g_tally;

__host__ __device__ static inline float uniform(uint32_t bits)
{
    return (float)(bits >> 8) * 0x1p-23f - 1.f;
}
/* Cached K (which = 0) or V (1) of a sequence. */
__host__ __device__ static inline float cached(uint32_t seed, int position, int head, int which,
                                               int d)
{
    return __bfloat162float(
        __float2bfloat16(uniform(random_bits(seed, position, (head * 2 + which) * 512 + d))));
}

/* One CTA a page: NaN everywhere, the cached tokens of one layer. */
__global__ void fill_kernel(const fill_page *list, pool pools, size_t page_bytes, int layers,
                            int layer, int heads, int dim, int atoms)
{
    const fill_page f = list[blockIdx.x];
    uint8_t *page = pools.base[f.page >> 28] + (size_t)(f.page & 0x0FFFFFFF) * page_bytes;
    const int per_head = 2 * atoms * 4096, per_layer = heads * per_head;
    for (int i = threadIdx.x; i < layers * per_layer; i += blockDim.x) {
        const int l = i / per_layer, in_layer = i % per_layer, head = in_layer / per_head;
        const int in_head = in_layer % per_head, which = in_head / (atoms * 4096);
        const int in_kind = in_head % (atoms * 4096), atom = in_kind / 4096;
        const int row = in_kind % 4096 / 64, col = in_kind % 64, d = atom * 64 + col;
        uint16_t bits = 0xFFFF;
        if (l == layer && row < f.valid) {
            const float v = d < dim ? cached(f.seed, f.first + row, head, which, d) : 0.f;
            bits = (uint16_t)(__float_as_uint(v) >> 16);
        }
        const size_t at = (size_t)l * per_layer * 2 + (size_t)head * per_head * 2 +
                          (size_t)(which * atoms + atom) * 8192 + row * 128 +
                          (((col >> 3) ^ (row & 7)) << 4) + (col & 7) * 2;
        *(uint16_t *)(page + at) = bits;
    }
}

/* --- a problem and one way of running it --- */

struct problem {
    int dim, q_heads, kv_heads, window;
    bool norm, rope;
    std::vector<kn_seq> seqs;    /* token_count and kv_count */
    std::vector<uint32_t> seeds; /* of each sequence */
};

enum placement { LOCAL, HOST, MIXED };
struct way {
    placement where = LOCAL;
    uint32_t shuffle = 1;
    int ctas = 16, blocks = 1;
    bool graph = false;
    int item_pages = 0; /* of the plan's items; 0: the rule */
};

enum { LAYERS = 2, LAYER = 1, ROPE_POSITIONS = 8192 };
static const size_t LOCAL_BYTES = (size_t)1 << 30, HOST_BYTES = (size_t)1 << 28;
static pool g_pools;
static kn_cu_window *g_windows;
static kn_cu_traffic *g_traffic;

struct outcome {
    std::vector<uint16_t> out;      /* [T][Hq*D] */
    std::vector<float> q;           /* [T][Hq][D] as attention reads it */
    std::vector<float> key, value;  /* [T][Hkv][D] as appended */
    std::vector<float> qkv;         /* the input */
    std::vector<int> seq, position; /* [T] */
    bool pad_clean;                 /* zero tails, untouched absent rows */
    uint64_t remote_blocks;
};

static float norm_weight(int which, int d)
{
    return 1.f + 0.25f * uniform(random_bits(77 + which, d, 1));
}
static float rope_angle(int position, int d, int dim)
{
    return (float)(position * pow(10000.0, -2.0 * d / dim));
}

static const float *rope_table(int dim)
{
    static int made = 0;
    static float *table;
    if (made == dim) return table;
    if (table) CUDA(cudaFree(table));
    std::vector<float> t((size_t)ROPE_POSITIONS * dim);
    for (int p = 0; p < ROPE_POSITIONS; p++)
        for (int d = 0; d < dim / 2; d++) {
            t[(size_t)p * dim + d] = cosf(rope_angle(p, d, dim));
            t[(size_t)p * dim + dim / 2 + d] = sinf(rope_angle(p, d, dim));
        }
    table = to_device(t);
    made = dim;
    return table;
}

/* Page tables of a problem, pages drawn without repetition from the pools. */
static void place(const problem &p, const way &w, const kn_kv &kv, std::vector<kn_seq> *seqs,
                  std::vector<kn_page> *pages, std::vector<fill_page> *fills)
{
    const size_t page_bytes = kn_kv_page_bytes(&kv);
    std::vector<uint32_t> free_pages[2];
    const size_t room[2] = {LOCAL_BYTES / page_bytes, HOST_BYTES / page_bytes};
    size_t need = 0;
    for (const kn_seq &s : p.seqs) need += (s.kv_count + 63) / 64;
    for (int t = 0; t < 2; t++) {
        for (uint32_t i = 0; i < std::min(room[t], 2 * need); i++) free_pages[t].push_back(i);
        for (size_t i = free_pages[t].size(); i > 1; i--)
            std::swap(free_pages[t][i - 1], free_pages[t][random_bits(w.shuffle, t, i) % i]);
    }
    for (size_t s = 0; s < p.seqs.size(); s++) {
        kn_seq seq = p.seqs[s];
        seq.page_begin = (int)pages->size();
        seqs->push_back(seq);
        for (int first = 0; first < seq.kv_count; first += 64) {
            int tier =
                w.where == HOST || (w.where == MIXED && random_bits(w.shuffle, s, first) % 4 == 0);
            if (free_pages[tier].empty()) tier ^= 1;
            const kn_page page = kn_page_make(tier, free_pages[tier].back());
            free_pages[tier].pop_back();
            pages->push_back(page);
            const int valid = std::min(64, std::max(0, seq.kv_count - seq.token_count - first));
            fills->push_back({page, p.seeds[s], first, valid});
        }
    }
}

static outcome run(const problem &p, const way &w)
{
    const int atoms = (p.dim + 63) / 64, group = p.q_heads / p.kv_heads;
    kn_kv kv = {KN_BF16, LAYERS, p.kv_heads, p.dim, {g_pools.base[0], g_pools.base[1]}};
    std::vector<kn_seq> seqs;
    std::vector<kn_page> pages;
    std::vector<fill_page> fills;
    place(p, w, kv, &seqs, &pages, &fills);
    fill_page *fill_list = to_device(fills);
    fill_kernel<<<fills.size(), 256>>>(fill_list, g_pools, kn_kv_page_bytes(&kv), LAYERS, LAYER,
                                       p.kv_heads, p.dim, atoms);
    CUDA(cudaGetLastError());

    outcome o;
    std::vector<int32_t> positions, token_seq;
    const int heads = p.q_heads + 2 * p.kv_heads;
    int pages_seen = 0;
    for (size_t s = 0; s < seqs.size(); s++) {
        seqs[s].token_begin = (int)positions.size();
        for (int i = 0; i < seqs[s].token_count; i++) {
            const int position = seqs[s].kv_count - seqs[s].token_count + i;
            positions.push_back(position);
            token_seq.push_back((int)s);
            pages_seen += position / 64 + 1;
            for (int h = 0; h < heads; h++)
                for (int d = 0; d < p.dim; d++)
                    o.qkv.push_back(uniform(random_bits(p.seeds[s] + 7, position, h * 512 + d)) *
                                    (h < p.q_heads ? 5.f : 1.f));
        }
        if (s == 0) { /* an absent token among the others */
            positions.push_back(0);
            token_seq.push_back(-1);
            for (int i = 0; i < heads * p.dim; i++) o.qkv.push_back(NAN);
        }
    }
    o.position.assign(positions.begin(), positions.end());
    o.seq.assign(token_seq.begin(), token_seq.end());
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
    const size_t out_cols = (p.q_heads * p.dim + 127) / 128 * 128, out_bytes = out_cols * rows * 2;
    uint8_t *out;
    CUDA(cudaMalloc(&out, out_bytes));
    CUDA(cudaMemset(out, 0xFF, out_bytes));
    std::vector<float> weights;
    for (int i = 0; i < 2; i++)
        for (int d = 0; d < p.dim; d++) weights.push_back(norm_weight(i, d));
    float *norm = to_device(weights), *qkv = to_device(o.qkv);
    set_windows(g_windows, w.ctas, w.blocks);
    CUDA(cudaMemset(g_traffic, 0, sizeof(kn_cu_traffic) * KN_TIER_MAX));

    const kn_cu_plan_args plan = {&b, 0, p.window, g_windows, 0, w.item_pages, w.graph};
    const kn_cu_qkv_args finish = {{qkv, 1, 0, NULL},
                                   p.norm ? norm : NULL,
                                   p.norm ? norm + p.dim : NULL,
                                   1e-5f,
                                   p.rope ? rope_table(p.dim) : NULL,
                                   &kv,
                                   LAYER,
                                   NULL};
    const kn_cu_attention_args attend = {
        &kv, LAYER, 1.f / sqrtf((float)p.dim), rows, out, g_traffic, 0, 0};
    run_attention(&x, b, plan, finish, attend, w.graph);

    EXPECT(&g_tally, counters_clean(x),
           "D %d heads %d/%d: partials or counts are not zero after a step", p.dim, p.q_heads,
           p.kv_heads);

    std::vector<uint16_t> image(out_bytes / 2);
    CUDA(cudaMemcpy(image.data(), out, out_bytes, cudaMemcpyDeviceToHost));
    o.pad_clean = true;
    for (int t = 0; t < rows; t++)
        for (int k = 0; k < (int)out_cols; k++) {
            const size_t at =
                ((size_t)(k / 64) * rows + t) * 64 + (((k & 63) >> 3) ^ (t & 7)) * 8 + (k & 7);
            const bool absent = t >= tokens || token_seq[t] < 0;
            if (absent) o.pad_clean = o.pad_clean && image[at] == 0xFFFF;
            else if (k >= p.q_heads * p.dim) o.pad_clean = o.pad_clean && image[at] == 0;
            if (t < tokens && k < p.q_heads * p.dim) o.out.push_back(image[at]);
        }
    const int q_rows = group <= 8 ? 8 : 16;
    std::vector<uint16_t> q((size_t)tokens * p.kv_heads * q_rows * atoms * 64);
    CUDA(cudaMemcpy(q.data(), x.a.q, q.size() * 2, cudaMemcpyDeviceToHost));
    o.q.resize((size_t)tokens * p.q_heads * p.dim);
    o.key.resize((size_t)tokens * p.kv_heads * p.dim);
    o.value.resize(o.key.size());
    std::vector<uint16_t> head(atoms * 2 * 4096);
    for (int t = 0; t < tokens; t++) {
        if (token_seq[t] < 0) continue;
        for (int h = 0; h < p.q_heads; h++)
            for (int d = 0; d < p.dim; d++) {
                const int r = h % group, c = d % 16;
                const int lane = r % 8 * 4 + c % 8 / 2;
                const int reg = q_rows == 8 ? c / 8 : r / 8 + 2 * (c / 8);
                const size_t at = ((size_t)t * p.kv_heads + h / group) * q_rows * atoms * 64 +
                                  d / 16 * q_rows * 16 + lane * (q_rows / 2) + reg * 2 + c % 2;
                o.q[((size_t)t * p.q_heads + h) * p.dim + d] = kn_f32_from_bf16(q[at]);
            }
        const kn_page page = pages[seqs[token_seq[t]].page_begin + positions[t] / 64];
        const int row = positions[t] % 64;
        for (int h = 0; h < p.kv_heads; h++) {
            CUDA(cudaMemcpy(head.data(),
                            g_pools.base[kn_page_tier(page)] +
                                kn_page_index(page) * kn_kv_page_bytes(&kv) +
                                LAYER * kn_kv_layer_bytes(&kv) + h * kn_kv_head_bytes(&kv),
                            head.size() * 2, cudaMemcpyDefault));
            for (int which = 0; which < 2; which++)
                for (int d = 0; d < atoms * 64; d++) {
                    const size_t at = (size_t)(which * atoms + d / 64) * 4096 +
                                      kn_atom_offset(row, d % 64 * 2) / 2;
                    if (d >= p.dim) o.pad_clean = o.pad_clean && head[at] == 0;
                    else
                        (which ? o.value : o.key)[((size_t)t * p.kv_heads + h) * p.dim + d] =
                            kn_f32_from_bf16(head[at]);
                }
        }
    }
    kn_cu_traffic traffic[KN_TIER_MAX];
    CUDA(cudaMemcpy(traffic, g_traffic, sizeof traffic, cudaMemcpyDeviceToHost));
    o.remote_blocks = traffic[1].blocks;
    for (const void *m :
         {(const void *)fill_list, (const void *)b.positions, (const void *)b.token_seq,
          (const void *)b.seqs, (const void *)b.pages, (const void *)x.memory, (const void *)out,
          (const void *)norm, (const void *)qkv})
        CUDA(cudaFree((void *)m));
    return o;
}

/* --- reference --- */

/* Largest |error| over its bound among a token's heads of one kv-head. */
static double attention_error(const problem &p, const outcome &o, int t, int kv_head, double *rel)
{
    const int group = p.q_heads / p.kv_heads, position = o.position[t], seq = o.seq[t];
    const int begin = p.window > 0 ? std::max(0, position - p.window + 1) : 0,
              n = position + 1 - begin;
    const int own = p.seqs[seq].kv_count - p.seqs[seq].token_count;
    int first_token = t - (position - own);
    std::vector<double> k((size_t)n * p.dim), v((size_t)n * p.dim), w(n), acc(p.dim), mag(p.dim);
    for (int i = 0; i < n; i++)
        for (int d = 0; d < p.dim; d++) {
            const int at = begin + i;
            if (at >= own) {
                const size_t from =
                    ((size_t)(first_token + at - own) * p.kv_heads + kv_head) * p.dim + d;
                k[(size_t)i * p.dim + d] = o.key[from];
                v[(size_t)i * p.dim + d] = o.value[from];
            } else {
                k[(size_t)i * p.dim + d] = cached(p.seeds[seq], at, kv_head, 0, d);
                v[(size_t)i * p.dim + d] = cached(p.seeds[seq], at, kv_head, 1, d);
            }
        }
    double worst = 0, num = 0, den = 0;
    for (int h = kv_head * group; h < (kv_head + 1) * group; h++) {
        const float *q = &o.q[((size_t)t * p.q_heads + h) * p.dim];
        double most = -1e300, sum = 0;
        for (int i = 0; i < n; i++) {
            double s = 0;
            for (int d = 0; d < p.dim; d++) s += q[d] * k[(size_t)i * p.dim + d];
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
            const double ref = acc[d] / sum, abs = mag[d] / sum;
            const double got = kn_f32_from_bf16(o.out[((size_t)t * p.q_heads + h) * p.dim + d]);
            const double bound = 1.02 * 0x1p-8 * (abs + 2 * fabs(ref)) + 1e-5 * abs;
            const double e = fabs(got - ref) / bound;
            worst = e > worst || e != e ? (e != e ? 1e30 : e) : worst;
            num += (got - ref) * (got - ref);
            den += ref * ref;
        }
    }
    *rel = sqrt(num / den);
    return worst;
}

/* Norm and rotation in fp64; the worst error of q, k (and v) in units of bf16 rounding. */
static double qkv_error(const problem &p, const outcome &o)
{
    const int heads = p.q_heads + 2 * p.kv_heads, half = p.dim / 2;
    double worst = 0;
    std::vector<double> x(p.dim), y(p.dim);
    for (size_t t = 0; t < o.seq.size(); t++) {
        if (o.seq[t] < 0) continue;
        for (int h = 0; h < heads; h++) {
            double sum = 0;
            for (int d = 0; d < p.dim; d++) {
                x[d] = o.qkv[(t * heads + h) * p.dim + d];
                sum += x[d] * x[d];
            }
            const bool is_q = h < p.q_heads, is_v = h >= p.q_heads + p.kv_heads;
            if (!is_v && p.norm)
                for (int d = 0; d < p.dim; d++)
                    x[d] *= norm_weight(!is_q, d) / sqrt(sum / p.dim + 1e-5);
            y = x;
            if (!is_v && p.rope)
                for (int d = 0; d < half; d++) {
                    const float angle = rope_angle(o.position[t], d, p.dim);
                    const double c = cosf(angle), s = sinf(angle);
                    y[d] = x[d] * c - x[d + half] * s;
                    y[d + half] = x[d + half] * c + x[d] * s;
                }
            for (int d = 0; d < p.dim; d++) {
                const int kv_head = (h - p.q_heads) % p.kv_heads;
                const float got =
                    is_q ? o.q[(t * p.q_heads + h) * p.dim + d]
                         : (is_v ? o.value : o.key)[(t * p.kv_heads + kv_head) * p.dim + d];
                const double partner = fabs(x[d]) + fabs(x[(d + half) % p.dim]);
                const double e =
                    fabs(got - y[d]) / (0x1p-8 * 1.001 * fabs(y[d]) + 1e-6 * partner + 1e-30);
                worst = e > worst || e != e ? (e != e ? 1e30 : e) : worst;
            }
        }
    }
    return worst;
}

static void check_reference(const char *name, const problem &p, const outcome &o)
{
    const int tokens = (int)o.seq.size();
    std::vector<double> error(tokens * p.kv_heads), rel(tokens * p.kv_heads);
    parallel(tokens * p.kv_heads, [&](int i) {
        if (o.seq[i / p.kv_heads] >= 0)
            error[i] = attention_error(p, o, i / p.kv_heads, i % p.kv_heads, &rel[i]);
    });
    const size_t at = std::max_element(error.begin(), error.end()) - error.begin();
    EXPECT(&g_tally, error[at] <= 1,
           "%s D %d heads %d/%d window %d: token %d position %d kv-head %d: %.3g of the bound",
           name, p.dim, p.q_heads, p.kv_heads, p.window, (int)at / p.kv_heads,
           o.position[at / p.kv_heads], (int)at % p.kv_heads, error[at]);
    const double widest = *std::max_element(rel.begin(), rel.end());
    EXPECT(&g_tally, widest <= 4e-3, "%s D %d heads %d/%d: relative error %.3g", name, p.dim,
           p.q_heads, p.kv_heads, widest);
    const double q = qkv_error(p, o);
    EXPECT(&g_tally, q <= 1, "%s D %d heads %d/%d: q, k or v off by %.3g of the bound", name, p.dim,
           p.q_heads, p.kv_heads, q);
    EXPECT(&g_tally, o.pad_clean, "%s D %d heads %d/%d: padding", name, p.dim, p.q_heads,
           p.kv_heads);
    static double worst, worst_rel;
    worst = std::max(worst, error[at]);
    worst_rel = std::max(worst_rel, widest);
    printf("%-10s D %3d heads %2d/%-2d window %3d norm %d rope %d tokens %3d: error %.3f of the "
           "bound, relative "
           "%.2e (worst so far %.3f, %.2e); qkv %.3f\n",
           name, p.dim, p.q_heads, p.kv_heads, p.window, p.norm, p.rope, tokens, error[at], widest,
           worst, worst_rel, q);
}

static void check_same(const char *what, const problem &p, const outcome &a, const outcome &b)
{
    size_t different = 0;
    for (size_t i = 0; i < a.out.size(); i++) different += a.out[i] != b.out[i];
    EXPECT(&g_tally, a.out.size() == b.out.size() && different == 0,
           "%s D %d heads %d/%d window %d: %zu of %zu differ", what, p.dim, p.q_heads, p.kv_heads,
           p.window, different, a.out.size());
}

/* Sequence s of the problem alone gives the bits it gave among the others. */
static void check_alone(const problem &p, const outcome &all, size_t s)
{
    problem one = p;
    one.seqs = {p.seqs[s]};
    one.seeds = {p.seeds[s]};
    way w;
    w.shuffle = 99 + s;
    const outcome o = run(one, w);
    const size_t row = (size_t)p.q_heads * p.dim;
    size_t token = std::find(all.seq.begin(), all.seq.end(), (int)s) - all.seq.begin();
    for (int i = 0; i < p.seqs[s].token_count; i++)
        EXPECT(&g_tally, !memcmp(&all.out[(token + i) * row], &o.out[i * row], row * 2),
               "sequence %zu of %d tokens alone, D %d heads %d/%d window %d", s, p.seqs[s].kv_count,
               p.dim, p.q_heads, p.kv_heads, p.window);
}

static problem make(int dim, int q_heads, int kv_heads, int window, const std::vector<int> &lengths)
{
    problem p = {dim, q_heads, kv_heads, window, false, false, {}, {}};
    for (size_t i = 0; i < lengths.size(); i++) {
        p.seqs.push_back({0, 1, lengths[i], 0});
        p.seeds.push_back(1000 + 31 * (uint32_t)i);
    }
    return p;
}

static void check_shapes(bool quick)
{
    const int dims[] = {64, 96, 128, 256},
              heads[][2] = {{3, 3}, {4, 2}, {8, 2}, {14, 2}, {16, 2}, {16, 1}};
    const int windows[] = {0, 1, 24, 100};
    std::vector<int> lengths = {1, 2, 63, 64, 65, 127, 128, 129, 1000, 4097};
    if (quick) lengths = {1, 65, 129, 1200};
    int n = 0;
    for (int dim : dims)
        for (const auto &h : heads) {
            problem p = make(dim, h[0], h[1], 0, lengths);
            p.norm = n & 1;
            p.rope = n & 2;
            for (int pass = 0; pass < 2; pass++) {
                p.window = pass ? windows[1 + n % 3] : 0;
                if (quick && pass != n % 2) continue;
                way mixed;
                mixed.where = MIXED;
                mixed.ctas = 3;
                mixed.blocks = 2;
                const outcome o = run(p, mixed);
                check_reference("shapes", p, o);
                EXPECT(&g_tally, o.remote_blocks > 0, "no remote block was counted");
                check_same("run to run", p, o, run(p, mixed));
                check_same("all local", p, o, run(p, way()));
                mixed.ctas = 40;
                mixed.blocks = 6;
                mixed.shuffle = 5;
                mixed.graph = true;
                check_same("another window, pages elsewhere, replayed", p, o, run(p, mixed));
                check_alone(p, o, lengths.size() - 1);
                check_alone(p, o, n % lengths.size());
            }
            n++;
        }
}

/* A few small problems, for compute-sanitizer. */
static void check_small()
{
    for (int dim : {64, 128, 256})
        for (int kv_heads : {1, 4}) {
            problem p = make(dim, 16, kv_heads, 0, {1, 65, 129, 2000});
            p.norm = p.rope = true;
            way mixed;
            mixed.where = MIXED;
            mixed.blocks = 2;
            const outcome o = run(p, mixed);
            check_reference("small", p, o);
            p.window = 70;
            check_reference("small", p, run(p, way()));
        }
}

static void check_batches(bool quick)
{
    std::vector<int> lengths;
    for (int i = 0; i < (quick ? 40 : 255); i++)
        lengths.push_back(1 + random_bits(3, i, 0) % (quick ? 200 : 900));
    problem p = make(128, 8, 2, 0, lengths);
    p.rope = true;
    way host;
    host.where = HOST;
    host.ctas = 7;
    const outcome o = run(p, way());
    check_reference("batch", p, o);
    check_same("batch on the host", p, o, run(p, host));
    for (int item_pages : {-1, 1, 2, 8}) {
        way cut;
        cut.item_pages = item_pages;
        check_same("batch, cut otherwise", p, o, run(p, cut));
    }
    if (quick) return;
    for (int length : {40000, 140000}) {
        problem l = make(128, 8, 1, 0, {length, 5, 9000});
        const outcome x = run(l, way());
        check_reference("long", l, x);
        way mixed;
        mixed.where = MIXED;
        mixed.blocks = 4;
        mixed.graph = true;
        check_same("long, placed elsewhere", l, x, run(l, mixed));
        check_alone(l, x, 0);
    }
}

/* Work for several times as many CTAs as there are, so that groups are whole, or cut into parts, or
 * units by themselves; and for hardly as many, so that CTAs wait for each other's partials. */
static void check_plans(bool quick)
{
    for (int q_heads : {16, 48}) {
        std::vector<int> lengths;
        for (int i = 0; i < (quick ? 12 : 40); i++)
            lengths.push_back(1500 + random_bits(5, i, 0) % 4500);
        problem p = make(128, q_heads, 4, 0, lengths);
        const outcome o = run(p, way());
        check_reference("plans", p, o);
        way replayed;
        replayed.shuffle = 11;
        replayed.graph = true;
        check_same("plans, replayed", p, o, run(p, replayed));
        for (int item_pages : {-1, 4, 16, 32}) {
            way cut;
            cut.item_pages = item_pages;
            cut.shuffle = 12 + item_pages;
            check_same("plans, cut otherwise", p, o, run(p, cut));
        }
        way mixed;
        mixed.where = MIXED;
        mixed.blocks = 3;
        check_same("plans, placed elsewhere", p, o, run(p, mixed));
        for (size_t s : {(size_t)0, lengths.size() / 2, lengths.size() - 1}) check_alone(p, o, s);
        problem few = p;
        few.seqs.resize(3);
        few.seeds.resize(3);
        const outcome f = run(few, replayed);
        EXPECT(&g_tally, !memcmp(f.out.data(), o.out.data(), f.out.size() * 2),
               "three sequences of %zu, %d heads", lengths.size(), q_heads);
    }
}

/* A chunk of a prompt gives each token the bits it gets when it comes alone. */
static void check_chunks(bool quick)
{
    for (int window : {0, 100}) {
        problem p = make(128, 8, 2, window, {300, 70, 2100});
        p.seqs[0].token_count = quick ? 5 : 50;
        p.seqs[1].token_count = quick ? 4 : 70;
        p.seqs[2].token_count = 3;
        const outcome o = run(p, way());
        check_reference("chunk", p, o);
        const size_t row = (size_t)p.q_heads * p.dim;
        for (size_t s = 0; s < p.seqs.size(); s++) {
            /* The same tokens as two chunks: the second finds the first in the cache only if the
             * cache holds what the first appended, so compare the first chunk's tokens. */
            problem one = p;
            one.seqs = {p.seqs[s]};
            one.seeds = {p.seeds[s]};
            const int cut = p.seqs[s].token_count / 2;
            one.seqs[0].token_count -= cut;
            one.seqs[0].kv_count -= cut;
            const outcome first = run(one, way());
            const size_t token = std::find(o.seq.begin(), o.seq.end(), (int)s) - o.seq.begin();
            for (int i = 0; i < one.seqs[0].token_count; i++)
                EXPECT(&g_tally, !memcmp(&o.out[(token + i) * row], &first.out[i * row], row * 2),
                       "chunk: sequence %zu token %d window %d", s, i, window);
        }
    }
}

static void check_errors()
{
    char err[ERR_CAP];
    size_t bytes;
    kn_cu_attention_shape s = {8, 2, 160, 1, 1};
    EXPECT(&g_tally, kn_cu_attention_bytes(&s, &bytes, err) == ST_UNSUPPORTED,
           "head dimension 160");
    s = {34, 2, 128, 1, 1};
    EXPECT(&g_tally, kn_cu_attention_bytes(&s, &bytes, err) == ST_UNSUPPORTED, "a group of 17");
    s = {7, 2, 128, 1, 1};
    EXPECT(&g_tally, kn_cu_attention_bytes(&s, &bytes, err) == ST_INVALID, "7 heads over 2");
    /* Nobody is sent to bfloat16 for what that does not have either. */
    const kn_kv narrow = {KN_E4M3, 1, 1, 64, {}}, odd = {KN_E4M3, 1, 1, 160, {}};
    EXPECT(&g_tally,
           kn_cu_kv_check(&narrow, err) == ST_UNSUPPORTED && strstr(err, "kv-cache-dtype bfloat16"),
           "fp8, head dimension 64: %s", err);
    EXPECT(&g_tally, kn_cu_kv_check(&odd, err) == ST_UNSUPPORTED && !strstr(err, "bfloat16"),
           "fp8, head dimension 160: %s", err);
}

#include "gpu_attention_bench.cuh"

int main(int argc, char **argv)
{
    const bool quick = argc > 1 && !strcmp(argv[1], "--quick");
    CUDA(cudaSetDevice(0));
    if (argc > 1 && !strcmp(argv[1], "--bench")) return bench(KN_BF16);
    CUDA(cudaMalloc(&g_pools.base[0], LOCAL_BYTES));
    CUDA(cudaHostAlloc(&g_pools.base[1], HOST_BYTES, cudaHostAllocMapped));
    CUDA(cudaMalloc(&g_windows, sizeof(kn_cu_window) * KN_TIER_MAX));
    CUDA(cudaMalloc(&g_traffic, sizeof(kn_cu_traffic) * KN_TIER_MAX));
    check_errors();
    if (argc > 1 && !strcmp(argv[1], "--small")) {
        check_small();
        printf("%d passed, %d failed\n", g_tally.passed, g_tally.failed);
        return g_tally.failed != 0;
    }
    check_shapes(quick);
    check_chunks(quick);
    check_batches(quick);
    check_plans(quick);
    printf("%d passed, %d failed\n", g_tally.passed, g_tally.failed);
    return g_tally.failed != 0;
}
