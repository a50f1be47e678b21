/*
 * overrides.h - --hf-overrides: members of a config.json that a JSON object of the command line
 * replaces, or adds where the file leaves them to their default.
 *
 * The use is a model cut to some of its layers, all else as it is: its steps are as many times
 * shorter, it loads in as much less time, and each of its layers is the whole model's.
 */
#ifndef DAKD_ENGINE_OVERRIDES_H
#define DAKD_ENGINE_OVERRIDES_H

#include <cjson/cJSON.h>

#include "config/status.h"

/* Puts the members of the object `text` into `config`, an object made by json_parse.  keys
 * [key_count]: those it may have, all of them sizes; a NULL among them is none.  A 'layer_types' of
 * the config keeps as many names as there are layers then.  ST_INVALID: no JSON object, another
 * key, no number; the sentence says which.  ST_NOMEM.  Pure. */
MUST_USE enum status eng_overrides_apply(const char *text, const char *const *keys, int key_count,
                                         cJSON *config, char *err);

#endif
