/*
 * startup.h - from settings to a running engine: everything that is sized and loaded before the
 * daemon listens.
 *
 *     settings -> backend -> shapes -> who gets what (memory.c) -> tiers -> weights -> engine
 *
 * Start-up prints what it decided, one line a decision, and stops at the first thing that does not
 * fit with a sentence that says which flag to change.
 */
#ifndef DAKD_SERVER_STARTUP_H
#define DAKD_SERVER_STARTUP_H

#include "config/options.h"
#include "engine/engine.h"
#include "server/memory.h"

/* Of --gpu-memory-utilization 0. */
#define SRV_GPU_UTILIZATION_DEFAULT 0.9

struct srv_machine {
    struct kn *kn;
    struct off_tiers *tiers;
    struct eng_model *model;
    struct eng_engine *engine;
    struct kn_kv kv;
    struct srv_memory memory;
    struct off_control control_read[KN_TIER_MAX]; /* of the remote tiers, as the flags have it */
    struct off_control control[KN_TIER_MAX];      /* and to begin with, in the mode taken on */
    struct srv_mode mode;
    uint64_t staging_bytes; /* GPU memory that prompts' remote weights are copied through; or 0 */
    int32_t model_len_max;
    int32_t page_count; /* of KV, in local memory */
    double step_base_s; /* of a step's weights, at least; 0: not known */
    int32_t queue_max;  /* sequences that may be unfinished at a time */
};

struct srv_startup_hooks {
    void (*wake)(void *wake_user); /* eng_config.wake */
    void *wake_user;
    void (*progress)(void *progress_user, int percent); /* of loading; at most once per percent */
    void *progress_user;
};

/* All of it, or an error sentence and nothing left open. */
MUST_USE enum status srv_startup(const struct options *o, const struct srv_startup_hooks *hooks,
                                 struct srv_machine *m, char *err);
/* Closes the engine of an opened machine and opens another by o, whose limits are no larger than
 * those the machine was opened with, and whose mode is one of those (mode.h).  On failure there is
 * none, and the machine is still to be shut down. */
MUST_USE enum status srv_startup_engine(const struct options *o,
                                        const struct srv_startup_hooks *hooks,
                                        struct srv_machine *m, char *err);
/* Of a machine opened with o->everywhere: closes its engine, and has o's share of the weights read
 * from the remote tier instead, placed by o's --placement.  o differs from what the machine was
 * opened with in nothing else.  srv_startup_engine comes next.  ST_DEVICE where the places are not
 * those that were asked for. */
MUST_USE enum status srv_startup_place(const struct options *o, struct srv_machine *m, char *err);
/* The backend that computes, as --device and --threads have it, and whether it is a GPU's. */
MUST_USE enum status srv_startup_backend(const struct options *o, bool *gpu, struct kn **kn,
                                         char *err);
/* What start-up decides before the machine is open, for `dakd plan` as well: options of the model;
 * what a step works on beside the tiers, in bytes; the shape of the KV cache (base[] NULL). */
struct eng_model_options srv_startup_model_options(const struct options *o);
uint64_t srv_startup_step_bytes(const struct eng_model_options *mo,
                                const struct eng_model_info *info, int32_t model_len);
MUST_USE enum status srv_startup_shape_kv(const struct options *o,
                                          const struct eng_model_info *info, struct kn_kv *kv,
                                          char *err);
void srv_shutdown(struct srv_machine *m);

#endif
