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
 * no near tie.  A long prompt's logits must be the same bits wherever weights lie and however they
 * are fetched, of one loading as of many.
 */
#include <time.h>

#include "config/file.h"
#include "config/json.h"
#include "engine/model_state.h"
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

/* everywhere: all weights in every tier, to be placed anew. */
static enum status rig_open_in(struct rig *r, struct kn *kn, const char *dir, double offload,
                               const char *tier, bool everywhere, char *err)
{
    struct off_remote remote;
    struct eng_model_options opt = {.dtype = ENG_DTYPE_BF16,
                                    .offload = offload,
                                    .placement = OFF_PLACE_EVEN, /* tiles of every weight */
                                    .everywhere = everywhere,
                                    .tokens_max = TOKENS_MAX,
                                    .rows_max = TOKENS_MAX};
    struct eng_model_info info;
    *r = (struct rig){.kn = kn};
    enum status st = eng_model_read_info(dir, &opt, &info, err);
    if (st) return st;
    uint64_t bytes = info.weight_bytes + (1u << 20);
    if ((st = off_remote_parse(tier, &remote, err)) ||
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

static enum status rig_open(struct rig *r, struct kn *kn, const char *dir, double offload,
                            const char *tier, char *err)
{
    return rig_open_in(r, kn, dir, offload, tier, false, err);
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
    test_must(rig_open(&c, cpu, path, 0, "host:64MiB", err), err);
    test_must(rig_open(&g, gpu, path, offload, "host:64MiB", err), err);
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

static void test_demo(double offload, const char *tier)
{
    struct rig g;
    char err[ERR_CAP] = "";
    cJSON *root;
    const cJSON *one;
    int32_t cases = 0, equal = 0, clear = 0, wrong = 0;
    test_must(rig_open(&g, gpu, "config/demo-model", offload, tier, err), err);
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
    printf("demo model, %g %% in %s: %d of %d answers equal; %d have a margin of %g or more\n",
           100 * offload, tier, equal, cases, clear, MARGIN);
    EXPECT(cases > 0 && clear > 0 && wrong == 0, "%d answers differ without a near tie", wrong);
    cJSON_Delete(root);
    rig_close(&g);
}

/* --- prompts whose remote weights are fetched --- */

enum { LONG = 480, LONG_BEGIN = 300 };

/* The logits of a prompt at once, and of its last part after the first; the caller frees both. */
static void long_prompt(struct rig *r, const int32_t *tokens, float **whole, float **rest)
{
    size_t row = (size_t)r->vocab * sizeof(float);
    *whole = test_malloc(LONG * row);
    *rest = test_malloc((LONG - LONG_BEGIN) * row);
    forward(r, tokens, 0, LONG);
    memcpy(*whole, r->logits, LONG * row);
    forward(r, tokens, 0, LONG_BEGIN);
    forward(r, tokens, LONG_BEGIN, LONG);
    memcpy(*rest, r->logits, (LONG - LONG_BEGIN) * row);
}

/* Through rings of none, of less than a product's tiles, of some products', of all: the same bits
 * as with everything in HBM. */
static void test_fetch(double offload, const char *tier)
{
    static const size_t rings[] = {0, KN_BLOCK_BYTES, (size_t)1 << 20, (size_t)64 << 20};
    struct rig near, far;
    int32_t tokens[LONG];
    float *want, *want_rest, *got, *rest;
    char err[ERR_CAP] = "";
    test_must(rig_open(&near, gpu, "config/demo-model", 0, tier, err), err);
    test_must(rig_open(&far, gpu, "config/demo-model", offload, tier, err), err);
    size_t row = (size_t)near.vocab * sizeof(float);
    for (int i = 0; i < LONG; i++) tokens[i] = (int32_t)(test_random() % (uint64_t)near.vocab);
    long_prompt(&near, tokens, &want, &want_rest);
    for (size_t i = 0; i < ARRAY_COUNT(rings); i++) {
        test_must(kn_fetch_reserve(gpu, rings[i], err), err);
        long_prompt(&far, tokens, &got, &rest);
        EXPECT(!memcmp(got, want, LONG * row) &&
                   !memcmp(rest, want_rest, (LONG - LONG_BEGIN) * row),
               "%g in %s through a ring of %zu bytes", offload, tier, rings[i]);
        free(got), free(rest);
    }
    test_must(kn_fetch_reserve(gpu, 0, err), err);
    printf("prompt of %d tokens, %g %% in %s, through %zu rings: %d failed so far\n", LONG,
           100 * offload, tier, ARRAY_COUNT(rings), test_failed);
    free(want), free(want_rest);
    rig_close(&far);
    rig_close(&near);
}

/* One loading into all tiers, read in another one each time: the same bits as with everything in
 * HBM, of prompts and of a decode step. */
static void test_places(const char *tier)
{
    static const double shares[] = {1, 0.3, 0, 0.6, 0.01};
    struct rig near, all;
    int32_t tokens[LONG];
    float *want, *want_rest, *got, *rest;
    char err[ERR_CAP] = "";
    test_must(rig_open(&near, gpu, "config/demo-model", 0, tier, err), err);
    test_must(rig_open_in(&all, gpu, "config/demo-model", 0.5, tier, true, err), err);
    size_t row = (size_t)near.vocab * sizeof(float);
    float *want_one = test_malloc(row);
    for (int i = 0; i < LONG; i++) tokens[i] = (int32_t)(test_random() % (uint64_t)near.vocab);
    long_prompt(&near, tokens, &want, &want_rest);
    forward(&near, tokens, LONG - 1, LONG);
    memcpy(want_one, near.logits, row);
    for (size_t i = 0; i < ARRAY_COUNT(shares); i++) {
        const struct eng_model_options opt = {
            .everywhere = true, .offload = shares[i], .placement = OFF_PLACE_EVEN};
        test_must(eng_model_place(all.model, all.tiers, &opt, err), err);
        test_must(kn_fetch_reserve(gpu, i % 2 ? (size_t)64 << 20 : 0, err), err);
        long_prompt(&all, tokens, &got, &rest);
        forward(&all, tokens, LONG - 1, LONG);
        EXPECT(!memcmp(got, want, LONG * row) &&
                   !memcmp(rest, want_rest, (LONG - LONG_BEGIN) * row) &&
                   !memcmp(all.logits, want_one, row),
               "%g in %s, placed anew", shares[i], tier);
        free(got), free(rest);
    }
    test_must(kn_fetch_reserve(gpu, 0, err), err);
    printf("%zu shares of one loading in %s: %d failed so far\n", ARRAY_COUNT(shares), tier,
           test_failed);
    free(want), free(want_rest), free(want_one);
    rig_close(&all);
    rig_close(&near);
}

/* --- speed --- */

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

enum { BENCH_SEQS = 64, BENCH_CONTEXT = 1024, BENCH_PAGES = BENCH_CONTEXT / KN_PAGE_TOKENS };

/* A step of S sequences, each with one new token at the end of its context. */
static void bench_batch(struct kn_batch *b, int32_t S)
{
    static int32_t tokens[BENCH_SEQS], positions[BENCH_SEQS], seq[BENCH_SEQS], rows[BENCH_SEQS];
    static struct kn_seq seqs[BENCH_SEQS];
    static kn_page pages[BENCH_SEQS * BENCH_PAGES];
    for (int32_t i = 0; i < S; i++) {
        tokens[i] = 100 + i;
        positions[i] = BENCH_CONTEXT - 1;
        seq[i] = rows[i] = i;
        seqs[i] = (struct kn_seq){i, 1, BENCH_CONTEXT, i * BENCH_PAGES};
        for (int32_t p = 0; p < BENCH_PAGES; p++)
            pages[i * BENCH_PAGES + p] = kn_page_make(0, (uint32_t)(i * BENCH_PAGES + p));
    }
    *b = (struct kn_batch){.token_count = S,
                           .tokens = tokens,
                           .positions = positions,
                           .token_seq = seq,
                           .seq_count = S,
                           .seqs = seqs,
                           .pages = pages,
                           .row_count = S,
                           .rows = rows};
}

/* Decode steps without sampling: how long the host takes to issue one, and how long one takes. */
static void bench_decode(struct eng_model *model, const struct kn_kv *kv, float *logits, int32_t S)
{
    enum { REPEAT = 40 };
    struct kn_batch b;
    double issue = 0, start = 0;
    bench_batch(&b, S);
    for (int i = -3; i < REPEAT; i++) {
        if (i == 0) issue = 0, start = seconds();
        double began = seconds();
        eng_model_forward(model, &b, kv);
        eng_model_logits(model, &b, logits);
        issue += seconds() - began;
        test_sync(gpu);
    }
    double step = (seconds() - start) / REPEAT;
    double bytes = (double)eng_model_info(model)->weight_bytes +
                   (double)S * BENCH_PAGES * (double)kn_kv_page_bytes(kv);
    printf("decode %2d x %d: %.3f ms a step, %.3f ms to issue, %.2f TB/s of weights and KV\n", S,
           BENCH_CONTEXT, 1e3 * step, 1e3 * issue / REPEAT, bytes / step / 1e12);
}

/* One layer's share of one kind of operation. */
enum kind { NORM, QKV, FINISH, ATTENTION, O, UP, DOWN, HEAD, KIND_COUNT };
static const char *const kind_names[] = {"norms", "qkv", "finish qkv", "attention",
                                         "o",     "up",  "down",       "head"};

static void product(const struct kn_weight *w, enum kn_epilogue epilogue, int32_t T, void *in,
                    void *out)
{
    kn_gemm(gpu, &(struct kn_gemm_args){
                     .w = w, .row_count = T, .in = in, .epilogue = epilogue, .out = out});
}

static void bench_one(struct eng_model *m, const struct kn_batch *b, const struct kn_kv *kv,
                      enum kind kind, int32_t layer, float *logits)
{
    const struct eng_layer *l = &m->weights.layers[layer];
    void *const *buffer = m->buffer;
    int32_t T = b->token_count;
    struct kn_norm_args norm = {.kind = m->shape.norm,
                                .eps = m->shape.norm_eps,
                                .row_count = T,
                                .cols = m->shape.info.hidden,
                                .x = buffer[ENG_BUFFER_X],
                                .weight = l->attn_norm,
                                .y = buffer[ENG_BUFFER_H]};
    struct kn_qkv_args finish = {.qkv = buffer[ENG_BUFFER_QKV],
                                 .q_heads = m->shape.info.q_heads,
                                 .rope = buffer[ENG_BUFFER_ROPE],
                                 .kv = kv,
                                 .layer = layer};
    struct kn_attention_args attention = {.qkv = buffer[ENG_BUFFER_QKV],
                                          .q_heads = m->shape.info.q_heads,
                                          .scale = m->attention_scale,
                                          .kv = kv,
                                          .layer = layer,
                                          .out = buffer[ENG_BUFFER_ATTN]};
    void *h = buffer[ENG_BUFFER_H], *x = buffer[ENG_BUFFER_X], *mlp = buffer[ENG_BUFFER_MLP];
    switch (kind) {
    case NORM: kn_norm(gpu, &norm), kn_norm(gpu, &norm); break;
    case QKV: product(&l->qkv, KN_EPI_STORE, T, h, buffer[ENG_BUFFER_QKV]); break;
    case FINISH: kn_qkv(gpu, b, &finish); break;
    case ATTENTION: /* its queries are those of the same layer's finish, which is timed alone too */
        kn_qkv(gpu, b, &finish);
        kn_attention(gpu, b, &attention);
        break;
    case O: product(&l->o, KN_EPI_ADD, T, buffer[ENG_BUFFER_ATTN], x); break;
    case UP: product(&l->up, KN_EPI_SWIGLU, T, h, mlp); break;
    case DOWN: product(&l->down, KN_EPI_ADD, T, mlp, x); break;
    case HEAD:
        if (layer == 0) product(&m->weights.head, KN_EPI_F32, T, h, logits);
        break;
    case KIND_COUNT: break;
    }
}

/* What each kind of operation takes of a step, run alone over all layers: their sum is more than a
 * step, in which one operation's weights arrive while the one before it ends. */
static void bench_kinds(struct eng_model *m, const struct kn_kv *kv, float *logits, int32_t S)
{
    enum { REPEAT = 5 };
    struct kn_batch b;
    double finish = 0;
    bench_batch(&b, S);
    printf("  each kind alone, %d x %d:", S, BENCH_CONTEXT);
    for (int kind = 0; kind < KIND_COUNT; kind++) {
        double start = 0;
        for (int i = -1; i < REPEAT; i++) {
            if (i == 0) start = seconds();
            for (int32_t layer = 0; layer < m->shape.info.layer_count; layer++)
                bench_one(m, &b, kv, (enum kind)kind, layer, logits);
            test_sync(gpu);
        }
        double ms = 1e3 * (seconds() - start) / REPEAT;
        if (kind == FINISH) finish = ms;
        if (kind == ATTENTION) ms -= finish;
        printf(" %s %.3f%s", kind_names[kind], ms, kind == KIND_COUNT - 1 ? " ms\n" : ",");
    }
}

static void bench(double offload, const char *tier)
{
    struct eng_model_options opt = {.load_format = ENG_LOAD_DUMMY,
                                    .offload = offload,
                                    .placement = OFF_PLACE_EVEN, /* tiles of every weight */
                                    .model_len_max = 2 * BENCH_CONTEXT,
                                    .tokens_max = TOKENS_MAX,
                                    .rows_max = BENCH_SEQS};
    struct off_tiers *tiers;
    struct eng_model *model;
    struct off_remote remote;
    struct kn_kv kv;
    float *logits;
    char err[ERR_CAP] = "";
    const char *dir = "config/models/Llama-3.1-8B";
    struct eng_model_info info;
    test_must(eng_model_read_info(dir, &opt, &info, err), err);
    test_must(off_remote_parse(tier, &remote, err), err);
    test_must(off_tiers_open(gpu, info.weight_bytes + (64u << 20), &remote, &tiers, err), err);
    double start = seconds();
    test_must(eng_model_open(gpu, tiers, dir, &opt, &model, err), err);
    test_sync(gpu);
    printf("%s, %g %% of the weights in '%s', opened in %.1f s\n", dir, 100 * offload, tier,
           seconds() - start);
    eng_model_kv(model, &kv);
    size_t pool = (size_t)BENCH_SEQS * BENCH_PAGES * kn_kv_page_bytes(&kv);
    size_t rows = BENCH_SEQS * (size_t)info.vocab * sizeof(float);
    test_must(kn_alloc(gpu, KN_MEM_LOCAL, 0, pool, &kv.base[0], err), err);
    test_must(kn_alloc(gpu, KN_MEM_STAGING, 0, rows, (void **)&logits, err), err);
    for (int32_t S = 1; S <= BENCH_SEQS; S *= 8) {
        bench_decode(model, &kv, logits, S);
        if (offload == 0) bench_kinds(model, &kv, logits, S);
    }
    kn_free(gpu, KN_MEM_STAGING, logits, rows);
    kn_free(gpu, KN_MEM_LOCAL, kv.base[0], pool);
    eng_model_close(model);
    off_tiers_close(tiers);
}

int main(int argc, char **argv)
{
    static const char *const names[] = {
        "llama-bf16",     "qwen3-bf16", "llama-gqa", "llama-mha",    "llama-tied-bias",
        "mistral-window", "opt",        "opt-f16",   "qwen2-window", "qwen2-f16"};
    char err[ERR_CAP] = "";
    struct rig r;
    bool quick = argc > 1 && !strcmp(argv[1], "--quick");
    bool speed = argc > 1 && !strcmp(argv[1], "--bench");
    setvbuf(stdout, NULL, _IOLBF, 0);
    test_must(kn_open_cpu(0, &cpu, err), err);
    test_must(kn_open_cuda(0, &gpu, err), err);
    if (speed) {
        bench(0, "");
        bench(0.01, "host:4GiB");
        bench(0.05, "host:4GiB");
        if (test_gpu_count() > 1) bench(0.07, "peer:1:4GiB");
        if (test_gpu_count() > 1) bench(0.2, "peer:1:4GiB");
        kn_close(gpu);
        kn_close(cpu);
        return 0;
    }
    for (size_t i = 0; i < (quick ? 2 : ARRAY_COUNT(names)); i++)
        test_fixture(names[i], i % 2 ? 0.4 : 0);
    test_fetch(0.3, "host:64MiB");
    if (test_gpu_count() > 1) test_fetch(0.6, "peer:1:64MiB,host:32MiB");
    test_places("host:64MiB");
    if (test_gpu_count() > 1) test_places("peer:1:64MiB,host:64MiB");
    if (!quick) {
        test_demo(0, "host:64MiB");
        test_demo(0.5, "host:64MiB");
        if (test_gpu_count() > 1) test_demo(0.5, "peer:1:64MiB");
        if (test_gpu_count() > 1) test_demo(0.6, "peer:1:64MiB,host:32MiB");
    }
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
