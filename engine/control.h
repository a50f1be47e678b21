/*
 * control.h - the windows of the remote tiers while the engine runs: what each tier's counters said
 * after a step goes to its controller (offload/congestion.h), what that decides to the kernels
 * (kn_set_window), and both to the log at level debug: every decision that is one, and of those
 * that keep everything as it is one in QUIET_LOGGED.
 *
 * Steps beside which KV pages were moved (kn_move_pages) share the link with the copy engine: they
 * are of no kind that the controller compares, like those that hold a part of a prompt.
 *
 * One tier searches at a time: another that did so too would take the rates of both for its own
 * doing.  The others wait, their windows as they are.
 *
 * The engine's thread alone; what others may see is a copy (struct eng_tier_control in eng_stats).
 */
#ifndef DAKD_ENGINE_CONTROL_H
#define DAKD_ENGINE_CONTROL_H

#include "offload/window.h"

/* A remote tier as it is read at present. */
struct eng_tier_control {
    enum off_control_mode mode;
    struct kn_window window;
    struct off_congestion_decision last; /* the model, of the last epoch; 0 before */
    enum off_congestion_phase phase;     /* of ADAPTIVE */
    uint64_t up_count, down_count;       /* moves of the window */
    uint64_t step_count;                 /* since it began */
    uint64_t found_step_count;           /* these until it had its window; 0: not yet */
};

/* What it is doing: "off", "static", or of ADAPTIVE the phase. */
#define ENG_CONTROL_STATES 4
extern const char *const eng_control_state_names[ENG_CONTROL_STATES];
int eng_control_state(const struct eng_tier_control *c); /* an index of these */

struct eng_control {
    struct kn *kn; /* borrowed */
    struct eng_tier_control tier[KN_TIER_MAX];
    struct off_congestion congestion[KN_TIER_MAX];
    uint32_t quiet_count[KN_TIER_MAX]; /* decisions that kept everything as it was */
    uint64_t moved_bytes[KN_TIER_MAX]; /* of the reading before */
    int32_t moving[KN_TIER_MAX];       /* readings that moves may still fall into */
};

/* Begins anew with these settings and sets the windows; tiers whose window has no CTAs are not
 * there. */
void eng_control_begin(struct eng_control *c, struct kn *kn,
                       const struct off_control control[KN_TIER_MAX]);
/* After a step: the counters of all tiers, the step's kind (off_congestion_sample), and for how
 * long the machine has been busy since the engine was opened. */
void eng_control_step(struct eng_control *c, const struct kn_traffic traffic[KN_TIER_MAX],
                      uint32_t kind, uint64_t device_ns);

#endif
