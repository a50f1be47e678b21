/*
 * unit_server_memory.c - who gets how much: decided for real shapes on a CPU that stands for a
 * small GPU, and start-up's check, which must notice every tile and every byte that lies elsewhere.
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
#include "config/log.h"
#include "server/kv_tiers.h"
#include "server/startup.h"

#define FIXTURE "tests/fixtures/models/llama-gqa"
#define LLAMA_8B "config/models/Llama-3.1-8B"
#define GIB 1073741824.0

/* The settings' options and what is decided from them. */
struct rig {
    struct options o;
    struct kn *kn;
    struct eng_shape shape;
    struct kn_kv kv;
    struct eng_model_options mo;
    struct srv_memory m;
    char err[ERR_CAP];
};

static enum status decide(struct rig *r, const char *const *args)
{
    int argc = 0;
    while (args[argc]) argc++;
    char *const env[] = {NULL};
    memset(r, 0, sizeof *r);
    if (options_read(&r->o, OPTIONS_SERVE, argc, (char *const *)args, 0, env, r->err))
        fail_msg("%s", r->err);
    r->mo = srv_startup_model_options(&r->o);
    if (kn_open_cpu(1, &r->kn, r->err) ||
        eng_model_read_shape(r->o.model_dir, &r->mo, &r->shape, r->err) ||
        srv_startup_shape_kv(&r->o, &r->shape.info, &r->kv, r->err))
        fail_msg("%s", r->err);
    enum status st =
        srv_memory_decide(&r->o, r->kn, false, &r->shape, &r->kv, &r->mo, &r->m, r->err);
    kn_close(r->kn);
    r->kn = NULL;
    return st;
}

#define DECIDE(r, ...) decide(r, (const char *const[]){__VA_ARGS__, NULL})

static uint64_t remote_bytes(const struct srv_memory *m)
{
    uint64_t sum = 0;
    for (int t = 1; t < KN_TIER_MAX; t++) sum += m->share[t].requested;
    return sum;
}

/* The weights all have a place, and local memory is kept to. */
static void check_decision(const struct rig *r)
{
    const struct srv_memory *m = &r->m;
    assert_int_equal(m->share[0].requested + remote_bytes(m), r->shape.info.weight_bytes);
    assert_true(m->page_count >= 1);
    if (m->bounded) assert_true(srv_memory_local_bytes(m, &r->kv) + m->step <= m->usable);
}

static void test_fits(void **state)
{
    (void)state;
    static struct rig r;
    assert_int_equal(DECIDE(&r, LLAMA_8B, "--hbm-size", "24GiB"), ST_OK);
    check_decision(&r);
    assert_false(r.m.planned);
    assert_int_equal(remote_bytes(&r.m), 0);
    /* 8 GiB of KV for 64 sequences of 1,088 tokens and a page are wanted; KV gets all that is left.
     */
    assert_int_equal(r.m.page_count,
                     (24ll * (1 << 30) - (int64_t)r.shape.info.weight_bytes) / (8 << 20));
    assert_int_equal(r.m.model_len, r.m.page_count * 64);
    /* Up to what all sequences can use. */
    assert_int_equal(DECIDE(&r, LLAMA_8B, "--hbm-size", "100GiB", "--max-num-seqs", "2",
                            "--max-model-len", "8192"),
                     ST_OK);
    check_decision(&r);
    assert_int_equal(r.m.page_count, 2 * (128 + 1));
    assert_int_equal(r.m.model_len, 8192);
}

static void test_goes_out(void **state)
{
    (void)state;
    static struct rig r;
    /* 14.96 GiB of weights and 64 x (16 + 1) pages of 8 MiB, 8.5 GiB. */
    assert_int_equal(
        DECIDE(&r, LLAMA_8B, "--hbm-size", "20GiB", "--remote", "host:64GiB", "--plan-batch", "64"),
        ST_OK);
    check_decision(&r);
    assert_true(r.m.planned && r.mo.plan == &r.m.plan);
    assert_int_equal(r.m.workload.seq_count, 64);
    assert_int_equal(r.m.workload.context, 1024);
    double out = (double)remote_bytes(&r.m) / GIB;
    double leaving = (double)r.shape.info.weight_bytes / GIB + 8.5 - 20;
    assert_true(out >= leaving && out < leaving + 0.01);
    assert_in_range(r.m.page_count, 64 * 17, 64 * 17 + 2);
    /* The table first, of which a step reads next to nothing. */
    assert_int_equal(eng_operation_of(&r.m.plan, ENG_PART_EMBED)->tiles[0], 0);
    /* Unless asked for, KV wants no more than a quarter: 4 GiB, 512 pages. */
    assert_int_equal(DECIDE(&r, LLAMA_8B, "--hbm-size", "16GiB", "--remote", "host:64GiB"), ST_OK);
    check_decision(&r);
    assert_in_range(r.m.page_count, 512, 514);
    assert_int_equal(r.m.workload.seq_count, 512 / 17);
    /* Less KV wanted, less goes out; a workload that the cache cannot hold is made smaller. */
    assert_int_equal(DECIDE(&r, LLAMA_8B, "--hbm-size", "12GiB", "--remote", "host:64GiB",
                            "--kv-cache-memory-bytes", "1GiB", "--max-model-len", "4096"),
                     ST_OK);
    check_decision(&r);
    assert_int_equal(r.m.page_count, 128);
    assert_int_equal(r.m.workload.seq_count, 128 / 17);
    assert_int_equal(DECIDE(&r, LLAMA_8B, "--hbm-size", "12GiB", "--remote", "host:64GiB",
                            "--plan-batch", "1", "--plan-context", "512"),
                     ST_OK);
    check_decision(&r);
    assert_in_range(r.m.page_count, 9, 11);
    /* A longest sequence that was asked for is wanted. */
    assert_int_equal(DECIDE(&r, LLAMA_8B, "--hbm-size", "18GiB", "--remote", "host:64GiB",
                            "--max-model-len", "131072", "--plan-batch", "1"),
                     ST_OK);
    check_decision(&r);
    assert_true(r.m.page_count >= 2048 && r.m.model_len == 131072);
}

/* The nearer of two tiers is full before the further one gets anything that costs a step. */
static void test_two_tiers(void **state)
{
    (void)state;
    static struct rig r;
    assert_int_equal(DECIDE(&r, LLAMA_8B, "--hbm-size", "9GiB", "--plan-batch", "8", "--remote",
                            "host:64GiB,peer:1:2GiB"),
                     ST_OK);
    check_decision(&r);
    assert_true(r.m.share[2].requested > (2ull << 30) - (8 << 20));
    assert_true(r.m.share[1].requested > 0);
    assert_int_equal(DECIDE(&r, LLAMA_8B, "--hbm-size", "9GiB", "--plan-batch", "8", "--remote",
                            "host:64GiB,peer:1:9GiB"),
                     ST_OK);
    check_decision(&r);
    /* The slow one takes no more than hides behind the fast one. */
    assert_true(r.m.share[1].requested < r.m.share[2].requested / 2);
}

/* However little KV is allowed, there is a sentence or an answer. */
static void test_little_kv(void **state)
{
    (void)state;
    static struct rig r;
    for (int pages = 0; pages < 5; pages++) {
        char bytes[32];
        snprintf(bytes, sizeof bytes, "%dB", pages * (8 << 20) + 1);
        enum status st = DECIDE(&r, LLAMA_8B, "--hbm-size", "12GiB", "--remote", "host:64GiB",
                                "--kv-cache-memory-bytes", bytes, "--max-model-len", "64");
        if (st != (pages ? ST_OK : ST_LIMIT)) fail_msg("%d pages: %s", pages, r.err);
        if (pages) check_decision(&r);
        if (pages) assert_int_equal(r.m.page_count, pages);
        if (!pages) assert_non_null(strstr(r.err, "--kv-cache-memory-bytes"));
    }
    assert_int_equal(DECIDE(&r, LLAMA_8B, "--hbm-size", "2GiB", "--remote", "host:64GiB",
                            "--max-num-seqs", "1", "--max-model-len", "1"),
                     ST_OK);
    check_decision(&r);
    assert_int_equal(DECIDE(&r, LLAMA_8B, "--hbm-size", "1B", "--remote", "host:64GiB"), ST_LIMIT);
    assert_non_null(strstr(r.err, "what must lie in hbm"));
}

static double remote_part(const struct srv_memory *m, enum eng_part part)
{
    const struct off_plan_op *op = eng_operation_of(&m->plan, part);
    return 1 - (double)op->tiles[0] / ((double)op->count * op->tile_count);
}

/* A stated share by the planner: the table costs nothing, and products that wait for arithmetic
 * have as much as hides behind it. */
static void test_planned_share(void **state)
{
    (void)state;
    static struct rig r;
    const char *const shares[] = {"0.05", "0.1", "0.3"};
    for (int i = 0; i < 3; i++) {
        const double asked = atof(shares[i]);
        assert_int_equal(DECIDE(&r, LLAMA_8B, "--hbm-size", "80GiB", "--offload", shares[i],
                                "--force-offload", "--remote", "host:8GiB", "--placement",
                                "planned", "--plan-batch", "512", "--max-num-seqs", "512"),
                         ST_OK);
        check_decision(&r);
        assert_true(r.m.planned && r.mo.plan == &r.m.plan);
        assert_int_equal(r.m.workload.seq_count, 512);
        const double got = (double)remote_bytes(&r.m), weights = (double)r.shape.info.weight_bytes;
        assert_true(got >= asked * weights - (1 << 20) && got < asked * weights + (4 << 20));
        const double table = fmin(1, asked * weights / (128256 * 4096 * 2.0));
        assert_float_equal(remote_part(&r.m, ENG_PART_EMBED), table, 1e-3);
        const double rest = remote_part(&r.m, ENG_PART_GATE);
        assert_float_equal(remote_part(&r.m, ENG_PART_DOWN), rest, 0.01);
        assert_float_equal(remote_part(&r.m, ENG_PART_Q), rest, 0.01);
        assert_true(asked < 0.06 ? rest < 0.001 : rest > 0.9 * (asked - 0.07));
    }
    /* No more than there is room for, and refused like any share. */
    assert_int_equal(DECIDE(&r, LLAMA_8B, "--hbm-size", "80GiB", "--offload", "0.3",
                            "--force-offload", "--remote", "host:1GiB", "--placement", "planned"),
                     ST_LIMIT);
    assert_non_null(strstr(r.err, "--remote"));
    assert_int_equal(DECIDE(&r, LLAMA_8B, "--hbm-size", "80GiB", "--offload", "0.3", "--remote",
                            "host:8GiB", "--placement", "planned"),
                     ST_INVALID);
    assert_non_null(strstr(r.err, "--force-offload"));
}

/* KV pages in a remote tier: a pool beside what weights have there. */
static void test_kv_remote(void **state)
{
    (void)state;
    static struct rig r;
    assert_int_equal(DECIDE(&r, LLAMA_8B, "--hbm-size", "24GiB", "--kv-cache-memory-bytes", "2GiB",
                            "--kv-remote", "host:16GiB", "--max-num-seqs", "4"),
                     ST_OK);
    check_decision(&r);
    assert_int_equal(r.m.page_count, 256); /* of 8 MiB */
    assert_int_equal(r.m.far_page_count, 2048);
    assert_int_equal(r.m.kv_tier, 1);
    assert_int_equal(r.m.remote.count, 1);
    assert_int_equal(r.m.remote.spec[0].bytes, 0);
    assert_int_equal(r.m.remote.pool_bytes[0], 16ull << 30);
    assert_int_equal(r.m.model_len, 131072); /* for which local pages alone are too few */
    assert_int_equal(remote_bytes(&r.m), 0);

    /* No more than the sequences there are can fill. */
    assert_int_equal(DECIDE(&r, LLAMA_8B, "--hbm-size", "24GiB", "--kv-cache-memory-bytes", "2GiB",
                            "--kv-remote", "host:16GiB", "--max-num-seqs", "2", "--max-model-len",
                            "12800"),
                     ST_OK);
    assert_int_equal(r.m.page_count, 256);
    assert_int_equal(r.m.far_page_count, 2 * 201 - 256);
    assert_int_equal(r.m.remote.pool_bytes[0], (uint64_t)(2 * 201 - 256) << 23);

    /* Beside weights that must go out, in their tier or in one of its own. */
    assert_int_equal(DECIDE(&r, LLAMA_8B, "--hbm-size", "12GiB", "--remote",
                            "peer:1:6GiB,host:2GiB", "--kv-remote", "host:4GiB"),
                     ST_OK);
    check_decision(&r);
    assert_true(r.m.planned && remote_bytes(&r.m) > 0);
    assert_int_equal(r.m.kv_tier, 2);
    assert_int_equal(r.m.remote.count, 2);
    assert_int_equal(r.m.far_page_count, 512);
    assert_int_equal(DECIDE(&r, LLAMA_8B, "--hbm-size", "12GiB", "--remote", "host:8GiB",
                            "--kv-remote", "peer:1:4GiB"),
                     ST_OK);
    check_decision(&r);
    assert_int_equal(r.m.kv_tier, 2);
    assert_int_equal(r.m.share[2].requested, 0); /* weights have nothing there */

    assert_int_equal(DECIDE(&r, LLAMA_8B, "--hbm-size", "24GiB", "--kv-remote", "host:1MiB"),
                     ST_INVALID);
    assert_non_null(strstr(r.err, "--kv-remote host:1MiB has no room for one page of KV, 8.00"));
    assert_int_equal(DECIDE(&r, LLAMA_8B, "--hbm-size", "24GiB", "--kv-cache-memory-bytes", "1GiB",
                            "--kv-remote", "host:1GiB", "--max-model-len", "65536"),
                     ST_LIMIT);
}

static double kv_share_out(const struct srv_memory *m)
{
    const struct off_plan_op *kv = eng_operation_kv(&m->plan);
    return 1 - (double)kv->tiles[0] / kv->tile_count;
}

#define MIX(...)                                                                                   \
    LLAMA_8B, "--hbm-size", "20GiB", "--max-num-seqs", "64", "--plan-batch", "64",                 \
        "--plan-context", "2048", __VA_ARGS__

/* Where KV may leave, the planner says how much of it and of the weights: each has its balanced
 * share, and the step is shorter than with weights alone. */
static void test_weights_and_kv_leave(void **state)
{
    (void)state;
    static struct rig weights, both, given, share;
    assert_int_equal(DECIDE(&weights, MIX("--remote", "peer:1:64GiB")), ST_OK);
    check_decision(&weights);
    assert_true(kv_share_out(&weights.m) == 0);
    assert_int_equal(DECIDE(&both, MIX("--remote", "peer:1:64GiB", "--kv-remote", "peer:1:64GiB")),
                     ST_OK);
    check_decision(&both);
    assert_true(both.m.planned);
    /* 14.96 GiB of weights and 64 x 33 pages of 8 MiB, less 20: 11.5 GiB leave, and no more. */
    const double pages = (double)eng_operation_kv(&both.m.plan)->tiles[1];
    const double out = (double)remote_bytes(&both.m) + pages * (8 << 20);
    const double leaving = (double)both.shape.info.weight_bytes + 64 * 33 * 8388608. - 20 * GIB;
    assert_true(out >= leaving && out < leaving + 0.02 * GIB);
    assert_true(both.m.plan.seconds < 0.95 * weights.m.plan.seconds);
    assert_float_equal(kv_share_out(&both.m), remote_part(&both.m, ENG_PART_DOWN), 0.02);
    assert_true(kv_share_out(&both.m) > 0.3);
    assert_float_equal(both.m.share[1].predicted_read,
                       (double)remote_bytes(&both.m) - 128256 * 4096 * 2 + pages * (8 << 20), 4e6);
    /* What is local beside the weights is KV, and what there is holds the workload. */
    assert_true(both.m.page_count >= 64 * 33 - (int)pages && both.m.page_count < 64 * 34 - pages);
    assert_int_equal(srv_kv_far_pages(&both.m, &both.m.workload), (int)pages);

    /* Of a stated cache as much is local, and weights have the rest. */
    assert_int_equal(DECIDE(&given, MIX("--remote", "peer:1:64GiB", "--kv-remote", "peer:1:64GiB",
                                        "--kv-cache-memory-bytes", "8GiB")),
                     ST_OK);
    check_decision(&given);
    assert_int_equal(given.m.page_count, 1024);
    assert_int_equal(given.m.workload.seq_count, 64);
    assert_float_equal((double)remote_bytes(&given.m) / GIB,
                       (double)given.shape.info.weight_bytes / GIB - 12, 0.01);
    assert_int_equal(srv_kv_far_pages(&given.m, &given.m.workload), 64 * 33 - 1024);
    assert_true(given.m.plan.seconds >= both.m.plan.seconds);

    /* A stated share of the weights, and KV has the rest. */
    assert_int_equal(DECIDE(&share, MIX("--remote", "peer:1:64GiB", "--kv-remote", "peer:1:64GiB",
                                        "--offload", "0.6")),
                     ST_OK);
    check_decision(&share);
    assert_true(fabs((double)remote_bytes(&share.m) / (double)share.shape.info.weight_bytes - 0.6) <
                0.001);
    assert_true(share.m.page_count > both.m.page_count);
}

/* Where local memory holds all, a tier has the pages that steps are shortest with: over NVLink, and
 * none over PCIe, where that is hardly shorter. */
static void test_kv_remote_for_the_balance(void **state)
{
    (void)state;
    static struct rig r;
    assert_int_equal(DECIDE(&r, LLAMA_8B, "--hbm-size", "100GiB", "--max-num-seqs", "4",
                            "--max-model-len", "32768", "--kv-remote", "peer:1:16GiB"),
                     ST_OK);
    check_decision(&r);
    assert_int_equal(r.m.page_count, 4 * 513);
    assert_true(r.m.far_page_count > 100);
    assert_int_equal(r.m.far_page_count, off_residency_best(&r.m.residency, 4 * 512));
    const struct eng_step longest = {.seq_count = 4, .context = 32768};
    assert_int_equal(srv_kv_far_pages(&r.m, &longest), r.m.far_page_count);
    assert_int_equal(DECIDE(&r, LLAMA_8B, "--hbm-size", "100GiB", "--max-num-seqs", "4",
                            "--max-model-len", "32768", "--kv-remote", "host:16GiB"),
                     ST_OK);
    assert_int_equal(r.m.far_page_count, 0);
}

/* With nothing but a tier for KV: what does not fit starts, weights in the host's memory, and KV
 * leaves no more than its pool and what is wanted allow. */
static void test_kv_remote_alone(void **state)
{
    (void)state;
    static struct rig r, without;
    assert_int_equal(DECIDE(&without, LLAMA_8B, "--hbm-size", "14GiB"), ST_OK);
    assert_int_equal(DECIDE(&r, LLAMA_8B, "--hbm-size", "14GiB", "--kv-remote", "host:2GiB"),
                     ST_OK);
    check_decision(&r);
    assert_true(r.m.planned && r.m.far_page_count == 256);
    assert_true(r.m.page_count >= 128); /* two of each sequence */
    assert_true(remote_bytes(&r.m) <= remote_bytes(&without.m));
    assert_true(r.m.plan.seconds <= without.m.plan.seconds);
}

static void test_refused(void **state)
{
    (void)state;
    static struct rig r;
    assert_int_equal(DECIDE(&r, LLAMA_8B, "--offload", "0.1", "--remote", "host:8GiB"), ST_INVALID);
    assert_non_null(strstr(r.err, "--force-offload"));
    assert_int_equal(
        DECIDE(&r, LLAMA_8B, "--hbm-size", "40GiB", "--offload", "0.1", "--remote", "host:8GiB"),
        ST_INVALID);
    assert_int_equal(DECIDE(&r, LLAMA_8B, "--hbm-size", "40GiB", "--offload", "0.1", "--remote",
                            "host:8GiB", "--force-offload"),
                     ST_OK);
    check_decision(&r);
    assert_true(remote_bytes(&r.m) > r.shape.info.weight_bytes / 11);
    assert_int_equal(
        DECIDE(&r, LLAMA_8B, "--hbm-size", "10GiB", "--offload", "0", "--remote", "host:8GiB"),
        ST_LIMIT);
    assert_int_equal(DECIDE(&r, LLAMA_8B, "--hbm-size", "9GiB", "--remote", "host:1GiB"), ST_LIMIT);
    assert_non_null(strstr(r.err, "--remote"));
    assert_int_equal(DECIDE(&r, "config/models/Llama-3.1-70B", "--hbm-size", "1GiB", "--plan-batch",
                            "1", "--plan-context", "64", "--max-model-len", "131072"),
                     ST_LIMIT);
}

/* --- the check of what was loaded ------------------------------------------------------------- */

static void test_share_check(void **state)
{
    (void)state;
    char err[ERR_CAP] = "";
    struct srv_share s = {
        .requested = 1000000, .placed = 1000000, .predicted_read = 5e9, .placed_read = 5e9};
    assert_int_equal(srv_share_check(&s, "host", 0, err), ST_OK);
    s.placed++;
    assert_int_equal(srv_share_check(&s, "host", 0, err), ST_DEVICE);
    assert_string_equal(err,
                        "tier host was to hold 1000000 bytes of weights and holds 1000001: this "
                        "is a fault of dakd, not of the settings");
    assert_int_equal(srv_share_check(&s, "host", 1, err), ST_OK);
    s.placed = 999998;
    assert_int_equal(srv_share_check(&s, "host", 1, err), ST_DEVICE);
    s.placed = 1000000;
    s.placed_read = 5.005e9;
    assert_int_equal(srv_share_check(&s, "host", 0, err), ST_OK);
    s.placed_read = 5.01e9;
    assert_int_equal(srv_share_check(&s, "host", 0, err), ST_DEVICE);
    assert_non_null(
        strstr(err, "was to read 5000000000 bytes from tier host and reads 5010000000"));
}

static void test_check_notices_every_tile(void **state)
{
    (void)state;
    static struct rig r;
    struct off_tiers *tiers;
    struct eng_model *model;
    char err[ERR_CAP] = "";
    log_init(LOG_ERROR, 0);
    assert_int_equal(DECIDE(&r, FIXTURE, "--hbm-size", "400KB", "--plan-batch", "1",
                            "--plan-context", "64", "--remote", "host:8MiB"),
                     ST_OK);
    check_decision(&r);
    assert_true(r.m.planned && remote_bytes(&r.m) > 0);
    assert_int_equal(kn_open_cpu(1, &r.kn, err), ST_OK);
    r.mo.model_len_max = 0;
    const uint64_t kv_bytes = (uint64_t)r.m.page_count * kn_kv_page_bytes(&r.kv);
    if (off_tiers_open(r.kn, srv_memory_local_bytes(&r.m, &r.kv), &r.m.remote, &tiers, err) ||
        off_tier_alloc(tiers, 0, kv_bytes, "KV", &r.kv.base[0], err) ||
        eng_model_open(r.kn, tiers, FIXTURE, &r.mo, &model, err))
        fail_msg("%s", err);
    if (srv_memory_check(&r.m, tiers, model, &r.kv, err)) fail_msg("%s", err);
    int moved = 0;
    for (int i = 0; i < r.m.plan.op_count; i++)
        for (int t = 0; t < 2; t++) {
            int64_t *tiles = r.m.plan.op[i].tiles;
            if (!tiles[t] || r.m.plan.op[i].pinned) continue;
            tiles[t]--;
            tiles[1 - t]++;
            assert_int_equal(srv_memory_check(&r.m, tiers, model, &r.kv, err), ST_DEVICE);
            assert_non_null(strstr(err, r.m.plan.op[i].name));
            tiles[t]++;
            tiles[1 - t]--;
            moved++;
        }
    assert_true(moved >= 4);
    for (int t = 0; t < 2; t++) {
        r.m.share[t].requested += 16384;
        assert_int_equal(srv_memory_check(&r.m, tiers, model, &r.kv, err), ST_DEVICE);
        r.m.share[t].requested -= 16384;
        r.m.share[t].predicted_read += 4e6;
        assert_int_equal(srv_memory_check(&r.m, tiers, model, &r.kv, err), ST_DEVICE);
        r.m.share[t].predicted_read -= 4e6;
    }
    assert_int_equal(srv_memory_check(&r.m, tiers, model, &r.kv, err), ST_OK);
    eng_model_close(model);
    off_tiers_close(tiers);
    kn_close(r.kn);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fits),
        cmocka_unit_test(test_goes_out),
        cmocka_unit_test(test_two_tiers),
        cmocka_unit_test(test_planned_share),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_little_kv),
        cmocka_unit_test(test_kv_remote),
        cmocka_unit_test(test_weights_and_kv_leave),
        cmocka_unit_test(test_kv_remote_alone),
        cmocka_unit_test(test_kv_remote_for_the_balance),
        cmocka_unit_test(test_share_check),
        cmocka_unit_test(test_check_notices_every_tile),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
