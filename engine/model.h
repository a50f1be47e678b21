/*
 * model.h - a model as the engine sees it: shapes, weights in their tiers, and the forward pass.
 *
 * Opening reads a Hugging Face directory: config.json through one table of architectures (arch.c),
 * then the tensors through one table of names and shapes per architecture, packed into blocks of
 * the tiers the placement chose.  Nothing after opening allocates.
 */
#ifndef DAKD_ENGINE_MODEL_H
#define DAKD_ENGINE_MODEL_H

#include "kernels/kernels.h"
#include "offload/place.h"
#include "offload/tiers.h"

enum eng_load_format { ENG_LOAD_SAFETENSORS, ENG_LOAD_DUMMY };
enum eng_dtype { ENG_DTYPE_AUTO, ENG_DTYPE_F32, ENG_DTYPE_BF16, ENG_DTYPE_F16 };

#define ENG_EOS_MAX 16

/* What config.json and generation_config.json say, independent of architecture names. */
struct eng_model_info {
    char architecture[64]; /* "LlamaForCausalLM" */
    int32_t layer_count, hidden, q_heads, kv_heads, head_dim, intermediate, vocab;
    /* Positions the model was made for, rope scaling included (eng_rope_context in rope.h says
     * how). */
    int32_t context_max;
    enum kn_dtype dtype;    /* as stored or as --dtype asks */
    enum kn_dtype kv_dtype; /* F32 where weights are F32, else as the weights */
    int32_t bos, eos[ENG_EOS_MAX],
        eos_count; /* -1 / 0 where not given; generation_config.json wins */
    /* Sampling defaults of generation_config.json; NAN / -1 where it has none. */
    float temperature, top_p, min_p, repetition_penalty;
    int32_t top_k;
    uint64_t parameter_count;
    uint64_t weight_bytes; /* all tiles, padding included, plus norms and biases */
};

struct eng_model_options {
    enum eng_load_format load_format;
    enum eng_dtype dtype;
    /* Sizes in place of config.json's, as a JSON object (eng_shape_read), of dummy weights alone;
     * NULL or "": none.  Borrowed until the model is open. */
    const char *hf_overrides;
    uint64_t seed;  /* of dummy weights */
    double offload; /* share of the weights in the remote tiers, 0..1 */
    enum off_placement placement;
    /* Every tier holds all weights, and `offload` says which of them are read where:
     * eng_model_place changes it at no cost.  To measure with; not with a plan. */
    bool everywhere;
    /* Where each weight lies, of eng_operations and solved, in place of the two above; or NULL.
     * Borrowed until the model is open. */
    const struct off_plan *plan;
    int32_t model_len_max; /* rows of the rope table; 0: context_max */
    int32_t tokens_max;    /* T of the largest step */
    int32_t rows_max;      /* R of the largest step */
    /* Called on the opening thread while weights are packed, done_bytes never falling; or NULL. */
    void (*progress)(void *user, uint64_t done_bytes, uint64_t total_bytes);
    void *user;
};

struct eng_model;

/* Only the shapes: reads config.json and generation_config.json. */
MUST_USE enum status eng_model_read_info(const char *dir, const struct eng_model_options *opt,
                                         struct eng_model_info *out, char *err);
struct eng_shape;
struct eng_weights;
/* The whole shape, type and bytes of the weights included. */
MUST_USE enum status eng_model_read_shape(const char *dir, const struct eng_model_options *opt,
                                          struct eng_shape *out, char *err);
/* Of an opened model; borrowed. */
const struct eng_shape *eng_model_shape(const struct eng_model *model);
const struct eng_weights *eng_model_weights(const struct eng_model *model);
/* Reads, places and packs everything.  The tiers and kn must outlive the model.  Any malformed file
 * is an error that names the file and the tensor; nothing is left allocated outside the tiers on
 * failure.  Weights, norms and biases (info.weight_bytes) lie in the tiers; activations and the
 * rope table are further memory of kn_alloc, about 4 * (tokens_max * (2 H + (2 Hq + 2 Hkv) * D + I)
 * + model_len_max * D) bytes on the CPU. */
MUST_USE enum status eng_model_open(struct kn *kn, struct off_tiers *tiers, const char *dir,
                                    const struct eng_model_options *opt, struct eng_model **out,
                                    char *err);
void eng_model_close(struct eng_model *model);
const struct eng_model_info *eng_model_info(const struct eng_model *model);
/* Of a model opened with `everywhere`: from now on its weights are read as opt's share and
 * placement have it.  No engine is open; what is staged of the weights (kn_stage) is none of them
 * any more, and must be staged anew before a step.  What a tile holds is the same in all tiers.
 * ST_INVALID, ST_NOMEM. */
MUST_USE enum status eng_model_place(struct eng_model *model, const struct off_tiers *tiers,
                                     const struct eng_model_options *opt, char *err);
/* Bytes of weights that are read in a tier. */
uint64_t eng_model_tier_bytes(const struct eng_model *model, int tier);
/* The KV geometry of this model with base[] still NULL. */
void eng_model_kv(const struct eng_model *model, struct kn_kv *kv);

/* The layers of one step: appends the batch's K and V to its pages.  batch.token_count <=
 * tokens_max. */
void eng_model_forward(struct eng_model *model, const struct kn_batch *batch,
                       const struct kn_kv *kv);
/* logits[R,V] fp32 of batch.rows, from the last eng_model_forward (batch may name any rows of it,
 * any number of times); host-readable once kn_sync returned.  batch.row_count <= rows_max. */
void eng_model_logits(struct eng_model *model, const struct kn_batch *batch, float *logits);

#endif
