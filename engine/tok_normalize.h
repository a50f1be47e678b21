/* tok_normalize.h - the "normalizer" of tokenizer.json. */
#ifndef DAKD_ENGINE_TOK_NORMALIZE_H
#define DAKD_ENGINE_TOK_NORMALIZE_H

#include <cjson/cJSON.h>
#include <stdbool.h>

#include "config/buf.h"
#include "config/status.h"
#include "engine/tok_regex.h"

#define ENG_NORM_STEPS_MAX 16

enum eng_norm_kind {
    ENG_NORM_FORM, /* NFC, NFD, NFKC, NFKD */
    ENG_NORM_LOWERCASE,
    ENG_NORM_STRIP,
    ENG_NORM_STRIP_ACCENTS,
    ENG_NORM_PREPEND,
    ENG_NORM_REPLACE,
};

struct eng_norm_step {
    enum eng_norm_kind kind;
    bool compose, compat; /* FORM */
    bool left, right;     /* STRIP */
    struct eng_regex re;  /* REPLACE: owned */
    char *content;        /* REPLACE, PREPEND: owned */
    size_t content_len;
};

/* The nested normalizers, flattened in order.  No steps: the text stays as it is. */
struct eng_norm {
    struct eng_norm_step steps[ENG_NORM_STEPS_MAX];
    int count;
};

/* `json` may be NULL (no normalizer).  ST_INVALID, ST_UNSUPPORTED, ST_NOMEM. */
MUST_USE enum status eng_norm_init(struct eng_norm *norm, const cJSON *json, char *err);
void eng_norm_deinit(struct eng_norm *norm);

/* Replaces *text (valid UTF-8) by its normal form; `spare` is working memory, the two may change
 * places. *left_cut is set where characters were taken from the beginning.  ST_NOMEM, ST_LIMIT
 * (text over its buffer's bound, or a pattern over its match limit). */
MUST_USE enum status eng_norm_apply(const struct eng_norm *norm,
                                    const struct eng_regex_scratch *scratch, struct buf *text,
                                    struct buf *spare, bool *left_cut);

/* A "pattern" member, {"String": s} or {"Regex": s}, as normalizers, pre-tokenisers and decoders
 * write it. */
MUST_USE enum status eng_norm_pattern(const cJSON *json, struct eng_regex *out, char *err);

#endif
