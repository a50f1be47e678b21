/*
 * attention_plan.cu - the plan of a step's attention: from lengths and page tables to lists of
 * items (attention_plan.cuh), one list per tier.
 *
 * Local groups go to the first list, whole or in parts; a group with remote pages goes unit by
 * unit, each unit to the list of the highest tier among its pages.  The kernel copies the windows
 * too, so that every CTA of every layer sees the same ones however late the controller writes.
 *
 * It runs once per step on one CTA: a thread per token reads its lengths, a scan gives each token
 * its slots and groups, then a thread per group lists its items, in order.
 *
 * Sizes of items.  All CTAs should end at once, and folding what several items made of a token
 * takes some microseconds, most of all where it must be counted in.  Three ways to cut are weighed
 * (kn_cut_choose): items alike and no more than CTAs, so that each finds one of its own (the plan
 * is spread); items as large as they may be, where waves of them come out even; or each item at
 * most what is left for a CTA to do when its turn comes, and at least a unit.
 *
 * Windows.  A reader takes in some 14 GB/s of remote pages, whatever it has in flight, for its
 * units are folded one by one: 16 readers leave a third of NVLink idle.  So attention has twice as
 * many readers as the tier's window has, with as much in flight all together; and twice as much
 * where the link is what it waits for by far, for then HBM has time to spare.  Measured over
 * NVLink, 64 sequences of 8,192 tokens, 7 % of their KV remote: a step takes 6.24 ms with 16
 * readers of 4 blocks and 5.04 with 32 of 2; 88 % remote, link-bound: 1.062 of the floor with 1 MB
 * in flight, 1.043 with 1.5.
 *
 * Order.  The plan depends on the batch alone, so the kernel does its work while the products
 * before it in the stream still run, and only then waits for them.
 *  - What it reads was copied to the device before the step's first kernel, which starts when the
 *    copy and all before it are complete, earlier steps included; every kernel since starts after
 *    the one before it has.
 *  - What it writes no kernel of an earlier step reads any more, for the same reason.  Where an
 *    attention of this step may (`fresh` is false), it waits first.
 *  - It lets dependents start when all of the plan is written and its threads have passed a fence.
 *    Hence later kernels may read, past L1, the plan, and KV of earlier steps, before their
 *    griddepcontrol.wait.
 *  - It waits before it ends, as every kernel does, so that who waits for it has waited for all.
 * In a step of an 8B model on an H200 that leaves 0.8 us of the 5.9 it took, which are the wait's.
 */
#include <cuda_runtime.h>

#include "kernels/cuda/attention_plan.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/trace.h"

extern "C" {
#include "config/check.h"
}

enum {
    PLAN_THREADS = 512,
    PLAN_WARPS = PLAN_THREADS / 32,
    PLAN_TOKENS = KN_CU_ATTENTION_TOKENS,
    PLAN_SIZES = KN_CUT_ITEM_SIZES,
};

struct plan_params {
    kn_cu_plan_head *head;
    kn_cu_unit *units;
    const int32_t *positions, *token_seq;
    const kn_seq *seqs;
    const kn_page *pages;
    const kn_cu_window *windows;
    int32_t token_begin, token_end;
    int32_t units_max, window, unit_shift; /* unit_shift < 0: the rule */
    bool fresh;
    int32_t kv_heads, cta_count;
    int32_t item_pages; /* 0: the rule; -1: guided; else of all items */
};

struct plan_token {
    int32_t position, key_begin;
    int32_t page_begin, page_end;
    int32_t table, old_pages;
    int32_t unit_shift, unit_count;
    int32_t first_slot, pages_before; /* of all tokens before */
};

struct plan_shared {
    plan_token token[PLAN_TOKENS];
    int32_t first_group[PLAN_TOKENS + 1]; /* of a token; and of all */
    int32_t warp_sum[4 + PLAN_SIZES][PLAN_WARPS];
    int32_t pages_most; /* of a token */
};

/* What all threads agree on. */
struct plan_totals {
    int32_t slots, groups, pages;
    int32_t item_pages; /* of all items alike; 0: by what is left to do */
    int32_t spread_pages;
};

/* Exclusive sums over the CTA of each thread's values; total[k]: of all. */
template <int N>
PTX_INLINE void plan_scan(plan_shared &sh, const int32_t (&value)[N], int32_t (&before)[N],
                          int32_t (&total)[N])
{
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    __syncthreads(); /* the last scan's sums have been read */
#pragma unroll
    for (int k = 0; k < N; k++) {
        int32_t sum = value[k];
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            const int32_t below = __shfl_up_sync(0xffffffffu, sum, d);
            if (lane >= d) sum += below;
        }
        if (lane == 31) sh.warp_sum[k][warp] = sum;
        before[k] = sum - value[k];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < N; k++) {
        const int32_t sum = lane < PLAN_WARPS ? sh.warp_sum[k][lane] : 0;
        before[k] += __reduce_add_sync(0xffffffffu, lane < warp ? sum : 0);
        total[k] = __reduce_add_sync(0xffffffffu, sum);
    }
}

/* Items alike, or by what is left to do; a test may say which. */
PTX_INLINE void plan_choose(const plan_params &p, plan_totals &sums, const kn_cut_work &work)
{
    const kn_cut_items best = kn_cut_choose(&work, p.kv_heads, p.cta_count);
    sums.item_pages = p.item_pages ? max(p.item_pages, 0) : best.pages;
    bool spread = best.spread;
#pragma unroll
    for (int k = 0; p.item_pages && k < PLAN_SIZES; k++)
        if (1 << k == p.item_pages)
            spread = work.items[k] * p.kv_heads <= min(p.cta_count, KN_CUT_SPREAD_ITEMS);
    sums.spread_pages = sums.item_pages && spread ? sums.item_pages : 0;
}

/* Reads the tokens, one a thread. */
PTX_INLINE plan_totals plan_tokens(const plan_params &p, plan_shared &sh)
{
    const int i = threadIdx.x, t = p.token_begin + i;
    const bool inside = t < p.token_end;
    const int32_t seq_index = inside ? p.token_seq[t] : -1;
    plan_token token = {};
    int32_t value[4 + PLAN_SIZES] = {}, before[4 + PLAN_SIZES], total[4 + PLAN_SIZES];
    int32_t pages = 0;
    if (inside) token.position = p.positions[t];
    if (seq_index >= 0) {
        const kn_seq seq = p.seqs[seq_index];
        cu_att_visible(token.position, p.window, &token.key_begin, &token.page_begin,
                       &token.page_end);
        token.table = seq.page_begin;
        token.old_pages = (seq.kv_count - seq.token_count) / KN_PAGE_TOKENS;
        pages = token.page_end - token.page_begin;
        token.unit_shift = p.unit_shift >= 0 ? p.unit_shift : kn_cut_unit_shift(pages);
        const int32_t group_shift = kn_cut_group_shift(token.unit_shift);
        token.unit_count = (pages - 1 >> token.unit_shift) + 1;
        value[0] = token.unit_count;
        value[1] = (token.unit_count - 1 >> group_shift) + 1;
        value[2] = pages;
#pragma unroll
        for (int k = 0; k < PLAN_SIZES; k++)
            value[4 + k] = (token.unit_count - 1) / kn_cut_item_units(1 << k, token.unit_shift) + 1;
        value[3] = 1;
    }
    if (pages) atomicMax(&sh.pages_most, pages);
    plan_scan(sh, value, before, total);
    token.first_slot = before[0];
    token.pages_before = before[2];
    if (inside) {
        sh.token[i] = token;
        sh.first_group[i] = before[1];
    }
    if (total[0] > p.units_max) __trap(); /* the caller sized the workspace for less */
    plan_totals sums = {total[0], total[1], total[2], 0, 0};
    kn_cut_work work = {total[3], total[2], sh.pages_most, {}};
#pragma unroll
    for (int k = 0; k < PLAN_SIZES; k++) work.items[k] = total[4 + k];
    plan_choose(p, sums, work);
    __syncthreads();
    return sums;
}

/* A group as one item, and the highest tier among each unit's pages. */
struct plan_group {
    kn_cu_unit item;
    int32_t units;
    uint32_t tiers; /* two bits a unit */
    int32_t left;   /* pages for each CTA from here on */
};

PTX_INLINE plan_group plan_group_of(const plan_params &p, const plan_shared &sh,
                                    const plan_totals &sums, int32_t g)
{
    int low = 0, high = p.token_end - p.token_begin; /* the last whose first group is <= g */
    while (high - low > 1) {
        const int mid = (low + high) / 2;
        if (sh.first_group[mid] <= g) low = mid;
        else high = mid;
    }
    const plan_token &t = sh.token[low];
    const int32_t fan = 1 << kn_cut_group_shift(t.unit_shift),
                  first = (g - sh.first_group[low]) * fan;
    plan_group group;
    group.units = min(fan, t.unit_count - first);
    kn_cu_unit &u = group.item;
    u.token = p.token_begin + low;
    u.slot = t.first_slot + first;
    u.first_slot = t.first_slot;
    u.unit_count = t.unit_count;
    u.page_begin = t.page_begin + (first << t.unit_shift);
    u.page_end = min(u.page_begin + (group.units << t.unit_shift), t.page_end);
    u.key_begin = t.key_begin;
    u.key_end = t.position + 1;
    u.table = t.table;
    u.old_pages = t.old_pages;
    u.unit_shift = t.unit_shift;
    u.whole = 1;
    const int64_t left = sums.pages - t.pages_before - (u.page_begin - t.page_begin);
    group.left = (int32_t)(left * p.kv_heads / p.cta_count);
    group.tiers = 0;
    for (int page = u.page_begin; p.windows && page < u.page_end; page++) {
        const int at = (page - u.page_begin >> u.unit_shift) * 2;
        const uint32_t tier = cu_page_tier(p.pages[t.table + page]) & 3;
        if (tier > (group.tiers >> at & 3)) group.tiers = (group.tiers & ~(3u << at)) | tier << at;
    }
    return group;
}

/* Lists the units of a group that belong to a tier, `step` an item. */
PTX_INLINE void plan_list(const plan_params &p, const plan_group &group, int step, int tier,
                          int32_t at)
{
    kn_cu_unit *list = p.units + (size_t)tier * p.units_max;
    for (int i = 0; i < group.units; i += step) {
        if (group.tiers && (group.tiers >> 2 * i & 3) != (uint32_t)tier) continue;
        kn_cu_unit u = group.item;
        u.slot += i;
        u.page_begin += i << u.unit_shift;
        u.page_end = min(u.page_begin + (step << u.unit_shift), u.page_end);
        u.whole = step >= group.units;
        list[at++] = u;
    }
}

/* How a tier is read that has so many of all units. */
PTX_INLINE kn_cu_window plan_window(kn_cu_window w, int32_t remote_units, int32_t units,
                                    int32_t cta_count)
{
    if (remote_units == 0 || w.ctas >= cta_count) return w; /* or everybody reads it */
    const int32_t in_flight = max(1, w.ctas) * max(1, w.blocks);
    w.ctas = max(1, min(min(2 * w.ctas, in_flight), cta_count / 4));
    w.blocks = (in_flight + w.ctas - 1) / w.ctas;
    if (remote_units * w.cost > 2.f * (units - remote_units)) w.blocks *= 2;
    return w;
}

__global__ void __launch_bounds__(PLAN_THREADS, 2)
    attention_plan(const __grid_constant__ plan_params p)
{
    CU_TRACE(PLAN, 0);
    __shared__ plan_shared sh;
    if (threadIdx.x == 0) sh.pages_most = 0;
    __syncthreads();
    if (!p.fresh) ptx_griddep_wait();
    plan_totals sums = plan_tokens(p, sh);
    if (p.windows) { /* a spread plan's CTAs wait for each other: not for slow memory */
        bool remote = false;
        for (int g = threadIdx.x; g < sums.groups; g += PLAN_THREADS)
            remote = remote || plan_group_of(p, sh, sums, g).tiers;
        if (__syncthreads_or(remote)) sums.spread_pages = sums.item_pages = 0;
    }
    int32_t listed[KN_TIER_MAX] = {};
    for (int first = 0; first < sums.groups; first += PLAN_THREADS) {
        const int g = first + threadIdx.x;
        plan_group group = {};
        int step = 1;
        if (g < sums.groups) {
            group = plan_group_of(p, sh, sums, g);
            const int32_t shift = group.item.unit_shift;
            if (sums.item_pages) step = kn_cut_item_units(sums.item_pages, shift);
            else if (!group.tiers)
                step = kn_cut_item_units(max(group.left, KN_CUT_ITEM_PAGES_MIN), shift);
            while (step & step - 1) step &= step - 1;
        }
#pragma unroll
        for (int t = 0; t < KN_TIER_MAX; t++) {
            if (t > 0 && !p.windows) break;
            int32_t items[1] = {}, before[1], total[1];
            if (!group.tiers) items[0] = t == 0 ? (group.units + step - 1) / step : 0;
            for (int i = 0; group.tiers && i < group.units; i++)
                items[0] += (group.tiers >> 2 * i & 3) == (uint32_t)t;
            plan_scan(sh, items, before, total);
            if (items[0]) plan_list(p, group, step, t, listed[t] + before[0]);
            listed[t] += total[0];
        }
    }
    if (threadIdx.x == 0) {
#pragma unroll
        for (int t = 0; t < KN_TIER_MAX; t++) {
            p.head->unit_count[t] = listed[t];
            p.head->window[t] =
                p.windows ? plan_window(p.windows[t], t ? listed[t] : 0, sums.slots, p.cta_count)
                          : kn_cu_window{16, 1, 0.f};
            p.head->ticket[t] = 0;
        }
        p.head->done = 0;
        p.head->spread_pages = sums.spread_pages;
    }
    __threadfence();
    __syncthreads();
    ptx_griddep_launch();
    ptx_griddep_wait();
    CU_TRACE_WAITED();
}

extern "C" enum status kn_cu_attention_plan(const struct kn_cu_attention *a,
                                            const struct kn_cu_attention_plan *plan,
                                            const struct kn_cu_plan_args *args, void *stream,
                                            char *err)
{
    const struct kn_batch *b = args->batch;
    CHECK(b->token_count - args->token_begin <= PLAN_TOKENS);
    plan_params p;
    p.head = plan->head;
    p.units = plan->units;
    p.positions = b->positions;
    p.token_seq = b->token_seq;
    p.seqs = b->seqs;
    p.pages = b->pages;
    p.windows = args->windows;
    p.token_begin = args->token_begin;
    p.token_end = b->token_count;
    p.units_max = a->units_max;
    p.window = args->window;
    p.unit_shift = -1;
    for (int32_t pages = args->split_pages; pages; pages /= 2) p.unit_shift++;
    CHECK(p.unit_shift <= 5);
    p.item_pages = args->item_pages;
    p.fresh = args->fresh;
    p.kv_heads = a->shape.kv_heads;
    p.cta_count = a->cta_count;
    const cu_launch l(1, PLAN_THREADS, 0, stream);
    cudaError_t e = cudaLaunchKernelEx(&l.config, attention_plan, p);
    if (e == cudaSuccess) return ST_OK;
    return err_set(err, ST_DEVICE, "launching the attention plan failed: %s",
                   cudaGetErrorString(e));
}
