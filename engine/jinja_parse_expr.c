/*
 * jinja_parse_expr.c - expressions: recursive descent with the precedences of Jinja's own parser, loosest first:
 *
 *     x if c else y   or   and   not   comparisons   + -   ~   * / // %   **   unary - +   . [] ()   | is
 *
 * Note what differs from Python: `~` binds tighter than `+`, `**` is left-associative and looser than unary minus, and
 * filters and tests apply to the whole unary expression.  Every way into itself passes jj_parse_nest, so a source of
 * open parentheses meets a limit and not the end of the stack; chains, which loop here but are deep in the tree, meet
 * jj_node_seal.
 */
#include "engine/jinja_int.h"

static struct jj_node *parse_or(struct jj_parser *p);
static struct jj_node *parse_unary(struct jj_parser *p, bool with_filter);

static bool at(const struct jj_parser *p, enum jj_token_type type)
{
    return p->t->type == type;
}

static struct jj_node *binary(struct jj_parser *p, enum jj_kind kind, int op, struct jj_node *a,
                              struct jj_node *b)
{
    struct jj_node *n = jj_node_new(p, kind, a->line);
    n->op = (uint8_t)op;
    n->a = a;
    n->b = b;
    return jj_node_seal(p, n);
}

static struct jj_node *constant(struct jj_parser *p, int line, struct jj_val v)
{
    struct jj_node *n = jj_node_new(p, N_CONST, line);
    n->val = v;
    return n;
}

/* x if c [else y], to the right */
struct jj_node *jj_parse_expression(struct jj_parser *p, bool with_cond)
{
    jj_parse_nest(p);
    struct jj_node *expr = parse_or(p);
    while (with_cond && jj_skip_name(p, "if")) {
        struct jj_node *n = jj_node_new(p, N_COND, expr->line);
        n->b = expr;
        n->a = parse_or(p);
        if (jj_skip_name(p, "else")) n->c = jj_parse_expression(p, true);
        expr = jj_node_seal(p, n);
    }
    p->nest--;
    return expr;
}

static struct jj_node *parse_concat(struct jj_parser *p);

static struct jj_node *parse_sum(struct jj_parser *p)
{
    struct jj_node *left = parse_concat(p);
    while (at(p, T_ADD) || at(p, T_SUB)) {
        int op = p->t++->type == T_ADD ? OP_ADD : OP_SUB;
        left = binary(p, N_BINARY, op, left, parse_concat(p));
    }
    return left;
}

/* The comparison operator at the current token, which is skipped; -1 for none. */
static int comparison(struct jj_parser *p)
{
    static const struct {
        enum jj_token_type type;
        enum jj_op op;
    } table[] = {{T_EQ, OP_EQ}, {T_NE, OP_NE}, {T_LT, OP_LT}, {T_LE, OP_LE}, {T_GT, OP_GT}, {T_GE, OP_GE}};
    for (size_t i = 0; i < ARRAY_COUNT(table); i++)
        if (jj_skip(p, table[i].type)) return table[i].op;
    if (jj_skip_name(p, "in")) return OP_IN;
    if (!jj_at_name(p, "not")) return -1;
    p->t++;
    if (jj_skip_name(p, "in")) return OP_NOT_IN;
    p->t--;
    return -1;
}

static struct jj_node *parse_compare(struct jj_parser *p)
{
    struct jj_node *first = parse_sum(p), *compare = NULL, **tail = NULL;
    for (int op; (op = comparison(p)) >= 0;) {
        if (!compare) {
            compare = jj_node_new(p, N_COMPARE, first->line);
            compare->a = first;
            tail = &compare->b;
        }
        *tail = binary(p, N_OPERAND, op, parse_sum(p), NULL);
        tail = &(*tail)->next;
    }
    return compare ? jj_node_seal(p, compare) : first;
}

static struct jj_node *parse_not(struct jj_parser *p)
{
    if (!jj_at_name(p, "not")) return parse_compare(p);
    struct jj_node *n = jj_node_new(p, N_NOT, p->t->line);
    p->t++;
    jj_parse_nest(p);
    n->a = parse_not(p);
    p->nest--;
    return jj_node_seal(p, n);
}

static struct jj_node *parse_and(struct jj_parser *p)
{
    struct jj_node *left = parse_not(p);
    while (jj_skip_name(p, "and")) left = binary(p, N_AND, 0, left, parse_not(p));
    return left;
}

static struct jj_node *parse_or(struct jj_parser *p)
{
    struct jj_node *left = parse_and(p);
    while (jj_skip_name(p, "or")) left = binary(p, N_OR, 0, left, parse_and(p));
    return left;
}

static struct jj_node *parse_power(struct jj_parser *p)
{
    struct jj_node *left = parse_unary(p, true);
    while (jj_skip(p, T_POW)) left = binary(p, N_BINARY, OP_POW, left, parse_unary(p, true));
    return left;
}

static struct jj_node *parse_product(struct jj_parser *p)
{
    struct jj_node *left = parse_power(p);
    for (;;) {
        int op = at(p, T_MUL)        ? OP_MUL
                 : at(p, T_DIV)      ? OP_DIV
                 : at(p, T_FLOORDIV) ? OP_FLOORDIV
                 : at(p, T_MOD)      ? OP_MOD
                                     : -1;
        if (op < 0) return left;
        p->t++;
        left = binary(p, N_BINARY, op, left, parse_power(p));
    }
}

static struct jj_node *parse_concat(struct jj_parser *p)
{
    struct jj_node *first = parse_product(p);
    if (!at(p, T_TILDE)) return first;
    struct jj_node *n = jj_node_new(p, N_CONCAT, first->line), **tail = &first->next;
    n->a = first;
    while (jj_skip(p, T_TILDE)) {
        *tail = parse_product(p);
        tail = &(*tail)->next;
    }
    return jj_node_seal(p, n);
}

/* --- calls and subscripts ------------------------------------------------------------------------------------ */

static struct jj_node *parse_arg(struct jj_parser *p, int *stage)
{
    struct jj_node *n = jj_node_new(p, N_ARG, p->t->line);
    int kind = ARG_POSITIONAL;
    if (jj_skip(p, T_MUL)) {
        kind = ARG_STAR;
    } else if (jj_skip(p, T_POW)) {
        kind = ARG_STAR_STAR;
    } else if (at(p, T_NAME) && p->t[1].type == T_ASSIGN) {
        kind = ARG_KEYWORD;
        n->name = p->t->val.s;
        p->t += 2;
    }
    /* positional, then keywords, one *args and one **kwargs, in the orders Jinja allows */
    bool bad = (kind == ARG_POSITIONAL && *stage > 0) || (kind == ARG_KEYWORD && *stage >= 4) ||
               (kind == ARG_STAR && *stage >= 2) || (kind == ARG_STAR_STAR && *stage >= 4);
    if (bad) jj_fail(p->j, ST_INVALID, "invalid syntax for function call expression");
    *stage = kind == ARG_STAR_STAR ? 4 : kind == ARG_STAR ? 2 : kind == ARG_KEYWORD && !*stage ? 1 : *stage;
    n->op = (uint8_t)kind;
    n->a = jj_parse_expression(p, true);
    return jj_node_seal(p, n);
}

static struct jj_node *parse_args(struct jj_parser *p)
{
    struct jj_node *head = NULL, **tail = &head;
    int stage = 0;
    jj_expect(p, T_LPAREN);
    while (!at(p, T_RPAREN)) {
        if (head) jj_expect(p, T_COMMA);
        if (at(p, T_RPAREN)) break;
        *tail = parse_arg(p, &stage);
        tail = &(*tail)->next;
    }
    p->t++;
    return head;
}

static struct jj_node *parse_call(struct jj_parser *p, struct jj_node *callee)
{
    return binary(p, N_CALL, 0, callee, parse_args(p));
}

static struct jj_node *parse_subscribed(struct jj_parser *p)
{
    struct jj_node *start = NULL;
    int line = p->t->line;
    if (!at(p, T_COLON)) {
        start = jj_parse_expression(p, true);
        if (!at(p, T_COLON)) return start;
    }
    struct jj_node *n = jj_node_new(p, N_SLICE, line);
    n->a = start;
    p->t++;
    if (!at(p, T_COLON) && !at(p, T_RBRACKET) && !at(p, T_COMMA)) n->b = jj_parse_expression(p, true);
    if (jj_skip(p, T_COLON) && !at(p, T_RBRACKET) && !at(p, T_COMMA))
        n->c = jj_parse_expression(p, true);
    return jj_node_seal(p, n);
}

static struct jj_node *parse_brackets(struct jj_parser *p, struct jj_node *node)
{
    int line = p->t++->line;
    struct jj_node *head = NULL, **tail = &head;
    size_t count = 0;
    for (; !at(p, T_RBRACKET); count++) {
        if (head) jj_expect(p, T_COMMA);
        *tail = parse_subscribed(p);
        if (count && ((*tail)->kind == N_SLICE || head->kind == N_SLICE))
            jj_fail(p->j, ST_UNSUPPORTED, "a slice among several subscripts is not supported");
        tail = &(*tail)->next;
    }
    p->t++;
    if (count != 1) {
        struct jj_node *tuple = jj_node_new(p, N_TUPLE, line);
        tuple->a = head;
        head = jj_node_seal(p, tuple);
    }
    return binary(p, N_GETITEM, 0, node, head);
}

static struct jj_node *parse_dot(struct jj_parser *p, struct jj_node *node)
{
    p->t++;
    const struct jj_token *attr = p->t;
    if (attr->type != T_NAME && attr->type != T_INT) jj_parse_fail(p, "name or number");
    p->t++;
    if (attr->type == T_INT)
        return binary(p, N_GETITEM, 0, node, constant(p, attr->line, attr->val));
    struct jj_node *n = jj_node_new(p, N_GETATTR, node->line);
    n->a = node;
    n->name = attr->val.s;
    return jj_node_seal(p, n);
}

static struct jj_node *parse_postfix(struct jj_parser *p, struct jj_node *node)
{
    for (;;) {
        if (at(p, T_DOT)) node = parse_dot(p, node);
        else if (at(p, T_LBRACKET)) node = parse_brackets(p, node);
        else if (at(p, T_LPAREN)) node = parse_call(p, node);
        else return node;
    }
}

/* --- filters and tests --------------------------------------------------------------------------------------- */

/* A filter's or test's name; dots are part of it. */
static const struct jj_str *parse_dotted(struct jj_parser *p)
{
    struct jj_sb sb = {0};
    if (!at(p, T_NAME)) jj_parse_fail(p, "a name");
    jj_sb_str(p->j, &sb, p->t++->val.s);
    while (jj_skip(p, T_DOT)) {
        if (!at(p, T_NAME)) jj_parse_fail(p, "a name");
        jj_sb_putc(p->j, &sb, '.');
        jj_sb_str(p->j, &sb, p->t++->val.s);
    }
    return jj_sb_val(p->j, &sb).s;
}

static struct jj_node *parse_filter(struct jj_parser *p, struct jj_node *node)
{
    struct jj_node *n = jj_node_new(p, N_FILTER, p->t->line);
    p->j->line = p->t->line;
    n->a = node;
    n->name = parse_dotted(p);
    n->fn = jj_filter_find(n->name);
    if (!n->fn)
        jj_fail(p->j, ST_UNSUPPORTED, "no filter named '%.*s' is supported",
                (int)size_min(n->name->len, 80), n->name->data);
    if (at(p, T_LPAREN)) n->b = parse_args(p);
    return jj_node_seal(p, n);
}

struct jj_node *jj_parse_filter_chain(struct jj_parser *p, struct jj_node *node, bool inline_first)
{
    if (inline_first) node = parse_filter(p, node);
    while (jj_skip(p, T_PIPE)) node = parse_filter(p, node);
    return node;
}

static bool starts_test_arg(const struct jj_parser *p)
{
    switch (p->t->type) {
    case T_STRING:
    case T_INT:
    case T_FLOAT:
    case T_LBRACKET:
    case T_LBRACE: return true;
    case T_NAME: return !jj_at_name(p, "else") && !jj_at_name(p, "or") && !jj_at_name(p, "and");
    default: return false;
    }
}

static struct jj_node *parse_test(struct jj_parser *p, struct jj_node *node)
{
    int line = p->t++->line;
    bool negated = jj_skip_name(p, "not");
    struct jj_node *n = jj_node_new(p, N_TEST, line);
    p->j->line = p->t->line;
    n->a = node;
    n->name = parse_dotted(p);
    n->fn = jj_test_find(n->name);
    if (!n->fn)
        jj_fail(p->j, ST_UNSUPPORTED, "no test named '%.*s' is supported",
                (int)size_min(n->name->len, 80), n->name->data);
    if (at(p, T_LPAREN)) {
        n->b = parse_args(p);
    } else if (starts_test_arg(p)) {
        if (jj_at_name(p, "is")) jj_fail(p->j, ST_INVALID, "you cannot chain multiple tests with is");
        struct jj_node *arg = jj_node_new(p, N_ARG, p->t->line);
        arg->op = ARG_POSITIONAL;
        arg->a = parse_postfix(p, jj_parse_primary(p, false));
        n->b = jj_node_seal(p, arg);
    }
    jj_node_seal(p, n);
    return negated ? binary(p, N_NOT, 0, n, NULL) : n;
}

static struct jj_node *parse_filters_and_tests(struct jj_parser *p, struct jj_node *node)
{
    for (;;) {
        if (at(p, T_PIPE)) node = jj_parse_filter_chain(p, node, false);
        else if (jj_at_name(p, "is")) node = parse_test(p, node);
        else if (at(p, T_LPAREN)) node = parse_call(p, node);
        else return node;
    }
}

static struct jj_node *parse_unary(struct jj_parser *p, bool with_filter)
{
    struct jj_node *node;
    if (at(p, T_SUB) || at(p, T_ADD)) {
        node = jj_node_new(p, at(p, T_SUB) ? N_NEG : N_POS, p->t->line);
        p->t++;
        jj_parse_nest(p);
        node->a = parse_unary(p, false);
        p->nest--;
        jj_node_seal(p, node);
    } else {
        node = jj_parse_primary(p, false);
    }
    node = parse_postfix(p, node);
    return with_filter ? parse_filters_and_tests(p, node) : node;
}

/* --- primaries ----------------------------------------------------------------------------------------------- */

static struct jj_node *parse_name(struct jj_parser *p, bool with_namespace)
{
    const struct jj_token *t = p->t++;
    const struct jj_str *s = t->val.s;
    if (jj_str_is(s, "true") || jj_str_is(s, "True")) return constant(p, t->line, jj_bool(true));
    if (jj_str_is(s, "false") || jj_str_is(s, "False")) return constant(p, t->line, jj_bool(false));
    if (jj_str_is(s, "none") || jj_str_is(s, "None")) return constant(p, t->line, jj_none());
    struct jj_node *n = jj_node_new(p, N_NAME, t->line);
    n->name = s;
    if (with_namespace && jj_skip(p, T_DOT)) {
        if (!at(p, T_NAME)) jj_parse_fail(p, "a name");
        n->kind = N_NSREF;
        n->val = p->t++->val;
    }
    return n;
}

static struct jj_node *parse_string(struct jj_parser *p)
{
    struct jj_node *n = constant(p, p->t->line, p->t->val);
    if (p->t[1].type == T_STRING) {
        struct jj_sb sb = {0};
        while (at(p, T_STRING)) jj_sb_str(p->j, &sb, p->t++->val.s);
        n->val = jj_sb_val(p->j, &sb);
        return n;
    }
    p->t++;
    return n;
}

static struct jj_node *parse_list(struct jj_parser *p, enum jj_kind kind)
{
    enum jj_token_type close = kind == N_LIST ? T_RBRACKET : T_RBRACE;
    struct jj_node *n = jj_node_new(p, kind, p->t->line), **tail = &n->a;
    p->t++;
    while (!at(p, close)) {
        if (n->a) jj_expect(p, T_COMMA);
        if (at(p, close)) break;
        *tail = jj_parse_expression(p, true);
        tail = &(*tail)->next;
        if (kind == N_LIST) continue;
        jj_expect(p, T_COLON);
        *tail = jj_parse_expression(p, true);
        tail = &(*tail)->next;
    }
    p->t++;
    return jj_node_seal(p, n);
}

struct jj_node *jj_parse_primary(struct jj_parser *p, bool with_namespace)
{
    const struct jj_token *t = p->t;
    struct jj_node *n;
    switch (t->type) {
    case T_NAME: return parse_name(p, with_namespace);
    case T_STRING: return parse_string(p);
    case T_INT:
    case T_FLOAT: p->t++; return constant(p, t->line, t->val);
    case T_LBRACKET: return parse_list(p, N_LIST);
    case T_LBRACE: return parse_list(p, N_DICT);
    case T_LPAREN:
        p->t++;
        jj_parse_nest(p);
        n = jj_parse_tuple(p, true, NULL, true);
        p->nest--;
        jj_expect(p, T_RPAREN);
        return n;
    default: jj_parse_fail(p, NULL);
    }
}

static bool tuple_ends(const struct jj_parser *p, const char *end_name)
{
    return at(p, T_VAR_END) || at(p, T_BLOCK_END) || at(p, T_RPAREN) ||
           (end_name && jj_at_name(p, end_name));
}

/* One expression, or several with commas as a tuple. */
struct jj_node *jj_parse_tuple(struct jj_parser *p, bool with_cond, const char *end_name, bool parens)
{
    int line = p->t->line;
    struct jj_node *head = NULL, **tail = &head;
    bool tuple = false;
    for (;;) {
        if (head) jj_expect(p, T_COMMA);
        if (tuple_ends(p, end_name)) break;
        *tail = jj_parse_expression(p, with_cond);
        tail = &(*tail)->next;
        if (!at(p, T_COMMA)) break;
        tuple = true;
    }
    if (!tuple && head) return head;
    if (!tuple && !parens) jj_parse_fail(p, "an expression");
    struct jj_node *n = jj_node_new(p, N_TUPLE, line);
    n->a = head;
    return jj_node_seal(p, n);
}
