/*
 * compare.c - see compare.h.
 *
 * The rates are probed once, before anything is loaded, so that all rows are held against the same
 * ones and the free fraction can be placed.
 *
 * Loading takes longer than measuring.  Where the GPU and the remote tier have room for all weights
 * each, beside the KV of the largest batch, the model is loaded once, into both, and a share is a
 * choice of which are read where (srv_startup_place).  Else, for each placement and share, the
 * machine is started as `dakd bench` starts it, for the most sequences that fit: where start-up
 * says that the KV cache or the weights do not, the largest number of sequences gets its row with
 * that sentence, and the next is tried.  The host's memory is looked at first, for a system that
 * hands out more than it has does not say so in time.
 *
 * Every row is printed, and --csv and --json are written, when it is measured: whoever ends a
 * comparison early has what there was.  --compare-limit-seconds ends it in order.
 */
#include "server/compare.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "config/clock.h"
#include "config/log.h"
#include "config/size.h"
#include "server/bench_run.h"
#include "server/compare_report.h"
#include "server/mode.h"
#include "server/probe.h"
#include "server/startup.h"

#define TIER_SLACK_BYTES (64ull << 20) /* what rounding to whole tiles may add */

static const char *const all_modes[] = {"direct", "prefetch", "uva", "auto"};
static const char *const all_placements[] = {"even", "auto"};

struct compare {
    struct options options; /* of the configuration under way */
    struct srv_comparison result;
    struct srv_machine machine;
    struct srv_bench_run run;
    struct srv_bench_workload workload; /* the largest */
    struct off_remote remote;
    struct off_bandwidth bandwidth;
    struct eng_shape shape;
    bool gpu;
    uint64_t begin_ns;
    char mode[16]; /* of the engine there is; "": none yet */
    int32_t mode_batch;
    /* What adaptive control found at the share before, by mode and batch; no CTAs: nothing yet. */
    struct kn_window found[SRV_COMPARE_MODES_MAX][SRV_BENCH_BATCHES_MAX];
};

/* Adds what it took, since *from, to where time went. */
static void spend(struct compare *x, enum srv_compare_phase phase, uint64_t *from)
{
    const uint64_t now = clock_now_ns();
    x->result.spent_s[phase] += (double)(now - *from) / (double)NS_PER_S;
    *from = now;
}

/* --- flags ------------------------------------------------------------------------------------ */

static enum status check_alone(const struct options *o, char *err)
{
    const char *given = o->control_sweep[0]            ? "--control-sweep"
                        : o->background_copy[0]        ? "--background-copy"
                        : o->request_rate > 0          ? "--request-rate"
                        : o->kv_remote[0]              ? "--kv-remote"
                        : o->offload != OPT_AUTO       ? "--offload"
                        : strcmp(o->placement, "auto") ? "--placement"
                                                       : NULL;
    if (given)
        return err_set(err, ST_INVALID,
                       "%s says what --compare varies or cannot measure: leave it out (shares are "
                       "--compare-offload's, placements --compare-placement's)",
                       given);
    if (!o->batch[0] || !o->input_len || !o->output_len)
        return err_set(err, ST_INVALID,
                       "--compare wants numbers of sequences, the length of their prompts and the "
                       "most answer tokens: --batch 8,64 --input-len 32 --output-len 64");
    return ST_OK;
}

static int by_number(const void *a, const void *b)
{
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

static enum status read_lists(struct compare *x, char *err)
{
    const struct options *o = &x->options;
    struct srv_comparison *c = &x->result;
    enum status st;
    if ((st = srv_bench_batches_read(o->batch, c->batches, &c->batch_count, err)) ||
        (st = srv_compare_names_read("--compare-placement", o->compare_placement, all_placements,
                                     ARRAY_COUNT(all_placements), c->placements,
                                     &c->placement_count, err)) ||
        (o->compare_modes[0] &&
         (st = srv_compare_names_read("--compare-modes", o->compare_modes, all_modes,
                                      ARRAY_COUNT(all_modes), c->modes, &c->mode_count, err))) ||
        (st = srv_compare_shares_read(c, o->compare_offload, err)) ||
        (st = off_remote_parse(o->remote, &x->remote, err)))
        return st;
    qsort(c->batches, (size_t)c->batch_count, sizeof c->batches[0], by_number);
    if (x->remote.count != 1)
        return err_set(err, ST_INVALID,
                       "--compare wants one tier, and --remote names %d: --remote host:64GiB",
                       x->remote.count);
    off_tier_spec_name(&x->remote.spec[0], c->tier);
    return ST_OK;
}

/* Enough room for a TPOT of every batch. */
static enum status check_lengths(struct compare *x, char *err)
{
    struct options *o = &x->options;
    const int32_t most = x->result.batches[x->result.batch_count - 1];
    x->workload = (struct srv_bench_workload){.batch = most,
                                              .input_len = (int32_t)o->input_len,
                                              .output_len = (int32_t)o->output_len,
                                              .given = o->given_context,
                                              .find_steps_max = SRV_BENCH_FIND_STEPS,
                                              .seconds = o->compare_seconds,
                                              .step_tokens = (int32_t)o->max_num_batched_tokens,
                                              .steady_min = SRV_BENCH_STEADY_MIN};
    enum status st = srv_bench_check_batch(o, most, err);
    if (st) return st;
    const int32_t least = srv_bench_output_least(&x->workload);
    if (o->output_len < least)
        return err_set(err, ST_INVALID,
                       "--output-len %" PRId64 " is too few: with --batch %d, prompts take so many "
                       "steps that a TPOT wants %d",
                       o->output_len, most, least);
    return srv_bench_check_length(o, err);
}

/* --- what there is ---------------------------------------------------------------------------- */

/* The model's shape, and a machine's settings that no configuration changes. */
static enum status decide(struct compare *x, char *err)
{
    struct options *o = &x->options;
    struct srv_comparison *c = &x->result;
    const struct eng_model_options mo = srv_startup_model_options(o);
    const int64_t length = o->input_len + o->output_len;
    enum status st = eng_model_read_shape(o->model_dir, &mo, &x->shape, err);
    if (st) return st;
    const struct eng_model_info *info = &x->shape.info;
    if ((st = srv_bench_check_positions(o, info->context_max, err))) return st;
    o->max_waiting = 0;
    if (!o->max_model_len) o->max_model_len = length;
    if (!o->kv_cache_memory_bytes) o->kv_cache_memory_bytes = INT64_MAX; /* no more than needed */
    snprintf(c->architecture, sizeof c->architecture, "%s", info->architecture);
    snprintf(c->dtype, sizeof c->dtype, "%s", kn_dtype_name(info->dtype));
    return srv_bench_run_open(&x->run, &x->machine, &x->workload, c->batch_count, o->seed, err);
}

/* The rates of both memories, and on a GPU what else the probe knows of the link. */
static enum status measure_rates(struct compare *x, struct kn *kn, char *err)
{
    struct srv_comparison *c = &x->result;
    const struct off_probe_config probe = off_probe_config_default();
    struct off_tiers *tiers;
    enum status st = off_tiers_open(kn, x->shape.info.weight_bytes, &x->remote, &tiers, err);
    if (st) return st;
    st = off_probe_tiers(kn, tiers, &probe, &x->bandwidth, err);
    off_tiers_close(tiers);
    if (st) return st;
    snprintf(c->backend, sizeof c->backend, "%s", kn_name(kn));
    snprintf(c->device, sizeof c->device, "%s", kn_identity(kn));
    for (int t = 0; t < SRV_COMPARE_TIERS; t++)
        c->rate[t] = c->best[t] = x->bandwidth.read_bytes_per_s[t];
    if (!x->gpu) return ST_OK;
    if ((st = srv_probe_links(&x->options, kn, &x->remote, &c->links, err))) return st;
    const struct off_link *link = off_links_find(&c->links, c->tier);
    if (!link) return ST_OK;
    c->copy_bytes_per_s = link->copy_bytes_per_s;
    c->best[SRV_COMPARE_LINK] = fmax(c->rate[SRV_COMPARE_LINK], c->copy_bytes_per_s);
    return ST_OK;
}

/* The modes that were asked for, which the backend must have, or all that it has. */
static enum status choose_modes(struct compare *x, char *err)
{
    struct options *o = &x->options;
    struct srv_comparison *c = &x->result;
    const bool given = c->mode_count > 0;
    const int count = given ? c->mode_count : (int)ARRAY_COUNT(all_modes);
    unsigned bits = 0;
    int kept = 0;
    o->offload_modes_more = 1u << OFF_MODE_DIRECT; /* flags are of all modes together */
    for (int i = 0; i < count; i++) {
        const char *name = given ? c->modes[i] : all_modes[i];
        enum off_mode mode;
        snprintf(o->offload_mode, sizeof o->offload_mode, "%s", name);
        const enum status st = srv_mode_read(o, x->gpu, &mode, given ? err : NULL);
        if (st && given) return st;
        if (st) continue;
        bits |= 1u << mode;
        c->modes[kept++] = name;
    }
    o->offload_modes_more = bits;
    c->mode_count = kept;
    return ST_OK;
}

static enum status probe(struct compare *x, char *err)
{
    struct srv_comparison *c = &x->result;
    struct kn *kn;
    enum status st = srv_startup_backend(&x->options, &x->gpu, &kn, err);
    if (st) return st;
    if (!(st = choose_modes(x, err))) st = measure_rates(x, kn, err);
    kn_close(kn);
    if (st || (st = srv_compare_shares_read(c, x->options.compare_offload, err))) return st;
    c->row_max = c->placement_count * c->share_count * c->batch_count * c->mode_count;
    c->rows = calloc((size_t)c->row_max, sizeof *c->rows);
    return c->rows ? ST_OK : err_set(err, ST_NOMEM, "no memory for %d rows", c->row_max);
}

/* --- rows ------------------------------------------------------------------------------------- */

static struct srv_compare_row *add_row(struct compare *x, const char *placement, int share,
                                       int32_t batch, const char *mode)
{
    struct srv_comparison *c = &x->result;
    CHECK(c->row_count < c->row_max);
    struct srv_compare_row *r = &c->rows[c->row_count++];
    *r = (struct srv_compare_row){.placement = placement,
                                  .mode = mode,
                                  .offload = c->shares[share],
                                  .free = share == c->free_index,
                                  .batch = batch};
    return r;
}

/* Modes to measure at a share: where nothing is remote they are one, which is none. */
static int mode_count(const struct compare *x, int share)
{
    return x->result.shares[share] > 0 ? x->result.mode_count : 1;
}

static const char *mode_name(const struct compare *x, int share, int mode)
{
    return x->result.shares[share] > 0 ? x->result.modes[mode] : SRV_COMPARE_NO_MODE;
}

static void add_missing(struct compare *x, const char *placement, int share, int32_t batch,
                        const char *why)
{
    for (int m = 0; m < mode_count(x, share); m++) {
        struct srv_compare_row *r = add_row(x, placement, share, batch, mode_name(x, share, m));
        snprintf(r->missing, sizeof r->missing, "does not fit: %.480s", why);
        srv_compare_print_row(&x->result, r);
    }
}

/* The planner's floor of what was loaded, at the step that was measured. */
static enum status find_model(const struct compare *x, struct srv_compare_row *r, char *err)
{
    const struct srv_machine *m = &x->machine;
    const struct eng_step step = {.seq_count = r->batch,
                                  .context = (int32_t)(r->context + 0.5),
                                  .kv_dtype = m->kv.dtype,
                                  .flops_per_s = m->memory.workload.flops_per_s};
    struct off_plan plan = {.tier_count = SRV_COMPARE_TIERS};
    enum status st = eng_operations(eng_model_shape(m->model), &step, &plan, err);
    if (st) return st;
    for (int t = 0; t < plan.tier_count; t++)
        plan.tier[t] = (struct off_plan_tier){.name = off_tier_name(m->tiers, t),
                                              .bytes_per_s = x->result.best[t]};
    eng_operations_count(eng_model_shape(m->model), eng_model_weights(m->model), &plan);
    off_plan_sum_up(&plan);
    r->model_s = plan.seconds;
    r->bound = plan.bound;
    r->limit_s = 0;
    r->limit_bound = OFF_PLAN_COMPUTE;
    for (int i = 0; i < plan.op_count; i++) r->limit_s += plan.op[i].count * plan.op[i].compute_s;
    for (int t = 0; t < plan.tier_count; t++) {
        const double s = (double)r->bytes[t] / x->result.best[t];
        if (s <= r->limit_s) continue;
        r->limit_s = s;
        r->limit_bound = t;
    }
    return ST_OK;
}

static enum status fill_row(const struct compare *x, const struct srv_bench_result *b,
                            struct srv_compare_row *r, char *err)
{
    const struct srv_share *share = x->machine.memory.share;
    const double local = (double)share[SRV_COMPARE_HBM].placed,
                 remote = (double)share[SRV_COMPARE_LINK].placed;
    r->placed = remote / (local + remote);
    r->steps = b->stats.steady_step_count;
    r->context = b->stats.steady_context_tokens;
    r->tpot_s = b->stats.steady_tpot_s;
    r->tokens_per_s = b->stats.decode_tokens_per_s;
    r->predicted_s = x->machine.mode.predicted_s;
    r->host_share = b->host_s / (b->host_s + b->device_s);
    for (int t = 0; t < SRV_COMPARE_TIERS; t++) {
        r->bytes[t] = b->step_bytes[t];
        r->counted[t] = b->counted_bytes[t];
        r->copied[t] = b->copied_bytes[t];
    }
    return find_model(x, r, err);
}

/* --- a configuration -------------------------------------------------------------------------- */

static const struct srv_startup_hooks *hooks_of(struct compare *x)
{
    static struct srv_startup_hooks hooks = {.wake = srv_bench_clock_wake};
    hooks.wake_user = &x->run.clock;
    return &hooks;
}

/* What the next engine is opened for: of auto one batch, else all. */
static void take_mode(struct compare *x, int32_t batch, const char *mode)
{
    struct options *o = &x->options;
    const struct srv_comparison *c = &x->result;
    const bool none = strcmp(mode, SRV_COMPARE_NO_MODE) == 0;
    memcpy(o->record_only, c->batches, (size_t)c->batch_count * sizeof c->batches[0]);
    o->record_only_count = c->batch_count;
    if (strcmp(mode, SRV_COMPARE_AUTO) == 0) {
        o->record_only[0] = batch;
        o->record_only_count = 1;
    }
    snprintf(o->offload_mode, sizeof o->offload_mode, "%s", none ? "direct" : mode);
    o->plan_batch = batch;
    o->plan_context = o->input_len + o->output_len;
}

/* The engine of that mode is open. */
static void begin_mode(struct compare *x, int32_t batch, const char *mode)
{
    srv_bench_clock_start(&x->run.clock, x->machine.engine);
    snprintf(x->mode, sizeof x->mode, "%s", mode);
    x->mode_batch = batch;
}

/* The engine anew, where the one there is has another mode.  What auto does follows from the batch.
 */
static enum status set_mode(struct compare *x, int32_t batch, const char *mode, char *err)
{
    if (strcmp(x->mode, mode) == 0 && (strcmp(mode, SRV_COMPARE_AUTO) || x->mode_batch == batch))
        return ST_OK;
    uint64_t from = clock_now_ns();
    x->mode[0] = '\0';
    take_mode(x, batch, mode);
    srv_bench_clock_stop(&x->run.clock);
    enum status st = srv_startup_engine(&x->options, hooks_of(x), &x->machine, err);
    if (!st) begin_mode(x, batch, mode);
    spend(x, SRV_COMPARE_OPENING, &from);
    return st;
}

/* Of a row with a mode; NULL: it has none. */
static struct kn_window *found_of(struct compare *x, const struct srv_compare_row *r)
{
    const struct srv_comparison *c = &x->result;
    for (int m = 0; m < c->mode_count; m++)
        for (int b = 0; b < c->batch_count; b++)
            if (strcmp(c->modes[m], r->mode) == 0 && c->batches[b] == r->batch)
                return &x->found[m][b];
    return NULL;
}

/* Adaptive control begins where it ended at the share before. */
static void begin_with_found(struct compare *x, const struct srv_compare_row *r,
                             struct off_control *c)
{
    const struct kn_window *found = found_of(x, r);
    const int32_t start = found ? found->ctas * found->blocks : 0;
    if (c->mode != OFF_CONTROL_ADAPTIVE || start < c->config.least || start > c->config.cap) return;
    c->window = *found;
    c->config.start = start;
}

static enum status measure(struct compare *x, struct srv_compare_row *r, char *err)
{
    static struct srv_bench_control control; /* large; of the measurement under way */
    struct srv_bench_workload w = x->workload;
    struct srv_bench_result b = {.batch = r->batch, .control = &control, .bandwidth = x->bandwidth};
    enum status st = set_mode(x, r->batch, r->mode, err);
    if (st) return st;
    memcpy(control.control, x->machine.control, sizeof control.control);
    begin_with_found(x, r, &control.control[SRV_COMPARE_LINK]);
    w.batch = r->batch;
    uint64_t from = clock_now_ns();
    st = srv_bench_check_pages(&x->machine, &w, err);
    if (!st) st = srv_bench_measure(&x->run, &w, &b, err);
    spend(x, SRV_COMPARE_MEASURING, &from);
    struct kn_window *found = found_of(x, r);
    const struct eng_tier_control *now = &b.tier_control[SRV_COMPARE_LINK];
    if (!st && found && now->mode == OFF_CONTROL_ADAPTIVE) *found = now->window;
    return st ? st : fill_row(x, &b, r, err);
}

static bool is_over(const struct compare *x)
{
    const double limit_s = x->options.compare_limit_seconds;
    return limit_s > 0 && (double)(clock_now_ns() - x->begin_ns) >= limit_s * (double)NS_PER_S;
}

/* No longer begun. */
static void leave_out(struct compare *x, struct srv_compare_row *r)
{
    x->result.left_out_count++;
    snprintf(r->missing, sizeof r->missing, "not measured: --compare-limit-seconds %g were over",
             x->options.compare_limit_seconds);
}

/* What a configuration lacks makes a row that says so; what failed ends the comparison. */
static bool is_lack(enum status st)
{
    return st == ST_LIMIT || st == ST_NOMEM || st == ST_FULL;
}

static enum status measure_all(struct compare *x, const char *placement, int share, int batches,
                               char *err)
{
    enum status st = ST_OK;
    for (int i = 0; i < mode_count(x, share) * batches && !st; i++) {
        struct srv_compare_row *r = add_row(x, placement, share, x->result.batches[i % batches],
                                            mode_name(x, share, i / batches));
        if (is_over(x)) leave_out(x, r);
        else if ((st = measure(x, r, err)))
            snprintf(r->missing, sizeof r->missing, "not measured: %.480s", err);
        if (is_lack(st) || st == ST_UNSUPPORTED) st = ST_OK; /* the next mode may do */
        srv_compare_print_row(&x->result, r);
        if (!st) st = srv_compare_write_rows(&x->result, err);
    }
    return st;
}

/* --- a loading -------------------------------------------------------------------------------- */

/* Whether the share fits in its tier, before anything is taken of it. */
static enum status check_tier(const struct compare *x, double share, char *err)
{
    const struct off_tier_spec *spec = &x->remote.spec[0];
    const double need = share * (double)x->shape.info.weight_bytes;
    char want[SIZE_TEXT_CAP], may[SIZE_TEXT_CAP], free_text[SIZE_TEXT_CAP], all[SIZE_TEXT_CAP];
    uint64_t total, available;
    if (need > (double)spec->bytes)
        return err_set(err, ST_LIMIT, "%s of weights, and --remote names %s",
                       size_text((uint64_t)need, want), size_text(spec->bytes, may));
    if (spec->mem != KN_MEM_HOST || kn_host_memory(&total, &available, NULL)) return ST_OK;
    const uint64_t room = srv_memory_host_room(total, available);
    if (need <= (double)room) return ST_OK;
    return err_set(err, ST_LIMIT,
                   "%s of weights, and of the host's memory %s may be taken (%s are available, an "
                   "eighth of %s is left to others)",
                   size_text((uint64_t)need, want), size_text(room, may),
                   size_text(available, free_text), size_text(total, all));
}

/* No more of the tier than the share takes: it costs time to reserve the host's memory. */
static void trim_tier(struct compare *x, double share)
{
    const struct off_tier_spec *spec = &x->remote.spec[0];
    const uint64_t need = (uint64_t)(share * (double)x->shape.info.weight_bytes) + TIER_SLACK_BYTES;
    const uint64_t bytes = need < spec->bytes ? need : spec->bytes;
    char *out = x->options.remote;
    if (spec->mem == KN_MEM_HOST) snprintf(out, OPT_STRING_CAP, "host:%" PRIu64 "B", bytes);
    else snprintf(out, OPT_STRING_CAP, "peer:%d:%" PRIu64 "B", spec->device, bytes);
}

static void set_place(struct compare *x, int placement, int share)
{
    struct options *o = &x->options;
    snprintf(o->placement, sizeof o->placement, "%s", x->result.placements[placement]);
    o->offload = x->result.shares[share];
    o->force_offload = o->offload > 0;
}

/* A machine for `most` sequences, whose first engine is of the mode that is measured first. */
static enum status start(struct compare *x, int share, int32_t most, char *err)
{
    uint64_t from = clock_now_ns();
    x->options.max_num_seqs = most;
    take_mode(x, most, mode_name(x, share, 0));
    enum status st = srv_startup(&x->options, hooks_of(x), &x->machine, err);
    if (!st) begin_mode(x, most, mode_name(x, share, 0));
    spend(x, SRV_COMPARE_LOADING, &from);
    return st;
}

static void stop(struct compare *x)
{
    x->mode[0] = '\0';
    srv_bench_clock_stop(&x->run.clock);
    srv_shutdown(&x->machine);
}

/* Starts up for as many sequences as fit; *batches: how many of the list. */
static enum status load(struct compare *x, int placement, int share, int *batches, char *err)
{
    struct srv_comparison *c = &x->result;
    set_place(x, placement, share);
    trim_tier(x, x->options.offload);
    enum status st = check_tier(x, x->options.offload, err);
    for (*batches = c->batch_count; *batches > 0; --*batches) {
        const int32_t most = c->batches[*batches - 1];
        if (!st) st = start(x, share, most, err);
        if (!is_lack(st)) return st;
        add_missing(x, c->placements[placement], share, most, err);
        /* What holds for the weights holds for fewer sequences too. */
        if (!check_tier(x, x->options.offload, NULL)) st = ST_OK;
    }
    return ST_OK;
}

/* One loading for all places, of the largest share, which needs the most beside it.
 * x->result.one_loading stays false where there is no room. */
static enum status load_everywhere(struct compare *x, char *err)
{
    const struct srv_comparison *c = &x->result;
    char why[ERR_CAP] = "";
    if (c->placement_count * c->share_count == 1 || check_tier(x, 1, NULL)) return ST_OK;
    x->options.everywhere = true;
    set_place(x, 0, c->share_count - 1);
    trim_tier(x, 1);
    enum status st = start(x, c->share_count - 1, c->batches[c->batch_count - 1], why);
    x->result.one_loading = !st;
    if (!st) return ST_OK;
    x->options.everywhere = false;
    if (!is_lack(st)) return err_set(err, st, "%s", why);
    log_info("bench", "each share is loaded by itself: %s", why);
    return ST_OK;
}

/* The next share's machine. */
static enum status turn_to(struct compare *x, int placement, int share, int *batches, char *err)
{
    uint64_t from = clock_now_ns();
    if (!x->result.one_loading) return load(x, placement, share, batches, err);
    *batches = x->result.batch_count;
    set_place(x, placement, share);
    x->mode[0] = '\0';
    srv_bench_clock_stop(&x->run.clock);
    enum status st = srv_startup_place(&x->options, &x->machine, err);
    spend(x, SRV_COMPARE_PLACING, &from);
    return st;
}

static enum status compare(struct compare *x, char *err)
{
    struct srv_comparison *c = &x->result;
    enum status st = load_everywhere(x, err);
    if (st) return st;
    srv_compare_print_head(c);
    for (int i = 0; i < c->placement_count * c->share_count && !st; i++) {
        const int share = i % c->share_count, placement = i / c->share_count;
        int batches = c->batch_count;
        if (placement > 0 && c->shares[share] <= 0) continue; /* nothing to place */
        if (!is_over(x)) st = turn_to(x, placement, share, &batches, err);
        if (!st && batches > 0) st = measure_all(x, c->placements[placement], share, batches, err);
        if (!x->result.one_loading) stop(x);
    }
    stop(x);
    return st;
}

int srv_compare(const struct options *o)
{
    static struct compare x; /* large, and one */
    char err[ERR_CAP] = "", why[ERR_CAP] = "";
    x.options = *o;
    x.result.options = o;
    if (check_alone(o, err) || read_lists(&x, err) || check_lengths(&x, err)) {
        fprintf(stderr, "dakd: %s\n", err);
        return 2;
    }
    x.result.unix_s = clock_unix_s();
    x.begin_ns = clock_now_ns();
    uint64_t from = x.begin_ns;
    enum status st = srv_compare_check_files(o, err);
    if (!st) st = decide(&x, err);
    if (!st) st = probe(&x, err);
    spend(&x, SRV_COMPARE_PROBING, &from);
    if (!st) st = compare(&x, err);
    if (x.result.row_count) {
        srv_compare_print_summary(&x.result);
        const enum status written = srv_compare_write_files(&x.result, st ? why : err);
        if (st && written) log_error("bench", "%s", why);
        if (!st) st = written;
    }
    if (st) log_error("bench", "%s", err);
    srv_bench_run_close(&x.run);
    free(x.result.rows);
    return st ? 1 : x.result.left_out_count ? SRV_COMPARE_EXIT_LIMIT : 0;
}
