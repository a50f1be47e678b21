/* tok_added.h - "added_tokens" of tokenizer.json: texts that become one token wherever they stand.
 */
#ifndef DAKD_ENGINE_TOK_ADDED_H
#define DAKD_ENGINE_TOK_ADDED_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/status.h"
#include "engine/tok_normalize.h"
#include "engine/tok_vocab.h"

struct eng_added_token {
    int32_t id;
    bool single_word, lstrip, rstrip, normalized, special;
};

struct eng_added_node {
    uint32_t child, sibling; /* node indices, 0 where none */
    int32_t token;           /* index into tokens of the text that ends here, or -1 */
    unsigned char byte;
};

/* The texts of one kind as a byte trie; node 0 is the root. */
struct eng_added_trie {
    struct eng_added_node *nodes; /* owned */
    size_t count, cap;
    uint32_t first[256]; /* the root's children by byte */
};

struct eng_added {
    struct eng_vocab vocab;         /* text <-> id of the added tokens alone */
    struct eng_added_token *tokens; /* [count] owned, in the file's order */
    int32_t count;
    struct eng_added_trie raw;        /* matched in the text as it came */
    struct eng_added_trie normalized; /* matched after normalisation */
};

/* A walk over a text that yields its parts in order. */
struct eng_added_scan {
    const struct eng_added *added;
    const struct eng_added_trie *trie;
    bool parse_special; /* special tokens in the text count; false: they are text like any other */
    const char *text;
    size_t len;
    size_t search; /* where the next match may start */
    size_t done;   /* everything before is yielded */
    struct {
        size_t start, end;
        int32_t id;
    } held; /* a token found behind a part of plain text; id -1 where none */
};

/* `list` is the "added_tokens" array or NULL; `model` is the model's vocabulary (texts there must
 * have the same id). ST_INVALID, ST_NOMEM. */
MUST_USE enum status eng_added_init(struct eng_added *a, const cJSON *list,
                                    const struct eng_vocab *model, const struct eng_norm *norm,
                                    char *err);
void eng_added_deinit(struct eng_added *a);

void eng_added_scan_init(struct eng_added_scan *scan, const struct eng_added *a,
                         const struct eng_added_trie *trie, bool parse_special, const char *text,
                         size_t len);
/* The next part [*start, *end): *id is the token's, or -1 for plain text.  False at the end. */
bool eng_added_next(struct eng_added_scan *scan, size_t *start, size_t *end, int32_t *id);

#endif
