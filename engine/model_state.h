/* model_state.h - struct eng_model, shared by model.c (opening) and forward.c (computing). */
#ifndef DAKD_ENGINE_MODEL_STATE_H
#define DAKD_ENGINE_MODEL_STATE_H

#include "engine/weights.h"

/* The buffers of a step, owned.  T tokens_max, R rows_max, P model_len_max. */
enum eng_buffer {
    ENG_BUFFER_X,    /* [T,H] fp32: the residual stream */
    ENG_BUFFER_H,    /* [max(T,R),H] act: what a norm gives */
    ENG_BUFFER_QKV,  /* [T, (Hq + 2 Hkv) * D] act */
    ENG_BUFFER_ATTN, /* [T, Hq * D] act */
    ENG_BUFFER_MLP,  /* [T, I'] act */
    ENG_BUFFER_ROWS, /* [R,H] fp32: the rows whose logits are wanted */
    ENG_BUFFER_ROPE, /* [P,D] fp32, with ENG_HAS_ROPE */
    ENG_BUFFER_COUNT
};

struct eng_model {
    struct kn *kn; /* borrowed */
    struct eng_shape shape;
    struct eng_weights weights; /* owned */
    int32_t tokens_max, rows_max, model_len_max;
    float attention_scale;
    void *buffer[ENG_BUFFER_COUNT];
    size_t buffer_bytes[ENG_BUFFER_COUNT];
};

#endif
