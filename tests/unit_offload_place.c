/*
 * unit_offload_place.c - division of tiles among tiers: sums, proportions, and the bound on what is
 * left over, for random weights and for many equal ones.
 */
#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "config/check.h"
#include "offload/place.h"

static uint64_t next(uint64_t *state)
{
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return *state >> 33;
}

struct rig {
    struct kn *kn;
    struct off_tiers *tiers;
};

static void rig_open(struct rig *r, const char *remotes)
{
    struct off_remote remote;
    char err[ERR_CAP] = "";
    assert_int_equal(kn_open_cpu(1, &r->kn, err), ST_OK);
    assert_int_equal(off_remote_parse(remotes, &remote, err), ST_OK);
    assert_int_equal(off_tiers_open(r->kn, 1ull << 40, &remote, &r->tiers, err), ST_OK);
}

static void rig_close(struct rig *r)
{
    off_tiers_close(r->tiers);
    kn_close(r->kn);
}

/* Places 200 random weights and checks every invariant after each. */
static void check_random(const char *remotes, double share, const double *fractions, uint64_t seed)
{
    struct rig r;
    struct off_placer p;
    char err[ERR_CAP] = "";
    double given[KN_TIER_MAX] = {0}, total = 0, tile_max = 0;
    rig_open(&r, remotes);
    assert_int_equal(off_placer_init(&p, share, r.tiers, err), ST_OK);
    for (int w = 0; w < 200; w++) {
        int32_t tiles = (int32_t)(next(&seed) % (w % 10 ? 300 : 4)), counts[KN_TIER_MAX], sum = 0;
        uint64_t bytes = 16384 * (1 + next(&seed) % 224);
        off_place(&p, tiles, bytes, counts);
        if (tiles) tile_max = fmax(tile_max, (double)bytes);
        for (int t = 0; t < KN_TIER_MAX; t++) {
            assert_true(counts[t] >= 0);
            if (fractions[t] == 0) assert_int_equal(counts[t], 0);
            sum += counts[t];
            given[t] += counts[t] * (double)bytes;
        }
        assert_int_equal(sum, tiles);
        total += tiles * (double)bytes;
        for (int t = 0; t < off_tiers_count(r.tiers); t++) {
            double off = fractions[t] * total - given[t];
            assert_true(off > -tile_max * 1.001 - 1);
            assert_true(off < tile_max * (off_tiers_count(r.tiers) - 1) * 1.001 + 1);
        }
    }
    rig_close(&r);
}

static void random_weights(void **state)
{
    const char *text = getenv("DAKD_TEST_SEED");
    uint64_t seed = text ? strtoull(text, NULL, 0) : 20240607;
    (void)state;
    print_message("seed %" PRIu64 "\n", seed);
    for (uint64_t i = 0; i < 20; i++) {
        double x = (double)(next(&seed) % 1001) / 1000;
        check_random("host:10GiB", x, (double[KN_TIER_MAX]){1 - x, x}, seed);
        check_random("host:30GiB,peer:1:10GiB", x, (double[KN_TIER_MAX]){1 - x, x * 0.75, x * 0.25},
                     seed);
        check_random("host:10GiB,peer:1:10GiB,peer:2:20GiB", x,
                     (double[KN_TIER_MAX]){1 - x, x * 0.25, x * 0.25, x * 0.5}, seed);
    }
    check_random("", 0, (double[KN_TIER_MAX]){1}, seed);
    check_random("host:1GiB,peer:1:1GiB", 0, (double[KN_TIER_MAX]){1}, seed);
    check_random("host:1GiB,peer:1:1GiB", 1, (double[KN_TIER_MAX]){0, 0.5, 0.5}, seed);
}

/* A share smaller than a tile of any one weight is still met in the total. */
static void small_shares_add_up(void **state)
{
    struct rig r;
    struct off_placer p;
    char err[ERR_CAP];
    int64_t remote = 0;
    (void)state;
    rig_open(&r, "host:100GiB");
    assert_int_equal(off_placer_init(&p, 0.001, r.tiers, err), ST_OK);
    for (int w = 0; w < 1000; w++) {
        int32_t counts[KN_TIER_MAX];
        off_place(&p, 64, 1 << 19, counts);
        assert_in_range(counts[1], 0, 1);
        remote += counts[1];
    }
    assert_int_equal(remote, 64);
    rig_close(&r);
}

static void refused(void **state)
{
    static const double shares[] = {-0.01, 1.01, 7, -INFINITY, INFINITY, NAN};
    struct rig r;
    struct off_placer p;
    (void)state;
    rig_open(&r, "host:1GiB");
    for (size_t i = 0; i < ARRAY_COUNT(shares); i++) {
        char err[ERR_CAP] = "";
        assert_int_equal(off_placer_init(&p, shares[i], r.tiers, err), ST_INVALID);
        assert_true(err[0]);
    }
    rig_close(&r);
    rig_open(&r, "");
    char err[ERR_CAP] = "";
    assert_int_equal(off_placer_init(&p, 0.1, r.tiers, err), ST_INVALID);
    assert_true(err[0]);
    rig_close(&r);
    rig_open(&r, "host:1B"); /* less than one aligned unit */
    assert_int_equal(off_placer_init(&p, 0.1, r.tiers, err), ST_INVALID);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_weights),
        cmocka_unit_test(small_shares_add_up),
        cmocka_unit_test(refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
