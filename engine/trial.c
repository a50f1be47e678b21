/*
 * trial.c - see trial.h.
 *
 * Steps are as the engine has them: recorded, a token a sequence, sampled on the device, the next
 * one in the queue while one is computed; what travels ahead of products so does as it will.  The
 * first steps, in which rings fill, do not count.  The median does, for a host that is interrupted
 * makes single steps long.
 */
#include "engine/trial.h"

#include <stdlib.h>

#include "config/check.h"
#include "engine/model_state.h"

enum { FILLING = 2, LEAST = 3, MOST = 32 }; /* steps that do not count, and those that do */
#define ENOUGH_NS 25000000ull

/* One kind of step, for `rows` sequences, of which trial->seq_count are there. */
struct run {
    struct eng_model *m;
    const struct kn_kv *kv;
    int32_t rows;
    int32_t *tokens, *positions, *order;
    struct kn_seq *seqs;
    struct kn_sample_row *choice;
    kn_page *pages;
    float *logits;             /* [rows][V] */
    struct kn_sampled *chosen; /* [rows] */
    uint64_t ns[MOST];
};

static struct kn_batch batch_of(const struct run *r, int32_t count)
{
    return (struct kn_batch){.token_count = count,
                             .tokens = r->tokens,
                             .positions = r->positions,
                             .token_seq = r->order,
                             .seq_count = count,
                             .seqs = r->seqs,
                             .pages = r->pages,
                             .row_count = count,
                             .rows = r->order};
}

static struct kn_sample_args sample_of(const struct run *r, int32_t count)
{
    return (struct kn_sample_args){.logits = r->logits,
                                   .vocab = r->m->shape.info.vocab,
                                   .row_count = count,
                                   .rows = r->choice,
                                   .out = r->chosen};
}

static void issue(struct run *r, int32_t count)
{
    const struct kn_batch batch = batch_of(r, count);
    const struct kn_sample_args sample = sample_of(r, count);
    eng_model_forward(r->m, &batch, r->kv);
    eng_model_logits(r->m, &batch, r->logits);
    kn_sample(r->m->kn, &sample);
}

/* --- its arrays ------------------------------------------------------------------------------- */

static size_t logits_bytes(const struct run *r)
{
    return (size_t)r->rows * (size_t)r->m->shape.info.vocab * sizeof(float);
}

static enum status make(struct run *r, const struct eng_trial *t, char *err)
{
    const size_t rows = (size_t)r->rows,
                 pages = div_up((size_t)t->context, KN_PAGE_TOKENS); /* of a sequence */
    struct kn *kn = r->m->kn;
    enum status st;
    r->tokens = calloc(rows, sizeof *r->tokens);
    r->positions = calloc(rows, sizeof *r->positions);
    r->order = calloc(rows, sizeof *r->order);
    r->seqs = calloc(rows, sizeof *r->seqs);
    r->choice = calloc(rows, sizeof *r->choice);
    r->pages = calloc(rows * pages, sizeof *r->pages);
    if (!r->tokens || !r->positions || !r->order || !r->seqs || !r->choice || !r->pages)
        return err_set(err, ST_NOMEM, "no memory for a step of %d sequences to be tried", r->rows);
    for (int32_t i = 0; i < r->rows; i++) {
        r->positions[i] = t->context - 1;
        r->order[i] = i;
        r->seqs[i] = (struct kn_seq){.token_begin = i,
                                     .token_count = 1,
                                     .kv_count = t->context,
                                     .page_begin = i * (int32_t)pages};
        r->choice[i] = (struct kn_sample_row){.row = i, .top_p = 1};
    }
    for (size_t i = 0; i < rows * pages; i++)
        r->pages[i] = kn_page_make(0, (uint32_t)(i % (size_t)t->page_count));
    if ((st = kn_alloc(kn, KN_MEM_STAGING, 0, logits_bytes(r), (void **)&r->logits, err)) ||
        (st = kn_alloc(kn, KN_MEM_STAGING, 0, rows * sizeof *r->chosen, (void **)&r->chosen, err)))
        return st;
    return kn_sample_reserve(kn, r->m->shape.info.vocab, r->rows, err);
}

static void drop(struct run *r)
{
    struct kn *kn = r->m->kn;
    if (r->logits) kn_free(kn, KN_MEM_STAGING, r->logits, logits_bytes(r));
    if (r->chosen) kn_free(kn, KN_MEM_STAGING, r->chosen, (size_t)r->rows * sizeof *r->chosen);
    free(r->tokens);
    free(r->positions);
    free(r->order);
    free(r->seqs);
    free(r->choice);
    free(r->pages);
}

/* --- its steps -------------------------------------------------------------------------------- */

static enum status record(struct run *r, char *err)
{
    struct kn *kn = r->m->kn;
    enum status st;
    issue(r, r->rows);
    if ((st = kn_sync(kn, err)) || (st = kn_record_begin(kn, r->rows, err))) return st;
    issue(r, r->rows);
    if ((st = kn_record_end(kn, err))) return st;
    return kn_sync(kn, err);
}

/* Two in flight, until enough have been timed; *count of them in r->ns. */
static enum status run_steps(struct run *r, int32_t seqs, bool recorded, int *count, char *err)
{
    struct kn *kn = r->m->kn;
    const struct kn_batch batch = batch_of(r, seqs);
    const struct kn_sample_args sample = sample_of(r, seqs);
    uint64_t before = 0, spent = 0, ns;
    enum status st = ST_OK;
    *count = 0;
    for (int n = 0; !st && *count < MOST && (*count < LEAST || spent < ENOUGH_NS); n++) {
        kn_step_begin(kn);
        if (!recorded || !kn_play(kn, &batch, &sample)) issue(r, seqs);
        const uint64_t step = kn_step_end(kn);
        if (before) {
            st = kn_step_wait(kn, before, &ns, err);
            spent += n > FILLING ? ns : 0;
            if (!st && n > FILLING) r->ns[(*count)++] = ns;
        }
        before = step;
    }
    return st ? st : kn_step_wait(kn, before, &ns, err);
}

static int by_time(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

enum status eng_model_try_step(struct eng_model *m, const struct kn_kv *kv,
                               const struct eng_trial *t, double *seconds, char *err)
{
    CHECK(t->seq_count >= 1 && t->context >= 1 && t->page_count >= 1);
    CHECK(t->seq_count <= m->tokens_max && t->seq_count <= m->rows_max);
    const int32_t padded = t->record ? kn_record_tokens(m->kn, t->seq_count) : 0;
    const bool recorded = padded > 0 && padded <= m->tokens_max && padded <= m->rows_max;
    struct run r = {.m = m, .kv = kv, .rows = recorded ? padded : t->seq_count};
    int count = 0;
    enum status st = make(&r, t, err);
    if (!st) st = recorded ? record(&r, err) : ST_OK;
    if (!st) st = run_steps(&r, t->seq_count, recorded, &count, err);
    if (!st) {
        qsort(r.ns, (size_t)count, sizeof r.ns[0], by_time);
        *seconds = 1e-9 * (double)r.ns[count / 2];
    }
    drop(&r);
    return st;
}
