/*
 * engine_state.h - struct eng_engine and the step, shared by engine.c (queues, thread), step.c (one
 * step from its plan to its tokens) and warm_up.c; private to them.
 */
#ifndef DAKD_ENGINE_ENGINE_STATE_H
#define DAKD_ENGINE_ENGINE_STATE_H

#include <pthread.h>

#include "engine/engine.h"
#include "engine/traffic.h"

/* A sequence of a step.  Its request may end, and be freed, while the step is computed: it is
 * live[slot] as long as its arrival is this one. */
struct eng_step_item {
    int32_t slot;
    uint64_t arrival;
    int32_t token_begin, token_count;
    int32_t generated; /* index in the answer of the token it is sampled for */
    bool sample;
};

/* A step: its batch in the form kernels read, and what is to be done with its results.  Every array
 * is sized for the largest step. */
struct eng_step {
    int32_t *tokens, *positions, *token_seq; /* [tokens_max] */
    struct kn_seq *seqs;                     /* [max(seqs_max, tokens_max)] */
    kn_page *pages;
    struct kn_batch batch;
    struct eng_step_item *items; /* [seqs_max] */
    int32_t item_count, preempt_count;
    int32_t *rows;       /* [tokens_max]: rows wanted, samples first */
    int32_t *row_item;   /* [tokens_max]: index of the item a row belongs to */
    int32_t *row_target; /* [tokens_max]: prompt position the row scores, or -1 for a sample */
    bool *row_host;      /* [tokens_max]: whether its logits are wanted on the host */
    int32_t row_count;
    struct kn_sample_row *choice; /* [rows_max]: the rows of a group that the backend samples */
    int32_t *choice_item;         /* [rows_max]: the item of each */
    int32_t choice_count;
    struct kn_sampled *chosen;  /* [rows_max] in KN_MEM_STAGING: their tokens */
    struct eng_sample *samples; /* [seqs_max], by item */
    bool ahead;                 /* another step may be issued before this one has landed */
    bool played;                /* it was a recorded one */
    uint64_t serial;            /* of kn_step_end */
    uint64_t start_ns, prompt_tokens, recomputed_tokens;
    bool rested;                    /* it is the first after there was no work */
    uint64_t kv_bytes[KN_TIER_MAX]; /* read of each tier, where several have pages */
    struct eng_load load;
    bool held_back; /* of the plan */
};

struct eng_engine {
    struct kn *kn;           /* borrowed */
    struct eng_model *model; /* borrowed */
    struct kn_kv kv;
    struct eng_config config;
    struct eng_limits limits;
    struct eng_sched *sched;
    bool tiered;                /* KV pages lie in several tiers */
    bool moved;                 /* and some have been moved */
    uint64_t moves_before;      /* kn_moves_done when it was opened */
    struct eng_traffic traffic; /* of the model */
    struct eng_sampler *sampler;
    struct eng_step steps[2]; /* by turns */
    float *logits;            /* [rows_max, V] in KN_MEM_STAGING, of whichever step is computed */
    size_t logits_bytes;
    struct eng_request **live; /* [queue_max]: slot -> request or NULL */
    int32_t *free_slots;       /* stack of free_count slots */
    int32_t free_count;
    kn_page *page_tables; /* [queue_max][pages_per_seq] */
    int32_t pages_per_seq;
    int32_t live_count;
    uint64_t turn_ns; /* the last landing, or when work came */
    bool rested;      /* there was no work, and nothing has been issued since it came */
    /* While there is work: how long the machine was busy, and how long it had nothing to do. */
    uint64_t device_ns, host_ns;
    struct eng_control control;
    uint64_t traffic_ns; /* of the device, since kn_traffic last told of more */

    pthread_t thread;
    bool thread_started;
    pthread_mutex_t lock;
    pthread_cond_t work;  /* submissions, cancels, stop */
    pthread_cond_t space; /* the event ring was polled */
    struct eng_request *queue_head, *queue_tail;
    int32_t unfinished;
    struct eng_event *ring; /* [event_ring] */
    uint32_t ring_head, ring_count;
    bool poke, stop, closing;
    bool has_next_control; /* next_control is to be taken */
    struct off_control next_control[KN_TIER_MAX];
    struct eng_stats stats;
};

/* --- engine.c --- */

/* Waits where the ring is full. */
void eng_push_event(struct eng_engine *e, const struct eng_event *event);
/* Takes a live request out of the tables and reports its end.  The request is not touched
 * afterwards. */
void eng_finish(struct eng_engine *e, struct eng_request *r, enum eng_finish why,
                const struct eng_sample *sample);

/* --- step.c --- */

MUST_USE enum status eng_step_open(struct eng_engine *e, struct eng_step *s, char *err);
void eng_step_close(struct eng_engine *e, struct eng_step *s);
/* Issues the plan's operations and commits it.  s is free: its last step has landed. */
void eng_step_issue(struct eng_engine *e, const struct eng_plan *plan, struct eng_step *s);
/* Waits for the step, which is the oldest in flight, and uses its results. */
MUST_USE enum status eng_step_land(struct eng_engine *e, struct eng_step *s, char *err);

/* --- warm_up.c --- */

MUST_USE enum status eng_warm_up(struct eng_engine *e, char *err);

#endif
