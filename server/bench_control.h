/*
 * bench_control.h - the ways in which a benchmark reads the remote tiers, one measurement each:
 * --control-sweep, or the one that --congestion-control and --remote-window say.
 */
#ifndef DAKD_SERVER_BENCH_CONTROL_H
#define DAKD_SERVER_BENCH_CONTROL_H

#include "config/options.h"
#include "offload/window.h"

#define SRV_BENCH_CONTROLS_MAX 16

struct srv_bench_control {
    char name[OFF_PART_CAP]; /* as --control-sweep calls it; "" without one */
    struct off_control control[KN_TIER_MAX];
};

/* "off,static,adaptive,8x2": the last is a static window of every remote tier.  ST_INVALID says
 * what is wrong. */
MUST_USE enum status srv_bench_controls_read(const struct options *o,
                                             struct srv_bench_control out[SRV_BENCH_CONTROLS_MAX],
                                             int *count, char *err);
bool srv_bench_control_adapts(const struct srv_bench_control *c);

#endif
