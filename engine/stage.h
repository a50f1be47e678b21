/*
 * stage.h - which of a model's remote weights the copy engine brings to decode steps (kn_stage): of
 * every layer's products, in the order of forward.c, so many tiles that each tier's share is met
 * (off_mix_deal), the large products first or of all alike.  The head is read in place, for not
 * every step wants logits; so are tables, of which a step reads single rows.
 */
#ifndef DAKD_ENGINE_STAGE_H
#define DAKD_ENGINE_STAGE_H

#include "engine/weights.h"
#include "offload/mix.h"

struct eng_stage_want {
    double share[KN_TIER_MAX];                  /* of the layers' weights in a tier; 0 of tier 0 */
    uint64_t copy_bytes_min, product_bytes_max; /* of one copy, and of one product's */
    bool even;      /* of every product alike, in place of the largest of a layer first */
    int32_t layers; /* the ring holds so many; and two products at least */
    uint64_t ring_bytes_max;
};

struct eng_staged {
    uint64_t bytes[KN_TIER_MAX]; /* of a step: whole tiles, padding and all */
    uint64_t ring_bytes;         /* 0: nothing is staged */
    uint64_t product_bytes;      /* the most of one product */
    int32_t product_count;       /* of a step's */
};

/* What may be staged of a model, as eng_staged counts it. */
struct eng_stage_room {
    uint64_t bytes[KN_TIER_MAX]; /* of the layers' weights; 0 of tier 0 */
    uint64_t room[KN_TIER_MAX];  /* of them, with `want`'s bounds */
    /* Of a layer, on average, by product, the largest first. */
    double product_bytes[KN_TIER_MAX][ENG_LAYER_PRODUCTS];
};
/* want's share does not matter.  ST_NOMEM. */
MUST_USE enum status eng_stage_room(const struct eng_model *model,
                                    const struct eng_stage_want *want, struct eng_stage_room *out,
                                    char *err);
/* From now on decode steps are so; no step is under way, and recordings are dropped.  The ring is
 * no larger than the products of `layers` layers, or two, need.  Shares of nothing free it.
 * ST_NOMEM where there is no memory for the ring, or for a list of products; else as kn_stage.  On
 * failure nothing is staged. */
MUST_USE enum status eng_model_stage(struct eng_model *model, const struct eng_stage_want *want,
                                     struct eng_staged *out, char *err);

#endif
