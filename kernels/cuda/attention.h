/*
 * attention.h - attention on the GPU, for host C: what follows the QKV product of a decode step.
 *
 * A step runs, in one stream or one captured graph,
 *     cu_attention_plan   once per step and distinct window: the work list, from lengths and page
 *                         tables that lie in device memory, so a graph replays with new ones;
 *     and per layer
 *     cu_qkv_finish       norm and rotation per head, k and v into the pages, q into the workspace;
 *     cu_decode_attention every token of the batch against its sequence's pages.
 *
 * Memory is the caller's: cu_attention_bytes says how much, cu_attention_init lays it out.  One
 * workspace serves all layers; a model with two window sizes has two plans.  All calls come from
 * one thread; nothing here blocks.  Addresses in kn_batch and kn_kv are device addresses (pinned
 * host memory and peer memory too).
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

#include "kernels/kernels.h"

struct CUstream_st;

/* What kernels measured of one tier since the engine last cleared it; device memory. */
struct cu_tier_stats {
    uint64_t bytes, blocks;
    uint64_t round_trip_sum, round_trip_max; /* SM clock cycles, remote tiers only */
    uint64_t round_trip_min_inverted;        /* ~minimum, so that zero is the empty state */
};

/* How hard a remote tier may be read: by so many CTAs, each with so many 16 KB blocks in flight. */
struct cu_window {
    int32_t ctas, blocks;
};

struct cu_attention_shape {
    int32_t q_heads, kv_heads, head_dim;
    int32_t tokens_max; /* T of a step at most */
    int32_t pages_max;  /* pages seen by all tokens of a step together, at most */
};

struct cu_plan_head;
struct cu_unit;

/* A step's work list; laid out by cu_attention_init. */
struct cu_attention_plan {
    struct cu_plan_head *head;
    struct cu_unit *units; /* [KN_TIER_MAX][units_max] */
    int32_t *first_slot;   /* [tokens_max + 1] */
};

struct cu_attention {
    struct cu_attention_shape shape;
    int32_t units_max;
    int32_t cta_count; /* one per SM */
    struct cu_attention_plan plan;
    uint8_t *q;            /* [T][Hkv] query rows as mma fragments, bf16 */
    float *partial;        /* [units_max][Hq][D] */
    float *partial_ml;     /* [units_max][Hq][2]: maximum (log2 domain) and sum */
    float *group_ml;       /* the same of 16 units together, at the first one's slot */
    uint32_t *group_count; /* [units_max][Hkv]: arrivals; zero between launches */
    uint32_t *root_count;  /* [units_max][Hkv] */
};

/* Bytes of device memory for cu_attention_init.  ST_UNSUPPORTED names what the kernels lack. */
MUST_USE enum status cu_attention_bytes(const struct cu_attention_shape *shape, size_t *bytes,
                                        char *err);
/* Lays out `memory` (KN_ALIGN-aligned, zeroed, borrowed) on the current device. */
MUST_USE enum status cu_attention_init(struct cu_attention *a,
                                       const struct cu_attention_shape *shape, void *memory,
                                       char *err);
/* Bytes of one more plan, and its layout in zeroed memory; for models with two window sizes. */
size_t cu_attention_plan_bytes(const struct cu_attention *a);
void cu_attention_plan_init(const struct cu_attention *a, struct cu_attention_plan *plan,
                            void *memory);

/* Units (token, run of pages) of a token that sees `pages` pages: what a step's tokens add up to
 * must not exceed units_max, or the plan kernel traps. */
int32_t cu_attention_unit_count(int32_t pages);

struct cu_plan_args {
    const struct kn_batch *batch; /* token_seq[t] < 0: no token there */
    int32_t token_begin;          /* the plan covers tokens [token_begin, batch->token_count) */
    int32_t window;
    const struct cu_window *windows; /* [KN_TIER_MAX] device memory; read once per step */
    int32_t split_pages;             /* 0: the rule; else pages per unit, for measuring */
};
MUST_USE enum status cu_attention_plan(const struct cu_attention *a,
                                       const struct cu_attention_plan *plan,
                                       const struct cu_plan_args *args, struct CUstream_st *stream,
                                       char *err);

struct cu_qkv_args {
    const float *qkv; /* [T, (Hq + 2 Hkv) * D] fp32 */
    const float *q_norm, *k_norm;
    float norm_eps;
    const float *rope; /* as kn_qkv_args */
    const struct kn_kv *kv;
    int32_t layer;
};
MUST_USE enum status cu_qkv_finish(const struct cu_attention *a, const struct kn_batch *batch,
                                   const struct cu_qkv_args *args, struct CUstream_st *stream,
                                   char *err);

struct cu_attention_args {
    const struct kn_kv *kv;
    int32_t layer;
    float scale;
    int32_t token_rows; /* TB: rows of an atom in `out`, a multiple of 8 */
    void *out;
    struct cu_tier_stats *stats; /* [KN_TIER_MAX] device memory, or NULL */
};
MUST_USE enum status cu_decode_attention(const struct cu_attention *a,
                                         const struct cu_attention_plan *plan,
                                         const struct kn_batch *batch,
                                         const struct cu_attention_args *args,
                                         struct CUstream_st *stream, char *err);

#ifdef __cplusplus
}
#endif

#endif
