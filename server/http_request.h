/*
 * http_request.h - one HTTP/1.x request from bytes: head, target, headers, body.  Pure: no sockets,
 * no clock, so that tests and fuzzers drive what the daemon runs.
 *
 *     HEAD ──SRV_REQUEST_HEAD──▶ BODY ──(last chunk)──▶ TRAILERS ──┐
 *       │                         │                               ├──SRV_REQUEST_COMPLETE──▶ DONE
 *       └── no body ──────────────┴───────────────────────────────┘
 *     any ──SRV_REQUEST_REFUSED──▶ REFUSED
 *
 * Two parsers read every head: the gate (http_gate.h) checks the grammar, llhttp splits it and
 * frames the body.  Where they disagree the request is refused.  What neither covers is checked
 * here: Host, the combinations of Transfer-Encoding and Content-Length, the target.
 */
#ifndef DAKD_SERVER_HTTP_REQUEST_H
#define DAKD_SERVER_HTTP_REQUEST_H

#include <llhttp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/buf.h"
#include "config/status.h"
#include "server/http_gate.h"

#define SRV_QUERY_MAX 32 /* query parameters of one request */

struct srv_field {
    const char *name, *value; /* borrowed from the request's buffers */
};

struct srv_request_limits {
    size_t header_bytes_max;
    int header_count_max;
    size_t body_bytes_max;
};

enum srv_request_event {
    SRV_REQUEST_MORE,     /* all bytes taken, more are needed */
    SRV_REQUEST_HEAD,     /* the head is there and a body will follow: feed on */
    SRV_REQUEST_COMPLETE, /* the request is there; the bytes after it belong to the next one */
    SRV_REQUEST_REFUSED   /* see refused_*; the rest of the connection cannot be trusted */
};

struct srv_request {
    struct srv_request_limits limits;
    int state;
    struct srv_gate gate;
    llhttp_t parser;

    struct buf head;           /* the head as received, cut into C strings once parsed */
    struct buf text;           /* decoded path and query */
    struct srv_field *headers; /* owned, [limits.header_count_max] */
    int header_count;
    struct srv_field query[SRV_QUERY_MAX];
    int query_count;
    const char *method; /* static; NULL before the head is parsed */
    const char *target; /* as received; NULL before */
    const char *path;   /* decoded, or "*"; NULL before */
    bool http_1_0;
    bool keep_alive;
    bool has_body;        /* a body of at least one byte, or chunked */
    bool expect_continue; /* and its sender waits for 100 Continue */

    struct buf body;
    size_t body_wire_bytes; /* with chunk framing */
    bool complete;          /* llhttp has seen the end of the message */
    bool last_chunk;

    /* Spans of the field that llhttp is in. */
    bool head_seen;
    const char *target_span, *name_span, *value_span;
    size_t target_len, name_len, value_len;
    char *value_end; /* where the last value is still to be cut */

    int refused_status;
    const char *refused_code;
    const char *refusal; /* static sentence */
};

MUST_USE enum status srv_request_init(struct srv_request *r,
                                      const struct srv_request_limits *limits);
void srv_request_deinit(struct srv_request *r);
/* Ready for the next request; frees a large body. */
void srv_request_reset(struct srv_request *r);
/* Empties the body, and frees a large one. */
void srv_request_body_release(struct srv_request *r);
/* True until the first byte of a request. */
bool srv_request_is_idle(const struct srv_request *r);
/* Takes bytes from p[0..n), *used of them, until the next event. */
enum srv_request_event srv_request_feed(struct srv_request *r, const char *p, size_t n,
                                        size_t *used);
/* First header of that name, without case; NULL where absent. */
const char *srv_request_header(const struct srv_request *r, const char *name);

#endif
