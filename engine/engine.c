/*
 * engine.c - the engine thread: one loop of take, plan, issue, land.
 *
 *     eng_submit --> queue --take_submissions--> live table, scheduler
 *                                                     | eng_step_issue, eng_step_land (step.c)
 *                                                     v
 *                                                  events --> eng_poll
 *
 * `lock` guards the submission queue, the event ring and the published statistics, nothing else:
 * the scheduler, the model and the live table belong to the engine thread alone.  A request is read
 * by the engine from eng_submit to its FINISHED event; `cancelled` is the only field both threads
 * touch meanwhile, and it is atomic.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "config/check.h"
#include "config/clock.h"
#include "config/log.h"
#include "engine/engine_state.h"

/* --- events ----------------------------------------------------------------------------------- */

void eng_push_event(struct eng_engine *e, const struct eng_event *event)
{
    pthread_mutex_lock(&e->lock);
    while (e->ring_count == (uint32_t)e->config.event_ring && !e->closing) {
        pthread_mutex_unlock(&e->lock);
        if (e->config.wake) e->config.wake(e->config.user);
        pthread_mutex_lock(&e->lock);
        if (e->ring_count == (uint32_t)e->config.event_ring && !e->closing)
            pthread_cond_wait(&e->space, &e->lock);
    }
    if (!e->closing) {
        uint32_t at = (e->ring_head + e->ring_count) % (uint32_t)e->config.event_ring;
        e->ring[at] = *event;
        e->ring_count++;
    }
    pthread_mutex_unlock(&e->lock);
}

bool eng_poll(struct eng_engine *e, struct eng_event *out)
{
    pthread_mutex_lock(&e->lock);
    bool found = e->ring_count > 0;
    if (found) {
        *out = e->ring[e->ring_head];
        e->ring_head = (e->ring_head + 1) % (uint32_t)e->config.event_ring;
        e->ring_count--;
        if (out->kind == ENG_EVENT_FINISHED) e->unfinished--;
        pthread_cond_signal(&e->space);
    }
    pthread_mutex_unlock(&e->lock);
    return found;
}

void eng_finish(struct eng_engine *e, struct eng_request *r, enum eng_finish why,
                const struct eng_sample *sample)
{
    struct eng_event event = {.kind = ENG_EVENT_FINISHED, .request = r, .finish = why};
    if (sample) event.sample = *sample;
    eng_sched_remove(e->sched, &r->seq);
    e->live[r->slot] = NULL;
    e->free_slots[e->free_count++] = r->slot;
    e->live_count--;
    eng_push_event(e, &event);
}

static void finish_all(struct eng_engine *e, enum eng_finish why)
{
    for (int32_t i = 0; i < e->config.queue_max; i++)
        if (e->live[i]) eng_finish(e, e->live[i], why, NULL);
}

/* --- submission ------------------------------------------------------------------------------- */

enum status eng_submit_all(struct eng_engine *e, struct eng_request *requests, int32_t count)
{
    enum status st = ST_OK;
    for (int32_t i = 0; i < count; i++) {
        const struct eng_request *r = &requests[i];
        CHECK(r->prompt_count >= 1 && r->sampling.max_tokens >= 1);
        CHECK(r->cache_salt_length >= 0 && r->cache_salt_length <= ENG_CACHE_SALT_MAX);
        CHECK(r->given_count >= 0 && r->given_count < r->prompt_count);
        CHECK(r->prompt_count + r->sampling.max_tokens <= e->limits.model_len_max);
    }
    pthread_mutex_lock(&e->lock);
    if (e->stats.failed || e->stop) st = ST_DEVICE;
    else if (count > e->config.queue_max - e->unfinished) st = ST_FULL;
    uint64_t now = clock_now_ns();
    for (int32_t i = 0; i < count && !st; i++) {
        struct eng_request *r = &requests[i];
        r->submit_ns = now;
        r->next = NULL;
        if (e->queue_tail) e->queue_tail->next = r;
        else e->queue_head = r;
        e->queue_tail = r;
        e->unfinished++;
    }
    if (!st) pthread_cond_signal(&e->work);
    pthread_mutex_unlock(&e->lock);
    return st;
}

enum status eng_submit(struct eng_engine *e, struct eng_request *r)
{
    return eng_submit_all(e, r, 1);
}

void eng_set_control(struct eng_engine *e, const struct off_control control[KN_TIER_MAX])
{
    pthread_mutex_lock(&e->lock);
    memcpy(e->next_control, control, sizeof e->next_control);
    e->has_next_control = true;
    pthread_mutex_unlock(&e->lock);
}

void eng_cancel(struct eng_engine *e, struct eng_request *r)
{
    atomic_store(&r->cancelled, true);
    pthread_mutex_lock(&e->lock);
    e->poke = true;
    pthread_cond_signal(&e->work);
    pthread_mutex_unlock(&e->lock);
}

/* Moves what was submitted into the live table and the scheduler. */
static void take_submissions(struct eng_engine *e)
{
    pthread_mutex_lock(&e->lock);
    struct eng_request *r = e->queue_head;
    e->queue_head = e->queue_tail = NULL;
    e->poke = false;
    if (e->has_next_control) eng_control_begin(&e->control, e->kn, e->next_control);
    e->has_next_control = false;
    memcpy(e->stats.control, e->control.tier, sizeof e->stats.control);
    pthread_mutex_unlock(&e->lock);
    while (r) {
        struct eng_request *next = r->next;
        CHECK(e->free_count > 0);
        r->slot = e->free_slots[--e->free_count];
        e->live[r->slot] = r;
        e->live_count++;
        r->known_count = r->prompt_count;
        /* What is given is random: others are not to find it. */
        r->seq = (struct eng_sched_seq){
            .token_count = r->prompt_count,
            .tokens = r->given_count ? NULL : r->tokens,
            .known_count = r->prompt_count,
            .reuse_max = r->sampling.prompt_logprobs < 0 ? INT32_MAX : 0,
            .salt = r->cache_salt,
            .salt_length = r->cache_salt_length,
            .given_count = r->given_count,
            .pages = e->page_tables + (size_t)r->slot * (size_t)e->pages_per_seq};
        eng_sched_add(e->sched, &r->seq);
        r = next;
    }
}

static void drop_cancelled(struct eng_engine *e)
{
    for (int32_t i = 0, seen = 0, count = e->live_count; seen < count; i++) {
        struct eng_request *r = e->live[i];
        if (!r) continue;
        seen++;
        if (atomic_load(&r->cancelled)) eng_finish(e, r, ENG_FINISH_CANCELLED, NULL);
    }
}

/* --- the thread ------------------------------------------------------------------------------- */

static void publish(struct eng_engine *e)
{
    struct eng_sched_stats stats;
    eng_sched_stats(e->sched, &stats);
    pthread_mutex_lock(&e->lock);
    e->stats.sched = stats;
    e->stats.progress_ns = clock_now_ns();
    pthread_mutex_unlock(&e->lock);
}

/* Sleeps until there is something to do, at most a second so that progress stays visible to the
 * watchdog. */
static bool wait_for_work(struct eng_engine *e)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec++;
    pthread_mutex_lock(&e->lock);
    if (!e->queue_head && !e->stop && !e->poke) pthread_cond_timedwait(&e->work, &e->lock, &until);
    bool stop = e->stop;
    pthread_mutex_unlock(&e->lock);
    return !stop;
}

static bool stopping(struct eng_engine *e)
{
    pthread_mutex_lock(&e->lock);
    bool stop = e->stop;
    pthread_mutex_unlock(&e->lock);
    return stop;
}

static void fail(struct eng_engine *e, const char *err)
{
    log_error("engine", "%s", err);
    pthread_mutex_lock(&e->lock);
    e->stats.failed = true;
    snprintf(e->stats.failure, sizeof e->stats.failure, "%s", err);
    pthread_mutex_unlock(&e->lock);
    take_submissions(e);
    finish_all(e, ENG_FINISH_ERROR);
}

static void wake(struct eng_engine *e)
{
    publish(e);
    if (e->config.wake) e->config.wake(e->config.user);
}

/* NULL lands at once. */
static enum status land(struct eng_engine *e, struct eng_step *s, char *err)
{
    enum status st = s ? eng_step_land(e, s, err) : ST_OK;
    if (s && !st) wake(e);
    return st;
}

/* One turn: a step is planned and issued, then the one before it lands, and the new one too where
 * nothing may be planned before.  *flying is the step in flight, or NULL; false where there was
 * nothing to do. */
static enum status turn(struct eng_engine *e, struct eng_step **flying, bool *idle, char *err)
{
    struct eng_plan plan;
    struct eng_step *before = *flying, *next = NULL;
    take_submissions(e);
    drop_cancelled(e);
    if (e->tiered || e->config.sched.prefix_cache)
        eng_sched_moved(e->sched, kn_moves_done(e->kn) - e->moves_before);
    eng_sched_plan(e->sched, &plan);
    *idle = !before && plan.item_count == 0;
    if (plan.item_count > 0) {
        next = before == &e->steps[0] ? &e->steps[1] : &e->steps[0];
        eng_step_issue(e, &plan, next);
    }
    *flying = next;
    enum status st = land(e, before, err);
    if (st || !next || next->ahead) return st;
    *flying = NULL;
    return land(e, next, err);
}

static void *engine_main(void *arg)
{
    struct eng_engine *e = arg;
    struct eng_step *flying = NULL;
    char err[ERR_CAP];
    bool idle = false;
    enum status st = ST_OK;
    e->turn_ns = clock_now_ns();
    e->rested = true;
    while (!st && !stopping(e)) {
        st = turn(e, &flying, &idle, err);
        DCHECK((eng_sched_check(e->sched), true)); /* after every step of a debug build */
        if (st || !idle) continue;
        wake(e);
        if (!wait_for_work(e)) break;
        e->turn_ns = clock_now_ns(); /* idleness is nobody's */
        e->rested = true;
    }
    if (!st) st = land(e, flying, err);
    if (st) {
        fail(e, err);
        /* What is still computed may use memory that is freed next. */
        if (kn_sync(e->kn, err)) log_debug("engine", "%s", err);
    }
    take_submissions(e);
    finish_all(e, ENG_FINISH_CANCELLED);
    wake(e);
    return NULL;
}

/* --- open and close --------------------------------------------------------------------------- */

static enum status alloc_tables(struct eng_engine *e, char *err)
{
    size_t queue = (size_t)e->config.queue_max, rows = (size_t)e->config.rows_max;
    e->pages_per_seq = (int32_t)div_up((size_t)e->config.model_len_max, KN_PAGE_TOKENS);
    e->live = calloc(queue, sizeof(struct eng_request *));
    e->free_slots = calloc(queue, sizeof *e->free_slots);
    e->page_tables = calloc(queue * (size_t)e->pages_per_seq, sizeof *e->page_tables);
    e->ring = calloc((size_t)e->config.event_ring, sizeof *e->ring);
    if (!e->live || !e->free_slots || !e->page_tables || !e->ring)
        return err_set(err, ST_NOMEM,
                       "no memory for the tables of requests; lower --max-num-seqs, --max-waiting "
                       "or --max-model-len");
    for (int32_t i = 0; i < e->config.queue_max; i++)
        e->free_slots[e->free_count++] = e->config.queue_max - 1 - i;
    e->logits_bytes = rows * (size_t)e->limits.vocab * sizeof(float);
    for (size_t i = 0; i < ARRAY_COUNT(e->steps); i++) {
        enum status st = eng_step_open(e, &e->steps[i], err);
        if (st) return st;
    }
    enum status st = kn_alloc(e->kn, KN_MEM_STAGING, 0, e->logits_bytes, (void **)&e->logits, err);
    return st ? st : kn_sample_reserve(e->kn, e->limits.vocab, e->config.rows_max, err);
}

static void init_sync(struct eng_engine *e)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->work, &attr);
    pthread_cond_init(&e->space, NULL);
    pthread_condattr_destroy(&attr);
}

static void set_limits(struct eng_engine *e)
{
    const struct eng_model_info *info = eng_model_info(e->model);
    e->limits.model_len_max = e->config.model_len_max;
    e->limits.vocab = info->vocab;
    e->limits.eos_count = info->eos_count;
    memcpy(e->limits.eos, info->eos, sizeof info->eos);
}

enum status eng_open(struct kn *kn, struct eng_model *model, const struct kn_kv *kv,
                     const struct eng_config *config, struct eng_engine **out, char *err)
{
    enum status st;
    CHECK(config->event_ring >= 1 && config->queue_max >= 1 && config->rows_max >= 1);
    CHECK(config->sched.tokens_step_max <= config->tokens_max);
    *out = NULL;
    struct eng_engine *e = calloc(1, sizeof *e);
    if (!e) return err_set(err, ST_NOMEM, "no memory for the engine");
    e->kn = kn;
    e->model = model;
    e->kv = *kv;
    e->config = *config;
    set_limits(e);
    init_sync(e);
    if ((st = alloc_tables(e, err))) goto fail;
    if ((st = eng_sched_open(&config->sched, &e->sched)) ||
        (st = eng_sampler_open(e->limits.vocab, &e->sampler))) {
        err_set(err, st, "no memory for the scheduler and the sampler");
        goto fail;
    }
    if (eng_sched_seq_tokens_max(e->sched) < config->model_len_max) {
        st = err_set(err, ST_LIMIT,
                     "the KV cache holds %d tokens, fewer than one sequence of %d: raise "
                     "--kv-cache-memory-bytes or lower --max-model-len",
                     eng_sched_seq_tokens_max(e->sched), config->model_len_max);
        goto fail;
    }
    eng_control_begin(&e->control, kn, config->control);
    memcpy(e->stats.control, e->control.tier, sizeof e->stats.control);
    if ((st = eng_warm_up(e, err))) goto fail;
    for (int t = 1; t < KN_TIER_MAX; t++) e->tiered |= config->sched.page_count[t] > 0;
    eng_model_traffic(model, kv->dtype, &e->traffic);
    e->moves_before = kn_moves_done(kn);
    publish(e);
    if (pthread_create(&e->thread, NULL, engine_main, e)) {
        st = err_set(err, ST_NOMEM, "the engine thread cannot be started");
        goto fail;
    }
    e->thread_started = true;
    *out = e;
    return ST_OK;
fail:
    eng_close(e);
    return st;
}

void eng_stop(struct eng_engine *e)
{
    pthread_mutex_lock(&e->lock);
    e->stop = true;
    pthread_cond_signal(&e->work);
    pthread_mutex_unlock(&e->lock);
}

void eng_close(struct eng_engine *e)
{
    if (!e) return;
    if (e->thread_started) {
        pthread_mutex_lock(&e->lock);
        e->stop = e->closing = true;
        pthread_cond_signal(&e->work);
        pthread_cond_signal(&e->space);
        pthread_mutex_unlock(&e->lock);
        pthread_join(e->thread, NULL);
    }
    for (size_t i = 0; i < ARRAY_COUNT(e->steps); i++) eng_step_close(e, &e->steps[i]);
    if (e->logits) kn_free(e->kn, KN_MEM_STAGING, e->logits, e->logits_bytes);
    free(e->live);
    free(e->free_slots);
    free(e->page_tables);
    free(e->ring);
    if (e->sampler) eng_sampler_close(e->sampler);
    if (e->sched) eng_sched_close(e->sched);
    pthread_cond_destroy(&e->work);
    pthread_cond_destroy(&e->space);
    pthread_mutex_destroy(&e->lock);
    free(e);
}

void eng_limits(const struct eng_engine *e, struct eng_limits *out)
{
    *out = e->limits;
}

void eng_stats(struct eng_engine *e, struct eng_stats *out)
{
    pthread_mutex_lock(&e->lock);
    *out = e->stats;
    pthread_mutex_unlock(&e->lock);
}
