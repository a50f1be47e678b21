/*
 * window.h - how each remote tier is read: --congestion-control and --remote-window.  Pure.
 *
 *     off       no bound: every CTA reads what falls to it as deep as its ring allows.  It shows
 * what windows are for: HBM stalls behind the bytes in flight. static    the tier's default
 * (kn_window_default), or what --remote-window sets adaptive  found while it is read
 * (congestion.h), from that one on
 */
#ifndef DAKD_OFFLOAD_WINDOW_H
#define DAKD_OFFLOAD_WINDOW_H

#include "offload/congestion.h"
#include "offload/tiers.h"

enum off_control_mode { OFF_CONTROL_NONE, OFF_CONTROL_STATIC, OFF_CONTROL_ADAPTIVE };
const char *off_control_mode_name(enum off_control_mode mode); /* "off", "static", "adaptive" */

/* How one remote tier is read. */
struct off_control {
    enum off_control_mode mode;
    struct kn_window window;             /* to begin with */
    struct off_congestion_config config; /* of ADAPTIVE: its limits; its start is `window` */
};

/* control[t] for t = 1..remote->count; the rest is zero.  mode is one of the names above, or a list
 * of such by tier: "host:adaptive,peer1:off", where tiers it leaves out are adaptive.  text is ""
 * or, for one or more tiers, CTAs x blocks in flight each: "host:16x1,peer:16x4", where "peer"
 * means every peer and "peer1" the one of device 1.  ST_INVALID names the part that is wrong. */
MUST_USE enum status off_control_read(const char *mode, const char *text,
                                      const struct off_remote *remote,
                                      struct off_control control[KN_TIER_MAX], char *err);
/* Bytes in flight that a window allows; UINT64_MAX where there is no bound. */
uint64_t off_window_bytes(const struct kn_window *window);

#endif
