/*
 * gpu_fetch.c - remote weights of prompts, fetched through a ring in HBM (kernels/cuda/fetch.c):
 * products of many tokens, one after another, whose weights lie in HBM, in host memory and in
 * another GPU's, must be the same bits for every placement and every size of the ring, none
 * included; each remote byte must be counted once a product where it is fetched; and what kn_upload
 * changes must be seen by the fetch that comes next.
 *
 * A link is slower than HBM by far, so a product that did not wait for its copy would find what the
 * ring held before: weights are different in each product.
 *
 * --bench: the four products of some layers of Llama-3.1-8B, for shares of each weight that are
 * remote, tokens and sizes of the ring; against the same with everything in HBM, and against the
 * link, both measured in the same run.  --quick: small shapes, for compute-sanitizer.
 */
#include <time.h>

#include "tests/gpu_common.h"

enum { PRODUCTS = 5, PASSES = 3, KINDS = 3 };

static struct kn *gpu;

/* --- correctness --- */

/* The same weights in each kind of memory: local, host and, where there is one, a peer's. */
struct set {
    int32_t N, K, T;
    size_t bytes; /* of a weight */
    void *at[PRODUCTS][KINDS];
    void *in, *out[PRODUCTS];
    size_t in_bytes, out_bytes;
};

static struct kn_weight weight_of(const struct set *s, int product, int32_t near, int32_t host)
{
    struct kn_weight w;
    kn_weight_init(&w, KN_BF16, s->N, s->K);
    const size_t tile = kn_weight_tile_bytes(&w);
    const int32_t begin[KINDS + 1] = {0, near, near + host, w.tile_count};
    for (int k = 0; k < KINDS; k++)
        if (begin[k + 1] > begin[k])
            w.span[k] = (struct kn_span){(char *)s->at[product][k] + (size_t)begin[k] * tile,
                                         begin[k], begin[k + 1] - begin[k]};
    return w;
}

static void fill(struct set *s, int product, const uint16_t *data)
{
    for (int k = 0; k < KINDS; k++)
        if (s->at[product][k])
            test_must(kn_upload(gpu, s->at[product][k], data, s->bytes), "upload");
}

static struct set set_make(int32_t N, int32_t K, int32_t T)
{
    struct set s = {.N = N, .K = K, .T = T};
    struct kn_weight w;
    char err[ERR_CAP] = "";
    kn_weight_init(&w, KN_BF16, N, K);
    s.bytes = (size_t)w.tile_count * kn_weight_tile_bytes(&w);
    s.in_bytes = kn_act_bytes(gpu, T, K);
    s.out_bytes = (size_t)T * (size_t)N * sizeof(float);
    for (int i = 0; i < PRODUCTS; i++) {
        for (int k = 0; k < KINDS; k++)
            if (k < 2 || test_gpu_count() > 1)
                test_must(kn_alloc(gpu, test_mem_of(k), 1, s.bytes, &s.at[i][k], err), err);
        uint16_t *data = test_noise(s.bytes);
        fill(&s, i, data);
        free(data);
        s.out[i] = test_upload(gpu, KN_MEM_LOCAL, NULL, s.out_bytes);
    }
    uint16_t *data = test_noise(s.in_bytes);
    s.in = test_upload(gpu, KN_MEM_LOCAL, data, s.in_bytes);
    free(data);
    return s;
}

static void set_free(struct set *s)
{
    for (int i = 0; i < PRODUCTS; i++) {
        for (int k = 0; k < KINDS; k++)
            if (s->at[i][k]) kn_free(gpu, test_mem_of(k), s->at[i][k], s->bytes);
        kn_free(gpu, KN_MEM_LOCAL, s->out[i], s->out_bytes);
    }
    kn_free(gpu, KN_MEM_LOCAL, s->in, s->in_bytes);
}

static void multiply(const struct set *s, int product, int32_t near, int32_t host)
{
    struct kn_weight w = weight_of(s, product, near, host);
    kn_gemm(gpu, &(struct kn_gemm_args){.w = &w,
                                        .row_count = s->T,
                                        .in = s->in,
                                        .epilogue = KN_EPI_F32,
                                        .out = s->out[product]});
}

/* The counters as they are now. */
static struct kn_traffic traffic_now(int tier)
{
    struct kn_traffic t;
    void *p = test_upload(gpu, KN_MEM_LOCAL, NULL, 1024);
    for (int i = 0; i < 2; i++) {
        kn_stream_read(gpu, p, 1024);
        test_sync(gpu);
    }
    kn_free(gpu, KN_MEM_LOCAL, p, 1024);
    kn_traffic(gpu, tier, &t);
    return t;
}

/* All products PASSES times with nothing waited for between, against `want`. */
static void check(const struct set *s, int32_t near, int32_t host, size_t ring, void *const *want)
{
    char err[ERR_CAP] = "";
    const struct kn_weight w = weight_of(s, 0, near, host);
    const size_t tile = kn_weight_tile_bytes(&w);
    struct kn_traffic from[KINDS], to[KINDS];
    test_must(kn_fetch_reserve(gpu, ring, err), err);
    for (int i = 0; i < PRODUCTS; i++)
        CHECK(cudaMemset(s->out[i], 0xFF, s->out_bytes) == cudaSuccess);
    for (int k = 0; k < KINDS; k++) from[k] = traffic_now(k);
    for (int i = 0; i < PASSES * PRODUCTS; i++) multiply(s, i % PRODUCTS, near, host);
    for (int k = 0; k < KINDS; k++) to[k] = traffic_now(k);
    for (int i = 0; i < PRODUCTS; i++) {
        void *got = test_download(gpu, s->out[i], s->out_bytes);
        EXPECT(memcmp(got, want[i], s->out_bytes) == 0,
               "N %d K %d T %d: %d tiles near, %d in host "
               "memory, ring of %zu bytes, product %d",
               s->N, s->K, s->T, near, host, ring, i);
        free(got);
    }
    const size_t remote = (size_t)(w.tile_count - near) * tile;
    const uint64_t times = PASSES * PRODUCTS;
    const bool fits = remote <= ring / KN_BLOCK_BYTES * KN_BLOCK_BYTES;
    for (int k = 1; k < KINDS; k++) {
        const uint64_t once = times * (uint64_t)w.span[k].tile_count * tile;
        const uint64_t bytes = to[k].bytes - from[k].bytes;
        const uint64_t fetched = to[k].fetched_bytes - from[k].fetched_bytes;
        EXPECT(fits ? bytes == once && fetched == once : bytes >= once && fetched == 0,
               "N %d K %d T %d: tier %d counted %llu bytes, fetched %llu, of %llu", s->N, s->K,
               s->T, k, (unsigned long long)bytes, (unsigned long long)fetched,
               (unsigned long long)once);
    }
    EXPECT(to[0].bytes - from[0].bytes >= times * (uint64_t)w.span[0].tile_count * tile,
           "local bytes");
}

/* Weights change between two products: the second sees it, whatever lies in the ring. */
static void check_upload(struct set *s)
{
    const struct kn_weight w = weight_of(s, 0, 0, 0);
    const int32_t all = w.tile_count;
    char err[ERR_CAP] = "";
    test_must(kn_fetch_reserve(gpu, 2 * s->bytes, err), err);
    for (int k = 1; k < KINDS; k++) {
        if (!s->at[0][k]) continue;
        uint16_t *data = test_noise(s->bytes);
        multiply(s, 0, 0, k == 1 ? all : 0);
        fill(s, 0, data);
        multiply(s, 0, 0, k == 1 ? all : 0);
        void *got = test_download(gpu, s->out[0], s->out_bytes);
        multiply(s, 0, all, 0);
        void *want = test_download(gpu, s->out[0], s->out_bytes);
        EXPECT(memcmp(got, want, s->out_bytes) == 0, "an upload to kind %d was not seen", k);
        free(data), free(got), free(want);
    }
}

static void test_set(int32_t N, int32_t K, int32_t T)
{
    struct set s = set_make(N, K, T);
    void *want[PRODUCTS];
    const struct kn_weight w = weight_of(&s, 0, 0, 0);
    const int32_t all = w.tile_count;
    for (int i = 0; i < PRODUCTS; i++) {
        multiply(&s, i, all, 0);
        want[i] = test_download(gpu, s.out[i], s.out_bytes);
    }
    /* None; smaller than any product; one, two and a half, and more than are taken. */
    const size_t rings[] = {0, KN_BLOCK_BYTES, s.bytes, 5 * s.bytes / 2 + 999, 16 * s.bytes};
    for (size_t r = 0; r < ARRAY_COUNT(rings); r++)
        for (int32_t near = 0; near < all; near += 1 + 2 * near) {
            check(&s, near, all - near, rings[r], want);
            if (test_gpu_count() < 2) continue;
            check(&s, near, 0, rings[r], want);
            check(&s, near, (all - near) / 2, rings[r], want);
        }
    check_upload(&s);
    for (int i = 0; i < PRODUCTS; i++) free(want[i]);
    set_free(&s);
    test_must(kn_fetch_reserve(gpu, 0, NULL), "freeing the ring");
}

static void test_refusal(void)
{
    char err[ERR_CAP] = "";
    EXPECT(kn_fetch_reserve(gpu, (size_t)1 << 45, err) == ST_NOMEM &&
               strstr(err, "--prefill-staging-bytes"),
           "%s", err);
    printf("too large a ring: %s\n", err);
    EXPECT(kn_sync(gpu, err) == ST_OK, "a refusal leaves the backend working: %s", err);
}

/* --- speed --- */

enum { LAYERS = 8, BENCH_T = 8192 };

static const struct {
    int32_t rows, cols;
    enum kn_epilogue epilogue;
} shapes[] = {{6144, 4096, KN_EPI_STORE},
              {4096, 4096, KN_EPI_ADD},
              {28672, 4096, KN_EPI_SWIGLU},
              {4096, 14336, KN_EPI_ADD}};

struct bench {
    char *near, *far[KINDS]; /* [LAYERS] of all weights; far as much of them as is ever remote */
    size_t layer_bytes, noise_bytes;
    void *in, *out;
};

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* One pass over the layers; returns the remote bytes. */
static size_t pass(const struct bench *b, int kind, double share, int32_t T)
{
    size_t near = 0, far = 0;
    for (int i = 0; i < LAYERS * (int)ARRAY_COUNT(shapes); i++) {
        const size_t s = (size_t)i % ARRAY_COUNT(shapes);
        struct kn_weight w;
        kn_weight_init(&w, KN_BF16, shapes[s].rows, shapes[s].cols);
        const size_t tile = kn_weight_tile_bytes(&w);
        const int32_t remote = (int32_t)lround(share * w.tile_count);
        w.span[0] = (struct kn_span){b->near + near, 0, w.tile_count - remote};
        near += (size_t)w.tile_count * tile;
        if (remote)
            w.span[kind] = (struct kn_span){b->far[kind] + far, w.tile_count - remote, remote};
        far += (size_t)remote * tile;
        kn_gemm(gpu, &(struct kn_gemm_args){.w = &w,
                                            .row_count = T,
                                            .in = b->in,
                                            .epilogue = shapes[s].epilogue,
                                            .out = b->out});
    }
    return far;
}

enum { ROUNDS = 3, REPEAT = 3 };

/* Of a pass: with all in HBM, and with a share of each weight elsewhere.  They take turns, for the
 * clock falls as the card warms up. */
static void time_both(const struct bench *b, int kind, double share, int32_t T, double *local,
                      double *mixed)
{
    *local = *mixed = 0;
    for (int i = 0; i < 2 * ROUNDS; i++) {
        double start = 0;
        for (int n = -1; n < REPEAT; n++) {
            (void)pass(b, kind, i % 2 ? share : 0, T);
            if (n < 0 || n == REPEAT - 1) test_sync(gpu);
            if (n < 0) start = seconds();
        }
        *(i % 2 ? mixed : local) += (seconds() - start) / (ROUNDS * REPEAT);
    }
}

/* GB/s of what kernels read over the link. */
static double probe(void *far, size_t bytes)
{
    double best = 0;
    for (int i = 0; i < 3; i++) {
        double start = seconds();
        kn_stream_read(gpu, far, bytes);
        test_sync(gpu);
        best = fmax(best, (double)bytes / (seconds() - start) / 1e9);
    }
    return best;
}

static void bench_ring(const struct bench *b, int kind, double share, int32_t T, double layers,
                       double link)
{
    char err[ERR_CAP] = "";
    double local, mixed;
    test_must(kn_fetch_reserve(gpu, (size_t)(layers * share * 1.02 * (double)b->layer_bytes), err),
              err);
    const uint64_t before = traffic_now(kind).bytes;
    const double remote = (double)pass(b, kind, share, T);
    const double counted = (double)(traffic_now(kind).bytes - before);
    time_both(b, kind, share, T, &local, &mixed);
    printf("  T %4d, %2.0f %% remote, ring of %.1f layers: %7.2f ms, %5.1f GB/s; local %7.2f, link "
           "%7.2f; time / max %.3f, crossed %.3f times\n",
           T, 100 * share, layers, 1e3 * mixed, remote / mixed / 1e9, 1e3 * local,
           remote / link / 1e6, mixed / fmax(local, remote / link / 1e9), counted / remote);
    test_must(kn_fetch_reserve(gpu, 0, err), err);
}

static void bench_kind(const struct bench *b, int kind, const double *shares)
{
    static const int32_t tokens[] = {320, 512, 1024, 2048, 8192};
    static const double layers[] = {0, 0.6, 1, 2};
    const double link = probe(b->far[kind], (size_t)256 << 20);
    printf("%s: kernels read %.1f GB/s\n", kind == 1 ? "host memory" : "another GPU", link);
    for (size_t t = 0; t < ARRAY_COUNT(tokens); t++)
        for (int s = 0; s < 2; s++)
            for (size_t r = 0; r < ARRAY_COUNT(layers); r++)
                if (tokens[t] <= KN_REMOTE_TOKENS || layers[r] == 1)
                    bench_ring(b, kind, shares[s], tokens[t], layers[r], link);
}

static void bench(void)
{
    struct bench b = {.noise_bytes = (size_t)64 << 20};
    char err[ERR_CAP] = "";
    static const double host[] = {0.1, 0.3}, peer[] = {0.1, 0.5};
    for (size_t s = 0; s < ARRAY_COUNT(shapes); s++)
        b.layer_bytes += (size_t)shapes[s].rows * (size_t)shapes[s].cols * 2;
    uint16_t *data = test_noise(b.noise_bytes);
    void *place;
    size_t sizes[KINDS] = {LAYERS * b.layer_bytes, (size_t)(0.32 * LAYERS * (double)b.layer_bytes),
                           (size_t)(0.52 * LAYERS * (double)b.layer_bytes)};
    for (int k = 0; k < (test_gpu_count() > 1 ? KINDS : KINDS - 1); k++) {
        test_must(kn_alloc(gpu, test_mem_of(k), 1, sizes[k], &place, err), err);
        if (k) b.far[k] = place;
        else b.near = place;
        for (size_t at = 0; at < sizes[k]; at += b.noise_bytes)
            test_must(kn_upload(gpu, (char *)place + at, data,
                                sizes[k] - at < b.noise_bytes ? sizes[k] - at : b.noise_bytes),
                      "upload");
    }
    const size_t in_bytes = kn_act_bytes(gpu, BENCH_T, 14336);
    b.in = test_upload(gpu, KN_MEM_LOCAL, NULL, in_bytes);
    for (size_t at = 0; at < in_bytes; at += b.noise_bytes)
        test_must(kn_upload(gpu, (char *)b.in + at, data,
                            in_bytes - at < b.noise_bytes ? in_bytes - at : b.noise_bytes),
                  "upload");
    b.out = test_upload(gpu, KN_MEM_LOCAL, NULL, kn_act_bytes(gpu, BENCH_T, 28672));
    bench_kind(&b, test_gpu_count() > 1 ? 2 : 1, test_gpu_count() > 1 ? peer : host);
    free(data);
}

int main(int argc, char **argv)
{
    char err[ERR_CAP] = "";
    setvbuf(stdout, NULL, _IOLBF, 0);
    test_seed();
    test_must(kn_open_cuda(0, &gpu, err), err);
    puts(kn_name(gpu));
    if (argc > 1 && !strcmp(argv[1], "--bench")) {
        bench();
        kn_close(gpu);
        return 0;
    }
    test_refusal();
    test_set(192, 256, 300);
    if (argc == 1) {
        test_set(4096, 4096, 300);
        test_set(1024, 2048, 2500);
    }
    kn_close(gpu);
    return test_report();
}
