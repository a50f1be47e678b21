/*
 * Requests through the real transport and API, with an engine that does what each test says: slow
 * readers, clients that leave, failures at every stage, and that nothing stays behind.
 */
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

static void push(struct eng_engine *e, struct eng_event event)
{
    assert_true(e->tail < EVENTS_MAX);
    e->events[e->tail++] = event;
}

static void fake_finish(struct eng_engine *e, int i, enum eng_finish why, int32_t token)
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

static void fake_token(struct eng_engine *e, int i, int32_t token)
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

static void fake_prompt(struct eng_engine *e, int i)
{
    struct eng_request *r = e->request[i];
    for (int32_t k = 0; k < r->prompt_count; k++)
        push(e, (struct eng_event){.kind = ENG_EVENT_PROMPT,
                                   .request = r,
                                   .index = k,
                                   .sample = {.token = r->tokens[k], .logprob = k ? -2 : NAN}});
}

/* Tokens of letters: "a" is 0. */
static void fake_text(struct eng_engine *e, int i, const char *text)
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

static void write_tokenizer(struct fixture *f)
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

static int setup(void **state)
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
static int teardown(void **state)
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

static void spin(struct fixture *f)
{
    srv_api_wake(f->api);
    for (int i = 0; i < 20; i++) {
        uv_run(&f->loop, UV_RUN_NOWAIT);
        usleep(200);
    }
}

/* --- the client -------------------------------------------------------------------------- */

static int dial(struct fixture *f, int receive_bytes)
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

static void send_all(struct fixture *f, int fd, const char *data, size_t len)
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

static int post_to(struct fixture *f, const char *path, const char *body, int receive_bytes)
{
    int fd = dial(f, receive_bytes);
    char head[256];
    int n = snprintf(head, sizeof head, "POST %s HTTP/1.0\r\nContent-Length: %zu\r\n\r\n", path,
                     strlen(body));
    send_all(f, fd, head, (size_t)n);
    send_all(f, fd, body, strlen(body));
    return fd;
}

static int post(struct fixture *f, const char *body, int receive_bytes)
{
    int fd = post_to(f, "/v1/completions", body, receive_bytes);
    spin(f);
    return fd;
}

/* Reads what is there; true at the end of the connection. */
static bool drink(int fd, struct buf *out, size_t max)
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
static char *finish_reading(struct fixture *f, int fd)
{
    struct buf out;
    buf_init(&out, 64 << 20);
    for (int i = 0; i < 20000 && !drink(fd, &out, SIZE_MAX); i++) spin(f);
    assert_int_equal(buf_status(&out), ST_OK);
    close(fd);
    spin(f);
    return out.data;
}

static void assert_has(const char *text, const char *wanted)
{
    if (!strstr(text, wanted)) fail_msg("'%s' is not in:\n%.3000s", wanted, text);
}

static void assert_lacks(const char *text, const char *unwanted)
{
    if (strstr(text, unwanted)) fail_msg("'%s' is in:\n%.3000s", unwanted, text);
}

/* --- tests ------------------------------------------------------------------------------- */

static void test_whole_answer(void **state)
{
    struct fixture *f = *state;
    int fd = post(f, "{\"prompt\":\"hello\",\"max_tokens\":9,\"temperature\":0}", 0);
    assert_int_equal(f->engine.count, 1);
    assert_int_equal(f->engine.request[0]->prompt_count, 5);
    fake_text(&f->engine, 0, "a cab");
    fake_finish(&f->engine, 0, ENG_FINISH_STOP, EOS);
    char *text = finish_reading(f, fd);
    assert_has(text, "HTTP/1.1 200");
    assert_has(text, "\"text\":\"a cab\"");
    assert_has(text, "\"finish_reason\":\"stop\"");
    assert_has(text, "\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":6,\"total_tokens\":11}");
    free(text);
    assert_int_equal(f->api->metrics.ended[SRV_END_STOP], 1);
}

static void test_stop_string_over_tokens(void **state)
{
    struct fixture *f = *state;
    for (int stream = 0; stream < 2; stream++) {
        char body[160];
        snprintf(body, sizeof body,
                 "{\"prompt\":\"x\",\"max_tokens\":50,\"stop\":\"the end\",\"stream\":%s}",
                 stream ? "true" : "false");
        int fd = post(f, body, 0), i = f->engine.count - 1;
        fake_text(&f->engine, i, "see the e");
        spin(f);
        assert_non_null(f->engine.request[i]);
        fake_text(&f->engine, i, "nding and more");
        char *text = finish_reading(f, fd);
        assert_null(f->engine.request[i]);
        assert_has(text, "\"finish_reason\":\"stop\",\"stop_reason\":\"the end\"");
        if (stream) {
            /* What was held back never left. */
            assert_has(text, "\"text\":\" \"");
            assert_lacks(text, "\"text\":\"t\"");
            assert_has(text, "data: [DONE]");
        } else {
            assert_has(text, "\"text\":\"see \"");
            assert_has(text, "\"completion_tokens\":11,");
        }
        free(text);
    }
    assert_int_equal(f->engine.cancel_count, 2);
    assert_int_equal(f->api->metrics.ended[SRV_END_STOP], 2);
}

/* Without a reader the stream stops at the transport's mark, tokens stay records, and nothing is
 * lost. */
static void test_slow_reader(void **state)
{
    struct fixture *f = *state;
    enum { COUNT = 19000 }; /* more than the sockets themselves can hold */
    int fd =
        post(f, "{\"prompt\":\"x\",\"max_tokens\":19000,\"logprobs\":1,\"stream\":true}", 2048);
    for (int i = 0; i < COUNT; i++) {
        fake_token(&f->engine, 0, i % 26);
        if (i % 500 == 0) spin(f);
    }
    spin(f);
    assert_int_equal(f->api->live_sequences, 0); /* the engine did not wait */
    assert_int_equal(f->api->job_count, 1);
    assert_true(srv_http_stats(f->http)->queue_bytes_peak <= 32768);
    char *text = finish_reading(f, fd);
    int seen = 0;
    for (const char *at = text; (at = strstr(at, "\"text\":\"")); seen++) {
        at += strlen("\"text\":\"");
        if (seen < COUNT) assert_int_equal(*at, 'a' + seen % 26);
    }
    assert_true(seen == COUNT || seen == COUNT + 1);
    assert_has(text, "\"finish_reason\":\"length\"");
    assert_has(text, "data: [DONE]\n\n");
    free(text);
}

static void test_client_leaves(void **state)
{
    struct fixture *f = *state;
    static const char *const bodies[] = {
        "{\"prompt\":[\"x\",\"y\"],\"n\":3,\"max_tokens\":500,\"stream\":true}",
        "{\"prompt\":[\"x\",\"y\"],\"n\":3,\"max_tokens\":500}"};
    for (int k = 0; k < 2; k++) {
        int fd = post(f, bodies[k], 0);
        assert_int_equal(f->api->live_sequences, 6);
        fake_text(&f->engine, 6 * k, "abc");
        spin(f);
        close(fd);
        spin(f);
        assert_int_equal(f->engine.cancel_count, 6 * (k + 1));
        assert_int_equal(f->api->job_count, 0);
        assert_true(f->api->memory_bytes == 0);
        assert_int_equal(f->api->metrics.client_left, k + 1);
    }
    assert_int_equal(f->api->metrics.ended[SRV_END_ABORT], 12);
}

static char *long_prompt(size_t len)
{
    char *body = malloc(len + 64);
    assert_non_null(body);
    int n = sprintf(body, "{\"max_tokens\":5,\"prompt\":\"");
    for (size_t i = 0; i < len; i++) body[n++] = (char)(i % 6 == 5 ? ' ' : 'a' + i % 26);
    strcpy(body + n, "\"}");
    return body;
}

static void test_client_leaves_while_tokenising(void **state)
{
    struct fixture *f = *state;
    char *body = long_prompt(200000); /* too long for the model, too: an answer would be a 400 */
    int fd = dial(f, 0);
    char head[128];
    int n = snprintf(head, sizeof head,
                     "POST /v1/completions HTTP/1.1\r\nContent-Length: %zu\r\n\r\n", strlen(body));
    send_all(f, fd, head, (size_t)n);
    send_all(f, fd, body, strlen(body));
    close(fd);
    for (int i = 0; i < 5000 && (f->api->job_count || !f->api->metrics.client_left); i++) spin(f);
    assert_int_equal(f->engine.count, 0);
    free(body);
}

static void test_long_prompt_goes_through_the_pool(void **state)
{
    struct fixture *f = *state;
    char *body = long_prompt(19000 * 2);
    int fd = post(f, body, 0);
    char *text = finish_reading(f, fd);
    assert_has(text, "HTTP/1.1 400");
    assert_has(text, "\"n_prompt_tokens\":38000,\"n_ctx\":20000");
    free(text);
    free(body);
}

static void test_engine_fails(void **state)
{
    struct fixture *f = *state;
    int whole = post(f, "{\"prompt\":\"x\",\"max_tokens\":5}", 0);
    int stream = post(f, "{\"prompt\":\"x\",\"max_tokens\":5,\"stream\":true}", 0);
    fake_text(&f->engine, 1, "ab");
    spin(f);
    f->engine.failed = true;
    fake_finish(&f->engine, 0, ENG_FINISH_ERROR, 0);
    fake_finish(&f->engine, 1, ENG_FINISH_ERROR, 0);
    char *text = finish_reading(f, whole);
    assert_has(text, "HTTP/1.1 500");
    assert_has(text, "\"type\":\"server_error\"");
    free(text);
    text = finish_reading(f, stream);
    assert_has(text, "HTTP/1.1 200");
    assert_has(text, "data: {\"error\":{");
    assert_has(text, "}}\n\ndata: [DONE]\n\n");
    free(text);
    text = finish_reading(f, post(f, "{\"prompt\":\"x\"}", 0));
    assert_has(text, "HTTP/1.1 500");
    free(text);
    char why[ERR_CAP];
    assert_false(srv_api_healthy(f->api, why));
    assert_int_equal(f->api->metrics.ended[SRV_END_ERROR], 2);
}

static void test_queue_full_takes_all_or_nothing(void **state)
{
    struct fixture *f = *state;
    f->engine.room = 2;
    char *text = finish_reading(f, post(f, "{\"prompt\":\"x\",\"n\":3}", 0));
    assert_has(text, "HTTP/1.1 503");
    assert_has(text, "Retry-After: 1");
    assert_has(text, "\"type\":\"unavailable_error\"");
    free(text);
    assert_int_equal(f->engine.cancel_count, 2);
    assert_int_equal(f->api->job_count, 0);
    assert_int_equal(f->api->metrics.rejected, 1);
}

static void test_memory_is_promised_first(void **state)
{
    struct fixture *f = *state;
    char *text = finish_reading(
        f, post(f, "{\"prompt\":\"x\",\"max_tokens\":19000,\"logprobs\":20,\"n\":64}", 0));
    assert_has(text, "HTTP/1.1 400");
    assert_has(text, "\"param\":\"max_tokens\"");
    free(text);
    /* Each takes about 19000 * 21 * 8 * 16 = 51 MB of the 64. */
    const char *body =
        "{\"prompt\":\"x\",\"max_tokens\":19000,\"logprobs\":20,\"n\":16,\"stream\":true}";
    int fd = post(f, body, 0);
    assert_int_equal(f->api->live_sequences, 16);
    text = finish_reading(f, post(f, body, 0));
    assert_has(text, "HTTP/1.1 503");
    free(text);
    close(fd);
    spin(f);
    assert_true(f->api->memory_bytes == 0);
}

/* {"prompt":"xx...x"} of about `bytes`; free() it. */
static char *long_body(size_t bytes)
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
};

static void wait_at_gate(uv_work_t *work)
{
    uv_sem_wait(work->data);
}

static void gate_passed(uv_work_t *work, int status)
{
    (void)work;
    assert_int_equal(status, 0);
}

static void gate_shut(struct gate *g, uv_loop_t *loop)
{
    assert_int_equal(uv_sem_init(&g->open, 0), 0);
    for (size_t i = 0; i < ARRAY_COUNT(g->work); i++) {
        g->work[i].data = &g->open;
        assert_int_equal(uv_queue_work(loop, &g->work[i], wait_at_gate, gate_passed), 0);
    }
}

static void gate_open(struct gate *g)
{
    for (size_t i = 0; i < ARRAY_COUNT(g->work); i++) uv_sem_post(&g->open);
}

/* Prompts that wait for the pool count: 150 KiB of text and their tokens are 750 of 1024. */
static void test_memory_of_prompts_is_promised(void **state)
{
    struct fixture *f = *state;
    static const char *const paths[] = {"/v1/completions", "/tokenize"};
    char *large = long_body(150 << 10), *too_large = long_body(220 << 10);
    f->api->config.memory_bytes_max = 1 << 20;
    for (size_t i = 0; i < ARRAY_COUNT(paths); i++) {
        struct gate gate;
        gate_shut(&gate, &f->loop);
        int first = post_to(f, paths[i], large, 0);
        for (int k = 0; k < 10000 && f->api->memory_bytes == 0; k++)
            uv_run(&f->loop, UV_RUN_NOWAIT);
        assert_true(f->api->memory_bytes == 750 << 10);
        char *text = finish_reading(f, post_to(f, "/v1/completions", large, 0));
        assert_has(text, "HTTP/1.1 503");
        free(text);
        gate_open(&gate);
        text = finish_reading(f, first);
        assert_has(text, i ? "HTTP/1.1 200" : "context_length_exceeded");
        free(text);
        assert_true(f->api->memory_bytes == 0);
        text = finish_reading(f, post_to(f, paths[i], too_large, 0));
        assert_has(text, "HTTP/1.1 400");
        assert_has(text, "\"param\":\"prompt\"");
        free(text);
        uv_sem_destroy(&gate.open);
    }
    free(large);
    free(too_large);
}

static void test_keep_alive(void **state)
{
    struct fixture *f = *state;
    struct buf out;
    buf_init(&out, 1 << 20);
    int fd = post(f, "{\"prompt\":\"x\",\"max_tokens\":2,\"stream\":true}", 0);
    drink(fd, &out, SIZE_MAX);
    assert_has(out.data, "text/event-stream"); /* the head did not wait for a token */
    assert_lacks(out.data, "data:");
    for (int i = 0; i < 400 && !strstr(out.data, "\n: "); i++) {
        spin(f);
        drink(fd, &out, SIZE_MAX);
    }
    assert_has(out.data, ": keep-alive");
    buf_deinit(&out);
    fake_text(&f->engine, 0, "ab");
    char *text = finish_reading(f, fd);
    assert_has(text, "data: [DONE]");
    free(text);
}

static void test_scores(void **state)
{
    struct fixture *f = *state;
    int fd = post(f, "{\"prompt\":[1,2,3],\"max_tokens\":1,\"echo\":true,\"logprobs\":1}", 0);
    fake_prompt(&f->engine, 0);
    /* The one token is EOS: it still has its row, so that the prompt's rows are where clients look.
     */
    fake_finish(&f->engine, 0, ENG_FINISH_STOP, EOS);
    char *text = finish_reading(f, fd);
    assert_has(text, "\"tokens\":[\"b\",\"c\",\"d\",\"<end>\"]");
    assert_has(text, "\"token_logprobs\":[null,-2,-2,-1]");
    assert_has(text, "\"text_offset\":[0,1,2,3]");
    assert_has(text, "\"text\":\"bcd\"");
    free(text);
    fd = post(
        f, "{\"prompt\":[1,2,3],\"max_tokens\":0,\"echo\":true,\"logprobs\":0,\"stream\":true}", 0);
    fake_prompt(&f->engine, 1);
    fake_text(&f->engine, 1, "z");
    text = finish_reading(f, fd);
    assert_has(text, "\"text\":\"bcd\"");
    assert_has(text, "\"tokens\":[\"b\",\"c\",\"d\"]");
    assert_has(text, "\"finish_reason\":\"length\"");
    assert_lacks(text, "\"z\"");
    free(text);
}

static void test_abort_and_drain(void **state)
{
    struct fixture *f = *state;
    int stream = post(f, "{\"prompt\":\"x\",\"max_tokens\":9,\"stream\":true}", 0);
    int whole = post(f, "{\"prompt\":\"x\",\"max_tokens\":9}", 0);
    fake_text(&f->engine, 0, "ab");
    srv_api_drain(f->api);
    char *text = finish_reading(f, post(f, "{\"prompt\":\"x\"}", 0));
    assert_has(text, "HTTP/1.1 503");
    assert_has(text, "shutting down");
    free(text);
    assert_int_equal(srv_api_active(f->api), 2);
    srv_api_abort(f->api);
    assert_int_equal(f->engine.cancel_count, 2);
    text = finish_reading(f, stream);
    assert_has(text, "data: {\"error\":{");
    assert_has(text, "\n\ndata: [DONE]\n\n");
    free(text);
    text = finish_reading(f, whole);
    assert_has(text, "HTTP/1.1 503");
    free(text);
    assert_int_equal(srv_api_active(f->api), 0);
}

/* A stream whose reader rests holds its answer; an abort frees it although the engine has nothing
 * to add. */
static void test_abort_of_a_paused_stream(void **state)
{
    struct fixture *f = *state;
    int fd = post(f, "{\"prompt\":\"x\",\"max_tokens\":3000,\"stream\":true}", 2048);
    for (int i = 0; i < 3000; i++) fake_token(&f->engine, 0, i % 26);
    spin(f);
    assert_int_equal(srv_api_active(f->api), 1);
    srv_api_abort(f->api);
    assert_int_equal(srv_api_active(f->api), 0);
    close(fd);
    spin(f);
}

static void test_seeds(void **state)
{
    struct fixture *f = *state;
    int fd[3] = {post(f, "{\"prompt\":[\"x\",\"y\"],\"n\":2,\"seed\":5}", 0),
                 post(f, "{\"prompt\":\"x\",\"seed\":5}", 0),
                 post(f, "{\"prompt\":\"x\",\"n\":2}", 0)};
    struct eng_request **r = f->engine.request;
    assert_int_equal(f->engine.count, 7);
    assert_true(r[0]->sampling.seed == 5 && r[2]->sampling.seed == 5 && r[4]->sampling.seed == 5);
    assert_true(r[1]->sampling.seed != 5 && r[1]->sampling.seed == r[3]->sampling.seed);
    assert_true(r[5]->sampling.seed != r[6]->sampling.seed && r[5]->sampling.seed != 5);
    for (int i = 0; i < 3; i++) close(fd[i]);
    spin(f);
}

int main(void)
{
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_whole_answer),
        TEST(test_stop_string_over_tokens),
        TEST(test_slow_reader),
        TEST(test_client_leaves),
        TEST(test_client_leaves_while_tokenising),
        TEST(test_long_prompt_goes_through_the_pool),
        TEST(test_engine_fails),
        TEST(test_queue_full_takes_all_or_nothing),
        TEST(test_memory_is_promised_first),
        TEST(test_memory_of_prompts_is_promised),
        TEST(test_keep_alive),
        TEST(test_scores),
        TEST(test_abort_and_drain),
        TEST(test_abort_of_a_paused_stream),
        TEST(test_seeds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
