/*
 * warm_up.c - what the engine computes before it takes requests: one token, so that the first
 * request does not pay for first touches and damaged weights are noticed, and, where the backend
 * records steps, the recordings of all sizes of decode steps, so that no request ever waits for
 * one.
 */
#include <math.h>

#include "config/check.h"
#include "config/clock.h"
#include "config/log.h"
#include "engine/engine_state.h"

/* T sequences of one token, all in page 0, where they write the same. */
static void issue(struct eng_engine *e, int32_t T)
{
    static const kn_page page = 0; /* kn_page_make(0, 0) */
    struct eng_step *s = &e->steps[0];
    for (int32_t i = 0; i < T; i++) {
        s->tokens[i] = s->positions[i] = 0;
        s->token_seq[i] = s->rows[i] = i;
        s->seqs[i] = (struct kn_seq){.token_begin = i, .token_count = 1, .kv_count = 1};
        s->choice[i] = (struct kn_sample_row){.row = i, .top_p = 1};
    }
    const struct kn_batch batch = {.token_count = T,
                                   .tokens = s->tokens,
                                   .positions = s->positions,
                                   .token_seq = s->token_seq,
                                   .seq_count = T,
                                   .seqs = s->seqs,
                                   .pages = &page,
                                   .row_count = T,
                                   .rows = s->rows};
    eng_model_forward(e->model, &batch, &e->kv);
    eng_model_logits(e->model, &batch, e->logits);
    kn_sample(e->kn, &(struct kn_sample_args){.logits = e->logits,
                                              .vocab = e->limits.vocab,
                                              .row_count = T,
                                              .rows = s->choice,
                                              .out = s->chosen});
}

static enum status check_logits(struct eng_engine *e, char *err)
{
    issue(e, 1);
    kn_download(e->kn, e->logits, (size_t)e->limits.vocab * sizeof(float));
    enum status st = kn_sync(e->kn, err);
    if (st) return st;
    for (int32_t i = 0; i < e->limits.vocab; i++)
        if (!isfinite(e->logits[i]))
            return err_set(err, ST_CORRUPT,
                           "the model's first logits are not finite: its weights are damaged, or "
                           "overflow in this --dtype");
    return ST_OK;
}

/* The least size above `last` that is to be recorded; 0: there is none. */
static int32_t next_size(const struct eng_engine *e, int32_t last)
{
    const struct eng_config *c = &e->config;
    int32_t next = c->record_only_count ? 0 : kn_record_tokens(e->kn, last + 1);
    for (int i = 0; i < c->record_only_count; i++) {
        const int32_t T = kn_record_tokens(e->kn, c->record_only[i]);
        if (T > last && (!next || T < next)) next = T;
    }
    return next;
}

/* The sizes up to that which holds every running sequence, as far as the buffers go. */
static enum status record_steps(struct eng_engine *e, char *err)
{
    int32_t seqs = e->config.sched.seqs_max, last = 0;
    uint64_t start = clock_now_ns();
    while (last < seqs) {
        int32_t T = next_size(e, last);
        enum status st;
        if (T == 0 || T > e->config.tokens_max || T > e->config.rows_max) break;
        issue(e, T);
        if ((st = kn_sync(e->kn, err)) || (st = kn_record_begin(e->kn, T, err))) return st;
        issue(e, T);
        if ((st = kn_record_end(e->kn, err))) return st;
        last = T;
    }
    if (last)
        log_info("engine", "steps of up to %d sequences are recorded (%.0f ms)%s", last,
                 (double)(clock_now_ns() - start) / 1e6,
                 last < seqs ? "; larger ones are issued operation by operation" : "");
    return ST_OK;
}

enum status eng_warm_up(struct eng_engine *e, char *err)
{
    enum status st = e->config.record_only_count ? ST_OK : check_logits(e, err);
    if (!st && e->config.record) st = record_steps(e, err);
    return st ? st : kn_sync(e->kn, err);
}
