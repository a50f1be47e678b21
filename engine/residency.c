/*
 * residency.c - where pages lie: those of running sequences, and those the prefix cache keeps.
 *
 * New tokens go to local pages alone.  When these run short, full pages leave for a remote tier,
 * where attention reads them in place: nobody stops running, and nothing is computed again as long
 * as any tier has room.  Full pages are never written again, so a copy may be made while steps read
 * the page.
 *
 *          take (local)            filled                 begin_move out
 *   free ---------------> written --------> full, local ------------------> leaving
 *                                              ^                                | over
 *                                              |  over                          v
 *                                          returning <--------------- full, behind the link
 *                                                     begin_move back
 *
 * A full page is a node (prefix.h), which may be in the tables of several sequences, or of none.
 * Until its move is over they name the place it is from, and both places are taken.  Then they name
 * the other, and the first is free: whoever reads it there does so in a step issued before, and
 * steps run in order (kernels.h says what kn_move_pages orders).
 *
 * Over.  The engine tells which moves the machine has made (eng_sched_moved).  A plan that cannot
 * do without their pages declares all moves begun so far over (join), and says so: its step waits
 * for them on the device, hence whatever it writes comes after.
 *
 * Who leaves.  First pages that are idle, which no step reads, those least likely to be found again
 * before others (prefix.h); a remote tier that is full has room where one of its own is less likely
 * still, which is dropped.  With nothing to be had behind the link idle pages are dropped
 * themselves, only when their room is needed and then at no cost: so they count as free.  Then full
 * pages of running sequences, whose order is offload/residency.h's to say.  Of a sequence it is the
 * oldest local page that it does not share, for a shared one would cross the link for each who
 * reads it; and of the others the youngest comes back.
 *
 * Never stuck.  There are at most as many running sequences as local pages.  One that needs a page
 * has only full ones, each of the others at most one that is not full, or not yet written: so when
 * no move is under way, and no local page is free or idle, one of them is full.  It can leave
 * unless every page of every tier is taken by running sequences, which is when sched.c preempts.
 *
 * Ahead of need.  A plan's step should not wait.  After each plan the local pages are counted that
 * the next steps need: of decodes, exactly those that fill their last page within so many steps; of
 * prompts, what the budget of so many steps lets them take.  What is missing leaves now, beside
 * this step.  How many steps ahead: the fewest in which the copy engine gets that many pages out.
 * Idle pages leave even before that, so that a prompt which nobody saw coming does not wait either.
 *
 * For the balance.  Where the shortest step has pages behind the link (off_residency_best), full
 * pages that steps read leave though local memory has room.
 *
 * Found behind the link.  A prompt that begins with pages there reads them in every chunk, and with
 * many tokens more than once, before it decodes and reads them in every step: 8,000 tokens of an 8B
 * model are a gigabyte, 19 ms over PCIe each time, or once if they are copied first; computing them
 * takes 200 ms.  So they are copied first, as far as local memory has room beside what those that
 * run need, and the sequence is in no plan until they are there; others run on meanwhile, into the
 * free pages of their next steps, and only the oldest sequence makes the step wait.  Idle pages
 * that are in the way leave, once: room that is on its way is waited for.  What there is no room
 * for is read in place.
 *
 * Back.  What is free beyond the need of 64 steps, in which every decode fills a page at most,
 * takes pages back, as long as steps read more behind the link than costs nothing.
 */
#include <stdlib.h>

#include "config/check.h"
#include "engine/sched_state.h"

#define AHEAD_MIN 2  /* steps: a plan's moves begin when the step before its own is over */
#define AHEAD_MAX 64 /* in which a decode fills a page at most */
#define STEP_WEIGHT 0.1

/* --- opening, closing ------------------------------------------------------------------------- */

enum status eng_residency_open(struct eng_sched *s, const struct eng_sched_config *config)
{
    struct eng_moves *m = &s->moves;
    const int32_t near = eng_pages_tier_total(s->pages, 0);
    const int64_t total = eng_pages_total(s->pages);
    CHECK(near >= 1);
    const bool tiered = total > near;
    if (!tiered && !config->prefix_cache) return ST_OK;
    s->in_place = tiered && config->kv_policy == ENG_KV_IN_PLACE;
    if (tiered) s->residency = config->residency;
    CHECK(!tiered || s->residency.page_bytes > 0);
    CHECK(!tiered || s->residency.link_bytes_per_s > 0);
    m->cap = (int32_t)total + 1; /* each holds a page beside its node's, but for one copy */
    /* A plan takes a local page once, or twice where an admission came to nothing or somebody was
     * preempted; then as many leave, or come back, as there are.  Beside those, a copy for each
     * sequence.  Where there were more, pages would wait for the next plan. */
    s->planned_moves_max = 4 * near + s->running_max;
    m->at = calloc((size_t)m->cap, sizeof *m->at);
    s->planned_moves = calloc((size_t)s->planned_moves_max, sizeof *s->planned_moves);
    if (m->at && s->planned_moves) return ST_OK;
    eng_residency_close(s);
    return ST_NOMEM;
}

void eng_residency_close(struct eng_sched *s)
{
    free(s->moves.at);
    free(s->planned_moves);
    s->moves.at = NULL;
    s->planned_moves = NULL;
}

/* --- moves ------------------------------------------------------------------------------------ */

static struct eng_move *move_at(const struct eng_moves *m, int32_t i)
{
    return &m->at[(m->first + i) % m->cap];
}

/* A page of its node is on its way, or no more: those who read it count it. */
static void count_readers(struct eng_sched *s, const struct eng_move *move, int32_t sign)
{
    const int32_t depth = eng_prefix_depth(s->prefix, move->node);
    const kn_page page = eng_prefix_page(s->prefix, move->node);
    int32_t left = eng_prefix_refs(s->prefix, move->node);
    for (struct eng_sched_seq *seq = s->running.head; seq && left > 0; seq = seq->next) {
        if (seq->page_count <= depth || seq->pages[depth] != page) continue;
        if (move->out) seq->leaving_count += sign;
        else seq->returning_count += sign;
        left--;
    }
}

static void push_move(struct eng_sched *s, struct eng_plan *plan, const struct eng_move *move)
{
    struct eng_moves *m = &s->moves;
    CHECK(m->count < m->cap && plan->move_count < s->planned_moves_max);
    *move_at(m, m->count++) = *move;
    plan->moves[plan->move_count++] = move->page;
}

/* Whether the plan has room for a move more, a copy for each sequence left aside. */
static bool has_room(const struct eng_sched *s, const struct eng_plan *plan)
{
    return plan->move_count < s->planned_moves_max - s->running_max;
}

static void begin_move(struct eng_sched *s, struct eng_plan *plan, int32_t node, kn_page to)
{
    struct eng_moves *m = &s->moves;
    const struct eng_move move = {.page = {eng_prefix_page(s->prefix, node), to},
                                  .node = node,
                                  .out = kn_page_tier(to) > 0,
                                  .spare = eng_prefix_refs(s->prefix, node) == 0};
    push_move(s, plan, &move);
    eng_prefix_move(s->prefix, node);
    count_readers(s, &move, 1);
    m->out_count += move.out;
    m->spare_out_count += move.out && move.spare;
    if (move.out) m->out++;
    else m->back++;
}

static void end_node_move(struct eng_sched *s, const struct eng_move *move)
{
    const int32_t node = move->node;
    CHECK(eng_prefix_page(s->prefix, node) == move->page.from);
    count_readers(s, move, -1);
    eng_reuse_place(s, node, move->page.to);
    eng_pages_give(s->pages, move->page.from);
    if (!eng_prefix_moved(s->prefix, node)) return;
    eng_reuse_forget(s, move->page.to);
    eng_pages_give(s->pages, move->page.to);
}

/* The oldest move is over. */
static void end_move(struct eng_sched *s)
{
    struct eng_moves *m = &s->moves;
    CHECK(m->count > 0);
    const struct eng_move move = *move_at(m, 0);
    m->out_count -= move.out;
    m->spare_out_count -= move.out && move.spare;
    m->first = (m->first + 1) % m->cap;
    m->count--;
    m->over++;
    if (move.node != ENG_NODE_NONE) end_node_move(s, &move);
}

void eng_sched_moved(struct eng_sched *s, uint64_t count)
{
    while (s->moves.over < count && s->moves.count > 0) end_move(s);
}

bool eng_residency_join(struct eng_sched *s, struct eng_plan *plan)
{
    if (s->moves.count == 0) return false;
    while (s->moves.count > 0) end_move(s);
    s->moves.waits += !plan->wait;
    plan->wait = true;
    plan->urgent_count = plan->move_count;
    return true;
}

void eng_residency_copy(struct eng_sched *s, struct eng_plan *plan, kn_page from, kn_page to)
{
    const struct eng_move copy = {.page = {from, to}, .node = ENG_NODE_NONE};
    CHECK(s->moves.count == 0);
    push_move(s, plan, &copy);
    end_move(s);
    plan->wait = true;
    plan->urgent_count = plan->move_count;
}

void eng_residency_shift(struct eng_sched *s, struct eng_plan *plan, struct eng_sched_seq *seq,
                         int32_t index, kn_page to)
{
    const kn_page from = seq->pages[index];
    const bool out = kn_page_tier(to) > 0;
    CHECK(eng_reuse_node(s, from) == ENG_NODE_NONE && out == (kn_page_tier(from) == 0));
    s->moves.waits += !plan->wait;
    eng_residency_copy(s, plan, from, to);
    seq->pages[index] = to;
    seq->far_count += out ? 1 : -1;
    eng_pages_give(s->pages, from);
    if (out) s->moves.out++;
    else s->moves.back++;
}

/* --- idle pages ------------------------------------------------------------------------------- */

/* A page behind the link: a free one, or one whose idle node is worth less than that of `leaving`,
 * hence none of those before it in the tree, whose leaf it might be.  ENG_NODE_NONE: a running
 * sequence's, before which those go that wait. */
static bool take_far(struct eng_sched *s, int32_t leaving, kn_page *to)
{
    while (!eng_pages_take_far(s->pages, to)) {
        const int32_t worst = eng_prefix_worst(s->prefix, true);
        if (worst == ENG_NODE_NONE) {
            if (leaving == ENG_NODE_NONE && eng_policy_drop(s)) continue;
            return false;
        }
        if (leaving != ENG_NODE_NONE && !eng_prefix_is_worse(s->prefix, worst, leaving))
            return false;
        const int32_t leaf = eng_prefix_leaf(s->prefix, worst);
        if (eng_prefix_is_moving(s->prefix, leaf)) return false;
        eng_reuse_drop(s, leaf);
    }
    return true;
}

/* One idle local page leaves; false where none is to be kept behind the link. */
static bool send_idle(struct eng_sched *s, struct eng_plan *plan)
{
    const int32_t worst = eng_prefix_worst(s->prefix, false);
    kn_page to;
    if (!s->in_place || worst == ENG_NODE_NONE || !has_room(s, plan)) return false;
    if (!take_far(s, worst, &to)) return false;
    begin_move(s, plan, worst, to);
    s->counts.sent++;
    return true;
}

/* One idle page, of local ones the least worth or one behind it, is free from now on. */
static bool drop_idle(struct eng_sched *s)
{
    const int32_t worst = eng_prefix_worst(s->prefix, false);
    if (worst == ENG_NODE_NONE) return false;
    const int32_t leaf = eng_prefix_leaf(s->prefix, worst);
    if (eng_prefix_is_moving(s->prefix, leaf)) return false;
    eng_reuse_drop(s, leaf);
    return true;
}

/* --- who goes --------------------------------------------------------------------------------- */

/* A decode is in every step; of prompts the oldest. */
static bool is_read_next(const struct eng_sched *s, const struct eng_sched_seq *seq)
{
    return seq->token_count - seq->kv_count == 1 || seq == s->running.head;
}

static struct off_residency_seq residency_of(const struct eng_sched *s,
                                             const struct eng_sched_seq *seq)
{
    const int32_t far = seq->far_count - seq->returning_count + seq->leaving_count;
    return (struct off_residency_seq){
        .near = seq->kv_count / KN_PAGE_TOKENS - far, .far = far, .read = is_read_next(s, seq)};
}

/* The oldest of a sequence's local full pages that are not on their way, if it can be one that no
 * other reads. */
static int32_t node_to_leave(const struct eng_sched *s, const struct eng_sched_seq *seq)
{
    int32_t shared = ENG_NODE_NONE;
    for (int32_t i = 0; i < seq->kv_count / KN_PAGE_TOKENS; i++) {
        const int32_t node = eng_reuse_node(s, seq->pages[i]);
        if (kn_page_tier(seq->pages[i]) > 0 || eng_prefix_is_moving(s->prefix, node)) continue;
        if (eng_prefix_refs(s->prefix, node) == 1) return node;
        if (shared == ENG_NODE_NONE) shared = node;
    }
    return shared;
}

/* One full page of a running sequence leaves; false where none can.  For the balance it is one that
 * the next step reads, and once alone. */
static bool move_out(struct eng_sched *s, struct eng_plan *plan, bool for_balance)
{
    struct eng_sched_seq *best = NULL;
    struct off_residency_seq best_at = {0};
    kn_page to;
    for (struct eng_sched_seq *seq = s->running.head; seq; seq = seq->next) {
        const struct off_residency_seq at = residency_of(s, seq);
        if (at.near == 0 || seq->returning_count || (for_balance && !at.read)) continue;
        if (best && !off_residency_leaves(&at, &best_at)) continue;
        best = seq;
        best_at = at;
    }
    if (!best || !has_room(s, plan)) return false;
    const int32_t node = node_to_leave(s, best);
    if (for_balance && eng_prefix_refs(s->prefix, node) > 1) return false;
    if (!take_far(s, ENG_NODE_NONE, &to)) return false;
    begin_move(s, plan, node, to);
    return true;
}

/* One page comes back to a local page that is free; false where none can. */
static bool move_back(struct eng_sched *s, struct eng_plan *plan)
{
    struct eng_sched_seq *best = NULL;
    struct off_residency_seq best_at = {0};
    kn_page to;
    for (struct eng_sched_seq *seq = s->running.head; seq; seq = seq->next) {
        const struct off_residency_seq at = residency_of(s, seq);
        if (at.far == 0 || seq->leaving_count || !at.read) continue;
        if (best && !off_residency_returns(&at, &best_at)) continue;
        best = seq;
        best_at = at;
    }
    if (!best || !has_room(s, plan) || !eng_pages_take(s->pages, 0, &to)) return false;
    int32_t i = best->kv_count / KN_PAGE_TOKENS - 1, node;
    do node = eng_reuse_node(s, best->pages[i]);
    while ((kn_page_tier(best->pages[i]) == 0 || eng_prefix_is_moving(s->prefix, node)) && i-- > 0);
    CHECK(i >= 0);
    begin_move(s, plan, node, to);
    return true;
}

/* --- taking pages ----------------------------------------------------------------------------- */

int64_t eng_residency_room(const struct eng_sched *s)
{
    const int64_t room = (int64_t)eng_pages_tier_free(s->pages, 0) + eng_prefix_spare(s->prefix);
    if (!s->in_place) return room;
    return room + eng_pages_free(s->pages) - eng_pages_tier_free(s->pages, 0) + s->moves.count;
}

bool eng_residency_make_room(struct eng_sched *s, struct eng_plan *plan)
{
    while (eng_pages_tier_free(s->pages, 0) == 0) {
        if (eng_residency_join(s, plan) || send_idle(s, plan) || drop_idle(s)) continue;
        if (!s->in_place || !move_out(s, plan, false)) return false;
    }
    return true;
}

int32_t eng_residency_take(struct eng_sched *s, struct eng_plan *plan, struct eng_sched_seq *seq,
                           int32_t want)
{
    int32_t room = seq->page_count * KN_PAGE_TOKENS - seq->kv_count;
    while (room < want && eng_residency_make_room(s, plan)) {
        CHECK(eng_pages_take(s->pages, 0, &seq->pages[seq->page_count]));
        seq->page_count++;
        room += KN_PAGE_TOKENS;
    }
    return room < want ? room : want;
}

/* --- KV that is given ------------------------------------------------------------------------- */

/* One full page of a running sequence lies behind the link from now on: as the others leave, but
 * with nothing copied.  False where none can. */
static bool put_out(struct eng_sched *s)
{
    struct eng_sched_seq *best = NULL;
    struct off_residency_seq best_at = {0};
    kn_page to;
    for (struct eng_sched_seq *seq = s->running.tail; seq; seq = seq->prev) {
        struct off_residency_seq at = residency_of(s, seq);
        at.read = true;
        if (at.near == 0 || (best && !off_residency_leaves(&at, &best_at))) continue;
        best = seq;
        best_at = at;
    }
    if (!best || !take_far(s, ENG_NODE_NONE, &to)) return false;
    const int32_t node = node_to_leave(s, best);
    const kn_page from = eng_prefix_page(s->prefix, node);
    eng_reuse_place(s, node, to);
    eng_pages_give(s->pages, from);
    return true;
}

int32_t eng_residency_take_given(struct eng_sched *s, struct eng_plan *plan,
                                 struct eng_sched_seq *seq, int32_t want)
{
    const int32_t given = seq->given_count, count = eng_sched_pages_for(given + want);
    (void)eng_residency_join(s, plan); /* so that no page is on its way */
    while (seq->page_count < count && (eng_pages_tier_free(s->pages, 0) > 0 || put_out(s))) {
        const int32_t before = seq->kv_count;
        CHECK(eng_pages_take(s->pages, 0, &seq->pages[seq->page_count]));
        seq->page_count++;
        seq->kv_count += KN_PAGE_TOKENS;
        if (seq->kv_count > given) seq->kv_count = given;
        eng_reuse_fill(s, seq, before);
    }
    const int32_t room = seq->page_count * KN_PAGE_TOKENS - given;
    if (room > 0) seq->given_count = 0;
    else eng_reuse_give(s, seq);
    if (room <= 0) return 0;
    return room < want ? room : want;
}

/* --- ahead of need ---------------------------------------------------------------------------- */

/* Local pages that the next `steps` steps take; lack: what sequences lack for the tokens they have.
 */
static int64_t need_of(const struct eng_sched *s, int64_t lack, int32_t steps)
{
    const int64_t budget = (int64_t)eng_sched_pages_for(s->tokens_step_max) * steps;
    int64_t need = lack < budget ? lack : budget;
    for (const struct eng_sched_seq *seq = s->running.head; seq; seq = seq->next)
        need += seq->page_count * KN_PAGE_TOKENS < seq->token_count + steps;
    return need;
}

/* Idle pages make room for the first step of a prompt that may come, as many beside this step as it
 * takes no longer for. */
static void keep_room(struct eng_sched *s, struct eng_plan *plan)
{
    int64_t want = eng_pages_tier_total(s->pages, 0) / 8;
    if (want > eng_sched_pages_for(s->tokens_step_max))
        want = eng_sched_pages_for(s->tokens_step_max);
    int64_t count = want - eng_pages_tier_free(s->pages, 0) - s->moves.out_count;
    const int64_t most = off_residency_moves(&s->residency, s->step_s);
    if (count > most) count = most;
    while (count-- > 0 && send_idle(s, plan)) {
    }
}

static void send_ahead(struct eng_sched *s, struct eng_plan *plan, int64_t lack)
{
    const int64_t soon = eng_pages_tier_free(s->pages, 0) + s->moves.out_count;
    int64_t need = 0;
    for (int32_t steps = AHEAD_MIN; steps <= AHEAD_MAX; steps *= 2) {
        need = need_of(s, lack, steps);
        if (need - soon <= off_residency_moves(&s->residency, (steps - 1) * s->step_s)) break;
    }
    /* However small the local memory, half of it stays to be read. */
    const int32_t half = eng_pages_tier_total(s->pages, 0) / 2;
    if (need > half) need = half;
    int64_t missing = need - soon;
    while (missing > 0 && send_idle(s, plan)) missing--;
    missing -= eng_prefix_idle(s->prefix, 0); /* dropped when they are wanted */
    while (missing > 0 && move_out(s, plan, false)) missing--;
    keep_room(s, plan);
}

/* Pages that the next step reads, as they will lie when moves are over. */
static void count_read(const struct eng_sched *s, int64_t *near, int64_t *far)
{
    *near = *far = 0;
    for (const struct eng_sched_seq *seq = s->running.head; seq; seq = seq->next) {
        if (!is_read_next(s, seq)) continue;
        const int32_t behind = seq->far_count - seq->returning_count + seq->leaving_count;
        *far += behind;
        *near += seq->page_count - behind;
    }
}

static void balance(struct eng_sched *s, struct eng_plan *plan)
{
    int64_t near, far;
    count_read(s, &near, &far);
    int64_t count = off_residency_leave_count(&s->residency, near, far, s->step_s);
    while (count > 0 && move_out(s, plan, true)) count--;
}

static void bring_back(struct eng_sched *s, struct eng_plan *plan, int64_t lack)
{
    int64_t near, far;
    count_read(s, &near, &far);
    const int64_t room = eng_pages_tier_free(s->pages, 0) + eng_prefix_idle(s->prefix, 0) -
                         need_of(s, lack, AHEAD_MAX);
    int64_t count = off_residency_return_count(&s->residency, near, far, room, s->step_s);
    for (; count > 0; count--) {
        /* What has set out makes room for a later plan's. */
        if (eng_pages_tier_free(s->pages, 0) == 0 && send_idle(s, plan)) continue;
        if (eng_pages_tier_free(s->pages, 0) == 0 && !drop_idle(s)) return;
        if (!move_back(s, plan)) return;
    }
}

bool eng_residency_fetch(struct eng_sched *s, struct eng_plan *plan, struct eng_sched_seq *seq)
{
    const int64_t next = need_of(s, 0, AHEAD_MIN); /* those that run are not to wait for moves */
    int32_t coming = s->moves.out_count, awaited = 0;
    int64_t room = (int64_t)eng_pages_tier_free(s->pages, 0) + eng_prefix_idle(s->prefix, 0) +
                   coming - need_of(s, 0, AHEAD_MAX);
    for (int32_t i = 0; i < seq->kv_count / KN_PAGE_TOKENS && room > 0; i++) {
        const int32_t node = eng_reuse_node(s, seq->pages[i]);
        kn_page to;
        if (kn_page_tier(seq->pages[i]) == 0 || eng_prefix_is_moving(s->prefix, node)) continue;
        room--;
        if (eng_pages_tier_free(s->pages, 0) <= next && (coming-- > 0 || send_idle(s, plan))) {
            awaited++;
            continue;
        }
        while (eng_pages_tier_free(s->pages, 0) <= next && drop_idle(s)) {
        }
        if (eng_pages_tier_free(s->pages, 0) <= next || !has_room(s, plan)) break;
        CHECK(eng_pages_take(s->pages, 0, &to));
        begin_move(s, plan, node, to);
    }
    seq->fetching = awaited > 0 || seq->returning_count > 0;
    return seq->fetching;
}

void eng_residency_tend(struct eng_sched *s, struct eng_plan *plan, int64_t lack)
{
    if (!s->in_place || plan->item_count == 0) return;
    /* A prompt that waits for pages takes them as soon as it is admitted, if it is to be. */
    const struct eng_sched_seq *head = s->waiting.head;
    if (head && s->running.count < s->running_max) {
        const int32_t whole = eng_sched_pages_for(head->token_count);
        if (eng_policy_admits(s, lack, whole, whole)) lack += whole - head->page_count;
    }
    send_ahead(s, plan, lack);
    if (!plan->wait && s->moves.out_count == s->moves.spare_out_count) bring_back(s, plan, lack);
    if (!plan->wait && s->moves.count == s->moves.out_count) balance(s, plan);
}

void eng_residency_learn(struct eng_sched *s, double seconds)
{
    s->step_s += (s->step_s > 0 ? STEP_WEIGHT : 1) * (seconds - s->step_s);
}

/* --- looking in ------------------------------------------------------------------------------- */

static void check_move(const struct eng_sched *s, const struct eng_move *move)
{
    CHECK(eng_pages_is_taken(s->pages, move->page.from));
    CHECK(eng_pages_is_taken(s->pages, move->page.to));
    CHECK((kn_page_tier(move->page.from) == 0) == move->out);
    CHECK((kn_page_tier(move->page.to) == 0) != move->out);
    CHECK(eng_prefix_is_moving(s->prefix, move->node));
    CHECK(eng_prefix_page(s->prefix, move->node) == move->page.from);
    CHECK(eng_reuse_node(s, move->page.to) == ENG_NODE_NONE);
}

static void check_seq(const struct eng_sched *s, const struct eng_sched_seq *seq)
{
    int32_t far = 0, leaving = 0, returning = 0;
    for (int32_t i = 0; i < seq->page_count; i++) {
        const int32_t node = eng_reuse_node(s, seq->pages[i]);
        const bool is_far = kn_page_tier(seq->pages[i]) > 0;
        CHECK(!is_far || node != ENG_NODE_NONE);
        far += is_far;
        if (node == ENG_NODE_NONE || !eng_prefix_is_moving(s->prefix, node)) continue;
        leaving += !is_far;
        returning += is_far;
    }
    CHECK(far == seq->far_count);
    CHECK(leaving == seq->leaving_count && returning == seq->returning_count);
}

void eng_residency_check(const struct eng_sched *s, int32_t *owned)
{
    const struct eng_moves *m = &s->moves;
    int32_t out = 0, spare = 0;
    for (int32_t i = 0; i < m->count; i++) {
        const struct eng_move *move = move_at(m, i);
        check_move(s, move);
        eng_reuse_mark(s, move->page.to, owned);
        out += move->out;
        spare += move->out && move->spare;
    }
    CHECK(out == m->out_count && spare == m->spare_out_count);
    CHECK(m->count == eng_prefix_moving(s->prefix));
    for (const struct eng_sched_seq *seq = s->running.head; seq; seq = seq->next) check_seq(s, seq);
}
