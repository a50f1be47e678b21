/* tok_decode.h - the "decoder" of tokenizer.json, in the form that streams. */
#ifndef DAKD_ENGINE_TOK_DECODE_H
#define DAKD_ENGINE_TOK_DECODE_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/buf.h"
#include "config/status.h"
#include "engine/tok_added.h"
#include "engine/tok_bpe.h"
#include "engine/tok_pretok.h"
#include "engine/tokenizer.h"

#define ENG_DECODER_STEPS_MAX 16

/* What a token becomes: its text after the per-token steps. */
struct eng_piece {
    uint32_t at, len; /* in `pieces` */
    bool known, special;
    bool byte; /* one byte of a run */
};

struct eng_decoder_step {
    bool strip;          /* else replace */
    struct eng_regex re; /* replace: owned */
    char *content;       /* replace: owned */
    struct eng_decoder_strip {
        char content[5]; /* one character */
        uint32_t start, stop;
    } cut;
};

/* Per-token steps, then byte runs, then one stream of text. */
struct eng_decoder {
    struct eng_decoder_step steps[ENG_DECODER_STEPS_MAX];
    int step_count;
    bool metaspace; /* the last per-token step */
    enum eng_pretok_prepend prepend;
    char replacement[5];
    bool byte_fallback;
    bool byte_level;
    bool fused;            /* tokens are one text from here on */
    bool join_with_spaces; /* no decoder: tokens with a space between */
    bool stream_strip;     /* `strip` applies to the whole text */
    struct eng_decoder_strip strip;

    struct eng_piece *by_id; /* [id_count] owned */
    int32_t id_count;
    struct buf pieces;
};

/* `json` may be NULL.  ST_INVALID, ST_UNSUPPORTED, ST_NOMEM. */
MUST_USE enum status eng_decoder_init(struct eng_decoder *d, const cJSON *json,
                                      const struct eng_bpe *bpe, const struct eng_added *added,
                                      char *err);
void eng_decoder_deinit(struct eng_decoder *d);

/* tokenizer.h's functions over a decoder. */
MUST_USE enum status eng_decoder_push(const struct eng_decoder *dec, struct eng_detok *d,
                                      int32_t id, struct buf *out);
MUST_USE enum status eng_decoder_flush(const struct eng_decoder *dec, struct eng_detok *d,
                                       struct buf *out);
/* Looks at ids[at..count) where a byte run begins and settles beforehand whether the run is valid.
 */
void eng_decoder_look_ahead(const struct eng_decoder *dec, struct eng_detok *d, const int32_t *ids,
                            size_t at, size_t count);
MUST_USE enum status eng_decoder_bytes(const struct eng_decoder *dec, int32_t id, struct buf *out);

#endif
