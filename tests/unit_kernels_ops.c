/*
 * unit_kernels_ops.c - the operations around the products: embedding, norms, QKV (norm, rotary
 * embedding, append), gather; then opening, memory and the thread pool.  References are fp64 or
 * exact.
 */
#include <stdatomic.h>
#include <unistd.h>

#include "tests/kernels_common.h"

static void test_embed(void **state)
{
    (void)state;
    enum { V = 150, H = 203, P = 70, T = 90, OFFSET = 2 };
    for (int dtype = 0; dtype < KN_DTYPE_COUNT; dtype++) {
        for (int with_positions = 0; with_positions < 2; with_positions++) {
            struct kn *kn = test_open(3, NULL);
            struct test_weight table = test_weight_make((enum kn_dtype)dtype, V, H, 1, NULL);
            struct test_weight pos = test_weight_make((enum kn_dtype)dtype, P, H, 2, NULL);
            int32_t tokens[T], positions[T];
            for (int i = 0; i < T; i++) {
                tokens[i] = i == 0 ? V - 1 : (int32_t)(test_random() % V);
                positions[i] = i == 0 ? P - OFFSET - 1 : (int32_t)(test_random() % (P - OFFSET));
            }
            struct kn_batch batch = {.token_count = T, .tokens = tokens, .positions = positions};
            float *x = test_poisoned(T * H + 1);
            struct kn_embed_args a = {&table.w, with_positions ? &pos.w : NULL, OFFSET, x};
            kn_embed(kn, &batch, &a);
            for (int i = 0; i < T; i++)
                for (int h = 0; h < H; h++) {
                    float want = table.f[tokens[i] * H + h];
                    if (with_positions) want += pos.f[(positions[i] + OFFSET) * H + h];
                    assert_true(x[i * H + h] == want);
                }
            assert_int_equal(kn_f32_bits(x[T * H]), UINT32_MAX);
            free(x);
            test_weight_free(&table);
            test_weight_free(&pos);
            kn_close(kn);
        }
    }
}

/* A token named by its place in the last kn_sample is the token; operations between kn_step_begin
 * and kn_step_end are computed, timed, and two such steps may be open to reading. */
static void test_chosen_tokens_and_steps(void **state)
{
    (void)state;
    enum { V = 150, H = 70, R = 5 };
    static const int32_t best[R] = {149, 0, 77, 77, 3}, ids[] = {7, 0, 149, 3};
    const int32_t named[] = {7, kn_token_chosen(1), kn_token_chosen(0), kn_token_chosen(4)};
    char err[ERR_CAP] = "";
    struct kn *kn = test_open(2, NULL);
    struct test_weight table = test_weight_make(KN_BF16, V, H, 1, NULL);
    struct kn_sample_row rows[R];
    struct kn_sampled out[R];
    float *logits = test_floats(R * V), *x = test_poisoned(4 * H), *y = test_poisoned(4 * H);
    for (int32_t i = 0; i < R; i++) {
        rows[i] = (struct kn_sample_row){.row = i, .top_p = 1};
        logits[i * V + best[i]] = 1000;
    }
    assert_false(kn_is_async(kn));
    assert_int_equal(kn_sample_reserve(kn, V, R, err), ST_OK);
    struct kn_batch batch = {.token_count = 4, .tokens = named};
    const struct kn_sample_args sample = {logits, V, R, rows, out};
    assert_int_equal(kn_record_tokens(kn, 1), 0);
    kn_step_begin(kn);
    assert_false(kn_play(kn, &batch, &sample));
    kn_sample(kn, &sample);
    uint64_t first = kn_step_end(kn), busy_ns = 0;
    usleep(2000);
    kn_step_begin(kn);
    kn_embed(kn, &batch, &(struct kn_embed_args){.table = &table.w, .x = x});
    uint64_t second = kn_step_end(kn);
    assert_int_equal(kn_step_wait(kn, first, &busy_ns, err), ST_OK);
    assert_true(busy_ns > 0 && kn_step_idle_ns(kn) == 0);
    for (int32_t i = 0; i < R; i++) assert_int_equal(out[i].token, best[i]);
    assert_int_equal(kn_step_wait(kn, second, &busy_ns, err), ST_OK);
    assert_true(kn_step_idle_ns(kn) >= 2000000);
    batch.tokens = ids;
    kn_embed(kn, &batch, &(struct kn_embed_args){.table = &table.w, .x = y});
    assert_memory_equal(x, y, 4 * H * sizeof *x);
    free(logits), free(x), free(y);
    test_weight_free(&table);
    kn_close(kn);
}

static void check_norm(struct kn *kn, enum kn_norm_kind kind, int32_t rows, int32_t cols,
                       bool with_bias, float offset)
{
    size_t n = (size_t)rows * (size_t)cols;
    float *x = test_floats(n), *weight = test_floats((size_t)cols),
          *bias = test_floats((size_t)cols);
    float *y = test_poisoned(n + 1);
    for (size_t i = 0; i < n; i++) x[i] += offset;
    struct kn_norm_args a = {kind, 1e-5f, rows, cols, x, weight, with_bias ? bias : NULL, y};
    kn_norm(kn, &a);
    for (int32_t r = 0; r < rows; r++) {
        const float *row = x + (size_t)r * (size_t)cols;
        double mean = 0, squares = 0;
        for (int32_t c = 0; c < cols; c++) mean += (double)row[c];
        mean = kind == KN_LAYER_NORM ? mean / cols : 0;
        for (int32_t c = 0; c < cols; c++) squares += pow((double)row[c] - mean, 2);
        for (int32_t c = 0; c < cols; c++) {
            double want = ((double)row[c] - mean) / sqrt(squares / cols + (double)a.eps);
            double scale = fabs(want *= (double)weight[c]);
            if (with_bias) want += (double)bias[c], scale += fabs((double)bias[c]);
            double error = fabs((double)y[(size_t)r * (size_t)cols + (size_t)c] - want);
            assert_true(error <= 4e-7 * scale + 1e-30);
        }
    }
    assert_int_equal(kn_f32_bits(y[n]), UINT32_MAX);
    /* A row by itself is the same row. */
    float *alone = test_poisoned((size_t)cols);
    a.row_count = 1, a.x = x + (size_t)(rows - 1) * (size_t)cols, a.y = alone;
    kn_norm(kn, &a);
    assert_memory_equal(alone, y + (size_t)(rows - 1) * (size_t)cols, (size_t)cols * sizeof *alone);
    free(x), free(weight), free(bias), free(y), free(alone);
}

static void test_norms(void **state)
{
    (void)state;
    static const int32_t shapes[][2] = {{1, 1}, {3, 7}, {2, 8}, {5, 203}, {40, 4096}};
    for (int threads = 1; threads <= 3; threads += 2) {
        struct kn *kn = test_open(threads, NULL);
        for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
            for (int with_bias = 0; with_bias < 2; with_bias++) {
                check_norm(kn, KN_RMS_NORM, shapes[s][0], shapes[s][1], with_bias, 0);
                check_norm(kn, KN_LAYER_NORM, shapes[s][0], shapes[s][1], with_bias, 0);
                /* A mean far from zero: the variance is of differences, nothing cancels. */
                check_norm(kn, KN_LAYER_NORM, shapes[s][0], shapes[s][1], with_bias, 100);
            }
        kn_close(kn);
    }
}

/* Two sequences in one step: 70 tokens from position 60 on (crossing pages), and one token at
 * position 0. */
enum {
    LONG_FIRST = 60,
    LONG_COUNT = 70,
    LONG_END = LONG_FIRST + LONG_COUNT,
    QKV_T = LONG_COUNT + 1
};

struct qkv_case {
    enum kn_dtype dtype;
    int32_t dim;
    bool norms, rope;
};

static const float *optional(bool given, const float *table)
{
    return given ? table : NULL;
}

/* The head in fp64: norm, then rotation by the table's angles. */
static void turn_reference(const struct qkv_case *c, const float *norm, const float *rope,
                           int32_t position, const float *x, double *y)
{
    int32_t half = c->dim / 2;
    double squares = 0;
    for (int32_t d = 0; d < c->dim; d++) squares += (double)x[d] * (double)x[d];
    double inverse = 1 / sqrt(squares / c->dim + (double)1e-6f);
    for (int32_t d = 0; d < c->dim; d++)
        y[d] = c->norms ? (double)x[d] * inverse * (double)norm[d] : (double)x[d];
    if (!c->rope) return;
    for (int32_t d = 0; d < half; d++) {
        double cosine = (double)rope[(size_t)position * (size_t)c->dim + (size_t)d];
        double sine = (double)rope[(size_t)position * (size_t)c->dim + (size_t)(half + d)];
        double low = y[d], high = y[d + half];
        y[d] = low * cosine - high * sine;
        y[d + half] = high * cosine + low * sine;
    }
}

/* Element (row, d) of a run of atoms, from the header's description. */
static float kv_element(const struct kn_kv *kv, const char *atoms, int32_t row, int32_t d)
{
    int32_t per_atom = 128 / (int32_t)kn_dtype_bytes(kv->dtype);
    unsigned byte = (unsigned)(d % per_atom) * (unsigned)kn_dtype_bytes(kv->dtype);
    return kn_load(kv->dtype,
                   atoms + d / per_atom * KN_ATOM_BYTES + kn_atom_offset((unsigned)row, byte), 0);
}

/* The appended head of one token: values to within one rounding of the dtype, zeros in the padding.
 */
static void check_appended(const struct kn_kv *kv, const char *atoms, int32_t position,
                           const double *want, bool exact)
{
    int32_t row = position % KN_PAGE_TOKENS;
    double unit = kv->dtype == KN_BF16 ? 0x1p-8 : kv->dtype == KN_F16 ? 0x1p-11 : 0x1p-22;
    int32_t per_atom = 128 / (int32_t)kn_dtype_bytes(kv->dtype);
    int32_t padded = (kv->head_dim + per_atom - 1) / per_atom * per_atom;
    for (int32_t d = 0; d < padded; d++) {
        float got = kv_element(kv, atoms, row, d);
        if (d >= kv->head_dim) assert_int_equal(kn_f32_bits(got), 0);
        else if (exact) assert_true(got == test_round_to(kv->dtype, (float)want[d]));
        else assert_true(fabs((double)got - want[d]) <= 1.01 * unit * fabs(want[d]) + 2e-6);
    }
}

static void check_qkv(const struct qkv_case *c, int threads)
{
    enum { HQ = 6, HKV = 2, HEADS = HQ + 2 * HKV };
    size_t dim = (size_t)c->dim, width = HEADS * dim;
    struct kn_kv kv = {c->dtype, 2, HKV, c->dim, {0}};
    size_t page_bytes = kn_kv_page_bytes(&kv);
    char *pool[2];
    for (int i = 0; i < 2; i++) {
        pool[i] = aligned_alloc(KN_ALIGN, 4 * page_bytes);
        assert_non_null(pool[i]);
        memset(pool[i], 0xFF, 4 * page_bytes);
        kv.base[i == 0 ? 0 : 3] = pool[i];
    }
    /* The long sequence's three pages, then the short one's. */
    const kn_page pages[] = {kn_page_make(0, 3), kn_page_make(3, 1), kn_page_make(0, 0),
                             kn_page_make(3, 2)};
    const struct kn_seq seqs[] = {{0, LONG_COUNT, LONG_END, 0}, {LONG_COUNT, 1, 1, 3}};
    int32_t positions[QKV_T], token_seq[QKV_T];
    for (int32_t i = 0; i < QKV_T; i++) {
        token_seq[i] = i < LONG_COUNT ? 0 : 1;
        positions[i] = i < LONG_COUNT ? LONG_FIRST + i : 0;
    }
    struct kn_batch batch = {.token_count = QKV_T,
                             .positions = positions,
                             .token_seq = token_seq,
                             .seq_count = 2,
                             .seqs = seqs,
                             .pages = pages};
    float *in = test_floats(QKV_T * width), *qkv = malloc(QKV_T * width * sizeof *qkv);
    float *norms[2] = {test_floats(dim), test_floats(dim)};
    float *rope = test_floats(LONG_END * dim);
    assert_non_null(qkv);
    memcpy(qkv, in, QKV_T * width * sizeof *qkv);
    struct kn *kn = test_open(threads, NULL);
    struct kn_qkv_args a = {qkv,
                            HQ,
                            optional(c->norms, norms[0]),
                            optional(c->norms, norms[1]),
                            1e-6f,
                            optional(c->rope, rope),
                            &kv,
                            1};
    kn_qkv(kn, &batch, &a);
    kn_close(kn);

    double want[KN_HEAD_DIM_MAX];
    for (int32_t t = 0; t < QKV_T; t++) {
        const float *row = in + (size_t)t * width;
        kn_page page = pages[seqs[token_seq[t]].page_begin + positions[t] / KN_PAGE_TOKENS];
        const char *base = (const char *)kv.base[kn_page_tier(page)] +
                           kn_page_index(page) * page_bytes + kn_kv_layer_bytes(&kv);
        for (int32_t h = 0; h < HQ; h++) {
            turn_reference(c, norms[0], rope, positions[t], row + (size_t)h * dim, want);
            for (size_t d = 0; d < dim; d++) {
                float got = qkv[(size_t)t * width + (size_t)h * dim + d];
                assert_true(fabs((double)got - want[d]) <= 2e-6);
                if (!c->norms && !c->rope) assert_true((double)got == want[d]);
            }
        }
        for (int32_t h = 0; h < HKV; h++) {
            const char *atoms = base + (size_t)h * kn_kv_head_bytes(&kv);
            turn_reference(c, norms[1], rope, positions[t], row + (size_t)(HQ + h) * dim, want);
            check_appended(&kv, atoms, positions[t], want, !c->norms && !c->rope);
            const float *v = row + (size_t)(HQ + HKV + h) * dim;
            for (size_t d = 0; d < dim; d++) want[d] = (double)v[d];
            check_appended(&kv, atoms + kn_kv_head_bytes(&kv) / 2, positions[t], want, true);
        }
    }
    /* Layer 0 of every page, and the rows before the first token, are as they were. */
    for (int i = 0; i < 4; i++)
        for (size_t b = 0; b < kn_kv_layer_bytes(&kv); b++) {
            const char *page = (const char *)kv.base[kn_page_tier(pages[i])];
            assert_int_equal((unsigned char)page[kn_page_index(pages[i]) * page_bytes + b], 0xFF);
        }
    const char *first = (const char *)kv.base[0] + 3 * page_bytes + kn_kv_layer_bytes(&kv);
    assert_true(isnan(kv_element(&kv, first, LONG_FIRST - 1, 0)));
    free(in), free(qkv), free(norms[0]), free(norms[1]), free(rope), free(pool[0]), free(pool[1]);
}

static void test_qkv(void **state)
{
    (void)state;
    static const int32_t dims[] = {2, 64, 80, 96, 128, 256, 512};
    for (int dtype = 0; dtype < KN_DTYPE_COUNT; dtype++)
        for (size_t d = 0; d < sizeof dims / sizeof dims[0]; d++)
            for (int mask = 0; mask < 4; mask++) {
                struct qkv_case c = {(enum kn_dtype)dtype, dims[d], mask & 1, mask & 2};
                check_qkv(&c, 1 + mask % 3);
            }
    struct qkv_case odd = {KN_BF16, 33, true, false};
    check_qkv(&odd, 2);
}

static void test_gather(void **state)
{
    (void)state;
    enum { T = 60, H = 517, R = 41 };
    struct kn *kn = test_open(2, NULL);
    float *x = test_floats(T * H), *out = test_poisoned(R * H + 1);
    int32_t rows[R];
    for (int i = 0; i < R; i++) rows[i] = i == 0 ? T - 1 : (int32_t)(test_random() % T);
    struct kn_batch batch = {.token_count = T, .row_count = R, .rows = rows};
    kn_gather(kn, &batch, H, x, out);
    for (int i = 0; i < R; i++) assert_memory_equal(out + i * H, x + rows[i] * H, H * sizeof *x);
    assert_int_equal(kn_f32_bits(out[R * H]), UINT32_MAX);
    free(x), free(out);
    kn_close(kn);
}

static void test_open_says_what_it_is(void **state)
{
    (void)state;
    struct kn *kn = test_open(1, &kn_cpu_isa_portable);
    assert_string_equal(kn_name(kn), "cpu (portable, 1 thread)");
    kn_close(kn);
    kn = test_open(3, &kn_cpu_isa_portable);
    assert_string_equal(kn_name(kn), "cpu (portable, 3 threads)");
    assert_int_equal(kn_act_bytes(kn, 2, 5), 40);
    kn_close(kn);
    char err[ERR_CAP] = "", want[32];
    assert_int_equal(kn_open_cpu(0, &kn, err), ST_OK);
    snprintf(want, sizeof want, ", %d thread", kn_pool_core_count());
    assert_non_null(strstr(kn_name(kn), want));
    assert_int_equal(kn_sync(kn, err), ST_OK);
    kn_close(kn);
    assert_int_equal(kn_open_cpu(-1, &kn, err), ST_INVALID);
    assert_non_null(strstr(err, "-1"));
    assert_int_equal(kn_open_cpu(100000, &kn, NULL), ST_INVALID);
    kn_close(NULL);
}

/* With or without CUDA, with or without a GPU: a backend, or a sentence and nothing opened. */
static void test_open_cuda(void **state)
{
    (void)state;
    struct kn *kn = NULL;
    char err[ERR_CAP] = "";
    enum status st = kn_open_cuda(1000, &kn, err); /* no machine has so many */
    assert_int_equal(st, ST_UNSUPPORTED);
    assert_null(kn);
    assert_true(strlen(err) > 10);
    st = kn_open_cuda(0, &kn, err);
    if (st == ST_OK) assert_non_null(strstr(kn_name(kn), "cuda"));
    else assert_null(kn);
    kn_close(kn);
}

static void test_what_it_can_compute(void **state)
{
    (void)state;
    struct kn *kn = test_open(1, NULL);
    char err[ERR_CAP] = "";
    uint64_t total = 0, available = 0;
    struct kn_kv kv = {.dtype = KN_F16, .layer_count = 1, .kv_heads = 2, .head_dim = 128};
    assert_int_equal(kn_check_model(kn, KN_F32, 4, &kv, err), ST_OK);
    kv.head_dim = KN_HEAD_DIM_MAX + 1;
    assert_int_equal(kn_check_model(kn, KN_F32, 4, &kv, err), ST_UNSUPPORTED);
    assert_non_null(strstr(err, "513"));
    assert_int_equal(kn_memory(kn, &total, &available, err), ST_OK);
    assert_true(available > 0 && available <= total);
    assert_int_equal(kn_set_remote_access(kn, KN_REMOTE_BULK, err), ST_OK);
    assert_int_equal(kn_set_remote_access(kn, KN_REMOTE_LOADS, err), ST_UNSUPPORTED);
    assert_non_null(strstr(err, "plain loads"));
    assert_int_equal(kn_set_without(kn, 0, err), ST_OK);
    assert_int_equal(kn_set_without(kn, KN_WITHOUT_SPLIT_K, err), ST_UNSUPPORTED);
    assert_non_null(strstr(err, "do without"));
    kn_close(kn);
}

static void test_memory(void **state)
{
    (void)state;
    struct kn *kn = test_open(1, NULL);
    static const size_t sizes[] = {0, 1, 4096, 4097, 3u << 20};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        void *p = NULL;
        assert_int_equal(kn_alloc(kn, KN_MEM_HOST, 0, sizes[i], &p, NULL), ST_OK);
        assert_int_equal((uintptr_t)p % KN_ALIGN, 0);
        for (size_t b = 0; b < sizes[i]; b++) assert_int_equal(((char *)p)[b], 0);
        if (sizes[i]) {
            char byte = 7;
            assert_int_equal(kn_upload(kn, (char *)p + sizes[i] - 1, &byte, 1), ST_OK);
            assert_int_equal(((char *)p)[sizes[i] - 1], 7);
        }
        kn_free(kn, KN_MEM_HOST, p, sizes[i]);
    }
    static const size_t too_many[] = {SIZE_MAX, SIZE_MAX - 4095, SIZE_MAX / 2, (size_t)1 << 60};
    for (size_t i = 0; i < sizeof too_many / sizeof too_many[0]; i++) {
        char err[ERR_CAP] = "", want[32];
        void *p = NULL;
        snprintf(want, sizeof want, "%zu bytes", too_many[i]);
        assert_int_equal(kn_alloc(kn, KN_MEM_LOCAL, 0, too_many[i], &p, err), ST_NOMEM);
        assert_null(p);
        assert_non_null(strstr(err, want));
    }
    kn_free(kn, KN_MEM_LOCAL, NULL, 5);
    kn_close(kn);
}

/* Nothing to do is done without looking at pointers. */
static void test_empty_batches(void **state)
{
    (void)state;
    struct kn *kn = test_open(2, NULL);
    struct test_weight t = test_weight_make(KN_BF16, 16, 16, -1, NULL);
    struct kn_batch batch = {0};
    struct kn_kv kv = {KN_BF16, 1, 1, 64, {0}};
    kn_embed(kn, &batch, &(struct kn_embed_args){.table = &t.w});
    kn_norm(kn, &(struct kn_norm_args){.cols = 16});
    kn_gemm(kn, &(struct kn_gemm_args){.w = &t.w});
    kn_qkv(kn, &batch, &(struct kn_qkv_args){.q_heads = 1, .kv = &kv});
    kn_attention(kn, &batch, &(struct kn_attention_args){.q_heads = 1, .kv = &kv});
    kn_gather(kn, &batch, 16, NULL, NULL);
    test_weight_free(&t);
    kn_close(kn);
}

enum { POOL_ITEMS_MAX = 300 };

struct pool_job {
    int plain[POOL_ITEMS_MAX]; /* not atomic: the pool must make the writes visible */
    atomic_int calls, worker_max;
};

static void pool_item(const void *arg, int32_t item, int worker)
{
    struct pool_job *job = *(struct pool_job *const *)arg;
    job->plain[item]++;
    atomic_fetch_add(&job->calls, 1);
    int seen = atomic_load(&job->worker_max);
    while (worker > seen && !atomic_compare_exchange_weak(&job->worker_max, &seen, worker))
        continue;
}

/* Many short loops one after another, more threads than cores among them: each item once, all
 * writes seen. */
static void test_pool_runs_each_item_once(void **state)
{
    (void)state;
    static const int thread_counts[] = {1, 2, 3, 8};
    static struct pool_job job;
    struct pool_job *shared = &job;
    for (size_t i = 0; i < sizeof thread_counts / sizeof thread_counts[0]; i++) {
        struct kn_pool *pool;
        assert_int_equal(kn_pool_open(thread_counts[i], &pool, NULL), ST_OK);
        assert_int_equal(kn_pool_thread_count(pool), thread_counts[i]);
        for (int run = 0; run < 300; run++) {
            int32_t items = (int32_t)(test_random() % (POOL_ITEMS_MAX + 1));
            memset(job.plain, 0, sizeof job.plain);
            atomic_store(&job.calls, 0);
            kn_pool_run(pool, pool_item, &shared, items);
            assert_int_equal(atomic_load(&job.calls), items);
            for (int32_t n = 0; n < POOL_ITEMS_MAX; n++) assert_int_equal(job.plain[n], n < items);
            assert_true(atomic_load(&job.worker_max) < thread_counts[i]);
        }
        kn_pool_close(pool);
    }
    kn_pool_close(NULL);
}

/* Every byte is read exactly once, whatever the size and the threads. */
static void test_stream_read(void **state)
{
    (void)state;
    static const size_t sizes[] = {KN_ALIGN, 256 << 10, (256 << 10) + KN_ALIGN, (5 << 20) / 3 * 3};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct kn *kn = test_open(1 + (int)i, NULL);
        size_t bytes = sizes[i] / KN_ALIGN * KN_ALIGN, words = bytes / sizeof(uint64_t);
        uint64_t *fill = malloc(bytes), want = 0;
        void *memory;
        assert_non_null(fill);
        for (size_t w = 0; w < words; w++) {
            fill[w] = (uint64_t)test_random() << 32 ^ test_random();
            want += fill[w];
        }
        assert_int_equal(kn_alloc(kn, KN_MEM_LOCAL, 0, bytes, &memory, NULL), ST_OK);
        assert_int_equal(kn_upload(kn, memory, fill, bytes), ST_OK);
        kn_stream_read(kn, memory, 0);
        kn_stream_read(kn, memory, bytes);
        kn_stream_read(kn, memory, bytes);
        assert_int_equal(kn_sync(kn, NULL), ST_OK);
        assert_true(atomic_load(&((struct kn_cpu *)kn)->stream_sum) == 2 * want);
        kn_free(kn, KN_MEM_LOCAL, memory, bytes);
        free(fill);
        kn_close(kn);
    }
}

int main(void)
{
    test_seed();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_embed),
        cmocka_unit_test(test_chosen_tokens_and_steps),
        cmocka_unit_test(test_norms),
        cmocka_unit_test(test_qkv),
        cmocka_unit_test(test_gather),
        cmocka_unit_test(test_stream_read),
        cmocka_unit_test(test_open_says_what_it_is),
        cmocka_unit_test(test_open_cuda),
        cmocka_unit_test(test_what_it_can_compute),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_empty_batches),
        cmocka_unit_test(test_pool_runs_each_item_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
