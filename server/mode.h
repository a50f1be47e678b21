/*
 * mode.h - --offload-mode on a machine: what start-up sets aside for it, and how it is taken on and
 * changed.
 *
 *     read      of the options; a backend without a copy engine has direct alone, which auto is
 *     reserve   before anything is placed: GPU memory for the ring of decode steps' copies, counted
 *               to what a step works on
 *     apply     once weights have their places, and again at will while no engine is open: which
 *               share is copied (offload/mix.h, from the links' measured rates), through what ring,
 *               by which kernels the rest is read, in which windows, how prompts' weights come
 *
 *                 decode steps                            prompts                  windows
 *     direct      in place                                in place                 as they are set
 *     prefetch    copied, but the head and tables         copied                   static
 *     uva         plain loads                             plain loads              none
 *     auto        in place, and a share copied            copied                   as they are set
 *
 * auto tries: where the model of offload/mix.h cannot tell apart nothing copied, the share it likes
 * best and parts, a step of the workload is timed each way (engine/trial.h), and with all copied,
 * and the fastest is taken.  Near the free fraction link and HBM take equally long, and what
 * decides is what no sum of bytes shows: tiles that make one product's link late, SMs that all wait
 * for a word.
 *
 * Windows adapt to what is read in place; where nine tenths of a tier are copied, what is left
 * tells too little, and the window is kept.
 */
#ifndef DAKD_SERVER_MODE_H
#define DAKD_SERVER_MODE_H

#include "config/options.h"
#include "engine/operations.h"
#include "engine/stage.h"

struct srv_machine;

struct srv_mode {
    enum off_mode mode;
    struct eng_step workload; /* that the share is right for */
    /* Of a decode step, by tier: bytes read, those of them copied, and their share.  KV that lies
     * in remote tiers is left out; local_kv_bytes: what of [0] is KV. */
    double local_kv_bytes;
    double step_bytes[KN_TIER_MAX], copied_bytes[KN_TIER_MAX], share[KN_TIER_MAX];
    struct eng_staged staged;
    double predicted_s, direct_s; /* by off_mix: so, and with nothing copied; 0: links unknown */
    double measured_s;            /* of a step, where auto tried several ways; or 0 */
    bool applied;
};

/* ST_UNSUPPORTED, with a sentence, where `gpu` is false and the mode needs one.  ST_INVALID: a flag
 * of another mode. */
MUST_USE enum status srv_mode_read(const struct options *o, bool gpu, enum off_mode *out,
                                   char *err);
/* Whether any mode of this loading, now or later, copies the weights of prompts ahead. */
bool srv_mode_fetches_prompts(const struct options *o);
/* The bytes of the ring for `share` of the weights in remote tiers, by mode: 0 for those that have
 * none, and those that this loading never takes on.  ST_INVALID: --offload-staging-bytes is no
 * size. */
MUST_USE enum status srv_mode_reserve(const struct options *o, const struct eng_model_info *info,
                                      double share, bool gpu, uint64_t out[OFF_MODE_COUNT],
                                      char *err);
/* Takes on o's mode, for the workload of o's --plan-batch and --plan-context where they are given
 * and else start-up's: fills m->mode and m->control, of m->control_read.  No engine is open.  Costs
 * nothing where both are as before.  ST_NOMEM says which flag to lower; else as srv_mode_read,
 * srv_staging_open, kn_stage and kn_set_remote_access. */
MUST_USE enum status srv_mode_apply(const struct options *o, struct srv_machine *m, char *err);
/* Logs, a line a remote tier, how it is read. */
void srv_mode_log(const struct srv_machine *m);

#endif
