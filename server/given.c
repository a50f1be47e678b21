#include "server/given.h"

#include <stdlib.h>

#include "config/clock.h"
#include "config/log.h"
#include "kernels/convert.h"

#define MOVES 256 /* pages copied by a call */
#define VALUES 4096
#define SPREAD 1.7320508f /* uniform in (-sqrt 3, sqrt 3): variance 1 */

static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9E3779B97F4A7C15ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return z ^ z >> 31;
}

/* K or V of one head: 64 tokens, atom by atom of head_dim. */
static void fill_tokens(const struct kn_kv *kv, uint64_t *state, char *atoms)
{
    const unsigned size = (unsigned)kn_dtype_bytes(kv->dtype);
    for (unsigned token = 0; token < KN_PAGE_TOKENS; token++)
        for (unsigned d = 0; d < (unsigned)kv->head_dim; d++) {
            const unsigned byte = d * size;
            char *atom = atoms + (size_t)(byte / KN_ATOM_ROW_BYTES) * KN_ATOM_BYTES;
            const float unit = ((float)(next_random(state) % VALUES) + 0.5f) / (VALUES / 2) - 1;
            kn_store(kv->dtype, atom + kn_atom_offset(token, byte % KN_ATOM_ROW_BYTES), 0,
                     SPREAD * unit);
        }
}

/* The first page: all its layers alike. */
static enum status fill_first(const struct srv_machine *m, uint64_t seed, char *err)
{
    const struct kn_kv *kv = &m->kv;
    const size_t layer = kn_kv_layer_bytes(kv), half = kn_kv_head_bytes(kv) / 2;
    char *image = calloc(1, layer), *page = kv->base[0];
    enum status st = ST_OK;
    if (!image) return err_set(err, ST_NOMEM, "no memory for one layer of a KV page");
    for (size_t at = 0; at < layer; at += half) fill_tokens(kv, &seed, image + at);
    for (int32_t l = 0; l < kv->layer_count && !st; l++)
        st = kn_upload(m->kn, page + (size_t)l * layer, image, layer);
    free(image);
    return st ? err_set(err, st, "a KV page could not be written: %s", status_text(st)) : ST_OK;
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
