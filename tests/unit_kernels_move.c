/*
 * unit_kernels_move.c - pages copied from pool to pool: the bytes that were named and no others,
 * in the order in which they were named, counted by tier, and over when it says so.
 */
#include "tests/kernels_common.h"

enum { PAGES = 5, TIERS = 3 };

/* Pools of tiers 0, 1 and 2, every page full of a number of its own. */
static void pools_open(struct kn_kv *kv)
{
    const size_t page = kn_kv_page_bytes(kv);
    for (int t = 0; t < TIERS; t++) {
        kv->base[t] = aligned_alloc(KN_ALIGN, page * PAGES);
        assert_non_null(kv->base[t]);
        for (int i = 0; i < PAGES; i++)
            memset((char *)kv->base[t] + (size_t)i * page, 16 * t + i + 1, page);
    }
}

static void pools_close(struct kn_kv *kv)
{
    for (int t = 0; t < TIERS; t++) free(kv->base[t]);
}

/* Every byte of the page is this. */
static void assert_page(const struct kn_kv *kv, int tier, int index, int value)
{
    const size_t page = kn_kv_page_bytes(kv);
    const unsigned char *p = (const unsigned char *)kv->base[tier] + (size_t)index * page;
    for (size_t i = 0; i < page; i++)
        if (p[i] != value) fail_msg("tier %d page %d byte %zu: %d", tier, index, i, p[i]);
}

static void moved(const struct kn_kv *shape, int threads)
{
    struct kn *kn = test_open(threads, NULL);
    struct kn_kv kv = *shape;
    struct kn_traffic t[TIERS];
    const uint64_t page = kn_kv_page_bytes(&kv);
    pools_open(&kv);
    const struct kn_page_move out[] = {{kn_page_make(0, 1), kn_page_make(1, 4)},
                                       {kn_page_make(0, 3), kn_page_make(2, 0)},
                                       {kn_page_make(1, 4), kn_page_make(1, 2)}}; /* of the first */
    assert_int_equal(kn_moves_done(kn), 0);
    kn_move_pages(kn, &kv, out, 3);
    kn_moves_wait(kn);
    assert_int_equal(kn_moves_done(kn), 3);
    const struct kn_page_move back[] = {{kn_page_make(2, 0), kn_page_make(0, 0)}};
    kn_move_pages(kn, &kv, back, 1);
    kn_move_pages(kn, &kv, back, 0);
    assert_int_equal(kn_moves_done(kn), 4);
    static const int expected[TIERS][PAGES] = {
        {4, 2, 3, 4, 5}, {17, 18, 2, 20, 2}, {4, 34, 35, 36, 37}};
    for (int tier = 0; tier < TIERS; tier++)
        for (int i = 0; i < PAGES; i++) assert_page(&kv, tier, i, expected[tier][i]);
    for (int tier = 0; tier < TIERS; tier++) kn_traffic(kn, tier, &t[tier]);
    assert_int_equal(t[0].moved_bytes, 3 * page);
    assert_int_equal(t[1].moved_bytes, 2 * page);
    assert_int_equal(t[2].moved_bytes, 2 * page);
    assert_int_equal(t[0].bytes + t[1].bytes, 0); /* nothing was read by an operation */
    pools_close(&kv);
    kn_close(kn);
}

static void pages_are_copied_whole_and_in_order(void **state)
{
    (void)state;
    const struct kn_kv small = {KN_F32, 3, 1, 32, {0}}, large = {KN_BF16, 5, 4, 128, {0}};
    moved(&small, 1);
    moved(&small, 3);
    moved(&large, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pages_are_copied_whole_and_in_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
