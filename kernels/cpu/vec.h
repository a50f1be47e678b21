/*
 * vec.h - eight fp32 lanes, on which the inner loops are written.  Included by isa_*.c after
 * VEC_AVX2 is set to 1 or 0.
 *
 * Each primitive has one form for AVX2 and one on two of the compiler's own four-lane vectors,
 * which become SSE or NEON code.  Both do the same operations on a lane in the same order; only
 * v8_fma may differ (cpu.h).
 */
#ifndef DAKD_KERNELS_CPU_VEC_H
#define DAKD_KERNELS_CPU_VEC_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels/convert.h"
#include "kernels/cpu/cpu.h"

#define INLINE static inline __attribute__((always_inline))

#if VEC_AVX2
#include <immintrin.h>

typedef __m256 v8;

INLINE v8 v8_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
INLINE void v8_store(float *p, v8 v)
{
    _mm256_storeu_ps(p, v);
}
INLINE v8 v8_set(float f)
{
    return _mm256_set1_ps(f);
}
INLINE v8 v8_add(v8 a, v8 b)
{
    return _mm256_add_ps(a, b);
}
INLINE v8 v8_sub(v8 a, v8 b)
{
    return _mm256_sub_ps(a, b);
}
INLINE v8 v8_mul(v8 a, v8 b)
{
    return _mm256_mul_ps(a, b);
}
INLINE v8 v8_div(v8 a, v8 b)
{
    return _mm256_div_ps(a, b);
}
/* a > b ? a : b and a < b ? a : b, so a NaN in b stays. */
INLINE v8 v8_max(v8 a, v8 b)
{
    return _mm256_max_ps(a, b);
}
INLINE v8 v8_min(v8 a, v8 b)
{
    return _mm256_min_ps(a, b);
}
/* a * b + c */
INLINE v8 v8_fma(v8 a, v8 b, v8 c)
{
    return _mm256_fmadd_ps(a, b, c);
}

/* Lane i of the result is the sum of the lanes of a[i]: ((0+1)+(2+3)) + ((4+5)+(6+7)). */
INLINE v8 v8_sum_each(const float (*a)[KN_CPU_LANES])
{
    __m256 s01 = _mm256_hadd_ps(v8_load(a[0]), v8_load(a[1]));
    __m256 s23 = _mm256_hadd_ps(v8_load(a[2]), v8_load(a[3]));
    __m256 s45 = _mm256_hadd_ps(v8_load(a[4]), v8_load(a[5]));
    __m256 s67 = _mm256_hadd_ps(v8_load(a[6]), v8_load(a[7]));
    __m256 s03 = _mm256_hadd_ps(s01, s23);
    __m256 s47 = _mm256_hadd_ps(s45, s67);
    return _mm256_add_ps(_mm256_permute2f128_ps(s03, s47, 0x20),
                         _mm256_permute2f128_ps(s03, s47, 0x31));
}

/* v * 2^n for the whole n in the low bits of `shifted` (v8_exp), in two steps. */
INLINE v8 v8_scale(v8 v, v8 shifted, float shift)
{
    __m256i bias = _mm256_set1_epi32(127);
    __m256i n =
        _mm256_sub_epi32(_mm256_castps_si256(shifted), _mm256_castps_si256(_mm256_set1_ps(shift)));
    __m256i half = _mm256_srai_epi32(n, 1);
    __m256i rest = _mm256_sub_epi32(n, half);
    v8 a = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    v8 b = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
    return v8_mul(v8_mul(v, a), b);
}

INLINE v8 v8_widen(const enum kn_dtype dtype, const char *chunk)
{
    __m128i h = _mm_loadu_si128((const __m128i *)chunk);
    if (dtype == KN_F16) return _mm256_cvtph_ps(h);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

INLINE v8 v8_join(const char *low, const char *high)
{
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps((const float *)low)),
                                _mm_loadu_ps((const float *)high), 1);
}

#else

typedef float v4 __attribute__((vector_size(16)));
typedef int32_t v4i __attribute__((vector_size(16))); /* what comparing two v4 gives: 0 or -1 */
typedef struct {
    v4 low, high;
} v8;

INLINE v8 v8_load(const float *p)
{
    v8 v;
    memcpy(&v.low, p, sizeof v.low);
    memcpy(&v.high, p + 4, sizeof v.high);
    return v;
}

INLINE void v8_store(float *p, v8 v)
{
    memcpy(p, &v.low, sizeof v.low);
    memcpy(p + 4, &v.high, sizeof v.high);
}

INLINE v4 v4_set(float f)
{
    return (v4){f, f, f, f};
}
INLINE v4 v4_select(v4i mask, v4 a, v4 b)
{
    return (v4)((mask & (v4i)a) | (~mask & (v4i)b));
}

INLINE v8 v8_set(float f)
{
    return (v8){v4_set(f), v4_set(f)};
}
INLINE v8 v8_add(v8 a, v8 b)
{
    return (v8){a.low + b.low, a.high + b.high};
}
INLINE v8 v8_sub(v8 a, v8 b)
{
    return (v8){a.low - b.low, a.high - b.high};
}
INLINE v8 v8_mul(v8 a, v8 b)
{
    return (v8){a.low * b.low, a.high * b.high};
}
INLINE v8 v8_div(v8 a, v8 b)
{
    return (v8){a.low / b.low, a.high / b.high};
}

INLINE v8 v8_max(v8 a, v8 b)
{
    return (v8){v4_select(a.low > b.low, a.low, b.low), v4_select(a.high > b.high, a.high, b.high)};
}

INLINE v8 v8_min(v8 a, v8 b)
{
    return (v8){v4_select(a.low < b.low, a.low, b.low), v4_select(a.high < b.high, a.high, b.high)};
}

INLINE v8 v8_fma(v8 a, v8 b, v8 c)
{
#if defined(__FP_FAST_FMAF)
    for (int i = 0; i < 4; i++) {
        c.low[i] = __builtin_fmaf(a.low[i], b.low[i], c.low[i]);
        c.high[i] = __builtin_fmaf(a.high[i], b.high[i], c.high[i]);
    }
    return c;
#else
    return v8_add(v8_mul(a, b), c);
#endif
}

INLINE v8 v8_sum_each(const float (*a)[KN_CPU_LANES])
{
    float t[KN_CPU_LANES];
    for (int i = 0; i < KN_CPU_LANES; i++)
        t[i] = ((a[i][0] + a[i][1]) + (a[i][2] + a[i][3])) +
               ((a[i][4] + a[i][5]) + (a[i][6] + a[i][7]));
    return v8_load(t);
}

INLINE v8 v8_scale(v8 v, v8 shifted, float shift)
{
    float t[KN_CPU_LANES], s[KN_CPU_LANES];
    v8_store(t, v);
    v8_store(s, shifted);
    for (int i = 0; i < KN_CPU_LANES; i++) {
        int32_t n = (int32_t)(kn_f32_bits(s[i]) - kn_f32_bits(shift));
        uint32_t half = (uint32_t)(n >> 1), rest = (uint32_t)n - half;
        t[i] = t[i] * kn_f32_from_bits((half + 127) << 23) * kn_f32_from_bits((rest + 127) << 23);
    }
    return v8_load(t);
}

INLINE v8 v8_widen(const enum kn_dtype dtype, const char *chunk)
{
    float t[KN_CPU_LANES];
    for (int i = 0; i < KN_CPU_LANES; i++) t[i] = kn_load(dtype, chunk, (size_t)i);
    return v8_load(t);
}

INLINE v8 v8_join(const char *low, const char *high)
{
    v8 v;
    memcpy(&v.low, low, sizeof v.low);
    memcpy(&v.high, high, sizeof v.high);
    return v;
}

#endif

/* The first n lanes from p, the rest 0. */
INLINE v8 v8_load_some(const float *p, int n)
{
    float t[KN_CPU_LANES] = {0};
    for (int i = 0; i < n; i++) t[i] = p[i];
    return v8_load(t);
}

/* Writes the first n lanes alone. */
INLINE void v8_store_some(float *p, v8 v, int n)
{
    float t[KN_CPU_LANES];
    v8_store(t, v);
    for (int i = 0; i < n; i++) p[i] = t[i];
}

/* Eight consecutive inputs of an atom's row as fp32: vector j of the row that starts at `row` and
 * whose chunks are permuted by `swizzle` = (row number & 7) * 16 bytes. */
INLINE v8 v8_atom(const enum kn_dtype dtype, const char *row, unsigned swizzle, unsigned j)
{
    if (dtype == KN_F32)
        return v8_join(row + ((j * 32) ^ swizzle), row + ((j * 32 + 16) ^ swizzle));
    return v8_widen(dtype, row + ((j * 16) ^ swizzle));
}

/* e^x to within 2 units in the last place; 0 below -104, infinity above 89, NaN for NaN.
 * x = n ln 2 + r with n whole and |r| <= ln 2 / 2; e^r by its series to r^7; times 2^n in two
 * steps, so that results near the ends of the range, denormals included, round once more at most.
 */
INLINE v8 v8_exp(v8 x)
{
    const float shift = 0x1.8p23f; /* adding it rounds to a whole number, left in the low bits */
    x = v8_min(v8_set(89.0f), v8_max(v8_set(-104.0f), x));
    v8 shifted = v8_fma(x, v8_set(0x1.715476p0f), v8_set(shift));
    v8 n = v8_sub(shifted, v8_set(shift));
    v8 r = v8_fma(n, v8_set(-0x1.62e4p-1f),
                  x); /* ln 2 in two parts, the first short: n times it is exact */
    r = v8_fma(n, v8_set(-0x1.7f7d1cp-20f), r);
    v8 p = v8_set(1.0f / 5040);
    p = v8_fma(p, r, v8_set(1.0f / 720));
    p = v8_fma(p, r, v8_set(1.0f / 120));
    p = v8_fma(p, r, v8_set(1.0f / 24));
    p = v8_fma(p, r, v8_set(1.0f / 6));
    p = v8_fma(p, r, v8_set(0.5f));
    p = v8_fma(p, r, v8_set(1.0f));
    p = v8_fma(p, r, v8_set(1.0f));
    return v8_scale(p, shifted, shift);
}

#endif
