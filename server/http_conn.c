/*
 * http_conn.c - one connection: reading, delivering requests, flushing, timeouts, closing.  See
 * http_conn.h for phases.
 *
 * Invariants
 *  1. In RECEIVE the read-ahead buffer `in` is empty: every byte has gone to the parser.
 *  2. Callbacks of the exchange are called from the loop's own callbacks here, never from within
 * srv_x_*.
 *  3. Reading goes on while a response is under way, so that a hangup is seen at once; only a full
 * `in` stops it, and then the timer looks for a hangup.
 *  4. After srv_conn_close nothing touches the connection but the close callbacks.
 */
#include "server/http_conn.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "config/check.h"
#include "config/clock.h"
#include "config/log.h"

#define KEEP_BYTES 65536 /* larger output buffers are freed once sent */

static void conn_receive_next(struct srv_conn *c);
static void conn_arm(struct srv_conn *c);
static void conn_flush(struct srv_conn *c);
static void on_flush(uv_idle_t *idle);
static void conn_read_start(struct srv_conn *c);
static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf);
static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf);

/* ---- closing ---- */

void srv_conn_body_release(struct srv_conn *c)
{
    srv_request_body_release(&c->request);
    c->http->stats.body_bytes_held -= c->body_held;
    c->body_held = 0;
}

static void on_handle_closed(uv_handle_t *handle)
{
    struct srv_conn *c = handle->data;
    if (--c->handles > 0) return;
    struct srv_http *http = c->http;
    http->conn_count--;
    if (!c->refused) http->stats.conn_open--;
    srv_request_deinit(&c->request);
    buf_deinit(&c->x.headers);
    buf_deinit(&c->in);
    buf_deinit(&c->out);
    buf_deinit(&c->sending);
    c->http = NULL;
    c->free_next = http->free_conns;
    http->free_conns = c;
    srv_http_conn_gone(http);
}

static void conn_unlink_dirty(struct srv_conn *c)
{
    if (!c->dirty) return;
    struct srv_http *http = c->http;
    if (c->dirty_prev) c->dirty_prev->dirty_next = c->dirty_next;
    else http->dirty_first = c->dirty_next;
    if (c->dirty_next) c->dirty_next->dirty_prev = c->dirty_prev;
    else http->dirty_last = c->dirty_prev;
    c->dirty = false;
}

static void conn_close(struct srv_conn *c)
{
    if (c->phase == SRV_CLOSING) return;
    c->phase = SRV_CLOSING;
    conn_unlink_dirty(c);
    srv_conn_body_release(c);
    uv_close((uv_handle_t *)&c->timer, on_handle_closed);
    uv_close((uv_handle_t *)&c->tcp, on_handle_closed);
}

void srv_conn_lost(struct srv_conn *c)
{
    if (c->phase == SRV_CLOSING) return;
    struct srv_exchange *x = &c->x;
    bool open = srv_x_is_open(x);
    if (open || x->state == SRV_X_ANSWERED) srv_x_account(x, 499);
    x->state = SRV_X_GONE;
    if (open && x->on_closed) x->on_closed(x, x->context);
    conn_close(c);
}

/* Shuts the write side and discards input for a while: closing a socket with unread input resets
 * it, and a reset can take the response away from a peer that has not read it yet. */
static void conn_linger(struct srv_conn *c)
{
    uv_os_fd_t fd;
    if (c->eof || uv_fileno((uv_handle_t *)&c->tcp, &fd) || shutdown(fd, SHUT_WR)) {
        conn_close(c);
        return;
    }
    c->phase = SRV_LINGER;
    c->deadline_ms = uv_now(c->http->loop) + SRV_LINGER_MS;
    conn_read_start(c);
    if (c->phase != SRV_CLOSING) conn_arm(c);
}

/* ---- writing ---- */

size_t srv_conn_queued(const struct srv_conn *c)
{
    return c->out.len + (c->writing ? uv_stream_get_write_queue_size((uv_stream_t *)&c->tcp) : 0);
}

void srv_conn_mark_dirty(struct srv_conn *c)
{
    if (c->dirty || c->phase == SRV_CLOSING) return;
    struct srv_http *http = c->http;
    c->dirty = true;
    c->dirty_next = NULL;
    c->dirty_prev = http->dirty_last;
    if (c->dirty_prev) c->dirty_prev->dirty_next = c;
    else http->dirty_first = c;
    http->dirty_last = c;
    uv_idle_start(&http->flusher, on_flush);
}

/* The whole response is with the kernel. */
static void conn_finish(struct srv_conn *c)
{
    struct srv_exchange *x = &c->x;
    srv_x_account(x, x->status);
    x->state = SRV_X_NONE;
    srv_conn_body_release(c);
    if (x->close || c->eof || c->http->draining) conn_linger(c);
    else conn_receive_next(c);
}

/* What a flush may have made possible. */
static void conn_flushed(struct srv_conn *c)
{
    struct srv_exchange *x = &c->x;
    size_t queued = srv_conn_queued(c);
    if (x->state == SRV_X_ANSWERED && queued == 0) {
        conn_finish(c);
        return;
    }
    if (x->state == SRV_X_STREAM && x->throttled &&
        queued <= c->http->config.write_buffer_max / 4) {
        x->throttled = false;
        if (x->on_drain) x->on_drain(x, x->context);
    }
    if (c->phase != SRV_CLOSING) conn_arm(c);
}

static void on_written(uv_write_t *req, int status)
{
    struct srv_conn *c = req->data;
    c->writing = false;
    if (c->phase == SRV_CLOSING) return;
    if (status < 0) {
        srv_conn_lost(c);
        return;
    }
    c->http->stats.bytes_out += c->sending.len - c->sending_off;
    if (c->sending.cap > KEEP_BYTES) {
        buf_deinit(&c->sending);
        buf_init(&c->sending, SIZE_MAX / 2);
    }
    buf_clear(&c->sending);
    conn_flush(c);
}

/* Hands the rest of `out`, from offset `taken`, to uv_write. */
static void conn_send_rest(struct srv_conn *c, size_t taken)
{
    struct buf empty = c->sending;
    c->sending = c->out;
    c->out = empty;
    c->sending_off = taken;
    uv_buf_t piece = uv_buf_init(c->sending.data + taken, (unsigned)(c->sending.len - taken));
    c->write_req.data = c;
    if (uv_write(&c->write_req, (uv_stream_t *)&c->tcp, &piece, 1, on_written)) {
        srv_conn_lost(c);
        return;
    }
    c->writing = true;
    c->progress_left = SIZE_MAX;
    c->progress_ms = uv_now(c->http->loop);
}

static void conn_flush(struct srv_conn *c)
{
    if (c->broken) {
        srv_conn_lost(c);
        return;
    }
    if (!c->writing && c->out.len) {
        uv_buf_t all = uv_buf_init(c->out.data, (unsigned)c->out.len);
        int n = uv_try_write((uv_stream_t *)&c->tcp, &all, 1);
        if (n < 0 && n != UV_EAGAIN) {
            srv_conn_lost(c);
            return;
        }
        size_t taken = n > 0 ? (size_t)n : 0;
        c->http->stats.bytes_out += taken;
        if (taken < c->out.len) {
            conn_send_rest(c, taken);
        } else if (c->out.cap > KEEP_BYTES) {
            buf_deinit(&c->out);
            buf_init(&c->out, SIZE_MAX / 2);
        } else {
            buf_clear(&c->out);
        }
    }
    if (c->phase != SRV_CLOSING) conn_flushed(c);
}

static void on_flush(uv_idle_t *idle)
{
    struct srv_http *http = idle->data;
    /* Those that are dirty now, oldest first; what their callbacks write goes out in the next turn.
     */
    size_t count = 0;
    for (struct srv_conn *c = http->dirty_first; c; c = c->dirty_next) count++;
    for (; count && http->dirty_first; count--) {
        struct srv_conn *c = http->dirty_first;
        conn_unlink_dirty(c);
        conn_flush(c);
    }
    if (!http->dirty_first && !http->closing) uv_idle_stop(&http->flusher);
}

/* ---- requests ---- */

/* Answers a request that was not, or not wholly, received; the connection ends with it. */
static void conn_refuse(struct srv_conn *c, int status, const char *code, const char *sentence)
{
    struct srv_exchange *x = &c->x;
    srv_x_identify(x);
    c->phase = SRV_RESPOND;
    x->state = SRV_X_WAIT;
    x->close = true;
    srv_conn_body_release(c);
    srv_x_error(x, status, NULL, NULL, code, "%s", sentence);
}

/* The head is there.  Decides what can be decided before the body; c leaves RECEIVE where that was
 * an answer. */
static void conn_head(struct srv_conn *c, bool body_has_begun)
{
    struct srv_exchange *x = &c->x;
    const struct srv_request *r = &c->request;
    srv_x_identify(x);
    srv_route_find(x);
    c->phase = SRV_RESPOND;
    x->state = SRV_X_WAIT;
    x->close = !r->keep_alive || r->has_body; /* an answer now leaves the body unread */
    bool routed = x->route_idx < c->http->route_count;
    if (!routed && r->expect_continue) srv_route_refuse(x);
    else if (routed && c->http->config.admit) c->http->config.admit(x, c->http->user);
    if (x->state != SRV_X_WAIT) return;
    c->phase = SRV_RECEIVE;
    x->state = SRV_X_NONE;
    x->close = !r->keep_alive;
    c->deadline_ms = uv_now(c->http->loop) + c->http->config.body_timeout_ms;
    if (!r->expect_continue || body_has_begun) return;
    buf_puts(&c->out, "HTTP/1.1 100 Continue\r\n\r\n");
    c->broken = buf_status(&c->out) != ST_OK;
    srv_conn_mark_dirty(c);
}

static void conn_deliver(struct srv_conn *c)
{
    struct srv_exchange *x = &c->x;
    struct srv_http *http = c->http;
    if (!c->request.has_body) conn_head(c, true);
    if (c->phase != SRV_RECEIVE) return;
    c->phase = SRV_RESPOND;
    x->state = SRV_X_WAIT;
    x->arrival_ns = clock_now_ns();
    if (x->route_idx == http->route_count) {
        srv_route_refuse(x);
        return;
    }
    x->active = true;
    http->stats.requests_active++;
    http->routes[x->route_idx].handle(x, http->user);
    CHECK(!srv_x_is_open(x) || x->on_closed);
}

static void conn_count_body(struct srv_conn *c)
{
    size_t len = c->request.body.len;
    c->http->stats.body_bytes_held += len - c->body_held;
    c->body_held = len;
}

/* Feeds p[0..n) to the parser until a request is to be answered; returns the bytes taken. */
static size_t conn_feed(struct srv_conn *c, const char *p, size_t n)
{
    size_t used = 0;
    const struct srv_http_config *config = &c->http->config;
    while (used < n && c->phase == SRV_RECEIVE) {
        if (srv_request_is_idle(&c->request)) {
            c->x.start_ns = clock_now_ns();
            c->receiving = true;
            c->deadline_ms = uv_now(c->http->loop) + config->header_timeout_ms;
        }
        size_t taken;
        enum srv_request_event event = srv_request_feed(&c->request, p + used, n - used, &taken);
        used += taken;
        conn_count_body(c);
        if (event == SRV_REQUEST_REFUSED)
            conn_refuse(c, c->request.refused_status, c->request.refused_code, c->request.refusal);
        else if (c->http->stats.body_bytes_held > config->body_bytes_total_max)
            conn_refuse(c, 503, "overloaded",
                        "The server holds too many request bodies at the moment. Try again later.");
        else if (event == SRV_REQUEST_HEAD) conn_head(c, used < n);
        else if (event == SRV_REQUEST_COMPLETE) conn_deliver(c);
    }
    return used;
}

static void conn_read_start(struct srv_conn *c)
{
    if (c->reading || c->eof) return;
    if (uv_read_start((uv_stream_t *)&c->tcp, on_alloc, on_read)) srv_conn_lost(c);
    else c->reading = true;
}

static void conn_receive_next(struct srv_conn *c)
{
    c->phase = SRV_RECEIVE;
    c->receiving = false;
    c->deadline_ms = uv_now(c->http->loop) + c->http->config.idle_timeout_ms;
    srv_request_reset(&c->request);
    srv_x_init(&c->x, c);
    size_t used = conn_feed(c, c->in.data, c->in.len);
    if (c->phase == SRV_CLOSING) return;
    buf_consume(&c->in, used);
    conn_read_start(c);
    if (c->phase != SRV_CLOSING) conn_arm(c);
}

/* ---- reading ---- */

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    (void)suggested;
    struct srv_conn *c = handle->data;
    size_t room = c->phase == SRV_RESPOND ? SRV_READ_BYTES - c->in.len : SRV_READ_BYTES;
    *buf = uv_buf_init(c->http->read_buffer, (unsigned)room);
}

static void conn_on_eof(struct srv_conn *c, bool orderly)
{
    uv_read_stop((uv_stream_t *)&c->tcp);
    c->reading = false;
    c->eof = true;
    /* An answer that is only waiting for the end of the turn still goes out to a peer that shut its
     * write side. */
    if (orderly && c->phase == SRV_RESPOND && c->x.state == SRV_X_ANSWERED) return;
    srv_conn_lost(c);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct srv_conn *c = stream->data;
    if (n == 0 || c->phase == SRV_CLOSING) return;
    if (n < 0) {
        conn_on_eof(c, n == UV_EOF);
        return;
    }
    c->http->stats.bytes_in += (uint64_t)n;
    if (c->phase == SRV_LINGER) return;
    size_t used = conn_feed(c, buf->base, (size_t)n);
    if (c->phase == SRV_CLOSING) return;
    buf_put(&c->in, buf->base + used, (size_t)n - used);
    if (buf_status(&c->in)) {
        srv_conn_lost(c);
        return;
    }
    if (c->in.len == SRV_READ_BYTES) {
        uv_read_stop(stream);
        c->reading = false;
    }
    conn_arm(c);
}

/* ---- time ---- */

static void on_timer(uv_timer_t *timer);

/* Sets the timer to the earliest of what this connection waits for. */
static void conn_arm(struct srv_conn *c)
{
    uint64_t now = uv_now(c->http->loop);
    uint64_t due = UINT64_MAX;
    if (c->phase == SRV_RECEIVE || c->phase == SRV_LINGER) due = c->deadline_ms;
    if (c->writing) {
        uint64_t look = now + c->http->config.write_timeout_ms / 4 + 1;
        if (look < due) due = look;
    }
    if (c->phase == SRV_RESPOND && !c->reading && !c->eof && now + SRV_HANGUP_POLL_MS < due)
        due = now + SRV_HANGUP_POLL_MS;
    if (due == UINT64_MAX) uv_timer_stop(&c->timer);
    else uv_timer_start(&c->timer, on_timer, due > now ? due - now : 0, 0);
}

/* Does the peer take none of what is queued for too long? */
static bool conn_is_stalled(struct srv_conn *c, uint64_t now)
{
    size_t left = uv_stream_get_write_queue_size((uv_stream_t *)&c->tcp);
    if (left < c->progress_left) {
        c->progress_left = left;
        c->progress_ms = now;
    }
    return now - c->progress_ms >= c->http->config.write_timeout_ms;
}

static bool conn_is_hung_up(struct srv_conn *c)
{
    uv_os_fd_t fd;
    if (uv_fileno((uv_handle_t *)&c->tcp, &fd)) return true;
    struct pollfd p = {.fd = fd, .events = POLLRDHUP};
    return poll(&p, 1, 0) > 0;
}

static void conn_on_deadline(struct srv_conn *c)
{
    if (c->phase == SRV_LINGER || !c->receiving) {
        srv_conn_lost(c);
        return;
    }
    c->http->stats.conn_timed_out++;
    conn_refuse(c, 408, "request_timeout", "The request took too long to arrive.");
}

static void on_timer(uv_timer_t *timer)
{
    struct srv_conn *c = timer->data;
    uint64_t now = uv_now(c->http->loop);
    bool timed = c->phase == SRV_RECEIVE || c->phase == SRV_LINGER;
    if (timed && now >= c->deadline_ms) conn_on_deadline(c);
    if (c->phase == SRV_CLOSING) return;
    if (c->writing && conn_is_stalled(c, now)) {
        c->http->stats.conn_stalled++;
        srv_conn_lost(c);
        return;
    }
    bool blind = c->phase == SRV_RESPOND && !c->reading && !c->eof;
    if (blind && conn_is_hung_up(c)) {
        conn_on_eof(c, true);
        if (c->phase == SRV_CLOSING) return;
    }
    conn_arm(c);
}

/* ---- opening ---- */

static void peer_name(struct srv_conn *c)
{
    struct sockaddr_storage address;
    int len = sizeof address;
    char ip[48] = "";
    snprintf(c->peer, sizeof c->peer, "unknown");
    if (uv_tcp_getpeername(&c->tcp, (struct sockaddr *)&address, &len)) return;
    if (address.ss_family == AF_INET6) {
        const struct sockaddr_in6 *a = (const struct sockaddr_in6 *)&address;
        uv_ip6_name(a, ip, sizeof ip);
        snprintf(c->peer, sizeof c->peer, "[%s]:%d", ip, ntohs(a->sin6_port));
    } else {
        const struct sockaddr_in *a = (const struct sockaddr_in *)&address;
        uv_ip4_name(a, ip, sizeof ip);
        snprintf(c->peer, sizeof c->peer, "%s:%d", ip, ntohs(a->sin_port));
    }
}

/* Tells a connection over conn_max to come back. */
static void conn_turn_away(struct srv_conn *c)
{
    static const char body[] =
        "{\"error\":{\"message\":\"The server has too many open connections. Try again later.\","
        "\"type\":\"unavailable_error\",\"param\":null,\"code\":\"too_many_connections\"}}";
    c->x.state = SRV_X_GONE;
    buf_printf(&c->out,
               "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
               "Content-Length: %zu\r\nRetry-After: %s\r\nConnection: close\r\n\r\n%s",
               sizeof body - 1, SRV_RETRY_AFTER_S, body);
    uv_buf_t all = uv_buf_init(c->out.data, (unsigned)c->out.len);
    int n = uv_try_write((uv_stream_t *)&c->tcp, &all, 1);
    if (n > 0) c->http->stats.bytes_out += (uint64_t)n;
    buf_clear(&c->out);
    conn_linger(c);
}

static struct srv_conn *conn_take_slot(struct srv_http *http)
{
    struct srv_conn *c = http->free_conns;
    if (!c) return NULL;
    http->free_conns = c->free_next;
    *c = (struct srv_conn){.http = http, .handles = 2, .phase = SRV_RECEIVE};
    http->conn_count++;
    uv_tcp_init(http->loop, &c->tcp);
    uv_timer_init(http->loop, &c->timer);
    c->tcp.data = c->timer.data = c;
    buf_init(&c->x.headers, SRV_HEADERS_EXTRA_MAX);
    buf_init(&c->in, SRV_READ_BYTES);
    buf_init(&c->out, SIZE_MAX / 2);
    buf_init(&c->sending, SIZE_MAX / 2);
    return c;
}

bool srv_conn_accept(struct srv_http *http, uv_stream_t *listener)
{
    struct srv_conn *c = conn_take_slot(http);
    if (!c) return false;
    c->refused = http->stats.conn_open >= (uint64_t)http->config.conn_max;
    if (c->refused) http->stats.conn_refused++;
    else http->stats.conn_accepted++, http->stats.conn_open++;
    struct srv_request_limits limits = {http->config.header_bytes_max,
                                        http->config.header_count_max, http->config.body_bytes_max};
    if (uv_accept(listener, (uv_stream_t *)&c->tcp) || srv_request_init(&c->request, &limits)) {
        conn_close(c);
        return true;
    }
    uv_tcp_nodelay(&c->tcp, 1);
    uv_tcp_keepalive(&c->tcp, 1, 60);
    peer_name(c);
    srv_x_init(&c->x, c);
    if (c->refused) {
        conn_turn_away(c);
        return true;
    }
    c->deadline_ms = uv_now(http->loop) + http->config.header_timeout_ms;
    conn_read_start(c);
    if (c->phase != SRV_CLOSING) conn_arm(c);
    return true;
}

bool srv_conn_is_idle(const struct srv_conn *c)
{
    return c->phase == SRV_RECEIVE && srv_request_is_idle(&c->request) && !srv_conn_queued(c);
}

void srv_conn_check(const struct srv_conn *c)
{
    const struct srv_http_config *config = &c->http->config;
    CHECK(c->in.len <= SRV_READ_BYTES);
    CHECK(c->phase != SRV_RECEIVE || c->in.len == 0);
    CHECK(c->phase == SRV_RESPOND || !srv_x_is_open(&c->x));
    CHECK(c->x.state != SRV_X_STREAM || srv_conn_queued(c) <= config->write_buffer_max);
    CHECK(c->request.head.len <= config->header_bytes_max);
    CHECK(c->request.body.len <= config->body_bytes_max);
    CHECK(c->phase == SRV_CLOSING || c->body_held == c->request.body.len ||
          c->x.state != SRV_X_NONE);
}
