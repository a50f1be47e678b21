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
 * Steps 5 to 10 are kernels/sample.c's, which every backend agrees with: a row that needs none of
 * steps 1 to 4 may be sampled where its logits are (kn_sample).
 *
 * Exactness.  The token is a function of (logits, history, parameters) bit for bit: the random
 * number is Philox4x32-10 (Salmon et al., SC 2011) with the seed as key and the index in the answer
 * as counter, and the rest is as exact (kernels/sample.c).
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
#include "kernels/sample.h"

struct eng_sampler {
    int32_t vocab;
    struct kn_sampler *row; /* owned: the row, cleaned, then adjusted */
    float *logits;          /* borrowed from row: its logits */
    int32_t *counts;        /* owned, [vocab]: occurrences in the answer; all 0 between calls */
    uint8_t *seen;          /* owned, [vocab]: all 0 between calls */
};

enum status eng_sampler_open(int32_t vocab, struct eng_sampler **out)
{
    *out = NULL;
    struct eng_sampler *s = calloc(1, sizeof *s);
    if (!s) return ST_NOMEM;
    s->vocab = vocab;
    s->counts = calloc((size_t)vocab, sizeof *s->counts);
    s->seen = calloc((size_t)vocab, 1);
    if (!s->counts || !s->seen || kn_sampler_open(vocab, &s->row)) {
        eng_sampler_close(s);
        return ST_NOMEM;
    }
    s->logits = kn_sampler_logits(s->row);
    *out = s;
    return ST_OK;
}

void eng_sampler_close(struct eng_sampler *s)
{
    if (!s) return;
    kn_sampler_close(s->row);
    free(s->seen);
    free(s->counts);
    free(s);
}

/* --- numbers ---------------------------------------------------------------------------------- */

double eng_sampler_uniform(uint64_t seed, uint64_t index)
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

static inline float clamp_finite(float x)
{
    return x > FLT_MAX ? FLT_MAX : x < -FLT_MAX ? -FLT_MAX : x;
}

/* --- log-probabilities ------------------------------------------------------------------------ */

/* The row is s->logits, as kn_sampler_load left it. */
static void score(struct eng_sampler *s, int32_t token, int32_t count, struct eng_sample *out)
{
    CHECK(token >= 0 && token < s->vocab && count >= 0 && count <= ENG_LOGPROBS_MAX);
    double log_sum = kn_sampler_log_sum(s->row);
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
    kn_sampler_load(s->row, logits);
    score(s, token, count, out);
}

/* --- adjustments ------------------------------------------------------------------------------ */

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
    if (kn_sampler_max(s->row) == -INFINITY) kn_sampler_load(s->row, logits);
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

static void check_sampling(const struct eng_sampling *p)
{
    CHECK(p->temperature >= 0 && isfinite(p->temperature));
    CHECK(p->top_p > 0 && p->top_p <= 1 && p->min_p >= 0 && p->min_p <= 1 && p->top_k >= 0);
    CHECK(isfinite(p->presence_penalty) && isfinite(p->frequency_penalty));
    CHECK(p->repetition_penalty > 0 && isfinite(p->repetition_penalty));
    CHECK(p->logprobs >= -1 && p->logprobs <= ENG_LOGPROBS_MAX);
}

struct kn_sample_row eng_sampler_row(const struct eng_sampling *p, int32_t generated)
{
    check_sampling(p);
    return (struct kn_sample_row){
        .temperature = p->temperature,
        .top_p = p->top_p,
        .min_p = p->min_p,
        .top_k = p->top_k,
        .score = p->logprobs == 0,
        .u = p->temperature > 0 ? eng_sampler_uniform(p->seed, (uint64_t)generated) : 0};
}

bool eng_sampler_adjusts(const struct eng_sampling *p, int32_t generated)
{
    return generated < p->min_tokens || p->bias_count > 0 || p->repetition_penalty != 1.0f ||
           p->frequency_penalty != 0 || p->presence_penalty != 0;
}

enum status eng_sample_token(struct eng_sampler *s, const struct eng_sampling *p,
                             const float *logits, const int32_t *tokens, int32_t prompt_count,
                             int32_t total, const int32_t *eos, int32_t eos_count,
                             struct eng_sample *out)
{
    check_sampling(p);
    CHECK(prompt_count >= 0 && total >= prompt_count);
    int32_t generated = total - prompt_count;
    kn_sampler_load(s->row, logits);
    if (kn_sampler_max(s->row) == -INFINITY) return ST_DEVICE;
    if (generated < p->min_tokens) apply_min_tokens(s, p, logits, eos, eos_count);
    apply_bias(s, p);
    if (p->repetition_penalty != 1.0f) apply_repetition(s, p->repetition_penalty, tokens, total);
    if (p->frequency_penalty != 0 || p->presence_penalty != 0)
        apply_frequency_presence(s, p, tokens + prompt_count, generated);

    const struct kn_sample_row row = eng_sampler_row(p, generated);
    int32_t token = kn_sampler_choose(s->row, &row);
    *out = (struct eng_sample){.token = token, .logprob = NAN};
    if (p->logprobs >= 0) eng_score_token(s, logits, token, p->logprobs, out);
    return ST_OK;
}
