/*
 * unit_engine_rope.c - rotary tables against the Python reference
 * (tests/fixtures/models/rope.json), and the reading of their configuration.
 *
 * The bound: an angle near position p carries one rounding of the frequency (which differs by at
 * most one unit in the last place between the two), one of the product and one of the reduction, so
 * cosines may differ by about 2 * p * 2^-24, plus a few units of fp32.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "config/check.h"
#include "config/json.h"
#include "engine/rope.h"

static cJSON *parse(const char *text)
{
    cJSON *root;
    char err[ERR_CAP] = "";
    if (json_parse(text, strlen(text), &json_limits_file, &root, err)) fail_msg("%s", err);
    return root;
}

static void check_case(const cJSON *item, int index)
{
    const cJSON *config = json_member(item, "config");
    const cJSON *positions = json_member(item, "positions"), *rows = json_member(item, "rows");
    int32_t head_dim = json_member(config, "head_dim")->valueint;
    struct eng_rope rope;
    char err[ERR_CAP] = "";
    double worst = 0;
    float table[512];
    int32_t position_max = json_member(config, "max_position_embeddings")->valueint;
    if (eng_rope_parse(config, head_dim, position_max, &rope, err)) fail_msg("%d: %s", index, err);
    for (int i = 0; i < cJSON_GetArraySize(positions); i++) {
        int32_t p = cJSON_GetArrayItem(positions, i)->valueint;
        const cJSON *row = cJSON_GetArrayItem(rows, i);
        assert_int_equal(cJSON_GetArraySize(row), head_dim);
        eng_rope_table(&rope, p, 1, table);
        int32_t k = 0;
        double bound = 4e-7 + 2.0 * p / 16777216;
        for (const cJSON *v = row->child; v; v = v->next, k++) {
            double d = fabs(v->valuedouble - (double)table[k]);
            if (!(d <= bound))
                fail_msg("case %d, position %d, element %d: %.9g is not %.9g", index, p, k,
                         (double)table[k], v->valuedouble);
            worst = fmax(worst, d);
        }
    }
    print_message("case %d: worst difference %.1e\n", index, worst);
}

static void reference_tables(void **state)
{
    cJSON *cases;
    char err[ERR_CAP] = "";
    int i = 0;
    (void)state;
    if (json_parse_file("tests/fixtures/models/rope.json", &json_limits_file, &cases, err))
        fail_msg("%s", err);
    for (const cJSON *item = cases->child; item; item = item->next) check_case(item, i++);
    assert_int_equal(i, 9);
    cJSON_Delete(cases);
}

/* A table filled in any pieces is the same, the moving frequencies of dynamic scaling included. */
static void pieces_equal(void **state)
{
    static const char *const kinds[] = {"default", "linear", "dynamic", "yarn"};
    (void)state;
    for (size_t k = 0; k < ARRAY_COUNT(kinds); k++) {
        cJSON *root = parse("{\"rope_scaling\": {\"type\": \"x\", \"factor\": 3}}");
        cJSON *params = cJSON_GetObjectItem(root, "rope_scaling");
        cJSON_ReplaceItemInObject(params, "type", cJSON_CreateString(kinds[k]));
        struct eng_rope rope;
        char err[ERR_CAP] = "";
        if (eng_rope_parse(root, 8, 40, &rope, err)) fail_msg("%s", err);
        float whole[100 * 8], pieces[100 * 8];
        eng_rope_table(&rope, 0, 100, whole);
        for (int32_t p = 0, n; p < 100; p += n) {
            n = p % 7 + 1 < 100 - p ? p % 7 + 1 : 100 - p;
            eng_rope_table(&rope, p, n, pieces + 8 * p);
        }
        assert_memory_equal(whole, pieces, sizeof whole);
        cJSON_Delete(root);
    }
}

static void old_and_new_keys_agree(void **state)
{
    static const char *const pairs[][2] = {
        {"{\"rope_theta\": 500000}", "{\"rope_parameters\": {\"rope_type\": \"default\", "
                                     "\"rope_theta\": 500000}}"},
        {"{\"rope_theta\": 20000, \"rope_scaling\": {\"type\": \"linear\", \"factor\": 2}}",
         "{\"rope_parameters\": {\"rope_type\": \"linear\", \"rope_theta\": 20000, \"factor\": "
         "2}}"},
        {"{\"rope_scaling\": {\"rope_type\": \"llama3\", \"type\": \"linear\", \"factor\": 8, "
         "\"low_freq_factor\": 1, \"high_freq_factor\": 4, "
         "\"original_max_position_embeddings\": 64}}",
         "{\"original_max_position_embeddings\": 64, \"rope_parameters\": {\"rope_type\": "
         "\"llama3\", \"factor\": 8, \"low_freq_factor\": 1, \"high_freq_factor\": 4, "
         "\"rope_theta\": 10000, \"original_max_position_embeddings\": 77}}"},
        {"{\"rope_scaling\": null}", "{}"},
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(pairs); i++) {
        struct eng_rope rope[2];
        char err[ERR_CAP] = "";
        float a[64 * 16], b[64 * 16];
        for (int j = 0; j < 2; j++) {
            cJSON *root = parse(pairs[i][j]);
            if (eng_rope_parse(root, 16, 256, &rope[j], err)) fail_msg("%s", err);
            cJSON_Delete(root);
        }
        eng_rope_table(&rope[0], 100, 64, a);
        eng_rope_table(&rope[1], 100, 64, b);
        assert_memory_equal(a, b, sizeof a);
        assert_int_equal(eng_rope_context(&rope[0]), eng_rope_context(&rope[1]));
    }
}

static void contexts(void **state)
{
    static const struct {
        const char *text;
        int32_t context;
    } cases[] = {
        {"{}", 4096},
        {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2.5}}", 10240},
        {"{\"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2}}", 8192},
        {"{\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4}}", 16384},
        {"{\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4, "
         "\"original_max_position_embeddings\": 1024}}",
         4096},
        {"{\"rope_scaling\": {\"type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1, "
         "\"high_freq_factor\": 4, \"original_max_position_embeddings\": 512}}",
         4096},
        {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 1e6}}", 1 << 24},
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct eng_rope rope;
        char err[ERR_CAP] = "";
        cJSON *root = parse(cases[i].text);
        if (eng_rope_parse(root, 64, 4096, &rope, err)) fail_msg("%s", err);
        assert_int_equal(eng_rope_context(&rope), cases[i].context);
        cJSON_Delete(root);
    }
}

static void refused(void **state)
{
    static const struct {
        const char *text, *names;
    } cases[] = {
        {"{\"rope_scaling\": {\"type\": \"longrope\", \"factor\": 2}}", "longrope"},
        {"{\"rope_scaling\": {\"type\": \"mrope\"}}", "mrope"},
        {"{\"rope_scaling\": {\"rope_type\": \"default\", \"mrope_section\": [1, 2]}}", "mrope"},
        {"{\"rope_scaling\": 5}", "rope_scaling"},
        {"{\"rope_scaling\": {\"type\": 5}}", "type"},
        {"{\"rope_scaling\": {\"type\": \"linear\"}}", "factor"},
        {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 0}}", "factor"},
        {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": -2}}", "factor"},
        {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": \"2\"}}", "factor"},
        {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 1e300}}", "factor"},
        {"{\"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 0.5}}", "factor"},
        {"{\"rope_scaling\": {\"type\": \"llama3\", \"factor\": 8}}", "low_freq_factor"},
        {"{\"rope_scaling\": {\"type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4, "
         "\"high_freq_factor\": 4}}",
         "high_freq_factor"},
        {"{\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 2, "
         "\"original_max_position_embeddings\": 0}}",
         "original_max"},
        {"{\"rope_theta\": 0}", "rope_theta"},
        {"{\"rope_theta\": -5}", "rope_theta"},
        {"{\"rope_theta\": [1]}", "rope_theta"},
        {"{\"rope_theta\": 0.5, \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 2}}", "theta"},
        {"{\"partial_rotary_factor\": 0.5}", "partial_rotary_factor"},
        {"{\"rope_parameters\": {\"partial_rotary_factor\": 0.5}}", "partial_rotary_factor"},
        {"{\"rope_parameters\": {\"full_attention\": {\"rope_type\": \"default\"}}}", "full_att"},
    };
    struct eng_rope rope;
    char err[ERR_CAP];
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        cJSON *root = parse(cases[i].text);
        err[0] = '\0';
        if (!eng_rope_parse(root, 64, 4096, &rope, err)) fail_msg("%s passed", cases[i].text);
        if (!strstr(err, cases[i].names)) fail_msg("%s: %s", cases[i].text, err);
        cJSON_Delete(root);
    }
    cJSON *empty = parse("{}");
    assert_int_equal(eng_rope_parse(empty, 63, 4096, &rope, err), ST_UNSUPPORTED);
    assert_int_equal(eng_rope_parse(empty, 0, 4096, &rope, err), ST_UNSUPPORTED);
    cJSON_Delete(empty);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reference_tables),
        cmocka_unit_test(pieces_equal),
        cmocka_unit_test(old_and_new_keys_agree),
        cmocka_unit_test(contexts),
        cmocka_unit_test(refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
