/*
 * trace_table.h - from a log of kernels/cuda/trace.h to the table of a step: pure arithmetic.
 *
 * The kernels of a step, in their order, are those CTA 0's warp 0 saw.  Of each we need when its
 * first and last warps had their inputs, when its last warp ended, and how evenly its CTAs ended.
 * A kernel's share of the step is the time from the end of the one before to its own end: these
 * shares add up to the step, however much kernels overlap.
 *
 *     begins     waits                 inputs are there                         last warp ends
 *     |---------------- lead ----|- hand-over -|------------- work -------|-- tail --|
 *            (ring fills)        previous ends               half of the CTAs have ended
 *                                |----------------------- share ----------------------|
 */
#ifndef DAKD_TESTS_TRACE_TABLE_H
#define DAKD_TESTS_TRACE_TABLE_H

#include <stdlib.h>

#include "config/check.h"
#include "kernels/cuda/trace.h"

/* Nanoseconds since the step's first kernel began. */
struct trace_kernel {
    uint32_t what, ctas, warps;
    double start;       /* half of the CTAs had begun */
    double waited;      /* first inputs seen; the end of the one before where nobody waited */
    double middle, end; /* half of the CTAs, and all, had ended */
};

static int trace_by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double trace_median(double *v, size_t count)
{
    CHECK(count > 0);
    qsort(v, count, sizeof *v, trace_by_value);
    return v[count / 2];
}

/* Entry i of CTA c's warp w, which is of a kernel that does `what`; NULL where it is not.  A warp
 * that is slow to begin may take its place after the same warp of the kernel behind, whose other
 * CTAs are already there: two kernels in a row do different things, so the two are told apart. */
static const struct kn_cu_trace_stamp *trace_entry(struct kn_cu_trace_log *log, uint32_t i,
                                                   uint32_t c, uint32_t w, uint32_t what)
{
    uint32_t used = log->used[c * KN_CU_TRACE_WARPS + w];
    if (used > KN_CU_TRACE_KERNELS) used = KN_CU_TRACE_KERNELS;
    if (i >= used) return NULL;
    struct kn_cu_trace_stamp *s = &log->stamp[i][c][w];
    if (s->what != what && i + 1 < used && log->stamp[i + 1][c][w].what == what) {
        struct kn_cu_trace_stamp late = log->stamp[i + 1][c][w];
        log->stamp[i + 1][c][w] = *s;
        *s = late;
    }
    return s->what == what ? s : NULL;
}

/* The times of kernel k from its stamps; seen[c * WARPS + w] is how many kernels before had such a
 * warp.  False where an entry is not of this kernel. */
static bool trace_read_kernel(struct kn_cu_trace_log *log, uint32_t *seen, uint32_t base,
                              struct trace_kernel *k)
{
    static double starts[KN_CU_TRACE_CTAS], ends[KN_CU_TRACE_CTAS];
    double first_wait = 1e300, last = 0;
    for (uint32_t c = 0; c < k->ctas; c++) {
        ends[c] = 0;
        starts[c] = 1e300;
        for (uint32_t w = 0; w < k->warps; w++) {
            const struct kn_cu_trace_stamp *s =
                trace_entry(log, seen[c * KN_CU_TRACE_WARPS + w]++, c, w, k->what);
            if (!s) return false;
            double start = (double)(s->start - base), end = (double)(s->end - base);
            if (start < starts[c]) starts[c] = start;
            if (end > ends[c]) ends[c] = end;
            if (s->waited && (double)(s->waited - base) < first_wait)
                first_wait = (double)(s->waited - base);
        }
        if (ends[c] > last) last = ends[c];
    }
    k->waited = first_wait;
    k->end = last;
    k->start = trace_median(starts, k->ctas);
    k->middle = trace_median(ends, k->ctas);
    return true;
}

/* Fills kernel[KN_CU_TRACE_KERNELS]; their number, or -1 where the log is not what the invariant of
 * trace.h promises.  Puts swapped entries of the log in order. */
static int32_t trace_read_step(struct kn_cu_trace_log *log, struct trace_kernel *kernel)
{
    static uint32_t seen[KN_CU_TRACE_CTAS * KN_CU_TRACE_WARPS];
    int32_t count = (int32_t)log->used[0];
    if (count > KN_CU_TRACE_KERNELS) return -1;
    for (size_t i = 0; i < KN_CU_TRACE_CTAS * KN_CU_TRACE_WARPS; i++) seen[i] = 0;
    uint32_t base = log->stamp[0][0][0].start - 1000000; /* others may have begun before it */
    for (int32_t i = 0; i < count; i++) {
        struct trace_kernel *k = &kernel[i];
        *k = (struct trace_kernel){
            .what = log->stamp[i][0][0].what, .ctas = log->grid[i][0], .warps = log->grid[i][1]};
        if (k->ctas > KN_CU_TRACE_CTAS) k->ctas = KN_CU_TRACE_CTAS; /* its last */
        if (k->warps > KN_CU_TRACE_WARPS || k->ctas == 0) return -1;
        if (!trace_read_kernel(log, seen, base, k)) return -1;
        if (i > 0 && k->end < k[-1].end) { /* CTA 0's warp 0 was the slow one */
            struct trace_kernel early = *k;
            *k = k[-1];
            k[-1] = early;
        }
    }
    double before = 1e6;
    for (struct trace_kernel *k = kernel; k < kernel + count; before = k++->end)
        if (k->waited > 1e299) k->waited = before > k->start ? before : k->start;
    return count;
}

#endif
