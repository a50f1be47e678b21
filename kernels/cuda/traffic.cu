/*
 * traffic.cu - brings the counters that kernels add to into the host's memory; control.c says when
 * and why.
 */
#include <cuda_runtime.h>

#include "kernels/cuda/cuda.h"

static __global__ void sm90_traffic_read(kn_cu_traffic *counters, kn_cu_traffic *host)
{
    const int tier = threadIdx.x;
    if (tier >= KN_TIER_MAX) return;
    host[tier] = counters[tier];
    counters[tier].trip_min = UINT32_MAX;
    counters[tier].trip_max = 0;
}

/* Not launched dependently: it runs alone, so that no kernel adds while it reads and clears. */
extern "C" enum status kn_cu_traffic_launch(struct kn_cu_traffic *counters,
                                            struct kn_cu_traffic *host, void *stream, char *err)
{
    sm90_traffic_read<<<1, 32, 0, (cudaStream_t)stream>>>(counters, host);
    const cudaError_t e = cudaGetLastError();
    if (e == cudaSuccess) return ST_OK;
    return err_set(err, ST_DEVICE, "the counters could not be read: %s", cudaGetErrorString(e));
}
