/*
 * unit_server_compare.c - the pure half of a comparison: lists of shares and names, rows found and
 * held against each other, and what CSV, JSON and plots say of rows that are there and that are
 * not.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "config/check.h"
#include "config/json.h"
#include "server/compare_report.h"

static const char *const known[] = {"direct", "prefetch", "uva", "auto"};

static void test_shares(void **state)
{
    (void)state;
    static struct srv_comparison c;
    char err[ERR_CAP] = "";
    c.rate[SRV_COMPARE_HBM] = 4600e9;
    c.rate[SRV_COMPARE_LINK] = 400e9;
    assert_float_equal(srv_compare_free_share(c.rate), 0.08, 1e-12);
    assert_int_equal(srv_compare_shares_read(&c, "1,0.5,free,0,0.1", err), ST_OK);
    assert_int_equal(c.share_count, 5);
    static const double ascending[] = {0, 0.08, 0.1, 0.5, 1};
    for (int i = 0; i < 5; i++) assert_float_equal(c.shares[i], ascending[i], 1e-12);
    assert_int_equal(c.free_index, 1);
    /* One that is there already is not taken twice, whichever came first. */
    assert_int_equal(srv_compare_shares_read(&c, "0.0804,0,free,0", err), ST_OK);
    assert_int_equal(c.share_count, 2);
    assert_int_equal(c.free_index, 1);
    assert_int_equal(srv_compare_shares_read(&c, "free,0.0797,0.01", err), ST_OK);
    assert_int_equal(c.share_count, 2);
    assert_int_equal(c.free_index, 1);
    assert_int_equal(srv_compare_shares_read(&c, "0.5", err), ST_OK);
    assert_int_equal(c.free_index, -1);
    static const char *const wrong[] = {"", "1.01", "-0.1", "0.1,", "x", "0.1x", "nan", "0.1,,0.2"};
    for (size_t i = 0; i < ARRAY_COUNT(wrong); i++) {
        assert_int_equal(srv_compare_shares_read(&c, wrong[i], err), ST_INVALID);
        assert_non_null(strstr(err, "--compare-offload"));
    }
    char many[256] = "0";
    for (int i = 1; i < 26; i++) snprintf(many + strlen(many), 8, ",0.%03d", 10 * i);
    assert_int_equal(srv_compare_shares_read(&c, many, err), ST_INVALID);
    assert_non_null(strstr(err, "more than 24"));
}

static void test_names(void **state)
{
    (void)state;
    const char *out[SRV_COMPARE_MODES_MAX];
    char err[ERR_CAP] = "";
    int count = 0;
    assert_int_equal(srv_compare_names_read("--m", "auto,direct", known, 4, out, &count, err),
                     ST_OK);
    assert_int_equal(count, 2);
    assert_string_equal(out[0], "auto");
    assert_string_equal(out[1], "direct");
    assert_int_equal(srv_compare_names_read("--m", "fast", known, 4, out, &count, err), ST_INVALID);
    assert_string_equal(err, "--m 'fast' is not a list of some of direct, prefetch, uva, auto");
    assert_int_equal(srv_compare_names_read("--m", "uva,uva", known, 4, out, &count, err),
                     ST_INVALID);
    assert_string_equal(err, "--m names uva twice");
    assert_int_equal(srv_compare_names_read("--m", "", known, 4, out, &count, err), ST_INVALID);
}

/* Shares 0 and 0.1, batches 8 and 512, direct and auto; at 0.1 and 512 nothing fitted. */
static void make(struct srv_comparison *c, const struct options *o)
{
    static struct srv_compare_row rows[8];
    *c = (struct srv_comparison){.options = o,
                                 .backend = "a \"fake\" machine",
                                 .device = "GPU-1",
                                 .architecture = "Llama",
                                 .dtype = "bfloat16",
                                 .tier = "host",
                                 .rate = {4000e9, 50e9},
                                 .copy_bytes_per_s = 55e9,
                                 .best = {4000e9, 55e9},
                                 .placements = {"even"},
                                 .modes = {"direct", "auto"},
                                 .shares = {0, 0.1},
                                 .free_index = -1,
                                 .batches = {8, 512},
                                 .placement_count = 1,
                                 .mode_count = 2,
                                 .share_count = 2,
                                 .batch_count = 2,
                                 .rows = rows,
                                 .row_max = 8};
    static const struct {
        const char *mode;
        double offload, tpot_s;
        int32_t batch;
    } made[] = {{"hbm", 0, 4e-3, 8},     {"hbm", 0, 8e-3, 512},   {"direct", 0.1, 33e-3, 8},
                {"auto", 0.1, 30e-3, 8}, {"direct", 0.1, 0, 512}, {"auto", 0.1, 0, 512}};
    for (size_t i = 0; i < ARRAY_COUNT(made); i++) {
        struct srv_compare_row *r = &rows[c->row_count++];
        const double remote = made[i].offload > 0 ? 1.6e9 : 0;
        *r = (struct srv_compare_row){.placement = "even",
                                      .mode = made[i].mode,
                                      .offload = made[i].offload,
                                      .batch = made[i].batch,
                                      .placed = made[i].offload,
                                      .steps = 9,
                                      .tpot_s = made[i].tpot_s,
                                      .bytes = {(uint64_t)(16e9 - remote), (uint64_t)remote},
                                      .model_s = remote > 0 ? 32e-3 : 4e-3,
                                      .bound = remote > 0 ? SRV_COMPARE_LINK : SRV_COMPARE_HBM,
                                      .limit_s = remote > 0 ? 1600. / 55e3 : 4e-3,
                                      .limit_bound =
                                          remote > 0 ? SRV_COMPARE_LINK : SRV_COMPARE_HBM};
        if (made[i].tpot_s <= 0)
            snprintf(r->missing, sizeof r->missing, "does not fit: \"KV\", too large");
    }
}

static void test_rows(void **state)
{
    (void)state;
    static struct srv_comparison c;
    make(&c, NULL);
    const struct srv_compare_row *direct = srv_compare_find(&c, "even", 1, 8, "direct");
    const struct srv_compare_row *own = srv_compare_find(&c, "even", 1, 8, "auto");
    assert_non_null(direct);
    assert_ptr_equal(srv_compare_best_other(&c, "even", 1, 8), direct);
    assert_float_equal(own->tpot_s / direct->tpot_s, 30. / 33, 1e-12);
    assert_float_equal(srv_compare_bandwidth(own), 16e9 / 30e-3, 1);
    assert_float_equal(srv_compare_model_bandwidth(own), 16e9 / 32e-3, 1);
    assert_float_equal(srv_compare_link_bandwidth(own), 1.6e9 / 30e-3, 1);
    assert_string_equal(srv_compare_bound_name(&c, own->bound), "host");
    /* All in HBM is every mode's row; what was not measured is none. */
    assert_ptr_equal(srv_compare_find(&c, "auto", 0, 512, "auto"), &c.rows[1]);
    assert_null(srv_compare_find(&c, "even", 1, 512, "auto"));
    assert_null(srv_compare_best_other(&c, "even", 1, 512));
    assert_null(srv_compare_find(&c, "auto", 1, 8, "auto"));
}

/* One cell has auto and another mode. */
static void test_sum(void **state)
{
    (void)state;
    static struct srv_comparison c;
    struct srv_compare_sum sum;
    make(&c, NULL);
    srv_compare_sum_up(&c, &sum);
    assert_int_equal(sum.over_best.count, 1);
    assert_float_equal(sum.over_best.median, 30. / 33, 1e-12);
    assert_float_equal(sum.over_best.worst, 30. / 33, 1e-12);
    assert_ptr_equal(sum.over_best.row, &c.rows[3]);
    assert_float_equal(sum.of_copy.worst, 1.6e9 / 30e-3 / 55e9, 1e-12);
    assert_float_equal(sum.of_model.worst, 32. / 30, 1e-12);
    assert_float_equal(sum.of_limit.worst, 1600. / 55 / 30, 1e-12);
    /* A second one, worse in all three, and not bound by the link. */
    c.rows[4].missing[0] = c.rows[5].missing[0] = '\0';
    c.rows[4].tpot_s = 40e-3;
    c.rows[5].tpot_s = 44e-3;
    c.rows[5].limit_bound = OFF_PLAN_COMPUTE;
    srv_compare_sum_up(&c, &sum);
    assert_int_equal(sum.over_best.count, 2);
    assert_float_equal(sum.over_best.worst, 1.1, 1e-12);
    assert_float_equal(sum.over_best.median, (1.1 + 30. / 33) / 2, 1e-12);
    assert_int_equal(sum.of_copy.count, 1);
    assert_float_equal(sum.of_model.worst, 32. / 44, 1e-12);
    assert_ptr_equal(sum.of_model.row, &c.rows[5]);
    assert_float_equal(srv_compare_faster_than_copy(&c), 0, 0);
    c.rows[3].tpot_s = 1.6e9 / 60e9;
    assert_float_equal(srv_compare_faster_than_copy(&c), 60e9, 1);
    c.row_count = 3;
    srv_compare_sum_up(&c, &sum);
    assert_null(sum.over_best.row);
    assert_int_equal(sum.of_model.count, 0);
}

static int count(const char *text, const char *what)
{
    int n = 0;
    for (const char *p = strstr(text, what); p; p = strstr(p + 1, what)) n++;
    return n;
}

static void test_csv(void **state)
{
    (void)state;
    static struct srv_comparison c;
    struct buf b;
    make(&c, NULL);
    buf_init(&b, 1 << 16);
    srv_compare_put_csv(&b, &c);
    assert_int_equal(buf_status(&b), ST_OK);
    assert_int_equal(count(b.data, "\n"), 7);
    /* As many fields in every line; the one with a comma and quotes is quoted. */
    const char *line = b.data;
    int fields = 0;
    for (int i = 0; i < 5; i++, line = strchr(line, '\n') + 1) {
        int commas = 0;
        for (const char *p = line; *p != '\n'; p++) commas += *p == ',';
        if (i == 0) fields = commas;
        assert_int_equal(commas, fields);
    }
    assert_true(fields > 20);
    assert_int_equal(count(b.data, ",\"does not fit: \"\"KV\"\", too large\"\n"), 2);
    assert_non_null(strstr(b.data, "even,0.1,0,8,auto,0.1,9,0,30,"));
    assert_null(strstr(b.data, "nan"));
    buf_deinit(&b);
}

static void test_json(void **state)
{
    (void)state;
    static struct srv_comparison c;
    static struct options o;
    char err[ERR_CAP] = "";
    struct buf b;
    cJSON *root;
    make(&c, &o);
    buf_init(&b, 1 << 16);
    srv_compare_put_json(&b, &c);
    assert_int_equal(buf_status(&b), ST_OK);
    if (json_parse(b.data, b.len, &json_limits_request, &root, err)) fail_msg("%s", err);
    const cJSON *rows = cJSON_GetObjectItem(root, "rows");
    assert_int_equal(cJSON_GetArraySize(rows), 6);
    const cJSON *row = cJSON_GetArrayItem(rows, 3), *missing = cJSON_GetArrayItem(rows, 4);
    assert_float_equal(cJSON_GetObjectItem(row, "tpot_ms")->valuedouble, 30, 1e-9);
    assert_float_equal(cJSON_GetObjectItem(row, "link_over_copy_engine_ratio")->valuedouble,
                       1.6e9 / 30e-3 / 55e9, 1e-9);
    assert_float_equal(cJSON_GetObjectItem(row, "link_at_least_ms")->valuedouble, 1600. / 55, 1e-9);
    assert_null(cJSON_GetObjectItem(missing, "tpot_ms"));
    assert_non_null(cJSON_GetObjectItem(missing, "missing"));
    assert_null(cJSON_GetObjectItem(cJSON_GetArrayItem(rows, 0), "link_over_copy_engine_ratio"));
    assert_float_equal(cJSON_GetObjectItem(root, "auto_over_best_other_worst_ratio")->valuedouble,
                       30. / 33, 1e-5);
    cJSON_Delete(root);
    buf_deinit(&b);
}

static void test_svg(void **state)
{
    (void)state;
    static struct srv_comparison c;
    struct buf b;
    make(&c, NULL);
    buf_init(&b, 1 << 18);
    srv_compare_put_bandwidth_svg(&b, &c);
    assert_int_equal(buf_status(&b), ST_OK);
    /* Two modes: two points at 8, where both shares were measured, and one at 512. */
    assert_int_equal(count(b.data, "<circle "), 2 * 2 + 2 * 1);
    assert_int_equal(count(b.data, "EB(x)"), 2);
    buf_clear(&b);
    srv_compare_put_tpot_svg(&b, &c);
    assert_int_equal(count(b.data, "<circle "), 2 * 2 + 2 * 1);
    assert_null(strstr(b.data, "nan"));
    buf_clear(&b);
    c.row_count = 0;
    srv_compare_put_tpot_svg(&b, &c);
    assert_int_equal(count(b.data, "nothing was measured"), 2);
    buf_deinit(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shares), cmocka_unit_test(test_names), cmocka_unit_test(test_rows),
        cmocka_unit_test(test_sum),    cmocka_unit_test(test_csv),   cmocka_unit_test(test_json),
        cmocka_unit_test(test_svg),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
