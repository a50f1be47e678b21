/*
 * sampler.c - see sampler.h.
 *
 * A token is chosen in these steps, in vLLM's order:
 *
 *   1. log-probabilities and rank, where asked for, are those of the raw logits
 *   2. min_tokens: EOS and stop tokens are masked    3. logit_bias
 *   4. repetition, then frequency, then presence penalty
 *   5. temperature 0: the largest logit, lowest id among equals.  Otherwise
 *   6. weight = exp((logit - largest) / temperature)
 *   7. min_p    8. top_k    9. top_p, of what the former left, renormalised    10. draw
 *
 * Where tokens of equal logit straddle the edge of top_k or top_p the lower ids stay in: exactly
 * top_k tokens are kept, and top_p keeps the shortest prefix of the tokens by falling logit, then
 * rising id, whose weights come to top_p.
 *
 * Exactness.  The token is a function of (logits, history, parameters) bit for bit: sums are taken
 * in a fixed order, exp is exp_nonpositive below rather than the C library's (which differs between
 * processors), and the random number is Philox4x32-10 (Salmon et al., SC 2011) with the seed as key
 * and the index in the answer as counter.  The draw inverts the cumulative sum over rising ids.
 *
 * Cost.  Every step is a few passes over the row, most of them vectorised; nothing is sorted. top_k
 * and top_p first find a logit that surely is not above the edge: the k-th largest of the blocks'
 * maxima, or the largest logit less 8 temperatures, should the weights above that suffice.  What
 * lies above it gets a 64-bit key (logit in an order-preserving form, then inverted id, hence no
 * two equal), and a radix selection finds the smallest key to keep, in at most 6 passes over ever
 * fewer candidates, whatever the logits are.
 *
 * Odd logits.  NaN counts as -inf, which is never chosen; +inf counts as the largest finite float.
 * A penalty or bias never makes a finite logit infinite.
 */
#include "engine/sampler.h"

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

struct eng_sampler {
    int32_t vocab;
    int32_t block_count;
    float *logits;   /* owned, [block_count * BLOCK]: the row, cleaned, then adjusted */
    float *weights;  /* owned, the same: unnormalised probabilities; 0 for what a filter dropped */
    double *sums;    /* owned, [block_count] of the weights */
    uint64_t *keys;  /* owned, [vocab]: candidates of a selection */
    int32_t *counts; /* owned, [vocab]: occurrences in the answer; all 0 between calls */
    uint8_t *seen;   /* owned, [vocab]: all 0 between calls */
    int32_t digit_count[DIGIT_COUNT];
    double digit_weight[DIGIT_COUNT];
};

enum status eng_sampler_open(int32_t vocab, struct eng_sampler **out)
{
    CHECK(vocab >= 1 && vocab <= INT32_MAX - BLOCK);
    *out = NULL;
    struct eng_sampler *s = calloc(1, sizeof *s);
    if (!s) return ST_NOMEM;
    size_t v = (size_t)vocab, blocks = div_up(v, BLOCK);
    s->vocab = vocab;
    s->block_count = (int32_t)blocks;
    s->logits = malloc(blocks * BLOCK * sizeof *s->logits);
    s->weights = malloc(blocks * BLOCK * sizeof *s->weights);
    s->sums = malloc(blocks * sizeof *s->sums);
    s->keys = malloc(v * sizeof *s->keys);
    s->counts = calloc(v, sizeof *s->counts);
    s->seen = calloc(v, 1);
    if (!s->logits || !s->weights || !s->sums || !s->keys || !s->counts || !s->seen) {
        eng_sampler_close(s);
        return ST_NOMEM;
    }
    for (size_t i = v; i < blocks * BLOCK; i++) s->logits[i] = -INFINITY;
    *out = s;
    return ST_OK;
}

void eng_sampler_close(struct eng_sampler *s)
{
    if (!s) return;
    free(s->seen);
    free(s->counts);
    free(s->keys);
    free(s->sums);
    free(s->weights);
    free(s->logits);
    free(s);
}

/* --- numbers ------------------------------------------------------------------------------- */

/* First 53 bits of Philox4x32-10(key = seed, counter = index) as a number in [0, 1). */
static double uniform(uint64_t seed, uint64_t index)
{
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    uint32_t c0 = (uint32_t)index, c1 = (uint32_t)(index >> 32), c2 = 0, c3 = 0;
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)b;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (double)(((uint64_t)c0 << 32 | c1) >> 11) * 0x1p-53;
}

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

static inline float clamp_finite(float x)
{
    return x > FLT_MAX ? FLT_MAX : x < -FLT_MAX ? -FLT_MAX : x;
}

/* --- passes over the row ------------------------------------------------------------------- */

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

static void load_row(struct eng_sampler *s, const float *logits)
{
    int32_t whole = s->vocab / BLOCK * BLOCK;
    for (int32_t i = 0; i < whole; i += BLOCK) clean_block(s->logits + i, logits + i);
    for (int32_t i = whole; i < s->vocab; i++) s->logits[i] = clean(logits[i]);
}

static float row_max(const struct eng_sampler *s)
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

static void weigh_block(float *restrict w, const float *restrict x, float max, float temperature)
{
    for (int j = 0; j < BLOCK; j++) w[j] = exp_nonpositive((x[j] - max) / temperature);
}

/* weights = exp((logits - max) / temperature); those of the padding are 0. */
static void weigh_row(struct eng_sampler *s, float max, float temperature)
{
    for (int32_t i = 0; i < s->block_count * BLOCK; i += BLOCK)
        weigh_block(s->weights + i, s->logits + i, max, temperature);
}

/* Sums the weights block by block, each in 8 interleaved parts. */
static double sum_weights(struct eng_sampler *s)
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

/* --- log-probabilities --------------------------------------------------------------------- */

/* The row is s->logits, as load_row left it. */
static void score(struct eng_sampler *s, int32_t token, int32_t count, struct eng_sample *out)
{
    CHECK(token >= 0 && token < s->vocab && count >= 0 && count <= ENG_LOGPROBS_MAX);
    float max = row_max(s);
    if (max == -INFINITY) max = 0; /* nothing to weigh: log_sum is -inf, every logprob NAN */
    weigh_row(s, max, 1.0f);
    double log_sum = (double)max + log(sum_weights(s));
    float own = s->logits[token];
    int32_t top_max = count < s->vocab ? count : s->vocab;
    out->token = token;
    out->logprob = (float)((double)own - log_sum);
    out->rank = 1;
    out->top_count = 0;
    for (int32_t i = 0; i < s->vocab; i++) {
        float x = s->logits[i];
        out->rank += x > own;
        /* Until the end of this loop `logprob` holds the logit: equal logits stay in order of id.
         */
        if (out->top_count == top_max && (top_max == 0 || !(x > out->top[top_max - 1].logprob)))
            continue;
        int32_t at = out->top_count < top_max ? out->top_count++ : top_max - 1;
        for (; at > 0 && x > out->top[at - 1].logprob; at--) out->top[at] = out->top[at - 1];
        out->top[at] = (struct eng_logprob){.token = i, .logprob = x};
    }
    for (int32_t i = 0; i < out->top_count; i++)
        out->top[i].logprob = (float)((double)out->top[i].logprob - log_sum);
}

void eng_score_token(struct eng_sampler *s, const float *logits, int32_t token, int32_t count,
                     struct eng_sample *out)
{
    load_row(s, logits);
    score(s, token, count, out);
}

/* --- adjustments --------------------------------------------------------------------------- */

static void mask_tokens(struct eng_sampler *s, const int32_t *tokens, int32_t count)
{
    for (int32_t i = 0; i < count; i++)
        if (tokens[i] >= 0 && tokens[i] < s->vocab) s->logits[tokens[i]] = -INFINITY;
}

/* Masks what would end the answer; left out where nothing but that could be chosen. */
static void apply_min_tokens(struct eng_sampler *s, const struct eng_sampling *p,
                             const float *logits, const int32_t *eos, int32_t eos_count)
{
    mask_tokens(s, eos, eos_count);
    mask_tokens(s, p->stop_tokens, p->stop_token_count);
    if (row_max(s) == -INFINITY) load_row(s, logits);
}

static void apply_bias(struct eng_sampler *s, const struct eng_sampling *p)
{
    for (int32_t i = 0; i < p->bias_count; i++) {
        int32_t t = p->bias[i].token;
        CHECK(t >= 0 && t < s->vocab && isfinite(p->bias[i].bias));
        if (s->logits[t] > -INFINITY) s->logits[t] = clamp_finite(s->logits[t] + p->bias[i].bias);
    }
}

/* Divides positive logits and multiplies negative ones (Keskar et al., 2019), once per token of the
 * history. */
static void apply_repetition(struct eng_sampler *s, float penalty, const int32_t *tokens,
                             int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        int32_t t = tokens[i];
        CHECK(t >= 0 && t < s->vocab);
        if (s->seen[t]) continue;
        s->seen[t] = 1;
        float x = s->logits[t];
        if (x > -INFINITY) s->logits[t] = clamp_finite(x > 0 ? x / penalty : x * penalty);
    }
    for (int32_t i = 0; i < count; i++) s->seen[tokens[i]] = 0;
}

static void apply_frequency_presence(struct eng_sampler *s, const struct eng_sampling *p,
                                     const int32_t *tokens, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        CHECK(tokens[i] >= 0 && tokens[i] < s->vocab);
        s->counts[tokens[i]]++;
    }
    for (int32_t i = 0; i < count; i++) {
        int32_t t = tokens[i], n = s->counts[t];
        if (n == 0) continue;
        s->counts[t] = 0;
        float x = s->logits[t] - p->frequency_penalty * (float)n;
        if (s->logits[t] > -INFINITY) s->logits[t] = clamp_finite(x - p->presence_penalty);
    }
}

/* --- filters ------------------------------------------------------------------------------- */

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
static uint64_t select_key(struct eng_sampler *s, int32_t n, int32_t count, double weight)
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
static int32_t gather_keys(struct eng_sampler *s, float logit_min)
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
static float kth_logit_min(struct eng_sampler *s, int32_t k)
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
static void drop_below(struct eng_sampler *s, uint64_t threshold)
{
    int32_t id = key_id(threshold);
    for (int32_t i = 0; i < s->block_count * BLOCK; i += BLOCK)
        drop_block(s->weights + i, s->logits + i, s->logits[id], id - i);
}

static void apply_top_k(struct eng_sampler *s, int32_t k)
{
    int32_t n = gather_keys(s, kth_logit_min(s, k));
    drop_below(s, select_key(s, n, k, INFINITY));
}

static void apply_top_p(struct eng_sampler *s, float top_p, float max, float temperature)
{
    double target = (double)top_p * sum_weights(s), weight = 0;
    int32_t n = gather_keys(s, max - 8 * temperature);
    for (int32_t i = 0; i < n; i++) weight += (double)s->weights[key_id(s->keys[i])];
    if (weight < target) n = gather_keys(s, -INFINITY); /* a flat row */
    drop_below(s, select_key(s, n, INT32_MAX, target));
}

static void apply_min_p(struct eng_sampler *s, float min_p)
{
    for (int32_t i = 0; i < s->vocab; i++) /* the largest weight is 1 */
        if (s->weights[i] < min_p) s->weights[i] = 0;
}

/* --- the choice ---------------------------------------------------------------------------- */

static int32_t lowest_id_of(const struct eng_sampler *s, float logit)
{
    int32_t i = 0;
    while (s->logits[i] != logit) i++;
    return i;
}

/* First id at which the cumulative weight exceeds u of the whole. */
static int32_t draw(struct eng_sampler *s, double u)
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

static void check_sampling(const struct eng_sampling *p)
{
    CHECK(p->temperature >= 0 && isfinite(p->temperature));
    CHECK(p->top_p > 0 && p->top_p <= 1 && p->min_p >= 0 && p->min_p <= 1 && p->top_k >= 0);
    CHECK(isfinite(p->presence_penalty) && isfinite(p->frequency_penalty));
    CHECK(p->repetition_penalty > 0 && isfinite(p->repetition_penalty));
    CHECK(p->logprobs >= -1 && p->logprobs <= ENG_LOGPROBS_MAX);
}

enum status eng_sample_token(struct eng_sampler *s, const struct eng_sampling *p,
                             const float *logits, const int32_t *tokens, int32_t prompt_count,
                             int32_t total, const int32_t *eos, int32_t eos_count,
                             struct eng_sample *out)
{
    check_sampling(p);
    CHECK(prompt_count >= 0 && total >= prompt_count);
    int32_t generated = total - prompt_count;
    load_row(s, logits);
    if (row_max(s) == -INFINITY) return ST_DEVICE;
    if (generated < p->min_tokens) apply_min_tokens(s, p, logits, eos, eos_count);
    apply_bias(s, p);
    if (p->repetition_penalty != 1.0f) apply_repetition(s, p->repetition_penalty, tokens, total);
    if (p->frequency_penalty != 0 || p->presence_penalty != 0)
        apply_frequency_presence(s, p, tokens + prompt_count, generated);

    float max = row_max(s);
    int32_t token;
    if (p->temperature == 0) {
        token = lowest_id_of(s, max);
    } else {
        weigh_row(s, max, p->temperature);
        if (p->min_p > 0) apply_min_p(s, p->min_p);
        if (p->top_k > 0 && p->top_k < s->vocab) apply_top_k(s, p->top_k);
        if (p->top_p < 1) apply_top_p(s, p->top_p, max, p->temperature);
        token = draw(s, uniform(p->seed, (uint64_t)generated));
    }
    *out = (struct eng_sample){.token = token, .logprob = NAN};
    if (p->logprobs >= 0) eng_score_token(s, logits, token, p->logprobs, out);
    return ST_OK;
}
