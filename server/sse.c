/* sse.c - see sse.h.  Every event is one chunk, so it is queued whole or not at all. */
#include "server/sse.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "config/buf.h"
#include "config/check.h"

static const char done_event[] = "data: [DONE]\n\n";

void srv_sse_begin(struct srv_exchange *x)
{
    srv_x_header(x, "Cache-Control", "no-cache");
    srv_x_header(x, "X-Accel-Buffering", "no");
    srv_x_stream_begin(x, 200, "text/event-stream; charset=utf-8");
}

enum status srv_sse_data(struct srv_exchange *x, const char *json, size_t len)
{
    CHECK(!memchr(json, '\n', len) && !memchr(json, '\r', len));
    char prefix[] = "data: ", end[] = "\n\n";
    uv_buf_t pieces[] = {{.base = prefix, .len = sizeof prefix - 1},
                         {.base = (char *)(uintptr_t)json, .len = len},
                         {.base = end, .len = sizeof end - 1}};
    return srv_x_stream_writev(x, pieces, ARRAY_COUNT(pieces));
}

enum status srv_sse_comment(struct srv_exchange *x)
{
    static const char text[] = ": keep-alive\n\n";
    return srv_x_stream_write(x, text, sizeof text - 1);
}

void srv_sse_done(struct srv_exchange *x)
{
    srv_x_stream_end_with(x, done_event, sizeof done_event - 1);
}

void srv_sse_fail(struct srv_exchange *x, int status, const char *code, const char *fmt, ...)
{
    char message[ERR_CAP];
    va_list args;
    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    struct buf tail;
    buf_init(&tail, SRV_STREAM_TAIL_MAX);
    buf_puts(&tail, "data: ");
    srv_x_put_error(&tail, status, NULL, NULL, code, message);
    buf_puts(&tail, "\n\n");
    buf_puts(&tail, done_event);
    if (buf_status(&tail)) srv_x_stream_abort(x); /* no memory: the client sees a cut stream */
    else srv_x_stream_end_with(x, tail.data, tail.len);
    buf_deinit(&tail);
}
