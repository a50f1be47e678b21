/*
 * Requests through the real transport and API, with an engine that does what each test says: slow
 * readers, clients that leave, failures at every stage, and that nothing stays behind.
 */
#include "tests/api_rig.h"

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
    assert_has(text, "\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":6,\"total_tokens\":11,"
                     "\"prompt_tokens_details\":{\"cached_tokens\":0}}");
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

/* Prompts that wait for the pool count: 150 KiB of text and their tokens are 750 of 1024. */
static void test_memory_of_prompts_is_promised(void **state)
{
    struct fixture *f = *state;
    static const char *const paths[] = {"/v1/completions", "/tokenize"};
    const uint64_t promised = 750 << 10;
    char *large = long_body(150 << 10), *too_large = long_body(220 << 10);
    f->api->config.memory_bytes_max = 1 << 20;
    for (size_t i = 0; i < ARRAY_COUNT(paths); i++) {
        struct gate before, behind; /* the reading of the body */
        gate_shut(&before, &f->loop);
        int first = post_to(f, paths[i], large, 0);
        for (int k = 0; k < 10000 && !f->api->lanes[0].reading; k++)
            uv_run(&f->loop, UV_RUN_NOWAIT);
        gate_shut(&behind, &f->loop);
        gate_open(&before);
        for (int k = 0; k < 10000 && f->api->memory_bytes == 0; k++) spin(f);
        assert_true(f->api->memory_bytes == promised);
        gate_open(&behind);
        char *text = finish_reading(f, first);
        assert_has(text, i ? "HTTP/1.1 200" : "context_length_exceeded");
        free(text);
        assert_true(f->api->memory_bytes == 0);
        f->api->memory_bytes = promised; /* somebody else's */
        text = finish_reading(f, post_to(f, paths[i], large, 0));
        assert_has(text, "HTTP/1.1 503");
        free(text);
        assert_true(f->api->memory_bytes == promised);
        f->api->memory_bytes = 0;
        text = finish_reading(f, post_to(f, paths[i], too_large, 0));
        assert_has(text, "HTTP/1.1 400");
        assert_has(text, "\"param\":\"prompt\"");
        free(text);
        gate_free(f, &before);
        gate_free(f, &behind);
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

/* Of two prompts with two choices each: a prompt's cached tokens count once, as its first choice
 * found them, and a chunk tells its own choice's.  The salt reaches the engine. */
static void test_cached_tokens(void **state)
{
    struct fixture *f = *state;
    static const int32_t cached[] = {3, 5, 1, 4};
    for (int stream = 0; stream < 2; stream++) {
        char body[256];
        snprintf(body, sizeof body,
                 "{\"prompt\":[\"abcdef\",\"abcdef\"],\"n\":2,\"max_tokens\":1,"
                 "\"cache_salt\":\"tenant\"%s}",
                 stream ? ",\"stream\":true,\"stream_options\":{\"include_usage\":true,"
                          "\"continuous_usage_stats\":true}"
                        : "");
        int fd = post(f, body, 0), first = f->engine.count - 4;
        for (int i = 0; i < 4; i++) {
            struct eng_request *r = f->engine.request[first + i];
            assert_int_equal(r->cache_salt_length, 6);
            assert_memory_equal(r->cache_salt, "tenant", 6);
            r->cached_count = cached[i]; /* before its first event, as the engine does */
            fake_text(&f->engine, first + i, "z");
        }
        char *text = finish_reading(f, fd);
        assert_has(text, "\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":4,"
                         "\"total_tokens\":16,\"prompt_tokens_details\":{\"cached_tokens\":4}}");
        for (int i = 0; i < 4 && stream; i++) {
            char own[64];
            snprintf(own, sizeof own,
                     "\"total_tokens\":7,\"prompt_tokens_details\":"
                     "{\"cached_tokens\":%d}",
                     (int)cached[i]);
            assert_has(text, own);
        }
        free(text);
    }
    int fd = post(f, "{\"prompt\":\"a\",\"max_tokens\":1}", 0);
    assert_int_equal(f->engine.request[f->engine.count - 1]->cache_salt_length, 0);
    fake_text(&f->engine, f->engine.count - 1, "z");
    free(finish_reading(f, fd));
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
        TEST(test_cached_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
