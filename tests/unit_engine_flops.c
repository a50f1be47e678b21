/* Operations of a prompt, against numbers worked out by hand and against counting pairs one by one.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/flops.h"

static void test_llama_8b(void **state)
{
    (void)state;
    static struct eng_shape shape;
    static struct eng_flops f;
    struct eng_weights w;
    char err[ERR_CAP] = "";
    if (eng_shape_read("config/models/Llama-3.1-8B", ENG_DTYPE_AUTO, NULL, &shape, err) ||
        eng_weights_shapes(&shape, &w, err))
        fail_msg("%s", err);
    eng_flops_init(&f, &shape, &w);
    eng_weights_deinit(&w);
    /* 218,103,808 elements a layer, 32 layers; a head of 128256 x 4096; 32 heads of 128. */
    assert_true(f.token == 2.0 * 32 * 218103808);
    assert_true(f.row == 2.0 * 128256 * 4096);
    assert_true(f.pair == 4.0 * 32 * 128);
    double pairs = 32 * 2048.0 * 2049 / 2;
    assert_true(eng_flops_prompt(&f, 0, 2048, 1) == 2048 * f.token + f.row + pairs * f.pair);
}

/* Chunks come to what the prompt does, with windows and without. */
static void test_pairs(void **state)
{
    (void)state;
    static const struct eng_flops f = {
        .token = 1000000, .row = 100000000, .pair = 1, .layer_count = 3, .window = {0, 5, 16}};
    for (int32_t begin = 0; begin < 40; begin += 3)
        for (int32_t count = 0; count < 40; count += 7) {
            double pairs = 0;
            for (int32_t layer = 0; layer < 3; layer++)
                for (int32_t p = begin; p < begin + count; p++)
                    pairs += f.window[layer] && f.window[layer] < p + 1 ? f.window[layer] : p + 1;
            assert_true(eng_flops_prompt(&f, begin, count, 2) ==
                        1000000.0 * count + 2 * 100000000.0 + pairs);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama_8b),
        cmocka_unit_test(test_pairs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
