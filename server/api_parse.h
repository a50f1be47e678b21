/*
 * api_parse.h - from the bytes of a request body to a checked request.
 *
 * One table lists every field the API knows, per endpoint, with its type and range; a field that is
 * not in the table is refused by name, and so is one whose meaning this server cannot keep. Nothing
 * is silently ignored: fields that are read and dropped (`user`, `metadata`, ...) are those that
 * cannot change the answer.
 *
 * Pure: no engine, no tokenizer, no exchange.
 */
#ifndef DAKD_SERVER_API_PARSE_H
#define DAKD_SERVER_API_PARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/json.h"
#include "engine/prefix.h"
#include "engine/sampler.h"
#include "server/fault.h"
#include "server/stop.h"

#define SRV_BIAS_MAX 1024
#define SRV_STOP_TOKENS_MAX 128
#define SRV_TOOLS_MAX 128

enum srv_endpoint {
    SRV_COMPLETIONS = 1,
    SRV_CHAT = 2,
    SRV_TOKENIZE = 4, /* takes a prompt or messages */
    SRV_DETOKENIZE = 8
};

/* What requests are checked against. */
struct srv_parse_limits {
    int32_t vocab;
    int32_t context_tokens;         /* prompt + answer */
    int32_t sequences_max;          /* prompts x n of one request */
    const char *const *model_names; /* borrowed; the first is the default */
    int model_name_count;
    /* Sampling where the request does not say (generation_config.json). */
    float temperature, top_p, min_p, repetition_penalty;
    int32_t top_k;
};

/* One prompt: text, or tokens where tokens != NULL. */
struct srv_prompt {
    const char *text; /* borrowed from the request's tree */
    size_t len;
    int32_t *tokens; /* owned */
    int32_t token_count;
};

struct srv_ask {
    enum srv_endpoint endpoint;
    cJSON *tree;       /* owned; the borrowed fields point into it */
    const char *model; /* the name to answer with, borrowed */

    struct srv_prompt *prompts; /* owned; none where there are messages */
    int32_t prompt_count;
    cJSON *messages;        /* borrowed.  Checked; each content is a string or null */
    cJSON *tools;           /* borrowed, or NULL: none, or tool_choice "none" */
    cJSON *template_kwargs; /* borrowed, or NULL */
    bool add_generation_prompt, continue_final_message;

    struct eng_sampling sampling; /* max_tokens is set later: srv_ask_fit */
    struct eng_logit_bias *bias;  /* owned */
    int32_t *stop_tokens;         /* owned */
    /* Owned, or NULL: KV is shared among requests of the same salt alone. */
    char *cache_salt;
    size_t cache_salt_len;
    struct srv_stop_set stops;
    int32_t max_tokens; /* as asked; -1: not asked */
    int32_t n;
    bool seed_given;
    int64_t seed;
    bool echo;
    bool stream, include_usage, continuous_usage;
    bool include_stop, skip_special, add_special;
    bool return_token_ids, return_token_strings;

    /* As read, before they are put together. */
    int32_t best_of, max_completion_tokens, logprobs_count, top_logprobs;
    bool logprobs, add_special_given;
};

/* Parses and checks body[0..len).  False fills *fault, and *out needs no deinit. */
bool srv_ask_parse(struct srv_ask *out, enum srv_endpoint endpoint, const char *body, size_t len,
                   const struct srv_parse_limits *limits, struct srv_fault *fault);
void srv_ask_deinit(struct srv_ask *r);
/* Frees the tree but for the texts of prompts; messages, tools and template_kwargs are NULL then.
 */
void srv_ask_keep_prompts(struct srv_ask *r);
/* Sets sampling.max_tokens for prompts of which the longest has prompt_tokens; false where they do
 * not fit. */
bool srv_ask_fit(struct srv_ask *r, int32_t prompt_tokens, int32_t context_tokens,
                 struct srv_fault *fault);
/* True for max_tokens 0: the prompt is scored, and the one token the engine must make is dropped.
 */
bool srv_ask_score_only(const struct srv_ask *r);

/* api_messages.c.  Check and normalise in place: text parts are joined by line breaks, "developer"
 * becomes "system", a tool call's arguments become an object. */
bool srv_messages_read(cJSON *messages, struct srv_fault *fault);
bool srv_tools_read(const cJSON *tools, struct srv_fault *fault);
/* Describes a value for a sentence: "a string", "3", ... (cap >= 32). */
const char *srv_json_describe(const cJSON *value, char *text, size_t cap);

#endif
