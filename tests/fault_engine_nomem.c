/*
 * fault_engine_nomem.c - opening a model, and placing it anew, with the N-th allocation failing,
 * for every N: each ends in ST_NOMEM with a sentence, or in a model that opens because it can do
 * without (a loader thread), and nothing stays allocated.
 *
 * The test brings its own malloc in front of the C library's, so it does not run under the address
 * and thread sanitizers, which bring theirs.
 */
#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/model.h"
#include "tests/model_dir.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)

int main(void)
{
    print_message("not run under a sanitizer that has its own malloc\n");
    return 77; /* skipped, to the test runner */
}

#else

#include "tests/failing_malloc.h"

/* Opens the model in two tiers, places it anew and closes it; true where the failure was reached.
 */
static int open_failing(struct kn *kn, const char *dir, enum eng_load_format format, long n,
                        enum status *st)
{
    struct off_tiers *tiers;
    struct eng_model *model;
    const bool dummy = format == ENG_LOAD_DUMMY;
    struct eng_model_options opt = {.load_format = format,
                                    .hf_overrides = dummy ? "{\"num_hidden_layers\": 2}" : NULL,
                                    .everywhere = true,
                                    .tokens_max = 4,
                                    .rows_max = 4};
    const struct off_remote remote = {.count = 1, .spec = {{KN_MEM_HOST, 0, 4 << 20}}};
    char err[ERR_CAP] = "";
    if (off_tiers_open(kn, 4 << 20, &remote, &tiers, err)) fail_msg("%s", err);
    long before = atomic_load(&control->live);
    atomic_store(&control->failures, 0);
    atomic_store(&control->countdown, n);
    *st = eng_model_open(kn, tiers, dir, &opt, &model, err);
    const bool opened = *st == ST_OK;
    opt.offload = 0.5;
    if (opened) *st = eng_model_place(model, tiers, &opt, err);
    atomic_store(&control->countdown, 0);
    assert_true(opened == (model != NULL));
    if (*st) {
        assert_int_equal(*st, ST_NOMEM);
        assert_true(err[0]);
    }
    /* Where placing failed, the weights are where they were. */
    if (opened) assert_true((eng_model_tier_bytes(model, 1) > 0) == (*st == ST_OK));
    eng_model_close(model);
    assert_int_equal(atomic_load(&control->live), before);
    off_tiers_close(tiers);
    return atomic_load(&control->failures) > 0;
}

static void every_allocation(void **state)
{
    struct model_dir d;
    struct kn *kn;
    char err[ERR_CAP] = "", header[MICRO_HEADER_CAP], index[MICRO_HEADER_CAP];
    cpu_set_t
        one; /* a single loader thread, so that allocations come in the same order every time */
    (void)state;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    dir_make(&d);
    dir_write_text(&d, "config.json", micro_config);
    dir_write_text(&d, "generation_config.json", "{\"eos_token_id\": [1, 2]}");
    size_t len = (size_t)snprintf(index, sizeof index, "{\"weight_map\":{"), count;
    size_t data = micro_header(header, 0, 6);
    dir_write_tensors(&d, "a.safetensors", strlen(header), header, strlen(header), data);
    data = micro_header(header, 6, ARRAY_COUNT(micro_tensors));
    dir_write_tensors(&d, "b.safetensors", strlen(header), header, strlen(header), data);
    for (size_t i = 0; i < ARRAY_COUNT(micro_tensors); i++)
        len += (size_t)snprintf(index + len, sizeof index - len, "%s\"%s\":\"%c.safetensors\"",
                                i ? "," : "", micro_tensors[i].name, i < 6 ? 'a' : 'b');
    snprintf(index + len, sizeof index - len, "}}");
    dir_write_text(&d, "model.safetensors.index.json", index);
    assert_int_equal(kn_open_cpu(1, &kn, err), ST_OK);
    for (int format = 0; format < 2; format++) {
        enum status st;
        long n = 1;
        for (count = 0; open_failing(kn, d.path, (enum eng_load_format)format, n, &st); n++)
            count += st == ST_NOMEM;
        assert_int_equal(st, ST_OK); /* the round that reached no failure */
        print_message("%s: %ld allocations, %zu of them failed the opening\n",
                      format ? "dummy" : "safetensors", n - 1, count);
        assert_true(n > (format ? 50 : 200));
        assert_int_equal(count, n - 1);
    }
    kn_close(kn);
    dir_remove(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_allocation)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#endif
