/*
 * engine.c - the engine thread: one loop of take, plan, compute, sample, report.
 *
 *     eng_submit --> queue --take_submissions--> live table, scheduler
 *                                                     | run_step
 *                                                     v
 *                                                  events --> eng_poll
 *
 * `lock` guards the submission queue, the event ring and the published statistics, nothing else:
 * the scheduler, the model and the live table belong to the engine thread alone.  A request is read
 * by the engine from eng_submit to its FINISHED event; `cancelled` is the only field both threads
 * touch meanwhile, and it is atomic.
 */
#include "engine/engine.h"

#include <math.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "config/check.h"
#include "config/clock.h"
#include "config/log.h"

const int32_t eng_step_bounds[ENG_STEP_BUCKETS - 1] = {1,   8,   16,   32,   64,  128,
                                                       256, 512, 1024, 2048, 4096};

/* The step's batch in the form kernels read; every array is sized for the largest step. */
struct step {
    int32_t *tokens, *positions, *token_seq; /* [tokens_max] */
    struct kn_seq *seqs;                     /* [seqs_max] */
    kn_page *pages;
    int32_t *rows;       /* [tokens_max]: rows wanted, samples first */
    int32_t *row_item;   /* [tokens_max]: index of the plan item a row belongs to */
    int32_t *row_target; /* [tokens_max]: prompt position the row scores, or -1 for a sample */
    int32_t row_count, sample_count;
    float *logits;                /* [rows_max, V] in KN_MEM_STAGING */
    struct kn_sample_row *choice; /* [rows_max]: the rows of a group that the backend samples */
    int32_t *choice_item;         /* [rows_max]: the plan item of each */
    int32_t choice_count;
    struct kn_sampled *chosen;  /* [rows_max] in KN_MEM_STAGING: their tokens */
    struct eng_sample *samples; /* [seqs_max], by plan item */
};

struct eng_engine {
    struct kn *kn;           /* borrowed */
    struct eng_model *model; /* borrowed */
    struct kn_kv kv;
    struct eng_config config;
    struct eng_limits limits;
    struct eng_sched *sched;
    struct eng_sampler *sampler;
    struct step step;
    size_t logits_bytes;
    struct eng_request **live; /* [queue_max]: slot -> request or NULL */
    int32_t *free_slots;       /* stack of free_count slots */
    int32_t free_count;
    kn_page *page_tables; /* [queue_max][pages_per_seq] */
    int32_t pages_per_seq;
    int32_t live_count;
    /* Where the thread's time goes: charge() adds what passed since turn_ns to one of the two. */
    uint64_t turn_ns, device_ns, host_ns;
    uint64_t traffic_ns; /* of the device, since kn_traffic last told of more */
    bool broken; /* a step failed: the scheduler's plan was never committed, and it is not asked
                    again */

    pthread_t thread;
    bool thread_started;
    pthread_mutex_t lock;
    pthread_cond_t work;  /* submissions, cancels, stop */
    pthread_cond_t space; /* the event ring was polled */
    struct eng_request *queue_head, *queue_tail;
    int32_t unfinished;
    struct eng_event *ring; /* [event_ring] */
    uint32_t ring_head, ring_count;
    bool poke, stop, closing;
    struct eng_stats stats;
};

/* The two clocks of the thread: busy machine, or busy engine. */
static void charge(struct eng_engine *e, uint64_t *account)
{
    uint64_t now = clock_now_ns();
    *account += now - e->turn_ns;
    e->turn_ns = now;
}

static struct eng_request *request_of(struct eng_sched_seq *seq)
{
    return (struct eng_request *)((char *)seq - offsetof(struct eng_request, seq));
}

/* --- events ----------------------------------------------------------------------------------- */

static void push_event(struct eng_engine *e, const struct eng_event *event)
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

/* Takes a live request out of the tables and reports its end.  The request is not touched
 * afterwards. */
static void finish(struct eng_engine *e, struct eng_request *r, enum eng_finish why,
                   const struct eng_sample *sample)
{
    struct eng_event event = {.kind = ENG_EVENT_FINISHED, .request = r, .finish = why};
    if (sample) event.sample = *sample;
    if (!e->broken) eng_sched_remove(e->sched, &r->seq);
    e->live[r->slot] = NULL;
    e->free_slots[e->free_count++] = r->slot;
    e->live_count--;
    push_event(e, &event);
}

static void finish_all(struct eng_engine *e, enum eng_finish why)
{
    for (int32_t i = 0; i < e->config.queue_max; i++)
        if (e->live[i]) finish(e, e->live[i], why, NULL);
}

/* --- submission ------------------------------------------------------------------------------- */

enum status eng_submit_all(struct eng_engine *e, struct eng_request *requests, int32_t count)
{
    enum status st = ST_OK;
    for (int32_t i = 0; i < count; i++) {
        const struct eng_request *r = &requests[i];
        CHECK(r->prompt_count >= 1 && r->sampling.max_tokens >= 1);
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
    pthread_mutex_unlock(&e->lock);
    while (r) {
        struct eng_request *next = r->next;
        CHECK(e->free_count > 0);
        r->slot = e->free_slots[--e->free_count];
        e->live[r->slot] = r;
        e->live_count++;
        r->seq = (struct eng_sched_seq){.token_count = r->prompt_count,
                                        .pages = e->page_tables +
                                                 (size_t)r->slot * (size_t)e->pages_per_seq};
        if (!e->broken) eng_sched_add(e->sched, &r->seq);
        r = next;
    }
}

static void drop_cancelled(struct eng_engine *e)
{
    for (int32_t i = 0, seen = 0, count = e->live_count; seen < count; i++) {
        struct eng_request *r = e->live[i];
        if (!r) continue;
        seen++;
        if (atomic_load(&r->cancelled)) finish(e, r, ENG_FINISH_CANCELLED, NULL);
    }
}

/* --- one step --------------------------------------------------------------------------------- */

static void want_row(struct step *s, int32_t token, int32_t item, int32_t target)
{
    s->rows[s->row_count] = token;
    s->row_item[s->row_count] = item;
    s->row_target[s->row_count++] = target;
}

/* Lists the rows whose logits are wanted: samples first, then the prompt tokens to be scored. */
static void list_rows(struct eng_engine *e, const struct eng_plan *plan)
{
    struct step *s = &e->step;
    s->row_count = 0;
    for (int32_t i = 0; i < plan->item_count; i++) {
        const struct kn_seq *seq = &s->seqs[i];
        if (plan->items[i].sample) want_row(s, seq->token_begin + seq->token_count - 1, i, -1);
    }
    s->sample_count = s->row_count;
    for (int32_t i = 0; i < plan->item_count; i++) {
        const struct eng_plan_item *item = &plan->items[i];
        const struct eng_request *r = request_of(item->seq);
        if (r->sampling.prompt_logprobs < 0) continue;
        /* The row of position p scores the token at p + 1; a preempted prompt is not scored twice.
         */
        for (int32_t j = 0; j < item->token_count; j++) {
            int32_t target = item->token_begin + j + 1;
            if (target < r->prompt_count && target >= r->scored_count)
                want_row(s, s->seqs[i].token_begin + j, i, target);
        }
    }
}

static void build_batch(struct eng_engine *e, const struct eng_plan *plan, struct kn_batch *batch)
{
    struct step *s = &e->step;
    int32_t token = 0, page = 0;
    for (int32_t i = 0; i < plan->item_count; i++) {
        const struct eng_plan_item *item = &plan->items[i];
        const struct eng_request *r = request_of(item->seq);
        int32_t kv_count = item->token_begin + item->token_count;
        int32_t page_count = (int32_t)div_up((size_t)kv_count, KN_PAGE_TOKENS);
        s->seqs[i] = (struct kn_seq){.token_begin = token,
                                     .token_count = item->token_count,
                                     .kv_count = kv_count,
                                     .page_begin = page};
        for (int32_t j = 0; j < item->token_count; j++, token++) {
            s->tokens[token] = r->tokens[item->token_begin + j];
            s->positions[token] = item->token_begin + j;
            s->token_seq[token] = i;
        }
        memcpy(s->pages + page, item->seq->pages, (size_t)page_count * sizeof *s->pages);
        page += page_count;
    }
    list_rows(e, plan);
    *batch = (struct kn_batch){.token_count = token,
                               .tokens = s->tokens,
                               .positions = s->positions,
                               .token_seq = s->token_seq,
                               .seq_count = plan->item_count,
                               .seqs = s->seqs,
                               .pages = s->pages,
                               .rows = s->rows,
                               .row_count = s->row_count < e->config.rows_max ? s->row_count
                                                                              : e->config.rows_max};
}

static void send_prompt_token(struct eng_engine *e, struct eng_request *r, int32_t position,
                              const float *logits)
{
    struct eng_event event = {.kind = ENG_EVENT_PROMPT, .request = r, .index = position};
    if (logits)
        eng_score_token(e->sampler, logits, r->tokens[position], r->sampling.prompt_logprobs,
                        &event.sample);
    else event.sample = (struct eng_sample){.token = r->tokens[position], .logprob = NAN};
    r->scored_count = position + 1;
    push_event(e, &event);
}

/* Whether row i needs its logits on the host: to score a prompt, to change them before a token is
 * chosen, or to list alternatives.  It depends on the request and the index of the token alone, and
 * both ways choose the same token. */
static bool host_row(const struct eng_plan *plan, const struct step *s, int32_t i)
{
    if (s->row_target[i] >= 0) return true;
    const struct eng_request *r = request_of(plan->items[s->row_item[i]].seq);
    return r->sampling.logprobs > 0 ||
           eng_sampler_adjusts(&r->sampling, r->seq.token_count - r->prompt_count);
}

/* Issues what follows one group of logits: rows for the host are brought there, tokens of the
 * others are chosen where their logits are. */
static void issue_rows(struct eng_engine *e, const struct eng_plan *plan, int32_t begin,
                       int32_t count)
{
    struct step *s = &e->step;
    const size_t vocab = (size_t)e->limits.vocab;
    s->choice_count = 0;
    for (int32_t i = begin; i < begin + count; i++) {
        if (host_row(plan, s, i)) {
            kn_download(e->kn, s->logits + (size_t)(i - begin) * vocab, vocab * sizeof(float));
            continue;
        }
        const struct eng_request *r = request_of(plan->items[s->row_item[i]].seq);
        struct kn_sample_row *choice = &s->choice[s->choice_count];
        *choice = eng_sampler_row(&r->sampling, r->seq.token_count - r->prompt_count);
        choice->row = i - begin;
        s->choice_item[s->choice_count++] = s->row_item[i];
    }
    kn_sample(e->kn, &(struct kn_sample_args){.logits = s->logits,
                                              .vocab = e->limits.vocab,
                                              .row_count = s->choice_count,
                                              .rows = s->choice,
                                              .out = s->chosen});
}

/* Takes the chosen tokens of one group, and samples or scores its rows on the host. */
static enum status use_rows(struct eng_engine *e, const struct eng_plan *plan, int32_t begin,
                            int32_t count)
{
    struct step *s = &e->step;
    for (int32_t i = 0; i < s->choice_count; i++) {
        const struct kn_sampled *c = &s->chosen[i];
        if (c->token < 0) return ST_DEVICE;
        s->samples[s->choice_item[i]] =
            (struct eng_sample){.token = c->token, .logprob = c->logprob, .rank = c->rank};
    }
    for (int32_t i = begin; i < begin + count; i++) {
        if (!host_row(plan, s, i)) continue;
        const float *logits = s->logits + (size_t)(i - begin) * (size_t)e->limits.vocab;
        int32_t item = s->row_item[i];
        struct eng_request *r = request_of(plan->items[item].seq);
        if (s->row_target[i] >= 0) {
            if (r->scored_count == 0) send_prompt_token(e, r, 0, NULL);
            send_prompt_token(e, r, s->row_target[i], logits);
            continue;
        }
        enum status st = eng_sample_token(e->sampler, &r->sampling, logits, r->tokens,
                                          r->prompt_count, r->seq.token_count, e->limits.eos,
                                          e->limits.eos_count, &s->samples[item]);
        if (st) return st;
    }
    return ST_OK;
}

static bool in_list(const int32_t *list, int32_t count, int32_t token)
{
    for (int32_t i = 0; i < count; i++)
        if (list[i] == token) return true;
    return false;
}

/* A sampled token ends the request, or is appended and reported. */
static void take_token(struct eng_engine *e, struct eng_request *r, const struct eng_sample *sample)
{
    const struct eng_sampling *p = &r->sampling;
    int32_t generated = r->seq.token_count - r->prompt_count;
    if (r->sampling.prompt_logprobs >= 0 && r->scored_count == 0)
        send_prompt_token(e, r, 0, NULL); /* a prompt of one token has no scored row */
    if ((!p->ignore_eos && in_list(e->limits.eos, e->limits.eos_count, sample->token)) ||
        in_list(p->stop_tokens, p->stop_token_count, sample->token)) {
        finish(e, r, ENG_FINISH_STOP, sample);
        return;
    }
    r->tokens[r->seq.token_count++] = sample->token;
    struct eng_event event = {.kind = ENG_EVENT_TOKEN,
                              .request = r,
                              .index = generated,
                              .step = e->stats.step_count, /* written by this thread alone */
                              .sample = *sample};
    push_event(e, &event);
    if (generated + 1 == p->max_tokens || r->seq.token_count == e->limits.model_len_max)
        finish(e, r, ENG_FINISH_LENGTH, NULL);
}

/* The counters come a step late, or many together: device time is gathered until they change. Under
 * `lock`. */
static void count_traffic(struct eng_engine *e, uint64_t step_device_ns)
{
    struct kn_traffic now[KN_TIER_MAX];
    bool changed = false;
    e->traffic_ns += step_device_ns;
    for (int t = 0; t < KN_TIER_MAX; t++) {
        kn_traffic(e->kn, t, &now[t]);
        changed |= now[t].bytes != e->stats.traffic[t].bytes;
    }
    if (!changed || e->traffic_ns == 0) return;
    for (int t = 0; t < KN_TIER_MAX; t++)
        e->stats.read_bytes_per_s[t] =
            (double)(now[t].bytes - e->stats.traffic[t].bytes) / ((double)e->traffic_ns / 1e9);
    memcpy(e->stats.traffic, now, sizeof now);
    e->traffic_ns = 0;
}

static void count_step(struct eng_engine *e, const struct eng_plan *plan, uint64_t start_ns,
                       uint64_t prompt_tokens, uint64_t recomputed)
{
    uint64_t now = clock_now_ns();
    int bucket = 0;
    while (bucket < ENG_STEP_BUCKETS - 1 && plan->token_count > eng_step_bounds[bucket]) bucket++;
    pthread_mutex_lock(&e->lock);
    struct eng_stats *t = &e->stats;
    t->step_count++;
    t->step_ns_sum += now - start_ns;
    count_traffic(e, e->device_ns - t->device_ns_sum);
    t->device_ns_sum = e->device_ns;
    t->host_ns_sum = e->host_ns;
    t->step_tokens_sum += (uint64_t)plan->token_count;
    t->step_tokens_bucket[bucket]++;
    t->prompt_tokens += prompt_tokens;
    t->recomputed_tokens += recomputed;
    t->generated_tokens += (uint64_t)e->step.sample_count;
    pthread_mutex_unlock(&e->lock);
    log_debug("engine", "step of %d tokens in %d sequences took %.3f ms, %d preempted",
              plan->token_count, plan->item_count, (double)(now - start_ns) / 1e6,
              plan->preempt_count);
}

/* Marks first admissions; tells prompt tokens from those computed again after a preemption. */
static void note_items(struct eng_engine *e, const struct eng_plan *plan, uint64_t now,
                       uint64_t *prompt_tokens, uint64_t *recomputed)
{
    *prompt_tokens = *recomputed = 0;
    for (int32_t i = 0; i < plan->item_count; i++) {
        const struct eng_plan_item *item = &plan->items[i];
        struct eng_request *r = request_of(item->seq);
        if (r->first_ns == 0) {
            r->first_ns = now;
            pthread_mutex_lock(&e->lock);
            e->stats.queue_ns_sum += now - r->submit_ns;
            e->stats.queue_count++;
            pthread_mutex_unlock(&e->lock);
        }
        int32_t end = item->token_begin + item->token_count;
        int32_t again = item->seq->preempt_count > 0 ? end - (item->sample ? 1 : 0) : 0;
        if (again > item->token_begin) *recomputed += (uint64_t)(again - item->token_begin);
        else if (item->token_begin < r->prompt_count) *prompt_tokens += (uint64_t)item->token_count;
    }
}

static enum status run_step(struct eng_engine *e, struct eng_plan *plan, char *err)
{
    struct step *s = &e->step;
    struct kn_batch batch;
    uint64_t start = clock_now_ns(), prompt_tokens, recomputed;
    note_items(e, plan, start, &prompt_tokens, &recomputed);
    build_batch(e, plan, &batch);
    charge(e, &e->host_ns);
    eng_model_forward(e->model, &batch, &e->kv);
    for (int32_t begin = 0; begin < s->row_count; begin += e->config.rows_max) {
        batch.rows = s->rows + begin;
        batch.row_count = s->row_count - begin;
        if (batch.row_count > e->config.rows_max) batch.row_count = e->config.rows_max;
        eng_model_logits(e->model, &batch, s->logits);
        issue_rows(e, plan, begin, batch.row_count);
        enum status st = kn_sync(e->kn, err);
        charge(e, &e->device_ns);
        if (st) return st;
        st = use_rows(e, plan, begin, batch.row_count);
        if (st) return err_set(err, st, "the model's logits hold no finite number");
        charge(e, &e->host_ns);
    }
    if (s->row_count == 0) {
        enum status st = kn_sync(e->kn, err);
        charge(e, &e->device_ns);
        if (st) return st;
    }
    eng_sched_commit(e->sched, plan);
    for (int32_t i = 0; i < plan->item_count; i++)
        if (plan->items[i].sample) take_token(e, request_of(plan->items[i].seq), &s->samples[i]);
    count_step(e, plan, start, prompt_tokens, recomputed);
    return ST_OK;
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
    e->broken = true;
    log_error("engine", "%s", err);
    pthread_mutex_lock(&e->lock);
    e->stats.failed = true;
    snprintf(e->stats.failure, sizeof e->stats.failure, "%s", err);
    pthread_mutex_unlock(&e->lock);
    take_submissions(e);
    finish_all(e, ENG_FINISH_ERROR);
}

static void *engine_main(void *arg)
{
    struct eng_engine *e = arg;
    char err[ERR_CAP];
    bool failed = false;
    e->turn_ns = clock_now_ns();
    while (!stopping(e) && !failed) {
        struct eng_plan plan;
        take_submissions(e);
        drop_cancelled(e);
        eng_sched_plan(e->sched, &plan);
        if (plan.item_count > 0 && run_step(e, &plan, err)) {
            fail(e, err);
            failed = true;
        }
        publish(e);
        if (e->config.wake) e->config.wake(e->config.user);
        if (plan.item_count > 0) continue;
        if (!wait_for_work(e)) break;
        e->turn_ns = clock_now_ns(); /* idleness is nobody's */
    }
    take_submissions(e);
    finish_all(e, ENG_FINISH_CANCELLED);
    publish(e);
    if (e->config.wake) e->config.wake(e->config.user);
    return NULL;
}

/* --- open and close --------------------------------------------------------------------------- */

static enum status alloc_step(struct eng_engine *e, char *err)
{
    struct step *s = &e->step;
    size_t tokens = (size_t)e->config.tokens_max, seqs = (size_t)e->config.sched.seqs_max;
    size_t queue = (size_t)e->config.queue_max, rows = (size_t)e->config.rows_max;
    e->pages_per_seq = (int32_t)div_up((size_t)e->config.model_len_max, KN_PAGE_TOKENS);
    s->tokens = calloc(tokens, sizeof *s->tokens);
    s->positions = calloc(tokens, sizeof *s->positions);
    s->token_seq = calloc(tokens, sizeof *s->token_seq);
    s->seqs = calloc(seqs, sizeof *s->seqs);
    s->pages = calloc(seqs * (size_t)e->pages_per_seq, sizeof *s->pages);
    s->rows = calloc(tokens + seqs, sizeof *s->rows);
    s->row_item = calloc(tokens + seqs, sizeof *s->row_item);
    s->row_target = calloc(tokens + seqs, sizeof *s->row_target);
    s->samples = calloc(seqs, sizeof *s->samples);
    s->choice = calloc(rows, sizeof *s->choice);
    s->choice_item = calloc(rows, sizeof *s->choice_item);
    e->live = calloc(queue, sizeof(struct eng_request *));
    e->free_slots = calloc(queue, sizeof *e->free_slots);
    e->page_tables = calloc(queue * (size_t)e->pages_per_seq, sizeof *e->page_tables);
    e->ring = calloc((size_t)e->config.event_ring, sizeof *e->ring);
    if (!s->tokens || !s->positions || !s->token_seq || !s->seqs || !s->pages || !s->rows ||
        !s->row_item || !s->row_target || !s->samples || !s->choice || !s->choice_item ||
        !e->live || !e->free_slots || !e->page_tables || !e->ring)
        return err_set(
            err, ST_NOMEM,
            "no memory for the step buffers; lower --max-num-seqs, --max-num-batched-tokens "
            "or --max-model-len");
    for (int32_t i = 0; i < e->config.queue_max; i++)
        e->free_slots[e->free_count++] = e->config.queue_max - 1 - i;
    e->logits_bytes = rows * (size_t)e->limits.vocab * sizeof(float);
    enum status st = kn_alloc(e->kn, KN_MEM_STAGING, 0, e->logits_bytes, (void **)&s->logits, err);
    if (st) return st;
    st = kn_alloc(e->kn, KN_MEM_STAGING, 0, rows * sizeof *s->chosen, (void **)&s->chosen, err);
    return st ? st : kn_sample_reserve(e->kn, e->limits.vocab, err);
}

/* Computes one token into page 0, so that the first request does not pay for first touches. */
static enum status warm_up(struct eng_engine *e, char *err)
{
    static const int32_t zero = 0;
    const struct kn_seq seq = {.token_begin = 0, .token_count = 1, .kv_count = 1, .page_begin = 0};
    const kn_page page = kn_page_make(0, 0);
    const struct kn_batch batch = {.token_count = 1,
                                   .tokens = &zero,
                                   .positions = &zero,
                                   .token_seq = &zero,
                                   .seq_count = 1,
                                   .seqs = &seq,
                                   .pages = &page,
                                   .row_count = 1,
                                   .rows = &zero};
    eng_model_forward(e->model, &batch, &e->kv);
    const struct kn_sample_row greedy = {.top_p = 1};
    eng_model_logits(e->model, &batch, e->step.logits);
    kn_sample(e->kn, &(struct kn_sample_args){.logits = e->step.logits,
                                              .vocab = e->limits.vocab,
                                              .row_count = 1,
                                              .rows = &greedy,
                                              .out = e->step.chosen});
    kn_download(e->kn, e->step.logits, (size_t)e->limits.vocab * sizeof(float));
    enum status st = kn_sync(e->kn, err);
    if (st) return st;
    for (int32_t i = 0; i < e->limits.vocab; i++)
        if (!isfinite(e->step.logits[i]))
            return err_set(err, ST_CORRUPT,
                           "the model's first logits are not finite: its weights are damaged, or "
                           "overflow in this --dtype");
    return ST_OK;
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
    if ((st = alloc_step(e, err))) goto fail;
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
    if ((st = warm_up(e, err))) goto fail;
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
    struct step *s = &e->step;
    if (s->logits) kn_free(e->kn, KN_MEM_STAGING, s->logits, e->logits_bytes);
    size_t chosen_bytes = (size_t)e->config.rows_max * sizeof *s->chosen;
    if (s->chosen) kn_free(e->kn, KN_MEM_STAGING, s->chosen, chosen_bytes);
    void *owned[] = {s->tokens,      s->positions, s->token_seq,  s->seqs,        s->pages,
                     s->rows,        s->row_item,  s->row_target, s->samples,     s->choice,
                     s->choice_item, e->live,      e->free_slots, e->page_tables, e->ring};
    for (size_t i = 0; i < ARRAY_COUNT(owned); i++) free(owned[i]);
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
