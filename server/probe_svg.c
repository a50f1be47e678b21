/*
 * probe_svg.c - see probe.h: rates against bytes in flight, one panel a link.
 *
 * Both rates are drawn as shares of what they are alone, so that one axis serves: HBM's falls where
 * the link's has long been full.  Every point of the grid is a dot; a line goes through the means
 * of those with the same bytes in flight.
 */
#include <math.h>
#include <string.h>

#include "config/check.h"
#include "server/probe.h"

#define WIDTH 760
#define PANEL 320 /* height of one */
#define LEFT 60
#define RIGHT 40
#define TOP 50
#define BOTTOM 60
#define KIB_MIN 64
#define KIB_MAX 16384

static const char hbm_colour[] = "#2b6cb0", link_colour[] = "#c05621";

static double kib_of(const struct off_link_point *p)
{
    return (double)p->ctas * p->blocks * KN_BLOCK_BYTES / 1024;
}

static double x_of(double kib)
{
    double share = log2(kib / KIB_MIN) / log2((double)KIB_MAX / KIB_MIN);
    return LEFT + fmin(fmax(share, 0), 1) * (WIDTH - LEFT - RIGHT);
}

static double y_of(double share, int top)
{
    return top + TOP + (1 - fmin(fmax(share, 0), 1.05) / 1.05) * (PANEL - TOP - BOTTOM);
}

static double share_of(const struct off_links *l, const struct off_link *k, int i, bool hbm)
{
    return hbm ? k->point[i].hbm_bytes_per_s / l->hbm_bytes_per_s
               : k->point[i].link_bytes_per_s / k->read_bytes_per_s;
}

static void put_axes(struct buf *b, int top)
{
    for (int i = 0; i <= 4; i++) {
        double y = y_of(i / 4.0, top);
        buf_printf(b, "<line x1='%d' x2='%d' y1='%.1f' y2='%.1f' stroke='#ddd'/>\n", LEFT,
                   WIDTH - RIGHT, y, y);
        buf_printf(b, "<text x='%d' y='%.1f' text-anchor='end'>%d %%</text>\n", LEFT - 8, y + 4,
                   25 * i);
    }
    for (int kib = KIB_MIN; kib <= KIB_MAX; kib *= 2) {
        double x = x_of(kib);
        buf_printf(b, "<line x1='%.1f' x2='%.1f' y1='%.1f' y2='%.1f' stroke='#eee'/>\n", x, x,
                   y_of(0, top), y_of(1.05, top));
        buf_printf(b, "<text x='%.1f' y='%.1f' text-anchor='middle'>%d %s</text>\n", x,
                   y_of(0, top) + 18, kib < 1024 ? kib : kib / 1024, kib < 1024 ? "KB" : "MB");
    }
    buf_printf(b, "<text x='%d' y='%.1f' text-anchor='middle'>remote bytes in flight</text>\n",
               (LEFT + WIDTH - RIGHT) / 2, y_of(0, top) + 38);
}

/* The mean share of all points with so many bytes in flight. */
static double mean_at(const struct off_links *l, const struct off_link *k, double kib, bool hbm)
{
    double sum = 0;
    int count = 0;
    for (int i = 0; i < k->point_count; i++) {
        if (kib_of(&k->point[i]) != kib) continue;
        sum += share_of(l, k, i, hbm);
        count++;
    }
    return sum / count;
}

/* The least number of bytes in flight above `kib`; 0: none. */
static double next_kib(const struct off_link *k, double kib)
{
    double next = 0;
    for (int i = 0; i < k->point_count; i++) {
        double own = kib_of(&k->point[i]);
        if (own > kib && (next == 0 || own < next)) next = own;
    }
    return next;
}

static void put_curve(struct buf *b, const struct off_links *l, const struct off_link *k, int top,
                      bool hbm)
{
    const char *colour = hbm ? hbm_colour : link_colour;
    buf_printf(b, "<polyline fill='none' stroke='%s' stroke-width='2' points='", colour);
    for (double kib = next_kib(k, 0); kib > 0; kib = next_kib(k, kib))
        buf_printf(b, "%.1f,%.1f ", x_of(kib), y_of(mean_at(l, k, kib, hbm), top));
    buf_puts(b, "'/>\n");
    for (int i = 0; i < k->point_count; i++)
        buf_printf(b,
                   "<circle cx='%.1f' cy='%.1f' r='3' fill='%s'><title>%d SMs x %d blocks: HBM "
                   "%.3f TB/s, link %.2f GB/s, trip %.2f us</title></circle>\n",
                   x_of(kib_of(&k->point[i])), y_of(share_of(l, k, i, hbm), top), colour,
                   k->point[i].ctas, k->point[i].blocks, k->point[i].hbm_bytes_per_s / 1e12,
                   k->point[i].link_bytes_per_s / 1e9, k->point[i].trip_mean_s * 1e6);
}

static void put_window(struct buf *b, const struct off_links *l, const struct off_link *k, int top)
{
    struct kn_window w;
    if (!off_link_window(l, k, &w)) return;
    double x = x_of((double)w.ctas * w.blocks * KN_BLOCK_BYTES / 1024);
    buf_printf(b,
               "<line x1='%.1f' x2='%.1f' y1='%.1f' y2='%.1f' stroke='#555' "
               "stroke-dasharray='4 3'/>\n<text x='%.1f' y='%.1f'>window %d x %d</text>\n",
               x, x, y_of(0, top), y_of(1.05, top), x + 4, y_of(0.04, top), w.ctas, w.blocks);
}

void srv_probe_put_svg(struct buf *b, const struct off_links *links)
{
    const int height = PANEL * (links->link_count > 0 ? links->link_count : 1);
    buf_printf(b,
               "<svg xmlns='http://www.w3.org/2000/svg' width='%d' height='%d' "
               "viewBox='0 0 %d %d' font-family='sans-serif' font-size='12'>\n"
               "<rect width='100%%' height='100%%' fill='white'/>\n",
               WIDTH, height, WIDTH, height);
    if (!links->link_count)
        buf_printf(b, "<text x='%d' y='%d'>No link was measured.</text>\n", LEFT, TOP);
    for (int i = 0; i < links->link_count; i++) {
        const struct off_link *k = &links->link[i];
        const int top = PANEL * i;
        put_axes(b, top);
        buf_printf(b,
                   "<text x='%d' y='%d' font-size='14'>Reading %s while every SM streams HBM: "
                   "<tspan fill='%s'>HBM, of %.2f TB/s</tspan>, <tspan fill='%s'>link, of %.1f "
                   "GB/s</tspan></text>\n",
                   LEFT, top + 28, k->name, hbm_colour, links->hbm_bytes_per_s / 1e12, link_colour,
                   k->read_bytes_per_s / 1e9);
        put_curve(b, links, k, top, true);
        put_curve(b, links, k, top, false);
        put_window(b, links, k, top);
    }
    buf_puts(b, "</svg>\n");
}
