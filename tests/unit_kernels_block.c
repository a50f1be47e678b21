/*
 * unit_kernels_block.c - the byte image of weights and the geometry of KV pages: where each element
 * lies, that packing and reading back are inverses, that padding is zero whatever was there before,
 * and that narrowing rounds rightly.
 */
#include "kernels/e4m3.h"
#include "tests/kernels_common.h"

static void test_swizzle_is_a_permutation(void **state)
{
    (void)state;
    static unsigned char seen[KN_ATOM_BYTES];
    memset(seen, 0, sizeof seen);
    for (unsigned r = 0; r < KN_ATOM_ROWS; r++) {
        for (unsigned b = 0; b < KN_ATOM_ROW_BYTES; b++) {
            size_t at = kn_atom_offset(r, b);
            assert_true(at < KN_ATOM_BYTES);
            assert_int_equal(at / KN_ATOM_ROW_BYTES, r);
            assert_int_equal(at % 16, b % 16);
            assert_int_equal(seen[at]++, 0);
        }
    }
    /* The 128-byte swizzle: bits 4-6 of the address are exclusive-ored with bits 7-9. */
    assert_int_equal(kn_atom_offset(0, 17), 17);
    assert_int_equal(kn_atom_offset(1, 0), 128 + 16);
    assert_int_equal(kn_atom_offset(5, 0x33), 5 * 128 + 0x63);
    assert_int_equal(kn_atom_offset(63, 127), 63 * 128 + 15);
}

static void test_weight_geometry(void **state)
{
    (void)state;
    struct kn_weight w;
    kn_weight_init(&w, KN_BF16, 64, 128);
    assert_int_equal(w.tile_count, 1);
    assert_int_equal(kn_weight_tile_bytes(&w), 16384);
    kn_weight_init(&w, KN_BF16, 65, 129);
    assert_int_equal(w.tile_count, 2);
    assert_int_equal(w.blocks_per_tile, 2);
    kn_weight_init(&w, KN_F32, 1, 65);
    assert_int_equal(w.blocks_per_tile, 2);
    kn_weight_init(&w, KN_F16, 151936, 4096);
    assert_int_equal(w.tile_count, 2374);
    assert_int_equal(kn_weight_tile_bytes(&w), 32 * 16384);
}

/* Reads the tile byte by byte from the header's description, not with kn_weight_at. */
static float element_of(const struct kn_weight *w, int32_t row, int32_t col)
{
    size_t element = w->dtype == KN_F32 ? 4 : 2;
    size_t per_block = 256 / element, per_atom = 128 / element;
    size_t block = (size_t)col / per_block, atom = (size_t)col % per_block / per_atom;
    const char *base = (const char *)kn_weight_tile(w, row / 64) + block * 16384 + atom * 8192;
    size_t byte = (size_t)col % per_atom * element, r = (size_t)row % 64;
    size_t address = r * 128 + byte;
    address ^= (address >> 7 & 7) << 4;
    return kn_load(w->dtype, base + address, 0);
}

static void check_round_trip(enum kn_dtype dtype, int32_t rows, int32_t cols, int32_t split)
{
    struct test_weight t = test_weight_make(dtype, rows, cols, split, NULL);
    for (int32_t r = 0; r < rows; r++)
        for (int32_t c = 0; c < cols; c++) {
            float want = t.f[(size_t)r * (size_t)cols + (size_t)c];
            assert_true(kn_weight_at(&t.w, r, c) == want);
            assert_true(element_of(&t.w, r, c) == want);
        }
    /* Every padding element is zero although the memory was full of NaN. */
    int32_t padded_cols = t.w.blocks_per_tile * 256 / (int32_t)kn_dtype_bytes(dtype);
    for (int32_t r = 0; r < t.w.tile_count * 64; r++)
        for (int32_t c = r < rows ? cols : 0; c < padded_cols; c++)
            assert_int_equal(kn_f32_bits(element_of(&t.w, r, c)), 0);
    test_weight_free(&t);
}

static void test_pack_round_trip(void **state)
{
    (void)state;
    static const int32_t shapes[][2] = {{1, 1},    {64, 128}, {63, 127},
                                        {65, 129}, {130, 7},  {200, 333}};
    for (int dtype = 0; dtype < KN_DTYPE_COUNT; dtype++)
        for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
            for (int32_t split = -1; split <= 2; split++)
                check_round_trip((enum kn_dtype)dtype, shapes[i][0], shapes[i][1], split);
}

/* All nine conversions of kn_pack_tile, from rows at odd addresses, with a NULL row among them. */
static void test_pack_converts(void **state)
{
    (void)state;
    enum { COLS = 71 };
    for (int from = 0; from < KN_DTYPE_COUNT; from++) {
        for (int to = 0; to < KN_DTYPE_COUNT; to++) {
            struct kn_weight w;
            kn_weight_init(&w, (enum kn_dtype)to, 3, COLS);
            char *tile = aligned_alloc(KN_ALIGN, kn_weight_tile_bytes(&w));
            assert_non_null(tile);
            memset(tile, 0xFF, kn_weight_tile_bytes(&w));
            w.span[0] = (struct kn_span){tile, 0, 1};
            static char row[2][COLS * 4 + 1];
            float value[2][COLS];
            for (int r = 0; r < 2; r++)
                for (int c = 0; c < COLS; c++) {
                    value[r][c] = test_round_to((enum kn_dtype)from, test_random_float() * 3);
                    kn_store((enum kn_dtype)from, row[r] + 1, (size_t)c, value[r][c]);
                }
            const void *rows[KN_TILE_ROWS] = {row[0] + 1, NULL, row[1] + 1};
            kn_pack_tile(&w, tile, rows, (enum kn_dtype)from);
            for (int c = 0; c < COLS; c++) {
                float first = test_round_to((enum kn_dtype)to, value[0][c]);
                float third = test_round_to((enum kn_dtype)to, value[1][c]);
                assert_true(kn_weight_at(&w, 0, c) == first);
                assert_true(kn_weight_at(&w, 1, c) == 0.0f);
                assert_true(kn_weight_at(&w, 2, c) == third);
            }
            free(tile);
        }
    }
}

static double double_of_f16(uint16_t h)
{
    int exponent = h >> 10 & 31, fraction = h & 1023;
    double v = exponent == 0    ? ldexp(fraction, -24)
               : exponent == 31 ? (fraction ? NAN : INFINITY)
                                : ldexp(1024 + fraction, exponent - 25);
    return h & 0x8000 ? -v : v;
}

static double double_of_bf16(uint16_t h)
{
    int exponent = h >> 7 & 255, fraction = h & 127;
    double v = exponent == 0     ? ldexp(fraction, -133)
               : exponent == 255 ? (fraction ? NAN : INFINITY)
                                 : ldexp(128 + fraction, exponent - 134);
    return h & 0x8000 ? -v : v;
}

static void test_widening_is_exact(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        double f16 = double_of_f16((uint16_t)h), bf16 = double_of_bf16((uint16_t)h);
        float got_f16 = kn_f32_from_f16((uint16_t)h), got_bf16 = kn_f32_from_bf16((uint16_t)h);
        assert_true(isnan(f16) ? isnan(got_f16) : (double)got_f16 == f16);
        assert_true(isnan(bf16) ? isnan(got_bf16) : (double)got_bf16 == bf16);
        assert_int_equal(signbit(got_f16) != 0, h >> 15);
        assert_int_equal(signbit(got_bf16) != 0, h >> 15);
        /* And narrowing gives back what it came from, NaN apart. */
        if (!isnan(f16)) assert_int_equal(kn_f16_from_f32(got_f16), h);
        if (!isnan(bf16)) assert_int_equal(kn_bf16_from_f32(got_bf16), h);
    }
}

/* Between each finite value and the next: a hair below the middle, the middle (to even), a hair
 * above. */
static void test_narrowing_rounds_to_nearest_even(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x7C00; h++) {
        double low = double_of_f16((uint16_t)h);
        double high = h + 1 == 0x7C00 ? 65536.0 : double_of_f16((uint16_t)(h + 1));
        float middle = (float)((low + high) / 2);
        uint32_t even = h & 1 ? h + 1 : h;
        assert_int_equal(kn_f16_from_f32(nextafterf(middle, 0)), h);
        assert_int_equal(kn_f16_from_f32(middle), even);
        assert_int_equal(kn_f16_from_f32(nextafterf(middle, INFINITY)), h + 1);
        assert_int_equal(kn_f16_from_f32(-middle), even | 0x8000);
    }
    for (uint32_t h = 0; h < 0x7F80; h++) {
        float middle = kn_f32_from_bits(h << 16 | 0x8000);
        uint32_t even = h & 1 ? h + 1 : h;
        assert_int_equal(kn_bf16_from_f32(kn_f32_from_bits(kn_f32_bits(middle) - 1)), h);
        assert_int_equal(kn_bf16_from_f32(middle), even);
        assert_int_equal(kn_bf16_from_f32(kn_f32_from_bits(kn_f32_bits(middle) + 1)), h + 1);
        assert_int_equal(kn_bf16_from_f32(-middle), even | 0x8000);
    }
}

static void test_narrowing_special_values(void **state)
{
    (void)state;
    assert_int_equal(kn_f16_from_f32(INFINITY), 0x7C00);
    assert_int_equal(kn_f16_from_f32(-INFINITY), 0xFC00);
    assert_int_equal(kn_f16_from_f32(1e30f), 0x7C00);
    assert_int_equal(kn_f16_from_f32(-1e30f), 0xFC00);
    assert_int_equal(kn_f16_from_f32(0x1p-149f), 0);
    assert_int_equal(kn_f16_from_f32(-0.0f), 0x8000);
    assert_int_equal(kn_bf16_from_f32(INFINITY), 0x7F80);
    assert_int_equal(kn_bf16_from_f32(-INFINITY), 0xFF80);
    assert_int_equal(kn_bf16_from_f32(3.4028235e38f), 0x7F80); /* nearest is infinity */
    assert_int_equal(kn_bf16_from_f32(-0.0f), 0x8000);
    /* NaNs whose payload lies only in bits that are cut off must not become infinities. */
    static const uint32_t nans[] = {0x7F800001, 0xFF800001, 0x7FC00000, 0xFFFFFFFF, 0x7FFFFFFF};
    for (size_t i = 0; i < sizeof nans / sizeof nans[0]; i++) {
        float nan = kn_f32_from_bits(nans[i]);
        assert_true(isnan(kn_f32_from_f16(kn_f16_from_f32(nan))));
        assert_true(isnan(kn_f32_from_bf16(kn_bf16_from_f32(nan))));
        assert_int_equal(kn_f16_from_f32(nan) >> 15, nans[i] >> 31);
        assert_int_equal(kn_bf16_from_f32(nan) >> 15, nans[i] >> 31);
    }
}

static void test_kv_geometry(void **state)
{
    (void)state;
    static const struct {
        enum kn_dtype dtype;
        int32_t dim;
        size_t atoms;
    } cases[] = {{KN_BF16, 64, 1}, {KN_BF16, 128, 2}, {KN_F16, 80, 2}, {KN_F16, 256, 4},
                 {KN_F32, 64, 2},  {KN_F32, 80, 3},   {KN_F32, 1, 1},  {KN_BF16, 512, 8}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct kn_kv kv = {cases[i].dtype, 5, 3, cases[i].dim, {0}};
        assert_int_equal(kn_kv_head_bytes(&kv), 2 * cases[i].atoms * 8192);
        assert_int_equal(kn_kv_layer_bytes(&kv), 3 * kn_kv_head_bytes(&kv));
        assert_int_equal(kn_kv_page_bytes(&kv), 15 * kn_kv_head_bytes(&kv));
    }
    kn_page page = kn_page_make(3, 0x0ABCDEF);
    assert_int_equal(kn_page_tier(page), 3);
    assert_int_equal(kn_page_index(page), 0x0ABCDEF);
}

/* Where kernels.h says that element d of a token's K (value: of its V) lies. */
static size_t kv_byte(const struct kn_kv *kv, bool value, size_t row, size_t d)
{
    const size_t dim = (size_t)kv->head_dim, size = kn_dtype_bytes(kv->dtype);
    size_t atoms = (dim * size + 127) / 128, byte = d * size;
    if (value && kv->dtype == KN_E4M3 && dim <= 64) byte += 64; /* beside K */
    else if (value) byte += atoms * 128;
    size_t address = row * 128 + byte % 128;
    address ^= (address >> 7 & 7) << 4;
    return byte / 128 * 8192 + address;
}

/* A row is put where it belongs, zeros behind it, and nothing else is touched. */
static void check_kv_row(const struct kn_kv *kv, bool value, unsigned row)
{
    const size_t bytes = kn_kv_head_bytes(kv), dim = (size_t)kv->head_dim;
    const size_t size = kn_dtype_bytes(kv->dtype);
    const size_t unit = kv->dtype == KN_E4M3 && dim <= 64 ? 64 : 128 / size;
    char *head = malloc(bytes), *want = malloc(bytes);
    float *x = test_floats(dim);
    uint8_t bits[KN_HEAD_DIM_MAX];
    assert_true(head && want);
    memset(head, 0xA5, bytes);
    memset(want, 0xA5, bytes);
    const uint8_t exponent = kn_e4m3_row(x, kv->head_dim, bits);
    for (size_t d = 0; d < (dim + unit - 1) / unit * unit; d++) {
        char *to = want + kv_byte(kv, value, row, d);
        if (kv->dtype == KN_E4M3) *to = d < dim ? (char)bits[d] : 0;
        else kn_store(kv->dtype, to, 0, d < dim ? x[d] : 0.0f);
    }
    if (kv->dtype == KN_E4M3) want[bytes - (value ? 64 : 128) + row] = (char)exponent;
    kn_kv_put_row(kv, head, value, row, x);
    assert_memory_equal(head, want, bytes);
    free(head), free(want), free(x);
}

static void test_kv_rows(void **state)
{
    (void)state;
    static const int32_t dims[] = {1, 33, 64, 65, 80, 128, 130, 512};
    for (int dtype = 0; dtype <= KN_E4M3; dtype++)
        for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++)
            for (unsigned row = 0; row < 64; row += 9)
                for (int value = 0; value < 2; value++) {
                    struct kn_kv kv = {(enum kn_dtype)dtype, 1, 1, dims[i], {0}};
                    check_kv_row(&kv, value, row);
                }
}

static void test_glu_rows_interleave(void **state)
{
    (void)state;
    unsigned char seen[2 * 40] = {0};
    for (int32_t i = 0; i < 40; i++) {
        seen[kn_glu_row(i, false)]++;
        seen[kn_glu_row(i, true)]++;
        assert_int_equal(kn_glu_row(i, true), kn_glu_row(i, false) + 8);
    }
    for (size_t i = 0; i < sizeof seen; i++) assert_int_equal(seen[i], 1);
}

int main(void)
{
    test_seed();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_swizzle_is_a_permutation),
        cmocka_unit_test(test_weight_geometry),
        cmocka_unit_test(test_pack_round_trip),
        cmocka_unit_test(test_pack_converts),
        cmocka_unit_test(test_widening_is_exact),
        cmocka_unit_test(test_narrowing_rounds_to_nearest_even),
        cmocka_unit_test(test_narrowing_special_values),
        cmocka_unit_test(test_kv_geometry),
        cmocka_unit_test(test_kv_rows),
        cmocka_unit_test(test_glu_rows_interleave),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
