/*
 * memory.c - the CUDA backend's memory.
 *
 *     LOCAL    cudaMalloc
 *     HOST     an anonymous mapping on 2 MB pages, touched by several threads, then registered:
 *              0.6 s for 4 GiB where cudaHostAlloc takes 1.3 s, and the same bandwidth
 *     PEER     cudaMalloc on the other GPU, with peer access from ours
 *     STAGING  pinned host memory, and device memory of the same size that products write;
 *              kn_download copies from it to the host (step.c)
 *
 * Addresses are unified: what kn_alloc returns is the address kernels use, which is checked for
 * HOST.
 *
 * Uploads to a GPU go through a ring of pinned slots, so that the caller's buffer is free at once
 * and the copy overlaps the packing of the next tile.  They are ordered by the stream.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "config/check.h"
#include "kernels/cuda/state.h"

#define GIB 1073741824.0
#define HUGE_PAGE ((size_t)2 << 20)
#define UPLOAD_SLOT_BYTES ((size_t)4 << 20)
#define TOUCH_THREADS_MAX 16

/* --- regions --- */

struct kn_cu_region *kn_cu_region_of(struct kn_cu *cu, const void *p)
{
    for (struct kn_cu_region *r = cu->regions; r; r = r->next)
        if ((const char *)p >= r->base && (const char *)p < r->base + r->bytes) return r;
    return NULL;
}

/* --- device memory --- */

static enum status out_of_memory(int device, size_t bytes, const char *flags, char *err)
{
    size_t left = 0, total = 0;
    (void)cudaGetLastError();
    if (cudaMemGetInfo(&left, &total) != cudaSuccess) left = total = 0;
    return err_set(err, ST_NOMEM,
                   "cannot allocate %zu bytes (%.2f GiB) on GPU %d, where %.2f of %.2f GiB are "
                   "free: %s",
                   bytes, (double)bytes / GIB, device, (double)left / GIB, (double)total / GIB,
                   flags);
}

static const char local_flags[] = "lower --gpu-memory-utilization or --kv-cache-memory-bytes, or "
                                  "move weights out with --remote and --offload";
static const char peer_flags[] = "make that tier smaller in --remote";

/* Zeroed memory of a device, as cudaMalloc gives it: with room to align it.  Ours is the current
 * device again when this returns. */
static enum status alloc_device(struct kn_cu *cu, int device, size_t bytes, void **raw, char *err)
{
    enum status st = ST_OK;
    cudaError_t e = cudaSetDevice(device);
    bytes = bytes > SIZE_MAX - KN_ALIGN ? bytes : bytes + KN_ALIGN;
    if (e == cudaSuccess) e = cudaMalloc(raw, bytes);
    if (e == cudaErrorMemoryAllocation) {
        *raw = NULL;
        st = out_of_memory(device, bytes, device == cu->device ? local_flags : peer_flags, err);
        e = cudaSuccess;
    } else if (e == cudaSuccess) {
        e = cudaMemset(*raw, 0, bytes);
        if (e == cudaSuccess) e = cudaDeviceSynchronize();
    }
    if (device != cu->device && e == cudaSuccess) e = cudaSetDevice(cu->device);
    if (!kn_cu_ok(cu, e, "to allocate memory")) st = err_set(err, ST_DEVICE, "%s", cu->failure);
    return st;
}

static enum status alloc_peer(struct kn_cu *cu, int device, size_t bytes, void **raw, char *err)
{
    int count = 0, reachable = 0;
    if (!kn_cu_ok(cu, cudaGetDeviceCount(&count), "to count its peers"))
        return err_set(err, ST_DEVICE, "%s", cu->failure);
    if (device < 0 || device >= count || device == cu->device)
        return err_set(err, ST_UNSUPPORTED,
                       "--remote peer:%d: this machine has %d GPU%s, and GPU %d computes", device,
                       count, count == 1 ? "" : "s", cu->device);
    if (!kn_cu_ok(cu, cudaDeviceCanAccessPeer(&reachable, cu->device, device), "to find its peer"))
        return err_set(err, ST_DEVICE, "%s", cu->failure);
    if (!reachable)
        return err_set(err, ST_UNSUPPORTED,
                       "--remote peer:%d: GPU %d cannot read the memory of GPU %d", device,
                       cu->device, device);
    cudaError_t e = cudaDeviceEnablePeerAccess(device, 0);
    if (e == cudaErrorPeerAccessAlreadyEnabled) {
        (void)cudaGetLastError();
        e = cudaSuccess;
    }
    if (!kn_cu_ok(cu, e, "to reach its peer")) return err_set(err, ST_DEVICE, "%s", cu->failure);
    return alloc_device(cu, device, bytes, raw, err);
}

/* --- host memory --- */

struct touch {
    char *base;
    size_t bytes;
    pthread_t thread;
};

/* A byte in every small page: the kernel may have given no huge ones. */
static void *touch_pages(void *arg)
{
    const struct touch *t = arg;
    for (size_t i = 0; i < t->bytes; i += 4096) *(volatile char *)(t->base + i) = 0;
    return NULL;
}

/* The calling thread takes the first part, and those of threads that cannot be had. */
static void touch_all(char *base, size_t bytes)
{
    struct touch part[TOUCH_THREADS_MAX];
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    size_t count = cores < 1 ? 1 : size_min((size_t)cores, TOUCH_THREADS_MAX), started = 1;
    size_t each = round_up(div_up(bytes, count), HUGE_PAGE);
    for (size_t i = 0; i < count; i++) {
        size_t begin = size_min(i * each, bytes), end = size_min(begin + each, bytes);
        part[i] = (struct touch){.base = base + begin, .bytes = end - begin};
    }
    while (started < count &&
           !pthread_create(&part[started].thread, NULL, touch_pages, &part[started]))
        started++;
    touch_pages(&part[0]);
    for (size_t i = started; i < count; i++) touch_pages(&part[i]);
    for (size_t i = 1; i < started; i++) pthread_join(part[i].thread, NULL);
}

/* A zeroed mapping at a multiple of 2 MB; bytes is one too.  NULL where memory is refused. */
static char *map_huge(size_t bytes)
{
    char *p =
        mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
    size_t head = round_up((uintptr_t)p, HUGE_PAGE) - (uintptr_t)p;
    if (head) CHECK(munmap(p, head) == 0);
    if (head < HUGE_PAGE) CHECK(munmap(p + head + bytes, HUGE_PAGE - head) == 0);
    if (madvise(p + head, bytes, MADV_HUGEPAGE)) {
        /* A kernel without huge pages: small ones serve. */
    }
    return p + head;
}

/* What touching may take before the kernel kills somebody.  SIZE_MAX where nobody says. */
static size_t host_memory(void)
{
    uint64_t total, available;
    return kn_host_memory(&total, &available, NULL) ? SIZE_MAX : available;
}

static enum status alloc_host(struct kn_cu *cu, size_t bytes, char **out, char *err)
{
    void *seen = NULL;
    if (bytes > host_memory())
        return err_set(
            err, ST_NOMEM,
            "%zu bytes (%.2f GiB) of host memory were asked for, and %.2f GiB can be had: "
            "make the host tier of --remote smaller",
            bytes, (double)bytes / GIB, (double)host_memory() / GIB);
    if (bytes > SIZE_MAX - 2 * HUGE_PAGE || !(*out = map_huge(round_up(bytes, HUGE_PAGE))))
        return err_set(err, ST_NOMEM,
                       "cannot allocate %zu bytes (%.2f GiB) of host memory: make the host tier of "
                       "--remote smaller",
                       bytes, (double)bytes / GIB);
    bytes = round_up(bytes, HUGE_PAGE);
    touch_all(*out, bytes);
    cudaError_t e =
        cudaHostRegister(*out, bytes, cudaHostRegisterMapped | cudaHostRegisterPortable);
    if (e != cudaSuccess) {
        (void)cudaGetLastError();
        CHECK(munmap(*out, bytes) == 0);
        *out = NULL;
        return err_set(err, ST_NOMEM,
                       "cannot pin %.2f GiB of host memory: %s (%s); make the host tier of "
                       "--remote smaller, or raise the limit of locked memory",
                       (double)bytes / GIB, cudaGetErrorName(e), cudaGetErrorString(e));
    }
    e = cudaHostGetDevicePointer(&seen, *out, 0);
    if (e == cudaSuccess && seen == *out) return ST_OK;
    (void)cudaGetLastError();
    (void)cudaHostUnregister(*out);
    CHECK(munmap(*out, bytes) == 0);
    *out = NULL;
    return err_set(err, ST_UNSUPPORTED,
                   "GPU %d does not see host memory at the host's addresses, which --remote host: "
                   "needs",
                   cu->device);
}

/* r->raw is the device's copy.  Small pieces of pinned memory come unaligned, so there is room to
 * align them. */
static enum status alloc_staging(struct kn_cu *cu, struct kn_cu_region *r, char *err)
{
    size_t bytes = r->bytes;
    enum status st = alloc_device(cu, cu->device, bytes, &r->raw, err);
    if (st) return st;
    cudaError_t e = cudaHostAlloc(&r->raw_host, bytes + KN_ALIGN, cudaHostAllocPortable);
    if (e == cudaSuccess) {
        r->base = (char *)round_up((uintptr_t)r->raw_host, KN_ALIGN);
        memset(r->base, 0, bytes);
        return ST_OK;
    }
    (void)cudaGetLastError();
    (void)cudaFree(r->raw);
    return err_set(err, ST_NOMEM, "cannot pin %.3f GiB of host memory for results: %s (%s)",
                   (double)bytes / GIB, cudaGetErrorName(e), cudaGetErrorString(e));
}

/* --- kn_alloc and kn_free --- */

enum status kn_cu_alloc(struct kn *kn, enum kn_mem mem, int device, size_t bytes, void **out,
                        char *err)
{
    struct kn_cu *cu = kn_cu_of(kn);
    enum status st = ST_OK;
    *out = NULL;
    if (!kn_cu_enter(cu)) return err_set(err, ST_DEVICE, "%s", cu->failure);
    struct kn_cu_region *r = calloc(1, sizeof *r);
    if (!r) return err_set(err, ST_NOMEM, "no memory for the table of allocations");
    *r = (struct kn_cu_region){.mem = mem, .device = cu->device, .bytes = size_max(bytes, 1)};
    switch (mem) {
    case KN_MEM_LOCAL: st = alloc_device(cu, cu->device, r->bytes, &r->raw, err); break;
    case KN_MEM_HOST: st = alloc_host(cu, r->bytes, &r->base, err); break;
    case KN_MEM_PEER:
        r->device = device;
        st = alloc_peer(cu, device, r->bytes, &r->raw, err);
        break;
    case KN_MEM_STAGING: st = alloc_staging(cu, r, err); break;
    }
    if (st) {
        free(r);
        return st;
    }
    char *aligned = (char *)round_up((uintptr_t)r->raw, KN_ALIGN);
    if (mem == KN_MEM_STAGING) r->twin = aligned;
    else if (mem != KN_MEM_HOST) r->base = aligned;
    CHECK((uintptr_t)r->base % KN_ALIGN == 0);
    r->serial = ++cu->region_serial;
    r->next = cu->regions;
    cu->regions = r;
    *out = r->base;
    return ST_OK;
}

/* After a failure the driver frees nothing any more; the process is about to end. */
void kn_cu_free(struct kn *kn, enum kn_mem mem, void *ptr, size_t bytes)
{
    struct kn_cu *cu = kn_cu_of(kn);
    struct kn_cu_region **link = &cu->regions, *r;
    while (*link && (*link)->base != ptr) link = &(*link)->next;
    r = *link;
    CHECK(r && r->mem == mem && r->bytes == size_max(bytes, 1));
    *link = r->next;
    /* A sum that nobody asked for before its memory was freed is not made. */
    kn_cu_drop_pending(cu, r->base, r->bytes);
    if (kn_cu_enter(cu)) (void)kn_cu_issue_held(cu);
    (void)cudaSetDevice(cu->device);
    (void)cudaStreamSynchronize(cu->stream);
    (void)kn_cu_moves_sync(cu);
    kn_cu_forget_undivided(cu, r->base, r->bytes);
    if (r->serial <= cu->record.region_serial) kn_cu_record_drop(cu);
    if (mem == KN_MEM_HOST) {
        (void)cudaHostUnregister(r->base);
        CHECK(munmap(r->base, round_up(r->bytes, HUGE_PAGE)) == 0);
    } else if (mem == KN_MEM_STAGING) {
        (void)cudaFreeHost(r->raw_host);
    }
    if (r->raw) (void)cudaFree(r->raw);
    free(r);
}

enum status kn_cu_memory(struct kn *kn, uint64_t *total, uint64_t *available, char *err)
{
    struct kn_cu *cu = kn_cu_of(kn);
    size_t left = 0, all = 0;
    if (!kn_cu_enter(cu) ||
        !kn_cu_ok(cu, cudaMemGetInfo(&left, &all), "to say how much memory it has"))
        return err_set(err, ST_DEVICE, "%s", cu->failure);
    *total = all;
    *available = left;
    return ST_OK;
}

/* --- uploads --- */

enum status kn_cu_upload_open(struct kn_cu *cu, char *err)
{
    struct kn_cu_upload *u = &cu->upload;
    for (int i = 0; i < KN_CU_UPLOAD_SLOTS; i++)
        if (!kn_cu_ok(cu, cudaHostAlloc((void **)&u->slot[i], UPLOAD_SLOT_BYTES, 0),
                      "to pin its upload buffers") ||
            !kn_cu_ok(cu, cudaEventCreateWithFlags(&u->free[i], cudaEventDisableTiming),
                      "to make an event"))
            return err_set(err, ST_DEVICE, "%s", cu->failure);
    return ST_OK;
}

void kn_cu_upload_close(struct kn_cu *cu)
{
    struct kn_cu_upload *u = &cu->upload;
    for (int i = 0; i < KN_CU_UPLOAD_SLOTS; i++) {
        if (u->slot[i]) (void)cudaFreeHost(u->slot[i]);
        if (u->free[i]) (void)cudaEventDestroy(u->free[i]);
    }
}

/* Into memory the host can write: after what was issued, which may still read it. */
static bool upload_host(struct kn_cu *cu, char *dst, const char *src, size_t bytes)
{
    if (cu->busy && !kn_cu_ok(cu, cudaStreamSynchronize(cu->stream), "in a step")) return false;
    memcpy(dst, src, bytes);
    return true;
}

static bool upload_device(struct kn_cu *cu, char *dst, const char *src, size_t bytes)
{
    struct kn_cu_upload *u = &cu->upload;
    for (size_t at = 0; at < bytes; at += UPLOAD_SLOT_BYTES) {
        size_t part = size_min(bytes - at, UPLOAD_SLOT_BYTES);
        unsigned i = u->next++ % KN_CU_UPLOAD_SLOTS;
        if (!kn_cu_ok(cu, cudaEventSynchronize(u->free[i]), "in an upload")) return false;
        memcpy(u->slot[i], src + at, part);
        if (!kn_cu_ok(cu,
                      cudaMemcpyAsync(dst + at, u->slot[i], part, cudaMemcpyDefault, cu->stream),
                      "to start an upload") ||
            !kn_cu_ok(cu, cudaEventRecord(u->free[i], cu->stream), "to record an event"))
            return false;
    }
    return true;
}

enum status kn_cu_upload(struct kn *kn, void *dst, const void *src, size_t bytes)
{
    struct kn_cu *cu = kn_cu_of(kn);
    if (bytes == 0) return ST_OK;
    /* No operation is under way where another thread uploads, so nothing is held then. */
    if (!kn_cu_enter(cu) || !kn_cu_issue_held(cu)) return ST_DEVICE;
    const struct kn_cu_region *r = kn_cu_region_of(cu, dst);
    CHECK(r && r->mem != KN_MEM_STAGING && (char *)dst + bytes <= r->base + r->bytes);
    bool ok = r->mem == KN_MEM_HOST ? upload_host(cu, dst, src, bytes)
                                    : upload_device(cu, dst, src, bytes);
    if (ok && r->mem == KN_MEM_PEER) ok = kn_cu_fetch_behind(cu);
    return ok ? ST_OK : ST_DEVICE;
}
