/*
 * jinja_test.c - the tests behind `is`, and behind select() and its kin.
 */
#include "engine/jinja_int.h"

#define NO_ARGS(who) jj_bind(j, who, "", args, NULL)
#define TYPE_TEST(name, expr)                                                                     \
    static struct jj_val t_##name(struct jj *j, struct jj_val v, const struct jj_args *args)      \
    {                                                                                             \
        NO_ARGS("test '" #name "'");                                                              \
        return jj_bool(expr);                                                                     \
    }

TYPE_TEST(defined, v.type != JJ_UNDEFINED)
TYPE_TEST(undefined, v.type == JJ_UNDEFINED)
TYPE_TEST(none, v.type == JJ_NONE)
TYPE_TEST(boolean, v.type == JJ_BOOL)
TYPE_TEST(true, v.type == JJ_BOOL && v.b)
TYPE_TEST(false, v.type == JJ_BOOL && !v.b)
TYPE_TEST(integer, v.type == JJ_INT)
TYPE_TEST(float, v.type == JJ_FLOAT)
TYPE_TEST(number, v.type == JJ_INT || v.type == JJ_FLOAT || v.type == JJ_BOOL)
TYPE_TEST(string, v.type == JJ_STR)
TYPE_TEST(mapping, v.type == JJ_DICT)
TYPE_TEST(iterable, jj_iterable(v))
TYPE_TEST(sequence, v.type == JJ_UNDEFINED || v.type == JJ_STR || v.type == JJ_LIST ||
                        v.type == JJ_TUPLE || v.type == JJ_DICT || v.type == JJ_RANGE)
TYPE_TEST(callable, v.type == JJ_UNDEFINED || v.type == JJ_MACRO || v.type == JJ_METHOD ||
                        v.type == JJ_FUNCTION || v.type == JJ_LOOP || v.type == JJ_JOINER)
TYPE_TEST(lower, jj_all_class(jj_to_str(j, v), "islower"))
TYPE_TEST(upper, jj_all_class(jj_to_str(j, v), "isupper"))
TYPE_TEST(escaped, v.type == JJ_STR && v.s->markup)
TYPE_TEST(filter, v.type == JJ_STR && jj_filter_find(v.s))
TYPE_TEST(test, v.type == JJ_STR && jj_test_find(v.s))

static bool modulo_is(struct jj *j, struct jj_val v, struct jj_val by, int64_t want)
{
    return jj_equal(j, jj_binary(j, OP_MOD, v, by), jj_int(want));
}

static struct jj_val t_odd(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    NO_ARGS("test 'odd'");
    return jj_bool(modulo_is(j, v, jj_int(2), 1));
}

static struct jj_val t_even(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    NO_ARGS("test 'even'");
    return jj_bool(modulo_is(j, v, jj_int(2), 0));
}

static struct jj_val t_divisibleby(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    struct jj_val p[1];
    jj_bind(j, "test 'divisibleby'", "num", args, p);
    return jj_bool(modulo_is(j, v, p[0], 0));
}

static struct jj_val t_sameas(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    struct jj_val p[1];
    jj_bind(j, "test 'sameas'", "other", args, p);
    return jj_bool(jj_same(v, p[0]));
}

static struct jj_val t_in(struct jj *j, struct jj_val v, const struct jj_args *args)
{
    struct jj_val p[1];
    jj_bind(j, "test 'in'", "seq", args, p);
    return jj_bool(jj_contains(j, v, p[0]));
}

#define COMPARE_TEST(name, op)                                                                    \
    static struct jj_val t_##name(struct jj *j, struct jj_val v, const struct jj_args *args)      \
    {                                                                                             \
        struct jj_val p[1];                                                                       \
        jj_bind(j, "test '" #name "'", "! other", args, p);                                       \
        return jj_bool(jj_compare(j, op, v, p[0]));                                               \
    }
COMPARE_TEST(eq, OP_EQ)
COMPARE_TEST(ne, OP_NE)
COMPARE_TEST(lt, OP_LT)
COMPARE_TEST(le, OP_LE)
COMPARE_TEST(gt, OP_GT)
COMPARE_TEST(ge, OP_GE)

static const struct jj_function tests[] = {
    {"defined", t_defined},     {"undefined", t_undefined}, {"none", t_none},
    {"string", t_string},       {"mapping", t_mapping},     {"iterable", t_iterable},
    {"sequence", t_sequence},   {"number", t_number},       {"integer", t_integer},
    {"float", t_float},         {"boolean", t_boolean},     {"true", t_true},
    {"false", t_false},         {"odd", t_odd},             {"even", t_even},
    {"divisibleby", t_divisibleby}, {"in", t_in},           {"callable", t_callable},
    {"sameas", t_sameas},       {"lower", t_lower},         {"upper", t_upper},
    {"escaped", t_escaped},     {"filter", t_filter},       {"test", t_test},
    {"==", t_eq},               {"eq", t_eq},               {"equalto", t_eq},
    {"!=", t_ne},               {"ne", t_ne},               {"<", t_lt},
    {"lt", t_lt},               {"lessthan", t_lt},         {"<=", t_le},
    {"le", t_le},               {">", t_gt},                {"gt", t_gt},
    {"greaterthan", t_gt},      {">=", t_ge},               {"ge", t_ge},
    {NULL, NULL},
};

const struct jj_function *jj_test_find(const struct jj_str *name)
{
    return jj_lookup(tests, name);
}
