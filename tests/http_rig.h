/*
 * http_rig.h - an HTTP server and its raw-socket clients on one loop and one thread, for tests of
 * server/http_*.c.
 *
 * rig_pump turns the loop without blocking and checks every connection's invariants each time, so a
 * test sees a broken one at the step that broke it.  Waits are bounded by RIG_PATIENCE_MS and fail
 * the test when they run out.
 */
#ifndef DAKD_TESTS_HTTP_RIG_H
#define DAKD_TESTS_HTTP_RIG_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "config/check.h"
#include "config/clock.h"
#include "server/http.h"
#include "server/http_conn.h"
#include "server/sse.h"

#define RIG_PATIENCE_MS 20000

struct rig {
    uv_loop_t loop;
    struct srv_http *http;
    struct srv_http_config config;
    /* what the handlers saw */
    struct srv_exchange *held;
    int handled, closed_count, drain_count, drained, gone;
    size_t stream_left, stream_piece; /* of /stream */
    bool stream_greedy;               /* writes on after ST_FULL, until ST_LIMIT */
    int limit_count, full_count;
};

struct reply {
    int status;
    char *head; /* owned, NUL-terminated, with the blank line */
    char *body; /* owned, decoded, NUL-terminated */
    size_t body_len;
    bool closed; /* the server shut its side */
};

/* ---- handlers ---- */

static inline void rig_on_closed(struct srv_exchange *x, void *context)
{
    struct rig *rig = context;
    CHECK(srv_x_context(x) == context && srv_x_request_id(x)[0]);
    rig->closed_count++;
    if (rig->held == x) rig->held = NULL;
}

static inline void rig_echo(struct srv_exchange *x, void *user)
{
    struct rig *rig = user;
    rig->handled++;
    size_t len;
    const char *body = srv_x_body(x, &len);
    if (strcmp(srv_x_method(x), "POST") == 0) {
        srv_x_reply(x, 200, "application/octet-stream", body, len);
        return;
    }
    char text[4096];
    const char *a = srv_x_query(x, "a");
    int n = snprintf(text, sizeof text, "%s|%s|%s|%s", srv_x_method(x), srv_x_path(x),
                     srv_x_path_rest(x), a ? a : "(none)");
    srv_x_reply(x, 200, "text/plain", text, (size_t)n);
}

static inline void rig_hold(struct srv_exchange *x, void *user)
{
    struct rig *rig = user;
    rig->handled++;
    rig->held = x;
    srv_x_watch(x, rig_on_closed, NULL, rig);
}

static inline void rig_stream_more(struct srv_exchange *x, void *context)
{
    struct rig *rig = context;
    static char piece[65536];
    memset(piece, 'x', sizeof piece);
    while (rig->stream_left) {
        enum status st =
            srv_x_stream_write(x, piece, size_min(rig->stream_piece, rig->stream_left));
        CHECK(st == ST_OK || st == ST_FULL || st == ST_LIMIT);
        CHECK(srv_conn_queued(x->conn) <= rig->config.write_buffer_max);
        if (st == ST_LIMIT) {
            rig->limit_count++;
            return;
        }
        rig->stream_left -= size_min(rig->stream_piece, rig->stream_left);
        if (st == ST_FULL) rig->full_count++;
        if (st == ST_FULL && !rig->stream_greedy) return;
    }
    srv_x_stream_end(x);
}

static inline void rig_on_drain(struct srv_exchange *x, void *context)
{
    struct rig *rig = context;
    rig->drain_count++;
    CHECK(srv_conn_queued(x->conn) <= rig->config.write_buffer_max / 4);
    rig_stream_more(x, context);
}

static inline void rig_stream(struct srv_exchange *x, void *user)
{
    struct rig *rig = user;
    rig->handled++;
    const char *n = srv_x_query(x, "n"), *piece = srv_x_query(x, "piece");
    /* Bounded: the fuzzer writes these numbers too. */
    rig->stream_left = size_min(n ? strtoul(n, NULL, 10) : 100, 1u << 26);
    rig->stream_piece = size_min(size_max(piece ? strtoul(piece, NULL, 10) : 10, 1), 32768);
    rig->stream_greedy = srv_x_query(x, "greedy") != NULL;
    srv_x_watch(x, rig_on_closed, rig_on_drain, rig);
    srv_x_stream_begin(x, 200, "text/plain");
    rig_stream_more(x, rig);
}

/* Begins a stream and leaves it open: the test writes to rig->held. */
static inline void rig_open_stream(struct srv_exchange *x, void *user)
{
    rig_hold(x, user);
    srv_sse_begin(x);
}

static inline void rig_big(struct srv_exchange *x, void *user)
{
    struct rig *rig = user;
    rig->handled++;
    const char *n = srv_x_query(x, "n");
    size_t len = size_min(n ? strtoul(n, NULL, 10) : 1, 1u << 26);
    char *body = malloc(len + 1);
    CHECK(body);
    memset(body, 'y', len);
    srv_x_reply(x, 200, "text/plain", body, len);
    free(body);
}

static const struct srv_route rig_routes[] = {
    {"GET", "/echo", rig_echo},       {"POST", "/echo", rig_echo}, {"GET", "/models/*", rig_echo},
    {"GET", "/hold", rig_hold},       {"POST", "/hold", rig_hold}, {"GET", "/stream", rig_stream},
    {"GET", "/sse", rig_open_stream}, {"GET", "/big", rig_big},
};

/* ---- the server ---- */

static inline struct srv_http_config rig_config(void)
{
    struct srv_http_config config = srv_http_config_default();
    config.port = 0;
    config.conn_max = 64;
    config.header_bytes_max = 8192;
    config.body_bytes_max = 1 << 20;
    config.body_bytes_total_max = 4 << 20;
    config.write_buffer_max = 65536;
    return config;
}

static inline void rig_open(struct rig *rig, const struct srv_http_config *config)
{
    char err[ERR_CAP] = "";
    *rig = (struct rig){.config = *config};
    CHECK(uv_loop_init(&rig->loop) == 0);
    enum status st = srv_http_open(&rig->loop, config, rig_routes, ARRAY_COUNT(rig_routes), rig,
                                   &rig->http, err);
    if (!st) st = srv_http_listen(rig->http, err);
    if (st) fprintf(stderr, "%s\n", err);
    CHECK(st == ST_OK);
}

static inline void rig_check(struct rig *rig)
{
    const struct srv_http_stats *stats = srv_http_stats(rig->http);
    uint64_t open = 0, held = 0;
    for (size_t i = 0; i < rig->http->slot_count; i++) {
        const struct srv_conn *c = &rig->http->conns[i];
        if (!c->http) continue;
        srv_conn_check(c);
        open += !c->refused;
        held += c->body_held;
    }
    CHECK(open == stats->conn_open && open <= (uint64_t)rig->config.conn_max);
    CHECK(held == stats->body_bytes_held);
    CHECK(held <= rig->config.body_bytes_total_max);
}

static inline void rig_pump(struct rig *rig)
{
    uv_run(&rig->loop, UV_RUN_NOWAIT);
    rig_check(rig);
}

/* Turns the loop for a while, or until *counter has reached the value. */
static inline bool rig_wait(struct rig *rig, const int *counter, int value, uint64_t ms)
{
    uint64_t end = clock_now_ns() + ms * NS_PER_MS;
    while (*counter < value && clock_now_ns() < end) {
        rig_pump(rig);
        usleep(200);
    }
    return *counter >= value;
}

static inline void rig_sleep(struct rig *rig, uint64_t ms)
{
    int never = 0;
    rig_wait(rig, &never, 1, ms);
}

static inline void rig_on_gone(void *arg)
{
    ((struct rig *)arg)->gone = 1;
}
static inline void rig_on_drained(void *arg)
{
    ((struct rig *)arg)->drained++;
}

static inline void rig_close(struct rig *rig)
{
    rig_check(rig);
    srv_http_close(rig->http, rig_on_gone, rig);
    while (uv_run(&rig->loop, UV_RUN_DEFAULT)) {
    }
    CHECK(rig->gone == 1);
    CHECK(uv_loop_close(&rig->loop) == 0);
}

/* ---- clients ---- */

static inline int rig_connect_buffered(struct rig *rig, int receive_bytes)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    CHECK(fd >= 0);
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)srv_http_port(rig->http))};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (receive_bytes) setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof receive_bytes);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    CHECK(connect(fd, (struct sockaddr *)&to, sizeof to) == 0 || errno == EINPROGRESS);
    rig_pump(rig);
    return fd;
}

static inline int rig_connect(struct rig *rig)
{
    return rig_connect_buffered(rig, 0);
}

/* Sends all of it; false where the server reset the connection. */
static inline bool rig_send(struct rig *rig, int fd, const char *p, size_t n)
{
    uint64_t end = clock_now_ns() + RIG_PATIENCE_MS * NS_PER_MS;
    while (n) {
        ssize_t k = send(fd, p, n, MSG_NOSIGNAL);
        if (k > 0) p += k, n -= (size_t)k;
        else if (errno != EAGAIN) return false;
        rig_pump(rig);
        CHECK(clock_now_ns() < end);
    }
    return true;
}

static inline bool rig_sends(struct rig *rig, int fd, const char *text)
{
    return rig_send(rig, fd, text, strlen(text));
}

/* One byte more into *b; false at the end of the stream or a reset. */
static inline bool rig_recv(struct rig *rig, int fd, struct buf *b, size_t most)
{
    uint64_t end = clock_now_ns() + RIG_PATIENCE_MS * NS_PER_MS;
    char piece[65536];
    for (;;) {
        rig_pump(rig);
        ssize_t k = recv(fd, piece, size_min(most, sizeof piece), MSG_DONTWAIT);
        if (k > 0) {
            buf_put(b, piece, (size_t)k);
            CHECK(buf_status(b) == ST_OK);
            return true;
        }
        if (k == 0 || errno != EAGAIN) return false;
        CHECK(clock_now_ns() < end);
        struct pollfd p = {.fd = fd, .events = POLLIN};
        poll(&p, 1, 1);
    }
}

static inline const char *reply_header(const struct reply *r, const char *name)
{
    static char value[1024];
    char key[80];
    snprintf(key, sizeof key, "\r\n%s: ", name);
    const char *at = strcasestr(r->head, key);
    if (!at) return NULL;
    at += strlen(key);
    snprintf(value, sizeof value, "%.*s", (int)strcspn(at, "\r"), at);
    return value;
}

static inline void reply_free(struct reply *r)
{
    free(r->head);
    free(r->body);
    *r = (struct reply){0};
}

/* Reads the n bytes after what is buffered, byte by byte, so that nothing of the next response is
 * taken. */
static inline bool rig_recv_exact(struct rig *rig, int fd, struct buf *b, size_t n)
{
    for (size_t want = b->len + n; b->len < want;)
        if (!rig_recv(rig, fd, b, want - b->len)) return false;
    return true;
}

static inline bool rig_recv_line(struct rig *rig, int fd, struct buf *b, const char *end)
{
    size_t n = strlen(end);
    do {
        if (!rig_recv(rig, fd, b, 1)) return false;
    } while (b->len < n || memcmp(b->data + b->len - n, end, n) != 0);
    return true;
}

/* Reads one response, skipping 100 Continue.  status 0 where the connection ended instead. */
static inline struct reply rig_reply(struct rig *rig, int fd, bool head_only)
{
    struct reply r = {0};
    struct buf head, body, line;
    buf_init(&head, 1 << 20);
    buf_init(&body, 64 << 20);
    buf_init(&line, 4096);
    do {
        buf_clear(&head);
        if (!rig_recv_line(rig, fd, &head, "\r\n\r\n")) {
            r.closed = true;
            break;
        }
        CHECK(sscanf(head.data, "HTTP/1.1 %d ", &r.status) == 1);
    } while (r.status == 100);
    r.head = strdup(head.data ? head.data : "");
    CHECK(r.head);
    const char *length = reply_header(&r, "Content-Length");
    if (r.closed || head_only || r.status == 204) {
    } else if (length) {
        r.closed = !rig_recv_exact(rig, fd, &body, strtoul(length, NULL, 10));
    } else if (reply_header(&r, "Transfer-Encoding")) {
        for (;;) {
            buf_clear(&line);
            if ((r.closed = !rig_recv_line(rig, fd, &line, "\r\n"))) break;
            size_t n = strtoul(line.data, NULL, 16), before = body.len;
            if ((r.closed = !rig_recv_exact(rig, fd, &body, n + 2))) break;
            CHECK(memcmp(body.data + before + n, "\r\n", 2) == 0);
            body.len -= 2;
            if (n == 0) break;
        }
    } else {
        while (rig_recv(rig, fd, &body, SIZE_MAX)) {
        }
        r.closed = true;
    }
    buf_put(&body, "", 0);
    r.body_len = body.len;
    r.body = body.data;
    if (r.body) r.body[r.body_len] = '\0';
    buf_deinit(&head);
    buf_deinit(&line);
    return r;
}

/* Sends a whole request on a new connection and reads the response. */
static inline struct reply rig_ask(struct rig *rig, const char *request)
{
    int fd = rig_connect(rig);
    rig_sends(rig, fd, request);
    struct reply r = rig_reply(rig, fd, strncmp(request, "HEAD", 4) == 0);
    close(fd);
    return r;
}

/* The same, checking status and, from 400, the error body; a mismatch aborts. */
static inline void rig_expect(struct rig *rig, const char *request, int status)
{
    struct reply r = rig_ask(rig, request);
    if (r.status != status) fprintf(stderr, "%d, not %d, for: %s\n", r.status, status, request);
    CHECK(r.status == status);
    if (status >= 400) {
        CHECK(strstr(r.body, "{\"error\":{\"message\":\"") && strstr(r.body, "\"param\":null"));
        CHECK(strcmp(reply_header(&r, "Content-Type"), "application/json") == 0);
    }
    reply_free(&r);
}

/* True where the server ends the connection without another byte. */
static inline bool rig_ends(struct rig *rig, int fd)
{
    struct buf b;
    buf_init(&b, 1 << 20);
    bool more = rig_recv(rig, fd, &b, 1);
    buf_deinit(&b);
    return !more;
}

#endif
