/*
 * load.c - see weights.h: from a checkpoint, or from a random generator, into blocks of the tiers.
 *
 *     plan      which fused weights and vectors the model has, and the tensors each is made of
 *     bind      look the tensors up, check their shapes and types (not for dummy weights)
 *     place     divide every weight's tiles among the tiers, check capacities, allocate
 *     pack      a few threads take tiles off one counter, build each and upload it
 *     vectors   norms and biases, as fp32, in one allocation of tier 0
 *
 * The checkpoint is mapped, and pages of tensors that are packed are given back, so the model is in
 * memory once.  What a tile holds depends on the checkpoint or the seed alone: never on placement
 * or on the number of threads.
 *
 * Fusing.  A fused matrix takes its rows from up to three tensors, one after another (q, k, v) or,
 * for gate and up, interleaved in groups of eight (kn_glu_row), which needs the intermediate size
 * padded to a multiple of eight by zero rows, and zero inputs of the down projection to match.
 * Biases are fused by the same rule, a vector being a matrix of one column.
 *
 * Dummy weights are dummy.h's; norms are 1 plus the same.
 */
#include "engine/weights.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "config/log.h"
#include "config/size.h"
#include "engine/dummy.h"
#include "engine/operations.h"
#include "engine/safetensors.h"
#include "kernels/convert.h"
#include "offload/place.h"

#define THREADS_MAX 16
#define SOURCES_MAX 3
#define VECTOR_ALIGN 64 /* floats: 256 bytes */
#define GLU_GROUP 8

/* One fused matrix or vector: where its rows come from. */
struct job {
    struct kn_weight *weight; /* borrowed; or NULL for a vector */
    const float **vector;     /* borrowed: where a vector's address goes */
    enum eng_part part[SOURCES_MAX];
    const struct eng_st_tensor *tensor[SOURCES_MAX];
    int32_t part_rows[SOURCES_MAX];
    int part_count;
    bool glu;
    bool norm; /* dummy values around 1 */
    int32_t layer;
    int32_t rows;         /* fused, padding included */
    int32_t src_cols;     /* columns in the checkpoint; weight->cols may be more */
    int64_t tile_begin;   /* of all weights' tiles in order; a vector's: of the weight after it */
    size_t vector_offset; /* in floats */
    _Atomic int32_t tiles_left;
};

struct plan {
    const struct eng_shape *shape;
    struct job *jobs; /* [job_count], owned */
    int32_t job_count, job_cap;
    int64_t tile_count;
    uint64_t tile_bytes_total;
    size_t vector_floats;
};

/* --- plan ------------------------------------------------------------------------------------- */

static int32_t job_source_rows(const struct job *j)
{
    int32_t rows = 0;
    for (int i = 0; i < j->part_count; i++) rows += j->part_rows[i];
    return rows;
}

/* Begins a job of the parts this model has; NULL where it has none of them. */
static struct job *add_job(struct plan *p, int32_t layer, const enum eng_part *parts, int count)
{
    CHECK(p->job_count < p->job_cap);
    struct job *j = &p->jobs[p->job_count];
    memset(j, 0, sizeof *j);
    j->layer = layer;
    j->tile_begin = p->tile_count;
    for (int i = 0; i < count; i++) {
        if (!eng_shape_has_part(p->shape, parts[i])) continue;
        j->part[j->part_count] = parts[i];
        eng_shape_dims(p->shape, parts[i], &j->part_rows[j->part_count], &j->src_cols);
        j->part_count++;
    }
    if (j->part_count == 0) return NULL;
    p->job_count++;
    j->glu = parts[0] == ENG_PART_GATE || parts[0] == ENG_PART_GATE_BIAS;
    j->glu = j->glu && j->part_count == 2;
    j->rows =
        j->glu ? 2 * (int32_t)round_up((size_t)j->part_rows[0], GLU_GROUP) : job_source_rows(j);
    return j;
}

static void add_weight(struct plan *p, struct kn_weight *w, int32_t layer,
                       const enum eng_part *parts, int count)
{
    struct job *j = add_job(p, layer, parts, count);
    if (!j) return;
    bool padded = parts[0] == ENG_PART_DOWN && (p->shape->has & ENG_HAS_GATE);
    int32_t cols = padded ? (int32_t)round_up((size_t)j->src_cols, GLU_GROUP) : j->src_cols;
    kn_weight_init(w, p->shape->info.dtype, j->rows, cols);
    j->weight = w;
    atomic_init(&j->tiles_left, w->tile_count);
    p->tile_count += w->tile_count;
    p->tile_bytes_total += (uint64_t)w->tile_count * kn_weight_tile_bytes(w);
}

static void add_vector(struct plan *p, const float **vector, int32_t layer,
                       const enum eng_part *parts, int count, bool norm)
{
    *vector = NULL;
    struct job *j = add_job(p, layer, parts, count);
    if (!j) return;
    j->vector = vector;
    j->norm = norm;
    j->vector_offset = p->vector_floats;
    p->vector_floats += round_up((size_t)j->rows, VECTOR_ALIGN);
}

#define WEIGHT(w, ...)                                                                             \
    add_weight(p, w, i, (const enum eng_part[]){__VA_ARGS__},                                      \
               (int)ARRAY_COUNT(((const enum eng_part[]){__VA_ARGS__})))
#define BIAS(v, ...)                                                                               \
    add_vector(p, v, i, (const enum eng_part[]){__VA_ARGS__},                                      \
               (int)ARRAY_COUNT(((const enum eng_part[]){__VA_ARGS__})), false)
#define NORM(v, part) add_vector(p, v, i, (const enum eng_part[]){part}, 1, true)

static void plan_layer(struct plan *p, struct eng_layer *l, int32_t i)
{
    NORM(&l->attn_norm, ENG_PART_ATTN_NORM);
    BIAS(&l->attn_norm_bias, ENG_PART_ATTN_NORM_BIAS);
    WEIGHT(&l->qkv, ENG_PART_Q, ENG_PART_K, ENG_PART_V);
    BIAS(&l->qkv_bias, ENG_PART_Q_BIAS, ENG_PART_K_BIAS, ENG_PART_V_BIAS);
    NORM(&l->q_norm, ENG_PART_Q_NORM);
    NORM(&l->k_norm, ENG_PART_K_NORM);
    WEIGHT(&l->o, ENG_PART_O);
    BIAS(&l->o_bias, ENG_PART_O_BIAS);
    NORM(&l->mlp_norm, ENG_PART_MLP_NORM);
    BIAS(&l->mlp_norm_bias, ENG_PART_MLP_NORM_BIAS);
    WEIGHT(&l->up, ENG_PART_GATE, ENG_PART_UP);
    BIAS(&l->up_bias, ENG_PART_GATE_BIAS, ENG_PART_UP_BIAS);
    WEIGHT(&l->down, ENG_PART_DOWN);
    BIAS(&l->down_bias, ENG_PART_DOWN_BIAS);
}

/* Fills w but for spans and vectors.  The caller owns p->jobs and w->layers, also on failure. */
static enum status plan_init(struct plan *p, const struct eng_shape *shape, struct eng_weights *w,
                             char *err)
{
    const int32_t i = 0, per_layer = ENG_PART_COUNT - ENG_PART_LAYER;
    *w = (struct eng_weights){0};
    *p = (struct plan){.shape = shape};
    p->job_cap = ENG_PART_LAYER + shape->info.layer_count * per_layer;
    p->jobs = calloc((size_t)p->job_cap, sizeof p->jobs[0]);
    w->layers = calloc((size_t)shape->info.layer_count, sizeof w->layers[0]);
    if (!p->jobs || !w->layers)
        return err_set(err, ST_NOMEM, "no memory for a table of %d layers",
                       shape->info.layer_count);
    WEIGHT(&w->embed, ENG_PART_EMBED);
    WEIGHT(&w->positions, ENG_PART_POSITIONS);
    for (int32_t layer = 0; layer < shape->info.layer_count; layer++)
        plan_layer(p, &w->layers[layer], layer);
    NORM(&w->final_norm, ENG_PART_FINAL_NORM);
    BIAS(&w->final_norm_bias, ENG_PART_FINAL_NORM_BIAS);
    WEIGHT(&w->head, ENG_PART_HEAD);
    return ST_OK;
}

static uint64_t vector_bytes(const struct plan *p)
{
    return round_up(p->vector_floats * sizeof(float), KN_ALIGN);
}

enum status eng_weights_bytes(const struct eng_shape *shape, uint64_t *bytes, char *err)
{
    struct eng_weights w;
    struct plan p;
    enum status st = plan_init(&p, shape, &w, err);
    *bytes = p.tile_bytes_total + vector_bytes(&p);
    free(p.jobs);
    eng_weights_deinit(&w);
    return st;
}

enum status eng_weights_shapes(const struct eng_shape *shape, struct eng_weights *out, char *err)
{
    struct plan p;
    enum status st = plan_init(&p, shape, out, err);
    free(p.jobs);
    if (st) eng_weights_deinit(out);
    return st;
}

/* --- bind ------------------------------------------------------------------------------------- */

/* Some checkpoints hold the inner model alone, whose names lack the leading "model.". */
static const struct eng_st_tensor *find_tensor(const struct eng_st *set, const char *name)
{
    const struct eng_st_tensor *t = eng_st_find(set, name);
    return t || strncmp(name, "model.", 6) ? t : eng_st_find(set, name + 6);
}

static bool to_kn_dtype(enum eng_st_dtype stored, enum kn_dtype *dtype)
{
    switch (stored) {
    case ENG_ST_F32: *dtype = KN_F32; return true;
    case ENG_ST_BF16: *dtype = KN_BF16; return true;
    case ENG_ST_F16: *dtype = KN_F16; return true;
    default: return false;
    }
}

static enum status check_tensor(const struct eng_shape *shape, enum eng_part part,
                                const struct eng_st_tensor *t, char *err)
{
    char have[128] = "";
    size_t len = 0;
    int32_t rows, cols;
    enum kn_dtype dtype;
    int rank = eng_shape_dims(shape, part, &rows, &cols);
    if (!to_kn_dtype(t->dtype, &dtype))
        return err_set(err, ST_UNSUPPORTED,
                       "%s: tensor '%s' is of type %s; weights may be F32, BF16 or F16", t->file,
                       t->name, eng_st_dtype_name(t->dtype));
    if (t->rank == rank && t->dims[0] == (uint64_t)rows &&
        (rank == 1 || t->dims[1] == (uint64_t)cols))
        return ST_OK;
    for (int i = 0; i < t->rank && len < sizeof have; i++)
        len += (size_t)snprintf(have + len, sizeof have - len, "%s%llu", i ? "," : "",
                                (unsigned long long)t->dims[i]);
    if (rank == 1)
        return err_set(err, ST_INVALID, "%s: tensor '%s' has shape [%s]; config.json makes it [%d]",
                       t->file, t->name, have, rows);
    return err_set(err, ST_INVALID, "%s: tensor '%s' has shape [%s]; config.json makes it [%d,%d]",
                   t->file, t->name, have, rows, cols);
}

static bool known_extra(const char *name)
{
    static const char *const endings[] = {"rotary_emb.inv_freq", "rotary_emb.cos_cached",
                                          "rotary_emb.sin_cached"};
    size_t len = strlen(name);
    for (size_t i = 0; i < ARRAY_COUNT(endings); i++) {
        size_t n = strlen(endings[i]);
        if (len >= n && !strcmp(name + len - n, endings[i])) return true;
    }
    return false;
}

/* Tensors nothing asked for: said once, since leaving one out may be a mistake of the checkpoint.
 */
static void warn_extra(const struct eng_st *set, const bool *used)
{
    size_t count = 0;
    const char *first = NULL;
    for (size_t i = 0; i < eng_st_count(set); i++) {
        const char *name = eng_st_at(set, i)->name;
        if (used[i] || known_extra(name)) continue;
        if (!first) first = name;
        count++;
    }
    if (count)
        log_warn("engine",
                 "the checkpoint holds tensors that are not used (%zu; the first: '%.200s')", count,
                 first);
}

/* A tied model's checkpoint may hold the head as well; it must then be the embedding table. */
static enum status check_tied(const struct eng_st *set, const struct eng_shape *shape, bool *used,
                              char *err)
{
    char name[ENG_TENSOR_NAME_CAP];
    if (shape->has & ENG_HAS_HEAD) return ST_OK;
    eng_shape_tensor_name(shape, ENG_PART_HEAD, 0, name);
    const struct eng_st_tensor *head = find_tensor(set, name);
    eng_shape_tensor_name(shape, ENG_PART_EMBED, 0, name);
    const struct eng_st_tensor *embed = find_tensor(set, name);
    if (!head || !embed) return ST_OK;
    used[head - eng_st_at(set, 0)] = true;
    if (head->dtype == embed->dtype && head->bytes == embed->bytes &&
        !memcmp(head->data, embed->data, head->bytes))
        return ST_OK;
    return err_set(err, ST_INVALID,
                   "%s: '%s' differs from '%s', but config.json ties them; set tie_word_embeddings "
                   "to false if the head is its own",
                   head->file, head->name, embed->name);
}

static enum status bind_job(struct job *j, const struct eng_st *set, const struct eng_shape *shape,
                            const char *dir, bool *used, char *err)
{
    for (int i = 0; i < j->part_count; i++) {
        char name[ENG_TENSOR_NAME_CAP];
        eng_shape_tensor_name(shape, j->part[i], j->layer, name);
        const struct eng_st_tensor *t = find_tensor(set, name);
        if (!t)
            return err_set(err, ST_CORRUPT, "%.300s: the checkpoint has no tensor '%s'", dir, name);
        enum status st = check_tensor(shape, j->part[i], t, err);
        if (st) return st;
        j->tensor[i] = t;
        used[t - eng_st_at(set, 0)] = true;
    }
    return ST_OK;
}

static enum status bind(struct plan *p, const struct eng_st *set, const char *dir, char *err)
{
    enum status st = ST_OK;
    bool *used = calloc(eng_st_count(set), sizeof used[0]);
    if (!used) return err_set(err, ST_NOMEM, "no memory to check %zu tensors", eng_st_count(set));
    for (int32_t i = 0; i < p->job_count && !st; i++)
        st = bind_job(&p->jobs[i], set, p->shape, dir, used, err);
    if (!st) st = check_tied(set, p->shape, used, err);
    if (!st) warn_extra(set, used);
    free(used);
    return st;
}

enum status eng_weights_stored_dtype(const char *dir, const struct eng_shape *shape,
                                     enum kn_dtype *dtype, char *err)
{
    char name[ENG_TENSOR_NAME_CAP];
    struct eng_st *set;
    enum status st = eng_st_open(dir, &set, err);
    if (st) return st;
    eng_shape_tensor_name(shape, ENG_PART_EMBED, 0, name);
    const struct eng_st_tensor *t = find_tensor(set, name);
    if (!t) st = err_set(err, ST_CORRUPT, "%.300s: the checkpoint has no tensor '%s'", dir, name);
    else if (!to_kn_dtype(t->dtype, dtype))
        st = err_set(err, ST_UNSUPPORTED,
                     "%s: tensor '%s' is of type %s; weights may be F32, BF16 or F16", t->file,
                     name, eng_st_dtype_name(t->dtype));
    eng_st_close(set);
    return st;
}

/* --- place ------------------------------------------------------------------------------------ */

static enum status check_capacity(const struct plan *p, const struct eng_weights *w,
                                  const struct off_tiers *tiers,
                                  const struct eng_model_options *opt, char *err)
{
    for (int t = 0; t < off_tiers_count(tiers); t++) {
        const uint64_t all = p->tile_bytes_total + (t ? 0 : vector_bytes(p));
        const uint64_t wanted = opt->everywhere ? all : w->tier_bytes[t];
        const uint64_t left = off_tier_capacity(tiers, t) - off_tier_used(tiers, t);
        if (wanted <= left) continue;
        char need[SIZE_TEXT_CAP], have[SIZE_TEXT_CAP], total[SIZE_TEXT_CAP];
        return err_set(err, ST_LIMIT,
                       "with --offload %g the weights need %s in tier %s: %s of %s are free; %s",
                       opt->offload, size_text(wanted, need), off_tier_name(tiers, t),
                       size_text(left, have), size_text(off_tier_capacity(tiers, t), total),
                       t == 0 ? "raise --offload with a --remote tier to take more, or raise "
                                "--gpu-memory-utilization"
                              : "lower --offload, or make that tier larger in --remote");
    }
    return ST_OK;
}

static enum status alloc_spans(struct job *j, const struct eng_shape *shape, const int32_t *tiles,
                               bool everywhere, struct off_tiers *tiers, char *err)
{
    struct kn_weight *w = j->weight;
    int32_t begin = 0;
    char what[ENG_TENSOR_NAME_CAP];
    eng_shape_tensor_name(shape, j->part[0], j->layer, what);
    for (int t = 0; t < off_tiers_count(tiers); begin += tiles[t++]) {
        const int32_t held = everywhere ? w->tile_count : tiles[t];
        void *base;
        if (held == 0) continue;
        enum status st =
            off_tier_alloc(tiers, t, (uint64_t)held * kn_weight_tile_bytes(w), what, &base, err);
        if (st) return st;
        if (everywhere) base = (char *)base + (size_t)begin * kn_weight_tile_bytes(w);
        w->span[t] = (struct kn_span){base, begin, tiles[t]};
    }
    return ST_OK;
}

/* A weight of which a step reads a row a token; an embedding that is the head as well is not. */
static bool is_table(const struct plan *p, const struct job *j)
{
    return j->part[0] == ENG_PART_POSITIONS ||
           (j->part[0] == ENG_PART_EMBED && (p->shape->has & ENG_HAS_HEAD));
}

/* How the tiles of every weight lie, in the order of the jobs; the caller frees *out. */
static enum status choose(const struct plan *p, const struct off_tiers *tiers,
                          const struct eng_model_options *opt, struct off_weight **out, char *err)
{
    int32_t count = 0;
    struct off_weight *chosen = *out = calloc((size_t)p->job_count, sizeof *chosen);
    if (!chosen) return err_set(err, ST_NOMEM, "no memory to place %d weights", p->job_count);
    for (int32_t i = 0; i < p->job_count; i++) {
        const struct job *j = &p->jobs[i];
        if (!j->weight) continue;
        struct off_weight *w = &chosen[count++];
        *w = (struct off_weight){.tile_count = j->weight->tile_count,
                                 .tile_bytes = kn_weight_tile_bytes(j->weight),
                                 .table = is_table(p, j),
                                 .after_attention = j->part[0] == ENG_PART_O};
        if (!opt->plan) continue;
        const struct off_plan_op *op = eng_operation_of(opt->plan, j->part[0]);
        CHECK(op);
        off_place_planned(w, op, j->part[0] > ENG_PART_LAYER ? j->layer : 0);
    }
    if (opt->plan) return ST_OK;
    return off_place(chosen, count, opt->offload, opt->placement, tiers, err);
}

static enum status place(struct plan *p, struct eng_weights *w, struct off_tiers *tiers,
                         const struct eng_model_options *opt, char *err)
{
    struct off_weight *chosen;
    enum status st = choose(p, tiers, opt, &chosen, err);
    w->tier_bytes[0] = vector_bytes(p);
    for (int32_t i = 0, k = 0; i < p->job_count && !st; i++) {
        if (!p->jobs[i].weight) continue;
        for (int t = 0; t < KN_TIER_MAX; t++)
            w->tier_bytes[t] += (uint64_t)chosen[k].tiles[t] * chosen[k].tile_bytes;
        k++;
    }
    if (!st) st = check_capacity(p, w, tiers, opt, err);
    for (int32_t i = 0, k = 0; i < p->job_count && !st; i++)
        if (p->jobs[i].weight)
            st = alloc_spans(&p->jobs[i], p->shape, chosen[k++].tiles, opt->everywhere, tiers, err);
    free(chosen);
    return st;
}

enum status eng_weights_preview(const struct eng_shape *shape, const struct off_tiers *tiers,
                                const struct eng_model_options *opt, struct eng_weights *out,
                                char *err)
{
    struct off_weight *chosen = NULL;
    struct plan p;
    enum status st = plan_init(&p, shape, out, err);
    if (!st) st = choose(&p, tiers, opt, &chosen, err);
    for (int32_t i = 0, k = 0; i < p.job_count && !st; i++) {
        if (!p.jobs[i].weight) continue;
        for (int t = 0, begin = 0; t < KN_TIER_MAX; begin += chosen[k].tiles[t++])
            p.jobs[i].weight->span[t] = (struct kn_span){NULL, begin, chosen[k].tiles[t]};
        k++;
    }
    if (!st && !(shape->has & ENG_HAS_HEAD)) out->head = out->embed;
    free(chosen);
    free(p.jobs);
    if (st) eng_weights_deinit(out);
    return st;
}

/* --- rows ------------------------------------------------------------------------------------- */

/* Which source and which of its rows make fused row `row`; false for a row of padding. */
static bool source_row(const struct job *j, int32_t row, int *source, int32_t *src_row)
{
    if (j->glu) {
        int32_t group = row / (2 * GLU_GROUP), in_group = row % (2 * GLU_GROUP);
        *source = in_group >= GLU_GROUP;
        *src_row = group * GLU_GROUP + in_group % GLU_GROUP;
        return *src_row < j->part_rows[*source];
    }
    for (*source = 0; *source < j->part_count; ++*source) {
        if (row < j->part_rows[*source]) {
            *src_row = row;
            return true;
        }
        row -= j->part_rows[*source];
    }
    return false;
}

/* --- pack ------------------------------------------------------------------------------------- */

struct packer {
    struct plan *plan;
    struct kn *kn;
    const struct eng_model_options *opt;
    bool dummy;
    struct eng_dummy values;        /* of dummy weights */
    size_t stage_bytes, rows_bytes; /* of each worker's buffers */
    pthread_mutex_t upload;         /* kn_upload is for one thread at a time */
    _Atomic int64_t next_tile;
    _Atomic uint64_t done_bytes;
    _Atomic int failed; /* enum status of the first failure */
};

struct worker {
    struct packer *packer;
    pthread_t thread;
    void *stage; /* owned: one tile's image */
    char *rows;  /* owned: 64 rows that cannot be taken from the checkpoint as they are */
    bool reports;
};

/* The last job that begins at or before the tile.  It is a weight: the vectors after a weight begin
 * where its tiles end, and the next weight comes after them. */
static struct job *job_of_tile(const struct plan *p, int64_t tile)
{
    int32_t low = 0, high = p->job_count;
    while (high - low > 1) {
        int32_t mid = low + (high - low) / 2;
        if (p->jobs[mid].tile_begin <= tile) low = mid;
        else high = mid;
    }
    CHECK(p->jobs[low].weight);
    return &p->jobs[low];
}

static void gather_dummy(const struct worker *wk, const struct job *j, int32_t first_row,
                         const void *rows[KN_TILE_ROWS])
{
    const struct packer *p = wk->packer;
    size_t row_bytes = (size_t)j->weight->cols * p->values.element_bytes;
    uint64_t matrix = (uint64_t)(j - p->plan->jobs);
    for (int32_t r = 0; r < KN_TILE_ROWS; r++) {
        int source;
        int32_t src_row, row = first_row + r;
        if (row >= j->rows || !source_row(j, row, &source, &src_row)) continue;
        void *out = wk->rows + (size_t)r * row_bytes;
        memset(out, 0, row_bytes);
        eng_dummy_row(&p->values, matrix, row, j->src_cols, out);
        rows[r] = out;
    }
}

/* Sources of one weight may differ in type: such rows, and rows that are shorter than the weight's,
 * are copied as fp32. */
static enum kn_dtype gather_stored(const struct worker *wk, const struct job *j, int32_t first_row,
                                   const void *rows[KN_TILE_ROWS])
{
    enum kn_dtype dtype = KN_F32, other = KN_F32;
    bool copy = j->src_cols != j->weight->cols;
    CHECK(to_kn_dtype(j->tensor[0]->dtype, &dtype));
    for (int i = 1; i < j->part_count; i++) {
        CHECK(to_kn_dtype(j->tensor[i]->dtype, &other));
        copy = copy || other != dtype;
    }
    for (int32_t r = 0; r < KN_TILE_ROWS; r++) {
        int source;
        int32_t src_row, row = first_row + r;
        if (row >= j->rows || !source_row(j, row, &source, &src_row)) continue;
        CHECK(to_kn_dtype(j->tensor[source]->dtype, &other));
        const uint8_t *src =
            j->tensor[source]->data + (size_t)src_row * (size_t)j->src_cols * kn_dtype_bytes(other);
        rows[r] = src;
        if (!copy) continue;
        float *out = (float *)wk->rows + (size_t)r * (size_t)j->weight->cols;
        memset(out, 0, (size_t)j->weight->cols * sizeof(float));
        for (int32_t c = 0; c < j->src_cols; c++) out[c] = kn_load(other, src, (size_t)c);
        rows[r] = out;
    }
    return copy ? KN_F32 : dtype;
}

/* To its tier, or to all of them. */
static enum status upload(const struct packer *p, const struct kn_weight *w, int32_t tile,
                          const void *image)
{
    const size_t bytes = kn_weight_tile_bytes(w);
    enum status st = ST_OK;
    if (!p->opt->everywhere) return kn_upload(p->kn, (void *)kn_weight_tile(w, tile), image, bytes);
    for (int t = 0; t < KN_TIER_MAX && w->span[t].base && !st; t++)
        st = kn_upload(p->kn, eng_span_tile(w, t, tile), image, bytes);
    return st;
}

static void pack_tile(struct worker *wk, int64_t tile)
{
    struct packer *p = wk->packer;
    struct job *j = job_of_tile(p->plan, tile);
    const void *rows[KN_TILE_ROWS] = {NULL};
    int32_t index = (int32_t)(tile - j->tile_begin);
    size_t bytes = kn_weight_tile_bytes(j->weight);
    enum kn_dtype dtype = j->weight->dtype;
    if (p->dummy) gather_dummy(wk, j, index * KN_TILE_ROWS, rows);
    else dtype = gather_stored(wk, j, index * KN_TILE_ROWS, rows);
    kn_pack_tile(j->weight, wk->stage, rows, dtype);

    pthread_mutex_lock(&p->upload);
    enum status st = upload(p, j->weight, index, wk->stage);
    pthread_mutex_unlock(&p->upload);
    if (st) {
        int expected = ST_OK;
        atomic_compare_exchange_strong(&p->failed, &expected, (int)st);
    }
    atomic_fetch_add(&p->done_bytes, bytes);
    if (atomic_fetch_sub(&j->tiles_left, 1) == 1 && !p->dummy)
        for (int i = 0; i < j->part_count; i++) eng_st_done(j->tensor[i]);
}

static void *pack_tiles(void *arg)
{
    struct worker *wk = arg;
    struct packer *p = wk->packer;
    while (!atomic_load(&p->failed)) {
        int64_t tile = atomic_fetch_add(&p->next_tile, 1);
        if (tile >= p->plan->tile_count) break;
        pack_tile(wk, tile);
        if (wk->reports)
            p->opt->progress(p->opt->user, atomic_load(&p->done_bytes), p->plan->tile_bytes_total);
    }
    return NULL;
}

static void worker_deinit(struct worker *wk)
{
    free(wk->stage);
    free(wk->rows);
    *wk = (struct worker){0};
}

/* False where there is no memory. */
static bool worker_init(struct worker *wk, struct packer *p)
{
    *wk = (struct worker){.packer = p,
                          .stage = aligned_alloc(KN_ALIGN, round_up(p->stage_bytes, KN_ALIGN)),
                          .rows = malloc(p->rows_bytes)};
    if (wk->stage && wk->rows) return true;
    worker_deinit(wk);
    return false;
}

static void size_buffers(struct packer *p)
{
    for (int32_t i = 0; i < p->plan->job_count; i++) {
        const struct kn_weight *w = p->plan->jobs[i].weight;
        if (!w) continue;
        p->stage_bytes = size_max(p->stage_bytes, kn_weight_tile_bytes(w));
        p->rows_bytes = size_max(p->rows_bytes, (size_t)w->cols * KN_TILE_ROWS * sizeof(float));
    }
}

/* Threads worth having: one for each core the process may use. */
static int thread_count(void)
{
    cpu_set_t cores;
    int count = sched_getaffinity(0, sizeof cores, &cores) ? 1 : CPU_COUNT(&cores);
    return count < 1 ? 1 : count > THREADS_MAX ? THREADS_MAX : count;
}

/* The calling thread works too; threads that cannot be had are done without. */
static enum status pack(struct plan *plan, struct kn *kn, const struct eng_model_options *opt,
                        bool dummy, char *err)
{
    struct packer p = {.plan = plan, .kn = kn, .opt = opt, .dummy = dummy};
    struct worker workers[THREADS_MAX];
    int wanted = thread_count(), count = 0;
    size_buffers(&p);
    if (dummy) eng_dummy_init(&p.values, opt->seed, plan->shape->info.dtype);
    pthread_mutex_init(&p.upload, NULL);
    if (!worker_init(&workers[0], &p)) {
        pthread_mutex_destroy(&p.upload);
        return err_set(err, ST_NOMEM, "no memory for the %zu bytes of the loader's buffers",
                       p.stage_bytes + p.rows_bytes);
    }
    workers[0].reports = opt->progress != NULL;
    for (count = 1; count < wanted; count++) {
        if (!worker_init(&workers[count], &p)) break;
        if (pthread_create(&workers[count].thread, NULL, pack_tiles, &workers[count])) {
            worker_deinit(&workers[count]);
            break;
        }
    }
    pack_tiles(&workers[0]);
    for (int i = 1; i < count; i++) pthread_join(workers[i].thread, NULL);
    for (int i = 0; i < count; i++) worker_deinit(&workers[i]);
    pthread_mutex_destroy(&p.upload);
    enum status st = (enum status)atomic_load(&p.failed);
    if (st)
        return err_set(err, st, "a weight could not be copied into its tier: %s", status_text(st));
    if (opt->progress) opt->progress(opt->user, plan->tile_bytes_total, plan->tile_bytes_total);
    return ST_OK;
}

/* --- vectors ---------------------------------------------------------------------------------- */

/* dummy: NULL of a checkpoint's. */
static void fill_vector(const struct plan *p, const struct job *j, const struct eng_dummy *dummy,
                        float *out)
{
    for (int32_t row = 0; row < j->rows; row++) {
        int source;
        int32_t src_row;
        enum kn_dtype dtype = KN_F32;
        if (!source_row(j, row, &source, &src_row)) continue;
        if (dummy) {
            eng_dummy_row(dummy, (uint64_t)(j - p->jobs), row, 1, &out[row]);
            if (j->norm) out[row] += 1;
            continue;
        }
        CHECK(to_kn_dtype(j->tensor[source]->dtype, &dtype));
        out[row] = kn_load(dtype, j->tensor[source]->data, (size_t)src_row);
    }
}

static enum status load_vectors(const struct plan *p, struct kn *kn, struct off_tiers *tiers,
                                bool dummy, uint64_t seed, char *err)
{
    void *base;
    struct eng_dummy values;
    uint64_t bytes = vector_bytes(p);
    enum status st = off_tier_alloc(tiers, 0, bytes, "norms and biases", &base, err);
    if (st) return st;
    float *host = calloc(1, bytes);
    if (!host)
        return err_set(err, ST_NOMEM, "no memory for %llu bytes of norms and biases",
                       (unsigned long long)bytes);
    if (dummy) eng_dummy_init(&values, seed, KN_F32);
    for (int32_t i = 0; i < p->job_count; i++) {
        struct job *j = &p->jobs[i];
        if (!j->vector) continue;
        fill_vector(p, j, dummy ? &values : NULL, host + j->vector_offset);
        *j->vector = (const float *)base + j->vector_offset;
    }
    st = kn_upload(kn, base, host, bytes);
    if (st)
        err_set(err, st, "norms and biases could not be copied into tier 0: %s", status_text(st));
    free(host);
    return st;
}

/* ---------------------------------------------------------------------------------------------- */

enum status eng_weights_load(struct kn *kn, struct off_tiers *tiers, const char *dir,
                             const struct eng_shape *shape, const struct eng_model_options *opt,
                             struct eng_weights *out, char *err)
{
    bool dummy = opt->load_format == ENG_LOAD_DUMMY;
    struct eng_st *set = NULL;
    struct plan p;
    enum status st = plan_init(&p, shape, out, err);
    if (!st && !dummy) st = eng_st_open(dir, &set, err);
    if (!st && !dummy) st = bind(&p, set, dir, err);
    if (!st) st = place(&p, out, tiers, opt, err);
    if (!st) st = pack(&p, kn, opt, dummy, err);
    if (!st) st = load_vectors(&p, kn, tiers, dummy, opt->seed, err);
    if (!st && !(shape->has & ENG_HAS_HEAD)) out->head = out->embed;
    eng_st_close(set);
    free(p.jobs);
    if (st) eng_weights_deinit(out);
    return st;
}

void eng_weights_deinit(struct eng_weights *w)
{
    free(w->layers);
    *w = (struct eng_weights){0};
}
