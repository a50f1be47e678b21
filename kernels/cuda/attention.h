/*
 * attention.h - attention on the GPU, for host C: what follows the QKV product of a decode step.
 *
 * A step runs, in one stream or one captured graph:
 *
 * - once per step and distinct window kn_cu_attention_plan, which makes the work list from lengths
 *   and page tables in device memory, so that a graph replays with new ones;
 *
 * - per layer kn_cu_qkv_finish: norm and rotation per head, k and v into the pages, q into the
 *   workspace;
 *
 * - per layer kn_cu_decode_attention: every token of the batch against its sequence's pages.
 *
 * Memory is the caller's: kn_cu_attention_bytes says how much, kn_cu_attention_init lays it out.
 * One workspace serves all layers; a model with two window sizes has two plans.  All calls come
 * from one thread; nothing here blocks.  Addresses in kn_batch and kn_kv are device addresses
 * (pinned host memory and peer memory too).
 *
 * Result: bf16 in the activation layout that a GEMM reads, [ceil(Hq*D/128)][2 atoms][TB rows]
 * [128 bytes], each atom swizzled as kn_atom_offset says with row = token; inputs beyond Hq*D are
 * zero, rows of absent tokens are left as they are.
 */
#ifndef DAKD_KERNELS_CUDA_ATTENTION_H
#define DAKD_KERNELS_CUDA_ATTENTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "kernels/cuda/cuda.h"
#include "kernels/cut.h"

/* Tokens of a launch at most. */
#define KN_CU_ATTENTION_TOKENS KN_CUT_TOKENS

struct kn_cu_attention_shape {
    int32_t q_heads, kv_heads, head_dim;
    int32_t tokens_max; /* T of a step at most, KN_CU_ATTENTION_TOKENS at most */
    int32_t pages_max;  /* pages seen by all tokens of a step together, at most */
};

struct kn_cu_plan_head;
struct kn_cu_unit;

/* A step's work list; laid out by kn_cu_attention_init. */
struct kn_cu_attention_plan {
    struct kn_cu_plan_head *head;
    struct kn_cu_unit *units; /* [KN_TIER_MAX][units_max] */
};

struct kn_cu_attention {
    struct kn_cu_attention_shape shape;
    int32_t units_max;
    int32_t cta_count; /* one per SM */
    struct kn_cu_attention_plan plan;
    uint8_t *q; /* [T][Hkv] query rows as mma fragments: bf16, or f16 where KV is e4m3 */
    /* Partials as words (attention_combine.cuh); they and the counts are zero between launches. */
    uint32_t *partial;       /* [units_max][Hq][D] */
    uint32_t *partial_ml;    /* [units_max][Hq][2]: maximum (log2 domain) and sum */
    uint32_t *group_partial; /* the same of groups of units, of tokens that have several */
    uint32_t *group_ml;
    uint32_t *group_count; /* [units_max][Hkv]: arrivals */
    uint32_t *root_count;  /* [units_max][Hkv] */
};

/* Whether attention has kernels for KV of this dtype and head dimension; ST_UNSUPPORTED says what
 * to give instead. */
MUST_USE enum status kn_cu_kv_check(const struct kn_kv *kv, char *err);
/* Bytes of device memory for kn_cu_attention_init.  ST_UNSUPPORTED names what the kernels lack. */
MUST_USE enum status kn_cu_attention_bytes(const struct kn_cu_attention_shape *shape, size_t *bytes,
                                           char *err);
/* Lays out `memory` (KN_ALIGN-aligned, zeroed, borrowed) on the current device. */
MUST_USE enum status kn_cu_attention_init(struct kn_cu_attention *a,
                                          const struct kn_cu_attention_shape *shape, void *memory,
                                          char *err);
/* Bytes of one more plan, and its layout in zeroed memory; for models with two window sizes. */
size_t kn_cu_attention_plan_bytes(const struct kn_cu_attention *a);
void kn_cu_attention_plan_init(const struct kn_cu_attention *a, struct kn_cu_attention_plan *plan,
                               void *memory);

/* Units (token, run of pages) of a token that sees `pages` pages, 8192 (524,288 positions) at most:
 * what a step's tokens add up to must not exceed units_max, or the plan kernel traps. */
int32_t kn_cu_attention_unit_count(int32_t pages);

struct kn_cu_plan_args {
    const struct kn_batch *batch; /* token_seq[t] < 0: no token there */
    int32_t token_begin;          /* the plan covers tokens [token_begin, batch->token_count): a
                                     prompt chunk of too many units is planned and attended to in
                                     slices */
    int32_t window;
    const struct kn_cu_window *windows; /* [KN_TIER_MAX] device memory, read once per step; NULL
                                           if all is local */
    int32_t split_pages; /* 0: the rule; else pages per unit (a power of two), for measuring */
    int32_t item_pages;  /* 0: the rule; -1: by what is left; else of every item, for measuring */
    bool fresh; /* nothing issued since the batch's arrays were copied uses the plan's memory:
                   it is written before the kernels since then have ended */
};
MUST_USE enum status kn_cu_attention_plan(const struct kn_cu_attention *a,
                                          const struct kn_cu_attention_plan *plan,
                                          const struct kn_cu_plan_args *args, void *stream,
                                          char *err);

struct kn_cu_qkv_args {
    struct kn_cu_parts qkv; /* [T, (Hq + 2 Hkv) * D] each */
    const float *q_norm, *k_norm;
    float norm_eps;
    const float *rope; /* as kn_qkv_args */
    const struct kn_kv *kv;
    int32_t layer;
    /* NULL: q goes to the workspace, for decode attention, of tokens_max tokens at most.  Else q of
     * any number of tokens becomes bf16 here, [T, (Hq + 2 Hkv) * D] floats of which each query
     * head's D hold its elements in their first half: for prefill attention.  May be qkv.sum. */
    void *q_rows;
};
MUST_USE enum status kn_cu_qkv_finish(const struct kn_cu_attention *a, const struct kn_batch *batch,
                                      const struct kn_cu_qkv_args *args, void *stream, char *err);

struct kn_cu_attention_args {
    const struct kn_kv *kv;
    int32_t layer;
    float scale;
    int32_t token_rows; /* TB: rows of an atom in `out`, a multiple of 8; of more than
                           KN_CU_TOKENS_MAX tokens that many, in each chunk of as many tokens */
    void *out;
    struct kn_cu_traffic *traffic; /* [KN_TIER_MAX] device memory, or NULL */
    size_t chunk_bytes;            /* from one chunk in `out` to the next, where there are two */
    int32_t query_begin;           /* where the workspace holds the first token's queries */
};
MUST_USE enum status kn_cu_decode_attention(const struct kn_cu_attention *a,
                                            const struct kn_cu_attention_plan *plan,
                                            const struct kn_batch *batch,
                                            const struct kn_cu_attention_args *args, void *stream,
                                            char *err);

#ifdef __cplusplus
}
#endif

#endif
