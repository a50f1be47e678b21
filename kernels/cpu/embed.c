/*
 * embed.c - rows in and rows out: token (and position) embeddings from their blocks into the
 * residual stream, and the rows whose logits are wanted out of it.
 */
#include <string.h>

#include "config/check.h"
#include "kernels/convert.h"
#include "kernels/cpu/cpu.h"

struct embed_job {
    const struct kn_cpu *cpu;
    const struct kn_batch *batch;
    const struct kn_embed_args *args;
};

struct gather_job {
    const struct kn_batch *batch;
    int32_t cols;
    const float *x;
    float *out;
};

void kn_cpu_weight_row(const struct kn_weight *w, int32_t row, float *out)
{
    CHECK(row >= 0 && row < w->rows);
    const char *atom = kn_weight_tile(w, row / KN_TILE_ROWS);
    int32_t per_chunk = 16 / (int32_t)kn_dtype_bytes(w->dtype);
    for (int32_t at = 0; at < w->cols; at += 8 * per_chunk, atom += KN_ATOM_BYTES) {
        for (unsigned chunk = 0; chunk < 8; chunk++) {
            const char *src = atom + kn_atom_offset((unsigned)row % KN_TILE_ROWS, chunk * 16);
            int32_t first = at + (int32_t)chunk * per_chunk;
            for (int32_t i = 0; i < per_chunk && first + i < w->cols; i++)
                out[first + i] = kn_load(w->dtype, src, (size_t)i);
        }
    }
}

/* out[i] += the row, without room for a second row: 64 elements at a time would do, one at a time
 * is simpler, and only old models have a position table. */
static void add_position(const struct kn_weight *table, int32_t row, float *out)
{
    for (int32_t i = 0; i < table->cols; i++) out[i] += kn_weight_at(table, row, i);
}

static int32_t token_id(const struct embed_job *job, int32_t token)
{
    int32_t id = job->batch->tokens[token];
    if (id >= 0) return id;
    CHECK(-1 - id < job->cpu->chosen_max); /* kn_token_chosen */
    id = job->cpu->chosen[-1 - id];
    return id < 0 ? 0 : id; /* none could be chosen: the step is worth nothing, and fails */
}

/* Row `row` of w is read. */
static void count_row(struct kn_cpu *cpu, const struct kn_weight *w, int32_t row)
{
    for (int t = 0; t < KN_TIER_MAX; t++) {
        int32_t tile = row / KN_TILE_ROWS - w->span[t].tile_begin;
        if (tile >= 0 && tile < w->span[t].tile_count)
            cpu->tier_bytes[t] += (uint64_t)w->cols * kn_dtype_bytes(w->dtype);
    }
}

static void embed_item(const void *arg, int32_t token, int worker)
{
    (void)worker;
    const struct embed_job *job = arg;
    const struct kn_embed_args *a = job->args;
    float *x = a->x + (size_t)token * (size_t)a->table->cols;
    kn_cpu_weight_row(a->table, token_id(job, token), x);
    if (a->pos_table) add_position(a->pos_table, job->batch->positions[token] + a->pos_offset, x);
}

void kn_cpu_embed(struct kn *kn, const struct kn_batch *batch, const struct kn_embed_args *a)
{
    struct embed_job job = {(struct kn_cpu *)kn, batch, a};
    kn_cpu_for((struct kn_cpu *)kn, embed_item, &job, batch->token_count,
               (size_t)batch->token_count * (size_t)a->table->cols);
    for (int32_t t = 0; t < batch->token_count; t++) {
        count_row((struct kn_cpu *)kn, a->table, token_id(&job, t));
        if (a->pos_table)
            count_row((struct kn_cpu *)kn, a->pos_table, batch->positions[t] + a->pos_offset);
    }
}

static void gather_item(const void *arg, int32_t row, int worker)
{
    (void)worker;
    const struct gather_job *job = arg;
    size_t cols = (size_t)job->cols;
    int32_t token = job->batch->rows[row];
    CHECK(token >= 0 && token < job->batch->token_count);
    memcpy(job->out + (size_t)row * cols, job->x + (size_t)token * cols, cols * sizeof(float));
}

void kn_cpu_gather(struct kn *kn, const struct kn_batch *batch, int32_t cols, const float *x,
                   float *out)
{
    struct gather_job job = {batch, cols, x, out};
    kn_cpu_for((struct kn_cpu *)kn, gather_item, &job, batch->row_count,
               (size_t)batch->row_count * (size_t)cols);
}
