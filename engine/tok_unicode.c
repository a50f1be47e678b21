/*
 * tok_unicode.c - character classes, by general category from utf8proc (Unicode 14) with the
 * exceptions that the reference implementation (Hugging Face tokenizers) has: its punctuation class
 * was frozen at Unicode 8, so the punctuation encoded since is listed here as not being any.
 */
#include "engine/tok_unicode.h"

#include <utf8proc.h>

#include "config/check.h"
#include "config/utf8.h"

struct range {
    uint32_t first, last;
};

/* Category P since Unicode 9 (or moved there from another category). */
static const struct range young_punctuation[] = {
    {0x61D, 0x61D},     {0x9FD, 0x9FD},     {0xA76, 0xA76},     {0xC77, 0xC77},
    {0xC84, 0xC84},     {0x1B7D, 0x1B7E},   {0x2E43, 0x2E4F},   {0x2E52, 0x2E5D},
    {0x10EAD, 0x10EAD}, {0x10F55, 0x10F59}, {0x10F86, 0x10F89}, {0x1144B, 0x1144F},
    {0x1145A, 0x1145B}, {0x1145D, 0x1145D}, {0x11660, 0x1166C}, {0x116B9, 0x116B9},
    {0x1183B, 0x1183B}, {0x11944, 0x11946}, {0x119E2, 0x119E2}, {0x11A3F, 0x11A46},
    {0x11A9A, 0x11A9C}, {0x11A9E, 0x11AA2}, {0x11C41, 0x11C45}, {0x11C70, 0x11C71},
    {0x11EF7, 0x11EF8}, {0x11FFF, 0x11FFF}, {0x12FF1, 0x12FF2}, {0x16E97, 0x16E9A},
    {0x16FE2, 0x16FE2}, {0x1E95E, 0x1E95F},
};

/* Other_Alphabetic outside the marks: circled and squared Latin letters. */
static const struct range other_alphabetic[] = {
    {0x24B6, 0x24E9}, {0x1F130, 0x1F149}, {0x1F150, 0x1F169}, {0x1F170, 0x1F189}};

static bool in_ranges(const struct range *ranges, size_t count, uint32_t cp)
{
    for (size_t i = 0; i < count && cp >= ranges[i].first; i++)
        if (cp <= ranges[i].last) return true;
    return false;
}

bool eng_ucd_is_space(uint32_t cp)
{
    if (cp < 0x80) return cp == ' ' || (cp >= '\t' && cp <= '\r');
    return cp == 0x85 || cp == 0xA0 || cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200A) ||
           cp == 0x2028 || cp == 0x2029 || cp == 0x202F || cp == 0x205F || cp == 0x3000;
}

bool eng_ucd_is_number(uint32_t cp)
{
    if (cp < 0x80) return cp >= '0' && cp <= '9';
    utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
    return c >= UTF8PROC_CATEGORY_ND && c <= UTF8PROC_CATEGORY_NO;
}

bool eng_ucd_is_word(uint32_t cp)
{
    utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
    if (c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_NL) return true; /* L*, M*, Nd, Nl */
    return c == UTF8PROC_CATEGORY_PC || cp == 0x200C || cp == 0x200D ||
           in_ranges(other_alphabetic, ARRAY_COUNT(other_alphabetic), cp);
}

bool eng_ucd_is_punctuation(uint32_t cp)
{
    if (cp < 0x80)
        return (cp >= '!' && cp <= '/') || (cp >= ':' && cp <= '@') || (cp >= '[' && cp <= '`') ||
               (cp >= '{' && cp <= '~');
    if (cp == 0x166D || cp == 0x111C9) return true; /* category So and Mn since */
    utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
    return c >= UTF8PROC_CATEGORY_PC && c <= UTF8PROC_CATEGORY_PO &&
           !in_ranges(young_punctuation, ARRAY_COUNT(young_punctuation), cp);
}

bool eng_ucd_is_mark(uint32_t cp)
{
    utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
    return c >= UTF8PROC_CATEGORY_MN && c <= UTF8PROC_CATEGORY_ME;
}

uint32_t eng_ucd_next(const char **p, const char *end)
{
    if ((unsigned char)**p < 0x80) return (unsigned char)*(*p)++;
    size_t len = utf8_char_len(*p, (size_t)(end - *p));
    CHECK(len > 0);
    uint32_t cp = utf8_decode(*p, len);
    *p += len;
    return cp;
}

uint32_t eng_ucd_prev(const char **p, const char *start)
{
    const char *end = *p;
    do {
        CHECK(*p > start);
        --*p;
    } while (((unsigned char)**p & 0xC0) == 0x80);
    return utf8_decode(*p, (size_t)(end - *p));
}

size_t eng_ucd_bad_len(const char *p, size_t n)
{
    for (size_t len = size_min(n, 3); len > 1; len--)
        if (utf8_is_partial(p, len)) return len;
    return 1;
}
