/* What the host has, and what the CPU backend says of links it has not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>
#include <unistd.h>

#include "kernels/kernels.h"

static void test_memory(void **state)
{
    (void)state;
    char err[ERR_CAP] = "";
    struct kn *kn;
    uint64_t total, available, local, local_available;
    if (kn_host_memory(&total, &available, err)) fail_msg("%s", err);
    uint64_t physical = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    assert_true(total > 0 && total <= physical);
    assert_true(available > 0 && available <= total);
    /* The CPU's local memory is the host's. */
    assert_int_equal(kn_open_cpu(1, &kn, err), ST_OK);
    assert_int_equal(kn_memory(kn, &local, &local_available, err), ST_OK);
    assert_int_equal(local, total);
    kn_close(kn);
}

static void test_no_links(void **state)
{
    (void)state;
    char err[ERR_CAP] = "";
    struct kn *kn;
    struct kn_link_rates rates = {.local_bytes_per_s = 1};
    const struct kn_link_args a = {.cluster = 1, .ns = 1};
    assert_int_equal(kn_open_cpu(1, &kn, err), ST_OK);
    assert_int_equal(kn_measure_link(kn, &a, &rates, err), ST_UNSUPPORTED);
    assert_non_null(strstr(err, "there is no link to measure"));
    assert_true(rates.local_bytes_per_s == 0);
    assert_int_equal(kn_sm_count(kn), 0);
    assert_string_equal(kn_identity(kn), kn_name(kn));
    kn_close(kn);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_no_links),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
