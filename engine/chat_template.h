/*
 * chat_template.h - a model's chat template: found in its directory, rendered for a conversation.
 *
 * Where it is looked for, first found wins: the --chat-template file; chat_template.jinja;
 * "chat_template" of tokenizer_config.json (a string, or a list of {name, template}, of which
 * "default" is taken, and "tool_use" when the request has tools); chat_template.json.
 *
 * What the template sees: messages, tools and documents (none where absent), add_generation_prompt,
 * the special tokens of tokenizer_config.json and special_tokens_map.json by their names
 * (bos_token, eos_token, pad_token, unk_token, ...), and the request's chat_template_kwargs.
 */
#ifndef DAKD_ENGINE_CHAT_TEMPLATE_H
#define DAKD_ENGINE_CHAT_TEMPLATE_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>

#include "config/buf.h"
#include "config/status.h"
#include "engine/jinja.h"

struct eng_chat_template;

/* Compiles the model's template.  override_path is NULL or a file.  ST_NOT_FOUND, with *out NULL,
 * where the model has none (or override_path does not exist); otherwise errors name the file:
 * ST_IO, ST_INVALID, ST_UNSUPPORTED, ST_LIMIT, ST_NOMEM.  *out is immutable and may be used by
 * several threads at once. */
MUST_USE enum status eng_chat_template_open(const char *model_dir, const char *override_path,
                                            struct eng_chat_template **out, char *err);
void eng_chat_template_close(struct eng_chat_template *t);

/* Appends the prompt to *out, which keeps its old contents alone on failure.
 *
 * messages: an array of objects.  A tool call's function.arguments may be a JSON text: the template
 * then gets the parsed value, and {} for an empty text or none, as vLLM has it.  A message's
 * reasoning_content, thinking or reasoning is given to it as the first two, as transformers has it.
 * tools, documents: arrays or NULL.  continue_final_message: the prompt ends with the text of the
 * last message, unfinished; not together with add_generation_prompt.  extra: chat_template_kwargs,
 * more variables, or NULL; one that would take the place of a variable above is refused.
 *
 * ST_INVALID: the request's fault, raise_exception of the template included, whose message err then
 * is.  Others as eng_jinja_render.  The inputs are not changed.  Any thread. */
MUST_USE enum status eng_chat_template_render(const struct eng_chat_template *t,
                                              const cJSON *messages, const cJSON *tools,
                                              const cJSON *documents, bool add_generation_prompt,
                                              bool continue_final_message, const cJSON *extra,
                                              int64_t now_unix_s, struct buf *out, char *err);

#endif
