/*
 * bench.c - see bench.h.
 *
 *     flags -> machine (startup.c) -> probe tiers -> warm up -> measure -> figures -> print, --json
 *
 * The machine is the daemon's own: scheduler, sampler, events, the engine's thread.  Only HTTP and
 * text are left out.  bench_run.c measures.
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
 * enough to stay in a cache may be faster.  Beside it stands the step's arithmetic at the probed
 * peak of matrix products, which is the larger of the two for some hundreds of sequences.
 */
#include "server/bench.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "config/check.h"
#include "config/clock.h"
#include "config/log.h"
#include "server/bench_control.h"
#include "server/bench_copy.h"
#include "server/bench_kv.h"
#include "server/bench_mixed.h"
#include "server/bench_report.h"
#include "server/bench_run.h"
#include "server/compare.h"
#include "server/output.h"
#include "server/startup.h"

struct bench {
    struct options options; /* as given, with what a benchmark decides itself */
    struct srv_machine machine;
    struct srv_bench_run run;
    struct srv_bench_workload workload; /* the largest */
    int32_t batches[SRV_BENCH_BATCHES_MAX];
    int batch_count;
    struct srv_bench_control controls[SRV_BENCH_CONTROLS_MAX]; /* [control_count] */
    int control_count;
    struct srv_bench_part parts[SRV_BENCH_PARTS_MAX]; /* [part_count] */
    int part_count;
    struct srv_bench_copy copy_wanted;
};

/* --- flags ------------------------------------------------------------------------------------ */

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
    enum status st = srv_bench_batches_read(o->batch, b->batches, &b->batch_count, err);
    if (st) return st;
    const int32_t most = srv_bench_batch_max(b->batches, b->batch_count);
    st = srv_bench_check_batch(o, most, err);
    return st ? st : srv_bench_check_length(o, err);
}

/* Limits that fit the run: as many sequences, as long, with KV for all of them. */
static enum status decide(struct bench *b, char *err)
{
    struct options *o = &b->options;
    struct eng_model_info info;
    const struct eng_model_options shapes_only = {.load_format = ENG_LOAD_DUMMY,
                                                  .hf_overrides = o->hf_overrides};
    int64_t length = o->input_len + o->output_len;
    enum status st;
    if ((st = srv_bench_controls_read(o, b->controls, &b->control_count, err)) ||
        (st = srv_bench_parts_read(o, b->parts, &b->part_count, err)) ||
        (st = srv_bench_copy_read(o, &b->copy_wanted, err)) ||
        (st = eng_model_read_info(o->model_dir, &shapes_only, &info, err)))
        return st;
    if ((st = srv_bench_check_positions(o, info.context_max, err))) return st;
    b->workload = (struct srv_bench_workload){
        .batch = srv_bench_batch_max(b->batches, b->batch_count),
        .input_len = (int32_t)o->input_len,
        .output_len = (int32_t)o->output_len,
        .given = o->given_context,
        .find_steps_max = SRV_BENCH_FIND_STEPS,
        .steady_min = SRV_BENCH_STEADY_MIN,
    };
    o->max_num_seqs = b->workload.batch;
    o->max_waiting = 0;
    if (strcmp(o->kv_admission, "auto") == 0)
        snprintf(o->kv_admission, sizeof o->kv_admission, "all"); /* a step is of all of them */
    if (!o->max_model_len) o->max_model_len = length;
    if (!o->plan_batch) o->plan_batch = b->workload.batch;
    if (!o->plan_context) o->plan_context = length;
    /* No more than needed; where it may leave, what is local is planned. */
    if (!o->kv_cache_memory_bytes && !o->kv_remote[0]) o->kv_cache_memory_bytes = INT64_MAX;
    return ST_OK;
}

static int result_count(const struct bench *b)
{
    return b->part_count * b->batch_count * b->control_count;
}

static void on_progress(void *user, int percent)
{
    (void)user;
    if (percent % 10 == 0) log_info("startup", "loading weights %d %%", percent);
}

static struct srv_startup_hooks hooks_of(struct bench *b)
{
    return (struct srv_startup_hooks){
        .wake = srv_bench_clock_wake, .wake_user = &b->run.clock, .progress = on_progress};
}

/* The engine opens anew, for it keeps recordings of its steps. */
static enum status leave_out(struct bench *b, const struct srv_bench_part *part, char *err)
{
    const struct srv_startup_hooks hooks = hooks_of(b);
    struct srv_machine *m = &b->machine;
    enum status st;
    srv_bench_clock_stop(&b->run.clock);
    eng_close(m->engine);
    m->engine = NULL;
    if ((st = kn_set_without(m->kn, part->without, err)) ||
        (st = srv_startup_engine(&b->options, &hooks, m, err)))
        return st;
    srv_bench_clock_start(&b->run.clock, m->engine);
    return ST_OK;
}

static void log_rates(const struct srv_machine *m, const struct off_bandwidth *rates)
{
    for (int t = 0; t < rates->tier_count; t++) {
        const char *name = off_tier_name(m->tiers, t);
        const double rate = rates->read_bytes_per_s[t];
        if (rate > 0) log_info("bench", "tier %s: %.2f GB/s of reading", name, rate / 1e9);
        else log_info("bench", "tier %s stays empty: its reading is not measured", name);
    }
}

/* With all parts, and without each of some: every number of sequences in turn, and each in every
 * way to read the remote tiers. */
static enum status measure_all(struct bench *b, struct srv_bench_result *r, char *err)
{
    const struct off_probe_config probe = off_probe_config_default();
    const struct srv_machine *m = &b->machine;
    struct off_bandwidth bandwidth;
    enum status st = off_probe_tiers(m->kn, m->tiers, &probe, &bandwidth, err);
    if (!st) log_rates(m, &bandwidth);
    if (!st) st = srv_bench_copy_start(&b->copy_wanted, m->kn, m->tiers, &b->run.copy, err);
    const int each = b->batch_count * b->control_count;
    for (int n = 0; n < result_count(b) && !st; n++) {
        /* All parts last: a backend that can do without none says so first. */
        const int p = (n / each + 1) % b->part_count, i = n % each;
        struct srv_bench_result *one = &r[p * each + i];
        struct srv_bench_workload now = b->workload;
        now.batch = b->batches[i / b->control_count];
        *one = (struct srv_bench_result){.unix_s = clock_unix_s(),
                                         .batch = now.batch,
                                         .part = &b->parts[p],
                                         .control = &b->controls[i % b->control_count],
                                         .bandwidth = bandwidth};
        if (b->part_count > 1 && i == 0) st = leave_out(b, one->part, err);
        if (!st) st = srv_bench_measure(&b->run, &now, one, err);
    }
    if (b->run.copy) { /* what failed before is told first */
        const enum status copied = kn_copy_close(b->run.copy, st ? NULL : err);
        if (!st) st = copied;
        b->run.copy = NULL;
    }
    /* Last, for it leaves the chip hot: what followed would be measured at a lower clock. */
    double matrix = 0;
    if (!st) st = off_probe_matrix(m->kn, &probe, &matrix, err);
    for (int i = 0; i < result_count(b); i++) r[i].matrix_flops_per_s = matrix;
    return st;
}

static enum status bench(struct bench *b, struct srv_bench_result *r, char *err)
{
    const struct srv_startup_hooks hooks = hooks_of(b);
    enum status st;
    if ((st = decide(b, err)) ||
        (st = srv_bench_run_open(&b->run, &b->machine, &b->workload, result_count(b),
                                 b->options.seed, err)) ||
        (st = srv_startup(&b->options, &hooks, &b->machine, err)))
        return st;
    /* As start-up has them, with what it measured, and of tiers that nobody named. */
    if (!b->options.control_sweep[0])
        memcpy(b->controls[0].control, b->machine.control, sizeof b->machine.control);
    srv_bench_clock_start(&b->run.clock, b->machine.engine);
    if ((st = srv_bench_check_pages(&b->machine, &b->workload, err))) return st;
    return measure_all(b, r, err);
}

/* Flags that are not measured together, or NULL. */
static const char *find_clash(const struct options *o)
{
    if (!o->compare &&
        (o->csv[0] || o->svg[0] || o->compare_modes[0] || o->compare_limit_seconds > 0))
        return "--csv, --svg, --compare-modes and --compare-limit-seconds are of --compare: add "
               "it, or leave them out";
    if (o->given_context && strcmp(o->load_format, "dummy"))
        return "--given-context takes random KV for that of the prompts, which means something to "
               "random weights alone: add --load-format dummy, or leave it out";
    if (o->kv_sweep[0] && (o->compare || o->request_rate > 0 || o->control_sweep[0] ||
                           o->background_copy[0] || o->without[0]))
        return "--kv-sweep is measured alone: leave out --compare, --request-rate, "
               "--control-sweep, "
               "--background-copy and --without, or it";
    if (o->given_context && o->request_rate > 0)
        return "--given-context has no prompts to compute, and --request-rate measures nothing "
               "else: leave one out";
    if (o->compare && o->without[0])
        return "--without is not measured with --compare: leave one out";
    if (o->request_rate > 0 && (o->control_sweep[0] || o->background_copy[0] || o->without[0]))
        return "--control-sweep, --background-copy and --without are not measured with "
               "--request-rate: leave them out, or it";
    if (o->control_sweep[0] && o->without[0])
        return "--control-sweep and --without are measured one at a time: leave one out";
    return NULL;
}

int srv_bench(const struct options *o)
{
    static struct bench b; /* large, and one */
    static struct srv_bench_result
        results[SRV_BENCH_BATCHES_MAX * SRV_BENCH_CONTROLS_MAX * SRV_BENCH_PARTS_MAX];
    char err[ERR_CAP] = "";
    const char *wrong = find_clash(o);
    if (wrong) {
        fprintf(stderr, "dakd: %s\n", wrong);
        return 2;
    }
    if (o->kv_sweep[0]) return srv_bench_kv(o);
    if (o->compare) return srv_compare(o);
    if (o->request_rate > 0) return srv_bench_mixed(o);
    b.options = *o;
    if (check_flags(&b, err)) {
        fprintf(stderr, "dakd: %s\n", err);
        return 2;
    }
    enum status st = srv_output_check("--json", o->json, err);
    if (!st) st = bench(&b, results, err);
    const int count = result_count(&b);
    for (int i = 0; i < count && !st && b.control_count == 1 && b.part_count == 1; i++)
        srv_bench_print(&b.options, &b.machine, &results[i]);
    if (!st && b.control_count > 1) srv_bench_print_controls(&b.machine, results, count);
    if (!st && b.part_count > 1) srv_bench_print_parts(results, count);
    if (!st) st = srv_bench_json(&b.options, &b.machine, results, count, err);
    srv_shutdown(&b.machine);
    srv_bench_run_close(&b.run);
    if (!st) return 0;
    log_error("bench", "%s", err);
    return 1;
}
