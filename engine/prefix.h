/*
 * prefix.h - which KV pages hold which tokens: a radix tree of pages, so that a sequence that
 * begins as another one did takes its keys and values from there instead of computing them.
 *
 *     (salt) --- page of tokens 0..63 --- page of tokens 64..127 --- ...
 *                                    \--- page of other tokens 64..127
 *
 * A node is a full page; its key is its 64 tokens and all those before it: the path from a root,
 * of which there is one for every salt in use.  Keys and values of a token depend on all tokens
 * before it and on nothing else, so equal paths mean equal keys and values: on the CPU bit for bit,
 * on CUDA as far as two ways to cut a prompt into steps give them (kernels.h, invariant 2).
 *
 * Every full page of a running sequence is a node.  It begins outside the tree, for a token that
 * was sampled on the device becomes known a step later, with one reference, its sequence's.  When
 * its tokens are known it enters the tree, or is given up for the node that is there already.
 * Sequences that find it take references of their own; when the last is given back it stays, idle,
 * until its room is needed.
 *
 *             make               enter                     give, the last
 *     (none) ------> private -----------> entered, in use <--------------> entered, idle
 *        ^              |                                  take                 |
 *        |<-------------+------------------------------------------------------ |
 *               give                                                          drop
 *
 * Whoever references a node references every node before it.  So the children of idle nodes are
 * idle, and every idle page can be had, leaves first.
 *
 * Matching trusts no hash: a hash of parent and tokens picks a chain, on which tokens are compared.
 * What matches a part of a page is looked for among the children of the last full match, at most
 * ENG_PREFIX_LOOKS of them, those entered last first.
 *
 * Who goes first.  All pages have the same bytes, and cost about the same to compute again, so what
 * a page is worth is how soon it is expected to be used.  That is estimated from how often it was
 * found before, and how long ago it was used last:
 *
 *     rate = (1 + hits) / (time since it was used)        time in pages written, by anybody
 *
 * with 1 + hits rounded down to a power of two of at most ENG_PREFIX_HITS_MAX, so that there is a
 * queue for each of a few classes and the least rate is at the head of one: finding it is O(1).
 * Hits that follow one another within a small part of the cache's turnover count as one, as n
 * answers to one prompt are one use.  A node's rate is never less than its children's.
 *
 * Pure: no clock, no I/O, no allocation after open; about 500 bytes a page, of which 256 are its
 * tokens.  Not thread-safe: the scheduler's, hence the engine thread's.
 */
#ifndef DAKD_ENGINE_PREFIX_H
#define DAKD_ENGINE_PREFIX_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"

/* Bytes of a salt. */
#define ENG_CACHE_SALT_MAX 128
#define ENG_PREFIX_LOOKS 256
#define ENG_PREFIX_CLASSES 6
#define ENG_PREFIX_HITS_MAX (1 << (ENG_PREFIX_CLASSES - 1))

#define ENG_NODE_NONE (-1)

struct eng_prefix;

/* A sequence's first tokens, under a salt. */
struct eng_prefix_key {
    const char *salt; /* [salt_length], 0..ENG_CACHE_SALT_MAX */
    int32_t salt_length;
    const int32_t *tokens; /* [count] */
    int32_t count;
};

struct eng_prefix_match {
    int32_t node;       /* of the last page that matches as a whole, or ENG_NODE_NONE */
    int32_t page_count; /* pages that match as a whole: node's and those before it */
    int32_t tail;       /* the node whose first tail_count tokens come next, or ENG_NODE_NONE */
    int32_t tail_count; /* 0..63 */
};

/* For page_max pages in all.  ST_NOMEM. */
MUST_USE enum status eng_prefix_open(int32_t page_max, struct eng_prefix **out);
void eng_prefix_close(struct eng_prefix *p);

/* A node for a page that is full, the depth'th of its sequence, with one reference. */
int32_t eng_prefix_make(struct eng_prefix *p, kn_page page, int32_t depth);
/* Enters a private node that has one reference.  key->tokens are those of its sequence up to the
 * page's last, so that key->count = (depth + 1) * 64, and parent, entered, is its sequence's node
 * before it.  Returns node; or the one that has this key already, with a reference more: the
 * caller's table is to name that one, and node's own reference is the caller's to give back. */
int32_t eng_prefix_enter(struct eng_prefix *p, int32_t node, int32_t parent,
                         const struct eng_prefix_key *key);
/* The longest match of the key's tokens.  Takes no references. */
struct eng_prefix_match eng_prefix_find(const struct eng_prefix *p,
                                        const struct eng_prefix_key *key);
/* A reference more to an entered node and to each before it, and a hit of each. */
void eng_prefix_take(struct eng_prefix *p, int32_t node);
/* A reference less, of this node alone; a sequence gives back its last node first.  Returns whether
 * the node is gone: it was private, and its page, if it is not being moved, is the caller's. */
bool eng_prefix_give(struct eng_prefix *p, int32_t node);

kn_page eng_prefix_page(const struct eng_prefix *p, int32_t node);
int32_t eng_prefix_depth(const struct eng_prefix *p, int32_t node);
int32_t eng_prefix_parent(const struct eng_prefix *p, int32_t node); /* of an entered one */
int32_t eng_prefix_refs(const struct eng_prefix *p, int32_t node);
bool eng_prefix_is_entered(const struct eng_prefix *p, int32_t node);
const int32_t *eng_prefix_tokens(const struct eng_prefix *p, int32_t node); /* [64], of its page */
bool eng_prefix_is_moving(const struct eng_prefix *p, int32_t node);
/* The node's page lies elsewhere from now on.  Not while it is idle and not moving. */
void eng_prefix_set_page(struct eng_prefix *p, int32_t node, kn_page page);
/* Between these two nobody drops it.  A private node given back meanwhile is kept, as of nobody,
 * and eng_prefix_moved then returns true: node and pages are gone, the pages the caller's.  A page
 * that was moved is set before. */
void eng_prefix_move(struct eng_prefix *p, int32_t node);
bool eng_prefix_moved(struct eng_prefix *p, int32_t node);

/* Idle nodes of a tier that are not moving. */
int32_t eng_prefix_idle(const struct eng_prefix *p, int tier);
/* Nodes nobody references, of all kinds: every page of theirs can be had. */
int32_t eng_prefix_spare(const struct eng_prefix *p);
/* The idle node of least rate, local or not; ENG_NODE_NONE where there is none. */
int32_t eng_prefix_worst(const struct eng_prefix *p, bool far);
/* Whether a's rate is less than b's. */
bool eng_prefix_is_worse(const struct eng_prefix *p, int32_t a, int32_t b);
/* An idle node's last descendant, or itself: what must be dropped before it. */
int32_t eng_prefix_leaf(const struct eng_prefix *p, int32_t node);
/* Drops an idle node that has no children and is not moving; its page is the caller's. */
void eng_prefix_drop(struct eng_prefix *p, int32_t node);

/* References beyond the first of each node. */
int64_t eng_prefix_shared(const struct eng_prefix *p);

int32_t eng_prefix_count(const struct eng_prefix *p);  /* of all nodes */
int32_t eng_prefix_moving(const struct eng_prefix *p); /* of these, moving; linear in the pages */
/* CHECKs the tree, its queues and its chains; linear in the pages. */
void eng_prefix_check(const struct eng_prefix *p);

#endif
