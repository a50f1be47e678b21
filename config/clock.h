/* clock.h - the two clocks.  Pure modules take `now_ns` as an argument instead of calling these. */
#ifndef DAKD_CONFIG_CLOCK_H
#define DAKD_CONFIG_CLOCK_H

#include <stdint.h>

#define NS_PER_S 1000000000ull
#define NS_PER_MS 1000000ull

/* Monotonic nanoseconds since an arbitrary start. */
uint64_t clock_now_ns(void);
/* Wall clock, seconds since 1970-01-01 UTC. */
int64_t clock_unix_s(void);
/* Such a time as "2026-01-31T23:59:59Z"; up to the year 9999. */
#define CLOCK_TEXT_CAP 32
const char *clock_text(int64_t unix_s, char text[CLOCK_TEXT_CAP]);

#endif
