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
#define NOISE (OFF_MIX_GAIN + 1e-12) /* where what was not worth it becomes so */

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
                                           .both = {213.5e9, 171e9, 4.276e12},
                                           .copy = {0, 256e9, 4.22e12},
                                           .share_max = 1};

/* 15 GB of weights in 32 layers of an 8B model's products, this share remote. */
static struct off_mix model_of(const struct off_mix_tier *t, double share)
{
    static const double product[] = {0.538, 0.269, 0.116, 0.077};
    struct off_mix m = {.hbm_bytes_per_s = 4.71e12, .tier_count = 2, .tier = {[1] = *t}};
    m.tier[1].bytes = share * 15e9;
    m.hbm_bytes = (1 - share) * 15e9;
    m.tier[1].group_count = 32;
    m.tier[1].item_count = (int)ARRAY_COUNT(product);
    for (size_t i = 0; i < ARRAY_COUNT(product); i++)
        m.tier[1].item_bytes[i] = m.tier[1].bytes / 32 * product[i];
    off_mix_solve(&m);
    return m;
}

static void test_h200(void **state)
{
    (void)state;
    struct off_mix m;
    /* Up to the free fraction, less what the link rests, nothing is copied. */
    for (double share = 0; share < 0.0095; share += 0.0005)
        assert_true(model_of(&pcie, share).share[1] == 0);
    for (double share = 0; share < 0.066; share += 0.002)
        assert_true(model_of(&nvlink, share).share[1] == 0);
    /* Nor is it tried a little beyond it. */
    m = model_of(&pcie, 0.0115);
    assert_false(off_mix_is_beyond(&m, 1));
    m = model_of(&pcie, 0.015);
    assert_true(off_mix_is_beyond(&m, 1));
    m = model_of(&nvlink, 0.08);
    assert_false(off_mix_is_beyond(&m, 1));
    m = model_of(&nvlink, 0.1);
    assert_true(off_mix_is_beyond(&m, 1));
    /* Of a twentieth, over PCIe, the larger products'; of much, all. */
    m = model_of(&pcie, 0.05);
    assert_true(m.share[1] > 0.5 && m.seconds < 0.97 * m.direct_s);
    m = model_of(&pcie, 0.5);
    assert_true(m.share[1] == 1 && m.seconds < 0.94 * m.direct_s);
    /* NVLink: both at once give 2 % more than kernels alone; little is won, and less than all
     * copied until HBM rests. */
    for (double share = 0.1; share < 0.65; share += 0.05) {
        m = model_of(&nvlink, share);
        assert_true(m.share[1] < 0.6 && m.seconds > 0.97 * m.direct_s);
    }
    assert_true(model_of(&nvlink, 0.5).share[1] > 0.2);
    /* As measured: all copied over PCIe (128 copies a step), and all read in place, over PCIe and
     * NVLink; GB and ms. */
    static const struct {
        const struct off_mix_tier *tier;
        double copied, bytes, ms;
    } measured[] = {{&pcie, 1, 0.698, 13.40},  {&pcie, 1, 1.395, 26.03}, {&pcie, 1, 4.185, 76.63},
                    {&pcie, 0, 1.494, 29.46},  {&pcie, 0, 4.503, 88.03}, {&nvlink, 0, 1.494, 4.338},
                    {&nvlink, 0, 7.503, 20.28}};
    for (size_t i = 0; i < ARRAY_COUNT(measured); i++) {
        const double share[KN_TIER_MAX] = {0, measured[i].copied};
        m = model_of(measured[i].tier, measured[i].bytes / 15);
        assert_true(fabs(off_mix_seconds(&m, share) * 1e3 / measured[i].ms - 1) < 0.02);
    }
    /* While attention reads KV, kernels leave a link at rest, and the copy engine does not. */
    const double direct[KN_TIER_MAX] = {0}, copied[KN_TIER_MAX] = {0, 1};
    struct off_mix kv = m = model_of(&pcie, 0.05);
    kv.hbm_bytes += 4.71e9;
    kv.apart_bytes = 4.71e9;
    assert_true(fabs(off_mix_seconds(&kv, direct) - off_mix_seconds(&m, direct) - 1e-3) < 1e-5);
    assert_true(fabs(off_mix_seconds(&kv, copied) - off_mix_seconds(&m, copied)) < 1e-4);
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
        k->group_count = 1 + (int)(test_random() % 100);
        k->item_count = 1 + (int)(test_random() % 4);
        for (int i = 0; i < k->item_count; i++) /* the largest first, half of what is left each */
            k->item_bytes[i] = k->bytes / k->group_count * ldexp(1, -i - (i + 1 < k->item_count));
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
    double busy[KN_TIER_MAX], idle[KN_TIER_MAX], missed[KN_TIER_MAX], hbm = m->hbm_bytes, seconds;
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
        int copies = 0;
        while (k->bytes > 0 && copies < k->item_count &&
               1 - (copies ? ldexp(1, -copies) : 1) < s - 1e-6)
            copies++;
        const double gaps =
            k->group_count * (copies * s * OFF_MIX_GAP_S + (1 - s) * OFF_MIX_REST_S);
        busy[t] += gaps;
        idle[t] += gaps;
        missed[t] = s / 2 * fmax(1 - fmin(busy_s[0], busy_s[1]) / busy_s[2], 0);
        const int i = s > at[1];
        const double part = (s - at[i]) / (at[i + 1] - at[i]);
        hbm += k->bytes * (s + fmax(s, lost[i] * (1 - part) + lost[i + 1] * part));
    }
    seconds = hbm / m->hbm_bytes_per_s;
    for (int t = 1; t < m->tier_count; t++) {
        if (m->tier[t].bytes == 0) continue;
        const double h = hbm / m->hbm_bytes_per_s;
        const double used = h - h * missed[t]; /* of the time that HBM is busy */
        const double done =
            busy[t] <= used ? busy[t] + h - used : h + idle[t] * (busy[t] - used) / busy[t];
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
        const double direct = slow_seconds(&m, none);
        assert_true(fabs(m.direct_s - direct) <= 1e-9 * direct);
        if (least >= (1 - OFF_MIX_GAIN) * direct) least = direct;
        assert_true(fabs(m.seconds - least) <= 1e-9 * least);
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

#define GROUPS 40
#define GROUP 4
#define PRODUCTS (GROUPS * GROUP)

static struct off_mix_product random_product(int tiers)
{
    struct off_mix_product p = {.tile_bytes = 16384 * (1 + test_random() % 30)};
    for (int t = 0; t <= tiers; t++) p.tiles[t] = (int32_t)(test_random() % 40);
    for (int t = 0; t < KN_TIER_MAX; t++) p.copied[t] = -1;
    return p;
}

static uint64_t copied_bytes(const struct off_mix_product *p, int t)
{
    return (uint64_t)p->copied[t] * p->tile_bytes;
}

/* That copied tiles are there, within the bounds, and in one run next to the local ones. */
static void check_product(const struct off_mix_product *p, const struct off_mix_deal *d)
{
    uint64_t copied = 0;
    bool whole = true;
    assert_int_equal(p->copied[0], 0);
    for (int t = 1; t < KN_TIER_MAX; t++) {
        assert_true(p->copied[t] >= 0 && p->copied[t] <= p->tiles[t]);
        assert_true(whole || p->copied[t] == 0);
        assert_true(p->copied[t] == 0 || copied_bytes(p, t) >= d->copy_bytes_min);
        whole &= p->copied[t] == p->tiles[t];
        copied += copied_bytes(p, t);
    }
    assert_true(copied <= d->product_bytes_max);
}

/* With no bounds: of a group's products one at most has some but not all tiles of the first remote
 * tier copied, and those with more bytes have all, those with fewer none. */
static void check_order(const struct off_mix_product *g)
{
    for (int i = 0; i < GROUP; i++)
        for (int k = 0; k < GROUP; k++) {
            const uint64_t mine = (uint64_t)g[i].tiles[1] * g[i].tile_bytes;
            const uint64_t larger = (uint64_t)g[k].tiles[1] * g[k].tile_bytes;
            if (g[i].copied[1] && larger > mine) assert_int_equal(g[k].copied[1], g[k].tiles[1]);
        }
}

static void test_deal(void **state)
{
    (void)state;
    static struct off_mix_product p[PRODUCTS];
    uint64_t bytes[KN_TIER_MAX];
    test_seed();
    for (int n = 0; n < 2000; n++) {
        const int tiers = 1 + (int)(test_random() % 3);
        const bool bounded = test_random() % 3 == 0;
        struct off_mix_deal d = {.group = GROUP, .product_bytes_max = UINT64_MAX};
        double wanted[KN_TIER_MAX] = {0}, copied[KN_TIER_MAX] = {0}, largest = 0, all = 0;
        if (bounded) d.product_bytes_max = 16384 * (test_random() % 500);
        if (bounded) d.copy_bytes_min = 16384 * (test_random() % 50);
        for (int t = 1; t <= tiers; t++)
            d.share[t] = test_random() % 5 ? random_in(0, 1) : (double)(test_random() % 2);
        for (int i = 0; i < PRODUCTS; i++) p[i] = random_product(tiers);
        off_mix_deal(p, PRODUCTS, &d, bytes);
        for (int i = 0; i < PRODUCTS; i++) {
            const double tile = (double)p[i].tile_bytes;
            check_product(&p[i], &d);
            largest = fmax(largest, tile);
            all += tile * p[i].tiles[1];
            for (int t = 1; t < KN_TIER_MAX; t++) {
                wanted[t] += d.share[t] * tile * p[i].tiles[t];
                copied[t] += (double)copied_bytes(&p[i], t);
                /* Every beginning of a step has its share, or as much of it as could be. */
                if (i % GROUP == GROUP - 1) assert_true(copied[t] <= wanted[t] + largest / 2 + 1);
            }
            if (!bounded && i % GROUP == GROUP - 1)
                assert_true(copied[1] >= wanted[1] - largest / 2 - 1);
            if (!bounded && i % GROUP == 0) check_order(&p[i]);
        }
        for (int t = 0; t < KN_TIER_MAX; t++) assert_true((double)bytes[t] == copied[t]);
        if (d.share[1] == 0) assert_true(bytes[1] == 0);
        if (d.share[1] == 1 && !bounded) assert_true(copied[1] == all);
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
    struct off_mix_deal d = {.group = 1, .product_bytes_max = UINT64_MAX, .share = {0, 1, 0.5}};
    uint64_t bytes[KN_TIER_MAX];
    off_mix_deal(p, 4, &d, bytes);
    for (int i = 0; i < 4; i++) assert_int_equal(p[i].copied[2], 2);
    assert_int_equal(bytes[1], 4 * 16384);
    d.share[1] = 0.5;
    off_mix_deal(p, 4, &d, bytes);
    assert_int_equal(p[0].copied[2], 0);
    assert_int_equal(p[1].copied[2], 4);
    assert_int_equal(p[2].copied[2], 0);
    assert_int_equal(p[3].copied[2], 4);
    assert_int_equal(bytes[2], 8 * 16384);
}

/* Copies of too few bytes wait until there are enough. */
static void test_deal_least(void **state)
{
    (void)state;
    struct off_mix_product p[8];
    struct off_mix_deal d = {.group = 2,
                             .copy_bytes_min = 3 * 16384,
                             .product_bytes_max = UINT64_MAX,
                             .share = {0, 0.25}};
    uint64_t bytes[KN_TIER_MAX];
    for (int i = 0; i < 8; i++) p[i] = (struct off_mix_product){16384, {9, i % 2 ? 2 : 4}, {0}};
    off_mix_deal(p, 8, &d, bytes);
    static const int32_t want[8] = {0, 0, 3, 0, 0, 0, 3, 0};
    for (int i = 0; i < 8; i++) assert_int_equal(p[i].copied[1], want[i]);
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
        cmocka_unit_test(test_deal_least),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
