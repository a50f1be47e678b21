/*
 * unit_engine_safetensors.c - what a sound checkpoint gives; fault_engine_load.c has the others.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "engine/safetensors.h"
#include "tests/model_dir.h"

#define FIXTURES "tests/fixtures/models/"

static const uint64_t micro_bytes = 2 * 512 + 3 * 32 + 2 * 256 + 2 * 128 + 3 * 256;

/* Checks that the set holds the micro model, in order of name, with the bytes dir_write_tensors
 * wrote. */
static void check_micro(const struct eng_st *set)
{
    uint64_t total = 0;
    assert_int_equal(eng_st_count(set), ARRAY_COUNT(micro_tensors));
    for (size_t i = 0; i < eng_st_count(set); i++) {
        const struct eng_st_tensor *t = eng_st_at(set, i);
        if (i) assert_true(strcmp(eng_st_at(set, i - 1)->name, t->name) < 0);
        assert_ptr_equal(eng_st_find(set, t->name), t);
        assert_int_equal(t->dtype, ENG_ST_F32);
        for (uint64_t b = 3; b < t->bytes; b += 4) assert_int_equal(t->data[b], 0x3D);
        total += t->bytes;
    }
    assert_int_equal(total, micro_bytes);
    for (size_t i = 0; i < ARRAY_COUNT(micro_tensors); i++) {
        const struct eng_st_tensor *t = eng_st_find(set, micro_tensors[i].name);
        assert_non_null(t);
        assert_int_equal(t->rank, micro_tensors[i].cols ? 2 : 1);
        assert_int_equal(t->dims[0], micro_tensors[i].rows);
        if (t->rank == 2) assert_int_equal(t->dims[1], micro_tensors[i].cols);
    }
    assert_null(eng_st_find(set, "model.embed_tokens.weigh"));
    assert_null(eng_st_find(set, ""));
}

static void single_file(void **state)
{
    struct model_dir d;
    struct eng_st *set;
    char err[ERR_CAP] = "";
    (void)state;
    dir_make(&d);
    micro_write(&d);
    if (eng_st_open(d.path, &set, err)) fail_msg("%s", err);
    check_micro(set);
    for (size_t i = 0; i < eng_st_count(set); i++) eng_st_done(eng_st_at(set, i));
    check_micro(set); /* still readable */
    eng_st_close(set);
    dir_remove(&d);
}

static void shards(void **state)
{
    struct model_dir d;
    struct eng_st *set;
    char header[MICRO_HEADER_CAP], index[MICRO_HEADER_CAP], err[ERR_CAP] = "";
    size_t len = (size_t)snprintf(index, sizeof index, "{\"metadata\":{},\"weight_map\":{");
    (void)state;
    dir_make(&d);
    size_t data = micro_header(header, 0, 5);
    dir_write_tensors(&d, "a.safetensors", strlen(header), header, strlen(header), data);
    data = micro_header(header, 5, ARRAY_COUNT(micro_tensors));
    dir_write_tensors(&d, "b.safetensors", strlen(header), header, strlen(header), data);
    for (size_t i = 0; i < ARRAY_COUNT(micro_tensors); i++)
        len += (size_t)snprintf(index + len, sizeof index - len, "%s\"%s\":\"%c.safetensors\"",
                                i ? "," : "", micro_tensors[i].name, i < 5 ? 'a' : 'b');
    snprintf(index + len, sizeof index - len, "}}");
    dir_write_text(&d, "model.safetensors.index.json", index);
    if (eng_st_open(d.path, &set, err)) fail_msg("%s", err);
    check_micro(set);
    assert_non_null(strstr(eng_st_find(set, "lm_head.weight")->file, "/a.safetensors"));
    assert_non_null(
        strstr(eng_st_find(set, "model.layers.0.mlp.up_proj.weight")->file, "/b.safetensors"));
    eng_st_close(set);

    micro_write(&d); /* a single file goes before an index, as in the reference */
    if (eng_st_open(d.path, &set, err)) fail_msg("%s", err);
    assert_non_null(strstr(eng_st_at(set, 0)->file, "/model.safetensors"));
    eng_st_close(set);
    dir_remove(&d);
}

static void every_dtype(void **state)
{
    static const struct {
        const char *name;
        unsigned bytes;
    } types[] = {
#define X(name, bits) {#name, bits / 8},
        ENG_ST_DTYPE_MAP(X)
#undef X
    };
    struct model_dir d;
    struct eng_st *set;
    char header[4096] = "{\"__metadata__\":{\"format\":\"pt\"}", err[ERR_CAP] = "", path[256];
    size_t len = strlen(header), at = 0;
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(types); i++) { /* [3,5], a scalar and an empty tensor each */
        size_t n = types[i].bytes;
        len += (size_t)snprintf(
            header + len, sizeof header - len,
            ",\"%s\":{\"shape\":[3,5],\"data_offsets\":[%zu,%zu],\"dtype\":\"%s\"}"
            ",\"%s scalar\":{\"dtype\":\"%s\",\"shape\":[],\"data_offsets\":[%zu,%zu]}"
            ",\"%s none\":{\"dtype\":\"%s\",\"shape\":[7,0],\"data_offsets\":[%zu,%zu]}",
            types[i].name, at, at + 15 * n, types[i].name, types[i].name, types[i].name,
            at + 15 * n, at + 16 * n, types[i].name, types[i].name, at, at);
        at += 16 * n;
    }
    len += (size_t)snprintf(header + len, sizeof header - len, "}   ");
    dir_make(&d);
    dir_write_tensors(&d, "a.safetensors", len, header, len, at);
    dir_file(&d, "a.safetensors", path);
    if (eng_st_open_file(path, &set, err)) fail_msg("%s", err);
    assert_int_equal(eng_st_count(set), 3 * ARRAY_COUNT(types));
    for (size_t i = 0; i < ARRAY_COUNT(types); i++) {
        const struct eng_st_tensor *t = eng_st_find(set, types[i].name);
        assert_non_null(t);
        assert_string_equal(eng_st_dtype_name(t->dtype), types[i].name);
        assert_int_equal(t->bytes, 15 * types[i].bytes);
        assert_int_equal(t->rank, 2);
    }
    eng_st_close(set);
    dir_remove(&d);
}

/* Files written by the reference library: one file, a link to one, two shards. */
static void reference_files(void **state)
{
    static const struct {
        const char *dir;
        size_t count;
        enum eng_st_dtype dtype;
    } cases[] = {{"llama-gqa", 21, ENG_ST_F32},
                 {"llama-yarn", 21, ENG_ST_F32},
                 {"llama-bf16", 21, ENG_ST_BF16},
                 {"opt-f16", 36, ENG_ST_F16}};
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct eng_st *set;
        char dir[128], err[ERR_CAP] = "";
        snprintf(dir, sizeof dir, FIXTURES "%s", cases[i].dir);
        if (eng_st_open(dir, &set, err)) fail_msg("%s", err);
        assert_int_equal(eng_st_count(set), cases[i].count);
        for (size_t k = 0; k < eng_st_count(set); k++)
            assert_int_equal(eng_st_at(set, k)->dtype, cases[i].dtype);
        eng_st_close(set);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(single_file),
        cmocka_unit_test(shards),
        cmocka_unit_test(every_dtype),
        cmocka_unit_test(reference_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
