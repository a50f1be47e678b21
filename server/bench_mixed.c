/*
 * bench_mixed.c - see bench_mixed.h.
 *
 *     B sequences decode   ------|--------------------------------------------|
 *     prompts arrive             ^     ^     ^     ^   every 1 / R seconds    |
 *     of their steps:       alone |          the window                       | last first token
 *
 * B sequences (--batch) with a short prompt decode all the time; one that is as long as it may get
 * begins anew.  After some steps for themselves prompts of --input-len tokens arrive at even
 * intervals, each with an answer of --output-len tokens.  Reported are the prompts' time to first
 * token, and the inter-token latency of whoever decodes, from the first arrival to the last first
 * token.  Even intervals, and the same prompts every time: a run can be repeated.
 *
 * Settings (--sweep-batched-tokens, --sweep-itl-target-ms) are measured one after the other on the
 * same weights; the engine is made anew for each, with its own model of steps.
 *
 * Events name steps, and bench_clock.h knows when a step was over; what lies between two tokens of
 * a sequence is kept as a pair of steps.
 */
#include "server/bench_mixed.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "config/clock.h"
#include "config/log.h"
#include "server/bench_clock.h"
#include "server/bench_mixed_report.h"
#include "server/bench_report.h"
#include "server/output.h"
#include "server/startup.h"

#define BESIDE_PROMPT 512
#define BESIDE_LENGTH 4096 /* prompt and answer of a sequence that decodes all the time */
#define ALONE_STEPS 32     /* before the first arrival */
#define TOGETHER_MAX 64    /* prompts, and their answers, computed at a time */
#define STEPS_MAX 16384    /* of one setting */
#define STEPS_LATE 4096    /* until the engine is told to stop */
#define SWEEP_MAX 8
#define BATCH_MAX 4096

/* A sequence's tokens that follow each other: the steps that gave them. */
struct gap {
    uint64_t from, to;
};

struct mixed {
    struct options options;
    struct srv_machine machine;
    struct srv_bench_clock clock;
    int32_t beside, beside_prompt, beside_length;
    int32_t prompts, prompt_len, output_len;
    double tokens_sweep[SWEEP_MAX], itl_sweep[SWEEP_MAX];
    int tokens_count, itl_count;
    struct eng_request *requests; /* [beside + prompts], owned: those beside first */
    int32_t *tokens;              /* owned: beside_length of each beside, N + M of each prompt */
    uint64_t *first, *last;       /* [beside + prompts], owned: steps of first and last tokens */
    struct gap *gaps;             /* [gap_max], owned */
    double *values;               /* [gap_max], owned */
    size_t gap_count, gap_max;
    /* Of the setting under way. */
    int32_t unfinished, answered; /* sequences; prompts with a first token */
    bool ending;
};

static bool is_beside(const struct mixed *x, size_t i)
{
    return i < (size_t)x->beside;
}

/* --- flags ------------------------------------------------------------------------------------ */

static enum status read_sweep(const char *flag, const char *text, double fallback, double least,
                              double most, double *out, int *count, char *err)
{
    *count = 0;
    if (!text[0]) out[(*count)++] = fallback;
    for (const char *p = text; p && text[0];) {
        char part[OFF_PART_CAP], *end = part;
        bool fits = off_take_part(&p, part);
        double v = fits ? strtod(part, &end) : 0;
        if (!fits || end == part || *end || !(v >= least && v <= most) || *count == SWEEP_MAX)
            return err_set(err, ST_INVALID,
                           "%s '%.60s' is not a list of up to %d numbers, each between %g and %g",
                           flag, text, SWEEP_MAX, least, most);
        out[(*count)++] = v;
    }
    return ST_OK;
}

static enum status read_flags(struct mixed *x, char *err)
{
    struct options *o = &x->options;
    char *end;
    enum status st;
    long beside = strtol(o->batch, &end, 10);
    if (!o->batch[0] || *end || beside < 1 || beside > BATCH_MAX)
        return err_set(err, ST_INVALID,
                       "--request-rate wants one number of sequences that decode, from 1 to %d: "
                       "--batch 32",
                       BATCH_MAX);
    if (!o->input_len || !o->output_len)
        return err_set(err, ST_INVALID,
                       "--request-rate wants the length of the prompts that arrive and of their "
                       "answers: --input-len TOKENS --output-len TOKENS");
    if ((st = read_sweep("--sweep-batched-tokens", o->sweep_batched_tokens,
                         (double)o->max_num_batched_tokens, 1, 65536, x->tokens_sweep,
                         &x->tokens_count, err)) ||
        (st = read_sweep("--sweep-itl-target-ms", o->sweep_itl_target_ms, o->itl_target_ms, 0,
                         60000, x->itl_sweep, &x->itl_count, err)))
        return st;
    x->beside = (int32_t)beside;
    x->prompts = (int32_t)o->num_prompts;
    x->prompt_len = (int32_t)o->input_len;
    x->output_len = (int32_t)o->output_len;
    for (int i = 0; i < x->tokens_count; i++) {
        if (x->tokens_sweep[i] != floor(x->tokens_sweep[i]))
            return err_set(err, ST_INVALID, "--sweep-batched-tokens %g is not a number of tokens",
                           x->tokens_sweep[i]);
        if (x->tokens_sweep[i] < x->beside)
            return err_set(err, ST_INVALID,
                           "--batch %d sequences cannot decode together in steps of %g tokens",
                           x->beside, x->tokens_sweep[i]);
        if (i == 0 || x->tokens_sweep[i] > (double)o->max_num_batched_tokens)
            o->max_num_batched_tokens = (int64_t)x->tokens_sweep[i];
    }
    return ST_OK;
}

static uint64_t pages_for(int64_t tokens)
{
    return div_up((size_t)tokens, KN_PAGE_TOKENS) + 1; /* one in reserve: sched.c */
}

/* Limits that fit the run: nothing is ever preempted. */
static enum status decide(struct mixed *x, char *err)
{
    struct options *o = &x->options;
    struct eng_model_info info;
    struct kn_kv kv;
    const struct eng_model_options shapes_only = {.load_format = ENG_LOAD_DUMMY,
                                                  .hf_overrides = o->hf_overrides};
    const int32_t length = x->prompt_len + x->output_len;
    const int32_t together = x->prompts < TOGETHER_MAX ? x->prompts : TOGETHER_MAX;
    enum status st = eng_model_read_info(o->model_dir, &shapes_only, &info, err);
    if (st || (st = srv_startup_shape_kv(o, &info, &kv, err))) return st;
    int32_t most = o->max_model_len ? (int32_t)o->max_model_len : info.context_max;
    if (length > most)
        return err_set(err, ST_INVALID,
                       "--input-len %d and --output-len %d together are more than %s%d",
                       x->prompt_len, x->output_len,
                       o->max_model_len ? "--max-model-len " : "the model's positions, ", most);
    x->beside_length = most < BESIDE_LENGTH ? most : BESIDE_LENGTH;
    x->beside_prompt = BESIDE_PROMPT < x->beside_length / 2 ? BESIDE_PROMPT : x->beside_length / 2;
    o->max_model_len = length > x->beside_length ? length : x->beside_length;
    o->max_num_seqs = x->beside + together;
    o->max_waiting = x->prompts;
    if (!o->kv_cache_memory_bytes)
        o->kv_cache_memory_bytes =
            kn_kv_page_bytes(&kv) * ((uint64_t)x->beside * pages_for(x->beside_length) +
                                     (uint64_t)together * pages_for(length));
    return ST_OK;
}

static enum status alloc(struct mixed *x, char *err)
{
    const size_t beside = (size_t)x->beside, prompts = (size_t)x->prompts, all = beside + prompts;
    const size_t together = (size_t)x->options.max_num_seqs;
    x->gap_max = (STEPS_MAX + STEPS_LATE) * together;
    x->requests = calloc(all, sizeof *x->requests);
    x->tokens = calloc(beside * (size_t)x->beside_length +
                           prompts * (size_t)(x->prompt_len + x->output_len),
                       sizeof *x->tokens);
    x->first = calloc(all, sizeof *x->first);
    x->last = calloc(all, sizeof *x->last);
    x->gaps = malloc(x->gap_max * sizeof *x->gaps);
    x->values = malloc(x->gap_max * sizeof *x->values);
    if (!x->requests || !x->tokens || !x->first || !x->last || !x->gaps || !x->values)
        return err_set(err, ST_NOMEM, "no memory for the times of %zu sequences", all);
    return srv_bench_clock_open(&x->clock, STEPS_MAX + STEPS_LATE, err);
}

static void release(struct mixed *x)
{
    srv_bench_clock_close(&x->clock);
    free(x->requests);
    free(x->tokens);
    free(x->first);
    free(x->last);
    free(x->gaps);
    free(x->values);
}

/* --- a setting -------------------------------------------------------------------------------- */

static enum status submit(struct mixed *x, size_t i, char *err)
{
    const size_t beside = (size_t)x->beside, length = (size_t)(x->prompt_len + x->output_len);
    struct eng_request *r = &x->requests[i];
    struct eng_limits limits;
    eng_limits(x->machine.engine, &limits);
    *r = (struct eng_request){
        .tokens = x->tokens + (is_beside(x, i)
                                   ? i * (size_t)x->beside_length
                                   : beside * (size_t)x->beside_length + (i - beside) * length),
        .prompt_count = is_beside(x, i) ? x->beside_prompt : x->prompt_len,
        .sampling = {.top_p = 1,
                     .repetition_penalty = 1,
                     .max_tokens =
                         is_beside(x, i) ? x->beside_length - x->beside_prompt : x->output_len,
                     .ignore_eos = true,
                     .logprobs = -1,
                     .prompt_logprobs = -1}};
    uint64_t state = x->options.seed + i;
    for (int32_t t = 0; t < r->prompt_count; t++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        r->tokens[t] = (int32_t)((state >> 33) % (uint64_t)limits.vocab);
    }
    x->first[i] = x->last[i] = UINT64_MAX;
    x->unfinished++;
    enum status st = eng_submit(x->machine.engine, r);
    return st ? err_set(err, st, "the engine takes no work: %s", status_text(st)) : ST_OK;
}

static enum status on_event(struct mixed *x, const struct eng_event *event, char *err)
{
    const size_t i = (size_t)(event->request - x->requests);
    if (event->kind == ENG_EVENT_TOKEN) {
        if (event->index == 0) {
            x->first[i] = event->step;
            x->answered += !is_beside(x, i);
        } else if (x->gap_count < x->gap_max) {
            x->gaps[x->gap_count++] = (struct gap){x->last[i], event->step};
        }
        x->last[i] = event->step;
        if (event->step < STEPS_MAX) return ST_OK;
        return err_set(err, ST_LIMIT,
                       "the prompts were not served within %d steps: lower --num-prompts, or raise "
                       "--request-rate",
                       STEPS_MAX);
    }
    if (event->kind != ENG_EVENT_FINISHED) return ST_OK;
    x->unfinished--;
    if (x->ending) return ST_OK;
    if (event->finish == ENG_FINISH_LENGTH) return is_beside(x, i) ? submit(x, i, err) : ST_OK;
    struct eng_stats stats;
    eng_stats(x->machine.engine, &stats);
    return err_set(err, ST_DEVICE, "the engine failed: %.400s", stats.failure);
}

/* Takes events until until_ns, or for until_ns 0 until there were some. */
static enum status take_events(struct mixed *x, uint64_t until_ns, char *err)
{
    struct eng_event event;
    enum status st = ST_OK;
    for (;;) {
        while (!st && eng_poll(x->machine.engine, &event)) st = on_event(x, &event, err);
        if (st || !srv_bench_clock_wait(&x->clock, until_ns)) return st;
        if (!until_ns) break;
    }
    while (!st && eng_poll(x->machine.engine, &event)) st = on_event(x, &event, err);
    return st;
}

/* The step with which all that decode had begun. */
static uint64_t all_beside(const struct mixed *x)
{
    uint64_t step = 0;
    for (int32_t i = 0; i < x->beside; i++)
        if (x->first[i] == UINT64_MAX || x->first[i] > step) step = x->first[i];
    return step;
}

static enum status drain(struct mixed *x, char *err)
{
    enum status st = ST_OK;
    x->ending = true;
    for (int32_t i = 0; i < x->beside + x->prompts; i++)
        eng_cancel(x->machine.engine, &x->requests[i]);
    while (!st && x->unfinished > 0) st = take_events(x, 0, err);
    return st;
}

/* The gaps that end after step `after`, up to `until`, and begin no earlier than `from`. */
static int64_t summarise_gaps(const struct mixed *x, uint64_t from, uint64_t after, uint64_t until,
                              struct srv_bench_summary *out)
{
    int64_t n = 0;
    const struct srv_bench_mark *marks = x->clock.marks;
    for (size_t i = 0; i < x->gap_count; i++) {
        const struct gap *g = &x->gaps[i];
        if (g->from >= from && g->to > after && g->to <= until)
            x->values[n++] = (double)(marks[g->to].ns - marks[g->from].ns) / (double)NS_PER_S;
    }
    if (n) srv_bench_summarise(x->values, n, out);
    return n;
}

static void find_figures(struct mixed *x, uint64_t began, uint64_t arrived, uint64_t start_ns,
                         struct srv_bench_mixed_result *r)
{
    const struct srv_bench_mark *marks = x->clock.marks;
    uint64_t end = 0;
    double *ttft = x->values;
    struct eng_stats stats;
    for (int32_t i = 0; i < x->prompts; i++) {
        uint64_t first = x->first[x->beside + i];
        if (first > end) end = first;
        ttft[i] = (double)(marks[first].ns - x->requests[x->beside + i].submit_ns) / NS_PER_S;
    }
    srv_bench_summarise(ttft, x->prompts, &r->ttft_s);
    (void)summarise_gaps(x, began, began, arrived, &r->alone_s);
    int64_t tokens = summarise_gaps(x, began, arrived, end, &r->itl_s);
    r->duration_s = (double)(marks[end].ns - start_ns) / (double)NS_PER_S;
    r->decode_tokens_per_s = (double)tokens / r->duration_s;
    r->prompt_tokens_per_s = (double)x->prompts * x->prompt_len / r->duration_s;
    eng_stats(x->machine.engine, &stats);
    r->mixed_steps = stats.mixed_step_count;
    r->mixed_prompt_tokens =
        stats.mixed_step_count ? (double)stats.mixed_prompt_tokens / (double)stats.mixed_step_count
                               : 0;
    r->held_back_steps = stats.held_back_step_count;
    r->over_steps = stats.itl_over_step_count;
    r->preempted = stats.sched.preempt_count;
}

/* Between opening the engine and draining it. */
static enum status run(struct mixed *x, struct srv_bench_mixed_result *r, char *err)
{
    enum status st = ST_OK;
    uint64_t began, arrived;
    x->unfinished = x->answered = 0;
    x->gap_count = 0;
    x->ending = false;
    for (int32_t i = 0; i < x->beside && !st; i++) st = submit(x, (size_t)i, err);
    while (!st && (all_beside(x) == UINT64_MAX ||
                   !srv_bench_clock_has(&x->clock, all_beside(x) + ALONE_STEPS)))
        st = take_events(x, 0, err);
    if (st) return st;
    began = all_beside(x);
    arrived = atomic_load(&x->clock.marked) - 1;
    const uint64_t start_ns = clock_now_ns();
    for (int32_t i = 0; i < x->prompts && !st; i++) {
        double after_s = i / x->options.request_rate;
        st = take_events(x, start_ns + (uint64_t)(after_s * (double)NS_PER_S), err);
        if (!st) st = submit(x, (size_t)(x->beside + i), err);
    }
    while (!st && x->answered < x->prompts) st = take_events(x, 0, err);
    uint64_t end = 0;
    for (int32_t i = 0; i < x->prompts && !st; i++)
        end = x->first[x->beside + i] > end ? x->first[x->beside + i] : end;
    while (!st && !srv_bench_clock_has(&x->clock, end)) st = take_events(x, 0, err);
    if (!st) find_figures(x, began, arrived, start_ns, r);
    return st;
}

static enum status measure(struct mixed *x, struct srv_bench_mixed_result *r, char *err)
{
    struct options *o = &x->options;
    const struct srv_startup_hooks hooks = {.wake = srv_bench_clock_wake, .wake_user = &x->clock};
    o->max_num_batched_tokens = r->tokens_step_max;
    o->itl_target_ms = r->itl_target_ms;
    log_info("bench", "steps of up to %d tokens, ITL target %g ms", r->tokens_step_max,
             r->itl_target_ms);
    srv_bench_clock_stop(&x->clock);
    enum status st = srv_startup_engine(o, &hooks, &x->machine, err);
    if (st) return st;
    srv_bench_clock_start(&x->clock, x->machine.engine);
    if ((st = run(x, r, err)) || (st = drain(x, err))) return st;
    if (!r->preempted) return ST_OK;
    return err_set(err, ST_LIMIT,
                   "sequences were preempted for want of KV pages: their times mean nothing");
}

static enum status bench(struct mixed *x, struct srv_bench_mixed_result *results, int *count,
                         char *err)
{
    const struct srv_startup_hooks hooks = {.wake = srv_bench_clock_wake, .wake_user = &x->clock};
    enum status st;
    if ((st = decide(x, err)) || (st = alloc(x, err)) ||
        (st = srv_startup(&x->options, &hooks, &x->machine, err)))
        return st;
    for (int i = 0; i < x->tokens_count; i++)
        for (int j = 0; j < x->itl_count && !st; j++, ++*count) {
            results[*count] = (struct srv_bench_mixed_result){
                .tokens_step_max = (int32_t)x->tokens_sweep[i], .itl_target_ms = x->itl_sweep[j]};
            st = measure(x, &results[*count], err);
        }
    return st;
}

int srv_bench_mixed(const struct options *o)
{
    static struct mixed x; /* large, and one */
    struct srv_bench_mixed_result results[SWEEP_MAX * SWEEP_MAX];
    char err[ERR_CAP] = "";
    int count = 0;
    x.options = *o;
    if (read_flags(&x, err)) {
        fprintf(stderr, "dakd: %s\n", err);
        return 2;
    }
    const int64_t unix_s = clock_unix_s();
    enum status st = srv_output_check("--json", o->json, err);
    if (!st) st = bench(&x, results, &count, err);
    if (!st) {
        const struct srv_bench_mixed_run run_of = {.unix_s = unix_s,
                                                   .beside = x.beside,
                                                   .beside_prompt = x.beside_prompt,
                                                   .beside_length = x.beside_length,
                                                   .options = &x.options,
                                                   .machine = &x.machine};
        srv_bench_mixed_print(&run_of, results, count);
        st = srv_bench_mixed_json(&run_of, results, count, err);
    }
    srv_bench_clock_stop(&x.clock);
    srv_shutdown(&x.machine);
    release(&x);
    if (!st) return 0;
    log_error("bench", "%s", err);
    return 1;
}
