/*
 * copy.h - another user of a link, for measuring how steps bear one: a copy engine that pulls
 * memory of a remote tier into local memory, again and again, beside what is computed and unknown
 * to it.
 */
#ifndef DAKD_KERNELS_COPY_H
#define DAKD_KERNELS_COPY_H

#include "kernels/kernels.h"

struct kn_copy;

/* Begins to copy bytes_per_s of memory of that kind, 0 for as fast as it goes, until it is closed.
 * By the thread that issues operations, between two steps.  ST_UNSUPPORTED where the backend has no
 * copy engine, ST_NOMEM, ST_DEVICE. */
MUST_USE enum status kn_copy_open(struct kn *kn, enum kn_mem mem, int device, double bytes_per_s,
                                  struct kn_copy **out, char *err);
/* Bytes that have arrived so far, to within a few megabytes.  Any thread. */
uint64_t kn_copy_bytes(const struct kn_copy *copy);
/* Stops and frees it.  ST_DEVICE where a copy failed. */
MUST_USE enum status kn_copy_close(struct kn_copy *copy, char *err);

#endif
