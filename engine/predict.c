/*
 * predict.c - see predict.h.
 *
 * A step is a chain of kernels, each of which waits for the one before.
 *
 *     product     max(local, remote bytes / (B_link * LINK)) + edge, + far with remote tiles
 *     attention   pages of the busiest SM / (B_hbm * ATTENTION_HBM / SMs) + a time of its own,
 *                 + what finishes q, k and v before it
 *     norm        a kernel of its own in steps of more than 32 tokens, and where it is no RMS norm
 *     the rest    sampling, by logits, and once a step what surrounds it
 *
 * with a row of constants a token bucket (kernels/cuda/cuda.h).  Four things make it more than the
 * planner's sum.
 *
 * Rounds.  A product's units (kernels/cut.h), 64 or 128 rows by a part of K, are dealt to CTAs, and
 * every CTA takes whole ones: 400 units for 132 of them are 3 rounds and 4 units, 1.3 times the
 * work. A round takes what HBM needs for its weights, or the SM for its own units' weights and
 * activations, which come through the same L2: 50 to 70 GB/s.  So what a unit lacks of HBM's rate
 * grows with the tokens of a step.
 *
 * Power.  At 128 tokens and more the chip's limit lowers its clock, and products have a share of
 * the datasheet's arithmetic, whatever they read.
 *
 * Ahead.  A product of up to 32 tokens fills its rings while the kernel before still runs, over the
 * link as well, where that one left it idle (AHEAD_BYTES; offload/place.c has more).  Not after
 * attention, whose CTAs leave no room.
 *
 * Layers.  Products go one by one, each with the tiles it has: one tile over PCIe takes longer than
 * the rest of a small product over HBM.
 *
 * What the copy engine brings is no product's to wait for: HBM writes and reads it, and the link
 * has the whole step for it.  The step is then the chain, or what the link needs for all its bytes.
 * Steps of more than KN_FETCH_TOKENS tokens bring all remote weights so.
 *
 * KV behind a link is read by attention beside its local pages, while nothing else crosses that
 * link but copies.  Two steps of 64 sequences of an 8B model over PCIe, 6 and 79 % of their KV
 * there, took 14.82 and 140.1 ms, and this sum is 14.82 and 140.8.
 *
 * Attention's plan is that of the kernels (kernels/cut.h) for sequences of one length: items of
 * whole pages, so that its time is the busiest SM's pages.
 *
 * The constants.  finish and norm are `gpu_profile` of 6886f1d, kernel by kernel, as are the step's
 * own time and sampling; flops at 256 tokens is the same run's `gpu_gemm --bench`.  The others make
 * this sum that of 133 steps of `dakd bench` on an H200, as near as they can: 8B, 7B, 32B and 70B
 * shapes of four families, some with fewer layers; 1 to 256 sequences, contexts of 20 to 2,068
 * tokens, all in HBM, and 0.4 to 50 % behind PCIe and NVLink.  The mean error is 1.6 %, the largest
 * 7 %; a step of 128 tokens itself varies by as much from run to run, with the chip's temperature.
 * Taken from the 86 steps of the 8B shape alone, they give the other shapes' 47 with a mean error
 * of 2.6 %, three of them beyond 7 % and none beyond 11 %.  Ten steps measured later: within 4 %.
 */
#include "engine/predict.h"

#include <math.h>
#include <string.h>

#include "config/check.h"
#include "engine/traffic.h"
#include "kernels/cut.h"

#define US 1e-6
#define SMS 132                /* of a Hopper GPU */
#define LINK 0.998             /* of a link's rate, what products read it with */
#define ATTENTION_HBM 0.97     /* of HBM's rate, what attention reads pages with */
#define ATTENTION_FP8_HBM 0.82 /* the same of pages in fp8 */
#define AHEAD_BYTES (32.0 * KN_BLOCK_BYTES)
#define ITEM_PAGES 1.7  /* what it takes to count in an item of attention, in pages of its time */
#define SMALL_TOKENS 32 /* products of up to so many fill rings ahead, and do RMS norms' work */
#define STEP_US 32.5    /* embedding, plan of attention, a norm, a sampled token, the host's part */
#define LOGIT_US 2.0e-6 /* sampling */

/* Of steps of up to so many tokens; times are a kernel's. */
struct bucket {
    int32_t tokens;
    double hbm;            /* of HBM's rate, what products read weights with */
    double sm_bytes_per_s; /* that one SM takes in; 0: no rounds, the prefill kernel's tiles */
    double flops;          /* of the datasheet's rate, what products compute with */
    double edge_us;        /* from the end of the kernel before until a product is in its stride */
    double far_us;         /* the same, more, of a product with remote tiles */
    double finish_us;      /* of q, k and v */
    double norm_us;        /* where it is a kernel of its own */
    double attention_us;   /* beside the time its pages take */
};
static const struct bucket buckets[] = {
    {8, 0.99, 56e9, 0.6, 0.7, 0, 2.6, 1.7, 1.9},    {16, 0.96, 60e9, 0.6, 0.7, 0, 2.7, 1.7, 3.9},
    {32, 0.93, 69e9, 0.6, 1.8, 0.1, 2.7, 1.8, 4.7}, {64, 0.93, 52e9, 0.6, 0.7, 0.5, 3.0, 2.6, 4.8},
    {128, 0.93, 68e9, 0.46, 1.9, 2.6, 3.5, 3, 9},   {256, 0.95, 0, 0.571, 1.8, 2, 6, 6, 10.4},
    {512, 0.95, 0, 0.632, 3, 2, 12.2, 8.1, 2},
};

/* A step as it is walked through. */
struct walk {
    const struct off_plan *placed;
    const struct bucket *bucket;
    struct eng_staging staging;
    double idle_s[KN_TIER_MAX]; /* of each link, while the product before ran */
    double link_s[KN_TIER_MAX]; /* that each link takes for all its bytes */
    struct eng_prediction *out;
};

static const struct bucket *find_bucket(int32_t tokens)
{
    for (size_t i = 0; i < ARRAY_COUNT(buckets); i++)
        if (tokens <= buckets[i].tokens) return &buckets[i];
    return NULL;
}

/* How a product is launched: its parts are added up by another kernel; it follows attention. */
enum { CUT = 1, LATE = 2 };

/* --- products --------------------------------------------------------------------------------- */

/* `tiles` of an operation's, read from HBM in rounds of units: the plan of kernels/cuda/gemm.cu.
 * cut: where another kernel adds up the parts. */
static double rounds_s(const struct walk *w, const struct off_plan_op *op, int32_t tiles, bool cut)
{
    const struct bucket *b = w->bucket;
    const bool small = b->tokens <= SMALL_TOKENS;
    const int32_t group = small ? 1 : 2, ctas_per_sm = small ? 2 : 1, ctas = SMS * ctas_per_sm;
    const int32_t blocks = (int32_t)(op->tile_bytes / KN_BLOCK_BYTES);
    const int32_t groups = (op->tile_count + group - 1) / group;
    const int32_t shift = cut ? kn_cut_shift(groups, blocks, SMS, ctas_per_sm) : 0;
    const int32_t units = (tiles + group - 1) / group << shift;
    const double k_blocks = (double)blocks / (1 << shift);
    const double weights = k_blocks * group * KN_BLOCK_BYTES; /* of a unit */
    const double taken = weights + k_blocks * KN_BLOCK_BYTES * b->tokens / KN_TILE_ROWS;
    const double hbm = w->placed->tier[0].bytes_per_s * b->hbm;
    const int32_t last = units % ctas;
    const double round_s = fmax(ctas * weights / hbm, ctas_per_sm * taken / b->sm_bytes_per_s);
    const double last_s =
        fmax(last * weights / hbm, (last > SMS ? 2 : last > 0) * taken / b->sm_bytes_per_s);
    return units / ctas * round_s + last_s;
}

/* Of a product's bytes in a tier, those that it reads there itself. */
static double take_staged(struct walk *w, int tier, double bytes, double *staged)
{
    const struct eng_staging *s = &w->staging;
    const double rate = w->placed->tier[tier].bytes_per_s;
    w->link_s[tier] += bytes / (s->share[tier] > 0 ? s->bytes_per_s[tier] : rate);
    *staged += s->share[tier] * bytes;
    return (1 - s->share[tier]) * bytes;
}

/* Time that each link takes for what a product reads in place; the longest. */
static double wait_s(struct walk *w, const struct off_plan_op *op, int32_t instance, bool ahead,
                     double link_s[KN_TIER_MAX], double *staged)
{
    double longest = 0;
    for (int t = 1; t < w->placed->tier_count; t++) {
        const double rate = w->placed->tier[t].bytes_per_s;
        double bytes = op->read_bytes / op->tile_count * off_plan_instance_tiles(op, instance, t);
        if (!(bytes > 0)) continue;
        bytes = take_staged(w, t, bytes, staged);
        if (ahead) bytes = fmax(bytes - fmin(AHEAD_BYTES, w->idle_s[t] * rate), 0);
        link_s[t] = bytes / (rate * LINK);
        longest = fmax(longest, link_s[t]);
    }
    return longest;
}

static void add_product(struct walk *w, const struct off_plan_op *op, int32_t instance,
                        unsigned how)
{
    const struct bucket *b = w->bucket;
    const double hbm = w->placed->tier[0].bytes_per_s;
    const bool ahead = b->tokens <= SMALL_TOKENS && !(how & LATE);
    const int32_t local = off_plan_instance_tiles(op, instance, 0);
    double link_s[KN_TIER_MAX] = {0}, staged = 0;
    const double longest_s = wait_s(w, op, instance, ahead, link_s, &staged);
    const double staged_tiles = staged / op->read_bytes * op->tile_count;
    const int32_t tiles = local + (int32_t)lround(staged_tiles);
    const double share = (double)tiles / op->tile_count;
    double here_s = share * op->read_bytes / (hbm * b->hbm);
    if (b->sm_bytes_per_s > 0) here_s = rounds_s(w, op, tiles, how & CUT);
    here_s = fmax(here_s + staged / hbm, share * op->compute_s / b->flops);
    const double edge_s = (b->edge_us + (local < op->tile_count ? b->far_us : 0)) * US;
    w->out->products_s += here_s;
    w->out->links_s += fmax(longest_s - here_s, 0);
    w->out->between_s += edge_s;
    for (int t = 1; t < w->placed->tier_count; t++)
        w->idle_s[t] = fmax(longest_s, here_s) + edge_s - link_s[t];
}

/* --- attention -------------------------------------------------------------------------------- */

/* Pages of one kv-head that the busiest SM reads, folds of items counted as pages, for `seqs`
 * sequences of `pages` each.  The plan counts what folding once costs; where sequences are cut and
 * items are more than SMs, each costs its own. */
static double busiest_pages(int32_t seqs, int32_t pages, int32_t kv_heads)
{
    const int32_t unit_shift = kn_cut_unit_shift(pages);
    const int32_t units = ((pages - 1) >> unit_shift) + 1;
    struct kn_cut_work work = {.tokens = seqs, .pages = seqs * pages, .pages_most = pages};
    for (int32_t k = 0; k < KN_CUT_ITEM_SIZES; k++)
        work.items[k] = seqs * ((units - 1) / kn_cut_item_units(1 << k, unit_shift) + 1);
    const struct kn_cut_items best = kn_cut_choose(&work, kv_heads, SMS);
    const int32_t parts = work.items[KN_CUT_ITEM_SIZES - 1] - seqs; /* beyond each one's first */
    const bool counted = best.cut && !best.spread;
    return best.time + (counted ? ITEM_PAGES * parts * kv_heads / SMS : 0);
}

/* What of `bytes` of KV lies in each remote tier is read there, beside local pages: the longest
 * that any link takes. */
static double far_pages_s(struct walk *w, double bytes)
{
    const struct off_plan_op *kv = eng_operation_kv(w->placed);
    double longest = 0;
    for (int t = 1; t < w->placed->tier_count; t++) {
        const double rate = w->placed->tier[t].bytes_per_s;
        const double far = bytes * (double)kv->tiles[t] / kv->tile_count;
        if (!(far > 0)) continue;
        w->link_s[t] += far / rate;
        longest = fmax(longest, far / (rate * LINK));
    }
    return longest;
}

static void add_attention(struct walk *w, const struct eng_shape *shape,
                          const struct eng_step *step, int32_t window)
{
    const int32_t seen = window > 0 && window < step->context ? window : step->context;
    const struct off_plan_op *op = eng_operation_kv(w->placed);
    const double near = (double)op->tiles[0] / op->tile_count;
    const int32_t pages = (int32_t)div_up((size_t)seen, KN_PAGE_TOKENS);
    const struct kn_kv kv = {.dtype = step->kv_dtype, .head_dim = shape->info.head_dim};
    const double share = step->kv_dtype == KN_E4M3 ? ATTENTION_FP8_HBM : ATTENTION_HBM;
    const double page_s =
        (double)kn_kv_head_bytes(&kv) * SMS / (w->placed->tier[0].bytes_per_s * share);
    double near_s = 0;
    for (int32_t left = step->seq_count; left > 0; left -= KN_CUT_TOKENS) {
        const int32_t seqs = left < KN_CUT_TOKENS ? left : KN_CUT_TOKENS;
        near_s += near * busiest_pages(seqs, pages, shape->info.kv_heads) * page_s;
        w->out->attention_s += w->bucket->attention_us * US;
    }
    const uint64_t token_bytes = eng_traffic_kv_token_bytes(&shape->info, step->kv_dtype);
    const double far_s = far_pages_s(w, (double)step->seq_count * seen * (double)token_bytes);
    w->out->attention_s += near_s + w->bucket->finish_us * US;
    w->out->links_s += fmax(far_s - near_s, 0);
}

/* --- a step ----------------------------------------------------------------------------------- */

static void add_layers(struct walk *w, const struct eng_shape *shape, const struct eng_step *step)
{
    const struct off_plan *p = w->placed;
    const bool gate = shape->has & ENG_HAS_GATE, head = shape->has & ENG_HAS_HEAD;
    const bool norms = w->bucket->tokens > SMALL_TOKENS || shape->norm != KN_RMS_NORM;
    const struct off_plan_op *qkv = eng_operation_of(p, ENG_PART_Q);
    const struct off_plan_op *o = eng_operation_of(p, ENG_PART_O);
    const struct off_plan_op *up = eng_operation_of(p, gate ? ENG_PART_GATE : ENG_PART_UP);
    const struct off_plan_op *down = eng_operation_of(p, ENG_PART_DOWN);
    for (int32_t i = 0; i < shape->info.layer_count; i++) {
        if (norms) w->out->between_s += 2 * w->bucket->norm_us * US;
        add_product(w, qkv, i, CUT);
        add_attention(w, shape, step, shape->window[i]);
        add_product(w, o, i, CUT | LATE);
        add_product(w, up, i, 0);
        add_product(w, down, i, CUT);
    }
    if (step->seq_count <= KN_FETCH_TOKENS) w->staging = (struct eng_staging){0};
    add_product(w, eng_operation_of(p, head ? ENG_PART_HEAD : ENG_PART_EMBED), 0, 0);
}

/* Of every tier that holds anything. */
static bool has_rates(const struct off_plan *p)
{
    for (int i = 0; i < p->op_count; i++)
        for (int t = 0; t < KN_TIER_MAX; t++)
            if (p->op[i].tiles[t] > 0 && !(t < p->tier_count && p->tier[t].bytes_per_s > 0))
                return false;
    return true;
}

static void set_staging(struct walk *w, const struct eng_step *step,
                        const struct eng_staging *staging)
{
    if (staging) w->staging = *staging;
    for (int t = 1; t < w->placed->tier_count; t++) {
        if (step->seq_count <= KN_FETCH_TOKENS || w->staging.share[t] > 0) continue;
        w->staging.share[t] = 1;
        w->staging.bytes_per_s[t] = w->placed->tier[t].bytes_per_s;
    }
}

bool eng_predict_knows_kv(enum kn_dtype dtype, int32_t head_dim)
{
    return dtype == KN_BF16 || (dtype == KN_E4M3 && head_dim > 64 && head_dim <= 128);
}

bool eng_predict(const struct eng_shape *shape, const struct eng_step *step,
                 const struct off_plan *placed, const struct eng_staging *staging,
                 struct eng_prediction *out)
{
    struct walk w = {.placed = placed, .bucket = find_bucket(step->seq_count), .out = out};
    *out = (struct eng_prediction){0};
    if (!w.bucket || shape->info.dtype != KN_BF16 || !has_rates(placed) ||
        !eng_predict_knows_kv(step->kv_dtype, shape->info.head_dim))
        return false;
    set_staging(&w, step, staging);
    add_layers(&w, shape, step);
    out->between_s += (STEP_US + LOGIT_US * step->seq_count * shape->info.vocab) * US;
    out->seconds = out->products_s + out->links_s + out->attention_s + out->between_s;
    for (int t = 1; t < placed->tier_count; t++) {
        const double longer_s = w.link_s[t] - out->seconds;
        if (longer_s <= 0) continue;
        out->links_s += longer_s;
        out->seconds += longer_s;
    }
    return true;
}
