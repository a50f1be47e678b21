/*
 * unit_engine_sched.c - the scheduler's rules one by one, on plans small enough to write down.
 * Random load is sim_engine_sched.c's.
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

#define SEQ_MAX 8
#define PAGES_MAX 64

struct bench {
    struct eng_sched *sched;
    struct eng_sched_seq seq[SEQ_MAX];
    kn_page pages[SEQ_MAX][PAGES_MAX];
    struct eng_plan plan;
    uint64_t begun; /* moves */
};

/* Pages of 8 MB, NVLink; none leaves that has room, but where a test says so. */
static const struct off_residency rates = {.page_bytes = 8u << 20,
                                           .local_bytes_per_s = 4700e9,
                                           .link_bytes_per_s = 375e9,
                                           .copy_bytes_per_s = 256e9,
                                           .worth_s = 1};

static struct bench *open_config(const struct eng_sched_config *config)
{
    struct bench *b = calloc(1, sizeof *b);
    assert_non_null(b);
    assert_int_equal(eng_sched_open(config, &b->sched), ST_OK);
    for (int i = 0; i < SEQ_MAX; i++) b->seq[i].pages = b->pages[i];
    return b;
}

static struct bench *open_bench(int32_t seqs_max, int32_t tokens, int32_t chunk, int32_t pages)
{
    const struct eng_sched_config config = {
        .seqs_max = seqs_max, .tokens_step_max = tokens, .chunk_max = chunk, .page_count = {pages}};
    return open_config(&config);
}

static void close_bench(struct bench *b)
{
    eng_sched_check(b->sched);
    eng_sched_close(b->sched);
    free(b);
}

static void add(struct bench *b, int i, int32_t tokens)
{
    b->seq[i].token_count = tokens;
    eng_sched_add(b->sched, &b->seq[i]);
    assert_int_equal(b->seq[i].state, ENG_SEQ_WAITING);
}

static void plan(struct bench *b)
{
    eng_sched_plan(b->sched, &b->plan);
    eng_sched_check(b->sched);
}

/* Commits, and gives every sampled sequence its next token. */
static void commit(struct bench *b)
{
    eng_sched_commit(b->sched, &b->plan);
    eng_sched_check(b->sched);
    for (int32_t i = 0; i < b->plan.item_count; i++)
        if (b->plan.items[i].sample) b->plan.items[i].seq->token_count++;
}

static void step(struct bench *b)
{
    plan(b);
    commit(b);
}

static void assert_item(struct bench *b, int32_t at, int i, int32_t begin, int32_t count,
                        bool sample)
{
    assert_in_range(at, 0, b->plan.item_count - 1);
    const struct eng_plan_item *item = &b->plan.items[at];
    assert_ptr_equal(item->seq, &b->seq[i]);
    assert_int_equal(item->token_begin, begin);
    assert_int_equal(item->token_count, count);
    assert_int_equal(item->sample, sample);
}

static void nothing_to_do_is_an_empty_plan(void **state)
{
    (void)state;
    struct bench *b = open_bench(4, 16, 0, 8);
    for (int i = 0; i < 3; i++) {
        plan(b);
        assert_int_equal(b->plan.item_count, 0);
        assert_int_equal(b->plan.token_count, 0);
    }
    add(b, 0, 1);
    plan(b);
    assert_int_equal(b->plan.item_count, 1);
    assert_item(b, 0, 0, 0, 1, true);
    commit(b);
    eng_sched_remove(b->sched, &b->seq[0]);
    plan(b);
    assert_int_equal(b->plan.item_count, 0);
    close_bench(b);
}

static void a_prompt_is_cut_into_chunks_and_its_end_is_sampled(void **state)
{
    (void)state;
    struct bench *b = open_bench(4, 100, 0, 8);
    add(b, 0, 250);
    plan(b);
    assert_item(b, 0, 0, 0, 100, false);
    assert_int_equal(b->seq[0].page_count, 2);
    commit(b);
    step(b);
    plan(b);
    assert_item(b, 0, 0, 200, 50, true);
    assert_int_equal(b->plan.token_count, 50);
    commit(b);
    assert_int_equal(b->seq[0].page_count, 4);
    plan(b);
    assert_item(b, 0, 0, 250, 1, true);
    commit(b);
    assert_int_equal(b->seq[0].kv_count, 251);
    close_bench(b);
}

static void decodes_come_first_then_prefills_then_admissions(void **state)
{
    (void)state;
    struct bench *b = open_bench(4, 40, 30, 40);
    add(b, 0, 100); /* 30, 30, 30, 10 */
    add(b, 1, 8);
    step(b);
    assert_item(b, 0, 0, 0, 30, false);
    assert_item(b, 1, 1, 0, 8, true);
    add(b, 2, 90);
    plan(b);
    assert_int_equal(b->plan.item_count, 3);
    assert_item(b, 0, 1, 8, 1, true); /* the younger, as it decodes */
    assert_item(b, 1, 0, 30, 30, false);
    assert_item(b, 2, 2, 0, 9, false);
    assert_int_equal(b->plan.token_count, 40);
    commit(b);
    close_bench(b);
}

static void admission_stops_at_the_first_that_does_not_fit(void **state)
{
    (void)state;
    struct bench *b = open_bench(8, 1024, 0, 10);
    add(b, 0, 64);     /* alone: 1 page */
    add(b, 1, 64 * 7); /* 7 pages and a reserve of 2 in the 9 left */
    add(b, 2, 1);
    step(b);
    assert_int_equal(b->plan.item_count, 2);
    assert_int_equal(b->seq[2].state, ENG_SEQ_WAITING); /* would need 1 and a reserve of 3, of 2 */
    eng_sched_remove(b->sched, &b->seq[1]);
    add(b, 3, 64 * 10);
    add(b, 4, 1);
    step(b);
    assert_int_equal(b->seq[2].state, ENG_SEQ_RUNNING);
    assert_int_equal(b->seq[3].state, ENG_SEQ_WAITING);
    assert_int_equal(b->seq[4].state, ENG_SEQ_WAITING); /* though it would fit */
    close_bench(b);
}

static void the_watermark_counts_what_prefills_still_need(void **state)
{
    (void)state;
    struct bench *b = open_bench(8, 64, 32, 12);
    add(b, 0, 64 * 8); /* has one page after the first step, and 7 to come */
    add(b, 1, 64 * 2); /* 2 and a reserve of 2: 4 free, were 7 not promised */
    add(b, 2, 1);
    step(b);
    assert_int_equal(b->plan.item_count, 2);
    assert_int_equal(b->seq[1].state, ENG_SEQ_RUNNING);
    eng_sched_remove(b->sched, &b->seq[1]);
    add(b, 3, 64 * 2);
    step(b);
    assert_int_equal(b->seq[2].state, ENG_SEQ_RUNNING); /* 1 and 2 */
    assert_int_equal(b->seq[3].state, ENG_SEQ_WAITING); /* 2 and 3, of 3 */
    close_bench(b);
}

static void limits_of_sequences(void **state)
{
    (void)state;
    struct bench *b = open_bench(2, 100, 0, 40);
    for (int i = 0; i < 3; i++) add(b, i, 5);
    step(b);
    assert_int_equal(b->plan.item_count, 2);
    close_bench(b);

    b = open_bench(8, 3, 0, 40); /* the budget caps them too: each decodes in every step */
    for (int i = 0; i < 5; i++) add(b, i, 1);
    for (int i = 0; i < 10; i++) {
        step(b);
        assert_int_equal(b->plan.item_count, 3);
        for (int j = 0; j < 3; j++) assert_item(b, j, j, i, 1, true);
    }
    close_bench(b);
}

/* Two sequences of 63 tokens in 4 pages: after 65 more each they want a third page each. */
static void the_youngest_is_preempted_and_comes_back_first(void **state)
{
    (void)state;
    struct bench *b = open_bench(8, 256, 0, 4);
    struct eng_sched_stats stats;
    add(b, 0, 63);
    add(b, 1, 63);
    add(b, 2, 63);
    step(b);
    assert_int_equal(b->plan.item_count, 2);
    for (int i = 0; i < 65; i++) {
        step(b);
        assert_int_equal(b->plan.item_count, 2);
    }
    assert_int_equal(b->seq[0].kv_count, 128);
    assert_int_equal(b->seq[1].page_count, 2);
    plan(b);
    assert_int_equal(b->plan.preempt_count, 1);
    assert_int_equal(b->plan.item_count, 1);
    assert_item(b, 0, 0, 128, 1, true);
    commit(b);
    assert_int_equal(b->seq[1].state, ENG_SEQ_WAITING);
    assert_int_equal(b->seq[1].kv_count, 0);
    assert_int_equal(b->seq[1].page_count, 0);
    assert_int_equal(b->seq[1].preempt_count, 1);
    assert_int_equal(b->seq[1].token_count, 129); /* what it generated is kept */
    eng_sched_stats(b->sched, &stats);
    assert_int_equal(stats.preempt_count, 1);
    assert_int_equal(stats.running, 1);
    assert_int_equal(stats.waiting, 2);
    assert_int_equal(stats.pages_used[0] + stats.pages_used[1], 3);
    eng_sched_remove(b->sched, &b->seq[0]);
    plan(b);
    assert_item(b, 0, 1, 0, 129, true); /* before the third, prompt and answer in one go */
    assert_int_equal(b->plan.item_count, 1);
    commit(b);
    close_bench(b);
}

static void one_sequence_may_have_every_page(void **state)
{
    (void)state;
    struct bench *b = open_bench(8, 50, 0, 3);
    assert_int_equal(eng_sched_seq_tokens_max(b->sched), 192);
    add(b, 0, 180);
    add(b, 1, 192);
    while (b->seq[0].token_count < 192) step(b);
    plan(b);
    assert_item(b, 0, 0, 191, 1, true);
    commit(b);
    assert_int_equal(b->seq[0].page_count, 3);
    eng_sched_remove(b->sched, &b->seq[0]);
    plan(b);
    assert_item(b, 0, 1, 0, 50, false);
    commit(b);
    close_bench(b);
}

static void removal_in_every_state(void **state)
{
    (void)state;
    struct bench *b = open_bench(8, 32, 0, 20);
    struct eng_sched_stats stats;
    eng_sched_remove(b->sched, &b->seq[0]); /* new */
    for (int i = 0; i < 5; i++) add(b, i, 30);
    step(b);
    plan(b);
    eng_sched_remove(b->sched, &b->seq[4]); /* waiting, while a plan without it is out */
    commit(b);
    eng_sched_remove(b->sched, &b->seq[1]); /* in the middle of its prompt */
    eng_sched_remove(b->sched, &b->seq[1]);
    eng_sched_remove(b->sched, &b->seq[0]); /* head */
    eng_sched_check(b->sched);
    eng_sched_remove(b->sched, &b->seq[3]);
    step(b);
    assert_int_equal(b->plan.item_count, 1);
    assert_item(b, 0, 2, b->plan.items[0].token_begin, b->plan.items[0].token_count, true);
    eng_sched_remove(b->sched, &b->seq[2]);
    eng_sched_stats(b->sched, &stats);
    assert_int_equal(stats.running + stats.waiting, 0);
    assert_int_equal(stats.pages_used[0] + stats.pages_used[1], 0);
    for (int i = 0; i < 5; i++) assert_int_equal(b->seq[i].state, ENG_SEQ_NEW);
    add(b, 1, 7); /* a removed one may come again */
    step(b);
    assert_item(b, 0, 1, 0, 7, true);
    close_bench(b);
}

static void tokens_max_counts_every_tier(void **state)
{
    (void)state;
    struct eng_sched_config config = {
        .seqs_max = 1, .tokens_step_max = 1, .page_count = {1}, .residency = rates};
    struct eng_sched *s;
    assert_int_equal(eng_sched_open(&config, &s), ST_OK);
    assert_int_equal(eng_sched_seq_tokens_max(s), 64);
    eng_sched_close(s);
    config.page_count[3] = 2;
    assert_int_equal(eng_sched_open(&config, &s), ST_OK);
    assert_int_equal(eng_sched_seq_tokens_max(s), 192);
    eng_sched_close(s);
    eng_sched_close(NULL);
}

/* --- pages in several tiers ------------------------------------------------------------------- */

static const struct off_residency balanced = {.page_bytes = 8u << 20,
                                              .local_bytes_per_s = 4700e9,
                                              .link_bytes_per_s = 375e9,
                                              .copy_bytes_per_s = 256e9};

static struct bench *open_rates(int32_t seqs_max, int32_t tokens, int32_t near, int32_t far,
                                const struct off_residency *r)
{
    const struct eng_sched_config config = {.seqs_max = seqs_max,
                                            .tokens_step_max = tokens,
                                            .page_count = {near, 0, far},
                                            .residency = *r};
    return open_config(&config);
}

static struct bench *open_tiers(int32_t seqs_max, int32_t tokens, int32_t near, int32_t far)
{
    return open_rates(seqs_max, tokens, near, far, &rates);
}

/* A step whose moves are over before the next one. */
static void step_and_only_move(struct bench *b)
{
    eng_sched_moved(b->sched, b->begun);
    step(b);
    b->begun += (uint64_t)b->plan.move_count;
}

/* And which takes 10 ms. */
static void step_and_move(struct bench *b)
{
    step_and_only_move(b);
    eng_sched_learn(b->sched, &b->plan.load, 10e-3);
}

static struct eng_sched_stats stats_of(const struct bench *b)
{
    struct eng_sched_stats stats;
    eng_sched_stats(b->sched, &stats);
    return stats;
}

/* With two local pages a sequence of seven has five behind the link in the end, the oldest ones,
 * and nothing is computed twice. */
static void a_sequence_may_be_longer_than_local_memory(void **state)
{
    (void)state;
    struct bench *b = open_tiers(2, 100, 2, 6);
    add(b, 0, 64 * 7 - 10);
    int steps = 0;
    for (; b->seq[0].token_count < 64 * 7; steps++) {
        step_and_move(b);
        assert_int_equal(b->plan.item_count, 1);
    }
    assert_int_equal(steps, 4 + 9 + 1); /* 100, 100, 100, 100, 38 and the answer */
    assert_true(b->seq[0].far_count >= 5 && b->seq[0].page_count == 7);
    assert_int_equal(stats_of(b).preempt_count, 0);
    assert_true(stats_of(b).move_wait_count > 0); /* the prompt's chunks are as large as there is */
    assert_int_equal(stats_of(b).pages_used[2], b->seq[0].far_count + stats_of(b).pages_moving);
    close_bench(b);
}

/* Decodes fill pages one after another: what they need is free before they need it. */
static void pages_leave_before_they_are_needed(void **state)
{
    (void)state;
    struct bench *b = open_tiers(4, 256, 24, 64);
    for (int i = 0; i < 4; i++) add(b, i, 30 + 16 * i);
    for (int i = 0; i < 64 * 15; i++) {
        step_and_move(b);
        assert_int_equal(b->plan.item_count, 4);
        assert_false(b->plan.wait);
    }
    const struct eng_sched_stats stats = stats_of(b);
    assert_int_equal(stats.preempt_count, 0);
    assert_true(stats.pages_out_count >= 4 * 15 - 24);
    assert_true(stats.pages_used[0] >= 24 - 4 - stats.pages_moving); /* but hardly before */
    for (int i = 1; i < 4; i++) /* they share the link evenly */
        assert_in_range(b->seq[i].far_count, b->seq[0].far_count - 1, b->seq[0].far_count + 1);
    close_bench(b);
}

static void pages_come_back_when_there_is_room(void **state)
{
    (void)state;
    struct bench *b = open_tiers(4, 256, 24, 64);
    for (int i = 0; i < 4; i++) add(b, i, 64 * 10 - 20);
    for (int i = 0; i < 30; i++) step_and_move(b);
    assert_int_equal(stats_of(b).waiting, 0);
    assert_true(b->seq[0].far_count >= 4);
    for (int i = 1; i < 4; i++) eng_sched_remove(b->sched, &b->seq[i]);
    for (int i = 0; i < 10; i++) step_and_move(b);
    assert_int_equal(b->seq[0].far_count, 0);
    assert_true(stats_of(b).pages_back_count >= 4);
    close_bench(b);
}

/* Local memory has room for all, and attention is shortest with 7 % of what it reads behind NVLink:
 * so many pages leave, as fast as the copy engine goes, those of all sequences alike; later ones
 * follow as contexts grow, none comes back before somebody goes, and then only once. */
static void pages_leave_for_the_balance(void **state)
{
    (void)state;
    struct bench *b = open_rates(4, 2048, 300, 100, &balanced);
    uint64_t out = 0, back = 0;
    for (int i = 0; i < 4; i++) add(b, i, 64 * 40);
    for (int i = 0; i < 100; i++) step_and_move(b);
    assert_int_equal(stats_of(b).waiting, 0);
    int64_t pages = 0, far = 0;
    for (int i = 0; i < 4; i++) {
        pages += b->seq[i].page_count;
        far += b->seq[i].far_count;
        assert_in_range(b->seq[i].far_count, b->seq[0].far_count - 1, b->seq[0].far_count + 1);
    }
    const int64_t best = off_residency_best(&balanced, pages);
    assert_true(best >= 11);
    assert_in_range(far, best - best / 8, best);
    out = stats_of(b).pages_out_count;
    for (int i = 0; i < 64 * 10; i++) {
        step_and_move(b);
        assert_false(b->plan.wait);
    }
    /* 40 pages more, and one in fourteen of them. */
    assert_in_range(stats_of(b).pages_out_count, out + 1, out + 5);
    assert_int_equal(stats_of(b).pages_back_count, 0);
    out = stats_of(b).pages_out_count;
    for (int i = 2; i < 4; i++) eng_sched_remove(b->sched, &b->seq[i]);
    for (int i = 0; i < 30; i++) step_and_move(b);
    back = stats_of(b).pages_back_count;
    assert_true(back <= 2); /* the others had their share */
    for (int i = 0; i < 60; i++) step_and_move(b);
    assert_int_equal(stats_of(b).pages_back_count, back);
    assert_true(stats_of(b).pages_out_count <= out + 2);
    assert_int_equal(stats_of(b).move_wait_count, 0);
    close_bench(b);
}

/* Of a sequence that goes while its pages are under way both places are free when they arrive. */
static void who_goes_leaves_its_moves_to_end(void **state)
{
    (void)state;
    struct bench *b = open_tiers(2, 256, 8, 16);
    add(b, 0, 64 * 6);
    add(b, 1, 64 * 2);
    for (int i = 0; i < 200 && stats_of(b).pages_moving == 0; i++) {
        eng_sched_moved(b->sched, b->begun);
        step(b);
        if (!b->plan.move_count) continue;
        const int32_t moving = stats_of(b).pages_moving;
        assert_true(moving > 0);
        eng_sched_remove(b->sched, &b->seq[0]);
        eng_sched_remove(b->sched, &b->seq[1]);
        eng_sched_check(b->sched);
        assert_int_equal(stats_of(b).pages_used[0], moving);
        assert_int_equal(stats_of(b).pages_used[2], moving);
        eng_sched_moved(b->sched, b->begun + (uint64_t)b->plan.move_count);
        assert_int_equal(stats_of(b).pages_used[0] + stats_of(b).pages_used[2], 0);
        close_bench(b);
        return;
    }
    fail_msg("nothing moved");
}

/* Both tiers full: the youngest is preempted, and comes back when the other has gone. */
static void only_when_every_tier_is_full_is_anybody_preempted(void **state)
{
    (void)state;
    struct bench *b = open_tiers(2, 256, 4, 4);
    add(b, 0, 100);
    add(b, 1, 100);
    while (stats_of(b).preempt_count == 0) {
        assert_true(b->seq[0].token_count < 400);
        step_and_move(b);
    }
    assert_int_equal(b->seq[0].token_count, 64 * 4 + 2); /* eight pages were taken */
    assert_int_equal(b->seq[1].state, ENG_SEQ_WAITING);
    assert_int_equal(b->seq[1].page_count + b->seq[1].far_count, 0);
    while (b->seq[0].token_count < 64 * 8) step_and_move(b); /* alone it may have them all */
    eng_sched_remove(b->sched, &b->seq[0]);
    step_and_move(b);
    step_and_move(b);
    assert_int_equal(b->seq[1].state, ENG_SEQ_RUNNING);
    close_bench(b);
}

/* Nothing of it is computed or copied, and its pages lie as after computing it. */
static void given_kv_is_taken_for_granted(void **state)
{
    (void)state;
    struct bench *b = open_tiers(4, 256, 12, 64);
    for (int i = 0; i < 4; i++) {
        b->seq[i].given_count = 64 * 10 - 1;
        add(b, i, 64 * 10);
    }
    plan(b);
    assert_int_equal(b->plan.item_count, 4);
    assert_int_equal(b->plan.load.decode_count, 4);
    for (int i = 0; i < 4; i++) {
        assert_item(b, i, i, 64 * 10 - 1, 1, true);
        assert_in_range(b->seq[i].far_count, 6, 8); /* all have the same share, 28 of 40 */
        assert_int_equal(b->seq[i].given_count, 0);
    }
    assert_int_equal(stats_of(b).pages_used[0], 12);
    assert_int_equal(stats_of(b).pages_used[2] - b->plan.move_count, 28);
    assert_false(b->plan.wait);
    commit(b);
    for (int i = 0; i < 200; i++) step_and_move(b);
    assert_int_equal(b->seq[3].token_count, 64 * 10 + 201);
    assert_int_equal(stats_of(b).preempt_count, 0);
    close_bench(b);
}

/* It is given once: what a preempted sequence lost is computed. */
static void given_kv_is_lost_by_preemption(void **state)
{
    (void)state;
    struct bench *b = open_bench(2, 256, 0, 8);
    b->seq[1].given_count = 150;
    add(b, 0, 100);
    add(b, 1, 200);
    plan(b);
    assert_item(b, 0, 0, 0, 100, true);
    assert_item(b, 1, 1, 150, 50, true);
    assert_int_equal(b->plan.load.prompt_tokens, 150);
    commit(b);
    while (stats_of(b).preempt_count == 0) step(b);
    assert_int_equal(b->seq[1].kv_count + b->seq[1].page_count, 0);
    eng_sched_remove(b->sched, &b->seq[0]);
    plan(b);
    assert_int_equal(b->plan.items[0].token_begin, 0);
    commit(b);
    close_bench(b);
}

static struct bench *open_policy(enum eng_kv_policy policy, enum eng_admission admission,
                                 double base_s, int32_t near, int32_t far)
{
    const struct eng_sched_config config = {.seqs_max = 4,
                                            .tokens_step_max = 1024,
                                            .page_count = {near, 0, far},
                                            .residency = rates,
                                            .kv_policy = policy,
                                            .admission = admission,
                                            .step_base_s = base_s};
    return open_config(&config);
}

/* The youngest waits with its pages in the remote tier, and nothing of it is computed again. */
static void swap_moves_whole_sequences(void **state)
{
    (void)state;
    struct bench *b = open_policy(ENG_KV_SWAP, ENG_ADMIT_ALL, 0, 9, 20);
    assert_int_equal(eng_sched_seq_tokens_max(b->sched), 64 * 9);
    add(b, 0, 190);
    add(b, 1, 190);
    while (stats_of(b).preempt_count == 0) step_and_move(b);
    const int32_t had = b->seq[1].kv_count;
    assert_true(had > 190);
    assert_int_equal(b->seq[1].state, ENG_SEQ_WAITING);
    assert_int_equal(b->seq[1].far_count, b->seq[1].page_count);
    assert_int_equal(b->seq[1].page_count, (had + 63) / 64);
    assert_int_equal(stats_of(b).pages_used[2], b->seq[1].page_count);
    assert_int_equal(b->plan.move_count, b->seq[1].page_count);
    assert_true(b->plan.wait && b->plan.urgent_count == b->plan.move_count);
    for (int i = 0; i < 30; i++) step_and_move(b);
    assert_int_equal(b->seq[1].kv_count, had);
    eng_sched_remove(b->sched, &b->seq[0]);
    plan(b);
    assert_item(b, 0, 1, had, 1, true);
    assert_int_equal(b->seq[1].far_count, 0);
    assert_true(b->plan.wait && b->plan.move_count == (had + 63) / 64);
    assert_int_equal(b->seq[1].preempt_count, 0); /* which counts what is computed again */
    commit(b);
    close_bench(b);
}

/* With no room behind the link it is as if there were none. */
static void swap_computes_again_what_has_no_room(void **state)
{
    (void)state;
    struct bench *b = open_policy(ENG_KV_SWAP, ENG_ADMIT_ALL, 0, 9, 2);
    add(b, 0, 190);
    add(b, 1, 190);
    while (stats_of(b).preempt_count == 0) step_and_move(b);
    assert_int_equal(b->seq[1].page_count + b->seq[1].kv_count, 0);
    assert_int_equal(b->seq[1].preempt_count, 1);
    assert_int_equal(stats_of(b).pages_out_count, 0);
    close_bench(b);
}

static void recompute_has_local_pages_alone(void **state)
{
    (void)state;
    struct bench *b = open_policy(ENG_KV_RECOMPUTE, ENG_ADMIT_ALL, 0, 9, 20);
    assert_int_equal(eng_sched_seq_tokens_max(b->sched), 64 * 9);
    b->seq[2].given_count = 400;
    add(b, 0, 190);
    add(b, 1, 190);
    add(b, 2, 401);
    while (stats_of(b).preempt_count == 0) step_and_move(b);
    assert_int_equal(b->seq[1].page_count + b->seq[1].kv_count, 0);
    assert_int_equal(stats_of(b).pages_total[2] + stats_of(b).move_wait_count, 0);
    /* What is given and finds no room is lost: so much must be computed again. */
    assert_int_equal(b->seq[2].given_count, 0);
    assert_int_equal(b->seq[2].preempt_count, 1);
    close_bench(b);
}

/* Ten pages each, of which local memory holds 24: two sequences; the third would read seven
 * behind the link, some 180 us a step. */
static void who_reads_behind_the_link_must_be_worth_it(void **state)
{
    (void)state;
    static const struct {
        double base_s;
        int32_t running;
    } cases[] = {{0, 2}, {1e-4, 2}, {3e-4, 3}, {5e-4, 3}, {1e-2, 4}};
    for (size_t c = 0; c < ARRAY_COUNT(cases); c++) {
        struct bench *b =
            open_policy(ENG_KV_IN_PLACE, ENG_ADMIT_THROUGHPUT, cases[c].base_s, 24, 40);
        const struct eng_load waited = {.decode_count = 1, .waits = true};
        eng_sched_learn(b->sched, &waited, 1); /* which says nothing of other steps */
        for (int i = 0; i < 4; i++) {
            b->seq[i].given_count = 64 * 10 - 30;
            add(b, i, 64 * 10 - 29);
        }
        plan(b);
        assert_int_equal(stats_of(b).running, cases[c].running);
        for (int i = cases[c].running; i < 4; i++) { /* what waits keeps its KV */
            assert_int_equal(b->seq[i].far_count, 10);
            assert_int_equal(b->seq[i].kv_count, 64 * 10 - 30);
        }
        commit(b);
        for (int i = 0; i < 5; i++) step_and_only_move(b);
        for (int i = 0; i < cases[c].running - 1; i++) eng_sched_remove(b->sched, &b->seq[i]);
        plan(b); /* first come, first served, with what it kept */
        assert_true(stats_of(b).running >= 2 || cases[c].running == 4);
        if (cases[c].running < 4) {
            const struct eng_plan_item *last = &b->plan.items[1];
            assert_ptr_equal(last->seq, &b->seq[cases[c].running]);
            assert_int_equal(last->token_begin, 64 * 10 - 30);
        }
        commit(b);
        close_bench(b);
    }
}

/* Alone it may be longer than local memory, whatever it costs. */
static void whoever_is_alone_is_admitted(void **state)
{
    (void)state;
    struct bench *b = open_policy(ENG_KV_IN_PLACE, ENG_ADMIT_THROUGHPUT, 0, 4, 40);
    b->seq[0].given_count = b->seq[1].given_count = 64 * 20;
    add(b, 0, 64 * 20 + 1);
    add(b, 1, 64 * 20 + 1);
    for (int i = 0; i < 3; i++) step_and_only_move(b);
    assert_int_equal(b->plan.item_count, 1);
    assert_true(b->seq[0].far_count >= 16);
    assert_int_equal(b->seq[1].far_count, 20); /* it keeps what it has */
    eng_sched_remove(b->sched, &b->seq[0]);
    for (int i = 0; i < 3; i++) step_and_only_move(b);
    assert_int_equal(b->seq[1].state, ENG_SEQ_RUNNING);
    close_bench(b);
}

/* A machine of 10 ms a step and 0.1 ms a token of a prompt; 52 ms are wanted. */
static void teach(struct bench *b, int steps)
{
    for (int i = 0; i < steps; i++) {
        struct eng_load load = {0};
        eng_load_add_decode(&load, 20 + 50 * (i % 5));
        eng_load_add_prompt(&load, 0, 64 + i % 4 * 64);
        eng_sched_learn(b->sched, &load, 10e-3 + 0.1e-3 * load.prompt_tokens);
    }
}

static void a_target_of_latency_cuts_prompts_beside_decodes(void **state)
{
    (void)state;
    struct bench *b = calloc(1, sizeof *b);
    assert_non_null(b);
    const struct eng_sched_config config = {
        .seqs_max = 4, .tokens_step_max = 2000, .page_count = {200}, .itl_target_s = 52e-3};
    assert_int_equal(eng_sched_open(&config, &b->sched), ST_OK);
    for (int i = 0; i < SEQ_MAX; i++) b->seq[i].pages = b->pages[i];
    teach(b, 100);
    add(b, 0, 1500);
    plan(b);
    assert_item(b, 0, 0, 0, 1500, true); /* no decode: as many as the budget has */
    assert_false(b->plan.held_back);
    commit(b);
    add(b, 1, 1500);
    add(b, 2, 100);
    plan(b); /* (49.4 - 10) / 0.1 = 394 tokens; 384 with the decode are whole tiles */
    assert_int_equal(b->plan.item_count, 2);
    assert_item(b, 0, 0, 1500, 1, true);
    assert_item(b, 1, 1, 0, 383, false);
    assert_true(b->plan.held_back);
    assert_int_equal(b->plan.load.decode_kv_tokens, 1501);
    commit(b);
    struct eng_load slow = b->plan.load;
    for (int i = 0; i < 100; i++) eng_sched_learn(b->sched, &slow, 1);
    plan(b); /* nothing can be done: the least, and nobody else */
    assert_int_equal(b->plan.item_count, 2);
    assert_item(b, 1, 1, 383, ENG_CHUNK_MIN, false);
    commit(b);
    eng_sched_remove(b->sched, &b->seq[0]);
    plan(b); /* no decode */
    assert_item(b, 0, 1, 383 + ENG_CHUNK_MIN, 1500 - 383 - ENG_CHUNK_MIN, true);
    assert_item(b, 1, 2, 0, 100, true);
    assert_false(b->plan.held_back);
    commit(b);
    close_bench(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_to_do_is_an_empty_plan),
        cmocka_unit_test(a_prompt_is_cut_into_chunks_and_its_end_is_sampled),
        cmocka_unit_test(decodes_come_first_then_prefills_then_admissions),
        cmocka_unit_test(admission_stops_at_the_first_that_does_not_fit),
        cmocka_unit_test(the_watermark_counts_what_prefills_still_need),
        cmocka_unit_test(limits_of_sequences),
        cmocka_unit_test(the_youngest_is_preempted_and_comes_back_first),
        cmocka_unit_test(one_sequence_may_have_every_page),
        cmocka_unit_test(removal_in_every_state),
        cmocka_unit_test(tokens_max_counts_every_tier),
        cmocka_unit_test(a_sequence_may_be_longer_than_local_memory),
        cmocka_unit_test(pages_leave_before_they_are_needed),
        cmocka_unit_test(pages_come_back_when_there_is_room),
        cmocka_unit_test(pages_leave_for_the_balance),
        cmocka_unit_test(who_goes_leaves_its_moves_to_end),
        cmocka_unit_test(only_when_every_tier_is_full_is_anybody_preempted),
        cmocka_unit_test(given_kv_is_taken_for_granted),
        cmocka_unit_test(given_kv_is_lost_by_preemption),
        cmocka_unit_test(swap_moves_whole_sequences),
        cmocka_unit_test(swap_computes_again_what_has_no_room),
        cmocka_unit_test(recompute_has_local_pages_alone),
        cmocka_unit_test(who_reads_behind_the_link_must_be_worth_it),
        cmocka_unit_test(whoever_is_alone_is_admitted),
        cmocka_unit_test(a_target_of_latency_cuts_prompts_beside_decodes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
