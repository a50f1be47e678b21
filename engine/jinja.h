/*
 * jinja.h - the Jinja of Hugging Face chat templates: compile once, render per request.
 *
 * The dialect is what transformers configures (ImmutableSandboxedEnvironment with trim_blocks,
 * lstrip_blocks and loop controls, its own `tojson`, `raise_exception`, `strftime_now`,
 * `namespace`, and {% generation %} blocks), and the aim is the same text for the same input.  A
 * template is untrusted code, so a render is bounded in work, memory, depth and output, reads no
 * clock, file or environment, and cannot change its input.
 *
 * Not supported, and said so at compile time with the line: block, extends, include, import, from,
 * autoescape, debug, and the filters and tests that print HTML or need randomness.  Not supported
 * at run time: integers beyond 64 bits, printing an object whose text is a memory address (an
 * unfinished map() or select(): put `| list` behind it).
 *
 * How the files go: jinja_lex (text to tokens), jinja_parse and jinja_parse_expr (tokens to tree),
 * jinja_scope (names to slots), jinja_exec (statements), jinja_eval (expressions), jinja_op
 * (operators), jinja_value, jinja_dict and jinja_iter (data), jinja_text and jinja_json (data to
 * text), jinja_unicode, jinja_format, jinja_str, jinja_object (methods and globals), jinja_filter,
 * jinja_filter_seq, jinja_test.  What they share is jinja_int.h.
 */
#ifndef DAKD_ENGINE_JINJA_H
#define DAKD_ENGINE_JINJA_H

#include <cjson/cJSON.h>
#include <stddef.h>
#include <stdint.h>

#include "config/buf.h"
#include "config/status.h"

struct eng_jinja;

struct eng_jinja_limits {
    uint64_t steps_max;   /* operations, each about a node visited, an item, or 64 bytes copied */
    uint64_t deadline_ns; /* on clock_now_ns(); 0 for none */
    unsigned depth_max;   /* nested evaluations: expressions, blocks, macro calls; at most 1000 */
    size_t output_bytes_max;
    size_t arena_bytes_max; /* everything a render builds, its copy of the variables included */
};

extern const struct eng_jinja_limits eng_jinja_limits_default;

/* Compiles src[0..len), UTF-8.  ST_INVALID (syntax) and ST_UNSUPPORTED (a construct outside the
 * dialect) with a sentence that begins "line N: ", ST_LIMIT (size or nesting), ST_NOMEM.  *out is
 * immutable: any number of threads may render it at once.  Free with eng_jinja_free. */
MUST_USE enum status eng_jinja_compile(const char *src, size_t len, struct eng_jinja **out,
                                       char *err);
void eng_jinja_free(struct eng_jinja *t);

/* Appends the text to *out, which keeps its old contents alone on failure.
 *
 * vars: a JSON object from json_parse (config/json.h), the template's variables: 1 is an integer
 * and 1.0 a float, as in Python; an integer beyond 64 bits is a float too.  now_unix_s: what
 * strftime_now() shows, in the process's local time zone.
 *
 * ST_INVALID: the template called raise_exception, and err is its message.  ST_CORRUPT: the
 * template failed on these variables (an undefined value used, a wrong type), "line N: why".
 * ST_UNSUPPORTED, ST_LIMIT (names the limit), ST_NOMEM.  Any thread; needs about 1 MB of stack. */
MUST_USE enum status eng_jinja_render(const struct eng_jinja *t, const cJSON *vars,
                                      const struct eng_jinja_limits *limits, int64_t now_unix_s,
                                      struct buf *out, char *err);

/* Python's str.strip() on valid UTF-8: the first byte kept, and in *len how many. */
const char *eng_jinja_strip(const char *text, size_t *len);

#endif
