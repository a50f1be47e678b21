/*
 * What the comparison with jinja2 does not show: that errors name line and construct, that each
 * limit holds and is named, that nesting bombs meet a limit and not the end of the stack, that
 * numbers stop at 64 bits, and that one compiled template serves several threads.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "config/clock.h"
#include "config/json.h"
#include "engine/jinja.h"

#define OUT_MAX (1u << 20)

/* Compiles and renders with {} or the given variables; text or err is in *out. */
static enum status run(const char *src, size_t len, const char *vars,
                       const struct eng_jinja_limits *limits, struct buf *out)
{
    struct eng_jinja *t;
    char err[ERR_CAP] = "";
    cJSON *v;
    if (!vars) vars = "{}";
    assert_int_equal(json_parse(vars, strlen(vars), &json_limits_file, &v, err), ST_OK);
    buf_clear(out);
    enum status st = eng_jinja_compile(src, len, &t, err);
    if (!st) {
        st = eng_jinja_render(t, v, limits, 0, out, err);
        if (st) assert_int_equal(out->len, 0);
    } else {
        assert_null(t);
    }
    if (st) buf_puts(out, err);
    eng_jinja_free(t);
    cJSON_Delete(v);
    return st;
}

static void expect(const char *src, const char *vars, const struct eng_jinja_limits *limits,
                   enum status want, const char *part)
{
    struct buf out;
    buf_init(&out, OUT_MAX);
    enum status st = run(src, strlen(src), vars, limits, &out);
    if (st != want || !strstr(out.data ? out.data : "", part))
        fail_msg("%.200s: status %d, %.300s", src, (int)st, out.data ? out.data : "");
    buf_deinit(&out);
}

static void expect_failure(const char *src, enum status want, const char *part)
{
    expect(src, NULL, &eng_jinja_limits_default, want, part);
}

static void test_errors_name_line_and_construct(void **state)
{
    (void)state;
    static const struct {
        const char *src;
        enum status status;
        const char *part;
    } cases[] = {
        {"a\n\n{% include 'x' %}", ST_UNSUPPORTED, "line 3: the tag 'include'"},
        {"{% extends 'x' %}", ST_UNSUPPORTED, "line 1: the tag 'extends'"},
        {"\n{% block b %}{% endblock %}", ST_UNSUPPORTED, "line 2: the tag 'block'"},
        {"\n{% frob %}", ST_INVALID, "line 2: encountered unknown tag 'frob'"},
        {"\n\n{{ x|xmlattr }}", ST_UNSUPPORTED, "line 3: no filter named 'xmlattr'"},
        {"{{ x is\n nosuch }}", ST_UNSUPPORTED, "line 2: no test named 'nosuch'"},
        {"{% if x %}\n\n", ST_INVALID, "unexpected end of template; 'elif' was expected"},
        {"\n{{ 1 + }}", ST_INVALID, "line 2: unexpected 'end of print statement'"},
        {"\n{{ 'abc }}", ST_INVALID, "line 2: a string is not closed"},
        {"\n{# abc", ST_INVALID, "line 2: missing end of comment tag"},
        {"{{ (1] }}", ST_INVALID, "line 1: unexpected ']'"},
        {"{% break %}", ST_INVALID, "line 1: a break outside of a loop"},
        {"{% for x in y %}{% macro m() %}{% break %}{% endmacro %}{% endfor %}", ST_INVALID,
         "outside of a loop"},
        {"{{ '\\N{DASH}' }}", ST_UNSUPPORTED, "\\N{...}"},
        {"{{ 99999999999999999999 }}", ST_UNSUPPORTED, "line 1: an integer beyond 64 bits"},
        {"\n{{ x.y.z }}", ST_CORRUPT, "line 2: 'x' is undefined"},
        {"\n\n{{ 1 + 'a' }}", ST_CORRUPT,
         "line 3: unsupported operand type(s) for +: 'int' and 'str'"},
        {"{% for x in 5 %}{% endfor %}", ST_CORRUPT, "line 1: 'int' object is not iterable"},
        {"\n{{ [1].append(2) }}", ST_CORRUPT,
         "line 2: access to attribute 'append' of 'list' object is unsafe"},
        {"{{ 'a'.encode() }}", ST_UNSUPPORTED, "line 1: the attribute 'encode' of a str"},
        {"{{ [1]|map('string') }}", ST_UNSUPPORTED, "printing a generator is not supported"},
        {"{{ raise_exception('Only user\nroles!') }}", ST_INVALID, "Only user\nroles!"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++)
        expect_failure(cases[i].src, cases[i].status, cases[i].part);
}

static void test_raise_exception_is_the_message_alone(void **state)
{
    (void)state;
    struct buf out;
    buf_init(&out, OUT_MAX);
    const char *src = "\n\ntext {{ raise_exception('Roles must alternate.') }}";
    assert_int_equal(run(src, strlen(src), NULL, &eng_jinja_limits_default, &out), ST_INVALID);
    assert_string_equal(out.data, "Roles must alternate.");
    buf_deinit(&out);
}

static void test_invalid_sources(void **state)
{
    (void)state;
    struct buf out;
    buf_init(&out, OUT_MAX);
    assert_int_equal(run("a\xFF", 2, NULL, &eng_jinja_limits_default, &out), ST_INVALID);
    assert_int_equal(run("a\0b{{ 1 }}\0", 11, NULL, &eng_jinja_limits_default, &out), ST_OK);
    assert_int_equal(out.len, 5);
    assert_memory_equal(out.data, "a\0b1\0", 5);
    size_t len = 5u << 20;
    char *large = malloc(len);
    assert_non_null(large);
    memset(large, 'a', len);
    assert_int_equal(run(large, len, NULL, &eng_jinja_limits_default, &out), ST_LIMIT);
    free(large);
    buf_deinit(&out);
}

static void test_integers_stop_at_64_bits(void **state)
{
    (void)state;
    expect_failure("{{ 9223372036854775807 }} {{ -9223372036854775807 - 1 }}", ST_OK,
                   "9223372036854775807 -9223372036854775808");
    static const char *const over[] = {
        "{{ 9223372036854775807 + 1 }}",
        "{{ -9223372036854775807 - 2 }}",
        "{{ 4611686018427387904 * 2 }}",
        "{{ 2 ** 63 }}",
        "{{ -(-9223372036854775807 - 1) }}",
        "{{ (-9223372036854775807 - 1) // -1 }}",
        "{{ (-9223372036854775807 - 1)|abs }}",
        "{{ '9223372036854775808'|int }}",
        "{{ 1e19|int }}",
    };
    for (size_t i = 0; i < ARRAY_COUNT(over); i++)
        expect_failure(over[i], ST_UNSUPPORTED, "beyond 64 bits");
    expect_failure("{{ (-9223372036854775807 - 1) % -1 }}", ST_OK, "0");
    expect_failure("{{ 'abc'[9223372036854775807:] }}{{ 'abc'[::-9223372036854775807] }}", ST_OK,
                   "c");
    expect_failure("{{ [1,2,3][0:3:9223372036854775807] }}", ST_OK, "[1]");
    expect_failure("{{ range(9223372036854775806, 9223372036854775807)|list }}", ST_OK,
                   "[9223372036854775806]");
}

/* --- limits ----------------------------------------------------------------------------------- */

static struct eng_jinja_limits small(void)
{
    return (struct eng_jinja_limits){.steps_max = 100000,
                                     .depth_max = 1000,
                                     .output_bytes_max = 1000,
                                     .arena_bytes_max = 4u << 20};
}

static void test_each_limit_is_named(void **state)
{
    (void)state;
    struct eng_jinja_limits steps = small(), output = small(), arena = small(), depth = small(),
                            time = small();
    expect("{% for i in range(90000) %}{% for k in range(90000) %}{% endfor %}{% endfor %}", NULL,
           &steps, ST_LIMIT, "limit of steps");
    expect("{{ 'x' * 1000 }}", NULL, &output, ST_OK, "xxxx");
    expect("{{ 'x' * 1001 }}", NULL, &output, ST_LIMIT, "limit of output bytes");
    expect("{% for i in range(500) %}ab{{ i % 2 }}{% endfor %}", NULL, &output, ST_LIMIT,
           "limit of output bytes");
    arena.steps_max = 1u << 30;
    expect("{{ ('x' * 10000000)|length }}", NULL, &arena, ST_LIMIT, "limit of memory");
    expect("{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% "
           "endfor %}",
           NULL, &arena, ST_LIMIT, "limit of memory");
    expect("{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% "
           "endfor %}",
           NULL, &arena, ST_LIMIT, "limit of memory");
    depth.depth_max = 100;
    expect("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", NULL, &depth, ST_LIMIT,
           "limit of depth");
    expect("{% set ns = namespace(x=1) %}{% for i in range(500) %}{% set ns.x = [ns.x] %}{% endfor "
           "%}{{ ns.x }}",
           NULL, &depth, ST_LIMIT, "limit of depth");
    expect("{% set ns = namespace() %}{% set ns.self = ns %}{{ ns }}", NULL, &depth, ST_LIMIT,
           "limit of depth");
    time.steps_max = UINT64_MAX;
    time.deadline_ns = clock_now_ns() + NS_PER_MS;
    expect("{% for i in range(90000) %}{% for k in range(90000) %}{% endfor %}{% endfor %}", NULL,
           &time, ST_LIMIT, "limit of time");
    expect(
        "{{ 1 }}", "{\"x\":[[[[1]]]]}",
        &(struct eng_jinja_limits){
            .steps_max = 1000, .depth_max = 3, .output_bytes_max = 10, .arena_bytes_max = 1u << 20},
        ST_LIMIT, "limit of depth");
}

static void test_the_callers_buffer_bounds_too(void **state)
{
    (void)state;
    struct eng_jinja *t;
    struct buf out;
    char err[ERR_CAP];
    cJSON *vars = cJSON_CreateObject();
    buf_init(&out, 10);
    buf_puts(&out, "keep");
    assert_int_equal(eng_jinja_compile("{{ 'x' * 7 }}", 13, &t, err), ST_OK);
    assert_int_equal(eng_jinja_render(t, vars, &eng_jinja_limits_default, 0, &out, err), ST_LIMIT);
    assert_string_equal(out.data, "keep");
    assert_int_equal(buf_status(&out), ST_OK);
    eng_jinja_free(t);
    buf_deinit(&out);
    cJSON_Delete(vars);
}

/* Work done inside one operation must be counted too. */
static void test_single_operations_are_bounded(void **state)
{
    (void)state;
    struct eng_jinja_limits limits = small();
    limits.arena_bytes_max = 64u << 20;
    static const char *const heavy[] = {
        "{% set a = 'a' * 1000000 %}{% for i in range(1000) %}{% set b = a.count('ab') %}{% endfor "
        "%}",
        "{% set a = 'a' * 1000000 %}{% for i in range(1000) %}{% set b = 'b' in a %}{% endfor %}",
        "{% set a = ('a' * 300000) ~ 'b' %}{{ a.rfind('c' ~ a[:150000]) }}",
        "{% set a = range(9000)|list %}{% for i in range(9000) %}{% set b = -1 in a %}{% endfor %}",
        "{% set a = range(9000)|list %}{% for i in range(9000) %}{% set b = a == a %}{% endfor %}",
        "{% set a = range(50000)|map('string')|sort %}{% for i in range(99) %}{% set b = a|sort "
        "%}{% endfor %}",
        "{% set a = 'é' * 100000 %}{% for i in range(90000) %}{% set b = a[99999] %}{% endfor %}",
        "{% set a = 'x' * 500000 %}{% for i in range(9000) %}{% set b = a|upper %}{% endfor %}",
        "{% set a = 'x ' * 500000 %}{{ a|wordcount }}{% for i in range(9000) %}{% set b = "
        "a.split() %}{% endfor %}",
    };
    for (size_t i = 0; i < ARRAY_COUNT(heavy); i++)
        expect(heavy[i], NULL, &limits, ST_LIMIT, "limit of");
}

/* --- bombs ------------------------------------------------------------------------------------ */

static void repeat(struct buf *b, const char *text, int times)
{
    for (int i = 0; i < times; i++) buf_puts(b, text);
}

#ifdef __SANITIZE_THREAD__
#define BOMB_COUNT 10000
#else
#define BOMB_COUNT 100000
#endif

static void test_nesting_bombs(void **state)
{
    (void)state;
    static const struct {
        const char *before, *open, *middle, *close, *after;
    } bombs[] = {
        {"{{ ", "(", "1", ")", " }}"},
        {"{{ ", "[", "1", "]", " }}"},
        {"{{ ", "{1:", "1", "}", " }}"},
        {"{{ ", "-", "1", "", " }}"},
        {"{{ ", "not ", "1", "", " }}"},
        {"{{ ", "f(", "1", ")", " }}"},
        {"{{ x", "[1", "", "]", " }}"},
        {"{{ 1", " + 1", "", "", " }}"},
        {"{{ x", ".a", "", "", " }}"},
        {"{{ x", "[0]", "", "", " }}"},
        {"{{ x", "()", "", "", " }}"},
        {"{{ x", "|string", "", "", " }}"},
        {"{{ 1", " ** 1", "", "", " }}"},
        {"{{ 1", " and 1", "", "", " }}"},
        {"{{ 1", " if 1 else 1", "", "", " }}"},
        {"{{ x is eq(", "x is eq(", "1", ")", ") }}"},
        {"", "{% if 1 %}", "x", "{% endif %}", ""},
        {"", "{% for x in [1] %}", "x", "{% endfor %}", ""},
        {"", "{% macro m() %}", "x", "{% endmacro %}", ""},
        {"", "{% set x %}", "x", "{% endset %}", ""},
        {"", "{% filter upper %}", "x", "{% endfilter %}", ""},
        {"", "{% call f() %}", "x", "{% endcall %}", ""},
        {"", "{% with %}", "x", "{% endwith %}", ""},
        {"", "{% generation %}", "x", "{% endgeneration %}", ""},
        {"{% set ", "(", "a", ",)", " = 1 %}"},
    };
    struct buf src, out;
    buf_init(&src, 64u << 20);
    buf_init(&out, OUT_MAX);
    for (size_t i = 0; i < ARRAY_COUNT(bombs); i++) {
        buf_clear(&src);
        buf_puts(&src, bombs[i].before);
        repeat(&src, bombs[i].open, BOMB_COUNT);
        buf_puts(&src, bombs[i].middle);
        repeat(&src, bombs[i].close, BOMB_COUNT);
        buf_puts(&src, bombs[i].after);
        enum status st =
            run(src.data, size_min(src.len, 4u << 20), NULL, &eng_jinja_limits_default, &out);
        if (st != ST_LIMIT || !strstr(out.data, "nested more than"))
            fail_msg("bomb %zu (%s): %d %s", i, bombs[i].open, (int)st, out.data);
    }
    /* Wide is not deep. */
    buf_clear(&src);
    buf_puts(&src, "{{ [");
    repeat(&src, "1,", 100000);
    buf_puts(&src, "]|length }}");
    repeat(&src, "{% if 0 %}{% elif 0 %}{% endif %}", 10000);
    assert_int_equal(run(src.data, src.len, NULL, &eng_jinja_limits_default, &out), ST_OK);
    assert_string_equal(out.data, "100000");
    buf_deinit(&src);
    buf_deinit(&out);
}

/* The deepest render there can be, on a thread with a small stack (larger under the sanitizers,
 * whose frames are). */
static void *deepest(void *arg)
{
    struct buf *out = arg;
    const char *src =
        "{% macro m(n) %}{% if n %}{% for i in [1] %}{{ (((m(n + 1)|string) ~ '')|upper) }}"
        "{% endfor %}{% endif %}{% endmacro %}{{ m(1) }}";
    const char *status =
        run(src, strlen(src), NULL, &eng_jinja_limits_default, out) == ST_LIMIT ? "limit" : "other";
    return (void *)(uintptr_t)status;
}

static void test_depth_fits_the_stack(void **state)
{
    (void)state;
    struct buf out;
    pthread_t thread;
    pthread_attr_t attr;
    void *result;
    buf_init(&out, OUT_MAX);
    assert_int_equal(pthread_attr_init(&attr), 0);
#ifdef DAKD_DEBUG
    const size_t stack_bytes = 8u << 20;
#else
    const size_t stack_bytes = 1u << 20;
#endif
    assert_int_equal(pthread_attr_setstacksize(&attr, stack_bytes), 0);
    assert_int_equal(pthread_create(&thread, &attr, deepest, &out), 0);
    assert_int_equal(pthread_join(thread, &result), 0);
    assert_string_equal(result, "limit");
    assert_non_null(strstr(out.data, "limit of depth"));
    pthread_attr_destroy(&attr);
    buf_deinit(&out);
}

/* --- threads, the clock, numbers from JSON ---------------------------------------------------- */

struct job {
    const struct eng_jinja *t;
    int id, wrong;
};

static void *render_many(void *arg)
{
    struct job *job = arg;
    struct buf out;
    char err[ERR_CAP], vars[64], want[64];
    buf_init(&out, OUT_MAX);
    snprintf(vars, sizeof vars, "{\"id\":%d,\"xs\":[1,2,3]}", job->id);
    snprintf(want, sizeof want, "<%d:6:A-B>", job->id);
    cJSON *v = cJSON_Parse(vars);
    for (int i = 0; i < 200; i++) {
        buf_clear(&out);
        enum status st = eng_jinja_render(job->t, v, &eng_jinja_limits_default, 0, &out, err);
        job->wrong += st != ST_OK || strcmp(out.data, want) != 0;
    }
    cJSON_Delete(v);
    buf_deinit(&out);
    return NULL;
}

static void test_one_template_serves_threads(void **state)
{
    (void)state;
    const char *src =
        "{% set ns = namespace(n=0) %}{% for x in xs %}{% set ns.n = ns.n + x %}{% endfor %}"
        "{% macro m(a) %}{{ a|upper }}{% endmacro %}<{{ id }}:{{ ns.n }}:{{ [m('a'), "
        "m('b')]|join('-') }}>";
    struct eng_jinja *t;
    struct job jobs[4];
    pthread_t threads[4];
    char err[ERR_CAP];
    assert_int_equal(eng_jinja_compile(src, strlen(src), &t, err), ST_OK);
    for (int i = 0; i < 4; i++) {
        jobs[i] = (struct job){.t = t, .id = i};
        assert_int_equal(pthread_create(&threads[i], NULL, render_many, &jobs[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_int_equal(jobs[i].wrong, 0);
    }
    eng_jinja_free(t);
}

static void test_variables(void **state)
{
    (void)state;
    const struct eng_jinja_limits *l = &eng_jinja_limits_default;
    expect("{{ a }} {{ b }} {{ c }} {{ d|tojson }}", "{\"a\":1.0,\"b\":1.5,\"c\":1e300,\"d\":-7}",
           l, ST_OK, "1.0 1.5 1e+300 -7");
    expect("{{ a }} {{ b }} {{ c|tojson }} {{ d }}",
           "{\"a\":9223372036854775807,\"b\":[-0.0,-0,2e3],"
           "\"c\":{\"x -1.5e\\\"2.0\":1,\"y\":{\"z\":-9007199254740993}},"
           "\"d\":18446744073709551615}",
           l, ST_OK,
           "9223372036854775807 [-0.0, 0, 2000.0] "
           "{\"x -1.5e\\\"2.0\": 1, \"y\": {\"z\": -9007199254740993}} "
           "1.8446744073709552e+19");
    expect("{{ range }}", "{\"range\":\"mine\"}", l, ST_OK, "mine");
    expect("x", "[1]", l, ST_CORRUPT, "not a JSON object");
    expect("{{ strftime_now('%Y %%') }}{{ strftime_now('%z%Z%f') }}", NULL, l, ST_OK, "%000000");
    expect("{{ strftime_now('%Q') }}", NULL, l, ST_UNSUPPORTED, "'%Q'");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_errors_name_line_and_construct),
        cmocka_unit_test(test_raise_exception_is_the_message_alone),
        cmocka_unit_test(test_invalid_sources),
        cmocka_unit_test(test_integers_stop_at_64_bits),
        cmocka_unit_test(test_each_limit_is_named),
        cmocka_unit_test(test_the_callers_buffer_bounds_too),
        cmocka_unit_test(test_single_operations_are_bounded),
        cmocka_unit_test(test_nesting_bombs),
        cmocka_unit_test(test_depth_fits_the_stack),
        cmocka_unit_test(test_one_template_serves_threads),
        cmocka_unit_test(test_variables),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
