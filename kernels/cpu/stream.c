/*
 * stream.c - reading memory from end to end, as fast as all threads can: what the probe of
 * bandwidth times.  Items of 256 KB are shared in the pool; eight sums side by side keep enough
 * loads in flight for the compiler's vectors.
 */
#include <string.h>

#include "kernels/cpu/cpu.h"

enum { ITEM_BYTES = 256 << 10, LANES = 8 };

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
    uint64_t sum[LANES] = {0}, words[LANES];
    (void)worker;
    for (size_t at = begin; at < end; at += sizeof words) {
        memcpy(words, job->base + at, sizeof words);
        for (int i = 0; i < LANES; i++) sum[i] += words[i];
    }
    for (int i = 1; i < LANES; i++) sum[0] += sum[i];
    atomic_fetch_add_explicit(&job->cpu->stream_sum, sum[0], memory_order_relaxed);
}

void kn_cpu_stream_read(struct kn *kn, const void *ptr, size_t bytes)
{
    struct stream_job job = {(struct kn_cpu *)kn, ptr, bytes};
    int32_t items = (int32_t)((bytes + ITEM_BYTES - 1) / ITEM_BYTES);
    kn_pool_run(job.cpu->pool, stream_item, &job, items);
}
