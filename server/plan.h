/*
 * plan.h - `dakd plan`: where a model's weights, and with --kv-remote its KV, would lie on a
 * machine one may not have, and the floor of a decode step there.  Reads config.json alone; needs
 * no GPU.  A floor is what the model of offload/plan.h says no placement beats: a prediction of no
 * time.
 */
#ifndef DAKD_SERVER_PLAN_H
#define DAKD_SERVER_PLAN_H

#include "config/options.h"

/* Prints the plan on standard output and writes it to --json; the exit status: 0, or 1 with a
 * sentence on standard error. */
int srv_plan(const struct options *given);

#endif
