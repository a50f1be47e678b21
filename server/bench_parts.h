/*
 * bench_parts.h - what parts of the kernels' launches are worth (--without): the same measured with
 * all of them and without each in turn, of one loading.
 */
#ifndef DAKD_SERVER_BENCH_PARTS_H
#define DAKD_SERVER_BENCH_PARTS_H

#include "config/options.h"
#include "kernels/kernels.h"

#define SRV_BENCH_PARTS_MAX 4

struct srv_bench_part {
    const char *name; /* as --without calls what is left out; "" for nothing */
    unsigned without; /* KN_WITHOUT_* */
};

/* out[0] leaves nothing out; of --without "dependent-launch,split-k" two more.  ST_INVALID says
 * what is wrong. */
MUST_USE enum status srv_bench_parts_read(const struct options *o,
                                          struct srv_bench_part out[SRV_BENCH_PARTS_MAX],
                                          int *count, char *err);

#endif
