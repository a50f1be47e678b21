/*
 * gpu_profile.c - where a decode step's time goes, kernel kind by kernel kind, on the real
 * timeline: whole steps of the 8B shape with random weights, all in HBM, sampling included.
 *
 * Needs the TRACE flavour (make TRACE=1 gpu), whose kernels write down when they began, had their
 * inputs and ended; built otherwise it prints what a step takes, against which the cost of writing
 * things down can be seen.
 *
 * The table, medians over steps, microseconds per kernel but for the last three columns:
 *     count     kernels of that kind in a step
 *     MB        bytes one of them must read from HBM
 *     floor     that over the bandwidth probed in this run
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

enum { SEQS_MAX = 128, CONTEXT = 1024, PAGES = CONTEXT / KN_PAGE_TOKENS, STEPS = 24, WARM = 4 };

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

static void rig_open(struct rig *r)
{
    const char *dir = "config/models/Llama-3.1-8B";
    struct eng_model_options opt = {.load_format = ENG_LOAD_DUMMY,
                                    .model_len_max = 2 * CONTEXT,
                                    .tokens_max = 256,
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
    printf("HBM %.3f TB/s, probed in %.2f s\n", r->bandwidth / 1e12,
           (double)(clock_now_ns() - began) / 1e9);
    test_must(eng_model_open(r->kn, r->tiers, dir, &opt, &r->model, err), err);
    eng_model_kv(r->model, &r->kv);
    test_must(kn_alloc(r->kn, KN_MEM_LOCAL, 0, (size_t)SEQS_MAX * PAGES * kn_kv_page_bytes(&r->kv),
                       &r->kv.base[0], err),
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

/* A step of S sequences, each with one new token at the end of its context, and a greedy choice. */
static double step(struct rig *r, int32_t S)
{
    static int32_t tokens[SEQS_MAX], positions[SEQS_MAX], seq[SEQS_MAX], rows[SEQS_MAX];
    static struct kn_seq seqs[SEQS_MAX];
    static kn_page pages[SEQS_MAX * PAGES];
    static struct kn_sample_row choose[SEQS_MAX];
    for (int32_t i = 0; i < S; i++) {
        tokens[i] = 100 + i;
        positions[i] = CONTEXT - 1;
        seq[i] = rows[i] = i;
        seqs[i] = (struct kn_seq){i, 1, CONTEXT, i * PAGES};
        choose[i] = (struct kn_sample_row){.row = i, .top_p = 1};
        for (int32_t p = 0; p < PAGES; p++)
            pages[i * PAGES + p] = kn_page_make(0, (uint32_t)(i * PAGES + p));
    }
    struct kn_batch b = {.token_count = S,
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

/* What one kernel of a kind must read from HBM; activations stay in L2. */
static double bytes_of(const struct rig *r, enum kind kind, int32_t S)
{
    const struct eng_weights *w = &r->model->weights;
    const struct eng_layer *l = &w->layers[0];
    switch (kind) {
    case QKV: return weight_bytes(&l->qkv);
    case O: return weight_bytes(&l->o);
    case UP: return weight_bytes(&l->up);
    case DOWN: return weight_bytes(&l->down);
    case HEAD: return weight_bytes(&w->head);
    case ATTENTION: return (double)S * PAGES * (double)kn_kv_layer_bytes(&r->kv);
    default: return 0;
    }
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

static void print_table(const struct rig *r, int32_t S, const int32_t count[KIND_COUNT],
                        struct row row[KIND_COUNT], double gpu_ns)
{
    double total[3] = {0};
    printf("%-10s %5s %7s %7s %7s %8s %7s %7s %7s %7s | %8s %8s %8s\n", "us a kernel", "count",
           "MB", "floor", "share", "handover", "work", "tail", "lead", "gap", "share ms",
           "floor ms", "gap ms");
    for (int k = 0; k < KIND_COUNT; k++) {
        if (!count[k]) continue;
        double of[5], column[STEPS];
        for (int c = 0; c < 5; c++) {
            for (int i = 0; i < STEPS; i++) column[i] = row[k].of[i][c];
            of[c] = trace_median(column, STEPS) / 1e3;
        }
        double n = count[k], bytes = bytes_of(r, (enum kind)k, S);
        double floor = 1e6 * bytes / r->bandwidth;
        printf("%-11s %5d %7.2f %7.2f %7.2f %8.2f %7.2f %7.2f %7.2f %7.2f | %8.3f %8.3f %8.3f\n",
               kind_names[k], count[k], bytes / 1e6, floor, of[0] / n, of[1] / n, of[2] / n,
               of[3] / n, of[4] / n, of[0] / n - floor, of[0] / 1e3, n * floor / 1e3,
               (of[0] - n * floor) / 1e3);
        total[0] += of[0] / 1e3;
        total[1] += n * floor / 1e3;
        total[2] += (of[0] - n * floor) / 1e3;
    }
    printf("%-88s| %8.3f %8.3f %8.3f\n", "all", total[0], total[1], total[2]);
    printf("first kernel's begin to last one's end: %.3f ms (median); floor / that = %.3f\n",
           gpu_ns / 1e6, total[1] / (gpu_ns / 1e6));
}

static void profile(struct rig *r, struct kn_cu_trace_log *log, int32_t S)
{
    static struct row row[KIND_COUNT];
    int32_t count[KIND_COUNT] = {0};
    double gpu[STEPS], host[STEPS];
    char err[ERR_CAP] = "";
    for (int i = -WARM; i < STEPS; i++) {
        struct share shares[KIND_COUNT] = {0};
        test_must(kn_cu_trace_reset(err), err);
        double wall = step(r, S);
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
    printf("\nLlama-3.1-8B shape, %d x %d tokens of context, %d steps\n", S, CONTEXT, STEPS);
    double gpu_ns = trace_median(gpu, STEPS), host_ns = trace_median(host, STEPS);
    print_table(r, S, count, row, gpu_ns);
    printf("host's clock around a step: %.3f ms; %.3f ms of it outside the kernels\n",
           host_ns / 1e6, (host_ns - gpu_ns) / 1e6);
    EXPECT(gpu_ns > 0 && gpu_ns <= host_ns * 1.02, "kernels took %g ns of a step of %g", gpu_ns,
           host_ns);
}

#endif

/* What steps take by the host's clock. */
static void time_steps(struct rig *r, int32_t S)
{
    double ns[STEPS];
    for (int i = -WARM; i < STEPS; i++) {
        double one = step(r, S);
        if (i >= 0) ns[i] = one;
    }
    qsort(ns, STEPS, sizeof *ns, by_value);
    printf("%3d x %d: %.3f ms a step (median of %d), fastest %.3f\n", S, CONTEXT,
           ns[STEPS / 2] / 1e6, STEPS, ns[0] / 1e6);
    EXPECT(ns[0] > 0, "a step took no time");
}

int main(int argc, char **argv)
{
    static const int32_t batches[] = {1, 8, 32, 128};
    static struct rig r;
    int32_t only = argc > 1 ? atoi(argv[1]) : 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    rig_open(&r);
    sweep(&r);
    for (size_t i = 0; i < ARRAY_COUNT(batches); i++)
        if (!only || batches[i] == only) time_steps(&r, batches[i]);
#ifdef DAKD_TRACE
    char err[ERR_CAP] = "";
    struct kn_cu_trace_log *log = test_malloc(sizeof *log);
    test_must(kn_cu_trace_open(err), err);
    for (size_t i = 0; i < ARRAY_COUNT(batches); i++)
        if (!only || batches[i] == only) profile(&r, log, batches[i]);
    free(log);
#else
    puts("no table: kernels write down times only in the TRACE flavour (make TRACE=1 gpu)");
#endif
    return test_report();
}
