/*
 * api.h - the OpenAI API between the transport and the engine: one context, its routes, and its
 * life.
 *
 *     conn -> route (api_completions.c, api_chat.c) -> intake.c (parse, render)
 *          -> generate.c (tokenise, submit) -> engine
 *     engine events -> generate.c (collect) -> gen_write.c (text, chunks) -> conn
 *
 * Everything runs on the loop thread but srv_api_wake, which the engine thread calls, and what
 * takes long: large bodies (intake.h) and long prompts (encode.h) go through libuv's pool.
 *
 * Order of calls
 *     srv_api_open -> srv_http_open (srv_api_routes, user = api, admit = srv_api_admit) -> eng_open
 * (wake = srv_api_wake) -> srv_api_attach -> srv_http_listen -> uv_run end: srv_api_drain,
 * srv_http_drain; once drained, or at the end of patience (srv_api_abort): srv_http_close,
 * eng_stop, srv_api_stop -> uv_run returns when the last sequence has ended -> eng_close, then
 * srv_api_close (the engine thread may wake the API until it has been joined), then uv_loop_close.
 */
#ifndef DAKD_SERVER_API_H
#define DAKD_SERVER_API_H

#include <uv.h>

#include "engine/chat_template.h"
#include "engine/engine.h"
#include "engine/tokenizer.h"
#include "server/http.h"
#include "server/metrics.h"

struct srv_api_config {
    const char *const *model_names; /* borrowed; the first is the default */
    int model_name_count;           /* >= 1 */
    const char *api_key;            /* borrowed; NULL or "": none is asked for */
    int32_t sequences_max;     /* prompts x n of one request, 1..; at most eng_config.queue_max */
    uint64_t memory_bytes_max; /* of all requests' prompts, tokens and log-probabilities */
    size_t write_buffer_max;   /* srv_http_config.write_buffer_max: no chunk may be larger */
    uint64_t keep_alive_ms;    /* a silent stream gets a comment this often; 0: never */
    uint64_t stall_ms;         /* an engine without progress for so long is not healthy; 0: never */
};

/* The values that do not depend on the machine; the names are the caller's. */
struct srv_api_config srv_api_config_default(void);

struct srv_api;

/* tok and chat are borrowed and may be NULL: without a tokenizer prompts are token ids and answers
 * too; without a template there is no chat.  ST_NOMEM, ST_IO. */
MUST_USE enum status srv_api_open(uv_loop_t *loop, const struct srv_api_config *config,
                                  const struct eng_tok *tok, const struct eng_chat_template *chat,
                                  struct srv_api **out, char *err);
/* Borrowed, static. */
const struct srv_route *srv_api_routes(size_t *count);
/* srv_http_config.admit: refuses requests without the API key. */
void srv_api_admit(struct srv_exchange *x, void *api);
/* eng_config.wake.  Any thread. */
void srv_api_wake(void *api);
/* The engine is ready: from now on requests are served.  info: of the model, copied. */
void srv_api_attach(struct srv_api *api, struct eng_engine *engine,
                    const struct eng_model_info *info, const struct srv_http *http);
/* What /metrics says of the memory tiers; tiers are borrowed.  Optional. */
void srv_api_set_tiers(struct srv_api *api, const struct srv_tier *tiers, int tier_count,
                       uint64_t kv_page_bytes);
/* New requests are refused with 503 and /readyz says so; those under way go on. */
void srv_api_drain(struct srv_api *api);
/* Requests under way (answers being made). */
int srv_api_active(const struct srv_api *api);
/* Ends every request under way with an error its client can read, and cancels its sequences. */
void srv_api_abort(struct srv_api *api);
/* Lets the loop end: no exchange may be open any more (srv_http_close).  Call after eng_stop; the
 * wake-up handle stays until the last sequence's end has been polled, and closes by itself then. */
void srv_api_stop(struct srv_api *api);
/* After uv_run returned. */
void srv_api_close(struct srv_api *api);
/* Whether the engine serves and makes progress; else why[ERR_CAP] says what is wrong.  (For a
 * watchdog.) */
bool srv_api_healthy(struct srv_api *api, char *why);

#endif
