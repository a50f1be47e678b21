/*
 * jinja_dict.c - dictionaries, and what two values are to each other: equal, the same, less; and sorting by it.
 *
 * A dict keeps its pairs in insertion order, as Python's does.  Up to 8 pairs are searched in line; beyond that an open
 * addressing table of positions stands beside them.  Probes cost steps, so a request full of colliding keys meets the
 * step limit instead of time.
 */
#include <math.h>

#include "engine/jinja_int.h"

#define INLINE_MAX 8

static uint64_t mix(uint64_t h, uint64_t x)
{
    h = (h ^ x) * 0x9E3779B97F4A7C15u;
    return h ^ h >> 29;
}

static uint64_t hash_bytes(const char *p, size_t n)
{
    uint64_t h = n;
    for (; n >= 8; p += 8, n -= 8) {
        uint64_t x;
        memcpy(&x, p, 8);
        h = mix(h, x);
    }
    uint64_t tail = 0;
    memcpy(&tail, p, n);
    return mix(h, tail);
}

bool jj_hashable(struct jj *j, struct jj_val v)
{
    bool ok = true;
    if (v.type == JJ_LIST || v.type == JJ_DICT || v.type == JJ_KEYS || v.type == JJ_ITEMS) return false;
    if (v.type != JJ_TUPLE) return true;
    jj_enter(j);
    for (size_t i = 0; ok && i < v.l->n; i++) ok = jj_hashable(j, v.l->v[i]);
    jj_leave(j);
    return ok;
}

static uint64_t hash(struct jj *j, struct jj_val v)
{
    uint64_t h = v.type;
    switch (v.type) {
    case JJ_STR: jj_step(j, v.s->len / 64); return hash_bytes(v.s->data, v.s->len);
    case JJ_BOOL: return mix(1, v.b);
    case JJ_INT: return mix(1, (uint64_t)v.i);
    case JJ_FLOAT:
        if (v.f == floor(v.f) && fabs(v.f) < 9.2e18) return mix(1, (uint64_t)(int64_t)v.f);
        memcpy(&h, &v.f, sizeof h);
        return mix(2, h);
    case JJ_TUPLE:
        jj_enter(j);
        for (size_t i = 0; i < v.l->n; i++) h = mix(h, hash(j, v.l->v[i]));
        jj_leave(j);
        return h;
    case JJ_NONE:
    case JJ_UNDEFINED: return mix(3, v.type);
    case JJ_RANGE: return mix(4, (uint64_t)v.r->n);
    default: return mix(5, (uint64_t)(uintptr_t)v.d);
    }
}

struct jj_dict *jj_dict_new(struct jj *j, size_t cap)
{
    struct jj_dict *d = jj_alloc(j, sizeof *d);
    d->cap = cap;
    d->e = cap ? jj_alloc_array(j, cap, sizeof *d->e) : NULL;
    return d;
}

static void index_put(struct jj *j, struct jj_dict *d, size_t at)
{
    size_t mask = d->index_cap - 1, k = d->e[at].hash & mask;
    for (; d->index[k]; k = (k + 1) & mask) jj_step(j, 1);
    d->index[k] = (uint32_t)at + 1;
}

static struct jj_pair *find(struct jj *j, const struct jj_dict *d, struct jj_val key, uint64_t h)
{
    if (!d->index) {
        for (size_t i = 0; i < d->n; i++)
            if (d->e[i].hash == h && jj_equal(j, d->e[i].key, key)) return &d->e[i];
        return NULL;
    }
    size_t mask = d->index_cap - 1;
    for (size_t k = h & mask; d->index[k]; k = (k + 1) & mask) {
        struct jj_pair *p = &d->e[d->index[k] - 1];
        jj_step(j, 1);
        if (p->hash == h && jj_equal(j, p->key, key)) return p;
    }
    return NULL;
}

static void grow(struct jj *j, struct jj_dict *d)
{
    size_t cap = d->cap ? d->cap * 2 : 4;
    if (cap > UINT32_MAX / 4) jj_fail(j, ST_LIMIT, "the template builds a dict that is too large");
    struct jj_pair *e = jj_alloc_array(j, cap, sizeof *e);
    if (d->n) memcpy(e, d->e, d->n * sizeof *e);
    d->e = e;
    d->cap = cap;
    if (cap <= INLINE_MAX) return;
    for (d->index_cap = 16; d->index_cap < cap * 2;) d->index_cap *= 2;
    d->index = jj_alloc_array(j, d->index_cap, sizeof *d->index);
    for (size_t i = 0; i < d->n; i++) index_put(j, d, i);
}

void jj_dict_set(struct jj *j, struct jj_dict *d, struct jj_val key, struct jj_val value)
{
    if (!jj_hashable(j, key)) jj_fail(j, ST_CORRUPT, "unhashable type: '%s'", jj_type_name(key));
    uint64_t h = hash(j, key);
    struct jj_pair *p = find(j, d, key, h);
    if (p) {
        p->value = value;
        return;
    }
    if (d->n == d->cap) grow(j, d);
    d->e[d->n++] = (struct jj_pair){.hash = h, .key = key, .value = value};
    if (d->index) index_put(j, d, d->n - 1);
}

struct jj_val *jj_dict_get(struct jj *j, const struct jj_dict *d, struct jj_val key)
{
    if (!jj_hashable(j, key)) jj_fail(j, ST_CORRUPT, "unhashable type: '%s'", jj_type_name(key));
    struct jj_pair *p = find(j, d, key, hash(j, key));
    return p ? &p->value : NULL;
}

struct jj_val *jj_dict_get_str(struct jj *j, const struct jj_dict *d, const struct jj_str *key)
{
    return jj_dict_get(j, d, jj_str_val(key));
}

struct jj_dict *jj_dict_copy(struct jj *j, const struct jj_dict *d)
{
    struct jj_dict *copy = jj_dict_new(j, 0);
    for (size_t i = 0; i < d->n; i++) jj_dict_set(j, copy, d->e[i].key, d->e[i].value);
    return copy;
}

/* --- equality ------------------------------------------------------------------------------------------------ */

static bool is_number(struct jj_val v)
{
    return v.type == JJ_BOOL || v.type == JJ_INT || v.type == JJ_FLOAT;
}

/* -1, 0, 1, or 2 where one is NaN.  A long double holds every int64 and every double exactly. */
static int compare_numbers(struct jj_val a, struct jj_val b)
{
    int64_t i, k;
    if (jj_as_int(a, &i) && jj_as_int(b, &k)) return (i > k) - (i < k);
    long double x = a.type == JJ_FLOAT ? (long double)a.f : a.type == JJ_INT ? a.i : a.b;
    long double y = b.type == JJ_FLOAT ? (long double)b.f : b.type == JJ_INT ? b.i : b.b;
    return isnan(x) || isnan(y) ? 2 : (x > y) - (x < y);
}

static bool equal_dicts(struct jj *j, const struct jj_dict *a, const struct jj_dict *b)
{
    if (a->n != b->n) return false;
    for (size_t i = 0; i < a->n; i++) {
        struct jj_val *other = jj_dict_get(j, b, a->e[i].key);
        if (!other || !jj_equal(j, a->e[i].value, *other)) return false;
    }
    return true;
}

static bool equal_ranges(const struct jj_range *a, const struct jj_range *b)
{
    return a->n == b->n &&
           (a->n == 0 || (a->start == b->start && (a->n == 1 || a->step == b->step)));
}

static bool equal_same_type(struct jj *j, struct jj_val a, struct jj_val b)
{
    switch (a.type) {
    case JJ_NONE:
    case JJ_UNDEFINED: return true;
    case JJ_STR:
        if (a.s->len != b.s->len) return false;
        jj_step(j, a.s->len / 64);
        return !memcmp(a.s->data, b.s->data, a.s->len);
    case JJ_LIST:
    case JJ_TUPLE:
        if (a.l->n != b.l->n) return false;
        for (size_t i = 0; i < a.l->n; i++)
            if (!jj_equal(j, a.l->v[i], b.l->v[i])) return false;
        return true;
    case JJ_DICT: return equal_dicts(j, a.d, b.d);
    case JJ_RANGE: return equal_ranges(a.r, b.r);
    case JJ_KEYS:
    case JJ_ITEMS:
        if (a.d == b.d) return true;
        jj_fail(j, ST_UNSUPPORTED, "comparing %s is not supported", jj_type_name(a));
    default: return a.d == b.d;
    }
}

bool jj_equal(struct jj *j, struct jj_val a, struct jj_val b)
{
    if (is_number(a) && is_number(b)) return compare_numbers(a, b) == 0;
    if (a.type != b.type) return false;
    jj_enter(j);
    bool equal = equal_same_type(j, a, b);
    jj_leave(j);
    return equal;
}

/* Python's `is`, as far as it is defined: small integers and interned values are one object there. */
bool jj_same(struct jj_val a, struct jj_val b)
{
    if (a.type != b.type) return false;
    switch (a.type) {
    case JJ_NONE: return true;
    case JJ_BOOL: return a.b == b.b;
    case JJ_INT: return a.i == b.i && a.i >= -5 && a.i <= 256;
    case JJ_FLOAT: return false;
    case JJ_STR:
        return a.s == b.s || (a.s->len == b.s->len && !memcmp(a.s->data, b.s->data, a.s->len));
    default: return a.d == b.d;
    }
}

/* --- order --------------------------------------------------------------------------------------------------- */

static const char *op_text(enum jj_op op)
{
    return op == OP_LT ? "<" : op == OP_LE ? "<=" : op == OP_GT ? ">" : ">=";
}

static bool order_ok(int order, enum jj_op op)
{
    if (order == 2) return false;
    return op == OP_LT ? order < 0 : op == OP_LE ? order <= 0 : op == OP_GT ? order > 0 : order >= 0;
}

static bool less_sequences(struct jj *j, const struct jj_list *a, const struct jj_list *b,
                           enum jj_op op)
{
    size_t n = size_min(a->n, b->n), i = 0;
    while (i < n && jj_equal(j, a->v[i], b->v[i])) i++;
    if (i < n) return jj_less(j, a->v[i], b->v[i], op);
    return order_ok((a->n > b->n) - (a->n < b->n), op);
}

bool jj_less(struct jj *j, struct jj_val a, struct jj_val b, enum jj_op op)
{
    if (is_number(a) && is_number(b)) return order_ok(compare_numbers(a, b), op);
    if (a.type == JJ_UNDEFINED) jj_fail_undefined(j, a);
    if (b.type == JJ_UNDEFINED) jj_fail_undefined(j, b);
    if (a.type == JJ_STR && b.type == JJ_STR) {
        size_t n = size_min(a.s->len, b.s->len);
        jj_step(j, 1 + n / 64);
        int order = n ? memcmp(a.s->data, b.s->data, n) : 0; /* UTF-8 sorts like its code points */
        if (!order) order = (a.s->len > b.s->len) - (a.s->len < b.s->len);
        return order_ok((order > 0) - (order < 0), op);
    }
    if (a.type == b.type && (a.type == JJ_LIST || a.type == JJ_TUPLE)) {
        jj_enter(j);
        bool less = less_sequences(j, a.l, b.l, op);
        jj_leave(j);
        return less;
    }
    jj_fail(j, ST_CORRUPT, "'%s' not supported between instances of '%s' and '%s'", op_text(op),
            jj_type_name(a), jj_type_name(b));
}

static void merge(struct jj *j, struct jj_val *key, size_t *order, size_t *spare, size_t n, bool reverse)
{
    if (n < 2) return;
    size_t half = n / 2, left = 0, right = half, at = 0;
    merge(j, key, order, spare, half, reverse);
    merge(j, key, order + half, spare, n - half, reverse);
    while (left < half && right < n) {
        struct jj_val l = key[order[left]], r = key[order[right]];
        bool take_right = reverse ? jj_less(j, l, r, OP_LT) : jj_less(j, r, l, OP_LT);
        spare[at++] = order[take_right ? right++ : left++];
    }
    while (left < half) spare[at++] = order[left++];
    memcpy(order, spare, at * sizeof *order);
}

/* Stable, by keys[]; reverse keeps equal ones in their order, as Python's does. */
void jj_sort(struct jj *j, struct jj_val *keys, struct jj_val *values, size_t n, bool reverse)
{
    size_t *order = jj_alloc_array(j, n + 1, sizeof *order);
    size_t *spare = jj_alloc_array(j, n + 1, sizeof *spare);
    struct jj_val *old = jj_alloc_array(j, n + 1, sizeof *old);
    for (size_t i = 0; i < n; i++) order[i] = i;
    jj_step(j, n);
    merge(j, keys, order, spare, n, reverse);
    if (n) memcpy(old, values, n * sizeof *old);
    for (size_t i = 0; i < n; i++) values[i] = old[order[i]];
}
