/*
 * probe.cu - reads a remote memory beside HBM, as the products do, but with no work on what
 * arrives: what a window is worth, measured on the machine at hand.
 *
 * Read.  Every SM has one CTA, whose first warp streams HBM with 96 KB in flight, the least that
 * gives its full rate; in the first CTAs a second warp keeps a window of remote blocks in flight.
 * Each warp has one lane, a ring and barriers of its own, and asks for the next block into the slot
 * whose block has just landed.  It waits for slots in order, so a trip that overtook another is
 * seen late, by less than the other's lead: with one link in order this is noise.
 *
 * A CTA reads until its time is over, waits for what is in flight and divides its blocks by its own
 * time, that wait included: no rate is cut off, however long the trips.  The clock of all SMs is
 * read at every remote block, and at every eighth local one, of which there are two in a
 * microsecond.
 *
 * No cache hint: blocks that are the first to be evicted leave what was in L2 before where it is,
 * and with the end of the buffer there HBM seemed to give 4.91 TB/s of its 4.8.
 *
 * Multicast.  A cluster's first CTA asks for each block once, for all of them.  A slot is free when
 * every CTA has armed it for its next block and told the first one so; a CTA whose barrier is not
 * armed yet may get bytes, since only arming can end a phase.  How many blocks there are is known
 * beforehand, so that nobody has to be told the end.
 */
#include <cuda_runtime.h>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/probe.h"
#include "kernels/cuda/ptx.cuh"

#define THREADS 64
#define SLOTS KN_CU_PROBE_SLOTS
#define CLOCK_PERIOD 8 /* local blocks between two looks at the clock */

struct probe_ring {
    uint8_t *data;  /* [SLOTS][16 KB] */
    uint64_t *full; /* [SLOTS] */
    uint32_t *sent; /* [SLOTS]: the clock when each was asked for */
    int slots;
};

struct probe_trips {
    uint64_t sum;
    uint32_t least, largest;
};

static __device__ void ask(const probe_ring &r, int slot, const uint8_t *block)
{
    r.sent[slot] = ptx_clock();
    ptx_mbarrier_expect_tx(&r.full[slot], KN_BLOCK_BYTES);
    ptx_bulk_load(r.data + slot * KN_BLOCK_BYTES, block, KN_BLOCK_BYTES, &r.full[slot]);
}

/* Reads blocks first, first + stride, ... of memory for about ns; how many and how long. */
static __device__ void read_for(const probe_ring &r, const uint8_t *from, size_t bytes,
                                uint32_t first, uint32_t stride, uint64_t ns, uint32_t period,
                                uint64_t *blocks, uint64_t *took, probe_trips *trips)
{
    const uint32_t count = (uint32_t)(bytes / KN_BLOCK_BYTES);
    const uint64_t begin = ptx_globaltimer();
    uint32_t at = first % count, asked = 0, landed = 0;
    bool over = false;
    for (; asked < (uint32_t)r.slots; asked++, at = (at + stride) % count)
        ask(r, (int)asked, from + (size_t)at * KN_BLOCK_BYTES);
    *trips = {0, UINT32_MAX, 0};
    while (landed < asked) {
        const int slot = (int)(landed % r.slots);
        ptx_mbarrier_wait(&r.full[slot], landed / r.slots & 1);
        const uint32_t trip = ptx_clock() - r.sent[slot];
        trips->sum += trip;
        trips->least = min(trips->least, trip);
        trips->largest = max(trips->largest, trip);
        if (++landed % period == 0 && ptx_globaltimer() - begin >= ns) over = true;
        if (over) continue;
        ask(r, slot, from + (size_t)at * KN_BLOCK_BYTES);
        at = (at + stride) % count;
        asked++;
    }
    *blocks = landed;
    *took = ptx_globaltimer() - begin;
}

static __global__ void __launch_bounds__(THREADS, 1)
    sm90_probe_read(struct kn_cu_probe_read r, struct kn_cu_probe_out *out)
{
    extern __shared__ __align__(1024) uint8_t data[];
    __shared__ uint64_t full[2][SLOTS];
    __shared__ uint32_t sent[2][SLOTS];
    const int half = threadIdx.x / 32;
    struct kn_cu_probe_out *o = &out[blockIdx.x];
    probe_trips trips;
    if (threadIdx.x % 32) return;
    for (int s = 0; s < SLOTS; s++) ptx_mbarrier_init(&full[half][s], 1);
    ptx_fence_mbarrier_init();
    const probe_ring ring = {data + half * SLOTS * KN_BLOCK_BYTES, full[half], sent[half],
                             half ? r.slots : SLOTS};
    if (half == 0) {
        if (!r.local) return;
        read_for(ring, (const uint8_t *)r.local, r.local_bytes, blockIdx.x, gridDim.x, r.ns,
                 CLOCK_PERIOD, &o->local_blocks, &o->local_ns, &trips);
        return;
    }
    if ((int)blockIdx.x >= r.readers) return;
    read_for(ring, (const uint8_t *)r.remote, r.remote_bytes, blockIdx.x, (uint32_t)r.readers, r.ns,
             1, &o->remote_blocks, &o->remote_ns, &trips);
    o->trip_clocks = trips.sum;
    o->trip_min = trips.least;
    o->trip_max = trips.largest;
}

/* The blocks of one CTA; only the cluster's first asks for any. */
static __device__ void share_blocks(const struct kn_cu_probe_multicast &m, uint8_t *data,
                                    uint64_t *full, uint64_t *empty)
{
    const uint32_t rank = blockIdx.x % m.cluster, slots = (uint32_t)m.slots;
    const uint32_t count = (uint32_t)(m.remote_bytes / KN_BLOCK_BYTES);
    const uint32_t free_there = ptx_mapa(ptx_shared(empty), 0);
    const uint16_t all = (uint16_t)((1u << m.cluster) - 1);
    const uint8_t *from = (const uint8_t *)m.remote;
    uint32_t at = blockIdx.x / m.cluster % count;
    for (uint32_t n = 0; n < m.blocks + slots; n++) {
        const uint32_t s = n % slots, turn = n / slots;
        if (turn) ptx_mbarrier_wait(&full[s], (turn - 1) & 1);
        if (n >= m.blocks) continue; /* nothing more for this slot */
        ptx_mbarrier_expect_tx(&full[s], KN_BLOCK_BYTES);
        ptx_mbarrier_arrive_cluster(free_there + s * (uint32_t)sizeof *empty);
        if (rank) continue;
        ptx_mbarrier_wait(&empty[s], turn & 1);
        ptx_bulk_load_multicast(data + s * KN_BLOCK_BYTES, from + (size_t)at * KN_BLOCK_BYTES,
                                KN_BLOCK_BYTES, &full[s], all);
        at = (at + (uint32_t)m.clusters) % count;
    }
}

static __global__ void __launch_bounds__(32, 1)
    sm90_probe_multicast(struct kn_cu_probe_multicast m, struct kn_cu_probe_out *out)
{
    extern __shared__ __align__(1024) uint8_t data[];
    __shared__ uint64_t full[SLOTS], empty[SLOTS];
    if (threadIdx.x == 0) {
        for (int s = 0; s < SLOTS; s++) {
            ptx_mbarrier_init(&full[s], 1);
            ptx_mbarrier_init(&empty[s], (uint32_t)m.cluster);
        }
        ptx_fence_mbarrier_init();
    }
    __syncwarp();
    ptx_cluster_sync_relaxed();
    if (threadIdx.x == 0) {
        const uint64_t begin = ptx_globaltimer();
        share_blocks(m, data, full, empty);
        if (blockIdx.x % m.cluster == 0) {
            out[blockIdx.x / m.cluster].remote_blocks = m.blocks;
            out[blockIdx.x / m.cluster].remote_ns = ptx_globaltimer() - begin;
        }
    }
    __syncwarp();
    ptx_cluster_sync_relaxed(); /* nobody leaves while another may write to its memory */
}

static enum status launched(cudaError_t e, char *err)
{
    if (e == cudaSuccess) return ST_OK;
    return err_set(err, ST_DEVICE, "the probe could not be launched: %s", cudaGetErrorString(e));
}

enum status kn_cu_probe_read_launch(const struct kn_cu_probe_read *r, struct kn_cu_probe_out *out,
                                    void *stream, char *err)
{
    /* One ring where nothing remote is read: a product's CTA then fits beside it. */
    const int shared = (r->readers ? 2 : 1) * SLOTS * KN_BLOCK_BYTES;
    const cu_launch l(r->ctas, THREADS, (size_t)shared, stream, false);
    cudaError_t e =
        cudaFuncSetAttribute(sm90_probe_read, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (e == cudaSuccess) e = cudaLaunchKernelEx(&l.config, sm90_probe_read, *r, out);
    return launched(e, err);
}

enum status kn_cu_probe_multicast_launch(const struct kn_cu_probe_multicast *m,
                                         struct kn_cu_probe_out *out, void *stream, char *err)
{
    const int shared = SLOTS * KN_BLOCK_BYTES;
    const cu_launch l(m->clusters * m->cluster, 32, (size_t)shared, stream, false, m->cluster);
    cudaError_t e = cudaFuncSetAttribute(sm90_probe_multicast,
                                         cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (e == cudaSuccess) e = cudaLaunchKernelEx(&l.config, sm90_probe_multicast, *m, out);
    return launched(e, err);
}
