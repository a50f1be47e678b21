/*
 * jinja_op.c - the operators, with Python's arithmetic: integers that floor-divide and take the divisor's sign, true
 * division, comparison across int and float, slices.  Integers stop at 64 bits, where an error says so.
 */
#include <math.h>

#include "engine/jinja_int.h"

static const char *const op_text[] = {
    [OP_ADD] = "+",   [OP_SUB] = "-",  [OP_MUL] = "*",         [OP_DIV] = "/",
    [OP_FLOORDIV] = "//", [OP_MOD] = "%", [OP_POW] = "** or pow()",
};

static _Noreturn void too_large(struct jj *j)
{
    jj_fail(j, ST_UNSUPPORTED, "an integer beyond 64 bits is not supported");
}

static _Noreturn void wrong_types(struct jj *j, enum jj_op op, struct jj_val a, struct jj_val b)
{
    if (a.type == JJ_UNDEFINED) jj_fail_undefined(j, a);
    if (b.type == JJ_UNDEFINED) jj_fail_undefined(j, b);
    if (op == OP_ADD && a.type == JJ_STR)
        jj_fail(j, ST_CORRUPT, "can only concatenate str (not \"%s\") to str", jj_type_name(b));
    if (op == OP_ADD && (a.type == JJ_LIST || a.type == JJ_TUPLE))
        jj_fail(j, ST_CORRUPT, "can only concatenate %s (not \"%s\") to %s", jj_type_name(a),
                jj_type_name(b), jj_type_name(a));
    jj_fail(j, ST_CORRUPT, "unsupported operand type(s) for %s: '%s' and '%s'", op_text[op],
            jj_type_name(a), jj_type_name(b));
}

static int64_t int_power(struct jj *j, int64_t base, int64_t exponent)
{
    int64_t result = 1;
    if (base == 0 || base == 1) return exponent ? base : 1;
    if (base == -1) return exponent % 2 ? -1 : 1;
    while (exponent-- > 0) { /* overflows within 63 rounds */
        if (__builtin_mul_overflow(result, base, &result)) too_large(j);
    }
    return result;
}

static double float_mod(double a, double b)
{
    double r = fmod(a, b);
    if (r != 0 && (r < 0) != (b < 0)) r += b;
    return r != 0 ? r : copysign(0, b);
}

static double float_floordiv(double a, double b)
{
    double mod = fmod(a, b), div = (a - mod) / b;
    if (mod != 0 && (mod < 0) != (b < 0)) div -= 1;
    if (div == 0) return copysign(0, a / b);
    double floor_div = floor(div);
    return div - floor_div > 0.5 ? floor_div + 1 : floor_div;
}

static struct jj_val float_op(struct jj *j, enum jj_op op, double a, double b)
{
    if (b == 0 && (op == OP_DIV || op == OP_FLOORDIV || op == OP_MOD))
        jj_fail(j, ST_CORRUPT, op == OP_DIV ? "division by zero" : "float modulo or division by zero");
    switch (op) {
    case OP_ADD: return jj_float(a + b);
    case OP_SUB: return jj_float(a - b);
    case OP_MUL: return jj_float(a * b);
    case OP_DIV: return jj_float(a / b);
    case OP_FLOORDIV: return jj_float(float_floordiv(a, b));
    case OP_MOD: return jj_float(float_mod(a, b));
    default: break;
    }
    if (a == 0 && b < 0) jj_fail(j, ST_CORRUPT, "0.0 cannot be raised to a negative power");
    if (a < 0 && b != floor(b)) jj_fail(j, ST_UNSUPPORTED, "complex numbers are not supported");
    double r = pow(a, b);
    if (isinf(r) && isfinite(a) && isfinite(b)) jj_fail(j, ST_CORRUPT, "numerical result out of range");
    return jj_float(r);
}

static struct jj_val int_op(struct jj *j, enum jj_op op, int64_t a, int64_t b)
{
    int64_t r = 0;
    bool over = false;
    if (b == 0 && (op == OP_DIV || op == OP_FLOORDIV || op == OP_MOD))
        jj_fail(j, ST_CORRUPT, "division or modulo by zero");
    switch (op) {
    case OP_ADD: over = __builtin_add_overflow(a, b, &r); break;
    case OP_SUB: over = __builtin_sub_overflow(a, b, &r); break;
    case OP_MUL: over = __builtin_mul_overflow(a, b, &r); break;
    case OP_DIV: return jj_float((double)((long double)a / (long double)b));
    case OP_FLOORDIV:
        over = a == INT64_MIN && b == -1;
        if (!over) r = a / b - (a % b != 0 && (a < 0) != (b < 0));
        break;
    case OP_MOD:
        r = b == -1 ? 0 : a % b;
        if (r && (r < 0) != (b < 0)) r += b;
        break;
    default:
        if (b < 0) return float_op(j, OP_POW, (double)a, (double)b);
        r = int_power(j, a, b);
    }
    if (over) too_large(j);
    return jj_int(r);
}

static struct jj_val repeat(struct jj *j, struct jj_val seq, int64_t times)
{
    if (times < 0) times = 0;
    if (seq.type == JJ_STR) {
        struct jj_sb sb = {0};
        for (int64_t i = 0; i < times && seq.s->len; i++) {
            jj_step(j, 1);
            jj_sb_str(j, &sb, seq.s);
        }
        return jj_sb_val(j, &sb);
    }
    struct jj_list *l = jj_list_new(j, 0);
    for (int64_t i = 0; i < times && seq.l->n; i++)
        for (size_t k = 0; k < seq.l->n; k++) jj_list_push(j, l, seq.l->v[k]);
    return seq.type == JJ_LIST ? jj_list_val(l) : jj_tuple_val(l);
}

static void put_escaped(struct jj *j, struct jj_sb *sb, const struct jj_str *s)
{
    if (s->markup) jj_sb_str(j, sb, s);
    else jj_html_escape(j, sb, s);
}

static struct jj_val concat_str(struct jj *j, const struct jj_str *a, const struct jj_str *b)
{
    struct jj_sb sb = {0};
    if (!a->markup && !b->markup) {
        jj_sb_str(j, &sb, a);
        jj_sb_str(j, &sb, b);
        return jj_sb_val(j, &sb);
    }
    put_escaped(j, &sb, a);
    put_escaped(j, &sb, b);
    struct jj_str s = *jj_sb_val(j, &sb).s;
    s.markup = true;
    struct jj_str *kept = jj_alloc(j, sizeof s);
    *kept = s;
    return jj_str_val(kept);
}

static struct jj_val concat_list(struct jj *j, struct jj_val a, struct jj_val b)
{
    struct jj_list *l = jj_list_new(j, a.l->n + b.l->n);
    for (size_t i = 0; i < a.l->n; i++) jj_list_push(j, l, a.l->v[i]);
    for (size_t i = 0; i < b.l->n; i++) jj_list_push(j, l, b.l->v[i]);
    return a.type == JJ_LIST ? jj_list_val(l) : jj_tuple_val(l);
}

static bool is_repeatable(struct jj_val v)
{
    return v.type == JJ_STR || v.type == JJ_LIST || v.type == JJ_TUPLE;
}

struct jj_val jj_binary(struct jj *j, enum jj_op op, struct jj_val a, struct jj_val b)
{
    int64_t i, k;
    double x, y;
    if (jj_as_int(a, &i) && jj_as_int(b, &k)) return int_op(j, op, i, k);
    if (jj_as_double(a, &x) && jj_as_double(b, &y)) return float_op(j, op, x, y);
    if (op == OP_ADD && a.type == JJ_STR && b.type == JJ_STR) return concat_str(j, a.s, b.s);
    if (op == OP_ADD && a.type == b.type && (a.type == JJ_LIST || a.type == JJ_TUPLE))
        return concat_list(j, a, b);
    if (op == OP_MUL && is_repeatable(a) && jj_as_int(b, &k)) return repeat(j, a, k);
    if (op == OP_MUL && is_repeatable(b) && jj_as_int(a, &k)) return repeat(j, b, k);
    if (op == OP_MOD && a.type == JJ_STR) return jj_percent(j, a.s, b);
    wrong_types(j, op, a, b);
}

struct jj_val jj_negate(struct jj *j, struct jj_val v, bool minus)
{
    int64_t i;
    if (v.type == JJ_UNDEFINED) jj_fail_undefined(j, v);
    if (v.type == JJ_FLOAT) return jj_float(minus ? -v.f : v.f);
    if (!jj_as_int(v, &i))
        jj_fail(j, ST_CORRUPT, "bad operand type for unary %c: '%s'", minus ? '-' : '+', jj_type_name(v));
    if (minus && i == INT64_MIN) too_large(j);
    return jj_int(minus ? -i : i);
}

/* --- in, comparison ------------------------------------------------------------------------------------------ */

bool jj_contains(struct jj *j, struct jj_val item, struct jj_val in)
{
    struct jj_val v;
    int64_t i;
    switch (in.type) {
    case JJ_STR:
        if (item.type != JJ_STR)
            jj_fail(j, ST_CORRUPT, "'in <string>' requires string as left operand, not %s",
                    jj_type_name(item));
        return !item.s->len || jj_find(j, in.s->data, in.s->len, item.s->data, item.s->len);
    case JJ_DICT:
    case JJ_KEYS: return jj_dict_get(j, in.d, item) != NULL;
    case JJ_RANGE:
        if (jj_as_int(item, &i)) {
            const struct jj_range *r = in.r;
            if (r->step > 0 ? i < r->start || i >= r->stop : i > r->start || i <= r->stop) return false;
            return ((__int128)i - r->start) % r->step == 0;
        }
        break;
    default: break;
    }
    if (!jj_iterable(in))
        jj_fail(j, ST_CORRUPT, "argument of type '%s' is not iterable", jj_type_name(in));
    for (struct jj_iter *it = jj_iter_new(j, in); jj_next(j, it, &v);) {
        if ((v.type == item.type && v.type > JJ_FLOAT && v.d == item.d) || jj_equal(j, v, item)) return true;
    }
    return false;
}

bool jj_compare(struct jj *j, enum jj_op op, struct jj_val a, struct jj_val b)
{
    switch (op) {
    case OP_EQ: return jj_equal(j, a, b);
    case OP_NE: return !jj_equal(j, a, b);
    case OP_IN: return jj_contains(j, a, b);
    case OP_NOT_IN: return !jj_contains(j, a, b);
    default: return jj_less(j, a, b, op);
    }
}

/* --- slices -------------------------------------------------------------------------------------------------- */

static bool slice_index(struct jj *j, struct jj_val v, int64_t *out)
{
    if (v.type == JJ_NONE) return false;
    if (!jj_as_int(v, out))
        jj_fail(j, ST_CORRUPT, "slice indices must be integers or None or have an __index__ method");
    return true;
}

/* Python's slice.indices(): the first index, and how many follow it by step. */
static int64_t slice_bounds(struct jj *j, int64_t n, struct jj_val start, struct jj_val stop,
                            struct jj_val step_val, int64_t *first, int64_t *end, int64_t *step)
{
    int64_t lo, hi;
    *step = 1;
    if (slice_index(j, step_val, step) && *step == 0)
        jj_fail(j, ST_CORRUPT, "slice step cannot be zero");
    if (*step < -INT64_MAX) *step = -INT64_MAX;
    int64_t least = *step > 0 ? 0 : -1, most = *step > 0 ? n : n - 1;
    if (!slice_index(j, start, &lo)) lo = *step > 0 ? least : most;
    else if (lo < 0) lo = lo + n < least ? least : lo + n;
    else if (lo > most) lo = most;
    if (!slice_index(j, stop, &hi)) hi = *step > 0 ? most : least;
    else if (hi < 0) hi = hi + n < least ? least : hi + n;
    else if (hi > most) hi = most;
    *first = lo;
    *end = hi;
    if (*step > 0) return lo < hi ? (hi - lo - 1) / *step + 1 : 0;
    return hi < lo ? (lo - hi - 1) / -*step + 1 : 0;
}

static struct jj_val slice_str(struct jj *j, const struct jj_str *s, int64_t first, int64_t count,
                               int64_t step)
{
    if (step == 1 || count <= 1) {
        size_t from = jj_byte_offset(s, (size_t)(count ? first : 0));
        size_t to = jj_byte_offset(s, (size_t)(count ? first + count : 0));
        if (count && (size_t)(first + count) >= s->count) to = s->len;
        jj_step(j, to / 32);
        return jj_text_borrow(j, s->data + from, to - from);
    }
    size_t *offset = jj_alloc_array(j, s->count + 1, sizeof *offset);
    size_t k = 0;
    for (size_t i = 0; i < s->len; i++)
        if (((unsigned char)s->data[i] & 0xC0) != 0x80) offset[k++] = i;
    offset[k] = s->len;
    struct jj_sb sb = {0};
    for (int64_t i = 0; i < count; i++) {
        const size_t *at = offset + first + i * step;
        jj_step(j, 1);
        jj_sb_put(j, &sb, s->data + at[0], at[1] - at[0]);
    }
    return jj_sb_val(j, &sb);
}

struct jj_val jj_slice(struct jj *j, struct jj_val v, struct jj_val start, struct jj_val stop,
                       struct jj_val step_val)
{
    int64_t n, first, end, step;
    if (v.type == JJ_UNDEFINED) jj_fail_undefined(j, v);
    if (v.type == JJ_DICT) jj_fail(j, ST_CORRUPT, "unhashable type: 'slice'");
    bool ok = v.type == JJ_STR || v.type == JJ_LIST || v.type == JJ_TUPLE || v.type == JJ_RANGE;
    if (!ok || !jj_length(j, v, &n))
        jj_fail(j, ST_CORRUPT, "'%s' object is not subscriptable", jj_type_name(v));
    int64_t count = slice_bounds(j, n, start, stop, step_val, &first, &end, &step);
    if (v.type == JJ_STR) return slice_str(j, v.s, first, count, step);
    if (v.type == JJ_RANGE) {
        struct jj_range *r = jj_alloc(j, sizeof *r);
        r->start = jj_range_at(v.r, first);
        r->step = (int64_t)((uint64_t)v.r->step * (uint64_t)step);
        r->stop = jj_range_at(v.r, end);
        r->n = count;
        return (struct jj_val){.type = JJ_RANGE, .r = r};
    }
    struct jj_list *l = jj_list_new(j, (size_t)count);
    for (int64_t i = 0; i < count; i++) jj_list_push(j, l, v.l->v[first + i * step]);
    return v.type == JJ_LIST ? jj_list_val(l) : jj_tuple_val(l);
}
