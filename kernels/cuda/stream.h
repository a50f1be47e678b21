/*
 * stream.h - the launcher of stream.cu: reads memory once, as the kernels read weights.
 * stream is a cudaStream_t.  ST_DEVICE with CUDA's sentence where the launch fails.
 */
#ifndef DAKD_KERNELS_CUDA_STREAM_H
#define DAKD_KERNELS_CUDA_STREAM_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Reads bytes (a multiple of KN_ALIGN) at ptr with `ctas` CTAs of `blocks` 16 KB blocks in flight
 * each, 1..KN_CU_STREAM_BLOCKS_MAX, and adds the 32-bit words' sum to *sum (device memory). */
#define KN_CU_STREAM_BLOCKS_MAX 12
MUST_USE enum status kn_cu_stream_launch(const void *ptr, size_t bytes, int ctas, int blocks,
                                         uint64_t *sum, void *stream, char *err);

#ifdef __cplusplus
}
#endif

#endif
