/* From moments to figures: hand-made records whose results are known. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "config/check.h"
#include "server/bench_stats.h"

#define MS 1000000ull

static void close_to(double got, double want)
{
    if (fabs(got - want) > 1e-9 * fabs(want)) fail_msg("%.12g is not %.12g", got, want);
}

static void test_summaries(void **state)
{
    (void)state;
    struct srv_bench_summary s;
    double one[] = {3}, four[] = {4, 1, 3, 2}, many[101];
    srv_bench_summarise(one, 1, &s);
    assert_true(s.mean == 3 && s.median == 3 && s.p99 == 3);
    srv_bench_summarise(four, 4, &s);
    close_to(s.mean, 2.5);
    close_to(s.median, 2.5);
    close_to(s.p99, 3.97);
    for (int i = 0; i <= 100; i++) many[i] = (i * 37) % 101;
    srv_bench_summarise(many, 101, &s);
    close_to(s.mean, 50);
    close_to(s.median, 50);
    close_to(s.p99, 99);
}

/* Two sequences of 12 tokens; the second begins two steps after the first.  A step takes 10 ms, but
 * 30 while there is a prompt in it, and step 7 takes 40. */
static void test_staggered(void **state)
{
    (void)state;
    enum { M = 12 };
    struct srv_bench_token tokens[2 * M];
    const uint64_t submit[] = {5 * MS, 6 * MS};
    uint64_t end[20]; /* of each step */
    for (int i = 0; i < 20; i++)
        end[i] = (i ? end[i - 1] : 5 * MS) + (i <= 2 ? 30 : i == 7 ? 40 : 10) * MS;
    for (uint64_t i = 0; i < M; i++) {
        tokens[i] = (struct srv_bench_token){100 + i, end[i]};
        /* The second is polled a little later. */
        tokens[M + i] = (struct srv_bench_token){100 + i + 2, end[i + 2] + 1000};
    }
    const struct srv_bench_record r = {.batch = 2,
                                       .input_len = 50,
                                       .output_len = M,
                                       .steady_min = SRV_BENCH_STEADY_MIN,
                                       .submit_ns = submit,
                                       .tokens = tokens};
    struct srv_bench_stats s;
    char err[ERR_CAP];
    assert_int_equal(srv_bench_stats(&r, &s, err), ST_OK);
    /* Steps 103 to 111: after the second's first token, up to the first's last. */
    assert_int_equal(s.steady_step_count, 9);
    assert_int_equal(s.steady_begin_step, 102);
    close_to(s.steady_tpot_s, 0.010);
    close_to(s.decode_tokens_per_s, 2 * 9 / 0.120);
    /* Contexts of the first run from 53 to 61, of the second from 51 to 59. */
    close_to(s.steady_context_tokens, 56);
    close_to(s.ttft_s.mean, (0.030 + 0.089001) / 2);
    close_to(s.prefill_tokens_per_s, 100 / 0.090001);
    close_to(s.tpot_s.median, (180. + 140.) / 11 / 2 / 1000);
    close_to(s.itl_s.median, 0.010);
    close_to(s.itl_s.mean, 0.320 / 22);
    close_to(s.duration_s, 0.230001);
}

/* All in step: every decode step is steady. */
static void test_together(void **state)
{
    (void)state;
    struct srv_bench_token tokens[3 * 9];
    const uint64_t submit[3] = {0};
    for (uint64_t s = 0; s < 3; s++)
        for (uint64_t i = 0; i < 9; i++)
            tokens[s * 9 + i] = (struct srv_bench_token){i, (i + 1) * MS};
    struct srv_bench_record r = {.batch = 3,
                                 .input_len = 1,
                                 .output_len = 9,
                                 .steady_min = SRV_BENCH_STEADY_MIN,
                                 .submit_ns = submit,
                                 .tokens = tokens};
    struct srv_bench_stats s;
    char err[ERR_CAP] = "";
    assert_int_equal(srv_bench_stats(&r, &s, err), ST_OK);
    assert_int_equal(s.steady_step_count, 8);
    close_to(s.steady_tpot_s, 0.001);
    close_to(s.steady_context_tokens, 5.5); /* 2 to 9 */
    close_to(s.decode_tokens_per_s, 3000);
    /* One sequence three steps late: five steady steps, and the sentence says what would do. */
    for (uint64_t i = 0; i < 9; i++) tokens[18 + i].step += 3;
    assert_int_equal(srv_bench_stats(&r, &s, err), ST_LIMIT);
    assert_non_null(strstr(err, "in 5 steps only"));
    assert_non_null(strstr(err, "raise --output-len to 12"));
    /* So late that they never met. */
    for (uint64_t i = 0; i < 9; i++) tokens[18 + i].step += 10;
    assert_int_equal(srv_bench_stats(&r, &s, err), ST_LIMIT);
    assert_non_null(strstr(err, "in 0 steps only"));
    assert_non_null(strstr(err, "raise --output-len to 22"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_summaries),
        cmocka_unit_test(test_staggered),
        cmocka_unit_test(test_together),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
