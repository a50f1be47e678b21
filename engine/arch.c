/*
 * arch.c - see arch.h.
 *
 * Two tables hold all that differs between architectures:
 *
 *     parts[]   shape of every part, and the options it takes for a model to have it;
 *     archs[]   one row per architecture: keys of its config.json, fixed options, tensor names.
 *
 * Defaults of absent keys are those of the Python reference, except that the sizes a model cannot
 * be guessed without (hidden_size and the like) must be given.  What would change the computation
 * and is not implemented is an error that names it, never ignored.
 */
#include "engine/arch.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "config/file.h"
#include "config/json.h"
#include "engine/overrides.h"

#define HIDDEN_MAX (1 << 17)
#define HEADS_MAX 1024
#define HEAD_DIM_MAX 512 /* what the kernels take */
#define INTERMEDIATE_MAX (1 << 20)
#define VOCAB_MAX (1 << 22)
#define POSITIONS_MAX (1 << 24)
#define PATH_CAP 4096

static const struct json_limits config_limits = {
    .bytes_max = 4u << 20, .nodes_max = 1u << 18, .depth_max = 32};

enum dim { DIM_ONE, DIM_VOCAB, DIM_POSITIONS, DIM_HIDDEN, DIM_Q, DIM_KV, DIM_HEAD, DIM_MLP };

static const struct {
    enum dim rows, cols; /* cols DIM_ONE: a vector */
    unsigned needs;
} parts[ENG_PART_COUNT] = {
    [ENG_PART_EMBED] = {DIM_VOCAB, DIM_HIDDEN, 0},
    [ENG_PART_POSITIONS] = {DIM_POSITIONS, DIM_HIDDEN, ENG_HAS_POSITIONS},
    [ENG_PART_FINAL_NORM] = {DIM_HIDDEN, DIM_ONE, 0},
    [ENG_PART_FINAL_NORM_BIAS] = {DIM_HIDDEN, DIM_ONE, ENG_HAS_NORM_BIAS},
    [ENG_PART_HEAD] = {DIM_VOCAB, DIM_HIDDEN, ENG_HAS_HEAD},
    [ENG_PART_ATTN_NORM] = {DIM_HIDDEN, DIM_ONE, 0},
    [ENG_PART_ATTN_NORM_BIAS] = {DIM_HIDDEN, DIM_ONE, ENG_HAS_NORM_BIAS},
    [ENG_PART_Q] = {DIM_Q, DIM_HIDDEN, 0},
    [ENG_PART_K] = {DIM_KV, DIM_HIDDEN, 0},
    [ENG_PART_V] = {DIM_KV, DIM_HIDDEN, 0},
    [ENG_PART_Q_BIAS] = {DIM_Q, DIM_ONE, ENG_HAS_QKV_BIAS},
    [ENG_PART_K_BIAS] = {DIM_KV, DIM_ONE, ENG_HAS_QKV_BIAS},
    [ENG_PART_V_BIAS] = {DIM_KV, DIM_ONE, ENG_HAS_QKV_BIAS},
    [ENG_PART_Q_NORM] = {DIM_HEAD, DIM_ONE, ENG_HAS_QK_NORM},
    [ENG_PART_K_NORM] = {DIM_HEAD, DIM_ONE, ENG_HAS_QK_NORM},
    [ENG_PART_O] = {DIM_HIDDEN, DIM_Q, 0},
    [ENG_PART_O_BIAS] = {DIM_HIDDEN, DIM_ONE, ENG_HAS_O_BIAS},
    [ENG_PART_MLP_NORM] = {DIM_HIDDEN, DIM_ONE, 0},
    [ENG_PART_MLP_NORM_BIAS] = {DIM_HIDDEN, DIM_ONE, ENG_HAS_NORM_BIAS},
    [ENG_PART_GATE] = {DIM_MLP, DIM_HIDDEN, ENG_HAS_GATE},
    [ENG_PART_UP] = {DIM_MLP, DIM_HIDDEN, 0},
    [ENG_PART_GATE_BIAS] = {DIM_MLP, DIM_ONE, ENG_HAS_GATE | ENG_HAS_MLP_BIAS},
    [ENG_PART_UP_BIAS] = {DIM_MLP, DIM_ONE, ENG_HAS_MLP_BIAS},
    [ENG_PART_DOWN] = {DIM_HIDDEN, DIM_MLP, 0},
    [ENG_PART_DOWN_BIAS] = {DIM_HIDDEN, DIM_ONE, ENG_HAS_MLP_BIAS},
};

/* Names inside a layer follow eng_arch.layers and the layer's number. */
static const char *const llama_tensors[ENG_PART_COUNT] = {
    [ENG_PART_EMBED] = "model.embed_tokens.weight",
    [ENG_PART_FINAL_NORM] = "model.norm.weight",
    [ENG_PART_HEAD] = "lm_head.weight",
    [ENG_PART_ATTN_NORM] = "input_layernorm.weight",
    [ENG_PART_Q] = "self_attn.q_proj.weight",
    [ENG_PART_K] = "self_attn.k_proj.weight",
    [ENG_PART_V] = "self_attn.v_proj.weight",
    [ENG_PART_Q_BIAS] = "self_attn.q_proj.bias",
    [ENG_PART_K_BIAS] = "self_attn.k_proj.bias",
    [ENG_PART_V_BIAS] = "self_attn.v_proj.bias",
    [ENG_PART_Q_NORM] = "self_attn.q_norm.weight",
    [ENG_PART_K_NORM] = "self_attn.k_norm.weight",
    [ENG_PART_O] = "self_attn.o_proj.weight",
    [ENG_PART_O_BIAS] = "self_attn.o_proj.bias",
    [ENG_PART_MLP_NORM] = "post_attention_layernorm.weight",
    [ENG_PART_GATE] = "mlp.gate_proj.weight",
    [ENG_PART_UP] = "mlp.up_proj.weight",
    [ENG_PART_GATE_BIAS] = "mlp.gate_proj.bias",
    [ENG_PART_UP_BIAS] = "mlp.up_proj.bias",
    [ENG_PART_DOWN] = "mlp.down_proj.weight",
    [ENG_PART_DOWN_BIAS] = "mlp.down_proj.bias",
};

static const char *const opt_tensors[ENG_PART_COUNT] = {
    [ENG_PART_EMBED] = "model.decoder.embed_tokens.weight",
    [ENG_PART_POSITIONS] = "model.decoder.embed_positions.weight",
    [ENG_PART_FINAL_NORM] = "model.decoder.final_layer_norm.weight",
    [ENG_PART_FINAL_NORM_BIAS] = "model.decoder.final_layer_norm.bias",
    [ENG_PART_HEAD] = "lm_head.weight",
    [ENG_PART_ATTN_NORM] = "self_attn_layer_norm.weight",
    [ENG_PART_ATTN_NORM_BIAS] = "self_attn_layer_norm.bias",
    [ENG_PART_Q] = "self_attn.q_proj.weight",
    [ENG_PART_K] = "self_attn.k_proj.weight",
    [ENG_PART_V] = "self_attn.v_proj.weight",
    [ENG_PART_Q_BIAS] = "self_attn.q_proj.bias",
    [ENG_PART_K_BIAS] = "self_attn.k_proj.bias",
    [ENG_PART_V_BIAS] = "self_attn.v_proj.bias",
    [ENG_PART_O] = "self_attn.out_proj.weight",
    [ENG_PART_O_BIAS] = "self_attn.out_proj.bias",
    [ENG_PART_MLP_NORM] = "final_layer_norm.weight",
    [ENG_PART_MLP_NORM_BIAS] = "final_layer_norm.bias",
    [ENG_PART_UP] = "fc1.weight",
    [ENG_PART_UP_BIAS] = "fc1.bias",
    [ENG_PART_DOWN] = "fc2.weight",
    [ENG_PART_DOWN_BIAS] = "fc2.bias",
};

enum window_rule {
    WINDOW_NONE,
    WINDOW_EVERY, /* sliding_window, in every layer */
    WINDOW_SOME,  /* use_sliding_window, with max_window_layers or layer_types */
};

/* A boolean of config.json; without a key it is fixed. */
struct flag {
    const char *key;
    bool fallback;
};

struct eng_arch {
    const char *name, *model_type;
    const char *layers; /* prefix of the names inside layers */
    const char *const *tensors;
    unsigned has; /* what every model of this architecture has */
    enum kn_norm_kind norm;
    const char *norm_eps_key; /* NULL: fixed */
    double norm_eps;
    const char *intermediate_key, *activation_key, *activation;
    const char *kv_heads_key, *head_dim_key; /* NULL: Hkv = Hq, D = H / Hq */
    const char *embed_dim_key;               /* where given, it must equal the hidden size */
    int32_t head_dim;                        /* of an absent key; 0: H / Hq */
    int32_t position_offset;
    struct flag qkv_bias, o_bias, mlp_bias, tied;
    enum window_rule window;
    struct flag must[3]; /* keys that must have the value of `fallback` */
};

static const struct eng_arch archs[] = {
    {.name = "LlamaForCausalLM",
     .model_type = "llama",
     .layers = "model.layers.",
     .tensors = llama_tensors,
     .has = ENG_HAS_ROPE | ENG_HAS_GATE,
     .norm = KN_RMS_NORM,
     .norm_eps_key = "rms_norm_eps",
     .norm_eps = 1e-6,
     .intermediate_key = "intermediate_size",
     .activation_key = "hidden_act",
     .activation = "silu",
     .kv_heads_key = "num_key_value_heads",
     .head_dim_key = "head_dim",
     .qkv_bias = {"attention_bias", false},
     .o_bias = {"attention_bias", false},
     .mlp_bias = {"mlp_bias", false},
     .tied = {"tie_word_embeddings", false}},
    {.name = "MistralForCausalLM",
     .model_type = "mistral",
     .layers = "model.layers.",
     .tensors = llama_tensors,
     .has = ENG_HAS_ROPE | ENG_HAS_GATE,
     .norm = KN_RMS_NORM,
     .norm_eps_key = "rms_norm_eps",
     .norm_eps = 1e-6,
     .intermediate_key = "intermediate_size",
     .activation_key = "hidden_act",
     .activation = "silu",
     .kv_heads_key = "num_key_value_heads",
     .head_dim_key = "head_dim",
     .tied = {"tie_word_embeddings", false},
     .window = WINDOW_EVERY},
    {.name = "Qwen2ForCausalLM",
     .model_type = "qwen2",
     .layers = "model.layers.",
     .tensors = llama_tensors,
     .has = ENG_HAS_ROPE | ENG_HAS_GATE,
     .norm = KN_RMS_NORM,
     .norm_eps_key = "rms_norm_eps",
     .norm_eps = 1e-6,
     .intermediate_key = "intermediate_size",
     .activation_key = "hidden_act",
     .activation = "silu",
     .kv_heads_key = "num_key_value_heads",
     .head_dim_key = "head_dim",
     .qkv_bias = {NULL, true},
     .tied = {"tie_word_embeddings", false},
     .window = WINDOW_SOME},
    {.name = "Qwen3ForCausalLM",
     .model_type = "qwen3",
     .layers = "model.layers.",
     .tensors = llama_tensors,
     .has = ENG_HAS_ROPE | ENG_HAS_GATE | ENG_HAS_QK_NORM,
     .norm = KN_RMS_NORM,
     .norm_eps_key = "rms_norm_eps",
     .norm_eps = 1e-6,
     .intermediate_key = "intermediate_size",
     .activation_key = "hidden_act",
     .activation = "silu",
     .kv_heads_key = "num_key_value_heads",
     .head_dim_key = "head_dim",
     .head_dim = 128,
     .qkv_bias = {"attention_bias", false},
     .o_bias = {"attention_bias", false},
     .tied = {"tie_word_embeddings", false},
     .window = WINDOW_SOME},
    {.name = "OPTForCausalLM",
     .model_type = "opt",
     .layers = "model.decoder.layers.",
     .tensors = opt_tensors,
     .has = ENG_HAS_POSITIONS | ENG_HAS_NORM_BIAS,
     .norm = KN_LAYER_NORM,
     .norm_eps = 1e-5,
     .intermediate_key = "ffn_dim",
     .activation_key = "activation_function",
     .activation = "relu",
     .embed_dim_key = "word_embed_proj_dim",
     .position_offset = 2,
     .qkv_bias = {"enable_bias", true},
     .o_bias = {"enable_bias", true},
     .mlp_bias = {"enable_bias", true},
     .tied = {"tie_word_embeddings", true},
     .must = {{"do_layer_norm_before", true},
              {"_remove_final_layer_norm", false},
              {"layer_norm_elementwise_affine", true}}},
};

/* --- parts ------------------------------------------------------------------------------------ */

bool eng_shape_has_part(const struct eng_shape *s, enum eng_part part)
{
    CHECK((unsigned)part < ENG_PART_COUNT);
    return (s->has & parts[part].needs) == parts[part].needs;
}

static int32_t dim_size(const struct eng_shape *s, enum dim dim)
{
    switch (dim) {
    case DIM_ONE: return 1;
    case DIM_VOCAB: return s->info.vocab;
    case DIM_POSITIONS: return s->position_rows;
    case DIM_HIDDEN: return s->info.hidden;
    case DIM_Q: return s->info.q_heads * s->info.head_dim;
    case DIM_KV: return s->info.kv_heads * s->info.head_dim;
    case DIM_HEAD: return s->info.head_dim;
    case DIM_MLP: return s->info.intermediate;
    }
    CHECK(!"a dimension");
    return 0;
}

int eng_shape_dims(const struct eng_shape *s, enum eng_part part, int32_t *rows, int32_t *cols)
{
    CHECK((unsigned)part < ENG_PART_COUNT);
    *rows = dim_size(s, parts[part].rows);
    *cols = dim_size(s, parts[part].cols);
    return parts[part].cols == DIM_ONE ? 1 : 2;
}

void eng_shape_tensor_name(const struct eng_shape *s, enum eng_part part, int32_t layer,
                           char name[ENG_TENSOR_NAME_CAP])
{
    const char *text = s->arch->tensors[part];
    CHECK(text);
    int n = part < ENG_PART_LAYER
                ? snprintf(name, ENG_TENSOR_NAME_CAP, "%s", text)
                : snprintf(name, ENG_TENSOR_NAME_CAP, "%s%d.%s", s->arch->layers, layer, text);
    CHECK(n > 0 && n < ENG_TENSOR_NAME_CAP);
}

static uint64_t count_parameters(const struct eng_shape *s)
{
    uint64_t total = 0;
    for (int part = 0; part < ENG_PART_COUNT; part++) {
        int32_t rows, cols;
        if (!eng_shape_has_part(s, (enum eng_part)part)) continue;
        eng_shape_dims(s, (enum eng_part)part, &rows, &cols);
        uint64_t copies = part < ENG_PART_LAYER ? 1 : (uint64_t)s->info.layer_count;
        total += (uint64_t)rows * (uint64_t)cols * copies;
    }
    return total;
}

/* --- which architecture ----------------------------------------------------------------------- */

static enum status unknown_arch(const char *name, char *err)
{
    char known[256];
    size_t len = 0;
    for (size_t i = 0; i < ARRAY_COUNT(archs); i++)
        len +=
            (size_t)snprintf(known + len, sizeof known - len, "%s%s", i ? ", " : "", archs[i].name);
    return err_set(err, ST_UNSUPPORTED, "the architecture '%.80s' is not supported (supported: %s)",
                   name, known);
}

/* By architectures[0]; by model_type where there is none.  Where both are given they must agree. */
static enum status find_arch(const cJSON *root, const struct eng_arch **out, char *err)
{
    const cJSON *list = json_member(root, "architectures");
    const cJSON *first = cJSON_IsArray(list) ? list->child : NULL;
    const char *type;
    enum status st = json_get_string(root, "model_type", NULL, &type, err);
    if (st) return st;
    if (list && !cJSON_IsString(first))
        return err_set(err, ST_INVALID, "'architectures' must be a list of names");
    if (!first && !type)
        return err_set(err, ST_INVALID,
                       "neither 'architectures' nor 'model_type' is given; this is not the "
                       "configuration of a language model");
    for (size_t i = 0; i < ARRAY_COUNT(archs); i++) {
        if (strcmp(first ? first->valuestring : type, first ? archs[i].name : archs[i].model_type))
            continue;
        if (type && strcmp(type, archs[i].model_type))
            return err_set(err, ST_INVALID,
                           "'architectures' says %s, whose model_type is '%s', but 'model_type' "
                           "says '%.80s'",
                           archs[i].name, archs[i].model_type, type);
        *out = &archs[i];
        return ST_OK;
    }
    return unknown_arch(first ? first->valuestring : type, err);
}

/* --- config.json ------------------------------------------------------------------------------ */

static enum status required_int(const cJSON *root, const char *key, int32_t max, int32_t *out,
                                char *err)
{
    int64_t v;
    enum status st = json_get_int(root, key, 1, max, 0, &v, err);
    if (st) return st;
    if (v == 0) return err_set(err, ST_INVALID, "'%s' is missing", key);
    *out = (int32_t)v;
    return ST_OK;
}

static enum status read_sizes(const cJSON *root, struct eng_shape *s, char *err)
{
    struct eng_model_info *m = &s->info;
    const struct eng_arch *a = s->arch;
    enum status st;
    if ((st = required_int(root, "vocab_size", VOCAB_MAX, &m->vocab, err)) ||
        (st = required_int(root, "hidden_size", HIDDEN_MAX, &m->hidden, err)) ||
        (st = required_int(root, "num_hidden_layers", ENG_LAYER_MAX, &m->layer_count, err)) ||
        (st = required_int(root, "num_attention_heads", HEADS_MAX, &m->q_heads, err)) ||
        (st = required_int(root, a->intermediate_key, INTERMEDIATE_MAX, &m->intermediate, err)) ||
        (st = required_int(root, "max_position_embeddings", POSITIONS_MAX, &m->context_max, err)))
        return st;
    int64_t kv_heads = m->q_heads, head_dim = a->head_dim, embed = m->hidden;
    if (a->kv_heads_key &&
        (st = json_get_int(root, a->kv_heads_key, 1, HEADS_MAX, kv_heads, &kv_heads, err)))
        return st;
    if (a->head_dim_key &&
        (st = json_get_int(root, a->head_dim_key, 1, HEAD_DIM_MAX, head_dim, &head_dim, err)))
        return st;
    if (a->embed_dim_key &&
        (st = json_get_int(root, a->embed_dim_key, 1, HIDDEN_MAX, embed, &embed, err)))
        return st;
    if (embed != m->hidden)
        return err_set(err, ST_UNSUPPORTED,
                       "an embedding of its own width ('%s' %lld, hidden_size %d) is not supported",
                       a->embed_dim_key, (long long)embed, m->hidden);
    if (head_dim == 0) {
        head_dim = m->hidden / m->q_heads;
        if (m->hidden % m->q_heads || head_dim > HEAD_DIM_MAX)
            return err_set(err, ST_INVALID,
                           "hidden_size %d does not divide into %d heads of at most %d", m->hidden,
                           m->q_heads, HEAD_DIM_MAX);
    }
    if (m->q_heads % kv_heads)
        return err_set(err, ST_INVALID,
                       "num_attention_heads %d is not a multiple of num_key_value_heads %lld",
                       m->q_heads, (long long)kv_heads);
    m->kv_heads = (int32_t)kv_heads;
    m->head_dim = (int32_t)head_dim;
    return ST_OK;
}

static enum status read_flag(const cJSON *root, struct flag flag, bool *out, char *err)
{
    *out = flag.fallback;
    return flag.key ? json_get_bool(root, flag.key, flag.fallback, out, err) : ST_OK;
}

static enum status read_options(const cJSON *root, struct eng_shape *s, char *err)
{
    const struct eng_arch *a = s->arch;
    bool qkv_bias, o_bias, mlp_bias, tied;
    enum status st;
    if ((st = read_flag(root, a->qkv_bias, &qkv_bias, err)) ||
        (st = read_flag(root, a->o_bias, &o_bias, err)) ||
        (st = read_flag(root, a->mlp_bias, &mlp_bias, err)) ||
        (st = read_flag(root, a->tied, &tied, err)))
        return st;
    s->has = a->has | (qkv_bias ? ENG_HAS_QKV_BIAS : 0u) | (o_bias ? ENG_HAS_O_BIAS : 0u) |
             (mlp_bias ? ENG_HAS_MLP_BIAS : 0u) | (tied ? 0u : ENG_HAS_HEAD);
    for (size_t i = 0; i < ARRAY_COUNT(a->must) && a->must[i].key; i++) {
        bool value;
        if ((st = read_flag(root, a->must[i], &value, err))) return st;
        if (value != a->must[i].fallback)
            return err_set(err, ST_UNSUPPORTED, "'%s' %s is not supported", a->must[i].key,
                           value ? "true" : "false");
    }
    const char *activation;
    if ((st = json_get_string(root, a->activation_key, a->activation, &activation, err))) return st;
    if (strcmp(activation, a->activation))
        return err_set(err, ST_UNSUPPORTED, "'%s' \"%.60s\" is not supported (only \"%s\" is)",
                       a->activation_key, activation, a->activation);
    const cJSON *quant = json_member(root, "quantization_config");
    if (quant) {
        const cJSON *method = json_member(quant, "quant_method");
        return err_set(err, ST_UNSUPPORTED,
                       "quantised checkpoints (quantization_config, quant_method '%.60s') are not "
                       "supported",
                       cJSON_IsString(method) ? method->valuestring : "unknown");
    }
    double eps = a->norm_eps;
    if (a->norm_eps_key &&
        (st = json_get_double(root, a->norm_eps_key, 0, 1, a->norm_eps, &eps, err)))
        return st;
    s->norm = a->norm;
    s->norm_eps = (float)eps;
    return ST_OK;
}

static enum status read_positions(const cJSON *root, struct eng_shape *s, char *err)
{
    int32_t position_max = s->info.context_max;
    if (s->has & ENG_HAS_ROPE) {
        enum status st = eng_rope_parse(root, s->info.head_dim, position_max, &s->rope, err);
        if (st) return st;
        s->info.context_max = eng_rope_context(&s->rope);
    }
    if (s->has & ENG_HAS_POSITIONS) {
        s->position_offset = s->arch->position_offset;
        s->position_rows = position_max + s->position_offset;
    }
    return ST_OK;
}

/* layer_types wins over max_window_layers. */
static enum status read_layer_types(const cJSON *types, int32_t window, struct eng_shape *s,
                                    char *err)
{
    if (!cJSON_IsArray(types) || cJSON_GetArraySize(types) != s->info.layer_count)
        return err_set(err, ST_INVALID, "'layer_types' must be a list of %d names, one per layer",
                       s->info.layer_count);
    int32_t layer = 0;
    for (const cJSON *item = types->child; item; item = item->next, layer++) {
        const char *name = cJSON_IsString(item) ? item->valuestring : "";
        bool sliding = !strcmp(name, "sliding_attention");
        if (!sliding && strcmp(name, "full_attention"))
            return err_set(err, ST_UNSUPPORTED,
                           "the layer type '%.60s' of layer %d is not supported (supported: "
                           "full_attention, sliding_attention)",
                           name, layer);
        if (sliding && window == 0)
            return err_set(err, ST_INVALID,
                           "'layer_types' asks for sliding attention in layer %d, but no "
                           "sliding_window is in use",
                           layer);
        s->window[layer] = sliding ? window : 0;
    }
    return ST_OK;
}

static enum status read_window(const cJSON *root, struct eng_shape *s, char *err)
{
    const int32_t fallback = 4096;
    enum window_rule rule = s->arch->window;
    const cJSON *given = cJSON_GetObjectItemCaseSensitive(root, "sliding_window");
    bool use = rule == WINDOW_EVERY;
    int64_t window, full_layers = 0;
    enum status st;
    if (rule == WINDOW_NONE) return ST_OK;
    /* null says that there is none; an absent key has a default. */
    if ((st = json_get_int(root, "sliding_window", 1, INT32_MAX, cJSON_IsNull(given) ? 0 : fallback,
                           &window, err)))
        return st;
    if (rule == WINDOW_SOME &&
        ((st = json_get_bool(root, "use_sliding_window", false, &use, err)) ||
         (st = json_get_int(root, "max_window_layers", 0, INT32_MAX, 28, &full_layers, err))))
        return st;
    if (!use) window = 0;
    const cJSON *types = rule == WINDOW_SOME ? json_member(root, "layer_types") : NULL;
    if (types) return read_layer_types(types, (int32_t)window, s, err);
    for (int32_t i = 0; i < s->info.layer_count; i++)
        s->window[i] = i >= full_layers ? (int32_t)window : 0;
    return ST_OK;
}

/* --- types and tokens ------------------------------------------------------------------------- */

void eng_shape_set_dtype(struct eng_shape *s, enum kn_dtype dtype)
{
    s->info.dtype = s->info.kv_dtype = dtype;
}

static enum status read_dtype(const cJSON *root, enum eng_dtype asked, struct eng_shape *s,
                              char *err)
{
    static const struct {
        const char *name;
        enum kn_dtype dtype;
    } names[] = {{"float32", KN_F32}, {"bfloat16", KN_BF16}, {"float16", KN_F16}};
    const char *old_name, *name;
    enum status st;
    eng_shape_set_dtype(s, KN_F32);
    s->dtype_known = true;
    switch (asked) {
    case ENG_DTYPE_F32: return ST_OK;
    case ENG_DTYPE_BF16: eng_shape_set_dtype(s, KN_BF16); return ST_OK;
    case ENG_DTYPE_F16: eng_shape_set_dtype(s, KN_F16); return ST_OK;
    case ENG_DTYPE_AUTO: break;
    }
    if ((st = json_get_string(root, "torch_dtype", NULL, &old_name, err)) ||
        (st = json_get_string(root, "dtype", old_name, &name, err)))
        return st;
    s->dtype_known = name != NULL;
    if (!name) return ST_OK;
    if (!strncmp(name, "torch.", 6)) name += 6;
    for (size_t i = 0; i < ARRAY_COUNT(names); i++)
        if (!strcmp(name, names[i].name)) {
            eng_shape_set_dtype(s, names[i].dtype);
            return ST_OK;
        }
    return err_set(err, ST_UNSUPPORTED,
                   "the dtype '%.60s' is not supported (supported: float32, bfloat16, float16)",
                   name);
}

static enum status token_id(const cJSON *item, const char *key, int32_t vocab, int32_t *out,
                            char *err)
{
    double v = cJSON_IsNumber(item) ? item->valuedouble : -1;
    if (!(v >= 0 && v < vocab) || v != floor(v))
        return err_set(
            err, ST_INVALID,
            "'%s' must be a token id, or a list of at most %d, below the vocabulary's %d", key,
            ENG_EOS_MAX, vocab);
    *out = (int32_t)v;
    return ST_OK;
}

/* Reads bos_token_id and eos_token_id where the file gives them. */
static enum status read_tokens(const cJSON *root, struct eng_model_info *m, char *err)
{
    const cJSON *bos = json_member(root, "bos_token_id"), *eos = json_member(root, "eos_token_id");
    enum status st;
    if (bos && (st = token_id(bos, "bos_token_id", m->vocab, &m->bos, err))) return st;
    if (!eos) return ST_OK;
    const cJSON *item = cJSON_IsArray(eos) ? eos->child : eos;
    if (cJSON_IsArray(eos) && cJSON_GetArraySize(eos) > ENG_EOS_MAX)
        return token_id(NULL, "eos_token_id", m->vocab, &m->eos[0], err);
    m->eos_count = 0;
    for (; item; item = cJSON_IsArray(eos) ? item->next : NULL)
        if ((st = token_id(item, "eos_token_id", m->vocab, &m->eos[m->eos_count++], err)))
            return st;
    return ST_OK;
}

static enum status optional_float(const cJSON *root, const char *key, double min, double max,
                                  float *out, char *err)
{
    double v;
    enum status st = json_get_double(root, key, min, max, (double)NAN, &v, err);
    if (!st) *out = (float)v;
    return st;
}

static enum status read_generation(const cJSON *root, struct eng_model_info *m, char *err)
{
    int64_t top_k;
    enum status st;
    if (!cJSON_IsObject(root)) return err_set(err, ST_INVALID, "an object was expected");
    if ((st = read_tokens(root, m, err)) ||
        (st = optional_float(root, "temperature", 0, 1e6, &m->temperature, err)) ||
        (st = optional_float(root, "top_p", 0, 1, &m->top_p, err)) ||
        (st = optional_float(root, "min_p", 0, 1, &m->min_p, err)) ||
        (st = optional_float(root, "repetition_penalty", 1e-6, 1e6, &m->repetition_penalty, err)) ||
        (st = json_get_int(root, "top_k", -1, INT32_MAX, -1, &top_k, err)))
        return st;
    m->top_k = (int32_t)top_k;
    return ST_OK;
}

/* --- the files -------------------------------------------------------------------------------- */

/* Sizes of another model of the same kind, to measure one that is smaller; whatever else a
 * config.json says decides what is computed, and stays the model's. */
static enum status override_sizes(const char *text, const struct eng_arch *a, cJSON *root,
                                  char *err)
{
    const char *const keys[] = {
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "vocab_size",
        a->intermediate_key,
        a->kv_heads_key,
        a->head_dim_key,
        a->has & ENG_HAS_POSITIONS ? "max_position_embeddings" : NULL, /* rows of a table */
    };
    if (!text || !*text) return ST_OK;
    return eng_overrides_apply(text, keys, (int)ARRAY_COUNT(keys), root, err);
}

static enum status read_config(cJSON *root, enum eng_dtype dtype, const char *overrides,
                               struct eng_shape *s, char *err)
{
    enum status st;
    if (!cJSON_IsObject(root)) return err_set(err, ST_INVALID, "an object was expected");
    if ((st = find_arch(root, &s->arch, err)) ||
        (st = override_sizes(overrides, s->arch, root, err)) || (st = read_sizes(root, s, err)) ||
        (st = read_options(root, s, err)) || (st = read_positions(root, s, err)) ||
        (st = read_window(root, s, err)) || (st = read_dtype(root, dtype, s, err)) ||
        (st = read_tokens(root, &s->info, err)))
        return st;
    snprintf(s->info.architecture, sizeof s->info.architecture, "%s", s->arch->name);
    s->info.parameter_count = count_parameters(s);
    return ST_OK;
}

enum status eng_shape_read(const char *dir, enum eng_dtype dtype, const char *overrides,
                           struct eng_shape *out, char *err)
{
    struct eng_shape s = {.info = {.bos = -1,
                                   .temperature = NAN,
                                   .top_p = NAN,
                                   .min_p = NAN,
                                   .repetition_penalty = NAN,
                                   .top_k = -1}};
    char path[PATH_CAP], why[ERR_CAP] = "";
    cJSON *root;
    enum status st;
    if ((st = file_join(path, sizeof path, dir, "config.json", err)) ||
        (st = json_parse_file(path, &config_limits, &root, err)))
        return st;
    st = read_config(root, dtype, overrides, &s, why);
    cJSON_Delete(root);
    if (st)
        return err_set(err, st, "%.200s%s: %.300s", path,
                       overrides && *overrides ? " with --hf-overrides" : "", why);
    if ((st = file_join(path, sizeof path, dir, "generation_config.json", err))) return st;
    if (file_exists(path)) {
        if ((st = json_parse_file(path, &config_limits, &root, err))) return st;
        st = read_generation(root, &s.info, why);
        cJSON_Delete(root);
        if (st) return err_set(err, st, "%.200s: %.300s", path, why);
    }
    *out = s;
    return ST_OK;
}
