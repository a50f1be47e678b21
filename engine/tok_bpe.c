/*
 * tok_bpe.c - byte pair encoding of one word.
 *
 * The word's characters become symbols in a linked list; a heap holds every mergeable pair, keyed
 * by rank and then by position, and pairs are merged in that order until none is left: n log n for
 * any word, so that a megabyte of one letter costs a fraction of a second.
 *
 * Invariants:
 *  1. A heap entry may be stale (its symbols have been merged with others since).  It counts only
 * where the pair that stands there now merges into the same token as when it was pushed: the
 * reference's rule, kept to the letter because it decides ties between different ways to the same
 * token.
 *  2. A symbol keeps its index for life; a merge keeps the left one and marks the right one gone.
 *  3. Where a pair is listed twice, the later rank counts.
 */
#include "engine/tok_bpe.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "config/json.h"
#include "config/utf8.h"
#include "engine/tok_unicode.h"

#define NO_SYMBOL UINT32_MAX
#define AFFIX_BYTES_MAX 64

struct eng_bpe_symbol {
    int32_t id; /* -1: merged into its left neighbour */
    uint32_t prev, next;
};

static size_t hash_pair(uint64_t pair)
{
    uint64_t h = pair * 0x9E3779B97F4A7C15ull;
    return (size_t)(h ^ h >> 32);
}

static uint64_t make_pair(int32_t left, int32_t right)
{
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

/* The slot of the pair, or the free one where it belongs. */
static struct eng_bpe_pair *find_pair(const struct eng_bpe *bpe, uint64_t pair)
{
    size_t slot = hash_pair(pair) & (bpe->pair_cap - 1);
    while (bpe->pairs[slot].rank != UINT32_MAX && bpe->pairs[slot].pair != pair)
        slot = (slot + 1) & (bpe->pair_cap - 1);
    return &bpe->pairs[slot];
}

static enum status read_vocab(struct eng_bpe *bpe, const cJSON *vocab, char *err)
{
    const cJSON *item;
    if (!cJSON_IsObject(vocab))
        return err_set(err, ST_INVALID, "the model's 'vocab' is missing or no object");
    cJSON_ArrayForEach(item, vocab)
    {
        double id = item->valuedouble;
        if (!cJSON_IsNumber(item) || !(fabs(id) < 1e15) || id != floor(id))
            return err_set(err, ST_INVALID, "the id of the token '%.100s' is no integer",
                           item->string);
        enum status st =
            eng_vocab_add(&bpe->vocab, item->string, strlen(item->string), (int64_t)id, err);
        if (st) return st;
    }
    if (bpe->vocab.count == 0) return err_set(err, ST_INVALID, "the model's 'vocab' is empty");
    return ST_OK;
}

/* The two texts of one merge, "a b" or ["a", "b"]. */
static enum status split_merge(const cJSON *item, const char **left, size_t *left_len,
                               const char **right, size_t *right_len, char *err)
{
    if (cJSON_IsString(item)) {
        const char *space = strchr(item->valuestring, ' ');
        if (!space || strchr(space + 1, ' '))
            return err_set(err, ST_INVALID,
                           "the merge '%.100s' is not two tokens with a space between",
                           item->valuestring);
        *left = item->valuestring;
        *left_len = (size_t)(space - item->valuestring);
        *right = space + 1;
        *right_len = strlen(*right);
        return ST_OK;
    }
    const cJSON *a = cJSON_IsArray(item) ? item->child : NULL, *b = a ? a->next : NULL;
    if (!cJSON_IsString(a) || !cJSON_IsString(b) || b->next)
        return err_set(err, ST_INVALID, "an entry of the model's 'merges' is not a pair of tokens");
    *left = a->valuestring;
    *left_len = strlen(*left);
    *right = b->valuestring;
    *right_len = strlen(*right);
    return ST_OK;
}

static enum status add_merge(struct eng_bpe *bpe, const cJSON *item, struct buf *joined, char *err)
{
    const char *left = NULL, *right = NULL;
    size_t left_len = 0, right_len = 0;
    enum status st = split_merge(item, &left, &left_len, &right, &right_len, err);
    if (st) return st;
    int32_t left_id = eng_vocab_find(&bpe->vocab, left, left_len);
    int32_t right_id = eng_vocab_find(&bpe->vocab, right, right_len);
    if (left_id < 0 || right_id < 0)
        return err_set(err, ST_INVALID,
                       "the merge of '%.*s' and '%.*s' names a token that is not in the vocabulary",
                       (int)size_min(left_len, 100), left, (int)size_min(right_len, 100), right);
    size_t prefix_len = bpe->prefix ? strlen(bpe->prefix) : 0;
    buf_clear(joined);
    buf_put(joined, left, left_len);
    if (right_len >= prefix_len) buf_put(joined, right + prefix_len, right_len - prefix_len);
    if (buf_status(joined)) return err_set(err, ST_NOMEM, "no memory for the merges");
    int32_t merged = eng_vocab_find(&bpe->vocab, joined->data, joined->len);
    if (merged < 0 || right_len < prefix_len)
        return err_set(err, ST_INVALID,
                       "the merge of '%.*s' and '%.*s' makes a token that is not in the vocabulary",
                       (int)size_min(left_len, 100), left, (int)size_min(right_len, 100), right);
    uint64_t pair = make_pair(left_id, right_id);
    *find_pair(bpe, pair) =
        (struct eng_bpe_pair){.pair = pair, .rank = (uint32_t)bpe->merge_count, .merged = merged};
    bpe->merged_by_rank[bpe->merge_count++] = merged;
    return ST_OK;
}

static enum status read_merges(struct eng_bpe *bpe, const cJSON *merges, char *err)
{
    const cJSON *item;
    struct buf joined;
    enum status st = ST_OK;
    if (!cJSON_IsArray(merges))
        return err_set(err, ST_INVALID, "the model's 'merges' is missing or no list");
    size_t count = (size_t)cJSON_GetArraySize(merges);
    bpe->pair_cap = 64;
    while (bpe->pair_cap < 2 * count) bpe->pair_cap *= 2;
    bpe->pairs = malloc(bpe->pair_cap * sizeof *bpe->pairs);
    bpe->merged_by_rank = malloc((count + 1) * sizeof *bpe->merged_by_rank);
    if (!bpe->pairs || !bpe->merged_by_rank)
        return err_set(err, ST_NOMEM, "no memory for %zu merges", count);
    for (size_t i = 0; i < bpe->pair_cap; i++) bpe->pairs[i].rank = UINT32_MAX;
    buf_init(&joined, 1u << 24);
    cJSON_ArrayForEach(item, merges)
    {
        if (cJSON_IsString(item) && !strncmp(item->valuestring, "#version", 8)) continue;
        if ((st = add_merge(bpe, item, &joined, err))) break;
    }
    buf_deinit(&joined);
    return st;
}

static enum status read_affix(const cJSON *json, const char *key, char **out, char *err)
{
    const char *text;
    enum status st = json_get_string(json, key, "", &text, err);
    if (st || !*text) return st;
    if (strlen(text) > AFFIX_BYTES_MAX)
        return err_set(err, ST_UNSUPPORTED, "the model's '%s' has more than %d bytes", key,
                       AFFIX_BYTES_MAX);
    *out = strdup(text);
    return *out ? ST_OK : err_set(err, ST_NOMEM, "no memory for the model's '%s'", key);
}

static enum status read_options(struct eng_bpe *bpe, const cJSON *json, char *err)
{
    const char *type, *unk;
    double dropout;
    enum status st;
    if ((st = json_get_string(json, "type", "BPE", &type, err))) return st;
    if (strcmp(type, "BPE"))
        return err_set(err, ST_UNSUPPORTED,
                       "the tokenizer model '%.60s' is not supported; only BPE is", type);
    if ((st = json_get_double(json, "dropout", 0, 1, 0, &dropout, err))) return st;
    if (dropout != 0)
        return err_set(err, ST_UNSUPPORTED, "BPE dropout of %g is not supported; set it to null",
                       dropout);
    if ((st = json_get_bool(json, "byte_fallback", false, &bpe->byte_fallback, err)) ||
        (st = json_get_bool(json, "fuse_unk", false, &bpe->fuse_unk, err)) ||
        (st = json_get_bool(json, "ignore_merges", false, &bpe->ignore_merges, err)) ||
        (st = read_affix(json, "continuing_subword_prefix", &bpe->prefix, err)) ||
        (st = read_affix(json, "end_of_word_suffix", &bpe->suffix, err)) ||
        (st = read_vocab(bpe, json_member(json, "vocab"), err)) ||
        (st = read_merges(bpe, json_member(json, "merges"), err)) ||
        (st = json_get_string(json, "unk_token", NULL, &unk, err)))
        return st;
    bpe->unk_id = unk ? eng_vocab_find(&bpe->vocab, unk, strlen(unk)) : -1;
    if (unk && bpe->unk_id < 0)
        return err_set(err, ST_INVALID, "the model's unk_token '%.100s' is not in its vocabulary",
                       unk);
    return ST_OK;
}

enum status eng_bpe_init(struct eng_bpe *bpe, const cJSON *json, char *err)
{
    *bpe = (struct eng_bpe){.unk_id = -1};
    eng_vocab_init(&bpe->vocab);
    if (!cJSON_IsObject(json)) return err_set(err, ST_INVALID, "'model' is missing or no object");
    enum status st = read_options(bpe, json, err);
    if (st) return st;
    for (uint32_t cp = 0; cp < ENG_BPE_DIRECT; cp++) {
        char bytes[4];
        bpe->direct[cp] = eng_vocab_find(&bpe->vocab, bytes, utf8_encode(cp, bytes));
    }
    for (unsigned b = 0; b < 256; b++) {
        char text[8];
        snprintf(text, sizeof text, "<0x%02X>", b);
        bpe->byte_id[b] = bpe->byte_fallback ? eng_vocab_find(&bpe->vocab, text, 6) : -1;
    }
    return ST_OK;
}

void eng_bpe_deinit(struct eng_bpe *bpe)
{
    eng_vocab_deinit(&bpe->vocab);
    free(bpe->pairs);
    free(bpe->merged_by_rank);
    free(bpe->prefix);
    free(bpe->suffix);
    *bpe = (struct eng_bpe){0};
}

void eng_bpe_scratch_deinit(struct eng_bpe_scratch *s)
{
    free(s->symbols);
    free(s->heap);
    *s = (struct eng_bpe_scratch){0};
}

enum status eng_bpe_ids_put(struct eng_bpe_ids *ids, int32_t id)
{
    if (ids->count >= ids->max) return ST_LIMIT;
    if (ids->count == ids->cap) {
        size_t cap = size_min(size_max(64, ids->cap * 2), ids->max);
        int32_t *data = realloc(ids->data, cap * sizeof *data);
        if (!data) return ST_NOMEM;
        ids->data = data;
        ids->cap = cap;
    }
    ids->data[ids->count++] = id;
    return ST_OK;
}

/* Capacity is reserved by the caller. */
static void put_symbol(struct eng_bpe_scratch *s, int32_t id)
{
    DCHECK(s->symbol_count < s->symbol_cap);
    uint32_t at = (uint32_t)s->symbol_count++;
    if (at > 0) s->symbols[at - 1].next = at;
    s->symbols[at] =
        (struct eng_bpe_symbol){.id = id, .prev = at ? at - 1 : NO_SYMBOL, .next = NO_SYMBOL};
}

/* The token of one character, with the affixes that its place calls for. */
static int32_t char_token(const struct eng_bpe *bpe, const char *text, size_t len, bool first,
                          bool last)
{
    char whole[2 * AFFIX_BYTES_MAX + 8];
    bool prefixed = !first && bpe->prefix, suffixed = last && bpe->suffix;
    if (!prefixed && !suffixed) {
        uint32_t cp = utf8_decode(text, len);
        return cp < ENG_BPE_DIRECT ? bpe->direct[cp] : eng_vocab_find(&bpe->vocab, text, len);
    }
    int n = snprintf(whole, sizeof whole, "%s%.*s%s", prefixed ? bpe->prefix : "", (int)len, text,
                     suffixed ? bpe->suffix : "");
    return eng_vocab_find(&bpe->vocab, whole, (size_t)n);
}

/* The bytes of an unknown character as <0xHH> tokens; false where one of those is missing. */
static bool put_bytes(const struct eng_bpe *bpe, struct eng_bpe_scratch *s, const char *text,
                      size_t len)
{
    if (!bpe->byte_fallback) return false;
    for (size_t i = 0; i < len; i++)
        if (bpe->byte_id[(unsigned char)text[i]] < 0) return false;
    for (size_t i = 0; i < len; i++) put_symbol(s, bpe->byte_id[(unsigned char)text[i]]);
    return true;
}

/* Splits the word into symbols.  An unknown token is put when the next known character comes, so
 * that fuse_unk can join a run of them. */
static enum status split_word(const struct eng_bpe *bpe, struct eng_bpe_scratch *s,
                              const char *word, size_t len)
{
    if (len >= NO_SYMBOL) return ST_LIMIT;
    if (s->symbol_cap < len + 1) {
        size_t cap = size_max(64, len + len / 2 + 1);
        struct eng_bpe_symbol *symbols = realloc(s->symbols, cap * sizeof *symbols);
        if (!symbols) return ST_NOMEM;
        s->symbols = symbols;
        s->symbol_cap = cap;
    }
    s->symbol_count = 0;
    bool unk = false;
    for (size_t i = 0; i < len;) {
        size_t n = (unsigned char)word[i] < 0x80 ? 1 : utf8_char_len(word + i, len - i);
        CHECK(n > 0);
        int32_t id = char_token(bpe, word + i, n, i == 0, i + n == len);
        if (id >= 0) {
            if (unk) put_symbol(s, bpe->unk_id);
            unk = false;
            put_symbol(s, id);
        } else if (!put_bytes(bpe, s, word + i, n) && bpe->unk_id >= 0) {
            if (unk && !bpe->fuse_unk) put_symbol(s, bpe->unk_id);
            unk = true;
        }
        i += n;
    }
    if (unk) put_symbol(s, bpe->unk_id);
    return ST_OK;
}

static enum status heap_push(struct eng_bpe_scratch *s, uint64_t key)
{
    if (s->heap_count == s->heap_cap) {
        size_t cap = size_max(64, s->heap_cap * 2);
        uint64_t *heap = realloc(s->heap, cap * sizeof *heap);
        if (!heap) return ST_NOMEM;
        s->heap = heap;
        s->heap_cap = cap;
    }
    size_t at = s->heap_count++;
    while (at > 0 && s->heap[(at - 1) / 4] > key) {
        s->heap[at] = s->heap[(at - 1) / 4];
        at = (at - 1) / 4;
    }
    s->heap[at] = key;
    return ST_OK;
}

static uint64_t heap_pop(struct eng_bpe_scratch *s)
{
    uint64_t top = s->heap[0], key = s->heap[--s->heap_count];
    size_t at = 0;
    for (;;) {
        size_t child = 4 * at + 1, end = size_min(child + 4, s->heap_count), least = child;
        if (child >= s->heap_count) break;
        for (size_t i = child + 1; i < end; i++)
            if (s->heap[i] < s->heap[least]) least = i;
        if (s->heap[least] >= key) break;
        s->heap[at] = s->heap[least];
        at = least;
    }
    s->heap[at] = key;
    return top;
}

/* Pushes the pair that begins at this symbol, where it merges. */
static enum status push_pair(const struct eng_bpe *bpe, struct eng_bpe_scratch *s, uint32_t left)
{
    uint32_t right = left == NO_SYMBOL ? NO_SYMBOL : s->symbols[left].next;
    if (right == NO_SYMBOL) return ST_OK;
    const struct eng_bpe_pair *p =
        find_pair(bpe, make_pair(s->symbols[left].id, s->symbols[right].id));
    return p->rank == UINT32_MAX ? ST_OK : heap_push(s, (uint64_t)p->rank << 32 | left);
}

static enum status merge_symbols(const struct eng_bpe *bpe, struct eng_bpe_scratch *s)
{
    enum status st;
    s->heap_count = 0;
    for (uint32_t i = 0; i + 1 < s->symbol_count; i++)
        if ((st = push_pair(bpe, s, i))) return st;
    while (s->heap_count > 0) {
        uint64_t top = heap_pop(s);
        uint32_t left = (uint32_t)top, right = s->symbols[left].next;
        if (s->symbols[left].id < 0 || right == NO_SYMBOL) continue;
        const struct eng_bpe_pair *p =
            find_pair(bpe, make_pair(s->symbols[left].id, s->symbols[right].id));
        int32_t merged = bpe->merged_by_rank[top >> 32];
        if (p->rank == UINT32_MAX || p->merged != merged) continue;
        uint32_t next = s->symbols[right].next;
        s->symbols[left].id = merged;
        s->symbols[left].next = next;
        s->symbols[right].id = -1;
        if (next != NO_SYMBOL) s->symbols[next].prev = left;
        if ((st = push_pair(bpe, s, s->symbols[left].prev)) || (st = push_pair(bpe, s, left)))
            return st;
    }
    return ST_OK;
}

enum status eng_bpe_encode(const struct eng_bpe *bpe, struct eng_bpe_scratch *scratch,
                           const char *word, size_t len, struct eng_bpe_ids *ids)
{
    if (bpe->ignore_merges) {
        int32_t whole = eng_vocab_find(&bpe->vocab, word, len);
        if (whole >= 0) return eng_bpe_ids_put(ids, whole);
    }
    enum status st = split_word(bpe, scratch, word, len);
    if (!st && scratch->symbol_count > 1) st = merge_symbols(bpe, scratch);
    for (size_t i = 0; !st && i < scratch->symbol_count; i++)
        if (scratch->symbols[i].id >= 0) st = eng_bpe_ids_put(ids, scratch->symbols[i].id);
    return st;
}
