/*
 * kernels.c - the functions of kernels.h: check what every backend relies on, then call the opened
 * backend.  The checks are on the program (shapes that cannot be, heads that do not divide), so
 * they stop at CHECK; what a model or a request may get wrong is refused long before, where the
 * model is read and the request validated.
 */
#include "kernels/kernels.h"

#include <stdint.h>

#include "config/check.h"
#include "kernels/backend.h"
#include "kernels/stage.h"

#ifndef DAKD_CUDA
enum status kn_open_cuda(int device, struct kn **out, char *err)
{
    *out = NULL;
    return err_set(err, ST_UNSUPPORTED,
                   "GPU %d cannot be used: this dakd was built without CUDA (nvcc was not found)",
                   device);
}
#endif

void kn_close(struct kn *kn)
{
    if (kn) kn->backend->close(kn);
}

const char *kn_name(const struct kn *kn)
{
    return kn->backend->name(kn);
}

enum status kn_check_model(const struct kn *kn, enum kn_dtype weights, int32_t q_heads,
                           const struct kn_kv *kv, char *err)
{
    return kn->backend->check_model(kn, weights, q_heads, kv, err);
}

enum status kn_memory(struct kn *kn, uint64_t *total, uint64_t *available, char *err)
{
    return kn->backend->memory(kn, total, available, err);
}

enum status kn_alloc(struct kn *kn, enum kn_mem mem, int device, size_t bytes, void **out,
                     char *err)
{
    return kn->backend->alloc(kn, mem, device, bytes, out, err);
}

void kn_free(struct kn *kn, enum kn_mem mem, void *ptr, size_t bytes)
{
    if (ptr) kn->backend->free(kn, mem, ptr, bytes);
}

enum status kn_upload(struct kn *kn, void *dst, const void *src, size_t bytes)
{
    return kn->backend->upload(kn, dst, src, bytes);
}

void kn_download(struct kn *kn, void *staging, size_t bytes)
{
    if (bytes > 0) kn->backend->download(kn, staging, bytes);
}

enum status kn_sync(struct kn *kn, char *err)
{
    return kn->backend->sync(kn, err);
}

bool kn_is_async(const struct kn *kn)
{
    return kn->backend->async;
}

void kn_step_begin(struct kn *kn)
{
    kn->backend->step_begin(kn);
}

uint64_t kn_step_end(struct kn *kn)
{
    return kn->backend->step_end(kn);
}

enum status kn_step_wait(struct kn *kn, uint64_t step, uint64_t *busy_ns, char *err)
{
    return kn->backend->step_wait(kn, step, busy_ns, err);
}

uint64_t kn_step_idle_ns(const struct kn *kn)
{
    return kn->backend->step_idle_ns(kn);
}

size_t kn_act_bytes(const struct kn *kn, int32_t rows, int32_t cols)
{
    CHECK(rows > 0 && cols > 0);
    return kn->backend->act_bytes(kn, rows, cols);
}

void kn_embed(struct kn *kn, const struct kn_batch *batch, const struct kn_embed_args *a)
{
    CHECK(!a->pos_table || a->pos_table->cols == a->table->cols);
    if (batch->token_count > 0) kn->backend->embed(kn, batch, a);
}

void kn_norm(struct kn *kn, const struct kn_norm_args *a)
{
    CHECK(a->cols > 0);
    if (a->row_count > 0) kn->backend->norm(kn, a);
}

void kn_gemm(struct kn *kn, const struct kn_gemm_args *a)
{
    CHECK(a->epilogue != KN_EPI_SWIGLU || a->w->rows % 16 == 0);
    if (a->row_count > 0) kn->backend->gemm(kn, a);
}

static void check_heads(const struct kn_kv *kv, int32_t q_heads, int32_t layer)
{
    CHECK(kv->head_dim > 0 && kv->head_dim <= KN_HEAD_DIM_MAX);
    CHECK(kv->kv_heads > 0 && q_heads > 0 && q_heads % kv->kv_heads == 0);
    CHECK(layer >= 0 && layer < kv->layer_count);
}

void kn_qkv(struct kn *kn, const struct kn_batch *batch, const struct kn_qkv_args *a)
{
    check_heads(a->kv, a->q_heads, a->layer);
    CHECK(!a->rope || a->kv->head_dim % 2 == 0);
    if (batch->token_count > 0) kn->backend->qkv(kn, batch, a);
}

void kn_attention(struct kn *kn, const struct kn_batch *batch, const struct kn_attention_args *a)
{
    check_heads(a->kv, a->q_heads, a->layer);
    CHECK(a->window >= 0);
    if (batch->token_count > 0) kn->backend->attention(kn, batch, a);
}

void kn_gather(struct kn *kn, const struct kn_batch *batch, int32_t cols, const float *x,
               float *out)
{
    CHECK(cols > 0);
    if (batch->row_count > 0) kn->backend->gather(kn, batch, cols, x, out);
}

static void check_sample(const struct kn_sample_args *a)
{
    CHECK(a->vocab > 0);
    for (int32_t i = 0; i < a->row_count; i++) {
        const struct kn_sample_row *r = &a->rows[i];
        CHECK(r->row >= 0 && r->top_k >= 0 && r->temperature >= 0 && r->top_p > 0 &&
              r->top_p <= 1 && r->min_p >= 0 && r->min_p <= 1 && r->u >= 0 && r->u < 1);
    }
}

void kn_sample(struct kn *kn, const struct kn_sample_args *a)
{
    check_sample(a);
    if (a->row_count > 0) kn->backend->sample(kn, a);
}

enum status kn_sample_reserve(struct kn *kn, int32_t vocab, int32_t row_max, char *err)
{
    CHECK(vocab > 0 && row_max > 0);
    return kn->backend->sample_reserve(kn, vocab, row_max, err);
}

int32_t kn_record_tokens(const struct kn *kn, int32_t tokens)
{
    CHECK(tokens > 0);
    return kn->backend->record_tokens ? kn->backend->record_tokens(kn, tokens) : 0;
}

enum status kn_record_begin(struct kn *kn, int32_t tokens, char *err)
{
    CHECK(kn_record_tokens(kn, tokens) == tokens);
    return kn->backend->record_begin(kn, tokens, err);
}

enum status kn_record_end(struct kn *kn, char *err)
{
    return kn->backend->record_end(kn, err);
}

bool kn_play(struct kn *kn, const struct kn_batch *batch, const struct kn_sample_args *a)
{
    check_sample(a);
    if (batch->token_count == 0 || !kn_record_tokens(kn, batch->token_count)) return false;
    return kn->backend->play(kn, batch, a);
}

enum status kn_fetch_reserve(struct kn *kn, size_t bytes, char *err)
{
    return kn->backend->fetch_reserve ? kn->backend->fetch_reserve(kn, bytes, err) : ST_OK;
}

void kn_fetch_beyond(struct kn *kn, int32_t tokens)
{
    CHECK(tokens >= KN_FETCH_TOKENS);
    if (kn->backend->fetch_beyond) kn->backend->fetch_beyond(kn, tokens);
}

static void check_items(const struct kn_stage_item *items, int32_t count)
{
    for (int32_t i = 0, end; i < count; i = end) {
        struct kn_stage_tiles all, each[KN_TIER_MAX];
        for (end = i; end < count && items[end].w == items[i].w; end++) {
            const struct kn_stage_item *a = &items[end];
            CHECK(a->tier >= 1 && a->tier < KN_TIER_MAX && end - i < KN_TIER_MAX - 1);
            CHECK(a->tiles >= 1 && a->tiles <= a->w->span[a->tier].tile_count);
        }
        CHECK(kn_stage_tiles_of(&items[i], end - i, &all, each));
    }
}

enum status kn_stage(struct kn *kn, const struct kn_stage_item *items, int32_t count, size_t bytes,
                     char *err)
{
    CHECK(count >= 0);
    check_items(items, count);
    if (kn->backend->stage) return kn->backend->stage(kn, items, count, bytes, err);
    if (count == 0) return ST_OK;
    return err_set(err, ST_UNSUPPORTED,
                   "%s has no copy engine that could bring remote weights ahead of decode steps: "
                   "give --offload-mode direct",
                   kn_name(kn));
}

void kn_move_pages(struct kn *kn, const struct kn_kv *kv, const struct kn_page_move *moves,
                   int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        const unsigned from = kn_page_tier(moves[i].from), to = kn_page_tier(moves[i].to);
        CHECK(from < KN_TIER_MAX && to < KN_TIER_MAX && kv->base[from] && kv->base[to]);
        CHECK(moves[i].from != moves[i].to);
    }
    if (count > 0) kn->backend->move_pages(kn, kv, moves, count);
}

uint64_t kn_moves_done(struct kn *kn)
{
    return kn->backend->moves_done(kn);
}

void kn_moves_wait(struct kn *kn)
{
    kn->backend->moves_wait(kn);
}

struct kn_window kn_window_default(enum kn_mem mem)
{
    switch (mem) {
    case KN_MEM_HOST: return (struct kn_window){16, 2, 91};
    case KN_MEM_PEER: return (struct kn_window){16, 4, 12.5f};
    case KN_MEM_LOCAL:
    case KN_MEM_STAGING: break;
    }
    return (struct kn_window){KN_WINDOW_NO_BOUND, KN_WINDOW_NO_BOUND, 1};
}

void kn_set_window(struct kn *kn, int tier, const struct kn_window *w)
{
    CHECK(tier >= 1 && tier < KN_TIER_MAX);
    CHECK(w->ctas >= 1 && w->ctas <= KN_WINDOW_NO_BOUND);
    CHECK(w->blocks >= 1 && w->blocks <= KN_WINDOW_NO_BOUND);
    CHECK(w->cost >= 0 && w->cost < 1e6f);
    kn->backend->set_window(kn, tier, w);
}

enum status kn_set_remote_access(struct kn *kn, enum kn_remote_access access, char *err)
{
    CHECK(access == KN_REMOTE_BULK || access == KN_REMOTE_LOADS);
    if (kn->backend->set_remote_access) return kn->backend->set_remote_access(kn, access, err);
    if (access == KN_REMOTE_BULK) return ST_OK;
    return err_set(err, ST_UNSUPPORTED,
                   "%s has no kernels that read remote weights by plain loads beside its usual "
                   "ones: that baseline is the GPU's alone",
                   kn_name(kn));
}

enum status kn_set_without(struct kn *kn, unsigned parts, char *err)
{
    CHECK(parts <= KN_WITHOUT_ALL);
    if (kn->backend->set_without) return kn->backend->set_without(kn, parts, err);
    if (parts == 0) return ST_OK;
    return err_set(err, ST_UNSUPPORTED,
                   "%s has neither dependent launches nor K cut into parts nor multicast: there is "
                   "nothing it could do without",
                   kn_name(kn));
}

void kn_traffic(struct kn *kn, int tier, struct kn_traffic *out)
{
    CHECK(tier >= 0 && tier < KN_TIER_MAX);
    kn->backend->traffic(kn, tier, out);
}

void kn_stream_read(struct kn *kn, const void *ptr, size_t bytes)
{
    CHECK((uintptr_t)ptr % KN_ALIGN == 0 && bytes % KN_ALIGN == 0);
    if (bytes > 0) kn->backend->stream_read(kn, ptr, bytes);
}

enum status kn_measure_link(struct kn *kn, const struct kn_link_args *a, struct kn_link_rates *out,
                            char *err)
{
    *out = (struct kn_link_rates){0};
    if (!kn->backend->measure_link)
        return err_set(err, ST_UNSUPPORTED,
                       "%s reads every tier with the same loads: there is no link to measure",
                       kn_name(kn));
    CHECK(a->ns > 0 && a->ctas >= 0 && !(a->cluster > 1 && a->copy_to));
    CHECK(a->cluster == 1 || a->cluster == 2 || a->cluster == 4 || a->cluster == 8);
    CHECK(a->ctas == 0 || (a->blocks >= 1 && a->blocks <= KN_LINK_BLOCKS_MAX));
    CHECK(a->cluster > 1 || a->ctas <= kn_sm_count(kn));
    CHECK((uintptr_t)a->local % KN_ALIGN == 0 && (uintptr_t)a->remote % KN_ALIGN == 0);
    CHECK(!a->local || a->local_bytes >= KN_BLOCK_BYTES);
    CHECK((!a->ctas && !a->copy_to) || a->remote_bytes >= KN_BLOCK_BYTES);
    return kn->backend->measure_link(kn, a, out, err);
}

int32_t kn_sm_count(const struct kn *kn)
{
    return kn->backend->sm_count ? kn->backend->sm_count(kn) : 0;
}

const char *kn_identity(const struct kn *kn)
{
    return kn->backend->identity ? kn->backend->identity(kn) : kn_name(kn);
}

double kn_matrix_run(struct kn *kn)
{
    return kn->backend->matrix_run ? kn->backend->matrix_run(kn) : 0;
}
