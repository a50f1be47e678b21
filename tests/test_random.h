/*
 * test_random.h - seeded randomness for tests: DAKD_TEST_SEED, or a fixed seed, printed.
 */
#ifndef DAKD_TESTS_TEST_RANDOM_H
#define DAKD_TESTS_TEST_RANDOM_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define UNUSED __attribute__((unused))

static uint64_t test_random_state = 20251;

static UNUSED void test_seed(void)
{
    const char *text = getenv("DAKD_TEST_SEED");
    test_random_state = text ? strtoull(text, NULL, 0) : 20251;
    printf("seed %llu\n", (unsigned long long)test_random_state);
}

/* splitmix64 */
static UNUSED uint64_t test_random(void)
{
    uint64_t z = test_random_state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

/* Uniform in [-1, 1). */
static UNUSED float test_random_float(void)
{
    return (float)((double)(test_random() >> 11) * 0x1p-52 - 1.0);
}

#endif
