/*
 * sim_engine_sched.c - drives the production scheduler with random arrivals, lengths, ends of
 * answer and cancellations, under many configurations, against a model of its own that knows
 * nothing of lists or passes:
 *
 *  - every token of a sequence is computed exactly once per residency, in order, and its last known
 * one is sampled;
 *  - a page is written by one owner at a time, and holds the tokens its owner put there;
 *  - budget, chunk and sequence limits are kept;
 *  - first come, first served; every decode is in every plan; the oldest sequence too, and it is
 * never preempted;
 *  - nobody is preempted in the 64 steps after an admission;
 *  - every sequence ends within the bound of sched.h's invariant 6;
 *  - at the end every page is free.
 *
 * DAKD_TEST_SEED picks the seed, DAKD_TEST_STEPS the number of steps in all.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "config/check.h"
#include "engine/sched.h"

#ifdef __SANITIZE_ADDRESS__
#define STEPS_DEFAULT 1500000
#elif defined(__SANITIZE_THREAD__)
#define STEPS_DEFAULT 100000 /* one thread: nothing to find but time to lose */
#else
#define STEPS_DEFAULT 2500000
#endif

#define ALIVE_MAX 96
#define PAGES_MAX 640
#define PAGE_TOKENS KN_PAGE_TOKENS

struct job {
    struct eng_sched_seq seq; /* first: a plan's seq is its job */
    kn_page pages[PAGES_MAX];
    uint64_t order;        /* of arrival */
    int32_t prompt, final; /* tokens; final counts the whole answer */
    int32_t computed;      /* in this residency: the model's own kv_count */
    bool resident;
    uint64_t deadline;   /* step by which it must be finished */
    uint64_t cancel_at;  /* step; UINT64_MAX: never */
    uint64_t planned_at; /* last step with an item of it */
};

/* Who wrote token slot i of a page, and which of its tokens. */
struct cell {
    uint64_t order;
    int32_t token;
};

struct sim {
    struct eng_sched *sched;
    struct eng_sched_config config;
    int32_t tokens_max;   /* of one sequence */
    int32_t long_percent; /* of the answers that may be of any length; others are short */
    uint64_t rng;
    struct job *jobs[ALIVE_MAX]; /* in order of arrival */
    int job_count;
    struct job *spare[ALIVE_MAX];
    int spare_count;
    struct cell *cells; /* [KN_TIER_MAX][PAGES_MAX][64] */
    uint64_t step, order_next;
    uint64_t admitted_at; /* step of the last admission */
    uint64_t total_tokens, finished, cancelled, preempted;
};

static uint64_t next_random(struct sim *m)
{
    uint64_t z = m->rng += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static int32_t between(struct sim *m, int32_t low, int32_t high)
{
    return low + (int32_t)(next_random(m) % (uint64_t)(high - low + 1));
}

static bool chance(struct sim *m, int32_t percent)
{
    return between(m, 1, 100) <= percent;
}

static uint64_t env_u64(const char *name, uint64_t fallback)
{
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 0) : fallback;
}

/* --- arrivals and departures ------------------------------------------------------------------ */

static void arrive(struct sim *m)
{
    struct job *job = m->spare[--m->spare_count];
    memset(job, 0, sizeof *job);
    int32_t long_max = chance(m, 10) ? m->tokens_max : (m->tokens_max + 3) / 4;
    job->prompt = between(m, 1, long_max);
    if (chance(m, 25)) job->prompt = between(m, 1, 1 + (long_max - 1) / PAGE_TOKENS) * PAGE_TOKENS;
    if (job->prompt > long_max) job->prompt = long_max;
    int32_t room = m->tokens_max - job->prompt + 1; /* the last token sampled is not computed */
    job->final = job->prompt + between(m, 1, chance(m, m->long_percent) || room < 120 ? room : 120);
    job->order = m->order_next++;
    job->cancel_at = chance(m, 10) ? m->step + (uint64_t)between(m, 0, 300) : UINT64_MAX;
    job->planned_at = UINT64_MAX;
    job->seq.token_count = job->prompt;
    job->seq.pages = job->pages;
    eng_sched_add(m->sched, &job->seq);
    m->jobs[m->job_count++] = job;
    job->deadline = m->step;
    for (int i = 0; i < m->job_count; i++) job->deadline += (uint64_t)m->jobs[i]->final;
}

static void leave(struct sim *m, struct job *job)
{
    eng_sched_remove(m->sched, &job->seq);
    assert_int_equal(job->seq.state, ENG_SEQ_NEW);
    assert_int_equal(job->seq.page_count, 0);
    int at = 0;
    while (m->jobs[at] != job) at++;
    memmove(&m->jobs[at], &m->jobs[at + 1], (size_t)(m->job_count - at - 1) * sizeof m->jobs[0]);
    m->job_count--;
    m->spare[m->spare_count++] = job;
}

static void cancel_some(struct sim *m)
{
    for (int i = m->job_count - 1; i >= 0; i--) {
        if (m->jobs[i]->cancel_at > m->step) continue;
        m->cancelled++;
        leave(m, m->jobs[i]);
    }
}

/* --- what a plan must be ---------------------------------------------------------------------- */

/* Follows preemptions: a job that was resident and is waiting now lost what it had. */
static int32_t note_preemptions(struct sim *m)
{
    int32_t count = 0;
    for (int i = 0; i < m->job_count; i++) {
        struct job *job = m->jobs[i];
        if (!job->resident || job->seq.state == ENG_SEQ_RUNNING) continue;
        CHECK(i > 0); /* never the oldest */
        CHECK(m->step > m->admitted_at + 64);
        job->resident = false;
        job->computed = 0;
        count++;
    }
    return count;
}

static void check_item(struct sim *m, const struct eng_plan_item *item)
{
    struct job *job = (struct job *)item->seq;
    CHECK(job->planned_at != m->step); /* once per plan */
    job->planned_at = m->step;
    if (!job->resident) {
        job->resident = true;
        m->admitted_at = m->step;
        CHECK(job->computed == 0);
    }
    CHECK(item->token_begin == job->computed && item->token_count >= 1);
    CHECK(item->token_begin + item->token_count <= job->seq.token_count);
    CHECK(item->sample == (item->token_begin + item->token_count == job->seq.token_count));
    if (m->config.chunk_max) CHECK(item->token_count <= m->config.chunk_max);
    CHECK(job->seq.page_count * PAGE_TOKENS >= item->token_begin + item->token_count);
}

static void check_plan(struct sim *m, const struct eng_plan *plan, const bool *decode)
{
    int32_t tokens = 0, running = 0;
    int phase = 0; /* decodes, running prefills, admissions */
    uint64_t order = 0;
    for (int32_t i = 0; i < plan->item_count; i++) {
        struct job *job = (struct job *)plan->items[i].seq;
        int now = !job->resident ? 2 : job->seq.token_count - job->computed == 1 ? 0 : 1;
        CHECK(now >= phase);
        CHECK(i == 0 || now > phase || job->order > order);
        phase = now;
        order = job->order;
        check_item(m, &plan->items[i]);
        tokens += plan->items[i].token_count;
    }
    CHECK(tokens == plan->token_count && tokens <= m->config.tokens_step_max);
    bool waiting_seen = false;
    for (int i = 0; i < m->job_count; i++) { /* first come, first served */
        const struct job *job = m->jobs[i];
        CHECK(!(waiting_seen && job->resident));
        waiting_seen |= !job->resident;
        running += job->resident;
        if (decode[i] && job->resident) CHECK(job->planned_at == m->step);
    }
    CHECK(running <= m->config.seqs_max);
    CHECK((plan->item_count > 0) == (m->job_count > 0));
    if (m->job_count > 0) CHECK(m->jobs[0]->planned_at == m->step);
}

/* --- a step ----------------------------------------------------------------------------------- */

static struct cell *cell_of(struct sim *m, const struct job *job, int32_t token)
{
    kn_page page = job->pages[token / PAGE_TOKENS];
    size_t row = (size_t)kn_page_tier(page) * PAGES_MAX + kn_page_index(page);
    CHECK(kn_page_index(page) < (uint32_t)m->config.page_count[kn_page_tier(page)]);
    return &m->cells[row * PAGE_TOKENS + (size_t)(token % PAGE_TOKENS)];
}

/* Writes the item's tokens to its pages, and reads those before: a page that was handed to another
 * one meanwhile would show.  Reading every token of every step would be quadratic: one of each page
 * does. */
static void compute(struct sim *m, const struct eng_plan_item *item)
{
    struct job *job = (struct job *)item->seq;
    for (int32_t t = 0; t < item->token_begin; t += PAGE_TOKENS) {
        const struct cell *cell = cell_of(m, job, t);
        CHECK(cell->order == job->order && cell->token == t);
    }
    for (int32_t i = 0; i < item->token_count; i++) {
        int32_t t = item->token_begin + i;
        *cell_of(m, job, t) = (struct cell){.order = job->order, .token = t};
    }
    job->computed += item->token_count;
    m->total_tokens += (uint64_t)item->token_count;
}

static void step(struct sim *m)
{
    bool decode[ALIVE_MAX];
    for (int i = 0; i < m->job_count; i++)
        decode[i] = m->jobs[i]->resident && m->jobs[i]->seq.token_count - m->jobs[i]->computed == 1;
    struct eng_plan plan;
    eng_sched_plan(m->sched, &plan);
    int32_t preempted = note_preemptions(m);
    CHECK(preempted == plan.preempt_count);
    m->preempted += (uint64_t)preempted;
    check_plan(m, &plan, decode);
    eng_sched_check(m->sched);
    for (int32_t i = 0; i < plan.item_count; i++) compute(m, &plan.items[i]);
    if (plan.item_count > 0) eng_sched_commit(m->sched, &plan);
    m->step++;
    struct job *sampled[ALIVE_MAX];
    int32_t sampled_count = 0;
    for (int32_t i = 0; i < plan.item_count; i++)
        if (plan.items[i].sample) sampled[sampled_count++] = (struct job *)plan.items[i].seq;
    for (int32_t i = 0; i < sampled_count; i++) {
        struct job *job = sampled[i];
        CHECK(job->seq.kv_count == job->seq.token_count);
        job->seq.token_count++;
        if (job->seq.token_count < job->final) continue;
        m->finished++;
        leave(m, job);
    }
    for (int i = 0; i < m->job_count; i++) {
        CHECK(m->step <= m->jobs[i]->deadline);
        CHECK(m->jobs[i]->seq.kv_count == m->jobs[i]->computed);
    }
    eng_sched_check(m->sched);
}

/* --- configurations --------------------------------------------------------------------------- */

static void random_config(struct sim *m)
{
    struct eng_sched_config *c = &m->config;
    *c = (struct eng_sched_config){0};
    c->seqs_max = chance(m, 10) ? between(m, 1, 2) : between(m, 1, ALIVE_MAX);
    c->tokens_step_max = chance(m, 10) ? between(m, 1, 8) : between(m, 8, 1024);
    c->chunk_max = chance(m, 50) ? 0 : between(m, 1, c->tokens_step_max);
    if (chance(m, 25)) c->chunk_max = 1; /* prefills as slow as decodes */
    int32_t pages_max = chance(m, 20) ? PAGES_MAX : 60;
    int32_t pages = chance(m, 15) ? between(m, 1, 6) : between(m, 4, pages_max);
    int tiers = between(m, 1, KN_TIER_MAX);
    for (int t = 0; t < tiers; t++) {
        c->page_count[t] = t + 1 < tiers ? between(m, 0, pages) : pages;
        pages -= c->page_count[t];
    }
}

static void run_config(struct sim *m, uint64_t steps)
{
    random_config(m);
    assert_int_equal(eng_sched_open(&m->config, &m->sched), ST_OK);
    /* Long for the pages there are, but not so long for the budget that a run is one sequence. */
    int32_t longest = m->config.tokens_step_max * 12 + 250;
    m->tokens_max = eng_sched_seq_tokens_max(m->sched);
    if (m->tokens_max > longest) m->tokens_max = longest;
    m->long_percent = between(m, 0, chance(m, 50) ? 10 : 100);
    m->admitted_at = 0;
    m->step = 1000; /* "64 steps ago" is never negative */
    memset(m->cells, 0xFF, (size_t)KN_TIER_MAX * PAGES_MAX * PAGE_TOKENS * sizeof *m->cells);
    int32_t alive = chance(m, 30) ? between(m, 1, 4) : between(m, 4, ALIVE_MAX);
    int32_t arrivals = between(m, 1, 60); /* percent of steps */
    for (uint64_t i = 0; i < steps; i++) {
        while (m->job_count < alive && chance(m, arrivals)) arrive(m);
        cancel_some(m);
        step(m);
    }
    while (m->job_count > 0) { /* no more arrivals: all must end */
        cancel_some(m);
        step(m);
    }
    struct eng_sched_stats stats;
    eng_sched_stats(m->sched, &stats);
    assert_int_equal(stats.running, 0);
    assert_int_equal(stats.waiting, 0);
    for (int t = 0; t < KN_TIER_MAX; t++) {
        assert_int_equal(stats.pages_used[t], 0);
        assert_int_equal(stats.pages_total[t], m->config.page_count[t]);
    }
    eng_sched_close(m->sched);
}

static void random_load_keeps_every_promise(void **state)
{
    (void)state;
    static struct job jobs[ALIVE_MAX];
    struct sim m = {.rng = env_u64("DAKD_TEST_SEED", 20240607)};
    uint64_t steps_max = env_u64("DAKD_TEST_STEPS", STEPS_DEFAULT), steps = 0, configs = 0;
    printf("seed %llu, %llu steps\n", (unsigned long long)m.rng, (unsigned long long)steps_max);
    for (int i = 0; i < ALIVE_MAX; i++) m.spare[m.spare_count++] = &jobs[i];
    m.cells = malloc((size_t)KN_TIER_MAX * PAGES_MAX * PAGE_TOKENS * sizeof *m.cells);
    assert_non_null(m.cells);
    for (; steps < steps_max; configs++) {
        run_config(&m, 4000);
        steps += m.step - 1000;
    }
    free(m.cells);
    printf("%llu configurations, %llu steps, %llu tokens, %llu finished, %llu cancelled, "
           "%llu preempted\n",
           (unsigned long long)configs, (unsigned long long)steps,
           (unsigned long long)m.total_tokens, (unsigned long long)m.finished,
           (unsigned long long)m.cancelled, (unsigned long long)m.preempted);
    /* A run that met none of these has tested nothing. */
    assert_true(m.finished > 0 && m.cancelled > 0 && m.preempted > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_load_keeps_every_promise),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
