/*
 * sample.c - see sample.h.
 *
 * A token is chosen in the steps that kernels.h lists at kn_sample.
 *
 * Exactness.  The token is a function of (logits, parameters, u) bit for bit, and the same on every
 * backend.  exp is exp_nonpositive below rather than the C library's, which differs between
 * processors.  Weights are rounded to multiples of 2^-34: a sum of them in double is exact as long
 * as it stays below 2^19, which 524,288 tokens cannot exceed, so that sums come out the same in
 * whatever order and parts they are taken.  A token whose weight rounds to 0 is more than 24
 * temperatures below the largest logit.
 *
 * Cost.  Every step is a few passes over the row, most of them vectorised; nothing is sorted. top_k
 * and top_p first find a logit that surely is not above the edge: the k-th largest of the blocks'
 * maxima, or the largest logit less 8 temperatures, should the weights above that suffice.  What
 * lies above it gets a 64-bit key (logit in an order-preserving form, then inverted id, hence no
 * two equal), and a radix selection finds the smallest key to keep, in at most 6 passes over ever
 * fewer candidates, whatever the logits are.
 */
#include "kernels/sample.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"

/* Rows are padded with -inf to whole blocks: loops over a block have a constant length, which gcc
 * -O2 vectorises. */
#define BLOCK 64
#define DIGIT_BITS 11
#define DIGIT_COUNT (1 << DIGIT_BITS)

struct kn_sampler {
    int32_t vocab;
    int32_t block_count;
    float *logits;  /* owned, [block_count * BLOCK]: the row, cleaned, then adjusted */
    float *weights; /* owned, the same: unnormalised probabilities; 0 for what a filter dropped */
    double *sums;   /* owned, [block_count] of the weights */
    uint64_t *keys; /* owned, [vocab]: candidates of a selection */
    int32_t digit_count[DIGIT_COUNT];
    double digit_weight[DIGIT_COUNT];
};

enum status kn_sampler_open(int32_t vocab, struct kn_sampler **out)
{
    CHECK(vocab >= 1 && vocab <= INT32_MAX - BLOCK);
    *out = NULL;
    struct kn_sampler *s = calloc(1, sizeof *s);
    if (!s) return ST_NOMEM;
    size_t v = (size_t)vocab, blocks = div_up(v, BLOCK);
    s->vocab = vocab;
    s->block_count = (int32_t)blocks;
    s->logits = malloc(blocks * BLOCK * sizeof *s->logits);
    s->weights = malloc(blocks * BLOCK * sizeof *s->weights);
    s->sums = malloc(blocks * sizeof *s->sums);
    s->keys = malloc(v * sizeof *s->keys);
    if (!s->logits || !s->weights || !s->sums || !s->keys) {
        kn_sampler_close(s);
        return ST_NOMEM;
    }
    for (size_t i = v; i < blocks * BLOCK; i++) s->logits[i] = -INFINITY;
    *out = s;
    return ST_OK;
}

void kn_sampler_close(struct kn_sampler *s)
{
    if (!s) return;
    free(s->keys);
    free(s->sums);
    free(s->weights);
    free(s->logits);
    free(s);
}

float *kn_sampler_logits(struct kn_sampler *s)
{
    return s->logits;
}

/* --- numbers ---------------------------------------------------------------------------------- */

/* exp(x) for x <= 0 within a few units of the last place, 0 from about -87.7 down; the same on
 * every machine. x = n ln 2 + r with |r| <= ln 2 / 2, Taylor polynomial of degree 7 for exp(r), n
 * into the exponent (-127: zero). */
static inline float exp_nonpositive(float x)
{
    const float rounder = 0x1.8p23f; /* adding it leaves no bits below the unit */
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits &= 0x7FFFFFFF; /* magnitude, at most 88: compared as integers, which gcc vectorises */
    bits = bits < 0x42B00000 ? bits : 0x42B00000;
    float y;
    memcpy(&y, &bits, sizeof y);
    y = -y;
    float n = (y * 0x1.715476p0f + rounder) - rounder;
    float r = (y - n * 0x1.63p-1f) + n * 0x1.bd0106p-13f; /* ln 2 = 0x1.63p-1 - 0x1.bd0106p-13 */
    float e = 1.0f / 5040;
    e = e * r + 1.0f / 720;
    e = e * r + 1.0f / 120;
    e = e * r + 1.0f / 24;
    e = e * r + 1.0f / 6;
    e = e * r + 0.5f;
    e = e * r + 1.0f;
    e = e * r + 1.0f;
    bits = ((int32_t)n + 127) * (1 << 23);
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return e * scale;
}

/* --- passes over the row ---------------------------------------------------------------------- */

/* Loops over one block are functions of their own: gcc heeds `restrict` of parameters alone. */

static inline float clean(float x)
{
    float y = x >= -FLT_MAX ? x : -INFINITY; /* NaN compares false */
    return y > FLT_MAX ? FLT_MAX : y;
}

static void clean_block(float *restrict y, const float *restrict x)
{
    for (int j = 0; j < BLOCK; j++) y[j] = clean(x[j]);
}

void kn_sampler_load(struct kn_sampler *s, const float *logits)
{
    int32_t whole = s->vocab / BLOCK * BLOCK;
    for (int32_t i = 0; i < whole; i += BLOCK) clean_block(s->logits + i, logits + i);
    for (int32_t i = whole; i < s->vocab; i++) s->logits[i] = clean(logits[i]);
}

float kn_sampler_max(const struct kn_sampler *s)
{
    float lane[BLOCK];
    memcpy(lane, s->logits, sizeof lane);
    for (int32_t b = 1; b < s->block_count; b++) {
        const float *x = s->logits + (size_t)b * BLOCK;
        for (int j = 0; j < BLOCK; j++) lane[j] = x[j] > lane[j] ? x[j] : lane[j];
    }
    float max = lane[0];
    for (int j = 1; j < BLOCK; j++) max = lane[j] > max ? lane[j] : max;
    return max;
}

static void exp_block(float *restrict w, const float *restrict x, float max)
{
    for (int j = 0; j < BLOCK; j++) w[j] = exp_nonpositive(x[j] - max);
}

/* 0 <= w <= 1 as the nearest multiple of 2^-34: only below 2^-10 is there anything to round off. */
static inline float on_grid(float w)
{
    float low = (w + 0x1p-11f) - 0x1p-11f;
    return w < 0x1p-11f ? low : w;
}

static void weigh_block(float *restrict w, const float *restrict x, float max, float scale)
{
    for (int j = 0; j < BLOCK; j++) w[j] = on_grid(exp_nonpositive((x[j] - max) * scale));
}

/* weights = exp((logits - max) / temperature); those of the padding are 0. */
static void weigh_row(struct kn_sampler *s, float max, float temperature)
{
    float scale = 1 / temperature < FLT_MAX ? 1 / temperature : FLT_MAX;
    for (int32_t i = 0; i < s->block_count * BLOCK; i += BLOCK)
        weigh_block(s->weights + i, s->logits + i, max, scale);
}

/* Sums the weights block by block, each in 8 interleaved parts. */
static double sum_weights(struct kn_sampler *s)
{
    double total = 0;
    for (int32_t b = 0; b < s->block_count; b++) {
        const float *w = s->weights + (size_t)b * BLOCK;
        double part[8] = {0};
        for (int j = 0; j < BLOCK; j += 8)
            for (int k = 0; k < 8; k++) part[k] += (double)w[j + k];
        s->sums[b] = ((part[0] + part[1]) + (part[2] + part[3])) +
                     ((part[4] + part[5]) + (part[6] + part[7]));
        total += s->sums[b];
    }
    return total;
}

/* --- filters ---------------------------------------------------------------------------------- */

/* Orders as (logit, then lower id first); x is not NaN. */
static inline uint64_t key_of(float x, int32_t id)
{
    uint32_t bits;
    x += 0.0f; /* -0 and 0 are equals */
    memcpy(&bits, &x, sizeof bits);
    bits ^= bits >> 31 ? 0xFFFFFFFFu : 0x80000000u;
    return (uint64_t)bits << 32 | (uint32_t)~id;
}

static inline float key_logit(uint64_t key)
{
    uint32_t bits = (uint32_t)(key >> 32);
    bits ^= bits >> 31 ? 0x80000000u : 0xFFFFFFFFu;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline int32_t key_id(uint64_t key)
{
    return (int32_t) ~(uint32_t)key;
}

/* Of keys[0..n), n >= 1, which are shuffled: the smallest of the shortest run, from the largest key
 * down, that holds `count` keys or whose weights come to at least `weight`, whichever is first; of
 * all where neither is reached. */
static uint64_t select_key(struct kn_sampler *s, int32_t n, int32_t count, double weight)
{
    int32_t above_count = 0; /* keys known to be larger than those left */
    double above_weight = 0;
    for (int shift = 64 - DIGIT_BITS; n > 1; shift = shift > DIGIT_BITS ? shift - DIGIT_BITS : 0) {
        unsigned low = DIGIT_COUNT - 1; /* lowest digit there is */
        memset(s->digit_count, 0, sizeof s->digit_count);
        memset(s->digit_weight, 0, sizeof s->digit_weight);
        for (int32_t i = 0; i < n; i++) {
            unsigned d = s->keys[i] >> shift & (DIGIT_COUNT - 1);
            low = d < low ? d : low;
            s->digit_count[d]++;
            s->digit_weight[d] += (double)s->weights[key_id(s->keys[i])];
        }
        unsigned digit = DIGIT_COUNT - 1; /* where the run ends */
        for (; digit > low; digit--) {
            if (above_count + s->digit_count[digit] >= count) break;
            if (above_weight + s->digit_weight[digit] >= weight) break;
            above_count += s->digit_count[digit];
            above_weight += s->digit_weight[digit];
        }
        int32_t kept = 0;
        for (int32_t i = 0; i < n; i++)
            if ((s->keys[i] >> shift & (DIGIT_COUNT - 1)) == digit) s->keys[kept++] = s->keys[i];
        n = kept;
    }
    return s->keys[0];
}

static float block_max(const float *x)
{
    float lane[8];
    memcpy(lane, x, sizeof lane);
    for (int j = 8; j < BLOCK; j += 8)
        for (int k = 0; k < 8; k++) lane[k] = x[j + k] > lane[k] ? x[j + k] : lane[k];
    for (int k = 1; k < 8; k++) lane[0] = lane[k] > lane[0] ? lane[k] : lane[0];
    return lane[0];
}

/* Keys of the tokens still in whose logit is at least logit_min. */
static int32_t gather_keys(struct kn_sampler *s, float logit_min)
{
    int32_t n = 0;
    for (int32_t first = 0; first < s->vocab; first += BLOCK) {
        if (block_max(s->logits + first) < logit_min) continue;
        int32_t end = first + BLOCK < s->vocab ? first + BLOCK : s->vocab;
        for (int32_t i = first; i < end; i++) { /* n <= i: without a branch nobody could foresee */
            s->keys[n] = key_of(s->logits[i], i);
            n += (s->logits[i] >= logit_min) & (s->weights[i] > 0);
        }
    }
    return n;
}

/* A logit that the k-th largest is not below: k blocks have one as large. */
static float kth_logit_min(struct kn_sampler *s, int32_t k)
{
    if (k > s->block_count) return -INFINITY;
    for (int32_t b = 0; b < s->block_count; b++)
        s->keys[b] = key_of(block_max(s->logits + (size_t)b * BLOCK), b);
    return key_logit(select_key(s, s->block_count, k, INFINITY));
}

/* Keeps tokens above `logit`, and those at it up to id `last` of the block. */
static void drop_block(float *restrict w, const float *restrict x, float logit, int32_t last)
{
    for (int j = 0; j < BLOCK; j++)
        w[j] = (x[j] > logit) | ((x[j] == logit) & (j <= last)) ? w[j] : 0;
}

/* Drops the tokens whose keys are below the threshold. */
static void drop_below(struct kn_sampler *s, uint64_t threshold)
{
    int32_t id = key_id(threshold);
    for (int32_t i = 0; i < s->block_count * BLOCK; i += BLOCK)
        drop_block(s->weights + i, s->logits + i, s->logits[id], id - i);
}

static void apply_top_k(struct kn_sampler *s, int32_t k)
{
    int32_t n = gather_keys(s, kth_logit_min(s, k));
    drop_below(s, select_key(s, n, k, INFINITY));
}

static void apply_top_p(struct kn_sampler *s, float top_p, float max, float temperature)
{
    double target = (double)top_p * sum_weights(s), weight = 0;
    int32_t n = gather_keys(s, max - 8 * temperature);
    for (int32_t i = 0; i < n; i++) weight += (double)s->weights[key_id(s->keys[i])];
    if (weight < target) n = gather_keys(s, -INFINITY); /* a flat row */
    drop_below(s, select_key(s, n, INT32_MAX, target));
}

static void apply_min_p(struct kn_sampler *s, float min_p)
{
    for (int32_t i = 0; i < s->vocab; i++) /* the largest weight is 1 */
        if (s->weights[i] < min_p) s->weights[i] = 0;
}

/* --- the choice ------------------------------------------------------------------------------- */

static int32_t lowest_id_of(const struct kn_sampler *s, float logit)
{
    int32_t i = 0;
    while (s->logits[i] != logit) i++;
    return i;
}

/* First id at which the cumulative weight exceeds u of the whole. */
static int32_t draw(struct kn_sampler *s, double u)
{
    double target = u * sum_weights(s), sum = 0;
    for (int32_t b = 0; b < s->block_count; b++) {
        if (sum + s->sums[b] <= target) {
            sum += s->sums[b];
            continue;
        }
        for (int32_t i = b * BLOCK; i < (b + 1) * BLOCK; i++) {
            sum += (double)s->weights[i];
            if (sum > target) return i;
        }
    }
    int32_t last = s->vocab - 1; /* rounding left the target just out of reach */
    while (s->weights[last] == 0) last--;
    return last;
}

int32_t kn_sampler_choose(struct kn_sampler *s, const struct kn_sample_row *p)
{
    float max = kn_sampler_max(s);
    if (max == -INFINITY) return -1;
    if (p->temperature == 0) return lowest_id_of(s, max);
    weigh_row(s, max, p->temperature);
    if (p->min_p > 0) apply_min_p(s, p->min_p);
    if (p->top_k > 0 && p->top_k < s->vocab) apply_top_k(s, p->top_k);
    if (p->top_p < 1) apply_top_p(s, p->top_p, max, p->temperature);
    return draw(s, p->u);
}

double kn_sampler_log_sum(struct kn_sampler *s)
{
    float max = kn_sampler_max(s);
    if (max == -INFINITY) return -INFINITY;
    for (int32_t i = 0; i < s->block_count * BLOCK; i += BLOCK)
        exp_block(s->weights + i, s->logits + i, max);
    return (double)max + log(sum_weights(s));
}
