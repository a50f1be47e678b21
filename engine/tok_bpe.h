/* tok_bpe.h - the BPE "model" of tokenizer.json: vocabulary, merges, and the encoding of one word.
 */
#ifndef DAKD_ENGINE_TOK_BPE_H
#define DAKD_ENGINE_TOK_BPE_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/status.h"
#include "engine/tok_vocab.h"

/* Characters below this find their token without hashing (byte-level alphabets end at U+0143). */
#define ENG_BPE_DIRECT 0x180

struct eng_bpe_pair {
    uint64_t pair; /* left id << 32 | right id */
    uint32_t rank; /* the merge's place in the list, from 0; UINT32_MAX marks a free slot */
    int32_t merged;
};

struct eng_bpe {
    struct eng_vocab vocab;
    struct eng_bpe_pair *pairs; /* [pair_cap] owned, open addressing; pair_cap is a power of two */
    size_t pair_cap;
    int32_t *merged_by_rank; /* [merge_count] owned */
    size_t merge_count;
    int32_t direct[ENG_BPE_DIRECT]; /* token of a one-character word, -1 where none */
    int32_t byte_id[256];           /* token <0xHH>, -1 where none or byte_fallback is off */
    int32_t unk_id;                 /* -1 where none */
    bool byte_fallback, fuse_unk, ignore_merges;
    char *prefix,
        *suffix; /* continuing_subword_prefix, end_of_word_suffix: owned, NULL where none */
};

/* Ids under construction, and the memory one call at a time works in. */
struct eng_bpe_ids {
    int32_t *data; /* owned */
    size_t count, cap, max;
};

struct eng_bpe_symbol;
struct eng_bpe_scratch {
    struct eng_bpe_symbol *symbols; /* owned */
    size_t symbol_count, symbol_cap;
    uint64_t *heap; /* owned */
    size_t heap_count, heap_cap;
};

/* `json` is the "model" object.  ST_INVALID, ST_UNSUPPORTED (another model, dropout), ST_NOMEM. */
MUST_USE enum status eng_bpe_init(struct eng_bpe *bpe, const cJSON *json, char *err);
void eng_bpe_deinit(struct eng_bpe *bpe);

/* Appends the tokens of one word (valid UTF-8, len > 0).  ST_LIMIT past ids->max, ST_NOMEM. */
MUST_USE enum status eng_bpe_encode(const struct eng_bpe *bpe, struct eng_bpe_scratch *scratch,
                                    const char *word, size_t len, struct eng_bpe_ids *ids);
void eng_bpe_scratch_deinit(struct eng_bpe_scratch *scratch);

MUST_USE enum status eng_bpe_ids_put(struct eng_bpe_ids *ids, int32_t id);

#endif
