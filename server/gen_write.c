/*
 * gen_write.c - a job's answer as bytes: tokens to text, text to chunks or to one reply.  Declared
 * in generate.h.
 *
 * A sequence's text is read one token at a time: detokeniser, then stop strings.  In a stream,
 * reading goes only as far as there is something to write, so what a slow client has not taken
 * stays tokens.  A chunk carries a slice of the text that may be released, and the
 * log-probabilities and ids of the tokens read so far; tokens that gave no text yet wait for the
 * next chunk.
 */
#include <string.h>

#include "config/check.h"
#include "config/clock.h"
#include "server/generate.h"
#include "server/sse.h"

/* Room a chunk needs beside itself: "data: ", line ends, chunked framing. */
#define FRAME_BYTES 64

/* --- tokens to text ---------------------------------------------------------------------- */

static bool in_list(const int32_t *list, int32_t count, int32_t token)
{
    for (int32_t i = 0; i < count; i++)
        if (list[i] == token) return true;
    return false;
}

static int32_t answer_token(const struct srv_seq *s, int32_t i)
{
    return s->req.tokens[s->req.prompt_count + i];
}

/* The stop token that ended the answer where the request named it, else -1 (EOS, or none). */
static int32_t stop_token_hit(const struct srv_seq *s)
{
    const struct eng_sampling *p = &s->req.sampling;
    if (!s->terminal || s->stop_hit >= 0) return -1;
    int32_t token = answer_token(s, s->got);
    return in_list(p->stop_tokens, p->stop_token_count, token) ? token : -1;
}

int32_t srv_seq_total(const struct srv_seq *s)
{
    return s->stop_hit >= 0 ? s->read : s->got + s->terminal;
}

/* Looks for stop strings in text[from..); a hit ends the answer. */
static void scan_text(struct srv_seq *s, size_t from)
{
    const struct srv_stop_set *stops = &s->job->request.stops;
    struct srv_stop_hit hit;
    if (!srv_stop_feed(stops, &s->scan, s->text.data, from, s->text.len, &hit)) return;
    s->text.len = s->job->request.include_stop ? hit.end : hit.begin;
    s->stop_hit = hit.which;
    s->ended = true;
    s->reason = "stop";
    if (s->live) eng_cancel(s->job->api->engine, &s->req);
}

static enum status push_token(struct srv_seq *s, int32_t token)
{
    return s->job->api->tok ? eng_detok_push(&s->detok, token, &s->text) : ST_OK;
}

static enum status read_token(struct srv_seq *s)
{
    size_t from = s->text.len;
    enum status st = push_token(s, answer_token(s, s->read++));
    /* A stop string counts once min_tokens are there. */
    if (!st && s->text.len > from && s->read >= s->req.sampling.min_tokens) scan_text(s, from);
    return st;
}

/* After the last token: what the detokeniser held back, and the finish_reason. */
static enum status end_text(struct srv_seq *s)
{
    enum status st = ST_OK;
    size_t from = s->text.len;
    int32_t stop = stop_token_hit(s);
    if (stop >= 0 && s->job->request.include_stop) st = push_token(s, stop);
    if (!st && s->job->api->tok) st = eng_detok_flush(&s->detok, &s->text);
    if (!st && s->text.len > from && s->read >= s->req.sampling.min_tokens) scan_text(s, from);
    if (s->ended) return st;
    s->ended = true;
    s->reason =
        s->finish == ENG_FINISH_STOP && !srv_ask_score_only(&s->job->request) ? "stop" : "length";
    return st;
}

/* Bytes at the beginning of s->text that may be written. */
static size_t releasable(const struct srv_seq *s)
{
    if (s->ended) return s->text.len;
    return s->text.len - srv_stop_held(&s->job->request.stops, &s->scan);
}

/* Reads tokens: all there are, or (stream) until there is text to write. */
static enum status read_tokens(struct srv_seq *s)
{
    enum status st = ST_OK;
    bool stream = s->job->request.stream;
    while (!st && !s->ended && !(stream && releasable(s) > 0)) {
        if (s->read < s->got) st = read_token(s);
        else if (s->finish != ENG_FINISH_NONE) st = end_text(s);
        else break;
    }
    return st;
}

/* --- records ready to be written --------------------------------------------------------- */

/* A chat answer's log-probabilities are those of its content; a completion's include the token that
 * ended it, because clients that score prompts count on one row per token sampled. */
static int32_t rows_ready(const struct srv_seq *s)
{
    if (!s->scores) return 0;
    bool terminal = s->ended && s->stop_hit < 0 && !s->job->head.chat;
    return s->prompt_scored + s->read + (terminal ? s->terminal : 0);
}

static int32_t ids_ready(const struct srv_seq *s)
{
    if (!s->job->request.return_token_ids) return 0;
    return s->read + (s->ended && s->stop_hit < 0 ? s->terminal : 0);
}

static struct srv_scores score_slice(struct srv_seq *s, int32_t from, int32_t count)
{
    int32_t stride = s->job->stride;
    return (struct srv_scores){.rows = s->scores + (size_t)from * (size_t)stride,
                               .count = count,
                               .stride = stride,
                               .text_offset = &s->text_offset};
}

static void set_finish(const struct srv_seq *s, struct srv_piece *p)
{
    const struct srv_stop_set *stops = &s->job->request.stops;
    p->finish = s->reason;
    p->stop_token = stop_token_hit(s);
    if (s->stop_hit < 0) return;
    p->stop_text = stops->at[s->stop_hit].text;
    p->stop_len = stops->at[s->stop_hit].len;
}

static void add_prompt_ids(struct srv_seq *s, struct srv_piece *p)
{
    bool wanted = s->job->request.return_token_ids && !s->prompt_ids_written;
    if (!wanted || (s->job->head.chat && s->index > 0)) return;
    p->prompt_ids = s->req.tokens;
    p->prompt_id_count = s->req.prompt_count;
    s->prompt_ids_written = true;
}

/* --- stream ------------------------------------------------------------------------------ */

/* At most SRV_CHUNK_TEXT bytes, whole characters. */
static size_t slice_text(const struct srv_seq *s)
{
    size_t len = releasable(s);
    if (len <= SRV_CHUNK_TEXT) return len;
    len = SRV_CHUNK_TEXT;
    while (len > 0 && ((unsigned char)s->text.data[len] & 0xC0) == 0x80) len--;
    return len;
}

/* The next piece of the sequence's stream; false where there is none yet.  What it takes counts as
 * written. */
static bool next_piece(struct srv_seq *s, struct srv_piece *p)
{
    const struct srv_job *job = s->job;
    bool chat = job->head.chat;
    *p = (struct srv_piece){.index = s->index, .text = "", .stop_token = -1};
    if (s->finish_written) return false;
    if (chat && !s->role_written) {
        if (s->got == 0 && s->finish == ENG_FINISH_NONE) return false;
        s->role_written = p->role = true;
        add_prompt_ids(s, p);
        return true;
    }
    size_t text = slice_text(s);
    int32_t rows = rows_ready(s) - s->rows_written, ids = ids_ready(s) - s->ids_written;
    bool news = text > 0 || rows >= SRV_CHUNK_ROWS || (!job->api->tok && ids > 0);
    if (!news && !s->ended) return false;
    bool empty = text == 0 && rows == 0 && ids == 0;
    bool last = s->ended && text == s->text.len && rows <= SRV_CHUNK_ROWS;
    rows = rows < SRV_CHUNK_ROWS ? rows : SRV_CHUNK_ROWS;
    add_prompt_ids(s, p);
    p->text = text ? s->text.data : "";
    p->len = text;
    if (rows > 0) p->scores = score_slice(s, s->rows_written, rows);
    if (job->request.return_token_ids) {
        p->ids = s->req.tokens + s->req.prompt_count + s->ids_written;
        p->id_count = ids;
    }
    s->rows_written += rows;
    s->ids_written += ids;
    if (last && (empty || !chat)) {
        set_finish(s, p);
        s->finish_written = true;
    }
    return true;
}

static bool server_failed(struct srv_job *job, const char *why)
{
    struct srv_fault fault;
    srv_fault_set(&fault, 500, "server_error", NULL, "", "%s", why);
    srv_job_fail(job, &fault);
    return false;
}

/* Hands job->chunk to the transport; false: stop for now (paused, or the response is over). */
static bool write_chunk(struct srv_job *job)
{
    enum status st = buf_status(&job->chunk);
    if (st) return server_failed(job, "There is no memory for the answer.");
    st = srv_sse_data(job->x, job->chunk.data, job->chunk.len);
    job->chunk_waiting = st == ST_LIMIT;
    job->paused = st == ST_LIMIT || st == ST_FULL;
    if (st == ST_LIMIT && job->chunk.len + FRAME_BYTES > job->api->config.write_buffer_max)
        return server_failed(job, "A chunk of the answer is larger than this server may send at "
                                  "once; ask without 'stream', or for less beside the text.");
    if (st && st != ST_FULL && st != ST_LIMIT)
        return server_failed(job, "There is no memory for the answer.");
    if (st != ST_LIMIT) job->written_ns = clock_now_ns();
    return st == ST_OK;
}

static void format_piece(struct srv_job *job, struct srv_seq *s, const struct srv_piece *piece)
{
    const struct srv_ask *r = &job->request;
    enum srv_usage_mode mode = r->continuous_usage ? SRV_USAGE_GIVEN
                               : r->include_usage  ? SRV_USAGE_NULL
                                                   : SRV_USAGE_ABSENT;
    struct srv_usage usage = {.prompt_tokens = s->req.prompt_count,
                              .completion_tokens = s->ended ? srv_seq_total(s) : s->read,
                              .cached_tokens = s->cached};
    buf_clear(&job->chunk);
    srv_fmt_chunk(&job->chunk, &job->head, piece, mode, &usage);
    buf_consume(&s->text, piece->len);
}

static bool pump_sequence(struct srv_job *job, struct srv_seq *s)
{
    struct srv_piece piece;
    for (;;) {
        if (read_tokens(s) || buf_status(&s->text))
            return server_failed(job, "The answer's text could not be kept.");
        if (!next_piece(s, &piece)) return true;
        format_piece(job, s, &piece);
        if (!write_chunk(job)) return false;
    }
}

/* A prompt counts once, however many choices it has: as the first of them found it. */
static void sum_usage(struct srv_job *job)
{
    job->usage.completion_tokens = job->usage.cached_tokens = 0;
    for (int32_t i = 0; i < job->seq_count; i++) {
        const struct srv_seq *s = &job->seqs[i];
        job->usage.completion_tokens += srv_seq_total(s);
        if (i % job->request.n == 0) job->usage.cached_tokens += s->cached;
    }
}

static void pump_stream(struct srv_job *job)
{
    if (job->paused) return;
    if (job->chunk_waiting && !write_chunk(job)) return;
    bool over = true;
    for (int32_t i = 0; i < job->seq_count; i++) {
        if (!pump_sequence(job, &job->seqs[i])) return;
        over = over && job->seqs[i].finish_written;
    }
    if (!over) return;
    if (job->request.include_usage) {
        /* Once: the request is not asked for it again when the transport had no room. */
        job->request.include_usage = false;
        sum_usage(job);
        buf_clear(&job->chunk);
        srv_fmt_usage_chunk(&job->chunk, &job->head, &job->usage);
        if (!write_chunk(job)) return;
    }
    srv_sse_done(job->x);
    job->x = NULL;
}

/* --- whole answer ------------------------------------------------------------------------ */

static void whole_piece(struct srv_seq *s, struct srv_piece *p)
{
    const struct srv_job *job = s->job;
    *p = (struct srv_piece){.index = s->index,
                            .text = s->text.data ? s->text.data : "",
                            .len = s->text.len,
                            .stop_token = -1};
    int32_t rows = rows_ready(s);
    if (s->scores) p->scores = score_slice(s, 0, rows);
    if (job->request.return_token_ids) {
        p->ids = s->req.tokens + s->req.prompt_count;
        p->id_count = ids_ready(s);
    }
    add_prompt_ids(s, p);
    set_finish(s, p);
}

static void pump_whole(struct srv_job *job)
{
    struct srv_piece piece;
    bool over = true;
    for (int32_t i = 0; i < job->seq_count; i++) {
        struct srv_seq *s = &job->seqs[i];
        if (read_tokens(s) || buf_status(&s->text)) {
            server_failed(job, "The answer's text could not be kept.");
            return;
        }
        over = over && s->ended;
    }
    if (!over) return;
    sum_usage(job);
    buf_clear(&job->chunk);
    for (int32_t i = 0; i < job->seq_count; i++) {
        whole_piece(&job->seqs[i], &piece);
        if (i == 0) srv_fmt_answer_begin(&job->chunk, &job->head, &piece);
        srv_fmt_answer_choice(&job->chunk, &job->head, &piece);
    }
    srv_fmt_answer_end(&job->chunk, &job->usage);
    if (buf_status(&job->chunk)) {
        server_failed(job, buf_status(&job->chunk) == ST_LIMIT
                               ? "The answer is larger than this server sends at once; ask with "
                                 "'stream', or for less beside the text."
                               : "There is no memory for the answer.");
        return;
    }
    srv_x_reply(job->x, 200, "application/json", job->chunk.data, job->chunk.len);
    job->x = NULL;
}

/* --- both -------------------------------------------------------------------------------- */

/* A sequence that the engine gave up, and not we. */
static bool engine_gave_up(struct srv_job *job)
{
    struct srv_fault fault;
    for (int32_t i = 0; i < job->seq_count; i++) {
        const struct srv_seq *s = &job->seqs[i];
        if (s->finish == ENG_FINISH_ERROR)
            srv_fault_set(
                &fault, 500, "server_error", "engine_failed", "",
                "The engine failed while it answered; nothing is served until a restart.");
        else if (s->finish == ENG_FINISH_CANCELLED && s->stop_hit < 0)
            srv_fault_set(&fault, 503, "unavailable_error", "shutting_down", "",
                          "The server is shutting down; the answer is not complete.");
        else continue;
        srv_job_fail(job, &fault);
        return true;
    }
    return false;
}

void srv_job_pump(struct srv_job *job)
{
    if (!job->x || job->seq_count == 0 || engine_gave_up(job)) return;
    if (job->request.stream) pump_stream(job);
    else pump_whole(job);
}
