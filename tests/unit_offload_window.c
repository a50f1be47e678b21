/* unit_offload_window.c - windows from the settings: defaults, what is set, what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "config/check.h"
#include "offload/window.h"

static enum status controls_of(const char *mode, const char *text, const char *remotes,
                               struct off_control *control, char *err)
{
    struct off_remote remote;
    assert_int_equal(off_remote_parse(remotes, &remote, err), ST_OK);
    return off_control_read(mode, text, &remote, control, err);
}

static void expect(const struct off_control *c, enum off_control_mode mode, int32_t ctas,
                   int32_t blocks)
{
    assert_int_equal(c->mode, mode);
    assert_int_equal(c->window.ctas, ctas);
    assert_int_equal(c->window.blocks, blocks);
}

static void defaults(void **state)
{
    struct off_control c[KN_TIER_MAX];
    char err[ERR_CAP];
    (void)state;
    assert_int_equal(controls_of("static", "", "host:1GiB,peer:1:1GiB", c, err), ST_OK);
    expect(&c[0], OFF_CONTROL_NONE, 0, 0);
    expect(&c[1], OFF_CONTROL_STATIC, 16, 2);
    expect(&c[2], OFF_CONTROL_STATIC, 16, 4);
    expect(&c[3], OFF_CONTROL_NONE, 0, 0);
    assert_int_equal(off_window_bytes(&c[1].window), 512 * 1024);
    assert_int_equal(off_window_bytes(&c[2].window), 1 << 20);
    assert_true(c[1].window.cost > c[2].window.cost && c[2].window.cost > 1);
    assert_int_equal(controls_of("static", "", "", c, err), ST_OK);
    expect(&c[1], OFF_CONTROL_NONE, 0, 0);
}

static void off_has_no_bound(void **state)
{
    struct off_control c[KN_TIER_MAX];
    char err[ERR_CAP];
    (void)state;
    assert_int_equal(controls_of("off", "", "host:1GiB", c, err), ST_OK);
    expect(&c[1], OFF_CONTROL_NONE, KN_WINDOW_NO_BOUND, KN_WINDOW_NO_BOUND);
    assert_true(off_window_bytes(&c[1].window) == UINT64_MAX);
    assert_true(c[1].window.cost == kn_window_default(KN_MEM_HOST).cost);
}

static void set_by_hand(void **state)
{
    const char *const remotes = "peer:1:1GiB,host:1GiB,peer:2:1GiB";
    struct off_control c[KN_TIER_MAX];
    char err[ERR_CAP];
    (void)state;
    assert_int_equal(controls_of("static", "host:8x2,peer:132x1", remotes, c, err), ST_OK);
    expect(&c[1], OFF_CONTROL_STATIC, 132, 1);
    expect(&c[2], OFF_CONTROL_STATIC, 8, 2);
    expect(&c[3], OFF_CONTROL_STATIC, 132, 1);
    assert_true(c[2].window.cost == kn_window_default(KN_MEM_HOST).cost);
    assert_int_equal(controls_of("static", "peer2:3x65536", remotes, c, err), ST_OK);
    expect(&c[1], OFF_CONTROL_STATIC, 16, 4);
    expect(&c[3], OFF_CONTROL_STATIC, 3, 65536);
    assert_int_equal(off_window_bytes(&c[3].window), 3ull << 30);
}

static void adaptive_begins_with_the_window(void **state)
{
    struct off_control c[KN_TIER_MAX];
    char err[ERR_CAP];
    (void)state;
    assert_int_equal(controls_of("adaptive", "host:8x3", "host:1GiB,peer:1:1GiB", c, err), ST_OK);
    expect(&c[1], OFF_CONTROL_ADAPTIVE, 8, 3);
    expect(&c[2], OFF_CONTROL_ADAPTIVE, 16, 4);
    assert_int_equal(c[1].config.start, 24);
    assert_int_equal(c[2].config.start, 64);
    assert_true(c[1].config.cap >= 32 && c[2].config.cap >= 64);
}

/* Each tier its own way; those that are not named are adaptive. */
static void by_tier(void **state)
{
    const char *const remotes = "peer:1:1GiB,host:1GiB,peer:2:1GiB";
    struct off_control c[KN_TIER_MAX];
    char err[ERR_CAP];
    (void)state;
    assert_int_equal(controls_of("host:off,peer1:static", "peer1:8x2", remotes, c, err), ST_OK);
    expect(&c[1], OFF_CONTROL_STATIC, 8, 2);
    expect(&c[2], OFF_CONTROL_NONE, KN_WINDOW_NO_BOUND, KN_WINDOW_NO_BOUND);
    expect(&c[3], OFF_CONTROL_ADAPTIVE, 16, 4);
    for (int m = OFF_CONTROL_NONE; m <= OFF_CONTROL_ADAPTIVE; m++) {
        const char *name = off_control_mode_name((enum off_control_mode)m);
        assert_int_equal(controls_of(name, "", remotes, c, err), ST_OK);
        for (int t = 1; t <= 3; t++) assert_int_equal(c[t].mode, m);
    }
}

static void refused(void **state)
{
    static const struct {
        const char *mode, *text;
        enum status st;
        const char *says;
    } bad[] = {
        {"on", "", ST_INVALID, "'on' is none of off, static and adaptive"},
        {"", "", ST_INVALID, "'' is none of off, static and adaptive"},
        {"host:on", "", ST_INVALID, "'host:on' is none of off, static and adaptive"},
        {"host:adaptive,", "", ST_INVALID, "'' is none of off, static and adaptive"},
        {"host:adaptive,host:off", "", ST_INVALID, "twice"},
        {"peer3:adaptive", "", ST_INVALID, "no tier that --remote names"},
        {"adaptive", "host:1x1", ST_INVALID, "adaptive control begins with 4 to"},
        {"adaptive", "host:65536x65536", ST_INVALID, "adaptive control begins with 4 to"},
        {"host:adaptive,peer:off", "peer:16x1", ST_INVALID, "leave one of them out"},
        {"off", "host:16x1", ST_INVALID, "leave one of them out"},
        {"static", "host", ST_INVALID, "'host' is not a window"},
        {"static", ":1x1", ST_INVALID, "':1x1' is not a window"},
        {"static", "host:", ST_INVALID, "not a window"},
        {"static", "host:16", ST_INVALID, "not a window"},
        {"static", "host:16x", ST_INVALID, "not a window"},
        {"static", "host:x1", ST_INVALID, "not a window"},
        {"static", "host:0x1", ST_INVALID, "1 to 65536"},
        {"static", "host:16x0", ST_INVALID, "1 to 65536"},
        {"static", "host:65537x1", ST_INVALID, "1 to 65536"},
        {"static", "host:99999999999999999999x1", ST_INVALID, "1 to 65536"},
        {"static", "host:-1x1", ST_INVALID, "not a window"},
        {"static", "host:16x1x2", ST_INVALID, "not a window"},
        {"static", "host:16x1 ", ST_INVALID, "not a window"},
        {"static", "host:16x1,", ST_INVALID, "'' is not a window"},
        {"static", "host:16x1,host:16x1", ST_INVALID, "twice"},
        {"static", "peer:16x1,peer1:16x1", ST_INVALID, "twice"},
        {"static", "hbm:16x1", ST_INVALID, "no tier that --remote names"},
        {"static", "peer3:16x1", ST_INVALID, "no tier that --remote names"},
        {"static",
         "host:1x1,0123456789012345678901234567890123456789012345678901234567890123456789",
         ST_INVALID, "longer than any"},
    };
    struct off_control c[KN_TIER_MAX];
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        char err[ERR_CAP] = "";
        assert_int_equal(controls_of(bad[i].mode, bad[i].text, "host:1GiB,peer:1:1GiB", c, err),
                         bad[i].st);
        if (!strstr(err, bad[i].says)) fail_msg("%s: %s", bad[i].text, err);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults),    cmocka_unit_test(off_has_no_bound),
        cmocka_unit_test(set_by_hand), cmocka_unit_test(adaptive_begins_with_the_window),
        cmocka_unit_test(by_tier),     cmocka_unit_test(refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
