/*
 * tok_pretok.c - pre-tokenisation as a chain of steps.
 *
 * Each step cuts the text it is given and hands every part to the next step; the last hands words
 * to the sink.  Nothing is collected: a step keeps at most one part back (struct splitter), so
 * memory is a few copies of the text whatever the number of words.  Words are found left to right,
 * in the order of the text.
 */
#include "engine/tok_pretok.h"

#include <string.h>

#include "config/check.h"
#include "config/json.h"
#include "config/utf8.h"
#include "engine/tok_normalize.h"
#include "engine/tok_unicode.h"

#define GPT2_PATTERN                                                                               \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

static enum status read_behavior(const cJSON *json, const char *fallback,
                                 enum eng_pretok_behavior *out, char *err)
{
    static const char *const names[] = {
        [ENG_PRETOK_ISOLATED] = "Isolated",
        [ENG_PRETOK_REMOVED] = "Removed",
        [ENG_PRETOK_MERGED_WITH_PREVIOUS] = "MergedWithPrevious",
        [ENG_PRETOK_MERGED_WITH_NEXT] = "MergedWithNext",
        [ENG_PRETOK_CONTIGUOUS] = "Contiguous",
    };
    const char *name;
    enum status st = json_get_string(json, "behavior", fallback, &name, err);
    if (st) return st;
    if (!name) return err_set(err, ST_INVALID, "a pre-tokenizer Split lacks 'behavior'");
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        if (strcmp(name, names[i])) continue;
        *out = (enum eng_pretok_behavior)i;
        return ST_OK;
    }
    return err_set(err, ST_INVALID, "the split behavior '%.60s' is not known", name);
}

enum status eng_pretok_metaspace(const cJSON *json, enum eng_pretok_prepend *prepend,
                                 char replacement[5], char *err)
{
    const char *text, *scheme;
    bool prefix;
    enum status st;
    if ((st = json_get_string(json, "replacement", "\xE2\x96\x81", &text, err)) ||
        (st = json_get_string(json, "prepend_scheme", NULL, &scheme, err)) ||
        (st = json_get_bool(json, "add_prefix_space", true, &prefix, err)))
        return st;
    size_t len = strlen(text);
    if (len == 0 || utf8_char_len(text, len) != len)
        return err_set(err, ST_INVALID, "Metaspace's 'replacement' must be one character");
    memcpy(replacement, text, len + 1);
    if (scheme && !prefix && strcmp(scheme, "never"))
        return err_set(err, ST_INVALID,
                       "Metaspace's add_prefix_space contradicts its prepend_scheme");
    if (!scheme) scheme = prefix ? "always" : "never";
    if (!strcmp(scheme, "always")) *prepend = ENG_PRETOK_ALWAYS;
    else if (!strcmp(scheme, "first")) *prepend = ENG_PRETOK_FIRST;
    else if (!strcmp(scheme, "never")) *prepend = ENG_PRETOK_NEVER;
    else return err_set(err, ST_INVALID, "Metaspace's prepend_scheme '%.60s' is not known", scheme);
    return ST_OK;
}

static enum status read_byte_level(struct eng_pretok_step *s, const cJSON *json, char *err)
{
    enum status st;
    s->kind = ENG_PRETOK_BYTE_LEVEL;
    if ((st = json_get_bool(json, "add_prefix_space", true, &s->add_prefix_space, err)) ||
        (st = json_get_bool(json, "use_regex", true, &s->use_regex, err)))
        return st;
    return s->use_regex ? eng_regex_compile(GPT2_PATTERN, strlen(GPT2_PATTERN), &s->re, err)
                        : ST_OK;
}

static enum status read_split(struct eng_pretok_step *s, const cJSON *json, char *err)
{
    enum status st;
    s->kind = ENG_PRETOK_SPLIT;
    if ((st = read_behavior(json, NULL, &s->behavior, err)) ||
        (st = json_get_bool(json, "invert", false, &s->invert, err)))
        return st;
    return eng_norm_pattern(json_member(json, "pattern"), &s->re, err);
}

static enum status read_class(struct eng_pretok_step *s, const char *type, const cJSON *json,
                              char *err)
{
    bool individual;
    enum status st = ST_OK;
    s->kind = ENG_PRETOK_CHARS;
    s->behavior = ENG_PRETOK_REMOVED;
    if (!strcmp(type, "WhitespaceSplit")) {
        s->in_class = eng_ucd_is_space;
    } else if (!strcmp(type, "Digits")) {
        s->in_class = eng_ucd_is_number;
        st = json_get_bool(json, "individual_digits", false, &individual, err);
        if (!st) s->behavior = individual ? ENG_PRETOK_ISOLATED : ENG_PRETOK_CONTIGUOUS;
    } else {
        s->in_class = eng_ucd_is_punctuation;
        st = read_behavior(json, "Isolated", &s->behavior, err);
    }
    return st;
}

/* \w+|[^\w\s]+ in the syntax and with the \w of Rust's regex crate, which counts the join controls.
 */
static enum status read_whitespace(struct eng_pretok_step *s, char *err)
{
    static const char pattern[] = "[\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{200C}\\x{200D}\\x{24B6}-"
                                  "\\x{24E9}\\x{1F130}-\\x{1F149}"
                                  "\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{1F189}]+|"
                                  "[^\\s\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{200C}\\x{200D}\\x{"
                                  "24B6}-\\x{24E9}\\x{1F130}-\\x{1F149}"
                                  "\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{1F189}]+";
    s->kind = ENG_PRETOK_SPLIT;
    s->behavior = ENG_PRETOK_REMOVED;
    s->invert = true;
    return eng_regex_compile(pattern, strlen(pattern), &s->re, err);
}

static enum status read_step(struct eng_pretok_step *s, const char *type, const cJSON *json,
                             char *err)
{
    if (!strcmp(type, "ByteLevel")) return read_byte_level(s, json, err);
    if (!strcmp(type, "Split")) return read_split(s, json, err);
    if (!strcmp(type, "Whitespace")) return read_whitespace(s, err);
    if (!strcmp(type, "WhitespaceSplit") || !strcmp(type, "Digits") || !strcmp(type, "Punctuation"))
        return read_class(s, type, json, err);
    if (!strcmp(type, "Metaspace")) {
        enum status st;
        s->kind = ENG_PRETOK_METASPACE;
        if ((st = json_get_bool(json, "split", true, &s->split, err)) ||
            (st = eng_pretok_metaspace(json, &s->prepend, s->replacement, err)))
            return st;
        s->replacement_len = strlen(s->replacement);
        return ST_OK;
    }
    return err_set(err, ST_UNSUPPORTED, "the pre-tokenizer '%.60s' is not supported", type);
}

static enum status read_steps(struct eng_pretok *p, const cJSON *json, char *err)
{
    const char *type;
    enum status st = json_get_string(json, "type", NULL, &type, err);
    if (st) return st;
    if (!type) return err_set(err, ST_INVALID, "a pre-tokenizer has no 'type'");
    if (!strcmp(type, "Sequence")) {
        const cJSON *list = json_member(json, "pretokenizers"), *item;
        if (!cJSON_IsArray(list))
            return err_set(err, ST_INVALID, "a pre-tokenizer Sequence lacks 'pretokenizers'");
        cJSON_ArrayForEach(item, list) if ((st = read_steps(p, item, err))) return st;
        return ST_OK;
    }
    if (p->count == ENG_PRETOK_STEPS_MAX)
        return err_set(err, ST_UNSUPPORTED, "more than %d pre-tokenizers", ENG_PRETOK_STEPS_MAX);
    return read_step(&p->steps[p->count++], type, json, err);
}

enum status eng_pretok_init(struct eng_pretok *p, const cJSON *json, char *err)
{
    *p = (struct eng_pretok){0};
    return json ? read_steps(p, json, err) : ST_OK;
}

void eng_pretok_deinit(struct eng_pretok *p)
{
    for (int i = 0; i < p->count; i++) eng_regex_deinit(&p->steps[i].re);
    *p = (struct eng_pretok){0};
}

void eng_pretok_scratch_init(struct eng_pretok_scratch *s, const struct eng_regex_scratch *regex,
                             size_t text_bytes_max)
{
    s->regex = regex;
    for (int i = 0; i < ENG_PRETOK_STEPS_MAX; i++) {
        buf_init(&s->texts[i], text_bytes_max);
        buf_init(&s->words[i], text_bytes_max);
    }
}

void eng_pretok_scratch_deinit(struct eng_pretok_scratch *s)
{
    for (int i = 0; i < ENG_PRETOK_STEPS_MAX; i++) {
        buf_deinit(&s->texts[i]);
        buf_deinit(&s->words[i]);
    }
}

/* One run of the chain. */
struct walk {
    const struct eng_pretok *pretok;
    struct eng_pretok_scratch *scratch;
    eng_pretok_sink *sink;
    void *arg;
};

static enum status run_step(const struct walk *w, int step, const char *text, size_t len,
                            bool at_start);

/* Collects the parts of a text in order, match or not, joins them as the behavior says, and passes
 * them on. */
struct splitter {
    const struct walk *walk;
    int next_step;
    enum eng_pretok_behavior behavior;
    const char *text;
    bool at_start;
    bool byte_level; /* pass parts on in byte-level characters */
    bool held;       /* [start, end) waits for what follows it */
    bool match, last_match;
    size_t start, end;
};

/* The byte-level alphabet: printable Latin-1 stands for itself, the rest moves to U+0100 and up. */
static uint32_t byte_to_char(unsigned char b)
{
    if ((b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE) return b;
    if (b <= ' ') return 0x100u + b;
    return b == 0xAD ? 0x143 : 0x100u + 33 + (b - 0x7Fu);
}

static enum status pass_on(const struct splitter *s, size_t start, size_t end)
{
    if (start == end) return ST_OK;
    const char *part = s->text + start;
    size_t len = end - start;
    if (s->byte_level) {
        struct buf *word = &s->walk->scratch->words[s->next_step - 1];
        buf_clear(word);
        if (buf_reserve(word, 2 * len)) return buf_status(word);
        for (size_t i = 0; i < len; i++)
            word->len += utf8_encode(byte_to_char((unsigned char)part[i]), word->data + word->len);
        part = word->data;
        len = word->len;
    }
    return run_step(s->walk, s->next_step, part, len, s->at_start && start == 0);
}

/* True where the new part belongs to the one that is held. */
static bool joins(const struct splitter *s, bool match)
{
    switch (s->behavior) {
    case ENG_PRETOK_CONTIGUOUS: return match == s->match;
    case ENG_PRETOK_MERGED_WITH_PREVIOUS: return match && !s->last_match;
    case ENG_PRETOK_MERGED_WITH_NEXT: return !match && s->match;
    default: return false;
    }
}

static enum status split_at(struct splitter *s, size_t start, size_t end, bool match)
{
    if (s->behavior == ENG_PRETOK_REMOVED) return match ? ST_OK : pass_on(s, start, end);
    if (s->behavior == ENG_PRETOK_ISOLATED) return pass_on(s, start, end);
    enum status st = ST_OK;
    bool join = s->held && joins(s, match);
    if (s->held && !join) st = pass_on(s, s->start, s->end);
    if (!join) s->start = start;
    s->end = end;
    s->match = match && !(join && s->behavior == ENG_PRETOK_MERGED_WITH_NEXT);
    s->last_match = match;
    s->held = true;
    return st;
}

static enum status split_end(struct splitter *s)
{
    return s->held ? pass_on(s, s->start, s->end) : ST_OK;
}

static enum status split_by_regex(struct splitter *s, const struct eng_regex *re, size_t len,
                                  bool invert)
{
    struct eng_regex_scan scan;
    size_t start, end, done = 0;
    enum status st;
    eng_regex_scan_init(&scan, re, s->walk->scratch->regex, s->text, len);
    while (!(st = eng_regex_next(&scan, &start, &end))) {
        if (done < start && (st = split_at(s, done, start, invert))) return st;
        if ((st = split_at(s, start, end, !invert))) return st;
        done = end;
    }
    if (st != ST_NOT_FOUND) return st;
    if (done < len && (st = split_at(s, done, len, invert))) return st;
    return split_end(s);
}

static enum status split_by_class(struct splitter *s, bool (*in_class)(uint32_t), size_t len)
{
    const char *p = s->text, *end = s->text + len;
    size_t done = 0;
    enum status st;
    while (p < end) {
        size_t at = (size_t)(p - s->text);
        if (!in_class(eng_ucd_next(&p, end))) continue;
        if (done < at && (st = split_at(s, done, at, false))) return st;
        done = (size_t)(p - s->text);
        if ((st = split_at(s, at, done, true))) return st;
    }
    if (done < len && (st = split_at(s, done, len, false))) return st;
    return split_end(s);
}

/* Cuts before every replacement character. */
static enum status split_metaspace(struct splitter *s, const struct eng_pretok_step *step,
                                   size_t len)
{
    size_t done = 0;
    enum status st;
    for (size_t at = 0; at + step->replacement_len <= len;) {
        if (memcmp(s->text + at, step->replacement, step->replacement_len)) {
            at++;
            continue;
        }
        if (done < at && (st = split_at(s, done, at, false))) return st;
        done = at + step->replacement_len;
        if ((st = split_at(s, at, done, true))) return st;
        at = done;
    }
    if (done < len && (st = split_at(s, done, len, false))) return st;
    return split_end(s);
}

static enum status run_metaspace(struct splitter *s, const struct eng_pretok_step *step, size_t len)
{
    struct buf *text = &s->walk->scratch->texts[s->next_step - 1];
    bool marked = s->text[0] == ' ' || (len >= step->replacement_len &&
                                        !memcmp(s->text, step->replacement, step->replacement_len));
    bool wanted =
        step->prepend == ENG_PRETOK_ALWAYS || (step->prepend == ENG_PRETOK_FIRST && s->at_start);
    buf_clear(text);
    if (wanted && !marked) buf_put(text, step->replacement, step->replacement_len);
    for (const char *p = s->text, *end = s->text + len; p < end;) {
        const char *space = memchr(p, ' ', (size_t)(end - p));
        buf_put(text, p, (size_t)((space ? space : end) - p));
        if (space) buf_put(text, step->replacement, step->replacement_len);
        p = space ? space + 1 : end;
    }
    if (buf_status(text)) return buf_status(text);
    s->text = text->data;
    if (!step->split) return pass_on(s, 0, text->len);
    s->behavior = ENG_PRETOK_MERGED_WITH_NEXT;
    return split_metaspace(s, step, text->len);
}

static enum status run_byte_level(struct splitter *s, const struct eng_pretok_step *step,
                                  size_t len)
{
    s->byte_level = true;
    s->behavior = ENG_PRETOK_ISOLATED;
    if (step->add_prefix_space && s->text[0] != ' ') {
        struct buf *text = &s->walk->scratch->texts[s->next_step - 1];
        buf_clear(text);
        buf_putc(text, ' ');
        buf_put(text, s->text, len);
        if (buf_status(text)) return buf_status(text);
        s->text = text->data;
        len = text->len;
    }
    return step->use_regex ? split_by_regex(s, &step->re, len, false) : pass_on(s, 0, len);
}

static enum status run_step(const struct walk *w, int step, const char *text, size_t len,
                            bool at_start)
{
    if (step == w->pretok->count) return w->sink(w->arg, text, len);
    const struct eng_pretok_step *p = &w->pretok->steps[step];
    struct splitter s = {.walk = w,
                         .next_step = step + 1,
                         .behavior = p->behavior,
                         .text = text,
                         .at_start = at_start};
    switch (p->kind) {
    case ENG_PRETOK_BYTE_LEVEL: return run_byte_level(&s, p, len);
    case ENG_PRETOK_SPLIT: return split_by_regex(&s, &p->re, len, p->invert);
    case ENG_PRETOK_CHARS: return split_by_class(&s, p->in_class, len);
    case ENG_PRETOK_METASPACE: return run_metaspace(&s, p, len);
    }
    CHECK(!"a kind of pre-tokeniser");
    return ST_INVALID;
}

enum status eng_pretok_run(const struct eng_pretok *p, struct eng_pretok_scratch *s,
                           const char *text, size_t len, bool at_start, eng_pretok_sink *sink,
                           void *arg)
{
    const struct walk w = {.pretok = p, .scratch = s, .sink = sink, .arg = arg};
    return len == 0 ? ST_OK : run_step(&w, 0, text, len, at_start);
}
