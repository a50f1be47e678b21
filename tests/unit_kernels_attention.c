/*
 * unit_kernels_attention.c - attention over pages against fp64, with K and V as the pages hold them
 * (rounded to the KV's dtype), and bit for bit across chunkings of the prompt, placements of pages,
 * neighbours in the batch and threads. Pools start full of NaN, so a key that was not written, or
 * lies in the padding, shows at once.
 */
#include "config/check.h"
#include "kernels/e4m3.h"
#include "tests/kernels_common.h"

enum { LAYERS = 2, LAYER = 1, POOL_PAGES = 24 };

static const struct kn_cpu_isa *const isas[] = {NULL, &kn_cpu_isa_portable};

/* One sequence's prompt and what the operations made of it. */
struct prompt {
    struct kn_kv kv;
    int32_t q_heads, count; /* tokens, all of them */
    float *qkv;             /* owned: [count, (Hq + 2 Hkv) D], never changed */
};

static size_t width_of(const struct prompt *p)
{
    return (size_t)(p->q_heads + 2 * p->kv.kv_heads) * (size_t)p->kv.head_dim;
}

static size_t out_width(const struct prompt *p)
{
    return (size_t)p->q_heads * (size_t)p->kv.head_dim;
}

static struct prompt prompt_make(enum kn_dtype dtype, int32_t q_heads, int32_t kv_heads,
                                 int32_t dim, int32_t count)
{
    struct prompt p = {{dtype, LAYERS, kv_heads, dim, {0}}, q_heads, count, NULL};
    p.qkv = test_floats((size_t)count * width_of(&p));
    /* Wider queries and keys than uniform ones, so that the softmax is not flat. */
    for (size_t i = 0; i < (size_t)count * width_of(&p); i++) p.qkv[i] *= 2;
    return p;
}

/* Pools of tiers 0 and 2 full of NaN. */
static void pools_open(struct kn_kv *kv)
{
    size_t bytes = round_up(kn_kv_page_bytes(kv) * POOL_PAGES, KN_ALIGN);
    for (int tier = 0; tier <= 2; tier += 2) {
        kv->base[tier] = aligned_alloc(KN_ALIGN, bytes);
        assert_non_null(kv->base[tier]);
        memset(kv->base[tier], 0xFF, bytes);
    }
}

static void pools_close(struct kn_kv *kv)
{
    free(kv->base[0]);
    free(kv->base[2]);
    kv->base[0] = kv->base[2] = NULL;
}

/* How a run goes about the same prompt. */
struct way {
    const struct kn_cpu_isa *isa;
    int threads;
    int32_t chunk;   /* tokens a step */
    bool scatter;    /* pages in both tiers, indices descending */
    bool neighbours; /* another sequence's tokens before and after in each step */
    int32_t window;
};

/* One step: the prompt's tokens [done, done + count), between one-token sequences where asked. */
static void run_step(struct kn *kn, const struct prompt *p, struct kn_kv *kv, const struct way *way,
                     const kn_page *pages, int32_t page_count, int32_t done, int32_t count,
                     float *out)
{
    size_t width = width_of(p), wide = out_width(p);
    int32_t before = way->neighbours ? 1 : 0, total = count + 2 * before;
    float *qkv = test_floats((size_t)total * width), *result = test_poisoned((size_t)total * wide);
    memcpy(qkv + (size_t)before * width, p->qkv + (size_t)done * width,
           (size_t)count * width * sizeof *qkv);
    int32_t *positions = calloc((size_t)total, sizeof *positions);
    int32_t *token_seq = calloc((size_t)total, sizeof *token_seq);
    kn_page table[POOL_PAGES + 2];
    assert_true(positions && token_seq);
    memcpy(table, pages, (size_t)page_count * sizeof *pages);
    table[page_count] = kn_page_make(0, POOL_PAGES - 1);
    table[page_count + 1] = kn_page_make(2, POOL_PAGES - 1);
    struct kn_seq seqs[3] = {{0, before, before, page_count},
                             {before, count, done + count, 0},
                             {before + count, before, before, page_count + 1}};
    for (int32_t i = 0; i < total; i++) {
        token_seq[i] = i < before ? 0 : i < before + count ? 1 : 2;
        positions[i] = token_seq[i] == 1 ? done + i - before : 0;
    }
    struct kn_batch batch = {.token_count = total,
                             .positions = positions,
                             .token_seq = token_seq,
                             .seq_count = 3,
                             .seqs = seqs,
                             .pages = table};
    struct kn_qkv_args append = {.qkv = qkv, .q_heads = p->q_heads, .kv = kv, .layer = LAYER};
    kn_qkv(kn, &batch, &append);
    float scale = 1.0f / sqrtf((float)p->kv.head_dim);
    struct kn_attention_args attend = {qkv, p->q_heads, scale, way->window, kv, LAYER, result};
    kn_attention(kn, &batch, &attend);
    memcpy(out + (size_t)done * wide, result + (size_t)before * wide,
           (size_t)count * wide * sizeof *out);
    free(qkv), free(result), free(positions), free(token_seq);
}

/* out[count, Hq D] of the whole prompt; the caller frees. */
static float *run_prompt(const struct prompt *p, const struct way *way)
{
    struct kn *kn = test_open(way->threads, way->isa);
    struct kn_kv kv = p->kv;
    pools_open(&kv);
    int32_t page_count = (p->count + KN_PAGE_TOKENS - 1) / KN_PAGE_TOKENS;
    kn_page pages[POOL_PAGES];
    assert_true(page_count < POOL_PAGES);
    for (int32_t i = 0; i < page_count; i++)
        pages[i] = way->scatter ? kn_page_make(i % 2 ? 0 : 2, (uint32_t)(POOL_PAGES - 2 - i))
                                : kn_page_make(0, (uint32_t)i);
    float *out = test_poisoned((size_t)p->count * out_width(p));
    for (int32_t done = 0; done < p->count; done += way->chunk) {
        int32_t left = p->count - done, count = left < way->chunk ? left : way->chunk;
        /* Pages wholly behind the window of every token to come may be gone. */
        if (way->window > 0)
            for (int32_t i = 0; (i + 1) * KN_PAGE_TOKENS <= done - way->window + 1; i++)
                pages[i] = KN_PAGE_NONE;
        run_step(kn, p, &kv, way, pages, page_count, done, count, out);
    }
    pools_close(&kv);
    kn_close(kn);
    return out;
}

/* A K or V row of a token as pages hold it. */
static void stored_row(const struct prompt *p, const float *x, float *out)
{
    int32_t dim = p->kv.head_dim;
    if (p->kv.dtype != KN_E4M3) {
        for (int32_t d = 0; d < dim; d++) out[d] = test_round_to(p->kv.dtype, x[d]);
        return;
    }
    uint8_t bits[KN_HEAD_DIM_MAX];
    const float scale = kn_e4m3_scale(kn_e4m3_row(x, dim, bits));
    for (int32_t d = 0; d < dim; d++) out[d] = kn_f32_from_e4m3(bits[d]) * scale;
}

/* One row in fp64: the output in want[D], and for each the sum of p |v| as the scale of its error.
 */
static void reference(const struct prompt *p, int32_t token, int32_t head, int32_t window,
                      double *want, double *scale)
{
    int32_t dim = p->kv.head_dim, group = p->q_heads / p->kv.kv_heads;
    size_t width = width_of(p);
    const float *q = p->qkv + (size_t)token * width + (size_t)head * (size_t)dim;
    size_t k_at = (size_t)(p->q_heads + head / group) * (size_t)dim;
    size_t v_at = k_at + (size_t)p->kv.kv_heads * (size_t)dim;
    int32_t first = window > 0 && token >= window ? token - window + 1 : 0;
    double *score = malloc((size_t)(token + 1) * sizeof *score), max = -INFINITY, sum = 0;
    assert_non_null(score);
    for (int32_t j = first; j <= token; j++) {
        float k[KN_HEAD_DIM_MAX];
        stored_row(p, p->qkv + (size_t)j * width + k_at, k);
        score[j] = 0;
        for (int32_t d = 0; d < dim; d++) score[j] += (double)q[d] * (double)k[d];
        score[j] *= (double)(1.0f / sqrtf((float)dim));
        max = score[j] > max ? score[j] : max;
    }
    memset(want, 0, (size_t)dim * sizeof *want);
    memset(scale, 0, (size_t)dim * sizeof *scale);
    for (int32_t j = first; j <= token; j++) sum += score[j] = exp(score[j] - max);
    for (int32_t j = first; j <= token; j++) {
        float v[KN_HEAD_DIM_MAX];
        stored_row(p, p->qkv + (size_t)j * width + v_at, v);
        for (int32_t d = 0; d < dim; d++) {
            double term = score[j] / sum * (double)v[d];
            want[d] += term;
            scale[d] += fabs(term);
        }
    }
    free(score);
}

static void check_prompt(const struct prompt *p, const struct way *way, const float *out)
{
    static double want[KN_HEAD_DIM_MAX], scale[KN_HEAD_DIM_MAX];
    for (int32_t token = 0; token < p->count; token++) {
        for (int32_t head = 0; head < p->q_heads; head++) {
            reference(p, token, head, way->window, want, scale);
            const float *row = out + (size_t)token * out_width(p) + head * p->kv.head_dim;
            for (int32_t d = 0; d < p->kv.head_dim; d++) {
                double error = fabs((double)row[d] - want[d]);
                if (!(error <= 1e-5 * scale[d] + 1e-30))
                    fail_msg("D %d heads %d/%d count %d window %d: out[%d,%d,%d] is %g, not %g",
                             p->kv.head_dim, p->q_heads, p->kv.kv_heads, p->count, way->window,
                             token, head, d, (double)row[d], want[d]);
            }
        }
    }
}

static void check_case(enum kn_dtype dtype, int32_t q_heads, int32_t kv_heads, int32_t dim,
                       int32_t count, struct way way)
{
    struct prompt p = prompt_make(dtype, q_heads, kv_heads, dim, count);
    float *out = run_prompt(&p, &way);
    check_prompt(&p, &way, out);
    free(out);
    free(p.qkv);
}

static void test_head_dims_match_fp64(void **state)
{
    (void)state;
    static const int32_t dims[] = {1, 31, 64, 80, 96, 128, 130, 256, 512};
    for (size_t isa = 0; isa < 2; isa++)
        for (int dtype = 0; dtype <= KN_E4M3; dtype++)
            for (size_t d = 0; d < sizeof dims / sizeof dims[0]; d++)
                check_case((enum kn_dtype)dtype, 4, 2, dims[d], 67,
                           (struct way){.isa = isas[isa], .threads = 2, .chunk = 67});
}

static void test_contexts_match_fp64(void **state)
{
    (void)state;
    static const int32_t counts[] = {1, 63, 64, 65, 200};
    for (size_t isa = 0; isa < 2; isa++)
        for (int dtype = 0; dtype <= KN_E4M3; dtype++)
            for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++)
                check_case((enum kn_dtype)dtype, 3, 1, 64, counts[c],
                           (struct way){.isa = isas[isa], .threads = 2, .chunk = 50});
}

static void test_head_ratios_match_fp64(void **state)
{
    (void)state;
    static const int32_t heads[][2] = {{1, 1}, {4, 4},  {8, 4},  {6, 2},
                                       {8, 1}, {24, 1}, {32, 1}, {50, 2}};
    for (size_t i = 0; i < sizeof heads / sizeof heads[0]; i++)
        check_case(KN_BF16, heads[i][0], heads[i][1], 64, 70,
                   (struct way){.threads = 3, .chunk = 33});
}

static void test_windows_match_fp64(void **state)
{
    (void)state;
    static const int32_t windows[] = {1, 2, 63, 64, 65, 130, 199, 200, 1000};
    for (size_t i = 0; i < sizeof windows / sizeof windows[0]; i++)
        for (int32_t chunk = 1; chunk <= 200; chunk += 66)
            check_case(KN_F16, 4, 2, 64, 200,
                       (struct way){.threads = 2, .chunk = chunk, .window = windows[i]});
}

/* The plain run is the measure; each other way must give the same bits. */
static void check_ways(enum kn_dtype dtype, int32_t dim, int32_t window,
                       const struct kn_cpu_isa *isa)
{
    struct prompt p = prompt_make(dtype, 6, 2, dim, 200);
    size_t bytes = (size_t)p.count * out_width(&p) * sizeof(float);
    struct way plain = {.isa = isa, .threads = 1, .chunk = 200, .window = window};
    float *want = run_prompt(&p, &plain);
    static const int32_t chunks[] = {1, 7, 63, 64, 65, 128, 200};
    for (size_t c = 0; c < sizeof chunks / sizeof chunks[0]; c++) {
        for (int mask = 0; mask < 4; mask++) {
            struct way way = {.isa = isa,
                              .threads = 1 + (int)(c + (size_t)mask) % 3,
                              .chunk = chunks[c],
                              .scatter = mask & 1,
                              .neighbours = mask & 2,
                              .window = window};
            float *got = run_prompt(&p, &way);
            assert_memory_equal(got, want, bytes);
            free(got);
        }
    }
    free(want);
    free(p.qkv);
}

static void test_ways_are_bitwise_equal(void **state)
{
    (void)state;
    for (size_t isa = 0; isa < 2; isa++)
        for (int dtype = 0; dtype <= KN_E4M3; dtype++) {
            check_ways((enum kn_dtype)dtype, 64, 0, isas[isa]);
            check_ways((enum kn_dtype)dtype, 80, 70, isas[isa]);
        }
}

/* Scores far apart: the running maximum moves by hundreds, exponentials underflow, and nothing
 * becomes NaN. */
static void test_extreme_scores(void **state)
{
    (void)state;
    struct prompt p = prompt_make(KN_F32, 2, 1, 64, 150);
    for (size_t i = 0; i < (size_t)p.count * width_of(&p); i++)
        if (i % width_of(&p) < 3 * 64) p.qkv[i] *= 10; /* q and k, not v */
    struct way way = {.threads = 2, .chunk = 40};
    float *out = run_prompt(&p, &way);
    for (size_t i = 0; i < (size_t)p.count * out_width(&p); i++)
        assert_true(fabsf(out[i]) <= 2.00001f); /* an average of values in [-2, 2) */
    free(out);
    free(p.qkv);
}

int main(void)
{
    test_seed();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_head_dims_match_fp64),   cmocka_unit_test(test_contexts_match_fp64),
        cmocka_unit_test(test_head_ratios_match_fp64), cmocka_unit_test(test_windows_match_fp64),
        cmocka_unit_test(test_ways_are_bitwise_equal), cmocka_unit_test(test_extreme_scores),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
