/*
 * sample.h - the launcher of sample.cu: kn_sample on the device.
 */
#ifndef DAKD_KERNELS_CUDA_SAMPLE_H
#define DAKD_KERNELS_CUDA_SAMPLE_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Beyond it sums of weights would no longer be exact. */
#define KN_CU_SAMPLE_VOCAB_MAX (1 << 19)

/* logits: device memory, [.,V], V up to KN_CU_SAMPLE_VOCAB_MAX.  rows[R]: host memory, free again
 * when this returns.  out[R]: pinned host memory.  stream is a cudaStream_t.  May start before the
 * stream's previous kernel ends (programmatic dependent launch).  ST_DEVICE with CUDA's sentence
 * where a launch fails. */
MUST_USE enum status kn_cu_sample_launch(const float *logits, int32_t vocab, int32_t row_count,
                                         const struct kn_sample_row *rows, struct kn_sampled *out,
                                         void *stream, char *err);

#ifdef __cplusplus
}
#endif

#endif
