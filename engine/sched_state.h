/*
 * sched_state.h - struct eng_sched, shared by sched.c (who is in a step) and residency.c (where
 * their pages lie); private to them.
 */
#ifndef DAKD_ENGINE_SCHED_STATE_H
#define DAKD_ENGINE_SCHED_STATE_H

#include "engine/pages.h"
#include "engine/sched.h"

struct eng_seq_list {
    struct eng_sched_seq *head, *tail;
    int32_t count;
};

/* A page on its way: both places are taken until it is over. */
struct eng_move {
    struct kn_page_move page;
    struct eng_sched_seq *seq; /* whose it is; NULL: of one that has gone */
    int32_t index;             /* in seq->pages, which still names page.from */
    bool out;                  /* of local memory; else back into it */
};

/* Moves begun and not over, oldest first: [first % cap, first + count). */
struct eng_moves {
    struct eng_move *at; /* owned, [cap] */
    int32_t cap, first, count;
    uint64_t over;        /* of all that were begun */
    int32_t out_count;    /* of `count`, out of local memory */
    int32_t orphan_count; /* of `count`, whose sequence has gone */
    uint64_t out, back;   /* begun */
    uint64_t waits;       /* plans whose step waits for moves */
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

/* Whether a waiting sequence of `whole` pages should run beside those that do and lack `need`. */
bool eng_policy_admits(const struct eng_sched *s, int64_t need, int32_t whole);
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
/* A step of decodes alone took so long. */
void eng_policy_learn(struct eng_sched *s, double seconds);

/* --- residency.c --- */

MUST_USE enum status eng_residency_open(struct eng_sched *s, const struct eng_sched_config *config);
void eng_residency_close(struct eng_sched *s);
/* Pages that are free, or will be when moves are over. */
int64_t eng_residency_room(const struct eng_sched *s);
/* Takes local pages so that seq's next `want` tokens have room; returns for how many of them there
 * is room now.  Where local pages are short others leave, and the plan's step waits for them. */
int32_t eng_residency_take(struct eng_sched *s, struct eng_plan *plan, struct eng_sched_seq *seq,
                           int32_t want);
/* The same for a sequence that is to be admitted with KV that is given: pages for that too, which
 * lie where they would had it been computed.  0: it has none. */
int32_t eng_residency_take_given(struct eng_sched *s, struct eng_plan *plan,
                                 struct eng_sched_seq *seq, int32_t want);
/* One local page is free, whatever must leave for it; false where no tier has room. */
bool eng_residency_make_room(struct eng_sched *s, struct eng_plan *plan);
/* A page of seq sets out, to `to`, which was taken for it. */
void eng_residency_begin(struct eng_sched *s, struct eng_plan *plan, struct eng_sched_seq *seq,
                         int32_t index, kn_page to, bool out);
/* The plan's step begins when all moves begun so far are over; so they are.  False: there were
 * none. */
bool eng_residency_join(struct eng_sched *s, struct eng_plan *plan);
/* Gives back all pages of a sequence. */
void eng_residency_give(struct eng_sched *s, struct eng_sched_seq *seq);
/* The plan is made, for running sequences that still lack so many pages: pages leave ahead of need,
 * or come back, beside its step. */
void eng_residency_tend(struct eng_sched *s, struct eng_plan *plan, int64_t lack);
/* A step took so long. */
void eng_residency_learn(struct eng_sched *s, double seconds);
/* CHECKs moves and the places of pages, and that s->mark, zero before, has every page of sequences
 * and moves once; adds their number to *owned. */
void eng_residency_check(const struct eng_sched *s, int32_t *owned);

#endif
