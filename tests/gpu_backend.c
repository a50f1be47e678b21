/*
 * gpu_backend.c - every operation of the CUDA backend against the CPU backend, on random data: odd
 * shapes, poisoned outputs and padding, weights and pages over HBM and pinned host memory, and
 * bitwise equality where placement alone differs.  Then memory and errors; last a fault on the
 * device, after which nothing works and everything must still end.
 *
 * Bounds.  A product's sums are fp32 on both sides in different orders: they may differ by 1e-5 of
 * the sum of magnitudes.  What the GPU stores as bf16 is within 2^-8 of that.  Attention rounds
 * probabilities to bf16 as well.
 */
#include "kernels/e4m3.h"
#include "tests/gpu_common.h"

static struct kn *cpu, *gpu;

static bool close_to(float got, float want, float scale)
{
    return fabsf(got - want) <= scale; /* false for NaN */
}

/* --- embed, norm, gather --- */

static struct kn_batch token_batch(int32_t T, const int32_t *tokens, const int32_t *positions)
{
    return (struct kn_batch){.token_count = T, .tokens = tokens, .positions = positions};
}

static void test_embed(int32_t H, int32_t split, bool with_positions)
{
    enum { T = 37, V = 700, P = 130 };
    int32_t tokens[T], positions[T], seqs[T] = {0};
    struct kn_seq seq = {.token_count = T};
    struct test_weight table = test_weight_make(gpu, V, H, split, 1);
    struct test_weight pos = test_weight_make(gpu, P, H, split, 1);
    for (int32_t i = 0; i < T; i++) {
        tokens[i] = (int32_t)(test_random() % V);
        positions[i] = (int32_t)(test_random() % (P - 2));
    }
    struct kn_batch b = token_batch(T, tokens, positions);
    b.token_seq = seqs;
    b.seqs = &seq;
    size_t n = (size_t)T * (size_t)H, bytes = n * sizeof(float);
    float *want = test_malloc(bytes), *x = test_poisoned(gpu, KN_MEM_LOCAL, bytes);
    struct kn_embed_args a = {&table.cpu, with_positions ? &pos.cpu : NULL, 2, want};
    kn_embed(cpu, &b, &a);
    a = (struct kn_embed_args){&table.gpu, with_positions ? &pos.gpu : NULL, 2, x};
    kn_embed(gpu, &b, &a);
    float *got = test_download(gpu, x, bytes);
    EXPECT(memcmp(got, want, bytes) == 0, "embed H %d split %d positions %d", H, split,
           with_positions);
    int32_t rows[] = {36, 0, 5, 5};
    b.rows = rows;
    b.row_count = 4;
    float *out = test_poisoned(gpu, KN_MEM_LOCAL, 4 * (size_t)H * sizeof(float));
    kn_gather(gpu, &b, H, x, out);
    float *gathered = test_download(gpu, out, 4 * (size_t)H * sizeof(float));
    for (int i = 0; i < 4; i++)
        EXPECT(!memcmp(gathered + i * H, want + (size_t)rows[i] * (size_t)H, (size_t)H * 4),
               "gather H %d row %d", H, i);
    kn_free(gpu, KN_MEM_LOCAL, out, 4 * (size_t)H * sizeof(float));
    kn_free(gpu, KN_MEM_LOCAL, x, bytes);
    test_weight_free(gpu, &table);
    test_weight_free(gpu, &pos);
    free(want), free(got), free(gathered);
}

/* A prompt's rows, y, have a kernel of their own: bit for bit what the last of them come to in a
 * smaller batch. */
static void test_norm_rows(const struct kn_norm_args *a, const void *y)
{
    enum { FEW = 200 };
    const size_t bytes = kn_act_bytes(gpu, FEW, a->cols);
    const int32_t first = a->row_count - FEW;
    struct kn_norm_args few = *a;
    few.row_count = FEW;
    few.x += (size_t)first * (size_t)a->cols;
    few.y = test_poisoned(gpu, KN_MEM_LOCAL, bytes);
    kn_norm(gpu, &few);
    void *got = test_download(gpu, few.y, bytes);
    int32_t differ = 0;
    for (int32_t t = 0; t < FEW; t++)
        for (int32_t k = 0; k < a->cols; k++)
            differ += test_norm_get(a, y, first + t, k) != test_norm_get(&few, got, t, k);
    EXPECT(differ == 0, "norm kind %d of %d and of %d rows of %d: %d elements differ", a->kind,
           a->row_count, FEW, a->cols, differ);
    kn_free(gpu, KN_MEM_LOCAL, few.y, bytes);
    free(got);
}

static void test_norm(enum kn_norm_kind kind, int32_t T, int32_t H, bool with_bias)
{
    size_t n = (size_t)T * (size_t)H, act = kn_act_bytes(gpu, T, H);
    float *x = test_floats(n), *weight = test_floats((size_t)H), *bias = test_floats((size_t)H);
    float *want = test_malloc(n * sizeof *want);
    for (size_t i = 0; i < n; i++) x[i] = x[i] * 3 + 0.5f;
    struct kn_norm_args a = {kind, 1e-5f, T, H, x, weight, with_bias ? bias : NULL, want};
    kn_norm(cpu, &a);
    float *gx = test_upload(gpu, KN_MEM_LOCAL, x, n * sizeof *x);
    float *gw = test_upload(gpu, KN_MEM_LOCAL, weight, (size_t)H * sizeof *x);
    float *gb = test_upload(gpu, KN_MEM_LOCAL, bias, (size_t)H * sizeof *x);
    void *gy = test_poisoned(gpu, KN_MEM_LOCAL, act);
    a.x = gx, a.weight = gw, a.bias = with_bias ? gb : NULL, a.y = gy;
    kn_norm(gpu, &a);
    void *y = test_download(gpu, gy, act);
    int32_t wrong = 0, padded = (int32_t)round_up((size_t)H, 128);
    for (int32_t t = 0; t < T; t++)
        for (int32_t k = 0; k < padded; k++) {
            float f = k < H ? want[(size_t)t * (size_t)H + (size_t)k] : 0;
            wrong += !close_to(test_norm_get(&a, y, t, k), f, fabsf(f) * 0x1.1p-8f + 1e-6f);
        }
    EXPECT(wrong == 0, "norm kind %d T %d H %d bias %d: %d elements", kind, T, H, with_bias, wrong);
    if (T > KN_CU_TOKENS_MAX) test_norm_rows(&a, y);
    kn_free(gpu, KN_MEM_LOCAL, gx, n * sizeof *x);
    kn_free(gpu, KN_MEM_LOCAL, gw, (size_t)H * sizeof *x);
    kn_free(gpu, KN_MEM_LOCAL, gb, (size_t)H * sizeof *x);
    kn_free(gpu, KN_MEM_LOCAL, gy, act);
    free(x), free(weight), free(bias), free(want), free(y);
}

/* --- products --- */

static const char *const epilogues[] = {"store", "relu", "swiglu", "add", "f32"};

/* Runs one product on the GPU; its output as the host sees it, [bytes], in *out. */
static void *gpu_product(const struct kn_weight *w, int32_t T, const void *in, const float *bias,
                         enum kn_epilogue epilogue, const float *before, bool staged, size_t bytes)
{
    size_t n = (size_t)T * (size_t)w->rows * sizeof(float);
    enum kn_mem mem = staged ? KN_MEM_STAGING : KN_MEM_LOCAL;
    void *out = staged                   ? test_upload(gpu, mem, NULL, bytes)
                : epilogue == KN_EPI_ADD ? test_upload(gpu, mem, before, n)
                                         : test_poisoned(gpu, mem, bytes);
    kn_gemm(gpu, &(struct kn_gemm_args){w, bias, T, in, epilogue, out});
    void *got = staged ? test_malloc(bytes) : test_download(gpu, out, bytes);
    if (staged) {
        kn_download(gpu, out, bytes);
        test_sync(gpu);
        memcpy(got, out, bytes);
    }
    kn_free(gpu, mem, out, bytes);
    return got;
}

static void test_product(int32_t N, int32_t K, int32_t T, enum kn_epilogue epilogue, int32_t split,
                         bool staged)
{
    struct test_weight w = test_weight_make(gpu, N, K, split, 1);
    int32_t cols = epilogue == KN_EPI_SWIGLU ? N / 2 : N;
    bool act = epilogue == KN_EPI_SWIGLU || epilogue == KN_EPI_RELU;
    size_t in_n = (size_t)T * (size_t)K, n = (size_t)T * (size_t)cols;
    size_t bytes = act ? kn_act_bytes(gpu, T, cols) : n * sizeof(float);
    float *in = test_floats(in_n), *bias = test_floats((size_t)N), *before = test_floats(n);
    for (size_t i = 0; i < in_n; i++) in[i] = test_bf16(in[i]);
    float *want = test_malloc(n * sizeof *want);
    memcpy(want, before, n * sizeof *want);
    kn_gemm(cpu, &(struct kn_gemm_args){&w.cpu, bias, T, in, epilogue, want});
    void *gin = test_act_upload(gpu, T, K, in);
    float *gbias = test_upload(gpu, KN_MEM_LOCAL, bias, (size_t)N * sizeof *bias);
    void *got = gpu_product(&w.gpu, T, gin, gbias, epilogue, before, staged, bytes);
    void *again = gpu_product(&w.gpu, T, gin, gbias, epilogue, before, staged, bytes);
    int32_t wrong = 0, differ = 0;
    float slack = 1e-5f * (float)K;
    for (int32_t t = 0; t < T; t++)
        for (int32_t i = 0; i < cols; i++) {
            size_t at = (size_t)t * (size_t)cols + (size_t)i;
            float f = act ? test_act_get(got, T, cols, t, i) : ((float *)got)[at];
            float g = act ? test_act_get(again, T, cols, t, i) : ((float *)again)[at];
            /* swiglu multiplies two sums, each as large as K / 3 at most in practice */
            float scale = epilogue == KN_EPI_SWIGLU ? slack * sqrtf((float)K) : slack;
            wrong += !close_to(f, want[at], scale + (act ? fabsf(want[at]) * 0x1p-7f : 0));
            differ += f != g;
        }
    EXPECT(wrong == 0, "%s N %d K %d T %d split %d: %d of %zu wrong", epilogues[epilogue], N, K, T,
           split, wrong, n);
    EXPECT(differ == 0, "%s N %d K %d T %d split %d: %d differ in a second run",
           epilogues[epilogue], N, K, T, split, differ);
    kn_free(gpu, KN_MEM_LOCAL, gin, kn_act_bytes(gpu, T, K));
    kn_free(gpu, KN_MEM_LOCAL, gbias, (size_t)N * sizeof *bias);
    test_weight_free(gpu, &w);
    free(in), free(bias), free(before), free(want), free(got), free(again);
}

/* The same product from HBM, and with all or a part in host memory or another GPU's, must be the
 * same bits. */
static void test_product_placement(int32_t N, int32_t K, int32_t T, enum kn_mem mem)
{
    char err[ERR_CAP] = "";
    struct test_weight w = test_weight_make(gpu, N, K, 1 << 20, 1);
    size_t in_n = (size_t)T * (size_t)K, bytes = (size_t)T * (size_t)N * sizeof(float);
    float *in = test_floats(in_n);
    void *gin = test_act_upload(gpu, T, K, in), *far;
    void *first = gpu_product(&w.gpu, T, gin, NULL, KN_EPI_F32, NULL, false, bytes);
    size_t all = (size_t)w.cpu.tile_count * w.tile_bytes;
    test_must(kn_alloc(gpu, mem, 1, all, &far, err), err);
    test_must(kn_upload(gpu, far, w.arena, all), "upload");
    for (int32_t split = 0; split < w.cpu.tile_count; split += 1 + split) {
        struct kn_weight mixed = w.gpu;
        int tier = mem == KN_MEM_PEER ? 2 : 1; /* a window belongs to a tier */
        mixed.span[0].tile_count = split;
        mixed.span[tier] = (struct kn_span){(char *)far + (size_t)split * w.tile_bytes, split,
                                            w.cpu.tile_count - split};
        void *got = gpu_product(&mixed, T, gin, NULL, KN_EPI_F32, NULL, false, bytes);
        EXPECT(memcmp(got, first, bytes) == 0, "N %d K %d T %d split %d kind %d", N, K, T, split,
               mem);
        free(got);
    }
    kn_free(gpu, mem, far, all);
    kn_free(gpu, KN_MEM_LOCAL, gin, kn_act_bytes(gpu, T, K));
    test_weight_free(gpu, &w);
    free(in), free(first);
}

/* --- windows and counters --- */

/* The counters as they are now: a kn_sync that waits for something asks for them, the next has
 * them. */
static struct kn_traffic traffic_now(int tier)
{
    struct kn_traffic t;
    void *p = test_upload(gpu, KN_MEM_LOCAL, NULL, 1024);
    for (int i = 0; i < 2; i++) {
        kn_stream_read(gpu, p, 1024); /* reads that products did not ask for are not counted */
        test_sync(gpu);
    }
    kn_free(gpu, KN_MEM_LOCAL, p, 1024);
    kn_traffic(gpu, tier, &t);
    return t;
}

/* A window changes how a product is computed and not what comes of it; and each product's blocks
 * are counted by tier. */
static void test_window(int32_t N, int32_t K, int32_t T, int32_t split)
{
    static const struct kn_window windows[] = {{1, 1, 91},
                                               {16, 1, 91},
                                               {5, 3, 0},
                                               {KN_WINDOW_NO_BOUND, 1, 12.5f},
                                               {KN_WINDOW_NO_BOUND, KN_WINDOW_NO_BOUND, 1}};
    struct test_weight w = test_weight_make(gpu, N, K, split, 1);
    size_t in_n = (size_t)T * (size_t)K, bytes = (size_t)T * (size_t)N * sizeof(float);
    float *in = test_floats(in_n);
    void *gin = test_act_upload(gpu, T, K, in), *first = NULL;
    uint64_t local = (uint64_t)w.gpu.span[0].tile_count * w.tile_bytes;
    uint64_t remote = (uint64_t)w.gpu.span[1].tile_count * w.tile_bytes;
    for (size_t i = 0; i < ARRAY_COUNT(windows); i++) {
        struct kn_traffic from[2] = {traffic_now(0), traffic_now(1)};
        kn_set_window(gpu, 1, &windows[i]);
        void *got = gpu_product(&w.gpu, T, gin, NULL, KN_EPI_F32, NULL, false, bytes);
        struct kn_traffic to[2] = {traffic_now(0), traffic_now(1)};
        uint64_t trips = to[1].trip_count - from[1].trip_count;
        uint64_t ns = to[1].trip_ns_sum - from[1].trip_ns_sum;
        if (!first) first = got;
        EXPECT(memcmp(got, first, bytes) == 0, "N %d K %d T %d split %d window %d x %d", N, K, T,
               split, windows[i].ctas, windows[i].blocks);
        EXPECT(to[0].bytes - from[0].bytes == local && to[1].bytes - from[1].bytes == remote,
               "counted %llu and %llu bytes of %llu and %llu",
               (unsigned long long)(to[0].bytes - from[0].bytes),
               (unsigned long long)(to[1].bytes - from[1].bytes), (unsigned long long)local,
               (unsigned long long)remote);
        EXPECT(to[0].trip_count == 0 && trips * KN_BLOCK_BYTES == remote, "%llu trips",
               (unsigned long long)trips);
        /* From a fifth of a microsecond to a millisecond, and the mean between the two ends. */
        EXPECT(to[1].trip_ns_min > 200 && to[1].trip_ns_max < 1000000 &&
                   ns + trips >= trips * to[1].trip_ns_min && ns <= trips * (to[1].trip_ns_max + 1),
               "%llu ns in %llu trips of %llu..%llu", (unsigned long long)ns,
               (unsigned long long)trips, (unsigned long long)to[1].trip_ns_min,
               (unsigned long long)to[1].trip_ns_max);
        if (got != first) free(got);
    }
    const struct kn_window usual = kn_window_default(KN_MEM_HOST);
    kn_set_window(gpu, 1, &usual);
    kn_free(gpu, KN_MEM_LOCAL, gin, kn_act_bytes(gpu, T, K));
    test_weight_free(gpu, &w);
    free(in), free(first);
}

/* Each token's row of the table is counted where it lies. */
static void test_embed_count(int32_t H)
{
    static const int32_t tokens[] = {0, 100, 200, 130, 255};
    int32_t T = (int32_t)ARRAY_COUNT(tokens), positions[ARRAY_COUNT(tokens)] = {0},
            seq[ARRAY_COUNT(tokens)] = {0};
    struct kn_seq s = {.token_count = T, .kv_count = T};
    kn_page page = 0;
    struct kn_batch b = {.token_count = T,
                         .tokens = tokens,
                         .positions = positions,
                         .token_seq = seq,
                         .seq_count = 1,
                         .seqs = &s,
                         .pages = &page};
    struct test_weight table = test_weight_make(gpu, 256, H, 2, 1); /* 128 rows stay */
    float *x = test_upload(gpu, KN_MEM_LOCAL, NULL, (size_t)T * (size_t)H * sizeof *x);
    struct kn_traffic from[2] = {traffic_now(0), traffic_now(1)};
    kn_embed(gpu, &b, &(struct kn_embed_args){.table = &table.gpu, .x = x});
    test_sync(gpu);
    struct kn_traffic to[2] = {traffic_now(0), traffic_now(1)};
    for (int t = 0; t < 2; t++)
        EXPECT(to[t].bytes - from[t].bytes == (t ? 3u : 2u) * 2u * (uint32_t)H,
               "H %d: %llu bytes of rows in tier %d", H,
               (unsigned long long)(to[t].bytes - from[t].bytes), t);
    kn_free(gpu, KN_MEM_LOCAL, x, (size_t)T * (size_t)H * sizeof *x);
    test_weight_free(gpu, &table);
}

/* --- qkv and attention --- */

enum { SEQS = 5, PAGES_PER_SEQ = 24, POOL_PAGES = SEQS * PAGES_PER_SEQ, TOKENS = 700 };

struct heads {
    int32_t q, kv, dim, window;
    bool norms, rope, fp8;
};

struct attention_rig {
    struct kn_kv cpu_kv, gpu_kv;
    size_t pool_bytes;
    char *image; /* what every pool began as: finite noise, in bf16 larger than any real K or V */
    float *rope, *norm;
    float *gpu_rope, *gpu_norm;
    size_t rope_bytes, norm_bytes;
};

static void attention_open(struct attention_rig *r, const struct heads *h)
{
    *r = (struct attention_rig){0};
    struct kn_kv kv = {.dtype = h->fp8 ? KN_E4M3 : KN_BF16,
                       .layer_count = 2,
                       .kv_heads = h->kv,
                       .head_dim = h->dim};
    r->pool_bytes = POOL_PAGES * kn_kv_page_bytes(&kv);
    r->image = test_malloc(r->pool_bytes);
    /* Numbers of 32 and more; exponents of scales from 2^-31 to 1/2. */
    for (size_t i = 0; h->fp8 && i < r->pool_bytes; i++)
        r->image[i] = (char)(96 + test_random() % 31);
    for (size_t i = 0; !h->fp8 && i < r->pool_bytes; i += 2) {
        uint16_t v = kn_bf16_from_f32(1000 * test_random_float());
        memcpy(r->image + i, &v, sizeof v);
    }
    r->cpu_kv = r->gpu_kv = kv;
    for (int t = 0; t < 2; t++) {
        r->cpu_kv.base[t] = aligned_alloc(KN_ALIGN, round_up(r->pool_bytes, KN_ALIGN));
        CHECK(r->cpu_kv.base[t]);
        memcpy(r->cpu_kv.base[t], r->image, r->pool_bytes);
        r->gpu_kv.base[t] =
            test_upload(gpu, t ? KN_MEM_HOST : KN_MEM_LOCAL, r->image, r->pool_bytes);
    }
    size_t positions = PAGES_PER_SEQ * KN_PAGE_TOKENS;
    r->rope_bytes = positions * (size_t)h->dim * sizeof(float);
    r->norm_bytes = (size_t)h->dim * sizeof(float);
    r->rope = test_malloc(r->rope_bytes);
    for (size_t p = 0; p < positions; p++)
        for (int32_t d = 0; d < h->dim / 2; d++) {
            double angle = (double)p * pow(10000, -2.0 * d / h->dim);
            r->rope[p * (size_t)h->dim + (size_t)d] = (float)cos(angle);
            r->rope[p * (size_t)h->dim + (size_t)(d + h->dim / 2)] = (float)sin(angle);
        }
    r->norm = test_floats((size_t)h->dim);
    r->gpu_rope = test_upload(gpu, KN_MEM_LOCAL, r->rope, r->rope_bytes);
    r->gpu_norm = test_upload(gpu, KN_MEM_LOCAL, r->norm, r->norm_bytes);
}

static void attention_close(struct attention_rig *r)
{
    for (int t = 0; t < 2; t++) {
        free(r->cpu_kv.base[t]);
        kn_free(gpu, t ? KN_MEM_HOST : KN_MEM_LOCAL, r->gpu_kv.base[t], r->pool_bytes);
    }
    kn_free(gpu, KN_MEM_LOCAL, r->gpu_rope, r->rope_bytes);
    kn_free(gpu, KN_MEM_LOCAL, r->gpu_norm, r->norm_bytes);
    free(r->image), free(r->rope), free(r->norm);
}

struct attention_step {
    int32_t positions[TOKENS], token_seq[TOKENS], tokens[TOKENS];
    struct kn_seq seqs[SEQS];
    kn_page pages[SEQS * PAGES_PER_SEQ];
    struct kn_batch batch;
};

/* counts[i] new tokens of sequence i, which has begin[i] already; pages alternate between the
 * pools, or all lie in HBM. */
static void attention_step(struct attention_step *s, const int32_t begin[SEQS],
                           const int32_t counts[SEQS], bool spread)
{
    int32_t T = 0, S = 0;
    memset(s, 0, sizeof *s);
    for (int32_t i = 0; i < SEQS; i++) {
        for (int32_t p = 0; p < PAGES_PER_SEQ; p++)
            s->pages[i * PAGES_PER_SEQ + p] =
                kn_page_make(spread ? (unsigned)(i + p) % 2 : 0,
                             (uint32_t)(i * PAGES_PER_SEQ + PAGES_PER_SEQ - 1 - p));
        if (counts[i] == 0) continue;
        s->seqs[S] = (struct kn_seq){T, counts[i], begin[i] + counts[i], i * PAGES_PER_SEQ};
        for (int32_t j = 0; j < counts[i]; j++, T++) {
            s->positions[T] = begin[i] + j;
            s->token_seq[T] = S;
        }
        S++;
    }
    CHECK(T <= TOKENS);
    s->batch = (struct kn_batch){.token_count = T,
                                 .tokens = s->tokens,
                                 .positions = s->positions,
                                 .token_seq = s->token_seq,
                                 .seq_count = S,
                                 .seqs = s->seqs,
                                 .pages = s->pages};
}

/* qkv, then attention, on one backend: out holds what kn_attention gave, in the backend's form. */
static void attention_run(struct kn *kn, const struct attention_rig *r, const struct heads *h,
                          const struct kn_batch *b, void *qkv, void *out)
{
    bool on_gpu = kn == gpu;
    const float *norm = !h->norms ? NULL : on_gpu ? r->gpu_norm : r->norm;
    const float *rope = !h->rope ? NULL : on_gpu ? r->gpu_rope : r->rope;
    const struct kn_kv *kv = on_gpu ? &r->gpu_kv : &r->cpu_kv;
    kn_qkv(kn, b,
           &(struct kn_qkv_args){.qkv = qkv,
                                 .q_heads = h->q,
                                 .q_norm = norm,
                                 .k_norm = norm,
                                 .norm_eps = 1e-6f,
                                 .rope = rope,
                                 .kv = kv,
                                 .layer = 1});
    kn_attention(kn, b,
                 &(struct kn_attention_args){.qkv = qkv,
                                             .q_heads = h->q,
                                             .scale = 1 / sqrtf((float)h->dim),
                                             .window = h->window,
                                             .kv = kv,
                                             .layer = 1,
                                             .out = out});
}

/* Rows of fp8 as numbers: those of a pool's page p, layer and head counted through. */
static void read_rows(const struct kn_kv *kv, const char *pool, size_t head, float *out)
{
    const int32_t dim = kv->head_dim;
    const char *at = pool + head * kn_kv_head_bytes(kv);
    for (unsigned row = 0; row < 2 * KN_PAGE_TOKENS; row++) {
        const bool value = row >= KN_PAGE_TOKENS;
        const uint8_t exponent = (uint8_t)at[kn_e4m3_exponents_at(dim) + row];
        for (int32_t d = 0; d < dim; d++) {
            const size_t from = kn_e4m3_at(dim, value, row % KN_PAGE_TOKENS, d);
            *out++ = kn_f32_from_e4m3((uint8_t)at[from]) * kn_e4m3_scale(exponent);
        }
    }
}

/* compare_pools in fp8, where a unit in the last place is an eighth, and of the smallest numbers
 * 2^-9 of the scale, which is below 2^-7 of the row's largest; scales may differ by a factor of two
 * where the largest lies at a limit. */
static void compare_fp8_pools(const struct attention_rig *r, const struct heads *h)
{
    const size_t rows = 2 * KN_PAGE_TOKENS, dim = (size_t)h->dim;
    float *got = test_malloc(rows * dim * sizeof *got),
          *want = test_malloc(rows * dim * sizeof *want);
    for (int t = 0; t < 2; t++) {
        char *pool = test_download(gpu, r->gpu_kv.base[t], r->pool_bytes);
        size_t wrong = 0, moved = 0;
        for (size_t head = 0; head < r->pool_bytes / kn_kv_head_bytes(&r->cpu_kv); head++) {
            read_rows(&r->gpu_kv, pool, head, got);
            read_rows(&r->cpu_kv, r->cpu_kv.base[t], head, want);
            for (size_t row = 0; row < rows; row++) {
                float most = 0;
                for (size_t d = 0; d < dim; d++) most = fmaxf(most, fabsf(want[row * dim + d]));
                for (size_t d = 0; d < dim; d++) {
                    const float f = got[row * dim + d], g = want[row * dim + d];
                    wrong += !close_to(f, g, fabsf(g) * 0x1.04p-3f + most * 0x1p-15f);
                    moved += f != g;
                }
            }
        }
        EXPECT(wrong == 0 && moved < r->pool_bytes / 1000,
               "fp8 heads %d/%d x %d: %zu elements of pool %d, %zu moved", h->q, h->kv, h->dim,
               wrong, t, moved);
        free(pool);
    }
    free(got), free(want);
}

/* The pages are equal but for the rounding of K, a unit in the last place of bf16 now and then. */
static void compare_pools(const struct attention_rig *r, const struct heads *h)
{
    if (h->fp8) {
        compare_fp8_pools(r, h);
        return;
    }
    for (int t = 0; t < 2; t++) {
        uint16_t *got = test_download(gpu, r->gpu_kv.base[t], r->pool_bytes);
        const uint16_t *want = r->cpu_kv.base[t];
        size_t wrong = 0;
        for (size_t i = 0; i < r->pool_bytes / 2; i++) {
            float f = kn_f32_from_bf16(got[i]), g = kn_f32_from_bf16(want[i]);
            wrong += !close_to(f, g, fabsf(g) * 0x1p-7f + 1e-6f);
        }
        EXPECT(wrong == 0, "heads %d/%d x %d: %zu elements of pool %d", h->q, h->kv, h->dim, wrong,
               t);
        free(got);
    }
}

/* One step on both backends, and on the GPU again, which must give the same bits. */
static void compare_step(struct attention_rig *r, const struct heads *h,
                         const struct attention_step *s, void **first)
{
    const struct kn_batch *b = &s->batch;
    int32_t T = b->token_count, cols = h->q * h->dim, width = (h->q + 2 * h->kv) * h->dim;
    size_t n = (size_t)T * (size_t)width, bytes = kn_act_bytes(gpu, T, cols);
    uint64_t seed = test_random_state;
    test_random_state = 77; /* the same for every placement */
    float *qkv = test_floats(n), *want = test_malloc((size_t)T * (size_t)cols * sizeof *want);
    test_random_state = seed;
    float *gqkv = test_upload(gpu, KN_MEM_LOCAL, qkv, n * sizeof *qkv);
    void *gout = test_poisoned(gpu, KN_MEM_LOCAL, bytes);
    attention_run(gpu, r, h, b, gqkv, gout);
    void *got = test_download(gpu, gout, bytes);
    attention_run(cpu, r, h, b, qkv, want);
    int32_t wrong = 0, padded = (int32_t)round_up((size_t)cols, 128);
    float worst = 0;
    for (int32_t t = 0; t < T; t++)
        for (int32_t k = 0; k < padded; k++) {
            float f = k < cols ? want[(size_t)t * (size_t)cols + (size_t)k] : 0;
            float g = test_act_get(got, T, cols, t, k);
            /* In fp8 a key that falls to the other side of a middle moves its score more. */
            wrong += !close_to(g, f, fabsf(f) * 0x1p-7f + (h->fp8 ? 2e-2f : 6e-3f));
            worst = fmaxf(worst, fabsf(g - f));
        }
    EXPECT(wrong == 0, "%sheads %d/%d x %d window %d T %d: %d elements, worst %g",
           h->fp8 ? "fp8 " : "", h->q, h->kv, h->dim, h->window, T, wrong, (double)worst);
    if (*first) {
        int32_t differ = 0;
        for (int32_t t = 0; t < T; t++)
            for (int32_t k = 0; k < cols; k++)
                differ += test_act_get(got, T, cols, t, k) != test_act_get(*first, T, cols, t, k);
        EXPECT(differ == 0, "heads %d/%d x %d window %d T %d: %d differ by placement", h->q, h->kv,
               h->dim, h->window, T, differ);
        free(got);
    } else {
        *first = got;
    }
    kn_free(gpu, KN_MEM_LOCAL, gqkv, n * sizeof *qkv);
    kn_free(gpu, KN_MEM_LOCAL, gout, bytes);
    free(qkv), free(want);
}

/* A prompt in two chunks beside others, then decodes of all, then one decode alone. */
static void test_attention(struct heads h)
{
    static const int32_t begin[][SEQS] = {
        {0, 0, 0, 0, 0}, {300, 1, 64, 63, 0}, {550, 2, 65, 127, 7}, {551, 3, 66, 128, 8}};
    static const int32_t counts[][SEQS] = {
        {300, 1, 64, 63, 0}, {250, 1, 1, 64, 7}, {1, 1, 1, 1, 1}, {1, 0, 0, 0, 0}};
    void *first[4] = {0};
    for (int spread = 0; spread < 2; spread++) {
        struct attention_rig r;
        uint64_t seed = test_random_state;
        test_random_state = 99;
        attention_open(&r, &h);
        test_random_state = seed;
        for (int i = 0; i < 4; i++) {
            struct attention_step *s = test_malloc(sizeof *s);
            attention_step(s, begin[i], counts[i], spread);
            compare_step(&r, &h, s, &first[i]);
            free(s);
        }
        compare_pools(&r, &h);
        attention_close(&r);
    }
    for (int i = 0; i < 4; i++) free(first[i]);
}

/* --- memory and errors --- */

static void test_memory(void)
{
    static const enum kn_mem kinds[] = {KN_MEM_LOCAL, KN_MEM_HOST, KN_MEM_STAGING};
    char err[ERR_CAP] = "";
    void *p, *many[12];
    uint64_t total = 0, left = 0;
    for (size_t i = 0; i < ARRAY_COUNT(kinds); i++) {
        static const size_t sizes[] = {1, 1000, 5u << 20};
        for (size_t j = 0; j < ARRAY_COUNT(sizes); j++) {
            test_must(kn_alloc(gpu, kinds[i], 0, sizes[j], &p, err), err);
            char *got = test_download(gpu, p, sizes[j]);
            size_t set = 0;
            for (size_t b = 0; b < sizes[j]; b++) set += got[b] != 0;
            EXPECT((uintptr_t)p % KN_ALIGN == 0, "kind %d", kinds[i]);
            EXPECT(set == 0, "kind %d: %zu bytes are not zero", kinds[i], set);
            kn_free(gpu, kinds[i], p, sizes[j]);
            free(got);
        }
    }
    for (size_t i = 0; i < ARRAY_COUNT(many); i++) /* small ones share pages of the driver's */
        test_must(kn_alloc(gpu, KN_MEM_STAGING, 0, 100 + 700 * i, &many[i], err), err);
    for (size_t i = 0; i < ARRAY_COUNT(many); i++) {
        EXPECT((uintptr_t)many[i] % KN_ALIGN == 0, "small piece %zu", i);
        kn_free(gpu, KN_MEM_STAGING, many[i], 100 + 700 * i);
    }
    EXPECT(kn_memory(gpu, &total, &left, err) == ST_OK && left <= total && left > 0, "%s", err);
    EXPECT(kn_alloc(gpu, KN_MEM_LOCAL, 0, (size_t)1 << 45, &p, err) == ST_NOMEM && !p &&
               strstr(err, "--gpu-memory-utilization"),
           "%s", err);
    printf("out of memory: %s\n", err);
    EXPECT(kn_alloc(gpu, KN_MEM_HOST, 0, (size_t)1 << 46, &p, err) == ST_NOMEM && !p &&
               strstr(err, "--remote"),
           "%s", err);
    EXPECT(kn_alloc(gpu, KN_MEM_PEER, 0, 100, &p, err) == ST_UNSUPPORTED && !p, "%s", err);
    EXPECT(kn_alloc(gpu, KN_MEM_PEER, 99, 100, &p, err) == ST_UNSUPPORTED && !p, "%s", err);
    printf("no peer: %s\n", err);
    EXPECT(kn_sync(gpu, err) == ST_OK, "refusals leave the backend working: %s", err);
    struct kn *other;
    EXPECT(kn_open_cuda(64, &other, err) == ST_UNSUPPORTED && !other, "%s", err);
    struct kn_kv kv = {.dtype = KN_BF16, .layer_count = 1, .kv_heads = 2, .head_dim = 64};
    EXPECT(kn_check_model(gpu, KN_BF16, 4, &kv, err) == ST_OK, "%s", err);
    EXPECT(kn_check_model(gpu, KN_F32, 4, &kv, err) == ST_UNSUPPORTED, "%s", err);
    kv.dtype = KN_F16;
    EXPECT(kn_check_model(gpu, KN_BF16, 4, &kv, err) == ST_UNSUPPORTED, "%s", err);
    kv.dtype = KN_E4M3;
    EXPECT(kn_check_model(gpu, KN_BF16, 4, &kv, err) == ST_UNSUPPORTED && strstr(err, "65 to 128"),
           "%s", err);
    kv.head_dim = 128;
    EXPECT(kn_check_model(gpu, KN_BF16, 4, &kv, err) == ST_OK, "%s", err);
    kv.head_dim = 256;
    EXPECT(kn_check_model(gpu, KN_BF16, 4, &kv, err) == ST_UNSUPPORTED, "%s", err);
}

static void test_peer(void)
{
    char err[ERR_CAP] = "";
    void *p;
    if (test_gpu_count() < 2) {
        puts("one GPU: peer memory not tested");
        return;
    }
    test_must(kn_alloc(gpu, KN_MEM_PEER, 1, 3u << 20, &p, err), err);
    char *data = test_malloc(3u << 20);
    memset(data, 0x5A, 3u << 20);
    test_must(kn_upload(gpu, p, data, 3u << 20), "upload");
    char *got = test_download(gpu, p, 3u << 20);
    EXPECT(memcmp(got, data, 3u << 20) == 0, "peer memory");
    kn_free(gpu, KN_MEM_PEER, p, 3u << 20);
    free(data), free(got);
}

/* A kernel reads where there is no memory: the last test, since the GPU is lost to this process. */
static void test_fault(void)
{
    char err[ERR_CAP] = "", again[ERR_CAP] = "";
    int32_t row = 1 << 30;
    struct kn_batch b = {.token_count = 1, .rows = &row, .row_count = 1};
    float *x = test_upload(gpu, KN_MEM_LOCAL, NULL, 4096);
    kn_gather(gpu, &b, 1024, x, x);
    EXPECT(kn_sync(gpu, err) == ST_DEVICE, "a fault was not seen");
    EXPECT(strstr(err, "cudaErrorIllegalAddress") != NULL, "%s", err);
    printf("fault: %s\n", err);
    kn_gather(gpu, &b, 1024, x, x);
    EXPECT(kn_sync(gpu, again) == ST_DEVICE && strcmp(err, again) == 0, "%s", again);
    EXPECT(kn_upload(gpu, x, &row, sizeof row) == ST_DEVICE, "an upload after a fault");
    kn_free(gpu, KN_MEM_LOCAL, x, 4096);
}

static void test_small(void)
{
    static const int32_t tokens[] = {1, 3, 8, 17, 32, 33, 64, 256, 300, 513};
    static const int32_t hidden[] = {8, 60, 64, 200, 2048, 4096, 8192, 10240};
    for (size_t i = 0; i < ARRAY_COUNT(hidden); i++)
        for (int s = 0; s < 3; s++) test_embed(hidden[i], s * 6, s & 1);
    for (size_t i = 0; i < ARRAY_COUNT(tokens); i++)
        for (size_t j = 0; j < ARRAY_COUNT(hidden); j++) {
            if ((size_t)tokens[i] * (size_t)hidden[j] > 1u << 20) continue;
            test_norm(KN_RMS_NORM, tokens[i], hidden[j], false);
            test_norm(KN_RMS_NORM, tokens[i], hidden[j], true);
            test_norm(KN_LAYER_NORM, tokens[i], hidden[j], true);
        }
}

static void test_products(bool quick)
{
    static const int32_t tokens[] = {1, 5, 16, 40, 100, 256, 257, 600};
    static const struct {
        int32_t rows, cols;
    } shapes[] = {{64, 128}, {208, 200}, {1024, 704}, {112, 2048}, {3088, 1040}};
    for (size_t i = 0; i < ARRAY_COUNT(tokens); i++)
        for (size_t j = 0; j < ARRAY_COUNT(shapes); j++) {
            int32_t N = shapes[j].rows, K = shapes[j].cols, T = tokens[i];
            if (quick && (j > 2 || T > 300)) continue;
            if ((int64_t)N * K * T > 400000000) continue;
            for (int e = 0; e <= KN_EPI_F32; e++)
                test_product(N, K, T, (enum kn_epilogue)e, (int32_t)(test_random() % 8), false);
            test_product(N, K, T, KN_EPI_F32, 1 << 20, true);
            if (T <= 257) test_product_placement(N, K, T, KN_MEM_HOST);
            if (T <= 257 && test_gpu_count() > 1) test_product_placement(N, K, T, KN_MEM_PEER);
        }
    test_embed_count(200);
    test_embed_count(4096);
    test_window(1024, 704, 1, 10);
    test_window(4096, 1040, 9, 50);
    test_window(3088, 2048, 40, 3);
    test_product(201, 72, 33, KN_EPI_F32, 1, true); /* rows that are no multiple of anything */
}

static void test_heads(bool quick)
{
    test_attention((struct heads){8, 2, 64, 0, false, true, false});
    test_attention((struct heads){2, 1, 128, 0, true, true, false});
    test_attention((struct heads){2, 1, 128, 0, true, true, true});
    if (quick) return;
    test_attention((struct heads){8, 2, 128, 0, false, true, true});
    test_attention((struct heads){6, 2, 96, 70, true, true, true});
    test_attention((struct heads){12, 1, 72, 0, false, false, true});
    test_attention((struct heads){4, 4, 64, 0, false, false, false});
    test_attention((struct heads){8, 2, 64, 100, false, true, false});
    test_attention((struct heads){4, 2, 32, 0, false, true, false});
    test_attention((struct heads){6, 2, 96, 70, true, true, false});
    test_attention((struct heads){8, 1, 128, 0, false, true, false});
    test_attention((struct heads){4, 4, 16, 0, false, true, false});
    test_attention((struct heads){4, 2, 256, 0, true, true, false});
}

int main(int argc, char **argv)
{
    char err[ERR_CAP] = "";
    bool quick = argc > 1 && !strcmp(argv[1], "--quick");
    setvbuf(stdout, NULL, _IOLBF, 0);
    test_seed();
    test_must(kn_open_cpu(0, &cpu, err), err);
    test_must(kn_open_cuda(0, &gpu, err), err);
    printf("%s, %s\n", kn_name(gpu), kn_name(cpu));
    test_memory();
    test_peer();
    printf("memory: %d passed, %d failed\n", test_passed, test_failed);
    test_small();
    EXPECT(kn_matrix_run(gpu) > 0 && kn_matrix_run(cpu) == 0, "matrix units");
    test_sync(gpu);
    printf("small operations: %d passed, %d failed\n", test_passed, test_failed);
    test_products(quick);
    printf("products: %d passed, %d failed\n", test_passed, test_failed);
    test_heads(quick);
    printf("attention: %d passed, %d failed\n", test_passed, test_failed);
    if (!quick) test_fault();
    kn_close(gpu);
    kn_close(cpu);
    return test_report();
}
