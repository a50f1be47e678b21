/* api.c - see api.h: the context, its routes, who may come in, and the pump between engine and
 * jobs. */
#include "server/api.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "config/clock.h"
#include "config/version.h"
#include "server/api_int.h"
#include "server/generate.h"

/* Events taken in one go; then the loop gets a turn for its sockets. */
#define EVENTS_PER_TURN 4096
/* How often silent streams are looked at. */
#define TICK_MS_MAX 250
#define TICK_MS_MIN 10

static const struct srv_route routes[] = {
    {"POST", "/v1/chat/completions", srv_api_chat},
    {"POST", "/v1/completions", srv_api_completions},
    {"GET", "/v1/models", srv_api_models},
    {"GET", "/v1/models/*", srv_api_model},
    {"POST", "/tokenize", srv_api_tokenize},
    {"POST", "/detokenize", srv_api_detokenize},
    {"GET", "/health", srv_api_health},
    {"GET", "/livez", srv_api_livez},
    {"GET", "/readyz", srv_api_readyz},
    {"GET", "/metrics", srv_api_metrics},
    {"GET", "/version", srv_api_version},
};

const struct srv_route *srv_api_routes(size_t *count)
{
    *count = ARRAY_COUNT(routes);
    return routes;
}

struct srv_api_config srv_api_config_default(void)
{
    return (struct srv_api_config){.sequences_max = 128,
                                   .memory_bytes_max = 1ull << 30,
                                   .write_buffer_max = srv_http_config_default().write_buffer_max,
                                   .keep_alive_ms = 10000,
                                   .stall_ms = 120000};
}

/* --- tokens as text ---------------------------------------------------------------------- */

static void put_token(const void *user, int32_t token, struct buf *out)
{
    const struct srv_api *api = user;
    if (!api->tok) buf_printf(out, "token_id:%d", (int)token);
    else if (eng_tok_bytes(api->tok, token, out)) {
    } /* an id without a token has no bytes */
}

static bool is_special(const void *user, int32_t token)
{
    const struct srv_api *api = user;
    return api->tok && eng_tok_is_special(api->tok, token);
}

static bool is_never(const void *user, int32_t token)
{
    (void)user;
    (void)token;
    return false;
}

/* --- engine to jobs ---------------------------------------------------------------------- */

static void poll_engine(struct srv_api *api)
{
    struct eng_event event;
    int count = 0;
    if (!api->engine) return;
    while (count < EVENTS_PER_TURN && eng_poll(api->engine, &event)) {
        srv_gen_event(api, &event);
        count++;
    }
    srv_gen_pump_dirty(api);
    if (count == EVENTS_PER_TURN && !uv_is_closing((uv_handle_t *)&api->wake))
        uv_async_send(&api->wake);
    srv_api_settle(api);
}

static void on_wake(uv_async_t *handle)
{
    poll_engine(handle->data);
}

void srv_api_wake(void *user)
{
    struct srv_api *api = user;
    uv_async_send(&api->wake); /* after uv_close it does nothing */
}

static void on_tick(uv_timer_t *timer)
{
    srv_gen_tick(timer->data, clock_now_ns());
}

/* --- life -------------------------------------------------------------------------------- */

static void on_handle_closed(uv_handle_t *handle)
{
    struct srv_api *api = handle->data;
    api->open_handles--;
}

enum status srv_api_open(uv_loop_t *loop, const struct srv_api_config *config,
                         const struct eng_tok *tok, const struct eng_chat_template *chat,
                         struct srv_api **out, char *err)
{
    CHECK(config->model_name_count >= 1 && config->sequences_max >= 1);
    *out = NULL;
    struct srv_api *api = calloc(1, sizeof *api);
    if (!api) return err_set(err, ST_NOMEM, "no memory for the API");
    api->loop = loop;
    api->config = *config;
    api->tok = tok;
    api->chat = chat;
    api->started_unix_s = clock_unix_s();
    api->vocab[0] = (struct srv_vocab){.put = put_token, .hidden = is_never, .user = api};
    api->vocab[1] = (struct srv_vocab){.put = put_token, .hidden = is_special, .user = api};
    snprintf(api->fingerprint, sizeof api->fingerprint, "dakd-%s-%s", version_string(),
             version_commit());
    srv_metrics_init(&api->metrics);
    int rc = uv_async_init(loop, &api->wake, on_wake);
    if (rc) {
        free(api);
        return err_set(err, ST_IO, "the wake-up handle cannot be made: %s", uv_strerror(rc));
    }
    api->wake.data = api;
    api->timer.data = api;
    CHECK(uv_timer_init(loop, &api->timer) == 0); /* cannot fail */
    uint64_t tick = config->keep_alive_ms / 4;
    tick = tick < TICK_MS_MIN ? TICK_MS_MIN : tick > TICK_MS_MAX ? TICK_MS_MAX : tick;
    CHECK(uv_timer_start(&api->timer, on_tick, tick, tick) == 0);
    api->open_handles = 2;
    *out = api;
    return ST_OK;
}

void srv_api_attach(struct srv_api *api, struct eng_engine *engine,
                    const struct eng_model_info *info, const struct srv_http *http)
{
    struct eng_limits limits;
    eng_limits(engine, &limits);
    api->limits = (struct srv_parse_limits){
        .vocab = limits.vocab,
        .context_tokens = limits.model_len_max,
        .sequences_max = api->config.sequences_max,
        .model_names = api->config.model_names,
        .model_name_count = api->config.model_name_count,
        .temperature = isnan(info->temperature) ? 1 : info->temperature,
        .top_p = isnan(info->top_p) ? 1 : info->top_p,
        .min_p = isnan(info->min_p) ? 0 : info->min_p,
        .repetition_penalty = isnan(info->repetition_penalty) ? 1 : info->repetition_penalty,
        .top_k = info->top_k < 0 ? 0 : info->top_k};
    api->http = http;
    api->engine = engine;
    poll_engine(api);
}

void srv_api_set_tiers(struct srv_api *api, const struct srv_tier *tiers, int tier_count,
                       uint64_t kv_page_bytes)
{
    api->tiers = tiers;
    api->tier_count = tier_count;
    api->kv_page_bytes = kv_page_bytes;
}

void srv_api_drain(struct srv_api *api)
{
    api->draining = true;
}

int srv_api_active(const struct srv_api *api)
{
    return api->job_count;
}

void srv_api_abort(struct srv_api *api)
{
    struct srv_fault fault;
    srv_fault_set(&fault, 503, "unavailable_error", "shutting_down", "",
                  "The server is shutting down; the answer is not complete.");
    srv_intake_abort(api, &fault);
    srv_gen_abort(api, &fault);
}

void srv_api_settle(struct srv_api *api)
{
    if (!api->stopping || api->live_sequences > 0) return;
    if (!uv_is_closing((uv_handle_t *)&api->wake))
        uv_close((uv_handle_t *)&api->wake, on_handle_closed);
}

void srv_api_stop(struct srv_api *api)
{
    if (api->stopping) return;
    api->stopping = api->draining = true;
    uv_close((uv_handle_t *)&api->timer, on_handle_closed);
    poll_engine(api);
    srv_api_settle(api);
}

void srv_api_close(struct srv_api *api)
{
    if (!api) return;
    CHECK(api->job_count == 0 && api->open_handles == 0);
    for (int i = 0; i < SRV_LANES; i++) CHECK(!api->lanes[i].reading && !api->lanes[i].first);
    free(api);
}

/* --- who may come in --------------------------------------------------------------------- */

/* Time depends on the length of what was sent alone. */
static bool same_secret(const char *given, const char *secret)
{
    size_t n = strlen(given), m = strlen(secret);
    unsigned diff = n != m;
    for (size_t i = 0; i < n; i++)
        diff |= (unsigned char)given[i] ^ (unsigned char)secret[m ? i % m : 0];
    return diff == 0;
}

void srv_api_admit(struct srv_exchange *x, void *user)
{
    static const char *const open_paths[] = {"/health", "/livez", "/readyz", "/metrics",
                                             "/version"};
    struct srv_api *api = user;
    const char *key = api->config.api_key, *path = srv_x_path(x);
    if (!key || !*key) return;
    for (size_t i = 0; i < ARRAY_COUNT(open_paths); i++)
        if (!strcmp(path, open_paths[i])) return;
    const char *given = srv_x_request_header(x, "Authorization");
    bool bearer = given && !strncasecmp(given, "Bearer ", 7);
    if (bearer && same_secret(given + 7, key)) return;
    srv_x_header(x, "WWW-Authenticate", "Bearer");
    srv_x_error(x, 401, "authentication_error", NULL, "invalid_api_key",
                bearer ? "The API key is not the right one."
                       : "An API key is required: send the header 'Authorization: Bearer KEY'.");
}

void srv_api_fault(struct srv_exchange *x, const struct srv_fault *fault)
{
    const char *param = fault->param[0] ? fault->param : NULL;
    if (fault->context_tokens == 0) {
        srv_x_error(x, fault->status, fault->type, param, fault->code, "%s", fault->message);
        return;
    }
    struct buf body;
    buf_init(&body, 16 << 10);
    srv_fault_format(fault, &body);
    if (buf_status(&body))
        srv_x_error(x, 503, "unavailable_error", NULL, NULL, "The server has no memory left.");
    else srv_x_reply(x, fault->status, "application/json", body.data, body.len);
    buf_deinit(&body);
}

bool srv_api_ready(struct srv_api *api, struct srv_exchange *x)
{
    struct srv_fault fault;
    if (api->engine && !api->draining) return true;
    srv_fault_set(&fault, 503, "unavailable_error", NULL, "",
                  api->draining ? "The server is shutting down." : "The model is being loaded.");
    srv_api_fault(x, &fault);
    return false;
}

bool srv_api_promise(struct srv_api *api, uint64_t *held, uint64_t bytes, const char *param,
                     const char *advice, struct srv_fault *fault)
{
    uint64_t max = api->config.memory_bytes_max, others = api->memory_bytes - *held;
    if (bytes > max)
        return srv_fault_bad(fault, param,
                             "The request could need %llu bytes of storage, above this server's "
                             "limit; %s.",
                             (unsigned long long)bytes, advice);
    if (bytes > max - others)
        return srv_fault_set(fault, 503, "unavailable_error", "overloaded", "",
                             "The server has promised all its memory to requests under way; try "
                             "again later.");
    api->memory_bytes = others + bytes;
    *held = bytes;
    return true;
}

bool srv_api_healthy(struct srv_api *api, char *why)
{
    struct eng_stats stats;
    if (!api->engine) return !err_set(why, ST_DEVICE, "the model is being loaded");
    eng_stats(api->engine, &stats);
    if (stats.failed) return !err_set(why, ST_DEVICE, "the engine has failed: %s", stats.failure);
    uint64_t now = clock_now_ns(), limit = api->config.stall_ms * NS_PER_MS;
    if (limit && now > stats.progress_ns && now - stats.progress_ns > limit)
        return !err_set(why, ST_DEVICE, "the engine has made no progress for %.0f s",
                        (double)(now - stats.progress_ns) * 1e-9);
    return true;
}
