/*
 * unit_server_mode.c - what start-up sets aside for a mode, and what taking one on asks of the
 * backend: a demo model in two tiers on the CPU backend, with a copy engine that notes what it is
 * told.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model_state.h"
#include "kernels/backend.h"
#include "server/startup.h"

#define MODEL "config/demo-model"
#define MIB (1ull << 20)

static struct options options_of(const char *mode)
{
    struct options o = {.max_num_batched_tokens = 2048,
                        .max_num_seqs = 8,
                        .prefetch_layers = 1,
                        .prefill_staging_bytes = "auto",
                        .offload_staging_bytes = "auto",
                        .congestion_control = "adaptive",
                        .model_dir = MODEL};
    snprintf(o.offload_mode, sizeof o.offload_mode, "%s", mode);
    return o;
}

/* --- flags ------------------------------------------------------------------------------------ */

static void refuse(struct options o, bool gpu, enum status want, const char *words)
{
    char err[ERR_CAP] = "";
    enum off_mode mode;
    assert_int_equal(srv_mode_read(&o, gpu, &mode, err), want);
    if (!strstr(err, words)) fail_msg("%s", err);
}

static void test_read(void **state)
{
    (void)state;
    static const char *const names[] = {"auto", "direct", "prefetch", "uva"};
    char err[ERR_CAP] = "";
    enum off_mode mode;
    for (int i = 0; i < 4; i++) {
        const struct options o = options_of(names[i]);
        assert_int_equal(srv_mode_read(&o, true, &mode, err), ST_OK);
        assert_string_equal(off_mode_name(mode), names[i]);
        assert_int_equal(srv_mode_read(&o, false, &mode, err), i < 2 ? ST_OK : ST_UNSUPPORTED);
    }
    refuse(options_of("both"), true, ST_INVALID, "none of auto, direct, prefetch and uva");
    refuse(options_of("uva"), false, ST_UNSUPPORTED, "leave it out, or say direct");
    struct options o = options_of("direct");
    snprintf(o.offload_staging_bytes, sizeof o.offload_staging_bytes, "64MiB");
    refuse(o, true, ST_INVALID, "--offload-staging-bytes is of --offload-mode auto");
    o.offload_modes_more = 1u << OFF_MODE_AUTO;
    assert_int_equal(srv_mode_read(&o, true, &mode, err), ST_OK);
    o = options_of("auto");
    o.prefetch_layers = 2;
    refuse(o, true, ST_INVALID, "--prefetch-layers is of --offload-mode prefetch");
    o = options_of("uva");
    snprintf(o.prefill_staging_bytes, sizeof o.prefill_staging_bytes, "64MiB");
    refuse(o, true, ST_INVALID, "--prefill-staging-bytes is of --offload-mode auto or prefetch");
    snprintf(o.prefill_staging_bytes, sizeof o.prefill_staging_bytes, "0");
    assert_int_equal(srv_mode_read(&o, true, &mode, err), ST_OK);
}

/* 32 layers of 500 MB. */
static void test_reserve(void **state)
{
    (void)state;
    const struct eng_model_info info = {.layer_count = 32, .weight_bytes = 16000000000};
    uint64_t ring[OFF_MODE_COUNT];
    char err[ERR_CAP] = "";
    struct options o = options_of("auto");
    assert_int_equal(srv_mode_reserve(&o, &info, 0.1, true, ring, err), ST_OK);
    /* Two layers' tenths and what rounding may add; nothing of other modes. */
    assert_in_range(ring[OFF_MODE_AUTO], 100000000, 100000000 + 33 * MIB);
    assert_int_equal(ring[OFF_MODE_AUTO] % KN_ALIGN, 0);
    assert_int_equal(ring[OFF_MODE_PREFETCH] | ring[OFF_MODE_DIRECT] | ring[OFF_MODE_UVA], 0);
    assert_int_equal(srv_mode_reserve(&o, &info, 1, true, ring, err), ST_OK);
    assert_int_equal(ring[OFF_MODE_AUTO], 512 * MIB); /* the cap */
    o.offload = 0.5;                                  /* stated: no cap */
    assert_int_equal(srv_mode_reserve(&o, &info, 0.5, true, ring, err), ST_OK);
    assert_in_range(ring[OFF_MODE_AUTO], 500000000, 500000000 + 33 * MIB);
    assert_int_equal(srv_mode_reserve(&o, &info, 1, true, ring, err), ST_OK);
    assert_in_range(ring[OFF_MODE_AUTO], 1000000000, 1000000000 + 33 * MIB);
    o.offload = 0;
    snprintf(o.offload_staging_bytes, sizeof o.offload_staging_bytes, "48MiB");
    assert_int_equal(srv_mode_reserve(&o, &info, 1, true, ring, err), ST_OK);
    assert_int_equal(ring[OFF_MODE_AUTO], 48 * MIB);
    assert_int_equal(srv_mode_reserve(&o, &info, 1, false, ring, err), ST_OK);
    assert_int_equal(ring[OFF_MODE_AUTO], 0); /* the CPU copies nothing */
    assert_int_equal(srv_mode_reserve(&o, &info, 0, true, ring, err), ST_OK);
    assert_int_equal(ring[OFF_MODE_AUTO], 0);
    snprintf(o.offload_staging_bytes, sizeof o.offload_staging_bytes, "lots");
    assert_int_equal(srv_mode_reserve(&o, &info, 1, true, ring, err), ST_INVALID);
    assert_non_null(strstr(err, "'lots' is neither auto nor a size"));
    /* No cap bounds prefetch, whose ring is what it asks for; all modes of a loading have theirs.
     */
    o = options_of("direct");
    o.prefetch_layers = 3;
    o.offload_modes_more = 1u << OFF_MODE_PREFETCH;
    assert_int_equal(srv_mode_reserve(&o, &info, 1, true, ring, err), ST_OK);
    assert_in_range(ring[OFF_MODE_PREFETCH], 2000000000, 2000000000 + 65 * MIB);
    assert_true(srv_mode_fetches_prompts(&o));
    o.offload_modes_more = 0;
    assert_false(srv_mode_fetches_prompts(&o));
}

/* --- a machine -------------------------------------------------------------------------------- */

#define ITEMS_MAX 4096

/* What the backend was told last. */
static struct {
    struct kn_stage_item items[ITEMS_MAX];
    int32_t count;
    size_t ring, fetch;
    enum kn_remote_access access;
    int stage_calls;
    enum status fail;
} told;

static enum status note_stage(struct kn *kn, const struct kn_stage_item *items, int32_t count,
                              size_t bytes, char *err)
{
    (void)kn;
    told.stage_calls++;
    assert_in_range(count, 0, ITEMS_MAX);
    assert_true(count == 0 || told.access == KN_REMOTE_BULK);
    if (count && told.fail) return err_set(err, told.fail, "cannot allocate the ring");
    if (count) memcpy(told.items, items, (size_t)count * sizeof *items);
    told.count = count;
    told.ring = bytes;
    return ST_OK;
}

static enum status note_fetch(struct kn *kn, size_t bytes, char *err)
{
    (void)kn;
    (void)err;
    told.fetch = bytes;
    return ST_OK;
}

static enum status note_access(struct kn *kn, enum kn_remote_access access, char *err)
{
    (void)kn;
    (void)err;
    told.access = access;
    return ST_OK;
}

static struct kn_backend noting;
static enum status (*cpu_step_wait)(struct kn *kn, uint64_t step, uint64_t *busy_ns, char *err);

/* Of a step with nothing staged, with some and with all, as long as it is to take. */
static struct {
    uint64_t ns[3], all_bytes;
    int tried[3];
    enum status fail;
} timed;

static enum status note_wait(struct kn *kn, uint64_t step, uint64_t *busy_ns, char *err)
{
    uint64_t bytes = 0;
    const enum status st = cpu_step_wait(kn, step, busy_ns, err);
    if (st || timed.fail) return st ? st : err_set(err, timed.fail, "a step failed");
    for (int32_t i = 0; i < told.count; i++)
        bytes += (uint64_t)told.items[i].tiles * kn_weight_tile_bytes(told.items[i].w);
    const int way = bytes == 0 ? 0 : bytes < timed.all_bytes ? 1 : 2;
    timed.tried[way]++;
    *busy_ns = timed.ns[way];
    return ST_OK;
}

/* An H200's PCIe, a ten-thousandth as fast, for a model as small. */
static const struct off_links links = {.hbm_bytes_per_s = 4.7e8,
                                       .link_count = 1,
                                       .link = {{.name = "host",
                                                 .read_bytes_per_s = 51.5e5,
                                                 .copy_bytes_per_s = 55.5e5,
                                                 .busy_copy_bytes_per_s = 55e5,
                                                 .busy_copy_hbm_bytes_per_s = 4.4e8,
                                                 .both_read_bytes_per_s = 27e5,
                                                 .both_copy_bytes_per_s = 26e5,
                                                 .both_hbm_bytes_per_s = 4.5e8,
                                                 .point = {{16, 2, 51.4e5, 4.69e8, 1e-5, 1e-5}},
                                                 .point_count = 1}}};

static void machine_open(struct srv_machine *m, double share)
{
    const struct off_remote remote = {.spec = {{KN_MEM_HOST, 0, 64 * MIB}}, .count = 1};
    const struct eng_model_options mo = {.load_format = ENG_LOAD_DUMMY,
                                         .offload = share,
                                         .placement = OFF_PLACE_EVEN,
                                         .tokens_max = 8,
                                         .rows_max = 8};
    char err[ERR_CAP] = "";
    memset(&told, 0, sizeof told);
    *m = (struct srv_machine){.memory = {.gpu = true, .remote = remote, .links = links}};
    if (kn_open_cpu(1, &m->kn, err) || off_tiers_open(m->kn, 64 * MIB, &remote, &m->tiers, err) ||
        eng_model_open(m->kn, m->tiers, MODEL, &mo, &m->model, err))
        fail_msg("%s", err);
    noting = *m->kn->backend;
    noting.stage = note_stage;
    noting.fetch_reserve = note_fetch;
    noting.set_remote_access = note_access;
    cpu_step_wait = m->kn->backend->step_wait;
    noting.step_wait = note_wait;
    m->kn->backend = &noting;
    eng_model_kv(m->model, &m->kv);
    m->memory.workload = (struct eng_step){4, 64, m->kv.dtype, 1e12};
    m->memory.staging = 32 * MIB;
    m->memory.ring[OFF_MODE_AUTO] = 16 * MIB;
    m->memory.ring[OFF_MODE_PREFETCH] = 24 * MIB;
    if (off_control_read("adaptive", "", &remote, m->control_read, err)) fail_msg("%s", err);
}

static void apply(struct srv_machine *m, const struct options *o)
{
    char err[ERR_CAP] = "";
    if (srv_mode_apply(o, m, err)) fail_msg("%s", err);
    assert_int_equal(m->mode.staged.ring_bytes, told.ring);
}

/* Bytes of all that is staged, in the order of a step: rising weights, none twice. */
static uint64_t staged_bytes(const struct srv_machine *m)
{
    const struct eng_layer *l = m->model->weights.layers;
    uint64_t bytes = 0;
    int32_t at = 0;
    for (int32_t i = 0; i < told.count; i++) {
        const struct kn_stage_item *item = &told.items[i];
        for (;; at++) {
            assert_true(at < 4 * m->model->shape.info.layer_count);
            const struct eng_layer *layer = &l[at / 4];
            const struct kn_weight *w[] = {&layer->qkv, &layer->o, &layer->up, &layer->down};
            if (w[at % 4] == item->w) break;
        }
        at++;
        assert_int_equal(item->tier, 1);
        assert_in_range(item->tiles, 1, item->w->span[1].tile_count);
        bytes += (uint64_t)item->tiles * kn_weight_tile_bytes(item->w);
    }
    return bytes;
}

static void test_modes(void **state)
{
    (void)state;
    static struct srv_machine m;
    struct options o = options_of("prefetch");
    struct eng_stage_room room;
    const struct eng_stage_want unbounded = {.product_bytes_max = UINT64_MAX};
    char err[ERR_CAP] = "";
    machine_open(&m, 0.4);
    assert_int_equal(eng_stage_room(m.model, &unbounded, &room, err), ST_OK);
    const uint64_t all = room.bytes[1];
    assert_true(all > 0 && all == room.room[1] && room.bytes[0] == 0);
    double layer = 0;
    for (int i = 0; i < ENG_LAYER_PRODUCTS; i++) {
        if (i) assert_true(room.product_bytes[1][i] <= room.product_bytes[1][i - 1]);
        layer += room.product_bytes[1][i];
    }
    assert_true(fabs(layer * eng_model_info(m.model)->layer_count - (double)all) < 1);
    /* Everything but the head and tables, through a ring for two layers. */
    apply(&m, &o);
    assert_int_equal(staged_bytes(&m), all);
    assert_int_equal(m.mode.staged.bytes[1], all);
    assert_true(told.ring > 0 && told.ring <= 24 * MIB && told.access == KN_REMOTE_BULK);
    assert_int_equal(told.fetch, 32 * MIB);
    assert_true(m.mode.copied_bytes[1] <= m.mode.step_bytes[1] && m.mode.share[1] > 0.5);
    assert_int_equal(m.control_read[1].mode, OFF_CONTROL_ADAPTIVE);
    const size_t two_layers = told.ring;
    o.prefetch_layers = 2;
    m.mode.applied = false;
    apply(&m, &o);
    assert_true(told.ring > two_layers);
    /* Nothing is copied, of prompts neither, and no window bounds plain loads. */
    o = options_of("uva");
    apply(&m, &o);
    assert_true(told.count == 0 && told.fetch == 0 && told.access == KN_REMOTE_LOADS);
    assert_int_equal(m.control[1].mode, OFF_CONTROL_NONE);
    assert_int_equal(m.control[1].window.ctas, KN_WINDOW_NO_BOUND);
    o = options_of("direct");
    apply(&m, &o);
    assert_true(told.count == 0 && told.fetch == 0 && told.access == KN_REMOTE_BULK);
    assert_int_equal(m.control[1].mode, OFF_CONTROL_ADAPTIVE);
    assert_true(m.mode.share[1] == 0 && m.mode.predicted_s == m.mode.direct_s);
    /* Beyond the free fraction of PCIe, all that may be copied is, within one in 64. */
    o = options_of("auto");
    apply(&m, &o);
    assert_true(told.count > 0 && told.fetch == 32 * MIB);
    assert_true((double)staged_bytes(&m) > 0.95 * (double)all);
    assert_true(m.mode.predicted_s < m.mode.direct_s);
    /* As before: nothing is done. */
    const int calls = told.stage_calls;
    apply(&m, &o);
    assert_int_equal(told.stage_calls, calls);
    o.plan_batch = 2;
    apply(&m, &o);
    assert_int_equal(told.stage_calls, calls + 1);
    assert_int_equal(m.mode.workload.seq_count, 2);
    srv_shutdown(&m);
}

/* A share of every product alike, or of the large ones first. */
static void test_even(void **state)
{
    (void)state;
    static struct srv_machine m;
    struct eng_stage_want want = {.share = {0, 0.5}, .layers = 2, .ring_bytes_max = 16 * MIB};
    struct eng_staged staged;
    char err[ERR_CAP] = "";
    machine_open(&m, 0.9);
    want.product_bytes_max = UINT64_MAX;
    assert_int_equal(eng_model_stage(m.model, &want, &staged, err), ST_OK);
    const uint64_t bytes = staged.bytes[1];
    const int32_t products = staged.product_count;
    assert_true(bytes == staged_bytes(&m) && products < 4 * eng_model_info(m.model)->layer_count);
    want.even = true;
    assert_int_equal(eng_model_stage(m.model, &want, &staged, err), ST_OK);
    assert_true(staged.bytes[1] == staged_bytes(&m) && staged.product_count > products);
    for (int32_t i = 0; i < told.count; i++)
        assert_true(abs(2 * told.items[i].tiles - told.items[i].w->span[1].tile_count) <= 2);
    const double off = (double)staged.bytes[1] - (double)bytes;
    assert_true(fabs(off) < 0.02 * (double)bytes);
    srv_shutdown(&m);
}

/* No ring is larger than what was set aside, and a product has half of it at most. */
static void test_ring_bounds(void **state)
{
    (void)state;
    static struct srv_machine m;
    const struct options o = options_of("auto");
    machine_open(&m, 0.6);
    for (uint64_t ring = 0; ring <= 16 * MIB; ring += 64 << 10) {
        m.memory.ring[OFF_MODE_AUTO] = ring;
        m.mode.applied = false;
        apply(&m, &o);
        assert_true(told.ring <= ring);
        for (int32_t i = 0; i < told.count; i++)
            assert_true((uint64_t)told.items[i].tiles * kn_weight_tile_bytes(told.items[i].w) <=
                        ring / 2);
        if (ring == 0) assert_int_equal(told.count, 0);
    }
    srv_shutdown(&m);
}

/* Up to the free fraction auto is direct. */
static void test_free_fraction(void **state)
{
    (void)state;
    static struct srv_machine m;
    const struct options o = options_of("auto");
    machine_open(&m, 0.6);
    m.memory.links.link[0].read_bytes_per_s = m.memory.links.link[0].point[0].link_bytes_per_s =
        1e9;
    apply(&m, &o);
    assert_int_equal(told.count, 0);
    assert_true(m.mode.share[1] == 0);
    srv_shutdown(&m);
    machine_open(&m, 0);
    apply(&m, &o);
    assert_true(told.count == 0 && m.mode.step_bytes[1] == 0);
    srv_shutdown(&m);
}

/* With KV pages to try steps on: the links say that a share is best copied, and measurement says
 * which. */
static void try_modes(struct srv_machine *m, uint64_t none, uint64_t some, uint64_t all)
{
    const struct options o = options_of("auto");
    timed.ns[0] = none;
    timed.ns[1] = some;
    timed.ns[2] = all;
    memset(timed.tried, 0, sizeof timed.tried);
    m->mode.applied = false;
    apply(m, &o);
}

/* KV to try steps on; returns its bytes. */
static size_t give_pages(struct srv_machine *m)
{
    char err[ERR_CAP] = "";
    m->page_count = 8;
    m->model_len_max = 64;
    const size_t bytes = (size_t)m->page_count * kn_kv_page_bytes(&m->kv);
    if (kn_alloc(m->kn, KN_MEM_LOCAL, 0, bytes, &m->kv.base[0], err)) fail_msg("%s", err);
    return bytes;
}

/* Where nothing is remote, and where there is no room for a copy, there is one way, and no step is
 * timed. */
static void test_nothing_to_copy(void **state)
{
    (void)state;
    static struct srv_machine m;
    for (int remote = 0; remote < 2; remote++) {
        machine_open(&m, remote ? 0.4 : 0);
        m.memory.ring[OFF_MODE_AUTO] = 0;
        const size_t kv_bytes = give_pages(&m);
        try_modes(&m, 1, 1, 1);
        assert_int_equal(timed.tried[0] + timed.tried[1] + timed.tried[2], 0);
        assert_true(told.count == 0 && m.mode.measured_s == 0);
        kn_free(m.kn, KN_MEM_LOCAL, m.kv.base[0], kv_bytes);
        srv_shutdown(&m);
    }
}

static void test_trials(void **state)
{
    (void)state;
    static struct srv_machine m;
    const struct eng_stage_want unbounded = {.product_bytes_max = UINT64_MAX};
    const uint64_t ms = 1000000;
    struct options o = options_of("auto");
    struct eng_stage_room room;
    char err[ERR_CAP] = "";
    machine_open(&m, 0.4);
    struct off_link *link = &m.memory.links.link[0];
    const size_t kv_bytes = give_pages(&m);
    assert_int_equal(eng_stage_room(m.model, &unbounded, &room, err), ST_OK);
    timed.all_bytes = room.bytes[1];
    /* A link whose ways are as good as each other: all three are tried. */
    link->busy_copy_bytes_per_s = link->copy_bytes_per_s = 52e5;
    link->read_bytes_per_s = link->point[0].link_bytes_per_s = 519e4;
    link->both_copy_bytes_per_s = 255e4;
    try_modes(&m, 50 * ms, 40 * ms, 45 * ms);
    assert_true(timed.tried[0] >= 3 && timed.tried[1] >= 3 && timed.tried[2] >= 3);
    assert_true(told.count > 0 && staged_bytes(&m) < timed.all_bytes);
    assert_true(m.mode.measured_s == 0.040);
    try_modes(&m, 50 * ms, 45 * ms, 40 * ms);
    assert_true(staged_bytes(&m) == timed.all_bytes && m.mode.measured_s == 0.040);
    try_modes(&m, 40 * ms, 50 * ms, 45 * ms);
    assert_true(told.count == 0 && m.mode.share[1] == 0 && m.mode.measured_s == 0.040);
    /* What wins next to nothing is not copied. */
    try_modes(&m, 40000000, 39900000, 39850000);
    assert_true(told.count == 0);
    /* Larger steps stage nothing, and are not tried. */
    o.plan_batch = KN_STAGE_TOKENS + 1;
    memset(timed.tried, 0, sizeof timed.tried);
    apply(&m, &o);
    assert_true(timed.tried[0] + timed.tried[1] + timed.tried[2] == 0 && m.mode.measured_s == 0);
    /* Nor is what the links rule out: over one a quarter as fast for kernels. */
    link->read_bytes_per_s = link->point[0].link_bytes_per_s = link->both_read_bytes_per_s = 12e5;
    try_modes(&m, 10 * ms, 50 * ms, 50 * ms);
    assert_true(timed.tried[0] == 0 && told.count > 0);
    timed.fail = ST_DEVICE;
    m.mode.applied = false;
    link->read_bytes_per_s = link->point[0].link_bytes_per_s = link->both_read_bytes_per_s = 515e4;
    o = options_of("auto");
    assert_int_equal(srv_mode_apply(&o, &m, err), ST_DEVICE);
    assert_non_null(strstr(err, "a step failed"));
    timed.fail = ST_OK;
    kn_free(m.kn, KN_MEM_LOCAL, m.kv.base[0], kv_bytes);
    srv_shutdown(&m);
}

/* A tier of nothing but KV pages, whose link nobody measured, is in nobody's way. */
static void test_tier_without_weights(void **state)
{
    (void)state;
    static struct srv_machine m;
    const struct options o = options_of("auto");
    machine_open(&m, 0.4);
    m.memory.remote.spec[m.memory.remote.count++] = (struct off_tier_spec){KN_MEM_PEER, 1, MIB};
    apply(&m, &o);
    assert_true(told.count > 0 && m.mode.predicted_s > 0 && m.mode.share[2] == 0);
    srv_shutdown(&m);
}

/* What cannot be had is said, with the flag that changes it; auto alone goes on without. */
static void test_failures(void **state)
{
    (void)state;
    static struct srv_machine m;
    struct options o = options_of("auto");
    char err[ERR_CAP] = "";
    machine_open(&m, 0.4);
    told.fail = ST_NOMEM;
    assert_int_equal(srv_mode_apply(&o, &m, err), ST_NOMEM);
    assert_non_null(strstr(err, "--offload-mode auto: cannot allocate the ring: lower "
                                "--offload-staging-bytes"));
    assert_false(m.mode.applied);
    told.fail = ST_UNSUPPORTED;
    apply(&m, &o);
    assert_true(told.count == 0 && m.mode.share[1] == 0 && m.mode.staged.ring_bytes == 0);
    o = options_of("prefetch");
    assert_int_equal(srv_mode_apply(&o, &m, err), ST_UNSUPPORTED);
    told.fail = ST_NOMEM;
    assert_int_equal(srv_mode_apply(&o, &m, err), ST_NOMEM);
    assert_non_null(strstr(err, "lower --prefetch-layers or --offload"));
    srv_shutdown(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read),
        cmocka_unit_test(test_reserve),
        cmocka_unit_test(test_modes),
        cmocka_unit_test(test_even),
        cmocka_unit_test(test_ring_bounds),
        cmocka_unit_test(test_free_fraction),
        cmocka_unit_test(test_nothing_to_copy),
        cmocka_unit_test(test_trials),
        cmocka_unit_test(test_failures),
        cmocka_unit_test(test_tier_without_weights),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
