/* isa_avx2.c - the inner loops for x86-64 with AVX2, FMA and F16C; called only where the machine
 * has all three. */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#define VEC_AVX2 1
#include "kernels/cpu/attention_body.h"

const struct kn_cpu_isa kn_cpu_isa_avx2 = {"avx2", isa_gemm, isa_attention};
#else
typedef int isa_avx2_is_for_x86_64;
#endif
