/*
 * sampler.h - from a row of logits to a token.  Pure: the random number of a token depends on
 * (seed, index of the token in the answer) alone, so the same request with the same seed gives the
 * same text whatever else is in the batch.  sampler.c gives the order of the steps, which is
 * vLLM's. Parameters out of their ranges stop at CHECK: requests are validated before.
 */
#ifndef DAKD_ENGINE_SAMPLER_H
#define DAKD_ENGINE_SAMPLER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/status.h"
#include "kernels/kernels.h"

#define ENG_LOGPROBS_MAX 20

struct eng_logit_bias {
    int32_t token;
    float bias; /* -100..100, added to the logit; an id given twice is biased twice */
};

struct eng_sampling {
    float temperature;                         /* 0: greedy, the lowest id among equals */
    float top_p;                               /* (0, 1]; 1: off */
    float min_p;                               /* [0, 1]; 0: off */
    int32_t top_k;                             /* 0: off */
    float presence_penalty, frequency_penalty; /* -2..2, over generated tokens */
    float repetition_penalty;                  /* > 0, over prompt and generated tokens; 1: off */
    uint64_t seed;
    int32_t max_tokens, min_tokens;
    bool ignore_eos;
    int32_t logprobs;        /* alternatives reported per token, 0..20; -1: no log-probabilities */
    int32_t prompt_logprobs; /* the same for prompt tokens; -1: none */
    const struct eng_logit_bias *bias; /* borrowed from the request */
    int32_t bias_count;
    const int32_t *stop_tokens; /* borrowed: stop_token_ids */
    int32_t stop_token_count;
};

struct eng_logprob {
    int32_t token;
    float logprob;
};

/* A sampled (or given) token with its log-probability under softmax of the raw logits, before
 * penalties, bias and temperature, as vLLM reports it. */
struct eng_sample {
    int32_t token;
    float logprob;     /* NAN where none was asked for; -INFINITY where the logit was -inf or NaN */
    int32_t rank;      /* 1 + number of tokens with a higher logit; 0 where none was asked for */
    int32_t top_count; /* min(logprobs, V) */
    struct eng_logprob top[ENG_LOGPROBS_MAX]; /* by falling logit, then rising id */
};

struct eng_sampler; /* scratch for one vocabulary; not shared between threads */

MUST_USE enum status eng_sampler_open(int32_t vocab, struct eng_sampler **out);
void eng_sampler_close(struct eng_sampler *s);

/* logits[V] is read, not changed.  tokens[0..prompt_count) is the prompt,
 * tokens[prompt_count..total) what was generated, all in [0, V).  eos[] are masked while fewer than
 * min_tokens were generated (so are stop_tokens), also with ignore_eos; ids out of the vocabulary
 * among these are skipped, and a mask that would leave nothing to choose is not applied.  Logits of
 * -inf and NaN are never chosen, +inf counts as the largest float; ST_DEVICE where all are -inf or
 * NaN. */
MUST_USE enum status eng_sample_token(struct eng_sampler *s, const struct eng_sampling *p,
                                      const float *logits, const int32_t *tokens,
                                      int32_t prompt_count, int32_t total, const int32_t *eos,
                                      int32_t eos_count, struct eng_sample *out);
/* First 53 bits of Philox4x32-10(key = seed, counter = index) as a number in [0, 1). */
double eng_sampler_uniform(uint64_t seed, uint64_t index);
/* What kn_sample is asked for the token at index `generated` of an answer, `row` aside. */
struct kn_sample_row eng_sampler_row(const struct eng_sampling *p, int32_t generated);
/* Whether that token's logits are to be changed before a token is chosen: then eng_sample_token
 * must, otherwise kn_sample chooses the same token. */
bool eng_sampler_adjusts(const struct eng_sampling *p, int32_t generated);
/* Log-probabilities of a given token (for echoed prompts): `count` alternatives, 0..20.  A row of
 * -inf and NaN alone gives log-probabilities of NAN. */
void eng_score_token(struct eng_sampler *s, const float *logits, int32_t token, int32_t count,
                     struct eng_sample *out);

#endif
