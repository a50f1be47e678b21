/*
 * fake_link.h - for tests: a backend whose links are full with 512 KB in flight and harm HBM past
 * three times that, and which counts what it is asked for.
 */
#ifndef DAKD_TESTS_FAKE_LINK_H
#define DAKD_TESTS_FAKE_LINK_H

#include <math.h>
#include <stdlib.h>

#include "kernels/backend.h"

#define KIB 1024.0

struct fake {
    struct kn kn;
    int allocated, calls, fail_call, fail_alloc, allocs;
    bool full;
    int slow_call; /* of which another program takes half */
};

static struct fake *fake_of(struct kn *kn)
{
    return (struct fake *)kn;
}

static const char *fake_name(const struct kn *kn)
{
    (void)kn;
    return "fake";
}

static int32_t fake_sms(const struct kn *kn)
{
    (void)kn;
    return 100;
}

static enum status fake_alloc(struct kn *kn, enum kn_mem mem, int device, size_t bytes, void **out,
                              char *err)
{
    struct fake *f = fake_of(kn);
    (void)device;
    if (++f->allocs == f->fail_alloc) return err_set(err, ST_NOMEM, "no %zu bytes", bytes);
    assert_true(mem == KN_MEM_LOCAL ? bytes == 3ull << 30 : bytes <= 256ull << 20);
    f->allocated++;
    *out = aligned_alloc(KN_ALIGN, KN_ALIGN); /* an address: nobody writes there */
    assert_non_null(*out);
    return ST_OK;
}

static void fake_free(struct kn *kn, enum kn_mem mem, void *ptr, size_t bytes)
{
    (void)mem;
    (void)bytes;
    fake_of(kn)->allocated--;
    free(ptr);
}

static enum status fake_upload(struct kn *kn, void *dst, const void *src, size_t bytes)
{
    (void)kn;
    (void)dst;
    assert_true(bytes > 0 && ((const uint32_t *)src)[1] != 0);
    return ST_OK;
}

/* Half of it is three gibibytes and some. */
static enum status fake_memory(struct kn *kn, uint64_t *total, uint64_t *available, char *err)
{
    (void)err;
    *total = 100ull << 30;
    *available = fake_of(kn)->full ? 1ull << 30 : 7ull << 30;
    return ST_OK;
}

static enum status fake_measure(struct kn *kn, const struct kn_link_args *a,
                                struct kn_link_rates *out, char *err)
{
    const double full = 512 * KIB, hbm = 4e12, rate = 50e9;
    struct fake *f = fake_of(kn);
    if (++f->calls == f->fail_call) return err_set(err, ST_DEVICE, "it broke");
    double flight = (double)a->ctas * a->blocks * KN_BLOCK_BYTES;
    double lost = fmax(flight - 3 * full, 0) / (100 * full);
    if (a->local) out->local_bytes_per_s = hbm * (1 - fmin(lost, 0.9));
    /* Both at once share what is a little more than kernels get alone. */
    if (a->copy_to) out->copy_bytes_per_s = rate * (a->ctas ? 0.55 : 1.1);
    if (a->ctas) out->remote_bytes_per_s = rate * fmin(flight / full, 1) * (a->copy_to ? 0.5 : 1);
    if (a->cluster > 1) out->remote_bytes_per_s = rate;
    if (f->calls == f->slow_call) out->local_bytes_per_s /= 2;
    if (f->calls == f->slow_call) out->remote_bytes_per_s /= 2;
    if (f->calls == f->slow_call) out->copy_bytes_per_s /= 2;
    if (a->ctas) out->trip_mean_s = out->trip_max_s = fmax(flight / rate, 2e-6);
    return ST_OK;
}

static const struct kn_backend fake_backend = {.name = fake_name,
                                               .sm_count = fake_sms,
                                               .memory = fake_memory,
                                               .alloc = fake_alloc,
                                               .free = fake_free,
                                               .upload = fake_upload,
                                               .measure_link = fake_measure};
static const struct kn_backend no_link_backend = {.name = fake_name, .alloc = fake_alloc};

#endif
