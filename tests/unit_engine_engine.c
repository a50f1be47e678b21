/*
 * The engine thread over a small real model: many requests at once give the tokens each gives
 * alone, whatever the pages, chunks and neighbours; cancels, limits, stop tokens and scored
 * prompts; a tiny event ring; a stop with work in flight.  All of it twice: a step at a time, and
 * with each step issued before the one before it has landed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/clock.h"
#include "engine/engine.h"
#include "tests/model_dir.h"

#define MODEL "tests/fixtures/models/llama-gqa"
#define LEN_MAX 192

static bool one_ahead;

struct rig {
    struct kn *kn;
    struct off_tiers *tiers;
    struct eng_model *model;
    struct kn_kv kv;
    struct eng_engine *engine;
    struct eng_limits limits;
};

static void open_model(struct rig *r, const char *dir, int32_t len_max, int32_t pages, int32_t seqs,
                       int32_t budget, int32_t queue, int32_t ring)
{
    char err[ERR_CAP] = "";
    const struct off_remote none = {.count = 0};
    const struct eng_model_options mo = {
        .model_len_max = len_max, .tokens_max = budget, .rows_max = budget < 4 ? budget : 4};
    struct eng_config config = {
        .sched = {.seqs_max = seqs, .tokens_step_max = budget, .page_count = {pages}},
        .model_len_max = len_max,
        .queue_max = queue,
        .event_ring = ring,
        .tokens_max = budget,
        .rows_max = mo.rows_max,
        .ahead = one_ahead,
        .record = true};
    memset(r, 0, sizeof *r);
    if (kn_open_cpu(2, &r->kn, err) || off_tiers_open(r->kn, 64u << 20, &none, &r->tiers, err) ||
        eng_model_open(r->kn, r->tiers, dir, &mo, &r->model, err))
        fail_msg("%s", err);
    eng_model_kv(r->model, &r->kv);
    size_t bytes = (size_t)pages * kn_kv_page_bytes(&r->kv);
    if (off_tier_alloc(r->tiers, 0, bytes, "KV", &r->kv.base[0], err) ||
        eng_open(r->kn, r->model, &r->kv, &config, &r->engine, err))
        fail_msg("%s", err);
    eng_limits(r->engine, &r->limits);
}

static void open_rig(struct rig *r, int32_t pages, int32_t seqs, int32_t budget, int32_t queue,
                     int32_t ring)
{
    open_model(r, MODEL, LEN_MAX, pages, seqs, budget, queue, ring);
}

static void close_rig(struct rig *r)
{
    eng_close(r->engine);
    eng_model_close(r->model);
    off_tiers_close(r->tiers);
    kn_close(r->kn);
}

static uint32_t next_random(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

static struct eng_request *make_request(const struct rig *r, uint32_t seed, int32_t prompt,
                                        int32_t answer)
{
    uint32_t state = seed * 7919u + 1;
    struct eng_request *q = calloc(1, sizeof *q);
    q->tokens = calloc((size_t)(prompt + answer), sizeof *q->tokens);
    q->prompt_count = prompt;
    for (int32_t i = 0; i < prompt; i++)
        q->tokens[i] = (int32_t)(next_random(&state) % (uint32_t)r->limits.vocab);
    q->sampling = (struct eng_sampling){.temperature = seed % 3 ? 0.8f : 0.f,
                                        .top_p = 0.95f,
                                        .top_k = 40,
                                        .repetition_penalty = 1.f,
                                        .seed = seed,
                                        .max_tokens = answer,
                                        .ignore_eos = true,
                                        .logprobs = -1,
                                        .prompt_logprobs = -1};
    switch (seed % 6) { /* some are sampled by the backend, some here, some by turns */
    case 1: q->sampling.repetition_penalty = 1.2f; break;
    case 2: q->sampling.logprobs = (int32_t)(seed / 6 % 3); break;
    case 5: q->sampling.min_tokens = 1 + (int32_t)(seed % 7); break;
    case 4: q->sampling.presence_penalty = 0.5f; break;
    default: break;
    }
    return q;
}

static void free_request(struct eng_request *q)
{
    free(q->tokens);
    free(q);
}

static void next_event(struct rig *r, struct eng_event *event)
{
    while (!eng_poll(r->engine, event)) sched_yield();
}

/* Polls until `count` requests have ended; finishes[] by request->user as an index. */
static void run_to_end(struct rig *r, int count, enum eng_finish *finishes, int32_t *token_events)
{
    while (count > 0) {
        struct eng_event event;
        next_event(r, &event);
        size_t who = (size_t)(uintptr_t)event.request->user;
        if (event.kind == ENG_EVENT_TOKEN && token_events) {
            assert_int_equal(event.index, token_events[who]);
            assert_int_equal(event.sample.token,
                             event.request->tokens[event.request->prompt_count + event.index]);
            token_events[who]++;
        }
        if (event.kind != ENG_EVENT_FINISHED) continue;
        finishes[who] = event.finish;
        count--;
    }
}

static void submit(struct rig *r, struct eng_request *q, size_t who)
{
    q->user = (void *)(uintptr_t)who;
    assert_int_equal(eng_submit(r->engine, q), ST_OK);
}

static int32_t prompt_len(int i)
{
    return 1 + i * 37 % 100;
}
static int32_t answer_len(int i)
{
    return 1 + i * 53 % 60;
}

#define MANY 24

/* One after another in a roomy engine: what every other arrangement must reproduce. */
static void run_alone(struct eng_request **alone)
{
    struct rig r;
    open_rig(&r, 16, 1, 128, 4, 256);
    for (int i = 0; i < MANY; i++) {
        enum eng_finish finish;
        alone[i] = make_request(&r, (uint32_t)i, prompt_len(i), answer_len(i));
        submit(&r, alone[i], 0);
        run_to_end(&r, 1, &finish, NULL);
        assert_int_equal(finish, ENG_FINISH_LENGTH);
    }
    close_rig(&r);
}

static void compare_together(struct eng_request **alone, int32_t pages, int32_t seqs,
                             int32_t budget, int32_t ring)
{
    struct rig r;
    struct eng_request *q[MANY];
    enum eng_finish finishes[MANY];
    int32_t counts[MANY] = {0};
    struct eng_stats stats;
    open_rig(&r, pages, seqs, budget, MANY, ring);
    for (int i = 0; i < MANY; i++) {
        q[i] = make_request(&r, (uint32_t)i, prompt_len(i), answer_len(i));
        submit(&r, q[i], (size_t)i);
    }
    run_to_end(&r, MANY, finishes, counts);
    for (int i = 0; i < MANY; i++) {
        assert_int_equal(finishes[i], ENG_FINISH_LENGTH);
        assert_int_equal(counts[i], answer_len(i));
        assert_memory_equal(q[i]->tokens, alone[i]->tokens,
                            sizeof(int32_t) * (size_t)(prompt_len(i) + answer_len(i)));
        free_request(q[i]);
    }
    eng_stats(r.engine, &stats);
    assert_false(stats.failed);
    /* Blocks, and a row of the table for each token, that of the warm-up included. */
    const struct eng_model_info *info = eng_model_info(r.model);
    uint64_t row_bytes = (uint64_t)info->hidden * kn_dtype_bytes(info->dtype);
    uint64_t blocks = stats.traffic[0].bytes - (stats.step_tokens_sum + 1) * row_bytes;
    assert_true(stats.traffic[0].bytes > 0 && blocks % KN_BLOCK_BYTES == 0);
    assert_true(stats.read_bytes_per_s[0] > 0 && stats.read_bytes_per_s[1] == 0);
    close_rig(&r);
}

static void test_batch_invariance(void **state)
{
    (void)state;
    struct eng_request *alone[MANY];
    run_alone(alone);
    compare_together(alone, 64, MANY, 128, 256);
    compare_together(alone, 64, MANY, 7, 256); /* chunks of prompts */
    compare_together(alone, 5, MANY, 64, 256); /* pages run out: preemption and recomputing */
    compare_together(alone, 64, 3, 64, 1);     /* an event ring of one */
    for (int i = 0; i < MANY; i++) free_request(alone[i]);
}

static bool holds_any(const int32_t *tokens, int32_t count, const int32_t *any, int32_t any_count)
{
    for (int32_t i = 0; i < count; i++)
        for (int32_t k = 0; k < any_count; k++)
            if (tokens[i] == any[k]) return true;
    return false;
}

/* Asking for alternatives brings a request's logits to the host, min_tokens some of them: neither
 * may change its text, sampled beside each other or not. */
static void test_where_sampled_does_not_matter(void **state)
{
    (void)state;
    enum { KINDS = 5, ANSWER = 40 };
    struct rig r;
    struct eng_request *q[KINDS];
    enum eng_finish finishes[KINDS];
    open_rig(&r, 64, KINDS, 128, KINDS, 256);
    for (uint32_t seed = 0; seed < 12; seed += 6) {
        for (int greedy = 0; greedy < 2; greedy++) {
            for (int k = 0; k < KINDS; k++) {
                q[k] = make_request(&r, seed, 30, ANSWER);
                q[k]->sampling.temperature = greedy ? 0.f : 1.1f;
                q[k]->sampling.logprobs = k == 1 ? 3 : k == 2 ? 0 : -1;
                q[k]->sampling.min_tokens = k == 3 ? ANSWER / 2 : k == 4 ? 1 : 0;
                submit(&r, q[k], (size_t)k);
            }
            run_to_end(&r, KINDS, finishes, NULL);
            for (int k = 1; k < KINDS; k++) {
                size_t bytes = ANSWER * sizeof(int32_t);
                if (holds_any(q[0]->tokens + 30, ANSWER, r.limits.eos, r.limits.eos_count) &&
                    k >= 3)
                    continue; /* min_tokens masked what was drawn */
                assert_memory_equal(q[k]->tokens + 30, q[0]->tokens + 30, bytes);
            }
            for (int k = 0; k < KINDS; k++) free_request(q[k]);
        }
    }
    close_rig(&r);
}

static void test_queue_full_and_cancel(void **state)
{
    (void)state;
    struct rig r;
    struct eng_request *q[4], *extra;
    enum eng_finish finishes[4];
    open_rig(&r, 8, 1, 32, 4, 64);
    for (int i = 0; i < 4; i++) {
        q[i] = make_request(&r, (uint32_t)i, 20, 150);
        submit(&r, q[i], (size_t)i);
    }
    extra = make_request(&r, 9, 5, 5);
    assert_int_equal(eng_submit(r.engine, extra), ST_FULL);
    for (int i = 0; i < 4; i++) eng_cancel(r.engine, q[i]);
    run_to_end(&r, 4, finishes, NULL);
    for (int i = 1; i < 4; i++) assert_int_equal(finishes[i], ENG_FINISH_CANCELLED);
    submit(&r, extra, 0);
    run_to_end(&r, 1, finishes, NULL);
    assert_int_equal(finishes[0], ENG_FINISH_LENGTH);
    for (int i = 0; i < 4; i++) free_request(q[i]);
    free_request(extra);
    close_rig(&r);
}

/* The third greedy token as a stop token ends the answer after two; it is the FINISHED event's
 * sample. */
static void test_stop_token(void **state)
{
    (void)state;
    struct rig r;
    enum eng_finish finish;
    open_rig(&r, 8, 2, 64, 4, 64);
    struct eng_request *free_run = make_request(&r, 3, 10, 12),
                       *stopped = make_request(&r, 3, 10, 12);
    submit(&r, free_run, 0);
    run_to_end(&r, 1, &finish, NULL);
    const int32_t *answer = free_run->tokens + 10;
    int32_t stop_at = 2;
    for (int32_t i = 0; i < stop_at; i++) /* the first occurrence decides */
        if (answer[i] == answer[stop_at]) stop_at = i;
    stopped->sampling.stop_tokens = &answer[stop_at];
    stopped->sampling.stop_token_count = 1;
    submit(&r, stopped, 0);
    int32_t tokens = 0;
    struct eng_event event;
    do {
        next_event(&r, &event);
        tokens += event.kind == ENG_EVENT_TOKEN;
    } while (event.kind != ENG_EVENT_FINISHED);
    assert_int_equal(event.finish, ENG_FINISH_STOP);
    assert_int_equal(event.sample.token, answer[stop_at]);
    assert_int_equal(tokens, stop_at);
    free_request(free_run);
    free_request(stopped);
    close_rig(&r);
}

/* Every page is free again and nobody is left. */
static void check_empty(struct rig *r)
{
    struct eng_stats stats;
    do {
        sched_yield();
        eng_stats(r->engine, &stats);
    } while (stats.sched.running + stats.sched.waiting > 0);
    assert_int_equal(stats.sched.pages_used[0], 0);
    assert_false(stats.failed);
}

/* Where the answer first holds the token it has at a third of its length. */
static int32_t stop_of(int i, const struct eng_request *alone)
{
    const int32_t *answer = alone->tokens + prompt_len(i);
    int32_t at = answer_len(i) / 3;
    for (int32_t k = 0; k < at; k++)
        if (answer[k] == answer[at]) return k;
    return at;
}

/* Stop tokens and cancels, among neighbours and with few pages: every answer ends where it must,
 * with the tokens it has alone; those cancelled are a beginning of them. */
static void stop_and_cancel(struct eng_request **alone, int32_t pages, int32_t seqs, int32_t budget)
{
    struct rig r;
    struct eng_request *q[MANY];
    int32_t stop[MANY], tokens[MANY] = {0}, left = MANY;
    open_rig(&r, pages, seqs, budget, MANY, 32);
    for (int i = 0; i < MANY; i++) {
        q[i] = make_request(&r, (uint32_t)i, prompt_len(i), answer_len(i));
        stop[i] = alone[i]->tokens[prompt_len(i) + stop_of(i, alone[i])];
        /* min_tokens would keep the stop token from being drawn. */
        if (i % 2 && !q[i]->sampling.min_tokens) {
            q[i]->sampling.stop_tokens = &stop[i];
            q[i]->sampling.stop_token_count = 1;
        }
        submit(&r, q[i], (size_t)i);
    }
    while (left > 0) {
        struct eng_event event;
        next_event(&r, &event);
        int i = (int)(uintptr_t)event.request->user;
        const int32_t *answer = alone[i]->tokens + prompt_len(i);
        bool stops = q[i]->sampling.stop_token_count > 0;
        if (event.kind == ENG_EVENT_TOKEN) {
            assert_int_equal(event.index, tokens[i]);
            assert_int_equal(event.sample.token, answer[tokens[i]]);
            tokens[i]++;
            if (i % 5 == 4 && tokens[i] == 3) eng_cancel(r.engine, q[i]);
            continue;
        }
        left--;
        if (event.finish == ENG_FINISH_CANCELLED) {
            assert_int_equal(i % 5, 4);
            assert_true(tokens[i] >= 3);
        } else if (stops) {
            assert_int_equal(event.finish, ENG_FINISH_STOP);
            assert_int_equal(tokens[i], stop_of(i, alone[i]));
            assert_int_equal(event.sample.token, stop[i]);
        } else {
            assert_int_equal(event.finish, ENG_FINISH_LENGTH);
            assert_int_equal(tokens[i], answer_len(i));
        }
        free_request(q[i]); /* at once: the engine touches it no more */
    }
    check_empty(&r);
    close_rig(&r);
}

static void test_stops_and_cancels_together(void **state)
{
    (void)state;
    struct eng_request *alone[MANY];
    run_alone(alone);
    stop_and_cancel(alone, 64, MANY, 128);
    stop_and_cancel(alone, 64, 5, 16);
    stop_and_cancel(alone, 5, MANY, 64);
    for (int i = 0; i < MANY; i++) free_request(alone[i]);
}

/* Scored prompts: every position once and in order, the same log-probabilities whole, chunked and
 * in few rows. */
static void score(int32_t budget, float *logprobs, int32_t prompt)
{
    struct rig r;
    struct eng_event event;
    int32_t next = 0;
    open_rig(&r, 8, 2, budget, 4, 16);
    struct eng_request *q = make_request(&r, 5, prompt, 1);
    q->sampling.prompt_logprobs = 3;
    submit(&r, q, 0);
    do {
        next_event(&r, &event);
        if (event.kind != ENG_EVENT_PROMPT) continue;
        assert_int_equal(event.index, next);
        assert_int_equal(event.sample.token, q->tokens[next]);
        if (next == 0) assert_true(isnan(event.sample.logprob));
        else {
            assert_true(event.sample.logprob <= 0);
            assert_int_equal(event.sample.top_count, 3);
        }
        logprobs[next] = event.sample.logprob;
        next++;
    } while (event.kind != ENG_EVENT_FINISHED);
    assert_int_equal(next, prompt);
    free_request(q);
    close_rig(&r);
}

static void test_prompt_scores(void **state)
{
    (void)state;
    float whole[90] = {0}, chunked[90] = {0}, one[1];
    score(128, whole, 90);
    score(13, chunked, 90);
    assert_memory_equal(whole + 1, chunked + 1, sizeof whole - sizeof *whole);
    score(128, one, 1);
}

static void test_stop_with_work(void **state)
{
    (void)state;
    struct rig r;
    struct eng_request *q[6];
    enum eng_finish finishes[6];
    open_rig(&r, 16, 2, 32, 8, 8);
    for (int i = 0; i < 6; i++) {
        q[i] = make_request(&r, (uint32_t)i, 30, 150);
        submit(&r, q[i], (size_t)i);
    }
    eng_stop(r.engine);
    run_to_end(&r, 6, finishes, NULL);
    struct eng_request *late = make_request(&r, 7, 3, 3);
    assert_int_equal(eng_submit(r.engine, late), ST_DEVICE);
    free_request(late);
    for (int i = 0; i < 6; i++) free_request(q[i]);
    close_rig(&r);
    /* And closed with events nobody polled. */
    open_rig(&r, 16, 2, 32, 8, 4);
    struct eng_request *left = make_request(&r, 1, 10, 100);
    submit(&r, left, 0);
    close_rig(&r);
    free_request(left);
}

/* A token whose embedding is NaN: no logit of its row is a number.  Everybody's request ends by an
 * error, once, and nothing more is served. */
static void test_failure(void **state)
{
    (void)state;
    enum { SPOILED = 5, HIDDEN = 8, COUNT = 4 };
    struct model_dir d;
    struct rig r;
    struct eng_request *q[COUNT];
    enum eng_finish finishes[COUNT];
    struct eng_stats stats;
    char header[MICRO_HEADER_CAP], path[256];
    float nan[HIDDEN];
    for (int i = 0; i < HIDDEN; i++) nan[i] = NAN;
    dir_make(&d);
    micro_write(&d);
    micro_header(header, 0, ARRAY_COUNT(micro_tensors)); /* embeddings come first */
    dir_file(&d, "model.safetensors", path);
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, (long)(8 + strlen(header) + SPOILED * sizeof nan), SEEK_SET), 0);
    assert_int_equal(fwrite(nan, sizeof nan, 1, f), 1);
    assert_int_equal(fclose(f), 0);
    open_model(&r, d.path, 64, 8, COUNT, 16, COUNT, 64);
    for (int i = 0; i < COUNT; i++) {
        q[i] = make_request(&r, 3, 2, 50);
        q[i]->tokens[0] = 1;
        q[i]->tokens[1] = i == 2 ? SPOILED : 2;
    }
    assert_int_equal(eng_submit(r.engine, q[0]), ST_OK);
    for (int i = 1; i < COUNT; i++) submit(&r, q[i], (size_t)i);
    run_to_end(&r, COUNT, finishes, NULL);
    for (int i = 1; i < COUNT; i++) assert_int_equal(finishes[i], ENG_FINISH_ERROR);
    do {
        sched_yield();
        eng_stats(r.engine, &stats);
    } while (stats.sched.pages_used[0] > 0);
    assert_true(stats.failed && strstr(stats.failure, "finite"));
    assert_int_equal(eng_submit(r.engine, q[1]), ST_DEVICE);
    for (int i = 0; i < COUNT; i++) free_request(q[i]);
    close_rig(&r);
    dir_remove(&d);
}

/* All of an array or none; those taken together are planned together. */
static void test_submit_all(void **state)
{
    (void)state;
    struct rig r;
    struct eng_event event;
    struct eng_request batch[4];
    int32_t tokens[4][20];
    open_rig(&r, 8, 4, 64, 5, 64);
    struct eng_request *one = make_request(&r, 1, 3, 100);
    for (int i = 0; i < 4; i++) {
        batch[i] = *one;
        batch[i].tokens = memset(tokens[i], 0, sizeof tokens[i]);
        batch[i].sampling.max_tokens = 2;
    }
    submit(&r, one, 0);
    struct eng_request *two = make_request(&r, 2, 3, 100);
    submit(&r, two, 0);
    assert_int_equal(eng_submit_all(r.engine, batch, 4), ST_FULL);
    eng_cancel(r.engine, one);
    eng_cancel(r.engine, two);
    enum eng_finish finish[1];
    run_to_end(&r, 2, finish, NULL);
    assert_int_equal(eng_submit_all(r.engine, batch, 4), ST_OK);
    uint64_t step = 0;
    for (int i = 0, ended = 0; ended < 4; i++) {
        next_event(&r, &event);
        ended += event.kind == ENG_EVENT_FINISHED;
        if (event.kind != ENG_EVENT_TOKEN || event.index) continue;
        if (i == 0) step = event.step;
        assert_int_equal(event.step, step);
    }
    free_request(one);
    free_request(two);
    close_rig(&r);
}

/* Events name their step, and every moment of a busy engine is charged once, and stays so. */
static void test_steps_and_times(void **state)
{
    (void)state;
    struct rig r;
    struct eng_event event;
    struct eng_stats stats = {0};
    uint64_t begin = clock_now_ns();
    open_rig(&r, 8, 2, 16, 4, 64);
    struct eng_request *q = make_request(&r, 3, 40, 12); /* a prompt of three steps */
    submit(&r, q, 0);
    for (int32_t i = 0; i < 12; i++) {
        struct eng_stats before = stats;
        next_event(&r, &event);
        assert_int_equal(event.kind, ENG_EVENT_TOKEN);
        assert_int_equal(event.step, i + 2);
        eng_stats(r.engine, &stats);
        assert_true(stats.device_ns_sum >= before.device_ns_sum);
        assert_true(stats.host_ns_sum >= before.host_ns_sum);
        assert_true(stats.device_ns_sum + stats.host_ns_sum <= clock_now_ns() - begin);
    }
    next_event(&r, &event);
    do {
        sched_yield();
        eng_stats(r.engine, &stats);
    } while (stats.step_count < 14);
    assert_int_equal(stats.step_count, 14);
    assert_true(stats.device_ns_sum > 0 && stats.host_ns_sum > 0);
    assert_true(stats.device_ns_sum <= stats.step_ns_sum);
    assert_true(stats.device_ns_sum + stats.host_ns_sum <= clock_now_ns() - begin);
    free_request(q);
    close_rig(&r);
}

/* Remote tiers are read as was last said from the next step on, whatever is under way, and it
 * changes no token. */
static void test_set_control(void **state)
{
    (void)state;
    struct off_remote remote;
    struct off_control control[2][KN_TIER_MAX];
    struct rig r;
    struct eng_event event;
    struct eng_stats stats;
    char err[ERR_CAP];
    int32_t tokens[60];
    assert_int_equal(off_remote_parse("host:1MiB", &remote, err), ST_OK);
    assert_int_equal(off_control_read("adaptive", "host:8x2", &remote, control[0], err), ST_OK);
    assert_int_equal(off_control_read("off", "", &remote, control[1], err), ST_OK);
    open_rig(&r, 8, 2, 16, 4, 64);
    for (int way = 0; way < 2; way++) {
        struct eng_request *q = make_request(&r, 3, 20, 40);
        submit(&r, q, 0);
        for (int i = 0; i < 40; i++) {
            next_event(&r, &event);
            if (way) eng_set_control(r.engine, control[i % 2]);
        }
        next_event(&r, &event);
        if (way) assert_memory_equal(tokens, q->tokens, sizeof tokens);
        memcpy(tokens, q->tokens, sizeof tokens);
        free_request(q);
    }
    eng_set_control(r.engine, control[0]);
    struct eng_request *q = make_request(&r, 3, 20, 40);
    submit(&r, q, 0);
    enum eng_finish finish[1];
    run_to_end(&r, 1, finish, NULL);
    eng_stats(r.engine, &stats);
    assert_int_equal(stats.control[1].mode, OFF_CONTROL_ADAPTIVE);
    assert_int_equal(off_window_bytes(&stats.control[1].window), 8 * 2 * KN_BLOCK_BYTES);
    assert_int_equal(stats.control[1].phase, OFF_CC_HOLD); /* the CPU times no copies */
    free_request(q);
    close_rig(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batch_invariance),
        cmocka_unit_test(test_where_sampled_does_not_matter),
        cmocka_unit_test(test_queue_full_and_cancel),
        cmocka_unit_test(test_stop_token),
        cmocka_unit_test(test_stops_and_cancels_together),
        cmocka_unit_test(test_prompt_scores),
        cmocka_unit_test(test_stop_with_work),
        cmocka_unit_test(test_failure),
        cmocka_unit_test(test_steps_and_times),
        cmocka_unit_test(test_submit_all),
        cmocka_unit_test(test_set_control),
    };
    int failed = cmocka_run_group_tests_name("a step at a time", tests, NULL, NULL);
    one_ahead = true;
    return failed + cmocka_run_group_tests_name("a step ahead", tests, NULL, NULL);
}
