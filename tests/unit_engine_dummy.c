/*
 * unit_engine_dummy.c - dummy weights: the numbers that a seed gives, worked out apart from the
 * code, and what must hold of any of them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "config/check.h"
#include "engine/dummy.h"
#include "kernels/convert.h"

enum { COLS = 1021, ROWS = 64 };

static void the_same_numbers_for_a_seed(void **state)
{
    (void)state;
    static struct eng_dummy d;
    static const struct {
        uint64_t seed, matrix;
        int32_t row;
        int32_t drawn[6]; /* which of the values */
    } cases[] = {{0, 0, 0, {3973, 1393, 3146, 2635, 4069, 1900}},
                 {7, 3, 5, {3056, 303, 1017, 139, 635, 3709}}};
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        float row[6];
        eng_dummy_init(&d, cases[i].seed, KN_F32);
        eng_dummy_row(&d, cases[i].matrix, cases[i].row, 6, row);
        for (int k = 0; k < 6; k++) {
            const double value = (cases[i].drawn[k] - 2047.5) / 2048 * 0.02 * sqrt(3);
            assert_true(fabs(row[k] - value) <= 1e-6 * fabs(value));
        }
    }
}

static void rows_are_their_own(void **state)
{
    (void)state;
    static struct eng_dummy d;
    static float rows[ROWS][COLS], again[COLS];
    double sum = 0, squares = 0;
    eng_dummy_init(&d, 1, KN_F32);
    for (int32_t r = 0; r < ROWS; r++) {
        eng_dummy_row(&d, 2, r, COLS, rows[r]);
        for (int32_t c = 0; c < COLS; c++) {
            assert_true(rows[r][c] != 0);
            sum += rows[r][c];
            squares += (double)rows[r][c] * rows[r][c];
        }
        if (r) assert_memory_not_equal(rows[r], rows[r - 1], sizeof rows[r]);
    }
    assert_true(fabs(sum / (ROWS * COLS)) < 3e-4);
    assert_true(fabs(sqrt(squares / (ROWS * COLS)) / 0.02 - 1) < 0.01);
    for (int32_t cols = 1; cols < 10; cols++) { /* however much of a row is asked for */
        memset(again, 0, sizeof again);
        eng_dummy_row(&d, 2, ROWS - 1, cols, again);
        assert_memory_equal(again, rows[ROWS - 1], (size_t)cols * sizeof *again);
        assert_true(again[cols] == 0);
    }
    eng_dummy_row(&d, 3, ROWS - 1, COLS, again);
    assert_memory_not_equal(again, rows[ROWS - 1], sizeof again);
    eng_dummy_init(&d, 2, KN_F32);
    eng_dummy_row(&d, 2, ROWS - 1, COLS, again);
    assert_memory_not_equal(again, rows[ROWS - 1], sizeof again);
}

/* Those of half the size are the others, rounded. */
static void types_are_roundings(void **state)
{
    (void)state;
    static struct eng_dummy d;
    static float wanted[COLS];
    static uint16_t half[COLS], rounded[COLS];
    static const enum kn_dtype types[] = {KN_BF16, KN_F16};
    eng_dummy_init(&d, 1, KN_F32);
    eng_dummy_row(&d, 2, 3, COLS, wanted);
    for (size_t i = 0; i < ARRAY_COUNT(types); i++) {
        eng_dummy_init(&d, 1, types[i]);
        eng_dummy_row(&d, 2, 3, COLS, half);
        for (size_t c = 0; c < COLS; c++) kn_store(types[i], rounded, c, wanted[c]);
        assert_memory_equal(half, rounded, sizeof half);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_numbers_for_a_seed),
        cmocka_unit_test(rows_are_their_own),
        cmocka_unit_test(types_are_roundings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
