/* unit_engine_control.c - controllers and counters put together: windows reach the backend, tiers
 * search one at a time, what is off stays off. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "config/check.h"
#include "engine/control.h"

#define STEP_NS 1000000u

struct rig {
    struct kn *kn;
    struct eng_control control;
    struct kn_traffic traffic[KN_TIER_MAX];
    uint64_t now_ns;
};

static void rig_open(struct rig *r, const char *mode, const char *remotes)
{
    struct off_remote remote;
    struct off_control control[KN_TIER_MAX];
    char err[ERR_CAP];
    *r = (struct rig){.now_ns = 1};
    assert_int_equal(kn_open_cpu(1, &r->kn, err), ST_OK);
    assert_int_equal(off_remote_parse(remotes, &remote, err), ST_OK);
    assert_int_equal(off_control_read(mode, "", &remote, control, err), ST_OK);
    eng_control_begin(&r->control, r->kn, control);
}

static int64_t blocks(const struct rig *r, int tier)
{
    const struct kn_window *w = &r->control.tier[tier].window;
    return (int64_t)w->ctas * w->blocks;
}

/* A step in which each remote tier delivers as its window lets it, up to `most` blocks. */
static void rig_step(struct rig *r, uint64_t most)
{
    r->now_ns += STEP_NS;
    for (int t = 1; t < KN_TIER_MAX; t++) {
        const uint64_t window = (uint64_t)blocks(r, t);
        const uint64_t trips = 100 * window < most ? 100 * window : most;
        if (window == 0 || window > 4096) continue;
        r->traffic[t].bytes += trips * KN_BLOCK_BYTES;
        r->traffic[t].trip_count += trips;
        r->traffic[t].trip_ns_sum += window * STEP_NS; /* all of it in flight all the time */
        r->traffic[t].trip_ns_min = 1000;
    }
    eng_control_step(&r->control, r->traffic, 1, r->now_ns);
}

static void finds_a_window(void **state)
{
    struct rig r;
    (void)state;
    rig_open(&r, "adaptive", "host:1GiB");
    const struct eng_tier_control *t = &r.control.tier[1];
    assert_int_equal(blocks(&r, 1), 32);
    assert_string_equal(eng_control_state_names[eng_control_state(t)], "search");
    for (int i = 0; i < 120; i++) rig_step(&r, 6000);
    assert_true(t->found_step_count > 0 && t->found_step_count < 120);
    assert_string_equal(eng_control_state_names[eng_control_state(t)], "hold");
    assert_true(blocks(&r, 1) >= 56 && blocks(&r, 1) <= 80); /* 60 fill it */
    assert_true(t->up_count > 0 && t->down_count > 0);
    assert_int_equal(t->step_count, 120);
    assert_true(t->last.trip_ns > 0 && t->last.bytes_per_s > 0);
    kn_close(r.kn);
}

static void one_tier_searches_at_a_time(void **state)
{
    struct rig r;
    bool both_found = false;
    (void)state;
    rig_open(&r, "adaptive", "peer:1:1GiB,host:1GiB");
    for (int i = 0; i < 400; i++) {
        const int64_t before[] = {blocks(&r, 1), blocks(&r, 2)};
        rig_step(&r, 5000);
        assert_false(blocks(&r, 1) != before[0] && blocks(&r, 2) != before[1]);
        if (!r.control.tier[1].found_step_count) assert_int_equal(blocks(&r, 2), 32);
        both_found |=
            r.control.tier[1].found_step_count > 0 && r.control.tier[2].found_step_count > 0;
    }
    assert_true(both_found);
    kn_close(r.kn);
}

static void each_tier_has_its_mode(void **state)
{
    struct rig r;
    (void)state;
    rig_open(&r, "host:off,peer1:static", "peer:1:1GiB,host:1GiB");
    for (int i = 0; i < 200; i++) rig_step(&r, 2000);
    assert_int_equal(blocks(&r, 1), 64);
    assert_int_equal(r.control.tier[2].window.ctas, KN_WINDOW_NO_BOUND);
    assert_string_equal(eng_control_state_names[eng_control_state(&r.control.tier[1])], "static");
    assert_string_equal(eng_control_state_names[eng_control_state(&r.control.tier[2])], "off");
    assert_true(r.control.tier[1].last.bytes_per_s > 0); /* the model is told all the same */
    assert_int_equal(r.control.tier[1].up_count + r.control.tier[1].down_count, 0);
    assert_int_equal(r.control.tier[3].window.ctas, 0);
    kn_close(r.kn);
}

/* A backend that times no copies: the window of the settings stays. */
static void without_round_trips_nothing_moves(void **state)
{
    struct rig r;
    (void)state;
    rig_open(&r, "adaptive", "host:1GiB");
    for (int i = 0; i < 200; i++) {
        r.now_ns += STEP_NS;
        r.traffic[1].bytes += 1 << 20;
        eng_control_step(&r.control, r.traffic, 1, r.now_ns);
        assert_int_equal(blocks(&r, 1), 32);
    }
    assert_string_equal(eng_control_state_names[eng_control_state(&r.control.tier[1])], "hold");
    assert_int_equal(r.control.tier[1].found_step_count, 0);
    kn_close(r.kn);
}

/* Pages that are moved take link from the steps beside them; that is nobody's window's doing. */
static void steps_beside_moved_pages_are_not_judged(void **state)
{
    struct rig r;
    (void)state;
    rig_open(&r, "adaptive", "host:1GiB");
    const struct eng_tier_control *t = &r.control.tier[1];
    for (int i = 0; i < 120; i++) rig_step(&r, 6000);
    const int64_t found = blocks(&r, 1);
    const uint64_t moves = t->up_count + t->down_count;
    assert_true(t->found_step_count > 0);
    for (int i = 0; i < 60; i++) { /* a fifth of the link is left */
        r.traffic[1].moved_bytes += 1 << 20;
        rig_step(&r, 1200);
        assert_int_equal(blocks(&r, 1), found);
    }
    assert_int_equal(t->up_count + t->down_count, moves);
    for (int i = 0; i < 60; i++) rig_step(&r, 6000);
    assert_true(blocks(&r, 1) >= 56 && blocks(&r, 1) <= 80);
    assert_string_equal(eng_control_state_names[eng_control_state(t)], "hold");
    kn_close(r.kn);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_a_window),
        cmocka_unit_test(one_tier_searches_at_a_time),
        cmocka_unit_test(each_tier_has_its_mode),
        cmocka_unit_test(without_round_trips_nothing_moves),
        cmocka_unit_test(steps_beside_moved_pages_are_not_judged),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
