/*
 * Seeded fuzzing of the HTTP transport.
 *
 * Requests: valid ones are mutated (bytes flipped, inserted, removed, repeated, spliced) and fed to
 * the parser whole and in random pieces: both must come to the same end with the same fields.
 * Connections: the same bytes over sockets to a live server; it never crashes, keeps its invariants
 * (checked every loop turn), and each connection sees a response or a close.  What is still
 * allocated at the end is the business of the address sanitizer.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "config/random.h"
#include "tests/http_rig.h"

#define BYTES_MAX 4096

static uint64_t state_of_random;

static size_t below(size_t n)
{
    return (size_t)(random_next(&state_of_random) % n);
}

static void seed(uint64_t fallback)
{
    const char *given = getenv("DAKD_TEST_SEED");
    state_of_random = given ? strtoull(given, NULL, 0) : fallback;
    print_message("seed %llu\n", (unsigned long long)state_of_random);
}

static const char *const seeds[] = {
    "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n",
    "GET /echo?a=%20b&c=%C3%A9 HTTP/1.1\r\nHost: h:80\r\nX-Request-Id: 77\r\nAccept: */*\r\n\r\n",
    "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 11\r\n\r\nhello world",
    "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    "5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nA: b\r\n\r\n",
    "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc",
    "HEAD /stream HTTP/1.1\r\nHost: h\r\n\r\nOPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
    "GET http://h/stream?n=300&piece=7 HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: "
    "h2c\r\n\r\n",
    "GET /hold HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "DELETE /echo HTTP/1.1\r\nHost: h\r\nOrigin: http://o\r\n\r\nGET /models/a%2Fb "
    "HTTP/1.1\r\nHost: h\r\n\r\n",
};

static const char *const tokens[] = {
    "\r\n",
    "\r",
    "\n",
    "\r\n\r\n",
    " ",
    "\t",
    ":",
    "%",
    "%00",
    "0",
    "ffffffffffffffff",
    ";",
    ",",
    "\"",
    "HTTP/1.0",
    "HTTP/2.0",
    "Host: x\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 0\r\n",
    "Expect: x\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Connection: close\r\n",
    "\r\n folded",
    "CONNECT ",
    "chunked",
    "0\r\n\r\n",
};

static size_t insert_bytes(char *b, size_t n, const char *piece, size_t len)
{
    if (n + len > BYTES_MAX) return n;
    size_t at = below(n + 1);
    memmove(b + at + len, b + at, n - at);
    memcpy(b + at, piece, len);
    return n + len;
}

/* A mutated request into b[BYTES_MAX]; its length. */
static size_t make(char *b)
{
    size_t n = 0;
    for (size_t k = 1 + below(3); k; k--) {
        const char *s = seeds[below(ARRAY_COUNT(seeds))];
        memcpy(b + n, s, strlen(s));
        n += strlen(s);
    }
    for (size_t k = below(6); k && n; k--) {
        const char *token = tokens[below(ARRAY_COUNT(tokens))];
        char byte = (char)random_next(&state_of_random);
        size_t at = below(n), len = 1 + below(size_min(16, n - at));
        switch (below(6)) {
        case 0: b[at] = byte; break;
        case 1: b[at] ^= (char)(1 << below(8)); break;
        case 2: n = insert_bytes(b, n, token, strlen(token)); break;
        case 3: n = insert_bytes(b, n, &byte, 1); break;
        case 4:
            memmove(b + at, b + at + len, n - at - len);
            n -= len;
            break;
        default: {
            char copy[16];
            memcpy(copy, b + at, len);
            n = insert_bytes(b, n, copy, len);
        }
        }
    }
    return n;
}

/* ---- the parser alone ---- */

struct outcome {
    enum srv_http_request_event event;
    int status, header_count;
    size_t used, body_len;
    uint64_t hash; /* of method, path, headers, body */
};

static uint64_t hash_text(uint64_t h, const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++) h = (h ^ (unsigned char)p[i]) * 0x100000001B3u;
    return h * 31 + n;
}

/* Feeds one request in pieces of at most piece_max bytes, up to its end. */
static struct outcome parse(const struct srv_http_request_limits *limits, const char *b, size_t n,
                            size_t piece_max)
{
    struct srv_http_request r;
    struct outcome o = {.event = SRV_REQUEST_MORE};
    CHECK(srv_http_request_init(&r, limits) == ST_OK);
    while (o.used < n && (o.event == SRV_REQUEST_MORE || o.event == SRV_REQUEST_HEAD)) {
        size_t piece = size_min(1 + below(piece_max), n - o.used), used;
        char *exact = malloc(piece); /* so that the address sanitizer sees a read past the piece */
        CHECK(exact);
        memcpy(exact, b + o.used, piece);
        o.event = srv_http_request_feed(&r, exact, piece, &used);
        free(exact);
        CHECK(used <= piece && (used == piece || o.event != SRV_REQUEST_MORE));
        o.used += used;
    }
    if (o.event == SRV_REQUEST_HEAD) o.event = SRV_REQUEST_MORE;
    o.status = r.refused_status;
    if (o.event == SRV_REQUEST_COMPLETE) {
        CHECK(r.method && r.path && r.target);
        o.header_count = r.header_count;
        o.body_len = r.body.len;
        o.hash = hash_text(hash_text(7, r.method, strlen(r.method)), r.path, strlen(r.path));
        for (int i = 0; i < r.header_count; i++) {
            const struct srv_field *f = &r.headers[i];
            CHECK(f->name[0] && !strpbrk(f->value, "\r\n") && f->value[0] != ' ');
            o.hash =
                hash_text(hash_text(o.hash, f->name, strlen(f->name)), f->value, strlen(f->value));
        }
        o.hash = hash_text(o.hash, r.body.data, r.body.len);
    }
    if (o.event == SRV_REQUEST_REFUSED)
        CHECK(r.refused_status >= 400 && r.refusal && r.refused_code);
    srv_http_request_deinit(&r);
    return o;
}

static void test_parser(void **state)
{
    (void)state;
    seed(20261121);
    struct srv_http_request_limits limits = {
        .header_bytes_max = 1024, .header_count_max = 16, .body_bytes_max = 64};
    int complete = 0, refused = 0;
    for (int i = 0; i < 60000; i++) {
        char b[BYTES_MAX];
        size_t n = make(b);
        struct outcome whole = parse(&limits, b, n, BYTES_MAX),
                       cut = parse(&limits, b, n, 1 + below(40));
        struct outcome bytes = parse(&limits, b, n, 1);
        assert_int_equal(whole.event, bytes.event);
        assert_int_equal(cut.event, bytes.event);
        /* A refusal may name another reason, or come at another byte, when less of the rest is in
         * sight. */
        if (whole.event == SRV_REQUEST_COMPLETE) {
            assert_int_equal(whole.used, bytes.used);
            assert_int_equal(cut.used, bytes.used);
            assert_int_equal(whole.header_count, bytes.header_count);
            assert_int_equal(whole.body_len, bytes.body_len);
            assert_true(whole.hash == bytes.hash && cut.hash == bytes.hash);
            complete++;
        }
        refused += whole.event == SRV_REQUEST_REFUSED;
    }
    print_message("%d complete, %d refused\n", complete, refused);
    assert_true(complete > 6000 && refused > 6000);
}

/* ---- a live server ---- */

static struct rig rig;

/* Reads what there is; false once the server has shut its side. */
static bool take(int fd, size_t *got)
{
    char piece[8192];
    for (;;) {
        ssize_t k = recv(fd, piece, sizeof piece, MSG_DONTWAIT);
        if (k > 0) *got += (size_t)k;
        else return k < 0 && errno == EAGAIN;
    }
}

static void test_server(void **state)
{
    (void)state;
    seed(42);
    struct srv_http_config config = rig_config();
    config.conn_max = 8;
    config.header_bytes_max = 1024;
    config.body_bytes_max = 2048;
    config.body_bytes_total_max = 8192;
    config.write_buffer_max = 32768;
    config.header_timeout_ms = config.body_timeout_ms = config.idle_timeout_ms = 20;
    config.write_timeout_ms = 50;
    rig_open(&rig, &config);
    int answered = 0, closed = 0;
    for (int i = 0; i < 3000; i++) {
        char b[BYTES_MAX];
        size_t n = make(b), sent = 0, got = 0;
        int fd = rig_connect(&rig);
        bool leave_early = below(4) == 0, open = true;
        while (sent < n && open) {
            size_t piece = size_min(1 + below(500), n - sent);
            ssize_t k = send(fd, b + sent, piece, MSG_NOSIGNAL | MSG_DONTWAIT);
            if (k < 0 && errno != EAGAIN) break;
            if (k > 0) sent += (size_t)k;
            rig_pump(&rig);
            open = take(fd, &got);
            if (leave_early && below(3) == 0) break;
        }
        uint64_t end = clock_now_ns() + RIG_PATIENCE_MS * NS_PER_MS;
        while (!leave_early && open && got == 0) {
            rig_pump(&rig);
            open = take(fd, &got);
            if (rig.held) srv_x_error(rig.held, 503, NULL, NULL, NULL, "held"), rig.held = NULL;
            assert_true(clock_now_ns() < end);
        }
        answered += got > 0;
        closed += got == 0 && !open;
        close(fd);
        if (rig.held && below(2)) srv_x_reply(rig.held, 200, NULL, "", 0), rig.held = NULL;
    }
    print_message("%d answered, %d closed without\n", answered, closed);
    assert_true(answered > 1500);
    int fd = rig_connect(&rig);
    for (int i = 0; i < 500 && srv_http_stats(rig.http)->conn_open > 1; i++) rig_sleep(&rig, 1);
    rig_sends(&rig, fd, "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n");
    struct reply r = rig_reply(&rig, fd, false);
    assert_true(r.status == 200 || r.status == 503 || r.closed);
    reply_free(&r);
    close(fd);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_parser),
                                       cmocka_unit_test(test_server)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
