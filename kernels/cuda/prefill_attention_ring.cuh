/*
 * prefill_attention_ring.cuh - what the warps of a prefill attention CTA share (the essay is in
 * prefill_attention.cuh), and the three warps that do not multiply: the query warp, which takes
 * tiles, the producer, which fills the ring, and the poller, which sees remote copies land.
 */
#ifndef DAKD_KERNELS_CUDA_PREFILL_ATTENTION_RING_CUH
#define DAKD_KERNELS_CUDA_PREFILL_ATTENTION_RING_CUH

#include "kernels/cuda/prefill_attention.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/release.cuh"

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
    kn_cu_prefill_state *state;
    float4 *parked; /* [slots][CONSUMER_WARPS][DIM / 8 + 1][32] sums between two sections */
    const kn_cu_window *windows;
    kn_cu_traffic *traffic;
    int32_t tile_count;            /* of one kv-head */
    int32_t heads_at_once;         /* kv-heads whose tiles are mixed */
    int32_t last_chunk, last_rows; /* the chunk of `out` that is no whole one, and its bucket */
    int32_t q_heads, kv_heads, group, head_dim, window;
    uint32_t group_inverse; /* 2^16 / group, rounded up */
    float scale_log2;
    bool by_section;
};

/* Constants of heads of up to DIM dimensions; PACKED: KV is in fp8, of 65..128 dimensions, and
 * lands in stages, from which converters fill the ring (prefill_attention_e4m3.cuh). */
template <int DIM_MAX, bool IS_PACKED = false> struct cu_pre_shape {
    static constexpr bool PACKED = IS_PACKED;
    static constexpr int DIM = DIM_MAX;
    static constexpr int ATOMS = (DIM + 63) / 64;
    static constexpr int PAGES = DIM > 128 ? 1 : 2; /* of a step */
    static constexpr int KEYS = PAGES * KN_PAGE_TOKENS;
    static constexpr int SECTION = KN_CU_PREFILL_SECTION / KEYS; /* steps */
    static constexpr int HEAD_BYTES = ATOMS * KN_ATOM_BYTES;     /* K or V of a head's page */
    static constexpr int SLOT_BYTES = PAGES * HEAD_BYTES;
    static constexpr int WARPGROUPS = DIM > 64 ? 2 : 3; /* that multiply */
    static constexpr int ROWS = 64 * WARPGROUPS;
    static constexpr int Q_BYTES = WARPGROUPS * HEAD_BYTES;
    static constexpr int Q_SLOTS = DIM > 128 ? 1 : 2;
    static constexpr int TILE_SLOTS = 4; /* a tile is known from before its queries are there until
                                            it has been stored */
    /* Where copies land, and what each brings: K or V of a head's pages. */
    static constexpr int STAGE_PAGE_BYTES = PACKED ? KN_ATOM_BYTES + KN_PAGE_TOKENS : HEAD_BYTES;
    static constexpr int STAGE_BYTES = PACKED ? PAGES * STAGE_PAGE_BYTES : 0;
    static constexpr int COPIED_ATOMS = PACKED ? 1 : ATOMS; /* of a page's K, and of its V */
    static constexpr int ROOM = 227 * 1024 - 1024 - Q_SLOTS * Q_BYTES - 2 * STAGE_BYTES;
    static constexpr int SLOTS = ROOM / SLOT_BYTES;
    static constexpr int STAGES = PACKED ? 2 : SLOTS;
    static constexpr int THREADS = 128 * (WARPGROUPS + 1 + PACKED);
    static constexpr int CONSUMER_WARPS = 4 * WARPGROUPS;
    static constexpr int CONSUMER_REGISTERS = PACKED            ? 208
                                              : WARPGROUPS == 2 ? 232
                                                                : 160,
                         PRODUCER_REGISTERS = WARPGROUPS == 2 ? 40 : 32,
                         CONVERTER_REGISTERS = PACKED ? 56 : 0;
    static_assert(WARPGROUPS * CONSUMER_REGISTERS + PRODUCER_REGISTERS + CONVERTER_REGISTERS <=
                      (WARPGROUPS + 1 + PACKED) * (65536 / THREADS / 8 * 8),
                  "more registers than the launch gave: setmaxnreg would wait forever");
    static_assert(!PACKED || (DIM > 64 && DIM <= 128), "heads that have one atom of K in fp8");
    static_assert(SLOTS >= 4, "K and V of two steps must fit");
};

/* A tile as the warps of a CTA know it, and what of it is theirs; row_count 0: there is none any
 * more. */
struct __align__(16) cu_pre_tile
{
    int32_t token, position, head, row_count;
    int32_t table, page_begin, page_end, kv_count; /* pages some row sees, or later tokens do */
    int32_t first_step, last_step;                 /* that some row sees */
    int32_t step_begin, step_end;                  /* to be computed here */
    int32_t kv_head, slot;                         /* slot: where sums wait between sections */
    int32_t unused[2];
};

/* What a slot of the ring has been asked of remote tiers. */
struct __align__(16) cu_pre_trip
{
    uint32_t issued; /* clock */
    int32_t atoms;   /* of 8 KB, of each tier: 8 bits; -1: the ring's end */
    uint32_t unused[2];
};

/* Where fp8 lands, and what the converters are told of it. */
template <class S, bool PACKED = S::PACKED> struct cu_pre_stages {
};
template <class S> struct cu_pre_stages<S, true> {
    __align__(16) uint8_t bytes[S::STAGES][S::STAGE_BYTES];
    uint64_t full[S::STAGES], empty[S::STAGES];
    /* What it holds: cu_pre_packed, and of each page how many rows of V a token has written. */
    int32_t what[S::STAGES], rows[S::STAGES][S::PAGES];
};
enum cu_pre_packed { CU_PRE_KEYS, CU_PRE_VALUES, CU_PRE_END };

template <class S> struct cu_pre_shared {
    uint8_t q[S::Q_SLOTS][S::Q_BYTES];
    uint8_t ring[S::SLOTS][S::SLOT_BYTES];
    uint64_t full[S::SLOTS], empty[S::SLOTS];
    uint64_t tile_full[S::TILE_SLOTS], q_full[S::Q_SLOTS], q_empty[S::Q_SLOTS];
    cu_pre_tile tile[S::TILE_SLOTS];
    cu_pre_trip trip[S::STAGES]; /* kept where there are windows */
    /* The producer's: cu_pre_bound, and remote pages of which it has brought keys and values. */
    int32_t bound[KN_TIER_MAX];
    uint32_t remote_pages[KN_TIER_MAX];
    cu_pre_stages<S> stages;
};

/* Barriers of what copies land in. */
template <class S> PTX_INLINE uint64_t *cu_pre_landing(cu_pre_shared<S> &sh, int i)
{
    if constexpr (S::PACKED) return &sh.stages.full[i];
    else return &sh.full[i];
}
template <class S> PTX_INLINE uint64_t *cu_pre_vacant(cu_pre_shared<S> &sh, int i)
{
    if constexpr (S::PACKED) return &sh.stages.empty[i];
    else return &sh.empty[i];
}

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

/* Of a CTA's tile number n: its place in the ring of queries, and the parity of the pass. */
template <class S> PTX_INLINE int cu_pre_q_slot(uint32_t n)
{
    return n % S::Q_SLOTS;
}
template <class S> PTX_INLINE uint32_t cu_pre_q_parity(uint32_t n)
{
    return n / S::Q_SLOTS & 1;
}

/* A warp lets go of a slot. */
PTX_INLINE void cu_pre_release(uint64_t *empty, int lane)
{
    __syncwarp();
    cu_release(empty, lane);
}

/* --- query warp --- */

/* Entry `index` of all kv-heads'; the order is kv-heads_at_once by kv-heads_at_once, in them entry
 * by entry.  Without rows where the window hides all of its section. */
template <class S> PTX_INLINE cu_pre_tile cu_pre_tile_of(const cu_pre_params &p, int32_t index)
{
    const int32_t part_tiles = p.tile_count * p.heads_at_once, part = index / part_tiles,
                  first_head = part * p.heads_at_once,
                  heads = min(p.heads_at_once, p.kv_heads - first_head),
                  in_part = index - part * part_tiles, i = in_part / heads;
    const int4 *words = (const int4 *)(p.tiles + i);
    const int4 a = __ldg(words), b = __ldg(words + 1);
    cu_pre_tile t = {};
    t.token = a.x;
    t.position = a.y;
    t.head = a.z & 0xFFFF;
    const int32_t row_count = a.z >> 16, last = a.w, section = b.z;
    t.table = b.x;
    t.kv_count = b.y;
    const int32_t key_begin =
        p.window > 0 && t.position >= p.window ? t.position - p.window + 1 : 0;
    t.page_begin = key_begin / KN_PAGE_TOKENS;
    t.page_end = (t.kv_count + KN_PAGE_TOKENS - 1) / KN_PAGE_TOKENS;
    t.first_step = key_begin / S::KEYS;
    t.last_step = last / S::KEYS;
    t.kv_head = first_head + in_part - i * heads;
    t.step_begin = section < 0 ? t.first_step : max(t.first_step, section * S::SECTION);
    t.step_end =
        section < 0 ? t.last_step + 1 : min(t.last_step, (section + 1) * S::SECTION - 1) + 1;
    t.slot = section < 0 ? (int32_t)blockIdx.x : b.w * p.kv_heads + t.kv_head;
    t.row_count = t.step_begin < t.step_end ? row_count : 0;
    return t;
}

/* An entry for the CTA's tile number n, that no other CTA takes.  The first two of a CTA weigh as
 * much as any other CTA's; by section all entries with smaller indices have been taken before. */
PTX_INLINE int32_t cu_pre_take(const cu_pre_params &p, uint32_t n, int lane)
{
    const int32_t ctas = gridDim.x, cta = blockIdx.x;
    if (!p.by_section && n == 0) return cta;
    if (!p.by_section && n == 1) return 2 * ctas - 1 - cta;
    uint32_t ticket = 0;
    if (lane == 0) ticket = ptx_atomic_add_relaxed(&p.state->ticket, 1);
    return (int32_t)__shfl_sync(0xffffffffu, ticket, 0) + (p.by_section ? 0 : 2 * ctas);
}

/* Gathers the tile's rows, zeros beyond the last one and beyond the head's dimensions. */
template <class S>
PTX_INLINE void cu_pre_load_q(const cu_pre_params &p, const cu_pre_tile &t, uint8_t *to, int lane)
{
    constexpr int CHUNKS = S::ATOMS * 8, ROWS = 32 / CHUNKS > 0 ? 32 / CHUNKS : 1;
    const int chunk = lane % CHUNKS;
    const bool inside = chunk * 8 < p.head_dim;
    int32_t token = t.token, head = t.head + lane / CHUNKS;
    uint8_t *column = to + (chunk >> 3) * (S::WARPGROUPS * KN_ATOM_BYTES);
#pragma unroll 1
    for (int row = lane / CHUNKS; row < S::ROWS; row += ROWS, head += ROWS) {
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
    const int32_t count = p.tile_count * p.kv_heads;
    int32_t index = cu_pre_take(p, 0, lane);
    uint32_t n = 0;
    for (;; n++) {
        const int slot = cu_pre_q_slot<S>(n);
        /* No tile is taken earlier than it need be, for CTAs to end together. */
        if (S::Q_SLOTS > 1) ptx_mbarrier_wait(&sh.q_empty[slot], cu_pre_q_parity<S>(n) ^ 1);
        if (n) index = cu_pre_take(p, n, lane);
        cu_pre_tile t = {};
        for (; index < count; index = cu_pre_take(p, n, lane)) {
            t = cu_pre_tile_of<S>(p, index);
            if (t.row_count) break;
        }
        if (lane == 0) {
            sh.tile[n % S::TILE_SLOTS] = t;
            ptx_mbarrier_arrive(&sh.tile_full[n % S::TILE_SLOTS]);
        }
        if (S::Q_SLOTS == 1) ptx_mbarrier_wait(&sh.q_empty[slot], cu_pre_q_parity<S>(n) ^ 1);
        if (!t.row_count) break;
        cu_pre_load_q<S>(p, t, sh.q[slot], lane);
        ptx_cp_async_wait_all();
        ptx_fence_proxy_async();
        ptx_mbarrier_arrive(&sh.q_full[slot]);
    }
    ptx_mbarrier_arrive(&sh.q_full[cu_pre_q_slot<S>(n)]);
    if (lane || ptx_atomic_add_acq_rel(&p.state->done, 1) != gridDim.x - 1) return;
    p.state->ticket = p.state->done = 0;
}

/* --- producer --- */

PTX_INLINE const uint8_t *cu_pre_page(const cu_pre_params &p, kn_page page)
{
    return p.base[page >> 28] + (size_t)(page & 0x0FFFFFFFu) * p.page_bytes;
}

/* The same value, which the compiler then knows to be every lane's: a producer whose state is not
 * in uniform registers takes so much longer to issue a copy that consumers wait for it. */
PTX_INLINE int32_t cu_pre_uniform(int32_t value)
{
    return __shfl_sync(0xffffffffu, value, 0);
}

/* The atoms of 8 KB of a tier that may be in flight. */
PTX_INLINE int32_t cu_pre_bound(const kn_cu_window &w)
{
    const int32_t ctas = min(max(__ldcg(&w.ctas), 1), 1024),
                  blocks = min(max(__ldcg(&w.blocks), 1), 1024);
    return ctas * blocks * (KN_BLOCK_BYTES / KN_ATOM_BYTES);
}

/* Waits until `atoms` more of a tier may be in flight: until their place in the line of all that
 * were ever asked for is within the bound from what has landed.  More than the bound go when
 * nothing else is in flight. */
PTX_INLINE void cu_pre_admit(const cu_pre_params &p, int tier, int32_t atoms, int32_t bound,
                             int lane)
{
    kn_cu_prefill_state::kn_cu_prefill_flight *flight = &p.state->flight[tier];
    uint32_t asked = 0;
    if (lane == 0) asked = ptx_atomic_add_relaxed(&flight->asked, atoms);
    const uint32_t end = (uint32_t)cu_pre_uniform((int32_t)asked) + atoms;
    const int32_t most = max(bound, atoms);
    PTX_SPIN_UNTIL((int32_t)(end - cu_pre_uniform((int32_t)ptx_load_relaxed(&flight->landed))) <=
                   most);
}

/* Waits for the slot, and for its turn in the windows of the pages' tiers. */
template <class S>
PTX_INLINE void cu_pre_await(const cu_pre_params &p, cu_pre_shared<S> &sh, cu_pre_place &at,
                             const kn_page (&page)[S::PAGES], int lane)
{
    ptx_mbarrier_wait(cu_pre_vacant(sh, at.slot), at.parity ^ 1);
    if (!p.windows) return;
    int32_t atoms = 0;
#pragma unroll
    for (int j = 0; j < S::PAGES; j++)
        if (page[j] != KN_PAGE_NONE && page[j] >> 28)
            atoms += S::COPIED_ATOMS << (page[j] >> 28) * 8;
#pragma unroll 1
    for (int tier = 1; tier < KN_TIER_MAX && atoms; tier++) {
        const int32_t count = atoms >> tier * 8 & 255;
        if (count) cu_pre_admit(p, tier, count, cu_pre_uniform(sh.bound[tier]), lane);
    }
    if (lane == 0) {
        sh.trip[at.slot].atoms = atoms;
        sh.trip[at.slot].issued = ptx_clock();
    }
    __syncwarp();
}

template <class S>
PTX_INLINE void cu_pre_issue_keys(const cu_pre_params &p, cu_pre_shared<S> &sh, cu_pre_place &at,
                                  const kn_page (&page)[S::PAGES], size_t head, int lane)
{
    cu_pre_await<S>(p, sh, at, page, lane);
    uint64_t *full = &sh.full[at.slot];
    uint8_t *slot = sh.ring[at.slot];
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
    cu_pre_next<S::SLOTS>(at);
}

/* left: tokens there are from the step's first key on.  Rows of others become zeros. */
template <class S>
PTX_INLINE void cu_pre_issue_values(const cu_pre_params &p, cu_pre_shared<S> &sh, cu_pre_place &at,
                                    const kn_page (&page)[S::PAGES], size_t head, int32_t left,
                                    int lane)
{
    cu_pre_await<S>(p, sh, at, page, lane);
    uint64_t *full = &sh.full[at.slot];
    uint8_t *slot = sh.ring[at.slot];
    int32_t rows[S::PAGES], all = 0;
#pragma unroll
    for (int j = 0; j < S::PAGES; j++) {
        rows[j] = page[j] == KN_PAGE_NONE ? 0 : min(left - j * KN_PAGE_TOKENS, KN_PAGE_TOKENS);
        all += rows[j];
#pragma unroll 1
        for (int a = 0; a < S::ATOMS && rows[j] < KN_PAGE_TOKENS; a++)
#pragma unroll 1
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
#pragma unroll 1
            for (int a = 0; a < S::ATOMS && rows[j] < KN_PAGE_TOKENS; a++)
                ptx_bulk_load(to + a * KN_ATOM_BYTES, from + a * KN_ATOM_BYTES,
                              rows[j] * KN_ATOM_ROW_BYTES, full);
            if (page[j] >> 28) sh.remote_pages[page[j] >> 28]++;
        }
    }
    __syncwarp();
    cu_pre_next<S::SLOTS>(at);
}

/* The same for KV in fp8, of keys or of values: the copies, and what the converters are to know. */
template <class S>
PTX_INLINE void cu_pre_issue_packed(const cu_pre_params &p, cu_pre_shared<S> &sh, cu_pre_place &at,
                                    const kn_page (&page)[S::PAGES], size_t head, bool value,
                                    int32_t left, int lane)
{
    cu_pre_await<S>(p, sh, at, page, lane);
    if (lane == 0) {
        uint64_t *full = &sh.stages.full[at.slot];
        uint8_t *stage = sh.stages.bytes[at.slot];
        uint32_t bytes = 0;
        sh.stages.what[at.slot] = value ? CU_PRE_VALUES : CU_PRE_KEYS;
#pragma unroll
        for (int j = 0; j < S::PAGES; j++) {
            const bool there = page[j] != KN_PAGE_NONE;
            sh.stages.rows[at.slot][j] =
                there ? max(0, min(left - j * KN_PAGE_TOKENS, KN_PAGE_TOKENS)) : 0;
            bytes += there ? S::STAGE_PAGE_BYTES : 0;
        }
        ptx_mbarrier_expect_tx(full, bytes);
#pragma unroll
        for (int j = 0; j < S::PAGES; j++) {
            if (page[j] == KN_PAGE_NONE) continue;
            const uint8_t *from = cu_pre_page(p, page[j]) + head;
            uint8_t *to = stage + j * S::STAGE_PAGE_BYTES;
            ptx_bulk_load(to, from + value * KN_ATOM_BYTES, KN_ATOM_BYTES, full);
            ptx_bulk_load(to + KN_ATOM_BYTES, from + 2 * KN_ATOM_BYTES + value * KN_PAGE_TOKENS,
                          KN_PAGE_TOKENS, full);
            if (value && page[j] >> 28) sh.remote_pages[page[j] >> 28]++;
        }
    }
    __syncwarp();
    cu_pre_next<S::STAGES>(at);
}

/* Lane i: the tile's page-table entry `first` + i; KN_PAGE_NONE where no row sees it. */
PTX_INLINE kn_page cu_pre_entry(const cu_pre_params &p, const cu_pre_tile &t, int32_t first,
                                int lane)
{
    const int32_t page = first + lane;
    return page >= t.page_begin && page < t.page_end ? __ldg(p.pages + t.table + page)
                                                     : KN_PAGE_NONE;
}

/* Steps [begin, end) of a tile: of one section. */
template <class S>
PTX_INLINE void cu_pre_produce_section(const cu_pre_params &p, cu_pre_shared<S> &sh,
                                       cu_pre_place &at, const cu_pre_tile &t, int32_t begin,
                                       int32_t end, int lane)
{
    const int32_t first_page = begin * S::PAGES, kv_count = cu_pre_uniform(t.kv_count);
    const size_t head = (size_t)cu_pre_uniform(t.kv_head) * (2 * S::STAGE_PAGE_BYTES);
    kn_page entry = KN_PAGE_NONE, next = cu_pre_entry(p, t, first_page, lane);
    kn_page page[S::PAGES], old[S::PAGES];
#pragma unroll 1
    for (int32_t step = begin; step <= end; step++) {
        const int32_t i = (step - begin) * S::PAGES;
#pragma unroll
        for (int j = 0; j < S::PAGES; j++) old[j] = page[j];
        if (step < end) {
            if (i % 32 == 0) {
                entry = next;
                next = cu_pre_entry(p, t, first_page + i + 32, lane);
            }
#pragma unroll
            for (int j = 0; j < S::PAGES; j++)
                page[j] = __shfl_sync(0xffffffffu, entry, (i + j) % 32);
            if constexpr (S::PACKED)
                cu_pre_issue_packed<S>(p, sh, at, page, head, false, S::KEYS, lane);
            else cu_pre_issue_keys<S>(p, sh, at, page, head, lane);
        }
        if (step <= begin) continue;
        const int32_t left = kv_count - (step - 1) * S::KEYS;
        if constexpr (S::PACKED) cu_pre_issue_packed<S>(p, sh, at, old, head, true, left, lane);
        else cu_pre_issue_values<S>(p, sh, at, old, head, left, lane);
    }
}

/* The end of the section that a step is in, or of what the CTA has of its tile. */
template <class S> PTX_INLINE int32_t cu_pre_section_end(int32_t step_end, int32_t step)
{
    return min((step / S::SECTION + 1) * S::SECTION, step_end);
}

template <class S>
PTX_INLINE void cu_pre_produce(const cu_pre_params &p, cu_pre_shared<S> &sh, int lane)
{
    ptx_griddep_wait();
    ptx_fence_proxy_async_global(); /* what the kernel before appended to the pages */
    if (lane < KN_TIER_MAX) {
        sh.bound[lane] = p.windows ? cu_pre_bound(p.windows[lane]) : 0;
        sh.remote_pages[lane] = 0;
    }
    __syncwarp();
    cu_pre_place at;
    uint32_t pages = 0;
    for (uint32_t n = 0;; n++) {
        ptx_mbarrier_wait(&sh.tile_full[n % S::TILE_SLOTS], n / S::TILE_SLOTS & 1);
        const cu_pre_tile &t = sh.tile[n % S::TILE_SLOTS];
        const int32_t step_end = cu_pre_uniform(t.step_end);
        if (!cu_pre_uniform(t.row_count)) break;
        for (int32_t begin = cu_pre_uniform(t.step_begin), end; begin < step_end; begin = end) {
            end = cu_pre_section_end<S>(step_end, begin);
            pages += min(end * S::PAGES, t.page_end) - max(begin * S::PAGES, t.page_begin);
            cu_pre_produce_section<S>(p, sh, at, t, begin, end, lane);
        }
    }
    if (lane) return;
    if (p.windows || S::PACKED) { /* the poller's end, and the converters' */
        ptx_mbarrier_wait(cu_pre_vacant(sh, at.slot), at.parity ^ 1);
        sh.trip[at.slot].atoms = -1;
        if constexpr (S::PACKED) sh.stages.what[at.slot] = CU_PRE_END;
        ptx_mbarrier_arrive(cu_pre_landing(sh, at.slot));
    }
    if (!p.traffic) return;
#pragma unroll 1
    for (int tier = 1; tier < KN_TIER_MAX; tier++) {
        const uint32_t remote = sh.remote_pages[tier];
        if (remote)
            ptx_atomic_add_relaxed_u64(&p.traffic[tier].blocks, (uint64_t)remote * S::COPIED_ATOMS);
        pages -= remote;
    }
    ptx_atomic_add_relaxed_u64(&p.traffic[0].blocks, (uint64_t)pages * S::COPIED_ATOMS);
}

/* --- poller --- */

/* Of a tier, in one slot. */
PTX_INLINE void cu_pre_landed(const cu_pre_params &p, int tier, uint32_t atoms, uint32_t clocks)
{
    ptx_atomic_add_relaxed(&p.state->flight[tier].landed, atoms);
    if (!p.traffic) return;
    kn_cu_traffic *to = &p.traffic[tier];
    ptx_atomic_add_relaxed_u64(&to->trips, 1);
    ptx_atomic_add_relaxed_u64(&to->trip_clocks, clocks);
    ptx_atomic_min_relaxed(&to->trip_min, clocks);
    ptx_atomic_max_relaxed(&to->trip_max, clocks);
}

/* One lane: says at once what has landed.  The producer cannot: it may wait for consumers, and they
 * for another CTA, which waits for its turn in the window. */
template <class S> PTX_INLINE void cu_pre_poll(const cu_pre_params &p, cu_pre_shared<S> &sh)
{
    ptx_griddep_wait();
    for (cu_pre_place at;; cu_pre_next<S::STAGES>(at)) {
        ptx_mbarrier_wait(cu_pre_landing(sh, at.slot), at.parity);
        const uint32_t now = ptx_clock();
        const cu_pre_trip trip = sh.trip[at.slot];
        if (trip.atoms < 0) break;
        ptx_mbarrier_arrive(cu_pre_vacant(sh, at.slot));
#pragma unroll 1
        for (int tier = 1; tier < KN_TIER_MAX; tier++) {
            const uint32_t atoms = trip.atoms >> tier * 8 & 255;
            if (atoms) cu_pre_landed(p, tier, atoms, now - trip.issued);
        }
    }
}

#endif
