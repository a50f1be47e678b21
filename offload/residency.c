#include "offload/residency.h"

#include <math.h>

#include "config/check.h"

#define WORTH 0.1        /* per cent of tokens a second for a per cent of a step's time */
#define SHORTER_PART 0.2 /* of the shorter of two reads side by side that the longer one waits */
#define PAGES_MAX (1ll << 40) /* more than there are */
#define LEAVE_PART 8          /* of the best number: when less is missing, pages stay */

double off_residency_step_s(const struct off_residency *r, int64_t near, int64_t far)
{
    const double page = (double)r->page_bytes;
    return fmax((double)near * page / r->local_bytes_per_s,
                (double)far * page / r->link_bytes_per_s);
}

double off_residency_likely_s(const struct off_residency *r, int64_t near, int64_t far)
{
    const double near_s = off_residency_step_s(r, near, 0), far_s = off_residency_step_s(r, 0, far);
    return fmax(near_s, far_s) + SHORTER_PART * fmin(near_s, far_s);
}

bool off_residency_gains(int32_t count, double without_s, double with_s)
{
    return without_s > count * (1 + WORTH) * (with_s - without_s);
}

int64_t off_residency_free(const struct off_residency *r, int64_t pages)
{
    CHECK(pages >= 0 && r->local_bytes_per_s > 0 && r->link_bytes_per_s > 0);
    return (int64_t)((double)pages * r->link_bytes_per_s /
                     (r->link_bytes_per_s + r->local_bytes_per_s));
}

int64_t off_residency_balance(const struct off_residency *r, int64_t pages)
{
    const int64_t free = off_residency_free(r, pages);
    if (!(r->busy_s > 0)) return free;
    const double near_s = (double)r->page_bytes / r->local_bytes_per_s;
    const double far_s = (double)r->page_bytes / r->link_bytes_per_s;
    const double crossing = (r->other_s + (double)pages * near_s - r->busy_s) / (near_s + far_s);
    if (crossing <= 0) return 0;
    return crossing < (double)free ? (int64_t)crossing : free;
}

int64_t off_residency_best(const struct off_residency *r, int64_t pages)
{
    const int64_t far = off_residency_balance(r, pages);
    const double won =
        off_residency_step_s(r, pages, 0) - off_residency_step_s(r, pages - far, far);
    return far > 0 && won >= r->worth_s ? far : 0;
}

int64_t off_residency_steady(const struct off_residency *r, int64_t pages, int64_t near)
{
    const int64_t best = off_residency_best(r, pages);
    return pages - best > near ? pages - near : best;
}

int64_t off_residency_moves(const struct off_residency *r, double seconds)
{
    CHECK(r->page_bytes > 0 && r->copy_bytes_per_s > 0);
    const double pages = fmax(seconds, 0) * r->copy_bytes_per_s / (double)r->page_bytes;
    return pages < (double)PAGES_MAX ? (int64_t)pages : PAGES_MAX;
}

/* The sign of a's share behind the link less b's; of sequences without full pages it is nothing. */
static int compare_shares(const struct off_residency_seq *a, const struct off_residency_seq *b)
{
    const int64_t all_a = (int64_t)a->near + a->far, all_b = (int64_t)b->near + b->far;
    const int64_t x = a->far * all_b, y = b->far * all_a;
    return (x > y) - (x < y);
}

bool off_residency_leaves(const struct off_residency_seq *a, const struct off_residency_seq *b)
{
    if (a->read != b->read) return !a->read;
    const int shares = compare_shares(a, b);
    return shares ? shares < 0 : a->near > b->near;
}

bool off_residency_returns(const struct off_residency_seq *a, const struct off_residency_seq *b)
{
    if (a->read != b->read) return a->read;
    const int shares = compare_shares(a, b);
    return shares ? shares > 0 : a->far > b->far;
}

/* `count` of them, at most what is moved in so many seconds, or one. */
static int64_t at_once(const struct off_residency *r, int64_t count, double seconds)
{
    const int64_t moves = off_residency_moves(r, seconds), most = moves > 1 ? moves : 1;
    if (count > most) count = most;
    return count > 0 ? count : 0;
}

int64_t off_residency_leave_count(const struct off_residency *r, int64_t near, int64_t far,
                                  double seconds)
{
    const int64_t best = off_residency_best(r, near + far), missing = best - far;
    if (missing <= best / LEAVE_PART) return 0;
    return at_once(r, missing < near ? missing : near, seconds);
}

int64_t off_residency_return_count(const struct off_residency *r, int64_t near, int64_t far,
                                   int64_t room, double seconds)
{
    const int64_t count = far - off_residency_balance(r, near + far);
    return at_once(r, count < room ? count : room, seconds);
}
