/*
 * rope.h - rotary position embedding: reading its configuration, and the table of cosines and
 * sines.
 */
#ifndef DAKD_ENGINE_ROPE_H
#define DAKD_ENGINE_ROPE_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>

#include "config/status.h"

enum eng_rope_kind {
    ENG_ROPE_DEFAULT,
    ENG_ROPE_LINEAR,
    ENG_ROPE_DYNAMIC,
    ENG_ROPE_LLAMA3,
    ENG_ROPE_YARN
};

struct eng_rope {
    enum eng_rope_kind kind;
    int32_t head_dim;     /* D, even */
    int32_t position_max; /* max_position_embeddings */
    int32_t original_max; /* llama3, yarn: original_max_position_embeddings */
    double theta;
    double factor;                            /* all but default */
    double low_freq_factor, high_freq_factor; /* llama3 */
    double beta_fast, beta_slow;              /* yarn */
    double attention_factor;                  /* yarn: scales cosines and sines; 1 elsewhere */
    bool truncate;                            /* yarn */
};

/* Reads rope_parameters, or else rope_scaling and rope_theta, of a config.json.  ST_INVALID,
 * ST_UNSUPPORTED: the sentence names the key. */
MUST_USE enum status eng_rope_parse(const cJSON *config, int32_t head_dim, int32_t position_max,
                                    struct eng_rope *out, char *err);
/* Positions the model may be used for, scaling included:
 *     default, llama3    max_position_embeddings (which already counts the scaling)
 *     linear, dynamic    max_position_embeddings * factor
 *     yarn               original_max_position_embeddings * factor
 * at most 2^24, up to which fp32 holds every position exactly. */
int32_t eng_rope_context(const struct eng_rope *rope);
/* Writes row_count rows, of positions position_begin.., to table[row_count, D] fp32: D/2 cosines,
 * then D/2 sines.  Pure; any thread. */
void eng_rope_table(const struct eng_rope *rope, int32_t position_begin, int32_t row_count,
                    float *table);

#endif
