/*
 * Mutated templates: whatever the bytes, a compile and a render end, inside their limits, with a
 * text or a sentence. The seed is DAKD_TEST_SEED, the number of rounds DAKD_FUZZ_ROUNDS; run under
 * the sanitizers this is the memory test.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "config/utf8.h"
#include "engine/jinja.h"

static const char *const corpus[] = {
    "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' + m['content']|trim }}{% if not loop.last %}, "
    "{% endif %}{% else %}e{% endfor %}",
    "{%- set ns = namespace(n=0, s='') -%}{% for i in range(9) if i is odd %}{% set ns.n = ns.n + "
    "i * 2 ** 3 // 5 %}{% endfor %}{{ ns.n }}",
    "{% macro f(a, b=[1, 2.5], c={'k': none}) %}{{ a }}{{ b[::-1] }}{{ c.k }}{{ varargs }}{{ "
    "kwargs }}{{ caller and caller(1) }}{% endmacro %}{{ f(1, x=2) }}{% call(z) f('q') %}{{ z }}{% "
    "endcall %}",
    "{{ messages|map(attribute='role')|unique|list|tojson(indent=2) }}{{ "
    "messages|selectattr('role', 'equalto', 'user')|first }}",
    "{% if messages[0].role == 'system' and messages|length > 1 %}{% set x, y = 1, (2, 3) %}{{ x "
    "}}{{ y[1:] }}{% elif u %}{{ u[1:-1] }}{% else %}{{ raise_exception('no ' ~ u) }}{% endif %}",
    "{{ '%s-%05d|%-8.3f' % ('é', 42, 2.5) }}{{ '{:>8}|{0[1]}'.format([1, 2]) }}{{ "
    "'a,b'.split(',')|join('/') }}{{ 'Straße'.upper().title()|e }}",
    "{% set t %}x {{ 1 if u is defined else 2 }}{% endset %}{% filter upper|replace('X', '<') %}{{ "
    "t }}{% endfilter %}{% raw %}{{ raw }}{% endraw %}{# c #}",
    "{% for k, v in {'b': 1, 'a': [u]}|dictsort(reverse=true) recursive %}{{ k }}{{ "
    "loop.cycle('x', 'y') }}{{ loop.previtem }}{% if loop.index > 1 %}{% break %}{% endif %}{% "
    "endfor %}",
    "{{ [3, 1, 2]|sort|reverse|list }}{{ [[1, 2], [3]]|sum(start=[])|batch(2, 0)|list }}{{ 'a b  "
    "c'.rsplit(none, 1) }}{{ range(10)[2:8:3]|list }}{{ 7.5 % -2 }}{{ 1 < 2 <= 3 != 4 not in [5] "
    "}}",
    "{% generation %}{{ u ~ 1 ~ none ~ [true] }}{% endgeneration %}{% with a = 1, b = u %}{{ a "
    "}}{{ b|indent(2, true) }}{{ b.partition('b') }}{% endwith %}{% print 1, 2 %}",
};
static const char *const pieces[] = {
    "{{",
    "}}",
    "{%",
    "%}",
    "{%-",
    "-%}",
    "{#",
    "#}",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "|",
    ".",
    ",",
    ":",
    "~",
    "**",
    "//",
    "%",
    " is ",
    " not ",
    " in ",
    " if ",
    " else ",
    " and ",
    " or ",
    "loop",
    "messages",
    "u",
    "ns",
    "none",
    "''",
    "'é'",
    "\\",
    "\"",
    "0",
    "-1",
    "9223372036854775807",
    "1e308",
    "0x7f",
    "{% endfor %}",
    "{% endif %}",
    "{% for x in u %}",
    "{% set x = u %}",
    "|list",
    "|tojson",
    "|map('upper')",
    "|sort",
    "[::-1]",
    "[1:]",
    ".items()",
    ".split()",
    "()",
    "*u",
    "**{}",
    "=",
    "\n",
    " ",
    "{% macro m(a) %}",
    "{% endmacro %}",
    "{{ m(m) }}",
    "|string",
    "|int",
    "* 1000",
    "'x' * 99999",
    "\xF0\x9F\x98\x80",
    "%5s",
    "|format(u)",
};

static uint64_t next_random(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    return *s;
}

static size_t below(uint64_t *s, size_t n)
{
    return (size_t)(next_random(s) % n);
}

/* Replaces text[at, at + cut) by the n bytes of with. */
static size_t splice(char *text, size_t len, size_t cap, size_t at, size_t cut, const char *with,
                     size_t n)
{
    if (cut > len - at) cut = len - at;
    if (len - cut + n > cap) return len;
    char copy[256];
    if (n > sizeof copy) n = sizeof copy;
    memcpy(copy, with, n); /* `with` may lie in text */
    memmove(text + at + n, text + at + cut, len - at - cut);
    memcpy(text + at, copy, n);
    return len - cut + n;
}

static size_t mutate(uint64_t *s, char *text, size_t len, size_t cap)
{
    for (size_t k = 1 + below(s, 2) * below(s, 4); k > 0; k--) {
        size_t at = below(s, len + 1), cut = below(s, 2) ? below(s, 8) : 0;
        const char *piece = pieces[below(s, ARRAY_COUNT(pieces))];
        char byte = (char)below(s, 256);
        size_t from = below(s, len + 1), n = size_min(below(s, 64), len - from);
        switch (below(s, 4)) {
        case 0: len = splice(text, len, cap, at, cut, piece, strlen(piece)); break;
        case 1: len = splice(text, len, cap, at, 1 + below(s, 12), "", 0); break;
        case 2: len = splice(text, len, cap, at, cut, text + from, n); break;
        default: len = splice(text, len, cap, at, cut, &byte, below(s, 8) == 0);
        }
    }
    return len;
}

static void test_mutated_templates(void **state)
{
    (void)state;
    const char *env = getenv("DAKD_TEST_SEED"), *rounds_env = getenv("DAKD_FUZZ_ROUNDS");
    uint64_t seed = env ? strtoull(env, NULL, 10) : 20261121, s = seed * 2 + 1;
    size_t rounds = rounds_env ? strtoul(rounds_env, NULL, 10) : 30000, rendered = 0, compiled = 0;
    printf("seed %llu, %zu rounds\n", (unsigned long long)seed, rounds);
    const struct eng_jinja_limits limits = {.steps_max = 50000,
                                            .depth_max = 300,
                                            .output_bytes_max = 1u << 16,
                                            .arena_bytes_max = 2u << 20};
    cJSON *vars = cJSON_Parse("{\"messages\":[{\"role\":\"system\",\"content\":\" h\\u00e9 "
                              "\"},{\"role\":\"user\",\"content\":\"b\"}],"
                              "\"u\":\"a\\u00e9b\\u65e5\\ud83d\\ude00\"}");
    assert_non_null(vars);
    char text[4096], err[ERR_CAP];
    struct buf out;
    buf_init(&out, 1u << 17);
    for (size_t i = 0; i < rounds; i++) {
        const char *seed_text = corpus[below(&s, ARRAY_COUNT(corpus))];
        size_t len = strlen(seed_text);
        memcpy(text, seed_text, len);
        len = mutate(&s, text, len, sizeof text);
        struct eng_jinja *t;
        err[0] = '\0';
        enum status st = eng_jinja_compile(text, len, &t, err);
        if (st) {
            assert_null(t);
            assert_true(err[0] != '\0');
            assert_int_not_equal(st, ST_CORRUPT);
            continue;
        }
        compiled++;
        buf_clear(&out);
        st = eng_jinja_render(t, vars, &limits, 1700000000, &out, err);
        if (st) assert_int_equal(out.len, 0);
        else assert_int_equal(utf8_valid_prefix(out.data ? out.data : "", out.len), out.len);
        rendered += st == ST_OK;
        eng_jinja_free(t);
    }
    printf("%zu compiled, %zu rendered\n", compiled, rendered);
    assert_true(rendered > rounds / 50 && compiled < rounds);
    buf_deinit(&out);
    cJSON_Delete(vars);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_mutated_templates)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
