/*
 * probe_svg.c - see probe.h: rates against bytes in flight, one panel a link.
 *
 * Both rates are drawn as shares of what they are alone, so that one axis serves: HBM's falls where
 * the link's has long been full.  Every point of the grid is a dot; a line goes through the means
 * of those with the same bytes in flight.
 */
#include <stdio.h>

#include "config/check.h"
#include "server/chart_svg.h"
#include "server/probe.h"

#define KIB_MIN 64
#define KIB_MAX 16384

/* One of a link's two rates: its points, and the means of those with as many bytes in flight. */
struct curve {
    const struct off_link *link;
    double kib[OFF_LINK_POINTS_MAX], share[OFF_LINK_POINTS_MAX];
    double mean_kib[OFF_LINK_POINTS_MAX], mean_share[OFF_LINK_POINTS_MAX];
    int mean_count;
    char name[64];
};

static double kib_of(const struct off_link_point *p)
{
    return (double)p->ctas * p->blocks * KN_BLOCK_BYTES / 1024;
}

static void write_percent(double value, char out[SRV_CHART_TICK_CAP])
{
    snprintf(out, SRV_CHART_TICK_CAP, "%.0f %%", 100 * value);
}

static void write_kib(double value, char out[SRV_CHART_TICK_CAP])
{
    if (value < 1024) snprintf(out, SRV_CHART_TICK_CAP, "%g KB", value);
    else snprintf(out, SRV_CHART_TICK_CAP, "%g MB", value / 1024);
}

static void hint(void *user, int i, struct buf *text)
{
    const struct curve *c = user;
    const struct off_link_point *p = &c->link->point[i];
    buf_printf(text, "%d SMs x %d blocks: HBM %.3f TB/s, link %.2f GB/s, trip %.2f us", p->ctas,
               p->blocks, p->hbm_bytes_per_s / 1e12, p->link_bytes_per_s / 1e9,
               p->trip_mean_s * 1e6);
}

/* The least number of bytes in flight above `kib`; 0: none. */
static double next_kib(const struct curve *c, double kib)
{
    double next = 0;
    for (int i = 0; i < c->link->point_count; i++)
        if (c->kib[i] > kib && (next == 0 || c->kib[i] < next)) next = c->kib[i];
    return next;
}

static void fill(struct curve *c, const struct off_links *l, const struct off_link *k, bool hbm)
{
    *c = (struct curve){.link = k};
    if (hbm) snprintf(c->name, sizeof c->name, "HBM, of %.2f TB/s", l->hbm_bytes_per_s / 1e12);
    else snprintf(c->name, sizeof c->name, "link, of %.1f GB/s", k->read_bytes_per_s / 1e9);
    for (int i = 0; i < k->point_count; i++) {
        c->kib[i] = kib_of(&k->point[i]);
        c->share[i] = hbm ? k->point[i].hbm_bytes_per_s / l->hbm_bytes_per_s
                          : k->point[i].link_bytes_per_s / k->read_bytes_per_s;
    }
    for (double kib = next_kib(c, 0); kib > 0; kib = next_kib(c, kib)) {
        double sum = 0;
        int count = 0;
        for (int i = 0; i < k->point_count; i++) {
            if (c->kib[i] != kib) continue;
            sum += c->share[i];
            count++;
        }
        c->mean_kib[c->mean_count] = kib;
        c->mean_share[c->mean_count++] = sum / count;
    }
}

static void put_link(struct buf *b, int panel, const struct off_links *l, const struct off_link *k)
{
    struct curve curve[2];
    struct srv_chart_line line[4];
    struct kn_window w = {0};
    char title[64], mark[64];
    const bool chosen = off_link_window(l, k, &w);
    snprintf(title, sizeof title, "Reading %s while every SM streams HBM", k->name);
    snprintf(mark, sizeof mark, "window %d x %d", w.ctas, w.blocks);
    for (int i = 0; i < 2; i++) {
        struct curve *c = &curve[i];
        fill(c, l, k, i == 0);
        line[2 * i] = (struct srv_chart_line){.name = c->name,
                                              .colour = i,
                                              .bare = true,
                                              .x = c->mean_kib,
                                              .y = c->mean_share,
                                              .count = c->mean_count};
        line[2 * i + 1] = (struct srv_chart_line){.colour = i,
                                                  .loose = true,
                                                  .x = c->kib,
                                                  .y = c->share,
                                                  .count = k->point_count,
                                                  .hint = hint,
                                                  .user = c};
    }
    const struct srv_chart chart = {
        .title = title,
        .x = {"remote bytes in flight", SRV_CHART_LOG2, KIB_MIN, KIB_MAX, write_kib},
        .y = {"of what it gives alone", SRV_CHART_LINEAR, 0, 1.05, write_percent},
        .line = line,
        .line_count = 4,
        .mark = chosen ? mark : NULL,
        .mark_x = (double)w.ctas * w.blocks * KN_BLOCK_BYTES / 1024};
    srv_chart_put(b, panel, &chart);
}

void srv_probe_put_svg(struct buf *b, const struct off_links *links)
{
    srv_chart_begin(b, links->link_count > 0 ? links->link_count : 1);
    if (!links->link_count) srv_chart_put_note(b, 0, "No link was measured.");
    for (int i = 0; i < links->link_count; i++) put_link(b, i, links, &links->link[i]);
    srv_chart_end(b);
}
