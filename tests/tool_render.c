/*
 * tool_render - renders templates for the comparison with Python's jinja2 (tests/parity/test_chat_template.py).
 *
 * Each line of standard input is {"path": FILE or "source": TEXT, "vars": {...}, "now": SECONDS}; each line of standard
 * output is {"ok": true, "text": ...} or {"ok": false, "status": NAME, "error": ...}.  A template named by path is
 * compiled once and kept.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "config/file.h"
#include "config/json.h"
#include "engine/jinja.h"

struct cached {
    char *path;
    struct eng_jinja *t;
};

static enum status load(const char *path, struct eng_jinja **t, char *err)
{
    static struct cached cache[64];
    static size_t n;
    for (size_t i = 0; i < n; i++)
        if (!strcmp(cache[i].path, path)) return *t = cache[i].t, ST_OK;
    char *text;
    size_t len;
    enum status st = file_read(path, 1u << 20, &text, &len, err);
    if (st) return st;
    st = eng_jinja_compile(text, len, t, err);
    free(text);
    if (st) return st;
    CHECK(n < ARRAY_COUNT(cache));
    cache[n++] = (struct cached){strdup(path), *t};
    return ST_OK;
}

static enum status render(const cJSON *job, struct buf *out, char *err)
{
    const cJSON *path = json_member(job, "path"), *source = json_member(job, "source");
    const cJSON *now = json_member(job, "now");
    struct eng_jinja *t = NULL;
    enum status st = path ? load(path->valuestring, &t, err)
                          : eng_jinja_compile(source->valuestring, strlen(source->valuestring), &t, err);
    if (!st)
        st = eng_jinja_render(t, cJSON_GetObjectItemCaseSensitive(job, "vars"), &eng_jinja_limits_default,
                              now ? (int64_t)now->valuedouble : 0, out, err);
    if (!path) eng_jinja_free(t);
    return st;
}

int main(void)
{
    static const char *const names[] = {
#define X(name, text) #name,
        STATUS_MAP(X)
#undef X
    };
    char *line = NULL, err[ERR_CAP];
    size_t cap = 0;
    ssize_t len;
    struct buf out, reply;
    buf_init(&out, 64u << 20);
    buf_init(&reply, 256u << 20);
    while ((len = getline(&line, &cap, stdin)) > 0) {
        cJSON *job;
        if (json_parse(line, (size_t)len, &json_limits_file, &job, err)) {
            fprintf(stderr, "tool_render: %s\n", err);
            return 1;
        }
        buf_clear(&out);
        buf_clear(&reply);
        enum status st = render(job, &out, err);
        buf_printf(&reply, "{\"ok\":%s,\"status\":\"%s\",\"%s\":", st ? "false" : "true", names[st],
                   st ? "error" : "text");
        if (st) buf_put_json_string(&reply, err, strlen(err));
        else buf_put_json_string(&reply, out.data ? out.data : "", out.len);
        buf_puts(&reply, "}\n");
        CHECK(!buf_status(&reply));
        fwrite(reply.data, 1, reply.len, stdout);
        cJSON_Delete(job);
    }
    free(line);
    buf_deinit(&out);
    buf_deinit(&reply);
    return 0;
}
