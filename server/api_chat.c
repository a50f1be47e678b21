/* api_chat.c - POST /v1/chat/completions: the conversation through the model's template, then as a
 * completion. */
#include "config/clock.h"
#include "server/generate.h"

#define PROMPT_BYTES_MAX (64u << 20)

bool srv_api_render(const struct srv_api *api, const struct srv_ask *r, char **text, size_t *len,
                    struct srv_fault *fault)
{
    struct buf out;
    char err[ERR_CAP] = "";
    if (!r->messages) return true;
    if (!api->chat)
        return srv_fault_unsupported(fault, "messages",
                                     "'messages' are not supported: the model has no chat template "
                                     "(--chat-template); use /v1/completions.");
    buf_init(&out, PROMPT_BYTES_MAX);
    enum status st = eng_chat_template_render(api->chat, r->messages, r->tools, NULL,
                                              r->add_generation_prompt, r->continue_final_message,
                                              r->template_kwargs, clock_unix_s(), &out, err);
    if (!st) st = buf_reserve(&out, 0); /* an empty prompt is a text too */
    if (!st) {
        *text = out.data;
        *len = out.len;
        return true;
    }
    buf_deinit(&out);
    if (st == ST_NOMEM)
        return srv_fault_set(fault, 503, "unavailable_error", NULL, "",
                             "The server has no memory left for this request.");
    return srv_fault_bad(fault, "messages", "The chat template refused 'messages': %.400s.", err);
}

void srv_api_chat(struct srv_exchange *x, void *user)
{
    static const struct srv_intake_route route = {SRV_CHAT, srv_api_render, srv_job_start};
    srv_intake_start(user, x, &route);
}
