/*
 * sample.h - choosing a token from a row of logits on the host: the reference for kn_sample, what
 * the CPU backend does for it, and what callers use who change the row first (penalties, biases).
 * Given the same row it chooses the same token as every backend's kn_sample.
 */
#ifndef DAKD_KERNELS_SAMPLE_H
#define DAKD_KERNELS_SAMPLE_H

#include "kernels/kernels.h"

struct kn_sampler; /* scratch for one vocabulary; not shared between threads */

/* ST_NOMEM. */
MUST_USE enum status kn_sampler_open(int32_t vocab, struct kn_sampler **out);
void kn_sampler_close(struct kn_sampler *s);

/* Takes a copy of logits[V]: NaN becomes -inf, +inf the largest float. */
void kn_sampler_load(struct kn_sampler *s, const float *logits);
/* The copy, [V], owned by s: the caller may change it to other finite values or -inf. */
float *kn_sampler_logits(struct kn_sampler *s);
float kn_sampler_max(const struct kn_sampler *s);
/* The token of the copy, -1 where all of it is -inf; row and score in p are not looked at. */
MUST_USE int32_t kn_sampler_choose(struct kn_sampler *s, const struct kn_sample_row *p);
/* log(sum of exp) of the copy; -inf where all of it is. */
double kn_sampler_log_sum(struct kn_sampler *s);

#endif
