/*
 * unit_engine_trial.c - steps that are tried: what the backend is asked for, that nothing is left
 * under way, and that the figure is the median of those that count.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "engine/model_state.h"
#include "engine/trial.h"
#include "kernels/backend.h"

#define MODEL "config/demo-model"
#define MIB (1ull << 20)
enum { PAGES = 3, FAILS_NEVER = 1000000 };

static struct kn_backend noting;
static const struct kn_backend *cpu;
static struct {
    uint64_t begun, waited, flying_most, fails_at;
    int32_t seqs, kv_count;
    uint32_t page_most;
} seen;

static void note_begin(struct kn *kn)
{
    seen.begun++;
    if (seen.begun - seen.waited > seen.flying_most) seen.flying_most = seen.begun - seen.waited;
    cpu->step_begin(kn);
}

/* The n-th step takes n % 7 ms and a little; the first ones very long. */
static enum status note_wait(struct kn *kn, uint64_t step, uint64_t *busy_ns, char *err)
{
    const enum status st = cpu->step_wait(kn, step, busy_ns, err);
    const uint64_t n = seen.waited++;
    if (n == seen.fails_at) return err_set(err, ST_DEVICE, "step %d failed", (int)n);
    *busy_ns = n < 2 ? 1000000000 : 1000000 * (1 + n % 7);
    return st;
}

static void note_attention(struct kn *kn, const struct kn_batch *b,
                           const struct kn_attention_args *a)
{
    seen.seqs = b->seq_count;
    for (int32_t i = 0; i < b->seq_count; i++) {
        const struct kn_seq *s = &b->seqs[i];
        const int32_t pages = (s->kv_count + KN_PAGE_TOKENS - 1) / KN_PAGE_TOKENS;
        assert_int_equal(b->positions[i], s->kv_count - 1);
        seen.kv_count = s->kv_count;
        for (int32_t p = 0; p < pages; p++) {
            const kn_page page = b->pages[s->page_begin + p];
            assert_int_equal(kn_page_tier(page), 0);
            if (kn_page_index(page) > seen.page_most) seen.page_most = kn_page_index(page);
        }
    }
    cpu->attention(kn, b, a);
}

static void test_trial(void **state)
{
    (void)state;
    const struct off_remote none = {0};
    const struct eng_model_options mo = {
        .load_format = ENG_LOAD_DUMMY, .tokens_max = 8, .rows_max = 8};
    struct eng_trial t = {.seq_count = 5, .context = 130, .page_count = PAGES, .record = true};
    struct off_tiers *tiers;
    struct eng_model *m;
    struct kn *kn;
    struct kn_kv kv;
    char err[ERR_CAP] = "";
    double s = 0;
    if (kn_open_cpu(1, &kn, err) || off_tiers_open(kn, 64 * MIB, &none, &tiers, err) ||
        eng_model_open(kn, tiers, MODEL, &mo, &m, err))
        fail_msg("%s", err);
    eng_model_kv(m, &kv);
    const size_t bytes = PAGES * kn_kv_page_bytes(&kv);
    if (kn_alloc(kn, KN_MEM_LOCAL, 0, bytes, &kv.base[0], err)) fail_msg("%s", err);
    cpu = kn->backend;
    noting = *cpu;
    noting.step_begin = note_begin;
    noting.step_wait = note_wait;
    noting.attention = note_attention;
    kn->backend = &noting;
    seen.fails_at = FAILS_NEVER;
    assert_int_equal(eng_model_try_step(m, &kv, &t, &s, err), ST_OK);
    assert_true(s > 0.0035 && s < 0.0055); /* of 1 to 7 ms */
    assert_true(seen.begun == seen.waited && seen.begun >= 8 && seen.begun < 40);
    assert_int_equal(seen.flying_most, 2);
    assert_int_equal(seen.seqs, 5);
    assert_int_equal(seen.kv_count, 130);
    assert_int_equal(seen.page_most, PAGES - 1);
    /* As often as one likes; and one sequence of one token. */
    t = (struct eng_trial){.seq_count = 1, .context = 1, .page_count = 1};
    seen.page_most = 0;
    assert_int_equal(eng_model_try_step(m, &kv, &t, &s, err), ST_OK);
    assert_true(seen.seqs == 1 && seen.page_most == 0);
    seen.fails_at = seen.waited + 5;
    assert_int_equal(eng_model_try_step(m, &kv, &t, &s, err), ST_DEVICE);
    assert_non_null(strstr(err, "failed"));
    kn->backend = cpu;
    kn_free(kn, KN_MEM_LOCAL, kv.base[0], bytes);
    eng_model_close(m);
    off_tiers_close(tiers);
    kn_close(kn);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_trial)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
