/*
 * plan.c - see plan.h.
 *
 * What a byte moved from HBM to a link costs an operation: -1/B_hbm while memory binds it and its
 * share out is below the free fraction; nothing while compute hides it; +1/B_remote after that; and
 * next to nothing throughout where a step reads little of what is stored, as of the embedding
 * table. Every curve is convex.  With one link, taking the cheapest byte each time is best.  With
 * several of limited size it is not: a byte may have to make room in one link for another, and
 * reading one operation from two links side by side pays only when both are moved together.
 * Marginal costs then have to be weighed for all tiers at once, which is a linear program,
 *
 *     least  sum u_i    with  c_i s_ij / B_j - u_i <= T_i     (u_i: what time_i is above T_i)
 *                             sum_j s_ij >= S_i               (every byte lies somewhere)
 *                             sum_i s_ij <= K_j       (of all, and of pooled operations apart)
 *
 * s bytes stored, c the share of them a step reads, K capacities.  Instances of an operation are
 * alike and their time is convex, so an even division is best and they are one row.  The dual
 * simplex method begins with all s and u at zero, the step that reads nothing, whose costs are
 * right and whose bytes are missing, and places bytes by least marginal cost until none is missing.
 * Bland's rule keeps it from going in circles.  Some billionths a byte make it prefer, where
 * nothing else decides, what a step reads less of, and then nearer tiers: in a step that computes
 * for long a table and a product may both leave for nothing, but the link is not idle for the
 * product, and what the model takes for hidden a machine may not hide.
 *
 * Whole tiles.  s_ij is rounded down; what is left of each operation, larger tiles first, goes
 * where there is room and it costs least; then tiles are moved, and exchanged between two
 * operations, as long as that makes them faster.  With m tiers, g the bytes of a tile, count
 * instances:
 *
 *   - rounding down leaves at most m tiles of an operation, each of which adds at most
 *     c g / min B to the sum of its tier's times;
 *   - an instance gets less than one tile more in a tier than the mean (off_plan_instance_tiles
 *     takes differences of two roundings of sums), which adds at most c g / min B to its time;
 *   - moves only lower the time, and those that level shares do not raise it.
 *
 * So the step is at most sum_i (count_i + m) c_i g_i / min B above the linear program's, which no
 * placement is below.  And a tile finds no room only where every tier has less than g left while
 * its g are missing: where all tiles together leave less than (m - 1) g free, or with pools, of
 * which one may have room for tiles that others lack, those of a kind less than m tiles of each
 * operation.
 *
 * KV and weights.  Attention's bytes are KV: an operation like others, whose tiles are pages.  A
 * step reads weights and pages one after the other, so each operation has the link for itself while
 * it runs, and hides its own free fraction there: where bytes must leave, that of the products and
 * that of attention leave for nothing, which neither could alone.
 */
#include "offload/plan.h"

#include <math.h>
#include <string.h>

#include "config/check.h"
#include "config/size.h"

#define ROWS_MAX (OFF_PLAN_OPS_MAX * (KN_TIER_MAX + 1) + 2 * KN_TIER_MAX)
#define COLS_MAX (OFF_PLAN_OPS_MAX * (KN_TIER_MAX + 1))
#define PIVOTS_MAX 100000
#define SWEEPS_MAX 100 /* each only shortens the step */
#define NEARER_COST 1e-9
#define READ_COST (KN_TIER_MAX * NEARER_COST)
#define MISSING 1e-11 /* of all bytes: below it none is */
#define NO_ENTRY 1e-11

/* basic variables + a * others = rhs, which is the last column; the last row holds the costs. */
struct lp {
    double a[ROWS_MAX + 1][COLS_MAX + 1];
    int basic[ROWS_MAX], other[COLS_MAX]; /* which variable; below cols: u and s, else a slack */
    int rows, cols;
};

/* What is left of each tier: [0] of its bytes, [1] of its pool, where there is one. */
struct room {
    int64_t bytes[2][KN_TIER_MAX];
    bool apart; /* tier 0 has a pool too */
};

static int kind_of(const struct room *r, const struct off_plan_op *op, int tier)
{
    return op->pooled && (tier > 0 || r->apart);
}

static int64_t *room_of(struct room *r, const struct off_plan_op *op, int tier)
{
    return &r->bytes[kind_of(r, op, tier)][tier];
}

/* As if `tiles` went from a tier to another, whether or not there is room. */
static void shift(struct room *r, const struct off_plan_op *op, int64_t tiles, int from, int to)
{
    *room_of(r, op, from) += tiles * (int64_t)op->tile_bytes;
    *room_of(r, op, to) -= tiles * (int64_t)op->tile_bytes;
}

static bool is_enough(const struct room *r)
{
    for (int j = 0; j < KN_TIER_MAX; j++)
        if (r->bytes[0][j] < 0 || r->bytes[1][j] < 0) return false;
    return true;
}

static uint64_t op_bytes(const struct off_plan_op *op)
{
    return (uint64_t)op->count * (uint64_t)op->tile_count * op->tile_bytes;
}

static double read_share(const struct off_plan_op *op)
{
    return op->read_bytes / ((double)op->tile_bytes * op->tile_count);
}

/* --- the linear program ----------------------------------------------------------------------- */

static void pivot(struct lp *lp, int row, int col)
{
    double *at = lp->a[row], inverse = 1 / at[col];
    for (int j = 0; j <= lp->cols; j++) at[j] *= inverse;
    at[col] = inverse;
    for (int i = 0; i <= lp->rows; i++) {
        double factor = lp->a[i][col];
        if (i == row || factor == 0) continue;
        for (int j = 0; j <= lp->cols; j++) lp->a[i][j] -= factor * at[j];
        lp->a[i][col] = -factor * inverse;
    }
    int variable = lp->basic[row];
    lp->basic[row] = lp->other[col];
    lp->other[col] = variable;
}

/* False where it did not end, which only rounding could cause. */
static bool minimise(struct lp *lp)
{
    const double *cost = lp->a[lp->rows];
    for (int pivots = 0; pivots < PIVOTS_MAX; pivots++) {
        int row = -1, col = -1;
        for (int i = 0; i < lp->rows; i++)
            if (lp->a[i][lp->cols] < -MISSING && (row < 0 || lp->basic[i] < lp->basic[row]))
                row = i;
        if (row < 0) return true;
        double best = INFINITY;
        for (int j = 0; j < lp->cols; j++) {
            if (lp->a[row][j] >= -NO_ENTRY) continue;
            double ratio = cost[j] / -lp->a[row][j];
            if (ratio > best || (ratio == best && lp->other[j] > lp->other[col])) continue;
            best = ratio;
            col = j;
        }
        if (col < 0) return false;
        pivot(lp, row, col);
    }
    return false;
}

/* Variable of operation i: u at 0, s of tier j at 1 + j. */
static int variable_of(const struct off_plan *p, int i, int k)
{
    return i * (p->tier_count + 1) + k;
}

/* In units of all bytes, and of the time the fastest tier takes for them. */
static void write_rows(struct lp *lp, const struct off_plan *p, const struct room *room,
                       double bytes, double unit_s)
{
    const int m = p->tier_count;
    memset(lp, 0, sizeof *lp);
    lp->cols = p->op_count * (m + 1);
    lp->rows = lp->cols + 2 * m;
    for (int j = 0; j < lp->cols; j++) lp->other[j] = j;
    for (int i = 0; i < lp->rows; i++) lp->basic[i] = lp->cols + i;
    for (int i = 0; i < p->op_count; i++) {
        const struct off_plan_op *op = &p->op[i];
        double *all = lp->a[variable_of(p, i, m)];
        lp->a[lp->rows][variable_of(p, i, 0)] = 1;
        for (int j = 0; j < m && !op->pinned; j++) {
            const int kind = kind_of(room, op, j);
            double *row = lp->a[variable_of(p, i, j)], *tier = lp->a[lp->cols + kind * m + j];
            int s = variable_of(p, i, 1 + j);
            row[variable_of(p, i, 0)] = -1;
            row[s] = read_share(op) * bytes / p->tier[j].bytes_per_s / unit_s;
            row[lp->cols] = op->compute_s * op->count / unit_s;
            all[s] = -1;
            tier[s] = 1;
            tier[lp->cols] = (double)room->bytes[kind][j] / bytes;
            lp->a[lp->rows][s] = j ? NEARER_COST * j + READ_COST * read_share(op) : 0;
        }
        all[lp->cols] = op->pinned ? 0 : -(double)op_bytes(op) / bytes;
    }
}

/* share[i][j]: bytes of operation i in tier j. */
static enum status relax(struct off_plan *p, const struct room *room,
                         double share[OFF_PLAN_OPS_MAX][KN_TIER_MAX], char *err)
{
    struct lp lp;
    double bytes = 0, fastest = 0;
    for (int i = 0; i < p->op_count; i++) bytes += (double)op_bytes(&p->op[i]);
    for (int j = 0; j < p->tier_count; j++) fastest = fmax(fastest, p->tier[j].bytes_per_s);
    double unit_s = bytes / fastest;
    write_rows(&lp, p, room, bytes, unit_s);
    if (!minimise(&lp))
        return err_set(err, ST_LIMIT,
                       "no plan was found: bandwidths, sizes or times of this machine are too far "
                       "apart for the arithmetic");
    p->relaxed_s = 0;
    for (int i = 0; i < p->op_count; i++) {
        const struct off_plan_op *op = &p->op[i];
        double least = op->pinned ? op->read_bytes / p->tier[0].bytes_per_s : 0;
        p->relaxed_s += op->count * fmax(op->compute_s, least);
    }
    for (int r = 0; r < lp.rows; r++) {
        if (lp.basic[r] >= lp.cols) continue;
        int i = lp.basic[r] / (p->tier_count + 1), k = lp.basic[r] % (p->tier_count + 1);
        if (k) share[i][k - 1] = lp.a[r][lp.cols] * bytes;
        else p->relaxed_s += lp.a[r][lp.cols] * unit_s;
    }
    return ST_OK;
}

/* --- whole tiles ------------------------------------------------------------------------------ */

/* Tiles of an instance up to and with a tier: the sums over tiers are divided evenly and the first
 * instances take what is left over, so that a sum is never below one of fewer tiers. */
static int32_t tiles_through(const struct off_plan_op *op, int32_t instance, int tier)
{
    int64_t sum = 0;
    for (int j = 0; j <= tier; j++) sum += op->tiles[j];
    return (int32_t)(sum / op->count + (instance < sum % op->count));
}

int32_t off_plan_instance_tiles(const struct off_plan_op *op, int32_t instance, int tier)
{
    int32_t before = tier ? tiles_through(op, instance, tier - 1) : 0;
    return tiles_through(op, instance, tier) - before;
}

uint64_t off_plan_stored_bytes(const struct off_plan_op *op, int tier)
{
    return (uint64_t)op->tiles[tier] * op->tile_bytes;
}

double off_plan_read_bytes(const struct off_plan_op *op, int tier)
{
    return op->read_bytes * (double)op->tiles[tier] / op->tile_count;
}

double off_plan_tile_error_s(const struct off_plan *p)
{
    double error = 0, slowest = INFINITY;
    for (int j = 0; j < p->tier_count; j++) slowest = fmin(slowest, p->tier[j].bytes_per_s);
    for (int i = 0; i < p->op_count; i++) {
        const struct off_plan_op *op = &p->op[i];
        double tile_s = op->read_bytes / op->tile_count / slowest;
        if (!op->pinned) error += tile_s * (op->count + p->tier_count);
    }
    return error;
}

/* Adds each instance's time to that of what binds it; waits[0] is compute, waits[1 + j] tier j. */
static double op_seconds(const struct off_plan *p, const struct off_plan_op *op,
                         double waits[KN_TIER_MAX + 1])
{
    double sum = 0;
    for (int32_t k = 0; k < op->count; k++) {
        double longest = op->compute_s;
        int bound = OFF_PLAN_COMPUTE;
        for (int j = 0; j < p->tier_count; j++) {
            double read = op->read_bytes / op->tile_count * off_plan_instance_tiles(op, k, j);
            double seconds = read / p->tier[j].bytes_per_s;
            if (seconds <= longest) continue;
            longest = seconds;
            bound = j;
        }
        waits[1 + bound] += longest;
        sum += longest;
    }
    return sum;
}

/* The operation's time with one tile moved; -1: from nowhere. */
static double seconds_after(const struct off_plan *p, const struct off_plan_op *op, int from,
                            int to)
{
    struct off_plan_op after = *op;
    double waits[KN_TIER_MAX + 1] = {0};
    if (from >= 0) after.tiles[from]--;
    after.tiles[to]++;
    return op_seconds(p, &after, waits);
}

static void round_down(struct off_plan *p, double share[OFF_PLAN_OPS_MAX][KN_TIER_MAX],
                       struct room *room, int64_t *left)
{
    for (int i = 0; i < p->op_count; i++) {
        struct off_plan_op *op = &p->op[i];
        left[i] = op->pinned ? 0 : (int64_t)op->count * op->tile_count;
        for (int j = 0; j < p->tier_count && !op->pinned; j++) {
            double tiles = floor(share[i][j] / (double)op->tile_bytes + 1e-6);
            int64_t whole = (int64_t)fmin(fmax(tiles, 0), (double)left[i]);
            int64_t *here = room_of(room, op, j), most = *here / (int64_t)op->tile_bytes;
            op->tiles[j] = whole < most ? whole : most;
            *here -= (int64_t)off_plan_stored_bytes(op, j);
            left[i] -= op->tiles[j];
        }
    }
}

/* Where one more tile of op costs least, or -1: no room. */
static int find_tier(const struct off_plan *p, const struct off_plan_op *op, struct room *room)
{
    int best = -1;
    double best_s = INFINITY;
    for (int j = 0; j < p->tier_count; j++) {
        if (*room_of(room, op, j) < (int64_t)op->tile_bytes) continue;
        double seconds = seconds_after(p, op, -1, j);
        if (seconds >= best_s) continue;
        best = j;
        best_s = seconds;
    }
    return best;
}

/* Has as many tiles of another operation leave a tier as a tile of op lacks there, where that costs
 * least: with pools, a tier may be full of what has room elsewhere.  The tier, or -1. */
static int make_room(struct off_plan *p, const struct off_plan_op *op, struct room *room)
{
    struct off_plan_op *best = NULL, best_after;
    struct room best_room;
    double least_s = INFINITY, waits[KN_TIER_MAX + 1] = {0};
    int at = -1;
    for (int i = 0; i < p->op_count; i++) {
        struct off_plan_op *other = &p->op[i];
        for (int from = 0; from < p->tier_count && !other->pinned && other != op; from++)
            for (int to = 0; to < p->tier_count; to++) {
                const int64_t lack = (int64_t)op->tile_bytes - *room_of(room, op, from);
                const int64_t n = (int64_t)div_up((size_t)lack, other->tile_bytes);
                struct off_plan_op after = *other;
                struct room then = *room;
                if (from == to || other->tiles[from] < n) continue;
                shift(&then, other, n, from, to);
                if (!is_enough(&then) || *room_of(&then, op, from) < (int64_t)op->tile_bytes)
                    continue;
                after.tiles[from] -= n;
                after.tiles[to] += n;
                const double seconds = op_seconds(p, &after, waits) - op_seconds(p, other, waits);
                if (seconds >= least_s) continue;
                least_s = seconds;
                best = other, best_after = after, best_room = then, at = from;
            }
    }
    if (!best) return -1;
    *best = best_after;
    *room = best_room;
    return at;
}

static enum status place_left(struct off_plan *p, struct room *room, int64_t *left, char *err)
{
    char text[SIZE_TEXT_CAP];
    for (;;) {
        int next = -1;
        for (int i = 0; i < p->op_count; i++)
            if (left[i] && (next < 0 || p->op[i].tile_bytes > p->op[next].tile_bytes)) next = i;
        if (next < 0) return ST_OK;
        struct off_plan_op *op = &p->op[next];
        int tier = find_tier(p, op, room);
        if (tier < 0) tier = make_room(p, op, room);
        if (tier < 0)
            return err_set(err, ST_LIMIT,
                           "the tiers hold the model's bytes, but not in whole tiles: a tile of %s "
                           "(%s) has no room in any",
                           op->name, size_text(op->tile_bytes, text));
        op->tiles[tier]++;
        *room_of(room, op, tier) -= (int64_t)op->tile_bytes;
        left[next]--;
    }
}

/* Moves tiles of op one at a time as long as that makes it faster. */
static void improve(const struct off_plan *p, struct off_plan_op *op, struct room *room)
{
    for (bool moved = true; moved;) {
        double waits[KN_TIER_MAX + 1] = {0}, now = op_seconds(p, op, waits);
        moved = false;
        for (int from = 0; from < p->tier_count && !moved; from++)
            for (int to = 0; to < p->tier_count && !moved; to++) {
                if (to == from || !op->tiles[from] ||
                    *room_of(room, op, to) < (int64_t)op->tile_bytes)
                    continue;
                if (seconds_after(p, op, from, to) >= now * (1 - 1e-12)) continue;
                op->tiles[from]--;
                op->tiles[to]++;
                shift(room, op, 1, from, to);
                moved = true;
            }
    }
}

/* na tiles of `a` go from a tier to another and nb of `b` the other way, where there is room and
 * both together become faster; else nothing happens. */
static bool exchange(const struct off_plan *p, struct off_plan_op *a, int64_t na,
                     struct off_plan_op *b, int64_t nb, int from, int to, struct room *room)
{
    struct room after = *room;
    double waits[KN_TIER_MAX + 1] = {0};
    if (na <= 0 || a->tiles[from] < na || b->tiles[to] < nb) return false;
    shift(&after, a, na, from, to);
    shift(&after, b, nb, to, from);
    if (!is_enough(&after)) return false;
    const struct off_plan_op a_was = *a, b_was = *b;
    double was = op_seconds(p, a, waits) + op_seconds(p, b, waits);
    a->tiles[from] -= na;
    a->tiles[to] += na;
    b->tiles[to] -= nb;
    b->tiles[from] += nb;
    if (op_seconds(p, a, waits) + op_seconds(p, b, waits) < was * (1 - 1e-9)) {
        *room = after;
        return true;
    }
    *a = a_was;
    *b = b_was;
    return false;
}

/* Whole tiles of one operation may wait for a link where those of another would not.  As many of b
 * as make room for one of a, or as many of a as find room for one of b. */
static bool improve_pair(const struct off_plan *p, struct off_plan_op *a, struct off_plan_op *b,
                         struct room *room)
{
    const int64_t a_bytes = (int64_t)a->tile_bytes, b_bytes = (int64_t)b->tile_bytes;
    bool moved = false;
    for (int from = 0; from < p->tier_count; from++)
        for (int to = 0; to < p->tier_count; to++)
            for (bool again = from != to; again; moved |= again) {
                const int64_t left = *room_of(room, a, to);
                int64_t nb = left < a_bytes ? (a_bytes - left + b_bytes - 1) / b_bytes : 0;
                int64_t na = (left + b_bytes) / a_bytes;
                if (na > a->tiles[from]) na = a->tiles[from];
                again = exchange(p, a, 1, b, nb, from, to, room) ||
                        exchange(p, a, na, b, 1, from, to, room);
            }
    return moved;
}

static void improve_pairs(struct off_plan *p, struct room *room)
{
    bool moved = true;
    for (int sweep = 0; moved && sweep < SWEEPS_MAX; sweep++) {
        moved = false;
        for (int i = 0; i < p->op_count; i++)
            for (int k = 0; k < p->op_count; k++)
                if (i != k && !p->op[i].pinned && !p->op[k].pinned)
                    moved |= improve_pair(p, &p->op[i], &p->op[k], room);
    }
}

/* --- equal shares ----------------------------------------------------------------------------- */

static uint64_t common_divisor(uint64_t a, uint64_t b)
{
    while (b) {
        uint64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

static double share_in(const struct off_plan_op *op, int tier)
{
    return (double)op->tiles[tier] / ((double)op->count * op->tile_count);
}

/* Brings the shares of two operations in a tier nearer to each other, where that makes a step no
 * longer: the one with more gives bytes back to tier 0, the other gives as many. */
static bool level_pair(const struct off_plan *p, struct off_plan_op *more, struct off_plan_op *less,
                       int tier, struct room *room)
{
    const uint64_t divisor = common_divisor(more->tile_bytes, less->tile_bytes);
    const int64_t nm = (int64_t)(less->tile_bytes / divisor),
                  nl = (int64_t)(more->tile_bytes / divisor);
    const double step = (double)nm / ((double)more->count * more->tile_count) +
                        (double)nl / ((double)less->count * less->tile_count);
    double waits[KN_TIER_MAX + 1] = {0};
    int64_t times = (int64_t)((share_in(more, tier) - share_in(less, tier)) / step);
    times = times < more->tiles[tier] / nm ? times : more->tiles[tier] / nm;
    times = times < less->tiles[0] / nl ? times : less->tiles[0] / nl;
    const struct off_plan_op more_was = *more, less_was = *less;
    const double was = op_seconds(p, more, waits) + op_seconds(p, less, waits);
    for (; times > 0; times /= 2) {
        struct room after = *room;
        shift(&after, more, times * nm, tier, 0);
        shift(&after, less, times * nl, 0, tier);
        if (!is_enough(&after)) continue;
        more->tiles[tier] -= times * nm;
        more->tiles[0] += times * nm;
        less->tiles[0] -= times * nl;
        less->tiles[tier] += times * nl;
        if (op_seconds(p, more, waits) + op_seconds(p, less, waits) <= was * (1 + 1e-11)) {
            *room = after;
            return true;
        }
        *more = more_was;
        *less = less_was;
    }
    return false;
}

/* Beyond the free fraction every byte of a link costs the same, whose ever it is, and the linear
 * program takes all of one operation before it begins with the next.  In the model that is as good
 * as any; on a machine, a kernel with nothing in HBM leaves HBM idle and one with little on the
 * link leaves the link idle between kernels.  So operations of which a step reads everything get
 * equal shares, as far as that costs nothing. */
static void level(struct off_plan *p, struct room *room)
{
    bool moved = true;
    for (int sweep = 0; moved && sweep < SWEEPS_MAX; sweep++) {
        moved = false;
        for (int i = 0; i < p->op_count; i++)
            for (int k = 0; k < p->op_count; k++) {
                struct off_plan_op *a = &p->op[i], *b = &p->op[k];
                if (i == k || a->pinned || b->pinned || read_share(a) < 0.5 || read_share(b) < 0.5)
                    continue;
                for (int j = 1; j < p->tier_count; j++) moved |= level_pair(p, a, b, j, room);
            }
    }
}

/* --- all of it -------------------------------------------------------------------------------- */

static int longest_wait(const double waits[KN_TIER_MAX + 1], int tier_count)
{
    int most = 0;
    for (int r = 1; r <= tier_count; r++)
        if (waits[r] > waits[most]) most = r;
    return most - 1;
}

void off_plan_sum_up(struct off_plan *p)
{
    double waits[KN_TIER_MAX + 1] = {0};
    p->seconds = 0;
    for (int i = 0; i < p->op_count; i++) {
        double own[KN_TIER_MAX + 1] = {0};
        p->op[i].seconds = op_seconds(p, &p->op[i], own);
        p->op[i].bound = longest_wait(own, p->tier_count);
        p->seconds += p->op[i].seconds;
        for (int r = 0; r <= p->tier_count; r++) waits[r] += own[r];
    }
    p->bound = longest_wait(waits, p->tier_count);
}

/* *room: what the tiers hold beside what is pinned, which is placed. */
static enum status pin(struct off_plan *p, struct room *room, char *err)
{
    uint64_t pinned[2] = {0};
    char need[SIZE_TEXT_CAP], have[SIZE_TEXT_CAP];
    CHECK(p->tier_count >= 1 && p->tier_count <= KN_TIER_MAX);
    CHECK(p->op_count >= 1 && p->op_count <= OFF_PLAN_OPS_MAX);
    *room = (struct room){.apart = p->pool_bytes[0] > 0};
    for (int j = 0; j < p->tier_count; j++) {
        CHECK(p->tier[j].bytes_per_s > 0);
        CHECK(p->tier[j].bytes <= INT64_MAX / 2 && p->pool_bytes[j] <= INT64_MAX / 2);
        room->bytes[0][j] = (int64_t)p->tier[j].bytes;
        room->bytes[1][j] = (int64_t)p->pool_bytes[j];
    }
    for (int i = 0; i < p->op_count; i++) {
        struct off_plan_op *op = &p->op[i];
        CHECK(op->count > 0 && op->tile_count > 0 && op->tile_bytes > 0);
        CHECK(op->read_bytes >= 0 && op->compute_s >= 0);
        memset(op->tiles, 0, sizeof op->tiles);
        if (!op->pinned) continue;
        pinned[kind_of(room, op, 0)] += op_bytes(op);
        op->tiles[0] = (int64_t)op->count * op->tile_count;
    }
    for (int kind = 0; kind < 2; kind++) {
        const uint64_t held = (uint64_t)room->bytes[kind][0];
        if (pinned[kind] > held)
            return err_set(err, ST_LIMIT,
                           "what must lie in %s (KV, norms, biases) needs %s, and %s may be used "
                           "there",
                           p->tier[0].name, size_text(pinned[kind], need), size_text(held, have));
        room->bytes[kind][0] -= (int64_t)pinned[kind];
    }
    return ST_OK;
}

/* Whether the bytes of all operations have room, and those of each kind that is not pinned: then
 * there is a placement of parts as small as one likes. */
static enum status check_room(const struct off_plan *p, const struct room *room, char *err)
{
    uint64_t need[2] = {0}, held[2] = {0}, all_need = 0, all_held = 0;
    char needed[SIZE_TEXT_CAP], have[SIZE_TEXT_CAP];
    for (int i = 0; i < p->op_count; i++) {
        all_need += op_bytes(&p->op[i]);
        if (!p->op[i].pinned) need[p->op[i].pooled] += op_bytes(&p->op[i]);
    }
    for (int j = 0; j < p->tier_count; j++) {
        all_held += p->tier[j].bytes + p->pool_bytes[j];
        for (int kind = 0; kind < 2; kind++) held[kind] += (uint64_t)room->bytes[kind][j];
    }
    if (!room->apart) held[1] += (uint64_t)room->bytes[0][0];
    if (all_need > all_held)
        return err_set(err, ST_LIMIT, "the model needs %s with its KV, all tiers hold %s",
                       size_text(all_need, needed), size_text(all_held, have));
    for (int kind = 0; kind < 2; kind++)
        if (need[kind] > held[kind])
            return err_set(err, ST_LIMIT, "%s %s, and all tiers hold %s of it",
                           kind ? "the KV cache needs" : "what may leave of the weights is",
                           size_text(need[kind], needed), size_text(held[kind], have));
    return ST_OK;
}

enum status off_plan_solve(struct off_plan *p, char *err)
{
    struct room room;
    int64_t left[OFF_PLAN_OPS_MAX];
    double share[OFF_PLAN_OPS_MAX][KN_TIER_MAX] = {{0}};
    enum status st;
    if ((st = pin(p, &room, err)) || (st = check_room(p, &room, err)) ||
        (st = relax(p, &room, share, err)))
        return st;
    round_down(p, share, &room, left);
    if ((st = place_left(p, &room, left, err))) return st;
    for (int i = 0; i < p->op_count; i++)
        if (!p->op[i].pinned) improve(p, &p->op[i], &room);
    improve_pairs(p, &room);
    level(p, &room);
    off_plan_sum_up(p);
    return ST_OK;
}
