/* api_int.h - what the files of the API layer share.  Loop thread. */
#ifndef DAKD_SERVER_API_INT_H
#define DAKD_SERVER_API_INT_H

#include "server/api.h"
#include "server/api_format.h"
#include "server/api_parse.h"
#include "server/intake.h"

struct srv_job;

struct srv_api {
    uv_loop_t *loop; /* borrowed */
    struct srv_api_config config;
    const struct eng_tok *tok;            /* borrowed, or NULL */
    const struct eng_chat_template *chat; /* borrowed, or NULL */
    struct eng_engine *engine;            /* borrowed; NULL until attached */
    const struct srv_http *http;          /* borrowed; NULL until attached */
    struct srv_parse_limits limits;
    struct srv_vocab vocab[2]; /* [skip_special] */
    char fingerprint[64];
    int64_t started_unix_s;
    const struct srv_tier *tiers; /* borrowed; for /metrics */
    int tier_count;
    uint64_t kv_page_bytes;
    uv_async_t wake;
    uv_timer_t timer;
    int open_handles;
    bool draining, stopping;
    struct srv_metrics metrics;
    struct srv_lane lanes[SRV_LANES]; /* of large bodies: intake.c */
    struct srv_job *jobs;             /* all of them, linked by next and prev */
    struct srv_job *dirty;            /* those with news since the last pump */
    int job_count;
    int live_sequences;    /* submitted and their FINISHED not yet polled */
    uint64_t memory_bytes; /* promised to requests, against config.memory_bytes_max */
};

/* Sends a fault as the whole response; x is gone. */
void srv_api_fault(struct srv_exchange *x, const struct srv_fault *fault);
/* Refuses where the server is starting, draining or broken; true: go on. */
bool srv_api_ready(struct srv_api *api, struct srv_exchange *x);
/* Promises a request `bytes` of memory in place of the *held it had.  False where there is not as
 * much at the moment (503), or never could be (400: `param` is to blame, `advice` what to do). */
bool srv_api_promise(struct srv_api *api, uint64_t *held, uint64_t bytes, const char *param,
                     const char *advice, struct srv_fault *fault);
/* Renders messages, where there are any, to a prompt (owned by the caller, free()).  Any thread. */
bool srv_api_render(const struct srv_api *api, const struct srv_ask *r, char **text, size_t *len,
                    struct srv_fault *fault);
/* Closes the handles once nothing can come any more (srv_api_stop). */
void srv_api_settle(struct srv_api *api);

/* Route handlers; user is the api. */
void srv_api_completions(struct srv_exchange *x, void *user);
void srv_api_chat(struct srv_exchange *x, void *user);
void srv_api_tokenize(struct srv_exchange *x, void *user);
void srv_api_detokenize(struct srv_exchange *x, void *user);
void srv_api_models(struct srv_exchange *x, void *user);
void srv_api_model(struct srv_exchange *x, void *user);
void srv_api_health(struct srv_exchange *x, void *user);
void srv_api_livez(struct srv_exchange *x, void *user);
void srv_api_readyz(struct srv_exchange *x, void *user);
void srv_api_version(struct srv_exchange *x, void *user);
void srv_api_metrics(struct srv_exchange *x, void *user);

#endif
