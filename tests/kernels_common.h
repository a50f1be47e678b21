/*
 * kernels_common.h - what the kernel tests share: seeded randomness, weights scattered over tiers
 * with poisoned memory around them, and KV pools.  Everything is static: each test is a program of
 * its own.
 */
#ifndef DAKD_TESTS_KERNELS_COMMON_H
#define DAKD_TESTS_KERNELS_COMMON_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/convert.h"
#include "kernels/cpu/cpu.h"
#include "tests/test_random.h"

/* n random floats; the caller frees. */
static UNUSED float *test_floats(size_t n)
{
    float *f = malloc(n * sizeof *f + 1);
    assert_non_null(f);
    for (size_t i = 0; i < n; i++) f[i] = test_random_float();
    return f;
}

/* Outputs start as NaN, so that an element not written shows. */
static UNUSED float *test_poisoned(size_t n)
{
    float *f = malloc(n * sizeof *f + 1);
    assert_non_null(f);
    memset(f, 0xFF, n * sizeof *f);
    return f;
}

static UNUSED float test_round_to(enum kn_dtype dtype, float f)
{
    char bytes[4];
    kn_store(dtype, bytes, 0, f);
    return kn_load(dtype, bytes, 0);
}

static UNUSED struct kn *test_open(int threads, const struct kn_cpu_isa *isa)
{
    struct kn *kn;
    char err[ERR_CAP] = "";
    if (kn_cpu_open(threads, isa, &kn, err)) fail_msg("%s", err);
    return kn;
}

/* A weight and the values it was made from: f[N,K] fp32, rounded to the dtype, so the weight holds
 * them exactly. */
struct test_weight {
    struct kn_weight w;
    float *f;    /* owned */
    void *arena; /* owned: tiers one after another */
};

/* Tiles [0, split) lie in tier 0, the others in tier 2; split < 0 puts all in tier 1. */
static UNUSED struct test_weight test_weight_make(enum kn_dtype dtype, int32_t rows, int32_t cols,
                                                  int32_t split, const float *values)
{
    struct test_weight t = {0};
    kn_weight_init(&t.w, dtype, rows, cols);
    size_t n = (size_t)rows * (size_t)cols, tile_bytes = kn_weight_tile_bytes(&t.w);
    t.f = test_floats(n);
    for (size_t i = 0; i < n; i++) t.f[i] = test_round_to(dtype, values ? values[i] : t.f[i]);
    size_t bytes = (size_t)t.w.tile_count * tile_bytes;
    t.arena = aligned_alloc(KN_ALIGN, bytes);
    assert_non_null(t.arena);
    memset(t.arena, 0xFF, bytes); /* NaN: padding that is not written would spread */
    if (split > t.w.tile_count) split = t.w.tile_count;
    if (split < 0) {
        t.w.span[1] = (struct kn_span){t.arena, 0, t.w.tile_count};
    } else {
        /* Tier 2 first in memory, so that the order of addresses is not the order of tiles. */
        size_t high_bytes = (size_t)(t.w.tile_count - split) * tile_bytes;
        t.w.span[2] = (struct kn_span){t.arena, split, t.w.tile_count - split};
        t.w.span[0] = (struct kn_span){(char *)t.arena + high_bytes, 0, split};
    }
    for (int32_t tile = 0; tile < t.w.tile_count; tile++) {
        const void *src[KN_TILE_ROWS] = {0};
        for (int32_t r = 0; r < KN_TILE_ROWS && tile * KN_TILE_ROWS + r < rows; r++)
            src[r] = t.f + (size_t)(tile * KN_TILE_ROWS + r) * (size_t)cols;
        kn_pack_tile(&t.w, (void *)(uintptr_t)kn_weight_tile(&t.w, tile), src, KN_F32);
    }
    return t;
}

static UNUSED void test_weight_free(struct test_weight *t)
{
    free(t->f);
    free(t->arena);
}

#endif
