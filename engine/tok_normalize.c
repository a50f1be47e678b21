/*
 * tok_normalize.c - NFC and its kin, lower case, stripping, prepending, replacing.
 *
 * The Unicode forms are built from utf8proc's per-character decomposition and its composition, with
 * the canonical ordering between them done here: utf8proc's own swaps neighbours, which takes
 * quadratic time on a long run of combining marks, and a prompt may be a megabyte of those.  Here a
 * run is counted and placed by class.
 *
 * Differences from the reference that come from its older tables (it decomposes by Unicode 11 or
 * so, and its accents are those of Unicode 7): only characters assigned later are touched.
 */
#include "engine/tok_normalize.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "config/check.h"
#include "config/json.h"
#include "config/utf8.h"
#include "engine/tok_unicode.h"

/* The longest compatibility decomposition has 18 characters. */
#define DECOMPOSITION_MAX 32

static enum status copy_text(const char *text, char **out, size_t *len)
{
    *len = strlen(text);
    *out = malloc(*len + 1);
    if (!*out) return ST_NOMEM;
    memcpy(*out, text, *len + 1);
    return ST_OK;
}

enum status eng_norm_pattern(const cJSON *json, struct eng_regex *out, char *err)
{
    const char *literal, *regex;
    enum status st;
    *out = (struct eng_regex){0};
    if (cJSON_IsString(json))
        return eng_regex_compile_literal(json->valuestring, strlen(json->valuestring), out, err);
    if ((st = json_get_string(json, "String", NULL, &literal, err))) return st;
    if ((st = json_get_string(json, "Regex", NULL, &regex, err))) return st;
    if (!literal == !regex)
        return err_set(err, ST_INVALID, "a pattern needs either 'String' or 'Regex'");
    if (literal) return eng_regex_compile_literal(literal, strlen(literal), out, err);
    return eng_regex_compile(regex, strlen(regex), out, err);
}

static enum status read_step(struct eng_norm_step *s, const char *type, const cJSON *json,
                             char *err)
{
    static const struct {
        const char *name;
        bool compose, compat;
    } forms[] = {{"NFC", 1, 0}, {"NFD", 0, 0}, {"NFKC", 1, 1}, {"NFKD", 0, 1}};
    const char *text;
    enum status st;
    for (size_t i = 0; i < ARRAY_COUNT(forms); i++) {
        if (strcmp(type, forms[i].name)) continue;
        *s = (struct eng_norm_step){
            .kind = ENG_NORM_FORM, .compose = forms[i].compose, .compat = forms[i].compat};
        return ST_OK;
    }
    if (!strcmp(type, "Lowercase")) {
        s->kind = ENG_NORM_LOWERCASE;
        return ST_OK;
    }
    if (!strcmp(type, "StripAccents")) {
        s->kind = ENG_NORM_STRIP_ACCENTS;
        return ST_OK;
    }
    if (!strcmp(type, "Strip")) {
        s->kind = ENG_NORM_STRIP;
        if ((st = json_get_bool(json, "strip_left", true, &s->left, err))) return st;
        return json_get_bool(json, "strip_right", true, &s->right, err);
    }
    int replace = !strcmp(type, "Replace");
    if (!replace && strcmp(type, "Prepend"))
        return err_set(err, ST_UNSUPPORTED, "the normalizer '%.60s' is not supported", type);
    s->kind = replace ? ENG_NORM_REPLACE : ENG_NORM_PREPEND;
    const char *key = replace ? "content" : "prepend";
    if ((st = json_get_string(json, key, NULL, &text, err))) return st;
    if (!text) return err_set(err, ST_INVALID, "the normalizer '%s' lacks '%s'", type, key);
    if (replace && (st = eng_norm_pattern(json_member(json, "pattern"), &s->re, err))) return st;
    if (copy_text(text, &s->content, &s->content_len))
        return err_set(err, ST_NOMEM, "no memory for the normalizer");
    return ST_OK;
}

static enum status read_steps(struct eng_norm *norm, const cJSON *json, char *err)
{
    const char *type;
    enum status st = json_get_string(json, "type", NULL, &type, err);
    if (st) return st;
    if (!type) return err_set(err, ST_INVALID, "a normalizer has no 'type'");
    if (!strcmp(type, "Sequence")) {
        const cJSON *list = json_member(json, "normalizers"), *item;
        if (!cJSON_IsArray(list))
            return err_set(err, ST_INVALID, "a normalizer Sequence lacks 'normalizers'");
        cJSON_ArrayForEach(item, list) if ((st = read_steps(norm, item, err))) return st;
        return ST_OK;
    }
    if (norm->count == ENG_NORM_STEPS_MAX)
        return err_set(err, ST_UNSUPPORTED, "more than %d normalizers", ENG_NORM_STEPS_MAX);
    return read_step(&norm->steps[norm->count++], type, json, err);
}

enum status eng_norm_init(struct eng_norm *norm, const cJSON *json, char *err)
{
    *norm = (struct eng_norm){0};
    return json ? read_steps(norm, json, err) : ST_OK;
}

void eng_norm_deinit(struct eng_norm *norm)
{
    for (int i = 0; i < norm->count; i++) {
        eng_regex_deinit(&norm->steps[i].re);
        free(norm->steps[i].content);
    }
    *norm = (struct eng_norm){0};
}

static void put_char(struct buf *out, uint32_t cp)
{
    char bytes[4];
    buf_put(out, bytes, utf8_encode(cp, bytes));
}

/* A decomposed text. */
struct code_points {
    utf8proc_int32_t *cps; /* owned */
    size_t count, cap;
};

static enum status decompose(const struct buf *text, bool compat, struct code_points *d)
{
    utf8proc_option_t options =
        UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (compat ? UTF8PROC_COMPAT : 0);
    const char *p = text->data, *end = text->data + text->len;
    while (p < end) {
        if (d->cap - d->count < DECOMPOSITION_MAX) {
            size_t cap = size_max(d->cap * 2, text->len / 2 + 2 * DECOMPOSITION_MAX);
            utf8proc_int32_t *cps = realloc(d->cps, cap * sizeof *cps);
            if (!cps) return ST_NOMEM;
            d->cps = cps;
            d->cap = cap;
        }
        utf8proc_int32_t cp = (utf8proc_int32_t)eng_ucd_next(&p, end);
        utf8proc_ssize_t n =
            utf8proc_decompose_char(cp, d->cps + d->count, DECOMPOSITION_MAX, options, NULL);
        CHECK(n >= 0 && n <= DECOMPOSITION_MAX);
        d->count += (size_t)n;
    }
    return ST_OK;
}

static unsigned class_of(utf8proc_int32_t cp)
{
    if (cp < 0x300) return 0;
    return (unsigned)utf8proc_get_property(cp)->combining_class & 0xFF;
}

/* Sorts a run of marks by combining class, keeping the order of equals. */
static enum status sort_run(utf8proc_int32_t *cps, size_t count)
{
    if (count < 16) {
        for (size_t i = 1; i < count; i++) {
            utf8proc_int32_t cp = cps[i];
            size_t at = i;
            for (; at > 0 && class_of(cps[at - 1]) > class_of(cp); at--) cps[at] = cps[at - 1];
            cps[at] = cp;
        }
        return ST_OK;
    }
    size_t start[257] = {0};
    utf8proc_int32_t *copy = malloc(count * sizeof *copy);
    if (!copy) return ST_NOMEM;
    memcpy(copy, cps, count * sizeof *copy);
    for (size_t i = 0; i < count; i++) start[class_of(copy[i]) + 1]++;
    for (size_t c = 1; c < ARRAY_COUNT(start); c++) start[c] += start[c - 1];
    for (size_t i = 0; i < count; i++) cps[start[class_of(copy[i])]++] = copy[i];
    free(copy);
    return ST_OK;
}

static enum status sort_marks(struct code_points *d)
{
    for (size_t i = 0; i < d->count;) {
        if (class_of(d->cps[i]) == 0) {
            i++;
            continue;
        }
        size_t first = i;
        while (i < d->count && class_of(d->cps[i])) i++;
        enum status st = i - first > 1 ? sort_run(d->cps + first, i - first) : ST_OK;
        if (st) return st;
    }
    return ST_OK;
}

static enum status apply_form(const struct eng_norm_step *s, const struct buf *in, struct buf *out)
{
    struct code_points d = {0};
    enum status st = decompose(in, s->compat, &d);
    if (!st) st = sort_marks(&d);
    if (!st && s->compose) {
        utf8proc_ssize_t n = utf8proc_normalize_utf32(d.cps, (utf8proc_ssize_t)d.count,
                                                      UTF8PROC_STABLE | UTF8PROC_COMPOSE);
        CHECK(n >= 0);
        d.count = (size_t)n;
    }
    for (size_t i = 0; !st && i < d.count; i++) put_char(out, (uint32_t)d.cps[i]);
    free(d.cps);
    return st ? st : buf_status(out);
}

static enum status apply_lowercase(const struct buf *in, struct buf *out)
{
    const char *p = in->data, *end = in->data + in->len;
    while (p < end) {
        uint32_t cp = eng_ucd_next(&p, end);
        if (cp == 0x130) { /* the one letter whose lower case has two characters */
            put_char(out, 'i');
            put_char(out, 0x307);
        } else {
            put_char(out, (uint32_t)utf8proc_tolower((utf8proc_int32_t)cp));
        }
    }
    return buf_status(out);
}

static enum status apply_strip(const struct eng_norm_step *s, const struct buf *in, struct buf *out,
                               bool *left_cut)
{
    const char *start = in->data, *end = in->data + in->len;
    while (s->left && start < end) {
        const char *p = start;
        if (!eng_ucd_is_space(eng_ucd_next(&p, end))) break;
        start = p;
        *left_cut = true;
    }
    while (s->right && start < end) {
        const char *p = end;
        if (!eng_ucd_is_space(eng_ucd_prev(&p, start))) break;
        end = p;
    }
    buf_put(out, start, (size_t)(end - start));
    return buf_status(out);
}

static enum status apply_strip_accents(const struct buf *in, struct buf *out, bool *left_cut)
{
    const char *p = in->data, *end = in->data + in->len;
    while (p < end) {
        uint32_t cp = eng_ucd_next(&p, end);
        if (!eng_ucd_is_mark(cp)) put_char(out, cp);
        else if (out->len == 0) *left_cut = true;
    }
    return buf_status(out);
}

static bool is_ascii(const struct buf *text)
{
    for (size_t i = 0; i < text->len; i++)
        if ((unsigned char)text->data[i] >= 0x80) return false;
    return true;
}

enum status eng_norm_apply(const struct eng_norm *norm, const struct eng_regex_scratch *scratch,
                           struct buf *text, struct buf *spare, bool *left_cut)
{
    for (int i = 0; i < norm->count && text->len > 0; i++) {
        const struct eng_norm_step *s = &norm->steps[i];
        enum status st = ST_OK;
        if (s->kind == ENG_NORM_FORM && is_ascii(text)) continue;
        buf_clear(spare);
        switch (s->kind) {
        case ENG_NORM_FORM: st = apply_form(s, text, spare); break;
        case ENG_NORM_LOWERCASE: st = apply_lowercase(text, spare); break;
        case ENG_NORM_STRIP: st = apply_strip(s, text, spare, left_cut); break;
        case ENG_NORM_STRIP_ACCENTS: st = apply_strip_accents(text, spare, left_cut); break;
        case ENG_NORM_PREPEND:
            buf_put(spare, s->content, s->content_len);
            buf_put(spare, text->data, text->len);
            st = buf_status(spare);
            break;
        case ENG_NORM_REPLACE:
            st = eng_regex_replace(&s->re, scratch, text->data, text->len, s->content,
                                   s->content_len, spare);
            break;
        }
        if (st) return st;
        struct buf swap = *text;
        *text = *spare;
        *spare = swap;
    }
    return ST_OK;
}
