/* api_misc.c - the routes that make no answer: models, tokens, health, version, metrics. */
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "config/version.h"
#include "server/api_int.h"
#include "server/encode.h"

/* Sends and frees the body. */
static void reply_json(struct srv_exchange *x, int status, struct buf *body)
{
    if (buf_status(body))
        srv_x_error(x, 503, "unavailable_error", NULL, NULL, "The server has no memory left.");
    else srv_x_reply(x, status, "application/json", body->data, body->len);
    buf_deinit(body);
}

/* --- models ------------------------------------------------------------------------------ */

static void put_model(const struct srv_api *api, int i, struct buf *out)
{
    const char *name = api->config.model_names[i];
    buf_puts(out, "{\"id\":");
    buf_put_json_string(out, name, strlen(name));
    buf_printf(out, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"dakd\",\"root\":",
               (long long)api->started_unix_s);
    buf_put_json_string(out, api->config.model_names[0], strlen(api->config.model_names[0]));
    buf_printf(out, ",\"parent\":null,\"max_model_len\":%d}", (int)api->limits.context_tokens);
}

void srv_api_models(struct srv_exchange *x, void *user)
{
    struct srv_api *api = user;
    struct buf body;
    if (!srv_api_ready(api, x)) return;
    buf_init(&body, SRV_REPLY_BYTES_MAX);
    /* "data" comes first, and in it "id": shell scripts read the name from there. */
    buf_puts(&body, "{\"object\":\"list\",\"data\":[");
    for (int i = 0; i < api->config.model_name_count; i++) {
        if (i) buf_putc(&body, ',');
        put_model(api, i, &body);
    }
    buf_puts(&body, "]}");
    reply_json(x, 200, &body);
}

void srv_api_model(struct srv_exchange *x, void *user)
{
    struct srv_api *api = user;
    const char *name = srv_x_path_rest(x);
    if (!srv_api_ready(api, x)) return;
    for (int i = 0; i < api->config.model_name_count; i++) {
        if (strcmp(name, api->config.model_names[i])) continue;
        struct buf body;
        buf_init(&body, SRV_REPLY_BYTES_MAX);
        put_model(api, i, &body);
        reply_json(x, 200, &body);
        return;
    }
    srv_x_error(x, 404, "not_found_error", "model", "model_not_found",
                "The model '%.200s' does not exist: this server serves '%.200s'.", name,
                api->config.model_names[0]);
}

/* --- tokens ------------------------------------------------------------------------------ */

/* One /tokenize under way. */
struct tokenize {
    struct srv_api *api;
    struct srv_exchange *x; /* NULL once the client left */
    struct srv_ask request;
    struct srv_prompt prompt; /* the rendered messages; text owned here */
    char *text;
    struct srv_encode encode;
    struct buf reply;
    uint64_t bytes; /* promised in api->memory_bytes */
};

static struct tokenize *tokenize_of(struct srv_encode *e)
{
    return (struct tokenize *)((char *)e - offsetof(struct tokenize, encode));
}

static void tokenize_left(struct srv_exchange *x, void *context)
{
    struct tokenize *t = context;
    CHECK(t->x == x);
    t->x = NULL; /* freed by tokenize_done */
    srv_encode_cancel(&t->encode);
}

/* Where the tokens were made: they may be millions. */
static void tokenize_made(struct srv_encode *e)
{
    struct tokenize *t = tokenize_of(e);
    const struct srv_prompt *p = &e->prompts[0];
    struct buf *body = &t->reply;
    buf_printf(body, "{\"count\":%d,\"max_model_len\":%d,\"tokens\":", (int)p->token_count,
               (int)t->api->limits.context_tokens);
    srv_fmt_ids(body, p->tokens, p->token_count);
    buf_puts(body, ",\"token_strs\":");
    if (t->request.return_token_strings) {
        for (int32_t i = 0; i < p->token_count; i++) {
            const char *text = eng_tok_text(t->api->tok, p->tokens[i]);
            buf_putc(body, i ? ',' : '[');
            buf_put_json_string(body, text ? text : "", text ? strlen(text) : 0);
        }
        buf_puts(body, p->token_count ? "]" : "[]");
    } else {
        buf_puts(body, "null");
    }
    buf_putc(body, '}');
}

static void tokenize_free(struct tokenize *t)
{
    t->api->memory_bytes -= t->bytes;
    free(t->prompt.tokens);
    free(t->text);
    buf_deinit(&t->reply);
    srv_ask_deinit(&t->request);
    free(t);
}

static const char *tokenize_param(const struct tokenize *t)
{
    return t->text ? "messages" : "prompt";
}

static void tokenize_done(struct srv_encode *e)
{
    struct tokenize *t = tokenize_of(e);
    struct srv_fault fault;
    if (t->x && e->status) {
        srv_encode_fault(e, tokenize_param(t), &fault);
        srv_api_fault(t->x, &fault);
    } else if (t->x) {
        reply_json(t->x, 200, &t->reply);
    }
    tokenize_free(t);
}

static void tokenize_start(struct srv_api *api, struct srv_exchange *x, struct srv_ask *request,
                           char *text, size_t len)
{
    struct srv_fault fault;
    struct tokenize *t = calloc(1, sizeof *t);
    if (!t) {
        srv_ask_deinit(request);
        free(text);
        srv_x_error(x, 503, "unavailable_error", NULL, NULL, "The server has no memory left.");
        return;
    }
    t->api = api;
    t->x = x;
    t->request = *request;
    t->text = text;
    t->prompt = (struct srv_prompt){.text = text, .len = len};
    buf_init(&t->reply, SRV_REPLY_BYTES_MAX);
    t->encode = (struct srv_encode){.tok = api->tok,
                                    .prompts = text ? &t->prompt : t->request.prompts,
                                    .prompt_count = 1,
                                    .flags = ENG_TOK_PARSE_SPECIAL |
                                             (request->add_special ? ENG_TOK_ADD_SPECIAL : 0),
                                    .made = tokenize_made,
                                    .done = tokenize_done};
    if (!srv_api_promise(api, &t->bytes, srv_encode_bytes(&t->encode), tokenize_param(t),
                         "send less text", &fault)) {
        srv_api_fault(x, &fault);
        tokenize_free(t);
        return;
    }
    srv_x_watch(x, tokenize_left, NULL, t);
    srv_encode_start(&t->encode, api->loop);
}

void srv_api_tokenize(struct srv_exchange *x, void *user)
{
    static const struct srv_intake_route route = {SRV_TOKENIZE, srv_api_render, tokenize_start};
    srv_intake_start(user, x, &route);
}

/* The reply, of the tokens' text. */
static bool detokenize_make(const struct srv_api *api, const struct srv_ask *r, char **reply,
                            size_t *len, struct srv_fault *fault)
{
    struct buf text, body;
    char err[ERR_CAP] = "";
    const struct srv_prompt *p = &r->prompts[0];
    if (!api->tok)
        return srv_fault_unsupported(fault, "tokens",
                                     "'tokens' have no text here: the model has no tokenizer.");
    buf_init(&text, SRV_REPLY_BYTES_MAX);
    buf_init(&body, SRV_REPLY_BYTES_MAX);
    enum status st = eng_tok_decode(api->tok, p->tokens, (size_t)p->token_count, false, &text, err);
    buf_puts(&body, "{\"prompt\":");
    buf_put_json_string(&body, text.data ? text.data : "", text.len);
    buf_putc(&body, '}');
    buf_deinit(&text);
    if (!st && (st = buf_status(&body))) err_set(err, st, "%s", status_text(st));
    *reply = body.data;
    *len = body.len;
    if (!st) return true;
    buf_deinit(&body);
    *reply = NULL;
    return srv_fault_set(fault, 503, "unavailable_error", NULL, "",
                         "The text could not be made: %s.", err);
}

static void detokenize_reply(struct srv_api *api, struct srv_exchange *x, struct srv_ask *r,
                             char *reply, size_t len)
{
    (void)api;
    srv_x_reply(x, 200, "application/json", reply, len);
    free(reply);
    srv_ask_deinit(r);
}

void srv_api_detokenize(struct srv_exchange *x, void *user)
{
    static const struct srv_intake_route route = {SRV_DETOKENIZE, detokenize_make,
                                                  detokenize_reply};
    srv_intake_start(user, x, &route);
}

/* --- for operators ----------------------------------------------------------------------- */

static void reply_state(struct srv_exchange *x, const char *trouble)
{
    struct buf body;
    if (trouble) {
        srv_x_error(x, 503, "unavailable_error", NULL, NULL, "Not serving: %s.", trouble);
        return;
    }
    buf_init(&body, SRV_REPLY_BYTES_MAX);
    buf_puts(&body, "{\"status\":\"ok\"}");
    reply_json(x, 200, &body);
}

/* Whether requests are answered. */
void srv_api_health(struct srv_exchange *x, void *user)
{
    struct srv_api *api = user;
    char why[ERR_CAP];
    bool healthy = srv_api_healthy(api, why);
    if (healthy && api->draining) reply_state(x, "the server is shutting down");
    else reply_state(x, healthy ? NULL : why);
}

/* Whether new requests should be sent here; the same question. */
void srv_api_readyz(struct srv_exchange *x, void *user)
{
    srv_api_health(x, user);
}

/* Whether a restart would help: the loop answers, and the engine is not dead.  Loading and draining
 * are life. */
void srv_api_livez(struct srv_exchange *x, void *user)
{
    struct srv_api *api = user;
    char why[ERR_CAP];
    bool alive = !api->engine || srv_api_healthy(api, why);
    reply_state(x, alive ? NULL : why);
}

void srv_api_version(struct srv_exchange *x, void *user)
{
    struct buf body;
    (void)user;
    buf_init(&body, SRV_REPLY_BYTES_MAX);
    buf_printf(&body, "{\"version\":\"%s\",\"commit\":\"%s\"}", version_string(), version_commit());
    reply_json(x, 200, &body);
}

void srv_api_metrics(struct srv_exchange *x, void *user)
{
    struct srv_api *api = user;
    struct eng_stats stats = {0};
    struct buf body;
    size_t count;
    if (api->engine) eng_stats(api->engine, &stats);
    struct srv_metrics_view view = {.own = &api->metrics,
                                    .engine = &stats,
                                    .http = api->http ? srv_http_stats(api->http) : NULL,
                                    .routes = srv_api_routes(&count),
                                    .tiers = api->tiers,
                                    .tier_count = api->tier_count,
                                    .kv_page_bytes = api->kv_page_bytes,
                                    .model_name = api->config.model_names[0],
                                    .version = version_string(),
                                    .commit = version_commit()};
    buf_init(&body, SRV_REPLY_BYTES_MAX);
    srv_metrics_format(&view, &body);
    if (buf_status(&body))
        srv_x_error(x, 503, "unavailable_error", NULL, NULL, "The server has no memory left.");
    else srv_x_reply(x, 200, "text/plain; version=0.0.4; charset=utf-8", body.data, body.len);
    buf_deinit(&body);
}
