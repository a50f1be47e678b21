/* tok_unicode.h - the character classes that pre-tokenisers and added tokens ask for. */
#ifndef DAKD_ENGINE_TOK_UNICODE_H
#define DAKD_ENGINE_TOK_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* White_Space. */
bool eng_ucd_is_space(uint32_t cp);
/* Any digit or number: Nd, Nl, No. */
bool eng_ucd_is_number(uint32_t cp);
/* \w of Unicode regular expressions: Alphabetic, marks, decimal digits, connectors, join controls.
 */
bool eng_ucd_is_word(uint32_t cp);
/* The Punctuation pre-tokeniser's class: ASCII punctuation, and category P as of Unicode 8. */
bool eng_ucd_is_punctuation(uint32_t cp);
/* Mn, Mc, Me. */
bool eng_ucd_is_mark(uint32_t cp);

/* Decodes the character of the valid UTF-8 text at p (p < end) and moves p past it. */
uint32_t eng_ucd_next(const char **p, const char *end);
/* Decodes the character that ends at p (p > start) and moves p to its beginning. */
uint32_t eng_ucd_prev(const char **p, const char *start);

/* At a place where no valid character starts (n > 0): the bytes that one U+FFFD stands for, as
 * Python's "replace" and Unicode's "maximal subpart" practice have it. */
size_t eng_ucd_bad_len(const char *p, size_t n);

/* U+FFFD in UTF-8. */
#define ENG_UCD_REPLACEMENT "\xEF\xBF\xBD"

#endif
