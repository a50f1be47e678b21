/*
 * jinja_filter_seq.c - filters over sequences and mappings.  map, select, reject, their attr forms, unique, items,
 * batch and slice give iterators, as Jinja's generators do; the others give values at once.
 */
#include "engine/jinja_int.h"

/* --- attributes by path -------------------------------------------------------------------------------------- */

static bool all_digits(const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] < '0' || p[i] > '9') return false;
    return n > 0 && n < 18;
}

/* "a.b.0" from item, with `fallback` (or JJ_MISSING) for what is undefined on the way. */
struct jj_val jj_getpath(struct jj *j, struct jj_val item, struct jj_val path, struct jj_val fallback)
{
    bool has_fallback = fallback.type != JJ_MISSING && fallback.type != JJ_NONE;
    if (path.type == JJ_MISSING || path.type == JJ_NONE) return item;
    if (path.type != JJ_STR) {
        item = jj_getitem(j, item, path);
        return item.type == JJ_UNDEFINED && has_fallback ? fallback : item;
    }
    const char *p = path.s->data, *end = p + path.s->len;
    for (;;) {
        const char *dot = p;
        int64_t i = 0;
        while (dot < end && *dot != '.') dot++;
        bool number = all_digits(p, (size_t)(dot - p));
        for (const char *d = p; number && d < dot; d++) i = i * 10 + (*d - '0');
        item = jj_getitem(j, item, number ? jj_int(i) : jj_text_borrow(j, p, (size_t)(dot - p)));
        if (item.type == JJ_UNDEFINED && has_fallback) item = fallback;
        if (dot == end) return item;
        p = dot + 1;
    }
}

static struct jj_val fold(struct jj *j, struct jj_val v, bool case_sensitive)
{
    return v.type == JJ_STR && !case_sensitive ? jj_str_val(jj_lower(j, v.s)) : v;
}

/* --- default, length, ends ----------------------------------------------------------------------------------- */

static struct jj_val f_default(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    struct jj_val p[2];
    jj_bind(j, "default", "| default_value boolean", args, p);
    bool use = v.type == JJ_UNDEFINED || (jj_truth(j, p[1]) && !jj_truth(j, v));
    if (!use) return v;
    return p[0].type == JJ_MISSING ? jj_textz(j, "") : p[0];
}

static struct jj_val f_length(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    int64_t n;
    jj_bind(j, "length", "", args, NULL);
    if (!jj_length(j, v, &n)) jj_fail(j, ST_CORRUPT, "object of type '%s' has no len()", jj_type_name(v));
    return jj_int(n);
}

static struct jj_val f_first(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    struct jj_val item;
    jj_bind(j, "first", "", args, NULL);
    if (jj_next(j, jj_iter_new(j, v), &item)) return item;
    return jj_undefined_hint(j, "No first item, sequence was empty.");
}

static struct jj_val f_last(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    struct jj_val item;
    bool ok;
    jj_bind(j, "last", "", args, NULL);
    if (v.type == JJ_UNDEFINED) jj_fail_undefined(j, v);
    struct jj_val back = jj_reversed(j, v, &ok);
    if (!ok) jj_fail(j, ST_CORRUPT, "'%s' object is not reversible", jj_type_name(v));
    if (jj_next(j, back.it, &item)) return item;
    return jj_undefined_hint(j, "No last item, sequence was empty.");
}

static struct jj_val f_list(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    jj_bind(j, "list", "", args, NULL);
    return jj_list_val(jj_to_list(j, v));
}

static struct jj_val f_reverse(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    bool ok;
    jj_bind(j, "reverse", "", args, NULL);
    if (v.type == JJ_STR) return jj_slice(j, v, jj_none(), jj_none(), jj_int(-1));
    struct jj_val back = jj_reversed(j, v, &ok);
    if (ok) return back;
    if (!jj_iterable(v)) jj_fail(j, ST_CORRUPT, "argument must be iterable");
    struct jj_list *l = jj_reversed(j, jj_list_val(jj_to_list(j, v)), &ok).it->src.l;
    return jj_list_val(l);
}

static struct jj_val f_join(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    struct jj_val p[2], item;
    struct jj_sb sb = {0};
    jj_bind(j, "join", "| d attribute", args, p);
    const struct jj_str *sep = p[0].type == JJ_MISSING ? jj_textz(j, "").s : jj_to_str(j, p[0]);
    struct jj_iter *it = jj_iter_new(j, v);
    for (size_t i = 0; jj_next(j, it, &item); i++) {
        if (i) jj_sb_str(j, &sb, sep);
        jj_put_str(j, &sb, jj_getpath(j, item, p[1], jj_missing()));
    }
    return jj_sb_val(j, &sb);
}

/* --- map, select --------------------------------------------------------------------------------------------- */

static struct jj_args rest_of(const struct jj_args *args, size_t from)
{
    struct jj_args rest = *args;
    rest.v = from < args->n ? args->v + from : NULL;
    rest.n = from < args->n ? args->n - from : 0;
    return rest;
}

static const struct jj_function *named(struct jj *j, struct jj_val name, bool filter)
{
    const struct jj_function *fn = NULL;
    if (name.type == JJ_STR) fn = filter ? jj_filter_find(name.s) : jj_test_find(name.s);
    if (!fn)
        jj_fail(j, ST_CORRUPT, "No %s named %s.", filter ? "filter" : "test", jj_repr_short(j, name));
    return fn;
}

static bool next_map(struct jj *j, struct jj_iter *it, struct jj_val *out)
{
    struct jj_val item;
    if (!it->inner) { /* the first call: only now does the generator look at its source */
        if (!jj_truth(j, it->src)) return false;
        it->inner = jj_iter_new(j, it->src);
    }
    if (!jj_next(j, it->inner, &item)) return false;
    *out = it->fn ? it->fn->call(j, item, &it->args) : jj_getpath(j, item, it->attr, it->fallback);
    return true;
}

static struct jj_val f_map(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    struct jj_iter *it = jj_alloc(j, sizeof *it);
    it->next = next_map;
    it->src = v;
    bool by_attribute = false;
    for (size_t i = 0; !args->n && i < args->nkw; i++) {
        if (jj_str_is(args->kw[i], "attribute")) {
            it->attr = args->kv[i];
            by_attribute = true;
        } else if (jj_str_is(args->kw[i], "default")) {
            it->fallback = args->kv[i];
        } else {
            jj_fail(j, ST_CORRUPT, "Unexpected keyword argument '%.*s'", (int)size_min(args->kw[i]->len, 80),
                    args->kw[i]->data);
        }
    }
    if (by_attribute) return jj_iter_val(it);
    if (!args->n) jj_fail(j, ST_CORRUPT, "map requires a filter argument");
    it->fn = named(j, args->v[0], true);
    it->args = rest_of(args, 1);
    return jj_iter_val(it);
}

static bool next_select(struct jj *j, struct jj_iter *it, struct jj_val *out)
{
    if (!it->inner) {
        if (!jj_truth(j, it->src)) return false;
        it->inner = jj_iter_new(j, it->src);
    }
    while (jj_next(j, it->inner, out)) {
        jj_step(j, 1);
        struct jj_val v = jj_getpath(j, *out, it->attr, jj_missing());
        if (it->fn) v = it->fn->call(j, v, &it->args);
        if (jj_truth(j, v) != it->negate) return true;
    }
    return false;
}

static struct jj_val selection(struct jj *j, struct jj_val v, const struct jj_args *args, bool negate,
                               bool by_attribute)
{
    struct jj_iter *it = jj_alloc(j, sizeof *it);
    it->next = next_select;
    it->src = v;
    it->negate = negate;
    if (by_attribute && !args->n) jj_fail(j, ST_CORRUPT, "Missing parameter for attribute name");
    if (by_attribute) it->attr = args->v[0];
    if (args->n > by_attribute) {
        it->fn = named(j, args->v[by_attribute], false);
        it->args = rest_of(args, 1u + by_attribute);
    }
    return jj_iter_val(it);
}

static struct jj_val f_select(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    return selection(j, v, args, false, false);
}

static struct jj_val f_reject(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    return selection(j, v, args, true, false);
}

static struct jj_val f_selectattr(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    return selection(j, v, args, false, true);
}

static struct jj_val f_rejectattr(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    return selection(j, v, args, true, true);
}

static bool next_unique(struct jj *j, struct jj_iter *it, struct jj_val *out)
{
    if (!it->inner) it->inner = jj_iter_new(j, it->src);
    while (jj_next(j, it->inner, out)) {
        struct jj_val key = fold(j, jj_getpath(j, *out, it->attr, jj_missing()), !it->fold_case);
        if (jj_dict_get(j, it->seen, key)) continue;
        jj_dict_set(j, it->seen, key, jj_none());
        return true;
    }
    return false;
}

static struct jj_val f_unique(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    struct jj_val p[2];
    jj_bind(j, "unique", "| case_sensitive attribute", args, p);
    struct jj_iter *it = jj_alloc(j, sizeof *it);
    it->next = next_unique;
    it->src = v;
    it->fold_case = !jj_truth(j, p[0]);
    it->attr = p[1];
    it->seen = jj_dict_new(j, 0);
    return jj_iter_val(it);
}

static bool next_items(struct jj *j, struct jj_iter *it, struct jj_val *out)
{
    if (it->src.type == JJ_UNDEFINED) return false;
    if (it->src.type != JJ_DICT) jj_fail(j, ST_CORRUPT, "Can only get item pairs from a mapping.");
    if (it->pos >= it->src.d->n) return false;
    const struct jj_pair *pair = &it->src.d->e[it->pos++];
    *out = jj_pair_val(j, pair->key, pair->value);
    return true;
}

static struct jj_val f_items(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    jj_bind(j, "items", "", args, NULL);
    struct jj_iter *it = jj_alloc(j, sizeof *it);
    it->next = next_items;
    it->src = v;
    return jj_iter_val(it);
}

/* --- rows ---------------------------------------------------------------------------------------------------- */

static struct jj_val f_batch(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    struct jj_val p[2], item;
    jj_bind(j, "batch", "linecount | fill_with", args, p);
    int64_t size = jj_want_int(j, "batch", p[0]);
    struct jj_list *rows = jj_list_new(j, 0), *row = jj_list_new(j, 0);
    struct jj_iter *it = jj_iter_new(j, v);
    while (jj_next(j, it, &item)) {
        if ((int64_t)row->n == size) {
            jj_list_push(j, rows, jj_list_val(row));
            row = jj_list_new(j, 0);
        }
        jj_list_push(j, row, item);
    }
    bool fill = p[1].type != JJ_MISSING && p[1].type != JJ_NONE;
    while (row->n && fill && (int64_t)row->n < size) jj_list_push(j, row, p[1]);
    if (row->n) jj_list_push(j, rows, jj_list_val(row));
    return jj_iter_val(jj_iter_new(j, jj_list_val(rows)));
}

static struct jj_val f_slice(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    struct jj_val p[2];
    jj_bind(j, "slice", "slices | fill_with", args, p);
    int64_t slices = jj_want_int(j, "slice", p[0]);
    struct jj_list *all = jj_to_list(j, v), *rows = jj_list_new(j, 0);
    if (slices == 0) jj_fail(j, ST_CORRUPT, "integer division or modulo by zero");
    int64_t each = slices > 0 ? (int64_t)all->n / slices : 0;
    int64_t extra = slices > 0 ? (int64_t)all->n % slices : 0;
    bool fill = p[1].type != JJ_MISSING && p[1].type != JJ_NONE;
    size_t at = 0;
    for (int64_t k = 0; k < slices; k++) {
        struct jj_list *row = jj_list_new(j, 0);
        for (int64_t i = 0; i < each + (k < extra); i++) jj_list_push(j, row, all->v[at++]);
        if (fill && k >= extra) jj_list_push(j, row, p[1]);
        jj_list_push(j, rows, jj_list_val(row));
    }
    return jj_iter_val(jj_iter_new(j, jj_list_val(rows)));
}

/* --- order --------------------------------------------------------------------------------------------------- */

static struct jj_val f_dictsort(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    struct jj_val p[3];
    jj_bind(j, "dictsort", "| case_sensitive by reverse", args, p);
    const struct jj_str *by = p[1].type == JJ_MISSING ? jj_textz(j, "key").s : jj_want_str(j, "dictsort", p[1]);
    bool by_value = jj_str_is(by, "value");
    if (!by_value && !jj_str_is(by, "key"))
        jj_fail(j, ST_CORRUPT, "You can only sort by either \"key\" or \"value\"");
    if (v.type == JJ_UNDEFINED) jj_fail_undefined(j, v);
    if (v.type != JJ_DICT) jj_fail(j, ST_CORRUPT, "'%s' object has no attribute 'items'", jj_type_name(v));
    v.type = JJ_ITEMS;
    struct jj_list *pairs = jj_to_list(j, v), *keys = jj_list_new(j, pairs->n);
    for (size_t i = 0; i < pairs->n; i++)
        jj_list_push(j, keys, fold(j, pairs->v[i].l->v[by_value], jj_truth(j, p[0])));
    jj_sort(j, keys->v, pairs->v, pairs->n, jj_truth(j, p[2]));
    return jj_list_val(pairs);
}

/* The sort key: one value, or a list of them for "a,b". */
static struct jj_val sort_key(struct jj *j, struct jj_val item, struct jj_val attribute, bool case_sensitive)
{
    if (attribute.type != JJ_STR || !memchr(attribute.s->data, ',', attribute.s->len))
        return fold(j, jj_getpath(j, item, attribute, jj_missing()), case_sensitive);
    struct jj_list *l = jj_list_new(j, 0);
    const char *p = attribute.s->data, *end = p + attribute.s->len;
    for (;;) {
        const char *comma = memchr(p, ',', (size_t)(end - p));
        size_t n = (size_t)((comma ? comma : end) - p);
        struct jj_val v = jj_getpath(j, item, jj_text_borrow(j, p, n), jj_missing());
        jj_list_push(j, l, fold(j, v, case_sensitive));
        if (!comma) return jj_list_val(l);
        p = comma + 1;
    }
}

static struct jj_val f_sort(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    struct jj_val p[3];
    jj_bind(j, "sort", "| reverse case_sensitive attribute", args, p);
    struct jj_list *l = jj_to_list(j, v), *keys = jj_list_new(j, l->n);
    for (size_t i = 0; i < l->n; i++) jj_list_push(j, keys, sort_key(j, l->v[i], p[2], jj_truth(j, p[1])));
    jj_sort(j, keys->v, l->v, l->n, jj_truth(j, p[0]));
    return jj_list_val(l);
}

static struct jj_val extreme(struct jj *j, struct jj_val v, const struct jj_args *args, enum jj_op better)
{
    struct jj_val p[2], item, best = jj_missing(), best_key = jj_missing();
    jj_bind(j, better == OP_LT ? "min" : "max", "| case_sensitive attribute", args, p);
    struct jj_iter *it = jj_iter_new(j, v);
    while (jj_next(j, it, &item)) {
        struct jj_val key = fold(j, jj_getpath(j, item, p[1], jj_missing()), jj_truth(j, p[0]));
        if (best.type != JJ_MISSING && !jj_less(j, key, best_key, better)) continue;
        best = item;
        best_key = key;
    }
    if (best.type != JJ_MISSING) return best;
    return jj_undefined_hint(j, "No aggregated item, sequence was empty.");
}

static struct jj_val f_min(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    return extreme(j, v, args, OP_LT);
}

static struct jj_val f_max(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    return extreme(j, v, args, OP_GT);
}

static struct jj_val f_sum(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    struct jj_val p[2], item;
    jj_bind(j, "sum", "| attribute start", args, p);
    struct jj_val total = p[1].type == JJ_MISSING ? jj_int(0) : p[1];
    if (total.type == JJ_STR) jj_fail(j, ST_CORRUPT, "sum() can't sum strings [use ''.join(seq) instead]");
    struct jj_iter *it = jj_iter_new(j, v);
    while (jj_next(j, it, &item))
        total = jj_binary(j, OP_ADD, total, jj_getpath(j, item, p[0], jj_missing()));
    return total;
}

static struct jj_val f_groupby(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    struct jj_val p[3];
    jj_bind(j, "groupby", "attribute | default case_sensitive", args, p);
    struct jj_list *l = jj_to_list(j, v), *keys = jj_list_new(j, l->n), *groups = jj_list_new(j, 0);
    bool case_sensitive = jj_truth(j, p[2]);
    for (size_t i = 0; i < l->n; i++)
        jj_list_push(j, keys, fold(j, jj_getpath(j, l->v[i], p[0], p[1]), case_sensitive));
    jj_sort(j, keys->v, l->v, l->n, false);
    struct jj_val last = jj_missing();
    struct jj_list *members = NULL;
    for (size_t i = 0; i < l->n; i++) {
        struct jj_val name = jj_getpath(j, l->v[i], p[0], p[1]), key = fold(j, name, case_sensitive);
        if (!members || !jj_equal(j, key, last)) {
            members = jj_list_new(j, 0);
            struct jj_val group = jj_pair_val(j, name, jj_list_val(members));
            group.l->group = true;
            jj_list_push(j, groups, group);
        }
        last = key;
        jj_list_push(j, members, l->v[i]);
    }
    return jj_list_val(groups);
}

/* --- attr ---------------------------------------------------------------------------------------------------- */

static struct jj_val f_attr(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    struct jj_val p[1];
    jj_bind(j, "attr", "name", args, p);
    const struct jj_str *name = jj_want_str(j, "attr", p[0]);
    if (v.type != JJ_DICT) return jj_getattr(j, v, name);
    struct jj_val no_items = {.type = JJ_DICT, .d = jj_dict_new(j, 0)};
    struct jj_val found = jj_getattr(j, no_items, name); /* only to learn whether dicts have it */
    return found.type == JJ_METHOD ? jj_getattr(j, v, name) : jj_undefined_attr(j, v, p[0]);
}

const struct jj_function jj_filters_seq[] = {
    {"default", f_default}, {"d", f_default},         {"length", f_length},
    {"count", f_length},    {"first", f_first},       {"last", f_last},
    {"list", f_list},       {"join", f_join},         {"map", f_map},
    {"select", f_select},   {"reject", f_reject},     {"selectattr", f_selectattr},
    {"rejectattr", f_rejectattr}, {"unique", f_unique}, {"items", f_items},
    {"batch", f_batch},     {"slice", f_slice},       {"dictsort", f_dictsort},
    {"sort", f_sort},       {"min", f_min},           {"max", f_max},
    {"sum", f_sum},         {"groupby", f_groupby},   {"reverse", f_reverse},
    {"attr", f_attr},       {NULL, NULL},
};
