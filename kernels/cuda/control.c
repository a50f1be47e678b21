/*
 * control.c - the control block, by which the host tells running kernels how to read remote tiers,
 * and the counters, by which they tell the host what came of it.
 *
 * The block is one array in device memory, read by every kernel when it starts, so that a captured
 * graph obeys what was set after its capture.  A copy in stream order changes it: kernels that
 * overlap by dependent launch see the same one, because nothing overlaps a copy.
 *
 * The counters only grow.  A kernel of one warp at the end of a step copies them into the host's
 * memory and clears least and largest; what it wrote is there when the host has waited for it.  Two
 * places take turns, so that one may be read while a step in flight writes the other.  kn_sync asks
 * when it has waited: the machine is then idle, and nobody waits for the copy.  Round trips are
 * counted in clocks of the SM and told in nanoseconds at its highest clock, which is the one GPUs
 * run memory-bound work at.
 */
#include <string.h>

#include "config/check.h"
#include "kernels/cuda/state.h"

/* Steps between two readings where no remote tier is in use. */
#define READING_PERIOD 8

enum status kn_cu_control_open(struct kn_cu *cu, char *err)
{
    struct kn_cu_control *c = &cu->control;
    struct kn_cu_traffic fresh[KN_TIER_MAX] = {0};
    int khz = 0;
    for (int t = 0; t < KN_TIER_MAX; t++) fresh[t].trip_min = UINT32_MAX;
    if (kn_cu_ok(cu, cudaMalloc((void **)&c->device_window, sizeof c->window),
                 "to allocate memory") &&
        kn_cu_ok(cu, cudaMalloc((void **)&c->device_traffic, sizeof fresh), "to allocate memory") &&
        kn_cu_ok(cu, cudaMemcpy(c->device_traffic, fresh, sizeof fresh, cudaMemcpyHostToDevice),
                 "to clear its counters") &&
        kn_cu_ok(cu, cudaHostAlloc((void **)&c->reading, KN_CU_READINGS * sizeof fresh, 0),
                 "to pin its counters") &&
        kn_cu_ok(cu, cudaDeviceGetAttribute(&khz, cudaDevAttrClockRate, cu->device),
                 "to say its clock"))
        c->ns_per_clock = khz > 0 ? 1e6 / khz : 1;
    return cu->failure[0] ? err_set(err, ST_DEVICE, "%s", cu->failure) : ST_OK;
}

void kn_cu_control_close(struct kn_cu *cu)
{
    struct kn_cu_control *c = &cu->control;
    if (c->device_window) (void)cudaFree(c->device_window);
    if (c->device_traffic) (void)cudaFree(c->device_traffic);
    if (c->reading) (void)cudaFreeHost(c->reading);
}

/* --- windows --- */

static bool send_windows(struct kn_cu *cu)
{
    struct kn_cu_control *c = &cu->control;
    return kn_cu_ok(cu,
                    cudaMemcpyAsync(c->device_window, c->window, sizeof c->window,
                                    cudaMemcpyHostToDevice, cu->stream),
                    "to set the windows");
}

void kn_cu_set_window(struct kn *kn, int tier, const struct kn_window *w)
{
    struct kn_cu *cu = kn_cu_of(kn);
    cu->control.window[KN_REMOTE_BULK][tier] = (struct kn_cu_window){w->ctas, w->blocks, w->cost};
    cu->control.window[KN_REMOTE_LOADS][tier] =
        (struct kn_cu_window){KN_WINDOW_NO_BOUND, KN_WINDOW_NO_BOUND, w->cost};
    cu->control.has_window[tier] = true;
    if (kn_cu_enter(cu)) send_windows(cu);
}

bool kn_cu_need_window(struct kn_cu *cu, int tier, const void *base)
{
    cu->control.remote = true;
    if (cu->control.has_window[tier]) return true;
    if (cu->record.now)
        return kn_cu_st(cu, ST_DEVICE, "a step was recorded before one of its kind was computed");
    const struct kn_cu_region *r = kn_cu_region_of(cu, base);
    const struct kn_window w = kn_window_default(r ? r->mem : KN_MEM_LOCAL);
    kn_cu_set_window(&cu->kn, tier, &w);
    return !cu->failure[0];
}

/* --- what recordings do not know ---
 *
 * What changes the launches themselves, and not what kernels read from the block. */

static enum status drop_recordings(struct kn_cu *cu, char *err)
{
    CHECK(!cu->record.now && !cu->steps.open);
    if (!kn_cu_begin(cu) || !kn_cu_settle(cu) ||
        !kn_cu_ok(cu, cudaStreamSynchronize(cu->stream), "in a step"))
        return err_set(err, ST_DEVICE, "%s", cu->failure);
    kn_cu_record_drop(cu);
    return ST_OK;
}

enum status kn_cu_set_remote_access(struct kn *kn, enum kn_remote_access access, char *err)
{
    struct kn_cu *cu = kn_cu_of(kn);
    const enum status st = drop_recordings(cu, err);
    if (!st) cu->control.access = access;
    return st;
}

enum status kn_cu_set_without(struct kn *kn, unsigned parts, char *err)
{
    struct kn_cu *cu = kn_cu_of(kn);
    const enum status st = drop_recordings(cu, err);
    if (st) return st;
    cu->without = parts;
    cu->plan_count = 0;
    return ST_OK;
}

/* --- counters --- */

bool kn_cu_reading_ask(struct kn_cu *cu)
{
    struct kn_cu_control *c = &cu->control;
    char err[ERR_CAP];
    CHECK(c->asked - c->taken < KN_CU_READINGS);
    if (!c->remote && ++c->steps_unread < READING_PERIOD) return false;
    c->steps_unread = 0;
    memcpy(c->fetched[c->asked % KN_CU_READINGS], cu->fetch.bytes, sizeof cu->fetch.bytes);
    memcpy(c->moved[c->asked % KN_CU_READINGS], cu->moves.bytes, sizeof cu->moves.bytes);
    if (!kn_cu_st(cu,
                  kn_cu_traffic_launch(c->device_traffic, c->reading[c->asked % KN_CU_READINGS],
                                       cu->stream, err),
                  err))
        return false;
    c->asked++;
    return true;
}

void kn_cu_reading_take(struct kn_cu *cu)
{
    struct kn_cu_control *c = &cu->control;
    CHECK(c->taken < c->asked);
    const uint64_t *fetched = c->fetched[c->taken % KN_CU_READINGS];
    const uint64_t *moved = c->moved[c->taken % KN_CU_READINGS];
    const struct kn_cu_traffic *reading = c->reading[c->taken++ % KN_CU_READINGS];
    for (int t = 0; t < KN_TIER_MAX; t++) {
        const struct kn_cu_traffic *now = &reading[t];
        struct kn_traffic *to = &c->traffic[t];
        to->bytes = now->blocks * KN_BLOCK_BYTES + now->row_bytes + fetched[t];
        to->fetched_bytes = fetched[t];
        to->moved_bytes = moved[t];
        to->trip_ns_sum = (uint64_t)((double)now->trip_clocks * c->ns_per_clock);
        to->trip_count = now->trips;
        if (now->trip_min > now->trip_max) continue; /* no trip since the reading before */
        to->trip_ns_min = (uint64_t)(now->trip_min * c->ns_per_clock);
        to->trip_ns_max = (uint64_t)(now->trip_max * c->ns_per_clock);
    }
}

void kn_cu_traffic(struct kn *kn, int tier, struct kn_traffic *out)
{
    *out = kn_cu_of(kn)->control.traffic[tier];
}
