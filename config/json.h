/*
 * json.h - strict, bounded JSON in front of cJSON.
 *
 * cJSON accepts trailing garbage, invalid UTF-8, "\u0000" (and cuts the string there), duplicate
 * keys and 1e999, and recurses on nesting.  json_parse therefore checks the whole text against RFC
 * 8259 first, without recursion, and only then hands it to cJSON.  What reaches cJSON is: valid
 * UTF-8, one value, within the limits, numbers finite, keys unique per object, no U+0000, no lone
 * surrogates.
 */
#ifndef DAKD_CONFIG_JSON_H
#define DAKD_CONFIG_JSON_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/status.h"

#define JSON_DEPTH_MAX 128

struct json_limits {
    size_t bytes_max;
    size_t nodes_max; /* values and keys together */
    int depth_max;    /* 1..JSON_DEPTH_MAX */
};

/* For request bodies and for model files (tokenizer.json of a 256k vocabulary has about two million
 * values). */
extern const struct json_limits json_limits_request;
extern const struct json_limits json_limits_file;

/* Checks text[0..len) and builds *out, which the caller frees with cJSON_Delete.  ST_INVALID with a
 * sentence that gives line and column, ST_LIMIT, ST_NOMEM.  *out is NULL unless ST_OK. */
MUST_USE enum status json_parse(const char *text, size_t len, const struct json_limits *limits,
                                cJSON **out, char *err);
/* What cJSON, which keeps a double of each number, does not tell; of trees made by json_parse, and
 * of their copies.  Whether it was written with a fraction or an exponent: 1.0 is, and 1 is not. */
bool json_is_real(const cJSON *number);
/* An integer from 2^53 on, which a double may have rounded, as it was written, else NULL.  Borrowed
 * from the tree. */
const char *json_integer_text(const cJSON *number);
/* Only the check. */
MUST_USE enum status json_check(const char *text, size_t len, const struct json_limits *limits,
                                char *err);
/* Reads and parses a file; errors name the path. */
MUST_USE enum status json_parse_file(const char *path, const struct json_limits *limits,
                                     cJSON **out, char *err);

/* Member lookup is case-sensitive and NULL-safe.  JSON null counts as absent in json_get_* below.
 */
const cJSON *json_member(const cJSON *object, const char *key);
/* Puts value, which it takes over, in the place and under the key of old, a member of object, and
 * frees old.  Allocates nothing.  (cJSON's own replacement leaves a member without a key where
 * there is no memory for its copy.) */
void json_replace(cJSON *object, cJSON *old, cJSON *value);
/* Typed reads with a default for an absent or null member; ST_INVALID names the key where the type
 * or range is wrong. */
MUST_USE enum status json_get_int(const cJSON *object, const char *key, int64_t min, int64_t max,
                                  int64_t fallback, int64_t *out, char *err);
MUST_USE enum status json_get_double(const cJSON *object, const char *key, double min, double max,
                                     double fallback, double *out, char *err);
MUST_USE enum status json_get_bool(const cJSON *object, const char *key, bool fallback, bool *out,
                                   char *err);
/* *out borrows from the tree. */
MUST_USE enum status json_get_string(const cJSON *object, const char *key, const char *fallback,
                                     const char **out, char *err);

#endif
