#include "server/compare_rows.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"

#define SAME_SHARE 1e-3
#define PROBED_LOW 1.04 /* a step may begin with what was copied before it: 1.03 was seen */

double srv_compare_free_share(const double rate[SRV_COMPARE_TIERS])
{
    const double all = rate[SRV_COMPARE_HBM] + rate[SRV_COMPARE_LINK];
    return all > 0 ? rate[SRV_COMPARE_LINK] / all : 0;
}

/* --- lists ------------------------------------------------------------------------------------ */

static bool insert_share(struct srv_comparison *c, double share, bool is_free)
{
    int at = 0;
    while (at < c->share_count && c->shares[at] < share) at++;
    for (int i = at - 1; i <= at; i++)
        if (i >= 0 && i < c->share_count && fabs(c->shares[i] - share) < SAME_SHARE) {
            if (is_free) c->free_index = i;
            return true;
        }
    if (c->share_count == SRV_COMPARE_SHARES_MAX) return false;
    memmove(&c->shares[at + 1], &c->shares[at],
            (size_t)(c->share_count - at) * sizeof c->shares[0]);
    c->shares[at] = share;
    c->share_count++;
    if (is_free) c->free_index = at;
    else if (c->free_index >= at) c->free_index++;
    return true;
}

enum status srv_compare_shares_read(struct srv_comparison *c, const char *text, char *err)
{
    c->share_count = 0;
    c->free_index = -1;
    for (const char *p = text; p;) {
        char part[OFF_PART_CAP], *end = part;
        const bool fits = off_take_part(&p, part);
        const bool is_free = fits && strcmp(part, "free") == 0;
        const double share = is_free ? srv_compare_free_share(c->rate)
                             : fits  ? strtod(part, &end)
                                     : NAN;
        if (!is_free && (!fits || end == part || *end || !(share >= 0 && share <= 1)))
            return err_set(err, ST_INVALID,
                           "--compare-offload '%.60s' is not a list of shares of the weights, each "
                           "between 0 and 1 or the word free: write 0,free,0.1,0.5,1",
                           text);
        if (!insert_share(c, share, is_free))
            return err_set(err, ST_INVALID, "--compare-offload has more than %d shares",
                           SRV_COMPARE_SHARES_MAX);
    }
    return ST_OK;
}

enum status srv_compare_names_read(const char *flag, const char *text, const char *const *known,
                                   int known_count, const char **out, int *count, char *err)
{
    *count = 0;
    for (const char *p = text; p;) {
        char part[OFF_PART_CAP], all[OFF_PART_CAP] = "";
        const bool fits = off_take_part(&p, part);
        int i = 0, at = 0;
        while (fits && i < known_count && strcmp(part, known[i])) i++;
        for (int k = 0; k < known_count; k++)
            at += snprintf(all + at, sizeof all - (size_t)at, "%s%s", k ? ", " : "", known[k]);
        CHECK(at < (int)sizeof all);
        if (!fits || i == known_count)
            return err_set(err, ST_INVALID, "%s '%.60s' is not a list of some of %s", flag, text,
                           all);
        for (int k = 0; k < *count; k++)
            if (out[k] == known[i])
                return err_set(err, ST_INVALID, "%s names %s twice", flag, part);
        out[(*count)++] = known[i];
    }
    return ST_OK;
}

/* --- rows ------------------------------------------------------------------------------------- */

const struct srv_compare_row *srv_compare_find(const struct srv_comparison *c,
                                               const char *placement, int share, int32_t batch,
                                               const char *mode)
{
    for (int i = 0; i < c->row_count; i++) {
        const struct srv_compare_row *r = &c->rows[i];
        if (r->missing[0] || r->batch != batch || r->offload != c->shares[share]) continue;
        if (strcmp(r->mode, SRV_COMPARE_NO_MODE) == 0) return r;
        if (strcmp(r->mode, mode) == 0 && strcmp(r->placement, placement) == 0) return r;
    }
    return NULL;
}

const struct srv_compare_row *srv_compare_best_other(const struct srv_comparison *c,
                                                     const char *placement, int share,
                                                     int32_t batch)
{
    const struct srv_compare_row *best = NULL;
    for (int m = 0; m < c->mode_count; m++) {
        if (strcmp(c->modes[m], SRV_COMPARE_AUTO) == 0) continue;
        const struct srv_compare_row *r = srv_compare_find(c, placement, share, batch, c->modes[m]);
        if (r && (!best || r->tpot_s < best->tpot_s)) best = r;
    }
    return best;
}

static double all_bytes(const struct srv_compare_row *r)
{
    return (double)r->bytes[SRV_COMPARE_HBM] + (double)r->bytes[SRV_COMPARE_LINK];
}

double srv_compare_bandwidth(const struct srv_compare_row *r)
{
    return all_bytes(r) / r->tpot_s;
}

double srv_compare_model_bandwidth(const struct srv_compare_row *r)
{
    return all_bytes(r) / r->model_s;
}

double srv_compare_link_bandwidth(const struct srv_compare_row *r)
{
    return (double)r->bytes[SRV_COMPARE_LINK] / r->tpot_s;
}

double srv_compare_of_copy(const struct srv_comparison *c, const struct srv_compare_row *r)
{
    if (c->copy_bytes_per_s <= 0 || r->bytes[SRV_COMPARE_LINK] == 0) return NAN;
    return srv_compare_link_bandwidth(r) / c->copy_bytes_per_s;
}

double srv_compare_faster_than_copy(const struct srv_comparison *c)
{
    double best = 0;
    for (int i = 0; i < c->row_count; i++)
        if (!c->rows[i].missing[0]) best = fmax(best, srv_compare_link_bandwidth(&c->rows[i]));
    return c->copy_bytes_per_s > 0 && best > PROBED_LOW * c->copy_bytes_per_s ? best : 0;
}

/* --- all of auto's ---------------------------------------------------------------------------- */

static int share_of(const struct srv_comparison *c, const struct srv_compare_row *r)
{
    int share = 0;
    while (c->shares[share] != r->offload) share++;
    return share;
}

static double over_best(const struct srv_comparison *c, const struct srv_compare_row *r)
{
    const struct srv_compare_row *best =
        srv_compare_best_other(c, r->placement, share_of(c, r), r->batch);
    return best ? r->tpot_s / best->tpot_s : NAN;
}

static double of_copy_bound(const struct srv_comparison *c, const struct srv_compare_row *r)
{
    return r->limit_bound == SRV_COMPARE_LINK ? srv_compare_of_copy(c, r) : NAN;
}

static double of_model(const struct srv_comparison *c, const struct srv_compare_row *r)
{
    (void)c;
    return r->model_s / r->tpot_s;
}

static double of_limit(const struct srv_comparison *c, const struct srv_compare_row *r)
{
    (void)c;
    return r->limit_s / r->tpot_s;
}

static struct srv_compare_figure figure_of(const struct srv_comparison *c, bool more_is_worse,
                                           double (*value)(const struct srv_comparison *c,
                                                           const struct srv_compare_row *r))
{
    static double
        values[SRV_COMPARE_PLACEMENTS_MAX * SRV_COMPARE_SHARES_MAX * SRV_BENCH_BATCHES_MAX];
    struct srv_compare_figure f = {0};
    for (int i = 0; i < c->row_count; i++) {
        const struct srv_compare_row *r = &c->rows[i];
        if (r->missing[0] || strcmp(r->mode, SRV_COMPARE_AUTO)) continue;
        const double v = value(c, r);
        if (!isfinite(v)) continue;
        if (!f.row || (more_is_worse ? v > f.worst : v < f.worst)) {
            f.worst = v;
            f.row = r;
        }
        CHECK(f.count < (int)ARRAY_COUNT(values));
        values[f.count++] = v;
    }
    if (!f.count) return f;
    struct srv_bench_summary summary;
    srv_bench_summarise(values, f.count, &summary);
    f.median = summary.median;
    return f;
}

void srv_compare_sum_up(const struct srv_comparison *c, struct srv_compare_sum *out)
{
    out->over_best = figure_of(c, true, over_best);
    out->of_copy = figure_of(c, false, of_copy_bound);
    out->of_model = figure_of(c, false, of_model);
    out->of_limit = figure_of(c, false, of_limit);
}

const char *srv_compare_bound_name(const struct srv_comparison *c, int bound)
{
    if (bound == OFF_PLAN_COMPUTE) return "compute";
    return bound == SRV_COMPARE_HBM ? "hbm" : c->tier;
}
