/*
 * flops.h - how many operations a prompt takes, 2 a multiply-add.  Pure: from the model's shapes.
 *
 * Counted is what the mathematics needs: the products of every layer's weights with every token;
 * the head's with the tokens whose logits are wanted; and of attention 4 * D for each query head,
 * token and key that the token sees (scores and their use), the causal half, the layer's window
 * applied. Not counted: norms, rotations, softmax, the padding of tiles, and what a kernel computes
 * of the half it masks.  So the share of a peak made of it flatters no kernel.
 */
#ifndef DAKD_ENGINE_FLOPS_H
#define DAKD_ENGINE_FLOPS_H

#include "engine/weights.h"

struct eng_flops {
    double token; /* all layers' weights times one token */
    double row;   /* the head times one token */
    double pair;  /* attention of one token and one key in one layer */
    int32_t layer_count;
    int32_t window[ENG_LAYER_MAX]; /* 0: none */
};

void eng_flops_init(struct eng_flops *f, const struct eng_shape *shape,
                    const struct eng_weights *weights);
/* The same of an opened model. */
void eng_model_flops(const struct eng_model *model, struct eng_flops *f);
/* Of `count` tokens from position `begin` on, the logits of `rows` of them wanted. */
double eng_flops_prompt(const struct eng_flops *f, int32_t begin, int32_t count, int32_t rows);

#endif
