/*
 * matrix.h - the launcher of matrix.cu: products of matrices as fast as the tensor cores go.
 * stream is a cudaStream_t.  ST_DEVICE with CUDA's sentence where the launch fails.
 */
#ifndef DAKD_KERNELS_CUDA_MATRIX_H
#define DAKD_KERNELS_CUDA_MATRIX_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Operations of one launch on so many SMs, 2 a multiply-add: about a millisecond's. */
double kn_cu_matrix_operations(int sm_count);
/* sink: 4 bytes of device memory. */
MUST_USE enum status kn_cu_matrix_launch(int sm_count, float *sink, void *stream, char *err);

#ifdef __cplusplus
}
#endif

#endif
