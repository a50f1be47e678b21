/* unit_offload_window.c - windows from the settings: defaults, what is set, what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "config/check.h"
#include "offload/window.h"

static enum status windows_of(const char *mode, const char *text, const char *remotes,
                              struct kn_window *windows, char *err)
{
    struct off_remote remote;
    assert_int_equal(off_remote_parse(remotes, &remote, err), ST_OK);
    return off_windows_read(mode, text, &remote, windows, err);
}

static void expect(const struct kn_window *w, int32_t ctas, int32_t blocks)
{
    assert_int_equal(w->ctas, ctas);
    assert_int_equal(w->blocks, blocks);
}

static void defaults(void **state)
{
    struct kn_window w[KN_TIER_MAX];
    char err[ERR_CAP];
    (void)state;
    assert_int_equal(windows_of("static", "", "host:1GiB,peer:1:1GiB", w, err), ST_OK);
    expect(&w[0], 0, 0);
    expect(&w[1], 16, 2);
    expect(&w[2], 16, 4);
    expect(&w[3], 0, 0);
    assert_int_equal(off_window_bytes(&w[1]), 512 * 1024);
    assert_int_equal(off_window_bytes(&w[2]), 1 << 20);
    assert_true(w[1].cost > w[2].cost && w[2].cost > 1);
    assert_int_equal(windows_of("static", "", "", w, err), ST_OK);
    expect(&w[1], 0, 0);
}

static void off_has_no_bound(void **state)
{
    struct kn_window w[KN_TIER_MAX];
    char err[ERR_CAP];
    (void)state;
    assert_int_equal(windows_of("off", "", "host:1GiB", w, err), ST_OK);
    expect(&w[1], KN_WINDOW_NO_BOUND, KN_WINDOW_NO_BOUND);
    assert_true(off_window_bytes(&w[1]) == UINT64_MAX);
    assert_true(w[1].cost == kn_window_default(KN_MEM_HOST).cost);
}

static void set_by_hand(void **state)
{
    const char *const remotes = "peer:1:1GiB,host:1GiB,peer:2:1GiB";
    struct kn_window w[KN_TIER_MAX];
    char err[ERR_CAP];
    (void)state;
    assert_int_equal(windows_of("static", "host:8x2,peer:132x1", remotes, w, err), ST_OK);
    expect(&w[1], 132, 1);
    expect(&w[2], 8, 2);
    expect(&w[3], 132, 1);
    assert_true(w[2].cost == kn_window_default(KN_MEM_HOST).cost);
    assert_int_equal(windows_of("static", "peer2:3x65536", remotes, w, err), ST_OK);
    expect(&w[1], 16, 4);
    expect(&w[3], 3, 65536);
    assert_int_equal(off_window_bytes(&w[3]), 3ull << 30);
}

static void refused(void **state)
{
    static const struct {
        const char *mode, *text;
        enum status st;
        const char *says;
    } bad[] = {
        {"adaptive", "", ST_UNSUPPORTED, "adaptive is not there yet"},
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
         ST_INVALID, "not a window"},
    };
    struct kn_window w[KN_TIER_MAX];
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        char err[ERR_CAP] = "";
        assert_int_equal(windows_of(bad[i].mode, bad[i].text, "host:1GiB,peer:1:1GiB", w, err),
                         bad[i].st);
        if (!strstr(err, bad[i].says)) fail_msg("%s: %s", bad[i].text, err);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults),
        cmocka_unit_test(off_has_no_bound),
        cmocka_unit_test(set_by_hand),
        cmocka_unit_test(refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
