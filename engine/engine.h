/*
 * engine.h - the thread that owns the machine, and the two bounded queues that join it to the event
 * loop.
 *
 *   loop thread:    eng_request (owned by the caller) --eng_submit--> [requests] --> engine thread
 *   engine thread:  sampled tokens --> [events] --wake(user)--> loop thread: eng_poll
 *
 * A request is one sequence (n > 1 is n requests).  Between eng_submit and its ENG_EVENT_FINISHED
 * the engine reads it; after that event has been polled the caller may free it.  Every submitted
 * request gets exactly one FINISHED event, also when it is cancelled or the engine fails or stops.
 *
 * Both queues are rings sized at open.  A full request queue is ST_FULL (a 503).  A full event ring
 * makes the engine thread wait for the loop to poll; the loop never waits for the engine.
 */
#ifndef DAKD_ENGINE_ENGINE_H
#define DAKD_ENGINE_ENGINE_H

#include <stdatomic.h>

#include "engine/control.h"
#include "engine/model.h"
#include "engine/sampler.h"
#include "engine/sched.h"

enum eng_finish {
    ENG_FINISH_NONE,
    ENG_FINISH_STOP,      /* EOS or a stop token: the event's sample, not part of the answer */
    ENG_FINISH_LENGTH,    /* max_tokens, or the model length */
    ENG_FINISH_CANCELLED, /* eng_cancel */
    ENG_FINISH_ERROR      /* the engine failed; nothing further is served */
};

struct eng_request {
    /* Set by the caller before eng_submit. */
    /* The prompt, with room for prompt_count + sampling.max_tokens; the engine appends here. */
    int32_t *tokens;
    int32_t prompt_count; /* >= 1 */
    /* Of the prompt, tokens whose KV is taken for granted (eng_sched_seq); for measuring, where
     * every page of the cache holds something that can be read.  Fewer than prompt_count. */
    int32_t given_count;
    /* max_tokens >= 1, already clamped so that prompt and answer fit eng_limits.model_len_max. */
    struct eng_sampling sampling;
    /* Requests find each other's KV only where their salts are equal, byte for byte.  Borrowed
     * until FINISHED; NULL with length 0: none.  At most ENG_CACHE_SALT_MAX bytes. */
    const char *cache_salt;
    int32_t cache_salt_length;
    void *user;
    /* The engine's; zero before eng_submit. */
    _Atomic bool cancelled;
    struct eng_sched_seq seq; /* seq.token_count tokens are known or in flight */
    int32_t known_count;      /* tokens known */
    /* Tokens of the prompt that were taken from the prefix cache, all in all and by the tier they
     * lay in.  Set before the first event of the request, and not changed after it. */
    int32_t cached_count, cached_tier_count[KN_TIER_MAX];
    int32_t chosen_row;       /* kn_token_chosen of this names the next one, in flight */
    struct eng_request *next; /* link of the submission queue */
    int32_t slot;             /* index in the engine's table of live requests */
    int32_t scored_count;     /* prompt tokens whose log-probabilities were sent */
    uint64_t submit_ns;       /* clock_now_ns of submission */
    uint64_t first_ns;        /* start of the first step that held it; 0 before */
};

enum eng_event_kind { ENG_EVENT_PROMPT, ENG_EVENT_TOKEN, ENG_EVENT_FINISHED };

struct eng_event {
    enum eng_event_kind kind;
    struct eng_request *request;
    enum eng_finish finish; /* of FINISHED */
    int32_t index;          /* PROMPT: position; TOKEN: index in the answer */
    uint64_t step;          /* of TOKEN: serial number of the step that gave it */
    /* Of PROMPT, TOKEN, and FINISHED by STOP.  The first PROMPT token has logprob NAN. */
    struct eng_sample sample;
};
/* A token that ends the answer by ENG_FINISH_STOP is not sent as TOKEN.  Times a caller needs
 * (TTFT, ITL) it takes at eng_poll, from clock_now_ns. */

struct eng_limits {
    int32_t model_len_max; /* prompt + answer */
    int32_t vocab;
    int32_t eos[ENG_EOS_MAX], eos_count;
};

struct eng_config {
    struct eng_sched_config sched;
    int32_t model_len_max;
    int32_t queue_max;            /* requests submitted and not yet finished: running + waiting */
    int32_t event_ring;           /* entries, >= 1 */
    int32_t tokens_max, rows_max; /* T and R the model was opened with */
    bool ahead;  /* issue a step before the one before it is over: right where kn_is_async */
    bool record; /* record decode steps where the backend can, for as many sequences as tokens_max
                    and rows_max have room for (kn_record_tokens) */
    /* Numbers of sequences whose steps alone are recorded, of an engine that measures and whose
     * weights are known to be whole: nothing else is computed beforehand.  None: all sizes. */
    int32_t record_only[8];
    int record_only_count;
    struct off_control control[KN_TIER_MAX]; /* how remote tiers are read */
    /* Called by the engine thread after events were added; must be thread-safe. */
    void (*wake)(void *user);
    void *user;
};

struct eng_engine;

/* Allocates everything, computes warm-up steps, records others and starts the thread.  Borrows kn,
 * model and the KV pools. */
MUST_USE enum status eng_open(struct kn *kn, struct eng_model *model, const struct kn_kv *kv,
                              const struct eng_config *config, struct eng_engine **out, char *err);
/* Tells the thread to stop after the steps in flight, and returns at once.  Unfinished requests get
 * FINISHED events (CANCELLED) as long as the loop polls. */
void eng_stop(struct eng_engine *e);
/* Stops, waits for the thread, drops events nobody polled, frees everything. */
void eng_close(struct eng_engine *e);
void eng_limits(const struct eng_engine *e, struct eng_limits *out);

/* Loop thread.  ST_FULL where queue_max requests are unfinished; ST_DEVICE after a failure. */
MUST_USE enum status eng_submit(struct eng_engine *e, struct eng_request *r);
/* Loop thread.  An array of requests at once: no step comes between them.  All or none. */
MUST_USE enum status eng_submit_all(struct eng_engine *e, struct eng_request *requests,
                                    int32_t count);
/* Loop thread.  The request is in no step issued from now on, and its FINISHED event comes before
 * the next one's events. */
void eng_cancel(struct eng_engine *e, struct eng_request *r);
/* Loop thread.  False where there is no event. */
bool eng_poll(struct eng_engine *e, struct eng_event *out);

/* Any thread.  From the next step on remote tiers are read like this; what controllers learnt is
 * forgotten. */
void eng_set_control(struct eng_engine *e, const struct off_control control[KN_TIER_MAX]);

/* Cumulative histogram with fixed bounds, for /metrics. */
#define ENG_STEP_BUCKETS 12
struct eng_stats {
    struct eng_sched_stats sched;
    uint64_t step_count, prompt_tokens, generated_tokens, recomputed_tokens;
    uint64_t step_ns_sum;
    uint64_t played_step_count; /* of these, played from a recording */
    /* Steps with decodes and tokens of prompts: how many, their time, and those tokens. */
    uint64_t mixed_step_count, mixed_ns_sum, mixed_prompt_tokens;
    /* Steps with decodes from which the target of latency kept tokens of prompts, and those that
     * took longer than it. */
    uint64_t held_back_step_count, itl_over_step_count;
    /* While there was work, up to the end of the last finished step: time the machine was busy and
     * time it had nothing to do, waiting for the engine, by its own clock (kn_step_wait,
     * kn_step_idle_ns).  Neither ever goes back. */
    uint64_t device_ns_sum, host_ns_sum;
    /* What steps read from each tier, and how fast as of the last reading: bytes over device time
     * (kn_traffic). */
    struct kn_traffic traffic[KN_TIER_MAX];
    double read_bytes_per_s[KN_TIER_MAX];
    struct eng_tier_control control[KN_TIER_MAX];
    /* KV that steps read once for every sequence, by where its pages lay; counted where a remote
     * tier has pages. */
    uint64_t kv_read_bytes[KN_TIER_MAX];
    uint64_t step_tokens_sum;
    uint64_t step_tokens_bucket[ENG_STEP_BUCKETS]; /* not cumulative; bounds below */
    uint64_t queue_ns_sum, queue_count;            /* submission to first step */
    uint64_t progress_ns; /* clock_now_ns of the last finished step or idle wait */
    bool failed;
    char failure[ERR_CAP];
};
extern const int32_t eng_step_bounds[ENG_STEP_BUCKETS - 1]; /* the last bucket is unbounded */
/* Any thread. */
void eng_stats(struct eng_engine *e, struct eng_stats *out);

#endif
