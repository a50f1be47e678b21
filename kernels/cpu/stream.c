/*
 * stream.c - reading memory from end to end, as fast as all threads can: what the probe of
 * bandwidth times.  Items of 256 KB are shared in the pool; four sums side by side keep enough
 * loads in flight, and stay in registers.
 */
#include "kernels/cpu/cpu.h"

enum { ITEM_BYTES = 256 << 10, VECTOR_BYTES = 32, SUMS = 4 };

/* Words of memory, whatever was stored there. */
typedef uint64_t vector __attribute__((vector_size(VECTOR_BYTES), may_alias));
_Static_assert(KN_ALIGN % (SUMS * VECTOR_BYTES) == 0, "items are whole turns of the loop");

struct stream_job {
    struct kn_cpu *cpu;
    const char *base;
    size_t bytes;
};

static void stream_item(const void *arg, int32_t item, int worker)
{
    const struct stream_job *job = arg;
    size_t begin = (size_t)item * ITEM_BYTES;
    size_t end = begin + ITEM_BYTES < job->bytes ? begin + ITEM_BYTES : job->bytes;
    const vector *p = (const vector *)(job->base + begin),
                 *last = (const vector *)(job->base + end);
    vector a = {0}, b = {0}, c = {0}, d = {0};
    uint64_t sum = 0;
    (void)worker;
    for (; p < last; p += SUMS) {
        a += p[0];
        b += p[1];
        c += p[2];
        d += p[3];
    }
    a += b + c + d;
    for (int i = 0; i < VECTOR_BYTES / 8; i++) sum += a[i];
    atomic_fetch_add_explicit(&job->cpu->stream_sum, sum, memory_order_relaxed);
}

void kn_cpu_stream_read(struct kn *kn, const void *ptr, size_t bytes)
{
    struct stream_job job = {(struct kn_cpu *)kn, ptr, bytes};
    int32_t items = (int32_t)((bytes + ITEM_BYTES - 1) / ITEM_BYTES);
    kn_pool_run(job.cpu->pool, stream_item, &job, items);
}
