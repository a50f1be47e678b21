/*
 * http_response.c - the exchange as handlers see it: accessors, replies, errors, streams,
 * accounting.
 *
 * Everything here only appends to the connection's output and marks it dirty; the loop sends it at
 * the end of the turn (http_conn.c).  Out of memory for output cannot be answered, so it breaks the
 * connection at that point.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "config/check.h"
#include "config/clock.h"
#include "config/log.h"
#include "config/random.h"
#include "server/http_conn.h"

#define CHUNK_OVERHEAD 24 /* size in hex, three line ends, and the last chunk */

/* ---- identity and accounting ---- */

void srv_x_init(struct srv_exchange *x, struct srv_conn *c)
{
    struct buf headers = x->headers;
    *x = (struct srv_exchange){.conn = c, .headers = headers, .path_rest = ""};
    x->route_idx = c->http->route_count;
    buf_clear(&x->headers);
}

static bool id_is_plain(const char *id)
{
    size_t n = strspn(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-");
    return n > 0 && n <= SRV_REQUEST_ID_MAX && id[n] == '\0';
}

void srv_x_identify(struct srv_exchange *x)
{
    if (x->request_id[0]) return;
    const char *id = srv_http_request_header(&x->conn->request, "X-Request-Id");
    if (id && id_is_plain(id)) {
        snprintf(x->request_id, sizeof x->request_id, "%s", id);
        return;
    }
    /* Distinct ids, from a random start. */
    const uint64_t n = random_next(&x->conn->http->id_state);
    snprintf(x->request_id, sizeof x->request_id, "req-%016llx", (unsigned long long)n);
}

void srv_x_account(struct srv_exchange *x, int status)
{
    struct srv_conn *c = x->conn;
    struct srv_http *http = c->http;
    int class = status == 499 ? SRV_CLASS_499 : status / 100 - 1;
    CHECK(class >= 0 && class < SRV_CLASS_COUNT);
    http->route_stats[x->route_idx].responses[class]++;
    if (x->active) http->stats.requests_active--;
    x->active = false;
    enum log_level level = http->config.access_log_info ? LOG_INFO : LOG_DEBUG;
    if (!log_enabled(level)) return;
    const struct srv_http_request *r = &c->request;
    const char *target = r->target ? r->target : "-";
    double ms = (double)(clock_now_ns() - x->start_ns) / (double)NS_PER_MS;
    log_write(level, "http", "%s %.*s %d %llu bytes %.1f ms %s %s", r->method ? r->method : "-",
              (int)size_min(strcspn(target, "?"), 512), target, status,
              (unsigned long long)x->body_bytes, ms, x->request_id, c->peer);
}

/* ---- the request ---- */

const char *srv_x_method(const struct srv_exchange *x)
{
    return x->conn->request.method;
}

const char *srv_x_path(const struct srv_exchange *x)
{
    return x->conn->request.path;
}

const char *srv_x_path_rest(const struct srv_exchange *x)
{
    return x->path_rest;
}

const char *srv_x_query(const struct srv_exchange *x, const char *name)
{
    const struct srv_http_request *r = &x->conn->request;
    for (int i = 0; i < r->query_count; i++)
        if (strcmp(r->query[i].name, name) == 0) return r->query[i].value;
    return NULL;
}

const char *srv_x_request_header(const struct srv_exchange *x, const char *name)
{
    return srv_http_request_header(&x->conn->request, name);
}

const char *srv_x_body(const struct srv_exchange *x, size_t *len)
{
    const struct buf *body = &x->conn->request.body;
    *len = body->len;
    return body->len ? body->data : "";
}

void srv_x_body_release(struct srv_exchange *x)
{
    srv_conn_body_release(x->conn);
}

char *srv_x_body_take(struct srv_exchange *x, size_t *len)
{
    struct buf *body = &x->conn->request.body;
    char *data = body->data;
    CHECK(body->len > 0);
    *len = body->len;
    buf_init(body, body->max);
    srv_conn_body_release(x->conn);
    return data;
}

const char *srv_x_request_id(const struct srv_exchange *x)
{
    return x->request_id;
}

const char *srv_x_peer(const struct srv_exchange *x)
{
    return x->conn->peer;
}

uint64_t srv_x_arrival_ns(const struct srv_exchange *x)
{
    return x->arrival_ns;
}

void srv_x_watch(struct srv_exchange *x, void (*on_closed)(struct srv_exchange *x, void *context),
                 void (*on_drain)(struct srv_exchange *x, void *context), void *context)
{
    CHECK(srv_x_is_open(x) && on_closed);
    x->on_closed = on_closed;
    x->on_drain = on_drain;
    x->context = context;
}

void *srv_x_context(const struct srv_exchange *x)
{
    return x->context;
}

/* ---- the head of a response ---- */

static const char *reason(int status)
{
    switch (status) {
    case 200: return "OK";
    case 201: return "Created";
    case 202: return "Accepted";
    case 204: return "No Content";
    case 301: return "Moved Permanently";
    case 302: return "Found";
    case 304: return "Not Modified";
    case 307: return "Temporary Redirect";
    case 308: return "Permanent Redirect";
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 408: return "Request Timeout";
    case 409: return "Conflict";
    case 413: return "Content Too Large";
    case 414: return "URI Too Long";
    case 415: return "Unsupported Media Type";
    case 417: return "Expectation Failed";
    case 422: return "Unprocessable Content";
    case 429: return "Too Many Requests";
    case 431: return "Request Header Fields Too Large";
    case 500: return "Internal Server Error";
    case 501: return "Not Implemented";
    case 503: return "Service Unavailable";
    case 504: return "Gateway Timeout";
    case 505: return "HTTP Version Not Supported";
    default: return "Status";
    }
}

void srv_x_header(struct srv_exchange *x, const char *name, const char *value)
{
    CHECK(x->state == SRV_X_WAIT && *name);
    for (const char *p = name; *p; p++) CHECK(srv_gate_is_token((unsigned char)*p));
    for (const char *p = value; *p; p++) CHECK((unsigned char)*p >= 0x20 || *p == '\t');
    buf_printf(&x->headers, "%s: %s\r\n", name, value);
    CHECK(buf_status(&x->headers) != ST_LIMIT);
}

static void put_date(struct buf *out)
{
    char text[40];
    struct tm tm;
    time_t now = (time_t)clock_unix_s();
    gmtime_r(&now, &tm);
    strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", &tm);
    buf_printf(out, "Date: %s\r\n", text);
}

/* Writes status line and headers; content_len < 0: a stream.  The state moves on in the callers. */
static void put_head(struct srv_exchange *x, int status, const char *content_type,
                     long long content_len)
{
    CHECK(x->state == SRV_X_WAIT && status >= 200 && status <= 599);
    struct srv_conn *c = x->conn;
    const struct srv_http_request *r = &c->request;
    struct buf *out = &c->out;
    bool headless = status == 204 || status == 304; /* no content, and no length of it */
    x->status = status;
    x->bodyless = headless || (r->method && strcmp(r->method, "HEAD") == 0);
    x->chunked = content_len < 0 && !headless && !r->http_1_0;
    if (c->http->draining || (content_len < 0 && !headless && r->http_1_0)) x->close = true;
    buf_printf(out, "HTTP/1.1 %d %s\r\n", status, reason(status));
    put_date(out);
    if (content_type) buf_printf(out, "Content-Type: %s\r\n", content_type);
    if (x->chunked) buf_puts(out, "Transfer-Encoding: chunked\r\n");
    if (content_len >= 0 && !headless) buf_printf(out, "Content-Length: %lld\r\n", content_len);
    if (x->close) buf_puts(out, "Connection: close\r\n");
    else if (r->http_1_0) buf_puts(out, "Connection: keep-alive\r\n");
    buf_printf(out, "X-Request-Id: %s\r\n", x->request_id);
    srv_route_put_cors(x, out);
    buf_put(out, x->headers.data, x->headers.len);
    buf_puts(out, "\r\n");
    if (buf_status(&x->headers)) c->broken = true;
}

/* Takes note of what was appended and has it sent. */
static void output_added(struct srv_conn *c)
{
    if (buf_status(&c->out)) c->broken = true;
    srv_conn_mark_dirty(c);
}

/* ---- complete responses ---- */

void srv_x_reply(struct srv_exchange *x, int status, const char *content_type, const char *body,
                 size_t len)
{
    CHECK(len <= SRV_REPLY_BYTES_MAX);
    put_head(x, status, content_type, (long long)len);
    if (!x->bodyless) {
        buf_put(&x->conn->out, body, len);
        x->body_bytes = len;
    }
    x->state = SRV_X_ANSWERED;
    output_added(x->conn);
}

static const char *error_type(int status)
{
    switch (status) {
    case 401: return "authentication_error";
    case 403: return "permission_error";
    case 404: return "not_found_error";
    case 429: return "rate_limit_error";
    case 501: return "not_supported_error";
    case 503: return "unavailable_error";
    default: return status >= 500 ? "server_error" : "invalid_request_error";
    }
}

static void put_json_or_null(struct buf *b, const char *text)
{
    if (text) buf_put_json_string(b, text, strlen(text));
    else buf_puts(b, "null");
}

void srv_x_put_error(struct buf *b, int status, const char *type, const char *param,
                     const char *code, const char *message)
{
    buf_puts(b, "{\"error\":{\"message\":");
    put_json_or_null(b, message);
    buf_puts(b, ",\"type\":");
    put_json_or_null(b, type ? type : error_type(status));
    buf_puts(b, ",\"param\":");
    put_json_or_null(b, param);
    buf_puts(b, ",\"code\":");
    put_json_or_null(b, code);
    buf_puts(b, "}}");
}

void srv_x_error(struct srv_exchange *x, int status, const char *type, const char *param,
                 const char *code, const char *fmt, ...)
{
    char message[2048];
    va_list args;
    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    const char *set = x->headers.data ? x->headers.data : "";
    if ((status == 429 || status == 503) && !strcasestr(set, "Retry-After:"))
        srv_x_header(x, "Retry-After", SRV_RETRY_AFTER_S);
    struct buf body;
    buf_init(&body, 65536);
    srv_x_put_error(&body, status, type, param, code, message);
    if (buf_status(&body)) x->conn->broken = true;
    srv_x_reply(x, status, "application/json", body.data, body.len);
    buf_deinit(&body);
}

/* ---- streams ---- */

void srv_x_stream_begin(struct srv_exchange *x, int status, const char *content_type)
{
    put_head(x, status, content_type, -1);
    x->state = SRV_X_STREAM;
    output_added(x->conn);
}

static size_t pieces_len(const uv_buf_t *pieces, size_t count)
{
    size_t len = 0;
    for (size_t i = 0; i < count; i++) len += pieces[i].len;
    return len;
}

/* Queues the pieces as one chunk where they fit into `max` bytes of queue. */
static enum status stream_put(struct srv_exchange *x, const uv_buf_t *pieces, size_t count,
                              size_t max)
{
    CHECK(x->state == SRV_X_STREAM);
    struct srv_conn *c = x->conn;
    size_t len = pieces_len(pieces, count);
    if (len == 0 || x->bodyless || c->broken) return ST_OK; /* broken: on_closed is on its way */
    if (srv_conn_queued(c) + len + CHUNK_OVERHEAD > max) return ST_LIMIT;
    if (buf_reserve(&c->out, len + CHUNK_OVERHEAD)) {
        c->out.failed = ST_OK;
        return ST_NOMEM;
    }
    if (x->chunked) buf_printf(&c->out, "%zx\r\n", len);
    for (size_t i = 0; i < count; i++) buf_put(&c->out, pieces[i].base, pieces[i].len);
    if (x->chunked) buf_puts(&c->out, "\r\n");
    x->body_bytes += len;
    srv_conn_mark_dirty(c);
    struct srv_http_stats *stats = &c->http->stats;
    stats->queue_bytes_peak = size_max(stats->queue_bytes_peak, srv_conn_queued(c));
    return ST_OK;
}

enum status srv_x_stream_writev(struct srv_exchange *x, const uv_buf_t *pieces, size_t count)
{
    size_t max = x->conn->http->config.write_buffer_max;
    if (pieces_len(pieces, count) > max / 2) return ST_INVALID;
    enum status st = stream_put(x, pieces, count, max - SRV_STREAM_RESERVE);
    if (st == ST_OK && srv_conn_queued(x->conn) > max / 2) st = ST_FULL;
    /* ST_LIMIT means more than a quarter is queued, so the flush that lowers it is on its way. */
    if (st == ST_FULL || st == ST_LIMIT) x->throttled = true;
    return st;
}

enum status srv_x_stream_write(struct srv_exchange *x, const void *bytes, size_t len)
{
    uv_buf_t piece = {.base = (char *)(uintptr_t)bytes, .len = len};
    return srv_x_stream_writev(x, &piece, 1);
}

void srv_x_stream_end_with(struct srv_exchange *x, const void *tail, size_t len)
{
    CHECK(len <= SRV_STREAM_TAIL_MAX);
    struct srv_conn *c = x->conn;
    uv_buf_t piece = {.base = (char *)(uintptr_t)tail, .len = len};
    enum status st = stream_put(x, &piece, 1, c->http->config.write_buffer_max);
    CHECK(st != ST_LIMIT); /* there is a reserve */
    if (st) c->broken = true;
    if (x->chunked && !x->bodyless) buf_puts(&c->out, "0\r\n\r\n");
    x->state = SRV_X_ANSWERED;
    output_added(c);
}

void srv_x_stream_end(struct srv_exchange *x)
{
    srv_x_stream_end_with(x, "", 0);
}

void srv_x_stream_abort(struct srv_exchange *x)
{
    CHECK(x->state == SRV_X_STREAM);
    srv_x_account(x, 500);
    x->state = SRV_X_GONE;
    x->conn->broken = true;
    srv_conn_mark_dirty(x->conn);
}
