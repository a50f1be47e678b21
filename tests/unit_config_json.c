/* The strict JSON check: what must pass, what must not, and where the error is said to be. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/json.h"

static const struct json_limits small = {.bytes_max = 1 << 20, .nodes_max = 1000, .depth_max = 16};

static enum status check(const char *text, char *err)
{
    return json_check(text, strlen(text), &small, err);
}

static void test_valid(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "null",
        " true ",
        "false",
        "0",
        "-0",
        "1.5e-3",
        "1E+2",
        "\"\"",
        "[]",
        "{}",
        "[ ]",
        "{ }",
        "\"\\u00e9\\n\\\"\\\\\\/\\b\\f\\r\\t\"",
        "\"\\ud83d\\ude00\"",
        "\"\xF0\x9F\x98\x80\"",
        "[1,[2,[3,{}]],\"x\"]",
        "{\"a\":1,\"b\":{\"a\":2},\"A\":3}",
        "\t\r\n[1\n,\n2]\n",
        "{\"\":0}",
        "[[],[],{}]",
        "123456789012345678901234567890",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        char err[ERR_CAP] = "";
        if (check(texts[i], err)) fail_msg("%s: %s", texts[i], err);
        cJSON *tree;
        assert_int_equal(json_parse(texts[i], strlen(texts[i]), &small, &tree, err), ST_OK);
        cJSON_Delete(tree);
    }
}

static void test_invalid(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "",
        "  ",
        "nul",
        "nulll",
        "True",
        "+1",
        "01",
        "-",
        "1.",
        ".5",
        "1e",
        "1e+",
        "0x10",
        "1e999",
        "-1e999",
        "NaN",
        "Infinity",
        "\"",
        "\"\\\"",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u12g4\"",
        "\"\\u0000\"",
        "\"\\ud800\"",
        "\"\\ud800\\u0041\"",
        "\"\\udc00\"",
        "\"\x01\"",
        "\"\n\"",
        "\"\x80\"",
        "\"\xC0\xAF\"",
        "\"\xED\xA0\x80\"",
        "\"\xF4\x90\x80\x80\"",
        "\"\xE2\x82\"",
        "[",
        "]",
        "[1",
        "[1,",
        "[1,]",
        "[,1]",
        "[1 2]",
        "{",
        "}",
        "{\"a\"",
        "{\"a\":",
        "{\"a\":1",
        "{\"a\":1,}",
        "{,}",
        "{1:2}",
        "{a:1}",
        "{\"a\" 1}",
        "[1}",
        "{\"a\":1]",
        "[] []",
        "1 2",
        "{} x",
        "'a'",
        "[1] // c",
        "/**/1",
        "{\"a\":1,\"a\":2}",
        "{\"a\":1,\"\\u0061\":2}",
        "{\"\xC3\xA9\":1,\"\\u00e9\":2}",
        "{\"x\\n\":1,\"x\\u000a\":2}",
        "\xEF\xBB\xBF{}",
        "1234567890123456789012345678901234567890123456789012345678901234",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        char err[ERR_CAP] = "";
        if (check(texts[i], err) != ST_INVALID) fail_msg("accepted: %s", texts[i]);
        assert_non_null(strstr(err, "line "));
    }
}

static void test_embedded_nul(void **state)
{
    (void)state;
    char err[ERR_CAP];
    assert_int_equal(json_check("[1]\0", 4, &small, err), ST_INVALID);
    assert_int_equal(json_check("\"a\0b\"", 5, &small, err), ST_INVALID);
}

static void test_place(void **state)
{
    (void)state;
    char err[ERR_CAP];
    assert_int_equal(check("{\n  \"a\": 1,\n  \"b\": tru\n}", err), ST_INVALID);
    assert_non_null(strstr(err, "line 3 column 8"));
}

static void test_limits(void **state)
{
    (void)state;
    char err[ERR_CAP], deep[64];
    memset(deep, '[', 17);
    memset(deep + 17, ']', 17);
    deep[34] = '\0';
    assert_int_equal(check(deep, err), ST_INVALID);
    assert_non_null(strstr(err, "deep"));
    assert_int_equal(check(deep + 1, err), ST_INVALID); /* unbalanced */
    deep[33] = '\0';
    assert_int_equal(check(deep + 1, err), ST_OK);

    char many[4096] = "[0";
    for (int i = 0; i < 1000; i++) strcat(many, ",0");
    strcat(many, "]");
    assert_int_equal(check(many, err), ST_LIMIT);
    struct json_limits tiny = small;
    tiny.bytes_max = 4;
    assert_int_equal(json_check("[1,2]", 5, &tiny, err), ST_LIMIT);
}

static void test_nesting_bomb(void **state)
{
    (void)state;
    size_t n = 1 << 20;
    char *text = malloc(n), err[ERR_CAP];
    memset(text, '[', n);
    assert_int_equal(json_check(text, n, &small, err), ST_INVALID);
    free(text);
}

/* Keys that differ only in later bytes, and the same key in sibling objects. */
static void test_many_keys(void **state)
{
    (void)state;
    char text[32768] = "[{", err[ERR_CAP];
    size_t n = 2;
    for (int i = 0; i < 400; i++)
        n += (size_t)sprintf(text + n, "%s\"key%d\":%d", i ? "," : "", i, i);
    n += (size_t)sprintf(text + n, "},{\"key0\":1,\"key1\":2}]");
    assert_int_equal(json_check(text, n, &small, err), ST_OK);
    n -= 2;
    n += (size_t)sprintf(text + n, ",\"key\\u0031\":3}]");
    assert_int_equal(json_check(text, n, &small, err), ST_INVALID);
    assert_non_null(strstr(err, "twice"));
}

static void test_getters(void **state)
{
    (void)state;
    char err[ERR_CAP];
    const char *text = "{\"i\":7,\"f\":1.5,\"b\":true,\"s\":\"x\",\"n\":null,\"big\":1e300}";
    cJSON *tree;
    int64_t i;
    double d;
    bool b;
    const char *s;
    assert_int_equal(json_parse(text, strlen(text), &small, &tree, err), ST_OK);
    assert_int_equal(json_get_int(tree, "i", 0, 10, -1, &i, err), ST_OK);
    assert_int_equal(i, 7);
    assert_int_equal(json_get_int(tree, "n", 0, 10, -1, &i, err), ST_OK);
    assert_int_equal(i, -1);
    assert_int_equal(json_get_int(tree, "I", 0, 10, 3, &i, err), ST_OK);
    assert_int_equal(i, 3);
    assert_int_equal(json_get_int(tree, "f", 0, 10, 0, &i, err), ST_INVALID);
    assert_non_null(strstr(err, "'f'"));
    assert_int_equal(json_get_int(tree, "i", 0, 6, 0, &i, err), ST_INVALID);
    assert_int_equal(json_get_int(tree, "big", 0, INT64_MAX, 0, &i, err), ST_INVALID);
    assert_int_equal(json_get_int(tree, "s", 0, 6, 0, &i, err), ST_INVALID);
    assert_int_equal(json_get_double(tree, "f", 0, 2, 0, &d, err), ST_OK);
    assert_true(d == 1.5);
    assert_int_equal(json_get_bool(tree, "b", false, &b, err), ST_OK);
    assert_true(b);
    assert_int_equal(json_get_bool(tree, "i", false, &b, err), ST_INVALID);
    assert_int_equal(json_get_string(tree, "s", "", &s, err), ST_OK);
    assert_string_equal(s, "x");
    assert_int_equal(json_get_string(tree, "b", "", &s, err), ST_INVALID);
    cJSON_Delete(tree);
}

/* 1.0 is told from 1, and an integer too long for a double is kept, wherever they stand. */
static void test_spellings(void **state)
{
    (void)state;
    static const struct {
        const char *number, *text;
        bool real;
    } c[] = {{"1", NULL, false},
             {"-7", NULL, false},
             {"1.0", NULL, true},
             {"-0.0", NULL, true},
             {"0.5", NULL, true},
             {"1e2", NULL, true},
             {"3E+0", NULL, true},
             {"9007199254740991", NULL, false},
             {"9007199254740993", "9007199254740993", false},
             {"9007199254740994", "9007199254740994", false},
             {"-1234567890123456789", "-1234567890123456789", false},
             {"1e300", NULL, true}};
    enum { COUNT = sizeof c / sizeof *c };
    char text[512], err[ERR_CAP];
    for (int first = 0; first < COUNT; first++)
        for (int second = 0; second < COUNT; second++) {
            cJSON *tree, *copy;
            snprintf(text, sizeof text,
                     "{\"1.0\":\"2.5 \\\"-3\\\\\",\"a\":[%s,[],true],\"b 9e9\":{\"c\":%s}}",
                     c[first].number, c[second].number);
            assert_int_equal(json_parse(text, strlen(text), &small, &tree, err), ST_OK);
            copy = cJSON_Duplicate(tree, true);
            for (int k = 0; k < 2; k++) {
                const cJSON *of = k ? copy : tree, *n[2];
                n[0] = json_member(of, "a")->child;
                n[1] = json_member(json_member(of, "b 9e9"), "c");
                for (int i = 0; i < 2; i++) {
                    int which = i ? second : first;
                    assert_true(cJSON_IsNumber(n[i]));
                    assert_int_equal(json_is_real(n[i]), c[which].real);
                    const char *kept = json_integer_text(n[i]);
                    assert_int_equal(kept != NULL, c[which].text != NULL);
                    if (kept) assert_string_equal(kept, c[which].text);
                }
            }
            cJSON_Delete(copy);
            cJSON_Delete(tree);
        }
}

static void test_files(void **state)
{
    (void)state;
    char err[ERR_CAP];
    cJSON *tree;
    assert_int_equal(json_parse_file("/nonexistent/x.json", &small, &tree, err), ST_NOT_FOUND);
    assert_non_null(strstr(err, "/nonexistent/x.json"));
    assert_int_equal(json_parse_file("/", &small, &tree, err), ST_INVALID);
    assert_null(tree);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_valid),        cmocka_unit_test(test_invalid),
        cmocka_unit_test(test_embedded_nul), cmocka_unit_test(test_place),
        cmocka_unit_test(test_limits),       cmocka_unit_test(test_nesting_bomb),
        cmocka_unit_test(test_many_keys),    cmocka_unit_test(test_getters),
        cmocka_unit_test(test_spellings),    cmocka_unit_test(test_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
