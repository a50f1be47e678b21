/*
 * record.c - steps in flight, and steps recorded as CUDA graphs.
 *
 * In flight.  A step is fenced by two events in the stream, so that its end can be waited for while
 * the next one runs, and its time is known.  Of two steps in flight the first has begun to run and
 * the second is all in the stream: the GPU never waits for the host.
 *
 * Recorded.  A step of up to 256 tokens is captured once per token bucket, padded to it: the grids,
 * the layout of activations and the cuts of every reduction depend on the bucket alone
 * (kernels/cuda/cuda.h), so a padded step gives each token the bits that an unpadded one would.
 * What differs between two steps is data, not arguments: struct kn_cu_play, at a fixed address,
 * filled by one copy from pinned memory in front of the graph.
 *
 *     arguments, frozen       bucket, addresses, shapes, strides
 *     device memory           token ids, positions, sequences, page tables, rows, sampling, windows
 *
 * Absent tokens are token 0 at position 0 of no sequence (token_seq -1), which the kernels around
 * attention skip; in the products and norms they are rows like others, finite and never mixed with
 * them.  The token a sequence was given in the step before comes from `chosen`, on the device.
 *
 * Launches that may start early (programmatic dependent launch) are captured as programmatic edges;
 * the first kernel has none and starts when the copy is done.
 *
 * Larger steps are issued.  One of 512 tokens computes for 15 ms (8B shape), in which a host that
 * is a step ahead issues its some 270 launches twenty times over: 0.0002 of the time were spent
 * outside the device.  A recording would be padded, too: 300 tokens' products to those of 512.
 *
 * Invariants
 *  1. A recording makes its own attention plans: what is known of plans made before is forgotten
 *     when a recording begins, ends and is played.
 *  2. Nothing is allocated while a step is recorded: it has been issued before.
 *  3. Products held or left in parts are done before a recording begins, ends and is played:
 *     recorded kernels use the same memory for parts.
 *  4. Recordings know addresses, so they are all dropped where memory older than the last of them
 *     is freed, and where attention gets a new workspace.
 */
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "kernels/cuda/state.h"

#define PLAY_BYTES (sizeof(struct kn_cu_play) + KN_CU_PLAY_PAGES * sizeof(kn_page))

static enum status failed(const struct kn_cu *cu, char *err)
{
    return cu->failure[0] ? err_set(err, ST_DEVICE, "%s", cu->failure) : ST_OK;
}

/* --- steps in flight --- */

enum status kn_cu_steps_open(struct kn_cu *cu, char *err)
{
    struct kn_cu_steps *s = &cu->steps;
    for (int i = 0; i < KN_CU_STEP_EVENTS; i++)
        if (!kn_cu_ok(cu, cudaEventCreate(&s->begin[i]), "to make an event") ||
            !kn_cu_ok(cu, cudaEventCreate(&s->end[i]), "to make an event"))
            break;
    return failed(cu, err);
}

void kn_cu_steps_close(struct kn_cu *cu)
{
    kn_cu_record_drop(cu);
    for (int i = 0; i < KN_CU_STEP_EVENTS; i++) {
        if (cu->steps.begin[i]) (void)cudaEventDestroy(cu->steps.begin[i]);
        if (cu->steps.end[i]) (void)cudaEventDestroy(cu->steps.end[i]);
    }
    for (int i = 0; i < KN_CU_STEPS; i++)
        if (cu->record.host[i]) (void)cudaFreeHost(cu->record.host[i]);
    if (cu->record.device) (void)cudaFree(cu->record.device);
}

void kn_cu_step_begin(struct kn *kn)
{
    struct kn_cu *cu = kn_cu_of(kn);
    struct kn_cu_steps *s = &cu->steps;
    CHECK(!s->open && s->begun - s->waited < KN_CU_STEPS);
    s->open = true;
    s->begun++;
    cu->record.played = false;
    kn_cu_stage_forget(cu);
    if (kn_cu_begin(cu))
        kn_cu_ok(cu, cudaEventRecord(s->begin[s->begun % KN_CU_STEP_EVENTS], cu->stream),
                 "in a step");
}

uint64_t kn_cu_step_end(struct kn *kn)
{
    struct kn_cu *cu = kn_cu_of(kn);
    struct kn_cu_steps *s = &cu->steps;
    CHECK(s->open);
    s->open = false;
    s->asked[s->begun % KN_CU_STEPS] = false;
    if (kn_cu_begin(cu) && kn_cu_settle(cu) && kn_cu_staging_settle(cu)) {
        s->asked[s->begun % KN_CU_STEPS] = kn_cu_reading_ask(cu);
        kn_cu_ok(cu, cudaEventRecord(s->end[s->begun % KN_CU_STEP_EVENTS], cu->stream),
                 "in a step");
    }
    return s->begun;
}

/* Between two events that have come to pass. */
static uint64_t elapsed_ns(struct kn_cu *cu, cudaEvent_t from, cudaEvent_t to)
{
    float ms = 0;
    if (!kn_cu_ok(cu, cudaEventElapsedTime(&ms, from, to), "to say how long it took")) return 0;
    return ms > 0 ? (uint64_t)((double)ms * 1e6) : 0;
}

enum status kn_cu_step_wait(struct kn *kn, uint64_t step, uint64_t *busy_ns, char *err)
{
    struct kn_cu *cu = kn_cu_of(kn);
    struct kn_cu_steps *s = &cu->steps;
    unsigned i = step % KN_CU_STEPS, at = step % KN_CU_STEP_EVENTS,
             before = (step - 1) % KN_CU_STEP_EVENTS;
    *busy_ns = s->idle_ns = 0;
    CHECK(!s->open && step == s->waited + 1 && step <= s->begun);
    if (kn_cu_enter(cu) && kn_cu_ok(cu, cudaEventSynchronize(s->end[at]), "in a step")) {
        *busy_ns = elapsed_ns(cu, s->begin[at], s->end[at]);
        if (step > 1) s->idle_ns = elapsed_ns(cu, s->end[before], s->begin[at]);
    }
    if (cu->failure[0]) return failed(cu, err);
    if (s->asked[i]) kn_cu_reading_take(cu);
    s->asked[i] = false;
    s->waited = step;
    if (step != s->begun) return ST_OK;
    cu->busy = false; /* nothing came after it */
    kn_cu_stage_reset(cu);
    return ST_OK;
}

uint64_t kn_cu_step_idle_ns(const struct kn *kn)
{
    return ((const struct kn_cu *)kn)->steps.idle_ns;
}

/* --- recording --- */

int32_t kn_cu_record_tokens(const struct kn *kn, int32_t tokens)
{
    (void)kn;
    return tokens <= KN_CU_TOKENS_MAX ? kn_cu_bucket(tokens) : 0;
}

void kn_cu_record_drop(struct kn_cu *cu)
{
    struct kn_cu_record *r = &cu->record;
    for (int32_t i = 0; i < r->count; i++)
        if (r->made[i].exec) (void)cudaGraphExecDestroy(r->made[i].exec);
    r->count = 0;
}

/* Plans, batches and activations on the device are no longer what was noted of them. */
static void forget(struct kn_cu *cu)
{
    memset(cu->attend.planned, 0, sizeof cu->attend.planned);
    kn_cu_stage_forget(cu);
    kn_cu_forget_undivided(cu, NULL, SIZE_MAX);
}

static bool alloc_play(struct kn_cu *cu)
{
    struct kn_cu_record *r = &cu->record;
    if (r->host[KN_CU_STEPS - 1]) return true;
    if (!kn_cu_ok(cu, cudaMalloc((void **)&r->device, PLAY_BYTES), "to allocate a step's arrays"))
        return false;
    for (int i = 0; i < KN_CU_STEPS; i++)
        if (!kn_cu_ok(cu, cudaHostAlloc((void **)&r->host[i], PLAY_BYTES, 0),
                      "to pin a step's arrays"))
            return false;
    return true;
}

static struct kn_cu_recording *recording_of(struct kn_cu *cu, int32_t bucket)
{
    struct kn_cu_record *r = &cu->record;
    for (int32_t i = 0; i < r->count; i++)
        if (r->made[i].bucket == bucket) return &r->made[i];
    return NULL;
}

enum status kn_cu_record_begin(struct kn *kn, int32_t tokens, char *err)
{
    struct kn_cu *cu = kn_cu_of(kn);
    struct kn_cu_record *r = &cu->record;
    CHECK(!r->now && !cu->steps.open && !recording_of(cu, tokens));
    CHECK(r->count < KN_CU_RECORDINGS_MAX && cu->chosen);
    if (!kn_cu_begin(cu) || !kn_cu_settle(cu) || !kn_cu_staging_settle(cu) || !alloc_play(cu))
        return failed(cu, err);
    r->batch = (struct kn_batch){.token_count = tokens,
                                 .tokens = r->device->tokens,
                                 .positions = r->device->positions,
                                 .token_seq = r->device->token_seq,
                                 .seq_count = tokens,
                                 .seqs = r->device->seqs,
                                 .pages = r->device->pages,
                                 .row_count = tokens,
                                 .rows = r->device->rows};
    if (!kn_cu_ok(cu, cudaStreamBeginCapture(cu->stream, cudaStreamCaptureModeThreadLocal),
                  "to record a step"))
        return failed(cu, err);
    r->now = &r->made[r->count];
    r->region_serial = cu->region_serial;
    *r->now = (struct kn_cu_recording){.bucket = tokens};
    forget(cu);
    cu->stage.serial++; /* plans are those of a batch, and this is one */
    return ST_OK;
}

/* Counts the edges of a graph that let the later kernel start early; with `full` it makes of them
 * such as do not. */
static bool count_dependent(struct kn_cu *cu, cudaGraph_t graph, bool full, size_t *out)
{
    size_t count = 0, early = 0;
    *out = 0;
    if (!kn_cu_ok(cu, cudaGraphGetEdges(graph, NULL, NULL, NULL, &count), "to record a step"))
        return false;
    cudaGraphNode_t *from = calloc(count + 1, sizeof(cudaGraphNode_t));
    cudaGraphNode_t *to = calloc(count + 1, sizeof(cudaGraphNode_t));
    cudaGraphEdgeData *edges = calloc(count + 1, sizeof *edges);
    bool ok = from && to && edges ? kn_cu_ok(cu, cudaGraphGetEdges(graph, from, to, edges, &count),
                                             "to record a step")
                                  : kn_cu_st(cu, ST_NOMEM, "no memory to look at a recorded step");
    for (size_t i = 0; i < count && ok; i++) {
        if (edges[i].type != cudaGraphDependencyTypeProgrammatic) continue;
        from[early] = from[i], to[early] = to[i], edges[early++] = edges[i];
    }
    if (ok && full && early)
        ok = kn_cu_ok(cu, cudaGraphRemoveDependencies(graph, from, to, edges, early),
                      "to record a step") &&
             kn_cu_ok(cu, cudaGraphAddDependencies(graph, from, to, NULL, early),
                      "to record a step");
    else *out = early;
    free(from);
    free(to);
    free(edges);
    return ok;
}

enum status kn_cu_record_end(struct kn *kn, char *err)
{
    struct kn_cu *cu = kn_cu_of(kn);
    struct kn_cu_recording *now = cu->record.now;
    cudaGraph_t graph = NULL;
    CHECK(now);
    if (kn_cu_settle(cu)) (void)kn_cu_staging_settle(cu);
    cu->record.now = NULL;
    forget(cu);
    cudaError_t e = cudaStreamEndCapture(cu->stream, &graph); /* after a failure, too */
    bool ok =
        kn_cu_ok(cu, e, "to record a step") && !cu->failure[0] &&
        count_dependent(cu, graph, cu->without & KN_WITHOUT_DEPENDENT_LAUNCH, &now->dependent) &&
        kn_cu_ok(cu, cudaGraphInstantiate(&now->exec, graph, 0), "to keep a recorded step");
    if (graph) (void)cudaGraphDestroy(graph);
    if (!ok) return failed(cu, err);
    cu->record.count++;
    CHECK(now->logits);
    kn_cu_ok(cu, cudaGraphUpload(now->exec, cu->stream), "to keep a recorded step");
    return failed(cu, err);
}

/* --- playing --- */

static bool serves(const struct kn_cu *cu, const struct kn_cu_recording *r,
                   const struct kn_batch *b, const struct kn_sample_args *a, size_t page_count)
{
    if (b->row_count < 1 || b->row_count > r->bucket || kn_cu_bucket(b->row_count) != r->bucket)
        return false;
    if (!r->gathers && !kn_rows_in_order(b)) return false;
    CHECK(a->row_count <= b->row_count && a->logits == r->logits && a->vocab == r->vocab);
    for (int32_t i = 0; i < b->seq_count; i++) /* prefill attention's, which is not recorded */
        if (kn_cu_is_chunk(&b->seqs[i])) return false;
    for (int32_t i = 0; i < r->window_count; i++)
        if (kn_cu_plan_end(&cu->attend.a, b->positions, r->window[i], 0, b->token_count) !=
            b->token_count)
            return false;
    return page_count <= KN_CU_PLAY_PAGES;
}

/* The step's arrays, padded to the bucket. */
static void fill(struct kn_cu_play *p, int32_t bucket, const struct kn_batch *b,
                 const struct kn_sample_args *a, size_t page_count)
{
    const size_t T = (size_t)b->token_count, absent = (size_t)(bucket - b->token_count);
    const size_t R = (size_t)b->row_count, no_row = (size_t)(bucket - b->row_count);
    memcpy(p->tokens, b->tokens, T * sizeof *p->tokens);
    memcpy(p->positions, b->positions, T * sizeof *p->positions);
    memcpy(p->token_seq, b->token_seq, T * sizeof *p->token_seq);
    memcpy(p->rows, b->rows, R * sizeof *p->rows);
    memset(p->tokens + T, 0, absent * sizeof *p->tokens);
    memset(p->positions + T, 0, absent * sizeof *p->positions);
    memset(p->token_seq + T, 0xFF, absent * sizeof *p->token_seq); /* -1 */
    memset(p->rows + R, 0, no_row * sizeof *p->rows);
    memcpy(p->seqs, b->seqs, (size_t)b->seq_count * sizeof *p->seqs);
    memcpy(p->pages, b->pages, page_count * sizeof *p->pages);
    p->sample.out = a->out;
    p->sample.row_count = a->row_count;
    if (a->row_count) memcpy(p->sample.row, a->rows, (size_t)a->row_count * sizeof *a->rows);
}

bool kn_cu_play(struct kn *kn, const struct kn_batch *b, const struct kn_sample_args *a)
{
    struct kn_cu *cu = kn_cu_of(kn);
    struct kn_cu_record *r = &cu->record;
    const struct kn_cu_recording *one = recording_of(cu, kn_cu_bucket(b->token_count));
    size_t page_count = kn_cu_page_count(b);
    CHECK(cu->steps.open && !r->played);
    if (!one || !serves(cu, one, b, a, page_count)) return false;
    CHECK(b->seq_count <= KN_CU_TOKENS_MAX);
    r->played = true;
    if (!kn_cu_begin(cu) || !kn_cu_settle(cu) || !kn_cu_staging_settle(cu))
        return true; /* kn_step_wait says what failed */
    /* The step that used this image before has been waited for. */
    struct kn_cu_play *image = r->host[cu->steps.begun % KN_CU_STEPS];
    fill(image, one->bucket, b, a, page_count);
    forget(cu);
    if (kn_cu_ok(cu,
                 cudaMemcpyAsync(r->device, image, sizeof *image + page_count * sizeof(kn_page),
                                 cudaMemcpyHostToDevice, cu->stream),
                 "to copy the step's arrays") &&
        (one->bucket > KN_STAGE_TOKENS || kn_cu_staging_start(cu)))
        kn_cu_ok(cu, cudaGraphLaunch(one->exec, cu->stream), "to play a recorded step");
    return true;
}
