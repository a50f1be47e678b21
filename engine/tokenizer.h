/*
 * tokenizer.h - text to token ids and back, as Hugging Face's `tokenizers` does it from the same
 * tokenizer.json.
 *
 * Supported: the BPE model (byte-level, and SentencePiece-style with byte fallback) with the
 * normalizers, pre-tokenizers, post-processors and decoders that published BPE tokenizers use. What
 * is not supported is refused by eng_tok_open with a sentence that names it.  "truncation" and
 * "padding" of tokenizer.json are not applied: a server refuses what is too long.  BOS and EOS come
 * from tokenizer.json's post_processor alone; add_bos_token and add_eos_token of
 * tokenizer_config.json are what that post_processor was made from, and are not read.
 */
#ifndef DAKD_ENGINE_TOKENIZER_H
#define DAKD_ENGINE_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/buf.h"
#include "config/status.h"

/* Immutable after open: every function below may be called from several threads at once. */
struct eng_tok;

/* Reads tokenizer.json, tokenizer_config.json and special_tokens_map.json (the latter two may be
 * absent) of the model directory.  ST_NOT_FOUND, ST_IO, ST_INVALID, ST_UNSUPPORTED, ST_LIMIT,
 * ST_NOMEM; *out is NULL unless ST_OK. */
MUST_USE enum status eng_tok_open(const char *model_dir, struct eng_tok **out, char *err);
/* NULL is allowed. */
void eng_tok_close(struct eng_tok *tok);

/* Highest id + 1, added tokens included.  Ids below it may be free. */
int eng_tok_vocab_size(const struct eng_tok *tok);
/* The id of a token by its text as tokenizer.json writes it; -1 where absent. */
int32_t eng_tok_id(const struct eng_tok *tok, const char *token, size_t len);
/* "bos_token" and "eos_token" of tokenizer_config.json, else special_tokens_map.json; -1 where
 * neither names one. */
int32_t eng_tok_bos(const struct eng_tok *tok);
int32_t eng_tok_eos(const struct eng_tok *tok);

enum {
    /* What the post-processor adds around the text: BOS and its like. */
    ENG_TOK_ADD_SPECIAL = 1,
    /* The text of a special token in the input becomes that token.  Without this flag it is text
     * like any other, so that no user can write a control token; added tokens that are not special
     * (runs of spaces, say) are vocabulary and recognised in either case.  (tokenizers:
     * encode_special_tokens = not this flag.) */
    ENG_TOK_PARSE_SPECIAL = 2,
};

/*
 * text[0..len) may hold any bytes; what is not UTF-8 is replaced by U+FFFD first, as Python's
 * bytes.decode("utf-8", "replace") does.  *ids is owned by the caller (free()), NULL where *count
 * is 0 or on failure. ST_LIMIT past ids_max ids, where the text is too large to work on, or where a
 * pattern hits its match limit; ST_NOMEM. Time is n log n in the length, whatever the text.
 */
MUST_USE enum status eng_tok_encode(const struct eng_tok *tok, const char *text, size_t len,
                                    unsigned flags, size_t ids_max, int32_t **ids, size_t *count,
                                    char *err);

/* Appends the text of the whole sequence, equal to tokenizers' decode(ids, skip_special_tokens):
 * always valid UTF-8. Ids that no token has decode to nothing.  ST_INVALID for a negative id;
 * ST_LIMIT, ST_NOMEM from `out`. */
MUST_USE enum status eng_tok_decode(const struct eng_tok *tok, const int32_t *ids, size_t count,
                                    bool skip_special, struct buf *out, char *err);

/* Bytes of a run of byte tokens (<0x0A>) that a detokenizer holds back at most. */
#define ENG_DETOK_RUN_MAX 1024

/*
 * An incremental detokenizer: one per sequence, plain memory, to be copied or dropped at will; used
 * by one thread at a time.  It emits whole characters only, and all that it emits, flush included,
 * is what eng_tok_decode gives for the whole sequence.
 *
 * One exception, by the bound on memory: a run of <0xHH> tokens decodes to its text where the whole
 * run is valid UTF-8 and to one U+FFFD per byte where it is not, so a run is held back until it
 * ends.  A run longer than ENG_DETOK_RUN_MAX bytes is emitted as far as it is valid by then.
 */
struct eng_detok {
    const struct eng_tok *tok; /* borrowed */
    bool skip_special;
    bool started;        /* a token has been decoded */
    uint8_t run_state;   /* enum run_state in tok_decode.c */
    uint8_t partial_len; /* bytes of a character that is not complete */
    char partial[4];
    uint16_t run_len;     /* bytes in run[] */
    uint16_t run_whole;   /* of these, bytes of complete characters */
    uint32_t strip_left;  /* characters that may still be stripped from the beginning */
    uint32_t strip_right; /* characters held back because the end may strip them */
    char run[ENG_DETOK_RUN_MAX];
};

void eng_detok_init(struct eng_detok *d, const struct eng_tok *tok, bool skip_special);
/* Appends what the token completes, possibly nothing.  ST_INVALID for a negative id; ST_LIMIT,
 * ST_NOMEM from `out`. */
MUST_USE enum status eng_detok_push(struct eng_detok *d, int32_t id, struct buf *out);
/* The end of the sequence: appends what was held back, U+FFFD for what never became a character.
 * The detokenizer then stands at the beginning of a sequence again. */
MUST_USE enum status eng_detok_flush(struct eng_detok *d, struct buf *out);

/* The token as tokenizer.json writes it ("\u0120the"), NUL-terminated, borrowed; NULL where no
 * token has this id. */
const char *eng_tok_text(const struct eng_tok *tok, int32_t id);
/* Appends the bytes that the token stands for within a text (" the"); they need not be whole
 * characters. ST_NOT_FOUND where no token has this id; ST_LIMIT, ST_NOMEM from `out`. */
MUST_USE enum status eng_tok_bytes(const struct eng_tok *tok, int32_t id, struct buf *out);
bool eng_tok_is_special(const struct eng_tok *tok, int32_t id);

#endif
