/*
 * Large request bodies: others are answered while one is read, turns are kept, and a client that
 * leaves, at whatever moment, leaves nothing behind.
 */
#include "tests/api_rig.h"

#define LARGE (100 << 10) /* of the first lane */
#define LARGER (2 << 20)  /* of the second */

/* A valid request whose answer is a token, its prompt token `token` of the vocabulary, of about
 * `bytes`: the rest is white space.  free() it. */
static char *padded(int token, size_t bytes)
{
    char *body = malloc(bytes + 64);
    assert_non_null(body);
    size_t n = (size_t)sprintf(body, "{\"max_tokens\":1,\"prompt\":[%d]", token);
    memset(body + n, ' ', bytes);
    memcpy(body + n + bytes, "}", 2);
    return body;
}

static int post_padded(struct fixture *f, int token, size_t bytes)
{
    char *body = padded(token, bytes);
    int fd = post_to(f, "/v1/completions", body, 0);
    free(body);
    return fd;
}

/* Turns the loop until the lane has as many bodies, at work or waiting. */
static void await_lane(struct fixture *f, int lane, int wanted)
{
    for (int k = 0; k < 20000; k++) {
        const struct srv_lane *l = &f->api->lanes[lane];
        if ((l->reading != NULL) + l->waiting == wanted) return;
        uv_run(&f->loop, UV_RUN_NOWAIT);
        usleep(50);
    }
    fail_msg("lane %d never had %d bodies", lane, wanted);
}

static void await_requests(struct fixture *f, int wanted)
{
    for (int k = 0; k < 20000 && f->engine.count < wanted; k++) spin(f);
    assert_int_equal(f->engine.count, wanted);
}

static void assert_served(struct fixture *f)
{
    char *text = finish_reading(f, post_to(f, "/tokenize", "{\"prompt\":\"abc\"}", 0));
    assert_has(text, "\"tokens\":[0,1,2]");
    free(text);
}

/* With the pool shut, large bodies wait; small requests, of the same routes too, do not. */
static void test_others_are_answered_meanwhile(void **state)
{
    struct fixture *f = *state;
    struct gate gate;
    gate_shut(&gate, &f->loop);
    int large = post_padded(f, 3, LARGE), larger = post_padded(f, 4, LARGER);
    await_lane(f, 0, 1);
    await_lane(f, 1, 1);
    assert_served(f);
    int small = post(f, "{\"prompt\":[5],\"max_tokens\":1}", 0);
    assert_int_equal(f->engine.count, 1);
    fake_token(&f->engine, 0, 0);
    char *text = finish_reading(f, small);
    assert_has(text, "\"text\":\"a\"");
    free(text);
    gate_open(&gate);
    await_requests(f, 3);
    assert_int_equal(f->engine.request[1]->tokens[0] + f->engine.request[2]->tokens[0], 3 + 4);
    fake_token(&f->engine, 1, 1);
    fake_token(&f->engine, 2, 1);
    for (int i = 0; i < 2; i++) {
        text = finish_reading(f, i ? larger : large);
        assert_has(text, "\"text\":\"b\"");
        free(text);
    }
    gate_free(f, &gate);
}

/* One at a time, in the order in which they came; each counts for what connections hold until its
 * turn. */
static void test_turns_are_kept(void **state)
{
    struct fixture *f = *state;
    struct gate gate;
    int fd[6];
    gate_shut(&gate, &f->loop);
    for (int i = 0; i < 6; i++) {
        fd[i] = post_padded(f, 10 + i, LARGE + 1000 * (size_t)(i % 3));
        await_lane(f, 0, i + 1);
    }
    assert_true(srv_http_stats(f->http)->body_bytes_held > 5 * LARGE);
    assert_true(srv_http_stats(f->http)->body_bytes_held < 6 * LARGE);
    gate_open(&gate);
    await_requests(f, 6);
    for (int i = 0; i < 6; i++) assert_int_equal(f->engine.request[i]->tokens[0], 10 + i);
    assert_true(srv_http_stats(f->http)->body_bytes_held == 0);
    for (int i = 0; i < 6; i++) close(fd[i]);
    spin(f);
    gate_free(f, &gate);
}

/* Clients leave while their body waits for its turn, or for the pool, in every order; the one that
 * stays is served. */
static void test_clients_leave(void **state)
{
    struct fixture *f = *state;
    for (int stays = 0; stays < 4; stays++) {
        struct gate gate;
        int fd[4];
        gate_shut(&gate, &f->loop);
        for (int i = 0; i < 4; i++) {
            fd[i] = post_padded(f, 10 + i, LARGE);
            await_lane(f, 0, i + 1);
        }
        for (int i = 0; i < 4; i++)
            if (i != stays) close(fd[i]);
        for (int k = 0; k < 20000 && f->api->metrics.client_left < 3u * (unsigned)(stays + 1); k++)
            spin(f);
        assert_int_equal(f->api->metrics.client_left, 3 * (stays + 1));
        assert_true(srv_http_stats(f->http)->body_bytes_held <= LARGE + 100);
        gate_open(&gate);
        await_requests(f, stays + 1);
        assert_int_equal(f->engine.request[stays]->tokens[0], 10 + stays);
        fake_token(&f->engine, stays, 2);
        char *text = finish_reading(f, fd[stays]);
        assert_has(text, "\"text\":\"c\"");
        free(text);
        await_lane(f, 0, 0);
        gate_free(f, &gate);
    }
}

/* And while it is read, which nothing tells the test: the moment is another in each round. */
static void test_clients_leave_while_read(void **state)
{
    struct fixture *f = *state;
    for (int round = 0; round < 30; round++) {
        int fd = post_padded(f, 1, LARGER);
        usleep((useconds_t)round * 100);
        close(fd);
        for (int k = 0; k < 20000 && f->api->metrics.client_left < (unsigned)round + 1; k++)
            spin(f);
        await_lane(f, 1, 0);
    }
    for (int k = 0; k < 20000 && f->api->job_count; k++) spin(f);
    assert_int_equal(f->api->metrics.client_left, 30);
    assert_served(f);
}

static void test_faults_of_large_bodies(void **state)
{
    struct fixture *f = *state;
    static const struct {
        const char *path, *end, *words;
    } bad[] = {
        {"/v1/completions", "x}", "could not be read: not valid JSON at line 1"},
        {"/v1/completions", ",\"nonsense\":1}", "Unrecognized request argument: 'nonsense'"},
        {"/v1/completions", ",\"prompt\":[1],\"max_tokens\":0}", "'max_tokens' must be at least 1"},
        {"/tokenize", ",\"prompt\":[1]}", "'prompt' must be a string"},
        {"/v1/chat/completions", ",\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}",
         "has no chat template"},
        {"/detokenize", ",\"tokens\":[99]}", "token ids (integers from 0 to 31), not 99"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        struct buf body;
        buf_init(&body, 1 << 20);
        buf_puts(&body, "{\"model\":\"test\"");
        for (int k = 0; k < LARGE; k++) buf_putc(&body, ' ');
        buf_puts(&body, bad[i].end);
        assert_int_equal(buf_status(&body), ST_OK);
        char *text = finish_reading(f, post_to(f, bad[i].path, body.data, 0));
        assert_has(text, "HTTP/1.1 400");
        assert_has(text, bad[i].words);
        free(text);
        buf_deinit(&body);
    }
}

/* The same bytes, large or small. */
static void test_large_answers_as_small(void **state)
{
    struct fixture *f = *state;
    static const char *const paths[] = {"/tokenize", "/detokenize"};
    static const char *const asks[] = {"{\"return_token_strs\":true,\"prompt\":\"ab cd\"}",
                                       "{\"tokens\":[0,1,26,2,3]}"};
    for (size_t i = 0; i < ARRAY_COUNT(paths); i++) {
        char *small = finish_reading(f, post_to(f, paths[i], asks[i], 0)), *large = NULL;
        struct buf body;
        buf_init(&body, 1 << 20);
        for (int k = 0; k < LARGE; k++) buf_putc(&body, '\n');
        buf_puts(&body, asks[i]);
        assert_int_equal(buf_status(&body), ST_OK);
        large = finish_reading(f, post_to(f, paths[i], body.data, 0));
        assert_has(large, "HTTP/1.1 200");
        assert_string_equal(strstr(large, "\r\n\r\n"), strstr(small, "\r\n\r\n"));
        assert_has(small, i ? "\"ab cd\"" : "[\"a\",\"b\",");
        free(small);
        free(large);
        buf_deinit(&body);
    }
}

/* An end of patience answers all who wait, whatever the pool does. */
static void test_abort(void **state)
{
    struct fixture *f = *state;
    struct gate gate;
    int fd[4];
    gate_shut(&gate, &f->loop);
    for (int i = 0; i < 4; i++) {
        fd[i] = post_padded(f, i, i < 2 ? LARGE : LARGER);
        await_lane(f, i / 2, i % 2 + 1);
    }
    srv_api_abort(f->api);
    for (int i = 0; i < 4; i++) {
        char *text = finish_reading(f, fd[i]);
        assert_has(text, "HTTP/1.1 503");
        assert_has(text, "shutting_down");
        free(text);
    }
    gate_open(&gate);
    await_lane(f, 0, 0);
    await_lane(f, 1, 0);
    assert_int_equal(f->engine.count, 0);
    gate_free(f, &gate);
}

int main(void)
{
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_others_are_answered_meanwhile),
        TEST(test_turns_are_kept),
        TEST(test_clients_leave),
        TEST(test_clients_leave_while_read),
        TEST(test_faults_of_large_bodies),
        TEST(test_large_answers_as_small),
        TEST(test_abort),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
