/* isa_portable.c - the inner loops in plain C, for the instruction set the compiler was told of. */
#define VEC_AVX2 0
#include "kernels/cpu/attention_body.h"

const struct kn_cpu_isa kn_cpu_isa_portable = {"portable", isa_gemm, isa_attention};
