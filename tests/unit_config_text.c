/* Buffers, UTF-8, error sentences, sizes, times, random numbers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "config/buf.h"
#include "config/clock.h"
#include "config/random.h"
#include "config/size.h"
#include "config/utf8.h"

static void test_buf_bound(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, 10);
    buf_puts(&b, "12345");
    buf_printf(&b, "%d", 67890);
    assert_int_equal(buf_status(&b), ST_OK);
    assert_string_equal(b.data, "1234567890");
    buf_putc(&b, 'x');
    assert_int_equal(buf_status(&b), ST_LIMIT);
    buf_puts(&b, "");
    assert_int_equal(b.len, 10);
    buf_clear(&b);
    buf_puts(&b, "abc");
    buf_consume(&b, 2);
    assert_string_equal(b.data, "c");
    assert_int_equal(buf_status(&b), ST_OK);
    buf_deinit(&b);
}

static void test_buf_json_string(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, 1000);
    const char text[] = "a\"\\\n\x01\0\xC3\xA9\xFFz\xE2\x82";
    buf_put_json_string(&b, text, sizeof text - 1);
    assert_string_equal(
        b.data, "\"a\\\"\\\\\\n\\u0001\\u0000\xC3\xA9\xEF\xBF\xBDz\xEF\xBF\xBD\xEF\xBF\xBD\"");
    buf_deinit(&b);
}

/* Every code point encodes, has the length found, and decodes to itself; surrogates and beyond do
 * not occur. */
static void test_utf8_round_trip(void **state)
{
    (void)state;
    for (uint32_t cp = 0; cp < 0x110000; cp++) {
        if (cp >= 0xD800 && cp < 0xE000) continue;
        char bytes[4];
        size_t n = utf8_encode(cp, bytes);
        if (utf8_char_len(bytes, n) != n || utf8_decode(bytes, n) != cp) fail_msg("U+%04X", cp);
        for (size_t k = 1; k < n; k++)
            if (!utf8_is_partial(bytes, k) || utf8_char_len(bytes, k)) fail_msg("U+%04X cut", cp);
    }
}

static void test_utf8_invalid(void **state)
{
    (void)state;
    static const char *const bad[] = {"\x80",
                                      "\xC1\xBF",
                                      "\xE0\x9F\xBF",
                                      "\xED\xA0\x80",
                                      "\xF0\x8F\xBF\xBF",
                                      "\xF4\x90\x80\x80",
                                      "\xF5\x80\x80\x80",
                                      "\xFF",
                                      "\xE2\x28\xA1"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(utf8_char_len(bad[i], strlen(bad[i])), 0);
        assert_false(utf8_is_partial(bad[i], strlen(bad[i])));
    }
    assert_int_equal(utf8_valid_prefix("ab\xC3\xA9\xFF", 5), 4);
    assert_int_equal(utf8_valid_prefix("ab\xC3", 3), 2);
}

static void test_error_sentence(void **state)
{
    (void)state;
    char err[ERR_CAP], text[2 * ERR_CAP];
    assert_int_equal(err_set(NULL, ST_IO, "x"), ST_IO);
    for (size_t i = 0; i + 1 < sizeof text; i += 2) memcpy(text + i, "\xC3\xA9", 2);
    text[sizeof text - 2] = '\0';
    for (int shift = 0; shift < 2; shift++) {
        assert_int_equal(err_set(err, ST_LIMIT, "%s%s", shift ? "x" : "", text), ST_LIMIT);
        assert_int_equal(utf8_valid_prefix(err, strlen(err)), strlen(err));
        assert_true(strlen(err) >= ERR_CAP - 3);
    }
}

static void test_bytes(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t want;
    } good[] = {{"0", 0},
                {"512", 512},
                {"1KiB", 1024},
                {"1kb", 1000},
                {"1.5GiB", 3ull << 29},
                {"2M", 2000000},
                {"64GiB", 64ull << 30},
                {"1TiB", 1ull << 40},
                {"7B", 7}};
    static const char *const bad[] = {"",   "-1",  "x",    "1X",   "1KiBs", " 1",
                                      "1 ", "0.5", "0x10", "1e30", "KiB"};
    uint64_t v;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(size_parse(good[i].text, &v), ST_OK);
        assert_int_equal(v, good[i].want);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (size_parse(bad[i], &v) == ST_OK) fail_msg("accepted: %s", bad[i]);
    char text[SIZE_TEXT_CAP];
    assert_string_equal(size_text(0, text), "0 bytes");
    assert_string_equal(size_text(1023, text), "1023 bytes");
    assert_string_equal(size_text(1024, text), "1.00 KiB");
    assert_string_equal(size_text(3ull << 29, text), "1.50 GiB");
    assert_string_equal(size_text(UINT64_MAX, text), "16384.00 PiB");
}

static void test_times(void **state)
{
    (void)state;
    char text[CLOCK_TEXT_CAP];
    assert_string_equal(clock_text(0, text), "1970-01-01T00:00:00Z");
    assert_string_equal(clock_text(1709251199, text), "2024-02-29T23:59:59Z");
    assert_string_equal(clock_text(100000000000, text), "5138-11-16T09:46:40Z");
}

/* The published stream of seed 0; and any state begins one. */
static void test_random_stream(void **state)
{
    (void)state;
    static const uint64_t want[] = {0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F};
    uint64_t zero = 0;
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        assert_true(random_mix(zero) == want[i]);
        assert_true(random_next(&zero) == want[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_buf_bound),       cmocka_unit_test(test_buf_json_string),
        cmocka_unit_test(test_utf8_round_trip), cmocka_unit_test(test_utf8_invalid),
        cmocka_unit_test(test_error_sentence),  cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_times),           cmocka_unit_test(test_random_stream),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
