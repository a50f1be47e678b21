/*
 * tiers.c - see tiers.h.
 *
 * A tier is one kn_alloc of its whole capacity, made when it is first asked for bytes: a tier that
 * nothing uses costs nothing, and one that is used can neither grow nor fragment.  Memory comes
 * zeroed and is handed out once, so what off_tier_alloc returns is zeroed too.
 *
 * A pool is memory of its own, for what is handed out and taken back by somebody else (KV pages).
 *
 * Invariants: used <= capacity; used is a multiple of KN_ALIGN; base is NULL until the first
 * allocation.
 */
#include "offload/tiers.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "config/size.h"

#define PEER_DEVICE_MAX 255

struct tier {
    struct off_tier_spec spec;
    char name[OFF_TIER_NAME_CAP];
    void *base; /* owned */
    void *pool; /* owned */
    uint64_t pool_bytes;
    uint64_t used;
};

struct off_tiers {
    struct kn *kn; /* borrowed */
    int count;
    struct tier tier[KN_TIER_MAX];
};

/* --- --remote --------------------------------------------------------------------------------- */

/* A run of decimal digits as a number <= max; moves *text behind it.  False where there is none or
 * it is too large. */
static bool parse_digits(const char **text, uint64_t max, uint64_t *out)
{
    const char *p = *text;
    uint64_t v = 0;
    if (*p < '0' || *p > '9') return false;
    for (; *p >= '0' && *p <= '9'; p++) {
        uint64_t digit = (uint64_t)(*p - '0');
        if (v > (max - digit) / 10) return false;
        v = v * 10 + digit;
    }
    *text = p;
    *out = v;
    return true;
}

static enum status parse_size(const char *flag, const char *text, const char *part, uint64_t *out,
                              char *err)
{
    if (size_parse(text, out))
        return err_set(err, ST_INVALID, "%s: '%s' in '%s' is not a size such as 64GiB", flag, text,
                       part);
    /* A bare number is more likely a forgotten unit than a count of bytes. */
    if (isdigit((unsigned char)text[strlen(text) - 1]))
        return err_set(err, ST_INVALID, "%s: the size '%s' in '%s' needs a unit, such as GiB", flag,
                       text, part);
    if (*out == 0)
        return err_set(err, ST_INVALID, "%s: the size in '%s' must be more than zero", flag, part);
    return ST_OK;
}

/* "host:64GiB" or "peer:1:40GiB". */
static enum status parse_part(const char *flag, const char *part, struct off_tier_spec *spec,
                              char *err)
{
    *spec = (struct off_tier_spec){0};
    if (!strncmp(part, "host:", 5)) {
        spec->mem = KN_MEM_HOST;
        return parse_size(flag, part + 5, part, &spec->bytes, err);
    }
    if (!strncmp(part, "peer:", 5)) {
        const char *p = part + 5;
        uint64_t device;
        if (!parse_digits(&p, PEER_DEVICE_MAX, &device) || *p != ':')
            return err_set(
                err, ST_INVALID,
                "%s: '%s' does not name a device: write peer:DEVICE:SIZE with DEVICE 0..%d", flag,
                part, PEER_DEVICE_MAX);
        spec->mem = KN_MEM_PEER;
        spec->device = (int)device;
        return parse_size(flag, p + 1, part, &spec->bytes, err);
    }
    return err_set(err, ST_INVALID, "%s: '%s' is neither host:SIZE nor peer:DEVICE:SIZE", flag,
                   part);
}

bool off_tier_is_named(const struct off_tier_spec *spec, const char *name)
{
    char own[24];
    if (spec->mem == KN_MEM_HOST) return strcmp(name, "host") == 0;
    snprintf(own, sizeof own, "peer%d", spec->device);
    return strcmp(name, "peer") == 0 || strcmp(name, own) == 0;
}

bool off_take_part(const char **text, char part[OFF_PART_CAP])
{
    const char *p = *text;
    size_t len = strcspn(p, ",");
    if (len >= OFF_PART_CAP) return false;
    memcpy(part, p, len);
    part[len] = '\0';
    *text = p[len] ? p + len + 1 : NULL;
    return true;
}

enum status off_remote_parse(const char *text, struct off_remote *out, char *err)
{
    struct off_remote remote = {0};
    *out = remote;
    if (!*text) return ST_OK;
    for (const char *p = text; p;) {
        char part[OFF_PART_CAP];
        if (!off_take_part(&p, part))
            return err_set(err, ST_INVALID,
                           "--remote: '%.40s...' is neither host:SIZE nor peer:DEVICE:SIZE", p);
        if (remote.count == KN_TIER_MAX - 1)
            return err_set(err, ST_INVALID, "--remote names more than %d tiers", KN_TIER_MAX - 1);
        struct off_tier_spec spec;
        enum status st = parse_part("--remote", part, &spec, err);
        if (st) return st;
        for (int i = 0; i < remote.count; i++)
            if (remote.spec[i].mem == spec.mem && remote.spec[i].device == spec.device)
                return err_set(err, ST_INVALID, "--remote names the tier of '%s' twice", part);
        remote.spec[remote.count++] = spec;
    }
    *out = remote;
    return ST_OK;
}

enum status off_remote_add_pool(const char *text, const char *flag, struct off_remote *remote,
                                int *tier, char *err)
{
    struct off_tier_spec spec;
    if (strchr(text, ','))
        return err_set(err, ST_INVALID, "%s: '%s' is more than one tier", flag, text);
    enum status st = parse_part(flag, text, &spec, err);
    if (st) return st;
    int i = 0;
    while (i < remote->count &&
           (remote->spec[i].mem != spec.mem || remote->spec[i].device != spec.device))
        i++;
    if (i == KN_TIER_MAX - 1)
        return err_set(err, ST_INVALID,
                       "%s: '%s' is a tier beside the %d that --remote names, and there may be %d",
                       flag, text, i, i);
    if (i == remote->count)
        remote->spec[remote->count++] =
            (struct off_tier_spec){.mem = spec.mem, .device = spec.device};
    remote->pool_bytes[i] = spec.bytes;
    *tier = i + 1;
    return ST_OK;
}

/* --- the arenas ------------------------------------------------------------------------------- */

void off_tier_spec_name(const struct off_tier_spec *spec, char out[OFF_TIER_NAME_CAP])
{
    if (spec->mem == KN_MEM_LOCAL) snprintf(out, OFF_TIER_NAME_CAP, "hbm");
    else if (spec->mem == KN_MEM_HOST) snprintf(out, OFF_TIER_NAME_CAP, "host");
    else snprintf(out, OFF_TIER_NAME_CAP, "peer%d", spec->device);
}

static void tier_init(struct tier *t, const struct off_tier_spec *spec)
{
    *t = (struct tier){.spec = *spec};
    t->spec.bytes = spec->bytes / KN_ALIGN * KN_ALIGN;
    off_tier_spec_name(spec, t->name);
}

enum status off_tiers_open(struct kn *kn, uint64_t local_bytes, const struct off_remote *remote,
                           struct off_tiers **out, char *err)
{
    *out = NULL;
    if (local_bytes > INT64_MAX)
        return err_set(err, ST_INVALID, "a local tier of %llu bytes is too large",
                       (unsigned long long)local_bytes);
    CHECK(!remote || (remote->count >= 0 && remote->count < KN_TIER_MAX));
    struct off_tiers *tiers = calloc(1, sizeof *tiers);
    if (!tiers) return err_set(err, ST_NOMEM, "no memory for the table of tiers");
    tiers->kn = kn;
    tiers->count = 1 + (remote ? remote->count : 0);
    tier_init(&tiers->tier[0], &(struct off_tier_spec){KN_MEM_LOCAL, 0, local_bytes});
    for (int i = 1; i < tiers->count; i++) {
        tier_init(&tiers->tier[i], &remote->spec[i - 1]);
        tiers->tier[i].pool_bytes = remote->pool_bytes[i - 1];
    }
    *out = tiers;
    return ST_OK;
}

void off_tiers_close(struct off_tiers *tiers)
{
    if (!tiers) return;
    for (int i = 0; i < tiers->count; i++) {
        struct tier *t = &tiers->tier[i];
        if (t->base) kn_free(tiers->kn, t->spec.mem, t->base, t->spec.bytes);
        if (t->pool) kn_free(tiers->kn, t->spec.mem, t->pool, t->pool_bytes);
    }
    free(tiers);
}

int off_tiers_count(const struct off_tiers *tiers)
{
    return tiers->count;
}

static const struct tier *tier_at(const struct off_tiers *tiers, int tier)
{
    CHECK(tier >= 0 && tier < tiers->count);
    return &tiers->tier[tier];
}

const char *off_tier_name(const struct off_tiers *tiers, int tier)
{
    return tier_at(tiers, tier)->name;
}

const struct off_tier_spec *off_tier_spec(const struct off_tiers *tiers, int tier)
{
    return &tier_at(tiers, tier)->spec;
}

uint64_t off_tier_capacity(const struct off_tiers *tiers, int tier)
{
    return tier_at(tiers, tier)->spec.bytes;
}

uint64_t off_tier_pool_bytes(const struct off_tiers *tiers, int tier)
{
    return tier_at(tiers, tier)->pool_bytes;
}

uint64_t off_tier_used(const struct off_tiers *tiers, int tier)
{
    return tier_at(tiers, tier)->used;
}

enum status off_tier_pool(struct off_tiers *tiers, int tier, void **out, char *err)
{
    tier_at(tiers, tier);
    struct tier *t = &tiers->tier[tier];
    *out = NULL;
    CHECK(!t->pool && t->pool_bytes > 0);
    enum status st = kn_alloc(tiers->kn, t->spec.mem, t->spec.device, t->pool_bytes, &t->pool, err);
    *out = t->pool;
    return st;
}

enum status off_tier_alloc(struct off_tiers *tiers, int tier, uint64_t bytes, const char *what,
                           void **out, char *err)
{
    *out = NULL;
    tier_at(tiers, tier);
    struct tier *t = &tiers->tier[tier];
    uint64_t left = t->spec.bytes - t->used;
    /* left is a multiple of KN_ALIGN, so whatever fits still fits after rounding up. */
    if (bytes > left)
        return err_set(err, ST_LIMIT,
                       "%s: %llu bytes were asked for in tier %s, where %llu of %llu are left; %s",
                       what, (unsigned long long)bytes, t->name, (unsigned long long)left,
                       (unsigned long long)t->spec.bytes,
                       tier == 0
                           ? "raise --gpu-memory-utilization, or --offload with a --remote tier"
                           : "make that tier larger with --remote, or lower --offload");
    if (!t->base) {
        enum status st =
            kn_alloc(tiers->kn, t->spec.mem, t->spec.device, t->spec.bytes, &t->base, err);
        if (st) return st;
    }
    *out = (char *)t->base + t->used;
    t->used += round_up(bytes, KN_ALIGN);
    return ST_OK;
}
