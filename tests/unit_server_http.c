/*
 * The HTTP transport over loopback sockets: framing at every split, targets, methods, order,
 * limits, ids, CORS, opening.  See http_rig.h for how server and clients share one thread, and
 * unit_server_http_stream.c for streams and time.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/http_rig.h"

static struct rig rig;

static void open_with(struct srv_http_config config)
{
    rig_open(&rig, &config);
}

static int setup(void **state)
{
    (void)state;
    open_with(rig_config());
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    rig_close(&rig);
    return 0;
}

/* ---- requests ---- */

static const char chunked_request[] =
    "POST /echo?x=%31 HTTP/1.1\r\nHost: h:1\r\nTransfer-Encoding: chunked\r\n"
    "X-Request-Id: abc-1\r\n\r\n"
    "4\r\nabcd\r\n3;q=\"1\"\r\nefg\r\n0\r\nX-Trailer: t\r\n\r\n";

static void test_every_split(void **state)
{
    (void)state;
    const char *requests[] = {
        "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 7\r\nX-Request-Id: abc-1\r\n\r\nabcdefg",
        chunked_request,
    };
    for (size_t k = 0; k < ARRAY_COUNT(requests); k++) {
        size_t n = strlen(requests[k]);
        int fd = rig_connect(&rig);
        for (size_t cut = 1; cut < n; cut++) {
            rig_send(&rig, fd, requests[k], cut);
            rig_pump(&rig);
            rig_pump(&rig);
            rig_send(&rig, fd, requests[k] + cut, n - cut);
            struct reply r = rig_reply(&rig, fd, false);
            assert_int_equal(r.status, 200);
            assert_string_equal(r.body, "abcdefg");
            assert_string_equal(reply_header(&r, "X-Request-Id"), "abc-1");
            assert_null(reply_header(&r, "Connection"));
            reply_free(&r);
        }
        close(fd);
    }
}

static void test_byte_by_byte(void **state)
{
    (void)state;
    int fd = rig_connect(&rig);
    for (const char *p = chunked_request; *p; p++) rig_send(&rig, fd, p, 1);
    struct reply r = rig_reply(&rig, fd, false);
    assert_int_equal(r.status, 200);
    assert_string_equal(r.body, "abcdefg");
    reply_free(&r);
    close(fd);
}

static void expect_echo(const char *target, const char *text)
{
    char request[1024];
    snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: h\r\n\r\n", target);
    struct reply r = rig_ask(&rig, request);
    assert_int_equal(r.status, 200);
    assert_string_equal(r.body, text);
    reply_free(&r);
}

static void test_targets(void **state)
{
    (void)state;
    expect_echo("/echo", "GET|/echo||(none)");
    expect_echo("/echo?", "GET|/echo||(none)");
    expect_echo("/echo?a", "GET|/echo||");
    expect_echo("/echo?b=1&&a=x%20y+z&a=2", "GET|/echo||x y z");
    expect_echo("/%65cho?%61=%C3%A9", "GET|/echo||\xC3\xA9");
    expect_echo("http://example.com:80/echo?a=1", "GET|/echo||1");
    expect_echo("HTTPS://[::1]/echo", "GET|/echo||(none)");
    expect_echo("/models/org/name%2D7b?a=q", "GET|/models/org/name-7b|org/name-7b|q");
    rig_expect(&rig, "GET /models/ HTTP/1.1\r\nHost: h\r\n\r\n", 404);
    rig_expect(&rig, "GET /echo%2 HTTP/1.1\r\nHost: h\r\n\r\n", 400);
    rig_expect(&rig, "GET /echo%zz HTTP/1.1\r\nHost: h\r\n\r\n", 400);
    rig_expect(&rig, "GET /echo%00 HTTP/1.1\r\nHost: h\r\n\r\n", 400);
    rig_expect(&rig, "GET /echo%0a HTTP/1.1\r\nHost: h\r\n\r\n", 400);
    rig_expect(&rig, "GET /echo%ff HTTP/1.1\r\nHost: h\r\n\r\n", 400);
    rig_expect(&rig, "GET /echo?a=%c3 HTTP/1.1\r\nHost: h\r\n\r\n", 400);
    rig_expect(&rig, "GET echo HTTP/1.1\r\nHost: h\r\n\r\n", 400);
    rig_expect(&rig, "GET /nothing HTTP/1.1\r\nHost: h\r\n\r\n", 404);
}

static void test_empty_values_hide_nothing(void **state)
{
    (void)state;
    struct reply r = rig_ask(
        &rig,
        "POST /echo HTTP/1.1\r\nHost:\r\nContent-Length:3\r\nX:  \r\nX-Request-Id: i\r\n\r\nabc");
    assert_int_equal(r.status, 200);
    assert_string_equal(r.body, "abc");
    assert_string_equal(reply_header(&r, "X-Request-Id"), "i");
    reply_free(&r);
    rig_expect(
        &rig,
        "POST /echo HTTP/1.1\r\nHost:\r\nContent-Length:3\r\nX:\r\nContent-Length:3\r\n\r\nabc",
        400);
    rig_expect(&rig, "POST /echo HTTP/1.1\r\nX:\r\nHost:\r\nHost:\r\n\r\n", 400);
}

static void test_pipelining_in_order(void **state)
{
    (void)state;
    char many[8192] = "";
    for (int i = 0; i < 40; i++)
        snprintf(many + strlen(many), sizeof many - strlen(many),
                 i % 2 ? "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n%02d"
                       : "GET /echo?a=%02d HTTP/1.1\r\nHost: h\r\n\r\n",
                 i);
    int fd = rig_connect(&rig);
    rig_sends(&rig, fd, many);
    for (int i = 0; i < 40; i++) {
        struct reply r = rig_reply(&rig, fd, false);
        char want[64];
        snprintf(want, sizeof want, i % 2 ? "%02d" : "GET|/echo||%02d", i);
        assert_int_equal(r.status, 200);
        assert_string_equal(r.body, want);
        reply_free(&r);
    }
    assert_int_equal(rig.handled, 40);
    close(fd);
}

static void test_pipelined_input_is_bounded(void **state)
{
    (void)state;
    int fd = rig_connect(&rig);
    const char hold[] = "GET /hold HTTP/1.1\r\nHost: h\r\n\r\n";
    rig_sends(&rig, fd, hold);
    assert_true(rig_wait(&rig, &rig.handled, 1, RIG_PATIENCE_MS));
    /* More than the read-ahead: the rest has to stay with the kernel (srv_conn_check holds the
     * bound). */
    static char body[300000];
    memset(body, 'b', sizeof body);
    char head[128];
    snprintf(head, sizeof head, "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: %zu\r\n\r\n",
             sizeof body);
    rig_sends(&rig, fd, head);
    size_t sent = 0;
    for (int i = 0; i < 200; i++) {
        ssize_t k = send(fd, body + sent, sizeof body - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (k > 0) sent += (size_t)k;
        rig_pump(&rig);
    }
    assert_int_equal(rig.held->conn->in.len, SRV_READ_BYTES);
    assert_false(rig.held->conn->reading);
    srv_x_reply(rig.held, 200, "text/plain", "held", 4);
    struct reply r = rig_reply(&rig, fd, false);
    assert_string_equal(r.body, "held");
    reply_free(&r);
    assert_true(rig_send(&rig, fd, body + sent, sizeof body - sent));
    r = rig_reply(&rig, fd, false);
    assert_int_equal(r.status, 200);
    assert_int_equal(r.body_len, sizeof body);
    reply_free(&r);
    close(fd);
}

static void test_hangup_behind_a_full_read_ahead(void **state)
{
    (void)state;
    int fd = rig_connect(&rig);
    rig_sends(&rig, fd, "GET /hold HTTP/1.1\r\nHost: h\r\n\r\n");
    static char junk[SRV_READ_BYTES * 2];
    memset(junk, 'j', sizeof junk);
    assert_true(rig_wait(&rig, &rig.handled, 1, RIG_PATIENCE_MS));
    rig_send(&rig, fd, junk, sizeof junk);
    rig_sleep(&rig, 20);
    assert_false(rig.held->conn->reading);
    assert_int_equal(rig.closed_count, 0);
    close(fd);
    assert_true(rig_wait(&rig, &rig.closed_count, 1, RIG_PATIENCE_MS));
}

static void test_expect_continue(void **state)
{
    (void)state;
    int fd = rig_connect(&rig);
    rig_sends(
        &rig, fd,
        "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n");
    struct buf b;
    buf_init(&b, 4096);
    assert_true(rig_recv_line(&rig, fd, &b, "\r\n\r\n"));
    assert_string_equal(b.data, "HTTP/1.1 100 Continue\r\n\r\n");
    buf_deinit(&b);
    rig_sends(&rig, fd, "abc");
    struct reply r = rig_reply(&rig, fd, false);
    assert_int_equal(r.status, 200);
    assert_string_equal(r.body, "abc");
    reply_free(&r);
    close(fd);
    /* Refused before the body is sent, and the connection ends. */
    static const struct {
        const char *head;
        int status;
    } early[] = {
        {"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 9999999\r\nExpect: "
         "100-continue\r\n\r\n",
         413},
        {"POST /none HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n",
         404},
        {"PUT /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n", 405},
        {"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: a-pony\r\n\r\n", 417},
    };
    for (size_t i = 0; i < ARRAY_COUNT(early); i++) {
        fd = rig_connect(&rig);
        rig_sends(&rig, fd, early[i].head);
        r = rig_reply(&rig, fd, false);
        assert_int_equal(r.status, early[i].status);
        assert_string_equal(reply_header(&r, "Connection"), "close");
        assert_true(rig_ends(&rig, fd));
        reply_free(&r);
        close(fd);
    }
}

static void test_methods(void **state)
{
    (void)state;
    struct reply r = rig_ask(&rig, "HEAD /echo HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_int_equal(r.status, 200);
    assert_string_equal(reply_header(&r, "Content-Length"), "18"); /* of "HEAD|/echo||(none)" */
    reply_free(&r);
    r = rig_ask(&rig, "OPTIONS /echo HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_int_equal(r.status, 204);
    assert_string_equal(reply_header(&r, "Allow"), "GET, HEAD, POST, OPTIONS");
    assert_null(reply_header(&r, "Content-Length"));
    assert_null(reply_header(&r, "Access-Control-Allow-Origin"));
    reply_free(&r);
    r = rig_ask(&rig, "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_int_equal(r.status, 204);
    reply_free(&r);
    r = rig_ask(&rig, "DELETE /big HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_int_equal(r.status, 405);
    assert_string_equal(reply_header(&r, "Allow"), "GET, HEAD, OPTIONS");
    reply_free(&r);
    rig_expect(&rig, "OPTIONS /none HTTP/1.1\r\nHost: h\r\n\r\n", 404);
    rig_expect(&rig, "CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n", 405);
    rig_expect(&rig, "BREW /echo HTTP/1.1\r\nHost: h\r\n\r\n", 501);
    /* HEAD responses have no body: the next response follows at once. */
    int fd = rig_connect(&rig);
    rig_sends(&rig, fd,
              "HEAD /stream HTTP/1.1\r\nHost: h\r\n\r\nGET /echo HTTP/1.1\r\nHost: h\r\n\r\n");
    r = rig_reply(&rig, fd, true);
    assert_int_equal(r.status, 200);
    reply_free(&r);
    r = rig_reply(&rig, fd, false);
    assert_string_equal(r.body, "GET|/echo||(none)");
    reply_free(&r);
    close(fd);
}

static void test_upgrade_is_ignored(void **state)
{
    (void)state;
    int fd = rig_connect(&rig);
    for (int i = 0; i < 2; i++) {
        rig_sends(&rig, fd,
                  "GET /echo HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, "
                  "HTTP2-Settings\r\nUpgrade: h2c\r\n"
                  "HTTP2-Settings: AAMAAABk\r\n\r\n");
        struct reply r = rig_reply(&rig, fd, false);
        assert_int_equal(r.status, 200);
        reply_free(&r);
    }
    rig_sends(&rig, fd,
              "POST /echo HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
              "Content-Length: 2\r\n\r\nhi");
    struct reply r = rig_reply(&rig, fd, false);
    assert_string_equal(r.body, "hi");
    reply_free(&r);
    close(fd);
    rig_expect(&rig, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505);
}

static void test_http_1_0(void **state)
{
    (void)state;
    struct reply r = rig_ask(&rig, "GET /stream?n=50 HTTP/1.0\r\n\r\n");
    assert_int_equal(r.status, 200);
    assert_null(reply_header(&r, "Transfer-Encoding"));
    assert_string_equal(reply_header(&r, "Connection"), "close");
    assert_int_equal(r.body_len, 50);
    assert_true(r.closed);
    reply_free(&r);
    int fd = rig_connect(&rig);
    for (int i = 0; i < 3; i++) {
        rig_sends(&rig, fd, "GET /echo HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        r = rig_reply(&rig, fd, false);
        assert_int_equal(r.status, 200);
        assert_string_equal(reply_header(&r, "Connection"), "keep-alive");
        reply_free(&r);
    }
    rig_sends(&rig, fd, "GET /echo HTTP/1.0\r\n\r\n");
    r = rig_reply(&rig, fd, false);
    assert_string_equal(reply_header(&r, "Connection"), "close");
    assert_true(rig_ends(&rig, fd));
    reply_free(&r);
    close(fd);
}

/* ---- limits ---- */

static void test_head_limits(void **state)
{
    (void)state;
    static char request[20000];
    snprintf(request, sizeof request, "GET /%09000d HTTP/1.1\r\nHost: h\r\n\r\n", 0);
    rig_expect(&rig, request, 414);
    snprintf(request, sizeof request, "GET /echo HTTP/1.1\r\nHost: h\r\nX: %09000d\r\n\r\n", 0);
    rig_expect(&rig, request, 431);
    strcpy(request, "GET /echo HTTP/1.1\r\nHost: h\r\n");
    for (int i = 0; i < 99; i++) strcat(request, "A: b\r\n");
    size_t n = strlen(request);
    strcpy(request + n, "\r\n");
    rig_expect(&rig, request, 200);
    strcpy(request + n, "A: b\r\n\r\n");
    rig_expect(&rig, request, 431);
}

static void test_body_limits(void **state)
{
    (void)state;
    static char request[(1 << 20) + 4096];
    int head = snprintf(request, sizeof request,
                        "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n", 1 << 20);
    memset(request + head, 'z', 1 << 20);
    int fd = rig_connect(&rig);
    assert_true(rig_send(&rig, fd, request, (size_t)head + (1 << 20)));
    struct reply r = rig_reply(&rig, fd, false);
    assert_int_equal(r.status, 200);
    assert_int_equal(r.body_len, 1 << 20);
    reply_free(&r);
    close(fd);
    rig_sleep(&rig, 5);
    assert_int_equal(srv_http_stats(rig.http)->body_bytes_held, 0);
    rig_expect(&rig, "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1048577\r\n\r\n", 413);
    rig_expect(&rig,
               "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n100001\r\n",
               413);
    /* The sum over chunks counts; the 413 reaches a client that goes on sending. */
    fd = rig_connect(&rig);
    rig_sends(&rig, fd, "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 20; i++) {
        rig_sends(&rig, fd, "10000\r\n");
        rig_send(&rig, fd, request + head, 0x10000);
        rig_sends(&rig, fd, "\r\n");
    }
    r = rig_reply(&rig, fd, false);
    assert_int_equal(r.status, 413);
    reply_free(&r);
    close(fd);
    /* Padding in chunk framing is not a way around. */
    fd = rig_connect(&rig);
    rig_sends(&rig, fd, "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1;");
    memset(request, 'e', 16384);
    rig_send(&rig, fd, request, 16384);
    r = rig_reply(&rig, fd, false);
    assert_int_equal(r.status, 400);
    reply_free(&r);
    close(fd);
}

static void test_bodies_together_are_bounded(void **state)
{
    (void)state;
    rig_close(&rig);
    struct srv_http_config config = rig_config();
    config.body_bytes_total_max = config.body_bytes_max;
    open_with(config);
    static char body[600000];
    memset(body, 'b', sizeof body);
    const char head[] = "POST /hold HTTP/1.1\r\nHost: h\r\nContent-Length: 600000\r\n\r\n";
    int a = rig_connect(&rig), b = rig_connect(&rig);
    rig_sends(&rig, a, head);
    rig_send(&rig, a, body, sizeof body);
    assert_true(rig_wait(&rig, &rig.handled, 1, RIG_PATIENCE_MS));
    rig_sends(&rig, b, head);
    rig_send(&rig, b, body, sizeof body);
    struct reply r = rig_reply(&rig, b, false);
    assert_int_equal(r.status, 503);
    assert_string_equal(reply_header(&r, "Retry-After"), "1");
    reply_free(&r);
    srv_x_body_release(rig.held);
    assert_int_equal(srv_http_stats(rig.http)->body_bytes_held, 0);
    close(a);
    close(b);
    assert_true(rig_wait(&rig, &rig.closed_count, 1, RIG_PATIENCE_MS));
}

static void test_connection_limit(void **state)
{
    (void)state;
    rig_close(&rig);
    struct srv_http_config config = rig_config();
    config.conn_max = 4;
    open_with(config);
    int kept[4], extra[SRV_REFUSED_MAX + 8];
    for (int i = 0; i < 4; i++) {
        kept[i] = rig_connect(&rig);
        rig_sends(&rig, kept[i], "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n");
        struct reply r = rig_reply(&rig, kept[i], false);
        assert_int_equal(r.status, 200);
        reply_free(&r);
    }
    /* More than there are slots to turn away with: the rest waits in the backlog and is told later.
     */
    for (size_t i = 0; i < ARRAY_COUNT(extra); i++) extra[i] = rig_connect(&rig);
    for (size_t i = 0; i < ARRAY_COUNT(extra); i++) {
        struct reply r = rig_reply(&rig, extra[i], false);
        assert_int_equal(r.status, 503);
        assert_string_equal(reply_header(&r, "Retry-After"), "1");
        assert_non_null(strstr(r.body, "too_many_connections"));
        reply_free(&r);
        close(extra[i]);
    }
    for (int i = 0; i < 4; i++) {
        rig_sends(&rig, kept[i], "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n");
        struct reply r = rig_reply(&rig, kept[i], false);
        assert_int_equal(r.status, 200);
        reply_free(&r);
        close(kept[i]);
    }
    rig_sleep(&rig, 20);
    rig_expect(&rig, "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n", 200);
    assert_int_equal(srv_http_stats(rig.http)->conn_refused, ARRAY_COUNT(extra));
}

/* ---- the rest ---- */

static void test_request_ids(void **state)
{
    (void)state;
    struct reply a =
        rig_ask(&rig, "GET /echo HTTP/1.1\r\nHost: h\r\nX-Request-Id: ok_1.2-x\r\n\r\n");
    assert_string_equal(reply_header(&a, "X-Request-Id"), "ok_1.2-x");
    struct reply b = rig_ask(&rig, "GET /echo HTTP/1.1\r\nHost: h\r\nX-Request-Id: bad id\r\n\r\n");
    struct reply c = rig_ask(&rig, "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n");
    char first[1024];
    snprintf(first, sizeof first, "%s", reply_header(&b, "X-Request-Id"));
    assert_memory_equal(first, "req-", 4);
    assert_string_not_equal(first, reply_header(&c, "X-Request-Id"));
    reply_free(&a);
    reply_free(&b);
    reply_free(&c);
}

static void test_cors(void **state)
{
    (void)state;
    static const char *const origins[] = {"https://a.example", "http://localhost:3000"};
    rig_close(&rig);
    struct srv_http_config config = rig_config();
    config.cors_origins = origins;
    config.cors_origin_count = 2;
    open_with(config);
    struct reply r =
        rig_ask(&rig, "GET /echo HTTP/1.1\r\nHost: h\r\nOrigin: https://a.example\r\n\r\n");
    assert_string_equal(reply_header(&r, "Access-Control-Allow-Origin"), "https://a.example");
    assert_string_equal(reply_header(&r, "Vary"), "Origin");
    reply_free(&r);
    r = rig_ask(&rig, "GET /none HTTP/1.1\r\nHost: h\r\nOrigin: https://a.example\r\n\r\n");
    assert_int_equal(r.status, 404); /* errors are readable for scripts too */
    assert_string_equal(reply_header(&r, "Access-Control-Allow-Origin"), "https://a.example");
    reply_free(&r);
    r = rig_ask(&rig, "GET /echo HTTP/1.1\r\nHost: h\r\nOrigin: https://b.example\r\n\r\n");
    assert_null(reply_header(&r, "Access-Control-Allow-Origin"));
    reply_free(&r);
    r = rig_ask(&rig, "OPTIONS /echo HTTP/1.1\r\nHost: h\r\nOrigin: "
                      "http://localhost:3000\r\nAccess-Control-Request-Method: POST\r\n"
                      "Access-Control-Request-Headers: authorization, x-any\r\n\r\n");
    assert_int_equal(r.status, 204);
    assert_string_equal(reply_header(&r, "Access-Control-Allow-Methods"),
                        "GET, HEAD, POST, OPTIONS");
    assert_string_equal(reply_header(&r, "Access-Control-Allow-Headers"), "authorization, x-any");
    reply_free(&r);
}

static void admit_with_key(struct srv_exchange *x, void *user)
{
    (void)user;
    const char *key = srv_x_request_header(x, "Authorization");
    if (!key || strcmp(key, "Bearer k") != 0)
        srv_x_error(x, 401, NULL, NULL, "invalid_api_key", "Send the API key.");
}

static void test_admit_before_the_body(void **state)
{
    (void)state;
    rig_close(&rig);
    struct srv_http_config config = rig_config();
    config.admit = admit_with_key;
    open_with(config);
    rig_expect(&rig, "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n", 401);
    rig_expect(&rig, "GET /echo HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer k\r\n\r\n", 200);
    rig_expect(
        &rig,
        "POST /echo HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer k\r\nContent-Length: 1\r\n\r\na",
        200);
    assert_int_equal(rig.handled, 2);
    /* Refused without a body, the connection stays. */
    int fd = rig_connect(&rig);
    for (int i = 0; i < 2; i++) {
        rig_sends(&rig, fd, "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n");
        struct reply r = rig_reply(&rig, fd, false);
        assert_int_equal(r.status, 401);
        assert_non_null(strstr(r.body, "authentication_error"));
        reply_free(&r);
    }
    close(fd);
}

static void test_counters(void **state)
{
    (void)state;
    rig_expect(&rig, "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n", 200);
    rig_expect(&rig, "GET /none HTTP/1.1\r\nHost: h\r\n\r\n", 404);
    rig_expect(&rig, "GET /echo HTTP/1.1\r\n\r\n", 400);
    rig_sleep(&rig, 5);
    const struct srv_http_stats *s = srv_http_stats(rig.http);
    assert_int_equal(s->conn_accepted, 3);
    assert_int_equal(s->conn_open, 0);
    assert_int_equal(s->routes[0].responses[SRV_CLASS_2XX], 1);
    assert_int_equal(s->routes[s->route_count].responses[SRV_CLASS_4XX], 2);
    assert_int_equal(s->bytes_in, 31 + 31 + 22);
    assert_true(s->bytes_out > 300);
}

static void open_fails(const struct srv_http_config *config, enum status st, const char *part)
{
    char err[ERR_CAP] = "";
    struct srv_http *http;
    assert_int_equal(
        srv_http_open(&rig.loop, config, rig_routes, ARRAY_COUNT(rig_routes), &rig, &http, err),
        st);
    assert_null(http);
    if (!strstr(err, part)) print_error("\"%s\" lacks \"%s\"\n", err, part);
    assert_non_null(strstr(err, part));
}

static void test_opening(void **state)
{
    (void)state;
    struct srv_http_config config = rig_config();
    config.port = srv_http_port(rig.http);
    open_fails(&config, ST_IO, "is in use");
    config.port = 70000;
    open_fails(&config, ST_INVALID, "70000");
    config.port = 0;
    config.host = "203.0.113.7";
    open_fails(&config, ST_IO, "not an address of this machine");
    config.host = "not a host";
    open_fails(&config, ST_IO, "resolve");
    config.host = "";
    open_fails(&config, ST_INVALID, "host");
    config.host = "127.0.0.1";
    config.write_buffer_max = 100;
    open_fails(&config, ST_INVALID, "write buffer");
    rig_close(&rig);
    config = rig_config();
    config.host = "localhost";
    open_with(config);
    rig_expect(&rig, "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n", 200);
    rig_close(&rig);
    int six = socket(AF_INET6, SOCK_STREAM, 0);
    struct sockaddr_in6 loopback = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    bool has_six = six >= 0 && bind(six, (struct sockaddr *)&loopback, sizeof loopback) == 0;
    close(six);
    config.host = "::1";
    if (has_six) {
        open_with(config);
        int fd = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0);
        loopback.sin6_port = htons((uint16_t)srv_http_port(rig.http));
        assert_true(connect(fd, (struct sockaddr *)&loopback, sizeof loopback) == 0 ||
                    errno == EINPROGRESS);
        rig_pump(&rig);
        rig_sends(&rig, fd, "GET /hold HTTP/1.1\r\nHost: [::1]\r\n\r\n");
        assert_true(rig_wait(&rig, &rig.handled, 1, RIG_PATIENCE_MS));
        assert_memory_equal(srv_x_peer(rig.held), "[::1]:", 6);
        close(fd);
        assert_true(rig_wait(&rig, &rig.closed_count, 1, RIG_PATIENCE_MS));
        rig_close(&rig);
    }
    open_with(rig_config());
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_every_split),
        T(test_byte_by_byte),
        T(test_targets),
        T(test_empty_values_hide_nothing),
        T(test_pipelining_in_order),
        T(test_pipelined_input_is_bounded),
        T(test_hangup_behind_a_full_read_ahead),
        T(test_expect_continue),
        T(test_methods),
        T(test_upgrade_is_ignored),
        T(test_http_1_0),
        T(test_head_limits),
        T(test_body_limits),
        T(test_bodies_together_are_bounded),
        T(test_connection_limit),
        T(test_request_ids),
        T(test_cors),
        T(test_admit_before_the_body),
        T(test_counters),
        T(test_opening),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
