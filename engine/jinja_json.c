/*
 * jinja_json.c - the `tojson` filter as transformers defines it: json.dumps(x, ensure_ascii=False, indent, separators,
 * sort_keys), without Jinja's own HTML escaping.
 */
#include <math.h>
#include <stdio.h>

#include "engine/jinja_int.h"

#define INDENT_MAX 64

struct dump {
    struct jj_sb *sb;
    bool ascii, sort;
    const struct jj_str *indent; /* or NULL for one line */
    const struct jj_str *comma, *colon;
    int level;
};

static void put_json(struct jj *j, struct dump *d, struct jj_val v);

static void put_string(struct jj *j, struct dump *d, const struct jj_str *s)
{
    static const char from[] = "\"\\\n\r\t\f\b", to[] = "\"\\nrtfb";
    const char *end = s->data + s->len, *run = s->data;
    size_t n;
    jj_sb_putc(j, d->sb, '"');
    for (const char *p = s->data; p < end; p += n) {
        uint32_t c = jj_decode(p, end, &n);
        const char *simple = c && c < 0x80 ? strchr(from, (int)c) : NULL;
        char esc[16];
        if (simple) snprintf(esc, sizeof esc, "\\%c", to[simple - from]);
        else if (c < 0x20 || (d->ascii && c >= 0x7F && c < 0x10000))
            snprintf(esc, sizeof esc, "\\u%04x", c);
        else if (d->ascii && c >= 0x10000)
            snprintf(esc, sizeof esc, "\\u%04x\\u%04x", 0xD800 + ((c - 0x10000) >> 10),
                     0xDC00 + (c & 0x3FF));
        else continue;
        jj_sb_put(j, d->sb, run, (size_t)(p - run));
        jj_sb_puts(j, d->sb, esc);
        run = p + n;
    }
    jj_sb_put(j, d->sb, run, (size_t)(end - run));
    jj_sb_putc(j, d->sb, '"');
}

static void put_float(struct jj *j, struct dump *d, double f)
{
    char text[32];
    jj_float_repr(f, text);
    jj_sb_puts(j, d->sb, isnan(f) ? "NaN" : isinf(f) ? (f < 0 ? "-Infinity" : "Infinity") : text);
}

static void put_break(struct jj *j, struct dump *d)
{
    if (!d->indent) return;
    jj_sb_putc(j, d->sb, '\n');
    for (int i = 0; i < d->level; i++) jj_sb_str(j, d->sb, d->indent);
}

static void put_key(struct jj *j, struct dump *d, struct jj_val key)
{
    if (key.type == JJ_STR) {
        put_string(j, d, key.s);
        return;
    }
    if (key.type > JJ_STR || key.type == JJ_UNDEFINED)
        jj_fail(j, ST_CORRUPT, "keys must be str, int, float, bool or None, not %s", jj_type_name(key));
    jj_sb_putc(j, d->sb, '"');
    put_json(j, d, key);
    jj_sb_putc(j, d->sb, '"');
}

static const struct jj_dict *sorted(struct jj *j, const struct jj_dict *dict)
{
    struct jj_dict *copy = jj_dict_new(j, 0);
    struct jj_val *keys = jj_alloc_array(j, dict->n + 1, sizeof *keys);
    struct jj_val *order = jj_alloc_array(j, dict->n + 1, sizeof *order);
    for (size_t i = 0; i < dict->n; i++) {
        keys[i] = dict->e[i].key;
        order[i] = jj_int((int64_t)i);
    }
    jj_sort(j, keys, order, dict->n, false);
    for (size_t i = 0; i < dict->n; i++)
        jj_dict_set(j, copy, dict->e[order[i].i].key, dict->e[order[i].i].value);
    return copy;
}

static void put_container(struct jj *j, struct dump *d, struct jj_val v)
{
    bool object = v.type == JJ_DICT;
    const struct jj_dict *dict = object && d->sort ? sorted(j, v.d) : v.d;
    size_t n = object ? v.d->n : v.l->n;
    jj_enter(j);
    jj_sb_putc(j, d->sb, object ? '{' : '[');
    d->level++;
    for (size_t i = 0; i < n; i++) {
        if (i) jj_sb_str(j, d->sb, d->comma);
        put_break(j, d);
        if (object) {
            put_key(j, d, dict->e[i].key);
            jj_sb_str(j, d->sb, d->colon);
        }
        put_json(j, d, object ? dict->e[i].value : v.l->v[i]);
    }
    d->level--;
    if (n) put_break(j, d);
    jj_sb_putc(j, d->sb, object ? '}' : ']');
    jj_leave(j);
}

static void put_json(struct jj *j, struct dump *d, struct jj_val v)
{
    jj_step(j, 1);
    switch (v.type) {
    case JJ_NONE: jj_sb_puts(j, d->sb, "null"); break;
    case JJ_BOOL: jj_sb_puts(j, d->sb, v.b ? "true" : "false"); break;
    case JJ_INT: jj_put_repr(j, d->sb, v); break;
    case JJ_FLOAT: put_float(j, d, v.f); break;
    case JJ_STR: put_string(j, d, v.s); break;
    case JJ_LIST:
    case JJ_TUPLE:
    case JJ_DICT: put_container(j, d, v); break;
    default:
        jj_fail(j, ST_CORRUPT, "Object of type %s is not JSON serializable", jj_type_name(v));
    }
}

static const struct jj_str *indent_of(struct jj *j, struct jj_val v)
{
    static const char blanks[INDENT_MAX + 1] =
        "                                                                ";
    int64_t n;
    if (v.type == JJ_MISSING || v.type == JJ_NONE) return NULL;
    if (v.type == JJ_STR) return v.s;
    if (!jj_as_int(v, &n))
        jj_fail(j, ST_CORRUPT, "tojson: indent must be a number or a string, not %s", jj_type_name(v));
    if (n > INDENT_MAX) jj_fail(j, ST_LIMIT, "tojson: an indent above %d is not supported", INDENT_MAX);
    return jj_text_borrow(j, blanks, n < 0 ? 0 : (size_t)n).s;
}

struct jj_val jj_filter_tojson(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    struct jj_val p[4];
    struct jj_sb sb = {0};
    jj_bind(j, "tojson", "| ensure_ascii indent separators sort_keys", args, p);
    struct dump d = {.sb = &sb, .ascii = jj_truth(j, p[0]), .sort = jj_truth(j, p[3])};
    d.indent = indent_of(j, p[1]);
    d.comma = jj_textz(j, d.indent ? "," : ", ").s;
    d.colon = jj_textz(j, ": ").s;
    if (p[2].type != JJ_MISSING && p[2].type != JJ_NONE) {
        struct jj_list *l = jj_to_list(j, p[2]);
        if (l->n != 2 || l->v[0].type != JJ_STR || l->v[1].type != JJ_STR)
            jj_fail(j, ST_CORRUPT, "tojson: separators must be two strings");
        d.comma = l->v[0].s;
        d.colon = l->v[1].s;
    }
    put_json(j, &d, self);
    return jj_sb_val(j, &sb);
}
