/*
 * unit_kernels_gemm.c - the GEMM against fp64, for every dtype, epilogue and instruction set, at
 * odd shapes; and that a token's row is bitwise the same for every number of tokens, threads and
 * split between tiers.
 */
#include "tests/kernels_common.h"

static const int32_t token_counts[] = {1, 2, 3, 7, 8, 9, 16, 17, 33, 64, 65, 129};
enum { T_MAX = 129, T_KINDS = sizeof token_counts / sizeof token_counts[0] };

/* NULL is what the machine would choose; portable runs everywhere. */
static const struct kn_cpu_isa *const isas[] = {NULL, &kn_cpu_isa_portable};

static int32_t out_cols(enum kn_epilogue epilogue, int32_t n)
{
    return epilogue == KN_EPI_SWIGLU ? n / 2 : n;
}

/* The dot product plus bias, and the sum of its terms' magnitudes. */
static double dot(const struct test_weight *t, const float *x, const float *bias, int32_t row,
                  double *scale)
{
    double sum = bias ? (double)bias[row] : 0.0;
    *scale = fabs(sum);
    for (int32_t k = 0; k < t->w.cols; k++) {
        double term = (double)x[k] * (double)t->f[(size_t)row * (size_t)t->w.cols + (size_t)k];
        sum += term;
        *scale += fabs(term);
    }
    return sum;
}

static double reference(const struct test_weight *t, enum kn_epilogue epilogue, const float *x,
                        const float *bias, float before, int32_t col, double *scale)
{
    if (epilogue != KN_EPI_SWIGLU) {
        double y = dot(t, x, bias, col, scale);
        if (epilogue == KN_EPI_RELU) return y > 0 ? y : 0;
        if (epilogue != KN_EPI_ADD) return y;
        *scale += fabs((double)before);
        return y + (double)before;
    }
    double gate_scale, up_scale;
    double gate = dot(t, x, bias, kn_glu_row(col, false), &gate_scale);
    double up = dot(t, x, bias, kn_glu_row(col, true), &up_scale);
    double silu = gate / (1 + exp(-gate));
    /* |silu'| < 1.1; the error of a product is that of either factor times the other. */
    *scale = 1.1 * gate_scale * fabs(up) + fabs(silu) * up_scale;
    return silu * up;
}

static void check_against_fp64(struct kn *kn, enum kn_dtype dtype, enum kn_epilogue epilogue,
                               int32_t n, int32_t k, int32_t tokens, bool with_bias)
{
    struct test_weight t = test_weight_make(dtype, n, k, (int32_t)(test_random() % 3), NULL);
    int32_t cols = out_cols(epilogue, n);
    size_t out_count = (size_t)tokens * (size_t)cols;
    float *in = test_floats((size_t)tokens * (size_t)k), *bias = test_floats((size_t)n);
    float *before = test_floats(out_count), *out = test_poisoned(out_count + 8);
    if (epilogue == KN_EPI_ADD) memcpy(out, before, out_count * sizeof *out);
    struct kn_gemm_args a = {&t.w, with_bias ? bias : NULL, tokens, in, epilogue, out};
    kn_gemm(kn, &a);
    for (int32_t i = 0; i < tokens; i++) {
        for (int32_t c = 0; c < cols; c++) {
            size_t at = (size_t)i * (size_t)cols + (size_t)c;
            double scale, want = reference(&t, epilogue, in + (size_t)i * (size_t)k, a.bias,
                                           before[at], c, &scale);
            double error = fabs((double)out[at] - want);
            if (!(error <= 1e-6 * scale + 1e-30))
                fail_msg("%s epilogue %d N %d K %d T %d: out[%d,%d] is %g, not %g", kn_name(kn),
                         epilogue, n, k, tokens, i, c, (double)out[at], want);
        }
    }
    for (size_t i = 0; i < 8; i++) assert_int_equal(kn_f32_bits(out[out_count + i]), UINT32_MAX);
    free(in), free(bias), free(before), free(out);
    test_weight_free(&t);
}

static void test_matches_fp64(void **state)
{
    (void)state;
    static const int32_t shapes[][2] = {{1, 1},    {5, 3},    {77, 131},
                                        {64, 128}, {130, 65}, {129, 300}};
    for (size_t isa = 0; isa < 2; isa++) {
        struct kn *kn = test_open(2, isas[isa]);
        for (int dtype = 0; dtype < KN_DTYPE_COUNT; dtype++)
            for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
                for (size_t t = 0; t < T_KINDS; t++)
                    check_against_fp64(kn, (enum kn_dtype)dtype, KN_EPI_STORE, shapes[s][0],
                                       shapes[s][1], token_counts[t], (t + s) % 2);
        kn_close(kn);
    }
}

static void test_epilogues_match_fp64(void **state)
{
    (void)state;
    static const enum kn_epilogue epilogues[] = {KN_EPI_RELU, KN_EPI_SWIGLU, KN_EPI_ADD,
                                                 KN_EPI_F32};
    for (size_t isa = 0; isa < 2; isa++) {
        struct kn *kn = test_open(2, isas[isa]);
        for (int dtype = 0; dtype < KN_DTYPE_COUNT; dtype++)
            for (size_t e = 0; e < 4; e++)
                for (size_t t = 0; t < T_KINDS; t++) {
                    int32_t n = epilogues[e] == KN_EPI_SWIGLU ? 80 : 83;
                    check_against_fp64(kn, (enum kn_dtype)dtype, epilogues[e], n, 147,
                                       token_counts[t], t % 2);
                }
        kn_close(kn);
    }
}

/* Rows of `part` against the same tokens of `whole`. */
static void check_rows_equal(const float *part, const float *whole, int32_t tokens, int32_t cols)
{
    assert_memory_equal(part, whole, (size_t)tokens * (size_t)cols * sizeof *part);
}

/* One computation of all tokens is the measure; every other way to the same rows must give the same
 * bits. */
static void check_bitwise(const struct kn_cpu_isa *isa, enum kn_dtype dtype,
                          enum kn_epilogue epilogue, int32_t n, int32_t k)
{
    struct test_weight t = test_weight_make(dtype, n, k, -1, NULL);
    int32_t cols = out_cols(epilogue, n);
    size_t out_count = (size_t)T_MAX * (size_t)cols;
    float *in = test_floats((size_t)T_MAX * (size_t)k), *bias = test_floats((size_t)n);
    float *before = test_floats(out_count);
    float *whole = test_poisoned(out_count), *part = test_poisoned(out_count);
    for (int threads = 1; threads <= 3; threads++) {
        struct kn *kn = test_open(threads, isa);
        for (int32_t split = -1; split <= t.w.tile_count; split++) {
            struct test_weight moved = test_weight_make(dtype, n, k, split, t.f);
            for (size_t i = 0; i < T_KINDS; i++) {
                /* The last token_counts[i] tokens, so that their places in the batch change too. */
                int32_t tokens = token_counts[i], skip = T_MAX - tokens;
                struct kn_gemm_args a = {&moved.w, bias, tokens, in + (size_t)skip * (size_t)k,
                                         epilogue, part};
                memcpy(part, before + (size_t)skip * (size_t)cols,
                       (size_t)tokens * (size_t)cols * sizeof *part);
                if (threads == 1 && split == -1 && i == 0) {
                    struct kn_gemm_args all = {&t.w, bias, T_MAX, in, epilogue, whole};
                    memcpy(whole, before, out_count * sizeof *whole);
                    kn_gemm(kn, &all);
                }
                kn_gemm(kn, &a);
                check_rows_equal(part, whole + (size_t)skip * (size_t)cols, tokens, cols);
            }
            test_weight_free(&moved);
        }
        kn_close(kn);
    }
    free(in), free(bias), free(before), free(whole), free(part);
    test_weight_free(&t);
}

static void test_rows_are_bitwise_equal(void **state)
{
    (void)state;
    for (size_t isa = 0; isa < 2; isa++)
        for (int dtype = 0; dtype < KN_DTYPE_COUNT; dtype++) {
            check_bitwise(isas[isa], (enum kn_dtype)dtype, KN_EPI_STORE, 150, 203);
            check_bitwise(isas[isa], (enum kn_dtype)dtype, KN_EPI_SWIGLU, 144, 136);
            check_bitwise(isas[isa], (enum kn_dtype)dtype, KN_EPI_ADD, 65, 129);
        }
}

/* A neighbour that is all NaN or infinite changes nothing, and reaches its own row. */
static void test_neighbours_do_not_mix(void **state)
{
    (void)state;
    enum { T = 7, N = 70, K = 100 };
    struct kn *kn = test_open(2, NULL);
    for (int dtype = 0; dtype < KN_DTYPE_COUNT; dtype++) {
        struct test_weight t = test_weight_make((enum kn_dtype)dtype, N, K, 1, NULL);
        float *in = test_floats(T * K), *clean = test_poisoned(T * N), *out = test_poisoned(T * N);
        struct kn_gemm_args a = {&t.w, NULL, T, in, KN_EPI_F32, clean};
        kn_gemm(kn, &a);
        for (int k = 0; k < K; k++) in[3 * K + k] = k % 2 ? NAN : INFINITY;
        a.out = out;
        kn_gemm(kn, &a);
        check_rows_equal(out, clean, 3, N);
        check_rows_equal(out + 4 * N, clean + 4 * N, 3, N);
        for (int n = 0; n < N; n++) assert_true(isnan(out[3 * N + n]));
        free(in), free(clean), free(out);
        test_weight_free(&t);
    }
    kn_close(kn);
}

/* silu over its whole range, through a weight of ones: no overflow, no NaN, error at the scale of
 * the result. */
static void test_swiglu_over_the_range(void **state)
{
    (void)state;
    enum { T = 2001 };
    float ones[16];
    for (int i = 0; i < 16; i++) ones[i] = 1.0f;
    for (size_t isa = 0; isa < 2; isa++) {
        struct kn *kn = test_open(1, isas[isa]);
        struct test_weight t = test_weight_make(KN_F32, 16, 1, -1, ones);
        static float in[T], out[T * 8];
        for (int i = 0; i < T; i++) in[i] = (float)(i - 1000) / 8.0f;
        struct kn_gemm_args a = {&t.w, NULL, T, in, KN_EPI_SWIGLU, out};
        kn_gemm(kn, &a);
        for (int i = 0; i < T; i++) {
            double g = (double)in[i], want = g / (1 + exp(-g)) * g;
            for (int c = 0; c < 8; c++)
                assert_true(fabs((double)out[i * 8 + c] - want) <= 1e-6 * fabs(want) + 1e-33);
        }
        test_weight_free(&t);
        kn_close(kn);
    }
}

/* A product counts the bytes of its weight by tier, and a window changes nothing but is taken. */
static void test_traffic_by_tier(void **state)
{
    (void)state;
    enum { T = 3, N = 200, K = 300 };
    struct kn *kn = test_open(2, NULL);
    struct test_weight t = test_weight_make(KN_BF16, N, K, 1, NULL);
    float *in = test_floats(T * K), *out = test_poisoned(T * N), *again = test_poisoned(T * N);
    struct kn_gemm_args a = {&t.w, NULL, T, in, KN_EPI_F32, out};
    struct kn_traffic traffic;
    uint64_t sum = 0;
    kn_gemm(kn, &a);
    kn_set_window(kn, 1, &(struct kn_window){1, 1, 1});
    kn_set_window(kn, 1, &(struct kn_window){KN_WINDOW_NO_BOUND, KN_WINDOW_NO_BOUND, 91});
    a.out = again;
    kn_gemm(kn, &a);
    check_rows_equal(again, out, T, N);
    for (int i = 0; i < KN_TIER_MAX; i++) {
        kn_traffic(kn, i, &traffic);
        assert_int_equal(traffic.bytes,
                         2 * (uint64_t)t.w.span[i].tile_count * kn_weight_tile_bytes(&t.w));
        assert_int_equal(traffic.trip_count, 0);
        sum += traffic.bytes;
    }
    assert_int_equal(sum, 2 * 4 * kn_weight_tile_bytes(&t.w));
    assert_true(t.w.span[0].tile_count > 0 && t.w.span[2].tile_count > 0);
    free(in), free(out), free(again);
    test_weight_free(&t);
    kn_close(kn);
}

static void test_default_windows(void **state)
{
    (void)state;
    const struct kn_window host = kn_window_default(KN_MEM_HOST);
    const struct kn_window peer = kn_window_default(KN_MEM_PEER);
    assert_int_equal(host.ctas * host.blocks * KN_BLOCK_BYTES, 512 << 10);
    assert_int_equal(peer.ctas * peer.blocks * KN_BLOCK_BYTES, 1 << 20);
    assert_int_equal(kn_window_default(KN_MEM_LOCAL).ctas, KN_WINDOW_NO_BOUND);
}

int main(void)
{
    test_seed();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matches_fp64),           cmocka_unit_test(test_epilogues_match_fp64),
        cmocka_unit_test(test_rows_are_bitwise_equal), cmocka_unit_test(test_neighbours_do_not_mix),
        cmocka_unit_test(test_swiglu_over_the_range),  cmocka_unit_test(test_traffic_by_tier),
        cmocka_unit_test(test_default_windows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
