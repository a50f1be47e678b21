/* How much GPU memory prompts' remote weights are copied through, and when start-up refuses.  The
 * CPU backend takes the GPU's place: it reserves nothing and says yes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "server/staging.h"

/* 32 layers of 500 MB. */
static const struct eng_model_info info = {.layer_count = 32, .weight_bytes = 16000000000};

static struct options options_of(const char *staging, int64_t tokens)
{
    struct options o = {
        .max_num_batched_tokens = tokens, .offload_mode = "auto", .offload_staging_bytes = "auto"};
    snprintf(o.prefill_staging_bytes, sizeof o.prefill_staging_bytes, "%s", staging);
    return o;
}

static uint64_t choice(const char *staging, int64_t tokens, double share, bool gpu)
{
    const struct options o = options_of(staging, tokens);
    char err[ERR_CAP] = "";
    uint64_t bytes = 1;
    if (srv_staging_choose(&o, &info, share, gpu, &bytes, err)) fail_msg("%s", err);
    return bytes;
}

static void test_choose(void **state)
{
    (void)state;
    char err[ERR_CAP] = "";
    uint64_t bytes;
    /* A tenth of a layer and a half, and 16 MiB. */
    assert_int_equal(choice("auto", 512, 0.1, true), 75000000 + (16 << 20));
    assert_int_equal(choice("auto", 512, 1, true), 750000000 + (16 << 20));
    assert_int_equal(choice("200MiB", 512, 0.1, true), 200 << 20);
    assert_int_equal(choice("0", 512, 0.1, true), 0);
    /* And the head's part, for decode steps that fetch it: a tenth of 1 GB. */
    const struct eng_model_info tall = {.layer_count = 32,
                                        .weight_bytes = 16000000000,
                                        .vocab = 125000,
                                        .hidden = 4000,
                                        .dtype = KN_BF16};
    struct options many = options_of("auto", 512);
    for (int more = 0; more < 2; more++) {
        many.max_num_seqs = KN_FETCH_TOKENS + more;
        assert_int_equal(srv_staging_choose(&many, &tall, 0.1, true, &bytes, err), ST_OK);
        assert_int_equal(bytes, 75000000 + (16 << 20) + (more ? 100000000 : 0));
    }
    /* Nobody fetches: small steps, nothing remote, no GPU. */
    assert_int_equal(choice("auto", KN_FETCH_TOKENS, 0.1, true), 0);
    assert_int_equal(choice("auto", 512, 0, true), 0);
    assert_int_equal(choice("200MiB", 512, 0.1, false), 0);
    const struct options bad = options_of("much", 512);
    assert_int_equal(srv_staging_choose(&bad, &info, 0.1, false, &bytes, err), ST_INVALID);
    assert_non_null(strstr(err, "'much' is neither auto nor a size"));
}

static void test_open(void **state)
{
    (void)state;
    struct kn *kn;
    char err[ERR_CAP] = "";
    uint64_t taken = 1;
    struct eng_traffic t = {.far_bytes_max = 3 << 20};
    struct options o = options_of("auto", 4096);
    if (kn_open_cpu(1, &kn, err)) fail_msg("%s", err);
    assert_int_equal(srv_staging_open(&o, &t, true, 3 << 20, kn, &taken, err), ST_OK);
    assert_int_equal(taken, 3 << 20);
    /* A byte less than the largest product has. */
    assert_int_equal(srv_staging_open(&o, &t, true, (3 << 20) - 1, kn, &taken, err), ST_LIMIT);
    assert_non_null(strstr(err, "takes 3.00 MiB"));
    assert_int_equal(taken, 0);
    /* None: kernels read up to 2,048 tokens' weights once, and no more. */
    assert_int_equal(srv_staging_open(&o, &t, true, 0, kn, &taken, err), ST_LIMIT);
    assert_non_null(strstr(err, "more than once: lower it to 2048, or give at least 3.00 MiB"));
    o.max_num_batched_tokens = KN_REMOTE_TOKENS;
    assert_int_equal(srv_staging_open(&o, &t, true, 0, kn, &taken, err), ST_OK);
    o.max_num_batched_tokens = 4096;
    assert_int_equal(srv_staging_open(&o, &t, false, 0, kn, &taken, err), ST_OK);
    /* All products are local: only tables are not. */
    t.far_bytes_max = 0;
    assert_int_equal(srv_staging_open(&o, &t, true, 3 << 20, kn, &taken, err), ST_OK);
    assert_int_equal(taken, 0);
    kn_close(kn);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_choose), cmocka_unit_test(test_open)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
