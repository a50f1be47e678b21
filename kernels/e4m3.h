/*
 * e4m3.h - a KV row in fp8: how it is scaled, rounded and laid out (kernels.h, "KV in fp8").
 *
 * A row's scale is 2^k with the smallest k for which its largest magnitude is at most 448 * 2^k,
 * 448 being e4m3's largest number; k is held within KN_E4M3_MIN..KN_E4M3_MAX less the bias, -32..7.
 * Elements are divided by the scale, which is exact, and rounded to the nearest e4m3 number, ties
 * to even.  So, for an element x of a row:
 *
 *     |x| >= 2^(k-6)           |error| <= 2^-4 |x|       three bits behind the leading one
 *     |x| <  2^(k-6)           |error| <= 2^(k-10)       half of e4m3's smallest, 2^-9
 *     |x| >  57344 = 448 2^7   becomes 57344; f16's largest is 65504
 *     a row below 448 * 2^-32  |error| <= 2^-42
 *
 * Dequantised numbers have four significant bits, so they are exact in bf16, f16 (before the scale)
 * and fp32.  A row that holds an infinity or a NaN becomes NaN as a whole, elements and scale
 * (exponent 255): what attends to it is NaN, as with the wider dtypes, not a number made up.
 */
#ifndef DAKD_KERNELS_E4M3_H
#define DAKD_KERNELS_E4M3_H

#include "kernels/convert.h"

enum {
    KN_E4M3_MIN = 127 - 32, /* exponent bytes: biased by 127 */
    KN_E4M3_MAX = 127 + 7,
    KN_E4M3_NAN = 255,      /* of a row of NaN */
    KN_E4M3_NAN_BITS = 0x7F /* of an element */
};

/* --- layout --- */

/* Bytes of a K or V row. */
static inline int32_t kn_e4m3_width(int32_t head_dim)
{
    return head_dim <= 64
               ? 64
               : (head_dim + KN_ATOM_ROW_BYTES - 1) / KN_ATOM_ROW_BYTES * KN_ATOM_ROW_BYTES;
}

/* Where in a head's page element d of a token's K (value: of its V) lies. */
static inline size_t kn_e4m3_at(int32_t head_dim, bool value, unsigned row, int32_t d)
{
    const unsigned byte = (unsigned)((value ? kn_e4m3_width(head_dim) : 0) + d);
    return (size_t)(byte / KN_ATOM_ROW_BYTES) * KN_ATOM_BYTES +
           kn_atom_offset(row, byte % KN_ATOM_ROW_BYTES);
}

/* Where the exponents of K begin; V's follow. */
static inline size_t kn_e4m3_exponents_at(int32_t head_dim)
{
    return (size_t)(2 * kn_e4m3_width(head_dim) / KN_ATOM_ROW_BYTES) * KN_ATOM_BYTES;
}

/* --- numbers --- */

/* The exponent byte of a row whose largest magnitude has these bits of fp32. */
KN_BOTH static inline uint32_t kn_e4m3_exponent(uint32_t most_bits)
{
    if (most_bits >= 0x7F800000) return KN_E4M3_NAN;
    /* Carries where the mantissa is above that of 448 = 1.75 * 2^8. */
    const uint32_t above = (most_bits + 0x1FFFFF) >> 23, e = above > 8 ? above - 8 : 0;
    if (e < KN_E4M3_MIN) return KN_E4M3_MIN;
    return e < KN_E4M3_MAX ? e : (uint32_t)KN_E4M3_MAX;
}

/* 2^k of an exponent byte. */
static inline float kn_e4m3_scale(uint32_t exponent)
{
    return kn_f32_from_bits(exponent == KN_E4M3_NAN ? 0x7FC00000u : exponent << 23);
}

/* Of anything but NaN, which becomes a number; for loops over a row, whose scale is NaN then.
 * Denormals are multiplied as the integers they are: as denormals of fp32 they would be slow. */
static inline float kn_f32_from_e4m3_number(uint8_t bits)
{
    const uint32_t magnitude = bits & 0x7F;
    const float x = magnitude < 8 ? (float)magnitude * 0x1p-9f
                                  : kn_f32_from_bits((magnitude << 20) + (120u << 23));
    return bits & 0x80 ? -x : x;
}

static inline float kn_f32_from_e4m3(uint8_t bits)
{
    const bool nan = (bits & 0x7F) == KN_E4M3_NAN_BITS;
    return nan ? kn_f32_from_bits((uint32_t)(bits & 0x80) << 24 | 0x7FC00000u)
               : kn_f32_from_e4m3_number(bits);
}

/* Rounds to nearest even, at most 448; NaN stays NaN. */
static inline uint8_t kn_e4m3_from_f32(float f)
{
    const uint32_t bits = kn_f32_bits(f), magnitude = bits & 0x7FFFFFFF;
    const uint8_t sign = (uint8_t)(bits >> 24 & 0x80);
    if (magnitude > 0x7F800000) return sign | KN_E4M3_NAN_BITS;
    if (magnitude >= 0x43E00000) return sign | 0x7E; /* 448 */
    if (magnitude < 0x3C800000) {
        /* Below 2^-6 the unit is 2^-9: adding 2^14, whose own unit is 2^-9, rounds there. */
        const float shifted = kn_f32_from_bits(magnitude) + 0x1p14f;
        return (uint8_t)(sign | (kn_f32_bits(shifted) - 0x46800000));
    }
    const uint32_t rounded = magnitude - 0x3C000000 + 0x7FFFF + (magnitude >> 20 & 1);
    return (uint8_t)(sign | rounded >> 20);
}

/* Rounds a row of n elements; returns its exponent byte. */
static inline uint8_t kn_e4m3_row(const float *x, int32_t n, uint8_t *out)
{
    uint32_t most = 0;
    for (int32_t i = 0; i < n; i++) {
        const uint32_t magnitude = kn_f32_bits(x[i]) & 0x7FFFFFFF;
        most = magnitude > most ? magnitude : most;
    }
    const uint32_t exponent = kn_e4m3_exponent(most);
    if (exponent == KN_E4M3_NAN) {
        for (int32_t i = 0; i < n; i++) out[i] = KN_E4M3_NAN_BITS;
        return KN_E4M3_NAN;
    }
    const float inverse = kn_e4m3_scale(254 - exponent);
    for (int32_t i = 0; i < n; i++) out[i] = kn_e4m3_from_f32(x[i] * inverse);
    return (uint8_t)exponent;
}

#endif
