/*
 * ring.h - places in a ring of bytes, taken one after another: what lies where, and whose place it
 * was before.  Pure: who uses a place, and when that is over, is the caller's.
 *
 *     bytes   |  7  |   8   |        |  5  |     6     |
 *                            ^ the next place; it may take what is 5's, then 6's
 *
 * A place is one run of bytes: one that does not fit before the end lies at the beginning.  Nothing
 * is given back.  Users come in the order in which places are taken, so that whoever waits for one
 * has waited for all before it; a place says which is the last of those it must wait for.
 *
 * Invariants
 *  1. Whoever waits as told never shares a byte with another.
 *  2. A take waits for none that came later, hence nobody waits for ever.
 */
#ifndef DAKD_KERNELS_RING_H
#define DAKD_KERNELS_RING_H

#include <stddef.h>
#include <stdint.h>

#define KN_RING_PLACES 64 /* that are known; for an older one, the oldest of these is waited for   \
                           */

struct kn_ring {
    size_t bytes, at; /* `at`: where the next place begins, if it fits */
    uint64_t taken;   /* places, numbered from 1 */
    struct {
        size_t begin, end;
    } place[KN_RING_PLACES]; /* of take n at n % KN_RING_PLACES */
};

void kn_ring_init(struct kn_ring *r, size_t bytes);
/* Where the next `bytes` lie, 1..r->bytes of them; the take is number r->taken now.  *after: the
 * take whose user must be done before they are written, 0 where none must. */
size_t kn_ring_take(struct kn_ring *r, size_t bytes, uint64_t *after);

#endif
