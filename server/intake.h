/*
 * intake.h - from a request's body to what its route works on, without holding up the loop: small
 * bodies at once, large ones on libuv's pool.
 *
 *     srv_intake_start --small--> [read] ------------------------------------------> then
 *            |                                                                        ^
 *            +--large--> waiting in its lane --turn--> reading on the pool --done-----+--> fault
 *                              | client left: freed         | client left: what is read is dropped
 *
 * A body of 32 MiB takes the parser up to seconds, and its tree many times its own memory.  So
 * large bodies are read one at a time, in the order in which they became complete; until its turn a
 * body stays with its connection, which counts it (srv_http_config.body_bytes_total_max) and frees
 * it when the client leaves.  There are two such lanes, so that bodies of a long conversation wait
 * for their like and not for the largest.  Held beside what connections hold are then at most a
 * body and a tree a lane.
 *
 * Nothing is freed on the loop that is as large as a body either: of the tree, the pool leaves the
 * texts of prompts alone.
 *
 * Loop thread, but for what is said to run on the pool.
 */
#ifndef DAKD_SERVER_INTAKE_H
#define DAKD_SERVER_INTAKE_H

#include "server/api_parse.h"
#include "server/fault.h"
#include "server/http.h"

struct srv_api;
struct srv_intake;

/* What a route does with a body. */
struct srv_intake_route {
    enum srv_endpoint endpoint;
    /* What takes as long as reading: a text (malloc'ed; *text stays NULL where there is none to
     * make) from the checked request.  NULL: nothing.  Any thread, and several at once; false fills
     * the fault. */
    bool (*make)(const struct srv_api *api, const struct srv_ask *ask, char **text, size_t *len,
                 struct srv_fault *fault);
    /* Takes over *ask, which has lost messages, tools and their like, and text. */
    void (*then)(struct srv_api *api, struct srv_exchange *x, struct srv_ask *ask, char *text,
                 size_t len);
};

struct srv_lane {
    struct srv_intake *reading;      /* on the pool, or NULL */
    struct srv_intake *first, *last; /* waiting */
    int waiting;
};

enum { SRV_LANES = 2 };

/* Answers faults itself; else calls route->then, now or later.  route: static. */
void srv_intake_start(struct srv_api *api, struct srv_exchange *x,
                      const struct srv_intake_route *route);
/* Answers every request that waits or is read with the fault. */
void srv_intake_abort(struct srv_api *api, const struct srv_fault *fault);

#endif
