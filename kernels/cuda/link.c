/*
 * link.c - kn_measure_link: probe.cu's kernels and the copy engine, side by side.
 *
 * The copy engine has a stream of its own.  Its copies are queued first and outlast the kernel, so
 * that the kernel's rates are those with copies all along.  They are cut into pieces with an event
 * behind each, and of these only those count that began and ended while the kernel ran: NVLink's
 * copy engine gives 397 GB/s beside an HBM that rests and 256 beside one that streams.  Without a
 * kernel all count.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "kernels/cuda/probe.h"
#include "kernels/cuda/state.h"

/* Some 6 us lie between two copies: over NVLink pieces of 16 MB gave 341 GB/s in place of 397. Over
 * PCIe pieces of 64 MB are too few for a time. */
#define PIECE_BYTES_MAX ((size_t)64 << 20)
#define PIECE_S 0.5e-3 /* that a piece takes alone, at most, where some must fit into a time */
#define PIECES_MAX 128
#define TRIAL_PIECES 2

struct copies {
    cudaStream_t stream;
    cudaEvent_t event[PIECES_MAX + 1]; /* before the first piece, and behind each */
    cudaEvent_t begin, end;            /* of the kernel */
    size_t piece_bytes;
};

static bool make_event(struct kn_cu *cu, cudaEvent_t *e)
{
    return kn_cu_ok(cu, cudaEventCreate(e), "to make an event");
}

static bool copies_open(struct kn_cu *cu, const struct kn_link_args *a, struct copies *c)
{
    bool ok = kn_cu_ok(cu, cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking),
                       "to make a stream") &&
              make_event(cu, &c->begin) && make_event(cu, &c->end);
    c->piece_bytes = size_min(a->remote_bytes, PIECE_BYTES_MAX);
    for (int i = 0; i <= PIECES_MAX && ok; i++) ok = make_event(cu, &c->event[i]);
    return ok;
}

static void copies_close(struct copies *c)
{
    for (int i = 0; i <= PIECES_MAX; i++)
        if (c->event[i]) (void)cudaEventDestroy(c->event[i]);
    if (c->begin) (void)cudaEventDestroy(c->begin);
    if (c->end) (void)cudaEventDestroy(c->end);
    if (c->stream) (void)cudaStreamDestroy(c->stream);
}

/* Queues `count` pieces, over the whole of the memory again and again. */
static bool copy(struct kn_cu *cu, const struct copies *c, const struct kn_link_args *a, int count)
{
    const size_t places = a->remote_bytes / c->piece_bytes;
    bool ok = kn_cu_ok(cu, cudaEventRecord(c->event[0], c->stream), "to time a copy");
    for (int i = 0; i < count && ok; i++) {
        const size_t at = (size_t)i % places * c->piece_bytes;
        ok = kn_cu_ok(cu,
                      cudaMemcpyAsync((char *)a->copy_to + at, (const char *)a->remote + at,
                                      c->piece_bytes, cudaMemcpyDefault, c->stream),
                      "to copy") &&
             kn_cu_ok(cu, cudaEventRecord(c->event[i + 1], c->stream), "to time a copy");
    }
    return ok;
}

/* How long before `to` `from` was; below 0 where it was after. */
static bool between(struct kn_cu *cu, cudaEvent_t from, cudaEvent_t to, double *ms)
{
    float out = 0;
    bool ok = kn_cu_ok(cu, cudaEventElapsedTime(&out, from, to), "to time a copy");
    *ms = (double)out;
    return ok;
}

/* Waits for `count` pieces; the rate of those within begin and end, where a kernel ran. */
static bool copy_rate(struct kn_cu *cu, const struct copies *c, int count, bool beside,
                      double *bytes_per_s)
{
    int first = 0, last = count;
    double ms = 0;
    if (!kn_cu_ok(cu, cudaEventSynchronize(c->event[count]), "in a copy")) return false;
    for (; beside && first < last; first++) {
        if (!between(cu, c->begin, c->event[first], &ms)) return false;
        if (ms >= 0) break;
    }
    for (; beside && last > first; last--) {
        if (!between(cu, c->event[last], c->end, &ms)) return false;
        if (ms >= 0) break;
    }
    if (first >= last) { /* a kernel shorter than a piece */
        first = 0;
        last = count;
    }
    if (!between(cu, c->event[first], c->event[last], &ms)) return false;
    *bytes_per_s = (double)c->piece_bytes * (last - first) / fmax(ms, 1e-6) * 1e3;
    return true;
}

/* How many pieces outlast the time, were they as fast as alone. */
static int pieces_in(const struct copies *c, const struct kn_link_args *a, double bytes_per_s)
{
    double count = 1.6 * (double)a->ns / 1e9 * bytes_per_s / (double)c->piece_bytes;
    return (int)fmin(fmax(ceil(count) + 2, 1), PIECES_MAX);
}

static void sum_up(const struct kn_cu *cu, const struct kn_cu_probe_out *o, int count,
                   struct kn_link_rates *out)
{
    uint64_t trips = 0, clocks = 0, least = UINT32_MAX, largest = 0;
    for (int i = 0; i < count; i++) {
        if (o[i].local_ns)
            out->local_bytes_per_s +=
                (double)o[i].local_blocks * KN_BLOCK_BYTES / (double)o[i].local_ns * 1e9;
        if (!o[i].remote_ns) continue;
        out->remote_bytes_per_s +=
            (double)o[i].remote_blocks * KN_BLOCK_BYTES / (double)o[i].remote_ns * 1e9;
        if (!o[i].trip_max) continue;
        trips += o[i].remote_blocks;
        clocks += o[i].trip_clocks;
        least = size_min(least, o[i].trip_min);
        largest = size_max(largest, o[i].trip_max);
    }
    if (!trips) return;
    const double s = cu->control.ns_per_clock / 1e9;
    out->trip_mean_s = (double)clocks / (double)trips * s;
    out->trip_min_s = (double)least * s;
    out->trip_max_s = (double)largest * s;
}

static bool launch(struct kn_cu *cu, const struct kn_link_args *a, struct kn_cu_probe_out *out)
{
    char err[ERR_CAP];
    /* A link of 50 GB/s takes 0.3 us for a block. */
    const uint64_t blocks = a->ns / (330 * (uint64_t)size_max((size_t)a->ctas, 1)) + 1;
    const struct kn_cu_probe_multicast m = {.remote = a->remote,
                                            .remote_bytes = a->remote_bytes,
                                            .clusters = a->ctas,
                                            .cluster = a->cluster,
                                            .slots = a->blocks,
                                            .blocks = (uint32_t)size_min(blocks, 1u << 20)};
    const struct kn_cu_probe_read r = {
        .local = a->local,
        .remote = a->remote,
        .local_bytes = a->local_bytes / KN_BLOCK_BYTES * KN_BLOCK_BYTES,
        .remote_bytes = a->remote_bytes / KN_BLOCK_BYTES * KN_BLOCK_BYTES,
        .ctas = cu->sm_count,
        .readers = a->ctas,
        .slots = a->blocks,
        .ns = a->ns};
    if (a->cluster > 1)
        return kn_cu_st(cu, kn_cu_probe_multicast_launch(&m, out, cu->stream, err), err);
    if (!r.local && !r.readers) return true;
    return kn_cu_st(cu, kn_cu_probe_read_launch(&r, out, cu->stream, err), err);
}

/* The kernel that is asked for, if any, beside copies where there are to be some. */
static bool run(struct kn_cu *cu, const struct kn_link_args *a, struct kn_cu_probe_out *device,
                struct copies *c, double *copy_bytes_per_s)
{
    const bool beside = a->local || a->ctas;
    int pieces = TRIAL_PIECES;
    if (!a->copy_to) return launch(cu, a, device);
    if (!copies_open(cu, a, c) || !copy(cu, c, a, pieces) ||
        !copy_rate(cu, c, pieces, false, copy_bytes_per_s))
        return false;
    const double piece = fmin(*copy_bytes_per_s * PIECE_S, (double)c->piece_bytes);
    if (beside) c->piece_bytes = size_max((size_t)piece / KN_BLOCK_BYTES, 1) * KN_BLOCK_BYTES;
    pieces = pieces_in(c, a, *copy_bytes_per_s);
    return copy(cu, c, a, pieces) &&
           kn_cu_ok(cu, cudaEventRecord(c->begin, cu->stream), "to time a kernel") &&
           launch(cu, a, device) &&
           kn_cu_ok(cu, cudaEventRecord(c->end, cu->stream), "to time a kernel") &&
           kn_cu_ok(cu, cudaEventSynchronize(c->end), "in a measurement") &&
           copy_rate(cu, c, pieces, beside, copy_bytes_per_s);
}

enum status kn_cu_measure_link(struct kn *kn, const struct kn_link_args *a,
                               struct kn_link_rates *out, char *err)
{
    struct kn_cu *cu = kn_cu_of(kn);
    const int count = a->cluster > 1 ? a->ctas : cu->sm_count;
    const size_t bytes = (size_t)count * sizeof(struct kn_cu_probe_out);
    struct kn_cu_probe_out *host = calloc((size_t)count, sizeof *host), *device = NULL;
    struct copies *c = calloc(1, sizeof *c);
    bool ok = host && c;
    if (!ok) err_set(err, ST_NOMEM, "no memory for a measurement");
    ok = ok && kn_cu_enter(cu) &&
         kn_cu_ok(cu, cudaMalloc((void **)&device, bytes), "to allocate") &&
         kn_cu_ok(cu, cudaMemsetAsync(device, 0, bytes, cu->stream), "to clear memory") &&
         kn_cu_ok(cu, cudaStreamSynchronize(cu->stream), "in a step") &&
         run(cu, a, device, c, &out->copy_bytes_per_s) &&
         kn_cu_ok(cu, cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, cu->stream),
                  "to copy a measurement") &&
         kn_cu_ok(cu, cudaStreamSynchronize(cu->stream), "in a measurement");
    if (ok) sum_up(cu, host, count, out);
    if (c) copies_close(c);
    if (device) (void)cudaFree(device);
    const enum status st = !host || !c ? ST_NOMEM : ok ? ST_OK : ST_DEVICE;
    free(host);
    free(c);
    return st == ST_DEVICE ? err_set(err, st, "%s", cu->failure) : st;
}
