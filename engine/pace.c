#include "engine/pace.h"

#include <string.h>

#include "config/check.h"

enum { N = ENG_PACE_COEFFICIENTS };

/* Features are of the order of one, so that one variance serves all coefficients. */
#define PROMPT_TOKENS_UNIT 1024.0
#define DECODE_KV_UNIT 65536.0
#define PAIRS_UNIT 4194304.0
/* What is not known: standard deviation 10, in units of the target. */
#define VARIANCE_MAX 100.0
/* What a coefficient may have moved by from one step to the next: 1 % of the target. */
#define VARIANCE_STEP 1e-4
/* Of a step's duration, beside what the model explains: 5 % of it, and of a tenth of the target. */
#define NOISE 0.05
#define NOISE_FLOOR 0.1
/* A step is planned to take so much of the target; the rest is for noise. */
#define SHARE 0.95
#define CHUNK_FIRST 128

void eng_load_add_decode(struct eng_load *load, int32_t kv_count)
{
    load->decode_count++;
    load->decode_kv_tokens += kv_count;
}

void eng_load_add_prompt(struct eng_load *load, int32_t begin, int32_t count)
{
    load->prompt_tokens += count;
    load->prompt_pairs += (int64_t)count * begin + (int64_t)count * (count + 1) / 2;
}

static void features(const struct eng_load *load, double x[N])
{
    x[0] = 1;
    x[1] = load->prompt_tokens / PROMPT_TOKENS_UNIT;
    x[2] = (double)load->decode_kv_tokens / DECODE_KV_UNIT;
    x[3] = (double)load->prompt_pairs / PAIRS_UNIT;
    x[4] = load->prompt_tokens > 0;
}

void eng_pace_init(struct eng_pace *p, double target_s)
{
    CHECK(target_s > 0);
    *p = (struct eng_pace){.target_s = target_s};
    for (int i = 0; i < N; i++) p->covariance[i][i] = VARIANCE_MAX;
}

/* Time passes: every coefficient may have moved.  Beyond VARIANCE_MAX nothing is less known. */
static void forget(struct eng_pace *p)
{
    for (int i = 0; i < N; i++)
        if (p->covariance[i][i] + VARIANCE_STEP <= VARIANCE_MAX)
            p->covariance[i][i] += VARIANCE_STEP;
}

/* Nothing takes less than no time.  A coefficient that came out negative is put to zero and the
 * others move by what then follows for them (a projection along the covariance): put to zero alone,
 * they would go on making up for it, step by step, beyond all bounds. */
static void keep_positive(struct eng_pace *p)
{
    for (int turn = 0; turn < N; turn++)
        for (int i = 0; i < N; i++) {
            if (p->coefficient[i] >= 0) continue;
            const double k = p->coefficient[i] / p->covariance[i][i];
            for (int j = 0; j < N; j++) p->coefficient[j] -= k * p->covariance[j][i];
            p->coefficient[i] = 0;
        }
    for (int i = 0; i < N; i++)
        if (p->coefficient[i] < 0) p->coefficient[i] = 0;
}

void eng_pace_learn(struct eng_pace *p, const struct eng_load *load, double seconds)
{
    double x[N], px[N], gain[N], y = seconds / p->target_s, predicted = 0;
    if (load->decode_count == 0 || !(seconds > 0)) return;
    double noise = NOISE * (y > NOISE_FLOOR ? y : NOISE_FLOOR), variance = noise * noise;
    features(load, x);
    forget(p);
    for (int i = 0; i < N; i++) {
        px[i] = 0;
        for (int j = 0; j < N; j++) px[i] += p->covariance[i][j] * x[j];
        variance += x[i] * px[i];
        predicted += x[i] * p->coefficient[i];
    }
    for (int i = 0; i < N; i++) gain[i] = px[i] / variance;
    for (int i = 0; i < N; i++) {
        p->coefficient[i] += gain[i] * (y - predicted);
        for (int j = 0; j < N; j++) p->covariance[i][j] -= gain[i] * px[j];
    }
    keep_positive(p);
    if (load->prompt_tokens > 0) {
        p->last = *load;
        p->last_s = seconds;
    }
    if (load->prompt_tokens > p->prompt_tokens_seen) p->prompt_tokens_seen = load->prompt_tokens;
}

double eng_pace_predict(const struct eng_pace *p, const struct eng_load *load)
{
    double x[N], y = 0;
    features(load, x);
    for (int i = 0; i < N; i++) y += x[i] * p->coefficient[i];
    return y * p->target_s;
}

static bool fits(const struct eng_pace *p, const struct eng_load *load, int32_t begin, int32_t n)
{
    struct eng_load with = *load;
    eng_load_add_prompt(&with, begin, n);
    return eng_pace_predict(p, &with) <= SHARE * p->target_s;
}

/* The most tokens up to `most` that fit as the filter sees it. */
static int32_t tokens_filtered(const struct eng_pace *p, const struct eng_load *load, int32_t begin,
                               int32_t most)
{
    int32_t low = 0, high = most; /* low fits, or is 0 */
    if (most <= 0 || fits(p, load, begin, most)) return most;
    while (high - low > 1) { /* the time of a step grows with n */
        int32_t middle = low + (high - low) / 2;
        if (fits(p, load, begin, middle)) low = middle;
        else high = middle;
    }
    return low;
}

/* How many tokens of prompts in all follow from the last step that had some. */
static double tokens_in_proportion(const struct eng_pace *p, const struct eng_load *load,
                                   int32_t begin)
{
    struct eng_load same = *load;
    int32_t more = p->last.prompt_tokens - load->prompt_tokens;
    eng_load_add_prompt(&same, begin, more > 0 ? more : 0);
    double s = p->last_s + eng_pace_predict(p, &same) - eng_pace_predict(p, &p->last);
    return p->last.prompt_tokens * SHARE * p->target_s / (s > p->last_s / 2 ? s : p->last_s / 2);
}

int32_t eng_pace_tokens(const struct eng_pace *p, const struct eng_load *load, int32_t begin,
                        int32_t most)
{
    const int32_t here = load->prompt_tokens;
    const double last = p->last.prompt_tokens;
    int32_t reach = 2 * p->prompt_tokens_seen + CHUNK_FIRST - here;
    CHECK(most >= 0 && begin >= 0);
    double all = here + tokens_filtered(p, load, begin, most < reach ? most : reach);
    if (last > 0) {
        double safe = tokens_in_proportion(p, load, begin);
        if (all < (safe < last ? last / 2 : safe)) all = safe < last ? last / 2 : safe;
        if (safe < last && all > safe) all = safe;
    }
    double tokens = all - here;
    return tokens <= 0 ? 0 : tokens < most ? (int32_t)tokens : most;
}
