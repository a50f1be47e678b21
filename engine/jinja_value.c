/*
 * jinja_value.c - the machine's ground floor: failure, arena, steps and depth; strings, lists, and
 * what is true, long or undefined.
 */
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "config/clock.h"
#include "config/json.h"
#include "config/utf8.h"
#include "engine/jinja_int.h"

#define CHUNK_BYTES (64u << 10)
#define TICKS_PER_CLOCK 2048

struct jj_chunk {
    struct jj_chunk *next;
    size_t bytes;
};

_Noreturn void jj_fail(struct jj *j, enum status st, const char *fmt, ...)
{
    char why[ERR_CAP];
    va_list args;
    va_start(args, fmt);
    vsnprintf(why, sizeof why, fmt, args);
    va_end(args);
    j->status = st;
    if (j->line > 0) err_set(j->message, st, "line %d: %s", j->line, why);
    else err_set(j->message, st, "%s", why);
    longjmp(j->jump, 1);
}

_Noreturn void jj_raise(struct jj *j, const struct jj_str *message)
{
    j->status = ST_INVALID;
    err_set(j->message, ST_INVALID, "%.*s", (int)size_min(message->len, ERR_CAP), message->data);
    longjmp(j->jump, 1);
}

_Noreturn void jj_fail_undefined(struct jj *j, struct jj_val v)
{
    const struct jj_undef *u = v.u;
    CHECK(v.type == JJ_UNDEFINED && u);
    if (u->hint) jj_fail(j, ST_CORRUPT, "%s", u->hint);
    if (u->obj.type == JJ_MISSING)
        jj_fail(j, ST_CORRUPT, "%s is undefined", jj_repr_short(j, u->name));
    const char *type = u->obj.type == JJ_NONE        ? "None"
                       : u->obj.type == JJ_NAMESPACE ? "jinja2.utils.Namespace object"
                                                     : NULL;
    char object[64];
    snprintf(object, sizeof object, type ? "%s" : "%s object", type ? type : jj_type_name(u->obj));
    if (u->name.type != JJ_STR)
        jj_fail(j, ST_CORRUPT, "%s has no element %s", object, jj_repr_short(j, u->name));
    jj_fail(j, ST_CORRUPT, "'%s' has no attribute %s", object, jj_repr_short(j, u->name));
}

void jj_step(struct jj *j, uint64_t n)
{
    if (n > j->steps_left)
        jj_fail(j, ST_LIMIT, "the template exceeds its limit of steps (it does too much work)");
    j->steps_left -= n;
    if (!j->deadline_ns || (j->ticks += n) < TICKS_PER_CLOCK) return;
    j->ticks = 0;
    if (clock_now_ns() > j->deadline_ns)
        jj_fail(j, ST_LIMIT, "the template exceeds its limit of time");
}

void jj_enter(struct jj *j)
{
    if (j->depth >= j->depth_max)
        jj_fail(j, ST_LIMIT, "the template exceeds its limit of depth (%u nested evaluations)",
                j->depth_max);
    j->depth++;
    jj_step(j, 1);
}

void *jj_alloc(struct jj *j, size_t bytes)
{
    struct jj_arena *a = &j->arena;
    if (bytes > a->max) bytes = a->max + 1;
    bytes = round_up(bytes + !bytes, 16);
    jj_step(j, bytes / 64);
    if ((size_t)(a->end - a->at) < bytes) {
        size_t want = size_max(bytes, CHUNK_BYTES);
        size_t head = round_up(sizeof(struct jj_chunk), 16);
        if (want > a->max - a->used) want = bytes;
        if (want > a->max - a->used)
            jj_fail(j, ST_LIMIT, "the template exceeds its limit of memory (%zu bytes)", a->max);
        struct jj_chunk *c = malloc(head + want);
        if (!c) jj_fail(j, ST_NOMEM, "no memory for the template");
        *c = (struct jj_chunk){.next = a->head, .bytes = want};
        a->head = c;
        a->used += want;
        a->at = (char *)c + head;
        a->end = a->at + want;
    }
    void *p = a->at;
    a->at += bytes;
    return memset(p, 0, bytes);
}

void *jj_alloc_array(struct jj *j, size_t n, size_t size)
{
    if (n > j->arena.max / size) n = j->arena.max / size + 1;
    return jj_alloc(j, n * size);
}

void jj_arena_free(struct jj_arena *a)
{
    while (a->head) {
        struct jj_chunk *c = a->head;
        a->head = c->next;
        free(c);
    }
    a->at = a->end = NULL;
    a->used = 0;
}

/* --- strings ---------------------------------------------------------------------------------- */

const struct jj_str *jj_str_borrow(struct jj *j, const char *data, size_t len)
{
    struct jj_str *s = jj_alloc(j, sizeof *s);
    jj_step(j, len / 64);
    *s = (struct jj_str){.data = data, .len = len, .count = jj_cp_count(data, len)};
    return s;
}

const struct jj_str *jj_str_copy(struct jj *j, const char *data, size_t len)
{
    char *copy = jj_alloc(j, len);
    if (len) memcpy(copy, data, len);
    return jj_str_borrow(j, copy, len);
}

struct jj_val jj_text_borrow(struct jj *j, const char *data, size_t len)
{
    return jj_str_val(jj_str_borrow(j, data, len));
}

struct jj_val jj_textz(struct jj *j, const char *z)
{
    return jj_text_borrow(j, z, strlen(z));
}

bool jj_str_is(const struct jj_str *s, const char *z)
{
    return strlen(z) == s->len && !memcmp(s->data, z, s->len);
}

void jj_sb_put(struct jj *j, struct jj_sb *sb, const void *data, size_t len)
{
    if (len > sb->cap - sb->len) {
        size_t cap = size_max(size_max(64, sb->cap * 2), sb->len + len);
        char *grown = jj_alloc(j, cap);
        if (sb->len) memcpy(grown, sb->data, sb->len);
        sb->data = grown;
        sb->cap = cap;
    }
    jj_step(j, len / 64);
    if (len) memcpy(sb->data + sb->len, data, len);
    sb->len += len;
}

void jj_sb_puts(struct jj *j, struct jj_sb *sb, const char *z)
{
    jj_sb_put(j, sb, z, strlen(z));
}

void jj_sb_putc(struct jj *j, struct jj_sb *sb, char c)
{
    jj_sb_put(j, sb, &c, 1);
}

void jj_sb_str(struct jj *j, struct jj_sb *sb, const struct jj_str *s)
{
    jj_sb_put(j, sb, s->data, s->len);
}

struct jj_val jj_sb_val(struct jj *j, const struct jj_sb *sb)
{
    return jj_text_borrow(j, sb->data ? sb->data : "", sb->len);
}

/* --- lists, undefined ------------------------------------------------------------------------- */

struct jj_list *jj_list_new(struct jj *j, size_t cap)
{
    struct jj_list *l = jj_alloc(j, sizeof *l);
    l->cap = cap;
    l->v = cap ? jj_alloc_array(j, cap, sizeof *l->v) : NULL;
    return l;
}

void jj_list_push(struct jj *j, struct jj_list *l, struct jj_val v)
{
    if (l->n == l->cap) {
        size_t cap = l->cap ? l->cap * 2 : 8;
        struct jj_val *grown = jj_alloc_array(j, cap, sizeof *grown);
        if (l->n) memcpy(grown, l->v, l->n * sizeof *grown);
        l->v = grown;
        l->cap = cap;
    }
    jj_step(j, 1);
    l->v[l->n++] = v;
}

struct jj_val jj_list_val(struct jj_list *l)
{
    return (struct jj_val){.type = JJ_LIST, .l = l};
}

struct jj_val jj_tuple_val(struct jj_list *l)
{
    return (struct jj_val){.type = JJ_TUPLE, .l = l};
}

struct jj_val jj_pair_val(struct jj *j, struct jj_val a, struct jj_val b)
{
    struct jj_list *l = jj_list_new(j, 2);
    jj_list_push(j, l, a);
    jj_list_push(j, l, b);
    return jj_tuple_val(l);
}

static struct jj_val undefined(struct jj *j, struct jj_undef why)
{
    struct jj_undef *u = jj_alloc(j, sizeof *u);
    *u = why;
    return (struct jj_val){.type = JJ_UNDEFINED, .u = u};
}

struct jj_val jj_undefined_name(struct jj *j, const struct jj_str *name)
{
    return undefined(j, (struct jj_undef){.name = jj_str_val(name)});
}

struct jj_val jj_undefined_attr(struct jj *j, struct jj_val obj, struct jj_val name)
{
    return undefined(j, (struct jj_undef){.obj = obj, .name = name});
}

struct jj_val jj_undefined_hint(struct jj *j, const char *fmt, ...)
{
    char text[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    char *hint = jj_alloc(j, strlen(text) + 1);
    memcpy(hint, text, strlen(text) + 1);
    return undefined(j, (struct jj_undef){.hint = hint});
}

/* --- questions -------------------------------------------------------------------------------- */

const char *jj_type_name(struct jj_val v)
{
    static const char *const names[] = {
        [JJ_MISSING] = "missing",
        [JJ_UNDEFINED] = "Undefined",
        [JJ_NONE] = "NoneType",
        [JJ_BOOL] = "bool",
        [JJ_INT] = "int",
        [JJ_FLOAT] = "float",
        [JJ_STR] = "str",
        [JJ_LIST] = "list",
        [JJ_TUPLE] = "tuple",
        [JJ_DICT] = "dict",
        [JJ_KEYS] = "dict_keys",
        [JJ_VALUES] = "dict_values",
        [JJ_ITEMS] = "dict_items",
        [JJ_RANGE] = "range",
        [JJ_ITER] = "generator",
        [JJ_NAMESPACE] = "Namespace",
        [JJ_LOOP] = "LoopContext",
        [JJ_MACRO] = "Macro",
        [JJ_METHOD] = "builtin method",
        [JJ_FUNCTION] = "function",
        [JJ_CYCLER] = "Cycler",
        [JJ_JOINER] = "Joiner",
    };
    return names[v.type];
}

bool jj_length(struct jj *j, struct jj_val v, int64_t *n)
{
    switch (v.type) {
    case JJ_UNDEFINED: *n = 0; return true;
    case JJ_STR: *n = (int64_t)v.s->count; return true;
    case JJ_LIST:
    case JJ_TUPLE: *n = (int64_t)v.l->n; return true;
    case JJ_DICT:
    case JJ_KEYS:
    case JJ_VALUES:
    case JJ_ITEMS: *n = (int64_t)v.d->n; return true;
    case JJ_RANGE: *n = v.r->n; return true;
    case JJ_LOOP: *n = jj_loop_length(j, v.loop); return true;
    default: return false;
    }
}

bool jj_truth(struct jj *j, struct jj_val v)
{
    int64_t n;
    switch (v.type) {
    case JJ_MISSING:
    case JJ_UNDEFINED:
    case JJ_NONE: return false;
    case JJ_BOOL: return v.b;
    case JJ_INT: return v.i != 0;
    case JJ_FLOAT: return v.f != 0;
    default: return !jj_length(j, v, &n) || n > 0;
    }
}

bool jj_as_int(struct jj_val v, int64_t *i)
{
    if (v.type == JJ_INT) *i = v.i;
    else if (v.type == JJ_BOOL) *i = v.b;
    else return false;
    return true;
}

bool jj_as_double(struct jj_val v, double *f)
{
    int64_t i;
    if (v.type == JJ_FLOAT) *f = v.f;
    else if (jj_as_int(v, &i)) *f = (double)i;
    else return false;
    return true;
}

/* --- variables -------------------------------------------------------------------------------- */

static struct jj_val from_json_string(struct jj *j, const char *text)
{
    size_t len = strlen(text);
    if (utf8_valid_prefix(text, len) != len)
        jj_fail(j, ST_CORRUPT, "a variable of the template holds text that is not UTF-8");
    return jj_text_borrow(j, text, len);
}

/* As Python reads it; but for integers beyond 64 bits, which are floats here. */
static struct jj_val from_json_number(const cJSON *item)
{
    const char *text = json_integer_text(item);
    double f = item->valuedouble;
    if (!text) return json_is_real(item) || fabs(f) >= 0x1p53 ? jj_float(f) : jj_int((int64_t)f);
    errno = 0;
    int64_t v = strtoll(text, NULL, 10);
    return errno ? jj_float(f) : jj_int(v);
}

struct jj_val jj_from_json(struct jj *j, const cJSON *item)
{
    struct jj_val v = jj_none();
    jj_enter(j);
    if (cJSON_IsBool(item)) {
        v = jj_bool(cJSON_IsTrue(item));
    } else if (cJSON_IsNumber(item)) {
        v = from_json_number(item);
    } else if (cJSON_IsString(item)) {
        v = from_json_string(j, item->valuestring);
    } else if (cJSON_IsArray(item)) {
        struct jj_list *l = jj_list_new(j, 0);
        for (const cJSON *c = item->child; c; c = c->next) jj_list_push(j, l, jj_from_json(j, c));
        v = jj_list_val(l);
    } else if (cJSON_IsObject(item)) {
        struct jj_dict *d = jj_dict_new(j, 0);
        for (const cJSON *c = item->child; c; c = c->next)
            jj_dict_set(j, d, from_json_string(j, c->string), jj_from_json(j, c));
        v = (struct jj_val){.type = JJ_DICT, .d = d};
    } else if (!cJSON_IsNull(item)) {
        jj_fail(j, ST_CORRUPT, "a variable of the template is not a JSON value");
    }
    jj_leave(j);
    return v;
}
