/*
 * stage.c - remote weights of decode steps, brought into HBM by the copy engine ahead of the
 * products (kn_stage).
 *
 * fetch.c does the same for prompts, with events and the order of streams.  Here the products are
 * recorded in graphs, start before the product before them has ended, and are a few microseconds
 * long, so copies and products pass each other words in device memory instead, one a place
 * (kernels/stage.h):
 *
 *     word = 0    the place may be filled: nobody reads what was there
 *     word = 1    what is staged of the weight is there
 *
 *     copy stream   | word of the way 0? | copy | word := 1 | next place ..
 *     product       .. | word 1? | reads the place as local tiles
 *     the next one  .. waits for the kernels before it | word := 0
 *
 * A link rests for 6 us between two copies that words pass between.  So in a chain, small places
 * that follow each other go as a run, up to a quarter of the ring: the words of all their ways are
 * asked before the first copy, and their own are written after the last.
 *
 * All steps issue the same products in the same order, so what a step copies, where to and after
 * whom is the same as well.  The copies of a step that is played are a graph of their own, the
 * chain, launched before the step's; that one knows nothing of it but addresses.  The host is a
 * step ahead, so the next step's chain is in the queue while this one is computed, and copies run
 * on across the end of a step as far as the ring has room.
 *
 * What has been read is given back by the next product of the step, whichever weight it has: one
 * thread that has waited for the kernels before (griddepcontrol.wait, which a kernel passes when
 * all before it have ended) writes the word.  Where none follows, a copy to the word does
 * (kn_cu_staging_settle).
 *
 * Nobody waits for ever.  A product waits for its own run's copies alone.  These wait for the
 * copies before them, and for the run's ways to be read, which come before the run's first product;
 * a place is given back by a kernel no later than that one, by a thread that waits for the kernels
 * before alone.  So the first product that has not ended, which is in the run that it waits for or
 * behind it, waits for copies that wait for products that have.  A kernel that spins keeps none
 * from running that it waits for: all CTAs of the older ones are on SMs when its first begins.  The
 * chain has a stream of its own, of the highest priority, so that it shares no queue with kernels
 * that wait for it, and no kernels in it.
 *
 * Beyond that, whatever is in the queue waits for what is in the queue: between two operations of
 * an issued step the host may load a kernel or allocate memory, which waits for all streams.  So a
 * step that is issued enqueues the copy of each place right before its product, when its way has
 * been told to be given back, and a chain is followed by its step at once.  (With the chain
 * launched at the first product of an issued step a test hung, most likely at a kernel that was
 * loaded later in it.)  Nothing is loaded between the two: the kernels of a recording are on the
 * device before it can be played, for it was issued before, captured and uploaded (record.c); and
 * a copy of an issued step waits for what is in the queue alone, so that whoever loads a kernel
 * behind it waits for an end that comes.
 *
 * Invariants
 *  1. Only copies write 1, in order of places; only a kernel or copy of the main stream after the
 *     place's product writes 0.  When nothing is in the queue all words are 0.
 *  2. All copies are in one stream, so that a word which is 0 because it is not yet filled is not
 *     taken for one that has been read.
 *  3. The first product of a step is not launched dependently: words that the step before read are
 *     0 when a kernel of this one looks at them, but for the last, which that product clears.
 *  4. Copies are ended when the main stream has come to the end of their step: every place has a
 *     product that waits for it.  Remote memory may then be changed or freed.
 *  5. Where remote memory is changed by a copy in the main stream (kn_cu_upload), the next copy
 *     waits for it.
 *  6. Steps of more than KN_STAGE_TOKENS tokens touch no words.
 *  7. Copies count to their tier when they are enqueued.
 *
 * Floor of a step that the link binds: remote bytes over the copy engine's rate, 55.6 GB/s over
 * PCIe.  Predicted: 0.96 of it from 5 % of an 8B model on, for a copy takes 2.7 us to begin and its
 * words as long again, against 98 us for the mean 5.5 MB of a copy.
 *
 * Measured on two H200s, the products of Llama-3.1-8B at 1 token as a recorded step (3.4 ms with
 * all in HBM; tests/gpu_stage --bench), GB/s of remote bytes over the whole step, by how much of
 * each weight is remote, nothing staged and all of it, in a ring of two layers' bytes:
 *     host memory    1 %  38 -> 37   2 %  48.8 -> 45.9   5 %  49.7 -> 50.5   10 %  49.9 -> 52.2
 *                    30 %  51.0 -> 54.9   100 %  51.3 -> 55.2
 *     another GPU    7 %  301 -> 240   10 %  354 -> 282   20 %  370 -> 340   30 %  371 -> 358
 *                    50 %  373 -> 373   100 %  374 -> 382
 * (100 %: of an earlier run, in which host memory gave 52.1 at 5 % and 53.5 at 10 %) and of another
 * GPU's with a fifth staged: 10 % 361, 15 % 365, 20 % 375, 30 % 377, 50 % 379, 100 % 380; with
 * more, less again (30 %, two fifths: 367).  So over PCIe all is best staged beyond about 4 %, over
 * NVLink a fifth beyond 15 %, and nothing where HBM binds: there the word that a product looks at
 * before it fills its rings costs 1 us a product, 3 to 5 % of a step.  Rings of 1, 2, 4 and 8
 * layers: 51.9, 52.1, 52.2, 52.1 GB/s (host, 5 %), 373, 378, -, 377 (another GPU, 30 %, a fifth).
 * The host enqueues a chain of 128 copies in 0.27 ms.  5 % over PCIe stays below the 0.96 that was
 * predicted: 0.94 at best.
 *
 * Runs: the same at 8 and at 64 tokens, all staged, ring of two layers, ms a step without runs and
 * with:
 *     host memory    1.1 %  3.79 -> 3.76, 3.95 -> 3.95   2 %  5.92 -> 5.76, 6.02 -> 5.84
 *                    5 %  13.39 -> 13.23, 13.40 -> 13.25   10 %  25.97 -> 25.80, 25.96 -> 25.84
 * Runs of half the ring: 2 % 5.81, 5.80, 10 % 26.00, 26.06: the ring has too little ahead.
 *
 * Tried and dropped: two and four chains side by side, in rings of their own, to hide the 5.5 us
 * between copies (alone, 6 MB each: 53.0, 53.7 and 54.2 GB/s; in steps no difference).
 */
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "kernels/cuda/state.h"

_Static_assert(KN_STAGE_TOKENS == KN_CU_DECODE_MAX, "whose kernels know what is staged");

#define MIB 1048576.0
/* A run of places has so many at most, and of the ring's bytes one in so many. */
#define RUN_PLACES 8
#define RING_RUNS 4

static enum status failed(const struct kn_cu *cu, char *err)
{
    return cu->failure[0] ? err_set(err, ST_DEVICE, "%s", cu->failure) : ST_OK;
}

/* --- copies --- */

static uint32_t *word_of(const struct kn_cu_staging *s, int32_t place)
{
    return s->words + (size_t)place * KN_CU_WORD_STRIDE;
}

static CUstreamBatchMemOpParams wait_op(const struct kn_cu_staging *s, int32_t place)
{
    CUstreamBatchMemOpParams op = {0};
    op.waitValue.operation = CU_STREAM_MEM_OP_WAIT_VALUE_32;
    op.waitValue.address = (CUdeviceptr)(uintptr_t)word_of(s, place);
    op.waitValue.flags = CU_STREAM_WAIT_VALUE_EQ;
    return op;
}

static CUstreamBatchMemOpParams write_op(const struct kn_cu_staging *s, int32_t place)
{
    CUstreamBatchMemOpParams op = {0};
    op.writeValue.operation = CU_STREAM_MEM_OP_WRITE_VALUE_32;
    op.writeValue.address = (CUdeviceptr)(uintptr_t)word_of(s, place);
    op.writeValue.value = 1;
    op.writeValue.flags = CU_STREAM_WRITE_VALUE_DEFAULT; /* after all that was copied */
    return op;
}

static bool enqueue_ops(struct kn_cu *cu, CUstreamBatchMemOpParams *ops, unsigned count)
{
    const CUresult e = cu->staging.mem_ops((CUstream)cu->staging.stream, count, ops, 0);
    char err[ERR_CAP] = "";
    if (e == CUDA_SUCCESS) return true;
    enum status st = err_set(err, ST_DEVICE, "a stream memory operation failed: CUDA error %d", e);
    return kn_cu_st(cu, st, err);
}

/* Where a run of places ends that begins at `begin`: none of them has another in its way. */
static int32_t run_end(const struct kn_cu_staging *s, int32_t begin, int32_t end)
{
    size_t bytes = s->places[begin].bytes;
    int32_t i = begin + 1;
    for (; i < end && i < begin + RUN_PLACES; i++) {
        bytes += s->places[i].bytes;
        if (bytes > s->bytes / RING_RUNS) break;
        if (s->places[i].way >= begin && s->places[i].way < i) break;
    }
    return i;
}

static bool enqueue_copies(struct kn_cu *cu, const struct kn_stage_place *p)
{
    struct kn_cu_staging *s = &cu->staging;
    for (int32_t k = p->item; k < p->item + p->item_count; k++)
        if (!kn_cu_ok(cu,
                      cudaMemcpyAsync(s->copy[k].to, s->copy[k].from, s->copy[k].bytes,
                                      cudaMemcpyDefault, s->stream),
                      "to stage weights"))
            return false;
    return true;
}

/* Of places [begin, end), run by run: when the ways of all have been read.  What is said after one
 * run and asked before the next is one operation. */
static bool enqueue_places(struct kn_cu *cu, int32_t begin, int32_t end)
{
    struct kn_cu_staging *s = &cu->staging;
    CUstreamBatchMemOpParams ops[2 * RUN_PLACES];
    unsigned count = 0;
    for (int32_t run = begin, next; run < end; run = next) {
        next = run_end(s, run, end);
        for (int32_t i = run; i < next; i++) ops[count++] = wait_op(s, s->places[i].way);
        if (!enqueue_ops(cu, ops, count)) return false;
        count = 0;
        for (int32_t i = run; i < next; i++) {
            if (!enqueue_copies(cu, &s->places[i])) return false;
            ops[count++] = write_op(s, i);
        }
    }
    return enqueue_ops(cu, ops, count);
}

/* Before places [begin, end) are enqueued, or a chain of them is launched. */
static bool before_copies(struct kn_cu *cu, int32_t begin, int32_t end)
{
    struct kn_cu_staging *s = &cu->staging;
    if (s->behind &&
        !kn_cu_ok(cu, cudaStreamWaitEvent(s->stream, cu->fetch.uploaded, 0), "to wait"))
        return false;
    s->behind = false;
    for (int32_t k = s->places[begin].item;
         k < s->places[end - 1].item + s->places[end - 1].item_count; k++)
        cu->fetch.bytes[s->copy[k].tier] += s->copy[k].bytes;
    return true;
}

static bool make_chain(struct kn_cu *cu)
{
    struct kn_cu_staging *s = &cu->staging;
    cudaGraph_t graph = NULL;
    if (!kn_cu_ok(cu, cudaStreamBeginCapture(s->stream, cudaStreamCaptureModeThreadLocal),
                  "to record copies"))
        return false;
    const bool enqueued = enqueue_places(cu, 0, s->count);
    cudaError_t e = cudaStreamEndCapture(s->stream, &graph); /* after a failure, too */
    bool ok = enqueued && kn_cu_ok(cu, e, "to record copies") &&
              kn_cu_ok(cu, cudaGraphInstantiate(&s->chain, graph, 0), "to keep recorded copies") &&
              kn_cu_ok(cu, cudaGraphUpload(s->chain, s->stream), "to keep recorded copies") &&
              kn_cu_ok(cu, cudaStreamSynchronize(s->stream), "to keep recorded copies");
    if (graph) (void)cudaGraphDestroy(graph);
    return ok;
}

/* --- opening and closing --- */

/* A chain whose step could not be launched waits for ever: lets its copies through, one after
 * another.  Nothing is under way in the main stream. */
static void drain(struct kn_cu *cu)
{
    struct kn_cu_staging *s = &cu->staging;
    const size_t bytes = (size_t)s->count * KN_CU_WORD_STRIDE * sizeof *s->words;
    cudaError_t e = s->chain ? cudaStreamQuery(s->stream) : cudaSuccess;
    while (e == cudaErrorNotReady) {
        e = cudaMemsetAsync(s->words, 0, bytes, cu->stream);
        if (e == cudaSuccess) e = cudaStreamSynchronize(cu->stream);
        if (e == cudaSuccess) e = cudaStreamQuery(s->stream);
    }
    (void)cudaGetLastError(); /* of a device that has failed */
}

void kn_cu_staging_close(struct kn_cu *cu)
{
    struct kn_cu_staging *s = &cu->staging;
    drain(cu);
    if (s->chain) (void)cudaGraphExecDestroy(s->chain);
    if (s->stream) (void)cudaStreamDestroy(s->stream);
    if (s->words) (void)cudaFree(s->words);
    if (s->raw) (void)cudaFree(s->raw);
    free(s->places);
    free(s->copy);
    *s = (struct kn_cu_staging){.unread = -1};
}

static enum status find_mem_ops(struct kn_cu *cu, char *err)
{
    enum cudaDriverEntryPointQueryResult found;
    void *mem_ops = NULL;
    if (!kn_cu_ok(cu,
                  cudaGetDriverEntryPointByVersion("cuStreamBatchMemOp", &mem_ops, 12000,
                                                   cudaEnableDefault, &found),
                  "to say what its driver can do"))
        return failed(cu, err);
    memcpy(&cu->staging.mem_ops, &mem_ops, sizeof mem_ops);
    if (mem_ops && found == cudaDriverEntryPointSuccess) return ST_OK;
    return err_set(err, ST_UNSUPPORTED,
                   "the driver of GPU %d has no stream memory operations, by which weights are "
                   "staged: update it, or give --offload-mode direct",
                   cu->device);
}

static enum status alloc_ring(struct kn_cu *cu, size_t bytes, char *err)
{
    struct kn_cu_staging *s = &cu->staging;
    const size_t word_bytes = (size_t)s->count * KN_CU_WORD_STRIDE * sizeof *s->words;
    cudaError_t e = cudaMalloc((void **)&s->raw, bytes + KN_ALIGN);
    if (e == cudaSuccess) e = cudaMalloc((void **)&s->words, word_bytes);
    if (e == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return err_set(err, ST_NOMEM,
                       "cannot allocate %.0f MiB on GPU %d for staged weights: lower "
                       "--offload-staging-bytes or --prefetch-layers",
                       (double)(bytes + word_bytes) / MIB, cu->device);
    }
    if (!kn_cu_ok(cu, e, "to allocate memory") ||
        !kn_cu_ok(cu, cudaMemsetAsync(s->words, 0, word_bytes, cu->stream), "to clear memory") ||
        !kn_cu_ok(cu, cudaStreamSynchronize(cu->stream), "in a step"))
        return failed(cu, err);
    s->memory = (char *)round_up((uintptr_t)s->raw, KN_ALIGN);
    s->bytes = bytes;
    return ST_OK;
}

/* From where to where each item travels. */
static void note_copies(struct kn_cu_staging *s, const struct kn_stage_item *items)
{
    for (int32_t i = 0; i < s->count; i++) {
        const struct kn_stage_place *p = &s->places[i];
        const size_t tile_bytes = kn_weight_tile_bytes(p->w);
        struct kn_stage_tiles all, each[KN_TIER_MAX];
        CHECK(kn_stage_tiles_of(items + p->item, p->item_count, &all, each));
        for (int32_t k = 0; k < p->item_count; k++) {
            const int32_t tier = items[p->item + k].tier;
            const struct kn_span *span = &p->w->span[tier];
            s->copy[p->item + k] = (struct kn_cu_staged_copy){
                .from = (const char *)span->base +
                        (size_t)(each[k].begin - span->tile_begin) * tile_bytes,
                .to = s->memory + p->begin + (size_t)(each[k].begin - all.begin) * tile_bytes,
                .bytes = (size_t)(each[k].end - each[k].begin) * tile_bytes,
                .tier = tier};
        }
    }
}

static enum status open_staging(struct kn_cu *cu, const struct kn_stage_item *items, int32_t count,
                                size_t bytes, char *err)
{
    struct kn_cu_staging *s = &cu->staging;
    int least, greatest;
    size_t used;
    enum status st = find_mem_ops(cu, err);
    if (st) return st;
    s->places = calloc((size_t)count, sizeof *s->places);
    s->copy = calloc((size_t)count, sizeof *s->copy);
    if (!s->places || !s->copy)
        return err_set(err, ST_NOMEM, "no memory for the places of %d weights", count);
    s->count = kn_stage_layout(items, count, bytes, s->places, &used);
    if (s->count < 0) {
        s->count = 0;
        return err_set(err, ST_LIMIT,
                       "%.1f MiB of a [%d,%d] weight are to be staged in a ring of %.1f MiB: raise "
                       "--offload-staging-bytes",
                       (double)s->places[0].bytes / MIB, s->places[0].w->rows, s->places[0].w->cols,
                       (double)bytes / MIB);
    }
    if ((st = alloc_ring(cu, used, err))) return st;
    note_copies(s, items);
    if (kn_cu_ok(cu, cudaDeviceGetStreamPriorityRange(&least, &greatest),
                 "to say which streams it has") &&
        kn_cu_ok(cu, cudaStreamCreateWithPriority(&s->stream, cudaStreamNonBlocking, greatest),
                 "to make a stream"))
        (void)make_chain(cu);
    return failed(cu, err);
}

enum status kn_cu_stage(struct kn *kn, const struct kn_stage_item *items, int32_t count,
                        size_t bytes, char *err)
{
    struct kn_cu *cu = kn_cu_of(kn);
    CHECK(!cu->steps.open && !cu->record.now);
    if (!kn_cu_begin(cu) || !kn_cu_settle(cu) || !kn_cu_staging_settle(cu) ||
        !kn_cu_ok(cu, cudaStreamSynchronize(cu->stream), "in a step"))
        return failed(cu, err);
    kn_cu_record_drop(cu);
    kn_cu_staging_close(cu);
    if (count == 0) return ST_OK;
    enum status st = open_staging(cu, items, count, bytes, err);
    if (st) kn_cu_staging_close(cu);
    return st;
}

/* --- steps --- */

bool kn_cu_staging_start(struct kn_cu *cu)
{
    struct kn_cu_staging *s = &cu->staging;
    if (s->count == 0) return true;
    CHECK(s->next == 0 && s->unread < 0);
    return before_copies(cu, 0, s->count) &&
           kn_cu_ok(cu, cudaGraphLaunch(s->chain, s->stream), "to stage weights");
}

bool kn_cu_staging_next(struct kn_cu *cu, const struct kn_gemm_args *a, int32_t *place)
{
    struct kn_cu_staging *s = &cu->staging;
    const int32_t i = s->next;
    *place = -1;
    if (s->count == 0 || a->row_count > KN_STAGE_TOKENS) return true;
    if (s->places[i].w != a->w) {
        for (int32_t k = 0; k < s->count; k++) CHECK(s->places[k].w != a->w); /* out of order */
        return true;
    }
    *place = i;
    s->next = (i + 1) % s->count;
    if (cu->record.now) return true;
    if (s->places[i].way == s->unread && !kn_cu_staging_settle(cu)) return false;
    return before_copies(cu, i, i + 1) && enqueue_places(cu, i, i + 1);
}

struct kn_cu_staged kn_cu_staged_of(struct kn_cu *cu, int32_t place)
{
    struct kn_cu_staging *s = &cu->staging;
    struct kn_cu_staged staged = {0};
    if (s->count == 0) return staged;
    if (s->unread >= 0) staged.read = word_of(s, s->unread);
    s->unread = place;
    if (place < 0) return staged;
    const struct kn_stage_place *p = &s->places[place];
    staged.base = s->memory + p->begin;
    staged.tile_begin = p->tiles.begin;
    staged.tile_end = p->tiles.end;
    staged.word = word_of(s, place);
    return staged;
}

bool kn_cu_staging_settle(struct kn_cu *cu)
{
    struct kn_cu_staging *s = &cu->staging;
    if (s->count == 0 || s->unread < 0) return true;
    uint32_t *word = word_of(s, s->unread);
    s->unread = -1;
    return kn_cu_ok(cu, cudaMemsetAsync(word, 0, sizeof *word, cu->stream), "to clear a word");
}
