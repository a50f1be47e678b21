#include "server/bench_parts.h"

#include <string.h>

#include "config/check.h"
#include "offload/tiers.h"

static const struct srv_bench_part known[] = {
    {"dependent-launch", KN_WITHOUT_DEPENDENT_LAUNCH},
    {"split-k", KN_WITHOUT_SPLIT_K},
    {"multicast", KN_WITHOUT_MULTICAST},
};
_Static_assert(ARRAY_COUNT(known) + 1 == SRV_BENCH_PARTS_MAX, "each once, and nothing left out");

enum status srv_bench_parts_read(const struct options *o,
                                 struct srv_bench_part out[SRV_BENCH_PARTS_MAX], int *count,
                                 char *err)
{
    unsigned seen = 0;
    out[0] = (struct srv_bench_part){"", 0};
    *count = 1;
    for (const char *p = o->without[0] ? o->without : NULL; p;) {
        char name[OFF_PART_CAP];
        size_t i = ARRAY_COUNT(known);
        if (off_take_part(&p, name))
            for (i = 0; i < ARRAY_COUNT(known) && strcmp(known[i].name, name); i++) {
            }
        if (i == ARRAY_COUNT(known) || seen & known[i].without)
            return err_set(err, ST_INVALID,
                           "--without '%.60s' is not a list of dependent-launch, split-k and "
                           "multicast, each at most once",
                           o->without);
        seen |= known[i].without;
        out[(*count)++] = known[i];
    }
    return ST_OK;
}
