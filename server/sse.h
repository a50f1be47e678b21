/*
 * sse.h - server-sent events on a stream of http.h, in the form OpenAI clients read: `data: {json}`
 * and a blank line per event, `data: [DONE]` at the end, comment lines to keep proxies awake.  Loop
 * thread.
 */
#ifndef DAKD_SERVER_SSE_H
#define DAKD_SERVER_SSE_H

#include <stddef.h>

#include "config/status.h"
#include "server/http.h"

/* 200, text/event-stream, no caching, no proxy buffering.  srv_x_header may be called before it. */
void srv_sse_begin(struct srv_exchange *x);
/* One event.  json holds no line break (checked).  Statuses of srv_x_stream_write: all or nothing
 * is queued. */
MUST_USE enum status srv_sse_data(struct srv_exchange *x, const char *json, size_t len);
/* `: keep-alive`. */
MUST_USE enum status srv_sse_comment(struct srv_exchange *x);
/* `data: [DONE]`, and the end of the stream; x is gone.  There is always room for it. */
void srv_sse_done(struct srv_exchange *x);
/* What went wrong after the 200: one event with the error object, `data: [DONE]`, end; x is gone.
 * Always room.  code is a short constant or NULL; status picks the type as srv_x_error does. */
void srv_sse_fail(struct srv_exchange *x, int status, const char *code, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

#endif
