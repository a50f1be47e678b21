/*
 * link.c - kn_measure_link: probe.cu's kernels and the copy engine, side by side.
 *
 * The copy engine has a stream of its own.  Its copies are queued first and are made to outlast the
 * kernel that streams HBM by a third, so that the kernel's rate is one with copies all along; their
 * own rate then has that third without HBM, which is what it is like between two kernels as well.
 * Without HBM they run alone.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "kernels/cuda/probe.h"
#include "kernels/cuda/state.h"

#define COPIES_MAX 64

struct copies {
    cudaStream_t stream;
    cudaEvent_t begin, end;
};

static bool copies_open(struct kn_cu *cu, struct copies *c)
{
    *c = (struct copies){0};
    return kn_cu_ok(cu, cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking),
                    "to make a stream") &&
           kn_cu_ok(cu, cudaEventCreate(&c->begin), "to make an event") &&
           kn_cu_ok(cu, cudaEventCreate(&c->end), "to make an event");
}

static void copies_close(struct copies *c)
{
    if (c->begin) (void)cudaEventDestroy(c->begin);
    if (c->end) (void)cudaEventDestroy(c->end);
    if (c->stream) (void)cudaStreamDestroy(c->stream);
}

static bool copy(struct kn_cu *cu, const struct copies *c, const struct kn_link_args *a, int count)
{
    bool ok = kn_cu_ok(cu, cudaEventRecord(c->begin, c->stream), "to time a copy");
    for (int i = 0; i < count && ok; i++)
        ok = kn_cu_ok(
            cu,
            cudaMemcpyAsync(a->copy_to, a->remote, a->remote_bytes, cudaMemcpyDefault, c->stream),
            "to copy");
    return ok && kn_cu_ok(cu, cudaEventRecord(c->end, c->stream), "to time a copy");
}

/* Waits for `count` copies. */
static bool copy_rate(struct kn_cu *cu, const struct copies *c, const struct kn_link_args *a,
                      int count, double *bytes_per_s)
{
    float ms = 0;
    if (!kn_cu_ok(cu, cudaEventSynchronize(c->end), "in a copy") ||
        !kn_cu_ok(cu, cudaEventElapsedTime(&ms, c->begin, c->end), "to time a copy"))
        return false;
    *bytes_per_s = (double)a->remote_bytes * count / fmax(ms, 1e-6) * 1e3;
    return true;
}

/* How often the copy goes into the time, and a third more of it. */
static int copies_in(const struct kn_link_args *a, double bytes_per_s)
{
    double count = 1.33 * (double)a->ns / 1e9 * bytes_per_s / (double)a->remote_bytes;
    return (int)fmin(fmax(ceil(count), 1), COPIES_MAX);
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
        .readers = a->copy_to ? 0 : a->ctas,
        .slots = a->blocks,
        .ns = a->ns};
    if (a->cluster > 1)
        return kn_cu_st(cu, kn_cu_probe_multicast_launch(&m, out, cu->stream, err), err);
    if (!r.local && !r.readers) return true;
    return kn_cu_st(cu, kn_cu_probe_read_launch(&r, out, cu->stream, err), err);
}

enum status kn_cu_measure_link(struct kn *kn, const struct kn_link_args *a,
                               struct kn_link_rates *out, char *err)
{
    struct kn_cu *cu = kn_cu_of(kn);
    const int count = a->cluster > 1 ? a->ctas : cu->sm_count;
    const size_t bytes = (size_t)count * sizeof(struct kn_cu_probe_out);
    struct kn_cu_probe_out *host = calloc((size_t)count, sizeof *host), *device = NULL;
    struct copies c = {0};
    int copied = 1;
    double rate = 0;
    if (!host) return err_set(err, ST_NOMEM, "no memory for a measurement");
    bool ok = kn_cu_enter(cu) && kn_cu_ok(cu, cudaMalloc((void **)&device, bytes), "to allocate") &&
              kn_cu_ok(cu, cudaMemsetAsync(device, 0, bytes, cu->stream), "to clear memory") &&
              kn_cu_ok(cu, cudaStreamSynchronize(cu->stream), "in a step");
    if (ok && a->copy_to) {
        ok = copies_open(cu, &c) && copy(cu, &c, a, 1) && copy_rate(cu, &c, a, 1, &rate);
        copied = copies_in(a, rate);
        ok = ok && copy(cu, &c, a, copied);
    }
    ok = ok && launch(cu, a, device) &&
         kn_cu_ok(cu, cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, cu->stream),
                  "to copy a measurement") &&
         kn_cu_ok(cu, cudaStreamSynchronize(cu->stream), "in a measurement") &&
         (!a->copy_to || copy_rate(cu, &c, a, copied, &rate));
    if (ok) sum_up(cu, host, count, out);
    if (ok && a->copy_to) out->remote_bytes_per_s = rate;
    copies_close(&c);
    if (device) (void)cudaFree(device);
    free(host);
    return ok ? ST_OK : err_set(err, ST_DEVICE, "%s", cu->failure);
}
