/*
 * mix.h - --offload-mode: how a decode step's remote bytes cross their links, in place or by the
 * copy engine, and which share of them is best copied.  Pure.
 *
 *     direct     kernels read remote tiles where they lie, inside windows
 *     prefetch   the copy engine brings all of them into local memory, some layers ahead
 *     uva        kernels read them where they lie by plain loads, with no window
 *     auto       a share goes by the copy engine, the rest as direct: up to the free fraction
 *                none, beyond it what makes the step shortest by the model below; where that leaves
 *                it open, whichever of several shares makes measured steps shortest (server/mode.h)
 *
 * The model, of one step and shares s_t of the bytes R_t of each remote tier t:
 *
 *     HBM    works for  h = (H + sum_t R_t (u_t(s_t) + s_t)) / B.  H are its own bytes, B its rate
 *            alone; u_t is what a byte over the link takes from HBM, in HBM's bytes, as measured: a
 *            copied one is written, and a bulk of writes costs more than their bytes.  A copied
 *            byte is read once more (+ s_t).
 *     link t takes b_t(s) seconds a byte while HBM is busy, and i_t(s) while it rests.
 *            Between two copies the engine rests for OFF_MIX_GAP_S: with n(s) of them in a step,
 *            both are n(s) s OFF_MIX_GAP_S more, since what is read in place goes on.
 *            Kernels leave the link at rest between products, OFF_MIX_REST_S a layer, and while
 *            attention reads KV; the copy engine goes on: (1 - s) of both is lost.
 *            While a product computes whose tiles were all copied, nobody reads in place, and where
 *            HBM is busy the copy engine alone gets less of NVLink than kernels do: half of what it
 *            misses in s h is lost.
 *     step   = max(h, max over t of R_t b_t                    where the link is done by then,
 *                                   h + (R_t - h / b_t) i_t    else)
 *
 * b_t and i_t are lower hulls of what was measured at s = 0 (kernels alone), s = 1 (the copy engine
 * alone) and with both at once: between two ways of crossing a link one may always take turns, and
 * time then is linear in the share.  The rate of a mix is not the sum of its parts: over PCIe an
 * H200 gets 51.5, 54 and 55 GB/s, over NVLink 375, 403 and 256 while HBM is busy, 397 at s = 1
 * where it rests.  That is why the share hangs on how much of a step HBM is busy.
 *
 * What reading in place can win over prefetching over NVLink: an 8B model, steps of 8 sequences
 * (H200; HBM 4,595 GB/s, the link 376 to kernels, to the copy engine 382, and 255 while HBM is
 * busy), GB and ms; edges: what a step with all in HBM takes beyond its bytes' time, 0.33 ms.
 *
 *     share   remote  local  HBM's   link's time, by   larger + edges,   in place,   prefetched,
 *                            time    kernels, copies   prefetched        measured    measured
 *      7.6 %    1.13  13.93   3.03    3.01   4.44       3.36   4.44       3.55        4.44   1.25
 *     10 %      1.49  13.57   2.95    3.98   5.1        4.31   5.1        4.34        5.20   1.20
 *     30 %      4.50  10.55   2.30   11.98  12.5       12.3   12.5       12.29       12.49   1.02
 *
 * (Copies: 255 GB/s as long as HBM has its own bytes and theirs to move, 382 after.)  So the rates
 * leave 1.47 at the free fraction were a step without edges, 1.32 with them, and less on either
 * side: below it HBM binds both, beyond it the link does, where both are as fast once HBM rests.
 */
#ifndef DAKD_OFFLOAD_MIX_H
#define DAKD_OFFLOAD_MIX_H

#include "offload/link.h"

enum off_mode { OFF_MODE_AUTO, OFF_MODE_DIRECT, OFF_MODE_PREFETCH, OFF_MODE_UVA, OFF_MODE_COUNT };
const char *off_mode_name(enum off_mode mode); /* "auto", "direct", "prefetch", "uva" */
MUST_USE bool off_mode_parse(const char *name, enum off_mode *out);
/* Whether the mode copies the weights of prompts ahead, in place of reading them where they lie. */
bool off_mode_fetches_prompts(enum off_mode mode);

/* From a copy's end to the next one's bytes: its word, the next one's wait, its start.  An 8B
 * model's 128 products, all of what is remote copied over PCIe, took over bytes / rate 10 us each
 * where they were 2 MB on average, 7 of 5 MB, 5 of 11 MB (H200). */
#define OFF_MIX_GAP_S 6e-6
/* How long a link rests a layer where kernels alone use it: attention, and the ends of products. An
 * 8B model's steps took 0.32 ms longer than their bytes over the link's rate: 29.46 and 88.03 ms
 * over PCIe (1.49 and 4.50 GB), 4.34 and 20.28 over NVLink (1.49 and 7.50). */
#define OFF_MIX_REST_S 10e-6

#define OFF_MIX_ITEMS 8

/* One way to read a link, HBM busy: what crosses it in place and by the copy engine, and what HBM
 * gives meanwhile. */
struct off_mix_point {
    double read_bytes_per_s, copy_bytes_per_s, hbm_bytes_per_s;
};

struct off_mix_tier {
    double read_bytes_per_s, copy_bytes_per_s; /* > 0: HBM resting */
    struct off_mix_point read, both, copy;     /* HBM busy; > 0, but for read's copies and copy's
                                                  reads, which are 0 */
    double bytes;                              /* that a step reads of the tier */
    double share_max; /* of them that may be copied: the head and tables never are */
    /* The copies of a step: it has so many groups of products alike, layers, and each product of a
     * group so many bytes there, the largest first; copied in this order. */
    double item_bytes[OFF_MIX_ITEMS];
    int item_count, group_count;
};

struct off_mix {
    double hbm_bytes_per_s; /* alone */
    double hbm_bytes;       /* that a step reads of tier 0 */
    double apart_bytes;     /* of them, those that no product reads beside: KV of tier 0 */
    struct off_mix_tier tier[KN_TIER_MAX]; /* 1..tier_count - 1; of no bytes: not read */
    int tier_count;
    /* Out. */
    double share[KN_TIER_MAX]; /* of a tier's bytes, by the copy engine */
    double seconds, direct_s;  /* of a step, so and with nothing copied */
};

/* The rates of a tier as measured; its bytes stay.  In place: at the link's window
 * (off_link_window); where it has none, as if alone. */
void off_mix_set_link(struct off_mix_tier *t, const struct off_links *links,
                      const struct off_link *link);

/* What the model says of these shares, each 0..1. */
double off_mix_seconds(const struct off_mix *m, const double share[KN_TIER_MAX]);
/* Fills in what is marked Out: of all shares up to share_max, in steps of 1 / OFF_MIX_STEPS, those
 * of the shortest step, and of equals those that copy least; none where that wins less than
 * OFF_MIX_GAIN. */
#define OFF_MIX_STEPS 64
#define OFF_MIX_GAIN 0.005
void off_mix_solve(struct off_mix *m);
/* Whether a tier's link, everything being read in place, takes OFF_MIX_BEYOND times as long as HBM
 * for its own bytes: only then is it worth copying from where no step can be tried.  Nearer balance
 * HBM is what a step waits for, and what staging costs a product there, 1 to 5 us, is not in the
 * model.  Measured on an H200: OPT-30B with 1.1 % over PCIe 15.41 ms in place, 16.26 with 15 % of
 * it copied; 8B with 1.1 % over PCIe at 8 sequences 3.92 in place and 4.12 all copied, at 64 4.86
 * and 4.62, where kernels have an SM to themselves and each begins to read when the one before has
 * ended. */
#define OFF_MIX_BEYOND 1.15
bool off_mix_is_beyond(const struct off_mix *m, int tier);

/* --- which tiles ------------------------------------------------------------------------------ */

/* A product of a step, by where the tiles of its weight lie. */
struct off_mix_product {
    uint64_t tile_bytes;
    int32_t tiles[KN_TIER_MAX];
    int32_t copied[KN_TIER_MAX]; /* out: of the tiles; 0 of tier 0 */
};

struct off_mix_deal {
    double share[KN_TIER_MAX]; /* of the products' tiles in a tier */
    int32_t group;             /* products of a layer; they are so many times as many */
    uint64_t copy_bytes_min;   /* a copy of fewer is not worth its gap */
    uint64_t product_bytes_max;
};

/* Of a step's products in order, how many tiles of each remote tier are copied: whole tiles, within
 * the two bounds, and of every beginning of whole groups as near the tier's share as these allow,
 * so that no part of a step has more for one of the two ways than the others.  In a group the
 * products with most bytes in the tier come first, for copies are the fewer the larger they are.
 * What is copied of a product lies next to its local tiles: of a further tier nothing is, unless
 * all nearer ones are copied whole. bytes: those that are copied of each tier: its share to within
 * half a tile, where nothing bounds it. */
void off_mix_deal(struct off_mix_product *products, int32_t count, const struct off_mix_deal *d,
                  uint64_t bytes[KN_TIER_MAX]);

#endif
