/* tok_post.h - the "post_processor" of tokenizer.json: the tokens put around a text. */
#ifndef DAKD_ENGINE_TOK_POST_H
#define DAKD_ENGINE_TOK_POST_H

#include <cjson/cJSON.h>
#include <stddef.h>
#include <stdint.h>

#include "config/status.h"

#define ENG_POST_IDS_MAX 64

struct eng_post {
    int32_t before[ENG_POST_IDS_MAX], after[ENG_POST_IDS_MAX];
    size_t before_count, after_count;
};

/* `json` may be NULL.  Ids must be below id_count.  ST_INVALID, ST_UNSUPPORTED. */
MUST_USE enum status eng_post_init(struct eng_post *post, const cJSON *json, int32_t id_count,
                                   char *err);

#endif
