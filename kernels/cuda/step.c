/*
 * step.c - a step on the GPU: the batch's arrays brought to the device, and the small operations
 * turned into launches (products and norms: product.c; attention: attend.c).
 *
 * The batch.  The engine's arrays are host memory.  The first operation that meets a batch copies
 * all of them through pinned memory in one asynchronous copy; since they must stay as they are
 * until kn_sync or the end of their step, later operations know by the pointers alone that they are
 * there.  Room for the largest batch of a usual configuration is there from the start; a larger one
 * makes it grow, once.  While a step is recorded the arrays are those of record.c instead.
 *
 * Activations.  A buffer [T,cols] is cut into chunks of 256 tokens, one after another, each in the
 * layout of cuda.h for its bucket; fp32 buffers are row after row.
 *
 * Logits.  KN_EPI_F32 into KN_MEM_STAGING computes into the region's twin on the device; kn_sample
 * reads it there, and kn_download copies to the host what it names.  The tokens kn_sample chose are
 * written by the kernel into the host's memory itself.
 */
#include <string.h>

#include "config/check.h"
#include "kernels/cuda/matrix.h"
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

/* What stage_rows and kn_cu_stage_chunks may put behind a batch's arrays. */
static size_t chunks_room(const struct kn_batch *b)
{
    return 3 * round_up((size_t)b->token_count * sizeof *b->token_seq, 16) +
           (size_t)kn_cu_prefill_tile_max(b, KN_CU_GROUP_MAX) * sizeof(struct kn_cu_prefill_tile);
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
                           round_up(page_bytes, 16) + round_up(row_bytes, 16) + chunks_room(b)))
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

const struct kn_cu_chunks *kn_cu_stage_chunks(struct kn_cu *cu, const struct kn_batch *b,
                                              int32_t q_heads, const struct kn_kv *kv)
{
    static const struct kn_cu_chunks none = {0};
    struct kn_cu_stage *s = &cu->stage;
    struct kn_cu_chunks *c = &s->chunks;
    if (cu->record.now) return &none;
    if (c->serial == s->serial && c->q_heads == q_heads && c->kv_heads == kv->kv_heads &&
        c->head_dim == kv->head_dim)
        return c;
    *c = (struct kn_cu_chunks){.serial = s->serial,
                               .q_heads = q_heads,
                               .kv_heads = kv->kv_heads,
                               .head_dim = kv->head_dim};
    bool any = false;
    for (int32_t i = 0; i < b->seq_count; i++) any |= kn_cu_is_chunk(&b->seqs[i]);
    if (!any) return c;

    size_t seq_bytes = round_up((size_t)b->token_count * sizeof *b->token_seq, 16);
    size_t chunk_at = s->used, decode_at = chunk_at + seq_bytes, tiles_at = decode_at + seq_bytes;
    int32_t group = q_heads / kv->kv_heads;
    CHECK(group <= KN_CU_GROUP_MAX);
    CHECK(tiles_at + (size_t)kn_cu_prefill_tile_max(b, group) * sizeof *c->work.tiles <= s->bytes);
    int32_t *chunk_seq = (int32_t *)(s->host + chunk_at);
    int32_t *decode_seq = (int32_t *)(s->host + decode_at);
    for (int32_t t = 0; t < b->token_count; t++) {
        int32_t seq = b->token_seq[t];
        bool chunk = seq >= 0 && kn_cu_is_chunk(&b->seqs[seq]);
        chunk_seq[t] = chunk ? seq : -1;
        decode_seq[t] = chunk ? -1 : seq;
    }
    struct kn_cu_prefill_shape shape = {q_heads, kv->kv_heads, kv->head_dim, KN_CU_CHUNK_MIN,
                                        false};
    kn_cu_prefill_tiles(b, &shape, (struct kn_cu_prefill_tile *)(s->host + tiles_at), &c->work);
    c->work.tiles = (const struct kn_cu_prefill_tile *)(s->device + tiles_at);
    c->chunk_seq = (const int32_t *)(s->device + chunk_at);
    c->decode_seq = (const int32_t *)(s->device + decode_at);
    size_t end = tiles_at + (size_t)c->work.tile_count * sizeof *c->work.tiles;
    return send(cu, chunk_at, round_up(end, 16)) ? c : NULL;
}

bool kn_cu_begin(struct kn_cu *cu)
{
    cu->busy = true;
    return kn_cu_enter(cu) && kn_cu_issue_held(cu);
}

/* --- small operations --- */

size_t kn_cu_buffer_bytes(const struct kn *kn, int32_t rows, int32_t cols)
{
    (void)kn;
    int32_t whole = rows / KN_CU_TOKENS_MAX, rest = rows % KN_CU_TOKENS_MAX;
    size_t swizzled = (size_t)whole * kn_cu_act_bytes(KN_CU_TOKENS_MAX, cols);
    if (rest) swizzled += kn_cu_act_bytes(kn_cu_bucket(rest), cols);
    /* More tokens need more for activations than fewer do for sums as well. */
    if (rows <= KN_CU_SQUARES_TOKENS)
        swizzled += (size_t)rows * (size_t)kn_cu_sums_stride(cols) * sizeof(float);
    return size_max(swizzled, (size_t)rows * (size_t)cols * sizeof(float));
}

void kn_cu_embed(struct kn *kn, const struct kn_batch *batch, const struct kn_embed_args *a)
{
    struct kn_cu *cu = kn_cu_of(kn);
    char err[ERR_CAP];
    const struct kn_batch *b =
        kn_cu_begin(cu) && kn_cu_settle(cu) ? kn_cu_stage_batch(cu, batch) : NULL;
    if (b)
        kn_cu_st(cu,
                 kn_cu_embed_launch(b, a, cu->chosen, cu->control.device_traffic, cu->stream, err),
                 err);
}

void kn_cu_gather(struct kn *kn, const struct kn_batch *batch, int32_t cols, const float *x,
                  float *out)
{
    struct kn_cu *cu = kn_cu_of(kn);
    char err[ERR_CAP];
    const struct kn_batch *b = kn_cu_begin(cu) && kn_cu_settle(cu) ? stage_rows(cu, batch) : NULL;
    if (b && cu->record.now) cu->record.now->gathers = true;
    if (b) kn_cu_st(cu, kn_cu_gather_launch(b, cols, x, out, cu->stream, err), err);
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

double kn_cu_matrix_run(struct kn *kn)
{
    struct kn_cu *cu = kn_cu_of(kn);
    char err[ERR_CAP];
    if (!kn_cu_begin(cu)) return 0;
    float *sink = (float *)cu->stream_read; /* never written */
    kn_cu_st(cu, kn_cu_matrix_launch(cu->sm_count, sink, cu->stream, err), err);
    return kn_cu_matrix_operations(cu->sm_count);
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
