/*
 * stop.h - stop strings in text that arrives in pieces.
 *
 * The answer ends where a stop string is first complete, reading the text byte by byte: of several, the one whose last
 * byte comes first, and of those the longest.  The text is cut before it (or after it, where it shall be included).
 * This rule does not depend on how tokens cut the text, so streamed and whole answers agree.
 *
 * Invariants
 *  1. Bytes are released only once no stop string that could still complete reaches into them: what is held back is the
 *     longest end of the text that begins a stop string.
 *  2. Held bytes < the longest stop string <= SRV_STOP_BYTES_MAX.
 *
 * Each string is matched by Knuth, Morris and Pratt's automaton, whose state is the length of that longest end.  Pure.
 */
#ifndef DAKD_SERVER_STOP_H
#define DAKD_SERVER_STOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/status.h"

#define SRV_STOP_MAX 16
#define SRV_STOP_BYTES_MAX 1024

struct srv_stop_set {
    int count;
    struct {
        char *text; /* owned, with its failure table in one block */
        uint16_t *fail;
        uint16_t len;
    } at[SRV_STOP_MAX];
};

/* Copies a string of 1..SRV_STOP_BYTES_MAX bytes into the set; ST_NOMEM.  CHECKs the room. */
MUST_USE enum status srv_stop_set_add(struct srv_stop_set *set, const char *text, size_t len);
void srv_stop_set_deinit(struct srv_stop_set *set);

/* One answer's progress; zero it to begin. */
struct srv_stop_scan {
    uint16_t matched[SRV_STOP_MAX];
};

struct srv_stop_hit {
    int which;        /* index in the set */
    size_t begin, end; /* of the stop string in text[] */
};

/* Bytes at the end of the text so far that must not be released yet. */
size_t srv_stop_held(const struct srv_stop_set *set, const struct srv_stop_scan *scan);
/* Reads the new bytes text[from..len), where text[0..from) holds at least the bytes srv_stop_held said.  True where a
 * stop string completes; hit is then filled and the scan is over. */
bool srv_stop_feed(const struct srv_stop_set *set, struct srv_stop_scan *scan, const char *text,
                   size_t from, size_t len, struct srv_stop_hit *hit);

#endif
