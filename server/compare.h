/*
 * compare.h - `dakd bench --compare`: every mode of bringing remote weights x share of the weights
 * x number of sequences, in one run on one machine, beside what the planner's model allows.
 *
 *     rates of both memories -> for each placement and share: load -> for each batch, each mode:
 *     measure, a line -> summary, --csv, --json, --svg
 *
 * One loading a share, so that modes differ in nothing but how the same bytes are brought.  What
 * does not fit is a row that says why.
 */
#ifndef DAKD_SERVER_COMPARE_H
#define DAKD_SERVER_COMPARE_H

#include "config/options.h"

/* The exit status: 0; 1 after a failure, where what was measured before is written all the same; 2
 * where flags are wrong. */
int srv_compare(const struct options *o);

#endif
