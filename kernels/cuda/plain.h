/* plain.h - the launchers of plain.cu; the rules are those of small.h. */
#ifndef DAKD_KERNELS_CUDA_PLAIN_H
#define DAKD_KERNELS_CUDA_PLAIN_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* qkv: fp32 [T, (Hq + 2 Hkv) * D], q written back in place; the KV is bf16. */
MUST_USE enum status kn_cu_plain_qkv_launch(const struct kn_batch *batch,
                                            const struct kn_qkv_args *a, void *stream, char *err);
/* out: activations [T, Hq * D] in chunks of KN_CU_TOKENS_MAX tokens, each in its bucket. */
MUST_USE enum status kn_cu_plain_attention_launch(const struct kn_batch *batch,
                                                  const struct kn_attention_args *a, void *stream,
                                                  char *err);

#ifdef __cplusplus
}
#endif

#endif
