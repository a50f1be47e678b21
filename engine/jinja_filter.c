/*
 * jinja_filter.c - filters over strings and numbers, and the table that finds any filter by name.
 */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/jinja_int.h"

/* soft_str(): a string stays what it is, markup included; everything else becomes text. */
static struct jj_val soft(struct jj *j, struct jj_val v)
{
    return jj_str_val(jj_to_str(j, v));
}

static struct jj_val call_method(struct jj *j, const char *name, struct jj_val v, const struct jj_args *args)
{
    const struct jj_function *fn = jj_lookup(jj_str_methods, jj_textz(j, name).s);
    CHECK(fn != NULL);
    return fn->call(j, soft(j, v), args);
}

static struct jj_val f_upper(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    return call_method(j, "upper", v, args);
}

static struct jj_val f_lower(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    return call_method(j, "lower", v, args);
}

static struct jj_val f_capitalize(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    return call_method(j, "capitalize", v, args);
}

static struct jj_val f_center(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    struct jj_val p[1];
    jj_bind(j, "center", "| width", args, p);
    if (p[0].type == JJ_MISSING) p[0] = jj_int(80);
    return call_method(j, "center", v, &(struct jj_args){.v = p, .n = 1});
}

static bool starts_word(uint32_t c)
{
    return jj_is_space(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
}

/* Jinja's own: words begin after white space and - ( { [ <, not after every non-letter as in str.title(). */
static struct jj_val f_title(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    jj_bind(j, "title", "", args, NULL);
    const struct jj_str *s = jj_to_str(j, v);
    struct jj_sb sb = {0};
    size_t n;
    for (const char *p = s->data, *end = p + s->len; p < end;) {
        const char *word = p;
        bool separator = starts_word(jj_decode(p, end, &n));
        size_t first = n;
        while (p < end && starts_word(jj_decode(p, end, &n)) == separator) p += n;
        jj_put_cased(j, &sb, word, first, CASE_UPPER);
        jj_put_cased(j, &sb, word + first, (size_t)(p - word) - first, CASE_LOWER);
    }
    return jj_sb_val(j, &sb);
}

static struct jj_val f_trim(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    struct jj_val p[1];
    jj_bind(j, "trim", "| chars", args, p);
    return call_method(j, "strip", v, &(struct jj_args){.v = p, .n = p[0].type != JJ_MISSING});
}

static struct jj_val f_replace(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    struct jj_val p[3];
    jj_bind(j, "replace", "old new | count", args, p);
    p[0] = soft(j, p[0]);
    p[1] = soft(j, p[1]);
    if (p[2].type == JJ_NONE) p[2] = jj_missing();
    return call_method(j, "replace", v, &(struct jj_args){.v = p, .n = p[2].type == JJ_MISSING ? 2 : 3});
}

static struct jj_val f_string(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    jj_bind(j, "string", "", args, NULL);
    return soft(j, v);
}

static struct jj_val f_format(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    const struct jj_str *fmt = jj_to_str(j, v);
    if (args->n && args->nkw)
        jj_fail(j, ST_CORRUPT, "can't handle positional and keyword arguments at the same time");
    if (args->nkw) {
        struct jj_dict *d = jj_dict_new(j, 0);
        for (size_t i = 0; i < args->nkw; i++) jj_dict_set(j, d, jj_str_val(args->kw[i]), args->kv[i]);
        return jj_percent(j, fmt, (struct jj_val){.type = JJ_DICT, .d = d});
    }
    struct jj_list *l = jj_list_new(j, 0);
    for (size_t i = 0; i < args->n; i++) jj_list_push(j, l, args->v[i]);
    return jj_percent(j, fmt, jj_tuple_val(l));
}

static struct jj_val f_indent(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    struct jj_val p[3];
    struct jj_sb sb = {0}, by = {0};
    jj_bind(j, "indent", "| width first blank", args, p);
    if (v.type == JJ_UNDEFINED) jj_fail_undefined(j, v);
    const struct jj_str *s = jj_want_str(j, "indent", v);
    if (p[0].type == JJ_STR) {
        jj_sb_str(j, &by, p[0].s);
    } else {
        int64_t n = p[0].type == JJ_MISSING ? 4 : jj_want_int(j, "indent", p[0]);
        for (; n > 0; n--) {
            jj_step(j, 1);
            jj_sb_putc(j, &by, ' ');
        }
    }
    bool first = jj_truth(j, p[1]), blank = jj_truth(j, p[2]);
    jj_sb_str(j, &sb, s);
    jj_sb_putc(j, &sb, '\n');
    struct jj_list *lines = jj_splitlines(j, jj_sb_val(j, &sb).s, false);
    sb = (struct jj_sb){0};
    for (size_t i = 0; i < lines->n; i++) {
        if (i) jj_sb_putc(j, &sb, '\n');
        if (i ? blank || lines->v[i].s->len : first) jj_sb_put(j, &sb, by.data, by.len);
        jj_sb_str(j, &sb, lines->v[i].s);
    }
    return jj_sb_val(j, &sb);
}

static struct jj_val f_wordcount(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    jj_bind(j, "wordcount", "", args, NULL);
    const struct jj_str *s = jj_to_str(j, v);
    int64_t words = 0;
    bool inside = false;
    size_t n;
    jj_step(j, s->len / 8);
    for (const char *p = s->data, *end = p + s->len; p < end; p += n) {
        bool word = jj_is_word(jj_decode(p, end, &n));
        words += word && !inside;
        inside = word;
    }
    return jj_int(words);
}

static struct jj_val f_truncate(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    struct jj_val p[4];
    jj_bind(j, "truncate", "| length killwords end leeway", args, p);
    const struct jj_str *s = jj_want_str(j, "truncate", v);
    const struct jj_str *end = p[2].type == JJ_MISSING ? jj_textz(j, "...").s : jj_want_str(j, "truncate", p[2]);
    int64_t length = p[0].type == JJ_MISSING ? 255 : jj_want_int(j, "truncate", p[0]);
    bool no_leeway = p[3].type == JJ_MISSING || p[3].type == JJ_NONE;
    int64_t leeway = no_leeway ? 5 : jj_want_int(j, "truncate", p[3]);
    if (length < (int64_t)end->count || leeway < 0)
        jj_fail(j, ST_CORRUPT, "expected length >= %zu, got %lld", end->count, (long long)length);
    if (leeway > INT64_MAX - length || (int64_t)s->count <= length + leeway) return v;
    size_t cut = jj_byte_offset(s, (size_t)length - end->count);
    for (size_t i = cut; !jj_truth(j, p[1]) && i > 0; i--)
        if (s->data[i - 1] == ' ') {
            cut = i - 1;
            break;
        }
    struct jj_sb sb = {0};
    jj_sb_put(j, &sb, s->data, cut);
    jj_sb_str(j, &sb, end);
    return jj_sb_val(j, &sb);
}

static struct jj_val marked(struct jj *j, const struct jj_str *s)
{
    struct jj_str *m = jj_alloc(j, sizeof *m);
    *m = *s;
    m->markup = true;
    return jj_str_val(m);
}

static struct jj_val f_safe(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    jj_bind(j, "safe", "", args, NULL);
    return marked(j, jj_to_str(j, v));
}

static struct jj_val f_escape(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    jj_bind(j, "escape", "", args, NULL);
    if (v.type == JJ_STR && v.s->markup) return v;
    struct jj_sb sb = {0};
    jj_html_escape(j, &sb, jj_to_str(j, v));
    return marked(j, jj_sb_val(j, &sb).s);
}

/* --- numbers ------------------------------------------------------------------------------------------------- */

/* s without white space at its ends and without single underscores between digits, as a C string; NULL where int() and
 * float() would refuse it. */
static char *number_text(struct jj *j, const struct jj_str *s)
{
    const struct jj_str *t = jj_strip(j, s, NULL, 3).s;
    char *out = jj_alloc(j, t->len + 1);
    size_t n = 0;
    for (size_t i = 0; i < t->len; i++) {
        char c = t->data[i];
        if (c == '_') {
            bool between = i && i + 1 < t->len && isalnum((unsigned char)t->data[i - 1]) &&
                           isalnum((unsigned char)t->data[i + 1]);
            if (!between) return NULL;
            continue;
        }
        if ((unsigned char)c >= 0x80 || c == '\0' || isspace((unsigned char)c)) return NULL;
        out[n++] = c;
    }
    return n ? out : NULL;
}

static bool parse_int(struct jj *j, const struct jj_str *s, int64_t base, int64_t *out)
{
    char *text = number_text(j, s), *end;
    if (!text) return false;
    const char *digits = text + (*text == '-' || *text == '+');
    char kind = digits[0] == '0' ? (char)tolower((unsigned char)digits[1]) : 0;
    int64_t prefix = kind == 'x' ? 16 : kind == 'o' ? 8 : kind == 'b' ? 2 : 0;
    if (base == 0) base = prefix ? prefix : 10;
    if (prefix == base) memmove((char *)digits, digits + 2, strlen(digits + 2) + 1);
    if (!isalnum((unsigned char)*digits)) return false;
    errno = 0;
    long long v = strtoll(text, &end, (int)base);
    if (*end || end == digits) return false;
    if (errno) jj_fail(j, ST_UNSUPPORTED, "an integer beyond 64 bits is not supported");
    *out = v;
    return true;
}

static bool parse_float(struct jj *j, const struct jj_str *s, double *out)
{
    char *text = number_text(j, s), *end;
    if (!text || strpbrk(text, "xXpP(")) return false; /* strtod reads hexadecimal, float() does not */
    *out = strtod(text, &end);
    return *end == '\0';
}

static bool float_to_int(struct jj *j, double f, int64_t *out)
{
    if (isnan(f) || isinf(f)) return false;
    if (fabs(f) >= 9223372036854775808.0)
        jj_fail(j, ST_UNSUPPORTED, "an integer beyond 64 bits is not supported");
    *out = (int64_t)f;
    return true;
}

static struct jj_val f_int(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    struct jj_val p[2];
    int64_t i;
    double f;
    jj_bind(j, "int", "| default base", args, p);
    int64_t base = p[1].type == JJ_MISSING ? 10 : jj_want_int(j, "int", p[1]);
    if (v.type == JJ_UNDEFINED) jj_fail_undefined(j, v);
    if (v.type == JJ_FLOAT && isinf(v.f))
        jj_fail(j, ST_CORRUPT, "cannot convert float infinity to integer");
    bool base_ok = base == 0 || (base >= 2 && base <= 36);
    bool ok = v.type == JJ_STR ? (base_ok && parse_int(j, v.s, base, &i)) ||
                                     (parse_float(j, v.s, &f) && float_to_int(j, f, &i))
              : v.type == JJ_FLOAT ? float_to_int(j, v.f, &i)
                                   : jj_as_int(v, &i);
    if (ok) return jj_int(i);
    return p[0].type == JJ_MISSING ? jj_int(0) : p[0];
}

static struct jj_val f_float(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    struct jj_val p[1];
    double f;
    jj_bind(j, "float", "| default", args, p);
    if (v.type == JJ_UNDEFINED) jj_fail_undefined(j, v);
    if (v.type == JJ_STR ? parse_float(j, v.s, &f) : jj_as_double(v, &f)) return jj_float(f);
    return p[0].type == JJ_MISSING ? jj_float(0) : p[0];
}

static struct jj_val f_abs(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    int64_t i;
    jj_bind(j, "abs", "", args, NULL);
    if (v.type == JJ_UNDEFINED) jj_fail_undefined(j, v);
    if (v.type == JJ_FLOAT) return jj_float(fabs(v.f));
    if (!jj_as_int(v, &i)) jj_fail(j, ST_CORRUPT, "bad operand type for abs(): '%s'", jj_type_name(v));
    return i < 0 ? jj_negate(j, jj_int(i), true) : jj_int(i);
}

static double round_float(double f, int64_t places)
{
    char text[512];
    if (places > 300 || !isfinite(f) || f == 0) return f;
    if (places < -308) return copysign(0, f);
    if (places >= 0) {
        int n = snprintf(text, sizeof text, "%.*f", (int)places, f); /* correctly rounded, halves to even */
        return n > 0 && (size_t)n < sizeof text ? strtod(text, NULL) : f;
    }
    double scale = pow(10, (double)-places);
    return rint(f / scale) * scale;
}

static struct jj_val round_int(struct jj *j, int64_t i, int64_t places)
{
    if (places >= 0) return jj_int(i);
    if (places < -18) return jj_int(0);
    int64_t scale = 1;
    for (; places < 0; places++) scale *= 10;
    int64_t q = i / scale, rest = i % scale, twice;
    if (__builtin_mul_overflow(rest < 0 ? -rest : rest, 2, &twice) || twice > scale ||
        (twice == scale && q % 2))
        q += i < 0 ? -1 : 1;
    int64_t out;
    if (__builtin_mul_overflow(q, scale, &out))
        jj_fail(j, ST_UNSUPPORTED, "an integer beyond 64 bits is not supported");
    return jj_int(out);
}

static struct jj_val f_round(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    struct jj_val p[2];
    int64_t i;
    double f;
    jj_bind(j, "round", "| precision method", args, p);
    int64_t places = p[0].type == JJ_MISSING ? 0 : jj_want_int(j, "round", p[0]);
    const struct jj_str *how = p[1].type == JJ_MISSING ? jj_textz(j, "common").s : jj_want_str(j, "round", p[1]);
    bool ceiling = jj_str_is(how, "ceil"), flooring = jj_str_is(how, "floor");
    if (!ceiling && !flooring && !jj_str_is(how, "common"))
        jj_fail(j, ST_CORRUPT, "method must be common, ceil or floor");
    if (v.type == JJ_UNDEFINED) jj_fail_undefined(j, v);
    if (!ceiling && !flooring) {
        if (jj_as_int(v, &i)) return round_int(j, i, places);
        if (v.type == JJ_FLOAT) return jj_float(round_float(v.f, places));
    }
    if (!jj_as_double(v, &f)) jj_fail(j, ST_CORRUPT, "type %s doesn't define __round__ method", jj_type_name(v));
    double scale = pow(10, (double)places), scaled = f * scale;
    if (!isfinite(scaled)) jj_fail(j, ST_CORRUPT, "cannot convert float infinity or NaN to integer");
    return jj_float((ceiling ? ceil(scaled) : floor(scaled)) / scale);
}

const struct jj_function jj_filters_text[] = {
    {"upper", f_upper},     {"lower", f_lower},         {"capitalize", f_capitalize},
    {"title", f_title},     {"trim", f_trim},           {"replace", f_replace},
    {"string", f_string},   {"format", f_format},       {"indent", f_indent},
    {"wordcount", f_wordcount}, {"truncate", f_truncate}, {"center", f_center},
    {"safe", f_safe},       {"escape", f_escape},       {"e", f_escape},
    {"int", f_int},         {"float", f_float},         {"abs", f_abs},
    {"round", f_round},     {"tojson", jj_filter_tojson}, {NULL, NULL},
};

const struct jj_function *jj_filter_find(const struct jj_str *name)
{
    const struct jj_function *fn = jj_lookup(jj_filters_text, name);
    return fn ? fn : jj_lookup(jj_filters_seq, name);
}
