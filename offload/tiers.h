/*
 * tiers.h - the memories a model may lie in, as arenas of fixed size.
 *
 * Tier 0 is the GPU's own memory (on the CPU backend, an arena that stands for it); tiers 1.. are
 * the remote ones named by
 * --remote, in that order.  Each is a bump allocator over memory reserved on first use and never
 * grown: sizes and limits are known before serving.  Not thread-safe: used by the thread that loads
 * the model.
 */
#ifndef DAKD_OFFLOAD_TIERS_H
#define DAKD_OFFLOAD_TIERS_H

#include "kernels/kernels.h"

struct off_tier_spec {
    enum kn_mem mem;
    int device;          /* of a peer, else 0 */
    uint64_t bytes; /* capacity */
};

enum { OFF_TIER_NAME_CAP = 16 };
/* "hbm", "host", "peer1" */
void off_tier_spec_name(const struct off_tier_spec *spec, char out[OFF_TIER_NAME_CAP]);

struct off_remote {
    struct off_tier_spec spec[KN_TIER_MAX - 1];
    int count;
    uint64_t pool_bytes[KN_TIER_MAX - 1]; /* beside the capacity, for off_tier_pool */
};

/* Parses "host:64GiB,peer:1:40GiB" (units B, KiB, MiB, GiB, TiB, or KB..TB in powers of 1000); ""
 * means none. ST_INVALID names the part that is wrong. */
MUST_USE enum status off_remote_parse(const char *text, struct off_remote *out, char *err);

/* Adds what `text` names, one tier and a size as above, as a pool: to the tier of `remote` that is
 * of the same memory, or to a further one without other capacity.  *tier: which.  flag: what the
 * sentence calls it.  ST_INVALID. */
MUST_USE enum status off_remote_add_pool(const char *text, const char *flag,
                                         struct off_remote *remote, int *tier, char *err);

enum { OFF_PART_CAP = 64 };
/* Takes the next part of a list with commas: copies it to `part` and moves *text behind its comma,
 * to NULL after the last.  False where it does not fit. */
MUST_USE bool off_take_part(const char **text, char part[OFF_PART_CAP]);

/* Whether `name` means this tier: its kind, or for a peer its kind and device ("peer1"). */
bool off_tier_is_named(const struct off_tier_spec *spec, const char *name);

struct off_tiers;

/* local_bytes: the capacity of tier 0. */
MUST_USE enum status off_tiers_open(struct kn *kn, uint64_t local_bytes,
                                    const struct off_remote *remote, struct off_tiers **out,
                                    char *err);
void off_tiers_close(struct off_tiers *tiers);
int off_tiers_count(const struct off_tiers *tiers);
const char *off_tier_name(const struct off_tiers *tiers, int tier); /* "hbm", "host", "peer1" */
const struct off_tier_spec *off_tier_spec(const struct off_tiers *tiers, int tier);
uint64_t off_tier_capacity(const struct off_tiers *tiers, int tier);
uint64_t off_tier_pool_bytes(const struct off_tiers *tiers, int tier);
uint64_t off_tier_used(const struct off_tiers *tiers, int tier);
/* The tier's pool, all pool_bytes of it; once.  KN_ALIGN-aligned, zeroed, the tiers' to free.
 * ST_NOMEM, ST_DEVICE. */
MUST_USE enum status off_tier_pool(struct off_tiers *tiers, int tier, void **out, char *err);
/* KN_ALIGN-aligned, zeroed.  ST_LIMIT says what was asked, what is left, and which flag to change.
 */
MUST_USE enum status off_tier_alloc(struct off_tiers *tiers, int tier, uint64_t bytes,
                                    const char *what, void **out, char *err);

#endif
