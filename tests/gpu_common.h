/*
 * gpu_common.h - what the tests of the CUDA backend share: checks that count, seeded randomness,
 * and data that both backends see.  No cmocka: these programs run on machines where nothing can be
 * installed.  Everything is static; each test is a program of its own that ends with
 * "N passed, N failed".
 */
#ifndef DAKD_TESTS_GPU_COMMON_H
#define DAKD_TESTS_GPU_COMMON_H

#include <cuda_runtime_api.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "kernels/convert.h"
#include "kernels/cuda/cuda.h"
#include "tests/test_random.h"

static int test_passed, test_failed;

/* One checked statement; prints what failed. */
#define EXPECT(cond, ...)                                                                          \
    do {                                                                                           \
        if (cond) {                                                                                \
            test_passed++;                                                                         \
        } else {                                                                                   \
            test_failed++;                                                                         \
            printf("FAILED %s:%d: %s: ", __FILE__, __LINE__, #cond);                               \
            printf(__VA_ARGS__);                                                                   \
            putchar('\n');                                                                         \
        }                                                                                          \
    } while (0)

static UNUSED int test_report(void)
{
    printf("%d passed, %d failed\n", test_passed, test_failed);
    return test_failed || !test_passed;
}

static UNUSED float test_bf16(float f)
{
    return kn_f32_from_bf16(kn_bf16_from_f32(f));
}

static UNUSED void *test_malloc(size_t bytes)
{
    void *p = malloc(bytes + 1);
    CHECK(p);
    return p;
}

static UNUSED float *test_floats(size_t n)
{
    float *f = test_malloc(n * sizeof *f);
    for (size_t i = 0; i < n; i++) f[i] = test_random_float();
    return f;
}

/* Random bf16, any part of which is a weight's; the caller frees it. */
static UNUSED uint16_t *test_noise(size_t bytes)
{
    uint16_t *to = test_malloc(bytes);
    for (size_t i = 0; i < bytes / 2; i++) to[i] = kn_bf16_from_f32(test_random_float() * 0.0625f);
    return to;
}

static UNUSED int test_gpu_count(void)
{
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

/* Of the kinds that tests place weights and pages in: local, the host's, another GPU's. */
static UNUSED enum kn_mem test_mem_of(int kind)
{
    return kind == 0 ? KN_MEM_LOCAL : kind == 1 ? KN_MEM_HOST : KN_MEM_PEER;
}

/* Stops the program: nothing after it would mean anything. */
static UNUSED void test_must(enum status st, const char *err)
{
    if (!st) return;
    printf("FAILED: %s\n%d passed, %d failed\n", err, test_passed, test_failed + 1);
    exit(1);
}

static UNUSED void test_sync(struct kn *kn)
{
    char err[ERR_CAP] = "";
    test_must(kn_sync(kn, err), err);
}

/* Memory of the GPU with a copy of data; the caller frees it with kn_free. */
static UNUSED void *test_upload(struct kn *gpu, enum kn_mem mem, const void *data, size_t bytes)
{
    char err[ERR_CAP] = "";
    void *p;
    test_must(kn_alloc(gpu, mem, 0, bytes, &p, err), err);
    if (data) test_must(kn_upload(gpu, p, data, bytes), "upload");
    return p;
}

/* Memory full of NaN, so that what is not written, or read by mistake, shows. */
static UNUSED void *test_poisoned(struct kn *gpu, enum kn_mem mem, size_t bytes)
{
    char *nan = test_malloc(bytes);
    memset(nan, 0xFF, bytes);
    void *p = test_upload(gpu, mem, nan, bytes);
    free(nan);
    return p;
}

/* A copy of GPU memory on the host; the caller frees it. */
static UNUSED void *test_download(struct kn *gpu, const void *p, size_t bytes)
{
    void *host = test_malloc(bytes);
    test_sync(gpu);
    CHECK(cudaMemcpy(host, p, bytes, cudaMemcpyDefault) == cudaSuccess);
    return host;
}

/* Byte of element (token, k) in an activation buffer of T tokens: chunks of 256, each in its
 * bucket. */
static UNUSED size_t test_act_at(int32_t T, int32_t cols, int32_t token, int32_t k)
{
    int32_t begin = token / KN_CU_TOKENS_MAX * KN_CU_TOKENS_MAX, left = T - begin;
    int32_t bucket = kn_cu_bucket(left < KN_CU_TOKENS_MAX ? left : KN_CU_TOKENS_MAX);
    return (size_t)(begin / KN_CU_TOKENS_MAX) * kn_cu_act_bytes(KN_CU_TOKENS_MAX, cols) +
           kn_cu_act_offset(bucket, token - begin, k);
}

static UNUSED float test_act_get(const void *buffer, int32_t T, int32_t cols, int32_t t, int32_t k)
{
    uint16_t h;
    memcpy(&h, (const char *)buffer + test_act_at(T, cols, t, k), sizeof h);
    return kn_f32_from_bf16(h);
}

/* Element (t, k) of the y that a norm of the GPU left, divided where it is yet to be (cuda.h). */
static UNUSED float test_norm_get(const struct kn_norm_args *a, const void *y, int32_t t, int32_t k)
{
    const int32_t T = a->row_count, H = a->cols, stride = kn_cu_sums_stride(H);
    float v = test_act_get(y, T, H, t, k);
    if (a->kind != KN_RMS_NORM || a->bias || T > KN_CU_SQUARES_TOKENS) return v;
    const char *sums = (const char *)y + kn_cu_act_bytes(kn_cu_bucket(T), H);
    double sum = 0;
    for (int32_t i = 0; i < (H + 63) / 64; i++) {
        float f;
        memcpy(&f, sums + (size_t)(t * stride + i) * sizeof f, sizeof f);
        sum += (double)f;
    }
    return v / (float)sqrt(sum / H + (double)a->eps);
}

/* The activations f[T,cols], which are bf16 values, on the GPU; what no element fills is finite
 * noise where tokens are missing and zero where inputs are. */
static UNUSED void *test_act_upload(struct kn *gpu, int32_t T, int32_t cols, const float *f)
{
    size_t bytes = kn_act_bytes(gpu, T, cols);
    char *image = test_malloc(bytes);
    memset(image, 0x42, bytes);
    int32_t padded = (int32_t)round_up((size_t)cols, 128);
    for (int32_t t = 0; t < T; t++)
        for (int32_t k = 0; k < padded; k++) {
            uint16_t h = k < cols ? kn_bf16_from_f32(f[(size_t)t * (size_t)cols + (size_t)k]) : 0;
            memcpy(image + test_act_at(T, cols, t, k), &h, sizeof h);
        }
    void *p = test_upload(gpu, KN_MEM_LOCAL, image, bytes);
    free(image);
    return p;
}

/* A bf16 weight for both backends: on the CPU in one piece, on the GPU tiles [0, split) in HBM and
 * the others in pinned host memory. */
struct test_weight {
    struct kn_weight cpu, gpu;
    void *arena, *local, *remote;
    size_t tile_bytes;
};

static UNUSED struct test_weight test_weight_make(struct kn *gpu, int32_t rows, int32_t cols,
                                                  int32_t split, float scale)
{
    struct test_weight t = {0};
    kn_weight_init(&t.cpu, KN_BF16, rows, cols);
    t.gpu = t.cpu;
    t.tile_bytes = kn_weight_tile_bytes(&t.cpu);
    if (split > t.cpu.tile_count) split = t.cpu.tile_count;
    size_t count = (size_t)t.cpu.tile_count;
    t.arena = aligned_alloc(KN_ALIGN, count * t.tile_bytes);
    CHECK(t.arena);
    t.cpu.span[0] = (struct kn_span){t.arena, 0, t.cpu.tile_count};
    float *row = test_malloc(KN_TILE_ROWS * (size_t)cols * sizeof *row);
    for (int32_t tile = 0; tile < t.cpu.tile_count; tile++) {
        const void *src[KN_TILE_ROWS] = {0};
        for (int32_t r = 0; r < KN_TILE_ROWS && tile * KN_TILE_ROWS + r < rows; r++) {
            float *to = row + (size_t)r * (size_t)cols;
            for (int32_t c = 0; c < cols; c++) to[c] = test_random_float() * scale;
            src[r] = to;
        }
        kn_pack_tile(&t.cpu, (char *)t.arena + (size_t)tile * t.tile_bytes, src, KN_F32);
    }
    free(row);
    size_t near = (size_t)split * t.tile_bytes, far = (count - (size_t)split) * t.tile_bytes;
    if (near) t.local = test_upload(gpu, KN_MEM_LOCAL, t.arena, near);
    if (far) t.remote = test_upload(gpu, KN_MEM_HOST, (char *)t.arena + near, far);
    t.gpu.span[0] = (struct kn_span){t.local, 0, split};
    t.gpu.span[1] = (struct kn_span){t.remote, split, t.cpu.tile_count - split};
    return t;
}

static UNUSED void test_weight_free(struct kn *gpu, struct test_weight *t)
{
    kn_free(gpu, KN_MEM_LOCAL, t->local, (size_t)t->gpu.span[0].tile_count * t->tile_bytes);
    kn_free(gpu, KN_MEM_HOST, t->remote, (size_t)t->gpu.span[1].tile_count * t->tile_bytes);
    free(t->arena);
}

#endif
