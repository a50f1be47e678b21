#include "server/bench_control.h"

#include <stdio.h>
#include <string.h>

/* "8x2" as --remote-window has it, for every remote tier. */
static enum status read_window(const char *text, const struct off_remote *remote,
                               struct off_control control[KN_TIER_MAX], char *err)
{
    char all[KN_TIER_MAX * OFF_PART_CAP] = "";
    bool host = false, peer = false;
    for (int t = 0; t < remote->count; t++) {
        bool *named = remote->spec[t].mem == KN_MEM_HOST ? &host : &peer;
        const size_t len = strlen(all);
        if (*named) continue;
        *named = true;
        snprintf(all + len, sizeof all - len, "%s%s:%s", len ? "," : "",
                 named == &host ? "host" : "peer", text);
    }
    return off_control_read("static", all, remote, control, err);
}

static enum status read_one(const char *name, const struct off_remote *remote,
                            struct srv_bench_control *out, char *err)
{
    snprintf(out->name, sizeof out->name, "%s", name);
    if (name[0] >= '0' && name[0] <= '9') return read_window(name, remote, out->control, err);
    return off_control_read(name, "", remote, out->control, err);
}

enum status srv_bench_controls_read(const struct options *o,
                                    struct srv_bench_control out[SRV_BENCH_CONTROLS_MAX],
                                    int *count, char *err)
{
    struct off_remote remote;
    int kv_tier;
    enum status st = off_remote_parse(o->remote, &remote, err);
    if (!st && o->kv_remote[0])
        st = off_remote_add_pool(o->kv_remote, "--kv-remote", &remote, &kv_tier, err);
    *count = 0;
    if (st) return st;
    if (!o->control_sweep[0]) {
        out[0].name[0] = '\0';
        *count = 1;
        return off_control_read(o->congestion_control, o->remote_window, &remote, out[0].control,
                                err);
    }
    if (remote.count == 0)
        return err_set(err, ST_INVALID,
                       "--control-sweep compares ways to read a remote tier, and "
                       "--remote names none, nor --kv-remote");
    for (const char *p = o->control_sweep; p && !st;) {
        char part[OFF_PART_CAP];
        if (!off_take_part(&p, part) || *count == SRV_BENCH_CONTROLS_MAX)
            return err_set(err, ST_INVALID,
                           "--control-sweep '%.60s' is not a list of up to %d of off, static, "
                           "adaptive and windows such as 16x2",
                           o->control_sweep, SRV_BENCH_CONTROLS_MAX);
        st = read_one(part, &remote, &out[(*count)++], err);
    }
    return st;
}

bool srv_bench_control_adapts(const struct srv_bench_control *c)
{
    for (int t = 1; t < KN_TIER_MAX; t++)
        if (c->control[t].window.ctas && c->control[t].mode == OFF_CONTROL_ADAPTIVE) return true;
    return false;
}
