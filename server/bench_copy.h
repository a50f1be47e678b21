/*
 * bench_copy.h - --background-copy: something else that uses a remote tier's link while a benchmark
 * measures.
 */
#ifndef DAKD_SERVER_BENCH_COPY_H
#define DAKD_SERVER_BENCH_COPY_H

#include "config/options.h"
#include "kernels/copy.h"
#include "offload/tiers.h"

struct srv_bench_copy {
    int tier;           /* 0: there is none */
    double bytes_per_s; /* that are asked for; 0: as many as there can be */
};

/* "host:25GB/s", "peer1:100GB/s", "host".  ST_INVALID says what is wrong. */
MUST_USE enum status srv_bench_copy_read(const struct options *o, struct srv_bench_copy *out,
                                         char *err);
/* NULL where there is none. */
MUST_USE enum status srv_bench_copy_start(const struct srv_bench_copy *c, struct kn *kn,
                                          const struct off_tiers *tiers, struct kn_copy **out,
                                          char *err);

#endif
