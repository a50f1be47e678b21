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
 *
 * A sequence's keys fall into sections of KN_CU_PREFILL_SECTION, counted from position 0.  Where a
 * step has few tiles, the list has an entry for each of their sections, for all SMs to have work;
 * what a row comes to is the same either way (prefill_attention.cuh).
 */
#ifndef DAKD_KERNELS_CUDA_PREFILL_ATTENTION_H
#define DAKD_KERNELS_CUDA_PREFILL_ATTENTION_H

#ifdef __cplusplus
extern "C" {
#endif

#include "kernels/cuda/cuda.h"

enum {
    KN_CU_PREFILL_ROWS = 128,     /* of a tile, at least */
    KN_CU_PREFILL_SECTION = 8192, /* keys */
    KN_CU_PREFILL_SLOTS = 264,    /* tiles, each of one kv-head, whose sums wait in memory */
    KN_CU_PREFILL_WARPS = 12,     /* that multiply, at most */
};
/* Rows of a tile of heads with so many dimensions. */
static inline int32_t kn_cu_prefill_rows(int32_t head_dim)
{
    return head_dim > 64 ? KN_CU_PREFILL_ROWS : 192;
}

struct kn_cu_prefill_tile {
    int32_t token, position; /* of the first row's token: in the batch, in its sequence */
    int16_t head;            /* the first row's, within the group */
    int16_t row_count;       /* 1..kn_cu_prefill_rows */
    int32_t last_position;   /* of the last row */
    int32_t table;           /* the sequence's page table is batch.pages + table */
    int32_t kv_count;        /* of the sequence, this step's tokens included */
    int32_t section;         /* the one to compute; -1: all */
    int32_t number;          /* the tile's, of those that have sections of their own */
};

/* What a launch works off. */
struct kn_cu_prefill_work {
    const struct kn_cu_prefill_tile *tiles; /* [tile_count]; for a launch in device memory */
    int32_t tile_count;
    int32_t token_count;                /* of all tiles */
    int64_t kv_tokens;                  /* of all sequences with tiles: how much KV a kv-head has */
    int32_t number_count, position_min; /* of tiles, however cut, and of their tokens */
    bool by_section;                    /* the tiles' sections are entries of their own */
};

struct kn_cu_prefill_shape {
    int32_t q_heads, kv_heads, head_dim;
    int32_t token_min; /* in the step, of a sequence that has tiles */
    bool whole;        /* never by section; for tests */
};

/* Lists the tiles of every sequence of `batch` (host memory) that has at least token_min tokens
 * there, heaviest first, or section by section.  work->tiles is set to `tiles`, which has room for
 * kn_cu_prefill_tile_max of the batch and at least as many query heads a kv-head. */
void kn_cu_prefill_tiles(const struct kn_batch *batch, const struct kn_cu_prefill_shape *shape,
                         struct kn_cu_prefill_tile *tiles, struct kn_cu_prefill_work *work);
int32_t kn_cu_prefill_tile_max(const struct kn_batch *batch, int32_t group);

/* Device memory that launches share, all zero before the first; each leaves it as the next wants
 * it.  Behind it lie the sums that wait between two sections. */
struct kn_cu_prefill_state {
    uint32_t ticket, done; /* zero between launches */
    /* Of a tier: 8 KB of it that were asked for, and have landed, ever; equal between launches. */
    struct kn_cu_prefill_flight {
        uint32_t asked, landed;
    } flight[KN_TIER_MAX];
    uint32_t unused[6];
    /* Sections that have been folded, of each warp of a tile; zero between launches. */
    uint32_t folded[KN_CU_PREFILL_SLOTS * KN_CU_PREFILL_WARPS];
};
/* Of the state and the sums. */
size_t kn_cu_prefill_state_bytes(int32_t head_dim);

struct kn_cu_prefill_args {
    const struct kn_cu_prefill_work *work;
    const kn_page *pages; /* batch.pages, on the device */
    const void *q;        /* bf16, rotated: D elements of head h of token t lie at */
    size_t q_token_bytes; /* t * q_token_bytes + h * q_head_bytes, */
    size_t q_head_bytes;  /* both multiples of 16 */
    int32_t q_heads;
    const struct kn_kv *kv; /* this step's keys and values are in the pages */
    int32_t layer;
    float scale;                        /* > 0 */
    int32_t window;                     /* as kn_attention_args */
    int32_t token_count;                /* T of the batch: says how `out` is cut into chunks */
    void *out;                          /* activations [T, Hq*D], chunks of 256 tokens (step.c) */
    struct kn_cu_prefill_state *state;  /* [kn_cu_prefill_state_bytes], aligned to 16 */
    const struct kn_cu_window *windows; /* [KN_TIER_MAX] in device memory; NULL: all is local */
    struct kn_cu_traffic *traffic;      /* [KN_TIER_MAX] in device memory, or NULL */
};

/* Once per process and device, before any launch.  ST_DEVICE with CUDA's sentence. */
MUST_USE enum status kn_cu_prefill_attention_init(char *err);
/* One layer.  Rows of `out` are written for tokens that are in tiles; inputs beyond Hq*D are zero.
 * ST_INVALID: query heads that do not divide; ST_UNSUPPORTED as kn_cu_kv_check (attention.h);
 * ST_DEVICE with CUDA's sentence. */
MUST_USE enum status kn_cu_prefill_attention_launch(const struct kn_cu_prefill_args *args,
                                                    void *stream, char *err);

#ifdef __cplusplus
}
#endif

#endif
