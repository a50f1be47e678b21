/* Lookup order, special tokens, tool-call arguments, continued messages, and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config/check.h"
#include "config/json.h"
#include "engine/chat_template.h"

static const char *const names[] = {"chat_template.jinja", "tokenizer_config.json",
                                    "chat_template.json", "special_tokens_map.json", "other.jinja"};

struct dir {
    char path[64];
};

static void put(const struct dir *d, const char *name, const char *text)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", d->path, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static int setup(void **state)
{
    struct dir *d = calloc(1, sizeof *d);
    strcpy(d->path, "/tmp/dakd-template-XXXXXX");
    *state = d;
    return mkdtemp(d->path) ? 0 : -1;
}

static int teardown(void **state)
{
    struct dir *d = *state;
    char path[128];
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        snprintf(path, sizeof path, "%s/%s", d->path, names[i]);
        unlink(path);
    }
    int rc = rmdir(d->path);
    free(d);
    return rc;
}

static cJSON *json(const char *text)
{
    cJSON *v = NULL;
    char err[ERR_CAP] = "";
    if (text && json_parse(text, strlen(text), &json_limits_request, &v, err)) fail_msg("%s", err);
    return v;
}

struct request {
    const char *messages, *tools, *documents, *extra;
    bool prompt, resume;
};

/* Opens, renders, closes; the text or the error is in buf. */
static enum status run(const struct dir *d, const char *override_path, struct request r,
                       char text[ERR_CAP])
{
    struct eng_chat_template *t;
    struct buf out;
    enum status st = eng_chat_template_open(d->path, override_path, &t, text);
    if (st) {
        assert_null(t);
        return st;
    }
    cJSON *messages = json(r.messages ? r.messages : "[{\"role\":\"user\",\"content\":\"hi\"}]");
    cJSON *tools = json(r.tools), *documents = json(r.documents), *extra = json(r.extra);
    char *before = cJSON_PrintUnformatted(messages);
    buf_init(&out, 100000);
    buf_puts(&out, ">");
    st = eng_chat_template_render(t, messages, tools, documents, r.prompt, r.resume, extra, 0, &out,
                                  text);
    if (!st) snprintf(text, ERR_CAP, "%s", out.data + 1);
    else assert_string_equal(out.data, ">");
    char *after = cJSON_PrintUnformatted(messages);
    assert_string_equal(before, after);
    cJSON_free(before);
    cJSON_free(after);
    buf_deinit(&out);
    cJSON_Delete(messages);
    cJSON_Delete(tools);
    cJSON_Delete(documents);
    cJSON_Delete(extra);
    eng_chat_template_close(t);
    return st;
}

#define EXPECT(fields, want)                                                                       \
    do {                                                                                           \
        char text_[ERR_CAP] = "";                                                                  \
        enum status st_ = run(*state, NULL, (struct request)fields, text_);                        \
        if (st_) fail_msg("%s", text_);                                                            \
        assert_string_equal(text_, want);                                                          \
    } while (0)
#define EXPECT_FAIL(fields, status, part)                                                          \
    do {                                                                                           \
        char text_[ERR_CAP] = "";                                                                  \
        assert_int_equal(run(*state, NULL, (struct request)fields, text_), status);                \
        if (!strstr(text_, part)) fail_msg("%s", text_);                                           \
    } while (0)
#define R(...)                                                                                     \
    {                                                                                              \
        __VA_ARGS__                                                                                \
    }

static void test_lookup_order(void **state)
{
    char text[ERR_CAP], path[128];
    EXPECT_FAIL(R(0), ST_NOT_FOUND, "no chat template");
    put(*state, "chat_template.json", "{\"chat_template\":\"json\"}");
    EXPECT(R(0), "json");
    put(*state, "tokenizer_config.json", "{\"chat_template\":\"config\"}");
    EXPECT(R(0), "config");
    put(*state, "chat_template.jinja", "jinja");
    EXPECT(R(0), "jinja");
    put(*state, "other.jinja", "other");
    snprintf(path, sizeof path, "%s/other.jinja", ((struct dir *)*state)->path);
    assert_int_equal(run(*state, path, (struct request){0}, text), ST_OK);
    assert_string_equal(text, "other");
    assert_int_equal(run(*state, "/nonexistent/t.jinja", (struct request){0}, text), ST_NOT_FOUND);
    assert_non_null(strstr(text, "/nonexistent/t.jinja"));
}

static void test_named_templates(void **state)
{
    put(*state, "tokenizer_config.json",
        "{\"chat_template\":[{\"name\":\"tool_use\",\"template\":\"tools {{ tools|length }}\"},"
        "{\"name\":\"rag\",\"template\":\"{% include 'x' "
        "%}\"},{\"name\":\"default\",\"template\":\"plain\"}]}");
    EXPECT(R(0), "plain");
    EXPECT(R(.tools = "[1,2]"), "tools 2");
    put(*state, "tokenizer_config.json",
        "{\"chat_template\":[{\"name\":\"rag\",\"template\":\"x\"}]}");
    EXPECT_FAIL(R(0), ST_INVALID, "no template named \"default\"");
    put(*state, "tokenizer_config.json", "{\"chat_template\":[{\"name\":\"default\"}]}");
    EXPECT_FAIL(R(0), ST_INVALID, "lacks a \"name\"");
    put(*state, "tokenizer_config.json", "{\"chat_template\":7}");
    EXPECT_FAIL(R(0), ST_INVALID, "must be a string or a list");
    put(*state, "tokenizer_config.json", "{\"chat_template\":");
    EXPECT_FAIL(R(0), ST_INVALID, "tokenizer_config.json");
    put(*state, "tokenizer_config.json", "{\"chat_template\":\"a\\n{% if %}\"}");
    EXPECT_FAIL(R(0), ST_INVALID, "line 2");
}

static void test_tokens_and_variables(void **state)
{
    put(*state, "tokenizer_config.json",
        "{\"bos_token\":\"<s>\",\"eos_token\":{\"content\":\"</"
        "s>\"},\"pad_token\":null,\"add_bos_token\":true}");
    put(*state, "special_tokens_map.json", "{\"pad_token\":\"<pad>\",\"eos_token\":\"no\"}");
    put(*state, "chat_template.jinja",
        "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token is defined }} {{ tools }} {{ "
        "documents }} "
        "{{ add_generation_prompt }} {{ think }} {{ messages[0].content }}");
    EXPECT(R(.extra = "{\"think\":true}", .prompt = true),
           "<s></s><pad>False None None True True hi");
    EXPECT(R(.documents = "[{\"title\":\"t\"}]", .tools = "[]"),
           "<s></s><pad>False [] [{'title': 't'}] False  hi");
    EXPECT_FAIL(R(.extra = "{\"messages\":[]}"), ST_INVALID, "must not set 'messages'");
    EXPECT_FAIL(R(.extra = "{\"bos_token\":\"x\"}"), ST_INVALID, "must not set 'bos_token'");
    EXPECT_FAIL(R(.extra = "[1]"), ST_INVALID, "must be an object");
    EXPECT_FAIL(R(.tools = "{}"), ST_INVALID, "'tools' must be a list");
    EXPECT_FAIL(R(.messages = "[]"), ST_INVALID, "at least one message");
    EXPECT_FAIL(R(.messages = "[3]"), ST_INVALID, "must be an object");
}

static void test_tool_arguments(void **state)
{
    put(*state, "chat_template.jinja",
        "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.arguments|tojson }};{% "
        "endfor %}{% endfor %}");
    EXPECT(R(.messages =
                 "[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"arguments\":\"{"
                 "\\\"a\\\": [1]}\"}},"
                 "{\"function\":{\"arguments\":\"\"}},{\"function\":{\"arguments\":{\"b\":2}}}]}]"),
           "{\"a\": [1]};{};{\"b\": 2};");
    EXPECT_FAIL(R(.messages = "[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{"
                              "\"arguments\":\"{oops\"}}]}]"),
                ST_INVALID, "not valid JSON");
}

static void test_reasoning_has_its_names(void **state)
{
    put(*state, "chat_template.jinja",
        "{% for m in messages %}{{ m.reasoning_content }},{{ m.thinking }};{% endfor %}");
    EXPECT(
        R(.messages =
              "[{\"role\":\"a\",\"reasoning\":\"r\"},"
              "{\"role\":\"a\",\"thinking\":\"t\",\"reasoning_content\":null},"
              "{\"role\":\"a\",\"reasoning_content\":\"c\",\"thinking\":\"t\"},{\"role\":\"a\"}]"),
        "r,r;t,t;c,t;,;");
}

static void test_continue_final_message(void **state)
{
    const char *const chat = "[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\","
                             "\"content\":\"The answer \"}]";
    put(*state, "chat_template.jinja",
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}<end>{% endfor %}");
    EXPECT(R(.messages = chat, .resume = true), "[user]q<end>[assistant]The answer ");
    EXPECT_FAIL(R(.messages = chat, .resume = true, .prompt = true), ST_INVALID,
                "cannot both be true");
    put(*state, "chat_template.jinja",
        "{% for m in messages %}[{{ m.role }}] {{ m.content|trim }} <end>{% endfor %}");
    EXPECT(R(.messages = chat, .resume = true), "[user] q <end>[assistant] The answer ");
    put(*state, "chat_template.jinja",
        "{% for m in messages %}{{ m.content|trim }}<end>{% endfor %}");
    EXPECT(R(.messages = chat, .resume = true), "q<end>The answer");
    EXPECT(R(.messages = "[{\"role\":\"assistant\",\"content\":\"\\u00a0Yes,\\u3000\"}]",
             .resume = true),
           "Yes,");
    put(*state, "chat_template.jinja", "{% for m in messages %}{{ m.content|upper }}{% endfor %}");
    EXPECT_FAIL(R(.messages = chat, .resume = true), ST_INVALID, "does not show the final message");
    put(*state, "chat_template.jinja", "{% for m in messages %}{{ m.role }}{% endfor %}");
    EXPECT_FAIL(R(.messages = chat, .resume = true), ST_INVALID, "does not read the content");
    put(*state, "chat_template.jinja",
        "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}<end>{% endfor %}");
    EXPECT(R(.messages = "[{\"role\":\"assistant\",\"content\":[{\"text\":\"a\"},{\"text\":\"b\"},{"
                         "\"image\":1}]}]",
             .resume = true),
           "ab");
    EXPECT_FAIL(R(.messages = "[{\"role\":\"assistant\",\"content\":null}]", .resume = true),
                ST_INVALID, "no text to continue");
}

static void test_template_failures(void **state)
{
    put(*state, "chat_template.jinja", "{{ raise_exception('Roles must alternate') }}");
    EXPECT_FAIL(R(0), ST_INVALID, "Roles must alternate");
    put(*state, "chat_template.jinja", "x\n{{ messages[0].nope.deeper }}");
    EXPECT_FAIL(R(0), ST_CORRUPT, "line 2: 'dict object' has no attribute 'nope'");
    put(*state, "chat_template.jinja", "{% include 'x' %}");
    EXPECT_FAIL(R(0), ST_UNSUPPORTED, "'include'");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_lookup_order, setup, teardown),
        cmocka_unit_test_setup_teardown(test_named_templates, setup, teardown),
        cmocka_unit_test_setup_teardown(test_tokens_and_variables, setup, teardown),
        cmocka_unit_test_setup_teardown(test_tool_arguments, setup, teardown),
        cmocka_unit_test_setup_teardown(test_reasoning_has_its_names, setup, teardown),
        cmocka_unit_test_setup_teardown(test_continue_final_message, setup, teardown),
        cmocka_unit_test_setup_teardown(test_template_failures, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
