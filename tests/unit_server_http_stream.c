/*
 * The HTTP transport where time passes: streams and backpressure, stalled readers, clients that
 * leave, timeouts, draining, closing.  See http_rig.h for how server and clients share one thread.
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

/* ---- streams ---- */

static void test_stream_backpressure(void **state)
{
    (void)state;
    for (int greedy = 0; greedy < 2; greedy++) {
        int fd = rig_connect_buffered(&rig, 4096);
        rig.drain_count = rig.full_count = rig.limit_count = 0;
        rig_sends(&rig, fd,
                  greedy ? "GET /stream?n=8000000&piece=1000&greedy HTTP/1.1\r\nHost: h\r\n\r\n"
                         : "GET /stream?n=8000000&piece=1000 HTTP/1.1\r\nHost: h\r\n\r\n");
        size_t left;
        do { /* nobody reads: once the kernel's buffers are full, the writer has to stop */
            left = rig.stream_left;
            rig_sleep(&rig, 50);
        } while (rig.stream_left != left || rig.handled == greedy);
        assert_true(left > 0);
        assert_false(uv_is_active((uv_handle_t *)&rig.http->flusher)); /* and the loop sleeps */
        struct reply r = rig_reply(&rig, fd, false);
        assert_int_equal(r.status, 200);
        assert_int_equal(r.body_len, 8000000);
        assert_int_equal(strspn(r.body, "x"), 8000000);
        assert_true(rig.drain_count > 0 && rig.full_count > 0);
        assert_true(greedy == (rig.limit_count > 0));
        reply_free(&r);
        close(fd);
    }
    size_t peak = srv_http_stats(rig.http)->queue_bytes_peak;
    assert_true(peak > rig.config.write_buffer_max / 2 && peak <= rig.config.write_buffer_max);
}

static void test_writes_of_one_turn_are_one(void **state)
{
    (void)state;
    int fd = rig_connect(&rig);
    rig_sends(&rig, fd, "GET /sse HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_true(rig_wait(&rig, &rig.handled, 1, RIG_PATIENCE_MS));
    rig_sleep(&rig, 5);
    struct buf b;
    buf_init(&b, 1 << 20);
    assert_true(rig_recv_line(&rig, fd, &b, "\r\n\r\n"));
    assert_non_null(strstr(b.data, "\r\nContent-Type: text/event-stream; charset=utf-8\r\n"));
    assert_non_null(strstr(b.data, "\r\nCache-Control: no-cache\r\n"));
    assert_non_null(strstr(b.data, "\r\nX-Accel-Buffering: no\r\n"));
    buf_clear(&b);
    for (int i = 0; i < 100; i++) assert_int_equal(srv_sse_data(rig.held, "{\"i\":1}", 7), ST_OK);
    assert_int_equal(srv_sse_comment(rig.held), ST_OK);
    assert_true(srv_conn_queued(rig.held->conn) > 0); /* nothing leaves within the turn */
    srv_sse_done(rig.held);
    assert_true(rig_recv(&rig, fd, &b, 65536));
    const char *one = "f\r\ndata: {\"i\":1}\n\n\r\n";
    for (int i = 0; i < 100; i++)
        assert_memory_equal(b.data + (size_t)i * strlen(one), one, strlen(one));
    assert_string_equal(b.data + 100 * strlen(one),
                        "e\r\n: keep-alive\n\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
    buf_deinit(&b);
    close(fd);
}

static void test_a_piece_that_never_fits(void **state)
{
    (void)state;
    int fd = rig_connect(&rig);
    rig_sends(&rig, fd, "GET /sse HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_true(rig_wait(&rig, &rig.handled, 1, RIG_PATIENCE_MS));
    static char piece[65536 / 2 + 1];
    memset(piece, 'p', sizeof piece);
    assert_int_equal(srv_x_stream_write(rig.held, piece, sizeof piece), ST_INVALID);
    assert_int_equal(srv_x_stream_write(rig.held, piece, sizeof piece - 1), ST_FULL);
    assert_int_equal(srv_x_stream_write(rig.held, piece, sizeof piece - 1), ST_LIMIT);
    srv_x_stream_end(rig.held);
    struct reply r = rig_reply(&rig, fd, false);
    assert_int_equal(r.body_len, sizeof piece - 1);
    reply_free(&r);
    close(fd);
}

static void test_stream_fails_midway(void **state)
{
    (void)state;
    int fd = rig_connect(&rig);
    rig_sends(&rig, fd, "GET /sse HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_true(rig_wait(&rig, &rig.handled, 1, RIG_PATIENCE_MS));
    while (srv_sse_comment(rig.held) != ST_LIMIT) {
    } /* a full queue still has room for the end */
    srv_sse_fail(rig.held, 500, "engine_failed", "The \"engine\" failed: %s.", "\x01\x01\x01");
    struct reply r = rig_reply(&rig, fd, false);
    assert_int_equal(r.status, 200);
    const char *tail =
        "data: {\"error\":{\"message\":\"The \\\"engine\\\" failed: \\u0001\\u0001\\u0001.\","
        "\"type\":\"server_error\",\"param\":null,\"code\":\"engine_failed\"}}\n\ndata: [DONE]\n\n";
    assert_true(r.body_len > strlen(tail));
    assert_string_equal(r.body + r.body_len - strlen(tail), tail);
    reply_free(&r);
    rig_sends(&rig, fd, "GET /sse HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_true(rig_wait(&rig, &rig.handled, 2, RIG_PATIENCE_MS));
    srv_x_stream_abort(rig.held);
    r = rig_reply(&rig, fd, false);
    assert_true(r.closed); /* without the last chunk */
    reply_free(&r);
    assert_int_equal(rig.closed_count, 0);
    close(fd);
}

static void test_stalled_reader_is_closed(void **state)
{
    (void)state;
    rig_close(&rig);
    struct srv_http_config config = rig_config();
    config.write_timeout_ms = 200;
    open_with(config);
    int fd = rig_connect_buffered(&rig, 4096);
    rig_sends(&rig, fd, "GET /stream?n=50000000&piece=1000 HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_true(rig_wait(&rig, &rig.closed_count, 1, RIG_PATIENCE_MS));
    assert_int_equal(srv_http_stats(rig.http)->conn_stalled, 1);
    assert_int_equal(srv_http_stats(rig.http)->routes[5].responses[SRV_CLASS_499], 1);
    close(fd);
    /* The same for a complete response that is not read: closed, though nobody is to be told. */
    fd = rig_connect_buffered(&rig, 4096);
    rig_sends(&rig, fd, "GET /big?n=50000000 HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_true(rig_wait(&rig, &rig.handled, 2, RIG_PATIENCE_MS));
    for (int i = 0; i < 10000 && srv_http_stats(rig.http)->conn_open; i++) rig_sleep(&rig, 1);
    assert_int_equal(srv_http_stats(rig.http)->conn_open, 0);
    assert_int_equal(srv_http_stats(rig.http)->conn_stalled, 2);
    assert_int_equal(rig.closed_count, 1);
    close(fd);
}

static void test_large_reply(void **state)
{
    (void)state;
    int fd = rig_connect_buffered(&rig, 16384);
    for (int i = 0; i < 2; i++) {
        rig_sends(&rig, fd, "GET /big?n=5000000 HTTP/1.1\r\nHost: h\r\n\r\n");
        struct reply r = rig_reply(&rig, fd, false);
        assert_int_equal(r.body_len, 5000000);
        assert_int_equal(strspn(r.body, "y"), 5000000);
        reply_free(&r);
    }
    close(fd);
}

/* ---- leaving ---- */

static void test_client_leaves(void **state)
{
    (void)state;
    const char *targets[] = {"/hold", "/sse"};
    for (int i = 0; i < 6; i++) {
        char request[128];
        snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: h\r\n\r\n", targets[i % 2]);
        int fd = rig_connect(&rig);
        rig_sends(&rig, fd, request);
        assert_true(rig_wait(&rig, &rig.handled, i + 1, RIG_PATIENCE_MS));
        rig_sleep(&rig, 5);
        assert_int_equal(rig.closed_count, i);
        assert_int_equal(srv_http_stats(rig.http)->requests_active, 1);
        if (i / 2 == 0) close(fd); /* FIN, or RST for what was not read */
        if (i / 2 == 1) shutdown(fd, SHUT_WR);
        if (i / 2 == 2) {
            struct linger hard = {1, 0};
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
            close(fd);
        }
        assert_true(rig_wait(&rig, &rig.closed_count, i + 1, RIG_PATIENCE_MS));
        if (i / 2 == 1) close(fd);
        rig_sleep(&rig, 2);
        assert_int_equal(rig.closed_count, i + 1);
        assert_int_equal(srv_http_stats(rig.http)->requests_active, 0);
    }
    const struct srv_http_route_stats *routes = srv_http_stats(rig.http)->routes;
    assert_int_equal(routes[3].responses[SRV_CLASS_499], 3);
    assert_int_equal(routes[6].responses[SRV_CLASS_499], 3);
}

static void test_leaving_after_the_answer_is_no_event(void **state)
{
    (void)state;
    int fd = rig_connect(&rig);
    rig_sends(&rig, fd, "GET /hold HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_true(rig_wait(&rig, &rig.handled, 1, RIG_PATIENCE_MS));
    srv_x_reply(rig.held, 200, NULL, "", 0);
    close(fd);
    rig_sleep(&rig, 10);
    assert_int_equal(rig.closed_count, 0);
    assert_int_equal(srv_http_stats(rig.http)->conn_open, 0);
    /* A client that shuts its write side right after the request still gets a prompt answer. */
    fd = rig_connect(&rig);
    send(fd, "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n", 31, 0);
    shutdown(fd, SHUT_WR);
    struct reply r = rig_reply(&rig, fd, false);
    assert_int_equal(r.status, 200);
    assert_true(rig_ends(&rig, fd));
    reply_free(&r);
    close(fd);
}

/* ---- time ---- */

static void test_timeouts(void **state)
{
    (void)state;
    rig_close(&rig);
    struct srv_http_config config = rig_config();
    config.header_timeout_ms = config.body_timeout_ms = 100;
    config.idle_timeout_ms = 150;
    open_with(config);
    rig_expect(&rig, "GET /echo HTTP/1.1\r\nHost:", 408);
    rig_expect(&rig, "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nab", 408);
    assert_int_equal(srv_http_stats(rig.http)->conn_timed_out, 2);
    /* Dripping does not extend the time. */
    int fd = rig_connect(&rig);
    uint64_t start = clock_now_ns();
    while (clock_now_ns() - start < 5 * NS_PER_S && srv_http_stats(rig.http)->conn_timed_out < 3) {
        send(fd, "G", 1, MSG_NOSIGNAL);
        rig_sleep(&rig, 5);
    }
    struct reply r = rig_reply(&rig, fd, false);
    assert_int_equal(r.status, 408);
    reply_free(&r);
    close(fd);
    /* Silence is closed silently, before the first request and after one. */
    fd = rig_connect(&rig);
    assert_true(rig_ends(&rig, fd));
    close(fd);
    fd = rig_connect(&rig);
    rig_sends(&rig, fd, "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n");
    r = rig_reply(&rig, fd, false);
    assert_int_equal(r.status, 200);
    reply_free(&r);
    assert_true(rig_ends(&rig, fd));
    close(fd);
    /* A request in a handler's hands has all the time it needs. */
    fd = rig_connect(&rig);
    rig_sends(&rig, fd, "GET /hold HTTP/1.1\r\nHost: h\r\n\r\n");
    rig_sleep(&rig, 400);
    assert_non_null(rig.held);
    srv_x_reply(rig.held, 200, NULL, "", 0);
    r = rig_reply(&rig, fd, false);
    assert_int_equal(r.status, 200);
    reply_free(&r);
    close(fd);
}

static void test_drain(void **state)
{
    (void)state;
    int idle = rig_connect(&rig), held = rig_connect(&rig), partial = rig_connect(&rig);
    rig_sends(&rig, idle, "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n");
    struct reply r = rig_reply(&rig, idle, false);
    reply_free(&r);
    rig_sends(&rig, held, "GET /hold HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_true(rig_wait(&rig, &rig.handled, 2, RIG_PATIENCE_MS));
    rig_sends(&rig, partial, "GET /echo HTTP/1.1\r\n");
    rig_sleep(&rig, 5);
    srv_http_drain(rig.http, rig_on_drained, &rig);
    assert_true(rig_ends(&rig, idle));
    rig_sends(&rig, partial, "Host: h\r\n\r\n");
    r = rig_reply(&rig, partial, false);
    assert_int_equal(r.status, 200);
    assert_string_equal(reply_header(&r, "Connection"), "close");
    reply_free(&r);
    rig_sleep(&rig, 10);
    assert_int_equal(rig.drained, 0);
    srv_x_reply(rig.held, 200, "text/plain", "late", 4);
    r = rig_reply(&rig, held, false);
    assert_string_equal(r.body, "late");
    assert_string_equal(reply_header(&r, "Connection"), "close");
    reply_free(&r);
    close(idle);
    close(held);
    close(partial);
    assert_true(rig_wait(&rig, &rig.drained, 1, RIG_PATIENCE_MS));
    rig_sleep(&rig, 5);
    assert_int_equal(rig.drained, 1);
    int late = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)srv_http_port(rig.http))};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(connect(late, (struct sockaddr *)&to, sizeof to), -1);
    close(late);
}

static void test_hard_close_tells_the_handler(void **state)
{
    (void)state;
    int fd = rig_connect(&rig);
    rig_sends(&rig, fd, "GET /hold HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_true(rig_wait(&rig, &rig.handled, 1, RIG_PATIENCE_MS));
    rig_close(&rig);
    assert_int_equal(rig.closed_count, 1);
    close(fd);
    open_with(rig_config());
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_stream_backpressure),
        T(test_writes_of_one_turn_are_one),
        T(test_a_piece_that_never_fits),
        T(test_stream_fails_midway),
        T(test_stalled_reader_is_closed),
        T(test_large_reply),
        T(test_client_leaves),
        T(test_leaving_after_the_answer_is_no_event),
        T(test_timeouts),
        T(test_drain),
        T(test_hard_close_tells_the_handler),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
