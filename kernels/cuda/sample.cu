/*
 * sample.cu - kn_sample: a token from a row of logits, by a cluster of eight CTAs.
 *
 * Floor.  A row of V = 128,256 logits is 513 KB.  The product before has just written it, so it
 * lies in L2 (60 MB) up to some 100 rows: eight SMs read it there in about 0.6 us, and the rows of
 * a batch of 256 (131 MB) need 28 us of HBM.  Greedy rows are one pass over the logits.  Rows with
 * top_k or top_p are four to seven, and what they cost in large batches is arithmetic: some 30
 * instructions a logit and pass.  Measured on an H200, us a launch, of normally distributed logits:
 *
 *     rows                          1      8     32     64    128    256
 *     greedy                      4.1    5.5    9.1   13.8   29.7   54.3
 *     temperature alone          19.4   26.5   37.4   59.2    111    209
 *     top_k 40, top_p 0.95       47.8   61.9    106    165    288    537
 *     top_p 0.9                  72.2   96.9    161    253    449    857
 *
 * Design.  The row stays in memory and is read again by every pass: each reads it once, in 16-byte
 * loads, two in flight a thread; the first, which looks for the largest logit, eight, all that a
 * thread has of 128,256 (two cost 1.7 us more at 1 row, 3 at 32).  The cluster's CTAs exchange sums
 * through each other's shared memory.  A warp owns consecutive ids, so that the draw, which goes by
 * rising id, needs one sum a warp, and then one warp's walk.
 *
 * top_k and top_p look for the smallest key to keep, a key being (logit in an order-preserving
 * form, then inverted id), hence no two equal.  A histogram over 512 steps of the scaled logit,
 * which spreads what weighs anything evenly enough for shared-memory atomics, names the step where
 * the edge lies; what lies in that step, usually some dozens of keys, is listed and ranked by
 * comparing all pairs.  Where it holds more than the list does, as in flat rows, histograms over
 * the keys themselves narrow it first.
 *
 * Invariants
 *  1. Weights are computed by the same operations as in kernels/sample.c, each rounded by itself,
 *     and are multiples of 2^-34: their sums are exact up to V = 2^19, so the order of atomics does
 *     not matter and the token is the host's.
 *  2. A row depends on nothing but its logits and parameters: clusters do not meet.
 *  3. Nothing is read or written before griddepcontrol.wait but the launch's arguments.
 *  4. What a CTA publishes is not written again before a cluster barrier behind its last reader.
 *
 * Results go straight to pinned memory, 12 bytes a row; the tokens stay on the device as well,
 * where the next step's embed finds them.
 */
#include <cuda_runtime.h>
#include <float.h>
#include <math.h>

#include "config/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/trace.h"

#define CTAS 8 /* of a row's cluster */
#define THREADS 512
#define WARPS (THREADS / 32)
#define PARTS (CTAS * WARPS)
#define CHUNK 128   /* ids a warp takes by one load a lane */
#define LOADS 2     /* in flight a thread */
#define LOADS_MAX 8 /* the same while nothing but the largest logit is looked for */
#define BINS THREADS
#define LIST_MAX 1024
#define STEPS_PER_UNIT 20.f       /* of the scaled logit: weights are 0 beyond 24.3 units */
#define FLOOR (-25.f)             /* so does the scaled logit, with room for rounding */
#define NEAR (-8.f)               /* where top_p looks first */
#define ROWS_MAX KN_CU_TOKENS_MAX /* of one launch: 8 KB of arguments */
#define ALL 0xFFFFFFFFu

/* What a step of a selection found: where the edge lies. */
struct edge {
    uint32_t bin, count;  /* and how many keys lie there */
    uint32_t above_count; /* keys above it */
    double above_weight;
};

/* Keys under consideration, in bins by falling key. */
struct range {
    bool coarse; /* bins are steps of the scaled logit down to `near` */
    float near;
    uint64_t lo, hi; /* otherwise: bins of 2^shift keys from hi down to lo */
    int shift;
};

struct cta {
    /* Read by the whole cluster. */
    double bin_weight[BINS];
    uint32_t bin_count[BINS];
    uint64_t list[LIST_MAX]; /* keys of this CTA that lie at the edge */
    uint32_t list_count;
    uint64_t key_max[CTAS], key_min[CTAS]; /* of each CTA, left here by its peers */
    double sum, near_sum;
    uint32_t above;
    double part[WARPS];
    int32_t token;
    /* This CTA's alone. */
    uint64_t all[LIST_MAX]; /* the lists of all CTAs */
    float all_weight[LIST_MAX];
    double scan_weight[WARPS];
    uint32_t scan_count[WARPS];
    uint64_t scan_key[2][WARPS];
    struct edge edge;
    uint64_t chosen;
    struct kn_sample_row params;
};

/* A row, and the part of it that this warp owns. */
struct row {
    const float *logits;
    int32_t vocab, begin, end;
    float max, scale, min_p; /* scale: of logits, 1 / temperature */
    float floor;             /* what lies farther below max weighs nothing or was dropped */
    uint64_t key_min;        /* smaller keys were dropped */
};

/* --- cluster and CTA -------------------------------------------------------------------------- */

static __device__ void cluster_sync()
{
    __cluster_barrier_arrive();
    __cluster_barrier_wait();
}

static __device__ struct cta *peer(struct cta *s, unsigned rank)
{
    return (struct cta *)__cluster_map_shared_rank(s, rank);
}

static __device__ double warp_sum(double v)
{
#pragma unroll
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(ALL, v, d);
    return v;
}

/* The sum over the CTA of one value a thread, in every thread. */
static __device__ double cta_sum(struct cta *s, double v)
{
    v = warp_sum(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) s->scan_weight[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++) v += s->scan_weight[i];
    return v;
}

/* The largest and smallest key of the cluster, in every thread. */
static __device__ void cluster_bounds(struct cta *s, uint64_t *max, uint64_t *min)
{
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
        const uint64_t a = __shfl_xor_sync(ALL, *max, d), b = __shfl_xor_sync(ALL, *min, d);
        *max = a > *max ? a : *max;
        *min = b < *min ? b : *min;
    }
    if (threadIdx.x % 32 == 0) {
        s->scan_key[0][threadIdx.x / 32] = *max;
        s->scan_key[1][threadIdx.x / 32] = *min;
    }
    __syncthreads();
    if (threadIdx.x < CTAS) {
#pragma unroll
        for (int i = 0; i < WARPS; i++) {
            *max = s->scan_key[0][i] > *max ? s->scan_key[0][i] : *max;
            *min = s->scan_key[1][i] < *min ? s->scan_key[1][i] : *min;
        }
        struct cta *to = peer(s, threadIdx.x);
        to->key_max[__clusterRelativeBlockRank()] = *max;
        to->key_min[__clusterRelativeBlockRank()] = *min;
    }
    cluster_sync();
#pragma unroll
    for (int i = 0; i < CTAS; i++) {
        *max = s->key_max[i] > *max ? s->key_max[i] : *max;
        *min = s->key_min[i] < *min ? s->key_min[i] : *min;
    }
}

/* --- numbers, as in kernels/sample.c ---------------------------------------------------------- */

static __device__ float clean(float x)
{
    const float y = x >= -FLT_MAX ? x : -INFINITY; /* NaN compares false */
    return y > FLT_MAX ? FLT_MAX : y;
}

static __device__ float exp_nonpositive(float x)
{
    int32_t bits = __float_as_int(x) & 0x7FFFFFFF;
    bits = bits < 0x42B00000 ? bits : 0x42B00000;
    const float y = -__int_as_float(bits), rounder = 0x1.8p23f;
    const float n = __fsub_rn(__fadd_rn(__fmul_rn(y, 0x1.715476p0f), rounder), rounder);
    const float r =
        __fadd_rn(__fsub_rn(y, __fmul_rn(n, 0x1.63p-1f)), __fmul_rn(n, 0x1.bd0106p-13f));
    float e = 1.0f / 5040;
    e = __fadd_rn(__fmul_rn(e, r), 1.0f / 720);
    e = __fadd_rn(__fmul_rn(e, r), 1.0f / 120);
    e = __fadd_rn(__fmul_rn(e, r), 1.0f / 24);
    e = __fadd_rn(__fmul_rn(e, r), 1.0f / 6);
    e = __fadd_rn(__fmul_rn(e, r), 0.5f);
    e = __fadd_rn(__fmul_rn(e, r), 1.0f);
    e = __fadd_rn(__fmul_rn(e, r), 1.0f);
    return __fmul_rn(e, __int_as_float(((int32_t)n + 127) * (1 << 23)));
}

static __device__ float scaled(const struct row &r, float x)
{
    return __fmul_rn(__fsub_rn(x, r.max), r.scale);
}

static __device__ float weight_of(float y)
{
    const float w = exp_nonpositive(y);
    return w < 0x1p-11f ? __fsub_rn(__fadd_rn(w, 0x1p-11f), 0x1p-11f) : w;
}

static __device__ uint64_t key_of(float x, int32_t id)
{
    uint32_t bits = __float_as_uint(__fadd_rn(x, 0.f)); /* -0 and 0 are equals */
    bits ^= bits >> 31 ? 0xFFFFFFFFu : 0x80000000u;
    return (uint64_t)bits << 32 | (uint32_t)~id;
}

static __device__ float key_logit(uint64_t key)
{
    const uint32_t bits = (uint32_t)(key >> 32);
    return __uint_as_float(bits >> 31 ? bits ^ 0x80000000u : ~bits);
}

/* --- passes ----------------------------------------------------------------------------------- */

/* Ids i..i+3 and, CHUNK apart, N - 1 times as many; -inf where they are not the warp's. */
template <int N> static __device__ void load(const struct row &r, int32_t i, float (&x)[N][4])
{
#pragma unroll
    for (int g = 0; g < N; g++, i += CHUNK) {
        float4 v = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
        if (r.vocab % 4 == 0 && i < r.end) {
            v = __ldcg((const float4 *)(r.logits + i));
        } else {
            if (i < r.end) v.x = __ldcg(r.logits + i);
            if (i + 1 < r.end) v.y = __ldcg(r.logits + i + 1);
            if (i + 2 < r.end) v.z = __ldcg(r.logits + i + 2);
            if (i + 3 < r.end) v.w = __ldcg(r.logits + i + 3);
        }
        x[g][0] = v.x, x[g][1] = v.y, x[g][2] = v.z, x[g][3] = v.w;
    }
#pragma unroll
    for (int g = 0; g < N; g++)
#pragma unroll
        for (int j = 0; j < 4; j++) x[g][j] = clean(x[g][j]);
}

/* The largest key among the thread's elements: it meets their ids in rising order, so of equals the
 * first stays. */
static __device__ uint64_t largest_key(const struct row &r)
{
    float max = -INFINITY;
    int32_t id = r.begin;
#pragma unroll 1
    for (int32_t at = r.begin + (int32_t)(threadIdx.x % 32) * 4; at < r.end;
         at += CHUNK * LOADS_MAX) {
        float x[LOADS_MAX][4];
        load(r, at, x);
#pragma unroll
        for (int nth = 0; nth < LOADS_MAX * 4; nth++)
            if (x[nth / 4][nth % 4] > max) {
                max = x[nth / 4][nth % 4];
                id = at + nth / 4 * CHUNK + nth % 4;
            }
    }
    return key_of(max, id);
}

/* Statements over the warp's elements: value `x`, number `id`. */
#define FOR_EACH(r, ...)                                                                           \
    for (int32_t at = (r).begin + (int32_t)(threadIdx.x % 32) * 4; at < (r).end;                   \
         at += CHUNK * LOADS) {                                                                    \
        float loaded[LOADS][4];                                                                    \
        load(r, at, loaded);                                                                       \
        _Pragma("unroll") for (int nth = 0; nth < LOADS * 4; nth++)                                \
        {                                                                                          \
            const float x = loaded[nth / 4][nth % 4];                                              \
            const int32_t id = at + nth / 4 * CHUNK + nth % 4;                                     \
            (void)id;                                                                              \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    }

/* The weight of an element after the filters so far; y is its scaled logit. */
static __device__ float kept_weight(const struct row &r, float x, int32_t id, float y)
{
    if (__fsub_rn(x, r.max) < r.floor) return 0.f;
    const float w = weight_of(y);
    return w >= r.min_p && key_of(x, id) >= r.key_min ? w : 0.f;
}

/* The sum of the kept weights, and that of those not below NEAR. */
static __device__ void total_weight(struct cta *s, const struct row &r, double *sum, double *near)
{
    *sum = *near = 0;
    FOR_EACH(r, {
        const float y = scaled(r, x);
        const double w = kept_weight(r, x, id, y);
        *sum += w;
        if (y >= NEAR) *near += w;
    })
    const double cta_all = cta_sum(s, *sum), cta_near = cta_sum(s, *near);
    if (threadIdx.x == 0) {
        s->sum = cta_all;
        s->near_sum = cta_near;
    }
    cluster_sync();
    *sum = *near = 0;
#pragma unroll
    for (int i = 0; i < CTAS; i++) {
        *sum += peer(s, i)->sum;
        *near += peer(s, i)->near_sum;
    }
}

/* The bin of an element that is kept, -1 out of range. */
static __device__ int bin_of(const struct range &g, float y, uint64_t key)
{
    if (g.coarse) {
        const float step = __fmul_rn(-y, STEPS_PER_UNIT);
        return !(y >= g.near) ? -1 : step < BINS - 1 ? (int)step : BINS - 1;
    }
    return key < g.lo || key > g.hi ? -1 : (int)((g.hi - key) >> g.shift);
}

/* Inclusive sums over the bins, a thread each. */
static __device__ void scan_bins(struct cta *s, uint32_t *count, double *weight)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const uint32_t c = __shfl_up_sync(ALL, *count, d);
        const double w = __shfl_up_sync(ALL, *weight, d);
        if (lane >= d) *count += c, *weight += w;
    }
    if (lane == 31) s->scan_count[warp] = *count, s->scan_weight[warp] = *weight;
    __syncthreads();
    for (int i = 0; i < warp; i++) *count += s->scan_count[i], *weight += s->scan_weight[i];
}

/* Finds the bin in which, counted from the largest key, *count keys or `weight` are reached; *count
 * is lowered to the keys there are.  above is what lies above the range. */
static __device__ struct edge find_edge(struct cta *s, const struct row &r, const struct range &g,
                                        uint32_t *count, double weight, const struct edge &above)
{
    const bool weighs = weight < INFINITY;
    __syncthreads();
    s->bin_count[threadIdx.x] = 0;
    s->bin_weight[threadIdx.x] = 0;
    __syncthreads();
    FOR_EACH(r, {
        const float y = scaled(r, x);
        const int bin = bin_of(g, y, key_of(x, id));
        const float w = bin >= 0 ? kept_weight(r, x, id, y) : 0.f;
        if (w > 0) {
            atomicAdd(&s->bin_count[bin], 1u);
            if (weighs) atomicAdd(&s->bin_weight[bin], (double)w);
        }
    })
    cluster_sync();
    uint32_t own_count = 0;
    double own_weight = 0;
#pragma unroll
    for (int i = 0; i < CTAS; i++) {
        const struct cta *p = peer(s, i);
        own_count += p->bin_count[threadIdx.x];
        own_weight += p->bin_weight[threadIdx.x];
    }
    uint32_t c = own_count;
    double w = own_weight;
    scan_bins(s, &c, &w);
    uint32_t total = above.above_count;
#pragma unroll
    for (int i = 0; i < WARPS; i++) total += s->scan_count[i];
    *count = *count < total ? *count : total;
    c += above.above_count;
    w += above.above_weight;
    const bool reached = c >= *count || (weighs && w >= weight);
    const bool before = c - own_count >= *count || (weighs && w - own_weight >= weight);
    if (reached && !before)
        s->edge = (struct edge){threadIdx.x, own_count, c - own_count, w - own_weight};
    if (threadIdx.x == 0) s->list_count = 0; /* its readers are behind the barrier above */
    __syncthreads();
    return s->edge;
}

/* From the coarse bins to keys, or from bins of keys to one of them. */
static __device__ void narrow(struct cta *s, const struct row &r, struct range *g, uint32_t bin)
{
    if (g->coarse) {
        uint64_t max = 0, min = ~(uint64_t)0;
        FOR_EACH(r, {
            const float y = scaled(r, x);
            const uint64_t key = key_of(x, id);
            if (bin_of(*g, y, key) == (int)bin && kept_weight(r, x, id, y) > 0) {
                max = key > max ? key : max;
                min = key < min ? key : min;
            }
        })
        cluster_bounds(s, &max, &min);
        g->coarse = false;
        g->hi = max;
        g->lo = min;
    } else {
        const uint64_t rest = ((uint64_t)1 << g->shift) - 1;
        g->hi -= (uint64_t)bin << g->shift;
        g->lo = g->hi - g->lo > rest ? g->hi - rest : g->lo;
        cluster_sync(); /* the bins were read */
    }
    const int bits = 64 - __clzll((long long)(g->hi - g->lo));
    g->shift = bits > 9 ? bits - 9 : 0; /* BINS is 2^9 */
}

/* The keys of a bin, at most LIST_MAX, of the whole cluster, in s->all with their weights. */
static __device__ void list_bin(struct cta *s, const struct row &r, const struct range &g,
                                uint32_t bin)
{
    FOR_EACH(r, {
        const float y = scaled(r, x);
        const uint64_t key = key_of(x, id);
        if (bin_of(g, y, key) == (int)bin && kept_weight(r, x, id, y) > 0)
            s->list[atomicAdd(&s->list_count, 1u)] = key;
    })
    cluster_sync();
    uint32_t begin = 0;
    for (int i = 0; i < CTAS; i++) {
        const struct cta *p = peer(s, i);
        const uint32_t count = p->list_count;
        for (uint32_t k = threadIdx.x; k < count; k += THREADS) {
            const uint64_t key = p->list[k];
            s->all[begin + k] = key;
            s->all_weight[begin + k] = weight_of(scaled(r, key_logit(key)));
        }
        begin += count;
    }
    __syncthreads();
}

/* Of the kept keys: the smallest of the shortest run, from the largest down, that holds `count`
 * keys or whose weights come to at least `weight`, whichever is first; of all where neither is
 * reached.
 * near: all of the run is known to be not below that scaled logit. */
static __device__ uint64_t select_key(struct cta *s, const struct row &r, uint32_t count,
                                      double weight, float near)
{
    struct range g = {true, near, 0, 0, 0};
    struct edge e = find_edge(s, r, g, &count, weight, (struct edge){0, 0, 0, 0});
    while (e.count > LIST_MAX) {
        narrow(s, r, &g, e.bin);
        e = find_edge(s, r, g, &count, weight, e);
    }
    list_bin(s, r, g, e.bin);
    for (uint32_t i = threadIdx.x; i < e.count; i += THREADS) {
        uint32_t c = e.above_count;
        double w = e.above_weight;
        for (uint32_t k = 0; k < e.count; k++)
            if (s->all[k] > s->all[i]) c++, w += s->all_weight[k];
        const bool before = c >= count || w >= weight;
        if (!before && (c + 1 >= count || w + s->all_weight[i] >= weight)) s->chosen = s->all[i];
    }
    __syncthreads();
    return s->chosen;
}

/* --- the choice ------------------------------------------------------------------------------- */

/* The warp's part holds the target, of which `sum` lies before it: the first id at which the sum
 * exceeds the target, the last that weighs anything where none does. */
static __device__ int32_t walk(const struct row &r, double sum, double target)
{
    const int lane = threadIdx.x % 32;
    int32_t last = -1;
    for (int32_t base = r.begin; base < r.end; base += CHUNK) {
        const int32_t i = base + lane * 4;
        double weight[4], own = 0;
        int32_t own_last = -1;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float x = i + j < r.end ? clean(__ldcg(r.logits + i + j)) : -INFINITY;
            weight[j] = kept_weight(r, x, i + j, scaled(r, x));
            own += weight[j];
            own_last = weight[j] > 0 ? i + j : own_last;
        }
        double end = own;
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            const double before = __shfl_up_sync(ALL, end, d);
            if (lane >= d) end += before;
        }
        const unsigned hit = __ballot_sync(ALL, sum + end > target);
        if (hit) {
            const int first = __ffs((int)hit) - 1;
            double at = sum + end - own;
            int32_t token = -1;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                at += weight[j];
                if (token < 0 && at > target) token = i + j;
            }
            return __shfl_sync(ALL, token, first);
        }
        sum += __shfl_sync(ALL, end, 31);
        const int32_t chunk_last = __reduce_max_sync(ALL, own_last);
        last = chunk_last >= 0 ? chunk_last : last;
    }
    return last;
}

/* First id at which the cumulative weight exceeds u of the whole. */
static __device__ int32_t draw(struct cta *s, const struct row &r, double u)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    double sum = 0;
    FOR_EACH(r, { sum += (double)kept_weight(r, x, id, scaled(r, x)); })
    sum = warp_sum(sum);
    if (lane == 0) s->part[warp] = sum;
    cluster_sync();
    /* Each warp finds out whether the target is in its part: a lane has four of the 128 parts. */
    double part[PARTS / 32], own = 0;
#pragma unroll
    for (int j = 0; j < PARTS / 32; j++) {
        const int i = lane * (PARTS / 32) + j;
        part[j] = peer(s, i / WARPS)->part[i % WARPS];
        own += part[j];
    }
    double end = own;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const double before = __shfl_up_sync(ALL, end, d);
        if (lane >= d) end += before;
    }
    const double target = u * __shfl_sync(ALL, end, 31);
    int32_t first = PARTS, last = -1; /* the part with the target; the last that is not 0 */
    double before = 0, at = end - own, last_before = 0;
#pragma unroll
    for (int j = 0; j < PARTS / 32; j++) {
        const int32_t i = lane * (PARTS / 32) + j;
        if (part[j] > 0) last = i, last_before = at;
        if (first == PARTS && at + part[j] > target) first = i, before = at;
        at += part[j];
    }
    int32_t owner = __reduce_min_sync(ALL, first);
    if (owner == PARTS) { /* rounding left the target just out of reach */
        owner = __reduce_max_sync(ALL, last);
        before = last_before;
    }
    before = __shfl_sync(ALL, before, owner / (PARTS / 32));
    if (owner == (int32_t)__clusterRelativeBlockRank() * WARPS + warp) {
        const int32_t token = walk(r, before, target);
        if (lane < CTAS) peer(s, lane)->token = token;
    }
    cluster_sync();
    return s->token;
}

/* Log-probability and rank of the token under the raw logits; thread 0 of CTA 0 gets them. */
static __device__ void score(struct cta *s, const struct row &r, struct kn_sampled *out)
{
    const float own = clean(__ldcg(r.logits + out->token));
    double sum = 0, above = 0;
    FOR_EACH(r, {
        sum += (double)exp_nonpositive(__fsub_rn(x, r.max));
        above += x > own;
    })
    sum = cta_sum(s, sum);
    above = cta_sum(s, above);
    if (threadIdx.x == 0) {
        s->sum = sum;
        s->above = (uint32_t)above;
    }
    cluster_sync();
    sum = 0;
    out->rank = 1;
    for (int i = 0; i < CTAS; i++) {
        sum += peer(s, i)->sum;
        out->rank += (int32_t)peer(s, i)->above;
    }
    out->logprob = (float)((double)own - ((double)r.max + log(sum)));
}

/* Drops smaller keys. */
static __device__ void keep_from(struct row *r, uint64_t key)
{
    r->key_min = key;
    r->floor = fmaxf(r->floor, __fsub_rn(key_logit(key), r->max));
}

/* A token for a row that is not greedy. */
static __device__ int32_t choose(struct cta *s, struct row *r)
{
    const struct kn_sample_row &p = s->params;
    if (p.top_k > 0 && p.top_k < r->vocab)
        keep_from(r, select_key(s, *r, (uint32_t)p.top_k, INFINITY, FLOOR));
    if (p.top_p < 1) {
        double sum, near;
        total_weight(s, *r, &sum, &near);
        const double target = (double)p.top_p * sum;
        keep_from(r, select_key(s, *r, 0x7FFFFFFFu, target, near >= target ? NEAR : FLOOR));
    }
    return draw(s, *r, p.u);
}

/* The rows of a launch: kernel arguments, so that no copy stands between this kernel and the one
 * before.  Those of a recorded step are device memory instead, for arguments are recorded too. */
struct rows {
    struct kn_sample_row row[ROWS_MAX];
};

static __global__ void __cluster_dims__(CTAS) __launch_bounds__(THREADS, 2)
    sm90_sample(const float *logits, int32_t vocab, const __grid_constant__ struct rows rows,
                struct kn_sampled *out, const struct kn_cu_sample_step *step, int32_t *chosen)
{
    CU_TRACE(SAMPLE, 0);
    __shared__ struct cta s;
    const unsigned rank = __clusterRelativeBlockRank(), index = blockIdx.x / CTAS;
    ptx_griddep_launch();
    if (threadIdx.x < sizeof(struct kn_sample_row) / 4) {
        const struct kn_sample_row *row = step ? &step->row[index] : &rows.row[index];
        ((uint32_t *)&s.params)[threadIdx.x] = ((const uint32_t *)row)[threadIdx.x];
    }
    cluster_sync(); /* all CTAs have begun, and their memory may be written */
    ptx_griddep_wait();
    CU_TRACE_WAITED();
    if (step) { /* the whole cluster leaves where there is no row for it */
        if ((int32_t)index >= step->row_count) return;
        out = step->out;
    }
    const int32_t span = ((vocab + PARTS - 1) / PARTS + CHUNK - 1) / CHUNK * CHUNK;
    struct row r;
    r.logits = logits + (size_t)s.params.row * (size_t)vocab;
    r.vocab = vocab;
    r.begin = ((int32_t)rank * WARPS + (int32_t)threadIdx.x / 32) * span;
    r.end = r.begin < vocab - span ? r.begin + span : vocab;
    r.scale = fminf(__fdiv_rn(1.f, s.params.temperature), FLT_MAX);
    r.floor = __fdiv_rn(FLOOR, r.scale);
    r.min_p = s.params.min_p;
    r.key_min = 0;

    uint64_t max = largest_key(r), min = 0;
    cluster_bounds(&s, &max, &min);
    r.max = key_logit(max);
    struct kn_sampled result = {(int32_t) ~(uint32_t)max, 0, NAN};
    if (r.max == -INFINITY) result.token = -1;
    else if (s.params.temperature > 0) result.token = choose(&s, &r);
    if (s.params.score && result.token >= 0) score(&s, r, &result);
    if (rank == 0 && threadIdx.x == 0) {
        out[index] = result;
        chosen[index] = result.token;
    }
    /* Nobody reads this CTA's memory any more; a greedy row's peers have written all they will. */
    if (s.params.temperature > 0 || s.params.score) cluster_sync();
}

static enum status launch(const float *logits, int32_t vocab, int32_t row_count,
                          const struct rows *rows, struct kn_sampled *out,
                          const struct kn_cu_sample_step *step, int32_t *chosen, void *stream,
                          char *err)
{
    CHECK(vocab <= KN_CU_SAMPLE_VOCAB_MAX && row_count <= ROWS_MAX);
    const cu_launch l(row_count * CTAS, THREADS, 0, stream);
    const cudaError_t e =
        cudaLaunchKernelEx(&l.config, sm90_sample, logits, vocab, *rows, out, step, chosen);
    if (e == cudaSuccess) return ST_OK;
    return err_set(err, ST_DEVICE, "sample could not be launched: %s (%s)", cudaGetErrorName(e),
                   cudaGetErrorString(e));
}

extern "C" enum status kn_cu_sample_launch(const float *logits, int32_t vocab, int32_t row_count,
                                           const struct kn_sample_row *rows, struct kn_sampled *out,
                                           int32_t *chosen, void *stream, char *err)
{
    struct rows part;
    enum status st = ST_OK;
    for (int32_t i = 0; i < row_count && !st; i += ROWS_MAX) {
        const int32_t count = row_count - i < ROWS_MAX ? row_count - i : ROWS_MAX;
        for (int32_t k = 0; k < count; k++) part.row[k] = rows[i + k];
        st = launch(logits, vocab, count, &part, out + i, NULL, chosen + i, stream, err);
    }
    return st;
}

extern "C" enum status kn_cu_sample_step_launch(const float *logits, int32_t vocab,
                                                int32_t row_count,
                                                const struct kn_cu_sample_step *step,
                                                int32_t *chosen, void *stream, char *err)
{
    const struct rows none = {};
    return launch(logits, vocab, row_count, &none, NULL, step, chosen, stream, err);
}
