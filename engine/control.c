#include "engine/control.h"

#include <string.h>

#include "config/check.h"
#include "config/log.h"

#define QUIET_LOGGED 32
#define MOVING_READINGS 2 /* a move that was begun in one step may end in the next */

const char *const eng_control_state_names[ENG_CONTROL_STATES] = {"off", "static", "search", "hold"};

int eng_control_state(const struct eng_tier_control *c)
{
    const int state = (int)c->mode + (c->mode == OFF_CONTROL_ADAPTIVE ? (int)c->phase : 0);
    CHECK(state >= 0 && state < ENG_CONTROL_STATES);
    return state;
}

void eng_control_begin(struct eng_control *c, struct kn *kn,
                       const struct off_control control[KN_TIER_MAX])
{
    *c = (struct eng_control){.kn = kn};
    for (int t = 1; t < KN_TIER_MAX; t++) {
        const struct off_control *from = &control[t];
        struct eng_tier_control *to = &c->tier[t];
        if (from->window.ctas == 0) continue;
        *to = (struct eng_tier_control){.mode = from->mode, .window = from->window};
        if (from->mode != OFF_CONTROL_NONE)
            off_congestion_init(&c->congestion[t],
                                off_congestion_policy_find(off_control_mode_name(from->mode)),
                                &from->config);
        if (from->mode == OFF_CONTROL_ADAPTIVE)
            to->window = off_congestion_shape(&from->config, c->congestion[t].window);
        kn_set_window(kn, t, &to->window);
    }
}

static void log_decision(struct eng_control *control, int tier)
{
    const struct eng_tier_control *c = &control->tier[tier];
    const struct off_congestion_decision *d = &c->last;
    const bool quiet = d->reason == OFF_CONGESTION_KEEP || d->reason == OFF_CONGESTION_STATIC;
    if (quiet && control->quiet_count[tier]++ % QUIET_LOGGED) return;
    log_debug("congestion",
              "tier %d after %llu steps: %s; window %d x %d; round trip %.2f us (floor %.2f, "
              "ceiling %.2f), %.3f GB/s +- %.1f %% (peak %.3f), %.0f KiB in "
              "flight",
              tier, (unsigned long long)c->step_count, off_congestion_reason_name(d->reason),
              c->window.ctas, c->window.blocks, d->trip_ns / 1e3, d->floor_ns / 1e3,
              d->ceiling_ns / 1e3, d->bytes_per_s / 1e9, 100 * d->error, d->peak_bytes_per_s / 1e9,
              d->in_flight_bytes / 1024);
}

static void move(struct eng_control *c, int tier, const struct kn_window *to)
{
    struct eng_tier_control *t = &c->tier[tier];
    const int64_t before = (int64_t)t->window.ctas * t->window.blocks;
    if ((int64_t)to->ctas * to->blocks > before) t->up_count++;
    else t->down_count++;
    t->window = *to;
    kn_set_window(c->kn, tier, to);
}

/* Whether a tier has to wait for one that searches. */
static bool waits(const struct eng_control *c, int tier)
{
    for (int t = 1; t < KN_TIER_MAX; t++)
        if (c->tier[t].mode == OFF_CONTROL_ADAPTIVE && c->tier[t].window.ctas &&
            c->congestion[t].phase == OFF_CC_SEARCH)
            return t != tier;
    return false;
}

static void step_tier(struct eng_control *c, int t, const struct off_congestion_sample *sample,
                      uint64_t device_ns)
{
    struct eng_tier_control *tier = &c->tier[t];
    struct off_congestion *congestion = &c->congestion[t];
    const struct off_congestion_decision d = off_congestion_step(congestion, sample, device_ns);
    tier->step_count++;
    if (d.moved) move(c, t, &d.window);
    if (d.reason == OFF_CONGESTION_NOTHING) return;
    tier->last = d;
    tier->phase = congestion->phase;
    if (d.reason == OFF_CONGESTION_FOUND && !tier->found_step_count) {
        tier->found_step_count = tier->step_count;
        log_info("congestion", "tier %d: window of %d x %d found in %llu steps, %.1f GB/s", t,
                 tier->window.ctas, tier->window.blocks, (unsigned long long)tier->step_count,
                 d.peak_bytes_per_s / 1e9);
    }
    log_decision(c, t);
}

/* Whether pages were moved from or to the tier while it was read. */
static bool shares(struct eng_control *c, int tier, const struct kn_traffic *now)
{
    if (now->moved_bytes != c->moved_bytes[tier]) c->moving[tier] = MOVING_READINGS;
    else if (c->moving[tier] > 0) c->moving[tier]--;
    c->moved_bytes[tier] = now->moved_bytes;
    return c->moving[tier] > 0;
}

void eng_control_step(struct eng_control *c, const struct kn_traffic traffic[KN_TIER_MAX],
                      uint32_t kind, uint64_t device_ns)
{
    for (int t = 1; t < KN_TIER_MAX; t++) {
        struct off_congestion_sample sample = {traffic[t], shares(c, t, &traffic[t]) ? 0 : kind};
        sample.traffic.bytes -= sample.traffic.fetched_bytes; /* the engine's own copies */
        if (c->tier[t].window.ctas == 0 || c->tier[t].mode == OFF_CONTROL_NONE) continue;
        if (waits(c, t)) off_congestion_pause(&c->congestion[t]);
        else step_tier(c, t, &sample, device_ns);
    }
}
