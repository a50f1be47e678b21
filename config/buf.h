/*
 * buf.h - a growable byte buffer with a hard bound.
 *
 * Appending past `max` or out of memory sets a sticky `failed` status instead of returning one, so
 * that a writer makes many appends and checks once (buf_status).  After a failure further appends
 * do nothing.  `data` is always NUL-terminated when non-NULL; `len` does not count that NUL.
 */
#ifndef DAKD_CONFIG_BUF_H
#define DAKD_CONFIG_BUF_H

#include <stddef.h>
#include <stdint.h>

#include "config/status.h"

struct buf {
    char *data; /* owned */
    size_t len;
    size_t cap;
    size_t max; /* bytes that may be held, terminator not counted */
    enum status failed;
};

void buf_init(struct buf *b, size_t max);
void buf_deinit(struct buf *b);
/* Forgets the contents and a failure, keeps the memory. */
void buf_clear(struct buf *b);
/* Room for `more` further bytes; ST_LIMIT or ST_NOMEM (also kept in b->failed). */
MUST_USE enum status buf_reserve(struct buf *b, size_t more);
void buf_put(struct buf *b, const void *bytes, size_t len);
void buf_puts(struct buf *b, const char *text);
void buf_putc(struct buf *b, char c);
void buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Appends `text` as a JSON string with quotes: control characters, quote and backslash escaped,
 * valid UTF-8 kept as it is, each invalid byte replaced by U+FFFD. */
void buf_put_json_string(struct buf *b, const char *text, size_t len);
/* Drops the first n bytes. */
void buf_consume(struct buf *b, size_t n);
MUST_USE enum status buf_status(const struct buf *b);

#endif
