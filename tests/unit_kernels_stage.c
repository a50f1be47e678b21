/* Places of staged weights: by hand, and random steps of random weights read at random speed,
 * simulated byte by byte; and the backend that stages nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "kernels/stage.h"
#include "tests/test_random.h"

enum { WEIGHTS = 40, ITEMS = 2 * WEIGHTS };

static int32_t below(int32_t n)
{
    return (int32_t)(test_random() % (uint64_t)n);
}

/* [local][tier 1][tier 2], `blocks` blocks a tile. */
static struct kn_weight weight(int32_t local, int32_t one, int32_t two, int32_t blocks)
{
    struct kn_weight w;
    kn_weight_init(&w, KN_BF16, (local + one + two) * KN_TILE_ROWS, 128 * blocks);
    w.span[0] = (struct kn_span){NULL, 0, local};
    w.span[1] = (struct kn_span){NULL, local, one};
    w.span[2] = (struct kn_span){NULL, local + one, two};
    return w;
}

/* --- tiles --- */

static void expect_tiles(const struct kn_stage_item *items, int32_t count, int32_t begin,
                         int32_t end)
{
    struct kn_stage_tiles all, each[KN_TIER_MAX];
    assert_true(kn_stage_tiles_of(items, count, &all, each));
    assert_int_equal(all.begin, begin);
    assert_int_equal(all.end, end);
}

static void test_tiles(void **state)
{
    (void)state;
    struct kn_stage_tiles all, each[KN_TIER_MAX];
    struct kn_weight w = weight(5, 3, 4, 1);
    expect_tiles(&(struct kn_stage_item){&w, 1, 2}, 1, 5, 7);
    expect_tiles((struct kn_stage_item[]){{&w, 1, 3}, {&w, 2, 1}}, 2, 5, 9);
    /* Apart from the local run; a gap between two; the farther one first. */
    assert_false(kn_stage_tiles_of(&(struct kn_stage_item){&w, 2, 4}, 1, &all, each));
    assert_false(
        kn_stage_tiles_of((struct kn_stage_item[]){{&w, 1, 2}, {&w, 2, 1}}, 2, &all, each));
    assert_false(
        kn_stage_tiles_of((struct kn_stage_item[]){{&w, 2, 1}, {&w, 1, 3}}, 2, &all, each));
    /* The local run lies last, and tiles next to it are the tier's last. */
    w.span[1].tile_begin = 0, w.span[2].tile_begin = 3, w.span[0].tile_begin = 7;
    expect_tiles(&(struct kn_stage_item){&w, 2, 3}, 1, 4, 7);
    expect_tiles((struct kn_stage_item[]){{&w, 2, 4}, {&w, 1, 1}}, 2, 2, 7);
    /* On both sides of it: not one run. */
    w.span[2].tile_begin = 8, w.span[0].tile_begin = 3;
    expect_tiles(&(struct kn_stage_item){&w, 1, 3}, 1, 0, 3);
    assert_false(
        kn_stage_tiles_of((struct kn_stage_item[]){{&w, 1, 3}, {&w, 2, 1}}, 2, &all, each));
    /* Nothing is local: any tier may begin. */
    w = weight(0, 3, 4, 1);
    expect_tiles(&(struct kn_stage_item){&w, 2, 2}, 1, 3, 5);
    expect_tiles((struct kn_stage_item[]){{&w, 1, 3}, {&w, 2, 4}}, 2, 0, 7);
    expect_tiles((struct kn_stage_item[]){{&w, 2, 4}, {&w, 1, 1}}, 2, 2, 7);
}

/* --- places --- */

static void test_by_hand(void **state)
{
    (void)state;
    /* Tiles of one block: places of 3, 2, 4, 1 and 2 blocks. */
    struct kn_weight w[5] = {weight(1, 3, 0, 1), weight(0, 2, 0, 1), weight(2, 5, 0, 1),
                             weight(9, 1, 0, 1), weight(1, 1, 1, 1)};
    const struct kn_stage_item items[] = {{&w[0], 1, 3}, {&w[1], 1, 2}, {&w[2], 1, 4},
                                          {&w[3], 1, 1}, {&w[4], 1, 1}, {&w[4], 2, 1}};
    struct kn_stage_place p[6];
    size_t used;
    /* Room for all: everybody is in his own way. */
    assert_int_equal(kn_stage_layout(items, 6, 100 * KN_BLOCK_BYTES, p, &used), 5);
    assert_int_equal(used, 12 * KN_BLOCK_BYTES);
    for (int32_t i = 0; i < 5; i++) assert_int_equal(p[i].way, i);
    assert_int_equal(p[4].item, 4);
    assert_int_equal(p[4].item_count, 2);
    /* Two laps of 7 at most: 3 + 2 and 4 + 1 + 2, which is also the smallest. */
    assert_int_equal(kn_stage_layout(items, 6, 8 * KN_BLOCK_BYTES + 77, p, &used), 5);
    assert_int_equal(used, 7 * KN_BLOCK_BYTES);
    const int32_t begin[] = {0, 3, 0, 4, 5}, way[] = {2, 3, 1, 1, 4};
    for (int32_t i = 0; i < 5; i++) {
        assert_int_equal(p[i].begin, begin[i] * KN_BLOCK_BYTES);
        assert_int_equal(p[i].way, way[i]);
    }
    /* The largest just fits; and does not. */
    assert_int_equal(kn_stage_layout(items, 6, 4 * KN_BLOCK_BYTES, p, &used), 5);
    assert_int_equal(used, 4 * KN_BLOCK_BYTES);
    assert_int_equal(kn_stage_layout(items, 6, 4 * KN_BLOCK_BYTES - 1, p, &used), -1);
    assert_ptr_equal(p[0].w, &w[2]);
    assert_int_equal(kn_stage_layout(items, 0, 0, p, &used), 0);
}

/* Steps of places, filled as soon as their way has been read and read in order, with random turns:
 * who has each block is remembered. */
static void simulate(const struct kn_stage_place *p, int32_t count, size_t used)
{
    enum { STEPS = 6, BLOCKS = 4096 };
    static int64_t owner[BLOCKS];
    static bool full[ITEMS];
    const int64_t all = (int64_t)STEPS * count;
    int64_t filled = 0, read = 0;
    assert_true(used / KN_BLOCK_BYTES <= BLOCKS);
    memset(full, 0, sizeof full);
    while (read < all) {
        const struct kn_stage_place *next = &p[filled % count];
        const bool can_fill = filled < all && !full[next->way];
        const bool can_read = read < filled;
        assert_true(can_fill || can_read); /* nobody waits for ever */
        if (can_fill && (!can_read || below(3))) {
            for (size_t b = 0; b < next->bytes / KN_BLOCK_BYTES; b++) {
                size_t at = next->begin / KN_BLOCK_BYTES + b;
                assert_true(at < used / KN_BLOCK_BYTES);
                /* What was there has been read. */
                for (int64_t n = read; n < filled; n++) assert_int_not_equal(owner[at], n + 1);
                owner[at] = filled + 1;
            }
            full[filled++ % count] = true;
            continue;
        }
        const struct kn_stage_place *first = &p[read % count];
        for (size_t b = 0; b < first->bytes / KN_BLOCK_BYTES; b++)
            assert_int_equal(owner[first->begin / KN_BLOCK_BYTES + b], read + 1);
        full[read++ % count] = false;
    }
}

static void test_random_steps(void **state)
{
    (void)state;
    test_seed();
    for (int round = 0; round < 400; round++) {
        struct kn_weight w[WEIGHTS];
        struct kn_stage_item items[ITEMS];
        struct kn_stage_place places[ITEMS];
        const int32_t weights = 1 + below(WEIGHTS);
        int32_t count = 0;
        size_t largest = 0, total = 0, used;
        for (int32_t i = 0; i < weights; i++) {
            w[i] = weight(below(3), 1 + below(4), below(4), 1 + below(5));
            const int32_t one = 1 + below(w[i].span[1].tile_count), two = w[i].span[2].tile_count;
            const bool both = two && one == w[i].span[1].tile_count && below(2);
            size_t bytes = (size_t)(one + (both ? two : 0)) * kn_weight_tile_bytes(&w[i]);
            items[count++] = (struct kn_stage_item){&w[i], 1, one};
            if (both) items[count++] = (struct kn_stage_item){&w[i], 2, two};
            largest = size_max(largest, bytes);
            total += bytes;
        }
        const size_t bytes = largest + (size_t)below((int32_t)(total - largest) + 2);
        const int32_t n = kn_stage_layout(items, count, bytes, places, &used);
        assert_int_equal(n, weights);
        assert_true(used <= bytes && used >= largest);
        simulate(places, n, used);
    }
}

/* --- the CPU --- */

static void test_no_copy_engine(void **state)
{
    (void)state;
    struct kn *kn;
    char err[ERR_CAP] = "";
    struct kn_weight w = weight(1, 1, 0, 1);
    const struct kn_stage_item item = {&w, 1, 1};
    assert_int_equal(kn_open_cpu(1, &kn, err), ST_OK);
    assert_int_equal(kn_stage(kn, &item, 1, 1 << 20, err), ST_UNSUPPORTED);
    assert_non_null(strstr(err, "--offload-mode direct"));
    assert_int_equal(kn_stage(kn, NULL, 0, 0, err), ST_OK);
    kn_close(kn);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_tiles), cmocka_unit_test(test_by_hand),
                                       cmocka_unit_test(test_random_steps),
                                       cmocka_unit_test(test_no_copy_engine)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
