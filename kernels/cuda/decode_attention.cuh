/*
 * decode_attention.cuh - one token's attention over its sequence's KV pages, for many tokens.
 *
 * Floor: the bytes of K and V over the bandwidth of the tier they lie in.  At 4.7 TB/s an SM takes
 * a 64-token page of one 128-wide head (32 KB) every 0.92 us, some 1,560 cycles.  Four warps need
 * about half of that: each reads 8 KB of the page by ldmatrix, multiplies 32 times with mma.sync and
 * exponentiates 4 or 8 scores a thread.  So tensor-core peak is no concern and wgmma would gain
 * nothing; what matters is that the ring of bulk copies is full from the first microsecond to the
 * last.  Everything here serves that.
 *
 * CTA (one per SM):
 *     producer warp    takes items from the work list and keeps STAGES 16 KB copies in flight.  The
 *                      next items' tickets, units and page tables are read while this one's pages
 *                      are issued, one load ahead of the other, so that no latency empties the ring.
 *                      Pages that this step does not write are fetched before griddepcontrol.wait.
 *     consumer warps   warp w takes tokens 16w..16w+15 of every page, with a softmax and an
 *                      accumulator of its own: no barrier within a unit.  The group's query heads
 *                      are the 16 rows of the MMA (8 or fewer heads leave the upper half idle); the
 *                      scores' accumulator layout is the A operand of P.V, so P never leaves its
 *                      registers.  At head dimension 256 two teams of four share a page: both compute
 *                      all scores, each half the output.  At a unit's end the team merges its four
 *                      accumulators through shared memory and stores the unit's partial.
 *     combiner warps   count a partial in; who completes a group of 16 units merges them, who
 *                      completes a token's groups merges those and writes the result.  They stand
 *                      apart because a release and an atomic take a microsecond under load.
 *     poller warp      where the CTA reads a remote tier: stamps landings, and does nothing else.
 *
 * Invariants
 *  1. A unit's partial depends on q and the keys the token sees: keys outside [key_begin, key_end)
 *     get score -inf, and their V is cleared bit by bit, so NaN in unwritten memory stays there.
 *  2. Merges run left to right over warps, units, groups, whoever performs them.
 *  3. All counters are zero before and after a launch.  The plan and pages older than the step are
 *     the only memory read before griddepcontrol.wait.
 *  4. Every CTA takes its first items by rank and the rest by ticket, so results need no ticket
 *     order and a CTA that reads slow memory is simply given fewer local items.
 *
 * P is rounded to bf16 for P.V and the sum of weights is of the rounded values, so the weights are
 * exactly normalised: |error| <= 2^-9 * (sum p|v| / sum p + |out|) before the result's own rounding.
 *
 * After FlashDecoding and FlashMLA; the ring and its remote window after DAK.
 */
#ifndef DAKD_KERNELS_CUDA_DECODE_ATTENTION_CUH
#define DAKD_KERNELS_CUDA_DECODE_ATTENTION_CUH

#include "kernels/cuda/attention_plan.cuh"

enum {
    CU_ATT_STAGES_MAX = 6,
    CU_ATT_STAGE_BYTES = KN_BLOCK_BYTES,
};

/* What a launch needs; passed by value. */
struct cu_att_params {
    const kn_cu_unit *units;
    kn_cu_plan_head *head;
    const kn_page *pages;
    const uint8_t *base[KN_TIER_MAX]; /* of this layer's heads */
    size_t page_bytes;
    const uint8_t *q;
    float *partial;
    float2 *partial_ml, *group_ml;
    uint32_t *group_count, *root_count;
    uint8_t *out;
    kn_cu_traffic *traffic;
    int32_t units_max, token_rows, stages;
    uint32_t kv_heads_inverse; /* ceil(2^32 / Hkv), 0 for one */
    int32_t q_heads, kv_heads, group, head_dim;
    float scale_log2;
};

template <int ATOMS, int ROWS> struct cu_att_shape {
    static constexpr int PAGE_STAGES = ATOMS;   /* 16 KB stages of one head's page: K and V */
    static constexpr int TEAMS = ATOMS == 4 ? 2 : 1;
    static constexpr int CONSUMERS = 4 * TEAMS; /* warps */
    static constexpr int COMBINERS = TEAMS == 1 ? 4 : 2;
    static constexpr int THREADS = 32 * (CONSUMERS + 2 + COMBINERS);
    static constexpr int REGISTERS = TEAMS == 1 && ROWS == 8 ? 144 : 168; /* 144: room for the next kernel */
    static constexpr int TILES = ATOMS == 1 ? 8 : 16; /* 8-wide output tiles of a warp */
    static constexpr int STEPS = ATOMS * 4;           /* 16-wide steps over the head dimension */
    static constexpr int Q_BYTES = ROWS * ATOMS * 128;
    static constexpr int Q_SLOTS = (CU_ATT_STAGES_MAX + PAGE_STAGES - 1) / PAGE_STAGES;
    static constexpr int DUMP_ROW = TILES * 8 + 8; /* floats; the 8 keep rows in distinct banks */
    static constexpr int HALVES = ROWS / 8;
};

/* Of a page: it begins an item, begins a unit, ends a unit, ends an item; or the ring's end.  The
 * item's number of units is in the bits from CU_ATT_UNITS_AT on. */
enum {
    CU_ATT_ITEM = 1,
    CU_ATT_FIRST = 2,
    CU_ATT_LAST = 4,
    CU_ATT_ITEM_LAST = 8,
    CU_ATT_END = 16,
    CU_ATT_UNITS_AT = 8,
};

/* What a page's first stage holds; written by the producer before the stage's barrier. */
struct __align__(16) cu_att_page {
    int32_t key_begin, key_end; /* keys the token sees, relative to the page */
    int32_t flags, head;
    int32_t token, slot, first_slot, split_count; /* of an item's first and a unit's last page */
};
/* Every stage's tier and cycle of issue; kept where the CTA reads a remote tier. */
struct cu_att_trip {
    int32_t tier;
    uint32_t issued;
};

struct __align__(16) cu_att_finished {
    int32_t token, slot, first_slot, split_count, head;
    int32_t units; /* where it ends an item, the item's; else 0 */
    int32_t end;
};

/* Shared memory but for the ring (`stages` * 16 KB, first) and the dump (last). */
template <int ATOMS, int ROWS> struct cu_att_shared {
    using shape = cu_att_shape<ATOMS, ROWS>;
    uint8_t q[shape::Q_SLOTS][shape::Q_BYTES];
    float2 ml[4][ROWS]; /* of the finished unit: [warp of a team][row] */
    cu_att_page page[CU_ATT_STAGES_MAX];
    cu_att_trip trip[CU_ATT_STAGES_MAX];
    cu_att_finished finished;
    uint32_t combine_last;
    uint64_t full[CU_ATT_STAGES_MAX], empty[CU_ATT_STAGES_MAX];
    uint64_t finished_full, finished_empty;
};
/* Ring stage s. */
template <typename SHARED> PTX_INLINE uint8_t *cu_att_ring(SHARED &sh, int stages, int s)
{
    return (uint8_t *)&sh - (stages - s) * CU_ATT_STAGE_BYTES;
}
/* The finished unit's accumulators, [warp][group][DUMP_ROW]. */
template <typename SHARED> PTX_INLINE float *cu_att_dump(SHARED &sh)
{
    return (float *)((uint8_t *)&sh + (sizeof sh + 15) / 16 * 16);
}
template <int ATOMS, int ROWS> constexpr int cu_att_shared_bytes(int stages, int group)
{
    using shape = cu_att_shape<ATOMS, ROWS>;
    return stages * CU_ATT_STAGE_BYTES + (int)((sizeof(cu_att_shared<ATOMS, ROWS>) + 15) / 16 * 16) +
           shape::CONSUMERS * group * shape::DUMP_ROW * 4;
}

/* A CTA's part: the remote tier it reads first (0: none), and its rank among the readers. */
struct cu_att_role {
    int32_t tier, rank, peers;
    int32_t local_peers;             /* CTAs that start with local items */
    int32_t tier_items, local_items; /* of all CTAs together */
};

PTX_INLINE cu_att_role cu_att_role_of(const cu_att_params &p, int cta, int grid)
{
    const kn_cu_plan_head *head = p.head;
    cu_att_role role = {0, 0, 0, 0, 0, head->unit_count[0] * p.kv_heads};
    int taken = 0;
#pragma unroll
    for (int t = 1; t < KN_TIER_MAX; t++) {
        const int readers = head->unit_count[t] ? max(1, min(head->window[t].ctas, grid / 4)) : 0;
        if (cta >= taken && cta < taken + readers) {
            role.tier = t;
            role.rank = cta - taken;
            role.peers = readers;
            role.tier_items = head->unit_count[t] * p.kv_heads;
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

/* The order in which a CTA takes items: four by rank, then by ticket; its remote tier, then local. */
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
        c.index = CU_ATT_STATIC * s->peers + (int)ptx_atomic_add_relaxed(&p.head->ticket[s->tier], 1);
    }
    return c;
}

struct cu_att_item {
    int4 a; /* the unit's token, slot, first_slot, split_count */
    int4 b; /* page_begin, page_end, key_begin, key_end */
    int4 c; /* table, old_pages, unit_shift */
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
    item.a = __ldg(words);
    item.b = __ldg(words + 1);
    item.c = __ldg(words + 2);
    item.head = index - entry * p.kv_heads;
    item.there = true;
    return item;
}

/* Lane i: entry i of the item's part of the page table. */
PTX_INLINE kn_page cu_att_load_entry(const cu_att_params &p, const cu_att_item &item, int lane)
{
    return item.there && item.b.x + lane < item.b.y ? __ldg(p.pages + item.c.x + item.b.x + lane) : 0;
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

/* The previous kernel is complete: brings the query tiles of the pages issued before. */
template <int ATOMS, int ROWS>
PTX_INLINE void cu_att_wait_previous(const cu_att_params &p, cu_att_shared<ATOMS, ROWS> &sh,
                                     cu_att_issuer &is, int lane)
{
    using shape = cu_att_shape<ATOMS, ROWS>;
    is.waited = true;
    ptx_griddep_wait();
    ptx_fence_proxy_async_global();
    const int s = lane * shape::PAGE_STAGES;
    if (s < is.at.used && (sh.page[s].flags & CU_ATT_ITEM))
        ptx_bulk_load(sh.q[lane], cu_att_q<shape>(p, sh.page[s].token, sh.page[s].head),
                      shape::Q_BYTES, &sh.full[s]);
    __syncwarp();
}

/* Issues an item's pages, lane i the i-th: its address and description are computed at once for
 * all of them, and what is left per stage is a wait, a store, the barrier's count and the copy. */
template <int ATOMS, int ROWS, bool REMOTE>
PTX_INLINE void cu_att_issue(const cu_att_params &p, cu_att_shared<ATOMS, ROWS> &sh,
                             cu_att_issuer &is, const cu_att_item &item, kn_page entry, int lane,
                             uint64_t policy)
{
    using shape = cu_att_shape<ATOMS, ROWS>;
    const int begin = item.b.x, count = item.b.y - begin, first_key = (begin + lane) * KN_PAGE_TOKENS;
    const int tier = cu_page_tier(entry), old_count = item.c.y - begin;
    const uint8_t *from = p.base[tier] + (size_t)cu_page_index(entry) * p.page_bytes +
                          (size_t)item.head * (shape::PAGE_STAGES * CU_ATT_STAGE_BYTES);
    const int shift = item.c.z, unit_last = (1 << shift) - 1;
    const int flags = (lane == 0 ? CU_ATT_ITEM : 0) | (lane & unit_last ? 0 : CU_ATT_FIRST) |
                      (lane == count - 1 ? CU_ATT_LAST | CU_ATT_ITEM_LAST : 0) |
                      ((lane & unit_last) == unit_last ? CU_ATT_LAST : 0) |
                      ((count - 1 >> shift) + 1) << CU_ATT_UNITS_AT;
    const int4 unit = make_int4(item.a.x, item.a.y + (lane >> shift), item.a.z, item.a.w);
    const int4 page = make_int4(item.b.z - first_key, item.b.w - first_key, flags, item.head);
    const uint8_t *q = cu_att_q<shape>(p, item.a.x, item.head);
    for (int i = 0; i < count; i++) {
        if (!is.waited && (i >= old_count || is.at.used + shape::PAGE_STAGES > p.stages))
            cu_att_wait_previous(p, sh, is, lane);
        const int page_tier = REMOTE ? __shfl_sync(0xffffffffu, tier, i) : 0;
#pragma unroll
        for (int j = 0; j < shape::PAGE_STAGES; j++) {
            const int s = is.at.stage;
            if (is.at.used >= p.stages) ptx_mbarrier_wait(&sh.empty[s], is.at.parity ^ 1);
            if (REMOTE && page_tier)
                cu_att_window_wait(sh, is, max(1, p.head->window[page_tier].blocks), p.stages);
            if (lane == i) {
                if (j == 0) {
                    *(int4 *)&sh.page[s].key_begin = page;
                    if (flags & (CU_ATT_ITEM | CU_ATT_LAST)) *(int4 *)&sh.page[s].token = unit;
                }
                if (REMOTE) sh.trip[s] = {tier, ptx_clock()};
                const bool with_q = j == 0 && (flags & CU_ATT_ITEM);
                ptx_mbarrier_expect_tx(&sh.full[s],
                                       CU_ATT_STAGE_BYTES + (with_q ? shape::Q_BYTES : 0));
                ptx_bulk_load_hint(cu_att_ring(sh, p.stages, s), from + j * CU_ATT_STAGE_BYTES,
                                   CU_ATT_STAGE_BYTES, &sh.full[s], policy);
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

/* The last CTA to have taken its last item clears the tickets. */
PTX_INLINE void cu_att_leave(const cu_att_params &p, uint64_t blocks)
{
    if (p.traffic && blocks) atomicAdd((unsigned long long *)&p.traffic[0].blocks, blocks);
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
    cu_att_claim third = cu_att_take(p, &source, lane), fourth = cu_att_take(p, &source, lane);
    kn_page entry = cu_att_load_entry(p, item, lane);
    while (item.there) {
        const kn_page next_entry = cu_att_load_entry(p, next, lane);
        const cu_att_item after = cu_att_load_item(p, &source, third, lane);
        if (REMOTE)
            remote_blocks += cu_att_shape<ATOMS, ROWS>::PAGE_STAGES *
                             __popc(__ballot_sync(0xffffffffu, cu_page_tier(entry) != 0));
        cu_att_issue<ATOMS, ROWS, REMOTE>(p, sh, is, item, entry, lane, policy);
        if (!is.waited) cu_att_wait_previous(p, sh, is, lane);
        third = fourth;
        fourth = cu_att_take(p, &source, lane);
        item = next;
        entry = next_entry;
        next = after;
    }
    if (!is.waited) cu_att_wait_previous(p, sh, is, lane);
    if (lane != 0) return;
    const int s = is.at.stage;
    if (is.at.used >= p.stages) ptx_mbarrier_wait(&sh.empty[s], is.at.parity ^ 1);
    sh.page[s].flags = CU_ATT_END;
    sh.trip[s].tier = -1;
    ptx_mbarrier_arrive(&sh.full[s]);
    cu_att_leave(p, is.at.used - remote_blocks);
}

/* --- poller --- */

template <typename SHARED> PTX_INLINE void cu_att_poll(const cu_att_params &p, SHARED &sh)
{
    int tier = 0; /* the tier of what has been summed up, given out when it changes */
    uint64_t sum = 0, count = 0;
    uint32_t least = UINT32_MAX, most = 0;
    for (cu_att_cursor at;; cu_att_next(&at, p.stages)) {
        while (!ptx_mbarrier_test_wait(&sh.full[at.stage], at.parity)) {}
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

/* --- consumers --- */

/* A warp's share of a unit: rows as the mma's accumulators hold them, row lane / 4 and that + 8. */
template <int ATOMS, int ROWS> struct cu_att_state {
    using shape = cu_att_shape<ATOMS, ROWS>;
    uint32_t q[shape::STEPS][2 * shape::HALVES];
    float out[shape::TILES][4];
    float max[shape::HALVES]; /* of scale * score, log2 domain */
    float sum[shape::HALVES]; /* this thread's part */
};

template <int ATOMS, int ROWS>
PTX_INLINE void cu_att_read_q(cu_att_state<ATOMS, ROWS> &st, const uint8_t *q, int lane)
{
    using shape = cu_att_shape<ATOMS, ROWS>;
#pragma unroll
    for (int k = 0; k < shape::STEPS; k++) {
        if (ROWS == 8) {
            const uint2 r = *(const uint2 *)(q + k * 256 + lane * 8);
            st.q[k][0] = r.x;
            st.q[k][1] = r.y;
        } else {
            const uint4 r = *(const uint4 *)(q + k * 512 + lane * 16);
            st.q[k][0] = r.x;
            st.q[k][1] = r.y;
            st.q[k][2 * shape::HALVES - 2] = r.z;
            st.q[k][2 * shape::HALVES - 1] = r.w;
        }
    }
}

template <int ATOMS, int ROWS> PTX_INLINE void cu_att_begin(cu_att_state<ATOMS, ROWS> &st)
{
    using shape = cu_att_shape<ATOMS, ROWS>;
#pragma unroll
    for (int n = 0; n < shape::TILES; n++)
        st.out[n][0] = st.out[n][1] = st.out[n][2] = st.out[n][3] = 0.f;
#pragma unroll
    for (int h = 0; h < shape::HALVES; h++) {
        st.max[h] = -INFINITY;
        st.sum[h] = 0.f;
    }
}

/* score[tile of 8 tokens] += q . k over STEP_COUNT steps; their K atoms begin at `atoms`.  All K is
 * read before the first product, and even and odd steps add up apart, for two chains of dependent
 * instructions in place of one. */
template <int ATOMS, int ROWS, int FIRST_STEP, int STEP_COUNT>
PTX_INLINE void cu_att_score(const cu_att_state<ATOMS, ROWS> &st, float (&score)[2][2][4],
                             uint32_t atoms, int row, int chunk_half)
{
    uint32_t k[STEP_COUNT][4];
#pragma unroll
    for (int i = 0; i < STEP_COUNT; i++) {
        const uint32_t chunk = ((i & 3) * 2 + chunk_half) ^ (row & 7);
        ptx_ldmatrix_x4(k[i], atoms + (i >> 2) * KN_ATOM_BYTES + row * 128 + (chunk << 4));
    }
#pragma unroll
    for (int i = 0; i < STEP_COUNT; i++) {
        const uint32_t *q = st.q[FIRST_STEP + i];
        const uint32_t a[4] = {q[0], ROWS == 8 ? 0 : q[1], ROWS == 8 ? q[1] : q[ROWS / 8],
                               ROWS == 8 ? 0 : q[ROWS / 4 - 1]};
        ptx_mma_m16n8k16(score[i & 1][0], a, k[i][0], k[i][1]);
        ptx_mma_m16n8k16(score[i & 1][1], a, k[i][2], k[i][3]);
    }
}

/* Keys outside [begin, end) of the page: score -inf, and a zero in the mask of V. */
PTX_INLINE void cu_att_mask(float (&score)[2][4], uint32_t (&mask)[2], int first, int begin, int end)
{
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int key = first + n * 8 + j;
            if (key >= begin && key < end) continue;
            score[n][j] = score[n][2 + j] = -INFINITY;
            mask[n] &= j ? 0x0000ffffu : 0xffff0000u;
        }
}

PTX_INLINE float cu_att_widen(uint32_t pair, int high)
{
    return __uint_as_float(high ? pair & 0xffff0000u : pair << 16);
}

/* Scores to weights, as the A operand of P.V; rescales what the warp has so far. */
template <int ATOMS, int ROWS>
PTX_INLINE void cu_att_soften(cu_att_state<ATOMS, ROWS> &st, const float (&score)[2][4],
                              float scale_log2, uint32_t (&weight)[4])
{
    using shape = cu_att_shape<ATOMS, ROWS>;
    float rescale[shape::HALVES];
    bool same = true;
    weight[1] = weight[3] = 0;
#pragma unroll
    for (int h = 0; h < shape::HALVES; h++) {
        float most = fmaxf(fmaxf(score[0][2 * h], score[0][2 * h + 1]),
                           fmaxf(score[1][2 * h], score[1][2 * h + 1]));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
        const float max = fmaxf(st.max[h], most * scale_log2);
        const float shift = max == -INFINITY ? 0.f : max;
        rescale[h] = ptx_ex2(st.max[h] - shift);
        same = same && rescale[h] == 1.f;
        st.max[h] = max;
        float sum = 0.f;
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const float w0 = ptx_ex2(fmaf(score[n][2 * h], scale_log2, -shift));
            const float w1 = ptx_ex2(fmaf(score[n][2 * h + 1], scale_log2, -shift));
            const __nv_bfloat162 pair = __floats2bfloat162_rn(w0, w1);
            const uint32_t bits = *(const uint32_t *)&pair;
            weight[2 * n + h] = bits;
            sum += cu_att_widen(bits, 0) + cu_att_widen(bits, 1);
        }
        st.sum[h] = fmaf(st.sum[h], rescale[h], sum);
    }
    if (__all_sync(0xffffffffu, same)) return; /* times one: the same bits */
#pragma unroll
    for (int n = 0; n < shape::TILES; n++)
#pragma unroll
        for (int h = 0; h < shape::HALVES; h++) {
            st.out[n][2 * h] *= rescale[h];
            st.out[n][2 * h + 1] *= rescale[h];
        }
}

/* Reads four 16-wide pieces of the warp's 16 tokens of V from piece FIRST on. */
template <int FIRST>
PTX_INLINE void cu_att_read_values(uint32_t (&v)[4][4], uint32_t atoms, int row, int chunk_half)
{
#pragma unroll
    for (int d = 0; d < 4; d++) {
        const uint32_t chunk = (d * 2 + chunk_half) ^ (row & 7);
        ptx_ldmatrix_x4_trans(v[d], atoms + FIRST / 4 * KN_ATOM_BYTES + row * 128 + (chunk << 4));
    }
}

/* out += weights . V for these pieces. */
template <int FIRST, int TILES>
PTX_INLINE void cu_att_add_values(float (&out)[TILES][4], const uint32_t (&weight)[4],
                                  const uint32_t (&mask)[2], const uint32_t (&v)[4][4])
{
#pragma unroll
    for (int d = 0; d < 4; d++) {
        float(&low)[4] = out[(2 * (FIRST + d)) % TILES], (&high)[4] = out[(2 * (FIRST + d) + 1) % TILES];
        ptx_mma_m16n8k16(low, weight, v[d][0] & mask[0], v[d][1] & mask[1]);
        ptx_mma_m16n8k16(high, weight, v[d][2] & mask[0], v[d][3] & mask[1]);
    }
}

/* One warp lets go of a stage. */
template <typename SHARED>
PTX_INLINE void cu_att_release(SHARED &sh, cu_att_cursor *at, int stages, int lane)
{
    __syncwarp();
    if (lane == 0) ptx_mbarrier_arrive(&sh.empty[at->stage]);
    cu_att_next(at, stages);
}

/* Leaves the warp's accumulators to the combiners, who merge the four warps of a team. */
template <int ATOMS, int ROWS>
PTX_INLINE void cu_att_hand_over(const cu_att_params &p, cu_att_shared<ATOMS, ROWS> &sh,
                                 cu_att_state<ATOMS, ROWS> &st, int count, int warp, int lane)
{
    using shape = cu_att_shape<ATOMS, ROWS>;
    if (count) ptx_mbarrier_wait(&sh.finished_empty, (count & 1) ^ 1); /* the unit before is merged */
#pragma unroll
    for (int h = 0; h < shape::HALVES; h++) {
        const int row = h * 8 + (lane >> 2);
        st.sum[h] += __shfl_xor_sync(0xffffffffu, st.sum[h], 1);
        st.sum[h] += __shfl_xor_sync(0xffffffffu, st.sum[h], 2);
        if (row >= p.group) continue;
        if (warp < 4 && (lane & 3) == 0) sh.ml[warp][row] = make_float2(st.max[h], st.sum[h]);
        float *to = cu_att_dump(sh) + (warp * p.group + row) * shape::DUMP_ROW + (lane & 3) * 2;
#pragma unroll
        for (int n = 0; n < shape::TILES; n++)
            *(float2 *)(to + n * 8) = make_float2(st.out[n][2 * h], st.out[n][2 * h + 1]);
    }
    ptx_mbarrier_arrive(&sh.finished_full);
}

template <int ATOMS, int ROWS>
PTX_INLINE void cu_att_consume(const cu_att_params &p, cu_att_shared<ATOMS, ROWS> &sh, int warp,
                               int lane)
{
    using shape = cu_att_shape<ATOMS, ROWS>;
    const int team = warp >> 2, w = warp & 3;
    /* ldmatrix rows: for K the second pair of matrices is tokens + 8, for V dims + 8. */
    const int k_row = w * 16 + (lane >> 4) * 8 + (lane & 7), k_half = (lane >> 3) & 1;
    const int v_row = w * 16 + ((lane >> 3) & 1) * 8 + (lane & 7), v_half = lane >> 4;
    const uint32_t ring = ptx_shared(cu_att_ring(sh, p.stages, 0));
    cu_att_state<ATOMS, ROWS> st;
    cu_att_cursor at;
    int q_slot = 0, finished = 0;
    for (;;) {
        ptx_mbarrier_wait(&sh.full[at.stage], at.parity);
        const cu_att_page &page = sh.page[at.stage];
        const int key_begin = page.key_begin, key_end = page.key_end, flags = page.flags;
        if (flags & CU_ATT_END) break;
        if (flags & CU_ATT_ITEM) cu_att_read_q(st, sh.q[q_slot], lane);
        if (flags & CU_ATT_FIRST) cu_att_begin(st);
        if (++q_slot == shape::Q_SLOTS) q_slot = 0;

        const bool last = flags & CU_ATT_LAST;
        if (last && warp == 0) {
            if (finished) ptx_mbarrier_wait(&sh.finished_empty, (finished & 1) ^ 1);
            if (lane == 0)
                sh.finished = {page.token, page.slot, page.first_slot, page.split_count, page.head,
                               flags & CU_ATT_ITEM_LAST ? flags >> CU_ATT_UNITS_AT : 0, 0};
        }

        float parts[2][2][4] = {};
        uint32_t v[4][4];
        uint32_t stage = ring + at.stage * CU_ATT_STAGE_BYTES;
        if (ATOMS == 4) {
            cu_att_score<ATOMS, ROWS, 0, 8>(st, parts, stage, k_row, k_half);
            cu_att_release(sh, &at, p.stages, lane);
            ptx_mbarrier_wait(&sh.full[at.stage], at.parity);
            stage = ring + at.stage * CU_ATT_STAGE_BYTES;
        }
        cu_att_score<ATOMS, ROWS, ATOMS == 4 ? shape::STEPS - 8 : 0, ATOMS == 1 ? 4 : 8>(
            st, parts, stage, k_row, k_half);
        if (ATOMS == 1) {
            stage += KN_ATOM_BYTES;
        } else {
            cu_att_release(sh, &at, p.stages, lane);
            ptx_mbarrier_wait(&sh.full[at.stage], at.parity);
            if (shape::TEAMS == 2 && team == 1) { /* its half of V is the next stage */
                cu_att_release(sh, &at, p.stages, lane);
                ptx_mbarrier_wait(&sh.full[at.stage], at.parity);
            }
            stage = ring + at.stage * CU_ATT_STAGE_BYTES;
        }
        cu_att_read_values<0>(v, stage, v_row, v_half);
        float score[2][4];
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) score[n][j] = parts[0][n][j] + parts[1][n][j];
        uint32_t mask[2] = {~0u, ~0u}, weight[4];
        if (key_begin > 0 || key_end < KN_PAGE_TOKENS)
            cu_att_mask(score, mask, w * 16 + (lane & 3) * 2, key_begin, key_end);
        cu_att_soften(st, score, p.scale_log2, weight);
        cu_att_add_values<0>(st.out, weight, mask, v);
        if (ATOMS > 1) {
            cu_att_read_values<4>(v, stage, v_row, v_half);
            cu_att_add_values<4>(st.out, weight, mask, v);
        }
        cu_att_release(sh, &at, p.stages, lane);
        if (shape::TEAMS == 2 && team == 0) { /* the other half of V */
            ptx_mbarrier_wait(&sh.full[at.stage], at.parity);
            cu_att_release(sh, &at, p.stages, lane);
        }
        if (last) cu_att_hand_over(p, sh, st, finished++, warp, lane);
    }
    if (finished) ptx_mbarrier_wait(&sh.finished_empty, (finished & 1) ^ 1);
    if (warp == 0 && lane == 0) sh.finished.end = 1;
    ptx_mbarrier_arrive(&sh.finished_full);
}

/* --- combiners --- */

/* Four elements of the result. */
PTX_INLINE void cu_att_write(const cu_att_params &p, const cu_att_finished &u, int row, int quad,
                             float4 out, float sum)
{
    const float inverse = 1.f / sum;
    const __nv_bfloat162 low = __floats2bfloat162_rn(out.x * inverse, out.y * inverse);
    const __nv_bfloat162 high = __floats2bfloat162_rn(out.z * inverse, out.w * inverse);
    const int k = (u.head * p.group + row) * p.head_dim + quad * 4;
    *(uint2 *)(p.out + cu_att_out_offset(p.token_rows, u.token, k)) =
        make_uint2(*(const uint32_t *)&low, *(const uint32_t *)&high);
}

/* Merges what the four warps of a team have left of a unit: its partial, or the result where the
 * token has no other unit. */
template <int ATOMS, int ROWS>
PTX_INLINE void cu_att_merge_warps(const cu_att_params &p, cu_att_shared<ATOMS, ROWS> &sh,
                                   const cu_att_finished &u, int thread)
{
    using shape = cu_att_shape<ATOMS, ROWS>;
    const int quads = p.head_dim / 4;
    const size_t row0 = (size_t)u.slot * p.q_heads + u.head * p.group;
    for (int e = thread; e < p.group * quads; e += shape::COMBINERS * 32) {
        const int row = e / quads, quad = e - row * quads;
        const int team = quad / (shape::TILES * 2), in_team = quad - team * shape::TILES * 2;
        float4 out = make_float4(0.f, 0.f, 0.f, 0.f);
        float2 ml[4];
        float most = -INFINITY, sum = 0.f;
#pragma unroll
        for (int w = 0; w < 4; w++) {
            ml[w] = sh.ml[w][row];
            most = fmaxf(most, ml[w].x);
        }
#pragma unroll
        for (int w = 0; w < 4; w++) {
            const float *from = cu_att_dump(sh) + ((team * 4 + w) * p.group + row) * shape::DUMP_ROW;
            const float4 x = *(const float4 *)(from + in_team * 4);
            const float factor = ptx_ex2(ml[w].x - most);
            sum = fmaf(factor, ml[w].y, sum);
            out.x = fmaf(factor, x.x, out.x);
            out.y = fmaf(factor, x.y, out.y);
            out.z = fmaf(factor, x.z, out.z);
            out.w = fmaf(factor, x.w, out.w);
        }
        if (u.split_count == 1) {
            cu_att_write(p, u, row, quad, out, sum);
        } else {
            __stcg((float4 *)(p.partial + (row0 + row) * p.head_dim) + quad, out);
            if (quad == 0) __stcg(p.partial_ml + row0 + row, make_float2(most, sum));
        }
    }
}

/* Merges `count` partials, every `stride` slots from `slot` on, left to right.  A group's outcome
 * replaces the output of its first slot, each element by the thread that read it, and has a maximum
 * and sum of its own (group_ml); the root's is divided by the sum and written out. */
template <bool ROOT, int THREADS>
PTX_INLINE void cu_att_merge(const cu_att_params &p, const cu_att_finished &u,
                             const float2 *all_ml, int slot, int stride, int count, int thread)
{
    constexpr int BATCH = 8;
    const int quads = p.head_dim / 4;
    const size_t step = (size_t)stride * p.q_heads;
    const size_t row0 = (size_t)slot * p.q_heads + u.head * p.group;
    for (int e = thread; e < p.group * quads; e += THREADS) {
        const int row = e / quads, quad = e - row * quads;
        const float *from = p.partial + (row0 + row) * p.head_dim + quad * 4;
        float2 ml[CU_ATT_FAN];
        float4 out = make_float4(0.f, 0.f, 0.f, 0.f);
        float most = -INFINITY, sum = 0.f;
#pragma unroll
        for (int i = 0; i < CU_ATT_FAN; i++) {
            ml[i] = make_float2(-INFINITY, 0.f);
            if (i < count) ml[i] = __ldcg(all_ml + row0 + i * step + row);
        }
#pragma unroll
        for (int i = 0; i < CU_ATT_FAN; i++) most = fmaxf(most, ml[i].x);
#pragma unroll
        for (int begin = 0; begin < CU_ATT_FAN; begin += BATCH) { /* so many loads in flight */
            float4 x[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                x[i] = make_float4(0.f, 0.f, 0.f, 0.f);
                if (begin + i < count)
                    x[i] = __ldcg((const float4 *)(from + (begin + i) * step * p.head_dim));
            }
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                const float factor = ptx_ex2(ml[begin + i].x - most);
                sum = fmaf(factor, ml[begin + i].y, sum);
                out.x = fmaf(factor, x[i].x, out.x);
                out.y = fmaf(factor, x[i].y, out.y);
                out.z = fmaf(factor, x[i].z, out.z);
                out.w = fmaf(factor, x[i].w, out.w);
            }
        }
        if (ROOT) {
            cu_att_write(p, u, row, quad, out, sum);
        } else {
            __stcg((float4 *)(p.partial + (row0 + row) * p.head_dim) + quad, out);
            if (quad == 0) __stcg(p.group_ml + row0 + row, make_float2(most, sum));
        }
    }
}

/* Inputs beyond Hq * D of the activation's last block are zero. */
PTX_INLINE void cu_att_clear_tail(const cu_att_params &p, int token, int thread, int threads)
{
    const int begin = p.q_heads * p.head_dim, end = (begin + 127) / 128 * 128;
    for (int k = begin + thread * 4; k < end; k += threads * 4)
        *(uint2 *)(p.out + cu_att_out_offset(p.token_rows, token, k)) = make_uint2(0, 0);
}

/* Counts `units` in; true for all combiners where they were the last, which also clears the count.
 * Where the item is all that is expected there is nothing to count. */
template <int THREADS, typename SHARED>
PTX_INLINE bool cu_att_arrive(SHARED &sh, uint32_t *count, int units, int expected, int thread)
{
    ptx_bar_sync(3, THREADS);
    if (units == expected) return true;
    if (thread == 0) {
        const bool last = ptx_atomic_add_acq_rel(count, units) == (uint32_t)(expected - units);
        if (last) *count = 0;
        sh.combine_last = last;
    }
    ptx_bar_sync(3, THREADS);
    return sh.combine_last;
}

template <int ATOMS, int ROWS>
PTX_INLINE void cu_att_combine(const cu_att_params &p, cu_att_shared<ATOMS, ROWS> &sh, int thread)
{
    constexpr int THREADS = 32 * cu_att_shape<ATOMS, ROWS>::COMBINERS;
    for (int n = 0;; n++) {
        ptx_mbarrier_wait(&sh.finished_full, n & 1);
        const cu_att_finished u = sh.finished;
        if (u.end) break;
        cu_att_merge_warps(p, sh, u, thread);
        ptx_mbarrier_arrive(&sh.finished_empty);
        if (!u.units) continue;
        const float2 *ml = p.partial_ml;
        int stride = 1, count = u.split_count, units = u.units;
        if (count > CU_ATT_FAN) {
            const int group = (u.slot - u.first_slot) / CU_ATT_FAN * CU_ATT_FAN;
            const int first = u.first_slot + group, size = min(CU_ATT_FAN, count - group);
            uint32_t *arrivals = p.group_count + (size_t)first * p.kv_heads + u.head;
            if (!cu_att_arrive<THREADS>(sh, arrivals, units, size, thread)) continue;
            cu_att_merge<false, THREADS>(p, u, ml, first, 1, size, thread);
            ml = p.group_ml;
            stride = CU_ATT_FAN;
            count = (count + CU_ATT_FAN - 1) / CU_ATT_FAN;
            units = 1;
        }
        if (u.split_count > 1) {
            uint32_t *arrivals = p.root_count + (size_t)u.first_slot * p.kv_heads + u.head;
            if (!cu_att_arrive<THREADS>(sh, arrivals, units, count, thread)) continue;
            cu_att_merge<true, THREADS>(p, u, ml, u.first_slot, stride, count, thread);
        }
        if (u.head == p.kv_heads - 1) cu_att_clear_tail(p, u.token, thread, THREADS);
    }
}

/* --- the kernel --- */

template <int ATOMS, int ROWS>
__global__ void __launch_bounds__(cu_att_shape<ATOMS, ROWS>::THREADS)
    __maxnreg__((cu_att_shape<ATOMS, ROWS>::REGISTERS))
    sm90_bf16_decode_attention(const __grid_constant__ cu_att_params p)
{
    using shape = cu_att_shape<ATOMS, ROWS>;
    extern __shared__ __align__(1024) uint8_t shared[]; /* no swizzle unit reads it: 16 would do */
    cu_att_shared<ATOMS, ROWS> &sh =
        *(cu_att_shared<ATOMS, ROWS> *)(shared + p.stages * CU_ATT_STAGE_BYTES);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    ptx_griddep_launch();
    const cu_att_role role = cu_att_role_of(p, blockIdx.x, gridDim.x);
    if (threadIdx.x == 0) {
        for (int s = 0; s < p.stages; s++) {
            ptx_mbarrier_init(&sh.full[s], 1);
            ptx_mbarrier_init(&sh.empty[s], shape::CONSUMERS + (role.tier != 0));
        }
        ptx_mbarrier_init(&sh.finished_full, 32 * shape::CONSUMERS);
        ptx_mbarrier_init(&sh.finished_empty, 32 * shape::COMBINERS);
        ptx_fence_mbarrier_init();
    }
    __syncthreads();
    if (warp < shape::CONSUMERS) {
        cu_att_consume<ATOMS, ROWS>(p, sh, warp, lane);
    } else if (warp == shape::CONSUMERS) {
        if (role.tier == 0) cu_att_produce<ATOMS, ROWS, false>(p, sh, role, lane);
        else cu_att_produce<ATOMS, ROWS, true>(p, sh, role, lane);
    } else if (warp == shape::CONSUMERS + 1) {
        if (role.tier != 0 && lane == 0) cu_att_poll(p, sh);
    } else {
        cu_att_combine(p, sh, threadIdx.x - 32 * (shape::CONSUMERS + 2));
    }
}

#endif
