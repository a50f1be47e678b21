/*
 * safetensors.h - the tensors of a checkpoint: one model.safetensors, or the shards that
 * model.safetensors.index.json names.  Files are mapped read-only, so opening reads the headers
 * alone.
 */
#ifndef DAKD_ENGINE_SAFETENSORS_H
#define DAKD_ENGINE_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/status.h"

/* name in the file, bits per element */
#define ENG_ST_DTYPE_MAP(X)                                                                        \
    X(BOOL, 8)                                                                                     \
    X(U8, 8)                                                                                       \
    X(I8, 8)                                                                                       \
    X(F8_E5M2, 8)                                                                                  \
    X(F8_E4M3, 8)                                                                                  \
    X(F8_E8M0, 8)                                                                                  \
    X(I16, 16)                                                                                     \
    X(U16, 16)                                                                                     \
    X(F16, 16)                                                                                     \
    X(BF16, 16)                                                                                    \
    X(I32, 32)                                                                                     \
    X(U32, 32)                                                                                     \
    X(F32, 32)                                                                                     \
    X(C64, 64)                                                                                     \
    X(F64, 64)                                                                                     \
    X(I64, 64)                                                                                     \
    X(U64, 64)

enum eng_st_dtype {
#define X(name, bits) ENG_ST_##name,
    ENG_ST_DTYPE_MAP(X)
#undef X
        ENG_ST_DTYPE_COUNT
};

#define ENG_ST_RANK_MAX 8

struct eng_st_tensor {
    const char *name; /* borrowed from the set, as is file */
    const char *file; /* path of the file that holds it */
    enum eng_st_dtype dtype;
    int rank;
    uint64_t dims[ENG_ST_RANK_MAX];
    const uint8_t *data; /* borrowed: the mapping.  Not aligned: the format promises nothing */
    uint64_t bytes;
};

struct eng_st; /* an opened checkpoint */

/* Opens dir/model.safetensors, or else the shards of dir/model.safetensors.index.json.  ST_CORRUPT,
 * ST_INVALID, ST_LIMIT, ST_NOT_FOUND, ST_IO or ST_NOMEM; the sentence names the file and the
 * tensor. Once opened, every tensor's bytes lie inside its file, and no two tensors share a name or
 * a byte. */
MUST_USE enum status eng_st_open(const char *dir, struct eng_st **out, char *err);
/* One file. */
MUST_USE enum status eng_st_open_file(const char *path, struct eng_st **out, char *err);
void eng_st_close(struct eng_st *set);

size_t eng_st_count(const struct eng_st *set);
/* In order of name. */
const struct eng_st_tensor *eng_st_at(const struct eng_st *set, size_t idx);
/* NULL where there is none. */
const struct eng_st_tensor *eng_st_find(const struct eng_st *set, const char *name);
const char *eng_st_dtype_name(enum eng_st_dtype dtype);
/* Tells the system that the tensor's pages are not needed soon, so that loading does not hold the
 * checkpoint in memory twice.  The bytes stay readable.  Any thread. */
void eng_st_done(const struct eng_st_tensor *tensor);

#endif
