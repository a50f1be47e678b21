/*
 * sched_state.h - struct eng_sched, shared by sched.c (who is in a step), reuse.c (which full pages
 * they share, and with whom) and residency.c (where pages lie); private to them.
 */
#ifndef DAKD_ENGINE_SCHED_STATE_H
#define DAKD_ENGINE_SCHED_STATE_H

#include "engine/pages.h"
#include "engine/prefix.h"
#include "engine/sched.h"

struct eng_seq_list {
    struct eng_sched_seq *head, *tail;
    int32_t count;
};

/* A page on its way: both places are taken until it is over. */
struct eng_move {
    struct kn_page_move page;
    int32_t node; /* whose page it is; ENG_NODE_NONE: a copy, of which nobody is told */
    bool out;     /* of local memory; else back into it */
    bool spare;   /* it went as nobody's, for the cache */
};

/* Moves begun and not over, oldest first: [first % cap, first + count). */
struct eng_moves {
    struct eng_move *at; /* owned, [cap] */
    int32_t cap, first, count;
    uint64_t over;           /* of all that were begun */
    int32_t out_count;       /* of `count`, out of local memory */
    int32_t spare_out_count; /* of these, nobody's */
    uint64_t out, back;      /* begun */
    uint64_t waits;          /* plans whose step waits for moves */
};

/* What the cache was asked, and what became of its pages. */
struct eng_reuse_counts {
    uint64_t query_tokens, hit_tokens[KN_TIER_MAX];
    uint64_t sent, dropped[KN_TIER_MAX], copied;
};

struct eng_sched {
    int32_t running_max; /* min(seqs_max, tokens_step_max, local pages) */
    int32_t tokens_step_max;
    int32_t chunk_max;
    bool paced; /* a target of latency is set */
    struct eng_pace pace;
    struct eng_seq_list running, waiting;
    struct eng_pages *pages;     /* owned */
    struct eng_plan_item *items; /* owned, [running_max] */
    int32_t planned_count;       /* items of the plan not yet committed; 0: none */
    uint64_t arrival_next;
    uint64_t preempt_count;
    uint8_t *mark; /* owned, [pages]: scratch of eng_sched_check */

    /* Pages that are full (prefix.h, reuse.c). */
    struct eng_prefix *prefix; /* owned */
    int32_t *node_of;          /* owned, [pages]: by slot, the node whose page it is, or none */
    int32_t *refs;             /* owned, [pages]: scratch of eng_sched_check */
    bool reuse;                /* nodes enter the tree */
    struct eng_reuse_counts counts;

    /* Pages in several tiers. */
    enum eng_kv_policy policy;
    enum eng_admission admission;
    bool given;    /* sequences were added of whose KV some is given */
    bool in_place; /* full pages may leave local memory, and are read where they are */
    struct off_residency residency;
    double step_s;               /* of late; 0: not known */
    double base_s, base_least_s; /* of it, beside attention: of late, and at least */
    struct eng_moves moves;
    struct kn_page_move *planned_moves; /* owned, [planned_moves_max]: of the plan */
    int32_t planned_moves_max;
};

static inline int32_t min_i32(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static inline int32_t eng_sched_pages_for(int32_t tokens)
{
    return tokens / KN_PAGE_TOKENS + (tokens % KN_PAGE_TOKENS != 0);
}

/* Whether it waits with KV, which is all behind the link. */
static inline bool eng_seq_is_parked(const struct eng_sched_seq *seq)
{
    return seq->state == ENG_SEQ_WAITING && seq->page_count > 0;
}

/* --- policy.c --- */

/* Whether a waiting sequence of `whole` pages, `own` of them not shared with those that run, should
 * run beside these, which lack `need`. */
bool eng_policy_admits(const struct eng_sched *s, int64_t need, int32_t own, int32_t whole);
/* A running sequence's pages, all local, move behind the link, and the plan's step waits for them.
 * False where there is no room for all of them, or another policy. */
bool eng_policy_park(struct eng_sched *s, struct eng_plan *plan, struct eng_sched_seq *seq);
/* A parked sequence's pages come back, and the plan's step waits for them: all of them, or where
 * they are read in place as many as there is room for, and the one that is not full.  False where
 * there is no room for that. */
bool eng_policy_return(struct eng_sched *s, struct eng_plan *plan, struct eng_sched_seq *seq);
/* The youngest parked sequence loses its KV, but not who is to be admitted where nobody runs; false
 * where there is none. */
bool eng_policy_drop(struct eng_sched *s);
/* A plan is made: given KV of sequences that wait all the same is parked, or lost. */
void eng_policy_settle_given(struct eng_sched *s);
/* A step of decodes alone, which waited for no page, took so long. */
void eng_policy_learn(struct eng_sched *s, double seconds);

/* --- residency.c --- */

MUST_USE enum status eng_residency_open(struct eng_sched *s, const struct eng_sched_config *config);
void eng_residency_close(struct eng_sched *s);
/* Pages that are free, will be when moves are over, or are nobody's but the cache's. */
int64_t eng_residency_room(const struct eng_sched *s);
/* Takes local pages so that seq's next `want` tokens have room; returns for how many of them there
 * is room now.  Where local pages are short others leave, and the plan's step waits for them. */
int32_t eng_residency_take(struct eng_sched *s, struct eng_plan *plan, struct eng_sched_seq *seq,
                           int32_t want);
/* The same for a sequence that is admitted with KV that is given: pages for that too, which lie
 * where they would had it been computed.  0: no page was taken. */
int32_t eng_residency_take_given(struct eng_sched *s, struct eng_plan *plan,
                                 struct eng_sched_seq *seq, int32_t want);
/* One local page is free, whatever must leave for it; false where no tier has room. */
bool eng_residency_make_room(struct eng_sched *s, struct eng_plan *plan);
/* A page that is no node's, of a sequence that waits or is about to, lies at `to` from now on,
 * which was taken for it; the plan's step waits for the copy.  Not with moves under way. */
void eng_residency_shift(struct eng_sched *s, struct eng_plan *plan, struct eng_sched_seq *seq,
                         int32_t index, kn_page to);
/* The plan's step begins when all moves begun so far are over; so they are.  False: there were
 * none. */
bool eng_residency_join(struct eng_sched *s, struct eng_plan *plan);
/* The plan is made, for running sequences that still lack so many pages: pages leave ahead of need,
 * or come back, beside its step. */
void eng_residency_tend(struct eng_sched *s, struct eng_plan *plan, int64_t lack);
/* Pages that a sequence found behind the link, whose prompt is about to read them, set out for
 * local memory, as far as it has room.  Returns whether any is on its way, or room for one. */
bool eng_residency_fetch(struct eng_sched *s, struct eng_plan *plan, struct eng_sched_seq *seq);
/* Copies a page, where no move is under way; the plan's step waits for it. */
void eng_residency_copy(struct eng_sched *s, struct eng_plan *plan, kn_page from, kn_page to);
/* A step took so long. */
void eng_residency_learn(struct eng_sched *s, double seconds);
/* CHECKs moves and the places of running sequences' pages, and adds the pages that moves alone hold
 * to s->mark and *owned. */
void eng_residency_check(const struct eng_sched *s, int32_t *owned);

/* --- reuse.c --- */

MUST_USE enum status eng_reuse_open(struct eng_sched *s, const struct eng_sched_config *config);
void eng_reuse_close(struct eng_sched *s);
/* The node whose page it is, or ENG_NODE_NONE. */
int32_t eng_reuse_node(const struct eng_sched *s, kn_page page);
/* A node's page lies elsewhere from now on: tables of running sequences say so.  Who gives back the
 * page it lay in is the caller. */
void eng_reuse_place(struct eng_sched *s, int32_t node, kn_page page);
/* The page is no node's any more. */
void eng_reuse_forget(struct eng_sched *s, kn_page page);
/* seq->kv_count has risen from kv_before: pages that became full become nodes. */
void eng_reuse_fill(struct eng_sched *s, struct eng_sched_seq *seq, int32_t kv_before);
/* The sequence's nodes, which are its alone, are no more; it keeps the pages. */
void eng_reuse_unfill(struct eng_sched *s, struct eng_sched_seq *seq);
/* Enters what is known by now of full pages of a running sequence, or of all. */
void eng_reuse_enter(struct eng_sched *s, struct eng_sched_seq *seq);
void eng_reuse_enter_all(struct eng_sched *s);
/* Gives back all pages of a sequence; what was entered stays. */
void eng_reuse_give(struct eng_sched *s, struct eng_sched_seq *seq);
/* Drops an idle node without children, and gives back its page. */
void eng_reuse_drop(struct eng_sched *s, int32_t leaf);

/* What a waiting sequence could take from others. */
struct eng_reuse {
    struct eng_prefix_match match;         /* a tail in the tree, or */
    const struct eng_sched_seq *tail_from; /* in this sequence's last page; NULL: not there */
    int32_t in_use_count;                  /* pages of the match that running sequences hold too */
    int32_t tier_tokens[KN_TIER_MAX];      /* by where their pages lie; the tail's once copied */
    int32_t token_count;                   /* all in all, the tail's included */
    bool wait;                             /* more of it is about to be computed */
};
struct eng_reuse eng_reuse_find(const struct eng_sched *s, const struct eng_sched_seq *seq);
/* Takes it all for a sequence that is running now, and has no pages yet; kv_count then tells of the
 * tail too, for which there is no page yet (eng_reuse_copy_tail). */
void eng_reuse_take(struct eng_sched *s, struct eng_sched_seq *seq, const struct eng_reuse *r);
/* Does without the tail.  Either this or eng_reuse_copy_tail follows eng_reuse_take. */
void eng_reuse_leave_tail(struct eng_sched *s, struct eng_sched_seq *seq, struct eng_reuse *r);
/* The sequence has its next page: the tail is copied there. */
void eng_reuse_copy_tail(struct eng_sched *s, struct eng_plan *plan, struct eng_sched_seq *seq,
                         struct eng_reuse *r);
/* The sequence was admitted with what it took. */
void eng_reuse_count(struct eng_sched *s, struct eng_sched_seq *seq, const struct eng_reuse *r);
/* CHECKs references and tables; adds the pages of nodes and sequences to s->mark and *owned. */
void eng_reuse_check(const struct eng_sched *s, int32_t *owned);
/* CHECKs that a taken page is met for the first time. */
void eng_reuse_mark(const struct eng_sched *s, kn_page page, int32_t *owned);

#endif
