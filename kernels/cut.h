/*
 * cut.h - how the decode products of kernels/cuda cut K, and their decode attention cuts sequences,
 * for them and for who foretells their time (engine/predict.c).  Pure, for hosts and devices.
 */
#ifndef DAKD_KERNELS_CUT_H
#define DAKD_KERNELS_CUT_H

#include "kernels/kernels.h"

#ifdef __CUDA_ARCH__
#define KN_CUT_UNROLL _Pragma("unroll")
#else
#define KN_CUT_UNROLL
#endif

/* --- products --------------------------------------------------------------------------------- */

#define KN_CUT_SHIFT_MAX 2
/* That a CTA fetches ahead: cu_gemm_shape::W_SLOTS, 5 at 32 tokens. */
#define KN_CUT_RING_BLOCKS 6

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

/* --- attention --------------------------------------------------------------------------------
 *
 * kernels/cuda/attention_plan.cuh says what units, groups and items are. */

enum {
    KN_CUT_TOKENS = 512,       /* of a launch, at most: a thread of the plan's CTA each */
    KN_CUT_ITEM_PAGES = 32,    /* of an item, at most: one page-table entry per lane */
    KN_CUT_ITEM_PAGES_MIN = 8, /* of one that is counted in, which takes its CTA some 3 us */
    KN_CUT_SPREAD_ITEMS = 144, /* of a spread plan, at most */
    KN_CUT_ITEM_SIZES = 6,     /* of items that are alike: 1, 2, .. 32 pages */
    /* What it takes, in pages, to fold what several items made of a token: where they wait for each
     * other, and where they are counted in. */
    KN_CUT_SPREAD_FOLD = 4,
    KN_CUT_COUNT_FOLD = 5,
};

/* log2 of the pages of a unit of a token that sees `pages` pages.  Short units give a lone sequence
 * to many SMs; each costs its CTA some 100 cycles and is one more partial to fold.  Measured shape
 * by shape, alone (gpu_attention --bench) and in whole steps: of 16 pages, 2 a unit cost a step of
 * 8 tokens 1 per cent more than 4, and 8 a unit one of 1 token as much; from 33 pages on 4 cost
 * 1 to 4 per cent more than 8; of 2,048 pages, 32 a unit are 1 per cent ahead of 16 and 7 of 8. */
KN_BOTH static inline int32_t kn_cut_unit_shift(int32_t pages)
{
    return pages <= 8 ? 1 : pages <= 32 ? 2 : pages <= 256 ? 3 : 5;
}

/* log2 of the units of a group: what an item can hold, or more where a token has so many pages that
 * its groups would be too many to fold. */
KN_BOTH static inline int32_t kn_cut_group_shift(int32_t unit_shift)
{
    return unit_shift == 2 || unit_shift == 3 ? 5 - unit_shift : 4;
}

/* Units of an item of at most `pages` pages: a power of two if that is one. */
KN_BOTH static inline int32_t kn_cut_item_units(int32_t pages, int32_t unit_shift)
{
    const int32_t most = (pages < KN_CUT_ITEM_PAGES ? pages : KN_CUT_ITEM_PAGES) >> unit_shift;
    const int32_t fan = 1 << kn_cut_group_shift(unit_shift);
    return most < 1 ? 1 : most < fan ? most : fan;
}

/* A step's attention: of its tokens, the pages that all see and one at most; and how many items of
 * 2^k pages at most they make. */
struct kn_cut_work {
    int32_t tokens, pages, pages_most;
    int32_t items[KN_CUT_ITEM_SIZES];
};

/* Items of `pages` alike, one a CTA where they are spread; or, pages 0, by what is left to do. */
struct kn_cut_items {
    int32_t pages, time; /* time: in pages of a CTA's, until the last CTA is done */
    bool spread;
    bool cut; /* some token is several items */
};

/* Of the ways to cut, which ends first?  Items by what is left to do, items alike that number no
 * more than CTAs (a spread plan), and items as large as they may be. */
KN_BOTH static inline struct kn_cut_items kn_cut_choose(const struct kn_cut_work *w,
                                                        int32_t kv_heads, int32_t ctas)
{
    const int32_t even = (w->pages * kv_heads + ctas - 1) / ctas;
    const int32_t spread_max = ctas < KN_CUT_SPREAD_ITEMS ? ctas : KN_CUT_SPREAD_ITEMS;
    struct kn_cut_items best = {0, even + KN_CUT_COUNT_FOLD + KN_CUT_ITEM_PAGES_MIN, false, true};
    KN_CUT_UNROLL
    for (int32_t k = KN_CUT_ITEM_SIZES - 1; k >= 0; k--) {
        const int32_t count = w->items[k] * kv_heads;
        const int32_t size = 1 << k < w->pages_most ? 1 << k : w->pages_most;
        const int32_t waves = (count + ctas - 1) / ctas;
        const bool spread = count <= spread_max, cut = w->items[k] > w->tokens;
        int32_t time = waves * size < even + size ? waves * size : even + size;
        if (cut) time += spread ? KN_CUT_SPREAD_FOLD : KN_CUT_COUNT_FOLD;
        if ((!spread && k < KN_CUT_ITEM_SIZES - 1) || time >= best.time) continue;
        best.pages = 1 << k;
        best.time = time;
        best.spread = spread;
        best.cut = cut;
    }
    return best;
}

#endif
