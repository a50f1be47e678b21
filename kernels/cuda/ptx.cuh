/*
 * ptx.cuh - the PTX instructions dakd's kernels use, one per wrapper and nowhere else.  Names follow the instruction.
 * Source: PTX ISA 9.0; sections are named beside each group.  sm_90a.
 */
#ifndef DAKD_KERNELS_CUDA_PTX_CUH
#define DAKD_KERNELS_CUDA_PTX_CUH

#include <cuda_bf16.h>
#include <stdint.h>

#define PTX_INLINE __device__ __forceinline__

PTX_INLINE uint32_t ptx_shared(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

/* --- mbarrier (9.7.13.15) --- */

PTX_INLINE void ptx_mbarrier_init(uint64_t *bar, uint32_t count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(ptx_shared(bar)), "r"(count));
}
/* Makes initialised barriers visible to the asynchronous proxy. */
PTX_INLINE void ptx_fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
PTX_INLINE void ptx_mbarrier_expect_tx(uint64_t *bar, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(ptx_shared(bar)), "r"(bytes)
                 : "memory");
}
PTX_INLINE void ptx_mbarrier_arrive(uint64_t *bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(ptx_shared(bar)) : "memory");
}
PTX_INLINE bool ptx_mbarrier_try_wait(uint64_t *bar, uint32_t parity)
{
    uint32_t done;
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n"
                 "}"
                 : "=r"(done)
                 : "r"(ptx_shared(bar)), "r"(parity)
                 : "memory");
    return done != 0;
}
/* Does not block; for a lane that only polls. */
PTX_INLINE bool ptx_mbarrier_test_wait(uint64_t *bar, uint32_t parity)
{
    uint32_t done;
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n"
                 "}"
                 : "=r"(done)
                 : "r"(ptx_shared(bar)), "r"(parity)
                 : "memory");
    return done != 0;
}
PTX_INLINE void ptx_mbarrier_wait(uint64_t *bar, uint32_t parity)
{
    while (!ptx_mbarrier_try_wait(bar, parity)) {}
}

/* --- bulk copies (9.7.9.25) --- */

/* 1-D bulk copy, global (any tier) to shared; addresses and bytes are multiples of 16. */
PTX_INLINE void ptx_bulk_load(void *shared, const void *global, uint32_t bytes, uint64_t *bar)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     ptx_shared(shared)),
                 "l"(global), "r"(bytes), "r"(ptx_shared(bar))
                 : "memory");
}
/* The same with an L2 cache policy (createpolicy). */
PTX_INLINE void ptx_bulk_load_hint(void *shared, const void *global, uint32_t bytes, uint64_t *bar, uint64_t policy)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, "
                 "[%3], %4;" ::"r"(ptx_shared(shared)),
                 "l"(global), "r"(bytes), "r"(ptx_shared(bar)), "l"(policy)
                 : "memory");
}
PTX_INLINE uint64_t ptx_policy_evict_first()
{
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
PTX_INLINE uint64_t ptx_policy_evict_last()
{
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
/* Orders ordinary shared stores before later asynchronous reads of them. */
PTX_INLINE void ptx_fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
/* Orders ordinary global accesses against bulk copies of the same memory. */
PTX_INLINE void ptx_fence_proxy_async_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

/* --- programmatic dependent launch (9.7.13.14) --- */

/* Blocks until every kernel this one depends on has finished and its memory is visible. */
PTX_INLINE void ptx_griddep_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
/* Lets the next kernel of the stream start once every CTA has said so or ended. */
PTX_INLINE void ptx_griddep_launch() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

/* --- synchronisation --- */

/* Named barrier among `threads` threads of the CTA. */
PTX_INLINE void ptx_bar_sync(uint32_t id, uint32_t threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
PTX_INLINE uint32_t ptx_atomic_add_acq_rel(uint32_t *p, uint32_t v)
{
    uint32_t old;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(v) : "memory");
    return old;
}
PTX_INLINE uint32_t ptx_atomic_add_relaxed(uint32_t *p, uint32_t v)
{
    uint32_t old;
    asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(v) : "memory");
    return old;
}

/* --- matrices (9.7.14, 9.7.15) --- */

/* Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8. */
PTX_INLINE void ptx_ldmatrix_x4(uint32_t r[4], uint32_t shared_address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address));
}
PTX_INLINE void ptx_ldmatrix_x4_trans(uint32_t r[4], uint32_t shared_address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address));
}
/* d[16x8] += a[16x16] . b[16x8], bf16 in, fp32 out. */
PTX_INLINE void ptx_mma_m16n8k16(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* --- attention: base-2 exponential (9.7.3.22), cycle counter (10.24) --- */

/* 2^x, relative error 2^-22; subnormal results are zero, 2^-inf is 0. */
PTX_INLINE float ptx_ex2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
/* Low half of this SM's cycle counter. */
PTX_INLINE uint32_t ptx_clock()
{
    uint32_t t;
    asm volatile("mov.u32 %0, %clock;" : "=r"(t)::"memory");
    return t;
}

#endif
