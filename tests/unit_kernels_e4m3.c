/*
 * unit_kernels_e4m3.c - KV in fp8: the numbers against all of e4m3, rows against the bounds that
 * e4m3.h states, the layout, and rows of NaN, infinities and zeros on their way through attention.
 */
#include "kernels/e4m3.h"
#include "tests/kernels_common.h"

/* e4m3 as its definition has it: sign, four bits of exponent with bias 7, three of mantissa; no
 * infinity; all ones is NaN. */
static double e4m3_value(unsigned bits)
{
    const int exponent = (int)(bits >> 3 & 15), mantissa = (int)(bits & 7);
    if ((bits & 0x7F) == 0x7F) return NAN;
    const double magnitude =
        exponent ? ldexp(1 + mantissa / 8.0, exponent - 7) : ldexp(mantissa / 8.0, -6);
    return bits & 0x80 ? -magnitude : magnitude;
}

static void test_every_number_widens(void **state)
{
    (void)state;
    for (unsigned bits = 0; bits < 256; bits++) {
        const double want = e4m3_value(bits), got = (double)kn_f32_from_e4m3((uint8_t)bits);
        if (isnan(want)) assert_true(isnan(got));
        else assert_true(got == want && !signbit(got) == !signbit(want));
        if (!isnan(want)) assert_int_equal(kn_e4m3_from_f32((float)want), bits);
    }
}

/* Between two neighbours: to the nearer, halfway to the even one. */
static void test_rounding(void **state)
{
    (void)state;
    for (unsigned bits = 0; bits < 0x7E; bits++) {
        const float low = (float)e4m3_value(bits), high = (float)e4m3_value(bits + 1);
        const float middle = (low + high) / 2; /* exact */
        const unsigned even = bits & 1 ? bits + 1 : bits;
        assert_int_equal(kn_e4m3_from_f32(middle), even);
        assert_int_equal(kn_e4m3_from_f32(nextafterf(middle, low)), bits);
        assert_int_equal(kn_e4m3_from_f32(nextafterf(middle, high)), bits + 1);
        assert_int_equal(kn_e4m3_from_f32(-middle), even | 0x80);
        for (int i = 0; i < 100; i++) {
            const float x = low + (high - low) * (test_random_float() + 1) / 2;
            const unsigned got = kn_e4m3_from_f32(x);
            assert_true(fabs(e4m3_value(got) - (double)x) <= (double)(high - low) / 2);
        }
    }
    assert_int_equal(kn_e4m3_from_f32(449.0f), 0x7E);
    assert_int_equal(kn_e4m3_from_f32(1e30f), 0x7E);
    assert_int_equal(kn_e4m3_from_f32(-INFINITY), 0xFE);
    assert_int_equal(kn_e4m3_from_f32(NAN) & 0x7F, 0x7F);
    assert_int_equal(kn_e4m3_from_f32(0x1p-149f), 0);
}

/* The smallest scale that holds the largest magnitude, within its limits. */
static void test_exponents(void **state)
{
    (void)state;
    for (int k = -40; k <= 20; k++) {
        const int kept = k < -32 ? -32 : k > 7 ? 7 : k, above = k < -32 ? -32 : k >= 7 ? 7 : k + 1;
        const float most = ldexpf(448, k);
        assert_int_equal(kn_e4m3_exponent(kn_f32_bits(most)), 127 + kept);
        assert_int_equal(kn_e4m3_exponent(kn_f32_bits(nextafterf(most, INFINITY))), 127 + above);
        assert_true(kn_e4m3_scale((uint32_t)(127 + kept)) == ldexpf(1, kept));
    }
    assert_int_equal(kn_e4m3_exponent(0), KN_E4M3_MIN);
    assert_int_equal(kn_e4m3_exponent(kn_f32_bits(INFINITY)), KN_E4M3_NAN);
    assert_int_equal(kn_e4m3_exponent(kn_f32_bits(NAN)), KN_E4M3_NAN);
}

static void test_rows_keep_their_bounds(void **state)
{
    (void)state;
    for (int round = 0; round < 2000; round++) {
        float x[128];
        uint8_t out[128];
        const int n = 1 + round % 128;
        const float wide = ldexpf(1, round % 83 - 50); /* 2^-50 .. 2^32 */
        for (int i = 0; i < n; i++) x[i] = wide * test_random_float() * (i % 3 ? 1.0f : 0x1p-9f);
        const uint8_t exponent = kn_e4m3_row(x, n, out);
        const int k = exponent - 127;
        for (int i = 0; i < n; i++) {
            const double want = (double)x[i], magnitude = fabs(want);
            const double got = (double)(kn_f32_from_e4m3(out[i]) * kn_e4m3_scale(exponent));
            const double error = fabs(got - want);
            if (magnitude > 57344) assert_true(got == (want > 0 ? 57344 : -57344));
            else if (magnitude >= ldexp(1, k - 6)) assert_true(error <= magnitude * 0x1p-4);
            else assert_true(error <= ldexp(1, k - 10));
            if (k == -32 && magnitude < ldexp(1, -38)) assert_true(error <= 0x1p-42);
        }
    }
}

static void test_rows_of_nan(void **state)
{
    (void)state;
    static const float bad[] = {INFINITY, -INFINITY, NAN};
    for (int i = 0; i < 3; i++) {
        float x[5] = {1, 2, bad[i], 4, 5};
        uint8_t out[5];
        const uint8_t exponent = kn_e4m3_row(x, 5, out);
        assert_int_equal(exponent, KN_E4M3_NAN);
        for (int d = 0; d < 5; d++)
            assert_true(isnan(kn_f32_from_e4m3(out[d])) && isnan(kn_e4m3_scale(exponent)));
    }
}

/* Every element has a byte of its own, inside the head; 128 dimensions and more take half of bf16's
 * bytes, and 64 too. */
static void test_layout(void **state)
{
    (void)state;
    static const int32_t dims[] = {1, 33, 64, 65, 80, 128, 130, 256, 512};
    for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++) {
        struct kn_kv kv = {KN_E4M3, 3, 2, dims[i], {0}}, wide = {KN_BF16, 3, 2, dims[i], {0}};
        const size_t bytes = kn_kv_head_bytes(&kv);
        const int32_t width = kn_e4m3_width(dims[i]);
        assert_int_equal(bytes, 2 * (size_t)width * 64 + 128);
        if (dims[i] % 64 == 0) assert_int_equal(bytes, kn_kv_head_bytes(&wide) / 2 + 128);
        assert_int_equal(bytes % 128, 0);
        assert_int_equal(kn_kv_page_bytes(&kv), 6 * bytes);
        char *seen = calloc(bytes, 1);
        assert_non_null(seen);
        for (int value = 0; value < 2; value++)
            for (unsigned row = 0; row < 64; row++)
                for (int32_t d = 0; d < width; d++) {
                    const size_t at = kn_e4m3_at(dims[i], value, row, d);
                    assert_true(at < bytes - 128 && !seen[at]);
                    seen[at] = 1;
                    if (d % 16) assert_int_equal(at, kn_e4m3_at(dims[i], value, row, d - 1) + 1);
                }
        free(seen);
    }
}

/* --- through the operations ------------------------------------------------------------------- */

enum { DIM = 64, KV_HEADS = 2, Q_HEADS = 4, HEADS = Q_HEADS + 2 * KV_HEADS, COUNT = 70 };

/* out[COUNT, Q_HEADS * DIM] of a prompt whose QKV product is qkv [COUNT, HEADS * DIM]. */
static void run(enum kn_dtype dtype, const float *qkv, float *out)
{
    struct kn *kn = test_open(2, NULL);
    struct kn_kv kv = {dtype, 1, KV_HEADS, DIM, {0}};
    const size_t pool = 2 * kn_kv_page_bytes(&kv), count = (size_t)COUNT * HEADS * DIM;
    kv.base[0] = aligned_alloc(KN_ALIGN, (pool + KN_ALIGN - 1) / KN_ALIGN * KN_ALIGN);
    float *in = malloc(count * sizeof *in);
    assert_true(kv.base[0] && in);
    memset(kv.base[0], 0xFF, pool);
    memcpy(in, qkv, count * sizeof *in);
    int32_t positions[COUNT], token_seq[COUNT] = {0};
    for (int32_t i = 0; i < COUNT; i++) positions[i] = i;
    const struct kn_seq seq = {0, COUNT, COUNT, 0};
    const kn_page pages[] = {kn_page_make(0, 1), kn_page_make(0, 0)};
    struct kn_batch batch = {.token_count = COUNT,
                             .positions = positions,
                             .token_seq = token_seq,
                             .seq_count = 1,
                             .seqs = &seq,
                             .pages = pages};
    struct kn_qkv_args append = {.qkv = in, .q_heads = Q_HEADS, .kv = &kv};
    kn_qkv(kn, &batch, &append);
    struct kn_attention_args attend = {in, Q_HEADS, 0.125f, 0, &kv, 0, out};
    kn_attention(kn, &batch, &attend);
    free(kv.base[0]), free(in);
    kn_close(kn);
}

/* The output's distance from fp32 KV's: of values each within 2^-4 of themselves an average is
 * within 2^-4 of the largest, and scores that are off by `shift` at most move weights by that
 * factor: |out - out32| <= (2^-4 + (1 + 2^-4) * (e^(2 shift) - 1)) * max |v|. */
static void test_attention_stays_near_fp32(void **state)
{
    (void)state;
    float *qkv = test_floats((size_t)COUNT * HEADS * DIM);
    float *want = test_poisoned((size_t)COUNT * Q_HEADS * DIM);
    float *got = test_poisoned((size_t)COUNT * Q_HEADS * DIM);
    run(KN_F32, qkv, want);
    run(KN_E4M3, qkv, got);
    double shift = 0;
    for (size_t t = 0; t < COUNT; t++)
        for (size_t h = 0; h < Q_HEADS; h++) {
            double sum = 0; /* of |q|, keys being below 1 */
            for (size_t d = 0; d < DIM; d++)
                sum += fabs((double)qkv[t * HEADS * DIM + h * DIM + d]);
            shift = fmax(shift, 0.125 * 0x1p-4 * sum);
        }
    const double bound = 0x1p-4 + (1 + 0x1p-4) * expm1(2 * shift);
    double most = 0, square = 0;
    for (size_t i = 0; i < (size_t)COUNT * Q_HEADS * DIM; i++) {
        const double error = fabs((double)got[i] - (double)want[i]);
        assert_true(error <= bound);
        most = fmax(most, error);
        square += error * error;
    }
    /* Errors are of either sign: far below what they could add up to. */
    assert_true(most <= 0.08 && sqrt(square / (COUNT * Q_HEADS * DIM)) <= 0.02);
    free(qkv), free(want), free(got);
}

/* A row with an infinity makes NaN of what sees it, and of nothing else. */
static void test_infinities_show(void **state)
{
    (void)state;
    for (int value = 0; value < 2; value++) {
        float *qkv = test_floats((size_t)COUNT * HEADS * DIM);
        float *out = test_poisoned((size_t)COUNT * Q_HEADS * DIM);
        const size_t bad = 50; /* its row of the first kv-head */
        qkv[bad * HEADS * DIM + (size_t)(Q_HEADS + value * KV_HEADS) * DIM + 9] = INFINITY;
        run(KN_E4M3, qkv, out);
        for (size_t t = 0; t < COUNT; t++)
            for (size_t h = 0; h < Q_HEADS; h++)
                for (size_t d = 0; d < DIM; d++)
                    assert_int_equal(isnan(out[(t * Q_HEADS + h) * DIM + d]),
                                     t >= bad && h < Q_HEADS / KV_HEADS);
        free(qkv), free(out);
    }
}

int main(void)
{
    test_seed();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_number_widens),
        cmocka_unit_test(test_rounding),
        cmocka_unit_test(test_exponents),
        cmocka_unit_test(test_rows_keep_their_bounds),
        cmocka_unit_test(test_rows_of_nan),
        cmocka_unit_test(test_layout),
        cmocka_unit_test(test_attention_stays_near_fp32),
        cmocka_unit_test(test_infinities_show),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
