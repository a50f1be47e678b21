/* api_format.c - see api_format.h. */
#include "server/api_format.h"

#include <math.h>
#include <string.h>

#include "config/check.h"
#include "config/utf8.h"

/* OpenAI's stand-in for the logarithm of zero, which JSON cannot say. */
#define LOGPROB_MIN (-9999.0)
#define PIECE_MAX (1u << 20)

void srv_fmt_ids(struct buf *out, const int32_t *ids, int32_t count)
{
    buf_putc(out, '[');
    for (int32_t i = 0; i < count; i++) buf_printf(out, i ? ",%d" : "%d", (int)ids[i]);
    buf_putc(out, ']');
}

static void put_logprob(struct buf *out, float v)
{
    if (isnan(v)) buf_puts(out, "null");
    else buf_printf(out, "%.9g", v < LOGPROB_MIN ? LOGPROB_MIN : (double)v);
}

/* The token's bytes into piece; what could not be written there fails the answer too. */
static void spell(const struct srv_vocab *vocab, int32_t token, struct buf *piece, struct buf *out)
{
    buf_clear(piece);
    vocab->put(vocab->user, token, piece);
    if (!out->failed) out->failed = buf_status(piece);
}

/* The name of a token: its text, or where its bytes are no text by themselves, OpenAI's
 * "bytes:\xe2\x80".  (U+FFFD would give many tokens one name, and names are keys.) */
static void put_token_name(struct buf *out, const char *bytes, size_t len)
{
    if (utf8_valid_prefix(bytes, len) == len) {
        buf_put_json_string(out, bytes, len);
        return;
    }
    buf_puts(out, "\"bytes:");
    for (size_t i = 0; i < len; i++) buf_printf(out, "\\\\x%02x", (unsigned char)bytes[i]);
    buf_putc(out, '"');
}

/* Characters that begin in these bytes; adds up over tokens that share a character. */
static int64_t count_characters(const char *bytes, size_t len)
{
    int64_t n = 0;
    for (size_t i = 0; i < len; i++) n += ((unsigned char)bytes[i] & 0xC0) != 0x80;
    return n;
}

/* --- completions: four parallel arrays --------------------------------------------------- */

static const struct eng_logprob *score_row(const struct srv_scores *s, int32_t i)
{
    return s->rows + (size_t)i * (size_t)s->stride;
}

/* {"a":-0.1,...}: the alternatives, then the token itself where it is none of them.  Tokens with
 * one name are one key: the likeliest is kept. */
static void put_top_map(struct buf *out, const struct srv_vocab *vocab,
                        const struct eng_logprob *row, int32_t stride)
{
    struct buf name[ENG_LOGPROBS_MAX + 1];
    int count = 0;
    buf_putc(out, '{');
    for (int32_t i = 1; i <= stride; i++) {
        const struct eng_logprob *e = &row[i % stride]; /* the token itself comes last */
        if (e->token < 0) continue;
        buf_init(&name[count], PIECE_MAX);
        spell(vocab, e->token, &name[count], out);
        bool twice = false;
        for (int k = 0; k < count && !twice; k++)
            twice = name[k].len == name[count].len &&
                    (name[k].len == 0 || !memcmp(name[k].data, name[count].data, name[k].len));
        if (twice) {
            buf_deinit(&name[count]);
            continue;
        }
        if (count > 0) buf_putc(out, ',');
        put_token_name(out, name[count].data, name[count].len);
        buf_putc(out, ':');
        put_logprob(out, e->logprob);
        count++;
    }
    buf_putc(out, '}');
    while (count > 0) buf_deinit(&name[--count]);
}

static void put_completion_scores(struct buf *out, const struct srv_vocab *vocab,
                                  const struct srv_scores *s)
{
    struct buf piece;
    buf_init(&piece, PIECE_MAX);
    buf_puts(out, "{\"text_offset\":[");
    for (int32_t i = 0; i < s->count; i++) {
        int32_t token = score_row(s, i)->token;
        buf_printf(out, i ? ",%lld" : "%lld", (long long)*s->text_offset);
        if (vocab->hidden(vocab->user, token)) continue;
        spell(vocab, token, &piece, out);
        *s->text_offset += count_characters(piece.data, piece.len);
    }
    buf_puts(out, "],\"tokens\":[");
    for (int32_t i = 0; i < s->count; i++) {
        spell(vocab, score_row(s, i)->token, &piece, out);
        if (i) buf_putc(out, ',');
        put_token_name(out, piece.data, piece.len);
    }
    buf_puts(out, "],\"token_logprobs\":[");
    for (int32_t i = 0; i < s->count; i++) {
        if (i) buf_putc(out, ',');
        put_logprob(out, score_row(s, i)->logprob);
    }
    buf_puts(out, "],\"top_logprobs\":[");
    for (int32_t i = 0; i < s->count; i++) {
        if (i) buf_putc(out, ',');
        /* The first token of a prompt follows from nothing. */
        if (isnan(score_row(s, i)->logprob)) buf_puts(out, "null");
        else put_top_map(out, vocab, score_row(s, i), s->stride);
    }
    buf_puts(out, "]}");
    buf_deinit(&piece);
}

/* --- chat: one object per token ---------------------------------------------------------- */

static void put_chat_entry(struct buf *out, const struct srv_vocab *vocab,
                           const struct eng_logprob *e, struct buf *piece)
{
    spell(vocab, e->token, piece, out);
    buf_puts(out, "{\"token\":");
    buf_put_json_string(out, piece->data ? piece->data : "", piece->len);
    buf_puts(out, ",\"logprob\":");
    put_logprob(out, e->logprob);
    buf_puts(out, ",\"bytes\":[");
    for (size_t i = 0; i < piece->len; i++)
        buf_printf(out, i ? ",%d" : "%d", (unsigned char)piece->data[i]);
    buf_putc(out, ']');
}

static void put_chat_scores(struct buf *out, const struct srv_vocab *vocab,
                            const struct srv_scores *s)
{
    struct buf piece;
    buf_init(&piece, PIECE_MAX);
    buf_puts(out, "{\"content\":[");
    for (int32_t i = 0; i < s->count; i++) {
        const struct eng_logprob *row = score_row(s, i);
        if (i) buf_putc(out, ',');
        put_chat_entry(out, vocab, row, &piece);
        buf_puts(out, ",\"top_logprobs\":[");
        for (int32_t k = 1; k < s->stride && row[k].token >= 0; k++) {
            if (k > 1) buf_putc(out, ',');
            put_chat_entry(out, vocab, &row[k], &piece);
            buf_putc(out, '}');
        }
        buf_puts(out, "]}");
    }
    buf_puts(out, "],\"refusal\":null}");
    buf_deinit(&piece);
}

/* --- answers ----------------------------------------------------------------------------- */

static void put_head(struct buf *out, const struct srv_head *head, const char *object)
{
    buf_printf(out, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%lld,\"model\":", head->id,
               object, (long long)head->created);
    buf_put_json_string(out, head->model, strlen(head->model));
    buf_printf(out, ",\"system_fingerprint\":\"%s\"", head->fingerprint);
}

static void put_usage(struct buf *out, const struct srv_usage *u)
{
    buf_printf(out,
               "{\"prompt_tokens\":%lld,\"completion_tokens\":%lld,\"total_tokens\":%lld,"
               "\"prompt_tokens_details\":{\"cached_tokens\":%lld}}",
               (long long)u->prompt_tokens, (long long)u->completion_tokens,
               (long long)(u->prompt_tokens + u->completion_tokens), (long long)u->cached_tokens);
}

/* What chunks and whole answers have in common, from "logprobs" to the end of the choice. */
static void put_tail(struct buf *out, const struct srv_head *head, const struct srv_piece *p)
{
    buf_puts(out, ",\"logprobs\":");
    if (!p->scores.rows) buf_puts(out, "null");
    else if (head->chat) put_chat_scores(out, head->vocab, &p->scores);
    else put_completion_scores(out, head->vocab, &p->scores);
    buf_puts(out, ",\"finish_reason\":");
    if (!p->finish) buf_puts(out, "null");
    else buf_printf(out, "\"%s\"", p->finish);
    if (p->finish) {
        buf_puts(out, ",\"stop_reason\":");
        if (p->stop_text) buf_put_json_string(out, p->stop_text, p->stop_len);
        else if (p->stop_token >= 0) buf_printf(out, "%d", (int)p->stop_token);
        else buf_puts(out, "null");
    }
    if (p->ids) {
        buf_puts(out, ",\"token_ids\":");
        srv_fmt_ids(out, p->ids, p->id_count);
    }
    if (p->prompt_ids && !head->chat) {
        buf_puts(out, ",\"prompt_token_ids\":");
        srv_fmt_ids(out, p->prompt_ids, p->prompt_id_count);
    }
    buf_putc(out, '}');
}

static void put_prompt_ids(struct buf *out, const struct srv_head *head, const struct srv_piece *p)
{
    if (!p->prompt_ids || !head->chat) return;
    buf_puts(out, ",\"prompt_token_ids\":");
    srv_fmt_ids(out, p->prompt_ids, p->prompt_id_count);
}

static void put_delta(struct buf *out, const struct srv_piece *p)
{
    buf_puts(out, ",\"delta\":{");
    if (p->role) buf_puts(out, "\"role\":\"assistant\",");
    if (p->role || !p->finish) {
        buf_puts(out, "\"content\":");
        buf_put_json_string(out, p->text, p->len);
    }
    buf_putc(out, '}');
}

void srv_fmt_chunk(struct buf *out, const struct srv_head *head, const struct srv_piece *p,
                   enum srv_usage_mode mode, const struct srv_usage *usage)
{
    CHECK(!(head->chat && p->finish && p->len > 0)); /* a chat finish chunk has an empty delta */
    put_head(out, head, head->chat ? "chat.completion.chunk" : "text_completion");
    put_prompt_ids(out, head, p);
    buf_printf(out, ",\"choices\":[{\"index\":%d", (int)p->index);
    if (head->chat) {
        put_delta(out, p);
    } else {
        buf_puts(out, ",\"text\":");
        buf_put_json_string(out, p->text, p->len);
    }
    put_tail(out, head, p);
    buf_putc(out, ']');
    if (mode == SRV_USAGE_NULL) buf_puts(out, ",\"usage\":null");
    if (mode == SRV_USAGE_GIVEN) {
        buf_puts(out, ",\"usage\":");
        put_usage(out, usage);
    }
    buf_putc(out, '}');
}

void srv_fmt_usage_chunk(struct buf *out, const struct srv_head *head,
                         const struct srv_usage *usage)
{
    put_head(out, head, head->chat ? "chat.completion.chunk" : "text_completion");
    buf_puts(out, ",\"choices\":[],\"usage\":");
    put_usage(out, usage);
    buf_putc(out, '}');
}

void srv_fmt_answer_begin(struct buf *out, const struct srv_head *head,
                          const struct srv_piece *first)
{
    put_head(out, head, head->chat ? "chat.completion" : "text_completion");
    put_prompt_ids(out, head, first);
    buf_puts(out, ",\"choices\":[");
}

void srv_fmt_answer_choice(struct buf *out, const struct srv_head *head, const struct srv_piece *p)
{
    if (out->len > 0 && out->data[out->len - 1] == '}') buf_putc(out, ',');
    buf_printf(out, "{\"index\":%d", (int)p->index);
    if (head->chat) {
        buf_puts(out, ",\"message\":{\"role\":\"assistant\",\"content\":");
        buf_put_json_string(out, p->text, p->len);
        buf_puts(out, ",\"refusal\":null}");
    } else {
        buf_puts(out, ",\"text\":");
        buf_put_json_string(out, p->text, p->len);
    }
    put_tail(out, head, p);
}

void srv_fmt_answer_end(struct buf *out, const struct srv_usage *usage)
{
    buf_puts(out, "],\"usage\":");
    put_usage(out, usage);
    buf_putc(out, '}');
}
