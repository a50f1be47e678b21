/*
 * link_sim.h - a seeded simulator of one remote link beside a busy HBM, for tests of congestion
 * control.  A step of the simulator is a step of the engine: the window decided goes in, the
 * counters that kn_traffic would tell come out, of a step that was issued before that window was
 * known.
 *
 * The link is a closed queue: what is in flight, divided by the mean round trip, is the rate.  With
 * T0 the round trip of a link that nothing queues on, U the share of the window that is in flight
 * on average, W the window in bytes and B the bandwidth,
 *
 *     trip = (T0^p + (U W / B)^p)^(1/p)       rate = U W / trip
 *
 * p says how soft the knee is.  HBM loses with the time that requests wait, by a table.  A step
 * reads so many bytes over the link and so many from HBM, side by side, and ends when both are
 * done; where the link takes longer, kernels have up to twice the window in flight.  Everything
 * is fitted to what an H200 measured with every SM streaming HBM (tests/gpu/results, 1a41702,
 * bench-pcie and bench-peer; where two sweeps differ in what HBM lost, to the larger loss).
 * sim_offload_congestion.c asserts how well.
 */
#ifndef DAKD_TESTS_LINK_SIM_H
#define DAKD_TESTS_LINK_SIM_H

#include <math.h>

#include "config/check.h"
#include "config/random.h"
#include "offload/congestion.h"
#include "tests/test_random.h"

struct link_loss {
    double trip_us, loss; /* of HBM's rate, 0..1 */
};

struct link_model {
    const char *name;
    enum kn_mem mem;
    double bytes_per_s, trip_us, used, knee; /* B, T0, U, p */
    struct link_loss loss[7];                /* by trip, rising; linear in its logarithm between */
};

static UNUSED const struct link_model link_pcie = {
    "PCIe",
    KN_MEM_HOST,
    51.2e9,
    3.3,
    0.87,
    3,
    {{5, 0}, {8.6, 0.003}, {17.8, 0.032}, {36.1, 0.40}, {73, 0.70}, {212, 0.951}, {400, 0.99}}};
static UNUSED const struct link_model link_nvlink = {
    "NVLink",
    KN_MEM_PEER,
    375e9,
    1.43,
    0.85,
    6,
    {{2.8, 0}, {5.5, 0.008}, {11, 0.022}, {19, 0.092}, {29.4, 0.60}, {46, 0.89}, {200, 0.99}}};

struct link_sim {
    const struct link_model *model;
    uint64_t rng;
    /* Conditions, which tests change between steps. */
    double bandwidth;    /* x the model's */
    double floor;        /* x the model's T0 */
    double beside_bytes; /* in flight of somebody else's, a copy engine's say */
    double hbm;          /* time HBM needs for a step, x step_s, which the link does at its best */
    double noise;        /* relative standard deviation of times and round trips of a step */
    double stale, missing; /* probability that a step's counters are the old ones, or none */
    double step_s;
    uint32_t kind;
    /* What has been. */
    uint64_t now_ns;
    double bytes, trips, trip_ns; /* counters */
    struct off_congestion_sample told;
    struct kn_window issued; /* what the next step obeys */
    /* Truth of the latest step, without noise. */
    double rate, trip_us, hbm_loss, took_s;
};

static double link_uniform(struct link_sim *s)
{
    return (double)(random_next(&s->rng) >> 11) * 0x1p-53;
}

/* Near enough to a normal deviate: within +-3.5. */
static double link_normal(struct link_sim *s)
{
    double sum = -6;
    for (int i = 0; i < 12; i++) sum += link_uniform(s);
    return fmax(-3.5, fmin(3.5, sum));
}

static double link_loss_at(const struct link_model *m, double trip_us)
{
    const int count = (int)ARRAY_COUNT(m->loss);
    if (trip_us <= m->loss[0].trip_us) return m->loss[0].loss;
    for (int i = 1; i < count; i++) {
        const struct link_loss *a = &m->loss[i - 1], *b = &m->loss[i];
        if (trip_us > b->trip_us) continue;
        return a->loss +
               (b->loss - a->loss) * log(trip_us / a->trip_us) / log(b->trip_us / a->trip_us);
    }
    return m->loss[count - 1].loss;
}

static void link_open(struct link_sim *s, const struct link_model *model, uint64_t seed)
{
    *s = (struct link_sim){.model = model,
                           .rng = seed,
                           .bandwidth = 1,
                           .floor = 1,
                           .hbm = 1,
                           .step_s = 3.6e-3,
                           .kind = 1,
                           .now_ns = 1};
}

/* What the link gives to so many bytes in flight at most: rate, trip_us, hbm_loss. */
static void link_answer(struct link_sim *s, double bytes)
{
    const struct link_model *m = s->model;
    const double mine = m->used * bytes, all = mine + s->beside_bytes;
    const double t0_us = m->trip_us * s->floor;
    const double busy_us = all / (m->bytes_per_s * s->bandwidth) * 1e6;
    s->trip_us = pow(pow(t0_us, m->knee) + pow(busy_us, m->knee), 1 / m->knee);
    s->rate = mine / s->trip_us * 1e6;
    s->hbm_loss = link_loss_at(m, s->trip_us);
}

/* Without noise, how long a step with this window takes; the truth of it in *s. */
static UNUSED double link_time(struct link_sim *s, const struct kn_window *w)
{
    const double reach = fmin(fmax(1 / s->hbm, 1), 2);
    link_answer(s, reach * w->ctas * w->blocks * KN_BLOCK_BYTES);
    const double link_s = s->model->bytes_per_s * s->step_s / s->rate;
    s->took_s = fmax(link_s, s->hbm * s->step_s / (1 - s->hbm_loss));
    return s->took_s;
}

/* One step.  NULL where the counters are missing. */
static UNUSED const struct off_congestion_sample *link_step(struct link_sim *s,
                                                            const struct kn_window *decided)
{
    if (s->issued.ctas == 0) s->issued = *decided;
    link_time(s, &s->issued);
    s->issued = *decided;
    const double trip = s->trip_us * (1 + s->noise * link_normal(s));
    const double bytes = s->model->bytes_per_s * s->step_s;
    s->bytes += bytes;
    s->trips += bytes / KN_BLOCK_BYTES;
    s->trip_ns += bytes / KN_BLOCK_BYTES * trip * 1e3;
    s->now_ns += (uint64_t)(s->took_s * (1 + s->noise * link_normal(s)) * 1e9);
    const double least = 0.45 * s->model->trip_us * s->floor * (1 + s->noise * link_uniform(s));
    const struct kn_traffic now = {.bytes = (uint64_t)s->bytes,
                                   .trip_count = (uint64_t)s->trips,
                                   .trip_ns_sum = (uint64_t)s->trip_ns,
                                   .trip_ns_min = (uint64_t)(least * 1e3),
                                   .trip_ns_max = (uint64_t)(trip * 4000)};
    const bool stale = link_uniform(s) < s->stale, missing = link_uniform(s) < s->missing;
    if (!stale) s->told = (struct off_congestion_sample){now, s->kind};
    return missing ? NULL : &s->told;
}

#endif
