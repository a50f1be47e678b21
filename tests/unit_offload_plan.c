/*
 * unit_offload_plan.c - plans against every placement of whole tiles.
 *
 * The linear program's step (relaxed_s) is a lower bound of all placements, and the plan's step is
 * at most off_plan_tile_error_s above it; plan.c proves that.  So on random small cases
 *
 *     relaxed_s <= best of all placements <= seconds <= relaxed_s + off_plan_tile_error_s
 *
 * and with tiles a thousandth as large the plan comes a thousandth as near to relaxed_s, which is
 * therefore the least there is and not only a bound.  Over 10,000 of the cases have pools, in
 * which what stands for KV lies apart.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "config/check.h"
#include "offload/plan.h"
#include "tests/test_random.h"

#define CASES 30000
#define NEAR 1e-7

static const char *const names[] = {"hbm", "peer1", "host", "disk"};

static int below(int n)
{
    return (int)(test_random() % (uint64_t)n);
}

static uint64_t bytes_of(const struct off_plan_op *op)
{
    return (uint64_t)op->count * (uint64_t)op->tile_count * op->tile_bytes;
}

static uint64_t all_bytes(const struct off_plan *p)
{
    uint64_t sum = 0;
    for (int i = 0; i < p->op_count; i++) sum += bytes_of(&p->op[i]);
    return sum;
}

/* Some operations lie in pools, of any size, tier 0's with or without. */
static void add_pools(struct off_plan *p, uint64_t all)
{
    if (below(4) == 0) return;
    for (int i = 0; i < p->op_count; i++) p->op[i].pooled = below(2);
    for (int j = below(2); j < p->tier_count; j++)
        p->pool_bytes[j] = 1 + all * (uint64_t)below(100) / 100;
}

/* One to three operations of up to four tiles, tiers of any speed and size, some too small. */
static struct off_plan random_case(void)
{
    struct off_plan p = {.op_count = 1 + below(3), .tier_count = 1 + below(4)};
    for (int i = 0; i < p.op_count; i++) {
        struct off_plan_op *op = &p.op[i];
        *op = (struct off_plan_op){.name = "op", .count = 1 + below(2), .tile_count = 1 + below(2)};
        op->tile_bytes = 1000 * (uint64_t)(1 + below(40));
        op->read_bytes =
            (double)op->tile_bytes * op->tile_count * (below(4) ? 1 : below(100) / 99.0);
        op->compute_s = below(2) ? 0 : op->read_bytes / 1e5 * below(300) / 100;
        op->pinned = below(8) == 0;
    }
    uint64_t all = all_bytes(&p);
    for (int j = 0; j < p.tier_count; j++)
        p.tier[j] = (struct off_plan_tier){.name = names[j],
                                           .bytes_per_s = 1000 * (1 + below(j ? 50 : 100)),
                                           .bytes = all * (uint64_t)below(130) / 100};
    add_pools(&p, all);
    return p;
}

/* --- every placement -------------------------------------------------------------------------- */

/* Whether an operation's bytes in a tier are a pool's. */
static bool in_pool(const struct off_plan *p, const struct off_plan_op *op, int tier)
{
    return op->pooled && (tier || p->pool_bytes[0]);
}

struct search {
    const struct off_plan *p;
    uint64_t room[2][KN_TIER_MAX];
    double best;
};

static void search_op(struct search *s, int i, int32_t instance, double sum);

static void search_instance(struct search *s, int i, int32_t instance, int tier, int32_t left,
                            double longest, double sum)
{
    const struct off_plan_op *op = &s->p->op[i];
    if (tier == s->p->tier_count) {
        if (!left) search_op(s, i, instance + 1, sum + longest);
        return;
    }
    uint64_t *room = &s->room[in_pool(s->p, op, tier)][tier];
    for (int32_t n = 0; n <= left; n++) {
        if ((op->pinned && tier && n) || *room < (uint64_t)n * op->tile_bytes) return;
        double t = op->read_bytes / op->tile_count * n / s->p->tier[tier].bytes_per_s;
        *room -= (uint64_t)n * op->tile_bytes;
        search_instance(s, i, instance, tier + 1, left - n, fmax(longest, t), sum);
        *room += (uint64_t)n * op->tile_bytes;
    }
}

static void search_op(struct search *s, int i, int32_t instance, double sum)
{
    if (sum >= s->best) return;
    if (i < s->p->op_count && instance == s->p->op[i].count) {
        search_op(s, i + 1, 0, sum);
        return;
    }
    if (i == s->p->op_count) {
        s->best = sum;
        return;
    }
    search_instance(s, i, instance, 0, s->p->op[i].tile_count, s->p->op[i].compute_s, sum);
}

static double search_all(const struct off_plan *p)
{
    struct search s = {.p = p, .best = INFINITY};
    for (int j = 0; j < p->tier_count; j++) {
        s.room[0][j] = p->tier[j].bytes;
        s.room[1][j] = p->pool_bytes[j];
    }
    search_op(&s, 0, 0, 0);
    return s.best;
}

/* --- what holds of every plan ----------------------------------------------------------------- */

static void check_bytes(const struct off_plan *p)
{
    for (int j = 0; j < KN_TIER_MAX; j++) {
        uint64_t used[2] = {0};
        for (int i = 0; i < p->op_count; i++) {
            assert_true(p->op[i].tiles[j] >= 0);
            if (p->op[i].pinned && j) assert_int_equal(p->op[i].tiles[j], 0);
            used[in_pool(p, &p->op[i], j)] += off_plan_stored_bytes(&p->op[i], j);
        }
        assert_true(used[0] <= (j < p->tier_count ? p->tier[j].bytes : 0));
        assert_true(used[1] <= (j < p->tier_count ? p->pool_bytes[j] : 0));
    }
}

/* The figures a plan gives are those of its tiles. */
static void check_figures(const struct off_plan *p)
{
    double step = 0;
    for (int i = 0; i < p->op_count; i++) {
        const struct off_plan_op *op = &p->op[i];
        double seconds = 0, read = 0;
        int64_t tiles[KN_TIER_MAX] = {0};
        for (int32_t k = 0; k < op->count; k++) {
            double longest = op->compute_s;
            int32_t own = 0;
            for (int j = 0; j < p->tier_count; j++) {
                int32_t n = off_plan_instance_tiles(op, k, j);
                assert_true(n >= 0);
                own += n;
                tiles[j] += n;
                longest =
                    fmax(longest, op->read_bytes / op->tile_count * n / p->tier[j].bytes_per_s);
            }
            assert_int_equal(own, op->tile_count);
            seconds += longest;
        }
        assert_memory_equal(tiles, op->tiles, sizeof tiles);
        for (int j = 0; j < p->tier_count; j++) read += off_plan_read_bytes(op, j);
        assert_true(fabs(read - op->read_bytes * op->count) <= NEAR * read);
        assert_true(fabs(seconds - op->seconds) <= NEAR * seconds);
        assert_true(op->bound >= OFF_PLAN_COMPUTE && op->bound < p->tier_count);
        step += seconds;
    }
    assert_true(fabs(step - p->seconds) <= NEAR * step);
}

/* What is free at least when all bytes, or those of a kind, have a place. */
static int64_t slack(const struct off_plan *p)
{
    int64_t left[2] = {0}, tier_0 = (int64_t)p->tier[0].bytes;
    for (int j = 0; j < p->tier_count; j++) {
        left[0] += (int64_t)p->tier[j].bytes;
        left[1] += (int64_t)p->pool_bytes[j];
    }
    for (int i = 0; i < p->op_count; i++) {
        const bool pool = in_pool(p, &p->op[i], p->op[i].pinned ? 0 : 1);
        left[pool] -= (int64_t)bytes_of(&p->op[i]);
        if (p->op[i].pinned && !pool) tier_0 -= (int64_t)bytes_of(&p->op[i]);
    }
    int64_t least = left[0] + left[1];
    if (left[0] < least) least = left[0];
    if (!p->pool_bytes[0]) left[1] += tier_0;
    return left[1] < least ? left[1] : least;
}

/* More than which no placement of whole tiles lacks: plan.c. */
static int64_t slack_most(const struct off_plan *p)
{
    int64_t largest = 0;
    bool pools = false;
    for (int i = 0; i < p->op_count; i++) {
        if ((int64_t)p->op[i].tile_bytes > largest) largest = (int64_t)p->op[i].tile_bytes;
        pools |= p->op[i].pooled;
    }
    return largest * (pools ? p->tier_count * p->op_count : p->tier_count - 1);
}

static void test_every_placement(void **state)
{
    (void)state;
    int solved = 0, refused = 0, lacking = 0, pooled = 0;
    test_seed();
    while (solved < CASES) {
        struct off_plan p = random_case(), again = p;
        char err[ERR_CAP] = "", err_again[ERR_CAP] = "";
        double best = search_all(&p);
        enum status st = off_plan_solve(&p, err);
        assert_int_equal(off_plan_solve(&again, err_again), st);
        assert_string_equal(err, err_again);
        assert_memory_equal(again.op, p.op, sizeof p.op);
        if (st) {
            assert_int_equal(st, ST_LIMIT);
            /* Refused though a placement exists: only for want of a few tiles' room. */
            if (best < INFINITY) assert_true(slack(&p) < slack_most(&p));
            lacking += best < INFINITY;
            assert_true(strstr(err, "KiB") || strstr(err, "bytes"));
            refused++;
            continue;
        }
        check_bytes(&p);
        check_figures(&p);
        assert_true(best < INFINITY);
        assert_true(p.relaxed_s <= best * (1 + NEAR));
        assert_true(best <= p.seconds * (1 + NEAR));
        assert_true(p.seconds <= p.relaxed_s * (1 + NEAR) + off_plan_tile_error_s(&p));
        solved++;
        pooled += p.op[0].pooled || p.op[1].pooled || p.op[2].pooled;
    }
    printf("%d plans, %d of them with pools, %d refused, %d for want of a few tiles' room\n",
           solved, pooled, refused, lacking);
    assert_true(refused > CASES / 20 && pooled > 10000 && lacking < CASES / 20);
}

static void test_small_tiles_reach_the_bound(void **state)
{
    (void)state;
    test_seed();
    for (int n = 0; n < 300; n++) {
        struct off_plan p = random_case(), fine;
        if (off_plan_solve(&p, NULL)) continue;
        fine = p;
        for (int i = 0; i < p.op_count; i++) {
            fine.op[i].tile_bytes /= 1000;
            fine.op[i].tile_count *= 1000;
        }
        if (off_plan_solve(&fine, NULL)) { /* all but full */
            assert_true(slack(&fine) < slack_most(&fine));
            continue;
        }
        assert_true(fabs(fine.relaxed_s - p.relaxed_s) <= NEAR * p.relaxed_s);
        double error = off_plan_tile_error_s(&fine);
        assert_true(error <= off_plan_tile_error_s(&p) / 900 || error == 0);
        assert_true(fine.seconds <= p.relaxed_s * (1 + NEAR) + error);
        check_bytes(&fine);
    }
}

static void test_more_room_is_never_slower(void **state)
{
    (void)state;
    test_seed();
    for (int n = 0; n < 1000; n++) {
        struct off_plan p = random_case();
        double last = INFINITY;
        uint64_t all = all_bytes(&p), begin = p.tier[0].bytes;
        for (int step = 0; step < 12; step++) {
            p.tier[0].bytes = begin + all * (uint64_t)step / 10;
            if (off_plan_solve(&p, NULL)) {
                /* Once there is a plan there is one with more room, but for a few tiles. */
                assert_true(last == INFINITY || slack(&p) < slack_most(&p));
                continue;
            }
            assert_true(p.relaxed_s <= last * (1 + NEAR));
            last = p.relaxed_s;
        }
    }
}

/* --- what the model says of known cases ------------------------------------------------------- */

static struct off_plan two_tiers(double hbm, double link)
{
    return (struct off_plan){.op_count = 1,
                             .tier_count = 2,
                             .op = {{.name = "down",
                                     .count = 1,
                                     .tile_count = 10000,
                                     .tile_bytes = 100,
                                     .read_bytes = 1e6}},
                             .tier = {{"hbm", hbm, 2000000}, {"host", link, 2000000}}};
}

static void test_free_fraction(void **state)
{
    (void)state;
    struct off_plan p = two_tiers(9e6, 1e6);
    assert_int_equal(off_plan_solve(&p, NULL), ST_OK);
    assert_int_equal(p.op[0].tiles[1], 1000); /* B_remote / (B_remote + B_hbm) */
    assert_true(fabs(p.seconds - 0.1) < 1e-9);
    p.tier[0].bytes = 500000; /* beyond it the link decides */
    assert_int_equal(off_plan_solve(&p, NULL), ST_OK);
    assert_int_equal(p.op[0].tiles[1], 5000);
    assert_true(fabs(p.seconds - 0.5) < 1e-9 && p.bound == 1);
}

static void test_order(void **state)
{
    (void)state;
    struct off_plan p = two_tiers(9e6, 1e6);
    p.op_count = 3;
    p.op[1] = p.op[2] = p.op[0];
    p.op[1].read_bytes = 10; /* a table */
    p.op[2].compute_s = 0.3; /* hides 300,000 bytes of the link */
    p.tier[0].bytes = 3000000 - 1000000 - 100000 - 300000;
    assert_int_equal(off_plan_solve(&p, NULL), ST_OK);
    assert_int_equal(p.op[1].tiles[1], 10000);
    assert_int_equal(p.op[0].tiles[1], 1000);
    assert_int_equal(p.op[2].tiles[1], 3000);
    assert_true(fabs(p.seconds - 0.4) < 1e-4 && p.op[2].bound == OFF_PLAN_COMPUTE);
    p.tier[0].bytes -= 100000; /* all that is left costs time */
    assert_int_equal(off_plan_solve(&p, NULL), ST_OK);
    assert_true(fabs(p.seconds - 0.5) < 1e-4);
}

/* Where every byte of the link costs the same, all operations have as much of it. */
static void test_equal_shares(void **state)
{
    (void)state;
    struct off_plan p = two_tiers(9e6, 1e6);
    p.op_count = 4;
    p.op[1] = p.op[2] = p.op[3] = p.op[0];
    p.op[1].count = 7; /* layers */
    p.op[1].tile_count = 448;
    p.op[2].tile_count = 64;
    p.op[2].tile_bytes = 350; /* 3.5 times the others */
    p.op[2].read_bytes = 350 * 64;
    p.op[1].read_bytes = 448 * 100;
    p.op[3].read_bytes = 10; /* a table: it goes first, whole */
    uint64_t all = all_bytes(&p), table = bytes_of(&p.op[3]);
    for (int percent = 15; percent < 100; percent += 12) {
        uint64_t out = table + (all - table) * (uint64_t)percent / 100;
        p.tier[0].bytes = all - out;
        p.tier[1].bytes = out + 400;
        assert_int_equal(off_plan_solve(&p, NULL), ST_OK);
        check_bytes(&p);
        check_figures(&p);
        assert_int_equal(p.op[3].tiles[1], p.op[3].tile_count);
        for (int i = 0; i < 3; i++) {
            double share = (double)p.op[i].tiles[1] / ((double)p.op[i].count * p.op[i].tile_count);
            assert_true(fabs(share - percent / 100.) < 0.06);
        }
        assert_true(p.seconds <= p.relaxed_s * (1 + NEAR) + off_plan_tile_error_s(&p));
    }
}

/* Weights and KV of which some must leave: the two shares together give a shorter step than either
 * alone, for each operation has the link while it runs, and none is shorter. */
static void test_weights_and_kv(void **state)
{
    (void)state;
    struct off_plan p = two_tiers(9e6, 1e6);
    p.op_count = 2;
    p.op[1] = p.op[0];
    p.op[1].name = "attention KV";
    p.op[1].pooled = true;
    p.op[1].tile_count = 2000; /* pages: as many bytes as weights, less often divided */
    p.op[1].tile_bytes = 500;
    p.tier[1].bytes = p.pool_bytes[1] = 1000000;
    for (int percent = 2; percent < 50; percent++) {
        const uint64_t out = 20000 * (uint64_t)percent;
        struct off_plan weights = p, kv = p;
        p.tier[0].bytes = weights.tier[0].bytes = kv.tier[0].bytes = 2000000 - out;
        weights.op[1].pinned = true;
        kv.op[0].pinned = true;
        assert_int_equal(off_plan_solve(&p, NULL), ST_OK);
        assert_int_equal(off_plan_solve(&weights, NULL), ST_OK);
        assert_int_equal(off_plan_solve(&kv, NULL), ST_OK);
        /* Beyond both free fractions the link decides, whose bytes ever it brings. */
        const double least = fmax(2e6 / 10e6, (double)out / 1e6);
        assert_true(p.seconds <= least + off_plan_tile_error_s(&p));
        assert_true(p.seconds < 0.96 * weights.seconds && p.seconds < 0.96 * kv.seconds);
        const double x_weights = (double)p.op[0].tiles[1] / p.op[0].tile_count;
        const double x_kv = (double)p.op[1].tiles[1] / p.op[1].tile_count;
        assert_true(x_weights >= 0.099 && x_kv >= 0.099 && fabs(x_weights - x_kv) < 0.01);
    }
    /* A cache of a stated size keeps it, and weights have what is left. */
    p.pool_bytes[0] = 700000;
    p.tier[0].bytes = 600000;
    assert_int_equal(off_plan_solve(&p, NULL), ST_OK);
    assert_int_equal(p.op[1].tiles[0], 1400);
    assert_int_equal(p.op[0].tiles[0], 6000);
}

static void test_refusals(void **state)
{
    (void)state;
    char err[ERR_CAP] = "";
    struct off_plan p = two_tiers(9e6, 1e6);
    p.tier[0].bytes = p.tier[1].bytes = 0;
    p.op[0].tile_bytes = 1 << 20;
    assert_int_equal(off_plan_solve(&p, err), ST_LIMIT);
    assert_string_equal(err, "the model needs 9.77 GiB with its KV, all tiers hold 0 bytes");
    p.tier[1].bytes = 1ull << 40;
    p.op[0].pinned = true;
    assert_int_equal(off_plan_solve(&p, err), ST_LIMIT);
    assert_non_null(strstr(err, "what must lie in hbm (KV, norms, biases) needs 9.77 GiB"));
    p = two_tiers(9e6, 1e6);
    p.op[0].pooled = true;
    p.tier[0].bytes = 100000;
    p.pool_bytes[1] = 800000;
    assert_int_equal(off_plan_solve(&p, err), ST_LIMIT);
    assert_string_equal(err, "the KV cache needs 976.56 KiB, and all tiers hold 878.91 KiB of it");
    p.op[0].pooled = false;
    p.tier[1].bytes = 800000;
    assert_int_equal(off_plan_solve(&p, err), ST_LIMIT);
    assert_string_equal(
        err, "what may leave of the weights is 976.56 KiB, and all tiers hold 878.91 KiB of it");
    p = two_tiers(9e6, 1e6);
    p.op[0].tile_count = 1;
    p.op[0].tile_bytes = 1 << 20;
    p.tier[0].bytes = p.tier[1].bytes = 1000000;
    assert_int_equal(off_plan_solve(&p, err), ST_LIMIT);
    assert_non_null(strstr(err, "a tile of down (1.00 MiB) has no room in any"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_placement),
        cmocka_unit_test(test_small_tiles_reach_the_bound),
        cmocka_unit_test(test_more_room_is_never_slower),
        cmocka_unit_test(test_free_fraction),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_equal_shares),
        cmocka_unit_test(test_weights_and_kv),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
