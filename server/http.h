/*
 * http.h - the HTTP/1.1 transport: sockets, parsing, routing, responses.  It knows nothing of what
 * is served.
 *
 * One libuv loop thread owns everything here; every function of this header is called on it, every
 * callback runs on it.  All memory is bounded by the configuration: connections, head, body (each
 * and together), output queue.
 *
 * A request becomes an exchange once its head AND its whole body are there; the route's handler is
 * then called. The handler answers at once or keeps the pointer and answers later:
 *
 *                        srv_x_reply / srv_x_error
 *     handle(x) ──WAIT──────────────────────────────────────────────▶ gone
 *                  │ srv_x_stream_begin                                ▲
 *                  └──▶ STREAM ──srv_x_stream_write*──srv_x_stream_end─┤
 *     client leaves in WAIT or STREAM: on_closed(x) ───────────────────┘
 *
 * Invariants
 *  1. x is valid until the call that completes the response returns (srv_x_reply, srv_x_error,
 *     srv_x_stream_end, srv_x_stream_abort) or until on_closed returns: one of the two, once.
 *  2. No callback runs inside a srv_x_* call: sending happens at the end of the loop turn (many
 *     small writes become one), so failures of the socket arrive later, as on_closed.
 *  3. A handler that returns without having completed the response has set on_closed
 *     (srv_x_watch); this is checked.
 *  4. Strings returned by srv_x_* accessors live as long as x.
 */
#ifndef DAKD_SERVER_HTTP_H
#define DAKD_SERVER_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "config/buf.h"
#include "config/status.h"

/* Bytes that srv_x_stream_end_with can always take. */
#define SRV_STREAM_TAIL_MAX 4000
/* Bytes of the body of a complete response. */
#define SRV_REPLY_BYTES_MAX (1u << 30)

struct srv_http;
struct srv_exchange;

struct srv_route {
    const char *method; /* "GET" (also answers HEAD), "POST", ... */
    const char *path;   /* exact, or "/prefix/" and a star: any non-empty rest (srv_x_path_rest) */
    void (*handle)(struct srv_exchange *x, void *user);
};

struct srv_http_config {
    const char *host;        /* IPv4 or IPv6 address, "localhost" (both), or a name; not empty */
    int port;                /* 0: ephemeral, see srv_http_port */
    int backlog;             /* of listen() */
    int conn_max;            /* open connections; one more is answered 503 and closed */
    size_t header_bytes_max; /* request line and headers, >= 1024; over it 431, or 414 in the
                                request line */
    int header_count_max;    /* header lines, >= 8; over it 431 */
    size_t body_bytes_max;   /* one request body; over it 413 */
    size_t body_bytes_total_max; /* bodies held at one time by all connections; over it 503 */
    size_t write_buffer_max;     /* queued output of one stream, >= 32768 */
    uint64_t header_timeout_ms;  /* first to last byte of a head; over it 408 */
    uint64_t body_timeout_ms;    /* first to last byte of a body; over it 408 */
    uint64_t idle_timeout_ms;    /* between requests; closed silently */
    uint64_t write_timeout_ms;   /* output queued and the peer takes none of it; closed */
    /* Borrowed; "*" allows every origin; none: CORS is off. */
    const char *const *cors_origins;
    size_t cors_origin_count;
    bool access_log_info; /* access lines at level info instead of debug */
    /* May be NULL.  Called when a routed request's head is complete and before its body is read;
     * may refuse with srv_x_error (the place to check an API key).  Must not keep x. */
    void (*admit)(struct srv_exchange *x, void *user);
};

/* Values for every number above, host 127.0.0.1, port 8000. */
struct srv_http_config srv_http_config_default(void);

/* Binds the address: who connects before srv_http_listen is refused.  `config` is copied (strings
 * and the origin array borrowed for the server's life), `routes` is borrowed.  ST_INVALID
 * (configuration), ST_IO (resolve, bind; the sentence says what to do), ST_NOMEM.  After an error
 * the loop still has to run for the handles to close.  Ignores SIGPIPE where that is at its
 * default. */
MUST_USE enum status srv_http_open(uv_loop_t *loop, const struct srv_http_config *config,
                                   const struct srv_route *routes, size_t route_count, void *user,
                                   struct srv_http **out, char *err);
/* Begins to accept.  ST_IO: another program took the port meanwhile. */
MUST_USE enum status srv_http_listen(struct srv_http *http, char *err);
/* The port bound, also where the configuration said 0. */
int srv_http_port(const struct srv_http *http);
/* Graceful end: stops listening, closes idle connections, answers what is under way with
 * `Connection: close`.  done is called once, from the loop, when no connection is left.  The server
 * still has to be closed. */
void srv_http_drain(struct srv_http *http, void (*done)(void *arg), void *arg);
/* Hard end: closes every connection (on_closed is called for each unanswered exchange, before this
 * returns) and frees the server from the loop, then calls closed (may be NULL).  A pending drain's
 * done is not called any more. */
void srv_http_close(struct srv_http *http, void (*closed)(void *arg), void *arg);

/* Status classes of srv_http_route_stats: index status/100 - 1, and 499 apart. */
enum {
    SRV_CLASS_1XX,
    SRV_CLASS_2XX,
    SRV_CLASS_3XX,
    SRV_CLASS_4XX,
    SRV_CLASS_5XX,
    SRV_CLASS_499,
    SRV_CLASS_COUNT
};

struct srv_http_route_stats {
    uint64_t responses[SRV_CLASS_COUNT];
};

struct srv_http_stats {
    uint64_t conn_open;       /* gauge */
    uint64_t conn_accepted;   /* served or being served */
    uint64_t conn_refused;    /* over conn_max */
    uint64_t conn_timed_out;  /* slow head, slow body */
    uint64_t conn_stalled;    /* closed because the reader made no progress */
    uint64_t requests_active; /* gauge: handed to a handler and not complete */
    uint64_t bytes_in, bytes_out;
    uint64_t body_bytes_held; /* gauge, against body_bytes_total_max */
    size_t queue_bytes_peak;  /* largest output queue a stream has had */
    size_t route_count;
    /* [route_count + 1]; the last is for requests without a route, and malformed ones. */
    const struct srv_http_route_stats *routes;
};
/* Borrowed, live. */
const struct srv_http_stats *srv_http_stats(const struct srv_http *http);
const struct srv_route *srv_http_route(const struct srv_http *http, size_t idx);

/* ---- the request ---- */

const char *srv_x_method(const struct srv_exchange *x); /* "GET", "HEAD", "POST", ... */
const char *srv_x_path(const struct srv_exchange *x);   /* percent-decoded, valid UTF-8 */
/* What the route's star matched (slashes included), else "". */
const char *srv_x_path_rest(const struct srv_exchange *x);
/* First query parameter of that name, percent-decoded ('+' is a space); "" without '='; NULL where
 * absent. */
const char *srv_x_query(const struct srv_exchange *x, const char *name);
/* First header of that name, compared without case; NULL where absent. */
const char *srv_x_request_header(const struct srv_exchange *x, const char *name);
/* NUL-terminated (the NUL not counted); "" with *len 0 where there is none or it was released. */
const char *srv_x_body(const struct srv_exchange *x, size_t *len);
/* Frees the body before the response is complete. */
void srv_x_body_release(struct srv_exchange *x);
/* Gives the body, of at least one byte, to the caller (free()), who may keep it beyond x.  It
 * counts for body_bytes_total_max no more: take few at a time. */
char *srv_x_body_take(struct srv_exchange *x, size_t *len);
/* The client's X-Request-Id where it is 1..128 of [A-Za-z0-9._-], else a generated one.  For logs,
 * never a key. */
const char *srv_x_request_id(const struct srv_exchange *x);
const char *srv_x_peer(const struct srv_exchange *x); /* "127.0.0.1:40312", "[::1]:40312" */
/* Monotonic time at which the request was complete. */
uint64_t srv_x_arrival_ns(const struct srv_exchange *x);

/* ---- the response ---- */

/* Callbacks for an answer that comes later; both run only after the handler has returned.
 * on_closed: the client left, or the connection failed, before the response was complete; x is gone
 * after it, and no response function may be called in it.
 * on_drain (may be NULL): the queue fell below the low-water mark (a quarter of write_buffer_max)
 * after a stream write had said ST_FULL or ST_LIMIT. */
void srv_x_watch(struct srv_exchange *x, void (*on_closed)(struct srv_exchange *x, void *context),
                 void (*on_drain)(struct srv_exchange *x, void *context), void *context);
void *srv_x_context(const struct srv_exchange *x);

/* Adds a response header; before srv_x_reply, srv_x_error or srv_x_stream_begin.  CHECKs that name
 * is a token, that value has no control characters, and that all of them fit 4096 bytes: not for
 * text that came from a client. */
void srv_x_header(struct srv_exchange *x, const char *name, const char *value);

/* Complete responses.  body is copied, at most SRV_REPLY_BYTES_MAX of it (checked); content_type
 * may be NULL for an empty body.  status 200..599. */
void srv_x_reply(struct srv_exchange *x, int status, const char *content_type, const char *body,
                 size_t len);
/* {"error":{"message":...,"type":...,"param":...,"code":...}}; param and code may be NULL (null),
 * type NULL picks the usual one of the status.  The message is cut at 2047 bytes and may quote the
 * client.  A 429 or 503 carries `Retry-After: 1` unless srv_x_header set one. */
void srv_x_error(struct srv_exchange *x, int status, const char *type, const char *param,
                 const char *code, const char *fmt, ...) __attribute__((format(printf, 6, 7)));

/* Appends that object alone, for streams. */
void srv_x_put_error(struct buf *b, int status, const char *type, const char *param,
                     const char *code, const char *message);

/* Streams: chunked on HTTP/1.1, until close on HTTP/1.0. */
void srv_x_stream_begin(struct srv_exchange *x, int status, const char *content_type);
/* Queues all of bytes[0..len), or nothing.  ST_OK: queued.  ST_FULL: queued, and the queue is above
 * the high-water mark (half of write_buffer_max), so stop until on_drain.  ST_LIMIT: not queued, it
 * would pass write_buffer_max; wait for on_drain, which will come, or end the stream.  ST_INVALID:
 * not queued, len is over half of write_buffer_max, for which no on_drain makes room.  ST_NOMEM:
 * not queued. */
MUST_USE enum status srv_x_stream_write(struct srv_exchange *x, const void *bytes, size_t len);
/* The same with several pieces, which go out as one. */
MUST_USE enum status srv_x_stream_writev(struct srv_exchange *x, const uv_buf_t *pieces,
                                         size_t count);
void srv_x_stream_end(struct srv_exchange *x);
/* Ends the stream with last bytes, at most SRV_STREAM_TAIL_MAX, for which there is always room. */
void srv_x_stream_end_with(struct srv_exchange *x, const void *tail, size_t len);
/* Cuts the connection without ending the stream, so that the client sees a truncated response.
 * Completes x. */
void srv_x_stream_abort(struct srv_exchange *x);

#endif
