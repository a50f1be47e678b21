/* unit_offload_congestion.c - edges of the congestion controller: what readings it refuses, what it
 * tries and what it takes, shapes of windows, what a decision tells. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "config/check.h"
#include "offload/congestion.h"

#define STEP_NS 1000000u
#define EPOCH_STEPS 16 /* more than an epoch and what is let pass before it, fewer than two */
#define QUIET_EPOCHS 24

static const struct off_congestion_config config = {.ctas_max = 32,
                                                    .blocks_max = 4,
                                                    .ctas_few = 16,
                                                    .start = 32,
                                                    .least = 4,
                                                    .cap = 128,
                                                    .queue_ns_max = 50000,
                                                    .cost = 91};

struct rig {
    struct off_congestion cc;
    struct off_congestion_sample sample;
    uint64_t now_ns;
};

static void rig_open(struct rig *r, const char *policy)
{
    *r = (struct rig){.now_ns = 1, .sample.kind = 1};
    r->sample.traffic.trip_ns_min = 1000;
    off_congestion_init(&r->cc, off_congestion_policy_find(policy), &config);
}

/* A step in which `trips` blocks took trip_ns each. */
static struct off_congestion_decision rig_step(struct rig *r, uint64_t trips, uint64_t trip_ns)
{
    struct kn_traffic *t = &r->sample.traffic;
    r->now_ns += STEP_NS;
    t->bytes += trips * KN_BLOCK_BYTES;
    t->trip_count += trips;
    t->trip_ns_sum += trips * trip_ns;
    return off_congestion_step(&r->cc, &r->sample, r->now_ns);
}

/* Until an epoch ends, at so many blocks a step, with all of the window in flight; its decision. */
static struct off_congestion_decision rig_epoch(struct rig *r, uint64_t trips)
{
    for (int i = 0; i < EPOCH_STEPS; i++) {
        const uint64_t trip_ns = (uint64_t)r->cc.window * STEP_NS / trips;
        const struct off_congestion_decision d = rig_step(r, trips, trip_ns);
        if (d.reason) return d;
    }
    fail_msg("no epoch ended in %d steps", EPOCH_STEPS);
    return (struct off_congestion_decision){.moved = false};
}

static int32_t blocks_of(const struct off_congestion_decision *d)
{
    return d->window.ctas * d->window.blocks;
}

static void expect(const struct off_congestion_decision *d, enum off_congestion_reason reason,
                   int32_t blocks)
{
    assert_string_equal(off_congestion_reason_name(d->reason), off_congestion_reason_name(reason));
    assert_int_equal(blocks_of(d), blocks);
}

static void policies_have_names(void **state)
{
    (void)state;
    assert_string_equal(off_congestion_policy_find("static")->name, "static");
    assert_string_equal(off_congestion_policy_find("adaptive")->name, "adaptive");
    assert_null(off_congestion_policy_find("off"));
    assert_null(off_congestion_policy_find(""));
    assert_string_equal(off_congestion_reason_name(OFF_CONGESTION_NOTHING), "nothing to tell");
    assert_string_equal(off_congestion_reason_name(OFF_CONGESTION_NO_READINGS),
                        "the counters are mute");
}

static void defaults_start_from_the_static_window(void **state)
{
    static const enum kn_mem mems[] = {KN_MEM_HOST, KN_MEM_PEER};
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(mems); i++) {
        const struct kn_window w = kn_window_default(mems[i]);
        const struct off_congestion_config f = off_congestion_config_default(mems[i]);
        struct off_congestion cc;
        off_congestion_init(&cc, off_congestion_policy_find("adaptive"), &f);
        const struct off_congestion_decision d = off_congestion_step(&cc, NULL, 1);
        assert_int_equal(d.window.ctas, w.ctas);
        assert_int_equal(d.window.blocks, w.blocks);
        assert_true(d.window.cost == w.cost);
        assert_true(f.least < f.start && f.start < f.cap);
    }
}

static void shapes_never_exceed_what_is_asked(void **state)
{
    (void)state;
    for (int32_t n = 1; n <= 200; n++) {
        const struct kn_window w = off_congestion_shape(&config, n);
        const int32_t all = w.ctas * w.blocks;
        assert_true(w.ctas >= 1 && w.ctas <= 32 && w.blocks >= 1 && w.blocks <= 4);
        assert_true(all <= n && all <= 128);
        if (n <= 128) assert_true(n - all < w.blocks);
        if (n <= 64) assert_true(w.ctas <= 16 || w.blocks == 1);
    }
    const struct kn_window w = off_congestion_shape(&config, INT32_MAX);
    assert_int_equal(w.ctas * w.blocks, 128);
}

static void static_stays(void **state)
{
    struct rig r;
    (void)state;
    rig_open(&r, "static");
    for (uint64_t i = 1; i < 100; i++) {
        const struct off_congestion_decision d = rig_epoch(&r, 5000 / i);
        expect(&d, OFF_CONGESTION_STATIC, 32);
        assert_false(d.moved);
        assert_true(fabs(d.trip_ns * (double)(5000 / i) / 32 / STEP_NS - 1) < 0.01);
        assert_true(d.floor_ns == 1000);
    }
}

/* What it has tells first; then every trial in turn, none of which pays here. */
static void tries_everything_once(void **state)
{
    struct rig r;
    (void)state;
    rig_open(&r, "adaptive");
    struct off_congestion_decision d = rig_epoch(&r, 3000);
    expect(&d, OFF_CONGESTION_TWICE, 64);
    assert_true(d.moved);
    assert_true(fabs(d.trip_ns / (32. * STEP_NS / 3000) - 1) < 0.01);
    assert_true(fabs(d.in_flight_bytes / (32 * KN_BLOCK_BYTES) - 1) < 0.01);
    assert_true(fabs(d.bytes_per_s / (3000. * KN_BLOCK_BYTES / STEP_NS * 1e9) - 1) < 0.01);
    d = rig_epoch(&r, 3000); /* twice of it brings nothing */
    expect(&d, OFF_CONGESTION_HALF, 16);
    d = rig_epoch(&r, 2900);             /* half of it costs too much */
    expect(&d, OFF_CONGESTION_MORE, 39); /* 13 x 3 */
    d = rig_epoch(&r, 3010);
    expect(&d, OFF_CONGESTION_LESS, 28);
    d = rig_epoch(&r, 2980);
    expect(&d, OFF_CONGESTION_FOUND, 32);
    assert_int_equal(r.cc.phase, OFF_CC_HOLD);
}

static void goes_on_for_as_long_as_it_pays(void **state)
{
    struct rig r;
    (void)state;
    rig_open(&r, "adaptive");
    struct off_congestion_decision d = rig_epoch(&r, 2000);
    expect(&d, OFF_CONGESTION_TWICE, 64);
    d = rig_epoch(&r, 3000);
    expect(&d, OFF_CONGESTION_TWICE, 128);
    d = rig_epoch(&r, 3300); /* and this is the cap: nothing above, and half was worse */
    expect(&d, OFF_CONGESTION_LESS, 112);
    d = rig_epoch(&r, 3200);
    expect(&d, OFF_CONGESTION_FOUND, 128);

    rig_open(&r, "adaptive");
    rig_epoch(&r, 3000);
    d = rig_epoch(&r, 3000);
    expect(&d, OFF_CONGESTION_HALF, 16);
    d = rig_epoch(&r, 2995);
    expect(&d, OFF_CONGESTION_HALF, 8);
    d = rig_epoch(&r, 2990);
    expect(&d, OFF_CONGESTION_HALF, 4);
    d = rig_epoch(&r, 2000);
    expect(&d, OFF_CONGESTION_MORE, 10);
}

/* Where nothing queues, less is not tried; where the window is not used, more is not. */
static void trials_without_a_use_are_left_out(void **state)
{
    struct rig r;
    (void)state;
    rig_open(&r, "adaptive");
    for (int i = 0; i < 400; i++) {
        const struct off_congestion_decision d = rig_step(&r, 500, 2000);
        assert_int_equal(blocks_of(&d), 32);
    }
    assert_int_equal(r.cc.phase, OFF_CC_HOLD);
}

/* What would be in flight takes the link longer than the ceiling. */
static void the_ceiling_bounds_it(void **state)
{
    struct rig r;
    (void)state;
    rig_open(&r, "adaptive");
    struct off_congestion_decision d = rig_epoch(&r, 1000); /* 32 us of queue */
    expect(&d, OFF_CONGESTION_HALF, 16);
    rig_open(&r, "adaptive");
    d = rig_epoch(&r, 500); /* 64 us */
    expect(&d, OFF_CONGESTION_HALF, 16);
    d = rig_epoch(&r, 400);
    expect(&d, OFF_CONGESTION_LESS, 28);
    d = rig_epoch(&r, 450);
    expect(&d, OFF_CONGESTION_FOUND, 32);
    d = rig_epoch(&r, 500);
    expect(&d, OFF_CONGESTION_LATE, 28);
}

/* The last epoch of a search that finds the window it began with. */
static void find(struct rig *r, uint64_t trips)
{
    struct off_congestion_decision d = rig_epoch(r, trips);
    for (int i = 0; i < 8 && d.reason != OFF_CONGESTION_FOUND; i++)
        d = rig_epoch(r, r->cc.window == 32 ? trips : trips * 9 / 10);
    expect(&d, OFF_CONGESTION_FOUND, 32);
}

static void holds_and_tries_up_and_down_by_turns(void **state)
{
    static const enum off_congestion_reason trials[] = {OFF_CONGESTION_MORE, OFF_CONGESTION_LESS};
    struct rig r;
    (void)state;
    rig_open(&r, "adaptive");
    find(&r, 3000);
    for (size_t t = 0; t < 6; t++) {
        struct off_congestion_decision d;
        for (int i = 0; i < QUIET_EPOCHS - 1; i++) {
            d = rig_epoch(&r, 3000);
            expect(&d, OFF_CONGESTION_KEEP, 32);
        }
        d = rig_epoch(&r, 3000);
        expect(&d, trials[t % 2], t % 2 ? 28 : 39);
        d = rig_epoch(&r, 2900);
        expect(&d, OFF_CONGESTION_FOUND, 32);
    }
}

static void notices_another_link(void **state)
{
    static const uint64_t others[] = {2000, 4000, 30}; /* slower, faster, stalled */
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(others); i++) {
        struct rig r;
        rig_open(&r, "adaptive");
        find(&r, 3000);
        for (int k = 0; k < 5; k++) rig_epoch(&r, 3000);
        struct off_congestion_decision d = rig_epoch(&r, others[i]); /* once is nothing */
        expect(&d, OFF_CONGESTION_KEEP, 32);
        d = rig_epoch(&r, 3000);
        d = rig_epoch(&r, others[i]);
        d = rig_epoch(&r, others[i]);
        expect(&d, OFF_CONGESTION_CHANGED, 32);
        assert_int_equal(r.cc.phase, OFF_CC_SEARCH);
    }
}

/* In a search too: half of a window cannot bring half as much again. */
static void a_trial_cannot_be_too_good(void **state)
{
    struct rig r;
    (void)state;
    rig_open(&r, "adaptive");
    rig_epoch(&r, 3000);
    struct off_congestion_decision d = rig_epoch(&r, 3000);
    expect(&d, OFF_CONGESTION_HALF, 16);
    d = rig_epoch(&r, 4500);
    expect(&d, OFF_CONGESTION_CHANGED, 16);
    d = rig_epoch(&r, 4500);
    expect(&d, OFF_CONGESTION_TWICE, 32);
}

/* Steps of another kind cannot be held against those of this one; prompts are let pass. */
static void another_kind_ends_a_trial(void **state)
{
    struct rig r;
    (void)state;
    rig_open(&r, "adaptive");
    struct off_congestion_decision d = rig_epoch(&r, 3000);
    expect(&d, OFF_CONGESTION_TWICE, 64);
    r.sample.kind = 0;
    for (int i = 0; i < 10; i++) {
        d = rig_step(&r, 100, 20000);
        expect(&d, OFF_CONGESTION_NOTHING, 64);
    }
    r.sample.kind = 2;
    d = rig_step(&r, 3000, 20000);
    expect(&d, OFF_CONGESTION_KIND, 32);
    assert_true(d.moved);
    assert_int_equal(r.cc.phase, OFF_CC_HOLD);
    for (int i = 0; i < 3; i++) d = rig_epoch(&r, 1000); /* soon the search begins anew */
    expect(&d, OFF_CONGESTION_TWICE, 64);
    for (int i = 0; i < 8 && d.reason != OFF_CONGESTION_FOUND; i++)
        d = rig_epoch(&r, r.cc.window == 32 ? 1000 : 900);
    expect(&d, OFF_CONGESTION_FOUND, 32);
    r.sample.kind = 1; /* one that has ended does not */
    for (int i = 0; i < 3; i++) d = rig_epoch(&r, 1000);
    expect(&d, OFF_CONGESTION_MORE, 39);
    d = rig_epoch(&r, 900);
    expect(&d, OFF_CONGESTION_FOUND, 32);
}

/* Nothing that is no reading moves anything. */
static void bad_readings_change_nothing(void **state)
{
    struct rig r;
    (void)state;
    rig_open(&r, "adaptive");
    find(&r, 3000);
    for (int i = 0; i < 200; i++) {
        struct off_congestion_sample s = r.sample;
        struct off_congestion_decision d;
        switch (i % 4) {
        case 0: d = off_congestion_step(&r.cc, NULL, r.now_ns += STEP_NS); break;
        case 1: d = off_congestion_step(&r.cc, &s, r.now_ns += STEP_NS); break; /* stale */
        case 2:                                                                 /* of the past */
            s.traffic.bytes += KN_BLOCK_BYTES;
            s.traffic.trip_count++;
            s.traffic.trip_ns_sum += 3000;
            d = off_congestion_step(&r.cc, &s, 1);
            break;
        default: /* at the very time of one before */
            s.traffic.bytes++;
            d = off_congestion_step(&r.cc, &s, r.cc.last_ns);
            break;
        }
        expect(&d, OFF_CONGESTION_NOTHING, 32);
        assert_false(d.moved);
        assert_true(d.floor_ns == 1000);
        off_congestion_check(&r.cc);
    }
}

/* Where there are none at all, the window that it had. */
static void mute_counters_end_a_trial(void **state)
{
    struct rig r;
    bool said = false;
    (void)state;
    rig_open(&r, "adaptive");
    struct off_congestion_decision d = rig_epoch(&r, 3000);
    expect(&d, OFF_CONGESTION_TWICE, 64);
    for (int i = 0; i < 40; i++) {
        d = off_congestion_step(&r.cc, i % 2 ? NULL : &r.sample, r.now_ns += STEP_NS);
        said |= d.reason == OFF_CONGESTION_NO_READINGS;
    }
    assert_true(said);
    assert_int_equal(blocks_of(&d), 32);
    assert_int_equal(r.cc.phase, OFF_CC_HOLD);
}

/* Counters that jump back or by the impossible are compared with, not believed. */
static void counters_may_jump(void **state)
{
    static const struct kn_traffic odd[] = {
        {.bytes = 0, .trip_count = 0, .trip_ns_sum = 0},
        {.bytes = UINT64_MAX, .trip_count = UINT64_MAX, .trip_ns_sum = UINT64_MAX},
        {.bytes = UINT64_MAX, .trip_count = 1, .trip_ns_sum = UINT64_MAX},
        {.bytes = 1, .trip_count = UINT64_MAX, .trip_ns_sum = 0},
        {.bytes = 1u << 20, .trip_count = 0, .trip_ns_sum = 5000},
    };
    struct rig r;
    (void)state;
    rig_open(&r, "adaptive");
    rig_epoch(&r, 3000);
    for (int i = 0; i < 500; i++) {
        r.now_ns += STEP_NS;
        const struct off_congestion_sample s = {odd[(size_t)i * 7 % ARRAY_COUNT(odd)], 1};
        const struct off_congestion_decision d = off_congestion_step(&r.cc, &s, r.now_ns);
        assert_true(isfinite(d.trip_ns) && isfinite(d.bytes_per_s) && isfinite(d.in_flight_bytes));
        assert_true(blocks_of(&d) >= 1 && blocks_of(&d) <= config.cap);
        off_congestion_check(&r.cc);
    }
    r.now_ns = UINT64_MAX - 1;
    off_congestion_step(&r.cc, &(struct off_congestion_sample){odd[0], 1}, r.now_ns);
    off_congestion_step(&r.cc, &(struct off_congestion_sample){odd[1], 1}, UINT64_MAX);
    off_congestion_check(&r.cc);
}

/* The time of a pause, or of a long silence, says nothing of the rate. */
static void pauses_are_no_slow_link(void **state)
{
    (void)state;
    for (int way = 0; way < 2; way++) {
        struct rig r;
        rig_open(&r, "static");
        rig_epoch(&r, 3000);
        const double rate = r.cc.bytes_per_s;
        if (way == 0)
            for (int i = 0; i < 100; i++)
                off_congestion_step(&r.cc, &r.sample, r.now_ns += 100 * STEP_NS);
        else off_congestion_pause(&r.cc);
        if (way == 1) r.now_ns += 1000 * STEP_NS;
        const struct off_congestion_decision d = rig_epoch(&r, 3000);
        assert_true(fabs(d.bytes_per_s / rate - 1) < 0.01);
    }
}

static void a_window_moves_once_an_epoch(void **state)
{
    struct rig r;
    int since = 0;
    (void)state;
    rig_open(&r, "adaptive");
    for (int i = 0; i < 5000; i++) {
        const uint64_t trip_ns = 2000 + (uint64_t)(i * 7919 % 20000);
        const struct off_congestion_decision d =
            rig_step(&r, (uint64_t)r.cc.window * STEP_NS / trip_ns, trip_ns);
        since++;
        if (!d.moved) continue;
        assert_true(since >= 3);
        since = 0;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(policies_have_names),
        cmocka_unit_test(defaults_start_from_the_static_window),
        cmocka_unit_test(shapes_never_exceed_what_is_asked),
        cmocka_unit_test(static_stays),
        cmocka_unit_test(tries_everything_once),
        cmocka_unit_test(goes_on_for_as_long_as_it_pays),
        cmocka_unit_test(trials_without_a_use_are_left_out),
        cmocka_unit_test(the_ceiling_bounds_it),
        cmocka_unit_test(holds_and_tries_up_and_down_by_turns),
        cmocka_unit_test(notices_another_link),
        cmocka_unit_test(a_trial_cannot_be_too_good),
        cmocka_unit_test(another_kind_ends_a_trial),
        cmocka_unit_test(bad_readings_change_nothing),
        cmocka_unit_test(mute_counters_end_a_trial),
        cmocka_unit_test(counters_may_jump),
        cmocka_unit_test(pauses_are_no_slow_link),
        cmocka_unit_test(a_window_moves_once_an_epoch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
