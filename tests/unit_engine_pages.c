/*
 * unit_engine_pages.c - the page allocator: order of tiers, exhaustion, reuse, and numbers.  That a
 * page given back twice stops the program is checked in a child process.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/pages.h"

static struct eng_pages *open_pages(int32_t a, int32_t b, int32_t c, int32_t d)
{
    int32_t count[KN_TIER_MAX] = {a, b, c, d};
    struct eng_pages *p;
    assert_int_equal(eng_pages_open(count, &p), ST_OK);
    eng_pages_check(p);
    return p;
}

/* Of tier 0, and when that has none of the remote ones. */
static bool take_any(struct eng_pages *p, kn_page *out)
{
    return eng_pages_take(p, 0, out) || eng_pages_take_far(p, out);
}

static void takes_from_the_tier_asked_for(void **state)
{
    (void)state;
    struct eng_pages *p = open_pages(2, 0, 2, 1);
    static const kn_page expected[] = {0, 1, 2u << 28 | 0, 2u << 28 | 1, 3u << 28 | 0};
    kn_page page = KN_PAGE_NONE;
    assert_int_equal(eng_pages_total(p), 5);
    assert_false(eng_pages_take(p, 1, &page));
    assert_int_equal(page, KN_PAGE_NONE);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(eng_pages_free(p), 5 - i);
        assert_true(take_any(p, &page));
        assert_int_equal(page, expected[i]);
        assert_int_equal(eng_pages_slot(p, page), i);
        assert_true(eng_pages_is_taken(p, page));
        eng_pages_check(p);
    }
    page = 77;
    assert_false(take_any(p, &page));
    for (int t = 0; t < KN_TIER_MAX; t++) assert_false(eng_pages_take(p, t, &page));
    assert_int_equal(page, 77);
    assert_int_equal(eng_pages_free(p), 0);
    eng_pages_give(p, expected[3]);
    eng_pages_give(p, expected[1]);
    assert_int_equal(eng_pages_tier_free(p, 0), 1);
    assert_int_equal(eng_pages_tier_free(p, 2), 1);
    assert_int_equal(eng_pages_tier_total(p, 2), 2);
    assert_false(eng_pages_is_taken(p, expected[1]));
    assert_true(eng_pages_take_far(p, &page));
    assert_int_equal(page, expected[3]); /* though the other was given back last */
    assert_false(eng_pages_take_far(p, &page));
    assert_true(eng_pages_take(p, 0, &page));
    assert_int_equal(page, expected[1]);
    eng_pages_check(p);
    eng_pages_close(p);
}

static void gives_out_the_last_returned_page_of_a_tier(void **state)
{
    (void)state;
    struct eng_pages *p = open_pages(8, 0, 0, 0);
    kn_page page[8], again;
    for (int i = 0; i < 8; i++) assert_true(eng_pages_take(p, 0, &page[i]));
    eng_pages_give(p, page[2]);
    eng_pages_give(p, page[6]);
    eng_pages_give(p, page[4]);
    assert_true(eng_pages_take(p, 0, &again));
    assert_int_equal(again, page[4]);
    assert_true(eng_pages_take(p, 0, &again));
    assert_int_equal(again, page[6]);
    eng_pages_check(p);
    eng_pages_close(p);
}

static void no_pages_is_a_valid_pool(void **state)
{
    (void)state;
    struct eng_pages *p = open_pages(0, 0, 0, 0);
    kn_page page;
    assert_false(eng_pages_take(p, 0, &page));
    assert_int_equal(eng_pages_total(p), 0);
    eng_pages_check(p);
    eng_pages_close(p);
    eng_pages_close(NULL);
}

static void give_twice(struct eng_pages *p)
{
    kn_page page;
    if (!eng_pages_take(p, 0, &page)) return;
    eng_pages_give(p, page);
    eng_pages_give(p, page);
}

static void give_never_taken(struct eng_pages *p)
{
    eng_pages_give(p, kn_page_make(1, 0));
}

static void give_out_of_range(struct eng_pages *p)
{
    eng_pages_give(p, kn_page_make(0, 4));
}

static void give_none(struct eng_pages *p)
{
    eng_pages_give(p, KN_PAGE_NONE);
}

static void wrong_returns_stop_the_program(void **state)
{
    (void)state;
    void (*const mistakes[])(struct eng_pages *) = {give_twice, give_never_taken, give_out_of_range,
                                                    give_none};
    for (size_t i = 0; i < sizeof mistakes / sizeof mistakes[0]; i++) {
        struct eng_pages *p = open_pages(4, 4, 0, 0);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            setrlimit(RLIMIT_CORE, &(struct rlimit){0});
            if (!freopen("/dev/null", "w", stderr)) _exit(2);
            mistakes[i](p);
            _exit(0);
        }
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_false(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        assert_true(WIFSIGNALED(status));
        eng_pages_close(p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(takes_from_the_tier_asked_for),
        cmocka_unit_test(gives_out_the_last_returned_page_of_a_tier),
        cmocka_unit_test(no_pages_is_a_valid_pool),
        cmocka_unit_test(wrong_returns_stop_the_program),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
