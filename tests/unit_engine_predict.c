/*
 * unit_engine_predict.c - predicted steps against measured ones, and what must hold of predictions
 * whatever their constants are.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "engine/predict.h"
#include "tests/predict_table.h"
#include "tests/test_random.h"

#define WITHIN 0.07 /* of every measured step */
#define ON_AVERAGE 0.025
#define CASES 300

static struct kn *cpu;

static void read_shape(const char *model, int32_t layer_count, struct eng_shape *shape)
{
    char dir[64], err[ERR_CAP] = "";
    const struct eng_model_options opt = {.load_format = ENG_LOAD_DUMMY, .dtype = ENG_DTYPE_BF16};
    snprintf(dir, sizeof dir, "config/models/%s", model);
    if (eng_model_read_shape(dir, &opt, shape, err)) fail_msg("%s", err);
    if (layer_count) shape->info.layer_count = layer_count;
}

/* Where a share of the weights lies, as the loader would place it. */
static void place(const struct eng_shape *shape, const char *remote, double share, bool even,
                  const struct eng_step *step, struct off_plan *placed)
{
    struct off_remote tiers_named;
    struct off_tiers *tiers;
    struct eng_weights weights;
    char err[ERR_CAP] = "";
    const struct eng_model_options opt = {.load_format = ENG_LOAD_DUMMY,
                                          .offload = share,
                                          .placement = even ? OFF_PLACE_EVEN : OFF_PLACE_AUTO};
    *placed = (struct off_plan){0};
    if (off_remote_parse(remote, &tiers_named, err) ||
        off_tiers_open(cpu, 0, &tiers_named, &tiers, err) ||
        eng_weights_preview(shape, tiers, &opt, &weights, err) ||
        eng_operations(shape, step, placed, err))
        fail_msg("%s", err);
    eng_operations_count(shape, &weights, placed);
    placed->tier_count = 1 + tiers_named.count;
    eng_weights_deinit(&weights);
    off_tiers_close(tiers);
}

static struct eng_step step_of(int32_t seq_count, int32_t context)
{
    return (struct eng_step){.seq_count = seq_count,
                             .context = context,
                             .kv_dtype = KN_BF16,
                             .flops_per_s = ENG_PREDICT_FLOPS_PER_S};
}

static double predict_measured(const struct measured *m)
{
    static struct eng_shape shape;
    struct off_plan placed;
    struct eng_prediction p;
    const struct eng_step step = step_of(m->seq_count, m->context);
    read_shape(m->model, m->layer_count, &shape);
    place(&shape, m->remote, m->share, m->even, &step, &placed);
    for (int t = 0; t < placed.tier_count; t++) placed.tier[t].bytes_per_s = m->gbps[t] * 1e9;
    assert_true(eng_predict(&shape, &step, &placed, NULL, &p));
    return p.seconds * 1e3;
}

/* A change of the model that loses what was measured is noticed here. */
static void test_measured_steps(void **state)
{
    (void)state;
    double sum = 0, worst = 0;
    int beyond = 0;
    for (size_t i = 0; i < ARRAY_COUNT(measured); i++) {
        const struct measured *m = &measured[i];
        const double ms = predict_measured(m), error = fabs(ms / m->ms - 1);
        sum += error;
        worst = fmax(worst, error);
        if (error <= WITHIN) continue;
        beyond++;
        print_message("%s, %d layers, %.3g of it in '%s', %d sequences of %d tokens: %.4f ms "
                      "predicted, %.4f measured\n",
                      m->model, m->layer_count, m->share, m->remote, m->seq_count, m->context, ms,
                      m->ms);
    }
    const double mean = sum / (double)ARRAY_COUNT(measured);
    print_message("%zu steps: mean error %.2f %%, largest %.2f %%\n", ARRAY_COUNT(measured),
                  100 * mean, 100 * worst);
    assert_int_equal(beyond, 0);
    assert_true(mean < ON_AVERAGE);
}

/* Without rows of tables. */
static double read_bytes(const struct off_plan *placed, int tier)
{
    double bytes = 0;
    for (int i = 0; i < placed->op_count; i++)
        if (strcmp(placed->op[i].name, "embedding") && strcmp(placed->op[i].name, "positions"))
            bytes += off_plan_read_bytes(&placed->op[i], tier);
    return bytes;
}

/* Of random steps: the parts are what the whole is made of; no tier gives its bytes in less than
 * it; and it hardly grows with a bandwidth (HBM that is faster leaves the link less time to fetch
 * ahead). */
static void test_properties(void **state)
{
    (void)state;
    static const char *const models[] = {"Llama-3.1-8B", "Llama-3.1-70B", "OPT-6.7B", "Qwen3-32B"};
    static struct eng_shape shape;
    test_seed();
    for (int i = 0; i < CASES; i++) {
        struct off_plan placed;
        struct eng_prediction p, faster;
        read_shape(models[test_random() % ARRAY_COUNT(models)], 2 + (int32_t)(test_random() % 7),
                   &shape);
        const struct eng_step step = step_of(1 + (int32_t)(test_random() % ENG_PREDICT_TOKENS_MAX),
                                             1 + (int32_t)(test_random() % 2000));
        const double share = (double)(test_random() % 101) / 100;
        place(&shape, "peer:1:200GiB", share, test_random() % 2, &step, &placed);
        placed.tier[0].bytes_per_s = 1e12 + 1e10 * (double)(test_random() % 800);
        placed.tier[1].bytes_per_s = 2e10 + 1e9 * (double)(test_random() % 1000);
        assert_true(eng_predict(&shape, &step, &placed, NULL, &p));
        const double parts = p.products_s + p.links_s + p.attention_s + p.between_s;
        assert_true(fabs(parts / p.seconds - 1) < 1e-9 && p.links_s >= 0);
        for (int t = 0; t < 2; t++) {
            const double least_s = read_bytes(&placed, t) / placed.tier[t].bytes_per_s;
            if (p.seconds < (1 - 1e-9) * least_s)
                fail_msg("case %d: share %g, %d sequences of %d tokens: %g s, tier %d needs %g", i,
                         share, step.seq_count, step.context, p.seconds, t, least_s);
        }
        for (int t = 0; t < 2; t++) {
            placed.tier[t].bytes_per_s *= 1.3;
            assert_true(eng_predict(&shape, &step, &placed, NULL, &faster));
            assert_true(faster.seconds <= p.seconds * 1.02);
            placed.tier[t].bytes_per_s /= 1.3;
        }
    }
}

/* Brought ahead, bytes wait for the link as a whole: faster where single products waited for it,
 * and never below what it needs. */
static void test_staged(void **state)
{
    (void)state;
    static struct eng_shape shape;
    struct off_plan placed;
    struct eng_prediction direct, none, all;
    const struct eng_step step = step_of(8, 512);
    struct eng_staging staging = {.share = {0}, .bytes_per_s = {0, 55e9}};
    read_shape("Llama-3.1-8B", 0, &shape);
    place(&shape, "host:16GiB", 0.02, true, &step, &placed);
    placed.tier[0].bytes_per_s = 4.6e12;
    placed.tier[1].bytes_per_s = 51e9;
    assert_true(eng_predict(&shape, &step, &placed, NULL, &direct));
    assert_true(eng_predict(&shape, &step, &placed, &staging, &none));
    assert_true(direct.seconds == none.seconds); /* a share of none is none */
    staging.share[1] = 1;
    assert_true(eng_predict(&shape, &step, &placed, &staging, &all));
    assert_true(all.seconds < direct.seconds);
    /* The head is read in place, and slower. */
    assert_true(all.seconds >= read_bytes(&placed, 1) / 55e9);
    assert_true(all.seconds < read_bytes(&placed, 1) / 54e9);
}

/* KV behind PCIe: what was measured (64 sequences of 1,024 tokens, the e8923df-kv-remote results),
 * and what must hold of any share. */
static void test_far_pages(void **state)
{
    (void)state;
    static struct eng_shape shape;
    static const struct {
        double far_mb, ms;
    } steps[] = {{537, 14.819}, {6979, 140.089}};
    struct off_plan placed;
    struct eng_prediction p, last = {0};
    const struct eng_step step = step_of(64, 1048);
    read_shape("Llama-3.1-8B", 0, &shape);
    place(&shape, "host:16GiB", 0, true, &step, &placed);
    placed.tier[0].bytes_per_s = 4646e9;
    placed.tier[1].bytes_per_s = 51.3e9;
    const int64_t pages = eng_operation_kv(&placed)->tile_count;
    const double all = off_plan_read_bytes(eng_operation_kv(&placed), 0);
    for (int i = 0; i < 2; i++) {
        eng_operations_place_kv(&placed, 1, llround(steps[i].far_mb * 1e6 / all * (double)pages));
        assert_true(eng_predict(&shape, &step, &placed, NULL, &p));
        print_message("%.0f MB of KV behind PCIe: %.3f ms predicted, %.3f measured\n",
                      steps[i].far_mb, p.seconds * 1e3, steps[i].ms);
        assert_true(fabs(p.seconds * 1e3 / steps[i].ms - 1) < 0.03);
    }
    placed.tier[1].bytes_per_s = 375e9;
    for (int64_t far = 0; far <= pages; far += pages / 64) {
        eng_operations_place_kv(&placed, 1, far);
        assert_true(eng_predict(&shape, &step, &placed, NULL, &p));
        /* Shorter up to about the free fraction, 7 %, longer from then on. */
        if (far && far <= pages / 16) assert_true(p.seconds < last.seconds);
        if (far > pages / 10) assert_true(p.seconds > last.seconds);
        assert_true(p.seconds >= (double)far / (double)pages * all / 375e9);
        last = p;
    }
}

/* A link so slow that nothing else matters gives the pages' bytes in no less time than it takes,
 * the scales of fp8 among them. */
static void test_far_pages_in_any_type(void **state)
{
    (void)state;
    static struct eng_shape shape;
    static const enum kn_dtype types[] = {KN_BF16, KN_E4M3};
    read_shape("Llama-3.1-8B", 0, &shape);
    for (size_t i = 0; i < ARRAY_COUNT(types); i++) {
        struct off_plan placed;
        struct eng_prediction p;
        struct eng_step step = step_of(64, 1048);
        step.kv_dtype = types[i];
        place(&shape, "host:16GiB", 0, true, &step, &placed);
        const struct off_plan_op *kv = eng_operation_kv(&placed);
        const double link = 1e8, least_s = off_plan_read_bytes(kv, 0) / link;
        placed.tier[0].bytes_per_s = 4646e9;
        placed.tier[1].bytes_per_s = link;
        eng_operations_place_kv(&placed, 1, kv->tile_count);
        assert_true(eng_predict(&shape, &step, &placed, NULL, &p));
        assert_true(p.seconds >= least_s && p.seconds < 1.005 * least_s);
    }
}

static void test_refused(void **state)
{
    (void)state;
    static struct eng_shape shape;
    struct off_plan placed;
    struct eng_prediction p = {.seconds = 1};
    read_shape("Llama-3.1-8B", 2, &shape);
    struct eng_step step = step_of(ENG_PREDICT_TOKENS_MAX + 1, 64);
    place(&shape, "host:8GiB", 0.1, true, &step, &placed);
    placed.tier[0].bytes_per_s = 4e12;
    placed.tier[1].bytes_per_s = 5e10;
    assert_false(eng_predict(&shape, &step, &placed, NULL, &p));
    assert_true(p.seconds == 0);
    step.seq_count = 1;
    assert_true(eng_predict(&shape, &step, &placed, NULL, &p));
    placed.tier[1].bytes_per_s = 0;
    assert_false(eng_predict(&shape, &step, &placed, NULL, &p));
    placed.tier[1].bytes_per_s = 5e10;
    shape.info.dtype = KN_F32;
    assert_false(eng_predict(&shape, &step, &placed, NULL, &p));
}

static int open_cpu(void **state)
{
    char err[ERR_CAP];
    (void)state;
    return kn_open_cpu(1, &cpu, err) ? -1 : 0;
}

static int close_cpu(void **state)
{
    (void)state;
    kn_close(cpu);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_measured_steps), cmocka_unit_test(test_properties),
        cmocka_unit_test(test_staged),         cmocka_unit_test(test_far_pages),
        cmocka_unit_test(test_refused),        cmocka_unit_test(test_far_pages_in_any_type),
    };
    return cmocka_run_group_tests(tests, open_cpu, close_cpu);
}
