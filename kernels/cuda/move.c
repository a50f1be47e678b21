/*
 * move.c - pages of the KV cache, copied from tier to tier by the copy engine beside the steps.
 *
 *     main stream   step n-1 | event: issued | step n reads the page it is from | ...
 *     move stream            | wait for issued | copy, copy, ... | event: over
 *
 * A page is one run of memory, 8 MB of an 8B model, so that one copy moves it at the engine's full
 * rate.  One stream for all tiers and both ways: moves of one kind come in bursts, and in one order
 * there is nothing to argue about when a page that one move gave up is the next one's.
 *
 * Invariants
 *  1. A move begins when all that was issued before it is done.  Full pages are never written
 *     again, so this waits longer than the page it is from needs; it is for the page it is to,
 *     which a step in flight may still read as what it held before.
 *  2. Moves end in the order in which they were begun, so one count says which are over.
 *  3. The page a move was from may be written by what is issued once the move is over: whoever read
 *     it was issued before, in the main stream, and nothing there overtakes.
 *  4. Memory is freed, and kn_sync returns, when all moves are over.
 *  5. kn_moves_wait makes the main stream wait on the device: the host issues on, and the step's
 *     first work is not launched dependently, for a copy of the batch stands before it.
 *
 * Invariant 3 needs no event from the readers: the host learns of `over` (kn_moves_done) before it
 * issues the writer, or the writer's stream waits for it.
 */
#include "config/check.h"
#include "kernels/cuda/state.h"

enum status kn_cu_moves_open(struct kn_cu *cu, char *err)
{
    struct kn_cu_moves *m = &cu->moves;
    const unsigned flags = cudaEventDisableTiming;
    bool ok = kn_cu_ok(cu, cudaStreamCreateWithFlags(&m->stream, cudaStreamNonBlocking),
                       "to make a stream") &&
              kn_cu_ok(cu, cudaEventCreateWithFlags(&m->issued, flags), "to make an event");
    for (int i = 0; i < KN_MOVES_MAX && ok; i++)
        ok = kn_cu_ok(cu, cudaEventCreateWithFlags(&m->over[i], flags), "to make an event");
    return ok ? ST_OK : err_set(err, ST_DEVICE, "%s", cu->failure);
}

void kn_cu_moves_close(struct kn_cu *cu)
{
    struct kn_cu_moves *m = &cu->moves;
    if (m->stream) {
        (void)cudaStreamSynchronize(m->stream);
        (void)cudaStreamDestroy(m->stream);
    }
    if (m->issued) (void)cudaEventDestroy(m->issued);
    for (int i = 0; i < KN_MOVES_MAX; i++)
        if (m->over[i]) (void)cudaEventDestroy(m->over[i]);
}

/* The oldest call has ended. */
static void end_one(struct kn_cu_moves *m)
{
    CHECK(m->ended < m->begun);
    m->pages_ended += (uint64_t)m->pages[++m->ended % KN_MOVES_MAX];
}

bool kn_cu_moves_sync(struct kn_cu *cu)
{
    struct kn_cu_moves *m = &cu->moves;
    if (!m->stream || !kn_cu_ok(cu, cudaStreamSynchronize(m->stream), "in moving KV pages"))
        return false;
    while (m->ended < m->begun) end_one(m);
    return true;
}

static bool copy_page(struct kn_cu *cu, const struct kn_kv *kv, const struct kn_page_move *move)
{
    struct kn_cu_moves *m = &cu->moves;
    const size_t bytes = kn_kv_page_bytes(kv);
    const unsigned from = kn_page_tier(move->from), to = kn_page_tier(move->to);
    m->bytes[from] += bytes;
    if (to != from) m->bytes[to] += bytes;
    return kn_cu_ok(cu,
                    cudaMemcpyAsync(kn_kv_page(kv, move->to), kn_kv_page(kv, move->from), bytes,
                                    cudaMemcpyDefault, m->stream),
                    "to move a KV page");
}

void kn_cu_move_pages(struct kn *kn, const struct kn_kv *kv, const struct kn_page_move *moves,
                      int32_t count)
{
    struct kn_cu *cu = kn_cu_of(kn);
    struct kn_cu_moves *m = &cu->moves;
    CHECK(!cu->record.now);
    if (!kn_cu_begin(cu)) return;
    if (m->begun - m->ended == KN_MOVES_MAX) {
        cudaEvent_t oldest = m->over[(m->ended + 1) % KN_MOVES_MAX];
        if (!kn_cu_ok(cu, cudaEventSynchronize(oldest), "in moving KV pages")) return;
        end_one(m);
    }
    const unsigned i = ++m->begun % KN_MOVES_MAX;
    m->pages[i] = count;
    bool ok = kn_cu_ok(cu, cudaEventRecord(m->issued, cu->stream), "to record an event") &&
              kn_cu_ok(cu, cudaStreamWaitEvent(m->stream, m->issued, 0), "to wait");
    for (int32_t k = 0; k < count && ok; k++) ok = copy_page(cu, kv, &moves[k]);
    if (ok) kn_cu_ok(cu, cudaEventRecord(m->over[i], m->stream), "to record an event");
}

uint64_t kn_cu_moves_done(struct kn *kn)
{
    struct kn_cu *cu = kn_cu_of(kn);
    struct kn_cu_moves *m = &cu->moves;
    if (m->ended == m->begun || !kn_cu_enter(cu)) return m->pages_ended;
    while (m->ended < m->begun) {
        const cudaError_t e = cudaEventQuery(m->over[(m->ended + 1) % KN_MOVES_MAX]);
        if (e == cudaErrorNotReady) {
            (void)cudaGetLastError(); /* which keeps it, though nothing is wrong */
            break;
        }
        if (!kn_cu_ok(cu, e, "in moving KV pages")) break;
        end_one(m);
    }
    return m->pages_ended;
}

void kn_cu_moves_wait(struct kn *kn)
{
    struct kn_cu *cu = kn_cu_of(kn);
    struct kn_cu_moves *m = &cu->moves;
    CHECK(!cu->record.now);
    if (m->ended < m->begun && kn_cu_begin(cu))
        kn_cu_ok(cu, cudaStreamWaitEvent(cu->stream, m->over[m->begun % KN_MOVES_MAX], 0),
                 "to wait");
}
