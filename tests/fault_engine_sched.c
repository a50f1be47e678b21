/*
 * fault_engine_sched.c - opening a scheduler, with pages in one tier and in several, with the N-th
 * allocation failing, for every N: each ends in ST_NOMEM, and nothing stays allocated.
 *
 * The test brings its own malloc in front of the C library's, so it does not run under the address
 * and thread sanitizers, which bring theirs.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "engine/sched.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)

int main(void)
{
    print_message("not run under a sanitizer that has its own malloc\n");
    return 77; /* skipped, to the test runner */
}

#else

#include "tests/failing_malloc.h"

/* How many allocations it takes. */
static long every_failure(const struct eng_sched_config *config)
{
    for (long n = 1;; n++) {
        struct eng_sched *s = NULL;
        const int64_t before = atomic_load(&control->live);
        atomic_store(&control->failures, 0);
        atomic_store(&control->countdown, n);
        const enum status st = eng_sched_open(config, &s);
        atomic_store(&control->countdown, 0);
        const int64_t failures = atomic_load(&control->failures);
        if (failures) {
            assert_int_equal(st, ST_NOMEM);
            assert_null(s);
        } else {
            assert_int_equal(st, ST_OK);
            eng_sched_close(s);
        }
        assert_int_equal(atomic_load(&control->live), before);
        if (!failures) return n - 1;
    }
}

static void every_allocation(void **state)
{
    (void)state;
    struct eng_sched_config config = {.seqs_max = 4,
                                      .tokens_step_max = 64,
                                      .page_count = {8},
                                      .residency = {.page_bytes = 1 << 20,
                                                    .local_bytes_per_s = 4e12,
                                                    .link_bytes_per_s = 4e11,
                                                    .copy_bytes_per_s = 3e11}};
    const long one = every_failure(&config);
    assert_true(one >= 6);
    config.page_count[2] = 8;
    assert_int_equal(every_failure(&config), one + 2);
    config.prefix_cache = true;
    assert_int_equal(every_failure(&config), one + 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_allocation)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#endif
