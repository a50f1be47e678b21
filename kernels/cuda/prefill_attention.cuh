/*
 * prefill_attention.cuh - causal attention of prompt chunks over KV pages, by warpgroup matrices.
 *
 * Floor: 4 * D operations for each query row and key it sees.  An H200 is rated at 989 TFLOPS; what
 * wgmma alone gives on random data is probed beside (tests/gpu_prefill_bench.cuh).  A step of 128
 * rows by 128 keys of 128 dimensions is 8.4 MFLOP: 2,048 cycles of the tensor cores; its softmax
 * needs 16,384 exponentials, 1,024 cycles of the units that make them.  A CTA takes in 64 KB a
 * step, 36 GB/s at 600 TFLOPS, of the 73 that L2 gives every SM at once.  Predicted: 600 to 650
 * TFLOPS at 8k and 32k tokens, cuDNN's 608 at 8k within 5 %.
 *
 * A tile is 128 query rows of one kv-head's group.  One CTA per SM works off tiles: of its three
 * warpgroups two multiply, 64 rows each, and the third, with few registers, has two busy warps.
 *
 * Query warp: takes tiles by ticket, heaviest first; tells the others; gathers the tile's rows of q
 * in the swizzle wgmma reads, while the tile before is computed.
 *
 * Producer: copies K and V of one step after another into a ring, K a step ahead of V.  Keys are
 * taken two pages a step (one at dimension 256).  An atom's rows of both pages are neighbours in a
 * slot of K, so that a product has 128 keys; V stays as the page has it.
 *
 * Consumers: per step, S = Q.K^T of this step and O += P.V of the step before are issued together;
 * while P.V goes on, this step's scores become weights.  The two warpgroups take turns at issuing
 * (ping-pong), so that one's softmax runs under the other's products.  P never leaves the
 * registers: accumulators of one product are the operand of the next.
 *
 * L2: tiles of a few kv-heads at a time, as many as have 32 MB of KV, so that what all SMs read at
 * about the same time is read from HBM once.
 *
 * Invariants
 *
 *  1. A row's result depends on its query and the keys it sees: steps begin at multiples of the
 *     step's keys, counted from position 0; a step that shows a row nothing leaves its maximum,
 *     multiplies its sums by exactly one and adds exactly zero.  So it is the same bits for every
 *     chunking of the prompt, neighbour, placement and run.
 *
 *  2. Keys a row does not see have score -inf.  Weights of zero meet values, which must be finite:
 *     rows of V that no token has written yet, and pages before the window's first, are zeroed in
 *     the slot.  Values of later tokens of the same step are taken to be finite.
 *
 *  3. Pages that no row of the tile sees because of the window are never touched, nor their entries
 *     used.
 *
 *  4. A slot is filled again after all eight consumer warps have let go of it, each when its own
 *     products have read it.  All roles take slots in the same order: K0, K1, V0, K2, V1, ..
 * V(n-1).
 *
 *  5. Each warpgroup takes a turn once a step and once more a tile: both warpgroups go through all
 *     steps of every tile, so turns pair up.
 *
 *  6. The tickets are zero between launches: the last CTA to see the list's end clears them.
 *
 * Remote tiers: a CTA has one step's copies from remote memory in flight.  Every tile reads its
 * sequence's pages anew; where they are remote, that is what it takes.
 *
 * Measured on an H200 (causal, bf16; TFLOPS, cuDNN's time over this one's in the same run, share of
 * the 857 to 920 that wgmma alone gave): 32/8 heads of 128 at 8,192 tokens 655, 1.08, 0.71; at
 * 32,768 tokens 675 to 720, 0.98 to 1.07, 0.73 to 0.80; 32/32 heads at 8,192 565, 1.08; 2,048
 * tokens at the end of 32,768 635; four sequences of 2,048 443; 32/8 heads of 64 at 8,192 359,
 * 0.84.
 *
 * What is left: a warpgroup's step takes 2,850 cycles at 128 dimensions, 1,420 of them from scores
 * to weights, where 850 would do if the other warpgroup did not do the same for half of that time;
 * the tensor cores wait meanwhile.  Warpgroups that do not take turns gave 670, 737, 631, 707, 480
 * and 379 for the shapes above; whether they fall in step with each other is then left to chance:
 * the same with one loop for all steps gave 655, 719, 540, 603, 413 and 343.
 *
 * Tried and dropped.  Weights added up as they are made: the same.  Half or a quarter of the
 * exponentials by a polynomial: 0.87 and 0.94 of the speed, for the units that make them are not
 * what is short (8 cycles a warp, measured).  An empty group committed where a tile's first step
 * has no P.V: the compiler puts a product there and waits for one too many.
 *
 * After FlashAttention-3 (ping-pong, products of two steps in flight) and FlashInfer (heads of a
 * group packed into rows).
 */
#ifndef DAKD_KERNELS_CUDA_PREFILL_ATTENTION_CUH
#define DAKD_KERNELS_CUDA_PREFILL_ATTENTION_CUH

#include "kernels/cuda/prefill_attention.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/release.cuh"
#include "kernels/cuda/trace.h"

/* What a launch needs; passed by value. */
struct cu_pre_params {
    const kn_cu_prefill_tile *tiles;
    const kn_page *pages;
    const uint8_t *base[KN_TIER_MAX]; /* of this layer's heads */
    size_t page_bytes;
    const uint8_t *q;
    size_t q_token_bytes, q_head_bytes;
    uint8_t *out;
    size_t chunk_bytes; /* of 256 tokens of `out` */
    uint32_t *ticket;   /* and the count of CTAs that are done */
    kn_cu_traffic *traffic;
    int32_t tile_count;            /* of one kv-head */
    int32_t heads_at_once;         /* kv-heads whose tiles are mixed */
    int32_t last_chunk, last_rows; /* the chunk of `out` that is no whole one, and its bucket */
    int32_t q_heads, kv_heads, group, head_dim, window;
    uint32_t group_inverse; /* 2^16 / group, rounded up */
    float scale_log2;
};

/* Constants of heads of up to DIM dimensions. */
template <int DIM_MAX> struct cu_pre_shape {
    static constexpr int DIM = DIM_MAX;
    static constexpr int ATOMS = (DIM + 63) / 64;
    static constexpr int PAGES = DIM > 128 ? 1 : 2; /* of a step */
    static constexpr int KEYS = PAGES * KN_PAGE_TOKENS;
    static constexpr int HEAD_BYTES = ATOMS * KN_ATOM_BYTES; /* K or V of a head's page */
    static constexpr int SLOT_BYTES = PAGES * HEAD_BYTES;
    static constexpr int Q_BYTES = 2 * HEAD_BYTES;
    static constexpr int Q_SLOTS = DIM > 128 ? 1 : 2;
    static constexpr int ROOM = 227 * 1024 - 1024 - Q_SLOTS * Q_BYTES;
    static constexpr int SLOTS = ROOM / SLOT_BYTES < 8 ? ROOM / SLOT_BYTES : 8;
    static constexpr int THREADS = 384;
    static constexpr int CONSUMER_WARPS = 8;
    static constexpr int CONSUMER_REGISTERS = 232, PRODUCER_REGISTERS = 40;
    static_assert(2 * CONSUMER_REGISTERS + PRODUCER_REGISTERS <= 3 * 168,
                  "more registers than the launch gave: setmaxnreg would wait forever");
    static_assert(SLOTS >= 4, "K and V of two steps must fit");
};

/* A tile as the warps of a CTA know it; row_count 0: there is none any more. */
struct __align__(16) cu_pre_tile
{
    int32_t token, position, head, row_count;
    int32_t table, page_begin, page_end, kv_count; /* pages some row sees, or later tokens do */
    int32_t step_begin, step_count, kv_head, unused;
};

template <class S> struct cu_pre_shared {
    uint8_t q[S::Q_SLOTS][S::Q_BYTES];
    uint8_t ring[S::SLOTS][S::SLOT_BYTES];
    uint64_t full[S::SLOTS], empty[S::SLOTS];
    uint64_t tile_full[S::Q_SLOTS], q_full[S::Q_SLOTS], q_empty[S::Q_SLOTS];
    cu_pre_tile tile[S::Q_SLOTS];
};

/* A place in a ring, and the parity of the pass. */
struct cu_pre_place {
    int32_t slot = 0;
    uint32_t parity = 0;
};
template <int SLOTS> PTX_INLINE void cu_pre_next(cu_pre_place &p)
{
    if (++p.slot == SLOTS) {
        p.slot = 0;
        p.parity ^= 1;
    }
}

/* A warp lets go of a slot. */
PTX_INLINE void cu_pre_release(uint64_t *empty, int lane)
{
    __syncwarp();
    cu_release(empty, lane);
}

/* --- query warp --- */

/* Tile `index` of all kv-heads'; the order is kv-heads_at_once by kv-heads_at_once, in them tile by
 * tile. */
template <class S> PTX_INLINE cu_pre_tile cu_pre_tile_of(const cu_pre_params &p, int32_t index)
{
    const int32_t section_tiles = p.tile_count * p.heads_at_once, section = index / section_tiles,
                  first_head = section * p.heads_at_once,
                  heads = min(p.heads_at_once, p.kv_heads - first_head),
                  in_section = index - section * section_tiles, i = in_section / heads;
    const int4 *words = (const int4 *)(p.tiles + i);
    const int4 a = __ldg(words), b = __ldg(words + 1);
    cu_pre_tile t;
    t.token = a.x;
    t.position = a.y;
    t.head = a.z;
    t.row_count = a.w;
    const int32_t last = b.x;
    t.table = b.y;
    t.kv_count = b.z;
    const int32_t key_begin =
        p.window > 0 && t.position >= p.window ? t.position - p.window + 1 : 0;
    t.page_begin = key_begin / KN_PAGE_TOKENS;
    t.page_end = (t.kv_count + KN_PAGE_TOKENS - 1) / KN_PAGE_TOKENS;
    t.step_begin = key_begin / S::KEYS;
    t.step_count = last / S::KEYS - t.step_begin + 1;
    t.kv_head = first_head + in_section - i * heads;
    t.unused = 0;
    return t;
}

/* Gathers the tile's rows, zeros beyond the last one and beyond the head's dimensions. */
template <class S>
PTX_INLINE void cu_pre_load_q(const cu_pre_params &p, const cu_pre_tile &t, uint8_t *to, int lane)
{
    constexpr int CHUNKS = S::ATOMS * 8, ROWS = 32 / CHUNKS > 0 ? 32 / CHUNKS : 1;
    const int chunk = lane % CHUNKS;
    const bool inside = chunk * 8 < p.head_dim;
    int32_t token = t.token, head = t.head + lane / CHUNKS;
    uint8_t *column = to + (chunk >> 3) * (2 * KN_ATOM_BYTES);
#pragma unroll 1
    for (int row = lane / CHUNKS; row < KN_CU_PREFILL_ROWS; row += ROWS, head += ROWS) {
        while (head >= p.group) {
            head -= p.group;
            token++;
        }
        const bool there = inside && row < t.row_count;
        const uint8_t *from = p.q;
        if (there)
            from += (size_t)token * p.q_token_bytes +
                    (size_t)(t.kv_head * p.group + head) * p.q_head_bytes + chunk * 16;
        ptx_cp_async_16(column + row * KN_ATOM_ROW_BYTES + (((chunk & 7) ^ (row & 7)) << 4), from,
                        there ? 16 : 0);
    }
}

template <class S>
PTX_INLINE void cu_pre_query(const cu_pre_params &p, cu_pre_shared<S> &sh, int lane)
{
    ptx_griddep_wait();
    int32_t index = blockIdx.x;
    cu_pre_place at;
    at.parity = 1; /* an empty ring lets the first pass through */
    for (;; cu_pre_next<S::Q_SLOTS>(at)) {
        ptx_mbarrier_wait(&sh.q_empty[at.slot], at.parity);
        cu_pre_tile t = {};
        if (index < p.tile_count * p.kv_heads) t = cu_pre_tile_of<S>(p, index);
        if (lane == 0) {
            sh.tile[at.slot] = t;
            ptx_mbarrier_arrive(&sh.tile_full[at.slot]);
        }
        if (!t.row_count) break;
        uint32_t ticket = 0;
        if (lane == 0) ticket = ptx_atomic_add_relaxed(&p.ticket[0], 1);
        cu_pre_load_q<S>(p, t, sh.q[at.slot], lane);
        ptx_cp_async_wait_all();
        ptx_fence_proxy_async();
        ptx_mbarrier_arrive(&sh.q_full[at.slot]);
        index = (int32_t)gridDim.x + (int32_t)__shfl_sync(0xffffffffu, ticket, 0);
    }
    ptx_mbarrier_arrive(&sh.q_full[at.slot]);
    if (lane || ptx_atomic_add_acq_rel(&p.ticket[1], 1) != gridDim.x - 1) return;
    p.ticket[0] = p.ticket[1] = 0;
}

/* --- producer --- */

/* The producer's place, and what it has issued. */
struct cu_pre_issuer {
    cu_pre_place at, remote;        /* remote: where the last copies from a remote tier went */
    int32_t since_remote = 1 << 20; /* slots */
    uint32_t pages[KN_TIER_MAX] = {};
};

PTX_INLINE const uint8_t *cu_pre_page(const cu_pre_params &p, kn_page page)
{
    return p.base[page >> 28] + (size_t)(page & 0x0FFFFFFFu) * p.page_bytes;
}

/* Waits for the slot, and where the pages are remote for the last remote copies to land. */
template <class S>
PTX_INLINE void cu_pre_await(cu_pre_shared<S> &sh, cu_pre_issuer &is,
                             const kn_page (&page)[S::PAGES])
{
    bool remote = false;
#pragma unroll
    for (int j = 0; j < S::PAGES; j++) remote |= page[j] != KN_PAGE_NONE && page[j] >> 28;
    ptx_mbarrier_wait(&sh.empty[is.at.slot], is.at.parity ^ 1);
    is.since_remote++;
    if (!remote) return;
    /* A slot that has come round since has landed; its barrier may be in a later phase. */
    if (is.since_remote < S::SLOTS) ptx_mbarrier_wait(&sh.full[is.remote.slot], is.remote.parity);
    is.remote = is.at;
    is.since_remote = 0;
}

template <class S>
PTX_INLINE void cu_pre_issue_keys(const cu_pre_params &p, cu_pre_shared<S> &sh, cu_pre_issuer &is,
                                  const kn_page (&page)[S::PAGES], size_t head, int lane)
{
    cu_pre_await<S>(sh, is, page);
    uint64_t *full = &sh.full[is.at.slot];
    uint8_t *slot = sh.ring[is.at.slot];
    if (lane == 0) {
        uint32_t bytes = 0;
#pragma unroll
        for (int j = 0; j < S::PAGES; j++) bytes += page[j] == KN_PAGE_NONE ? 0 : S::HEAD_BYTES;
        ptx_mbarrier_expect_tx(full, bytes);
#pragma unroll
        for (int j = 0; j < S::PAGES; j++) {
            if (page[j] == KN_PAGE_NONE) continue;
            const uint8_t *from = cu_pre_page(p, page[j]) + head;
            if (S::PAGES == 1) ptx_bulk_load(slot, from, S::HEAD_BYTES, full);
            for (int a = 0; a < S::ATOMS && S::PAGES > 1; a++)
                ptx_bulk_load(slot + (a * S::PAGES + j) * KN_ATOM_BYTES, from + a * KN_ATOM_BYTES,
                              KN_ATOM_BYTES, full);
        }
    }
    __syncwarp();
    cu_pre_next<S::SLOTS>(is.at);
}

/* first_key: of the step.  Rows that no token has written become zeros. */
template <class S>
PTX_INLINE void cu_pre_issue_values(const cu_pre_params &p, cu_pre_shared<S> &sh, cu_pre_issuer &is,
                                    const kn_page (&page)[S::PAGES], size_t head, int32_t left,
                                    int lane)
{
    cu_pre_await<S>(sh, is, page);
    uint64_t *full = &sh.full[is.at.slot];
    uint8_t *slot = sh.ring[is.at.slot];
    int32_t rows[S::PAGES], all = 0;
#pragma unroll
    for (int j = 0; j < S::PAGES; j++) {
        rows[j] = page[j] == KN_PAGE_NONE ? 0 : min(left - j * KN_PAGE_TOKENS, KN_PAGE_TOKENS);
        all += rows[j];
        for (int a = 0; a < S::ATOMS && rows[j] < KN_PAGE_TOKENS; a++)
            for (int i = rows[j] * 8 + lane; i < KN_PAGE_TOKENS * 8; i += 32)
                *(uint4 *)(slot + j * S::HEAD_BYTES + a * KN_ATOM_BYTES + i * 16) =
                    make_uint4(0, 0, 0, 0);
    }
    if (all < S::KEYS) {
        ptx_fence_proxy_async();
        __syncwarp();
    }
    if (lane == 0) {
        ptx_mbarrier_expect_tx(full, all * S::ATOMS * KN_ATOM_ROW_BYTES);
#pragma unroll
        for (int j = 0; j < S::PAGES; j++) {
            if (rows[j] == 0) continue;
            const uint8_t *from = cu_pre_page(p, page[j]) + head + S::HEAD_BYTES;
            uint8_t *to = slot + j * S::HEAD_BYTES;
            if (rows[j] == KN_PAGE_TOKENS) ptx_bulk_load(to, from, S::HEAD_BYTES, full);
            for (int a = 0; a < S::ATOMS && rows[j] < KN_PAGE_TOKENS; a++)
                ptx_bulk_load(to + a * KN_ATOM_BYTES, from + a * KN_ATOM_BYTES,
                              rows[j] * KN_ATOM_ROW_BYTES, full);
            is.pages[0] += page[j] >> 28 == 0;
            is.pages[1] += page[j] >> 28 == 1;
            is.pages[2] += page[j] >> 28 == 2;
            is.pages[3] += page[j] >> 28 == 3;
        }
    }
    __syncwarp();
    cu_pre_next<S::SLOTS>(is.at);
}

/* Lane i: the tile's page-table entry `first` + i; KN_PAGE_NONE where no row sees it. */
PTX_INLINE kn_page cu_pre_entry(const cu_pre_params &p, const cu_pre_tile &t, int32_t first,
                                int lane)
{
    const int32_t page = first + lane;
    return page >= t.page_begin && page < t.page_end ? __ldg(p.pages + t.table + page)
                                                     : KN_PAGE_NONE;
}

template <class S>
PTX_INLINE void cu_pre_produce_tile(const cu_pre_params &p, cu_pre_shared<S> &sh, cu_pre_issuer &is,
                                    const cu_pre_tile &t, int lane)
{
    const int32_t first_page = t.step_begin * S::PAGES;
    const size_t head = (size_t)t.kv_head * (2 * S::HEAD_BYTES);
    kn_page entry = KN_PAGE_NONE, next = cu_pre_entry(p, t, first_page, lane);
    kn_page page[S::PAGES], old[S::PAGES];
#pragma unroll 1
    for (int32_t s = 0; s <= t.step_count; s++) {
        const int32_t at = s * S::PAGES;
#pragma unroll
        for (int j = 0; j < S::PAGES; j++) old[j] = page[j];
        if (s < t.step_count) {
            if (at % 32 == 0) {
                entry = next;
                next = cu_pre_entry(p, t, first_page + at + 32, lane);
            }
#pragma unroll
            for (int j = 0; j < S::PAGES; j++)
                page[j] = __shfl_sync(0xffffffffu, entry, (at + j) % 32);
            cu_pre_issue_keys<S>(p, sh, is, page, head, lane);
        }
        if (s > 0)
            cu_pre_issue_values<S>(p, sh, is, old, head,
                                   t.kv_count - (t.step_begin + s - 1) * S::KEYS, lane);
    }
}

template <class S>
PTX_INLINE void cu_pre_produce(const cu_pre_params &p, cu_pre_shared<S> &sh, int lane)
{
    ptx_griddep_wait();
    ptx_fence_proxy_async_global(); /* what the kernel before appended to the pages */
    cu_pre_issuer is;
    for (cu_pre_place q;; cu_pre_next<S::Q_SLOTS>(q)) {
        ptx_mbarrier_wait(&sh.tile_full[q.slot], q.parity);
        const cu_pre_tile t = sh.tile[q.slot];
        if (!t.row_count) break;
        cu_pre_release(&sh.q_empty[q.slot], lane);
        cu_pre_produce_tile<S>(p, sh, is, t, lane);
    }
    if (lane || !p.traffic) return;
#pragma unroll
    for (int tier = 0; tier < KN_TIER_MAX; tier++)
        if (is.pages[tier])
            ptx_atomic_add_relaxed_u64(&p.traffic[tier].blocks,
                                       (uint64_t)is.pages[tier] * S::ATOMS);
}

/* --- consumers --- */

/* Whole tokens among the first `rows` rows, of up to 2 * 128 and groups of up to 128. */
PTX_INLINE int32_t cu_pre_tokens(const cu_pre_params &p, int32_t rows)
{
    return (int32_t)(rows * p.group_inverse >> 16);
}

/* What a thread knows of its two rows. */
struct cu_pre_rows {
    float max[2]; /* of the scores so far */
    float sum[2]; /* of the weights so far, this thread's columns */
    int32_t position[2];
    int32_t low, high; /* positions of the warp's rows */
};

template <class S>
PTX_INLINE void cu_pre_begin(cu_pre_rows &r, const cu_pre_params &p, const cu_pre_tile &t, int row)
{
#pragma unroll
    for (int j = 0; j < 2; j++) {
        const int32_t within = min(row + 8 * j, t.row_count - 1);
        r.position[j] = t.position + cu_pre_tokens(p, t.head + within);
        r.max[j] = -INFINITY;
        r.sum[j] = 0.f;
    }
    r.low = __reduce_min_sync(0xffffffffu, r.position[0]);
    r.high = __reduce_max_sync(0xffffffffu, r.position[1]);
}

/* Scores of keys that a row does not see become -inf; first_key: of the step. */
template <class S>
PTX_INLINE void cu_pre_mask(float (&s)[S::KEYS / 2], const cu_pre_params &p, const cu_pre_rows &r,
                            int32_t first_key, int lane)
{
    const bool windowed = p.window > 0 && first_key <= r.high - p.window;
    if (first_key + S::KEYS - 1 <= r.low && !windowed) return;
#pragma unroll
    for (int j = 0; j < 2; j++) {
        const int32_t last = r.position[j] - first_key - (lane & 3) * 2,
                      before = windowed ? last - p.window : -1 - S::KEYS;
#pragma unroll
        for (int n = 0; n < S::KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                if (n * 8 + i > last || n * 8 + i <= before) s[n * 4 + j * 2 + i] = -INFINITY;
    }
}

/* Scores to weights; rescale: what the sums before are to be multiplied by. */
template <class S>
PTX_INLINE void cu_pre_soften(float (&s)[S::KEYS / 2], cu_pre_rows &r, float (&rescale)[2],
                              float scale_log2)
{
#pragma unroll
    for (int j = 0; j < 2; j++) {
        float most[2] = {-INFINITY, -INFINITY};
#pragma unroll
        for (int n = 0; n < S::KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) most[i] = fmaxf(most[i], s[n * 4 + j * 2 + i]);
        float max = fmaxf(most[0], most[1]);
        max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 1));
        max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 2));
        max = fmaxf(max, r.max[j]);
        rescale[j] = max == r.max[j] ? 1.f : ptx_ex2((r.max[j] - max) * scale_log2);
        const float shift = max == -INFINITY ? 0.f : max * scale_log2;
        r.max[j] = max;
#pragma unroll
        for (int n = 0; n < S::KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float &x = s[n * 4 + j * 2 + i];
                x = ptx_ex2(fmaf(x, scale_log2, -shift));
            }
    }
}

/* Adds up the weights: apart from their making, for additions among the exponentials wait for each
 * of them. */
template <class S>
PTX_INLINE void cu_pre_add(const float (&s)[S::KEYS / 2], cu_pre_rows &r, const float (&rescale)[2])
{
#pragma unroll
    for (int j = 0; j < 2; j++) {
        float sum[2] = {0.f, 0.f};
#pragma unroll
        for (int n = 0; n < S::KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) sum[i] += s[n * 4 + j * 2 + i];
        r.sum[j] = fmaf(r.sum[j], rescale[j], sum[0] + sum[1]);
    }
}

template <int COUNT> PTX_INLINE void cu_pre_pin(float (&x)[COUNT])
{
#pragma unroll
    for (int i = 0; i < COUNT; i++) ptx_wgmma_pin(x[i]);
}

/* Weights as the operand of P.V. */
template <class S>
PTX_INLINE void cu_pre_pack(uint32_t (&weight)[S::KEYS / 16][4], const float (&s)[S::KEYS / 2])
{
#pragma unroll
    for (int k = 0; k < S::KEYS / 16; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const __nv_bfloat162 pair =
                __floats2bfloat162_rn(s[k * 8 + i * 2], s[k * 8 + i * 2 + 1]);
            weight[k][i] = *(const uint32_t *)&pair;
        }
}

/* Waits for P.V and rescales its sums, where that changes a bit of them.  The branch keeps the
 * compiler from waiting first and softening then. */
template <class S> PTX_INLINE void cu_pre_rescale(float (&o)[S::DIM / 2], const float (&rescale)[2])
{
    if (__all_sync(0xffffffffu, rescale[0] == 1.f && rescale[1] == 1.f)) return;
    ptx_wgmma_wait<0>();
    cu_pre_pin(o);
#pragma unroll
    for (int n = 0; n < S::DIM / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) o[n * 4 + i] *= rescale[i >> 1];
}

/* Issues S = Q.K^T; q and keys: shared addresses. */
template <class S>
PTX_INLINE void cu_pre_issue_scores(float (&s)[S::KEYS / 2], uint32_t q, uint32_t keys)
{
    const uint64_t a = ptx_wgmma_descriptor(q), b = ptx_wgmma_descriptor(keys);
#pragma unroll
    for (int k = 0; k < (S::DIM + 15) / 16; k++)
        ptx_wgmma<S::KEYS>(s, a + (k / 4) * (2 * KN_ATOM_BYTES >> 4) + (k % 4) * 2,
                           b + (k / 4) * (S::PAGES * KN_ATOM_BYTES >> 4) + (k % 4) * 2, k > 0);
    ptx_wgmma_commit();
}

/* Issues O += P.V. */
template <class S>
PTX_INLINE void cu_pre_issue_output(float (&o)[S::DIM / 2],
                                    const uint32_t (&weight)[S::KEYS / 16][4], uint32_t values)
{
    const uint64_t b = ptx_wgmma_descriptor_transposed(values);
#pragma unroll
    for (int k = 0; k < S::KEYS / 16; k++)
        ptx_wgmma_transposed<S::DIM>(o, weight[k],
                                     b + (k / 4) * (S::HEAD_BYTES >> 4) +
                                         (k % 4) * (16 * KN_ATOM_ROW_BYTES >> 4));
    ptx_wgmma_commit();
}

/* Turns of the two warpgroups at issuing products. */
PTX_INLINE void cu_pre_turn(int wg)
{
    ptx_bar_sync(1 + wg, 256);
}
PTX_INLINE void cu_pre_turn_over(int wg)
{
    ptx_bar_arrive(2 - wg, 256);
}

/* O and the sums of a tile's 64 rows; returns when all products are done and all slots released. */
template <class S>
PTX_INLINE void cu_pre_multiply(const cu_pre_params &p, cu_pre_shared<S> &sh, const cu_pre_tile &t,
                                float (&o)[S::DIM / 2], cu_pre_rows &r, cu_pre_place &at,
                                int q_slot, int wg, int lane)
{
    const uint32_t ring = ptx_shared(sh.ring[0]), q = ptx_shared(sh.q[q_slot]) + wg * KN_ATOM_BYTES;
    float s[S::KEYS / 2], rescale[2];
    uint32_t weight[S::KEYS / 16][4];
    int32_t first_key = t.step_begin * S::KEYS;

    ptx_mbarrier_wait(&sh.full[at.slot], at.parity);
    cu_pre_turn(wg);
    ptx_wgmma_fence();
    cu_pre_issue_scores<S>(s, q, ring + at.slot * S::SLOT_BYTES);
    cu_pre_turn_over(wg);
#pragma unroll
    for (int i = 0; i < S::DIM / 2; i++) o[i] = 0.f;
    ptx_wgmma_wait<0>();
    cu_pre_pin(s);
    cu_pre_release(&sh.empty[at.slot], lane);
    cu_pre_next<S::SLOTS>(at);
    cu_pre_mask<S>(s, p, r, first_key, lane);
    cu_pre_soften<S>(s, r, rescale, p.scale_log2);
    cu_pre_pin(s);
    cu_pre_add<S>(s, r, rescale);
    cu_pre_pack<S>(weight, s);

#pragma unroll 1
    for (int32_t step = 1; step < t.step_count; step++) {
        const int32_t key_slot = at.slot;
        first_key += S::KEYS;
        ptx_mbarrier_wait(&sh.full[at.slot], at.parity);
        cu_pre_turn(wg);
        cu_pre_pin(o);
        ptx_wgmma_fence();
        cu_pre_issue_scores<S>(s, q, ring + at.slot * S::SLOT_BYTES);
        cu_pre_next<S::SLOTS>(at);
        ptx_mbarrier_wait(&sh.full[at.slot], at.parity);
        ptx_wgmma_fence();
        cu_pre_issue_output<S>(o, weight, ring + at.slot * S::SLOT_BYTES);
        cu_pre_turn_over(wg);
        ptx_wgmma_wait<1>();
        cu_pre_pin(s);
        cu_pre_release(&sh.empty[key_slot], lane);
        cu_pre_mask<S>(s, p, r, first_key, lane);
        cu_pre_soften<S>(s, r, rescale, p.scale_log2);
        cu_pre_pin(s);
        cu_pre_rescale<S>(o, rescale);
        ptx_wgmma_wait<0>();
        cu_pre_pin(o);
        cu_pre_pin(s);
        cu_pre_release(&sh.empty[at.slot], lane);
        cu_pre_next<S::SLOTS>(at);
        cu_pre_add<S>(s, r, rescale);
        cu_pre_pack<S>(weight, s);
    }
    cu_pre_release(&sh.q_empty[q_slot], lane);

    ptx_mbarrier_wait(&sh.full[at.slot], at.parity);
    cu_pre_turn(wg);
    cu_pre_pin(o);
    ptx_wgmma_fence();
    cu_pre_issue_output<S>(o, weight, ring + at.slot * S::SLOT_BYTES);
    cu_pre_turn_over(wg);
    ptx_wgmma_wait<0>();
    cu_pre_pin(o);
    cu_pre_release(&sh.empty[at.slot], lane);
    cu_pre_next<S::SLOTS>(at);
}

/* Four words of each of a quad's threads, transposed: thread i gets everyone's i-th. */
PTX_INLINE void cu_pre_transpose(uint32_t (&w)[4], int lane)
{
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint32_t got = __shfl_xor_sync(0xffffffffu, lane & 1 ? w[i] : w[i + 1], 1);
        if (lane & 1) w[i] = got;
        else w[i + 1] = got;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t got = __shfl_xor_sync(0xffffffffu, lane & 2 ? w[i] : w[i + 2], 2);
        if (lane & 2) w[i] = got;
        else w[i + 2] = got;
    }
}

/* Divides, rounds and stores row j of the thread's two; a quad has a row, and stores 64 bytes of it
 * at a time. */
template <class S>
PTX_INLINE void cu_pre_store_row(const cu_pre_params &p, const cu_pre_tile &t,
                                 const float (&o)[S::DIM / 2], float sum, int j, int row, int lane)
{
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const float inverse = 1.f / sum;
    const int32_t within = t.head + row, ahead = cu_pre_tokens(p, within), token = t.token + ahead,
                  head = t.kv_head * p.group + within - ahead * p.group,
                  chunk = token / KN_CU_TOKENS_MAX, in_chunk = token % KN_CU_TOKENS_MAX;
    const int32_t rows = chunk == p.last_chunk ? p.last_rows : KN_CU_TOKENS_MAX;
    uint8_t *out = p.out + chunk * p.chunk_bytes;
    const bool there = row < t.row_count;
#pragma unroll
    for (int g = 0; g < S::DIM / 32; g++) {
        uint32_t w[4];
#pragma unroll
        for (int n = 0; n < 4; n++) {
            const float *x = &o[(g * 4 + n) * 4 + j * 2];
            const __nv_bfloat162 pair = __floats2bfloat162_rn(x[0] * inverse, x[1] * inverse);
            w[n] = *(const uint32_t *)&pair;
        }
        cu_pre_transpose(w, lane);
        const int32_t d = (g * 4 + (lane & 3)) * 8;
        if (there && d < p.head_dim)
            *(uint4 *)(out + kn_cu_act_offset(rows, in_chunk, head * p.head_dim + d)) =
                make_uint4(w[0], w[1], w[2], w[3]);
    }
    const int32_t cols = p.q_heads * p.head_dim;
    if (!there || head != p.q_heads - 1) return;
    for (int32_t k = cols + (lane & 3) * 8; k < (cols + 127) / 128 * 128; k += 32)
        *(uint4 *)(out + kn_cu_act_offset(rows, in_chunk, k)) = make_uint4(0, 0, 0, 0);
}

template <class S>
PTX_INLINE void cu_pre_consume(const cu_pre_params &p, cu_pre_shared<S> &sh, int warp, int lane)
{
    const int wg = warp >> 2, row = warp * 16 + (lane >> 2);
    if (wg == 1) cu_pre_turn_over(1); /* warpgroup 0 has the first turn */
    cu_pre_place at;
    for (cu_pre_place q;; cu_pre_next<S::Q_SLOTS>(q)) {
        ptx_mbarrier_wait(&sh.q_full[q.slot], q.parity);
        const cu_pre_tile t = sh.tile[q.slot];
        if (!t.row_count) break;
        float o[S::DIM / 2];
        cu_pre_rows r;
        cu_pre_begin<S>(r, p, t, row);
        cu_pre_multiply<S>(p, sh, t, o, r, at, q.slot, wg, lane);
#pragma unroll
        for (int j = 0; j < 2; j++) cu_pre_store_row<S>(p, t, o, r.sum[j], j, row + 8 * j, lane);
    }
}

/* --- the kernel --- */

template <int DIM>
__global__ void __launch_bounds__(cu_pre_shape<DIM>::THREADS, 1)
    sm90_bf16_prefill_attention(const __grid_constant__ cu_pre_params p)
{
    CU_TRACE(ATTENTION, 1);
    using S = cu_pre_shape<DIM>;
    extern __shared__ __align__(1024) uint8_t shared[];
    cu_pre_shared<S> &sh = *(cu_pre_shared<S> *)shared;
    static_assert(sizeof(cu_pre_shared<S>) <= 227 * 1024, "the ring outgrew its shared memory");
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x >> 5, 0), lane = threadIdx.x & 31;
    ptx_griddep_launch();
    if (threadIdx.x == 0) {
        if (ptx_shared(shared) & 1023) __trap(); /* the swizzle counts from 1 KB boundaries */
        for (int i = 0; i < S::SLOTS; i++) {
            ptx_mbarrier_init(&sh.full[i], 1);
            ptx_mbarrier_init(&sh.empty[i], CU_ARRIVALS * S::CONSUMER_WARPS);
        }
        for (int i = 0; i < S::Q_SLOTS; i++) {
            ptx_mbarrier_init(&sh.tile_full[i], 1);
            ptx_mbarrier_init(&sh.q_full[i], 32);
            ptx_mbarrier_init(&sh.q_empty[i], CU_ARRIVALS * (S::CONSUMER_WARPS + 1));
        }
        ptx_fence_mbarrier_init();
    }
    __syncthreads();
    if (warp < S::CONSUMER_WARPS) {
        ptx_setmaxnreg_inc<S::CONSUMER_REGISTERS>();
        CU_TRACE_WAITED();
        cu_pre_consume<S>(p, sh, warp, lane);
    } else {
        ptx_setmaxnreg_dec<S::PRODUCER_REGISTERS>();
        if (warp == S::CONSUMER_WARPS) cu_pre_produce<S>(p, sh, lane);
        if (warp == S::CONSUMER_WARPS + 1) cu_pre_query<S>(p, sh, lane);
    }
}

#endif
