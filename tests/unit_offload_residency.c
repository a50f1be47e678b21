/*
 * unit_offload_residency.c - the order in which KV pages leave local memory and come back: against
 * every choice there is, for small random cases, and by its properties.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "offload/residency.h"
#include "tests/test_random.h"

enum { SEQS = 4, CASES = 3000 };

static const struct off_residency nvlink = {.page_bytes = 8u << 20,
                                            .local_bytes_per_s = 4700e9,
                                            .link_bytes_per_s = 375e9,
                                            .copy_bytes_per_s = 256e9};
static const struct off_residency pcie = {.page_bytes = 8u << 20,
                                          .local_bytes_per_s = 4700e9,
                                          .link_bytes_per_s = 51e9,
                                          .copy_bytes_per_s = 55e9};

static int32_t below(int32_t n)
{
    return (int32_t)(test_random() % (uint64_t)n);
}

static void what_is_free_costs_nothing(void **state)
{
    (void)state;
    const struct off_residency *rates[] = {&nvlink, &pcie};
    for (int i = 0; i < 2; i++) {
        const struct off_residency *r = rates[i];
        for (int64_t pages = 0; pages < 20000; pages += 97) {
            const int64_t free = off_residency_free(r, pages);
            const double all = off_residency_step_s(r, pages, 0);
            assert_true(free >= 0 && free <= pages);
            assert_true(off_residency_step_s(r, pages - free, free) <= all);
            if (free < pages) /* one more, and the link decides */
                assert_true((double)(free + 1) / r->link_bytes_per_s * 1.0000001 >=
                            (double)(pages - free - 1) / r->local_bytes_per_s);
        }
    }
    assert_int_equal(off_residency_free(&nvlink, 1000), 73);
    assert_int_equal(off_residency_free(&pcie, 1000), 10);
    assert_int_equal(off_residency_moves(&pcie, 1e-3), 6);
    assert_int_equal(off_residency_moves(&pcie, 0), 0);
    assert_int_equal(off_residency_moves(&pcie, -1), 0);
}

/* How many of `count` sequences of so many pages run at once where each must gain, with local
 * memory for `near` pages and steps that take base_s beside attention. */
static int32_t admitted(const struct off_residency *r, int32_t count, int64_t pages, int64_t near,
                        double base_s)
{
    int32_t n = 1;
    double now = INFINITY, then;
    for (; n < count; n++, now = then) {
        const int64_t all = (n + 1) * pages, far = all > near ? all - near : 0;
        then = base_s + off_residency_likely_s(r, all - far, far);
        if (far && !off_residency_gains(n, now, then)) break;
    }
    return n;
}

/* Workloads measured on H200s (tests/gpu/results, kv), by what gave the most tokens a second.
 * 8 of 64 sequences of 8,192 tokens local, 4 layers of 8B: 7,115 tokens/s with eight at a time,
 * 3,039 with all at once over NVLink, and nine at a time took a fifth longer than eight; over PCIe
 * 4,434 against 432.  8 of 32 sequences of 1,024, 8 layers, weights behind PCIe that take 11.7 ms a
 * step: 1,131 with all at once, 859 with 27 and 674 with 8. */
static void who_adds_to_a_step_adds_tokens(void **state)
{
    (void)state;
    struct off_residency r = nvlink;
    r.page_bytes = 1u << 20;
    assert_int_equal(admitted(&r, 64, 129, 1040, 0.78e-3), 8);
    r = pcie;
    r.page_bytes = 1u << 20;
    assert_int_equal(admitted(&r, 64, 129, 1040, 0.78e-3), 8);
    r.page_bytes = 2u << 20;
    assert_int_equal(admitted(&r, 32, 17, 144, 11.7e-3), 32);
    assert_in_range(admitted(&r, 320, 17, 144, 11.7e-3), 33, 100); /* and not any number */
}

/* Never less than the longer of the two, nor more than both; alone each has its rate. */
static void what_is_likely_lies_between(void **state)
{
    (void)state;
    for (int i = 0; i < CASES; i++) {
        const int64_t near = below(20000), far = below(20000);
        const double least = off_residency_step_s(&nvlink, near, far);
        const double most =
            off_residency_step_s(&nvlink, near, 0) + off_residency_step_s(&nvlink, 0, far);
        const double likely = off_residency_likely_s(&nvlink, near, far);
        assert_true(likely >= least && likely <= most);
        assert_true(near && far ? likely > least : likely == least);
    }
}

/* A step's time, or what it takes with all its pages near where that is longer: within the free
 * fraction one more far page would even be a gain, which is not what pages leave for. */
static double time_of(const struct off_residency *r, const struct off_residency_seq *s, int count)
{
    int64_t near = 0, far = 0;
    for (int i = 0; i < count; i++) {
        if (!s[i].read) continue;
        near += s[i].near;
        far += s[i].far;
    }
    return fmax(off_residency_step_s(r, near, far), off_residency_step_s(r, near + far, 0));
}

/* The least time there is after `left` more pages of sequences from `at` on have left. */
static double least(const struct off_residency *r, struct off_residency_seq *s, int count, int at,
                    int32_t left)
{
    if (left == 0) return time_of(r, s, count);
    if (at == count) return INFINITY;
    double best = INFINITY;
    const struct off_residency_seq was = s[at];
    for (int32_t k = 0; k <= left && k <= was.near; k++) {
        s[at].near = was.near - k;
        s[at].far = was.far + k;
        best = fmin(best, least(r, s, count, at + 1, left - k));
    }
    s[at] = was;
    return best;
}

static struct off_residency_seq *first(struct off_residency_seq *s, int count, bool leaves)
{
    struct off_residency_seq *best = NULL;
    for (int i = 0; i < count; i++) {
        if ((leaves ? s[i].near : s[i].far) == 0) continue;
        if (!best ||
            (leaves ? off_residency_leaves(&s[i], best) : off_residency_returns(&s[i], best)))
            best = &s[i];
    }
    return best;
}

/* By twos: from any start, the largest and the smallest share of sequences of the same kind that
 * could still give a page differ by no more than a page of either after as many leave as there
 * were. */
static void assert_even(const struct off_residency_seq *s, int count)
{
    for (int i = 0; i < count; i++)
        for (int k = 0; k < count; k++) {
            if (s[i].read != s[k].read || s[k].near == 0 || s[i].near + s[i].far == 0) continue;
            const double mine = (double)(s[i].far - 1) / (s[i].near + s[i].far);
            const double other = (double)s[k].far / (s[k].near + s[k].far);
            assert_true(mine <= other + 1e-12);
        }
}

static void pages_leave_for_the_shortest_step(void **state)
{
    (void)state;
    for (int c = 0; c < CASES; c++) {
        struct off_residency_seq s[SEQS];
        const int count = 1 + below(SEQS);
        int32_t pages = 0;
        struct off_residency r = c % 2 ? nvlink : pcie;
        r.link_bytes_per_s *= 1 + 20 * fabs((double)test_random_float());
        for (int i = 0; i < count; i++) {
            s[i] = (struct off_residency_seq){.near = below(8), .read = below(3) > 0};
            pages += s[i].near;
        }
        for (int32_t left = 1; left <= pages; left++) {
            struct off_residency_seq *one = first(s, count, true);
            const double best = least(&r, s, count, 0, 1);
            assert_non_null(one);
            one->near--;
            one->far++;
            assert_true(time_of(&r, s, count) <= best);
            assert_even(s, count);
        }
    }
}

/* All that left at once is as good as what any choice of as many would have been. */
static void the_whole_choice_is_the_best(void **state)
{
    (void)state;
    for (int c = 0; c < CASES / 10; c++) {
        struct off_residency_seq s[SEQS], was[SEQS];
        int32_t pages = 0;
        for (int i = 0; i < SEQS; i++) {
            s[i] = (struct off_residency_seq){.near = below(7), .read = below(3) > 0};
            pages += s[i].near;
        }
        memcpy(was, s, sizeof s);
        const int32_t left = pages ? below(pages + 1) : 0;
        for (int32_t i = 0; i < left; i++) {
            struct off_residency_seq *one = first(s, SEQS, true);
            one->near--;
            one->far++;
        }
        assert_true(time_of(&nvlink, s, SEQS) <= least(&nvlink, was, SEQS, 0, left));
    }
}

static void pages_come_back_where_they_are_read(void **state)
{
    (void)state;
    struct off_residency_seq s[] = {{4, 4, false}, {6, 2, true}, {2, 6, true}, {0, 0, true}};
    assert_ptr_equal(first(s, 4, false), &s[2]);
    s[2] = (struct off_residency_seq){7, 1, true};
    assert_ptr_equal(first(s, 4, false), &s[1]);
    s[1].far = s[2].far = 0;
    assert_ptr_equal(first(s, 4, false), &s[0]);
    assert_ptr_equal(first(s, 4, true), &s[0]); /* nobody reads it */
    s[0].near = 0;
    assert_ptr_equal(first(s, 4, true), &s[2]);
}

static void not_more_come_back_than_pays(void **state)
{
    (void)state;
    /* 1,000 pages of which 73 may be far; 30 a millisecond can come. */
    assert_int_equal(off_residency_return_count(&nvlink, 927, 73, 500, 1), 0);
    assert_int_equal(off_residency_return_count(&nvlink, 926, 74, 500, 1), 1);
    assert_int_equal(off_residency_return_count(&nvlink, 900, 100, 500, 1), 27);
    assert_int_equal(off_residency_return_count(&nvlink, 900, 100, 5, 1), 5);
    assert_int_equal(off_residency_return_count(&nvlink, 900, 100, -5, 1), 0);
    assert_int_equal(off_residency_return_count(&nvlink, 0, 1000, 500, 1e-3), 30);
    assert_int_equal(off_residency_return_count(&nvlink, 0, 1000, 500, 0), 1);
    assert_int_equal(off_residency_return_count(&nvlink, 0, 0, 500, 1), 0);
}

/* A step with so many of its pages far, beside what else it does. */
static double whole_step_s(const struct off_residency *r, int64_t pages, int64_t far)
{
    const double attention_s = off_residency_step_s(r, pages - far, far);
    const double far_s = (double)far * (double)r->page_bytes / r->link_bytes_per_s;
    return r->busy_s > 0 ? fmax(r->other_s + attention_s, r->busy_s + far_s) : attention_s;
}

/* Against every number of far pages, whatever else crosses the link: none gives a step that is
 * shorter by more than a page takes. */
static void the_best_share_is_the_best(void **state)
{
    (void)state;
    int none = 0, less = 0;
    for (int c = 0; c < CASES; c++) {
        struct off_residency r = c % 2 ? nvlink : pcie;
        const int64_t pages = below(1500);
        r.link_bytes_per_s *= 1 + 3 * fabs((double)test_random_float());
        if (below(2)) {
            r.other_s = 1e-3 * below(20);
            r.busy_s = r.other_s * below(150) / 100;
        }
        const int64_t best = off_residency_best(&r, pages);
        const double took = whole_step_s(&r, pages, best);
        const double page_s = (double)r.page_bytes / r.link_bytes_per_s;
        double shortest = INFINITY;
        for (int64_t far = 0; far <= pages; far++)
            shortest = fmin(shortest, whole_step_s(&r, pages, far));
        if (took > shortest + page_s)
            fail_msg("case %d: %ld of %ld pages: %g s, and %g are possible", c, (long)best,
                     (long)pages, took, shortest);
        none += best == 0 && pages > 200;
        less += best > 0 && best < off_residency_free(&r, pages);
    }
    assert_true(none > 10 && less > 10);
}

static void pages_leave_where_that_is_worth_it(void **state)
{
    (void)state;
    struct off_residency r = nvlink;
    /* 73 pages of 1,000 behind the link take 0.13 ms of 1.8 from a step. */
    r.worth_s = 0.12e-3;
    assert_int_equal(off_residency_best(&r, 1000), 73);
    r.worth_s = 0.14e-3;
    assert_int_equal(off_residency_best(&r, 1000), 0);
    assert_int_equal(off_residency_leave_count(&r, 1000, 0, 1), 0);
    r.worth_s = 0;
    assert_int_equal(off_residency_leave_count(&r, 1000, 0, 1), 73);
    assert_int_equal(off_residency_leave_count(&r, 1000, 0, 1e-3), 30);
    assert_int_equal(off_residency_leave_count(&r, 1000, 0, 0), 1);
    assert_int_equal(off_residency_leave_count(&r, 0, 0, 1), 0);
    /* In the long run: the best, or what has no room. */
    assert_int_equal(off_residency_steady(&r, 1000, 2000), 73);
    assert_int_equal(off_residency_steady(&r, 1000, 950), 73);
    assert_int_equal(off_residency_steady(&r, 1000, 600), 400);
    r.worth_s = 1;
    assert_int_equal(off_residency_steady(&r, 1000, 2000), 0);
    assert_int_equal(off_residency_steady(&r, 1000, 950), 50);
}

/* Whatever is there, following what should leave and what should return ends, and both never ask
 * at once. */
static void pages_do_not_go_back_and_forth(void **state)
{
    (void)state;
    for (int c = 0; c < CASES; c++) {
        struct off_residency r = c % 2 ? nvlink : pcie;
        const int64_t pages = below(2000);
        int64_t far = pages ? below((int32_t)pages + 1) : 0;
        int turns = 0, last = 0;
        r.worth_s = 1e-5 * below(10);
        if (below(3) == 0) r.busy_s = r.other_s = 1e-3 * below(20);
        for (int step = 0;; step++) {
            const double seconds = 1e-3 * below(10);
            const int64_t out = off_residency_leave_count(&r, pages - far, far, seconds);
            const int64_t back = off_residency_return_count(&r, pages - far, far, pages, seconds);
            assert_true(out == 0 || back == 0);
            if (out == 0 && back == 0) break;
            turns += last == (out ? -1 : 1);
            last = out ? 1 : -1;
            far += out - back;
            assert_true(far >= 0 && far <= pages && step < 3000);
        }
        assert_int_equal(turns, 0);
    }
}

int main(void)
{
    test_seed();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_free_costs_nothing),
        cmocka_unit_test(who_adds_to_a_step_adds_tokens),
        cmocka_unit_test(what_is_likely_lies_between),
        cmocka_unit_test(pages_leave_for_the_shortest_step),
        cmocka_unit_test(the_whole_choice_is_the_best),
        cmocka_unit_test(pages_come_back_where_they_are_read),
        cmocka_unit_test(not_more_come_back_than_pays),
        cmocka_unit_test(the_best_share_is_the_best),
        cmocka_unit_test(pages_leave_where_that_is_worth_it),
        cmocka_unit_test(pages_do_not_go_back_and_forth),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
