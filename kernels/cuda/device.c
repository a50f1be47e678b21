/*
 * device.c - opening the CUDA backend, its errors, and what it can compute.
 *
 * cudart is linked statically and looks for the driver when it is first called, so this code is in
 * every binary built with nvcc and runs where there is no GPU: it then finds none and says so.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "kernels/cuda/prefill.h"
#include "kernels/cuda/small.h"
#include "kernels/cuda/state.h"

bool kn_cu_ok(struct kn_cu *cu, cudaError_t e, const char *what)
{
    if (e == cudaSuccess) return true;
    if (!cu->failure[0])
        err_set(cu->failure, ST_DEVICE, "GPU %d failed %s: %s (%s)", cu->device, what,
                cudaGetErrorName(e), cudaGetErrorString(e));
    if (cudaGetLastError()) { /* clears what is kept in `failure` */
    }
    return false;
}

bool kn_cu_st(struct kn_cu *cu, enum status st, const char *err)
{
    if (st && !cu->failure[0]) err_set(cu->failure, ST_DEVICE, "GPU %d: %.400s", cu->device, err);
    return st == ST_OK;
}

bool kn_cu_enter(struct kn_cu *cu)
{
    return !cu->failure[0] && kn_cu_ok(cu, cudaSetDevice(cu->device), "being chosen");
}

enum status kn_cu_sync(struct kn *kn, char *err)
{
    struct kn_cu *cu = kn_cu_of(kn);
    if (kn_cu_enter(cu) && kn_cu_settle(cu) && kn_cu_staging_settle(cu) &&
        kn_cu_ok(cu, cudaStreamSynchronize(cu->stream), "in a step"))
        kn_cu_moves_sync(cu);
    if (cu->failure[0]) return err_set(err, ST_DEVICE, "%s", cu->failure);
    while (cu->control.taken < cu->control.asked) kn_cu_reading_take(cu);
    if (cu->busy) (void)kn_cu_reading_ask(cu); /* a failure is kept for the next one */
    cu->busy = false;
    cu->steps.waited = cu->steps.begun;
    kn_cu_stage_reset(cu);
    return ST_OK;
}

static const char *cuda_name(const struct kn *kn)
{
    return ((const struct kn_cu *)kn)->name;
}

static const char *cuda_identity(const struct kn *kn)
{
    return ((const struct kn_cu *)kn)->identity;
}

static int32_t cuda_sm_count(const struct kn *kn)
{
    return ((const struct kn_cu *)kn)->sm_count;
}

static enum status cuda_check_model(const struct kn *kn, enum kn_dtype weights, int32_t q_heads,
                                    const struct kn_kv *kv, char *err)
{
    (void)kn;
    if (weights != KN_BF16)
        return err_set(err, ST_UNSUPPORTED,
                       "the GPU computes with bfloat16 weights, not %s: give --dtype bfloat16, or "
                       "--device cpu",
                       kn_dtype_name(weights));
    enum status st = kn_cu_kv_check(kv, err);
    return st ? st : kn_cu_attend_check(q_heads, kv, err);
}

static void cuda_close(struct kn *kn)
{
    struct kn_cu *cu = kn_cu_of(kn);
    /* After a failure every call below fails as well, and there is nothing left to free. */
    if (cudaSetDevice(cu->device) == cudaSuccess && cu->stream)
        (void)cudaStreamSynchronize(cu->stream);
    kn_cu_steps_close(cu);
    kn_cu_attend_close(cu);
    kn_cu_stage_close(cu);
    kn_cu_upload_close(cu);
    kn_cu_control_close(cu);
    kn_cu_staging_close(cu);
    kn_cu_fetch_close(cu);
    kn_cu_moves_close(cu);
    cu->pending.state = KN_CU_NOTHING;
    if (cu->pending.memory) (void)cudaFree(cu->pending.memory);
    if (cu->pending.words) (void)cudaFree(cu->pending.words);
    if (cu->prefill) (void)cudaFree(cu->prefill);
    if (cu->stream_read) (void)cudaFree(cu->stream_read);
    if (cu->chosen) (void)cudaFree(cu->chosen);
    while (cu->regions) kn_cu_free(kn, cu->regions->mem, cu->regions->base, cu->regions->bytes);
    if (cu->stream) (void)cudaStreamDestroy(cu->stream);
    free(cu);
}

static const struct kn_backend backend = {
    .async = true,
    .act_bytes = kn_cu_buffer_bytes,
    .close = cuda_close,
    .name = cuda_name,
    .check_model = cuda_check_model,
    .memory = kn_cu_memory,
    .alloc = kn_cu_alloc,
    .free = kn_cu_free,
    .upload = kn_cu_upload,
    .download = kn_cu_download,
    .sync = kn_cu_sync,
    .step_begin = kn_cu_step_begin,
    .step_end = kn_cu_step_end,
    .step_wait = kn_cu_step_wait,
    .step_idle_ns = kn_cu_step_idle_ns,
    .embed = kn_cu_embed,
    .norm = kn_cu_norm,
    .gemm = kn_cu_gemm,
    .qkv = kn_cu_qkv,
    .attention = kn_cu_attention,
    .gather = kn_cu_gather,
    .sample = kn_cu_sample,
    .sample_reserve = kn_cu_sample_reserve,
    .fetch_reserve = kn_cu_fetch_reserve,
    .fetch_beyond = kn_cu_fetch_beyond,
    .move_pages = kn_cu_move_pages,
    .moves_done = kn_cu_moves_done,
    .moves_wait = kn_cu_moves_wait,
    .stage = kn_cu_stage,
    .set_window = kn_cu_set_window,
    .set_remote_access = kn_cu_set_remote_access,
    .set_without = kn_cu_set_without,
    .traffic = kn_cu_traffic,
    .stream_read = kn_cu_stream_read,
    .measure_link = kn_cu_measure_link,
    .sm_count = cuda_sm_count,
    .identity = cuda_identity,
    .matrix_run = kn_cu_matrix_run,
    .copy_open = kn_cu_copy_open,
    .copy_bytes = kn_cu_copy_bytes,
    .copy_close = kn_cu_copy_close,
    .record_tokens = kn_cu_record_tokens,
    .record_begin = kn_cu_record_begin,
    .record_end = kn_cu_record_end,
    .play = kn_cu_play,
};

/* Finds the GPU; nothing is opened yet. */
static enum status find_gpu(int device, struct cudaDeviceProp *prop, char *err)
{
    int count = 0, driver = 0;
    cudaError_t e = cudaGetDeviceCount(&count);
    if (e == cudaErrorNoDevice || (e == cudaSuccess && count == 0))
        return err_set(err, ST_UNSUPPORTED, "this machine has no NVIDIA GPU");
    if (e == cudaErrorInsufficientDriver) {
        if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
            return err_set(err, ST_UNSUPPORTED, "this machine has no NVIDIA driver");
        return err_set(err, ST_UNSUPPORTED,
                       "the NVIDIA driver is made for CUDA %d.%d and dakd needs %d.%d: update it",
                       driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000,
                       CUDART_VERSION % 1000 / 10);
    }
    if (e != cudaSuccess)
        return err_set(err, ST_DEVICE, "the NVIDIA driver does not answer: %s (%s)",
                       cudaGetErrorName(e), cudaGetErrorString(e));
    if (device < 0 || device >= count)
        return err_set(err, ST_UNSUPPORTED, "there is no GPU %d: this machine has %d", device,
                       count);
    e = cudaGetDeviceProperties(prop, device);
    if (e != cudaSuccess)
        return err_set(err, ST_DEVICE, "GPU %d does not answer: %s (%s)", device,
                       cudaGetErrorName(e), cudaGetErrorString(e));
    if (prop->major != 9 || prop->minor != 0)
        return err_set(err, ST_UNSUPPORTED,
                       "GPU %d (%s) has compute capability %d.%d, and dakd's kernels are for 9.0 "
                       "(Hopper) alone",
                       device, prop->name, prop->major, prop->minor);
    return ST_OK;
}

/* The driver's own version, of which there are many for one version of CUDA. */
static void driver_version(int cuda, char *out, size_t cap)
{
    char line[48];
    snprintf(out, cap, "for CUDA %d.%d", cuda / 1000, cuda % 1000 / 10);
    FILE *f = fopen("/sys/module/nvidia/version", "re");
    if (f && fgets(line, sizeof line, f))
        snprintf(out, cap, "%.*s", (int)strcspn(line, "\n"), line);
    if (f) fclose(f);
}

static void write_identity(struct kn_cu *cu, const struct cudaDeviceProp *prop, int cuda)
{
    char uuid[2 * sizeof prop->uuid.bytes + 1], driver[48];
    for (size_t i = 0; i < sizeof prop->uuid.bytes; i++)
        snprintf(uuid + 2 * i, 3, "%02x", (unsigned char)prop->uuid.bytes[i]);
    driver_version(cuda, driver, sizeof driver);
    snprintf(cu->identity, sizeof cu->identity, "GPU-%s, %.60s, driver %s", uuid, prop->name,
             driver);
}

static enum status open_gpu(struct kn_cu *cu, const struct cudaDeviceProp *prop, char *err)
{
    const size_t norm_bytes = (KN_CU_NORM_WORDS + KN_CU_NORM_TILES_MAX) * sizeof(uint32_t);
    int driver = 0;
    enum status st;
    cu->sm_count = prop->multiProcessorCount;
    const size_t workspace = kn_cu_prefill_workspace_bytes(cu->sm_count);
    if (kn_cu_ok(cu, cudaDriverGetVersion(&driver), "to say which driver it has") &&
        kn_cu_ok(cu, cudaSetDevice(cu->device), "to open") &&
        kn_cu_ok(cu, cudaStreamCreateWithFlags(&cu->stream, cudaStreamNonBlocking),
                 "to make a stream") &&
        kn_cu_ok(cu, cudaMalloc((void **)&cu->pending.memory, KN_CU_PARTS_BYTES),
                 "to allocate for the parts of products") &&
        kn_cu_ok(cu, cudaMalloc((void **)&cu->pending.words, norm_bytes), "to allocate memory") &&
        kn_cu_ok(cu, cudaMemset(cu->pending.words, 0, norm_bytes), "to clear memory") &&
        kn_cu_ok(cu, cudaMalloc(&cu->prefill, workspace),
                 "to allocate for the products of prompts") &&
        kn_cu_ok(cu, cudaMemset(cu->prefill, 0, workspace), "to clear memory") &&
        kn_cu_ok(cu, cudaMalloc((void **)&cu->stream_read, sizeof *cu->stream_read),
                 "to allocate memory") &&
        kn_cu_ok(cu, cudaMemset(cu->stream_read, 0, sizeof *cu->stream_read), "to clear memory"))
        snprintf(cu->name, sizeof cu->name,
                 "cuda (GPU %d, %.60s, %d SMs, %.1f GiB, driver for %d.%d)", cu->device, prop->name,
                 cu->sm_count, (double)prop->totalGlobalMem / (1 << 30), driver / 1000,
                 driver % 1000 / 10);
    if (cu->failure[0]) return err_set(err, ST_DEVICE, "%s", cu->failure);
    write_identity(cu, prop, driver);
    cu->pending.arrived = cu->pending.words + KN_CU_NORM_WORDS;
    if ((st = kn_cu_control_open(cu, err)) || (st = kn_cu_upload_open(cu, err)) ||
        (st = kn_cu_stage_open(cu, err)) || (st = kn_cu_steps_open(cu, err)) ||
        (st = kn_cu_fetch_open(cu, err)) || (st = kn_cu_moves_open(cu, err)))
        return st;
    if ((st = kn_cu_gemm_init(err))) return st;
    return kn_cu_prefill_init(err);
}

enum status kn_open_cuda(int device, struct kn **out, char *err)
{
    struct cudaDeviceProp prop;
    *out = NULL;
    enum status st = find_gpu(device, &prop, err);
    if (st) return st;
    struct kn_cu *cu = calloc(1, sizeof *cu);
    if (!cu) return err_set(err, ST_NOMEM, "no memory for the CUDA backend");
    cu->kn.backend = &backend;
    cu->device = device;
    st = open_gpu(cu, &prop, err);
    if (st) cuda_close(&cu->kn);
    else *out = &cu->kn;
    return st;
}
