/*
 * unit_engine_reuse.c - what sequences take from others, one rule at a time, on plans small enough
 * to write down.  Random load is sim_engine_sched.c's, the tree fuzz_engine_prefix.c's.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "config/check.h"
#include "engine/sched.h"

enum { SEQ_MAX = 8, LEN = 1024 };

struct bench {
    struct eng_sched *sched;
    struct eng_sched_seq seq[SEQ_MAX];
    kn_page pages[SEQ_MAX][LEN / KN_PAGE_TOKENS];
    int32_t tokens[SEQ_MAX][LEN];
    struct eng_plan plan;
    uint64_t begun; /* moves */
};

static struct bench *open_bench(int32_t budget, int32_t near, int32_t far)
{
    struct bench *b = calloc(1, sizeof *b);
    assert_non_null(b);
    const struct eng_sched_config config = {.seqs_max = SEQ_MAX,
                                            .tokens_step_max = budget,
                                            .page_count = {near, far},
                                            .residency = {8u << 20, 4700e9, 375e9, 256e9},
                                            .prefix_cache = true};
    assert_int_equal(eng_sched_open(&config, &b->sched), ST_OK);
    return b;
}

static void close_bench(struct bench *b)
{
    eng_sched_check(b->sched);
    eng_sched_close(b->sched);
    free(b);
}

/* Tokens `from` up to `same`, then others; the text is i's own. */
static void add(struct bench *b, int i, int from, int32_t same, int32_t count)
{
    struct eng_sched_seq *seq = &b->seq[i];
    for (int32_t t = 0; t < LEN; t++)
        b->tokens[i][t] = t < same ? b->tokens[from][t] : 1000 * (i + 1) + t;
    *seq = (struct eng_sched_seq){.token_count = count,
                                  .known_count = count,
                                  .reuse_max = INT32_MAX,
                                  .pages = b->pages[i],
                                  .tokens = b->tokens[i]};
    eng_sched_add(b->sched, seq);
}

static void plan(struct bench *b)
{
    eng_sched_plan(b->sched, &b->plan);
    eng_sched_check(b->sched);
    b->begun += (uint64_t)b->plan.move_count;
}

/* Commits, and gives every sampled sequence its next token, the text's. */
static void commit(struct bench *b)
{
    eng_sched_commit(b->sched, &b->plan);
    eng_sched_check(b->sched);
    for (int32_t i = 0; i < b->plan.item_count; i++)
        if (b->plan.items[i].sample) {
            b->plan.items[i].seq->token_count++;
            b->plan.items[i].seq->known_count++;
        }
}

static void step(struct bench *b)
{
    plan(b);
    commit(b);
}

/* All moves begun are over. */
static void arrive(struct bench *b)
{
    eng_sched_moved(b->sched, b->begun);
    eng_sched_check(b->sched);
}

static void finish(struct bench *b, int i)
{
    eng_sched_remove(b->sched, &b->seq[i]);
    eng_sched_check(b->sched);
}

/* Added, computed in one step, and gone: what it leaves is idle. */
static void pass(struct bench *b, int i, int from, int32_t same, int32_t count)
{
    add(b, i, from, same, count);
    step(b);
    finish(b, i);
}

static struct eng_sched_stats stats_of(const struct bench *b)
{
    struct eng_sched_stats stats;
    eng_sched_stats(b->sched, &stats);
    return stats;
}

static void assert_item(const struct bench *b, int32_t at, int i, int32_t begin, int32_t count)
{
    assert_in_range(at, 0, b->plan.item_count - 1);
    assert_ptr_equal(b->plan.items[at].seq, &b->seq[i]);
    assert_int_equal(b->plan.items[at].token_begin, begin);
    assert_int_equal(b->plan.items[at].token_count, count);
}

static void whole_pages_are_shared_and_the_tail_is_copied(void **state)
{
    (void)state;
    struct bench *b = open_bench(512, 32, 0);
    pass(b, 0, 0, 0, 300);
    assert_int_equal(stats_of(b).pages_used[0], 4);
    assert_int_equal(stats_of(b).pages_cached[0], 4);
    add(b, 1, 0, 200, 260); /* three pages, and 8 tokens of the fourth */
    plan(b);
    assert_item(b, 0, 1, 200, 60);
    assert_int_equal(b->plan.move_count, 1);
    assert_int_equal(b->plan.urgent_count, 1);
    assert_true(b->plan.wait);
    assert_int_equal(b->plan.moves[0].to, b->pages[1][3]);
    assert_int_not_equal(b->plan.moves[0].from, b->plan.moves[0].to);
    commit(b);
    assert_int_equal(stats_of(b).pages_used[0], 6); /* of which the fourth is cached alone */
    assert_int_equal(stats_of(b).pages_cached[0], 1);
    assert_int_equal(b->seq[1].cached_count[0], 200);
    assert_int_equal(stats_of(b).prefix_query_tokens, 560);
    assert_int_equal(stats_of(b).prefix_hit_tokens[0], 200);
    add(b, 2, 1, 260, 256); /* a page that is being read by another, and all of its prompt */
    plan(b);
    assert_item(b, 0, 1, 260, 1);
    assert_item(b, 1, 2, 255, 1); /* the last one's logits are wanted */
    assert_int_equal(b->pages[2][2], b->pages[1][2]);
    assert_int_not_equal(b->pages[2][3], b->pages[1][3]);
    commit(b);
    finish(b, 1);
    finish(b, 2);
    close_bench(b);
}

static void answers_to_one_prompt_compute_it_once(void **state)
{
    (void)state;
    struct bench *b = open_bench(1024, 32, 0);
    for (int i = 0; i < 4; i++) add(b, i, 0, i ? 150 : 0, 150);
    plan(b);
    assert_int_equal(b->plan.item_count, 1); /* the others wait for it */
    assert_item(b, 0, 0, 0, 150);
    commit(b);
    plan(b);
    assert_int_equal(b->plan.item_count, 4);
    assert_item(b, 0, 0, 150, 1);
    for (int i = 1; i < 4; i++) assert_item(b, i, i, 149, 1);
    assert_int_equal(b->plan.urgent_count, 3); /* of the page in which they part */
    for (int i = 1; i < 4; i++) assert_int_equal(b->plan.moves[i - 1].from, b->pages[0][2]);
    commit(b);
    assert_int_equal(stats_of(b).pages_used[0], 2 + 4);
    finish(b, 0); /* who was first may go first */
    step(b);
    for (int i = 1; i < 4; i++) finish(b, i);
    close_bench(b);
}

static void too_little_is_not_waited_for(void **state)
{
    (void)state;
    struct bench *b = open_bench(1024, 32, 0);
    add(b, 0, 0, 0, 150);
    add(b, 1, 0, 15, 150);
    plan(b);
    assert_int_equal(b->plan.item_count, 2);
    assert_item(b, 1, 1, 0, 150);
    commit(b);
    close_bench(b);
}

static void salts_and_limits_are_kept(void **state)
{
    (void)state;
    struct bench *b = open_bench(512, 32, 0);
    static const char salt[] = "tenant", other[] = "tenanu";
    add(b, 0, 0, 0, 200);
    b->seq[0].salt = salt;
    b->seq[0].salt_length = 6;
    step(b);
    finish(b, 0);
    const struct {
        const char *salt;
        int32_t length, reuse_max, found;
    } cases[] = {{NULL, 0, INT32_MAX, 0},   {other, 6, INT32_MAX, 0},     {salt, 5, INT32_MAX, 0},
                 {salt, 6, 0, 0},           {salt, 6, 100, 100},          {salt, 6, 64, 64},
                 {salt, 6, INT32_MAX, 192}, {"tenant", 6, INT32_MAX, 192}};
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        add(b, 1, 0, 200, 200);
        b->seq[1].salt = cases[i].salt;
        b->seq[1].salt_length = cases[i].length;
        b->seq[1].reuse_max = cases[i].reuse_max;
        plan(b);
        assert_item(b, 0, 1, cases[i].found, 200 - cases[i].found);
        commit(b);
        finish(b, 1);
    }
    close_bench(b);
}

/* Two that computed the same beside each other keep one of the pages. */
static void the_same_page_is_kept_once(void **state)
{
    (void)state;
    struct bench *b = open_bench(64, 32, 0);
    add(b, 0, 0, 0, 30); /* they part after 30 tokens, as far as is known */
    step(b);
    add(b, 1, 0, 40, 40);
    step(b); /* 30 copied */
    for (int32_t t = 30; t < LEN; t++) b->tokens[1][t] = b->tokens[0][t];
    while (b->seq[0].kv_count < 70 || b->seq[1].kv_count < 70) step(b);
    assert_int_equal(b->pages[0][0], b->pages[1][0]);
    assert_int_not_equal(b->pages[0][1], b->pages[1][1]);
    assert_int_equal(stats_of(b).pages_used[0], 3);
    close_bench(b);
}

/* Found once and used four pages before another that never was: in the long run worth more. */
static void what_was_found_before_stays_longer(void **state)
{
    (void)state;
    struct bench *b = open_bench(1024, 24, 0);
    pass(b, 0, 0, 0, 256);
    pass(b, 1, 0, 256, 256);
    pass(b, 2, 2, 0, 256);
    pass(b, 3, 3, 0, 768);
    assert_int_equal(stats_of(b).pages_cached[0], 20);
    add(b, 4, 4, 0, 6 * 64 - 1); /* four are free, two must go */
    step(b);
    assert_int_equal(stats_of(b).prefix_dropped_count[0], 2);
    finish(b, 4);
    const struct {
        int from;
        int32_t count, found;
    } cases[] = {{0, 256, 255}, {2, 256, 128}};
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        add(b, 5, cases[i].from, cases[i].count, cases[i].count);
        plan(b);
        assert_item(b, 0, 5, cases[i].found, cases[i].count - cases[i].found);
        commit(b);
        finish(b, 5);
    }
    assert_int_equal(stats_of(b).preempt_count, 0);
    close_bench(b);
}

/* Pages that the cache alone holds count as free: they delay no admission and preempt nobody. */
static void idle_pages_are_room(void **state)
{
    (void)state;
    struct bench *b = open_bench(1024, 16, 0);
    pass(b, 0, 0, 0, 15 * 64);
    assert_int_equal(stats_of(b).pages_cached[0], 15);
    for (int i = 1; i < 4; i++) add(b, i, i, 0, 4 * 64 - 1);
    plan(b);
    assert_int_equal(b->plan.item_count, 3);
    assert_int_equal(b->plan.preempt_count + b->plan.move_count, 0);
    commit(b);
    close_bench(b);
}

/* Of eight pages each, one after the other, where twelve are local: some of the first are far. */
static void two_leave_pages(struct bench *b)
{
    pass(b, 0, 0, 0, 512);
    add(b, 1, 1, 0, 512);
    step(b);
    arrive(b);
    finish(b, 1);
}

static void idle_pages_leave_for_the_remote_tier_and_are_fetched(void **state)
{
    (void)state;
    struct bench *b = open_bench(1024, 12, 32);
    two_leave_pages(b);
    assert_int_equal(stats_of(b).prefix_dropped_count[0], 0);
    assert_true(stats_of(b).prefix_sent_count >= 4);
    add(b, 3, 3, 0, 64); /* somebody runs */
    step(b);
    arrive(b);
    const int32_t far = stats_of(b).pages_cached[1];
    assert_true(far >= 4);
    add(b, 2, 0, 512, 530);
    plan(b); /* its pages set out, and it is not in the plan */
    assert_int_equal(b->plan.item_count, 1);
    assert_true(b->seq[2].fetching && b->plan.move_count > 0 && !b->plan.wait);
    assert_int_equal(b->seq[2].cached_count[0] + b->seq[2].cached_count[1], 512);
    assert_true(b->seq[2].cached_count[1] >= 4 * 64);
    commit(b);
    for (int i = 0; i < 8 && b->seq[2].kv_count == 512; i++) {
        arrive(b);
        step(b);
    }
    assert_int_equal(b->seq[2].kv_count, 530);
    assert_int_equal(b->seq[2].far_count, 0);
    close_bench(b);
}

/* What makes room for them sets out once, however many plans are made until it is gone, and those
 * that run do not wait for it; whether there are more idle pages than are to be fetched, or fewer.
 */
static void pages_to_be_fetched_wait_for_room_on_its_way(void **state)
{
    (void)state;
    static const int32_t beside[] = {63, 15 * 64 - 1};
    for (size_t k = 0; k < ARRAY_COUNT(beside); k++) {
        struct bench *b = open_bench(1024, 20, 64);
        add(b, 0, 0, 0, 512);
        step(b);
        finish(b, 0);
        add(b, 1, 1, 0, 1024);
        step(b);
        arrive(b);
        finish(b, 1);
        add(b, 3, 3, 0, beside[k]); /* somebody runs */
        step(b);
        arrive(b);
        const struct eng_sched_stats before = stats_of(b);
        assert_true(before.pages_cached[1] >= 4);
        assert_int_equal(before.pages_cached[0] > 8, k == 0);
        add(b, 2, 0, 512, 530);
        step(b);
        const uint64_t sent = stats_of(b).prefix_sent_count;
        assert_true(b->seq[2].fetching && sent > before.prefix_sent_count);
        for (int i = 0; i < 3; i++) {
            step(b);
            assert_true(b->seq[2].fetching && b->seq[2].kv_count == 512 && !b->plan.wait);
        }
        assert_int_equal(stats_of(b).prefix_sent_count, sent);
        for (int i = 0; i < 8 && b->seq[2].kv_count == 512; i++) {
            arrive(b);
            step(b);
        }
        assert_int_equal(b->seq[2].kv_count, 530);
        close_bench(b);
    }
}

/* Where nobody else runs the step waits for them. */
static void the_oldest_waits_for_its_pages_on_the_device(void **state)
{
    (void)state;
    struct bench *b = open_bench(1024, 12, 32);
    two_leave_pages(b);
    add(b, 2, 0, 512, 530);
    plan(b);
    assert_item(b, 0, 2, 512, 18);
    assert_true(b->plan.wait && b->plan.urgent_count > 0);
    assert_int_equal(b->seq[2].far_count, 0);
    commit(b);
    close_bench(b);
}

static void who_was_preempted_finds_his_pages_again(void **state)
{
    (void)state;
    struct bench *b = open_bench(1024, 10, 0);
    add(b, 0, 0, 0, 4 * 64 - 1);
    add(b, 1, 1, 0, 3 * 64);
    step(b);
    assert_int_equal(b->plan.item_count, 2);
    while (stats_of(b).preempt_count == 0) step(b);
    assert_int_equal(b->seq[1].state, ENG_SEQ_WAITING);
    const int32_t had = b->seq[1].token_count;
    finish(b, 0);
    plan(b);
    assert_ptr_equal(b->plan.items[0].seq, &b->seq[1]);
    assert_true(b->plan.items[0].token_begin >= (had - 1) / 64 * 64 - 64);
    assert_true(b->plan.items[0].token_begin > 0);
    commit(b);
    close_bench(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_pages_are_shared_and_the_tail_is_copied),
        cmocka_unit_test(answers_to_one_prompt_compute_it_once),
        cmocka_unit_test(too_little_is_not_waited_for),
        cmocka_unit_test(salts_and_limits_are_kept),
        cmocka_unit_test(the_same_page_is_kept_once),
        cmocka_unit_test(what_was_found_before_stays_longer),
        cmocka_unit_test(idle_pages_are_room),
        cmocka_unit_test(idle_pages_leave_for_the_remote_tier_and_are_fetched),
        cmocka_unit_test(pages_to_be_fetched_wait_for_room_on_its_way),
        cmocka_unit_test(the_oldest_waits_for_its_pages_on_the_device),
        cmocka_unit_test(who_was_preempted_finds_his_pages_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
