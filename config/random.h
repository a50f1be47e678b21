/*
 * random.h - SplitMix64: numbers that repeat with their seed, and are nobody's secret.
 */
#ifndef DAKD_CONFIG_RANDOM_H
#define DAKD_CONFIG_RANDOM_H

#include <stdint.h>

#define RANDOM_STEP 0x9E3779B97F4A7C15ull

/* Neighbouring values give unrelated ones. */
static inline uint64_t random_mix(uint64_t v)
{
    v += RANDOM_STEP;
    v = (v ^ v >> 30) * 0xBF58476D1CE4E5B9ull;
    v = (v ^ v >> 27) * 0x94D049BB133111EBull;
    return v ^ v >> 31;
}

/* The next of the stream that any *state begins. */
static inline uint64_t random_next(uint64_t *state)
{
    const uint64_t v = random_mix(*state);
    *state += RANDOM_STEP;
    return v;
}

#endif
