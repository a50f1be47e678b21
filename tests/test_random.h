/*
 * test_random.h - seeded randomness for tests: DAKD_TEST_SEED, or a fixed seed, printed.
 */
#ifndef DAKD_TESTS_TEST_RANDOM_H
#define DAKD_TESTS_TEST_RANDOM_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "config/random.h"

#define UNUSED __attribute__((unused))

static uint64_t test_random_state = 20251;

static UNUSED void test_seed(void)
{
    const char *text = getenv("DAKD_TEST_SEED");
    test_random_state = text ? strtoull(text, NULL, 0) : 20251;
    printf("seed %llu\n", (unsigned long long)test_random_state);
}

static UNUSED uint64_t test_random(void)
{
    return random_next(&test_random_state);
}

/* Uniform in [-1, 1). */
static UNUSED float test_random_float(void)
{
    return (float)((double)(test_random() >> 11) * 0x1p-52 - 1.0);
}

#endif
