/*
 * state.h - struct kn_cu, the opened CUDA backend, shared by its host files; private to
 * kernels/cuda.
 *
 *     device.c   open and close, errors, what is supported
 *     memory.c   memory of the tiers, uploads
 *     step.c     the batch's arrays on the device, and the small operations
 *     product.c  products and norms, and what passes between them
 *     record.c   steps in flight, and steps recorded as graphs
 *     attend.c   the operations around attention
 *     fetch.c    remote weights of prompts, copied ahead of their products
 *     stage.c    remote weights of decode steps, the same
 *     move.c     pages of the KV cache, copied from tier to tier
 *     copy.c     copies that use a link beside the steps, for measuring
 *     control.c  the windows kernels read remote tiers by, and their counters
 *
 * Everything runs in one stream, but for the copies of fetch.c and stage.c, which it waits for, and
 * those of move.c, which wait for it.  The first failure is kept in `failure`; after it operations
 * return at once and kn_sync reports it, each time it is asked.  The current device belongs to a
 * thread, and weights are uploaded by other threads than the one that computes, so every function
 * that calls CUDA chooses the device first (kn_cu_enter).
 */
#ifndef DAKD_KERNELS_CUDA_STATE_H
#define DAKD_KERNELS_CUDA_STATE_H

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "kernels/backend.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/prefill.h"
#include "kernels/cuda/prefill_attention.h"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/stream.h"
#include "kernels/ring.h"
#include "kernels/stage.h"

enum {
    KN_CU_UPLOAD_SLOTS = 4,
    KN_CU_PLANS_MAX = 512,
    KN_CU_STEPS = 2, /* begun and not waited for */
    KN_CU_STEP_EVENTS = KN_CU_STEPS + 1,
    KN_CU_RECORDINGS_MAX = 6,   /* one for each token bucket */
    KN_CU_WINDOWS_MAX = 4,      /* distinct attention windows of a model */
    KN_CU_NORM_TILES_MAX = 512, /* row tiles of a product with a norm after it */
    KN_CU_UNDIVIDED_MAX = 16,   /* outputs of norms, at a time */
    KN_CU_PLAY_PAGES = 1 << 18  /* page-table entries of a played step: 16 million positions */
};
/* Of struct kn_cu_gemm_norm. */
#define KN_CU_NORM_WORDS                                                                           \
    ((size_t)KN_CU_PARTS_MAX * KN_CU_NORM_TILES_MAX * KN_TILE_ROWS * KN_CU_SQUARES_TOKENS)
/* Sequences with so many tokens in a step go through prefill attention, those with fewer through
 * decode attention.  Measured on an H200, 32/8 heads of 128: both take as long for 35 tokens at 512
 * positions, 23 at 4,096, 4 at 32,768, where prefill attention shares out sections. */
#define KN_CU_CHUNK_MIN 16
static inline bool kn_cu_is_chunk(const struct kn_seq *seq)
{
    return seq->token_count >= KN_CU_CHUNK_MIN;
}
#define KN_CU_GROUP_MAX 16                   /* query heads of a kv-head */
#define KN_CU_PARTS_BYTES ((size_t)64 << 20) /* products whose parts need more are not cut */

/* One kn_alloc. */
struct kn_cu_region {
    struct kn_cu_region *next;
    enum kn_mem mem;
    int device; /* that holds it, where device memory */
    size_t bytes;
    char *base;     /* what kn_alloc gave */
    char *twin;     /* of KN_MEM_STAGING: device memory of the same size that kernels write */
    void *raw;      /* owned: the device memory that base or twin lies in; NULL for HOST */
    void *raw_host; /* owned: of STAGING, the pinned memory that base lies in */
    uint64_t serial;
};

/* The pinned ring uploads go through. */
struct kn_cu_upload {
    char *slot[KN_CU_UPLOAD_SLOTS];
    cudaEvent_t free[KN_CU_UPLOAD_SLOTS]; /* the copy out of a slot is done */
    unsigned next;
};

/* How a batch is divided between prefill attention and decode attention. */
struct kn_cu_chunks {
    uint64_t serial; /* of the batch; 0: none */
    int32_t q_heads, kv_heads, head_dim;
    struct kn_cu_prefill_work work;        /* tile_count 0: everything is decode's */
    const int32_t *chunk_seq, *decode_seq; /* [T] on the device: token_seq, or -1 for the other's */
};

/* The batch's arrays: laid out once on the host, copied by one asynchronous copy. */
struct kn_cu_stage {
    char *host;   /* pinned, [bytes] */
    char *device; /* [bytes] */
    size_t bytes, used;
    uint64_t serial; /* of the batch: counts the batches copied */
    bool has_batch, has_rows;
    struct kn_batch seen;  /* the host's pointers that are on the device since the last kn_sync */
    struct kn_batch batch; /* the same with the device's pointers */
    struct kn_cu_chunks chunks;
};

/* All that differs between two steps of one recording, in device memory at an address the recorded
 * kernels know. */
struct kn_cu_play {
    struct kn_cu_sample_step sample;
    int32_t tokens[KN_CU_TOKENS_MAX], positions[KN_CU_TOKENS_MAX], token_seq[KN_CU_TOKENS_MAX];
    int32_t rows[KN_CU_TOKENS_MAX];
    struct kn_seq seqs[KN_CU_TOKENS_MAX];
    kn_page pages[]; /* [KN_CU_PLAY_PAGES] */
};

/* A step of `bucket` tokens and rows. */
struct kn_cu_recording {
    int32_t bucket;
    cudaGraphExec_t exec; /* owned */
    size_t dependent;     /* kernels that may start before the one before them ends */
    bool gathers;         /* its rows, which may then be any */
    const float *logits;  /* that were sampled, as the host calls them */
    int32_t vocab;
    int32_t window[KN_CU_WINDOWS_MAX], window_count;
};

struct kn_cu_record {
    struct kn_cu_play *device, *host[KN_CU_STEPS]; /* owned; host pinned; NULL before the first */
    struct kn_cu_recording made[KN_CU_RECORDINGS_MAX];
    int32_t count;
    uint64_t region_serial;      /* the newest that one of them may know */
    struct kn_cu_recording *now; /* what is being recorded, or NULL */
    struct kn_batch batch;       /* of `now`: arrays in *device */
    bool played;                 /* in the present step */
};

/* The steps in flight, and the one before them: number n has the events n % KN_CU_STEP_EVENTS. */
struct kn_cu_steps {
    uint64_t begun, waited; /* serial numbers */
    uint64_t idle_ns;       /* before `waited` */
    bool open;
    bool asked[KN_CU_STEPS]; /* the counters are read at its end */
    cudaEvent_t begin[KN_CU_STEP_EVENTS], end[KN_CU_STEP_EVENTS];
};

/* The plan of a product, by its token bucket the decode GEMM's or the prefill GEMM's. */
struct kn_cu_planned {
    int32_t rows, cols, bucket;
    bool parts, alone; /* alone: no CTA shares weights with another */
    struct kn_cu_gemm_plan decode;
    struct kn_cu_prefill_plan prefill;
};

/* A product that is not done yet (product.c). */
struct kn_cu_pending {
    float *memory;             /* owned, device: [KN_CU_PARTS_BYTES], parts of one product */
    uint32_t *words, *arrived; /* owned, device: of struct kn_cu_gemm_norm, zero between kernels */
    enum { KN_CU_NOTHING, KN_CU_HELD, KN_CU_IN_PARTS } state;
    struct kn_gemm_args product; /* its w is the one here */
    struct kn_weight w;
    int32_t place;            /* while HELD: of what is staged of w, or -1 */
    struct kn_cu_parts parts; /* while IN_PARTS */
};

/* Activations y[rows,cols] that are to be divided by their root mean square. */
struct kn_cu_undivided {
    const void *y;
    int32_t rows, cols;
    float eps;
};

enum { KN_CU_ATTENTION_PLANS = 2 };

/* Attention's workspace, for one shape of heads at a time, and the plans it holds. */
struct kn_cu_attend {
    struct kn_cu_attention a;
    char *memory, *second_plan;          /* owned */
    struct kn_cu_prefill_state *prefill; /* in second_plan */
    struct kn_cu_attention_plan plan[KN_CU_ATTENTION_PLANS];
    struct kn_cu_planned_step {
        uint64_t serial;                /* of the batch; 0: none */
        int32_t window, at, begin, end; /* tokens [begin, end) of those from `at` on */
    } planned[KN_CU_ATTENTION_PLANS];
    unsigned next;          /* the plan to overwrite */
    struct kn_qkv_args qkv; /* of the last kn_qkv */
};

/* Remote weights on their way to the products of prompts; arrays are by tier. */
struct kn_cu_fetch {
    char *raw;    /* owned, device; NULL where nothing is reserved */
    char *memory; /* in it: [ring.bytes] */
    struct kn_ring ring;
    cudaStream_t stream[KN_TIER_MAX];
    cudaEvent_t copied[KN_TIER_MAX];  /* the last copy from the tier is there */
    cudaEvent_t used[KN_RING_PLACES]; /* take n of the ring has been read: at n % KN_RING_PLACES */
    cudaEvent_t uploaded;             /* what kn_cu_upload changed last is there */
    int32_t beyond;                   /* products of up to so many tokens fetch nothing */
    bool behind[KN_TIER_MAX];         /* the tier's stream has not waited for it */
    uint64_t bytes[KN_TIER_MAX];      /* copied, of all that was issued */
};

/* Pages on their way from tier to tier: call number n of kn_move_pages has the event
 * n % KN_MOVES_MAX. */
struct kn_cu_moves {
    cudaStream_t stream;
    cudaEvent_t issued; /* all that a move waits for is done */
    cudaEvent_t over[KN_MOVES_MAX];
    uint64_t begun, ended; /* calls */
    uint64_t pages_ended;
    int32_t pages[KN_MOVES_MAX]; /* of a call */
    uint64_t bytes[KN_TIER_MAX]; /* begun */
};

/* A copy of staged tiles. */
struct kn_cu_staged_copy {
    const char *from;
    char *to;
    size_t bytes;
    int32_t tier;
};

/* Remote weights of decode steps on their way to their products (stage.c). */
struct kn_cu_staging {
    char *raw;                      /* owned, device; NULL where nothing is staged */
    char *memory;                   /* in it: the ring */
    size_t bytes;                   /* of it */
    uint32_t *words;                /* owned, device: [count * KN_CU_WORD_STRIDE] */
    struct kn_stage_place *places;  /* owned, [count]: of a step, in its order */
    struct kn_cu_staged_copy *copy; /* owned: of place p, copy[p.item .. p.item + p.item_count) */
    int32_t count;
    int32_t next; /* the place of the product that is issued next */
    int32_t
        unread; /* the place that was read last, if nobody was told to give it back yet; or -1 */
    cudaGraphExec_t chain; /* owned: a step's copies */
    cudaStream_t stream;   /* owned: that they run in */
    bool behind;           /* which has not waited for cu->fetch.uploaded */
    /* cuStreamBatchMemOp, for libcuda is loaded at run time. */
    CUresult (*mem_ops)(CUstream stream, unsigned count, CUstreamBatchMemOpParams *ops,
                        unsigned flags);
};
#define KN_CU_WORD_STRIDE 32 /* words: each in a line of L2 of its own */

enum { KN_CU_READINGS = 4 }; /* two steps in flight, and kn_sync before them */

/* What kernels are told, and what they tell. */
struct kn_cu_control {
    enum kn_remote_access access;
    /* By access and tier: those of LOADS have no bound.  device_window owned. */
    struct kn_cu_window window[2][KN_TIER_MAX], (*device_window)[KN_TIER_MAX];
    bool has_window[KN_TIER_MAX];
    bool remote;                          /* a remote tier has been read */
    struct kn_cu_traffic *device_traffic; /* [KN_TIER_MAX], owned */
    /* Owned, pinned: copies of the counters, the one asked for last at (asked - 1) % READINGS. */
    struct kn_cu_traffic (*reading)[KN_TIER_MAX];
    uint64_t fetched[KN_CU_READINGS][KN_TIER_MAX]; /* bytes copied as of each of them, */
    uint64_t moved[KN_CU_READINGS][KN_TIER_MAX];   /* and of pages */
    uint64_t asked, taken;
    int32_t steps_unread;
    int32_t turn; /* of the last product that took one */
    double ns_per_clock;
    struct kn_traffic traffic[KN_TIER_MAX];
};

struct kn_cu {
    struct kn kn; /* first */
    int device, sm_count;
    char name[192], identity[192];
    cudaStream_t stream;
    char failure[ERR_CAP];        /* "" while nothing failed */
    bool busy;                    /* something was issued since the last kn_sync */
    unsigned without;             /* KN_WITHOUT_* */
    struct kn_cu_region *regions; /* owned */
    uint64_t region_serial;       /* of the newest */
    struct kn_cu_upload upload;
    struct kn_cu_stage stage;
    struct kn_cu_attend attend;
    struct kn_cu_pending pending;
    struct kn_cu_undivided undivided[KN_CU_UNDIVIDED_MAX];
    int32_t undivided_count;
    struct kn_cu_planned plans[KN_CU_PLANS_MAX];
    int32_t plan_count;
    struct kn_cu_control control;
    struct kn_cu_fetch fetch;
    struct kn_cu_moves moves;
    struct kn_cu_staging staging;
    void *prefill;                          /* owned, device: [kn_cu_prefill_workspace_bytes] */
    struct kn_cu_stream_state *stream_read; /* owned, device: of kn_stream_read */
    unsigned stream_read_turn;
    int32_t *chosen; /* owned, device, [chosen_max]: tokens of the last kn_sample */
    int32_t chosen_max;
    struct kn_cu_steps steps;
    struct kn_cu_record record;
};

static inline struct kn_cu *kn_cu_of(struct kn *kn)
{
    return (struct kn_cu *)kn;
}

/* --- device.c --- */

/* Keeps the first failure; true where there is none. */
bool kn_cu_ok(struct kn_cu *cu, cudaError_t e, const char *what);
bool kn_cu_st(struct kn_cu *cu, enum status st, const char *err);
/* Chooses the device for this thread; false after a failure. */
bool kn_cu_enter(struct kn_cu *cu);
enum status kn_cu_sync(struct kn *kn, char *err);

/* --- memory.c --- */

enum status kn_cu_alloc(struct kn *kn, enum kn_mem mem, int device, size_t bytes, void **out,
                        char *err);
void kn_cu_free(struct kn *kn, enum kn_mem mem, void *ptr, size_t bytes);
enum status kn_cu_upload(struct kn *kn, void *dst, const void *src, size_t bytes);
enum status kn_cu_memory(struct kn *kn, uint64_t *total, uint64_t *available, char *err);
/* The region p points into, NULL where there is none. */
struct kn_cu_region *kn_cu_region_of(struct kn_cu *cu, const void *p);
enum status kn_cu_upload_open(struct kn_cu *cu, char *err);
void kn_cu_upload_close(struct kn_cu *cu);

/* --- step.c --- */

enum status kn_cu_stage_open(struct kn_cu *cu, char *err);
void kn_cu_stage_close(struct kn_cu *cu);
/* Everything issued has ended: the arrays on the device may be overwritten. */
void kn_cu_stage_reset(struct kn_cu *cu);
/* Entries of the batch's page tables. */
size_t kn_cu_page_count(const struct kn_batch *b);
/* The batch that comes next is another one, whatever its pointers are. */
void kn_cu_stage_forget(struct kn_cu *cu);
size_t kn_cu_buffer_bytes(const struct kn *kn, int32_t rows, int32_t cols);
void kn_cu_embed(struct kn *kn, const struct kn_batch *batch, const struct kn_embed_args *a);
/* Before an operation: chooses the device, and issues what is held; false after a failure. */
bool kn_cu_begin(struct kn_cu *cu);
/* The batch with its arrays on the device; NULL after a failure. */
const struct kn_batch *kn_cu_stage_batch(struct kn_cu *cu, const struct kn_batch *b);
/* How the staged batch is divided, `b` being the host's; NULL after a failure.  While a step is
 * recorded nothing is prefill attention's. */
const struct kn_cu_chunks *kn_cu_stage_chunks(struct kn_cu *cu, const struct kn_batch *b,
                                              int32_t q_heads, const struct kn_kv *kv);
/* All of a buffer, as fast as its memory is read without harm to HBM. */
void kn_cu_stream_read(struct kn *kn, const void *ptr, size_t bytes);
double kn_cu_matrix_run(struct kn *kn);

/* --- product.c --- */

void kn_cu_norm(struct kn *kn, const struct kn_norm_args *a);
void kn_cu_gemm(struct kn *kn, const struct kn_gemm_args *a);
/* Issues what is held: its parts are then pending. */
bool kn_cu_issue_held(struct kn_cu *cu);
/* Does all of what is pending. */
bool kn_cu_settle(struct kn_cu *cu);
/* The parts that out[rows, .] is pending in, which the caller adds up; all of it as one part where
 * nothing is. */
struct kn_cu_parts kn_cu_take_parts(struct kn_cu *cu, const float *out, int32_t rows);
/* A pending product whose sum lies in this memory is not made. */
void kn_cu_drop_pending(struct kn_cu *cu, const void *from, size_t bytes);
/* Buffers that begin in this memory hold no undivided activations any more.  Whoever writes
 * activations says so. */
void kn_cu_forget_undivided(struct kn_cu *cu, const void *from, size_t bytes);

/* --- fetch.c --- */

enum status kn_cu_fetch_open(struct kn_cu *cu, char *err);
void kn_cu_fetch_close(struct kn_cu *cu);
enum status kn_cu_fetch_reserve(struct kn *kn, size_t bytes, char *err);
void kn_cu_fetch_beyond(struct kn *kn, int32_t tokens);
/* *out is w with its remote tiles in HBM, where operations issued next find them: once the product
 * that reads them is issued, kn_cu_fetch_used must be called.  *fetched is false, and *out is w,
 * where w has no remote tiles or they do not fit the ring.  False after a failure. */
bool kn_cu_fetch(struct kn_cu *cu, const struct kn_weight *w, struct kn_weight *out, bool *fetched);
bool kn_cu_fetch_used(struct kn_cu *cu);
/* A copy into remote memory has been issued. */
bool kn_cu_fetch_behind(struct kn_cu *cu);

/* --- move.c --- */

enum status kn_cu_moves_open(struct kn_cu *cu, char *err);
void kn_cu_moves_close(struct kn_cu *cu);
void kn_cu_move_pages(struct kn *kn, const struct kn_kv *kv, const struct kn_page_move *moves,
                      int32_t count);
uint64_t kn_cu_moves_done(struct kn *kn);
void kn_cu_moves_wait(struct kn *kn);
/* The host waits for all of them. */
bool kn_cu_moves_sync(struct kn_cu *cu);

/* --- control.c --- */

enum status kn_cu_control_open(struct kn_cu *cu, char *err);
void kn_cu_control_close(struct kn_cu *cu);
void kn_cu_set_window(struct kn *kn, int tier, const struct kn_window *w);
enum status kn_cu_set_remote_access(struct kn *kn, enum kn_remote_access access, char *err);
enum status kn_cu_set_without(struct kn *kn, unsigned parts, char *err);
/* The control block must say how a tier, whose memory `base` is of, is read before a kernel reads
 * it. */
bool kn_cu_need_window(struct kn_cu *cu, int tier, const void *base);
/* Asks for a copy of the counters as they are at this place in the stream: false where it is not
 * yet time for one.  KN_CU_READINGS may be asked for and not taken; take it when the stream has got
 * there. */
bool kn_cu_reading_ask(struct kn_cu *cu);
void kn_cu_reading_take(struct kn_cu *cu);
void kn_cu_traffic(struct kn *kn, int tier, struct kn_traffic *out);

/* --- stage.c --- */

enum status kn_cu_stage(struct kn *kn, const struct kn_stage_item *items, int32_t count,
                        size_t bytes, char *err);
void kn_cu_staging_close(struct kn_cu *cu);
/* Before a recorded step is played: starts all its copies.  False after a failure. */
bool kn_cu_staging_start(struct kn_cu *cu);
/* The place of what is staged of the product that is asked for, or -1; starts its copy, but for a
 * step that is recorded.  False after a failure. */
bool kn_cu_staging_next(struct kn_cu *cu, const struct kn_gemm_args *a, int32_t *place);
/* What its launch is told, or for -1 that of another product; each launch is told once. */
struct kn_cu_staged kn_cu_staged_of(struct kn_cu *cu, int32_t place);
/* Between two steps: what the last product has read is given back. */
bool kn_cu_staging_settle(struct kn_cu *cu);

/* --- link.c --- */

enum status kn_cu_measure_link(struct kn *kn, const struct kn_link_args *a,
                               struct kn_link_rates *out, char *err);

/* --- copy.c --- */

enum status kn_cu_copy_open(struct kn *kn, enum kn_mem mem, int device, double bytes_per_s,
                            struct kn_copy **out, char *err);
uint64_t kn_cu_copy_bytes(const struct kn_copy *copy);
enum status kn_cu_copy_close(struct kn_copy *copy, char *err);

/* --- attend.c --- */

enum status kn_cu_attend_check(int32_t q_heads, const struct kn_kv *kv, char *err);
void kn_cu_attend_close(struct kn_cu *cu);
void kn_cu_qkv(struct kn *kn, const struct kn_batch *batch, const struct kn_qkv_args *a);
void kn_cu_attention(struct kn *kn, const struct kn_batch *batch,
                     const struct kn_attention_args *a);
void kn_cu_gather(struct kn *kn, const struct kn_batch *batch, int32_t cols, const float *x,
                  float *out);

void kn_cu_download(struct kn *kn, void *staging, size_t bytes);
void kn_cu_sample(struct kn *kn, const struct kn_sample_args *a);
enum status kn_cu_sample_reserve(struct kn *kn, int32_t vocab, int32_t row_max, char *err);

/* The end of the run of tokens from `begin` on whose attention fits one plan. */
int32_t kn_cu_plan_end(const struct kn_cu_attention *a, const int32_t *positions, int32_t window,
                       int32_t begin, int32_t count);

/* --- record.c --- */

enum status kn_cu_steps_open(struct kn_cu *cu, char *err);
void kn_cu_steps_close(struct kn_cu *cu);
void kn_cu_step_begin(struct kn *kn);
uint64_t kn_cu_step_end(struct kn *kn);
enum status kn_cu_step_wait(struct kn *kn, uint64_t step, uint64_t *busy_ns, char *err);
uint64_t kn_cu_step_idle_ns(const struct kn *kn);
int32_t kn_cu_record_tokens(const struct kn *kn, int32_t tokens);
enum status kn_cu_record_begin(struct kn *kn, int32_t tokens, char *err);
enum status kn_cu_record_end(struct kn *kn, char *err);
/* Recordings know addresses: called where memory they may know is freed. */
void kn_cu_record_drop(struct kn_cu *cu);
bool kn_cu_play(struct kn *kn, const struct kn_batch *batch, const struct kn_sample_args *a);

#endif
