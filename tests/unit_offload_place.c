/*
 * unit_offload_place.c - which tiles go where: totals within half a tile, every tile in one tier,
 * the same twice; the cheapest way against all ways of small cases; and what that means for the
 * shapes of an 8B model.
 */
#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

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

static void place_ok(struct off_weight *w, int32_t count, double share,
                     enum off_placement placement, const struct off_tiers *tiers)
{
    char err[ERR_CAP] = "";
    if (off_place(w, count, share, placement, tiers, err)) fail_msg("%s", err);
}

/* --- what holds always --- */

enum { MANY = 120 };

static void check_random(const char *remotes, double share, const double *fractions,
                         enum off_placement placement, uint64_t *seed)
{
    struct rig r;
    struct off_weight w[MANY], again[MANY];
    double total = 0, given[KN_TIER_MAX] = {0}, tile_max = 0;
    rig_open(&r, remotes);
    for (int i = 0; i < MANY; i++) {
        int32_t tiles = 1 + (int32_t)(next(seed) % (i % 10 ? 300 : 4));
        w[i] = (struct off_weight){.tile_count = tiles,
                                   .tile_bytes = 16384 * (1 + next(seed) % 224),
                                   .table = next(seed) % 20 == 0,
                                   .after_attention = next(seed) % 4 == 0};
        total += (double)w[i].tile_bytes * tiles;
        tile_max = fmax(tile_max, (double)w[i].tile_bytes);
    }
    memcpy(again, w, sizeof w);
    place_ok(w, MANY, share, placement, r.tiers);
    place_ok(again, MANY, share, placement, r.tiers);
    assert_memory_equal(w, again, sizeof w);
    for (int i = 0; i < MANY; i++) {
        int32_t sum = 0;
        for (int t = 0; t < KN_TIER_MAX; t++) {
            assert_true(w[i].tiles[t] >= 0);
            if (fractions[t] == 0) assert_int_equal(w[i].tiles[t], 0);
            sum += w[i].tiles[t];
            given[t] += (double)w[i].tiles[t] * (double)w[i].tile_bytes;
        }
        assert_int_equal(sum, w[i].tile_count);
    }
    /* All remote tiers together, and each of them but for what the others left the last. */
    assert_true(fabs(given[0] - fractions[0] * total) <= tile_max / 2 + 1);
    for (int t = 1; t < KN_TIER_MAX; t++)
        assert_true(fabs(given[t] - fractions[t] * total) <= tile_max * 1.5 + 1);
    rig_close(&r);
}

static void random_weights(void **state)
{
    const char *text = getenv("DAKD_TEST_SEED");
    uint64_t seed = text ? strtoull(text, NULL, 0) : 20240607;
    (void)state;
    print_message("seed %" PRIu64 "\n", seed);
    for (int p = OFF_PLACE_AUTO; p <= OFF_PLACE_EVEN; p++) {
        enum off_placement placement = (enum off_placement)p;
        for (int i = 0; i < 8; i++) {
            double x = (double)(next(&seed) % 1001) / 1000;
            check_random("host:10GiB", x, (double[KN_TIER_MAX]){1 - x, x}, placement, &seed);
            check_random("host:30GiB,peer:1:10GiB", x,
                         (double[KN_TIER_MAX]){1 - x, x * 0.75, x * 0.25}, placement, &seed);
            check_random("host:10GiB,peer:1:10GiB,peer:2:20GiB", x,
                         (double[KN_TIER_MAX]){1 - x, x * 0.25, x * 0.25, x * 0.5}, placement,
                         &seed);
        }
        check_random("", 0, (double[KN_TIER_MAX]){1}, placement, &seed);
        check_random("host:1GiB,peer:1:1GiB", 0, (double[KN_TIER_MAX]){1}, placement, &seed);
        check_random("host:1GiB,peer:1:1GiB", 1, (double[KN_TIER_MAX]){0, 0.5, 0.5}, placement,
                     &seed);
    }
}

/* --- the cheapest way --- */

/* Time of a step as place.c models it, for one remote tier. */
static double step_time(const struct off_weight *w, int count, double cost)
{
    double sum = 0;
    for (int i = 0; i < count; i++)
        if (!w[i].table) sum += fmax(w[i].tiles[0], cost * w[i].tiles[1]);
    return sum;
}

/* The least time over all ways to put `left` tiles of weights i.. out. */
static double least_time(struct off_weight *w, int i, int count, int left, double cost)
{
    double best = INFINITY;
    if (i == count) return left ? INFINITY : step_time(w, count, cost);
    for (int32_t out = 0; out <= w[i].tile_count && out <= left; out++) {
        w[i].tiles[1] = out;
        w[i].tiles[0] = w[i].tile_count - out;
        best = fmin(best, least_time(w, i + 1, count, left - out, cost));
    }
    return best;
}

static void best_of_all_ways(void **state)
{
    uint64_t seed = 7;
    struct rig r;
    (void)state;
    rig_open(&r, "peer:1:1GiB");
    const double cost = round(kn_window_default(KN_MEM_PEER).cost / 0.93 * 8) / 8;
    for (int i = 0; i < 60; i++) {
        struct off_weight w[3], tried[3];
        int total = 0;
        for (int k = 0; k < 3; k++) {
            /* Sizes on both sides of the tile where the link becomes the slower one. */
            w[k] = (struct off_weight){.tile_count = 1 + (int32_t)(next(&seed) % (k ? 20 : 60)),
                                       .tile_bytes = 1 << 19,
                                       .table = next(&seed) % 4 == 0};
            total += w[k].tile_count;
        }
        for (int out = 0; out <= total; out += 1 + total / 9) {
            place_ok(w, 3, (double)out / total, OFF_PLACE_AUTO, r.tiers);
            assert_int_equal(w[0].tiles[1] + w[1].tiles[1] + w[2].tiles[1], out);
            memcpy(tried, w, sizeof w);
            double best = least_time(tried, 0, 3, out, cost);
            assert_true(fabs(step_time(w, 3, cost) - best) < 1e-9);
        }
    }
    rig_close(&r);
}

/* --- an 8B model --- */

enum { LAYERS = 32, QKV = 0, O, UP, DOWN, KINDS, WEIGHTS = LAYERS * KINDS + 2 };

/* Embedding table, layers, head; 16.06 GB, of which the table 6.5 %. */
static void shapes_8b(struct off_weight w[WEIGHTS])
{
    const uint64_t tile = 64 * 4096 * 2;
    const struct off_weight layer[KINDS] = {
        [QKV] = {.tile_count = 96, .tile_bytes = tile},
        [O] = {.tile_count = 64, .tile_bytes = tile, .after_attention = true},
        [UP] = {.tile_count = 448, .tile_bytes = tile},
        [DOWN] = {.tile_count = 64, .tile_bytes = 64 * 14336 * 2},
    };
    w[0] = (struct off_weight){.tile_count = 2004, .tile_bytes = tile, .table = true};
    for (int i = 0; i < LAYERS * KINDS; i++) w[1 + i] = layer[i % KINDS];
    w[WEIGHTS - 1] = (struct off_weight){.tile_count = 2004, .tile_bytes = tile};
}

static void tables_go_first_over_pcie(void **state)
{
    struct off_weight w[WEIGHTS];
    struct rig r;
    (void)state;
    rig_open(&r, "host:64GiB");
    shapes_8b(w);
    place_ok(w, WEIGHTS, 0.05, OFF_PLACE_AUTO, r.tiers);
    for (int i = 1; i < WEIGHTS; i++) assert_int_equal(w[i].tiles[1], 0);
    assert_in_range(w[0].tiles[1], 1530, 1535);
    /* Beyond the table: only where a whole tile fits beside HBM's part of the same weight. */
    place_ok(w, WEIGHTS, 0.068, OFF_PLACE_AUTO, r.tiers);
    assert_int_equal(w[0].tiles[1], 2004);
    for (int i = 0; i < LAYERS * KINDS; i++) {
        int32_t out = w[1 + i].tiles[1];
        if (i % KINDS == UP) assert_in_range(out, 1, 4);
        else assert_int_equal(out, 0);
    }
    assert_true(w[WEIGHTS - 1].tiles[1] > 0);
    rig_close(&r);
}

static void a_fast_link_is_filled_evenly(void **state)
{
    struct off_weight w[WEIGHTS];
    struct rig r;
    (void)state;
    rig_open(&r, "peer:1:64GiB");
    shapes_8b(w);
    place_ok(w, WEIGHTS, 0.055, OFF_PLACE_AUTO, r.tiers);
    assert_int_equal(w[0].tiles[1], 0); /* a byte out of a table is no byte less for HBM */
    for (int i = 1; i < WEIGHTS; i++) {
        double share = (double)w[i].tiles[1] / w[i].tile_count;
        /* The link begins with o when o does. */
        if (w[i].after_attention) assert_true(share > 0.02 && share < 0.04);
        else assert_true(share > 0.04 && share < 0.07);
    }
    rig_close(&r);
}

static double share_out(const struct off_weight *w)
{
    return (double)(w->tile_count - w->tiles[0]) / w->tile_count;
}

static double bytes_of(const struct off_weight *w)
{
    return (double)w->tile_bytes * w->tile_count;
}

/* The link's load of weight i, with `more` tiles more: see place.c. */
static double level_of(const struct off_weight *weights, int i, int more, enum kn_mem mem)
{
    const struct off_weight *w = &weights[i], *before = i > 0 ? w - 1 : NULL;
    const double cost = round(kn_window_default(mem).cost / 0.93 * 8) / 8;
    double lead = 0;
    if (w->after_attention) lead = -16e6 / cost;
    else if (before && !before->table && cost * (double)before->tile_bytes > bytes_of(before) &&
             bytes_of(before) >= 32 * 16384 * cost)
        lead = 32 * 16384;
    if (w->table) lead = 0;
    return (w->tiles[1] + more - lead / (double)w->tile_bytes) / w->tile_count;
}

/* But for one tile of each, with which its link becomes the later one, no weight is above a level
 * at which another has room: whatever load a link hides, it is given that load everywhere. */
static void check_even(const struct off_weight *w, int count, enum kn_mem mem)
{
    double highest = -INFINITY, room = INFINITY;
    for (int i = 0; i < count; i++) {
        if (w[i].tiles[1] > 1) highest = fmax(highest, level_of(w, i, -1, mem));
        if (w[i].tiles[0] > 0) room = fmin(room, level_of(w, i, 1, mem));
    }
    assert_true(highest <= room + 1e-12);
}

static void even_is_even(void **state)
{
    static const double shares[] = {0, 0.001, 0.004, 0.01, 0.05, 0.1, 0.3, 0.5, 0.97, 1};
    struct off_weight w[WEIGHTS], before[WEIGHTS];
    struct rig r;
    (void)state;
    rig_open(&r, "host:64GiB");
    shapes_8b(before);
    for (size_t k = 0; k < ARRAY_COUNT(shares); k++) {
        double left = 0;
        shapes_8b(w);
        place_ok(w, WEIGHTS, shares[k], OFF_PLACE_EVEN, r.tiers);
        for (int i = 0; i < WEIGHTS; i++) {
            double tile = (double)w[i].tile_bytes;
            left += shares[k] * tile * w[i].tile_count - tile * w[i].tiles[1];
            /* A larger share takes nothing back. */
            if (k > 0) assert_true(w[i].tiles[1] >= before[i].tiles[1]);
            if (shares[k] >= 0.05) assert_true(fabs(share_out(&w[i]) - shares[k]) < 2.0 / 64);
        }
        assert_true(fabs(left) <= 64 * 4096); /* half the smallest tile */
        if (shares[k] < 1) check_even(w, WEIGHTS, KN_MEM_HOST);
        memcpy(before, w, sizeof w);
    }
    rig_close(&r);
}

/* Random weights have tiles of other sizes, so that the last bytes go where one fits: all but the
 * weights whose tiles are larger than what is left are even. */
static void even_at_random(void **state)
{
    uint64_t seed = 11;
    struct off_weight w[MANY];
    struct rig r;
    (void)state;
    rig_open(&r, "peer:1:64GiB");
    for (int round = 0; round < 50; round++) {
        double share = (double)(next(&seed) % 1000) / 1000;
        for (int i = 0; i < MANY; i++)
            w[i] = (struct off_weight){.tile_count = 1 + (int32_t)(next(&seed) % 500),
                                       .tile_bytes = 1 << 19,
                                       .table = next(&seed) % 20 == 0,
                                       .after_attention = next(&seed) % 4 == 0};
        place_ok(w, MANY, share, OFF_PLACE_EVEN, r.tiers);
        check_even(w, MANY, KN_MEM_PEER);
    }
    rig_close(&r);
}

/* What PCIe's free fraction (1.1 %) has room for: gate-up, the head, and qkv, whose rings are
 * filled while down leaves the link idle; not o or down, of which one tile is more than they hide.
 */
static void small_shares_go_where_they_fit(void **state)
{
    static const double shares[] = {0.004, 0.01};
    struct off_weight w[WEIGHTS];
    struct rig r;
    (void)state;
    rig_open(&r, "host:64GiB");
    for (size_t k = 0; k < ARRAY_COUNT(shares); k++) {
        int32_t sum[KINDS] = {0};
        shapes_8b(w);
        place_ok(w, WEIGHTS, shares[k], OFF_PLACE_EVEN, r.tiers);
        for (int i = 0; i < LAYERS * KINDS; i++) sum[i % KINDS] += w[1 + i].tiles[1];
        assert_in_range(sum[DOWN], 0, k ? 4 : 0);
        assert_int_equal(sum[O], k ? LAYERS : 0);
        assert_in_range(sum[QKV], LAYERS - 1, 2 * LAYERS);
        assert_in_range(sum[UP], (k ? 5 : 2) * LAYERS, (k ? 5 : 3) * LAYERS);
        assert_in_range(w[WEIGHTS - 1].tiles[1], k ? 20 : 8, k ? 26 : 14);
    }
    rig_close(&r);
}

/* Each of two links has its own load. */
static void even_on_every_link(void **state)
{
    struct off_weight w[WEIGHTS];
    struct rig r;
    (void)state;
    rig_open(&r, "peer:1:32GiB,peer:2:32GiB");
    shapes_8b(w);
    place_ok(w, WEIGHTS, 0.4, OFF_PLACE_EVEN, r.tiers);
    for (int i = 0; i < WEIGHTS; i++)
        for (int t = 1; t <= 2; t++)
            assert_true(fabs((double)w[i].tiles[t] / w[i].tile_count - 0.2) < 3.0 / 64);
    rig_close(&r);
}

/* --- what is refused --- */

static void refused(void **state)
{
    static const double shares[] = {-0.01, 1.01, 7, -INFINITY, INFINITY, NAN};
    struct off_weight w = {.tile_count = 4, .tile_bytes = 16384};
    struct rig r;
    char err[ERR_CAP];
    (void)state;
    rig_open(&r, "host:1GiB");
    for (size_t i = 0; i < ARRAY_COUNT(shares); i++) {
        err[0] = '\0';
        assert_int_equal(off_place(&w, 1, shares[i], OFF_PLACE_AUTO, r.tiers, err), ST_INVALID);
        assert_true(err[0]);
    }
    rig_close(&r);
    rig_open(&r, "");
    err[0] = '\0';
    assert_int_equal(off_place(&w, 1, 0.1, OFF_PLACE_EVEN, r.tiers, err), ST_INVALID);
    assert_non_null(strstr(err, "--remote host:64GiB"));
    rig_close(&r);
    rig_open(&r, "host:1B"); /* less than one aligned unit */
    assert_int_equal(off_place(&w, 1, 0.1, OFF_PLACE_AUTO, r.tiers, err), ST_INVALID);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_weights),
        cmocka_unit_test(best_of_all_ways),
        cmocka_unit_test(tables_go_first_over_pcie),
        cmocka_unit_test(a_fast_link_is_filled_evenly),
        cmocka_unit_test(even_is_even),
        cmocka_unit_test(even_at_random),
        cmocka_unit_test(small_shares_go_where_they_fit),
        cmocka_unit_test(even_on_every_link),
        cmocka_unit_test(refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
