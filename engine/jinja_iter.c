/*
 * jinja_iter.c - walking values.  An iterator is pulled one item at a time, so map() and select() run as lazily as
 * Python's generators do: an error in the tenth item does not stop a template that looks at the first.
 */
#include "engine/jinja_int.h"

int64_t jj_range_at(const struct jj_range *r, int64_t i)
{
    return (int64_t)((uint64_t)r->start + (uint64_t)i * (uint64_t)r->step);
}

static bool next_nothing(struct jj *j, struct jj_iter *it, struct jj_val *out)
{
    (void)j, (void)it, (void)out;
    return false;
}

static bool next_list(struct jj *j, struct jj_iter *it, struct jj_val *out)
{
    (void)j;
    if (it->pos >= it->src.l->n) return false;
    *out = it->src.l->v[it->pos++];
    return true;
}

static bool next_str(struct jj *j, struct jj_iter *it, struct jj_val *out)
{
    const struct jj_str *s = it->src.s;
    size_t n;
    if (it->pos >= s->len) return false;
    jj_decode(s->data + it->pos, s->data + s->len, &n);
    *out = jj_text_borrow(j, s->data + it->pos, n);
    it->pos += n;
    return true;
}

static bool next_dict(struct jj *j, struct jj_iter *it, struct jj_val *out)
{
    if (it->pos >= it->src.d->n) return false;
    const struct jj_pair *p = &it->src.d->e[it->pos++];
    *out = it->src.type == JJ_VALUES ? p->value
           : it->src.type == JJ_ITEMS ? jj_pair_val(j, p->key, p->value)
                                      : p->key;
    return true;
}

static bool next_range(struct jj *j, struct jj_iter *it, struct jj_val *out)
{
    (void)j;
    if ((int64_t)it->pos >= it->src.r->n) return false;
    *out = jj_int(jj_range_at(it->src.r, (int64_t)it->pos++));
    return true;
}

bool jj_iterable(struct jj_val v)
{
    switch (v.type) {
    case JJ_UNDEFINED:
    case JJ_STR:
    case JJ_LIST:
    case JJ_TUPLE:
    case JJ_DICT:
    case JJ_KEYS:
    case JJ_VALUES:
    case JJ_ITEMS:
    case JJ_RANGE:
    case JJ_LOOP:
    case JJ_ITER: return true;
    default: return false;
    }
}

struct jj_iter *jj_iter_new(struct jj *j, struct jj_val v)
{
    if (v.type == JJ_ITER) return v.it;
    if (v.type == JJ_LOOP) jj_fail(j, ST_UNSUPPORTED, "iterating over 'loop' itself is not supported");
    if (!jj_iterable(v)) jj_fail(j, ST_CORRUPT, "'%s' object is not iterable", jj_type_name(v));
    struct jj_iter *it = jj_alloc(j, sizeof *it);
    it->src = v;
    switch (v.type) {
    case JJ_UNDEFINED: it->next = next_nothing; break;
    case JJ_STR: it->next = next_str; break;
    case JJ_LIST:
    case JJ_TUPLE: it->next = next_list; break;
    case JJ_RANGE: it->next = next_range; break;
    default: it->next = next_dict;
    }
    return it;
}

bool jj_next(struct jj *j, struct jj_iter *it, struct jj_val *out)
{
    jj_enter(j);
    bool more = it->next(j, it, out);
    if (!more) it->next = next_nothing;
    jj_leave(j);
    return more;
}

struct jj_list *jj_to_list(struct jj *j, struct jj_val v)
{
    struct jj_list *l = jj_list_new(j, 0);
    struct jj_iter *it = jj_iter_new(j, v);
    struct jj_val item;
    while (jj_next(j, it, &item)) jj_list_push(j, l, item);
    return l;
}

struct jj_val jj_iter_val(struct jj_iter *it)
{
    return (struct jj_val){.type = JJ_ITER, .it = it};
}

/* An iterator from the end; *ok false where Python's reversed() refuses the type. */
struct jj_val jj_reversed(struct jj *j, struct jj_val v, bool *ok)
{
    *ok = v.type == JJ_STR || v.type == JJ_LIST || v.type == JJ_TUPLE || v.type == JJ_DICT ||
          v.type == JJ_KEYS || v.type == JJ_VALUES || v.type == JJ_ITEMS || v.type == JJ_RANGE;
    if (!*ok) return jj_none();
    struct jj_list *l = jj_to_list(j, v);
    for (size_t i = 0; i < l->n / 2; i++) {
        struct jj_val t = l->v[i];
        l->v[i] = l->v[l->n - 1 - i];
        l->v[l->n - 1 - i] = t;
    }
    return jj_iter_val(jj_iter_new(j, jj_list_val(l)));
}
