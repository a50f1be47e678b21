/*
 * bench.h - `dakd bench`: the engine, driven offline with B sequences of N random prompt tokens and
 * M answer tokens each, beside the floor that the bytes of a step and the bandwidths of this
 * machine's tiers, probed in the same run, set.
 */
#ifndef DAKD_SERVER_BENCH_H
#define DAKD_SERVER_BENCH_H

#include "config/options.h"

/* Prints the results on standard output and writes them to --json; the exit status: 0, 1 after a
 * failure, 2 where flags are missing or contradict each other. */
int srv_bench(const struct options *o);

#endif
