/*
 * sample.c - kn_sample on the CPU: row after row by the host's sampler (kernels/sample.c).
 */
#include <math.h>
#include <stdlib.h>

#include "config/check.h"
#include "kernels/cpu/cpu.h"

enum status kn_cpu_sample_reserve(struct kn *kn, int32_t vocab, int32_t row_max, char *err)
{
    struct kn_cpu *cpu = (struct kn_cpu *)kn;
    if (row_max > cpu->chosen_max) {
        int32_t *chosen = realloc(cpu->chosen, (size_t)row_max * sizeof *chosen);
        if (!chosen) return err_set(err, ST_NOMEM, "no memory for %d sampled tokens", row_max);
        cpu->chosen = chosen;
        cpu->chosen_max = row_max;
    }
    if (cpu->sampler && cpu->sampler_vocab == vocab) return ST_OK;
    kn_sampler_close(cpu->sampler);
    cpu->sampler_vocab = vocab;
    if (kn_sampler_open(vocab, &cpu->sampler) == ST_OK) return ST_OK;
    return err_set(err, ST_NOMEM, "no memory for sampling from %d tokens", vocab);
}

/* The row is still in the sampler as it was loaded. */
static void score(struct kn_sampler *s, int32_t vocab, struct kn_sampled *out)
{
    const float *logits = kn_sampler_logits(s);
    const float own = logits[out->token];
    out->logprob = (float)((double)own - kn_sampler_log_sum(s));
    out->rank = 1;
    for (int32_t i = 0; i < vocab; i++) out->rank += logits[i] > own;
}

void kn_cpu_sample(struct kn *kn, const struct kn_sample_args *a)
{
    struct kn_cpu *cpu = (struct kn_cpu *)kn;
    CHECK(cpu->sampler && cpu->sampler_vocab == a->vocab && a->row_count <= cpu->chosen_max);
    for (int32_t i = 0; i < a->row_count; i++) {
        const struct kn_sample_row *r = &a->rows[i];
        kn_sampler_load(cpu->sampler, a->logits + (size_t)r->row * (size_t)a->vocab);
        a->out[i] =
            (struct kn_sampled){.token = kn_sampler_choose(cpu->sampler, r), .logprob = NAN};
        cpu->chosen[i] = a->out[i].token;
        if (r->score && a->out[i].token >= 0) score(cpu->sampler, a->vocab, &a->out[i]);
    }
}
