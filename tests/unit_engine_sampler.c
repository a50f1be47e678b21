/*
 * unit_engine_sampler.c - the sampler against a reference that does everything in double precision
 * with a full sort: which tokens can be drawn, how often (chi-square over many seeds), and what is
 * reported about them.
 *
 * DAKD_TEST_SEED picks the seed of the logits.
 */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "config/check.h"
#include "engine/sampler.h"

static const struct eng_sampling plain = {
    .temperature = 1,
    .top_p = 1,
    .repetition_penalty = 1,
    .max_tokens = 16,
    .logprobs = -1,
    .prompt_logprobs = -1,
};

static uint64_t rng;

static double random_unit(void)
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (double)(rng >> 11) * 0x1p-53;
}

/* About normal: sum of 12 uniform numbers. */
static void random_row(float *row, int32_t v, float spread)
{
    for (int32_t i = 0; i < v; i++) {
        double sum = -6;
        for (int k = 0; k < 12; k++) sum += random_unit();
        row[i] = (float)(sum * (double)spread);
    }
}

static struct eng_sampler *open_sampler(int32_t v)
{
    struct eng_sampler *s;
    assert_int_equal(eng_sampler_open(v, &s), ST_OK);
    return s;
}

static struct eng_sample sample(struct eng_sampler *s, const struct eng_sampling *p,
                                const float *row)
{
    struct eng_sample out;
    assert_int_equal(eng_sample_token(s, p, row, NULL, 0, 0, NULL, 0, &out), ST_OK);
    return out;
}

/* --- the reference -------------------------------------------------------------------------- */

struct entry {
    int32_t id;
    double logit;
};

static int by_falling_logit(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

/* prob[V] of the row after temperature, min_p, top_k, top_p; returns how many are not 0. */
static int32_t reference(const struct eng_sampling *p, const float *row, int32_t v, double *prob)
{
    struct entry *e = malloc((size_t)v * sizeof *e);
    assert_non_null(e);
    for (int32_t i = 0; i < v; i++)
        e[i] = (struct entry){i, isnan(row[i]) ? -INFINITY : (double)row[i]};
    qsort(e, (size_t)v, sizeof *e, by_falling_logit);
    int32_t n = p->top_k > 0 && p->top_k < v ? p->top_k : v;
    double total = 0, part = 0;
    for (int32_t i = 0; i < v; i++) prob[i] = 0;
    for (int32_t i = 0; i < n; i++) {
        double w = exp((e[i].logit - e[0].logit) / (double)p->temperature);
        prob[e[i].id] = w >= (double)p->min_p ? w : 0;
        total += prob[e[i].id];
    }
    int32_t kept = 0;
    while (kept < n && prob[e[kept].id] > 0 && (kept == 0 || part < (double)p->top_p * total))
        part += prob[e[kept++].id];
    for (int32_t i = 0; i < v; i++) prob[e[i].id] = i < kept ? prob[e[i].id] / part : 0;
    free(e);
    return kept;
}

/* Wilson-Hilferty: the value a chi-square of df degrees exceeds once in about 100 000 times. */
static double chi_square_limit(int df)
{
    double h = 2.0 / (9.0 * df), z = 4.27;
    return df * pow(1 - h + z * sqrt(h), 3);
}

/* Draws `draws` tokens with seeds 0.. and compares counts with prob[V]; nothing outside may appear.
 */
static void assert_distribution(const struct eng_sampling *p, const float *row, int32_t v,
                                int32_t draws)
{
    struct eng_sampler *s = open_sampler(v);
    double *prob = malloc((size_t)v * sizeof *prob);
    int32_t *count = calloc((size_t)v, sizeof *count);
    assert_true(prob && count);
    reference(p, row, v, prob);
    for (int32_t i = 0; i < draws; i++) {
        struct eng_sampling q = *p;
        q.seed = (uint64_t)i;
        count[sample(s, &q, row).token]++;
    }
    double chi = 0, rest_expected = 0, rest_count = 0;
    int df = -1;
    for (int32_t i = 0; i < v; i++) {
        double expected = prob[i] * draws;
        if (prob[i] == 0) assert_int_equal(count[i], 0);
        if (expected < 10) { /* pooled */
            rest_expected += expected;
            rest_count += count[i];
            continue;
        }
        chi += (count[i] - expected) * (count[i] - expected) / expected;
        df++;
    }
    if (rest_expected >= 10) {
        chi += (rest_count - rest_expected) * (rest_count - rest_expected) / rest_expected;
        df++;
    }
    if (df > 0 && chi > chi_square_limit(df))
        fail_msg("chi-square %.1f with %d degrees of freedom", chi, df);
    free(count);
    free(prob);
    eng_sampler_close(s);
}

/* --- distributions -------------------------------------------------------------------------- */

static void draws_follow_the_distribution(void **state)
{
    (void)state;
    static const struct {
        float temperature, top_p, min_p;
        int32_t top_k;
    } cases[] = {
        {1, 1, 0, 0},      {0.7f, 1, 0, 0},       {1.9f, 1, 0, 0},
        {1, 0.9f, 0, 0},   {1, 0.5f, 0, 0},       {1, 1, 0.1f, 0},
        {1, 1, 0, 10},     {0.8f, 0.95f, 0, 40},  {1.3f, 0.7f, 0.05f, 25},
        {1, 0.999f, 0, 0}, {0.3f, 0.8f, 0.2f, 5}, {1, 1, 0, 199},
    };
    float row[200];
    for (size_t c = 0; c < ARRAY_COUNT(cases); c++) {
        struct eng_sampling p = plain;
        p.temperature = cases[c].temperature;
        p.top_p = cases[c].top_p;
        p.min_p = cases[c].min_p;
        p.top_k = cases[c].top_k;
        random_row(row, 200, 2);
        assert_distribution(&p, row, 200, 20000);
    }
}

static void draws_over_one_answer_follow_it_too(void **state)
{
    (void)state;
    enum { V = 16, N = 40000 };
    static int32_t tokens[N];
    float row[V];
    double prob[V], chi = 0;
    int32_t count[V] = {0};
    struct eng_sampler *s = open_sampler(V);
    random_row(row, V, 1);
    reference(&plain, row, V, prob);
    for (int32_t i = 0; i < N; i++) { /* one seed, rising index */
        struct eng_sample out;
        assert_int_equal(eng_sample_token(s, &plain, row, tokens, 0, i, NULL, 0, &out), ST_OK);
        count[out.token]++;
    }
    for (int i = 0; i < V; i++)
        chi += (count[i] - prob[i] * N) * (count[i] - prob[i] * N) / (prob[i] * N);
    assert_true(chi < chi_square_limit(V - 1));
    eng_sampler_close(s);
}

/* Which tokens can be drawn at all: enough draws over a flat enough set find every one. */
static void filters_keep_exactly_the_right_set(void **state)
{
    (void)state;
    static const int32_t vocabs[] = {2, 63, 64, 65, 130, 1000};
    for (size_t c = 0; c < ARRAY_COUNT(vocabs) * 20; c++) {
        int32_t v = vocabs[c % ARRAY_COUNT(vocabs)], distinct = 0;
        float *row = malloc((size_t)v * sizeof *row);
        double *prob = malloc((size_t)v * sizeof *prob);
        uint8_t *seen = calloc((size_t)v, 1);
        assert_true(row && prob && seen);
        random_row(row, v, 0.5f);
        if (c % 3 == 0) /* ties */
            for (int32_t i = 0; i < v; i++) row[i] = roundf(row[i] * 4) / 4;
        struct eng_sampling p = plain;
        p.top_k = c % 2 ? 1 + (int32_t)(random_unit() * 30) : 0;
        p.top_p = c % 5 ? 1 : 0.02f + 0.3f * (float)random_unit();
        p.min_p = c % 4 ? 0 : 0.55f;
        if (p.top_k == 0 && p.top_p == 1 && p.min_p == 0) p.top_k = 1 + (int32_t)c % v;
        int32_t kept = reference(&p, row, v, prob);
        struct eng_sampler *s = open_sampler(v);
        for (p.seed = 0; p.seed < (uint64_t)kept * 120; p.seed++) {
            int32_t token = sample(s, &p, row).token;
            assert_true(prob[token] > 0);
            distinct += !seen[token];
            seen[token] = 1;
        }
        assert_int_equal(distinct, kept);
        eng_sampler_close(s);
        free(seen);
        free(prob);
        free(row);
    }
}

static void large_vocabularies(void **state)
{
    (void)state;
    static const int32_t vocabs[] = {32000, 128256};
    for (size_t c = 0; c < ARRAY_COUNT(vocabs) * 6; c++) {
        int32_t v = vocabs[c % 2];
        float *row = malloc((size_t)v * sizeof *row);
        double *prob = malloc((size_t)v * sizeof *prob);
        assert_true(row && prob);
        random_row(row, v, 2);
        struct eng_sampling p = plain;
        p.top_k = (const int32_t[]){0, 50, 0, 3000, 40000, 1}[c / 2];
        p.top_p = (const float[]){1, 1, 0.9f, 0.6f, 1, 1}[c / 2];
        p.temperature = 0.6f;
        reference(&p, row, v, prob);
        struct eng_sampler *s = open_sampler(v);
        int32_t best = 0;
        for (int32_t i = 0; i < v; i++)
            if (row[i] > row[best]) best = i;
        double mean = 0, mean_expected = 0, square = 0;
        enum { DRAWS = 60 };
        for (p.seed = 0; p.seed < DRAWS; p.seed++) {
            int32_t token = sample(s, &p, row).token;
            assert_true(prob[token] > 0);
            if (p.top_k == 1) assert_int_equal(token, best);
            mean += (double)token / DRAWS;
        }
        for (int32_t i = 0; i < v; i++) {
            mean_expected += prob[i] * i;
            square += prob[i] * i * i;
        }
        double deviation = sqrt((square - mean_expected * mean_expected) / DRAWS);
        assert_true(fabs(mean - mean_expected) <= 5 * deviation + 1e-6);
        eng_sampler_close(s);
        free(prob);
        free(row);
    }
}

/* --- determinism ---------------------------------------------------------------------------- */

static void same_input_same_token(void **state)
{
    (void)state;
    enum { V = 1000 };
    float row[V], other[V];
    struct eng_sampler *a = open_sampler(V), *b = open_sampler(V);
    struct eng_sampling p = plain;
    p.top_p = 0.95f;
    p.top_k = 300;
    p.logprobs = 20;
    p.frequency_penalty = 0.5f;
    p.repetition_penalty = 1.2f;
    int32_t history[] = {5, 6, 7, 5, 5};
    for (p.seed = 0; p.seed < 200; p.seed++) {
        random_row(row, V, 1);
        random_row(other, V, 3);
        float copy[V];
        memcpy(copy, row, sizeof row);
        struct eng_sample x, y;
        assert_int_equal(eng_sample_token(a, &p, row, history, 2, 5, NULL, 0, &x), ST_OK);
        (void)sample(b, &plain, other); /* what b did before leaves no trace */
        assert_int_equal(eng_sample_token(b, &p, row, history, 2, 5, NULL, 0, &y), ST_OK);
        assert_memory_equal(&x, &y, sizeof x);
        assert_memory_equal(copy, row, sizeof row);
    }
    eng_sampler_close(a);
    eng_sampler_close(b);
}

/* With 65536 equal logits the token is the random number's top 16 bits.  The words are the
 * published test vectors of Philox4x32-10: counter and key 0 give 6627e8d5 first. */
static void random_numbers_are_philox(void **state)
{
    (void)state;
    enum { V = 65536 };
    float *row = calloc(V, sizeof *row);
    int32_t *tokens = calloc(4, sizeof *tokens);
    assert_true(row && tokens);
    struct eng_sampler *s = open_sampler(V);
    struct eng_sample out;
    assert_int_equal(sample(s, &plain, row).token, 0x6627);
    int32_t first = sample(s, &plain, row).token;
    assert_int_equal(eng_sample_token(s, &plain, row, tokens, 3, 3, NULL, 0, &out), ST_OK);
    assert_int_equal(out.token, first); /* the prompt's length does not matter */
    assert_int_equal(eng_sample_token(s, &plain, row, tokens, 2, 3, NULL, 0, &out), ST_OK);
    assert_int_not_equal(out.token, first);
    eng_sampler_close(s);
    free(tokens);
    free(row);
}

/* --- greedy, adjustments -------------------------------------------------------------------- */

static struct eng_sampling greedy(void)
{
    struct eng_sampling p = plain;
    p.temperature = 0;
    return p;
}

static void greedy_takes_the_lowest_id_of_the_largest(void **state)
{
    (void)state;
    struct eng_sampling p = greedy();
    enum { V = 300 };
    float row[V];
    struct eng_sampler *s = open_sampler(V);
    for (int i = 0; i < V; i++) row[i] = -5;
    assert_int_equal(sample(s, &p, row).token, 0);
    row[70] = row[71] = row[299] = 2;
    assert_int_equal(sample(s, &p, row).token, 70);
    row[299] = 3;
    assert_int_equal(sample(s, &p, row).token, 299);
    for (int i = 0; i < V; i++) row[i] = i % 2 ? 0.0f : -0.0f; /* equal */
    assert_int_equal(sample(s, &p, row).token, 0);
    p = plain;
    p.top_k = 1;
    assert_int_equal(sample(s, &p, row).token, 0);
    eng_sampler_close(s);
}

static void bias_decides(void **state)
{
    (void)state;
    enum { V = 100 };
    float row[V];
    struct eng_sampler *s = open_sampler(V);
    random_row(row, V, 2);
    struct eng_logit_bias up[] = {{42, 100}}, down[] = {{42, -100}},
                          both[] = {{42, 100}, {42, -100}};
    for (int mode = 0; mode < 2; mode++) {
        struct eng_sampling p = mode ? plain : greedy(), q = p;
        for (p.seed = 0; p.seed < 300; p.seed++) {
            q = p;
            q.bias = up;
            q.bias_count = 1;
            assert_int_equal(sample(s, &q, row).token, 42);
            q.bias = down;
            assert_int_not_equal(sample(s, &q, row).token, 42);
            q.bias = both;
            q.bias_count = 2;
            row[42] = -3;
            assert_int_equal(sample(s, &q, row).token, sample(s, &p, row).token);
        }
    }
    eng_sampler_close(s);
}

/* The adjusted logit of token 0, found to the last bit: the largest opponent token 0 still wins
 * against, being lower. */
static float adjusted_logit(struct eng_sampler *s, struct eng_sampling p, float logit,
                            const int32_t *tokens, int32_t prompt_count, int32_t total)
{
    float low = -1e6f, high = 1e6f, row[3] = {logit, 0, -FLT_MAX};
    p.temperature = 0;
    while (nextafterf(low, INFINITY) < high) {
        float middle = low + (high - low) / 2;
        struct eng_sample out;
        row[1] = middle;
        assert_int_equal(eng_sample_token(s, &p, row, tokens, prompt_count, total, NULL, 0, &out),
                         ST_OK);
        if (out.token == 0) low = middle;
        else high = middle;
    }
    return low;
}

static void penalties_follow_their_formulas(void **state)
{
    (void)state;
    struct eng_sampler *s = open_sampler(3);
    struct eng_sampling p = plain;
    /* Two prompt tokens, three of the answer; token 0 once in the prompt and twice in the answer.
     */
    static const int32_t history[] = {0, 2, 0, 2, 0};
    static const float logits[] = {2.5f, -2.5f, 0, 17.25f, -0.01f};
    for (size_t i = 0; i < ARRAY_COUNT(logits); i++) {
        float x = logits[i];
        p = plain;
        assert_true(adjusted_logit(s, p, x, history, 2, 5) == x);
        p.repetition_penalty = 1.3f;
        float repeated = x > 0 ? x / 1.3f : x * 1.3f;
        assert_true(adjusted_logit(s, p, x, history, 2, 5) == repeated);
        assert_true(adjusted_logit(s, p, x, history, 1, 1) == repeated); /* prompt alone */
        assert_true(adjusted_logit(s, p, x, history + 1, 1, 1) == x);    /* not in it */
        p = plain;
        p.presence_penalty = 0.6f;
        assert_true(adjusted_logit(s, p, x, history, 2, 5) == x - 0.6f);
        assert_true(adjusted_logit(s, p, x, history, 1, 1) == x); /* the prompt does not count */
        p.presence_penalty = -1.5f;
        assert_true(adjusted_logit(s, p, x, history, 2, 5) == x + 1.5f);
        p = plain;
        p.frequency_penalty = 0.7f;
        assert_true(adjusted_logit(s, p, x, history, 2, 5) == x - 0.7f * 2);
        assert_true(adjusted_logit(s, p, x, history, 0, 5) == x - 0.7f * 3);
        assert_true(adjusted_logit(s, p, x, history, 5, 5) == x);
        p.presence_penalty = 0.4f;
        p.repetition_penalty = 0.8f;
        repeated = x > 0 ? x / 0.8f : x * 0.8f;
        assert_true(adjusted_logit(s, p, x, history, 2, 5) == (repeated - 0.7f * 2) - 0.4f);
        struct eng_logit_bias bias = {0, 1.5f}; /* before the penalties */
        p.bias = &bias;
        p.bias_count = 1;
        float biased = x + 1.5f;
        repeated = biased > 0 ? biased / 0.8f : biased * 0.8f;
        assert_true(adjusted_logit(s, p, x, history, 2, 5) == (repeated - 0.7f * 2) - 0.4f);
    }
    eng_sampler_close(s);
}

static void min_tokens_masks_what_ends_the_answer(void **state)
{
    (void)state;
    enum { V = 10 };
    struct eng_sampler *s = open_sampler(V);
    struct eng_sampling p = greedy();
    float row[V] = {0, 9, 8, 7, 6, 5};
    static const int32_t eos[] = {1, 2, -1, V}, stop[] = {3, 1000000}, tokens[8] = {0};
    struct eng_sample out;
    p.min_tokens = 3;
    p.stop_tokens = stop;
    p.stop_token_count = 2;
    for (int32_t generated = 0; generated < 5; generated++) {
        p.ignore_eos = generated % 2;
        assert_int_equal(eng_sample_token(s, &p, row, tokens, 2, 2 + generated, eos, 4, &out),
                         ST_OK);
        assert_int_equal(out.token, generated < 3 ? 4 : 1);
    }
    struct eng_logit_bias bias = {1, 100}; /* does not lift the mask */
    p.bias = &bias;
    p.bias_count = 1;
    assert_int_equal(eng_sample_token(s, &p, row, tokens, 2, 2, eos, 4, &out), ST_OK);
    assert_int_equal(out.token, 4);
    p.bias_count = 0;
    static const int32_t all[V] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
    p.stop_tokens = all; /* nothing left: the mask is not applied */
    p.stop_token_count = V;
    assert_int_equal(eng_sample_token(s, &p, row, tokens, 2, 2, eos, 4, &out), ST_OK);
    assert_int_equal(out.token, 1);
    eng_sampler_close(s);
}

/* --- edges ---------------------------------------------------------------------------------- */

static void extreme_parameters(void **state)
{
    (void)state;
    enum { V = 500 };
    float row[V];
    struct eng_sampler *s = open_sampler(V);
    random_row(row, V, 5);
    struct eng_sampling g = greedy();
    int32_t best = sample(s, &g, row).token;
    static const float temperatures[] = {1e-6f, 1e-20f, 1e-40f};
    for (uint64_t seed = 0; seed < 100; seed++) {
        struct eng_sampling p = plain;
        p.seed = seed;
        for (size_t i = 0; i < ARRAY_COUNT(temperatures); i++) {
            p.temperature = temperatures[i];
            p.top_p = i == 1 ? 0.9f : 1;
            p.top_k = i == 2 ? 5 : 0;
            assert_int_equal(sample(s, &p, row).token, best);
        }
        p = plain;
        p.seed = seed;
        p.temperature = 2;
        p.min_p = 1;
        assert_int_equal(sample(s, &p, row).token, best);
        p.min_p = 0;
        p.top_p = 1e-6f;
        assert_int_equal(sample(s, &p, row).token, best);
        p.top_p = 1;
        p.top_k = 1;
        assert_int_equal(sample(s, &p, row).token, best);
        p.top_k = INT32_MAX;
        p.top_p = 0x1.fffffep-1f;
        p.temperature = FLT_MAX;
        assert_in_range(sample(s, &p, row).token, 0, V - 1);
    }
    eng_sampler_close(s);
}

static void odd_logits(void **state)
{
    (void)state;
    enum { V = 70 };
    float row[V];
    struct eng_sampler *s = open_sampler(V);
    struct eng_sampling p;
    struct eng_sample out;
    for (int kind = 0; kind < 4; kind++) {
        for (int i = 0; i < V; i++) row[i] = i % 3 ? NAN : -INFINITY;
        p = kind % 2 ? plain : greedy();
        p.top_k = kind == 3 ? 4 : 0;
        p.logprobs = 5;
        assert_int_equal(eng_sample_token(s, &p, row, NULL, 0, 0, NULL, 0, &out), ST_DEVICE);
        row[33] = -1e30f;
        assert_int_equal(sample(s, &p, row).token, 33);
        row[65] = FLT_MAX;
        assert_int_equal(sample(s, &p, row).token, 65);
        row[65] = INFINITY;
        out = sample(s, &p, row);
        assert_int_equal(out.token, 65);
        assert_true(out.logprob == 0);
        assert_int_equal(out.rank, 1);
        assert_int_equal(out.top[1].token, 33);
        assert_true(out.top[2].logprob == -INFINITY);
    }
    int count[2] = {0}; /* several infinities share */
    row[3] = INFINITY;
    for (p = plain; p.seed < 200; p.seed++) {
        int32_t token = sample(s, &p, row).token;
        assert_true(token == 3 || token == 65);
        count[token == 65]++;
    }
    assert_in_range(count[0], 60, 140);
    static const int32_t tokens[] = {3, 65, 3}; /* nor do penalties make NaN of them */
    p.repetition_penalty = 1e-30f;
    p.frequency_penalty = -2;
    assert_int_equal(eng_sample_token(s, &p, row, tokens, 1, 3, NULL, 0, &out), ST_OK);
    assert_true(out.token == 3 || out.token == 65);
    for (int i = 0; i < V; i++) row[i] = NAN;
    eng_score_token(s, row, 5, 3, &out);
    assert_true(isnan(out.logprob) && isnan(out.top[0].logprob));
    assert_int_equal(out.top_count, 3);
    eng_sampler_close(s);
}

static void smallest_vocabularies(void **state)
{
    (void)state;
    struct eng_sampler *s = open_sampler(1);
    float row[2] = {-3, 0};
    struct eng_sampling p = plain;
    p.logprobs = 20;
    p.top_k = 3;
    p.top_p = 0.3f;
    struct eng_sample out = sample(s, &p, row);
    assert_int_equal(out.token, 0);
    assert_int_equal(out.top_count, 1);
    assert_true(out.logprob == 0 && out.top[0].logprob == 0 && out.rank == 1);
    eng_sampler_close(s);
    p = plain;
    assert_distribution(&p, row, 2, 20000);
    eng_sampler_close(NULL);
}

/* --- log-probabilities ---------------------------------------------------------------------- */

static void assert_scores(const struct eng_sample *out, const float *row, int32_t v, int32_t count)
{
    struct entry *e = malloc((size_t)v * sizeof *e);
    assert_non_null(e);
    double sum = 0;
    int32_t rank = 1;
    for (int32_t i = 0; i < v; i++) {
        e[i] = (struct entry){i, (double)row[i]};
        rank += row[i] > row[out->token];
    }
    qsort(e, (size_t)v, sizeof *e, by_falling_logit);
    for (int32_t i = 0; i < v; i++) sum += exp(e[i].logit - e[0].logit);
    double log_sum = e[0].logit + log(sum);
    assert_int_equal(out->rank, rank);
    assert_int_equal(out->top_count, count < v ? count : v);
    assert_true(fabs((double)out->logprob - ((double)row[out->token] - log_sum)) < 2e-6 * 20);
    for (int32_t i = 0; i < out->top_count; i++) {
        assert_int_equal(out->top[i].token, e[i].id);
        assert_true(fabs((double)out->top[i].logprob - (e[i].logit - log_sum)) < 2e-6 * 20);
    }
    free(e);
}

static void log_probabilities_are_those_of_the_raw_logits(void **state)
{
    (void)state;
    static const int32_t vocabs[] = {1, 2, 5, 20, 64, 100, 32000, 128256};
    for (size_t c = 0; c < ARRAY_COUNT(vocabs); c++) {
        int32_t v = vocabs[c];
        float *row = malloc((size_t)v * sizeof *row);
        assert_non_null(row);
        random_row(row, v, 2);
        if (c % 2)
            for (int32_t i = 0; i < v; i++) row[i] = roundf(row[i]); /* many ties */
        struct eng_sampler *s = open_sampler(v);
        struct eng_sampling p = plain;
        int32_t tokens[] = {v - 1, v / 2, v - 1};
        struct eng_logit_bias bias = {v / 3, 4};
        p.bias = &bias;
        p.bias_count = 1;
        p.presence_penalty = 1.5f; /* no trace of any of these */
        p.repetition_penalty = 1.5f;
        p.temperature = 0.5f;
        p.top_k = 3;
        for (int32_t count = -1; count <= ENG_LOGPROBS_MAX; count += count < 3 ? 1 : 17) {
            struct eng_sample out;
            p.logprobs = count;
            p.seed++;
            assert_int_equal(eng_sample_token(s, &p, row, tokens, 1, 3, NULL, 0, &out), ST_OK);
            if (count < 0) {
                assert_true(isnan(out.logprob));
                assert_int_equal(out.rank, 0);
                assert_int_equal(out.top_count, 0);
                continue;
            }
            assert_scores(&out, row, v, count);
            int32_t given = (int32_t)(random_unit() * v);
            eng_score_token(s, row, given, count, &out);
            assert_int_equal(out.token, given);
            assert_scores(&out, row, v, count);
        }
        eng_sampler_close(s);
        free(row);
    }
}

int main(void)
{
    const char *seed = getenv("DAKD_TEST_SEED");
    rng = seed ? strtoull(seed, NULL, 0) : 7;
    printf("seed %llu\n", (unsigned long long)rng);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(draws_follow_the_distribution),
        cmocka_unit_test(draws_over_one_answer_follow_it_too),
        cmocka_unit_test(filters_keep_exactly_the_right_set),
        cmocka_unit_test(large_vocabularies),
        cmocka_unit_test(same_input_same_token),
        cmocka_unit_test(random_numbers_are_philox),
        cmocka_unit_test(greedy_takes_the_lowest_id_of_the_largest),
        cmocka_unit_test(bias_decides),
        cmocka_unit_test(penalties_follow_their_formulas),
        cmocka_unit_test(min_tokens_masks_what_ends_the_answer),
        cmocka_unit_test(extreme_parameters),
        cmocka_unit_test(odd_logits),
        cmocka_unit_test(smallest_vocabularies),
        cmocka_unit_test(log_probabilities_are_those_of_the_raw_logits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
