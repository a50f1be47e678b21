/* The arithmetic of a step's profile (tests/trace_table.h), on logs made by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#ifndef DAKD_TRACE
#define DAKD_TRACE /* for the log's layout; nothing is traced here */
#endif
#include "tests/trace_table.h"

#define NORM KN_CU_TRACE_NORM
#define GEMM KN_CU_TRACE_GEMM

/* Times of a kernel whose CTA c begins and ends `skew` * c later than the first. */
struct made {
    enum kn_cu_trace_kind kind;
    uint32_t ctas, warps, start, waited, end, skew;
};

static void put(struct kn_cu_trace_log *log, const struct made *m)
{
    uint32_t i = log->used[0];
    log->grid[i][0] = m->ctas;
    log->grid[i][1] = m->warps;
    for (uint32_t c = 0; c < m->ctas; c++)
        for (uint32_t w = 0; w < m->warps; w++) {
            uint32_t *used = &log->used[c * KN_CU_TRACE_WARPS + w];
            log->stamp[(*used)++][c][w] = (struct kn_cu_trace_stamp){
                .start = m->start + m->skew * c,
                .waited = w == m->warps - 1 && m->waited ? m->waited + m->skew * c : 0,
                .end = m->end + m->skew * c - w, /* the first warp ends last */
                .what = (uint32_t)m->kind << 28};
        }
}

static int setup(void **state)
{
    *state = calloc(1, sizeof(struct kn_cu_trace_log));
    return !*state;
}

static int teardown(void **state)
{
    free(*state);
    return 0;
}

/* Across the wrap of the clock's low half, too. */
static void test_step(void **state)
{
    static const struct made step[] = {
        {NORM, 1, 4, UINT32_MAX - 50, UINT32_MAX - 40, 949, 0},
        {GEMM, 5, 3, 149, 1049, 5049, 10},    /* began while the first ran */
        {NORM, 2, 32, 4949, 5149, 6049, 100}, /* its second CTA is last */
        {GEMM, 3, 2, 5949, 0, 8049, 0},       /* waited for nothing */
    };
    static struct trace_kernel k[KN_CU_TRACE_KERNELS];
    struct kn_cu_trace_log *log = *state;
    for (size_t i = 0; i < ARRAY_COUNT(step); i++) put(log, &step[i]);
    assert_int_equal(trace_read_step(log, k), 4);
    double zero = k[0].start;
    assert_true(k[0].waited - zero == 10 && k[0].end - zero == 1000);
    assert_int_equal(k[1].ctas, 5);
    assert_true(k[1].start - zero == 220);   /* the third of five CTAs */
    assert_true(k[1].waited - zero == 1100); /* the first */
    assert_true(k[1].middle - zero == 5120 && k[1].end - zero == 5140);
    assert_true(k[2].waited - zero == 5200 && k[2].end - zero == 6200);
    assert_true(k[3].waited == k[2].end); /* inputs were there when the one before had ended */
    assert_true(k[3].end - zero == 8100);
    assert_int_equal(k[3].what >> 28, GEMM);
}

/* A log that breaks the invariant is refused, not misread. */
static void test_contradiction(void **state)
{
    static struct trace_kernel k[KN_CU_TRACE_KERNELS];
    struct kn_cu_trace_log *log = *state;
    const struct made a = {NORM, 2, 2, 100, 110, 200, 0}, b = {GEMM, 2, 2, 150, 210, 300, 0};
    put(log, &a);
    put(log, &b);
    assert_int_equal(trace_read_step(log, k), 2);
    log->stamp[1][1][0].what = (uint32_t)NORM << 28;
    assert_int_equal(trace_read_step(log, k), -1);
    log->stamp[1][1][0].what = (uint32_t)GEMM << 28;
    log->used[1 * KN_CU_TRACE_WARPS] = 1; /* a CTA that left no second entry */
    assert_int_equal(trace_read_step(log, k), -1);
    log->used[1 * KN_CU_TRACE_WARPS] = 2;
    assert_int_equal(trace_read_step(log, k), 2);
    log->used[0] = KN_CU_TRACE_KERNELS + 1;
    assert_int_equal(trace_read_step(log, k), -1);
}

/* A warp that began late took its place after the same warp of the next kernel. */
static void test_swapped(void **state)
{
    static struct trace_kernel k[KN_CU_TRACE_KERNELS];
    struct kn_cu_trace_log *log = *state;
    const struct made a = {NORM, 2, 2, 100, 110, 200, 0}, b = {GEMM, 2, 2, 150, 210, 300, 0},
                      c = {NORM, 2, 2, 250, 310, 400, 0};
    put(log, &a);
    put(log, &b);
    put(log, &c);
    struct kn_cu_trace_stamp first = log->stamp[0][1][1];
    log->stamp[0][1][1] = log->stamp[1][1][1];
    log->stamp[1][1][1] = first;
    assert_int_equal(trace_read_step(log, k), 3);
    assert_true(k[0].end - k[0].start == 100 && k[1].end - k[0].start == 200);
}

/* The same of the warp that says in which order kernels ran. */
static void test_first_swapped(void **state)
{
    static struct trace_kernel k[KN_CU_TRACE_KERNELS];
    struct kn_cu_trace_log *log = *state;
    const struct made a = {NORM, 1, 2, 100, 110, 200, 0}, b = {GEMM, 2, 2, 150, 210, 300, 0};
    put(log, &a);
    put(log, &b);
    for (uint32_t i = 0; i < 2; i++) {
        log->stamp[i][0][0].what = (uint32_t)(i == 0 ? GEMM : NORM) << 28;
        log->stamp[i][0][0].end = i == 0 ? 300 : 200;
        log->grid[i][0] = i == 0 ? 2 : 1;
    }
    assert_int_equal(trace_read_step(log, k), 2);
    assert_int_equal(k[0].what >> 28, NORM);
    assert_int_equal(k[1].ctas, 2);
    assert_true(k[1].end - k[0].end == 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_step, setup, teardown),
        cmocka_unit_test_setup_teardown(test_contradiction, setup, teardown),
        cmocka_unit_test_setup_teardown(test_swapped, setup, teardown),
        cmocka_unit_test_setup_teardown(test_first_swapped, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
