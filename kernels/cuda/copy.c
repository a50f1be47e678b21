/*
 * copy.c - see kernels/copy.h.  A thread and a stream of their own: up to COPIES_FLYING copies of
 * COPY_BYTES are in the stream, and each is issued when the rate asked for has come to it.  The
 * thread spins, for a sleep may be longer than what is in the stream takes, and a copy that comes
 * in fits is nothing to measure by (slept: 10 to 25 GB/s of 25 over PCIe, from run to run).  Where
 * the link does not give that rate, what is late is forgotten after LATE_NS: a copy that is held up
 * does not catch up for ever after.
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "config/check.h"
#include "config/clock.h"
#include "kernels/copy.h"
#include "kernels/cuda/state.h"

#define COPY_BYTES ((size_t)2 << 20)
#define COPIES_FLYING 16
#define SOURCE_BYTES ((size_t)256 << 20) /* larger than any cache on the way */
#define LATE_NS (10 * NS_PER_MS)

struct copy {
    struct kn_copy head; /* first */
    enum kn_mem mem;
    double ns_per_copy; /* 0: as fast as it goes */
    char *from, *to;    /* owned: [SOURCE_BYTES], [COPIES_FLYING * COPY_BYTES] */
    cudaStream_t stream;
    cudaEvent_t done[COPIES_FLYING];
    pthread_t thread;
    bool started;
    _Atomic bool stop;
    _Atomic uint64_t count; /* copies that have arrived */
    cudaError_t failure;    /* the thread's, until it is joined */
};

static void *copy_main(void *arg)
{
    struct copy *c = arg;
    double due = (double)clock_now_ns();
    cudaError_t e = cudaSetDevice(kn_cu_of(c->head.kn)->device);
    for (uint64_t n = 0; e == cudaSuccess && !atomic_load(&c->stop); n++) {
        const size_t slot = n % COPIES_FLYING;
        if (n >= COPIES_FLYING) {
            e = cudaEventSynchronize(c->done[slot]);
            if (e == cudaSuccess) atomic_fetch_add(&c->count, 1);
        }
        const double now = (double)clock_now_ns();
        if (due < now - (double)LATE_NS) due = now - (double)LATE_NS;
        while (c->ns_per_copy > 0 && (double)clock_now_ns() < due) sched_yield();
        due += c->ns_per_copy;
        if (e == cudaSuccess)
            e = cudaMemcpyAsync(c->to + slot * COPY_BYTES,
                                c->from + n % (SOURCE_BYTES / COPY_BYTES) * COPY_BYTES, COPY_BYTES,
                                cudaMemcpyDefault, c->stream);
        if (e == cudaSuccess) e = cudaEventRecord(c->done[slot], c->stream);
    }
    if (e == cudaSuccess) e = cudaStreamSynchronize(c->stream);
    c->failure = e;
    return NULL;
}

enum status kn_cu_copy_close(struct kn_copy *copy, char *err)
{
    struct copy *c = (struct copy *)copy;
    struct kn *kn = c->head.kn;
    struct kn_cu *cu = kn_cu_of(kn);
    atomic_store(&c->stop, true);
    if (c->started) pthread_join(c->thread, NULL);
    const bool ok = kn_cu_ok(cu, c->failure, "in a background copy");
    for (int i = 0; i < COPIES_FLYING; i++)
        if (c->done[i]) (void)cudaEventDestroy(c->done[i]);
    if (c->stream) (void)cudaStreamDestroy(c->stream);
    if (c->to) kn_free(kn, KN_MEM_LOCAL, c->to, COPIES_FLYING * COPY_BYTES);
    if (c->from) kn_free(kn, c->mem, c->from, SOURCE_BYTES);
    free(c);
    return ok ? ST_OK : err_set(err, ST_DEVICE, "%s", cu->failure);
}

static enum status start(struct copy *c, int device, char *err)
{
    struct kn *kn = c->head.kn;
    struct kn_cu *cu = kn_cu_of(kn);
    enum status st;
    if ((st = kn_alloc(kn, c->mem, device, SOURCE_BYTES, (void **)&c->from, err)) ||
        (st = kn_alloc(kn, KN_MEM_LOCAL, 0, COPIES_FLYING * COPY_BYTES, (void **)&c->to, err)))
        return st;
    bool ok = kn_cu_enter(cu) &&
              kn_cu_ok(cu, cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking),
                       "to make a stream");
    for (int i = 0; i < COPIES_FLYING && ok; i++)
        ok = kn_cu_ok(cu, cudaEventCreateWithFlags(&c->done[i], cudaEventDisableTiming),
                      "to make an event");
    if (!ok) return err_set(err, ST_DEVICE, "%s", cu->failure);
    c->started = pthread_create(&c->thread, NULL, copy_main, c) == 0;
    return c->started ? ST_OK : err_set(err, ST_NOMEM, "a background copy's thread cannot start");
}

enum status kn_cu_copy_open(struct kn *kn, enum kn_mem mem, int device, double bytes_per_s,
                            struct kn_copy **out, char *err)
{
    struct copy *c = calloc(1, sizeof *c);
    if (!c) return err_set(err, ST_NOMEM, "no memory for a background copy");
    c->head.kn = kn;
    c->mem = mem;
    c->ns_per_copy = bytes_per_s > 0 ? (double)COPY_BYTES / bytes_per_s * 1e9 : 0;
    enum status st = start(c, device, err);
    if (st) (void)!kn_cu_copy_close(&c->head, NULL);
    else *out = &c->head;
    return st;
}

uint64_t kn_cu_copy_bytes(const struct kn_copy *copy)
{
    return atomic_load(&((const struct copy *)copy)->count) * COPY_BYTES;
}
