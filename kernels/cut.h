/*
 * cut.h - how the decode products of kernels/cuda cut K, for them and for who foretells their time
 * (engine/predict.c).  Pure.
 */
#ifndef DAKD_KERNELS_CUT_H
#define DAKD_KERNELS_CUT_H

#include <stdint.h>

#define KN_CUT_SHIFT_MAX 2
#define KN_CUT_RING_BLOCKS 6 /* that a CTA fetches ahead: cu_gemm_shape::W_SLOTS, 5 at 32 tokens   \
                              */

/* log2 of the parts of K with which the busiest SM has least to do once the inputs are there: a
 * unit costs about as much as two blocks beside its own, and what fits the rings of an SM's CTAs is
 * fetched while the kernel before still runs.  Measured at the shapes of an 8B model on an H200,
 * alone, in us for 1, 2, 4 and 8 parts at 1 token: o 11.7, 9.4, 8.2, 8.4 (floor 7.3), down 36.3,
 * 29.6, 26.1, 26.7 (25.6), qkv 15.7, 12.4, 12.0, 11.7 (11.0).  In a step the rings tell more: 4
 * parts of qkv in place of 2 take 1.6 us a layer less at 1 token, 3.5 at 8 and 1.1 at 32. */
static inline int32_t kn_cut_shift(int32_t groups, int32_t blocks, int32_t sms, int32_t ctas_per_sm)
{
    int32_t best = 0, least = INT32_MAX;
    for (int32_t shift = 0; shift <= KN_CUT_SHIFT_MAX; shift++) {
        int32_t part_blocks = (blocks + (1 << shift) - 1) >> shift;
        int32_t units = ((groups << shift) + sms - 1) / sms; /* of the busiest SM */
        int32_t rings = units < ctas_per_sm ? units : ctas_per_sm;
        int32_t left = units * (part_blocks + 2) - rings * KN_CUT_RING_BLOCKS;
        if (shift > 0 && part_blocks < 4) break;
        if (left < least) {
            least = left;
            best = shift;
        }
    }
    return best;
}

#endif
