/*
 * Mutated JSON texts: the check never reads past the end, and whatever it accepts cJSON parses and
 * prints as a text that is accepted again.  DAKD_TEST_SEED chooses the run.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/json.h"

#define ROUNDS 200000
#define TEXT_MAX 256

static const struct json_limits limits = {.bytes_max = 1 << 16, .nodes_max = 200, .depth_max = 12};

static uint64_t state_word;

static uint32_t next_random(void)
{
    state_word = state_word * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(state_word >> 33);
}

static size_t mutate(char *text, size_t len)
{
    static const char alphabet[] =
        "{}[]\",:\\u0123456789abcdefDtrulsn+-.eE \n\xC3\xA9\xF0\x9F\x98\x80\x80\xFF";
    uint32_t edits = next_random() % 4;
    for (uint32_t i = 0; i < edits && len > 0; i++) {
        size_t at = next_random() % len;
        char c = alphabet[next_random() % (sizeof alphabet - 1)];
        switch (next_random() % 3) {
        case 0: text[at] = c; break;
        case 1:
            memmove(text + at, text + at + 1, len - at - 1);
            len--;
            break;
        default:
            if (len == TEXT_MAX) break;
            memmove(text + at + 1, text + at, len - at);
            text[at] = c;
            len++;
        }
    }
    return len;
}

/* The text in a block of exactly its size, so that a read past the end is seen by the sanitizer. */
static int accepted(const char *text, size_t len)
{
    char err[ERR_CAP] = "", *exact = malloc(len ? len : 1);
    assert_non_null(exact);
    memcpy(exact, text, len);
    enum status st = json_check(exact, len, &limits, err);
    cJSON *tree;
    if (st == ST_OK) {
        assert_int_equal(json_parse(exact, len, &limits, &tree, err), ST_OK);
        char *printed = cJSON_PrintUnformatted(tree);
        assert_non_null(printed);
        if (json_check(printed, strlen(printed), &limits, err))
            fail_msg("%s from %.*s: %s", printed, (int)len, text, err);
        free(printed);
        cJSON_Delete(tree);
    } else {
        assert_true(err[0] != '\0');
    }
    free(exact);
    return st == ST_OK;
}

static void test_mutations(void **state)
{
    static const char *const seeds[] = {
        "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"h\\u00e9 "
        "\\ud83d\\ude00\"}]}",
        "[1,-2.5e+3,0,true,false,null,\"\",{},[]]",
        "{\"a\":{\"b\":{\"c\":[[[[[1]]]]]}},\"\\u0061\\n\":1,\"z\":\"\xC3\xA9\xF0\x9F\x98\x80\"}",
    };
    (void)state;
    const char *seed = getenv("DAKD_TEST_SEED");
    state_word = seed ? strtoull(seed, NULL, 10) : 20261121;
    printf("seed %llu\n", (unsigned long long)state_word);
    int count = 0;
    for (int i = 0; i < ROUNDS; i++) {
        char text[TEXT_MAX];
        const char *from = seeds[next_random() % 3];
        memcpy(text, from, strlen(from));
        count += accepted(text, mutate(text, strlen(from)));
    }
    /* Some of both, or the mutations say nothing. */
    assert_in_range(count, ROUNDS / 10, ROUNDS * 9 / 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_mutations)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
