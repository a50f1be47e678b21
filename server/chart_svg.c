#include "server/chart_svg.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "config/check.h"

#define LEFT 70
#define RIGHT 30
#define TOP 66
#define BOTTOM 56
#define TICKS_MAX 12 /* of an axis, where they still can be read */
#define LETTER 6.6   /* width of a letter of the legend, about */
#define HINT_BYTES_MAX 512

/* Of a light page and of a dark one. */
static const char *const colours[SRV_CHART_COLOURS][2] = {
    {"#2b6cb0", "#63b3ed"}, {"#c05621", "#f6ad55"}, {"#2f855a", "#68d391"},
    {"#6b46c1", "#b794f4"}, {"#4a5568", "#a0aec0"}, {"#b83280", "#f687b3"},
};

static void put_escaped(struct buf *b, const char *text)
{
    for (const char *p = text; *p; p++) switch (*p) {
        case '&': buf_puts(b, "&amp;"); break;
        case '<': buf_puts(b, "&lt;"); break;
        case '>': buf_puts(b, "&gt;"); break;
        default: buf_putc(b, *p);
        }
}

/* anchor: start, middle, end. */
static void put_text(struct buf *b, double x, double y, const char *anchor, const char *text)
{
    buf_printf(b, "<text x='%.1f' y='%.1f' text-anchor='%s'>", x, y, anchor);
    put_escaped(b, text);
    buf_puts(b, "</text>\n");
}

/* --- axes ------------------------------------------------------------------------------------- */

/* Where on an axis, from 0 to 1. */
static double share_of(const struct srv_chart_axis *a, double value)
{
    double share = a->scale == SRV_CHART_LINEAR
                       ? (value - a->low) / (a->high - a->low)
                       : log(fmax(value, a->low) / a->low) / log(a->high / a->low);
    return fmin(fmax(share, 0), 1);
}

static double x_of(const struct srv_chart *c, double value)
{
    return LEFT + share_of(&c->x, value) * (SRV_CHART_WIDTH - LEFT - RIGHT);
}

static double y_of(const struct srv_chart *c, int panel, double value)
{
    const double height = SRV_CHART_HEIGHT - TOP - BOTTOM;
    return panel * SRV_CHART_HEIGHT + TOP + (1 - share_of(&c->y, value)) * height;
}

double srv_chart_round_up(double value)
{
    static const double steps[] = {1, 2, 2.5, 5};
    CHECK(value > 0 && isfinite(value));
    const double power = pow(10, floor(log10(value)));
    for (size_t i = 0; i < ARRAY_COUNT(steps); i++)
        if (value <= steps[i] * power * (1 + 1e-9)) return steps[i] * power;
    return 10 * power;
}

/* Fills out[] and returns how many there are. */
static int linear_ticks(const struct srv_chart_axis *a, double out[TICKS_MAX])
{
    const double step = srv_chart_round_up((a->high - a->low) / (TICKS_MAX - 1));
    int count = 0;
    for (double i = ceil(a->low / step - 1e-9); i * step <= a->high + 1e-9 * step; i++)
        if (count < TICKS_MAX) out[count++] = i * step + 0.0; /* no -0 */
    return count;
}

static int log_ticks(const struct srv_chart_axis *a, double out[TICKS_MAX])
{
    static const double ten[] = {1, 2, 5};
    const bool twos = a->scale == SRV_CHART_LOG2;
    const double base = twos ? 2 : 10;
    const double powers = log(a->high / a->low) / log(base);
    /* Of the first kind of tick that is few enough: all; whole powers; every second power... */
    const int parts = twos || 3 * (powers + 1) > TICKS_MAX ? 1 : 3;
    const double stride = fmax(1, ceil((powers + 1) * parts / TICKS_MAX));
    int count = 0;
    for (double p = floor(log(a->low) / log(base)); pow(base, p) <= a->high * (1 + 1e-9);
         p += stride)
        for (int i = 0; i < parts; i++) {
            const double v = pow(base, p) * ten[i];
            if (v >= a->low * (1 - 1e-9) && v <= a->high * (1 + 1e-9) && count < TICKS_MAX)
                out[count++] = v;
        }
    return count;
}

/* On a short logarithmic axis even steps tell more. */
static int ticks(const struct srv_chart_axis *a, double out[TICKS_MAX])
{
    const int count = a->scale == SRV_CHART_LINEAR ? 0 : log_ticks(a, out);
    const bool few = a->scale == SRV_CHART_LOG10 && count < 3;
    return few || a->scale == SRV_CHART_LINEAR ? linear_ticks(a, out) : count;
}

static void write_tick(const struct srv_chart_axis *a, double value, char out[SRV_CHART_TICK_CAP])
{
    if (a->write) a->write(value, out);
    else snprintf(out, SRV_CHART_TICK_CAP, "%g", value);
}

static void put_axes(struct buf *b, int panel, const struct srv_chart *c)
{
    char text[SRV_CHART_TICK_CAP];
    double at[TICKS_MAX];
    const double left = LEFT, right = SRV_CHART_WIDTH - RIGHT, middle = (left + right) / 2;
    const double top = y_of(c, panel, c->y.high), bottom = y_of(c, panel, c->y.low);
    for (int i = 0, n = ticks(&c->y, at); i < n; i++) {
        const double y = y_of(c, panel, at[i]);
        buf_printf(b, "<line class='grid' x1='%.1f' x2='%.1f' y1='%.1f' y2='%.1f'/>\n", left, right,
                   y, y);
        write_tick(&c->y, at[i], text);
        put_text(b, left - 8, y + 4, "end", text);
    }
    for (int i = 0, n = ticks(&c->x, at); i < n; i++) {
        const double x = x_of(c, at[i]);
        buf_printf(b, "<line class='grid' x1='%.1f' x2='%.1f' y1='%.1f' y2='%.1f'/>\n", x, x, top,
                   bottom);
        write_tick(&c->x, at[i], text);
        put_text(b, x, bottom + 18, "middle", text);
    }
    put_text(b, middle, bottom + 38, "middle", c->x.title);
    buf_printf(b, "<text transform='translate(16 %.1f) rotate(-90)' text-anchor='middle'>",
               (top + bottom) / 2);
    put_escaped(b, c->y.title);
    buf_puts(b, "</text>\n");
}

/* --- lines ------------------------------------------------------------------------------------ */

static bool is_drawn(const struct srv_chart_line *l, int i)
{
    return isfinite(l->x[i]) && isfinite(l->y[i]);
}

static void put_joined(struct buf *b, int panel, const struct srv_chart *c,
                       const struct srv_chart_line *l)
{
    for (int i = 0; i < l->count; i++) {
        if (!is_drawn(l, i)) continue;
        buf_printf(b, "<polyline class='line s%d'%s points='", l->colour,
                   l->dashed ? " stroke-dasharray='6 4'" : "");
        for (; i < l->count && is_drawn(l, i); i++)
            buf_printf(b, "%.1f,%.1f ", x_of(c, l->x[i]), y_of(c, panel, l->y[i]));
        buf_puts(b, "'/>\n");
    }
}

static void put_markers(struct buf *b, int panel, const struct srv_chart *c,
                        const struct srv_chart_line *l)
{
    for (int i = 0; i < l->count; i++) {
        struct buf text;
        if (!is_drawn(l, i)) continue;
        buf_init(&text, HINT_BYTES_MAX);
        if (l->hint) l->hint(l->user, i, &text);
        else buf_printf(&text, "%g, %g", l->x[i], l->y[i]);
        buf_printf(b, "<circle class='f%d' cx='%.1f' cy='%.1f' r='3'><title>", l->colour,
                   x_of(c, l->x[i]), y_of(c, panel, l->y[i]));
        if (!buf_status(&text)) put_escaped(b, text.data);
        buf_puts(b, "</title></circle>\n");
        buf_deinit(&text);
    }
}

static void put_legend(struct buf *b, int panel, const struct srv_chart *c)
{
    const double y = panel * SRV_CHART_HEIGHT + 48;
    double x = LEFT;
    for (int i = 0; i < c->line_count; i++) {
        const struct srv_chart_line *l = &c->line[i];
        if (!l->name) continue;
        buf_printf(b, "<line class='line s%d'%s x1='%.1f' x2='%.1f' y1='%.1f' y2='%.1f'/>\n",
                   l->colour, l->dashed ? " stroke-dasharray='6 4'" : "", x, x + 20, y - 4, y - 4);
        put_text(b, x + 25, y, "start", l->name);
        x += 25 + LETTER * (double)strlen(l->name) + 20;
    }
}

/* --- all of it -------------------------------------------------------------------------------- */

void srv_chart_begin(struct buf *b, int panels)
{
    const int height = SRV_CHART_HEIGHT * panels;
    CHECK(panels >= 1);
    buf_printf(b,
               "<svg xmlns='http://www.w3.org/2000/svg' width='%d' height='%d' "
               "viewBox='0 0 %d %d' font-family='sans-serif' font-size='12'>\n<style>\n",
               SRV_CHART_WIDTH, height, SRV_CHART_WIDTH, height);
    for (int dark = 0; dark < 2; dark++) {
        if (dark) buf_puts(b, "@media (prefers-color-scheme: dark) {\n");
        buf_printf(b, "text { fill: %s } .paper { fill: %s } .grid { stroke: %s }\n",
                   dark ? "#dddddd" : "#222222", dark ? "#161616" : "#ffffff",
                   dark ? "#3a3a3a" : "#dddddd");
        buf_printf(b, ".mark { stroke: %s }\n", dark ? "#aaaaaa" : "#555555");
        for (int i = 0; i < SRV_CHART_COLOURS; i++)
            buf_printf(b, ".s%d { stroke: %s } .f%d { fill: %s }\n", i, colours[i][dark], i,
                       colours[i][dark]);
        if (dark) buf_puts(b, "}\n");
    }
    buf_puts(b, ".line { fill: none; stroke-width: 2 } .title { font-size: 14px }\n</style>\n"
                "<rect class='paper' width='100%' height='100%'/>\n");
}

void srv_chart_put(struct buf *b, int panel, const struct srv_chart *c)
{
    CHECK(c->x.low < c->x.high && c->y.low < c->y.high);
    CHECK(c->x.scale == SRV_CHART_LINEAR || c->x.low > 0);
    CHECK(c->y.scale == SRV_CHART_LINEAR || c->y.low > 0);
    buf_printf(b, "<text class='title' x='%d' y='%d'>", LEFT, panel * SRV_CHART_HEIGHT + 26);
    put_escaped(b, c->title);
    buf_puts(b, "</text>\n");
    put_axes(b, panel, c);
    put_legend(b, panel, c);
    for (int i = 0; i < c->line_count; i++) {
        const struct srv_chart_line *l = &c->line[i];
        CHECK(l->colour >= 0 && l->colour < SRV_CHART_COLOURS);
        if (!l->loose) put_joined(b, panel, c, l);
        if (!l->bare) put_markers(b, panel, c, l);
    }
    if (!c->mark) return;
    const double x = x_of(c, c->mark_x), y = y_of(c, panel, c->y.low);
    buf_printf(b,
               "<line class='mark' x1='%.1f' x2='%.1f' y1='%.1f' y2='%.1f' "
               "stroke-dasharray='4 3'/>\n",
               x, x, y, y_of(c, panel, c->y.high));
    put_text(b, x + 4, y - 8, "start", c->mark);
}

void srv_chart_put_note(struct buf *b, int panel, const char *text)
{
    put_text(b, LEFT, panel * SRV_CHART_HEIGHT + TOP, "start", text);
}

void srv_chart_end(struct buf *b)
{
    buf_puts(b, "</svg>\n");
}
