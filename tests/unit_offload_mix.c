/*
 * unit_offload_mix.c - the share of a link that the copy engine gets: this model's tables of an
 * H200, and what must hold of any machine, on random ones against brute force; and which tiles.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "config/check.h"
#include "offload/mix.h"
#include "tests/test_random.h"

#define MACHINES 10000
#define NOISE 1e-12 /* of sums in another order */

static void test_names(void **state)
{
    (void)state;
    enum off_mode mode;
    for (int m = 0; m < OFF_MODE_COUNT; m++) {
        assert_true(off_mode_parse(off_mode_name((enum off_mode)m), &mode));
        assert_int_equal(mode, m);
    }
    assert_false(off_mode_parse("", &mode));
    assert_false(off_mode_parse("autom", &mode));
}

/* --- an H200 ---------------------------------------------------------------------------------- */

static const struct off_mix_tier pcie = {.read_bytes_per_s = 51.5e9,
                                         .copy_bytes_per_s = 55.5e9,
                                         .read = {51.4e9, 0, 4.69e12},
                                         .both = {27e9, 26e9, 4.5e12},
                                         .copy = {0, 55e9, 4.39e12},
                                         .share_max = 1};
static const struct off_mix_tier nvlink = {.read_bytes_per_s = 376e9,
                                           .copy_bytes_per_s = 397e9,
                                           .read = {373e9, 0, 4.7e12},
                                           .both = {253e9, 150e9, 4.5e12},
                                           .copy = {0, 256e9, 4.22e12},
                                           .share_max = 1};

/* 15 GB of weights, this share of them remote. */
static struct off_mix model_of(const struct off_mix_tier *t, double share)
{
    struct off_mix m = {.hbm_bytes_per_s = 4.71e12, .tier_count = 2, .tier = {[1] = *t}};
    m.tier[1].bytes = share * 15e9;
    m.hbm_bytes = (1 - share) * 15e9;
    off_mix_solve(&m);
    return m;
}

static void test_h200(void **state)
{
    (void)state;
    struct off_mix m;
    /* Up to the free fraction nothing is copied. */
    for (double share = 0; share < 0.0105; share += 0.0005)
        assert_true(model_of(&pcie, share).share[1] == 0);
    for (double share = 0; share < 0.072; share += 0.002)
        assert_true(model_of(&nvlink, share).share[1] == 0);
    /* Over PCIe all of it is, soon after. */
    m = model_of(&pcie, 0.05);
    assert_true(m.share[1] == 1 && m.seconds < 0.94 * m.direct_s);
    /* NVLink: about what both gave while HBM is busy; more and more of it where HBM rests. */
    m = model_of(&nvlink, 0.1);
    assert_true(m.share[1] > 0.3 && m.share[1] < 0.4 && m.seconds < 0.95 * m.direct_s);
    double last = m.seconds;
    for (double share = 0.2; share <= 1; share += 0.1) {
        m = model_of(&nvlink, share);
        assert_true(m.share[1] >= 0.3 && m.seconds < 0.96 * m.direct_s && m.seconds > last);
        last = m.seconds;
    }
    /* What may not be copied is not. */
    struct off_mix_tier some = nvlink;
    some.share_max = 0.25;
    assert_true(model_of(&some, 0.3).share[1] == 0.25);
    some.share_max = 0;
    m = model_of(&some, 0.3);
    assert_true(m.share[1] == 0 && m.seconds == m.direct_s);
}

/* --- random machines -------------------------------------------------------------------------- */

static double random_in(double low, double high)
{
    return low + (high - low) * (double)(test_random() % 1000001) / 1e6;
}

static double random_scale(double low, double high)
{
    return low * pow(high / low, random_in(0, 1));
}

/* Rates in any proportion, also such as no machine has: a copy engine ten times as fast as the
 * kernels, both at once slower than either. */
static struct off_mix random_machine(void)
{
    struct off_mix m = {.hbm_bytes_per_s = random_scale(1e11, 1e13),
                        .hbm_bytes = random_scale(1e6, 1e12),
                        .tier_count = 2 + (int)(test_random() % 2)};
    if (test_random() % 100 == 0) m.hbm_bytes = 0;
    for (int t = 1; t < m.tier_count; t++) {
        const double link = random_scale(1e9, m.hbm_bytes_per_s);
        struct off_mix_tier *k = &m.tier[t];
        k->read_bytes_per_s = link;
        k->copy_bytes_per_s = link * random_scale(0.3, 3);
        k->read = (struct off_mix_point){link * random_in(0.7, 1.01), 0,
                                         m.hbm_bytes_per_s * random_in(0.6, 1.01)};
        k->copy = (struct off_mix_point){0, k->copy_bytes_per_s * random_in(0.4, 1.01),
                                         m.hbm_bytes_per_s * random_in(0.6, 1.01)};
        k->both = (struct off_mix_point){link * random_in(0.05, 1), link * random_in(0.05, 1),
                                         m.hbm_bytes_per_s * random_in(0.6, 1.01)};
        k->bytes = test_random() % 20 ? m.hbm_bytes * random_scale(1e-3, 100) : 0;
        k->share_max = test_random() % 4 ? random_in(0, 1) : 1;
    }
    return m;
}

/* The model once more, told otherwise: a link that may take turns between ways of being read needs
 * for a share the least time of all pairs of ways that come to it. */
static double seconds_a_byte(double s, const double at[3], const double time[3])
{
    double least = INFINITY;
    for (int i = 0; i < 3; i++)
        for (int j = i; j < 3; j++) {
            if (s < at[i] || s > at[j]) continue;
            const double part = at[j] > at[i] ? (s - at[i]) / (at[j] - at[i]) : 0;
            least = fmin(least, time[i] * (1 - part) + time[j] * part);
        }
    return least;
}

static double slow_seconds(const struct off_mix *m, const double share[KN_TIER_MAX])
{
    double busy[KN_TIER_MAX], idle[KN_TIER_MAX], hbm = m->hbm_bytes, seconds;
    for (int t = 1; t < m->tier_count; t++) {
        const struct off_mix_tier *k = &m->tier[t];
        const double s = share[t], both = k->both.read_bytes_per_s + k->both.copy_bytes_per_s;
        const double at[3] = {0, k->both.copy_bytes_per_s / both, 1};
        const double busy_s[3] = {1 / k->read.read_bytes_per_s, 1 / both,
                                  1 / k->copy.copy_bytes_per_s};
        const double idle_s[3] = {fmin(busy_s[0], 1 / k->read_bytes_per_s), 1 / both,
                                  fmin(busy_s[2], 1 / k->copy_bytes_per_s)};
        const double rate[3] = {k->read.hbm_bytes_per_s, k->both.hbm_bytes_per_s,
                                k->copy.hbm_bytes_per_s};
        busy[t] = k->bytes * seconds_a_byte(s, at, busy_s);
        idle[t] = k->bytes * seconds_a_byte(s, at, idle_s);
        double lost[3];
        for (int i = 0; i < 3; i++) lost[i] = fmax(m->hbm_bytes_per_s - rate[i], 0) * busy_s[i];
        const int i = s > at[1];
        const double part = (s - at[i]) / (at[i + 1] - at[i]);
        hbm += k->bytes * (s + fmax(s, lost[i] * (1 - part) + lost[i + 1] * part));
    }
    seconds = hbm / m->hbm_bytes_per_s;
    for (int t = 1; t < m->tier_count; t++) {
        if (m->tier[t].bytes == 0) continue;
        const double h = hbm / m->hbm_bytes_per_s;
        const double done = busy[t] <= h ? busy[t] : h + idle[t] * (busy[t] - h) / busy[t];
        seconds = fmax(seconds, done);
    }
    return seconds;
}

static void test_random_machines(void **state)
{
    (void)state;
    const double none[KN_TIER_MAX] = {0};
    int mixed = 0;
    test_seed();
    for (int n = 0; n < MACHINES; n++) {
        struct off_mix m = random_machine(), again = m, more;
        double least = INFINITY, share[KN_TIER_MAX] = {0};
        const int last = m.tier_count > 2 ? OFF_MIX_STEPS : 0;
        off_mix_solve(&m);
        for (int i = 0; i <= OFF_MIX_STEPS; i++)
            for (int j = 0; j <= last; j++) {
                share[1] = (double)i / OFF_MIX_STEPS;
                share[2] = (double)j / OFF_MIX_STEPS;
                if (share[1] > m.tier[1].share_max || share[2] > m.tier[2].share_max) continue;
                least = fmin(least, slow_seconds(&m, share));
            }
        assert_true(fabs(m.seconds - least) <= 1e-9 * least);
        assert_true(fabs(m.direct_s - slow_seconds(&m, none)) <= 1e-9 * least);
        assert_true(m.seconds <= m.direct_s);
        for (int t = 1; t < m.tier_count; t++) {
            assert_true(m.share[t] >= 0 && m.share[t] <= m.tier[t].share_max);
            assert_true(m.tier[t].bytes > 0 || m.share[t] == 0);
            mixed += m.share[t] > 0 && m.share[t] < 1;
        }
        off_mix_solve(&again);
        assert_memory_equal(&again, &m, sizeof m);
        /* More to read takes no less, more that may be copied takes no longer. */
        more = m;
        more.tier[1].bytes *= 1.1;
        off_mix_solve(&more);
        assert_true(more.seconds >= m.seconds * (1 - NOISE));
        more = m;
        more.hbm_bytes *= 1.1;
        off_mix_solve(&more);
        assert_true(more.seconds >= m.seconds * (1 - NOISE));
        more = m;
        more.tier[1].share_max = 1;
        off_mix_solve(&more);
        assert_true(more.seconds <= m.seconds * (1 + NOISE));
    }
    assert_true(mixed > MACHINES / 10);
}

/* --- from a measurement ----------------------------------------------------------------------- */

static void test_set_link(void **state)
{
    (void)state;
    static const struct off_links links = {.hbm_bytes_per_s = 4.7e12};
    struct off_link k = {.read_bytes_per_s = 51e9,
                         .copy_bytes_per_s = 55e9,
                         .busy_copy_bytes_per_s = 54e9,
                         .busy_copy_hbm_bytes_per_s = 4.4e12,
                         .both_read_bytes_per_s = 26e9,
                         .both_copy_bytes_per_s = 28e9,
                         .both_hbm_bytes_per_s = 4.5e12,
                         .point = {{4, 1, 22e9, 4.7e12, 3e-6, 4e-6},
                                   {16, 2, 50e9, 4.6e12, 1e-5, 1e-5},
                                   {16, 4, 51e9, 4.1e12, 2e-5, 2e-5}},
                         .point_count = 3};
    struct off_mix_tier t = {.bytes = 7, .share_max = 0.5};
    off_mix_set_link(&t, &links, &k);
    assert_true(t.bytes == 7 && t.share_max == 0.5);
    assert_true(t.read_bytes_per_s == 51e9 && t.copy_bytes_per_s == 55e9);
    assert_true(t.read.read_bytes_per_s == 50e9 && t.read.hbm_bytes_per_s == 4.6e12);
    assert_true(t.both.read_bytes_per_s == 26e9 && t.both.copy_bytes_per_s == 28e9);
    assert_true(t.copy.copy_bytes_per_s == 54e9 && t.copy.hbm_bytes_per_s == 4.4e12);
    assert_true(t.read.copy_bytes_per_s == 0 && t.copy.read_bytes_per_s == 0);
    k.point_count = 0;
    off_mix_set_link(&t, &links, &k);
    assert_true(t.read.read_bytes_per_s == 51e9 && t.read.hbm_bytes_per_s == 4.7e12);
}

/* --- tiles ------------------------------------------------------------------------------------ */

#define PRODUCTS 128

static struct off_mix_product random_product(int tiers)
{
    struct off_mix_product p = {.tile_bytes = 16384 * (1 + test_random() % 30)};
    for (int t = 0; t <= tiers; t++) p.tiles[t] = (int32_t)(test_random() % 40);
    for (int t = 0; t < KN_TIER_MAX; t++) p.copied[t] = -1;
    return p;
}

/* That copied tiles are there, no more than fit, and in one run next to the local ones. */
static void check_product(const struct off_mix_product *p, uint64_t most)
{
    uint64_t copied = 0;
    bool whole = true;
    assert_int_equal(p->copied[0], 0);
    for (int t = 1; t < KN_TIER_MAX; t++) {
        assert_true(p->copied[t] >= 0 && p->copied[t] <= p->tiles[t]);
        assert_true(whole || p->copied[t] == 0);
        whole &= p->copied[t] == p->tiles[t];
        copied += (uint64_t)p->copied[t] * p->tile_bytes;
    }
    assert_true(copied <= most);
}

static void test_deal(void **state)
{
    (void)state;
    struct off_mix_product p[PRODUCTS];
    uint64_t bytes[KN_TIER_MAX];
    test_seed();
    for (int n = 0; n < 2000; n++) {
        const int tiers = 1 + (int)(test_random() % 3);
        const bool bounded = test_random() % 3 == 0;
        const uint64_t most = bounded ? 16384 * (test_random() % 500) : UINT64_MAX;
        double share[KN_TIER_MAX] = {0}, wanted[KN_TIER_MAX] = {0}, copied[KN_TIER_MAX] = {0};
        double largest = 0, all = 0;
        for (int t = 1; t <= tiers; t++)
            share[t] = test_random() % 5 ? random_in(0, 1) : (double)(test_random() % 2);
        for (int i = 0; i < PRODUCTS; i++) p[i] = random_product(tiers);
        off_mix_deal(p, PRODUCTS, share, most, bytes);
        for (int i = 0; i < PRODUCTS; i++) {
            const double tile = (double)p[i].tile_bytes;
            check_product(&p[i], most);
            largest = fmax(largest, tile);
            all += tile * p[i].tiles[1];
            for (int t = 1; t < KN_TIER_MAX; t++) {
                wanted[t] += share[t] * tile * p[i].tiles[t];
                copied[t] += tile * p[i].copied[t];
                /* Every beginning of a step has its share, or as much of it as could be. */
                assert_true(copied[t] <= wanted[t] + largest / 2 + 1);
            }
            if (!bounded) assert_true(copied[1] >= wanted[1] - largest / 2 - 1);
        }
        for (int t = 0; t < KN_TIER_MAX; t++) assert_true((double)bytes[t] == copied[t]);
        if (share[1] == 0) assert_true(bytes[1] == 0);
        if (share[1] == 1 && !bounded) assert_true(copied[1] == all);
    }
}

/* Two tiers: the further one gets its share where the nearer one is copied whole. */
static void test_deal_further(void **state)
{
    (void)state;
    struct off_mix_product p[4] = {{16384, {9, 2, 4}, {0}},
                                   {16384, {9, 0, 4}, {0}},
                                   {16384, {9, 2, 4}, {0}},
                                   {16384, {0, 0, 4}, {0}}};
    uint64_t bytes[KN_TIER_MAX];
    off_mix_deal(p, 4, (const double[KN_TIER_MAX]){0, 1, 0.5}, UINT64_MAX, bytes);
    for (int i = 0; i < 4; i++) assert_int_equal(p[i].copied[2], 2);
    assert_int_equal(bytes[1], 4 * 16384);
    off_mix_deal(p, 4, (const double[KN_TIER_MAX]){0, 0.5, 0.5}, UINT64_MAX, bytes);
    assert_int_equal(p[0].copied[2], 0);
    assert_int_equal(p[1].copied[2], 4);
    assert_int_equal(p[2].copied[2], 0);
    assert_int_equal(p[3].copied[2], 4);
    assert_int_equal(bytes[2], 8 * 16384);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_h200),
        cmocka_unit_test(test_random_machines),
        cmocka_unit_test(test_set_link),
        cmocka_unit_test(test_deal),
        cmocka_unit_test(test_deal_further),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
