/*
 * jinja_unicode.c - strings as Python sees them: code points, white space, case, classes, line ends, searching.
 *
 * Character data is utf8proc's; Python's own tables are of another Unicode version, so characters added in between may
 * differ in case and class.
 */
#include <stdlib.h>
#include <utf8proc.h>

#include "config/utf8.h"
#include "engine/jinja_case.h"
#include "engine/jinja_int.h"

uint32_t jj_decode(const char *p, const char *end, size_t *len)
{
    if ((unsigned char)*p < 0x80) {
        *len = 1;
        return (unsigned char)*p;
    }
    *len = utf8_char_len(p, (size_t)(end - p));
    CHECK(*len > 0); /* strings are valid UTF-8, and are cut between characters */
    return utf8_decode(p, *len);
}

uint32_t jj_decode_last(const char *start, const char *p, size_t *len)
{
    const char *q = p - 1;
    while (q > start && ((unsigned char)*q & 0xC0) == 0x80) q--;
    return jj_decode(q, p, len);
}

size_t jj_cp_count(const char *p, size_t len)
{
    size_t n = 0;
    for (size_t i = 0; i < len; i++) n += ((unsigned char)p[i] & 0xC0) != 0x80;
    return n;
}

size_t jj_byte_offset(const struct jj_str *s, size_t cp_idx)
{
    if (s->count == s->len || cp_idx >= s->count) return size_min(cp_idx, s->len);
    size_t i = 0;
    for (; cp_idx > 0; cp_idx--)
        do i++;
        while (((unsigned char)s->data[i] & 0xC0) == 0x80);
    return i;
}

bool jj_is_line_break(uint32_t c)
{
    return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

bool jj_is_space(uint32_t c)
{
    if (c < 0x80) return c == ' ' || (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x1F);
    return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
           c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

static utf8proc_category_t category(uint32_t c)
{
    return utf8proc_category((utf8proc_int32_t)c);
}

static bool is_alpha(uint32_t c)
{
    utf8proc_category_t k = category(c);
    return k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO;
}

static bool is_decimal(uint32_t c)
{
    return category(c) == UTF8PROC_CATEGORY_ND;
}

/* Decimal digits and the ones Unicode calls digits without decimal value: superscripts, circled ones and so on. */
static bool is_digit(uint32_t c)
{
    static const uint32_t ranges[][2] = {
        {0xB2, 0xB3},     {0xB9, 0xB9},     {0x1369, 0x1371}, {0x19DA, 0x19DA}, {0x2070, 0x2070},
        {0x2074, 0x2079}, {0x2080, 0x2089}, {0x2460, 0x2468}, {0x2474, 0x247C}, {0x2488, 0x2490},
        {0x24EA, 0x24EA}, {0x24F5, 0x24FD}, {0x24FF, 0x24FF}, {0x2776, 0x277E}, {0x2780, 0x2788},
        {0x278A, 0x2792}, {0x10A40, 0x10A43}, {0x10E60, 0x10E68}, {0x11052, 0x1105A}, {0x1F100, 0x1F10A},
    };
    if (is_decimal(c)) return true;
    for (size_t i = 0; i < ARRAY_COUNT(ranges); i++)
        if (c >= ranges[i][0] && c <= ranges[i][1]) return true;
    return false;
}

static bool is_alnum(uint32_t c)
{
    utf8proc_category_t k = category(c);
    return is_alpha(c) || k == UTF8PROC_CATEGORY_ND || k == UTF8PROC_CATEGORY_NL ||
           k == UTF8PROC_CATEGORY_NO;
}

bool jj_is_word(uint32_t c)
{
    if (c < 0x80) return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
    return is_alnum(c);
}

bool jj_is_printable(uint32_t c)
{
    if (c < 0x7F) return c >= ' ';
    utf8proc_category_t k = category(c);
    return k != UTF8PROC_CATEGORY_CN && k < UTF8PROC_CATEGORY_ZS;
}

static bool is_ascii(uint32_t c)
{
    return c < 0x80;
}

/* The derived properties Lowercase and Uppercase count a few letters and symbols beside the categories. */
static int case_of(uint32_t c)
{
    utf8proc_category_t k = category(c);
    bool lower = k == UTF8PROC_CATEGORY_LL || c == 0xAA || c == 0xBA || (c >= 0x2B0 && c <= 0x2B8) ||
                 (c >= 0x24D0 && c <= 0x24E9) || (c >= 0x2170 && c <= 0x217F);
    bool upper = k == UTF8PROC_CATEGORY_LU || (c >= 0x24B6 && c <= 0x24CF) || (c >= 0x2160 && c <= 0x216F);
    return lower ? -1 : upper ? 1 : k == UTF8PROC_CATEGORY_LT ? 2 : 0;
}

/* islower, isupper: some cased character, none of another case. */
static bool all_case(const struct jj_str *s, int want)
{
    bool cased = false;
    size_t n;
    for (const char *p = s->data, *end = p + s->len; p < end; p += n) {
        int c = case_of(jj_decode(p, end, &n));
        if (c && c != want) return false;
        cased |= c != 0;
    }
    return cased;
}

static bool is_title(const struct jj_str *s)
{
    bool cased = false, after_cased = false;
    size_t n;
    for (const char *p = s->data, *end = p + s->len; p < end; p += n) {
        int c = case_of(jj_decode(p, end, &n));
        if ((c > 0 && after_cased) || (c < 0 && !after_cased)) return false;
        after_cased = c != 0;
        cased |= after_cased;
    }
    return cased;
}

bool jj_all_class(const struct jj_str *s, const char *name)
{
    static const struct {
        const char *name;
        bool (*test)(uint32_t);
        bool empty;
    } classes[] = {
        {"isalpha", is_alpha, false}, {"isdecimal", is_decimal, false}, {"isdigit", is_digit, false},
        {"isalnum", is_alnum, false}, {"isspace", jj_is_space, false},  {"isascii", is_ascii, true},
        {"isprintable", jj_is_printable, true},
    };
    if (!strcmp(name, "islower")) return all_case(s, -1);
    if (!strcmp(name, "isupper")) return all_case(s, 1);
    if (!strcmp(name, "istitle")) return is_title(s);
    size_t k = 0, n;
    while (k < ARRAY_COUNT(classes) && strcmp(classes[k].name, name)) k++;
    CHECK(k < ARRAY_COUNT(classes));
    for (const char *p = s->data, *end = p + s->len; p < end; p += n)
        if (!classes[k].test(jj_decode(p, end, &n))) return false;
    return s->len > 0 || classes[k].empty;
}

/* --- case ---------------------------------------------------------------------------------------------------- */

static int by_code_point(const void *key, const void *row)
{
    uint32_t a = *(const uint32_t *)key, b = ((const struct jj_special_case *)row)->cp;
    return (a > b) - (a < b);
}

static bool is_case_ignorable(uint32_t c)
{
    utf8proc_category_t k = category(c);
    return c == '\'' || c == '.' || c == ':' || c == 0xB7 || c == 0x2019 || c == '^' || c == '`' ||
           k == UTF8PROC_CATEGORY_MN || k == UTF8PROC_CATEGORY_ME || k == UTF8PROC_CATEGORY_CF ||
           k == UTF8PROC_CATEGORY_LM || k == UTF8PROC_CATEGORY_SK;
}

/* Capital sigma at the end of a word becomes the final small one. */
static bool is_final_sigma(const char *start, const char *p, const char *end)
{
    size_t n;
    const char *q = p;
    bool before = false;
    while (q > start && !before) {
        uint32_t c = jj_decode_last(start, q, &n);
        q -= n;
        if (is_case_ignorable(c)) continue;
        if (!case_of(c)) return false;
        before = true;
    }
    if (!before) return false;
    for (q = p + 2; q < end; q += n) {
        uint32_t c = jj_decode(q, end, &n);
        if (!is_case_ignorable(c)) return !case_of(c);
    }
    return true;
}

static void put_code_point(struct jj *j, struct jj_sb *sb, uint32_t c)
{
    char utf8[4];
    jj_sb_put(j, sb, utf8, utf8_encode(c, utf8));
}

static void put_cased(struct jj *j, struct jj_sb *sb, uint32_t c, enum jj_case how, bool final_sigma)
{
    if (c < 0x80) {
        bool lower = c >= 'a' && c <= 'z', upper = c >= 'A' && c <= 'Z';
        jj_sb_putc(j, sb, (char)(how == CASE_LOWER ? (upper ? c + 32 : c) : (lower ? c - 32 : c)));
        return;
    }
    if (how == CASE_LOWER) {
        if (c == 0x130) jj_sb_puts(j, sb, "i\xCC\x87");
        else put_code_point(j, sb, final_sigma ? 0x3C2 : (uint32_t)utf8proc_tolower((utf8proc_int32_t)c));
        return;
    }
    const struct jj_special_case *row =
        bsearch(&c, jj_special_cases, ARRAY_COUNT(jj_special_cases), sizeof *row, by_code_point);
    if (!row) {
        utf8proc_int32_t cp = (utf8proc_int32_t)c;
        put_code_point(j, sb, (uint32_t)(how == CASE_UPPER ? utf8proc_toupper(cp) : utf8proc_totitle(cp)));
        return;
    }
    const uint16_t *to = how == CASE_UPPER ? row->upper : row->title;
    for (int i = 0; i < 3 && to[i]; i++) put_code_point(j, sb, to[i]);
}

void jj_put_cased(struct jj *j, struct jj_sb *sb, const char *p, size_t len, enum jj_case how)
{
    const char *start = p, *end = p + len;
    size_t n;
    for (; p < end; p += n) {
        uint32_t c = jj_decode(p, end, &n);
        jj_step(j, 1);
        put_cased(j, sb, c, how, c == 0x3A3 && how == CASE_LOWER && is_final_sigma(start, p, end));
    }
}

const struct jj_str *jj_lower(struct jj *j, const struct jj_str *s)
{
    struct jj_sb sb = {0};
    jj_put_cased(j, &sb, s->data, s->len, CASE_LOWER);
    return jj_sb_val(j, &sb).s;
}

/* --- cutting and finding ------------------------------------------------------------------------------------- */

static bool in_set(uint32_t c, const struct jj_str *chars)
{
    if (!chars) return jj_is_space(c);
    size_t n;
    for (const char *p = chars->data, *end = p + chars->len; p < end; p += n)
        if (jj_decode(p, end, &n) == c) return true;
    return false;
}

/* sides: 1 left, 2 right, 3 both; chars NULL for white space */
struct jj_val jj_strip(struct jj *j, const struct jj_str *s, const struct jj_str *chars, int sides)
{
    const char *p = s->data, *end = p + s->len;
    const uint64_t cost = chars ? 1 + chars->len / 16 : 1;
    size_t n;
    for (; (sides & 1) && p < end && in_set(jj_decode(p, end, &n), chars); p += n) jj_step(j, cost);
    for (; (sides & 2) && p < end && in_set(jj_decode_last(p, end, &n), chars); end -= n)
        jj_step(j, cost);
    return jj_text_borrow(j, p, (size_t)(end - p));
}

/* First occurrence of a non-empty needle, or NULL. */
const char *jj_find(struct jj *j, const char *hay, size_t n, const char *needle, size_t m)
{
    const char *found = memmem(hay, n, needle, m);
    jj_step(j, 1 + (found ? (size_t)(found - hay) : n) / 32);
    return found;
}

struct jj_list *jj_splitlines(struct jj *j, const struct jj_str *s, bool keep_ends)
{
    struct jj_list *l = jj_list_new(j, 0);
    const char *end = s->data + s->len, *line = s->data;
    size_t n;
    for (const char *p = s->data; p < end;) {
        uint32_t c = jj_decode(p, end, &n);
        if (!jj_is_line_break(c)) {
            p += n;
            continue;
        }
        const char *stop = p;
        p += n;
        if (c == '\r' && p < end && *p == '\n') p++;
        jj_list_push(j, l, jj_text_borrow(j, line, (size_t)((keep_ends ? p : stop) - line)));
        line = p;
    }
    if (line < end) jj_list_push(j, l, jj_text_borrow(j, line, (size_t)(end - line)));
    return l;
}
