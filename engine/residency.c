/*
 * residency.c - where the pages of running sequences lie.
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
 * Until a move is over the sequence's table names the place the page is from, and both are taken.
 * Then the table names the other, and the first is free: whoever reads it there does so in a step
 * issued before, and steps run in order (kernels.h says what kn_move_pages orders).
 *
 * Over.  The engine tells which moves the machine has made (eng_sched_moved).  A plan that cannot
 * do without their pages declares all moves begun so far over (join), and says so: its step waits
 * for them on the device, hence whatever it writes comes after.
 *
 * Who leaves is offload/residency.h's to say.  Of a sequence it is the oldest page that is local,
 * and the youngest of the others that comes back, so that
 *
 *     pages[0, far_count)                          lie behind the link, the last returning_count of
 *                                                  them being on their way back
 *     pages[far_count, far_count + leaving_count)  are on their way out
 *     the others                                   are local,
 *
 * and a sequence has no pages on both ways at a time.
 *
 * Never stuck.  There are at most as many running sequences as local pages.  One that needs a page
 * has only full ones, each of the others at most one that is not full, or not yet written: so when
 * no move is under way and no local page is free, one of them is full.  It can leave unless every
 * page of every tier is taken, which is when sched.c preempts.
 *
 * Ahead of need.  A plan's step should not wait.  After each plan the local pages are counted that
 * the next steps need: of decodes, exactly those that fill their last page within so many steps; of
 * prompts, what the budget of so many steps lets them take.  What is missing leaves now, beside
 * this step.  How many steps ahead: the fewest in which the copy engine gets that many pages out.
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
    if (total == near) return ST_OK;
    s->in_place = config->kv_policy == ENG_KV_IN_PLACE;
    s->residency = config->residency;
    CHECK(s->residency.page_bytes > 0 && s->residency.link_bytes_per_s > 0);
    m->cap = (int32_t)total; /* each holds a page beside its sequence's */
    /* A plan takes a local page once, and then as many leave, or come back, as there are. */
    s->planned_moves_max = 2 * near;
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

void eng_residency_begin(struct eng_sched *s, struct eng_plan *plan, struct eng_sched_seq *seq,
                         int32_t index, kn_page to, bool out)
{
    struct eng_moves *m = &s->moves;
    const struct kn_page_move page = {seq->pages[index], to};
    CHECK(m->count < m->cap && plan->move_count < s->planned_moves_max);
    *move_at(m, m->count++) = (struct eng_move){page, seq, index, out};
    plan->moves[plan->move_count++] = page;
    m->out_count += out;
    if (out) m->out++, seq->leaving_count++;
    else m->back++, seq->returning_count++;
}

/* The oldest move is over. */
static void end_move(struct eng_sched *s)
{
    struct eng_moves *m = &s->moves;
    CHECK(m->count > 0);
    const struct eng_move *move = move_at(m, 0);
    struct eng_sched_seq *seq = move->seq;
    eng_pages_give(s->pages, move->page.from);
    if (!seq) {
        eng_pages_give(s->pages, move->page.to);
        m->orphan_count--;
    } else if (move->out) {
        CHECK(move->index == seq->far_count && seq->pages[move->index] == move->page.from);
        seq->pages[move->index] = move->page.to;
        seq->far_count++;
        seq->leaving_count--;
    } else {
        CHECK(move->index == seq->far_count - 1 && seq->pages[move->index] == move->page.from);
        seq->pages[move->index] = move->page.to;
        seq->far_count--;
        seq->returning_count--;
    }
    m->out_count -= move->out;
    m->first = (m->first + 1) % m->cap;
    m->count--;
    m->over++;
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

/* One full page leaves; false where none can. */
static bool move_out(struct eng_sched *s, struct eng_plan *plan)
{
    struct eng_sched_seq *best = NULL;
    struct off_residency_seq best_at = {0};
    kn_page to;
    for (struct eng_sched_seq *seq = s->running.head; seq; seq = seq->next) {
        const struct off_residency_seq at = residency_of(s, seq);
        if (at.near == 0 || seq->returning_count) continue;
        if (best && !off_residency_leaves(&at, &best_at)) continue;
        best = seq;
        best_at = at;
    }
    if (!best) return false;
    /* Who waits loses what he has before anybody stops running. */
    while (!eng_pages_take_far(s->pages, &to))
        if (!eng_policy_drop(s)) return false;
    eng_residency_begin(s, plan, best, best->far_count + best->leaving_count, to, true);
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
    if (!best || !eng_pages_take(s->pages, 0, &to)) return false;
    eng_residency_begin(s, plan, best, best->far_count - 1 - best->returning_count, to, false);
    return true;
}

/* --- taking and giving ------------------------------------------------------------------------ */

int64_t eng_residency_room(const struct eng_sched *s)
{
    if (!s->in_place) return eng_pages_tier_free(s->pages, 0);
    return (int64_t)eng_pages_free(s->pages) + s->moves.count + s->moves.orphan_count;
}

bool eng_residency_make_room(struct eng_sched *s, struct eng_plan *plan)
{
    if (eng_pages_tier_free(s->pages, 0) > 0) return true;
    if (eng_residency_join(s, plan) && eng_pages_tier_free(s->pages, 0) > 0) return true;
    return s->in_place && move_out(s, plan) && eng_residency_join(s, plan);
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

/* One full page of a running sequence, or of the one that is to be, lies behind the link from now
 * on: as the others leave, but with nothing copied.  False where none can. */
static bool put_out(struct eng_sched *s, struct eng_sched_seq *coming)
{
    struct eng_sched_seq *best = NULL;
    struct off_residency_seq best_at = {0};
    kn_page to;
    for (struct eng_sched_seq *seq = coming; seq;
         seq = seq == coming ? s->running.head : seq->next) {
        struct off_residency_seq at = residency_of(s, seq);
        at.read = true;
        if (at.near == 0 || (best && !off_residency_leaves(&at, &best_at))) continue;
        best = seq;
        best_at = at;
    }
    if (!best || !eng_pages_take_far(s->pages, &to)) return false;
    eng_pages_give(s->pages, best->pages[best->far_count]);
    best->pages[best->far_count++] = to;
    return true;
}

int32_t eng_residency_take_given(struct eng_sched *s, struct eng_plan *plan,
                                 struct eng_sched_seq *seq, int32_t want)
{
    const int32_t count = eng_sched_pages_for(seq->given_count + want);
    (void)eng_residency_join(s, plan); /* so that no page is on its way */
    while (seq->page_count < count) {
        if (eng_pages_tier_free(s->pages, 0) == 0 && !put_out(s, seq)) break;
        CHECK(eng_pages_take(s->pages, 0, &seq->pages[seq->page_count]));
        seq->page_count++;
        seq->kv_count += KN_PAGE_TOKENS;
        if (seq->kv_count > seq->given_count) seq->kv_count = seq->given_count;
    }
    const int32_t room = seq->page_count * KN_PAGE_TOKENS - seq->given_count;
    if (room <= 0) {
        eng_residency_give(s, seq);
        return 0;
    }
    seq->given_count = 0;
    return room < want ? room : want;
}

/* --- giving back ------------------------------------------------------------------------------ */

/* Pages on their way are given back when they have arrived. */
void eng_residency_give(struct eng_sched *s, struct eng_sched_seq *seq)
{
    struct eng_moves *m = &s->moves;
    const int32_t begin = seq->far_count - seq->returning_count;
    const int32_t end = seq->far_count + seq->leaving_count;
    for (int32_t i = 0; i < m->count; i++)
        if (move_at(m, i)->seq == seq) {
            move_at(m, i)->seq = NULL;
            m->orphan_count++;
        }
    while (seq->page_count > 0) {
        const int32_t i = --seq->page_count;
        if (i < begin || i >= end) eng_pages_give(s->pages, seq->pages[i]);
        seq->pages[i] = KN_PAGE_NONE;
    }
    seq->kv_count = 0;
    seq->far_count = seq->leaving_count = seq->returning_count = 0;
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
    for (int64_t i = soon; i < need && move_out(s, plan); i++) {
    }
}

static void bring_back(struct eng_sched *s, struct eng_plan *plan, int64_t lack)
{
    int64_t near = 0, far = 0;
    for (const struct eng_sched_seq *seq = s->running.head; seq; seq = seq->next) {
        if (!is_read_next(s, seq)) continue;
        far += seq->far_count - seq->returning_count;
        near += seq->page_count - seq->far_count + seq->returning_count;
    }
    const int64_t room = eng_pages_tier_free(s->pages, 0) - need_of(s, lack, AHEAD_MAX);
    int64_t count = off_residency_return_count(&s->residency, near, far, room, s->step_s);
    while (count-- > 0 && move_back(s, plan)) {
    }
}

void eng_residency_tend(struct eng_sched *s, struct eng_plan *plan, int64_t lack)
{
    if (!s->in_place || plan->item_count == 0) return;
    /* A prompt that waits for pages takes them as soon as it is admitted. */
    if (s->waiting.head && s->running.count < s->running_max)
        lack += eng_sched_pages_for(s->waiting.head->token_count);
    send_ahead(s, plan, lack);
    if (!plan->wait && s->moves.out_count == 0) bring_back(s, plan, lack);
}

void eng_residency_learn(struct eng_sched *s, double seconds)
{
    s->step_s += (s->step_s > 0 ? STEP_WEIGHT : 1) * (seconds - s->step_s);
}

/* --- looking in ------------------------------------------------------------------------------- */

static void check_move(const struct eng_sched *s, const struct eng_move *move)
{
    const struct eng_sched_seq *seq = move->seq;
    CHECK(eng_pages_is_taken(s->pages, move->page.from));
    CHECK(eng_pages_is_taken(s->pages, move->page.to));
    CHECK((kn_page_tier(move->page.from) == 0) == move->out);
    CHECK((kn_page_tier(move->page.to) == 0) != move->out);
    CHECK(!seq || (seq->state == ENG_SEQ_RUNNING && seq->pages[move->index] == move->page.from));
}

static void mark(const struct eng_sched *s, kn_page page)
{
    uint8_t *at = &s->mark[eng_pages_slot(s->pages, page)];
    CHECK(eng_pages_is_taken(s->pages, page) && !*at);
    *at = 1;
}

void eng_residency_check(const struct eng_sched *s, int32_t *owned)
{
    const struct eng_moves *m = &s->moves;
    int32_t out = 0, leaving = 0, returning = 0, orphans = 0;
    for (int32_t i = 0; i < m->count; i++) {
        const struct eng_move *move = move_at(m, i);
        check_move(s, move);
        mark(s, move->page.to);
        if (!move->seq) mark(s, move->page.from);
        *owned += move->seq ? 1 : 2;
        out += move->out;
        orphans += !move->seq;
        leaving += move->seq && move->out;
        returning += move->seq && !move->out;
    }
    CHECK(out == m->out_count && orphans == m->orphan_count);
    for (const struct eng_sched_seq *seq = s->waiting.head; seq; seq = seq->next) {
        for (int32_t i = 0; i < seq->page_count; i++) mark(s, seq->pages[i]);
        *owned += seq->page_count;
    }
    for (const struct eng_sched_seq *seq = s->running.head; seq; seq = seq->next) {
        for (int32_t i = 0; i < seq->page_count; i++) {
            mark(s, seq->pages[i]);
            CHECK((kn_page_tier(seq->pages[i]) > 0) == (i < seq->far_count));
        }
        *owned += seq->page_count;
        leaving -= seq->leaving_count;
        returning -= seq->returning_count;
        CHECK(seq->returning_count <= seq->far_count && seq->leaving_count >= 0);
        CHECK(!seq->returning_count || !seq->leaving_count);
        CHECK(s->in_place || seq->far_count == 0);
        CHECK(seq->far_count + seq->leaving_count <= seq->kv_count / KN_PAGE_TOKENS);
    }
    CHECK(leaving == 0 && returning == 0);
}
