/*
 * json.c - see json.h.  The checker is one loop over the text with an explicit stack; it allocates
 * only the table that finds duplicate keys, whose entries are bounded by limits->nodes_max.
 */
#include "config/json.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "config/buf.h"
#include "config/check.h"
#include "config/file.h"
#include "config/utf8.h"

const struct json_limits json_limits_request = {
    .bytes_max = 64u << 20, .nodes_max = 4u << 20, .depth_max = 64};
const struct json_limits json_limits_file = {
    .bytes_max = 256u << 20, .nodes_max = 16u << 20, .depth_max = 64};

/* Below it a double tells integers apart. */
#define INTEGER_MAX 9007199254740992.0
/* A bit of cJSON.type above those that cJSON uses. */
#define REAL (1 << 16)
/* cJSON copies a number into a buffer of 64 bytes. */
#define NUMBER_LEN_MAX 63

struct key {
    uint64_t hash;
    uint32_t object; /* serial number of the object, from 1; 0 marks a free slot */
    size_t at;       /* offset of the first byte after the opening quote */
};

struct checker {
    const char *text;
    size_t len, pos;
    const struct json_limits *limits;
    char *err;
    size_t node_count;
    uint64_t seed;
    struct key *keys; /* open addressing, key_cap a power of two */
    size_t key_cap, key_count;
    uint32_t object_count;
    uint32_t stack[JSON_DEPTH_MAX]; /* serial of an object, or 0 for an array */
    int depth;
    bool spellings; /* a number whose spelling says more than its double */
};

static enum status fail_at(struct checker *c, size_t at, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static enum status fail_at(struct checker *c, size_t at, const char *fmt, ...)
{
    char what[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    size_t line = 1, start = 0;
    for (size_t i = 0; i < at && i < c->len; i++) {
        if (c->text[i] != '\n') continue;
        line++;
        start = i + 1;
    }
    return err_set(c->err, ST_INVALID, "not valid JSON at line %zu column %zu: %s", line,
                   at - start + 1, what);
}

static void skip_space(struct checker *c)
{
    while (c->pos < c->len && strchr(" \t\r\n", c->text[c->pos]) && c->text[c->pos]) c->pos++;
}

static int hex4(const char *p, size_t n, uint32_t *out)
{
    uint32_t v = 0;
    if (n < 4) return 0;
    for (int i = 0; i < 4; i++) {
        char ch = p[i];
        int digit = ch >= '0' && ch <= '9'   ? ch - '0'
                    : ch >= 'a' && ch <= 'f' ? ch - 'a' + 10
                    : ch >= 'A' && ch <= 'F' ? ch - 'A' + 10
                                             : -1;
        if (digit < 0) return 0;
        v = v << 4 | (uint32_t)digit;
    }
    *out = v;
    return 1;
}

/* Decodes one character of a checked string at *at, or returns 0 at the closing quote. */
static size_t next_char(const char *text, size_t *at, char out[4])
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    char c = text[*at];
    if (c == '"') return 0;
    if (c != '\\') {
        out[0] = c;
        ++*at;
        return 1;
    }
    char kind = text[*at + 1];
    if (kind != 'u') {
        out[0] = to[strchr(from, kind) - from];
        *at += 2;
        return 1;
    }
    uint32_t cp = 0, low = 0;
    hex4(text + *at + 2, 4, &cp);
    *at += 6;
    if (cp >= 0xD800 && cp < 0xDC00) {
        hex4(text + *at + 2, 4, &low);
        *at += 6;
        cp = 0x10000 + ((cp - 0xD800) << 10) + (low - 0xDC00);
    }
    return utf8_encode(cp, out);
}

static int keys_equal(const char *text, size_t a, size_t b)
{
    char x[4], y[4];
    for (;;) {
        /* Both sides yield characters of one byte or whole UTF-8 characters of an escape: compare
         * bytewise. */
        size_t i = a, j = b;
        size_t n = next_char(text, &i, x), m = next_char(text, &j, y);
        if (n == 0 || m == 0) return n == m;
        if (n != m) {
            /* One side is an escape of several bytes, the other a raw lead byte: read the raw bytes
             * too. */
            const char *raw = n == 1 ? text + a : text + b;
            const char *esc = n == 1 ? y : x;
            size_t len = n == 1 ? m : n;
            if (memcmp(raw, esc, len)) return 0;
            a = n == 1 ? a + len : i;
            b = n == 1 ? j : b + len;
            continue;
        }
        if (memcmp(x, y, n)) return 0;
        a = i;
        b = j;
    }
}

static enum status grow_keys(struct checker *c)
{
    size_t cap = c->key_cap ? c->key_cap * 2 : 64;
    struct key *keys = calloc(cap, sizeof *keys);
    if (!keys) return err_set(c->err, ST_NOMEM, "no memory to check the JSON text");
    for (size_t i = 0; i < c->key_cap; i++) {
        if (!c->keys[i].object) continue;
        size_t slot = c->keys[i].hash & (cap - 1);
        while (keys[slot].object) slot = (slot + 1) & (cap - 1);
        keys[slot] = c->keys[i];
    }
    free(c->keys);
    c->keys = keys;
    c->key_cap = cap;
    return ST_OK;
}

static enum status add_key(struct checker *c, uint32_t object, size_t at)
{
    if (2 * (c->key_count + 1) > c->key_cap) {
        enum status st = grow_keys(c);
        if (st) return st;
    }
    uint64_t hash = c->seed ^ (uint64_t)object * 0x9E3779B97F4A7C15ull;
    char bytes[4];
    size_t i = at, n;
    while ((n = next_char(c->text, &i, bytes)))
        for (size_t k = 0; k < n; k++) {
            hash = (hash ^ (unsigned char)bytes[k]) * 0xD6E8FEB86659FD93ull;
            hash ^= hash >> 32;
        }
    hash = (hash ^ c->seed) * 0xD6E8FEB86659FD93ull;
    hash ^= hash >> 29;
    size_t slot = hash & (c->key_cap - 1);
    for (; c->keys[slot].object; slot = (slot + 1) & (c->key_cap - 1)) {
        const struct key *k = &c->keys[slot];
        if (k->hash == hash && k->object == object && keys_equal(c->text, k->at, at))
            return fail_at(c, at - 1, "the key %.*s stands twice in one object",
                           (int)size_min(i - at + 2, 80), c->text + at - 1);
    }
    c->keys[slot] = (struct key){.hash = hash, .object = object, .at = at};
    c->key_count++;
    return ST_OK;
}

static enum status check_escape(struct checker *c)
{
    size_t at = c->pos;
    char kind = c->pos + 1 < c->len ? c->text[c->pos + 1] : '\0';
    if (kind != 'u') {
        if (!kind || !strchr("\"\\/bfnrt", kind))
            return fail_at(c, at, "unknown escape in a string");
        c->pos += 2;
        return ST_OK;
    }
    uint32_t cp, low;
    if (!hex4(c->text + at + 2, c->len - at - 2, &cp))
        return fail_at(c, at, "\\u is not followed by four hexadecimal digits");
    if (cp == 0) return fail_at(c, at, "a string holds U+0000");
    c->pos += 6;
    if (cp < 0xD800 || cp > 0xDFFF) return ST_OK;
    if (cp >= 0xDC00 || c->len - c->pos < 6 || c->text[c->pos] != '\\' ||
        c->text[c->pos + 1] != 'u' || !hex4(c->text + c->pos + 2, 4, &low) || low < 0xDC00 ||
        low > 0xDFFF)
        return fail_at(c, at, "half of a surrogate pair in a string");
    c->pos += 6;
    return ST_OK;
}

static enum status check_string(struct checker *c)
{
    size_t open = c->pos++;
    while (c->pos < c->len) {
        unsigned char ch = (unsigned char)c->text[c->pos];
        if (ch == '"') {
            c->pos++;
            return ST_OK;
        }
        if (ch < 0x20)
            return fail_at(c, c->pos, "a control character stands unescaped in a string");
        if (ch == '\\') {
            enum status st = check_escape(c);
            if (st) return st;
            continue;
        }
        size_t n = ch < 0x80 ? 1 : utf8_char_len(c->text + c->pos, c->len - c->pos);
        if (n == 0) return fail_at(c, c->pos, "a string is not valid UTF-8");
        c->pos += n;
    }
    return fail_at(c, open, "a string is not closed");
}

static size_t digits(struct checker *c)
{
    size_t start = c->pos;
    while (c->pos < c->len && c->text[c->pos] >= '0' && c->text[c->pos] <= '9') c->pos++;
    return c->pos - start;
}

static enum status check_number(struct checker *c)
{
    size_t start = c->pos;
    if (c->text[c->pos] == '-') c->pos++;
    int zero = c->pos < c->len && c->text[c->pos] == '0';
    size_t whole = digits(c);
    if (whole == 0 || (zero && whole > 1)) return fail_at(c, start, "malformed number");
    if (c->pos < c->len && c->text[c->pos] == '.') {
        c->pos++;
        if (digits(c) == 0) return fail_at(c, start, "malformed number");
    }
    if (c->pos < c->len && (c->text[c->pos] == 'e' || c->text[c->pos] == 'E')) {
        c->pos++;
        if (c->pos < c->len && (c->text[c->pos] == '+' || c->text[c->pos] == '-')) c->pos++;
        if (digits(c) == 0) return fail_at(c, start, "malformed number");
    }
    char copy[NUMBER_LEN_MAX + 1];
    size_t n = c->pos - start;
    if (n > NUMBER_LEN_MAX)
        return fail_at(c, start, "a number has more than %d characters", NUMBER_LEN_MAX);
    memcpy(copy, c->text + start, n);
    copy[n] = '\0';
    double v = strtod(copy, NULL);
    if (!isfinite(v)) return fail_at(c, start, "a number is too large");
    c->spellings |= v == floor(v) && (strpbrk(copy, ".eE") || fabs(v) >= INTEGER_MAX);
    return ST_OK;
}

static enum status check_word(struct checker *c, const char *word)
{
    size_t n = strlen(word);
    if (c->len - c->pos < n || memcmp(c->text + c->pos, word, n))
        return fail_at(c, c->pos, "a value was expected");
    c->pos += n;
    return ST_OK;
}

static enum status count_node(struct checker *c)
{
    if (++c->node_count > c->limits->nodes_max)
        return err_set(c->err, ST_LIMIT, "the JSON text holds more than %zu values",
                       c->limits->nodes_max);
    return ST_OK;
}

/* A key, its colon, and the white space after it. */
static enum status check_key(struct checker *c)
{
    enum status st;
    size_t at = c->pos;
    if (c->pos >= c->len || c->text[c->pos] != '"')
        return fail_at(c, c->pos, "a key in quotes was expected");
    if ((st = count_node(c)) || (st = check_string(c))) return st;
    if ((st = add_key(c, c->stack[c->depth - 1], at + 1))) return st;
    skip_space(c);
    if (c->pos >= c->len || c->text[c->pos] != ':') return fail_at(c, c->pos, "':' was expected");
    c->pos++;
    skip_space(c);
    return ST_OK;
}

/* After '{' or '[': pushes the container.  *closed says that it was empty and is already left. */
static enum status open_container(struct checker *c, int *closed)
{
    int object = c->text[c->pos] == '{';
    if (c->depth >= c->limits->depth_max || c->depth >= JSON_DEPTH_MAX)
        return fail_at(c, c->pos, "nested more than %d deep", c->limits->depth_max);
    c->stack[c->depth++] = object ? ++c->object_count : 0;
    c->pos++;
    skip_space(c);
    *closed = c->pos < c->len && c->text[c->pos] == (object ? '}' : ']');
    if (*closed) {
        c->pos++;
        c->depth--;
        return ST_OK;
    }
    return object ? check_key(c) : ST_OK;
}

/* After a whole value: closes containers and steps over commas until a value must follow or the
 * text is done. */
static enum status after_value(struct checker *c)
{
    while (c->depth > 0) {
        uint32_t object = c->stack[c->depth - 1];
        skip_space(c);
        char ch = c->pos < c->len ? c->text[c->pos] : '\0';
        if (ch == ',') {
            c->pos++;
            skip_space(c);
            return object ? check_key(c) : ST_OK;
        }
        if (ch != (object ? '}' : ']'))
            return fail_at(c, c->pos, "',' or '%c' was expected", object ? '}' : ']');
        c->pos++;
        c->depth--;
    }
    return ST_OK;
}

static enum status check_value(struct checker *c, int *opened)
{
    int closed = 0;
    *opened = 0;
    if (c->pos >= c->len) return fail_at(c, c->pos, "the text ends where a value was expected");
    enum status st = count_node(c);
    if (st) return st;
    switch (c->text[c->pos]) {
    case '{':
    case '[':
        st = open_container(c, &closed);
        *opened = !closed;
        return st;
    case '"': return check_string(c);
    case 't': return check_word(c, "true");
    case 'f': return check_word(c, "false");
    case 'n': return check_word(c, "null");
    case '-':
    case '0':
    case '1':
    case '2':
    case '3':
    case '4':
    case '5':
    case '6':
    case '7':
    case '8':
    case '9': return check_number(c);
    default: return fail_at(c, c->pos, "a value was expected");
    }
}

static enum status check_text(struct checker *c)
{
    enum status st;
    skip_space(c);
    if (c->pos == c->len) return fail_at(c, c->pos, "the text is empty");
    do {
        int opened;
        if ((st = check_value(c, &opened))) return st;
        if (!opened && (st = after_value(c))) return st;
    } while (c->depth > 0);
    skip_space(c);
    if (c->pos != c->len) return fail_at(c, c->pos, "something follows the end of the value");
    return ST_OK;
}

static enum status check(const char *text, size_t len, const struct json_limits *limits,
                         bool *spellings, char *err)
{
    if (len > limits->bytes_max)
        return err_set(err, ST_LIMIT, "the JSON text has %zu bytes; at most %zu are accepted", len,
                       limits->bytes_max);
    struct checker c = {.text = text, .len = len, .limits = limits, .err = err};
    if (getrandom(&c.seed, sizeof c.seed, 0) != sizeof c.seed) c.seed = (uint64_t)(uintptr_t)&c;
    enum status st = check_text(&c);
    free(c.keys);
    *spellings = c.spellings;
    return st;
}

enum status json_check(const char *text, size_t len, const struct json_limits *limits, char *err)
{
    bool spellings;
    return check(text, len, limits, &spellings, err);
}

/* --- spellings of numbers --------------------------------------------------------------------- */

/* The next number of checked text, from *at on, which moves behind it. */
static const char *next_number(const char **at, size_t *len)
{
    const char *p = *at;
    while (*p != '-' && (*p < '0' || *p > '9')) {
        if (*p++ != '"') continue;
        for (; *p != '"'; p++) p += *p == '\\';
        p++;
    }
    *len = strspn(p, "+-.0123456789eE");
    *at = p + *len;
    return p;
}

/* Notes in a tree, which has the numbers of the text in the same order, what doubles do not tell.
 */
static bool note_spellings(cJSON *item, const char **at)
{
    for (cJSON *child = item->child; child; child = child->next)
        if (!note_spellings(child, at)) return false;
    if (!cJSON_IsNumber(item)) return true;
    size_t len;
    const char *number = next_number(at, &len);
    if (memchr(number, '.', len) || memchr(number, 'e', len) || memchr(number, 'E', len)) {
        item->type |= REAL;
    } else if (fabs(item->valuedouble) >= INTEGER_MAX) {
        item->valuestring = cJSON_malloc(len + 1);
        if (!item->valuestring) return false;
        memcpy(item->valuestring, number, len);
        item->valuestring[len] = '\0';
    }
    return true;
}

bool json_is_real(const cJSON *number)
{
    return number->type & REAL || number->valuedouble != floor(number->valuedouble);
}

const char *json_integer_text(const cJSON *number)
{
    return cJSON_IsNumber(number) ? number->valuestring : NULL;
}

enum status json_parse(const char *text, size_t len, const struct json_limits *limits, cJSON **out,
                       char *err)
{
    *out = NULL;
    bool spellings;
    enum status st = check(text, len, limits, &spellings, err);
    if (st) return st;
    *out = cJSON_ParseWithLength(text, len);
    if (*out && (!spellings || note_spellings(*out, &text))) return ST_OK;
    cJSON_Delete(*out);
    *out = NULL;
    return err_set(err, ST_NOMEM, "no memory for the JSON text of %zu bytes", len);
}

enum status json_parse_file(const char *path, const struct json_limits *limits, cJSON **out,
                            char *err)
{
    char *data, why[ERR_CAP];
    size_t len;
    *out = NULL;
    enum status st = file_read(path, limits->bytes_max, &data, &len, err);
    if (st) return st;
    st = json_parse(data, len, limits, out, why);
    free(data);
    if (st) err_set(err, st, "%s: %.300s", path, why);
    return st;
}

const cJSON *json_member(const cJSON *object, const char *key)
{
    const cJSON *item =
        cJSON_IsObject(object) ? cJSON_GetObjectItemCaseSensitive(object, key) : NULL;
    return item && !cJSON_IsNull(item) ? item : NULL;
}

void json_replace(cJSON *object, cJSON *old, cJSON *value)
{
    CHECK(!((value->type | old->type) & cJSON_StringIsConst));
    cJSON_free(value->string);
    value->string = old->string;
    old->string = NULL;
    CHECK(cJSON_ReplaceItemViaPointer(object, old, value));
}

enum status json_get_int(const cJSON *object, const char *key, int64_t min, int64_t max,
                         int64_t fallback, int64_t *out, char *err)
{
    const cJSON *item = json_member(object, key);
    *out = fallback;
    if (!item) return ST_OK;
    double v = item->valuedouble;
    if (!cJSON_IsNumber(item) || v != floor(v) || fabs(v) > INTEGER_MAX)
        return err_set(err, ST_INVALID, "'%s' must be an integer", key);
    if (v < (double)min || v > (double)max)
        return err_set(err, ST_INVALID, "'%s' must be between %lld and %lld, not %.0f", key,
                       (long long)min, (long long)max, v);
    *out = (int64_t)v;
    return ST_OK;
}

enum status json_get_double(const cJSON *object, const char *key, double min, double max,
                            double fallback, double *out, char *err)
{
    const cJSON *item = json_member(object, key);
    *out = fallback;
    if (!item) return ST_OK;
    if (!cJSON_IsNumber(item)) return err_set(err, ST_INVALID, "'%s' must be a number", key);
    double v = item->valuedouble;
    if (!(v >= min && v <= max))
        return err_set(err, ST_INVALID, "'%s' must be between %g and %g, not %g", key, min, max, v);
    *out = v;
    return ST_OK;
}

enum status json_get_bool(const cJSON *object, const char *key, bool fallback, bool *out, char *err)
{
    const cJSON *item = json_member(object, key);
    *out = fallback;
    if (!item) return ST_OK;
    if (!cJSON_IsBool(item)) return err_set(err, ST_INVALID, "'%s' must be true or false", key);
    *out = cJSON_IsTrue(item);
    return ST_OK;
}

enum status json_get_string(const cJSON *object, const char *key, const char *fallback,
                            const char **out, char *err)
{
    const cJSON *item = json_member(object, key);
    *out = fallback;
    if (!item) return ST_OK;
    if (!cJSON_IsString(item)) return err_set(err, ST_INVALID, "'%s' must be a string", key);
    *out = item->valuestring;
    return ST_OK;
}
