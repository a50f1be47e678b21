/*
 * unit_engine_operations.c - a plan and where weights then lie: the same tiles, operation by
 * operation and tier by tier, for every shape there is and whatever fits in HBM.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "engine/operations.h"

#define MODELS "config/models/"
#define GIB (1ull << 30)

static const char *const models[] = {
    MODELS "Llama-3.1-8B", MODELS "Llama-3.1-70B", MODELS "OPT-6.7B",  MODELS "OPT-30B",
    MODELS "Qwen2.5-7B",   MODELS "Qwen3-32B",     "config/demo-model"};

/* Tied heads, no gate, learned positions: the operations differ. */
static void read_plan(const char *dir, struct eng_shape *shape, struct off_plan *plan)
{
    char err[ERR_CAP] = "";
    const struct eng_model_options opt = {.load_format = ENG_LOAD_DUMMY};
    if (eng_model_read_shape(dir, &opt, shape, err)) fail_msg("%s", err);
    const struct eng_step step = {
        .seq_count = 4, .context = 256, .kv_dtype = KN_BF16, .flops_per_s = 1e15};
    *plan = (struct off_plan){0};
    if (eng_operations(shape, &step, plan, err)) fail_msg("%s", err);
}

static uint64_t stored(const struct off_plan *p, int tier)
{
    uint64_t sum = 0;
    for (int i = 0; i < p->op_count; i++)
        if (!eng_operation_is_kv(&p->op[i])) sum += off_plan_stored_bytes(&p->op[i], tier);
    return sum;
}

static void check_preview(const struct eng_shape *shape, const struct off_plan *plan,
                          const struct eng_model_options *opt)
{
    char err[ERR_CAP] = "";
    struct eng_weights w;
    struct off_plan counted = *plan;
    if (eng_weights_preview(shape, NULL, opt, &w, err)) fail_msg("%s", err);
    eng_operations_count(shape, &w, &counted);
    for (int i = 0; i < plan->op_count; i++)
        assert_memory_equal(counted.op[i].tiles, plan->op[i].tiles, sizeof plan->op[i].tiles);
    /* Every weight's spans partition its tiles, and layers differ by a tile at most. */
    for (int32_t i = 0; i < shape->info.layer_count; i++) {
        const struct kn_weight *down = &w.layers[i].down, *first = &w.layers[0].down;
        int32_t sum = 0;
        for (int t = 0; t < KN_TIER_MAX; t++) {
            assert_int_equal(down->span[t].tile_begin, sum);
            sum += down->span[t].tile_count;
            assert_true(abs(down->span[t].tile_count - first->span[t].tile_count) <= 1);
        }
        assert_int_equal(sum, down->tile_count);
    }
    eng_weights_deinit(&w);
}

static void test_placed_as_planned(void **state)
{
    (void)state;
    static struct eng_shape shape;
    struct off_plan plan;
    char err[ERR_CAP] = "";
    for (size_t m = 0; m < ARRAY_COUNT(models); m++) {
        read_plan(models[m], &shape, &plan);
        const struct eng_model_options opt = {.load_format = ENG_LOAD_DUMMY, .plan = &plan};
        uint64_t kv = 0, all = shape.info.weight_bytes;
        for (int i = 0; i < plan.op_count; i++)
            if (eng_operation_is_kv(&plan.op[i]))
                kv += (uint64_t)plan.op[i].count * (uint64_t)plan.op[i].tile_count *
                      plan.op[i].tile_bytes;
        for (int percent = 10; percent <= 100; percent += 18) {
            plan.tier_count = 3;
            plan.tier[0] = (struct off_plan_tier){"hbm", 4.7e12, kv + all / 100 * percent};
            plan.tier[1] = (struct off_plan_tier){"peer1", 3.7e11, all / 4};
            plan.tier[2] = (struct off_plan_tier){"host", 5e10, all + GIB};
            if (off_plan_solve(&plan, err)) fail_msg("%s", err);
            assert_int_equal(stored(&plan, 0) + stored(&plan, 1) + stored(&plan, 2), all);
            check_preview(&shape, &plan, &opt);
        }
    }
}

static void test_parts(void **state)
{
    (void)state;
    static struct eng_shape shape;
    struct off_plan plan;
    read_plan(MODELS "OPT-6.7B", &shape, &plan);
    assert_string_equal(eng_operation_of(&plan, ENG_PART_UP)->name, "up");
    assert_string_equal(eng_operation_of(&plan, ENG_PART_POSITIONS)->name, "positions");
    assert_string_equal(eng_operation_of(&plan, ENG_PART_EMBED)->name, "embedding, head");
    assert_null(eng_operation_of(&plan, ENG_PART_GATE));
    assert_null(eng_operation_of(&plan, ENG_PART_HEAD));
    read_plan(MODELS "Llama-3.1-8B", &shape, &plan);
    assert_string_equal(eng_operation_of(&plan, ENG_PART_GATE)->name, "gate-up");
    assert_string_equal(eng_operation_of(&plan, ENG_PART_HEAD)->name, "head");
    assert_string_equal(eng_operation_of(&plan, ENG_PART_EMBED)->name, "embedding");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_placed_as_planned),
        cmocka_unit_test(test_parts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
