/* A ring of bytes: places by hand, and random takes against a ring that remembers everything. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "config/check.h"
#include "kernels/ring.h"
#include "tests/test_random.h"

static void take(struct kn_ring *r, size_t bytes, size_t at, uint64_t after)
{
    uint64_t got;
    assert_int_equal(kn_ring_take(r, bytes, &got), at);
    assert_int_equal(got, after);
}

static void test_by_hand(void **state)
{
    (void)state;
    struct kn_ring r;
    kn_ring_init(&r, 100);
    take(&r, 40, 0, 0);
    take(&r, 40, 40, 0);
    take(&r, 20, 80, 0); /* to the very end */
    take(&r, 10, 0, 1);
    take(&r, 10, 10, 1); /* still the first one's bytes */
    take(&r, 30, 20, 2);
    take(&r, 60, 0, 6);  /* 50 are left before the end: from the beginning, over 4, 5, 6 and 2 */
    take(&r, 100, 0, 7); /* all of it; it reaches to 3's bytes, and 7 came later */
    take(&r, 100, 0, 8);
    take(&r, 1, 0, 9);
    assert_int_equal(r.taken, 10);
}

/* Who has every byte, by the number of its take. */
enum { BYTES = 997, TAKES = 20000 };

static void check_random(size_t bytes_max)
{
    static uint64_t owner[BYTES];
    struct kn_ring r;
    size_t waits = 0;
    for (size_t i = 0; i < BYTES; i++) owner[i] = 0;
    kn_ring_init(&r, BYTES);
    for (uint64_t n = 1; n <= TAKES; n++) {
        size_t bytes = 1 + (size_t)(test_random() % bytes_max);
        uint64_t after, last = 0;
        size_t at = kn_ring_take(&r, bytes, &after);
        assert_true(at + bytes <= BYTES && r.taken == n && after < n);
        for (size_t i = at; i < at + bytes; i++) {
            if (owner[i] > last) last = owner[i];
            owner[i] = n;
        }
        /* Nobody's bytes are taken without waiting for him; and nobody waits for more than the last
         * of them, or the oldest that is known. */
        assert_true(after >= last);
        uint64_t oldest = n > KN_RING_PLACES ? n - KN_RING_PLACES : 0;
        assert_true(after == last || (last > 0 && after == oldest) ||
                    (last == 0 && after <= oldest));
        waits += after > 0;
    }
    assert_true(waits > TAKES / 4);
}

static void test_random_takes(void **state)
{
    (void)state;
    test_seed();
    check_random(BYTES);
    check_random(300);
    check_random(20); /* more places than are known */
    check_random(1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_by_hand),
                                       cmocka_unit_test(test_random_takes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
