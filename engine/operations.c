#include "engine/operations.h"

#include <math.h>
#include <string.h>

#include "config/check.h"
#include "engine/traffic.h"

#define NO_PART (-1)     /* the tag of what is no weight of its own */
#define TABLE_SHARE 0.05 /* of a table a step reads less */

static struct off_plan_op *add(struct off_plan *plan, const char *name, int tag, int32_t count)
{
    CHECK(plan->op_count < OFF_PLAN_OPS_MAX);
    struct off_plan_op *op = &plan->op[plan->op_count++];
    *op = (struct off_plan_op){.name = name, .tag = tag, .count = count};
    return op;
}

/* A product reads all of its weight, once for all sequences. */
static void add_product(struct off_plan *plan, const char *name, enum eng_part part, int32_t count,
                        const struct kn_weight *w, const struct eng_step *step)
{
    struct off_plan_op *op = add(plan, name, part, count);
    double elements = (double)w->rows * w->cols;
    op->tile_count = w->tile_count;
    op->tile_bytes = kn_weight_tile_bytes(w);
    op->read_bytes = elements * (double)kn_dtype_bytes(w->dtype);
    op->compute_s = 2 * elements * step->seq_count / step->flops_per_s;
}

static double table_bytes(const struct kn_weight *w, const struct eng_step *step)
{
    return (double)step->seq_count * w->cols * (double)kn_dtype_bytes(w->dtype);
}

/* Of a table, a row a sequence. */
static void add_table(struct off_plan *plan, const char *name, enum eng_part part,
                      const struct kn_weight *w, const struct eng_step *step)
{
    struct off_plan_op *op = add(plan, name, part, 1);
    op->tile_count = w->tile_count;
    op->tile_bytes = kn_weight_tile_bytes(w);
    op->read_bytes = table_bytes(w, step);
}

static void add_vectors(struct off_plan *plan, uint64_t all_bytes)
{
    for (int i = 0; i < plan->op_count; i++)
        all_bytes -=
            (uint64_t)plan->op[i].count * (uint64_t)plan->op[i].tile_count * plan->op[i].tile_bytes;
    if (!all_bytes) return;
    struct off_plan_op *op = add(plan, "norms, biases", NO_PART, 1);
    op->tile_count = 1;
    op->tile_bytes = all_bytes;
    op->read_bytes = (double)all_bytes;
    op->pinned = true;
}

static void add_attention(struct off_plan *plan, const struct eng_shape *shape,
                          const struct eng_weights *w, const struct eng_step *step)
{
    const struct eng_model_info *info = &shape->info;
    const struct kn_kv kv = {.dtype = step->kv_dtype,
                             .layer_count = info->layer_count,
                             .kv_heads = info->kv_heads,
                             .head_dim = info->head_dim};
    struct eng_traffic traffic;
    eng_traffic_init(&traffic, shape, w, step->kv_dtype);
    double bytes = (double)step->seq_count * (double)eng_traffic_kv_bytes(&traffic, step->context);
    double tokens = bytes / (double)traffic.kv_token_bytes;
    struct off_plan_op *op = add(plan, ENG_OPERATION_KV, NO_PART, 1);
    op->tile_count = step->seq_count * (int32_t)div_up((size_t)step->context, KN_PAGE_TOKENS);
    op->tile_bytes = kn_kv_page_bytes(&kv);
    op->read_bytes = bytes;
    op->compute_s = 4 * tokens * info->q_heads * info->head_dim / step->flops_per_s;
    op->pinned = true;
    op = add(plan, ENG_OPERATION_KV_RESERVE, NO_PART, 1);
    op->tile_count = step->seq_count;
    op->tile_bytes = kn_kv_page_bytes(&kv);
    op->pinned = true;
}

enum status eng_operations(const struct eng_shape *shape, const struct eng_step *step,
                           struct off_plan *plan, char *err)
{
    struct eng_weights w;
    uint64_t all_bytes;
    const int32_t L = shape->info.layer_count;
    enum status st = eng_weights_bytes(shape, &all_bytes, err);
    if (st || (st = eng_weights_shapes(shape, &w, err))) return st;
    const struct eng_layer *layer = &w.layers[0];
    plan->op_count = 0;
    if (shape->has & ENG_HAS_HEAD) add_table(plan, "embedding", ENG_PART_EMBED, &w.embed, step);
    if (shape->has & ENG_HAS_POSITIONS)
        add_table(plan, "positions", ENG_PART_POSITIONS, &w.positions, step);
    add_product(plan, "qkv", ENG_PART_Q, L, &layer->qkv, step);
    add_product(plan, "o", ENG_PART_O, L, &layer->o, step);
    if (shape->has & ENG_HAS_GATE) add_product(plan, "gate-up", ENG_PART_GATE, L, &layer->up, step);
    else add_product(plan, "up", ENG_PART_UP, L, &layer->up, step);
    add_product(plan, "down", ENG_PART_DOWN, L, &layer->down, step);
    if (shape->has & ENG_HAS_HEAD) {
        add_product(plan, "head", ENG_PART_HEAD, 1, &w.head, step);
    } else { /* the embedding is the head as well: read whole, and a row a sequence */
        add_product(plan, "embedding, head", ENG_PART_EMBED, 1, &w.embed, step);
        plan->op[plan->op_count - 1].read_bytes += table_bytes(&w.embed, step);
    }
    add_vectors(plan, all_bytes);
    add_attention(plan, shape, &w, step);
    eng_weights_deinit(&w);
    return ST_OK;
}

static bool is_table(const struct off_plan_op *op)
{
    const double stored = (double)op->tile_bytes * op->tile_count;
    return !op->pinned && op->read_bytes < TABLE_SHARE * stored;
}

/* Tables are solved for as if their rows took as long wherever they lie: then nothing speaks
 * against moving them. */
enum status eng_operations_solve(struct off_plan *plan, char *err)
{
    double slowest = INFINITY;
    for (int t = 0; t < plan->tier_count; t++) slowest = fmin(slowest, plan->tier[t].bytes_per_s);
    for (int i = 0; i < plan->op_count; i++)
        if (is_table(&plan->op[i])) plan->op[i].compute_s = plan->op[i].read_bytes / slowest;
    enum status st = off_plan_solve(plan, err);
    if (st) return st;
    for (int i = 0; i < plan->op_count; i++)
        if (is_table(&plan->op[i])) plan->op[i].compute_s = 0;
    off_plan_sum_up(plan);
    plan->relaxed_s = fmin(plan->relaxed_s, plan->seconds);
    return ST_OK;
}

/* --- KV --------------------------------------------------------------------------------------- */

static struct off_plan_op *find(struct off_plan *plan, const char *name)
{
    for (int i = 0; i < plan->op_count; i++)
        if (strcmp(plan->op[i].name, name) == 0) return &plan->op[i];
    CHECK(false);
    return NULL;
}

void eng_operations_open_kv(struct off_plan *plan, int tier, uint64_t pool_bytes,
                            uint64_t near_bytes)
{
    struct off_plan_op *kv = find(plan, ENG_OPERATION_KV);
    struct off_plan_op *reserve = find(plan, ENG_OPERATION_KV_RESERVE);
    const uint64_t full = (uint64_t)(kv->tile_count - reserve->tile_count) * kv->tile_bytes;
    CHECK(tier > 0 && tier < KN_TIER_MAX);
    kv->pinned = false;
    kv->pooled = reserve->pooled = true;
    memset(plan->pool_bytes, 0, sizeof plan->pool_bytes);
    plan->pool_bytes[0] = near_bytes;
    plan->pool_bytes[tier] = size_min(pool_bytes, full);
}

void eng_operations_place_kv(struct off_plan *plan, int tier, int64_t page_count)
{
    struct off_plan_op *kv = find(plan, ENG_OPERATION_KV);
    CHECK(page_count >= 0 && page_count <= kv->tile_count);
    memset(kv->tiles, 0, sizeof kv->tiles);
    kv->tiles[0] = kv->tile_count;
    kv->tiles[0] -= page_count;
    kv->tiles[tier] += page_count;
}

bool eng_operation_is_kv(const struct off_plan_op *op)
{
    return !strcmp(op->name, ENG_OPERATION_KV) || !strcmp(op->name, ENG_OPERATION_KV_RESERVE);
}

const struct off_plan_op *eng_operation_kv(const struct off_plan *plan)
{
    return find((struct off_plan *)plan, ENG_OPERATION_KV);
}

uint64_t eng_operations_tile_max(const struct off_plan *plan)
{
    uint64_t tile = 0;
    for (int i = 0; i < plan->op_count; i++)
        if (!plan->op[i].pinned && !eng_operation_is_kv(&plan->op[i]))
            tile = size_max(tile, plan->op[i].tile_bytes);
    return tile;
}

/* --- weights ---------------------------------------------------------------------------------- */

const struct off_plan_op *eng_operation_of(const struct off_plan *plan, enum eng_part part)
{
    for (int i = 0; i < plan->op_count; i++)
        if (plan->op[i].tag == (int)part) return &plan->op[i];
    return NULL;
}

static void count(struct off_plan *plan, enum eng_part part, const struct kn_weight *w)
{
    struct off_plan_op *op = (struct off_plan_op *)eng_operation_of(plan, part);
    CHECK(op);
    for (int t = 0; t < KN_TIER_MAX; t++) op->tiles[t] += w->span[t].tile_count;
}

void eng_operations_count(const struct eng_shape *shape, const struct eng_weights *w,
                          struct off_plan *plan)
{
    for (int i = 0; i < plan->op_count; i++) {
        struct off_plan_op *op = &plan->op[i];
        memset(op->tiles, 0, sizeof op->tiles);
        if (op->pinned || eng_operation_is_kv(op))
            op->tiles[0] = (int64_t)op->count * op->tile_count;
    }
    count(plan, ENG_PART_EMBED, &w->embed);
    if (shape->has & ENG_HAS_POSITIONS) count(plan, ENG_PART_POSITIONS, &w->positions);
    for (int32_t i = 0; i < shape->info.layer_count; i++) {
        const struct eng_layer *layer = &w->layers[i];
        count(plan, ENG_PART_Q, &layer->qkv);
        count(plan, ENG_PART_O, &layer->o);
        count(plan, shape->has & ENG_HAS_GATE ? ENG_PART_GATE : ENG_PART_UP, &layer->up);
        count(plan, ENG_PART_DOWN, &layer->down);
    }
    if (shape->has & ENG_HAS_HEAD) count(plan, ENG_PART_HEAD, &w->head);
}
