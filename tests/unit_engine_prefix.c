/*
 * unit_engine_prefix.c - the engine with a prefix cache, over a small real model: conversations,
 * shared beginnings, n answers to one prompt, salts and scored prompts give the same tokens and
 * log-probabilities, bit for bit, as without a cache, wherever pages lie and however steps are cut;
 * and it is the cache that they come from.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "engine/engine.h"

#define MODEL "tests/fixtures/models/llama-gqa"
enum { LEN = 256, WAVE = 6, WAVES = 6, COUNT = WAVE * WAVES };

struct way {
    bool cache, ahead;
    int32_t near, far, budget;
};

/* What a request came to. */
struct answer {
    int32_t tokens[LEN], prompt_count, count;
    float logprobs[LEN]; /* of its own tokens */
    float scores[LEN];   /* of the prompt's, where asked for */
    int32_t score_count, cached;
};

struct run {
    struct answer answers[COUNT];
    struct eng_stats stats;
};

struct rig {
    struct kn *kn;
    struct off_tiers *tiers;
    struct eng_model *model;
    struct kn_kv kv;
    struct eng_engine *engine;
    struct way way;
};

static void open_rig(struct rig *r, const struct way *way)
{
    char err[ERR_CAP] = "";
    const struct off_remote none = {.count = 0};
    const struct eng_model_options mo = {
        .model_len_max = LEN, .tokens_max = way->budget, .rows_max = 4};
    *r = (struct rig){.way = *way};
    if (kn_open_cpu(2, &r->kn, err) || off_tiers_open(r->kn, 64u << 20, &none, &r->tiers, err) ||
        eng_model_open(r->kn, r->tiers, MODEL, &mo, &r->model, err))
        fail_msg("%s", err);
    eng_model_kv(r->model, &r->kv);
    const size_t page = kn_kv_page_bytes(&r->kv);
    const struct eng_config config = {.sched = {.seqs_max = WAVE,
                                                .tokens_step_max = way->budget,
                                                .page_count = {way->near, way->far},
                                                .residency = {page, 4700e9, 51e9, 55e9},
                                                .prefix_cache = way->cache},
                                      .model_len_max = LEN,
                                      .queue_max = WAVE,
                                      .event_ring = 4096,
                                      .tokens_max = way->budget,
                                      .rows_max = 4,
                                      .ahead = way->ahead,
                                      .record = true};
    if (kn_alloc(r->kn, KN_MEM_LOCAL, 0, (size_t)way->near * page, &r->kv.base[0], err) ||
        (way->far &&
         kn_alloc(r->kn, KN_MEM_HOST, 0, (size_t)way->far * page, &r->kv.base[1], err)) ||
        eng_open(r->kn, r->model, &r->kv, &config, &r->engine, err))
        fail_msg("%s", err);
}

static void close_rig(struct rig *r)
{
    const size_t page = kn_kv_page_bytes(&r->kv);
    eng_close(r->engine);
    if (r->way.far) kn_free(r->kn, KN_MEM_HOST, r->kv.base[1], (size_t)r->way.far * page);
    kn_free(r->kn, KN_MEM_LOCAL, r->kv.base[0], (size_t)r->way.near * page);
    eng_model_close(r->model);
    off_tiers_close(r->tiers);
    kn_close(r->kn);
}

/* --- what is asked ---------------------------------------------------------------------------- */

static void append(struct eng_request *q, int32_t count, uint32_t seed, int32_t vocab)
{
    uint32_t state = seed * 7919u + 1;
    for (int32_t i = 0; i < count; i++) {
        state = state * 1664525u + 1013904223u;
        q->tokens[q->prompt_count++] = (int32_t)((state >> 8) % (uint32_t)vocab);
    }
}

static void begin_as(struct eng_request *q, const struct answer *a, int32_t count)
{
    memcpy(q->tokens, a->tokens, (size_t)count * sizeof *q->tokens);
    q->prompt_count = count;
}

/* Request i of a wave, after the answers of the waves before. */
static void ask(struct eng_request *q, int wave, int i, const struct answer *before, int32_t vocab)
{
    const struct answer *same = wave ? &before[(wave - 1) * WAVE + i] : NULL;
    q->sampling = (struct eng_sampling){.temperature = i % 2 ? 0.8f : 0.f,
                                        .top_p = 0.95f,
                                        .top_k = 40,
                                        .repetition_penalty = i == 4 ? 1.2f : 1.f,
                                        .seed = (uint64_t)(wave * WAVE + i),
                                        .max_tokens = 5 + i * 5,
                                        .ignore_eos = true,
                                        .logprobs = i % 3 ? 0 : -1,
                                        .prompt_logprobs = -1};
    switch (wave) {
    case 0: /* one system prompt, which ends within a page */
        append(q, 90, 1, vocab);
        append(q, 20 + 9 * i, 100 + (uint32_t)i, vocab);
        break;
    case 1: /* conversations go on */
        begin_as(q, same, same->prompt_count + same->count);
        append(q, 7 + i, 200 + (uint32_t)i, vocab);
        break;
    case 2: /* n answers to one prompt */ append(q, 150, 300, vocab); break;
    case 3: /* others' beginnings, cut anywhere; one of them scored, one under a salt */
        begin_as(q, &before[WAVE + i], 63 + 13 * i);
        append(q, 5, 400 + (uint32_t)i, vocab);
        if (i == 2) q->sampling.prompt_logprobs = 1;
        if (i == 3) q->cache_salt = "tenant", q->cache_salt_length = 6;
        break;
    case 4: /* exactly what was there */
        begin_as(q, same, same->prompt_count);
        if (i == 3) q->cache_salt = "tenant", q->cache_salt_length = 6;
        if (i == 4) q->cache_salt = "tenanu", q->cache_salt_length = 6;
        break;
    default: /* short ones */ append(q, 1 + i, 500, vocab); break;
    }
}

static void take_event(const struct eng_event *event, struct answer *a)
{
    if (event->kind == ENG_EVENT_PROMPT) a->scores[a->score_count++] = event->sample.logprob;
    if (event->kind == ENG_EVENT_TOKEN) {
        CHECK(event->index == a->count);
        a->logprobs[a->count++] = event->sample.logprob;
    }
}

static void serve_wave(struct rig *r, int wave, struct answer *answers)
{
    struct eng_request q[WAVE] = {0};
    struct eng_limits limits;
    eng_limits(r->engine, &limits);
    for (int i = 0; i < WAVE; i++) {
        q[i].tokens = calloc(LEN, sizeof *q[i].tokens);
        ask(&q[i], wave, i, answers, limits.vocab);
        CHECK(q[i].prompt_count + q[i].sampling.max_tokens <= LEN);
        q[i].user = &answers[wave * WAVE + i];
    }
    CHECK(eng_submit_all(r->engine, q, WAVE) == ST_OK);
    for (int left = WAVE; left > 0;) {
        struct eng_event event;
        if (!eng_poll(r->engine, &event)) {
            sched_yield();
            continue;
        }
        take_event(&event, event.request->user);
        if (event.kind != ENG_EVENT_FINISHED) continue;
        CHECK(event.finish == ENG_FINISH_LENGTH);
        left--;
    }
    for (int i = 0; i < WAVE; i++) {
        struct answer *a = q[i].user;
        a->prompt_count = q[i].prompt_count;
        a->cached = q[i].cached_count;
        memcpy(a->tokens, q[i].tokens, sizeof a->tokens);
        int32_t by_tier = 0;
        for (int t = 0; t < KN_TIER_MAX; t++) by_tier += q[i].cached_tier_count[t];
        CHECK(by_tier == a->cached && a->cached < a->prompt_count);
        free(q[i].tokens);
    }
}

static void serve(const struct way *way, struct run *run)
{
    struct rig r;
    memset(run, 0, sizeof *run);
    open_rig(&r, way);
    for (int wave = 0; wave < WAVES; wave++) serve_wave(&r, wave, run->answers);
    do { /* published after the last event */
        sched_yield();
        eng_stats(r.engine, &run->stats);
    } while (run->stats.sched.running + run->stats.sched.waiting > 0);
    close_rig(&r);
}

/* --- what must come of it --------------------------------------------------------------------- */

static void compare(const struct run *run, const struct run *expected)
{
    for (int i = 0; i < COUNT; i++) {
        const struct answer *a = &run->answers[i], *b = &expected->answers[i];
        assert_int_equal(a->prompt_count, b->prompt_count);
        assert_int_equal(a->count, b->count);
        assert_memory_equal(a->tokens, b->tokens, sizeof a->tokens);
        assert_memory_equal(a->logprobs, b->logprobs, sizeof a->logprobs);
        assert_int_equal(a->score_count, b->score_count);
        assert_memory_equal(a->scores, b->scores, sizeof a->scores);
    }
    assert_false(run->stats.failed);
    const struct eng_sched_stats *s = &run->stats.sched;
    assert_int_equal(s->pages_used[0] + s->pages_used[1],
                     s->pages_cached[0] + s->pages_cached[1] + 2 * s->pages_moving);
}

static uint64_t prompt_tokens(const struct run *run)
{
    uint64_t sum = 0;
    for (int i = 0; i < COUNT; i++) sum += (uint64_t)run->answers[i].prompt_count;
    return sum;
}

static uint64_t cached_tokens(const struct run *run)
{
    uint64_t sum = 0;
    for (int i = 0; i < COUNT; i++) sum += (uint64_t)run->answers[i].cached;
    return sum;
}

static void answers_are_those_without_a_cache(void **state)
{
    (void)state;
    static struct run expected, run;
    const struct way without = {.near = 64, .budget = 128};
    serve(&without, &expected);
    assert_int_equal(cached_tokens(&expected), 0);
    assert_int_equal(expected.stats.sched.prefix_query_tokens, 0);
    static const struct way ways[] = {
        {true, false, 200, 0, 128}, {true, true, 200, 0, 128},  {true, true, 200, 0, 17},
        {true, false, 200, 0, 512}, {true, false, 24, 0, 128},  {true, true, 24, 0, 64},
        {true, true, 12, 100, 128}, {true, false, 12, 20, 128}, {true, true, 7, 40, 96},
        {true, false, 10, 0, 128},  {false, true, 10, 0, 128},  {true, true, 6, 10, 96}};
    for (size_t i = 0; i < ARRAY_COUNT(ways); i++) {
        const struct way *w = &ways[i];
        serve(w, &run);
        const struct eng_sched_stats *s = &run.stats.sched;
        printf("%s%d near, %d far, steps of %d%s: %llu of %llu prompt tokens cached, %llu "
               "computed; %llu pages copied, %llu moved, %llu + %llu dropped, %llu preempted\n",
               w->cache ? "" : "no cache, ", w->near, w->far, w->budget, w->ahead ? " ahead" : "",
               (unsigned long long)cached_tokens(&run), (unsigned long long)prompt_tokens(&run),
               (unsigned long long)run.stats.prompt_tokens,
               (unsigned long long)s->prefix_copied_count, (unsigned long long)s->prefix_sent_count,
               (unsigned long long)s->prefix_dropped_count[0],
               (unsigned long long)s->prefix_dropped_count[1],
               (unsigned long long)s->preempt_count);
        compare(&run, &expected);
        if (!w->cache) continue;
        uint64_t hits = 0;
        for (int t = 0; t < KN_TIER_MAX; t++) hits += s->prefix_hit_tokens[t];
        assert_int_equal(hits, cached_tokens(&run));
        assert_int_equal(s->prefix_query_tokens, prompt_tokens(&run));
        if (s->preempt_count == 0)
            assert_int_equal(run.stats.prompt_tokens + hits, prompt_tokens(&run));
        assert_true(w->near < 24 || hits * 2 > prompt_tokens(&run));
    }
}

/* With room for everything it is known what is found. */
static void what_is_found(void **state)
{
    (void)state;
    static struct run run;
    for (int ahead = 0; ahead < 2; ahead++) {
        const struct way way = {true, ahead, 200, 0, 512};
        serve(&way, &run);
        const struct answer *a = run.answers;
        assert_int_equal(a[0].cached, 0);
        for (int i = 1; i < WAVE; i++) assert_int_equal(a[i].cached, 90);
        for (int i = 0; i < WAVE; i++) { /* all full pages but for one not known in time */
            const int32_t had = a[i].prompt_count + a[i].count - 1;
            assert_in_range(a[WAVE + i].cached, (had - ahead) / 64 * 64, had);
        }
        assert_int_equal(a[2 * WAVE].cached, 0);
        for (int i = 1; i < WAVE; i++) assert_int_equal(a[2 * WAVE + i].cached, 149);
        for (int i = 0; i < WAVE; i++) {
            const int32_t shared = i == 2 || i == 3 ? 0 : 63 + 13 * i;
            assert_in_range(a[3 * WAVE + i].cached, shared, shared + (shared ? 1 : 0));
        }
        for (int i = 0; i < WAVE; i++) /* what was scored may be found by others */
            assert_in_range(a[4 * WAVE + i].cached, i == 4 ? 0 : 64,
                            i == 4 ? 0 : a[4 * WAVE + i].prompt_count - 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_are_those_without_a_cache),
        cmocka_unit_test(what_is_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
