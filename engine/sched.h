/*
 * sched.h - which tokens of which sequences make up the next step.
 *
 * Continuous batching (Orca) with chunked prefill (Sarathi-Serve): every step mixes the decodes of
 * all running sequences with chunks of prompts, under a budget of tokens and, where a target for
 * the inter-token latency is set, of time: then a step that has decodes has only so many tokens of
 * prompts that it is predicted to take no longer (pace.h).  KV memory is handed out
 * in pages of KN_PAGE_TOKENS; when pages run out the youngest running sequence is preempted: its
 * pages are freed and it goes back to the front of the queue, to be computed again from its tokens
 * (bitwise the same, kernels.h invariant 2).
 *
 * Pages may lie in several tiers.  New tokens go to local pages, of tier 0; where these are short,
 * full ones are moved to a remote tier, and read there by sequences that run on (residency.c).  So
 * only when every page of every tier is taken is anybody preempted, and anything computed again.
 * That is ENG_KV_IN_PLACE, and what follows holds for it; policy.c says what the other policies do,
 * and who is admitted where local memory is short.
 *
 * With a prefix cache, pages that sequences leave behind are kept until their room is needed, and a
 * sequence begins with those that hold its own first tokens (prefix.h, reuse.c); full pages may so
 * be several sequences'.  Pages that the cache alone holds count as free.
 *
 *          eng_sched_add         eng_sched_plan (admitted)        eng_sched_remove
 *   (new) ----------------> WAITING ---------------------> RUNNING ----------------> (gone)
 *                              ^------------------------------|
 *                                eng_sched_plan (preempted)
 *
 * A running sequence whose tokens are all computed but the last is a decode (one token in the step,
 * and sampled); any other is a prefill.  sched.c says in which order they are served.
 *
 * Pure: no clock, no I/O, no allocation after open.  Not thread-safe: the engine thread's.
 *
 * Invariants (eng_sched_check; 5 to 7 by tests/sim_engine_sched.c):
 *  1. every page is free, or has exactly one owner: a full page its node, which counts the running
 *     sequences that have it in their tables; any other the sequence that fills it, or the move
 *     that goes there.  Waiting sequences have none, or are parked: all pages of their KV lie
 *     behind a link, and are theirs alone (policy.c).  A node that nobody counts is the cache's;
 *  2. a sequence has exactly ceil(kv_count / 64) pages after a commit; kv_count <= token_count;
 *  3. a plan's tokens <= tokens_step_max; running sequences <= min(seqs_max, tokens_step_max);
 *  4. first come, first served: running, then waiting sequences are in order of arrival, so that an
 *     admitted sequence arrived no later than every one still waiting, and those put back by
 *     preemption come first;
 *  5. every running decode is in every plan: no decode waits for a prefill, or for another decode;
 *  6. the oldest sequence there is (running or not yet) is in every plan, with at least one token
 *     (ENG_CHUNK_MIN, or all it has, where a target of latency is what bounds a plan), and is never
 *     preempted.  Hence a sequence is finished within as many steps as it and those
 *     before it have tokens in the end;
 *  7. nobody is preempted in an admission's own step or in the 64 steps after it, so that what is
 *     admitted stays to do some work (the watermark, sched.c);
 *  8. nobody is preempted while any tier has room or a parked sequence has pages; pages that are
 *     not full, and the page that a plan's new token goes to, are local.
 */
#ifndef DAKD_ENGINE_SCHED_H
#define DAKD_ENGINE_SCHED_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/pace.h"
#include "engine/prefix.h"
#include "kernels/kernels.h"
#include "offload/residency.h"

enum eng_seq_state { ENG_SEQ_NEW, ENG_SEQ_WAITING, ENG_SEQ_RUNNING };

/* The scheduler's part of a sequence, embedded in the engine's.  Fields are the scheduler's unless
 * said otherwise. */
struct eng_sched_seq {
    enum eng_seq_state state;
    int32_t token_count; /* prompt and generated tokens known; the engine raises it */
    int32_t kv_count;    /* of these, whose KV is in the pages */
    /* Of these, the first whose KV is taken for granted, whatever pages hold: set by the caller
     * with token_count, less than it; 0 once it has been admitted.  Not of one that is for the
     * prefix cache. */
    int32_t given_count;
    kn_page *pages; /* owned by the caller: room for ceil(model_len_max / 64) entries */
    int32_t page_count;
    /* Its pages behind a link, of these those on their way back, and of the others those on their
     * way out; its first pages that are in the tree of prefixes. */
    int32_t far_count, returning_count, leaving_count;
    int32_t entered_count;
    bool fetching;    /* it is not planned until pages that it found behind a link are back */
    uint64_t arrival; /* serial number, set by eng_sched_add */
    int32_t preempt_count;
    /* For the prefix cache; the caller's.  tokens: NULL keeps the sequence out of it.  The caller
     * raises known_count, to token_count at most, and reuse_max says how many of the first tokens
     * may be taken from the cache rather than computed. */
    const int32_t *tokens; /* [known_count], borrowed; those known do not change */
    int32_t known_count, reuse_max;
    const char *salt; /* [salt_length] bytes, borrowed; 0..ENG_CACHE_SALT_MAX */
    int32_t salt_length;
    /* Tokens that were taken from the cache when it was first admitted, by the tier they lay in. */
    int32_t cached_count[KN_TIER_MAX];
    struct eng_sched_seq *prev, *next; /* links of the waiting or running list */
};

/* However little time there is, a step has so many tokens of a prompt, so that none starves. Enough
 * for the prefill kernels (kernels.h, invariant 2). */
enum { ENG_CHUNK_MIN = 64 };

/* What becomes of sequences for which local memory is short.
 * IN_PLACE: full pages move to a remote tier and are read there; nobody stops.
 * SWAP: a sequence runs with all its pages local, or waits with all of them in a remote tier: the
 *     youngest is moved there to make room, and moved back before it runs again.
 * RECOMPUTE: remote tiers have no pages; the youngest loses its own, and is computed again.
 * The last two are what vLLM calls modes of preemption, to measure the first against. */
enum eng_kv_policy { ENG_KV_IN_PLACE, ENG_KV_SWAP, ENG_KV_RECOMPUTE };

/* Who is admitted although pages must lie behind a link then, where they are read in place.
 * ALL: as many as there are pages for, so that all go on at once.
 * THROUGHPUT: as long as steps are predicted to give more tokens a second with one more, and
 * anybody where nobody runs. */
enum eng_admission { ENG_ADMIT_ALL, ENG_ADMIT_THROUGHPUT };

/* tokens_step_max caps the running sequences too, so that every decode fits in every step: more of
 * them would hold pages only to take turns. */
struct eng_sched_config {
    int32_t seqs_max;        /* >= 1; running at once: --max-num-seqs */
    int32_t tokens_step_max; /* >= 1; token budget of a step: --max-num-batched-tokens */
    int32_t chunk_max;       /* longest prompt chunk of one sequence in a step; 0: the budget */
    /* KV pages of each tier: of tier 0, where new tokens go, >= 1, and at least as many as
     * sequences that are to run at once. */
    int32_t page_count[KN_TIER_MAX];
    struct off_residency residency; /* where a remote tier has pages: what moving them costs */
    enum eng_kv_policy kv_policy;
    enum eng_admission admission; /* of ENG_KV_IN_PLACE */
    double step_base_s;           /* what a step takes beside attention, at least; 0: not known */
    double itl_target_s; /* duration of steps with decodes: --itl-target-ms; 0: no target */
    /* Pages that sequences leave behind are kept as long as nobody needs their room, and found
     * again by their tokens (prefix.h). */
    bool prefix_cache;
};

struct eng_plan_item {
    struct eng_sched_seq *seq;
    int32_t token_begin; /* first token of seq computed in this step (its kv_count) */
    int32_t token_count;
    bool sample; /* the step reaches the sequence's last known token: its logits are wanted */
};

/* Decodes first, then running prefills, then admissions, each in order of arrival. */
struct eng_plan {
    struct eng_plan_item *items; /* owned by the scheduler, valid until the next eng_sched_plan */
    int32_t item_count;          /* <= min(seqs_max, tokens_step_max) */
    int32_t token_count;
    int32_t preempt_count; /* sequences put back while this plan was made */
    struct eng_load load;
    bool held_back; /* the target of latency left prompts' tokens for later steps */
    /* Pages to be moved, in this order, begun before the plan's step is issued; `wait`: the step
     * begins when the first urgent_count of them are over, and all that were begun before. */
    struct kn_page_move *moves; /* as items */
    int32_t move_count, urgent_count;
    bool wait;
};

struct eng_sched;

/* ST_NOMEM; a config out of range is a programmer's error. */
MUST_USE enum status eng_sched_open(const struct eng_sched_config *config, struct eng_sched **out);
/* Sequences still there are dropped: their memory is the caller's. */
void eng_sched_close(struct eng_sched *s);

/* Largest number of tokens one sequence can ever hold with the pages there are.  Longer requests
 * must be refused before eng_sched_add. */
int32_t eng_sched_seq_tokens_max(const struct eng_sched *s);
/* Puts a new sequence (token_count = prompt length >= 1, pages and maybe given_count set, the rest
 * zero) at the end of the queue. */
void eng_sched_add(struct eng_sched *s, struct eng_sched_seq *seq);
/* Takes a sequence out, in any state, and frees its pages; it is ENG_SEQ_NEW again (where it was
 * already: no effect). Not between plan and commit of a plan that holds it. */
void eng_sched_remove(struct eng_sched *s, struct eng_sched_seq *seq);
/* Makes the next plan, with pages for all its tokens reserved.  item_count 0: nothing to do (no
 * sequence is there), and no commit is due; any other plan must be committed before the next one is
 * made. */
void eng_sched_plan(struct eng_sched *s, struct eng_plan *plan);
/* Before a plan: so many of all moves begun so far are over (kn_moves_done). */
void eng_sched_moved(struct eng_sched *s, uint64_t count);
/* The plan's operations are issued: kv_count of its sequences advances.  Before this the engine has
 * not changed token_count; after it, the engine raises token_count by one for each sampled sequence
 * (or removes the sequence). */
void eng_sched_commit(struct eng_sched *s, const struct eng_plan *plan);

/* A step of a plan's load took so long, from the end of the step before it. */
void eng_sched_learn(struct eng_sched *s, const struct eng_load *load, double seconds);

struct eng_sched_stats {
    int32_t running, waiting;
    int32_t pages_used[KN_TIER_MAX], pages_total[KN_TIER_MAX];
    uint64_t preempt_count;
    /* Pages that left local memory, and that came back, both counted when they set out; those under
     * way; and the steps that had to wait for any. */
    uint64_t pages_out_count, pages_back_count, move_wait_count;
    int32_t pages_moving;
    /* The prefix cache, as vLLM counts it: tokens of admitted sequences that were looked up (whole
     * prompts), and of these the tokens found, by the tier they lay in. */
    uint64_t prefix_query_tokens, prefix_hit_tokens[KN_TIER_MAX];
    /* Pages of pages_used that the cache alone holds: free for whoever needs them. */
    int32_t pages_cached[KN_TIER_MAX];
    /* Pages the cache sent from local memory to a remote tier, and dropped for good, by tier. */
    uint64_t prefix_sent_count, prefix_dropped_count[KN_TIER_MAX];
    uint64_t prefix_copied_count; /* pages copied for their first tokens */
};
void eng_sched_stats(const struct eng_sched *s, struct eng_sched_stats *out);
/* CHECKs the invariants; linear in sequences and pages. */
void eng_sched_check(const struct eng_sched *s);

#endif
