#include "offload/mix.h"

#include <math.h>
#include <string.h>

#include "config/check.h"

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

/* --- one link --------------------------------------------------------------------------------- */

/* What a share of a tier's bytes costs. */
struct cost {
    double hbm_bytes;      /* of HBM, all of the tier's bytes together */
    double busy_s, idle_s; /* of the link: all of them, while HBM is busy and while it rests */
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
    return (struct cost){.hbm_bytes = t->bytes *
                                      (fmax(lost, s) + s), /* what is copied is written at least */
                         .busy_s = t->bytes * on_hull(s, 1 / t->read.read_bytes_per_s, at, both_s,
                                                      1 / t->copy.copy_bytes_per_s),
                         .idle_s = t->bytes * on_hull(s, 1 / read, at, both_s, 1 / copy)};
}

/* When a link is done whose costs are c, HBM being busy for hbm_s. */
static double done_s(const struct cost *c, double hbm_s)
{
    if (c->busy_s <= hbm_s) return c->busy_s;
    return hbm_s + (1 - hbm_s / c->busy_s) * c->idle_s;
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
    for (int t = 0; t < KN_TIER_MAX; t++) m->share[t] = (double)s.best[t] / OFF_MIX_STEPS;
    m->seconds = off_mix_seconds(m, m->share);
    m->direct_s = off_mix_seconds(m, none);
}

/* --- which tiles ------------------------------------------------------------------------------ */

/* Of tier t's tiles, as many as bring what is copied nearest to what is wanted. */
static int32_t take(const struct off_mix_product *p, int t, double wanted, uint64_t copied,
                    uint64_t most)
{
    const double tiles = floor((wanted - (double)copied) / (double)p->tile_bytes + 0.5);
    return (int32_t)fmin(fmax(tiles, 0), (double)size_min((uint64_t)p->tiles[t], most));
}

void off_mix_deal(struct off_mix_product *products, int32_t count, const double share[KN_TIER_MAX],
                  uint64_t product_bytes_max, uint64_t bytes[KN_TIER_MAX])
{
    double wanted[KN_TIER_MAX] = {0};
    memset(bytes, 0, KN_TIER_MAX * sizeof bytes[0]);
    for (int32_t i = 0; i < count; i++) {
        struct off_mix_product *p = &products[i];
        uint64_t room = product_bytes_max / p->tile_bytes;
        p->copied[0] = 0;
        for (int t = 1; t < KN_TIER_MAX; t++) {
            CHECK(share[t] >= 0 && share[t] <= 1);
            wanted[t] += share[t] * (double)p->tile_bytes * p->tiles[t];
            p->copied[t] = take(p, t, wanted[t], bytes[t], room);
            bytes[t] += (uint64_t)p->copied[t] * p->tile_bytes;
            room -= (uint64_t)p->copied[t];
            if (p->copied[t] < p->tiles[t]) room = 0; /* for those further out */
        }
    }
}
