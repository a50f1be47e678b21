/*
 * unit_server_probe.c - what is kept of a measurement and what is measured again: whole files,
 * tiers that a file lacks, damaged and foreign files, places that cannot be written; and the plot.
 */
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
#include "config/log.h"
#include "server/probe.h"
#include "tests/fake_link.h"

static struct options o;
static char path[OPT_STRING_CAP + 32];

static const struct off_remote host = {.spec = {{KN_MEM_HOST, 0, 1 << 28}}, .count = 1};
static const struct off_remote both = {
    .spec = {{KN_MEM_PEER, 1, 1 << 28}, {KN_MEM_HOST, 0, 1 << 28}}, .count = 2};

static int make_folder(void **state)
{
    (void)state;
    o = (struct options){0};
    snprintf(o.state_dir, sizeof o.state_dir, "/tmp/dakd-state-XXXXXX");
    if (!mkdtemp(o.state_dir)) return -1;
    snprintf(path, sizeof path, "%s/probe-fake.json", o.state_dir);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    if (unlink(path)) { /* a test may have written none */
    }
    return rmdir(o.state_dir);
}

/* Measurements that were made for it. */
static int links_of(const struct off_remote *remote, struct off_links *links)
{
    struct fake f = {.kn = {&fake_backend}};
    char err[ERR_CAP] = "";
    if (srv_probe_links(&o, &f.kn, remote, links, err)) fail_msg("%s", err);
    assert_int_equal(f.allocated, 0);
    for (int i = 0; i < remote->count; i++) {
        char name[OFF_TIER_NAME_CAP];
        off_tier_spec_name(&remote->spec[i], name);
        assert_non_null(off_links_find(links, name));
    }
    assert_true(links->hbm_bytes_per_s > 0);
    return f.calls;
}

static void test_kept(void **state)
{
    (void)state;
    static struct off_links links, again;
    int calls = links_of(&host, &links);
    assert_true(calls > 24);
    assert_int_equal(links_of(&host, &again), 0);
    assert_int_equal(again.link_count, 1);
    assert_int_equal(again.unix_s, links.unix_s);
    /* The tier it lacks is measured, and the other one kept. */
    int more = links_of(&both, &links);
    assert_true(more > 24 && more <= calls);
    assert_int_equal(links.link_count, 2);
    assert_int_equal(links_of(&both, &again), 0);
    assert_int_equal(links_of(&host, &again), 0);
    assert_int_equal(again.link_count, 2);
    /* As asked, all of it is measured again. */
    o.reprobe = true;
    assert_int_equal(links_of(&host, &links), calls);
    o.reprobe = false;
}

/* A tier that has KV pages alone. */
static void test_pool(void **state)
{
    (void)state;
    static struct off_links links;
    struct off_remote pool = {0};
    int tier;
    char err[ERR_CAP] = "";
    assert_int_equal(off_remote_add_pool("host:1GiB", "--x", &pool, &tier, err), ST_OK);
    assert_true(links_of(&pool, &links) > 24);
    assert_int_equal(links_of(&host, &links), 0);
}

static void test_damaged(void **state)
{
    (void)state;
    static struct off_links links;
    char err[ERR_CAP] = "", *text;
    size_t len;
    int calls = links_of(&host, &links);
    if (file_read(path, 1 << 20, &text, &len, err)) fail_msg("%s", err);
    char *other = strstr(text, "\"fake\"");
    assert_non_null(other);
    memcpy(other, "\"fade\"", 6); /* another device */
    assert_int_equal(file_replace(path, text, len, err), ST_OK);
    assert_int_equal(links_of(&host, &links), calls);
    assert_int_equal(links_of(&host, &links), 0);
    assert_int_equal(file_replace(path, text, len / 2, err), ST_OK);
    assert_int_equal(links_of(&host, &links), calls);
    assert_int_equal(links_of(&host, &links), 0);
    free(text);
}

/* What cannot be kept costs a measurement each time, and nothing else. */
static void test_no_place(void **state)
{
    (void)state;
    static struct off_links links;
    char was[OPT_STRING_CAP];
    memcpy(was, o.state_dir, sizeof was);
    snprintf(o.state_dir, sizeof o.state_dir, "/proc/dakd");
    assert_true(links_of(&host, &links) > 24);
    o.state_dir[0] = '\0';
    assert_true(links_of(&host, &links) > 24);
    memcpy(o.state_dir, was, sizeof was);
}

static void test_disturbed(void **state)
{
    (void)state;
    static struct off_links links;
    char err[ERR_CAP] = "";
    struct fake f = {.kn = {&fake_backend}, .slow_call = 2};
    if (srv_probe_links(&o, &f.kn, &host, &links, err)) fail_msg("%s", err);
    assert_int_equal(links.link_count, 1);
    assert_false(file_exists(path));
    assert_true(links_of(&host, &links) > 24);
    assert_true(file_exists(path));
}

static void test_failures(void **state)
{
    (void)state;
    static struct off_links links;
    char err[ERR_CAP] = "";
    struct fake f = {.kn = {&fake_backend}, .fail_call = 5};
    assert_int_equal(srv_probe_links(&o, &f.kn, &host, &links, err), ST_DEVICE);
    assert_false(file_exists(path));
    f = (struct fake){.kn = {&no_link_backend}};
    assert_int_equal(srv_probe_links(&o, &f.kn, &host, &links, err), ST_UNSUPPORTED);
}

/* Elements that are opened are closed, and every coordinate lies on the sheet. */
static void test_svg(void **state)
{
    (void)state;
    static struct off_links links;
    struct buf b;
    int depth = 0, circles = 0;
    links_of(&both, &links);
    for (int count = 2; count >= 0; count -= 2) {
        links.link_count = count;
        buf_init(&b, 1 << 20);
        srv_probe_put_svg(&b, &links);
        assert_int_equal(buf_status(&b), ST_OK);
        assert_int_equal(strncmp(b.data, "<svg ", 5), 0);
        for (const char *p = b.data; *p; p++) {
            if (p[0] == '<' && p[1] == '/') depth--;
            else if (p[0] == '<') depth++;
            if (p[0] == '/' && p[1] == '>') depth--;
            assert_true(depth >= 0);
            circles += strncmp(p, "<circle ", 8) == 0;
            if (strncmp(p, " cx='", 5) == 0) assert_true(atof(p + 5) >= 60 && atof(p + 5) <= 720);
            if (strncmp(p, " cy='", 5) == 0) assert_true(atof(p + 5) >= 0 && atof(p + 5) <= 640);
        }
        assert_int_equal(depth, 0);
        assert_null(strstr(b.data, "nan"));
        buf_deinit(&b);
    }
    assert_int_equal(circles, 2 * 2 * 24);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_kept, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_pool, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_damaged, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_no_place, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_disturbed, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_failures, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_svg, make_folder, remove_folder),
    };
    log_init(LOG_ERROR, 0);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
