/*
 * trial.h - how long a decode step takes, by computing some: what start-up asks where a model of
 * the machine (offload/mix.h) cannot tell two ways of reading remote weights apart.
 */
#ifndef DAKD_ENGINE_TRIAL_H
#define DAKD_ENGINE_TRIAL_H

#include "engine/model.h"

struct eng_trial {
    int32_t seq_count, context; /* sequences, at most the model's tokens and rows; tokens of each */
    int32_t page_count; /* of kv's local pool, 1 and more; sequences may have to share them */
    bool record;        /* where the backend does */
};

/* The median of the times that the machine worked on a step of that kind, as weights lie and are
 * staged now.  Pages are overwritten, nothing is under way before or after, and recordings are
 * dropped.  Takes some 50 ms, or six steps where these are long.  ST_NOMEM, ST_DEVICE. */
MUST_USE enum status eng_model_try_step(struct eng_model *model, const struct kn_kv *kv,
                                        const struct eng_trial *trial, double *seconds, char *err);

#endif
