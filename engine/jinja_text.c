/*
 * jinja_text.c - values to text as Python's str() and repr() do, and HTML escaping.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/jinja_int.h"

/* repr(float): the shortest digits that read back as f, fixed from 1e-4 up to 1e16 and exponential outside. */
size_t jj_float_repr(double f, char out[32])
{
    if (isnan(f)) return (size_t)snprintf(out, 32, "nan");
    if (isinf(f)) return (size_t)snprintf(out, 32, f < 0 ? "-inf" : "inf");
    char e[32], digits[20] = {0};
    int precision = 0, n = 0;
    do snprintf(e, sizeof e, "%.*e", precision, f);
    while (strtod(e, NULL) != f && ++precision < 17);
    const char *sign = e[0] == '-' ? "-" : "";
    for (const char *p = e; *p != 'e'; p++)
        if (*p >= '0' && *p <= '9') digits[n++] = *p;
    int exp10 = atoi(strchr(e, 'e') + 1);
    if (exp10 < -4 || exp10 >= 16)
        return (size_t)snprintf(out, 32, "%s%c%s%se%c%02d", sign, digits[0], n > 1 ? "." : "", digits + 1,
                                exp10 < 0 ? '-' : '+', abs(exp10));
    if (exp10 < 0)
        return (size_t)snprintf(out, 32, "%s0.%.*s%s", sign, -exp10 - 1, "0000", digits);
    if (n <= exp10 + 1)
        return (size_t)snprintf(out, 32, "%s%s%.*s.0", sign, digits, exp10 + 1 - n, "0000000000000000");
    return (size_t)snprintf(out, 32, "%s%.*s.%s", sign, exp10 + 1, digits, digits + exp10 + 1);
}

static void put_str_repr(struct jj *j, struct jj_sb *sb, const struct jj_str *s)
{
    bool single = memchr(s->data, '\'', s->len), twice = memchr(s->data, '"', s->len);
    char quote = single && !twice ? '"' : '\'';
    const char *end = s->data + s->len;
    size_t n;
    jj_sb_putc(j, sb, quote);
    for (const char *p = s->data; p < end; p += n) {
        uint32_t c = jj_decode(p, end, &n);
        char esc[16] = "";
        if (c == (uint32_t)quote || c == '\\') snprintf(esc, sizeof esc, "\\%c", (char)c);
        else if (c == '\n') snprintf(esc, sizeof esc, "\\n");
        else if (c == '\r') snprintf(esc, sizeof esc, "\\r");
        else if (c == '\t') snprintf(esc, sizeof esc, "\\t");
        else if (jj_is_printable(c)) jj_sb_put(j, sb, p, n);
        else if (c < 0x100) snprintf(esc, sizeof esc, "\\x%02x", c);
        else if (c < 0x10000) snprintf(esc, sizeof esc, "\\u%04x", c);
        else snprintf(esc, sizeof esc, "\\U%08x", c);
        jj_sb_puts(j, sb, esc);
    }
    jj_sb_putc(j, sb, quote);
}

static void put_items(struct jj *j, struct jj_sb *sb, const struct jj_list *l)
{
    for (size_t i = 0; i < l->n; i++) {
        if (i) jj_sb_puts(j, sb, ", ");
        jj_put_repr(j, sb, l->v[i]);
    }
}

static void put_pairs(struct jj *j, struct jj_sb *sb, struct jj_val v, const char *join)
{
    for (size_t i = 0; i < v.d->n; i++) {
        if (i) jj_sb_puts(j, sb, ", ");
        if (v.type == JJ_ITEMS) jj_sb_putc(j, sb, '(');
        if (v.type != JJ_VALUES) jj_put_repr(j, sb, v.d->e[i].key);
        if (v.type != JJ_VALUES && v.type != JJ_KEYS) jj_sb_puts(j, sb, join);
        if (v.type != JJ_KEYS) jj_put_repr(j, sb, v.d->e[i].value);
        if (v.type == JJ_ITEMS) jj_sb_putc(j, sb, ')');
    }
}

static void put_number(struct jj *j, struct jj_sb *sb, struct jj_val v)
{
    char text[32];
    if (v.type == JJ_FLOAT) jj_float_repr(v.f, text);
    else snprintf(text, sizeof text, "%lld", (long long)v.i);
    jj_sb_puts(j, sb, text);
}

static void put_range(struct jj *j, struct jj_sb *sb, const struct jj_range *r)
{
    char text[80];
    if (r->step == 1)
        snprintf(text, sizeof text, "range(%lld, %lld)", (long long)r->start, (long long)r->stop);
    else
        snprintf(text, sizeof text, "range(%lld, %lld, %lld)", (long long)r->start, (long long)r->stop,
                 (long long)r->step);
    jj_sb_puts(j, sb, text);
}

static void put_container(struct jj *j, struct jj_sb *sb, struct jj_val v)
{
    static const char *const open[] = {
        [JJ_LIST] = "[",       [JJ_TUPLE] = "(",         [JJ_DICT] = "{",
        [JJ_KEYS] = "dict_keys([", [JJ_VALUES] = "dict_values([", [JJ_ITEMS] = "dict_items([",
        [JJ_NAMESPACE] = "<Namespace {",
    };
    static const char *const close[] = {
        [JJ_LIST] = "]",   [JJ_TUPLE] = ")",   [JJ_DICT] = "}",       [JJ_KEYS] = "])",
        [JJ_VALUES] = "])", [JJ_ITEMS] = "])", [JJ_NAMESPACE] = "}>",
    };
    jj_enter(j);
    jj_sb_puts(j, sb, open[v.type]);
    if (v.type == JJ_LIST || v.type == JJ_TUPLE) put_items(j, sb, v.l);
    else put_pairs(j, sb, v, v.type == JJ_ITEMS ? ", " : ": ");
    if (v.type == JJ_TUPLE && v.l->n == 1) jj_sb_putc(j, sb, ',');
    jj_sb_puts(j, sb, close[v.type]);
    jj_leave(j);
}

static void put_loop(struct jj *j, struct jj_sb *sb, struct jj_loop *loop)
{
    char text[80];
    snprintf(text, sizeof text, "<LoopContext %lld/%lld>", (long long)loop->index0 + 1,
             (long long)jj_loop_length(j, loop));
    jj_sb_puts(j, sb, text);
}

void jj_put_repr(struct jj *j, struct jj_sb *sb, struct jj_val v)
{
    jj_step(j, 1);
    switch (v.type) {
    case JJ_UNDEFINED: jj_sb_puts(j, sb, "Undefined"); break;
    case JJ_NONE: jj_sb_puts(j, sb, "None"); break;
    case JJ_BOOL: jj_sb_puts(j, sb, v.b ? "True" : "False"); break;
    case JJ_INT:
    case JJ_FLOAT: put_number(j, sb, v); break;
    case JJ_STR:
        if (v.s->markup) jj_sb_puts(j, sb, "Markup(");
        put_str_repr(j, sb, v.s);
        if (v.s->markup) jj_sb_putc(j, sb, ')');
        break;
    case JJ_RANGE: put_range(j, sb, v.r); break;
    case JJ_LOOP: put_loop(j, sb, v.loop); break;
    case JJ_MACRO:
        jj_sb_puts(j, sb, "<Macro ");
        if (v.macro->node->name) put_str_repr(j, sb, v.macro->node->name);
        else jj_sb_puts(j, sb, "anonymous");
        jj_sb_putc(j, sb, '>');
        break;
    case JJ_LIST:
    case JJ_TUPLE:
    case JJ_DICT:
    case JJ_KEYS:
    case JJ_VALUES:
    case JJ_ITEMS:
    case JJ_NAMESPACE: put_container(j, sb, v); break;
    case JJ_ITER:
        jj_fail(j, ST_UNSUPPORTED, "printing a generator is not supported; put `| list` behind it");
    default: jj_fail(j, ST_UNSUPPORTED, "printing a %s is not supported", jj_type_name(v));
    }
}

void jj_put_str(struct jj *j, struct jj_sb *sb, struct jj_val v)
{
    if (v.type == JJ_STR) jj_sb_str(j, sb, v.s);
    else if (v.type != JJ_UNDEFINED) jj_put_repr(j, sb, v);
}

const struct jj_str *jj_to_str(struct jj *j, struct jj_val v)
{
    if (v.type == JJ_STR) return v.s;
    struct jj_sb sb = {0};
    jj_put_str(j, &sb, v);
    return jj_sb_val(j, &sb).s;
}

/* A value's repr for an error sentence, cut to about 100 bytes. */
const char *jj_repr_short(struct jj *j, struct jj_val v)
{
    struct jj_sb sb = {0};
    if (v.type == JJ_STR && v.s->len > 100) v = jj_text_borrow(j, v.s->data, jj_byte_offset(v.s, 25));
    if (v.type > JJ_STR) return jj_type_name(v);
    jj_put_repr(j, &sb, v);
    jj_sb_putc(j, &sb, '\0');
    return sb.data;
}

void jj_html_escape(struct jj *j, struct jj_sb *sb, const struct jj_str *s)
{
    static const char from[] = "&<>'\"";
    static const char *const to[] = {"&amp;", "&lt;", "&gt;", "&#39;", "&#34;"};
    for (size_t i = 0; i < s->len; i++) {
        const char *p = s->data[i] ? strchr(from, s->data[i]) : NULL;
        if (p) jj_sb_puts(j, sb, to[p - from]);
        else jj_sb_putc(j, sb, s->data[i]);
    }
}
