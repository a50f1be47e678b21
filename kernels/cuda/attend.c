/*
 * attend.c - kn_qkv and kn_attention by the kernels of attention.h.
 *
 * Tokens of sequences that have many in the step are prefill attention's, all of them in one
 * launch, with queries that kn_qkv leaves in its buffer; the others are decode attention's.
 *
 * For decode attention a step is cut into spans of 512 tokens.  The workspace holds the queries of
 * one span: kn_qkv lays them out, and where several spans have such tokens kn_attention lays out
 * each one's again, which also writes its keys and values once more as they are.  A span is one
 * launch where its activations are laid out alike, all of its chunks of 256 tokens in buckets of
 * 256, and else a launch a chunk.  A plan lists the work of as many of a launch's tokens as its
 * units have room for: all of them, unless contexts are very long.
 *
 * Measured on an H200, a layer of an 8B model with 512 sequences of 1,024 tokens: queries 12 us,
 * attention 500 us, 0.93 of HBM's rate; of 64 tokens 48 us, 0.61.  With spans of 256 the step took
 * 1.015 times as long at 85 tokens.
 *
 * A plan depends on the batch and the window alone, so the layers of a step share it; models that
 * mix two windows have two.  What a token comes to does not depend on how tokens are cut into
 * launches and plans (attention_plan.cuh).
 */
#include <string.h>

#include "config/check.h"
#include "kernels/cuda/state.h"

/* Pages seen by all tokens of a plan together beyond what short contexts need: with the units of
 * 512 of these, room for 48 tokens of a context of 2^19. */
#define PAGES_MAX 16384

static struct kn_cu_attention_shape shape_of(int32_t q_heads, const struct kn_kv *kv)
{
    return (struct kn_cu_attention_shape){.q_heads = q_heads,
                                          .kv_heads = kv->kv_heads,
                                          .head_dim = kv->head_dim,
                                          .tokens_max = KN_CU_ATTENTION_TOKENS,
                                          .pages_max = PAGES_MAX};
}

enum status kn_cu_attend_check(int32_t q_heads, const struct kn_kv *kv, char *err)
{
    size_t bytes;
    struct kn_cu_attention_shape shape = shape_of(q_heads, kv);
    return kn_cu_attention_bytes(&shape, &bytes, err);
}

void kn_cu_attend_close(struct kn_cu *cu)
{
    if (cu->attend.memory) (void)cudaFree(cu->attend.memory);
    if (cu->attend.second_plan) (void)cudaFree(cu->attend.second_plan);
    cu->attend = (struct kn_cu_attend){0};
}

/* The workspace for these heads; allocated by the first step of a model, which warms it up. */
static bool open_for(struct kn_cu *cu, int32_t q_heads, const struct kn_kv *kv)
{
    struct kn_cu_attend *t = &cu->attend;
    char err[ERR_CAP];
    size_t bytes = 0;
    struct kn_cu_attention_shape shape = shape_of(q_heads, kv);
    if (t->second_plan && !memcmp(&t->a.shape, &shape, sizeof shape)) return true;
    if (cu->record.now)
        return kn_cu_st(cu, ST_DEVICE, "a step was recorded before one of its kind was computed");
    if (!kn_cu_ok(cu, cudaStreamSynchronize(cu->stream), "in a step")) return false;
    kn_cu_record_drop(cu);
    kn_cu_attend_close(cu);
    if (!kn_cu_st(cu, kn_cu_attention_bytes(&shape, &bytes, err), err)) return false;
    if (!kn_cu_ok(cu, cudaMalloc((void **)&t->memory, bytes), "to allocate for attention") ||
        !kn_cu_ok(cu, cudaMemsetAsync(t->memory, 0, bytes, cu->stream),
                  "to clear attention's memory") ||
        !kn_cu_st(cu, kn_cu_attention_init(&t->a, &shape, t->memory, err), err))
        return false;
    size_t plan_bytes = kn_cu_attention_plan_bytes(&t->a);
    size_t second_bytes = plan_bytes + kn_cu_prefill_state_bytes(kv->head_dim);
    if (!kn_cu_st(cu, kn_cu_prefill_attention_init(err), err) ||
        !kn_cu_ok(cu, cudaMalloc((void **)&t->second_plan, second_bytes),
                  "to allocate for attention") ||
        !kn_cu_ok(cu, cudaMemsetAsync(t->second_plan, 0, second_bytes, cu->stream),
                  "to clear attention's memory"))
        return false;
    t->prefill = (struct kn_cu_prefill_state *)(t->second_plan + plan_bytes);
    t->plan[0] = t->a.plan;
    kn_cu_attention_plan_init(&t->a, &t->plan[1], t->second_plan);
    return true;
}

/* Tokens [begin, begin + count) as a batch of their own: sequences and pages stay. */
static struct kn_batch part_of(const struct kn_batch *b, int32_t begin, int32_t count)
{
    struct kn_batch c = *b;
    c.token_count = count;
    c.tokens += begin;
    c.positions += begin;
    c.token_seq += begin;
    return c;
}

/* Tokens of the span that begins at `begin`. */
static int32_t span_count(const struct kn_batch *b, int32_t begin)
{
    int32_t left = b->token_count - begin;
    return left < KN_CU_ATTENTION_TOKENS ? left : KN_CU_ATTENTION_TOKENS;
}

/* Of `left` tokens of a span, how many one launch takes: those of two chunks where the second is in
 * the first one's bucket. */
static int32_t launch_count(int32_t left)
{
    const int32_t chunk = KN_CU_TOKENS_MAX;
    return left <= chunk || kn_cu_bucket(left - chunk) == chunk ? left : chunk;
}

/* Floats of a token's row of qkv. */
static size_t qkv_width(const struct kn_qkv_args *a)
{
    return (size_t)(a->q_heads + 2 * a->kv->kv_heads) * (size_t)a->kv->head_dim;
}

/* Tokens whose token_seq is not negative; q to the workspace, or to rows in kn_qkv's buffer. */
static bool finish(struct kn_cu *cu, const struct kn_batch *b, struct kn_cu_parts parts,
                   void *q_rows)
{
    char err[ERR_CAP];
    const struct kn_qkv_args *a = &cu->attend.qkv;
    struct kn_cu_qkv_args args = {.qkv = parts,
                                  .q_norm = a->q_norm,
                                  .k_norm = a->k_norm,
                                  .norm_eps = a->norm_eps,
                                  .rope = a->rope,
                                  .kv = a->kv,
                                  .layer = a->layer,
                                  .q_rows = q_rows};
    return kn_cu_st(cu, kn_cu_qkv_finish(&cu->attend.a, b, &args, cu->stream, err), err);
}

/* The tokens of decode attention in the span from `begin` on. */
static bool finish_span(struct kn_cu *cu, const struct kn_batch *b, struct kn_cu_parts parts,
                        int32_t begin)
{
    struct kn_batch span = part_of(b, begin, span_count(b, begin));
    parts.sum += (size_t)begin * qkv_width(&cu->attend.qkv);
    return finish(cu, &span, parts, NULL);
}

/* Whether decode attention has any of `count` tokens from `begin` on; b: the host's. */
static bool has_decodes(const struct kn_batch *b, const struct kn_cu_chunks *c, int32_t begin,
                        int32_t count)
{
    if (!c->work.tile_count) return true;
    for (int32_t t = begin; t < begin + count; t++)
        if (b->token_seq[t] >= 0 && !kn_cu_is_chunk(&b->seqs[b->token_seq[t]])) return true;
    return false;
}

/* Whether more than one span has tokens of decode attention: only one at a time has its queries in
 * the workspace. */
static bool many_spans(const struct kn_batch *b, const struct kn_cu_chunks *c)
{
    int32_t count = 0;
    for (int32_t begin = 0; begin < b->token_count; begin += KN_CU_ATTENTION_TOKENS)
        count += has_decodes(b, c, begin, span_count(b, begin));
    return count > 1;
}

/* The batch as decode attention sees it. */
static struct kn_batch decodes_of(const struct kn_batch *b, const struct kn_cu_chunks *c)
{
    struct kn_batch decodes = *b;
    if (c->work.tile_count) decodes.token_seq = c->decode_seq;
    return decodes;
}

void kn_cu_qkv(struct kn *kn, const struct kn_batch *batch, const struct kn_qkv_args *a)
{
    struct kn_cu *cu = kn_cu_of(kn);
    const struct kn_batch *b = kn_cu_begin(cu) ? kn_cu_stage_batch(cu, batch) : NULL;
    if (!b || !open_for(cu, a->q_heads, a->kv)) return;
    const struct kn_cu_chunks *c = kn_cu_stage_chunks(cu, batch, a->q_heads, a->kv);
    if (!c) return;
    cu->attend.qkv = *a;
    struct kn_cu_parts parts = kn_cu_take_parts(cu, (const float *)a->qkv, b->token_count);
    struct kn_batch decodes = decodes_of(b, c);
    /* Rows of q take the place of the floats they are made of: of prefill's tokens, which none of
     * what follows reads again. */
    if (c->work.tile_count) {
        struct kn_batch chunks = *b;
        chunks.token_seq = c->chunk_seq;
        if (!finish(cu, &chunks, parts, a->qkv)) return;
    }
    /* Of all spans, for their keys and values: a sequence may lie in two. */
    for (int32_t begin = 0; begin < b->token_count; begin += KN_CU_ATTENTION_TOKENS)
        if (has_decodes(batch, c, begin, span_count(b, begin)) &&
            !finish_span(cu, &decodes, parts, begin))
            return;
}

int32_t kn_cu_plan_end(const struct kn_cu_attention *a, const int32_t *positions, int32_t window,
                       int32_t begin, int32_t count)
{
    int32_t units = 0, end = begin;
    for (; end < count; end++) {
        int32_t seen = window > 0 && positions[end] >= window ? positions[end] - window + 1 : 0;
        int32_t pages = positions[end] / KN_PAGE_TOKENS - seen / KN_PAGE_TOKENS + 1;
        units += kn_cu_attention_unit_count(pages);
        if (units > a->units_max) break;
    }
    CHECK(end > begin);
    return end;
}

/* The plan of tokens [begin, end) of a part of the batch; NULL after a failure. */
static const struct kn_cu_attention_plan *plan_for(struct kn_cu *cu, const struct kn_batch *part,
                                                   const struct kn_cu_planned_step *step,
                                                   bool remote)
{
    struct kn_cu_attend *t = &cu->attend;
    char err[ERR_CAP];
    for (unsigned i = 0; i < KN_CU_ATTENTION_PLANS; i++) {
        const struct kn_cu_planned_step *p = &t->planned[i];
        if (p->serial == step->serial && p->window == step->window && p->at == step->at &&
            p->begin == step->begin && p->end == step->end)
            return &t->plan[i];
    }
    unsigned i = t->next++ % KN_CU_ATTENTION_PLANS;
    struct kn_cu_plan_args args = {.batch = part,
                                   .token_begin = step->begin,
                                   .window = step->window,
                                   .windows =
                                       remote ? cu->control.device_window[KN_REMOTE_BULK] : NULL,
                                   .fresh = t->planned[i].serial != step->serial};
    t->planned[i] = *step;
    if (!kn_cu_st(cu, kn_cu_attention_plan(&t->a, &t->plan[i], &args, cu->stream, err), err))
        return NULL;
    return &t->plan[i];
}

/* A recording is played where its steps' attention fits the plans it has, one for each window. */
static void note_window(struct kn_cu_recording *r, int32_t window)
{
    for (int32_t i = 0; i < r->window_count; i++)
        if (r->window[i] == window) return;
    CHECK(r->window_count < KN_CU_WINDOWS_MAX);
    r->window[r->window_count++] = window;
}

/* `count` tokens from `at` on, those of one launch where a plan has room for them: positions are
 * the host's, of these tokens. */
static bool attend_part(struct kn_cu *cu, const struct kn_batch *b, int32_t at, int32_t count,
                        const int32_t *positions, const struct kn_attention_args *a, bool remote)
{
    struct kn_cu_attend *t = &cu->attend;
    char err[ERR_CAP];
    const size_t chunk_bytes = kn_cu_act_bytes(KN_CU_TOKENS_MAX, a->q_heads * a->kv->head_dim);
    struct kn_cu_attention_args args = {
        .kv = a->kv,
        .layer = a->layer,
        .scale = a->scale,
        .token_rows = count < KN_CU_TOKENS_MAX ? kn_cu_bucket(count) : KN_CU_TOKENS_MAX,
        .traffic = cu->control.device_traffic,
        .out = (char *)a->out + (size_t)(at / KN_CU_TOKENS_MAX) * chunk_bytes,
        .chunk_bytes = chunk_bytes,
        .query_begin = at % KN_CU_ATTENTION_TOKENS};
    for (int32_t begin = 0, end; begin < count; begin = end) {
        end = kn_cu_plan_end(&t->a, positions, a->window, begin, count);
        struct kn_batch part = part_of(b, at, end);
        struct kn_cu_planned_step step = {cu->stage.serial, a->window, at, begin, end};
        const struct kn_cu_attention_plan *plan = plan_for(cu, &part, &step, remote);
        if (!plan ||
            !kn_cu_st(cu, kn_cu_decode_attention(&t->a, plan, &part, &args, cu->stream, err), err))
            return false;
    }
    return true;
}

static bool attend_prefill(struct kn_cu *cu, const struct kn_batch *b, const struct kn_cu_chunks *c,
                           const struct kn_attention_args *a, bool remote)
{
    char err[ERR_CAP];
    struct kn_cu_prefill_args args = {.work = &c->work,
                                      .pages = b->pages,
                                      .q = a->qkv,
                                      .q_token_bytes = qkv_width(&cu->attend.qkv) * sizeof(float),
                                      .q_head_bytes = (size_t)a->kv->head_dim * sizeof(float),
                                      .q_heads = a->q_heads,
                                      .kv = a->kv,
                                      .layer = a->layer,
                                      .scale = a->scale,
                                      .window = a->window,
                                      .token_count = b->token_count,
                                      .out = a->out,
                                      .state = cu->attend.prefill,
                                      .windows =
                                          remote ? cu->control.device_window[KN_REMOTE_BULK] : NULL,
                                      .traffic = cu->control.device_traffic};
    return kn_cu_st(cu, kn_cu_prefill_attention_launch(&args, cu->stream, err), err);
}

void kn_cu_attention(struct kn *kn, const struct kn_batch *batch, const struct kn_attention_args *a)
{
    struct kn_cu *cu = kn_cu_of(kn);
    const struct kn_qkv_args *q = &cu->attend.qkv;
    bool remote = false;
    const struct kn_batch *b = kn_cu_begin(cu) ? kn_cu_stage_batch(cu, batch) : NULL;
    if (!b) return;
    const struct kn_cu_chunks *c = kn_cu_stage_chunks(cu, batch, a->q_heads, a->kv);
    if (!c) return;
    /* Decode's queries come from kn_qkv's workspace, not from a->qkv. */
    CHECK(q->qkv == a->qkv && q->layer == a->layer && q->q_heads == a->q_heads && q->kv == a->kv);
    for (int i = 1; i < KN_TIER_MAX; i++) {
        if (!a->kv->base[i]) continue;
        remote = true;
        if (!kn_cu_need_window(cu, i, a->kv->base[i])) return;
    }
    if (cu->record.now) note_window(cu->record.now, a->window);
    kn_cu_forget_undivided(cu, a->out, 1);
    if (c->work.tile_count && !attend_prefill(cu, b, c, a, remote)) return;
    struct kn_batch decodes = decodes_of(b, c);
    const struct kn_cu_parts parts = {.sum = (const float *)a->qkv, .count = 1};
    const bool again = many_spans(batch, c);
    for (int32_t span = 0; span < b->token_count; span += KN_CU_ATTENTION_TOKENS) {
        const int32_t end = span + span_count(b, span);
        if (!has_decodes(batch, c, span, end - span)) continue;
        if (again && !finish_span(cu, &decodes, parts, span)) return;
        for (int32_t at = span, count; at < end; at += count) {
            count = launch_count(end - at);
            if (has_decodes(batch, c, at, count) &&
                !attend_part(cu, &decodes, at, count, batch->positions + at, a, remote))
                return;
        }
    }
}
