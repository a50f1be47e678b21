/*
 * arch.h - what a config.json means: shapes, options, and the names of its tensors.
 *
 * An architecture is one row of the table in arch.c.  Everything behind it (loader, forward pass)
 * asks a struct eng_shape for options and parts and never for the name of a model.
 */
#ifndef DAKD_ENGINE_ARCH_H
#define DAKD_ENGINE_ARCH_H

#include "engine/model.h"
#include "engine/rope.h"

#define ENG_LAYER_MAX 512
#define ENG_TENSOR_NAME_CAP 128

/* The tensors a model may be made of, whatever its checkpoint calls them. */
enum eng_part {
    ENG_PART_EMBED,     /* [V,H] */
    ENG_PART_POSITIONS, /* [P,H] learned positions */
    ENG_PART_FINAL_NORM,
    ENG_PART_FINAL_NORM_BIAS, /* [H] */
    ENG_PART_HEAD,            /* [V,H] */
    ENG_PART_LAYER,           /* the parts from here on exist once per layer */
    ENG_PART_ATTN_NORM = ENG_PART_LAYER,
    ENG_PART_ATTN_NORM_BIAS, /* [H] */
    ENG_PART_Q,              /* [Hq*D, H] */
    ENG_PART_K,              /* [Hkv*D, H] */
    ENG_PART_V,
    ENG_PART_Q_BIAS,
    ENG_PART_K_BIAS,
    ENG_PART_V_BIAS,
    ENG_PART_Q_NORM, /* [D] */
    ENG_PART_K_NORM,
    ENG_PART_O, /* [H, Hq*D] */
    ENG_PART_O_BIAS,
    ENG_PART_MLP_NORM,
    ENG_PART_MLP_NORM_BIAS,
    ENG_PART_GATE, /* [I,H] */
    ENG_PART_UP,
    ENG_PART_GATE_BIAS,
    ENG_PART_UP_BIAS,
    ENG_PART_DOWN, /* [H,I] */
    ENG_PART_DOWN_BIAS,
    ENG_PART_COUNT
};

/* Options, as bits of eng_shape.has. */
enum {
    ENG_HAS_POSITIONS = 1 << 0, /* learned positions are added to the embedding */
    ENG_HAS_ROPE = 1 << 1,
    ENG_HAS_NORM_BIAS = 1 << 2,
    ENG_HAS_QKV_BIAS = 1 << 3,
    ENG_HAS_O_BIAS = 1 << 4,
    ENG_HAS_MLP_BIAS = 1 << 5,
    ENG_HAS_QK_NORM = 1 << 6,
    ENG_HAS_GATE = 1 << 7, /* silu(gate) * up; without: relu(up) */
    ENG_HAS_HEAD = 1 << 8, /* a head of its own; without: the embedding table is the head */
};

struct eng_arch;

struct eng_shape {
    struct eng_model_info info; /* weight_bytes is filled by the loader */
    const struct eng_arch *arch;
    unsigned has;
    bool dtype_known; /* config.json or --dtype says; else info.dtype is F32 until the tensors do */
    enum kn_norm_kind norm;
    float norm_eps;
    struct eng_rope rope;                   /* with ENG_HAS_ROPE */
    int32_t position_rows, position_offset; /* with ENG_HAS_POSITIONS */
    int32_t window[ENG_LAYER_MAX];          /* sliding window of each layer, 0: none */
};

/* Reads dir/config.json and, where it exists, dir/generation_config.json.  Every number is checked,
 * so that products of dimensions used later fit.  overrides: sizes in place of the file's, as the
 * text of --hf-overrides, or NULL or "".  ST_INVALID, ST_UNSUPPORTED, ST_NOT_FOUND, ...; the
 * sentence names the file. */
MUST_USE enum status eng_shape_read(const char *dir, enum eng_dtype dtype, const char *overrides,
                                    struct eng_shape *out, char *err);
/* Sets info.dtype and kv_dtype. */
void eng_shape_set_dtype(struct eng_shape *shape, enum kn_dtype dtype);
bool eng_shape_has_part(const struct eng_shape *shape, enum eng_part part);
/* Rows and columns of a part; cols is 1 and the result 1 where it is a vector, else the result
 * is 2. */
int eng_shape_dims(const struct eng_shape *shape, enum eng_part part, int32_t *rows, int32_t *cols);
/* The tensor's name in a checkpoint; layer is ignored outside the layers. */
void eng_shape_tensor_name(const struct eng_shape *shape, enum eng_part part, int32_t layer,
                           char name[ENG_TENSOR_NAME_CAP]);

#endif
