/*
 * generate.c - see generate.h: a job's beginning, its sequences' events, and its end.
 *
 * Memory is sized here: for every sequence the tokens (prompt and the longest answer), and where
 * log-probabilities are asked for one row per token.  Nothing is allocated per token but text.
 */
#include "server/generate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "config/check.h"
#include "config/clock.h"
#include "config/random.h"
#include "server/sse.h"

/* A sequence's text may hold the echoed prompt and this many bytes per token of the answer. */
#define TEXT_BYTES_PER_TOKEN 1024u
/* What a token's text and one log-probability come to, in an answer's JSON. */
#define TEXT_BYTES_TYPICAL 8u
#define ENTRY_JSON_TYPICAL 100u

static void random_bytes(void *out, size_t len)
{
    CHECK(getrandom(out, len, 0) ==
          (ssize_t)len); /* cannot fail for few bytes once the pool is up */
}

/* --- the end of a job -------------------------------------------------------------------- */

static void job_free(struct srv_job *job)
{
    struct srv_api *api = job->api;
    CHECK(!job->x && !job->encoding && job->live_count == 0 && !job->dirty);
    for (int32_t i = 0; i < job->seq_count; i++) {
        free(job->seqs[i].req.tokens);
        free(job->seqs[i].scores);
        buf_deinit(&job->seqs[i].text);
    }
    free(job->seqs);
    free(job->rendered.tokens);
    free(job->rendered_text);
    buf_deinit(&job->chunk);
    srv_ask_deinit(&job->request);
    api->memory_bytes -= job->bytes;
    if (job->prev) job->prev->next = job->next;
    else api->jobs = job->next;
    if (job->next) job->next->prev = job->prev;
    api->job_count--;
    free(job);
    srv_api_settle(api);
}

static void free_if_over(struct srv_job *job)
{
    if (!job->x && !job->encoding && job->live_count == 0 && !job->dirty) job_free(job);
}

void srv_job_cancel(struct srv_job *job)
{
    if (job->encoding) srv_encode_cancel(&job->encode);
    for (int32_t i = 0; i < job->seq_count; i++)
        if (job->seqs[i].live) eng_cancel(job->api->engine, &job->seqs[i].req);
}

static void client_left(struct srv_exchange *x, void *context)
{
    struct srv_job *job = context;
    CHECK(job->x == x);
    job->x = NULL;
    job->api->metrics.client_left++;
    srv_job_cancel(job);
    free_if_over(job);
}

static void room_again(struct srv_exchange *x, void *context)
{
    struct srv_job *job = context;
    CHECK(job->x == x);
    job->paused = false;
    srv_job_pump(job);
    free_if_over(job);
}

/* Does not free the job: the caller may still use it. */
static void refuse(struct srv_job *job, const struct srv_fault *fault)
{
    struct srv_exchange *x = job->x;
    job->x = NULL;
    if (fault->status == 503) job->api->metrics.rejected++;
    srv_api_fault(x, fault);
    srv_job_cancel(job);
}

void srv_job_fail(struct srv_job *job, const struct srv_fault *fault)
{
    struct srv_exchange *x = job->x;
    if (!x) return;
    /* A job that still encodes, or answers as a whole, has sent nothing yet. */
    if (!job->request.stream || job->encoding || job->seq_count == 0) {
        refuse(job, fault);
        return;
    }
    job->x = NULL;
    buf_clear(&job->chunk);
    srv_fault_format(fault, &job->chunk);
    enum status st = buf_status(&job->chunk);
    if (!st) st = srv_sse_data(x, job->chunk.data, job->chunk.len);
    if (st == ST_OK || st == ST_FULL) srv_sse_done(x);
    else srv_x_stream_abort(x); /* no room to say it: the cut tells */
    srv_job_cancel(job);
}

/* --- submission -------------------------------------------------------------------------- */

/* Storage of one sequence in bytes, as counted against the limit.  A whole answer is also held as
 * text, and once more as the reply. */
static uint64_t sequence_bytes(const struct srv_job *job, const struct srv_prompt *prompt)
{
    const struct eng_sampling *p = &job->request.sampling;
    uint64_t answer = (uint64_t)p->max_tokens, asked = (uint64_t)prompt->token_count;
    uint64_t rows = (p->logprobs >= 0 ? answer : 0) + (p->prompt_logprobs >= 0 ? asked : 0);
    uint64_t entries = rows * (uint64_t)job->stride;
    uint64_t bytes = sizeof(struct srv_seq) + (answer + asked) * sizeof(int32_t) +
                     entries * sizeof(struct eng_logprob) + (job->request.echo ? prompt->len : 0);
    if (!job->request.stream)
        bytes += 3 * answer * TEXT_BYTES_TYPICAL + 2 * entries * ENTRY_JSON_TYPICAL;
    return bytes;
}

/* The prompt's text, and where it has none, what its tokens decode to. */
static enum status put_echo(struct srv_job *job, const struct srv_prompt *prompt, struct buf *out)
{
    if (prompt->text) buf_put(out, prompt->text, prompt->len);
    else if (job->api->tok)
        return eng_tok_decode(job->api->tok, prompt->tokens, (size_t)prompt->token_count,
                              job->request.skip_special, out, NULL);
    return buf_status(out);
}

static enum status sequence_init(struct srv_job *job, struct srv_seq *s,
                                 const struct srv_prompt *prompt, uint64_t seed)
{
    const struct srv_ask *r = &job->request;
    size_t answer = (size_t)r->sampling.max_tokens, asked = (size_t)prompt->token_count;
    s->job = job;
    s->stop_hit = -1;
    s->req.user = s;
    s->req.sampling = r->sampling;
    s->req.sampling.seed = seed;
    s->req.prompt_count = prompt->token_count;
    s->req.cache_salt = r->cache_salt;
    s->req.cache_salt_length = (int32_t)r->cache_salt_len;
    s->req.tokens = malloc((answer + asked) * sizeof *s->req.tokens);
    if (!s->req.tokens) return ST_NOMEM;
    memcpy(s->req.tokens, prompt->tokens, asked * sizeof *s->req.tokens);
    s->prompt_rows = r->sampling.prompt_logprobs >= 0 ? prompt->token_count : 0;
    if (r->sampling.logprobs >= 0) {
        s->scores =
            malloc((answer + (size_t)s->prompt_rows) * (size_t)job->stride * sizeof *s->scores);
        if (!s->scores) return ST_NOMEM;
    }
    if (job->api->tok) eng_detok_init(&s->detok, job->api->tok, r->skip_special);
    buf_init(&s->text, (r->echo ? 16 * asked + prompt->len : 0) + answer * TEXT_BYTES_PER_TOKEN);
    return r->echo ? put_echo(job, prompt, &s->text) : ST_OK;
}

static enum status sequences_init(struct srv_job *job)
{
    const struct srv_ask *r = &job->request;
    uint64_t base = (uint64_t)r->seed;
    int32_t count = job->encode.prompt_count * r->n;
    if (!r->seed_given) random_bytes(&base, sizeof base);
    job->seqs = calloc((size_t)count, sizeof *job->seqs);
    if (!job->seqs) return ST_NOMEM;
    job->seq_count = count;
    for (int32_t i = 0; i < count; i++) {
        /* Choice 0 has the seed as given, so that n = 1 and the first of several agree; a prompt's
         * choices do not depend on the prompts beside it. */
        int32_t choice = i % r->n;
        uint64_t seed = choice == 0 ? base : random_mix(base ^ random_mix((uint64_t)choice));
        job->seqs[i].index = i;
        enum status st = sequence_init(job, &job->seqs[i], &job->encode.prompts[i / r->n], seed);
        if (st) return st;
    }
    return ST_OK;
}

static bool full(struct srv_fault *fault, const char *what)
{
    return srv_fault_set(fault, 503, "unavailable_error", "overloaded", "",
                         "The server %s; try again later.", what);
}

static bool submit_all(struct srv_job *job, struct srv_fault *fault)
{
    for (int32_t i = 0; i < job->seq_count; i++) {
        struct srv_seq *s = &job->seqs[i];
        enum status st = eng_submit(job->api->engine, &s->req);
        if (st == ST_FULL) return full(fault, "has as many requests waiting as it may hold");
        if (st)
            return srv_fault_set(fault, 500, "server_error", NULL, "",
                                 "The engine has failed; nothing is served until a restart.");
        s->live = true;
        job->live_count++;
        job->api->live_sequences++;
    }
    return true;
}

/* Checks that every prompt fits, promises the memory, and hands the sequences to the engine. */
static bool admit(struct srv_job *job, struct srv_fault *fault)
{
    struct srv_api *api = job->api;
    struct srv_ask *r = &job->request;
    struct srv_encode *e = &job->encode;
    int32_t longest = 0;
    uint64_t bytes = sizeof *job;
    if (e->status) return srv_encode_fault(e, job->head.chat ? "messages" : "prompt", fault);
    if (api->draining) return full(fault, "is shutting down");
    if (!api->tok && r->stops.count > 0)
        return srv_fault_unsupported(fault, "stop",
                                     "'stop' is not supported: the model has no tokenizer.");
    for (int32_t i = 0; i < e->prompt_count; i++) {
        int32_t count = e->prompts[i].token_count;
        /* An empty prompt among several is as wrong as one alone. */
        if (count == 0) return srv_ask_fit(r, 0, api->limits.context_tokens, fault);
        longest = count > longest ? count : longest;
        job->usage.prompt_tokens += count;
    }
    if (!srv_ask_fit(r, longest, api->limits.context_tokens, fault)) return false;
    job->stride = 1 + (r->sampling.logprobs > 0 ? r->sampling.logprobs : 0);
    for (int32_t i = 0; i < e->prompt_count; i++)
        bytes += (uint64_t)r->n * sequence_bytes(job, &e->prompts[i]);
    if (!srv_api_promise(api, &job->bytes, bytes, "max_tokens",
                         "lower 'max_tokens', 'n' or the log-probabilities asked for", fault))
        return false;
    if (sequences_init(job)) return full(fault, "has no memory left");
    return submit_all(job, fault);
}

/* The prompts were copied into the sequences. */
static void drop_prompts(struct srv_job *job)
{
    struct srv_ask *r = &job->request;
    for (int32_t i = 0; i < r->prompt_count; i++) free(r->prompts[i].tokens);
    free(r->prompts);
    cJSON_Delete(r->tree);
    r->tree = NULL;
    r->prompts = NULL;
    r->prompt_count = 0;
    free(job->rendered.tokens);
    free(job->rendered_text);
    job->rendered = (struct srv_prompt){0};
    job->rendered_text = NULL;
}

static void encoded(struct srv_encode *e)
{
    struct srv_job *job = (struct srv_job *)((char *)e - offsetof(struct srv_job, encode));
    struct srv_fault fault;
    job->encoding = false;
    if (!job->x) { /* left meanwhile */
        free_if_over(job);
        return;
    }
    if (!admit(job, &fault)) {
        refuse(job, &fault);
        free_if_over(job);
        return;
    }
    drop_prompts(job);
    job->written_ns = clock_now_ns();
    /* The head goes out at once: the prompt may take its time. */
    if (job->request.stream) srv_sse_begin(job->x);
}

static void head_init(struct srv_job *job)
{
    struct srv_api *api = job->api;
    unsigned char bytes[16];
    bool chat = job->request.endpoint == SRV_CHAT;
    random_bytes(bytes, sizeof bytes);
    int n = snprintf(job->id, sizeof job->id, "%s-", chat ? "chatcmpl" : "cmpl");
    for (size_t i = 0; i < sizeof bytes; i++)
        n += snprintf(job->id + n, sizeof job->id - (size_t)n, "%02x", bytes[i]);
    job->head = (struct srv_head){.chat = chat,
                                  .id = job->id,
                                  .created = clock_unix_s(),
                                  .model = job->request.model,
                                  .fingerprint = api->fingerprint,
                                  .vocab = &api->vocab[job->request.skip_special]};
}

void srv_job_start(struct srv_api *api, struct srv_exchange *x, struct srv_ask *request, char *text,
                   size_t len)
{
    struct srv_fault fault;
    struct srv_job *job = calloc(1, sizeof *job);
    if (!job) {
        srv_ask_deinit(request);
        free(text);
        full(&fault, "has no memory left");
        srv_api_fault(x, &fault);
        return;
    }
    job->api = api;
    job->x = x;
    job->request = *request;
    if (!api->tok) job->request.return_token_ids = true; /* there is no other answer */
    job->rendered = (struct srv_prompt){.text = text, .len = len};
    job->rendered_text = text;
    job->arrival_ns = srv_x_arrival_ns(x);
    job->next = api->jobs;
    if (job->next) job->next->prev = job;
    api->jobs = job;
    api->job_count++;
    buf_init(&job->chunk, SRV_REPLY_BYTES_MAX);
    head_init(job);
    srv_x_watch(x, client_left, room_again, job);
    job->encode = (struct srv_encode){.tok = api->tok,
                                      .prompts = text ? &job->rendered : job->request.prompts,
                                      .prompt_count = text ? 1 : job->request.prompt_count,
                                      .flags = ENG_TOK_PARSE_SPECIAL |
                                               (job->request.add_special ? ENG_TOK_ADD_SPECIAL : 0),
                                      .done = encoded};
    if (!srv_api_promise(api, &job->bytes, srv_encode_bytes(&job->encode),
                         job->head.chat ? "messages" : "prompt", "send less text", &fault)) {
        refuse(job, &fault);
        free_if_over(job);
        return;
    }
    job->encoding = true;
    srv_encode_start(&job->encode, api->loop);
}

/* --- events ------------------------------------------------------------------------------ */

static void put_scores(struct srv_seq *s, int32_t row, const struct eng_sample *sample)
{
    int32_t stride = s->job->stride;
    if (!s->scores) return;
    struct eng_logprob *out = s->scores + (size_t)row * (size_t)stride;
    out[0] = (struct eng_logprob){.token = sample->token, .logprob = sample->logprob};
    for (int32_t k = 1; k < stride; k++)
        out[k] = k <= sample->top_count ? sample->top[k - 1]
                                        : (struct eng_logprob){.token = -1, .logprob = NAN};
}

static double seconds(uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? (double)(to_ns - from_ns) * 1e-9 : 0;
}

static void time_token(struct srv_seq *s, uint64_t now)
{
    struct srv_metrics *m = &s->job->api->metrics;
    if (!s->first_token_ns) {
        s->first_token_ns = now;
        srv_histogram_observe(&m->ttft, seconds(s->job->arrival_ns, now));
        srv_histogram_observe(&m->prefill, seconds(s->req.first_ns, now));
    } else {
        srv_histogram_observe(&m->itl, seconds(s->last_token_ns, now));
    }
    s->last_token_ns = now;
}

static void take_token(struct srv_seq *s, const struct eng_event *event)
{
    if (srv_ask_score_only(&s->job->request)) return;
    CHECK(event->index == s->got && s->got < s->req.sampling.max_tokens);
    put_scores(s, s->prompt_rows + s->got, &event->sample);
    s->got++;
}

static void count_end(struct srv_seq *s, uint64_t now)
{
    struct srv_metrics *m = &s->job->api->metrics;
    enum srv_end end = s->finish == ENG_FINISH_STOP || s->stop_hit >= 0 ? SRV_END_STOP
                       : s->finish == ENG_FINISH_LENGTH                 ? SRV_END_LENGTH
                       : s->finish == ENG_FINISH_CANCELLED              ? SRV_END_ABORT
                                                                        : SRV_END_ERROR;
    m->ended[end]++;
    srv_histogram_observe(&m->e2e, seconds(s->job->arrival_ns, now));
    srv_histogram_observe(&m->prompt, s->req.prompt_count);
    srv_histogram_observe(&m->generation, srv_seq_total(s));
    if (s->req.first_ns)
        srv_histogram_observe(&m->queue, seconds(s->req.submit_ns, s->req.first_ns));
    if (s->first_token_ns)
        srv_histogram_observe(&m->decode, seconds(s->first_token_ns, s->last_token_ns));
}

static void take_finish(struct srv_seq *s, const struct eng_event *event, uint64_t now)
{
    struct srv_job *job = s->job;
    CHECK(s->live);
    s->live = false;
    job->live_count--;
    job->api->live_sequences--;
    s->finish = event->finish;
    if (s->finish == ENG_FINISH_STOP && !srv_ask_score_only(&job->request)) {
        /* The token that ended it is part of what was sampled: counted, and scored for completions.
         */
        CHECK(s->got < s->req.sampling.max_tokens);
        time_token(s, now);
        s->req.tokens[s->req.prompt_count + s->got] = event->sample.token;
        put_scores(s, s->prompt_rows + s->got, &event->sample);
        s->terminal = 1;
    }
    count_end(s, now);
}

void srv_gen_event(struct srv_api *api, const struct eng_event *event)
{
    struct srv_seq *s = event->request->user;
    struct srv_job *job = s->job;
    uint64_t now = clock_now_ns();
    s->cached = s->req.cached_count;
    switch (event->kind) {
    case ENG_EVENT_PROMPT:
        CHECK(event->index == s->prompt_scored && s->prompt_scored < s->prompt_rows);
        put_scores(s, s->prompt_scored++, &event->sample);
        break;
    case ENG_EVENT_TOKEN:
        time_token(s, now);
        take_token(s, event);
        break;
    case ENG_EVENT_FINISHED: take_finish(s, event, now); break;
    }
    if (job->dirty) return;
    job->dirty = true;
    job->dirty_next = api->dirty;
    api->dirty = job;
}

void srv_gen_pump_dirty(struct srv_api *api)
{
    while (api->dirty) {
        struct srv_job *job = api->dirty;
        api->dirty = job->dirty_next;
        job->dirty = false;
        srv_job_pump(job);
        free_if_over(job);
    }
}

void srv_gen_abort(struct srv_api *api, const struct srv_fault *fault)
{
    for (struct srv_job *job = api->jobs, *next; job; job = next) {
        next = job->next;
        srv_job_fail(job, fault);
        free_if_over(job);
    }
}

void srv_gen_tick(struct srv_api *api, uint64_t now_ns)
{
    uint64_t interval = api->config.keep_alive_ms * NS_PER_MS;
    for (struct srv_job *job = api->jobs; job && interval; job = job->next) {
        if (!job->x || !job->request.stream || job->seq_count == 0 || job->paused) continue;
        if (now_ns - job->written_ns < interval) continue;
        job->written_ns = now_ns;
        enum status st = srv_sse_comment(job->x);
        if (st == ST_FULL || st == ST_LIMIT) job->paused = true;
    }
}
