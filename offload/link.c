/*
 * link.c - see link.h: what is measured, in which order, and the choice of a window.
 *
 * A point is a few milliseconds: at 50 GB/s some ten thousand blocks, and many times the trips in
 * flight even where each takes 0.4 ms.  HBM's own rate is measured by the same kernel without
 * readers, so that the loss is between two figures of one program.
 *
 * The remote memory holds random words: the pages of an untouched host buffer may all be one page
 * of zeros, and what is equal may be compressed on its way.
 */
#include "offload/link.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "config/clock.h"

#define LOCAL_BYTES_MAX ((size_t)16 << 30) /* of which L2 holds 0.4 % */
#define LOCAL_BYTES_MIN ((size_t)1 << 30)
#define REMOTE_BYTES ((size_t)256 << 20)
#define FILL_BYTES ((size_t)4 << 20)
#define HBM_NS (8 * NS_PER_MS)
#define POINT_NS (4 * NS_PER_MS)
#define FILLED 0.97   /* of the link's best rate */
#define HBM_LOSS 0.03 /* that a window may cost */
#define NOISE 1.05

struct buffers {
    struct kn *kn;
    enum kn_mem mem;
    void *local, *remote, *copy; /* copy is the end of local */
    size_t local_bytes, remote_bytes;
};

/* --- the choice ------------------------------------------------------------------------------- */

const struct off_link *off_links_find(const struct off_links *links, const char *name)
{
    for (int i = 0; i < links->link_count; i++)
        if (!strcmp(links->link[i].name, name)) return &links->link[i];
    return NULL;
}

const struct off_link *off_links_of(const struct off_links *links, const struct off_tier_spec *spec)
{
    char name[OFF_TIER_NAME_CAP];
    off_tier_spec_name(spec, name);
    return off_links_find(links, name);
}

bool off_links_steady(const struct off_links *links)
{
    for (int i = 0; i < links->link_count; i++) {
        const struct off_link *k = &links->link[i];
        if (k->busy_copy_bytes_per_s > NOISE * k->copy_bytes_per_s ||
            k->both_copy_bytes_per_s > NOISE * k->copy_bytes_per_s ||
            k->both_read_bytes_per_s > NOISE * k->read_bytes_per_s)
            return false;
        for (int n = 0; n < k->point_count; n++)
            if (k->point[n].hbm_bytes_per_s > NOISE * links->hbm_bytes_per_s ||
                k->point[n].link_bytes_per_s > NOISE * k->read_bytes_per_s)
                return false;
    }
    return true;
}

bool off_link_window(const struct off_links *links, const struct off_link *link,
                     struct kn_window *w)
{
    const double hbm = links->hbm_bytes_per_s * (1 - HBM_LOSS);
    const struct off_link_point *chosen = NULL;
    double best = 0;
    for (int i = 0; i < link->point_count; i++)
        if (link->point[i].hbm_bytes_per_s >= hbm)
            best = fmax(best, link->point[i].link_bytes_per_s);
    for (int i = 0; i < link->point_count; i++) {
        const struct off_link_point *p = &link->point[i];
        if (p->ctas != OFF_LINK_WINDOW_CTAS || p->hbm_bytes_per_s < hbm ||
            p->link_bytes_per_s < FILLED * best)
            continue;
        if (!chosen || p->blocks < chosen->blocks) chosen = p;
    }
    if (!chosen) return false;
    *w = (struct kn_window){chosen->ctas, chosen->blocks,
                            (float)(links->hbm_bytes_per_s / chosen->link_bytes_per_s)};
    return true;
}

/* --- memory ----------------------------------------------------------------------------------- */

static enum status fill(struct kn *kn, void *dst, size_t bytes, char *err)
{
    uint32_t *chunk = malloc(FILL_BYTES), state = 1;
    enum status st = chunk ? ST_OK : ST_NOMEM;
    for (size_t at = 0; at < bytes && !st; at += FILL_BYTES) {
        for (size_t i = 0; i < FILL_BYTES / sizeof *chunk && at == 0; i++)
            chunk[i] = state = state * 1664525u + 1013904223u;
        chunk[0] = (uint32_t)(at / FILL_BYTES);
        st = kn_upload(kn, (char *)dst + at, chunk, size_min(FILL_BYTES, bytes - at));
    }
    free(chunk);
    return st ? err_set(err, st, "the memory of a measurement could not be filled: %s",
                        status_text(st))
              : ST_OK;
}

static void buffers_close(struct buffers *b)
{
    if (b->remote) kn_free(b->kn, b->mem, b->remote, b->remote_bytes);
    if (b->local) kn_free(b->kn, KN_MEM_LOCAL, b->local, b->local_bytes);
    b->local = b->remote = NULL;
}

static enum status open_remote(struct buffers *b, const struct off_tier_spec *spec, char *err)
{
    if (b->remote) kn_free(b->kn, b->mem, b->remote, b->remote_bytes);
    b->remote = NULL;
    b->mem = spec->mem;
    b->remote_bytes = size_min(spec->bytes, REMOTE_BYTES) / KN_BLOCK_BYTES * KN_BLOCK_BYTES;
    if (!b->remote_bytes)
        return err_set(err, ST_INVALID, "a remote tier of %llu bytes is too small to be measured",
                       (unsigned long long)spec->bytes);
    enum status st = kn_alloc(b->kn, spec->mem, spec->device, b->remote_bytes, &b->remote, err);
    if (st) return st;
    b->copy = (char *)b->local + b->local_bytes - REMOTE_BYTES;
    return fill(b->kn, b->remote, b->remote_bytes, err);
}

/* --- measuring -------------------------------------------------------------------------------- */

/* HBM and the link as said; what is NULL or 0 in `a` rests. */
static enum status measure(struct buffers *b, bool hbm, int32_t ctas, int32_t blocks,
                           int32_t cluster, bool copy, struct kn_link_rates *out, char *err)
{
    const struct kn_link_args a = {.local = hbm ? b->local : NULL,
                                   .remote = b->remote,
                                   .copy_to = copy ? b->copy : NULL,
                                   .local_bytes = b->local_bytes,
                                   .remote_bytes = b->remote_bytes,
                                   .ctas = ctas,
                                   .blocks = blocks,
                                   .cluster = cluster,
                                   .ns = b->remote ? POINT_NS : HBM_NS};
    return kn_measure_link(b->kn, &a, out, err);
}

/* The grid of windows, HBM busy: every number of readers with every depth. */
static enum status measure_points(struct buffers *b, struct off_link *link, char *err)
{
    static const int32_t ctas[] = {4, 8, 16, 32, 64, 0}, blocks[] = {1, 2, 4, 6};
    for (size_t i = 0; i < ARRAY_COUNT(ctas); i++)
        for (size_t k = 0; k < ARRAY_COUNT(blocks); k++) {
            struct kn_link_rates rates;
            struct off_link_point *p = &link->point[link->point_count];
            CHECK(link->point_count < OFF_LINK_POINTS_MAX);
            p->ctas = ctas[i] ? ctas[i] : kn_sm_count(b->kn);
            p->blocks = blocks[k];
            enum status st = measure(b, true, p->ctas, p->blocks, 1, false, &rates, err);
            if (st) return st;
            p->link_bytes_per_s = rates.remote_bytes_per_s;
            p->hbm_bytes_per_s = rates.local_bytes_per_s;
            p->trip_mean_s = rates.trip_mean_s;
            p->trip_max_s = rates.trip_max_s;
            link->point_count++;
        }
    return ST_OK;
}

static enum status measure_alone(struct buffers *b, struct off_link *link, char *err)
{
    struct kn_link_rates rates;
    enum status st = measure(b, false, 1, 1, 1, false, &rates, err);
    link->trip_s = rates.trip_mean_s;
    for (int32_t blocks = 1; blocks <= 4 && !st; blocks *= 2) {
        st = measure(b, false, 32, blocks, 1, false, &rates, err);
        link->read_bytes_per_s = fmax(link->read_bytes_per_s, rates.remote_bytes_per_s);
    }
    for (int i = 0; i < OFF_LINK_CLUSTERS && !st; i++) {
        const int32_t cluster = 2 << i;
        st = measure(b, false, 16, 4, cluster, false, &rates, err);
        link->multicast[i] = cluster * rates.remote_bytes_per_s / link->read_bytes_per_s;
    }
    return st;
}

/* The copy engine alone, beside HBM, and beside HBM and a kernel that reads in window w. */
static enum status measure_copies(struct buffers *b, const struct kn_window *w,
                                  struct off_link *link, char *err)
{
    struct kn_link_rates rates;
    enum status st = measure(b, false, 0, 0, 1, true, &rates, err);
    link->copy_bytes_per_s = rates.copy_bytes_per_s;
    if (st || (st = measure(b, true, 0, 0, 1, true, &rates, err))) return st;
    link->busy_copy_bytes_per_s = rates.copy_bytes_per_s;
    link->busy_copy_hbm_bytes_per_s = rates.local_bytes_per_s;
    if ((st = measure(b, true, w->ctas, w->blocks, 1, true, &rates, err))) return st;
    link->both_copy_bytes_per_s = rates.copy_bytes_per_s;
    link->both_read_bytes_per_s = rates.remote_bytes_per_s;
    link->both_hbm_bytes_per_s = rates.local_bytes_per_s;
    return ST_OK;
}

static enum status measure_link(struct buffers *b, const struct off_tier_spec *spec,
                                const struct off_links *links, struct off_link *link, char *err)
{
    struct kn_window w = kn_window_default(spec->mem);
    *link = (struct off_link){0};
    off_tier_spec_name(spec, link->name);
    enum status st = open_remote(b, spec, err);
    if (st || (st = measure_alone(b, link, err)) || (st = measure_points(b, link, err))) return st;
    (void)!off_link_window(links, link, &w); /* else the usual one */
    return measure_copies(b, &w, link, err);
}

/* At most half of what is free. */
static enum status open_local(struct buffers *b, char *err)
{
    uint64_t total, available;
    enum status st = kn_memory(b->kn, &total, &available, err);
    if (st) return st;
    b->local_bytes = size_min(LOCAL_BYTES_MAX, available / 2) / LOCAL_BYTES_MIN * LOCAL_BYTES_MIN;
    if (!b->local_bytes)
        return err_set(err, ST_LIMIT,
                       "measuring the links takes a gibibyte of the GPU's memory, and %.2f GiB are "
                       "free: end what else uses it",
                       (double)available / (1 << 30));
    return kn_alloc(b->kn, KN_MEM_LOCAL, 0, b->local_bytes, &b->local, err);
}

enum status off_links_measure(struct kn *kn, const struct off_remote *remote, struct off_links *out,
                              char *err)
{
    struct buffers b = {.kn = kn};
    struct kn_link_rates rates;
    const struct kn_link_args idle = {.cluster = 1, .ns = 1};
    *out = (struct off_links){.unix_s = clock_unix_s()};
    strncat(out->identity, kn_identity(kn), sizeof out->identity - 1);
    /* Before memory is taken: a backend without links says so. */
    enum status st = kn_measure_link(kn, &idle, &rates, err);
    if (st || (st = open_local(&b, err)) || (st = measure(&b, true, 0, 0, 1, false, &rates, err)))
        goto done;
    out->hbm_bytes_per_s = rates.local_bytes_per_s;
    for (int i = 0; i < remote->count && !st; i++) {
        struct off_tier_spec spec = remote->spec[i];
        spec.bytes += remote->pool_bytes[i]; /* nothing of either is there yet */
        if (!(st = measure_link(&b, &spec, out, &out->link[i], err))) out->link_count++;
    }
done:
    buffers_close(&b);
    return st;
}
