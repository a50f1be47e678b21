/*
 * jinja_lex.c - template text to tokens, with the white-space rules of trim_blocks and lstrip_blocks.
 *
 * States: text -> (comment | raw | variable | block) -> text.  A tag's "-" strips all white space on its side, "+" keeps
 * what lstrip_blocks or trim_blocks would take.  Line ends are made "\n" first and one at the very end is dropped, as
 * Jinja does.  The whole text is lexed before parsing; tokens point into the arena's copy.
 */
#include <errno.h>
#include <stdlib.h>

#include "config/utf8.h"
#include "engine/jinja_int.h"

struct lexer {
    struct jj *j;
    const char *src, *p, *end;
    int line;
    bool line_start; /* the last tag ended with a line end */
    struct jj_token *tokens;
    size_t n, cap;
};

static _Noreturn void fail(struct lexer *x, enum status st, const char *what)
{
    x->j->line = x->line;
    jj_fail(x->j, st, "%s", what);
}

static struct jj_token *push(struct lexer *x, enum jj_token_type type, struct jj_val val)
{
    if (x->n == x->cap) {
        size_t cap = x->cap ? x->cap * 2 : 256;
        struct jj_token *grown = jj_alloc_array(x->j, cap, sizeof *grown);
        if (x->n) memcpy(grown, x->tokens, x->n * sizeof *grown);
        x->tokens = grown;
        x->cap = cap;
    }
    x->tokens[x->n] = (struct jj_token){.type = type, .line = x->line, .val = val};
    return &x->tokens[x->n++];
}

static void count_lines(struct lexer *x, const char *from, const char *to)
{
    for (; from < to; from++) x->line += *from == '\n';
}

static bool at(const struct lexer *x, const char *p, const char *z)
{
    size_t n = strlen(z);
    return (size_t)(x->end - p) >= n && !memcmp(p, z, n);
}

static const char *skip_space(const struct lexer *x, const char *p)
{
    size_t n;
    while (p < x->end && jj_is_space(jj_decode(p, x->end, &n))) p += n;
    return p;
}

static const char *rstrip(const char *start, const char *end)
{
    size_t n;
    while (end > start && jj_is_space(jj_decode_last(start, end, &n))) end -= n;
    return end;
}

/* The text before a tag: [x->p, tag), cut as the tag's sign and lstrip_blocks ask. */
static void push_text(struct lexer *x, const char *tag, char sign, bool variable)
{
    const char *start = x->p, *end = tag;
    if (sign == '-') {
        end = rstrip(start, end);
    } else if (sign != '+' && !variable) {
        const char *line = end;
        while (line > start && line[-1] != '\n') line--;
        if ((line > start || x->line_start) && skip_space(x, line) >= end) end = line;
    }
    if (end > start) push(x, T_DATA, jj_text_borrow(x->j, start, (size_t)(end - start)));
    count_lines(x, start, tag);
}

/* After the end of a block or comment: where the text goes on. */
static const char *after_end(const struct lexer *x, const char *p, char sign)
{
    if (sign == '-') return skip_space(x, p);
    if (sign != '+' && p < x->end && *p == '\n') return p + 1;
    return p;
}

static void finish_tag(struct lexer *x, const char *from, const char *to)
{
    count_lines(x, from, to);
    x->line_start = to[-1] == '\n';
    x->p = to;
}

static void lex_comment(struct lexer *x, const char *body)
{
    for (const char *p = body; p < x->end; p++) {
        char sign = *p == '-' || *p == '+' ? *p : 0;
        if (!at(x, p + !!sign, "#}")) continue;
        finish_tag(x, body, after_end(x, p + !!sign + 2, sign));
        return;
    }
    fail(x, ST_INVALID, "missing end of comment tag");
}

/* "{%[+-]? raw [-]?%}" at p: the first byte of its text, or NULL. */
static const char *raw_begin(const struct lexer *x, const char *p)
{
    p += 2;
    if (p < x->end && (*p == '-' || *p == '+')) p++;
    p = skip_space(x, p);
    if (!at(x, p, "raw")) return NULL;
    p = skip_space(x, p + 3);
    if (at(x, p, "-%}")) return skip_space(x, p + 3);
    return at(x, p, "%}") ? p + 2 : NULL;
}

static bool raw_end(const struct lexer *x, const char *p, char *sign, const char **after)
{
    if (!at(x, p, "{%")) return false;
    p += 2;
    *sign = p < x->end && (*p == '-' || *p == '+') ? *p++ : 0;
    p = skip_space(x, p);
    if (!at(x, p, "endraw")) return false;
    p = skip_space(x, p + 6);
    char close = p < x->end && (*p == '-' || *p == '+') ? *p++ : 0;
    if (!at(x, p, "%}")) return false;
    *after = after_end(x, p + 2, close);
    return true;
}

static void lex_raw(struct lexer *x, const char *body)
{
    finish_tag(x, x->p, body);
    for (const char *p = body; p < x->end; p++) {
        char sign;
        const char *after;
        if (*p != '{' || !raw_end(x, p, &sign, &after)) continue;
        push_text(x, p, sign, false);
        finish_tag(x, p, after);
        return;
    }
    fail(x, ST_INVALID, "missing end of raw directive");
}

/* --- inside a tag -------------------------------------------------------------------------------------------- */

static int digit_value(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return 99;
}

/* Digits of `base` with single underscores between them, copied to out[*n]. */
static const char *take_digits(struct lexer *x, const char *p, int base, char *out, size_t *n)
{
    for (;;) {
        const char *d = p < x->end && *p == '_' && *n ? p + 1 : p;
        if (d >= x->end || digit_value(*d) >= base) return p;
        if (*n >= 400) fail(x, ST_UNSUPPORTED, "a number with more than 400 digits");
        out[(*n)++] = *d;
        p = d + 1;
    }
}

static void push_integer(struct lexer *x, char *digits, size_t n, int base)
{
    digits[n] = '\0';
    errno = 0;
    long long v = strtoll(digits, NULL, base);
    if (errno) fail(x, ST_UNSUPPORTED, "an integer beyond 64 bits is not supported");
    push(x, T_INT, jj_int(v));
}

static void lex_number(struct lexer *x)
{
    char text[1300];
    size_t n = 0;
    const char *p = x->p;
    char kind = p[0] == '0' && p + 1 < x->end ? (char)(p[1] | 0x20) : 0;
    int base = kind == 'x' ? 16 : kind == 'o' ? 8 : kind == 'b' ? 2 : 10;
    if (base != 10 && p + 2 < x->end && digit_value(p[2] == '_' && p + 3 < x->end ? p[3] : p[2]) < base) {
        p += p[2] == '_' ? 3 : 2;
        x->p = take_digits(x, p, base, text, &n);
        push_integer(x, text, n, base);
        return;
    }
    p = take_digits(x, p, 10, text, &n);
    size_t whole = n;
    const char *whole_end = p;
    bool after_dot = x->p > x->src && x->p[-1] == '.';
    if (!after_dot && p + 1 < x->end && *p == '.' && digit_value(p[1]) < 10) {
        size_t m = 0;
        text[n++] = '.';
        p = take_digits(x, p + 1, 10, text + n, &m);
        n += m;
    }
    if (!after_dot && p + 1 < x->end && (*p | 0x20) == 'e') {
        const char *q = p + 1 + (p[1] == '+' || p[1] == '-');
        if (q < x->end && digit_value(*q) < 10) {
            size_t m = 0;
            text[n++] = 'e';
            if (q > p + 1) text[n++] = p[1];
            p = take_digits(x, q, 10, text + n, &m);
            n += m;
        }
    }
    if (n > whole) {
        text[n] = '\0';
        push(x, T_FLOAT, jj_float(strtod(text, NULL)));
        x->p = p;
        return;
    }
    x->p = whole_end;
    if (text[0] == '0' && n > 1) fail(x, ST_INVALID, "leading zeros in an integer");
    push_integer(x, text, n, 10);
}

static void put_code_point(struct lexer *x, struct jj_sb *sb, uint32_t cp)
{
    char utf8[4];
    if (cp > 0x10FFFF || (cp >= 0xD800 && cp <= 0xDFFF))
        fail(x, ST_UNSUPPORTED, "a string escape that is not a Unicode character");
    jj_sb_put(x->j, sb, utf8, utf8_encode(cp, utf8));
}

/* The escape behind the backslash at p; returns the byte after it. */
static const char *lex_escape(struct lexer *x, const char *p, const char *end, struct jj_sb *sb)
{
    static const char from[] = "abfnrtv\\'\"", to[] = "\a\b\f\n\r\t\v\\'\"";
    char c = *++p;
    const char *simple = strchr(from, c);
    if (c == '\n') return p + 1;
    if (c && simple) {
        jj_sb_putc(x->j, sb, to[simple - from]);
        return p + 1;
    }
    if (c == 'N') fail(x, ST_UNSUPPORTED, "the string escape \\N{...}");
    int want = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    int base = want ? 16 : 8, most = want ? want : 3, got = 0;
    const char *q = want ? p + 1 : p;
    uint64_t cp = 0;
    for (; got < most && q < end && digit_value(*q) < base; got++, q++)
        cp = cp * (uint64_t)base + (uint64_t)digit_value(*q);
    if (want && got < want) fail(x, ST_INVALID, "truncated escape in a string");
    if (got) {
        put_code_point(x, sb, (uint32_t)(cp > 0x10FFFF ? 0x110000 : cp));
        return q;
    }
    jj_sb_putc(x->j, sb, '\\'); /* an unknown escape stays as it is */
    return p;
}

static void lex_string(struct lexer *x)
{
    char quote = *x->p;
    const char *p = x->p + 1;
    while (p < x->end && *p != quote) p += *p == '\\' ? 2 : 1;
    if (p >= x->end) fail(x, ST_INVALID, "a string is not closed");
    struct jj_sb sb = {0};
    int line = x->line;
    for (const char *q = x->p + 1; q < p;) {
        if (*q == '\\') {
            q = lex_escape(x, q, p, &sb);
            continue;
        }
        const char *run = q;
        while (q < p && *q != '\\') q++;
        jj_sb_put(x->j, &sb, run, (size_t)(q - run));
    }
    push(x, T_STRING, jj_sb_val(x->j, &sb))->line = line;
    count_lines(x, x->p, p);
    x->p = p + 1;
}

static void lex_name(struct lexer *x)
{
    const char *p = x->p;
    size_t n;
    while (p < x->end && jj_is_word(jj_decode(p, x->end, &n))) p += n;
    push(x, T_NAME, jj_text_borrow(x->j, x->p, (size_t)(p - x->p)));
    x->p = p;
}

static const struct {
    const char *text;
    enum jj_token_type type;
} operators[] = {
    {"//", T_FLOORDIV}, {"**", T_POW},    {"==", T_EQ},      {"!=", T_NE},      {">=", T_GE},
    {"<=", T_LE},       {"+", T_ADD},     {"-", T_SUB},      {"/", T_DIV},      {"*", T_MUL},
    {"%", T_MOD},       {"~", T_TILDE},   {"[", T_LBRACKET}, {"]", T_RBRACKET}, {"(", T_LPAREN},
    {")", T_RPAREN},    {"{", T_LBRACE},  {"}", T_RBRACE},   {">", T_GT},       {"<", T_LT},
    {"=", T_ASSIGN},    {".", T_DOT},     {":", T_COLON},    {"|", T_PIPE},     {",", T_COMMA},
    {";", T_SEMICOLON},
};

/* Brackets nest: their closers are counted so that "}}" inside a dict literal does not end the tag. */
static void lex_operator(struct lexer *x, struct jj_sb *open)
{
    static const char openers[] = "([{", closers[] = ")]}";
    size_t k = 0;
    while (k < ARRAY_COUNT(operators) && !at(x, x->p, operators[k].text)) k++;
    if (k == ARRAY_COUNT(operators)) {
        char what[] = "unexpected character ' '";
        what[sizeof what - 3] = (unsigned char)*x->p < 0x80 && *x->p >= ' ' ? *x->p : '?';
        fail(x, ST_INVALID, what);
    }
    char c = *x->p;
    if (strchr(openers, c)) jj_sb_putc(x->j, open, closers[strchr(openers, c) - openers]);
    if (strchr(closers, c)) {
        char what[] = "unexpected ' '";
        what[sizeof what - 3] = c;
        if (!open->len || open->data[open->len - 1] != c) fail(x, ST_INVALID, what);
        open->len--;
    }
    push(x, operators[k].type, jj_missing());
    x->p += strlen(operators[k].text);
}

/* The end of a tag at x->p: the byte after it, or NULL. */
static const char *tag_end(const struct lexer *x, bool variable)
{
    const char *close = variable ? "}}" : "%}";
    char sign = *x->p == '-' || (*x->p == '+' && !variable) ? *x->p : 0;
    const char *p = x->p + !!sign;
    if (!at(x, p, close)) return NULL;
    if (variable) return sign ? skip_space(x, p + 2) : p + 2;
    return after_end(x, p + 2, sign);
}

static void lex_tag(struct lexer *x, bool variable)
{
    struct jj_sb open = {0};
    while (x->p < x->end) {
        const char *after = open.len ? NULL : tag_end(x, variable);
        size_t n;
        if (after) {
            push(x, variable ? T_VAR_END : T_BLOCK_END, jj_missing());
            finish_tag(x, x->p, after);
            return;
        }
        uint32_t c = jj_decode(x->p, x->end, &n);
        if (jj_is_space(c)) {
            x->line += c == '\n';
            x->p += n;
        } else if (c >= '0' && c <= '9') {
            lex_number(x);
        } else if (jj_is_word(c)) {
            lex_name(x);
        } else if (c == '"' || c == '\'') {
            lex_string(x);
        } else {
            lex_operator(x, &open);
        }
    }
}

static void lex_text(struct lexer *x)
{
    const char *p = x->p;
    while (p < x->end && !at(x, p, "{{") && !at(x, p, "{%") && !at(x, p, "{#")) p++;
    if (p >= x->end) {
        if (p > x->p) push(x, T_DATA, jj_text_borrow(x->j, x->p, (size_t)(p - x->p)));
        count_lines(x, x->p, p);
        x->p = p;
        return;
    }
    char kind = p[1];
    char sign = p + 2 < x->end && (p[2] == '-' || p[2] == '+') ? p[2] : 0;
    const char *raw = kind == '%' ? raw_begin(x, p) : NULL;
    push_text(x, p, sign, kind == '{');
    x->p = p;
    if (raw) {
        lex_raw(x, raw);
    } else if (kind == '#') {
        lex_comment(x, p + 2 + !!sign);
    } else {
        push(x, kind == '{' ? T_VAR_BEGIN : T_BLOCK_BEGIN, jj_missing());
        x->p = p + 2 + !!sign;
        lex_tag(x, kind == '{');
    }
}

/* One kind of line end, and none at the very end. */
static char *normalise(struct jj *j, const char *src, size_t *len)
{
    char *copy = jj_alloc(j, *len + 1);
    size_t n = 0;
    for (size_t i = 0; i < *len; i++) {
        if (src[i] == '\r' && i + 1 < *len && src[i + 1] == '\n') continue;
        copy[n++] = src[i] == '\r' ? '\n' : src[i];
    }
    if (n && copy[n - 1] == '\n') n--;
    copy[n] = '\0';
    *len = n;
    return copy;
}

const struct jj_token *jj_lex(struct jj *j, const char *src, size_t len)
{
    const char *text = normalise(j, src, &len);
    struct lexer x = {.j = j, .src = text, .p = text, .end = text + len, .line = 1, .line_start = true};
    while (x.p < x.end) lex_text(&x);
    push(&x, T_EOF, jj_missing());
    return x.tokens;
}
