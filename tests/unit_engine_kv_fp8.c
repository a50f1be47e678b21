/*
 * unit_engine_kv_fp8.c - what a KV cache in fp8 does to the demo model: its fixed prompts and their
 * answers, token by token as they were given, with KV in bfloat16 and in fp8.  Logits may move by
 * the bounds below, the greedy tokens of the answers by none; the figures are printed.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "config/check.h"
#include "config/json.h"
#include "engine/model.h"

#define MODEL "config/demo-model"
#define ANSWERS "tests/fixtures/demo_answers.json"

enum { TOKENS_MAX = 512, PAGES = TOKENS_MAX / KN_PAGE_TOKENS };

/* Of logits, the largest difference and the root of the mean square: half as much again as measured
 * (1.05 and 0.069). */
static const double LARGEST = 1.6, MEAN = 0.1;

struct rig {
    struct kn *kn;
    struct off_tiers *tiers;
    struct eng_model *model;
    int32_t vocab;
};

static void rig_open(struct rig *r)
{
    char err[ERR_CAP] = "";
    const struct off_remote none = {0};
    const struct eng_model_options options = {.tokens_max = TOKENS_MAX, .rows_max = TOKENS_MAX};
    if (kn_open_cpu(2, &r->kn, err)) fail_msg("%s", err);
    if (off_tiers_open(r->kn, 64 << 20, &none, &r->tiers, err)) fail_msg("%s", err);
    if (eng_model_open(r->kn, r->tiers, MODEL, &options, &r->model, err)) fail_msg("%s", err);
    r->vocab = eng_model_info(r->model)->vocab;
}

static void rig_close(struct rig *r)
{
    eng_model_close(r->model);
    off_tiers_close(r->tiers);
    kn_close(r->kn);
}

/* Logits [count, V] of a sequence, its KV kept as `dtype`; the caller frees. */
static float *logits_of(struct rig *r, enum kn_dtype dtype, const int32_t *tokens, int32_t count)
{
    char err[ERR_CAP] = "";
    struct kn_kv kv;
    eng_model_kv(r->model, &kv);
    kv.dtype = dtype;
    const size_t pool = PAGES * kn_kv_page_bytes(&kv);
    if (kn_alloc(r->kn, KN_MEM_LOCAL, 0, pool, &kv.base[0], err)) fail_msg("%s", err);
    static int32_t index[TOKENS_MAX], token_seq[TOKENS_MAX];
    for (int32_t i = 0; i < count; i++) index[i] = i;
    kn_page pages[PAGES];
    for (uint32_t i = 0; i < PAGES; i++) pages[i] = kn_page_make(0, i);
    const struct kn_seq seq = {0, count, count, 0};
    const struct kn_batch batch = {.token_count = count,
                                   .tokens = tokens,
                                   .positions = index,
                                   .token_seq = token_seq,
                                   .seq_count = 1,
                                   .seqs = &seq,
                                   .pages = pages,
                                   .row_count = count,
                                   .rows = index};
    float *logits = malloc((size_t)count * (size_t)r->vocab * sizeof *logits);
    assert_non_null(logits);
    eng_model_forward(r->model, &batch, &kv);
    eng_model_logits(r->model, &batch, logits);
    if (kn_sync(r->kn, err)) fail_msg("%s", err);
    kn_free(r->kn, KN_MEM_LOCAL, kv.base[0], pool);
    return logits;
}

static int32_t argmax(const float *v, int32_t n)
{
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (v[i] > v[best]) best = i;
    return best;
}

static int32_t read_tokens(const cJSON *case_, const char *key, int32_t *out, int32_t at)
{
    for (const cJSON *item = json_member(case_, key)->child; item; item = item->next) {
        assert_true(at < TOKENS_MAX);
        out[at++] = item->valueint;
    }
    return at;
}

/* How far one KV dtype's logits are from another's. */
struct difference {
    double largest, squares;
    int64_t logits, answer_tokens, same;
};

static void compare(struct rig *r, const cJSON *case_, struct difference *d)
{
    int32_t tokens[TOKENS_MAX];
    const int32_t prompt = read_tokens(case_, "prompt_ids", tokens, 0),
                  count = read_tokens(case_, "answer_ids", tokens, prompt);
    float *wide = logits_of(r, KN_BF16, tokens, count);
    float *packed = logits_of(r, KN_E4M3, tokens, count);
    for (size_t i = 0; i < (size_t)count * (size_t)r->vocab; i++) {
        const double difference = fabs((double)packed[i] - (double)wide[i]);
        assert_false(isnan(difference));
        d->largest = fmax(d->largest, difference);
        d->squares += difference * difference;
        d->logits++;
    }
    for (int32_t i = prompt - 1; i < count; i++) {
        const size_t at = (size_t)i * (size_t)r->vocab;
        d->same += argmax(wide + at, r->vocab) == argmax(packed + at, r->vocab);
        d->answer_tokens++;
    }
    free(wide), free(packed);
}

static void test_demo_prompts(void **state)
{
    (void)state;
    char err[ERR_CAP] = "";
    struct rig r;
    cJSON *root;
    struct difference d = {0};
    rig_open(&r);
    if (json_parse_file(ANSWERS, &json_limits_file, &root, err)) fail_msg("%s", err);
    for (const cJSON *case_ = root->child; case_; case_ = case_->next) compare(&r, case_, &d);
    cJSON_Delete(root);
    rig_close(&r);
    assert_true(d.answer_tokens > 1000);
    const double mean = sqrt(d.squares / (double)d.logits);
    print_message("fp8 KV against bfloat16: largest difference of a logit %.3f, root mean square "
                  "%.4f; %lld of %lld greedy tokens the same\n",
                  d.largest, mean, (long long)d.same, (long long)d.answer_tokens);
    assert_true(d.largest <= LARGEST && mean <= MEAN);
    assert_int_equal(d.same, d.answer_tokens);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_demo_prompts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
