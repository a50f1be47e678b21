/*
 * prefill_attention.cu - the list of a step's tiles, and the launcher of prefill attention.
 */
#include <cuda_runtime.h>
#include <stdlib.h>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/prefill_attention.cuh"

extern "C" {
#include "config/check.h"
}

/* --- tiles --- */

static int32_t section_count(int32_t kv_count)
{
    return (kv_count + KN_CU_PREFILL_SECTION - 1) / KN_CU_PREFILL_SECTION;
}

extern "C" int32_t kn_cu_prefill_tile_max(const struct kn_batch *batch, int32_t group)
{
    int64_t tiles = 0;
    int32_t sections = 1;
    for (int32_t i = 0; i < batch->seq_count; i++) {
        const struct kn_seq *seq = &batch->seqs[i];
        tiles += (int64_t)seq->token_count * group / KN_CU_PREFILL_ROWS + 1;
        if (section_count(seq->kv_count) > sections) sections = section_count(seq->kv_count);
    }
    int64_t cut = KN_CU_PREFILL_SLOTS;
    cut = (tiles < cut ? tiles : cut) * sections;
    const int64_t max = cut > tiles ? cut : tiles;
    CHECK(max <= INT32_MAX);
    return (int32_t)max;
}

static int heavier_first(const void *a, const void *b)
{
    const struct kn_cu_prefill_tile *x = (const struct kn_cu_prefill_tile *)a,
                                    *y = (const struct kn_cu_prefill_tile *)b;
    if (x->section != y->section) return x->section - y->section;
    if (x->last_position != y->last_position) return x->last_position < y->last_position ? 1 : -1;
    return x->token != y->token ? x->token - y->token : x->head - y->head;
}

/* One entry a tile becomes one for each of its sections. */
static int32_t cut_by_section(struct kn_cu_prefill_tile *tiles, int32_t tile_count)
{
    int32_t count = tile_count;
    for (int32_t i = 0; i < tile_count; i++) {
        tiles[i].section = 0;
        tiles[i].number = i;
        for (int32_t s = 1; s < section_count(tiles[i].last_position + 1); s++) {
            tiles[count] = tiles[i];
            tiles[count++].section = s;
        }
    }
    return count;
}

extern "C" void kn_cu_prefill_tiles(const struct kn_batch *batch,
                                    const struct kn_cu_prefill_shape *shape,
                                    struct kn_cu_prefill_tile *tiles,
                                    struct kn_cu_prefill_work *work)
{
    struct kn_cu_prefill_work w = {tiles, 0, 0, 0, 0, INT32_MAX, false};
    const int32_t rows_max = kn_cu_prefill_rows(shape->head_dim),
                  group = shape->q_heads / shape->kv_heads;
    bool long_ones = false;
    for (int32_t i = 0; i < batch->seq_count; i++) {
        const struct kn_seq *seq = &batch->seqs[i];
        if (seq->token_count < shape->token_min) continue;
        const int32_t rows = seq->token_count * group,
                      first_position = seq->kv_count - seq->token_count;
        for (int32_t row = 0; row < rows; row += rows_max) {
            struct kn_cu_prefill_tile *t = &tiles[w.tile_count++];
            t->token = seq->token_begin + row / group;
            t->position = first_position + row / group;
            t->head = (int16_t)(row % group);
            t->row_count = (int16_t)(rows - row < rows_max ? rows - row : rows_max);
            t->last_position = first_position + (row + t->row_count - 1) / group;
            t->table = seq->page_begin;
            t->kv_count = seq->kv_count;
            t->section = -1;
            t->number = 0;
        }
        if (first_position < w.position_min) w.position_min = first_position;
        w.token_count += seq->token_count;
        w.kv_tokens += seq->kv_count;
        long_ones |= seq->kv_count > KN_CU_PREFILL_SECTION;
    }
    w.number_count = w.tile_count;
    w.by_section = !shape->whole && long_ones &&
                   (int64_t)w.tile_count * shape->kv_heads <= KN_CU_PREFILL_SLOTS;
    if (w.by_section) w.tile_count = cut_by_section(tiles, w.tile_count);
    qsort(tiles, (size_t)w.tile_count, sizeof *tiles, heavier_first);
    *work = w;
}

/* --- the launcher --- */

static const int64_t L2_BYTES = 32 << 20; /* of KV that all SMs work on at a time */

template <int DIM> constexpr size_t parked_bytes()
{
    return (size_t)KN_CU_PREFILL_SLOTS * cu_pre_shape<DIM>::CONSUMER_WARPS * (DIM / 8 + 1) * 32 *
           sizeof(float4);
}

extern "C" size_t kn_cu_prefill_state_bytes(int32_t head_dim)
{
    static_assert(sizeof(struct kn_cu_prefill_state) % sizeof(float4) == 0, "sums lie behind it");
    return sizeof(struct kn_cu_prefill_state) + (head_dim <= 64    ? parked_bytes<64>()
                                                 : head_dim <= 96  ? parked_bytes<96>()
                                                 : head_dim <= 128 ? parked_bytes<128>()
                                                                   : parked_bytes<256>());
}

template <int DIM, bool PACKED = false> static cudaError_t allow_shared()
{
    return cudaFuncSetAttribute(sm90_prefill_attention<DIM, PACKED>,
                                cudaFuncAttributeMaxDynamicSharedMemorySize,
                                sizeof(cu_pre_shared<cu_pre_shape<DIM, PACKED>>));
}

extern "C" enum status kn_cu_prefill_attention_init(char *err)
{
    cudaError_t e = allow_shared<64>();
    if (!e) e = allow_shared<96>();
    if (!e) e = allow_shared<128>();
    if (!e) e = allow_shared<256>();
    if (!e) e = allow_shared<96, true>();
    if (!e) e = allow_shared<128, true>();
    if (!e) return ST_OK;
    return err_set(err, ST_DEVICE, "setting up prefill attention failed: %s",
                   cudaGetErrorString(e));
}

template <int DIM, bool PACKED = false>
static cudaError_t launch(const cu_pre_params &p, void *stream)
{
    using S = cu_pre_shape<DIM, PACKED>;
    int device, sm_count;
    cudaError_t e = cudaGetDevice(&device);
    if (!e) e = cudaDeviceGetAttribute(&sm_count, cudaDevAttrMultiProcessorCount, device);
    if (e) return e;
    static_assert(S::CONSUMER_WARPS <= KN_CU_PREFILL_WARPS, "each has a word of its own");
    int32_t ctas = p.tile_count * p.kv_heads;
    if (ctas > sm_count) ctas = sm_count;
    if (ctas > KN_CU_PREFILL_SLOTS) ctas = KN_CU_PREFILL_SLOTS;
    const cu_launch l(ctas, S::THREADS, sizeof(cu_pre_shared<S>), stream);
    return cudaLaunchKernelEx(&l.config, sm90_prefill_attention<DIM, PACKED>, p);
}

/* Entries at the list's begin whose sections a window hides from every tile. */
static int32_t hidden_count(const struct kn_cu_prefill_args *a)
{
    const struct kn_cu_prefill_work *w = a->work;
    if (!w->by_section || a->window <= 0 || w->position_min < a->window) return 0;
    return (w->position_min - a->window + 1) / KN_CU_PREFILL_SECTION * w->number_count;
}

/* kv-heads whose KV is to stay in L2 together; by section all of them, so that many entries lie
 * between two of a tile, which wait for each other. */
static int32_t heads_at_once(const struct kn_cu_prefill_args *a)
{
    if (a->work->by_section) return a->kv->kv_heads;
    const int64_t bytes = a->work->kv_tokens * (int64_t)kn_kv_head_bytes(a->kv) / KN_PAGE_TOKENS,
                  heads = L2_BYTES / (bytes > 0 ? bytes : 1);
    return heads < 1 ? 1 : heads > a->kv->kv_heads ? a->kv->kv_heads : (int32_t)heads;
}

extern "C" enum status kn_cu_prefill_attention_launch(const struct kn_cu_prefill_args *a,
                                                      void *stream, char *err)
{
    const struct kn_kv *kv = a->kv;
    if (kv->kv_heads <= 0 || a->q_heads <= 0 || a->q_heads % kv->kv_heads)
        return err_set(err, ST_INVALID, "attention of %d query and %d kv-heads", a->q_heads,
                       kv->kv_heads);
    enum status st = kn_cu_kv_check(kv, err);
    if (st) return st;
    if (a->work->tile_count == 0) return ST_OK;
    CHECK(a->q_heads / kv->kv_heads <= KN_CU_PREFILL_ROWS);
    CHECK(a->scale > 0 && a->q_token_bytes % 16 == 0 && a->q_head_bytes % 16 == 0);
    CHECK((uintptr_t)a->q % 16 == 0 && a->token_count > 0);
    cu_pre_params p;
    const int32_t hidden = hidden_count(a);
    p.tiles = a->work->tiles + hidden;
    p.pages = a->pages;
    for (int t = 0; t < KN_TIER_MAX; t++)
        p.base[t] = (const uint8_t *)kv->base[t] + a->layer * kn_kv_layer_bytes(kv);
    p.page_bytes = kn_kv_page_bytes(kv);
    p.q = (const uint8_t *)a->q;
    p.q_token_bytes = a->q_token_bytes;
    p.q_head_bytes = a->q_head_bytes;
    p.out = (uint8_t *)a->out;
    p.chunk_bytes = kn_cu_act_bytes(KN_CU_TOKENS_MAX, a->q_heads * kv->head_dim);
    p.state = a->state;
    p.parked = (float4 *)(a->state + 1);
    p.windows = a->windows;
    p.by_section = a->work->by_section;
    p.traffic = a->traffic;
    p.tile_count = a->work->tile_count - hidden;
    p.heads_at_once = heads_at_once(a);
    p.last_chunk = a->token_count / KN_CU_TOKENS_MAX;
    p.last_rows = kn_cu_bucket_of(a->token_count % KN_CU_TOKENS_MAX);
    p.q_heads = a->q_heads;
    p.kv_heads = kv->kv_heads;
    p.group = a->q_heads / kv->kv_heads;
    p.group_inverse = (65536 + p.group - 1) / p.group;
    p.head_dim = kv->head_dim;
    p.window = a->window;
    p.scale_log2 = a->scale * 1.44269504088896340736f;
    const bool packed = kv->dtype == KN_E4M3;
    cudaError_t e =
        packed ? kv->head_dim <= 96 ? launch<96, true>(p, stream) : launch<128, true>(p, stream)
        : kv->head_dim <= 64  ? launch<64>(p, stream)
        : kv->head_dim <= 96  ? launch<96>(p, stream)
        : kv->head_dim <= 128 ? launch<128>(p, stream)
                              : launch<256>(p, stream);
    if (!e) return ST_OK;
    return err_set(err, ST_DEVICE, "launching prefill attention failed: %s", cudaGetErrorString(e));
}
