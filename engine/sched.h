/*
 * sched.h - which tokens of which sequences make up the next step.
 *
 * Continuous batching (Orca) with chunked prefill (Sarathi-Serve): every step mixes the decodes of all running sequences
 * with chunks of prompts, under a budget of tokens.  KV memory is handed out in pages of KN_PAGE_TOKENS; when pages run
 * out the youngest running sequence is preempted: its pages are freed and it goes back to the front of the queue, to be
 * computed again from its tokens (bitwise the same, kernels.h invariant 2).
 *
 *            eng_sched_add          eng_sched_plan (admitted)
 *   (new) ------------------> WAITING -------------------> RUNNING ---> eng_sched_remove ---> (gone)
 *                                ^------------------------- |
 *                                   eng_sched_plan (preempted)
 *
 * Pure: no clock, no I/O, no allocation after open.  Not thread-safe: the engine thread's.
 *
 * Invariants (eng_sched_check):
 *  1. every page is free or owned by exactly one running sequence; waiting sequences own none;
 *  2. a sequence owns exactly ceil(kv_count / 64) pages after a commit; kv_count <= token_count;
 *  3. a plan's tokens <= tokens_step_max, its sequences <= seqs_max;
 *  4. first come, first served: an admitted sequence arrived no later than every one still waiting, except those put back
 *     by preemption, which come first; while any decode is possible it is in the plan (no decode waits for a prefill);
 *  5. the oldest running sequence is never preempted, so that every step makes progress and every sequence ends.
 */
#ifndef DAKD_ENGINE_SCHED_H
#define DAKD_ENGINE_SCHED_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"

enum eng_seq_state { ENG_SEQ_NEW, ENG_SEQ_WAITING, ENG_SEQ_RUNNING };

/* The scheduler's part of a sequence, embedded in the engine's.  Fields are the scheduler's unless said otherwise. */
struct eng_sched_seq {
    enum eng_seq_state state;
    int32_t token_count; /* prompt and generated tokens known; the engine raises it after sampling */
    int32_t kv_count;    /* of these, whose KV is in the pages */
    kn_page *pages;      /* owned by the caller: room for ceil(model_len_max / 64) entries */
    int32_t page_count;
    uint64_t arrival;    /* serial number, set by eng_sched_add */
    int32_t preempt_count;
    struct eng_sched_seq *prev, *next; /* links of the waiting or running list */
};

struct eng_sched_config {
    int32_t seqs_max;        /* running at once: --max-num-seqs */
    int32_t tokens_step_max; /* token budget of a step: --max-num-batched-tokens */
    int32_t chunk_max;       /* longest prompt chunk of one sequence in a step; 0: the budget */
    int32_t page_count[KN_TIER_MAX]; /* KV pages of each tier; taken from tier 0 first */
};

struct eng_plan_item {
    struct eng_sched_seq *seq;
    int32_t token_begin; /* first token of seq computed in this step (its kv_count) */
    int32_t token_count;
    bool sample;         /* the step reaches the sequence's last known token: its logits are wanted */
};

struct eng_plan {
    struct eng_plan_item *items; /* owned by the scheduler, valid until the next eng_sched_plan; decodes first */
    int32_t item_count;
    int32_t token_count;
    int32_t preempt_count; /* sequences put back while this plan was made */
};

struct eng_sched;

MUST_USE enum status eng_sched_open(const struct eng_sched_config *config, struct eng_sched **out);
void eng_sched_close(struct eng_sched *s);

/* Largest number of tokens one sequence can ever hold with the pages there are.  Longer requests must be refused before
 * eng_sched_add. */
int32_t eng_sched_seq_tokens_max(const struct eng_sched *s);
/* Puts a new sequence (token_count = prompt length >= 1, pages set, the rest zero) at the end of the queue. */
void eng_sched_add(struct eng_sched *s, struct eng_sched_seq *seq);
/* Takes a sequence out, in any state, and frees its pages.  Not between plan and commit of a plan that holds it. */
void eng_sched_remove(struct eng_sched *s, struct eng_sched_seq *seq);
/* Makes the next plan, with pages for all its tokens reserved.  item_count 0: nothing to do. */
void eng_sched_plan(struct eng_sched *s, struct eng_plan *plan);
/* The plan was computed: kv_count of its sequences advances.  Before this the engine has not changed token_count; after
 * it, the engine raises token_count by one for each sampled sequence (or removes the sequence). */
void eng_sched_commit(struct eng_sched *s, const struct eng_plan *plan);

struct eng_sched_stats {
    int32_t running, waiting;
    int32_t pages_used[KN_TIER_MAX], pages_total[KN_TIER_MAX];
    uint64_t preempt_count;
};
void eng_sched_stats(const struct eng_sched *s, struct eng_sched_stats *out);
/* CHECKs the invariants; linear in sequences and pages. */
void eng_sched_check(const struct eng_sched *s);

#endif
