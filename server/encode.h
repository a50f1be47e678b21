/*
 * encode.h - prompts to token ids, without holding up the loop: short texts at once, long ones on
 * libuv's pool.
 *
 * The owner embeds a struct srv_encode and keeps it, and the prompts' texts, until `done` has run;
 * `done` runs on the loop thread, once, before srv_encode_start returns where the texts are short.
 * Loop thread.
 */
#ifndef DAKD_SERVER_ENCODE_H
#define DAKD_SERVER_ENCODE_H

#include <uv.h>

#include "engine/tokenizer.h"
#include "server/api_parse.h"

struct srv_encode {
    /* Set by the owner. */
    const struct eng_tok *tok;  /* may be NULL where every prompt is tokens already */
    struct srv_prompt *prompts; /* those without tokens get them (owned by the prompt) */
    int32_t prompt_count;
    unsigned flags; /* ENG_TOK_* */
    /* NULL, or what to make of the tokens where they were made: on the pool, or in
     * srv_encode_start.  Not after a failure. */
    void (*made)(struct srv_encode *e);
    void (*done)(struct srv_encode *e);
    /* The result. */
    enum status status;
    char err[ERR_CAP];
    uv_work_t work;
};

/* What texts and their tokens, at most one a byte, take while they wait for the pool. */
uint64_t srv_encode_bytes(const struct srv_encode *e);
void srv_encode_start(struct srv_encode *e, uv_loop_t *loop);
/* Nobody waits for it any more: where the pool has not begun, it will not.  Before `done`, which
 * runs all the same, later. */
void srv_encode_cancel(struct srv_encode *e);
/* Fills the fault of a failed encoding. */
bool srv_encode_fault(const struct srv_encode *e, const char *param, struct srv_fault *fault);

#endif
