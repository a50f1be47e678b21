#include "offload/residency.h"

#include <math.h>

#include "config/check.h"

#define PAGES_MAX (1ll << 40) /* more than there are */

double off_residency_step_s(const struct off_residency *r, int64_t near, int64_t far)
{
    const double page = (double)r->page_bytes;
    return fmax((double)near * page / r->local_bytes_per_s,
                (double)far * page / r->link_bytes_per_s);
}

bool off_residency_gains(int32_t count, double without_s, double with_s)
{
    return (count + 1) * without_s > count * with_s;
}

int64_t off_residency_free(const struct off_residency *r, int64_t pages)
{
    CHECK(pages >= 0 && r->local_bytes_per_s > 0 && r->link_bytes_per_s > 0);
    return (int64_t)((double)pages * r->link_bytes_per_s /
                     (r->link_bytes_per_s + r->local_bytes_per_s));
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

int64_t off_residency_return_count(const struct off_residency *r, int64_t near, int64_t far,
                                   int64_t room, double seconds)
{
    int64_t count = far - off_residency_free(r, near + far), most = off_residency_moves(r, seconds);
    if (most < 1) most = 1;
    if (count > most) count = most;
    if (count > room) count = room;
    return count > 0 ? count : 0;
}
