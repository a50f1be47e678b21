/*
 * step.c - a step on the GPU: the batch's arrays brought to the device, and each operation turned
 * into launches.
 *
 * The batch.  The engine's arrays are host memory.  The first operation that meets a batch copies
 * all of them through pinned memory in one asynchronous copy; since they must stay as they are
 * until kn_sync or the end of their step, later operations know by the pointers alone that they are
 * there.  Room for the largest batch of a usual configuration is there from the start; a larger one
 * makes it grow, once.  While a step is recorded the arrays are those of record.c instead.
 *
 * Activations.  A buffer [T,cols] is cut into chunks of 256 tokens, one after another, each in the
 * layout of cuda.h for its bucket; fp32 buffers are row after row.  Products of more than 256
 * tokens are one launch a chunk.
 *
 * Logits.  KN_EPI_F32 into KN_MEM_STAGING computes into the region's twin on the device; kn_sample
 * reads it there, and kn_download copies to the host what it names.  The tokens kn_sample chose are
 * written by the kernel into the host's memory itself.
 */
#include <string.h>

#include "config/check.h"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/small.h"
#include "kernels/cuda/state.h"
#include "kernels/cuda/stream.h"

#define STAGE_BYTES ((size_t)8 << 20)

/* --- the batch --- */

static void stage_free(struct kn_cu_stage *s)
{
    if (s->host) (void)cudaFreeHost(s->host);
    if (s->device) (void)cudaFree(s->device);
    *s = (struct kn_cu_stage){.serial = s->serial};
}

static bool stage_alloc(struct kn_cu *cu, size_t bytes)
{
    struct kn_cu_stage *s = &cu->stage;
    s->bytes = bytes;
    return kn_cu_ok(cu, cudaHostAlloc((void **)&s->host, bytes, 0), "to pin the step's arrays") &&
           kn_cu_ok(cu, cudaMalloc((void **)&s->device, bytes), "to allocate the step's arrays");
}

enum status kn_cu_stage_open(struct kn_cu *cu, char *err)
{
    return stage_alloc(cu, STAGE_BYTES) ? ST_OK : err_set(err, ST_DEVICE, "%s", cu->failure);
}

void kn_cu_stage_close(struct kn_cu *cu)
{
    stage_free(&cu->stage);
}

void kn_cu_stage_forget(struct kn_cu *cu)
{
    cu->stage.has_batch = cu->stage.has_rows = false;
}

void kn_cu_stage_reset(struct kn_cu *cu)
{
    cu->stage.used = 0;
    kn_cu_stage_forget(cu);
}

/* Puts an array at *at, and moves *at behind it; the array's address on the device. */
static const void *put(struct kn_cu_stage *s, size_t *at, const void *array, size_t bytes)
{
    const void *device = s->device + *at;
    if (bytes) memcpy(s->host + *at, array, bytes);
    *at += round_up(bytes, 16);
    return device;
}

size_t kn_cu_page_count(const struct kn_batch *b)
{
    size_t count = 0;
    for (int32_t i = 0; i < b->seq_count; i++)
        count = size_max(count, (size_t)b->seqs[i].page_begin +
                                    div_up((size_t)b->seqs[i].kv_count, KN_PAGE_TOKENS));
    return count;
}

static bool same_batch(const struct kn_batch *a, const struct kn_batch *b)
{
    return a->token_count == b->token_count && a->tokens == b->tokens &&
           a->positions == b->positions && a->token_seq == b->token_seq &&
           a->seq_count == b->seq_count && a->seqs == b->seqs && a->pages == b->pages;
}

/* Waits for what uses the present arrays, which makes them free, and enlarges them if need be. */
static bool make_room(struct kn_cu *cu, size_t bytes)
{
    struct kn_cu_stage *s = &cu->stage;
    if (bytes <= s->bytes - s->used) return true;
    if (!kn_cu_ok(cu, cudaStreamSynchronize(cu->stream), "in a step")) return false;
    kn_cu_stage_reset(cu);
    if (bytes <= s->bytes) return true;
    stage_free(s);
    return stage_alloc(cu, 2 * bytes);
}

static bool send(struct kn_cu *cu, size_t begin, size_t end)
{
    struct kn_cu_stage *s = &cu->stage;
    s->used = end;
    return begin == end || kn_cu_ok(cu,
                                    cudaMemcpyAsync(s->device + begin, s->host + begin, end - begin,
                                                    cudaMemcpyHostToDevice, cu->stream),
                                    "to copy the step's arrays");
}

/* The batch with its rows on the device, its other arrays there or not; NULL after a failure. */
static const struct kn_batch *stage_rows(struct kn_cu *cu, const struct kn_batch *b)
{
    struct kn_cu_stage *s = &cu->stage;
    if (cu->record.now) {
        CHECK(b->row_count == cu->record.batch.row_count);
        return &cu->record.batch;
    }
    if (s->has_rows && s->seen.rows == b->rows && s->seen.row_count == b->row_count)
        return &s->batch;
    size_t bytes = (size_t)b->row_count * sizeof *b->rows;
    if (!make_room(cu, round_up(bytes, 16))) return NULL;
    size_t begin = s->used, at = begin;
    s->batch.rows = put(s, &at, b->rows, bytes);
    s->batch.row_count = s->seen.row_count = b->row_count;
    s->seen.rows = b->rows;
    s->has_rows = true;
    return send(cu, begin, at) ? &s->batch : NULL;
}

const struct kn_batch *kn_cu_stage_batch(struct kn_cu *cu, const struct kn_batch *b)
{
    struct kn_cu_stage *s = &cu->stage;
    if (cu->record.now) {
        CHECK(b->token_count == cu->record.batch.token_count);
        return &cu->record.batch;
    }
    if (s->has_batch && same_batch(&s->seen, b)) return &s->batch;
    size_t token_bytes = (size_t)b->token_count * sizeof *b->tokens;
    size_t seq_bytes = (size_t)b->seq_count * sizeof *b->seqs;
    size_t page_bytes = kn_cu_page_count(b) * sizeof *b->pages;
    size_t row_bytes = b->rows ? (size_t)b->row_count * sizeof *b->rows : 0;
    if (!make_room(cu, 3 * round_up(token_bytes, 16) + round_up(seq_bytes, 16) +
                           round_up(page_bytes, 16) + round_up(row_bytes, 16)))
        return NULL;
    size_t begin = s->used, at = begin;
    s->seen = s->batch = *b;
    s->batch.tokens = put(s, &at, b->tokens, token_bytes);
    s->batch.positions = put(s, &at, b->positions, token_bytes);
    s->batch.token_seq = put(s, &at, b->token_seq, token_bytes);
    s->batch.seqs = put(s, &at, b->seqs, seq_bytes);
    s->batch.pages = put(s, &at, b->pages, page_bytes);
    s->batch.rows = put(s, &at, b->rows, row_bytes);
    s->has_batch = true;
    s->serial++;
    s->has_rows = row_bytes > 0;
    return send(cu, begin, at) ? &s->batch : NULL;
}

bool kn_cu_begin(struct kn_cu *cu)
{
    cu->busy = true;
    return kn_cu_enter(cu);
}

/* --- products left in parts --- */

bool kn_cu_settle(struct kn_cu *cu)
{
    struct kn_cu_pending *p = &cu->pending;
    char err[ERR_CAP];
    float *out = p->out;
    p->out = NULL;
    return !out ||
           kn_cu_st(cu,
                    kn_cu_settle_launch(&p->parts, p->rows, p->cols, p->add, out, cu->stream, err),
                    err);
}

struct kn_cu_parts kn_cu_take_parts(struct kn_cu *cu, const float *out, int32_t rows)
{
    struct kn_cu_pending *p = &cu->pending;
    if (p->out != out || p->add) return (struct kn_cu_parts){.sum = out, .count = 1};
    CHECK(rows == p->rows);
    p->out = NULL;
    return p->parts;
}

/* --- small operations --- */

size_t kn_cu_buffer_bytes(const struct kn *kn, int32_t rows, int32_t cols)
{
    (void)kn;
    int32_t whole = rows / KN_CU_TOKENS_MAX, rest = rows % KN_CU_TOKENS_MAX;
    size_t swizzled = (size_t)whole * kn_cu_act_bytes(KN_CU_TOKENS_MAX, cols);
    if (rest) swizzled += kn_cu_act_bytes(kn_cu_bucket(rest), cols);
    return size_max(swizzled, (size_t)rows * (size_t)cols * sizeof(float));
}

void kn_cu_embed(struct kn *kn, const struct kn_batch *batch, const struct kn_embed_args *a)
{
    struct kn_cu *cu = kn_cu_of(kn);
    char err[ERR_CAP];
    const struct kn_batch *b =
        kn_cu_begin(cu) && kn_cu_settle(cu) ? kn_cu_stage_batch(cu, batch) : NULL;
    if (b) kn_cu_st(cu, kn_cu_embed_launch(b, a, cu->chosen, cu->stream, err), err);
}

void kn_cu_norm(struct kn *kn, const struct kn_norm_args *a)
{
    struct kn_cu *cu = kn_cu_of(kn);
    char err[ERR_CAP];
    struct kn_cu_pending *p = &cu->pending;
    const bool takes = p->out == a->x && p->add && p->rows == a->row_count;
    if (!kn_cu_begin(cu) || (!takes && !kn_cu_settle(cu))) return;
    kn_cu_st(cu, kn_cu_norm_launch(a, takes ? &p->parts : NULL, cu->stream, err), err);
    if (takes) p->out = NULL;
}

void kn_cu_gather(struct kn *kn, const struct kn_batch *batch, int32_t cols, const float *x,
                  float *out)
{
    struct kn_cu *cu = kn_cu_of(kn);
    char err[ERR_CAP];
    const struct kn_batch *b = kn_cu_begin(cu) && kn_cu_settle(cu) ? stage_rows(cu, batch) : NULL;
    if (b) kn_cu_st(cu, kn_cu_gather_launch(b, cols, x, out, cu->stream, err), err);
}

/* --- products --- */

/* Choosing a plan takes some microseconds, so those chosen are kept. */
static const struct kn_cu_gemm_plan *plan_of(struct kn_cu *cu, const struct kn_weight *w,
                                             int32_t tokens, bool parts)
{
    int32_t bucket = kn_cu_bucket(tokens);
    for (int32_t i = 0; i < cu->plan_count; i++) {
        const struct kn_cu_planned *p = &cu->plans[i];
        if (p->rows == w->rows && p->cols == w->cols && p->parts == parts &&
            p->plan.bucket == bucket)
            return &p->plan;
    }
    CHECK(cu->plan_count < KN_CU_PLANS_MAX);
    struct kn_cu_planned *p = &cu->plans[cu->plan_count++];
    p->rows = w->rows;
    p->cols = w->cols;
    p->parts = parts;
    kn_cu_gemm_plan(w->rows, w->cols, tokens, cu->sm_count, parts, &p->plan);
    return &p->plan;
}

void kn_cu_stream_read(struct kn *kn, const void *ptr, size_t bytes)
{
    struct kn_cu *cu = kn_cu_of(kn);
    const struct kn_cu_region *r = kn_cu_region_of(cu, ptr);
    char err[ERR_CAP];
    if (!kn_cu_begin(cu)) return;
    /* Measured: HBM gives most with 128 KB an SM asked for (tests/gpu_profile.c prints the sweep);
     * links are filled by less, and by twice their window for certain. */
    int ctas = cu->sm_count, blocks = 8;
    if (r && r->mem == KN_MEM_HOST) ctas = 32, blocks = 1;
    if (r && r->mem == KN_MEM_PEER) ctas = 32, blocks = 4;
    kn_cu_st(cu,
             kn_cu_stream_launch(ptr, bytes, ctas, blocks, cu->stream_read, cu->stream_read_turn++,
                                 cu->stream, err),
             err);
}

/* Where rows from `row` on begin in a product's output. */
static void *out_at(const struct kn_gemm_args *a, char *out, int32_t row)
{
    size_t chunk = (size_t)(row / KN_CU_TOKENS_MAX);
    if (a->epilogue == KN_EPI_RELU)
        return out + chunk * kn_cu_act_bytes(KN_CU_TOKENS_MAX, a->w->rows);
    if (a->epilogue == KN_EPI_SWIGLU)
        return out + chunk * kn_cu_act_bytes(KN_CU_TOKENS_MAX, a->w->rows / 2);
    return out + (size_t)row * (size_t)a->w->rows * sizeof(float);
}

/* Whether a product is left in parts: where another operation will read the sums anyway. */
static bool in_parts(const struct kn_gemm_args *a)
{
    size_t bytes = (size_t)a->row_count * (size_t)a->w->rows * sizeof(float);
    return (a->epilogue == KN_EPI_ADD || a->epilogue == KN_EPI_STORE) &&
           a->row_count <= KN_CU_TOKENS_MAX && KN_CU_PARTS_MAX * bytes <= KN_CU_PARTS_BYTES;
}

/* Up to 256 rows from `row` on. */
static bool gemm_chunk(struct kn_cu *cu, const struct kn_gemm_args *a, char *out, int32_t row)
{
    char err[ERR_CAP];
    size_t chunk = (size_t)(row / KN_CU_TOKENS_MAX);
    int32_t left = a->row_count - row;
    int32_t count = left < KN_CU_TOKENS_MAX ? left : KN_CU_TOKENS_MAX;
    const bool parts = in_parts(a);
    const struct kn_cu_gemm_plan *plan = plan_of(cu, a->w, count, parts);
    struct kn_cu_gemm_args args = {
        .w = a->w,
        .bias = a->bias,
        .tokens = count,
        .in = (const char *)a->in + chunk * kn_cu_act_bytes(KN_CU_TOKENS_MAX, a->w->cols),
        .epilogue = a->epilogue,
        .out = out_at(a, out, row),
        .partial = parts ? cu->pending.memory : NULL,
        .windows = cu->control.device_window,
        .traffic = cu->control.device_traffic,
        .dependent = true,
    };
    if (parts)
        cu->pending = (struct kn_cu_pending){
            .memory = cu->pending.memory,
            .out = a->out,
            .add = a->epilogue == KN_EPI_ADD,
            .rows = count,
            .cols = a->w->rows,
            .parts = {.sum = cu->pending.memory,
                      .count = 1 << plan->part_shift,
                      .stride = (size_t)count * (size_t)a->w->rows,
                      .bias = a->bias},
        };
    return kn_cu_st(cu, kn_cu_gemm_launch(plan, &args, cu->stream, err), err);
}

void kn_cu_gemm(struct kn *kn, const struct kn_gemm_args *a)
{
    struct kn_cu *cu = kn_cu_of(kn);
    if (!kn_cu_begin(cu) || !kn_cu_settle(cu)) return;
    for (int t = 1; t < KN_TIER_MAX; t++)
        if (a->w->span[t].tile_count > 0 && !kn_cu_need_window(cu, t, a->w->span[t].base)) return;
    const struct kn_cu_region *r = a->epilogue == KN_EPI_F32 ? kn_cu_region_of(cu, a->out) : NULL;
    bool staged = r && r->mem == KN_MEM_STAGING;
    size_t bytes = (size_t)a->row_count * (size_t)a->w->rows * sizeof(float);
    CHECK(!staged || (char *)a->out + bytes <= r->base + r->bytes);
    char *out = staged ? r->twin + ((char *)a->out - r->base) : a->out;
    for (int32_t row = 0; row < a->row_count; row += KN_CU_TOKENS_MAX)
        if (!gemm_chunk(cu, a, out, row)) return;
}

/* --- results --- */

void kn_cu_download(struct kn *kn, void *staging, size_t bytes)
{
    struct kn_cu *cu = kn_cu_of(kn);
    if (!kn_cu_begin(cu)) return;
    const struct kn_cu_region *r = kn_cu_region_of(cu, staging);
    CHECK(!cu->record.now);
    CHECK(r && r->mem == KN_MEM_STAGING && (char *)staging + bytes <= r->base + r->bytes);
    const char *from = r->twin + ((char *)staging - r->base);
    kn_cu_ok(cu, cudaMemcpyAsync(staging, from, bytes, cudaMemcpyDeviceToHost, cu->stream),
             "to copy results");
}

void kn_cu_sample(struct kn *kn, const struct kn_sample_args *a)
{
    struct kn_cu *cu = kn_cu_of(kn);
    char err[ERR_CAP];
    const struct kn_cu_region *r = kn_cu_region_of(cu, a->logits);
    const struct kn_cu_region *to = kn_cu_region_of(cu, a->out);
    const float *logits =
        r && r->twin ? (const float *)(r->twin + ((const char *)a->logits - r->base)) : a->logits;
    CHECK(to && to->mem == KN_MEM_STAGING);
    CHECK((char *)(a->out + a->row_count) <= to->base + to->bytes);
    CHECK(a->row_count <= cu->chosen_max);
    if (!kn_cu_begin(cu)) return;
    struct kn_cu_recording *now = cu->record.now;
    if (!now) {
        kn_cu_st(cu,
                 kn_cu_sample_launch(logits, a->vocab, a->row_count, a->rows, a->out, cu->chosen,
                                     cu->stream, err),
                 err);
        return;
    }
    CHECK(a->row_count == now->bucket);
    now->logits = a->logits;
    now->vocab = a->vocab;
    kn_cu_st(cu,
             kn_cu_sample_step_launch(logits, a->vocab, a->row_count, &cu->record.device->sample,
                                      cu->chosen, cu->stream, err),
             err);
}

enum status kn_cu_sample_reserve(struct kn *kn, int32_t vocab, int32_t row_max, char *err)
{
    struct kn_cu *cu = kn_cu_of(kn);
    size_t bytes = (size_t)row_max * sizeof *cu->chosen;
    if (vocab > KN_CU_SAMPLE_VOCAB_MAX)
        return err_set(err, ST_UNSUPPORTED,
                       "the GPU samples from at most %d tokens, not %d: give --device cpu",
                       KN_CU_SAMPLE_VOCAB_MAX, vocab);
    if (row_max <= cu->chosen_max) return ST_OK;
    kn_cu_record_drop(cu);
    if (kn_cu_enter(cu) && kn_cu_ok(cu, cudaStreamSynchronize(cu->stream), "in a step")) {
        if (cu->chosen) (void)cudaFree(cu->chosen);
        cu->chosen = NULL;
        cu->chosen_max = 0;
        if (kn_cu_ok(cu, cudaMalloc((void **)&cu->chosen, bytes), "to allocate memory") &&
            kn_cu_ok(cu, cudaMemsetAsync(cu->chosen, 0, bytes, cu->stream), "to clear memory"))
            cu->chosen_max = row_max;
    }
    return cu->failure[0] ? err_set(err, ST_DEVICE, "%s", cu->failure) : ST_OK;
}
