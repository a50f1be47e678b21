/*
 * generate.h - one generating HTTP request as a job: prompts x n engine sequences, and the answer
 * they become.
 *
 *                 srv_job_start
 *     (request) ----------------> ENCODING --tokens--> [checked, submitted] --> ANSWERING --all
 * said--> ENDED --> freed |                      |                      |                    ^ |
 * too long, full: srv_api_fault -------------------------------->  |
 *                                     +-------- client left, abort: its sequences are cancelled
 * ---------+
 *
 * Invariants
 *  1. A job owns its engine requests from before eng_submit until their FINISHED events: it is
 * freed when it has no exchange, is not encoding, and has no live sequence.
 *  2. Storage is promised before it is used (srv_api_promise): for the prompts' texts while they
 * wait to be tokenised, at submission for all that the answer can need: tokens and
 * log-probabilities stay in it as records until they are written, so a slow reader costs nothing
 * more.  What was turned into text and not yet written is at most a chunk per sequence.
 *  3. Whoever leaves, or is told an error, has its sequences cancelled in the same loop turn.
 *  4. The engine's view of a sequence never waits for the client: events are taken at once
 * (srv_gen_event), written when the transport has room (gen_write.c).
 */
#ifndef DAKD_SERVER_GENERATE_H
#define DAKD_SERVER_GENERATE_H

#include "server/api_int.h"
#include "server/encode.h"

/* Rows of log-probabilities in one chunk at most, and bytes of text: a chunk stays near 16 KB. */
#define SRV_CHUNK_ROWS 4
#define SRV_CHUNK_TEXT 4096

/* One engine sequence: one choice of the answer. */
struct srv_seq {
    struct eng_request req; /* req.user is this */
    struct srv_job *job;
    int32_t index; /* of the choice */
    bool live;     /* submitted, FINISHED not polled */
    /* What came from the engine.  Row r of `scores` is a prompt token (r < prompt rows), then
     * answer tokens. */
    struct eng_logprob *scores; /* [prompt_rows + max_tokens][stride], or NULL */
    int32_t prompt_rows, prompt_scored;
    int32_t cached;   /* tokens of the prompt that the prefix cache had; as of the first event */
    int32_t got;      /* answer tokens received, in req.tokens after the prompt */
    int32_t terminal; /* 1 where a stop token stands behind them: counted and scored, no text */
    enum eng_finish finish; /* of the engine; NONE until FINISHED */
    /* What became of it. */
    struct eng_detok detok;
    struct srv_stop_scan scan;
    struct buf text;    /* not yet written (stream), or all of it (whole answer) */
    int32_t read;       /* answer tokens turned into text */
    bool ended;         /* no text will be added */
    const char *reason; /* finish_reason once ended */
    int stop_hit;       /* index of the stop string, or -1 */
    bool role_written, prompt_ids_written, finish_written;
    int32_t rows_written, ids_written;
    int64_t text_offset;
    uint64_t first_token_ns, last_token_ns;
};

struct srv_job {
    struct srv_api *api;
    struct srv_exchange *x; /* NULL once answered, or the client left */
    struct srv_ask request;
    struct srv_encode encode;
    struct srv_prompt rendered; /* the chat prompt; its text is owned here */
    char *rendered_text;        /* owned */
    bool encoding, dirty;
    struct srv_seq *seqs; /* owned, [seq_count] */
    int32_t seq_count, live_count;
    int32_t stride;         /* of scores: 1 + alternatives */
    uint64_t bytes;         /* promised in api->memory_bytes */
    struct srv_usage usage; /* completion_tokens is summed when asked for */
    /* The answer's head. */
    char id[48];
    struct srv_head head;
    /* Stream. */
    struct buf chunk;   /* the event being written; kept where the transport had no room */
    bool chunk_waiting; /* chunk holds an event that was not taken */
    bool paused;        /* until the transport drains */
    uint64_t written_ns;
    uint64_t arrival_ns;
    struct srv_job *next, *prev, *dirty_next;
};

/* Takes over *request, and text (the rendered chat prompt, malloc'ed, or NULL); answers x now or
 * later. */
void srv_job_start(struct srv_api *api, struct srv_exchange *x, struct srv_ask *request, char *text,
                   size_t len);
/* One event of the engine. */
void srv_gen_event(struct srv_api *api, const struct eng_event *event);
/* Writes what the events since the last call made writable. */
void srv_gen_pump_dirty(struct srv_api *api);
/* Keep-alive comments for silent streams. */
void srv_gen_tick(struct srv_api *api, uint64_t now_ns);
/* Fails every job that has not answered. */
void srv_gen_abort(struct srv_api *api, const struct srv_fault *fault);
/* Ends the job's response with an error in the form its state allows, and cancels its sequences.
 * Does not free it: the caller goes on to do so. */
void srv_job_fail(struct srv_job *job, const struct srv_fault *fault);
/* Cancels what is live. */
void srv_job_cancel(struct srv_job *job);

/* gen_write.c */
/* Turns received tokens into text (as far as the answer's form wants it) and writes; may end the
 * response. */
void srv_job_pump(struct srv_job *job);
/* Tokens of the answer, a terminal one included. */
int32_t srv_seq_total(const struct srv_seq *s);

#endif
