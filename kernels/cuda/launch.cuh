/*
 * launch.cuh - how every kernel of a step is launched.
 *
 * Dependent: the kernel may start while its predecessor drains (programmatic dependent launch).
 * Carveout: an SM divides its 256 KB into L1 and shared memory one way at a time and must drain to
 * change it.  The products want all of it shared; so do all other kernels of a step, or none of
 * them could start beside a product, nor the next product beside them.
 * Cluster: so many CTAs, one after another, share an SM cluster; it divides the grid.
 */
#ifndef DAKD_KERNELS_CUDA_LAUNCH_CUH
#define DAKD_KERNELS_CUDA_LAUNCH_CUH

#include <cuda_runtime.h>

struct cu_launch {
    cudaLaunchAttribute attribute[3];
    cudaLaunchConfig_t config;

    cu_launch(int ctas, int threads, size_t shared_bytes, void *stream, bool dependent = true,
              int cluster = 1)
        : attribute(), config()
    {
        unsigned count = 0;
        attribute[count].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
        attribute[count++].val.sharedMemCarveout = cudaSharedmemCarveoutMaxShared;
        if (dependent) {
            attribute[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
            attribute[count++].val.programmaticStreamSerializationAllowed = 1;
        }
        if (cluster > 1) {
            attribute[count].id = cudaLaunchAttributeClusterDimension;
            attribute[count++].val.clusterDim = {(unsigned)cluster, 1, 1};
        }
        config.gridDim = dim3((unsigned)ctas);
        config.blockDim = dim3((unsigned)threads);
        config.dynamicSmemBytes = shared_bytes;
        config.stream = (cudaStream_t)stream;
        config.attrs = attribute;
        config.numAttrs = count;
    }
    /* The attributes are referred to by address. */
    cu_launch(const cu_launch &) = delete;
    cu_launch &operator=(const cu_launch &) = delete;
};

#endif
