/*
 * prefill.h - the GEMM of prompts: products of more than 128 tokens as one launch.  The kernel and
 * its reasons are in prefill_gemm.cuh.
 *
 * Activations [T,K] are chunks of 256 tokens one after another, each in the layout of cuda.h for
 * its bucket (only the last may have another than 256); fp32 outputs are row after row.
 */
#ifndef DAKD_KERNELS_CUDA_PREFILL_H
#define DAKD_KERNELS_CUDA_PREFILL_H

#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The shape of one launch. */
struct kn_cu_prefill_plan {
    int32_t group_tiles;    /* row tiles of a CTA's tile: 1 to 3 */
    int32_t tile_tokens;    /* its tokens: 128 or 256 */
    int32_t cluster_rows;   /* CTAs of a cluster with the same tokens, which share activations */
    int32_t cluster_tokens; /* and with the same rows, which share weights */
    int32_t parts;          /* that K is cut into, whose sums another kernel adds up; none empty */
    bool cut;         /* whether tiles may change hands midway, so that all SMs end together */
    int32_t clusters; /* launched */
};

/* Device memory for tiles that change hands: zeroed once, then of launches of one stream alone. */
size_t kn_cu_prefill_workspace_bytes(int32_t sm_count);
/* After kn_cu_gemm_init, before any launch. */
MUST_USE enum status kn_cu_prefill_init(char *err);
/* The plan of a product.  parts: whether K may be cut into parts, of up to 256 tokens: into how
 * many depends on shape, token bucket and SM count alone, and sums are bitwise the same whatever
 * else the plan says.  ST_DEVICE. */
MUST_USE enum status kn_cu_prefill_plan(const struct kn_weight *w, int32_t tokens, bool parts,
                                        int32_t sm_count, struct kn_cu_prefill_plan *out,
                                        char *err);
/* Makes of a plan of kn_cu_prefill_plan one in which no CTA shares weights with another, of as many
 * parts.  ST_DEVICE. */
MUST_USE enum status kn_cu_prefill_unshare(const struct kn_weight *w, int32_t tokens,
                                           int32_t sm_count, struct kn_cu_prefill_plan *plan,
                                           char *err);
/* Fills in `clusters` from the other fields; ST_UNSUPPORTED where there is no such kernel. */
MUST_USE enum status kn_cu_prefill_derive(int32_t rows, int32_t tokens, int32_t sm_count,
                                          struct kn_cu_prefill_plan *plan, char *err);
/* As kn_cu_gemm_launch, with T from 1 up; in parts only up to 256.  Loads want a plan that shares
 * no weights.  ST_UNSUPPORTED for weights that are not bf16; ST_DEVICE. */
MUST_USE enum status kn_cu_prefill_launch(const struct kn_cu_prefill_plan *plan,
                                          const struct kn_cu_gemm_args *args, void *workspace,
                                          void *stream, char *err);

#ifdef __cplusplus
}
#endif

#endif
