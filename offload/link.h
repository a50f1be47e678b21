/*
 * link.h - what the link to a remote tier gives, alone and while HBM is busy: measured once for a
 * device and its driver, and kept in a file (link_file.c).
 *
 * The rule that windows follow.  A link is filled by some bytes in flight, and more of them only
 * wait; past a point what waits stalls HBM.  So the window is the least that fills the link, and
 * where that costs HBM too much, what fills it best without.
 */
#ifndef DAKD_OFFLOAD_LINK_H
#define DAKD_OFFLOAD_LINK_H

#include "config/buf.h"
#include "offload/tiers.h"

#define OFF_LINK_POINTS_MAX 32
#define OFF_LINK_CLUSTERS 3 /* of 2, 4 and 8 CTAs */

/* While every SM streams HBM and `ctas` of them read the link with `blocks` blocks in flight each.
 */
struct off_link_point {
    int32_t ctas, blocks;
    double link_bytes_per_s, hbm_bytes_per_s, trip_mean_s, trip_max_s;
};

struct off_link {
    char name[OFF_TIER_NAME_CAP];
    double read_bytes_per_s;          /* alone */
    double trip_s;                    /* of one block, nothing else under way */
    double copy_bytes_per_s;          /* the copy engine, alone */
    double busy_copy_bytes_per_s;     /* the same while HBM is streamed, */
    double busy_copy_hbm_bytes_per_s; /* and HBM's rate then */
    /* The same with kernels reading the link in its window as well: theirs, the copy engine's,
     * HBM's. */
    double both_read_bytes_per_s, both_copy_bytes_per_s, both_hbm_bytes_per_s;
    double multicast[OFF_LINK_CLUSTERS]; /* what clusters get, over what crosses the link alone */
    struct off_link_point point[OFF_LINK_POINTS_MAX];
    int point_count;
};

struct off_links {
    char identity[192]; /* kn_identity */
    int64_t unix_s;     /* when it was measured */
    double hbm_bytes_per_s;
    struct off_link link[KN_TIER_MAX - 1];
    int link_count;
};

/* Measures HBM and every tier of `remote`; 0.3 s a tier.  The machine must be idle; up to 16 GiB
 * of HBM and a quarter of one of each tier are taken meanwhile.  ST_UNSUPPORTED on the CPU backend,
 * ST_NOMEM, ST_DEVICE. */
MUST_USE enum status off_links_measure(struct kn *kn, const struct off_remote *remote,
                                       struct off_links *out, char *err);

/* --- pure ------------------------------------------------------------------------------------- */

/* By name; NULL where there is none. */
const struct off_link *off_links_find(const struct off_links *links, const char *name);
/* By the tier that it leads to. */
const struct off_link *off_links_of(const struct off_links *links,
                                    const struct off_tier_spec *spec);
/* The window for a tier's link: of OFF_LINK_WINDOW_CTAS CTAs (what the products' dealing was tuned
 * for), the fewest blocks that give 97 % of the best rate there is at no more than 3 % of HBM's.
 * False, and *w is as it was, where no point of the link is so. */
#define OFF_LINK_WINDOW_CTAS 16
MUST_USE bool off_link_window(const struct off_links *links, const struct off_link *link,
                              struct kn_window *w);

/* Whether the machine was idle, as far as the figures tell: nothing was faster beside other work
 * than alone, to within 5 %. */
MUST_USE bool off_links_steady(const struct off_links *links);

/* --- the file (link_file.c) ------------------------------------------------------------------- */

/* As JSON, units in the names of the keys. */
void off_links_put_json(struct buf *b, const struct off_links *links);
/* ST_CORRUPT with a sentence where the text is no such JSON, or says what no machine gives. */
MUST_USE enum status off_links_parse(const char *text, size_t len, struct off_links *out,
                                     char *err);
/* ST_NOT_FOUND; ST_CORRUPT; ST_INVALID where it is of another device or driver than `identity`. */
MUST_USE enum status off_links_load(const char *path, const char *identity, struct off_links *out,
                                    char *err);
/* Folders that are missing are made.  ST_IO. */
MUST_USE enum status off_links_save(const char *path, const struct off_links *links, char *err);

#endif
