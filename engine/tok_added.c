/*
 * tok_added.c - added tokens, found leftmost-longest and without overlap by a byte trie.
 *
 * Two tries: tokens marked "normalized" are normalised themselves and looked for in the normalised
 * text, the others in the text as it came, before everything else.  Where two texts become equal,
 * the special one wins, then the earlier.
 *
 * lstrip and rstrip take the white space beside a token into it; single_word drops a match that
 * touches a word character.  The search goes on behind the match itself, not behind what rstrip
 * took: a white-space token may therefore be found inside the stripped run, as in the reference.
 */
#include "engine/tok_added.h"

#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "config/json.h"
#include "engine/tok_unicode.h"

static enum status new_node(struct eng_added_trie *t, unsigned char byte, uint32_t *out)
{
    if (t->count == t->cap) {
        size_t cap = size_max(256, t->cap * 2);
        struct eng_added_node *nodes = realloc(t->nodes, cap * sizeof *nodes);
        if (!nodes) return ST_NOMEM;
        t->nodes = nodes;
        t->cap = cap;
    }
    *out = (uint32_t)t->count;
    t->nodes[t->count++] = (struct eng_added_node){.token = -1, .byte = byte};
    return ST_OK;
}

static uint32_t find_child(const struct eng_added_trie *t, uint32_t node, unsigned char byte)
{
    if (node == 0) return t->first[byte];
    uint32_t child = t->nodes[node].child;
    while (child && t->nodes[child].byte != byte) child = t->nodes[child].sibling;
    return child;
}

static enum status insert(struct eng_added_trie *t, const char *text, size_t len, int32_t token)
{
    uint32_t node = 0, child;
    if (t->count == 0 && new_node(t, 0, &child)) return ST_NOMEM;
    for (size_t i = 0; i < len; i++, node = child) {
        unsigned char byte = (unsigned char)text[i];
        if ((child = find_child(t, node, byte))) continue;
        if (new_node(t, byte, &child)) return ST_NOMEM;
        if (node == 0) {
            t->first[byte] = child;
        } else {
            t->nodes[child].sibling = t->nodes[node].child;
            t->nodes[node].child = child;
        }
    }
    if (t->nodes[node].token < 0) t->nodes[node].token = token;
    return ST_OK;
}

static enum status read_token(struct eng_added *a, const cJSON *json, const struct eng_vocab *model,
                              char *err)
{
    struct eng_added_token *t = &a->tokens[a->count];
    const char *text, *other;
    int64_t id;
    enum status st;
    if (!cJSON_IsObject(json))
        return err_set(err, ST_INVALID, "an entry of 'added_tokens' is no object");
    if ((st = json_get_string(json, "content", NULL, &text, err)) ||
        (st = json_get_int(json, "id", 0, INT32_MAX, -1, &id, err)) ||
        (st = json_get_bool(json, "special", false, &t->special, err)) ||
        (st = json_get_bool(json, "single_word", false, &t->single_word, err)) ||
        (st = json_get_bool(json, "lstrip", false, &t->lstrip, err)) ||
        (st = json_get_bool(json, "rstrip", false, &t->rstrip, err)) ||
        (st = json_get_bool(json, "normalized", !t->special, &t->normalized, err)))
        return st;
    if (!text || !*text || id < 0)
        return err_set(err, ST_INVALID, "an entry of 'added_tokens' lacks 'content' or 'id'");
    int32_t known = eng_vocab_find(model, text, strlen(text));
    if (known >= 0 && known != id)
        return err_set(err, ST_INVALID,
                       "the added token '%.100s' has the id %lld here and %d in the vocabulary",
                       text, (long long)id, known);
    if (known < 0 && (other = eng_vocab_text(model, (int32_t)id, NULL)))
        return err_set(err, ST_INVALID,
                       "the added token '%.100s' has the id %lld of the token '%.100s'", text,
                       (long long)id, other);
    if ((st = eng_vocab_add(&a->vocab, text, strlen(text), id, err))) return st;
    t->id = (int32_t)id;
    a->count++;
    return ST_OK;
}

static enum status insert_normalized(struct eng_added *a, int32_t token,
                                     const struct eng_norm *norm, char *err)
{
    struct eng_regex_scratch scratch;
    struct buf text, spare;
    size_t len;
    bool left_cut = false;
    const char *raw = eng_vocab_text(&a->vocab, a->tokens[token].id, &len);
    if (eng_regex_scratch_init(&scratch))
        return err_set(err, ST_NOMEM, "no memory for added tokens");
    buf_init(&text, 1u << 24);
    buf_init(&spare, 1u << 24);
    buf_put(&text, raw, len);
    enum status st = buf_status(&text);
    if (!st) st = eng_norm_apply(norm, &scratch, &text, &spare, &left_cut);
    if (st) err_set(err, st, "the added token '%.100s' cannot be normalised", raw);
    else if (text.len == 0)
        st = err_set(err, ST_INVALID, "the added token '%.100s' is empty when normalised", raw);
    else if ((st = insert(&a->normalized, text.data, text.len, token)))
        err_set(err, st, "no memory for added tokens");
    buf_deinit(&text);
    buf_deinit(&spare);
    eng_regex_scratch_deinit(&scratch);
    return st;
}

static enum status build_tries(struct eng_added *a, const struct eng_norm *norm, char *err)
{
    for (int pass = 0; pass < 2; pass++) {
        for (int32_t i = 0; i < a->count; i++) {
            if (a->tokens[i].special == (pass == 1)) continue;
            size_t len;
            const char *text = eng_vocab_text(&a->vocab, a->tokens[i].id, &len);
            enum status st;
            if (a->tokens[i].normalized) st = insert_normalized(a, i, norm, err);
            else if ((st = insert(&a->raw, text, len, i)))
                err_set(err, st, "no memory for added tokens");
            if (st) return st;
        }
    }
    return ST_OK;
}

enum status eng_added_init(struct eng_added *a, const cJSON *list, const struct eng_vocab *model,
                           const struct eng_norm *norm, char *err)
{
    const cJSON *item;
    enum status st;
    *a = (struct eng_added){0};
    eng_vocab_init(&a->vocab);
    if (!list) return ST_OK;
    if (!cJSON_IsArray(list)) return err_set(err, ST_INVALID, "'added_tokens' must be a list");
    a->tokens = calloc((size_t)cJSON_GetArraySize(list) + 1, sizeof *a->tokens);
    if (!a->tokens) return err_set(err, ST_NOMEM, "no memory for added tokens");
    cJSON_ArrayForEach(item, list) if ((st = read_token(a, item, model, err))) return st;
    return build_tries(a, norm, err);
}

void eng_added_deinit(struct eng_added *a)
{
    eng_vocab_deinit(&a->vocab);
    free(a->tokens);
    free(a->raw.nodes);
    free(a->normalized.nodes);
    *a = (struct eng_added){0};
}

void eng_added_scan_init(struct eng_added_scan *scan, const struct eng_added *a,
                         const struct eng_added_trie *trie, bool parse_special, const char *text,
                         size_t len)
{
    *scan = (struct eng_added_scan){.added = a,
                                    .trie = trie,
                                    .parse_special = parse_special,
                                    .text = text,
                                    .len = len,
                                    .held = {.id = -1}};
}

/* The longest text of the trie at `at`: its token index and *len, or -1. */
static int32_t longest_at(const struct eng_added_scan *scan, size_t at, size_t *len)
{
    int32_t found = -1;
    uint32_t node = 0;
    for (size_t i = at; i < scan->len; i++) {
        node = find_child(scan->trie, node, (unsigned char)scan->text[i]);
        if (!node) break;
        if (scan->trie->nodes[node].token < 0) continue;
        found = scan->trie->nodes[node].token;
        *len = i + 1 - at;
    }
    return found;
}

static bool touches_word(const struct eng_added_scan *scan, size_t start, size_t end)
{
    const char *before = scan->text + start, *behind = scan->text + end;
    if (start > 0 && eng_ucd_is_word(eng_ucd_prev(&before, scan->text))) return true;
    return end < scan->len && eng_ucd_is_word(eng_ucd_next(&behind, scan->text + scan->len));
}

/* Widens the match by what lstrip and rstrip take. */
static void strip_around(const struct eng_added_scan *scan, const struct eng_added_token *t,
                         size_t *start, size_t *end)
{
    while (t->lstrip && *start > scan->done) {
        const char *p = scan->text + *start;
        if (!eng_ucd_is_space(eng_ucd_prev(&p, scan->text))) break;
        *start = (size_t)(p - scan->text);
    }
    while (t->rstrip && *end < scan->len) {
        const char *p = scan->text + *end;
        if (!eng_ucd_is_space(eng_ucd_next(&p, scan->text + scan->len))) break;
        *end = (size_t)(p - scan->text);
    }
}

/* Finds the next token that counts; false where there is none. */
static bool find_token(struct eng_added_scan *scan, size_t *start, size_t *end, int32_t *id)
{
    if (scan->trie->count == 0) return false;
    while (scan->search < scan->len) {
        size_t len = 0, at = scan->search;
        int32_t token =
            scan->trie->first[(unsigned char)scan->text[at]] ? longest_at(scan, at, &len) : -1;
        scan->search = at + (token < 0 ? 1 : len);
        if (token < 0) continue;
        const struct eng_added_token *t = &scan->added->tokens[token];
        if (t->special && !scan->parse_special) continue;
        if (t->single_word && touches_word(scan, at, at + len)) continue;
        *start = at;
        *end = at + len;
        *id = t->id;
        strip_around(scan, t, start, end);
        return true;
    }
    return false;
}

bool eng_added_next(struct eng_added_scan *scan, size_t *start, size_t *end, int32_t *id)
{
    if (scan->held.id < 0) {
        size_t at, stop;
        int32_t found;
        if (find_token(scan, &at, &stop, &found)) {
            scan->held.start = at;
            scan->held.end = stop;
            scan->held.id = found;
        } else if (scan->done < scan->len) {
            *start = scan->done;
            *end = scan->done = scan->len;
            *id = -1;
            return true;
        } else {
            return false;
        }
    }
    if (scan->done < scan->held.start) {
        *start = scan->done;
        *end = scan->done = scan->held.start;
        *id = -1;
        return true;
    }
    *start = scan->held.start;
    *end = scan->done = scan->held.end;
    *id = scan->held.id;
    scan->held.id = -1;
    return true;
}
