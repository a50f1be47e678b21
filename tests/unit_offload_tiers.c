/* unit_offload_tiers.c - reading --remote, and the arenas. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "config/check.h"
#include "offload/tiers.h"

#define MIB (1ull << 20)

static void remote_accepted(void **state)
{
    struct off_remote r;
    char err[ERR_CAP] = "";
    (void)state;
    assert_int_equal(off_remote_parse("", &r, err), ST_OK);
    assert_int_equal(r.count, 0);
    assert_int_equal(off_remote_parse("host:64GiB,peer:1:40GiB,peer:12:3TB", &r, err), ST_OK);
    assert_int_equal(r.count, 3);
    assert_int_equal(r.spec[0].mem, KN_MEM_HOST);
    assert_int_equal(r.spec[0].bytes, 64ull << 30);
    assert_int_equal(r.spec[1].mem, KN_MEM_PEER);
    assert_int_equal(r.spec[1].device, 1);
    assert_int_equal(r.spec[1].bytes, 40ull << 30);
    assert_int_equal(r.spec[2].device, 12);
    assert_int_equal(r.spec[2].bytes, 3000000000000ull);
}

static void remote_units(void **state)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } cases[] = {
        {"host:5000B", 5000},        {"host:3KiB", 3072},
        {"host:3MiB", 3ull << 20},   {"host:2TiB", 2ull << 40},
        {"host:7KB", 7000},          {"host:7MB", 7000000},
        {"host:7GB", 7000000000},    {"host:1000000000000000000B", 1000000000000000000},
        {"host:1.5GiB", 3ull << 29}, {"host:64gib", 64ull << 30},
    };
    struct off_remote r;
    char err[ERR_CAP];
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        assert_int_equal(off_remote_parse(cases[i].text, &r, err), ST_OK);
        assert_int_equal(r.spec[0].bytes, cases[i].bytes);
    }
}

static void remote_refused(void **state)
{
    static const char *const cases[] = {
        "host",
        "host:",
        "host:64",
        "host:GiB",
        "host:-1GiB",
        "host:1.5B",
        "host:64GiB ",
        " host:64GiB",
        "host:0GiB",
        "host:64GiB,",
        ",host:64GiB",
        "host:1GiB,,peer:1:1GiB",
        "peer:1GiB",
        "peer::1GiB",
        "peer:x:1GiB",
        "peer:-1:1GiB",
        "peer:256:1GiB",
        "peer:1:",
        "disk:1GiB",
        "HOST:1GiB",
        "host:99999999999999999999B",
        "host:9223372036854775808B",
        "host:9007199254740993TiB",
        "host:1GiB,host:2GiB",
        "peer:1:1GiB,peer:1:2GiB",
        "host:1GiB,peer:1:1GiB,peer:2:1GiB,peer:3:1GiB",
        "host:1GiB;peer:1:1GiB",
        "host:1GiB\n",
        "host:000000000000000000000000000000000000000000000000000000000000000001GiB",
    };
    struct off_remote r;
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        char err[ERR_CAP] = "";
        r.count = 7;
        if (off_remote_parse(cases[i], &r, err) != ST_INVALID) fail_msg("'%s' passed", cases[i]);
        assert_non_null(strstr(err, "--remote"));
        assert_int_equal(r.count, 0);
    }
}

static void arenas(void **state)
{
    struct kn *kn;
    struct off_remote remote;
    struct off_tiers *tiers;
    char err[ERR_CAP] = "";
    unsigned char *a, *b, *c;
    (void)state;
    assert_int_equal(kn_open_cpu(1, &kn, err), ST_OK);
    assert_int_equal(off_remote_parse("host:1MiB,peer:3:70000B", &remote, err), ST_OK);
    assert_int_equal(off_tiers_open(kn, 2 * MIB, &remote, &tiers, err), ST_OK);
    assert_int_equal(off_tiers_count(tiers), 3);
    assert_string_equal(off_tier_name(tiers, 0), "hbm");
    assert_string_equal(off_tier_name(tiers, 1), "host");
    assert_string_equal(off_tier_name(tiers, 2), "peer3");
    assert_int_equal(off_tier_capacity(tiers, 0), 2 * MIB);
    assert_int_equal(off_tier_capacity(tiers, 2), 70000 / KN_ALIGN * KN_ALIGN);

    assert_int_equal(off_tier_alloc(tiers, 0, 5000, "a", (void **)&a, err), ST_OK);
    assert_int_equal(off_tier_alloc(tiers, 0, 1, "b", (void **)&b, err), ST_OK);
    assert_int_equal((uintptr_t)a % KN_ALIGN, 0);
    assert_int_equal((uintptr_t)b % KN_ALIGN, 0);
    assert_true(b >= a + 5000);
    for (int i = 0; i < 5000; i++) assert_int_equal(a[i], 0);
    memset(a, 0xAA, 5000);
    assert_int_equal(b[0], 0);
    assert_int_equal(off_tier_used(tiers, 0), 5 * KN_ALIGN + KN_ALIGN);
    assert_int_equal(off_tier_used(tiers, 1), 0);

    /* To the last byte, and not one further. */
    uint64_t left = off_tier_capacity(tiers, 0) - off_tier_used(tiers, 0);
    assert_int_equal(off_tier_alloc(tiers, 0, left + 1, "the head", (void **)&c, err), ST_LIMIT);
    assert_null(c);
    assert_non_null(strstr(err, "the head"));
    assert_non_null(strstr(err, "hbm"));
    assert_int_equal(off_tier_alloc(tiers, 0, UINT64_MAX, "x", (void **)&c, err), ST_LIMIT);
    assert_int_equal(off_tier_alloc(tiers, 0, left, "the rest", (void **)&c, err), ST_OK);
    c[left - 1] = 1;
    assert_int_equal(off_tier_alloc(tiers, 0, 1, "x", (void **)&c, err), ST_LIMIT);
    assert_int_equal(off_tier_alloc(tiers, 1, 2 * MIB, "x", (void **)&c, err), ST_LIMIT);
    assert_non_null(strstr(err, "--remote"));
    assert_int_equal(off_tier_alloc(tiers, 1, MIB, "x", (void **)&c, err), ST_OK);
    off_tiers_close(tiers);

    assert_int_equal(off_tiers_open(kn, UINT64_MAX, NULL, &tiers, err), ST_INVALID);
    assert_null(tiers);
    off_tiers_close(NULL);
    kn_close(kn);
}

static void pools_lie_beside_the_arenas(void **state)
{
    (void)state;
    char err[ERR_CAP] = "";
    struct off_remote remote;
    struct off_tiers *tiers;
    struct kn *kn;
    int tier = 0;
    void *pool, *p;
    assert_int_equal(off_remote_parse("peer:1:1MiB,host:2MiB", &remote, err), ST_OK);
    assert_int_equal(off_remote_add_pool("host:3MiB", "--x", &remote, &tier, err), ST_OK);
    assert_int_equal(tier, 2);
    assert_int_equal(remote.count, 2);
    assert_int_equal(off_remote_add_pool("peer:2:5MiB", "--x", &remote, &tier, err), ST_OK);
    assert_int_equal(tier, 3);
    assert_int_equal(remote.spec[2].bytes, 0);
    assert_int_equal(off_remote_add_pool("peer:3:5MiB", "--x", &remote, &tier, err), ST_INVALID);
    assert_non_null(strstr(err, "--x: 'peer:3:5MiB' is a tier beside the 3"));
    assert_int_equal(off_remote_add_pool("host:1MiB,", "--x", &remote, &tier, err), ST_INVALID);
    assert_int_equal(off_remote_add_pool("", "--x", &remote, &tier, err), ST_INVALID);
    assert_int_equal(off_remote_add_pool("host:0MiB", "--x", &remote, &tier, err), ST_INVALID);
    assert_non_null(strstr(err, "--x: the size"));

    assert_int_equal(kn_open_cpu(1, &kn, err), ST_OK);
    assert_int_equal(off_tiers_open(kn, 1 << 20, &remote, &tiers, err), ST_OK);
    assert_int_equal(off_tier_pool_bytes(tiers, 0), 0);
    assert_int_equal(off_tier_pool_bytes(tiers, 1), 0);
    assert_int_equal(off_tier_pool_bytes(tiers, 2), 3 << 20);
    assert_int_equal(off_tier_pool(tiers, 2, &pool, err), ST_OK);
    memset(pool, 1, 3 << 20);
    assert_int_equal(off_tier_used(tiers, 2), 0);
    assert_int_equal(off_tier_alloc(tiers, 2, 2 << 20, "all", &p, err), ST_OK);
    assert_int_equal(off_tier_pool(tiers, 3, &pool, err), ST_OK);
    assert_int_equal(off_tier_capacity(tiers, 3), 0);
    assert_int_equal(off_tier_alloc(tiers, 3, 1, "one", &p, err), ST_LIMIT);
    off_tiers_close(tiers);
    kn_close(kn);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(remote_accepted),
        cmocka_unit_test(remote_units),
        cmocka_unit_test(remote_refused),
        cmocka_unit_test(arenas),
        cmocka_unit_test(pools_lie_beside_the_arenas),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
