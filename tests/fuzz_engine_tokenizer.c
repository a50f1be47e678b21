/*
 * fuzz_engine_tokenizer.c - seeded random input: texts of any bytes through every kind of
 * tokenizer, ids of any value through both decoders, and damaged tokenizer.json files through
 * eng_tok_open.
 *
 * DAKD_TEST_SEED sets the seed, DAKD_TEST_ROUNDS multiplies the work.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config/buf.h"
#include "config/check.h"
#include "config/file.h"
#include "config/random.h"
#include "config/utf8.h"
#include "engine/tokenizer.h"

#define FIXTURES "tests/fixtures/tokenizers/"

static const char *const kinds[] = {"gpt2", "llama3",     "qwen2",       "llama2",        "mistral",
                                    "opt",  "odd_digits", "odd_affixes", "odd_whitespace"};

static uint64_t below(uint64_t *seed, uint64_t n)
{
    return random_next(seed) % n;
}

static uint64_t test_seed(void)
{
    const char *text = getenv("DAKD_TEST_SEED");
    uint64_t seed = text ? strtoull(text, NULL, 0) : 20261;
    printf("seed %llu\n", (unsigned long long)seed);
    return seed;
}

static int test_rounds(void)
{
    const char *text = getenv("DAKD_TEST_ROUNDS");
    int rounds = text ? atoi(text) : 1;
    return rounds > 0 ? rounds : 1;
}

/* Text that reaches the corners: ASCII, marks, look-alikes of special tokens, runs, plain garbage.
 */
static void make_text(uint64_t *seed, struct buf *out)
{
    static const char *const bits[] = {"<|begin_of_text|>",
                                       "<|im_start|>",
                                       "</s>",
                                       "<s>",
                                       "[INST]",
                                       "<left>",
                                       " <right> ",
                                       "<both>",
                                       "Word",
                                       "  ",
                                       "\n\n",
                                       "'s",
                                       "'LL",
                                       "\xE2\x96\x81",
                                       "\xCC\x81",
                                       "\xCC\xA7",
                                       "\xF0\x9F\x98\x80",
                                       "\xE2\x80\x8D",
                                       "1234",
                                       "\xEF\xBF\xBD",
                                       "<0x41>",
                                       "a",
                                       "the ",
                                       "\xC5\xBF",
                                       "\xC4\xB0",
                                       "\xEF\xB7\xBA"};
    buf_clear(out);
    for (uint64_t n = below(seed, 12); n > 0; n--) {
        switch (below(seed, 5)) {
        case 0:
            for (uint64_t i = below(seed, 20); i > 0; i--) buf_putc(out, (char)below(seed, 256));
            break;
        case 1:
            for (uint64_t i = below(seed, 10); i > 0; i--) {
                char bytes[4];
                uint32_t cp = (uint32_t)below(seed, below(seed, 2) ? 0x3000 : 0x110000);
                if (cp < 0xD800 || cp > 0xDFFF) buf_put(out, bytes, utf8_encode(cp, bytes));
            }
            break;
        case 2: {
            const char *bit = bits[below(seed, ARRAY_COUNT(bits))];
            for (uint64_t i = below(seed, 30); i > 0; i--) buf_puts(out, bit);
            break;
        }
        default: buf_puts(out, bits[below(seed, ARRAY_COUNT(bits))]);
        }
    }
}

/* Decodes both ways: the two agree, and give whole characters throughout. */
static void check_decode(const struct eng_tok *tok, const int32_t *ids, size_t count, bool skip)
{
    struct buf whole, parts;
    struct eng_detok d;
    buf_init(&whole, 1u << 24);
    buf_init(&parts, 1u << 24);
    assert_int_equal(eng_tok_decode(tok, ids, count, skip, &whole, NULL), ST_OK);
    eng_detok_init(&d, tok, skip);
    for (size_t i = 0; i <= count; i++) {
        size_t before = parts.len;
        assert_int_equal(
            i < count ? eng_detok_push(&d, ids[i], &parts) : eng_detok_flush(&d, &parts), ST_OK);
        assert_int_equal(utf8_valid_prefix(parts.data + before, parts.len - before),
                         parts.len - before);
    }
    assert_int_equal(whole.len, parts.len);
    if (whole.len) assert_memory_equal(whole.data, parts.data, whole.len);
    buf_deinit(&whole);
    buf_deinit(&parts);
}

/* Byte-level tokenizers without a normalizer give back the text, with U+FFFD for what was no UTF-8.
 */
static void check_round_trip(const struct eng_tok *tok, const struct buf *text, const int32_t *ids,
                             size_t count)
{
    struct buf out;
    buf_init(&out, 1u << 24);
    assert_int_equal(eng_tok_decode(tok, ids, count, false, &out, NULL), ST_OK);
    size_t i = 0, o = 0;
    while (i < text->len) {
        size_t valid = utf8_valid_prefix(text->data + i, text->len - i);
        assert_true(out.len - o >= valid);
        if (valid) assert_memory_equal(text->data + i, out.data + o, valid);
        i += valid;
        o += valid;
        if (i == text->len) break;
        assert_true(out.len - o >= 3);
        assert_memory_equal(out.data + o, "\xEF\xBF\xBD", 3);
        o += 3;
        size_t bad = 1; /* the longest beginning of a character */
        for (size_t n = 2; n <= 3 && n <= text->len - i; n++)
            if (utf8_is_partial(text->data + i, n)) bad = n;
        i += bad;
    }
    assert_int_equal(o, out.len);
    buf_deinit(&out);
}

static void test_texts(void **state)
{
    (void)state;
    uint64_t seed = test_seed();
    struct buf text;
    buf_init(&text, 1u << 20);
    for (size_t k = 0; k < ARRAY_COUNT(kinds); k++) {
        char path[128], err[ERR_CAP];
        struct eng_tok *tok;
        snprintf(path, sizeof path, FIXTURES "%s", kinds[k]);
        if (eng_tok_open(path, &tok, err)) fail_msg("%s", err);
        bool reversible =
            !strcmp(kinds[k], "gpt2") || !strcmp(kinds[k], "llama3") || !strcmp(kinds[k], "opt");
        for (int i = 0; i < 400 * test_rounds(); i++) {
            int32_t *ids;
            size_t count;
            make_text(&seed, &text);
            unsigned flags = (unsigned)below(&seed, 4);
            if (eng_tok_encode(tok, text.data, text.len, flags, 1u << 20, &ids, &count, err))
                fail_msg("%s", err);
            for (size_t j = 0; j < count; j++) {
                assert_non_null(eng_tok_text(tok, ids[j]));
                if (!flags)
                    assert_false(eng_tok_is_special(tok, ids[j]) &&
                                 strcmp(eng_tok_text(tok, ids[j]), "<unk>") &&
                                 strcmp(eng_tok_text(tok, ids[j]), "[UNK]"));
            }
            check_decode(tok, ids, count, below(&seed, 2));
            if (reversible && !(flags & ENG_TOK_ADD_SPECIAL))
                check_round_trip(tok, &text, ids, count);
            free(ids);
        }
        eng_tok_close(tok);
    }
    buf_deinit(&text);
}

static void test_ids(void **state)
{
    (void)state;
    uint64_t seed = test_seed() + 1;
    for (size_t k = 0; k < ARRAY_COUNT(kinds); k++) {
        char path[128], err[ERR_CAP];
        struct eng_tok *tok;
        int32_t ids[64];
        snprintf(path, sizeof path, FIXTURES "%s", kinds[k]);
        if (eng_tok_open(path, &tok, err)) fail_msg("%s", err);
        for (int i = 0; i < 600 * test_rounds(); i++) {
            size_t count = below(&seed, ARRAY_COUNT(ids) + 1);
            /* Mostly tokens; often from the part where byte tokens lie; now and then no token at
             * all. */
            uint64_t range = below(&seed, 2) ? 262 : (uint64_t)eng_tok_vocab_size(tok) + 2;
            for (size_t j = 0; j < count; j++)
                ids[j] = below(&seed, 50) ? (int32_t)below(&seed, range)
                                          : (int32_t)below(&seed, INT32_MAX);
            check_decode(tok, ids, count, below(&seed, 2));
        }
        eng_tok_close(tok);
    }
}

/* Damages a copy of the file: bytes changed, cut out, doubled, or pieces of JSON put in. */
static void damage(uint64_t *seed, struct buf *json)
{
    static const char *const bits[] = {
        "null",  "-1", "1e9", "\"\"", "{}",      "[]",      "true",
        "\"a\"", ",",  "}",   "]",    "\\u0000", "4194303", "\"type\":\"Sequence\"",
        "\xff",  "0.5"};
    for (uint64_t n = 1 + below(seed, 3); n > 0 && json->len > 0; n--) {
        /* The parts before the vocabulary are where the structure is. */
        size_t span = below(seed, 2) ? size_min(json->len, 4000) : json->len;
        size_t at = below(seed, span), cut = below(seed, size_min(40, json->len - at) + 1);
        switch (below(seed, 4)) {
        case 0: json->data[at] = (char)below(seed, 256); break;
        case 1:
            memmove(json->data + at, json->data + at + cut, json->len - at - cut);
            json->len -= cut;
            break;
        case 2: {
            const char *bit = bits[below(seed, ARRAY_COUNT(bits))];
            size_t len = size_min(strlen(bit), json->len - at);
            memcpy(json->data + at, bit, len);
            break;
        }
        default: json->len = below(seed, 20) ? json->len : at;
        }
    }
}

static const char *const keys[] = {"\"type\":",
                                   "\"id\":",
                                   "\"content\":",
                                   "\"special\":",
                                   "\"behavior\":",
                                   "\"pattern\":",
                                   "\"replacement\":",
                                   "\"prepend_scheme\":",
                                   "\"single\":",
                                   "\"ids\":",
                                   "\"vocab\":",
                                   "\"merges\":",
                                   "\"unk_token\":",
                                   "\"start\":",
                                   "\"decoders\":",
                                   "\"normalizers\":",
                                   "\"pretokenizers\":",
                                   "\"processors\":",
                                   "\"Regex\":",
                                   "\"String\":",
                                   "\"end_of_word_suffix\":",
                                   "\"continuing_subword_prefix\":",
                                   "\"byte_fallback\":",
                                   "\"split\":"};
static const char *const values[] = {"null",
                                     "0",
                                     "-1",
                                     "3",
                                     "99999999",
                                     "\"\"",
                                     "\"x\"",
                                     "\"(\"",
                                     "\"Isolated\"",
                                     "\"ByteLevel\"",
                                     "\"Fuse\"",
                                     "\"Metaspace\"",
                                     "\"Strip\"",
                                     "\"Sequence\"",
                                     "\"Replace\"",
                                     "\"NFC\"",
                                     "[]",
                                     "{}",
                                     "[1,2]",
                                     "[\"a b\"]",
                                     "{\"a\":0}",
                                     "true",
                                     "false",
                                     "{\"String\":\"a\"}",
                                     "{\"Regex\":\"(a|b)*c\"}",
                                     "\"\xE2\x96\x81\"",
                                     "\"first\""};

/* Replaces a whole value behind a key by another value: damage that still parses. */
static void swap_value(uint64_t *seed, struct buf *json)
{
    const char *key = keys[below(seed, ARRAY_COUNT(keys))];
    const char *value = values[below(seed, ARRAY_COUNT(values))];
    size_t places = 0, key_len = strlen(key);
    json->data[json->len] = '\0';
    for (const char *p = json->data; (p = strstr(p, key)); p += key_len) places++;
    if (!places) return;
    char *at = json->data;
    for (uint64_t skip = below(seed, places) + 1; skip > 0; skip--) at = strstr(at, key) + key_len;
    /* The value ends at a comma or bracket outside of strings and brackets. */
    char *end = at;
    for (int depth = 0, quoted = 0; *end; end++) {
        if (quoted && *end == '\\' && end[1]) end++;
        else if (*end == '"') quoted = !quoted;
        else if (!quoted && strchr("{[", *end)) depth++;
        else if (!quoted && strchr("}],", *end)) {
            if (depth == 0) break;
            if (*end != ',') depth--;
        }
    }
    size_t from = (size_t)(at - json->data), to = (size_t)(end - json->data), len = strlen(value);
    if (buf_reserve(json, len)) return;
    memmove(json->data + from + len, json->data + to, json->len - to);
    memcpy(json->data + from, value, len);
    json->len = json->len - (to - from) + len;
}

static void check_damaged(const char *dir, const struct buf *json, uint64_t *seed, int *opened)
{
    char path[128], err[ERR_CAP] = "";
    struct eng_tok *tok;
    struct buf text;
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(json->data, 1, json->len, f), json->len);
    fclose(f);
    if (eng_tok_open(dir, &tok, err)) {
        assert_null(tok);
        assert_true(strlen(err) > 0);
        assert_int_equal(utf8_valid_prefix(err, strlen(err)), strlen(err));
        return;
    }
    ++*opened;
    buf_init(&text, 1u << 20);
    for (int i = 0; i < 3; i++) {
        int32_t *ids;
        size_t count;
        make_text(seed, &text);
        if (eng_tok_encode(tok, text.data, text.len, (unsigned)below(seed, 4), 1u << 20, &ids,
                           &count, err))
            continue;
        check_decode(tok, ids, count, false);
        free(ids);
    }
    buf_deinit(&text);
    eng_tok_close(tok);
}

static void test_damaged_files(void **state)
{
    (void)state;
    uint64_t seed = test_seed() + 2;
    char dir[] = "/tmp/dakd-fuzz-XXXXXX", path[128], err[ERR_CAP];
    int opened = 0, tried = 0;
    assert_non_null(mkdtemp(dir));
    for (size_t k = 0; k < ARRAY_COUNT(kinds); k++) {
        char *data;
        size_t len;
        struct buf json;
        snprintf(path, sizeof path, FIXTURES "%s/tokenizer.json", kinds[k]);
        if (file_read(path, 1u << 24, &data, &len, err)) fail_msg("%s", err);
        buf_init(&json, 1u << 24);
        for (int i = 0; i < 80 * test_rounds(); i++, tried++) {
            buf_clear(&json);
            buf_put(&json, data, len);
            if (below(&seed, 4)) swap_value(&seed, &json);
            else damage(&seed, &json);
            check_damaged(dir, &json, &seed, &opened);
        }
        buf_deinit(&json);
        free(data);
    }
    printf("%d of %d damaged files opened\n", opened, tried);
    assert_true(opened < tried);
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    unlink(path);
    rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_texts),
        cmocka_unit_test(test_ids),
        cmocka_unit_test(test_damaged_files),
    };
    return cmocka_run_group_tests_name("fuzz engine/tokenizer", tests, NULL, NULL);
}
