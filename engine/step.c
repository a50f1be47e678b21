/*
 * step.c - one step: from the scheduler's plan to operations, and from their results to tokens.
 *
 *     plan --eng_step_issue--> in flight --eng_step_land--> events
 *
 * One step ahead.  Where the backend computes while the host goes on, the engine issues step n + 1
 * before step n has landed, so that the machine finds its next work in the queue and all the host
 * does is hidden.  Nothing about the plan of n + 1 depends on which tokens n gives:
 *  - a plan is committed when it is issued, and the sequences it samples are then one token longer;
 *    the token itself stays on the device and is named by kn_token_chosen;
 *  - who reaches max_tokens or the model's length is known beforehand and leaves the scheduler at
 *    once;
 *  - who ends by EOS or a stop token has one token too many in step n + 1, which is discarded, as
 *    are the results of requests that were cancelled meanwhile;
 *  - pages of those who left may be given to others at once, because operations run in order.
 * A step whose results the host must see first is not flown ahead of (`ahead` is false): rows whose
 * logits are changed or reported by the host, and rows that take more than one round of logits.
 *
 * The answers are the same either way, token for token.
 */
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "config/clock.h"
#include "config/log.h"
#include "engine/engine_state.h"

const int32_t eng_step_bounds[ENG_STEP_BUCKETS - 1] = {1,   8,   16,   32,   64,  128,
                                                       256, 512, 1024, 2048, 4096};

static struct eng_request *request_of(struct eng_sched_seq *seq)
{
    return (struct eng_request *)((char *)seq - offsetof(struct eng_request, seq));
}

/* NULL where it has ended since. */
static struct eng_request *request_in(const struct eng_engine *e, const struct eng_step_item *item)
{
    struct eng_request *r = e->live[item->slot];
    return r && r->seq.arrival == item->arrival ? r : NULL;
}

/* --- memory ----------------------------------------------------------------------------------- */

enum status eng_step_open(struct eng_engine *e, struct eng_step *s, char *err)
{
    size_t tokens = (size_t)e->config.tokens_max, seqs = (size_t)e->config.sched.seqs_max;
    size_t rows = (size_t)e->config.rows_max;
    s->tokens = calloc(tokens, sizeof *s->tokens);
    s->positions = calloc(tokens, sizeof *s->positions);
    s->token_seq = calloc(tokens, sizeof *s->token_seq);
    s->seqs = calloc(size_max(seqs, tokens), sizeof *s->seqs);
    s->pages = calloc(seqs * (size_t)e->pages_per_seq, sizeof *s->pages);
    s->items = calloc(seqs, sizeof *s->items);
    s->rows = calloc(tokens + seqs, sizeof *s->rows);
    s->row_item = calloc(tokens + seqs, sizeof *s->row_item);
    s->row_target = calloc(tokens + seqs, sizeof *s->row_target);
    s->row_host = calloc(tokens + seqs, sizeof *s->row_host);
    s->samples = calloc(seqs, sizeof *s->samples);
    s->choice = calloc(rows, sizeof *s->choice);
    s->choice_item = calloc(rows, sizeof *s->choice_item);
    if (!s->tokens || !s->positions || !s->token_seq || !s->seqs || !s->pages || !s->items ||
        !s->rows || !s->row_item || !s->row_target || !s->row_host || !s->samples || !s->choice ||
        !s->choice_item)
        return err_set(
            err, ST_NOMEM,
            "no memory for the step buffers; lower --max-num-seqs, --max-num-batched-tokens "
            "or --max-model-len");
    return kn_alloc(e->kn, KN_MEM_STAGING, 0, rows * sizeof *s->chosen, (void **)&s->chosen, err);
}

void eng_step_close(struct eng_engine *e, struct eng_step *s)
{
    size_t chosen_bytes = (size_t)e->config.rows_max * sizeof *s->chosen;
    if (s->chosen) kn_free(e->kn, KN_MEM_STAGING, s->chosen, chosen_bytes);
    void *owned[] = {s->tokens,  s->positions, s->token_seq,  s->seqs,       s->pages,
                     s->items,   s->rows,      s->row_item,   s->row_target, s->row_host,
                     s->samples, s->choice,    s->choice_item};
    for (size_t i = 0; i < ARRAY_COUNT(owned); i++) free(owned[i]);
}

/* --- the batch -------------------------------------------------------------------------------- */

/* Whether a row's logits are wanted on the host: to score a prompt, to change them before a token
 * is chosen, or to list alternatives.  It depends on the request and the index of the token alone,
 * and both ways choose the same token. */
static bool host_row(const struct eng_request *r, const struct eng_step_item *item, int32_t target)
{
    return target >= 0 || r->sampling.logprobs > 0 ||
           eng_sampler_adjusts(&r->sampling, item->generated);
}

static void want_row(struct eng_step *s, const struct eng_request *r, int32_t token, int32_t item,
                     int32_t target)
{
    int32_t i = s->row_count++;
    s->rows[i] = token;
    s->row_item[i] = item;
    s->row_target[i] = target;
    s->row_host[i] = host_row(r, &s->items[item], target);
    if (s->row_host[i]) s->ahead = false;
}

/* Lists the rows whose logits are wanted: samples first, then the prompt tokens to be scored. */
static void list_rows(struct eng_engine *e, struct eng_step *s)
{
    s->row_count = 0;
    s->ahead = e->config.ahead;
    for (int32_t i = 0; i < s->item_count; i++) {
        const struct kn_seq *seq = &s->seqs[i];
        if (s->items[i].sample)
            want_row(s, e->live[s->items[i].slot], seq->token_begin + seq->token_count - 1, i, -1);
    }
    for (int32_t i = 0; i < s->item_count; i++) {
        const struct eng_step_item *item = &s->items[i];
        const struct eng_request *r = e->live[item->slot];
        if (r->sampling.prompt_logprobs < 0) continue;
        /* The row of position p scores the token at p + 1; a preempted prompt is not scored twice.
         */
        for (int32_t j = 0; j < item->token_count; j++) {
            int32_t target = item->token_begin + j + 1;
            if (target < r->prompt_count && target >= r->scored_count)
                want_row(s, r, s->seqs[i].token_begin + j, i, target);
        }
    }
    if (s->row_count > e->config.rows_max) s->ahead = false;
}

/* The tokens of an item from `token` on in the batch, its pages from `page` on. */
static void put_item(struct eng_step *s, int32_t i, const struct eng_request *r, int32_t token,
                     int32_t page)
{
    const struct eng_step_item *item = &s->items[i];
    int32_t kv_count = item->token_begin + item->token_count;
    s->seqs[i] = (struct kn_seq){.token_begin = token,
                                 .token_count = item->token_count,
                                 .kv_count = kv_count,
                                 .page_begin = page};
    for (int32_t j = 0; j < item->token_count; j++) {
        int32_t position = item->token_begin + j;
        CHECK(position <= r->known_count);
        s->tokens[token + j] =
            position < r->known_count ? r->tokens[position] : kn_token_chosen(r->chosen_row);
        s->positions[token + j] = position;
        s->token_seq[token + j] = i;
    }
    memcpy(s->pages + page, r->seq.pages,
           div_up((size_t)kv_count, KN_PAGE_TOKENS) * sizeof *s->pages);
}

/* Where what the step reads of a sequence's KV lies: of runs of pages that lie in one tier. */
static void note_kv(const struct eng_engine *e, struct eng_step *s, const struct kn_seq *seq,
                    const kn_page *pages)
{
    const int32_t count = (int32_t)div_up((size_t)seq->kv_count, KN_PAGE_TOKENS);
    uint64_t before = 0; /* in the pages before the run */
    for (int32_t i = 0; i < count;) {
        const unsigned tier = kn_page_tier(pages[i]);
        while (i < count && kn_page_tier(pages[i]) == tier) i++;
        const int32_t tokens = i < count ? i * KN_PAGE_TOKENS : seq->kv_count;
        const uint64_t bytes = eng_traffic_kv_far_bytes(&e->traffic, seq->kv_count, tokens);
        s->kv_bytes[tier] += bytes - before;
        before = bytes;
    }
}

static void build_batch(struct eng_engine *e, const struct eng_plan *plan, struct eng_step *s)
{
    int32_t token = 0, page = 0;
    s->item_count = plan->item_count;
    s->preempt_count = plan->preempt_count;
    memset(s->kv_bytes, 0, sizeof s->kv_bytes);
    for (int32_t i = 0; i < plan->item_count; i++) {
        const struct eng_plan_item *item = &plan->items[i];
        const struct eng_request *r = request_of(item->seq);
        s->items[i] = (struct eng_step_item){.slot = r->slot,
                                             .arrival = r->seq.arrival,
                                             .token_begin = item->token_begin,
                                             .token_count = item->token_count,
                                             .generated = r->seq.token_count - r->prompt_count,
                                             .sample = item->sample};
        put_item(s, i, r, token, page);
        if (e->tiered) note_kv(e, s, &s->seqs[i], item->seq->pages);
        token += item->token_count;
        page += (int32_t)div_up((size_t)s->seqs[i].kv_count, KN_PAGE_TOKENS);
    }
    list_rows(e, s);
    s->batch = (struct kn_batch){.token_count = token,
                                 .tokens = s->tokens,
                                 .positions = s->positions,
                                 .token_seq = s->token_seq,
                                 .seq_count = s->item_count,
                                 .seqs = s->seqs,
                                 .pages = s->pages};
}

/* Marks first admissions; tells prompt tokens from those computed again after a preemption. */
static void note_items(struct eng_engine *e, const struct eng_plan *plan, struct eng_step *s)
{
    s->start_ns = clock_now_ns();
    s->prompt_tokens = s->recomputed_tokens = 0;
    s->load = plan->load;
    s->held_back = plan->held_back;
    for (int32_t i = 0; i < plan->item_count; i++) {
        const struct eng_plan_item *item = &plan->items[i];
        struct eng_request *r = request_of(item->seq);
        if (r->first_ns == 0) {
            r->first_ns = s->start_ns;
            for (int t = 0; t < KN_TIER_MAX; t++) {
                r->cached_tier_count[t] = r->seq.cached_count[t];
                r->cached_count += r->seq.cached_count[t];
            }
            pthread_mutex_lock(&e->lock);
            e->stats.queue_ns_sum += s->start_ns - r->submit_ns;
            e->stats.queue_count++;
            pthread_mutex_unlock(&e->lock);
        }
        int32_t end = item->token_begin + item->token_count;
        int32_t again = item->seq->preempt_count > 0 ? end - (item->sample ? 1 : 0) : 0;
        if (again > item->token_begin)
            s->recomputed_tokens += (uint64_t)(again - item->token_begin);
        else if (item->token_begin < r->prompt_count)
            s->prompt_tokens += (uint64_t)item->token_count;
    }
}

/* --- issue ------------------------------------------------------------------------------------ */

static int32_t group_rows(const struct eng_engine *e, const struct eng_step *s, int32_t begin)
{
    int32_t left = s->row_count - begin;
    return left < e->config.rows_max ? left : e->config.rows_max;
}

/* The rows of a group that the backend samples. */
static void choose_rows(struct eng_engine *e, struct eng_step *s, int32_t begin, int32_t count)
{
    s->choice_count = 0;
    for (int32_t i = begin; i < begin + count; i++) {
        const struct eng_step_item *item = &s->items[s->row_item[i]];
        struct eng_request *r = s->row_host[i] ? NULL : request_in(e, item);
        if (!r) continue;
        struct kn_sample_row *choice = &s->choice[s->choice_count];
        *choice = eng_sampler_row(&r->sampling, item->generated);
        choice->row = i - begin;
        r->chosen_row = s->choice_count;
        s->choice_item[s->choice_count++] = s->row_item[i];
    }
}

/* The first time that pages leave local memory is worth a word. */
static void tell_of_moves(struct eng_engine *e, const struct eng_plan *plan)
{
    for (int32_t i = 0; i < plan->move_count && !e->moved; i++) {
        if (kn_page_tier(plan->moves[i].to) == 0) continue;
        e->moved = true;
        log_info("engine", "from now on full KV pages move to a remote tier, where local ones run "
                           "short or both are read sooner, and come back when there is room");
    }
    log_debug("engine", "%d KV pages set out%s", plan->move_count,
              plan->wait ? ", and the step waits for some" : "");
}

/* Pages that leave local memory or come back, or are copied, within the step that waits for some of
 * them, so that the wait counts as the machine's time. */
static void issue_moves(struct eng_engine *e, const struct eng_plan *plan)
{
    const int32_t urgent = plan->urgent_count, others = plan->move_count - urgent;
    if (plan->move_count) tell_of_moves(e, plan);
    if (urgent) kn_move_pages(e->kn, &e->kv, plan->moves, urgent);
    if (plan->wait) kn_moves_wait(e->kn);
    if (others) kn_move_pages(e->kn, &e->kv, plan->moves + urgent, others);
}

/* Rows are computed in groups of rows_max; with the first, the model's layers.  plan: NULL with the
 * others. */
static void issue_group(struct eng_engine *e, const struct eng_plan *plan, struct eng_step *s,
                        int32_t begin)
{
    int32_t count = group_rows(e, s, begin);
    struct kn_batch batch = s->batch;
    batch.rows = s->rows + begin;
    batch.row_count = count;
    choose_rows(e, s, begin, count);
    const struct kn_sample_args sample = {.logits = e->logits,
                                          .vocab = e->limits.vocab,
                                          .row_count = s->choice_count,
                                          .rows = s->choice,
                                          .out = s->chosen};
    kn_step_begin(e->kn);
    if (plan) issue_moves(e, plan);
    s->played = count == s->row_count && kn_play(e->kn, &batch, &sample);
    if (!s->played) {
        if (begin == 0) eng_model_forward(e->model, &batch, &e->kv);
        if (count > 0) eng_model_logits(e->model, &batch, e->logits);
        kn_sample(e->kn, &sample);
    }
    for (int32_t i = begin; i < begin + count; i++)
        if (s->row_host[i])
            kn_download(e->kn, e->logits + (size_t)(i - begin) * (size_t)e->limits.vocab,
                        (size_t)e->limits.vocab * sizeof(float));
    s->serial = kn_step_end(e->kn);
}

void eng_step_issue(struct eng_engine *e, const struct eng_plan *plan, struct eng_step *s)
{
    note_items(e, plan, s);
    s->rested = e->rested;
    e->rested = false;
    build_batch(e, plan, s);
    issue_group(e, plan, s, 0);
    eng_sched_commit(e->sched, plan);
    for (int32_t i = 0; i < s->item_count; i++) {
        struct eng_request *r = e->live[s->items[i].slot];
        if (!s->items[i].sample) continue;
        r->seq.token_count++;
        if (s->items[i].generated + 1 == r->sampling.max_tokens ||
            r->seq.token_count == e->limits.model_len_max)
            eng_sched_remove(e->sched, &r->seq); /* it needs no further step */
    }
}

/* --- results ---------------------------------------------------------------------------------- */

static void send_prompt_token(struct eng_engine *e, struct eng_request *r, int32_t position,
                              const float *logits)
{
    struct eng_event event = {.kind = ENG_EVENT_PROMPT, .request = r, .index = position};
    if (logits)
        eng_score_token(e->sampler, logits, r->tokens[position], r->sampling.prompt_logprobs,
                        &event.sample);
    else event.sample = (struct eng_sample){.token = r->tokens[position], .logprob = NAN};
    r->scored_count = position + 1;
    /* Who comes back from a preemption must compute what is still to be scored. */
    r->seq.reuse_max = r->scored_count < r->prompt_count ? position : INT32_MAX;
    eng_push_event(e, &event);
}

/* Takes the chosen tokens of one group, and samples or scores its rows on the host. */
static enum status use_rows(struct eng_engine *e, struct eng_step *s, int32_t begin, int32_t count)
{
    for (int32_t i = 0; i < s->choice_count; i++) {
        const struct kn_sampled *c = &s->chosen[i];
        if (c->token < 0) return ST_DEVICE;
        s->samples[s->choice_item[i]] =
            (struct eng_sample){.token = c->token, .logprob = c->logprob, .rank = c->rank};
    }
    for (int32_t i = begin; i < begin + count; i++) {
        const struct eng_step_item *item = &s->items[s->row_item[i]];
        struct eng_request *r = s->row_host[i] ? request_in(e, item) : NULL;
        if (!r) continue;
        const float *logits = e->logits + (size_t)(i - begin) * (size_t)e->limits.vocab;
        if (s->row_target[i] >= 0) {
            if (r->scored_count == 0) send_prompt_token(e, r, 0, NULL);
            send_prompt_token(e, r, s->row_target[i], logits);
            continue;
        }
        CHECK(r->known_count == r->prompt_count + item->generated);
        enum status st = eng_sample_token(e->sampler, &r->sampling, logits, r->tokens,
                                          r->prompt_count, r->known_count, e->limits.eos,
                                          e->limits.eos_count, &s->samples[s->row_item[i]]);
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
    int32_t generated = r->known_count - r->prompt_count;
    if (r->sampling.prompt_logprobs >= 0 && r->scored_count == 0)
        send_prompt_token(e, r, 0, NULL); /* a prompt of one token has no scored row */
    if ((!p->ignore_eos && in_list(e->limits.eos, e->limits.eos_count, sample->token)) ||
        in_list(p->stop_tokens, p->stop_token_count, sample->token)) {
        eng_finish(e, r, ENG_FINISH_STOP, sample);
        return;
    }
    r->tokens[r->known_count++] = sample->token;
    r->seq.known_count = r->known_count;
    struct eng_event event = {.kind = ENG_EVENT_TOKEN,
                              .request = r,
                              .index = generated,
                              .step = e->stats.step_count, /* written by this thread alone */
                              .sample = *sample};
    eng_push_event(e, &event);
    if (generated + 1 == p->max_tokens || r->known_count == e->limits.model_len_max)
        eng_finish(e, r, ENG_FINISH_LENGTH, NULL);
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

/* Steps of as many tokens, to a power of two, take as long; those that hold a part of a prompt do
 * not. */
static uint32_t step_kind(const struct eng_step *s)
{
    uint32_t kind = 1;
    if (s->batch.token_count != s->item_count) return 0;
    while (kind < (uint32_t)s->item_count) kind *= 2;
    return kind;
}

/* Steps that delay decodes.  Under `lock`. */
static void count_mixed(struct eng_engine *e, const struct eng_step *s, uint64_t step_ns)
{
    struct eng_stats *t = &e->stats;
    if (s->load.decode_count == 0) return;
    if (s->load.prompt_tokens > 0) {
        t->mixed_step_count++;
        t->mixed_ns_sum += step_ns;
        t->mixed_prompt_tokens += (uint64_t)s->load.prompt_tokens;
    }
    t->held_back_step_count += s->held_back;
    const double target_s = e->config.sched.itl_target_s;
    t->itl_over_step_count += target_s > 0 && (double)step_ns > target_s * (double)NS_PER_S;
}

static void count_step(struct eng_engine *e, const struct eng_step *s, uint64_t generated)
{
    uint64_t now = clock_now_ns();
    uint64_t step_ns = now - (s->start_ns > e->turn_ns ? s->start_ns : e->turn_ns);
    int32_t T = s->batch.token_count;
    int bucket = 0;
    while (bucket < ENG_STEP_BUCKETS - 1 && T > eng_step_bounds[bucket]) bucket++;
    e->turn_ns = now;
    eng_sched_learn(e->sched, &s->load, (double)step_ns / (double)NS_PER_S);
    pthread_mutex_lock(&e->lock);
    struct eng_stats *t = &e->stats;
    t->step_count++;
    t->played_step_count += s->played;
    t->step_ns_sum += step_ns;
    count_mixed(e, s, step_ns);
    count_traffic(e, e->device_ns - t->device_ns_sum);
    t->device_ns_sum = e->device_ns;
    eng_control_step(&e->control, t->traffic, step_kind(s), e->device_ns);
    memcpy(t->control, e->control.tier, sizeof t->control);
    t->host_ns_sum = e->host_ns;
    for (int i = 0; i < KN_TIER_MAX; i++) t->kv_read_bytes[i] += s->kv_bytes[i];
    t->step_tokens_sum += (uint64_t)T;
    t->step_tokens_bucket[bucket]++;
    t->prompt_tokens += s->prompt_tokens;
    t->recomputed_tokens += s->recomputed_tokens;
    t->generated_tokens += generated;
    pthread_mutex_unlock(&e->lock);
    log_debug("engine", "step of %d tokens in %d sequences took %.3f ms, %d preempted", T,
              s->item_count, (double)step_ns / 1e6, s->preempt_count);
}

enum status eng_step_land(struct eng_engine *e, struct eng_step *s, char *err)
{
    uint64_t generated = 0;
    int32_t begin = 0;
    for (;;) {
        uint64_t busy_ns;
        enum status st = kn_step_wait(e->kn, s->serial, &busy_ns, err);
        if (st) return st;
        e->device_ns += busy_ns;
        /* Before a first step the machine waited for the engine only since there was work. */
        e->host_ns += s->rested ? s->start_ns - e->turn_ns : kn_step_idle_ns(e->kn);
        s->rested = false;
        st = use_rows(e, s, begin, group_rows(e, s, begin));
        if (st) return err_set(err, st, "the model's logits hold no finite number");
        begin += e->config.rows_max;
        if (begin >= s->row_count) break;
        issue_group(e, NULL, s, begin);
    }
    for (int32_t i = 0; i < s->item_count; i++) {
        struct eng_request *r = s->items[i].sample ? request_in(e, &s->items[i]) : NULL;
        if (!r) continue;
        take_token(e, r, &s->samples[i]);
        generated++;
    }
    count_step(e, s, generated);
    return ST_OK;
}
