/*
 * residency.h - which KV pages lie in local memory and which behind a link, judged by what steps
 * take.  Pure: no clock, no I/O, no memory of its own.
 *
 * Attention reads a page where it lies, local pages and those behind the link side by side.  With N
 * and F of them a step's attention takes at least
 *
 *     max(N b / B_local, F b / B_link)        b bytes a page
 *
 * so up to the free fraction F / (N + F) = B_link / (B_link + B_local) pages behind the link cost
 * nothing, and beyond it each costs b / B_link a step, whichever it is.  Hence the order in which
 * pages leave:
 *
 *  1. those that the next step does not read: they cost nothing yet, and leave the free fraction
 *     to those that must leave later;
 *  2. of the sequences that it reads, the one with the least share behind the link, so that all
 *     have the same: what ends, or is cancelled, then gives back local pages and pages behind the
 *     link in proportion, and no sequence is the one that the others wait for;
 *  3. of a sequence its oldest page: where attention has a window it is the first to fall out.
 *
 * and the reverse for their way back, which pays as soon as a step reads more than the free
 * fraction, for a page costs the link once what it cost it every step.
 *
 * The best share.  Up to the free fraction a page behind the link even makes attention shorter, so
 * pages leave although local memory has room, where a step wins worth_s by it.  Where the copy
 * engine brings weights over the same link through all of a step, pages have only what it leaves:
 *
 *     max(other + max(N b / B_local, F b / B_link), busy + F b / B_link)
 *
 * with what a step takes beside attention, and what it keeps the link busy for otherwise; both
 * curves are straight lines in F, and the least is where they cross, or at the free fraction.  As
 * sequences come, grow and go the best number changes by little each step, and pages do not go back
 * and forth: they leave when an eighth of it is missing, and return when it is exceeded.
 */
#ifndef DAKD_OFFLOAD_RESIDENCY_H
#define DAKD_OFFLOAD_RESIDENCY_H

#include <stdbool.h>
#include <stdint.h>

struct off_residency {
    uint64_t page_bytes;
    /* > 0: what kernels read, and what the copy engine moves beside them. */
    double local_bytes_per_s, link_bytes_per_s, copy_bytes_per_s;
    double worth_s; /* that a step must win before pages leave which local memory has room for */
    /* Of a step beside its attention: how long it takes, and what the copy engine brings over the
     * pages' link meanwhile; both 0 where that brings nothing. */
    double other_s, busy_s;
};

/* What attention must take where a step reads so many pages. */
double off_residency_step_s(const struct off_residency *r, int64_t near, int64_t far);
/* What it may be expected to take: near the balance of link and local memory neither reaches its
 * rate.  With 7 % of the KV over an H200's NVLink (8B, 8 layers, 64 x 8,192 tokens) a step took
 * 5.04 ms, 0.64 above what its bytes need, a fifth of the link's 3.1. */
double off_residency_likely_s(const struct off_residency *r, int64_t near, int64_t far);
/* Whether steps of one more than `count` sequences, which take `with_s`, give more tokens a second
 * than those of `count`, which take `without_s`: by a tenth of the per cent that they take longer,
 * for where each adds the same time tokens a second would rise for ever, by ever less. */
bool off_residency_gains(int32_t count, double without_s, double with_s);
/* How many of the pages that a step reads may lie behind the link for nothing. */
int64_t off_residency_free(const struct off_residency *r, int64_t pages);
/* How many of them may, at most, before what else crosses the link in the same step waits. */
int64_t off_residency_balance(const struct off_residency *r, int64_t pages);
/* How many of them should: those of the shortest step, or 0 where it is hardly shorter. */
int64_t off_residency_best(const struct off_residency *r, int64_t pages);
/* How many lie there in the long run, where local memory has room for `near` of them. */
int64_t off_residency_steady(const struct off_residency *r, int64_t pages, int64_t near);
/* How many pages are moved in so many seconds, rounded down. */
int64_t off_residency_moves(const struct off_residency *r, double seconds);

/* A sequence, as far as its pages may be chosen. */
struct off_residency_seq {
    int32_t near; /* full pages in local memory, not on their way */
    int32_t far;  /* pages behind the link, or on their way there */
    bool read;    /* by the next step */
};
/* Whether a page of a leaves before one of b, both having near ones: a strict order. */
bool off_residency_leaves(const struct off_residency_seq *a, const struct off_residency_seq *b);
/* Whether a page of a comes back before one of b, both having far ones. */
bool off_residency_returns(const struct off_residency_seq *a, const struct off_residency_seq *b);
/* How many pages of those that the next step reads, near and far ones, should leave beside it
 * though nobody needs their room: at most what the copy engine moves in `seconds`, or one. */
int64_t off_residency_leave_count(const struct off_residency *r, int64_t near, int64_t far,
                                  double seconds);
/* How many pages should come back beside the next step, of `seconds` as far as is known, which
 * reads near and far ones, into `room` local pages: at most what the copy engine moves meanwhile,
 * or one. */
int64_t off_residency_return_count(const struct off_residency *r, int64_t near, int64_t far,
                                   int64_t room, double seconds);

#endif
