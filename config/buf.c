#include "config/buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "config/utf8.h"

void buf_init(struct buf *b, size_t max)
{
    *b = (struct buf){.max = max};
}

void buf_deinit(struct buf *b)
{
    free(b->data);
    *b = (struct buf){0};
}

void buf_clear(struct buf *b)
{
    b->len = 0;
    b->failed = ST_OK;
    if (b->data) b->data[0] = '\0';
}

enum status buf_reserve(struct buf *b, size_t more)
{
    if (b->failed) return b->failed;
    if (more > b->max - b->len) return b->failed = ST_LIMIT;
    size_t need = b->len + more + 1;
    if (need <= b->cap) return ST_OK;
    size_t cap = size_max(64, b->cap + b->cap / 2);
    cap = size_max(cap, need);
    char *data = realloc(b->data, cap);
    if (!data) return b->failed = ST_NOMEM;
    b->data = data;
    b->cap = cap;
    return ST_OK;
}

void buf_put(struct buf *b, const void *bytes, size_t len)
{
    if (buf_reserve(b, len)) return;
    if (len) memcpy(b->data + b->len, bytes, len);
    b->len += len;
    b->data[b->len] = '\0';
}

void buf_puts(struct buf *b, const char *text)
{
    buf_put(b, text, strlen(text));
}

void buf_putc(struct buf *b, char c)
{
    buf_put(b, &c, 1);
}

void buf_printf(struct buf *b, const char *fmt, ...)
{
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    CHECK(n >= 0);
    if (!buf_reserve(b, (size_t)n)) {
        vsnprintf(b->data + b->len, (size_t)n + 1, fmt, again);
        b->len += (size_t)n;
    }
    va_end(again);
}

void buf_put_json_string(struct buf *b, const char *text, size_t len)
{
    static const char short_escapes[] = {['\b'] = 'b', ['\f'] = 'f', ['\n'] = 'n', ['\r'] = 'r',
                                         ['\t'] = 't', ['"'] = '"',  ['\\'] = '\\'};
    buf_putc(b, '"');
    size_t run = 0; /* start of the bytes that need no escape */
    size_t i = 0;
    while (i < len) {
        unsigned char c = (unsigned char)text[i];
        size_t step = c < 0x80 ? 1 : utf8_char_len(text + i, len - i);
        int plain = step > 0 && c >= 0x20 && c != '"' && c != '\\';
        if (plain) {
            i += step;
            continue;
        }
        buf_put(b, text + run, i - run);
        if (step == 0) buf_puts(b, "\xEF\xBF\xBD");
        else if (c < sizeof short_escapes && short_escapes[c])
            buf_printf(b, "\\%c", short_escapes[c]);
        else buf_printf(b, "\\u%04x", c);
        run = ++i;
    }
    buf_put(b, text + run, i - run);
    buf_putc(b, '"');
}

void buf_consume(struct buf *b, size_t n)
{
    CHECK(n <= b->len);
    if (n == 0) return;
    memmove(b->data, b->data + n, b->len - n + 1);
    b->len -= n;
}

enum status buf_status(const struct buf *b)
{
    return b->failed;
}
