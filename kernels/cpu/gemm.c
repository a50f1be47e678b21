/*
 * gemm.c - out = epilogue(in . W^T + bias): cuts the product into items of one tile (64 output
 * rows) by up to 48 tokens. An item does its outputs from the first input to the last, so no two
 * threads share a sum.  Items of one tile follow one another: threads that take them at the same
 * time find its blocks in the shared cache.
 */
#include "kernels/cpu/cpu.h"

struct gemm_job {
    const struct kn_cpu *cpu;
    const struct kn_gemm_args *args;
    int32_t token_block_count;
};

static void gemm_item(const void *arg, int32_t item, int worker)
{
    const struct gemm_job *job = arg;
    int32_t tile = item / job->token_block_count;
    int32_t begin = item % job->token_block_count * KN_CPU_GEMM_TOKENS;
    int32_t left = job->args->row_count - begin;
    int32_t count = left < KN_CPU_GEMM_TOKENS ? left : KN_CPU_GEMM_TOKENS;
    job->cpu->isa->gemm(job->args, tile, begin, count, &job->cpu->scratch[worker].gemm);
}

void kn_cpu_gemm(struct kn *kn, const struct kn_gemm_args *a)
{
    struct kn_cpu *cpu = (struct kn_cpu *)kn;
    int32_t blocks = (a->row_count + KN_CPU_GEMM_TOKENS - 1) / KN_CPU_GEMM_TOKENS;
    struct gemm_job job = {cpu, a, blocks};
    for (int t = 0; t < KN_TIER_MAX; t++)
        cpu->tier_bytes[t] += (uint64_t)a->w->span[t].tile_count * kn_weight_tile_bytes(a->w);
    size_t element_count = (size_t)a->w->rows * (size_t)a->w->cols;
    kn_cpu_for(cpu, gemm_item, &job, a->w->tile_count * blocks, element_count);
}
