/* Bytes of a decode step, against numbers worked out by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "engine/traffic.h"

static const float vector[1]; /* stands for every norm and bias; only its presence is asked for */

/* All tiles in tier 0 but the last `remote`, in tier 1. */
static void make(struct kn_weight *w, enum kn_dtype dtype, int32_t rows, int32_t cols,
                 int32_t remote)
{
    kn_weight_init(w, dtype, rows, cols);
    w->span[0] = (struct kn_span){vector, 0, w->tile_count - remote};
    if (remote) w->span[1] = (struct kn_span){vector, w->tile_count - remote, remote};
}

static void make_layer(struct eng_layer *l, const struct eng_shape *shape, int32_t remote)
{
    const struct eng_model_info *i = &shape->info;
    int32_t q = i->q_heads * i->head_dim, kv = i->kv_heads * i->head_dim;
    bool gate = shape->has & ENG_HAS_GATE;
    *l = (struct eng_layer){.attn_norm = vector, .mlp_norm = vector};
    make(&l->qkv, i->dtype, q + 2 * kv, i->hidden, remote);
    make(&l->o, i->dtype, i->hidden, q, remote);
    make(&l->up, i->dtype, (gate ? 2 : 1) * i->intermediate, i->hidden, remote);
    make(&l->down, i->dtype, i->hidden, i->intermediate, remote);
    if (shape->has & ENG_HAS_NORM_BIAS) l->attn_norm_bias = l->mlp_norm_bias = vector;
    if (shape->has & ENG_HAS_QKV_BIAS) l->qkv_bias = vector;
    if (shape->has & ENG_HAS_O_BIAS) l->o_bias = vector;
    if (shape->has & ENG_HAS_MLP_BIAS) l->up_bias = l->down_bias = vector;
    if (shape->has & ENG_HAS_QK_NORM) l->q_norm = l->k_norm = vector;
}

/* The traffic of a model folder's shapes, `remote` tiles of every weight but the tables away. */
static void traffic_of(const char *dir, enum kn_dtype kv, int32_t remote, struct eng_traffic *t)
{
    static struct eng_shape shape;
    struct eng_weights w = {.final_norm = vector};
    char err[ERR_CAP] = "";
    if (eng_shape_read(dir, ENG_DTYPE_AUTO, NULL, &shape, err)) fail_msg("%s", err);
    const struct eng_model_info *i = &shape.info;
    w.layers = calloc((size_t)i->layer_count, sizeof *w.layers);
    assert_non_null(w.layers);
    for (int32_t l = 0; l < i->layer_count; l++) make_layer(&w.layers[l], &shape, remote);
    make(&w.embed, i->dtype, i->vocab, i->hidden, 0);
    make(&w.head, i->dtype, i->vocab, i->hidden, remote);
    if (shape.has & ENG_HAS_POSITIONS)
        make(&w.positions, i->dtype, shape.position_rows, i->hidden, 0);
    if (shape.has & ENG_HAS_NORM_BIAS) w.final_norm_bias = vector;
    eng_traffic_init(t, &shape, &w, kv);
    free(w.layers);
}

static void test_llama_8b(void **state)
{
    (void)state;
    static struct eng_traffic t;
    uint64_t bytes[KN_TIER_MAX];
    traffic_of("config/models/Llama-3.1-8B", KN_BF16, 0, &t);
    /* Layer: q k v 6144 x 4096, o 4096 x 4096, gate and up 28672 x 4096, down 4096 x 14336 =
     * 218,103,808; 32 of them and a head of 128256 x 4096 = 7,504,658,432 elements of 2 bytes; 65
     * norms of 4096 floats = 1,064,960 bytes. */
    assert_int_equal(t.weight_bytes[0], 15009316864ull + 1064960);
    for (int i = 1; i < KN_TIER_MAX; i++) assert_int_equal(t.weight_bytes[i], 0);
    assert_int_equal(t.head_bytes[0], 128256ull * 4096 * 2);
    assert_int_equal(t.far_bytes_max, 0);
    /* 8 heads x 128 x (K and V) x 2 bytes = 4096 a layer: 128 KiB a token. */
    assert_int_equal(eng_traffic_kv_bytes(&t, 1), 131072);
    assert_int_equal(eng_traffic_kv_bytes(&t, 131072), 17179869184ull);
    /* 64 sequences of 4096 tokens: 32 GiB of KV, and 64 rows of 8 KiB. */
    eng_traffic_decode(&t, 64, 4096, bytes);
    assert_int_equal(bytes[0], 15010381824ull + 34359738368ull + 64 * 8192);
    eng_traffic_decode(&t, 1, 1, bytes);
    assert_int_equal(bytes[0], 15010381824ull + 131072 + 8192);
    traffic_of("config/models/Llama-3.1-8B", KN_F32, 0, &t);
    assert_int_equal(eng_traffic_kv_bytes(&t, 1), 262144);
}

static void test_tiers(void **state)
{
    (void)state;
    static struct eng_traffic t;
    uint64_t bytes[KN_TIER_MAX];
    traffic_of("config/models/Llama-3.1-8B", KN_BF16, 1, &t);
    /* One tile of each: 64 rows x (4096 + 4096 + 4096 + 14336) x 2 bytes a layer, and of the head
     * 64 x 4096 x 2. */
    uint64_t remote = 32ull * 3407872 + 524288;
    assert_int_equal(t.weight_bytes[1], remote);
    assert_int_equal(t.weight_bytes[0], 15010381824ull - remote);
    /* Three chunks of a prompt, the last of which wants logits. */
    eng_traffic_prompt(&t, 3, 1, 1000, bytes);
    assert_int_equal(bytes[1], 3 * 32ull * 3407872 + 524288);
    assert_int_equal(bytes[0] + bytes[1],
                     3 * 15010381824ull - 2 * 128256ull * 4096 * 2 + 1000 * 8192);
    assert_int_equal(bytes[2], 0);
    assert_int_equal(t.far_bytes_max, 64 * 14336 * 2); /* a tile of down */
    eng_traffic_decode(&t, 2, 100, bytes);
    assert_int_equal(bytes[1], remote); /* KV and embeddings are local here */
    assert_int_equal(bytes[0], 15010381824ull - remote + 2 * (100 * 131072 + 8192));
    assert_int_equal(bytes[2], 0);
}

/* Biases, learned positions, no gate, and a last tile that is mostly padding. */
static void test_opt_and_padding(void **state)
{
    (void)state;
    static struct eng_traffic t;
    uint64_t bytes[KN_TIER_MAX];
    traffic_of("config/models/OPT-6.7B", KN_F16, 1, &t);
    /* Layer: 12288, 4096 and 16384 rows of 4096, 4096 of 16384 = 201,326,592; 32 of them and a head
     * of 50272 x 4096 = 6,648,365,056 elements of 2 bytes; vectors: 53,248 floats a layer, and
     * 8192. */
    uint64_t whole = 13296730112ull + 4 * (32 * 53248 + 8192);
    /* The head's last tile holds 50272 - 785 * 64 = 32 rows. */
    uint64_t remote = 32ull * 64 * (3 * 4096 + 16384) * 2 + 32 * 4096 * 2;
    assert_int_equal(t.weight_bytes[1], remote);
    assert_int_equal(t.weight_bytes[0], whole - remote);
    eng_traffic_decode(&t, 3, 10, bytes);
    assert_int_equal(bytes[0], whole - remote + 3 * (16384 + 10ull * 32 * 2 * 4096 * 2));
}

static void test_windows(void **state)
{
    (void)state;
    static struct eng_traffic t = {.kv_token_bytes = 100, .layer_count = 3, .window = {0, 16, 64}};
    assert_int_equal(eng_traffic_kv_bytes(&t, 0), 0);
    assert_int_equal(eng_traffic_kv_bytes(&t, 16), 100 * 48);
    assert_int_equal(eng_traffic_kv_bytes(&t, 17), 100 * (17 + 16 + 17));
    assert_int_equal(eng_traffic_kv_bytes(&t, 1000), 100 * (1000 + 16 + 64));
}

/* A model as the loader places it; the head is the embedding table. */
static void test_opened_model(void **state)
{
    (void)state;
    static struct eng_traffic t;
    const struct off_remote remote = {.spec = {{KN_MEM_HOST, 0, 64u << 20}}, .count = 1};
    const struct eng_model_options mo = {
        .load_format = ENG_LOAD_DUMMY, .offload = 0.25, .tokens_max = 8, .rows_max = 8};
    struct kn *kn;
    struct off_tiers *tiers;
    struct eng_model *model;
    char err[ERR_CAP] = "";
    if (kn_open_cpu(1, &kn, err) || off_tiers_open(kn, 64u << 20, &remote, &tiers, err) ||
        eng_model_open(kn, tiers, "config/demo-model", &mo, &model, err))
        fail_msg("%s", err);
    eng_model_traffic(model, KN_BF16, &t);
    /* Layer: 768 x 256, 256 x 512, 1408 x 256, 256 x 704 = 868,352; 8 of them and 4096 x 256 =
     * 7,995,392 elements of 2 bytes, and 17 norms of 256 floats. */
    assert_int_equal(t.weight_bytes[0] + t.weight_bytes[1], 15990784 + 17408);
    double share = (double)t.weight_bytes[1] / 15990784;
    assert_true(share > 0.24 && share < 0.26);
    assert_true(t.row_bytes[0] > 0 && t.row_bytes[1] > 0);
    assert_true(t.row_bytes[0] + t.row_bytes[1] == 512);
    assert_int_equal(eng_traffic_kv_bytes(&t, 1), 8 * 2 * 128 * 2);
    eng_model_close(model);
    off_tiers_close(tiers);
    kn_close(kn);
}

/* Of a sequence of 100 tokens whose first 64 lie elsewhere. */
static void test_far_kv(void **state)
{
    (void)state;
    struct eng_traffic t = {.kv_token_bytes = 10, .layer_count = 4};
    assert_int_equal(eng_traffic_kv_far_bytes(&t, 100, 64), 4 * 64 * 10);
    assert_int_equal(eng_traffic_kv_far_bytes(&t, 100, 0), 0);
    t.window[1] = 36; /* sees 64 to 99 */
    t.window[2] = 40; /* sees 60 to 99 */
    t.window[3] = 1000;
    assert_int_equal(eng_traffic_kv_far_bytes(&t, 100, 64), (64 + 0 + 4 + 64) * 10);
    assert_int_equal(eng_traffic_kv_bytes(&t, 100), (100 + 36 + 40 + 100) * 10);
    assert_int_equal(eng_traffic_kv_far_bytes(&t, 100, 100), (100 + 36 + 40 + 100) * 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama_8b),        cmocka_unit_test(test_tiers),
        cmocka_unit_test(test_opt_and_padding), cmocka_unit_test(test_windows),
        cmocka_unit_test(test_opened_model),    cmocka_unit_test(test_far_kv),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
