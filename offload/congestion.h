/*
 * congestion.h - the window a remote tier is read by, found while it is read.  Pure: no clock, no
 * I/O, no allocation; one thread at a time per state.
 *
 * Too many remote bytes in flight stall HBM, too few leave the link idle.  The link's own rate
 * never falls with a larger window, so loss tells nothing; latency tells how long the queues are,
 * but not whether they hurt: a step that waits for its link can bear what ruins one that waits for
 * HBM. Both are in one figure, the bytes a tier delivers in a second of the machine's busy time.
 * What a step reads from a tier is given, so this rate is largest where steps are fastest, whatever
 * binds them.  Hence
 *
 *     the rate judges, latency leads: what is in flight and how long it queues (Little's law, and
 *     the least round trip as the floor) say which way a trial may pay, and bound it.
 *
 * An epoch is the sum of several readings, of more where they scatter.  At most one move an epoch:
 *
 *                begin          nothing more pays
 *     start --> SEARCH ----------------------------> HOLD
 *                 ^   after quiet epochs: one trial    |   (search_epoch, hold_epoch)
 *                 |   the link has changed: all anew   |
 *                 +------------------------------------+
 *
 *     SEARCH  from the best window so far, trials in turn: twice of it for as long as that brings
 *             0.6 % of rate; half of it for as long as that costs no more than 0.5 % of the best;
 *             then likewise a rung up (0.4 %) and a rung down.  No trial up where what is in flight
 *             does not fill the window, or the queue would be above the ceiling; none down where
 *             nothing queues.
 *     HOLD    the best window.  After QUIET_EPOCHS a trial up and, the next time, one down.  Where
 *             rate or round trip leave what they were, for two epochs, the link is another one, or
 *             somebody else uses it: what was best is forgotten, and the search begins anew.
 *
 *  1. ctas x blocks of a decision is never above the cap, ctas and blocks never above their own.
 *  2. A window changes at most once an epoch.
 *  3. While mean in flight (by Little's law) is below half of the window, it does not grow.
 *  4. Rates are compared between steps of one kind only: a step of more sequences does more beside
 *     the same remote bytes.  A change of kind ends a trial, at the best window; a search that it
 *     ends begins anew when steps are of one kind again for some epochs.
 *  5. Missing, stale and impossible readings change nothing but what the next is compared with;
 *     where they do not end, a trial ends, at the best window.
 *
 * Held in simulation, thousands of seeded runs of each (tests/sim_offload_congestion.c): from any
 * window within 120 steps, and within 160 after a bandwidth step, a stall or a copy beside it,
 * steps take at most 3 % longer than with the best window there is; where the link binds it gives
 * at least 97 % of its rate, where HBM binds it loses at most 2 %.  In noise of 2 to 10 % within
 * 400 steps at most 5 % longer; where half of the counters are stale or missing within 720 at most
 * 10 %.  So 99 of 100 runs; the cap holds in all.
 *
 * Measured on an H200, steps of an 8B model at 1, 32 and 128 sequences, over the best of up to
 * seven static windows: PCIe, 5 % of the weights 1.002, 1.005, 0.999, 10 % 1.001, 1.003, 1.005;
 * NVLink, 10 % 1.000, 1.002, 1.016 (the same window twice: 1.015), 30 % 1.002, 1.002, 1.001.
 * Beside a copy engine that asks for 25 GB/s of PCIe 0.996, 0.997 (1 and 32; the default window
 * 1.023, 1.027): the best window is small there, for a larger one takes nothing from the copy.
 * Beside one that asks for 100 GB/s of NVLink 0.990, 1.001 (1.095, 1.068): there it is two to four
 * times the default.  Found in 22 to 59 steps, beside the copy over PCIe, where rates scatter by
 * 10 %, in 145 and 163.
 *
 * Tried and dropped: a ceiling of three times the least round trip, after Vegas and Swift, with the
 * window shrinking above it (steps that wait for their link want more: 25 us over PCIe costs them
 * nothing); measuring the floor in a small window once a period, after BBR (the least round trip of
 * a step is the same in every window, 1.5 us over PCIe and 0.95 over NVLink, and costs nothing).
 */
#ifndef DAKD_OFFLOAD_CONGESTION_H
#define DAKD_OFFLOAD_CONGESTION_H

#include <stdbool.h>

#include "config/status.h"
#include "kernels/kernels.h"

struct off_congestion_config {
    int32_t ctas_max, blocks_max; /* of a window; 1..KN_WINDOW_NO_BOUND */
    int32_t ctas_few;          /* so many CTAs before each has more than one block; 1..ctas_max */
    int32_t start, least, cap; /* ctas x blocks: least <= start <= cap <= ctas_max x blocks_max */
    uint64_t queue_ns_max;     /* ceiling of what is in flight over the largest rate */
    float cost;                /* as in struct kn_window */
};
/* For KN_MEM_HOST and KN_MEM_PEER: starts from kn_window_default's window. */
struct off_congestion_config off_congestion_config_default(enum kn_mem mem);

/* Why a step decided as it did. */
#define OFF_CONGESTION_REASONS(X)                                                                  \
    X(NOTHING, "nothing to tell")           /* no usable reading, or the epoch is not over */      \
    X(STATIC, "static")                     /* the policy looks at nothing */                      \
    X(KEEP, "quiet")                        /* all is well */                                      \
    X(TWICE, "trying twice as much")        /* up */                                               \
    X(HALF, "trying half")                  /* down */                                             \
    X(MORE, "trying more")                  /* a rung up */                                        \
    X(LESS, "trying less")                  /* a rung down */                                      \
    X(FOUND, "found")                       /* no trial is left: at the best window */             \
    X(LATE, "queue above the ceiling")      /* a rung down */                                      \
    X(CHANGED, "the link has changed")      /* rate or round trip left what they were */           \
    X(KIND, "steps of another kind")        /* a trial was given up */                             \
    X(NO_READINGS, "the counters are mute") /* likewise */

enum off_congestion_reason {
#define X(name, text) OFF_CONGESTION_##name,
    OFF_CONGESTION_REASONS(X)
#undef X
};
const char *off_congestion_reason_name(enum off_congestion_reason reason);

/* The window to set, and for the log what it follows from (of the last whole epoch; 0 before). */
struct off_congestion_decision {
    struct kn_window window;
    bool moved; /* it is another than the one decided before */
    enum off_congestion_reason reason;
    double trip_ns, floor_ns, ceiling_ns; /* mean and least round trip; ceiling of the queue */
    double bytes_per_s, peak_bytes_per_s; /* the largest since the link last changed */
    double error;                         /* standard error of bytes_per_s, relative */
    double in_flight_bytes;               /* mean */
};

/* What a step tells of a tier. */
struct off_congestion_sample {
    struct kn_traffic traffic;
    /* Steps of one kind do the same work, but for a little; 0: of none, which is let pass. */
    uint32_t kind;
};

/* Sums of readings. */
struct off_congestion_sum {
    double bytes, ns, trips, trip_ns;
    double rate2; /* squares of the readings' rates (bytes/ns), by their ns */
};

enum off_congestion_phase { OFF_CC_SEARCH, OFF_CC_HOLD };
enum off_congestion_trial {
    OFF_CC_BASE,
    OFF_CC_TWICE,
    OFF_CC_HALF,
    OFF_CC_MORE,
    OFF_CC_LESS,
    OFF_CC_DONE
};

struct off_congestion;
struct off_congestion_policy {
    const char *name; /* as --congestion-control calls it */
    /* One epoch: moves c->window, within c->config.least..cap, and says why. */
    enum off_congestion_reason (*epoch)(struct off_congestion *c);
};
/* "static" and "adaptive"; NULL for any other name. */
const struct off_congestion_policy *off_congestion_policy_find(const char *name);

/* State of one tier: plain data, the caller's, private to congestion.c and tests. */
struct off_congestion {
    struct off_congestion_config config;
    const struct off_congestion_policy *policy; /* static storage */
    int32_t window;                             /* ctas x blocks */
    /* Readings. */
    bool has_last;
    struct kn_traffic last; /* the reading that the next is compared with */
    uint64_t last_ns;
    int32_t mute; /* steps since one could be used */
    /* The epoch under way: readings to let pass after a move, readings summed. */
    int32_t settling, summed;
    uint32_t kind;
    struct off_congestion_sum epoch;
    /* Of the last whole epoch. */
    double trip_ns, bytes_per_s, in_flight; /* in_flight in blocks, mean */
    double error;                           /* standard error of bytes_per_s, relative */
    /* The model, since the link last changed; 0: none. */
    double floor_ns, peak;
    /* The law. */
    enum off_congestion_phase phase;
    enum off_congestion_trial trial;     /* of SEARCH: what `window` is */
    bool one_trial;                      /* and nothing after it */
    bool owed;                           /* a search was given up */
    bool last_was_up;                    /* the last such trial */
    bool went_up, climbed;               /* in this search: TWICE paid, MORE paid */
    int32_t best;                        /* the window that trials begin from */
    double best_rate;                    /* the largest since the search began anew; 0: none */
    double best_trip_ns, best_in_flight; /* of that window */
    int32_t quiet_wanted;                /* epochs in HOLD before a trial */
    int32_t quiet, odd;                /* epochs in HOLD; of these at the end, unlike the others */
    struct off_congestion_sum settled; /* of these */
};

/* CHECKs that config is consistent.  policy: from off_congestion_policy_find. */
void off_congestion_init(struct off_congestion *c, const struct off_congestion_policy *policy,
                         const struct off_congestion_config *config);
/* One engine step.  sample: NULL where there is none this time.  now_ns: time that the device was
 * busy, summed, so that idle hours do not count as a slow link; any start, never backwards (a
 * reading from the past is ignored). */
struct off_congestion_decision off_congestion_step(struct off_congestion *c,
                                                   const struct off_congestion_sample *sample,
                                                   uint64_t now_ns);
/* Steps are not looked at for a while: the next sample is only compared with. */
void off_congestion_pause(struct off_congestion *c);
/* The shape of a window of n (>= 1) blocks, at most n in all: few CTAs, then deeper ones, then
 * more.
 * */
struct kn_window off_congestion_shape(const struct off_congestion_config *config, int32_t n);
/* CHECKs the invariants of a state; for tests. */
void off_congestion_check(const struct off_congestion *c);

#endif
