/*
 * unit_engine_model.c - the whole model side against the Python reference, and against itself.
 *
 * tests/fixtures/models holds tiny checkpoints with logits and greedy tokens of the reference
 * (scripts/make_model_fixtures.py).  fp32 fixtures are held to 1e-3.  With bf16 or f16 weights K
 * and V are kept in that type, and the reference rounds them likewise: what is left is that a value
 * near the middle between two neighbours may fall to the other side, one unit in the last place
 * (2^-8 of it in bf16, 2^-11 in f16, where it happens eight times as often).  Hence the bounds 2^-7
 * and 2^-9. Greedy margins of the fixtures are 0.03 and more, above twice the bound, so tokens must
 * be equal.
 *
 * Then what must be bitwise equal: chunkings of a prompt, placements of weights and of KV pages,
 * neighbours in the batch, thread counts.
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
#include "config/file.h"
#include "config/json.h"
#include "engine/model.h"
#include "tests/model_dir.h"

#define FIXTURES "tests/fixtures/models/"
#define PROMPT 100
#define STEPS 64
#define ROWS_KEPT 8
#define PAGES 4 /* of one sequence: 256 positions */
#define SEQS 4
#define MIB (1u << 20)

/* --- a model opened for a test ---------------------------------------------------------------- */

struct rig {
    struct kn *kn;
    struct off_tiers *tiers;
    struct eng_model *model;
    struct kn_kv kv;
    size_t pool_bytes;
    int pools;
    float *logits;
    int32_t vocab;
};

struct setup {
    double offload;
    int remotes, threads;
    bool everywhere;
    enum eng_load_format format;
    enum eng_dtype dtype;
    uint64_t seed;
};

static void rig_open(struct rig *r, const char *dir, struct setup s)
{
    char err[ERR_CAP] = "";
    struct off_remote remote;
    struct eng_model_options opt = {.load_format = s.format,
                                    .dtype = s.dtype,
                                    .seed = s.seed,
                                    .offload = s.offload,
                                    .everywhere = s.everywhere,
                                    .model_len_max = 0,
                                    .tokens_max = 512,
                                    .rows_max = 512};
    static const char *const remotes[] = {"", "host:8MiB", "host:8MiB,peer:1:4MiB"};
    *r = (struct rig){.pools = s.remotes + 1};
    if (kn_open_cpu(s.threads ? s.threads : 1, &r->kn, err)) fail_msg("%s", err);
    if (off_remote_parse(remotes[s.remotes], &remote, err)) fail_msg("%s", err);
    if (off_tiers_open(r->kn, 8 * MIB, &remote, &r->tiers, err)) fail_msg("%s", err);
    if (eng_model_open(r->kn, r->tiers, dir, &opt, &r->model, err)) fail_msg("%s", err);
    eng_model_kv(r->model, &r->kv);
    r->pool_bytes = PAGES * SEQS * kn_kv_page_bytes(&r->kv);
    for (int t = 0; t < r->pools; t++)
        if (kn_alloc(r->kn, KN_MEM_LOCAL, 0, r->pool_bytes, &r->kv.base[t], err))
            fail_msg("%s", err);
    r->vocab = eng_model_info(r->model)->vocab;
    r->logits = malloc(512 * (size_t)r->vocab * sizeof(float));
    assert_non_null(r->logits);
}

static void rig_close(struct rig *r)
{
    for (int t = 0; t < r->pools; t++) kn_free(r->kn, KN_MEM_LOCAL, r->kv.base[t], r->pool_bytes);
    eng_model_close(r->model);
    off_tiers_close(r->tiers);
    kn_close(r->kn);
    free(r->logits);
}

/* --- a step ----------------------------------------------------------------------------------- */

struct step {
    int32_t tokens[512], positions[512], token_seq[512], rows[512];
    struct kn_seq seqs[SEQS];
    kn_page pages[SEQS * PAGES];
    struct kn_batch batch;
};

static void step_init(struct step *s)
{
    memset(s, 0, sizeof *s);
    s->batch = (struct kn_batch){.tokens = s->tokens,
                                 .positions = s->positions,
                                 .token_seq = s->token_seq,
                                 .seqs = s->seqs,
                                 .pages = s->pages,
                                 .rows = s->rows};
}

/* Adds positions [begin, end) of sequence slot; every token's logits are wanted. */
static void step_add(const struct rig *r, struct step *s, int slot, const int32_t *tokens,
                     int32_t begin, int32_t end)
{
    struct kn_batch *b = &s->batch;
    struct kn_seq *q = &s->seqs[b->seq_count];
    *q = (struct kn_seq){.token_begin = b->token_count,
                         .token_count = end - begin,
                         .kv_count = end,
                         .page_begin = b->seq_count * PAGES};
    for (int p = 0; p < PAGES; p++) /* pages of a sequence alternate between the pools */
        s->pages[q->page_begin + p] = kn_page_make((unsigned)((p + slot) % r->pools),
                                                   (uint32_t)(slot * PAGES + PAGES - 1 - p));
    for (int32_t p = begin; p < end; p++) {
        int32_t i = b->token_count++;
        s->tokens[i] = tokens[p];
        s->positions[i] = p;
        s->token_seq[i] = b->seq_count;
        s->rows[b->row_count++] = i;
    }
    b->seq_count++;
}

static void step_run(struct rig *r, struct step *s)
{
    char err[ERR_CAP] = "";
    memset(r->logits, 0xFF, 512 * (size_t)r->vocab * sizeof(float));
    eng_model_forward(r->model, &s->batch, &r->kv);
    if (s->batch.row_count) eng_model_logits(r->model, &s->batch, r->logits);
    if (kn_sync(r->kn, err)) fail_msg("%s", err);
}

/* Logits of positions [begin, end) of the sequence alone, computed in chunks, to out[., V]. */
static void run_chunks(struct rig *r, const int32_t *tokens, int32_t begin, int32_t end,
                       int32_t chunk, float *out)
{
    struct step s;
    for (int32_t p = begin; p < end; p += chunk) {
        int32_t stop = p + chunk < end ? p + chunk : end;
        step_init(&s);
        step_add(r, &s, 0, tokens, p, stop);
        step_run(r, &s);
        memcpy(out + (size_t)(p - begin) * (size_t)r->vocab, r->logits,
               (size_t)(stop - p) * (size_t)r->vocab * sizeof(float));
    }
}

static int32_t argmax(const float *v, int32_t n)
{
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (v[i] > v[best]) best = i;
    return best;
}

/* --- fixtures --------------------------------------------------------------------------------- */

struct fixture {
    char dir[256];
    int32_t tokens[PROMPT + STEPS + 1]; /* prompt, then the greedy answer */
    int32_t rows[ROWS_KEPT];
    double margin;
    float *logits; /* [ROWS_KEPT, V] */
};

static void read_ints(const cJSON *root, const char *key, int32_t *out, int count)
{
    const cJSON *list = json_member(root, key);
    assert_int_equal(cJSON_GetArraySize(list), count);
    int i = 0;
    for (const cJSON *item = list->child; item; item = item->next) out[i++] = item->valueint;
}

static void fixture_open(struct fixture *f, const char *name, int32_t vocab)
{
    char path[512], err[ERR_CAP] = "", *data;
    cJSON *root;
    size_t len;
    snprintf(f->dir, sizeof f->dir, FIXTURES "%s", name);
    snprintf(path, sizeof path, "%s/expected.json", f->dir);
    if (json_parse_file(path, &json_limits_file, &root, err)) fail_msg("%s", err);
    read_ints(root, "prompt", f->tokens, PROMPT);
    read_ints(root, "tokens", f->tokens + PROMPT, STEPS + 1);
    read_ints(root, "rows", f->rows, ROWS_KEPT);
    f->margin = json_member(root, "margin")->valuedouble;
    cJSON_Delete(root);
    snprintf(path, sizeof path, "%s/expected.f32", f->dir);
    if (file_read(path, MIB, &data, &len, err)) fail_msg("%s", err);
    assert_int_equal(len, ROWS_KEPT * (size_t)vocab * sizeof(float));
    f->logits = (float *)data;
}

static double tolerance(enum kn_dtype kv)
{
    switch (kv) {
    case KN_F32: return 1e-3;
    case KN_BF16: return 2.0 / 256;
    default: return 1.0 / 512;
    }
}

/* The largest difference of the kept rows that lie in [begin, end). */
static double worst(const struct fixture *f, int32_t vocab, const float *logits, int32_t begin,
                    int32_t end)
{
    double most = 0;
    for (int i = 0; i < ROWS_KEPT; i++) {
        if (f->rows[i] < begin || f->rows[i] >= end) continue;
        for (int32_t v = 0; v < vocab; v++) {
            double have = logits[(size_t)(f->rows[i] - begin) * (size_t)vocab + (size_t)v];
            double want = f->logits[(size_t)i * (size_t)vocab + (size_t)v];
            double d = fabs(have - want);
            if (!(d <= most)) most = d;
            if (isnan(d)) return INFINITY;
        }
    }
    return most;
}

static void reference_equals(void **state)
{
    const char *name = *state;
    struct rig r;
    struct fixture f;
    char dir[256];
    int32_t tokens[PROMPT + STEPS + 1];
    snprintf(dir, sizeof dir, FIXTURES "%s", name);
    rig_open(&r, dir, (struct setup){0});
    fixture_open(&f, name, r.vocab);
    double bound = tolerance(r.kv.dtype);
    assert_true(f.margin > 2 * bound);
    float *all = malloc((PROMPT + STEPS) * (size_t)r.vocab * sizeof *all);
    memcpy(tokens, f.tokens, PROMPT * sizeof tokens[0]);

    run_chunks(&r, tokens, 0, PROMPT, PROMPT, all);
    double prefill = worst(&f, r.vocab, all, 0, PROMPT);
    for (int32_t p = PROMPT; p < PROMPT + STEPS; p++) {
        tokens[p] = argmax(all + (size_t)(p - 1) * (size_t)r.vocab, r.vocab);
        run_chunks(&r, tokens, p, p + 1, 1, all + (size_t)p * (size_t)r.vocab);
    }
    tokens[PROMPT + STEPS] = argmax(all + (size_t)(PROMPT + STEPS - 1) * (size_t)r.vocab, r.vocab);
    double decode =
        worst(&f, r.vocab, all + (size_t)PROMPT * (size_t)r.vocab, PROMPT, PROMPT + STEPS);
    print_message("%s: worst difference %.2e in prefill, %.2e in decode (bound %.2e)\n", name,
                  prefill, decode, bound);
    assert_true(prefill <= bound);
    assert_true(decode <= bound);
    assert_memory_equal(tokens, f.tokens, sizeof tokens);
    free(all);
    free(f.logits);
    rig_close(&r);
}

/* --- bitwise equality ------------------------------------------------------------------------- */

/* All logits of prompt and answer (teacher-forced) under a set-up. */
static float *all_logits(const char *name, struct setup s, int32_t chunk, size_t *bytes)
{
    struct rig r;
    struct fixture f;
    char dir[256];
    snprintf(dir, sizeof dir, FIXTURES "%s", name);
    rig_open(&r, dir, s);
    fixture_open(&f, name, r.vocab);
    *bytes = (PROMPT + STEPS) * (size_t)r.vocab * sizeof(float);
    float *all = malloc(*bytes);
    assert_non_null(all);
    run_chunks(&r, f.tokens, 0, PROMPT + STEPS, chunk, all);
    free(f.logits);
    rig_close(&r);
    return all;
}

static void chunkings_equal(void **state)
{
    static const int32_t chunks[] = {1, 7, 64};
    size_t bytes, again;
    float *whole = all_logits(*state, (struct setup){0}, PROMPT + STEPS, &bytes);
    for (size_t i = 0; i < ARRAY_COUNT(chunks); i++) {
        float *other = all_logits(*state, (struct setup){0}, chunks[i], &again);
        assert_memory_equal(whole, other, bytes);
        free(other);
    }
    free(whole);
}

static void placements_equal(void **state)
{
    static const struct setup setups[] = {{.offload = 0.3, .remotes = 1},
                                          {.offload = 1.0, .remotes = 1},
                                          {.offload = 0.3, .remotes = 2},
                                          {.offload = 1.0, .remotes = 2},
                                          {.offload = 0.7, .remotes = 2, .threads = 2},
                                          {.threads = 3}};
    size_t bytes, again;
    float *local = all_logits(*state, (struct setup){0}, 50, &bytes);
    for (size_t i = 0; i < ARRAY_COUNT(setups); i++) {
        float *other = all_logits(*state, setups[i], 50, &again);
        assert_memory_equal(local, other, bytes);
        free(other);
    }
    free(local);
}

/* One loading, whose weights are read elsewhere again and again: the places that a loading of each
 * share would give them, and the same bits. */
static void places_change(void **state)
{
    static const struct {
        double offload;
        enum off_placement placement;
    } places[] = {{0.3, OFF_PLACE_EVEN}, {1, OFF_PLACE_AUTO}, {0, OFF_PLACE_AUTO},
                  {0.6, OFF_PLACE_AUTO}, {1, OFF_PLACE_EVEN}, {0.1, OFF_PLACE_EVEN}};
    size_t bytes;
    char dir[256], err[ERR_CAP] = "";
    struct rig r, own;
    struct fixture f;
    float *local = all_logits(*state, (struct setup){0}, 50, &bytes), *other = malloc(bytes);
    snprintf(dir, sizeof dir, FIXTURES "%s", (const char *)*state);
    rig_open(&r, dir, (struct setup){.everywhere = true, .offload = 0.5, .remotes = 2});
    fixture_open(&f, *state, r.vocab);
    for (size_t i = 0; i < ARRAY_COUNT(places); i++) {
        const struct eng_model_options opt = {
            .everywhere = true, .offload = places[i].offload, .placement = places[i].placement};
        if (eng_model_place(r.model, r.tiers, &opt, err)) fail_msg("%s", err);
        run_chunks(&r, f.tokens, 0, PROMPT + STEPS, 50, other);
        assert_memory_equal(local, other, bytes);
        if (places[i].placement != OFF_PLACE_AUTO) continue; /* rig_open's */
        rig_open(&own, dir, (struct setup){.offload = places[i].offload, .remotes = 2});
        for (int t = 0; t < 3; t++)
            assert_int_equal(eng_model_tier_bytes(r.model, t), eng_model_tier_bytes(own.model, t));
        rig_close(&own);
    }
    free(local);
    free(other);
    free(f.logits);
    rig_close(&r);
}

/* The same sequence with others before, after and around it in every step. */
static void neighbours_equal(void **state)
{
    struct rig r;
    struct fixture f;
    struct step s;
    char dir[256];
    size_t bytes, row = 0;
    int32_t noise[256];
    float *alone = all_logits(*state, (struct setup){0}, 20, &bytes);
    snprintf(dir, sizeof dir, FIXTURES "%s", (const char *)*state);
    rig_open(&r, dir, (struct setup){.remotes = 2, .offload = 0.5, .threads = 2});
    fixture_open(&f, *state, r.vocab);
    for (int i = 0; i < 256; i++) noise[i] = (i * 37 + 11) % r.vocab;
    for (int32_t p = 0, n = 0; p < PROMPT + STEPS; p += 20, n++) {
        int32_t stop = p + 20 < PROMPT + STEPS ? p + 20 : PROMPT + STEPS;
        step_init(&s);
        if (n % 2 == 0) step_add(&r, &s, 1, noise, n / 2 * 3, n / 2 * 3 + 3);
        step_add(&r, &s, 2, noise + 7, n * 13, n * 13 + 13);
        int32_t first = s.batch.row_count;
        step_add(&r, &s, 0, f.tokens, p, stop);
        step_add(&r, &s, 3, noise + 3, n, n + 1);
        step_run(&r, &s);
        size_t count = (size_t)(stop - p) * (size_t)r.vocab;
        assert_memory_equal(alone + row, r.logits + (size_t)first * (size_t)r.vocab,
                            count * sizeof(float));
        row += count;
    }
    free(alone);
    free(f.logits);
    rig_close(&r);
}

/* A step that wants no logits appends its KV all the same, and one that wants few gets those. */
static void wanted_rows(void **state)
{
    struct rig r;
    struct fixture f;
    struct step s;
    size_t bytes;
    float *alone = all_logits(*state, (struct setup){0}, 40, &bytes);
    char dir[256];
    snprintf(dir, sizeof dir, FIXTURES "%s", (const char *)*state);
    rig_open(&r, dir, (struct setup){0});
    fixture_open(&f, *state, r.vocab);
    step_init(&s);
    step_add(&r, &s, 0, f.tokens, 0, 40);
    s.batch.row_count = 0;
    step_run(&r, &s);
    assert_int_equal(*(uint32_t *)(void *)r.logits, UINT32_MAX); /* untouched */
    step_init(&s);
    step_add(&r, &s, 0, f.tokens, 40, 80);
    s.batch.row_count = 2;
    s.rows[0] = 39;
    s.rows[1] = 3;
    step_run(&r, &s);
    size_t vocab = (size_t)r.vocab, row = vocab * sizeof(float);
    assert_memory_equal(r.logits, alone + 79 * vocab, row);
    assert_memory_equal(r.logits + vocab, alone + 43 * vocab, row);
    /* The first tokens, in order: nothing to gather. */
    s.batch.row_count = 3;
    for (int32_t i = 0; i < 3; i++) s.rows[i] = i;
    step_run(&r, &s);
    assert_memory_equal(r.logits, alone + 40 * vocab, 3 * row);
    free(alone);
    free(f.logits);
    rig_close(&r);
}

/* --- dummy weights, types, placement ---------------------------------------------------------- */

static float *dummy_logits(const char *name, struct setup s, size_t *bytes)
{
    struct rig r;
    char dir[256];
    int32_t tokens[80];
    s.format = ENG_LOAD_DUMMY;
    snprintf(dir, sizeof dir, FIXTURES "%s", name);
    rig_open(&r, dir, s);
    for (int i = 0; i < 80; i++) tokens[i] = (i * 29 + 3) % r.vocab;
    *bytes = 80 * (size_t)r.vocab * sizeof(float);
    float *all = malloc(*bytes);
    assert_non_null(all);
    run_chunks(&r, tokens, 0, 80, 80, all);
    rig_close(&r);
    return all;
}

static void dummy_weights(void **state)
{
    size_t bytes;
    float *a = dummy_logits(*state, (struct setup){.seed = 1}, &bytes);
    float *b = dummy_logits(
        *state, (struct setup){.seed = 1, .offload = 0.6, .remotes = 2, .threads = 2}, &bytes);
    float *c = dummy_logits(*state, (struct setup){.seed = 2}, &bytes);
    assert_memory_equal(a, b, bytes);
    assert_memory_not_equal(a, c, bytes);
    double sum = 0;
    for (size_t i = 0; i < bytes / sizeof *a; i++) {
        assert_true(isfinite(a[i]));
        sum += fabs((double)a[i]);
    }
    assert_true(sum > 0);
    free(a);
    free(b);
    free(c);
}

static void dtype_option(void **state)
{
    static const struct {
        enum eng_dtype asked;
        enum kn_dtype got;
    } cases[] = {{ENG_DTYPE_AUTO, KN_BF16},
                 {ENG_DTYPE_F32, KN_F32},
                 {ENG_DTYPE_BF16, KN_BF16},
                 {ENG_DTYPE_F16, KN_F16}};
    struct rig r;
    struct fixture f;
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        rig_open(&r, FIXTURES "llama-bf16", (struct setup){.dtype = cases[i].asked});
        fixture_open(&f, "llama-bf16", r.vocab);
        assert_int_equal(eng_model_info(r.model)->dtype, cases[i].got);
        assert_int_equal(r.kv.dtype, cases[i].got);
        float *all = malloc(PROMPT * (size_t)r.vocab * sizeof *all);
        run_chunks(&r, f.tokens, 0, PROMPT, PROMPT, all);
        /* The checkpoint's bf16 values are exact in fp32, and in f16 but for the smallest; K and V
         * are then rounded less than in the reference, by at most half a unit of bf16 each. */
        assert_true(worst(&f, r.vocab, all, 0, PROMPT) < 0.1);
        free(all);
        free(f.logits);
        rig_close(&r);
    }
}

static void tier_bytes(void **state)
{
    struct rig r;
    struct eng_model_info info;
    struct eng_model_options opt = {.offload = 0.3};
    char err[ERR_CAP];
    (void)state;
    assert_int_equal(eng_model_read_info(FIXTURES "llama-gqa", &opt, &info, err), ST_OK);
    rig_open(&r, FIXTURES "llama-gqa", (struct setup){.offload = 0.3, .remotes = 2});
    const struct eng_model_info *opened = eng_model_info(r.model);
    uint64_t local = eng_model_tier_bytes(r.model, 0), host = eng_model_tier_bytes(r.model, 1);
    uint64_t peer = eng_model_tier_bytes(r.model, 2);
    assert_int_equal(local + host + peer, info.weight_bytes);
    assert_int_equal(info.weight_bytes, opened->weight_bytes);
    assert_int_equal(info.parameter_count, 99648); /* as the Python reference counts them */
    assert_int_equal(off_tier_used(r.tiers, 1), host);
    assert_int_equal(off_tier_used(r.tiers, 2), peer);
    /* Tiles here are 32 KB at most; norms (one KN_ALIGN-rounded run) are always local. */
    uint64_t tile = 2 * KN_BLOCK_BYTES;
    double share = (double)(host + peer) / (double)info.weight_bytes;
    assert_true(fabs(share - 0.3) < 2.0 * (double)tile / (double)info.weight_bytes);
    assert_true(fabs((double)host - 2.0 * (double)peer) < 3.0 * (double)tile);
    rig_close(&r);
}

static void capacity_errors(void **state)
{
    struct kn *kn;
    struct off_remote remote;
    struct off_tiers *tiers;
    struct eng_model *model;
    struct eng_model_options opt = {.offload = 0, .tokens_max = 8, .rows_max = 8};
    char err[ERR_CAP] = "";
    (void)state;
    assert_int_equal(kn_open_cpu(1, &kn, err), ST_OK);
    assert_int_equal(off_remote_parse("host:128KiB", &remote, err), ST_OK);
    assert_int_equal(off_tiers_open(kn, MIB / 8, &remote, &tiers, err), ST_OK);
    assert_int_equal(eng_model_open(kn, tiers, FIXTURES "llama-gqa", &opt, &model, err), ST_LIMIT);
    assert_non_null(strstr(err, "hbm"));
    assert_non_null(strstr(err, "--offload"));
    opt.offload = 0.99;
    assert_int_equal(eng_model_open(kn, tiers, FIXTURES "llama-gqa", &opt, &model, err), ST_LIMIT);
    assert_non_null(strstr(err, "host"));
    assert_non_null(strstr(err, "--remote"));
    assert_null(model);
    assert_int_equal(off_tier_used(tiers, 0), 0);
    off_tiers_close(tiers);

    assert_int_equal(off_tiers_open(kn, 8 * MIB, NULL, &tiers, err), ST_OK);
    assert_int_equal(eng_model_open(kn, tiers, FIXTURES "llama-gqa", &opt, &model, err),
                     ST_INVALID);
    assert_non_null(strstr(err, "--remote"));
    opt.offload = 0;
    opt.model_len_max = 257;
    assert_int_equal(eng_model_open(kn, tiers, FIXTURES "llama-gqa", &opt, &model, err),
                     ST_INVALID);
    assert_non_null(strstr(err, "--max-model-len"));
    off_tiers_close(tiers);
    kn_close(kn);
}

/* --- shapes of real models -------------------------------------------------------------------- */

static void shipped_shapes(void **state)
{
    static const struct {
        const char *dir;
        uint64_t parameters; /* as published */
        int32_t context;
        enum kn_dtype dtype;
    } models[] = {{"Llama-3.1-8B", 8030261248, 131072, KN_BF16},
                  {"Llama-3.1-70B", 70553706496, 131072, KN_BF16},
                  {"Qwen2.5-7B", 7615616512, 131072, KN_BF16},
                  {"Qwen3-32B", 32762123264, 40960, KN_BF16},
                  {"OPT-6.7B", 6658473984, 2048, KN_F16},
                  {"OPT-30B", 29974540288, 2048, KN_F16}};
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(models); i++) {
        char dir[128], err[ERR_CAP] = "";
        struct eng_model_info info;
        struct eng_model_options opt = {.load_format = ENG_LOAD_DUMMY};
        snprintf(dir, sizeof dir, "config/models/%s", models[i].dir);
        if (eng_model_read_info(dir, &opt, &info, err)) fail_msg("%s", err);
        assert_int_equal(info.parameter_count, models[i].parameters);
        assert_int_equal(info.context_max, models[i].context);
        assert_int_equal(info.dtype, models[i].dtype);
        assert_true(info.weight_bytes >= 2 * models[i].parameters);
        assert_true(info.weight_bytes < 2.02 * (double)models[i].parameters);
    }
}

static void generation_defaults(void **state)
{
    struct eng_model_info info;
    struct eng_model_options opt = {.load_format = ENG_LOAD_SAFETENSORS};
    char err[ERR_CAP] = "";
    (void)state;
    assert_int_equal(eng_model_read_info(FIXTURES "qwen3", &opt, &info, err), ST_OK);
    assert_string_equal(info.architecture, "Qwen3ForCausalLM");
    assert_int_equal(info.eos_count, 2);
    assert_int_equal(info.eos[0], 2);
    assert_int_equal(info.eos[1], 5);
    assert_int_equal(info.bos, 1);
    assert_true(isnan(info.temperature) && isnan(info.top_p) && isnan(info.min_p));
    assert_int_equal(info.top_k, -1);
    assert_int_equal(info.context_max, 256);
    assert_int_equal(eng_model_read_info(FIXTURES "llama-linear", &opt, &info, err), ST_OK);
    assert_int_equal(info.context_max, 640);
    assert_int_equal(eng_model_read_info(FIXTURES "llama-dynamic", &opt, &info, err), ST_OK);
    assert_int_equal(info.context_max, 256);
    assert_int_equal(eng_model_read_info(FIXTURES "llama-yarn", &opt, &info, err), ST_OK);
    assert_int_equal(info.context_max, 256);
}

/* --- forms a checkpoint may take -------------------------------------------------------------- */

static void micro_logits(const struct model_dir *d, float out[16 * 16])
{
    int32_t tokens[16];
    struct rig r;
    for (int i = 0; i < 16; i++) tokens[i] = (i * 5 + 1) % 16;
    rig_open(&r, d->path, (struct setup){0});
    run_chunks(&r, tokens, 0, 16, 16, out);
    rig_close(&r);
}

/* Data at any alignment, names without "model.", and tensors nobody asked for change nothing. */
static void stored_forms_equal(void **state)
{
    struct model_dir d;
    char header[MICRO_HEADER_CAP], bare[MICRO_HEADER_CAP];
    float want[16 * 16], got[16 * 16];
    size_t data = micro_header(header, 0, ARRAY_COUNT(micro_tensors)), len = strlen(header), n = 0;
    (void)state;
    dir_make(&d);
    micro_write(&d);
    micro_logits(&d, want);
    for (int pad = 1; pad < 8; pad++) {
        header[len++] = ' ';
        dir_write_tensors(&d, "model.safetensors", len, header, len, data);
        micro_logits(&d, got);
        assert_memory_equal(want, got, sizeof want);
    }
    for (size_t i = 0; i < len; i++) {
        if (!strncmp(header + i, "\"model.", 7)) {
            bare[n++] = '"';
            i += 6;
        } else {
            bare[n++] = header[i];
        }
    }
    dir_write_tensors(&d, "model.safetensors", n, bare, n, data);
    micro_logits(&d, got);
    assert_memory_equal(want, got, sizeof want);
    while (bare[n - 1] != '}') n--;
    n--;
    n += (size_t)snprintf(bare + n, sizeof bare - n,
                          ",\"layers.0.self_attn.rotary_emb.inv_freq\":{\"dtype\":\"F16\","
                          "\"shape\":[2],\"data_offsets\":[%zu,%zu]},\"unheard_of\":{\"dtype\":"
                          "\"I64\",\"shape\":[],\"data_offsets\":[%zu,%zu]}}",
                          data, data + 4, data + 4, data + 12);
    dir_write_tensors(&d, "model.safetensors", n, bare, n, data + 12);
    micro_logits(&d, got);
    assert_memory_equal(want, got, sizeof want);
    dir_remove(&d);
}

static void progress_count(void *user, uint64_t done, uint64_t total)
{
    uint64_t *last = user;
    assert_true(done <= total && total > 0);
    assert_true(done >= last[0]);
    last[0] = done;
    last[1] = total;
}

static void progress_reaches_total(void **state)
{
    struct kn *kn;
    struct off_tiers *tiers;
    struct eng_model *model;
    uint64_t last[2] = {0, 0};
    struct eng_model_options opt = {
        .tokens_max = 8, .rows_max = 8, .progress = progress_count, .user = last};
    char err[ERR_CAP] = "";
    (void)state;
    assert_int_equal(kn_open_cpu(1, &kn, err), ST_OK);
    assert_int_equal(off_tiers_open(kn, 8 * MIB, NULL, &tiers, err), ST_OK);
    assert_int_equal(eng_model_open(kn, tiers, FIXTURES "opt", &opt, &model, err), ST_OK);
    assert_true(last[0] == last[1] && last[1] > 0);
    eng_model_close(model);
    off_tiers_close(tiers);
    kn_close(kn);
}

/* clang-format off */
#define FIXTURE_MAP(X)                                                                             \
    X("llama-mha") X("llama-gqa") X("llama-linear") X("llama-dynamic") X("llama-llama3")           \
    X("llama-yarn") X("llama-tied-bias") X("mistral") X("mistral-window") X("qwen2")               \
    X("qwen2-window") X("qwen3") X("opt") X("llama-bf16") X("qwen3-bf16") X("qwen2-f16")           \
    X("opt-f16")
#define NAMED(test, fixture) {#test "/" fixture, test, NULL, NULL, (void *)(uintptr_t)fixture}
#define EACH(fixture)                                                                              \
    NAMED(reference_equals, fixture), NAMED(chunkings_equal, fixture),                             \
    NAMED(placements_equal, fixture), NAMED(places_change, fixture),                               \
    NAMED(neighbours_equal, fixture),                                                              \
    NAMED(dummy_weights, fixture),
/* clang-format on */

int main(void)
{
    const struct CMUnitTest tests[] = {
        FIXTURE_MAP(EACH) NAMED(wanted_rows, "qwen3"),
        cmocka_unit_test(dtype_option),
        cmocka_unit_test(tier_bytes),
        cmocka_unit_test(capacity_errors),
        cmocka_unit_test(shipped_shapes),
        cmocka_unit_test(generation_defaults),
        cmocka_unit_test(stored_forms_equal),
        cmocka_unit_test(progress_reaches_total),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
