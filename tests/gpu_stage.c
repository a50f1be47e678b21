/*
 * gpu_stage.c - remote weights of decode steps, staged by the copy engine (kernels/cuda/stage.c).
 *
 * A small model of products alone, whose weights lie in HBM, in host memory and in another GPU's:
 * its steps must give the same bits for every placement, whatever share of the remote tiles is
 * staged and however small the ring is, issued and recorded, with prompts between and two steps in
 * flight; each staged byte must be counted once a step.  Weights are different in every layer and
 * the ring is poisoned, so that a product which does not wait for its copy, or a copy which does
 * not wait for its place, shows.
 *
 *     gpu_stage [--quick | --tiny | --bench [host | peer]]
 *
 * --quick, --tiny: for compute-sanitizer; the latter a few issued steps, for racecheck is slow.
 * --bench: the products of Llama-3.1-8B as recorded steps, for shares of each weight that are
 * remote and shares of these that are staged; against the same with everything in HBM, in the same
 * run.
 */
#include <time.h>

#include "kernels/cuda/state.h"
#include "tests/gpu_common.h"

enum { LAYERS_MAX = 32, PER_LAYER = 4, KINDS = 3, TOKENS_MAX = 300, ROWS_MAX = 128 };
enum { QKV, O, UP, DOWN };

static struct kn *gpu;
static int gpus;

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int32_t below(int32_t n)
{
    return (int32_t)(test_random() % (uint64_t)n);
}

/* --- a model of products ---------------------------------------------------------------------- */

struct model {
    int32_t H, F, V, layers, pool_layers; /* layers beyond the pool's have the memory of others */
    struct kn_weight w[LAYERS_MAX][PER_LAYER], head, table;
    char *at[KINDS]; /* all weights of the pool's layers, whatever their tier */
    size_t layer_bytes, pool_bytes;
    void *head_at, *table_at;
    float *gain, *x, *logits;
    void *h, *mlp, *y;
    struct kn_sampled *out, *out_now; /* [2][TOKENS_MAX]; where this step writes */
    size_t act_bytes, y_bytes, logits_bytes;
};

static void noise_to(void *to, size_t bytes)
{
    const size_t part = bytes < (size_t)32 << 20 ? bytes : (size_t)32 << 20;
    uint16_t *data = test_malloc(part);
    for (size_t i = 0; i < part / 2; i++) data[i] = kn_bf16_from_f32(test_random_float() * 0.0625f);
    for (size_t at = 0; at < bytes; at += part)
        test_must(kn_upload(gpu, (char *)to + at, data, bytes - at < part ? bytes - at : part),
                  "upload");
    free(data);
}

static void *alloc(enum kn_mem mem, size_t bytes)
{
    char err[ERR_CAP] = "";
    void *p;
    test_must(kn_alloc(gpu, mem, mem == KN_MEM_PEER, bytes, &p, err), err);
    return p;
}

static void whole(struct kn_weight *w, int32_t rows, int32_t cols, void **at)
{
    kn_weight_init(w, KN_BF16, rows, cols);
    const size_t bytes = (size_t)w->tile_count * kn_weight_tile_bytes(w);
    *at = alloc(KN_MEM_LOCAL, bytes);
    noise_to(*at, bytes);
    w->span[0] = (struct kn_span){*at, 0, w->tile_count};
}

static void shape_layers(struct model *m)
{
    const int32_t rows[PER_LAYER] = {m->H * 3 / 2, m->H, 2 * m->F, m->H};
    const int32_t cols[PER_LAYER] = {m->H, m->H, m->H, m->F};
    m->layer_bytes = 0;
    for (int l = 0; l < m->layers; l++)
        for (int i = 0; i < PER_LAYER; i++) {
            kn_weight_init(&m->w[l][i], KN_BF16, rows[i], cols[i]);
            if (l == 0)
                m->layer_bytes += (size_t)m->w[l][i].tile_count * kn_weight_tile_bytes(&m->w[l][i]);
        }
}

static void model_open(struct model *m, int32_t H, int32_t F, int32_t V, int32_t layers,
                       int32_t pool_layers)
{
    char err[ERR_CAP] = "";
    *m = (struct model){.H = H, .F = F, .V = V, .layers = layers, .pool_layers = pool_layers};
    shape_layers(m);
    m->pool_bytes = (size_t)pool_layers * m->layer_bytes;
    for (int k = 0; k < KINDS; k++)
        if (k < 2 || gpus > 1) m->at[k] = alloc(test_mem_of(k), m->pool_bytes);
    noise_to(m->at[0], m->pool_bytes);
    char *copy = test_download(gpu, m->at[0], m->pool_bytes);
    for (int k = 1; k < KINDS; k++)
        if (m->at[k]) test_must(kn_upload(gpu, m->at[k], copy, m->pool_bytes), "upload");
    free(copy);
    whole(&m->head, V, H, &m->head_at);
    whole(&m->table, V, H, &m->table_at);
    float *ones = test_malloc((size_t)H * sizeof *ones);
    for (int32_t i = 0; i < H; i++) ones[i] = 1 + 0.125f * (float)(i % 3);
    m->gain = test_upload(gpu, KN_MEM_LOCAL, ones, (size_t)H * sizeof *ones);
    free(ones);
    m->act_bytes = kn_act_bytes(gpu, TOKENS_MAX, m->F > H ? m->F : H);
    m->y_bytes = (size_t)TOKENS_MAX * (size_t)H * 3 / 2 * sizeof(float);
    m->logits_bytes = (size_t)TOKENS_MAX * (size_t)V * sizeof(float);
    m->x = alloc(KN_MEM_LOCAL, (size_t)TOKENS_MAX * (size_t)H * sizeof(float));
    m->h = alloc(KN_MEM_LOCAL, m->act_bytes);
    m->mlp = alloc(KN_MEM_LOCAL, m->act_bytes);
    m->y = alloc(KN_MEM_LOCAL, m->y_bytes);
    m->logits = alloc(KN_MEM_STAGING, m->logits_bytes);
    m->out = m->out_now = alloc(KN_MEM_STAGING, 2 * TOKENS_MAX * sizeof *m->out);
    test_must(kn_sample_reserve(gpu, V, TOKENS_MAX, err), err);
}

static size_t head_bytes(const struct model *m)
{
    return (size_t)m->head.tile_count * kn_weight_tile_bytes(&m->head);
}

static void model_close(struct model *m)
{
    test_must(kn_stage(gpu, NULL, 0, 0, NULL), "freeing the ring");
    for (int k = 0; k < KINDS; k++)
        if (m->at[k]) kn_free(gpu, test_mem_of(k), m->at[k], m->pool_bytes);
    kn_free(gpu, KN_MEM_LOCAL, m->head_at, head_bytes(m));
    kn_free(gpu, KN_MEM_LOCAL, m->table_at, head_bytes(m));
    kn_free(gpu, KN_MEM_LOCAL, m->gain, (size_t)m->H * sizeof(float));
    kn_free(gpu, KN_MEM_LOCAL, m->x, (size_t)TOKENS_MAX * (size_t)m->H * sizeof(float));
    kn_free(gpu, KN_MEM_LOCAL, m->h, m->act_bytes);
    kn_free(gpu, KN_MEM_LOCAL, m->mlp, m->act_bytes);
    kn_free(gpu, KN_MEM_LOCAL, m->y, m->y_bytes);
    kn_free(gpu, KN_MEM_STAGING, m->logits, m->logits_bytes);
    kn_free(gpu, KN_MEM_STAGING, m->out, 2 * TOKENS_MAX * sizeof *m->out);
}

/* --- placement -------------------------------------------------------------------------------- */

/* Of each weight, tiles in local memory, in the host's, and the rest in a peer's. */
static void place_weight(struct model *m, int l, int i, int32_t near, int32_t host)
{
    struct kn_weight *w = &m->w[l][i];
    const size_t tile = kn_weight_tile_bytes(w);
    size_t offset = (size_t)(l % m->pool_layers) * m->layer_bytes;
    for (int k = 0; k < i; k++)
        offset += (size_t)m->w[l][k].tile_count * kn_weight_tile_bytes(&m->w[l][k]);
    const int32_t begin[KINDS + 1] = {0, near, near + host, w->tile_count};
    for (int k = 0; k < KINDS; k++) {
        w->span[k] = (struct kn_span){0};
        if (begin[k + 1] > begin[k])
            w->span[k] = (struct kn_span){m->at[k] + offset + (size_t)begin[k] * tile, begin[k],
                                          begin[k + 1] - begin[k]};
    }
}

struct items {
    struct kn_stage_item item[LAYERS_MAX * PER_LAYER * 2];
    int32_t count;
    size_t largest, bytes[KINDS]; /* of one weight's; by tier */
};

/* What is staged of every weight: a share of its remote tiles, of the nearer tier first. */
static void choose_items(struct model *m, double share, bool random, struct items *out)
{
    double owed = 0;
    *out = (struct items){0};
    for (int n = 0; n < m->layers * PER_LAYER; n++) {
        const struct kn_weight *w = &m->w[n / PER_LAYER][n % PER_LAYER];
        const size_t tile = kn_weight_tile_bytes(w);
        const int32_t remote = w->tile_count - w->span[0].tile_count;
        owed += share * remote * (double)tile;
        int32_t left = random ? below(remote + 1) : (int32_t)fmax(0, round(owed / (double)tile));
        if (left > remote) left = remote;
        owed -= left * (double)tile;
        const size_t bytes = (size_t)left * tile;
        if (bytes > out->largest) out->largest = bytes;
        for (int k = 1; k < KINDS && left > 0; k++) {
            const int32_t tiles = left < w->span[k].tile_count ? left : w->span[k].tile_count;
            if (tiles == 0) continue;
            out->item[out->count++] = (struct kn_stage_item){w, k, tiles};
            out->bytes[k] += (size_t)tiles * tile;
            left -= tiles;
        }
    }
}

static void stage(const struct items *items, size_t ring)
{
    char err[ERR_CAP] = "";
    struct kn_cu *cu = kn_cu_of(gpu);
    test_must(kn_stage(gpu, items->item, items->count, ring, err), err);
    size_t end = 0;
    for (int32_t i = 0; i < cu->staging.count; i++) {
        const struct kn_stage_place *p = &cu->staging.places[i];
        if (p->begin + p->bytes > end) end = p->begin + p->bytes;
    }
    EXPECT(end <= ring, "%zu bytes of %zu", end, ring);
    if (end == 0) return; /* NaN to whoever reads too early */
    CHECK(cudaMemset(cu->staging.memory, 0xFF, end) == cudaSuccess);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
}

/* --- steps ------------------------------------------------------------------------------------ */

struct arrays {
    int32_t tokens[TOKENS_MAX], positions[TOKENS_MAX], token_seq[TOKENS_MAX], rows[TOKENS_MAX];
    struct kn_seq seqs[TOKENS_MAX];
    kn_page pages[1];
    struct kn_sample_row choice[TOKENS_MAX];
    struct kn_batch batch;
};

static void make_step(const struct model *m, struct arrays *a, int32_t T)
{
    memset(a, 0, sizeof *a);
    for (int32_t i = 0; i < T; i++) {
        a->tokens[i] = below(m->V);
        a->token_seq[i] = a->rows[i] = i;
        a->seqs[i] = (struct kn_seq){i, 1, 1, 0};
        a->choice[i] = (struct kn_sample_row){.row = i, .top_p = 1};
    }
    a->batch = (struct kn_batch){T,        a->tokens, a->positions, a->token_seq, T, a->seqs,
                                 a->pages, T,         a->rows};
}

static void norm(struct model *m, int32_t T)
{
    kn_norm(gpu, &(struct kn_norm_args){.kind = KN_RMS_NORM,
                                        .eps = 1e-5f,
                                        .row_count = T,
                                        .cols = m->H,
                                        .x = m->x,
                                        .weight = m->gain,
                                        .y = m->h});
}

static void gemm(const struct kn_weight *w, int32_t T, const void *in, enum kn_epilogue epilogue,
                 void *out)
{
    kn_gemm(gpu, &(struct kn_gemm_args){
                     .w = w, .row_count = T, .in = in, .epilogue = epilogue, .out = out});
}

static void issue_layers(struct model *m, const struct arrays *a)
{
    const int32_t T = a->batch.token_count;
    kn_embed(gpu, &a->batch, &(struct kn_embed_args){.table = &m->table, .x = m->x});
    for (int l = 0; l < m->layers; l++) {
        norm(m, T);
        gemm(&m->w[l][QKV], T, m->h, KN_EPI_STORE, m->y);
        gemm(&m->w[l][O], T, m->h, KN_EPI_ADD, m->x);
        norm(m, T);
        gemm(&m->w[l][UP], T, m->h, KN_EPI_SWIGLU, m->mlp);
        gemm(&m->w[l][DOWN], T, m->mlp, KN_EPI_ADD, m->x);
    }
}

static void issue_head(struct model *m, const struct arrays *a, int32_t rows)
{
    norm(m, rows);
    gemm(&m->head, rows, m->h, KN_EPI_F32, m->logits);
    kn_sample(gpu, &(struct kn_sample_args){m->logits, m->V, rows, a->choice, m->out_now});
}

static void issue(struct model *m, const struct arrays *a)
{
    issue_layers(m, a);
    issue_head(m, a, a->batch.token_count);
}

static void record(struct model *m, int32_t T)
{
    char err[ERR_CAP] = "";
    static struct arrays a;
    T = kn_record_tokens(gpu, T);
    make_step(m, &a, T);
    issue(m, &a);
    test_sync(gpu);
    test_must(kn_record_begin(gpu, T, err), err);
    issue(m, &a);
    test_must(kn_record_end(gpu, err), err);
}

static void play(struct model *m, const struct arrays *a)
{
    const struct kn_sample_args s = {m->logits, m->V, a->batch.row_count, a->choice, m->out_now};
    EXPECT(kn_play(gpu, &a->batch, &s), "T %d is not played", a->batch.token_count);
}

/* --- correctness ------------------------------------------------------------------------------ */

/* A step, waited for: its logits.  The caller frees them. */
static float *logits_of(struct model *m, const struct arrays *a, bool played)
{
    char err[ERR_CAP] = "";
    uint64_t busy;
    const size_t bytes = (size_t)a->batch.row_count * (size_t)m->V * sizeof(float);
    memset(m->logits, 0x55, bytes);
    kn_step_begin(gpu);
    if (played) play(m, a);
    else issue(m, a);
    kn_download(gpu, m->logits, bytes);
    test_must(kn_step_wait(gpu, kn_step_end(gpu), &busy, err), err);
    float *logits = test_malloc(bytes);
    memcpy(logits, m->logits, bytes);
    return logits;
}

static const int32_t counts[] = {1, 8, 13, 32, 50, 128, 200};
enum { COUNTS = ARRAY_COUNT(counts) };

/* A step of each size, and what it gives with all weights in HBM. */
struct reference {
    struct arrays step[COUNTS];
    float *logits[COUNTS];
};

static void compare(struct model *m, const struct reference *r, int i, bool played,
                    const char *what)
{
    float *got = logits_of(m, &r->step[i], played);
    const size_t bytes = (size_t)counts[i] * (size_t)m->V * sizeof(float);
    EXPECT(isfinite(got[0]) && memcmp(got, r->logits[i], bytes) == 0, "%s: %d tokens, %s", what,
           counts[i], played ? "played" : "issued");
    free(got);
}

/* The counters as they are now. */
static uint64_t fetched_now(int tier)
{
    struct kn_traffic t;
    void *p = alloc(KN_MEM_LOCAL, 1024);
    for (int i = 0; i < 2; i++) {
        kn_stream_read(gpu, p, 1024);
        test_sync(gpu);
    }
    kn_free(gpu, KN_MEM_LOCAL, p, 1024);
    kn_traffic(gpu, tier, &t);
    return t.fetched_bytes;
}

/* Issued, recorded, played and mixed, prompts and a half step's head between. */
static void check_steps(struct model *m, const struct reference *r, const struct items *items,
                        size_t ring, bool tiny, const char *what)
{
    uint64_t before[KINDS];
    int32_t steps = 0;
    stage(items, ring);
    for (int k = 1; k < KINDS; k++) before[k] = fetched_now(k);
    for (int i = 0; i < COUNTS; i++) {
        compare(m, r, i, false, what);
        steps += counts[i] <= KN_STAGE_TOKENS;
    }
    for (int i = 0; i < COUNTS; i++)
        if (counts[i] == 1 || counts[i] == 32 || (counts[i] == 128 && !tiny)) {
            record(m, counts[i]);
            steps++; /* issued before it is recorded */
        }
    for (int i = 0; i < (tiny ? 4 : 12); i++) {
        static const int order[] = {0, 3, 0, 5, 6, 3, 4, 0, 6, 6, 5, 3};
        const int n = order[i];
        const bool played = (n == 0 || n == 3 || (n == 5 && !tiny)) && i != 7;
        compare(m, r, n, played, what);
        steps += counts[n] <= KN_STAGE_TOKENS;
    }
    for (int k = 1; k < KINDS; k++)
        EXPECT(fetched_now(k) - before[k] == (uint64_t)steps * items->bytes[k],
               "%s: tier %d: fetched %llu, not %d x %zu", what, k,
               (unsigned long long)(fetched_now(k) - before[k]), steps, items->bytes[k]);
}

/* Steps in flight, two at a time, each with the token of the one before; some issued, some played,
 * some without a head, some prompts.  Against the same with all weights in HBM. */
static void run_ahead(struct model *m, int32_t steps, bool recorded, int32_t *chosen)
{
    static struct arrays a[2], prompt;
    char err[ERR_CAP] = "";
    uint64_t busy, waiting = 0;
    const uint64_t random = test_random_state;
    test_random_state = 99; /* the same steps each time */
    make_step(m, &prompt, 200);
    for (int32_t n = 0; n < steps; n++) {
        struct arrays *now = &a[n % 2];
        make_step(m, now, 1);
        if (n > 0) now->tokens[0] = kn_token_chosen(0);
        const int kind = below(4);
        m->out_now = m->out + n % 2 * TOKENS_MAX;
        kn_step_begin(gpu);
        if (kind == 1) {
            issue_layers(m, &prompt); /* no head, and nothing sampled */
            issue(m, now);
        } else if (kind == 2 || !recorded) {
            issue(m, now);
        } else {
            play(m, now);
        }
        const uint64_t step = kn_step_end(gpu);
        if (waiting) {
            test_must(kn_step_wait(gpu, waiting, &busy, err), err);
            chosen[n - 1] = m->out[(n - 1) % 2 * TOKENS_MAX].token;
        }
        waiting = step;
    }
    test_must(kn_step_wait(gpu, waiting, &busy, err), err);
    chosen[steps - 1] = m->out[(steps - 1) % 2 * TOKENS_MAX].token;
    m->out_now = m->out;
    test_random_state = random;
}

static void place_all(struct model *m, int kind)
{
    for (int l = 0; l < m->layers; l++)
        for (int i = 0; i < PER_LAYER; i++) {
            const int32_t all = m->w[l][i].tile_count;
            const int32_t near = kind == 0   ? all
                                 : kind == 1 ? 0
                                 : kind == 2 ? all / 2
                                             : below(all + 1);
            const int32_t rest = all - near;
            const int32_t host = gpus < 2 || kind == 1 ? rest : kind == 4 ? 0 : below(rest + 1);
            place_weight(m, l, i, near, host);
        }
}

/* How much of everything there is. */
struct extent {
    int kinds, shares, rings;
    int32_t steps;
};

static void test_items(struct model *m, const struct reference *r, const struct items *items,
                       const struct extent *e, const int32_t *want, const char *what)
{
    static int32_t got[200];
    /* The largest product alone, a little more, a lap and a half, and all of a step. */
    const size_t total = items->bytes[1] + items->bytes[2];
    const size_t rings[] = {items->largest, items->largest * 5 / 3, total * 2 / 3, total};
    char line[160];
    for (int k = 0; k < (total > 0 ? e->rings : 1); k++) {
        const size_t ring = rings[k] > items->largest ? rings[k] : items->largest;
        snprintf(line, sizeof line, "%s, ring %zu of %zu", what, ring, total);
        check_steps(m, r, items, ring, e->steps < 10, line);
        for (int recorded = 0; recorded < 2; recorded++) {
            memset(got, 0xFF, sizeof got);
            stage(items, ring);
            if (recorded) record(m, 1);
            run_ahead(m, e->steps, recorded, got);
            EXPECT(!memcmp(got, want, (size_t)e->steps * sizeof *got), "%s: %d steps in a row",
                   line, e->steps);
        }
    }
}

static void test_model(int32_t H, int32_t F, int32_t layers, const struct extent *e)
{
    static const double shares[] = {1, 0.5, 0, -1};
    static struct reference r;
    static struct items items;
    static int32_t want[200];
    struct model m;
    char what[96];
    double start = seconds();
    model_open(&m, H, F, 320, layers, layers);
    place_all(&m, 0);
    for (int i = 0; i < COUNTS; i++) {
        make_step(&m, &r.step[i], counts[i]);
        r.logits[i] = logits_of(&m, &r.step[i], false);
    }
    run_ahead(&m, e->steps, false, want);
    for (int kind = 1; kind <= e->kinds; kind++)
        for (int s = 0; s < e->shares; s++) {
            place_all(&m, kind);
            choose_items(&m, shares[s] < 0 ? 0 : shares[s], shares[s] < 0, &items);
            snprintf(what, sizeof what, "H %d, placement %d, staged %g", H, kind, shares[s]);
            test_items(&m, &r, &items, e, want, what);
            printf("%s: %d checks, %.1f s\n", what, test_passed, seconds() - start);
        }
    for (int i = 0; i < COUNTS; i++) free(r.logits[i]);
    model_close(&m);
    printf("H %d: %.1f s\n", H, seconds() - start);
}

/* Steps of a few sizes, issued: half of each weight remote, and half of that staged. */
static void test_tiny(void)
{
    static struct arrays a;
    static struct items items;
    static const int32_t tokens[] = {1, 32, 50, 128};
    struct model m;
    float *want[ARRAY_COUNT(tokens)];
    model_open(&m, 256, 256, 128, 1, 1);
    for (int staged = 0; staged < 2; staged++) {
        place_all(&m, staged ? 2 : 0);
        choose_items(&m, 0.5, false, &items);
        if (staged) stage(&items, items.largest);
        for (size_t i = 0; i < ARRAY_COUNT(tokens); i++) {
            test_random_state = i;
            make_step(&m, &a, tokens[i]);
            float *got = logits_of(&m, &a, false);
            if (!staged) want[i] = got;
            else
                EXPECT(!memcmp(got, want[i], (size_t)(tokens[i] * m.V) * sizeof *got), "%d tokens",
                       tokens[i]);
            if (staged) free(got), free(want[i]);
        }
    }
    model_close(&m);
}

static void test_refusals(void)
{
    struct model m;
    static struct items items;
    char err[ERR_CAP] = "";
    model_open(&m, 256, 256, 320, 1, 1);
    place_all(&m, 1);
    choose_items(&m, 1, false, &items);
    EXPECT(kn_stage(gpu, items.item, items.count, items.largest - 1, err) == ST_LIMIT &&
               strstr(err, "--offload-staging-bytes"),
           "%s", err);
    printf("too small a ring: %s\n", err);
    /* Closing with copies that nobody will ever read. */
    stage(&items, items.largest);
    static struct arrays a;
    make_step(&m, &a, 1);
    norm(&m, 1);
    gemm(&m.w[0][QKV], 1, m.h, KN_EPI_STORE, m.y);
    test_must(kn_stage(gpu, NULL, 0, 0, err), err);
    EXPECT(kn_sync(gpu, err) == ST_OK, "half a step is forgotten: %s", err);
    model_close(&m);
}

/* --- speed ------------------------------------------------------------------------------------ */

/* A share of each weight is remote, rounded so that the total is met. */
static size_t place_share(struct model *m, int kind, double share)
{
    double owed = 0;
    size_t bytes = 0;
    for (int n = 0; n < m->layers * PER_LAYER; n++) {
        struct kn_weight *w = &m->w[n / PER_LAYER][n % PER_LAYER];
        const size_t tile = kn_weight_tile_bytes(w);
        owed += share * w->tile_count * (double)tile;
        int32_t remote = (int32_t)fmax(0, round(owed / (double)tile));
        if (remote > w->tile_count) remote = w->tile_count;
        owed -= remote * (double)tile;
        bytes += (size_t)remote * tile;
        place_weight(m, n / PER_LAYER, n % PER_LAYER, w->tile_count - remote,
                     kind == 1 ? remote : 0);
    }
    return bytes;
}

/* Seconds of a played step, two in flight, and the host's for playing one. */
static double time_steps(struct model *m, int32_t T, double time, double *host)
{
    static struct arrays a;
    char err[ERR_CAP] = "";
    uint64_t busy, waiting = 0, sum = 0;
    int32_t n = 0, counted = 0;
    double began = 0, issued = 0;
    make_step(m, &a, T);
    for (n = 0; n < 4 || seconds() - began < time; n++) {
        if (n == 2) began = seconds(), issued = 0;
        double start = seconds();
        kn_step_begin(gpu);
        play(m, &a);
        uint64_t step = kn_step_end(gpu);
        issued += seconds() - start;
        if (waiting) test_must(kn_step_wait(gpu, waiting, &busy, err), err);
        if (n > 2) sum += busy, counted++;
        waiting = step;
    }
    test_must(kn_step_wait(gpu, waiting, &busy, err), err);
    *host = issued / (n - 2);
    return (double)sum * 1e-9 / counted;
}

static void bench_share(struct model *m, int kind, int32_t T, double remote, double staged,
                        double ring_layers, double local, double time)
{
    static struct items items;
    double host;
    const size_t bytes = place_share(m, kind, remote);
    choose_items(m, staged, false, &items);
    size_t ring = (size_t)(ring_layers * (double)items.bytes[kind] / m->layers);
    if (ring < items.largest) ring = items.largest;
    stage(&items, ring);
    record(m, T);
    const double s = time_steps(m, T, time, &host);
    printf("  %s %5.1f %%, staged %3.0f %% ring %4.1f layers %6.1f MiB: T %2d %8.3f ms %6.1f GB/s "
           "(copied %6.1f, read %6.1f); x all-HBM %.3f; host %.0f us\n",
           kind == 1 ? "host" : "peer", 100 * remote, 100 * staged, ring_layers,
           (double)ring / 1048576, T, s * 1e3, (double)bytes / s / 1e9,
           (double)items.bytes[kind] / s / 1e9, (double)(bytes - items.bytes[kind]) / s / 1e9,
           s / local, host * 1e6);
}

static void bench_kind(struct model *m, int kind, int32_t T, const double *remote, int count)
{
    static const double near_all[] = {0, 0.25, 0.5, 0.75, 0.9, 1},
                        some[] = {0, 0.2, 0.3, 0.35, 0.4, 1};
    const double *staged = kind == 1 ? near_all : some;
    double host;
    (void)place_share(m, kind, 0);
    test_must(kn_stage(gpu, NULL, 0, 0, NULL), "no ring");
    record(m, T);
    const double local = time_steps(m, T, 0.1, &host);
    printf("all in HBM: T %d %.3f ms; host %.0f us\n", T, local * 1e3, host * 1e6);
    for (int i = 0; i < count; i++) {
        const double time = remote[i] > 0.5 && kind == 1 ? 0.5 : 0.12;
        for (size_t s = 0; s < ARRAY_COUNT(some); s++)
            bench_share(m, kind, T, remote[i], staged[s], 2, local, time);
    }
    /* How far ahead. */
    static const double rings[] = {0.5, 1, 4, 8};
    for (size_t r = 0; r < ARRAY_COUNT(rings); r++)
        bench_share(m, kind, T, kind == 1 ? 0.1 : 0.3, 1, rings[r], local, 0.12);
}

static void bench(const char *which)
{
    static const double host[] = {0.01, 0.02, 0.05, 0.1, 0.3, 1};
    static const double peer[] = {0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 1};
    static struct model m;
    model_open(&m, 4096, 14336, 32064, LAYERS_MAX, 4);
    if (strcmp(which, "peer")) bench_kind(&m, 1, 1, host, ARRAY_COUNT(host));
    if (strcmp(which, "host") && gpus > 1) bench_kind(&m, 2, 1, peer, ARRAY_COUNT(peer));
    model_close(&m);
}

int main(int argc, char **argv)
{
    char err[ERR_CAP] = "";
    const bool quick = argc > 1 && !strcmp(argv[1], "--quick");
    setvbuf(stdout, NULL, _IOLBF, 0);
    test_seed();
    gpus = test_gpu_count();
    test_must(kn_open_cuda(0, &gpu, err), err);
    puts(kn_name(gpu));
    if (argc > 1 && !strcmp(argv[1], "--bench")) {
        bench(argc > 2 ? argv[2] : "");
        kn_close(gpu);
        return 0;
    }
    if (argc > 1 && !strcmp(argv[1], "--tiny")) {
        test_tiny();
        kn_close(gpu);
        return test_report();
    }
    test_refusals();
    test_model(256, 384, 2, quick ? &(struct extent){2, 2, 2, 6} : &(struct extent){4, 4, 4, 40});
    if (!quick) test_model(256, 384, 3, &(struct extent){1, 1, 2, 200});
    if (!quick) test_model(1024, 2048, 3, &(struct extent){2, 2, 2, 40});
    kn_close(gpu);
    return test_report();
}
