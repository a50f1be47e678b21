/*
 * bench_clock.h - when the engine's steps were over, taken where the engine wakes its caller: once
 * a step and on the engine's thread.  Tokens are there then, and a caller that is scheduled late
 * does not disturb the figures: it only takes events off the ring.
 */
#ifndef DAKD_SERVER_BENCH_CLOCK_H
#define DAKD_SERVER_BENCH_CLOCK_H

#include <semaphore.h>
#include <stdatomic.h>

#include "engine/engine.h"

/* The engine's counters when a step was over, and when that was. */
struct srv_bench_mark {
    uint64_t ns, device_ns, host_ns, played;
    struct kn_traffic traffic[KN_TIER_MAX];
    uint64_t kv_read_bytes[KN_TIER_MAX];
};

struct srv_bench_clock {
    sem_t wake;                /* the engine has events */
    struct eng_engine *engine; /* borrowed */
    /* Marks of all steps since the engine was opened, written by its thread once `marking`; those
     * below `marked` may be read. */
    struct srv_bench_mark *marks; /* [mark_max], owned */
    uint64_t mark_max;
    _Atomic bool marking;
    _Atomic uint64_t marked;
};

/* Room for so many steps of one engine.  ST_NOMEM. */
MUST_USE enum status srv_bench_clock_open(struct srv_bench_clock *c, uint64_t mark_max, char *err);
void srv_bench_clock_close(struct srv_bench_clock *c);
/* Before an engine's first step, and before it is closed. */
void srv_bench_clock_start(struct srv_bench_clock *c, struct eng_engine *engine);
void srv_bench_clock_stop(struct srv_bench_clock *c);
/* eng_config.wake, with the clock as its user.  CHECKs that there is room. */
void srv_bench_clock_wake(void *clock);
/* Whether the end of a step is known. */
bool srv_bench_clock_has(struct srv_bench_clock *c, uint64_t step);
/* Sleeps until the engine wakes its caller, or until_ns of clock_now_ns (0: without end); true for
 * the former. */
bool srv_bench_clock_wait(struct srv_bench_clock *c, uint64_t until_ns);

#endif
