/*
 * http_conn.h - what the files of the HTTP transport share: server, connection, exchange.  Included
 * by server/http_*.c and their tests alone; the public interface is http.h.
 *
 * A connection is in one phase:
 *
 *     RECEIVE ──request complete or refused──▶ RESPOND ──response flushed, keep-alive──▶ RECEIVE
 *        │ idle, EOF                              │ response flushed, to be closed
 *        ▼                                        ▼
 *     CLOSING ◀──EOF, time, socket error─────── LINGER
 *
 * In LINGER the write side is shut and input is discarded, so that the peer can read the response
 * before a reset could take it away.  The exchange, within RESPOND, is in one state:
 *
 *     NONE ──conn_deliver──▶ WAIT ──srv_x_stream_begin──▶ STREAM
 *                             │ reply, error                │ stream_end
 *                             └────────▶ ANSWERED ◀─────────┘
 *     WAIT, STREAM ──srv_conn_lost──▶ GONE (on_closed is called)
 *
 * ANSWERED may still have bytes queued; conn_finish makes it NONE when they are with the kernel.
 *
 * Output is appended to `out`.  Once per loop turn the idle handle flushes every connection that
 * has new output: one write tries at once, what the kernel does not take becomes `sending`, owned
 * by one uv_write.  So at most out.len + sending.len bytes are queued, and streams keep that sum
 * within write_buffer_max.
 */
#ifndef DAKD_SERVER_HTTP_CONN_H
#define DAKD_SERVER_HTTP_CONN_H

#include "config/buf.h"
#include "server/http.h"
#include "server/http_request.h"

#define SRV_LISTENER_MAX 4
#define SRV_READ_BYTES 32768    /* one read, and what is kept of input that comes before its turn */
#define SRV_LINGER_MS 2000      /* how long a closed connection may still be read */
#define SRV_HANGUP_POLL_MS 200  /* looking for a hangup while reading is stopped */
#define SRV_REFUSED_MAX 32      /* connections over conn_max that are being told so */
#define SRV_STREAM_RESERVE 4096 /* of write_buffer_max, kept for the end of a stream */
#define SRV_REQUEST_ID_MAX 128
#define SRV_HEADERS_EXTRA_MAX 4096
#define SRV_RETRY_AFTER_S "1"

enum srv_phase { SRV_RECEIVE, SRV_RESPOND, SRV_LINGER, SRV_CLOSING };
enum srv_exchange_state { SRV_X_NONE, SRV_X_WAIT, SRV_X_STREAM, SRV_X_ANSWERED, SRV_X_GONE };

struct srv_exchange {
    struct srv_conn *conn;
    enum srv_exchange_state state;
    size_t route_idx; /* route_count where there is none */
    const char *path_rest;
    char request_id[SRV_REQUEST_ID_MAX + 1];
    uint64_t start_ns, arrival_ns; /* first byte; complete */
    bool active;                   /* handed to a handler, counted in requests_active */
    void (*on_closed)(struct srv_exchange *, void *);
    void (*on_drain)(struct srv_exchange *, void *);
    void *context;

    struct buf headers; /* extra response headers, "Name: value\r\n" each */
    int status;         /* 0 before the response has begun */
    bool close;         /* the connection ends with this response */
    bool bodyless;      /* HEAD, or a status without a body */
    bool chunked;
    bool throttled;      /* ST_FULL was said and on_drain is due */
    uint64_t body_bytes; /* of the response */
};

struct srv_conn {
    struct srv_http *http;
    struct srv_conn *free_next; /* among the slots not in use, which have http NULL */
    struct srv_conn *dirty_prev, *dirty_next;
    bool dirty;
    bool refused; /* over conn_max: not counted as open */
    bool broken;  /* output was lost: close at the next flush */
    bool eof;     /* the peer has shut its side */
    bool reading;
    bool writing; /* write_req is under way with `sending` */
    enum srv_phase phase;
    uv_tcp_t tcp;
    uv_timer_t timer;
    int handles; /* of the two above, not yet closed */
    uv_write_t write_req;
    struct srv_request request;
    struct srv_exchange x;
    size_t body_held;        /* of the request body, counted in stats.body_bytes_held */
    struct buf in;           /* input that came before its turn */
    struct buf out, sending; /* see the essay */
    size_t sending_off;      /* bytes of sending that went before uv_write */
    uint64_t deadline_ms;    /* of RECEIVE and LINGER, on uv_now */
    bool receiving;          /* the deadline is that of a request under way */
    size_t progress_left;    /* bytes left in the kernel queue at the last look */
    uint64_t progress_ms;    /* when that number last fell */
    char peer[64];
};

struct srv_http {
    uv_loop_t *loop;
    struct srv_http_config config;
    const struct srv_route *routes; /* borrowed */
    size_t route_count;
    void *user;
    uv_tcp_t listeners[SRV_LISTENER_MAX];
    int listener_count;
    bool listener_waits[SRV_LISTENER_MAX]; /* has a connection for which there is no slot yet */
    int listener_open;                     /* not yet closed */
    int port;
    uv_idle_t flusher;
    bool flusher_open;
    struct srv_conn *conns; /* owned, [slot_count]: conn_max and those being turned away */
    size_t slot_count;
    size_t conn_count; /* slots in use */
    struct srv_conn *free_conns, *dirty_first, *dirty_last;
    bool draining, closing;
    void (*drained)(void *);
    void *drained_arg;
    void (*closed)(void *);
    void *closed_arg;
    uint64_t id_state; /* of the request id generator */
    struct srv_http_stats stats;
    struct srv_http_route_stats *route_stats; /* owned, [route_count + 1] */
    char read_buffer[SRV_READ_BYTES];
};

/* http_server.c */
/* Called when a connection's memory is gone: ends a drain or a close that waited for it. */
void srv_http_conn_gone(struct srv_http *http);

/* http_conn.c */
/* Takes the pending connection of the listener; false where there is no slot: try again when one is
 * free. */
MUST_USE bool srv_conn_accept(struct srv_http *http, uv_stream_t *listener);
/* Frees the request's body and gives its share of body_bytes_total_max back. */
void srv_conn_body_release(struct srv_conn *c);
/* Output was appended: flush at the end of the loop turn. */
void srv_conn_mark_dirty(struct srv_conn *c);
/* The peer is gone or must go: tells the exchange, closes. */
void srv_conn_lost(struct srv_conn *c);
/* Bytes queued and not taken by the kernel. */
size_t srv_conn_queued(const struct srv_conn *c);
/* True between requests, with no byte of the next one. */
bool srv_conn_is_idle(const struct srv_conn *c);
/* Aborts on a broken invariant; for tests. */
void srv_conn_check(const struct srv_conn *c);

/* http_route.c */
/* Finds the route of x's request: x->route_idx (route_count where there is none), x->path_rest. */
void srv_route_find(struct srv_exchange *x);
/* Answers a request without a route: OPTIONS, 404, 405. */
void srv_route_refuse(struct srv_exchange *x);
/* CORS headers of any response. */
void srv_route_put_cors(struct srv_exchange *x, struct buf *out);

/* http_response.c */
void srv_x_init(struct srv_exchange *x, struct srv_conn *c);
/* Fixes the request id from the head, or makes one. */
void srv_x_identify(struct srv_exchange *x);
/* Access log and counters, once per exchange; status 499 for a client that left. */
void srv_x_account(struct srv_exchange *x, int status);
/* Is a response under way or wanted by a handler? */
static inline bool srv_x_is_open(const struct srv_exchange *x)
{
    return x->state == SRV_X_WAIT || x->state == SRV_X_STREAM;
}

#endif
