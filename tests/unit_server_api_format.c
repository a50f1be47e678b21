/* Answers and chunks: valid JSON with exactly the members OpenAI's clients read. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "config/check.h"
#include "config/json.h"
#include "server/api_format.h"
#include "server/fault.h"

/* Token 0..25: a letter; 26: the first two bytes of a euro sign; 27: its last; 28: special; 29:
 * also "a". */
static void put(const void *user, int32_t token, struct buf *out)
{
    (void)user;
    if (token == 26) buf_put(out, "\xe2\x82", 2);
    else if (token == 27) buf_put(out, "\xac", 1);
    else if (token == 28) buf_puts(out, "<|end|>");
    else buf_putc(out, (char)('a' + (token == 29 ? 0 : token)));
}

static bool hidden(const void *user, int32_t token)
{
    (void)user;
    return token == 28;
}

static const struct srv_vocab vocab = {.put = put, .hidden = hidden};
static const struct srv_head chat = {true, "chatcmpl-1", 7, "de\"mo", "dakd-0", &vocab};
static const struct srv_head completion = {false, "cmpl-1", 7, "demo", "dakd-0", &vocab};

static cJSON *parsed(const struct buf *b)
{
    cJSON *tree;
    char err[ERR_CAP];
    assert_int_equal(buf_status(b), ST_OK);
    if (json_parse(b->data, b->len, &json_limits_request, &tree, err))
        fail_msg("%s: %s", b->data, err);
    assert_null(strchr(b->data, '\n')); /* one event is one line */
    return tree;
}

static cJSON *at(const cJSON *object, const char *key)
{
    cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    if (!item) fail_msg("no member '%s'", key);
    return item;
}

static cJSON *chunk_of(const struct srv_head *head, const struct srv_piece *p,
                       enum srv_usage_mode mode, const struct srv_usage *usage)
{
    struct buf b;
    buf_init(&b, 1 << 20);
    srv_fmt_chunk(&b, head, p, mode, usage);
    cJSON *tree = parsed(&b);
    buf_deinit(&b);
    return tree;
}

static void test_chat_chunks(void **state)
{
    (void)state;
    struct srv_piece role = {.index = 2, .text = "", .stop_token = -1, .role = true};
    cJSON *t = chunk_of(&chat, &role, SRV_USAGE_ABSENT, NULL);
    assert_string_equal(at(t, "object")->valuestring, "chat.completion.chunk");
    assert_string_equal(at(t, "id")->valuestring, "chatcmpl-1");
    assert_string_equal(at(t, "model")->valuestring, "de\"mo");
    assert_string_equal(at(t, "system_fingerprint")->valuestring, "dakd-0");
    assert_int_equal(at(t, "created")->valueint, 7);
    assert_null(cJSON_GetObjectItem(t, "usage"));
    cJSON *c = at(t, "choices")->child;
    assert_int_equal(at(c, "index")->valueint, 2);
    assert_string_equal(at(at(c, "delta"), "role")->valuestring, "assistant");
    assert_string_equal(at(at(c, "delta"), "content")->valuestring, "");
    assert_true(cJSON_IsNull(at(c, "finish_reason")));
    assert_true(cJSON_IsNull(at(c, "logprobs")));
    cJSON_Delete(t);

    struct srv_piece text = {.text = "a\n\"\xe2\x82\xac\"", .len = 7, .stop_token = -1};
    t = chunk_of(&chat, &text, SRV_USAGE_NULL, NULL);
    c = at(t, "choices")->child;
    assert_null(cJSON_GetObjectItem(at(c, "delta"), "role"));
    assert_string_equal(at(at(c, "delta"), "content")->valuestring, "a\n\"\xe2\x82\xac\"");
    assert_true(cJSON_IsNull(at(c, "finish_reason")));
    assert_true(cJSON_IsNull(at(t, "usage")));
    cJSON_Delete(t);

    struct srv_piece end = {
        .text = "", .finish = "stop", .stop_text = "\n", .stop_len = 1, .stop_token = -1};
    struct srv_usage usage = {.prompt_tokens = 3, .completion_tokens = 4};
    t = chunk_of(&chat, &end, SRV_USAGE_GIVEN, &usage);
    c = at(t, "choices")->child;
    assert_null(at(c, "delta")->child);
    assert_string_equal(at(c, "finish_reason")->valuestring, "stop");
    assert_string_equal(at(c, "stop_reason")->valuestring, "\n");
    assert_int_equal(at(at(t, "usage"), "total_tokens")->valueint, 7);
    cJSON_Delete(t);
}

static void test_usage_chunk(void **state)
{
    (void)state;
    struct srv_usage usage = {.prompt_tokens = 3, .completion_tokens = 4, .cached_tokens = 2};
    struct buf b;
    buf_init(&b, 1 << 20);
    srv_fmt_usage_chunk(&b, &completion, &usage);
    cJSON *t = parsed(&b);
    assert_true(cJSON_IsArray(at(t, "choices")));
    assert_null(at(t, "choices")->child);
    assert_int_equal(at(at(t, "usage"), "prompt_tokens")->valueint, 3);
    assert_int_equal(at(at(t, "usage"), "completion_tokens")->valueint, 4);
    assert_int_equal(at(at(t, "usage"), "total_tokens")->valueint, 7);
    cJSON *details = at(at(t, "usage"), "prompt_tokens_details");
    assert_int_equal(at(details, "cached_tokens")->valueint, 2);
    assert_int_equal(cJSON_GetArraySize(details), 1);
    cJSON_Delete(t);
    buf_deinit(&b);
}

static void test_completion_chunk(void **state)
{
    (void)state;
    static const int32_t ids[] = {1, 2}, prompt[] = {9};
    struct srv_piece p = {.text = "bc",
                          .len = 2,
                          .finish = "length",
                          .stop_token = -1,
                          .ids = ids,
                          .id_count = 2,
                          .prompt_ids = prompt,
                          .prompt_id_count = 1};
    cJSON *t = chunk_of(&completion, &p, SRV_USAGE_ABSENT, NULL);
    assert_string_equal(at(t, "object")->valuestring, "text_completion");
    cJSON *c = at(t, "choices")->child;
    assert_string_equal(at(c, "text")->valuestring, "bc");
    assert_string_equal(at(c, "finish_reason")->valuestring, "length");
    assert_true(cJSON_IsNull(at(c, "stop_reason")));
    assert_int_equal(cJSON_GetArraySize(at(c, "token_ids")), 2);
    assert_int_equal(at(c, "prompt_token_ids")->child->valueint, 9);
    cJSON_Delete(t);
}

static void test_whole_chat(void **state)
{
    (void)state;
    struct srv_usage usage = {.prompt_tokens = 1, .completion_tokens = 2};
    struct srv_piece p[] = {{.index = 0, .text = "x", .len = 1, .finish = "stop", .stop_token = 28},
                            {.index = 1, .text = "", .finish = "length", .stop_token = -1}};
    struct buf b;
    buf_init(&b, 1 << 20);
    srv_fmt_answer_begin(&b, &chat, &p[0]);
    srv_fmt_answer_choice(&b, &chat, &p[0]);
    srv_fmt_answer_choice(&b, &chat, &p[1]);
    srv_fmt_answer_end(&b, &usage);
    cJSON *t = parsed(&b);
    assert_string_equal(at(t, "object")->valuestring, "chat.completion");
    assert_int_equal(cJSON_GetArraySize(at(t, "choices")), 2);
    cJSON *c = at(t, "choices")->child;
    assert_string_equal(at(at(c, "message"), "role")->valuestring, "assistant");
    assert_string_equal(at(at(c, "message"), "content")->valuestring, "x");
    assert_int_equal(at(c, "stop_reason")->valueint, 28);
    assert_int_equal(at(c->next, "index")->valueint, 1);
    assert_string_equal(at(at(c->next, "message"), "content")->valuestring, "");
    cJSON_Delete(t);
    buf_deinit(&b);
}

/* Rows of three: the token and two alternatives. */
static const struct eng_logprob rows[] = {
    {0, NAN},     {-1, NAN},    {-1, NAN},       /* the first token of a prompt */
    {1, -0.5f},   {1, -0.5f},   {2, -1},         /* chosen is the likeliest */
    {26, -3},     {1, -1},      {2, -2},         /* chosen is none of the two; half a character */
    {27, -0.25f}, {27, -0.25f}, {28, -INFINITY}, /* the other half; a token that cannot be */
    {28, -1},     {0, -0.5f},   {29, -0.75f},    /* hidden; two tokens of one name */
};

static void test_completion_logprobs(void **state)
{
    (void)state;
    int64_t offset = 10;
    struct srv_piece p = {
        .text = "",
        .stop_token = -1,
        .scores = {.rows = rows, .count = 5, .stride = 3, .text_offset = &offset}};
    cJSON *t = chunk_of(&completion, &p, SRV_USAGE_ABSENT, NULL);
    cJSON *l = at(at(t, "choices")->child, "logprobs");
    static const char *const tokens[] = {"a", "b", "bytes:\\xe2\\x82", "bytes:\\xac", "<|end|>"};
    /* The euro sign counts once; the hidden token not at all. */
    static const int offsets[] = {10, 11, 12, 13, 13};
    for (int i = 0; i < 5; i++) {
        assert_string_equal(cJSON_GetArrayItem(at(l, "tokens"), i)->valuestring, tokens[i]);
        assert_int_equal(cJSON_GetArrayItem(at(l, "text_offset"), i)->valueint, offsets[i]);
    }
    assert_int_equal(offset, 13);
    cJSON *chosen = at(l, "token_logprobs"), *top = at(l, "top_logprobs");
    assert_int_equal(cJSON_GetArraySize(chosen), 5);
    assert_true(cJSON_IsNull(chosen->child));
    assert_true(cJSON_GetArrayItem(chosen, 1)->valuedouble == -0.5);
    assert_true(cJSON_IsNull(top->child));
    cJSON *second = cJSON_GetArrayItem(top, 1), *third = cJSON_GetArrayItem(top, 2);
    assert_int_equal(cJSON_GetArraySize(second), 2);
    assert_true(at(second, "b")->valuedouble == -0.5 && at(second, "c")->valuedouble == -1);
    assert_int_equal(cJSON_GetArraySize(third), 3);
    assert_true(at(third, "bytes:\\xe2\\x82")->valuedouble == -3);
    assert_true(at(cJSON_GetArrayItem(top, 3), "<|end|>")->valuedouble == -9999);
    cJSON *last = cJSON_GetArrayItem(top, 4);
    assert_int_equal(cJSON_GetArraySize(last), 2); /* "a" once, the likelier */
    assert_true(at(last, "a")->valuedouble == -0.5);
    cJSON_Delete(t);
}

static void test_chat_logprobs(void **state)
{
    (void)state;
    int64_t offset = 0;
    struct srv_piece p = {
        .text = "b",
        .len = 1,
        .stop_token = -1,
        .scores = {.rows = rows + 3, .count = 2, .stride = 3, .text_offset = &offset}};
    cJSON *t = chunk_of(&chat, &p, SRV_USAGE_ABSENT, NULL);
    cJSON *content = at(at(at(t, "choices")->child, "logprobs"), "content");
    assert_int_equal(cJSON_GetArraySize(content), 2);
    cJSON *first = content->child, *second = first->next;
    assert_string_equal(at(first, "token")->valuestring, "b");
    assert_true(at(first, "logprob")->valuedouble == -0.5);
    assert_int_equal(at(first, "bytes")->child->valueint, 'b');
    assert_int_equal(cJSON_GetArraySize(at(first, "top_logprobs")), 2);
    assert_string_equal(at(at(first, "top_logprobs")->child->next, "token")->valuestring, "c");
    assert_int_equal(cJSON_GetArraySize(at(second, "bytes")), 2);
    assert_int_equal(at(second, "bytes")->child->valueint, 0xe2);
    cJSON_Delete(t);
}

static void test_faults(void **state)
{
    (void)state;
    struct srv_fault f;
    struct buf b;
    buf_init(&b, 1 << 20);
    assert_false(srv_fault_bad(&f, "n", "'%s' is \"wrong\".", "n"));
    srv_fault_format(&f, &b);
    cJSON *t = parsed(&b), *e = at(t, "error");
    assert_string_equal(at(e, "message")->valuestring, "'n' is \"wrong\".");
    assert_string_equal(at(e, "type")->valuestring, "invalid_request_error");
    assert_string_equal(at(e, "param")->valuestring, "n");
    assert_true(cJSON_IsNull(at(e, "code")));
    assert_null(cJSON_GetObjectItem(e, "n_ctx"));
    cJSON_Delete(t);
    buf_clear(&b);
    srv_fault_context(&f, "messages", 300, 10, 256);
    srv_fault_format(&f, &b);
    t = parsed(&b);
    e = at(t, "error");
    assert_int_equal(at(e, "n_prompt_tokens")->valueint, 300);
    assert_int_equal(at(e, "n_ctx")->valueint, 256);
    assert_non_null(strstr(at(e, "message")->valuestring, "you requested 310 tokens"));
    cJSON_Delete(t);
    buf_deinit(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_chat_chunks),
                                       cmocka_unit_test(test_usage_chunk),
                                       cmocka_unit_test(test_completion_chunk),
                                       cmocka_unit_test(test_whole_chat),
                                       cmocka_unit_test(test_completion_logprobs),
                                       cmocka_unit_test(test_chat_logprobs),
                                       cmocka_unit_test(test_faults)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
