#include "server/compare_report.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "config/check.h"
#include "config/clock.h"
#include "config/version.h"
#include "server/output.h"
#include "server/probe.h"

#define MS 1e3
#define GB 1e9
#define MB 1e6
#define FILE_BYTES_MAX ((size_t)4 << 20)
#define PATH_CAP (OPT_STRING_CAP + 32)

static const char *const phases[SRV_COMPARE_PHASES] = {"probing", "loading", "placing", "opening",
                                                       "measuring"};

/* --- for people ------------------------------------------------------------------------------- */

void srv_compare_print_head(const struct srv_comparison *c)
{
    const struct options *o = c->options;
    char date[CLOCK_TEXT_CAP];
    printf("dakd %s (%s), %s, %s\n", version_string(), version_commit(), c->backend,
           clock_text(c->unix_s, date));
    printf("%s%s%s (%s), weights %s, remote %s, %lld prompt and at most %lld answer tokens, "
           "congestion "
           "control %s\n",
           o->model_dir, o->hf_overrides[0] ? " " : "", o->hf_overrides, c->architecture, c->dtype,
           o->remote, (long long)o->input_len, (long long)o->output_len, o->congestion_control);
    if (o->given_context)
        puts("the prompts' KV is random and was not computed: the same bytes are read of it");
    if (c->one_loading)
        puts("all shares of one loading: both memories hold all weights, and a share is read");
    printf("hbm %.2f GB/s, %s %.2f GB/s", c->rate[SRV_COMPARE_HBM] / GB, c->tier,
           c->rate[SRV_COMPARE_LINK] / GB);
    if (c->copy_bytes_per_s > 0) printf(" (copy engine %.2f)", c->copy_bytes_per_s / GB);
    printf(", free fraction %.4f\n\n", srv_compare_free_share(c->rate));
    printf("%-5s %7s %5s %-8s %5s %10s %10s %10s %10s %6s %6s %9s %9s %6s %6s %s\n", "", "", "", "",
           "", "", "", "effective", "EB(x)", "of", "of the", "HBM", c->tier, "of", "of it", "");
    printf("%-5s %7s %5s %-8s %5s %10s %10s %10s %10s %6s %6s %9s %9s %6s %6s %s\n", "place",
           "offload", "batch", "mode", "steps", "TPOT ms", "tokens/s", "GB/s", "GB/s", "EB(x)",
           "limit", "GB/s", "GB/s", "copy", "copied", "limit");
    fflush(stdout);
}

static void print_share(double value)
{
    if (isfinite(value)) printf(" %6.3f", value);
    else printf(" %6s", "-");
}

void srv_compare_print_row(const struct srv_comparison *c, const struct srv_compare_row *r)
{
    printf("%-5s %6.4f%c %5d %-8s", r->placement, r->offload, r->free ? '*' : ' ', r->batch,
           r->mode);
    if (r->missing[0]) {
        printf(" %s\n", r->missing);
    } else {
        printf(" %5lld %10.4f %10.1f %10.2f %10.2f", (long long)r->steps, r->tpot_s * MS,
               r->tokens_per_s, srv_compare_bandwidth(r) / GB, srv_compare_model_bandwidth(r) / GB);
        print_share(r->model_s / r->tpot_s);
        print_share(r->limit_s / r->tpot_s);
        printf(" %9.2f %9.2f", (double)r->bytes[SRV_COMPARE_HBM] / r->tpot_s / GB,
               srv_compare_link_bandwidth(r) / GB);
        print_share(srv_compare_of_copy(c, r));
        print_share(r->copied[SRV_COMPARE_LINK] / r->counted[SRV_COMPARE_LINK]);
        printf(" %s\n", srv_compare_bound_name(c, r->limit_bound));
    }
    fflush(stdout);
}

static void print_summary_line(const struct srv_comparison *c, const char *placement, int share,
                               int32_t batch)
{
    const struct srv_compare_row *best = srv_compare_best_other(c, placement, share, batch);
    const struct srv_compare_row *own =
        c->shares[share] > 0 ? srv_compare_find(c, placement, share, batch, SRV_COMPARE_AUTO)
                             : NULL; /* there, all modes are one */
    printf("%-5s %6.4f%c %5d", placement, c->shares[share], share == c->free_index ? '*' : ' ',
           batch);
    for (int m = 0; m < c->mode_count; m++) {
        const struct srv_compare_row *r = srv_compare_find(c, placement, share, batch, c->modes[m]);
        if (r) printf(" %10.4f", r->tpot_s * MS);
        else printf(" %10s", "-");
    }
    if (own && best) printf(" %10.4f", own->tpot_s / best->tpot_s);
    else printf(" %10s", "-");
    const struct srv_compare_row *shown = own ? own : best;
    if (shown) {
        printf("    %-8s", shown->mode);
        print_share(shown->model_s / shown->tpot_s);
        print_share(shown->limit_s / shown->tpot_s);
        print_share(srv_compare_of_copy(c, shown));
    }
    putchar('\n');
}

/* auto over everything that was measured, a line a figure. */
static void print_sum(const struct srv_comparison *c)
{
    struct srv_compare_sum sum;
    srv_compare_sum_up(c, &sum);
    const struct {
        const char *name;
        const struct srv_compare_figure *figure;
    } lines[] = {{"auto over the best other mode, time", &sum.over_best},
                 {"of the copy engine's rate, where that is the limit", &sum.of_copy},
                 {"of EB(x), the planner's effective bandwidth", &sum.of_model},
                 {"of the limit of all bytes and all arithmetic", &sum.of_limit}};
    putchar('\n');
    for (size_t i = 0; i < ARRAY_COUNT(lines); i++) {
        const struct srv_compare_figure *f = lines[i].figure;
        if (!f->row) continue;
        printf("%-50s median %.4f, worst %.4f (%s, %.4f, batch %d), of %d\n", lines[i].name,
               f->median, f->worst, f->row->placement, f->row->offload, f->row->batch, f->count);
    }
}

static void print_doubt(const struct srv_comparison *c)
{
    const double best = srv_compare_faster_than_copy(c);
    if (best > 0)
        printf("the copy engine was probed at %.2f GB/s and a step got %.2f of the link: it was "
               "disturbed then, and limits and ratios made of it are too low and too high\n",
               c->copy_bytes_per_s / GB, best / GB);
}

static void print_spent(const struct srv_comparison *c)
{
    double all = 0;
    for (int i = 0; i < SRV_COMPARE_PHASES; i++) all += c->spent_s[i];
    printf("took %.1f s:", all);
    for (int i = 0; i < SRV_COMPARE_PHASES; i++)
        printf("%s %s %.1f", i ? "," : "", phases[i], c->spent_s[i]);
    printf("; %d configurations", c->row_count);
    if (c->left_out_count) printf(", %d of them not measured for want of time", c->left_out_count);
    putchar('\n');
}

void srv_compare_print_summary(const struct srv_comparison *c)
{
    printf("\n%-5s %7s %5s", "place", "offload", "batch");
    for (int m = 0; m < c->mode_count; m++) printf(" %10s", c->modes[m]);
    printf(" %10s    %-8s %6s %6s %6s   TPOT ms; * the free fraction\n", "auto/best", "of which",
           "/EB(x)", "/limit", "/copy");
    for (int p = 0; p < c->placement_count; p++)
        for (int s = 0; s < c->share_count; s++)
            for (int b = 0; b < c->batch_count; b++) {
                if (p > 0 && c->shares[s] <= 0) continue;
                print_summary_line(c, c->placements[p], s, c->batches[b]);
            }
    print_sum(c);
    print_doubt(c);
    print_spent(c);
}

/* --- for programs ----------------------------------------------------------------------------- */

/* A figure of a row that was measured, under the same name in CSV and JSON. */
struct column {
    const char *name;
    double (*value)(const struct srv_comparison *c, const struct srv_compare_row *r);
};

#define VALUE(name, expression)                                                                    \
    static double name(const struct srv_comparison *c, const struct srv_compare_row *r)            \
    {                                                                                              \
        (void)c;                                                                                   \
        return expression;                                                                         \
    }
VALUE(placed, r->placed)
VALUE(steps, (double)r->steps)
VALUE(context, r->context)
VALUE(tpot_ms, r->tpot_s *MS)
VALUE(tokens_per_s, r->tokens_per_s)
VALUE(hbm_bytes, (double)r->bytes[SRV_COMPARE_HBM])
VALUE(link_bytes, (double)r->bytes[SRV_COMPARE_LINK])
VALUE(hbm_counted, r->counted[SRV_COMPARE_HBM])
VALUE(link_counted, r->counted[SRV_COMPARE_LINK])
VALUE(link_copied, r->copied[SRV_COMPARE_LINK])
VALUE(predicted_ms, r->predicted_s > 0 ? r->predicted_s * MS : NAN)
VALUE(hbm_ms, (double)r->bytes[SRV_COMPARE_HBM] / c->best[SRV_COMPARE_HBM] * MS)
VALUE(link_ms, (double)r->bytes[SRV_COMPARE_LINK] / c->best[SRV_COMPARE_LINK] * MS)
VALUE(model_ms, r->model_s *MS)
VALUE(limit_ms, r->limit_s *MS)
VALUE(over_limit, r->limit_s / r->tpot_s)
VALUE(bandwidth, srv_compare_bandwidth(r))
VALUE(model_bandwidth, srv_compare_model_bandwidth(r))
VALUE(over_model, r->model_s / r->tpot_s)
VALUE(link_bandwidth, srv_compare_link_bandwidth(r))
VALUE(over_copy, srv_compare_of_copy(c, r))
VALUE(outside, r->host_share)

static const struct column columns[] = {
    {"placed_ratio", placed},
    {"steady_step_count", steps},
    {"context_mean_tokens", context},
    {"tpot_ms", tpot_ms},
    {"decode_tokens_per_s", tokens_per_s},
    {"step_hbm_bytes", hbm_bytes},
    {"step_link_bytes", link_bytes},
    {"step_hbm_counted_bytes", hbm_counted},
    {"step_link_counted_bytes", link_counted},
    {"step_link_copied_bytes", link_copied},
    {"hbm_at_least_ms", hbm_ms},
    {"link_at_least_ms", link_ms},
    {"model_floor_ms", model_ms},
    {"limit_ms", limit_ms},
    {"limit_over_tpot_ratio", over_limit},
    {"mode_predicted_ms", predicted_ms},
    {"effective_bytes_per_s", bandwidth},
    {"model_bytes_per_s", model_bandwidth},
    {"effective_over_model_ratio", over_model},
    {"link_bytes_per_s", link_bandwidth},
    {"link_over_copy_engine_ratio", over_copy},
    {"engine_outside_device_ratio", outside},
};

/* Quoted as RFC 4180 has it. */
static void put_csv_text(struct buf *b, const char *text)
{
    buf_putc(b, '"');
    for (const char *p = text; *p; p++) {
        if (*p == '"') buf_putc(b, '"');
        buf_putc(b, *p);
    }
    buf_putc(b, '"');
}

void srv_compare_put_csv(struct buf *b, const struct srv_comparison *c)
{
    buf_puts(b, "placement,offload_ratio,is_free_fraction,batch_sequences,mode");
    for (size_t i = 0; i < ARRAY_COUNT(columns); i++) buf_printf(b, ",%s", columns[i].name);
    buf_puts(b, ",bound,limit_bound,missing\n");
    for (int i = 0; i < c->row_count; i++) {
        const struct srv_compare_row *r = &c->rows[i];
        buf_printf(b, "%s,%.6g,%d,%d,%s", r->placement, r->offload, r->free, r->batch, r->mode);
        for (size_t k = 0; k < ARRAY_COUNT(columns); k++) {
            const double v = r->missing[0] ? NAN : columns[k].value(c, r);
            if (isfinite(v)) buf_printf(b, ",%.9g", v);
            else buf_putc(b, ',');
        }
        buf_printf(b, ",%s", r->missing[0] ? "" : srv_compare_bound_name(c, r->bound));
        buf_printf(b, ",%s,", r->missing[0] ? "" : srv_compare_bound_name(c, r->limit_bound));
        if (r->missing[0]) put_csv_text(b, r->missing);
        buf_putc(b, '\n');
    }
}

static void put_text(struct buf *b, const char *before, const char *key, const char *value)
{
    buf_printf(b, "%s\"%s\": ", before, key);
    buf_put_json_string(b, value, strlen(value));
}

static void put_row(struct buf *b, const struct srv_comparison *c, const struct srv_compare_row *r)
{
    put_text(b, "    {", "placement", r->placement);
    put_text(b, ", ", "mode", r->mode);
    buf_printf(b, ", \"offload_ratio\": %.9g, \"is_free_fraction\": %s, \"batch_sequences\": %d",
               r->offload, r->free ? "true" : "false", r->batch);
    if (r->missing[0]) {
        put_text(b, ", ", "missing", r->missing);
    } else {
        for (size_t k = 0; k < ARRAY_COUNT(columns); k++) {
            const double v = columns[k].value(c, r);
            if (isfinite(v)) buf_printf(b, ", \"%s\": %.12g", columns[k].name, v);
        }
        put_text(b, ", ", "bound", srv_compare_bound_name(c, r->bound));
        put_text(b, ", ", "limit_bound", srv_compare_bound_name(c, r->limit_bound));
    }
    buf_putc(b, '}');
}

static void put_figure(struct buf *b, const char *name, const struct srv_compare_figure *f)
{
    if (!f->row) return;
    buf_printf(b, ",\n  \"%s_median_ratio\": %.6g, \"%s_worst_ratio\": %.6g, \"%s_count\": %d",
               name, f->median, name, f->worst, name, f->count);
}

static void put_sum(struct buf *b, const struct srv_comparison *c)
{
    struct srv_compare_sum sum;
    srv_compare_sum_up(c, &sum);
    buf_printf(b, ",\n  \"copy_engine_probed_low\": %s",
               srv_compare_faster_than_copy(c) > 0 ? "true" : "false");
    put_figure(b, "auto_over_best_other", &sum.over_best);
    put_figure(b, "auto_link_over_copy_engine", &sum.of_copy);
    put_figure(b, "auto_effective_over_model", &sum.of_model);
    put_figure(b, "auto_limit_over_time", &sum.of_limit);
}

void srv_compare_put_json(struct buf *b, const struct srv_comparison *c)
{
    const struct options *o = c->options;
    char date[CLOCK_TEXT_CAP];
    put_text(b, "{\n  ", "version", version_string());
    put_text(b, ",\n  ", "commit", version_commit());
    put_text(b, ",\n  ", "date", clock_text(c->unix_s, date));
    put_text(b, ",\n  ", "backend", c->backend);
    put_text(b, ",\n  ", "device", c->device);
    put_text(b, ",\n  ", "model", o->model_dir);
    put_text(b, ",\n  ", "hf_overrides", o->hf_overrides);
    put_text(b, ",\n  ", "architecture", c->architecture);
    put_text(b, ",\n  ", "load_format", o->load_format);
    put_text(b, ",\n  ", "weight_dtype", c->dtype);
    put_text(b, ",\n  ", "remote", o->remote);
    put_text(b, ",\n  ", "tier", c->tier);
    put_text(b, ",\n  ", "congestion_control", o->congestion_control);
    buf_printf(b, ",\n  \"input_tokens_per_sequence\": %lld, \"step_tokens_max\": %lld",
               (long long)o->input_len, (long long)o->max_num_batched_tokens);
    buf_printf(b, ",\n  \"hbm_read_bytes_per_s\": %.12g, \"link_read_bytes_per_s\": %.12g",
               c->rate[SRV_COMPARE_HBM], c->rate[SRV_COMPARE_LINK]);
    buf_printf(b, ",\n  \"copy_engine_bytes_per_s\": %.12g, \"free_fraction_ratio\": %.12g",
               c->copy_bytes_per_s, srv_compare_free_share(c->rate));
    put_sum(b, c);
    buf_printf(b, ",\n  \"given_context\": %s", o->given_context ? "true" : "false");
    for (int i = 0; i < SRV_COMPARE_PHASES; i++)
        buf_printf(b, ", \"%s_s\": %.6g", phases[i], c->spent_s[i]);
    buf_printf(b, ",\n  \"not_measured_for_want_of_time_count\": %d", c->left_out_count);
    buf_puts(b, ",\n  \"rows\": [\n");
    for (int i = 0; i < c->row_count; i++) {
        put_row(b, c, &c->rows[i]);
        buf_puts(b, i + 1 < c->row_count ? ",\n" : "\n");
    }
    buf_puts(b, "  ]\n}\n");
}

/* --- files ------------------------------------------------------------------------------------ */

static void put_window_svg(struct buf *b, const struct srv_comparison *c)
{
    srv_probe_put_svg(b, &c->links);
}

/* flag, what its argument is followed by, and what is put there. */
static const struct output {
    const char *flag, *ending;
    size_t path; /* offset in struct options */
    void (*put)(struct buf *b, const struct srv_comparison *c);
} outputs[] = {
    {"--csv", "", offsetof(struct options, csv), srv_compare_put_csv},
    {"--json", "", offsetof(struct options, json), srv_compare_put_json},
    {"--svg", "-bandwidth.svg", offsetof(struct options, svg), srv_compare_put_bandwidth_svg},
    {"--svg", "-tpot.svg", offsetof(struct options, svg), srv_compare_put_tpot_svg},
    {"--svg", "-window.svg", offsetof(struct options, svg), put_window_svg},
};
#define ROW_OUTPUTS 2 /* the first, which hold rows */

/* "": not asked for. */
static void path_of(const struct output *out, const struct options *o, char path[PATH_CAP])
{
    const char *given = (const char *)o + out->path;
    snprintf(path, PATH_CAP, "%s%s", given, given[0] ? out->ending : "");
}

enum status srv_compare_check_files(const struct options *o, char *err)
{
    enum status st = ST_OK;
    for (size_t i = 0; i < ARRAY_COUNT(outputs) && !st; i++) {
        char path[PATH_CAP];
        path_of(&outputs[i], o, path);
        st = srv_output_check(outputs[i].flag, path, err);
    }
    return st;
}

static enum status write_first(const struct srv_comparison *c, size_t count, char *err)
{
    enum status st = ST_OK;
    for (size_t i = 0; i < count && !st; i++) {
        char path[PATH_CAP];
        struct buf b;
        path_of(&outputs[i], c->options, path);
        buf_init(&b, FILE_BYTES_MAX);
        if (path[0]) outputs[i].put(&b, c);
        st = srv_output_write(outputs[i].flag, path, &b, err);
        buf_deinit(&b);
    }
    return st;
}

enum status srv_compare_write_rows(const struct srv_comparison *c, char *err)
{
    return write_first(c, ROW_OUTPUTS, err);
}

enum status srv_compare_write_files(const struct srv_comparison *c, char *err)
{
    return write_first(c, ARRAY_COUNT(outputs), err);
}
