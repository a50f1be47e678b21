/*
 * small.h - the launchers of small.cu: the operations that are neither a product nor attention.
 *
 * The batch's arrays are device memory here.  stream is a cudaStream_t.  Every launch may start
 * before the stream's previous kernel ends (programmatic dependent launch); the kernels wait for it
 * before they touch memory.  ST_DEVICE with CUDA's sentence where a launch fails.
 */
#ifndef DAKD_KERNELS_CUDA_SMALL_H
#define DAKD_KERNELS_CUDA_SMALL_H

#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* x[T,H] fp32.  The tables are bf16, in any tiers.  chosen: what kn_cu_sample_launch wrote last, or
 * NULL before.  traffic: [KN_TIER_MAX], or NULL. */
MUST_USE enum status kn_cu_embed_launch(const struct kn_batch *batch, const struct kn_embed_args *a,
                                        const int32_t *chosen, struct kn_cu_traffic *traffic,
                                        void *stream, char *err);
/* y: activations in chunks of KN_CU_TOKENS_MAX tokens, each in its bucket; inputs beyond cols are
 * written as zeros.  parts, [T,cols] each, or NULL: they are first added to x. */
MUST_USE enum status kn_cu_norm_launch(const struct kn_norm_args *a,
                                       const struct kn_cu_parts *parts, void *stream, char *err);
/* An RMS norm of up to KN_CU_SQUARES_TOKENS rows that leaves the division to who reads y: x *
 * weight to y, and the sums of squares of 64 x each to sums. */
MUST_USE enum status kn_cu_square_launch(const struct kn_norm_args *a, float *sums, void *stream,
                                         char *err);
/* out[rows,cols] = the sum of the parts; where `add`, out += it. */
MUST_USE enum status kn_cu_settle_launch(const struct kn_cu_parts *parts, int32_t rows,
                                         int32_t cols, bool add, float *out, void *stream,
                                         char *err);
MUST_USE enum status kn_cu_gather_launch(const struct kn_batch *batch, int32_t cols, const float *x,
                                         float *out, void *stream, char *err);

#ifdef __cplusplus
}
#endif

#endif
