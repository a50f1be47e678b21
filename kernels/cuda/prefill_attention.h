/*
 * prefill_attention.h - attention of prompt chunks on the GPU, for host C: many consecutive tokens
 * of a sequence against its pages, several sequences' chunks in one launch.
 *
 * Decode attention (attention.h) reads a sequence's KV once for every token; here a tile of 128
 * query rows shares each read, so a chunk is bound by the tensor cores.  A row is a pair (token,
 * query head of a kv-head's group), heads fastest: a short chunk of a grouped model still fills a
 * tile.
 *
 * A step's chunks are known on the host when its batch is staged.  kn_cu_prefill_tiles lists them
 * as tiles, once for all layers; the list goes to the device with the batch's other arrays; per
 * layer kn_cu_prefill_attention_launch computes every tile for every kv-head.  Tokens that are in
 * no tile are left alone.
 */
#ifndef DAKD_KERNELS_CUDA_PREFILL_ATTENTION_H
#define DAKD_KERNELS_CUDA_PREFILL_ATTENTION_H

#ifdef __cplusplus
extern "C" {
#endif

#include "kernels/cuda/cuda.h"

enum { KN_CU_PREFILL_ROWS = 128 }; /* of a tile */

struct kn_cu_prefill_tile {
    int32_t token, position; /* of the first row's token: in the batch, in its sequence */
    int32_t head;            /* the first row's, within the group */
    int32_t row_count;       /* 1..KN_CU_PREFILL_ROWS */
    int32_t last_position;   /* of the last row */
    int32_t table;           /* the sequence's page table is batch.pages + table */
    int32_t kv_count;        /* of the sequence, this step's tokens included */
    int32_t unused;
};

/* What a launch works off. */
struct kn_cu_prefill_work {
    const struct kn_cu_prefill_tile *tiles; /* [tile_count]; for a launch in device memory */
    int32_t tile_count;
    int32_t token_count; /* of all tiles */
    int64_t kv_tokens;   /* of all sequences with tiles: how much KV a kv-head has */
};

/* Lists the tiles of every sequence of `batch` (host memory) that has at least token_min tokens
 * there, heaviest first, for `group` query heads a kv-head.  work->tiles is set to `tiles`, which
 * has room for kn_cu_prefill_tile_max. */
void kn_cu_prefill_tiles(const struct kn_batch *batch, int32_t token_min, int32_t group,
                         struct kn_cu_prefill_tile *tiles, struct kn_cu_prefill_work *work);
int32_t kn_cu_prefill_tile_max(int32_t token_count, int32_t seq_count, int32_t group);

struct kn_cu_prefill_args {
    const struct kn_cu_prefill_work *work;
    const kn_page *pages; /* batch.pages, on the device */
    const void *q;        /* bf16, rotated: D elements of head h of token t lie at */
    size_t q_token_bytes; /* t * q_token_bytes + h * q_head_bytes, */
    size_t q_head_bytes;  /* both multiples of 16 */
    int32_t q_heads;
    const struct kn_kv *kv; /* this step's keys and values are in the pages */
    int32_t layer;
    float scale;                   /* > 0 */
    int32_t window;                /* as kn_attention_args */
    int32_t token_count;           /* T of the batch: says how `out` is cut into chunks */
    void *out;                     /* activations [T, Hq*D], chunks of 256 tokens (step.c) */
    uint32_t *ticket;              /* [2] in device memory; zero between launches */
    struct kn_cu_traffic *traffic; /* [KN_TIER_MAX] in device memory, or NULL */
};

/* Whether there are kernels for such heads; ST_UNSUPPORTED says what they lack. */
MUST_USE enum status kn_cu_prefill_check(int32_t q_heads, const struct kn_kv *kv, char *err);
/* Once per process and device, before any launch.  ST_DEVICE with CUDA's sentence. */
MUST_USE enum status kn_cu_prefill_attention_init(char *err);
/* One layer.  Rows of `out` are written for tokens that are in tiles; inputs beyond Hq*D are zero.
 * ST_UNSUPPORTED as kn_cu_prefill_check; ST_DEVICE with CUDA's sentence. */
MUST_USE enum status kn_cu_prefill_attention_launch(const struct kn_cu_prefill_args *args,
                                                    void *stream, char *err);

#ifdef __cplusplus
}
#endif

#endif
