/*
 * tok_post.c - post-processors for one sequence.  TemplateProcessing, BertProcessing and
 * RobertaProcessing all come down to ids before and ids after the text; ByteLevel only adjusts
 * offsets, which are not kept here.  Processors in a Sequence apply one after the other, so each
 * one's tokens go around those of the one before.
 */
#include "engine/tok_post.h"

#include <stdbool.h>
#include <string.h>

#include "config/check.h"
#include "config/json.h"

static enum status put_id(int32_t *ids, size_t *count, const cJSON *item, int32_t id_count,
                          char *err)
{
    double id = cJSON_IsNumber(item) ? item->valuedouble : -1;
    if (!(id >= 0 && id < id_count) || id != (double)(int32_t)id)
        return err_set(err, ST_INVALID, "the post-processor names an id that is no token");
    if (*count == ENG_POST_IDS_MAX)
        return err_set(err, ST_UNSUPPORTED, "the post-processor adds more than %d tokens",
                       ENG_POST_IDS_MAX);
    ids[(*count)++] = (int32_t)id;
    return ST_OK;
}

static enum status put_special(struct eng_post *post, const cJSON *json, const cJSON *piece,
                               bool after, int32_t id_count, char *err)
{
    const char *name;
    const cJSON *item;
    enum status st = json_get_string(piece, "id", NULL, &name, err);
    if (st) return st;
    const cJSON *token = name ? json_member(json_member(json, "special_tokens"), name) : NULL;
    const cJSON *ids = json_member(token, "ids");
    if (!cJSON_IsArray(ids))
        return err_set(err, ST_INVALID,
                       "the template's token '%.100s' is not among its 'special_tokens'",
                       name ? name : "");
    cJSON_ArrayForEach(item, ids)
    {
        st = after ? put_id(post->after, &post->after_count, item, id_count, err)
                   : put_id(post->before, &post->before_count, item, id_count, err);
        if (st) return st;
    }
    return ST_OK;
}

static enum status read_template(struct eng_post *post, const cJSON *json, int32_t id_count,
                                 char *err)
{
    const cJSON *single = json_member(json, "single"), *piece;
    bool text_seen = false;
    if (!cJSON_IsArray(single))
        return err_set(err, ST_INVALID, "TemplateProcessing's 'single' is missing or no list");
    cJSON_ArrayForEach(piece, single)
    {
        const cJSON *special = json_member(piece, "SpecialToken");
        const cJSON *sequence = json_member(piece, "Sequence");
        const char *which = NULL;
        enum status st;
        if (special) {
            if ((st = put_special(post, json, special, text_seen, id_count, err))) return st;
            continue;
        }
        if ((st = json_get_string(sequence, "id", NULL, &which, err))) return st;
        if (!which || strcmp(which, "A") || text_seen)
            return err_set(err, ST_UNSUPPORTED,
                           "TemplateProcessing's 'single' must hold the sequence A once");
        text_seen = true;
    }
    if (!text_seen)
        return err_set(err, ST_UNSUPPORTED,
                       "TemplateProcessing's 'single' must hold the sequence A once");
    return ST_OK;
}

/* "cls" and "sep", each [text, id]. */
static enum status read_pair(struct eng_post *post, const cJSON *json, int32_t id_count, char *err)
{
    const cJSON *cls = json_member(json, "cls"), *sep = json_member(json, "sep");
    if (cJSON_GetArraySize(cls) != 2 || cJSON_GetArraySize(sep) != 2)
        return err_set(err, ST_INVALID, "a post-processor lacks 'cls' or 'sep'");
    enum status st =
        put_id(post->before, &post->before_count, cJSON_GetArrayItem(cls, 1), id_count, err);
    if (st) return st;
    return put_id(post->after, &post->after_count, cJSON_GetArrayItem(sep, 1), id_count, err);
}

static enum status read_processor(struct eng_post *post, const cJSON *json, int32_t id_count,
                                  char *err)
{
    const char *type;
    struct eng_post outer = {0};
    enum status st = json_get_string(json, "type", NULL, &type, err);
    if (st) return st;
    if (!type) return err_set(err, ST_INVALID, "a post-processor has no 'type'");
    if (!strcmp(type, "ByteLevel")) return ST_OK;
    if (!strcmp(type, "Sequence")) {
        const cJSON *list = json_member(json, "processors"), *item;
        if (!cJSON_IsArray(list))
            return err_set(err, ST_INVALID, "a post-processor Sequence lacks 'processors'");
        cJSON_ArrayForEach(item,
                           list) if ((st = read_processor(post, item, id_count, err))) return st;
        return ST_OK;
    }
    if (!strcmp(type, "TemplateProcessing")) st = read_template(&outer, json, id_count, err);
    else if (!strcmp(type, "BertProcessing") || !strcmp(type, "RobertaProcessing"))
        st = read_pair(&outer, json, id_count, err);
    else st = err_set(err, ST_UNSUPPORTED, "the post-processor '%.60s' is not supported", type);
    if (st) return st;
    if (outer.before_count + post->before_count > ENG_POST_IDS_MAX ||
        outer.after_count + post->after_count > ENG_POST_IDS_MAX)
        return err_set(err, ST_UNSUPPORTED, "the post-processor adds more than %d tokens",
                       ENG_POST_IDS_MAX);
    memcpy(outer.before + outer.before_count, post->before,
           post->before_count * sizeof *post->before);
    memcpy(post->before, outer.before, sizeof post->before);
    post->before_count += outer.before_count;
    memcpy(post->after + post->after_count, outer.after, outer.after_count * sizeof *post->after);
    post->after_count += outer.after_count;
    return ST_OK;
}

enum status eng_post_init(struct eng_post *post, const cJSON *json, int32_t id_count, char *err)
{
    *post = (struct eng_post){0};
    return json ? read_processor(post, json, id_count, err) : ST_OK;
}
