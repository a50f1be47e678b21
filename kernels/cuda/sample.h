/*
 * sample.h - the launcher of sample.cu: kn_sample on the device.
 */
#ifndef DAKD_KERNELS_CUDA_SAMPLE_H
#define DAKD_KERNELS_CUDA_SAMPLE_H

#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Beyond it sums of weights would no longer be exact. */
#define KN_CU_SAMPLE_VOCAB_MAX (1 << 19)

/* The rows of a recorded step: what kn_sample_args says, in device memory at a fixed address. */
struct kn_cu_sample_step {
    struct kn_sampled *out; /* pinned host memory */
    int32_t row_count;
    struct kn_sample_row row[KN_CU_TOKENS_MAX];
};

/* logits: device memory, [.,V], V up to KN_CU_SAMPLE_VOCAB_MAX.  rows[R]: host memory, free again
 * when this returns.  out[R]: pinned host memory.  chosen[R]: device memory, the tokens alone, for
 * the next step's embed.  stream is a cudaStream_t.  May start before the stream's previous kernel
 * ends (programmatic dependent launch).  ST_DEVICE with CUDA's sentence where a launch fails. */
MUST_USE enum status kn_cu_sample_launch(const float *logits, int32_t vocab, int32_t row_count,
                                         const struct kn_sample_row *rows, struct kn_sampled *out,
                                         int32_t *chosen, void *stream, char *err);
/* The same for up to row_count rows, which *step (device memory) tells when the kernel runs; it was
 * written before the kernel that the previous one in the stream waited for began. */
MUST_USE enum status kn_cu_sample_step_launch(const float *logits, int32_t vocab, int32_t row_count,
                                              const struct kn_cu_sample_step *step, int32_t *chosen,
                                              void *stream, char *err);

#ifdef __cplusplus
}
#endif

#endif
