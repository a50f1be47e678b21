/*
 * chart_svg.h - charts of lines and markers over two axes, one panel below the other in one SVG
 * file: linear or logarithmic axes, a grid, a legend, colours that are read on a light and on a
 * dark page.  Pure.
 *
 *     srv_chart_begin(b, 2); srv_chart_put(b, 0, &one); srv_chart_put(b, 1, &other);
 *     srv_chart_end(b);
 *
 * What lies outside the axes is drawn on their border.  All text is escaped.
 */
#ifndef DAKD_SERVER_CHART_SVG_H
#define DAKD_SERVER_CHART_SVG_H

#include <stdbool.h>

#include "config/buf.h"

#define SRV_CHART_WIDTH 760
#define SRV_CHART_HEIGHT 340 /* of a panel */
#define SRV_CHART_COLOURS 6
#define SRV_CHART_TICK_CAP 24

/* LOG2 has ticks at powers of two, LOG10 at 1, 2 and 5 times powers of ten. */
enum srv_chart_scale { SRV_CHART_LINEAR, SRV_CHART_LOG2, SRV_CHART_LOG10 };

struct srv_chart_axis {
    const char *title; /* borrowed, as all text */
    enum srv_chart_scale scale;
    double low, high; /* low < high; logarithmic: low > 0 */
    void (*write)(double value, char out[SRV_CHART_TICK_CAP]); /* a tick's text; NULL: %g */
};

struct srv_chart_line {
    const char *name; /* in the legend; NULL: not there */
    int colour;       /* 0..SRV_CHART_COLOURS - 1 */
    bool dashed;
    bool bare;           /* no markers */
    bool loose;          /* markers alone, which nothing joins */
    const double *x, *y; /* [count]; a NaN leaves a gap */
    int count;
    void (*hint)(void *user, int i, struct buf *text); /* shown over marker i; NULL: x and y */
    void *user;
};

struct srv_chart {
    const char *title;
    struct srv_chart_axis x, y;
    const struct srv_chart_line *line; /* [line_count] */
    int line_count;
    const char *mark; /* stands beside a vertical line at mark_x; NULL: none */
    double mark_x;
};

void srv_chart_begin(struct buf *b, int panels);
void srv_chart_put(struct buf *b, int panel, const struct srv_chart *c);
/* A panel that says why there is nothing to draw. */
void srv_chart_put_note(struct buf *b, int panel, const char *text);
void srv_chart_end(struct buf *b);

/* The least of 1, 2, 2.5, 5 and 10 times a power of ten that is not below `value` (> 0): where an
 * axis may end. */
double srv_chart_round_up(double value);

#endif
