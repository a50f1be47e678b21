/*
 * probe.h - the launchers of probe.cu: memories read side by side, for what a link and its windows
 * give.  stream is a cudaStream_t.  ST_DEVICE with CUDA's sentence where a launch fails.
 */
#ifndef DAKD_KERNELS_CUDA_PROBE_H
#define DAKD_KERNELS_CUDA_PROBE_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Blocks in flight of one CTA, at most, of either memory. */
#define KN_CU_PROBE_SLOTS 6

/* What a CTA did: blocks read and how long that took it, of each memory; trips of remote blocks. */
struct kn_cu_probe_out {
    uint64_t local_blocks, local_ns, remote_blocks, remote_ns, trip_clocks;
    uint32_t trip_min, trip_max; /* clocks */
};

/* For about `ns`, each of `ctas` CTAs keeps KN_CU_PROBE_SLOTS blocks of local memory in flight
 * (local NULL: none), and the first `readers` of them `slots` blocks of remote memory beside. */
struct kn_cu_probe_read {
    const void *local, *remote;
    size_t local_bytes, remote_bytes; /* multiples of KN_BLOCK_BYTES */
    int ctas, readers, slots;
    uint64_t ns;
};
/* out[ctas] in device memory. */
MUST_USE enum status kn_cu_probe_read_launch(const struct kn_cu_probe_read *r,
                                             struct kn_cu_probe_out *out, void *stream, char *err);

/* Each of `clusters` clusters of `cluster` CTAs reads `blocks` blocks, `slots` at a time, each of
 * them once and into all of its CTAs.  out[clusters]: of remote memory, as it crossed the link. */
struct kn_cu_probe_multicast {
    const void *remote;
    size_t remote_bytes;
    int clusters, cluster, slots;
    uint32_t blocks;
};
MUST_USE enum status kn_cu_probe_multicast_launch(const struct kn_cu_probe_multicast *m,
                                                  struct kn_cu_probe_out *out, void *stream,
                                                  char *err);

#ifdef __cplusplus
}
#endif

#endif
