/* stop.c - see stop.h. */
#include "server/stop.h"

#include <stdlib.h>
#include <string.h>

#include "config/check.h"

enum status srv_stop_set_add(struct srv_stop_set *set, const char *text, size_t len)
{
    CHECK(set->count < SRV_STOP_MAX && len > 0 && len <= SRV_STOP_BYTES_MAX);
    uint16_t *fail = malloc(len * sizeof *fail + len);
    if (!fail) return ST_NOMEM;
    char *copy = (char *)(fail + len);
    memcpy(copy, text, len);
    /* fail[i]: length of the longest proper beginning of text[0..i] that also ends it. */
    fail[0] = 0;
    for (size_t i = 1; i < len; i++) {
        size_t k = fail[i - 1];
        while (k > 0 && copy[k] != copy[i]) k = fail[k - 1];
        fail[i] = (uint16_t)(copy[k] == copy[i] ? k + 1 : 0);
    }
    set->at[set->count].text = copy;
    set->at[set->count].fail = fail;
    set->at[set->count].len = (uint16_t)len;
    set->count++;
    return ST_OK;
}

void srv_stop_set_deinit(struct srv_stop_set *set)
{
    for (int i = 0; i < set->count; i++) free(set->at[i].fail);
    *set = (struct srv_stop_set){0};
}

size_t srv_stop_held(const struct srv_stop_set *set, const struct srv_stop_scan *scan)
{
    size_t held = 0;
    for (int i = 0; i < set->count; i++) held = size_max(held, scan->matched[i]);
    return held;
}

bool srv_stop_feed(const struct srv_stop_set *set, struct srv_stop_scan *scan, const char *text,
                   size_t from, size_t len, struct srv_stop_hit *hit)
{
    CHECK(srv_stop_held(set, scan) <= from);
    for (size_t at = from; at < len && set->count > 0; at++) {
        size_t longest = 0;
        for (int i = 0; i < set->count; i++) {
            const char *stop = set->at[i].text;
            const uint16_t *fail = set->at[i].fail;
            size_t k = scan->matched[i];
            while (k > 0 && stop[k] != text[at]) k = fail[k - 1];
            if (stop[k] == text[at]) k++;
            scan->matched[i] = (uint16_t)k;
            if (k < set->at[i].len || k <= longest) continue;
            longest = k;
            *hit = (struct srv_stop_hit){.which = i, .begin = at + 1 - k, .end = at + 1};
        }
        if (longest > 0) return true;
    }
    return false;
}
