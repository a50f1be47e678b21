/*
 * unit_engine_kv.c - the engine with its KV pages in two tiers, over a small real model: the tokens
 * are the same, bit for bit, whether all pages are local, half of them or hardly any; nothing is
 * computed again; every page is free at the end; and the steps did read what they were meant to
 * read from the remote tier.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "tests/kv_rig.h"

enum { COUNT = 12, LEN = 256 };

static const struct kv_load load = {.model = "tests/fixtures/models/llama-gqa",
                                    .count = COUNT,
                                    .len_max = LEN,
                                    .prompt_min = 90,
                                    .prompt_max = 150,
                                    .answer_min = 70,
                                    .answer_max = 106};

static void compare(struct kn *kn, const int32_t *expected, const struct kv_way *way, double least,
                    double most)
{
    static int32_t tokens[COUNT * LEN];
    struct eng_stats stats;
    memset(tokens, 0, sizeof tokens);
    kv_run(kn, &load, way, tokens, &stats);
    const double share = kv_far_share(&stats);
    printf("%d near, %d far, steps of %d%s: %.2f of KV read was far, %llu pages out, %llu back, "
           "%llu of %llu steps waited\n",
           way->near, way->far, way->budget, way->ahead ? " ahead" : "", share,
           (unsigned long long)stats.sched.pages_out_count,
           (unsigned long long)stats.sched.pages_back_count,
           (unsigned long long)stats.sched.move_wait_count, (unsigned long long)stats.step_count);
    for (int32_t i = 0; i < COUNT; i++)
        assert_memory_equal(tokens + i * LEN, expected + i * LEN,
                            sizeof(int32_t) * (size_t)(kv_prompt(&load, i) + kv_answer(&load, i)));
    assert_false(stats.failed);
    assert_int_equal(stats.recomputed_tokens, 0);
    assert_int_equal(stats.sched.preempt_count, 0);
    assert_int_equal(stats.sched.pages_used[0] + stats.sched.pages_used[1],
                     2 * stats.sched.pages_moving);
    if (share < least || share > most) fail_msg("%.2f of %.2f to %.2f", share, least, most);
}

static void tokens_are_the_same_wherever_pages_lie(void **state)
{
    (void)state;
    static int32_t expected[COUNT * LEN];
    struct eng_stats stats;
    struct kn *kn;
    char err[ERR_CAP];
    assert_int_equal(kn_open_cpu(2, &kn, err), ST_OK);
    const struct kv_way local = {.near = 100, .seqs = COUNT, .budget = 128};
    kv_run(kn, &load, &local, expected, &stats);
    assert_true(stats.kv_read_bytes[0] == 0 && stats.sched.pages_out_count == 0);
    for (int ahead = 0; ahead < 2; ahead++) {
        const struct kv_way ways[] = {{100, 100, COUNT, 128, ahead, KN_MEM_HOST, false},
                                      {24, 100, COUNT, 128, ahead, KN_MEM_HOST, false},
                                      {24, 100, COUNT, 16, ahead, KN_MEM_HOST, false},
                                      {COUNT + 2, 100, COUNT, 128, ahead, KN_MEM_HOST, false},
                                      {COUNT, 100, COUNT, 40, ahead, KN_MEM_HOST, false},
                                      {1, 100, COUNT, 128, ahead, KN_MEM_HOST, false},
                                      {100, 100, COUNT, 128, ahead, KN_MEM_HOST, true}};
        static const double least[] = {0, 0.3, 0.1, 0.6, 0.6, 0.7, 0.1};
        static const double most[] = {0, 0.7, 0.7, 1, 1, 1, 0.4};
        for (size_t i = 0; i < ARRAY_COUNT(ways); i++)
            compare(kn, expected, &ways[i], least[i], most[i]);
    }
    kn_close(kn);
}

/* Where no tier has room sequences are computed again, and give the same. */
static void too_few_pages_in_all_tiers(void **state)
{
    (void)state;
    static int32_t expected[COUNT * LEN], tokens[COUNT * LEN];
    struct eng_stats stats;
    struct kn *kn;
    char err[ERR_CAP];
    assert_int_equal(kn_open_cpu(2, &kn, err), ST_OK);
    const struct kv_way local = {.near = 100, .seqs = COUNT, .budget = 128};
    const struct kv_way few = {.near = 4, .far = 3, .seqs = COUNT, .budget = 128};
    kv_run(kn, &load, &local, expected, &stats);
    kv_run(kn, &load, &few, tokens, &stats);
    assert_memory_equal(tokens, expected, sizeof tokens);
    assert_true(stats.recomputed_tokens > 0 && stats.sched.pages_out_count > 0);
    kn_close(kn);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokens_are_the_same_wherever_pages_lie),
        cmocka_unit_test(too_few_pages_in_all_tiers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
