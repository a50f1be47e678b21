#include "server/given.h"

#include <stdlib.h>

#include "config/clock.h"
#include "config/log.h"
#include "config/random.h"

#define MOVES 256 /* pages copied by a call */
#define VALUES 4096
#define SPREAD 1.7320508f /* uniform in (-sqrt 3, sqrt 3): variance 1 */

static float next_value(uint64_t *state)
{
    const float unit = ((float)(random_next(state) % VALUES) + 0.5f) / (VALUES / 2) - 1;
    return SPREAD * unit;
}

/* K and V of one head; row: room for [head_dim]. */
static void fill_head(const struct kn_kv *kv, uint64_t *state, float *row, char *head)
{
    for (int value = 0; value < 2; value++)
        for (unsigned token = 0; token < KN_PAGE_TOKENS; token++) {
            for (int32_t d = 0; d < kv->head_dim; d++) row[d] = next_value(state);
            kn_kv_put_row(kv, head, value, token, row);
        }
}

/* The first page: all its layers alike. */
static enum status fill_first(const struct srv_machine *m, uint64_t seed, char *err)
{
    const struct kn_kv *kv = &m->kv;
    const size_t layer = kn_kv_layer_bytes(kv), head = kn_kv_head_bytes(kv);
    char *image = calloc(1, layer), *page = kv->base[0];
    float *row = calloc((size_t)kv->head_dim, sizeof *row);
    enum status st = ST_OK;
    if (!image || !row) st = err_set(err, ST_NOMEM, "no memory for one layer of a KV page");
    for (size_t at = 0; at < layer && !st; at += head) fill_head(kv, &seed, row, image + at);
    for (int32_t l = 0; l < kv->layer_count && !st; l++) {
        st = kn_upload(m->kn, page + (size_t)l * layer, image, layer);
        if (st) err_set(err, st, "a KV page could not be written: %s", status_text(st));
    }
    free(image);
    free(row);
    return st;
}

static void copy_first(const struct srv_machine *m, unsigned tier, uint32_t begin, uint32_t end)
{
    struct kn_page_move moves[MOVES];
    while (begin < end) {
        int32_t count = 0;
        for (; count < MOVES && begin < end; begin++)
            moves[count++] = (struct kn_page_move){kn_page_make(0, 0), kn_page_make(tier, begin)};
        kn_move_pages(m->kn, &m->kv, moves, count);
    }
}

enum status srv_given_fill(struct srv_machine *m, uint64_t seed, char *err)
{
    const uint64_t start = clock_now_ns();
    enum status st = fill_first(m, seed, err);
    if (st) return st;
    copy_first(m, 0, 1, (uint32_t)m->page_count);
    copy_first(m, (unsigned)m->memory.kv_tier, 0, (uint32_t)m->memory.far_page_count);
    if ((st = kn_sync(m->kn, err))) return st;
    log_info("startup", "the KV cache was filled with random values (%.0f ms)",
             (double)(clock_now_ns() - start) / 1e6);
    return ST_OK;
}
