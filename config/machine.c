/* machine.c - see machine.h. */
#include "config/machine.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "config/check.h"

/* Name, HBM GB/s and GiB, tier behind the link, its GB/s and GiB, source. */
#define MACHINES(X)                                                                                \
    X("h200-pcie", 4720, 139, "host", 51.5, 512, "measured")                                       \
    X("h200-nvlink-peer", 4630, 139, "peer", 377, 125, "measured")                                 \
    X("h100-pcie", 3280, 78, "host", 51.5, 512, "HBM: 98 % of its datasheet")                      \
    X("gh200", 3920, 94, "host", 435, 440, "both estimated")

#define ROW(...) {__VA_ARGS__},
#define NAME(name, ...) "|" name
static const struct machine machines[] = {MACHINES(ROW)};
const char machine_names[] = MACHINES(NAME);

const struct machine *machine_find(const char *name)
{
    for (size_t i = 0; i < ARRAY_COUNT(machines); i++)
        if (strcmp(machines[i].name, name) == 0) return &machines[i];
    return NULL;
}

void machine_print_table(void)
{
    printf("  %-18s %9s %9s   %-5s %9s %9s\n", "", "HBM GB/s", "of GiB", "link", "GB/s", "of GiB");
    for (size_t i = 0; i < ARRAY_COUNT(machines); i++) {
        const struct machine *m = &machines[i];
        printf("  %-18s %9g %9g   %-5s %9g %9g   %s\n", m->name, m->hbm_gbps, m->hbm_gib,
               m->link_name, m->link_gbps, m->link_gib, m->source);
    }
}
