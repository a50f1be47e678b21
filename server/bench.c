/*
 * bench.c - see bench.h.
 *
 *     flags -> machine (startup.c) -> probe tiers -> warm up -> measure -> figures -> print, --json
 *
 * The machine is the daemon's own: scheduler, sampler, events, the engine's thread.  Only HTTP and
 * text are left out.  All sequences are submitted at once, and KV pages are allotted for all of
 * them, so that nothing is ever preempted.  A short run comes first, so that the measured one pays
 * for no first touch.
 *
 * Several numbers of sequences are measured one after the other, on the same weights: the machine
 * is made for the largest, and loading is most of a run's time.
 *
 * Prefill: the operations prompts take (engine/flops.h) over the time from the first submission to
 * the last first token, beside the rate of on-chip matrix products, probed after the runs
 * (offload/probe.h): a peak that the card holds at its power limit, unlike its datasheet's.
 *
 * Floor: the bytes a steady step must read (engine/traffic.h, at the mean context of the steady
 * steps) over the bandwidth of their tier, probed before the run on the same machine; tiers are
 * read side by side, so the slowest decides.  It is a floor of memory: a model small
 * enough to stay in a cache may be faster.
 */
#include "server/bench.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "config/clock.h"
#include "config/log.h"
#include "engine/flops.h"
#include "server/bench_clock.h"
#include "server/bench_control.h"
#include "server/bench_copy.h"
#include "server/bench_mixed.h"
#include "server/bench_report.h"
#include "server/startup.h"

#define WARM_INPUT 64
#define WARM_OUTPUT 4
#define FIND_OUTPUT 32     /* of runs in which controllers find their windows */
#define FIND_STEPS_MAX 320 /* of such runs together, before what they have is measured */
#define BATCHES_MAX 8
#define BATCH_MAX 4096

struct bench {
    struct options options; /* as given, with what a benchmark decides itself */
    struct srv_machine machine;
    struct srv_bench_clock clock;
    int32_t batches[BATCHES_MAX], batch_max; /* [batch_count], and the largest */
    int batch_count;
    struct srv_bench_control controls[SRV_BENCH_CONTROLS_MAX]; /* [control_count] */
    int control_count;
    struct srv_bench_copy copy_wanted;
    struct kn_copy *copy;                 /* owned; NULL: none */
    int32_t batch, input_len, output_len; /* of the measurement under way */
    struct eng_request *requests;         /* [B], owned */
    int32_t *tokens;                      /* [B, N + M], owned */
    uint64_t *submit_ns;                  /* [B], owned */
    struct srv_bench_token *record;       /* [B,M], owned */
    /* Of the run under way. */
    uint64_t step_first, step_last; /* the first, and the last that gave a token */
    int32_t unfinished;
};

/* --- flags ------------------------------------------------------------------------------------ */

/* "1,32,128" */
static enum status read_batches(struct bench *b, char *err)
{
    const char *text = b->options.batch;
    for (const char *p = text; p;) {
        char part[OFF_PART_CAP];
        bool fits = off_take_part(&p, part);
        size_t digits = fits ? strspn(part, "0123456789") : 0;
        long n = digits && digits < 6 && !part[digits] ? strtol(part, NULL, 10) : 0;
        if (n < 1 || n > BATCH_MAX || b->batch_count == BATCHES_MAX)
            return err_set(err, ST_INVALID,
                           "--batch '%.60s' is not a list of up to %d numbers of sequences, each "
                           "between 1 and %d: write --batch 8 or --batch 1,32,128",
                           text, BATCHES_MAX, BATCH_MAX);
        b->batches[b->batch_count++] = (int32_t)n;
        if (n > b->batch_max) b->batch_max = (int32_t)n;
    }
    return ST_OK;
}

static enum status check_flags(struct bench *b, char *err)
{
    const struct options *o = &b->options;
    if (!o->batch[0] || !o->input_len || !o->output_len)
        return err_set(err, ST_INVALID,
                       "%s is missing: dakd bench MODEL_DIR --batch SEQUENCES --input-len TOKENS "
                       "--output-len TOKENS",
                       !o->batch[0]    ? "--batch"
                       : !o->input_len ? "--input-len"
                                       : "--output-len");
    if (o->output_len - 1 < SRV_BENCH_STEADY_MIN)
        return err_set(err, ST_INVALID,
                       "--output-len %" PRId64 " gives %" PRId64
                       " decode steps at most, and a TPOT is not reported from fewer than %d",
                       o->output_len, o->output_len - 1, SRV_BENCH_STEADY_MIN);
    enum status st = read_batches(b, err);
    if (st) return st;
    if (b->batch_max > o->max_num_batched_tokens)
        return err_set(err, ST_INVALID,
                       "--batch %d sequences cannot decode together in steps of "
                       "--max-num-batched-tokens %" PRId64 ": raise the one or lower the other",
                       b->batch_max, o->max_num_batched_tokens);
    if (o->max_model_len && o->input_len + o->output_len > o->max_model_len)
        return err_set(err, ST_INVALID,
                       "--input-len %" PRId64 " and --output-len %" PRId64
                       " together are more than --max-model-len %" PRId64,
                       o->input_len, o->output_len, o->max_model_len);
    return ST_OK;
}

/* Limits that fit the run: as many sequences, as long, with KV for all of them. */
static enum status decide(struct bench *b, char *err)
{
    struct options *o = &b->options;
    struct eng_model_info info;
    const struct eng_model_options shapes_only = {.load_format = ENG_LOAD_DUMMY};
    int64_t length = o->input_len + o->output_len;
    enum status st;
    if ((st = srv_bench_controls_read(o, b->controls, &b->control_count, err)) ||
        (st = srv_bench_copy_read(o, &b->copy_wanted, err)) ||
        (st = eng_model_read_info(o->model_dir, &shapes_only, &info, err)))
        return st;
    if (length > info.context_max)
        return err_set(err, ST_INVALID,
                       "--input-len %" PRId64 " and --output-len %" PRId64
                       " together are more than the %d positions this model was made for",
                       o->input_len, o->output_len, info.context_max);
    o->max_num_seqs = b->batch_max;
    o->max_waiting = 0;
    if (!o->max_model_len) o->max_model_len = length;
    if (!o->plan_batch) o->plan_batch = b->batch_max;
    if (!o->plan_context) o->plan_context = length;
    if (!o->kv_cache_memory_bytes) o->kv_cache_memory_bytes = INT64_MAX; /* no more than needed */
    b->input_len = (int32_t)o->input_len;
    b->output_len = (int32_t)o->output_len;
    return ST_OK;
}

/* --- a run ------------------------------------------------------------------------------------ */

static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9E3779B97F4A7C15ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return z ^ z >> 31;
}

static enum status submit_all(struct bench *b, int32_t input_len, int32_t output_len)
{
    uint64_t state = b->options.seed;
    struct eng_limits limits;
    eng_limits(b->machine.engine, &limits);
    b->step_last = 0;
    b->unfinished = b->batch;
    for (int32_t s = 0; s < b->batch; s++) {
        struct eng_request *r = &b->requests[s];
        *r = (struct eng_request){.tokens = b->tokens +
                                            (size_t)s * (size_t)(b->input_len + b->output_len),
                                  .prompt_count = input_len,
                                  .sampling = {.top_p = 1,
                                               .repetition_penalty = 1,
                                               .max_tokens = output_len,
                                               .ignore_eos = true,
                                               .logprobs = -1,
                                               .prompt_logprobs = -1}};
        for (int32_t i = 0; i < input_len; i++)
            r->tokens[i] = (int32_t)(next_random(&state) % (uint64_t)limits.vocab);
    }
    return eng_submit_all(b->machine.engine, b->requests, b->batch);
}

static enum status on_event(struct bench *b, const struct eng_event *event, char *err)
{
    size_t sequence = (size_t)(event->request - b->requests);
    if (event->kind == ENG_EVENT_TOKEN) {
        b->record[sequence * (size_t)b->output_len + (size_t)event->index].step = event->step;
        if (event->step > b->step_last) b->step_last = event->step;
        return ST_OK;
    }
    b->unfinished--;
    if (event->finish == ENG_FINISH_LENGTH) return ST_OK;
    struct eng_stats stats;
    eng_stats(b->machine.engine, &stats);
    return err_set(err, ST_DEVICE, "the engine failed: %.400s", stats.failure);
}

/* One run, to the last step's mark. */
static enum status run(struct bench *b, int32_t input_len, int32_t output_len, char *err)
{
    struct eng_event event;
    b->step_first = atomic_load(&b->clock.marked); /* all steps so far have landed */
    enum status st = submit_all(b, input_len, output_len);
    if (st) return err_set(err, st, "the engine takes no work: %s", status_text(st));
    while (!st && (b->unfinished > 0 || !srv_bench_clock_has(&b->clock, b->step_last))) {
        if (eng_poll(b->machine.engine, &event)) st = on_event(b, &event, err);
        else (void)srv_bench_clock_wait(&b->clock, 0);
    }
    for (int32_t s = 0; s < b->batch && !st; s++) {
        b->submit_ns[s] = b->requests[s].submit_ns;
        for (int32_t i = 0; i < output_len; i++) {
            struct srv_bench_token *t = &b->record[(size_t)s * (size_t)b->output_len + (size_t)i];
            t->ns = b->clock.marks[t->step].ns;
        }
    }
    return st;
}

static enum status alloc_runs(struct bench *b, char *err)
{
    size_t batch = (size_t)b->batch_max, length = (size_t)(b->input_len + b->output_len);
    b->requests = calloc(batch, sizeof *b->requests);
    b->tokens = calloc(batch * length, sizeof *b->tokens);
    b->submit_ns = calloc(batch, sizeof *b->submit_ns);
    b->record = calloc(batch * (size_t)b->output_len, sizeof *b->record);
    if (!b->requests || !b->tokens || !b->submit_ns || !b->record)
        return err_set(err, ST_NOMEM, "no memory for the tokens of %d sequences", b->batch_max);
    /* Two runs a measurement, and those that look for a window; at least a token in a step. */
    return srv_bench_clock_open(
        &b->clock,
        (2 * batch * length + FIND_STEPS_MAX + batch * (WARM_INPUT + FIND_OUTPUT)) *
            (size_t)(b->batch_count * b->control_count),
        err);
}

/* --- the measurement -------------------------------------------------------------------------- */

/* The scheduler keeps a page in reserve for each of several sequences that run together. */
static enum status check_pages(const struct bench *b, char *err)
{
    size_t each = div_up((size_t)(b->input_len + b->output_len), KN_PAGE_TOKENS);
    size_t need = (size_t)b->batch_max * (each + (b->batch_max > 1));
    if ((size_t)b->machine.page_count >= need) return ST_OK;
    return err_set(err, ST_LIMIT,
                   "the sequences need %zu KV pages together and there are %d: raise "
                   "--kv-cache-memory-bytes to %zu, or leave it out",
                   need, b->machine.page_count, need * kn_kv_page_bytes(&b->machine.kv));
}

/* No sequence was interrupted. */
static enum status check_whole(const struct bench *b, char *err)
{
    struct eng_stats t;
    eng_stats(b->machine.engine, &t);
    if (!t.sched.preempt_count) return ST_OK;
    return err_set(err, ST_LIMIT,
                   "sequences were preempted for want of KV pages: their times mean nothing");
}

/* Of a step, the time the machine was busy and the time it waited for the engine: means of the
 * steady steps. */
static void find_times(const struct bench *b, struct srv_bench_result *r)
{
    uint64_t begin = r->stats.steady_begin_step, count = (uint64_t)r->stats.steady_step_count;
    const struct srv_bench_mark *from = &b->clock.marks[begin], *to = from + count;
    /* All less the device's, whose steps fly ahead: over few steps it may come out below nothing.
     */
    const uint64_t host_ns = to->host_ns > from->host_ns ? to->host_ns - from->host_ns : 0;
    r->host_s = (double)host_ns / (double)count / 1e9;
    r->device_s = (double)(to->device_ns - from->device_ns) / (double)count / 1e9;
    r->played_count = to->played - from->played;
}

/* Whether the counters were read between the step before mark i and that mark. */
static bool read_at(const struct bench *b, uint64_t i)
{
    return b->clock.marks[i].traffic[0].bytes != b->clock.marks[i - 1].traffic[0].bytes;
}

/* What the kernels counted from the first reading in the steady steps to the last: they are read a
 * step late, and not in every step. */
static void find_trips(const struct bench *b, struct srv_bench_result *r)
{
    uint64_t first = r->stats.steady_begin_step + 1;
    uint64_t last = r->stats.steady_begin_step + (uint64_t)r->stats.steady_step_count;
    while (first < last && !read_at(b, first)) first++;
    while (last > first && !read_at(b, last)) last--;
    if (first >= last) return;
    for (int t = 0; t < r->bandwidth.tier_count; t++) {
        const struct kn_traffic *from = &b->clock.marks[first].traffic[t];
        const struct kn_traffic *to = &b->clock.marks[last].traffic[t];
        struct srv_bench_trips *trips = &r->trips[t];
        r->counted_bytes[t] = (double)(to->bytes - from->bytes) / (double)(last - first);
        trips->count = to->trip_count - from->trip_count;
        if (!trips->count) continue;
        trips->mean_s = (double)(to->trip_ns_sum - from->trip_ns_sum) / (double)trips->count / 1e9;
        trips->min_s = INFINITY;
        for (uint64_t i = first + 1; i <= last; i++) {
            const struct kn_traffic *step = &b->clock.marks[i].traffic[t];
            trips->min_s = fmin(trips->min_s, (double)step->trip_ns_min / 1e9);
            trips->max_s = fmax(trips->max_s, (double)step->trip_ns_max / 1e9);
        }
    }
}

static void find_control(const struct bench *b, struct srv_bench_result *r)
{
    struct eng_stats t;
    eng_stats(b->machine.engine, &t);
    memcpy(r->tier_control, t.control, sizeof r->tier_control);
}

static void find_floor(const struct bench *b, struct srv_bench_result *r)
{
    struct eng_traffic t;
    int32_t context = (int32_t)lround(r->stats.steady_context_tokens);
    eng_model_traffic(b->machine.model, b->machine.kv.dtype, &t);
    eng_traffic_decode(&t, b->batch, context, r->step_bytes);
    r->kv_bytes[0] = (uint64_t)b->batch * eng_traffic_kv_bytes(&t, context);
    for (int i = 0; i < r->bandwidth.tier_count; i++)
        r->weight_bytes[i] = r->step_bytes[i] - r->kv_bytes[i];
    r->floor_s = off_floor_s(&r->bandwidth, r->step_bytes, &r->floor_tier);
}

/* Whether every controller that looks for a window has one. */
static bool has_windows(const struct bench *b)
{
    struct eng_stats t;
    eng_stats(b->machine.engine, &t);
    for (int i = 1; i < KN_TIER_MAX; i++)
        if (t.control[i].mode == OFF_CONTROL_ADAPTIVE && t.control[i].phase == OFF_CC_SEARCH)
            return false;
    return true;
}

/* A short run, so that the measured one pays for no first touch; where windows are looked for,
 * several, until they are found. */
static enum status warm_up(struct bench *b, const struct srv_bench_control *c, char *err)
{
    const int32_t input = (int32_t)size_min((size_t)b->input_len, WARM_INPUT);
    const int32_t output = (int32_t)size_min((size_t)b->output_len, FIND_OUTPUT);
    eng_set_control(b->machine.engine, c->control);
    enum status st = run(b, input, WARM_OUTPUT, err);
    if (!srv_bench_control_adapts(c)) return st;
    const uint64_t begin = atomic_load(&b->clock.marked);
    while (!st && atomic_load(&b->clock.marked) - begin < FIND_STEPS_MAX && !has_windows(b))
        st = run(b, input, output, err);
    return st;
}

static void find_flops(const struct bench *b, struct srv_bench_result *r)
{
    struct eng_flops f;
    eng_model_flops(b->machine.model, &f);
    r->prefill_flops = b->batch * eng_flops_prompt(&f, 0, b->input_len, 1);
}

/* Whether a step gave anybody a token: from its first on, a sequence gets one from every step. */
static bool gave_token(const struct bench *b, uint64_t step)
{
    for (int32_t s = 0; s < b->batch; s++) {
        const struct srv_bench_token *t = &b->record[(size_t)s * (size_t)b->output_len];
        if (t[0].step <= step && step <= t[b->output_len - 1].step) return true;
    }
    return false;
}

/* A short run came before, so that there is a mark before the first step. */
static void find_prompt(const struct bench *b, struct srv_bench_result *r)
{
    struct srv_bench_prompt *p = &r->prompt;
    const uint64_t first = b->step_first, last = r->stats.steady_begin_step;
    const struct srv_bench_mark *from = &b->clock.marks[first - 1], *to = &b->clock.marks[last];
    uint64_t submit_ns = UINT64_MAX;
    int64_t sampled = 0, tokens = 0;
    struct eng_traffic t;
    for (int32_t s = 0; s < b->batch; s++) {
        const uint64_t decoded =
            last - b->record[(size_t)s * (size_t)b->output_len].step; /* inputs after the prompt */
        tokens += b->input_len + (int64_t)size_min(decoded, (size_t)b->output_len - 1);
        if (b->submit_ns[s] < submit_ns) submit_ns = b->submit_ns[s];
    }
    for (uint64_t i = first; i <= last; i++) sampled += gave_token(b, i);
    p->step_count = (int64_t)(last - first) + 1;
    p->s = (double)(to->ns - submit_ns) / 1e9;
    p->device_s = (double)(to->device_ns - from->device_ns) / 1e9;
    eng_model_traffic(b->machine.model, b->machine.kv.dtype, &t);
    eng_traffic_prompt(&t, p->step_count, sampled, tokens, p->weight_bytes);
    for (int i = 0; i < r->bandwidth.tier_count; i++) {
        p->counted_bytes[i] = to->traffic[i].bytes - from->traffic[i].bytes;
        if (i)
            p->link_s =
                fmax(p->link_s, (double)p->weight_bytes[i] / r->bandwidth.read_bytes_per_s[i]);
    }
}

static enum status measure(struct bench *b, struct srv_bench_result *r, char *err)
{
    const struct srv_bench_record record = {.batch = b->batch,
                                            .input_len = b->input_len,
                                            .output_len = b->output_len,
                                            .submit_ns = b->submit_ns,
                                            .tokens = b->record};
    enum status st = warm_up(b, r->control, err);
    if (st) return st;
    log_info("bench", "%d sequences of %d prompt and %d answer tokens%s%s", b->batch, b->input_len,
             b->output_len, r->control->name[0] ? ", " : "", r->control->name);
    const uint64_t copied = b->copy ? kn_copy_bytes(b->copy) : 0, begin = clock_now_ns();
    if ((st = run(b, b->input_len, b->output_len, err)) || (st = check_whole(b, err)) ||
        (st = srv_bench_stats(&record, &r->stats, err)))
        return st;
    if (b->copy)
        r->copy_bytes_per_s =
            (double)(kn_copy_bytes(b->copy) - copied) * 1e9 / (double)(clock_now_ns() - begin);
    find_times(b, r);
    find_flops(b, r);
    find_floor(b, r);
    find_trips(b, r);
    find_control(b, r);
    find_prompt(b, r);
    return ST_OK;
}

/* Every number of sequences in turn, and each in every way to read the remote tiers. */
static enum status measure_all(struct bench *b, struct srv_bench_result *r, char *err)
{
    const struct off_probe_config probe = off_probe_config_default();
    const struct srv_machine *m = &b->machine;
    struct off_bandwidth bandwidth = {0};
    enum status st = off_probe_tiers(m->kn, m->tiers, &probe, &bandwidth, err);
    for (int t = 0; t < bandwidth.tier_count && !st; t++)
        log_info("bench", "tier %s: %.2f GB/s of reading", off_tier_name(m->tiers, t),
                 bandwidth.read_bytes_per_s[t] / 1e9);
    if (!st) st = srv_bench_copy_start(&b->copy_wanted, m->kn, m->tiers, &b->copy, err);
    for (int i = 0; i < b->batch_count * b->control_count && !st; i++) {
        b->batch = b->batches[i / b->control_count];
        r[i] = (struct srv_bench_result){.unix_s = clock_unix_s(),
                                         .batch = b->batch,
                                         .control = &b->controls[i % b->control_count],
                                         .bandwidth = bandwidth};
        st = measure(b, &r[i], err);
    }
    if (b->copy) { /* what failed before is told first */
        const enum status copied = kn_copy_close(b->copy, st ? NULL : err);
        if (!st) st = copied;
        b->copy = NULL;
    }
    /* Last, for it leaves the chip hot: what followed would be measured at a lower clock. */
    double matrix = 0;
    if (!st) st = off_probe_matrix(m->kn, &probe, &matrix, err);
    for (int i = 0; i < b->batch_count * b->control_count; i++) r[i].matrix_flops_per_s = matrix;
    return st;
}

static void on_progress(void *user, int percent)
{
    (void)user;
    if (percent % 10 == 0) log_info("startup", "loading weights %d %%", percent);
}

static enum status bench(struct bench *b, struct srv_bench_result *r, char *err)
{
    const struct srv_startup_hooks hooks = {
        .wake = srv_bench_clock_wake, .wake_user = &b->clock, .progress = on_progress};
    enum status st;
    if ((st = decide(b, err)) || (st = alloc_runs(b, err)) ||
        (st = srv_startup(&b->options, &hooks, &b->machine, err)))
        return st;
    /* As start-up has them, with what it measured, and of tiers that nobody named. */
    if (!b->options.control_sweep[0])
        memcpy(b->controls[0].control, b->machine.control, sizeof b->machine.control);
    srv_bench_clock_start(&b->clock, b->machine.engine);
    if ((st = check_pages(b, err))) return st;
    return measure_all(b, r, err);
}

int srv_bench(const struct options *o)
{
    static struct bench b; /* large, and one */
    static struct srv_bench_result results[BATCHES_MAX * SRV_BENCH_CONTROLS_MAX];
    char err[ERR_CAP] = "";
    if (o->request_rate > 0 && (o->control_sweep[0] || o->background_copy[0])) {
        fputs("dakd: --control-sweep and --background-copy are not measured with --request-rate: "
              "leave them out, or it\n",
              stderr);
        return 2;
    }
    if (o->request_rate > 0) return srv_bench_mixed(o);
    b.options = *o;
    if (check_flags(&b, err)) {
        fprintf(stderr, "dakd: %s\n", err);
        return 2;
    }
    enum status st = srv_bench_json_check(o, err);
    if (!st) st = bench(&b, results, err);
    const int count = b.batch_count * b.control_count;
    for (int i = 0; i < count && !st && b.control_count == 1; i++)
        srv_bench_print(&b.options, &b.machine, &results[i]);
    if (!st && b.control_count > 1) srv_bench_print_controls(&b.machine, results, count);
    if (!st) st = srv_bench_json(&b.options, &b.machine, results, count, err);
    srv_shutdown(&b.machine);
    srv_bench_clock_close(&b.clock);
    free(b.requests);
    free(b.tokens);
    free(b.submit_ns);
    free(b.record);
    if (!st) return 0;
    log_error("bench", "%s", err);
    return 1;
}
