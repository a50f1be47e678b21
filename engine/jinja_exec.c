/*
 * jinja_exec.c - statements, macros, loops, and the render itself.
 *
 * Output goes to the caller's buf, or into `capture` while a macro, a set block, a filter block or a recursive loop
 * collects its text.  A loop's scope is made once and begins anew for every item, as the locals of Jinja's generated
 * function do; a macro keeps the scope it was defined in.
 */
#include <stdlib.h>

#include "engine/jinja_int.h"

const struct eng_jinja_limits eng_jinja_limits_default = {
    .steps_max = 50000000,
    .depth_max = JJ_EVAL_DEPTH_MAX,
    .output_bytes_max = 64u << 20,
    .arena_bytes_max = 512u << 20,
};

enum flow { FLOW_ON, FLOW_BREAK, FLOW_CONTINUE };

static enum flow exec_list(struct jj *j, const struct jj_node *n, struct jj_scope *s);

static void output(struct jj *j, const struct jj_str *s)
{
    if (j->capture) {
        jj_sb_str(j, j->capture, s);
        return;
    }
    if (s->len > j->output_left)
        jj_fail(j, ST_LIMIT, "the template exceeds its limit of output bytes");
    j->output_left -= s->len;
    jj_step(j, s->len / 64);
    buf_put(j->out, s->data, s->len);
    enum status st = buf_status(j->out);
    if (st) jj_fail(j, st, st == ST_LIMIT ? "the rendered text is too long" : "no memory for the text");
}

/* --- scopes -------------------------------------------------------------------------------------------------- */

static struct jj_scope *scope_new(struct jj *j, const struct jj_frame *f, struct jj_scope *parent)
{
    struct jj_scope *s = jj_alloc(j, sizeof *s + f->n * sizeof s->slot[0]);
    s->parent = parent;
    return s;
}

/* Every slot but the parameters to what it begins as. */
static void scope_begin(struct jj *j, const struct jj_frame *f, struct jj_scope *s)
{
    for (size_t i = 0; i < f->n; i++) {
        const struct jj_sym *sym = &f->sym[i];
        if (sym->load == LOAD_UNDEFINED) {
            s->slot[i] = jj_missing();
        } else if (sym->load == LOAD_RESOLVE) {
            s->slot[i] = jj_resolve(j, sym->name);
        } else if (sym->load == LOAD_ALIAS) {
            struct jj_scope *outer = s->parent;
            for (unsigned h = sym->hops; h > 0; h--) outer = outer->parent;
            s->slot[i] = outer->slot[sym->slot];
        }
    }
}

static struct jj_scope *scope_open(struct jj *j, const struct jj_frame *f, struct jj_scope *parent)
{
    struct jj_scope *s = scope_new(j, f, parent);
    scope_begin(j, f, s);
    return s;
}

static struct jj_val *slot_of(const struct jj_node *n, struct jj_scope *s)
{
    for (unsigned h = n->hops; h > 0; h--) s = s->parent;
    return &s->slot[n->slot];
}

/* --- assignment ---------------------------------------------------------------------------------------------- */

/* All namespaces of a target are checked before the value is computed, as Jinja does. */
static void check_namespaces(struct jj *j, const struct jj_node *target, struct jj_scope *s)
{
    if (target->kind == N_TUPLE)
        for (const struct jj_node *c = target->a; c; c = c->next) check_namespaces(j, c, s);
    if (target->kind == N_NSREF && slot_of(target, s)->type != JJ_NAMESPACE)
        jj_fail(j, ST_CORRUPT, "cannot assign attribute on non-namespace object");
}

static void assign(struct jj *j, const struct jj_node *target, struct jj_scope *s, struct jj_val v)
{
    if (target->kind == N_NAME) {
        *slot_of(target, s) = v;
        return;
    }
    if (target->kind == N_NSREF) {
        const struct jj_str *attr = target->val.s;
        if (attr->len && attr->data[0] == '_')
            jj_fail(j, ST_CORRUPT,
                    "Chat templates cannot store underscore-prefixed attributes on a namespace, but got "
                    "%s. Please rename the attribute.",
                    jj_repr_short(j, target->val));
        jj_dict_set(j, slot_of(target, s)->d, target->val, v);
        return;
    }
    if (!jj_iterable(v))
        jj_fail(j, ST_CORRUPT, "cannot unpack non-iterable %s object", jj_type_name(v));
    struct jj_iter *it = jj_iter_new(j, v);
    size_t want = 0, got = 0;
    struct jj_list *items = jj_list_new(j, 0);
    struct jj_val item;
    for (const struct jj_node *c = target->a; c; c = c->next) want++;
    while (got <= want && jj_next(j, it, &item)) {
        jj_list_push(j, items, item);
        got++;
    }
    if (got > want) jj_fail(j, ST_CORRUPT, "too many values to unpack (expected %zu)", want);
    if (got < want)
        jj_fail(j, ST_CORRUPT, "not enough values to unpack (expected %zu, got %zu)", want, got);
    size_t i = 0;
    for (const struct jj_node *c = target->a; c; c = c->next) assign(j, c, s, items->v[i++]);
}

static struct jj_val capture(struct jj *j, const struct jj_node *body, struct jj_scope *s,
                             enum flow *flow)
{
    struct jj_sb sb = {0}, *outer = j->capture;
    j->capture = &sb;
    *flow = exec_list(j, body, s);
    j->capture = outer;
    return jj_sb_val(j, &sb);
}

/* --- loops --------------------------------------------------------------------------------------------------- */

struct jj_val jj_loop_peek(struct jj *j, struct jj_loop *loop)
{
    struct jj_val v;
    if (loop->after.type == JJ_MISSING && jj_next(j, loop->it, &v)) loop->after = v;
    return loop->after;
}

int64_t jj_loop_length(struct jj *j, struct jj_loop *loop)
{
    if (loop->length >= 0) return loop->length;
    if (!jj_length(j, loop->source, &loop->length)) {
        struct jj_list *rest = jj_list_new(j, 0);
        struct jj_val v;
        while (jj_next(j, loop->it, &v)) jj_list_push(j, rest, v);
        loop->it = jj_iter_new(j, jj_list_val(rest));
        loop->length = (int64_t)rest->n + loop->index0 + 1 + (loop->after.type != JJ_MISSING);
    }
    return loop->length;
}

static bool loop_next(struct jj *j, struct jj_loop *loop)
{
    struct jj_val v = loop->after;
    loop->after = jj_missing();
    if (v.type == JJ_MISSING && !jj_next(j, loop->it, &v)) return false;
    loop->index0++;
    loop->before = loop->current;
    loop->current = v;
    return true;
}

bool jj_for_test(struct jj *j, const struct jj_node *n, struct jj_scope *scope, struct jj_val item)
{
    assign(j, n->a, scope, item);
    return jj_truth(j, jj_eval(j, n->c, scope));
}

static bool next_filtered(struct jj *j, struct jj_iter *it, struct jj_val *out)
{
    while (jj_next(j, it->inner, out)) {
        jj_step(j, 1);
        if (jj_for_test(j, it->node, it->scope, *out)) return true;
    }
    return false;
}

/* `for x in items if test` walks a generator: it has no length of its own. */
static struct jj_val filtered(struct jj *j, const struct jj_node *n, struct jj_scope *s,
                              struct jj_val items)
{
    struct jj_iter *it = jj_alloc(j, sizeof *it);
    it->next = next_filtered;
    it->inner = jj_iter_new(j, items);
    it->node = n;
    it->scope = scope_open(j, n->frame2, s);
    return jj_iter_val(it);
}

static enum flow run_loop(struct jj *j, const struct jj_node *n, struct jj_scope *s,
                          struct jj_val items, int64_t depth0)
{
    struct jj_loop *loop = jj_alloc(j, sizeof *loop);
    loop->source = n->c ? filtered(j, n, s, items) : items;
    loop->it = jj_iter_new(j, loop->source);
    loop->index0 = loop->length = -1;
    loop->node = n;
    loop->outer = s;
    loop->depth0 = depth0;
    struct jj_scope *body = scope_new(j, n->frame, s);
    body->slot[0] = (struct jj_val){.type = JJ_LOOP, .loop = loop};
    bool run_else = true; /* until an iteration comes to its end: Jinja's own rule, not Python's */
    while (loop_next(j, loop)) {
        jj_step(j, 1);
        assign(j, n->a, body, loop->current);
        scope_begin(j, n->frame, body);
        enum flow flow = exec_list(j, n->d, body);
        if (flow == FLOW_BREAK) break;
        if (flow == FLOW_ON) run_else = false;
    }
    if (!run_else || !n->e) return FLOW_ON;
    return exec_list(j, n->e, scope_open(j, n->frame3, s));
}

static struct jj_val run_recursive(struct jj *j, const struct jj_node *n, struct jj_scope *s,
                                   struct jj_val items, int64_t depth0)
{
    struct jj_sb sb = {0}, *outer = j->capture;
    j->capture = &sb;
    if (run_loop(j, n, s, items, depth0)) CHECK(!"a recursive loop was left by a jump");
    j->capture = outer;
    return jj_sb_val(j, &sb);
}

struct jj_val jj_loop_recurse(struct jj *j, struct jj_loop *loop, struct jj_val items)
{
    if (!loop->node->flag)
        jj_fail(j, ST_CORRUPT,
                "The loop must have the 'recursive' marker to be called recursively.");
    jj_enter(j);
    struct jj_val v = run_recursive(j, loop->node, loop->outer, items, loop->depth0 + 1);
    jj_leave(j);
    return v;
}

static enum flow exec_for(struct jj *j, const struct jj_node *n, struct jj_scope *s)
{
    struct jj_val items = jj_eval(j, n->b, s);
    j->line = n->line;
    if (!n->flag) return run_loop(j, n, s, items, 0);
    output(j, run_recursive(j, n, s, items, 0).s);
    return FLOW_ON;
}

/* --- macros -------------------------------------------------------------------------------------------------- */

static struct jj_val macro_val(struct jj *j, const struct jj_node *n, struct jj_scope *s)
{
    struct jj_macro *m = jj_alloc(j, sizeof *m);
    m->node = n;
    m->closure = s;
    return (struct jj_val){.type = JJ_MACRO, .macro = m};
}

static const char *macro_name(struct jj *j, const struct jj_macro *m)
{
    return m->node->name ? jj_repr_short(j, jj_str_val(m->node->name)) : "None";
}

/* Positional arguments beyond the parameters: to varargs, or refused. */
static void bind_varargs(struct jj *j, const struct jj_macro *m, const struct jj_args *args,
                         size_t params, struct jj_scope *s)
{
    if (m->node->slot_varargs < 0) {
        if (args->n > params)
            jj_fail(j, ST_CORRUPT, "macro %s takes not more than %zu argument(s)", macro_name(j, m),
                    params);
        return;
    }
    struct jj_list *l = jj_list_new(j, 0);
    for (size_t i = params; i < args->n; i++) jj_list_push(j, l, args->v[i]);
    s->slot[m->node->slot_varargs] = jj_tuple_val(l);
}

/* Keywords that are no parameter: to caller, to kwargs, or refused. */
static void bind_kwargs(struct jj *j, const struct jj_macro *m, const struct jj_args *args,
                        const bool *used, struct jj_scope *s)
{
    struct jj_dict *rest = jj_dict_new(j, 0);
    struct jj_val caller = jj_missing();
    for (size_t i = 0; i < args->nkw; i++) {
        if (used[i]) continue;
        if (m->node->slot_caller >= 0 && jj_str_is(args->kw[i], "caller")) caller = args->kv[i];
        else jj_dict_set(j, rest, jj_str_val(args->kw[i]), args->kv[i]);
    }
    if (m->node->slot_caller >= 0) {
        if (caller.type == JJ_MISSING || caller.type == JJ_NONE)
            caller = jj_undefined_hint(j, "No caller defined");
        s->slot[m->node->slot_caller] = caller;
    }
    if (m->node->slot_kwargs >= 0)
        s->slot[m->node->slot_kwargs] = (struct jj_val){.type = JJ_DICT, .d = rest};
    else if (rest->n)
        jj_fail(j, ST_CORRUPT, "macro %s takes no keyword argument %s", macro_name(j, m),
                jj_repr_short(j, rest->e[0].key));
}

static void bind_params(struct jj *j, const struct jj_macro *m, const struct jj_args *args,
                        struct jj_scope *s)
{
    bool *used = jj_alloc(j, args->nkw + 1);
    size_t at = 0;
    for (const struct jj_node *p = m->node->a; p; p = p->next, at++) {
        struct jj_val v = at < args->n ? args->v[at] : jj_missing();
        for (size_t i = 0; at >= args->n && i < args->nkw; i++) {
            if (used[i] || !jj_equal(j, jj_str_val(args->kw[i]), jj_str_val(p->name))) continue;
            v = args->kv[i];
            used[i] = true;
        }
        s->slot[p->slot] = v;
    }
    bind_kwargs(j, m, args, used, s);
    bind_varargs(j, m, args, at, s);
}

struct jj_val jj_call_macro(struct jj *j, const struct jj_macro *m, const struct jj_args *args)
{
    int line = j->line;
    jj_enter(j);
    struct jj_scope *s = scope_new(j, m->node->frame, m->closure);
    bind_params(j, m, args, s);
    scope_begin(j, m->node->frame, s);
    for (const struct jj_node *p = m->node->a; p; p = p->next) {
        if (s->slot[p->slot].type != JJ_MISSING) continue;
        s->slot[p->slot] = p->a ? jj_eval(j, p->a, s)
                                : jj_undefined_hint(j, "parameter '%.*s' was not provided",
                                                    (int)size_min(p->name->len, 80), p->name->data);
    }
    enum flow flow;
    struct jj_val text = capture(j, m->node->d, s, &flow);
    CHECK(flow == FLOW_ON);
    jj_leave(j);
    j->line = line;
    return text;
}

/* --- statements ---------------------------------------------------------------------------------------------- */

static enum flow exec_if(struct jj *j, const struct jj_node *n, struct jj_scope *s)
{
    if (jj_truth(j, jj_eval(j, n->a, s))) return exec_list(j, n->b, s);
    for (const struct jj_node *c = n->c; c; c = c->next)
        if (jj_truth(j, jj_eval(j, c->a, s))) return exec_list(j, c->b, s);
    return exec_list(j, n->d, s);
}

static enum flow exec_set_block(struct jj *j, const struct jj_node *n, struct jj_scope *s)
{
    enum flow flow;
    check_namespaces(j, n->a, s);
    struct jj_val text = capture(j, n->d, scope_open(j, n->frame, s), &flow);
    if (flow != FLOW_ON) return flow;
    assign(j, n->a, s, jj_apply_filters(j, n->b, s, text));
    return FLOW_ON;
}

static enum flow exec_filter_block(struct jj *j, const struct jj_node *n, struct jj_scope *s)
{
    enum flow flow;
    struct jj_val text = capture(j, n->d, scope_open(j, n->frame, s), &flow);
    if (flow != FLOW_ON) return flow;
    output(j, jj_to_str(j, jj_apply_filters(j, n->a, s, text)));
    return FLOW_ON;
}

static enum flow exec_with(struct jj *j, const struct jj_node *n, struct jj_scope *s)
{
    struct jj_scope *inner = scope_new(j, n->frame, s);
    const struct jj_node *v = n->b;
    for (const struct jj_node *t = n->a; t; t = t->next, v = v->next)
        inner->slot[t->slot] = jj_eval(j, v, s);
    scope_begin(j, n->frame, inner);
    return exec_list(j, n->d, inner);
}

static void exec_set(struct jj *j, const struct jj_node *n, struct jj_scope *s)
{
    j->line = n->line;
    check_namespaces(j, n->a, s);
    struct jj_val v = jj_eval(j, n->b, s);
    j->line = n->line;
    assign(j, n->a, s, v);
}

static void exec_print(struct jj *j, const struct jj_node *n, struct jj_scope *s)
{
    struct jj_val v = jj_eval(j, n->a, s);
    j->line = n->line;
    output(j, jj_to_str(j, v));
}

static enum flow exec(struct jj *j, const struct jj_node *n, struct jj_scope *s)
{
    switch ((enum jj_kind)n->kind) {
    case N_DATA: output(j, n->val.s); return FLOW_ON;
    case N_PRINT: exec_print(j, n, s); return FLOW_ON;
    case N_FOR: return exec_for(j, n, s);
    case N_IF: return exec_if(j, n, s);
    case N_MACRO: *slot_of(n, s) = macro_val(j, n, s); return FLOW_ON;
    case N_CALL_BLOCK: {
        struct jj_val v = jj_call_node(j, n->a, s, macro_val(j, n->b, s));
        output(j, jj_to_str(j, v));
        return FLOW_ON;
    }
    case N_FILTER_BLOCK: return exec_filter_block(j, n, s);
    case N_SET: exec_set(j, n, s); return FLOW_ON;
    case N_SET_BLOCK: return exec_set_block(j, n, s);
    case N_WITH: return exec_with(j, n, s);
    case N_GENERATION: return exec_list(j, n->d, scope_open(j, n->frame, s));
    case N_BREAK: return FLOW_BREAK;
    case N_CONTINUE: return FLOW_CONTINUE;
    default: CHECK(!"an expression where a statement was expected");
    }
    return FLOW_ON;
}

static enum flow exec_list(struct jj *j, const struct jj_node *n, struct jj_scope *s)
{
    enum flow flow = FLOW_ON;
    jj_enter(j);
    for (; n && flow == FLOW_ON; n = n->next) {
        jj_step(j, 1);
        j->line = n->line;
        flow = exec(j, n, s);
    }
    jj_leave(j);
    return flow;
}

/* --- render -------------------------------------------------------------------------------------------------- */

static void render(struct jj *j, const struct eng_jinja *t, const cJSON *vars)
{
    struct jj_val v = jj_from_json(j, vars);
    if (v.type != JJ_DICT) jj_fail(j, ST_CORRUPT, "the template's variables are not a JSON object");
    j->vars = v.d;
    if (exec_list(j, t->body, scope_open(j, t->frame, NULL))) CHECK(!"a jump left the template");
}

enum status eng_jinja_render(const struct eng_jinja *t, const cJSON *vars,
                             const struct eng_jinja_limits *limits, int64_t now_unix_s,
                             struct buf *out, char *err)
{
    CHECK(limits->depth_max <= JJ_EVAL_DEPTH_MAX);
    enum status st = buf_status(out);
    if (st) return err_set(err, st, "the buffer for the text had failed before");
    struct jj *j = calloc(1, sizeof *j);
    if (!j) return err_set(err, ST_NOMEM, "no memory for the template");
    const size_t len = out->len;
    j->arena.max = limits->arena_bytes_max;
    j->steps_left = limits->steps_max;
    j->deadline_ns = limits->deadline_ns;
    j->depth_max = limits->depth_max;
    j->now_unix_s = now_unix_s;
    j->out = out;
    j->output_left = limits->output_bytes_max;
    if (setjmp(j->jump)) {
        st = err_set(err, j->status, "%s", j->message);
        out->failed = ST_OK;
        out->len = len;
        if (out->data) out->data[len] = '\0';
    } else {
        render(j, t, vars);
    }
    jj_arena_free(&j->arena);
    free(j);
    return st;
}
