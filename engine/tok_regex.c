/*
 * tok_regex.c - Oniguruma patterns on PCRE2.
 *
 * tokenizer.json holds patterns for Oniguruma in Ruby syntax.  Nearly all of what published
 * tokenizers use means the same in PCRE2 with UTF and UCP; the rest is rewritten or refused here,
 * never passed on to mean something else:
 *
 *   \s \S \w \W \d \D    spelt out: PCRE2's \s has U+180E, its \w lacks marks
 *   \v                   one character in Oniguruma, a class in PCRE2
 *   ^ $                  match at every line (PCRE2_MULTILINE), newline is LF alone
 *   {,n}                 is {0,n}
 *   {n,m}+ {n}?          a repeated, an optional group in Ruby; possessive, lazy in PCRE2: refused
 *   [a[b]] [a&&b]        nested sets and intersections: refused, as are POSIX names
 *   other letters after a backslash, named groups, options but i, (*VERBS): refused
 *
 * Known difference: (?i:ss) matches U+00DF in Oniguruma (folding to several characters) and not
 * here.  Both know the long s and the Kelvin sign.  PCRE2 10.42 has Unicode 14 tables.
 *
 * Texts are checked UTF-8 (PCRE2_NO_UTF_CHECK: checking again for each of n matches would make
 * tokenising quadratic).  Limits bound the work of one match; a hit limit is an error, never a
 * different split.
 */
#include "engine/tok_regex.h"

#include <ctype.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"

/* Inside brackets. */
#define SPACE_SET "\\p{Z}\\t-\\r\\x{85}"
#define WORD_SET                                                                                   \
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}\\x{24B6}-\\x{24E9}"     \
    "\\x{1F130}-\\x{1F149}\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{1F189}"

#define PATTERN_BYTES_MAX (64u << 10)
#define MATCH_LIMIT_BASE 10000000u
#define MATCH_LIMIT_PER_BYTE 16u
#define DEPTH_LIMIT 100000u
#define HEAP_LIMIT_KIB (64u << 10)

struct translator {
    const char *p, *end;
    struct buf out;
    const char *unsupported; /* what was met */
};

static void refuse(struct translator *t, const char *what)
{
    if (!t->unsupported) t->unsupported = what;
    t->p = t->end;
}

/* Copies \p{...} or \P{...}; p is at the letter. */
static void copy_property(struct translator *t)
{
    const char *close = memchr(t->p, '}', (size_t)(t->end - t->p));
    if (t->end - t->p < 2 || t->p[1] != '{' || !close) {
        refuse(t, "\\p without a name in braces");
        return;
    }
    buf_putc(&t->out, '\\');
    buf_put(&t->out, t->p, (size_t)(close + 1 - t->p));
    t->p = close + 1;
}

/* \xHH, \x{H...}, \uHHHH; p is at the letter. */
static void copy_code_point(struct translator *t)
{
    char kind = *t->p++;
    int braces = kind == 'x' && t->p < t->end && *t->p == '{';
    t->p += braces;
    int most = braces ? 8 : kind == 'u' ? 4 : 2, n = 0;
    buf_puts(&t->out, "\\x{");
    for (; n < most && t->p < t->end && isxdigit((unsigned char)*t->p); n++)
        buf_putc(&t->out, *t->p++);
    buf_putc(&t->out, '}');
    if (n == 0 || (kind == 'u' && n < 4) || (braces && (t->p == t->end || *t->p++ != '}')))
        refuse(t, "a malformed code point escape");
}

/* p is behind the backslash. */
static void translate_escape(struct translator *t, int in_class)
{
    if (t->p == t->end) {
        refuse(t, "a backslash at the end");
        return;
    }
    const char *as = NULL;
    switch (*t->p) {
    case 'p':
    case 'P': copy_property(t); return;
    case 'x':
    case 'u': copy_code_point(t); return;
    case 's': as = in_class ? SPACE_SET : "[" SPACE_SET "]"; break;
    case 'S': as = in_class ? "\\S\\x{180E}" : "[^" SPACE_SET "]"; break;
    case 'w': as = in_class ? WORD_SET : "[" WORD_SET "]"; break;
    case 'W': as = in_class ? NULL : "[^" WORD_SET "]"; break;
    case 'd': as = "\\p{Nd}"; break;
    case 'D': as = "\\P{Nd}"; break;
    case 'n': as = "\\n"; break;
    case 'r': as = "\\r"; break;
    case 't': as = "\\t"; break;
    case 'f': as = "\\f"; break;
    case 'a': as = "\\a"; break;
    case 'e': as = "\\e"; break;
    case 'v': as = "\\x{0B}"; break;
    case 'A': as = in_class ? NULL : "\\A"; break;
    case 'z': as = in_class ? NULL : "\\z"; break;
    case 'Z': as = in_class ? NULL : "\\Z"; break;
    default: break;
    }
    if (!as && isalnum((unsigned char)*t->p)) {
        refuse(t, "an escape that is not known here");
        return;
    }
    if (as) buf_puts(&t->out, as);
    else {
        buf_putc(&t->out, '\\');
        buf_putc(&t->out, *t->p);
    }
    t->p++;
}

/* p is behind '['. */
static void translate_class(struct translator *t)
{
    buf_putc(&t->out, '[');
    if (t->p < t->end && *t->p == '^') buf_putc(&t->out, *t->p++);
    if (t->p < t->end && *t->p == ']') {
        refuse(t, "']' at the start of a set");
        return;
    }
    while (t->p < t->end && *t->p != ']') {
        char c = *t->p++;
        if (c == '\\') translate_escape(t, 1);
        else if (c == '[') refuse(t, "a set inside a set");
        else if (c == '&' && t->p < t->end && *t->p == '&') refuse(t, "an intersection of sets");
        else buf_putc(&t->out, c);
    }
    if (t->unsupported) return;
    if (t->p == t->end) {
        refuse(t, "a set that is not closed");
        return;
    }
    t->p++;
    buf_putc(&t->out, ']');
}

/* p is behind '('. */
static void translate_group(struct translator *t)
{
    buf_putc(&t->out, '(');
    if (t->p < t->end && *t->p == '*') {
        refuse(t, "'(*'");
        return;
    }
    if (t->p == t->end || *t->p != '?') return;
    const char *p = t->p + 1;
    size_t left = (size_t)(t->end - p);
    if (left >= 1 && strchr(":=!>", *p)) p++;
    else if (left >= 2 && *p == '<' && (p[1] == '=' || p[1] == '!')) p += 2;
    else {
        while (p < t->end && (*p == 'i' || *p == '-')) p++;
        if (p == t->p + 1 || p == t->end || (*p != ':' && *p != ')')) {
            refuse(t, "a kind of group or option that is not known here");
            return;
        }
    }
    buf_put(&t->out, t->p, (size_t)(p - t->p));
    t->p = p;
}

/* p is behind '{'. */
static void translate_interval(struct translator *t)
{
    const char *p = t->p;
    while (p < t->end && isdigit((unsigned char)*p)) p++;
    int low = p > t->p, comma = p < t->end && *p == ',';
    if (comma) p++;
    const char *high = p;
    while (p < t->end && isdigit((unsigned char)*p)) p++;
    if (p == t->end || *p != '}' || (!low && p == high)) {
        refuse(t, "'{' that is no repeat count");
        return;
    }
    p++;
    if (p < t->end && (*p == '+' || (*p == '?' && !comma))) {
        refuse(t, "a repeat count followed by '+' or '?'");
        return;
    }
    buf_puts(&t->out, low ? "{" : "{0");
    buf_put(&t->out, t->p, (size_t)(p - t->p));
    t->p = p;
}

static enum status compile(const char *pattern, size_t len, uint32_t options, struct eng_regex *out)
{
    int code;
    PCRE2_SIZE at;
    pcre2_compile_context *ctx = pcre2_compile_context_create(NULL);
    if (!ctx) return ST_NOMEM;
    pcre2_set_newline(ctx, PCRE2_NEWLINE_LF);
    out->code = pcre2_compile((PCRE2_SPTR)pattern, len, options | PCRE2_UTF, &code, &at, ctx);
    pcre2_compile_context_free(ctx);
    if (!out->code) return code == PCRE2_ERROR_NOMEMORY ? ST_NOMEM : ST_INVALID;
    /* Where there is no JIT the interpreter matches, slower and alike. */
    if (pcre2_jit_compile(out->code, PCRE2_JIT_COMPLETE)) return ST_OK;
    return ST_OK;
}

enum status eng_regex_compile(const char *pattern, size_t len, struct eng_regex *out, char *err)
{
    struct translator t = {.p = pattern, .end = pattern + len};
    enum status st = ST_OK;
    *out = (struct eng_regex){0};
    if (len == 0 || len > PATTERN_BYTES_MAX)
        return err_set(err, ST_INVALID, "a regular expression of %zu bytes", len);
    buf_init(&t.out, 16 * PATTERN_BYTES_MAX);
    while (t.p < t.end) {
        char c = *t.p++;
        if (c == '\\') translate_escape(&t, 0);
        else if (c == '[') translate_class(&t);
        else if (c == '(') translate_group(&t);
        else if (c == '{') translate_interval(&t);
        else buf_putc(&t.out, c);
    }
    if (t.unsupported)
        st = err_set(err, ST_UNSUPPORTED, "the regular expression '%.200s' has %s", pattern,
                     t.unsupported);
    else if (!(st = buf_status(&t.out))) {
        st = compile(t.out.data, t.out.len, PCRE2_UCP | PCRE2_MULTILINE, out);
        if (st == ST_INVALID)
            err_set(err, st, "the regular expression '%.200s' does not compile", pattern);
    }
    if (st == ST_NOMEM || st == ST_LIMIT)
        err_set(err, st, "no memory for the regular expression '%.200s'", pattern);
    buf_deinit(&t.out);
    return st;
}

enum status eng_regex_compile_literal(const char *text, size_t len, struct eng_regex *out,
                                      char *err)
{
    *out = (struct eng_regex){0};
    if (len == 0 || len > PATTERN_BYTES_MAX)
        return err_set(err, ST_INVALID, "a pattern of %zu bytes", len);
    enum status st = compile(text, len, PCRE2_LITERAL, out);
    if (st) err_set(err, st, "the pattern '%.200s' does not compile", text);
    return st;
}

void eng_regex_deinit(struct eng_regex *re)
{
    pcre2_code_free(re->code);
    re->code = NULL;
}

enum status eng_regex_scratch_init(struct eng_regex_scratch *s)
{
    s->data = pcre2_match_data_create(1, NULL);
    s->limits = pcre2_match_context_create(NULL);
    if (!s->data || !s->limits) {
        eng_regex_scratch_deinit(s);
        return ST_NOMEM;
    }
    pcre2_set_depth_limit(s->limits, DEPTH_LIMIT);
    pcre2_set_heap_limit(s->limits, HEAP_LIMIT_KIB);
    return ST_OK;
}

void eng_regex_scratch_deinit(struct eng_regex_scratch *s)
{
    pcre2_match_data_free(s->data);
    pcre2_match_context_free(s->limits);
    *s = (struct eng_regex_scratch){0};
}

void eng_regex_scan_init(struct eng_regex_scan *scan, const struct eng_regex *re,
                         const struct eng_regex_scratch *scratch, const char *text, size_t len)
{
    *scan = (struct eng_regex_scan){
        .re = re, .scratch = scratch, .text = text, .len = len, .pos = 0, .last_end = SIZE_MAX};
}

static int match_at(const struct eng_regex_scan *scan)
{
    /* A run of n characters may cost n steps to give back. */
    uint64_t limit = MATCH_LIMIT_BASE + (uint64_t)MATCH_LIMIT_PER_BYTE * scan->len;
    pcre2_set_match_limit(scan->scratch->limits, limit < UINT32_MAX ? (uint32_t)limit : UINT32_MAX);
    int rc = pcre2_match(scan->re->code, (PCRE2_SPTR)scan->text, scan->len, scan->pos,
                         PCRE2_NO_UTF_CHECK, scan->scratch->data, scan->scratch->limits);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(scan->re->code, (PCRE2_SPTR)scan->text, scan->len, scan->pos,
                         PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, scan->scratch->data,
                         scan->scratch->limits);
    return rc;
}

/* Steps over the character at pos, or past the end of the text. */
static size_t after_char(const struct eng_regex_scan *scan, size_t pos)
{
    pos++;
    while (pos < scan->len && ((unsigned char)scan->text[pos] & 0xC0) == 0x80) pos++;
    return pos;
}

enum status eng_regex_next(struct eng_regex_scan *scan, size_t *start, size_t *end)
{
    while (scan->pos <= scan->len) {
        int rc = match_at(scan);
        if (rc == PCRE2_ERROR_NOMATCH) return ST_NOT_FOUND;
        if (rc == PCRE2_ERROR_NOMEMORY) return ST_NOMEM;
        if (rc < 0) return ST_LIMIT;
        const PCRE2_SIZE *bounds = pcre2_get_ovector_pointer(scan->scratch->data);
        *start = bounds[0];
        *end = bounds[1];
        /* An empty match right behind the last match would repeat for ever: look one character on.
         */
        if (*start == *end && scan->last_end == *end) {
            scan->pos = after_char(scan, scan->pos);
            continue;
        }
        scan->pos = scan->last_end = *end;
        return ST_OK;
    }
    return ST_NOT_FOUND;
}

enum status eng_regex_replace(const struct eng_regex *re, const struct eng_regex_scratch *scratch,
                              const char *text, size_t len, const char *content, size_t content_len,
                              struct buf *out)
{
    struct eng_regex_scan scan;
    size_t start, end, done = 0;
    enum status st;
    eng_regex_scan_init(&scan, re, scratch, text, len);
    while (!(st = eng_regex_next(&scan, &start, &end))) {
        buf_put(out, text + done, start - done);
        buf_put(out, content, content_len);
        done = end;
    }
    if (st != ST_NOT_FOUND) return st;
    buf_put(out, text + done, len - done);
    return buf_status(out);
}
