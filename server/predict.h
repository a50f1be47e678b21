/*
 * predict.h - engine/predict.h of a machine that is open, or about to be: what start-up says of the
 * planned workload, and what dakd bench holds its steps against.  On the CPU nothing is predicted.
 */
#ifndef DAKD_SERVER_PREDICT_H
#define DAKD_SERVER_PREDICT_H

#include "engine/predict.h"
#include "offload/probe.h"
#include "server/startup.h"

/* A step of so many sequences of that context, with the weights where they were loaded and tiers as
 * fast as `b` says.  kv_bytes: what it reads of KV by tier; NULL: what it will in the long run
 * (kv_tiers.h).  All 0 where there is no prediction. */
struct eng_prediction srv_predict(const struct srv_machine *m, const struct off_bandwidth *b,
                                  int32_t seq_count, int32_t context,
                                  const uint64_t kv_bytes[KN_TIER_MAX]);

/* Of the machine's tiers, what was measured for the plan or is measured now; before its memory is
 * taken.  Where HBM's rate cannot be known the first one is 0. */
void srv_predict_rates(const struct options *o, const struct srv_machine *m,
                       struct off_bandwidth *out);
/* Logs the planned workload's step, or why there is no figure. */
void srv_predict_report(const struct srv_machine *m, const struct off_bandwidth *b);

#endif
