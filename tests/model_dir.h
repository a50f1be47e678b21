/*
 * model_dir.h - for tests: a temporary model directory holding a micro Llama (1 layer, hidden 8,
 * vocabulary 16), whose files a test may spoil one by one.
 */
#ifndef DAKD_TESTS_MODEL_DIR_H
#define DAKD_TESTS_MODEL_DIR_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/check.h"

#define MICRO_HEADER_CAP 8192

static const char *const micro_config =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"vocab_size\": 16, "
    "\"hidden_size\": 8, \"num_hidden_layers\": 1, \"num_attention_heads\": 2, "
    "\"num_key_value_heads\": 1, \"head_dim\": 4, \"intermediate_size\": 8, "
    "\"max_position_embeddings\": 64, \"rms_norm_eps\": 1e-5, \"hidden_act\": \"silu\", "
    "\"tie_word_embeddings\": false, \"rope_theta\": 10000.0, \"torch_dtype\": \"float32\"}";

static const struct {
    const char *name;
    int rows, cols; /* cols 0: a vector */
} micro_tensors[] = {
    {"model.embed_tokens.weight", 16, 8},
    {"lm_head.weight", 16, 8},
    {"model.norm.weight", 8, 0},
    {"model.layers.0.input_layernorm.weight", 8, 0},
    {"model.layers.0.self_attn.q_proj.weight", 8, 8},
    {"model.layers.0.self_attn.k_proj.weight", 4, 8},
    {"model.layers.0.self_attn.v_proj.weight", 4, 8},
    {"model.layers.0.self_attn.o_proj.weight", 8, 8},
    {"model.layers.0.post_attention_layernorm.weight", 8, 0},
    {"model.layers.0.mlp.gate_proj.weight", 8, 8},
    {"model.layers.0.mlp.up_proj.weight", 8, 8},
    {"model.layers.0.mlp.down_proj.weight", 8, 8},
};

struct model_dir {
    char path[64];
};

static inline void dir_make(struct model_dir *d)
{
    snprintf(d->path, sizeof d->path, "/tmp/dakd-test-XXXXXX");
    CHECK(mkdtemp(d->path));
}

static inline void dir_file(const struct model_dir *d, const char *name, char path[256])
{
    CHECK(snprintf(path, 256, "%s/%s", d->path, name) < 256);
}

static inline void dir_write(const struct model_dir *d, const char *name, const void *data,
                             size_t len)
{
    char path[256];
    dir_file(d, name, path);
    FILE *f = fopen(path, "wb");
    CHECK(f);
    CHECK(fwrite(data, 1, len, f) == len);
    CHECK(fclose(f) == 0);
}

static inline void dir_write_text(const struct model_dir *d, const char *name, const char *text)
{
    dir_write(d, name, text, strlen(text));
}

/* A safetensors file of a header and data_len bytes of data, in which every fp32 is small. */
static inline void dir_write_tensors(const struct model_dir *d, const char *name,
                                     uint64_t header_len, const char *header, size_t text_len,
                                     size_t data_len)
{
    unsigned char *file = malloc(8 + text_len + data_len + 1);
    CHECK(file);
    for (int i = 0; i < 8; i++) file[i] = (unsigned char)(header_len >> 8 * i);
    memcpy(file + 8, header, text_len);
    for (size_t i = 0; i < data_len; i++)
        file[8 + text_len + i] = (unsigned char)(i % 4 == 3 ? 0x3D : i * 7 + i / 256);
    dir_write(d, name, file, 8 + text_len + data_len);
    free(file);
}

/* The header of micro tensors [begin, end), and the bytes of their data. */
static inline size_t micro_header(char header[MICRO_HEADER_CAP], size_t begin, size_t end)
{
    size_t len = 0, at = 0;
    header[len++] = '{';
    for (size_t i = begin; i < end; i++) {
        int rows = micro_tensors[i].rows, cols = micro_tensors[i].cols;
        size_t bytes = (size_t)rows * (size_t)(cols ? cols : 1) * 4;
        len += (size_t)snprintf(header + len, MICRO_HEADER_CAP - len,
                                "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[%d", i > begin ? "," : "",
                                micro_tensors[i].name, rows);
        if (cols) len += (size_t)snprintf(header + len, MICRO_HEADER_CAP - len, ",%d", cols);
        len += (size_t)snprintf(header + len, MICRO_HEADER_CAP - len,
                                "],\"data_offsets\":[%zu,%zu]}", at, at + bytes);
        at += bytes;
    }
    snprintf(header + len, MICRO_HEADER_CAP - len, "}");
    return at;
}

/* The whole, sound micro model. */
static inline void micro_write(const struct model_dir *d)
{
    char header[MICRO_HEADER_CAP];
    size_t data = micro_header(header, 0, ARRAY_COUNT(micro_tensors));
    dir_write_text(d, "config.json", micro_config);
    dir_write_tensors(d, "model.safetensors", strlen(header), header, strlen(header), data);
}

static inline void dir_remove(const struct model_dir *d)
{
    static const char *const names[] = {"config.json",       "generation_config.json",
                                        "model.safetensors", "model.safetensors.index.json",
                                        "a.safetensors",     "b.safetensors"};
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        char path[256];
        dir_file(d, names[i], path);
        remove(path);
    }
    CHECK(rmdir(d->path) == 0);
}

#endif
