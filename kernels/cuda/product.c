/*
 * product.c - products and norms, and what passes between the two.
 *
 * Pending.  Where K is cut into parts somebody must add them up, and the operation that comes next
 * does it best, for it reads the sum anyway.  So a product may be issued later than it is asked
 * for, or issued and not be done:
 *
 *     nothing --- kn_gemm ADD of up to 32 tokens ----------------> held
 *     nothing --- kn_gemm STORE, or ADD of more tokens ----------> in parts
 *     held ------ kn_norm (root mean square) of the sum ---------> nothing: one launch does both
 *     held ------ anything else: it is issued (kn_cu_begin) -----> in parts
 *     in parts -- kn_norm or kn_qkv of the sum, which adds ------> nothing
 *     in parts -- anything else that might read it: added up ----> nothing (kn_cu_settle)
 *
 * All ways come to the same bits.
 *
 * Undivided.  An RMS norm of up to 32 tokens leaves activations that are yet to be divided
 * (cuda.h), whichever kernel computes it.  Which buffers hold such is remembered until they are
 * written again or freed; every product that reads one divides.  A step that is played does not
 * know what was issued before, nor the next one what it left: what is remembered ends there.
 *
 * Products of more than 128 tokens are a kernel's of their own (prefill.h), up to 256 in parts as
 * well; of more, remote weights are fetched before (fetch.c).  Of up to 128, remote weights may be
 * staged (stage.c).
 */
#include <string.h>

#include "config/check.h"
#include "kernels/cuda/prefill.h"
#include "kernels/cuda/small.h"
#include "kernels/cuda/state.h"

/* --- undivided activations --- */

static const struct kn_cu_undivided *undivided_of(const struct kn_cu *cu, const void *y)
{
    for (int32_t i = 0; i < cu->undivided_count; i++)
        if (cu->undivided[i].y == y) return &cu->undivided[i];
    return NULL;
}

void kn_cu_forget_undivided(struct kn_cu *cu, const void *from, size_t bytes)
{
    int32_t kept = 0;
    for (int32_t i = 0; i < cu->undivided_count; i++) {
        const struct kn_cu_undivided u = cu->undivided[i];
        if ((uintptr_t)u.y - (uintptr_t)from >= bytes) cu->undivided[kept++] = u;
    }
    cu->undivided_count = kept;
}

/* Where the sums of squares of y[rows,cols] lie. */
static float *sums_of(const void *y, int32_t rows, int32_t cols)
{
    return (float *)((uintptr_t)y + kn_cu_act_bytes(kn_cu_bucket(rows), cols));
}

/* How a product must scale what it makes of `in`. */
static struct kn_cu_scale scale_of(const struct kn_cu *cu, const struct kn_gemm_args *a)
{
    const struct kn_cu_undivided *u = undivided_of(cu, a->in);
    if (!u) return (struct kn_cu_scale){0};
    CHECK(u->rows == a->row_count && u->cols == a->w->cols);
    return (struct kn_cu_scale){sums_of(u->y, u->rows, u->cols), u->cols, u->eps};
}

/* --- launches --- */

static bool is_remote(const struct kn_weight *w)
{
    return w->span[0].tile_count < w->tile_count;
}

/* alone: no CTA shares weights with another. */
static bool plan_prefill(struct kn_cu *cu, const struct kn_weight *w, int32_t tokens, bool parts,
                         bool alone, struct kn_cu_prefill_plan *out)
{
    char err[ERR_CAP];
    if (!kn_cu_st(cu, kn_cu_prefill_plan(w, tokens, parts, cu->sm_count, out, err), err) ||
        (alone && !kn_cu_st(cu, kn_cu_prefill_unshare(w, tokens, cu->sm_count, out, err), err)))
        return false;
    if (cu->without & KN_WITHOUT_SPLIT_K) out->cut = false;
    return true;
}

/* Choosing a plan takes some microseconds, so those of up to 256 tokens are kept.  NULL after a
 * failure. */
static const struct kn_cu_planned *plan_of(struct kn_cu *cu, const struct kn_weight *w,
                                           int32_t tokens, bool parts, bool alone)
{
    int32_t bucket = kn_cu_bucket(tokens);
    for (int32_t i = 0; i < cu->plan_count; i++) {
        const struct kn_cu_planned *p = &cu->plans[i];
        if (p->rows == w->rows && p->cols == w->cols && p->parts == parts && p->alone == alone &&
            p->bucket == bucket)
            return p;
    }
    CHECK(cu->plan_count < KN_CU_PLANS_MAX);
    struct kn_cu_planned *p = &cu->plans[cu->plan_count];
    *p = (struct kn_cu_planned){
        .rows = w->rows, .cols = w->cols, .bucket = bucket, .parts = parts, .alone = alone};
    if (bucket <= KN_CU_DECODE_MAX)
        kn_cu_gemm_plan(w->rows, w->cols, tokens, cu->sm_count, parts, &p->decode);
    else if (!plan_prefill(cu, w, tokens, parts, alone, &p->prefill)) return NULL;
    cu->plan_count++;
    return p;
}

/* Whether a product is left in parts: where another operation will read the sums anyway. */
static bool in_parts(const struct kn_gemm_args *a)
{
    size_t bytes = (size_t)a->row_count * (size_t)a->w->rows * sizeof(float);
    return (a->epilogue == KN_EPI_ADD || a->epilogue == KN_EPI_STORE) &&
           a->row_count <= KN_CU_TOKENS_MAX && KN_CU_PARTS_MAX * bytes <= KN_CU_PARTS_BYTES;
}

/* Whether a product is held until it is known whether a norm comes next. */
static bool is_held(const struct kn_gemm_args *a)
{
    return a->epilogue == KN_EPI_ADD && a->row_count <= KN_CU_SQUARES_TOKENS && in_parts(a) &&
           a->w->tile_count <= KN_CU_NORM_TILES_MAX;
}

_Static_assert(KN_FETCH_TOKENS == KN_CU_TOKENS_MAX, "all products of prompts may fetch");

/* More than 256 rows; the weights are fetched where they can be, and then planned as if local. */
static bool launch_prompt(struct kn_cu *cu, struct kn_cu_gemm_args *args, bool alone)
{
    char err[ERR_CAP];
    struct kn_cu_prefill_plan plan;
    struct kn_weight w, planned;
    bool fetched = false;
    w = *args->w;
    if (!args->loads && args->tokens > cu->fetch.beyond && !kn_cu_fetch(cu, args->w, &w, &fetched))
        return false;
    args->w = &w;
    planned = w;
    if (fetched) {
        planned.span[0].tile_count = w.tile_count;
        args->windows = NULL;
        args->fetched = true;
        args->dependent = false;
    }
    return plan_prefill(cu, &planned, args->tokens, false, alone && !fetched, &plan) &&
           kn_cu_st(cu, kn_cu_prefill_launch(&plan, args, cu->prefill, cu->stream, err), err) &&
           (!fetched || kn_cu_fetch_used(cu));
}

/* norm: what is to be done with the sum, or NULL; place: where what is staged of the weight lies,
 * or -1. */
static bool launch(struct kn_cu *cu, const struct kn_gemm_args *a, void *out, int32_t place,
                   const struct kn_norm_args *norm)
{
    char err[ERR_CAP];
    struct kn_cu_pending *p = &cu->pending;
    const bool parts = in_parts(a) && !norm;
    const enum kn_remote_access access = cu->control.access;
    struct kn_cu_gemm_args args = {
        .w = a->w,
        .bias = a->bias,
        .tokens = a->row_count,
        .in = a->in,
        .epilogue = a->epilogue,
        .out = out,
        .partial = parts ? p->memory : NULL,
        .scale = scale_of(cu, a),
        .windows = cu->control.device_window[access],
        .loads = access == KN_REMOTE_LOADS && is_remote(a->w),
        .traffic = cu->control.device_traffic,
        .turn = -1,
        .dependent = true,
    };
    const bool alone = args.loads || (cu->without & KN_WITHOUT_MULTICAST && is_remote(a->w));
    if (a->row_count > KN_CU_TOKENS_MAX) return launch_prompt(cu, &args, alone);
    const bool split = in_parts(a) && !(cu->without & KN_WITHOUT_SPLIT_K);
    const struct kn_cu_planned *plan = plan_of(cu, a->w, a->row_count, split, alone);
    if (!plan) return false;
    const bool prompt = plan->bucket > KN_CU_DECODE_MAX;
    if (!prompt) args.staged = kn_cu_staged_of(cu, place);
    if (place == 0) args.dependent = false; /* stage.c: invariant 3 */
    if (!prompt && kn_cu_gemm_takes_turn(&plan->decode, a->w, &args.staged, cu->sm_count))
        args.turn = cu->control.turn = (cu->control.turn + 1) % KN_CU_TURNS;
    if (norm)
        args.norm = (struct kn_cu_gemm_norm){
            .words = p->words, .arrived = p->arrived, .gain = norm->weight, .y = norm->y};
    if (parts) {
        p->state = KN_CU_IN_PARTS;
        p->parts = (struct kn_cu_parts){.sum = p->memory,
                                        .count = prompt ? plan->prefill.parts
                                                        : 1 << plan->decode.part_shift,
                                        .stride = (size_t)a->row_count * (size_t)a->w->rows,
                                        .bias = a->bias};
        p->product = *a;
        p->product.w = &p->w;
    }
    return kn_cu_st(cu,
                    prompt
                        ? kn_cu_prefill_launch(&plan->prefill, &args, cu->prefill, cu->stream, err)
                        : kn_cu_gemm_launch(&plan->decode, &args, cu->stream, err),
                    err);
}

/* --- what is pending --- */

static bool adds(const struct kn_cu_pending *p)
{
    return p->product.epilogue == KN_EPI_ADD;
}

bool kn_cu_issue_held(struct kn_cu *cu)
{
    struct kn_cu_pending *p = &cu->pending;
    if (p->state != KN_CU_HELD) return true;
    p->state = KN_CU_NOTHING;
    return launch(cu, &p->product, p->product.out, p->place, NULL);
}

bool kn_cu_settle(struct kn_cu *cu)
{
    struct kn_cu_pending *p = &cu->pending;
    const struct kn_gemm_args *a = &p->product;
    char err[ERR_CAP];
    if (!kn_cu_issue_held(cu)) return false;
    if (p->state == KN_CU_NOTHING) return true;
    p->state = KN_CU_NOTHING;
    return kn_cu_st(
        cu,
        kn_cu_settle_launch(&p->parts, a->row_count, p->w.rows, adds(p), a->out, cu->stream, err),
        err);
}

struct kn_cu_parts kn_cu_take_parts(struct kn_cu *cu, const float *out, int32_t rows)
{
    struct kn_cu_pending *p = &cu->pending;
    if (p->state != KN_CU_IN_PARTS || p->product.out != out || adds(p))
        return (struct kn_cu_parts){.sum = out, .count = 1};
    CHECK(rows == p->product.row_count);
    p->state = KN_CU_NOTHING;
    return p->parts;
}

void kn_cu_drop_pending(struct kn_cu *cu, const void *from, size_t bytes)
{
    if ((uintptr_t)cu->pending.product.out - (uintptr_t)from < bytes)
        cu->pending.state = KN_CU_NOTHING;
}

/* --- norms --- */

/* Whether the division is left to the products that read y.  The table is larger than any model
 * needs; without room in it y is whole, which is as good, but other bits. */
static bool divides_later(const struct kn_cu *cu, const struct kn_norm_args *a)
{
    return a->kind == KN_RMS_NORM && !a->bias && a->row_count <= KN_CU_SQUARES_TOKENS &&
           (undivided_of(cu, a->y) || cu->undivided_count < KN_CU_UNDIVIDED_MAX);
}

/* Whether the product that is held can do this norm: of its sum, and into memory it does not
 * read. */
static bool one_launch_does(const struct kn_cu *cu, const struct kn_norm_args *a)
{
    const struct kn_cu_pending *p = &cu->pending;
    size_t in_bytes = kn_cu_buffer_bytes(&cu->kn, a->row_count, p->w.cols);
    size_t y_bytes = kn_cu_buffer_bytes(&cu->kn, a->row_count, a->cols);
    return p->state == KN_CU_HELD && p->product.out == a->x &&
           p->product.row_count == a->row_count && p->w.rows == a->cols &&
           (uintptr_t)a->y - (uintptr_t)p->product.in >= in_bytes &&
           (uintptr_t)p->product.in - (uintptr_t)a->y >= y_bytes;
}

static bool norm_undivided(struct kn_cu *cu, const struct kn_norm_args *a)
{
    struct kn_cu_pending *p = &cu->pending;
    char err[ERR_CAP];
    if (one_launch_does(cu, a)) {
        p->state = KN_CU_NOTHING;
        return launch(cu, &p->product, p->product.out, p->place, a);
    }
    float *sums = sums_of(a->y, a->row_count, a->cols);
    return kn_cu_settle(cu) && kn_cu_st(cu, kn_cu_square_launch(a, sums, cu->stream, err), err);
}

void kn_cu_norm(struct kn *kn, const struct kn_norm_args *a)
{
    struct kn_cu *cu = kn_cu_of(kn);
    struct kn_cu_pending *p = &cu->pending;
    char err[ERR_CAP];
    if (divides_later(cu, a)) {
        cu->busy = true;
        if (!kn_cu_enter(cu) || !norm_undivided(cu, a)) return;
        kn_cu_forget_undivided(cu, a->y, 1);
        cu->undivided[cu->undivided_count++] =
            (struct kn_cu_undivided){a->y, a->row_count, a->cols, a->eps};
        return;
    }
    if (!kn_cu_begin(cu)) return;
    const bool takes = p->state == KN_CU_IN_PARTS && p->product.out == a->x && adds(p) &&
                       p->product.row_count == a->row_count;
    if (!takes && !kn_cu_settle(cu)) return;
    if (takes) p->state = KN_CU_NOTHING;
    kn_cu_forget_undivided(cu, a->y, 1);
    kn_cu_st(cu, kn_cu_norm_launch(a, takes ? &p->parts : NULL, cu->stream, err), err);
}

/* --- products --- */

void kn_cu_gemm(struct kn *kn, const struct kn_gemm_args *a)
{
    struct kn_cu *cu = kn_cu_of(kn);
    struct kn_cu_pending *p = &cu->pending;
    int32_t place;
    if (!kn_cu_begin(cu) || !kn_cu_settle(cu) || !kn_cu_staging_next(cu, a, &place)) return;
    for (int t = 1; t < KN_TIER_MAX; t++)
        if (a->w->span[t].tile_count > 0 && !kn_cu_need_window(cu, t, a->w->span[t].base)) return;
    const struct kn_cu_region *r = a->epilogue == KN_EPI_F32 ? kn_cu_region_of(cu, a->out) : NULL;
    bool staged = r && r->mem == KN_MEM_STAGING;
    size_t bytes = (size_t)a->row_count * (size_t)a->w->rows * sizeof(float);
    CHECK(!staged || (char *)a->out + bytes <= r->base + r->bytes);
    char *out = staged ? r->twin + ((char *)a->out - r->base) : a->out;
    p->w = *a->w;
    if (is_held(a)) {
        p->state = KN_CU_HELD;
        p->product = *a;
        p->product.w = &p->w;
        p->place = place;
        return;
    }
    if (launch(cu, a, out, place, NULL)) kn_cu_forget_undivided(cu, a->out, 1);
}
