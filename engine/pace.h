/*
 * pace.h - how long a step will take, learnt from the steps before it, and hence how many tokens of
 * prompts fit beside its decodes in a given time.
 *
 * The model is linear in what a step computes:
 *
 *     seconds = a + b * prompt tokens + c * KV tokens that decodes read + d * pairs of a prompt's
 *               token and a key it sees + e where it has prompt tokens at all
 *
 * a is what a step of decodes must do whatever their contexts are (the weights); b the products of
 * prompts; c and d the attention of either; e what it costs that a step is not one of decodes alone
 * (such steps are recorded, and have kernels of their own).  No step is linear over its whole range
 * (below some hundred tokens the weights' bytes decide, above it their products; tiles are 128
 * tokens wide), but close to where steps are kept it is, and the coefficients follow when that
 * place moves: they are a random walk, tracked by a Kalman filter with a scalar observation, five
 * state variables, no memory of its own beyond them.  Only steps with decodes are learnt from:
 * others are not to be predicted, and are far from those that are.
 *
 * Two things hold it to what was measured.  It never plans more than twice the prompt tokens of the
 * largest step learnt from, and 128.  And a step's time is at most proportional to its prompt
 * tokens, as what it consists of takes no less than no time for none of them: so from the last step
 * with prompts, corrected for what the model says is different now, follows a number of tokens that
 * is safe where that step was shorter than wanted, and too many where it was longer.  The filter
 * may plan more than the one, and less than the other, but no less than half of that step's.
 *
 * Pure and deterministic: the same steps give the same figures.  Source of the filter: R. E.
 * Kalman, 1960; the idea of a token budget for a latency: Sarathi-Serve (Agrawal et al., 2024).
 */
#ifndef DAKD_ENGINE_PACE_H
#define DAKD_ENGINE_PACE_H

#include <stdbool.h>
#include <stdint.h>

/* What a step computes. */
struct eng_load {
    int32_t decode_count;
    int32_t prompt_tokens;
    int64_t decode_kv_tokens; /* that decodes read, all together */
    int64_t prompt_pairs;     /* of a prompt's token and a key it sees */
    bool waits;               /* for KV pages on their way: its duration tells of those */
};

/* One token at position kv_count - 1. */
void eng_load_add_decode(struct eng_load *load, int32_t kv_count);
/* count tokens from position begin on. */
void eng_load_add_prompt(struct eng_load *load, int32_t begin, int32_t count);

enum { ENG_PACE_COEFFICIENTS = 5 };

struct eng_pace {
    double target_s;
    /* Of the features as pace.c scales them, in units of target_s. */
    double coefficient[ENG_PACE_COEFFICIENTS];
    double covariance[ENG_PACE_COEFFICIENTS][ENG_PACE_COEFFICIENTS];
    int32_t prompt_tokens_seen; /* of the largest step learnt from */
    struct eng_load last;       /* step with prompts learnt from, and its duration */
    double last_s;
};

/* target_s > 0: the duration steps with decodes are to be kept to. */
void eng_pace_init(struct eng_pace *p, double target_s);
/* A step took `seconds`; without decodes nothing is learnt from it. */
void eng_pace_learn(struct eng_pace *p, const struct eng_load *load, double seconds);
double eng_pace_predict(const struct eng_pace *p, const struct eng_load *load);
/* How many tokens, up to `most`, of a prompt whose next position is `begin` a step of `load` (which
 * has decodes) may compute as well; 0 where there is no time for any. */
int32_t eng_pace_tokens(const struct eng_pace *p, const struct eng_load *load, int32_t begin,
                        int32_t most);

#endif
