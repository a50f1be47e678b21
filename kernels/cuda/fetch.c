/*
 * fetch.c - remote weights of prompts, brought into HBM by the copy engine ahead of the products.
 *
 * A product of more than 256 tokens has several tiles of tokens, and remote memory is not cached in
 * L2: read where they lie, weights cross the link once for every cluster of CTAs that wants them.
 * Copied once, they are read from HBM as often as anybody likes; the copy engine moves more over
 * the link than kernels do (55.6 against 51.5 GB/s over PCIe, 397 against 377 over NVLink); and
 * copies run while other products, attention and the next step's embedding are computed.
 *
 *     copy stream    | wait for who had the place before | copy | event: copied
 *     main stream    ... earlier work ... | wait for copied | product reads the ring | event: used
 *
 * The ring (kernels/ring.h) bounds how far copies are ahead.  Nobody need foresee which products
 * come: the host issues a step, and the one after it, long before they are computed, so the copies
 * of many products are in the queue and each begins when its place is free.  A tier has a copy
 * stream of its own, so that two links work at a time.
 *
 * Floor of a step: the slower of its computation and remote bytes / copy engine, given room for
 * about a layer: a product's tiles are copied while those before it are multiplied.
 *
 * Invariants
 *  1. Every copy is waited for by the main stream before anything else is issued to it: who has
 *     waited for the main stream has waited for all copies, and remote memory may then be changed
 *     or freed.
 *  2. Where remote memory is changed by a copy in the main stream (kn_cu_upload), the next fetch
 *     waits for it.
 *  3. The products that read the ring are not launched dependently: nothing of theirs begins before
 *     the copy is there.
 *  4. Copies count to their tier when they are issued; a reading of the counters (control.c) holds
 *     those issued before it was asked for.
 *
 * Only products too large for the ring, or all where there is none, read remote tiles themselves,
 * and those of steps that somebody has found to be shorter so (kn_fetch_beyond).
 *
 * Measured on an H200, the four products of 8 layers of Llama-3.1-8B, time over the larger of the
 * same with all in HBM and of remote bytes over what kernels read from the link (tests/gpu_fetch
 * --bench); ring: what a layer has there.  Read by clusters -> fetched:
 *     tokens                 320           512           1,024         2,048         8,192
 *     host memory, 10 %      1.04 -> 0.92  1.06 -> 0.93  1.18 -> 0.93  1.18 -> 1.07  1.00
 *     host memory, 30 %      1.02 -> 0.91  1.02 -> 0.91  1.01 -> 0.91  1.04 -> 0.94  1.01
 *     another GPU, 10 %      1.48 -> 1.06  1.31 -> 1.05  1.19 -> 1.03  1.10 -> 1.02  1.02
 *     another GPU, 50 %      1.17 -> 0.95  1.16 -> 0.96  1.17 -> 1.08  1.12 -> 1.05  1.02
 * (8,192 tokens cross 2.6 times by clusters).  Rings of two layers are no faster; of 0.6, hardly
 * more than the largest product's tiles, up to 1.8 times slower than one: copies wait for room.
 * Whole prompts of 8,192 tokens (dakd bench, Llama-3.1-8B, --placement even; the bytes counted are
 * those of the weights to 0.03 %), in steps of 2,048: host memory 10 % 0.995, 30 % 0.944, another
 * GPU 10 % 1.027, 50 % 1.015; of 512: host memory 10 % 0.944, another GPU 10 % 1.045, 50 % 0.974.
 *
 * Tried and dropped: launching these products dependently after all: 1 % at 512 tokens, and nobody
 * promises that such a launch waits for the event before it.
 */
#include "config/check.h"
#include "kernels/cuda/state.h"

static enum status failed(const struct kn_cu *cu, char *err)
{
    return cu->failure[0] ? err_set(err, ST_DEVICE, "%s", cu->failure) : ST_OK;
}

enum status kn_cu_fetch_open(struct kn_cu *cu, char *err)
{
    struct kn_cu_fetch *f = &cu->fetch;
    const unsigned flags = cudaEventDisableTiming;
    bool ok = kn_cu_ok(cu, cudaEventCreateWithFlags(&f->uploaded, flags), "to make an event");
    for (int t = 1; t < KN_TIER_MAX && ok; t++)
        ok = kn_cu_ok(cu, cudaStreamCreateWithFlags(&f->stream[t], cudaStreamNonBlocking),
                      "to make a stream") &&
             kn_cu_ok(cu, cudaEventCreateWithFlags(&f->copied[t], flags), "to make an event");
    for (int i = 0; i < KN_RING_PLACES && ok; i++)
        ok = kn_cu_ok(cu, cudaEventCreateWithFlags(&f->used[i], flags), "to make an event");
    return failed(cu, err);
}

void kn_cu_fetch_close(struct kn_cu *cu)
{
    struct kn_cu_fetch *f = &cu->fetch;
    for (int t = 1; t < KN_TIER_MAX; t++) {
        if (f->stream[t]) (void)cudaStreamDestroy(f->stream[t]);
        if (f->copied[t]) (void)cudaEventDestroy(f->copied[t]);
    }
    for (int i = 0; i < KN_RING_PLACES; i++)
        if (f->used[i]) (void)cudaEventDestroy(f->used[i]);
    if (f->uploaded) (void)cudaEventDestroy(f->uploaded);
    if (f->raw) (void)cudaFree(f->raw);
}

enum status kn_cu_fetch_reserve(struct kn *kn, size_t bytes, char *err)
{
    struct kn_cu *cu = kn_cu_of(kn);
    struct kn_cu_fetch *f = &cu->fetch;
    bytes = bytes / KN_BLOCK_BYTES * KN_BLOCK_BYTES;
    if (!kn_cu_begin(cu) || !kn_cu_settle(cu) ||
        !kn_cu_ok(cu, cudaStreamSynchronize(cu->stream), "in a step"))
        return failed(cu, err);
    if (f->raw) (void)cudaFree(f->raw);
    f->raw = f->memory = NULL;
    kn_ring_init(&f->ring, 0);
    if (bytes == 0) return ST_OK;
    cudaError_t e = cudaMalloc((void **)&f->raw, bytes + KN_ALIGN);
    if (e == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return err_set(
            err, ST_NOMEM,
            "cannot allocate %.3f GiB on GPU %d for the remote weights of prompts: lower "
            "--prefill-staging-bytes",
            (double)bytes / (1 << 30), cu->device);
    }
    if (!kn_cu_ok(cu, e, "to allocate memory")) return failed(cu, err);
    f->memory = (char *)round_up((uintptr_t)f->raw, KN_ALIGN);
    kn_ring_init(&f->ring, bytes);
    return ST_OK;
}

void kn_cu_fetch_beyond(struct kn *kn, int32_t tokens)
{
    kn_cu_of(kn)->fetch.beyond = tokens;
}

/* Bytes of w that lie in remote tiers. */
static size_t remote_bytes(const struct kn_weight *w)
{
    return (size_t)(w->tile_count - w->span[0].tile_count) * kn_weight_tile_bytes(w);
}

/* Tier t's tiles of w to `to`, once what is in the way is over; the main stream waits for them. */
static bool copy_span(struct kn_cu *cu, const struct kn_weight *w, int t, char *to, uint64_t after)
{
    struct kn_cu_fetch *f = &cu->fetch;
    const size_t bytes = (size_t)w->span[t].tile_count * kn_weight_tile_bytes(w);
    cudaStream_t s = f->stream[t];
    if (f->behind[t] && !kn_cu_ok(cu, cudaStreamWaitEvent(s, f->uploaded, 0), "to wait"))
        return false;
    if (after &&
        !kn_cu_ok(cu, cudaStreamWaitEvent(s, f->used[after % KN_RING_PLACES], 0), "to wait"))
        return false;
    f->behind[t] = false;
    f->bytes[t] += bytes;
    return kn_cu_ok(cu, cudaMemcpyAsync(to, w->span[t].base, bytes, cudaMemcpyDefault, s),
                    "to fetch weights") &&
           kn_cu_ok(cu, cudaEventRecord(f->copied[t], s), "to record an event") &&
           kn_cu_ok(cu, cudaStreamWaitEvent(cu->stream, f->copied[t], 0), "to wait");
}

bool kn_cu_fetch(struct kn_cu *cu, const struct kn_weight *w, struct kn_weight *out, bool *fetched)
{
    struct kn_cu_fetch *f = &cu->fetch;
    const size_t bytes = remote_bytes(w);
    uint64_t after;
    *out = *w;
    *fetched = bytes > 0 && bytes <= f->ring.bytes;
    if (!*fetched) return true;
    CHECK(!cu->record.now);
    char *at = f->memory + kn_ring_take(&f->ring, bytes, &after);
    for (int t = 1; t < KN_TIER_MAX; t++) {
        if (w->span[t].tile_count == 0) continue;
        if (!copy_span(cu, w, t, at, after)) return false;
        out->span[t].base = at;
        at += (size_t)w->span[t].tile_count * kn_weight_tile_bytes(w);
    }
    return true;
}

bool kn_cu_fetch_used(struct kn_cu *cu)
{
    struct kn_cu_fetch *f = &cu->fetch;
    return kn_cu_ok(cu, cudaEventRecord(f->used[f->ring.taken % KN_RING_PLACES], cu->stream),
                    "to record an event");
}

bool kn_cu_fetch_behind(struct kn_cu *cu)
{
    struct kn_cu_fetch *f = &cu->fetch;
    for (int t = 1; t < KN_TIER_MAX; t++) f->behind[t] = true;
    cu->staging.behind = true;
    return kn_cu_ok(cu, cudaEventRecord(f->uploaded, cu->stream), "to record an event");
}
