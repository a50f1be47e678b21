/*
 * convert.h - one element between fp32 and its 16-bit forms, shared by packing, KV append,
 * embedding and the tests.
 *
 * Widening is exact.  Narrowing rounds to nearest, ties to even, once: overflow becomes infinity,
 * what is too small becomes a denormal or zero of the same sign, and every NaN becomes a quiet NaN
 * of the same sign.
 */
#ifndef DAKD_KERNELS_CONVERT_H
#define DAKD_KERNELS_CONVERT_H

#include <stdint.h>
#include <string.h>

#include "kernels/kernels.h"

static inline float kn_f32_from_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint32_t kn_f32_bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static inline float kn_f32_from_bf16(uint16_t h)
{
    return kn_f32_from_bits((uint32_t)h << 16);
}

static inline uint16_t kn_bf16_from_f32(float f)
{
    uint32_t bits = kn_f32_bits(f);
    uint32_t quiet_nan = bits >> 16 | 0x40;
    uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    return (uint16_t)((bits & 0x7FFFFFFF) > 0x7F800000 ? quiet_nan : rounded);
}

/* The exponent is re-biased by a multiplication, which also normalises denormals exactly. */
static inline float kn_f32_from_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t magnitude = (uint32_t)(h & 0x7FFF) << 13;
    if (magnitude >= 0x0F800000) { /* infinity or NaN, the NaN made quiet as vcvtph2ps does */
        uint32_t quiet = magnitude > 0x0F800000 ? 0x00400000 : 0;
        return kn_f32_from_bits(sign | 0x7F800000 | magnitude | quiet);
    }
    return kn_f32_from_bits(sign | kn_f32_bits(kn_f32_from_bits(magnitude) * 0x1p112f));
}

static inline uint16_t kn_f16_from_f32(float f)
{
    uint32_t bits = kn_f32_bits(f);
    uint32_t sign = bits >> 16 & 0x8000;
    uint32_t magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) return (uint16_t)(sign | 0x7E00 | (magnitude >> 13 & 0x1FF));
    if (magnitude >= 0x47800000) return (uint16_t)(sign | 0x7C00); /* 65536 and above */
    if (magnitude < 0x38800000) {
        /* Below 2^-14 the unit is 2^-24: adding 0.5, whose own unit is 2^-24, rounds there. */
        float shifted = kn_f32_from_bits(magnitude) + 0.5f;
        return (uint16_t)(sign | (kn_f32_bits(shifted) - 0x3F000000));
    }
    uint32_t rounded = magnitude - 0x38000000 + 0xFFF + (magnitude >> 13 & 1);
    return (uint16_t)(sign | rounded >> 13);
}

/* Element i of an array that need not be aligned. */
static inline float kn_load(enum kn_dtype dtype, const void *array, size_t i)
{
    if (dtype == KN_F32) {
        float f;
        memcpy(&f, (const char *)array + i * sizeof f, sizeof f);
        return f;
    }
    uint16_t h;
    memcpy(&h, (const char *)array + i * sizeof h, sizeof h);
    return dtype == KN_BF16 ? kn_f32_from_bf16(h) : kn_f32_from_f16(h);
}

static inline void kn_store(enum kn_dtype dtype, void *array, size_t i, float f)
{
    if (dtype == KN_F32) {
        memcpy((char *)array + i * sizeof f, &f, sizeof f);
        return;
    }
    uint16_t h = dtype == KN_BF16 ? kn_bf16_from_f32(f) : kn_f16_from_f32(f);
    memcpy((char *)array + i * sizeof h, &h, sizeof h);
}

#endif
