/* tok_pretok.h - the "pre_tokenizer" of tokenizer.json: cuts a text into the words that BPE works
 * on. */
#ifndef DAKD_ENGINE_TOK_PRETOK_H
#define DAKD_ENGINE_TOK_PRETOK_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>

#include "config/buf.h"
#include "config/status.h"
#include "engine/tok_regex.h"

#define ENG_PRETOK_STEPS_MAX 16

enum eng_pretok_kind {
    ENG_PRETOK_BYTE_LEVEL,
    ENG_PRETOK_SPLIT, /* by a pattern */
    ENG_PRETOK_CHARS, /* by a class of characters */
    ENG_PRETOK_METASPACE,
};

/* What becomes of the matches that a text is split by. */
enum eng_pretok_behavior {
    ENG_PRETOK_ISOLATED,
    ENG_PRETOK_REMOVED,
    ENG_PRETOK_MERGED_WITH_PREVIOUS,
    ENG_PRETOK_MERGED_WITH_NEXT,
    ENG_PRETOK_CONTIGUOUS,
};

enum eng_pretok_prepend { ENG_PRETOK_ALWAYS, ENG_PRETOK_FIRST, ENG_PRETOK_NEVER };

struct eng_pretok_step {
    enum eng_pretok_kind kind;
    enum eng_pretok_behavior behavior; /* SPLIT, CHARS */
    bool invert;                      /* SPLIT: what lies between the matches counts as the match */
    struct eng_regex re;              /* SPLIT; BYTE_LEVEL with its own pattern: owned */
    bool (*in_class)(uint32_t cp);    /* CHARS */
    bool add_prefix_space, use_regex; /* BYTE_LEVEL */
    enum eng_pretok_prepend prepend;  /* METASPACE */
    bool split;                       /* METASPACE: cut before each replacement */
    char replacement[5];              /* METASPACE: one character, NUL-terminated */
    size_t replacement_len;
};

/* The nested pre-tokenisers, flattened in order. */
struct eng_pretok {
    struct eng_pretok_step steps[ENG_PRETOK_STEPS_MAX];
    int count;
};

/* Receives each word in order; a status other than ST_OK ends the walk and is its result. */
typedef enum status eng_pretok_sink(void *arg, const char *word, size_t len);

/* Memory that one call at a time works in, per step, since a step's output is cut by the next: the
 * text with what the step put before it, and one word in byte-level characters. */
struct eng_pretok_scratch {
    struct buf texts[ENG_PRETOK_STEPS_MAX];
    struct buf words[ENG_PRETOK_STEPS_MAX];
    const struct eng_regex_scratch *regex; /* borrowed */
};

/* `json` may be NULL: the whole text is one word.  ST_INVALID, ST_UNSUPPORTED, ST_NOMEM. */
MUST_USE enum status eng_pretok_init(struct eng_pretok *p, const cJSON *json, char *err);
void eng_pretok_deinit(struct eng_pretok *p);

void eng_pretok_scratch_init(struct eng_pretok_scratch *s, const struct eng_regex_scratch *regex,
                             size_t text_bytes_max);
void eng_pretok_scratch_deinit(struct eng_pretok_scratch *s);

/* Cuts text (valid UTF-8); at_start says that it begins where the input began (Metaspace "first").
 */
MUST_USE enum status eng_pretok_run(const struct eng_pretok *p, struct eng_pretok_scratch *s,
                                    const char *text, size_t len, bool at_start,
                                    eng_pretok_sink *sink, void *arg);

/* "prepend_scheme" or the older "add_prefix_space", and "replacement" of a Metaspace; shared with
 * the decoder. */
MUST_USE enum status eng_pretok_metaspace(const cJSON *json, enum eng_pretok_prepend *prepend,
                                          char replacement[5], char *err);

#endif
