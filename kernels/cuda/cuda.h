/*
 * cuda.h - what kernels/cuda offers to C: the launchers of its kernels and what they share with the
 * host.  Streams are passed as void * (a cudaStream_t), so that no CUDA header is needed here.
 *
 * Activations.  Everything a GEMM reads is bf16 in the same swizzled image as weights, with tokens
 * as rows: [ceil(K/128) blocks][2 atoms][TB tokens][128 bytes], where TB is the token bucket of the
 * step (kn_cu_bucket) and byte b of token t in an atom lies at kn_atom_offset(t, b).  One block of
 * 128 inputs is TB * 256 contiguous bytes: one bulk copy.  Inputs beyond K are zero; rows of tokens
 * beyond T may hold anything (they meet no other token's sums).
 */
#ifndef DAKD_KERNELS_CUDA_CUDA_H
#define DAKD_KERNELS_CUDA_CUDA_H

#include "kernels/cut.h"
#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

#define KN_CU_TOKENS_MAX 256 /* tokens of a chunk of activations; more are several */
#define KN_CU_DECODE_MAX                                                                           \
    128 /* tokens of a decode GEMM; more are the prefill GEMM's (prefill.h)                        \
         */

/* The token bucket of T tokens, 1..256: 8, 16, 32, 64, 128 or 256.  kn_cu_bucket checks the
 * range. */
KN_BOTH static inline int32_t kn_cu_bucket_of(int32_t tokens)
{
    int32_t bucket = 8;
    while (bucket < tokens) bucket *= 2;
    return bucket;
}
int32_t kn_cu_bucket(int32_t tokens);
/* Bytes of an activation buffer of cols inputs for a bucket. */
size_t kn_cu_act_bytes(int32_t bucket, int32_t cols);
/* Byte of element (token, k) in it. */
KN_BOTH static inline size_t kn_cu_act_offset(int32_t bucket, int32_t token, int32_t k)
{
    size_t atom = (size_t)(k >> 6);
    unsigned byte = (unsigned)(k & 63) * 2;
    return (atom * (size_t)bucket + (size_t)token) * KN_ATOM_ROW_BYTES +
           (((byte >> 4) ^ ((unsigned)token & 7)) << 4) + (byte & 15);
}

/* How a remote tier is read: an array of KN_TIER_MAX of these in device memory, by tier, is the
 * control block every kernel reads when it starts.  It may change only between launches that do not
 * overlap: a plain copy in stream order, before a kernel that is not launched dependently. */
struct kn_cu_window {
    int32_t ctas, blocks; /* as struct kn_window; 0 is taken as 1 */
    float cost;           /* local blocks HBM delivers in the time the tier's link takes for one */
};

#define KN_CU_TURNS 4 /* more launches than take turns on a link at once: see gemm_work.cuh */

/* What the kernels read from a tier, in device memory; added to, and reset by none that reads. */
struct kn_cu_traffic {
    uint64_t blocks;               /* 16 KB each */
    uint64_t row_bytes;            /* of rows of tables, beside them */
    uint64_t trips, trip_clocks;   /* round trips seen, and the sum of them in SM clocks */
    uint32_t trip_min, trip_max;   /* trip_min starts at UINT32_MAX */
    uint32_t readers[KN_CU_TURNS]; /* CTAs that have copies to issue, by turn of their launch; 0
                                      when nothing runs */
};
/* Copies the counters [KN_TIER_MAX] to the host's pinned memory, and starts trip_min and trip_max
 * anew.  ST_DEVICE with CUDA's sentence. */
MUST_USE enum status kn_cu_traffic_launch(struct kn_cu_traffic *counters,
                                          struct kn_cu_traffic *host, void *stream, char *err);

/* Norms.  An RMS norm of up to 32 tokens leaves its division to the products that read it, which
 * are linear: y[t,k] = x[t,k] * gain[k], and behind the activations, at kn_cu_act_bytes, for each
 * token a row of kn_cu_sums_stride floats with the sums of squares of 64 x each.  A product
 * multiplies by 1 / sqrt(their sum / K + eps) what it has summed up. */
#define KN_CU_SQUARES_TOKENS 32
KN_BOTH static inline int32_t kn_cu_sums_stride(int32_t cols)
{
    return (cols + 255) / 256 * 4;
}
/* Of activations that are yet to be divided. */
struct kn_cu_scale {
    const float *sums; /* NULL: they are whole */
    int32_t cols;
    float eps;
};

#define KN_CU_PART_SHIFT_MAX KN_CUT_SHIFT_MAX
#define KN_CU_PARTS_MAX 4

/* A product as parts that are yet to be added up: sum[part * stride + i], in order of part, and
 * after them bias[i % N]. */
struct kn_cu_parts {
    const float *sum; /* NULL: nothing to add */
    int32_t count;
    size_t stride;     /* floats: T * N */
    const float *bias; /* [N] or NULL */
};

/* What a product does that adds to the residual stream where a norm reads it next: one of a tile's
 * parts adds them all up, and writes the sum, its activations and their sums of squares.
 * No part of K may be empty. */
struct kn_cu_gemm_norm {
    uint32_t *words;   /* [1 << part_shift][tiles][64][bucket]: zero before and after, as are: */
    uint32_t *arrived; /* [tiles] */
    const float *gain; /* [N] */
    void *y;           /* activations [T,N], with sums behind them; NULL: no norm follows */
};

/* The shape of one GEMM's launch. */
struct kn_cu_gemm_plan {
    int32_t bucket;      /* TB */
    int32_t group_tiles; /* row tiles a CTA multiplies with the same activations: 1 or 2 */
    int32_t ctas_per_sm; /* 1, or 2 where two fit */
    int32_t part_shift;  /* log2 of the parts K is cut into, whose sums another kernel adds up */
    int32_t group_count;
    int32_t grid;
};

/* Remote tiles of a weight that the copy engine brings to local memory (stage.c). */
struct kn_cu_staged {
    const void *base;             /* of the first; KN_ALIGN-aligned */
    int32_t tile_begin, tile_end; /* one run with the local tiles; none: nothing is staged */
    const uint32_t *word;         /* on the device: 0 until they are there */
    uint32_t *read;               /* to be 0 when the kernels before this one have ended; or NULL */
};

struct kn_cu_gemm_args {
    const struct kn_weight *w; /* bf16; span[0] is local memory, the others are remote */
    struct kn_cu_staged staged;
    const float *bias;         /* [N] fp32 or NULL */
    int32_t tokens;            /* T, 1..128 */
    const void *in;            /* activations [T,K] in the bucket of T */
    enum kn_epilogue epilogue; /* STORE and F32: fp32 [T,N] row-major; ADD: the same, +=; RELU and
                                  SWIGLU: activations [T,N] or [T,N/2] in the bucket of T */
    void *out;
    float *partial; /* parts [1 << part_shift][T,N] in place of out, without bias; or NULL */
    struct kn_cu_scale scale;           /* of `in` */
    struct kn_cu_gemm_norm norm;        /* with ADD, of up to KN_CU_SQUARES_TOKENS tokens */
    const struct kn_cu_window *windows; /* [KN_TIER_MAX] on the device; NULL if all is local */
    bool loads;   /* remote tiles by plain loads (loads.cuh); windows are then of all CTAs */
    bool fetched; /* spans but the first are copies in local memory, windows is NULL: of a prompt */
    struct kn_cu_traffic *traffic; /* [KN_TIER_MAX] on the device, or NULL */
    int32_t turn; /* counts the stream's launches that take turns on a link, modulo any multiple of
                     KN_CU_TURNS; -1 for those that do not, and without traffic */
    bool dependent; /* may start before the stream's previous kernel ends (programmatic launch) */
};

/* Asserts what every product wants of its arguments. */
void kn_cu_gemm_check(const struct kn_cu_gemm_args *args);
/* Once per process and device, before any launch.  ST_UNSUPPORTED where the GPU is not sm_90. */
MUST_USE enum status kn_cu_gemm_init(char *err);
/* Tile choice: depends on shape, bucket and SM count alone, never on placement or window. */
/* parts: whether K may be cut into parts.  */
void kn_cu_gemm_plan(int32_t rows, int32_t cols, int32_t tokens, int32_t sm_count, bool parts,
                     struct kn_cu_gemm_plan *out);
/* Whether a launch takes turns with others on the links it reads (gemm_work.cuh); staged may be
 * NULL.
 */
bool kn_cu_gemm_takes_turn(const struct kn_cu_gemm_plan *plan, const struct kn_weight *w,
                           const struct kn_cu_staged *staged, int32_t sm_count);
/* How many CTAs of a bucket and group height an SM holds; 0 where there is no such kernel. */
int32_t kn_cu_gemm_resident(int32_t bucket, int32_t group_tiles);
/* Fills in what follows from bucket, group_tiles, ctas_per_sm and part_shift. */
void kn_cu_gemm_plan_derive(int32_t rows, int32_t sm_count, struct kn_cu_gemm_plan *plan);
/* ST_UNSUPPORTED for weights that are not bf16; ST_DEVICE with CUDA's sentence. */
MUST_USE enum status kn_cu_gemm_launch(const struct kn_cu_gemm_plan *plan,
                                       const struct kn_cu_gemm_args *args, void *stream, char *err);

#ifdef __cplusplus
}
#endif

#endif
