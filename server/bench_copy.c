#include "server/bench_copy.h"

#include <string.h>

#include "config/size.h"

/* "25GB/s" */
static bool parse_rate(const char *text, double *out)
{
    char size[32];
    uint64_t bytes;
    const size_t len = strlen(text);
    if (len < 3 || len - 2 >= sizeof size || strcmp(text + len - 2, "/s")) return false;
    memcpy(size, text, len - 2);
    size[len - 2] = '\0';
    if (size_parse(size, &bytes) || bytes == 0) return false;
    *out = (double)bytes;
    return true;
}

enum status srv_bench_copy_read(const struct options *o, struct srv_bench_copy *out, char *err)
{
    const char *text = o->background_copy;
    const size_t len = strcspn(text, ":");
    char name[OFF_PART_CAP];
    struct off_remote remote;
    enum status st = off_remote_parse(o->remote, &remote, err);
    *out = (struct srv_bench_copy){.tier = 0};
    if (st || !*text) return st;
    if (len >= sizeof name || (text[len] && !parse_rate(text + len + 1, &out->bytes_per_s)))
        return err_set(err, ST_INVALID,
                       "--background-copy '%s' is not a tier and a rate: write host:25GB/s, or "
                       "host for as fast as it goes",
                       text);
    memcpy(name, text, len);
    name[len] = '\0';
    for (int t = remote.count; t >= 1; t--)
        if (off_tier_is_named(&remote.spec[t - 1], name)) out->tier = t;
    if (out->tier) return ST_OK;
    return err_set(err, ST_INVALID, "--background-copy: '%s' is of no tier that --remote names",
                   name);
}

enum status srv_bench_copy_start(const struct srv_bench_copy *c, struct kn *kn,
                                 const struct off_tiers *tiers, struct kn_copy **out, char *err)
{
    *out = NULL;
    if (!c->tier) return ST_OK;
    const struct off_tier_spec *spec = off_tier_spec(tiers, c->tier);
    return kn_copy_open(kn, spec->mem, spec->device, c->bytes_per_s, out, err);
}
