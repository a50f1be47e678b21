/* tok_vocab.h - token texts by id and ids by text. */
#ifndef DAKD_ENGINE_TOK_VOCAB_H
#define DAKD_ENGINE_TOK_VOCAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/buf.h"
#include "config/status.h"

/* Ids at or above this are refused: an id table is as long as its highest id. */
#define ENG_VOCAB_IDS_MAX (4 << 20)

struct eng_vocab_span {
    uint32_t at;     /* offset in `texts` */
    uint32_t len_p1; /* bytes + 1; 0 where no token has this id */
};

struct eng_vocab {
    struct buf texts;             /* every text followed by NUL */
    struct eng_vocab_span *by_id; /* [id_count] owned */
    int32_t id_count;             /* highest id + 1 */
    int32_t id_cap;
    int32_t *slots; /* [slot_cap] owned: id + 1, or 0 where free; slot_cap is a power of two */
    size_t slot_cap, count;
};

void eng_vocab_init(struct eng_vocab *v);
void eng_vocab_deinit(struct eng_vocab *v);
/* Copies the text.  ST_INVALID where the id is out of range or taken, or the text is there already;
 * ST_NOMEM. */
MUST_USE enum status eng_vocab_add(struct eng_vocab *v, const char *text, size_t len, int64_t id,
                                   char *err);
/* -1 where absent. */
int32_t eng_vocab_find(const struct eng_vocab *v, const char *text, size_t len);
/* The NUL-terminated text (borrowed), or NULL where no token has this id. */
const char *eng_vocab_text(const struct eng_vocab *v, int32_t id, size_t *len);

#endif
