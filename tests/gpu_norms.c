/*
 * gpu_norms.c - norms between products on the CUDA backend: the product before leaves activations
 * that are yet to be divided, and the product after divides (kernels/cuda/gemm_norm.cuh).
 *
 * Whole layers' worth of operations, on random data, against the CPU backend; and bit for bit
 * against the same operations with something in between, so that kernels of their own add up and
 * square; in other tiers and windows, many layers in a row, so that parts of a sum find each other
 * in each of the three ways; with buffers full of NaN where nothing may be read, and with
 * words and counters zero afterwards.  Gains are spread over twelve powers of two.
 *
 * Bounds.  bf16 rounds each activation by up to 2^-9, independently, so a sum over K of them times
 * random weights is off by about 2^-9 / sqrt(3) of its spread: 1 - 2 sum(xy) / sum(x^2 + y^2) over
 * a token's outputs comes to 6e-7 for each of three such sums in a row, and must stay below 1e-5. A
 * divisor that is wrong by a hundredth would give 5e-5.
 */
#include "kernels/cuda/state.h"
#include "tests/gpu_common.h"

#define DISTANCE_MAX 1e-5
#define EPS 1e-5f

static struct kn *cpu, *gpu;
static void *some_memory; /* [KN_ALIGN] */

enum { LAYERS = 3, MANY_LAYERS = 12 };

/* x[T,H] += in[T,K] . w^T + bias; y = norm(x); mlp = relu(y . up^T); x += mlp . down^T;
 * y = norm(x); out = y . head^T. */
struct layer {
    struct test_weight w, up, down, head;
    float *bias, *gain, *gpu_bias, *gpu_gain;
};

struct rig {
    int32_t H, K, I, V, T; /* hidden, inputs, intermediate, outputs, tokens */
    int32_t layers;
    bool with_bias;
    struct layer l;
    float *in, *x; /* [T,K], [T,H] */
};

/* What the GPU came to. */
struct outcome {
    float *x, *out;
    void *y;
};

static void rig_open(struct rig *r, int32_t H, int32_t K, int32_t I, int32_t T, int32_t split)
{
    *r = (struct rig){.H = H, .K = K, .I = I, .V = 200, .T = T, .layers = LAYERS};
    r->with_bias = test_random() % 2;
    struct layer *l = &r->l;
    l->w = test_weight_make(gpu, H, K, split, 0.3f);
    l->up = test_weight_make(gpu, I, H, split, 0.3f);
    l->down = test_weight_make(gpu, H, I, split, 0.01f);
    l->head = test_weight_make(gpu, r->V, H, split, 1);
    l->bias = test_floats((size_t)H);
    l->gain = test_floats((size_t)H);
    for (int32_t i = 0; i < H; i++) l->gain[i] = ldexpf(l->gain[i], (int)(test_random() % 13) - 6);
    l->gpu_bias = test_upload(gpu, KN_MEM_LOCAL, l->bias, (size_t)H * sizeof(float));
    l->gpu_gain = test_upload(gpu, KN_MEM_LOCAL, l->gain, (size_t)H * sizeof(float));
    r->in = test_floats((size_t)T * (size_t)K);
    for (size_t i = 0; i < (size_t)T * (size_t)K; i++) r->in[i] = test_bf16(r->in[i]);
    r->x = test_floats((size_t)T * (size_t)H);
}

static void rig_close(struct rig *r)
{
    struct layer *l = &r->l;
    test_weight_free(gpu, &l->w);
    test_weight_free(gpu, &l->up);
    test_weight_free(gpu, &l->down);
    test_weight_free(gpu, &l->head);
    kn_free(gpu, KN_MEM_LOCAL, l->gpu_bias, (size_t)r->H * sizeof(float));
    kn_free(gpu, KN_MEM_LOCAL, l->gpu_gain, (size_t)r->H * sizeof(float));
    free(l->bias), free(l->gain), free(r->in), free(r->x);
}

static void outcome_free(struct outcome *o)
{
    free(o->x), free(o->out), free(o->y);
}

/* What comes between a product and its norm. */
enum between { NOTHING, SYNC, READ };

/* Counts products that a norm found held, or not. */
static void between(enum between what)
{
    const struct kn_cu *cu = kn_cu_of(gpu);
    if (what == SYNC) test_sync(gpu);
    if (what == READ) kn_stream_read(gpu, some_memory, KN_ALIGN);
    EXPECT((cu->pending.state == KN_CU_HELD) == (what == NOTHING), "state %d", cu->pending.state);
}

static struct outcome run(const struct rig *r, enum between what)
{
    const struct layer *l = &r->l;
    const int32_t T = r->T, H = r->H;
    size_t n = (size_t)T * (size_t)H * sizeof(float), y_bytes = kn_act_bytes(gpu, T, H);
    size_t mlp_bytes = kn_act_bytes(gpu, T, r->I), in_bytes = kn_act_bytes(gpu, T, r->K);
    size_t out_bytes = (size_t)T * (size_t)r->V * sizeof(float);
    const float *bias = r->with_bias ? l->gpu_bias : NULL;
    struct outcome o;
    float *x = test_upload(gpu, KN_MEM_LOCAL, r->x, n);
    void *in = test_act_upload(gpu, T, r->K, r->in), *y = test_poisoned(gpu, KN_MEM_LOCAL, y_bytes);
    void *mlp = test_poisoned(gpu, KN_MEM_LOCAL, mlp_bytes);
    float *out = test_poisoned(gpu, KN_MEM_LOCAL, out_bytes);
    const struct kn_norm_args norm = {KN_RMS_NORM, EPS, T, H, x, l->gpu_gain, NULL, y};
    for (int i = 0; i < r->layers; i++) {
        kn_gemm(gpu, &(struct kn_gemm_args){&l->w.gpu, bias, T, in, KN_EPI_ADD, x});
        between(what);
        kn_norm(gpu, &norm);
        kn_gemm(gpu, &(struct kn_gemm_args){&l->up.gpu, NULL, T, y, KN_EPI_RELU, mlp});
        kn_gemm(gpu, &(struct kn_gemm_args){&l->down.gpu, bias, T, mlp, KN_EPI_ADD, x});
        between(what);
        kn_norm(gpu, &norm);
        kn_gemm(gpu, &(struct kn_gemm_args){&l->head.gpu, NULL, T, y, KN_EPI_F32, out});
    }
    o.x = test_download(gpu, x, n);
    o.y = test_download(gpu, y, y_bytes);
    o.out = test_download(gpu, out, out_bytes);
    kn_free(gpu, KN_MEM_LOCAL, out, out_bytes);
    kn_free(gpu, KN_MEM_LOCAL, mlp, mlp_bytes);
    kn_free(gpu, KN_MEM_LOCAL, y, y_bytes);
    kn_free(gpu, KN_MEM_LOCAL, in, in_bytes);
    kn_free(gpu, KN_MEM_LOCAL, x, n);
    return o;
}

static void check_zeros(void)
{
    const size_t count = KN_CU_NORM_WORDS + KN_CU_NORM_TILES_MAX;
    uint32_t *left = test_download(gpu, kn_cu_of(gpu)->pending.words, count * sizeof *left);
    size_t set = 0;
    for (size_t i = 0; i < count; i++) set += left[i] != 0;
    EXPECT(set == 0, "%zu words and counters are not zero", set);
    free(left);
}

static void check_reference(const struct rig *r, const struct outcome *o)
{
    const struct layer *l = &r->l;
    const int32_t T = r->T, H = r->H;
    const float *bias = r->with_bias ? l->bias : NULL;
    size_t n = (size_t)T * (size_t)H;
    float *x = test_malloc(n * sizeof *x), *y = test_malloc(n * sizeof *y);
    float *mlp = test_malloc((size_t)T * (size_t)r->I * sizeof *mlp);
    float *out = test_malloc((size_t)T * (size_t)r->V * sizeof *out);
    memcpy(x, r->x, n * sizeof *x);
    const struct kn_norm_args norm = {KN_RMS_NORM, EPS, T, H, x, l->gain, NULL, y};
    for (int i = 0; i < r->layers; i++) {
        kn_gemm(cpu, &(struct kn_gemm_args){&l->w.cpu, bias, T, r->in, KN_EPI_ADD, x});
        kn_norm(cpu, &norm);
        kn_gemm(cpu, &(struct kn_gemm_args){&l->up.cpu, NULL, T, y, KN_EPI_RELU, mlp});
        kn_gemm(cpu, &(struct kn_gemm_args){&l->down.cpu, bias, T, mlp, KN_EPI_ADD, x});
        kn_norm(cpu, &norm);
        kn_gemm(cpu, &(struct kn_gemm_args){&l->head.cpu, NULL, T, y, KN_EPI_F32, out});
    }
    double worst = 0;
    for (int32_t t = 0; t < T; t++) {
        double xy = 0, both = 0;
        for (int32_t i = 0; i < r->V; i++) {
            double a = (double)out[t * r->V + i], b = (double)o->out[t * r->V + i];
            xy += a * b;
            both += a * a + b * b;
        }
        double distance = 1 - 2 * xy / both;
        worst = distance <= worst ? worst : distance; /* NaN stays */
    }
    EXPECT(worst < DISTANCE_MAX, "H %d K %d I %d T %d: distance %g", H, r->K, r->I, T, worst);
    int32_t unclear = 0, padded = (int32_t)round_up((size_t)H, 128);
    for (int32_t t = 0; t < T; t++)
        for (int32_t k = H; k < padded; k++) unclear += test_act_get(o->y, T, H, t, k) != 0;
    EXPECT(unclear == 0, "H %d T %d: %d activations beyond the columns", H, T, unclear);
    free(x), free(y), free(mlp), free(out);
}

static void compare(const struct rig *r, const struct outcome *a, const struct outcome *b,
                    const char *what)
{
    int32_t differ = 0;
    for (int32_t t = 0; t < r->T; t++)
        for (int32_t k = 0; k < r->H; k++)
            differ += test_act_get(a->y, r->T, r->H, t, k) != test_act_get(b->y, r->T, r->H, t, k);
    EXPECT(differ == 0, "H %d K %d T %d, %s: %d activations", r->H, r->K, r->T, what, differ);
    EXPECT(!memcmp(a->x, b->x, (size_t)r->T * (size_t)r->H * sizeof(float)),
           "H %d K %d T %d, %s: the residual stream", r->H, r->K, r->T, what);
    EXPECT(!memcmp(a->out, b->out, (size_t)r->T * (size_t)r->V * sizeof(float)),
           "H %d K %d T %d, %s: the outputs", r->H, r->K, r->T, what);
}

/* The same operations in three ways, from two tiers and in three windows. */
static void test_layers(int32_t H, int32_t K, int32_t I, int32_t T)
{
    static const struct kn_window windows[] = {
        {2, 1, 11}, {16, 4, 0}, {KN_WINDOW_NO_BOUND, 2, 12.5f}};
    struct rig r;
    struct outcome first = {0}, o;
    uint64_t seed = test_random_state;
    for (size_t i = 0; i < ARRAY_COUNT(windows); i++) {
        test_random_state = seed;
        rig_open(&r, H, K, I, T, i == 0 ? 1 << 20 : (int32_t)i);
        kn_set_window(gpu, 1, &windows[i]);
        o = run(&r, NOTHING);
        if (i == 0) {
            first = o;
            check_reference(&r, &first);
        } else {
            compare(&r, &o, &first, "other places");
            outcome_free(&o);
        }
        for (int what = SYNC; what <= READ && i < 2; what++) {
            o = run(&r, (enum between)what);
            compare(&r, &o, &first, what == SYNC ? "after kn_sync" : "after another operation");
            outcome_free(&o);
        }
        check_zeros();
        rig_close(&r);
    }
    outcome_free(&first);
    const struct kn_window usual = kn_window_default(KN_MEM_HOST);
    kn_set_window(gpu, 1, &usual);
}

/* Whether a product of H rows has more units than CTAs, in parts. */
static bool has_more_units(int32_t H, int32_t K, int32_t T)
{
    struct kn_cu_gemm_plan plan;
    kn_cu_gemm_plan(H, K, T, kn_cu_of(gpu)->sm_count, true, &plan);
    return plan.part_shift > 0 && plan.group_count << plan.part_shift > plan.grid;
}

/* Many layers without a stop, with eight, four, seven and no eighths of the sums' tiles in HBM: in
 * windows by roles, where parts wait in order, and in one of all CTAs, where they are counted.  The
 * first is all local: its parts share tiles, or wait in order where units are more than CTAs.  Bits
 * are those of kernels that add up and square by themselves. */
static void test_places(int32_t H, int32_t K, int32_t I)
{
    static const int32_t tokens[] = {1, 8, 9, 32}, eighths[] = {8, 4, 7, 0};
    static const struct kn_window windows[] = {
        {16, 4, 2.5f}, {1, 1, 0.5f}, {5, 3, 40}, {40, 2, 12.5f}, {KN_WINDOW_NO_BOUND, 2, 12.5f}};
    struct outcome want[ARRAY_COUNT(tokens)], o;
    const uint64_t seed = test_random_state;
    for (size_t e = 0; e < ARRAY_COUNT(eighths); e++) {
        struct rig r;
        test_random_state = seed;
        rig_open(&r, H, K, I, 32, e ? (H + 63) / 64 * eighths[e] / 8 : 1 << 20);
        r.layers = MANY_LAYERS;
        for (size_t i = 0; i < (e ? ARRAY_COUNT(windows) : 1); i++) {
            kn_set_window(gpu, 1, &windows[i]);
            for (size_t t = 0; t < ARRAY_COUNT(tokens); t++) {
                r.T = tokens[t];
                if (e == 0) want[t] = run(&r, SYNC);
                o = run(&r, NOTHING);
                compare(&r, &o, &want[t], e ? "in order or counted" : "all local");
                outcome_free(&o);
                check_zeros();
            }
        }
        rig_close(&r);
    }
    for (size_t t = 0; t < ARRAY_COUNT(tokens); t++) outcome_free(&want[t]);
    const struct kn_window usual = kn_window_default(KN_MEM_HOST);
    kn_set_window(gpu, 1, &usual);
}

/* --- what is remembered --- */

/* Two norms' outputs at a time, read in turn; a product of whole activations that overwrites one;
 * a norm into the buffer that the product before it reads; memory freed while a product is held. */
static void test_memory(int32_t T)
{
    enum { H = 320, K = 640 };
    struct rig r;
    rig_open(&r, H, K, H, T, 3);
    const struct layer *l = &r.l;
    size_t n = (size_t)T * H * sizeof(float), y_bytes = kn_act_bytes(gpu, T, H);
    size_t out_bytes = (size_t)T * (size_t)r.V * sizeof(float);
    float *x = test_upload(gpu, KN_MEM_LOCAL, r.x, n), *got[6];
    void *in = test_act_upload(gpu, T, K, r.in), *y[2];
    float *out = test_poisoned(gpu, KN_MEM_LOCAL, out_bytes);
    struct kn_norm_args norm = {KN_RMS_NORM, EPS, T, H, x, l->gpu_gain, NULL, NULL};
    for (int i = 0; i < 2; i++) y[i] = test_poisoned(gpu, KN_MEM_LOCAL, y_bytes);
    for (int i = 0; i < 2; i++) { /* of x, and of x after another product */
        norm.y = y[i];
        kn_gemm(gpu, &(struct kn_gemm_args){&l->w.gpu, NULL, T, in, KN_EPI_ADD, x});
        kn_norm(gpu, &norm);
        kn_gemm(gpu, &(struct kn_gemm_args){&l->head.gpu, NULL, T, y[i], KN_EPI_F32, out});
        got[i] = test_download(gpu, out, out_bytes);
    }
    EXPECT(kn_cu_of(gpu)->undivided_count == 2, "%d", kn_cu_of(gpu)->undivided_count);
    kn_gemm(gpu, &(struct kn_gemm_args){&l->head.gpu, NULL, T, y[0], KN_EPI_F32, out});
    got[2] = test_download(gpu, out, out_bytes);
    EXPECT(!memcmp(got[0], got[2], out_bytes), "T %d: the first of two", T);
    EXPECT(memcmp(got[0], got[1], out_bytes) != 0, "T %d: two norms are not one", T);
    /* y[0] = relu(y[1] . up^T) is whole. */
    kn_gemm(gpu, &(struct kn_gemm_args){&l->up.gpu, NULL, T, y[1], KN_EPI_RELU, y[0]});
    EXPECT(kn_cu_of(gpu)->undivided_count == 1, "%d", kn_cu_of(gpu)->undivided_count);
    kn_gemm(gpu, &(struct kn_gemm_args){&l->head.gpu, NULL, T, y[0], KN_EPI_F32, out});
    got[3] = test_download(gpu, out, out_bytes);
    float *whole = test_malloc(n), *want = test_malloc(out_bytes);
    void *relu = test_download(gpu, y[0], y_bytes);
    for (int32_t i = 0; i < T * H; i++) whole[i] = test_act_get(relu, T, H, i / H, i % H);
    kn_gemm(cpu, &(struct kn_gemm_args){&l->head.cpu, NULL, T, whole, KN_EPI_F32, want});
    double worst = 0, most = 0;
    for (int32_t i = 0; i < T * r.V; i++) {
        worst = fmax(worst, fabs((double)got[3][i] - (double)want[i]));
        most = fmax(most, fabs((double)want[i]));
    }
    EXPECT(worst <= 1e-4 * most, "T %d: off by %g of %g", T, worst, most);
    /* y[0] = norm(x += y[0] . down^T), with and without another operation in between. */
    float *before = test_download(gpu, x, n);
    void *copy = test_upload(gpu, KN_MEM_LOCAL, relu, y_bytes);
    norm.y = y[0];
    for (int i = 0; i < 2; i++) {
        test_must(kn_upload(gpu, x, before, n), "upload");
        test_must(kn_upload(gpu, y[0], relu, y_bytes), "upload");
        kn_cu_forget_undivided(kn_cu_of(gpu), y[0], 1);
        kn_gemm(gpu, &(struct kn_gemm_args){&l->down.gpu, NULL, T, i ? copy : y[0], KN_EPI_ADD, x});
        kn_norm(gpu, &norm);
        kn_gemm(gpu, &(struct kn_gemm_args){&l->head.gpu, NULL, T, y[0], KN_EPI_F32, out});
        got[4 + i] = test_download(gpu, out, out_bytes);
    }
    EXPECT(!memcmp(got[4], got[5], out_bytes), "T %d: a norm in place", T);
    /* The product is made though its inputs go. */
    test_must(kn_upload(gpu, x, before, n), "upload");
    kn_gemm(gpu, &(struct kn_gemm_args){&l->down.gpu, NULL, T, copy, KN_EPI_ADD, x});
    kn_free(gpu, KN_MEM_LOCAL, copy, y_bytes);
    float *after = test_download(gpu, x, n);
    EXPECT(memcmp(before, after, n) != 0, "T %d: a product was lost", T);
    /* Nor does one whose sum is gone do harm. */
    kn_gemm(gpu, &(struct kn_gemm_args){&l->w.gpu, NULL, T, in, KN_EPI_ADD, x});
    kn_free(gpu, KN_MEM_LOCAL, x, n);
    test_sync(gpu);
    for (int i = 0; i < 2; i++) kn_free(gpu, KN_MEM_LOCAL, y[i], y_bytes);
    EXPECT(kn_cu_of(gpu)->undivided_count == 0, "%d", kn_cu_of(gpu)->undivided_count);
    kn_free(gpu, KN_MEM_LOCAL, out, out_bytes);
    kn_free(gpu, KN_MEM_LOCAL, in, kn_act_bytes(gpu, T, K));
    rig_close(&r);
    for (int i = 0; i < 6; i++) free(got[i]);
    free(whole), free(want), free(relu), free(before), free(after);
}

int main(int argc, char **argv)
{
    static const int32_t tokens[] = {1, 3, 7, 8, 9, 16, 17, 31, 32};
    static const struct {
        int32_t H, K, I;
    } shapes[] = {
        {64, 128, 64},     /* one tile, one part */
        {200, 1700, 1111}, /* nothing is a multiple; a last part of fewer blocks */
        {320, 2048, 1024}, /* an odd number of tiles */
        {2048, 1040, 704}, {4096, 1024, 512}, {17408, 256, 192}, /* more units than CTAs */
    };
    static const struct {
        int32_t H, K, I;
        bool more_units;
    } places[] = {
        {320, 2048, 1024, false},  /* a few units */
        {4096, 2048, 1024, false}, /* as many as CTAs, or almost: launches take turns */
        {4416, 2048, 1024, true},  /* some CTAs have two */
        {12288, 1024, 256, true},  /* all have one or two */
    };
    char err[ERR_CAP] = "";
    bool quick = argc > 1 && !strcmp(argv[1], "--quick");
    setvbuf(stdout, NULL, _IOLBF, 0);
    test_seed();
    test_must(kn_open_cpu(0, &cpu, err), err);
    test_must(kn_open_cuda(0, &gpu, err), err);
    some_memory = test_upload(gpu, KN_MEM_LOCAL, NULL, KN_ALIGN);
    for (size_t i = 0; i < ARRAY_COUNT(tokens); i++)
        for (size_t j = 0; j < ARRAY_COUNT(shapes); j++) {
            if (quick && (i % 4 || j > 2)) continue;
            if (j > 2 && i % 2) continue;
            test_layers(shapes[j].H, shapes[j].K, shapes[j].I, tokens[i]);
        }
    for (size_t i = 0; i < ARRAY_COUNT(places) && (i == 0 || !quick); i++) {
        EXPECT(!places[i].more_units || has_more_units(places[i].H, places[i].K, 1),
               "H %d is too small for this GPU", places[i].H);
        test_places(places[i].H, places[i].K, places[i].I);
    }
    for (size_t i = 0; i < ARRAY_COUNT(tokens); i++) test_memory(tokens[i]);
    kn_free(gpu, KN_MEM_LOCAL, some_memory, KN_ALIGN);
    kn_close(gpu);
    kn_close(cpu);
    return test_report();
}
