/*
 * prefix.c - see prefix.h.
 *
 * Nodes and roots are numbers in arrays of open's size.  A node's parent is a node, or ~root, or
 * UNENTERED.  Siblings are a list that begins at the parent, the last entered first.  An entered
 * node is on the chain of its hash; an idle one that is not moving is in the queue of its class and
 * tier, in the order in which nodes fell idle: sequences give back their last pages first, so no
 * parent stands before its children.  (What comes back from a move is queued last, whenever it was
 * used.  So the least rate of all may stand behind another; nobody relies on more than its being
 * low, and who drops asks for a leaf.)
 *
 * Time goes by with the pages that are made.  A hit counts where none was counted in the last
 * total / HIT_PARTS of it.  A parent is hit whenever a child is, and counts from before it, so it
 * has no fewer hits: the largest number of points with a given distance does not fall when points
 * are added.  (A child may have been made before its parent, by a sequence that gave its own page
 * up for that one; then it counts from where its parent does.)
 */
#include "engine/prefix.h"

#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "config/random.h"

#define UNENTERED INT32_MIN
#define HIT_PARTS 64

struct node {
    kn_page page;
    int32_t depth, refs;
    int32_t parent, child, sibling, sibling_before;
    int32_t chain;                    /* next of the same bucket; of the free ones, next free */
    int32_t queue_next, queue_before; /* where queued */
    int32_t hits;
    uint64_t hit_at, used_at; /* hit_at: when the last counted one was */
    bool made, moving;
};

struct root {
    int32_t child;
    int32_t chain; /* as a node's */
    int32_t salt_length;
    char salt[ENG_CACHE_SALT_MAX];
};

struct queue {
    int32_t head, tail;
};

struct eng_prefix {
    int32_t page_max;
    struct node *nodes;   /* owned, [page_max] */
    int32_t *tokens;      /* owned, [page_max][64] */
    struct root *roots;   /* owned, [page_max] */
    int32_t *node_bucket; /* owned, [bucket_mask + 1] */
    int32_t *root_bucket; /* owned, [bucket_mask + 1] */
    uint32_t bucket_mask;
    int32_t node_free, root_free; /* heads of lists by chain */
    struct queue queue[2][ENG_PREFIX_CLASSES];
    int32_t idle[KN_TIER_MAX]; /* queued */
    int32_t made_count, spare;
    int64_t shared;
    uint64_t now; /* pages made */
};

/* --- opening, closing ------------------------------------------------------------------------- */

enum status eng_prefix_open(int32_t page_max, struct eng_prefix **out)
{
    CHECK(page_max >= 1);
    *out = NULL;
    struct eng_prefix *p = calloc(1, sizeof *p);
    if (!p) return ST_NOMEM;
    const size_t n = (size_t)page_max;
    uint32_t buckets = 1;
    while (buckets < (uint32_t)page_max) buckets *= 2;
    p->page_max = page_max;
    p->bucket_mask = buckets - 1;
    p->nodes = calloc(n, sizeof *p->nodes);
    p->tokens = malloc(n * KN_PAGE_TOKENS * sizeof *p->tokens);
    p->roots = calloc(n, sizeof *p->roots);
    p->node_bucket = malloc(buckets * sizeof *p->node_bucket);
    p->root_bucket = malloc(buckets * sizeof *p->root_bucket);
    if (!p->nodes || !p->tokens || !p->roots || !p->node_bucket || !p->root_bucket) {
        eng_prefix_close(p);
        return ST_NOMEM;
    }
    for (uint32_t i = 0; i < buckets; i++) p->node_bucket[i] = p->root_bucket[i] = ENG_NODE_NONE;
    for (int32_t i = 0; i < page_max; i++)
        p->nodes[i].chain = p->roots[i].chain = i + 1 < page_max ? i + 1 : ENG_NODE_NONE;
    for (int far = 0; far < 2; far++)
        for (int c = 0; c < ENG_PREFIX_CLASSES; c++)
            p->queue[far][c] = (struct queue){ENG_NODE_NONE, ENG_NODE_NONE};
    *out = p;
    return ST_OK;
}

void eng_prefix_close(struct eng_prefix *p)
{
    if (!p) return;
    free(p->root_bucket);
    free(p->node_bucket);
    free(p->roots);
    free(p->tokens);
    free(p->nodes);
    free(p);
}

static struct node *node_at(const struct eng_prefix *p, int32_t node)
{
    CHECK(node >= 0 && node < p->page_max && p->nodes[node].made);
    return &p->nodes[node];
}

static int32_t *tokens_of(const struct eng_prefix *p, int32_t node)
{
    return p->tokens + (size_t)node * KN_PAGE_TOKENS;
}

/* --- queues ----------------------------------------------------------------------------------- */

static int class_of(const struct node *n)
{
    int class = 0;
    while (class + 1 < ENG_PREFIX_CLASSES && 1 + n->hits >= 2 << class) class ++;
    return class;
}

static bool is_far(const struct node *n)
{
    return kn_page_tier(n->page) > 0;
}

static bool is_queued(const struct node *n)
{
    return n->parent != UNENTERED && n->refs == 0 && !n->moving;
}

static void enqueue(struct eng_prefix *p, int32_t node)
{
    struct node *n = &p->nodes[node];
    struct queue *q = &p->queue[is_far(n)][class_of(n)];
    n->queue_before = q->tail;
    n->queue_next = ENG_NODE_NONE;
    if (q->tail == ENG_NODE_NONE) q->head = node;
    else p->nodes[q->tail].queue_next = node;
    q->tail = node;
    p->idle[kn_page_tier(n->page)]++;
}

static void dequeue(struct eng_prefix *p, int32_t node)
{
    struct node *n = &p->nodes[node];
    struct queue *q = &p->queue[is_far(n)][class_of(n)];
    if (n->queue_before == ENG_NODE_NONE) q->head = n->queue_next;
    else p->nodes[n->queue_before].queue_next = n->queue_next;
    if (n->queue_next == ENG_NODE_NONE) q->tail = n->queue_before;
    else p->nodes[n->queue_next].queue_before = n->queue_before;
    p->idle[kn_page_tier(n->page)]--;
}

/* --- keys ------------------------------------------------------------------------------------- */

static int32_t *bucket_of(const struct eng_prefix *p, int32_t parent, const int32_t *tokens)
{
    uint64_t h = (uint32_t)parent;
    for (int i = 0; i < KN_PAGE_TOKENS; i += 2)
        h = random_mix(h + ((uint64_t)(uint32_t)tokens[i] << 32 | (uint32_t)tokens[i + 1]));
    return &p->node_bucket[h & p->bucket_mask];
}

static int32_t *root_bucket_of(const struct eng_prefix *p, const struct eng_prefix_key *key)
{
    uint64_t h = (uint64_t)key->salt_length;
    for (int32_t i = 0; i < key->salt_length; i++) h = random_mix(h + (uint8_t)key->salt[i]);
    return &p->root_bucket[h & p->bucket_mask];
}

static int32_t find_root(const struct eng_prefix *p, const struct eng_prefix_key *key)
{
    const size_t length = (size_t)key->salt_length;
    int32_t i = *root_bucket_of(p, key);
    while (i != ENG_NODE_NONE && !(p->roots[i].salt_length == key->salt_length &&
                                   (!length || !memcmp(p->roots[i].salt, key->salt, length))))
        i = p->roots[i].chain;
    return i;
}

static int32_t find_child(const struct eng_prefix *p, int32_t parent, const int32_t *tokens)
{
    int32_t i = *bucket_of(p, parent, tokens);
    while (i != ENG_NODE_NONE &&
           !(p->nodes[i].parent == parent &&
             !memcmp(tokens_of(p, i), tokens, KN_PAGE_TOKENS * sizeof *tokens)))
        i = p->nodes[i].chain;
    return i;
}

static int32_t *children_of(struct eng_prefix *p, int32_t parent)
{
    return parent < 0 ? &p->roots[~parent].child : &p->nodes[parent].child;
}

static int32_t first_child(const struct eng_prefix *p, int32_t parent)
{
    return parent < 0 ? p->roots[~parent].child : p->nodes[parent].child;
}

/* The child that shares the most of its first tokens with those that come next. */
static void find_tail(const struct eng_prefix *p, int32_t parent, const int32_t *tokens,
                      int32_t count, struct eng_prefix_match *m)
{
    int32_t looks = 0;
    if (count >= KN_PAGE_TOKENS) count = KN_PAGE_TOKENS - 1;
    for (int32_t i = first_child(p, parent); i != ENG_NODE_NONE && looks < ENG_PREFIX_LOOKS;
         i = p->nodes[i].sibling, looks++) {
        const int32_t *other = tokens_of(p, i);
        int32_t same = 0;
        while (same < count && other[same] == tokens[same]) same++;
        if (same <= m->tail_count) continue;
        m->tail = i;
        m->tail_count = same;
    }
}

struct eng_prefix_match eng_prefix_find(const struct eng_prefix *p,
                                        const struct eng_prefix_key *key)
{
    struct eng_prefix_match m = {.node = ENG_NODE_NONE, .tail = ENG_NODE_NONE};
    const int32_t root = find_root(p, key);
    if (root == ENG_NODE_NONE) return m;
    const int32_t *tokens = key->tokens;
    int32_t left = key->count, parent = ~root;
    for (; left >= KN_PAGE_TOKENS; left -= KN_PAGE_TOKENS, tokens += KN_PAGE_TOKENS) {
        const int32_t child = find_child(p, parent, tokens);
        if (child == ENG_NODE_NONE) break;
        m.node = parent = child;
        m.page_count++;
    }
    find_tail(p, parent, tokens, left, &m);
    return m;
}

/* --- entering and leaving the tree ------------------------------------------------------------ */

static int32_t make_root(struct eng_prefix *p, const struct eng_prefix_key *key)
{
    int32_t *bucket = root_bucket_of(p, key);
    const int32_t root = p->root_free;
    CHECK(root != ENG_NODE_NONE); /* each has a child, and a child a page */
    struct root *r = &p->roots[root];
    p->root_free = r->chain;
    *r = (struct root){.child = ENG_NODE_NONE, .chain = *bucket, .salt_length = key->salt_length};
    if (key->salt_length) memcpy(r->salt, key->salt, (size_t)key->salt_length);
    *bucket = root;
    return root;
}

static void free_root(struct eng_prefix *p, int32_t root)
{
    struct root *r = &p->roots[root];
    const struct eng_prefix_key key = {.salt = r->salt, .salt_length = r->salt_length};
    int32_t *at = root_bucket_of(p, &key);
    while (*at != root) at = &p->roots[*at].chain;
    *at = r->chain;
    r->chain = p->root_free;
    p->root_free = root;
}

static void free_node(struct eng_prefix *p, int32_t node)
{
    p->nodes[node].made = false;
    p->made_count--;
    p->nodes[node].chain = p->node_free;
    p->node_free = node;
}

int32_t eng_prefix_make(struct eng_prefix *p, kn_page page, int32_t depth)
{
    const int32_t node = p->node_free;
    CHECK(node != ENG_NODE_NONE && depth >= 0);
    p->node_free = p->nodes[node].chain;
    p->made_count++;
    p->now++;
    p->nodes[node] = (struct node){.page = page,
                                   .depth = depth,
                                   .refs = 1,
                                   .parent = UNENTERED,
                                   .child = ENG_NODE_NONE,
                                   .hit_at = p->now,
                                   .used_at = p->now,
                                   .made = true};
    return node;
}

int32_t eng_prefix_enter(struct eng_prefix *p, int32_t node, int32_t parent,
                         const struct eng_prefix_key *key)
{
    struct node *n = node_at(p, node);
    const int32_t *tokens = key->tokens + (size_t)n->depth * KN_PAGE_TOKENS;
    CHECK(n->parent == UNENTERED && n->refs == 1 && key->salt_length <= ENG_CACHE_SALT_MAX);
    CHECK(key->count == (n->depth + 1) * KN_PAGE_TOKENS);
    CHECK(parent == ENG_NODE_NONE ? n->depth == 0 : node_at(p, parent)->depth == n->depth - 1);
    if (parent == ENG_NODE_NONE) {
        int32_t root = find_root(p, key);
        if (root == ENG_NODE_NONE) root = make_root(p, key);
        parent = ~root;
    } else CHECK(p->nodes[parent].parent != UNENTERED && p->nodes[parent].refs > 0);
    const int32_t there = find_child(p, parent, tokens);
    if (there != ENG_NODE_NONE) {
        struct node *other = &p->nodes[there];
        if (is_queued(other)) dequeue(p, there);
        p->spare -= other->refs == 0;
        p->shared += other->refs > 0;
        other->refs++;
        return there;
    }
    memcpy(tokens_of(p, node), tokens, KN_PAGE_TOKENS * sizeof *tokens);
    int32_t *bucket = bucket_of(p, parent, tokens), *first = children_of(p, parent);
    n->parent = parent;
    if (parent >= 0 && n->hit_at < p->nodes[parent].hit_at) n->hit_at = p->nodes[parent].hit_at;
    n->chain = *bucket;
    *bucket = node;
    n->sibling_before = ENG_NODE_NONE;
    n->sibling = *first;
    if (*first != ENG_NODE_NONE) p->nodes[*first].sibling_before = node;
    *first = node;
    return node;
}

void eng_prefix_drop(struct eng_prefix *p, int32_t node)
{
    struct node *n = node_at(p, node);
    CHECK(is_queued(n) && n->child == ENG_NODE_NONE);
    dequeue(p, node);
    p->spare--;
    int32_t *at = bucket_of(p, n->parent, tokens_of(p, node));
    while (*at != node) at = &p->nodes[*at].chain;
    *at = n->chain;
    if (n->sibling != ENG_NODE_NONE) p->nodes[n->sibling].sibling_before = n->sibling_before;
    if (n->sibling_before != ENG_NODE_NONE) p->nodes[n->sibling_before].sibling = n->sibling;
    else *children_of(p, n->parent) = n->sibling;
    if (n->parent < 0 && p->roots[~n->parent].child == ENG_NODE_NONE) free_root(p, ~n->parent);
    free_node(p, node);
}

/* --- references ------------------------------------------------------------------------------- */

static void hit(struct eng_prefix *p, struct node *n)
{
    if (p->now - n->hit_at < (uint64_t)p->page_max / HIT_PARTS) return;
    n->hit_at = p->now;
    if (n->hits < ENG_PREFIX_HITS_MAX) n->hits++;
}

void eng_prefix_take(struct eng_prefix *p, int32_t node)
{
    for (int32_t i = node; i >= 0; i = p->nodes[i].parent) {
        struct node *n = node_at(p, i);
        CHECK(n->parent != UNENTERED);
        if (is_queued(n)) dequeue(p, i);
        p->spare -= n->refs == 0;
        p->shared += n->refs > 0;
        n->refs++;
        hit(p, n);
    }
}

bool eng_prefix_give(struct eng_prefix *p, int32_t node)
{
    struct node *n = node_at(p, node);
    CHECK(n->refs > 0);
    if (--n->refs > 0) {
        p->shared--;
        return false;
    }
    n->used_at = p->now;
    const bool private = n->parent == UNENTERED;
    if (private && !n->moving) {
        free_node(p, node);
        return true;
    }
    p->spare++;
    if (!private && !n->moving) enqueue(p, node);
    return private;
}

/* --- pages ------------------------------------------------------------------------------------ */

kn_page eng_prefix_page(const struct eng_prefix *p, int32_t node)
{
    return node_at(p, node)->page;
}

int32_t eng_prefix_depth(const struct eng_prefix *p, int32_t node)
{
    return node_at(p, node)->depth;
}

int32_t eng_prefix_parent(const struct eng_prefix *p, int32_t node)
{
    const struct node *n = node_at(p, node);
    CHECK(n->parent != UNENTERED);
    return n->parent < 0 ? ENG_NODE_NONE : n->parent;
}

int32_t eng_prefix_refs(const struct eng_prefix *p, int32_t node)
{
    return node_at(p, node)->refs;
}

bool eng_prefix_is_entered(const struct eng_prefix *p, int32_t node)
{
    return node_at(p, node)->parent != UNENTERED;
}

const int32_t *eng_prefix_tokens(const struct eng_prefix *p, int32_t node)
{
    CHECK(eng_prefix_is_entered(p, node));
    return tokens_of(p, node);
}

bool eng_prefix_is_moving(const struct eng_prefix *p, int32_t node)
{
    return node_at(p, node)->moving;
}

void eng_prefix_set_page(struct eng_prefix *p, int32_t node, kn_page page)
{
    struct node *n = node_at(p, node);
    CHECK(!is_queued(n));
    n->page = page;
}

void eng_prefix_move(struct eng_prefix *p, int32_t node)
{
    struct node *n = node_at(p, node);
    CHECK(!n->moving);
    if (is_queued(n)) dequeue(p, node);
    n->moving = true;
}

bool eng_prefix_moved(struct eng_prefix *p, int32_t node)
{
    struct node *n = node_at(p, node);
    CHECK(n->moving);
    n->moving = false;
    if (n->refs > 0) return false;
    if (n->parent != UNENTERED) {
        enqueue(p, node);
        return false;
    }
    p->spare--;
    free_node(p, node);
    return true;
}

/* --- who goes --------------------------------------------------------------------------------- */

int32_t eng_prefix_idle(const struct eng_prefix *p, int tier)
{
    CHECK(tier >= 0 && tier < KN_TIER_MAX);
    return p->idle[tier];
}

int32_t eng_prefix_spare(const struct eng_prefix *p)
{
    return p->spare;
}

/* 2^class / age, exactly: ages are less than 2^58. */
bool eng_prefix_is_worse(const struct eng_prefix *p, int32_t a, int32_t b)
{
    const struct node *x = node_at(p, a), *y = node_at(p, b);
    return (p->now - x->used_at + 1) << class_of(y) > (p->now - y->used_at + 1) << class_of(x);
}

int32_t eng_prefix_worst(const struct eng_prefix *p, bool far)
{
    int32_t worst = ENG_NODE_NONE;
    for (int c = 0; c < ENG_PREFIX_CLASSES; c++) {
        const int32_t head = p->queue[far][c].head;
        if (head == ENG_NODE_NONE) continue;
        if (worst == ENG_NODE_NONE || eng_prefix_is_worse(p, head, worst)) worst = head;
    }
    return worst;
}

int32_t eng_prefix_leaf(const struct eng_prefix *p, int32_t node)
{
    CHECK(node_at(p, node)->refs == 0);
    while (p->nodes[node].child != ENG_NODE_NONE) node = p->nodes[node].child;
    return node;
}

/* --- looking in ------------------------------------------------------------------------------- */

static int32_t check_node(const struct eng_prefix *p, int32_t node)
{
    const struct node *n = node_at(p, node);
    CHECK(n->refs >= 0 && n->depth >= 0 && n->hit_at <= p->now && n->used_at <= p->now);
    if (n->parent == UNENTERED) {
        CHECK(n->child == ENG_NODE_NONE && (n->refs == 1 || (n->refs == 0 && n->moving)));
        return 0;
    }
    CHECK(find_child(p, n->parent, tokens_of(p, node)) == node); /* no other has its key */
    CHECK((n->parent < 0) == (n->depth == 0));
    if (n->parent >= 0) {
        const struct node *parent = node_at(p, n->parent);
        CHECK(parent->depth == n->depth - 1 && parent->parent != UNENTERED);
        CHECK(parent->refs >= n->refs && parent->hits >= n->hits);
        CHECK(parent->refs > 0 || parent->used_at >= n->used_at);
    }
    if (n->sibling_before == ENG_NODE_NONE) CHECK(first_child(p, n->parent) == node);
    else CHECK(node_at(p, n->sibling_before)->sibling == node);
    CHECK(n->sibling == ENG_NODE_NONE || node_at(p, n->sibling)->parent == n->parent);
    return is_queued(n);
}

static int32_t check_queue(const struct eng_prefix *p, bool far, int class)
{
    int32_t count = 0, before = ENG_NODE_NONE;
    for (int32_t i = p->queue[far][class].head; i != ENG_NODE_NONE; i = p->nodes[i].queue_next) {
        const struct node *n = node_at(p, i);
        CHECK(is_queued(n) && is_far(n) == far && class_of(n) == class);
        CHECK(n->queue_before == before && ++count <= p->page_max);
        before = i;
    }
    CHECK(p->queue[far][class].tail == before);
    return count;
}

int32_t eng_prefix_count(const struct eng_prefix *p)
{
    return p->made_count;
}

int64_t eng_prefix_shared(const struct eng_prefix *p)
{
    return p->shared;
}

int32_t eng_prefix_moving(const struct eng_prefix *p)
{
    int32_t count = 0;
    for (int32_t i = 0; i < p->page_max; i++) count += p->nodes[i].made && p->nodes[i].moving;
    return count;
}

void eng_prefix_check(const struct eng_prefix *p)
{
    int64_t shared = 0;
    int32_t made = 0, queued = 0, spare = 0, idle = 0, roots = 0, rooted = 0;
    for (int32_t i = 0; i < p->page_max; i++) {
        if (!p->nodes[i].made) continue;
        made++;
        queued += check_node(p, i);
        spare += p->nodes[i].refs == 0;
        shared += p->nodes[i].refs > 1 ? p->nodes[i].refs - 1 : 0;
    }
    CHECK(shared == p->shared && spare == p->spare && made == p->made_count);
    for (int32_t i = p->node_free; i != ENG_NODE_NONE; i = p->nodes[i].chain) {
        CHECK(!p->nodes[i].made && ++made <= p->page_max);
    }
    CHECK(made == p->page_max);
    for (int far = 0; far < 2; far++) {
        for (int c = 0; c < ENG_PREFIX_CLASSES; c++) {
            const int32_t count = check_queue(p, far, c);
            queued -= count;
            idle += count;
        }
    }
    CHECK(queued == 0);
    for (int t = 0; t < KN_TIER_MAX; t++) idle -= p->idle[t];
    CHECK(idle == 0);
    for (uint32_t b = 0; b <= p->bucket_mask; b++)
        for (int32_t i = p->root_bucket[b]; i != ENG_NODE_NONE; i = p->roots[i].chain, rooted++)
            CHECK(rooted < p->page_max && node_at(p, p->roots[i].child)->parent == ~i);
    for (int32_t i = p->root_free; i != ENG_NODE_NONE; i = p->roots[i].chain)
        CHECK(++roots <= p->page_max);
    CHECK(roots + rooted == p->page_max);
}
