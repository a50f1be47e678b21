/* intake.c - see intake.h. */
#include "server/intake.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "config/check.h"
#include "server/api_int.h"

/* Read at once: about what takes a millisecond, and six of the worst JSON. */
#define INLINE_BYTES_MAX (16u << 10)
/* Of the first lane. */
#define LANE_BYTES_MAX (1u << 20)

struct srv_intake {
    struct srv_api *api;
    struct srv_exchange *x; /* NULL once answered, or the client left */
    const struct srv_intake_route *route;
    struct srv_lane *lane;
    struct srv_intake *next; /* of the lane */
    uv_work_t work;
    atomic_bool left; /* nobody waits for it any more */
    /* From its turn on; the pool's until the work is done. */
    char *body; /* owned */
    size_t body_len;
    struct srv_ask ask; /* where ok */
    char *text;         /* owned */
    size_t text_len;
    bool ok;
    struct srv_fault fault;
};

/* --- reading: any thread ---------------------------------------------------------------------- */

/* The texts of prompts stay. */
static void read_body(struct srv_intake *in, const char *body, size_t len)
{
    const struct srv_intake_route *route = in->route;
    struct srv_ask *ask = &in->ask;
    in->ok = srv_ask_parse(ask, route->endpoint, body, len, &in->api->limits, &in->fault);
    if (!in->ok) return;
    if (route->make && !atomic_load(&in->left))
        in->ok = route->make(in->api, ask, &in->text, &in->text_len, &in->fault);
    if (in->ok) srv_ask_keep_prompts(ask);
    else srv_ask_deinit(ask);
}

static void read_on_pool(uv_work_t *work)
{
    struct srv_intake *in = work->data;
    read_body(in, in->body, in->body_len);
    free(in->body);
    in->body = NULL;
}

/* --- the lanes -------------------------------------------------------------------------------- */

static void answer(struct srv_intake *in)
{
    struct srv_exchange *x = in->x;
    in->x = NULL;
    if (in->ok) in->route->then(in->api, x, &in->ask, in->text, in->text_len);
    else srv_api_fault(x, &in->fault);
}

static void intake_free(struct srv_intake *in)
{
    free(in->body);
    free(in);
}

static void no_memory(struct srv_fault *fault)
{
    srv_fault_set(fault, 503, "unavailable_error", NULL, "",
                  "The server has no memory left for this request.");
}

static void next_turn(struct srv_lane *lane);

static void read_done(uv_work_t *work, int uv_status)
{
    struct srv_intake *in = work->data;
    in->lane->reading = NULL;
    next_turn(in->lane);
    if (in->x) {
        CHECK(uv_status == 0); /* it is cancelled where nobody waits for it */
        answer(in);
    } else if (in->ok) {
        srv_ask_deinit(&in->ask);
        free(in->text);
    }
    intake_free(in);
}

static void next_turn(struct srv_lane *lane)
{
    struct srv_intake *in = lane->first;
    if (lane->reading || !in) return;
    lane->first = in->next;
    if (!lane->first) lane->last = NULL;
    lane->waiting--;
    lane->reading = in;
    in->body = srv_x_body_take(in->x, &in->body_len);
    in->work.data = in;
    CHECK(uv_queue_work(in->api->loop, &in->work, read_on_pool, read_done) == 0); /* cannot fail */
}

static void unlink_waiting(struct srv_intake *in)
{
    struct srv_lane *lane = in->lane;
    struct srv_intake **at = &lane->first, *before = NULL;
    for (; *at != in; at = &(*at)->next) before = *at;
    *at = in->next;
    if (lane->last == in) lane->last = before;
    lane->waiting--;
}

/* Nobody waits for it. */
static void leave(struct srv_intake *in)
{
    in->x = NULL;
    if (in->lane->reading == in) {
        atomic_store(&in->left, true);
        uv_cancel((uv_req_t *)&in->work); /* read_done comes in any case */
        return;
    }
    unlink_waiting(in);
    intake_free(in);
}

static void client_left(struct srv_exchange *x, void *context)
{
    struct srv_intake *in = context;
    CHECK(in->x == x);
    in->api->metrics.client_left++;
    leave(in);
}

void srv_intake_start(struct srv_api *api, struct srv_exchange *x,
                      const struct srv_intake_route *route)
{
    size_t len;
    if (!srv_api_ready(api, x)) return;
    const char *body = srv_x_body(x, &len);
    if (len <= INLINE_BYTES_MAX) {
        struct srv_intake now = {.api = api, .x = x, .route = route};
        read_body(&now, body, len);
        srv_x_body_release(x);
        answer(&now);
        return;
    }
    struct srv_intake *in = calloc(1, sizeof *in);
    if (!in) {
        struct srv_fault fault;
        no_memory(&fault);
        srv_api_fault(x, &fault);
        return;
    }
    in->api = api;
    in->x = x;
    in->route = route;
    in->lane = &api->lanes[len > LANE_BYTES_MAX];
    if (in->lane->last) in->lane->last->next = in;
    else in->lane->first = in;
    in->lane->last = in;
    in->lane->waiting++;
    srv_x_watch(x, client_left, NULL, in);
    next_turn(in->lane);
}

static void refuse(struct srv_intake *in, const struct srv_fault *fault)
{
    struct srv_exchange *x = in->x;
    if (!x) return;
    leave(in);
    srv_api_fault(x, fault);
}

void srv_intake_abort(struct srv_api *api, const struct srv_fault *fault)
{
    for (int i = 0; i < SRV_LANES; i++) {
        struct srv_lane *lane = &api->lanes[i];
        while (lane->first) refuse(lane->first, fault);
        if (lane->reading) refuse(lane->reading, fault);
    }
}
