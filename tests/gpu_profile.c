/*
 * gpu_profile.c - where a step's time goes, kernel kind by kernel kind, on the real timeline: whole
 * steps of the 8B shape with random weights, all in HBM, sampling included.
 *
 *     gpu_profile [CASE...]   decode steps of 1, 8, 32, 128, 256 and 512 sequences, 512 at 64
 *                             tokens of context as well, and steps that compute 2,048 tokens of a
 *                             prompt (cases 2048, and 8192: the last of so many), or some beside
 *                             32 decodes (cases 64, 480, 992)
 *
 * Needs the TRACE flavour (make TRACE=1 gpu), whose kernels write down when they began, had their
 * inputs and ended; built otherwise it prints what a step takes, against which the cost of writing
 * things down can be seen.
 *
 * The table, medians over steps, microseconds per kernel but for the last three columns:
 *     count     kernels of that kind in a step
 *     MB        bytes one of them must read from HBM; of a prompt: GFLOP it must compute
 *     floor     that over the bandwidth or the rate of matrix products probed in this run; of many
 *               decodes the larger of the two
 *     share     from the end of the kernel before to the end of this one; of it
 *     handover    until its first warp had inputs
 *     work        from there to its last warp's end; of it
 *     tail          after half of its CTAs had ended
 *     lead      how long before the previous kernel's end its CTAs were running (to fill rings)
 *     gap       share - floor: negative where the ring was filled in somebody else's share
 *     share ms, floor ms, gap ms: of all of them in a step.  The shares add up to the step.
 */
#include "config/clock.h"
#include "engine/model_state.h"
#include "kernels/cuda/stream.h"
#include "offload/probe.h"
#include "tests/gpu_common.h"

enum {
    SEQS_MAX = 512,
    CONTEXT = 1024,
    SHORT = 64,
    PROMPT = 2048,
    CONTEXT_MAX = 8192,
    STEPS = 24,
    WARM = 4
};
enum { PAGES_MAX = SEQS_MAX * CONTEXT / KN_PAGE_TOKENS };

/* Steps of S sequences, each with `chunk` new tokens at the end of its context, and of others that
 * decode at CONTEXT. */
struct work {
    int32_t seqs, chunk, context, beside;
};
static const struct work works[] = {
    {1, 1, CONTEXT, 0},          {8, 1, CONTEXT, 0},   {32, 1, CONTEXT, 0}, {128, 1, CONTEXT, 0},
    {256, 1, CONTEXT, 0},        {512, 1, CONTEXT, 0}, {512, 1, SHORT, 0},  {1, PROMPT, PROMPT, 0},
    {1, PROMPT, CONTEXT_MAX, 0}, {1, 64, 2048, 32},    {1, 480, 2048, 32},  {1, 992, 2048, 32},
};

#ifdef DAKD_TRACE
#include "tests/trace_table.h"

enum kind {
    EMBED,
    PLAN,
    NORM,
    QKV,
    FINISH,
    ATTENTION,
    O,
    UP,
    DOWN,
    SETTLE,
    GATHER,
    HEAD,
    SAMPLE,
    OTHER
};
enum { KIND_COUNT = OTHER + 1 };
static const char *const kind_names[] = {"embed",     "plan", "norm",   "qkv",  "qkv finish",
                                         "attention", "o",    "up",     "down", "settle",
                                         "gather",    "head", "sample", "other"};

#endif

struct rig {
    struct kn *kn;
    struct off_tiers *tiers;
    struct eng_model *model;
    struct kn_kv kv;
    float *logits;
    struct kn_sampled *sampled;
    double bandwidth; /* of HBM, bytes per second */
    double matrix;    /* of products, operations per second */
};

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double weight_bytes(const struct kn_weight *w)
{
    return (double)w->tile_count * (double)kn_weight_tile_bytes(w);
}

/* pages: of the KV cache. */
static void rig_open(struct rig *r, size_t pages)
{
    const char *dir = "config/models/Llama-3.1-8B";
    struct eng_model_options opt = {.load_format = ENG_LOAD_DUMMY,
                                    .model_len_max = CONTEXT_MAX,
                                    .tokens_max = PROMPT,
                                    .rows_max = SEQS_MAX};
    struct eng_model_info info;
    struct off_remote none = {0};
    struct off_probe_config probe = off_probe_config_default();
    char err[ERR_CAP] = "";
    test_must(kn_open_cuda(0, &r->kn, err), err);
    test_must(eng_model_read_info(dir, &opt, &info, err), err);
    test_must(off_tiers_open(r->kn, info.weight_bytes + (64u << 20), &none, &r->tiers, err), err);
    uint64_t began = clock_now_ns();
    test_must(off_probe_read(r->kn, r->tiers, 0, &probe, &r->bandwidth, err), err);
    test_must(off_probe_matrix(r->kn, &probe, &r->matrix, err), err);
    printf("HBM %.3f TB/s, matrix products %.0f TFLOPS, probed in %.2f s\n", r->bandwidth / 1e12,
           r->matrix / 1e12, (double)(clock_now_ns() - began) / 1e9);
    test_must(eng_model_open(r->kn, r->tiers, dir, &opt, &r->model, err), err);
    eng_model_kv(r->model, &r->kv);
    test_must(
        kn_alloc(r->kn, KN_MEM_LOCAL, 0, pages * kn_kv_page_bytes(&r->kv), &r->kv.base[0], err),
        err);
    test_must(kn_alloc(r->kn, KN_MEM_STAGING, 0, SEQS_MAX * (size_t)info.vocab * sizeof(float),
                       (void **)&r->logits, err),
              err);
    test_must(kn_alloc(r->kn, KN_MEM_STAGING, 0, SEQS_MAX * sizeof *r->sampled,
                       (void **)&r->sampled, err),
              err);
    test_must(kn_sample_reserve(r->kn, info.vocab, opt.rows_max, err), err);
}

/* What reading the head's weights over and over gives, by blocks in flight on each SM: where the
 * probe's own choice lies. */
static void sweep(struct rig *r)
{
    enum { REPEAT = 100 };
    const struct kn_weight *head = &r->model->weights.head;
    size_t bytes = (size_t)weight_bytes(head);
    struct kn_cu_stream_state zero = {0}, *state;
    struct cudaDeviceProp prop;
    char err[ERR_CAP] = "";
    unsigned turn = 0;
    state = test_upload(r->kn, KN_MEM_LOCAL, &zero, sizeof zero);
    test_sync(r->kn);
    CHECK(cudaGetDeviceProperties(&prop, 0) == cudaSuccess);
    printf("HBM read by 16 KB blocks in flight on each of %d SMs:", prop.multiProcessorCount);
    for (int blocks = 4; blocks <= KN_CU_STREAM_BLOCKS_MAX; blocks++) {
        uint64_t began = clock_now_ns();
        for (int i = 0; i < REPEAT; i++)
            test_must(kn_cu_stream_launch(head->span[0].base, bytes, prop.multiProcessorCount,
                                          blocks, state, turn++, NULL, err),
                      err);
        CHECK(cudaDeviceSynchronize() == cudaSuccess);
        double rate = REPEAT * (double)bytes / (double)(clock_now_ns() - began) / 1e3;
        printf(" %d: %.3f", blocks, rate);
    }
    puts(" TB/s");
    kn_free(r->kn, KN_MEM_LOCAL, state, sizeof zero);
}

/* A step, and a greedy choice for each sequence. */
static double step(struct rig *r, const struct work *w)
{
    static int32_t tokens[PROMPT], positions[PROMPT], seq[PROMPT], rows[SEQS_MAX];
    static struct kn_seq seqs[SEQS_MAX];
    static kn_page pages[PAGES_MAX];
    static struct kn_sample_row choose[SEQS_MAX];
    const int32_t S = w->beside + w->seqs;
    int32_t T = 0, page = 0;
    CHECK(S <= SEQS_MAX && w->beside + w->seqs * w->chunk <= PROMPT);
    for (int32_t i = 0; i < S; i++) {
        const bool decode = i < w->beside;
        const int32_t count = decode ? 1 : w->chunk, context = decode ? CONTEXT : w->context;
        seqs[i] = (struct kn_seq){T, count, context, page};
        for (int32_t t = 0; t < count; t++, T++) {
            tokens[T] = 100 + T;
            positions[T] = context - count + t;
            seq[T] = i;
        }
        rows[i] = T - 1;
        choose[i] = (struct kn_sample_row){.row = i, .top_p = 1};
        page += context / KN_PAGE_TOKENS;
    }
    CHECK(page <= PAGES_MAX);
    for (int32_t p = 0; p < page; p++) pages[p] = kn_page_make(0, (uint32_t)p);
    struct kn_batch b = {.token_count = T,
                         .tokens = tokens,
                         .positions = positions,
                         .token_seq = seq,
                         .seq_count = S,
                         .seqs = seqs,
                         .pages = pages,
                         .row_count = S,
                         .rows = rows};
    struct kn_sample_args sample = {.logits = r->logits,
                                    .vocab = eng_model_info(r->model)->vocab,
                                    .row_count = S,
                                    .rows = choose,
                                    .out = r->sampled};
    uint64_t began = clock_now_ns();
    eng_model_forward(r->model, &b, &r->kv);
    eng_model_logits(r->model, &b, r->logits);
    kn_sample(r->kn, &sample);
    test_sync(r->kn);
    return (double)(clock_now_ns() - began);
}

#ifdef DAKD_TRACE

/* One kind in one step. */
struct share {
    int32_t count;
    double share, handover, work, tail, lead; /* ns, of all of them */
};

struct row {
    double of[STEPS][5];
};

static bool is_weight(uint32_t detail, const struct kn_weight *w)
{
    return detail == ((uint32_t)w->tile_count << 12 | (uint32_t)w->blocks_per_tile);
}

static enum kind kind_of(const struct eng_model *m, uint32_t what)
{
    const struct eng_layer *l = &m->weights.layers[0];
    uint32_t detail = what & 0xFFFFFFFu;
    switch ((enum kn_cu_trace_kind)(what >> 28)) {
    case KN_CU_TRACE_EMBED: return EMBED;
    case KN_CU_TRACE_NORM: return NORM;
    case KN_CU_TRACE_QKV: return FINISH;
    case KN_CU_TRACE_PLAN: return PLAN;
    case KN_CU_TRACE_ATTENTION: return ATTENTION;
    case KN_CU_TRACE_GATHER: return GATHER;
    case KN_CU_TRACE_SAMPLE: return SAMPLE;
    case KN_CU_TRACE_SETTLE: return SETTLE;
    case KN_CU_TRACE_GEMM:
        if (is_weight(detail, &l->qkv)) return QKV;
        if (is_weight(detail, &l->o)) return O;
        if (is_weight(detail, &l->up)) return UP;
        if (is_weight(detail, &l->down)) return DOWN;
        return is_weight(detail, &m->weights.head) ? HEAD : OTHER;
    case KN_CU_TRACE_KIND_COUNT: break;
    }
    return OTHER;
}

static const struct kn_weight *weight_of(const struct rig *r, enum kind kind)
{
    const struct eng_weights *w = &r->model->weights;
    const struct eng_layer *l = &w->layers[0];
    switch (kind) {
    case QKV: return &l->qkv;
    case O: return &l->o;
    case UP: return &l->up;
    case DOWN: return &l->down;
    case HEAD: return &w->head;
    default: return NULL;
    }
}

/* What one kernel of a kind must do: bytes from HBM of a decode step, where activations stay in L2;
 * operations of a prompt's, but for the head, which is a decode step's. */
static double task_of(const struct rig *r, enum kind kind, const struct work *w)
{
    const struct kn_weight *weight = weight_of(r, kind);
    const struct eng_model_info *info = eng_model_info(r->model);
    const double chunk = w->chunk, T = w->beside + w->seqs * chunk;
    if (w->chunk == 1 || kind == HEAD)
        return weight              ? weight_bytes(weight)
               : kind == ATTENTION ? (double)w->seqs * w->context / KN_PAGE_TOKENS *
                                         (double)kn_kv_layer_bytes(&r->kv)
                                   : 0;
    if (weight) return 2 * T * weight->rows * (double)weight->cols;
    if (kind != ATTENTION) return 0; /* of decodes beside: bytes, which are not told apart here */
    return 4.0 * info->q_heads * info->head_dim * w->seqs * chunk * (w->context - (chunk - 1) / 2);
}

/* Its floor in us; *task in MB or GFLOP. */
static double floor_of(const struct rig *r, enum kind kind, const struct work *w, double *task)
{
    bool computes = w->chunk > 1 && kind != HEAD;
    double all = task_of(r, kind, w);
    const struct kn_weight *weight = computes ? NULL : weight_of(r, kind);
    const double T = w->beside + w->seqs;
    const double operations = weight ? 2 * T * weight->rows * (double)weight->cols : 0;
    *task = all / (computes ? 1e9 : 1e6);
    return 1e6 * fmax(all / (computes ? r->matrix : r->bandwidth), operations / r->matrix);
}

/* A step's kernels by kind; the time from its first kernel's begin to its last one's end. */
static double sort_out(const struct rig *r, struct kn_cu_trace_log *log,
                       struct share shares[KIND_COUNT])
{
    static struct trace_kernel kernel[KN_CU_TRACE_KERNELS];
    int32_t count = trace_read_step(log, kernel);
    EXPECT(count > 0, "the log of a step contradicts itself");
    if (count <= 0) exit(test_report());
    double before = kernel[0].start;
    for (int32_t i = 0; i < count; i++) {
        struct trace_kernel *k = &kernel[i];
        struct share *s = &shares[kind_of(r->model, k->what)];
        double inputs = k->waited > before ? k->waited : before;
        s->count++;
        s->share += k->end - before;
        s->handover += inputs - before;
        s->work += k->end - inputs;
        s->tail += k->end - k->middle;
        s->lead += before - k->start;
        before = k->end;
    }
    return before - kernel[0].start;
}

static void print_table(const struct rig *r, const struct work *w, const int32_t count[KIND_COUNT],
                        struct row row[KIND_COUNT], double gpu_ns)
{
    double total[3] = {0};
    printf("%-10s %5s %7s %7s %7s %8s %7s %7s %7s %7s | %8s %8s %8s\n", "us a kernel", "count",
           w->chunk > 1 ? "GFLOP" : "MB", "floor", "share", "handover", "work", "tail", "lead",
           "gap", "share ms", "floor ms", "gap ms");
    for (int k = 0; k < KIND_COUNT; k++) {
        if (!count[k]) continue;
        double of[5], column[STEPS];
        for (int c = 0; c < 5; c++) {
            for (int i = 0; i < STEPS; i++) column[i] = row[k].of[i][c];
            of[c] = trace_median(column, STEPS) / 1e3;
        }
        double n = count[k], task, floor = floor_of(r, (enum kind)k, w, &task);
        printf("%-11s %5d %7.2f %7.2f %7.2f %8.2f %7.2f %7.2f %7.2f %7.2f | %8.3f %8.3f %8.3f\n",
               kind_names[k], count[k], task, floor, of[0] / n, of[1] / n, of[2] / n, of[3] / n,
               of[4] / n, of[0] / n - floor, of[0] / 1e3, n * floor / 1e3,
               (of[0] - n * floor) / 1e3);
        total[0] += of[0] / 1e3;
        total[1] += n * floor / 1e3;
        total[2] += (of[0] - n * floor) / 1e3;
    }
    printf("%-88s| %8.3f %8.3f %8.3f\n", "all", total[0], total[1], total[2]);
    printf("first kernel's begin to last one's end: %.3f ms (median); floor / that = %.3f\n",
           gpu_ns / 1e6, total[1] / (gpu_ns / 1e6));
}

static void profile(struct rig *r, struct kn_cu_trace_log *log, const struct work *w)
{
    static struct row row[KIND_COUNT];
    int32_t count[KIND_COUNT] = {0};
    double gpu[STEPS], host[STEPS];
    char err[ERR_CAP] = "";
    for (int i = -WARM; i < STEPS; i++) {
        struct share shares[KIND_COUNT] = {0};
        test_must(kn_cu_trace_reset(err), err);
        double wall = step(r, w);
        if (i < 0) continue;
        host[i] = wall;
        test_must(kn_cu_trace_read(log, 0, err), err);
        test_must(kn_cu_trace_read(log, (int32_t)log->used[0], err), err);
        gpu[i] = sort_out(r, log, shares);
        for (int k = 0; k < KIND_COUNT; k++) {
            const struct share *s = &shares[k];
            count[k] = s->count;
            memcpy(row[k].of[i], (double[]){s->share, s->handover, s->work, s->tail, s->lead},
                   sizeof row[k].of[i]);
        }
    }
    printf("\nLlama-3.1-8B shape, %d x %d new tokens to %d beside %d decodes, %d steps\n", w->seqs,
           w->chunk, w->context, w->beside, STEPS);
    double gpu_ns = trace_median(gpu, STEPS), host_ns = trace_median(host, STEPS);
    print_table(r, w, count, row, gpu_ns);
    printf("host's clock around a step: %.3f ms; %.3f ms of it outside the kernels\n",
           host_ns / 1e6, (host_ns - gpu_ns) / 1e6);
    EXPECT(gpu_ns > 0 && gpu_ns <= host_ns * 1.02, "kernels took %g ns of a step of %g", gpu_ns,
           host_ns);
}

#endif

/* What steps take by the host's clock. */
static void time_steps(struct rig *r, const struct work *w)
{
    double ns[STEPS];
    for (int i = -WARM; i < STEPS; i++) {
        double one = step(r, w);
        if (i >= 0) ns[i] = one;
    }
    qsort(ns, STEPS, sizeof *ns, by_value);
    printf("%d x %d to %d beside %d: %.3f ms a step (median of %d), fastest %.3f\n", w->seqs,
           w->chunk, w->context, w->beside, ns[STEPS / 2] / 1e6, STEPS, ns[0] / 1e6);
    EXPECT(ns[0] > 0, "a step took no time");
}

static size_t pages_of(const struct work *w)
{
    return (size_t)(w->beside * CONTEXT + w->seqs * w->context) / KN_PAGE_TOKENS;
}

/* A case goes by its sequences, its context, or its tokens beside decodes. */
static bool wanted(const struct work *w, int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (atoi(argv[i]) == (w->beside ? w->chunk : w->chunk > 1 ? w->context : w->seqs))
            return true;
    return argc == 1;
}

int main(int argc, char **argv)
{
    static struct rig r;
    setvbuf(stdout, NULL, _IOLBF, 0);
    size_t pages = 0;
    for (size_t i = 0; i < ARRAY_COUNT(works); i++)
        if (wanted(&works[i], argc, argv)) pages = size_max(pages, pages_of(&works[i]));
    rig_open(&r, pages);
    sweep(&r);
    for (size_t i = 0; i < ARRAY_COUNT(works); i++)
        if (wanted(&works[i], argc, argv)) time_steps(&r, &works[i]);
#ifdef DAKD_TRACE
    char err[ERR_CAP] = "";
    struct kn_cu_trace_log *log = test_malloc(sizeof *log);
    test_must(kn_cu_trace_open(err), err);
    for (size_t i = 0; i < ARRAY_COUNT(works); i++)
        if (wanted(&works[i], argc, argv)) profile(&r, log, &works[i]);
    free(log);
#else
    puts("no table: kernels write down times only in the TRACE flavour (make TRACE=1 gpu)");
#endif
    return test_report();
}
