/*
 * jinja_object.c - attributes, subscripts, the methods of everything but strings, and the global functions.
 *
 * Lookup is the sandbox's: `x.name` prefers an attribute and falls back to an item, `x['name']` the other way round; a
 * method that would change a list or dict is an undefined value whose use fails, as ImmutableSandboxedEnvironment has
 * it.  A method Python has and this engine does not is an error that names it.
 */
#include <stdio.h>
#include <time.h>

#include "engine/jinja_int.h"

const struct jj_function *jj_lookup(const struct jj_function *table, const struct jj_str *name)
{
    for (; table->name; table++)
        if (jj_str_is(name, table->name)) return table;
    return NULL;
}

bool jj_in_names(const char *const *names, const struct jj_str *name)
{
    for (; *names; names++)
        if (jj_str_is(name, *names)) return true;
    return false;
}

struct jj_val jj_bound(struct jj *j, const struct jj_function *fn, struct jj_val self)
{
    struct jj_method *m = jj_alloc(j, sizeof *m);
    m->fn = fn;
    m->self = self;
    return (struct jj_val){.type = JJ_METHOD, .method = m};
}

/* --- arguments ----------------------------------------------------------------------------------------------- */

/* The next name in a spec; empty at its end. */
static size_t spec_word(const char **p)
{
    while (**p == ' ') ++*p;
    return strcspn(*p, " ");
}

void jj_bind(struct jj *j, const char *who, const char *spec, const struct jj_args *args,
             struct jj_val *out)
{
    size_t at = 0, taken = 0, n;
    bool optional = false, no_keywords = spec[0] == '!';
    if (no_keywords && args->nkw) jj_fail(j, ST_CORRUPT, "%s takes no keyword arguments", who);
    for (const char *p = spec + no_keywords; (n = spec_word(&p)); p += n) {
        if (*p == '|') {
            optional = true;
            continue;
        }
        struct jj_val v = at < args->n ? args->v[at] : jj_missing();
        for (size_t i = 0; i < args->nkw; i++) {
            if (args->kw[i]->len != n || memcmp(args->kw[i]->data, p, n)) continue;
            if (at < args->n)
                jj_fail(j, ST_CORRUPT, "%s got multiple values for argument '%.*s'", who, (int)n, p);
            v = args->kv[i];
            taken++;
        }
        if (v.type == JJ_MISSING && !optional)
            jj_fail(j, ST_CORRUPT, "%s: missing argument '%.*s'", who, (int)n, p);
        out[at++] = v;
    }
    if (args->n > at)
        jj_fail(j, ST_CORRUPT, "%s takes at most %zu argument(s), %zu given", who, at, args->n);
    if (taken < args->nkw) jj_fail(j, ST_CORRUPT, "%s got an unexpected keyword argument", who);
}

int64_t jj_want_int(struct jj *j, const char *who, struct jj_val v)
{
    int64_t i;
    if (v.type == JJ_UNDEFINED) jj_fail_undefined(j, v);
    if (!jj_as_int(v, &i))
        jj_fail(j, ST_CORRUPT, "%s: '%s' object cannot be interpreted as an integer", who, jj_type_name(v));
    return i;
}

const struct jj_str *jj_want_str(struct jj *j, const char *who, struct jj_val v)
{
    if (v.type != JJ_STR) jj_fail(j, ST_CORRUPT, "%s: must be str, not %s", who, jj_type_name(v));
    return v.s;
}

/* --- methods ------------------------------------------------------------------------------------------------- */

static struct jj_val view(struct jj *j, struct jj_val self, const struct jj_args *args, enum jj_type type)
{
    jj_bind(j, "a dict view", "!", args, NULL);
    return (struct jj_val){.type = type, .d = self.d};
}

static struct jj_val d_items(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    return view(j, self, args, JJ_ITEMS);
}

static struct jj_val d_keys(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    return view(j, self, args, JJ_KEYS);
}

static struct jj_val d_values(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    return view(j, self, args, JJ_VALUES);
}

static struct jj_val d_get(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    struct jj_val p[2];
    jj_bind(j, "get()", "! key | default", args, p);
    struct jj_val *found = jj_dict_get(j, self.d, p[0]);
    return found ? *found : p[1].type == JJ_MISSING ? jj_none() : p[1];
}

static struct jj_val d_copy(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    jj_bind(j, "copy()", "!", args, NULL);
    return (struct jj_val){.type = JJ_DICT, .d = jj_dict_copy(j, self.d)};
}

static const struct jj_function dict_methods[] = {
    {"get", d_get}, {"items", d_items}, {"keys", d_keys}, {"values", d_values}, {"copy", d_copy}, {NULL, NULL}};
static const char *const dict_mutators[] = {"clear", "pop", "popitem", "setdefault", "update", NULL};

static struct jj_val l_index(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    struct jj_val p[3];
    jj_bind(j, "index()", "! value | start stop", args, p);
    int64_t n = (int64_t)self.l->n, lo = 0, hi = n;
    if (p[1].type != JJ_MISSING) lo = jj_want_int(j, "index()", p[1]);
    if (p[2].type != JJ_MISSING) hi = jj_want_int(j, "index()", p[2]);
    if (lo < 0) lo = lo + n < 0 ? 0 : lo + n;
    if (hi < 0) hi = hi + n < 0 ? 0 : hi + n;
    for (int64_t i = lo; i < hi && i < n; i++)
        if (jj_equal(j, self.l->v[i], p[0])) return jj_int(i);
    jj_fail(j, ST_CORRUPT, "%s is not in the list", jj_repr_short(j, p[0]));
}

static struct jj_val l_count(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    struct jj_val p[1];
    int64_t n = 0;
    jj_bind(j, "count()", "! value", args, p);
    for (size_t i = 0; i < self.l->n; i++) n += jj_equal(j, self.l->v[i], p[0]);
    return jj_int(n);
}

static struct jj_val l_copy(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    jj_bind(j, "copy()", "!", args, NULL);
    return jj_list_val(jj_to_list(j, self));
}

static const struct jj_function list_methods[] = {{"index", l_index}, {"count", l_count}, {"copy", l_copy}, {NULL, NULL}};
static const struct jj_function tuple_methods[] = {{"index", l_index}, {"count", l_count}, {NULL, NULL}};
static const char *const list_mutators[] = {"append", "clear", "pop", "reverse", "insert",
                                            "sort", "extend", "remove", NULL};

static struct jj_val loop_cycle(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    if (args->nkw) jj_fail(j, ST_CORRUPT, "cycle() takes no keyword arguments");
    if (!args->n) jj_fail(j, ST_CORRUPT, "no items for cycling given");
    return args->v[(size_t)self.loop->index0 % args->n];
}

static struct jj_val loop_changed(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    if (args->nkw) jj_fail(j, ST_CORRUPT, "changed() takes no keyword arguments");
    struct jj_list *l = jj_list_new(j, 0);
    for (size_t i = 0; i < args->n; i++) jj_list_push(j, l, args->v[i]);
    if (jj_equal(j, self.loop->changed, jj_tuple_val(l))) return jj_bool(false);
    self.loop->changed = jj_tuple_val(l);
    return jj_bool(true);
}

static const struct jj_function loop_methods[] = {{"cycle", loop_cycle}, {"changed", loop_changed}, {NULL, NULL}};

static struct jj_val cycler_next(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    jj_bind(j, "next()", "!", args, NULL);
    struct jj_cycler *c = self.cycler;
    struct jj_val v = c->items.v[c->pos];
    c->pos = (c->pos + 1) % c->items.n;
    return v;
}

static struct jj_val cycler_reset(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    jj_bind(j, "reset()", "!", args, NULL);
    self.cycler->pos = 0;
    return jj_none();
}

static const struct jj_function cycler_methods[] = {{"next", cycler_next}, {"reset", cycler_reset}, {NULL, NULL}};

/* --- attributes ---------------------------------------------------------------------------------------------- */

static struct jj_val loop_attr(struct jj *j, struct jj_loop *loop, const struct jj_str *name)
{
    static const char *const names[] = {"index",  "index0", "first",    "last",     "length", "revindex",
                                        "revindex0", "depth", "depth0", "previtem", "nextitem", NULL};
    size_t k = 0;
    while (names[k] && !jj_str_is(name, names[k])) k++;
    switch (k) {
    case 0: return jj_int(loop->index0 + 1);
    case 1: return jj_int(loop->index0);
    case 2: return jj_bool(loop->index0 == 0);
    case 3: return jj_bool(jj_loop_peek(j, loop).type == JJ_MISSING);
    case 4: return jj_int(jj_loop_length(j, loop));
    case 5: return jj_int(jj_loop_length(j, loop) - loop->index0);
    case 6: return jj_int(jj_loop_length(j, loop) - loop->index0 - 1);
    case 7: return jj_int(loop->depth0 + 1);
    case 8: return jj_int(loop->depth0);
    case 9:
        if (loop->index0 == 0) return jj_undefined_hint(j, "there is no previous item");
        return loop->before;
    case 10: {
        struct jj_val next = jj_loop_peek(j, loop);
        return next.type == JJ_MISSING ? jj_undefined_hint(j, "there is no next item") : next;
    }
    default: return jj_missing();
    }
}

static struct jj_val macro_attr(struct jj *j, const struct jj_macro *m, const struct jj_str *name)
{
    if (jj_str_is(name, "name"))
        return m->node->name ? jj_str_val(m->node->name) : jj_none();
    if (jj_str_is(name, "catch_kwargs")) return jj_bool(m->node->slot_kwargs >= 0);
    if (jj_str_is(name, "catch_varargs")) return jj_bool(m->node->slot_varargs >= 0);
    if (jj_str_is(name, "caller")) return jj_bool(m->node->slot_caller >= 0);
    if (!jj_str_is(name, "arguments")) return jj_missing();
    struct jj_list *l = jj_list_new(j, 0);
    for (const struct jj_node *p = m->node->a; p; p = p->next) jj_list_push(j, l, jj_str_val(p->name));
    return jj_tuple_val(l);
}

static struct jj_val range_attr(const struct jj_range *r, const struct jj_str *name)
{
    if (jj_str_is(name, "start")) return jj_int(r->start);
    if (jj_str_is(name, "stop")) return jj_int(r->stop);
    if (jj_str_is(name, "step")) return jj_int(r->step);
    return jj_missing();
}

static struct jj_val group_attr(const struct jj_list *l, const struct jj_str *name)
{
    if (!l->group) return jj_missing();
    return jj_str_is(name, "grouper") ? l->v[0] : jj_str_is(name, "list") ? l->v[1] : jj_missing();
}

static struct jj_val unsafe(struct jj *j, struct jj_val obj, const struct jj_str *name)
{
    return jj_undefined_hint(j, "access to attribute '%.*s' of '%s' object is unsafe.",
                             (int)size_min(name->len, 80), name->data, jj_type_name(obj));
}

static struct jj_val method(struct jj *j, const struct jj_function *table, struct jj_val obj,
                            const struct jj_str *name)
{
    const struct jj_function *fn = jj_lookup(table, name);
    return fn ? jj_bound(j, fn, obj) : jj_missing();
}

/* A Python attribute of obj, or JJ_MISSING. */
static struct jj_val attribute(struct jj *j, struct jj_val obj, const struct jj_str *name)
{
    static const char *const number_attrs[] = {"real", "imag", "numerator", "denominator", "is_integer",
                                               "bit_length", "bit_count", "conjugate", "hex", "to_bytes",
                                               "as_integer_ratio", NULL};
    struct jj_val v = jj_missing();
    switch (obj.type) {
    case JJ_STR:
        v = method(j, jj_str_methods, obj, name);
        if (v.type == JJ_MISSING && jj_in_names(jj_str_methods_unsupported, name)) break;
        return v;
    case JJ_DICT:
        if (jj_in_names(dict_mutators, name)) return unsafe(j, obj, name);
        if (jj_str_is(name, "fromkeys")) break;
        return method(j, dict_methods, obj, name);
    case JJ_LIST:
        if (jj_in_names(list_mutators, name)) return unsafe(j, obj, name);
        return method(j, list_methods, obj, name);
    case JJ_TUPLE:
        v = group_attr(obj.l, name);
        return v.type == JJ_MISSING ? method(j, tuple_methods, obj, name) : v;
    case JJ_NAMESPACE: {
        struct jj_val *found = jj_dict_get_str(j, obj.d, name);
        return found ? *found : v;
    }
    case JJ_LOOP:
        v = loop_attr(j, obj.loop, name);
        return v.type == JJ_MISSING ? method(j, loop_methods, obj, name) : v;
    case JJ_MACRO: return macro_attr(j, obj.macro, name);
    case JJ_RANGE: return range_attr(obj.r, name);
    case JJ_CYCLER:
        if (jj_str_is(name, "current")) return obj.cycler->items.v[obj.cycler->pos];
        return method(j, cycler_methods, obj, name);
    case JJ_BOOL:
    case JJ_INT:
    case JJ_FLOAT:
        if (jj_in_names(number_attrs, name)) break;
        return v;
    default: return v;
    }
    jj_fail(j, ST_UNSUPPORTED, "the attribute '%.*s' of a %s is not supported",
            (int)size_min(name->len, 80), name->data, jj_type_name(obj));
}

struct jj_val jj_getattr(struct jj *j, struct jj_val obj, const struct jj_str *name)
{
    if (obj.type == JJ_UNDEFINED) jj_fail_undefined(j, obj);
    struct jj_val v = attribute(j, obj, name);
    if (v.type != JJ_MISSING) return v;
    if (obj.type == JJ_DICT) {
        struct jj_val *found = jj_dict_get_str(j, obj.d, name);
        if (found) return *found;
    }
    return jj_undefined_attr(j, obj, jj_str_val(name));
}

/* obj[arg] as Python has it, or JJ_MISSING. */
static struct jj_val subscript(struct jj *j, struct jj_val obj, struct jj_val arg)
{
    int64_t i, n;
    if (obj.type == JJ_DICT) {
        struct jj_val *found = jj_hashable(j, arg) ? jj_dict_get(j, obj.d, arg) : NULL;
        return found ? *found : jj_missing();
    }
    bool sequence = obj.type == JJ_STR || obj.type == JJ_LIST || obj.type == JJ_TUPLE || obj.type == JJ_RANGE;
    if (!sequence || !jj_as_int(arg, &i) || !jj_length(j, obj, &n)) return jj_missing();
    if (i < 0) i += n;
    if (i < 0 || i >= n) return jj_missing();
    if (obj.type == JJ_RANGE) return jj_int(jj_range_at(obj.r, i));
    if (obj.type != JJ_STR) return obj.l->v[i];
    size_t at = jj_byte_offset(obj.s, (size_t)i), len;
    jj_step(j, obj.s->count == obj.s->len ? 1 : at / 8);
    jj_decode(obj.s->data + at, obj.s->data + obj.s->len, &len);
    return jj_text_borrow(j, obj.s->data + at, len);
}

struct jj_val jj_getitem(struct jj *j, struct jj_val obj, struct jj_val arg)
{
    if (obj.type == JJ_UNDEFINED) jj_fail_undefined(j, obj);
    struct jj_val v = subscript(j, obj, arg);
    if (v.type == JJ_MISSING && arg.type == JJ_STR) v = attribute(j, obj, arg.s);
    return v.type == JJ_MISSING ? jj_undefined_attr(j, obj, arg) : v;
}

/* --- globals ------------------------------------------------------------------------------------------------- */

static struct jj_val g_range(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    struct jj_val p[3];
    (void)self;
    jj_bind(j, "range()", "! start | stop step", args, p);
    struct jj_range *r = jj_alloc(j, sizeof *r);
    r->start = p[1].type == JJ_MISSING ? 0 : jj_want_int(j, "range()", p[0]);
    r->stop = jj_want_int(j, "range()", p[1].type == JJ_MISSING ? p[0] : p[1]);
    r->step = p[2].type == JJ_MISSING ? 1 : jj_want_int(j, "range()", p[2]);
    if (r->step == 0) jj_fail(j, ST_CORRUPT, "range() arg 3 must not be zero");
    __int128 gap = r->step > 0 ? (__int128)r->stop - r->start : (__int128)r->start - r->stop;
    __int128 step = r->step > 0 ? (__int128)r->step : -(__int128)r->step;
    __int128 n = gap > 0 ? (gap + step - 1) / step : 0;
    if (n > JJ_RANGE_MAX)
        jj_fail(j, ST_CORRUPT,
                "Range too big. The sandbox blocks ranges larger than MAX_RANGE (%d).", JJ_RANGE_MAX);
    r->n = (int64_t)n;
    return (struct jj_val){.type = JJ_RANGE, .r = r};
}

/* dict(mapping or pairs, key=value...) */
static struct jj_dict *make_dict(struct jj *j, const char *who, const struct jj_args *args)
{
    struct jj_dict *d = jj_dict_new(j, 0);
    if (args->n > 1) jj_fail(j, ST_CORRUPT, "%s expected at most 1 argument, got %zu", who, args->n);
    if (args->n && args->v[0].type == JJ_DICT) {
        d = jj_dict_copy(j, args->v[0].d);
    } else if (args->n) {
        struct jj_val item;
        for (struct jj_iter *it = jj_iter_new(j, args->v[0]); jj_next(j, it, &item);) {
            struct jj_list *pair = jj_to_list(j, item);
            if (pair->n != 2)
                jj_fail(j, ST_CORRUPT, "dictionary update sequence element has length %zu; 2 is required",
                        pair->n);
            jj_dict_set(j, d, pair->v[0], pair->v[1]);
        }
    }
    for (size_t i = 0; i < args->nkw; i++) jj_dict_set(j, d, jj_str_val(args->kw[i]), args->kv[i]);
    return d;
}

static struct jj_val g_dict(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    (void)self;
    return (struct jj_val){.type = JJ_DICT, .d = make_dict(j, "dict", args)};
}

static struct jj_val g_namespace(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    (void)self;
    struct jj_dict *d = make_dict(j, "namespace", args);
    for (size_t i = 0; i < d->n; i++) {
        struct jj_val key = d->e[i].key;
        if (key.type == JJ_STR && key.s->len && key.s->data[0] == '_')
            jj_fail(j, ST_CORRUPT,
                    "Chat templates cannot store underscore-prefixed attributes on a namespace, but got "
                    "%s. Please rename the attribute.",
                    jj_repr_short(j, key));
    }
    return (struct jj_val){.type = JJ_NAMESPACE, .d = d};
}

static struct jj_val g_raise(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    struct jj_val p[1];
    (void)self;
    jj_bind(j, "raise_exception()", "message", args, p);
    jj_raise(j, jj_to_str(j, p[0]));
}

/* One conversion, checked by the caller against a list. */
static void put_time(struct jj *j, struct jj_sb *sb, const char *conversion, const struct tm *tm)
{
    char text[256];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    jj_sb_put(j, sb, text, strftime(text, sizeof text, conversion, tm));
#pragma GCC diagnostic pop
}

static struct jj_val g_strftime(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    struct jj_val p[1];
    struct jj_sb sb = {0};
    struct tm tm;
    time_t now = (time_t)j->now_unix_s;
    (void)self;
    jj_bind(j, "strftime_now()", "format", args, p);
    const struct jj_str *f = jj_want_str(j, "strftime_now()", p[0]);
    if (!localtime_r(&now, &tm)) jj_fail(j, ST_CORRUPT, "strftime_now(): the time is out of range");
    for (size_t i = 0; i < f->len; i++) {
        if (f->data[i] != '%' || i + 1 == f->len) {
            jj_sb_putc(j, &sb, f->data[i]);
            continue;
        }
        bool bare = f->data[i + 1] == '-' && i + 2 < f->len; /* glibc's "%-d": no padding */
        char c = f->data[i += bare ? 2 : 1];
        const char conversion[] = {'%', bare ? '-' : c, bare ? c : '\0', '\0'};
        if (c == 'f') jj_sb_puts(j, &sb, "000000");
        else if (c == 'z' || c == 'Z') continue; /* a naive time has no zone */
        else if (c && strchr("aAbBcCdDeFgGhHIjklmMnprRsStTuUVwWxXyY%", c)) put_time(j, &sb, conversion, &tm);
        else jj_fail(j, ST_UNSUPPORTED, "strftime_now(): '%%%c' is not supported", c);
    }
    return jj_sb_val(j, &sb);
}

static struct jj_val g_cycler(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    (void)self;
    if (args->nkw || !args->n) jj_fail(j, ST_CORRUPT, "cycler(): at least one item has to be provided");
    struct jj_cycler *c = jj_alloc(j, sizeof *c);
    for (size_t i = 0; i < args->n; i++) jj_list_push(j, &c->items, args->v[i]);
    return (struct jj_val){.type = JJ_CYCLER, .cycler = c};
}

static struct jj_val g_joiner(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    struct jj_val p[1];
    (void)self;
    jj_bind(j, "joiner()", "| sep", args, p);
    struct jj_joiner *joiner = jj_alloc(j, sizeof *joiner);
    joiner->sep = p[0].type == JJ_MISSING ? jj_textz(j, ", ") : p[0];
    return (struct jj_val){.type = JJ_JOINER, .joiner = joiner};
}

static struct jj_val g_lipsum(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    (void)self, (void)args;
    jj_fail(j, ST_UNSUPPORTED, "lipsum() is not supported");
}

static const struct jj_function globals[] = {
    {"range", g_range},
    {"dict", g_dict},
    {"namespace", g_namespace},
    {"raise_exception", g_raise},
    {"strftime_now", g_strftime},
    {"cycler", g_cycler},
    {"joiner", g_joiner},
    {"lipsum", g_lipsum},
    {NULL, NULL},
};

/* A name nobody has stored: a variable, else a global, else missing. */
struct jj_val jj_resolve(struct jj *j, const struct jj_str *name)
{
    struct jj_val *v = jj_dict_get_str(j, j->vars, name);
    if (v) return *v;
    const struct jj_function *fn = jj_lookup(globals, name);
    return fn ? (struct jj_val){.type = JJ_FUNCTION, .fn = fn} : jj_missing();
}
