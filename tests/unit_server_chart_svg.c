/*
 * unit_server_chart_svg.c - charts: where points come to lie, gaps, ticks of each scale, text that
 * would break the file, and what is outside the axes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "server/chart_svg.h"

static int count(const char *text, const char *what)
{
    int n = 0;
    for (const char *p = strstr(text, what); p; p = strstr(p + 1, what)) n++;
    return n;
}

/* The number behind the n-th `what`. */
static double number(const char *text, const char *what, int n)
{
    const char *p = strstr(text, what);
    for (; p && n > 0; n--) p = strstr(p + 1, what);
    assert_non_null(p);
    return atof(p + strlen(what));
}

static void draw(const struct srv_chart *c, struct buf *b)
{
    buf_init(b, 1 << 18);
    srv_chart_begin(b, 1);
    srv_chart_put(b, 0, c);
    srv_chart_end(b);
    assert_int_equal(buf_status(b), ST_OK);
    int depth = 0;
    for (const char *p = b->data; *p; p++) {
        if (p[0] == '<') depth += p[1] == '/' ? -1 : 1;
        if (p[0] == '/' && p[1] == '>') depth--;
        assert_true(depth >= 0);
    }
    assert_int_equal(depth, 0);
}

static struct srv_chart chart_of(const struct srv_chart_line *line, int lines)
{
    return (struct srv_chart){.title = "rate",
                              .x = {"share", SRV_CHART_LINEAR, 0, 1, NULL},
                              .y = {"GB/s", SRV_CHART_LINEAR, 0, 100, NULL},
                              .line = line,
                              .line_count = lines};
}

static void test_points(void **state)
{
    (void)state;
    static const double x[] = {0, 0.5, 1}, y[] = {0, 50, 100};
    const struct srv_chart_line line = {.name = "direct", .x = x, .y = y, .count = 3};
    const struct srv_chart c = chart_of(&line, 1);
    struct buf b;
    draw(&c, &b);
    assert_int_equal(count(b.data, "<circle "), 3);
    assert_int_equal(count(b.data, "<polyline "), 1);
    assert_int_equal(count(b.data, ">direct</text>"), 1);
    assert_int_equal(count(b.data, ">0</text>"), 2);
    assert_int_equal(count(b.data, ">-0</text>"), 0);
    const double left = number(b.data, " cx='", 0), right = number(b.data, " cx='", 2);
    const double bottom = number(b.data, " cy='", 0), top = number(b.data, " cy='", 2);
    assert_true(left > 0 && left < right && right < SRV_CHART_WIDTH);
    assert_true(top > 0 && top < bottom && bottom < SRV_CHART_HEIGHT);
    assert_float_equal(number(b.data, " cx='", 1), (left + right) / 2, 0.11);
    assert_float_equal(number(b.data, " cy='", 1), (top + bottom) / 2, 0.11);
    assert_non_null(strstr(b.data, "prefers-color-scheme: dark"));
    buf_deinit(&b);
}

/* A point that is not there parts the line, and one outside lies on the border. */
static void test_gaps(void **state)
{
    (void)state;
    static const double x[] = {0, 0.25, 0.5, 0.75, 2}, y[] = {1, 2, NAN, 4, 500};
    const struct srv_chart_line line[] = {{.x = x, .y = y, .count = 5},
                                          {.x = x, .y = y, .count = 5, .bare = true},
                                          {.x = x, .y = y, .count = 5, .loose = true}};
    const struct srv_chart c = chart_of(line, 3);
    struct buf b;
    draw(&c, &b);
    assert_int_equal(count(b.data, "<circle "), 4 + 4);
    assert_int_equal(count(b.data, "<polyline "), 2 + 2);
    assert_null(strstr(b.data, "nan"));
    assert_true(number(b.data, " cx='", 3) < SRV_CHART_WIDTH);
    assert_true(number(b.data, " cy='", 3) > 0);
    buf_deinit(&b);
}

static void write_word(double value, char out[SRV_CHART_TICK_CAP])
{
    snprintf(out, SRV_CHART_TICK_CAP, "<%g>", value);
}

static void say(void *user, int i, struct buf *text)
{
    buf_printf(text, "%s & %d", (const char *)user, i);
}

static void test_scales_and_text(void **state)
{
    (void)state;
    static const double x[] = {8, 64, 512}, y[] = {1, 10, 100};
    char who[] = "a<b";
    const struct srv_chart_line line = {
        .name = "x > y", .x = x, .y = y, .count = 3, .hint = say, .user = who};
    struct srv_chart c = {.title = "one & two",
                          .x = {"batch", SRV_CHART_LOG2, 8, 512, NULL},
                          .y = {"ms", SRV_CHART_LOG10, 1, 100, write_word},
                          .line = &line,
                          .line_count = 1,
                          .mark = "here",
                          .mark_x = 64};
    struct buf b;
    draw(&c, &b);
    for (int batch = 8; batch <= 512; batch *= 2) {
        char tick[32];
        snprintf(tick, sizeof tick, ">%d</text>", batch);
        assert_int_equal(count(b.data, tick), 1);
    }
    static const char *const ticks[] = {"1", "2", "5", "10", "20", "50", "100"};
    for (size_t i = 0; i < ARRAY_COUNT(ticks); i++) {
        char tick[40];
        snprintf(tick, sizeof tick, ">&lt;%s&gt;</text>", ticks[i]);
        assert_int_equal(count(b.data, tick), 1);
    }
    assert_non_null(strstr(b.data, "one &amp; two"));
    assert_non_null(strstr(b.data, "x &gt; y"));
    assert_non_null(strstr(b.data, "<title>a&lt;b &amp; 1</title>"));
    assert_non_null(strstr(b.data, ">here</text>"));
    /* Equal ratios, equal distances. */
    const double from = number(b.data, " cx='", 0), to = number(b.data, " cx='", 2);
    assert_float_equal(number(b.data, " cx='", 1), (from + to) / 2, 0.11);
    buf_deinit(&b);
    /* Short: in even steps. */
    c.y.low = 5.5;
    c.y.high = 8.5;
    draw(&c, &b);
    assert_non_null(strstr(b.data, ">&lt;6&gt;</text>"));
    assert_non_null(strstr(b.data, ">&lt;7.5&gt;</text>"));
    buf_deinit(&b);
    /* However far an axis goes, its ticks can be read. */
    c.y.low = 1e-6;
    c.y.high = 1e12;
    c.x.high = 1 << 30;
    draw(&c, &b);
    assert_in_range(count(b.data, "class='grid'"), 8, 24);
    buf_deinit(&b);
}

static void test_round_up(void **state)
{
    (void)state;
    static const double pairs[][2] = {{1, 1},       {1.01, 2},    {2.1, 2.5},   {2.6, 5}, {5.5, 10},
                                      {0.03, 0.05}, {4612, 5000}, {1e-9, 1e-9}, {99, 100}};
    for (size_t i = 0; i < ARRAY_COUNT(pairs); i++)
        assert_float_equal(srv_chart_round_up(pairs[i][0]) / pairs[i][1], 1, 1e-9);
}

static void test_note(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, 1 << 16);
    srv_chart_begin(&b, 2);
    srv_chart_put_note(&b, 1, "nothing & nobody");
    srv_chart_end(&b);
    assert_int_equal(buf_status(&b), ST_OK);
    assert_non_null(strstr(b.data, "nothing &amp; nobody"));
    buf_deinit(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_points),
        cmocka_unit_test(test_gaps),
        cmocka_unit_test(test_scales_and_text),
        cmocka_unit_test(test_round_up),
        cmocka_unit_test(test_note),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
