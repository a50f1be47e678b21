/*
 * gpu_model.c - whole models on both backends: the fixtures of tests/fixtures/models, with bf16
 * weights whatever they were stored as, and the demo model.
 *
 * The same tokens go through both, the CPU's choice deciding how a text continues, so that one near
 * tie does not end the comparison.  Logits: the GPU rounds activations to bf16 between operations
 * and the CPU does not, so they differ by some 2^-8 of their spread; 1 - 2 sum(xy) / sum(x^2 + y^2)
 * over a model's logits must stay below 1e-4.  Tokens: wherever the CPU's best logit leads the
 * second by more than MARGIN of the row's largest difference, the GPU must choose the same.  For
 * the demo model, whole answers must equal those of the reference implementation where that found
 * no near tie.
 */
#include "config/file.h"
#include "config/json.h"
#include "engine/model.h"
#include "tests/gpu_common.h"

#define FIXTURES "tests/fixtures/models/"
#define PAGES 16
#define TOKENS_MAX 512
#define DISTANCE_MAX 1e-4
/* Answers of the demo model whose smallest lead of the best token is below this may turn out
 * differently. */
#define MARGIN 0.25

struct rig {
    struct kn *kn;
    struct off_tiers *tiers;
    struct eng_model *model;
    struct kn_kv kv;
    size_t pool_bytes;
    float *logits; /* staging, [TOKENS_MAX, V] */
    int32_t vocab;
};

static struct kn *cpu, *gpu;

static enum status rig_open(struct rig *r, struct kn *kn, const char *dir, double offload,
                            char *err)
{
    struct off_remote remote;
    struct eng_model_options opt = {.dtype = ENG_DTYPE_BF16,
                                    .offload = offload,
                                    .tokens_max = TOKENS_MAX,
                                    .rows_max = TOKENS_MAX};
    struct eng_model_info info;
    *r = (struct rig){.kn = kn};
    enum status st = eng_model_read_info(dir, &opt, &info, err);
    if (st) return st;
    uint64_t bytes = info.weight_bytes + (1u << 20);
    if ((st = off_remote_parse("host:64MiB", &remote, err)) ||
        (st = off_tiers_open(kn, bytes, &remote, &r->tiers, err)) ||
        (st = eng_model_open(kn, r->tiers, dir, &opt, &r->model, err)))
        return st;
    eng_model_kv(r->model, &r->kv);
    r->pool_bytes = PAGES * kn_kv_page_bytes(&r->kv);
    r->vocab = info.vocab;
    if ((st = kn_alloc(kn, KN_MEM_LOCAL, 0, r->pool_bytes, &r->kv.base[0], err)) ||
        (st = kn_alloc(kn, KN_MEM_HOST, 0, r->pool_bytes, &r->kv.base[1], err)))
        return st;
    return kn_alloc(kn, KN_MEM_STAGING, 0, (size_t)TOKENS_MAX * (size_t)info.vocab * sizeof(float),
                    (void **)&r->logits, err);
}

static void rig_close(struct rig *r)
{
    size_t logits = (size_t)TOKENS_MAX * (size_t)r->vocab * sizeof(float);
    kn_free(r->kn, KN_MEM_STAGING, r->logits, logits);
    kn_free(r->kn, KN_MEM_HOST, r->kv.base[1], r->pool_bytes);
    kn_free(r->kn, KN_MEM_LOCAL, r->kv.base[0], r->pool_bytes);
    eng_model_close(r->model);
    off_tiers_close(r->tiers);
}

/* Positions [begin, end) of one sequence, whose pages lie in both pools in turn; all rows wanted.
 */
static void forward(struct rig *r, const int32_t *tokens, int32_t begin, int32_t end)
{
    int32_t positions[TOKENS_MAX], seq[TOKENS_MAX] = {0}, rows[TOKENS_MAX], T = end - begin;
    struct kn_seq s = {.token_count = T, .kv_count = end};
    kn_page pages[PAGES];
    CHECK(T <= TOKENS_MAX && end <= PAGES * KN_PAGE_TOKENS);
    for (int32_t p = 0; p < PAGES; p++)
        pages[p] = kn_page_make((unsigned)p % 2, (uint32_t)(PAGES - 1 - p));
    for (int32_t i = 0; i < T; i++) {
        positions[i] = begin + i;
        rows[i] = i;
    }
    struct kn_batch b = {.token_count = T,
                         .tokens = tokens + begin,
                         .positions = positions,
                         .token_seq = seq,
                         .seq_count = 1,
                         .seqs = &s,
                         .pages = pages,
                         .row_count = T,
                         .rows = rows};
    eng_model_forward(r->model, &b, &r->kv);
    eng_model_logits(r->model, &b, r->logits);
    kn_download(r->kn, r->logits, (size_t)b.row_count * (size_t)r->vocab * sizeof *r->logits);
    test_sync(r->kn);
}

static int32_t best_of(const float *logits, int32_t n, float *lead)
{
    int32_t best = 0;
    float second = -INFINITY;
    for (int32_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    for (int32_t i = 0; i < n; i++)
        if (i != best) second = fmaxf(second, logits[i]);
    *lead = logits[best] - second;
    return best;
}

/* How two models' logits compare, summed over steps. */
struct likeness {
    double xy, xx_yy;
    float worst;
    int32_t rows, same, ties, wrong;
};

static void compare_rows(const struct rig *c, const struct rig *g, int32_t T, struct likeness *l)
{
    for (int32_t t = 0; t < T; t++) {
        const float *x = c->logits + (size_t)t * (size_t)c->vocab;
        const float *y = g->logits + (size_t)t * (size_t)c->vocab;
        float lead, ignored, worst = 0;
        for (int32_t i = 0; i < c->vocab; i++) {
            l->xy += (double)x[i] * (double)y[i];
            l->xx_yy += (double)x[i] * (double)x[i] + (double)y[i] * (double)y[i];
            float d = fabsf(x[i] - y[i]);
            worst = d <= worst ? worst : d; /* NaN stays */
        }
        l->worst = worst <= l->worst ? l->worst : worst;
        bool same = best_of(x, c->vocab, &lead) == best_of(y, c->vocab, &ignored);
        l->rows++;
        l->same += same;
        l->ties += !same && lead <= 2 * worst;
        l->wrong += !same && !(lead <= 2 * worst);
    }
}

static void report(const char *name, const char *what, const struct likeness *l)
{
    double distance = 1 - 2 * l->xy / l->xx_yy;
    printf("%-28s %-8s distance %.2e worst %.4f, %d of %d tokens equal, %d near ties\n", name, what,
           distance, (double)l->worst, l->same, l->rows, l->ties);
    EXPECT(distance <= DISTANCE_MAX, "%s %s", name, what);
    EXPECT(l->wrong == 0, "%s %s: %d tokens differ without a tie", name, what, l->wrong);
}

/* The prompt at once, then one token at a time, the CPU's choice; then the prompt in chunks. */
static void test_fixture(const char *name, double offload)
{
    struct rig c, g;
    char path[256], err[ERR_CAP] = "";
    cJSON *root;
    int32_t tokens[256], count = 0;
    struct likeness prompt = {0}, decode = {0}, chunked = {0};
    snprintf(path, sizeof path, FIXTURES "%s/expected.json", name);
    test_must(json_parse_file(path, &json_limits_file, &root, err), err);
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(root, "prompt"), *item;
    cJSON_ArrayForEach(item, list) tokens[count++] = item->valueint;
    cJSON_Delete(root);
    snprintf(path, sizeof path, FIXTURES "%s", name);
    test_must(rig_open(&c, cpu, path, 0, err), err);
    test_must(rig_open(&g, gpu, path, offload, err), err);
    forward(&c, tokens, 0, count);
    forward(&g, tokens, 0, count);
    compare_rows(&c, &g, count, &prompt);
    report(name, "prompt", &prompt);
    for (int32_t i = 0, n = count; i < 40; i++, n++) {
        float lead;
        int32_t rows = i == 0 ? count : 1;
        tokens[n] = best_of(c.logits + (size_t)(rows - 1) * (size_t)c.vocab, c.vocab, &lead);
        forward(&c, tokens, n, n + 1);
        forward(&g, tokens, n, n + 1);
        compare_rows(&c, &g, 1, &decode);
    }
    report(name, "decode", &decode);
    forward(&c, tokens, 0, count);
    for (int32_t at = 0; at < count; at += 37) {
        int32_t end = at + 37 < count ? at + 37 : count;
        struct rig part = c;
        part.logits += (size_t)at * (size_t)c.vocab;
        forward(&g, tokens, at, end);
        compare_rows(&part, &g, end - at, &chunked);
    }
    report(name, "chunked", &chunked);
    rig_close(&g);
    rig_close(&c);
}

/* --- the demo model --- */

static int32_t read_ids(const cJSON *object, const char *name, int32_t *out)
{
    int32_t count = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, cJSON_GetObjectItemCaseSensitive(object, name))
    {
        CHECK(count < TOKENS_MAX);
        out[count++] = item->valueint;
    }
    CHECK(count > 0);
    return count;
}

/* Answers greedily from the prompt; true where all of the answer's tokens come out. */
static bool answers(struct rig *g, const int32_t *prompt, int32_t prompt_count,
                    const int32_t *answer, int32_t count)
{
    int32_t tokens[PAGES * KN_PAGE_TOKENS];
    float lead;
    memcpy(tokens, prompt, (size_t)prompt_count * sizeof *tokens);
    forward(g, tokens, 0, prompt_count);
    int32_t last = prompt_count - 1;
    for (int32_t i = 0; i < count; i++) {
        int32_t next = best_of(g->logits + (size_t)last * (size_t)g->vocab, g->vocab, &lead);
        if (next != answer[i]) return false;
        tokens[prompt_count + i] = next;
        if (i + 1 < count) forward(g, tokens, prompt_count + i, prompt_count + i + 1);
        last = 0;
    }
    return true;
}

static void test_demo(double offload)
{
    struct rig g;
    char err[ERR_CAP] = "";
    cJSON *root;
    const cJSON *one;
    int32_t cases = 0, equal = 0, clear = 0, wrong = 0;
    test_must(rig_open(&g, gpu, "config/demo-model", offload, err), err);
    test_must(json_parse_file("tests/fixtures/demo_answers.json", &json_limits_file, &root, err),
              err);
    cJSON_ArrayForEach(one, root)
    {
        static int32_t prompt[TOKENS_MAX], answer[TOKENS_MAX];
        int32_t prompt_count = read_ids(one, "prompt_ids", prompt);
        int32_t count = read_ids(one, "answer_ids", answer);
        double margin = cJSON_GetObjectItemCaseSensitive(one, "min_margin")->valuedouble;
        bool same = answers(&g, prompt, prompt_count, answer, count);
        cases++;
        equal += same;
        clear += margin >= MARGIN;
        wrong += margin >= MARGIN && !same;
        if (!same) printf("demo model: answer %d differs (margin %g)\n", cases - 1, margin);
    }
    printf("demo model, %g %% remote: %d of %d answers equal; %d have a margin of %g or more\n",
           100 * offload, equal, cases, clear, MARGIN);
    EXPECT(cases > 0 && clear > 0 && wrong == 0, "%d answers differ without a near tie", wrong);
    cJSON_Delete(root);
    rig_close(&g);
}

int main(int argc, char **argv)
{
    static const char *const names[] = {
        "llama-bf16",     "qwen3-bf16", "llama-gqa", "llama-mha",    "llama-tied-bias",
        "mistral-window", "opt",        "opt-f16",   "qwen2-window", "qwen2-f16"};
    char err[ERR_CAP] = "";
    struct rig r;
    bool quick = argc > 1 && !strcmp(argv[1], "--quick");
    setvbuf(stdout, NULL, _IOLBF, 0);
    test_must(kn_open_cpu(0, &cpu, err), err);
    test_must(kn_open_cuda(0, &gpu, err), err);
    for (size_t i = 0; i < (quick ? 2 : ARRAY_COUNT(names)); i++)
        test_fixture(names[i], i % 2 ? 0.4 : 0);
    if (!quick) test_demo(0);
    if (!quick) test_demo(0.5);
    struct eng_model_options f32 = {.tokens_max = 8, .rows_max = 8};
    struct off_remote none = {0};
    r = (struct rig){0};
    test_must(off_tiers_open(gpu, 64u << 20, &none, &r.tiers, err), err);
    EXPECT(eng_model_open(gpu, r.tiers, FIXTURES "llama-gqa", &f32, &r.model, err) ==
                   ST_UNSUPPORTED &&
               strstr(err, "--dtype bfloat16"),
           "%s", err);
    printf("float32 weights: %s\n", err);
    off_tiers_close(r.tiers);
    kn_close(gpu);
    kn_close(cpu);
    return test_report();
}
