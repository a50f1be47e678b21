/*
 * tok_decode.c - tokens to text.
 *
 * tokenizer.json's decoder is a chain of functions from a list of strings to a list of strings. The
 * chains in use all have one shape, and that shape streams:
 *
 *   per token (Replace, Strip, Metaspace)  ->  byte runs (ByteFallback)  ->  one text (Fuse |
 * ByteLevel)  ->  Strip
 *
 * Another order is refused at open.  The per-token part is applied to the whole vocabulary once, at
 * open; decoding a token is then a copy of its piece.  eng_tok_decode is the same code as the
 * incremental detokenizer, with the one advantage that it can look ahead in a byte run.
 *
 * States of a byte run (run_state):
 *
 *   RUN_NONE --byte--> RUN_HELD --a byte that fits no character (run_byte)--> RUN_BROKEN
 *      |                  |  `----ENG_DETOK_RUN_MAX bytes (run_byte)--> RUN_VALID
 *      |                  `--text token or flush (run_end)--> RUN_NONE
 *      `--eng_decoder_look_ahead--> RUN_VALID or RUN_BROKEN --run_end--> RUN_NONE
 */
#include "engine/tok_decode.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "config/json.h"
#include "config/utf8.h"
#include "engine/tok_unicode.h"

enum run_state {
    RUN_NONE,
    RUN_HELD,   /* valid so far, kept in run[] */
    RUN_BROKEN, /* not UTF-8: every byte is a U+FFFD */
    RUN_VALID,  /* emitted character by character; partial[] holds the beginning of one */
};

static enum status read_strip(const cJSON *json, struct eng_decoder_strip *s, char *err)
{
    const char *content;
    int64_t start, stop;
    enum status st;
    if ((st = json_get_string(json, "content", NULL, &content, err)) ||
        (st = json_get_int(json, "start", 0, 1 << 20, 0, &start, err)) ||
        (st = json_get_int(json, "stop", 0, 1 << 20, 0, &stop, err)))
        return st;
    size_t len = content ? strlen(content) : 0;
    if (len == 0 || utf8_char_len(content, len) != len)
        return err_set(err, ST_INVALID, "the decoder Strip's 'content' must be one character");
    memcpy(s->content, content, len + 1);
    s->start = (uint32_t)start;
    s->stop = (uint32_t)stop;
    return ST_OK;
}

static enum status read_replace(const cJSON *json, struct eng_decoder_step *s, char *err)
{
    const char *content;
    enum status st = json_get_string(json, "content", NULL, &content, err);
    if (st) return st;
    if (!content) return err_set(err, ST_INVALID, "the decoder Replace lacks 'content'");
    s->content = strdup(content);
    if (!s->content) return err_set(err, ST_NOMEM, "no memory for the decoder");
    return eng_norm_pattern(json_member(json, "pattern"), &s->re, err);
}

static enum status out_of_order(const char *type, char *err)
{
    return err_set(err, ST_UNSUPPORTED,
                   "the decoder '%.60s' is not supported at its place in the sequence", type);
}

static enum status read_per_token(struct eng_decoder *d, const char *type, const cJSON *json,
                                  char *err)
{
    if (d->byte_fallback || d->fused || d->metaspace) return out_of_order(type, err);
    if (!strcmp(type, "Metaspace")) {
        d->metaspace = true;
        return eng_pretok_metaspace(json, &d->prepend, d->replacement, err);
    }
    if (d->step_count == ENG_DECODER_STEPS_MAX)
        return err_set(err, ST_UNSUPPORTED, "more than %d decoders", ENG_DECODER_STEPS_MAX);
    struct eng_decoder_step *s = &d->steps[d->step_count++];
    s->strip = !strcmp(type, "Strip");
    return s->strip ? read_strip(json, &s->cut, err) : read_replace(json, s, err);
}

static enum status read_steps(struct eng_decoder *d, const cJSON *json, char *err)
{
    const char *type;
    enum status st = json_get_string(json, "type", NULL, &type, err);
    if (st) return st;
    if (!type) return err_set(err, ST_INVALID, "a decoder has no 'type'");
    if (!strcmp(type, "Sequence")) {
        const cJSON *list = json_member(json, "decoders"), *item;
        if (!cJSON_IsArray(list))
            return err_set(err, ST_INVALID, "a decoder Sequence lacks 'decoders'");
        cJSON_ArrayForEach(item, list) if ((st = read_steps(d, item, err))) return st;
        return ST_OK;
    }
    if (!strcmp(type, "Fuse")) {
        d->fused = true;
    } else if (!strcmp(type, "ByteLevel")) {
        if (d->fused || d->byte_fallback || d->metaspace) return out_of_order(type, err);
        d->byte_level = d->fused = true;
    } else if (!strcmp(type, "ByteFallback")) {
        if (d->fused || d->byte_fallback || d->metaspace) return out_of_order(type, err);
        d->byte_fallback = true;
    } else if (!strcmp(type, "Strip") && d->fused) {
        if (d->stream_strip) return out_of_order(type, err);
        d->stream_strip = true;
        return read_strip(json, &d->strip, err);
    } else if (!strcmp(type, "Replace") || !strcmp(type, "Strip") || !strcmp(type, "Metaspace")) {
        return read_per_token(d, type, json, err);
    } else {
        return err_set(err, ST_UNSUPPORTED, "the decoder '%.60s' is not supported", type);
    }
    return ST_OK;
}

/* Drops up to `start` leading and `stop` trailing characters of the given kind. */
static enum status strip_token(const struct eng_decoder_strip *s, const struct buf *in,
                               struct buf *out)
{
    size_t n = strlen(s->content), from = 0, to = in->len;
    for (uint32_t i = 0; i < s->start && to - from >= n; i++, from += n)
        if (memcmp(in->data + from, s->content, n)) break;
    for (uint32_t i = 0; i < s->stop && to - from >= n; i++, to -= n)
        if (memcmp(in->data + to - n, s->content, n)) break;
    buf_put(out, in->data + from, to - from);
    return buf_status(out);
}

/* Byte of the byte-level character, or -1. */
static int char_to_byte(uint32_t cp)
{
    if ((cp >= '!' && cp <= '~') || (cp >= 0xA1 && cp <= 0xAC) || (cp >= 0xAE && cp <= 0xFF))
        return (int)cp;
    if (cp >= 0x100 && cp <= 0x120) return (int)(cp - 0x100);
    if (cp >= 0x121 && cp <= 0x142) return (int)(cp - 0x121 + 0x7F);
    return cp == 0x143 ? 0xAD : -1;
}

/* Byte-level characters to bytes; a token with any other character is its own UTF-8. */
static enum status unmap_token(const struct buf *in, struct buf *out)
{
    size_t before = out->len;
    const char *p = in->data, *end = in->data + in->len;
    while (p < end) {
        int byte = char_to_byte(eng_ucd_next(&p, end));
        if (byte < 0) {
            out->len = before;
            buf_put(out, in->data, in->len);
            break;
        }
        buf_putc(out, (char)byte);
    }
    return buf_status(out);
}

/* The byte that "<0xHH>" names, or -1.  (The reference's number parser takes "+H" as well.) */
static int byte_token(const char *text, size_t len)
{
    if (len != 6 || memcmp(text, "<0x", 3) || text[5] != '>') return -1;
    const char hex[] = {text[3] == '+' ? '0' : text[3], text[4], '\0'};
    if (!isxdigit((unsigned char)hex[0]) || !isxdigit((unsigned char)hex[1])) return -1;
    return (int)strtol(hex, NULL, 16);
}

struct piece_work {
    struct eng_regex_scratch regex;
    struct buf text, spare;
};

static enum status make_piece(struct eng_decoder *d, struct piece_work *w, struct eng_piece *piece,
                              const char *token, size_t len)
{
    enum status st = ST_OK;
    buf_clear(&w->text);
    buf_put(&w->text, token, len);
    for (int i = 0; i < d->step_count && !st; i++) {
        const struct eng_decoder_step *s = &d->steps[i];
        buf_clear(&w->spare);
        st = s->strip ? strip_token(&s->cut, &w->text, &w->spare)
                      : eng_regex_replace(&s->re, &w->regex, w->text.data, w->text.len, s->content,
                                          strlen(s->content), &w->spare);
        struct buf swap = w->text;
        w->text = w->spare;
        w->spare = swap;
    }
    if (st || (st = buf_status(&w->text))) return st;
    piece->known = true;
    piece->at = (uint32_t)d->pieces.len;
    int byte = d->byte_fallback ? byte_token(w->text.data, w->text.len) : -1;
    piece->byte = byte >= 0;
    if (d->byte_level) st = unmap_token(&w->text, &d->pieces);
    else if (piece->byte) buf_putc(&d->pieces, (char)byte);
    else buf_put(&d->pieces, w->text.data, w->text.len);
    piece->len = (uint32_t)d->pieces.len - piece->at;
    return st ? st : buf_status(&d->pieces);
}

static enum status make_pieces(struct eng_decoder *d, const struct eng_bpe *bpe,
                               const struct eng_added *added)
{
    struct piece_work w;
    enum status st = eng_regex_scratch_init(&w.regex);
    if (st) return st;
    buf_init(&w.text, 1u << 28);
    buf_init(&w.spare, 1u << 28);
    for (int32_t id = 0; id < d->id_count && !st; id++) {
        size_t len;
        const char *token = eng_vocab_text(&added->vocab, id, &len);
        if (!token) token = eng_vocab_text(&bpe->vocab, id, &len);
        if (token) st = make_piece(d, &w, &d->by_id[id], token, len);
    }
    for (int32_t i = 0; i < added->count; i++)
        d->by_id[added->tokens[i].id].special = added->tokens[i].special;
    buf_deinit(&w.text);
    buf_deinit(&w.spare);
    eng_regex_scratch_deinit(&w.regex);
    return st;
}

enum status eng_decoder_init(struct eng_decoder *d, const cJSON *json, const struct eng_bpe *bpe,
                             const struct eng_added *added, char *err)
{
    enum status st = ST_OK;
    *d = (struct eng_decoder){.join_with_spaces = !json};
    buf_init(&d->pieces, (size_t)UINT32_MAX);
    if (json && (st = read_steps(d, json, err))) return st;
    d->id_count =
        bpe->vocab.id_count > added->vocab.id_count ? bpe->vocab.id_count : added->vocab.id_count;
    d->by_id = calloc((size_t)d->id_count, sizeof *d->by_id);
    if (!d->by_id) return err_set(err, ST_NOMEM, "no memory for the decoder");
    if ((st = make_pieces(d, bpe, added)))
        err_set(err, st, "the decoder cannot be applied to the vocabulary (%s)", status_text(st));
    return st;
}

void eng_decoder_deinit(struct eng_decoder *d)
{
    for (int i = 0; i < d->step_count; i++) {
        eng_regex_deinit(&d->steps[i].re);
        free(d->steps[i].content);
    }
    free(d->by_id);
    buf_deinit(&d->pieces);
    *d = (struct eng_decoder){0};
}

/* The last stage: whole characters on their way out, less what Strip takes from both ends. */
static void emit(const struct eng_decoder *dec, struct eng_detok *d, const char *text, size_t len,
                 struct buf *out)
{
    if (!dec->stream_strip) {
        buf_put(out, text, len);
        return;
    }
    const struct eng_decoder_strip *s = &dec->strip;
    size_t n = strlen(s->content);
    for (size_t i = 0; i < len;) {
        size_t step = utf8_char_len(text + i, len - i);
        CHECK(step > 0);
        if (step != n || memcmp(text + i, s->content, n)) {
            for (; d->strip_right > 0; d->strip_right--) buf_put(out, s->content, n);
            d->strip_left = 0;
            buf_put(out, text + i, step);
        } else if (d->strip_left > 0) {
            d->strip_left--;
        } else if (d->strip_right < s->stop) {
            d->strip_right++;
        } else {
            buf_put(out, s->content, n);
        }
        i += step;
    }
}

static void emit_replacements(const struct eng_decoder *dec, struct eng_detok *d, size_t count,
                              struct buf *out)
{
    while (count-- > 0) emit(dec, d, ENG_UCD_REPLACEMENT, 3, out);
}

/* Emits bytes as characters, U+FFFD for what is none; returns how many were used.  All of them at
 * the end of the text, else all but the beginning of a character. */
static size_t emit_bytes(const struct eng_decoder *dec, struct eng_detok *d, const char *p,
                         size_t n, bool at_end, struct buf *out)
{
    size_t i = 0;
    while (i < n) {
        size_t valid = utf8_valid_prefix(p + i, n - i);
        emit(dec, d, p + i, valid, out);
        i += valid;
        if (i == n || (!at_end && utf8_is_partial(p + i, n - i))) break;
        emit_replacements(dec, d, 1, out);
        i += eng_ucd_bad_len(p + i, n - i);
    }
    return i;
}

/* Bytes of a text that may break off inside a character. */
static void push_bytes(const struct eng_decoder *dec, struct eng_detok *d, const char *p, size_t n,
                       struct buf *out)
{
    while (n > 0 && d->partial_len > 0) {
        d->partial[d->partial_len++] = *p++;
        n--;
        size_t used = emit_bytes(dec, d, d->partial, d->partial_len, false, out);
        d->partial_len = (uint8_t)(d->partial_len - used);
        memmove(d->partial, d->partial + used, d->partial_len);
    }
    size_t used = emit_bytes(dec, d, p, n, false, out);
    if (n > used) {
        memcpy(d->partial, p + used, n - used);
        d->partial_len = (uint8_t)(n - used);
    }
}

static void run_byte(const struct eng_decoder *dec, struct eng_detok *d, char byte, struct buf *out)
{
    if (d->run_state == RUN_VALID) {
        push_bytes(dec, d, &byte, 1, out);
        return;
    }
    if (d->run_state == RUN_BROKEN) {
        emit_replacements(dec, d, 1, out);
        return;
    }
    d->run_state = RUN_HELD;
    d->run[d->run_len++] = byte;
    size_t tail = (size_t)(d->run_len - d->run_whole);
    if (utf8_char_len(d->run + d->run_whole, tail) == tail) d->run_whole = d->run_len;
    else if (!utf8_is_partial(d->run + d->run_whole, tail)) {
        emit_replacements(dec, d, d->run_len, out);
        d->run_state = RUN_BROKEN;
        d->run_len = d->run_whole = 0;
        return;
    }
    if (d->run_len == ENG_DETOK_RUN_MAX) {
        push_bytes(dec, d, d->run, d->run_len, out);
        d->run_state = RUN_VALID;
        d->run_len = d->run_whole = 0;
    }
}

static void run_end(const struct eng_decoder *dec, struct eng_detok *d, struct buf *out)
{
    if (d->run_state == RUN_HELD && d->run_whole == d->run_len)
        emit(dec, d, d->run, d->run_len, out);
    else if (d->run_state == RUN_HELD) emit_replacements(dec, d, d->run_len, out);
    else if (d->run_state == RUN_VALID) emit_replacements(dec, d, d->partial_len, out);
    d->partial_len = 0;
    d->run_len = d->run_whole = 0;
    d->run_state = RUN_NONE;
}

/* The token counts in the result: it exists and is not skipped. */
static const struct eng_piece *find_piece(const struct eng_decoder *dec, const struct eng_detok *d,
                                          int32_t id)
{
    const struct eng_piece *piece = id < dec->id_count ? &dec->by_id[id] : NULL;
    return piece && piece->known && !(d->skip_special && piece->special) ? piece : NULL;
}

static void emit_metaspace(const struct eng_decoder *dec, struct eng_detok *d, const char *text,
                           size_t len, bool first, struct buf *out)
{
    size_t n = strlen(dec->replacement), done = 0;
    bool drop = first && dec->prepend != ENG_PRETOK_NEVER;
    for (size_t i = 0; i + n <= len;) {
        if (memcmp(text + i, dec->replacement, n)) {
            i++;
            continue;
        }
        emit(dec, d, text + done, i - done, out);
        if (!drop) emit(dec, d, " ", 1, out);
        i += n;
        done = i;
    }
    emit(dec, d, text + done, len - done, out);
}

enum status eng_decoder_push(const struct eng_decoder *dec, struct eng_detok *d, int32_t id,
                             struct buf *out)
{
    if (id < 0) return ST_INVALID;
    const struct eng_piece *piece = find_piece(dec, d, id);
    if (!piece) return buf_status(out);
    const char *text = dec->pieces.data + piece->at;
    bool first = !d->started;
    if (first) d->strip_left = dec->strip.start;
    d->started = true;
    if (piece->byte) {
        run_byte(dec, d, *text, out);
    } else if (dec->byte_level) {
        push_bytes(dec, d, text, piece->len, out);
    } else {
        if (dec->byte_fallback) run_end(dec, d, out);
        if (dec->join_with_spaces && !first) emit(dec, d, " ", 1, out);
        if (dec->metaspace) emit_metaspace(dec, d, text, piece->len, first, out);
        else emit(dec, d, text, piece->len, out);
    }
    return buf_status(out);
}

enum status eng_decoder_flush(const struct eng_decoder *dec, struct eng_detok *d, struct buf *out)
{
    if (dec->byte_level) {
        size_t used = emit_bytes(dec, d, d->partial, d->partial_len, true, out);
        CHECK(used == d->partial_len);
    } else {
        run_end(dec, d, out);
    }
    d->partial_len = 0;
    d->strip_right = 0;
    d->started = false;
    return buf_status(out);
}

void eng_decoder_look_ahead(const struct eng_decoder *dec, struct eng_detok *d, const int32_t *ids,
                            size_t at, size_t count)
{
    if (!dec->byte_fallback || d->run_state != RUN_NONE) return;
    const struct eng_piece *first = ids[at] < 0 ? NULL : find_piece(dec, d, ids[at]);
    if (!first || !first->byte) return;
    char tail[4];
    size_t n = 0;
    for (; at < count && ids[at] >= 0; at++) {
        const struct eng_piece *piece = find_piece(dec, d, ids[at]);
        if (!piece) continue;
        if (!piece->byte) break;
        tail[n++] = dec->pieces.data[piece->at];
        if (utf8_char_len(tail, n) == n) n = 0;
        else if (!utf8_is_partial(tail, n)) break;
    }
    d->run_state = n == 0 ? RUN_VALID : RUN_BROKEN;
}

enum status eng_decoder_bytes(const struct eng_decoder *dec, int32_t id, struct buf *out)
{
    if (id < 0 || id >= dec->id_count || !dec->by_id[id].known) return ST_NOT_FOUND;
    const struct eng_piece *piece = &dec->by_id[id];
    if (!dec->metaspace) {
        buf_put(out, dec->pieces.data + piece->at, piece->len);
        return buf_status(out);
    }
    struct eng_detok d = {.started = true};
    emit_metaspace(dec, &d, dec->pieces.data + piece->at, piece->len, false, out);
    for (; d.strip_right > 0; d.strip_right--) buf_puts(out, dec->strip.content);
    return buf_status(out);
}
