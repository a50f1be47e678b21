/* tok_regex.h - the regular expressions of tokenizer.json, compiled to PCRE2. */
#ifndef DAKD_ENGINE_TOK_REGEX_H
#define DAKD_ENGINE_TOK_REGEX_H

#include <pcre2.h>
#include <stddef.h>

#include "config/buf.h"
#include "config/status.h"

/* Immutable once compiled; shared by threads. */
struct eng_regex {
    pcre2_code *code;
};

/* Memory that one call at a time uses for matching. */
struct eng_regex_scratch {
    pcre2_match_data *data;
    pcre2_match_context *limits;
};

/* One walk over the matches in a text, left to right. */
struct eng_regex_scan {
    const struct eng_regex *re;
    const struct eng_regex_scratch *scratch;
    const char *text; /* borrowed, valid UTF-8 */
    size_t len;
    size_t pos;      /* where the next search starts */
    size_t last_end; /* of the last match, SIZE_MAX before the first */
};

/* Pattern in Oniguruma's Ruby syntax, as tokenizer.json has it.  ST_INVALID where it does not
 * compile, ST_UNSUPPORTED for syntax that would mean something else here; the sentence quotes the
 * pattern. */
MUST_USE enum status eng_regex_compile(const char *pattern, size_t len, struct eng_regex *out,
                                       char *err);
/* A pattern that matches exactly these bytes (not empty). */
MUST_USE enum status eng_regex_compile_literal(const char *text, size_t len, struct eng_regex *out,
                                               char *err);
void eng_regex_deinit(struct eng_regex *re);

MUST_USE enum status eng_regex_scratch_init(struct eng_regex_scratch *s);
void eng_regex_scratch_deinit(struct eng_regex_scratch *s);

void eng_regex_scan_init(struct eng_regex_scan *scan, const struct eng_regex *re,
                         const struct eng_regex_scratch *scratch, const char *text, size_t len);
/* ST_OK with the next match in [*start, *end); ST_NOT_FOUND at the end; ST_LIMIT where the match
 * needed more steps or memory than allowed; ST_NOMEM. */
MUST_USE enum status eng_regex_next(struct eng_regex_scan *scan, size_t *start, size_t *end);

/* Appends the text with every match replaced by `content`. */
MUST_USE enum status eng_regex_replace(const struct eng_regex *re,
                                       const struct eng_regex_scratch *scratch, const char *text,
                                       size_t len, const char *content, size_t content_len,
                                       struct buf *out);

#endif
