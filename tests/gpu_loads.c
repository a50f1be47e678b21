/*
 * gpu_loads.c - products that read remote weights by plain loads (KN_REMOTE_LOADS,
 * kernels/cuda/loads.cuh) must give, bit for bit, what they give with everything in HBM: for every
 * kernel that has such an instance, every placement over HBM, host memory and, where there is one,
 * another GPU's, and with a norm after them; each remote byte must be counted as often as it is
 * read, once for every 256 tokens, and no round trips be told.  After it bulk copies are back.
 *
 * --bench: products of Llama-3.1-8B with a share of every weight remote, by bulk copies inside the
 * usual window and by loads, in turn; against the same in HBM and against the link, both measured
 * in the same run.  --quick, --tiny: small shapes, and few of them, for compute-sanitizer.
 */
#include "tests/gpu_common.h"

enum { KINDS = 3, IN_FLIGHT = 2 };

static struct kn *gpu;

static void use(enum kn_remote_access access)
{
    char err[ERR_CAP] = "";
    test_must(kn_set_remote_access(gpu, access, err), err);
}

/* --- correctness --- */

/* A weight in each kind of memory, and what a product of it reads and writes. */
struct set {
    int32_t N, K, T;
    enum kn_epilogue epilogue;
    bool norm; /* one follows */
    size_t bytes, in_bytes, out_bytes, y_bytes;
    void *at[KINDS];
    void *in, *out, *y;
    float *gain, *start;
};

static struct kn_weight weight_of(const struct set *s, int32_t before, int32_t near, int tail)
{
    struct kn_weight w;
    kn_weight_init(&w, KN_BF16, s->N, s->K);
    const size_t tile = kn_weight_tile_bytes(&w);
    const int32_t begin[4] = {0, before, before + near, w.tile_count};
    const int kind[3] = {1, 0, tail}, tier[3] = {3, 0, tail};
    for (int i = 0; i < 3; i++)
        if (begin[i + 1] > begin[i])
            w.span[tier[i]] = (struct kn_span){(char *)s->at[kind[i]] + (size_t)begin[i] * tile,
                                               begin[i], begin[i + 1] - begin[i]};
    return w;
}

static struct set set_make(int32_t N, int32_t K, int32_t T, enum kn_epilogue epilogue, bool norm)
{
    struct set s = {.N = N, .K = K, .T = T, .epilogue = epilogue, .norm = norm};
    struct kn_weight w;
    char err[ERR_CAP] = "";
    kn_weight_init(&w, KN_BF16, N, K);
    s.bytes = (size_t)w.tile_count * kn_weight_tile_bytes(&w);
    s.in_bytes = kn_act_bytes(gpu, T, K);
    s.out_bytes = epilogue == KN_EPI_SWIGLU ? kn_act_bytes(gpu, T, N / 2)
                                            : (size_t)T * (size_t)N * sizeof(float);
    s.y_bytes = kn_act_bytes(gpu, T, N);
    uint16_t *data = test_noise(size_max(s.bytes, s.in_bytes));
    for (int k = 0; k < KINDS; k++)
        if (k < 2 || test_gpu_count() > 1) {
            test_must(kn_alloc(gpu, test_mem_of(k), 1, s.bytes, &s.at[k], err), err);
            test_must(kn_upload(gpu, s.at[k], data, s.bytes), "upload");
        }
    s.in = test_upload(gpu, KN_MEM_LOCAL, data, s.in_bytes);
    s.out = test_upload(gpu, KN_MEM_LOCAL, NULL, s.out_bytes);
    s.y = test_upload(gpu, KN_MEM_LOCAL, NULL, s.y_bytes);
    float *gain = test_floats((size_t)N);
    s.gain = test_upload(gpu, KN_MEM_LOCAL, gain, (size_t)N * sizeof(float));
    s.start = test_floats((size_t)T * (size_t)N);
    free(gain);
    free(data);
    return s;
}

static void set_free(struct set *s)
{
    for (int k = 0; k < KINDS; k++)
        if (s->at[k]) kn_free(gpu, test_mem_of(k), s->at[k], s->bytes);
    kn_free(gpu, KN_MEM_LOCAL, s->in, s->in_bytes);
    kn_free(gpu, KN_MEM_LOCAL, s->out, s->out_bytes);
    kn_free(gpu, KN_MEM_LOCAL, s->y, s->y_bytes);
    kn_free(gpu, KN_MEM_LOCAL, s->gain, (size_t)s->N * sizeof(float));
    free(s->start);
}

/* The product IN_FLIGHT times with nothing waited for between; what it wrote, for the caller to
 * free. */
static char *multiply(const struct set *s, const struct kn_weight *w)
{
    CHECK(cudaMemset(s->out, 0xFF, s->out_bytes) == cudaSuccess);
    CHECK(cudaMemset(s->y, 0x00, s->y_bytes) == cudaSuccess);
    CHECK(cudaDeviceSynchronize() == cudaSuccess); /* the backend's stream waits for no other */
    if (s->epilogue == KN_EPI_ADD)
        test_must(kn_upload(gpu, s->out, s->start, (size_t)s->T * (size_t)s->N * sizeof(float)),
                  "upload");
    for (int i = 0; i < IN_FLIGHT; i++) {
        kn_gemm(
            gpu,
            &(struct kn_gemm_args){
                .w = w, .row_count = s->T, .in = s->in, .epilogue = s->epilogue, .out = s->out});
        if (s->norm)
            kn_norm(gpu, &(struct kn_norm_args){.kind = KN_RMS_NORM,
                                                .eps = 1e-5f,
                                                .row_count = s->T,
                                                .cols = s->N,
                                                .x = s->out,
                                                .weight = s->gain,
                                                .y = s->y});
    }
    char *got = test_malloc(s->out_bytes + s->y_bytes);
    test_sync(gpu);
    CHECK(cudaMemcpy(got, s->out, s->out_bytes, cudaMemcpyDefault) == cudaSuccess);
    CHECK(cudaMemcpy(got + s->out_bytes, s->y, s->y_bytes, cudaMemcpyDefault) == cudaSuccess);
    return got;
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

static void check(const struct set *s, int32_t before, int32_t near, int tail, const char *want)
{
    const struct kn_weight w = weight_of(s, before, near, tail);
    struct kn_traffic from[KN_TIER_MAX];
    for (int t = 0; t < KN_TIER_MAX; t++) from[t] = traffic_now(t);
    char *got = multiply(s, &w);
    EXPECT(memcmp(got, want, s->out_bytes + s->y_bytes) == 0,
           "N %d K %d T %d epilogue %d norm %d: %d tiles in host memory, %d near, the rest in %d",
           s->N, s->K, s->T, s->epilogue, s->norm, before, near, tail);
    free(got);
    const uint64_t times = IN_FLIGHT * (s->T <= 256 ? 1 : div_up((size_t)s->T, 256));
    for (int t = 1; t < KN_TIER_MAX; t++) {
        const struct kn_traffic now = traffic_now(t);
        const uint64_t want_bytes =
            times * (uint64_t)w.span[t].tile_count * kn_weight_tile_bytes(&w);
        EXPECT(now.bytes - from[t].bytes == want_bytes && now.trip_count == from[t].trip_count,
               "N %d K %d T %d, tier %d: %llu bytes counted of %llu, %llu trips", s->N, s->K, s->T,
               t, (unsigned long long)(now.bytes - from[t].bytes), (unsigned long long)want_bytes,
               (unsigned long long)(now.trip_count - from[t].trip_count));
    }
}

/* Clusters that share no weights, and K that is not cut: the same, wherever weights lie. */
static void check_without(const struct set *s)
{
    static const unsigned parts[] = {KN_WITHOUT_MULTICAST, KN_WITHOUT_SPLIT_K, KN_WITHOUT_ALL, 0};
    const int32_t n = (s->N + 63) / 64;
    const struct kn_weight local = weight_of(s, 0, n, 1), some = weight_of(s, n / 4, n / 2, 1);
    for (size_t i = 0; i < ARRAY_COUNT(parts); i++) {
        test_must(kn_set_without(gpu, parts[i], NULL), "leaving parts out");
        char *want = multiply(s, &local), *got = multiply(s, &some);
        EXPECT(memcmp(got, want, s->out_bytes + s->y_bytes) == 0, "without %u: N %d K %d T %d",
               parts[i], s->N, s->K, s->T);
        free(want);
        free(got);
    }
}

static void test_set(int32_t N, int32_t K, int32_t T, enum kn_epilogue epilogue, bool norm)
{
    struct set s = set_make(N, K, T, epilogue, norm);
    const int32_t n = (N + 63) / 64,
                  places[][2] = {{0, 0},     {0, n},         {0, n / 2}, {0, n - 1},
                                 {1, n - 1}, {n / 3, n / 3}, {n, 0},     {1, 0}};
    use(KN_REMOTE_BULK);
    const struct kn_weight local = weight_of(&s, 0, n, 1);
    char *want = multiply(&s, &local);
    use(KN_REMOTE_LOADS);
    for (size_t i = 0; i < ARRAY_COUNT(places); i++)
        for (int tail = 1; tail < (test_gpu_count() > 1 ? KINDS : KINDS - 1); tail++)
            check(&s, places[i][0], places[i][1], tail, want);
    use(KN_REMOTE_BULK);
    const struct kn_weight half = weight_of(&s, 0, n / 2, 1);
    char *got = multiply(&s, &half);
    EXPECT(memcmp(got, want, s.out_bytes + s.y_bytes) == 0, "bulk copies again, N %d T %d", N, T);
    free(got);
    free(want);
    if (T > 128) check_without(&s);
    set_free(&s);
}

static void run_tests(bool quick)
{
    static const int32_t tokens[] = {1, 9, 32, 33, 64, 100, 128, 129, 256, 300, 700};
    for (size_t i = 0; i < ARRAY_COUNT(tokens); i++) {
        const int32_t T = tokens[i];
        test_set(65, 129, T, KN_EPI_F32, false);
        test_set(320, 520, T, KN_EPI_SWIGLU, false);
        test_set(704, 1032, T, KN_EPI_ADD, true);
        if (quick || i % 2) continue;
        test_set(6144, 4096, T, KN_EPI_STORE, false);
        test_set(4096, 4096, T, KN_EPI_ADD, true);
        test_set(28672, 1024, T, KN_EPI_SWIGLU, false);
        test_set(20000, 1024, T, KN_EPI_F32, false);
    }
}

/* One launch and placement of each kernel, with more blocks than a ring holds. */
static void run_tiny(void)
{
    static const int32_t tokens[] = {8, 16, 32, 8, 16, 32, 64, 128, 130};
    for (size_t i = 0; i < ARRAY_COUNT(tokens); i++) {
        struct set s = set_make(192, 1800, tokens[i], KN_EPI_ADD, i < 3);
        const struct kn_weight local = weight_of(&s, 0, 3, 1);
        use(KN_REMOTE_BULK);
        char *want = multiply(&s, &local);
        use(KN_REMOTE_LOADS);
        check(&s, 1, 1, 1, want);
        free(want);
        set_free(&s);
    }
}

/* --- speed --- */

enum { LAYERS = 3, BENCH_T = 2048, ROUNDS = 5 };

static const struct {
    int32_t rows, cols;
    enum kn_epilogue epilogue;
} shapes[] = {{6144, 4096, KN_EPI_STORE},
              {4096, 4096, KN_EPI_ADD},
              {28672, 4096, KN_EPI_SWIGLU},
              {4096, 14336, KN_EPI_ADD}};

struct bench {
    char *near, *far[KINDS]; /* [LAYERS] of all weights */
    void *in, *out;
};

/* One pass over the layers, or over one product of each; returns the remote bytes. */
static size_t pass(const struct bench *b, int kind, double share, int32_t T, int only)
{
    size_t at = 0, far = 0;
    for (int i = 0; i < LAYERS * (int)ARRAY_COUNT(shapes); i++) {
        const int s = i % (int)ARRAY_COUNT(shapes);
        struct kn_weight w;
        kn_weight_init(&w, KN_BF16, shapes[s].rows, shapes[s].cols);
        const size_t tile = kn_weight_tile_bytes(&w), bytes = (size_t)w.tile_count * tile;
        const int32_t remote = (int32_t)lround(share * w.tile_count);
        w.span[0] = (struct kn_span){b->near + at, 0, w.tile_count - remote};
        if (remote)
            w.span[kind] = (struct kn_span){b->far[kind] + at, w.tile_count - remote, remote};
        at += bytes;
        if (only >= 0 && s != only) continue;
        far += (size_t)remote * tile;
        kn_gemm(gpu, &(struct kn_gemm_args){.w = &w,
                                            .row_count = T,
                                            .in = b->in,
                                            .epilogue = shapes[s].epilogue,
                                            .out = b->out});
    }
    return far;
}

/* Least milliseconds of a pass on the machine. */
static double time_pass(const struct bench *b, enum kn_remote_access access, int kind, double share,
                        int32_t T, int only)
{
    char err[ERR_CAP] = "";
    uint64_t least = UINT64_MAX, ns;
    use(access);
    for (int i = 0; i <= (share < 0.2 ? ROUNDS : 2); i++) {
        kn_step_begin(gpu);
        (void)pass(b, kind, share, T, only);
        const uint64_t step = kn_step_end(gpu);
        test_must(kn_step_wait(gpu, step, &ns, err), err);
        if (i && ns < least) least = ns;
    }
    return (double)least / 1e6;
}

static void bench_one(const struct bench *b, int kind, double share, int32_t T, int only,
                      double link)
{
    static const char *const names[] = {"qkv", "o", "gate-up", "down"};
    const double local = time_pass(b, KN_REMOTE_BULK, kind, 0, T, only),
                 bulk = time_pass(b, KN_REMOTE_BULK, kind, share, T, only),
                 loads = time_pass(b, KN_REMOTE_LOADS, kind, share, T, only),
                 floor = (double)pass(b, kind, share, T, only) / link / 1e6;
    test_sync(gpu);
    printf("%-11s %-8s %3.0f %%  T %4d: HBM %8.3f  link %8.3f  bulk %8.3f  loads %8.3f ms, %5.1f "
           "GB/s  loads / bulk %.2f  loads / larger %.2f\n",
           kind == 1 ? "host memory" : "another GPU", only < 0 ? "layers" : names[only],
           100 * share, T, local, floor, bulk, loads, floor * link / loads, loads / bulk,
           loads / fmax(local, floor));
}

/* GB/s of what kernels read over the link. */
static double probe(void *far, size_t bytes)
{
    char err[ERR_CAP] = "";
    uint64_t least = UINT64_MAX, ns;
    for (int i = 0; i < 3; i++) {
        kn_step_begin(gpu);
        kn_stream_read(gpu, far, bytes);
        const uint64_t step = kn_step_end(gpu);
        test_must(kn_step_wait(gpu, step, &ns, err), err);
        if (ns < least) least = ns;
    }
    return (double)bytes / (double)least;
}

static void bench(bool peer)
{
    static const double shares[] = {0.01, 0.1, 0.3, 1};
    static const int32_t tokens[] = {1, 8, 64}, prompts[] = {256, 512, 2048};
    struct bench b = {0};
    size_t layer = 0, noise_bytes = (size_t)64 << 20;
    char err[ERR_CAP] = "";
    void *place;
    for (size_t s = 0; s < ARRAY_COUNT(shapes); s++)
        layer += (size_t)shapes[s].rows * (size_t)shapes[s].cols * 2;
    const int kind = peer ? 2 : 1;
    const size_t bytes = LAYERS * layer, in_bytes = kn_act_bytes(gpu, BENCH_T, 14336);
    uint16_t *data = test_noise(noise_bytes);
    for (int k = 0; k < KINDS; k++) {
        if (k && k != kind) continue;
        test_must(kn_alloc(gpu, test_mem_of(k), 1, bytes, &place, err), err);
        if (k) b.far[k] = place;
        else b.near = place;
        for (size_t at = 0; at < bytes; at += noise_bytes)
            test_must(kn_upload(gpu, (char *)place + at, data, size_min(noise_bytes, bytes - at)),
                      "upload");
    }
    b.in = test_upload(gpu, KN_MEM_LOCAL, NULL, in_bytes);
    for (size_t at = 0; at < in_bytes; at += noise_bytes)
        test_must(kn_upload(gpu, (char *)b.in + at, data, size_min(noise_bytes, in_bytes - at)),
                  "upload");
    b.out = test_upload(gpu, KN_MEM_LOCAL, NULL, kn_act_bytes(gpu, BENCH_T, 28672));
    const double link = probe(b.far[kind], (size_t)512 << 20);
    printf("kernels read %.1f GB/s of the link\n", link);
    for (size_t s = 0; s < ARRAY_COUNT(shares); s++)
        for (size_t t = 0; t < ARRAY_COUNT(tokens); t++) {
            bench_one(&b, kind, shares[s], tokens[t], -1, link);
            if (t != 1) bench_one(&b, kind, shares[s], tokens[t], 2, link);
        }
    for (size_t t = 0; t < ARRAY_COUNT(prompts); t++)
        bench_one(&b, kind, 0.1, prompts[t], -1, link);
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
        bench(argc > 2 && !strcmp(argv[2], "--peer"));
        kn_close(gpu);
        return 0;
    }
    if (argc > 1 && !strcmp(argv[1], "--tiny")) run_tiny();
    else run_tests(argc > 1);
    kn_close(gpu);
    return test_report();
}
