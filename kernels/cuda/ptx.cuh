/*
 * ptx.cuh - the PTX instructions dakd's kernels use, one per wrapper and nowhere else.  Names
 * follow the instruction. Source: PTX ISA 9.0; sections are named beside each group.  sm_90a.
 */
#ifndef DAKD_KERNELS_CUDA_PTX_CUH
#define DAKD_KERNELS_CUDA_PTX_CUH

#include <cuda_bf16.h>
#include <stdint.h>

#define PTX_INLINE __device__ __forceinline__

PTX_INLINE uint32_t ptx_shared(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* --- mbarrier (9.7.13.15) --- */

PTX_INLINE void ptx_mbarrier_init(uint64_t *bar, uint32_t count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(ptx_shared(bar)), "r"(count));
}
/* Makes initialised barriers visible to the asynchronous proxy. */
PTX_INLINE void ptx_fence_mbarrier_init()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
PTX_INLINE void ptx_mbarrier_expect_tx(uint64_t *bar, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(ptx_shared(bar)),
                 "r"(bytes)
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
/* A spinning loop: in debug builds one that never ends stops the kernel instead of the machine. */
#ifdef DAKD_DEBUG
#define PTX_SPIN_UNTIL(cond)                                                                       \
    for (uint32_t spins = 0; !(cond); spins++)                                                     \
        if (spins > 1u << 26) __trap()
#else
#define PTX_SPIN_UNTIL(cond)                                                                       \
    while (!(cond)) {                                                                              \
    }
#endif
PTX_INLINE void ptx_mbarrier_wait(uint64_t *bar, uint32_t parity)
{
    PTX_SPIN_UNTIL(ptx_mbarrier_try_wait(bar, parity));
}

/* --- bulk copies (9.7.9.25) --- */

/* 1-D bulk copy, global (any tier) to shared; addresses and bytes are multiples of 16. */
PTX_INLINE void ptx_bulk_load(void *shared, const void *global, uint32_t bytes, uint64_t *bar)
{
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(ptx_shared(shared)),
        "l"(global), "r"(bytes), "r"(ptx_shared(bar))
        : "memory");
}
/* The same with an L2 cache policy (createpolicy). */
PTX_INLINE void ptx_bulk_load_hint(void *shared, const void *global, uint32_t bytes, uint64_t *bar,
                                   uint64_t policy)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1], %2, "
                 "[%3], %4;" ::"r"(ptx_shared(shared)),
                 "l"(global), "r"(bytes), "r"(ptx_shared(bar)), "l"(policy)
                 : "memory");
}
/* To the same offset of the shared memory of every CTA of the cluster whose bit is in ctas; each
 * one's barrier at bar's offset counts the bytes that it gets. */
PTX_INLINE void ptx_bulk_load_multicast(void *shared, const void *global, uint32_t bytes,
                                        uint64_t *bar, uint16_t ctas)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(ptx_shared(shared)),
                 "l"(global), "r"(bytes), "r"(ptx_shared(bar)), "h"(ctas)
                 : "memory");
}
/* Brings global memory to L2; addresses and bytes are multiples of 16. */
PTX_INLINE void ptx_bulk_prefetch(const void *global, uint32_t bytes)
{
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes) : "memory");
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
PTX_INLINE void ptx_fence_proxy_async()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
/* Orders ordinary global accesses against bulk copies of the same memory. */
PTX_INLINE void ptx_fence_proxy_async_global()
{
    asm volatile("fence.proxy.async.global;" ::: "memory");
}

/* --- copies of 16 bytes, global to shared (9.7.9.25.3) --- */

/* The first `bytes` (0 or 16) are copied, the rest is zero; past L1. */
PTX_INLINE void ptx_cp_async_16(void *shared, const void *global, uint32_t bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(ptx_shared(shared)),
                 "l"(global), "r"(bytes)
                 : "memory");
}
/* Makes a group of this thread's since the last; waits until only the newest PENDING groups are on
 * their way. */
PTX_INLINE void ptx_cp_async_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int PENDING> PTX_INLINE void ptx_cp_async_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
/* Waits for all of this thread's. */
PTX_INLINE void ptx_cp_async_wait_all()
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}

/* --- programmatic dependent launch (9.7.13.14) --- */

/* Blocks until every kernel this one depends on has finished and its memory is visible. */
PTX_INLINE void ptx_griddep_wait()
{
    asm volatile("griddepcontrol.wait;" ::: "memory");
}
/* Lets the next kernel of the stream start once every CTA has said so or ended. */
PTX_INLINE void ptx_griddep_launch()
{
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

/* --- clusters (9.7.13.4, 9.7.9.23) --- */

/* The address of what lies at shared_address here in CTA `rank` of the cluster. */
PTX_INLINE uint32_t ptx_mapa(uint32_t shared_address, uint32_t rank)
{
    uint32_t there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(there)
                 : "r"(shared_address), "r"(rank));
    return there;
}
/* Arrives at a barrier of any CTA of the cluster, at an address of ptx_mapa.  Orders nothing but
 * what the asynchronous proxy did for this thread. */
PTX_INLINE void ptx_mbarrier_arrive_cluster(uint32_t bar)
{
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(bar) : "memory");
}
/* All threads of the cluster; orders no memory but what fences order. */
PTX_INLINE void ptx_cluster_sync_relaxed()
{
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::
                     : "memory");
}

/* --- synchronisation --- */

/* Named barrier among `threads` threads of the CTA. */
PTX_INLINE void ptx_bar_sync(uint32_t id, uint32_t threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
/* The same without waiting: counts towards the `threads` that a ptx_bar_sync waits for. */
PTX_INLINE void ptx_bar_arrive(uint32_t id, uint32_t threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
PTX_INLINE uint32_t ptx_atomic_add_acq_rel(uint32_t *p, uint32_t v)
{
    uint32_t old;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
                 : "=r"(old)
                 : "l"(p), "r"(v)
                 : "memory");
    return old;
}
PTX_INLINE uint32_t ptx_atomic_add_relaxed(uint32_t *p, uint32_t v)
{
    uint32_t old;
    asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], %2;"
                 : "=r"(old)
                 : "l"(p), "r"(v)
                 : "memory");
    return old;
}

PTX_INLINE void ptx_atomic_add_relaxed_u64(uint64_t *p, uint64_t v)
{
    asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
}
PTX_INLINE void ptx_atomic_max_relaxed(uint32_t *p, uint32_t v)
{
    asm volatile("red.relaxed.gpu.global.max.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
PTX_INLINE void ptx_atomic_min_relaxed(uint32_t *p, uint32_t v)
{
    asm volatile("red.relaxed.gpu.global.min.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
/* Sums in fp32, rounded to nearest; subnormals become zero. */
PTX_INLINE void ptx_red_add_f32(float *p, float v)
{
    asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(p), "f"(v) : "memory");
}
/* Four sums, each by itself; p is a multiple of 16. */
PTX_INLINE void ptx_red_add_v4_f32(float *p, float4 v)
{
    asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p), "f"(v.x),
                 "f"(v.y), "f"(v.z), "f"(v.w)
                 : "memory");
}
/* Words that need no order among each other: each says by itself whether it has been written. */
PTX_INLINE uint4 ptx_load_relaxed_v4(const void *p)
{
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}
PTX_INLINE uint32_t ptx_load_relaxed(const uint32_t *p)
{
    uint32_t v;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
PTX_INLINE uint32_t ptx_load_acquire(const uint32_t *p)
{
    uint32_t v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
PTX_INLINE uint32_t ptx_load_acquire_sys(const uint32_t *p)
{
    uint32_t v;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
PTX_INLINE void ptx_store_relaxed_sys(uint32_t *p, uint32_t v)
{
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
PTX_INLINE void ptx_store_release(uint32_t *p, uint32_t v)
{
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
PTX_INLINE uint2 ptx_load_relaxed_v2(const void *p)
{
    uint2 v;
    asm volatile("ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%2];"
                 : "=r"(v.x), "=r"(v.y)
                 : "l"(p)
                 : "memory");
    return v;
}
PTX_INLINE void ptx_store_relaxed_v4(void *p, uint4 v)
{
    asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x),
                 "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}
PTX_INLINE void ptx_store_relaxed_v2(void *p, uint2 v)
{
    asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(p), "r"(v.x), "r"(v.y)
                 : "memory");
}
/* One word of shared memory passed between two warps of a CTA. */
PTX_INLINE uint32_t ptx_load_acquire_shared(const uint32_t *p)
{
    uint32_t v;
    asm volatile("ld.acquire.cta.shared::cta.u32 %0, [%1];"
                 : "=r"(v)
                 : "r"(ptx_shared(p))
                 : "memory");
    return v;
}
PTX_INLINE void ptx_store_release_shared(uint32_t *p, uint32_t v)
{
    asm volatile("st.release.cta.shared::cta.u32 [%0], %1;" ::"r"(ptx_shared(p)), "r"(v)
                 : "memory");
}
/* Cycles of this SM, low half: differences only. */
/* Nanoseconds, the same for all SMs. */
PTX_INLINE uint64_t ptx_globaltimer()
{
    uint64_t t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t)::"memory");
    return t;
}
PTX_INLINE uint32_t ptx_clock()
{
    uint32_t t;
    asm volatile("mov.u32 %0, %%clock;" : "=r"(t)::"memory");
    return t;
}

/* v, of which the compiler no longer knows where it comes from: what is computed from it is not
 * moved out of a loop, where it would hold registers. */
PTX_INLINE int32_t ptx_opaque(int32_t v)
{
    asm volatile("" : "+r"(v));
    return v;
}
/* Registers of a warp of this warpgroup, from here on; a multiple of 8. */
template <int COUNT> PTX_INLINE void ptx_setmaxnreg_inc()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT> PTX_INLINE void ptx_setmaxnreg_dec()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
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
/* Four 8x8 matrices of 16-bit elements, two of a row in each lane, stored transposed: lane l gives
 * the address of column l % 8 of matrix l / 8. */
PTX_INLINE void ptx_stmatrix_x4_trans(uint32_t shared_address, const uint32_t r[4])
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                     shared_address),
                 "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}
/* An 8x8 matrix of 16-bit elements, two of a row in each lane, transposed. */
PTX_INLINE uint32_t ptx_movmatrix_trans(uint32_t a)
{
    uint32_t d;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(d) : "r"(a));
    return d;
}
/* d[16x8] += a[16x16] . b[16x8], bf16 in, fp32 out. */
PTX_INLINE void ptx_mma_m16n8k16(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, "
                 "%6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* The same, f16 in. */
PTX_INLINE void ptx_mma_f16_m16n8k16(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, "
                 "%6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* --- e4m3 (9.7.9.21) --- */

/* Two numbers, those of the word's low or high half, as f16; exact. */
PTX_INLINE uint32_t ptx_f16x2_of_e4m3x2_low(uint32_t word)
{
    uint32_t d;
    asm("{ .reg .b16 low, high; mov.b32 {low, high}, %1; cvt.rn.f16x2.e4m3x2 %0, low; }"
        : "=r"(d)
        : "r"(word));
    return d;
}
PTX_INLINE uint32_t ptx_f16x2_of_e4m3x2_high(uint32_t word)
{
    uint32_t d;
    asm("{ .reg .b16 low, high; mov.b32 {low, high}, %1; cvt.rn.f16x2.e4m3x2 %0, high; }"
        : "=r"(d)
        : "r"(word));
    return d;
}
/* Rounds to nearest even, at most 448; NaN stays NaN. */
PTX_INLINE uint16_t ptx_e4m3x2_of_f32(float low, float high)
{
    uint16_t d;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(d) : "f"(high), "f"(low));
    return d;
}

/* --- warpgroup matrices (9.7.15) ---
 *
 * d[64 x N] (+)= a[64 x 16] . b[N x 16]^T, bf16 in, fp32 out; both operands in shared memory,
 * K-major, 128-byte swizzle. Thread t of the warpgroup holds rows t/32*16 + t%32/4 (and that + 8)
 * and columns 8n + t%4*2 (and that + 1): element 4n + 2*(second row) + (second column) of d. */

/* Descriptor of an operand that starts at a shared address: rows of 128 bytes, 8 rows (1,024 bytes)
 * between row groups. */
PTX_INLINE uint64_t ptx_wgmma_descriptor(uint32_t shared_address)
{
    return (uint64_t)1 << 62 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 16 |
           (shared_address & 0x3FFFF) >> 4;
}
/* Before the first wgmma, and whenever its registers were touched since the last. */
PTX_INLINE void ptx_wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
/* Where ordinary instructions wrote what wgmma adds to: without this before the first, the compiler
 * waits for every wgmma before the next. */
template <int COUNT> PTX_INLINE void ptx_wgmma_registers(float (&d)[COUNT])
{
#pragma unroll
    for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(d[i])::"memory");
}
PTX_INLINE void ptx_wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/* Waits until at most PENDING committed groups are unfinished. */
template <int PENDING> PTX_INLINE void ptx_wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

#define PTX_D0 "%0, %1, %2, %3"
#define PTX_D1 "%4, %5, %6, %7"
#define PTX_D2 "%8, %9, %10, %11, %12, %13, %14, %15"
#define PTX_D3 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define PTX_D4                                                                                     \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "             \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define PTX_D5                                                                                     \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "             \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "             \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "   \
    "%127"
#define PTX_O0 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define PTX_O1 "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define PTX_O2                                                                                     \
    "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),       \
        "+f"(d[15])
#define PTX_O3                                                                                     \
    "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]),     \
        "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), \
        "+f"(d[30]), "+f"(d[31])
#define PTX_O4                                                                                     \
    "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]),     \
        "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), \
        "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), \
        "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), \
        "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define PTX_O5                                                                                     \
    "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]),     \
        "+f"(d[71]), "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), \
        "+f"(d[78]), "+f"(d[79]), "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), \
        "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), \
        "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]), "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), \
        "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]), "+f"(d[104]),         \
        "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]),        \
        "+f"(d[111]), "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]),        \
        "+f"(d[117]), "+f"(d[118]), "+f"(d[119]), "+f"(d[120]), "+f"(d[121]), "+f"(d[122]),        \
        "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])

/* accumulate false starts from zero. */
template <int N>
PTX_INLINE void ptx_wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate);
#define PTX_WGMMA(N, A, B, C, D, ...)                                                              \
    template <>                                                                                    \
    PTX_INLINE void ptx_wgmma<N>(float(&d)[N / 2], uint64_t a, uint64_t b, bool accumulate)        \
    {                                                                                              \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #C ", 0;\n"                              \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" D "}, %" #A      \
                     ", %" #B ", p, 1, 1, 0, 0;\n}"                                                \
                     : __VA_ARGS__                                                                 \
                     : "l"(a), "l"(b), "r"((int)accumulate));                                      \
    }
PTX_WGMMA(8, 4, 5, 6, PTX_D0, PTX_O0)
PTX_WGMMA(16, 8, 9, 10, PTX_D0 ", " PTX_D1, PTX_O0, PTX_O1)
PTX_WGMMA(32, 16, 17, 18, PTX_D0 ", " PTX_D1 ", " PTX_D2, PTX_O0, PTX_O1, PTX_O2)
PTX_WGMMA(64, 32, 33, 34, PTX_D0 ", " PTX_D1 ", " PTX_D2 ", " PTX_D3, PTX_O0, PTX_O1, PTX_O2,
          PTX_O3)
PTX_WGMMA(128, 64, 65, 66, PTX_D0 ", " PTX_D1 ", " PTX_D2 ", " PTX_D3 ", " PTX_D4, PTX_O0, PTX_O1,
          PTX_O2, PTX_O3, PTX_O4)
PTX_WGMMA(256, 128, 129, 130, PTX_D0 ", " PTX_D1 ", " PTX_D2 ", " PTX_D3 ", " PTX_D4 ", " PTX_D5,
          PTX_O0, PTX_O1, PTX_O2, PTX_O3, PTX_O4, PTX_O5)

/* --- warpgroup matrices with weights in registers (9.7.15) ---
 *
 * d[64 x N] += a[64 x 16] . b[16 x N], a in registers: thread t holds rows t/32*16 + t%32/4 (a[0],
 * a[2]) and that + 8 (a[1], a[3]), columns t%4*2 and that + 1 (a[0], a[1]) and those + 8; so the
 * accumulators of a product, rounded in pairs, are the operand of the next.  b lies in shared
 * memory N-major, 128-byte swizzle: rows of 64 elements of N, one after another for k; 64 further
 * elements of N lie one atom (8 KB) on. */

PTX_INLINE uint64_t ptx_wgmma_descriptor_transposed(uint32_t shared_address)
{
    return (uint64_t)1 << 62 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)(8192 >> 4) << 16 |
           (shared_address & 0x3FFFF) >> 4;
}
/* Keeps the compiler from moving uses of x across the volatile instructions around. */
PTX_INLINE void ptx_wgmma_pin(float &x)
{
    asm volatile("" : "+f"(x)::"memory");
}

#define PTX_D4A "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define PTX_O4A                                                                                    \
    "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]),     \
        "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), \
        "+f"(d[46]), "+f"(d[47])

template <int N>
PTX_INLINE void ptx_wgmma_transposed(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b);
#define PTX_WGMMA_TRANSPOSED(N, A0, A1, A2, A3, B, D, ...)                                         \
    template <>                                                                                    \
    PTX_INLINE void ptx_wgmma_transposed<N>(float(&d)[N / 2], const uint32_t(&a)[4], uint64_t b)   \
    {                                                                                              \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" D "}, {%" #A0    \
                     ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", 1, 1, 1, 1;"                       \
                     : __VA_ARGS__                                                                 \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                        \
    }
PTX_WGMMA_TRANSPOSED(64, 32, 33, 34, 35, 36, PTX_D0 ", " PTX_D1 ", " PTX_D2 ", " PTX_D3, PTX_O0,
                     PTX_O1, PTX_O2, PTX_O3)
PTX_WGMMA_TRANSPOSED(96, 48, 49, 50, 51, 52,
                     PTX_D0 ", " PTX_D1 ", " PTX_D2 ", " PTX_D3 ", " PTX_D4A, PTX_O0, PTX_O1,
                     PTX_O2, PTX_O3, PTX_O4A)
PTX_WGMMA_TRANSPOSED(128, 64, 65, 66, 67, 68,
                     PTX_D0 ", " PTX_D1 ", " PTX_D2 ", " PTX_D3 ", " PTX_D4, PTX_O0, PTX_O1, PTX_O2,
                     PTX_O3, PTX_O4)
PTX_WGMMA_TRANSPOSED(256, 128, 129, 130, 131, 132,
                     PTX_D0 ", " PTX_D1 ", " PTX_D2 ", " PTX_D3 ", " PTX_D4 ", " PTX_D5, PTX_O0,
                     PTX_O1, PTX_O2, PTX_O3, PTX_O4, PTX_O5)

/* --- base-2 exponential and reciprocal (9.7.3.22, 9.7.3.13) --- */

/* 2^x, relative error 2^-22; subnormal results are zero, 2^-inf is 0. */
PTX_INLINE float ptx_ex2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
/* 1/x, relative error 2^-23; subnormals are taken for zero. */
PTX_INLINE float ptx_rcp(float x)
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#endif
