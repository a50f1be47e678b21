#include "offload/congestion.h"

#include <math.h>
#include <string.h>

#include "config/check.h"

/* Of the defaults: 64 KB to 4 MB in flight, 64 CTAs x 4 blocks. */
#define CTAS_MAX 64
#define LEAST 4
#define CAP 256

/* Readings are summed until there are EPOCH_READINGS of them, or EPOCH_READINGS_MIN and EPOCH_NS of
 * busy time; and their rate is known to EPOCH_ERROR, or there are EPOCH_READINGS_MAX. */
#define EPOCH_READINGS 6
#define EPOCH_READINGS_MIN 3
#define EPOCH_READINGS_MAX 24
#define EPOCH_NS 60e6
#define EPOCH_ERROR 0.005
#define SETTLE_READINGS 1 /* not summed after a move: a step was issued before it */
#define MUTE_MAX 16       /* steps without a reading after which the next only begins anew */
#define QUIET_EPOCHS 24   /* between two trials in HOLD */
#define QUIET_LEAST 2     /* epochs that something settled is made of at least */
#define ODD_EPOCHS 2      /* unlike the settled ones, and the link has changed */

#define GAIN_TWICE 0.006  /* of rate, for twice the window to pay */
#define GAIN_MORE 0.004   /* for a rung */
#define COST 0.005        /* of the best rate, that less may cost */
#define PROMISE 0.015     /* of the best rate: less, at first, and the search was misled */
#define ODD_RATE 0.03     /* of the settled rate */
#define ERRORS 3          /* so many standard errors are no chance */
#define NOISY 0.02        /* of the rate, as its standard error: then less is no gain */
#define ODD_TRIP 0.25     /* of the settled round trip */
#define QUEUES 2.5        /* x floor: above it something does */
#define FORGET 0.998      /* of the best and the peak rate, from trial to trial in HOLD */
#define USED 0.5          /* of the window in flight: less is demand that does not fill it */
#define TRIP_NS_LIMIT 1e9 /* a longer mean is a counter gone wrong */

const char *off_congestion_reason_name(enum off_congestion_reason reason)
{
    static const char *const names[] = {
#define X(name, text) text,
        OFF_CONGESTION_REASONS(X)
#undef X
    };
    CHECK((size_t)reason < ARRAY_COUNT(names));
    return names[reason];
}

struct off_congestion_config off_congestion_config_default(enum kn_mem mem)
{
    CHECK(mem == KN_MEM_HOST || mem == KN_MEM_PEER);
    const struct kn_window w = kn_window_default(mem);
    return (struct off_congestion_config){.ctas_max = CTAS_MAX,
                                          .blocks_max = CAP / CTAS_MAX,
                                          .ctas_few = w.ctas,
                                          .start = w.ctas * w.blocks,
                                          .least = LEAST,
                                          .cap = CAP,
                                          .queue_ns_max = 80000,
                                          .cost = w.cost};
}

struct kn_window off_congestion_shape(const struct off_congestion_config *config, int32_t n)
{
    CHECK(n >= 1);
    int32_t blocks = (int32_t)(((int64_t)n + config->ctas_few - 1) / config->ctas_few);
    if (blocks > config->blocks_max) blocks = config->blocks_max;
    int32_t ctas = n / blocks;
    if (ctas > config->ctas_max) ctas = config->ctas_max;
    return (struct kn_window){ctas, blocks, config->cost};
}

/* --- rungs: every count up to 8, from there on four to an octave --- */

static int32_t rung_size(int32_t n)
{
    int32_t size = 1;
    while (n / size >= 8) size *= 2;
    return size;
}

static int32_t clamp(const struct off_congestion *c, int64_t n)
{
    if (n < c->config.least) return c->config.least;
    return n > c->config.cap ? c->config.cap : (int32_t)n;
}

static int32_t rung_up(const struct off_congestion *c, int32_t n)
{
    return clamp(c, (int64_t)n + rung_size(n));
}

static int32_t rung_down(const struct off_congestion *c, int32_t n)
{
    return clamp(c, n > 1 ? n - rung_size(n - 1) : 1);
}

/* --- the model --- */

static double sum_rate(const struct off_congestion_sum *s)
{
    return s->ns > 0 ? s->bytes / s->ns * 1e9 : 0;
}

static void sum_add(struct off_congestion_sum *to, const struct off_congestion_sum *s)
{
    to->bytes += s->bytes;
    to->ns += s->ns;
    to->trips += s->trips;
    to->trip_ns += s->trip_ns;
    to->rate2 += s->rate2;
}

/* Standard error of the rate of a sum of n readings, relative. */
static double sum_error(const struct off_congestion_sum *s, int32_t n)
{
    const double rate = s->bytes / s->ns;
    return sqrt(fmax(s->rate2 / s->ns / (rate * rate) - 1, 0) / n);
}

/* What is in flight, in the time that the link takes for it. */
static double queue_ns(const struct off_congestion *c, double in_flight)
{
    return c->peak > 0 ? in_flight * KN_BLOCK_BYTES / c->peak * 1e9 : 0;
}

static void model_epoch(struct off_congestion *c)
{
    c->trip_ns = c->epoch.trip_ns / c->epoch.trips;
    c->bytes_per_s = sum_rate(&c->epoch);
    c->error = sum_error(&c->epoch, c->summed);
    c->in_flight = c->epoch.trip_ns / c->epoch.ns; /* Little's law */
    c->peak = fmax(c->peak, c->bytes_per_s);
}

/* --- the law: each returns the reason and has moved c->window where that moves it --- */

static void hold(struct off_congestion *c)
{
    c->window = c->best;
    c->phase = OFF_CC_HOLD;
    c->quiet = c->odd = 0;
    c->quiet_wanted = QUIET_EPOCHS;
    c->settled = (struct off_congestion_sum){0};
}

/* All anew from the present window. */
static void search(struct off_congestion *c)
{
    c->owed = false;
    c->phase = OFF_CC_SEARCH;
    c->trial = OFF_CC_BASE;
    c->one_trial = c->went_up = c->climbed = false;
    c->best = c->window;
    c->best_rate = 0;
}

static bool is_up(enum off_congestion_trial trial)
{
    return trial == OFF_CC_TWICE || trial == OFF_CC_MORE;
}

/* The window of a trial; the best one itself where that trial has no use. */
static int32_t trial_window(const struct off_congestion *c, enum off_congestion_trial trial)
{
    int32_t n = c->best;
    switch (trial) {
    case OFF_CC_TWICE: n = clamp(c, 2 * (int64_t)n); break;
    case OFF_CC_HALF: n = clamp(c, n / 2); break;
    case OFF_CC_MORE: n = rung_up(c, n); break;
    case OFF_CC_LESS: n = rung_down(c, n); break;
    case OFF_CC_BASE:
    case OFF_CC_DONE: break;
    }
    if (!is_up(trial)) return c->best_trip_ns > QUEUES * c->floor_ns ? n : c->best;
    const bool used = c->best_in_flight >= USED * c->best;
    const double grown = c->best_in_flight * n / c->best;
    return used && queue_ns(c, grown) <= (double)c->config.queue_ns_max ? n : c->best;
}

/* Where rates scatter, what may be chance does not pay. */
static bool trial_pays(const struct off_congestion *c)
{
    const double gain = c->bytes_per_s / c->best_rate - 1, chance = ERRORS * c->error;
    switch (c->trial) {
    case OFF_CC_TWICE: return gain > fmax(GAIN_TWICE, chance);
    case OFF_CC_MORE: return gain > fmax(GAIN_MORE, chance);
    case OFF_CC_HALF:
    case OFF_CC_LESS: return gain > (c->error > NOISY ? chance : -COST);
    case OFF_CC_BASE:
    case OFF_CC_DONE: break;
    }
    return true;
}

/* The present window is the best. */
static void take_best(struct off_congestion *c)
{
    c->best = c->window;
    c->best_rate = fmax(c->best_rate, c->bytes_per_s);
    c->best_trip_ns = c->trip_ns;
    c->best_in_flight = c->in_flight;
    c->went_up |= c->trial == OFF_CC_TWICE;
    c->climbed |= c->trial == OFF_CC_MORE;
}

/* What is tried after one that did not pay, or has no use: none that goes back where the one before
 * it paid. */
static enum off_congestion_trial trial_after(const struct off_congestion *c)
{
    if (c->one_trial) return OFF_CC_DONE;
    switch (c->trial) {
    case OFF_CC_BASE: return OFF_CC_TWICE;
    case OFF_CC_TWICE: return c->went_up ? OFF_CC_MORE : OFF_CC_HALF;
    case OFF_CC_HALF: return OFF_CC_MORE;
    case OFF_CC_MORE: return c->climbed ? OFF_CC_DONE : OFF_CC_LESS;
    case OFF_CC_LESS:
    case OFF_CC_DONE: break;
    }
    return OFF_CC_DONE;
}

/* Goes on to the first trial from c->trial on that has a use. */
static enum off_congestion_reason begin_trial(struct off_congestion *c)
{
    static const enum off_congestion_reason reasons[] = {
        [OFF_CC_TWICE] = OFF_CONGESTION_TWICE,
        [OFF_CC_HALF] = OFF_CONGESTION_HALF,
        [OFF_CC_MORE] = OFF_CONGESTION_MORE,
        [OFF_CC_LESS] = OFF_CONGESTION_LESS,
    };
    while (c->trial != OFF_CC_DONE) {
        const int32_t n = trial_window(c, c->trial);
        if (n != c->best) {
            c->phase = OFF_CC_SEARCH;
            c->window = n;
            return reasons[c->trial];
        }
        c->trial = trial_after(c);
    }
    hold(c);
    return OFF_CONGESTION_FOUND;
}

static double odd_rate(const struct off_congestion *c)
{
    return fmax(ODD_RATE, ERRORS * c->error);
}

static enum off_congestion_reason changed(struct off_congestion *c)
{
    search(c);
    c->floor_ns = 0;
    return OFF_CONGESTION_CHANGED;
}

/* Whether a trial brought more than any window can: then it is the link that has changed. */
static bool is_too_good(const struct off_congestion *c)
{
    const double most = is_up(c->trial) ? (double)c->window / c->best : 1;
    return c->trial != OFF_CC_BASE && c->bytes_per_s > (1 + odd_rate(c)) * most * c->best_rate;
}

/* The same trial again, from further on, as long as it pays. */
static enum off_congestion_reason search_epoch(struct off_congestion *c)
{
    if (is_too_good(c)) return changed(c);
    const bool pays = trial_pays(c);
    if (pays) take_best(c);
    if (!pays || c->trial == OFF_CC_BASE) c->trial = trial_after(c);
    return begin_trial(c);
}

/* Whether the epoch is unlike those it follows.  The first two together are held against what the
 * search promised. */
static bool is_odd(const struct off_congestion *c)
{
    if (c->quiet < QUIET_LEAST) return false;
    const double rate = sum_rate(&c->settled), trip = c->settled.trip_ns / c->settled.trips;
    if (c->quiet == QUIET_LEAST && c->best_rate > 0 &&
        (rate < (1 - fmax(PROMISE, ERRORS * c->error)) * c->best_rate ||
         rate > (1 + odd_rate(c)) * c->best_rate))
        return true;
    return fabs(c->bytes_per_s - rate) > odd_rate(c) * rate ||
           fabs(c->trip_ns - trip) > ODD_TRIP * trip;
}

/* Up and down by turns. */
static enum off_congestion_reason one_trial(struct off_congestion *c)
{
    c->best_rate = fmax(sum_rate(&c->settled), FORGET * c->best_rate);
    c->peak = fmax(sum_rate(&c->settled), FORGET * c->peak);
    c->best_trip_ns = c->settled.trip_ns / c->settled.trips;
    c->best_in_flight = c->settled.trip_ns / c->settled.ns;
    c->one_trial = true;
    c->last_was_up = !c->last_was_up;
    c->trial = c->last_was_up ? OFF_CC_MORE : OFF_CC_LESS;
    const enum off_congestion_reason reason = begin_trial(c);
    return reason == OFF_CONGESTION_FOUND ? OFF_CONGESTION_KEEP : reason;
}

static enum off_congestion_reason hold_epoch(struct off_congestion *c)
{
    if (is_odd(c)) {
        return ++c->odd < ODD_EPOCHS ? OFF_CONGESTION_KEEP : changed(c);
    }
    c->odd = 0;
    if (queue_ns(c, c->in_flight) > (double)c->config.queue_ns_max && c->window > c->config.least) {
        c->best = rung_down(c, c->window);
        hold(c);
        return OFF_CONGESTION_LATE;
    }
    sum_add(&c->settled, &c->epoch);
    if (++c->quiet < c->quiet_wanted) return OFF_CONGESTION_KEEP;
    if (!c->owed) return one_trial(c);
    search(c);
    return search_epoch(c);
}

static enum off_congestion_reason adaptive_epoch(struct off_congestion *c)
{
    return c->phase == OFF_CC_SEARCH ? search_epoch(c) : hold_epoch(c);
}

/* The model is for the log. */
static enum off_congestion_reason static_epoch(struct off_congestion *c)
{
    (void)c;
    return OFF_CONGESTION_STATIC;
}

const struct off_congestion_policy *off_congestion_policy_find(const char *name)
{
    static const struct off_congestion_policy policies[] = {
        {"static", static_epoch},
        {"adaptive", adaptive_epoch},
    };
    for (size_t i = 0; i < ARRAY_COUNT(policies); i++)
        if (strcmp(policies[i].name, name) == 0) return &policies[i];
    return NULL;
}

/* --- readings --- */

/* What a reading adds to the one before; false where it tells nothing. */
static bool take_reading(struct off_congestion *c, const struct off_congestion_sample *sample,
                         uint64_t now_ns, struct off_congestion_sum *out)
{
    if (!sample || (c->has_last && now_ns <= c->last_ns)) return false;
    const struct kn_traffic *now = &sample->traffic, *last = &c->last;
    if (now->bytes == last->bytes && now->trip_count == last->trip_count) return false;
    const bool goes_on = c->has_last && now->bytes > last->bytes &&
                         now->trip_count > last->trip_count && now->trip_ns_sum > last->trip_ns_sum;
    if (goes_on)
        *out =
            (struct off_congestion_sum){.bytes = (double)(now->bytes - last->bytes),
                                        .ns = (double)(now_ns - c->last_ns),
                                        .trips = (double)(now->trip_count - last->trip_count),
                                        .trip_ns = (double)(now->trip_ns_sum - last->trip_ns_sum)};
    if (goes_on) out->rate2 = out->bytes / out->ns * out->bytes;
    c->last = *now;
    c->last_ns = now_ns;
    c->has_last = true;
    return goes_on && sample->kind && out->trip_ns / out->trips <= TRIP_NS_LIMIT;
}

static void clear_epoch(struct off_congestion *c)
{
    c->summed = 0;
    c->epoch = (struct off_congestion_sum){0};
}

/* A trial cannot be judged: back to the best window.  What was settled is of no use either; soon
 * more is tried, for these steps may want it, or the search that was given up begins anew. */
static enum off_congestion_reason give_up(struct off_congestion *c,
                                          enum off_congestion_reason reason)
{
    const bool searching = c->phase == OFF_CC_SEARCH && c->policy->epoch == adaptive_epoch;
    clear_epoch(c);
    if (c->policy->epoch == adaptive_epoch) {
        hold(c);
        c->owed |= searching && !c->one_trial;
        c->best_rate = 0;
        c->quiet_wanted = QUIET_LEAST + 1;
        c->last_was_up = false;
    }
    return searching ? reason : OFF_CONGESTION_NOTHING;
}

static bool is_over(const struct off_congestion *c)
{
    if (c->summed < EPOCH_READINGS_MIN) return false;
    if (c->summed < EPOCH_READINGS && c->epoch.ns < EPOCH_NS) return false;
    return c->summed >= EPOCH_READINGS_MAX || sum_error(&c->epoch, c->summed) <= EPOCH_ERROR;
}

static enum off_congestion_reason add_reading(struct off_congestion *c, uint32_t kind,
                                              const struct kn_traffic *traffic,
                                              const struct off_congestion_sum *sum)
{
    enum off_congestion_reason reason = OFF_CONGESTION_NOTHING;
    const double least_ns = (double)traffic->trip_ns_min;
    if (least_ns > 0 && (c->floor_ns <= 0 || least_ns < c->floor_ns)) c->floor_ns = least_ns;
    if (kind != c->kind) {
        reason = c->kind ? give_up(c, OFF_CONGESTION_KIND) : OFF_CONGESTION_NOTHING;
        c->kind = kind;
    } else if (c->settling > 0) {
        c->settling--;
        return OFF_CONGESTION_NOTHING;
    }
    if (reason) return reason;
    sum_add(&c->epoch, sum);
    c->summed++;
    if (!is_over(c)) return OFF_CONGESTION_NOTHING;
    model_epoch(c);
    reason = c->policy->epoch(c);
    clear_epoch(c);
    return reason;
}

void off_congestion_init(struct off_congestion *c, const struct off_congestion_policy *policy,
                         const struct off_congestion_config *config)
{
    CHECK(policy);
    *c = (struct off_congestion){
        .config = *config, .policy = policy, .window = config->start, .best = config->start};
    search(c);
    off_congestion_check(c);
}

void off_congestion_pause(struct off_congestion *c)
{
    c->has_last = false;
    clear_epoch(c);
}

struct off_congestion_decision off_congestion_step(struct off_congestion *c,
                                                   const struct off_congestion_sample *sample,
                                                   uint64_t now_ns)
{
    const int32_t before = c->window;
    enum off_congestion_reason reason = OFF_CONGESTION_NOTHING;
    struct off_congestion_sum sum;
    if (take_reading(c, sample, now_ns, &sum)) {
        c->mute = 0;
        reason = add_reading(c, sample->kind, &sample->traffic, &sum);
    } else if (++c->mute >= MUTE_MAX) {
        c->mute = 0;
        c->has_last = false;
        reason = give_up(c, OFF_CONGESTION_NO_READINGS);
    }
    if (c->window != before) c->settling = SETTLE_READINGS;
    return (struct off_congestion_decision){
        .window = off_congestion_shape(&c->config, c->window),
        .moved = c->window != before,
        .reason = reason,
        .trip_ns = c->trip_ns,
        .floor_ns = c->floor_ns,
        .ceiling_ns = (double)c->config.queue_ns_max,
        .bytes_per_s = c->bytes_per_s,
        .peak_bytes_per_s = c->peak,
        .error = c->error,
        .in_flight_bytes = c->in_flight * KN_BLOCK_BYTES,
    };
}

void off_congestion_check(const struct off_congestion *c)
{
    const struct off_congestion_config *f = &c->config;
    CHECK(f->ctas_max >= 1 && f->ctas_max <= KN_WINDOW_NO_BOUND);
    CHECK(f->blocks_max >= 1 && f->blocks_max <= KN_WINDOW_NO_BOUND);
    CHECK(f->ctas_few >= 1 && f->ctas_few <= f->ctas_max);
    CHECK(f->least >= 1 && f->least <= f->start && f->start <= f->cap);
    CHECK(f->cap <= (int64_t)f->ctas_max * f->blocks_max && f->queue_ns_max > 0);
    CHECK(c->window >= f->least && c->window <= f->cap);
    CHECK(c->best >= f->least && c->best <= f->cap);
    CHECK(c->phase == OFF_CC_SEARCH || c->window == c->best);
    CHECK(c->summed >= 0 && c->summed < EPOCH_READINGS_MAX);
    CHECK(c->settling >= 0 && c->settling <= SETTLE_READINGS);
    const struct kn_window w = off_congestion_shape(f, c->window);
    CHECK(w.ctas >= 1 && w.ctas <= f->ctas_max && w.blocks >= 1 && w.blocks <= f->blocks_max);
    CHECK((int64_t)w.ctas * w.blocks <= f->cap);
}
