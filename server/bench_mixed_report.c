#include "server/bench_mixed_report.h"

#include "config/buf.h"
#include "config/version.h"
#include "server/bench_report.h"
#include "server/output.h"

#define JSON_BYTES_MAX ((size_t)1 << 20)
#define MS 1e3

void srv_bench_mixed_print(const struct srv_bench_mixed_run *run,
                           const struct srv_bench_mixed_result *results, int count)
{
    const struct options *o = run->options;
    printf("dakd %s (%s), %s\n", version_string(), version_commit(), kn_name(run->machine->kn));
    srv_bench_print_model(o, run->machine);
    putchar('\n');
    printf("%d sequences decode (contexts of %d to %d tokens); %lld prompts of %lld tokens arrive, "
           "%g a second, with answers of %lld tokens\n\n",
           run->beside, run->beside_prompt, run->beside_length, (long long)o->num_prompts,
           (long long)o->input_len, o->request_rate, (long long)o->output_len);
    printf("%-18s %19s  %29s  %21s  %18s\n", "", "TTFT, ms", "ITL, ms", "tokens/s",
           "prompts beside them");
    printf("%6s %11s %9s %9s  %7s %7s %7s %7s  %10s %10s  %9s %8s %8s\n", "tokens", "ITL target",
           "median", "P99", "alone", "median", "mean", "P99", "prompts", "decodes", "tokens/st",
           "cut", "over");
    for (int i = 0; i < count; i++) {
        const struct srv_bench_mixed_result *r = &results[i];
        char target[16] = "-";
        if (r->itl_target_ms > 0) snprintf(target, sizeof target, "%.4g", r->itl_target_ms);
        printf("%6d %11s %9.1f %9.1f  %7.2f %7.2f %7.2f %7.2f  %10.0f %10.0f  %9.0f %8llu %8llu\n",
               r->tokens_step_max, target, r->ttft_s.median * MS, r->ttft_s.p99 * MS,
               r->alone_s.median * MS, r->itl_s.median * MS, r->itl_s.mean * MS, r->itl_s.p99 * MS,
               r->prompt_tokens_per_s, r->decode_tokens_per_s, r->mixed_prompt_tokens,
               (unsigned long long)r->held_back_steps, (unsigned long long)r->over_steps);
    }
    puts("\nalone: median before the first prompt came.  tokens/st: of prompts in a step that has\n"
         "decodes.  cut: steps from which the target kept tokens.  over: steps beyond the target.");
}

static void put_summary(struct buf *b, const char *name, const struct srv_bench_summary *s)
{
    buf_printf(b, ", \"%s_mean_ms\": %.9g, \"%s_median_ms\": %.9g, \"%s_p99_ms\": %.9g", name,
               s->mean * MS, name, s->median * MS, name, s->p99 * MS);
}

static void put_result(struct buf *b, const struct srv_bench_mixed_run *run,
                       const struct srv_bench_mixed_result *r)
{
    const struct options *o = run->options;
    srv_bench_json_head(b, o, run->machine, o->congestion_control, run->unix_s);
    buf_printf(b, ",\n  \"decoding_sequences\": %d, \"request_rate_per_s\": %.9g", run->beside,
               o->request_rate);
    buf_printf(b, ", \"prompts\": %lld, \"input_tokens\": %lld, \"output_tokens\": %lld",
               (long long)o->num_prompts, (long long)o->input_len, (long long)o->output_len);
    buf_printf(b, ",\n  \"step_tokens_max\": %d, \"itl_target_ms\": %.9g", r->tokens_step_max,
               r->itl_target_ms);
    put_summary(b, "ttft", &r->ttft_s);
    put_summary(b, "itl_alone", &r->alone_s);
    put_summary(b, "itl", &r->itl_s);
    buf_printf(b, ",\n  \"duration_s\": %.9g, \"prompt_tokens_per_s\": %.9g", r->duration_s,
               r->prompt_tokens_per_s);
    buf_printf(b, ", \"decode_tokens_per_s\": %.9g", r->decode_tokens_per_s);
    buf_printf(b, ", \"mixed_step_count\": %llu, \"mixed_step_prompt_tokens_mean\": %.9g",
               (unsigned long long)r->mixed_steps, r->mixed_prompt_tokens);
    buf_printf(b, ", \"held_back_step_count\": %llu, \"over_target_step_count\": %llu\n}",
               (unsigned long long)r->held_back_steps, (unsigned long long)r->over_steps);
}

enum status srv_bench_mixed_json(const struct srv_bench_mixed_run *run,
                                 const struct srv_bench_mixed_result *results, int count, char *err)
{
    struct buf b;
    buf_init(&b, JSON_BYTES_MAX);
    buf_puts(&b, "[\n");
    for (int i = 0; i < count; i++) {
        if (i) buf_puts(&b, ",\n");
        put_result(&b, run, &results[i]);
    }
    buf_puts(&b, "\n]\n");
    enum status st = srv_output_write("--json", run->options->json, &b, err);
    buf_deinit(&b);
    return st;
}
