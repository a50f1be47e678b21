#include "engine/flops.h"

#include <string.h>

#include "config/check.h"
#include "engine/model_state.h"

static double product(const struct kn_weight *w)
{
    return 2.0 * w->rows * w->cols;
}

void eng_flops_init(struct eng_flops *f, const struct eng_shape *shape,
                    const struct eng_weights *weights)
{
    const struct eng_model_info *info = &shape->info;
    *f = (struct eng_flops){.row = product(&weights->head),
                            .pair = 4.0 * info->q_heads * info->head_dim,
                            .layer_count = info->layer_count};
    for (int32_t i = 0; i < info->layer_count; i++) {
        const struct eng_layer *l = &weights->layers[i];
        f->token += product(&l->qkv) + product(&l->o) + product(&l->up) + product(&l->down);
    }
    memcpy(f->window, shape->window, sizeof f->window);
}

void eng_model_flops(const struct eng_model *model, struct eng_flops *f)
{
    eng_flops_init(f, &model->shape, &model->weights);
}

/* The pairs of positions [0, count) and the keys they see. */
static double pairs_from_start(int32_t count, int32_t window)
{
    double n = count, w = window;
    if (window == 0 || count <= window) return n * (n + 1) / 2;
    return w * (w + 1) / 2 + (n - w) * w;
}

double eng_flops_prompt(const struct eng_flops *f, int32_t begin, int32_t count, int32_t rows)
{
    double pairs = 0;
    CHECK(begin >= 0 && count >= 0 && rows >= 0);
    for (int32_t i = 0; i < f->layer_count; i++)
        pairs +=
            pairs_from_start(begin + count, f->window[i]) - pairs_from_start(begin, f->window[i]);
    return f->token * count + f->row * rows + f->pair * pairs;
}
