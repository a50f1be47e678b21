/*
 * unit_offload_link.c - windows chosen from measured points; the file of a measurement, whole,
 * damaged and foreign; measuring, on a backend whose link follows a simple law.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config/check.h"
#include "config/file.h"
#include "offload/link.h"
#include "tests/fake_link.h"
#include "tests/test_random.h"

/* --- the choice ------------------------------------------------------------------------------- */

/* What design tables say of PCIe: full at 512 KB, HBM harmed beyond. */
static const struct off_link pcie = {.name = "host",
                                     .read_bytes_per_s = 51.5e9,
                                     .point = {{8, 1, 33e9, 4.72e12, 4e-6, 6e-6},
                                               {16, 1, 48e9, 4.71e12, 5e-6, 8e-6},
                                               {8, 4, 51.4e9, 4.70e12, 1e-5, 1.4e-5},
                                               {16, 2, 51.4e9, 4.66e12, 1e-5, 1.5e-5},
                                               {16, 4, 51.5e9, 4.38e12, 2e-5, 3e-5},
                                               {16, 6, 51.5e9, 4.2e12, 3e-5, 5e-5},
                                               {132, 6, 51.5e9, 5e10, 3e-4, 5e-4}},
                                     .point_count = 7};

static void test_window(void **state)
{
    (void)state;
    struct off_links links = {.hbm_bytes_per_s = 4.72e12};
    struct off_link link = pcie;
    struct kn_window w = {1, 1, 1};
    assert_true(off_link_window(&links, &link, &w));
    assert_int_equal(w.ctas, 16);
    assert_int_equal(w.blocks, 2);
    assert_true(fabs(w.cost - 4720 / 51.4) < 0.01);
    /* A machine whose HBM suffers earlier gets what is left. */
    for (int i = 2; i < link.point_count; i++) link.point[i].hbm_bytes_per_s = 4.5e12;
    assert_true(off_link_window(&links, &link, &w));
    assert_int_equal(w.blocks, 1);
    /* The link that nothing fills without harm keeps the window it had. */
    for (int i = 0; i < link.point_count; i++) link.point[i].hbm_bytes_per_s = 4e12;
    w = (struct kn_window){3, 4, 5};
    assert_false(off_link_window(&links, &link, &w));
    assert_int_equal(w.ctas, 3);
    link.point_count = 0;
    assert_false(off_link_window(&links, &link, &w));
}

/* --- measuring -------------------------------------------------------------------------------- */

static const struct off_remote two = {
    .spec = {{KN_MEM_HOST, 0, 1ull << 34}, {KN_MEM_PEER, 1, 1ull << 20}}, .count = 2};

static void measure(struct off_links *links)
{
    struct fake f = {.kn = {&fake_backend}};
    char err[ERR_CAP] = "";
    if (off_links_measure(&f.kn, &two, links, err)) fail_msg("%s", err);
    assert_int_equal(f.allocated, 0);
}

static void test_measure(void **state)
{
    (void)state;
    static struct off_links links;
    struct kn_window w;
    measure(&links);
    assert_string_equal(links.identity, "fake");
    assert_int_equal(links.link_count, 2);
    assert_string_equal(links.link[1].name, "peer1");
    assert_true(links.unix_s > 0 && fabs(links.hbm_bytes_per_s - 4e12) < 1);
    const struct off_link *host = off_links_find(&links, "host");
    assert_non_null(host);
    assert_null(off_links_find(&links, "peer2"));
    assert_true(fabs(host->read_bytes_per_s - 50e9) < 1 && host->point_count == 24);
    for (int i = 0; i < OFF_LINK_CLUSTERS; i++)
        assert_true(fabs(host->multicast[i] - (2 << i)) < 1e-6);
    assert_true(host->copy_bytes_per_s > host->read_bytes_per_s);
    assert_true(fabs(host->both_read_bytes_per_s - 25e9) < 1);
    assert_true(fabs(host->both_copy_bytes_per_s - 27.5e9) < 1);
    assert_true(fabs(host->both_hbm_bytes_per_s - 4e12) < 1);
    assert_true(fabs(host->trip_s - 2e-6) < 1e-9);
    assert_true(off_link_window(&links, host, &w));
    assert_int_equal(w.ctas * w.blocks, 32);
    assert_true(fabs(w.cost - 80) < 1e-3);
}

static void test_steady(void **state)
{
    (void)state;
    static struct off_links links;
    char err[ERR_CAP] = "";
    measure(&links);
    assert_true(off_links_steady(&links));
    /* Call 1 is a trial of nothing, 2 is HBM alone. */
    struct fake f = {.kn = {&fake_backend}, .slow_call = 2};
    if (off_links_measure(&f.kn, &two, &links, err)) fail_msg("%s", err);
    assert_false(off_links_steady(&links));
    measure(&links);
    links.link[1].read_bytes_per_s /= 2;
    assert_false(off_links_steady(&links));
    measure(&links);
    links.link[0].copy_bytes_per_s /= 2;
    assert_false(off_links_steady(&links));
    measure(&links);
    links.link[0].both_read_bytes_per_s = 1.2 * links.link[0].read_bytes_per_s;
    assert_false(off_links_steady(&links));
}

static void test_measure_fails(void **state)
{
    (void)state;
    static struct off_links links;
    char err[ERR_CAP] = "";
    struct fake f = {.kn = {&no_link_backend}};
    assert_int_equal(off_links_measure(&f.kn, &two, &links, err), ST_UNSUPPORTED);
    assert_non_null(strstr(err, "no link"));
    assert_int_equal(f.allocs, 0);
    bool done = false;
    for (int n = 1; !done; n++) {
        f = (struct fake){.kn = {&fake_backend}, .fail_call = n};
        enum status st = off_links_measure(&f.kn, &two, &links, err);
        assert_int_equal(f.allocated, 0);
        done = f.calls < n;
        assert_int_equal(st, done ? ST_OK : ST_DEVICE);
        assert_true(n < 1000);
    }
    for (int n = 1; n <= 3; n++) {
        f = (struct fake){.kn = {&fake_backend}, .fail_alloc = n};
        assert_int_equal(off_links_measure(&f.kn, &two, &links, err), ST_NOMEM);
        assert_int_equal(f.allocated, 0);
    }
    f = (struct fake){.kn = {&fake_backend}, .full = true};
    assert_int_equal(off_links_measure(&f.kn, &two, &links, err), ST_LIMIT);
    assert_non_null(strstr(err, "1.00 GiB are free"));
    const struct off_remote tiny = {.spec = {{KN_MEM_HOST, 0, 1000}}, .count = 1};
    f = (struct fake){.kn = {&fake_backend}};
    assert_int_equal(off_links_measure(&f.kn, &tiny, &links, err), ST_INVALID);
    assert_int_equal(f.allocated, 0);
}

/* --- the file --------------------------------------------------------------------------------- */

static char *text_of(const struct off_links *links, size_t *len)
{
    struct buf b;
    buf_init(&b, 1 << 20);
    off_links_put_json(&b, links);
    assert_int_equal(buf_status(&b), ST_OK);
    *len = b.len;
    return b.data;
}

static void test_round_trip(void **state)
{
    (void)state;
    static struct off_links links, again;
    char err[ERR_CAP] = "", *text, *second;
    size_t len, second_len;
    measure(&links);
    text = text_of(&links, &len);
    if (off_links_parse(text, len, &again, err)) fail_msg("%s", err);
    second = text_of(&again, &second_len);
    assert_int_equal(len, second_len);
    assert_memory_equal(text, second, len);
    assert_int_equal(again.link_count, 2);
    assert_int_equal(again.link[0].point[23].ctas, 100);
    free(text);
    free(second);
    links.link_count = 0; /* HBM alone */
    text = text_of(&links, &len);
    assert_int_equal(off_links_parse(text, len, &again, err), ST_OK);
    free(text);
}

/* `text` with the first `from` replaced. */
static enum status parse_changed(const char *text, const char *from, const char *to, char *err)
{
    static struct off_links links;
    struct buf b;
    const char *at = strstr(text, from);
    if (!at) fail_msg("no '%s'", from);
    buf_init(&b, 1 << 20);
    buf_put(&b, text, (size_t)(at - text));
    buf_puts(&b, to);
    buf_puts(&b, at + strlen(from));
    enum status st = off_links_parse(b.data, b.len, &links, err);
    if (st) assert_int_equal(links.link_count, 0);
    buf_deinit(&b);
    return st;
}

static void test_damaged(void **state)
{
    (void)state;
    static struct off_links links;
    static const char *const changes[][2] = {
        {"\"format\": 2", "\"format\": 1"},
        {"\"format\": 2", "\"format\": \"2\""},
        {"\"format\"", "\"former\""},
        {"\"identity\": \"fake\"", "\"identity\": \"\""},
        {"\"identity\": \"fake\"", "\"identity\": 5"},
        {"\"hbm_bytes_per_s\": 4", "\"hbm_bytes_per_s\": -4"},
        {"\"hbm_bytes_per_s\": 4e+12", "\"hbm_bytes_per_s\": 0"},
        {"\"links\": [", "\"links\": {}, \"l\": ["},
        {"\"name\": \"host\"", "\"name\": \"a name that is far too long\""},
        {"\"read_bytes_per_s\": 5e+10", "\"read_bytes_per_s\": null"},
        {"\"round_trip_s\"", "\"round_trip\""},
        {"\"copy_bytes_per_s\": 5.5e+10", "\"copy_bytes_per_s\": 1e99"},
        {"\"both_read_bytes_per_s\"", "\"read\""},
        {"\"both_hbm_bytes_per_s\": 4e+12", "\"both_hbm_bytes_per_s\": -1"},
        {"\"multicast_4_ratio\": 4", "\"multicast_4_ratio\": 400"},
        {"\"ctas\": 4", "\"ctas\": 0"},
        {"\"ctas\": 4", "\"ctas\": 4.5"},
        {"\"blocks\": 1", "\"blocks\": 1e9"},
        {"\"round_trip_max_s\": ", "\"round_trip_max_s\": -"},
        {"\"windows\": [", "\"windows\": [1, "},
    };
    char err[ERR_CAP] = "";
    size_t len;
    measure(&links);
    char *text = text_of(&links, &len);
    for (size_t i = 0; i < ARRAY_COUNT(changes); i++) {
        err[0] = '\0';
        if (parse_changed(text, changes[i][0], changes[i][1], err) != ST_CORRUPT || !err[0])
            fail_msg("accepted: %s", changes[i][1]);
    }
    for (size_t n = 0; n < len - 1; n++) /* the last byte is white */
        assert_int_equal(off_links_parse(text, n, &links, err), ST_CORRUPT);
    test_seed();
    for (int n = 0; n < 3000; n++) { /* whatever it says, it is said without harm */
        size_t at = (size_t)(test_random() % len);
        char was = text[at];
        text[at] = (char)test_random();
        if (!off_links_parse(text, len, &links, err)) {
            struct kn_window w = {1, 1, 1};
            for (int i = 0; i < links.link_count; i++)
                if (off_link_window(&links, &links.link[i], &w))
                    assert_true(w.ctas == 16 && w.blocks >= 1 && isfinite(w.cost));
        }
        text[at] = was;
    }
    free(text);
}

static void test_file(void **state)
{
    (void)state;
    static struct off_links links, again;
    char folder[64] = "/tmp/dakd-link-XXXXXX", inner[96], path[128], err[ERR_CAP] = "";
    assert_non_null(mkdtemp(folder));
    snprintf(inner, sizeof inner, "%s/state", folder);
    snprintf(path, sizeof path, "%s/probe.json", inner);
    assert_int_equal(off_links_load(path, "fake", &again, err), ST_NOT_FOUND);
    measure(&links);
    if (off_links_save(path, &links, err)) fail_msg("%s", err);
    if (off_links_load(path, "fake", &again, err)) fail_msg("%s", err);
    assert_int_equal(again.link_count, 2);
    /* Another device or driver. */
    assert_int_equal(off_links_load(path, "fake 2", &again, err), ST_INVALID);
    assert_non_null(strstr(err, "is of fake, and this is fake 2"));
    assert_int_equal(again.link_count, 0);
    assert_int_equal(file_replace(path, "{", 1, err), ST_OK);
    assert_int_equal(off_links_load(path, "fake", &again, err), ST_CORRUPT);
    assert_non_null(strstr(err, path));
    if (off_links_save(path, &links, err)) fail_msg("%s", err);
    assert_int_equal(off_links_load(path, "fake", &again, err), ST_OK);
    /* What is no file, and what cannot be written. */
    assert_int_equal(off_links_load(inner, "fake", &again, err), ST_CORRUPT);
    assert_int_equal(off_links_save("/proc/dakd/probe.json", &links, err), ST_IO);
    assert_int_equal(unlink(path) | rmdir(inner) | rmdir(folder), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_window),     cmocka_unit_test(test_measure),
        cmocka_unit_test(test_steady),     cmocka_unit_test(test_measure_fails),
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
