/*
 * pool.c - see pool.h.
 *
 * A run is a generation.  The caller writes the loop's description, then adds one to `generation`;
 * a worker that sees the new number takes items from `next` until none is left and leaves
 * `running`; the last to leave wakes the caller.  Every worker takes part in every generation, so
 * the description is never rewritten under a late reader.
 *
 *     worker: asleep or spinning --generation + 1 (kn_pool_run)--> working --items gone (leave)-->
 * asleep or spinning caller: working --items gone--> waiting for running == 0 --last leave-->
 * returned
 *
 * A forward pass is hundreds of short loops one after another, so both sides spin for some tens of
 * microseconds before they sleep on a condition variable.  With more threads than cores, spinning
 * would only keep the others from running, and is left out.
 */
#include "kernels/cpu/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config/check.h"

enum { SPIN_COUNT = 1000 };

struct kn_pool {
    int thread_count; /* the caller's included */
    int spin_count;
    pthread_mutex_t mutex; /* guards only sleeping and waking */
    pthread_cond_t started, finished;
    atomic_uint generation;
    atomic_int running; /* workers that have not left the generation */
    atomic_int next;    /* first item not taken */
    bool stop;          /* these are written before, and read after, generation changes */
    kn_pool_fn *fn;
    const void *arg;
    int32_t item_count;
    struct worker {
        struct kn_pool *pool; /* borrowed */
        pthread_t thread;
        int index;
    } workers[]; /* [thread_count], the first unused */
};

static void pause_briefly(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void take_items(struct kn_pool *pool, int worker)
{
    for (;;) {
        int item = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (item >= pool->item_count) return;
        pool->fn(pool->arg, item, worker);
    }
}

static void leave(struct kn_pool *pool)
{
    if (atomic_fetch_sub_explicit(&pool->running, 1, memory_order_acq_rel) != 1) return;
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_signal(&pool->finished);
    pthread_mutex_unlock(&pool->mutex);
}

/* Returns the number of the generation after `seen`. */
static unsigned wait_generation(struct kn_pool *pool, unsigned seen)
{
    for (int i = 0; i < pool->spin_count; i++) {
        unsigned now = atomic_load_explicit(&pool->generation, memory_order_acquire);
        if (now != seen) return now;
        pause_briefly();
    }
    pthread_mutex_lock(&pool->mutex);
    while (atomic_load_explicit(&pool->generation, memory_order_acquire) == seen)
        pthread_cond_wait(&pool->started, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
    return seen + 1;
}

static void wait_finished(struct kn_pool *pool)
{
    for (int i = 0; i < pool->spin_count; i++) {
        if (atomic_load_explicit(&pool->running, memory_order_acquire) == 0) return;
        pause_briefly();
    }
    pthread_mutex_lock(&pool->mutex);
    while (atomic_load_explicit(&pool->running, memory_order_acquire) != 0)
        pthread_cond_wait(&pool->finished, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
}

static void start_generation(struct kn_pool *pool)
{
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add_explicit(&pool->generation, 1, memory_order_release);
    pthread_cond_broadcast(&pool->started);
    pthread_mutex_unlock(&pool->mutex);
}

static void *worker_main(void *arg)
{
    struct worker *self = arg;
    struct kn_pool *pool = self->pool;
    unsigned seen = 0;
    for (;;) {
        seen = wait_generation(pool, seen);
        if (pool->stop) return NULL;
        take_items(pool, self->index);
        leave(pool);
    }
}

int kn_pool_core_count(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
    long online = sysconf(_SC_NPROCESSORS_ONLN); /* more cores than a cpu_set_t holds */
    return online > 0 ? (int)online : 1;
}

static void stop_workers(struct kn_pool *pool, int started_count)
{
    pool->stop = true;
    start_generation(pool);
    for (int i = 1; i < started_count; i++) pthread_join(pool->workers[i].thread, NULL);
    pthread_cond_destroy(&pool->finished);
    pthread_cond_destroy(&pool->started);
    pthread_mutex_destroy(&pool->mutex);
    free(pool);
}

enum status kn_pool_open(int thread_count, struct kn_pool **out, char *err)
{
    CHECK(thread_count >= 1);
    struct kn_pool *pool = calloc(1, sizeof *pool + (size_t)thread_count * sizeof pool->workers[0]);
    if (!pool)
        return err_set(err, ST_NOMEM, "out of memory for a pool of %d threads", thread_count);
    pool->thread_count = thread_count;
    pool->spin_count = thread_count <= kn_pool_core_count() ? SPIN_COUNT : 0;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->started, NULL);
    pthread_cond_init(&pool->finished, NULL);
    for (int i = 1; i < thread_count; i++) {
        struct worker *w = &pool->workers[i];
        *w = (struct worker){.pool = pool, .index = i};
        int error = pthread_create(&w->thread, NULL, worker_main, w);
        if (error) {
            stop_workers(pool, i);
            return err_set(err, ST_NOMEM,
                           "cannot start compute thread %d of %d: %s; set fewer threads", i + 1,
                           thread_count, strerror(error));
        }
    }
    *out = pool;
    return ST_OK;
}

void kn_pool_close(struct kn_pool *pool)
{
    if (pool) stop_workers(pool, pool->thread_count);
}

int kn_pool_thread_count(const struct kn_pool *pool)
{
    return pool->thread_count;
}

void kn_pool_run(struct kn_pool *pool, kn_pool_fn *fn, const void *arg, int32_t item_count)
{
    if (pool->thread_count == 1 || item_count <= 1) {
        for (int32_t i = 0; i < item_count; i++) fn(arg, i, 0);
        return;
    }
    /* Every worker takes one number past the end, which must not overflow. */
    CHECK(item_count <= INT32_MAX - pool->thread_count);
    pool->fn = fn;
    pool->arg = arg;
    pool->item_count = item_count;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->running, pool->thread_count - 1, memory_order_relaxed);
    start_generation(pool);
    take_items(pool, 0);
    wait_finished(pool);
}
