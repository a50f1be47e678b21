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

/* "host:16x1": the name before the colon to `name`, *value behind it; false where it has no such
 * form. */
static bool split_part(const char *part, char name[24], const char **value)
{
    size_t len = strcspn(part, ":");
    if (part[len] != ':' || len == 0 || len >= 24) return false;
    memcpy(name, part, len);
    name[len] = '\0';
    *value = part + len + 1;
    return true;
}

/* The tiers that `name` means, each but once; `flag` is whose value it is. */
static enum status mark_tiers(const char *flag, const char *name, const struct off_remote *remote,
                              bool set[KN_TIER_MAX], bool now[KN_TIER_MAX], char *err)
{
    bool found = false;
    for (int t = 1; t <= remote->count; t++) {
        now[t] = off_tier_is_named(&remote->spec[t - 1], name);
        if (now[t] && set[t])
            return err_set(err, ST_INVALID, "%s sets the tier of '%s' twice", flag, name);
        set[t] |= now[t];
        found |= now[t];
    }
    if (found) return ST_OK;
    return err_set(err, ST_INVALID, "%s: '%s' is of no tier that --remote names", flag, name);
}

static bool find_mode(const char *name, enum off_control_mode *out)
{
    for (int m = OFF_CONTROL_NONE; m <= OFF_CONTROL_ADAPTIVE; m++) {
        if (strcmp(name, off_control_mode_name((enum off_control_mode)m))) continue;
        *out = (enum off_control_mode)m;
        return true;
    }
    return false;
}

static enum status set_mode(const char *part, const struct off_remote *remote, bool *set,
                            struct off_control *control, char *err)
{
    char name[24];
    const char *value;
    enum off_control_mode mode;
    bool now[KN_TIER_MAX] = {false};
    if (!split_part(part, name, &value) || !find_mode(value, &mode))
        return err_set(err, ST_INVALID,
                       "--congestion-control: '%s' is none of off, static and adaptive, nor one of "
                       "them for a tier: write for example host:adaptive,peer:off",
                       part);
    enum status st = mark_tiers("--congestion-control", name, remote, set, now, err);
    for (int t = 1; t <= remote->count && !st; t++)
        if (now[t]) control[t].mode = mode;
    return st;
}

static enum status set_window(const char *part, const struct off_remote *remote, bool *set,
                              struct off_control *control, char *err)
{
    char name[24];
    const char *p;
    int32_t ctas, blocks;
    bool now[KN_TIER_MAX] = {false};
    if (!split_part(part, name, &p) || !parse_count(&p, &ctas) || *p++ != 'x' ||
        !parse_count(&p, &blocks) || *p)
        return err_set(err, ST_INVALID,
                       "--remote-window: '%s' is not a window: " EXPECTED
                       ", with 1 to %d of either",
                       part, KN_WINDOW_NO_BOUND);
    enum status st = mark_tiers("--remote-window", name, remote, set, now, err);
    for (int t = 1; t <= remote->count && !st; t++) {
        if (!now[t]) continue;
        if (control[t].mode == OFF_CONTROL_NONE)
            return err_set(err, ST_INVALID,
                           "--remote-window %s sets a bound, and --congestion-control off has "
                           "none: leave one of them out",
                           part);
        control[t].window.ctas = ctas;
        control[t].window.blocks = blocks;
    }
    return st;
}

/* Every part of a list in turn. */
static enum status read_parts(const char *flag, const char *text, const struct off_remote *remote,
                              enum status (*take)(const char *part, const struct off_remote *remote,
                                                  bool *set, struct off_control *control,
                                                  char *err),
                              struct off_control *control, char *err)
{
    bool set[KN_TIER_MAX] = {false};
    for (const char *p = text; p;) {
        char part[OFF_PART_CAP];
        if (!off_take_part(&p, part))
            return err_set(err, ST_INVALID, "%s: '%.40s...' is longer than any tier's part", flag,
                           p);
        enum status st = take(part, remote, set, control, err);
        if (st) return st;
    }
    return ST_OK;
}

/* What an adaptive tier may move within, from the window that it begins with. */
static enum status bound(struct off_control *c, const struct off_tier_spec *spec, char *err)
{
    c->config = off_congestion_config_default(spec->mem);
    if (c->mode != OFF_CONTROL_ADAPTIVE) return ST_OK;
    const int64_t start = (int64_t)c->window.ctas * c->window.blocks;
    if (start < c->config.least || start > c->config.cap)
        return err_set(err, ST_INVALID,
                       "--remote-window %dx%d: adaptive control begins with %d to %d blocks in "
                       "flight, CTAs x blocks",
                       c->window.ctas, c->window.blocks, c->config.least, c->config.cap);
    c->config.start = (int32_t)start;
    return ST_OK;
}

const char *off_control_mode_name(enum off_control_mode mode)
{
    static const char *const names[] = {"off", "static", "adaptive"};
    CHECK((size_t)mode < ARRAY_COUNT(names));
    return names[mode];
}

enum status off_control_read(const char *mode, const char *text, const struct off_remote *remote,
                             struct off_control control[KN_TIER_MAX], char *err)
{
    enum off_control_mode all = OFF_CONTROL_ADAPTIVE;
    const bool by_tier = !find_mode(mode, &all);
    enum status st = ST_OK;
    memset(control, 0, KN_TIER_MAX * sizeof control[0]);
    for (int t = 1; t <= remote->count; t++) control[t].mode = all;
    if (by_tier) st = read_parts("--congestion-control", mode, remote, set_mode, control, err);
    for (int t = 1; t <= remote->count && !st; t++) {
        struct kn_window *w = &control[t].window;
        *w = kn_window_default(remote->spec[t - 1].mem);
        if (control[t].mode == OFF_CONTROL_NONE) w->ctas = w->blocks = KN_WINDOW_NO_BOUND;
    }
    if (!st && *text) st = read_parts("--remote-window", text, remote, set_window, control, err);
    for (int t = 1; t <= remote->count && !st; t++)
        st = bound(&control[t], &remote->spec[t - 1], err);
    return st;
}

uint64_t off_window_bytes(const struct kn_window *w)
{
    if (w->ctas == KN_WINDOW_NO_BOUND && w->blocks == KN_WINDOW_NO_BOUND) return UINT64_MAX;
    return (uint64_t)w->ctas * (uint64_t)w->blocks * KN_BLOCK_BYTES;
}
