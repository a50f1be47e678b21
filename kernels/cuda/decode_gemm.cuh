/*
 * decode_gemm.cuh - out[T,N] = epilogue(x[T,K] . W[N,K]^T + bias) for steps of few tokens, bound by the bytes of W.
 *
 * Floor: N*K*2 bytes over the bandwidth of the tier they lie in.  At T <= 64 the tensor cores need less time than the
 * bytes (a 16 KB block takes an SM 0.46 us at 35.7 GB/s and 128 x T x 64 multiply-adds), so everything here serves one aim: keep
 * every SM's ring of bulk copies full from the first microsecond to the last.
 *
 * CTA: four consumer warps, each with 16 of a tile's 64 rows, and one producer warp.  Weights are the M operand, tokens
 * the N operand (m16n8k16), so each weight byte is read once.  A ring stage holds one weight block (64 x 128) and the 128
 * inputs of all tokens that meet it; the producer fills the ring with weights before griddepcontrol.wait, because they
 * do not depend on the previous kernel, and adds the activations after it.
 *
 * Quanta.  A tile is cut along K into quanta of q blocks.  Each quantum's partial sums go to a workspace (it stays in
 * L2), and whichever warp finishes a tile's last quantum adds the partials in order of k and runs the epilogue for its 16
 * rows.  Warps count arrivals by themselves, so there is no CTA-wide barrier.  q depends on the shape and the token bucket alone;
 * hence the result is bitwise the same whoever computes which quantum: for every placement, window and run.
 *
 * Activations x are blocks too: [K/128][2 atoms][TB rows][128 bytes], swizzled as kn_atom_offset says with row = token.
 */
#ifndef DAKD_KERNELS_CUDA_DECODE_GEMM_CUH
#define DAKD_KERNELS_CUDA_DECODE_GEMM_CUH

#include "kernels/cuda/ptx.cuh"
#include "kernels/kernels.h"

/* What a launch needs; passed by value. */
struct cu_gemm {
    const uint8_t *local;  /* tiles [0, local_tiles) */
    const uint8_t *remote; /* tiles [local_tiles, tile_count) */
    int32_t local_tiles, tile_count, blocks_per_tile;
    int32_t quantum_blocks, quanta_per_tile;
    const uint8_t *x;
    float *partial;   /* [tile_count][quanta_per_tile][4 warps][32 lanes][TB/8][4] */
    uint32_t *arrive; /* [tile_count][4]; zero before and after every launch */
    const float *bias;
    void *out;
    int32_t rows, tokens; /* N, T */
    int32_t remote_ctas, remote_blocks; /* window: CTAs that read the remote tier, blocks each keeps in flight */
};

#define CU_GEMM_THREADS 160
#define CU_GEMM_STAGES_MAX 8

/* Byte of element (token, k) of an activation buffer for the token bucket tb. */
PTX_INLINE size_t cu_act_offset(int tb, int token, int k)
{
    int block = k >> 7, atom = (k >> 6) & 1, byte = (k & 63) * 2;
    return (size_t)block * tb * 256 + (size_t)atom * tb * 128 + (size_t)token * 128 +
           (((byte >> 4) ^ (token & 7)) << 4) + (byte & 15);
}

/* The blocks of one CTA in the order it takes them: its remote quanta, then its local ones. */
struct cu_work {
    int32_t remote_begin, remote_step, remote_count; /* quanta remote_begin + i * remote_step of the remote tiles */
    int32_t local_begin, local_count;                /* consecutive quanta of the local tiles */
};

PTX_INLINE cu_work cu_gemm_work(const cu_gemm &g)
{
    cu_work w;
    int grid = gridDim.x, cta = blockIdx.x;
    int local = g.local_tiles * g.quanta_per_tile;
    int remote = (g.tile_count - g.local_tiles) * g.quanta_per_tile;
    int readers = min(g.remote_ctas, grid);
    w.remote_begin = cta;
    w.remote_step = readers;
    w.remote_count = cta < readers && remote > cta ? (remote - cta + readers - 1) / readers : 0;
    w.local_begin = (int)((long long)local * cta / grid);
    w.local_count = (int)((long long)local * (cta + 1) / grid) - w.local_begin;
    return w;
}

/* Quantum i of a CTA: its tile, its first block there, and how many blocks. */
struct cu_quantum {
    const uint8_t *weights;
    int32_t tile, index, block_begin, block_count;
    bool remote;
};

PTX_INLINE cu_quantum cu_gemm_quantum(const cu_gemm &g, const cu_work &w, int i)
{
    cu_quantum q;
    q.remote = i < w.remote_count;
    int id = q.remote ? w.remote_begin + i * w.remote_step : w.local_begin + i - w.remote_count;
    int tile = id / g.quanta_per_tile;
    q.index = id - tile * g.quanta_per_tile;
    q.block_begin = q.index * g.quantum_blocks;
    q.block_count = min(g.quantum_blocks, g.blocks_per_tile - q.block_begin);
    q.weights = (q.remote ? g.remote : g.local) + ((size_t)tile * g.blocks_per_tile + q.block_begin) * KN_BLOCK_BYTES;
    q.tile = q.remote ? tile + g.local_tiles : tile;
    return q;
}

template <int TB, int STAGES> struct cu_gemm_shared {
    static constexpr int STAGE_BYTES = KN_BLOCK_BYTES + TB * 256;
    static constexpr int BYTES = STAGES * STAGE_BYTES + 1024;
};

/* Producer: one lane.  Weights of the first STAGES blocks before the wait, their activations after it. */
template <int TB, int STAGES>
PTX_INLINE void cu_gemm_produce(const cu_gemm &g, uint8_t *ring, uint64_t *full, uint64_t *empty)
{
    constexpr int STAGE = cu_gemm_shared<TB, STAGES>::STAGE_BYTES;
    const cu_work w = cu_gemm_work(g);
    const int quanta = w.remote_count + w.local_count;
    const uint64_t once = ptx_policy_evict_first();
    int issued = 0, x_block[STAGES];
    bool waited = false;
    int remote_issued = 0;
#pragma unroll
    for (int s = 0; s < STAGES; s++) x_block[s] = 0;
    for (int i = 0; i < quanta; i++) {
        const cu_quantum q = cu_gemm_quantum(g, w, i);
        for (int b = 0; b < q.block_count; b++, issued++) {
            int s = issued % STAGES;
            if (issued == STAGES && !waited) {
                ptx_griddep_wait();
                waited = true;
                for (int k = 0; k < STAGES; k++)
                    ptx_bulk_load(ring + k * STAGE + KN_BLOCK_BYTES, g.x + (size_t)x_block[k] * TB * 256, TB * 256,
                                  &full[k]);
            }
            if (issued >= STAGES) ptx_mbarrier_wait(&empty[s], ((issued / STAGES) & 1) ^ 1);
            if (q.remote) {
                /* At most remote_blocks in flight: the one that many before must have landed.  Only its weights
                 * count, but a stage lands as a whole; before the wait no stage lands, so the window is filled once. */
                if (remote_issued >= g.remote_blocks) {
                    if (!waited) {
                        ptx_griddep_wait();
                        waited = true;
                        for (int k = 0; k < issued; k++)
                            ptx_bulk_load(ring + k * STAGE + KN_BLOCK_BYTES, g.x + (size_t)x_block[k] * TB * 256,
                                          TB * 256, &full[k]);
                    }
                    int old = issued - g.remote_blocks;
                    ptx_mbarrier_wait(&full[old % STAGES], (old / STAGES) & 1);
                }
                remote_issued++;
            }
            uint8_t *stage = ring + s * STAGE;
            ptx_mbarrier_expect_tx(&full[s], STAGE);
            ptx_bulk_load_hint(stage, q.weights + (size_t)b * KN_BLOCK_BYTES, KN_BLOCK_BYTES, &full[s], once);
            if (waited)
                ptx_bulk_load(stage + KN_BLOCK_BYTES, g.x + (size_t)(q.block_begin + b) * TB * 256, TB * 256, &full[s]);
            else
                x_block[s] = q.block_begin + b;
        }
    }
    if (!waited) {
        ptx_griddep_wait();
        for (int k = 0; k < issued; k++)
            ptx_bulk_load(ring + k * STAGE + KN_BLOCK_BYTES, g.x + (size_t)x_block[k] * TB * 256, TB * 256, &full[k]);
    }
}

/* Adds one stage to the accumulators of a warp's 16 rows. */
template <int TB>
PTX_INLINE void cu_gemm_stage(float (&acc)[TB / 8][4], uint32_t stage, int warp, int lane)
{
    const int row = warp * 16 + ((lane >> 3) & 1) * 8 + (lane & 7);
#pragma unroll
    for (int atom = 0; atom < 2; atom++) {
        const uint32_t w_base = stage + atom * KN_ATOM_BYTES + row * 128;
        const uint32_t x_base = stage + KN_BLOCK_BYTES + atom * TB * 128 + (lane & 7) * 128;
        uint32_t a[4][4];
#pragma unroll
        for (int s = 0; s < 4; s++) ptx_ldmatrix_x4(a[s], w_base + (((2 * s + (lane >> 4)) ^ (lane & 7)) << 4));
#pragma unroll
        for (int n = 0; n < TB / 8; n++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                uint32_t b[4];
                ptx_ldmatrix_x4(b, x_base + n * 1024 + (((4 * h + (lane >> 3)) ^ (lane & 7)) << 4));
                ptx_mma_m16n8k16(acc[n], a[2 * h], b[0], b[1]);
                ptx_mma_m16n8k16(acc[n], a[2 * h + 1], b[2], b[3]);
            }
    }
}

/* Rows r and r + 8 of the tile, tokens t and t + 1, as the fragment holds them. */
template <int TB, kn_epilogue EPI>
PTX_INLINE void cu_gemm_store(const cu_gemm &g, const float (&acc)[TB / 8][4], int tile, int warp, int lane)
{
    const int r0 = tile * 64 + warp * 16 + (lane >> 2), r1 = r0 + 8;
    const float b0 = g.bias && r0 < g.rows ? g.bias[r0] : 0.f, b1 = g.bias && r1 < g.rows ? g.bias[r1] : 0.f;
#pragma unroll
    for (int n = 0; n < TB / 8; n++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int t = n * 8 + (lane & 3) * 2 + j;
            const float v0 = acc[n][j] + b0, v1 = acc[n][2 + j] + b1;
            if (EPI == KN_EPI_SWIGLU) {
                /* r0 is a gate row, r1 its up row (kn_glu_row).  Padding tokens are written too: they stay finite. */
                const int i = (tile * 64 + warp * 16) / 2 + (lane >> 2);
                const float h = v0 / (1.f + __expf(-v0)) * v1;
                *(__nv_bfloat16 *)((uint8_t *)g.out + cu_act_offset(TB, t, i)) = __float2bfloat16(h);
            } else if (EPI == KN_EPI_RELU) {
                uint8_t *out = (uint8_t *)g.out;
                *(__nv_bfloat16 *)(out + cu_act_offset(TB, t, r0)) = __float2bfloat16(fmaxf(v0, 0.f));
                *(__nv_bfloat16 *)(out + cu_act_offset(TB, t, r1)) = __float2bfloat16(fmaxf(v1, 0.f));
            } else if (t < g.tokens) {
                float *out = (float *)g.out + (size_t)t * g.rows;
                if (r0 < g.rows) out[r0] = EPI == KN_EPI_ADD ? out[r0] + v0 : v0;
                if (r1 < g.rows) out[r1] = EPI == KN_EPI_ADD ? out[r1] + v1 : v1;
            }
        }
}

/* A warp hands in its partial of one quantum; the last of the tile adds all of them in order of k and stores. */
template <int TB, kn_epilogue EPI>
PTX_INLINE void cu_gemm_hand_in(const cu_gemm &g, float (&acc)[TB / 8][4], const cu_quantum &q, int warp, int lane)
{
    if (g.quanta_per_tile > 1) {
        const size_t slot = (size_t)TB * 16; /* floats of one warp's partial */
        float *tile = g.partial + (size_t)q.tile * g.quanta_per_tile * 4 * slot;
        float *mine = tile + ((size_t)q.index * 4 + warp) * slot;
#pragma unroll
        for (int n = 0; n < TB / 8; n++)
            __stcg((float4 *)mine + n * 32 + lane, make_float4(acc[n][0], acc[n][1], acc[n][2], acc[n][3]));
        __syncwarp();
        uint32_t last = 0;
        if (lane == 0) {
            uint32_t *count = g.arrive + q.tile * 4 + warp;
            last = ptx_atomic_add_acq_rel(count, 1) == (uint32_t)g.quanta_per_tile - 1;
            if (last) *count = 0;
        }
        if (!__shfl_sync(0xffffffffu, last, 0)) return;
        __syncwarp();
#pragma unroll
        for (int n = 0; n < TB / 8; n++) acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0.f;
#pragma unroll 4
        for (int i = 0; i < g.quanta_per_tile; i++) {
            const float *from = tile + ((size_t)i * 4 + warp) * slot;
#pragma unroll
            for (int n = 0; n < TB / 8; n++) {
                const float4 v = __ldcg((const float4 *)from + n * 32 + lane);
                acc[n][0] += v.x;
                acc[n][1] += v.y;
                acc[n][2] += v.z;
                acc[n][3] += v.w;
            }
        }
    }
    cu_gemm_store<TB, EPI>(g, acc, q.tile, warp, lane);
}

template <int TB, int STAGES, kn_epilogue EPI>
__global__ void __launch_bounds__(CU_GEMM_THREADS) sm90_bf16_decode_gemm(const __grid_constant__ cu_gemm g)
{
    extern __shared__ __align__(1024) uint8_t shared[];
    __shared__ uint64_t full[STAGES], empty[STAGES];
    constexpr int STAGE = cu_gemm_shared<TB, STAGES>::STAGE_BYTES;
    uint8_t *ring = (uint8_t *)(((uintptr_t)shared + 1023) & ~(uintptr_t)1023);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    ptx_griddep_launch();
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            ptx_mbarrier_init(&full[s], 1);
            ptx_mbarrier_init(&empty[s], 4);
        }
        ptx_fence_mbarrier_init();
    }
    __syncthreads();
    if (warp == 4) {
        if (lane == 0) cu_gemm_produce<TB, STAGES>(g, ring, full, empty);
        return;
    }
    /* Consumers touch the previous kernel's output in the epilogue (the residual stream), so they wait too. */
    ptx_griddep_wait();
    const cu_work w = cu_gemm_work(g);
    const int quanta = w.remote_count + w.local_count;
    int taken = 0;
    for (int i = 0; i < quanta; i++) {
        const cu_quantum q = cu_gemm_quantum(g, w, i);
        float acc[TB / 8][4];
#pragma unroll
        for (int n = 0; n < TB / 8; n++) acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0.f;
        for (int b = 0; b < q.block_count; b++, taken++) {
            const int s = taken % STAGES;
            ptx_mbarrier_wait(&full[s], (taken / STAGES) & 1);
            cu_gemm_stage<TB>(acc, ptx_shared(ring + s * STAGE), warp, lane);
            __syncwarp();
            if (lane == 0) ptx_mbarrier_arrive(&empty[s]);
        }
        cu_gemm_hand_in<TB, EPI>(g, acc, q, warp, lane);
    }
}

#endif
