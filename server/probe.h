/*
 * probe.h - `dakd probe`, and the same measurement for start-up: taken from the file it is kept in,
 * or measured and kept.
 */
#ifndef DAKD_SERVER_PROBE_H
#define DAKD_SERVER_PROBE_H

#include "config/options.h"
#include "offload/link.h"

/* The links to `remote`'s tiers: from the file of this device and driver, in o->state_dir, what it
 * lacks (or, with --reprobe, everything) measured now, on an idle machine, and the file written
 * anew.  A file that is damaged or foreign is told in the log and overwritten; one that cannot be
 * written is told too, and costs nothing else; a measurement that was disturbed is not kept.
 * ST_UNSUPPORTED on the CPU backend; errors of measuring. */
MUST_USE enum status srv_probe_links(const struct options *o, struct kn *kn,
                                     const struct off_remote *remote, struct off_links *out,
                                     char *err);

/* The command: a table on standard output, --json, --svg.  The exit status: 0, or 1 with a sentence
 * on standard error. */
int srv_probe(const struct options *o);

/* probe_svg.c: of every link a panel, the rates of HBM and of the link against bytes in flight. */
void srv_probe_put_svg(struct buf *b, const struct off_links *links);

#endif
