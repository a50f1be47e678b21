/*
 * cpu.c - opening the CPU backend, and its memory.  The reference for every other backend, and what
 * runs where there is no GPU.  Operations finish before they return, so kn_sync has nothing to wait
 * for and nothing can fail late.
 *
 * All kinds of kn_mem are anonymous private mappings: page-aligned, zero, and returned to the
 * system when freed.  Large ones ask for huge pages, which weights read from end to end repay.
 */
#include "kernels/cpu/cpu.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "config/check.h"
#include "config/clock.h"

enum { THREADS_MAX = 1024, INLINE_ELEMENTS_MAX = 16384 };
#define MAP_UNIT ((size_t)4096)
#define HUGE_UNIT ((size_t)2 << 20)

static struct kn_cpu *cpu_of(struct kn *kn)
{
    return (struct kn_cpu *)kn;
}

/* NULL where memory is refused, or bytes cannot be rounded up. */
static void *map_zeroed(size_t bytes)
{
    if (bytes > SIZE_MAX - MAP_UNIT) return NULL;
    size_t mapped = round_up(size_max(bytes, 1), MAP_UNIT);
    void *p = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
    if (mapped >= HUGE_UNIT && madvise(p, mapped, MADV_HUGEPAGE)) {
        /* A kernel without huge pages: small ones serve. */
    }
    return p;
}

static void unmap(void *p, size_t bytes)
{
    CHECK(munmap(p, round_up(size_max(bytes, 1), MAP_UNIT)) == 0);
}

static enum status cpu_alloc(struct kn *kn, enum kn_mem mem, int device, size_t bytes, void **out,
                             char *err)
{
    (void)kn, (void)mem, (void)device;
    *out = map_zeroed(bytes);
    if (*out) return ST_OK;
    return err_set(err, ST_NOMEM, "cannot allocate %zu bytes (%.1f GiB) of memory", bytes,
                   (double)bytes / (1 << 30));
}

static void cpu_free(struct kn *kn, enum kn_mem mem, void *ptr, size_t bytes)
{
    (void)kn, (void)mem;
    unmap(ptr, bytes);
}

static enum status cpu_upload(struct kn *kn, void *dst, const void *src, size_t bytes)
{
    (void)kn;
    if (bytes) memcpy(dst, src, bytes);
    return ST_OK;
}

static void cpu_download(struct kn *kn, void *staging, size_t bytes)
{
    (void)kn, (void)staging, (void)bytes; /* the host's memory as it is */
}

static enum status cpu_sync(struct kn *kn, char *err)
{
    (void)err;
    struct kn_cpu *cpu = cpu_of(kn);
    cpu->step_waited = cpu->step_begun;
    return ST_OK;
}

/* Operations are computed as they are issued. */
static void cpu_step_begin(struct kn *kn)
{
    struct kn_cpu *cpu = cpu_of(kn);
    CHECK(cpu->step_begun - cpu->step_waited < 2);
    cpu->step_begun++;
    cpu->step_begin_ns = clock_now_ns();
    cpu->step_idle_ns[cpu->step_begun % 2] =
        cpu->step_begun > 1 ? cpu->step_begin_ns - cpu->step_end_ns : 0;
}

static uint64_t cpu_step_end(struct kn *kn)
{
    struct kn_cpu *cpu = cpu_of(kn);
    cpu->step_end_ns = clock_now_ns();
    cpu->step_busy_ns[cpu->step_begun % 2] = cpu->step_end_ns - cpu->step_begin_ns;
    return cpu->step_begun;
}

static enum status cpu_step_wait(struct kn *kn, uint64_t step, uint64_t *busy_ns, char *err)
{
    (void)err;
    struct kn_cpu *cpu = cpu_of(kn);
    CHECK(step == cpu->step_waited + 1 && step <= cpu->step_begun);
    cpu->step_waited = step;
    *busy_ns = cpu->step_busy_ns[step % 2];
    return ST_OK;
}

static uint64_t cpu_step_idle_ns(const struct kn *kn)
{
    const struct kn_cpu *cpu = (const struct kn_cpu *)kn;
    return cpu->step_idle_ns[cpu->step_waited % 2];
}

static void cpu_set_window(struct kn *kn, int tier, const struct kn_window *window)
{
    (void)kn, (void)tier, (void)window; /* loads are loads, whichever tier they are from */
}

static void cpu_traffic(struct kn *kn, int tier, struct kn_traffic *out)
{
    *out = (struct kn_traffic){.bytes = cpu_of(kn)->tier_bytes[tier],
                               .moved_bytes = cpu_of(kn)->moved_bytes[tier]};
}

static uint64_t cpu_moves_done(struct kn *kn)
{
    return cpu_of(kn)->moved_count;
}

static void cpu_moves_wait(struct kn *kn)
{
    (void)kn; /* a move is over when it has begun */
}

static size_t cpu_act_bytes(const struct kn *kn, int32_t rows, int32_t cols)
{
    (void)kn;
    return (size_t)rows * (size_t)cols * sizeof(float);
}

static enum status cpu_check_model(const struct kn *kn, enum kn_dtype weights, int32_t q_heads,
                                   const struct kn_kv *kv, char *err)
{
    (void)kn, (void)weights, (void)q_heads;
    if (kv->head_dim <= KN_HEAD_DIM_MAX) return ST_OK;
    return err_set(err, ST_UNSUPPORTED, "heads of %d elements are not supported, %d at most",
                   kv->head_dim, KN_HEAD_DIM_MAX);
}

/* What the kernel says could be had without swapping. */
static enum status cpu_memory(struct kn *kn, uint64_t *total, uint64_t *available, char *err)
{
    (void)kn;
    return kn_host_memory(total, available, err);
}

static const char *cpu_name(const struct kn *kn)
{
    return ((const struct kn_cpu *)kn)->name;
}

static void cpu_close(struct kn *kn)
{
    struct kn_cpu *cpu = cpu_of(kn);
    size_t thread_count = (size_t)kn_pool_thread_count(cpu->pool);
    kn_sampler_close(cpu->sampler);
    free(cpu->chosen);
    kn_pool_close(cpu->pool);
    unmap(cpu->scratch, thread_count * sizeof *cpu->scratch);
    free(cpu);
}

static const struct kn_cpu_isa *best_isa(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c"))
        return &kn_cpu_isa_avx2;
#endif
    return &kn_cpu_isa_portable;
}

static const struct kn_backend backend = {
    .act_bytes = cpu_act_bytes,
    .close = cpu_close,
    .name = cpu_name,
    .check_model = cpu_check_model,
    .memory = cpu_memory,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .upload = cpu_upload,
    .download = cpu_download,
    .sync = cpu_sync,
    .step_begin = cpu_step_begin,
    .step_end = cpu_step_end,
    .step_wait = cpu_step_wait,
    .step_idle_ns = cpu_step_idle_ns,
    .embed = kn_cpu_embed,
    .norm = kn_cpu_norm,
    .gemm = kn_cpu_gemm,
    .qkv = kn_cpu_qkv,
    .attention = kn_cpu_attention,
    .gather = kn_cpu_gather,
    .sample = kn_cpu_sample,
    .sample_reserve = kn_cpu_sample_reserve,
    .move_pages = kn_cpu_move_pages,
    .moves_done = cpu_moves_done,
    .moves_wait = cpu_moves_wait,
    .set_window = cpu_set_window,
    .traffic = cpu_traffic,
    .stream_read = kn_cpu_stream_read,
};

enum status kn_cpu_open(int thread_count, const struct kn_cpu_isa *isa, struct kn **out, char *err)
{
    if (thread_count < 0 || thread_count > THREADS_MAX)
        return err_set(err, ST_INVALID, "the thread count must be 0 (all cores) to %d, not %d",
                       THREADS_MAX, thread_count);
    if (thread_count == 0) thread_count = kn_pool_core_count();
    enum status st = ST_NOMEM;
    struct kn_cpu *cpu = calloc(1, sizeof *cpu);
    if (!cpu) return err_set(err, st, "out of memory for the CPU backend");
    size_t scratch_bytes = (size_t)thread_count * sizeof *cpu->scratch;
    cpu->scratch = map_zeroed(scratch_bytes);
    if (!cpu->scratch) {
        err_set(err, st, "cannot allocate %zu bytes of working memory for %d threads",
                scratch_bytes, thread_count);
        goto fail_cpu;
    }
    st = kn_pool_open(thread_count, &cpu->pool, err);
    if (st) goto fail_scratch;
    cpu->kn.backend = &backend;
    cpu->isa = isa ? isa : best_isa();
    snprintf(cpu->name, sizeof cpu->name, "cpu (%s, %d thread%s)", cpu->isa->name, thread_count,
             thread_count == 1 ? "" : "s");
    *out = &cpu->kn;
    return ST_OK;

fail_scratch:
    unmap(cpu->scratch, scratch_bytes);
fail_cpu:
    free(cpu);
    return st;
}

enum status kn_open_cpu(int thread_count, struct kn **out, char *err)
{
    return kn_cpu_open(thread_count, NULL, out, err);
}

void kn_cpu_for(struct kn_cpu *cpu, kn_pool_fn *fn, const void *arg, int32_t item_count,
                size_t element_count)
{
    if (element_count > INLINE_ELEMENTS_MAX) {
        kn_pool_run(cpu->pool, fn, arg, item_count);
        return;
    }
    for (int32_t i = 0; i < item_count; i++) fn(arg, i, 0);
}
