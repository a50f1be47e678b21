/*
 * trace.h - when each warp of each kernel began, had its inputs, and ended: the device's own clock,
 * written down by the kernels.  Of the TRACE flavour (make TRACE=1) alone; other builds contain
 * nothing of it.
 *
 * Why not a profiler: with programmatic dependent launch kernels overlap, so durations say little.
 * What a step spends on a kernel is the time from the end of the one before to its own end, and for
 * that all kernels must be seen on one clock, undisturbed.
 *
 * A kernel begins with CU_TRACE(kind, detail).  Lane 0 of every warp takes a place in the log (an
 * atomic of that warp's own, which nobody waits for until the warp ends), and one 16-byte store at
 * the end writes what happened.  CU_TRACE_WAITED(), right before or after griddepcontrol.wait, says
 * when the inputs were there.  Of a grid larger than the log its last CTAs are in it.
 *
 * Invariant: entry i of CTA c's warp w belongs to the i-th kernel since the reset that had such a
 * warp, or, seldom, two in a row are swapped: kernels of one stream start in order, each CTA after
 * all of the kernel before have started, though perhaps not all of their warps.
 */
#ifndef DAKD_KERNELS_CUDA_TRACE_H
#define DAKD_KERNELS_CUDA_TRACE_H

#include "kernels/cuda/cuda.h"

#ifdef DAKD_TRACE

#ifdef __cplusplus
extern "C" {
#endif

enum kn_cu_trace_kind {
    KN_CU_TRACE_EMBED,
    KN_CU_TRACE_NORM,
    KN_CU_TRACE_GEMM, /* detail: tiles << 12 | blocks per tile */
    KN_CU_TRACE_QKV,
    KN_CU_TRACE_PLAN,
    KN_CU_TRACE_ATTENTION,
    KN_CU_TRACE_GATHER,
    KN_CU_TRACE_SAMPLE,
    KN_CU_TRACE_SETTLE,
    KN_CU_TRACE_KIND_COUNT,
};

enum { KN_CU_TRACE_CTAS = 1024, KN_CU_TRACE_WARPS = 32, KN_CU_TRACE_KERNELS = 448 };

/* Nanoseconds, the low 32 bits of %globaltimer. */
struct kn_cu_trace_stamp {
    uint32_t start, waited; /* waited is 0 where the warp did not wait */
    uint32_t end;
    uint32_t what; /* kind << 28 | detail */
};

struct kn_cu_trace_log {
    uint32_t used[KN_CU_TRACE_CTAS * KN_CU_TRACE_WARPS];
    uint32_t grid[KN_CU_TRACE_KERNELS][2]; /* CTAs and warps of kernel i */
    struct kn_cu_trace_stamp stamp[KN_CU_TRACE_KERNELS][KN_CU_TRACE_CTAS][KN_CU_TRACE_WARPS];
};

/* Begins to trace on the current device; the log stays until the process ends.  ST_DEVICE. */
MUST_USE enum status kn_cu_trace_open(char *err);
/* Between steps, when nothing runs. */
MUST_USE enum status kn_cu_trace_reset(char *err);
/* The log of the first kernel_count kernels, or all, to the host. */
MUST_USE enum status kn_cu_trace_read(struct kn_cu_trace_log *log, int32_t kernel_count, char *err);

void kn_cu_trace_register(const void *symbol);

#ifdef __cplusplus
}
#endif

#ifdef __CUDACC__
#include "kernels/cuda/ptx.cuh"

/* Each translation unit has a pointer of its own to the log. */
static __device__ struct kn_cu_trace_log *cu_trace_log;
namespace
{
const struct cu_trace_registration {
    cu_trace_registration() { kn_cu_trace_register(&cu_trace_log); }
} cu_trace_registered;
} // namespace

struct cu_trace {
    uint32_t at, start, waited, what;

    PTX_INLINE cu_trace(kn_cu_trace_kind kind, uint32_t detail)
        : at(UINT32_MAX), start(0), waited(0), what((uint32_t)kind << 28 | detail)
    {
        if (threadIdx.x % 32 || !cu_trace_log || blockIdx.x < skipped()) return;
        const unsigned warp = threadIdx.x / 32;
        start = (uint32_t)ptx_globaltimer();
        at = atomicAdd(&cu_trace_log->used[cta() * KN_CU_TRACE_WARPS + warp], 1u);
    }
    static PTX_INLINE uint32_t skipped()
    {
        return gridDim.x > KN_CU_TRACE_CTAS ? gridDim.x - KN_CU_TRACE_CTAS : 0;
    }
    static PTX_INLINE uint32_t cta() { return blockIdx.x - skipped(); }
    PTX_INLINE void has_waited() { waited = (uint32_t)ptx_globaltimer() | 1; }
    PTX_INLINE ~cu_trace()
    {
        const uint32_t end = (uint32_t)ptx_globaltimer();
        if (at >= KN_CU_TRACE_KERNELS) return;
        const unsigned warp = threadIdx.x / 32;
        *(uint4 *)&cu_trace_log->stamp[at][cta()][warp] = make_uint4(start, waited, end, what);
        if (cta() == 0 && warp == 0) {
            cu_trace_log->grid[at][0] = gridDim.x;
            cu_trace_log->grid[at][1] = (blockDim.x + 31) / 32;
        }
    }
};

#define CU_TRACE(kind, detail) cu_trace cu_trace_here(KN_CU_TRACE_##kind, (uint32_t)(detail))
#define CU_TRACE_WAITED() (ptx_griddep_wait(), cu_trace_here.has_waited())
#endif

#else
#define CU_TRACE(kind, detail)
#define CU_TRACE_WAITED()
#endif

#endif
