/*
 * unit_engine_tokenizer.c - the tokenizer's interface: what opens and what is refused, limits,
 * special tokens as text, incremental decoding, long texts, threads.  Equality with the reference,
 * token for token, is tests/parity/test_tokenizer.py.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "config/buf.h"
#include "config/check.h"
#include "config/utf8.h"
#include "engine/tokenizer.h"

#define FIXTURES "tests/fixtures/tokenizers/"
#define IDS_MAX (4u << 20)

static const char *const kinds[] = {"gpt2", "llama3",     "qwen2",       "llama2",        "mistral",
                                    "opt",  "odd_digits", "odd_affixes", "odd_whitespace"};

static struct eng_tok *open_kind(const char *kind)
{
    char path[256], err[ERR_CAP];
    struct eng_tok *tok;
    snprintf(path, sizeof path, FIXTURES "%s", kind);
    if (eng_tok_open(path, &tok, err)) fail_msg("%s", err);
    return tok;
}

/* Encodes or fails the test; the ids are the caller's. */
static int32_t *encode(const struct eng_tok *tok, const char *text, size_t len, unsigned flags,
                       size_t *count)
{
    char err[ERR_CAP];
    int32_t *ids;
    if (eng_tok_encode(tok, text, len, flags, IDS_MAX, &ids, count, err)) fail_msg("%s", err);
    return ids;
}

static void assert_decodes(const struct eng_tok *tok, const int32_t *ids, size_t count, bool skip,
                           const char *expected)
{
    char err[ERR_CAP];
    struct buf out;
    struct eng_detok d;
    buf_init(&out, 1u << 20);
    assert_int_equal(buf_reserve(&out, 1), ST_OK);
    buf_clear(&out);
    assert_int_equal(eng_tok_decode(tok, ids, count, skip, &out, err), ST_OK);
    assert_string_equal(out.data, expected);
    buf_clear(&out);
    eng_detok_init(&d, tok, skip);
    for (size_t i = 0; i < count; i++) {
        size_t before = out.len;
        assert_int_equal(eng_detok_push(&d, ids[i], &out), ST_OK);
        assert_int_equal(utf8_valid_prefix(out.data + before, out.len - before), out.len - before);
    }
    assert_int_equal(eng_detok_flush(&d, &out), ST_OK);
    assert_string_equal(out.data, expected);
    buf_deinit(&out);
}

static void assert_round_trip(const struct eng_tok *tok, const char *text)
{
    size_t count;
    int32_t *ids = encode(tok, text, strlen(text), 0, &count);
    assert_decodes(tok, ids, count, false, text);
    free(ids);
}

static void test_lookups(void **state)
{
    (void)state;
    struct eng_tok *tok = open_kind("llama3");
    struct buf out;
    buf_init(&out, 64);
    int32_t bos = eng_tok_id(tok, "<|begin_of_text|>", 17);
    assert_true(bos > 0);
    assert_int_equal(eng_tok_bos(tok), bos);
    assert_int_equal(eng_tok_eos(tok), eng_tok_id(tok, "<|eot_id|>", 10));
    assert_int_equal(eng_tok_vocab_size(tok),
                     eng_tok_id(tok, "<|reserved_special_token_39|>", 29) + 1);
    assert_int_equal(eng_tok_id(tok, "no such token", 13), -1);
    assert_int_equal(eng_tok_id(tok, "", 0), -1);
    assert_true(eng_tok_is_special(tok, bos));
    int32_t the = eng_tok_id(tok, "\u0120the", 5);
    assert_true(the >= 0 && !eng_tok_is_special(tok, the));
    assert_string_equal(eng_tok_text(tok, the), "\u0120the");
    assert_int_equal(eng_tok_bytes(tok, the, &out), ST_OK);
    assert_string_equal(out.data, " the");
    assert_null(eng_tok_text(tok, -1));
    assert_null(eng_tok_text(tok, eng_tok_vocab_size(tok)));
    assert_int_equal(eng_tok_bytes(tok, eng_tok_vocab_size(tok), &out), ST_NOT_FOUND);
    assert_false(eng_tok_is_special(tok, -1));
    assert_false(eng_tok_is_special(tok, INT32_MAX));
    eng_tok_close(tok);

    tok = open_kind("llama2");
    buf_clear(&out);
    assert_int_equal(eng_tok_bytes(tok, eng_tok_id(tok, "<0xE2>", 6), &out), ST_OK);
    assert_int_equal(out.len, 1);
    assert_int_equal((unsigned char)out.data[0], 0xE2);
    assert_int_equal(eng_tok_bos(tok), 1);
    eng_tok_close(tok);
    tok = open_kind("qwen2");
    assert_int_equal(eng_tok_bos(tok), -1);
    eng_tok_close(tok);
    eng_tok_close(NULL);
    buf_deinit(&out);
}

static void test_flags(void **state)
{
    (void)state;
    static const char text[] = "<|begin_of_text|>Hi<|eot_id|>";
    struct eng_tok *tok = open_kind("llama3");
    size_t count, plain;
    int32_t *ids =
        encode(tok, text, strlen(text), ENG_TOK_ADD_SPECIAL | ENG_TOK_PARSE_SPECIAL, &count);
    assert_int_equal(ids[0], eng_tok_bos(tok)); /* from the post-processor */
    assert_int_equal(ids[1], eng_tok_bos(tok)); /* from the text */
    assert_int_equal(ids[count - 1], eng_tok_eos(tok));
    free(ids);
    ids = encode(tok, text, strlen(text), 0, &plain);
    assert_true(plain > count);
    for (size_t i = 0; i < plain; i++) assert_false(eng_tok_is_special(tok, ids[i]));
    assert_decodes(tok, ids, plain, true, text);
    free(ids);
    ids = encode(tok, "", 0, ENG_TOK_ADD_SPECIAL, &count);
    assert_int_equal(count, 1);
    free(ids);
    ids = encode(tok, "", 0, 0, &count);
    assert_int_equal(count, 0);
    assert_null(ids);
    eng_tok_close(tok);

    /* Added tokens that are not special are vocabulary in either case. */
    tok = open_kind("qwen2");
    ids = encode(tok, "<think>", 7, 0, &count);
    assert_int_equal(count, 1);
    free(ids);
    ids = encode(tok, "<|im_end|>", 10, 0, &count);
    assert_true(count > 1);
    free(ids);
    eng_tok_close(tok);
}

static void test_limits(void **state)
{
    (void)state;
    char err[ERR_CAP];
    struct eng_tok *tok = open_kind("gpt2");
    static const char text[] = "a b c d e f g h i j";
    size_t count, again;
    int32_t *ids = encode(tok, text, strlen(text), 0, &count), *more;
    assert_int_equal(eng_tok_encode(tok, text, strlen(text), 0, count, &more, &again, err), ST_OK);
    assert_int_equal(again, count);
    assert_memory_equal(ids, more, count * sizeof *ids);
    free(more);
    for (size_t max = 0; max < count; max++) {
        assert_int_equal(eng_tok_encode(tok, text, strlen(text), 0, max, &more, &again, err),
                         ST_LIMIT);
        assert_null(more);
        assert_int_equal(again, 0);
        assert_non_null(strstr(err, "tokens"));
    }
    assert_int_equal(eng_tok_encode(tok, text, strlen(text), 0, 1, &more, &again, NULL), ST_LIMIT);
    struct buf out;
    buf_init(&out, 4);
    assert_int_equal(eng_tok_decode(tok, ids, count, false, &out, err), ST_LIMIT);
    buf_clear(&out);
    ids[1] = -1;
    assert_int_equal(eng_tok_decode(tok, ids, count, false, &out, err), ST_INVALID);
    struct eng_detok d;
    eng_detok_init(&d, tok, false);
    assert_int_equal(eng_detok_push(&d, -1, &out), ST_INVALID);
    buf_deinit(&out);
    free(ids);
    eng_tok_close(tok);
}

static void test_round_trips(void **state)
{
    (void)state;
    static const char *const reversible[] = {"gpt2", "llama3", "qwen2", "opt"};
    static const char *const texts[] = {"Hello, world!",
                                        "  two  spaces ",
                                        "\t\r\n\n x",
                                        "na\u00efve caf\u00e9 \u4f60\u597d",
                                        "\U0001F469\u200D\U0001F680 \U0001F44D\U0001F3FD",
                                        "\x01\x7f\xc2\x85",
                                        "1234567890",
                                        "it's WE'LL 's"};
    for (size_t k = 0; k < ARRAY_COUNT(reversible); k++) {
        struct eng_tok *tok = open_kind(reversible[k]);
        for (size_t i = 0; i < ARRAY_COUNT(texts); i++) assert_round_trip(tok, texts[i]);
        eng_tok_close(tok);
    }
    struct eng_tok *tok = open_kind("llama2");
    for (size_t i = 0; i < ARRAY_COUNT(texts); i++) assert_round_trip(tok, texts[i]);
    eng_tok_close(tok);
}

static void test_invalid_utf8(void **state)
{
    (void)state;
    /* Pairs of bytes and what Python's bytes.decode("utf-8", "replace") makes of them. */
    static const char *const pairs[][2] = {
        {"a\xff"
         "b",
         "a\uFFFD"
         "b"},
        {"\xe4\xbd", "\uFFFD"},
        {"\xe4\xbd\xe4\xbd\xa0", "\uFFFD\u4f60"},
        {"\xed\xa0\x80", "\uFFFD\uFFFD\uFFFD"},
        {"\xf0\x9f\x98 \xc0\x80", "\uFFFD \uFFFD\uFFFD"},
        {"\x80", "\uFFFD"},
    };
    for (size_t k = 0; k < ARRAY_COUNT(kinds); k++) {
        struct eng_tok *tok = open_kind(kinds[k]);
        for (size_t i = 0; i < ARRAY_COUNT(pairs); i++) {
            size_t a, b;
            int32_t *x = encode(tok, pairs[i][0], strlen(pairs[i][0]), 0, &a);
            int32_t *y = encode(tok, pairs[i][1], strlen(pairs[i][1]), 0, &b);
            assert_int_equal(a, b);
            if (a) assert_memory_equal(x, y, a * sizeof *x);
            free(x);
            free(y);
        }
        eng_tok_close(tok);
    }
}

static int32_t byte_id(const struct eng_tok *tok, unsigned char byte)
{
    char text[8];
    snprintf(text, sizeof text, "<0x%02X>", byte);
    int32_t id = eng_tok_id(tok, text, 6);
    assert_true(id >= 0);
    return id;
}

static void test_byte_runs(void **state)
{
    (void)state;
    struct eng_tok *tok = open_kind("llama2");
    int32_t a = eng_tok_id(tok, "a", 1);
    int32_t ni[] = {a, byte_id(tok, 0xE4), byte_id(tok, 0xBD), byte_id(tok, 0xA0), a};
    assert_decodes(tok, ni, 5, false,
                   "a\u4f60"
                   "a");
    assert_decodes(tok, ni, 3, false, "a\uFFFD\uFFFD");
    assert_decodes(tok, ni + 2, 3, false,
                   "\uFFFD\uFFFD"
                   "a");
    /* A whole character and half of one: the run is not valid, so neither is text. */
    int32_t half[] = {ni[1], ni[2], ni[3], ni[1], a};
    assert_decodes(tok, half, 5, false,
                   "\uFFFD\uFFFD\uFFFD\uFFFD"
                   "a");
    int32_t known[] = {a, eng_tok_vocab_size(tok) + 5, INT32_MAX, a};
    assert_decodes(tok, known, 4, false, "aa");
    assert_decodes(tok, NULL, 0, false, "");
    eng_tok_close(tok);
}

/* A valid run longer than a detokenizer holds comes out whole, in whole characters. */
static void test_long_byte_run(void **state)
{
    (void)state;
    struct eng_tok *tok = open_kind("llama2");
    struct buf out;
    struct eng_detok d;
    buf_init(&out, 1u << 20);
    eng_detok_init(&d, tok, false);
    enum { CHARS = ENG_DETOK_RUN_MAX };
    for (int i = 0; i < CHARS; i++)
        for (const char *p = "\U0001F600"; *p; p++) {
            size_t before = out.len;
            assert_int_equal(eng_detok_push(&d, byte_id(tok, (unsigned char)*p), &out), ST_OK);
            assert_int_equal(utf8_valid_prefix(out.data + before, out.len - before),
                             out.len - before);
        }
    assert_int_equal(eng_detok_flush(&d, &out), ST_OK);
    assert_int_equal(out.len, 4 * CHARS);
    for (int i = 0; i < CHARS; i++) assert_memory_equal(out.data + 4 * i, "\U0001F600", 4);
    buf_deinit(&out);
    eng_tok_close(tok);
}

/* A normalized added token decodes to its content and is special. */
static void test_normalized_special(void **state)
{
    (void)state;
    struct eng_tok *tok = open_kind("odd_digits");
    size_t count;
    int32_t *ids = encode(tok, "x <MASK>", 8, ENG_TOK_PARSE_SPECIAL, &count);
    int32_t mask = eng_tok_id(tok, "<Mask>", 6);
    assert_int_equal(ids[count - 1], mask);
    assert_decodes(tok, ids, count, false, "x <Mask>");
    assert_decodes(tok, ids, count, true, "x");
    free(ids);
    eng_tok_close(tok);
}

static void test_long_texts(void **state)
{
    (void)state;
    static const char *const units[] = {
        "a",   " ",   "\n", "\U0001F600", "\u4f60", "<|",     "e\u0301",      "\u0301\u0327",
        "ab ", " \n", "1",  "'s",         "\xff",   "\u2581", "a\u0301\u0334"};
    enum { BYTES = 1 << 20 };
    char *text = malloc(BYTES + 8);
    assert_non_null(text);
    for (size_t k = 0; k < ARRAY_COUNT(kinds); k++) {
        struct eng_tok *tok = open_kind(kinds[k]);
        for (size_t u = 0; u < ARRAY_COUNT(units); u++) {
#ifdef DAKD_DEBUG
            size_t most = 1u << 14;
#else
            size_t most = BYTES;
#endif
            size_t unit = strlen(units[u]), len = most / unit * unit, count;
            for (size_t at = 0; at < len; at += unit) memcpy(text + at, units[u], unit);
            clock_t start = clock(); /* processor time: other work on the machine does not count */
            int32_t *ids = encode(tok, text, len, ENG_TOK_PARSE_SPECIAL, &count);
            double took_s = (double)(clock() - start) / CLOCKS_PER_SEC;
            if (getenv("DAKD_TEST_VERBOSE"))
                printf("%s unit %zu: %zu tokens, %.3f s\n", kinds[k], u, count, took_s);
            free(ids);
#ifndef DAKD_DEBUG
            /* The odd ones chain five pre-tokenizers, each of which sees a million parts. */
            if (took_s > (strncmp(kinds[k], "odd", 3) ? 1.0 : 3.0))
                fail_msg("%s: unit %zu took %.3f s", kinds[k], u, took_s);
#endif
        }
        eng_tok_close(tok);
    }
    free(text);
}

struct job {
    const struct eng_tok *tok;
    const char *text;
    const int32_t *ids;
    size_t count;
    int wrong;
};

static void *work(void *arg)
{
    struct job *job = arg;
    struct buf out;
    buf_init(&out, 1u << 20);
    for (int i = 0; i < 50; i++) {
        int32_t *ids;
        size_t count;
        if (eng_tok_encode(job->tok, job->text, strlen(job->text), 0, IDS_MAX, &ids, &count,
                           NULL)) {
            job->wrong++;
            break;
        }
        if (count != job->count || memcmp(ids, job->ids, count * sizeof *ids)) job->wrong++;
        buf_clear(&out);
        if (eng_tok_decode(job->tok, ids, count, false, &out, NULL) || strcmp(out.data, job->text))
            job->wrong++;
        free(ids);
    }
    buf_deinit(&out);
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    static const char text[] = "The quick brown fox, it's 12345 \u4f60\u597d \U0001F600!\n\n  done";
    struct eng_tok *tok = open_kind("qwen2");
    size_t count;
    int32_t *ids = encode(tok, text, strlen(text), 0, &count);
    pthread_t threads[4];
    struct job jobs[4];
    for (size_t i = 0; i < ARRAY_COUNT(threads); i++) {
        jobs[i] = (struct job){.tok = tok, .text = text, .ids = ids, .count = count};
        assert_int_equal(pthread_create(&threads[i], NULL, work, &jobs[i]), 0);
    }
    for (size_t i = 0; i < ARRAY_COUNT(threads); i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_int_equal(jobs[i].wrong, 0);
    }
    free(ids);
    eng_tok_close(tok);
}

/* A model directory in a temporary place. */
struct model_dir {
    char path[64];
};

static void write_file(const struct model_dir *dir, const char *name, const char *text, size_t len)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir->path, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, len, f), len);
    assert_int_equal(fclose(f), 0);
}

static void make_dir(struct model_dir *dir)
{
    snprintf(dir->path, sizeof dir->path, "/tmp/dakd-tok-XXXXXX");
    assert_non_null(mkdtemp(dir->path));
}

static void remove_dir(const struct model_dir *dir)
{
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json",
                                        "special_tokens_map.json"};
    char path[128];
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        snprintf(path, sizeof path, "%s/%s", dir->path, names[i]);
        unlink(path);
    }
    rmdir(dir->path);
}

#define MODEL(vocab, merges)                                                                       \
    "\"model\":{\"type\":\"BPE\",\"vocab\":" vocab ",\"merges\":" merges "}"
#define GOOD MODEL("{\"a\":0,\"b\":1,\"ab\":2}", "[\"a b\"]")

static void test_malformed(void **state)
{
    (void)state;
    static const struct {
        const char *json, *says;
        enum status st;
    } cases[] = {
        {"", "empty", ST_INVALID},
        {"[]", "not an object", ST_INVALID},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0", "expected", ST_INVALID},
        {"{}", "'model' is missing", ST_INVALID},
        {"{\"model\":[]}", "'model' is missing", ST_INVALID},
        {"{\"model\":{\"type\":\"WordPiece\",\"vocab\":{\"a\":0}}}", "'WordPiece' is not supported",
         ST_UNSUPPORTED},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\",0]]}}", "'Unigram' is not supported",
         ST_UNSUPPORTED},
        {"{\"model\":{\"type\":\"BPE\"}}", "'vocab'", ST_INVALID},
        {"{" MODEL("{}", "[]") "}", "empty", ST_INVALID},
        {"{" MODEL("{\"a\":0}", "{}") "}", "'merges'", ST_INVALID},
        {"{" MODEL("{\"a\":\"0\"}", "[]") "}", "no integer", ST_INVALID},
        {"{" MODEL("{\"a\":0.5}", "[]") "}", "no integer", ST_INVALID},
        {"{" MODEL("{\"a\":1e300}", "[]") "}", "no integer", ST_INVALID},
        {"{" MODEL("{\"a\":-1}", "[]") "}", "ids are 0 to", ST_INVALID},
        {"{" MODEL("{\"a\":4194304}", "[]") "}", "ids are 0 to", ST_INVALID},
        {"{" MODEL("{\"a\":0,\"b\":0}", "[]") "}", "same id 0", ST_INVALID},
        {"{" MODEL("{\"a\":0,\"a\":1}", "[]") "}", "twice", ST_INVALID},
        {"{" MODEL("{\"a\":0,\"b\":1}", "[\"a b\"]") "}", "makes a token", ST_INVALID},
        {"{" MODEL("{\"a\":0}", "[\"a c\"]") "}", "names a token", ST_INVALID},
        {"{" MODEL("{\"a\":0}", "[\"aa\"]") "}", "not two tokens", ST_INVALID},
        {"{" MODEL("{\"a\":0}", "[\"a a a\"]") "}", "not two tokens", ST_INVALID},
        {"{" MODEL("{\"a\":0}", "[[\"a\"]]") "}", "pair", ST_INVALID},
        {"{" MODEL("{\"a\":0}", "[[\"a\",1]]") "}", "pair", ST_INVALID},
        {"{" MODEL("{\"a\":0}", "[7]") "}", "pair", ST_INVALID},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[],\"dropout\":0.1}}", "dropout",
         ST_UNSUPPORTED},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[],\"unk_token\":\"u\"}}", "unk_token",
         ST_INVALID},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[],\"byte_fallback\":1}}", "byte_fallback",
         ST_INVALID},
        {"{" GOOD ",\"added_tokens\":{}}", "'added_tokens'", ST_INVALID},
        {"{" GOOD ",\"added_tokens\":[1]}", "no object", ST_INVALID},
        {"{" GOOD ",\"added_tokens\":[{\"id\":3}]}", "'content'", ST_INVALID},
        {"{" GOOD ",\"added_tokens\":[{\"content\":\"x\",\"id\":1}]}", "of the token 'b'",
         ST_INVALID},
        {"{" GOOD ",\"added_tokens\":[{\"content\":\"a\",\"id\":3}]}", "in the vocabulary",
         ST_INVALID},
        {"{" GOOD ",\"added_tokens\":[{\"content\":\"x\",\"id\":9000000}]}", "ids are", ST_INVALID},
        {"{" GOOD ",\"added_tokens\":[{\"content\":\"x\",\"id\":3},{\"content\":\"y\",\"id\":3}]}",
         "same id", ST_INVALID},
        {"{" GOOD ",\"added_tokens\":[{\"content\":\"x\",\"id\":3},{\"content\":\"x\",\"id\":4}]}",
         "twice", ST_INVALID},
        {"{" GOOD ",\"normalizer\":{\"type\":\"Nmt\"}}", "'Nmt'", ST_UNSUPPORTED},
        {"{" GOOD ",\"normalizer\":{}}", "'type'", ST_INVALID},
        {"{" GOOD ",\"normalizer\":7}", "'type'", ST_INVALID},
        {"{" GOOD ",\"normalizer\":{\"type\":\"Sequence\"}}", "'normalizers'", ST_INVALID},
        {"{" GOOD ",\"normalizer\":{\"type\":\"Replace\",\"content\":\"\"}}", "pattern",
         ST_INVALID},
        {"{" GOOD
         ",\"normalizer\":{\"type\":\"Replace\",\"content\":\"\",\"pattern\":{\"String\":\"\"}}}",
         "0 bytes", ST_INVALID},
        {"{" GOOD ",\"pre_tokenizer\":{\"type\":\"BertPreTokenizer\"}}", "'BertPreTokenizer'",
         ST_UNSUPPORTED},
        {"{" GOOD ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},"
         "\"behavior\":\"Isolated\"}}",
         "does not compile", ST_INVALID},
        {"{" GOOD ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a&&b]\"},"
         "\"behavior\":\"Isolated\"}}",
         "intersection", ST_UNSUPPORTED},
        {"{" GOOD ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a{1,2}+\"},"
         "\"behavior\":\"Isolated\"}}",
         "repeat count", ST_UNSUPPORTED},
        {"{" GOOD ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(*UTF)a\"},"
         "\"behavior\":\"Isolated\"}}",
         "'(*'", ST_UNSUPPORTED},
        {"{" GOOD ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\h\"},"
         "\"behavior\":\"Isolated\"}}",
         "escape", ST_UNSUPPORTED},
        {"{" GOOD ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},"
         "\"behavior\":\"Sideways\"}}",
         "'Sideways'", ST_INVALID},
        {"{" GOOD ",\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"ab\"}}",
         "one character", ST_INVALID},
        {"{" GOOD ",\"pre_tokenizer\":{\"type\":\"Metaspace\",\"prepend_scheme\":\"last\"}}",
         "'last'", ST_INVALID},
        {"{" GOOD ",\"decoder\":{\"type\":\"CTC\"}}", "'CTC'", ST_UNSUPPORTED},
        {"{" GOOD ",\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},{\"type\":"
         "\"ByteFallback\"}]}}",
         "its place", ST_UNSUPPORTED},
        {"{" GOOD ",\"decoder\":{\"type\":\"Strip\",\"content\":\"\"}}", "one character",
         ST_INVALID},
        {"{" GOOD ",\"post_processor\":{\"type\":\"Other\"}}", "'Other'", ST_UNSUPPORTED},
        {"{" GOOD ",\"post_processor\":{\"type\":\"TemplateProcessing\"}}", "'single'", ST_INVALID},
        {"{" GOOD ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{"
         "\"SpecialToken\":{\"id\":\"x\"}}]}}",
         "'special_tokens'", ST_INVALID},
        {"{" GOOD
         ",\"post_processor\":{\"type\":\"BertProcessing\",\"cls\":[\"a\",99],\"sep\":[\"a\",0]}}",
         "no token", ST_INVALID},
    };
    struct model_dir dir;
    make_dir(&dir);
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        char err[ERR_CAP] = "";
        struct eng_tok *tok = (struct eng_tok *)&dir;
        write_file(&dir, "tokenizer.json", cases[i].json, strlen(cases[i].json));
        enum status st = eng_tok_open(dir.path, &tok, err);
        if (st != cases[i].st || !strstr(err, cases[i].says) || !strstr(err, "tokenizer.json"))
            fail_msg("%s: status %d, \"%s\"", cases[i].json, st, err);
        assert_null(tok);
        assert_int_equal(eng_tok_open(dir.path, &tok, NULL), cases[i].st);
    }
    remove_dir(&dir);
}

static void test_nesting(void **state)
{
    (void)state;
    char err[ERR_CAP];
    struct eng_tok *tok;
    struct model_dir dir;
    struct buf json;
    make_dir(&dir);
    buf_init(&json, 1u << 24);
    buf_puts(&json, "{\"normalizer\":");
    for (int i = 0; i < 10000; i++) buf_puts(&json, "{\"type\":\"Sequence\",\"normalizers\":[");
    write_file(&dir, "tokenizer.json", json.data, json.len);
    assert_int_equal(eng_tok_open(dir.path, &tok, err), ST_INVALID);
    assert_non_null(strstr(err, "nested"));
    buf_clear(&json);
    buf_puts(&json, "{" GOOD ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[");
    for (int i = 0; i < 17; i++)
        buf_printf(&json, "%s{\"type\":\"WhitespaceSplit\"}", i ? "," : "");
    buf_puts(&json, "]}}");
    write_file(&dir, "tokenizer.json", json.data, json.len);
    assert_int_equal(eng_tok_open(dir.path, &tok, err), ST_UNSUPPORTED);
    assert_non_null(strstr(err, "more than 16"));
    buf_deinit(&json);
    remove_dir(&dir);
}

static void test_special_names(void **state)
{
    (void)state;
    static const char good[] = "{" GOOD "}";
    char err[ERR_CAP];
    struct eng_tok *tok;
    struct model_dir dir;
    make_dir(&dir);
    assert_int_equal(eng_tok_open(dir.path, &tok, err), ST_NOT_FOUND);
    write_file(&dir, "tokenizer.json", good, strlen(good));
    assert_int_equal(eng_tok_open(dir.path, &tok, err), ST_OK);
    assert_int_equal(eng_tok_bos(tok), -1);
    eng_tok_close(tok);
    static const char config[] = "{\"bos_token\":{\"content\":\"b\"},\"eos_token\":null}";
    static const char map[] = "{\"bos_token\":\"a\",\"eos_token\":\"ab\"}";
    write_file(&dir, "tokenizer_config.json", config, strlen(config));
    write_file(&dir, "special_tokens_map.json", map, strlen(map));
    assert_int_equal(eng_tok_open(dir.path, &tok, err), ST_OK);
    assert_int_equal(eng_tok_bos(tok), 1);
    assert_int_equal(eng_tok_eos(tok), 2);
    eng_tok_close(tok);
    static const char unknown[] = "{\"eos_token\":\"</s>\"}", number[] = "{\"eos_token\":5}";
    write_file(&dir, "tokenizer_config.json", unknown, strlen(unknown));
    assert_int_equal(eng_tok_open(dir.path, &tok, err), ST_INVALID);
    assert_non_null(strstr(err, "'</s>'"));
    write_file(&dir, "tokenizer_config.json", number, strlen(number));
    assert_int_equal(eng_tok_open(dir.path, &tok, err), ST_INVALID);
    remove_dir(&dir);
}

/* 360 ideographs and every pair of them: 130,000 tokens, 129,600 merges. */
static void test_large_vocabulary(void **state)
{
    (void)state;
    enum { CHARS = 360 };
    char name[CHARS][4] = {{0}}, err[ERR_CAP];
    struct eng_tok *tok;
    struct model_dir dir;
    struct buf json;
    make_dir(&dir);
    buf_init(&json, 1u << 26);
    buf_puts(&json, "{\"model\":{\"type\":\"BPE\",\"vocab\":{");
    for (uint32_t i = 0; i < CHARS; i++) {
        utf8_encode(0x4E00 + i, name[i]);
        buf_printf(&json, "%s\"%s\":%u", i ? "," : "", name[i], i);
    }
    for (int i = 0; i < CHARS * CHARS; i++)
        buf_printf(&json, ",\"%s%s\":%d", name[i / CHARS], name[i % CHARS], CHARS + i);
    buf_puts(&json, "},\"merges\":[");
    for (int i = 0; i < CHARS * CHARS; i++)
        buf_printf(&json, "%s[\"%s\",\"%s\"]", i ? "," : "", name[i / CHARS], name[i % CHARS]);
    buf_puts(&json, "]}}");
    assert_int_equal(buf_status(&json), ST_OK);
    write_file(&dir, "tokenizer.json", json.data, json.len);
    clock_t start = clock();
    if (eng_tok_open(dir.path, &tok, err)) fail_msg("%s", err);
    double took_s = (double)(clock() - start) / CLOCKS_PER_SEC;
    if (getenv("DAKD_TEST_VERBOSE")) printf("opened %zu bytes in %.3f s\n", json.len, took_s);
#ifndef DAKD_DEBUG
    assert_true(took_s < 3.0);
#endif
    assert_int_equal(eng_tok_vocab_size(tok), CHARS + CHARS * CHARS);
    size_t count;
    int32_t *ids = encode(tok, "\u4e01\u4e02\u4e03", 9, 0, &count);
    assert_int_equal(count, 2);
    /* (1,2) is listed before (2,3). */
    assert_int_equal(ids[0], CHARS + CHARS + 2);
    assert_int_equal(ids[1], 3);
    free(ids);
    eng_tok_close(tok);
    buf_deinit(&json);
    remove_dir(&dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lookups),       cmocka_unit_test(test_flags),
        cmocka_unit_test(test_limits),        cmocka_unit_test(test_round_trips),
        cmocka_unit_test(test_invalid_utf8),  cmocka_unit_test(test_byte_runs),
        cmocka_unit_test(test_long_byte_run), cmocka_unit_test(test_normalized_special),
        cmocka_unit_test(test_long_texts),    cmocka_unit_test(test_threads),
        cmocka_unit_test(test_malformed),     cmocka_unit_test(test_nesting),
        cmocka_unit_test(test_special_names), cmocka_unit_test(test_large_vocabulary),
    };
    return cmocka_run_group_tests_name("engine/tokenizer", tests, NULL, NULL);
}
