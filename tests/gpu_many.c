/*
 * gpu_many.c - steps of more sequences than are recorded: 257 to 700 of them with one new token
 * each, every row wanted and sampled, as large batches decode.
 *
 * For each model and number of sequences, with random contexts over random pages:
 *  - logits against the CPU backend (gpu_model.c says how they may differ);
 *  - the same bits for pages in HBM and in the host's memory, for weights in both, for rows that
 * are gathered, and for the sequences as the first of a larger step, whatever launches they share;
 *  - every token is the one the CPU backend chooses from the same logits, and a step that is told
 * its tokens only as those chosen before comes to the same.
 */
#include "engine/model_state.h"
#include "tests/gpu_common.h"

#define FIXTURES "tests/fixtures/models/"
#define DISTANCE_MAX 1e-4
enum { TOKENS_MAX = 704, SEQ_PAGES = 3, POOL_PAGES = TOKENS_MAX * SEQ_PAGES };

static struct kn *cpu, *gpu;

/* A model, KV full of noise in two pools, and what a step leaves. */
struct rig {
    struct kn *kn;
    struct off_tiers *tiers;
    struct eng_model *model;
    struct kn_kv kv;
    size_t pool_bytes;
    float *logits;          /* staging, [TOKENS_MAX, V] */
    struct kn_sampled *out; /* staging, [TOKENS_MAX] */
    int32_t vocab;
};

static enum kn_mem pool_mem(int pool)
{
    return pool ? KN_MEM_HOST : KN_MEM_LOCAL;
}

static void rig_open(struct rig *r, struct kn *kn, const char *name, double offload)
{
    struct off_remote remote;
    struct eng_model_options opt = {.dtype = ENG_DTYPE_BF16,
                                    .offload = offload,
                                    .placement = OFF_PLACE_EVEN,
                                    .tokens_max = TOKENS_MAX,
                                    .rows_max = TOKENS_MAX};
    struct eng_model_info info;
    char err[ERR_CAP] = "", dir[256];
    snprintf(dir, sizeof dir, FIXTURES "%s", name);
    *r = (struct rig){.kn = kn};
    test_must(eng_model_read_info(dir, &opt, &info, err), err);
    test_must(off_remote_parse("host:64MiB", &remote, err), err);
    test_must(off_tiers_open(kn, info.weight_bytes + (1u << 20), &remote, &r->tiers, err), err);
    test_must(eng_model_open(kn, r->tiers, dir, &opt, &r->model, err), err);
    eng_model_kv(r->model, &r->kv);
    r->kv.dtype = KN_BF16;
    r->vocab = info.vocab;
    r->pool_bytes = POOL_PAGES * kn_kv_page_bytes(&r->kv);
    uint16_t *image = test_malloc(r->pool_bytes);
    test_random_state = 7; /* the same noise for every rig */
    for (size_t i = 0; i < r->pool_bytes / 2; i++) image[i] = kn_bf16_from_f32(test_random_float());
    for (int t = 0; t < 2; t++) r->kv.base[t] = test_upload(kn, pool_mem(t), image, r->pool_bytes);
    free(image);
    r->logits = test_upload(kn, KN_MEM_STAGING, NULL,
                            (size_t)TOKENS_MAX * (size_t)info.vocab * sizeof(float));
    r->out = test_upload(kn, KN_MEM_STAGING, NULL, TOKENS_MAX * sizeof *r->out);
    test_must(kn_sample_reserve(kn, r->vocab, TOKENS_MAX, err), err);
}

static void rig_close(struct rig *r)
{
    kn_free(r->kn, KN_MEM_STAGING, r->out, TOKENS_MAX * sizeof *r->out);
    kn_free(r->kn, KN_MEM_STAGING, r->logits,
            (size_t)TOKENS_MAX * (size_t)r->vocab * sizeof(float));
    for (int t = 0; t < 2; t++) kn_free(r->kn, pool_mem(t), r->kv.base[t], r->pool_bytes);
    eng_model_close(r->model);
    off_tiers_close(r->tiers);
}

/* --- steps ------------------------------------------------------------------------------------ */

struct step {
    int32_t tokens[TOKENS_MAX], positions[TOKENS_MAX], token_seq[TOKENS_MAX], rows[TOKENS_MAX];
    struct kn_seq seqs[TOKENS_MAX];
    kn_page pages[POOL_PAGES];
    struct kn_sample_row choice[TOKENS_MAX];
    struct kn_batch batch;
};

static int32_t below(int32_t n)
{
    return (int32_t)(test_random() % (uint64_t)n);
}

/* The first S of the same TOKENS_MAX sequences; `spread`: their pages lie in both pools by turns.
 */
static void make_step(struct step *s, int32_t S, int32_t vocab, bool spread)
{
    test_random_state = 11;
    for (int32_t i = 0; i < TOKENS_MAX; i++) {
        s->tokens[i] = below(vocab);
        s->positions[i] = below(SEQ_PAGES * KN_PAGE_TOKENS);
        s->token_seq[i] = s->rows[i] = i;
        s->seqs[i] = (struct kn_seq){i, 1, s->positions[i] + 1, i * SEQ_PAGES};
        s->choice[i] = (struct kn_sample_row){.row = i,
                                              .top_k = below(3) ? 0 : 5,
                                              .temperature = below(2) ? 0 : 0.9f,
                                              .top_p = below(3) ? 1 : 0.9f,
                                              .score = below(2),
                                              .u = (double)below(1000) / 1000};
    }
    for (int32_t i = 0; i < POOL_PAGES; i++)
        s->pages[i] = kn_page_make(spread && i % 2, (uint32_t)(POOL_PAGES - 1 - i));
    s->batch = (struct kn_batch){S,        s->tokens, s->positions, s->token_seq, S, s->seqs,
                                 s->pages, S,         s->rows};
}

static void run(struct rig *r, const struct step *s)
{
    const struct kn_batch *b = &s->batch;
    eng_model_forward(r->model, b, &r->kv);
    eng_model_logits(r->model, b, r->logits);
    kn_sample(r->kn,
              &(struct kn_sample_args){r->logits, r->vocab, b->row_count, s->choice, r->out});
    kn_download(r->kn, r->logits, (size_t)b->row_count * (size_t)r->vocab * sizeof *r->logits);
    test_sync(r->kn);
}

static float *logits_of(const struct rig *r, int32_t S)
{
    const size_t bytes = (size_t)S * (size_t)r->vocab * sizeof *r->logits;
    return memcpy(test_malloc(bytes), r->logits, bytes);
}

static int32_t rows_that_differ(const float *a, const float *b, int32_t S, int32_t vocab)
{
    int32_t count = 0;
    const size_t row = (size_t)vocab;
    for (int32_t i = 0; i < S; i++)
        count += memcmp(a + (size_t)i * row, b + (size_t)i * row, row * sizeof *a) != 0;
    return count;
}

/* --- tests ------------------------------------------------------------------------------------ */

static void compare_cpu(const struct rig *c, const struct rig *g, int32_t S, const char *name)
{
    double xy = 0, xx_yy = 0;
    for (size_t i = 0; i < (size_t)S * (size_t)c->vocab; i++) {
        const double x = (double)c->logits[i], y = (double)g->logits[i];
        xy += x * y;
        xx_yy += x * x + y * y;
    }
    EXPECT(1 - 2 * xy / xx_yy < DISTANCE_MAX, "%s: %d sequences, distance %g", name, S,
           1 - 2 * xy / xx_yy);
}

/* The tokens that the CPU backend chooses from the GPU's logits. */
static void compare_samples(const struct rig *c, const struct rig *g, const struct step *s,
                            const char *name)
{
    int32_t S = s->batch.row_count, wrong = 0;
    kn_sample(cpu, &(struct kn_sample_args){g->logits, g->vocab, S, s->choice, c->out});
    test_sync(cpu);
    for (int32_t i = 0; i < S; i++)
        wrong += c->out[i].token != g->out[i].token || g->out[i].token < 0;
    EXPECT(wrong == 0, "%s: %d of %d tokens", name, wrong, S);
}

/* Tokens known to the host, and the same known only as those the step before chose. */
static void compare_chosen(struct rig *g, struct step *s, const char *name)
{
    const int32_t S = s->batch.token_count;
    run(g, s);
    for (int32_t i = 0; i < S; i++) s->tokens[i] = g->out[S - 1 - i].token;
    run(g, s);
    float *told = logits_of(g, S);
    make_step(s, S, g->vocab, false);
    run(g, s);
    for (int32_t i = 0; i < S; i++) s->tokens[i] = kn_token_chosen(S - 1 - i);
    run(g, s);
    EXPECT(rows_that_differ(told, g->logits, S, g->vocab) == 0, "%s: %d chosen tokens", name, S);
    free(told);
}

/* Rows in another order, which are gathered. */
static void compare_gathered(struct rig *g, struct step *s, const float *whole, const char *name)
{
    const int32_t S = s->batch.token_count, V = g->vocab;
    int32_t wrong = 0;
    for (int32_t i = 0; i < S; i++) s->rows[i] = S - 1 - i;
    run(g, s);
    for (int32_t i = 0; i < S; i++)
        wrong += rows_that_differ(g->logits + (size_t)i * (size_t)V,
                                  whole + (size_t)(S - 1 - i) * (size_t)V, 1, V);
    EXPECT(wrong == 0, "%s: %d of %d gathered rows", name, wrong, S);
}

static void test_model(const char *name, bool quick)
{
    static const int32_t counts[] = {300, 512, 257, 384, 511, 513, 700};
    static struct step s;
    struct rig c, g, far;
    rig_open(&c, cpu, name, 0);
    rig_open(&g, gpu, name, 0);
    rig_open(&far, gpu, name, 0.4);
    make_step(&s, TOKENS_MAX, g.vocab, false);
    run(&g, &s);
    float *most = logits_of(&g, TOKENS_MAX);
    for (size_t i = 0; i < (quick ? 2 : ARRAY_COUNT(counts)); i++) {
        const int32_t S = counts[i];
        make_step(&s, S, g.vocab, false);
        run(&c, &s);
        run(&g, &s);
        compare_cpu(&c, &g, S, name);
        compare_samples(&c, &g, &s, name);
        float *whole = logits_of(&g, S);
        int32_t wrong = rows_that_differ(whole, most, S, g.vocab);
        EXPECT(wrong == 0, "%s: %d of %d rows differ by the step's size", name, wrong, S);
        run(&far, &s);
        wrong = rows_that_differ(whole, far.logits, S, g.vocab);
        EXPECT(wrong == 0, "%s: %d of %d rows differ by where weights lie", name, wrong, S);
        make_step(&s, S, g.vocab, true);
        run(&g, &s);
        wrong = rows_that_differ(whole, g.logits, S, g.vocab);
        EXPECT(wrong == 0, "%s: %d of %d rows differ by where pages lie", name, wrong, S);
        make_step(&s, S, g.vocab, false);
        compare_gathered(&g, &s, whole, name);
        make_step(&s, S, g.vocab, false);
        compare_chosen(&g, &s, name);
        free(whole);
    }
    free(most);
    rig_close(&far);
    rig_close(&g);
    rig_close(&c);
    printf("%-16s %d passed, %d failed\n", name, test_passed, test_failed);
}

int main(int argc, char **argv)
{
    static const char *const names[] = {"llama-bf16",   "qwen3-bf16", "mistral-window",
                                        "qwen2-window", "opt",        "llama-mha"};
    char err[ERR_CAP] = "";
    const bool quick = argc > 1 && !strcmp(argv[1], "--quick");
    setvbuf(stdout, NULL, _IOLBF, 0);
    test_must(kn_open_cpu(0, &cpu, err), err);
    test_must(kn_open_cuda(0, &gpu, err), err);
    for (size_t i = 0; i < (quick ? 1 : ARRAY_COUNT(names)); i++) test_model(names[i], quick);
    kn_close(gpu);
    kn_close(cpu);
    return test_report();
}
