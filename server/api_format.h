/*
 * api_format.h - answers and chunks as OpenAI's clients read them, written straight into a buffer.
 * Pure.
 *
 * A chat stream is, per choice, a chunk with the role, chunks with content, and one with an empty
 * delta and the finish_reason; a completions stream is chunks with text, of which the last has the
 * finish_reason.  finish_reason is null everywhere else.  With include_usage every chunk has a
 * `usage`, null but in the last, whose `choices` is empty.
 */
#ifndef DAKD_SERVER_API_FORMAT_H
#define DAKD_SERVER_API_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/buf.h"
#include "engine/sampler.h"

/* How tokens read; the tokenizer behind a small door. */
struct srv_vocab {
    void (*put)(const void *user, int32_t token, struct buf *out); /* appends the token's bytes */
    bool (*hidden)(const void *user,
                   int32_t token); /* a special token, which the text leaves out */
    const void *user;
};

/* What every chunk of an answer repeats; all borrowed. */
struct srv_head {
    bool chat;
    const char *id; /* "chatcmpl-..." */
    int64_t created;
    const char *model;
    const char *fingerprint;
    const struct srv_vocab *vocab;
};

/* Log-probabilities of consecutive tokens. */
struct srv_scores {
    const struct eng_logprob
        *rows; /* [count][stride]: the token, then its alternatives; token -1: no more */
    int32_t count, stride;
    int64_t *text_offset; /* characters of text before rows[0]; advanced */
};

struct srv_usage {
    int64_t prompt_tokens, completion_tokens;
    int64_t cached_tokens; /* of the prompts': whose KV was there already */
};

struct srv_piece {
    int32_t index; /* of the choice */
    const char *text;
    size_t len;
    const char *finish;    /* NULL: null */
    const char *stop_text; /* stop_reason: the stop string, or NULL */
    size_t stop_len;
    int32_t stop_token;       /* or the token of stop_token_ids; -1: none */
    struct srv_scores scores; /* rows NULL: null */
    const int32_t *ids;       /* return_token_ids; NULL: not asked */
    int32_t id_count;
    const int32_t *prompt_ids; /* NULL: not asked, or not here */
    int32_t prompt_id_count;
    bool role; /* chat stream: the first chunk */
};

/* One chunk of a stream.  usage_mode: no usage member, null, or *usage. */
enum srv_usage_mode { SRV_USAGE_ABSENT, SRV_USAGE_NULL, SRV_USAGE_GIVEN };
void srv_fmt_chunk(struct buf *out, const struct srv_head *head, const struct srv_piece *piece,
                   enum srv_usage_mode mode, const struct srv_usage *usage);
/* The last chunk of a stream with include_usage. */
void srv_fmt_usage_chunk(struct buf *out, const struct srv_head *head,
                         const struct srv_usage *usage);

/* A whole answer: begin, its choices in order, end. */
void srv_fmt_answer_begin(struct buf *out, const struct srv_head *head,
                          const struct srv_piece *first);
void srv_fmt_answer_choice(struct buf *out, const struct srv_head *head,
                           const struct srv_piece *piece);
void srv_fmt_answer_end(struct buf *out, const struct srv_usage *usage);

/* [1,2,3] */
void srv_fmt_ids(struct buf *out, const int32_t *ids, int32_t count);

#endif
