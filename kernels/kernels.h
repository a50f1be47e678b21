/*
 * kernels.h - the one C interface to the machine that computes: how weights and KV lie in memory,
 * and the operations a forward pass is made of.  Two backends implement it: kernels/cpu (the
 * reference, and what runs without a GPU) and kernels/cuda.  Nothing here knows model names, files
 * or requests.
 *
 * Dimension letters, used throughout dakd:
 *     T tokens in the step   H hidden size       N output rows of a weight   K its inputs
 *     Hq query heads         Hkv kv-heads        D head dimension            V vocabulary
 *     L layers               S sequences         R rows (tokens) whose logits are wanted
 *
 * The block.  Weights and KV are stored as 16 KB blocks, contiguous, each the exact byte image of
 * one shared-memory stage in the 128-byte swizzle, so that one bulk copy fetches it from any tier
 * and wgmma reads it as it is:
 *     atom   64 rows x 128 bytes = 8 KB.  Byte b of row r lies at kn_atom_offset(r, b).
 *     block  two atoms side by side: 64 rows x 256 bytes (bf16, f16: 128 inputs; f32: 64).
 *     tile   64 output rows x all K inputs: ceil(K / inputs per block) blocks in order of k.
 *            Rows beyond N and inputs beyond K are zero.
 * A weight [N,K] is ceil(N/64) tiles; each tile lies wholly in one tier, and a tier's tiles are
 * one run (kn_span).
 *
 * KV.  A page holds 64 tokens of one sequence for all layers: [layer][kv-head][K atoms][V atoms],
 * each atom 64 tokens x 128 bytes of the head dimension, ceil(D * element / 128) atoms for K and
 * as many for V (the last one zero-padded).  A page-table entry (kn_page) names tier and index;
 * pages of one sequence may lie in different tiers.
 *
 * KV in fp8 (KN_E4M3).  A token's K and its V of one kv-head are rows of D e4m3 numbers, each row
 * with a scale of its own, a power of two that is fixed when the row is appended: so a row depends
 * on its token alone, and nothing is calibrated or written twice.  Heads of more than 64 dimensions
 * have K atoms of 128 dimensions, then V atoms; of up to 64 one atom, K in the first 64 bytes of a
 * row and V in the last.  Behind the atoms lie the scales' exponents, a byte each, biased by 127
 * (OCP's E8M0): 64 of K, then 64 of V.  kernels/e4m3.h says how a row is made.
 *
 * Invariants every backend keeps, and tests hold it to:
 *  1. fp32 accumulation everywhere.
 *  2. What a token's row comes to depends on that row's inputs alone: not on its neighbours, on
 *     where tiles or pages lie, on the number of threads, or on the run.  How a reduction is split
 *     depends on the shape, and on CUDA on the token bucket of the step too (kernels/cuda/cuda.h)
 *     and on whether the sequence has many tokens in the step (KN_CU_CHUNK_MIN).
 *     Hence results are bitwise equal for every placement and every run of a batch; on the CPU also
 *     for every batch and every chunking of the prompt.
 *  3. Operations of one kn are issued by one thread, in order; what their pointers show must stay
 *     as it is until kn_sync, or kn_step_wait of their step.
 */
#ifndef DAKD_KERNELS_KERNELS_H
#define DAKD_KERNELS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/status.h"

#ifdef __cplusplus /* CUDA files */
extern "C" {
#endif

/* Before `static inline`: CUDA files may call it in kernels, too. */
#ifdef __CUDACC__
#define KN_BOTH __host__ __device__
#else
#define KN_BOTH
#endif

/* KN_E4M3 is a KV cache's alone: weights have none of it, so it stands behind the count. */
enum kn_dtype { KN_F32, KN_BF16, KN_F16, KN_DTYPE_COUNT, KN_E4M3 = KN_DTYPE_COUNT };

#define KN_ATOM_ROWS 64
#define KN_ATOM_ROW_BYTES 128
#define KN_ATOM_BYTES (KN_ATOM_ROWS * KN_ATOM_ROW_BYTES)
#define KN_BLOCK_BYTES (2 * KN_ATOM_BYTES)
#define KN_TILE_ROWS KN_ATOM_ROWS
#define KN_PAGE_TOKENS KN_ATOM_ROWS
#define KN_TIER_MAX 4
/* Alignment of every tile, activation buffer and pool of pages. */
#define KN_ALIGN 1024

/* Offset in an atom of byte b (0..127) of row r (0..63): 16-byte chunks of a row are permuted by
 * the row's low bits. */
static inline size_t kn_atom_offset(unsigned r, unsigned b)
{
    return (size_t)r * KN_ATOM_ROW_BYTES + ((b / 16) ^ (r & 7)) * 16 + b % 16;
}

size_t kn_dtype_bytes(enum kn_dtype dtype);
/* "float32", "bfloat16", "float16", "fp8_e4m3". */
const char *kn_dtype_name(enum kn_dtype dtype);

/* --- weights ---------------------------------------------------------------------------------- */

/* The run of tiles [tile_begin, tile_begin + tile_count) of a weight, in one tier. */
struct kn_span {
    const void *base; /* borrowed; KN_ALIGN-aligned */
    int32_t tile_begin, tile_count;
};

struct kn_weight {
    enum kn_dtype dtype;
    int32_t rows, cols;               /* N, K */
    int32_t tile_count;               /* ceil(N / 64) */
    int32_t blocks_per_tile;          /* ceil(K / inputs per block) */
    struct kn_span span[KN_TIER_MAX]; /* by tier; the spans partition the tiles */
};

/* Fills all but the spans. */
void kn_weight_init(struct kn_weight *w, enum kn_dtype dtype, int32_t rows, int32_t cols);
size_t kn_weight_tile_bytes(const struct kn_weight *w);
/* Start of a tile wherever it lies.  Host address on the CPU backend, device address on CUDA. */
const void *kn_weight_tile(const struct kn_weight *w, int32_t tile);

/* Packs up to 64 rows into the tile image dst (kn_weight_tile_bytes, all of it written).  rows[i]
 * points at row i of the tile as K elements of src_dtype in host memory, or is NULL for a row of
 * zeros; converts with round to nearest even. */
void kn_pack_tile(const struct kn_weight *w, void *dst, const void *const rows[KN_TILE_ROWS],
                  enum kn_dtype src_dtype);
/* The inverse, for tests and the CPU reference: element (row, col) of the weight as fp32.
 * Host-readable tiers only. */
float kn_weight_at(const struct kn_weight *w, int32_t row, int32_t col);

/* Gate and up projections of a gated MLP are one weight of 2I rows: in every group of 16 rows the
 * first 8 are gate rows 8g..8g+7, the last 8 the up rows 8g..8g+7 (a wgmma thread then holds both
 * of a pair).  I is a multiple of 8. */
static inline int32_t kn_glu_row(int32_t i, bool up)
{
    return i / 8 * 16 + (up ? 8 : 0) + i % 8;
}

/* --- KV pages --------------------------------------------------------------------------------- */

/* Page-table entry: tier in the top 4 bits, index of the page in that tier's pool below. */
typedef uint32_t kn_page;
#define KN_PAGE_NONE UINT32_MAX
static inline kn_page kn_page_make(unsigned tier, uint32_t index)
{
    return tier << 28 | index;
}
static inline unsigned kn_page_tier(kn_page p)
{
    return p >> 28;
}
static inline uint32_t kn_page_index(kn_page p)
{
    return p & 0x0FFFFFFFu;
}

struct kn_kv {
    enum kn_dtype dtype;
    int32_t layer_count, kv_heads, head_dim;
    void *base[KN_TIER_MAX]; /* borrowed: pool of each tier, NULL where it has none */
};

/* K and V of one head in one page: 2 * atoms * 8 KB; in fp8 as said above. */
size_t kn_kv_head_bytes(const struct kn_kv *kv);
size_t kn_kv_layer_bytes(const struct kn_kv *kv); /* Hkv * head_bytes */
size_t kn_kv_page_bytes(const struct kn_kv *kv);  /* L * layer_bytes */
/* Makes x[D] row `row` (0..63) of a page's K, or of its V, of the head whose kn_kv_head_bytes begin
 * at `head` in host memory: all of the row's bytes, zeros beyond D included. */
void kn_kv_put_row(const struct kn_kv *kv, void *head, bool value, unsigned row, const float *x);

/* A page copied to another place; the tiers may be any. */
struct kn_page_move {
    kn_page from, to;
};

/* --- a step's batch --------------------------------------------------------------------------- */

/* One sequence's share of a step: tokens [token_begin, token_begin + token_count) of the batch are
 * consecutive and are positions kv_count - token_count .. kv_count - 1 of the sequence; its KV,
 * these tokens included, is kv_count long. */
struct kn_seq {
    int32_t token_begin, token_count;
    int32_t kv_count;
    int32_t page_begin; /* its ceil(kv_count / 64) entries start at batch.pages[page_begin] */
};

struct kn_batch {
    int32_t token_count;       /* T */
    const int32_t *tokens;     /* [T] token ids, each in [0, V) or from kn_token_chosen */
    const int32_t *positions;  /* [T] */
    const int32_t *token_seq;  /* [T] index into seqs */
    int32_t seq_count;         /* S */
    const struct kn_seq *seqs; /* [S] */
    const kn_page *pages;      /* page tables of all sequences, one after another */
    int32_t row_count;         /* R */
    const int32_t *rows;       /* [R] indices of the tokens whose logits are wanted */
};

/* Stands in batch.tokens for the token of out[i] of the last kn_sample, which the host need not
 * know yet. */
static inline int32_t kn_token_chosen(int32_t i)
{
    return -1 - i;
}

/* --- the backend ------------------------------------------------------------------------------ */

enum kn_mem {
    KN_MEM_LOCAL,   /* HBM, or plain memory on the CPU */
    KN_MEM_HOST,    /* host memory that kernels read over the GPU's link */
    KN_MEM_PEER,    /* another GPU's memory, read over the link between the two */
    KN_MEM_STAGING, /* results on their way to the host: the out of KN_EPI_F32 or kn_sample may lie
                     * here and nothing else.  The host sees what kn_sample wrote, and of a product
                     * what kn_download asked for, once kn_sync or kn_step_wait returned */
};

struct kn; /* one opened backend */

/* The CPU backend.  thread_count 0 means all cores the process may use. */
MUST_USE enum status kn_open_cpu(int thread_count, struct kn **out, char *err);
/* The CUDA backend on GPU `device`.  ST_UNSUPPORTED where there is nothing to open: a build without
 * CUDA, no GPU, a driver too old, a GPU that is not sm_90.  ST_DEVICE where there is one and it
 * fails. */
MUST_USE enum status kn_open_cuda(int device, struct kn **out, char *err);
void kn_close(struct kn *kn);
const char *kn_name(const struct kn *kn); /* "cpu (avx2, 2 threads)" */

/* Whether the backend has kernels for such weights and such a KV cache (base[] is not read), with
 * q_heads query heads; ST_UNSUPPORTED says what it has none for, and what to change. */
MUST_USE enum status kn_check_model(const struct kn *kn, enum kn_dtype weights, int32_t q_heads,
                                    const struct kn_kv *kv, char *err);
/* The bytes of KN_MEM_LOCAL there are, and those nobody uses. */
MUST_USE enum status kn_memory(struct kn *kn, uint64_t *total, uint64_t *available, char *err);
/* The same of the host, within the limit of our control group.  ST_IO: a system that does not say.
 */
MUST_USE enum status kn_host_memory(uint64_t *total, uint64_t *available, char *err);

/* Memory a tier or an activation buffer is made of: KN_ALIGN-aligned, zeroed.  ST_NOMEM names the
 * bytes asked for. */
MUST_USE enum status kn_alloc(struct kn *kn, enum kn_mem mem, int device, size_t bytes, void **out,
                              char *err);
/* Drops all recordings (kn_record_begin) where the memory is older than the last of them, for they
 * know addresses. */
void kn_free(struct kn *kn, enum kn_mem mem, void *ptr, size_t bytes);
/* Copies from host memory into memory of kn_alloc.  src may be reused when it returns; operations
 * issued later see the copy.  Any thread, one at a time.  What fails late is reported by kn_sync.
 */
MUST_USE enum status kn_upload(struct kn *kn, void *dst, const void *src, size_t bytes);
/* Lets the host see part of KN_MEM_STAGING, at its own address, as operations issued before leave
 * it: to be read once kn_sync or kn_step_wait returned. */
void kn_download(struct kn *kn, void *staging, size_t bytes);
/* Waits for everything issued, steps and all; ST_DEVICE where any of it failed, and ever after. */
MUST_USE enum status kn_sync(struct kn *kn, char *err);

/* Whether operations are computed while the host goes on.  Where they are, a step should be issued
 * before the results of the one before it are read. */
bool kn_is_async(const struct kn *kn);
/* What is issued between these two is a step, of which kn_step_end tells the serial number.  At
 * most two steps are begun and not waited for; they are waited for in order. */
void kn_step_begin(struct kn *kn);
uint64_t kn_step_end(struct kn *kn);
/* kn_sync for one step: later ones go on.  *busy_ns: how long the machine had work of it, from its
 * first operation or the end of the step before, whichever came later, to its last operation. */
MUST_USE enum status kn_step_wait(struct kn *kn, uint64_t step, uint64_t *busy_ns, char *err);
/* Of the step last waited for: how long the machine had nothing to do between the step before it
 * and its own beginning; 0 where there was none before it. */
uint64_t kn_step_idle_ns(const struct kn *kn);
/* --- remote tiers -------------------------------------------------------------------------------
 */

/* How kernels read a remote tier.  Too many remote bytes in flight stall the GPU's own memory (17
 * MB of them over PCIe make it a hundred times slower), so a kernel reads a remote tier with up to
 * `ctas` CTAs (one or two an SM) that keep up to `blocks` blocks of KN_BLOCK_BYTES in flight each;
 * where fewer CTAs have remote work, they share the window of all, and where the link is what a
 * kernel waits for, up to twice as much is in flight.  `ctas` of at least the kernel's grid means
 * no roles: every CTA reads what falls to it, `blocks` deep.  Results are the same for every
 * window. */
struct kn_window {
    int32_t ctas, blocks; /* 1..KN_WINDOW_NO_BOUND */
    /* Local bytes that HBM delivers in the time this tier's link takes for one: work is dealt so
     * that both are done at the same time. */
    float cost;
};
#define KN_WINDOW_NO_BOUND 65536 /* more than any GPU has CTAs, or a CTA blocks */

/* What just fills the link while HBM streams, as measured on an H200 (PCIe 5: 512 KB in flight;
 * NVLink: 1 MB).  KN_MEM_LOCAL stands for a tier in tests: no bound, no cost. */
struct kn_window kn_window_default(enum kn_mem mem);
/* Sets the window of remote tier `tier` (1..KN_TIER_MAX - 1): operations issued later obey it, and
 * recorded steps played later; those issued before do not.  Between two steps, or after kn_sync.  A
 * tier that was given none has the default of its memory.  The CPU backend, which reads every tier
 * with the same loads, checks and ignores it. */
void kn_set_window(struct kn *kn, int tier, const struct kn_window *window);

/* How products read remote weights.  BULK: by bulk copies, inside the tier's window, and those of
 * prompts as kn_fetch_reserve says.  LOADS, a baseline: by plain loads of 16 bytes of every CTA
 * that has such weights, without a window, without sharing what was read, and with nothing fetched
 * ahead: what a product does that takes the host's memory for its own.  KV pages and rows of tables
 * are read the same way in both. */
enum kn_remote_access { KN_REMOTE_BULK, KN_REMOTE_LOADS };
/* Operations issued later obey it; drops all recordings.  BULK is what a backend begins with.
 * Results are the same, bit for bit.  ST_UNSUPPORTED: LOADS on a backend that has no such kernels
 * (CPU).  ST_DEVICE. */
MUST_USE enum status kn_set_remote_access(struct kn *kn, enum kn_remote_access access, char *err);

/* What kernels may be told to do without, to measure what each of it is worth. */
enum {
    /* Kernels of recorded steps begin when the one before has ended. */
    KN_WITHOUT_DEPENDENT_LAUNCH = 1,
    /* One CTA sums up all of a tile's K: results are another order's. */
    KN_WITHOUT_SPLIT_K = 2,
    /* Every CTA reads the remote weights of prompts for itself. */
    KN_WITHOUT_MULTICAST = 4,
    KN_WITHOUT_ALL = 7
};
/* From the next operation on kernels do without `parts` of these, and with the others; 0 is what a
 * backend begins with.  Not within a step; drops all recordings.  ST_UNSUPPORTED: any, on a backend
 * that has none of them (CPU).  ST_DEVICE. */
MUST_USE enum status kn_set_without(struct kn *kn, unsigned parts, char *err);

/* What operations read from a tier, since the backend was opened.  On CUDA: blocks of weights and
 * of KV, as the copies that were issued, rows of tables, and the round trips of remote copies, from
 * issue to the last byte's landing.  On the CPU: bytes of the weights that products read, and rows
 * of tables, by where they lie; no round trips. */
struct kn_traffic {
    uint64_t bytes;
    uint64_t fetched_bytes;            /* of these, copied ahead (kn_fetch_reserve, kn_stage): no
                                          window's */
    uint64_t moved_bytes;              /* beside them, of pages moved from or to it */
    uint64_t trip_count, trip_ns_sum;  /* remote copies, and the sum of their round trips */
    uint64_t trip_ns_min, trip_ns_max; /* of the latest stretch between two kn_sync that had any; 0
                                          where none had */
};
/* As of the kn_sync before the last (where no remote tier is in use, of one up to 8 earlier).
 * Costs nothing: kn_sync reads the counters beside the computation. */
void kn_traffic(struct kn *kn, int tier, struct kn_traffic *out);

/* Products of up to so many tokens read remote weights where they lie, and once. */
#define KN_FETCH_TOKENS 256
/* So do those of up to so many, if they must. */
#define KN_REMOTE_TOKENS 2048
/* Local memory of so many bytes, through which the backend may fetch remote weights ahead of
 * products of more than KN_FETCH_TOKENS, so that they cross the link once for all of these; 0:
 * none, and what there was is freed.  A product whose remote tiles are larger together reads them
 * where they lie; results are the same.  What is fetched counts to its own tier, and what kernels
 * read of it to tier 0.  ST_NOMEM, ST_DEVICE. */
MUST_USE enum status kn_fetch_reserve(struct kn *kn, size_t bytes, char *err);
/* Operations issued later fetch nothing for products of up to so many tokens, KN_FETCH_TOKENS (with
 * which a backend begins) and more; these read remote weights where they lie. */
void kn_fetch_beyond(struct kn *kn, int32_t tokens);

/* Remote weights of decode steps by the copy engine.  Steps of up to so many tokens: */
#define KN_STAGE_TOKENS 128
struct kn_stage_item {
    const struct kn_weight *w; /* borrowed until the next kn_stage */
    int32_t tier;              /* a remote one */
    int32_t tiles; /* 1 and more of its tiles there travel by the copy engine, those next
                      to the local ones; the others are read in place */
};
/* From now on products of up to KN_STAGE_TOKENS tokens find the items' tiles in local memory, where
 * the copy engine brings them ahead of the products, through a ring of `bytes`; the rest of their
 * remote tiles is read in place.
 * Items are in the order in which a step issues their products; every step of up to that many
 * tokens issues all of them, each once.  A weight with items in several tiers has them one after
 * another, from the tier next to its local tiles outwards, all but the last with all of their
 * tier's tiles.  A product is known by the address of its weight.
 * count 0: none, and the ring is freed.  Waits for all that was issued, and drops all recordings.
 * Not beside KN_REMOTE_LOADS.
 * Results are the same, bit for bit.  ST_UNSUPPORTED on a backend without a copy engine (CPU; count
 * 0 is ST_OK there), ST_LIMIT where what is staged of one weight is larger than the ring, ST_NOMEM,
 * ST_DEVICE; nothing is staged then. */
MUST_USE enum status kn_stage(struct kn *kn, const struct kn_stage_item *items, int32_t count,
                              size_t bytes, char *err);

/* --- pages on the move --------------------------------------------------------------------------
 *
 * Copies of whole pages, all layers of each, beside the steps: a GPU has an engine for it.  Moves
 * are made one after another, in the order in which they were begun, and a move begins when all
 * that was issued before it is done: whoever still wrote the one page, or read what the other held
 * before, has ended.  While a move is under way operations may read the page it is from; nobody may
 * write that one, or touch the one it is to.  When it is over - kn_moves_done says so, or
 * kn_moves_wait was called - what is issued next may use both: earlier readers of the page it was
 * from came before it.  Moves share the link with what kernels read; they count to kn_traffic as
 * moved_bytes of both tiers when they are begun.  What fails is told by kn_sync and kn_step_wait.
 */

/* Not while a step is recorded.  The host may wait here where KN_MOVES_MAX such calls are under
 * way. */
#define KN_MOVES_MAX 64
void kn_move_pages(struct kn *kn, const struct kn_kv *kv, const struct kn_page_move *moves,
                   int32_t count);
/* How many pages' moves are over, of all that were begun since the backend was opened.  Does not
 * wait. */
uint64_t kn_moves_done(struct kn *kn);
/* Operations issued from now on begin when all moves begun so far are over; the host goes on. */
void kn_moves_wait(struct kn *kn);

/* --- activations ------------------------------------------------------------------------------ */

/* Activations: the residual stream x is fp32 on every backend; `kn_act` buffers hold what passes
 * between operations, in the backend's own element type and order (CPU: fp32, row after row; CUDA:
 * kernels/cuda/cuda.h).  kn_act_bytes is what [T,cols] needs for every T up to rows. */
typedef void kn_act;
size_t kn_act_bytes(const struct kn *kn, int32_t rows, int32_t cols);

/* --- operations ------------------------------------------------------------------------------- */

/* x[T,H] fp32 = table[tokens] (+ pos_table[positions + pos_offset] where pos_table is not NULL). */
struct kn_embed_args {
    const struct kn_weight *table;     /* [V,H] */
    const struct kn_weight *pos_table; /* [P,H] or NULL */
    int32_t pos_offset;
    float *x;
};
void kn_embed(struct kn *kn, const struct kn_batch *batch, const struct kn_embed_args *a);

/* y[T,H] = norm(x[T,H]) * weight (+ bias).  RMSNorm: x / sqrt(mean(x^2) + eps); LayerNorm: (x -
 * mean) / sqrt(var + eps). */
enum kn_norm_kind { KN_RMS_NORM, KN_LAYER_NORM };
struct kn_norm_args {
    enum kn_norm_kind kind;
    float eps;
    int32_t row_count, cols;
    const float *x;
    const float *weight; /* [H] fp32 */
    const float *bias;   /* [H] fp32 or NULL */
    kn_act *y;
};
void kn_norm(struct kn *kn, const struct kn_norm_args *a);

/* out = epilogue(in[T,K] . W[N,K]^T + bias[N]). */
enum kn_epilogue {
    KN_EPI_STORE,  /* kn_act out[T,N] */
    KN_EPI_RELU,   /* kn_act out[T,N] = max(0, .) */
    KN_EPI_SWIGLU, /* kn_act out[T,N/2] = silu(gate) * up, rows interleaved as kn_glu_row says */
    KN_EPI_ADD,    /* fp32 out[T,N] += . (the residual stream) */
    KN_EPI_F32,    /* fp32 out[T,N] (logits) */
};
struct kn_gemm_args {
    const struct kn_weight *w;
    const float *bias; /* [N] fp32 or NULL */
    int32_t row_count; /* T */
    const kn_act *in;
    enum kn_epilogue epilogue;
    void *out;
};
void kn_gemm(struct kn *kn, const struct kn_gemm_args *a);

/* Per head of qkv [T, (Hq + 2 Hkv) * D] (query heads, then key heads, then value heads): RMSNorm
 * with q_norm / k_norm where given, then rotary embedding in the half-split form (pairs d and d +
 * D/2) where rope is given; k and v are appended to the layer's KV pages in the KV's dtype.  q
 * stays in place or with the backend: kn_attention of the same batch, buffer and layer comes
 * next. */
struct kn_qkv_args {
    kn_act *qkv;
    int32_t q_heads;
    const float *q_norm, *k_norm; /* [D] fp32 or NULL */
    float norm_eps;
    const float *rope; /* [P, D] fp32: for each position D/2 cosines, then D/2 sines; or NULL */
    const struct kn_kv *kv;
    int32_t layer;
};
void kn_qkv(struct kn *kn, const struct kn_batch *batch, const struct kn_qkv_args *a);

/* Causal grouped-query attention over the pages: out[T, Hq*D] = softmax(scale * q . K^T) . V.  q
 * is what the kn_qkv before left.  window > 0: a token at position p sees positions p - window + 1
 * .. p only. */
struct kn_attention_args {
    const kn_act *qkv;
    int32_t q_heads;
    float scale;
    int32_t window;
    const struct kn_kv *kv;
    int32_t layer;
    kn_act *out;
};
void kn_attention(struct kn *kn, const struct kn_batch *batch, const struct kn_attention_args *a);

/* Reads all bytes of memory of kn_alloc once, in the way the backend reads weights fastest: what a
 * measurement of bandwidth times.  ptr is KN_ALIGN-aligned and bytes a multiple of KN_ALIGN.  A sum
 * of what was read stays in kn, so that no compiler leaves the reading out. */
void kn_stream_read(struct kn *kn, const void *ptr, size_t bytes);

/* Times reading a remote memory beside the local one; the machine must be idle.  For about `ns`,
 *     every SM streams `local` (NULL: HBM rests), with as much in flight as HBM needs, and
 *     `ctas` CTAs, one an SM, read `remote` with `blocks` blocks in flight each; or
 *     with cluster > 1, `ctas` clusters of so many CTAs do, each block once for all of them; or
 *     with copy_to not NULL, the copy engine copies `remote` there, again and again.
 * No copies beside clusters; nothing but the local memory where ctas is 0 and copy_to NULL. */
struct kn_link_args {
    const void *local, *remote; /* of kn_alloc, KN_ALIGN-aligned */
    void *copy_to;              /* local, remote_bytes of it */
    size_t local_bytes, remote_bytes;
    int32_t ctas, blocks, cluster; /* blocks 1..KN_LINK_BLOCKS_MAX; cluster 1, 2, 4 or 8 */
    uint64_t ns;
};
#define KN_LINK_BLOCKS_MAX 6
/* 0 where nothing was read.  Trips are of single blocks, and none are told of clusters and copies.
 */
struct kn_link_rates {
    double local_bytes_per_s;
    double remote_bytes_per_s; /* by kernels, as it crossed the link */
    double copy_bytes_per_s;   /* by the copy engine, beside them */
    double trip_mean_s, trip_min_s, trip_max_s;
};
/* ST_UNSUPPORTED on the CPU backend, which reads every tier with the same loads over the same bus:
 * there is no link.  ST_DEVICE. */
MUST_USE enum status kn_measure_link(struct kn *kn, const struct kn_link_args *a,
                                     struct kn_link_rates *out, char *err);
/* SMs, of which each may read; 0 on the CPU. */
int32_t kn_sm_count(const struct kn *kn);
/* What a measurement is good for: the one device and its driver, e.g. "GPU-1b2c..., NVIDIA H200,
 * driver 580.95.05"; of the CPU backend its name. */
const char *kn_identity(const struct kn *kn);

/* Multiplies random bf16 matrices that lie on the chip, with all its matrix units, for about a
 * millisecond: what a measurement of their peak times.  Returns the operations, 2 a multiply-add; 0
 * where the backend has no such units (the CPU). */
double kn_matrix_run(struct kn *kn);

/* Whether row i is token i for all rows, as in a step of one token a sequence: then x holds the
 * rows as they are wanted and there is nothing to gather. */
static inline bool kn_rows_in_order(const struct kn_batch *batch)
{
    for (int32_t i = 0; i < batch->row_count; i++)
        if (batch->rows[i] != i) return false;
    return true;
}

/* out[R,H] fp32 = x[rows]. */
void kn_gather(struct kn *kn, const struct kn_batch *batch, int32_t cols, const float *x,
               float *out);

/* Chooses tokens from rows of logits[.,V]; `rows` may be reused when it returns.  For each of
 * rows[R]:
 *   1. NaN counts as -inf and is never chosen; +inf counts as the largest float.
 *   2. temperature 0: the largest logit, the lowest id among equals.  Otherwise
 *   3. weight = exp((logit - largest) / temperature), as kernels/sample.c computes it: a multiple
 *      of 2^-34
 *   4. min_p drops weights below it; top_k keeps the largest k of what is left; top_p keeps, of
 *      that, the shortest prefix by falling logit whose weights come to top_p of their sum.  Among
 *      equal logits at an edge the lower ids stay.
 *   5. the first id at which the cumulative weight exceeds u times the sum.
 * Sums of such weights are exact for V up to 2^19, hence the token is the same on every backend, in
 * any company: the host's kn_sampler_choose and this may take turns within an answer.
 * Penalties, biases, masks and lists of alternatives are not done here: rows that need them go to
 * the host (kn_download). */
struct kn_sample_row {
    int32_t row;       /* of the logits */
    int32_t top_k;     /* 0: off */
    float temperature; /* 0: greedy */
    float top_p;       /* (0, 1]; 1: off */
    float min_p;       /* [0, 1]; 0: off */
    bool score;        /* whether logprob and rank are wanted */
    double u;          /* random, in [0, 1) */
};
struct kn_sampled {
    int32_t token; /* -1 where every logit is -inf or NaN; the rest is then not set */
    int32_t rank;  /* 1 + number of tokens with a larger logit; 0 without score */
    float logprob; /* under softmax of the row; NAN without score */
};
struct kn_sample_args {
    const float *logits; /* in KN_MEM_STAGING or KN_MEM_LOCAL, KN_ALIGN-aligned */
    int32_t vocab;       /* V */
    int32_t row_count;   /* R */
    const struct kn_sample_row *rows;
    struct kn_sampled *out; /* [R] in KN_MEM_STAGING */
};
void kn_sample(struct kn *kn, const struct kn_sample_args *a);
/* Makes room for sampling up to row_max rows from this vocabulary; before its first kn_sample. */
MUST_USE enum status kn_sample_reserve(struct kn *kn, int32_t vocab, int32_t row_max, char *err);

/* --- recorded steps --------------------------------------------------------------------------- */

/* A decode step is some hundreds of operations of a few microseconds each, which a host may issue
 * no faster than a GPU computes them.  A backend that records takes them once, for a number of
 * tokens, and plays them with the batch and the rows of any step that is no larger; the outcome is
 * the same, bit for bit.
 *
 * How many tokens the recording for steps of `tokens` tokens has, at least so many: the buffers
 * that its operations write need so many rows.  0 where such steps are not recorded; the CPU
 * backend records none. */
int32_t kn_record_tokens(const struct kn *kn, int32_t tokens);
/* Between these two a step is issued that has `tokens` (from kn_record_tokens) tokens, wants as
 * many rows and samples each of them, and is not computed: what its batch and out show does not
 * matter, and of its rows only whether they are gathered.  The same operations on the same memory
 * have been issued and synced before, which prepares what cannot be prepared here.  ST_DEVICE. */
MUST_USE enum status kn_record_begin(struct kn *kn, int32_t tokens, char *err);
MUST_USE enum status kn_record_end(struct kn *kn, char *err);
/* Within a step, and once in it: plays the recording that serves batch, sampling a->row_count of
 * its rows; logits and vocab are the recorded ones.  False, and nothing was done, where none serves
 * it: none was made, its rows want another than its tokens, its rows must be gathered where the
 * recorded ones were not, a sequence has many tokens in it, or its page tables are too long.  Then
 * the caller issues the step. */
bool kn_play(struct kn *kn, const struct kn_batch *batch, const struct kn_sample_args *a);

#ifdef __cplusplus
}
#endif

#endif
