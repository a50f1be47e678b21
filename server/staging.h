/*
 * staging.h - --prefill-staging-bytes: the GPU memory through which the copy engine brings remote
 * weights to the products of prompts (kn_fetch_reserve), as start-up decides it.
 *
 *     choose    before anything is placed: what to set aside; counted to what a step works on
 *     open      once weights have their places: takes it, or says why it would not do
 *
 * Steps of up to KN_FETCH_TOKENS tokens, and all steps of a CPU, need none.
 */
#ifndef DAKD_SERVER_STAGING_H
#define DAKD_SERVER_STAGING_H

#include "config/options.h"
#include "engine/traffic.h"

/* *out: the bytes for `share` of the weights in remote tiers; 0 where no step needs any, nor any
 * mode that the loading takes on (mode.h).  auto is the remote part of a mean layer and a half,
 * rounded up for tables that stay and for whole tiles, and that of the head where more than
 * KN_FETCH_TOKENS sequences decode together.  ST_INVALID: neither auto nor a size. */
MUST_USE enum status srv_staging_choose(const struct options *o, const struct eng_model_info *info,
                                        double share, bool gpu, uint64_t *out, char *err);
/* Takes `bytes` of the GPU's memory, in place of what there was; *taken is 0 where no product of
 * prompts has remote tiles. ST_LIMIT: a product's remote part is larger, or there is none and steps
 * are so large that remote weights would cross their link more than once.  ST_NOMEM, ST_DEVICE. */
MUST_USE enum status srv_staging_open(const struct options *o, const struct eng_traffic *t,
                                      bool gpu, uint64_t bytes, struct kn *kn, uint64_t *taken,
                                      char *err);

#endif
