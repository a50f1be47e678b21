/*
 * gpu_sample.c - kn_sample on the GPU against the host's sampler, which unit_engine_sampler.c holds
 * to a reference in double precision.  Weights and their sums are exact on both, so tokens must be
 * equal, not merely alike distributed: for every shape, filter and random number.  That the draw's
 * target is put at the edges of every kept token's share shows that the filtered sets are equal.
 * Draws over many seeds are held to the distribution once more by chi-square.
 *
 *     gpu_sample [--quick | --bench]
 */
#include <float.h>

#include "config/clock.h"
#include "engine/sampler.h"
#include "kernels/sample.h"
#include "tests/gpu_common.h"

#define R_MAX 256

static struct kn *gpu;
static bool quick;

/* The GPU's side of a run: logits [rows,V] and where tokens go. */
struct rig {
    int32_t vocab, rows;
    float *host; /* owned */
    float *logits;
    struct kn_sampled *out;
    size_t bytes;
};

static void rig_open(struct rig *g, int32_t vocab, int32_t rows)
{
    char err[ERR_CAP] = "";
    *g = (struct rig){.vocab = vocab, .rows = rows};
    g->bytes = (size_t)vocab * (size_t)rows * sizeof(float);
    g->host = test_malloc(g->bytes);
    g->logits = test_upload(gpu, KN_MEM_LOCAL, NULL, g->bytes);
    test_must(kn_alloc(gpu, KN_MEM_STAGING, 0, R_MAX * sizeof *g->out, (void **)&g->out, err), err);
    test_must(kn_sample_reserve(gpu, vocab, R_MAX, err), err);
}

static void rig_close(struct rig *g)
{
    kn_free(gpu, KN_MEM_STAGING, g->out, R_MAX * sizeof *g->out);
    kn_free(gpu, KN_MEM_LOCAL, g->logits, g->bytes);
    free(g->host);
}

static void rig_send(struct rig *g)
{
    test_must(kn_upload(gpu, g->logits, g->host, g->bytes), "upload");
}

static void rig_sample(struct rig *g, const struct kn_sample_row *rows, int32_t count)
{
    memset(g->out, 0x55, R_MAX * sizeof *g->out);
    kn_sample(gpu, &(struct kn_sample_args){g->logits, g->vocab, count, rows, g->out});
    test_sync(gpu);
}

/* --- rows ------------------------------------------------------------------------------------- */

static double unit(void)
{
    return (double)(test_random() >> 11) * 0x1p-53;
}

enum kind { NORMAL, FLAT, PEAKED, TIES, EQUAL, ODD, EXTREME, KIND_COUNT };

static float some_logit(enum kind kind, int32_t i)
{
    static const float odd[] = {NAN, -INFINITY, INFINITY, FLT_MAX, -FLT_MAX, 0.f, -0.f, 1e-40f};
    double normal = (unit() + unit() + unit() + unit() + unit() + unit() - 3) * 1.414;
    switch (kind) {
    case NORMAL: return (float)(2 * normal);
    case FLAT: return (float)(0.01 * normal);
    case PEAKED: return (float)(i % 97 ? 3 * normal - 20 : 4 * normal);
    case TIES: return roundf((float)(4 * normal)) / 4;
    case EQUAL: return -1.25f;
    case ODD: return unit() < 0.4 ? odd[test_random() % ARRAY_COUNT(odd)] : (float)normal;
    default: return (float)(normal * 1e38);
    }
}

static void fill(float *row, int32_t vocab, enum kind kind)
{
    for (int32_t i = 0; i < vocab; i++) row[i] = some_logit(kind, i);
}

static struct kn_sample_row some_params(int32_t vocab)
{
    struct kn_sample_row p = {.temperature = 1, .top_p = 1, .u = unit()};
    uint64_t r = test_random();
    p.temperature = r % 8 == 0 ? 0.f : r % 8 == 1 ? 0.01f : 0.2f + 1.8f * (float)unit();
    if (r >> 8 & 1) p.top_k = 1 + (int32_t)(test_random() % (r >> 9 & 1 ? 50 : (uint64_t)vocab));
    if (r >> 10 & 1) p.top_p = (float)(r >> 11 & 1 ? 0.8 + 0.199 * unit() : 0.0001 + unit() * 0.99);
    if ((r >> 12 & 3) == 0) p.min_p = (float)(0.3 * unit() * unit());
    if ((r >> 14 & 7) == 0) p.u = (r >> 17 & 1) ? 0 : 1 - 0x1p-53;
    p.score = r >> 18 & 1;
    return p;
}

/* --- checks ----------------------------------------------------------------------------------- */

/* What the host makes of row `p->row` of the rig; as kn_sample on the CPU. */
static struct kn_sampled expected(struct kn_sampler *s, const struct rig *g,
                                  const struct kn_sample_row *p)
{
    struct kn_sampled out = {.logprob = NAN};
    kn_sampler_load(s, g->host + (size_t)p->row * (size_t)g->vocab);
    out.token = kn_sampler_choose(s, p);
    if (!p->score || out.token < 0) return out;
    const float *x = kn_sampler_logits(s);
    out.logprob = (float)((double)x[out.token] - kn_sampler_log_sum(s));
    out.rank = 1;
    for (int32_t i = 0; i < g->vocab; i++) out.rank += x[i] > x[out.token];
    return out;
}

static bool same(const struct kn_sampled *a, const struct kn_sampled *b)
{
    if (a->token != b->token) return false;
    if (a->token < 0) return true;
    if (a->rank != b->rank || isnan(a->logprob) != isnan(b->logprob)) return false;
    if (isnan(a->logprob)) return true;
    return fabsf(a->logprob - b->logprob) <= 2e-6f * fmaxf(1, fabsf(b->logprob));
}

static void print_row(const struct kn_sample_row *p)
{
    printf("row %d temperature %g top_k %d top_p %.9g min_p %g u %.17g score %d\n", p->row,
           (double)p->temperature, p->top_k, (double)p->top_p, (double)p->min_p, p->u, p->score);
}

static void test_shape(int32_t vocab, int32_t rows)
{
    struct rig g;
    struct kn_sampler *s;
    struct kn_sample_row p[R_MAX];
    struct kn_sampled first[R_MAX];
    int32_t wrong = 0, differ = 0;
    int32_t distinct = (int64_t)vocab * rows > (4 << 20) ? (4 << 20) / vocab : rows;
    rig_open(&g, vocab, distinct);
    CHECK(kn_sampler_open(vocab, &s) == ST_OK);
    for (int32_t i = 0; i < distinct; i++)
        fill(g.host + (size_t)i * (size_t)vocab, vocab,
             vocab > 4096 && i % 4 ? NORMAL : (enum kind)(i / (vocab > 4096 ? 4 : 1) % KIND_COUNT));
    rig_send(&g);
    for (int32_t i = 0; i < rows; i++) {
        p[i] = some_params(vocab);
        p[i].row = i % distinct;
    }
    rig_sample(&g, p, rows);
    memcpy(first, g.out, (size_t)rows * sizeof *first);
    for (int32_t i = 0; i < rows; i++) {
        struct kn_sampled want = expected(s, &g, &p[i]);
        if (same(&first[i], &want)) continue;
        if (wrong++ == 0) {
            print_row(&p[i]);
            printf("token %d, not %d; rank %d, not %d; logprob %.9g, not %.9g\n", first[i].token,
                   want.token, first[i].rank, want.rank, (double)first[i].logprob,
                   (double)want.logprob);
        }
    }
    EXPECT(wrong == 0, "V %d, %d rows: %d differ from the host's", vocab, rows, wrong);
    for (int32_t i = 0; i < rows; i++) { /* each alone, and from the end */
        rig_sample(&g, &p[rows - 1 - i], 1);
        differ += memcmp(&g.out[0], &first[rows - 1 - i], sizeof first[0]) != 0;
        if (i == 15) break;
    }
    EXPECT(differ == 0, "V %d: %d rows depend on their neighbours", vocab, differ);
    kn_sampler_close(s);
    rig_close(&g);
}

/* The kept set and its order: for each kept token the draw is aimed at the middle of its share. */
static void test_sets(int32_t vocab, enum kind kind, float temperature, int32_t top_k, float top_p,
                      float min_p)
{
    struct rig g;
    struct kn_sampler *s;
    struct kn_sample_row p[R_MAX];
    int32_t wrong = 0, distinct = 0, last = -1;
    rig_open(&g, vocab, 1);
    CHECK(kn_sampler_open(vocab, &s) == ST_OK);
    fill(g.host, vocab, kind);
    rig_send(&g);
    for (int32_t begin = 0; begin < (quick ? R_MAX : 16 * R_MAX); begin += R_MAX) {
        for (int32_t i = 0; i < R_MAX; i++)
            p[i] = (struct kn_sample_row){.temperature = temperature,
                                          .top_k = top_k,
                                          .top_p = top_p,
                                          .min_p = min_p,
                                          .u = (begin + i + 0.5) / (quick ? R_MAX : 16 * R_MAX)};
        rig_sample(&g, p, R_MAX);
        for (int32_t i = 0; i < R_MAX; i++) {
            if (i % 8 == 0 || vocab <= 4096)
                wrong += g.out[i].token != expected(s, &g, &p[i]).token;
            EXPECT(g.out[i].token >= last, "ids must rise with u");
            distinct += g.out[i].token != last;
            last = g.out[i].token;
        }
    }
    EXPECT(wrong == 0, "V %d kind %d temperature %g top_k %d top_p %g min_p %g: %d wrong", vocab,
           (int)kind, (double)temperature, top_k, (double)top_p, (double)min_p, wrong);
    EXPECT(top_k == 0 || distinct <= top_k, "%d tokens with top_k %d", distinct, top_k);
    kn_sampler_close(s);
    rig_close(&g);
}

/* --- distribution ----------------------------------------------------------------------------- */

/* Random numbers as requests have them: seeds 0.., index 0. */
static void test_chi_square(float temperature)
{
    enum { V = 200 };
    struct rig g;
    struct kn_sample_row p[R_MAX];
    int32_t draws = quick ? 4 * R_MAX : 80 * R_MAX, count[V] = {0}, df = -1;
    double weight[V], total = 0, chi = 0, pooled = 0, pooled_count = 0, max = -INFINITY;
    rig_open(&g, V, 1);
    fill(g.host, V, NORMAL);
    rig_send(&g);
    for (int i = 0; i < V; i++) max = fmax(max, (double)g.host[i]);
    for (int i = 0; i < V; i++)
        total += weight[i] = exp(((double)g.host[i] - max) / (double)temperature);
    for (int32_t begin = 0; begin < draws; begin += R_MAX) {
        for (int32_t i = 0; i < R_MAX; i++)
            p[i] = (struct kn_sample_row){.temperature = temperature,
                                          .top_p = 1,
                                          .u = eng_sampler_uniform((uint64_t)(begin + i), 0)};
        rig_sample(&g, p, R_MAX);
        for (int32_t i = 0; i < R_MAX; i++) count[g.out[i].token]++;
    }
    for (int i = 0; i < V; i++) {
        double want = weight[i] / total * draws;
        if (want < 10) {
            pooled += want;
            pooled_count += count[i];
            continue;
        }
        chi += (count[i] - want) * (count[i] - want) / want;
        df++;
    }
    chi += (pooled_count - pooled) * (pooled_count - pooled) / fmax(pooled, 1);
    df++;
    double h = 2.0 / (9.0 * df), limit = df * pow(1 - h + 4.27 * sqrt(h), 3);
    EXPECT(chi < limit, "chi-square %.1f with %d degrees of freedom", chi, df);
    rig_close(&g);
}

static void test_nothing_to_choose(void)
{
    struct rig g;
    static const int32_t vocabs[] = {1, 33, 4096};
    for (size_t v = 0; v < ARRAY_COUNT(vocabs); v++) {
        rig_open(&g, vocabs[v], 2);
        for (int32_t i = 0; i < vocabs[v]; i++) {
            g.host[i] = i % 2 ? NAN : -INFINITY;
            g.host[vocabs[v] + i] = i == vocabs[v] - 1 ? -FLT_MAX : NAN;
        }
        rig_send(&g);
        struct kn_sample_row p[4];
        for (int i = 0; i < 4; i++)
            p[i] = (struct kn_sample_row){.row = i / 2,
                                          .temperature = (float)(i % 2),
                                          .top_p = 0.9f,
                                          .top_k = 3,
                                          .u = 0.7,
                                          .score = true};
        rig_sample(&g, p, 4);
        EXPECT(g.out[0].token == -1 && g.out[1].token == -1, "tokens from nothing");
        EXPECT(g.out[2].token == vocabs[v] - 1 && g.out[3].token == vocabs[v] - 1, "the only one");
        EXPECT(g.out[2].rank == 1 && g.out[2].logprob == 0, "logprob of the only one");
        rig_close(&g);
    }
    char err[ERR_CAP] = "";
    EXPECT(kn_sample_reserve(gpu, (1 << 19) + 1, 1, err) == ST_UNSUPPORTED && err[0], "%s", err);
}

/* --- benchmark -------------------------------------------------------------------------------- */

static void bench_case(struct rig *g, int32_t rows, const char *name, struct kn_sample_row p)
{
    enum { RUNS = 50 };
    struct kn_sample_row all[R_MAX];
    for (int32_t i = 0; i < rows; i++) {
        all[i] = p;
        all[i].row = i;
        all[i].u = unit();
    }
    const struct kn_sample_args a = {g->logits, g->vocab, rows, all, g->out};
    for (int i = 0; i < 3; i++) kn_sample(gpu, &a);
    test_sync(gpu);
    uint64_t start = clock_now_ns();
    for (int i = 0; i < RUNS; i++) kn_sample(gpu, &a);
    test_sync(gpu);
    double each = (double)(clock_now_ns() - start) / RUNS * 1e-3;
    start = clock_now_ns();
    for (int i = 0; i < RUNS; i++) {
        kn_sample(gpu, &a);
        test_sync(gpu);
    }
    double synced = (double)(clock_now_ns() - start) / RUNS * 1e-3;
    double bytes = (double)rows * g->vocab * 4;
    printf("V %6d rows %3d %-22s %8.1f us, with sync %8.1f us; logits once at 4.7 TB/s %6.1f us\n",
           g->vocab, rows, name, each, synced, bytes / 4.7e6);
}

static void bench(void)
{
    static const int32_t rows[] = {1, 8, 32, 64, 128, 256};
    struct rig g;
    rig_open(&g, 128256, R_MAX);
    for (int32_t i = 0; i < R_MAX; i++) {
        float *row = g.host + (size_t)i * 128256;
        if (i < 4) fill(row, 128256, NORMAL);
        else memcpy(row, g.host + (size_t)(i % 4) * 128256, 128256 * sizeof *row);
    }
    rig_send(&g);
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        bench_case(&g, rows[i], "greedy", (struct kn_sample_row){.top_p = 1});
        bench_case(&g, rows[i], "greedy, score", (struct kn_sample_row){.top_p = 1, .score = true});
        bench_case(&g, rows[i], "temperature",
                   (struct kn_sample_row){.temperature = 1, .top_p = 1});
        bench_case(&g, rows[i], "top_p 0.9",
                   (struct kn_sample_row){.temperature = 0.8f, .top_p = 0.9f});
        bench_case(&g, rows[i], "top_k 40, top_p 0.95",
                   (struct kn_sample_row){.temperature = 0.7f, .top_p = 0.95f, .top_k = 40});
    }
    rig_close(&g);
}

int main(int argc, char **argv)
{
    char err[ERR_CAP] = "";
    static const int32_t vocabs[] = {1, 2, 33, 130, 4096, 32000, 128256, 151936, 262145, 524288};
    quick = argc > 1 && strcmp(argv[1], "--quick") == 0;
    test_must(kn_open_cuda(0, &gpu, err), err);
    printf("%s\n", kn_name(gpu));
    test_seed();
    if (argc > 1 && strcmp(argv[1], "--bench") == 0) {
        bench();
        kn_close(gpu);
        return 0;
    }
    for (size_t i = 0; i < ARRAY_COUNT(vocabs); i++) {
        test_shape(vocabs[i], 1);
        if (quick && vocabs[i] > 4096) continue;
        test_shape(vocabs[i], 7);
        if (!quick) test_shape(vocabs[i], vocabs[i] > 150000 ? 32 : R_MAX);
    }
    for (int kind = NORMAL; kind <= EQUAL; kind++) {
        int32_t v = quick ? 4096 : kind % 2 ? 128256 : 32000;
        test_sets(v, (enum kind)kind, 0.7f, 0, 0.9f, 0);
        test_sets(v, (enum kind)kind, 1, 40, 1, 0);
        test_sets(v, (enum kind)kind, 1.2f, 1500, 0.95f, 0.001f);
        test_sets(1000, (enum kind)kind, 1, 0, 0.5f, 0.05f);
    }
    test_chi_square(1);
    test_chi_square(0.6f);
    test_nothing_to_choose();
    kn_close(gpu);
    return test_report();
}
