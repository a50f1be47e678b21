#include "offload/mix.h"

#include <math.h>
#include <string.h>

#include "config/check.h"

#define BOTH_MOST 1.015 /* 403 of 397 GB/s over NVLink; over PCIe there is no gain */

/* --- modes ------------------------------------------------------------------------------------ */

static const char *const mode_names[OFF_MODE_COUNT] = {"auto", "direct", "prefetch", "uva"};

const char *off_mode_name(enum off_mode mode)
{
    CHECK((size_t)mode < OFF_MODE_COUNT);
    return mode_names[mode];
}

bool off_mode_parse(const char *name, enum off_mode *out)
{
    for (int m = 0; m < OFF_MODE_COUNT; m++) {
        if (strcmp(name, mode_names[m])) continue;
        *out = (enum off_mode)m;
        return true;
    }
    return false;
}

bool off_mode_fetches_prompts(enum off_mode mode)
{
    return mode == OFF_MODE_AUTO || mode == OFF_MODE_PREFETCH;
}

/* --- one link --------------------------------------------------------------------------------- */

/* What a share of a tier's bytes costs. */
struct cost {
    double hbm_bytes;      /* of HBM, all of the tier's bytes together */
    double busy_s, idle_s; /* of the link: all of them, while HBM is busy and while it rests */
    double missed;         /* of HBM's time, the part that the link is not used */
};

/* The share at which both ways were measured at once. */
static double share_of_both(const struct off_mix_tier *t)
{
    return t->both.copy_bytes_per_s / (t->both.copy_bytes_per_s + t->both.read_bytes_per_s);
}

/* At share s, on the lines from (0, none) over (at, some) to (1, all). */
static double on_lines(double s, double none, double at, double some, double all)
{
    if (s <= at) return none + (some - none) * s / at;
    return some + (all - some) * (s - at) / (1 - at);
}

/* The same where the middle is left out if the ends do better without. */
static double on_hull(double s, double none, double at, double some, double all)
{
    return on_lines(s, none, at, fmin(some, none + (all - none) * at), all);
}

/* HBM's bytes that are lost to one over the link. */
static double lost_bytes(const struct off_mix_point *p, double hbm_bytes_per_s)
{
    return fmax(hbm_bytes_per_s - p->hbm_bytes_per_s, 0) /
           (p->read_bytes_per_s + p->copy_bytes_per_s);
}

/* How many copies a step has at share s. */
static int copies_of(const struct off_mix_tier *t, double s)
{
    double left = s * t->bytes * (1 - 1e-9);
    int items = 0;
    while (left > 0 && items < t->item_count) left -= t->item_bytes[items++] * t->group_count;
    return items * t->group_count;
}

static struct cost cost_of(const struct off_mix *m, const struct off_mix_tier *t, double s)
{
    const double at = share_of_both(t);
    const double both_s = 1 / (t->both.copy_bytes_per_s + t->both.read_bytes_per_s);
    /* A link is no slower for HBM's rest, whatever noise was measured. */
    const double read = fmax(t->read_bytes_per_s, t->read.read_bytes_per_s);
    const double copy = fmax(t->copy_bytes_per_s, t->copy.copy_bytes_per_s);
    const double lost = on_lines(s, lost_bytes(&t->read, m->hbm_bytes_per_s), at,
                                 lost_bytes(&t->both, m->hbm_bytes_per_s),
                                 lost_bytes(&t->copy, m->hbm_bytes_per_s));
    const double rest_s = t->group_count * OFF_MIX_REST_S + m->apart_bytes / m->hbm_bytes_per_s;
    const double gaps_s = copies_of(t, s) * s * OFF_MIX_GAP_S + (1 - s) * rest_s;
    const double best_s = fmin(both_s, 1 / t->read.read_bytes_per_s);
    return (struct cost){.hbm_bytes = t->bytes *
                                      (fmax(lost, s) + s), /* what is copied is written at least */
                         .busy_s = t->bytes * on_hull(s, 1 / t->read.read_bytes_per_s, at, both_s,
                                                      1 / t->copy.copy_bytes_per_s) +
                                   gaps_s,
                         .idle_s = t->bytes * on_hull(s, 1 / read, at, both_s, 1 / copy) + gaps_s,
                         .missed = s / 2 * fmax(1 - best_s * t->copy.copy_bytes_per_s, 0)};
}

/* When a link is done whose costs are c, HBM being busy for hbm_s. */
static double done_s(const struct cost *c, double hbm_s)
{
    const double missed_s = hbm_s * c->missed;
    if (c->busy_s + missed_s <= hbm_s) return c->busy_s + missed_s;
    return hbm_s + (1 - (hbm_s - missed_s) / c->busy_s) * c->idle_s;
}

static bool is_read(const struct off_mix *m, int t)
{
    return t < m->tier_count && m->tier[t].bytes > 0;
}

double off_mix_seconds(const struct off_mix *m, const double share[KN_TIER_MAX])
{
    struct cost cost[KN_TIER_MAX];
    double hbm_bytes = m->hbm_bytes;
    for (int t = 1; t < KN_TIER_MAX; t++) {
        if (!is_read(m, t)) continue;
        cost[t] = cost_of(m, &m->tier[t], share[t]);
        hbm_bytes += cost[t].hbm_bytes;
    }
    const double hbm_s = hbm_bytes / m->hbm_bytes_per_s;
    double seconds = hbm_s;
    for (int t = 1; t < KN_TIER_MAX; t++)
        if (is_read(m, t)) seconds = fmax(seconds, done_s(&cost[t], hbm_s));
    return seconds;
}

static struct off_mix_point point(double read, double copy, double hbm)
{
    return (struct off_mix_point){read, copy, hbm};
}

void off_mix_set_link(struct off_mix_tier *t, const struct off_links *links,
                      const struct off_link *k)
{
    struct kn_window w;
    double read = k->read_bytes_per_s, hbm = links->hbm_bytes_per_s;
    const bool has_window = off_link_window(links, k, &w);
    for (int i = 0; i < k->point_count && has_window; i++) {
        if (k->point[i].ctas != w.ctas || k->point[i].blocks != w.blocks) continue;
        read = k->point[i].link_bytes_per_s;
        hbm = k->point[i].hbm_bytes_per_s;
    }
    t->read_bytes_per_s = k->read_bytes_per_s;
    t->copy_bytes_per_s = k->copy_bytes_per_s;
    t->read = point(read, 0, hbm);
    t->both = point(k->both_read_bytes_per_s, k->both_copy_bytes_per_s, k->both_hbm_bytes_per_s);
    t->copy = point(0, k->busy_copy_bytes_per_s, k->busy_copy_hbm_bytes_per_s);
    /* Two ways at once are more than the better of them by little: what was measured beyond is
     * noise. */
    const double most = BOTH_MOST * fmax(k->read_bytes_per_s, k->copy_bytes_per_s);
    const double over = (t->both.read_bytes_per_s + t->both.copy_bytes_per_s) / most;
    if (over <= 1) return;
    t->both.read_bytes_per_s /= over;
    t->both.copy_bytes_per_s /= over;
}

/* --- the best shares -------------------------------------------------------------------------- */

/* Costs of every share of a tier, in steps of 1 / OFF_MIX_STEPS. */
struct choices {
    struct cost at[OFF_MIX_STEPS + 1];
    int last; /* 0: nothing to choose */
};

struct search {
    struct choices tier[KN_TIER_MAX];
    double copied[KN_TIER_MAX]; /* bytes that a step more of a tier's share copies */
    double hbm_bytes, hbm_bytes_per_s;
    int now[KN_TIER_MAX], best[KN_TIER_MAX];
    double best_s, best_copied;
};

static void consider(struct search *s)
{
    double hbm_bytes = s->hbm_bytes, copied = 0;
    for (int t = 1; t < KN_TIER_MAX; t++) {
        hbm_bytes += s->tier[t].at[s->now[t]].hbm_bytes;
        copied += s->copied[t] * s->now[t];
    }
    const double hbm_s = hbm_bytes / s->hbm_bytes_per_s;
    double seconds = hbm_s;
    for (int t = 1; t < KN_TIER_MAX; t++) {
        const struct cost *c = &s->tier[t].at[s->now[t]];
        if (c->busy_s > 0) seconds = fmax(seconds, done_s(c, hbm_s));
    }
    if (seconds > s->best_s || (seconds == s->best_s && copied >= s->best_copied)) return;
    s->best_s = seconds;
    s->best_copied = copied;
    memcpy(s->best, s->now, sizeof s->best);
}

/* Every combination of the choices of tier t and those after it. */
static void try_all(struct search *s, int t)
{
    if (t == KN_TIER_MAX) {
        consider(s);
        return;
    }
    for (s->now[t] = 0; s->now[t] <= s->tier[t].last; s->now[t]++) try_all(s, t + 1);
    s->now[t] = 0;
}

void off_mix_solve(struct off_mix *m)
{
    const double none[KN_TIER_MAX] = {0};
    struct search s = {
        .hbm_bytes = m->hbm_bytes, .hbm_bytes_per_s = m->hbm_bytes_per_s, .best_s = INFINITY};
    for (int t = 1; t < KN_TIER_MAX; t++) {
        if (!is_read(m, t)) continue;
        const struct off_mix_tier *tier = &m->tier[t];
        CHECK(tier->share_max >= 0 && tier->share_max <= 1);
        s.tier[t].last = (int)(tier->share_max * OFF_MIX_STEPS);
        s.copied[t] = tier->bytes / OFF_MIX_STEPS;
        for (int i = 0; i <= s.tier[t].last; i++)
            s.tier[t].at[i] = cost_of(m, tier, (double)i / OFF_MIX_STEPS);
    }
    try_all(&s, 1);
    m->direct_s = off_mix_seconds(m, none);
    const bool worth = s.best_s < (1 - OFF_MIX_GAIN) * m->direct_s;
    for (int t = 0; t < KN_TIER_MAX; t++)
        m->share[t] = worth ? (double)s.best[t] / OFF_MIX_STEPS : 0;
    m->seconds = off_mix_seconds(m, m->share);
}

bool off_mix_is_beyond(const struct off_mix *m, int tier)
{
    const struct off_mix_tier *t = &m->tier[tier];
    return t->bytes / t->read.read_bytes_per_s > OFF_MIX_BEYOND * m->hbm_bytes / m->hbm_bytes_per_s;
}

/* --- which tiles ------------------------------------------------------------------------------ */

static uint64_t tier_bytes(const struct off_mix_product *p, int t)
{
    return (uint64_t)p->tiles[t] * p->tile_bytes;
}

/* Whether all of a product's tiles in nearer remote tiles are copied. */
static bool is_next(const struct off_mix_product *p, int t)
{
    for (int n = 1; n < t; n++)
        if (p->copied[n] < p->tiles[n]) return false;
    return true;
}

/* Of tier t's tiles, as many as bring what is copied nearest to what is wanted. */
static int32_t take(const struct off_mix_product *p, int t, double bytes,
                    const struct off_mix_deal *d)
{
    uint64_t room = d->product_bytes_max / p->tile_bytes;
    for (int n = 1; n < t; n++) room -= (uint64_t)p->copied[n];
    if (!is_next(p, t)) return 0;
    const double tiles = fmin(fmax(floor(bytes / (double)p->tile_bytes + 0.5), 0),
                              (double)size_min((uint64_t)p->tiles[t], room));
    return tiles * (double)p->tile_bytes < (double)d->copy_bytes_min ? 0 : (int32_t)tiles;
}

/* The product of most bytes in tier t of those that are not dealt yet, whose `copied` is below 0.
 */
static struct off_mix_product *largest(struct off_mix_product *group, int32_t count, int t)
{
    struct off_mix_product *best = NULL;
    for (int32_t i = 0; i < count; i++)
        if (group[i].copied[t] < 0 && (!best || tier_bytes(&group[i], t) > tier_bytes(best, t)))
            best = &group[i];
    return best;
}

void off_mix_deal(struct off_mix_product *products, int32_t count, const struct off_mix_deal *d,
                  uint64_t bytes[KN_TIER_MAX])
{
    double wanted[KN_TIER_MAX] = {0};
    CHECK(d->group > 0 && count % d->group == 0);
    memset(bytes, 0, KN_TIER_MAX * sizeof bytes[0]);
    for (int32_t i = 0; i < count; i++) products[i].copied[0] = 0;
    for (int t = 1; t < KN_TIER_MAX; t++) {
        CHECK(d->share[t] >= 0 && d->share[t] <= 1);
        for (struct off_mix_product *g = products; g < products + count; g += d->group) {
            struct off_mix_product *p;
            bool enough = false;
            for (int32_t i = 0; i < d->group; i++) {
                wanted[t] += d->share[t] * (double)tier_bytes(&g[i], t);
                g[i].copied[t] = -1;
            }
            while ((p = largest(g, d->group, t))) {
                p->copied[t] = enough ? 0 : take(p, t, wanted[t] - (double)bytes[t], d);
                bytes[t] += (uint64_t)p->copied[t] * p->tile_bytes;
                enough |= p->copied[t] < p->tiles[t] &&
                          wanted[t] - (double)bytes[t] < (double)p->tile_bytes;
            }
        }
    }
}
