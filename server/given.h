/*
 * given.h - a KV cache that holds something to be read although nothing was computed, so that
 * decodes behind long contexts can be timed without their prompts (`dakd bench --given-context`).
 *
 * Every page of every tier gets the same K and V, uniform with mean 0 and variance 1, as products
 * of normalised rows with random weights have: no NaN, no zeros, and the padding of heads zero as
 * kernels.h has it.  One page is made by the host; the machine copies it to all the others.
 */
#ifndef DAKD_SERVER_GIVEN_H
#define DAKD_SERVER_GIVEN_H

#include "server/startup.h"

/* Before the engine is opened, which counts the moves of pages.  ST_NOMEM, ST_DEVICE. */
MUST_USE enum status srv_given_fill(struct srv_machine *m, uint64_t seed, char *err);

#endif
