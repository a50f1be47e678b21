/*
 * prefix.h - which KV pages hold which tokens: a radix tree of pages, so that a sequence that
 * begins as another one did takes its keys and values from there instead of computing them.
 *
 *     (salt) --- page of tokens 0..63 --- page of tokens 64..127 --- ...
 *                                    \--- page of other tokens 64..127
 *
 * A node is a full page; its key is its 64 tokens and all those before it: the path from a root,
 * of which there is one for every salt in use.  Keys and values of a token depend on all tokens
 * before it, and on nothing else (kernels.h, invariant 2), so equal paths mean equal bytes.
 *
 * Whose pages.  Every full page of a running sequence is a node.  It begins outside the tree, its
 * tokens perhaps not known yet (a token sampled on the device becomes known a step later), with one
 * reference, its sequence's (eng_prefix_make).  As soon as the tokens are known it is entered into
 * the tree (eng_prefix_enter), or given up for the node that is there already.  Others that match
 * it take references of their own; and when the last is given back the page stays, idle, until its
 * room is needed.
 *
 *      make                enter                        drop (last reference given, cache full)
 *   (none) ---> PRIVATE ------------> ENTERED, in use ----> ... ---> (none)
 *                  | unref              |  ^ ref, found by match
 *                  v              unref v  |
 *               (none)                ENTERED, idle --- drop ---> (none)
 *
 * A reference to a node is one to every node before it, so idle nodes have idle children alone, and
 * any idle page can be had by dropping the idle ones behind it first.
 *
 * Matching trusts no hash: a hash of (parent, tokens) picks a chain, and the tokens are compared.
 * What ends inside a page is found by comparing tokens with the children's, at most
 * ENG_PREFIX_TAIL_LOOKS of them, the youngest first.
 *
 * Pure: no clock, no I/O, no allocation after open; 256 bytes of tokens a page.  The scheduler's,
 * hence the engine thread's.
 */
#ifndef DAKD_ENGINE_PREFIX_H
#define DAKD_ENGINE_PREFIX_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"

/* Bytes of a salt. */
#define ENG_CACHE_SALT_MAX 128

#endif
