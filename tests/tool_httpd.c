/*
 * tool_httpd - a small server on the HTTP transport, for tests from outside
 * (tests/parity/test_http_malformed.py).
 *
 *     tool_httpd [--port N] [--body-max N] [--header-timeout-ms N]
 *
 * Prints "port N" once it listens; SIGTERM drains, a second one ends at once.  GET and POST /echo,
 * GET /stream?n=N (N events, one per millisecond), GET and POST /hold (never answers), GET /stats.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "config/log.h"
#include "server/http.h"
#include "server/sse.h"

struct tool {
    struct srv_http *http;
    uv_loop_t loop;
    uv_signal_t term;
    bool draining;
    unsigned long left_count; /* clients that left */
};

struct ticker {
    uv_timer_t timer;
    struct srv_exchange *x;
    struct tool *tool;
    unsigned long left;
};

static void echo(struct srv_exchange *x, void *user)
{
    (void)user;
    size_t len;
    const char *body = srv_x_body(x, &len);
    if (len == 0) body = srv_x_path(x), len = strlen(body);
    srv_x_reply(x, 200, "application/octet-stream", body, len);
}

static void on_held_closed(struct srv_exchange *x, void *context)
{
    (void)x;
    ((struct tool *)context)->left_count++;
}

static void hold(struct srv_exchange *x, void *user)
{
    srv_x_watch(x, on_held_closed, NULL, user);
}

static void on_ticker_closed(uv_handle_t *handle)
{
    free(handle->data);
}

static void on_stream_closed(struct srv_exchange *x, void *context)
{
    (void)x;
    struct ticker *t = context;
    t->tool->left_count++;
    uv_close((uv_handle_t *)&t->timer, on_ticker_closed);
}

static void on_tick(uv_timer_t *timer)
{
    struct ticker *t = timer->data;
    char json[64];
    int n = snprintf(json, sizeof json, "{\"left\":%lu}", t->left);
    if (t->left == 0) {
        srv_sse_done(t->x);
        uv_close((uv_handle_t *)&t->timer, on_ticker_closed);
        return;
    }
    enum status st = srv_sse_data(t->x, json, (size_t)n);
    if (st == ST_OK || st == ST_FULL) t->left--; /* ST_LIMIT: the next tick tries again */
}

static void stream(struct srv_exchange *x, void *user)
{
    struct tool *tool = user;
    const char *n = srv_x_query(x, "n");
    struct ticker *t = calloc(1, sizeof *t);
    CHECK(t);
    *t = (struct ticker){.x = x, .tool = tool, .left = n ? strtoul(n, NULL, 10) : 10};
    uv_timer_init(&tool->loop, &t->timer);
    t->timer.data = t;
    srv_x_watch(x, on_stream_closed, NULL, t);
    srv_sse_begin(x);
    uv_timer_start(&t->timer, on_tick, 0, 1);
}

static void stats(struct srv_exchange *x, void *user)
{
    struct tool *tool = user;
    const struct srv_http_stats *s = srv_http_stats(tool->http);
    char text[256];
    int n =
        snprintf(text, sizeof text, "{\"open\":%llu,\"active\":%llu,\"held\":%llu,\"left\":%lu}",
                 (unsigned long long)s->conn_open, (unsigned long long)s->requests_active,
                 (unsigned long long)s->body_bytes_held, tool->left_count);
    srv_x_reply(x, 200, "application/json", text, (size_t)n);
}

static void on_drained(void *arg)
{
    struct tool *tool = arg;
    srv_http_close(tool->http, NULL, NULL);
    uv_close((uv_handle_t *)&tool->term, NULL);
}

static void on_term(uv_signal_t *handle, int signum)
{
    (void)signum;
    struct tool *tool = handle->data;
    if (!tool->draining) {
        tool->draining = true;
        srv_http_drain(tool->http, on_drained, tool);
        return;
    }
    on_drained(tool);
}

static long option(int argc, char **argv, const char *name, long fallback)
{
    for (int i = 1; i + 1 < argc; i += 2)
        if (strcmp(argv[i], name) == 0) return strtol(argv[i + 1], NULL, 10);
    return fallback;
}

int main(int argc, char **argv)
{
    static const struct srv_route routes[] = {
        {"GET", "/echo", echo},  {"POST", "/echo", echo},    {"GET", "/hold", hold},
        {"POST", "/hold", hold}, {"GET", "/stream", stream}, {"GET", "/stats", stats},
    };
    struct tool tool = {0};
    struct srv_http_config config = srv_http_config_default();
    config.port = (int)option(argc, argv, "--port", 0);
    config.header_bytes_max = 16384;
    config.body_bytes_max = (size_t)option(argc, argv, "--body-max", 1 << 20);
    config.header_timeout_ms = (uint64_t)option(argc, argv, "--header-timeout-ms", 10000);
    config.body_timeout_ms = config.header_timeout_ms;
    char err[ERR_CAP];
    log_init(LOG_WARN, 0);
    uv_loop_init(&tool.loop);
    if (srv_http_open(&tool.loop, &config, routes, ARRAY_COUNT(routes), &tool, &tool.http, err) ||
        srv_http_listen(tool.http, err)) {
        fprintf(stderr, "tool_httpd: %s\n", err);
        return 1;
    }
    uv_signal_init(&tool.loop, &tool.term);
    tool.term.data = &tool;
    uv_signal_start(&tool.term, on_term, SIGTERM);
    printf("port %d\n", srv_http_port(tool.http));
    fflush(stdout);
    uv_run(&tool.loop, UV_RUN_DEFAULT);
    CHECK(uv_loop_close(&tool.loop) == 0);
    return 0;
}
