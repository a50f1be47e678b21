/*
 * api_rig.h - the API behind the real transport, with an engine that does what each test says, and
 * a client on the same loop, for tests of server/generate.c and intake.c.
 *
 * A program that includes it has the fake engine for its engine: the functions of engine.h are
 * here.
 */
#ifndef DAKD_TESTS_API_RIG_H
#define DAKD_TESTS_API_RIG_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include <uv.h>

#include <cmocka.h>

#include "config/buf.h"
#include "config/check.h"
#include "config/clock.h"
#include "server/api.h"
#include "server/api_int.h"

/* --- the engine: a list of requests and a queue of events -------------------------------- */

#define REQUESTS_MAX 64
#define EVENTS_MAX 8192
#define EOS 28

struct eng_engine {
    struct eng_request *request[REQUESTS_MAX]; /* in order of submission; NULL once finished */
    int generated[REQUESTS_MAX];
    int count, cancel_count;
    int room; /* submissions that are taken before ST_FULL */
    bool failed;
    struct eng_event events[EVENTS_MAX];
    int head, tail;
};

const int32_t eng_step_bounds[ENG_STEP_BUCKETS - 1] = {1,   8,   16,   32,   64,  128,
                                                       256, 512, 1024, 2048, 4096};

void eng_limits(const struct eng_engine *e, struct eng_limits *out)
{
    (void)e;
    *out = (struct eng_limits){.model_len_max = 20000, .vocab = 32, .eos = {EOS}, .eos_count = 1};
}

enum status eng_submit(struct eng_engine *e, struct eng_request *r)
{
    assert_true(r->prompt_count >= 1 && r->sampling.max_tokens >= 1);
    assert_true(r->prompt_count + r->sampling.max_tokens <= 20000);
    if (e->failed) return ST_DEVICE;
    if (e->room == 0) return ST_FULL;
    assert_true(e->count < REQUESTS_MAX);
    e->room--;
    e->request[e->count++] = r;
    return ST_OK;
}

static inline void push(struct eng_engine *e, struct eng_event event)
{
    assert_true(e->tail < EVENTS_MAX);
    e->events[e->tail++] = event;
}

static inline void fake_finish(struct eng_engine *e, int i, enum eng_finish why, int32_t token)
{
    struct eng_request *r = e->request[i];
    if (!r) return;
    e->request[i] = NULL;
    push(e, (struct eng_event){.kind = ENG_EVENT_FINISHED,
                               .request = r,
                               .finish = why,
                               .sample = {.token = token, .logprob = -1}});
}

void eng_cancel(struct eng_engine *e, struct eng_request *r)
{
    e->cancel_count++;
    for (int i = 0; i < e->count; i++)
        if (e->request[i] == r) fake_finish(e, i, ENG_FINISH_CANCELLED, 0);
}

bool eng_poll(struct eng_engine *e, struct eng_event *out)
{
    if (e->head == e->tail) return false;
    *out = e->events[e->head++];
    if (e->head == e->tail) e->head = e->tail = 0;
    return true;
}

void eng_stats(struct eng_engine *e, struct eng_stats *out)
{
    *out = (struct eng_stats){.failed = e->failed, .progress_ns = clock_now_ns()};
}

static inline void fake_token(struct eng_engine *e, int i, int32_t token)
{
    struct eng_request *r = e->request[i];
    if (!r) return;
    struct eng_event event = {
        .kind = ENG_EVENT_TOKEN,
        .request = r,
        .index = e->generated[i],
        .sample = {.token = token, .logprob = -0.5f, .top_count = 1, .top = {{token, -0.5f}}}};
    r->tokens[r->prompt_count + e->generated[i]++] = token;
    if (!r->first_ns) r->first_ns = clock_now_ns();
    push(e, event);
    if (e->generated[i] == r->sampling.max_tokens) fake_finish(e, i, ENG_FINISH_LENGTH, 0);
}

static inline void fake_prompt(struct eng_engine *e, int i)
{
    struct eng_request *r = e->request[i];
    for (int32_t k = 0; k < r->prompt_count; k++)
        push(e, (struct eng_event){.kind = ENG_EVENT_PROMPT,
                                   .request = r,
                                   .index = k,
                                   .sample = {.token = r->tokens[k], .logprob = k ? -2 : NAN}});
}

/* Tokens of letters: "a" is 0. */
static inline void fake_text(struct eng_engine *e, int i, const char *text)
{
    for (; *text; text++) fake_token(e, i, *text == ' ' ? 26 : *text - 'a');
}

/* --- the server around it ---------------------------------------------------------------- */

struct fixture {
    uv_loop_t loop;
    struct eng_engine engine;
    struct eng_tok *tok;
    struct srv_api *api;
    struct srv_http *http;
    char folder[64];
    bool drained;
};

static inline void write_tokenizer(struct fixture *f)
{
    char path[128];
    snprintf(f->folder, sizeof f->folder, "/tmp/dakd-test-XXXXXX");
    assert_non_null(mkdtemp(f->folder));
    snprintf(path, sizeof path, "%s/tokenizer.json", f->folder);
    FILE *out = fopen(path, "w");
    assert_non_null(out);
    fputs(
        "{\"version\":\"1.0\",\"added_tokens\":[{\"id\":28,\"content\":\"<end>\",\"special\":true,"
        "\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false}],"
        "\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
        "\"trim_offsets\":true,\"use_regex\":true},\"post_processor\":null,\"decoder\":{\"type\":"
        "\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true},"
        "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,"
        "\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,\"fuse_unk\":false,"
        "\"byte_fallback\":false,\"vocab\":{",
        out);
    for (int i = 0; i < 26; i++) fprintf(out, "\"%c\":%d,", 'a' + i, i);
    fputs("\"\\u0120\":26,\"\\u010a\":27},\"merges\":[]}}", out);
    fclose(out);
    char err[ERR_CAP];
    if (eng_tok_open(f->folder, &f->tok, err)) fail_msg("%s", err);
    unlink(path);
    rmdir(f->folder);
}

static inline int setup(void **state)
{
    static const char *const names[] = {"test"};
    struct fixture *f = calloc(1, sizeof *f);
    struct srv_api_config config = srv_api_config_default();
    struct srv_http_config http = srv_http_config_default();
    struct eng_model_info info = {
        .temperature = NAN, .top_p = NAN, .min_p = NAN, .repetition_penalty = NAN, .top_k = -1};
    char err[ERR_CAP];
    size_t count;
    assert_non_null(f);
    *state = f;
    f->engine.room = REQUESTS_MAX;
    write_tokenizer(f);
    assert_int_equal(uv_loop_init(&f->loop), 0);
    config.model_names = names;
    config.model_name_count = 1;
    config.keep_alive_ms = 40;
    config.memory_bytes_max = 64 << 20;
    http.port = 0;
    http.write_buffer_max = config.write_buffer_max = 32768;
    http.admit = srv_api_admit;
    if (srv_api_open(&f->loop, &config, f->tok, NULL, &f->api, err)) fail_msg("%s", err);
    const struct srv_route *routes = srv_api_routes(&count);
    if (srv_http_open(&f->loop, &http, routes, count, f->api, &f->http, err) ||
        srv_http_listen(f->http, err))
        fail_msg("%s", err);
    srv_api_attach(f->api, &f->engine, &info, f->http);
    return 0;
}

/* Every test ends with nothing left: jobs, memory, handles. */
static inline int teardown(void **state)
{
    struct fixture *f = *state;
    srv_http_close(f->http, NULL, NULL);
    for (int i = 0; i < f->engine.count; i++) fake_finish(&f->engine, i, ENG_FINISH_CANCELLED, 0);
    srv_api_stop(f->api);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    assert_int_equal(f->api->job_count, 0);
    assert_int_equal(f->api->live_sequences, 0);
    assert_true(f->api->memory_bytes == 0);
    srv_api_close(f->api);
    assert_int_equal(uv_loop_close(&f->loop), 0);
    eng_tok_close(f->tok);
    free(f);
    return 0;
}

static inline void spin(struct fixture *f)
{
    srv_api_wake(f->api);
    for (int i = 0; i < 20; i++) {
        uv_run(&f->loop, UV_RUN_NOWAIT);
        usleep(200);
    }
}

/* --- the client -------------------------------------------------------------------------- */

static inline int dial(struct fixture *f, int receive_bytes)
{
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)srv_http_port(f->http)),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    if (receive_bytes) setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof receive_bytes);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

static inline void send_all(struct fixture *f, int fd, const char *data, size_t len)
{
    while (len > 0) {
        ssize_t n = send(fd, data, len, MSG_NOSIGNAL);
        assert_true(n > 0 || errno == EAGAIN);
        if (n > 0) {
            data += n;
            len -= (size_t)n;
        }
        uv_run(&f->loop, UV_RUN_NOWAIT);
    }
}

static inline int post_to(struct fixture *f, const char *path, const char *body, int receive_bytes)
{
    int fd = dial(f, receive_bytes);
    char head[256];
    int n = snprintf(head, sizeof head, "POST %s HTTP/1.0\r\nContent-Length: %zu\r\n\r\n", path,
                     strlen(body));
    send_all(f, fd, head, (size_t)n);
    send_all(f, fd, body, strlen(body));
    return fd;
}

static inline int post(struct fixture *f, const char *body, int receive_bytes)
{
    int fd = post_to(f, "/v1/completions", body, receive_bytes);
    spin(f);
    return fd;
}

/* Reads what is there; true at the end of the connection. */
static inline bool drink(int fd, struct buf *out, size_t max)
{
    char part[4096];
    while (max > 0) {
        ssize_t n = recv(fd, part, size_min(sizeof part, max), 0);
        if (n == 0) return true;
        if (n < 0) return errno != EAGAIN;
        buf_put(out, part, (size_t)n);
        max -= (size_t)n;
    }
    return false;
}

/* The whole answer, until the server closes. */
static inline char *finish_reading(struct fixture *f, int fd)
{
    struct buf out;
    buf_init(&out, 64 << 20);
    for (int i = 0; i < 20000 && !drink(fd, &out, SIZE_MAX); i++) spin(f);
    assert_int_equal(buf_status(&out), ST_OK);
    close(fd);
    spin(f);
    return out.data;
}

static inline void assert_has(const char *text, const char *wanted)
{
    if (!strstr(text, wanted)) fail_msg("'%s' is not in:\n%.3000s", wanted, text);
}

static inline void assert_lacks(const char *text, const char *unwanted)
{
    if (strstr(text, unwanted)) fail_msg("'%s' is in:\n%.3000s", unwanted, text);
}

/* {"prompt":"xx...x"} of about `bytes`; free() it. */
static inline char *long_body(size_t bytes)
{
    char *body = malloc(bytes + 32);
    assert_non_null(body);
    size_t n = (size_t)sprintf(body, "{\"prompt\":\"");
    memset(body + n, 'x', bytes);
    memcpy(body + n + bytes, "\"}", 3);
    return body;
}

/* Keeps every thread of libuv's pool busy until it is opened. */
struct gate {
    uv_work_t work[4];
    uv_sem_t open;
    int passed;
};

static inline void wait_at_gate(uv_work_t *work)
{
    struct gate *g = work->data;
    uv_sem_wait(&g->open);
}

static inline void gate_passed(uv_work_t *work, int status)
{
    struct gate *g = work->data;
    assert_int_equal(status, 0);
    g->passed++;
}

static inline void gate_shut(struct gate *g, uv_loop_t *loop)
{
    assert_int_equal(uv_sem_init(&g->open, 0), 0);
    g->passed = 0;
    for (size_t i = 0; i < ARRAY_COUNT(g->work); i++) {
        g->work[i].data = g;
        assert_int_equal(uv_queue_work(loop, &g->work[i], wait_at_gate, gate_passed), 0);
    }
}

static inline void gate_open(struct gate *g)
{
    for (size_t i = 0; i < ARRAY_COUNT(g->work); i++) uv_sem_post(&g->open);
}

/* Of an open gate: once every thread has passed. */
static inline void gate_free(struct fixture *f, struct gate *g)
{
    for (int k = 0; k < 20000 && g->passed < (int)ARRAY_COUNT(g->work); k++) spin(f);
    assert_int_equal(g->passed, ARRAY_COUNT(g->work));
    uv_sem_destroy(&g->open);
}

#endif
