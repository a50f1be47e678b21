#include "config/clock.h"

#include <time.h>

#include "config/check.h"

uint64_t clock_now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

int64_t clock_unix_s(void)
{
    return (int64_t)time(NULL);
}

const char *clock_text(int64_t unix_s, char text[CLOCK_TEXT_CAP])
{
    struct tm tm;
    const time_t t = (time_t)unix_s;
    CHECK(gmtime_r(&t, &tm) && strftime(text, CLOCK_TEXT_CAP, "%Y-%m-%dT%H:%M:%SZ", &tm) > 0);
    return text;
}
