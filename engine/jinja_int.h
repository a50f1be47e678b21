/*
 * jinja_int.h - what the files of the Jinja engine share; nothing outside engine/jinja_*.c includes it.
 *
 * Shape: a compiled template is a tree of `struct jj_node` in an arena; a render walks it with one `struct jj`, whose
 * arena holds every value made on the way and is freed whole at the end.
 *
 * Invariants:
 *   1. Failure leaves by jj_fail(), a longjmp to the one setjmp of the compile or the render.  It is safe because
 *      nothing on the way owns memory outside the arena (the caller's buf is cut back to its old length there).
 *   2. Values are immutable once another value can see them, but for the state of namespaces, loops, iterators, cyclers
 *      and joiners, all of which belong to one render.
 *   3. Every loop over data a template can grow calls jj_step (allocation does so for its bytes), and every recursion
 *      over such data is inside jj_enter/jj_leave: time and stack are bounded without a check in each place.
 *   4. The tree and its constants are never written after the compile.
 */
#ifndef DAKD_ENGINE_JINJA_INT_H
#define DAKD_ENGINE_JINJA_INT_H

#include <setjmp.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "config/check.h"
#include "engine/jinja.h"

#define JJ_SOURCE_MAX (4u << 20)
#define JJ_TREE_DEPTH_MAX 256
#define JJ_EVAL_DEPTH_MAX 1000
#define JJ_RANGE_MAX 100000

/* --- values ------------------------------------------------------------------------------------------------- */

enum jj_type {
    JJ_MISSING, /* no value at all: an absent argument, an unset slot */
    JJ_UNDEFINED,
    JJ_NONE,
    JJ_BOOL,
    JJ_INT,
    JJ_FLOAT,
    JJ_STR,
    JJ_LIST,
    JJ_TUPLE,
    JJ_DICT,
    JJ_KEYS, /* views of a dict */
    JJ_VALUES,
    JJ_ITEMS,
    JJ_RANGE,
    JJ_ITER, /* a generator: can be walked once */
    JJ_NAMESPACE,
    JJ_LOOP,
    JJ_MACRO,
    JJ_METHOD,
    JJ_FUNCTION,
    JJ_CYCLER,
    JJ_JOINER,
};

struct jj_str {
    const char *data; /* valid UTF-8, not NUL-terminated */
    size_t len;       /* bytes */
    size_t count;     /* code points; equal to len exactly for ASCII */
    bool markup;      /* marked safe: `+` escapes what is joined to it */
};

struct jj_val {
    enum jj_type type;
    union {
        bool b;
        int64_t i;
        double f;
        const struct jj_str *s;
        struct jj_list *l; /* list, tuple */
        struct jj_dict *d; /* dict, its views, namespace */
        const struct jj_range *r;
        struct jj_iter *it;
        struct jj_loop *loop;
        const struct jj_macro *macro;
        const struct jj_method *method;
        const struct jj_function *fn;
        const struct jj_undef *u;
        struct jj_cycler *cycler;
        struct jj_joiner *joiner;
    };
};

struct jj_list {
    struct jj_val *v;
    size_t n, cap;
    bool group; /* a tuple of groupby, with attributes grouper and list */
};

struct jj_pair {
    uint64_t hash;
    struct jj_val key, value;
};

/* Insertion-ordered; open addressing over e[] once there are more than 8 pairs. */
struct jj_dict {
    struct jj_pair *e;
    size_t n, cap;
    uint32_t *index; /* position + 1, or 0 */
    size_t index_cap;
};

struct jj_range {
    int64_t start, stop, step, n;
};

/* Why a value is undefined, for the message of whoever uses it. */
struct jj_undef {
    const char *hint;   /* or NULL: made from obj and name */
    struct jj_val obj;  /* JJ_MISSING for a variable */
    struct jj_val name;
};

struct jj;
struct jj_args {
    const struct jj_val *v;
    size_t n;
    const struct jj_str *const *kw;
    const struct jj_val *kv;
    size_t nkw;
};
typedef struct jj_val jj_native(struct jj *j, struct jj_val self, const struct jj_args *args);

struct jj_iter {
    bool (*next)(struct jj *j, struct jj_iter *it, struct jj_val *out);
    struct jj_val src;
    size_t pos;
    struct jj_iter *inner;
    const struct jj_function *fn; /* filter or test to apply, or NULL */
    struct jj_args args;
    struct jj_val attr; /* attribute to look up first, or JJ_MISSING */
    struct jj_val fallback;
    bool negate, fold_case;
    struct jj_dict *seen;
    const struct jj_node *node; /* a filtered for: its test runs in scope */
    struct jj_scope *scope;
};

struct jj_function {
    const char *name;
    jj_native *call;
};

struct jj_method {
    const struct jj_function *fn;
    struct jj_val self;
};

struct jj_macro {
    const struct jj_node *node;
    struct jj_scope *closure;
};

struct jj_loop {
    struct jj_val source;
    struct jj_iter *it;
    int64_t index0, length; /* length -1: not known yet */
    struct jj_val after, current, before, changed;
    const struct jj_node *node;
    struct jj_scope *outer;
    int64_t depth0;
};

struct jj_cycler {
    struct jj_list items;
    size_t pos;
};

struct jj_joiner {
    struct jj_val sep;
    bool used;
};

/* --- tree --------------------------------------------------------------------------------------------------- */

enum jj_op {
    OP_ADD, OP_SUB, OP_MUL, OP_DIV, OP_FLOORDIV, OP_MOD, OP_POW,
    OP_EQ, OP_NE, OP_LT, OP_LE, OP_GT, OP_GE, OP_IN, OP_NOT_IN,
};

enum jj_arg_kind { ARG_POSITIONAL, ARG_KEYWORD, ARG_STAR, ARG_STAR_STAR };

enum jj_kind {
    /* expressions: children */
    N_CONST,   /* val */
    N_NAME,    /* name, hops, slot */
    N_NSREF,   /* name, hops, slot; val the attribute; only as a target */
    N_TUPLE,   /* a list of items */
    N_LIST,    /* a list of items */
    N_DICT,    /* a list of key, value, key, value... */
    N_BINARY,  /* op, a, b */
    N_AND,     /* a, b */
    N_OR,      /* a, b */
    N_NOT,     /* a */
    N_NEG,     /* a */
    N_POS,     /* a */
    N_CONCAT,  /* a list */
    N_COMPARE, /* a first, b list of N_OPERAND */
    N_OPERAND, /* op, a */
    N_GETATTR, /* a, name */
    N_GETITEM, /* a, b index or N_SLICE */
    N_SLICE,   /* a, b, c or NULL */
    N_CALL,    /* a callee, b list of N_ARG */
    N_ARG,     /* op an arg kind, name, a */
    N_FILTER,  /* a value or NULL (the text of the block), fn, b list of N_ARG */
    N_TEST,    /* a value, fn, b list of N_ARG */
    N_COND,    /* a test, b then, c else or NULL */
    /* statements */
    N_DATA,         /* val */
    N_PRINT,        /* a */
    N_FOR,          /* a target, b iterable, c test, d body, e else; flag recursive; frame body, frame2 test, frame3 else */
    N_IF,           /* a test, b body, c list of N_IF (elif), d else */
    N_MACRO,        /* name, a params (N_PARAM), d body, frame; hops, slot where it is stored */
    N_PARAM,        /* name, a default or NULL, slot */
    N_CALL_BLOCK,   /* a call, b the N_MACRO it passes as caller */
    N_FILTER_BLOCK, /* a filter chain, d body, frame */
    N_SET,          /* a target, b value */
    N_SET_BLOCK,    /* a target, b filter chain or NULL, d body, frame */
    N_WITH,         /* a list of targets, b list of values, d body, frame */
    N_GENERATION,   /* d body, frame */
    N_BREAK,
    N_CONTINUE,
};

struct jj_node {
    uint8_t kind, op;
    bool flag;
    uint16_t depth;
    int line;
    struct jj_node *next;
    struct jj_node *a, *b, *c, *d, *e;
    const struct jj_str *name;
    struct jj_val val;
    uint16_t hops, slot;
    int16_t slot_caller, slot_kwargs, slot_varargs; /* N_MACRO: -1 where its body does not use it */
    const struct jj_function *fn;
    struct jj_frame *frame, *frame2, *frame3;
};

/* How a slot gets its first value when its frame is entered. */
enum jj_load { LOAD_PARAM, LOAD_UNDEFINED, LOAD_RESOLVE, LOAD_ALIAS };

struct jj_sym {
    const struct jj_str *name;
    uint8_t load;
    bool present, stored; /* only while the frame is being analysed */
    uint16_t hops, slot;  /* LOAD_ALIAS: the outer variable, hops counted from the parent frame */
};

struct jj_frame {
    struct jj_frame *parent;
    struct jj_sym *sym;
    size_t n, cap;
};

struct jj_scope {
    struct jj_scope *parent;
    struct jj_val slot[];
};

/* --- the machine -------------------------------------------------------------------------------------------- */

struct jj_chunk;
struct jj_arena {
    struct jj_chunk *head;
    char *at, *end;
    size_t used, max;
};

struct jj_sb { /* a string being built in the arena */
    char *data;
    size_t len, cap;
};

struct jj {
    jmp_buf jump;
    enum status status;
    char message[ERR_CAP];
    struct jj_arena arena;
    int line; /* of what is being read or run; 0 for none */
    uint64_t steps_left, deadline_ns, ticks;
    unsigned depth, depth_max;
    /* a render */
    struct jj_dict *vars;
    int64_t now_unix_s;
    struct buf *out;
    size_t output_left;
    struct jj_sb *capture; /* where output goes instead, or NULL */
};

struct eng_jinja {
    struct jj_arena arena;
    struct jj_node *body;
    struct jj_frame *frame;
};

/* jinja_value.c */
_Noreturn void jj_fail(struct jj *j, enum status st, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
_Noreturn void jj_raise(struct jj *j, const struct jj_str *message);
_Noreturn void jj_fail_undefined(struct jj *j, struct jj_val v);
void *jj_alloc(struct jj *j, size_t bytes); /* zeroed, 16-byte aligned */
void *jj_alloc_array(struct jj *j, size_t n, size_t size);
void jj_arena_free(struct jj_arena *a);
void jj_step(struct jj *j, uint64_t n);
void jj_enter(struct jj *j);
static inline void jj_leave(struct jj *j) { j->depth--; }

const struct jj_str *jj_str_borrow(struct jj *j, const char *data, size_t len);
const struct jj_str *jj_str_copy(struct jj *j, const char *data, size_t len);
struct jj_val jj_text(struct jj *j, const char *data, size_t len); /* copies */
struct jj_val jj_text_borrow(struct jj *j, const char *data, size_t len);
struct jj_val jj_textz(struct jj *j, const char *z); /* borrows a literal */
bool jj_str_is(const struct jj_str *s, const char *z);
void jj_sb_put(struct jj *j, struct jj_sb *sb, const void *data, size_t len);
void jj_sb_puts(struct jj *j, struct jj_sb *sb, const char *z);
void jj_sb_putc(struct jj *j, struct jj_sb *sb, char c);
void jj_sb_str(struct jj *j, struct jj_sb *sb, const struct jj_str *s);
struct jj_val jj_sb_val(struct jj *j, const struct jj_sb *sb);

static inline struct jj_val jj_none(void) { return (struct jj_val){.type = JJ_NONE}; }
static inline struct jj_val jj_missing(void) { return (struct jj_val){.type = JJ_MISSING}; }
static inline struct jj_val jj_bool(bool b) { return (struct jj_val){.type = JJ_BOOL, .b = b}; }
static inline struct jj_val jj_int(int64_t i) { return (struct jj_val){.type = JJ_INT, .i = i}; }
static inline struct jj_val jj_float(double f) { return (struct jj_val){.type = JJ_FLOAT, .f = f}; }
static inline struct jj_val jj_str_val(const struct jj_str *s)
{
    return (struct jj_val){.type = JJ_STR, .s = s};
}
struct jj_list *jj_list_new(struct jj *j, size_t cap);
void jj_list_push(struct jj *j, struct jj_list *l, struct jj_val v);
struct jj_val jj_list_val(struct jj_list *l);
struct jj_val jj_tuple_val(struct jj_list *l);
struct jj_val jj_pair_val(struct jj *j, struct jj_val a, struct jj_val b);
struct jj_val jj_undefined_name(struct jj *j, const struct jj_str *name);
struct jj_val jj_undefined_attr(struct jj *j, struct jj_val obj, struct jj_val name);
struct jj_val jj_undefined_hint(struct jj *j, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
const char *jj_type_name(struct jj_val v);
bool jj_truth(struct jj *j, struct jj_val v);
bool jj_length(struct jj *j, struct jj_val v, int64_t *n); /* false: it has none */
bool jj_as_int(struct jj_val v, int64_t *i);               /* bool and int */
bool jj_as_double(struct jj_val v, double *f);             /* bool, int and float */
struct jj_val jj_from_json(struct jj *j, const cJSON *item);

/* jinja_dict.c */
struct jj_dict *jj_dict_new(struct jj *j, size_t cap);
void jj_dict_set(struct jj *j, struct jj_dict *d, struct jj_val key, struct jj_val value);
struct jj_val *jj_dict_get(struct jj *j, const struct jj_dict *d, struct jj_val key); /* or NULL */
struct jj_val *jj_dict_get_str(struct jj *j, const struct jj_dict *d, const struct jj_str *key);
struct jj_dict *jj_dict_copy(struct jj *j, const struct jj_dict *d);
bool jj_hashable(struct jj *j, struct jj_val v);
bool jj_equal(struct jj *j, struct jj_val a, struct jj_val b);
bool jj_same(struct jj_val a, struct jj_val b);
bool jj_less(struct jj *j, struct jj_val a, struct jj_val b, enum jj_op op); /* op names the operator */
void jj_sort(struct jj *j, struct jj_val *keys, struct jj_val *values, size_t n, bool reverse);

/* jinja_iter.c */
struct jj_iter *jj_iter_new(struct jj *j, struct jj_val v); /* fails where v is not iterable */
bool jj_iterable(struct jj_val v);
bool jj_next(struct jj *j, struct jj_iter *it, struct jj_val *out);
struct jj_list *jj_to_list(struct jj *j, struct jj_val v); /* always a fresh list */
struct jj_val jj_iter_val(struct jj_iter *it);
struct jj_val jj_reversed(struct jj *j, struct jj_val v, bool *ok);
int64_t jj_range_at(const struct jj_range *r, int64_t i);

/* jinja_text.c, jinja_json.c */
void jj_put_str(struct jj *j, struct jj_sb *sb, struct jj_val v);  /* str(v) */
void jj_put_repr(struct jj *j, struct jj_sb *sb, struct jj_val v); /* repr(v) */
const struct jj_str *jj_to_str(struct jj *j, struct jj_val v);
size_t jj_float_repr(double f, char out[32]);
const char *jj_repr_short(struct jj *j, struct jj_val v); /* for messages */
void jj_html_escape(struct jj *j, struct jj_sb *sb, const struct jj_str *s);
struct jj_val jj_filter_tojson(struct jj *j, struct jj_val self, const struct jj_args *args);

/* jinja_unicode.c */
enum jj_case { CASE_UPPER, CASE_LOWER, CASE_TITLE };
bool jj_is_space(uint32_t cp);
bool jj_is_printable(uint32_t cp);
bool jj_is_word(uint32_t cp); /* \w of Python's re */
bool jj_is_line_break(uint32_t cp);
uint32_t jj_decode(const char *p, const char *end, size_t *len);
uint32_t jj_decode_last(const char *start, const char *p, size_t *len);
size_t jj_byte_offset(const struct jj_str *s, size_t cp_idx);
size_t jj_cp_count(const char *p, size_t len);
void jj_put_cased(struct jj *j, struct jj_sb *sb, const char *p, size_t len, enum jj_case how);
const struct jj_str *jj_lower(struct jj *j, const struct jj_str *s);
struct jj_val jj_strip(struct jj *j, const struct jj_str *s, const struct jj_str *chars, int sides);
const char *jj_find(struct jj *j, const char *hay, size_t n, const char *needle, size_t m);
struct jj_list *jj_splitlines(struct jj *j, const struct jj_str *s, bool keep_ends);
bool jj_all_class(const struct jj_str *s, const char *name);

/* jinja_format.c */
struct jj_val jj_percent(struct jj *j, const struct jj_str *fmt, struct jj_val args);
struct jj_val jj_str_format(struct jj *j, struct jj_val self, const struct jj_args *args);

/* jinja_op.c */
struct jj_val jj_binary(struct jj *j, enum jj_op op, struct jj_val a, struct jj_val b);
bool jj_compare(struct jj *j, enum jj_op op, struct jj_val a, struct jj_val b);
struct jj_val jj_negate(struct jj *j, struct jj_val v, bool minus);
bool jj_contains(struct jj *j, struct jj_val item, struct jj_val in);
struct jj_val jj_slice(struct jj *j, struct jj_val v, struct jj_val start, struct jj_val stop,
                       struct jj_val step);

/* jinja_object.c, jinja_str.c */
struct jj_val jj_getattr(struct jj *j, struct jj_val obj, const struct jj_str *name);
struct jj_val jj_getitem(struct jj *j, struct jj_val obj, struct jj_val arg);
struct jj_val jj_resolve(struct jj *j, const struct jj_str *name);
/* Binds args to the parameters of `spec`: names separated by blanks, those behind "|" optional; a leading "!" refuses
 * keywords.  Absent ones become JJ_MISSING. */
void jj_bind(struct jj *j, const char *who, const char *spec, const struct jj_args *args,
             struct jj_val *out);
int64_t jj_want_int(struct jj *j, const char *who, struct jj_val v);
const struct jj_str *jj_want_str(struct jj *j, const char *who, struct jj_val v);
extern const struct jj_function jj_str_methods[];
extern const char *const jj_str_methods_unsupported[];
const struct jj_function *jj_lookup(const struct jj_function *table, const struct jj_str *name);
bool jj_in_names(const char *const *names, const struct jj_str *name);
struct jj_val jj_bound(struct jj *j, const struct jj_function *fn, struct jj_val self);

/* jinja_filter.c, jinja_filter_seq.c, jinja_test.c */
const struct jj_function *jj_filter_find(const struct jj_str *name);
const struct jj_function *jj_test_find(const struct jj_str *name);
extern const struct jj_function jj_filters_text[];
extern const struct jj_function jj_filters_seq[];
struct jj_val jj_getpath(struct jj *j, struct jj_val item, struct jj_val path, struct jj_val fallback);

/* jinja_eval.c, jinja_exec.c */
struct jj_val jj_eval(struct jj *j, const struct jj_node *n, struct jj_scope *s);
struct jj_val jj_call(struct jj *j, struct jj_val fn, const struct jj_args *args);
struct jj_val jj_call_node(struct jj *j, const struct jj_node *n, struct jj_scope *s,
                           struct jj_val caller);
struct jj_val jj_apply_filters(struct jj *j, const struct jj_node *n, struct jj_scope *s,
                               struct jj_val text);
struct jj_val jj_call_macro(struct jj *j, const struct jj_macro *m, const struct jj_args *args);
struct jj_val jj_loop_recurse(struct jj *j, struct jj_loop *loop, struct jj_val items);
int64_t jj_loop_length(struct jj *j, struct jj_loop *loop);
struct jj_val jj_loop_peek(struct jj *j, struct jj_loop *loop);
bool jj_for_test(struct jj *j, const struct jj_node *n, struct jj_scope *scope, struct jj_val item);

/* jinja_lex.c, jinja_parse.c, jinja_parse_expr.c, jinja_scope.c */
enum jj_token_type {
    T_EOF, T_DATA, T_VAR_BEGIN, T_VAR_END, T_BLOCK_BEGIN, T_BLOCK_END, T_NAME, T_STRING, T_INT, T_FLOAT,
    T_ADD, T_SUB, T_DIV, T_FLOORDIV, T_MUL, T_MOD, T_POW, T_TILDE, T_LBRACKET, T_RBRACKET, T_LPAREN,
    T_RPAREN, T_LBRACE, T_RBRACE, T_EQ, T_NE, T_GT, T_GE, T_LT, T_LE, T_ASSIGN, T_DOT, T_COLON, T_PIPE,
    T_COMMA, T_SEMICOLON,
};

struct jj_token {
    enum jj_token_type type;
    int line;
    struct jj_val val; /* data, name, string, number */
};

struct jj_parser {
    struct jj *j;
    const struct jj_token *t; /* the current one; the last is T_EOF */
    int nest;
    int loops;       /* enclosing loops that break can leave */
    int loops_named; /* enclosing loops whose `loop` cannot be assigned */
};

const struct jj_token *jj_lex(struct jj *j, const char *src, size_t len);
struct jj_node *jj_node_new(struct jj_parser *p, enum jj_kind kind, int line);
struct jj_node *jj_node_seal(struct jj_parser *p, struct jj_node *n); /* sets its depth */
_Noreturn void jj_parse_fail(struct jj_parser *p, const char *expected);
void jj_parse_nest(struct jj_parser *p);
bool jj_at_name(const struct jj_parser *p, const char *name);
bool jj_skip_name(struct jj_parser *p, const char *name);
bool jj_skip(struct jj_parser *p, enum jj_token_type type);
void jj_expect(struct jj_parser *p, enum jj_token_type type);
const char *jj_token_text(struct jj *j, const struct jj_token *t);
struct jj_node *jj_parse_expression(struct jj_parser *p, bool with_cond);
struct jj_node *jj_parse_tuple(struct jj_parser *p, bool with_cond, const char *end_name, bool parens);
struct jj_node *jj_parse_primary(struct jj_parser *p, bool with_namespace);
struct jj_node *jj_parse_filter_chain(struct jj_parser *p, struct jj_node *node, bool inline_first);
struct jj_frame *jj_scope_template(struct jj *j, struct jj_node *body);

#endif
