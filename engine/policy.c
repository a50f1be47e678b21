/*
 * policy.c - what becomes of sequences for which local memory is short: who is admitted beyond it,
 * and who waits with KV of its own.
 *
 *     RUNNING --eng_policy_park--> parked: WAITING, all pages behind the link
 *     parked --eng_policy_return--> its pages back in local memory, about to be RUNNING
 *     parked --eng_policy_drop--> WAITING without KV, to be computed again
 *     KV that is given and waits --eng_policy_settle_given--> parked, or lost
 *
 * Both moves are part of a plan, whose step waits for them, as vLLM copies swapped blocks before
 * the step that needs them.  Hence a parked sequence has no page on its way.
 *
 * Admission.  Where pages of one more sequence would lie behind the link, a step of all n + 1 takes
 * longer by what attention reads there.  With base the time of a step beside attention,
 *
 *     T(n) = base + off_residency_likely_s(near, far)
 *
 * and it is admitted if (n + 1) / T(n + 1) > n / T(n), that is, if what it adds to a step is less
 * than a token's share of it, T(n) / n, and worth the wait.  HBM is 90 times as fast as PCIe: with
 * 8 of 64 long sequences local, a step of all takes 1.2 s and one of 8 takes 5 ms, so that they are
 * through much sooner eight at a time.  It pays where base is long (weights behind a link, which
 * more sequences share), up to the free fraction of the link, and where nobody runs: one sequence
 * may be longer than local memory.  Those that run are never stopped by this, however they grow,
 * and as they end in time the head of the queue is admitted in time.
 *
 * base is learnt from steps of decodes: what they took less their attention by the model; at least
 * what is known of the weights (eng_sched_config.step_base_s).
 */
#include "config/check.h"
#include "engine/sched_state.h"

#define BASE_WEIGHT 0.1

/* --- admission -------------------------------------------------------------------------------- */

/* Pages that a step of all that run reads; *own: how many there are, shared ones counted once. */
static int64_t running_pages(const struct eng_sched *s, int64_t *own)
{
    int64_t pages = 0;
    for (const struct eng_sched_seq *seq = s->running.head; seq; seq = seq->next)
        pages += seq->page_count;
    *own = pages - eng_prefix_shared(s->prefix);
    return pages;
}

/* What attention to so many pages may take, of which no more are local than there can be; shared
 * ones are. */
static double attention_s(const struct eng_sched *s, int64_t pages, int64_t own)
{
    const int64_t local = eng_pages_tier_total(s->pages, 0);
    const int64_t far = own < local ? 0 : own - local;
    return off_residency_likely_s(&s->residency, pages - far, far);
}

bool eng_policy_admits(const struct eng_sched *s, int64_t need, int32_t own, int32_t whole)
{
    if (!s->in_place || s->admission == ENG_ADMIT_ALL || s->running.count == 0) return true;
    int64_t now_own;
    const int64_t now = running_pages(s, &now_own) + need, then = now + whole + 1;
    now_own += need;
    const int64_t then_own = now_own + own + 1; /* it will grow */
    if (then_own <= eng_pages_tier_total(s->pages, 0)) return true;
    const double base = s->base_s > s->base_least_s ? s->base_s : s->base_least_s;
    return off_residency_gains(s->running.count, base + attention_s(s, now, now_own),
                               base + attention_s(s, then, then_own));
}

void eng_policy_learn(struct eng_sched *s, double seconds)
{
    if (!s->in_place) return;
    int64_t own;
    const int64_t pages = running_pages(s, &own);
    const double beside = seconds - attention_s(s, pages, own);
    s->base_s += (s->base_s > 0 ? BASE_WEIGHT : 1) * ((beside > 0 ? beside : 0) - s->base_s);
}

/* --- parking ---------------------------------------------------------------------------------- */

static int32_t far_free(const struct eng_sched *s)
{
    return eng_pages_free(s->pages) - eng_pages_tier_free(s->pages, 0);
}

bool eng_policy_park(struct eng_sched *s, struct eng_plan *plan, struct eng_sched_seq *seq)
{
    if (s->policy != ENG_KV_SWAP || far_free(s) < seq->page_count) return false;
    eng_reuse_unfill(s, seq);
    for (int32_t i = 0; i < seq->page_count; i++) {
        kn_page to;
        CHECK(eng_pages_take_far(s->pages, &to));
        eng_residency_shift(s, plan, seq, i, to);
    }
    return true;
}

bool eng_policy_return(struct eng_sched *s, struct eng_plan *plan, struct eng_sched_seq *seq)
{
    CHECK(seq->far_count == seq->page_count);
    /* The page that new tokens go to, though nothing else is wanted back. */
    const int32_t least = s->in_place ? seq->kv_count % KN_PAGE_TOKENS != 0 : seq->page_count;
    int32_t count = 0;
    (void)eng_residency_join(s, plan);
    for (kn_page to; count < seq->page_count; count++) {
        /* Each running one may soon want a page more. */
        if (eng_pages_tier_free(s->pages, 0) <= s->running.count + 1 &&
            (count >= least || !eng_residency_make_room(s, plan)))
            break;
        CHECK(eng_pages_take(s->pages, 0, &to));
        eng_residency_shift(s, plan, seq, seq->page_count - 1 - count, to);
    }
    return count >= least;
}

bool eng_policy_drop(struct eng_sched *s)
{
    for (struct eng_sched_seq *seq = s->waiting.tail; seq; seq = seq->prev) {
        if (seq == s->waiting.head && s->running.count == 0) break; /* it is next */
        if (seq->page_count == 0) continue;
        eng_reuse_give(s, seq);
        seq->preempt_count++;
        return true;
    }
    return false;
}

void eng_policy_settle_given(struct eng_sched *s)
{
    for (struct eng_sched_seq *seq = s->waiting.head; seq; seq = seq->next) {
        const int32_t count = eng_sched_pages_for(seq->given_count);
        if (count == 0) continue;
        if (far_free(s) < count) {
            seq->preempt_count++; /* what is computed is computed again */
        } else {
            while (seq->page_count < count)
                CHECK(eng_pages_take_far(s->pages, &seq->pages[seq->page_count++]));
            seq->far_count = count;
            seq->kv_count = seq->given_count;
        }
        seq->given_count = 0;
    }
    s->given = false;
}
