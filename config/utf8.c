#include "config/utf8.h"

/* Wanted length by lead byte, and the range of the second byte (Unicode, table 3-7). */
static size_t lead(unsigned char c, unsigned char *lo, unsigned char *hi)
{
    *lo = 0x80;
    *hi = 0xBF;
    if (c < 0x80) return 1;
    if (c < 0xC2) return 0;
    if (c < 0xE0) return 2;
    if (c < 0xF0) {
        if (c == 0xE0) *lo = 0xA0;
        if (c == 0xED) *hi = 0x9F;
        return 3;
    }
    if (c > 0xF4) return 0;
    if (c == 0xF0) *lo = 0x90;
    if (c == 0xF4) *hi = 0x8F;
    return 4;
}

/* Number of leading bytes of p[0..n) that fit the character its lead announces; *want is its full
 * length. */
static size_t matched(const char *p, size_t n, size_t *want)
{
    unsigned char lo, hi;
    *want = n ? lead((unsigned char)p[0], &lo, &hi) : 0;
    if (*want <= 1) return *want;
    size_t i = 1;
    for (; i < *want && i < n; i++) {
        unsigned char c = (unsigned char)p[i];
        if (c < lo || c > hi) break;
        lo = 0x80;
        hi = 0xBF;
    }
    return i;
}

size_t utf8_char_len(const char *p, size_t n)
{
    size_t want, got = matched(p, n, &want);
    return got == want ? want : 0;
}

int utf8_is_partial(const char *p, size_t n)
{
    size_t want, got = matched(p, n, &want);
    return want > 0 && got < want && got == n;
}

size_t utf8_valid_prefix(const char *p, size_t n)
{
    size_t i = 0;
    while (i < n) {
        size_t len = (unsigned char)p[i] < 0x80 ? 1 : utf8_char_len(p + i, n - i);
        if (len == 0) break;
        i += len;
    }
    return i;
}

uint32_t utf8_decode(const char *p, size_t len)
{
    const unsigned char *u = (const unsigned char *)p;
    switch (len) {
    case 1: return u[0];
    case 2: return (uint32_t)(u[0] & 0x1F) << 6 | (u[1] & 0x3F);
    case 3: return (uint32_t)(u[0] & 0x0F) << 12 | (uint32_t)(u[1] & 0x3F) << 6 | (u[2] & 0x3F);
    default:
        return (uint32_t)(u[0] & 0x07) << 18 | (uint32_t)(u[1] & 0x3F) << 12 |
               (uint32_t)(u[2] & 0x3F) << 6 | (u[3] & 0x3F);
    }
}

size_t utf8_encode(uint32_t cp, char out[4])
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (char)(0xC0 | cp >> 6);
        out[1] = (char)(0x80 | (cp & 0x3F));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (char)(0xE0 | cp >> 12);
        out[1] = (char)(0x80 | (cp >> 6 & 0x3F));
        out[2] = (char)(0x80 | (cp & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | cp >> 18);
    out[1] = (char)(0x80 | (cp >> 12 & 0x3F));
    out[2] = (char)(0x80 | (cp >> 6 & 0x3F));
    out[3] = (char)(0x80 | (cp & 0x3F));
    return 4;
}
