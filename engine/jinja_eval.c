/*
 * jinja_eval.c - expressions: one function per node kind behind jj_eval, which counts depth and steps.
 *
 * `and`, `or` and the inline if are lazy and give the operand itself; comparisons chain as in Python.  Arguments are
 * evaluated in source order into arrays of the arena.
 */
#include "engine/jinja_int.h"

/* Collected arguments of one call; grows in the arena. */
struct collected {
    struct jj_list values;
    struct jj_dict *keywords; /* by name, or NULL */
};

static struct jj_val slot_of(const struct jj_node *n, struct jj_scope *s)
{
    for (unsigned h = n->hops; h > 0; h--) s = s->parent;
    return s->slot[n->slot];
}

static struct jj_val eval_name(struct jj *j, const struct jj_node *n, struct jj_scope *s)
{
    struct jj_val v = slot_of(n, s);
    return v.type == JJ_MISSING ? jj_undefined_name(j, n->name) : v;
}

static struct jj_list *eval_items(struct jj *j, const struct jj_node *n, struct jj_scope *s)
{
    struct jj_list *l = jj_list_new(j, 0);
    for (n = n->a; n; n = n->next) jj_list_push(j, l, jj_eval(j, n, s));
    return l;
}

static struct jj_val eval_dict(struct jj *j, const struct jj_node *n, struct jj_scope *s)
{
    struct jj_dict *d = jj_dict_new(j, 0);
    for (n = n->a; n; n = n->next->next) {
        struct jj_val key = jj_eval(j, n, s);
        jj_dict_set(j, d, key, jj_eval(j, n->next, s));
    }
    return (struct jj_val){.type = JJ_DICT, .d = d};
}

static struct jj_val eval_concat(struct jj *j, const struct jj_node *n, struct jj_scope *s)
{
    struct jj_sb sb = {0};
    for (n = n->a; n; n = n->next) jj_put_str(j, &sb, jj_eval(j, n, s));
    return jj_sb_val(j, &sb);
}

static struct jj_val eval_compare(struct jj *j, const struct jj_node *n, struct jj_scope *s)
{
    struct jj_val left = jj_eval(j, n->a, s);
    for (n = n->b; n; n = n->next) {
        struct jj_val right = jj_eval(j, n->a, s);
        j->line = n->line;
        if (!jj_compare(j, n->op, left, right)) return jj_bool(false);
        left = right;
    }
    return jj_bool(true);
}

static struct jj_val eval_slice_part(struct jj *j, const struct jj_node *n, struct jj_scope *s)
{
    return n ? jj_eval(j, n, s) : jj_none();
}

static struct jj_val eval_getitem(struct jj *j, const struct jj_node *n, struct jj_scope *s)
{
    struct jj_val obj = jj_eval(j, n->a, s);
    if (n->b->kind != N_SLICE) {
        struct jj_val arg = jj_eval(j, n->b, s);
        j->line = n->line;
        return jj_getitem(j, obj, arg);
    }
    struct jj_val start = eval_slice_part(j, n->b->a, s);
    struct jj_val stop = eval_slice_part(j, n->b->b, s);
    struct jj_val step = eval_slice_part(j, n->b->c, s);
    j->line = n->line;
    return jj_slice(j, obj, start, stop, step);
}

/* --- calls --------------------------------------------------------------------------------------------------- */

static void collect_keyword(struct jj *j, struct collected *c, struct jj_val name, struct jj_val v)
{
    if (name.type != JJ_STR) jj_fail(j, ST_CORRUPT, "keywords must be strings");
    if (!c->keywords) c->keywords = jj_dict_new(j, 0);
    if (jj_dict_get(j, c->keywords, name))
        jj_fail(j, ST_CORRUPT, "got multiple values for keyword argument %s", jj_repr_short(j, name));
    jj_dict_set(j, c->keywords, name, v);
}

static void collect(struct jj *j, struct collected *c, const struct jj_node *n, struct jj_scope *s)
{
    for (; n; n = n->next) {
        struct jj_val v = jj_eval(j, n->a, s), item;
        if (n->op == ARG_POSITIONAL) {
            jj_list_push(j, &c->values, v);
        } else if (n->op == ARG_KEYWORD) {
            collect_keyword(j, c, jj_str_val(n->name), v);
        } else if (n->op == ARG_STAR) {
            for (struct jj_iter *it = jj_iter_new(j, v); jj_next(j, it, &item);)
                jj_list_push(j, &c->values, item);
        } else {
            if (v.type != JJ_DICT) jj_fail(j, ST_CORRUPT, "argument after ** must be a mapping");
            for (size_t i = 0; i < v.d->n; i++) collect_keyword(j, c, v.d->e[i].key, v.d->e[i].value);
        }
    }
}

static struct jj_args finish(struct jj *j, const struct collected *c)
{
    struct jj_args args = {.v = c->values.v, .n = c->values.n};
    if (!c->keywords) return args;
    size_t n = c->keywords->n;
    const struct jj_str **names = jj_alloc_array(j, n + 1, sizeof *names);
    struct jj_val *values = jj_alloc_array(j, n + 1, sizeof *values);
    for (size_t i = 0; i < n; i++) {
        names[i] = c->keywords->e[i].key.s;
        values[i] = c->keywords->e[i].value;
    }
    args.kw = names;
    args.kv = values;
    args.nkw = n;
    return args;
}

struct jj_val jj_call(struct jj *j, struct jj_val fn, const struct jj_args *args)
{
    switch (fn.type) {
    case JJ_UNDEFINED: jj_fail_undefined(j, fn);
    case JJ_MACRO: return jj_call_macro(j, fn.macro, args);
    case JJ_METHOD: return fn.method->fn->call(j, fn.method->self, args);
    case JJ_FUNCTION: return fn.fn->call(j, jj_none(), args);
    case JJ_JOINER: {
        struct jj_val nothing[1];
        jj_bind(j, "joiner()", "", args, nothing);
        if (fn.joiner->used) return fn.joiner->sep;
        fn.joiner->used = true;
        return jj_textz(j, "");
    }
    case JJ_LOOP: {
        struct jj_val items;
        jj_bind(j, "loop()", "iterable", args, &items);
        return jj_loop_recurse(j, fn.loop, items);
    }
    default: jj_fail(j, ST_CORRUPT, "'%s' object is not callable", jj_type_name(fn));
    }
}

struct jj_val jj_call_node(struct jj *j, const struct jj_node *n, struct jj_scope *s,
                           struct jj_val caller)
{
    struct jj_val fn = jj_eval(j, n->a, s);
    struct collected c = {0};
    collect(j, &c, n->b, s);
    if (caller.type != JJ_MISSING) collect_keyword(j, &c, jj_textz(j, "caller"), caller);
    struct jj_args args = finish(j, &c);
    j->line = n->line;
    return jj_call(j, fn, &args);
}

static struct jj_val apply(struct jj *j, const struct jj_node *n, struct jj_scope *s, struct jj_val v)
{
    struct collected c = {0};
    collect(j, &c, n->b, s);
    struct jj_args args = finish(j, &c);
    j->line = n->line;
    return n->fn->call(j, v, &args);
}

/* A chain of filters over the text of a block: the innermost one has no value of its own. */
struct jj_val jj_apply_filters(struct jj *j, const struct jj_node *n, struct jj_scope *s,
                               struct jj_val text)
{
    if (!n) return text;
    jj_enter(j);
    struct jj_val v = apply(j, n, s, jj_apply_filters(j, n->a, s, text));
    jj_leave(j);
    return v;
}

static struct jj_val eval_cond(struct jj *j, const struct jj_node *n, struct jj_scope *s)
{
    if (jj_truth(j, jj_eval(j, n->a, s))) return jj_eval(j, n->b, s);
    if (n->c) return jj_eval(j, n->c, s);
    return jj_undefined_hint(j,
                             "the inline if-expression on line %d evaluated to false and no else "
                             "section was defined.",
                             n->line);
}

static struct jj_val eval_binary(struct jj *j, const struct jj_node *n, struct jj_scope *s)
{
    struct jj_val a = jj_eval(j, n->a, s), b = jj_eval(j, n->b, s);
    j->line = n->line;
    return jj_binary(j, n->op, a, b);
}

static struct jj_val eval(struct jj *j, const struct jj_node *n, struct jj_scope *s)
{
    struct jj_val v;
    switch ((enum jj_kind)n->kind) {
    case N_CONST: return n->val;
    case N_NAME: return eval_name(j, n, s);
    case N_TUPLE: return jj_tuple_val(eval_items(j, n, s));
    case N_LIST: return jj_list_val(eval_items(j, n, s));
    case N_DICT: return eval_dict(j, n, s);
    case N_BINARY: return eval_binary(j, n, s);
    case N_AND: v = jj_eval(j, n->a, s); return jj_truth(j, v) ? jj_eval(j, n->b, s) : v;
    case N_OR: v = jj_eval(j, n->a, s); return jj_truth(j, v) ? v : jj_eval(j, n->b, s);
    case N_NOT: return jj_bool(!jj_truth(j, jj_eval(j, n->a, s)));
    case N_NEG:
    case N_POS: v = jj_eval(j, n->a, s); return jj_negate(j, v, n->kind == N_NEG);
    case N_CONCAT: return eval_concat(j, n, s);
    case N_COMPARE: return eval_compare(j, n, s);
    case N_GETATTR:
        v = jj_eval(j, n->a, s);
        j->line = n->line;
        return jj_getattr(j, v, n->name);
    case N_GETITEM: return eval_getitem(j, n, s);
    case N_CALL: return jj_call_node(j, n, s, jj_missing());
    case N_FILTER:
    case N_TEST: v = jj_eval(j, n->a, s); return apply(j, n, s, v);
    case N_COND: return eval_cond(j, n, s);
    default: CHECK(!"a statement where an expression was expected");
    }
    return jj_none();
}

struct jj_val jj_eval(struct jj *j, const struct jj_node *n, struct jj_scope *s)
{
    jj_enter(j);
    j->line = n->line;
    struct jj_val v = eval(j, n, s);
    jj_leave(j);
    return v;
}
