/*
 * attention.c - causal grouped-query attention over KV pages: cuts the batch into items of one
 * kv-head by a few consecutive tokens.  How many tokens an item has decides how often a page is
 * widened, and nothing else: few where there are few items for the threads, otherwise what fills 24
 * rows.
 */
#include "kernels/cpu/cpu.h"

enum { ITEMS_PER_THREAD = 4 };

struct attention_job {
    const struct kn_cpu *cpu;
    const struct kn_batch *batch;
    const struct kn_attention_args *args;
    int32_t tokens_per_item;
};

static void attention_item(const void *arg, int32_t index, int worker)
{
    const struct attention_job *job = arg;
    const struct kn_batch *batch = job->batch;
    int32_t kv_heads = job->args->kv->kv_heads;
    int32_t begin = index / kv_heads * job->tokens_per_item;
    int32_t end = begin + job->tokens_per_item;
    if (end > batch->token_count) end = batch->token_count;
    struct kn_cpu_attention_item item = {
        .batch = batch, .args = job->args, .kv_head = index % kv_heads};
    while (begin < end) {
        item.seq = batch->token_seq[begin];
        item.token_begin = begin;
        while (begin < end && batch->token_seq[begin] == item.seq) begin++;
        item.token_count = begin - item.token_begin;
        job->cpu->isa->attention(&item, &job->cpu->scratch[worker].attention);
    }
}

void kn_cpu_attention(struct kn *kn, const struct kn_batch *batch,
                      const struct kn_attention_args *a)
{
    struct kn_cpu *cpu = (struct kn_cpu *)kn;
    int64_t kv_heads = a->kv->kv_heads;
    int64_t fill = KN_CPU_ATTENTION_ROWS / (a->q_heads / kv_heads);
    int64_t spread =
        batch->token_count * kv_heads / (ITEMS_PER_THREAD * kn_pool_thread_count(cpu->pool));
    int64_t tokens = fill < spread ? fill : spread;
    if (tokens < 1) tokens = 1;
    struct attention_job job = {cpu, batch, a, (int32_t)tokens};
    int64_t item_count = (batch->token_count + tokens - 1) / tokens * kv_heads;
    kn_pool_run(cpu->pool, attention_item, &job, (int32_t)item_count);
}
