/*
 * gemm_body.h - one weight tile times up to 48 tokens, for the instruction set of the including
 * isa_*.c.
 *
 * Lane sums (cpu.h) of all 64 rows x tokens stay in memory, and the inputs are walked in order:
 * each step loads a small rectangle of sums, adds some tens of inputs, and stores it again.  A tile
 * is thus read from end to end, once, as the memory's prefetchers like it.  The rectangles, rows x
 * tokens: 8 x 1, 4 x 2, 4 x 3; a sum's own chain of additions is the same in each, so which of them
 * served a token leaves no trace.
 *
 *   up to 3 tokens   straight from the block: widened and un-swizzled in registers on its way to
 * the multiplication; more             128 inputs of the tile are widened into scratch once, then
 * used for all the tokens.
 */
#ifndef DAKD_KERNELS_CPU_GEMM_BODY_H
#define DAKD_KERNELS_CPU_GEMM_BODY_H

#include "config/check.h"
#include "kernels/cpu/vec.h"

enum { DIRECT_TOKENS_MAX = 3 };

/* Sums of eight rows of one token. */
typedef float lane_sums[KN_CPU_LANES][KN_CPU_LANES];

/* Where a rectangle's rows come from: an atom of one of the dtypes, or rows already widened. */
enum row_form { ROWS_F32 = KN_F32, ROWS_BF16 = KN_BF16, ROWS_F16 = KN_F16, ROWS_WIDE };

/* Vector j of row r of a group of eight.  A group of an atom begins at a multiple of 8, so that a
 * row's swizzle is its number in the group; stride is in bytes. */
INLINE v8 row_vec(const enum row_form form, const char *group, size_t stride, const int r, int j)
{
    const char *row = group + (size_t)r * stride;
    if (form == ROWS_WIDE) return v8_load((const float *)row + j * 8);
    return v8_atom((enum kn_dtype)form, row, (unsigned)r * 16, (unsigned)j);
}

/* A rectangle of rows [phase, ...) of a group times some tokens: acc[t][phase + r] += row . x row
 * t.  The sums are variables of their own, not an array, because the compiler keeps only the former
 * in registers for certain. */
#define SUM_LOAD(t, r) v8 s##t##r = v8_load(acc[t][phase + r]);
#define SUM_STORE(t, r) v8_store(acc[t][phase + r], s##t##r);
#define SUM_ADD(t, r) s##t##r = v8_fma(w, x##t, s##t##r);
#define X_LOAD(t) v8 x##t = v8_load(x + t * x_stride + j * 8);
#define FOUR_ROWS(F, t) F(t, 0) F(t, 1) F(t, 2) F(t, 3)
#define EIGHT_ROWS(F, t) FOUR_ROWS(F, t) F(t, 4) F(t, 5) F(t, 6) F(t, 7)
#define ROW(r, adds)                                                                               \
    {                                                                                              \
        v8 w = row_vec(form, group, stride, phase + r, j);                                         \
        adds                                                                                       \
    }

INLINE void dot_8x1(const enum row_form form, const char *group, size_t stride, const float *x,
                    const int vec_count, lane_sums *acc)
{
    enum { phase = 0 };
    const size_t x_stride = 0;
    EIGHT_ROWS(SUM_LOAD, 0)
#pragma GCC unroll 8
    for (int j = 0; j < vec_count; j++) {
        X_LOAD(0)
        ROW(0, SUM_ADD(0, 0))
        ROW(1, SUM_ADD(0, 1))
        ROW(2, SUM_ADD(0, 2))
        ROW(3, SUM_ADD(0, 3))
        ROW(4, SUM_ADD(0, 4))
        ROW(5, SUM_ADD(0, 5))
        ROW(6, SUM_ADD(0, 6))
        ROW(7, SUM_ADD(0, 7))
    }
    EIGHT_ROWS(SUM_STORE, 0)
}

INLINE void dot_4x2(const enum row_form form, const char *group, size_t stride, const int phase,
                    const float *x, size_t x_stride, const int vec_count, lane_sums *acc)
{
    FOUR_ROWS(SUM_LOAD, 0)
    FOUR_ROWS(SUM_LOAD, 1)
#pragma GCC unroll 8
    for (int j = 0; j < vec_count; j++) {
        X_LOAD(0)
        X_LOAD(1)
        ROW(0, SUM_ADD(0, 0) SUM_ADD(1, 0))
        ROW(1, SUM_ADD(0, 1) SUM_ADD(1, 1))
        ROW(2, SUM_ADD(0, 2) SUM_ADD(1, 2))
        ROW(3, SUM_ADD(0, 3) SUM_ADD(1, 3))
    }
    FOUR_ROWS(SUM_STORE, 0)
    FOUR_ROWS(SUM_STORE, 1)
}

INLINE void dot_4x3(const enum row_form form, const char *group, size_t stride, const int phase,
                    const float *x, size_t x_stride, const int vec_count, lane_sums *acc)
{
    FOUR_ROWS(SUM_LOAD, 0)
    FOUR_ROWS(SUM_LOAD, 1)
    FOUR_ROWS(SUM_LOAD, 2)
#pragma GCC unroll 8
    for (int j = 0; j < vec_count; j++) {
        X_LOAD(0)
        X_LOAD(1)
        X_LOAD(2)
        ROW(0, SUM_ADD(0, 0) SUM_ADD(1, 0) SUM_ADD(2, 0))
        ROW(1, SUM_ADD(0, 1) SUM_ADD(1, 1) SUM_ADD(2, 1))
        ROW(2, SUM_ADD(0, 2) SUM_ADD(1, 2) SUM_ADD(2, 2))
        ROW(3, SUM_ADD(0, 3) SUM_ADD(1, 3) SUM_ADD(2, 3))
    }
    FOUR_ROWS(SUM_STORE, 0)
    FOUR_ROWS(SUM_STORE, 1)
    FOUR_ROWS(SUM_STORE, 2)
}

/* Eight rows against one to three tokens. */
INLINE void dot_few(const enum row_form form, const char *group, size_t stride, const float *x,
                    size_t x_stride, int tokens, const int vec_count, lane_sums *acc)
{
    if (tokens == 1) {
        dot_8x1(form, group, stride, x, vec_count, acc);
    } else if (tokens == 2) {
        dot_4x2(form, group, stride, 0, x, x_stride, vec_count, acc);
        dot_4x2(form, group, stride, 4, x, x_stride, vec_count, acc);
    } else {
        dot_4x3(form, group, stride, 0, x, x_stride, vec_count, acc);
        dot_4x3(form, group, stride, 4, x, x_stride, vec_count, acc);
    }
}

/* Eight widened rows against any number of tokens; strides in elements.  Shared with attention,
 * whose rows are keys. */
static void dot_group(const float *w, size_t w_stride, const float *x, size_t x_stride, int tokens,
                      int vec_count, lane_sums *acc)
{
    for (int t = 0; t < tokens; t += 3) {
        int few = tokens - t < 3 ? tokens - t : 3;
        dot_few(ROWS_WIDE, (const char *)w, w_stride * sizeof *w, x + (size_t)t * x_stride,
                x_stride, few, vec_count, acc + t);
    }
}

/* The first groups of an atom's rows against one to three tokens. */
INLINE void direct_atom(const enum kn_dtype dtype, int group_count, int tokens, const char *atom,
                        const float *x, size_t x_stride, lane_sums (*acc)[KN_CPU_GEMM_TOKENS])
{
    for (int g = 0; g < group_count; g++)
        dot_few((enum row_form)dtype, atom + g * 8 * KN_ATOM_ROW_BYTES, KN_ATOM_ROW_BYTES, x,
                x_stride, tokens, dtype == KN_F32 ? 4 : 8, acc[g]);
}

/* Widens rows [0, row_count) of an atom into out, out_stride elements apart. */
INLINE void widen_atom_as(const enum kn_dtype dtype, const char *atom, int row_begin, int row_end,
                          float *out, size_t out_stride)
{
    const unsigned vec_count = dtype == KN_F32 ? 4 : 8;
    for (int r = row_begin; r < row_end; r++) {
        const char *row = atom + r * KN_ATOM_ROW_BYTES;
        unsigned swizzle = ((unsigned)r & 7) * 16;
#pragma GCC unroll 8
        for (unsigned j = 0; j < vec_count; j++)
            v8_store(out + (size_t)r * out_stride + j * 8, v8_atom(dtype, row, swizzle, j));
    }
}

static void widen_atom(enum kn_dtype dtype, const char *atom, int row_begin, int row_end,
                       float *out, size_t out_stride)
{
    switch (dtype) {
    case KN_F32: widen_atom_as(KN_F32, atom, row_begin, row_end, out, out_stride); break;
    case KN_BF16: widen_atom_as(KN_BF16, atom, row_begin, row_end, out, out_stride); break;
    case KN_F16: widen_atom_as(KN_F16, atom, row_begin, row_end, out, out_stride); break;
    case KN_DTYPE_COUNT: CHECK(!"a dtype");
    }
}

/* x[0 .. cols) of each token, zero-padded to padded_cols, side by side in scratch. */
static void copy_inputs(const float *x, size_t x_stride, int tokens, int cols, int padded_cols,
                        float (*out)[KN_CPU_PANEL_COLS])
{
    for (int t = 0; t < tokens; t++) {
        memcpy(out[t], x + (size_t)t * x_stride, (size_t)cols * sizeof(float));
        memset(out[t] + cols, 0, (size_t)(padded_cols - cols) * sizeof(float));
    }
}

static void sum_direct(const struct kn_weight *w, const char *tile, int group_count, const float *x,
                       int tokens, struct kn_cpu_gemm_scratch *s)
{
    int atom_cols = w->dtype == KN_F32 ? 32 : 64;
    for (int k = 0; k < w->cols; k += atom_cols, tile += KN_ATOM_BYTES) {
        const float *xk = x + k;
        size_t stride = (size_t)w->cols;
        if (w->cols - k < atom_cols) {
            copy_inputs(xk, stride, tokens, w->cols - k, atom_cols, s->x);
            xk = s->x[0];
            stride = KN_CPU_PANEL_COLS;
        }
        switch (w->dtype) {
        case KN_F32: direct_atom(KN_F32, group_count, tokens, tile, xk, stride, s->acc); break;
        case KN_BF16: direct_atom(KN_BF16, group_count, tokens, tile, xk, stride, s->acc); break;
        case KN_F16: direct_atom(KN_F16, group_count, tokens, tile, xk, stride, s->acc); break;
        case KN_DTYPE_COUNT: CHECK(!"a dtype");
        }
    }
}

static void sum_panels(const struct kn_weight *w, const char *tile, int group_count, const float *x,
                       int tokens, struct kn_cpu_gemm_scratch *s)
{
    int atom_cols = w->dtype == KN_F32 ? 32 : 64;
    for (int k = 0; k < w->cols; k += KN_CPU_PANEL_COLS) {
        int cols = w->cols - k < KN_CPU_PANEL_COLS ? w->cols - k : KN_CPU_PANEL_COLS;
        int padded_cols = (cols + atom_cols - 1) / atom_cols * atom_cols;
        for (int c = 0; c < padded_cols; c += atom_cols, tile += KN_ATOM_BYTES)
            widen_atom(w->dtype, tile, 0, group_count * 8, s->w[0] + c, KN_CPU_PANEL_COLS);
        copy_inputs(x + k, (size_t)w->cols, tokens, cols, padded_cols, s->x);
        for (int g = 0; g < group_count; g++)
            dot_group(s->w[g * 8], KN_CPU_PANEL_COLS, s->x[0], KN_CPU_PANEL_COLS, tokens,
                      padded_cols / 8, s->acc[g]);
    }
}

/* Finishes eight outputs [row, row + 8) of a token, of which n exist. */
INLINE void finish_rows(const struct kn_gemm_args *a, int32_t token, int32_t row, int n, v8 y)
{
    size_t at = (size_t)token * (size_t)a->w->rows + (size_t)row;
    float *out = (float *)a->out + at;
    if (a->bias) y = v8_add(y, v8_load_some(a->bias + row, n));
    if (a->epilogue == KN_EPI_RELU) y = v8_max(v8_set(0.0f), y);
    if (a->epilogue == KN_EPI_ADD) y = v8_add(y, v8_load_some(out, n));
    if (n == 8) v8_store(out, y);
    else v8_store_some(out, y, n);
}

/* gate and up: eight rows each, the up rows eight below the gate rows. */
INLINE void finish_glu(const struct kn_gemm_args *a, int32_t token, int32_t row, v8 gate, v8 up)
{
    if (a->bias) {
        gate = v8_add(gate, v8_load(a->bias + row));
        up = v8_add(up, v8_load(a->bias + row + 8));
    }
    v8 silu = v8_div(gate, v8_add(v8_set(1.0f), v8_exp(v8_sub(v8_set(0.0f), gate))));
    v8_store((float *)a->out + (size_t)token * (size_t)(a->w->rows / 2) + row / 2,
             v8_mul(silu, up));
}

static void isa_gemm(const struct kn_gemm_args *a, int32_t tile, int32_t token_begin,
                     int32_t token_count, struct kn_cpu_gemm_scratch *s)
{
    const struct kn_weight *w = a->w;
    const char *bytes = kn_weight_tile(w, tile);
    const float *x = (const float *)a->in + (size_t)token_begin * (size_t)w->cols;
    int32_t row_begin = tile * KN_TILE_ROWS;
    int rows = w->rows - row_begin < KN_TILE_ROWS ? w->rows - row_begin : KN_TILE_ROWS;
    int group_count = (rows + 7) / 8;
    DCHECK(token_count > 0 && token_count <= KN_CPU_GEMM_TOKENS);

    for (int g = 0; g < group_count; g++)
        memset(s->acc[g], 0, (size_t)token_count * sizeof s->acc[g][0]);
    if (token_count <= DIRECT_TOKENS_MAX) sum_direct(w, bytes, group_count, x, token_count, s);
    else sum_panels(w, bytes, group_count, x, token_count, s);

    bool glu = a->epilogue == KN_EPI_SWIGLU;
    for (int g = 0; g < group_count; g += glu ? 2 : 1) {
        int32_t row = row_begin + g * 8;
        int n = rows - g * 8 < 8 ? rows - g * 8 : 8;
        for (int t = 0; t < token_count; t++) {
            v8 y = v8_sum_each((const float(*)[KN_CPU_LANES])s->acc[g][t]);
            if (!glu) {
                finish_rows(a, token_begin + t, row, n, y);
                continue;
            }
            v8 up = v8_sum_each((const float(*)[KN_CPU_LANES])s->acc[g + 1][t]);
            finish_glu(a, token_begin + t, row, y, up);
        }
    }
}

#endif
