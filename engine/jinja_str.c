/*
 * jinja_str.c - the methods of strings.  Offsets and counts are code points, as in Python; results are new strings,
 * most of them views into the old bytes.
 */
#include "engine/jinja_int.h"

const char *const jj_str_methods_unsupported[] = {
    "casefold", "encode", "expandtabs", "format_map", "isidentifier", "isnumeric", "maketrans", "translate", NULL};

static struct jj_val same_kind(struct jj *j, struct jj_val self, struct jj_val v)
{
    if (!self.s->markup) return v;
    struct jj_str *s = jj_alloc(j, sizeof *s);
    *s = *v.s;
    s->markup = true;
    return jj_str_val(s);
}

static struct jj_val cased(struct jj *j, struct jj_val self, enum jj_case how)
{
    struct jj_sb sb = {0};
    jj_put_cased(j, &sb, self.s->data, self.s->len, how);
    return same_kind(j, self, jj_sb_val(j, &sb));
}

static struct jj_val m_upper(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    jj_bind(j, "upper()", "!", args, NULL);
    return cased(j, self, CASE_UPPER);
}

static struct jj_val m_lower(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    jj_bind(j, "lower()", "!", args, NULL);
    return cased(j, self, CASE_LOWER);
}

static struct jj_val m_capitalize(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    jj_bind(j, "capitalize()", "!", args, NULL);
    const struct jj_str *lower = jj_lower(j, self.s);
    struct jj_sb sb = {0};
    size_t first = jj_byte_offset(self.s, 1), skip = jj_byte_offset(lower, 1);
    if (self.s->len && self.s->count == 1) skip = lower->len;
    jj_put_cased(j, &sb, self.s->data, first, CASE_TITLE);
    jj_sb_put(j, &sb, lower->data + skip, lower->len - skip);
    return same_kind(j, self, jj_sb_val(j, &sb));
}

static bool is_cased(struct jj *j, const char *p, size_t n)
{
    const struct jj_str one = {.data = p, .len = n, .count = 1};
    (void)j;
    return jj_all_class(&one, "isalpha") &&
           (jj_all_class(&one, "islower") || jj_all_class(&one, "isupper") || jj_all_class(&one, "istitle"));
}

static struct jj_val m_title(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    jj_bind(j, "title()", "!", args, NULL);
    struct jj_sb sb = {0};
    bool after = false;
    size_t n;
    for (const char *p = self.s->data, *end = p + self.s->len; p < end; p += n) {
        jj_decode(p, end, &n);
        jj_put_cased(j, &sb, p, n, after ? CASE_LOWER : CASE_TITLE);
        after = is_cased(j, p, n);
    }
    return same_kind(j, self, jj_sb_val(j, &sb));
}

static struct jj_val m_swapcase(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    jj_bind(j, "swapcase()", "!", args, NULL);
    struct jj_sb sb = {0};
    size_t n;
    for (const char *p = self.s->data, *end = p + self.s->len; p < end; p += n) {
        jj_decode(p, end, &n);
        const struct jj_str one = {.data = p, .len = n, .count = 1};
        if (jj_all_class(&one, "isupper")) jj_put_cased(j, &sb, p, n, CASE_LOWER);
        else if (jj_all_class(&one, "islower")) jj_put_cased(j, &sb, p, n, CASE_UPPER);
        else jj_sb_put(j, &sb, p, n);
    }
    return jj_sb_val(j, &sb);
}

static struct jj_val strip(struct jj *j, struct jj_val self, const struct jj_args *args, int sides)
{
    struct jj_val p[1];
    jj_bind(j, "strip()", "!| chars", args, p);
    bool all = p[0].type == JJ_MISSING || p[0].type == JJ_NONE;
    if (!all && p[0].type != JJ_STR)
        jj_fail(j, ST_CORRUPT, "strip arg must be None or str, not %s", jj_type_name(p[0]));
    return same_kind(j, self, jj_strip(j, self.s, all ? NULL : p[0].s, sides));
}

static struct jj_val m_strip(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    return strip(j, self, args, 3);
}

static struct jj_val m_lstrip(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    return strip(j, self, args, 1);
}

static struct jj_val m_rstrip(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    return strip(j, self, args, 2);
}

/* --- splitting ----------------------------------------------------------------------------------------------- */

static struct jj_list *split_space(struct jj *j, const struct jj_str *s, int64_t max)
{
    struct jj_list *l = jj_list_new(j, 0);
    const char *p = s->data, *end = p + s->len;
    size_t n;
    for (;;) {
        while (p < end && jj_is_space(jj_decode(p, end, &n))) p += n;
        if (p >= end) return l;
        const char *word = p;
        if (max >= 0 && (int64_t)l->n >= max) {
            jj_list_push(j, l, jj_text_borrow(j, word, (size_t)(end - word)));
            return l;
        }
        while (p < end && !jj_is_space(jj_decode(p, end, &n))) p += n;
        jj_list_push(j, l, jj_text_borrow(j, word, (size_t)(p - word)));
    }
}

static struct jj_list *rsplit_space(struct jj *j, const struct jj_str *s, int64_t max)
{
    struct jj_list *l = jj_list_new(j, 0);
    const char *start = s->data, *p = start + s->len;
    size_t n;
    for (;;) {
        while (p > start && jj_is_space(jj_decode_last(start, p, &n))) p -= n;
        if (p <= start) return l;
        const char *stop = p;
        if (max >= 0 && (int64_t)l->n >= max) {
            jj_list_push(j, l, jj_text_borrow(j, start, (size_t)(stop - start)));
            return l;
        }
        while (p > start && !jj_is_space(jj_decode_last(start, p, &n))) p -= n;
        jj_list_push(j, l, jj_text_borrow(j, p, (size_t)(stop - p)));
    }
}

static struct jj_list *split_by(struct jj *j, const struct jj_str *s, const struct jj_str *sep, int64_t max)
{
    struct jj_list *l = jj_list_new(j, 0);
    const char *p = s->data, *end = p + s->len, *found;
    while ((max < 0 || (int64_t)l->n < max) &&
           (found = jj_find(j, p, (size_t)(end - p), sep->data, sep->len))) {
        jj_list_push(j, l, jj_text_borrow(j, p, (size_t)(found - p)));
        p = found + sep->len;
    }
    jj_list_push(j, l, jj_text_borrow(j, p, (size_t)(end - p)));
    return l;
}

/* Last occurrence of a non-empty needle, or NULL. */
static const char *find_last(struct jj *j, const char *hay, size_t n, const struct jj_str *needle)
{
    for (size_t at = n < needle->len ? 0 : n - needle->len + 1; at > 0; at--) {
        if (at % 32 == 0) jj_step(j, 1 + needle->len / 2);
        if (!memcmp(hay + at - 1, needle->data, needle->len)) return hay + at - 1;
    }
    return NULL;
}

static struct jj_list *rsplit_by(struct jj *j, const struct jj_str *s, const struct jj_str *sep, int64_t max)
{
    struct jj_list *l = jj_list_new(j, 0);
    const char *start = s->data, *end = start + s->len, *found;
    while ((max < 0 || (int64_t)l->n < max) && (found = find_last(j, start, (size_t)(end - start), sep))) {
        jj_list_push(j, l, jj_text_borrow(j, found + sep->len, (size_t)(end - found) - sep->len));
        end = found;
    }
    jj_list_push(j, l, jj_text_borrow(j, start, (size_t)(end - start)));
    return l;
}

static struct jj_val split(struct jj *j, struct jj_val self, const struct jj_args *args, bool right)
{
    struct jj_val p[2];
    jj_bind(j, "split()", "| sep maxsplit", args, p);
    int64_t max = p[1].type == JJ_MISSING ? -1 : jj_want_int(j, "split()", p[1]);
    struct jj_list *l;
    if (p[0].type == JJ_MISSING || p[0].type == JJ_NONE) {
        l = right ? rsplit_space(j, self.s, max) : split_space(j, self.s, max);
    } else {
        const struct jj_str *sep = jj_want_str(j, "split()", p[0]);
        if (!sep->len) jj_fail(j, ST_CORRUPT, "empty separator");
        l = right ? rsplit_by(j, self.s, sep, max) : split_by(j, self.s, sep, max);
    }
    for (size_t i = 0; right && i < l->n / 2; i++) {
        struct jj_val t = l->v[i];
        l->v[i] = l->v[l->n - 1 - i];
        l->v[l->n - 1 - i] = t;
    }
    return jj_list_val(l);
}

static struct jj_val m_split(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    return split(j, self, args, false);
}

static struct jj_val m_rsplit(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    return split(j, self, args, true);
}

static struct jj_val m_splitlines(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    struct jj_val p[1];
    jj_bind(j, "splitlines()", "| keepends", args, p);
    return jj_list_val(jj_splitlines(j, self.s, jj_truth(j, p[0])));
}

static struct jj_val partition(struct jj *j, struct jj_val self, const struct jj_args *args, bool right)
{
    struct jj_val p[1];
    jj_bind(j, "partition()", "! sep", args, p);
    const struct jj_str *s = self.s, *sep = jj_want_str(j, "partition()", p[0]);
    if (!sep->len) jj_fail(j, ST_CORRUPT, "empty separator");
    const char *found = right ? find_last(j, s->data, s->len, sep)
                              : jj_find(j, s->data, s->len, sep->data, sep->len);
    struct jj_list *l = jj_list_new(j, 3);
    size_t head = found ? (size_t)(found - s->data) : s->len;
    if (!found && right) head = 0;
    jj_list_push(j, l, jj_text_borrow(j, s->data, head));
    jj_list_push(j, l, jj_text_borrow(j, sep->data, found ? sep->len : 0));
    size_t tail = found ? head + sep->len : head;
    jj_list_push(j, l, jj_text_borrow(j, s->data + tail, s->len - tail));
    return jj_tuple_val(l);
}

static struct jj_val m_partition(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    return partition(j, self, args, false);
}

static struct jj_val m_rpartition(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    return partition(j, self, args, true);
}

/* --- finding ------------------------------------------------------------------------------------------------- */

/* The part [start:end) that find, count, startswith and so on look at; *from is its first code point.  False where
 * start lies beyond the end. */
static bool window(struct jj *j, const struct jj_str *s, struct jj_val start, struct jj_val end,
                   const char **p, size_t *len, int64_t *from)
{
    int64_t n = (int64_t)s->count, lo = 0, hi = n;
    if (start.type != JJ_MISSING && start.type != JJ_NONE) lo = jj_want_int(j, "a string method", start);
    if (end.type != JJ_MISSING && end.type != JJ_NONE) hi = jj_want_int(j, "a string method", end);
    if (lo < 0) lo = lo + n < 0 ? 0 : lo + n;
    if (hi < 0) hi = hi + n < 0 ? 0 : hi + n;
    if (hi > n) hi = n;
    *from = lo;
    if (lo > hi) return false;
    size_t a = lo >= n ? s->len : jj_byte_offset(s, (size_t)lo);
    size_t b = hi >= n ? s->len : jj_byte_offset(s, (size_t)hi);
    *p = s->data + a;
    *len = b - a;
    return true;
}

/* The code point where sub is found, or -1. */
static int64_t find(struct jj *j, struct jj_val self, const struct jj_args *args, bool last)
{
    struct jj_val a[3];
    const char *p, *found;
    size_t len;
    int64_t from;
    jj_bind(j, "find()", "! sub | start end", args, a);
    const struct jj_str *sub = jj_want_str(j, "find()", a[0]);
    if (!window(j, self.s, a[1], a[2], &p, &len, &from)) return -1;
    if (!sub->len) return last ? from + (int64_t)jj_cp_count(p, len) : from;
    found = last ? find_last(j, p, len, sub) : jj_find(j, p, len, sub->data, sub->len);
    return found ? from + (int64_t)jj_cp_count(p, (size_t)(found - p)) : -1;
}

static struct jj_val m_find(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    return jj_int(find(j, self, args, false));
}

static struct jj_val m_rfind(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    return jj_int(find(j, self, args, true));
}

static struct jj_val index_of(struct jj *j, int64_t at)
{
    if (at < 0) jj_fail(j, ST_CORRUPT, "substring not found");
    return jj_int(at);
}

static struct jj_val m_index(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    return index_of(j, find(j, self, args, false));
}

static struct jj_val m_rindex(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    return index_of(j, find(j, self, args, true));
}

static struct jj_val m_count(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    struct jj_val a[3];
    const char *p, *found;
    size_t len;
    int64_t from, n = 0;
    jj_bind(j, "count()", "! sub | start end", args, a);
    const struct jj_str *sub = jj_want_str(j, "count()", a[0]);
    if (!window(j, self.s, a[1], a[2], &p, &len, &from)) return jj_int(0);
    if (!sub->len) return jj_int((int64_t)jj_cp_count(p, len) + 1);
    for (; (found = jj_find(j, p, len, sub->data, sub->len)); n++) {
        len -= (size_t)(found - p) + sub->len;
        p = found + sub->len;
    }
    return jj_int(n);
}

static bool affix(const char *p, size_t len, const struct jj_str *what, bool end)
{
    return len >= what->len && !memcmp(end ? p + len - what->len : p, what->data, what->len);
}

static struct jj_val has_affix(struct jj *j, struct jj_val self, const struct jj_args *args, bool end)
{
    struct jj_val a[3];
    const char *who = end ? "endswith" : "startswith", *p;
    size_t len;
    int64_t from;
    jj_bind(j, who, "! prefix | start end", args, a);
    bool any = false, inside = window(j, self.s, a[1], a[2], &p, &len, &from);
    if (a[0].type == JJ_TUPLE) {
        for (size_t i = 0; i < a[0].l->n; i++)
            any |= inside && affix(p, len, jj_want_str(j, who, a[0].l->v[i]), end);
        return jj_bool(any);
    }
    if (a[0].type != JJ_STR)
        jj_fail(j, ST_CORRUPT, "%s first arg must be str or a tuple of str, not %s", who,
                jj_type_name(a[0]));
    return jj_bool(inside && affix(p, len, a[0].s, end));
}

static struct jj_val m_startswith(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    return has_affix(j, self, args, false);
}

static struct jj_val m_endswith(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    return has_affix(j, self, args, true);
}

static struct jj_val m_removeprefix(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    struct jj_val a[1];
    jj_bind(j, "removeprefix()", "! prefix", args, a);
    const struct jj_str *s = self.s, *what = jj_want_str(j, "removeprefix()", a[0]);
    size_t cut = affix(s->data, s->len, what, false) ? what->len : 0;
    return jj_text_borrow(j, s->data + cut, s->len - cut);
}

static struct jj_val m_removesuffix(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    struct jj_val a[1];
    jj_bind(j, "removesuffix()", "! suffix", args, a);
    const struct jj_str *s = self.s, *what = jj_want_str(j, "removesuffix()", a[0]);
    size_t cut = affix(s->data, s->len, what, true) ? what->len : 0;
    return jj_text_borrow(j, s->data, s->len - cut);
}

/* --- building ------------------------------------------------------------------------------------------------ */

static struct jj_val replace(struct jj *j, const struct jj_str *s, const struct jj_str *old,
                             const struct jj_str *with, int64_t max)
{
    const char *p = s->data, *end = p + s->len, *found;
    struct jj_sb sb = {0};
    size_t n;
    if (!old->len) { /* between all characters */
        for (; max != 0 && p <= end; max -= max > 0) {
            jj_sb_str(j, &sb, with);
            if (p == end) return jj_sb_val(j, &sb);
            jj_decode(p, end, &n);
            jj_sb_put(j, &sb, p, n);
            jj_step(j, 1);
            p += n;
        }
    } else {
        for (; max != 0 && (found = jj_find(j, p, (size_t)(end - p), old->data, old->len)); max -= max > 0) {
            jj_sb_put(j, &sb, p, (size_t)(found - p));
            jj_sb_str(j, &sb, with);
            p = found + old->len;
        }
    }
    jj_sb_put(j, &sb, p, (size_t)(end - p));
    return jj_sb_val(j, &sb);
}

static struct jj_val m_replace(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    struct jj_val a[3];
    jj_bind(j, "replace()", "! old new | count", args, a);
    int64_t max = a[2].type == JJ_MISSING ? -1 : jj_want_int(j, "replace()", a[2]);
    const struct jj_str *old = jj_want_str(j, "replace()", a[0]), *with = jj_want_str(j, "replace()", a[1]);
    return replace(j, self.s, old, with, max);
}

static struct jj_val m_join(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    struct jj_val a[1], item;
    struct jj_sb sb = {0};
    jj_bind(j, "join()", "! iterable", args, a);
    if (!jj_iterable(a[0])) jj_fail(j, ST_CORRUPT, "can only join an iterable");
    struct jj_iter *it = jj_iter_new(j, a[0]);
    for (size_t i = 0; jj_next(j, it, &item); i++) {
        if (item.type != JJ_STR)
            jj_fail(j, ST_CORRUPT, "sequence item %zu: expected str instance, %s found", i, jj_type_name(item));
        if (i) jj_sb_str(j, &sb, self.s);
        jj_sb_str(j, &sb, item.s);
    }
    return jj_sb_val(j, &sb);
}

static struct jj_val pad(struct jj *j, struct jj_val self, const struct jj_args *args, char how)
{
    struct jj_val a[2];
    struct jj_sb sb = {0};
    jj_bind(j, "a padding method", "! width | fillchar", args, a);
    const struct jj_str *fill = a[1].type == JJ_MISSING ? jj_textz(j, " ").s : jj_want_str(j, "fillchar", a[1]);
    if (fill->count != 1) jj_fail(j, ST_CORRUPT, "the fill character must be exactly one character long");
    int64_t width = jj_want_int(j, "width", a[0]), n = width - (int64_t)self.s->count;
    if (n <= 0) return self;
    int64_t left = how == '<' ? 0 : how == '>' ? n : n / 2 + (n & width & 1);
    for (int64_t i = 0; i < n; i++) {
        if (i == left) jj_sb_str(j, &sb, self.s);
        jj_step(j, 1);
        jj_sb_str(j, &sb, fill);
    }
    if (left == n) jj_sb_str(j, &sb, self.s);
    return jj_sb_val(j, &sb);
}

static struct jj_val m_ljust(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    return pad(j, self, args, '<');
}

static struct jj_val m_rjust(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    return pad(j, self, args, '>');
}

static struct jj_val m_center(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    return pad(j, self, args, '^');
}

static struct jj_val m_zfill(struct jj *j, struct jj_val self, const struct jj_args *args)
{
    struct jj_val a[1];
    struct jj_sb sb = {0};
    jj_bind(j, "zfill()", "! width", args, a);
    int64_t n = jj_want_int(j, "zfill()", a[0]) - (int64_t)self.s->count;
    size_t sign = self.s->len && (self.s->data[0] == '+' || self.s->data[0] == '-');
    jj_sb_put(j, &sb, self.s->data, sign);
    for (; n > 0; n--) {
        jj_step(j, 1);
        jj_sb_putc(j, &sb, '0');
    }
    jj_sb_put(j, &sb, self.s->data + sign, self.s->len - sign);
    return jj_sb_val(j, &sb);
}

#define CLASS_METHOD(name)                                                                        \
    static struct jj_val m_##name(struct jj *j, struct jj_val self, const struct jj_args *args)   \
    {                                                                                             \
        jj_bind(j, #name "()", "!", args, NULL);                                                  \
        jj_step(j, self.s->len / 8);                                                              \
        return jj_bool(jj_all_class(self.s, #name));                                              \
    }
CLASS_METHOD(isalnum)
CLASS_METHOD(isalpha)
CLASS_METHOD(isascii)
CLASS_METHOD(isdecimal)
CLASS_METHOD(isdigit)
CLASS_METHOD(islower)
CLASS_METHOD(isprintable)
CLASS_METHOD(isspace)
CLASS_METHOD(istitle)
CLASS_METHOD(isupper)

const struct jj_function jj_str_methods[] = {
    {"strip", m_strip},           {"startswith", m_startswith}, {"endswith", m_endswith},
    {"split", m_split},           {"replace", m_replace},       {"join", m_join},
    {"lstrip", m_lstrip},         {"rstrip", m_rstrip},         {"upper", m_upper},
    {"lower", m_lower},           {"title", m_title},           {"capitalize", m_capitalize},
    {"swapcase", m_swapcase},     {"rsplit", m_rsplit},         {"splitlines", m_splitlines},
    {"partition", m_partition},   {"rpartition", m_rpartition}, {"find", m_find},
    {"rfind", m_rfind},           {"index", m_index},           {"rindex", m_rindex},
    {"count", m_count},           {"removeprefix", m_removeprefix}, {"removesuffix", m_removesuffix},
    {"ljust", m_ljust},           {"rjust", m_rjust},           {"center", m_center},
    {"zfill", m_zfill},           {"format", jj_str_format},    {"isalnum", m_isalnum},
    {"isalpha", m_isalpha},       {"isascii", m_isascii},       {"isdecimal", m_isdecimal},
    {"isdigit", m_isdigit},       {"islower", m_islower},       {"isprintable", m_isprintable},
    {"isspace", m_isspace},       {"istitle", m_istitle},       {"isupper", m_isupper},
    {NULL, NULL},
};
