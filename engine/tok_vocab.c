/*
 * tok_vocab.c - see tok_vocab.h.  Texts lie in one arena; the hash table holds ids only, so that a
 * vocabulary of 256k tokens costs a few megabytes and one pass to build.  Immutable once the
 * tokenizer is open, hence safe to share.
 */
#include "engine/tok_vocab.h"

#include <stdlib.h>
#include <string.h>

#include "config/check.h"

static uint64_t hash_text(const char *text, size_t len)
{
    uint64_t h = 0x9E3779B97F4A7C15ull ^ len;
    while (len >= 8) {
        uint64_t word;
        memcpy(&word, text, 8);
        h = (h ^ word) * 0xD6E8FEB86659FD93ull;
        h ^= h >> 32;
        text += 8;
        len -= 8;
    }
    uint64_t tail = 0;
    if (len) memcpy(&tail, text, len);
    h = (h ^ tail) * 0xD6E8FEB86659FD93ull;
    return h ^ h >> 29;
}

void eng_vocab_init(struct eng_vocab *v)
{
    *v = (struct eng_vocab){0};
    buf_init(&v->texts, (size_t)UINT32_MAX);
}

void eng_vocab_deinit(struct eng_vocab *v)
{
    buf_deinit(&v->texts);
    free(v->by_id);
    free(v->slots);
    *v = (struct eng_vocab){0};
}

const char *eng_vocab_text(const struct eng_vocab *v, int32_t id, size_t *len)
{
    if (id < 0 || id >= v->id_count || !v->by_id[id].len_p1) return NULL;
    if (len) *len = v->by_id[id].len_p1 - 1;
    return v->texts.data + v->by_id[id].at;
}

/* The slot that holds the text, or the free one where it belongs. */
static size_t find_slot(const struct eng_vocab *v, const char *text, size_t len)
{
    size_t slot = hash_text(text, len) & (v->slot_cap - 1);
    for (; v->slots[slot]; slot = (slot + 1) & (v->slot_cap - 1)) {
        const struct eng_vocab_span *s = &v->by_id[v->slots[slot] - 1];
        if (s->len_p1 - 1 == len && !memcmp(v->texts.data + s->at, text, len)) break;
    }
    return slot;
}

int32_t eng_vocab_find(const struct eng_vocab *v, const char *text, size_t len)
{
    if (!v->slot_cap) return -1;
    return v->slots[find_slot(v, text, len)] - 1;
}

static enum status grow_slots(struct eng_vocab *v)
{
    size_t cap = size_max(64, v->slot_cap * 2);
    int32_t *old = v->slots;
    size_t old_cap = v->slot_cap;
    v->slots = calloc(cap, sizeof *v->slots);
    if (!v->slots) {
        v->slots = old;
        return ST_NOMEM;
    }
    v->slot_cap = cap;
    for (size_t i = 0; i < old_cap; i++) {
        if (!old[i]) continue;
        const struct eng_vocab_span *s = &v->by_id[old[i] - 1];
        v->slots[find_slot(v, v->texts.data + s->at, s->len_p1 - 1)] = old[i];
    }
    free(old);
    return ST_OK;
}

static enum status grow_ids(struct eng_vocab *v, int32_t id)
{
    if (id < v->id_cap) return ST_OK;
    size_t cap = size_max((size_t)id + 1, (size_t)v->id_cap * 2);
    struct eng_vocab_span *by_id = realloc(v->by_id, cap * sizeof *by_id);
    if (!by_id) return ST_NOMEM;
    memset(by_id + v->id_cap, 0, (cap - (size_t)v->id_cap) * sizeof *by_id);
    v->by_id = by_id;
    v->id_cap = (int32_t)cap;
    return ST_OK;
}

enum status eng_vocab_add(struct eng_vocab *v, const char *text, size_t len, int64_t id, char *err)
{
    if (id < 0 || id >= ENG_VOCAB_IDS_MAX)
        return err_set(err, ST_INVALID, "the token '%.100s' has the id %lld; ids are 0 to %d", text,
                       (long long)id, ENG_VOCAB_IDS_MAX - 1);
    const char *taken = eng_vocab_text(v, (int32_t)id, NULL);
    if (taken)
        return err_set(err, ST_INVALID, "the tokens '%.100s' and '%.100s' have the same id %lld",
                       taken, text, (long long)id);
    if (eng_vocab_find(v, text, len) >= 0)
        return err_set(err, ST_INVALID, "the token '%.100s' stands twice in the vocabulary", text);
    if (2 * (v->count + 1) > v->slot_cap && grow_slots(v)) goto fail;
    if (grow_ids(v, (int32_t)id)) goto fail;
    size_t at = v->texts.len;
    buf_put(&v->texts, text, len);
    buf_putc(&v->texts, '\0');
    if (buf_status(&v->texts)) goto fail;
    v->slots[find_slot(v, text, len)] = (int32_t)id + 1;
    v->by_id[id] = (struct eng_vocab_span){.at = (uint32_t)at, .len_p1 = (uint32_t)len + 1};
    if (id >= v->id_count) v->id_count = (int32_t)id + 1;
    v->count++;
    return ST_OK;
fail:
    return err_set(err, ST_NOMEM, "no memory for a vocabulary of %zu tokens", v->count + 1);
}
