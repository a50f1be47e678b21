/*
 * reuse.c - how sequences come to share pages, and leave them to those who come later.
 *
 * Every full page of a running sequence is a node of prefix.h's, found by node_of its slot:
 *
 *     seq->pages[0, entered_count)              nodes of the tree, maybe others' too
 *     seq->pages[entered_count, kv_count / 64)  nodes outside of it, the sequence's alone
 *     the rest                                  no nodes: not full, or not computed yet
 *
 * Before each plan what has become known is entered (eng_reuse_enter_all).  Where two sequences
 * computed the same page beside each other the second one gives its own up for the first one's.
 * Full pages are never written again, so whoever reads one does not mind how many others do.
 *
 * Admission takes the longest match: whole pages by reference, and of the page where it ends the
 * matching tokens by a copy of the page, into the sequence's own (eng_residency_copy).  That page
 * is one of the tree's, or the one that a running sequence is filling: n answers to one prompt part
 * within a page.  A copy is one page within local memory, some microseconds; but who waits for it
 * waits for all moves under way, so with any there is none, and the tail is computed.
 *
 * At most token_count - 1 tokens are taken, for the last one's logits are wanted.
 *
 * Waiting for a leader.  Where a running sequence is about to compute at least LEAD_MIN tokens of
 * which a waiting one would be the second, that one is not admitted until they are there: n answers
 * to one prompt compute it once, and so do a hundred requests that come at a time with one system
 * prompt.  It waits for older ones alone, whose prompts go before its own in any case.
 *
 * A preempted sequence leaves its pages as one that ended does, and finds again on its way back
 * those that nobody needed meanwhile.
 */
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "engine/sched_state.h"

#define LEAD_MIN 16 /* tokens; computing fewer costs a step less than waiting does a request */

/* --- opening, closing ------------------------------------------------------------------------- */

enum status eng_reuse_open(struct eng_sched *s, const struct eng_sched_config *config)
{
    const int32_t total = eng_pages_total(s->pages);
    const enum status st = eng_prefix_open(total, &s->prefix);
    if (st) return st;
    s->reuse = config->prefix_cache;
    CHECK(!s->reuse || config->kv_policy != ENG_KV_SWAP);
    s->node_of = malloc((size_t)total * sizeof *s->node_of);
    s->refs = malloc((size_t)total * sizeof *s->refs);
    if (!s->node_of || !s->refs) {
        eng_reuse_close(s);
        return ST_NOMEM;
    }
    for (int32_t i = 0; i < total; i++) s->node_of[i] = ENG_NODE_NONE;
    return ST_OK;
}

void eng_reuse_close(struct eng_sched *s)
{
    free(s->refs);
    free(s->node_of);
    eng_prefix_close(s->prefix);
    s->refs = s->node_of = NULL;
    s->prefix = NULL;
}

/* --- nodes and their pages -------------------------------------------------------------------- */

int32_t eng_reuse_node(const struct eng_sched *s, kn_page page)
{
    return s->node_of[eng_pages_slot(s->pages, page)];
}

static void set_node(struct eng_sched *s, kn_page page, int32_t node)
{
    s->node_of[eng_pages_slot(s->pages, page)] = node;
}

void eng_reuse_place(struct eng_sched *s, int32_t node, kn_page page)
{
    const kn_page before = eng_prefix_page(s->prefix, node);
    const int32_t depth = eng_prefix_depth(s->prefix, node);
    int32_t left = eng_prefix_refs(s->prefix, node);
    const int32_t far = (kn_page_tier(page) > 0) - (kn_page_tier(before) > 0);
    for (struct eng_sched_seq *seq = s->running.head; seq && left > 0; seq = seq->next) {
        if (seq->page_count <= depth || seq->pages[depth] != before) continue;
        seq->pages[depth] = page;
        seq->far_count += far;
        left--;
    }
    set_node(s, before, ENG_NODE_NONE);
    set_node(s, page, node);
    eng_prefix_set_page(s->prefix, node, page);
}

void eng_reuse_forget(struct eng_sched *s, kn_page page)
{
    set_node(s, page, ENG_NODE_NONE);
}

void eng_reuse_fill(struct eng_sched *s, struct eng_sched_seq *seq, int32_t kv_before)
{
    for (int32_t i = kv_before / KN_PAGE_TOKENS; i < seq->kv_count / KN_PAGE_TOKENS; i++)
        set_node(s, seq->pages[i], eng_prefix_make(s->prefix, seq->pages[i], i));
}

void eng_reuse_unfill(struct eng_sched *s, struct eng_sched_seq *seq)
{
    CHECK(seq->entered_count == 0 && seq->leaving_count == 0 && seq->returning_count == 0);
    for (int32_t i = seq->kv_count / KN_PAGE_TOKENS - 1; i >= 0; i--) {
        CHECK(eng_prefix_give(s->prefix, eng_reuse_node(s, seq->pages[i])));
        eng_reuse_forget(s, seq->pages[i]);
    }
}

void eng_reuse_drop(struct eng_sched *s, int32_t leaf)
{
    const kn_page page = eng_prefix_page(s->prefix, leaf);
    s->counts.dropped[kn_page_tier(page)]++;
    eng_prefix_drop(s->prefix, leaf);
    set_node(s, page, ENG_NODE_NONE);
    eng_pages_give(s->pages, page);
}

/* A reference less; what becomes of a page that is on its way is residency.c's. */
static void give_node(struct eng_sched *s, int32_t node)
{
    const kn_page page = eng_prefix_page(s->prefix, node);
    const bool moving = eng_prefix_is_moving(s->prefix, node);
    if (!eng_prefix_give(s->prefix, node) || moving) return;
    set_node(s, page, ENG_NODE_NONE);
    eng_pages_give(s->pages, page);
}

void eng_reuse_give(struct eng_sched *s, struct eng_sched_seq *seq)
{
    while (seq->page_count > 0) {
        const int32_t i = --seq->page_count;
        const int32_t node = eng_reuse_node(s, seq->pages[i]);
        if (node == ENG_NODE_NONE) eng_pages_give(s->pages, seq->pages[i]);
        else give_node(s, node);
        seq->pages[i] = KN_PAGE_NONE;
    }
    seq->kv_count = seq->entered_count = 0;
    seq->far_count = seq->leaving_count = seq->returning_count = 0;
    seq->fetching = false;
}

/* --- entering --------------------------------------------------------------------------------- */

/* Counts of a sequence that has taken a node, or is about to name another. */
static void count_place(const struct eng_sched *s, struct eng_sched_seq *seq, int32_t node,
                        int32_t sign)
{
    const bool far = kn_page_tier(eng_prefix_page(s->prefix, node)) > 0;
    const bool moving = eng_prefix_is_moving(s->prefix, node);
    if (far) seq->far_count += sign;
    if (far && moving) seq->returning_count += sign;
    if (!far && moving) seq->leaving_count += sign;
}

/* The sequence's page was computed before by another: it takes that one. */
static void take_other(struct eng_sched *s, struct eng_sched_seq *seq, int32_t i, int32_t own,
                       int32_t other)
{
    count_place(s, seq, own, -1);
    seq->pages[i] = eng_prefix_page(s->prefix, other);
    count_place(s, seq, other, 1);
    give_node(s, own);
}

void eng_reuse_enter(struct eng_sched *s, struct eng_sched_seq *seq)
{
    if (!s->reuse || !seq->tokens) return;
    const int32_t known = seq->known_count < seq->kv_count ? seq->known_count : seq->kv_count;
    for (int32_t i; (i = seq->entered_count) < known / KN_PAGE_TOKENS; seq->entered_count++) {
        const struct eng_prefix_key key = {.salt = seq->salt,
                                           .salt_length = seq->salt_length,
                                           .tokens = seq->tokens,
                                           .count = (i + 1) * KN_PAGE_TOKENS};
        const int32_t node = eng_reuse_node(s, seq->pages[i]);
        const int32_t parent = i ? eng_reuse_node(s, seq->pages[i - 1]) : ENG_NODE_NONE;
        const int32_t there = eng_prefix_enter(s->prefix, node, parent, &key);
        if (there != node) take_other(s, seq, i, node, there);
    }
}

void eng_reuse_enter_all(struct eng_sched *s)
{
    if (!s->reuse) return;
    for (struct eng_sched_seq *seq = s->running.head; seq; seq = seq->next) eng_reuse_enter(s, seq);
}

/* --- what a waiting sequence finds ------------------------------------------------------------ */

static bool same_salt(const struct eng_sched_seq *a, const struct eng_sched_seq *b)
{
    const size_t length = (size_t)a->salt_length;
    return a->salt_length == b->salt_length && (!length || !memcmp(a->salt, b->salt, length));
}

/* Pages [0, count) of both are the same. */
static bool same_pages(const struct eng_sched *s, const struct eng_sched_seq *seq, int32_t count,
                       int32_t node)
{
    if (seq->kv_count < count * KN_PAGE_TOKENS) return false;
    return count == 0 || seq->pages[count - 1] == eng_prefix_page(s->prefix, node);
}

/* Tokens [begin, end) of both that are the same, from begin on. */
static int32_t same_tokens(const struct eng_sched_seq *a, const struct eng_sched_seq *b,
                           int32_t begin, int32_t end)
{
    int32_t i = begin;
    while (i < end && a->tokens[i] == b->tokens[i]) i++;
    return i - begin;
}

/* Looks at running sequences that go on where the match ends: what they have of the next page, and
 * what they are about to have. */
static void look_at_running(const struct eng_sched *s, const struct eng_sched_seq *seq,
                            int32_t limit, struct eng_reuse *r)
{
    const int32_t begin = r->match.page_count * KN_PAGE_TOKENS;
    int32_t tail = r->match.tail_count, coming = 0;
    for (const struct eng_sched_seq *other = s->running.head; other; other = other->next) {
        if (!other->tokens || !same_salt(seq, other)) continue;
        if (!same_pages(s, other, r->match.page_count, r->match.node)) continue;
        const int32_t same = same_tokens(seq, other, begin, min_i32(limit, other->known_count));
        const int32_t there = min_i32(min_i32(same, other->kv_count - begin), KN_PAGE_TOKENS - 1);
        if (same > coming && other->kv_count < other->known_count) coming = same;
        if (there <= tail) continue;
        tail = there;
        r->tail_from = other;
    }
    r->match.tail_count = tail;
    r->wait = coming >= tail + LEAD_MIN;
}

struct eng_reuse eng_reuse_find(const struct eng_sched *s, const struct eng_sched_seq *seq)
{
    struct eng_reuse r = {.match = {.node = ENG_NODE_NONE, .tail = ENG_NODE_NONE}};
    const int32_t limit = min_i32(min_i32(seq->known_count, seq->reuse_max), seq->token_count - 1);
    if (!s->reuse || !seq->tokens || limit <= 0 || seq->page_count > 0) return r;
    const struct eng_prefix_key key = {
        .salt = seq->salt, .salt_length = seq->salt_length, .tokens = seq->tokens, .count = limit};
    r.match = eng_prefix_find(s->prefix, &key);
    look_at_running(s, seq, limit, &r);
    if (s->moves.count > 0) { /* a copy would wait for them */
        r.match.tail_count = 0;
        r.tail_from = NULL;
    }
    if (r.tail_from || r.match.tail_count == 0) r.match.tail = ENG_NODE_NONE;
    r.token_count = r.match.page_count * KN_PAGE_TOKENS + r.match.tail_count;
    for (int32_t n = r.match.node; n != ENG_NODE_NONE; n = eng_prefix_parent(s->prefix, n)) {
        r.tier_tokens[kn_page_tier(eng_prefix_page(s->prefix, n))] += KN_PAGE_TOKENS;
        r.in_use_count += eng_prefix_refs(s->prefix, n) > 0;
    }
    return r;
}

/* --- taking it -------------------------------------------------------------------------------- */

void eng_reuse_take(struct eng_sched *s, struct eng_sched_seq *seq, const struct eng_reuse *r)
{
    CHECK(seq->state == ENG_SEQ_RUNNING && seq->page_count == 0 && seq->kv_count == 0);
    /* The tail's node is held until it is copied: what makes room for the copy is not to drop it.
     */
    if (r->match.tail != ENG_NODE_NONE) eng_prefix_take(s->prefix, r->match.tail);
    else if (r->match.node != ENG_NODE_NONE) eng_prefix_take(s->prefix, r->match.node);
    int32_t node = r->match.node;
    for (int32_t i = r->match.page_count - 1; i >= 0; i--) {
        seq->pages[i] = eng_prefix_page(s->prefix, node);
        count_place(s, seq, node, 1);
        node = eng_prefix_parent(s->prefix, node);
    }
    seq->page_count = seq->entered_count = r->match.page_count;
    seq->kv_count = r->token_count;
}

void eng_reuse_leave_tail(struct eng_sched *s, struct eng_sched_seq *seq, struct eng_reuse *r)
{
    if (r->match.tail != ENG_NODE_NONE) give_node(s, r->match.tail);
    seq->kv_count -= r->match.tail_count;
    r->token_count -= r->match.tail_count;
    r->match.tail = ENG_NODE_NONE;
    r->match.tail_count = 0;
    r->tail_from = NULL;
}

void eng_reuse_copy_tail(struct eng_sched *s, struct eng_plan *plan, struct eng_sched_seq *seq,
                         struct eng_reuse *r)
{
    const int32_t at = r->match.page_count;
    if (r->match.tail_count == 0) return;
    const kn_page from =
        r->tail_from ? r->tail_from->pages[at] : eng_prefix_page(s->prefix, r->match.tail);
    eng_residency_copy(s, plan, from, seq->pages[at]);
    r->tier_tokens[kn_page_tier(from)] += r->match.tail_count;
    s->counts.copied++;
    if (r->match.tail != ENG_NODE_NONE) give_node(s, r->match.tail);
}

void eng_reuse_count(struct eng_sched *s, struct eng_sched_seq *seq, const struct eng_reuse *r)
{
    if (!s->reuse || !seq->tokens || seq->preempt_count > 0) return;
    s->counts.query_tokens += (uint64_t)seq->token_count;
    for (int t = 0; t < KN_TIER_MAX; t++) {
        s->counts.hit_tokens[t] += (uint64_t)r->tier_tokens[t];
        seq->cached_count[t] = r->tier_tokens[t];
    }
}

/* --- looking in ------------------------------------------------------------------------------- */

void eng_reuse_mark(const struct eng_sched *s, kn_page page, int32_t *owned)
{
    uint8_t *at = &s->mark[eng_pages_slot(s->pages, page)];
    CHECK(eng_pages_is_taken(s->pages, page) && !*at);
    *at = 1;
    ++*owned;
}

/* Its full pages are nodes, those entered a path of the tree with its tokens. */
static void check_seq(const struct eng_sched *s, const struct eng_sched_seq *seq, int32_t *owned)
{
    const int32_t full = seq->kv_count / KN_PAGE_TOKENS;
    CHECK(seq->entered_count >= 0 && seq->entered_count <= full && full <= seq->page_count);
    for (int32_t i = 0; i < seq->page_count; i++) {
        const int32_t node = eng_reuse_node(s, seq->pages[i]);
        CHECK((node != ENG_NODE_NONE) == (i < full));
        if (node == ENG_NODE_NONE) {
            eng_reuse_mark(s, seq->pages[i], owned);
            continue;
        }
        s->refs[node]++;
        CHECK(eng_prefix_depth(s->prefix, node) == i);
        CHECK(eng_prefix_is_entered(s->prefix, node) == (i < seq->entered_count));
        if (i >= seq->entered_count) continue;
        const int32_t parent = eng_prefix_parent(s->prefix, node);
        CHECK(parent == (i ? eng_reuse_node(s, seq->pages[i - 1]) : ENG_NODE_NONE));
        CHECK(memcmp(eng_prefix_tokens(s->prefix, node), seq->tokens + i * KN_PAGE_TOKENS,
                     KN_PAGE_TOKENS * sizeof *seq->tokens) == 0);
    }
}

void eng_reuse_check(const struct eng_sched *s, int32_t *owned)
{
    const int32_t total = eng_pages_total(s->pages);
    int32_t nodes = 0;
    eng_prefix_check(s->prefix);
    memset(s->refs, 0, (size_t)total * sizeof *s->refs);
    for (const struct eng_sched_seq *seq = s->running.head; seq; seq = seq->next)
        check_seq(s, seq, owned);
    for (const struct eng_sched_seq *seq = s->waiting.head; seq; seq = seq->next)
        for (int32_t i = 0; i < seq->page_count; i++) { /* parked */
            CHECK(eng_reuse_node(s, seq->pages[i]) == ENG_NODE_NONE);
            eng_reuse_mark(s, seq->pages[i], owned);
        }
    for (int32_t i = 0; i < total; i++) {
        const int32_t node = s->node_of[i];
        if (node == ENG_NODE_NONE) continue;
        CHECK(eng_pages_slot(s->pages, eng_prefix_page(s->prefix, node)) == i);
        CHECK(eng_prefix_refs(s->prefix, node) == s->refs[node]);
        eng_reuse_mark(s, eng_prefix_page(s->prefix, node), owned);
        nodes++;
    }
    CHECK(nodes == eng_prefix_count(s->prefix));
}
