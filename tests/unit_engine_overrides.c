/*
 * unit_engine_overrides.c - sizes that --hf-overrides puts in place of config.json's: the model is
 * another in them and in nothing else; what is no size, or no number, is refused with a sentence;
 * a checkpoint is not read with other sizes than its own.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "config/check.h"
#include "engine/weights.h"

#define FIXTURES "tests/fixtures/models/"

static enum status read_shape(const char *dir, const char *overrides, enum eng_load_format format,
                              struct eng_shape *shape, char *err)
{
    const struct eng_model_options opt = {.load_format = format, .hf_overrides = overrides};
    return eng_model_read_shape(dir, &opt, shape, err);
}

static void must(const char *dir, const char *overrides, struct eng_shape *shape)
{
    char err[ERR_CAP] = "";
    if (read_shape(dir, overrides, ENG_LOAD_DUMMY, shape, err)) fail_msg("%s", err);
}

static void test_fewer_layers(void **state)
{
    static const char *const models[] = {"Llama-3.1-8B", "Llama-3.1-70B", "Qwen2.5-7B",
                                         "Qwen3-32B",    "OPT-6.7B",      "OPT-30B"};
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(models); i++) {
        static struct eng_shape whole, six, same, none;
        char dir[128];
        snprintf(dir, sizeof dir, "config/models/%s", models[i]);
        must(dir, NULL, &whole);
        must(dir, "", &same);
        must(dir, "{}", &none);
        must(dir, "{\"num_hidden_layers\": 6}", &six);
        assert_memory_equal(&same.info, &whole.info, sizeof same.info);
        assert_memory_equal(&none.info, &whole.info, sizeof none.info);
        assert_int_equal(six.info.layer_count, 6);
        /* Each layer is as it was, and so is what is outside them. */
        const uint64_t count = (uint64_t)whole.info.layer_count;
        const uint64_t fewer = whole.info.parameter_count - six.info.parameter_count;
        assert_int_equal(fewer % (count - 6), 0);
        assert_int_equal(six.info.hidden, whole.info.hidden);
        assert_int_equal(six.info.context_max, whole.info.context_max);
        assert_true(six.info.parameter_count > 6 * (fewer / (count - 6)));
        must(dir, "{\"num_hidden_layers\": 7}", &same);
        assert_int_equal(same.info.parameter_count - six.info.parameter_count, fewer / (count - 6));
    }
}

static void test_sizes(void **state)
{
    static struct eng_shape shape;
    (void)state;
    must("config/models/Llama-3.1-8B",
         "{\"hidden_size\":512,\"num_attention_heads\":4,\"num_key_value_heads\":2,"
         "\"head_dim\":128,\"intermediate_size\":1024,\"vocab_size\":128256}",
         &shape);
    assert_int_equal(shape.info.hidden, 512);
    assert_int_equal(shape.info.q_heads, 4);
    assert_int_equal(shape.info.kv_heads, 2);
    assert_int_equal(shape.info.head_dim, 128);
    assert_int_equal(shape.info.intermediate, 1024);
    must("config/models/OPT-6.7B", "{\"ffn_dim\":1024,\"max_position_embeddings\":256}", &shape);
    assert_int_equal(shape.info.intermediate, 1024);
    assert_int_equal(shape.info.context_max, 256);
    assert_int_equal(shape.position_rows, 258);
}

static void test_refused(void **state)
{
    static const struct {
        const char *model, *overrides, *says;
    } cases[] = {
        {"Llama-3.1-8B", "8", "is not a JSON object"},
        {"Llama-3.1-8B", "[\"num_hidden_layers\"]", "is not a JSON object"},
        {"Llama-3.1-8B", "num_hidden_layers=8", "is not a JSON object"},
        {"Llama-3.1-8B", "{\"num_hidden_layers\": 8", "is not a JSON object"},
        {"Llama-3.1-8B", "{\"num_hidden_layers\": 8, \"num_hidden_layers\": 9}", "JSON object"},
        {"Llama-3.1-8B", "{\"num_layers\": 8}", "'num_layers' is not one of the sizes"},
        {"Llama-3.1-8B", "{\"num_hidden_layers\": {\"text\": 8}}", "must be a number"},
        {"Llama-3.1-8B", "{\"num_hidden_layers\": \"8\"}", "must be a number"},
        {"Llama-3.1-8B", "{\"num_hidden_layers\": null}", "must be a number"},
        {"Llama-3.1-8B", "{\"num_hidden_layers\": 0}", "must be between 1 and"},
        {"Llama-3.1-8B", "{\"num_hidden_layers\": 7.5}", "must be an integer"},
        {"Llama-3.1-8B", "{\"num_key_value_heads\": 5}", "not a multiple"},
        {"Llama-3.1-8B", "{\"max_position_embeddings\": 64}", "is not one of the sizes"},
        {"Llama-3.1-8B", "{\"rope_theta\": 1e4}", "is not one of the sizes"},
        {"Llama-3.1-8B", "{\"ffn_dim\": 64}", "is not one of the sizes"},
        {"OPT-6.7B", "{\"intermediate_size\": 64}", "vocab_size, ffn_dim, max_position"},
        {"OPT-6.7B", "{\"num_key_value_heads\": 4}", "is not one of the sizes"},
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        static struct eng_shape shape;
        char dir[128], err[ERR_CAP] = "";
        snprintf(dir, sizeof dir, "config/models/%s", cases[i].model);
        assert_int_equal(read_shape(dir, cases[i].overrides, ENG_LOAD_DUMMY, &shape, err),
                         ST_INVALID);
        if (!strstr(err, cases[i].says) || !strstr(err, "config.json with --hf-overrides: "))
            fail_msg("%s: %s", cases[i].overrides, err);
    }
}

/* Qwen3 may name every layer's type: fewer layers are the first of them, more have none. */
static void test_layer_types(void **state)
{
    static struct eng_shape whole, one, more;
    char err[ERR_CAP] = "";
    (void)state;
    must(FIXTURES "qwen3", NULL, &whole);
    assert_true(whole.info.layer_count > 1);
    must(FIXTURES "qwen3", "{\"num_hidden_layers\":1}", &one);
    assert_int_equal(one.info.layer_count, 1);
    assert_int_equal(one.window[0], whole.window[0]);
    assert_int_equal(
        read_shape(FIXTURES "qwen3", "{\"num_hidden_layers\":64}", ENG_LOAD_DUMMY, &more, err),
        ST_INVALID);
    assert_non_null(strstr(err, "'layer_types' must be a list of 64 names"));
}

static void test_checkpoints_are_refused(void **state)
{
    static struct eng_shape shape;
    char err[ERR_CAP] = "";
    (void)state;
    assert_int_equal(read_shape(FIXTURES "llama-gqa", "{\"num_hidden_layers\":1}",
                                ENG_LOAD_SAFETENSORS, &shape, err),
                     ST_INVALID);
    assert_non_null(strstr(err, "--load-format dummy"));
    assert_int_equal(read_shape(FIXTURES "llama-gqa", "", ENG_LOAD_SAFETENSORS, &shape, err),
                     ST_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fewer_layers),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_layer_types),
        cmocka_unit_test(test_checkpoints_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
