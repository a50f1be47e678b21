/*
 * jinja_parse.c - tokens to statements, and the compile itself: lex, parse, resolve names (jinja_scope.c).
 *
 * Statements outside the dialect are refused by name and line.  Depth is bounded twice: `nest` bounds the parser's own
 * recursion, jj_node_seal the depth of the finished tree, which every later walk recurses over.
 */
#include <stdio.h>
#include <stdlib.h>

#include "config/utf8.h"
#include "engine/jinja_int.h"

#define NEST_MAX 180
#define COMPILE_ARENA_MAX (1u << 30)
#define COMPILE_STEPS_MAX 400000000u

static struct jj_node *parse_body(struct jj_parser *p, const char *const *ends);

/* --- shared with expressions --------------------------------------------------------------------------------- */

struct jj_node *jj_node_new(struct jj_parser *p, enum jj_kind kind, int line)
{
    struct jj_node *n = jj_alloc(p->j, sizeof *n);
    n->kind = (uint8_t)kind;
    n->line = p->j->line = line;
    n->depth = 1;
    n->slot_caller = n->slot_kwargs = n->slot_varargs = -1;
    return n;
}

struct jj_node *jj_node_seal(struct jj_parser *p, struct jj_node *n)
{
    struct jj_node *const child[] = {n->a, n->b, n->c, n->d, n->e};
    for (size_t i = 0; i < ARRAY_COUNT(child); i++)
        for (const struct jj_node *c = child[i]; c; c = c->next)
            if (c->depth >= n->depth) n->depth = (uint16_t)(c->depth + 1);
    if (n->depth > JJ_TREE_DEPTH_MAX) {
        p->j->line = n->line;
        jj_fail(p->j, ST_LIMIT, "the template is nested more than %d deep", JJ_TREE_DEPTH_MAX);
    }
    return n;
}

void jj_parse_nest(struct jj_parser *p)
{
    p->j->line = p->t->line;
    if (++p->nest > NEST_MAX)
        jj_fail(p->j, ST_LIMIT, "the template is nested more than %d deep", NEST_MAX);
}

const char *jj_token_text(struct jj *j, const struct jj_token *t)
{
    static const char *const text[] = {
        [T_EOF] = "end of template",
        [T_DATA] = "template data / text",
        [T_VAR_BEGIN] = "begin of print statement",
        [T_VAR_END] = "end of print statement",
        [T_BLOCK_BEGIN] = "begin of statement block",
        [T_BLOCK_END] = "end of statement block",
        [T_STRING] = "string",
        [T_INT] = "integer",
        [T_FLOAT] = "float",
        [T_ADD] = "+",      [T_SUB] = "-",      [T_DIV] = "/",    [T_FLOORDIV] = "//", [T_MUL] = "*",
        [T_MOD] = "%",      [T_POW] = "**",     [T_TILDE] = "~",  [T_LBRACKET] = "[",  [T_RBRACKET] = "]",
        [T_LPAREN] = "(",   [T_RPAREN] = ")",   [T_LBRACE] = "{", [T_RBRACE] = "}",    [T_EQ] = "==",
        [T_NE] = "!=",      [T_GT] = ">",       [T_GE] = ">=",    [T_LT] = "<",        [T_LE] = "<=",
        [T_ASSIGN] = "=",   [T_DOT] = ".",      [T_COLON] = ":",  [T_PIPE] = "|",      [T_COMMA] = ",",
        [T_SEMICOLON] = ";",
    };
    if (t->type != T_NAME) return text[t->type];
    char *name = jj_alloc(j, 81);
    snprintf(name, 81, "%.*s", (int)size_min(t->val.s->len, 80), t->val.s->data);
    return name;
}

_Noreturn void jj_parse_fail(struct jj_parser *p, const char *expected)
{
    const char *got = jj_token_text(p->j, p->t);
    p->j->line = p->t->line;
    if (expected) jj_fail(p->j, ST_INVALID, "expected %s, got '%s'", expected, got);
    jj_fail(p->j, ST_INVALID, "unexpected '%s'", got);
}

bool jj_at_name(const struct jj_parser *p, const char *name)
{
    return p->t->type == T_NAME && jj_str_is(p->t->val.s, name);
}

bool jj_skip_name(struct jj_parser *p, const char *name)
{
    if (!jj_at_name(p, name)) return false;
    p->t++;
    return true;
}

bool jj_skip(struct jj_parser *p, enum jj_token_type type)
{
    if (p->t->type != type) return false;
    p->t++;
    return true;
}

void jj_expect(struct jj_parser *p, enum jj_token_type type)
{
    if (p->t->type == type) {
        p->t++;
        return;
    }
    struct jj_token want = {.type = type};
    char expected[64];
    snprintf(expected, sizeof expected, "'%s'", jj_token_text(p->j, &want));
    jj_parse_fail(p, expected);
}

/* --- targets ------------------------------------------------------------------------------------------------- */

static void check_target(struct jj_parser *p, const struct jj_node *n)
{
    p->j->line = n->line;
    if (n->kind == N_TUPLE) {
        for (const struct jj_node *c = n->a; c; c = c->next) check_target(p, c);
        return;
    }
    if (n->kind != N_NAME && n->kind != N_NSREF) jj_fail(p->j, ST_INVALID, "can't assign to this target");
    if (n->kind == N_NAME && p->loops_named && jj_str_is(n->name, "loop"))
        jj_fail(p->j, ST_INVALID, "can't assign to special loop variable");
}

/* name | name, name | (name, name) | namespace.attribute */
static struct jj_node *parse_target(struct jj_parser *p, const char *end_name, bool with_namespace)
{
    int line = p->t->line;
    struct jj_node *head = NULL, **tail = &head;
    bool tuple = false;
    for (;;) {
        bool ends = p->t->type == T_BLOCK_END || p->t->type == T_RPAREN || p->t->type == T_ASSIGN ||
                    (end_name && jj_at_name(p, end_name));
        if (ends && head) break;
        *tail = jj_parse_primary(p, with_namespace);
        check_target(p, *tail);
        tail = &(*tail)->next;
        if (!jj_skip(p, T_COMMA)) break;
        tuple = true;
    }
    if (!tuple) return head;
    struct jj_node *n = jj_node_new(p, N_TUPLE, line);
    n->a = head;
    return jj_node_seal(p, n);
}

static const struct jj_str *expect_name(struct jj_parser *p)
{
    if (p->t->type != T_NAME) jj_parse_fail(p, "a name");
    const struct jj_str *name = p->t++->val.s;
    static const char *const words[] = {"true", "false", "none", "True", "False", "None", NULL};
    if (jj_in_names(words, name)) jj_fail(p->j, ST_INVALID, "can't assign to a constant");
    return name;
}

/* --- statements ---------------------------------------------------------------------------------------------- */

/* The body up to one of the end tags, whose name is the current token afterwards. */
static struct jj_node *parse_statements(struct jj_parser *p, const char *const *ends)
{
    jj_skip(p, T_COLON);
    jj_expect(p, T_BLOCK_END);
    jj_parse_nest(p);
    struct jj_node *body = parse_body(p, ends);
    p->nest--;
    return body;
}

static struct jj_node *parse_until(struct jj_parser *p, const char *end)
{
    const char *const ends[] = {end, NULL};
    struct jj_node *body = parse_statements(p, ends);
    p->t++;
    return body;
}

/* Macros, call blocks and generation blocks are functions: no break leads out of them. */
static struct jj_node *parse_closed(struct jj_parser *p, const char *end)
{
    int loops = p->loops;
    p->loops = 0;
    struct jj_node *body = parse_until(p, end);
    p->loops = loops;
    return body;
}

static struct jj_node *parse_set(struct jj_parser *p, int line)
{
    struct jj_node *n = jj_node_new(p, N_SET, line);
    n->a = parse_target(p, NULL, true);
    if (jj_skip(p, T_ASSIGN)) {
        n->b = jj_parse_tuple(p, true, NULL, false);
        return n;
    }
    n->kind = N_SET_BLOCK;
    n->b = jj_parse_filter_chain(p, NULL, false);
    n->d = parse_until(p, "endset");
    return n;
}

static struct jj_node *parse_for(struct jj_parser *p, int line)
{
    static const char *const ends[] = {"endfor", "else", NULL};
    struct jj_node *n = jj_node_new(p, N_FOR, line);
    p->loops_named++;
    n->a = parse_target(p, "in", false);
    p->loops_named--;
    if (!jj_skip_name(p, "in")) jj_parse_fail(p, "'in'");
    n->b = jj_parse_tuple(p, false, "recursive", false);
    if (jj_skip_name(p, "if")) n->c = jj_parse_expression(p, true);
    n->flag = jj_skip_name(p, "recursive");
    p->loops++;
    p->loops_named++;
    n->d = parse_statements(p, ends);
    p->loops--;
    if (jj_skip_name(p, "else")) n->e = parse_until(p, "endfor");
    else p->t++;
    p->loops_named--;
    return n;
}

static struct jj_node *parse_if(struct jj_parser *p, int line)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    struct jj_node *first = jj_node_new(p, N_IF, line), *n = first, **tail = &first->c;
    for (;;) {
        n->a = jj_parse_tuple(p, false, NULL, false);
        n->b = parse_statements(p, ends);
        if (n != first) jj_node_seal(p, n);
        if (!jj_at_name(p, "elif")) break;
        n = *tail = jj_node_new(p, N_IF, p->t->line);
        tail = &n->next;
        p->t++;
    }
    if (jj_skip_name(p, "else")) first->d = parse_until(p, "endif");
    else p->t++;
    return first;
}

static void parse_signature(struct jj_parser *p, struct jj_node *macro)
{
    struct jj_node **tail = &macro->a;
    bool defaults = false;
    jj_expect(p, T_LPAREN);
    while (p->t->type != T_RPAREN) {
        if (macro->a) jj_expect(p, T_COMMA);
        struct jj_node *param = *tail = jj_node_new(p, N_PARAM, p->t->line);
        param->name = expect_name(p);
        if (jj_skip(p, T_ASSIGN)) {
            param->a = jj_parse_expression(p, true);
            defaults = true;
        } else if (defaults) {
            jj_fail(p->j, ST_INVALID, "non-default argument follows default argument");
        }
        jj_node_seal(p, param);
        tail = &param->next;
    }
    p->t++;
}

static struct jj_node *parse_macro(struct jj_parser *p, int line)
{
    struct jj_node *n = jj_node_new(p, N_MACRO, line);
    n->name = expect_name(p);
    if (p->loops_named && jj_str_is(n->name, "loop"))
        jj_fail(p->j, ST_INVALID, "can't assign to special loop variable");
    parse_signature(p, n);
    n->d = parse_closed(p, "endmacro");
    return n;
}

static struct jj_node *parse_call_block(struct jj_parser *p, int line)
{
    struct jj_node *n = jj_node_new(p, N_CALL_BLOCK, line);
    struct jj_node *macro = n->b = jj_node_new(p, N_MACRO, line);
    if (p->t->type == T_LPAREN) parse_signature(p, macro);
    n->a = jj_parse_expression(p, true);
    if (n->a->kind != N_CALL) jj_fail(p->j, ST_INVALID, "expected call");
    macro->d = parse_closed(p, "endcall");
    jj_node_seal(p, macro);
    return n;
}

static struct jj_node *parse_filter_block(struct jj_parser *p, int line)
{
    struct jj_node *n = jj_node_new(p, N_FILTER_BLOCK, line);
    n->a = jj_parse_filter_chain(p, NULL, true);
    n->d = parse_until(p, "endfilter");
    return n;
}

static struct jj_node *parse_with(struct jj_parser *p, int line)
{
    struct jj_node *n = jj_node_new(p, N_WITH, line), **target = &n->a, **value = &n->b;
    while (p->t->type != T_BLOCK_END) {
        if (n->a) jj_expect(p, T_COMMA);
        struct jj_node *t = jj_node_new(p, N_NAME, p->t->line);
        t->name = expect_name(p);
        *target = t;
        target = &t->next;
        jj_expect(p, T_ASSIGN);
        *value = jj_parse_expression(p, true);
        value = &(*value)->next;
    }
    n->d = parse_until(p, "endwith");
    return n;
}

static struct jj_node *parse_generation(struct jj_parser *p, int line)
{
    struct jj_node *n = jj_node_new(p, N_GENERATION, line);
    n->d = parse_closed(p, "endgeneration");
    return n;
}

static struct jj_node *parse_break(struct jj_parser *p, int line)
{
    jj_fail(p->j, ST_INVALID, "a break outside of a loop (line %d)", line);
}

static struct jj_node *parse_jump(struct jj_parser *p, int line, enum jj_kind kind)
{
    if (!p->loops) parse_break(p, line);
    return jj_node_new(p, kind, line);
}

/* {% print a, b %}: a list of prints */
static struct jj_node *parse_print(struct jj_parser *p)
{
    struct jj_node *head = NULL, **tail = &head;
    while (p->t->type != T_BLOCK_END) {
        if (head) jj_expect(p, T_COMMA);
        struct jj_node *n = jj_node_new(p, N_PRINT, p->t->line);
        n->a = jj_parse_expression(p, true);
        *tail = jj_node_seal(p, n);
        tail = &n->next;
    }
    return head;
}

static _Noreturn void unknown_tag(struct jj_parser *p, const char *const *ends)
{
    static const char *const refused[] = {"block", "extends", "include", "import",
                                          "from",  "autoescape", "do", "debug", NULL};
    const struct jj_str *name = p->t->val.s;
    int len = (int)size_min(name->len, 80);
    p->j->line = p->t->line;
    if (jj_in_names(refused, name))
        jj_fail(p->j, ST_UNSUPPORTED, "the tag '%.*s' is not supported in chat templates", len, name->data);
    if (ends)
        jj_fail(p->j, ST_INVALID, "encountered unknown tag '%.*s'; '%s' was expected", len, name->data,
                ends[0]);
    jj_fail(p->j, ST_INVALID, "encountered unknown tag '%.*s'", len, name->data);
}

static struct jj_node *parse_statement(struct jj_parser *p, const char *const *ends)
{
    if (p->t->type != T_NAME) jj_parse_fail(p, "a tag name");
    int line = p->j->line = p->t->line;
    struct jj_node *n;
    if (jj_skip_name(p, "if")) n = parse_if(p, line);
    else if (jj_skip_name(p, "for")) n = parse_for(p, line);
    else if (jj_skip_name(p, "set")) n = parse_set(p, line);
    else if (jj_skip_name(p, "macro")) n = parse_macro(p, line);
    else if (jj_skip_name(p, "call")) n = parse_call_block(p, line);
    else if (jj_skip_name(p, "filter")) n = parse_filter_block(p, line);
    else if (jj_skip_name(p, "with")) n = parse_with(p, line);
    else if (jj_skip_name(p, "generation")) n = parse_generation(p, line);
    else if (jj_skip_name(p, "break")) n = parse_jump(p, line, N_BREAK);
    else if (jj_skip_name(p, "continue")) n = parse_jump(p, line, N_CONTINUE);
    else if (jj_skip_name(p, "print")) return parse_print(p);
    else unknown_tag(p, ends);
    return jj_node_seal(p, n);
}

static bool at_end(const struct jj_parser *p, const char *const *ends)
{
    return ends && p->t->type == T_NAME && jj_in_names(ends, p->t->val.s);
}

static struct jj_node *parse_body(struct jj_parser *p, const char *const *ends)
{
    struct jj_node *head = NULL, **tail = &head;
    for (;;) {
        struct jj_node *n;
        const struct jj_token *t = p->t;
        if (t->type == T_EOF) {
            if (!ends) return head;
            p->j->line = t->line;
            jj_fail(p->j, ST_INVALID, "unexpected end of template; '%s' was expected", ends[0]);
        }
        p->t++;
        if (t->type == T_DATA) {
            n = jj_node_new(p, N_DATA, t->line);
            n->val = t->val;
        } else if (t->type == T_VAR_BEGIN) {
            n = jj_node_new(p, N_PRINT, t->line);
            n->a = jj_parse_tuple(p, true, NULL, false);
            jj_node_seal(p, n);
            jj_expect(p, T_VAR_END);
        } else {
            CHECK(t->type == T_BLOCK_BEGIN);
            if (at_end(p, ends)) return head;
            n = parse_statement(p, ends);
            jj_expect(p, T_BLOCK_END);
        }
        *tail = n;
        while (*tail) tail = &(*tail)->next;
    }
}

/* --- compile ------------------------------------------------------------------------------------------------- */

static void compile(struct jj *j, const char *src, size_t len, struct eng_jinja *t)
{
    struct jj_parser p = {.j = j, .t = jj_lex(j, src, len)};
    t->body = parse_body(&p, NULL);
    t->frame = jj_scope_template(j, t->body);
}

enum status eng_jinja_compile(const char *src, size_t len, struct eng_jinja **out, char *err)
{
    *out = NULL;
    if (len > JJ_SOURCE_MAX)
        return err_set(err, ST_LIMIT, "the template has %zu bytes; at most %u are accepted", len,
                       JJ_SOURCE_MAX);
    if (utf8_valid_prefix(src, len) != len)
        return err_set(err, ST_INVALID, "the template is not valid UTF-8");
    struct eng_jinja *t = calloc(1, sizeof *t);
    struct jj *j = calloc(1, sizeof *j);
    enum status st = ST_OK;
    if (!t || !j) {
        st = err_set(err, ST_NOMEM, "no memory for the template");
        goto fail;
    }
    j->arena.max = COMPILE_ARENA_MAX;
    j->steps_left = COMPILE_STEPS_MAX;
    j->depth_max = JJ_EVAL_DEPTH_MAX;
    if (setjmp(j->jump)) {
        st = err_set(err, j->status, "%s", j->message);
        jj_arena_free(&j->arena);
        goto fail;
    }
    compile(j, src, len, t);
    t->arena = j->arena;
    free(j);
    *out = t;
    return ST_OK;
fail:
    free(j);
    free(t);
    return st;
}

void eng_jinja_free(struct eng_jinja *t)
{
    if (!t) return;
    jj_arena_free(&t->arena);
    free(t);
}
