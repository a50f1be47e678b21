/*
 * The tree of prefixes under random operations - sequences that begin as others did, grow, enter
 * what they have, branch, end or are cut off; pages that are moved, moved for nobody, and dropped -
 * beside a model that keeps every node's tokens from the first one on and compares them all.
 *
 *  - what is found is the longest match there is, whole pages and the tail, under the same salt;
 *  - a key is entered once; who enters it again is given the node that has it;
 *  - references are those of the sequences, and a node without any stays until it is dropped;
 *  - what is dropped is idle, has nobody behind it and goes before all that begins as it does;
 *  - no node is lost: count, idle ones by tier, moving and shared ones are the model's.
 *
 * DAKD_TEST_SEED chooses the run.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "config/check.h"
#include "engine/prefix.h"
#include "tests/test_random.h"

enum { NODES = 64, SEQS = 10, PAGES = 6, LEN = PAGES * KN_PAGE_TOKENS, ROUNDS = 60, OPS = 4000 };

/* The model's own: by node number. */
struct known {
    bool made, entered, moving;
    int32_t refs, depth, salt_length;
    int32_t tokens[LEN]; /* of an entered one: all from the first to its last */
    kn_page page;
};

struct seq {
    bool runs;
    int32_t salt_length, entered, count; /* nodes that are entered, and all */
    int32_t tokens[LEN];
    int32_t nodes[PAGES];
};

static struct known known[NODES];
static struct seq seqs[SEQS];
static struct eng_prefix *tree;
static int32_t made;
static uint32_t page_next;
static uint64_t finds, tails, again, drops, hits;

static const char salts[] = "salt";

static int32_t below(int32_t n)
{
    return (int32_t)(test_random() % (uint64_t)n);
}

static struct eng_prefix_key key_of(const struct seq *q, int32_t count)
{
    return (struct eng_prefix_key){
        .salt = salts, .salt_length = q->salt_length, .tokens = q->tokens, .count = count};
}

/* --- the model -------------------------------------------------------------------------------- */

static int32_t same_tokens(const int32_t *a, const int32_t *b, int32_t count)
{
    int32_t i = 0;
    while (i < count && a[i] == b[i]) i++;
    return i;
}

/* Tokens of the key that entered nodes hold, and the longest of them that are whole pages. */
static void longest(const struct seq *q, int32_t count, int32_t *pages, int32_t *tokens)
{
    *pages = *tokens = 0;
    for (int i = 0; i < NODES; i++) {
        const struct known *k = &known[i];
        if (!k->made || !k->entered || k->salt_length != q->salt_length) continue;
        const int32_t end = (k->depth + 1) * KN_PAGE_TOKENS;
        const int32_t same = same_tokens(q->tokens, k->tokens, end < count ? end : count);
        if (same > *tokens) *tokens = same;
        if (same == end && k->depth + 1 > *pages) *pages = k->depth + 1;
    }
}

static bool begins_as(const struct known *k, const struct known *other)
{
    const int32_t end = (other->depth + 1) * KN_PAGE_TOKENS;
    return k->entered && k->depth > other->depth && k->salt_length == other->salt_length &&
           same_tokens(k->tokens, other->tokens, end) == end;
}

static void compare(void)
{
    int32_t count = 0, moving = 0, spare = 0, idle[KN_TIER_MAX] = {0};
    int64_t shared = 0;
    for (int i = 0; i < NODES; i++) {
        const struct known *k = &known[i];
        if (!k->made) continue;
        count++;
        moving += k->moving;
        spare += k->refs == 0;
        shared += k->refs > 1 ? k->refs - 1 : 0;
        if (k->entered && k->refs == 0 && !k->moving) idle[kn_page_tier(k->page)]++;
        assert_int_equal(eng_prefix_refs(tree, i), k->refs);
        assert_int_equal(eng_prefix_page(tree, i), k->page);
        assert_int_equal(eng_prefix_depth(tree, i), k->depth);
        assert_int_equal(eng_prefix_is_entered(tree, i), k->entered);
        assert_int_equal(eng_prefix_is_moving(tree, i), k->moving);
    }
    assert_int_equal(count, made);
    assert_int_equal(eng_prefix_count(tree), count);
    assert_int_equal(eng_prefix_moving(tree), moving);
    assert_int_equal(eng_prefix_spare(tree), spare);
    assert_int_equal(eng_prefix_shared(tree), shared);
    for (int t = 0; t < KN_TIER_MAX; t++) assert_int_equal(eng_prefix_idle(tree, t), idle[t]);
    eng_prefix_check(tree);
}

/* --- operations ------------------------------------------------------------------------------- */

static kn_page new_page(void)
{
    return kn_page_make((unsigned)below(3), page_next++ & 0xFFFF);
}

/* A beginning of another's, mostly, and then anything; few tokens, so that much is alike. */
static void write_tokens(struct seq *q)
{
    const struct seq *as = &seqs[below(SEQS)];
    int32_t same = below(LEN + 1);
    if (below(3) == 0) same = same / KN_PAGE_TOKENS * KN_PAGE_TOKENS;
    q->salt_length = below(4) ? as->salt_length : below(3);
    for (int32_t t = 0; t < LEN; t++)
        q->tokens[t] = t < same ? as->tokens[t] : below(20) ? 1 : below(3);
}

static void begin(struct seq *q)
{
    if (below(5) || q->count == 0) write_tokens(q);
    const int32_t count = below(LEN + 1);
    const struct eng_prefix_key key = key_of(q, count);
    const struct eng_prefix_match m = eng_prefix_find(tree, &key);
    int32_t pages, tokens;
    longest(q, count, &pages, &tokens);
    assert_int_equal(m.page_count, pages);
    assert_int_equal(m.tail_count, tokens - pages * KN_PAGE_TOKENS);
    assert_int_equal(m.tail == ENG_NODE_NONE, m.tail_count == 0);
    if (m.tail != ENG_NODE_NONE)
        assert_true(known[m.tail].depth == pages &&
                    same_tokens(known[m.tail].tokens, q->tokens, LEN) >= tokens);
    finds++;
    hits += m.page_count > 0;
    tails += m.tail_count > 0;
    if (m.node != ENG_NODE_NONE) eng_prefix_take(tree, m.node);
    q->runs = true;
    q->count = q->entered = pages;
    int32_t node = m.node;
    for (int32_t i = pages - 1; i >= 0; i--, node = eng_prefix_parent(tree, node)) {
        assert_int_equal(known[node].depth, i);
        q->nodes[i] = node;
        known[node].refs++;
    }
    assert_int_equal(node, ENG_NODE_NONE);
}

static void grow(struct seq *q)
{
    if (q->count == PAGES || made == NODES) return;
    const kn_page page = new_page();
    const int32_t node = eng_prefix_make(tree, page, q->count);
    assert_false(known[node].made);
    known[node] = (struct known){.made = true, .refs = 1, .depth = q->count, .page = page};
    q->nodes[q->count++] = node;
    made++;
}

static void give(int32_t node)
{
    struct known *k = &known[node];
    const bool gone = eng_prefix_give(tree, node);
    k->refs--;
    assert_int_equal(gone, !k->entered && k->refs == 0);
    if (!gone || k->moving) return;
    k->made = false;
    made--;
}

static void enter(struct seq *q)
{
    if (q->entered == q->count) return;
    const int32_t i = q->entered++, node = q->nodes[i];
    const int32_t end = (i + 1) * KN_PAGE_TOKENS;
    const struct eng_prefix_key key = key_of(q, end);
    int32_t pages, tokens;
    longest(q, end, &pages, &tokens);
    const int32_t there = eng_prefix_enter(tree, node, i ? q->nodes[i - 1] : ENG_NODE_NONE, &key);
    assert_int_equal(there != node, pages == i + 1);
    if (there == node) {
        known[node].entered = true;
        known[node].salt_length = q->salt_length;
        memcpy(known[node].tokens, q->tokens, (size_t)end * sizeof *q->tokens);
        return;
    }
    again++;
    assert_int_equal(same_tokens(known[there].tokens, q->tokens, end), end);
    known[there].refs++;
    q->nodes[i] = there;
    give(node);
}

static void end(struct seq *q)
{
    while (q->count > 0) give(q->nodes[--q->count]);
    q->runs = false;
}

static void move(int32_t node)
{
    struct known *k = &known[node];
    if (!k->made) return;
    if (!k->moving) {
        eng_prefix_move(tree, node);
        k->moving = true;
        return;
    }
    if (below(2)) eng_prefix_set_page(tree, node, k->page = new_page());
    const bool gone = eng_prefix_moved(tree, node);
    assert_int_equal(gone, !k->entered && k->refs == 0);
    k->moving = false;
    if (!gone) return;
    k->made = false;
    made--;
}

static void drop(bool far)
{
    const int32_t worst = eng_prefix_worst(tree, far);
    int32_t idle = 0;
    for (int t = far; t < (far ? KN_TIER_MAX : 1); t++) idle += eng_prefix_idle(tree, t);
    assert_int_equal(worst == ENG_NODE_NONE, idle == 0);
    if (worst == ENG_NODE_NONE) return;
    assert_int_equal(kn_page_tier(known[worst].page) > 0, far);
    assert_true(known[worst].refs == 0 && known[worst].entered && !known[worst].moving);
    const int32_t leaf = eng_prefix_leaf(tree, worst);
    assert_true(leaf == worst || begins_as(&known[leaf], &known[worst]));
    assert_int_equal(known[leaf].refs, 0);
    for (int i = 0; i < NODES; i++) {
        if (!known[i].made || !known[i].entered) continue;
        assert_false(begins_as(&known[i], &known[leaf])); /* nobody behind it */
        if (known[i].refs == 0 && begins_as(&known[leaf], &known[i]))
            assert_false(eng_prefix_is_worse(tree, i, leaf));
    }
    if (known[leaf].moving) return;
    eng_prefix_drop(tree, leaf);
    known[leaf].made = false;
    made--;
    drops++;
}

static void operate(void)
{
    struct seq *q = &seqs[below(SEQS)];
    const int32_t what = below(100);
    if (made == NODES || what < 8) drop(below(2));
    else if (what < 30) move(below(NODES));
    else if (!q->runs) begin(q);
    else if (what < 45) end(q);
    else if (what < 75) grow(q);
    else enter(q);
}

static void random_operations(void **state)
{
    (void)state;
    test_seed();
    for (int round = 0; round < ROUNDS; round++) {
        assert_int_equal(eng_prefix_open(NODES, &tree), ST_OK);
        memset(known, 0, sizeof known);
        memset(seqs, 0, sizeof seqs);
        made = 0;
        for (int op = 0; op < OPS; op++) {
            operate();
            compare();
        }
        for (int i = 0; i < SEQS; i++)
            if (seqs[i].runs) end(&seqs[i]);
        for (int i = 0; i < NODES; i++)
            if (known[i].made && known[i].moving) move(i);
        while (made > 0) { /* every page can be had */
            const int32_t before = made;
            drop(false);
            drop(true);
            assert_true(made < before);
        }
        compare();
        eng_prefix_close(tree);
    }
    printf("%llu matches looked for, %llu with whole pages, %llu with a tail; %llu entered again, "
           "%llu dropped\n",
           (unsigned long long)finds, (unsigned long long)hits, (unsigned long long)tails,
           (unsigned long long)again, (unsigned long long)drops);
    assert_true(hits > 1000 && tails > 1000 && again > 1000 && drops > 1000);
}

/* Who computed two pages enters the second behind a page of another's, made after it, and it is
 * found once when so many pages were made that its hit counts, and the younger one's not yet. */
static void pages_entered_behind_a_younger_one(void **state)
{
    (void)state;
    enum { PAGES_ALL = 4 * 64 }; /* a hit counts where none was for four pages */
    const int32_t tokens[2 * KN_PAGE_TOKENS] = {0};
    const struct eng_prefix_key first = {.tokens = tokens, .count = KN_PAGE_TOKENS},
                                both = {.tokens = tokens, .count = 2 * KN_PAGE_TOKENS};
    assert_int_equal(eng_prefix_open(PAGES_ALL, &tree), ST_OK);
    int32_t own[2];
    for (int32_t i = 0; i < 2; i++) own[i] = eng_prefix_make(tree, new_page(), i);
    const int32_t other = eng_prefix_make(tree, new_page(), 0);
    assert_int_equal(eng_prefix_enter(tree, other, ENG_NODE_NONE, &first), other);
    assert_int_equal(eng_prefix_enter(tree, own[0], ENG_NODE_NONE, &first), other);
    assert_true(eng_prefix_give(tree, own[0]));
    assert_int_equal(eng_prefix_enter(tree, own[1], other, &both), own[1]);
    for (int32_t i = 0; i < 3; i++) (void)eng_prefix_make(tree, new_page(), 0);
    eng_prefix_take(tree, own[1]);
    eng_prefix_check(tree);
    eng_prefix_close(tree);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(random_operations),
                                       cmocka_unit_test(pages_entered_behind_a_younger_one)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
