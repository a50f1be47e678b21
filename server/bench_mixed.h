/*
 * bench_mixed.h - `dakd bench --request-rate R`: what prompts that arrive do to sequences that
 * decode, and those to them, for each of several settings of the scheduler.
 */
#ifndef DAKD_SERVER_BENCH_MIXED_H
#define DAKD_SERVER_BENCH_MIXED_H

#include "config/options.h"

/* Prints a table on standard output and writes it to --json; the exit status, as srv_bench. */
int srv_bench_mixed(const struct options *o);

#endif
