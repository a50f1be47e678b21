/*
 * compare.h - `dakd bench --compare`: every mode of bringing remote weights x share of the weights
 * x number of sequences, in one run on one machine, beside what the planner's model allows.
 *
 *     rates of both memories -> load -> for each placement and share: place -> for each mode, each
 *     batch: measure, a line -> summary, --csv, --json, --svg
 *
 * One loading, so that modes differ in nothing but how the same bytes are brought.  What does not
 * fit is a row that says why.
 */
#ifndef DAKD_SERVER_COMPARE_H
#define DAKD_SERVER_COMPARE_H

#include "config/options.h"

/* The exit status: 0; 1 after a failure, where what was measured before is written all the same; 2
 * where flags are wrong; 3 where --compare-limit-seconds left configurations out. */
#define SRV_COMPARE_EXIT_LIMIT 3
int srv_compare(const struct options *o);

#endif
