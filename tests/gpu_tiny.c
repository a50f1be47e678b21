/*
 * gpu_tiny.c - the smallest work that goes through every path of a kernel, one family of kernels a
 * process: for compute-sanitizer's racecheck, initcheck and synccheck, which slow kernels down a
 * thousandfold, and some of whose faults end the process.
 *
 *     gpu_tiny --list        the families, one a line
 *     gpu_tiny [NAME...]     those whose names begin with a NAME; all without one
 *
 * Results are held to the CPU backend, so that a run says something without the sanitizer too.
 *
 * gemm-TBxRT-pP: one variant of the decode GEMM: token bucket TB, RT row tiles a CTA, K in P parts
 * that another kernel adds up. Rings go round more than once, two tiles are remote in a window of
 * one block, and the last tile, row and token are partial.
 *
 * norm-TB-pP-*: a product in P parts, an RMS norm and a product, which do the norm between them;
 * the parts of a sum find each other in one of three ways (gemm_norm.cuh), and in order too where
 * three CTAs have all the units.
 *
 * sample-*: one way of choosing a token, by a cluster of which two CTAs have any.
 *
 * small: embed, gather and both norms.  stream: the reading that a bandwidth probe times.
 */
#include "kernels/cuda/small.h"
#include "tests/gpu_common.h"

static struct kn *cpu, *gpu;

#define NAME_CAP 48

struct family {
    char name[NAME_CAP];
    void (*run)(const struct family *f);
    int32_t bucket, tiles, part_shift;
    int32_t local_tiles, window_ctas; /* of 5 tiles; CTAs of the remote ones' window */
    struct kn_sample_row row;
    float spread; /* of the logits chosen from */
};

/* --- products --- */

static float *rounded(size_t n)
{
    float *f = test_floats(n);
    for (size_t i = 0; i < n; i++) f[i] = test_bf16(f[i]);
    return f;
}

static struct kn_cu_window *one_block_window(int32_t ctas)
{
    struct kn_cu_window w[KN_TIER_MAX] = {{0}};
    for (int i = 1; i < KN_TIER_MAX; i++) w[i] = (struct kn_cu_window){ctas, 1, 11};
    return test_upload(gpu, KN_MEM_LOCAL, w, sizeof w);
}

static void compare_product(const struct family *f, const float *got, const float *want, size_t n,
                            double bound)
{
    size_t wrong = 0;
    for (size_t i = 0; i < n; i++) wrong += !(fabs((double)got[i] - (double)want[i]) <= bound);
    EXPECT(wrong == 0, "%s: %zu of %zu elements are wrong", f->name, wrong, n);
}

/* A product, and what adds its parts up. */
static void launch(const struct kn_cu_gemm_plan *plan, const struct kn_cu_gemm_args *a)
{
    char err[ERR_CAP] = "";
    const struct kn_cu_parts parts = {.sum = a->partial,
                                      .count = 1 << plan->part_shift,
                                      .stride = (size_t)a->tokens * (size_t)a->w->rows,
                                      .bias = a->bias};
    test_must(kn_cu_gemm_launch(plan, a, NULL, err), err);
    if (a->partial)
        test_must(kn_cu_settle_launch(&parts, a->tokens, a->w->rows, a->epilogue == KN_EPI_ADD,
                                      a->out, NULL, err),
                  err);
}

/* Three CTAs for 5 row tiles in up to 4 parts. */
static void run_gemm(const struct family *f)
{
    enum { N = 300, K = 15 * 128 + 60, LOCAL_TILES = 3 };
    const int32_t T = f->bucket - 1;
    struct test_weight w = test_weight_make(gpu, N, K, LOCAL_TILES, 0.1f);
    struct kn_cu_gemm_plan plan = {.bucket = f->bucket,
                                   .group_tiles = f->tiles,
                                   .ctas_per_sm = 1,
                                   .part_shift = f->part_shift};
    kn_cu_gemm_plan_derive(N, 3, &plan);
    float *x = rounded((size_t)T * K), *bias = test_floats(N);
    size_t n = (size_t)T * N, bytes = n * sizeof(float);
    float *want = test_malloc(bytes), *got;
    kn_gemm(cpu, &(struct kn_gemm_args){&w.cpu, bias, T, x, KN_EPI_F32, want});
    void *in = test_act_upload(gpu, T, K, x), *out = test_poisoned(gpu, KN_MEM_LOCAL, bytes);
    float *gpu_bias = test_upload(gpu, KN_MEM_LOCAL, bias, N * sizeof *bias);
    struct kn_cu_window *windows = one_block_window(2);
    struct kn_cu_traffic zero[KN_TIER_MAX] = {{0}};
    void *traffic = test_upload(gpu, KN_MEM_LOCAL, zero, sizeof zero);
    test_sync(gpu);
    const size_t parts_bytes = bytes << f->part_shift;
    void *partial = f->part_shift ? test_poisoned(gpu, KN_MEM_LOCAL, parts_bytes) : NULL;
    struct kn_cu_gemm_args a = {.w = &w.gpu,
                                .bias = gpu_bias,
                                .tokens = T,
                                .in = in,
                                .epilogue = KN_EPI_STORE,
                                .out = out,
                                .partial = partial,
                                .windows = windows,
                                .traffic = traffic,
                                .dependent = true};
    launch(&plan, &a);
    got = test_download(gpu, out, bytes);
    compare_product(f, got, want, n, 2e-4);
    /* What the second launch adds to must be complete, though it may start before the first ends.
     */
    a.epilogue = KN_EPI_ADD;
    for (int i = 0; i < 2; i++) launch(&plan, &a);
    for (size_t i = 0; i < n; i++) want[i] *= 3;
    free(got);
    got = test_download(gpu, out, bytes);
    compare_product(f, got, want, n, 6e-4);
    if (partial) kn_free(gpu, KN_MEM_LOCAL, partial, parts_bytes);
    kn_free(gpu, KN_MEM_LOCAL, traffic, sizeof zero);
    kn_free(gpu, KN_MEM_LOCAL, windows, KN_TIER_MAX * sizeof *windows);
    kn_free(gpu, KN_MEM_LOCAL, gpu_bias, N * sizeof *bias);
    kn_free(gpu, KN_MEM_LOCAL, out, bytes);
    kn_free(gpu, KN_MEM_LOCAL, in, kn_act_bytes(gpu, T, K));
    test_weight_free(gpu, &w);
    free(x), free(bias), free(want), free(got);
}

/* A product, the norm of what it adds to, and the product that reads that: the norm is done by the
 * two.  The second gets its scale from sums of tiles of which the last is partial. */
static void run_norm(const struct family *f)
{
    enum { N = 300 };
    const int32_t T = f->bucket - 1, K = f->part_shift == 2 ? 15 * 128 + 60 : 3 * 128;
    struct test_weight w = test_weight_make(gpu, N, K, f->local_tiles, 0.1f);
    struct test_weight next = test_weight_make(gpu, N, N, f->local_tiles, 0.1f);
    float *in = rounded((size_t)T * (size_t)K), *x = test_floats((size_t)T * N);
    float *gain = test_floats(N), *y = test_malloc((size_t)T * N * sizeof *y);
    size_t n = (size_t)T * N, bytes = n * sizeof(float);
    float *want = test_malloc(bytes);
    void *gin = test_act_upload(gpu, T, K, in), *out = test_poisoned(gpu, KN_MEM_LOCAL, bytes);
    float *gx = test_upload(gpu, KN_MEM_LOCAL, x, bytes);
    float *ggain = test_upload(gpu, KN_MEM_LOCAL, gain, N * sizeof *gain);
    void *gy = test_poisoned(gpu, KN_MEM_LOCAL, kn_act_bytes(gpu, T, N));
    test_sync(gpu);
    kn_set_window(gpu, 1, &(struct kn_window){f->window_ctas, 1, 11});
    for (int i = 0; i < 2; i++) { /* the second finds the counters as the first left them */
        kn_gemm(cpu, &(struct kn_gemm_args){&w.cpu, NULL, T, in, KN_EPI_ADD, x});
        kn_norm(cpu, &(struct kn_norm_args){KN_RMS_NORM, 1e-5f, T, N, x, gain, NULL, y});
        kn_gemm(cpu, &(struct kn_gemm_args){&next.cpu, NULL, T, y, KN_EPI_F32, want});
        kn_gemm(gpu, &(struct kn_gemm_args){&w.gpu, NULL, T, gin, KN_EPI_ADD, gx});
        kn_norm(gpu, &(struct kn_norm_args){KN_RMS_NORM, 1e-5f, T, N, gx, ggain, NULL, gy});
        kn_gemm(gpu, &(struct kn_gemm_args){&next.gpu, NULL, T, gy, KN_EPI_F32, out});
    }
    float *got = test_download(gpu, out, bytes), *sum = test_download(gpu, gx, bytes);
    compare_product(f, sum, x, n, 6e-4);
    compare_product(f, got, want, n, 0.02); /* y is rounded to bf16 */
    kn_free(gpu, KN_MEM_LOCAL, gy, kn_act_bytes(gpu, T, N));
    kn_free(gpu, KN_MEM_LOCAL, ggain, N * sizeof *gain);
    kn_free(gpu, KN_MEM_LOCAL, gx, bytes);
    kn_free(gpu, KN_MEM_LOCAL, out, bytes);
    kn_free(gpu, KN_MEM_LOCAL, gin, kn_act_bytes(gpu, T, K));
    test_weight_free(gpu, &next);
    test_weight_free(gpu, &w);
    free(in), free(x), free(gain), free(y), free(want), free(got), free(sum);
}

/* The same, the norm's product by three CTAs. */
static void run_norm_crowded(const struct family *f)
{
    enum { N = 300, K = 15 * 128 + 60 };
    char err[ERR_CAP] = "";
    const int32_t T = f->bucket - 1;
    const size_t n = (size_t)T * N, bytes = n * sizeof(float);
    const size_t word_count = ((size_t)5 << f->part_shift) * 64 * (size_t)f->bucket + 5;
    struct test_weight w = test_weight_make(gpu, N, K, f->local_tiles, 0.1f);
    struct kn_cu_gemm_plan plan = {.bucket = f->bucket,
                                   .group_tiles = f->tiles,
                                   .ctas_per_sm = 1,
                                   .part_shift = f->part_shift};
    kn_cu_gemm_plan_derive(N, 3, &plan);
    float *in = rounded((size_t)T * K), *x = test_floats(n), *gain = test_floats(N);
    float *want = test_malloc(bytes), *got = test_malloc(bytes);
    uint32_t *zero = calloc(word_count, sizeof *zero);
    CHECK(zero);
    uint32_t *words = test_upload(gpu, KN_MEM_LOCAL, zero, word_count * sizeof *words);
    void *gin = test_act_upload(gpu, T, K, in);
    float *gx = test_upload(gpu, KN_MEM_LOCAL, x, bytes);
    float *ggain = test_upload(gpu, KN_MEM_LOCAL, gain, N * sizeof *gain);
    const size_t y_bytes = kn_act_bytes(gpu, T, N);
    void *gy = test_poisoned(gpu, KN_MEM_LOCAL, y_bytes);
    struct kn_cu_window *windows = one_block_window(f->window_ctas);
    test_sync(gpu);
    const struct kn_cu_gemm_args a = {
        .w = &w.gpu,
        .tokens = T,
        .in = gin,
        .epilogue = KN_EPI_ADD,
        .out = gx,
        .norm = {words, words + word_count - 5, ggain, gy},
        .windows = windows,
        .turn = -1,
        .dependent = true,
    };
    for (int i = 0; i < 2; i++) {
        kn_gemm(cpu, &(struct kn_gemm_args){&w.cpu, NULL, T, in, KN_EPI_ADD, x});
        test_must(kn_cu_gemm_launch(&plan, &a, NULL, err), err);
    }
    const struct kn_norm_args norm = {KN_RMS_NORM, 1e-5f, T, N, x, gain, NULL, want};
    kn_norm(cpu, &norm);
    void *y = test_download(gpu, gy, y_bytes);
    for (size_t i = 0; i < n; i++)
        got[i] = test_norm_get(&norm, y, (int32_t)(i / N), (int32_t)(i % N));
    compare_product(f, got, want, n, 0.02); /* y is rounded to bf16 */
    float *sum = test_download(gpu, gx, bytes);
    uint32_t *left = test_download(gpu, words, word_count * sizeof *words);
    compare_product(f, sum, x, n, 6e-4);
    EXPECT(!memcmp(left, zero, word_count * sizeof *words), "%s: words are left", f->name);
    kn_free(gpu, KN_MEM_LOCAL, windows, KN_TIER_MAX * sizeof *windows);
    kn_free(gpu, KN_MEM_LOCAL, gy, y_bytes);
    kn_free(gpu, KN_MEM_LOCAL, ggain, N * sizeof *gain);
    kn_free(gpu, KN_MEM_LOCAL, gx, bytes);
    kn_free(gpu, KN_MEM_LOCAL, gin, kn_act_bytes(gpu, T, K));
    kn_free(gpu, KN_MEM_LOCAL, words, word_count * sizeof *words);
    test_weight_free(gpu, &w);
    free(in), free(x), free(gain), free(want), free(got), free(y), free(zero), free(sum),
        free(left);
}

/* --- choosing --- */

static void run_sample(const struct family *f)
{
    enum { V = 2500 }; /* the second CTA of the cluster has some of them */
    char err[ERR_CAP] = "";
    float *logits = test_floats(V);
    struct kn_sampled *want, *got;
    for (size_t i = 0; i < V; i++) logits[i] *= f->spread;
    test_must(kn_sample_reserve(cpu, V, 1, err), err);
    test_must(kn_sample_reserve(gpu, V, 1, err), err);
    test_must(kn_alloc(cpu, KN_MEM_STAGING, 0, sizeof *want, (void **)&want, err), err);
    test_must(kn_alloc(gpu, KN_MEM_STAGING, 0, sizeof *got, (void **)&got, err), err);
    kn_sample(cpu, &(struct kn_sample_args){logits, V, 1, &f->row, want});
    test_sync(cpu);
    float *there = test_upload(gpu, KN_MEM_LOCAL, logits, V * sizeof *logits);
    kn_sample(gpu, &(struct kn_sample_args){there, V, 1, &f->row, got});
    test_sync(gpu);
    EXPECT(got->token == want->token, "%s: token %d, not %d", f->name, got->token, want->token);
    kn_free(gpu, KN_MEM_LOCAL, there, V * sizeof *logits);
    kn_free(gpu, KN_MEM_STAGING, got, sizeof *got);
    kn_free(cpu, KN_MEM_STAGING, want, sizeof *want);
    free(logits);
}

/* --- the rest --- */

static void check_norm(enum kn_norm_kind kind, int32_t T, int32_t H, const float *x)
{
    size_t n = (size_t)T * (size_t)H;
    float *weight = test_floats((size_t)H), *want = test_malloc(n * sizeof *want);
    float *gx = test_upload(gpu, KN_MEM_LOCAL, x, n * sizeof *x);
    float *gw = test_upload(gpu, KN_MEM_LOCAL, weight, (size_t)H * sizeof *weight);
    void *gy = test_poisoned(gpu, KN_MEM_LOCAL, kn_act_bytes(gpu, T, H));
    kn_norm(cpu, &(struct kn_norm_args){kind, 1e-5f, T, H, x, weight, NULL, want});
    const struct kn_norm_args a = {kind, 1e-5f, T, H, gx, gw, NULL, gy};
    kn_norm(gpu, &a);
    void *y = test_download(gpu, gy, kn_act_bytes(gpu, T, H));
    size_t wrong = 0;
    for (int32_t t = 0; t < T; t++)
        for (int32_t k = 0; k < H; k++) {
            float w = want[(size_t)t * (size_t)H + (size_t)k];
            wrong += !(fabsf(test_norm_get(&a, y, t, k) - w) <= fabsf(w) * 0x1.1p-8f + 1e-6f);
        }
    EXPECT(wrong == 0, "norm kind %d: %zu elements", kind, wrong);
    kn_free(gpu, KN_MEM_LOCAL, gy, kn_act_bytes(gpu, T, H));
    kn_free(gpu, KN_MEM_LOCAL, gw, (size_t)H * sizeof *weight);
    kn_free(gpu, KN_MEM_LOCAL, gx, n * sizeof *x);
    free(weight), free(want), free(y);
}

static void run_small(const struct family *f)
{
    enum { T = 3, V = 100, H = 200, PROMPT = KN_CU_TOKENS_MAX + 1 };
    const int32_t tokens[T] = {7, 99, 0}, positions[T] = {0, 1, 2}, seq[T] = {0}, rows[] = {2, 0};
    struct kn_seq seqs = {.token_count = T, .kv_count = T};
    kn_page page = kn_page_make(0, 0);
    struct kn_batch b = {T, tokens, positions, seq, 1, &seqs, &page, 2, rows};
    struct test_weight table = test_weight_make(gpu, V, H, 1, 1);
    float want[T * H];
    float *x = test_poisoned(gpu, KN_MEM_LOCAL, sizeof want);
    float *out = test_poisoned(gpu, KN_MEM_LOCAL, sizeof want);
    kn_embed(cpu, &b, &(struct kn_embed_args){&table.cpu, NULL, 0, want});
    kn_embed(gpu, &b, &(struct kn_embed_args){&table.gpu, NULL, 0, x});
    kn_gather(gpu, &b, H, x, out);
    float *got = test_download(gpu, x, sizeof want), *two = test_download(gpu, out, sizeof want);
    EXPECT(!memcmp(got, want, sizeof want), "%s: embed", f->name);
    EXPECT(!memcmp(two, want + 2 * H, H * sizeof *want), "%s: gather", f->name);
    EXPECT(!memcmp(two + H, want, H * sizeof *want), "%s: gather, second row", f->name);
    check_norm(KN_RMS_NORM, T, H, want);
    check_norm(KN_LAYER_NORM, T, H, want);
    float *prompt = test_floats((size_t)PROMPT * 1024); /* rows of a prompt: kernels of their own */
    check_norm(KN_RMS_NORM, PROMPT, 512, prompt);
    check_norm(KN_LAYER_NORM, PROMPT, 1024, prompt);
    free(prompt);
    kn_free(gpu, KN_MEM_LOCAL, out, sizeof want);
    kn_free(gpu, KN_MEM_LOCAL, x, sizeof want);
    test_weight_free(gpu, &table);
    free(got), free(two);
}

static void run_stream(const struct family *f)
{
    enum { BYTES = 4 << 20 };
    char *data = calloc(1, BYTES);
    CHECK(data);
    for (int mem = KN_MEM_LOCAL; mem <= KN_MEM_HOST; mem++) {
        void *p = test_upload(gpu, (enum kn_mem)mem, data, BYTES);
        for (int i = 0; i < 3; i++) kn_stream_read(gpu, p, BYTES);
        test_sync(gpu);
        EXPECT(p != NULL, "%s", f->name);
        kn_free(gpu, (enum kn_mem)mem, p, BYTES);
    }
    free(data);
}

/* --- families --- */

enum { FAMILIES_MAX = 96 };

static int list_families(struct family *f)
{
    static const struct family others[] = {
        {.name = "sample-greedy", .row = {.top_p = 1, .score = true}},
        {.name = "sample-temperature", .row = {.temperature = 1, .top_p = 1, .u = 0.7}},
        {.name = "sample-top_k", .row = {.temperature = 1, .top_p = 1, .top_k = 40, .u = 0.7}},
        {.name = "sample-top_p", .row = {.temperature = 1, .top_p = 0.9f, .u = 0.7}},
        {.name = "sample-all",
         .row = {.temperature = 1, .top_p = 0.9f, .top_k = 30, .min_p = 0.001f, .u = 0.2}},
        /* More keys at the edge than the list holds: bins of keys narrow them down. */
        {.name = "sample-flat",
         .row = {.temperature = 1, .top_p = 1, .top_k = 40, .u = 0.7},
         .spread = 0.01f},
        {.name = "small", .run = run_small},
        {.name = "stream", .run = run_stream},
    };
    static const struct family norms[] = {
        {.name = "ordered", .run = run_norm, .local_tiles = 3, .window_ctas = 2},
        {.name = "shared", .run = run_norm, .local_tiles = 5, .window_ctas = 2},
        {.name = "shared-remote", .run = run_norm, .local_tiles = 3, .window_ctas = 8},
        {.name = "crowded", .run = run_norm_crowded, .local_tiles = 3, .window_ctas = 2},
        {.name = "crowded-local", .run = run_norm_crowded, .local_tiles = 5, .window_ctas = 2},
        {.name = "counted",
         .run = run_norm_crowded,
         .local_tiles = 3,
         .window_ctas = KN_WINDOW_NO_BOUND},
    };
    int count = 0;
    for (int32_t bucket = 8; bucket <= KN_CU_DECODE_MAX; bucket *= 2)
        for (int32_t tiles = 1; tiles <= 4; tiles *= 2)
            for (int32_t shift = 0; shift <= KN_CU_PART_SHIFT_MAX; shift++) {
                if (kn_cu_gemm_resident(bucket, tiles) == 0) continue; /* there is no such kernel */
                CHECK(count < FAMILIES_MAX);
                f[count] = (struct family){
                    .run = run_gemm, .bucket = bucket, .tiles = tiles, .part_shift = shift};
                snprintf(f[count++].name, NAME_CAP, "gemm-%dx%d-p%d", bucket, tiles, 1 << shift);
            }
    for (int32_t bucket = 8; bucket <= KN_CU_SQUARES_TOKENS; bucket *= 2)
        for (int32_t shift = 0; shift <= 2; shift += 2)
            for (size_t i = 0; i < ARRAY_COUNT(norms); i++) {
                if (shift == 0 && i > 0) continue;
                CHECK(count < FAMILIES_MAX);
                f[count] = norms[i];
                f[count].bucket = bucket;
                f[count].tiles = 1;
                f[count].part_shift = shift;
                snprintf(f[count++].name, NAME_CAP, "norm-%d-p%d-%.14s", bucket, 1 << shift,
                         norms[i].name);
            }
    for (size_t i = 0; i < ARRAY_COUNT(others); i++) {
        CHECK(count < FAMILIES_MAX);
        f[count] = others[i];
        if (!f[count].run) f[count].run = run_sample;
        if (f[count].spread == 0) f[count].spread = 8;
        count++;
    }
    return count;
}

static bool wanted(const struct family *f, int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (!strncmp(f->name, argv[i], strlen(argv[i]))) return true;
    return argc == 1;
}

int main(int argc, char **argv)
{
    static struct family family[FAMILIES_MAX];
    char err[ERR_CAP] = "";
    int count = list_families(family);
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc > 1 && !strcmp(argv[1], "--list")) {
        for (int i = 0; i < count; i++) puts(family[i].name);
        return 0;
    }
    test_must(kn_open_cpu(0, &cpu, err), err);
    test_must(kn_open_cuda(0, &gpu, err), err);
    for (int i = 0; i < count; i++)
        if (wanted(&family[i], argc, argv)) family[i].run(&family[i]);
    kn_close(gpu);
    kn_close(cpu);
    return test_report();
}
