/*
 * fault_engine_load.c - malformed model directories.  Each case spoils one file of a sound micro
 * model and must end in an error whose sentence names the file and what is wrong; then random bytes
 * are spoilt, and what does not end in an error must be a model that opens.  Leaks and stray reads
 * are the sanitizers'.
 */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "config/file.h"
#include "config/json.h"
#include "engine/model.h"
#include "tests/model_dir.h"

struct faults {
    struct kn *kn;
    int count; /* malformed directories seen */
};

static enum status open_dir(struct faults *f, const struct model_dir *d, char *err)
{
    struct off_tiers *tiers;
    struct eng_model *model;
    struct eng_model_options opt = {.tokens_max = 4, .rows_max = 4};
    if (off_tiers_open(f->kn, 4 << 20, NULL, &tiers, err)) fail_msg("%s", err);
    enum status st = eng_model_open(f->kn, tiers, d->path, &opt, &model, err);
    assert_true((st == ST_OK) == (model != NULL));
    eng_model_close(model);
    off_tiers_close(tiers);
    return st;
}

static void expect_error(struct faults *f, const struct model_dir *d, const char *what,
                         const char *names)
{
    char err[ERR_CAP] = "";
    if (open_dir(f, d, err) == ST_OK) fail_msg("accepted: %s", what);
    if (!err[0] || !strstr(err, names)) fail_msg("%s: '%s' does not name '%s'", what, err, names);
    if (!strstr(err, d->path)) fail_msg("%s: '%s' does not name the file", what, err);
    f->count++;
}

static void sound_model_opens(void **state)
{
    struct model_dir d;
    char err[ERR_CAP] = "";
    dir_make(&d);
    micro_write(&d);
    if (open_dir(*state, &d, err)) fail_msg("%s", err);
    dir_remove(&d);
}

/* --- config.json ------------------------------------------------------------------------------ */

/* A patch replaces members of the micro configuration; "@delete" takes one away. */
static const struct {
    const char *patch, *names;
} config_cases[] = {
    {"{\"vocab_size\": \"@delete\"}", "vocab_size"},
    {"{\"hidden_size\": \"@delete\"}", "hidden_size"},
    {"{\"num_hidden_layers\": \"@delete\"}", "num_hidden_layers"},
    {"{\"num_attention_heads\": \"@delete\"}", "num_attention_heads"},
    {"{\"intermediate_size\": \"@delete\"}", "intermediate_size"},
    {"{\"max_position_embeddings\": \"@delete\"}", "max_position_embeddings"},
    {"{\"architectures\": \"@delete\", \"model_type\": \"@delete\"}", "architectures"},
    {"{\"hidden_size\": 0}", "hidden_size"},
    {"{\"hidden_size\": -8}", "hidden_size"},
    {"{\"hidden_size\": 1000000000}", "hidden_size"},
    {"{\"hidden_size\": 1e300}", "hidden_size"},
    {"{\"hidden_size\": 8.5}", "hidden_size"},
    {"{\"hidden_size\": \"8\"}", "hidden_size"},
    {"{\"hidden_size\": [8]}", "hidden_size"},
    {"{\"hidden_size\": true}", "hidden_size"},
    {"{\"hidden_size\": null}", "hidden_size"},
    {"{\"hidden_size\": 16}", "[16,16]"},
    {"{\"hidden_size\": 9, \"head_dim\": null}", "hidden_size"},
    {"{\"num_attention_heads\": 0}", "num_attention_heads"},
    {"{\"num_attention_heads\": -1}", "num_attention_heads"},
    {"{\"num_attention_heads\": 4294967297}", "num_attention_heads"},
    {"{\"num_attention_heads\": 3}", "q_proj"},
    {"{\"num_key_value_heads\": 0}", "num_key_value_heads"},
    {"{\"num_key_value_heads\": 4}", "num_key_value_heads"},
    {"{\"num_key_value_heads\": 2}", "k_proj"},
    {"{\"num_key_value_heads\": \"1\"}", "num_key_value_heads"},
    {"{\"head_dim\": 0}", "head_dim"},
    {"{\"head_dim\": -4}", "head_dim"},
    {"{\"head_dim\": 3}", "head_dim"},
    {"{\"head_dim\": 513}", "head_dim"},
    {"{\"head_dim\": 6}", "q_proj"},
    {"{\"num_hidden_layers\": 0}", "num_hidden_layers"},
    {"{\"num_hidden_layers\": 100000}", "num_hidden_layers"},
    {"{\"num_hidden_layers\": 2}", "model.layers.1."},
    {"{\"vocab_size\": 17}", "embed_tokens"},
    {"{\"vocab_size\": -1}", "vocab_size"},
    {"{\"vocab_size\": 1e15}", "vocab_size"},
    {"{\"intermediate_size\": 9}", "gate_proj"},
    {"{\"intermediate_size\": 4294967304}", "intermediate_size"},
    {"{\"max_position_embeddings\": 0}", "max_position_embeddings"},
    {"{\"max_position_embeddings\": 2000000000}", "max_position_embeddings"},
    {"{\"rms_norm_eps\": -1}", "rms_norm_eps"},
    {"{\"rms_norm_eps\": \"x\"}", "rms_norm_eps"},
    {"{\"hidden_act\": \"gelu\"}", "gelu"},
    {"{\"hidden_act\": 5}", "hidden_act"},
    {"{\"tie_word_embeddings\": \"yes\"}", "tie_word_embeddings"},
    {"{\"tie_word_embeddings\": true}", "lm_head.weight"},
    {"{\"attention_bias\": true}", "q_proj.bias"},
    {"{\"attention_bias\": 1}", "attention_bias"},
    {"{\"mlp_bias\": true}", "gate_proj.bias"},
    {"{\"rope_scaling\": {\"type\": \"longrope\"}}", "longrope"},
    {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": -1}}", "factor"},
    {"{\"rope_parameters\": []}", "rope_parameters"},
    {"{\"rope_theta\": 0}", "rope_theta"},
    {"{\"quantization_config\": {\"quant_method\": \"gptq\"}}", "gptq"},
    {"{\"quantization_config\": 5}", "quantization_config"},
    {"{\"torch_dtype\": \"float8_e4m3fn\"}", "float8_e4m3fn"},
    {"{\"dtype\": 16}", "dtype"},
    {"{\"architectures\": []}", "architectures"},
    {"{\"architectures\": [5]}", "architectures"},
    {"{\"architectures\": \"LlamaForCausalLM\"}", "architectures"},
    {"{\"architectures\": [\"GPT2LMHeadModel\"]}", "GPT2LMHeadModel"},
    {"{\"architectures\": [\"MistralForCausalLM\"]}", "MistralForCausalLM"},
    {"{\"model_type\": \"gpt2\"}", "gpt2"},
    {"{\"model_type\": 7}", "model_type"},
    {"{\"architectures\": \"@delete\", \"model_type\": \"mamba\"}", "mamba"},
    {"{\"eos_token_id\": 16}", "eos_token_id"},
    {"{\"eos_token_id\": -1}", "eos_token_id"},
    {"{\"eos_token_id\": \"</s>\"}", "eos_token_id"},
    {"{\"eos_token_id\": [1, 2, 99]}", "eos_token_id"},
    {"{\"eos_token_id\": [0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,0]}", "eos_token_id"},
    {"{\"bos_token_id\": 1.5}", "bos_token_id"},
    {"{\"architectures\": [\"MistralForCausalLM\"], \"model_type\": \"mistral\", "
     "\"sliding_window\": 0}",
     "sliding_window"},
    {"{\"architectures\": [\"Qwen2ForCausalLM\"], \"model_type\": \"qwen2\"}", "q_proj.bias"},
    {"{\"architectures\": [\"Qwen3ForCausalLM\"], \"model_type\": \"qwen3\"}", "q_norm"},
    {"{\"architectures\": [\"Qwen3ForCausalLM\"], \"model_type\": \"qwen3\", \"layer_types\": []}",
     "layer_types"},
    {"{\"architectures\": [\"Qwen3ForCausalLM\"], \"model_type\": \"qwen3\", \"layer_types\": "
     "[\"chunked_attention\"]}",
     "chunked_attention"},
    {"{\"architectures\": [\"Qwen3ForCausalLM\"], \"model_type\": \"qwen3\", \"layer_types\": "
     "[\"sliding_attention\"]}",
     "sliding_window"},
    {"{\"architectures\": [\"OPTForCausalLM\"], \"model_type\": \"opt\"}", "ffn_dim"},
    {"{\"architectures\": [\"OPTForCausalLM\"], \"model_type\": \"opt\", \"ffn_dim\": 8}",
     "model.decoder."},
    {"{\"architectures\": [\"OPTForCausalLM\"], \"model_type\": \"opt\", \"ffn_dim\": 8, "
     "\"word_embed_proj_dim\": 4}",
     "word_embed_proj_dim"},
    {"{\"architectures\": [\"OPTForCausalLM\"], \"model_type\": \"opt\", \"ffn_dim\": 8, "
     "\"do_layer_norm_before\": false}",
     "do_layer_norm_before"},
    {"{\"architectures\": [\"OPTForCausalLM\"], \"model_type\": \"opt\", \"ffn_dim\": 8, "
     "\"activation_function\": \"gelu\"}",
     "activation_function"},
};

static char *patched(const char *base, const char *patch)
{
    cJSON *root = cJSON_Parse(base), *changes = cJSON_Parse(patch);
    CHECK(root && changes);
    for (const cJSON *item = changes->child; item; item = item->next) {
        cJSON_DeleteItemFromObjectCaseSensitive(root, item->string);
        if (cJSON_IsString(item) && !strcmp(item->valuestring, "@delete")) continue;
        CHECK(cJSON_AddItemToObject(root, item->string, cJSON_Duplicate(item, 1)));
    }
    char *text = cJSON_PrintUnformatted(root);
    CHECK(text);
    cJSON_Delete(root);
    cJSON_Delete(changes);
    return text;
}

static void malformed_configs(void **state)
{
    struct model_dir d;
    dir_make(&d);
    micro_write(&d);
    for (size_t i = 0; i < ARRAY_COUNT(config_cases); i++) {
        char *text = patched(micro_config, config_cases[i].patch);
        dir_write_text(&d, "config.json", text);
        expect_error(*state, &d, config_cases[i].patch, config_cases[i].names);
        free(text);
    }
    dir_remove(&d);
}

static void malformed_config_texts(void **state)
{
    static const char *const texts[] = {"",
                                        " ",
                                        "{",
                                        "{}",
                                        "[]",
                                        "null",
                                        "5",
                                        "\"config\"",
                                        "{\"a\":1}x",
                                        "{\"a\":1,\"a\":2}",
                                        "{'a': 1}",
                                        "{\"a\": NaN}",
                                        "{\"a\": 1e999}",
                                        "\xEF\xBB\xBF{}",
                                        "{\"a\": \"\xFF\"}",
                                        "{\"a\": \"\\ud800\"}",
                                        "{\"a\": \"\\u0000\"}",
                                        "<html>404</html>",
                                        "version https://git-lfs.github.com/spec/v1"};
    struct model_dir d;
    char path[256];
    dir_make(&d);
    micro_write(&d);
    for (size_t i = 0; i < ARRAY_COUNT(texts); i++) {
        dir_write_text(&d, "config.json", texts[i]);
        expect_error(*state, &d, texts[i], "config.json");
    }
    dir_write(&d, "config.json", "{\0}", 3);
    expect_error(*state, &d, "a NUL", "config.json");
    size_t deep = 100000, large = 5u << 20;
    char *bomb = malloc(large);
    assert_non_null(bomb);
    memset(bomb, '[', deep);
    dir_write(&d, "config.json", bomb, deep);
    expect_error(*state, &d, "nested 100,000 deep", "config.json");
    memset(bomb, ' ', large);
    dir_write(&d, "config.json", bomb, large);
    expect_error(*state, &d, "5 MiB of spaces", "config.json");
    free(bomb);
    dir_file(&d, "config.json", path);
    assert_int_equal(remove(path), 0);
    expect_error(*state, &d, "no config.json", "config.json");
    assert_int_equal(mkdir(path, 0700), 0);
    expect_error(*state, &d, "a directory", "config.json");
    dir_remove(&d);
}

static void malformed_generation_configs(void **state)
{
    static const char *const texts[] = {
        "",
        "[]",
        "{\"eos_token_id\": 99}",
        "{\"eos_token_id\": {}}",
        "{\"temperature\": -1}",
        "{\"temperature\": \"hot\"}",
        "{\"top_p\": 1.5}",
        "{\"top_k\": 1.5}",
        "{\"min_p\": -0.1}",
        "{\"repetition_penalty\": 0}",
    };
    struct model_dir d;
    dir_make(&d);
    micro_write(&d);
    for (size_t i = 0; i < ARRAY_COUNT(texts); i++) {
        dir_write_text(&d, "generation_config.json", texts[i]);
        expect_error(*state, &d, texts[i], "generation_config.json");
    }
    dir_remove(&d);
}

/* --- model.safetensors ------------------------------------------------------------------------ */

#define EMBED                                                                                      \
    "\"model.embed_tokens.weight\":{\"dtype\":\"F32\",\"shape\":[16,8],\"data_offsets\":[0,512]}"
#define NORM "\"model.norm.weight\":{\"dtype\":\"F32\",\"shape\":[8],\"data_offsets\":[1024,1056]}"
#define EMBED_SHAPE(s)                                                                             \
    EMBED, "\"model.embed_tokens.weight\":{\"dtype\":\"F32\",\"shape\":" s                         \
           ",\"data_offsets\":[0,512]}"
#define EMBED_DTYPE(t)                                                                             \
    EMBED, "\"model.embed_tokens.weight\":{\"dtype\":" t                                           \
           ",\"shape\":[16,8],\"data_offsets\":[0,512]}"
#define NORM_OFFSETS(o)                                                                            \
    NORM, "\"model.norm.weight\":{\"dtype\":\"F32\",\"shape\":[8],\"data_offsets\":" o "}"

/* The first occurrence of `from` in the header becomes `to`; the data stay as they are. */
static const struct {
    const char *from, *to, *names;
} header_cases[] = {
    {EMBED_SHAPE("[8,16]"), "embed_tokens"},
    {EMBED_SHAPE("[128]"), "embed_tokens"},
    {EMBED_SHAPE("[16,8,1]"), "embed_tokens"},
    {EMBED_SHAPE("[]"), "embed_tokens"},
    {EMBED_SHAPE("[16,9]"), "embed_tokens"},
    {EMBED_SHAPE("[16,0]"), "embed_tokens"},
    {EMBED_SHAPE("[-16,-8]"), "embed_tokens"},
    {EMBED_SHAPE("[16.5,8]"), "embed_tokens"},
    {EMBED_SHAPE("[\"16\",8]"), "embed_tokens"},
    {EMBED_SHAPE("[1099511627776,1099511627776]"), "absurd"},
    {EMBED_SHAPE("[9007199254740992,2048]"), "absurd"},
    {EMBED_SHAPE("[4611686018427387905]"), "embed_tokens"},
    {EMBED_SHAPE("[1e300,8]"), "embed_tokens"},
    {EMBED_SHAPE("[1,1,1,1,1,1,1,16,8]"), "dimensions"},
    {EMBED_SHAPE("[[16,8]]"), "embed_tokens"},
    {EMBED_SHAPE("{\"a\":1}"), "embed_tokens"},
    {EMBED_SHAPE("null"), "embed_tokens"},
    {EMBED_DTYPE("\"F16\""), "embed_tokens"},
    {EMBED_DTYPE("\"I32\""), "I32"},
    {EMBED_DTYPE("\"U32\""), "U32"},
    {EMBED_DTYPE("\"F13\""), "F13"},
    {EMBED_DTYPE("\"f32\""), "f32"},
    {EMBED_DTYPE("\"\""), "dtype"},
    {EMBED_DTYPE("32"), "dtype"},
    {EMBED_DTYPE("null"), "dtype"},
    {NORM_OFFSETS("[1020,1052]"), "overlap"},
    {NORM_OFFSETS("[1028,1060]"), "safetensors"},
    {NORM_OFFSETS("[1056,1024]"), "norm"},
    {NORM_OFFSETS("[-32,0]"), "norm"},
    {NORM_OFFSETS("[1024,1057]"), "norm"},
    {NORM_OFFSETS("[1024.5,1056.5]"), "norm"},
    {NORM_OFFSETS("[1024]"), "norm"},
    {NORM_OFFSETS("[1024,1056,1088]"), "norm"},
    {NORM_OFFSETS("[\"1024\",\"1056\"]"), "norm"},
    {NORM_OFFSETS("[1152921504606846976,1152921504606847008]"), "norm"},
    {NORM_OFFSETS("[18446744073709551584,18446744073709551616]"), "norm"},
    {NORM_OFFSETS("[1e300,1e301]"), "norm"},
    {NORM_OFFSETS("null"), "norm"},
    {NORM_OFFSETS("[0,32]"), "overlap"},
    {NORM, "\"model.norm.weight\":5", "norm"},
    {NORM, "\"model.norm.weight\":{}", "norm"},
    {NORM, "\"model.norm.weight\":[8]", "norm"},
    {NORM ",", "", "belong to none"},
    {NORM, "\"model.norm.bias\":{\"dtype\":\"F32\",\"shape\":[8],\"data_offsets\":[1024,1056]}",
     "model.norm.weight"},
    {NORM, NORM "," NORM, "model.safetensors"},
    {NORM, "\"lm_head.weight\":{\"dtype\":\"F32\",\"shape\":[8],\"data_offsets\":[1024,1056]}",
     "model.safetensors"},
    {NORM,
     "\"model.norm.weight\":{\"dtype\":\"F32\",\"shape\":[8],\"data_offsets\":[1024,1056],"
     "\"extra\":1}",
     "extra"},
    {NORM, "\"__metadata__\":5," NORM, "__metadata__"},
    {NORM, "\"__metadata__\":{\"format\":5}," NORM, "__metadata__"},
    {NORM, "\"\xFF\":5," NORM, "model.safetensors"},
    {NORM, "\"x\":[[[[[[[[[[[[1]]]]]]]]]]]]," NORM, "model.safetensors"},
    {"{\"model", "[\"model", "model.safetensors"},
    {"}}", "}", "model.safetensors"},
    {"}}", "}}}", "model.safetensors"},
    {"}}", "},}", "model.safetensors"},
};

static void malformed_headers(void **state)
{
    struct model_dir d;
    char header[MICRO_HEADER_CAP], spoilt[2 * MICRO_HEADER_CAP];
    size_t data = micro_header(header, 0, ARRAY_COUNT(micro_tensors));
    dir_make(&d);
    micro_write(&d);
    for (size_t i = 0; i < ARRAY_COUNT(header_cases); i++) {
        const char *at = strstr(header, header_cases[i].from);
        if (!at) fail_msg("the header has no %s", header_cases[i].from);
        snprintf(spoilt, sizeof spoilt, "%.*s%s%s", (int)(at - header), header, header_cases[i].to,
                 at + strlen(header_cases[i].from));
        dir_write_tensors(&d, "model.safetensors", strlen(spoilt), spoilt, strlen(spoilt), data);
        expect_error(*state, &d, header_cases[i].to, header_cases[i].names);
    }
    dir_remove(&d);
}

static void malformed_files(void **state)
{
    static const uint64_t lengths[] = {
        0,          1,          7,          100000000,  100000001,
        1ull << 31, 1ull << 32, 1ull << 63, UINT64_MAX, UINT64_MAX - 7};
    struct model_dir d;
    char header[MICRO_HEADER_CAP], path[256];
    size_t data = micro_header(header, 0, ARRAY_COUNT(micro_tensors)), len = strlen(header);
    dir_make(&d);
    micro_write(&d);
    for (size_t i = 0; i < ARRAY_COUNT(lengths); i++) {
        dir_write_tensors(&d, "model.safetensors", lengths[i], header, len, data);
        expect_error(*state, &d, "a wrong header length", "model.safetensors");
    }
    const uint64_t near[] = {len - 1, len + 1, len + data, len + data + 1};
    for (size_t i = 0; i < ARRAY_COUNT(near); i++) {
        dir_write_tensors(&d, "model.safetensors", near[i], header, len, data);
        expect_error(*state, &d, "a header length that is off", "model.safetensors");
    }
    const size_t sizes[] = {0, 1, data / 2, data - 1, data + 1, data + 4096};
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++) {
        dir_write_tensors(&d, "model.safetensors", len, header, len, sizes[i]);
        expect_error(*state, &d, "data cut or extended", "model.safetensors");
    }
    for (size_t cut = 0; cut < 8 + len; cut = cut < 12 ? cut + 1 : cut + 97) {
        dir_write_tensors(&d, "model.safetensors", len, header, len, data);
        dir_file(&d, "model.safetensors", path);
        assert_int_equal(truncate(path, (off_t)cut), 0);
        expect_error(*state, &d, "a truncated file", "model.safetensors");
    }
    char bomb[4096];
    memset(bomb, '{', sizeof bomb);
    dir_write_tensors(&d, "model.safetensors", sizeof bomb, bomb, sizeof bomb, 0);
    expect_error(*state, &d, "a nesting bomb", "model.safetensors");
    dir_write_tensors(&d, "model.safetensors", 2, "{}", 2, 0);
    expect_error(*state, &d, "no tensors", "model.safetensors");
    dir_write_tensors(&d, "model.safetensors", 2, "{}", 2, 8);
    expect_error(*state, &d, "no tensors but data", "model.safetensors");
    assert_int_equal(remove(path), 0);
    expect_error(*state, &d, "no checkpoint", "model.safetensors");
    assert_int_equal(mkdir(path, 0700), 0);
    expect_error(*state, &d, "a directory", "model.safetensors");
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(symlink("nowhere", path), 0);
    expect_error(*state, &d, "a dangling link", "model.safetensors");
    dir_remove(&d);
}

/* --- shards ----------------------------------------------------------------------------------- */

static void write_shards(const struct model_dir *d, size_t split, size_t b_begin)
{
    char header[MICRO_HEADER_CAP], index[MICRO_HEADER_CAP];
    size_t data = micro_header(header, 0, split), len = 0;
    dir_write_tensors(d, "a.safetensors", strlen(header), header, strlen(header), data);
    data = micro_header(header, b_begin, ARRAY_COUNT(micro_tensors));
    dir_write_tensors(d, "b.safetensors", strlen(header), header, strlen(header), data);
    len += (size_t)snprintf(index, sizeof index, "{\"weight_map\": {");
    for (size_t i = 0; i < ARRAY_COUNT(micro_tensors); i++)
        len += (size_t)snprintf(index + len, sizeof index - len, "%s\"%s\": \"%s.safetensors\"",
                                i ? ", " : "", micro_tensors[i].name, i < split ? "a" : "b");
    snprintf(index + len, sizeof index - len, "}}");
    dir_write_text(d, "model.safetensors.index.json", index);
}

static void malformed_shards(void **state)
{
    static const struct {
        const char *index, *names;
    } cases[] = {
        {"", "index.json"},
        {"{}", "weight_map"},
        {"{\"weight_map\": []}", "weight_map"},
        {"{\"weight_map\": {}}", "weight_map"},
        {"{\"weight_map\": null}", "weight_map"},
        {"{\"weight_map\": {\"x\": 5}}", "weight_map"},
        {"{\"weight_map\": {\"x\": \"\"}}", "weight_map"},
        {"{\"weight_map\": {\"x\": \"..\"}}", "weight_map"},
        {"{\"weight_map\": {\"x\": \".\"}}", "weight_map"},
        {"{\"weight_map\": {\"x\": \"/etc/passwd\"}}", "weight_map"},
        {"{\"weight_map\": {\"x\": \"../a.safetensors\"}}", "weight_map"},
        {"{\"weight_map\": {\"x\": \"c.safetensors\"}}", "c.safetensors"},
        {"{\"weight_map\": {\"x\": \"a.safetensors\"}}", "'x'"},
        {"{\"weight_map\": {\"lm_head.weight\": \"a.safetensors\", \"model.norm.weight\": "
         "\"a.safetensors\", \"model.layers.0.input_layernorm.weight\": \"b.safetensors\"}}",
         "model.norm.weight"},
        {"{\"weight_map\": {\"lm_head.weight\": \"a.safetensors\"}}", "has no tensor"},
    };
    struct model_dir d;
    char err[ERR_CAP] = "", path[256];
    dir_make(&d);
    dir_write_text(&d, "config.json", micro_config);
    write_shards(&d, 2, 2);
    if (open_dir(*state, &d, err)) fail_msg("%s", err);
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        dir_write_text(&d, "model.safetensors.index.json", cases[i].index);
        expect_error(*state, &d, cases[i].index, cases[i].names);
    }
    write_shards(&d, 2, 1);
    expect_error(*state, &d, "a tensor in two shards", "lm_head.weight");
    write_shards(&d, 2, 3);
    expect_error(*state, &d, "a tensor in no shard", "model.norm.weight");
    write_shards(&d, 2, 2);
    dir_file(&d, "b.safetensors", path);
    assert_int_equal(truncate(path, 100), 0);
    expect_error(*state, &d, "a truncated shard", "b.safetensors");
    assert_int_equal(remove(path), 0);
    expect_error(*state, &d, "a missing shard", "b.safetensors");
    dir_remove(&d);
}

/* --- random damage ---------------------------------------------------------------------------- */

static void random_damage(void **state)
{
    struct faults *f = *state;
    struct model_dir d;
    const char *text = getenv("DAKD_TEST_SEED");
    uint64_t seed = text ? strtoull(text, NULL, 0) : 20250118, x = seed;
    int refused = 0;
    print_message("seed %" PRIu64 "\n", seed);
    dir_make(&d);
    for (int i = 0; i < 1500; i++) {
        char header[MICRO_HEADER_CAP], config[2048], err[ERR_CAP] = "";
        size_t data = micro_header(header, 0, ARRAY_COUNT(micro_tensors)), len = strlen(header);
        snprintf(config, sizeof config, "%s", micro_config);
        for (int k = 0; k < 1 + i % 3; k++) {
            x = x * 6364136223846793005ull + 1442695040888963407ull;
            char byte = "0123456789-.[]{}\",:eF\\ \x7F"[(x >> 40) % 24];
            if (i % 4) header[(x >> 20) % len] = byte;
            else config[(x >> 20) % strlen(config)] = byte;
        }
        dir_write_text(&d, "config.json", config);
        dir_write_tensors(&d, "model.safetensors", len, header, len, data);
        if (open_dir(f, &d, err) == ST_OK) continue;
        assert_true(err[0]);
        refused++;
    }
    print_message("%d of 1500 damaged models refused\n", refused);
    assert_true(refused > 1000);
    dir_remove(&d);
}

static void enough_cases(void **state)
{
    struct faults *f = *state;
    print_message("%d malformed directories\n", f->count);
    assert_true(f->count >= 200);
}

static int open_backend(void **state)
{
    static struct faults faults;
    char err[ERR_CAP];
    *state = &faults;
    return kn_open_cpu(1, &faults.kn, err) ? -1 : 0;
}

static int close_backend(void **state)
{
    kn_close(((struct faults *)*state)->kn);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sound_model_opens),      cmocka_unit_test(malformed_configs),
        cmocka_unit_test(malformed_config_texts), cmocka_unit_test(malformed_generation_configs),
        cmocka_unit_test(malformed_headers),      cmocka_unit_test(malformed_files),
        cmocka_unit_test(malformed_shards),       cmocka_unit_test(random_damage),
        cmocka_unit_test(enough_cases),
    };
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
