/*
 * compare_svg.c - see compare_report.h: a line a mode.  Both axes of rates and times are
 * logarithmic, for a step over a slow link takes a hundred times as long as one without; equal
 * distances are equal ratios.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "config/check.h"
#include "server/chart_svg.h"
#include "server/compare_report.h"

#define GB 1e9
#define MS 1e3
#define POINTS_MAX SRV_COMPARE_SHARES_MAX
#define MODEL_COLOUR 4 /* after those of the modes */

_Static_assert((int)SRV_BENCH_BATCHES_MAX <= (int)POINTS_MAX, "points of a line");

/* One panel: a line a mode, and one of the planner's model. */
struct panel {
    double x[POINTS_MAX], y[SRV_COMPARE_MODES_MAX + 1][POINTS_MAX];
    int count;
};

static double of_model(const struct srv_compare_row *r, bool rates)
{
    return rates ? srv_compare_model_bandwidth(r) / GB : r->model_s * MS;
}

/* Point i of every line, from the rows of that placement, share and batch. */
static void fill_point(const struct srv_comparison *c, const char *placement, int share,
                       int32_t batch, bool rates, struct panel *p)
{
    const int i = p->count++;
    p->x[i] = rates ? c->shares[share] : batch;
    p->y[c->mode_count][i] = NAN;
    for (int m = 0; m < c->mode_count; m++) {
        const struct srv_compare_row *r = srv_compare_find(c, placement, share, batch, c->modes[m]);
        p->y[m][i] = NAN;
        if (!r) continue;
        p->y[m][i] = rates ? srv_compare_bandwidth(r) / GB : r->tpot_s * MS;
        p->y[c->mode_count][i] = of_model(r, rates);
    }
}

/* False where no line has a point. */
static bool find_range(const struct panel *p, int lines, double *low, double *high)
{
    *low = INFINITY;
    *high = 0;
    for (int l = 0; l < lines; l++)
        for (int i = 0; i < p->count; i++) {
            if (!isfinite(p->y[l][i])) continue;
            *low = fmin(*low, p->y[l][i]);
            *high = fmax(*high, p->y[l][i]);
        }
    return *high > 0;
}

static void write_percent(double value, char out[SRV_CHART_TICK_CAP])
{
    snprintf(out, SRV_CHART_TICK_CAP, "%.4g %%", 100 * value);
}

static void put_panel(struct buf *b, int at, const struct srv_comparison *c, const struct panel *p,
                      const char *title, const struct srv_chart_axis *x, const char *y_title,
                      const char *model)
{
    struct srv_chart_line line[SRV_COMPARE_MODES_MAX + 1];
    double low, high;
    const int lines = c->mode_count + 1;
    if (!find_range(p, lines, &low, &high)) {
        char text[200];
        snprintf(text, sizeof text, "%s: nothing was measured.", title);
        srv_chart_put_note(b, at, text);
        return;
    }
    for (int l = 0; l < lines; l++) {
        const bool is_model = l == c->mode_count;
        line[l] = (struct srv_chart_line){.name = is_model ? model : c->modes[l],
                                          .colour = is_model ? MODEL_COLOUR : l,
                                          .dashed = is_model,
                                          .bare = is_model,
                                          .x = p->x,
                                          .y = p->y[l],
                                          .count = p->count};
    }
    const struct srv_chart chart = {.title = title,
                                    .x = *x,
                                    .y = {y_title, SRV_CHART_LOG10, low / 1.2, high * 1.2, NULL},
                                    .line = line,
                                    .line_count = lines};
    srv_chart_put(b, at, &chart);
}

void srv_compare_put_bandwidth_svg(struct buf *b, const struct srv_comparison *c)
{
    const double most = c->shares[c->share_count - 1];
    const struct srv_chart_axis x = {"share of the weights that is remote", SRV_CHART_LINEAR, 0,
                                     most > 0 ? most : 1, write_percent};
    srv_chart_begin(b, c->placement_count * c->batch_count);
    for (int i = 0; i < c->placement_count * c->batch_count; i++) {
        const char *placement = c->placements[i / c->batch_count];
        const int32_t batch = c->batches[i % c->batch_count];
        struct panel p = {.count = 0};
        char title[200];
        for (int s = 0; s < c->share_count; s++) fill_point(c, placement, s, batch, true, &p);
        snprintf(title, sizeof title,
                 "Bytes of a step over its time: batch %d, %s placement, HBM and %s", batch,
                 placement, c->tier);
        put_panel(b, i, c, &p, title, &x, "GB/s", "EB(x), the planner's floor");
    }
    srv_chart_end(b);
}

void srv_compare_put_tpot_svg(struct buf *b, const struct srv_comparison *c)
{
    const double least = c->batches[0], most = c->batches[c->batch_count - 1];
    const struct srv_chart_axis x = {"sequences at once", SRV_CHART_LOG2, least / 1.1, most * 1.1,
                                     NULL};
    srv_chart_begin(b, c->placement_count * c->share_count);
    for (int i = 0; i < c->placement_count * c->share_count; i++) {
        const char *placement = c->placements[i / c->share_count];
        const int share = i % c->share_count;
        struct panel p = {.count = 0};
        char title[200];
        for (int k = 0; k < c->batch_count; k++)
            fill_point(c, placement, share, c->batches[k], false, &p);
        snprintf(title, sizeof title,
                 "Time per output token: %.4g %% of the weights in %s, %s placement",
                 100 * c->shares[share], c->tier, placement);
        put_panel(b, i, c, &p, title, &x, "ms", "the planner's floor");
    }
    srv_chart_end(b);
}
