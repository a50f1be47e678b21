/*
 * probe.h - how fast each tier can be read, measured on the machine at hand.
 *
 * The bandwidths are what a floor is made of: a step that reads bytes[t] from tier t, all tiers at
 * once, cannot take less than the slowest tier's bytes[t] / bandwidth[t].
 *
 * A probe allocates memory of the tier's kind, fills it (untouched pages of a host may all be one
 * page of zeros) and reads it with kn_stream_read.  A round is as many readings in a row as fill
 * round_ns_min, with one wait at the end, so that starting and waiting weigh little; the result is
 * the median of several rounds.  Pure arithmetic (off_probe_*) is apart from measuring.
 */
#ifndef DAKD_OFFLOAD_PROBE_H
#define DAKD_OFFLOAD_PROBE_H

#include "offload/tiers.h"

#define OFF_PROBE_ROUNDS_MAX 16

struct off_probe_config {
    uint64_t bytes_max;           /* of the buffer */
    uint64_t round_ns_min;        /* duration of one round of readings */
    uint64_t matrix_round_ns_min; /* and of one of products of matrices */
    int round_count;              /* 1..OFF_PROBE_ROUNDS_MAX */
};
/* At most 1 GiB, 40 ms, 3 rounds: 0.4 s for a GPU's own memory.  100 ms of products, which the
 * chip's power limit bounds within some milliseconds. */
struct off_probe_config off_probe_config_default(void);

/* What a machine's tiers give; 0 where nobody has measured. */
struct off_bandwidth {
    int tier_count;
    double read_bytes_per_s[KN_TIER_MAX];
};

/* Measures one tier.  The machine must be idle: it calls operations of kn.  ST_NOMEM, ST_DEVICE;
 * nothing stays allocated. */
MUST_USE enum status off_probe_read(struct kn *kn, const struct off_tiers *tiers, int tier,
                                    const struct off_probe_config *config, double *bytes_per_s,
                                    char *err);
/* Every tier in turn; one that is to stay empty has no rate, and nothing will read it. */
MUST_USE enum status off_probe_tiers(struct kn *kn, const struct off_tiers *tiers,
                                     const struct off_probe_config *config,
                                     struct off_bandwidth *out, char *err);

/* Operations per second of the backend's matrix units (kn_matrix_run), sustained: the median of
 * rounds that follow trials of as much work.  0 where it has none.  ST_DEVICE. */
MUST_USE enum status off_probe_matrix(struct kn *kn, const struct off_probe_config *config,
                                      double *flops_per_s, char *err);

/* --- pure ------------------------------------------------------------------------------------- */

/* Bytes of the buffer for a tier of this capacity: a sixteenth of it, at least 64 MiB so that no
 * cache holds it, at most bytes_max and the tier itself; a multiple of KN_ALIGN, 0 only where the
 * tier or bytes_max is smaller than that. */
uint64_t off_probe_bytes(uint64_t capacity, uint64_t bytes_max);
/* How often to read in the next trial, after `repeats` readings took ns: the same number once that
 * is a whole round; else what should fill one, at most sixteenfold. */
uint64_t off_probe_repeats(uint64_t repeats, uint64_t ns, uint64_t round_ns_min);
/* The median of the rounds' bytes / ns[i], in bytes per second. */
double off_probe_rate(uint64_t round_bytes, const uint64_t *ns, int round_count);
/* Seconds that reading bytes[t] from each tier takes at least; tier says which one decides.  A tier
 * that nothing is read from does not count; one that is read from must have been measured. */
double off_floor_s(const struct off_bandwidth *b, const uint64_t bytes[KN_TIER_MAX], int *tier);

#endif
