/*
 * sched.c - see sched.h.
 *
 * Both lists are in order of arrival, and every running sequence arrived before every waiting one:
 * admission moves the head of the waiting list to the tail of the running list, preemption moves it
 * back.  A plan is three passes:
 *
 *   plan_decodes     running sequences from the oldest: each decode gets its token; the oldest,
 *                    should it be a prefill, a page for one token.  Where no tier has a page the
 *                    tail is preempted, until one has, or the tail is the sequence itself.  The
 *                    tail was never served before its elders, so a plan loses no item again.
 *   plan_prefills    running prefills from the oldest: as many tokens as budget, chunk_max and
 *                    pages allow.  One for which no tier has a page preempts from the tail as long
 *                    as that is a prefill too (a decode there is already in the plan); failing that
 *                    it waits, with what it has.
 *   plan_admissions  waiting sequences from the head, unless something was just preempted; each
 *                    begins with what others computed of it (reuse.c).
 *
 * Where pages lie is residency.c's: a page that is wanted here is a local one, for which others may
 * have to leave local memory.
 *
 * Prompts beside decodes.  With a target of latency the passes for prompts ask the model of steps
 * (pace.h) how many tokens still fit, in the same order: the first prompt gets at least
 * ENG_CHUNK_MIN, and behind one that is cut there is nothing.  It is cut where the step's tokens
 * are a multiple of 128, as the products' tiles are, for more would often cost a whole tile; but
 * not for an eighth of the tokens, nor could their number grow from little.  Steps without decodes
 * are bounded by tokens_step_max alone.
 *
 * As running <= tokens_step_max, the budget holds all decodes and at least one token for the oldest
 * prefill.
 *
 * The watermark.  Let need be the pages that running sequences lack for the tokens they have.  A
 * sequence is admitted while free pages (of all tiers) >= need + its own pages for all its tokens +
 * one page for every running sequence, itself included, or while none runs.  In the 64 steps after
 * that a sequence gains at most 64 tokens, hence one page beyond need: nobody can be preempted
 * (invariant 7).  A sequence that runs alone needs no reserve, as there is nobody it must share
 * with.
 *
 * With a prefix cache free pages are those too that the cache alone holds, and its own pages those
 * that no running sequence has already.
 *
 * A plan costs O(running + admitted + pages taken or given back), and O(running) a page moved.
 */
#include "engine/sched.h"

#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "engine/sched_state.h"

#define TILE_TOKENS 128 /* of the products' widest tiles but one */

static int32_t seq_pages_max(const struct eng_sched *s)
{
    return s->policy == ENG_KV_IN_PLACE ? eng_pages_total(s->pages)
                                        : eng_pages_tier_total(s->pages, 0);
}

static int32_t pending(const struct eng_sched_seq *seq)
{
    return seq->token_count - seq->kv_count - seq->given_count;
}

/* --- lists ------------------------------------------------------------------------------------ */

/* after NULL: at the head. */
static void list_insert(struct eng_seq_list *l, struct eng_sched_seq *after,
                        struct eng_sched_seq *seq)
{
    seq->prev = after;
    seq->next = after ? after->next : l->head;
    if (seq->next) seq->next->prev = seq;
    else l->tail = seq;
    if (after) after->next = seq;
    else l->head = seq;
    l->count++;
}

static void list_remove(struct eng_seq_list *l, struct eng_sched_seq *seq)
{
    if (seq->prev) seq->prev->next = seq->next;
    else l->head = seq->next;
    if (seq->next) seq->next->prev = seq->prev;
    else l->tail = seq->prev;
    seq->prev = seq->next = NULL;
    l->count--;
}

/* --- opening, closing ------------------------------------------------------------------------- */

enum status eng_sched_open(const struct eng_sched_config *config, struct eng_sched **out)
{
    CHECK(config->seqs_max >= 1 && config->tokens_step_max >= 1 && config->chunk_max >= 0);
    *out = NULL;
    struct eng_sched *s = calloc(1, sizeof *s);
    if (!s) return ST_NOMEM;
    s->running_max = min_i32(config->seqs_max, config->tokens_step_max);
    s->tokens_step_max = config->tokens_step_max;
    s->chunk_max = config->chunk_max ? config->chunk_max : config->tokens_step_max;
    s->paced = config->itl_target_s > 0;
    if (s->paced) eng_pace_init(&s->pace, config->itl_target_s);
    s->policy = config->kv_policy;
    s->admission = config->admission;
    s->base_least_s = config->step_base_s;
    const int32_t local[KN_TIER_MAX] = {config->page_count[0]};
    enum status st =
        eng_pages_open(s->policy == ENG_KV_RECOMPUTE ? local : config->page_count, &s->pages);
    if (st) goto fail_pages;
    s->running_max = min_i32(s->running_max, eng_pages_tier_total(s->pages, 0));
    if ((st = eng_reuse_open(s, config))) goto fail_reuse;
    if ((st = eng_residency_open(s, config))) goto fail_residency;
    st = ST_NOMEM;
    s->items = calloc((size_t)s->running_max, sizeof *s->items);
    if (!s->items) goto fail_items;
    s->mark = calloc((size_t)eng_pages_total(s->pages), 1);
    if (!s->mark) goto fail_mark;
    *out = s;
    return ST_OK;

fail_mark:
    free(s->items);
fail_items:
    eng_residency_close(s);
fail_residency:
    eng_reuse_close(s);
fail_reuse:
    eng_pages_close(s->pages);
fail_pages:
    free(s);
    return st;
}

void eng_sched_close(struct eng_sched *s)
{
    if (!s) return;
    free(s->mark);
    free(s->items);
    eng_residency_close(s);
    eng_reuse_close(s);
    eng_pages_close(s->pages);
    free(s);
}

/* --- preemption --------------------------------------------------------------------------------
 */

/* Puts the youngest running sequence back to the front of the queue, with its KV if policy is to
 * park it. */
static void preempt_youngest(struct eng_sched *s, struct eng_plan *plan)
{
    struct eng_sched_seq *seq = s->running.tail;
    CHECK(seq != s->running.head && eng_residency_room(s) == 0);
    if (!eng_policy_park(s, plan, seq)) {
        eng_reuse_give(s, seq);
        seq->preempt_count++;
    }
    list_remove(&s->running, seq);
    list_insert(&s->waiting, NULL, seq);
    seq->state = ENG_SEQ_WAITING;
    s->preempt_count++;
    plan->preempt_count++;
}

/* --- the sequences' way in and out ------------------------------------------------------------ */

int32_t eng_sched_seq_tokens_max(const struct eng_sched *s)
{
    /* Whole pages, so that the room of a sequence's pages fits an int32_t too. */
    return min_i32(seq_pages_max(s), INT32_MAX / KN_PAGE_TOKENS) * KN_PAGE_TOKENS;
}

void eng_sched_add(struct eng_sched *s, struct eng_sched_seq *seq)
{
    CHECK(seq->state == ENG_SEQ_NEW && seq->pages && !seq->prev && !seq->next);
    CHECK(seq->token_count >= 1 && seq->token_count <= eng_sched_seq_tokens_max(s));
    CHECK(seq->kv_count == 0 && seq->page_count == 0);
    CHECK(seq->given_count >= 0 && seq->given_count < seq->token_count);
    CHECK(seq->given_count == 0 || !s->reuse || !seq->tokens);
    s->given |= seq->given_count > 0;
    seq->arrival = s->arrival_next++;
    seq->state = ENG_SEQ_WAITING;
    list_insert(&s->waiting, s->waiting.tail, seq);
}

void eng_sched_remove(struct eng_sched *s, struct eng_sched_seq *seq)
{
    if (seq->state == ENG_SEQ_NEW) return;
    for (int32_t i = 0; i < s->planned_count; i++) CHECK(s->items[i].seq != seq);
    if (seq->state == ENG_SEQ_RUNNING) eng_reuse_enter(s, seq);
    eng_reuse_give(s, seq);
    list_remove(seq->state == ENG_SEQ_RUNNING ? &s->running : &s->waiting, seq);
    seq->state = ENG_SEQ_NEW;
}

/* --- the plan --------------------------------------------------------------------------------- */

static void plan_put(const struct eng_sched *s, struct eng_plan *plan, struct eng_sched_seq *seq,
                     int32_t tokens)
{
    CHECK(plan->item_count < s->running_max);
    plan->items[plan->item_count++] = (struct eng_plan_item){
        .seq = seq,
        .token_begin = seq->kv_count,
        .token_count = tokens,
        .sample = tokens == pending(seq),
    };
    plan->token_count += tokens;
    if (pending(seq) == 1) eng_load_add_decode(&plan->load, seq->kv_count + 1);
    else eng_load_add_prompt(&plan->load, seq->kv_count, tokens);
    CHECK(plan->token_count <= s->tokens_step_max);
}

static void plan_decodes(struct eng_sched *s, struct eng_plan *plan)
{
    for (struct eng_sched_seq *seq = s->running.head; seq; seq = seq->next) {
        CHECK(pending(seq) >= 1 && seq->token_count <= eng_sched_seq_tokens_max(s));
        bool decode = pending(seq) == 1;
        if (!decode && seq != s->running.head) continue;
        int32_t got;
        while ((got = eng_residency_take(s, plan, seq, 1)) == 0 && seq != s->running.tail)
            preempt_youngest(s, plan);
        if (got == 0) { /* seq is the youngest itself, with elders before it */
            preempt_youngest(s, plan);
            return;
        }
        if (decode) plan_put(s, plan, seq, 1);
    }
}

/* The tokens of a prompt that this plan has room for; `reused`: of which so many are to be had from
 * others. */
static int32_t prompt_room(const struct eng_sched *s, struct eng_plan *plan,
                           const struct eng_sched_seq *seq, int32_t reused)
{
    const int32_t kv_count = seq->kv_count + reused;
    int32_t left = s->tokens_step_max - plan->token_count;
    int32_t want = min_i32(min_i32(pending(seq) - reused, s->chunk_max), left);
    if (!s->paced || plan->load.decode_count == 0) return want;
    if (plan->held_back) return 0;
    int32_t room = eng_pace_tokens(&s->pace, &plan->load, kv_count, want);
    if (room == want) return want;
    plan->held_back = true;
    int32_t whole = (plan->token_count + room) / TILE_TOKENS * TILE_TOKENS - plan->token_count;
    if (whole >= room - room / 8 && whole >= ENG_CHUNK_MIN) return whole;
    if (room >= ENG_CHUNK_MIN) return room;
    return plan->load.prompt_tokens == 0 ? min_i32(want, ENG_CHUNK_MIN) : 0;
}

/* Whether a prompt is left out of the plan until its pages are back; the oldest one's step waits.
 */
static bool is_held(struct eng_sched *s, struct eng_plan *plan, struct eng_sched_seq *seq)
{
    while (eng_residency_fetch(s, plan, seq)) {
        if (seq != s->running.head) return true;
        if (!eng_residency_join(s, plan)) break;
    }
    seq->fetching = false;
    return false;
}

/* Returns the pages that the running sequences lack for the tokens they have. */
static int64_t plan_prefills(struct eng_sched *s, struct eng_plan *plan)
{
    int64_t need = 0;
    for (struct eng_sched_seq *seq = s->running.head; seq; seq = seq->next) {
        if (pending(seq) == 1) continue;
        if (seq->fetching && is_held(s, plan, seq)) {
            need += eng_sched_pages_for(seq->token_count) - seq->page_count;
            continue;
        }
        int32_t want = prompt_room(s, plan, seq, 0);
        int32_t got = eng_residency_take(s, plan, seq, want);
        while (got == 0 && want > 0 && eng_residency_room(s) == 0 && seq != s->running.tail &&
               pending(s->running.tail) > 1) {
            preempt_youngest(s, plan);
            got = eng_residency_take(s, plan, seq, want);
        }
        if (got > 0) plan_put(s, plan, seq, got);
        need += eng_sched_pages_for(seq->token_count) - seq->page_count;
    }
    return need;
}

/* From the head of one list to the tail of the other, and back. */
static void run(struct eng_sched *s, struct eng_sched_seq *seq)
{
    list_remove(&s->waiting, seq);
    list_insert(&s->running, s->running.tail, seq);
    seq->state = ENG_SEQ_RUNNING;
}

static void unrun(struct eng_sched *s, struct eng_sched_seq *seq)
{
    eng_reuse_give(s, seq);
    list_remove(&s->running, seq);
    list_insert(&s->waiting, NULL, seq);
    seq->state = ENG_SEQ_WAITING;
}

/* Pages for up to `tokens` tokens of a sequence that has begun to run, beside what others computed
 * of it; returns for how many. */
static int32_t admit(struct eng_sched *s, struct eng_plan *plan, struct eng_sched_seq *seq,
                     struct eng_reuse *reuse, int32_t tokens)
{
    if (seq->given_count) return eng_residency_take_given(s, plan, seq, tokens);
    if (seq->page_count) eng_reuse_fill(s, seq, 0); /* it was parked */
    else eng_reuse_take(s, seq, reuse);
    if (reuse->match.page_count && seq->far_count && is_held(s, plan, seq)) {
        eng_reuse_leave_tail(s, seq, reuse);
        eng_reuse_count(s, seq, reuse);
        return 0;
    }
    int32_t got = eng_residency_take(s, plan, seq, tokens);
    if (got <= 0 && reuse->match.tail_count) { /* the page it is copied from may be the last one */
        eng_reuse_leave_tail(s, seq, reuse);
        got = eng_residency_take(s, plan, seq, tokens);
    }
    if (got <= 0) return 0;
    eng_reuse_copy_tail(s, plan, seq, reuse);
    eng_reuse_count(s, seq, reuse);
    return got;
}

/* Returns what the running sequences lack then. */
static int64_t plan_admissions(struct eng_sched *s, struct eng_plan *plan, int64_t need)
{
    while (s->waiting.head && s->running.count < s->running_max) {
        struct eng_sched_seq *seq = s->waiting.head;
        int32_t reserve = s->running.count > 0 ? s->running.count + 1 : 0;
        if (plan->token_count == s->tokens_step_max) break;
        if (reserve && eng_residency_room(s) < need + reserve) break; /* whatever it finds */
        struct eng_reuse reuse = eng_reuse_find(s, seq);
        if (reuse.wait) break;
        int32_t whole = eng_sched_pages_for(seq->token_count) - reuse.in_use_count;
        int32_t lacks = s->in_place ? whole - seq->page_count : whole;
        int32_t tokens = prompt_room(s, plan, seq, reuse.token_count);
        while (s->running.count == 0 && eng_residency_room(s) < lacks && eng_policy_drop(s)) {
        }
        if (tokens == 0 || eng_residency_room(s) < need + lacks + reserve ||
            !eng_policy_admits(s, need, whole, eng_sched_pages_for(seq->token_count)) ||
            (eng_seq_is_parked(seq) && !eng_policy_return(s, plan, seq)))
            break;
        run(s, seq);
        tokens = admit(s, plan, seq, &reuse, tokens);
        if (tokens == 0 && !seq->fetching) { /* this plan's prompts have all local pages */
            unrun(s, seq);
            break;
        }
        if (tokens > 0) plan_put(s, plan, seq, tokens);
        need += eng_sched_pages_for(seq->token_count) - seq->page_count;
    }
    return need;
}

void eng_sched_plan(struct eng_sched *s, struct eng_plan *plan)
{
    CHECK(s->planned_count == 0);
    *plan = (struct eng_plan){.items = s->items, .moves = s->planned_moves};
    eng_reuse_enter_all(s);
    plan_decodes(s, plan);
    int64_t need = plan_prefills(s, plan);
    need = plan_admissions(s, plan, need);
    if (s->given) eng_policy_settle_given(s);
    eng_residency_tend(s, plan, need);
    plan->load.waits = plan->wait;
    s->planned_count = plan->item_count;
    CHECK(plan->item_count > 0 || (s->running.count == 0 && s->waiting.count == 0));
}

void eng_sched_commit(struct eng_sched *s, const struct eng_plan *plan)
{
    CHECK(plan->items == s->items && plan->item_count == s->planned_count);
    for (int32_t i = 0; i < plan->item_count; i++) {
        const struct eng_plan_item *item = &plan->items[i];
        CHECK(item->seq->state == ENG_SEQ_RUNNING && item->seq->kv_count == item->token_begin);
        item->seq->kv_count += item->token_count;
        eng_reuse_fill(s, item->seq, item->token_begin);
        CHECK(item->sample == (pending(item->seq) == 0));
    }
    s->planned_count = 0;
}

void eng_sched_learn(struct eng_sched *s, const struct eng_load *load, double seconds)
{
    if (s->paced && !load->waits) eng_pace_learn(&s->pace, load, seconds);
    eng_residency_learn(s, seconds);
    if (load->prompt_tokens == 0 && !load->waits) eng_policy_learn(s, seconds);
}

/* --- looking in ------------------------------------------------------------------------------- */

void eng_sched_stats(const struct eng_sched *s, struct eng_sched_stats *out)
{
    *out = (struct eng_sched_stats){
        .running = s->running.count,
        .waiting = s->waiting.count,
        .preempt_count = s->preempt_count,
        .pages_out_count = s->moves.out,
        .pages_back_count = s->moves.back,
        .pages_moving = s->moves.count,
        .move_wait_count = s->moves.waits,
        .prefix_query_tokens = s->counts.query_tokens,
        .prefix_sent_count = s->counts.sent,
        .prefix_copied_count = s->counts.copied,
    };
    for (int t = 0; t < KN_TIER_MAX; t++) {
        out->pages_total[t] = eng_pages_tier_total(s->pages, t);
        out->pages_used[t] = out->pages_total[t] - eng_pages_tier_free(s->pages, t);
        out->pages_cached[t] = eng_prefix_idle(s->prefix, t);
        out->prefix_hit_tokens[t] = s->counts.hit_tokens[t];
        out->prefix_dropped_count[t] = s->counts.dropped[t];
    }
}

static void check_list(const struct eng_seq_list *l, enum eng_seq_state state)
{
    int32_t count = 0;
    const struct eng_sched_seq *prev = NULL;
    for (const struct eng_sched_seq *seq = l->head; seq; prev = seq, seq = seq->next, count++) {
        CHECK(seq->state == state && seq->prev == prev);
        CHECK(!prev || prev->arrival < seq->arrival);
        CHECK(seq->kv_count >= 0 && seq->kv_count <= seq->token_count);
        CHECK(state == ENG_SEQ_RUNNING || seq->page_count == eng_sched_pages_for(seq->kv_count));
        CHECK(state == ENG_SEQ_RUNNING || seq->far_count == seq->page_count);
    }
    CHECK(l->tail == prev && l->count == count);
}

void eng_sched_check(const struct eng_sched *s)
{
    eng_pages_check(s->pages);
    check_list(&s->running, ENG_SEQ_RUNNING);
    check_list(&s->waiting, ENG_SEQ_WAITING);
    CHECK(s->running.count <= s->running_max);
    if (s->running.tail && s->waiting.head)
        CHECK(s->running.tail->arrival < s->waiting.head->arrival);

    int32_t owned = 0; /* pages of nodes, of sequences alone, and where moves go */
    memset(s->mark, 0, (size_t)eng_pages_total(s->pages));
    eng_reuse_check(s, &owned);
    eng_residency_check(s, &owned);
    for (const struct eng_sched_seq *seq = s->running.head; seq && !s->planned_count;
         seq = seq->next)
        CHECK(seq->page_count == eng_sched_pages_for(seq->kv_count));
    CHECK(owned == eng_pages_total(s->pages) - eng_pages_free(s->pages));

    int32_t tokens = 0;
    for (int32_t i = 0; i < s->planned_count; i++) {
        const struct eng_plan_item *item = &s->items[i];
        CHECK(item->token_count >= 1 && item->token_begin == item->seq->kv_count);
        CHECK(item->seq->page_count == eng_sched_pages_for(item->token_begin + item->token_count));
        tokens += item->token_count;
    }
    CHECK(tokens <= s->tokens_step_max);
}
