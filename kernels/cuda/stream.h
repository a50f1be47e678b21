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

#define KN_CU_STREAM_BLOCKS_MAX 12

/* In device memory, zero before the first launch. */
struct kn_cu_stream_state {
    uint64_t sum;       /* of the 32-bit words read, each thread's sum mod 2^32 */
    uint32_t ticket[2]; /* runs of blocks taken; of launches of either turn */
};

/* Reads bytes (a multiple of KN_ALIGN) at ptr with `ctas` CTAs of `blocks` 16 KB blocks in flight
 * each, 1..KN_CU_STREAM_BLOCKS_MAX.  turn: 0 and 1 alternately. */
MUST_USE enum status kn_cu_stream_launch(const void *ptr, size_t bytes, int ctas, int blocks,
                                         struct kn_cu_stream_state *state, unsigned turn,
                                         void *stream, char *err);

#ifdef __cplusplus
}
#endif

#endif
