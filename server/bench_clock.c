#include "server/bench_clock.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "config/check.h"
#include "config/clock.h"

enum status srv_bench_clock_open(struct srv_bench_clock *c, uint64_t mark_max, char *err)
{
    memset(c, 0, sizeof *c);
    CHECK(sem_init(&c->wake, 0, 0) == 0);
    c->mark_max = mark_max;
    c->marks = calloc(mark_max, sizeof *c->marks);
    if (c->marks) return ST_OK;
    sem_destroy(&c->wake);
    return err_set(err, ST_NOMEM, "no memory for the times of %llu steps",
                   (unsigned long long)mark_max);
}

void srv_bench_clock_close(struct srv_bench_clock *c)
{
    if (!c->marks) return;
    free(c->marks);
    c->marks = NULL;
    sem_destroy(&c->wake);
}

void srv_bench_clock_start(struct srv_bench_clock *c, struct eng_engine *engine)
{
    c->engine = engine;
    atomic_store(&c->marked, 0);
    atomic_store(&c->marking, true);
}

void srv_bench_clock_stop(struct srv_bench_clock *c)
{
    atomic_store(&c->marking, false);
}

void srv_bench_clock_wake(void *clock)
{
    struct srv_bench_clock *c = clock;
    if (atomic_load(&c->marking)) {
        struct eng_stats t;
        uint64_t now = clock_now_ns(), marked = atomic_load(&c->marked);
        eng_stats(c->engine, &t);
        if (t.step_count > marked) { /* else woken amid a step, or idle */
            CHECK(marked < c->mark_max);
            struct srv_bench_mark *m = &c->marks[marked];
            *m = (struct srv_bench_mark){.ns = now,
                                         .device_ns = t.device_ns_sum,
                                         .host_ns = t.host_ns_sum,
                                         .played = t.played_step_count};
            memcpy(m->traffic, t.traffic, sizeof t.traffic);
            memcpy(m->kv_read_bytes, t.kv_read_bytes, sizeof t.kv_read_bytes);
            atomic_store(&c->marked, marked + 1);
        }
    }
    CHECK(sem_post(&c->wake) == 0);
}

bool srv_bench_clock_has(struct srv_bench_clock *c, uint64_t step)
{
    return atomic_load(&c->marked) > step;
}

bool srv_bench_clock_wait(struct srv_bench_clock *c, uint64_t until_ns)
{
    struct timespec t = {.tv_sec = (time_t)(until_ns / NS_PER_S),
                         .tv_nsec = (long)(until_ns % NS_PER_S)};
    for (;;) {
        int rc = until_ns ? sem_clockwait(&c->wake, CLOCK_MONOTONIC, &t) : sem_wait(&c->wake);
        if (rc == 0) return true;
        if (errno == ETIMEDOUT) return false; /* else a signal came between */
    }
}
