/*
 * block.c - where a weight's elements and a page's tokens lie, and how rows become the byte image
 * of a tile or of a page.  Shared by all backends and free of any of them: the loader packs on the
 * host whatever the tier, tests read back with kn_weight_at.
 *
 * kn_pack_tile writes every byte of the tile, and kn_kv_put_row of the row, so memory that held
 * something else needs no clearing first; padding is zero because a kernel multiplies it with
 * whatever stands beside it.  Any number of threads may pack distinct tiles, or rows.
 */
#include <string.h>

#include "config/check.h"
#include "kernels/backend.h"
#include "kernels/e4m3.h"

enum { CHUNK_BYTES = 16, CHUNKS_PER_ROW = KN_ATOM_ROW_BYTES / CHUNK_BYTES };

size_t kn_dtype_bytes(enum kn_dtype dtype)
{
    CHECK((unsigned)dtype <= KN_E4M3);
    return dtype == KN_F32 ? 4 : dtype == KN_E4M3 ? 1 : 2;
}

const char *kn_dtype_name(enum kn_dtype dtype)
{
    static const char *const names[] = {
        [KN_F32] = "float32", [KN_BF16] = "bfloat16", [KN_F16] = "float16", [KN_E4M3] = "fp8_e4m3"};
    CHECK((unsigned)dtype <= KN_E4M3);
    return names[dtype];
}

/* Inputs in one 128-byte row of an atom. */
static size_t atom_cols(enum kn_dtype dtype)
{
    return KN_ATOM_ROW_BYTES / kn_dtype_bytes(dtype);
}

void kn_weight_init(struct kn_weight *w, enum kn_dtype dtype, int32_t rows, int32_t cols)
{
    CHECK(rows > 0 && cols > 0);
    *w = (struct kn_weight){
        .dtype = dtype,
        .rows = rows,
        .cols = cols,
        .tile_count = (int32_t)div_up((size_t)rows, KN_TILE_ROWS),
        .blocks_per_tile = (int32_t)div_up((size_t)cols, 2 * atom_cols(dtype)),
    };
}

size_t kn_weight_tile_bytes(const struct kn_weight *w)
{
    return (size_t)w->blocks_per_tile * KN_BLOCK_BYTES;
}

const void *kn_weight_tile(const struct kn_weight *w, int32_t tile)
{
    for (int tier = 0; tier < KN_TIER_MAX; tier++) {
        const struct kn_span *span = &w->span[tier];
        int32_t i = tile - span->tile_begin;
        if (i >= 0 && i < span->tile_count)
            return (const char *)span->base + (size_t)i * kn_weight_tile_bytes(w);
    }
    CHECK(!"the tile lies in one of the weight's spans");
    return NULL;
}

/* One 16-byte chunk from `count` elements at src (fewer than a chunk holds at a row's end); the
 * rest is zero. */
static void pack_chunk(enum kn_dtype dtype, char *dst, enum kn_dtype src_dtype, const char *src,
                       size_t count)
{
    size_t element = kn_dtype_bytes(dtype);
    if (src_dtype == dtype) {
        memcpy(dst, src, count * element);
    } else {
        for (size_t i = 0; i < count; i++) kn_store(dtype, dst, i, kn_load(src_dtype, src, i));
    }
    memset(dst + count * element, 0, CHUNK_BYTES - count * element);
}

/* Row r of a run of atoms, of `cols` elements at src and zeros beyond them; src NULL: zeros. */
static void pack_row(enum kn_dtype dtype, char *atoms, size_t atom_count, unsigned r,
                     const char *src, enum kn_dtype src_dtype, size_t cols)
{
    size_t per_chunk = CHUNK_BYTES / kn_dtype_bytes(dtype);
    size_t src_element = kn_dtype_bytes(src_dtype);
    if (!src) cols = 0;
    for (size_t c = 0; c < atom_count * CHUNKS_PER_ROW; c++) {
        char *atom = atoms + c / CHUNKS_PER_ROW * KN_ATOM_BYTES;
        char *dst = atom + kn_atom_offset(r, (unsigned)(c % CHUNKS_PER_ROW) * CHUNK_BYTES);
        size_t col = c * per_chunk;
        size_t count = col < cols ? size_min(cols - col, per_chunk) : 0;
        if (count == 0) memset(dst, 0, CHUNK_BYTES);
        else pack_chunk(dtype, dst, src_dtype, src + col * src_element, count);
    }
}

void kn_pack_tile(const struct kn_weight *w, void *dst, const void *const rows[KN_TILE_ROWS],
                  enum kn_dtype src_dtype)
{
    for (unsigned r = 0; r < KN_TILE_ROWS; r++)
        pack_row(w->dtype, dst, 2 * (size_t)w->blocks_per_tile, r, rows[r], src_dtype,
                 (size_t)w->cols);
}

float kn_weight_at(const struct kn_weight *w, int32_t row, int32_t col)
{
    CHECK(row >= 0 && row < w->rows && col >= 0 && col < w->cols);
    const char *tile = kn_weight_tile(w, row / KN_TILE_ROWS);
    size_t per_atom = atom_cols(w->dtype);
    const char *atom = tile + (size_t)col / per_atom * KN_ATOM_BYTES;
    size_t byte = (size_t)col % per_atom * kn_dtype_bytes(w->dtype);
    size_t offset = kn_atom_offset((unsigned)row % KN_TILE_ROWS, (unsigned)byte);
    return kn_load(w->dtype, atom + offset, 0);
}

size_t kn_kv_head_bytes(const struct kn_kv *kv)
{
    CHECK(kv->head_dim > 0);
    if (kv->dtype == KN_E4M3) return kn_e4m3_exponents_at(kv->head_dim) + 2 * KN_PAGE_TOKENS;
    return 2 * div_up((size_t)kv->head_dim, atom_cols(kv->dtype)) * KN_ATOM_BYTES;
}

size_t kn_kv_layer_bytes(const struct kn_kv *kv)
{
    return (size_t)kv->kv_heads * kn_kv_head_bytes(kv);
}

size_t kn_kv_page_bytes(const struct kn_kv *kv)
{
    return (size_t)kv->layer_count * kn_kv_layer_bytes(kv);
}

static void put_e4m3(char *head, bool value, unsigned row, const float *x, int32_t n)
{
    uint8_t image[KN_HEAD_DIM_MAX] = {0};
    CHECK(n <= KN_HEAD_DIM_MAX);
    const uint8_t exponent = kn_e4m3_row(x, n, image);
    for (int32_t d = 0; d < kn_e4m3_width(n); d += CHUNK_BYTES)
        memcpy(head + kn_e4m3_at(n, value, row, d), image + d, CHUNK_BYTES);
    head[kn_e4m3_exponents_at(n) + (value ? KN_PAGE_TOKENS : 0) + row] = (char)exponent;
}

void kn_kv_put_row(const struct kn_kv *kv, void *head, bool value, unsigned row, const float *x)
{
    CHECK(row < KN_PAGE_TOKENS);
    if (kv->dtype == KN_E4M3) {
        put_e4m3(head, value, row, x, kv->head_dim);
        return;
    }
    const size_t bytes = kn_kv_head_bytes(kv) / 2;
    pack_row(kv->dtype, (char *)head + (value ? bytes : 0), bytes / KN_ATOM_BYTES, row,
             (const char *)x, KN_F32, (size_t)kv->head_dim);
}
