/* The model of a step's time: what it learns, what it does not, and the tokens that follow from it.
 * In the scheduler, against a machine: sim_engine_sched.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>

#include "config/check.h"
#include "engine/pace.h"

#define TARGET 0.02

/* 4 ms, 20 us a token of a prompt, 30 ns a KV token, 1 ns a pair. */
static double linear_s(const struct eng_load *load)
{
    return 4e-3 + 20e-6 * load->prompt_tokens + 30e-9 * (double)load->decode_kv_tokens +
           1e-9 * (double)load->prompt_pairs;
}

static struct eng_load load_of(int32_t decodes, int32_t context, int32_t begin, int32_t tokens)
{
    struct eng_load load = {0};
    for (int32_t i = 0; i < decodes; i++) eng_load_add_decode(&load, context);
    if (tokens) eng_load_add_prompt(&load, begin, tokens);
    return load;
}

/* Steps of all sorts, so that all coefficients can be told apart. */
static void learn_all_sorts(struct eng_pace *p)
{
    for (int32_t i = 0; i < 400; i++) {
        struct eng_load load =
            load_of(8 + i % 32, 100 + i % 7 * 900, i % 11 * 3000, i % 5 * 128 + i % 3);
        eng_pace_learn(p, &load, linear_s(&load));
    }
}

static void test_loads(void **state)
{
    (void)state;
    struct eng_load load = load_of(3, 100, 10, 4);
    assert_int_equal(load.decode_count, 3);
    assert_int_equal(load.decode_kv_tokens, 300);
    assert_int_equal(load.prompt_tokens, 4);
    assert_int_equal(load.prompt_pairs, 11 + 12 + 13 + 14);
    eng_load_add_prompt(&load, 1 << 20, 1 << 14); /* beyond 32 bits */
    assert_int_equal(load.prompt_pairs, 50 + (1ll << 34) + (1ll << 13) * ((1 << 14) + 1));
}

static void test_learns_a_linear_machine(void **state)
{
    (void)state;
    struct eng_pace p;
    eng_pace_init(&p, TARGET);
    learn_all_sorts(&p);
    for (int32_t context = 200; context < 6000; context += 1100)
        for (int32_t tokens = 0; tokens <= 1000; tokens += 250) {
            struct eng_load load = load_of(32, context, 2 * context, tokens);
            double got = eng_pace_predict(&p, &load), want = linear_s(&load);
            if (fabs(got - want) > 0.01 * want) fail_msg("%g is not %g", got, want);
        }
}

/* As many tokens as fit, nearly, wherever the prompt is; none where there is no time. */
static void test_tokens(void **state)
{
    (void)state;
    struct eng_pace p;
    eng_pace_init(&p, TARGET);
    for (int32_t begin = 0; begin < 30000; begin += 5000) {
        learn_all_sorts(&p);
        struct eng_load load = load_of(32, 1000, 0, 0), with = load;
        int32_t n = eng_pace_tokens(&p, &load, begin, 4096);
        eng_load_add_prompt(&with, begin, n);
        assert_true(linear_s(&with) <= TARGET && linear_s(&with) > 0.93 * TARGET);
        assert_int_equal(eng_pace_tokens(&p, &load, begin, n / 2), n / 2); /* no more than asked */
        assert_int_equal(eng_pace_tokens(&p, &load, begin, 0), 0);
        eng_pace_learn(&p, &with, linear_s(&with));
        assert_in_range(eng_pace_tokens(&p, &with, begin + n, 4096), 0, n / 50); /* hardly any */
    }
    struct eng_load slow = load_of(64, 100000, 0, 0); /* the decodes alone take longer */
    for (int i = 0; i < 20; i++) {
        struct eng_load with = slow;
        eng_load_add_prompt(&with, 0, 64);
        eng_pace_learn(&p, &with, linear_s(&with));
    }
    assert_in_range(eng_pace_tokens(&p, &slow, 0, 4096), 0, 63);
}

/* From one step to the next the tokens at most double, and 128, while nothing took any time. */
static void test_goes_no_further_than_it_has_seen(void **state)
{
    (void)state;
    struct eng_pace p;
    eng_pace_init(&p, 1e9);
    for (int32_t want = 128; want <= 4096; want = 2 * want + 128) {
        struct eng_load load = load_of(4, 100, 0, 0);
        p.last.prompt_tokens = 0; /* what follows in proportion is not asked for here */
        assert_int_equal(eng_pace_tokens(&p, &load, 0, 100000), want);
        assert_int_equal(eng_pace_tokens(&p, &load, 0, 100), 100);
        eng_load_add_prompt(&load, 0, want);
        assert_int_equal(eng_pace_tokens(&p, &load, 0, 100000), 0); /* all prompts together */
        eng_pace_learn(&p, &load, linear_s(&load));
    }
}

/* A filter that is wrong either way, and steps that tell. */
static void test_measured_steps_bound_the_filter(void **state)
{
    (void)state;
    struct eng_pace p;
    struct eng_load load = load_of(8, 100, 0, 0), step = load;
    eng_load_add_prompt(&step, 0, 400);
    eng_pace_init(&p, TARGET);
    p.last = step;
    p.prompt_tokens_seen = 400;
    p.last_s = TARGET / 2;
    p.coefficient[1] = 1000;
    int32_t n = eng_pace_tokens(&p, &load, 0, 4096);
    assert_in_range(n, 755, 760); /* 400 in half the time */
    p.last_s = TARGET * 2;
    assert_in_range(eng_pace_tokens(&p, &load, 0, 4096), 189, 190);
    p.last_s = TARGET * 1.25;
    assert_int_equal(eng_pace_tokens(&p, &load, 0, 4096), 200); /* half of 400 at least */
    p.coefficient[1] = 0;
    assert_in_range(eng_pace_tokens(&p, &load, 0, 4096), 303, 304); /* and in proportion at most */
    p.last_s = TARGET / 2;
    assert_int_equal(eng_pace_tokens(&p, &load, 0, 4096), 928); /* as far as it may go */
    /* Contexts have grown meanwhile, by what takes the target. */
    p.coefficient[2] = 65536.0 / 80000;
    struct eng_load later = load_of(8, 10100, 0, 0);
    assert_in_range(eng_pace_tokens(&p, &later, 0, 4096), 0, 260);
}

static void test_what_teaches_nothing(void **state)
{
    (void)state;
    struct eng_pace p, before;
    eng_pace_init(&p, TARGET);
    learn_all_sorts(&p);
    before = p;
    struct eng_load prompts = load_of(0, 0, 0, 2048), mixed = load_of(2, 100, 0, 64);
    eng_pace_learn(&p, &prompts, 0.5);
    eng_pace_learn(&p, &mixed, 0);
    eng_pace_learn(&p, &mixed, NAN);
    assert_memory_equal(&p, &before, sizeof p);
}

/* Days of the same decodes, and then a prompt: nothing has run away. */
static void test_long_rest(void **state)
{
    (void)state;
    struct eng_pace p;
    struct eng_load decodes = load_of(32, 1000, 0, 0);
    eng_pace_init(&p, TARGET);
    learn_all_sorts(&p);
    for (int i = 0; i < 3000000; i++) eng_pace_learn(&p, &decodes, linear_s(&decodes));
    for (int i = 0; i < ENG_PACE_COEFFICIENTS; i++) {
        assert_true(p.coefficient[i] >= 0 && p.coefficient[i] < 10);
        assert_true(p.covariance[i][i] > 0 && p.covariance[i][i] <= 101);
        for (int j = 0; j < ENG_PACE_COEFFICIENTS; j++)
            assert_true(fabs(p.covariance[i][j] - p.covariance[j][i]) < 1e-6);
    }
    assert_true(fabs(eng_pace_predict(&p, &decodes) - linear_s(&decodes)) < 1e-5);
    struct eng_load load = decodes;
    for (int i = 0; i < 60; i++) { /* and the machine is half as fast as it was */
        int32_t n = eng_pace_tokens(&p, &decodes, 0, 1024);
        load = decodes;
        eng_load_add_prompt(&load, 0, n > 64 ? n : 64);
        eng_pace_learn(&p, &load, 2 * linear_s(&load));
    }
    assert_true(load.prompt_tokens > 64);
    assert_true(2 * linear_s(&load) < TARGET && 2 * linear_s(&load) > 0.85 * TARGET);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loads),
        cmocka_unit_test(test_learns_a_linear_machine),
        cmocka_unit_test(test_tokens),
        cmocka_unit_test(test_goes_no_further_than_it_has_seen),
        cmocka_unit_test(test_measured_steps_bound_the_filter),
        cmocka_unit_test(test_what_teaches_nothing),
        cmocka_unit_test(test_long_rest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
