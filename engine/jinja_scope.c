/*
 * jinja_scope.c - names to slots, by the rules of Jinja's compiler (idtracking), which are not Python's: a scope is
 * opened by a loop body, macro, call, filter, set or with block, not by `if`; a name first *stored* in a scope starts
 * as the outer variable of that name, or, where there is none, as missing, even when the template's variables hold one
 * of that name; a name first *read* there is looked up outside.
 *
 * Two passes per frame: `analyse` walks the frame's own statements in order (stopping at inner frames) and decides how
 * each slot begins; `resolve` then writes hops and slot into each name and opens the inner frames, which see the
 * finished outer ones.  Branches of an `if` are analysed from the same start and merged as branch_update does.
 */
#include "engine/jinja_int.h"

static void analyse_list(struct jj *j, struct jj_frame *f, const struct jj_node *n);
static void resolve(struct jj *j, struct jj_frame *f, struct jj_node *n);

static struct jj_frame *frame_new(struct jj *j, struct jj_frame *parent)
{
    struct jj_frame *f = jj_alloc(j, sizeof *f);
    f->parent = parent;
    return f;
}

static bool same_name(const struct jj_str *a, const struct jj_str *b)
{
    return a == b || (a->len == b->len && !memcmp(a->data, b->data, a->len));
}

static struct jj_sym *sym_of(struct jj *j, struct jj_frame *f, const struct jj_str *name)
{
    jj_step(j, f->n / 8);
    for (size_t i = 0; i < f->n; i++)
        if (same_name(f->sym[i].name, name)) return &f->sym[i];
    return NULL;
}

/* The variable `name` as seen from f: how many frames out, and which slot. */
static bool find_ref(struct jj *j, struct jj_frame *f, const struct jj_str *name, uint16_t *hops,
                     uint16_t *slot)
{
    for (*hops = 0; f; f = f->parent, ++*hops) {
        struct jj_sym *s = sym_of(j, f, name);
        if (!s || !s->present) continue;
        *slot = (uint16_t)(s - f->sym);
        return true;
    }
    return false;
}

static struct jj_sym *define(struct jj *j, struct jj_frame *f, const struct jj_str *name,
                             enum jj_load load)
{
    struct jj_sym *s = sym_of(j, f, name);
    if (!s) {
        if (f->n == f->cap) {
            size_t cap = f->cap ? f->cap * 2 : 8;
            struct jj_sym *grown = jj_alloc_array(j, cap, sizeof *grown);
            if (f->n) memcpy(grown, f->sym, f->n * sizeof *grown);
            f->sym = grown;
            f->cap = cap;
        }
        if (f->n >= INT16_MAX) jj_fail(j, ST_LIMIT, "too many names in one scope of the template");
        s = &f->sym[f->n++];
        s->name = name;
    }
    s->present = true;
    s->load = (uint8_t)load;
    return s;
}

static void declare_param(struct jj *j, struct jj_frame *f, const struct jj_str *name)
{
    define(j, f, name, LOAD_PARAM)->stored = true;
}

static void load_name(struct jj *j, struct jj_frame *f, const struct jj_str *name)
{
    uint16_t hops, slot;
    if (!find_ref(j, f, name, &hops, &slot)) define(j, f, name, LOAD_RESOLVE);
}

static void load_outer(struct jj *j, struct jj_frame *f, const struct jj_str *name,
                       enum jj_load otherwise)
{
    uint16_t hops, slot;
    bool outer = f->parent && find_ref(j, f->parent, name, &hops, &slot);
    struct jj_sym *s = define(j, f, name, outer ? LOAD_ALIAS : otherwise);
    if (!outer) return;
    s->hops = hops;
    s->slot = slot;
}

static void store_name(struct jj *j, struct jj_frame *f, const struct jj_str *name)
{
    struct jj_sym *s = sym_of(j, f, name);
    if (!s || !s->present) load_outer(j, f, name, LOAD_UNDEFINED);
    sym_of(j, f, name)->stored = true;
}

/* --- analyse ------------------------------------------------------------------------------------------------- */

/* Reads in expressions; n may be a list. */
static void analyse_reads(struct jj *j, struct jj_frame *f, const struct jj_node *n)
{
    for (; n; n = n->next) {
        if (n->kind == N_NAME) {
            load_name(j, f, n->name);
            continue;
        }
        analyse_reads(j, f, n->a);
        analyse_reads(j, f, n->b);
        analyse_reads(j, f, n->c);
    }
}

static void analyse_target(struct jj *j, struct jj_frame *f, const struct jj_node *n, bool param)
{
    if (n->kind == N_TUPLE) {
        for (const struct jj_node *c = n->a; c; c = c->next) analyse_target(j, f, c, param);
    } else if (n->kind == N_NSREF) {
        load_name(j, f, n->name);
    } else if (param) {
        declare_param(j, f, n->name);
    } else {
        store_name(j, f, n->name);
    }
}

static struct jj_sym *snapshot(struct jj *j, const struct jj_frame *f)
{
    struct jj_sym *copy = jj_alloc_array(j, f->n + 1, sizeof *copy);
    if (f->n) memcpy(copy, f->sym, f->n * sizeof *copy);
    return copy;
}

/* Back to a snapshot of n symbols; slots made since stay, unused. */
static void restore(struct jj_frame *f, const struct jj_sym *saved, size_t n)
{
    if (n) memcpy(f->sym, saved, n * sizeof *saved);
    for (size_t i = n; i < f->n; i++) f->sym[i].present = f->sym[i].stored = false;
}

static void analyse_if(struct jj *j, struct jj_frame *f, const struct jj_node *n)
{
    analyse_reads(j, f, n->a);
    const struct jj_node *branch[3] = {n->b, n->c, n->d};
    size_t n0 = f->n, count[3];
    struct jj_sym *start = snapshot(j, f), *end[3];
    for (int k = 0; k < 3; k++) {
        analyse_list(j, f, branch[k]);
        end[k] = snapshot(j, f);
        count[k] = f->n;
        restore(f, start, n0);
    }
    for (int k = 0; k < 3; k++)
        for (size_t i = 0; i < count[k]; i++) {
            bool stored = f->sym[i].stored || end[k][i].stored;
            if (end[k][i].present) f->sym[i] = end[k][i];
            f->sym[i].stored = stored;
        }
    for (size_t i = 0; i < f->n; i++) {
        bool before = i < n0 && start[i].stored;
        if (f->sym[i].stored && !before) load_outer(j, f, f->sym[i].name, LOAD_RESOLVE);
    }
}

static void analyse(struct jj *j, struct jj_frame *f, const struct jj_node *n)
{
    switch (n->kind) {
    case N_PRINT: analyse_reads(j, f, n->a); break;
    case N_IF: analyse_if(j, f, n); break;
    case N_FOR: analyse_reads(j, f, n->b); break;
    case N_MACRO: store_name(j, f, n->name); break;
    case N_CALL_BLOCK: analyse_reads(j, f, n->a); break;
    case N_FILTER_BLOCK: analyse_reads(j, f, n->a); break;
    case N_SET:
        analyse_reads(j, f, n->b);
        analyse_target(j, f, n->a, false);
        break;
    case N_SET_BLOCK:
        analyse_reads(j, f, n->b);
        analyse_target(j, f, n->a, false);
        break;
    case N_WITH: analyse_reads(j, f, n->b); break;
    default: break;
    }
}

static void analyse_list(struct jj *j, struct jj_frame *f, const struct jj_node *n)
{
    for (; n; n = n->next) analyse(j, f, n);
}

/* --- resolve ------------------------------------------------------------------------------------------------- */

static void resolve_list(struct jj *j, struct jj_frame *f, struct jj_node *n)
{
    for (; n; n = n->next) resolve(j, f, n);
}

static void resolve_name(struct jj *j, struct jj_frame *f, struct jj_node *n)
{
    if (!find_ref(j, f, n->name, &n->hops, &n->slot)) CHECK(!"a name was not analysed");
}

static struct jj_frame *open_body(struct jj *j, struct jj_frame *outer, struct jj_node *n)
{
    n->frame = frame_new(j, outer);
    analyse_list(j, n->frame, n->d);
    return n->frame;
}

static const struct jj_str *word(struct jj *j, const char *text)
{
    return jj_textz(j, text).s;
}

static void resolve_for(struct jj *j, struct jj_frame *f, struct jj_node *n)
{
    resolve_list(j, f, n->b);
    n->frame = frame_new(j, f);
    declare_param(j, n->frame, word(j, "loop")); /* slot 0 */
    analyse_target(j, n->frame, n->a, true);
    analyse_list(j, n->frame, n->d);
    if (n->c) {
        n->frame2 = frame_new(j, f);
        analyse_target(j, n->frame2, n->a, true);
        analyse_reads(j, n->frame2, n->c);
        resolve_list(j, n->frame2, n->c);
    }
    resolve(j, n->frame, n->a);
    resolve_list(j, n->frame, n->d);
    n->frame3 = frame_new(j, f);
    analyse_list(j, n->frame3, n->e);
    resolve_list(j, n->frame3, n->e);
}

/* Whether a body reads `name` before it stores it, counting inner frames too, as find_undeclared does. */
static bool body_reads(const struct jj_node *n, const struct jj_str *name, bool *stored)
{
    for (; n && !*stored; n = n->next) {
        if (n->kind == N_NAME && same_name(n->name, name)) return true;
        const struct jj_node *const child[] = {n->a, n->b, n->c, n->d, n->e};
        bool set = n->kind == N_SET && n->a->kind == N_NAME && same_name(n->a->name, name);
        for (size_t i = set; i < ARRAY_COUNT(child); i++)
            if (body_reads(child[i], name, stored)) return true;
        if (set) *stored = true;
    }
    return false;
}

static int16_t special(struct jj *j, struct jj_node *n, const char *text)
{
    const struct jj_str *name = word(j, text);
    bool stored = false;
    if (!body_reads(n->d, name, &stored)) return -1;
    declare_param(j, n->frame, name);
    return (int16_t)(sym_of(j, n->frame, name) - n->frame->sym);
}

/* The frame of a macro or of what a call block passes: parameters, then caller, kwargs and varargs where read. */
static void resolve_macro(struct jj *j, struct jj_frame *f, struct jj_node *n)
{
    bool own_caller = false, own_kwargs = false, own_varargs = false;
    n->frame = frame_new(j, f);
    for (struct jj_node *p = n->a; p; p = p->next) {
        declare_param(j, n->frame, p->name);
        own_kwargs |= jj_str_is(p->name, "kwargs");
        own_varargs |= jj_str_is(p->name, "varargs");
        if (!jj_str_is(p->name, "caller")) continue;
        own_caller = true;
        j->line = p->line;
        if (!p->a)
            jj_fail(j, ST_INVALID,
                    "the special \"caller\" argument must be omitted or be given a default");
    }
    for (struct jj_node *p = n->a; p; p = p->next) analyse_reads(j, n->frame, p->a);
    if (!own_caller) n->slot_caller = special(j, n, "caller");
    if (!own_kwargs) n->slot_kwargs = special(j, n, "kwargs");
    if (!own_varargs) n->slot_varargs = special(j, n, "varargs");
    analyse_list(j, n->frame, n->d);
    for (struct jj_node *p = n->a; p; p = p->next) {
        p->slot = (uint16_t)(sym_of(j, n->frame, p->name) - n->frame->sym);
        resolve_list(j, n->frame, p->a);
    }
    resolve_list(j, n->frame, n->d);
}

static void resolve_with(struct jj *j, struct jj_frame *f, struct jj_node *n)
{
    resolve_list(j, f, n->b);
    n->frame = frame_new(j, f);
    for (struct jj_node *t = n->a; t; t = t->next) declare_param(j, n->frame, t->name);
    analyse_list(j, n->frame, n->d);
    resolve_list(j, n->frame, n->a);
    resolve_list(j, n->frame, n->d);
}

static void resolve(struct jj *j, struct jj_frame *f, struct jj_node *n)
{
    jj_step(j, 1);
    switch (n->kind) {
    case N_NAME:
    case N_NSREF: resolve_name(j, f, n); break;
    case N_FOR: resolve_for(j, f, n); break;
    case N_MACRO:
        resolve_name(j, f, n);
        resolve_macro(j, f, n);
        break;
    case N_CALL_BLOCK:
        resolve(j, f, n->a);
        resolve_macro(j, f, n->b);
        break;
    case N_FILTER_BLOCK:
    case N_SET_BLOCK:
    case N_GENERATION:
        resolve_list(j, open_body(j, f, n), n->d);
        if (n->kind == N_SET_BLOCK) resolve_list(j, f, n->b);
        resolve_list(j, f, n->a);
        break;
    case N_WITH: resolve_with(j, f, n); break;
    default:
        resolve_list(j, f, n->a);
        resolve_list(j, f, n->b);
        resolve_list(j, f, n->c);
        resolve_list(j, f, n->d);
    }
}

struct jj_frame *jj_scope_template(struct jj *j, struct jj_node *body)
{
    struct jj_frame *f = frame_new(j, NULL);
    analyse_list(j, f, body);
    resolve_list(j, f, body);
    return f;
}
