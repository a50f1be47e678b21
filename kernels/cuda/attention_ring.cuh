/*
 * attention_ring.cuh - what the warps of a decode attention CTA share (decode_attention.cuh says
 * how they work together), and the two that keep the ring: the producer, which takes items and
 * fills stages, and the poller, which stamps landings of remote blocks.
 */
#ifndef DAKD_KERNELS_CUDA_ATTENTION_RING_CUH
#define DAKD_KERNELS_CUDA_ATTENTION_RING_CUH

#include "kernels/cuda/attention_plan.cuh"
#include "kernels/cuda/release.cuh"

enum {
    CU_ATT_STAGES_MAX = 6,
};

/* What heads the kernels are made for, their parameter ATOMS: 1, 2 or 4 atoms of bf16, or heads of
 * 65..128 dimensions in e4m3. */
enum { CU_ATT_E4M3 = 8 };

/* What a launch needs; passed by value. */
struct cu_att_params {
    const kn_cu_unit *units;
    kn_cu_plan_head *head;
    const kn_page *pages;
    const uint8_t *base[KN_TIER_MAX]; /* of this layer's heads */
    size_t page_bytes;
    const uint8_t *q;
    uint32_t *partial, *partial_ml, *group_partial, *group_ml;
    uint32_t *group_count, *root_count;
    uint8_t *out;
    kn_cu_traffic *traffic;
    int32_t units_max, token_rows, stages;
    int32_t chunk_skip; /* in `out`, from a token to the next where a chunk begins, beside a row */
    uint32_t kv_heads_inverse; /* ceil(2^32 / Hkv), 0 for one */
    int32_t q_heads, kv_heads, group, head_dim;
    int32_t row_shift; /* log2 of the combiner threads that share a row */
    float scale_log2;
};

template <int ATOMS, int ROWS> struct cu_att_shape {
    static constexpr int PAGE_STAGES = ATOMS; /* of one head's page: K and V */
    static constexpr int STAGE_BYTES = KN_BLOCK_BYTES;
    static constexpr int TEAMS = ATOMS == 4 ? 2 : 1;
    static constexpr int CONSUMERS = 4 * TEAMS; /* warps */
    static constexpr int COMBINERS = TEAMS == 1 ? 4 : 2;
    static constexpr int THREADS = 32 * (CONSUMERS + 2 + COMBINERS);
    static constexpr int REGISTERS =
        TEAMS == 1 && ROWS == 8 ? 128 : 168;         /* 128: room for the next kernel */
    static constexpr int TILES = ATOMS == 1 ? 4 : 8; /* 16-wide output tiles of a warp */
    static constexpr int PIECES = ROWS == 8 || ATOMS == 1 ? TILES : 4; /* of V, read at once */
    static constexpr int CHAINS = ROWS == 8 ? 4 : 2; /* of products that make a score */
    static constexpr int STEPS = ATOMS * 4;          /* 16-wide steps over the head dimension */
    static constexpr int Q_BYTES = ROWS * ATOMS * 128;
    static constexpr int Q_SLOTS = (CU_ATT_STAGES_MAX + PAGE_STAGES - 1) / PAGE_STAGES;
    static constexpr int DUMP_ROW = TILES * 16 + 4; /* floats; the 4 keep rows in distinct banks */
    static constexpr int HALVES = ROWS / 8;
    static constexpr int QUADS = ROWS * ATOMS * 16 / (COMBINERS * 32); /* of a combiner thread */
    static constexpr int PARTS = 4; /* warps that each have a part of a unit's tokens */
    /* In a tile of output, dimensions of an accumulator's row and the one eight rows on. */
    static constexpr int ROW_DIMS = 1, ROW_8_DIMS = 8;
};

/* A page of a head is one stage. */
template <int ROWS> struct cu_att_shape<CU_ATT_E4M3, ROWS> {
    static constexpr int PAGE_STAGES = 1;
    static constexpr int STAGE_BYTES = CU_ATT_E4M3_HEAD_BYTES;
    static constexpr int TEAMS = 2, CONSUMERS = 4 * TEAMS, COMBINERS = 2;
    static constexpr int THREADS = 32 * (CONSUMERS + 2 + COMBINERS);
    static constexpr int REGISTERS = ROWS == 8 ? 128 : 168;
    static constexpr int TILES = 8, STEPS = 8;
    static constexpr int Q_BYTES = ROWS * 256;
    static constexpr int Q_SLOTS = CU_ATT_STAGES_MAX;
    static constexpr int DUMP_ROW = TILES * 16 + 4;
    static constexpr int HALVES = ROWS / 8;
    static constexpr int QUADS = ROWS * 32 / (COMBINERS * 32);
    static constexpr int PARTS = CONSUMERS;
    static constexpr int ROW_DIMS = 2, ROW_8_DIMS = 1;
};

/* Of a page: it begins an item, begins a unit, ends a unit, ends an item, is of an item that is all
 * of its group; or the ring's end.  The item's number of units and the log2 of a unit's pages are
 * in the bits from CU_ATT_UNITS_AT and CU_ATT_SHIFT_AT on. */
enum {
    CU_ATT_ITEM = 1,
    CU_ATT_FIRST = 2,
    CU_ATT_LAST = 4,
    CU_ATT_ITEM_LAST = 8,
    CU_ATT_WHOLE = 16,
    CU_ATT_END = 32,
    CU_ATT_UNITS_AT = 8,
    CU_ATT_SHIFT_AT = 16,
};

/* What a page's first stage holds; written by the producer before the stage's barrier. */
struct __align__(16) cu_att_page
{
    int32_t key_begin, key_end; /* keys the token sees, relative to the page */
    int32_t flags, head;
    int32_t token, slot, first_slot, unit_count; /* of an item's first and a unit's last page */
};
/* Every stage's tier and cycle of issue; kept where the CTA reads a remote tier. */
struct cu_att_trip {
    int32_t tier;
    uint32_t issued;
};

struct __align__(16) cu_att_finished
{
    int32_t token, slot, first_slot, unit_count, head;
    int32_t flags; /* of the unit's last page */
};

/* Shared memory but for the ring (`stages` stages, first) and the dump (last). */
template <int ATOMS, int ROWS> struct cu_att_shared {
    using shape = cu_att_shape<ATOMS, ROWS>;
    uint8_t q[shape::Q_SLOTS][shape::Q_BYTES];
    float2 ml[shape::PARTS][ROWS]; /* of the finished unit */
    cu_att_page page[CU_ATT_STAGES_MAX];
    cu_att_trip trip[CU_ATT_STAGES_MAX];
    cu_att_finished finished;
    uint32_t count_last;
    uint64_t full[CU_ATT_STAGES_MAX], empty[CU_ATT_STAGES_MAX];
    uint64_t finished_full, finished_empty;
};
/* Ring stage s. */
template <typename SHARED> PTX_INLINE uint8_t *cu_att_ring(SHARED &sh, int stages, int s)
{
    return (uint8_t *)&sh - (stages - s) * SHARED::shape::STAGE_BYTES;
}
/* The finished unit's accumulators, [warp][group][DUMP_ROW]. */
template <typename SHARED> PTX_INLINE float *cu_att_dump(SHARED &sh)
{
    return (float *)((uint8_t *)&sh + (sizeof sh + 15) / 16 * 16);
}
template <int ATOMS, int ROWS> constexpr int cu_att_shared_bytes(int stages, int group)
{
    using shape = cu_att_shape<ATOMS, ROWS>;
    return stages * shape::STAGE_BYTES +
           (int)((sizeof(cu_att_shared<ATOMS, ROWS>) + 15) / 16 * 16) +
           shape::CONSUMERS * group * shape::DUMP_ROW * 4;
}

/* A CTA's part: the remote tier it reads first (0: none), and its rank among the readers. */
struct cu_att_role {
    int32_t tier, rank, peers;
    int32_t local_peers;             /* CTAs that start with local items */
    int32_t tier_items, local_items; /* of all CTAs together */
    int32_t spread_pages;            /* of the plan */
};

PTX_INLINE cu_att_role cu_att_role_of(const cu_att_params &p, int cta, int grid)
{
    const kn_cu_plan_head *head = p.head;
    cu_att_role role = {
        0, 0, 0, 0, 0, __ldcg(&head->unit_count[0]) * p.kv_heads, __ldcg(&head->spread_pages)};
    int taken = 0;
#pragma unroll
    for (int t = 1; t < KN_TIER_MAX; t++) {
        const int items = __ldcg(&head->unit_count[t]);
        const int readers = items ? max(1, min(__ldcg(&head->window[t].ctas), grid / 4)) : 0;
        if (cta >= taken && cta < taken + readers) {
            role.tier = t;
            role.rank = cta - taken;
            role.peers = readers;
            role.tier_items = items * p.kv_heads;
        }
        taken += readers;
    }
    role.local_peers = grid - taken;
    if (role.tier == 0) {
        role.rank = cta - taken;
        role.peers = role.local_peers;
    }
    return role;
}

/* A place in the ring: stage, parity of its full barrier, and how many went before. */
struct cu_att_cursor {
    int32_t stage = 0, used = 0;
    uint32_t parity = 0;
};
PTX_INLINE void cu_att_next(cu_att_cursor *c, int stages)
{
    c->used++;
    if (++c->stage == stages) {
        c->stage = 0;
        c->parity ^= 1;
    }
}

/* --- producer --- */

/* The order in which a CTA takes items: three by rank, then by ticket; its remote tier, then local.
 */
struct cu_att_source {
    cu_att_role role;
    int32_t tier, rank, peers, taken;
};
/* A claim: lane 0 holds the item's index in its tier's list once the atomic returns. */
struct cu_att_claim {
    int32_t tier, index;
};

PTX_INLINE cu_att_claim cu_att_take(const cu_att_params &p, cu_att_source *s, int lane)
{
    cu_att_claim c = {s->tier, 0};
    if (s->taken < CU_ATT_STATIC) {
        c.index = s->rank + s->taken++ * s->peers;
    } else if (lane == 0) {
        c.index =
            CU_ATT_STATIC * s->peers + (int)ptx_atomic_add_relaxed(&p.head->ticket[s->tier], 1);
    }
    return c;
}

struct cu_att_item {
    int4 a; /* the item's token, slot, first_slot, unit_count */
    int4 b; /* page_begin, page_end, key_begin, key_end */
    int4 c; /* table, old_pages, unit_shift, whole */
    int32_t head;
    bool there;
};

/* Begins to load a claimed item; not `there` when none is left. */
PTX_INLINE cu_att_item cu_att_load_item(const cu_att_params &p, cu_att_source *s, cu_att_claim c,
                                        int lane)
{
    cu_att_item item = {};
    int index = __shfl_sync(0xffffffffu, c.index, 0);
    if (index >= (c.tier ? s->role.tier_items : s->role.local_items)) {
        if (c.tier == 0) return item;
        if (s->tier != 0) { /* the remote list is used up: help with the local one */
            s->tier = 0;
            s->peers = s->role.local_peers;
            s->taken = CU_ATT_STATIC;
        }
        c = cu_att_take(p, s, lane);
        index = __shfl_sync(0xffffffffu, c.index, 0);
        if (index >= s->role.local_items) return item;
    }
    const int entry = p.kv_heads_inverse ? __umulhi(index, p.kv_heads_inverse) : index;
    const int4 *words = (const int4 *)(p.units + (size_t)c.tier * p.units_max + entry);
    item.a = __ldcg(words); /* past L1, for the plan may be as young as this kernel */
    item.b = __ldcg(words + 1);
    item.c = __ldcg(words + 2);
    item.head = index - entry * p.kv_heads;
    item.there = true;
    return item;
}

/* Lane i: entry i of the item's part of the page table. */
PTX_INLINE kn_page cu_att_load_entry(const cu_att_params &p, const cu_att_item &item, int lane)
{
    return item.there && item.b.x + lane < item.b.y ? __ldg(p.pages + item.c.x + item.b.x + lane)
                                                    : 0;
}

/* The producer's state, the same in all lanes. */
struct cu_att_issuer {
    cu_att_cursor at;
    uint32_t remote_history = 0; /* bit i: the stage issued i + 1 ago is remote */
    int32_t q_slot = 0;
    bool waited = false; /* for the previous kernel */
};

/* Waits until fewer than `blocks` remote copies of this CTA are in flight. */
template <typename SHARED>
PTX_INLINE void cu_att_window_wait(SHARED &sh, const cu_att_issuer &is, int blocks, int stages)
{
    uint32_t recent = is.remote_history & ((1u << (stages - 1)) - 1);
    for (int i = 1; i < blocks && recent; i++) recent &= recent - 1;
    if (!recent) return;
    const int use = is.at.used - __ffs(recent);
    ptx_mbarrier_wait(&sh.full[use % stages], (use / stages) & 1);
}

template <typename SHAPE>
PTX_INLINE const uint8_t *cu_att_q(const cu_att_params &p, int token, int head)
{
    return p.q + ((size_t)token * p.kv_heads + head) * SHAPE::Q_BYTES;
}

/* The previous kernel is complete: brings the query tiles of the pages issued before, and lets the
 * next kernel begin (decode_attention.cuh). */
template <int ATOMS, int ROWS>
PTX_INLINE void cu_att_wait_previous(const cu_att_params &p, cu_att_shared<ATOMS, ROWS> &sh,
                                     cu_att_issuer &is, int lane)
{
    using shape = cu_att_shape<ATOMS, ROWS>;
    is.waited = true;
    ptx_griddep_wait();
    ptx_griddep_launch();
    ptx_fence_proxy_async_global();
    const int s = lane * shape::PAGE_STAGES;
    if (s < is.at.used && (sh.page[s].flags & CU_ATT_ITEM))
        ptx_bulk_load(sh.q[lane], cu_att_q<shape>(p, sh.page[s].token, sh.page[s].head),
                      shape::Q_BYTES, &sh.full[s]);
    __syncwarp();
}

/* Issues an item's pages, lane i the i-th: its address and description are computed at once for
 * all of them, and what is left per stage is a wait, a store, the barrier's count and the copy.
 * Reads the next item's part of the page table after the first page, when that item is known. */
template <int ATOMS, int ROWS, bool REMOTE>
PTX_INLINE void cu_att_issue(const cu_att_params &p, cu_att_shared<ATOMS, ROWS> &sh,
                             cu_att_issuer &is, const cu_att_item &item, kn_page entry,
                             const cu_att_item &next, kn_page *next_entry, int lane,
                             uint64_t policy)
{
    using shape = cu_att_shape<ATOMS, ROWS>;
    const int begin = item.b.x, count = item.b.y - begin,
              first_key = (begin + lane) * KN_PAGE_TOKENS;
    const int tier = cu_page_tier(entry), old_count = item.c.y - begin;
    const uint8_t *from = p.base[tier] + (size_t)cu_page_index(entry) * p.page_bytes +
                          (size_t)item.head * (shape::PAGE_STAGES * shape::STAGE_BYTES);
    const int shift = item.c.z, unit_last = (1 << shift) - 1;
    const int flags = (lane == 0 ? CU_ATT_ITEM : 0) | (lane & unit_last ? 0 : CU_ATT_FIRST) |
                      (lane == count - 1 ? CU_ATT_LAST | CU_ATT_ITEM_LAST : 0) |
                      ((lane & unit_last) == unit_last ? CU_ATT_LAST : 0) |
                      (item.c.w ? CU_ATT_WHOLE : 0) |
                      ((count - 1 >> shift) + 1) << CU_ATT_UNITS_AT | shift << CU_ATT_SHIFT_AT;
    const int4 unit = make_int4(item.a.x, item.a.y + (lane >> shift), item.a.z, item.a.w);
    const int4 page = make_int4(item.b.z - first_key, item.b.w - first_key, flags, item.head);
    const uint8_t *q = cu_att_q<shape>(p, item.a.x, item.head);
    /* What the step has yet to write of a page goes to L2, where the rest of it may wait. */
    if (!is.waited && lane >= old_count && lane < count)
        ptx_bulk_prefetch(from, shape::PAGE_STAGES * shape::STAGE_BYTES);
    for (int i = 0; i < count; i++) {
        if (i == (count > 1)) *next_entry = cu_att_load_entry(p, next, lane);
        if (!is.waited && (i >= old_count || is.at.used + shape::PAGE_STAGES > p.stages))
            cu_att_wait_previous(p, sh, is, lane);
        const int page_tier = REMOTE ? __shfl_sync(0xffffffffu, tier, i) : 0;
#pragma unroll
        for (int j = 0; j < shape::PAGE_STAGES; j++) {
            const int s = is.at.stage;
            if (is.at.used >= p.stages) ptx_mbarrier_wait(&sh.empty[s], is.at.parity ^ 1);
            if (REMOTE && page_tier)
                cu_att_window_wait(sh, is, max(1, __ldcg(&p.head->window[page_tier].blocks)),
                                   p.stages);
            if (lane == i) {
                if (j == 0) {
                    *(int4 *)&sh.page[s].key_begin = page;
                    if (flags & (CU_ATT_ITEM | CU_ATT_LAST)) *(int4 *)&sh.page[s].token = unit;
                }
                if (REMOTE) sh.trip[s] = {tier, ptx_clock()};
                const bool with_q = j == 0 && (flags & CU_ATT_ITEM);
                ptx_mbarrier_expect_tx(&sh.full[s],
                                       shape::STAGE_BYTES + (with_q ? shape::Q_BYTES : 0));
                ptx_bulk_load_hint(cu_att_ring(sh, p.stages, s), from + j * shape::STAGE_BYTES,
                                   shape::STAGE_BYTES, &sh.full[s], policy);
                if (with_q && is.waited)
                    ptx_bulk_load(sh.q[is.q_slot], q, shape::Q_BYTES, &sh.full[s]);
            }
            if (REMOTE) is.remote_history = is.remote_history << 1 | (page_tier != 0);
            cu_att_next(&is.at, p.stages);
        }
        if (++is.q_slot == shape::Q_SLOTS) is.q_slot = 0;
        __syncwarp();
    }
}

/* The last CTA to have taken its last item clears the tickets, where there were any. */
PTX_INLINE void cu_att_leave(const cu_att_params &p, const cu_att_role &role, uint64_t blocks)
{
    if (p.traffic && blocks) atomicAdd((unsigned long long *)&p.traffic[0].blocks, blocks);
    if (role.spread_pages) return;
    if (ptx_atomic_add_acq_rel(&p.head->done, 1) != gridDim.x - 1) return;
    for (int t = 0; t < KN_TIER_MAX; t++) p.head->ticket[t] = 0;
    p.head->done = 0;
}

template <int ATOMS, int ROWS, bool REMOTE>
PTX_INLINE void cu_att_produce(const cu_att_params &p, cu_att_shared<ATOMS, ROWS> &sh,
                               const cu_att_role &role, int lane)
{
    const uint64_t policy = ptx_policy_evict_first();
    cu_att_source source = {role, role.tier, role.rank, role.peers, 0};
    cu_att_issuer is;
    uint64_t remote_blocks = 0;
    if (REMOTE) cu_att_wait_previous(p, sh, is, lane);

    cu_att_item item = cu_att_load_item(p, &source, cu_att_take(p, &source, lane), lane);
    cu_att_item next = cu_att_load_item(p, &source, cu_att_take(p, &source, lane), lane);
    kn_page entry = cu_att_load_entry(p, item, lane), next_entry = 0;
    while (item.there) { /* claimed ahead: two items, for the sake of an even end */
        const cu_att_claim third = cu_att_take(p, &source, lane);
        if (REMOTE)
            remote_blocks += cu_att_shape<ATOMS, ROWS>::PAGE_STAGES *
                             __popc(__ballot_sync(0xffffffffu, cu_page_tier(entry) != 0));
        cu_att_issue<ATOMS, ROWS, REMOTE>(p, sh, is, item, entry, next, &next_entry, lane, policy);
        if (!is.waited) cu_att_wait_previous(p, sh, is, lane);
        item = next;
        entry = next_entry;
        next = cu_att_load_item(p, &source, third, lane);
    }
    if (!is.waited) cu_att_wait_previous(p, sh, is, lane);
    if (lane != 0) return;
    const int s = is.at.stage;
    if (is.at.used >= p.stages) ptx_mbarrier_wait(&sh.empty[s], is.at.parity ^ 1);
    sh.page[s].flags = CU_ATT_END;
    sh.trip[s].tier = -1;
    ptx_mbarrier_arrive(&sh.full[s]);
    cu_att_leave(p, role, is.at.used - remote_blocks);
}

/* --- poller --- */

template <typename SHARED> PTX_INLINE void cu_att_poll(const cu_att_params &p, SHARED &sh)
{
    int tier = 0; /* the tier of what has been summed up, given out when it changes */
    uint64_t sum = 0, count = 0;
    uint32_t least = UINT32_MAX, most = 0;
    for (cu_att_cursor at;; cu_att_next(&at, p.stages)) {
        while (!ptx_mbarrier_test_wait(&sh.full[at.stage], at.parity)) {
        }
        const uint32_t now = ptx_clock();
        const cu_att_trip trip = sh.trip[at.stage];
        if (trip.tier && trip.tier != tier) {
            if (p.traffic && count) {
                kn_cu_traffic *to = &p.traffic[tier];
                atomicAdd((unsigned long long *)&to->blocks, count);
                atomicAdd((unsigned long long *)&to->trips, count);
                atomicAdd((unsigned long long *)&to->trip_clocks, sum);
                atomicMin(&to->trip_min, least);
                atomicMax(&to->trip_max, most);
            }
            if (trip.tier < 0) break;
            tier = trip.tier;
            sum = count = most = 0;
            least = UINT32_MAX;
        }
        if (trip.tier) {
            sum += now - trip.issued;
            count++;
            least = min(least, now - trip.issued);
            most = max(most, now - trip.issued);
        }
        ptx_mbarrier_arrive(&sh.empty[at.stage]);
    }
}

#endif
