/*
 * tokenizer.c - the facade: opens a model directory's tokenizer, and takes a text through its
 * stages.
 *
 *   bytes -> valid UTF-8 -> added tokens (tok_added) -> normal form (tok_normalize) -> added tokens
 * again
 *         -> words (tok_pretok) -> ids (tok_bpe) -> BOS and its like (tok_post)
 *   ids -> text (tok_decode)
 *
 * Invariants:
 *  1. Nothing in struct eng_tok changes after eng_tok_open; what a call needs to write lies in its
 * own struct encoder.
 *  2. Every stage works on valid UTF-8 only.
 *  3. Every buffer is bounded by the input's length; the ids by ids_max.
 *
 * Behaviour follows Hugging Face's `tokenizers` (its documentation, and comparison with the package
 * in tests/parity/test_tokenizer.py, token for token).
 */
#include "engine/tokenizer.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "config/file.h"
#include "config/json.h"
#include "config/utf8.h"
#include "engine/tok_added.h"
#include "engine/tok_bpe.h"
#include "engine/tok_decode.h"
#include "engine/tok_normalize.h"
#include "engine/tok_post.h"
#include "engine/tok_pretok.h"
#include "engine/tok_unicode.h"

struct eng_tok {
    struct eng_norm norm;
    struct eng_bpe bpe;
    struct eng_added added;
    struct eng_pretok pretok;
    struct eng_post post;
    struct eng_decoder decoder;
    int32_t bos_id, eos_id;
};

/* Metaspace's "first" asks whether a part begins where the input began.  In the reference that is
 * true of every character which a normalizer made from the input's first one; here it is true of
 * the first alone.  The two differ only where such characters can be cut apart, and no published
 * tokenizer does that. */
static enum status check_parts(const struct eng_tok *tok, char *err)
{
    bool prepend = false;
    for (int i = 0; i < tok->norm.count; i++)
        prepend |= tok->norm.steps[i].kind == ENG_NORM_PREPEND;
    for (int i = 0; i < tok->pretok.count; i++) {
        const struct eng_pretok_step *s = &tok->pretok.steps[i];
        if (s->kind != ENG_PRETOK_METASPACE || s->prepend != ENG_PRETOK_FIRST) continue;
        if (prepend || (i > 0 && tok->norm.count > 0))
            return err_set(
                err, ST_UNSUPPORTED,
                "a Metaspace with prepend_scheme 'first' is not supported after the normalizer "
                "Prepend, nor behind another pre-tokenizer where there is a normalizer");
    }
    return ST_OK;
}

static enum status read_parts(struct eng_tok *tok, const cJSON *json, char *err)
{
    enum status st;
    if (!cJSON_IsObject(json)) return err_set(err, ST_INVALID, "not an object");
    if ((st = eng_norm_init(&tok->norm, json_member(json, "normalizer"), err)) ||
        (st = eng_bpe_init(&tok->bpe, json_member(json, "model"), err)) ||
        (st = eng_added_init(&tok->added, json_member(json, "added_tokens"), &tok->bpe.vocab,
                             &tok->norm, err)) ||
        (st = eng_pretok_init(&tok->pretok, json_member(json, "pre_tokenizer"), err)) ||
        (st = check_parts(tok, err)) ||
        (st = eng_decoder_init(&tok->decoder, json_member(json, "decoder"), &tok->bpe, &tok->added,
                               err)))
        return st;
    return eng_post_init(&tok->post, json_member(json, "post_processor"), tok->decoder.id_count,
                         err);
}

/* The token that `key` names, as a string or as an object with "content". */
static enum status read_special(const struct eng_tok *tok, const cJSON *json, const char *key,
                                int32_t *id, char *err)
{
    const cJSON *item = json_member(json, key);
    const char *text;
    if (cJSON_IsObject(item)) item = json_member(item, "content");
    if (!item) return ST_OK;
    if (!(text = cJSON_GetStringValue(item)))
        return err_set(err, ST_INVALID, "'%s' is no string", key);
    *id = eng_tok_id(tok, text, strlen(text));
    if (*id < 0)
        return err_set(err, ST_INVALID, "'%s' names '%.100s', which tokenizer.json does not have",
                       key, text);
    return ST_OK;
}

/* Takes bos_token and eos_token where they are not known yet; the file may be absent. */
static enum status read_specials(struct eng_tok *tok, const char *model_dir, const char *name,
                                 char *err)
{
    char path[PATH_MAX], why[ERR_CAP];
    cJSON *json;
    enum status st = file_join(path, sizeof path, model_dir, name, err);
    if (st || !file_exists(path)) return st;
    if ((st = json_parse_file(path, &json_limits_file, &json, err))) return st;
    if (!cJSON_IsObject(json)) st = err_set(why, ST_INVALID, "not an object");
    if (!st && tok->bos_id < 0) st = read_special(tok, json, "bos_token", &tok->bos_id, why);
    if (!st && tok->eos_id < 0) st = read_special(tok, json, "eos_token", &tok->eos_id, why);
    cJSON_Delete(json);
    return st ? err_set(err, st, "%s: %.300s", path, why) : ST_OK;
}

enum status eng_tok_open(const char *model_dir, struct eng_tok **out, char *err)
{
    char path[PATH_MAX], why[ERR_CAP];
    cJSON *json;
    *out = NULL;
    enum status st = file_join(path, sizeof path, model_dir, "tokenizer.json", err);
    if (st || (st = json_parse_file(path, &json_limits_file, &json, err))) return st;
    struct eng_tok *tok = calloc(1, sizeof *tok);
    if (!tok) {
        cJSON_Delete(json);
        return err_set(err, ST_NOMEM, "no memory for the tokenizer");
    }
    tok->bos_id = tok->eos_id = -1;
    st = read_parts(tok, json, why);
    cJSON_Delete(json);
    if (st) err_set(err, st, "%s: %.400s", path, why);
    if (!st) st = read_specials(tok, model_dir, "tokenizer_config.json", err);
    if (!st) st = read_specials(tok, model_dir, "special_tokens_map.json", err);
    if (st) {
        eng_tok_close(tok);
        return st;
    }
    *out = tok;
    return ST_OK;
}

void eng_tok_close(struct eng_tok *tok)
{
    if (!tok) return;
    eng_norm_deinit(&tok->norm);
    eng_bpe_deinit(&tok->bpe);
    eng_added_deinit(&tok->added);
    eng_pretok_deinit(&tok->pretok);
    eng_decoder_deinit(&tok->decoder);
    free(tok);
}

int eng_tok_vocab_size(const struct eng_tok *tok)
{
    return tok->decoder.id_count;
}

int32_t eng_tok_id(const struct eng_tok *tok, const char *token, size_t len)
{
    int32_t id = eng_vocab_find(&tok->added.vocab, token, len);
    return id >= 0 ? id : eng_vocab_find(&tok->bpe.vocab, token, len);
}

int32_t eng_tok_bos(const struct eng_tok *tok)
{
    return tok->bos_id;
}

int32_t eng_tok_eos(const struct eng_tok *tok)
{
    return tok->eos_id;
}

const char *eng_tok_text(const struct eng_tok *tok, int32_t id)
{
    const char *text = eng_vocab_text(&tok->added.vocab, id, NULL);
    return text ? text : eng_vocab_text(&tok->bpe.vocab, id, NULL);
}

enum status eng_tok_bytes(const struct eng_tok *tok, int32_t id, struct buf *out)
{
    return eng_decoder_bytes(&tok->decoder, id, out);
}

bool eng_tok_is_special(const struct eng_tok *tok, int32_t id)
{
    return id >= 0 && id < tok->decoder.id_count && tok->decoder.by_id[id].special;
}

/* What one eng_tok_encode call works in. */
struct encoder {
    const struct eng_tok *tok;
    bool parse_special;
    struct buf input; /* the text as valid UTF-8, where it was not */
    struct buf part, spare;
    struct eng_regex_scratch regex;
    struct eng_pretok_scratch pretok;
    struct eng_bpe_scratch bpe;
    struct eng_bpe_ids ids;
};

static enum status encode_word(void *arg, const char *word, size_t len)
{
    struct encoder *e = arg;
    return eng_bpe_encode(&e->tok->bpe, &e->bpe, word, len, &e->ids);
}

/* A part of the input between the added tokens that stand in it literally. */
static enum status encode_part(struct encoder *e, const char *text, size_t len, bool at_start)
{
    struct eng_added_scan scan;
    size_t start, end;
    int32_t id;
    bool left_cut = false;
    enum status st;
    buf_clear(&e->part);
    buf_put(&e->part, text, len);
    if ((st = buf_status(&e->part))) return st;
    if ((st = eng_norm_apply(&e->tok->norm, &e->regex, &e->part, &e->spare, &left_cut))) return st;
    eng_added_scan_init(&scan, &e->tok->added, &e->tok->added.normalized, e->parse_special,
                        e->part.data, e->part.len);
    while (eng_added_next(&scan, &start, &end, &id)) {
        st = id >= 0
                 ? eng_bpe_ids_put(&e->ids, id)
                 : eng_pretok_run(&e->tok->pretok, &e->pretok, e->part.data + start, end - start,
                                  at_start && !left_cut && start == 0, encode_word, e);
        if (st) return st;
    }
    return ST_OK;
}

static enum status encode_text(struct encoder *e, const char *text, size_t len)
{
    struct eng_added_scan scan;
    size_t start, end;
    int32_t id;
    eng_added_scan_init(&scan, &e->tok->added, &e->tok->added.raw, e->parse_special, text, len);
    while (eng_added_next(&scan, &start, &end, &id)) {
        enum status st = id >= 0 ? eng_bpe_ids_put(&e->ids, id)
                                 : encode_part(e, text + start, end - start, start == 0);
        if (st) return st;
    }
    return ST_OK;
}

/* Copies the text with U+FFFD for what is not UTF-8. */
static enum status replace_invalid(const char *text, size_t len, struct buf *out)
{
    size_t at = 0;
    while (at < len) {
        size_t valid = utf8_valid_prefix(text + at, len - at);
        buf_put(out, text + at, valid);
        at += valid;
        if (at == len) break;
        buf_puts(out, ENG_UCD_REPLACEMENT);
        at += eng_ucd_bad_len(text + at, len - at);
    }
    return buf_status(out);
}

static enum status encode_all(struct encoder *e, const char *text, size_t len, unsigned flags)
{
    const struct eng_post *post = &e->tok->post;
    enum status st = ST_OK;
    if (utf8_valid_prefix(text, len) < len) {
        if ((st = replace_invalid(text, len, &e->input))) return st;
        text = e->input.data;
        len = e->input.len;
    }
    bool add = flags & ENG_TOK_ADD_SPECIAL;
    for (size_t i = 0; add && !st && i < post->before_count; i++)
        st = eng_bpe_ids_put(&e->ids, post->before[i]);
    if (!st) st = encode_text(e, text, len);
    for (size_t i = 0; add && !st && i < post->after_count; i++)
        st = eng_bpe_ids_put(&e->ids, post->after[i]);
    return st;
}

/* Bytes that normalisation and byte-level characters may need for a text of len bytes. */
static size_t work_bytes_max(size_t len)
{
    const size_t factor = 64, slack = 1u << 20;
    return len < (SIZE_MAX - slack) / factor ? len * factor + slack : SIZE_MAX;
}

enum status eng_tok_encode(const struct eng_tok *tok, const char *text, size_t len, unsigned flags,
                           size_t ids_max, int32_t **ids, size_t *count, char *err)
{
    struct encoder e = {.tok = tok, .parse_special = flags & ENG_TOK_PARSE_SPECIAL};
    *ids = NULL;
    *count = 0;
    if (eng_regex_scratch_init(&e.regex)) return err_set(err, ST_NOMEM, "no memory to tokenise");
    size_t most = work_bytes_max(len);
    buf_init(&e.input, most);
    buf_init(&e.part, most);
    buf_init(&e.spare, most);
    eng_pretok_scratch_init(&e.pretok, &e.regex, most);
    e.ids.max = ids_max;
    enum status st = encode_all(&e, text, len, flags);
    if (st == ST_LIMIT && e.ids.count == ids_max)
        err_set(err, st, "the text has more than %zu tokens", ids_max);
    else if (st) err_set(err, st, "the text cannot be tokenised (%s)", status_text(st));
    if (!st && e.ids.count > 0) {
        *ids = e.ids.data;
        *count = e.ids.count;
    } else {
        free(e.ids.data);
    }
    eng_bpe_scratch_deinit(&e.bpe);
    eng_pretok_scratch_deinit(&e.pretok);
    buf_deinit(&e.spare);
    buf_deinit(&e.part);
    buf_deinit(&e.input);
    eng_regex_scratch_deinit(&e.regex);
    return st;
}

enum status eng_tok_decode(const struct eng_tok *tok, const int32_t *ids, size_t count,
                           bool skip_special, struct buf *out, char *err)
{
    struct eng_detok d;
    enum status st = ST_OK;
    eng_detok_init(&d, tok, skip_special);
    for (size_t i = 0; i < count && !st; i++) {
        if (ids[i] < 0) return err_set(err, ST_INVALID, "%d is no token id", ids[i]);
        eng_decoder_look_ahead(&tok->decoder, &d, ids, i, count);
        st = eng_decoder_push(&tok->decoder, &d, ids[i], out);
    }
    if (!st) st = eng_decoder_flush(&tok->decoder, &d, out);
    return st ? err_set(err, st, "the text of %zu tokens: %s", count, status_text(st)) : ST_OK;
}

void eng_detok_init(struct eng_detok *d, const struct eng_tok *tok, bool skip_special)
{
    memset(d, 0, sizeof *d);
    d->tok = tok;
    d->skip_special = skip_special;
}

enum status eng_detok_push(struct eng_detok *d, int32_t id, struct buf *out)
{
    return eng_decoder_push(&d->tok->decoder, d, id, out);
}

enum status eng_detok_flush(struct eng_detok *d, struct buf *out)
{
    return eng_decoder_flush(&d->tok->decoder, d, out);
}
