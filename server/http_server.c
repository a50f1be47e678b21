/*
 * http_server.c - opening, draining and closing the server: configuration checks, listeners, the
 * connection slots.
 *
 * Everything is allocated before listen().  A connection that comes while no slot is free stays
 * unaccepted, which makes libuv leave the rest in the kernel's backlog, and is taken when a slot is
 * given back.
 */
#include <errno.h>
#include <netdb.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "config/check.h"
#include "config/clock.h"
#include "server/http_conn.h"

struct srv_http_config srv_http_config_default(void)
{
    return (struct srv_http_config){
        .host = "127.0.0.1",
        .port = 8000,
        .backlog = 511,
        .conn_max = 1024,
        .header_bytes_max = 32768,
        .header_count_max = 100,
        .body_bytes_max = 32u << 20,
        .body_bytes_total_max = 512u << 20,
        .write_buffer_max = 1u << 20,
        .header_timeout_ms = 10000,
        .body_timeout_ms = 60000,
        .idle_timeout_ms = 75000,
        .write_timeout_ms = 30000,
    };
}

static enum status config_check(const struct srv_http_config *c, const struct srv_route *routes,
                                size_t route_count, char *err)
{
    if (!c->host || !*c->host)
        return err_set(err, ST_INVALID, "host is empty: give an address to listen on");
    if (c->port < 0 || c->port > 65535)
        return err_set(err, ST_INVALID, "port %d is not between 0 and 65535", c->port);
    if (c->backlog < 1 || c->conn_max < 1 || c->conn_max > 1 << 20)
        return err_set(err, ST_INVALID, "backlog and connection limit must be at least 1");
    if (c->header_bytes_max < 1024 || c->header_bytes_max > 16u << 20 || c->header_count_max < 8 ||
        c->header_count_max > 65536)
        return err_set(err, ST_INVALID, "header limits must be 1 KB to 16 MB and 8 to 65536 lines");
    if (c->body_bytes_max < 1 || c->body_bytes_max > SIZE_MAX / 4 ||
        c->body_bytes_total_max < c->body_bytes_max)
        return err_set(err, ST_INVALID,
                       "the body limits must be positive, and the total at least one body");
    if (c->write_buffer_max < 32768 || c->write_buffer_max > 1u << 30)
        return err_set(err, ST_INVALID, "the write buffer must be 32 KB to 1 GB");
    if (!c->header_timeout_ms || !c->body_timeout_ms || !c->idle_timeout_ms || !c->write_timeout_ms)
        return err_set(err, ST_INVALID, "timeouts must be positive");
    for (size_t i = 0; i < c->cors_origin_count; i++)
        for (const char *p = c->cors_origins[i]; *p; p++)
            if (*p <= 0x20 || *p >= 0x7F)
                return err_set(err, ST_INVALID, "CORS origin \"%s\" is not an origin",
                               c->cors_origins[i]);
    for (size_t i = 0; i < route_count; i++)
        CHECK(routes[i].path[0] == '/' && routes[i].method[0] && routes[i].handle);
    return ST_OK;
}

/* ---- listeners ---- */

static void on_listener_closed(uv_handle_t *handle)
{
    struct srv_http *http = handle->data;
    http->listener_open--;
    srv_http_conn_gone(http);
}

static void on_connection(uv_stream_t *listener, int status)
{
    struct srv_http *http = listener->data;
    if (status < 0 || http->draining || http->closing) return;
    if (!srv_conn_accept(http, listener))
        http->listener_waits[(uv_tcp_t *)listener - http->listeners] = true;
}

static void accept_waiting(struct srv_http *http)
{
    for (int i = 0; i < http->listener_count && !http->draining && !http->closing; i++)
        if (http->listener_waits[i])
            http->listener_waits[i] = !srv_conn_accept(http, (uv_stream_t *)&http->listeners[i]);
}

static int sockaddr_port(const struct sockaddr *a)
{
    return ntohs(a->sa_family == AF_INET6
                     ? ((const struct sockaddr_in6 *)(const void *)a)->sin6_port
                     : ((const struct sockaddr_in *)(const void *)a)->sin_port);
}

/* Binds one address with http->port; the first one fixes an ephemeral port.  Returns a libuv error.
 * libuv keeps a port that is in use to itself until the socket is used: asking for the name does.
 */
static int bind_to(struct srv_http *http, const struct addrinfo *info)
{
    struct sockaddr_storage address;
    memcpy(&address, info->ai_addr, info->ai_addrlen);
    if (info->ai_family == AF_INET6)
        ((struct sockaddr_in6 *)&address)->sin6_port = htons((uint16_t)http->port);
    else ((struct sockaddr_in *)&address)->sin_port = htons((uint16_t)http->port);
    uv_tcp_t *tcp = &http->listeners[http->listener_count];
    int rc = uv_tcp_init(http->loop, tcp);
    if (rc) return rc;
    tcp->data = http;
    http->listener_count++;
    http->listener_open++;
    rc = uv_tcp_bind(tcp, (struct sockaddr *)&address, 0);
    int len = sizeof address;
    if (!rc) rc = uv_tcp_getsockname(tcp, (struct sockaddr *)&address, &len);
    if (!rc) http->port = sockaddr_port((struct sockaddr *)&address);
    else uv_close((uv_handle_t *)tcp, on_listener_closed);
    return rc;
}

static enum status listen_error(const struct srv_http *http, int rc, char *err)
{
    const char *host = http->config.host;
    if (rc == UV_EADDRINUSE)
        return err_set(err, ST_IO,
                       "port %d on %s is in use: stop the other program or choose another --port",
                       http->port, host);
    if (rc == UV_EACCES)
        return err_set(err, ST_IO, "no permission to listen on port %d of %s: use one above 1023",
                       http->port, host);
    if (rc == UV_EADDRNOTAVAIL)
        return err_set(err, ST_IO, "%s is not an address of this machine: choose another --host",
                       host);
    return err_set(err, ST_IO, "cannot listen on %s port %d: %s", host, http->port,
                   uv_strerror(rc));
}

/* Name services may list an address twice. */
static bool is_repeated(const struct addrinfo *list, const struct addrinfo *a)
{
    for (; list != a; list = list->ai_next)
        if (list->ai_addrlen == a->ai_addrlen &&
            memcmp(list->ai_addr, a->ai_addr, a->ai_addrlen) == 0)
            return true;
    return false;
}

/* A name may have several addresses (localhost: ::1 and 127.0.0.1).  One that this machine lacks is
 * passed over while another one works; a port in use is an error on any. */
static enum status bind_all(struct srv_http *http, char *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *list;
    int rc = getaddrinfo(http->config.host, NULL, &hints, &list);
    if (rc)
        return err_set(err, ST_IO, "cannot resolve the host \"%s\": %s", http->config.host,
                       gai_strerror(rc));
    int bound = 0, failure = UV_EADDRNOTAVAIL;
    for (const struct addrinfo *a = list; a && http->listener_count < SRV_LISTENER_MAX;
         a = a->ai_next) {
        if (a->ai_family != AF_INET && a->ai_family != AF_INET6) continue;
        if (is_repeated(list, a)) continue;
        rc = bind_to(http, a);
        if (!rc) bound++;
        else failure = rc;
        if (rc && rc != UV_EADDRNOTAVAIL && rc != UV_EAFNOSUPPORT) {
            bound = 0;
            break;
        }
    }
    freeaddrinfo(list);
    return bound ? ST_OK : listen_error(http, failure, err);
}

static void listeners_close(struct srv_http *http)
{
    for (int i = 0; i < http->listener_count; i++)
        if (!uv_is_closing((uv_handle_t *)&http->listeners[i]))
            uv_close((uv_handle_t *)&http->listeners[i], on_listener_closed);
}

/* ---- life ---- */

static void http_free(struct srv_http *http)
{
    free(http->conns);
    free(http->route_stats);
    free(http);
}

static struct srv_http *http_alloc(uv_loop_t *loop, const struct srv_http_config *config,
                                   const struct srv_route *routes, size_t route_count, void *user)
{
    struct srv_http *http = calloc(1, sizeof *http);
    if (!http) return NULL;
    http->loop = loop;
    http->config = *config;
    http->routes = routes;
    http->route_count = route_count;
    http->user = user;
    http->port = config->port;
    http->slot_count = (size_t)config->conn_max + SRV_REFUSED_MAX;
    http->conns = calloc(http->slot_count, sizeof *http->conns);
    http->route_stats = calloc(route_count + 1, sizeof *http->route_stats);
    if (!http->conns || !http->route_stats) {
        http_free(http);
        return NULL;
    }
    for (size_t i = http->slot_count; i-- > 0;) {
        http->conns[i].free_next = http->free_conns;
        http->free_conns = &http->conns[i];
    }
    http->stats.route_count = route_count;
    http->stats.routes = http->route_stats;
    if (getrandom(&http->id_state, sizeof http->id_state, GRND_NONBLOCK) < 0)
        http->id_state = clock_now_ns();
    return http;
}

enum status srv_http_open(uv_loop_t *loop, const struct srv_http_config *config,
                          const struct srv_route *routes, size_t route_count, void *user,
                          struct srv_http **out, char *err)
{
    *out = NULL;
    enum status st = config_check(config, routes, route_count, err);
    if (st) return st;
    struct srv_http *http = http_alloc(loop, config, routes, route_count, user);
    if (!http) return err_set(err, ST_NOMEM, "no memory for %d connections", config->conn_max);
    /* A write to a closed socket is an error to handle, not a signal to die of. */
    struct sigaction action;
    if (sigaction(SIGPIPE, NULL, &action) == 0 && action.sa_handler == SIG_DFL)
        signal(SIGPIPE, SIG_IGN);
    uv_idle_init(loop, &http->flusher);
    http->flusher.data = http;
    http->flusher_open = true;
    st = bind_all(http, err);
    if (st) {
        srv_http_close(http, NULL, NULL); /* frees itself in the loop's next turns */
        return st;
    }
    *out = http;
    return ST_OK;
}

enum status srv_http_listen(struct srv_http *http, char *err)
{
    for (int i = 0; i < http->listener_count; i++) {
        uv_stream_t *listener = (uv_stream_t *)&http->listeners[i];
        if (uv_is_closing((uv_handle_t *)listener)) continue;
        int rc = uv_listen(listener, http->config.backlog, on_connection);
        if (rc) return listen_error(http, rc, err);
    }
    return ST_OK;
}

static void on_flusher_closed(uv_handle_t *handle)
{
    struct srv_http *http = handle->data;
    http->flusher_open = false;
    srv_http_conn_gone(http);
}

void srv_http_conn_gone(struct srv_http *http)
{
    accept_waiting(http);
    if (http->conn_count || http->listener_open) return;
    if (http->closing) {
        if (http->flusher_open) return;
        void (*closed)(void *) = http->closed;
        void *arg = http->closed_arg;
        http_free(http);
        if (closed) closed(arg);
        return;
    }
    void (*drained)(void *) = http->drained;
    http->drained = NULL;
    if (drained) drained(http->drained_arg);
}

void srv_http_drain(struct srv_http *http, void (*done)(void *arg), void *arg)
{
    CHECK(!http->draining && !http->closing);
    http->draining = true;
    http->drained = done;
    http->drained_arg = arg;
    listeners_close(http);
    for (size_t i = 0; i < http->slot_count; i++)
        if (http->conns[i].http && srv_conn_is_idle(&http->conns[i]))
            srv_conn_lost(&http->conns[i]);
}

void srv_http_close(struct srv_http *http, void (*closed)(void *arg), void *arg)
{
    CHECK(!http->closing);
    http->closing = true;
    http->drained = NULL;
    http->closed = closed;
    http->closed_arg = arg;
    listeners_close(http);
    for (size_t i = 0; i < http->slot_count; i++)
        if (http->conns[i].http) srv_conn_lost(&http->conns[i]);
    uv_close((uv_handle_t *)&http->flusher, on_flusher_closed);
}

int srv_http_port(const struct srv_http *http)
{
    return http->port;
}

const struct srv_http_stats *srv_http_stats(const struct srv_http *http)
{
    return &http->stats;
}

const struct srv_route *srv_http_route(const struct srv_http *http, size_t idx)
{
    CHECK(idx < http->route_count);
    return &http->routes[idx];
}
