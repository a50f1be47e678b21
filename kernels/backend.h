/*
 * backend.h - what a backend hands to kernels.c: the table behind the functions of kernels.h.
 * Private to kernels/.
 *
 * A backend's own struct begins with `struct kn` and its open function fills `backend`.  kernels.c
 * has checked the arguments when an operation is called (see there), and no operation is called for
 * zero tokens or rows.
 */
#ifndef DAKD_KERNELS_BACKEND_H
#define DAKD_KERNELS_BACKEND_H

#include "kernels/copy.h"

/* Largest head dimension; bounds the scratch of attention. */
#define KN_HEAD_DIM_MAX 512

struct kn_backend {
    bool async; /* kn_is_async */
    size_t (*act_bytes)(const struct kn *kn, int32_t rows, int32_t cols);
    void (*close)(struct kn *kn);
    const char *(*name)(const struct kn *kn);
    enum status (*check_model)(const struct kn *kn, enum kn_dtype weights, int32_t q_heads,
                               const struct kn_kv *kv, char *err);
    enum status (*memory)(struct kn *kn, uint64_t *total, uint64_t *available, char *err);
    enum status (*alloc)(struct kn *kn, enum kn_mem mem, int device, size_t bytes, void **out,
                         char *err);
    void (*free)(struct kn *kn, enum kn_mem mem, void *ptr, size_t bytes);
    enum status (*upload)(struct kn *kn, void *dst, const void *src, size_t bytes);
    void (*download)(struct kn *kn, void *staging, size_t bytes);
    enum status (*sync)(struct kn *kn, char *err);
    void (*step_begin)(struct kn *kn);
    uint64_t (*step_end)(struct kn *kn);
    enum status (*step_wait)(struct kn *kn, uint64_t step, uint64_t *busy_ns, char *err);
    uint64_t (*step_idle_ns)(const struct kn *kn);
    void (*embed)(struct kn *kn, const struct kn_batch *batch, const struct kn_embed_args *a);
    void (*norm)(struct kn *kn, const struct kn_norm_args *a);
    void (*gemm)(struct kn *kn, const struct kn_gemm_args *a);
    void (*qkv)(struct kn *kn, const struct kn_batch *batch, const struct kn_qkv_args *a);
    void (*attention)(struct kn *kn, const struct kn_batch *batch,
                      const struct kn_attention_args *a);
    void (*gather)(struct kn *kn, const struct kn_batch *batch, int32_t cols, const float *x,
                   float *out);
    void (*sample)(struct kn *kn, const struct kn_sample_args *a);
    enum status (*sample_reserve)(struct kn *kn, int32_t vocab, int32_t row_max, char *err);
    /* NULL in a backend that reads remote weights where they lie, however many tokens. */
    enum status (*fetch_reserve)(struct kn *kn, size_t bytes, char *err);
    void (*fetch_beyond)(struct kn *kn, int32_t tokens); /* NULL where the above is */
    /* NULL in a backend without a copy engine. */
    enum status (*stage)(struct kn *kn, const struct kn_stage_item *items, int32_t count,
                         size_t bytes, char *err);
    void (*move_pages)(struct kn *kn, const struct kn_kv *kv, const struct kn_page_move *moves,
                       int32_t count);
    uint64_t (*moves_done)(struct kn *kn);
    void (*moves_wait)(struct kn *kn);
    void (*set_window)(struct kn *kn, int tier, const struct kn_window *window);
    /* NULL in a backend that reads remote weights in one way. */
    enum status (*set_remote_access)(struct kn *kn, enum kn_remote_access access, char *err);
    /* NULL in a backend that has nothing to do without. */
    enum status (*set_without)(struct kn *kn, unsigned parts, char *err);
    void (*traffic)(struct kn *kn, int tier, struct kn_traffic *out);
    void (*stream_read)(struct kn *kn, const void *ptr, size_t bytes);
    /* NULL in a backend that has no link, and is known by its name. */
    enum status (*measure_link)(struct kn *kn, const struct kn_link_args *a,
                                struct kn_link_rates *out, char *err);
    int32_t (*sm_count)(const struct kn *kn);
    const char *(*identity)(const struct kn *kn);
    double (*matrix_run)(struct kn *kn); /* NULL in a backend without matrix units */
    /* NULL in a backend without a copy engine. */
    enum status (*copy_open)(struct kn *kn, enum kn_mem mem, int device, double bytes_per_s,
                             struct kn_copy **out, char *err);
    uint64_t (*copy_bytes)(const struct kn_copy *copy);
    enum status (*copy_close)(struct kn_copy *copy, char *err);
    /* NULL in a backend that does not record. */
    int32_t (*record_tokens)(const struct kn *kn, int32_t tokens);
    enum status (*record_begin)(struct kn *kn, int32_t tokens, char *err);
    enum status (*record_end)(struct kn *kn, char *err);
    bool (*play)(struct kn *kn, const struct kn_batch *batch, const struct kn_sample_args *a);
};

struct kn {
    const struct kn_backend *backend;
};

/* Where a page lies; it has a pool. */
static inline char *kn_kv_page(const struct kn_kv *kv, kn_page page)
{
    return (char *)kv->base[kn_page_tier(page)] +
           (size_t)kn_page_index(page) * kn_kv_page_bytes(kv);
}

struct kn_copy {
    struct kn *kn; /* borrowed */
};

#endif
