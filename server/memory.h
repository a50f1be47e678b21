/*
 * memory.h - who gets how much of the machine's memory: decided before anything is loaded, and held
 * against what was loaded.
 *
 *     usable    --gpu-memory-utilization of the GPU's memory, less what others use of it
 *     step      what a step works on: activations, logits, workspaces, staging (staging.h)
 *     KV        wanted: room for --plan-batch sequences of --plan-context tokens (where neither was
 *               given: at most a quarter of what is usable), and for one of --max-model-len where
 *               that was given; or --kv-cache-memory-bytes.  It gets what is left beside the
 *               weights, up to --max-num-seqs longest sequences.  --kv-remote: more of it in a
 *               remote tier, in a pool beside the weights there
 *     weights   all local where they fit beside the KV wanted; else `--offload auto` moves out what
 *               does not, as the planner says (offload/plan.h), and no more; of a stated share
 *               --placement says which
 *
 * With --kv-remote what is wanted of KV may leave as well as weights, and the planner decides how
 * much of each, for the stated workload: both hide their free fraction behind the link, and beyond
 * it have equal shares.  --kv-cache-memory-bytes fixes what of KV is local, --offload what of the
 * weights.
 *
 * Where nothing bounds the local memory (a CPU without --hbm-size) everything fits.
 */
#ifndef DAKD_SERVER_MEMORY_H
#define DAKD_SERVER_MEMORY_H

#include "config/options.h"
#include "engine/operations.h"
#include "offload/residency.h"
#include "server/mode.h"

/* On a CPU nothing is measured: the planner gets the figures of an H200. */
#define SRV_NOMINAL_HBM_BYTES_PER_S 4720e9
/* And of a link that nobody has measured, what one of its kind gives beside that HBM. */
static inline double srv_nominal_link_bytes_per_s(enum kn_mem mem)
{
    return SRV_NOMINAL_HBM_BYTES_PER_S / (double)kn_window_default(mem).cost;
}

/* Bytes of one tier: what of the weights was asked to lie there and does, and what a decode step of
 * the planned workload reads there, predicted and of what was loaded. */
struct srv_share {
    uint64_t requested, placed;
    double predicted_read, placed_read;
    uint64_t kv_bytes; /* of the pool there */
    double kv_read;    /* of placed_read */
};

struct srv_memory {
    bool gpu;
    bool bounded;                  /* local memory has a bound */
    uint64_t total, available;     /* of local memory; 0 where the system does not say */
    uint64_t usable, step;         /* of it */
    uint64_t spare_bytes;          /* of it: weights that are read elsewhere (options.everywhere) */
    uint64_t staging;              /* of step, for the remote weights of prompts */
    uint64_t ring[OFF_MODE_COUNT]; /* of step, the largest: for those of decode steps, by mode */
    int32_t model_len;
    int32_t page_count;             /* of KV, in local memory */
    int kv_tier;                    /* that has more of it; 0: none */
    bool kv_in_place;               /* which steps read there (--kv-policy) */
    int32_t far_page_count;         /* there */
    struct off_residency residency; /* of pages, where a remote tier has some */
    struct eng_step workload;
    struct off_remote remote;
    struct off_links links; /* measured where link_count > 0 */
    bool planned;           /* by the planner; else by place.h, or nothing is remote */
    struct off_plan plan;   /* how the weights are to lie, and KV will, by operation */
    struct srv_share share[KN_TIER_MAX];
};

/* Fills *m, and says in *mo how to place; mo->plan then points into *m.  kv: the shape of the
 * cache. Where links are needed and unknown they are measured.  ST_LIMIT where the model does not
 * fit, ST_INVALID where a share is asked for that helps nothing; the sentence says what to change.
 */
MUST_USE enum status srv_memory_decide(const struct options *o, struct kn *kn, bool gpu,
                                       const struct eng_shape *shape, const struct kn_kv *kv,
                                       struct eng_model_options *mo, struct srv_memory *m,
                                       char *err);
/* Capacity of tier 0: the weights that are to lie there, and the KV cache. */
uint64_t srv_memory_local_bytes(const struct srv_memory *m, const struct kn_kv *kv);
/* Logs, a line a tier, what was asked for, what lies there and what is predicted of a step.
 * ST_DEVICE where they differ: by operation and tier from the plan, by half a tile from a share, by
 * a page of KV. */
MUST_USE enum status srv_memory_check(struct srv_memory *m, const struct off_tiers *tiers,
                                      const struct eng_model *model, const struct kn_kv *kv,
                                      char *err);

/* Of a machine opened with o->everywhere, whose weights were placed anew by mo: brings up to date
 * what follows from places, and checks it likewise.  ST_DEVICE, ST_INVALID. */
MUST_USE enum status srv_memory_place(const struct options *o, const struct eng_model_options *mo,
                                      const struct off_tiers *tiers, const struct eng_model *model,
                                      const struct kn_kv *kv, struct srv_memory *m, char *err);
/* Of the host's memory, what dakd may take: an eighth of it all is left to others. */
uint64_t srv_memory_host_room(uint64_t total, uint64_t available);

/* --- pure, for tests -------------------------------------------------------------------------- */

/* Whether tier `name` got what was asked for, to within `tolerance` bytes, and a step reads there
 * what was predicted, to within a thousandth and a mebibyte. */
MUST_USE enum status srv_share_check(const struct srv_share *share, const char *name,
                                     uint64_t tolerance, char *err);

#endif
