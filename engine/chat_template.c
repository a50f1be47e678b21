/*
 * chat_template.c - see chat_template.h.
 *
 * The variables handed to the engine are one cJSON object; messages, tools and documents in it are
 * references into the caller's trees, so a request of megabytes is not copied.  `messages` is, but
 * only where one must look different in the template (arguments to parse, a final message to
 * continue).
 *
 * continue_final_message works as in transformers: a mark is put behind the final message's text,
 * the prompt is rendered, and everything from the mark on is cut off; where the template stripped
 * the blank at the end of the mark, it also strips the message, and the prompt is stripped
 * likewise.
 */
#include "engine/chat_template.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "config/file.h"
#include "config/json.h"

#define TEMPLATE_BYTES_MAX (4u << 20)
#define PATH_CAP 4096
#define MARK "CONTINUE_FINAL_MESSAGE_TAG "

struct eng_chat_template {
    struct eng_jinja *main;     /* owned */
    struct eng_jinja *tool_use; /* owned; NULL where the model has one template for all */
    bool reads_content; /* the source mentions "content": a final message can be continued */
    cJSON *tokens;      /* owned: {"bos_token": "...", ...} */
};

/* --- finding it ------------------------------------------------------------------------------- */

static enum status compile(struct eng_chat_template *t, const char *name, const char *source,
                           size_t len, const char *where, char *err)
{
    char why[ERR_CAP];
    struct eng_jinja **slot = !strcmp(name, "default")    ? &t->main
                              : !strcmp(name, "tool_use") ? &t->tool_use
                                                          : NULL;
    if (!slot || *slot) return ST_OK;
    enum status st = eng_jinja_compile(source, len, slot, why);
    if (st) return err_set(err, st, "the chat template in %s: %.300s", where, why);
    t->reads_content |= memmem(source, len, "content", 7) != NULL;
    return ST_OK;
}

static enum status from_file(struct eng_chat_template *t, const char *path, char *err)
{
    char *text;
    size_t len;
    enum status st = file_read(path, TEMPLATE_BYTES_MAX, &text, &len, err);
    if (st) return st;
    st = compile(t, "default", text, len, path, err);
    free(text);
    return st;
}

/* The value of "chat_template": a string, or a list of {name, template}. */
static enum status from_value(struct eng_chat_template *t, const cJSON *value, const char *path,
                              char *err)
{
    if (cJSON_IsString(value))
        return compile(t, "default", value->valuestring, strlen(value->valuestring), path, err);
    if (!cJSON_IsArray(value))
        return err_set(err, ST_INVALID, "%s: \"chat_template\" must be a string or a list", path);
    for (const cJSON *item = value->child; item; item = item->next) {
        const cJSON *name = json_member(item, "name"), *text = json_member(item, "template");
        if (!cJSON_IsString(name) || !cJSON_IsString(text))
            return err_set(err, ST_INVALID,
                           "%s: an item of \"chat_template\" lacks a \"name\" or a \"template\"",
                           path);
        enum status st =
            compile(t, name->valuestring, text->valuestring, strlen(text->valuestring), path, err);
        if (st) return st;
    }
    if (!t->main)
        return err_set(err, ST_INVALID, "%s: \"chat_template\" has no template named \"default\"",
                       path);
    return ST_OK;
}

static enum status parse_beside(const char *dir, const char *name, char path[PATH_CAP], cJSON **out,
                                char *err)
{
    *out = NULL;
    enum status st = file_join(path, PATH_CAP, dir, name, err);
    if (st || !file_exists(path)) return st;
    return json_parse_file(path, &json_limits_file, out, err);
}

static enum status find(struct eng_chat_template *t, const char *dir, const char *override_path,
                        const cJSON *config, char *err)
{
    char path[PATH_CAP];
    enum status st;
    if (override_path) return from_file(t, override_path, err);
    if ((st = file_join(path, sizeof path, dir, "chat_template.jinja", err))) return st;
    if (file_exists(path)) return from_file(t, path, err);
    const cJSON *value = json_member(config, "chat_template");
    if (value) {
        if ((st = file_join(path, sizeof path, dir, "tokenizer_config.json", err))) return st;
        return from_value(t, value, path, err);
    }
    cJSON *file;
    if ((st = parse_beside(dir, "chat_template.json", path, &file, err))) return st;
    if ((value = json_member(file, "chat_template"))) st = from_value(t, value, path, err);
    else
        st = err_set(
            err, ST_NOT_FOUND,
            "%s has no chat template; give one with --chat-template, or use /v1/completions", dir);
    cJSON_Delete(file);
    return st;
}

/* Takes every "..._token" that is a string or {"content": ...}; what is already there stays. */
static enum status add_tokens(cJSON *tokens, const cJSON *from)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, from)
    {
        size_t n = item->string ? strlen(item->string) : 0;
        const cJSON *content = cJSON_IsObject(item) ? json_member(item, "content") : item;
        if (n < 6 || strcmp(item->string + n - 6, "_token") || !cJSON_IsString(content)) continue;
        if (json_member(tokens, item->string)) continue;
        if (!cJSON_AddStringToObject(tokens, item->string, content->valuestring)) return ST_NOMEM;
    }
    return ST_OK;
}

enum status eng_chat_template_open(const char *model_dir, const char *override_path,
                                   struct eng_chat_template **out, char *err)
{
    char path[PATH_CAP];
    cJSON *config = NULL, *map = NULL;
    enum status st;
    *out = NULL;
    struct eng_chat_template *t = calloc(1, sizeof *t);
    if (!t || !(t->tokens = cJSON_CreateObject())) {
        st = err_set(err, ST_NOMEM, "no memory for the chat template");
        goto done;
    }
    if ((st = parse_beside(model_dir, "tokenizer_config.json", path, &config, err))) goto done;
    if ((st = parse_beside(model_dir, "special_tokens_map.json", path, &map, err))) goto done;
    if ((st = find(t, model_dir, override_path, config, err))) goto done;
    if (add_tokens(t->tokens, config) || add_tokens(t->tokens, map))
        st = err_set(err, ST_NOMEM, "no memory for the special tokens");
done:
    cJSON_Delete(config);
    cJSON_Delete(map);
    if (st) eng_chat_template_close(t);
    else *out = t;
    return st;
}

void eng_chat_template_close(struct eng_chat_template *t)
{
    if (!t) return;
    eng_jinja_free(t->main);
    eng_jinja_free(t->tool_use);
    cJSON_Delete(t->tokens);
    free(t);
}

/* --- the conversation ------------------------------------------------------------------------- */

/* What vLLM gives templates: parsed arguments, and {} for none or an empty text. */
static enum status parse_arguments(cJSON *function, char *err)
{
    cJSON *text = cJSON_GetObjectItemCaseSensitive(function, "arguments"), *parsed = NULL;
    char why[ERR_CAP];
    if (text && !cJSON_IsNull(text) && !cJSON_IsString(text)) return ST_OK;
    if (cJSON_IsString(text) && text->valuestring[0]) {
        enum status st = json_parse(text->valuestring, strlen(text->valuestring),
                                    &json_limits_request, &parsed, why);
        if (st == ST_INVALID)
            return err_set(err, st, "the arguments of a tool call are not valid JSON: %.300s", why);
        if (st) return err_set(err, st, "%s", why);
    } else {
        parsed = cJSON_CreateObject();
    }
    if (parsed && text) json_replace(function, text, parsed);
    if (parsed && (text || cJSON_AddItemToObject(function, "arguments", parsed))) return ST_OK;
    cJSON_Delete(parsed);
    return err_set(err, ST_NOMEM, "no memory for the arguments of a tool call");
}

static bool has_arguments_to_parse(const cJSON *message)
{
    const cJSON *call;
    cJSON_ArrayForEach(call, json_member(message, "tool_calls"))
    {
        const cJSON *function = json_member(call, "function");
        const cJSON *arguments = json_member(function, "arguments");
        if (cJSON_IsObject(function) && (!arguments || cJSON_IsString(arguments))) return true;
    }
    return false;
}

static enum status parse_tool_calls(cJSON *message, char *err)
{
    cJSON *call;
    cJSON_ArrayForEach(call, cJSON_GetObjectItemCaseSensitive(message, "tool_calls"))
    {
        cJSON *function = cJSON_GetObjectItemCaseSensitive(call, "function");
        enum status st = cJSON_IsObject(function) ? parse_arguments(function, err) : ST_OK;
        if (st) return st;
    }
    return ST_OK;
}

static const cJSON *reasoning_of(const cJSON *message)
{
    const cJSON *item = json_member(message, "reasoning_content");
    if (!item) item = json_member(message, "thinking");
    return item ? item : json_member(message, "reasoning");
}

/* As transformers: a message's reasoning, under whichever of its names it came, is there as
 * "reasoning_content", and as "thinking" unless that is given. */
static enum status alias_reasoning(cJSON *message, char *err)
{
    const cJSON *reasoning = reasoning_of(message);
    static const char *const names[] = {"reasoning_content", "thinking"};
    for (size_t i = 0; reasoning && i < ARRAY_COUNT(names); i++) {
        cJSON *there = cJSON_GetObjectItemCaseSensitive(message, names[i]);
        if (there && (i > 0 || !cJSON_IsNull(there))) continue;
        cJSON *copy = cJSON_Duplicate(reasoning, 1);
        if (copy && there) json_replace(message, there, copy);
        if (copy && (there || cJSON_AddItemToObject(message, names[i], copy))) continue;
        cJSON_Delete(copy);
        return err_set(err, ST_NOMEM, "no memory for the messages");
    }
    return ST_OK;
}

/* The text item to continue: the message's content, or the text of its last text part. */
static cJSON *final_text(cJSON *message)
{
    cJSON *content = cJSON_GetObjectItemCaseSensitive(message, "content"), *part, *last = NULL;
    if (cJSON_IsString(content)) return content;
    if (!cJSON_IsArray(content)) return NULL;
    cJSON_ArrayForEach(part, content)
    {
        cJSON *text = cJSON_GetObjectItemCaseSensitive(part, "text");
        if (cJSON_IsString(text)) last = text;
    }
    return last;
}

/* Puts the mark behind the final message; *plain is its text before, owned by the caller. */
static enum status mark_final(cJSON *messages, char **plain, char *err)
{
    cJSON *text = final_text(cJSON_GetArrayItem(messages, cJSON_GetArraySize(messages) - 1));
    if (!text)
        return err_set(err, ST_INVALID,
                       "continue_final_message: the final message has no text to continue");
    size_t len = strlen(text->valuestring);
    char *marked = cJSON_malloc(len + sizeof MARK);
    if (!marked) return err_set(err, ST_NOMEM, "no memory for the final message");
    memcpy(marked, text->valuestring, len);
    memcpy(marked + len, MARK, sizeof MARK);
    *plain = text->valuestring;
    text->valuestring = marked;
    return ST_OK;
}

/* Messages as the template is to see them: a reference to the caller's where nothing changes, else
 * a copy. */
static enum status prepare_messages(const cJSON *messages, bool mark, cJSON **out, char **plain,
                                    char *err)
{
    bool copy = mark;
    const cJSON *item;
    *out = NULL;
    if (!cJSON_IsArray(messages) || !messages->child)
        return err_set(err, ST_INVALID, "'messages' must be a list with at least one message");
    cJSON_ArrayForEach(item, messages)
    {
        if (!cJSON_IsObject(item)) return err_set(err, ST_INVALID, "a message must be an object");
        copy |= has_arguments_to_parse(item) || reasoning_of(item);
    }
    *out = copy ? cJSON_Duplicate(messages, 1) : cJSON_CreateArrayReference(messages->child);
    if (!*out) return err_set(err, ST_NOMEM, "no memory for the messages");
    if (!copy) return ST_OK;
    cJSON *message;
    cJSON_ArrayForEach(message, *out)
    {
        enum status st = parse_tool_calls(message, err);
        if (!st) st = alias_reasoning(message, err);
        if (st) return st;
    }
    return mark ? mark_final(*out, plain, err) : ST_OK;
}

/* --- the variables ---------------------------------------------------------------------------- */

static bool add_list(cJSON *vars, const char *name, const cJSON *list)
{
    cJSON *item = list ? cJSON_CreateArrayReference(list->child) : cJSON_CreateNull();
    if (item && cJSON_AddItemToObject(vars, name, item)) return true;
    cJSON_Delete(item);
    return false;
}

static bool add_copies(cJSON *vars, const cJSON *from)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, from)
    {
        cJSON *copy = cJSON_Duplicate(item, 1);
        if (!copy || !cJSON_AddItemToObject(vars, item->string, copy)) {
            cJSON_Delete(copy);
            return false;
        }
    }
    return true;
}

static enum status check_extra(const struct eng_chat_template *t, const cJSON *extra, char *err)
{
    static const char *const taken[] = {"messages", "tools", "documents", "add_generation_prompt",
                                        "continue_final_message"};
    const cJSON *item;
    if (extra && !cJSON_IsObject(extra))
        return err_set(err, ST_INVALID, "'chat_template_kwargs' must be an object");
    cJSON_ArrayForEach(item, extra)
    {
        bool clash = json_member(t->tokens, item->string) != NULL;
        for (size_t i = 0; i < ARRAY_COUNT(taken); i++) clash |= !strcmp(item->string, taken[i]);
        if (clash)
            return err_set(err, ST_INVALID, "'chat_template_kwargs' must not set '%.100s'",
                           item->string);
    }
    return ST_OK;
}

static enum status check_list(const char *name, const cJSON *list, char *err)
{
    if (list && !cJSON_IsArray(list)) return err_set(err, ST_INVALID, "'%s' must be a list", name);
    return ST_OK;
}

/* Cuts the prompt at the mark, as transformers does. */
static enum status cut_at_mark(struct buf *out, size_t start, const char *plain, char *err)
{
    const size_t mark_len = sizeof MARK - 2; /* without the blank */
    const char *from = out->data + start, *end = out->data + out->len, *mark = NULL;
    size_t len = strlen(plain), kept_len;
    if (out->len == start) return err_set(err, ST_INVALID, "the chat template gave no text");
    plain = eng_jinja_strip(plain, &len);
    for (const char *p = from; (p = memmem(p, (size_t)(end - p), MARK, mark_len)); p++) mark = p;
    if (!mark || !memmem(from, (size_t)(end - from), plain, len))
        return err_set(
            err, ST_INVALID,
            "continue_final_message: the chat template does not show the final message as it is");
    bool kept = (size_t)(end - mark) > mark_len && mark[mark_len] == ' ';
    kept_len = (size_t)(mark - from);
    if (!kept) { /* rstrip */
        const char *first = eng_jinja_strip(from, &kept_len);
        kept_len = kept_len ? (size_t)(first - from) + kept_len : 0;
    }
    out->len = start + kept_len;
    out->data[out->len] = '\0';
    return ST_OK;
}

enum status eng_chat_template_render(const struct eng_chat_template *t, const cJSON *messages,
                                     const cJSON *tools, const cJSON *documents,
                                     bool add_generation_prompt, bool continue_final_message,
                                     const cJSON *extra, int64_t now_unix_s, struct buf *out,
                                     char *err)
{
    enum status st;
    cJSON *list = NULL, *vars = NULL;
    char *plain = NULL;
    const size_t start = out->len;
    if (add_generation_prompt && continue_final_message)
        return err_set(err, ST_INVALID,
                       "add_generation_prompt and continue_final_message cannot both be true");
    if (continue_final_message && !t->reads_content)
        return err_set(
            err, ST_INVALID,
            "continue_final_message: the chat template does not read the content of messages");
    if ((st = check_list("tools", tools, err)) || (st = check_list("documents", documents, err)))
        return st;
    if ((st = check_extra(t, extra, err))) return st;
    if ((st = prepare_messages(messages, continue_final_message, &list, &plain, err))) goto done;
    vars = cJSON_CreateObject();
    if (!vars || !add_list(vars, "messages", list) || !add_list(vars, "tools", tools) ||
        !add_list(vars, "documents", documents) ||
        !cJSON_AddBoolToObject(vars, "add_generation_prompt", add_generation_prompt) ||
        !add_copies(vars, t->tokens) || !add_copies(vars, extra)) {
        st = err_set(err, ST_NOMEM, "no memory for the variables of the chat template");
        goto done;
    }
    const struct eng_jinja *jinja = tools && t->tool_use ? t->tool_use : t->main;
    st = eng_jinja_render(jinja, vars, &eng_jinja_limits_default, now_unix_s, out, err);
    if (!st && continue_final_message) st = cut_at_mark(out, start, plain, err);
    if (st && out->len > start) {
        out->len = start;
        out->data[start] = '\0';
    }
done:
    cJSON_Delete(vars);
    cJSON_Delete(list);
    cJSON_free(plain);
    return st;
}
