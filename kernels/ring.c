#include "kernels/ring.h"

#include "config/check.h"

void kn_ring_init(struct kn_ring *r, size_t bytes)
{
    *r = (struct kn_ring){.bytes = bytes};
}

/* The last take that has one of these bytes.  Of those no longer known, any that has was before the
 * oldest known. */
static uint64_t last_there(const struct kn_ring *r, size_t begin, size_t end)
{
    uint64_t n = r->taken;
    for (; n > 0 && r->taken - n < KN_RING_PLACES; n--) {
        size_t i = n % KN_RING_PLACES;
        if (r->place[i].begin < end && begin < r->place[i].end) return n;
    }
    return n == 0 ? 0 : n + 1;
}

size_t kn_ring_take(struct kn_ring *r, size_t bytes, uint64_t *after)
{
    CHECK(bytes > 0 && bytes <= r->bytes);
    size_t begin = bytes <= r->bytes - r->at ? r->at : 0;
    *after = last_there(r, begin, begin + bytes);
    r->at = begin + bytes;
    r->taken++;
    r->place[r->taken % KN_RING_PLACES].begin = begin;
    r->place[r->taken % KN_RING_PLACES].end = begin + bytes;
    return begin;
}
