/* Request bodies: every malformed one is refused with its status and the name of the field; valid
 * ones give the values. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "config/check.h"
#include "server/api_parse.h"

static const char *const names[] = {"demo", "alias"};
static const struct srv_parse_limits limits = {.vocab = 1000,
                                               .context_tokens = 256,
                                               .sequences_max = 8,
                                               .model_names = names,
                                               .model_name_count = 2,
                                               .temperature = 0.6f,
                                               .top_p = 0.9f,
                                               .min_p = 0,
                                               .repetition_penalty = 1.1f,
                                               .top_k = 20};

#define COMP SRV_COMPLETIONS
#define CHAT SRV_CHAT
#define TOK SRV_TOKENIZE
#define DETOK SRV_DETOKENIZE

struct bad_case {
    enum srv_endpoint endpoint;
    const char *text; /* a member put after a valid prompt; or the whole body where param of the
                         case says so */
    const char *param;
    int status; /* 0: 400 */
};

/* Whole bodies. */
static const struct bad_case bodies[] = {
    {COMP, "", "", 0},
    {COMP, " ", "", 0},
    {COMP, "{", "", 0},
    {COMP, "{}x", "", 0},
    {COMP, "[]", "", 0},
    {COMP, "null", "", 0},
    {COMP, "1", "", 0},
    {COMP, "\"prompt\"", "", 0},
    {COMP, "{\"prompt\":}", "", 0},
    {COMP, "{'prompt':1}", "", 0},
    {COMP, "{\"prompt\":\"a\",}", "", 0},
    {COMP, "{\"prompt\":\"a\",\"prompt\":\"b\"}", "", 0},
    {COMP, "{\"prompt\":\"\\ud800\"}", "", 0},
    {COMP, "{\"prompt\":\"\\u0000\"}", "", 0},
    {COMP, "{\"prompt\":\"\xff\"}", "", 0},
    {COMP, "{\"prompt\":1e999}", "", 0},
    {COMP, "{\"prompt\":NaN}", "", 0},
    {COMP, "{}", "prompt", 0},
    {COMP, "{\"prompt\":null}", "prompt", 0},
    {COMP, "{\"messages\":[]}", "messages", 0},
    {COMP, "{\"prompt\":1}", "prompt", 0},
    {COMP, "{\"prompt\":true}", "prompt", 0},
    {COMP, "{\"prompt\":{}}", "prompt", 0},
    {COMP, "{\"prompt\":[]}", "prompt", 0},
    {COMP, "{\"prompt\":[[]]}", "prompt", 0},
    {COMP, "{\"prompt\":[null]}", "prompt", 0},
    {COMP, "{\"prompt\":[true]}", "prompt", 0},
    {COMP, "{\"prompt\":[{}]}", "prompt", 0},
    {COMP, "{\"prompt\":[\"a\",1]}", "prompt", 0},
    {COMP, "{\"prompt\":[1,\"a\"]}", "prompt", 0},
    {COMP, "{\"prompt\":[\"a\",[1]]}", "prompt", 0},
    {COMP, "{\"prompt\":[[1],\"a\"]}", "prompt", 0},
    {COMP, "{\"prompt\":[[1],[]]}", "prompt", 0},
    {COMP, "{\"prompt\":[[1],2]}", "prompt", 0},
    {COMP, "{\"prompt\":[[[1]]]}", "prompt", 0},
    {COMP, "{\"prompt\":[1.5]}", "prompt", 0},
    {COMP, "{\"prompt\":[-1]}", "prompt", 0},
    {COMP, "{\"prompt\":[1000]}", "prompt", 0},
    {COMP, "{\"prompt\":[1e18]}", "prompt", 0},
    {COMP, "{\"prompt\":[\"\",\"\",\"\",\"\",\"\",\"\",\"\",\"\",\"\"]}", "prompt", 0},
    {COMP, "{\"prompt\":[\"a\",\"b\",\"c\",\"d\",\"e\"],\"n\":2}", "n", 0},
    {CHAT, "{}", "messages", 0},
    {CHAT, "{\"prompt\":\"a\"}", "prompt", 0},
    {CHAT, "{\"messages\":null}", "messages", 0},
    {CHAT, "{\"messages\":[]}", "messages", 0},
    {CHAT, "{\"messages\":\"hi\"}", "messages", 0},
    {CHAT, "{\"messages\":{}}", "messages", 0},
    {CHAT, "{\"messages\":[1]}", "messages[0]", 0},
    {CHAT, "{\"messages\":[null]}", "messages[0]", 0},
    {CHAT, "{\"messages\":[{}]}", "messages[0].role", 0},
    {CHAT, "{\"messages\":[{\"role\":1,\"content\":\"a\"}]}", "messages[0].role", 0},
    {CHAT, "{\"messages\":[{\"role\":null,\"content\":\"a\"}]}", "messages[0].role", 0},
    {CHAT, "{\"messages\":[{\"role\":\"\",\"content\":\"a\"}]}", "messages[0].role", 0},
    {CHAT, "{\"messages\":[{\"role\":\"User\",\"content\":\"a\"}]}", "messages[0].role", 0},
    {CHAT, "{\"messages\":[{\"role\":\"robot\",\"content\":\"a\"}]}", "messages[0].role", 0},
    {CHAT, "{\"messages\":[{\"role\":\"user\"}]}", "messages[0].content", 0},
    {CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":null}]}", "messages[0].content", 0},
    {CHAT, "{\"messages\":[{\"role\":\"system\",\"content\":null}]}", "messages[0].content", 0},
    {CHAT, "{\"messages\":[{\"role\":\"assistant\",\"content\":null}]}", "messages[0].content", 0},
    {CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":1}]}", "messages[0].content", 0},
    {CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":{}}]}", "messages[0].content", 0},
    {CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[]}]}", "messages[0].content", 0},
    {CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[\"a\"]}]}", "messages[0].content[0]", 0},
    {CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[{}]}]}", "messages[0].content[0].type",
     0},
    {CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":1}]}]}",
     "messages[0].content[0].type", 0},
    {CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]}",
     "messages[0].content[0].text", 0},
    {CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":1}]}]}",
     "messages[0].content[0].text", 0},
    {CHAT,
     "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\",\"z\":1}]}]"
     "}",
     "messages[0].content[0].z", 0},
    {CHAT,
     "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},"
     "{\"type\":\"image_url\",\"image_url\":{\"url\":\"u\"}}]}]}",
     "messages[0].content[1].type", 0},
    {CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"input_audio\"}]}]}",
     "messages[0].content[0].type", 0},
    {CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"file\"}]}]}",
     "messages[0].content[0].type", 0},
    {CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"wish\"}]}]}",
     "messages[0].content[0].type", 0},
    {CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\",\"mood\":1}]}", "messages[0].mood",
     0},
    {CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\",\"name\":1}]}", "messages[0].name",
     0},
    {CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"x\"}]}",
     "messages[1].role", 0},
    {CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\",\"tool_calls\":[]}]}",
     "messages[0].tool_calls", 0},
    {CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\",\"tool_call_id\":\"i\"}]}",
     "messages[0].tool_call_id", 0},
    {CHAT, "{\"messages\":[{\"role\":\"assistant\",\"content\":\"a\",\"audio\":{\"id\":\"i\"}}]}",
     "messages[0].audio", 0},
    {CHAT, "{\"messages\":[{\"role\":\"assistant\",\"content\":\"a\",\"refusal\":\"no\"}]}",
     "messages[0].refusal", 0},
    {CHAT,
     "{\"messages\":[{\"role\":\"assistant\",\"content\":\"a\",\"function_call\":{\"name\":\"f\"}}]"
     "}",
     "messages[0].function_call", 0},
    {CHAT, "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[]}]}", "messages[0].tool_calls",
     0},
    {CHAT, "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":{}}]}", "messages[0].tool_calls",
     0},
    {CHAT, "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[1]}]}",
     "messages[0].tool_calls[0]", 0},
    {CHAT, "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{}]}]}",
     "messages[0].tool_calls[0].function", 0},
    {CHAT, "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"type\":\"x\"}]}]}",
     "messages[0].tool_calls[0].type", 0},
    {CHAT, "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"id\":1}]}]}",
     "messages[0].tool_calls[0].id", 0},
    {CHAT, "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{}}]}]}",
     "messages[0].tool_calls[0].function.name", 0},
    {CHAT,
     "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\"}}]}]}",
     "messages[0].tool_calls[0].function.arguments", 0},
    {CHAT,
     "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\","
     "\"arguments\":\"{\"}}]}]}",
     "messages[0].tool_calls[0].function.arguments", 0},
    {CHAT,
     "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\","
     "\"arguments\":\"[]\"}}]}]}",
     "messages[0].tool_calls[0].function.arguments", 0},
    {TOK, "{}", "prompt", 0},
    {TOK, "{\"prompt\":[1]}", "prompt", 0},
    {TOK, "{\"prompt\":[\"a\"]}", "prompt", 0},
    {TOK, "{\"prompt\":\"a\",\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}", "messages", 0},
    {TOK, "{\"prompt\":\"a\",\"max_tokens\":1}", "max_tokens", 0},
    {TOK, "{\"prompt\":\"a\",\"return_token_strs\":1}", "return_token_strs", 0},
    {TOK, "{\"prompt\":\"a\",\"model\":\"x\"}", "model", 404},
    {DETOK, "{}", "tokens", 0},
    {DETOK, "{\"tokens\":1}", "tokens", 0},
    {DETOK, "{\"tokens\":\"a\"}", "tokens", 0},
    {DETOK, "{\"tokens\":[\"a\"]}", "tokens", 0},
    {DETOK, "{\"tokens\":[-1]}", "tokens", 0},
    {DETOK, "{\"tokens\":[1000]}", "tokens", 0},
    {DETOK, "{\"tokens\":[1],\"prompt\":\"a\"}", "prompt", 0},
};

/* Members of completions and chat alike ("<field>": <value>). */
static const struct bad_case members[] = {
    {0, "\"model\":\"gpt-4\"", "model", 404},
    {0, "\"model\":\"\"", "model", 0},
    {0, "\"model\":1", "model", 0},
    {0, "\"nonsense\":1", "nonsense", 0},
    {0, "\"Temperature\":1", "Temperature", 0},
    {0, "\"nonsense\":null", "nonsense", 0},
    {0, "\"temperature\":\"1\"", "temperature", 0},
    {0, "\"temperature\":-0.1", "temperature", 0},
    {0, "\"temperature\":2.1", "temperature", 0},
    {0, "\"temperature\":true", "temperature", 0},
    {0, "\"temperature\":[1]", "temperature", 0},
    {0, "\"top_p\":0", "top_p", 0},
    {0, "\"top_p\":1e-60", "top_p", 0},
    {0, "\"top_p\":1.01", "top_p", 0},
    {0, "\"top_p\":-1", "top_p", 0},
    {0, "\"top_p\":\"x\"", "top_p", 0},
    {0, "\"min_p\":-0.5", "min_p", 0},
    {0, "\"min_p\":1.5", "min_p", 0},
    {0, "\"top_k\":-2", "top_k", 0},
    {0, "\"top_k\":1.5", "top_k", 0},
    {0, "\"top_k\":\"5\"", "top_k", 0},
    {0, "\"presence_penalty\":2.5", "presence_penalty", 0},
    {0, "\"presence_penalty\":-2.5", "presence_penalty", 0},
    {0, "\"frequency_penalty\":3", "frequency_penalty", 0},
    {0, "\"frequency_penalty\":\"0\"", "frequency_penalty", 0},
    {0, "\"repetition_penalty\":0", "repetition_penalty", 0},
    {0, "\"repetition_penalty\":-1", "repetition_penalty", 0},
    {0, "\"repetition_penalty\":101", "repetition_penalty", 0},
    {0, "\"logit_bias\":[]", "logit_bias", 0},
    {0, "\"logit_bias\":1", "logit_bias", 0},
    {0, "\"logit_bias\":{\"x\":1}", "logit_bias", 0},
    {0, "\"logit_bias\":{\"\":1}", "logit_bias", 0},
    {0, "\"logit_bias\":{\"-1\":1}", "logit_bias", 0},
    {0, "\"logit_bias\":{\"01\":1}", "logit_bias", 0},
    {0, "\"logit_bias\":{\"1.0\":1}", "logit_bias", 0},
    {0, "\"logit_bias\":{\"1000\":1}", "logit_bias", 0},
    {0, "\"logit_bias\":{\"99999999999999999999\":1}", "logit_bias", 0},
    {0, "\"logit_bias\":{\"1\":101}", "logit_bias", 0},
    {0, "\"logit_bias\":{\"1\":-101}", "logit_bias", 0},
    {0, "\"logit_bias\":{\"1\":\"5\"}", "logit_bias", 0},
    {0, "\"logit_bias\":{\"1\":null}", "logit_bias", 0},
    {0, "\"seed\":1.5", "seed", 0},
    {0, "\"seed\":\"1\"", "seed", 0},
    {0, "\"seed\":1e300", "seed", 0},
    {0, "\"n\":0", "n", 0},
    {0, "\"n\":-1", "n", 0},
    {0, "\"n\":1.5", "n", 0},
    {0, "\"n\":9", "n", 0},
    {0, "\"n\":\"2\"", "n", 0},
    {0, "\"max_tokens\":-1", "max_tokens", 0},
    {0, "\"max_tokens\":0", "max_tokens", 0},
    {0, "\"max_tokens\":1.5", "max_tokens", 0},
    {0, "\"max_tokens\":\"5\"", "max_tokens", 0},
    {0, "\"max_tokens\":3000000000", "max_tokens", 0},
    {0, "\"min_tokens\":-1", "min_tokens", 0},
    {0, "\"min_tokens\":11,\"max_tokens\":10", "min_tokens", 0},
    {0, "\"min_tokens\":\"1\"", "min_tokens", 0},
    {0, "\"ignore_eos\":1", "ignore_eos", 0},
    {0, "\"ignore_eos\":\"true\"", "ignore_eos", 0},
    {0, "\"stop\":\"\"", "stop", 0},
    {0, "\"stop\":1", "stop", 0},
    {0, "\"stop\":{}", "stop", 0},
    {0, "\"stop\":[\"\"]", "stop", 0},
    {0, "\"stop\":[1]", "stop", 0},
    {0, "\"stop\":[null]", "stop", 0},
    {0, "\"stop\":[\"a\",[\"b\"]]", "stop", 0},
    {0,
     "\"stop\":[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\",\"a\",\"b\",\"c\",\"d\","
     "\"e\",\"f\","
     "\"g\",\"h\"]",
     "stop", 0},
    {0, "\"stop_token_ids\":1", "stop_token_ids", 0},
    {0, "\"stop_token_ids\":[1000]", "stop_token_ids", 0},
    {0, "\"stop_token_ids\":[-1]", "stop_token_ids", 0},
    {0, "\"stop_token_ids\":[\"1\"]", "stop_token_ids", 0},
    {0, "\"stop_token_ids\":[0.5]", "stop_token_ids", 0},
    {0, "\"include_stop_str_in_output\":1", "include_stop_str_in_output", 0},
    {0, "\"skip_special_tokens\":\"no\"", "skip_special_tokens", 0},
    {0, "\"add_special_tokens\":0", "add_special_tokens", 0},
    {0, "\"return_token_ids\":1", "return_token_ids", 0},
    {0, "\"stream\":1", "stream", 0},
    {0, "\"stream\":\"true\"", "stream", 0},
    {0, "\"stream_options\":{}", "stream_options", 0},
    {0, "\"stream_options\":{\"include_usage\":true}", "stream_options", 0},
    {0, "\"stream\":true,\"stream_options\":1", "stream_options", 0},
    {0, "\"stream\":true,\"stream_options\":[]", "stream_options", 0},
    {0, "\"stream\":true,\"stream_options\":{\"include_usage\":1}", "stream_options.include_usage",
     0},
    {0, "\"stream\":true,\"stream_options\":{\"continuous_usage_stats\":\"\"}",
     "stream_options.continuous_usage_stats", 0},
    {0, "\"stream\":true,\"stream_options\":{\"x\":1}", "stream_options.x", 0},
    {0, "\"stream\":true,\"stream_options\":{\"include_obfuscation\":true}",
     "stream_options.include_obfuscation", 0},
    {0, "\"response_format\":1", "response_format", 0},
    {0, "\"response_format\":{}", "response_format.type", 0},
    {0, "\"response_format\":{\"type\":1}", "response_format.type", 0},
    {0, "\"response_format\":{\"type\":\"xml\"}", "response_format.type", 0},
    {0, "\"response_format\":{\"type\":\"json_object\"}", "response_format", 0},
    {0, "\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{}}", "response_format", 0},
    {0, "\"response_format\":{\"type\":\"text\",\"x\":1}", "response_format", 0},
    {0, "\"user\":1", "user", 0},
    {0, "\"user\":[]", "user", 0},
    {0, "\"length_penalty\":1.2", "length_penalty", 0},
    {0, "\"length_penalty\":\"1\"", "length_penalty", 0},
    {0, "\"priority\":5", "priority", 0},
    {0, "\"use_beam_search\":true", "use_beam_search", 0},
    {0, "\"prompt_logprobs\":1", "prompt_logprobs", 0},
    {0, "\"prompt_logprobs\":0", "prompt_logprobs", 0},
    {0, "\"truncate_prompt_tokens\":5", "truncate_prompt_tokens", 0},
    {0, "\"allowed_token_ids\":[1]", "allowed_token_ids", 0},
    {0, "\"bad_words\":[\"a\"]", "bad_words", 0},
    {0, "\"guided_json\":{\"a\":1}", "guided_json", 0},
    {0, "\"guided_regex\":\"a\"", "guided_regex", 0},
    {0, "\"guided_choice\":[\"a\"]", "guided_choice", 0},
    {0, "\"guided_grammar\":\"a\"", "guided_grammar", 0},
    {0, "\"structured_outputs\":{\"a\":1}", "structured_outputs", 0},
    {0, "\"logits_processors\":[\"a\"]", "logits_processors", 0},
    {0, "\"cache_salt\":\"\"", "cache_salt", 0},
    {0, "\"cache_salt\":1", "cache_salt", 0},
    {0, "\"cache_salt\":[\"a\"]", "cache_salt", 0},
    {0, "\"cache_salt\":false", "cache_salt", 0},
    {COMP, "\"echo\":1", "echo", 0},
    {COMP, "\"echo\":\"yes\"", "echo", 0},
    {COMP, "\"logprobs\":true", "logprobs", 0},
    {COMP, "\"logprobs\":-1", "logprobs", 0},
    {COMP, "\"logprobs\":21", "logprobs", 0},
    {COMP, "\"logprobs\":0.5", "logprobs", 0},
    {COMP, "\"top_logprobs\":1", "top_logprobs", 0},
    {COMP, "\"best_of\":2", "best_of", 0},
    {COMP, "\"best_of\":0", "best_of", 0},
    {COMP, "\"best_of\":3,\"n\":2", "best_of", 0},
    {COMP, "\"suffix\":\"a\"", "suffix", 0},
    {COMP, "\"suffix\":\"\"", "suffix", 0},
    {COMP, "\"min_tokens\":17", "min_tokens", 0},
    {COMP, "\"tools\":[]", "tools", 0},
    {COMP, "\"max_completion_tokens\":5", "max_completion_tokens", 0},
    {CHAT, "\"logprobs\":1", "logprobs", 0},
    {CHAT, "\"logprobs\":\"true\"", "logprobs", 0},
    {CHAT, "\"top_logprobs\":1", "top_logprobs", 0},
    {CHAT, "\"logprobs\":false,\"top_logprobs\":1", "top_logprobs", 0},
    {CHAT, "\"logprobs\":true,\"top_logprobs\":21", "top_logprobs", 0},
    {CHAT, "\"logprobs\":true,\"top_logprobs\":-1", "top_logprobs", 0},
    {CHAT, "\"logprobs\":true,\"top_logprobs\":true", "top_logprobs", 0},
    {CHAT, "\"max_completion_tokens\":0", "max_completion_tokens", 0},
    {CHAT, "\"max_completion_tokens\":\"1\"", "max_completion_tokens", 0},
    {CHAT, "\"max_completion_tokens\":1,\"max_tokens\":2", "max_tokens", 0},
    {CHAT, "\"min_tokens\":3,\"max_completion_tokens\":2", "min_tokens", 0},
    {CHAT, "\"best_of\":1", "best_of", 0},
    {CHAT, "\"echo\":true", "echo", 0},
    {CHAT, "\"suffix\":\"a\"", "suffix", 0},
    {CHAT, "\"tools\":1", "tools", 0},
    {CHAT, "\"tools\":{}", "tools", 0},
    {CHAT, "\"tools\":[1]", "tools[0]", 0},
    {CHAT, "\"tools\":[{}]", "tools[0].type", 0},
    {CHAT, "\"tools\":[{\"type\":\"x\"}]", "tools[0].type", 0},
    {CHAT, "\"tools\":[{\"type\":\"function\"}]", "tools[0].function", 0},
    {CHAT, "\"tools\":[{\"type\":\"function\",\"function\":{}}]", "tools[0].function.name", 0},
    {CHAT, "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"\"}}]",
     "tools[0].function.name", 0},
    {CHAT, "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"description\":1}}]",
     "tools[0].function.description", 0},
    {CHAT, "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":1}}]",
     "tools[0].function.parameters", 0},
    {CHAT, "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"strict\":true}}]",
     "tools[0].function.strict", 0},
    {CHAT, "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"z\":1}}]",
     "tools[0].function.z", 0},
    {CHAT, "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"},\"z\":1}]",
     "tools[0].z", 0},
    {CHAT, "\"tool_choice\":\"required\"", "tool_choice", 0},
    {CHAT, "\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"f\"}}", "tool_choice",
     0},
    {CHAT, "\"tool_choice\":\"maybe\"", "tool_choice", 0},
    {CHAT, "\"tool_choice\":1", "tool_choice", 0},
    {CHAT, "\"chat_template_kwargs\":[]", "chat_template_kwargs", 0},
    {CHAT, "\"chat_template_kwargs\":\"x\"", "chat_template_kwargs", 0},
    {CHAT, "\"chat_template\":\"x\"", "chat_template", 0},
    {CHAT, "\"add_generation_prompt\":1", "add_generation_prompt", 0},
    {CHAT, "\"continue_final_message\":\"x\"", "continue_final_message", 0},
    {CHAT, "\"continue_final_message\":true", "continue_final_message", 0},
    {CHAT, "\"modalities\":[\"text\",\"audio\"]", "modalities", 0},
    {CHAT, "\"modalities\":[]", "modalities", 0},
    {CHAT, "\"modalities\":\"text\"", "modalities", 0},
    {CHAT, "\"metadata\":1", "metadata", 0},
    {CHAT, "\"metadata\":{\"a\":1}", "metadata", 0},
    {CHAT, "\"parallel_tool_calls\":1", "parallel_tool_calls", 0},
    {CHAT, "\"service_tier\":\"flex\"", "service_tier", 0},
    {CHAT, "\"service_tier\":1", "service_tier", 0},
    {CHAT, "\"store\":true", "store", 0},
    {CHAT, "\"audio\":{\"voice\":\"a\"}", "audio", 0},
    {CHAT, "\"prediction\":{\"type\":\"content\"}", "prediction", 0},
    {CHAT, "\"reasoning_effort\":\"high\"", "reasoning_effort", 0},
    {CHAT, "\"verbosity\":\"low\"", "verbosity", 0},
    {CHAT, "\"web_search_options\":{\"a\":1}", "web_search_options", 0},
    {CHAT, "\"functions\":[{\"name\":\"f\"}]", "functions", 0},
    {CHAT, "\"function_call\":\"auto\"", "function_call", 0},
    {CHAT, "\"documents\":[{}]", "documents", 0},
};

static void expect_fault(enum srv_endpoint endpoint, const char *body, const char *param,
                         int status)
{
    struct srv_ask r;
    struct srv_fault f = {0};
    if (srv_ask_parse(&r, endpoint, body, strlen(body), &limits, &f)) {
        srv_ask_deinit(&r);
        fail_msg("accepted: %s", body);
    }
    int wanted = status ? status : 400;
    if (f.status != wanted || strcmp(f.param, param))
        fail_msg("%s\ngave %d '%s' (%s); wanted %d '%s'", body, f.status, f.param, f.message,
                 wanted, param);
    assert_string_equal(f.type, wanted == 404 ? "not_found_error" : "invalid_request_error");
    /* A person who reads the sentence alone learns which field it is. */
    const char *last = strrchr(param, '.');
    if (!strstr(f.message, last ? last + 1 : param))
        fail_msg("the message does not name '%s': %s", param, f.message);
}

static const char *body_with(enum srv_endpoint endpoint, const char *member, char *out, size_t cap)
{
    const char *start = endpoint == SRV_CHAT
                            ? "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"
                            : "{\"prompt\":\"hi\"";
    snprintf(out, cap, "%s%s%s}", start, *member ? "," : "", member);
    return out;
}

static void test_malformed(void **state)
{
    (void)state;
    size_t count = ARRAY_COUNT(bodies);
    char body[2048];
    for (size_t i = 0; i < ARRAY_COUNT(bodies); i++)
        expect_fault(bodies[i].endpoint, bodies[i].text, bodies[i].param, bodies[i].status);
    for (size_t i = 0; i < ARRAY_COUNT(members); i++) {
        const struct bad_case *c = &members[i];
        static const enum srv_endpoint both[] = {SRV_COMPLETIONS, SRV_CHAT};
        for (int k = 0; k < 2; k++) {
            if (c->endpoint && c->endpoint != both[k]) continue;
            expect_fault(both[k], body_with(both[k], c->text, body, sizeof body), c->param,
                         c->status);
            count++;
        }
    }
    print_message("%zu malformed bodies\n", count);
    assert_true(count >= 200);
}

static void parse(struct srv_ask *r, enum srv_endpoint endpoint, const char *body)
{
    struct srv_fault f = {0};
    if (!srv_ask_parse(r, endpoint, body, strlen(body), &limits, &f))
        fail_msg("%s\nrefused: %s", body, f.message);
}

static void test_defaults(void **state)
{
    (void)state;
    struct srv_ask r;
    struct srv_fault f;
    parse(&r, COMP, "{\"prompt\":\"hi\"}");
    assert_string_equal(r.model, "demo");
    assert_int_equal(r.prompt_count, 1);
    assert_string_equal(r.prompts[0].text, "hi");
    assert_int_equal(r.prompts[0].len, 2);
    assert_null(r.prompts[0].tokens);
    assert_true(r.sampling.temperature == 0.6f && r.sampling.top_p == 0.9f);
    assert_true(r.sampling.repetition_penalty == 1.1f && r.sampling.top_k == 20);
    assert_int_equal(r.sampling.logprobs, -1);
    assert_int_equal(r.sampling.prompt_logprobs, -1);
    assert_true(r.add_special && r.skip_special);
    assert_false(r.stream || r.echo || r.seed_given || r.include_stop || r.return_token_ids);
    assert_int_equal(r.n, 1);
    assert_true(srv_ask_fit(&r, 10, 256, &f));
    assert_int_equal(r.sampling.max_tokens, 16);
    assert_true(srv_ask_fit(&r, 250, 256, &f));
    assert_int_equal(r.sampling.max_tokens, 6); /* a default is cut to what fits */
    srv_ask_deinit(&r);
    parse(&r, CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}");
    assert_false(r.add_special);
    assert_true(r.add_generation_prompt);
    assert_true(srv_ask_fit(&r, 100, 256, &f));
    assert_int_equal(r.sampling.max_tokens, 156);
    srv_ask_deinit(&r);
}

static void test_everything_given(void **state)
{
    (void)state;
    struct srv_ask r;
    parse(
        &r, COMP,
        "{\"model\":\"alias\",\"prompt\":[[1,2,3],[999]],\"n\":2,\"best_of\":2,\"temperature\":0,"
        "\"top_p\":0.5,\"top_k\":-1,\"min_p\":0.1,\"presence_penalty\":-2,\"frequency_penalty\":2,"
        "\"repetition_penalty\":1.5,\"logit_bias\":{\"0\":-100,\"999\":100},\"seed\":-7,"
        "\"max_tokens\":20,\"min_tokens\":3,\"ignore_eos\":true,\"stop\":[\"a\",\"bc\"],"
        "\"stop_token_ids\":[5,6],\"include_stop_str_in_output\":true,\"echo\":true,\"logprobs\":5,"
        "\"skip_special_tokens\":false,\"add_special_tokens\":false,\"return_token_ids\":true,"
        "\"stream\":true,\"stream_options\":{\"include_usage\":true,\"continuous_usage_stats\":"
        "true},"
        "\"response_format\":{\"type\":\"text\"},\"user\":\"u\",\"suffix\":null,\"length_penalty\":"
        "1,\"cache_salt\":\"tenant\"}");
    assert_string_equal(r.model, "alias");
    assert_int_equal(r.prompt_count, 2);
    assert_int_equal(r.prompts[0].token_count, 3);
    assert_int_equal(r.prompts[1].tokens[0], 999);
    assert_int_equal(r.n, 2);
    const struct eng_sampling *p = &r.sampling;
    assert_true(p->temperature == 0 && p->top_p == 0.5f && p->top_k == 0 && p->min_p == 0.1f);
    assert_true(p->presence_penalty == -2 && p->frequency_penalty == 2);
    assert_int_equal(p->bias_count, 2);
    assert_int_equal(p->bias[1].token, 999);
    assert_true(p->bias[0].bias == -100 && p->bias[1].bias == 100);
    assert_true(r.seed_given);
    assert_int_equal(r.seed, -7);
    assert_int_equal(r.max_tokens, 20);
    assert_int_equal(p->min_tokens, 3);
    assert_true(p->ignore_eos);
    assert_int_equal(r.stops.count, 2);
    assert_int_equal(r.stops.at[1].len, 2);
    assert_int_equal(p->stop_token_count, 2);
    assert_int_equal(p->stop_tokens[1], 6);
    assert_int_equal(p->logprobs, 5);
    assert_int_equal(p->prompt_logprobs, 5);
    assert_true(r.include_stop && r.echo && r.return_token_ids && r.stream);
    assert_true(r.include_usage && r.continuous_usage);
    srv_ask_keep_prompts(&r); /* the salt outlives the body */
    assert_string_equal(r.cache_salt, "tenant");
    assert_int_equal(r.cache_salt_len, 6);
    assert_false(r.skip_special || r.add_special);
    srv_ask_deinit(&r);
}

static void test_accepted(void **state)
{
    (void)state;
    static const struct {
        enum srv_endpoint endpoint;
        const char *member;
    } cases[] = {
        {COMP, "\"temperature\":null,\"stop\":null,\"logprobs\":null,\"n\":null,\"stream\":null"},
        {COMP, "\"stop\":[],\"logit_bias\":{},\"stop_token_ids\":[]"},
        {COMP, "\"n\":8"},
        {COMP, "\"echo\":true,\"max_tokens\":0,\"logprobs\":1"},
        {COMP, "\"temperature\":2,\"top_p\":1,\"min_p\":1,\"top_k\":5000"},
        {COMP, "\"seed\":9007199254740992"},
        {COMP, "\"max_tokens\":5.0"},
        {CHAT, "\"tools\":[]"},
        {CHAT, "\"tools\":null,\"tool_choice\":\"none\""},
        {CHAT,
         "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{}}}],"
         "\"tool_choice\":\"auto\",\"parallel_tool_calls\":true"},
        {CHAT,
         "\"store\":false,\"metadata\":{\"a\":\"b\"},\"service_tier\":\"auto\",\"user\":\"u\""},
        {CHAT, "\"modalities\":[\"text\"],\"audio\":null,\"prediction\":null,\"functions\":[]"},
        {CHAT, "\"logprobs\":true,\"top_logprobs\":0"},
        {CHAT, "\"logprobs\":false,\"top_logprobs\":null"},
        {CHAT, "\"max_tokens\":5,\"max_completion_tokens\":5"},
        {CHAT, "\"chat_template_kwargs\":{\"enable_thinking\":false}"},
        {CHAT, "\"stream\":true,\"stream_options\":{\"include_usage\":null,\"include_obfuscation\":"
               "false}"},
        {CHAT, "\"add_generation_prompt\":false,\"continue_final_message\":true"},
    };
    char body[1024];
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct srv_ask r;
        parse(&r, cases[i].endpoint,
              body_with(cases[i].endpoint, cases[i].member, body, sizeof body));
        srv_ask_deinit(&r);
    }
}

/* The longest salt, and one of a byte more. */
static void test_cache_salt(void **state)
{
    (void)state;
    char member[512], body[1024];
    struct srv_ask r;
    struct srv_fault f;
    snprintf(member, sizeof member, "\"cache_salt\":\"%0*d\"", ENG_CACHE_SALT_MAX, 7);
    parse(&r, CHAT, body_with(CHAT, member, body, sizeof body));
    assert_int_equal(r.cache_salt_len, ENG_CACHE_SALT_MAX);
    srv_ask_deinit(&r);
    snprintf(member, sizeof member, "\"cache_salt\":\"%0*d\"", ENG_CACHE_SALT_MAX + 1, 7);
    body_with(CHAT, member, body, sizeof body);
    assert_false(srv_ask_parse(&r, CHAT, body, strlen(body), &limits, &f));
    assert_int_equal(f.status, 400);
    assert_string_equal(f.message, "'cache_salt' has 129 bytes; at most 128 are accepted.");
}

static void test_messages_are_normalised(void **state)
{
    (void)state;
    struct srv_ask r;
    parse(
        &r, CHAT,
        "{\"messages\":[{\"role\":\"developer\",\"content\":\"be brief\"},"
        "{\"role\":\"user\",\"name\":\"u\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},"
        "{\"type\":\"text\",\"text\":\"\"},{\"type\":\"text\",\"text\":\"b\"}]},"
        "{\"role\":\"assistant\",\"refusal\":null,\"annotations\":[],\"tool_calls\":[{\"id\":\"1\","
        "\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"x\\\": 1}\"}},"
        "{\"function\":{\"name\":\"g\",\"arguments\":\"\"}}]},"
        "{\"role\":\"tool\",\"tool_call_id\":\"1\",\"content\":\"42\"}]}");
    const cJSON *m = r.messages->child;
    assert_string_equal(json_member(m, "role")->valuestring, "system");
    assert_string_equal(json_member(m->next, "content")->valuestring, "a\n\nb");
    const cJSON *assistant = m->next->next;
    assert_true(cJSON_IsNull(cJSON_GetObjectItemCaseSensitive(assistant, "content")));
    const cJSON *call = json_member(assistant, "tool_calls")->child;
    const cJSON *arguments = json_member(json_member(call, "function"), "arguments");
    assert_true(cJSON_IsObject(arguments));
    assert_int_equal(json_member(arguments, "x")->valueint, 1);
    assert_true(cJSON_IsObject(json_member(json_member(call->next, "function"), "arguments")));
    srv_ask_deinit(&r);
}

static void test_tool_choice_none_hides_tools(void **state)
{
    (void)state;
    for (int none = 0; none < 2; none++) {
        char member[256], body[512];
        struct srv_ask r;
        snprintf(member, sizeof member,
                 "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}],"
                 "\"tool_choice\":\"%s\"",
                 none ? "none" : "auto");
        parse(&r, CHAT, body_with(CHAT, member, body, sizeof body));
        assert_int_equal(r.tools == NULL, none);
        srv_ask_deinit(&r);
    }
}

static void test_fit(void **state)
{
    (void)state;
    struct srv_ask r;
    struct srv_fault f;
    parse(&r, COMP, "{\"prompt\":\"x\",\"max_tokens\":56}");
    assert_true(srv_ask_fit(&r, 200, 256, &f));
    assert_int_equal(r.sampling.max_tokens, 56);
    assert_false(srv_ask_fit(&r, 201, 256, &f));
    assert_string_equal(f.code, "context_length_exceeded");
    assert_int_equal(f.prompt_tokens, 201);
    assert_int_equal(f.context_tokens, 256);
    assert_non_null(strstr(f.message, "maximum context length is 256 tokens"));
    assert_false(srv_ask_fit(&r, 256, 256, &f));
    assert_false(srv_ask_fit(&r, INT32_MAX, 256, &f));
    assert_false(srv_ask_fit(&r, 0, 256, &f));
    assert_string_equal(f.param, "prompt");
    srv_ask_deinit(&r);
    parse(&r, COMP, "{\"prompt\":\"x\",\"echo\":true,\"max_tokens\":0}");
    assert_true(srv_ask_score_only(&r));
    assert_true(srv_ask_fit(&r, 255, 256, &f));
    assert_int_equal(r.sampling.max_tokens, 1);
    srv_ask_deinit(&r);
    parse(&r, CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"min_tokens\":10}");
    assert_false(srv_ask_fit(&r, 250, 256, &f));
    assert_string_equal(f.param, "min_tokens");
    srv_ask_deinit(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_malformed),
                                       cmocka_unit_test(test_defaults),
                                       cmocka_unit_test(test_everything_given),
                                       cmocka_unit_test(test_accepted),
                                       cmocka_unit_test(test_cache_salt),
                                       cmocka_unit_test(test_messages_are_normalised),
                                       cmocka_unit_test(test_tool_choice_none_hides_tools),
                                       cmocka_unit_test(test_fit)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
