/*
 * cpu.h - inside the CPU backend: its state, the instruction-set table, and the scratch of one
 * worker.
 *
 * Operations are written once (gemm.c, attention.c, norm.c, qkv.c, embed.c): they cut the work into
 * items and share these in the pool.  The two inner loops that dominate, weights times tokens and
 * attention, are written once as well (gemm_body.h, attention_body.h) on a vector of eight fp32
 * lanes (vec.h), and compiled once per instruction set (isa_*.c); the set is chosen when the
 * backend opens.
 *
 * The order of a reduction, the same in every form of the loop (see invariant 2 of kernels.h):
 *  - a dot product over k: lane l of eight adds the products of k = l, l + 8, l + 16 ... in that
 * order, starting from 0, up to the end of the zero-padded last atom; then ((0+1)+(2+3)) +
 * ((4+5)+(6+7));
 *  - softmax over keys: page by page in the order of positions (online), keys in order within a
 * page;
 *  - a norm: eight double lanes in the same manner.
 *
 * avx2 multiplies and adds with one rounding.  portable does so where the machine has fmaf in
 * hardware (arm64), and rounds the product otherwise: the two sets then agree to rounding, not
 * bitwise.  One opened backend uses one set.
 */
#ifndef DAKD_KERNELS_CPU_CPU_H
#define DAKD_KERNELS_CPU_CPU_H

#include <stdatomic.h>
#include <stdbool.h>

#include "kernels/backend.h"
#include "kernels/cpu/pool.h"
#include "kernels/sample.h"

enum {
    KN_CPU_GEMM_TOKENS = 48, /* tokens that share one conversion of a weight tile */
    KN_CPU_PANEL_COLS = 128, /* inputs converted at a time */
    KN_CPU_ATTENTION_ROWS =
        24, /* (token, query head) pairs that share one conversion of a KV page */
    KN_CPU_LANES = 8,
    KN_CPU_ROW_GROUPS = KN_TILE_ROWS / KN_CPU_LANES,
};

/* What one worker works in; allocated when the backend opens. */
union kn_cpu_scratch {
    struct kn_cpu_gemm_scratch {
        _Alignas(64) float w[KN_TILE_ROWS][KN_CPU_PANEL_COLS];
        float x[KN_CPU_GEMM_TOKENS][KN_CPU_PANEL_COLS];
        /* Lane sums, eight rows of a token side by side. */
        float acc[KN_CPU_ROW_GROUPS][KN_CPU_GEMM_TOKENS][KN_CPU_LANES][KN_CPU_LANES];
    } gemm;
    struct kn_cpu_attention_scratch {
        _Alignas(64) float page[KN_PAGE_TOKENS * KN_HEAD_DIM_MAX]; /* [64, padded D] */
        float q[KN_CPU_ATTENTION_ROWS * KN_HEAD_DIM_MAX];
        float out[KN_CPU_ATTENTION_ROWS * KN_HEAD_DIM_MAX];
        float score[KN_CPU_ATTENTION_ROWS][KN_PAGE_TOKENS];
        float acc[KN_CPU_ROW_GROUPS][KN_CPU_ATTENTION_ROWS][KN_CPU_LANES][KN_CPU_LANES];
    } attention;
};

/* Tokens [token_begin, token_begin + token_count) of one sequence, for the query heads of one
 * kv-head. */
struct kn_cpu_attention_item {
    const struct kn_batch *batch;
    const struct kn_attention_args *args;
    int32_t seq, kv_head;
    int32_t token_begin, token_count;
};

struct kn_cpu_isa {
    const char *name;
    /* One tile for up to KN_CPU_GEMM_TOKENS tokens, epilogue included. */
    void (*gemm)(const struct kn_gemm_args *a, int32_t tile, int32_t token_begin,
                 int32_t token_count, struct kn_cpu_gemm_scratch *s);
    void (*attention)(const struct kn_cpu_attention_item *item, struct kn_cpu_attention_scratch *s);
};

extern const struct kn_cpu_isa kn_cpu_isa_portable;
#if defined(__x86_64__)
extern const struct kn_cpu_isa kn_cpu_isa_avx2; /* needs AVX2, FMA and F16C */
#endif

struct kn_cpu {
    struct kn kn; /* first: a struct kn * is a struct kn_cpu * */
    const struct kn_cpu_isa *isa;
    struct kn_pool *pool;          /* owned */
    union kn_cpu_scratch *scratch; /* owned: [thread_count] */
    struct kn_sampler *sampler;    /* owned; NULL before kn_sample_reserve */
    int32_t sampler_vocab;
    uint64_t tier_bytes[KN_TIER_MAX];               /* of weights that were read */
    uint64_t moved_count, moved_bytes[KN_TIER_MAX]; /* of pages */
    int32_t *chosen; /* owned, [chosen_max]: tokens of the last kn_sample */
    int32_t chosen_max;
    /* Serial numbers of the last step begun and the last waited for; when and how long the last two
     * were computed. */
    uint64_t step_begun, step_waited, step_begin_ns, step_end_ns;
    uint64_t step_busy_ns[2], step_idle_ns[2]; /* of step n at n % 2 */
    _Atomic uint64_t stream_sum; /* of the 64-bit words kn_stream_read has read, mod 2^64 */
    char name[64];
};

/* As kn_open_cpu with the instruction set given, for tests; NULL means the best this machine has.
 */
MUST_USE enum status kn_cpu_open(int thread_count, const struct kn_cpu_isa *isa, struct kn **out,
                                 char *err);

/* kn_pool_run, but on the calling thread alone where the whole loop touches so few elements that
 * waking others costs more than it saves. */
void kn_cpu_for(struct kn_cpu *cpu, kn_pool_fn *fn, const void *arg, int32_t item_count,
                size_t element_count);

/* Row `row` of a weight as fp32 [K]. */
void kn_cpu_weight_row(const struct kn_weight *w, int32_t row, float *out);
/* Start of a head's K and V in a page. */
char *kn_cpu_kv_head(const struct kn_kv *kv, int32_t layer, int32_t kv_head, kn_page page);

void kn_cpu_embed(struct kn *kn, const struct kn_batch *batch, const struct kn_embed_args *a);
void kn_cpu_norm(struct kn *kn, const struct kn_norm_args *a);
void kn_cpu_gemm(struct kn *kn, const struct kn_gemm_args *a);
void kn_cpu_qkv(struct kn *kn, const struct kn_batch *batch, const struct kn_qkv_args *a);
void kn_cpu_attention(struct kn *kn, const struct kn_batch *batch,
                      const struct kn_attention_args *a);
void kn_cpu_gather(struct kn *kn, const struct kn_batch *batch, int32_t cols, const float *x,
                   float *out);
void kn_cpu_sample(struct kn *kn, const struct kn_sample_args *a);
enum status kn_cpu_sample_reserve(struct kn *kn, int32_t vocab, int32_t row_max, char *err);
void kn_cpu_move_pages(struct kn *kn, const struct kn_kv *kv, const struct kn_page_move *moves,
                       int32_t count);
void kn_cpu_stream_read(struct kn *kn, const void *ptr, size_t bytes);
/* RMSNorm (mean not subtracted) of n elements: y = x * weight / sqrt(mean(x^2) + eps).  y may be x.
 */
void kn_cpu_rms_norm_row(const float *x, const float *weight, float eps, int32_t n, float *y);

#endif
