#include "offload/probe.h"

#include <stdlib.h>

#include "config/check.h"
#include "config/clock.h"

#define BUFFER_MIN ((uint64_t)64 << 20)
#define BUFFER_MAX ((uint64_t)1 << 30)
#define FILL_BYTES ((size_t)4 << 20)
#define GROWTH_MAX 16
#define PAGE_BYTES 4096
#define ROUND_NS (40 * NS_PER_MS)
#define MATRIX_ROUND_NS (100 * NS_PER_MS)

struct off_probe_config off_probe_config_default(void)
{
    return (struct off_probe_config){.bytes_max = BUFFER_MAX,
                                     .round_ns_min = ROUND_NS,
                                     .matrix_round_ns_min = MATRIX_ROUND_NS,
                                     .round_count = 3};
}

/* --- arithmetic ------------------------------------------------------------------------------- */

uint64_t off_probe_bytes(uint64_t capacity, uint64_t bytes_max)
{
    uint64_t bytes = size_min(size_max(capacity / 16, BUFFER_MIN), size_min(capacity, bytes_max));
    return bytes / KN_ALIGN * KN_ALIGN;
}

uint64_t off_probe_repeats(uint64_t repeats, uint64_t ns, uint64_t round_ns_min)
{
    if (ns >= round_ns_min) return repeats;
    /* A tenth more than the estimate, so that the next trial is seldom the last but one. */
    double wanted = (double)repeats * 1.1 * (double)round_ns_min / (double)size_max(ns, 1);
    double most = (double)repeats * GROWTH_MAX;
    return (uint64_t)(wanted < most ? wanted : most) + 1;
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

double off_probe_rate(uint64_t round_bytes, const uint64_t *ns, int round_count)
{
    uint64_t sorted[OFF_PROBE_ROUNDS_MAX];
    CHECK(round_count >= 1 && round_count <= OFF_PROBE_ROUNDS_MAX);
    for (int i = 0; i < round_count; i++) sorted[i] = size_max(ns[i], 1);
    qsort(sorted, (size_t)round_count, sizeof sorted[0], by_value);
    double rate = (double)round_bytes * (double)NS_PER_S;
    int middle = round_count / 2;
    if (round_count % 2) return rate / (double)sorted[middle];
    return (rate / (double)sorted[middle - 1] + rate / (double)sorted[middle]) / 2;
}

double off_floor_s(const struct off_bandwidth *b, const uint64_t bytes[KN_TIER_MAX], int *tier)
{
    double floor = 0;
    *tier = 0;
    for (int t = 0; t < KN_TIER_MAX; t++) {
        if (bytes[t] == 0) continue;
        CHECK(t < b->tier_count && b->read_bytes_per_s[t] > 0);
        double s = (double)bytes[t] / b->read_bytes_per_s[t];
        if (s <= floor) continue;
        floor = s;
        *tier = t;
    }
    return floor;
}

/* --- measuring -------------------------------------------------------------------------------- */

/* Any bytes but equal pages, which may be merged, and zeros, which may be compressed: the same
 * random chunk over and over, each page of it with another first word every time. */
static enum status fill(struct kn *kn, void *dst, uint64_t bytes)
{
    uint32_t *chunk = malloc(FILL_BYTES), state = 1;
    enum status st = chunk ? ST_OK : ST_NOMEM;
    for (size_t i = 0; i < FILL_BYTES / sizeof *chunk && chunk; i++)
        chunk[i] = state = state * 1664525u + 1013904223u;
    for (uint64_t at = 0; at < bytes && !st; at += FILL_BYTES) {
        size_t n = size_min(FILL_BYTES, bytes - at);
        for (size_t i = 0; i < n / sizeof *chunk; i += PAGE_BYTES / sizeof *chunk)
            chunk[i] = state = state * 1664525u + 1013904223u;
        st = kn_upload(kn, (char *)dst + at, chunk, n);
    }
    free(chunk);
    return st;
}

static enum status read_times(struct kn *kn, const void *ptr, uint64_t bytes, uint64_t repeats,
                              uint64_t *ns, char *err)
{
    uint64_t begin = clock_now_ns();
    for (uint64_t i = 0; i < repeats; i++) kn_stream_read(kn, ptr, bytes);
    enum status st = kn_sync(kn, err);
    *ns = clock_now_ns() - begin;
    return st;
}

static enum status measure(struct kn *kn, const void *ptr, uint64_t bytes,
                           const struct off_probe_config *config, double *bytes_per_s, char *err)
{
    uint64_t ns[OFF_PROBE_ROUNDS_MAX] = {0}, repeats = 1, took;
    enum status st = read_times(kn, ptr, bytes, 1, &took, err); /* warms up */
    while (!st && !(st = read_times(kn, ptr, bytes, repeats, &took, err))) {
        uint64_t next = off_probe_repeats(repeats, took, config->round_ns_min);
        if (next == repeats) break;
        repeats = next;
    }
    for (int i = 0; i < config->round_count && !st; i++)
        st = read_times(kn, ptr, bytes, repeats, &ns[i], err);
    if (st) return st;
    *bytes_per_s = off_probe_rate(bytes * repeats, ns, config->round_count);
    return ST_OK;
}

enum status off_probe_read(struct kn *kn, const struct off_tiers *tiers, int tier,
                           const struct off_probe_config *config, double *bytes_per_s, char *err)
{
    const struct off_tier_spec *spec = off_tier_spec(tiers, tier);
    uint64_t bytes =
        off_probe_bytes(spec->bytes + off_tier_pool_bytes(tiers, tier), config->bytes_max);
    void *ptr;
    *bytes_per_s = 0;
    CHECK(config->round_count >= 1 && config->round_count <= OFF_PROBE_ROUNDS_MAX);
    if (bytes == 0)
        return err_set(err, ST_INVALID, "tier %s is too small to be measured",
                       off_tier_name(tiers, tier));
    enum status st = kn_alloc(kn, spec->mem, spec->device, bytes, &ptr, err);
    if (st) return st;
    st = fill(kn, ptr, bytes);
    if (st)
        err_set(err, st, "the probe of tier %s could not be filled: %s", off_tier_name(tiers, tier),
                status_text(st));
    else st = measure(kn, ptr, bytes, config, bytes_per_s, err);
    kn_free(kn, spec->mem, ptr, bytes);
    return st;
}

enum status off_probe_tiers(struct kn *kn, const struct off_tiers *tiers,
                            const struct off_probe_config *config, struct off_bandwidth *out,
                            char *err)
{
    *out = (struct off_bandwidth){.tier_count = off_tiers_count(tiers)};
    for (int t = 0; t < out->tier_count; t++) {
        if (!off_tier_capacity(tiers, t) && !off_tier_pool_bytes(tiers, t)) continue;
        enum status st = off_probe_read(kn, tiers, t, config, &out->read_bytes_per_s[t], err);
        if (st) return st;
    }
    return ST_OK;
}

static enum status multiply_times(struct kn *kn, uint64_t repeats, double *flops, uint64_t *ns,
                                  char *err)
{
    uint64_t begin = clock_now_ns();
    *flops = 0;
    for (uint64_t i = 0; i < repeats; i++) *flops += kn_matrix_run(kn);
    enum status st = kn_sync(kn, err);
    *ns = clock_now_ns() - begin;
    return st;
}

enum status off_probe_matrix(struct kn *kn, const struct off_probe_config *config,
                             double *flops_per_s, char *err)
{
    uint64_t ns[OFF_PROBE_ROUNDS_MAX] = {0}, repeats = 1, took;
    double flops;
    enum status st = multiply_times(kn, 1, &flops, &took, err);
    *flops_per_s = 0;
    CHECK(config->round_count >= 1 && config->round_count <= OFF_PROBE_ROUNDS_MAX);
    while (!st && flops > 0 && !(st = multiply_times(kn, repeats, &flops, &took, err))) {
        uint64_t next = off_probe_repeats(repeats, took, config->matrix_round_ns_min);
        if (next == repeats) break;
        repeats = next;
    }
    if (st || flops <= 0) return st;
    for (int i = 0; i < config->round_count && !st; i++)
        st = multiply_times(kn, repeats, &flops, &ns[i], err);
    if (!st) *flops_per_s = off_probe_rate((uint64_t)flops, ns, config->round_count);
    return st;
}
