/* utf8.h - strict UTF-8 (RFC 3629): no overlong forms, no surrogates, nothing above U+10FFFF. */
#ifndef DAKD_CONFIG_UTF8_H
#define DAKD_CONFIG_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* Length 1..4 of the valid character at p, or 0 where none starts there or the n bytes end inside
 * it. */
size_t utf8_char_len(const char *p, size_t n);
/* True where the n > 0 bytes at p are the beginning of a valid character that more bytes could
 * complete. */
int utf8_is_partial(const char *p, size_t n);
/* Offset of the first invalid byte, or n where all of it is valid. */
size_t utf8_valid_prefix(const char *p, size_t n);
/* Decodes the character of length len (from utf8_char_len) at p. */
uint32_t utf8_decode(const char *p, size_t len);
/* Writes cp (a Unicode scalar value) to out and returns its length 1..4. */
size_t utf8_encode(uint32_t cp, char out[4]);

#endif
