/*
 * api_parse.c - see api_parse.h.
 *
 * srv_ask_parse walks the members of the body once; each is looked up in `fields` and read by
 * its kind.  What depends on several fields is checked afterwards (settle).
 */
#include "server/api_parse.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"

#define EXACT_MAX 9007199254740992.0 /* 2^53: beyond it a JSON number is no exact integer */
#define COMPLETION_TOKENS_DEFAULT 16

struct parser {
    struct srv_ask *out;
    const struct srv_parse_limits *limits;
    struct srv_fault *fault;
    const char *name; /* of the field being read */
};

enum kind {
    KIND_INT,       /* int32_t within [min, max] */
    KIND_FLOAT,     /* float within [min, max] */
    KIND_FLOAT_POS, /* float within (0, max] */
    KIND_BOOL,
    KIND_READ,   /* by `read` */
    KIND_STRING, /* a string that cannot change the answer: checked and dropped */
    KIND_ONLY,   /* not supported: nothing but the word `only` (or null) is accepted */
    KIND_NEUTRAL /* not supported: null, false, and an empty string, array or object say nothing */
};

struct field {
    const char *name;
    unsigned where; /* srv_endpoint bits */
    enum kind kind;
    size_t offset; /* in struct srv_ask */
    double min, max;
    bool (*read)(struct parser *p, cJSON *value);
    const char *only;
};

static bool bad(struct parser *p, const cJSON *value, const char *what)
{
    char text[64];
    return srv_fault_bad(p->fault, p->name, "'%s' must be %s, not %s.", p->name, what,
                         srv_json_describe(value, text, sizeof text));
}

static bool out_of_memory(struct parser *p)
{
    return srv_fault_set(p->fault, 503, "unavailable_error", NULL, "",
                         "The server has no memory left for this request.");
}

const char *srv_json_describe(const cJSON *value, char *text, size_t cap)
{
    if (cJSON_IsString(value)) return value->valuestring[0] ? "a string" : "an empty string";
    if (cJSON_IsArray(value)) return value->child ? "an array" : "an empty array";
    if (cJSON_IsObject(value)) return "an object";
    if (cJSON_IsTrue(value)) return "true";
    if (cJSON_IsFalse(value)) return "false";
    if (cJSON_IsNull(value)) return "null";
    snprintf(text, cap, "%.15g", value->valuedouble);
    return text;
}

static bool read_integer(const cJSON *value, double min, double max, double *out)
{
    if (!cJSON_IsNumber(value)) return false;
    double v = value->valuedouble;
    if (v != floor(v) || fabs(v) > EXACT_MAX || v < min || v > max) return false;
    *out = v;
    return true;
}

/* Token ids of an array into a new block; at most `max` of them. */
static bool read_tokens(struct parser *p, const cJSON *array, int32_t max, int32_t **out,
                        int32_t *count)
{
    int n = cJSON_GetArraySize(array);
    if (n > max)
        return srv_fault_bad(p->fault, p->name, "'%s' has %d token ids; at most %d are accepted.",
                             p->name, n, (int)max);
    int32_t *tokens = malloc((size_t)n * sizeof *tokens + 1);
    if (!tokens) return out_of_memory(p);
    const cJSON *item;
    int32_t i = 0;
    cJSON_ArrayForEach(item, array)
    {
        double v;
        char text[64];
        if (!read_integer(item, 0, p->limits->vocab - 1, &v)) {
            free(tokens);
            return srv_fault_bad(
                p->fault, p->name, "'%s' must hold token ids (integers from 0 to %d), not %s.",
                p->name, (int)p->limits->vocab - 1, srv_json_describe(item, text, sizeof text));
        }
        tokens[i++] = (int32_t)v;
    }
    *out = tokens;
    *count = i;
    return true;
}

static bool prompt_from(struct parser *p, cJSON *value, struct srv_prompt *prompt)
{
    if (cJSON_IsString(value)) {
        prompt->text = value->valuestring;
        prompt->len = strlen(value->valuestring);
        return true;
    }
    if (!value->child)
        return srv_fault_bad(p->fault, p->name, "'%s' holds an empty list of token ids.", p->name);
    return read_tokens(p, value, INT32_MAX, &prompt->tokens, &prompt->token_count);
}

/* A string, a list of strings, a list of token ids, or a list of such lists. */
static bool read_prompt(struct parser *p, cJSON *value)
{
    static const char *const forms =
        "a string, a list of strings, a list of token ids, or a list of lists of token ids";
    struct srv_ask *r = p->out;
    bool list = cJSON_IsArray(value);
    if (!cJSON_IsString(value) && !(list && value->child)) return bad(p, value, forms);
    bool single = !list || cJSON_IsNumber(value->child);
    bool tokenize = r->endpoint == SRV_TOKENIZE;
    if (tokenize && list) return bad(p, value, "a string");
    int count = single ? 1 : cJSON_GetArraySize(value);
    if (count > p->limits->sequences_max)
        return srv_fault_bad(p->fault, p->name, "'%s' has %d prompts; at most %d are accepted.",
                             p->name, count, (int)p->limits->sequences_max);
    r->prompts = calloc((size_t)count, sizeof *r->prompts);
    if (!r->prompts) return out_of_memory(p);
    r->prompt_count = count;
    if (single) return prompt_from(p, value, &r->prompts[0]);
    cJSON *item;
    int i = 0;
    cJSON_ArrayForEach(item, value)
    {
        bool same = cJSON_IsString(item) == cJSON_IsString(value->child);
        if (!same || (!cJSON_IsString(item) && !cJSON_IsArray(item))) return bad(p, item, forms);
        if (!prompt_from(p, item, &r->prompts[i++])) return false;
    }
    return true;
}

static bool read_tokens_field(struct parser *p, cJSON *value)
{
    struct srv_ask *r = p->out;
    if (!cJSON_IsArray(value)) return bad(p, value, "a list of token ids");
    r->prompts = calloc(1, sizeof *r->prompts);
    if (!r->prompts) return out_of_memory(p);
    r->prompt_count = 1;
    return read_tokens(p, value, INT32_MAX, &r->prompts[0].tokens, &r->prompts[0].token_count);
}

static bool read_model(struct parser *p, cJSON *value)
{
    if (!cJSON_IsString(value) || !value->valuestring[0]) return bad(p, value, "a model's name");
    for (int i = 0; i < p->limits->model_name_count; i++) {
        if (strcmp(p->limits->model_names[i], value->valuestring)) continue;
        p->out->model = p->limits->model_names[i];
        return true;
    }
    return srv_fault_set(p->fault, 404, "not_found_error", "model_not_found", "model",
                         "The model '%.200s' does not exist: this server serves '%.200s'.",
                         value->valuestring, p->limits->model_names[0]);
}

static bool read_messages(struct parser *p, cJSON *value)
{
    p->out->messages = value;
    return srv_messages_read(value, p->fault);
}

static bool read_tools(struct parser *p, cJSON *value)
{
    if (cJSON_IsArray(value) && !value->child) return true;
    p->out->tools = value;
    return srv_tools_read(value, p->fault);
}

static bool read_kwargs(struct parser *p, cJSON *value)
{
    p->out->template_kwargs = value;
    return cJSON_IsObject(value) || bad(p, value, "an object");
}

static bool add_stop(struct parser *p, const cJSON *value)
{
    if (!cJSON_IsString(value) || !value->valuestring[0])
        return bad(p, value, "a non-empty string, or a list of them");
    size_t len = strlen(value->valuestring);
    if (len > SRV_STOP_BYTES_MAX)
        return srv_fault_bad(p->fault, p->name,
                             "'%s' has a string of %zu bytes; at most %d are accepted.", p->name,
                             len, SRV_STOP_BYTES_MAX);
    return !srv_stop_set_add(&p->out->stops, value->valuestring, len) || out_of_memory(p);
}

static bool read_stop(struct parser *p, cJSON *value)
{
    if (!cJSON_IsArray(value)) return add_stop(p, value);
    int n = cJSON_GetArraySize(value);
    if (n > SRV_STOP_MAX)
        return srv_fault_bad(p->fault, p->name, "'%s' has %d strings; at most %d are accepted.",
                             p->name, n, SRV_STOP_MAX);
    const cJSON *item;
    cJSON_ArrayForEach(item, value)
    {
        if (!add_stop(p, item)) return false;
    }
    return true;
}

static bool read_stop_tokens(struct parser *p, cJSON *value)
{
    struct srv_ask *r = p->out;
    if (!cJSON_IsArray(value)) return bad(p, value, "a list of token ids");
    int32_t count = 0;
    if (!read_tokens(p, value, SRV_STOP_TOKENS_MAX, &r->stop_tokens, &count)) return false;
    r->sampling.stop_tokens = r->stop_tokens;
    r->sampling.stop_token_count = count;
    return true;
}

/* A token id in plain decimal: one spelling each, so that no two keys mean the same token. */
static bool parse_token_id(const char *text, int32_t vocab, int32_t *out)
{
    int64_t v = 0;
    if (!text[0] || (text[0] == '0' && text[1])) return false;
    for (const char *c = text; *c; c++) {
        if (*c < '0' || *c > '9') return false;
        v = v * 10 + (*c - '0');
        if (v >= vocab) return false;
    }
    *out = (int32_t)v;
    return true;
}

static bool read_bias(struct parser *p, cJSON *value)
{
    struct srv_ask *r = p->out;
    if (!cJSON_IsObject(value)) return bad(p, value, "an object of token ids and numbers");
    int n = cJSON_GetArraySize(value);
    if (n > SRV_BIAS_MAX)
        return srv_fault_bad(p->fault, p->name, "'%s' has %d entries; at most %d are accepted.",
                             p->name, n, SRV_BIAS_MAX);
    if (n == 0) return true;
    r->bias = calloc((size_t)n, sizeof *r->bias);
    if (!r->bias) return out_of_memory(p);
    const cJSON *item;
    int32_t i = 0;
    cJSON_ArrayForEach(item, value)
    {
        if (!parse_token_id(item->string, p->limits->vocab, &r->bias[i].token))
            return srv_fault_bad(p->fault, p->name,
                                 "'%s' has the key '%.60s', which is no token id from 0 to %d.",
                                 p->name, item->string, (int)p->limits->vocab - 1);
        if (!cJSON_IsNumber(item) || !(fabs(item->valuedouble) <= 100))
            return srv_fault_bad(p->fault, p->name,
                                 "'%s' must map token ids to numbers from -100 to 100; that of "
                                 "token %s is none.",
                                 p->name, item->string);
        r->bias[i++].bias = (float)item->valuedouble;
    }
    r->sampling.bias = r->bias;
    r->sampling.bias_count = n;
    return true;
}

/* Copied: it is kept until the last sequence is over. */
static bool read_cache_salt(struct parser *p, cJSON *value)
{
    struct srv_ask *r = p->out;
    if (!cJSON_IsString(value) || !value->valuestring[0])
        return bad(p, value, "a non-empty string");
    size_t len = strlen(value->valuestring);
    if (len > ENG_CACHE_SALT_MAX)
        return srv_fault_bad(p->fault, p->name, "'%s' has %zu bytes; at most %d are accepted.",
                             p->name, len, ENG_CACHE_SALT_MAX);
    r->cache_salt = strdup(value->valuestring);
    r->cache_salt_len = len;
    return r->cache_salt || out_of_memory(p);
}

static bool read_seed(struct parser *p, cJSON *value)
{
    double v;
    if (!read_integer(value, -EXACT_MAX, EXACT_MAX, &v))
        return bad(p, value, "an integer from -2^53 to 2^53");
    p->out->seed = (int64_t)v;
    p->out->seed_given = true;
    return true;
}

static bool read_top_k(struct parser *p, cJSON *value)
{
    double v;
    if (!read_integer(value, -1, INT32_MAX, &v))
        return bad(p, value, "a positive integer, or 0 or -1 for no limit");
    p->out->sampling.top_k = v < 0 || v >= p->limits->vocab ? 0 : (int32_t)v;
    return true;
}

static bool read_add_special(struct parser *p, cJSON *value)
{
    if (!cJSON_IsBool(value)) return bad(p, value, "true or false");
    p->out->add_special = cJSON_IsTrue(value);
    p->out->add_special_given = true;
    return true;
}

static bool read_stream_options(struct parser *p, cJSON *value)
{
    if (!cJSON_IsObject(value)) return bad(p, value, "an object");
    cJSON *item;
    cJSON_ArrayForEach(item, value)
    {
        char name[SRV_PARAM_CAP];
        snprintf(name, sizeof name, "stream_options.%.80s", item->string);
        p->name = name;
        bool *out = !strcmp(item->string, "include_usage")            ? &p->out->include_usage
                    : !strcmp(item->string, "continuous_usage_stats") ? &p->out->continuous_usage
                                                                      : NULL;
        bool obfuscation = !strcmp(item->string, "include_obfuscation");
        if (cJSON_IsNull(item) && (out || obfuscation)) continue;
        if (!out && !obfuscation)
            return srv_fault_bad(p->fault, name, "Unrecognized request argument: '%s'.", name);
        if (!cJSON_IsBool(item)) return bad(p, item, "true or false");
        if (obfuscation && cJSON_IsTrue(item))
            return srv_fault_unsupported(p->fault, name, "'%s' is not supported.", name);
        if (out) *out = cJSON_IsTrue(item);
    }
    return true;
}

static bool read_response_format(struct parser *p, cJSON *value)
{
    static const char *const param = "response_format.type";
    if (!cJSON_IsObject(value)) return bad(p, value, "an object");
    const cJSON *type = json_member(value, "type");
    const char *name = cJSON_IsString(type) ? type->valuestring : "";
    if (!strcmp(name, "json_object") || !strcmp(name, "json_schema"))
        return srv_fault_unsupported(p->fault, "response_format",
                                     "'response_format' of type '%s' is not supported: this server "
                                     "does not constrain the answer; ask for 'text'.",
                                     name);
    if (strcmp(name, "text")) return srv_fault_bad(p->fault, param, "'%s' must be 'text'.", param);
    if (value->child->next)
        return srv_fault_bad(p->fault, "response_format",
                             "'response_format' of type 'text' takes no other member.");
    return true;
}

static bool read_tool_choice(struct parser *p, cJSON *value)
{
    const char *word = cJSON_IsString(value) ? value->valuestring : "";
    if (!strcmp(word, "auto") || !strcmp(word, "none")) return true;
    if (cJSON_IsObject(value) || !strcmp(word, "required"))
        return srv_fault_unsupported(p->fault, p->name,
                                     "'%s' other than 'auto' or 'none' is not supported: this "
                                     "server cannot force a call.",
                                     p->name);
    return bad(p, value, "'auto' or 'none'");
}

static bool read_modalities(struct parser *p, cJSON *value)
{
    const cJSON *item;
    if (!cJSON_IsArray(value) || !value->child) return bad(p, value, "a list of strings");
    cJSON_ArrayForEach(item, value)
    {
        if (!cJSON_IsString(item)) return bad(p, item, "a list of strings");
        if (strcmp(item->valuestring, "text"))
            return srv_fault_unsupported(p->fault, p->name,
                                         "'%s' other than 'text' is not supported.", p->name);
    }
    return true;
}

static bool read_metadata(struct parser *p, cJSON *value)
{
    const cJSON *item;
    if (!cJSON_IsObject(value)) return bad(p, value, "an object of strings");
    cJSON_ArrayForEach(item, value)
    {
        if (!cJSON_IsString(item)) return bad(p, item, "an object of strings");
    }
    return true;
}

static bool read_service_tier(struct parser *p, cJSON *value)
{
    if (!cJSON_IsString(value)) return bad(p, value, "a string");
    if (!strcmp(value->valuestring, "auto") || !strcmp(value->valuestring, "default")) return true;
    return srv_fault_unsupported(p->fault, p->name,
                                 "'%s' other than 'auto' or 'default' is not supported.", p->name);
}

/* Numbers whose one neutral value changes nothing; any other asks for what is not there. */
static bool read_neutral_number(struct parser *p, cJSON *value)
{
    double neutral = strcmp(p->name, "length_penalty") ? 0 : 1;
    if (!cJSON_IsNumber(value)) return bad(p, value, "a number");
    return value->valuedouble == neutral ||
           srv_fault_unsupported(p->fault, p->name, "'%s' is not supported.", p->name);
}

static bool read_dropped_bool(struct parser *p, cJSON *value)
{
    return cJSON_IsBool(value) || bad(p, value, "true or false");
}

#define AT(member) offsetof(struct srv_ask, member)
#define GENERATE (SRV_COMPLETIONS | SRV_CHAT)
#define TEMPLATE (SRV_CHAT | SRV_TOKENIZE)
#define ALL (GENERATE | SRV_TOKENIZE | SRV_DETOKENIZE)
#define READ(name, where, fn)                                                                      \
    {                                                                                              \
        name, where, KIND_READ, 0, 0, 0, fn, NULL                                                  \
    }
#define BOOL(name, where, member)                                                                  \
    {                                                                                              \
        name, where, KIND_BOOL, AT(member), 0, 0, NULL, NULL                                       \
    }
#define INT(name, where, member, min, max)                                                         \
    {                                                                                              \
        name, where, KIND_INT, AT(member), min, max, NULL, NULL                                    \
    }
#define FLOAT(name, where, member, min, max)                                                       \
    {                                                                                              \
        name, where, KIND_FLOAT, AT(member), min, max, NULL, NULL                                  \
    }
#define FLOAT_POS(name, where, member, max)                                                        \
    {                                                                                              \
        name, where, KIND_FLOAT_POS, AT(member), 0, max, NULL, NULL                                \
    }
#define STRING(name, where)                                                                        \
    {                                                                                              \
        name, where, KIND_STRING, 0, 0, 0, NULL, NULL                                              \
    }
#define ONLY(name, where, word)                                                                    \
    {                                                                                              \
        name, where, KIND_ONLY, 0, 0, 0, NULL, word                                                \
    }
#define NEUTRAL(name, where)                                                                       \
    {                                                                                              \
        name, where, KIND_NEUTRAL, 0, 0, 0, NULL, NULL                                             \
    }

static const struct field fields[] = {
    READ("model", ALL, read_model),
    /* What is answered. */
    READ("prompt", SRV_COMPLETIONS | SRV_TOKENIZE, read_prompt),
    READ("messages", TEMPLATE, read_messages),
    READ("tokens", SRV_DETOKENIZE, read_tokens_field),
    READ("tools", TEMPLATE, read_tools),
    READ("tool_choice", SRV_CHAT, read_tool_choice),
    READ("chat_template_kwargs", TEMPLATE, read_kwargs),
    BOOL("add_generation_prompt", TEMPLATE, add_generation_prompt),
    BOOL("continue_final_message", TEMPLATE, continue_final_message),
    READ("add_special_tokens", GENERATE | SRV_TOKENIZE, read_add_special),
    BOOL("return_token_strs", SRV_TOKENIZE, return_token_strings),
    READ("cache_salt", GENERATE, read_cache_salt),
    /* Sampling. */
    FLOAT("temperature", GENERATE, sampling.temperature, 0, 2),
    FLOAT_POS("top_p", GENERATE, sampling.top_p, 1),
    FLOAT("min_p", GENERATE, sampling.min_p, 0, 1),
    READ("top_k", GENERATE, read_top_k),
    FLOAT("presence_penalty", GENERATE, sampling.presence_penalty, -2, 2),
    FLOAT("frequency_penalty", GENERATE, sampling.frequency_penalty, -2, 2),
    FLOAT_POS("repetition_penalty", GENERATE, sampling.repetition_penalty, 100),
    READ("logit_bias", GENERATE, read_bias),
    READ("seed", GENERATE, read_seed),
    INT("n", GENERATE, n, 1, INT32_MAX),
    INT("best_of", SRV_COMPLETIONS, best_of, 1, INT32_MAX),
    /* Where it ends. */
    INT("max_tokens", SRV_COMPLETIONS, max_tokens, 0, INT32_MAX),
    INT("max_tokens", SRV_CHAT, max_tokens, 1, INT32_MAX),
    INT("max_completion_tokens", SRV_CHAT, max_completion_tokens, 1, INT32_MAX),
    INT("min_tokens", GENERATE, sampling.min_tokens, 0, INT32_MAX),
    BOOL("ignore_eos", GENERATE, sampling.ignore_eos),
    READ("stop", GENERATE, read_stop),
    READ("stop_token_ids", GENERATE, read_stop_tokens),
    BOOL("include_stop_str_in_output", GENERATE, include_stop),
    /* What the answer tells. */
    BOOL("echo", SRV_COMPLETIONS, echo),
    INT("logprobs", SRV_COMPLETIONS, logprobs_count, 0, ENG_LOGPROBS_MAX),
    BOOL("logprobs", SRV_CHAT, logprobs),
    INT("top_logprobs", SRV_CHAT, top_logprobs, 0, ENG_LOGPROBS_MAX),
    BOOL("skip_special_tokens", GENERATE, skip_special),
    BOOL("return_token_ids", GENERATE, return_token_ids),
    BOOL("stream", GENERATE, stream),
    READ("stream_options", GENERATE, read_stream_options),
    READ("response_format", GENERATE, read_response_format),
    /* Cannot change the answer. */
    STRING("user", GENERATE),
    STRING("request_id", GENERATE),
    STRING("safety_identifier", SRV_CHAT),
    STRING("prompt_cache_key", SRV_CHAT),
    STRING("prompt_cache_retention", SRV_CHAT),
    READ("metadata", SRV_CHAT, read_metadata),
    READ("parallel_tool_calls", SRV_CHAT, read_dropped_bool),
    READ("service_tier", SRV_CHAT, read_service_tier),
    /* Known, and accepted only where they ask for nothing. */
    READ("modalities", SRV_CHAT, read_modalities),
    READ("length_penalty", GENERATE, read_neutral_number),
    READ("priority", GENERATE, read_neutral_number),
    ONLY("verbosity", SRV_CHAT, "medium"),
    ONLY("function_call", SRV_CHAT, "none"),
    ONLY("suffix", SRV_COMPLETIONS, NULL),
    NEUTRAL("functions", SRV_CHAT),
    NEUTRAL("store", SRV_CHAT),
    NEUTRAL("audio", SRV_CHAT),
    NEUTRAL("prediction", SRV_CHAT),
    NEUTRAL("reasoning_effort", SRV_CHAT),
    NEUTRAL("web_search_options", SRV_CHAT),
    NEUTRAL("echo", SRV_CHAT),
    NEUTRAL("documents", SRV_CHAT),
    NEUTRAL("chat_template", TEMPLATE),
    NEUTRAL("mm_processor_kwargs", TEMPLATE),
    NEUTRAL("use_beam_search", GENERATE),
    NEUTRAL("prompt_logprobs", GENERATE),
    NEUTRAL("truncate_prompt_tokens", GENERATE),
    NEUTRAL("allowed_token_ids", GENERATE),
    NEUTRAL("bad_words", GENERATE),
    NEUTRAL("logits_processors", GENERATE),
    NEUTRAL("structured_outputs", GENERATE),
    NEUTRAL("guided_json", GENERATE),
    NEUTRAL("guided_regex", GENERATE),
    NEUTRAL("guided_choice", GENERATE),
    NEUTRAL("guided_grammar", GENERATE),
    NEUTRAL("kv_transfer_params", GENERATE),
    NEUTRAL("return_tokens_as_token_ids", GENERATE),
};

static const struct field *find_field(const char *name, enum srv_endpoint endpoint)
{
    for (size_t i = 0; i < ARRAY_COUNT(fields); i++)
        if (fields[i].where & endpoint && !strcmp(fields[i].name, name)) return &fields[i];
    return NULL;
}

static bool read_float(struct parser *p, const struct field *f, const cJSON *value)
{
    bool open = f->kind == KIND_FLOAT_POS;
    double v = value->valuedouble;
    /* The comparison is made on the float that is kept, so that 1e-60 does not pass as positive. */
    float kept = (float)v;
    if (cJSON_IsNumber(value) && v >= f->min && v <= f->max && !(open && kept < FLT_MIN)) {
        memcpy((char *)p->out + f->offset, &kept, sizeof kept);
        return true;
    }
    char what[64];
    if (open) snprintf(what, sizeof what, "a number above 0 and at most %g", f->max);
    else snprintf(what, sizeof what, "a number from %g to %g", f->min, f->max);
    return bad(p, value, what);
}

static bool read_int(struct parser *p, const struct field *f, const cJSON *value)
{
    double v;
    char what[64];
    if (read_integer(value, f->min, f->max, &v)) {
        int32_t kept = (int32_t)v;
        memcpy((char *)p->out + f->offset, &kept, sizeof kept);
        return true;
    }
    if (f->max == INT32_MAX) snprintf(what, sizeof what, "an integer, at least %.0f", f->min);
    else snprintf(what, sizeof what, "an integer from %.0f to %.0f", f->min, f->max);
    return bad(p, value, what);
}

static bool read_field(struct parser *p, const struct field *f, cJSON *value)
{
    bool *flag = (bool *)((char *)p->out + f->offset);
    switch (f->kind) {
    case KIND_INT: return read_int(p, f, value);
    case KIND_FLOAT:
    case KIND_FLOAT_POS: return read_float(p, f, value);
    case KIND_BOOL:
        if (!cJSON_IsBool(value)) return bad(p, value, "true or false");
        *flag = cJSON_IsTrue(value);
        return true;
    case KIND_READ: return f->read(p, value);
    case KIND_STRING: return cJSON_IsString(value) || bad(p, value, "a string");
    case KIND_ONLY:
        if (f->only && cJSON_IsString(value) && !strcmp(value->valuestring, f->only)) return true;
        break;
    case KIND_NEUTRAL:
        if (cJSON_IsFalse(value) || (cJSON_IsString(value) && !value->valuestring[0])) return true;
        if ((cJSON_IsArray(value) || cJSON_IsObject(value)) && !value->child) return true;
        break;
    }
    return srv_fault_unsupported(p->fault, p->name, "'%s' is not supported.", p->name);
}

/* Log-probabilities and the sequence count, which several fields have a say in. */
static bool settle_counts(struct parser *p)
{
    struct srv_ask *r = p->out;
    struct srv_fault *fault = p->fault;
    if (r->best_of && r->best_of != r->n)
        return srv_fault_unsupported(fault, "best_of",
                                     "'best_of' other than 'n' is not supported.");
    int64_t sequences = (int64_t)r->n * (r->prompt_count ? r->prompt_count : 1);
    if (sequences > p->limits->sequences_max)
        return srv_fault_bad(fault, "n",
                             "'n' times the number of prompts is %" PRId64
                             "; at most %d answers per request are accepted.",
                             sequences, (int)p->limits->sequences_max);
    if (r->endpoint == SRV_CHAT) {
        if (r->top_logprobs >= 0 && !r->logprobs)
            return srv_fault_bad(fault, "top_logprobs", "'top_logprobs' needs 'logprobs': true.");
        r->logprobs_count = !r->logprobs ? -1 : r->top_logprobs < 0 ? 0 : r->top_logprobs;
    }
    r->sampling.logprobs = r->logprobs_count;
    r->sampling.prompt_logprobs = r->echo ? r->logprobs_count : -1;
    return true;
}

static bool settle_lengths(struct parser *p)
{
    struct srv_ask *r = p->out;
    struct srv_fault *fault = p->fault;
    const char *name = "max_tokens";
    if (r->max_completion_tokens >= 0) {
        if (r->max_tokens >= 0 && r->max_tokens != r->max_completion_tokens)
            return srv_fault_bad(fault, "max_tokens",
                                 "'max_tokens' and 'max_completion_tokens' are both given and "
                                 "differ; give one.");
        r->max_tokens = r->max_completion_tokens;
        name = "max_completion_tokens";
    }
    if (r->max_tokens == 0 && !r->echo)
        return srv_fault_bad(fault, name, "'%s' must be at least 1 unless 'echo' is true.", name);
    int32_t max = r->max_tokens;
    if (max < 0 && r->endpoint == SRV_COMPLETIONS) max = COMPLETION_TOKENS_DEFAULT;
    if (max >= 0 && r->sampling.min_tokens > max)
        return srv_fault_bad(fault, "min_tokens", "'min_tokens' is %d, above '%s', which is %d.",
                             (int)r->sampling.min_tokens, name, (int)max);
    return true;
}

static bool settle(struct parser *p)
{
    struct srv_ask *r = p->out;
    struct srv_fault *fault = p->fault;
    bool prompts = r->prompts != NULL;
    const char *wanted = r->endpoint == SRV_CHAT         ? "messages"
                         : r->endpoint == SRV_DETOKENIZE ? "tokens"
                                                         : "prompt";
    if (!prompts && !r->messages) return srv_fault_bad(fault, wanted, "'%s' is missing.", wanted);
    if (prompts && r->messages)
        return srv_fault_bad(fault, "messages", "'prompt' and 'messages' exclude each other.");
    if (!r->messages && (r->tools || r->template_kwargs || r->continue_final_message))
        return srv_fault_bad(fault, "messages", "'messages' is missing, which other fields need.");
    if (r->add_generation_prompt && r->continue_final_message)
        return srv_fault_bad(fault, "continue_final_message",
                             "'continue_final_message' needs 'add_generation_prompt': false.");
    if (!r->add_special_given) r->add_special = r->messages == NULL;
    const cJSON *choice = json_member(r->tree, "tool_choice");
    if (choice && !strcmp(choice->valuestring, "none")) r->tools = NULL;
    if (!r->stream && json_member(r->tree, "stream_options"))
        return srv_fault_bad(fault, "stream_options", "'stream_options' needs 'stream': true.");
    return settle_counts(p) && settle_lengths(p);
}

static void set_defaults(struct srv_ask *r, const struct srv_parse_limits *limits)
{
    r->model = limits->model_names[0];
    r->add_generation_prompt = true;
    r->skip_special = true;
    r->n = 1;
    r->max_tokens = r->max_completion_tokens = -1;
    r->logprobs_count = r->top_logprobs = -1;
    r->sampling = (struct eng_sampling){.temperature = limits->temperature,
                                        .top_p = limits->top_p,
                                        .min_p = limits->min_p,
                                        .top_k = limits->top_k,
                                        .repetition_penalty = limits->repetition_penalty,
                                        .logprobs = -1,
                                        .prompt_logprobs = -1};
}

static bool parse_fields(struct parser *p)
{
    cJSON *item;
    cJSON_ArrayForEach(item, p->out->tree)
    {
        const struct field *f = find_field(item->string, p->out->endpoint);
        if (!f)
            return srv_fault_bad(p->fault, item->string, "Unrecognized request argument: '%.100s'.",
                                 item->string);
        p->name = f->name;
        if (!cJSON_IsNull(item) && !read_field(p, f, item)) return false;
    }
    return settle(p);
}

bool srv_ask_parse(struct srv_ask *out, enum srv_endpoint endpoint, const char *body, size_t len,
                   const struct srv_parse_limits *limits, struct srv_fault *fault)
{
    char err[ERR_CAP];
    *out = (struct srv_ask){.endpoint = endpoint};
    set_defaults(out, limits);
    struct parser p = {.out = out, .limits = limits, .fault = fault};
    enum status st = json_parse(body, len, &json_limits_request, &out->tree, err);
    if (st == ST_NOMEM) return out_of_memory(&p);
    if (st) return srv_fault_bad(fault, "", "The request body could not be read: %s.", err);
    bool ok = cJSON_IsObject(out->tree)
                  ? parse_fields(&p)
                  : srv_fault_bad(fault, "", "The request body must be a JSON object.");
    if (!ok) srv_ask_deinit(out);
    return ok;
}

void srv_ask_deinit(struct srv_ask *r)
{
    for (int32_t i = 0; i < r->prompt_count; i++) free(r->prompts[i].tokens);
    free(r->prompts);
    free(r->bias);
    free(r->stop_tokens);
    free(r->cache_salt);
    srv_stop_set_deinit(&r->stops);
    cJSON_Delete(r->tree);
    *r = (struct srv_ask){0};
}

void srv_ask_keep_prompts(struct srv_ask *r)
{
    /* Either all prompts are texts or none is. */
    bool texts = r->prompt_count > 0 && r->prompts[0].text;
    cJSON *kept = texts ? cJSON_DetachItemFromObjectCaseSensitive(r->tree, "prompt") : NULL;
    CHECK(!texts || kept);
    cJSON_Delete(r->tree);
    r->tree = kept;
    r->messages = r->tools = r->template_kwargs = NULL;
}

bool srv_ask_score_only(const struct srv_ask *r)
{
    return r->max_tokens == 0;
}

bool srv_ask_fit(struct srv_ask *r, int32_t prompt_tokens, int32_t context_tokens,
                 struct srv_fault *fault)
{
    const char *param = r->endpoint == SRV_CHAT ? "messages" : "prompt";
    if (prompt_tokens == 0)
        return srv_fault_bad(fault, param, "'%s' comes to no tokens at all; give some text.",
                             param);
    int32_t room = context_tokens - prompt_tokens;
    if (room < 1) return srv_fault_context(fault, param, prompt_tokens, -1, context_tokens);
    int32_t max = r->max_tokens;
    if (max > room) return srv_fault_context(fault, param, prompt_tokens, max, context_tokens);
    if (max < 0 && r->endpoint == SRV_COMPLETIONS)
        max = room < COMPLETION_TOKENS_DEFAULT ? room : COMPLETION_TOKENS_DEFAULT;
    else if (max < 0) max = room;
    else if (max == 0) max = 1;
    if (r->sampling.min_tokens > max)
        return srv_fault_bad(fault, "min_tokens",
                             "'min_tokens' is %d, but the prompt leaves room for %d tokens.",
                             (int)r->sampling.min_tokens, (int)max);
    r->sampling.max_tokens = max;
    return true;
}
