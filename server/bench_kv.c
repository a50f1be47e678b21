#include "server/bench_kv.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/buf.h"
#include "config/check.h"
#include "config/clock.h"
#include "config/log.h"
#include "config/size.h"
#include "config/version.h"
#include "server/bench_run.h"
#include "server/output.h"
#include "server/startup.h"

#define JSON_BYTES_MAX ((size_t)1 << 20)
#define MS 1e3
#define WARM_INPUT 64
#define WARM_OUTPUT 4

static const struct way {
    const char *name, *policy, *admission;
} ways[] = {{"all", "in-place", "all"},
            {"throughput", "in-place", "throughput"},
            {"swap", "swap", "all"},
            {"recompute", "recompute", "all"}};
#define WAYS (int)ARRAY_COUNT(ways)

struct result {
    const struct way *way;
    char missing[ERR_CAP]; /* why there are no figures; "": there are */
    double seconds, tokens_per_s;
    double first_mean_s, first_max_s; /* submission to a request's first token */
    double pause_mean_s, pause_max_s; /* between two tokens of a request */
    uint64_t step_count, preempt_count, recomputed_tokens;
    double out_bytes, back_bytes, read_bytes; /* behind the link: moved there and back, and read */
};

struct bench {
    struct options options;
    struct srv_machine machine;
    struct srv_bench_run run;
    struct srv_bench_workload workload;
    struct result results[ARRAY_COUNT(ways)]; /* [count] */
    int count;
};

/* --- flags ------------------------------------------------------------------------------------ */

static const struct way *find_way(const char *name)
{
    for (int i = 0; i < WAYS; i++)
        if (strcmp(ways[i].name, name) == 0) return &ways[i];
    return NULL;
}

static enum status read_ways(struct bench *b, char *err)
{
    for (const char *p = b->options.kv_sweep; p;) {
        char part[OFF_PART_CAP];
        const struct way *way = off_take_part(&p, part) ? find_way(part) : NULL;
        bool again = false;
        for (int i = 0; i < b->count; i++) again |= b->results[i].way == way;
        if (!way || again)
            return err_set(
                err, ST_INVALID,
                "--kv-sweep '%.60s' is not a list of all, throughput, swap and recompute, "
                "each at most once",
                b->options.kv_sweep);
        b->results[b->count++].way = way;
    }
    return ST_OK;
}

static enum status read_flags(struct bench *b, char *err)
{
    const struct options *o = &b->options;
    int32_t batches[SRV_BENCH_BATCHES_MAX];
    int count = 0;
    enum status st = read_ways(b, err);
    if (st) return st;
    if (!o->batch[0] || !o->input_len || o->output_len < 2 || !o->kv_remote[0])
        return err_set(err, ST_INVALID,
                       "--kv-sweep wants a number of sequences, their prompts and answers, and a "
                       "tier for what local memory has no room for: --batch 64 --input-len 8192 "
                       "--output-len 64 --kv-cache-memory-bytes 8GiB --kv-remote host:64GiB");
    if (strcmp(o->kv_policy, "in-place") || strcmp(o->kv_admission, "auto"))
        return err_set(err, ST_INVALID,
                       "--kv-policy and --kv-admission are what --kv-sweep varies: leave them out");
    if ((st = srv_bench_batches_read(o->batch, batches, &count, err))) return st;
    if (count > 1)
        return err_set(err, ST_INVALID, "--kv-sweep wants one number of sequences: --batch 64");
    b->workload = (struct srv_bench_workload){.batch = batches[0],
                                              .input_len = (int32_t)o->input_len,
                                              .output_len = (int32_t)o->output_len,
                                              .given = o->given_context};
    st = srv_bench_check_batch(o, batches[0], err);
    return st ? st : srv_bench_check_length(o, err);
}

static enum status decide(struct bench *b, char *err)
{
    struct options *o = &b->options;
    struct eng_shape shape;
    const struct eng_model_options mo = srv_startup_model_options(o);
    enum status st = eng_model_read_shape(o->model_dir, &mo, &shape, err);
    if (st || (st = srv_bench_check_positions(o, shape.info.context_max, err))) return st;
    o->max_num_seqs = b->workload.batch;
    o->max_waiting = 0;
    if (!o->max_model_len) o->max_model_len = o->input_len + o->output_len;
    if (!o->plan_batch) o->plan_batch = b->workload.batch;
    if (!o->plan_context) o->plan_context = o->max_model_len;
    return ST_OK;
}

/* --- a way ------------------------------------------------------------------------------------ */

static void find_times(const struct bench *b, struct result *r)
{
    const struct srv_bench_run *run = &b->run;
    const int32_t batch = b->workload.batch, length = b->workload.output_len;
    uint64_t last_ns = 0, begin_ns = UINT64_MAX;
    for (int32_t s = 0; s < batch; s++) {
        const struct srv_bench_token *t = &run->record[(size_t)s * (size_t)length];
        const double first_s = (double)(t[0].ns - run->submit_ns[s]) / (double)NS_PER_S;
        if (run->submit_ns[s] < begin_ns) begin_ns = run->submit_ns[s];
        if (t[length - 1].ns > last_ns) last_ns = t[length - 1].ns;
        r->first_mean_s += first_s / batch;
        r->first_max_s = fmax(r->first_max_s, first_s);
        r->pause_mean_s +=
            (double)(t[length - 1].ns - t[0].ns) / (double)NS_PER_S / (length - 1) / batch;
        for (int32_t i = 1; i < length; i++)
            r->pause_max_s = fmax(r->pause_max_s, (double)(t[i].ns - t[i - 1].ns) / NS_PER_S);
    }
    r->seconds = (double)(last_ns - begin_ns) / (double)NS_PER_S;
    r->tokens_per_s = (double)batch * length / r->seconds;
}

static void find_work(const struct bench *b, const struct eng_stats *from,
                      const struct eng_stats *to, struct result *r)
{
    const double page = (double)kn_kv_page_bytes(&b->machine.kv);
    const int far = b->machine.memory.kv_tier;
    r->step_count = to->step_count - from->step_count;
    r->preempt_count = to->sched.preempt_count - from->sched.preempt_count;
    r->recomputed_tokens = to->recomputed_tokens - from->recomputed_tokens;
    r->out_bytes = page * (double)(to->sched.pages_out_count - from->sched.pages_out_count);
    r->back_bytes = page * (double)(to->sched.pages_back_count - from->sched.pages_back_count);
    r->read_bytes = (double)(to->kv_read_bytes[far] - from->kv_read_bytes[far]);
}

/* An engine of its own, a short run, and the workload. */
static enum status measure(struct bench *b, struct result *r, char *err)
{
    struct options *o = &b->options;
    struct srv_bench_clock *clock = &b->run.clock;
    const struct srv_startup_hooks hooks = {.wake = srv_bench_clock_wake, .wake_user = clock};
    const struct srv_bench_workload warm = {
        .batch = 1,
        .input_len = (int32_t)size_min((size_t)b->workload.input_len, WARM_INPUT),
        .output_len = (int32_t)size_min((size_t)b->workload.output_len, WARM_OUTPUT)};
    struct eng_stats before, after;
    snprintf(o->kv_policy, sizeof o->kv_policy, "%s", r->way->policy);
    snprintf(o->kv_admission, sizeof o->kv_admission, "%s", r->way->admission);
    log_info("bench", "%s", r->way->name);
    srv_bench_clock_stop(clock);
    enum status st = srv_startup_engine(o, &hooks, &b->machine, err);
    if (st) return st;
    srv_bench_clock_start(clock, b->machine.engine);
    if ((st = srv_bench_once(&b->run, &warm, err))) return st;
    eng_stats(b->machine.engine, &before);
    if ((st = srv_bench_once(&b->run, &b->workload, err))) return st;
    eng_stats(b->machine.engine, &after);
    find_times(b, r);
    find_work(b, &before, &after, r);
    return ST_OK;
}

/* --- what is told ----------------------------------------------------------------------------- */

static void print_head(const struct bench *b)
{
    const struct options *o = &b->options;
    const struct srv_machine *m = &b->machine;
    const uint64_t page_bytes = kn_kv_page_bytes(&m->kv);
    char near[SIZE_TEXT_CAP], far[SIZE_TEXT_CAP];
    printf("dakd %s (%s), %s\n", version_string(), version_commit(), kn_name(m->kn));
    printf("%s%s%s, %d sequences of %d prompt and %d answer tokens%s; %s of KV pages in local "
           "memory, %s in %s\n\n",
           o->model_dir, o->hf_overrides[0] ? " " : "", o->hf_overrides, b->workload.batch,
           b->workload.input_len, b->workload.output_len,
           b->workload.given ? ", whose prompts' KV is given" : "",
           size_text((uint64_t)m->page_count * page_bytes, near),
           size_text((uint64_t)m->memory.far_page_count * page_bytes, far),
           off_tier_name(m->tiers, m->memory.kv_tier));
    printf("%-11s %9s %9s %6s   %17s   %17s %8s %10s   %26s\n", "", "until all", "", "",
           "first token, s", "between two, ms", "pre-", "tokens", "over the link, GB");
    printf("%-11s %9s %9s %6s   %8s %8s   %8s %8s %8s %10s   %8s %8s %8s\n", "when short",
           "done, s", "tokens/s", "steps", "mean", "longest", "mean", "longest", "empted", "again",
           "moved", "back", "read");
}

static void print_result(const struct result *r)
{
    if (r->missing[0]) printf("%-11s %s\n", r->way->name, r->missing);
    else
        printf("%-11s %9.3f %9.1f %6" PRIu64 "   %8.3f %8.3f   %8.2f %8.1f %8" PRIu64 " %10" PRIu64
               "   %8.2f %8.2f %8.2f\n",
               r->way->name, r->seconds, r->tokens_per_s, r->step_count, r->first_mean_s,
               r->first_max_s, r->pause_mean_s * MS, r->pause_max_s * MS, r->preempt_count,
               r->recomputed_tokens, r->out_bytes / 1e9, r->back_bytes / 1e9, r->read_bytes / 1e9);
    (void)fflush(stdout); /* a sweep that is cut short keeps its rows */
}

static void put_result(struct buf *out, const struct bench *b, const struct result *r,
                       int64_t unix_s)
{
    const struct options *o = &b->options;
    srv_bench_json_head(out, o, &b->machine, o->congestion_control, unix_s);
    buf_printf(out, ",\n  \"kv_when_short\": \"%s\", \"batch_sequences\": %d", r->way->name,
               b->workload.batch);
    buf_printf(out, ", \"input_tokens_per_sequence\": %d, \"output_tokens_per_sequence\": %d",
               b->workload.input_len, b->workload.output_len);
    buf_printf(out, ", \"given_context\": %s", b->workload.given ? "true" : "false");
    buf_printf(out, ",\n  \"kv_page_bytes\": %zu, \"kv_local_pages\": %d, \"kv_remote_pages\": %d",
               kn_kv_page_bytes(&b->machine.kv), b->machine.page_count,
               b->machine.memory.far_page_count);
    if (r->missing[0]) {
        buf_puts(out, ",\n  \"missing\": ");
        buf_put_json_string(out, r->missing, strlen(r->missing));
        buf_puts(out, "\n}");
        return;
    }
    buf_printf(out, ",\n  \"duration_s\": %.9g, \"output_tokens_per_s\": %.9g", r->seconds,
               r->tokens_per_s);
    buf_printf(out, ", \"ttft_mean_ms\": %.9g, \"ttft_max_ms\": %.9g", r->first_mean_s * MS,
               r->first_max_s * MS);
    buf_printf(out, ", \"itl_mean_ms\": %.9g, \"itl_max_ms\": %.9g", r->pause_mean_s * MS,
               r->pause_max_s * MS);
    buf_printf(out, ",\n  \"step_count\": %" PRIu64 ", \"preemption_count\": %" PRIu64,
               r->step_count, r->preempt_count);
    buf_printf(out, ", \"recomputed_tokens\": %" PRIu64, r->recomputed_tokens);
    buf_printf(out, ", \"kv_moved_out_bytes\": %.0f, \"kv_moved_back_bytes\": %.0f", r->out_bytes,
               r->back_bytes);
    buf_printf(out, ", \"kv_remote_read_bytes\": %.0f\n}", r->read_bytes);
}

static enum status write_json(const struct bench *b, int64_t unix_s, char *err)
{
    struct buf out;
    buf_init(&out, JSON_BYTES_MAX);
    for (int i = 0; i < b->count; i++) {
        buf_puts(&out, i ? ",\n" : "[\n");
        put_result(&out, b, &b->results[i], unix_s);
    }
    buf_puts(&out, "\n]\n");
    enum status st = srv_output_write("--json", b->options.json, &out, err);
    buf_deinit(&out);
    return st;
}

/* --- all of it -------------------------------------------------------------------------------- */

static enum status bench(struct bench *b, char *err)
{
    const struct srv_startup_hooks hooks = {.wake = srv_bench_clock_wake,
                                            .wake_user = &b->run.clock};
    const int64_t unix_s = clock_unix_s();
    struct srv_bench_workload room = b->workload;
    enum status st;
    room.given = false; /* recompute computes what was given */
    if ((st = srv_output_check("--json", b->options.json, err)) || (st = decide(b, err)) ||
        (st = srv_bench_run_open(&b->run, &b->machine, &room, 1, b->options.seed, err)) ||
        (st = srv_startup(&b->options, &hooks, &b->machine, err)))
        return st;
    if (!b->machine.memory.far_page_count)
        return err_set(err, ST_INVALID,
                       "all sequences have room in local memory, so that there is nothing to "
                       "measure: lower --kv-cache-memory-bytes");
    print_head(b);
    for (int i = 0; i < b->count && !st; i++) {
        struct result *r = &b->results[i];
        st = measure(b, r, err);
        if (st) snprintf(r->missing, sizeof r->missing, "%s", err);
        if (st == ST_LIMIT) st = ST_OK; /* a sequence is longer than it can run */
        print_result(r);
    }
    return st ? st : write_json(b, unix_s, err);
}

int srv_bench_kv(const struct options *o)
{
    static struct bench b; /* large, and one */
    char err[ERR_CAP] = "";
    b.options = *o;
    if (read_flags(&b, err)) {
        fprintf(stderr, "dakd: %s\n", err);
        return 2;
    }
    enum status st = bench(&b, err);
    srv_bench_clock_stop(&b.run.clock);
    srv_shutdown(&b.machine);
    srv_bench_run_close(&b.run);
    if (!st) return 0;
    log_error("bench", "%s", err);
    return 1;
}
