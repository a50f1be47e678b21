#include "offload/window.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"

#define EXPECTED "write TIER:CTASxBLOCKS, for example host:16x1"

/* A whole number 1..KN_WINDOW_NO_BOUND in digits; moves *text behind it. */
static bool parse_count(const char **text, int32_t *out)
{
    const char *p = *text;
    int32_t v = 0;
    for (; *p >= '0' && *p <= '9' && v <= KN_WINDOW_NO_BOUND; p++) v = v * 10 + (*p - '0');
    if (p == *text || v < 1 || v > KN_WINDOW_NO_BOUND) return false;
    *text = p;
    *out = v;
    return true;
}

/* Whether `name` means this tier: its kind, or for a peer its kind and device. */
static bool names_tier(const char *name, const struct off_tier_spec *spec)
{
    char own[24];
    if (spec->mem == KN_MEM_HOST) return strcmp(name, "host") == 0;
    snprintf(own, sizeof own, "peer%d", spec->device);
    return strcmp(name, "peer") == 0 || strcmp(name, own) == 0;
}

/* "host:16x1" */
static enum status set_part(const char *part, const struct off_remote *remote, bool *set,
                            struct kn_window *windows, char *err)
{
    char name[24];
    int32_t ctas, blocks;
    size_t len = strcspn(part, ":");
    const char *p = part + len;
    if (*p++ != ':' || len == 0 || len >= sizeof name || !parse_count(&p, &ctas) || *p++ != 'x' ||
        !parse_count(&p, &blocks) || *p)
        return err_set(err, ST_INVALID,
                       "--remote-window: '%s' is not a window: " EXPECTED
                       ", with 1 to %d of either",
                       part, KN_WINDOW_NO_BOUND);
    memcpy(name, part, len);
    name[len] = '\0';
    bool found = false;
    for (int t = 1; t <= remote->count; t++) {
        if (!names_tier(name, &remote->spec[t - 1])) continue;
        if (set[t])
            return err_set(err, ST_INVALID, "--remote-window sets the tier of '%s' twice", part);
        windows[t].ctas = ctas;
        windows[t].blocks = blocks;
        set[t] = found = true;
    }
    if (found) return ST_OK;
    return err_set(err, ST_INVALID, "--remote-window: '%s' is of no tier that --remote names",
                   part);
}

enum status off_windows_read(const char *mode, const char *text, const struct off_remote *remote,
                             struct kn_window windows[KN_TIER_MAX], char *err)
{
    bool off = strcmp(mode, "off") == 0, set[KN_TIER_MAX] = {false};
    memset(windows, 0, KN_TIER_MAX * sizeof windows[0]);
    if (!off && strcmp(mode, "static"))
        return err_set(err, ST_UNSUPPORTED,
                       "--congestion-control %s is not there yet: static has the windows that just "
                       "fill the link, and --remote-window sets others",
                       mode);
    if (off && *text)
        return err_set(err, ST_INVALID,
                       "--remote-window %s sets a bound, and --congestion-control off has none: "
                       "leave one of them out",
                       text);
    for (int t = 1; t <= remote->count; t++) {
        windows[t] = kn_window_default(remote->spec[t - 1].mem);
        if (off) windows[t].ctas = windows[t].blocks = KN_WINDOW_NO_BOUND;
    }
    if (!*text) return ST_OK;
    for (const char *p = text; p;) {
        char part[OFF_PART_CAP];
        if (!off_take_part(&p, part))
            return err_set(err, ST_INVALID,
                           "--remote-window: '%.40s...' is not a window: " EXPECTED, p);
        enum status st = set_part(part, remote, set, windows, err);
        if (st) return st;
    }
    return ST_OK;
}

uint64_t off_window_bytes(const struct kn_window *w)
{
    if (w->ctas == KN_WINDOW_NO_BOUND && w->blocks == KN_WINDOW_NO_BOUND) return UINT64_MAX;
    return (uint64_t)w->ctas * (uint64_t)w->blocks * KN_BLOCK_BYTES;
}
