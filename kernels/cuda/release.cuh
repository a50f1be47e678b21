/*
 * release.cuh - how a warp of consumers lets go of a slot of a ring.
 */
#ifndef DAKD_KERNELS_CUDA_RELEASE_CUH
#define DAKD_KERNELS_CUDA_RELEASE_CUH

#include "kernels/cuda/ptx.cuh"

/* Lanes of a warp that arrive: one, after the warp has met; all of them in a debug build, because
 * racecheck does not see that one lane's arrival speaks for the others. */
#ifdef DAKD_DEBUG
enum { CU_ARRIVALS = 32 };
#else
enum { CU_ARRIVALS = 1 };
#endif

/* Of all lanes of a warp that has met: `empty` counts CU_ARRIVALS for each such warp. */
PTX_INLINE void cu_release(uint64_t *empty, int lane)
{
    if (CU_ARRIVALS == 32 || lane == 0) ptx_mbarrier_arrive(empty);
}

#endif
