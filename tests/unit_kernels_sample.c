/*
 * unit_kernels_sample.c - kn_sample on the CPU, and that it and the engine's sampler choose the
 * same token and give it the same log-probability whenever a request needs nothing that kn_sample
 * does not do; the sampler itself is tested in unit_engine_sampler.c.
 *
 * DAKD_TEST_SEED picks the seed.
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

enum { ROWS = 24 };

static uint64_t rng = 77;

static double unit(void)
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (double)(rng >> 11) * 0x1p-53;
}

static struct kn *open_cpu(int32_t vocab)
{
    char err[ERR_CAP] = "";
    struct kn *kn;
    if (kn_open_cpu(1, &kn, err) || kn_sample_reserve(kn, vocab, 64, err)) fail_msg("%s", err);
    return kn;
}

static struct eng_sampling some_sampling(int i)
{
    return (struct eng_sampling){.temperature = i % 4 ? 0.3f + (float)unit() : 0.f,
                                 .top_p = i % 3 ? 1 : 0.2f + 0.7f * (float)unit(),
                                 .top_k = i % 5 ? 0 : 1 + i,
                                 .min_p = i % 7 ? 0 : 0.1f,
                                 .repetition_penalty = 1,
                                 .seed = (uint64_t)i,
                                 .max_tokens = 100,
                                 .logprobs = i % 2 ? 0 : -1,
                                 .prompt_logprobs = -1};
}

static void same_as_the_engine(void **state)
{
    (void)state;
    static const int32_t vocabs[] = {1, 2, 33, 64, 1000, 40000};
    static int32_t tokens[ROWS];
    for (size_t v = 0; v < ARRAY_COUNT(vocabs); v++) {
        int32_t V = vocabs[v];
        struct kn *kn = open_cpu(V);
        struct eng_sampler *s;
        struct kn_sample_row rows[ROWS];
        struct kn_sampled out[ROWS];
        float *logits = malloc((size_t)V * ROWS * sizeof *logits);
        assert_non_null(logits);
        assert_int_equal(eng_sampler_open(V, &s), ST_OK);
        for (int32_t i = 0; i < V * ROWS; i++) {
            logits[i] = (float)(8 * (unit() + unit() + unit()));
            if (unit() < 0.1 && V > 2) logits[i] = unit() < 0.5 ? NAN : -INFINITY;
        }
        for (int32_t i = 0; i < ROWS; i++) { /* rows in any order */
            struct eng_sampling p = some_sampling(i);
            rows[i] = eng_sampler_row(&p, i);
            rows[i].row = (i * 7) % ROWS;
        }
        kn_sample(kn, &(struct kn_sample_args){logits, V, ROWS, rows, out});
        assert_int_equal(kn_sync(kn, NULL), ST_OK);
        for (int32_t i = 0; i < ROWS; i++) {
            struct eng_sampling p = {.temperature = rows[i].temperature,
                                     .top_p = rows[i].top_p,
                                     .top_k = rows[i].top_k,
                                     .min_p = rows[i].min_p,
                                     .repetition_penalty = 1,
                                     .seed = (uint64_t)i,
                                     .logprobs = rows[i].score ? 0 : -1};
            struct eng_sample want;
            const float *row = logits + (size_t)rows[i].row * (size_t)V;
            assert_false(eng_sampler_adjusts(&p, i));
            assert_int_equal(eng_sample_token(s, &p, row, tokens, 0, i, NULL, 0, &want), ST_OK);
            assert_int_equal(out[i].token, want.token);
            assert_int_equal(out[i].rank, want.rank);
            assert_memory_equal(&out[i].logprob, &want.logprob, sizeof want.logprob);
            assert_true(rows[i].score ? out[i].rank >= 1 && out[i].logprob <= 0 : !out[i].rank);
        }
        free(logits);
        eng_sampler_close(s);
        kn_close(kn);
    }
}

static void rows_without_a_choice(void **state)
{
    (void)state;
    struct kn *kn = open_cpu(3);
    const float logits[] = {NAN, -INFINITY, NAN, -INFINITY, -FLT_MAX, NAN, 1, INFINITY, FLT_MAX};
    const struct kn_sample_row rows[] = {
        {.row = 0, .top_p = 1, .score = true},
        {.row = 0, .top_p = 0.5f, .temperature = 1, .u = 0.5, .score = true},
        {.row = 1, .top_p = 0.5f, .temperature = 1, .u = 0.999, .score = true},
        {.row = 2, .top_p = 1},
    };
    struct kn_sampled out[4];
    kn_sample(kn, &(struct kn_sample_args){logits, 3, 4, rows, out});
    assert_int_equal(out[0].token, -1);
    assert_int_equal(out[1].token, -1);
    assert_int_equal(out[2].token, 1);
    assert_int_equal(out[2].rank, 1);
    assert_true(out[2].logprob == 0);
    assert_int_equal(out[3].token, 1); /* +inf is the largest float, and the lower id wins */
    assert_true(isnan(out[3].logprob) && out[3].rank == 0);
    kn_close(kn);
}

/* What needs the host, and what does not any more. */
static void what_is_adjusted(void **state)
{
    (void)state;
    const struct eng_logit_bias bias = {.token = 1, .bias = 2};
    const struct eng_sampling plain = {.top_p = 1, .repetition_penalty = 1, .logprobs = -1};
    struct eng_sampling p = plain;
    assert_false(eng_sampler_adjusts(&p, 0));
    p.min_tokens = 3;
    assert_true(eng_sampler_adjusts(&p, 2));
    assert_false(eng_sampler_adjusts(&p, 3));
    p = plain;
    p.bias = &bias;
    p.bias_count = 1;
    assert_true(eng_sampler_adjusts(&p, 9));
    p = plain;
    p.repetition_penalty = 1.1f;
    assert_true(eng_sampler_adjusts(&p, 9));
    p = plain;
    p.frequency_penalty = 0.1f;
    assert_true(eng_sampler_adjusts(&p, 9));
    p = plain;
    p.presence_penalty = -0.1f;
    assert_true(eng_sampler_adjusts(&p, 9));
}

int main(void)
{
    const char *text = getenv("DAKD_TEST_SEED");
    if (text) rng = strtoull(text, NULL, 0);
    printf("seed %llu\n", (unsigned long long)rng);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_as_the_engine),
        cmocka_unit_test(rows_without_a_choice),
        cmocka_unit_test(what_is_adjusted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
