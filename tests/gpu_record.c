/*
 * gpu_record.c - recorded steps, and steps issued ahead, on the GPU.
 *
 * A played step must give the bits that the same step gives issued operation by operation: logits
 * of every row, the tokens chosen, and the KV it writes, for every bucket and numbers of tokens
 * between, with page tables, positions and numbers of tokens that change from one replay to the
 * next, tokens that only the device knows, and issued steps between.  Then whole engines: the same
 * requests give the same tokens whether steps are recorded or issued ahead or neither.
 *
 *     gpu_record [--quick | --bench]
 */
#include <time.h>
#include <unistd.h>

#include "engine/engine.h"
#include "kernels/cuda/state.h"
#include "tests/gpu_common.h"

#define FIXTURES "tests/fixtures/models/"
enum { POOL_PAGES = 320, ALL_PAGES = 2 * POOL_PAGES, TOKENS_MAX = 512, ROWS_MAX = 512 };

static struct kn *gpu;

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* --- a model with pages in two pools ---------------------------------------------------------- */

struct rig {
    struct off_tiers *tiers;
    struct eng_model *model;
    struct kn_kv kv;
    size_t pool_bytes, logits_bytes;
    char *image;              /* what both pools hold before a step */
    float *logits;            /* staging, [ROWS_MAX, V] */
    struct kn_sampled *out;   /* staging, [ROWS_MAX] */
    int32_t vocab, seq_pages; /* pages of the longest sequence */
    int32_t pools;            /* that pages lie in */
    bool in_order;            /* rows of steps are their tokens, in order: none is gathered */
};

static void rig_open(struct rig *r, const char *dir, double offload)
{
    struct off_remote remote;
    struct eng_model_options opt = {.dtype = ENG_DTYPE_BF16,
                                    .offload = offload,
                                    .tokens_max = TOKENS_MAX,
                                    .rows_max = ROWS_MAX};
    struct eng_model_info info;
    char err[ERR_CAP] = "";
    *r = (struct rig){0};
    test_must(eng_model_read_info(dir, &opt, &info, err), err);
    test_must(off_remote_parse("host:64MiB", &remote, err), err);
    test_must(off_tiers_open(gpu, info.weight_bytes + (1u << 20), &remote, &r->tiers, err), err);
    test_must(eng_model_open(gpu, r->tiers, dir, &opt, &r->model, err), err);
    eng_model_kv(r->model, &r->kv);
    r->vocab = info.vocab;
    r->pools = 2;
    r->seq_pages = info.context_max / KN_PAGE_TOKENS;
    r->pool_bytes = POOL_PAGES * kn_kv_page_bytes(&r->kv);
    r->logits_bytes = ROWS_MAX * (size_t)info.vocab * sizeof(float);
    r->image = test_malloc(r->pool_bytes);
    for (size_t i = 0; i < r->pool_bytes; i += 2) {
        uint16_t v = kn_bf16_from_f32(test_random_float());
        memcpy(r->image + i, &v, sizeof v);
    }
    r->kv.base[0] = test_upload(gpu, KN_MEM_LOCAL, r->image, r->pool_bytes);
    r->kv.base[1] = test_upload(gpu, KN_MEM_HOST, r->image, r->pool_bytes);
    r->logits = test_upload(gpu, KN_MEM_STAGING, NULL, r->logits_bytes);
    r->out = test_upload(gpu, KN_MEM_STAGING, NULL, ROWS_MAX * sizeof *r->out);
    test_must(kn_sample_reserve(gpu, r->vocab, ROWS_MAX, err), err);
}

static void rig_close(struct rig *r)
{
    kn_free(gpu, KN_MEM_STAGING, r->out, ROWS_MAX * sizeof *r->out);
    kn_free(gpu, KN_MEM_STAGING, r->logits, r->logits_bytes);
    kn_free(gpu, KN_MEM_HOST, r->kv.base[1], r->pool_bytes);
    kn_free(gpu, KN_MEM_LOCAL, r->kv.base[0], r->pool_bytes);
    free(r->image);
    eng_model_close(r->model);
    off_tiers_close(r->tiers);
}

/* --- steps ------------------------------------------------------------------------------------ */

struct arrays {
    int32_t tokens[ROWS_MAX], positions[ROWS_MAX], token_seq[ROWS_MAX], rows[ROWS_MAX];
    struct kn_seq seqs[ROWS_MAX];
    kn_page pages[ALL_PAGES];
    struct kn_sample_row choice[ROWS_MAX];
    struct kn_batch batch;
    int32_t choice_count;
};

static int32_t below(int32_t n)
{
    return (int32_t)(test_random() % (uint64_t)n);
}

/* T sequences of random lengths over random pages of both pools, rows in random order or in that of
 * the tokens, most of them sampled. */
static void make_step(const struct rig *r, struct arrays *a, int32_t T)
{
    int32_t each = ALL_PAGES / T < r->seq_pages ? ALL_PAGES / T : r->seq_pages;
    memset(a, 0, sizeof *a);
    for (int32_t i = 0; i < ALL_PAGES; i++) { /* a permutation */
        int32_t k = below(i + 1);
        a->pages[i] = a->pages[k];
        a->pages[k] = kn_page_make((unsigned)(i % r->pools), (uint32_t)(i / r->pools));
    }
    for (int32_t i = 0; i < T; i++) {
        a->tokens[i] = below(r->vocab);
        a->positions[i] = below(each * KN_PAGE_TOKENS);
        a->token_seq[i] = i;
        a->seqs[i] = (struct kn_seq){i, 1, a->positions[i] + 1, i * each};
        int32_t k = r->in_order ? i : below(i + 1);
        a->rows[i] = a->rows[k];
        a->rows[k] = i;
        if (below(8) == 0) continue;
        a->choice[a->choice_count++] = (struct kn_sample_row){.row = i,
                                                              .top_k = below(3) ? 0 : 5,
                                                              .temperature = below(2) ? 0 : 0.9f,
                                                              .top_p = below(3) ? 1 : 0.9f,
                                                              .score = below(2),
                                                              .u = (double)below(1000) / 1000};
    }
    a->batch = (struct kn_batch){T,        a->tokens, a->positions, a->token_seq, T, a->seqs,
                                 a->pages, T,         a->rows};
}

static struct kn_sample_args sampling(const struct rig *r, const struct arrays *a)
{
    return (struct kn_sample_args){r->logits, r->vocab, a->choice_count, a->choice, r->out};
}

static void issue(struct rig *r, const struct arrays *a)
{
    const struct kn_sample_args s = sampling(r, a);
    eng_model_forward(r->model, &a->batch, &r->kv);
    eng_model_logits(r->model, &a->batch, r->logits);
    kn_sample(gpu, &s);
}

static void record(struct rig *r, int32_t T)
{
    char err[ERR_CAP] = "";
    static struct arrays a;
    make_step(r, &a, T);
    for (int32_t i = 0; i < T; i++) a.choice[i] = (struct kn_sample_row){.row = i, .top_p = 1};
    a.choice_count = T;
    issue(r, &a);
    test_sync(gpu);
    test_must(kn_record_begin(gpu, T, err), err);
    issue(r, &a);
    test_must(kn_record_end(gpu, err), err);
}

/* What a step left: logits, samples and both pools. */
struct outcome {
    float *logits;
    struct kn_sampled out[ROWS_MAX];
    char *pool[2];
};

/* From the same pools; played or issued. */
static void run(struct rig *r, const struct arrays *a, bool play, struct outcome *o)
{
    char err[ERR_CAP] = "";
    uint64_t busy;
    size_t bytes = (size_t)a->batch.token_count * (size_t)r->vocab * sizeof(float);
    const struct kn_sample_args s = sampling(r, a);
    for (int t = 0; t < 2; t++)
        test_must(kn_upload(gpu, r->kv.base[t], r->image, r->pool_bytes), "upload");
    memset(r->out, 0x55, ROWS_MAX * sizeof *r->out);
    memset(r->logits, 0x55, bytes);
    kn_step_begin(gpu);
    if (play) EXPECT(kn_play(gpu, &a->batch, &s), "T %d is not played", a->batch.token_count);
    else issue(r, a);
    kn_download(gpu, r->logits, bytes);
    test_must(kn_step_wait(gpu, kn_step_end(gpu), &busy, err), err);
    EXPECT(busy > 0, "a step takes time");
    o->logits = test_malloc(bytes);
    memcpy(o->logits, r->logits, bytes);
    memcpy(o->out, r->out, sizeof o->out);
    for (int t = 0; t < 2; t++) o->pool[t] = test_download(gpu, r->kv.base[t], r->pool_bytes);
}

static void compare(const struct rig *r, const struct arrays *a, const struct outcome *x,
                    const struct outcome *y, const char *name)
{
    int32_t T = a->batch.token_count;
    EXPECT(!memcmp(x->logits, y->logits, (size_t)T * (size_t)r->vocab * sizeof(float)),
           "%s: logits of %d tokens", name, T);
    EXPECT(!memcmp(x->out, y->out, sizeof x->out), "%s: samples of %d tokens", name, T);
    for (int t = 0; t < 2; t++)
        EXPECT(!memcmp(x->pool[t], y->pool[t], r->pool_bytes), "%s: pages of pool %d, %d tokens",
               name, t, T);
}

static void drop(struct outcome *o)
{
    free(o->logits);
    for (int t = 0; t < 2; t++) free(o->pool[t]);
}

/* Half of the tokens are those the step before chose, and told to the played step only so. */
static void name_tokens(struct arrays *a, const struct kn_sampled *before, int32_t count,
                        struct arrays *named)
{
    for (int32_t i = 0; i < a->batch.token_count && count > 0; i += 2)
        a->tokens[i] = before[i % count].token;
    *named = *a;
    named->batch.tokens = named->tokens;
    for (int32_t i = 0; i < a->batch.token_count && count > 0; i += 2)
        named->tokens[i] = kn_token_chosen(i % count);
}

/* without: what kernels do without (kn_set_without). */
static void test_played(const char *name, double offload, bool in_order, unsigned without,
                        bool quick)
{
    static const int32_t counts[] = {1,  3, 8,  9,  33, 129, 256, 1,  256, 2,
                                     16, 7, 12, 64, 17, 5,   200, 31, 32,  1};
    static struct arrays a, named;
    struct rig r;
    char path[256];
    struct kn_sampled before[ROWS_MAX];
    int32_t before_count = 0;
    snprintf(path, sizeof path, "%s%s", strchr(name, '/') ? "" : FIXTURES, name);
    test_must(kn_set_without(gpu, without, NULL), "leaving parts out");
    rig_open(&r, path, offload);
    r.in_order = in_order;
    void *old = test_upload(gpu, KN_MEM_LOCAL, NULL, 64);
    for (int32_t T = 8; T <= KN_CU_TOKENS_MAX; T *= 2) record(&r, T);
    struct kn_cu *cu = kn_cu_of(gpu);
    printf("%-22s %d recordings, %s; early starts:", name, cu->record.count,
           in_order ? "nothing gathered" : "rows gathered");
    for (int32_t i = 0; i < cu->record.count; i++) {
        printf(" %zu", cu->record.made[i].dependent);
        EXPECT(without & KN_WITHOUT_DEPENDENT_LAUNCH ? cu->record.made[i].dependent == 0
                                                     : cu->record.made[i].dependent > 0,
               "%zu kernels of a recording start early, without %u", cu->record.made[i].dependent,
               without);
        EXPECT(cu->record.made[i].gathers == !in_order, "%s: rows of a recording", name);
    }
    putchar('\n');
    for (size_t i = 0; i < (quick ? 4 : ARRAY_COUNT(counts)); i++) {
        struct outcome played, issued;
        make_step(&r, &a, counts[i]);
        name_tokens(&a, before, before_count, &named);
        run(&r, &named, true, &played);
        run(&r, &a, false, &issued);
        compare(&r, &a, &played, &issued, name);
        for (int32_t k = 0; k < a.choice_count; k++)
            EXPECT(issued.out[k].token >= 0, "%s: no token", name);
        memcpy(before, issued.out, sizeof before);
        before_count = a.choice_count;
        drop(&played);
        drop(&issued);
    }
    /* What no recording serves. */
    make_step(&r, &a, 40);
    const struct kn_sample_args s = sampling(&r, &a);
    uint64_t busy;
    char err[ERR_CAP] = "";
    a.batch.row_count = 3;
    kn_step_begin(gpu);
    EXPECT(!kn_play(gpu, &a.batch, &(struct kn_sample_args){r.logits, r.vocab, 0, NULL, r.out}),
           "rows of another bucket");
    a.batch.row_count = 40;
    if (in_order) {
        a.rows[0] = 39, a.rows[39] = 0;
        EXPECT(!kn_play(gpu, &a.batch, &s), "rows to gather where none were");
        a.rows[0] = 0, a.rows[39] = 39;
    }
    kn_free(gpu, KN_MEM_LOCAL, test_upload(gpu, KN_MEM_LOCAL, NULL, 64), 64);
    EXPECT(kn_play(gpu, &a.batch, &s), "memory that came later may go");
    test_must(kn_step_wait(gpu, kn_step_end(gpu), &busy, err), err);
    kn_free(gpu, KN_MEM_LOCAL, old, 64);
    kn_step_begin(gpu);
    EXPECT(!kn_play(gpu, &a.batch, &s), "recordings are dropped with memory they may know");
    test_must(kn_step_wait(gpu, kn_step_end(gpu), &busy, err), err);
    usleep(3000);
    kn_step_begin(gpu);
    test_must(kn_step_wait(gpu, kn_step_end(gpu), &busy, err), err);
    uint64_t idle = kn_step_idle_ns(gpu);
    EXPECT(idle >= 3000000 && idle < 1000000000, "nothing to do for 3 ms, and %g were told",
           (double)idle / 1e6);
    rig_close(&r);
}

/* --- engines ---------------------------------------------------------------------------------- */

struct machine {
    struct off_tiers *tiers;
    struct eng_model *model;
    struct kn_kv kv;
    int32_t pages;
};

static void machine_open(struct machine *m, const char *dir, enum eng_load_format format,
                         int32_t len, int32_t pages)
{
    const struct off_remote none = {0};
    const struct eng_model_options opt = {.load_format = format,
                                          .dtype = ENG_DTYPE_BF16,
                                          .model_len_max = len,
                                          .tokens_max = TOKENS_MAX,
                                          .rows_max = ROWS_MAX};
    struct eng_model_info info;
    char err[ERR_CAP] = "";
    double start = seconds();
    *m = (struct machine){.pages = pages};
    test_must(eng_model_read_info(dir, &opt, &info, err), err);
    struct kn_kv kv = {info.kv_dtype, info.layer_count, info.kv_heads, info.head_dim, {NULL}};
    kv.dtype = KN_BF16;
    size_t bytes = (size_t)pages * kn_kv_page_bytes(&kv);
    test_must(off_tiers_open(gpu, info.weight_bytes + bytes + (64u << 20), &none, &m->tiers, err),
              err);
    test_must(off_tier_alloc(m->tiers, 0, bytes, "KV", &kv.base[0], err), err);
    test_must(eng_model_open(gpu, m->tiers, dir, &opt, &m->model, err), err);
    m->kv = kv;
    printf("%s opened in %.1f s\n", dir, seconds() - start);
}

static void machine_close(struct machine *m)
{
    eng_model_close(m->model);
    off_tiers_close(m->tiers);
}

static struct eng_engine *engine_open(const struct machine *m, int32_t seqs, int32_t len,
                                      bool record_steps, bool ahead)
{
    char err[ERR_CAP] = "";
    struct eng_engine *e;
    const struct eng_config config = {
        .sched = {.seqs_max = seqs, .tokens_step_max = TOKENS_MAX, .page_count = {m->pages}},
        .model_len_max = len,
        .queue_max = seqs,
        .event_ring = 4096,
        .tokens_max = TOKENS_MAX,
        .rows_max = ROWS_MAX,
        .ahead = ahead,
        .record = record_steps};
    test_must(eng_open(gpu, m->model, &m->kv, &config, &e, err), err);
    return e;
}

static void fill_requests(struct eng_request *q, int32_t *tokens, int32_t count, int32_t prompt,
                          int32_t answer, int32_t vocab, bool mixed)
{
    for (int32_t i = 0; i < count; i++) {
        q[i] = (struct eng_request){.tokens = tokens + (size_t)i * (size_t)(prompt + answer),
                                    .prompt_count = prompt,
                                    .sampling = {.temperature = mixed && i % 2 ? 0.8f : 0,
                                                 .top_p = mixed && i % 3 ? 0.9f : 1,
                                                 .repetition_penalty = mixed && i == 5 ? 1.2f : 1,
                                                 .seed = (uint64_t)i,
                                                 .max_tokens = mixed ? answer - i % 7 : answer,
                                                 .min_tokens = mixed && i == 6 ? 9 : 0,
                                                 .ignore_eos = true,
                                                 .logprobs = mixed && i == 7 ? 2 : -1,
                                                 .prompt_logprobs = -1}};
        for (int32_t k = 0; k < prompt; k++) q[i].tokens[k] = (i * 131 + k * 17 + 5) % vocab;
    }
}

static struct eng_stats stats_of(struct eng_engine *e)
{
    struct eng_stats t;
    eng_stats(e, &t);
    return t;
}

/* To the end; *from and *to: the engine's counters when the last sequence had its 8th token, and
 * four before its last. */
static void serve(struct eng_engine *e, struct eng_request *q, int32_t count, int32_t answer,
                  struct eng_stats *from, struct eng_stats *to)
{
    struct eng_event event;
    test_must(eng_submit_all(e, q, count), "submit");
    for (int32_t left = count; left > 0;) {
        if (!eng_poll(e, &event)) {
            usleep(30);
            continue;
        }
        if (event.kind == ENG_EVENT_FINISHED) {
            EXPECT(event.finish == ENG_FINISH_LENGTH, "finish %d", event.finish);
            left--;
        }
        if (event.kind != ENG_EVENT_TOKEN || event.request != &q[count - 1]) continue;
        if (event.index == 8) *from = stats_of(e);
        if (event.index == answer - 12) *to = stats_of(e);
    }
}

static void test_engines(int32_t count)
{
    enum { PROMPT = 40, ANSWER = 48, MOST = 512 };
    static int32_t first[MOST * (PROMPT + ANSWER)], tokens[MOST * (PROMPT + ANSWER)];
    static struct eng_request q[MOST];
    struct machine m;
    struct eng_stats from, to;
    machine_open(&m, "config/demo-model", ENG_LOAD_SAFETENSORS, 256, 2 * MOST);
    for (int mode = 0; mode < 4; mode++) {
        struct eng_engine *e = engine_open(&m, count, 256, mode & 1, mode & 2);
        memset(tokens, 0, sizeof tokens);
        fill_requests(q, tokens, count, PROMPT, ANSWER, 4096, true);
        serve(e, q, count, ANSWER, &from, &to);
        if (mode == 0) memcpy(first, tokens, sizeof first);
        EXPECT(!memcmp(first, tokens, sizeof first), "%d requests, recorded %d, ahead %d", count,
               mode & 1, mode >> 1);
        struct eng_stats t;
        do t = stats_of(e);
        while (t.sched.running);
        EXPECT(t.sched.pages_used[0] == 0, "pages stay used");
        EXPECT((t.played_step_count > 0) == (mode & 1), "%llu of %llu steps played",
               (unsigned long long)t.played_step_count, (unsigned long long)t.step_count);
        eng_close(e);
    }
    machine_close(&m);
}

/* --- speed ------------------------------------------------------------------------------------ */

static void bench_engine(const struct machine *m, int32_t count, int32_t prompt, int32_t len,
                         bool record_steps, bool ahead)
{
    const int32_t answer = 64;
    struct eng_stats from = {0}, to = {0};
    double start = seconds();
    struct eng_engine *e = engine_open(m, count, len, record_steps, ahead);
    double opened = seconds() - start;
    struct eng_request *q = test_malloc((size_t)count * sizeof *q);
    int32_t *tokens = test_malloc((size_t)count * (size_t)(prompt + answer) * sizeof *tokens);
    fill_requests(q, tokens, count, prompt, answer, 100000, false);
    serve(e, q, count, answer, &from, &to);
    double steps = (double)(to.step_count - from.step_count);
    double device = (double)(to.device_ns_sum - from.device_ns_sum);
    double host = (double)(to.host_ns_sum - from.host_ns_sum);
    printf("%3d x %4d  recorded %-3s ahead %-3s  %.4f ms a step, GPU busy %.4f, outside %5.2f %%, "
           "%.0f of %.0f played, opened in %.0f ms\n",
           count, prompt, record_steps ? "yes" : "no", ahead ? "yes" : "no",
           (device + host) / steps / 1e6, device / steps / 1e6, 100 * host / (device + host),
           (double)(to.played_step_count - from.played_step_count), steps, 1e3 * opened);
    eng_close(e);
    free(q);
    free(tokens);
}

/* A decode step of `count` sequences again and again: issued, played, and the graph alone, which
 * shows what the copy in front of it and its start cost. */
static void bench_replay(struct machine *m, int32_t count)
{
    enum { REPEAT = 100 };
    static struct arrays a;
    struct rig r = {.model = m->model, .kv = m->kv, .vocab = eng_model_info(m->model)->vocab};
    char err[ERR_CAP] = "";
    double ms[3];
    uint64_t busy;
    r.logits_bytes = ROWS_MAX * (size_t)r.vocab * sizeof(float);
    r.logits = test_upload(gpu, KN_MEM_STAGING, NULL, r.logits_bytes);
    r.out = test_upload(gpu, KN_MEM_STAGING, NULL, ROWS_MAX * sizeof *r.out);
    r.seq_pages = 8;
    r.pools = 1;
    r.in_order = true;
    test_must(kn_sample_reserve(gpu, r.vocab, ROWS_MAX, err), err);
    record(&r, kn_cu_bucket(count));
    make_step(&r, &a, count);
    const struct kn_sample_args s = sampling(&r, &a);
    struct kn_cu *cu = kn_cu_of(gpu);
    for (int way = 0; way < 3; way++) {
        double start = 0;
        for (int i = -5; i < REPEAT; i++) {
            if (i == 0) test_sync(gpu), start = seconds();
            if (way == 2) {
                CHECK(!cudaGraphLaunch(cu->record.made[0].exec, cu->stream));
                continue;
            }
            kn_step_begin(gpu);
            if (way == 0) issue(&r, &a);
            else CHECK(kn_play(gpu, &a.batch, &s));
            uint64_t step = kn_step_end(gpu);
            if (step > cu->steps.waited + 1)
                test_must(kn_step_wait(gpu, step - 1, &busy, err), err);
        }
        test_sync(gpu);
        ms[way] = 1e3 * (seconds() - start) / REPEAT;
    }
    printf("%3d sequences: issued %.4f, played %.4f, the graph alone %.4f ms a step\n", count,
           ms[0], ms[1], ms[2]);
    kn_free(gpu, KN_MEM_STAGING, r.out, ROWS_MAX * sizeof *r.out);
    kn_free(gpu, KN_MEM_STAGING, r.logits, r.logits_bytes);
}

static void bench(void)
{
    static const int32_t counts[] = {1, 8, 32, 64, 128, 256};
    struct machine m;
    machine_open(&m, "config/models/Llama-3.1-8B", ENG_LOAD_DUMMY, 640, 256 * 6);
    for (int32_t count = 1; count <= 64; count *= 8) bench_replay(&m, count);
    for (size_t i = 0; i < ARRAY_COUNT(counts); i++)
        for (int mode = 0; mode < 4; mode++) {
            int32_t prompt = TOKENS_MAX / counts[i]; /* all in one step */
            if ((mode == 1 || mode == 2) && counts[i] != 1 && counts[i] != 32) continue;
            bench_engine(&m, counts[i], prompt, 640, mode & 1, mode & 2);
        }
    machine_close(&m);
}

int main(int argc, char **argv)
{
    char err[ERR_CAP] = "";
    bool quick = argc > 1 && !strcmp(argv[1], "--quick");
    setvbuf(stdout, NULL, _IOLBF, 0);
    test_must(kn_open_cuda(0, &gpu, err), err);
    if (argc > 1 && !strcmp(argv[1], "--bench")) {
        bench();
        kn_close(gpu);
        return test_report();
    }
    test_seed();
    test_played("llama-bf16", 0, false, 0, quick);
    test_played("llama-bf16", 0, true, 0, quick);
    test_played("llama-bf16", 0.4, true, KN_WITHOUT_DEPENDENT_LAUNCH, quick);
    test_played("llama-bf16", 0.4, false, KN_WITHOUT_ALL, quick);
    if (!quick) {
        test_played("llama-bf16", 0.4, true, 0, false);
        test_played("qwen3-bf16", 0, false, 0, false);
        test_played("mistral-window", 0.4, true, 0, false);
        test_played("qwen2-window", 0, true, 0, false);
        test_played("opt", 0, true, 0, false);
        test_played("config/demo-model", 0, true, 0, false);
        test_engines(3);
        test_engines(20);
        test_engines(70);
        test_engines(512);
    }
    kn_close(gpu);
    return test_report();
}
