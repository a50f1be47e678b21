/* The probe's arithmetic exactly; measuring, on a backend that counts what it is asked to read. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "config/clock.h"
#include "kernels/backend.h"
#include "offload/probe.h"

#define MIB (1ull << 20)
#define GIB (1ull << 30)

static void test_bytes(void **state)
{
    (void)state;
    assert_int_equal(off_probe_bytes(64 * GIB, GIB), GIB);
    assert_int_equal(off_probe_bytes(8 * GIB, GIB), 512 * MIB);
    assert_int_equal(off_probe_bytes(100 * MIB, GIB), 64 * MIB);
    assert_int_equal(off_probe_bytes(10 * MIB, GIB), 10 * MIB);
    assert_int_equal(off_probe_bytes(64 * GIB, 5 * MIB + 7), 5 * MIB);
    assert_int_equal(off_probe_bytes(KN_ALIGN - 1, GIB), 0);
    assert_int_equal(off_probe_bytes(0, GIB), 0);
}

static void test_repeats(void **state)
{
    (void)state;
    assert_int_equal(off_probe_repeats(7, 50, 50), 7);
    assert_int_equal(off_probe_repeats(7, 60, 50), 7);
    assert_int_equal(off_probe_repeats(10, 25, 50), 23); /* 10 * 2 * 1.1, and one more */
    assert_int_equal(off_probe_repeats(1, 0, 1000000), 17);
    /* However slow or fast, a round is found soon, and it is not much longer than asked for. */
    for (uint64_t one = 1; one < 1000000000; one *= 3) {
        uint64_t repeats = 1, next;
        int trials = 0;
        while ((next = off_probe_repeats(repeats, repeats * one, 50000000)) != repeats) {
            assert_true(next > repeats);
            repeats = next;
            assert_true(++trials < 12);
        }
        assert_true(repeats * one >= 50000000);
        assert_true(repeats == 1 || repeats * one < 56000000 + 2 * one);
    }
}

static void test_rate(void **state)
{
    (void)state;
    const uint64_t odd[] = {400, 100, 200}, even[] = {1000, 100, 200, 1}, zero[] = {0};
    assert_true(off_probe_rate(1000, odd, 3) == 5e9);
    assert_true(off_probe_rate(1000, even, 4) == 7.5e9); /* between 5 and 10 bytes a nanosecond */
    assert_true(off_probe_rate(1000, zero, 1) == 1e12);
}

static void test_floor(void **state)
{
    (void)state;
    const struct off_bandwidth b = {.tier_count = 3, .read_bytes_per_s = {4e12, 5e10, 0}};
    int tier = -1;
    uint64_t bytes[KN_TIER_MAX] = {8000000000, 50000000};
    assert_true(off_floor_s(&b, bytes, &tier) == 0.002);
    assert_int_equal(tier, 0);
    bytes[1] = 500000000;
    assert_true(off_floor_s(&b, bytes, &tier) == 0.01);
    assert_int_equal(tier, 1);
    bytes[0] = bytes[1] = 0; /* the tier nobody measured is not read */
    assert_true(off_floor_s(&b, bytes, &tier) == 0);
}

/* --- a backend that counts -------------------------------------------------------------------- */

struct fake {
    struct kn kn;
    uint64_t reads, syncs, allocated, fills;
    uint64_t round[64]; /* readings before each sync */
    uint64_t delay_ns;  /* of the next sync, for each reading since the last */
    size_t bytes;       /* of the allocation */
    enum kn_mem mem;
    int device;
    void *ptr;
    int fail_alloc, fail_upload, fail_sync;
};

static struct fake *fake_of(struct kn *kn)
{
    return (struct fake *)kn;
}

static enum status fake_alloc(struct kn *kn, enum kn_mem mem, int device, size_t bytes, void **out,
                              char *err)
{
    struct fake *f = fake_of(kn);
    if (f->fail_alloc) return err_set(err, ST_NOMEM, "no %zu bytes", bytes);
    f->mem = mem;
    f->device = device;
    f->bytes = bytes;
    f->ptr = *out = aligned_alloc(KN_ALIGN, bytes);
    assert_non_null(f->ptr);
    memset(f->ptr, 0, bytes);
    f->allocated++;
    return ST_OK;
}

static void fake_free(struct kn *kn, enum kn_mem mem, void *ptr, size_t bytes)
{
    struct fake *f = fake_of(kn);
    assert_ptr_equal(ptr, f->ptr);
    assert_int_equal(mem, f->mem);
    assert_int_equal(bytes, f->bytes);
    free(ptr);
    f->ptr = NULL;
    f->allocated--;
}

static enum status fake_upload(struct kn *kn, void *dst, const void *src, size_t bytes)
{
    struct fake *f = fake_of(kn);
    if (f->fail_upload) return ST_DEVICE;
    assert_in_range((uintptr_t)dst, (uintptr_t)f->ptr, (uintptr_t)f->ptr + f->bytes - bytes);
    memcpy(dst, src, bytes);
    f->fills += bytes;
    return ST_OK;
}

static enum status fake_sync(struct kn *kn, char *err)
{
    struct fake *f = fake_of(kn);
    uint64_t until = clock_now_ns() + f->delay_ns;
    if (f->fail_sync && f->syncs >= (uint64_t)f->fail_sync)
        return err_set(err, ST_DEVICE, "it broke");
    while (clock_now_ns() < until) continue;
    f->delay_ns = 0;
    f->round[f->syncs++ % 64] = f->reads;
    f->reads = 0;
    return ST_OK;
}

static int by_word(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* No two pages of 4 KB hold the same. */
static void check_pages(const uint32_t *words, size_t bytes)
{
    size_t count = bytes / 4096;
    uint32_t *first = malloc(count * sizeof *first);
    assert_non_null(first);
    for (size_t i = 0; i < count; i++) first[i] = words[i * 1024];
    qsort(first, count, sizeof *first, by_word);
    for (size_t i = 1; i < count; i++) assert_int_not_equal(first[i], first[i - 1]);
    free(first);
}

/* 10 us a reading, and every word of the buffer has been written. */
static void fake_stream_read(struct kn *kn, const void *ptr, size_t bytes)
{
    struct fake *f = fake_of(kn);
    const uint32_t *words = ptr;
    assert_ptr_equal(ptr, f->ptr);
    assert_int_equal(bytes, f->bytes);
    f->reads++;
    if (f->syncs == 0) check_pages(words, bytes);
    if (f->syncs == 0)
        for (size_t i = 0; i < bytes / sizeof *words; i++)
            if (words[i] == 0) fail_msg("word %zu was not filled", i);
    f->delay_ns += 10000;
}

/* 10 us, of a million operations. */
static double fake_matrix_run(struct kn *kn)
{
    struct fake *f = fake_of(kn);
    f->reads++;
    f->delay_ns += 10000;
    return 1e6;
}

static const struct kn_backend fake_backend = {.matrix_run = fake_matrix_run,
                                               .alloc = fake_alloc,
                                               .free = fake_free,
                                               .upload = fake_upload,
                                               .sync = fake_sync,
                                               .stream_read = fake_stream_read};

static void open_fake(struct fake *f, struct off_tiers **tiers)
{
    char err[ERR_CAP];
    const struct off_remote remote = {
        .spec = {{KN_MEM_HOST, 0, 2 * MIB}, {KN_MEM_PEER, 3, MIB / 2}}, .count = 2};
    *f = (struct fake){.kn = {&fake_backend}};
    assert_int_equal(off_tiers_open(&f->kn, 64 * MIB, &remote, tiers, err), ST_OK);
}

static const struct off_probe_config quick = {
    .bytes_max = MIB, .round_ns_min = 200000, .matrix_round_ns_min = 400000, .round_count = 3};

static void test_read(void **state)
{
    (void)state;
    struct fake f;
    struct off_tiers *tiers;
    double rate;
    char err[ERR_CAP] = "";
    open_fake(&f, &tiers);
    assert_int_equal(off_probe_read(&f.kn, tiers, 2, &quick, &rate, err), ST_OK);
    assert_int_equal(f.mem, KN_MEM_PEER);
    assert_int_equal(f.device, 3);
    assert_int_equal(f.bytes, MIB / 2);
    assert_int_equal(f.fills, MIB / 2);
    assert_int_equal(f.allocated, 0);
    /* Once to warm up; trials of more and more readings with one wait each; three alike rounds. */
    assert_in_range(f.syncs, 5, 64);
    assert_int_equal(f.round[0], 1);
    assert_int_equal(f.round[1], 1);
    for (uint64_t i = 2; i < f.syncs - 3; i++) assert_true(f.round[i] > f.round[i - 1]);
    for (uint64_t i = f.syncs - 3; i < f.syncs; i++)
        assert_int_equal(f.round[i], f.round[f.syncs - 4]);
    /* No reading takes less than 10 us: at most 52.4 GB/s. */
    assert_true(rate > 0 && rate <= (double)(MIB / 2) / 10e-6);
    struct off_bandwidth b;
    assert_int_equal(off_probe_tiers(&f.kn, tiers, &quick, &b, err), ST_OK);
    assert_int_equal(b.tier_count, 3);
    for (int t = 0; t < 3; t++) assert_true(b.read_bytes_per_s[t] > 0);
    assert_int_equal(off_tier_used(tiers, 0), 0); /* a probe takes nothing from a tier */
    off_tiers_close(tiers);
}

/* A buffer larger than what is filled at once. */
static void test_large(void **state)
{
    (void)state;
    const struct off_probe_config large = {
        .bytes_max = 9 * MIB + 5 * KN_ALIGN, .round_ns_min = 20000, .round_count = 1};
    struct fake f;
    struct off_tiers *tiers;
    double rate;
    char err[ERR_CAP] = "";
    open_fake(&f, &tiers);
    assert_int_equal(off_probe_read(&f.kn, tiers, 0, &large, &rate, err), ST_OK);
    assert_int_equal(f.fills, 9 * MIB + 5 * KN_ALIGN);
    assert_true(rate > 0);
    off_tiers_close(tiers);
}

static void test_failures(void **state)
{
    (void)state;
    for (int what = 0; what < 4; what++) {
        struct fake f;
        struct off_tiers *tiers;
        double rate;
        char err[ERR_CAP] = "";
        open_fake(&f, &tiers);
        f.fail_alloc = what == 0;
        f.fail_upload = what == 1;
        f.fail_sync = what == 2 ? 1 : what == 3 ? 4 : 0;
        enum status st = off_probe_read(&f.kn, tiers, 1, &quick, &rate, err);
        assert_int_equal(st, what == 0 ? ST_NOMEM : ST_DEVICE);
        assert_true(err[0]);
        assert_true(rate == 0);
        assert_int_equal(f.allocated, 0);
        off_tiers_close(tiers);
    }
}

static void test_matrix(void **state)
{
    (void)state;
    static const struct kn_backend without = {.sync = fake_sync};
    struct fake f = {.kn = {&fake_backend}};
    char err[ERR_CAP] = "";
    double flops;
    assert_int_equal(off_probe_matrix(&f.kn, &quick, &flops, err), ST_OK);
    assert_in_range(f.syncs, 5, 64);
    for (uint64_t i = f.syncs - 3; i < f.syncs; i++)
        assert_int_equal(f.round[i], f.round[f.syncs - 4]);
    assert_true(f.round[0] == 1 && f.round[f.syncs - 1] >= 16);
    assert_true(flops > 0 && flops <= 1e6 / 10e-6); /* no launch takes less than 10 us */
    for (int fail = 1; fail < 5; fail += 3) {
        f = (struct fake){.kn = {&fake_backend}, .fail_sync = fail};
        assert_int_equal(off_probe_matrix(&f.kn, &quick, &flops, err), ST_DEVICE);
        assert_true(flops == 0 && err[0]);
    }
    f = (struct fake){.kn = {&without}};
    assert_int_equal(off_probe_matrix(&f.kn, &quick, &flops, err), ST_OK);
    assert_true(flops == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes),    cmocka_unit_test(test_repeats),
        cmocka_unit_test(test_rate),     cmocka_unit_test(test_floor),
        cmocka_unit_test(test_read),     cmocka_unit_test(test_large),
        cmocka_unit_test(test_failures), cmocka_unit_test(test_matrix),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
