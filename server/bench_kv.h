/*
 * bench_kv.h - `dakd bench --kv-sweep`: a whole workload under each of several ways to do with less
 * local KV memory than its sequences need, of one loading.
 *
 *     all          pages behind the link are read in place, and all sequences run at once
 *     throughput   the same, but for those with which steps would give fewer tokens a second
 *     swap         sequences run with all their pages local, or wait with them behind the link
 *     recompute    and those that wait have none
 *
 * B sequences are submitted at once, and the run ends with the last token of the last.  A step's
 * time says little here, for who runs differs: what is reported is how long it all took, how long
 * anybody waited for a first or a further token, and what was computed again or moved.  With
 * --given-context all sequences are live when it begins: as many as there is room for have their KV
 * in local memory, the others behind the link, or, of recompute, not at all.
 */
#ifndef DAKD_SERVER_BENCH_KV_H
#define DAKD_SERVER_BENCH_KV_H

#include "config/options.h"

/* Returns the process's exit status. */
int srv_bench_kv(const struct options *o);

#endif
