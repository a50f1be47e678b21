/*
 * tool_tokenize.c - the tokenizer over a pipe, for comparison with other implementations.
 *
 *   tool_tokenize MODEL_DIR encode FLAGS            frames of text in, frames of ids out
 *   tool_tokenize MODEL_DIR decode SKIP_SPECIAL     frames of ids in, frames of text out
 *   tool_tokenize MODEL_DIR incremental SKIP_SPECIAL   the same, token by token
 *
 * A frame is a length in bytes (32 bits, this machine's byte order) and that many bytes; ids are 32
 * bits each. FLAGS is a sum of ENG_TOK_*.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/buf.h"
#include "config/check.h"
#include "config/utf8.h"
#include "engine/tokenizer.h"

#define FRAME_MAX (64u << 20)

static int read_frame(struct buf *in)
{
    uint32_t len;
    buf_clear(in);
    if (fread(&len, sizeof len, 1, stdin) != 1) return 0;
    if (buf_reserve(in, len) || fread(in->data, 1, len, stdin) != len) {
        fprintf(stderr, "a frame of %u bytes cannot be read\n", len);
        exit(2);
    }
    in->len = len;
    return 1;
}

static void write_frame(const void *data, size_t len)
{
    uint32_t n = (uint32_t)len;
    fwrite(&n, sizeof n, 1, stdout);
    if (len) fwrite(data, 1, len, stdout);
}

static void fail(const char *err)
{
    fprintf(stderr, "%s\n", err);
    exit(2);
}

static void decode_incrementally(const struct eng_tok *tok, const int32_t *ids, size_t count,
                                 bool skip, struct buf *out)
{
    struct eng_detok d;
    eng_detok_init(&d, tok, skip);
    for (size_t i = 0; i <= count; i++) {
        size_t before = out->len;
        if (i < count ? eng_detok_push(&d, ids[i], out) : eng_detok_flush(&d, out))
            fail("the detokenizer failed");
        if (utf8_valid_prefix(out->data + before, out->len - before) != out->len - before)
            fail("the detokenizer emitted half a character");
    }
}

int main(int argc, char **argv)
{
    char err[ERR_CAP];
    struct eng_tok *tok;
    struct buf in, out;
    if (argc != 4) fail("usage: tool_tokenize MODEL_DIR encode|decode|incremental NUMBER");
    unsigned number = (unsigned)atoi(argv[3]);
    if (eng_tok_open(argv[1], &tok, err)) fail(err);
    buf_init(&in, FRAME_MAX);
    buf_init(&out, FRAME_MAX);
    while (read_frame(&in)) {
        buf_clear(&out);
        if (buf_reserve(&out, 1)) fail("no memory");
        if (!strcmp(argv[2], "encode")) {
            int32_t *ids;
            size_t count;
            if (eng_tok_encode(tok, in.data, in.len, number, FRAME_MAX, &ids, &count, err))
                fail(err);
            write_frame(ids, count * sizeof *ids);
            free(ids);
            continue;
        }
        const int32_t *ids = (const int32_t *)(const void *)in.data;
        size_t count = in.len / sizeof *ids;
        if (!strcmp(argv[2], "incremental")) decode_incrementally(tok, ids, count, number, &out);
        else if (eng_tok_decode(tok, ids, count, number, &out, err)) fail(err);
        write_frame(out.data, out.len);
    }
    buf_deinit(&in);
    buf_deinit(&out);
    eng_tok_close(tok);
    return fflush(stdout) ? 2 : 0;
}
