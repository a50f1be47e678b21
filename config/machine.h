/*
 * machine.h - the machines `dakd plan` knows by name: bandwidths as dakd's kernels read them, and
 * how much each memory holds.  One table (machine.c) for the planner, its flag and its help.
 */
#ifndef DAKD_CONFIG_MACHINE_H
#define DAKD_CONFIG_MACHINE_H

#define MACHINE_TFLOPS 989.0 /* of all of them: the datasheet's for dense bfloat16 */

struct machine {
    const char *name;
    double hbm_gbps, hbm_gib;
    const char *link_name; /* the remote tier behind the link: host or peer */
    double link_gbps, link_gib;
    const char *source; /* where the bandwidths come from */
};

/* The names, each behind a '|': an option's choices begin at the second byte. */
extern const char machine_names[];
/* NULL: none of that name. */
const struct machine *machine_find(const char *name);
/* To stdout, a line a machine. */
void machine_print_table(void);

#endif
