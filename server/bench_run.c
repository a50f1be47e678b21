/*
 * bench_run.c - see bench_run.h.
 *
 * All sequences are submitted at once, and KV pages are allotted for all of them, so that nothing
 * is ever preempted.  A sequence's tokens name the steps that gave them, and bench_clock.h knows
 * when a step was over.
 */
#include "server/bench_run.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "config/clock.h"
#include "config/log.h"
#include "config/random.h"
#include "engine/flops.h"
#include "kernels/copy.h"
#include "server/predict.h"

#define WARM_INPUT 64
#define WARM_OUTPUT 4
/* Where time is bounded: the prompts' step, and one to measure it by; of given prompts this alone.
 */
#define WARM_OUTPUT_BOUND 2
#define WARM_OUTPUT_GIVEN 1
#define FIND_OUTPUT 32 /* of runs in which controllers find their windows */
#define SPARE_STEPS 1  /* beside those a TPOT needs */

/* --- the list of --batch ---------------------------------------------------------------------- */

enum status srv_bench_batches_read(const char *text, int32_t out[SRV_BENCH_BATCHES_MAX], int *count,
                                   char *err)
{
    *count = 0;
    for (const char *p = text; p;) {
        char part[OFF_PART_CAP];
        bool fits = off_take_part(&p, part);
        size_t digits = fits ? strspn(part, "0123456789") : 0;
        long n = digits && digits < 6 && !part[digits] ? strtol(part, NULL, 10) : 0;
        if (n < 1 || n > SRV_BENCH_BATCH_MAX || *count == SRV_BENCH_BATCHES_MAX)
            return err_set(err, ST_INVALID,
                           "--batch '%.60s' is not a list of up to %d numbers of sequences, each "
                           "between 1 and %d: write --batch 8 or --batch 1,32,128",
                           text, SRV_BENCH_BATCHES_MAX, SRV_BENCH_BATCH_MAX);
        out[(*count)++] = (int32_t)n;
    }
    return ST_OK;
}

int32_t srv_bench_batch_max(const int32_t *batches, int count)
{
    int32_t most = 0;
    for (int i = 0; i < count; i++) most = batches[i] > most ? batches[i] : most;
    return most;
}

/* --- the flags -------------------------------------------------------------------------------- */

enum status srv_bench_check_batch(const struct options *o, int32_t most, char *err)
{
    if (most <= o->max_num_batched_tokens) return ST_OK;
    return err_set(err, ST_INVALID,
                   "--batch %d sequences cannot decode together in steps of "
                   "--max-num-batched-tokens %" PRId64 ": raise the one or lower the other",
                   most, o->max_num_batched_tokens);
}

enum status srv_bench_check_length(const struct options *o, char *err)
{
    if (!o->max_model_len || o->input_len + o->output_len <= o->max_model_len) return ST_OK;
    return err_set(err, ST_INVALID,
                   "--input-len %" PRId64 " and --output-len %" PRId64
                   " together are more than --max-model-len %" PRId64,
                   o->input_len, o->output_len, o->max_model_len);
}

enum status srv_bench_check_positions(const struct options *o, int32_t context_max, char *err)
{
    if (o->input_len + o->output_len <= context_max) return ST_OK;
    return err_set(err, ST_INVALID,
                   "--input-len %" PRId64 " and --output-len %" PRId64
                   " together are more than the %d positions this model was made for",
                   o->input_len, o->output_len, context_max);
}

/* --- room ------------------------------------------------------------------------------------- */

enum status srv_bench_run_open(struct srv_bench_run *b, struct srv_machine *machine,
                               const struct srv_bench_workload *most, int measurements,
                               uint64_t seed, char *err)
{
    const size_t batch = (size_t)most->batch;
    const size_t length = (size_t)(most->input_len + most->output_len);
    *b = (struct srv_bench_run){.machine = machine, .seed = seed};
    b->requests = calloc(batch, sizeof *b->requests);
    b->tokens = calloc(batch * length, sizeof *b->tokens);
    b->submit_ns = calloc(batch, sizeof *b->submit_ns);
    b->record = calloc(batch * (size_t)most->output_len, sizeof *b->record);
    if (!b->requests || !b->tokens || !b->submit_ns || !b->record)
        return err_set(err, ST_NOMEM, "no memory for the tokens of %d sequences", most->batch);
    /* Two runs a measurement, and those that look for a window; at least a token in a step. */
    const size_t computed = most->given ? (size_t)most->output_len : length;
    return srv_bench_clock_open(
        &b->clock,
        (2 * batch * computed + (size_t)most->find_steps_max + batch * (WARM_INPUT + FIND_OUTPUT)) *
            (size_t)measurements,
        err);
}

void srv_bench_run_close(struct srv_bench_run *b)
{
    srv_bench_clock_close(&b->clock);
    free(b->requests);
    free(b->tokens);
    free(b->submit_ns);
    free(b->record);
}

enum status srv_bench_check_pages(const struct srv_machine *m, const struct srv_bench_workload *w,
                                  char *err)
{
    size_t each = div_up((size_t)(w->input_len + w->output_len), KN_PAGE_TOKENS);
    size_t need = (size_t)w->batch * (each + (w->batch > 1));
    const size_t have = (size_t)m->page_count + (size_t)m->memory.far_page_count;
    if (w->batch > m->page_count)
        return err_set(err, ST_LIMIT,
                       "%d sequences need a page of KV each in local memory and there are %d: "
                       "raise --kv-cache-memory-bytes",
                       w->batch, m->page_count);
    if (have >= need) return ST_OK;
    return err_set(err, ST_LIMIT,
                   "the sequences need %zu KV pages together and there are %zu: raise "
                   "--kv-cache-memory-bytes to %zu, or leave it out, or name a tier for them with "
                   "--kv-remote",
                   need, have, need * kn_kv_page_bytes(&m->kv));
}

/* --- a run ------------------------------------------------------------------------------------ */

static enum status submit_all(struct srv_bench_run *b, int32_t input_len, int32_t output_len)
{
    uint64_t state = b->seed;
    struct eng_limits limits;
    eng_limits(b->machine->engine, &limits);
    b->step_last = 0;
    b->unfinished = b->now.batch;
    for (int32_t s = 0; s < b->now.batch; s++) {
        struct eng_request *r = &b->requests[s];
        *r = (struct eng_request){
            .tokens = b->tokens + (size_t)s * (size_t)(b->now.input_len + b->now.output_len),
            .prompt_count = input_len,
            .given_count = b->now.given ? input_len - 1 : 0,
            .sampling = {.top_p = 1,
                         .repetition_penalty = 1,
                         .max_tokens = output_len,
                         .ignore_eos = true,
                         .logprobs = -1,
                         .prompt_logprobs = -1}};
        for (int32_t i = 0; i < input_len; i++)
            r->tokens[i] = (int32_t)(random_next(&state) % (uint64_t)limits.vocab);
    }
    return eng_submit_all(b->machine->engine, b->requests, b->now.batch);
}

static enum status on_event(struct srv_bench_run *b, const struct eng_event *event, char *err)
{
    size_t sequence = (size_t)(event->request - b->requests);
    if (event->kind == ENG_EVENT_TOKEN) {
        b->record[sequence * (size_t)b->now.output_len + (size_t)event->index].step = event->step;
        if (event->step > b->step_last) b->step_last = event->step;
        return ST_OK;
    }
    b->unfinished--;
    if (event->finish == ENG_FINISH_LENGTH) return ST_OK;
    struct eng_stats stats;
    eng_stats(b->machine->engine, &stats);
    return err_set(err, ST_DEVICE, "the engine failed: %.400s", stats.failure);
}

/* One run, to the last step's mark. */
static enum status run(struct srv_bench_run *b, int32_t input_len, int32_t output_len, char *err)
{
    struct eng_event event;
    b->step_first = atomic_load(&b->clock.marked); /* all steps so far have landed */
    enum status st = submit_all(b, input_len, output_len);
    if (st) return err_set(err, st, "the engine takes no work: %s", status_text(st));
    while (!st && (b->unfinished > 0 || !srv_bench_clock_has(&b->clock, b->step_last))) {
        if (eng_poll(b->machine->engine, &event)) st = on_event(b, &event, err);
        else (void)srv_bench_clock_wait(&b->clock, 0);
    }
    for (int32_t s = 0; s < b->now.batch && !st; s++) {
        b->submit_ns[s] = b->requests[s].submit_ns;
        for (int32_t i = 0; i < output_len; i++) {
            struct srv_bench_token *t =
                &b->record[(size_t)s * (size_t)b->now.output_len + (size_t)i];
            t->ns = b->clock.marks[t->step].ns;
        }
    }
    return st;
}

enum status srv_bench_once(struct srv_bench_run *b, const struct srv_bench_workload *w, char *err)
{
    b->now = *w;
    return run(b, w->input_len, w->output_len, err);
}

/* --- the measurement -------------------------------------------------------------------------- */

/* No sequence was interrupted. */
static enum status check_whole(const struct srv_bench_run *b, char *err)
{
    struct eng_stats t;
    eng_stats(b->machine->engine, &t);
    if (!t.sched.preempt_count) return ST_OK;
    return err_set(err, ST_LIMIT,
                   "sequences were preempted for want of KV pages: their times mean nothing");
}

/* Of a step, the time the machine was busy and the time it waited for the engine: means of the
 * steady steps. */
static void find_times(const struct srv_bench_run *b, struct srv_bench_result *r)
{
    uint64_t begin = r->stats.steady_begin_step, count = (uint64_t)r->stats.steady_step_count;
    const struct srv_bench_mark *from = &b->clock.marks[begin], *to = from + count;
    r->host_s = (double)(to->host_ns - from->host_ns) / (double)count / 1e9;
    r->device_s = (double)(to->device_ns - from->device_ns) / (double)count / 1e9;
    r->played_count = to->played - from->played;
}

/* Whether the counters were read between the step before mark i and that mark. */
static bool read_at(const struct srv_bench_run *b, uint64_t i)
{
    return b->clock.marks[i].traffic[0].bytes != b->clock.marks[i - 1].traffic[0].bytes;
}

/* What the kernels counted from the first reading in the steady steps to the last: they are read a
 * step late, and not in every step. */
static void find_trips(const struct srv_bench_run *b, struct srv_bench_result *r)
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
        r->copied_bytes[t] =
            (double)(to->fetched_bytes - from->fetched_bytes) / (double)(last - first);
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

static void find_control(const struct srv_bench_run *b, struct srv_bench_result *r)
{
    struct eng_stats t;
    eng_stats(b->machine->engine, &t);
    memcpy(r->tier_control, t.control, sizeof r->tier_control);
}

/* Of KV that lies in several tiers, what steady steps read of each, and what was moved. */
static void find_kv(const struct srv_bench_run *b, struct srv_bench_result *r)
{
    const uint64_t begin = r->stats.steady_begin_step, count = (uint64_t)r->stats.steady_step_count;
    const struct srv_bench_mark *from = &b->clock.marks[begin], *to = from + count;
    struct eng_stats t;
    eng_stats(b->machine->engine, &t);
    for (int i = 0; i < r->bandwidth.tier_count; i++) {
        r->kv_bytes[i] = (to->kv_read_bytes[i] - from->kv_read_bytes[i]) / count;
        r->step_bytes[i] = r->weight_bytes[i] + r->kv_bytes[i];
    }
    r->pages_out = t.sched.pages_out_count;
    r->pages_back = t.sched.pages_back_count;
    r->move_waits = t.sched.move_wait_count;
}

/* The rates of the floor: where the copy engine brings a part, the better way of the link's two. */
static void find_rates(const struct srv_bench_run *b, struct srv_bench_result *r)
{
    r->mode = b->machine->mode;
    for (int t = 0; t < r->bandwidth.tier_count; t++) {
        const struct off_link *link =
            off_links_find(&b->machine->memory.links, off_tier_name(b->machine->tiers, t));
        r->best_bytes_per_s[t] = r->bandwidth.read_bytes_per_s[t];
        if (!link) continue;
        r->engine_bytes_per_s[t] = link->copy_bytes_per_s;
        if (r->mode.copied_bytes[t] > 0)
            r->best_bytes_per_s[t] = fmax(r->best_bytes_per_s[t], link->copy_bytes_per_s);
    }
}

static void find_floor(const struct srv_bench_run *b, struct srv_bench_result *r)
{
    struct eng_traffic t;
    int32_t context = (int32_t)lround(r->stats.steady_context_tokens);
    eng_model_traffic(b->machine->model, b->machine->kv.dtype, &t);
    eng_traffic_decode(&t, b->now.batch, context, r->step_bytes);
    r->kv_bytes[0] = (uint64_t)b->now.batch * eng_traffic_kv_bytes(&t, context);
    for (int i = 0; i < r->bandwidth.tier_count; i++)
        r->weight_bytes[i] = r->step_bytes[i] - r->kv_bytes[i];
    if (b->machine->memory.far_page_count) find_kv(b, r);
    find_rates(b, r);
    struct off_bandwidth best = r->bandwidth;
    memcpy(best.read_bytes_per_s, r->best_bytes_per_s, sizeof best.read_bytes_per_s);
    r->floor_s = off_floor_s(&best, r->step_bytes, &r->floor_tier);
    r->prediction = srv_predict(b->machine, &r->bandwidth, b->now.batch, context, r->kv_bytes);
}

/* Whether every controller that looks for a window has one. */
static bool has_windows(const struct srv_bench_run *b)
{
    struct eng_stats t;
    eng_stats(b->machine->engine, &t);
    for (int i = 1; i < KN_TIER_MAX; i++)
        if (t.control[i].mode == OFF_CONTROL_ADAPTIVE && t.control[i].phase == OFF_CC_SEARCH)
            return false;
    return true;
}

/* --- how long --------------------------------------------------------------------------------- */

/* From the first step that gives a sequence its first token to the last such: decodes of those that
 * have begun come before prompts. */
static int32_t prompt_steps(const struct srv_bench_workload *w)
{
    const int64_t all = (int64_t)w->batch * w->input_len;
    int32_t steps = 0;
    if (w->given) return 1;
    for (int64_t done = 0; done < all; steps++) {
        const int64_t room = w->step_tokens - done / w->input_len;
        done += room > 1 ? room : 1;
    }
    return steps;
}

int32_t srv_bench_output_least(const struct srv_bench_workload *w)
{
    if (w->given) return 1 + w->steady_min; /* all begin in one step */
    return 1 + prompt_steps(w) + w->steady_min + SPARE_STEPS;
}

/* As many answer tokens and steps as w->seconds has room for, after a run that ended with a decode.
 */
static void bound(struct srv_bench_run *b)
{
    struct srv_bench_workload *w = &b->now;
    const struct srv_bench_mark *last = &b->clock.marks[b->step_last];
    const uint64_t before = b->step_last ? (last - 1)->device_ns : 0;
    const double step_s = (double)(last->device_ns - before) / (double)NS_PER_S;
    const int32_t steps = (int32_t)fmin(w->seconds / step_s, 1e6);
    w->steady_min = srv_bench_steady_min(step_s);
    const int32_t least = srv_bench_output_least(w), most = steps > least ? steps : least;
    if (w->output_len > most) w->output_len = most;
    if (w->find_steps_max > steps) w->find_steps_max = steps;
}

/* All prompts of the short run fit in a step, where time matters. */
static int32_t warm_input(const struct srv_bench_workload *w)
{
    if (w->given) return w->input_len;
    const int32_t most = w->input_len < WARM_INPUT ? w->input_len : WARM_INPUT;
    const int32_t each = w->seconds > 0 ? w->step_tokens / w->batch : most;
    return each >= most ? most : each > 1 ? each : 1;
}

/* A short run, so that the measured one pays for no first touch; where windows are looked for,
 * several, until they are found. */
static enum status warm_up(struct srv_bench_run *b, const struct srv_bench_control *c, char *err)
{
    const int32_t input = warm_input(&b->now);
    eng_set_control(b->machine->engine, c->control);
    int32_t output = WARM_OUTPUT;
    if (b->now.seconds > 0) output = b->now.given ? WARM_OUTPUT_GIVEN : WARM_OUTPUT_BOUND;
    enum status st = run(b, input, output, err);
    if (!st && b->now.seconds > 0) bound(b);
    if (!srv_bench_control_adapts(c)) return st;
    const int32_t most = (int32_t)size_min((size_t)b->now.output_len, FIND_OUTPUT);
    output = b->now.find_steps_max < most ? b->now.find_steps_max : most;
    const uint64_t begin = atomic_load(&b->clock.marked);
    while (!st && atomic_load(&b->clock.marked) - begin < (uint64_t)b->now.find_steps_max &&
           !has_windows(b))
        st = run(b, input, output, err);
    return st;
}

static void find_flops(const struct srv_bench_run *b, struct srv_bench_result *r)
{
    struct eng_flops f;
    eng_model_flops(b->machine->model, &f);
    r->prefill_flops = b->now.batch * eng_flops_prompt(&f, 0, b->now.input_len, 1);
    const int32_t context = (int32_t)lround(r->stats.steady_context_tokens);
    r->step_flops = b->now.batch * eng_flops_prompt(&f, context - 1, 1, 1);
}

/* Whether a step gave anybody a token: from its first on, a sequence gets one from every step. */
static bool gave_token(const struct srv_bench_run *b, uint64_t step)
{
    for (int32_t s = 0; s < b->now.batch; s++) {
        const struct srv_bench_token *t = &b->record[(size_t)s * (size_t)b->now.output_len];
        if (t[0].step <= step && step <= t[b->now.output_len - 1].step) return true;
    }
    return false;
}

/* A short run came before, so that there is a mark before the first step. */
static void find_prompt(const struct srv_bench_run *b, struct srv_bench_result *r)
{
    struct srv_bench_prompt *p = &r->prompt;
    const uint64_t first = b->step_first, last = r->stats.steady_begin_step;
    const struct srv_bench_mark *from = &b->clock.marks[first - 1], *to = &b->clock.marks[last];
    uint64_t submit_ns = UINT64_MAX;
    int64_t sampled = 0, tokens = 0;
    struct eng_traffic t;
    for (int32_t s = 0; s < b->now.batch; s++) {
        const uint64_t decoded =
            last -
            b->record[(size_t)s * (size_t)b->now.output_len].step; /* inputs after the prompt */
        tokens += b->now.input_len + (int64_t)size_min(decoded, (size_t)b->now.output_len - 1);
        if (b->submit_ns[s] < submit_ns) submit_ns = b->submit_ns[s];
    }
    for (uint64_t i = first; i <= last; i++) sampled += gave_token(b, i);
    p->step_count = (int64_t)(last - first) + 1;
    p->s = (double)(to->ns - submit_ns) / 1e9;
    p->device_s = (double)(to->device_ns - from->device_ns) / 1e9;
    eng_model_traffic(b->machine->model, b->machine->kv.dtype, &t);
    eng_traffic_prompt(&t, p->step_count, sampled, tokens, p->weight_bytes);
    for (int i = 0; i < r->bandwidth.tier_count; i++) {
        p->counted_bytes[i] = to->traffic[i].bytes - from->traffic[i].bytes;
        if (i && p->weight_bytes[i])
            p->link_s =
                fmax(p->link_s, (double)p->weight_bytes[i] / r->bandwidth.read_bytes_per_s[i]);
    }
}

enum status srv_bench_measure(struct srv_bench_run *b, const struct srv_bench_workload *w,
                              struct srv_bench_result *r, char *err)
{
    b->now = *w;
    enum status st = warm_up(b, r->control, err);
    if (st) return st;
    const struct srv_bench_record record = {.batch = b->now.batch,
                                            .input_len = b->now.input_len,
                                            .output_len = b->now.output_len,
                                            .steady_min = b->now.steady_min,
                                            .submit_ns = b->submit_ns,
                                            .tokens = b->record};
    log_info("bench", "%d sequences of %d prompt and %d answer tokens%s%s", record.batch,
             record.input_len, record.output_len, r->control->name[0] ? ", " : "",
             r->control->name);
    const uint64_t copied = b->copy ? kn_copy_bytes(b->copy) : 0, begin = clock_now_ns();
    if ((st = run(b, record.input_len, record.output_len, err)) || (st = check_whole(b, err)) ||
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
