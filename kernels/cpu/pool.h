/*
 * pool.h - a fixed set of threads that share the items of one loop.
 *
 * kn_pool_run calls fn(arg, item, worker) once for each item in [0, item_count), on the calling
 * thread (worker 0) and the pool's own (workers 1 .. thread_count - 1), in no stated order, and
 * returns when all are done: what the items wrote is then visible to the caller.  It allocates
 * nothing.  One thread at a time may call it, and items may not.
 */
#ifndef DAKD_KERNELS_CPU_POOL_H
#define DAKD_KERNELS_CPU_POOL_H

#include <stdint.h>

#include "config/status.h"

struct kn_pool;
typedef void kn_pool_fn(const void *arg, int32_t item, int worker);

/* ST_NOMEM where memory or a thread was refused.  The caller's thread counts as one of
 * thread_count. */
MUST_USE enum status kn_pool_open(int thread_count, struct kn_pool **out, char *err);
void kn_pool_close(struct kn_pool *pool); /* joins the threads; NULL is fine */
int kn_pool_thread_count(const struct kn_pool *pool);
void kn_pool_run(struct kn_pool *pool, kn_pool_fn *fn, const void *arg, int32_t item_count);
/* Cores this process may run on, at least 1. */
int kn_pool_core_count(void);

#endif
