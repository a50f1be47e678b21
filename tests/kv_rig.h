/*
 * kv_rig.h - answers of the real engine with its KV pages in local memory, in a remote tier, or
 * anywhere between: what both backends must give the same tokens for.
 */
#ifndef DAKD_TESTS_KV_RIG_H
#define DAKD_TESTS_KV_RIG_H

#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "engine/engine.h"

/* Where pages may lie, and how steps are made. */
struct kv_way {
    int32_t near, far; /* pages in local memory and in the remote tier */
    int32_t seqs, budget;
    bool ahead;
    enum kn_mem mem; /* of the remote tier */
    bool balanced; /* pages leave for the shortest step, by a link nearly half as fast as memory */
};

/* Requests, all at once; every other one greedy, some changed by the host. */
struct kv_load {
    const char *model;
    enum eng_dtype dtype;
    int32_t count, len_max;
    int32_t prompt_min, prompt_max, answer_min, answer_max;
};

static inline int32_t kv_between(int32_t low, int32_t high, int32_t i)
{
    return low + (int32_t)((uint32_t)i * 2654435761u % (uint32_t)(high - low + 1));
}

static inline int32_t kv_prompt(const struct kv_load *l, int32_t i)
{
    return kv_between(l->prompt_min, l->prompt_max, i);
}

static inline int32_t kv_answer(const struct kv_load *l, int32_t i)
{
    return kv_between(l->answer_min, l->answer_max, i + 7);
}

static inline void kv_request(const struct kv_load *l, int32_t i, int32_t vocab, int32_t *tokens,
                              struct eng_request *r)
{
    uint32_t state = (uint32_t)i * 7919u + 1;
    *r = (struct eng_request){.tokens = tokens,
                              .prompt_count = kv_prompt(l, i),
                              .sampling = {.temperature = i % 2 ? 0.8f : 0.f,
                                           .top_p = 0.95f,
                                           .top_k = 40,
                                           .repetition_penalty = i % 5 == 4 ? 1.2f : 1.f,
                                           .seed = (uint64_t)i,
                                           .max_tokens = kv_answer(l, i),
                                           .ignore_eos = true,
                                           .logprobs = -1,
                                           .prompt_logprobs = -1}};
    for (int32_t k = 0; k < r->prompt_count; k++) {
        state = state * 1664525u + 1013904223u;
        tokens[k] = (int32_t)((state >> 8) % (uint32_t)vocab);
    }
}

/* All requests to their end: tokens [count, len_max], and what the engine says of them. */
static inline void kv_serve(struct eng_engine *e, const struct kv_load *l, int32_t *tokens,
                            struct eng_stats *stats)
{
    struct eng_limits limits;
    struct eng_request *r = calloc((size_t)l->count, sizeof *r);
    CHECK(r);
    eng_limits(e, &limits);
    for (int32_t i = 0; i < l->count; i++)
        kv_request(l, i, limits.vocab, tokens + (size_t)i * (size_t)l->len_max, &r[i]);
    CHECK(eng_submit_all(e, r, l->count) == ST_OK);
    for (int32_t left = l->count; left > 0;) {
        struct eng_event event;
        if (!eng_poll(e, &event)) {
            sched_yield();
            continue;
        }
        if (event.kind != ENG_EVENT_FINISHED) continue;
        CHECK(event.finish == ENG_FINISH_LENGTH);
        left--;
    }
    do { /* published after the last event */
        sched_yield();
        eng_stats(e, stats);
    } while (stats->sched.running + stats->sched.waiting > 0);
    free(r);
}

/* Stops the program where anything fails that is not what is tested. */
static inline void kv_run(struct kn *kn, const struct kv_load *l, const struct kv_way *w,
                          int32_t *tokens, struct eng_stats *stats)
{
    char err[ERR_CAP] = "";
    const struct off_remote none = {.count = 0};
    const struct eng_model_options mo = {.dtype = l->dtype,
                                         .model_len_max = l->len_max,
                                         .tokens_max = w->budget,
                                         .rows_max = w->budget};
    struct eng_model_info info;
    struct off_tiers *tiers;
    struct eng_model *model;
    struct eng_engine *engine;
    struct kn_kv kv;
    enum status st = eng_model_read_info(l->model, &mo, &info, err);
    if (!st) st = off_tiers_open(kn, info.weight_bytes + (1u << 20), &none, &tiers, err);
    if (!st) st = eng_model_open(kn, tiers, l->model, &mo, &model, err);
    if (st) check_failed(__FILE__, __LINE__, err);
    eng_model_kv(model, &kv);
    const size_t page = kn_kv_page_bytes(&kv);
    const struct eng_config config = {
        .sched = {.seqs_max = w->seqs,
                  .tokens_step_max = w->budget,
                  .page_count = {w->near, w->far},
                  .residency = {.page_bytes = page,
                                .local_bytes_per_s = 4700e9,
                                .link_bytes_per_s = w->balanced             ? 2000e9
                                                    : w->mem == KN_MEM_HOST ? 51e9
                                                                            : 375e9,
                                .copy_bytes_per_s = 55e9,
                                .worth_s = w->balanced ? 0 : 1}},
        .model_len_max = l->len_max,
        .queue_max = l->count,
        .event_ring = 4096,
        .tokens_max = w->budget,
        .rows_max = w->budget,
        .ahead = w->ahead,
        .record = true};
    st = kn_alloc(kn, KN_MEM_LOCAL, 0, (size_t)w->near * page, &kv.base[0], err);
    if (!st && w->far) st = kn_alloc(kn, w->mem, 1, (size_t)w->far * page, &kv.base[1], err);
    if (!st) st = eng_open(kn, model, &kv, &config, &engine, err);
    if (st) check_failed(__FILE__, __LINE__, err);
    kv_serve(engine, l, tokens, stats);
    eng_close(engine);
    if (w->far) kn_free(kn, w->mem, kv.base[1], (size_t)w->far * page);
    kn_free(kn, KN_MEM_LOCAL, kv.base[0], (size_t)w->near * page);
    eng_model_close(model);
    off_tiers_close(tiers);
}

/* The share of what steps read of KV that lay in the remote tier. */
static inline double kv_far_share(const struct eng_stats *s)
{
    const double near = (double)s->kv_read_bytes[0], far = (double)s->kv_read_bytes[1];
    return far > 0 ? far / (near + far) : 0;
}

#endif
