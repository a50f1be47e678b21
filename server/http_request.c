/*
 * http_request.c - see http_request.h for the states.
 *
 * The head is collected whole before llhttp runs, so every span callback lies in one buffer and the
 * fields are cut in place: no copies, no reassembly, and a request split at any byte takes the same
 * path as one that came at once. Every message gets a freshly initialised llhttp, which leaves
 * nothing of one request to the next.
 */
#include "server/http_request.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "config/check.h"
#include "config/utf8.h"

enum { HEAD, BODY, TRAILERS, DONE, REFUSED };

#define BODY_KEEP_BYTES 16384 /* a larger body buffer is freed between requests */

static enum srv_request_event refuse(struct srv_request *r, int status, const char *code,
                                     const char *sentence)
{
    r->state = REFUSED;
    r->refused_status = status;
    r->refused_code = code;
    r->refusal = sentence;
    return SRV_REQUEST_REFUSED;
}

static enum srv_request_event malformed(struct srv_request *r, const char *sentence)
{
    return refuse(r, 400, "malformed_request", sentence);
}

/* ---- llhttp callbacks ---- */

/* Extends a span; llhttp may report one span in pieces, which must touch. */
static int span_extend(const char **span, size_t *span_len, const char *at, size_t len)
{
    if (!*span) *span = at;
    if (*span + *span_len != at) return HPE_USER;
    *span_len += len;
    return 0;
}

static int on_url(llhttp_t *p, const char *at, size_t len)
{
    struct srv_request *r = p->data;
    return span_extend(&r->target_span, &r->target_len, at, len);
}

static int on_header_field(llhttp_t *p, const char *at, size_t len)
{
    struct srv_request *r = p->data;
    if (r->last_chunk) return 0; /* trailers are checked by the gate and dropped */
    return span_extend(&r->name_span, &r->name_len, at, len);
}

static int on_header_value(llhttp_t *p, const char *at, size_t len)
{
    struct srv_request *r = p->data;
    if (r->last_chunk) return 0;
    return span_extend(&r->value_span, &r->value_len, at, len);
}

static char *head_at(struct srv_request *r, const char *p)
{
    return r->head.data + (p - r->head.data);
}

/* Ends the value whose last byte llhttp may still have had to look past when it was reported. */
static void cut_value(struct srv_request *r)
{
    if (r->value_end) *r->value_end = '\0';
    r->value_end = NULL;
}

static int on_header_value_complete(llhttp_t *p)
{
    struct srv_request *r = p->data;
    if (r->last_chunk) return 0;
    if (!r->name_span || r->header_count == r->limits.header_count_max) return HPE_USER;
    cut_value(r);
    struct srv_field *f = &r->headers[r->header_count++];
    f->name = r->name_span;
    *head_at(r, r->name_span + r->name_len) = '\0'; /* over the colon */
    /* llhttp looks past the line end for a fold, so the place of an empty span lies in the next
     * line: not to be cut. */
    f->value = "";
    if (r->value_len) {
        const char *end = r->value_span + r->value_len;
        f->value = r->value_span;
        while (f->value < end && (*f->value == ' ' || *f->value == '\t')) f->value++;
        while (end > f->value && (end[-1] == ' ' || end[-1] == '\t')) end--;
        r->value_end = head_at(r, end);
    }
    r->name_span = r->value_span = NULL;
    r->name_len = r->value_len = 0;
    return 0;
}

static int on_headers_complete(llhttp_t *p)
{
    struct srv_request *r = p->data;
    r->head_seen = true;
    return HPE_PAUSED; /* head_check decides, outside llhttp */
}

static int on_chunk_header(llhttp_t *p)
{
    struct srv_request *r = p->data;
    if (p->content_length > r->limits.body_bytes_max - r->body.len) {
        refuse(r, 413, "payload_too_large", "The request body is over the configured limit.");
        return HPE_USER;
    }
    r->last_chunk = p->content_length == 0;
    return r->last_chunk ? HPE_PAUSED : 0;
}

static int on_body(llhttp_t *p, const char *at, size_t len)
{
    struct srv_request *r = p->data;
    if (len > r->limits.body_bytes_max - r->body.len) {
        refuse(r, 413, "payload_too_large", "The request body is over the configured limit.");
        return HPE_USER;
    }
    buf_put(&r->body, at, len);
    if (!buf_status(&r->body)) return 0;
    refuse(r, 503, "out_of_memory", "There is no memory for the request body. Try again later.");
    return HPE_USER;
}

static int on_message_complete(llhttp_t *p)
{
    struct srv_request *r = p->data;
    r->complete = true;
    return HPE_PAUSED;
}

static const llhttp_settings_t settings = {
    .on_url = on_url,
    .on_header_field = on_header_field,
    .on_header_value = on_header_value,
    .on_header_value_complete = on_header_value_complete,
    .on_headers_complete = on_headers_complete,
    .on_chunk_header = on_chunk_header,
    .on_body = on_body,
    .on_message_complete = on_message_complete,
};

/* ---- the target ---- */

static int hex_value(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* Percent-decodes src[0..len) to the end of r->text (room was reserved, so earlier results stay in
 * place).  NULL where an escape is cut or not hex, or the result has a NUL, a control character (in
 * a path) or invalid UTF-8. */
static const char *decode(struct srv_request *r, const char *src, size_t len, bool is_query)
{
    size_t start = r->text.len;
    for (size_t i = 0; i < len; i++) {
        char c = src[i];
        if (c == '+' && is_query) c = ' ';
        if (c == '%') {
            if (len - i < 3) return NULL;
            int hi = hex_value(src[i + 1]), lo = hex_value(src[i + 2]);
            if (hi < 0 || lo < 0) return NULL;
            c = (char)(hi << 4 | lo);
            if (!c || (!is_query && ((unsigned char)c < 0x20 || c == 0x7F))) return NULL;
            i += 2;
        }
        buf_putc(&r->text, c);
    }
    size_t n = r->text.len - start;
    buf_putc(&r->text, '\0');
    const char *out = r->text.data + start;
    return utf8_valid_prefix(out, n) == n ? out : NULL;
}

static bool decode_query(struct srv_request *r, const char *q, const char *end)
{
    while (q < end) {
        const char *amp = memchr(q, '&', (size_t)(end - q));
        const char *stop = amp ? amp : end;
        const char *eq = memchr(q, '=', (size_t)(stop - q));
        const char *name_end = eq ? eq : stop;
        if (stop > q) {
            if (r->query_count == SRV_QUERY_MAX) return false;
            struct srv_field *f = &r->query[r->query_count++];
            f->name = decode(r, q, (size_t)(name_end - q), true);
            f->value = eq ? decode(r, eq + 1, (size_t)(stop - eq - 1), true) : "";
            if (!f->name || !f->value) return false;
        }
        q = stop + 1;
    }
    return true;
}

/* Length of the "http://authority" before the path of an absolute-form target; 0 where it is none.
 */
static size_t absolute_prefix(const char *target)
{
    size_t scheme = strncasecmp(target, "http://", 7) == 0 ? 7 : 0;
    if (strncasecmp(target, "https://", 8) == 0) scheme = 8;
    if (!scheme) return 0;
    size_t authority = strcspn(target + scheme, "/?#");
    return authority ? scheme + authority : 0;
}

static enum srv_request_event target_parse(struct srv_request *r)
{
    const char *t = r->target;
    if (strchr(t, '#')) return malformed(r, "The request target has a fragment.");
    if (strcmp(t, "*") == 0) {
        if (strcmp(r->method, "OPTIONS") != 0)
            return malformed(r, "The target \"*\" belongs to OPTIONS alone.");
        r->path = "*";
        return SRV_REQUEST_MORE;
    }
    if (t[0] != '/') {
        size_t prefix = absolute_prefix(t);
        if (!prefix || memchr(t, '@', prefix))
            return malformed(r, "The request target is neither a path nor an http URL.");
        t += prefix;
    }
    size_t path_len = strcspn(t, "?");
    buf_clear(&r->text);
    if (buf_reserve(&r->text, strlen(t) + 2 * SRV_QUERY_MAX + 2))
        return refuse(r, 503, "out_of_memory", "There is no memory for the request.");
    r->path = path_len ? decode(r, t, path_len, false) : "/";
    if (!r->path) return malformed(r, "The path is not valid percent-encoded UTF-8.");
    const char *q = t + path_len;
    if (*q == '?' && !decode_query(r, q + 1, q + strlen(q)))
        return malformed(
            r, "The query is not valid percent-encoded UTF-8, or has too many parameters.");
    return SRV_REQUEST_MORE;
}

/* ---- the head ---- */

const char *srv_request_header(const struct srv_request *r, const char *name)
{
    for (int i = 0; i < r->header_count; i++)
        if (strcasecmp(r->headers[i].name, name) == 0) return r->headers[i].value;
    return NULL;
}

static int header_count(const struct srv_request *r, const char *name)
{
    int count = 0;
    for (int i = 0; i < r->header_count; i++) count += strcasecmp(r->headers[i].name, name) == 0;
    return count;
}

static bool host_is_valid(const char *host)
{
    for (; *host; host++) {
        unsigned char c = (unsigned char)*host;
        bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        if (!plain && !strchr("-._~!$&'()*+;=%:[]", c)) return false;
    }
    return true;
}

static enum srv_request_event check_host(struct srv_request *r)
{
    int hosts = header_count(r, "Host");
    if (hosts > 1) return malformed(r, "The request has several Host headers.");
    if (hosts == 0 && !r->http_1_0) return malformed(r, "An HTTP/1.1 request needs a Host header.");
    if (hosts == 1 && !host_is_valid(srv_request_header(r, "Host")))
        return malformed(r, "The Host header is not a host and port.");
    return SRV_REQUEST_MORE;
}

/* What frames the body must be there once, in one way, and understood. */
static enum srv_request_event check_framing(struct srv_request *r)
{
    int lengths = header_count(r, "Content-Length");
    int codings = header_count(r, "Transfer-Encoding");
    if (lengths > 1) return malformed(r, "The request has several Content-Length headers.");
    if (codings > 1) return malformed(r, "The request has several Transfer-Encoding headers.");
    if (lengths && codings)
        return malformed(r, "The request has both Content-Length and Transfer-Encoding.");
    if (codings && r->http_1_0)
        return malformed(r, "Transfer-Encoding does not belong in an HTTP/1.0 request.");
    const char *length = lengths ? srv_request_header(r, "Content-Length") : "0";
    if (!*length || length[strspn(length, "0123456789")])
        return malformed(r, "The Content-Length is not a number.");
    const char *coding = codings ? srv_request_header(r, "Transfer-Encoding") : "chunked";
    if (strcasecmp(coding, "chunked") != 0)
        return refuse(r, 501, "unknown_transfer_coding",
                      "The one transfer coding this server understands is \"chunked\".");
    const char *encoding = srv_request_header(r, "Content-Encoding");
    if (encoding && strcasecmp(encoding, "identity") != 0)
        return refuse(r, 415, "unsupported_content_encoding",
                      "Compressed request bodies are not supported. Send the body as it is.");
    r->has_body = codings || r->parser.content_length > 0;
    if (r->parser.content_length > r->limits.body_bytes_max)
        return refuse(r, 413, "payload_too_large",
                      "The request body is over the configured limit.");
    return SRV_REQUEST_MORE;
}

static enum srv_request_event check_expect(struct srv_request *r)
{
    const char *expect = r->http_1_0 ? NULL : srv_request_header(r, "Expect");
    if (!expect) return SRV_REQUEST_MORE;
    if (header_count(r, "Expect") > 1 || strcasecmp(expect, "100-continue") != 0)
        return refuse(r, 417, "expectation_failed",
                      "The one expectation this server meets is \"100-continue\".");
    r->expect_continue = r->has_body;
    return SRV_REQUEST_MORE;
}

static enum srv_request_event head_refused(struct srv_request *r, llhttp_errno_t error)
{
    r->header_count = 0; /* cut or not: nothing of a head that did not parse is used */
    switch (error) {
    case HPE_INVALID_METHOD:
        return refuse(r, 501, "unknown_method", "The request method is not known to this server.");
    case HPE_INVALID_VERSION:
    case HPE_PAUSED_H2_UPGRADE:
        return refuse(r, 505, "http_version_not_supported",
                      "This server speaks HTTP/1.1 and HTTP/1.0.");
    case HPE_INVALID_URL: return malformed(r, "The request target is not valid.");
    case HPE_INVALID_CONTENT_LENGTH:
    case HPE_UNEXPECTED_CONTENT_LENGTH:
        return malformed(r, "The Content-Length is not one number of reasonable size.");
    case HPE_INVALID_TRANSFER_ENCODING:
        return malformed(r, "The Transfer-Encoding does not end in \"chunked\".");
    default: return malformed(r, "The request head is malformed.");
    }
}

/* Splits the head with llhttp, then makes the checks that are ours. */
static enum srv_request_event head_parse(struct srv_request *r)
{
    llhttp_init(&r->parser, HTTP_REQUEST, &settings);
    r->parser.data = r;
    llhttp_errno_t e = llhttp_execute(&r->parser, r->head.data, r->head.len);
    if (e != HPE_PAUSED || !r->head_seen || !r->target_span) return head_refused(r, e);
    cut_value(r);
    r->target = r->target_span;
    *head_at(r, r->target + r->target_len) = '\0'; /* over the space */
    r->method = llhttp_method_name((llhttp_method_t)r->parser.method);
    r->http_1_0 = r->parser.http_minor == 0;
    r->keep_alive = llhttp_should_keep_alive(&r->parser);
    if (r->parser.method == HTTP_CONNECT)
        return refuse(r, 405, "method_not_allowed", "CONNECT is refused: this is not a proxy.");
    enum srv_request_event event = check_host(r);
    if (event == SRV_REQUEST_MORE) event = check_framing(r);
    if (event == SRV_REQUEST_MORE) event = check_expect(r);
    if (event == SRV_REQUEST_MORE) event = target_parse(r);
    if (event != SRV_REQUEST_MORE) return event;
    if (!r->has_body) {
        r->state = DONE;
        return SRV_REQUEST_COMPLETE;
    }
    r->parser.upgrade = 0; /* an Upgrade is an offer; this server stays with HTTP/1.1 */
    llhttp_resume(&r->parser);
    r->state = BODY;
    return SRV_REQUEST_HEAD;
}

static enum srv_request_event head_feed(struct srv_request *r, const char *p, size_t n,
                                        size_t *used)
{
    enum srv_gate_verdict verdict;
    *used = srv_gate_run(&r->gate, p, n, &verdict);
    if (verdict == SRV_GATE_REFUSED) {
        int status = r->gate.refused_status;
        const char *code = status == 414   ? "uri_too_long"
                           : status == 431 ? "headers_too_large"
                           : status == 505 ? "http_version_not_supported"
                                           : "malformed_request";
        return refuse(r, status, code, r->gate.refusal);
    }
    buf_put(&r->head, p, *used);
    if (buf_status(&r->head))
        return refuse(r, 503, "out_of_memory", "There is no memory for the request head.");
    return verdict == SRV_GATE_MORE ? SRV_REQUEST_MORE : head_parse(r);
}

/* ---- the body ---- */

/* Runs llhttp over body bytes; *used of them, *ok false where it found an error. */
static void body_execute(struct srv_request *r, const char *p, size_t n, size_t *used, bool *ok)
{
    llhttp_errno_t e = llhttp_execute(&r->parser, p, n);
    *ok = e == HPE_OK || e == HPE_PAUSED;
    *used = n;
    if (e == HPE_PAUSED) {
        const char *at = llhttp_get_error_pos(&r->parser);
        *ok = at >= p && at <= p + n;
        *used = *ok ? (size_t)(at - p) : n;
        llhttp_resume(&r->parser);
    }
    r->body_wire_bytes += *used;
}

static enum srv_request_event body_feed(struct srv_request *r, const char *p, size_t n,
                                        size_t *used)
{
    bool ok;
    body_execute(r, p, n, used, &ok);
    if (r->state == REFUSED) return SRV_REQUEST_REFUSED;
    if (!ok) return malformed(r, "The chunked request body is malformed.");
    /* One byte per chunk is six bytes on the wire; beyond that it is padding in extensions and
     * leading zeros. */
    if (r->body_wire_bytes / 16 > r->body.len + r->limits.header_bytes_max / 16)
        return malformed(r, "The request body is mostly chunk framing.");
    if (r->complete) {
        r->state = DONE;
        return SRV_REQUEST_COMPLETE;
    }
    if (r->last_chunk) {
        r->state = TRAILERS;
        srv_gate_init(&r->gate, true, r->limits.header_bytes_max, r->limits.header_count_max);
    }
    return SRV_REQUEST_MORE;
}

static enum srv_request_event trailers_feed(struct srv_request *r, const char *p, size_t n,
                                            size_t *used)
{
    enum srv_gate_verdict verdict;
    size_t taken = srv_gate_run(&r->gate, p, n, &verdict);
    *used = taken;
    if (verdict == SRV_GATE_REFUSED)
        return malformed(r, "The trailers of the chunked request body are malformed or too long.");
    bool ok;
    body_execute(r, p, taken, used, &ok);
    if (r->state == REFUSED) return SRV_REQUEST_REFUSED;
    if (!ok || *used != taken || r->complete != (verdict == SRV_GATE_DONE))
        return malformed(r, "The trailers of the chunked request body are malformed.");
    if (!r->complete) return SRV_REQUEST_MORE;
    r->state = DONE;
    return SRV_REQUEST_COMPLETE;
}

/* ---- life ---- */

enum status srv_request_init(struct srv_request *r, const struct srv_request_limits *limits)
{
    *r = (struct srv_request){.limits = *limits};
    r->headers = calloc((size_t)limits->header_count_max, sizeof *r->headers);
    if (!r->headers) return ST_NOMEM;
    buf_init(&r->head, limits->header_bytes_max);
    buf_init(&r->text, limits->header_bytes_max + 2 * SRV_QUERY_MAX + 2);
    buf_init(&r->body, limits->body_bytes_max);
    srv_request_reset(r);
    return ST_OK;
}

void srv_request_deinit(struct srv_request *r)
{
    buf_deinit(&r->head);
    buf_deinit(&r->text);
    buf_deinit(&r->body);
    free(r->headers);
    *r = (struct srv_request){0};
}

void srv_request_reset(struct srv_request *r)
{
    struct srv_request keep = *r;
    *r = (struct srv_request){.limits = keep.limits,
                              .head = keep.head,
                              .text = keep.text,
                              .body = keep.body,
                              .headers = keep.headers};
    r->state = HEAD;
    buf_clear(&r->head);
    buf_clear(&r->text);
    srv_request_body_release(r);
    srv_gate_init(&r->gate, false, r->limits.header_bytes_max, r->limits.header_count_max);
}

void srv_request_body_release(struct srv_request *r)
{
    if (r->body.cap <= BODY_KEEP_BYTES) {
        buf_clear(&r->body);
        return;
    }
    buf_deinit(&r->body);
    buf_init(&r->body, r->limits.body_bytes_max);
}

bool srv_request_is_idle(const struct srv_request *r)
{
    return r->state == HEAD && r->gate.bytes == 0;
}

enum srv_request_event srv_request_feed(struct srv_request *r, const char *p, size_t n,
                                        size_t *used)
{
    *used = 0;
    enum srv_request_event event = SRV_REQUEST_MORE;
    while (event == SRV_REQUEST_MORE && *used < n) {
        size_t taken = 0;
        switch (r->state) {
        case HEAD: event = head_feed(r, p + *used, n - *used, &taken); break;
        case BODY: event = body_feed(r, p + *used, n - *used, &taken); break;
        case TRAILERS: event = trailers_feed(r, p + *used, n - *used, &taken); break;
        default: CHECK(!"srv_request_feed after the end of a request");
        }
        *used += taken;
    }
    return event;
}
