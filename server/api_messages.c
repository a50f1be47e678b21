/*
 * api_messages.c - the chat messages and tools of a request, checked and brought into the one form
 * chat templates expect: content is a string or null, a tool call's arguments are an object.
 * Declared in api_parse.h.  Pure.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "server/api_parse.h"

enum role_bit {
    ROLE_SYSTEM = 1,
    ROLE_USER = 2,
    ROLE_ASSISTANT = 4,
    ROLE_TOOL = 8,
    ROLE_FUNCTION = 16,
    ROLE_ANY = 31
};

/* Where in the request we are: "messages[3].tool_calls[0]". */
struct place {
    char path[SRV_PARAM_CAP - 40];
    struct srv_fault *fault;
};

static bool bad_at(const struct place *at, const char *member, const cJSON *value, const char *what)
{
    char param[SRV_PARAM_CAP], text[64];
    snprintf(param, sizeof param, "%s%s%.30s", at->path, *member ? "." : "", member);
    if (!value || cJSON_IsNull(value))
        return srv_fault_bad(at->fault, param, "'%s' is missing; it must be %s.", param, what);
    return srv_fault_bad(at->fault, param, "'%s' must be %s, not %s.", param, what,
                         srv_json_describe(value, text, sizeof text));
}

static bool unknown_at(const struct place *at, const char *member)
{
    char param[SRV_PARAM_CAP];
    snprintf(param, sizeof param, "%s.%.30s", at->path, member);
    return srv_fault_bad(at->fault, param, "Unrecognized request argument: '%s'.", param);
}

static bool unsupported_at(const struct place *at, const char *member)
{
    char param[SRV_PARAM_CAP];
    snprintf(param, sizeof param, "%s.%.30s", at->path, member);
    return srv_fault_unsupported(at->fault, param, "'%s' is not supported.", param);
}

static bool no_memory(const struct place *at)
{
    return srv_fault_set(at->fault, 503, "unavailable_error", NULL, "",
                         "The server has no memory left for this request.");
}

static struct place below(const struct place *at, const char *member, int idx)
{
    struct place p = {.fault = at->fault};
    char path[2 * SRV_PARAM_CAP];
    int n = idx < 0 ? snprintf(path, sizeof path, "%s.%s", at->path, member)
                    : snprintf(path, sizeof path, "%s%s%s[%d]", at->path, *at->path ? "." : "",
                               member, idx);
    CHECK(n > 0 && (size_t)n < sizeof p.path);
    memcpy(p.path, path, (size_t)n + 1);
    return p;
}

/* The object's members must be among `names` (NULL-terminated). */
static bool only_members(const struct place *at, const cJSON *object, const char *const *names)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, object)
    {
        int i = 0;
        while (names[i] && strcmp(names[i], item->string)) i++;
        if (!names[i]) return unknown_at(at, item->string);
    }
    return true;
}

/* --- content ----------------------------------------------------------------------------- */

static bool check_part(const struct place *at, const cJSON *part)
{
    static const char *const names[] = {"type", "text", NULL};
    if (!cJSON_IsObject(part)) return bad_at(at, "", part, "an object with a type");
    const cJSON *type = json_member(part, "type");
    if (!cJSON_IsString(type)) return bad_at(at, "type", type, "'text'");
    static const char *const others[] = {"image_url", "input_audio", "file",        "video_url",
                                         "audio_url", "image",       "input_image", "refusal"};
    for (size_t i = 0; i < ARRAY_COUNT(others); i++) {
        if (strcmp(type->valuestring, others[i])) continue;
        char param[SRV_PARAM_CAP];
        snprintf(param, sizeof param, "%s.type", at->path);
        return srv_fault_unsupported(at->fault, param,
                                     "'%s' is '%s', which is not supported: this server reads text "
                                     "parts only.",
                                     param, others[i]);
    }
    if (strcmp(type->valuestring, "text")) return bad_at(at, "type", type, "'text'");
    const cJSON *text = json_member(part, "text");
    if (!cJSON_IsString(text)) return bad_at(at, "text", text, "a string");
    return only_members(at, part, names);
}

/* Replaces a list of text parts by their texts joined by line breaks. */
static bool flatten_parts(const struct place *at, cJSON *message, cJSON *list)
{
    size_t len = 1;
    int i = 0;
    const cJSON *part;
    if (!list->child) return bad_at(at, "content", list, "a string or a list of text parts");
    cJSON_ArrayForEach(part, list)
    {
        struct place here = below(at, "content", i++);
        if (!check_part(&here, part)) return false;
        len += strlen(json_member(part, "text")->valuestring) + 1;
    }
    char *joined = malloc(len);
    if (!joined) return no_memory(at);
    char *end = joined;
    cJSON_ArrayForEach(part, list)
    {
        if (end != joined) *end++ = '\n';
        const char *text = json_member(part, "text")->valuestring;
        size_t n = strlen(text);
        memcpy(end, text, n);
        end += n;
    }
    *end = '\0';
    cJSON *string = cJSON_CreateString(joined);
    free(joined);
    if (!string) return no_memory(at);
    json_replace(message, list, string);
    return true;
}

static bool read_content(const struct place *at, cJSON *message, unsigned role)
{
    cJSON *content = cJSON_GetObjectItemCaseSensitive(message, "content");
    if (cJSON_IsString(content)) return true;
    if (cJSON_IsArray(content)) return flatten_parts(at, message, content);
    bool calls = role == ROLE_ASSISTANT && json_member(message, "tool_calls");
    if ((!content || cJSON_IsNull(content)) && calls)
        return content || cJSON_AddNullToObject(message, "content") || no_memory(at);
    return bad_at(at, "content", content, "a string or a list of text parts");
}

/* --- tool calls -------------------------------------------------------------------------- */

/* OpenAI sends arguments as JSON in a string; templates expect the object. */
static bool read_arguments(const struct place *at, cJSON *function)
{
    cJSON *tree;
    char param[SRV_PARAM_CAP], err[ERR_CAP];
    cJSON *arguments = cJSON_GetObjectItemCaseSensitive(function, "arguments");
    if (cJSON_IsObject(arguments)) return true;
    if (!cJSON_IsString(arguments))
        return bad_at(at, "arguments", arguments, "a string that holds a JSON object");
    snprintf(param, sizeof param, "%s.arguments", at->path);
    if (!arguments->valuestring[0]) {
        tree = cJSON_CreateObject();
        if (!tree) return no_memory(at);
    } else {
        enum status st = json_parse(arguments->valuestring, strlen(arguments->valuestring),
                                    &json_limits_request, &tree, err);
        if (st == ST_NOMEM) return no_memory(at);
        if (st)
            return srv_fault_bad(at->fault, param, "'%s' could not be read: %.300s.", param, err);
    }
    if (!cJSON_IsObject(tree)) {
        cJSON_Delete(tree);
        return bad_at(at, "arguments", arguments, "a string that holds a JSON object");
    }
    json_replace(function, arguments, tree);
    return true;
}

static bool read_tool_calls(const struct place *at, cJSON *calls)
{
    static const char *const names[] = {"id", "type", "function", "index", NULL};
    static const char *const function_names[] = {"name", "arguments", NULL};
    int i = 0;
    cJSON *call;
    if (!cJSON_IsArray(calls) || !calls->child)
        return bad_at(at, "tool_calls", calls, "a list of tool calls");
    cJSON_ArrayForEach(call, calls)
    {
        struct place here = below(at, "tool_calls", i++);
        if (!cJSON_IsObject(call)) return bad_at(&here, "", call, "an object");
        if (!only_members(&here, call, names)) return false;
        const cJSON *id = json_member(call, "id"), *type = json_member(call, "type");
        if (id && !cJSON_IsString(id)) return bad_at(&here, "id", id, "a string");
        if (type && (!cJSON_IsString(type) || strcmp(type->valuestring, "function")))
            return bad_at(&here, "type", type, "'function'");
        cJSON *function = cJSON_GetObjectItemCaseSensitive(call, "function");
        if (!cJSON_IsObject(function)) return bad_at(&here, "function", function, "an object");
        struct place inner = below(&here, "function", -1);
        const cJSON *name = json_member(function, "name");
        if (!cJSON_IsString(name) || !name->valuestring[0])
            return bad_at(&inner, "name", name, "a non-empty string");
        if (!only_members(&inner, function, function_names)) return false;
        if (!read_arguments(&inner, function)) return false;
    }
    return true;
}

/* --- messages ---------------------------------------------------------------------------- */

static unsigned read_role(const struct place *at, cJSON *message)
{
    static const struct {
        const char *name;
        unsigned bit;
    } roles[] = {{"system", ROLE_SYSTEM}, {"developer", ROLE_SYSTEM},
                 {"user", ROLE_USER},     {"assistant", ROLE_ASSISTANT},
                 {"tool", ROLE_TOOL},     {"function", ROLE_FUNCTION}};
    cJSON *role = cJSON_GetObjectItemCaseSensitive(message, "role");
    static const char *const what = "one of system, developer, user, assistant, tool, function";
    for (size_t i = 0; cJSON_IsString(role) && i < ARRAY_COUNT(roles); i++) {
        if (strcmp(role->valuestring, roles[i].name)) continue;
        if (strcmp(roles[i].name, "developer")) return roles[i].bit;
        /* OpenAI's newer name; templates know the older one. */
        cJSON *system = cJSON_CreateString("system");
        if (!system) return no_memory(at);
        json_replace(message, role, system);
        return ROLE_SYSTEM;
    }
    bad_at(at, "role", role, what);
    return 0;
}

static bool read_message_member(const struct place *at, cJSON *item, unsigned role)
{
    static const struct {
        const char *name;
        unsigned roles;
        bool string; /* else not supported unless empty */
    } members[] = {{"name", ROLE_ANY, true},
                   {"tool_call_id", ROLE_TOOL, true},
                   {"reasoning_content", ROLE_ASSISTANT, true},
                   {"refusal", ROLE_ASSISTANT, false},
                   {"audio", ROLE_ASSISTANT, false},
                   {"annotations", ROLE_ASSISTANT, false},
                   {"function_call", ROLE_ASSISTANT, false}};
    if (!strcmp(item->string, "role") || !strcmp(item->string, "content")) return true;
    if (!strcmp(item->string, "tool_calls")) {
        if (cJSON_IsNull(item)) return true;
        if (role == ROLE_ASSISTANT) return read_tool_calls(at, item);
        return unsupported_at(at, "tool_calls");
    }
    for (size_t i = 0; i < ARRAY_COUNT(members); i++) {
        if (strcmp(item->string, members[i].name)) continue;
        if (cJSON_IsNull(item)) return true;
        if (members[i].roles & role && members[i].string)
            return cJSON_IsString(item) || bad_at(at, item->string, item, "a string");
        if (cJSON_IsArray(item) && !item->child) return true;
        return unsupported_at(at, item->string);
    }
    return unknown_at(at, item->string);
}

bool srv_messages_read(cJSON *messages, struct srv_fault *fault)
{
    struct place top = {.fault = fault};
    int i = 0;
    cJSON *message, *item;
    if (!cJSON_IsArray(messages) || !messages->child)
        return srv_fault_bad(fault, "messages", "'messages' must be a non-empty list of messages.");
    cJSON_ArrayForEach(message, messages)
    {
        struct place here = below(&top, "messages", i++);
        if (!cJSON_IsObject(message)) return bad_at(&here, "", message, "an object");
        unsigned role = read_role(&here, message);
        if (!role) return false;
        cJSON_ArrayForEach(item, message)
        {
            if (!read_message_member(&here, item, role)) return false;
        }
        if (!read_content(&here, message, role)) return false;
    }
    return true;
}

bool srv_tools_read(const cJSON *tools, struct srv_fault *fault)
{
    static const char *const names[] = {"type", "function", NULL};
    static const char *const function_names[] = {"name", "description", "parameters", "strict",
                                                 NULL};
    struct place top = {.fault = fault};
    int i = 0;
    const cJSON *tool;
    if (!cJSON_IsArray(tools))
        return srv_fault_bad(fault, "tools", "'tools' must be a list of tools.");
    if (cJSON_GetArraySize(tools) > SRV_TOOLS_MAX)
        return srv_fault_bad(fault, "tools", "'tools' has %d entries; at most %d are accepted.",
                             cJSON_GetArraySize(tools), SRV_TOOLS_MAX);
    cJSON_ArrayForEach(tool, tools)
    {
        struct place here = below(&top, "tools", i++);
        if (!cJSON_IsObject(tool)) return bad_at(&here, "", tool, "an object");
        const cJSON *type = json_member(tool, "type"), *function = json_member(tool, "function");
        if (!cJSON_IsString(type) || strcmp(type->valuestring, "function"))
            return bad_at(&here, "type", type, "'function'");
        if (!cJSON_IsObject(function)) return bad_at(&here, "function", function, "an object");
        struct place inner = below(&here, "function", -1);
        const cJSON *name = json_member(function, "name");
        const cJSON *description = json_member(function, "description");
        const cJSON *parameters = json_member(function, "parameters");
        const cJSON *strict = json_member(function, "strict");
        if (!cJSON_IsString(name) || !name->valuestring[0])
            return bad_at(&inner, "name", name, "a non-empty string");
        if (description && !cJSON_IsString(description))
            return bad_at(&inner, "description", description, "a string");
        if (parameters && !cJSON_IsObject(parameters))
            return bad_at(&inner, "parameters", parameters, "an object");
        if (strict && !cJSON_IsFalse(strict)) return unsupported_at(&inner, "strict");
        if (!only_members(&here, tool, names) || !only_members(&inner, function, function_names))
            return false;
    }
    return true;
}
