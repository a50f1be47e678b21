/*
 * move.c - pages copied from one pool to another, by all threads: a page is some megabytes of a
 * large model, and a core alone does not fill the memory's bus.
 */
#include <string.h>

#include "kernels/cpu/cpu.h"

struct move_job {
    const struct kn_kv *kv;
    const struct kn_page_move *moves;
};

/* One layer of one page. */
static void move_layer(const void *arg, int32_t item, int worker)
{
    const struct move_job *job = arg;
    const struct kn_page_move *m = &job->moves[item / job->kv->layer_count];
    const size_t bytes = kn_kv_layer_bytes(job->kv);
    const size_t at = (size_t)(item % job->kv->layer_count) * bytes;
    (void)worker;
    memcpy(kn_kv_page(job->kv, m->to) + at, kn_kv_page(job->kv, m->from) + at, bytes);
}

/* Page after page, for one may be copied on to a third. */
void kn_cpu_move_pages(struct kn *kn, const struct kn_kv *kv, const struct kn_page_move *moves,
                       int32_t count)
{
    struct kn_cpu *cpu = (struct kn_cpu *)kn;
    for (int32_t i = 0; i < count; i++) {
        const struct move_job job = {kv, &moves[i]};
        kn_cpu_for(cpu, move_layer, &job, kv->layer_count, kn_kv_page_bytes(kv) / sizeof(float));
        cpu->moved_bytes[kn_page_tier(moves[i].from)] += kn_kv_page_bytes(kv);
        if (kn_page_tier(moves[i].to) != kn_page_tier(moves[i].from))
            cpu->moved_bytes[kn_page_tier(moves[i].to)] += kn_kv_page_bytes(kv);
    }
    cpu->moved_count += (uint64_t)count;
}
