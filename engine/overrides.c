#include "engine/overrides.h"

#include <stdio.h>
#include <string.h>

#include "config/json.h"

static const struct json_limits limits = {.bytes_max = 4096, .nodes_max = 64, .depth_max = 4};

static enum status check_key(const cJSON *item, const char *const *keys, int key_count, char *err)
{
    char known[256] = "";
    size_t len = 0;
    for (int i = 0; i < key_count; i++) {
        if (!keys[i]) continue;
        if (strcmp(item->string, keys[i]) == 0) {
            if (cJSON_IsNumber(item)) return ST_OK;
            return err_set(err, ST_INVALID, "'%s' must be a number", keys[i]);
        }
        if (len < sizeof known)
            len +=
                (size_t)snprintf(known + len, sizeof known - len, "%s%s", len ? ", " : "", keys[i]);
    }
    return err_set(err, ST_INVALID,
                   "'%.60s' is not one of the sizes that may be replaced: %s; for all else, change "
                   "a copy of config.json",
                   item->string, known);
}

static enum status put(const cJSON *item, cJSON *config, char *err)
{
    cJSON *old = cJSON_GetObjectItemCaseSensitive(config, item->string);
    cJSON *value = cJSON_Duplicate(item, true);
    if (value && old) json_replace(config, old, value);
    else if (!value || !cJSON_AddItemToObject(config, item->string, value)) {
        cJSON_Delete(value);
        return err_set(err, ST_NOMEM, "no memory for '%s'", item->string);
    }
    return ST_OK;
}

/* Of a model with fewer layers, the first ones' types. */
static void cut_layer_types(cJSON *config)
{
    cJSON *types = cJSON_GetObjectItemCaseSensitive(config, "layer_types");
    const cJSON *layers = json_member(config, "num_hidden_layers");
    if (!cJSON_IsArray(types) || !cJSON_IsNumber(layers) || !(layers->valuedouble >= 1)) return;
    for (int count = cJSON_GetArraySize(types); count > layers->valuedouble; count--)
        cJSON_DeleteItemFromArray(types, count - 1);
}

enum status eng_overrides_apply(const char *text, const char *const *keys, int key_count,
                                cJSON *config, char *err)
{
    char why[ERR_CAP] = "";
    cJSON *root;
    enum status st = json_parse(text, strlen(text), &limits, &root, why);
    if (st) return err_set(err, st, "'%.100s' is not a JSON object: %.300s", text, why);
    if (!cJSON_IsObject(root))
        st = err_set(err, ST_INVALID,
                     "'%.100s' is not a JSON object: write {\"num_hidden_layers\": 8}", text);
    for (const cJSON *item = st ? NULL : root->child; item && !st; item = item->next)
        if (!(st = check_key(item, keys, key_count, err))) st = put(item, config, err);
    if (!st && json_member(root, "num_hidden_layers")) cut_layer_types(config);
    cJSON_Delete(root);
    return st;
}
