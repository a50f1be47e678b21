/* Stop strings against the definition: the text cut where a stop string first completes, whatever the pieces. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "config/buf.h"
#include "server/stop.h"

static uint64_t rng;

static uint32_t next_random(uint32_t below)
{
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return (uint32_t)(rng >> 33) % below;
}

static void set_of(struct srv_stop_set *set, const char *const *texts, int count)
{
    *set = (struct srv_stop_set){0};
    for (int i = 0; i < count; i++)
        assert_int_equal(srv_stop_set_add(set, texts[i], strlen(texts[i])), ST_OK);
}

/* The definition, by brute force: earliest end, then longest. */
static bool reference(const char *text, size_t len, const char *const *stops, int count,
                      size_t *begin, size_t *end)
{
    for (size_t e = 1; e <= len; e++) {
        size_t longest = 0;
        for (int i = 0; i < count; i++) {
            size_t n = strlen(stops[i]);
            if (n <= e && n > longest && !memcmp(text + e - n, stops[i], n)) longest = n;
        }
        if (longest == 0) continue;
        *begin = e - longest;
        *end = e;
        return true;
    }
    return false;
}

/* Feeds text in the given pieces, releasing all that may be released after each; checks that what was released never
 * has to be taken back.  Returns the released text in out. */
static bool run(const struct srv_stop_set *set, const char *text, const size_t *cuts, size_t cut_count,
                struct buf *out)
{
    struct srv_stop_scan scan = {0};
    struct srv_stop_hit hit;
    struct buf pending;
    size_t at = 0;
    bool found = false;
    buf_init(&pending, 1 << 20);
    for (size_t c = 0; c < cut_count && !found; c++) {
        size_t from = pending.len;
        buf_put(&pending, text + at, cuts[c] - at);
        at = cuts[c];
        found = srv_stop_feed(set, &scan, pending.data, from, pending.len, &hit);
        size_t release = found ? hit.begin : pending.len - srv_stop_held(set, &scan);
        buf_put(out, pending.data, release);
        if (!found) buf_consume(&pending, release);
    }
    if (!found) buf_put(out, pending.data, pending.len);
    buf_deinit(&pending);
    return found;
}

static void test_random_pieces(void **state)
{
    (void)state;
    const char *seed_text = getenv("DAKD_TEST_SEED");
    uint64_t seed = seed_text ? strtoull(seed_text, NULL, 10) : 42;
    rng = seed * 2 + 1;
    print_message("seed %llu\n", (unsigned long long)seed);
    int hits = 0, misses = 0;
    for (int round = 0; round < 20000; round++) {
        char text[65], stops[4][8];
        const char *list[4];
        size_t len = next_random(64), cuts[65], cut_count = 0;
        int letters = 2 + (int)next_random(3), count = 1 + (int)next_random(4);
        for (size_t i = 0; i < len; i++) text[i] = (char)('a' + next_random((uint32_t)letters));
        text[len] = '\0';
        for (int i = 0; i < count; i++) {
            size_t n = 1 + next_random(7);
            for (size_t k = 0; k < n; k++)
                stops[i][k] = (char)('a' + next_random((uint32_t)letters));
            stops[i][n] = '\0';
            list[i] = stops[i];
        }
        for (size_t i = 1; i <= len; i++)
            if (i == len || next_random(3) == 0) cuts[cut_count++] = i;
        struct srv_stop_set set;
        struct buf out;
        size_t begin = len, end = len;
        set_of(&set, list, count);
        buf_init(&out, 1 << 20);
        bool expected = reference(text, len, list, count, &begin, &end);
        assert_int_equal(run(&set, text, cuts, cut_count, &out), expected);
        assert_int_equal(out.len, begin);
        if (begin) assert_memory_equal(out.data, text, begin);
        expected ? hits++ : misses++;
        buf_deinit(&out);
        srv_stop_set_deinit(&set);
    }
    assert_true(hits > 1000 && misses > 1000);
}

/* Every split of the text into two and three pieces. */
static void test_all_splits(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        const char *stops[3];
        const char *expected;
    } cases[] = {
        {"one two three", {"two"}, "one "},
        {"aaaab", {"aab"}, "aa"},
        {"ababac", {"abac"}, "ab"},
        {"abcd", {"abcd", "c"}, "ab"},       /* the shorter one completes first */
        {"xabcd", {"bcd", "abcd"}, "x"},     /* both complete together: the longer */
        {"no stop here", {"stopper"}, "no stop here"},
        {"\xc3\xa9\xc3\xa8\xc3\xaa", {"\xc3\xa8"}, "\xc3\xa9"},
        {"stop", {"stop"}, ""},
        {"line\n\nnext", {"\n\n"}, "line"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        size_t len = strlen(cases[i].text);
        int count = 0;
        while (count < 3 && cases[i].stops[count]) count++;
        struct srv_stop_set set;
        set_of(&set, cases[i].stops, count);
        for (size_t a = 1; a <= len; a++)
            for (size_t b = a; b <= len; b++) {
                size_t cuts[] = {a, b, len};
                struct buf out;
                buf_init(&out, 4096);
                run(&set, cases[i].text, cuts, 3, &out);
                assert_int_equal(out.len, strlen(cases[i].expected));
                if (out.len) assert_memory_equal(out.data, cases[i].expected, out.len);
                buf_deinit(&out);
            }
        srv_stop_set_deinit(&set);
    }
}

static void test_holds_back_as_little_as_it_must(void **state)
{
    (void)state;
    const char *stops[] = {"END", "\n\n"};
    struct srv_stop_set set;
    struct srv_stop_scan scan = {0};
    struct srv_stop_hit hit;
    set_of(&set, stops, 2);
    assert_false(srv_stop_feed(&set, &scan, "text", 0, 4, &hit));
    assert_int_equal(srv_stop_held(&set, &scan), 0);
    assert_false(srv_stop_feed(&set, &scan, "textEN", 4, 6, &hit));
    assert_int_equal(srv_stop_held(&set, &scan), 2);
    assert_false(srv_stop_feed(&set, &scan, "ENX", 2, 3, &hit));
    assert_int_equal(srv_stop_held(&set, &scan), 0);
    assert_false(srv_stop_feed(&set, &scan, "\n", 0, 1, &hit));
    assert_int_equal(srv_stop_held(&set, &scan), 1);
    assert_true(srv_stop_feed(&set, &scan, "\n\n", 1, 2, &hit));
    assert_int_equal(hit.which, 1);
    assert_int_equal(hit.begin, 0);
    assert_int_equal(hit.end, 2);
    srv_stop_set_deinit(&set);
}

static void test_longest_allowed(void **state)
{
    (void)state;
    char text[SRV_STOP_BYTES_MAX + 1];
    struct srv_stop_set set = {0};
    struct srv_stop_scan scan = {0};
    struct srv_stop_hit hit;
    memset(text, 'z', SRV_STOP_BYTES_MAX);
    text[SRV_STOP_BYTES_MAX] = '\0';
    for (int i = 0; i < SRV_STOP_MAX; i++)
        assert_int_equal(srv_stop_set_add(&set, text, SRV_STOP_BYTES_MAX), ST_OK);
    assert_false(srv_stop_feed(&set, &scan, text, 0, SRV_STOP_BYTES_MAX - 1, &hit));
    assert_int_equal(srv_stop_held(&set, &scan), SRV_STOP_BYTES_MAX - 1);
    assert_true(srv_stop_feed(&set, &scan, text, SRV_STOP_BYTES_MAX - 1, SRV_STOP_BYTES_MAX, &hit));
    assert_int_equal(hit.begin, 0);
    srv_stop_set_deinit(&set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_pieces), cmocka_unit_test(test_all_splits),
        cmocka_unit_test(test_holds_back_as_little_as_it_must),
        cmocka_unit_test(test_longest_allowed)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
