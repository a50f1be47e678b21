/*
 * window.h - which window each remote tier is read by: --congestion-control and --remote-window.
 * Pure.
 *
 *     off     no bound: every CTA reads what falls to it as deep as its ring allows.  It shows what
 *             windows are for: HBM stalls behind the bytes in flight.
 *     static  the tier's default (kn_window_default), or what --remote-window sets
 */
#ifndef DAKD_OFFLOAD_WINDOW_H
#define DAKD_OFFLOAD_WINDOW_H

#include "offload/tiers.h"

/* windows[t] for t = 1..remote->count; the rest is zero.  mode is "off", "static" or "adaptive"
 * (ST_UNSUPPORTED).  text is "" or, for one or more tiers, CTAs x blocks in flight each:
 * "host:16x1,peer:16x4", where "peer" means every peer and "peer1" the one of device 1.  ST_INVALID
 * names the part that is wrong. */
MUST_USE enum status off_windows_read(const char *mode, const char *text,
                                      const struct off_remote *remote,
                                      struct kn_window windows[KN_TIER_MAX], char *err);
/* Bytes in flight that a window allows; UINT64_MAX where there is no bound. */
uint64_t off_window_bytes(const struct kn_window *window);

#endif
