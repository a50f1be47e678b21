/*
 * jinja_format.c - "%s and %05.2f" % values, and "{} {name:>8}".format(...), as far as templates use them.
 *
 * Both parse to one `struct spec`, and one function pads.  Not supported, with an error: the "*" width, %a, %c of a
 * number, nested replacement fields, and the types n and %.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/jinja_int.h"

#define WIDTH_MAX 100000

struct spec {
    char fill; /* ASCII */
    char align; /* '<' '>' '^' '=' or 0 */
    char sign;  /* '+', ' ' or 0 */
    bool alternate, zero;
    char group; /* ',' '_' or 0 */
    int64_t width, precision; /* precision -1: none */
    char type;                /* 0: none given */
};

static int64_t take_number(struct jj *j, const char **p, const char *end)
{
    int64_t n = 0;
    for (; *p < end && **p >= '0' && **p <= '9'; ++*p) {
        n = n * 10 + (**p - '0');
        if (n > WIDTH_MAX) jj_fail(j, ST_LIMIT, "a format width above %d is not supported", WIDTH_MAX);
    }
    return n;
}

static void put_fill(struct jj *j, struct jj_sb *sb, char fill, int64_t n)
{
    for (; n > 0; n--) jj_sb_putc(j, sb, fill);
}

/* `body` is padded to the width; `lead` of its bytes (sign, 0x) stay left of '=' padding. */
static void put_padded(struct jj *j, struct jj_sb *sb, const struct spec *f, const char *body,
                       size_t len, size_t lead, char align)
{
    int64_t pad = f->width - (int64_t)jj_cp_count(body, len), left = 0;
    if (pad < 0) pad = 0;
    if (f->align) align = f->align;
    if (align == '=') {
        jj_sb_put(j, sb, body, lead);
        put_fill(j, sb, f->fill, pad);
        jj_sb_put(j, sb, body + lead, len - lead);
        return;
    }
    left = align == '>' ? pad : align == '^' ? pad / 2 : 0;
    put_fill(j, sb, f->fill, left);
    jj_sb_put(j, sb, body, len);
    put_fill(j, sb, f->fill, pad - left);
}

static void put_text(struct jj *j, struct jj_sb *sb, const struct spec *f, const struct jj_str *s)
{
    size_t len = s->len;
    if (f->precision >= 0) len = jj_byte_offset(s, (size_t)f->precision);
    put_padded(j, sb, f, s->data, size_min(len, s->len), 0, '<');
}

/* Separators between groups of digits of the whole part. */
static void group_digits(struct jj *j, struct jj_sb *sb, const char *digits, size_t whole, char group)
{
    for (size_t i = 0; i < whole; i++) {
        if (i && (whole - i) % 3 == 0) jj_sb_putc(j, sb, group);
        jj_sb_putc(j, sb, digits[i]);
    }
}

static size_t put_sign(struct jj *j, struct jj_sb *body, const struct spec *f, bool negative)
{
    if (negative) jj_sb_putc(j, body, '-');
    else if (f->sign) jj_sb_putc(j, body, f->sign);
    return body->len;
}

static void put_int(struct jj *j, struct jj_sb *sb, const struct spec *f, int64_t v, bool percent)
{
    char digits[72];
    struct jj_sb body = {0};
    uint64_t u = v < 0 ? 0 - (uint64_t)v : (uint64_t)v;
    size_t lead = put_sign(j, &body, f, v < 0);
    const char *prefix = f->type == 'x' ? "0x" : f->type == 'X' ? "0X" : f->type == 'o' ? "0o" : "0b";
    if (f->type == 'x' || f->type == 'X' || f->type == 'o' || f->type == 'b') {
        unsigned base = f->type == 'o' ? 8 : f->type == 'b' ? 2 : 16;
        size_t n = 0;
        do {
            digits[sizeof digits - 1 - ++n] = (f->type == 'X' ? "0123456789ABCDEF" : "0123456789abcdef")[u % base];
            u /= base;
        } while (u);
        memmove(digits, digits + sizeof digits - 1 - n, n);
        digits[n] = '\0';
        if (f->alternate) jj_sb_puts(j, &body, prefix);
        lead = body.len;
    } else {
        snprintf(digits, sizeof digits, "%llu", (unsigned long long)u);
    }
    if (percent && f->precision >= 0) put_fill(j, &body, '0', f->precision - (int64_t)strlen(digits));
    if (f->group) group_digits(j, &body, digits, strlen(digits), f->group);
    else jj_sb_puts(j, &body, digits);
    put_padded(j, sb, f, body.data, body.len, lead, f->zero ? '=' : '>');
}

static void put_float(struct jj *j, struct jj_sb *sb, const struct spec *f, double v)
{
    char text[512], format[8] = "%.*";
    struct jj_sb body = {0};
    int64_t precision = f->precision >= 0 ? f->precision : 6;
    if (precision > 100) jj_fail(j, ST_LIMIT, "a format precision above 100 is not supported");
    size_t lead = put_sign(j, &body, f, signbit(v) && !isnan(v));
    if (f->type == 0 && f->precision < 0) {
        jj_float_repr(fabs(v), text);
    } else {
        format[3] = f->type ? f->type : 'g';
        int n = format[3] == 'f' || format[3] == 'F' ? snprintf(text, sizeof text, "%.*f", (int)precision, fabs(v))
                : format[3] == 'e' ? snprintf(text, sizeof text, "%.*e", (int)precision, fabs(v))
                : format[3] == 'E' ? snprintf(text, sizeof text, "%.*E", (int)precision, fabs(v))
                : format[3] == 'G' ? snprintf(text, sizeof text, "%.*G", (int)precision, fabs(v))
                                   : snprintf(text, sizeof text, "%.*g", (int)precision, fabs(v));
        if (n < 0 || (size_t)n >= sizeof text) jj_fail(j, ST_LIMIT, "a formatted number is too long");
    }
    size_t whole = strspn(text, "0123456789");
    if (f->group) group_digits(j, &body, text, whole, f->group);
    else jj_sb_put(j, &body, text, whole);
    jj_sb_puts(j, &body, text + whole);
    if (f->type == 0 && f->precision >= 0 && !strpbrk(text, ".en")) jj_sb_puts(j, &body, ".0");
    put_padded(j, sb, f, body.data, body.len, lead, f->zero ? '=' : '>');
}

/* --- percent ------------------------------------------------------------------------------------------------- */

static void parse_flags(struct jj *j, const char **p, const char *end, struct spec *f)
{
    for (; *p < end && strchr("-+ #0", **p) && **p; ++*p) {
        if (**p == '-') f->align = '<';
        else if (**p == '+') f->sign = '+';
        else if (**p == ' ' && !f->sign) f->sign = ' ';
        else if (**p == '#') f->alternate = true;
        else if (**p == '0') f->zero = true;
    }
    if (*p < end && **p == '*') jj_fail(j, ST_UNSUPPORTED, "the format width '*' is not supported");
    f->width = take_number(j, p, end);
    if (*p < end && **p == '.') {
        ++*p;
        f->precision = take_number(j, p, end);
    }
    while (*p < end && (**p == 'l' || **p == 'h' || **p == 'L')) ++*p;
}

static void percent_number(struct jj *j, struct jj_sb *sb, struct spec *f, struct jj_val v)
{
    int64_t i;
    double d;
    if (v.type == JJ_UNDEFINED) jj_fail_undefined(j, v);
    if (strchr("eEfFgG", f->type)) {
        if (!jj_as_double(v, &d))
            jj_fail(j, ST_CORRUPT, "must be real number, not %s", jj_type_name(v));
        if (f->align == '<') f->zero = false;
        if (f->zero) f->fill = '0';
        put_float(j, sb, f, d);
        return;
    }
    bool decimal = f->type == 'd' || f->type == 'i' || f->type == 'u';
    if (decimal && v.type == JJ_FLOAT && fabs(v.f) < 9e18) i = (int64_t)v.f;
    else if (!jj_as_int(v, &i))
        jj_fail(j, ST_CORRUPT, decimal ? "%%%c format: a real number is required, not %s"
                                       : "%%%c format: an integer is required, not %s",
                f->type, jj_type_name(v));
    if (f->align == '<') f->zero = false;
    if (f->zero) f->fill = '0';
    put_int(j, sb, f, i, true);
}

struct jj_val jj_percent(struct jj *j, const struct jj_str *fmt, struct jj_val args)
{
    const bool tuple = args.type == JJ_TUPLE, mapping = args.type == JJ_DICT;
    const char *p = fmt->data, *end = p + fmt->len;
    struct jj_sb sb = {0};
    size_t used = 0, given = tuple ? args.l->n : 1;
    if (fmt->markup) jj_fail(j, ST_UNSUPPORTED, "formatting a string marked safe is not supported");
    while (p < end) {
        const char *run = p;
        while (p < end && *p != '%') p++;
        jj_sb_put(j, &sb, run, (size_t)(p - run));
        if (p++ >= end) break;
        struct spec f = {.fill = ' ', .precision = -1};
        struct jj_val v = jj_missing();
        if (p < end && *p == '(') {
            const char *close = memchr(p, ')', (size_t)(end - p));
            if (!close) jj_fail(j, ST_CORRUPT, "incomplete format key");
            if (!mapping) jj_fail(j, ST_CORRUPT, "format requires a mapping");
            struct jj_val key = jj_text_borrow(j, p + 1, (size_t)(close - p - 1));
            struct jj_val *found = jj_dict_get(j, args.d, key);
            if (!found) jj_fail(j, ST_CORRUPT, "the format key %s is missing", jj_repr_short(j, key));
            v = *found;
            p = close + 1;
        }
        parse_flags(j, &p, end, &f);
        if (p >= end) jj_fail(j, ST_CORRUPT, "incomplete format");
        f.type = *p++;
        if (f.type == '%') {
            jj_sb_putc(j, &sb, '%');
            continue;
        }
        if (v.type == JJ_MISSING) {
            if (used >= given) jj_fail(j, ST_CORRUPT, "not enough arguments for format string");
            v = tuple ? args.l->v[used] : args;
            used++;
        }
        if (!f.align) f.align = strchr("sr", f.type) ? '>' : 0;
        if (f.type == 's') {
            put_text(j, &sb, &f, jj_to_str(j, v));
        } else if (f.type == 'r') {
            struct jj_sb repr = {0};
            jj_put_repr(j, &repr, v);
            put_text(j, &sb, &f, jj_sb_val(j, &repr).s);
        } else if (f.type && strchr("diuxXoeEfFgG", f.type)) {
            percent_number(j, &sb, &f, v);
        } else {
            jj_fail(j, ST_UNSUPPORTED, "the format character '%c' is not supported", f.type);
        }
    }
    bool excess = tuple ? used < given : used == 0 && !mapping && args.type != JJ_LIST;
    if (excess) jj_fail(j, ST_CORRUPT, "not all arguments converted during string formatting");
    return jj_sb_val(j, &sb);
}

/* --- format -------------------------------------------------------------------------------------------------- */

static struct spec parse_spec(struct jj *j, const char *p, const char *end)
{
    struct spec f = {.fill = ' ', .precision = -1};
    if (p + 1 < end && strchr("<>^=", p[1]) && (unsigned char)*p < 0x80) {
        f.fill = *p;
        f.align = p[1];
        p += 2;
    } else if (p < end && strchr("<>^=", *p)) {
        f.align = *p++;
    }
    if (p < end && strchr("+- ", *p)) f.sign = *p == '-' ? 0 : *p, p++;
    if (p < end && *p == '#') f.alternate = true, p++;
    if (p < end && *p == '0') {
        f.zero = !f.align;
        if (f.zero) f.fill = '0';
        p++;
    }
    f.width = take_number(j, &p, end);
    if (p < end && (*p == ',' || *p == '_')) f.group = *p++;
    if (p < end && *p == '.') {
        p++;
        f.precision = take_number(j, &p, end);
    }
    if (p < end) f.type = *p++;
    if (p != end || (f.type && !strchr("sdxXobeEfFgG", f.type)) || (f.group && f.zero))
        jj_fail(j, ST_UNSUPPORTED, "this format specifier is not supported");
    return f;
}

static void format_value(struct jj *j, struct jj_sb *sb, struct jj_val v, const char *spec,
                         const char *end)
{
    struct spec f = parse_spec(j, spec, end);
    int64_t i;
    double d;
    if (spec == end || v.type == JJ_STR) {
        if (v.type == JJ_STR && f.type && f.type != 's')
            jj_fail(j, ST_CORRUPT, "unknown format code '%c' for object of type 'str'", f.type);
        if (f.zero && v.type == JJ_STR) f.align = '<';
        put_text(j, sb, &f, jj_to_str(j, v));
    } else if (v.type == JJ_BOOL && !f.type) {
        jj_fail(j, ST_UNSUPPORTED, "formatting a bool with a width is not supported");
    } else if ((!f.type || strchr("dxXob", f.type)) && jj_as_int(v, &i)) {
        if (f.precision >= 0) jj_fail(j, ST_CORRUPT, "precision not allowed in integer format specifier");
        put_int(j, sb, &f, i, false);
    } else if ((!f.type || strchr("eEfFgG", f.type)) && jj_as_double(v, &d)) {
        put_float(j, sb, &f, d);
    } else {
        jj_fail(j, ST_CORRUPT, "unsupported format string passed to %s.__format__", jj_type_name(v));
    }
}

/* The value of a field name: an index or name, then .attributes and [items], through the sandbox's own lookup. */
static struct jj_val field_value(struct jj *j, const char *p, const char *end,
                                 const struct jj_args *args, size_t *next)
{
    const char *stop = p;
    struct jj_val v = jj_missing();
    while (stop < end && *stop != '.' && *stop != '[') stop++;
    char *digits_end;
    if (stop == p || (*p >= '0' && *p <= '9')) {
        size_t i = stop == p ? (*next)++ : (size_t)strtoul(p, &digits_end, 10);
        if (i >= args->n) jj_fail(j, ST_CORRUPT, "format: index %zu out of range for positional arguments", i);
        v = args->v[i];
    } else {
        struct jj_val name = jj_text_borrow(j, p, (size_t)(stop - p));
        for (size_t i = 0; i < args->nkw; i++)
            if (jj_equal(j, jj_str_val(args->kw[i]), name)) v = args->kv[i];
        if (v.type == JJ_MISSING) jj_fail(j, ST_CORRUPT, "format: no argument %s", jj_repr_short(j, name));
    }
    while (stop < end) {
        bool item = *stop == '[';
        p = ++stop;
        while (stop < end && (item ? *stop != ']' : *stop != '.' && *stop != '[')) stop++;
        struct jj_val name = jj_text_borrow(j, p, (size_t)(stop - p));
        if (!item) {
            v = jj_getattr(j, v, name.s);
            continue;
        }
        if (stop >= end) jj_fail(j, ST_CORRUPT, "missing ']' in format string");
        stop++;
        bool index = *p >= '0' && *p <= '9';
        v = jj_getitem(j, v, index ? jj_int(strtol(p, &digits_end, 10)) : name);
    }
    return v;
}

static void format_field(struct jj *j, struct jj_sb *sb, const char *p, const char *end,
                         const struct jj_args *args, size_t *next)
{
    const char *stop = p;
    while (stop < end && *stop != ':' && *stop != '!') stop++;
    struct jj_val v = field_value(j, p, stop, args, next);
    if (stop < end && *stop == '!') {
        char how = stop + 1 < end ? stop[1] : 0;
        if (how != 's' && how != 'r') jj_fail(j, ST_UNSUPPORTED, "this format conversion is not supported");
        struct jj_sb text = {0};
        if (how == 's') jj_put_str(j, &text, v);
        else jj_put_repr(j, &text, v);
        v = jj_sb_val(j, &text);
        stop += 2;
    }
    if (stop < end && *stop != ':') jj_fail(j, ST_CORRUPT, "expected ':' after conversion specifier");
    format_value(j, sb, v, stop < end ? stop + 1 : end, end);
}

struct jj_val jj_str_format(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    const char *p = self.s->data, *end = p + self.s->len;
    struct jj_sb sb = {0};
    size_t next = 0;
    if (self.s->markup) jj_fail(j, ST_UNSUPPORTED, "formatting a string marked safe is not supported");
    while (p < end) {
        const char *run = p;
        while (p < end && *p != '{' && *p != '}') p++;
        jj_sb_put(j, &sb, run, (size_t)(p - run));
        if (p >= end) break;
        if (p + 1 < end && p[1] == *p) {
            jj_sb_putc(j, &sb, *p);
            p += 2;
            continue;
        }
        const char *close = *p == '{' ? memchr(p, '}', (size_t)(end - p)) : NULL;
        if (!close) jj_fail(j, ST_CORRUPT, "single '%c' encountered in format string", *p);
        if (memchr(p + 1, '{', (size_t)(close - p - 1)))
            jj_fail(j, ST_UNSUPPORTED, "nested fields in a format string are not supported");
        format_field(j, &sb, p + 1, close, args, &next);
        p = close + 1;
    }
    return jj_sb_val(j, &sb);
}
