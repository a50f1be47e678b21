/*
 * decode_attention.cu - the plan of a step's attention, and the launchers.
 *
 * The plan kernel turns lengths and page tables into lists of items (attention_plan.cuh), one list
 * per tier: runs of local units in the first, units with remote pages singly in that of the highest
 * tier among them.  It copies the windows too, so that every CTA of every layer sees the same ones
 * however late the controller writes.  It runs once per step on one CTA: a scan over tokens gives
 * each its slots, then every slot that begins a run lists it, in order.
 *
 * It and the empty kernel behind it are launched without the programmatic attribute: the second
 * starts when the plan is complete, and nothing later starts before the second ends.  So later
 * kernels may read the plan, and KV of earlier steps, before their griddepcontrol.wait.
 */
#include <cuda_runtime.h>

#include "kernels/cuda/decode_attention.cuh"
#include "kernels/cuda/launch.cuh"

extern "C" {
#include "config/check.h"
}

enum { PLAN_THREADS = 1024, MEMORY_ALIGN = 256 };

struct plan_params {
    kn_cu_plan_head *head;
    kn_cu_unit *units;
    int32_t *first_slot;
    const int32_t *positions, *token_seq;
    const kn_seq *seqs;
    const kn_page *pages;
    const kn_cu_window *windows;
    int32_t token_begin, token_end;
    int32_t units_max, window, split_shift;
    int32_t kv_heads, cta_count;
};

/* Exclusive sum over the CTA of each thread's value; *total: of all.  `warp_sum` has 32 entries. */
PTX_INLINE int32_t plan_scan(int32_t value, int32_t *warp_sum, int32_t *total)
{
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int32_t sum = value;
    for (int d = 1; d < 32; d *= 2) {
        const int32_t below = __shfl_up_sync(0xffffffffu, sum, d);
        if (lane >= d) sum += below;
    }
    __syncthreads(); /* the last scan's sums have been read */
    if (lane == 31) warp_sum[warp] = sum;
    __syncthreads();
    int32_t before = 0, all = 0;
    for (int w = 0; w < PLAN_THREADS / 32; w++) {
        if (w < warp) before += warp_sum[w];
        all += warp_sum[w];
    }
    *total = all;
    return before + sum - value;
}

PTX_INLINE int32_t plan_unit_shift(const plan_params &p, int32_t pages)
{
    return p.split_shift >= 0 ? p.split_shift : cu_att_unit_shift(pages);
}

/* Units of a run: as many as make a quarter of a CTA's share at first, few towards the end. */
PTX_INLINE int32_t plan_run_units(const plan_params &p, int32_t shift, int32_t group_slot,
                                  int32_t slots, int64_t pages)
{
    const int64_t share = pages * p.kv_heads / (4 * p.cta_count);
    const int32_t most = (int32_t)min(share, (int64_t)CU_ATT_RUN_PAGES);
    int32_t units = CU_ATT_FAN;
    while (units > 1 && units << shift > most) units /= 2;
    if (group_slot >= slots / 10 * 9) return 1;
    return group_slot >= slots / 10 * 7 ? max(1, units / 4) : units;
}

/* The run of units that begins at `slot`, tier[i] the highest tier of unit i's pages; 0 units where
 * none begins there. */
PTX_INLINE int32_t plan_run(const plan_params &p, int32_t slot, int32_t slots, int64_t pages,
                            kn_cu_unit *u, uint32_t *tiers)
{
    int low = p.token_begin, high = p.token_end; /* the last token whose first slot is <= slot */
    while (high - low > 1) {
        const int mid = (low + high) / 2;
        if (p.first_slot[mid] <= slot) low = mid;
        else high = mid;
    }
    const int32_t position = p.positions[low], first = p.first_slot[low], split = slot - first;
    int32_t key_begin, begin, end;
    cu_att_visible(position, p.window, &key_begin, &begin, &end);
    const int32_t shift = plan_unit_shift(p, end - begin);
    const int32_t count = (end - begin - 1 >> shift) + 1;
    const int32_t run =
        plan_run_units(p, shift, first + split / CU_ATT_FAN * CU_ATT_FAN, slots, pages);
    if (split % run) return 0;
    const kn_seq seq = p.seqs[p.token_seq[low]];
    u->token = low;
    u->slot = slot;
    u->first_slot = first;
    u->split_count = count;
    u->page_begin = begin + (split << shift);
    u->page_end = min(begin + (split + run << shift), end);
    u->key_begin = key_begin;
    u->key_end = position + 1;
    u->table = seq.page_begin;
    u->old_pages = (seq.kv_count - seq.token_count) / KN_PAGE_TOKENS;
    u->unit_shift = shift;
    u->unused = 0;
    *tiers = 0; /* two bits a unit */
    for (int page = u->page_begin; page < u->page_end; page++) {
        const int at = (page - u->page_begin >> shift) * 2;
        const uint32_t tier = cu_page_tier(p.pages[seq.page_begin + page]) & 3;
        if (tier > (*tiers >> at & 3)) *tiers = (*tiers & ~(3u << at)) | tier << at;
    }
    return min(run, count - split);
}

/* Lists a run, whole where it is local, else unit by unit. */
PTX_INLINE void plan_list(const plan_params &p, kn_cu_unit u, int32_t units, uint32_t tiers,
                          int tier, int32_t at)
{
    kn_cu_unit *list = p.units + (size_t)tier * p.units_max;
    if (!tiers) {
        list[at] = u;
        return;
    }
    const int32_t begin = u.page_begin, end = u.page_end, slot = u.slot;
    for (int i = 0; i < units; i++) {
        if ((tiers >> 2 * i & 3) != (uint32_t)tier) continue;
        u.slot = slot + i;
        u.page_begin = begin + (i << u.unit_shift);
        u.page_end = min(begin + (i + 1 << u.unit_shift), end);
        list[at++] = u;
    }
}

__global__ void __launch_bounds__(PLAN_THREADS)
    attention_plan(const __grid_constant__ plan_params p)
{
    CU_TRACE(PLAN, 0);
    __shared__ int32_t warp_sum[PLAN_THREADS / 32];
    int32_t slots = 0, sum;
    int64_t pages = 0;
    for (int first = p.token_begin; first < p.token_end; first += PLAN_THREADS) {
        const int t = first + threadIdx.x;
        int32_t count = 0, seen = 0;
        if (t < p.token_end && p.token_seq[t] >= 0) {
            int32_t key_begin, begin, end;
            cu_att_visible(p.positions[t], p.window, &key_begin, &begin, &end);
            seen = end - begin;
            const int32_t shift = plan_unit_shift(p, seen);
            count = (seen - 1 >> shift) + 1;
            if (count > CU_ATT_FAN * CU_ATT_FAN || 1 << shift > CU_ATT_RUN_PAGES) __trap();
        }
        const int32_t before = plan_scan(count, warp_sum, &sum);
        if (t < p.token_end) p.first_slot[t] = slots + before;
        slots += sum;
        plan_scan(seen, warp_sum, &sum);
        pages += sum;
    }
    if (slots > p.units_max) __trap(); /* the caller sized the workspace for less */
    __syncthreads();
    int32_t listed[KN_TIER_MAX] = {};
    for (int first = 0; first < slots; first += PLAN_THREADS) {
        const int slot = first + threadIdx.x;
        kn_cu_unit u;
        uint32_t tiers = 0;
        const int32_t units = slot < slots ? plan_run(p, slot, slots, pages, &u, &tiers) : 0;
#pragma unroll
        for (int t = 0; t < KN_TIER_MAX; t++) {
            int32_t items = units && !tiers && t == 0;
            if (tiers)
                for (int i = 0; i < units; i++) items += (tiers >> 2 * i & 3) == (uint32_t)t;
            if (!__syncthreads_or(items)) continue;
            const int32_t before = plan_scan(items, warp_sum, &sum);
            if (items) plan_list(p, u, units, tiers, t, listed[t] + before);
            listed[t] += sum;
        }
    }
    if (threadIdx.x != 0) return;
#pragma unroll
    for (int t = 0; t < KN_TIER_MAX; t++) {
        p.head->unit_count[t] = listed[t];
        p.head->window[t] = p.windows ? p.windows[t] : kn_cu_window{16, 1, 0.f};
        p.head->ticket[t] = 0;
    }
    p.head->done = 0;
}

/* That it starts after the plan is complete is all it is for. */
__global__ void attention_plan_done()
{
    CU_TRACE(PLAN, 1);
}

/* --- sizes and layout --- */

static enum status launched(cudaError_t e, const char *what, char *err)
{
    if (e == cudaSuccess) return ST_OK;
    return err_set(err, ST_DEVICE, "launching %s failed: %s", what, cudaGetErrorString(e));
}

static int32_t units_max(const struct kn_cu_attention_shape *s)
{
    return CU_ATT_FAN * s->tokens_max + s->pages_max / 8;
}

static size_t padded(size_t bytes)
{
    return (bytes + MEMORY_ALIGN - 1) / MEMORY_ALIGN * MEMORY_ALIGN;
}

static uint8_t *carve(uint8_t **at, size_t bytes)
{
    uint8_t *p = *at;
    *at += padded(bytes);
    return p;
}

extern "C" int32_t kn_cu_attention_unit_count(int32_t pages)
{
    return ((pages - 1) >> cu_att_unit_shift(pages)) + 1;
}

extern "C" size_t kn_cu_attention_plan_bytes(const struct kn_cu_attention *a)
{
    return padded(sizeof(kn_cu_plan_head)) +
           padded(KN_TIER_MAX * sizeof(kn_cu_unit) * a->units_max) +
           padded(sizeof(int32_t) * (a->shape.tokens_max + 1));
}

extern "C" void kn_cu_attention_plan_init(const struct kn_cu_attention *a,
                                          struct kn_cu_attention_plan *plan, void *memory)
{
    uint8_t *at = (uint8_t *)memory;
    plan->head = (kn_cu_plan_head *)carve(&at, sizeof(kn_cu_plan_head));
    plan->units = (kn_cu_unit *)carve(&at, KN_TIER_MAX * sizeof(kn_cu_unit) * a->units_max);
    plan->first_slot = (int32_t *)carve(&at, sizeof(int32_t) * (a->shape.tokens_max + 1));
}

/* Lays out from `base` and returns the end. */
static uint8_t *lay_out(struct kn_cu_attention *a, uint8_t *base)
{
    const struct kn_cu_attention_shape *s = &a->shape;
    const size_t units = a->units_max, group = s->q_heads / s->kv_heads;
    uint8_t *at = base;
    kn_cu_attention_plan_init(a, &a->plan, carve(&at, kn_cu_attention_plan_bytes(a)));
    a->q = carve(&at, (size_t)s->tokens_max * s->kv_heads * cu_att_q_bytes(group, s->head_dim));
    a->partial = (float *)carve(&at, units * s->q_heads * s->head_dim * sizeof(float));
    a->partial_ml = (float *)carve(&at, units * s->q_heads * sizeof(float2));
    a->group_ml = (float *)carve(&at, units * s->q_heads * sizeof(float2));
    a->group_count = (uint32_t *)carve(&at, units * s->kv_heads * sizeof(uint32_t));
    a->root_count = (uint32_t *)carve(&at, units * s->kv_heads * sizeof(uint32_t));
    return at;
}

extern "C" enum status kn_cu_attention_bytes(const struct kn_cu_attention_shape *s, size_t *bytes,
                                             char *err)
{
    if (s->q_heads <= 0 || s->kv_heads <= 0 || s->q_heads % s->kv_heads || s->tokens_max <= 0 ||
        s->pages_max <= 0)
        return err_set(err, ST_INVALID,
                       "attention of %d query and %d kv-heads, %d tokens, %d pages", s->q_heads,
                       s->kv_heads, s->tokens_max, s->pages_max);
    const int32_t atoms = cu_att_atoms(s->head_dim);
    if (s->head_dim <= 0 || s->head_dim % 8 || (atoms != 1 && atoms != 2 && atoms != 4))
        return err_set(err, ST_UNSUPPORTED,
                       "head dimension %d: the GPU kernels take multiples of 8 up to 128, and from "
                       "200 to 256; run this model on the CPU backend",
                       s->head_dim);
    if (s->q_heads / s->kv_heads > CU_ATT_GROUP_MAX)
        return err_set(err, ST_UNSUPPORTED,
                       "%d query heads for a kv-head: the GPU kernels take at most %d; run this "
                       "model on the CPU backend",
                       s->q_heads / s->kv_heads, CU_ATT_GROUP_MAX);
    struct kn_cu_attention a = {};
    a.shape = *s;
    a.units_max = units_max(s);
    *bytes = (size_t)(lay_out(&a, NULL) - (uint8_t *)NULL);
    return ST_OK;
}

enum {
    SHARED_MAX = 227 * 1024,
    SHARED_HALF = 113 * 1024, /* leaves an SM room for the next kernel's CTA */
};

/* Ring stages: six keep HBM busy; five do where that lets the next kernel in. */
template <int ATOMS, int ROWS> static int ring_stages(int group)
{
    for (int stages = CU_ATT_STAGES_MAX; stages >= 5; stages--)
        if (cu_att_shared_bytes<ATOMS, ROWS>(stages, group) <= SHARED_HALF) return stages;
    return CU_ATT_STAGES_MAX;
}

template <int ATOMS, int ROWS> static cudaError_t allow_shared()
{
    static_assert(cu_att_shared_bytes<ATOMS, ROWS>(CU_ATT_STAGES_MAX, ROWS) <= SHARED_MAX);
    return cudaFuncSetAttribute(sm90_bf16_decode_attention<ATOMS, ROWS>,
                                cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_MAX);
}

extern "C" enum status kn_cu_attention_init(struct kn_cu_attention *a,
                                            const struct kn_cu_attention_shape *s, void *memory,
                                            char *err)
{
    size_t bytes;
    enum status st = kn_cu_attention_bytes(s, &bytes, err);
    if (st) return st;
    memset(a, 0, sizeof *a);
    a->shape = *s;
    a->units_max = units_max(s);
    lay_out(a, (uint8_t *)memory);
    int device;
    cudaError_t e = cudaGetDevice(&device);
    if (!e) e = cudaDeviceGetAttribute(&a->cta_count, cudaDevAttrMultiProcessorCount, device);
    if (!e) e = allow_shared<1, 8>();
    if (!e) e = allow_shared<1, 16>();
    if (!e) e = allow_shared<2, 8>();
    if (!e) e = allow_shared<2, 16>();
    if (!e) e = allow_shared<4, 8>();
    if (!e) e = allow_shared<4, 16>();
    if (e) return err_set(err, ST_DEVICE, "setting up attention failed: %s", cudaGetErrorString(e));
    return ST_OK;
}

/* --- launchers --- */

extern "C" enum status kn_cu_attention_plan(const struct kn_cu_attention *a,
                                            const struct kn_cu_attention_plan *plan,
                                            const struct kn_cu_plan_args *args, void *stream,
                                            char *err)
{
    const struct kn_batch *b = args->batch;
    plan_params p;
    p.head = plan->head;
    p.units = plan->units;
    p.first_slot = plan->first_slot;
    p.positions = b->positions;
    p.token_seq = b->token_seq;
    p.seqs = b->seqs;
    p.pages = b->pages;
    p.windows = args->windows;
    p.token_begin = args->token_begin;
    p.token_end = b->token_count;
    p.units_max = a->units_max;
    p.window = args->window;
    p.split_shift = -1;
    for (int32_t pages = args->split_pages; pages; pages /= 2) p.split_shift++;
    p.kv_heads = a->shape.kv_heads;
    p.cta_count = a->cta_count;
    const cu_launch plan_launch(1, PLAN_THREADS, 0, stream, false);
    const cu_launch done_launch(1, 32, 0, stream, false);
    cudaError_t e = cudaLaunchKernelEx(&plan_launch.config, attention_plan, p);
    if (e == cudaSuccess) e = cudaLaunchKernelEx(&done_launch.config, attention_plan_done);
    return launched(e, "the attention plan", err);
}

template <int ATOMS, int ROWS>
static cudaError_t launch(const struct kn_cu_attention *a, cu_att_params &p, void *stream)
{
    p.stages = ring_stages<ATOMS, ROWS>(p.group);
    const cu_launch l(a->cta_count, cu_att_shape<ATOMS, ROWS>::THREADS,
                      cu_att_shared_bytes<ATOMS, ROWS>(p.stages, p.group), stream);
    return cudaLaunchKernelEx(&l.config, sm90_bf16_decode_attention<ATOMS, ROWS>, p);
}

extern "C" enum status kn_cu_decode_attention(const struct kn_cu_attention *a,
                                              const struct kn_cu_attention_plan *plan,
                                              const struct kn_batch *batch,
                                              const struct kn_cu_attention_args *args, void *stream,
                                              char *err)
{
    const struct kn_cu_attention_shape *s = &a->shape;
    const struct kn_kv *kv = args->kv;
    if (kv->dtype != KN_BF16)
        return err_set(err, ST_UNSUPPORTED, "KV of %s: the GPU kernels read bfloat16",
                       kn_dtype_name(kv->dtype));
    CHECK(kv->kv_heads == s->kv_heads && kv->head_dim == s->head_dim);
    CHECK(args->scale > 0 && args->token_rows % 8 == 0 && batch->token_count <= s->tokens_max);
    cu_att_params p;
    p.units = plan->units;
    p.head = plan->head;
    p.pages = batch->pages;
    for (int t = 0; t < KN_TIER_MAX; t++)
        p.base[t] = (const uint8_t *)kv->base[t] + args->layer * kn_kv_layer_bytes(kv);
    p.page_bytes = kn_kv_page_bytes(kv);
    p.q = a->q;
    p.partial = a->partial;
    p.partial_ml = (float2 *)a->partial_ml;
    p.group_ml = (float2 *)a->group_ml;
    p.group_count = a->group_count;
    p.root_count = a->root_count;
    p.out = (uint8_t *)args->out;
    p.traffic = args->traffic;
    p.units_max = a->units_max;
    p.token_rows = args->token_rows;
    p.q_heads = s->q_heads;
    p.kv_heads = s->kv_heads;
    p.kv_heads_inverse = s->kv_heads == 1 ? 0 : (uint32_t)((1ull << 32) / s->kv_heads + 1);
    p.group = s->q_heads / s->kv_heads;
    p.head_dim = s->head_dim;
    p.scale_log2 = args->scale * 1.44269504088896340736f;
    const bool wide = cu_att_rows(p.group) == 16;
    cudaError_t e = cudaErrorInvalidValue;
    switch (cu_att_atoms(s->head_dim)) {
    case 1: e = wide ? launch<1, 16>(a, p, stream) : launch<1, 8>(a, p, stream); break;
    case 2: e = wide ? launch<2, 16>(a, p, stream) : launch<2, 8>(a, p, stream); break;
    case 4: e = wide ? launch<4, 16>(a, p, stream) : launch<4, 8>(a, p, stream); break;
    }
    return launched(e, "decode attention", err);
}
