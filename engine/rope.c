/*
 * rope.c - see rope.h.
 *
 * Dimension pair i of a head turns by position * f_i, with f_i = theta^(-2i/D).  The kinds of
 * scaling change f_i so that a model trained on short texts can read longer ones:
 *
 *     linear   f_i / factor.
 *     dynamic  (NTK) theta grows with the length of the sequence once that passes position_max.
 *     llama3   low frequencies / factor, high ones unchanged, a linear blend between.
 *     yarn     the same idea by dimension instead of wavelength, and cosines and sines scaled.
 *
 * Dynamic NTK has no fixed f_i, and the usual implementation computes one for the whole length of
 * the call, so that a prompt's rotation depends on how it is cut into chunks.  Here position p
 * always uses the length max(p + 1, position_max): the same within position_max and, beyond it, the
 * same as a sequence decoded token by token; independent of chunking.
 *
 * Rounding follows the Python reference step by step (fp32 exponents, powers, quotients and
 * angles): at position 100,000 one unit in the last place of f_i already shows in the fourth digit
 * of a cosine.
 *
 * Sources: Su et al. 2021 (RoPE), Peng et al. 2023 (YaRN), and the documented behaviour of
 * transformers' modeling_rope_utils.
 */
#include "engine/rope.h"

#include <math.h>
#include <string.h>

#include "config/check.h"
#include "config/json.h"
#include "config/log.h"

#define POSITION_LIMIT (1 << 24)
#define HEAD_DIM_MAX 512
#define PI 3.14159265358979323846

static const struct {
    const char *name;
    enum eng_rope_kind kind;
} kinds[] = {
    {"default", ENG_ROPE_DEFAULT}, {"linear", ENG_ROPE_LINEAR}, {"dynamic", ENG_ROPE_DYNAMIC},
    {"llama3", ENG_ROPE_LLAMA3},   {"yarn", ENG_ROPE_YARN},
};

/* --- configuration -----------------------------------------------------------------------------
 */

static enum status parse_kind(const cJSON *params, struct eng_rope *r, char *err)
{
    const char *name, *old_name;
    enum status st;
    if ((st = json_get_string(params, "type", "default", &old_name, err)) ||
        (st = json_get_string(params, "rope_type", old_name, &name, err)))
        return st;
    for (size_t i = 0; i < ARRAY_COUNT(kinds); i++)
        if (!strcmp(name, kinds[i].name)) {
            r->kind = kinds[i].kind;
            return ST_OK;
        }
    return err_set(
        err, ST_UNSUPPORTED,
        "the rope scaling '%.60s' is not supported (supported: default, linear, dynamic, "
        "llama3, yarn)",
        name);
}

/* A number that must be there and be more than zero. */
static enum status required(const cJSON *params, const char *key, double max, double *out,
                            char *err)
{
    enum status st = json_get_double(params, key, 0, max, -1, out, err);
    if (st) return st;
    if (*out <= 0)
        return err_set(err, ST_INVALID, "the rope scaling needs '%s', a number above 0", key);
    return ST_OK;
}

static enum status parse_original_max(const cJSON *config, const cJSON *params, struct eng_rope *r,
                                      char *err)
{
    int64_t own, outer;
    enum status st;
    const char *key = "original_max_position_embeddings";
    if ((st = json_get_int(params, key, 1, POSITION_LIMIT, r->position_max, &own, err)) ||
        (st = json_get_int(config, key, 1, POSITION_LIMIT, own, &outer, err)))
        return st;
    r->original_max = (int32_t)outer; /* the one outside wins, as in transformers */
    return ST_OK;
}

static enum status parse_llama3(const cJSON *params, struct eng_rope *r, char *err)
{
    enum status st;
    if ((st = required(params, "low_freq_factor", 1e6, &r->low_freq_factor, err)) ||
        (st = required(params, "high_freq_factor", 1e6, &r->high_freq_factor, err)))
        return st;
    if (r->high_freq_factor <= r->low_freq_factor)
        return err_set(err, ST_INVALID,
                       "the rope scaling's high_freq_factor must be above low_freq_factor");
    return ST_OK;
}

static double yarn_mscale(double factor, double mscale)
{
    return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

static enum status parse_yarn(const cJSON *params, struct eng_rope *r, char *err)
{
    enum status st;
    double attention, mscale, mscale_all;
    if ((st = json_get_double(params, "attention_factor", 0, 1e6, -1, &attention, err)) ||
        (st = json_get_double(params, "mscale", 0, 1e6, 0, &mscale, err)) ||
        (st = json_get_double(params, "mscale_all_dim", 0, 1e6, 0, &mscale_all, err)) ||
        (st = json_get_double(params, "beta_fast", 0, 1e6, 0, &r->beta_fast, err)) ||
        (st = json_get_double(params, "beta_slow", 0, 1e6, 0, &r->beta_slow, err)) ||
        (st = json_get_bool(params, "truncate", true, &r->truncate, err)))
        return st;
    if (r->beta_fast == 0) r->beta_fast = 32;
    if (r->beta_slow == 0) r->beta_slow = 1;
    if (r->theta <= 1)
        return err_set(err, ST_INVALID, "yarn needs a rope_theta above 1, not %g", r->theta);
    if (attention >= 0) r->attention_factor = attention;
    else if (mscale > 0 && mscale_all > 0)
        r->attention_factor = yarn_mscale(r->factor, mscale) / yarn_mscale(r->factor, mscale_all);
    else r->attention_factor = yarn_mscale(r->factor, 1);
    return ST_OK;
}

static void warn_unknown(const cJSON *params)
{
    static const char *const known[] = {"rope_type",        "type",
                                        "rope_theta",       "partial_rotary_factor",
                                        "factor",           "original_max_position_embeddings",
                                        "attention_factor", "beta_fast",
                                        "beta_slow",        "mscale",
                                        "mscale_all_dim",   "truncate",
                                        "low_freq_factor",  "high_freq_factor",
                                        "finetuned"};
    for (const cJSON *item = params ? params->child : NULL; item; item = item->next) {
        size_t i = 0;
        while (i < ARRAY_COUNT(known) && strcmp(known[i], item->string)) i++;
        if (i == ARRAY_COUNT(known))
            log_warn("engine",
                     "config.json: the rope parameter '%.80s' is not known and is ignored",
                     item->string);
    }
}

/* Scaling per layer type, multimodal sections and partial rotation change what is computed. */
static enum status check_supported(const cJSON *config, const cJSON *params, char *err)
{
    double partial, outer;
    enum status st;
    for (const cJSON *item = params ? params->child : NULL; item; item = item->next)
        if (cJSON_IsObject(item))
            return err_set(err, ST_UNSUPPORTED,
                           "rope parameters per layer type ('%.60s') are not supported",
                           item->string);
    if (json_member(params, "mrope_section"))
        return err_set(err, ST_UNSUPPORTED, "multimodal rope (mrope_section) is not supported");
    if ((st = json_get_double(config, "partial_rotary_factor", 0, 1, 1, &outer, err)) ||
        (st = json_get_double(params, "partial_rotary_factor", 0, 1, outer, &partial, err)))
        return st;
    if (partial != 1)
        return err_set(err, ST_UNSUPPORTED, "partial_rotary_factor %g is not supported", partial);
    return ST_OK;
}

/* rope_scaling, the older key, wins where both are given, as in transformers. */
static enum status find_params(const cJSON *config, const cJSON **out, char *err)
{
    const char *key = json_member(config, "rope_scaling") ? "rope_scaling" : "rope_parameters";
    *out = json_member(config, key);
    if (*out && !cJSON_IsObject(*out))
        return err_set(err, ST_INVALID, "'%s' must be an object or null", key);
    return ST_OK;
}

enum status eng_rope_parse(const cJSON *config, int32_t head_dim, int32_t position_max,
                           struct eng_rope *out, char *err)
{
    struct eng_rope r = {.head_dim = head_dim,
                         .position_max = position_max,
                         .original_max = position_max,
                         .factor = 1,
                         .attention_factor = 1};
    const cJSON *params;
    double theta;
    enum status st;
    *out = r;
    if (head_dim % 2 || head_dim < 2 || head_dim > HEAD_DIM_MAX)
        return err_set(err, ST_UNSUPPORTED,
                       "rotary embedding needs an even head_dim of 2 to %d, not %d", HEAD_DIM_MAX,
                       head_dim);
    if ((st = find_params(config, &params, err)) || (st = check_supported(config, params, err)) ||
        (st = parse_kind(params, &r, err)) ||
        (st = json_get_double(config, "rope_theta", 1e-6, 1e15, 10000, &theta, err)) ||
        (st = json_get_double(params, "rope_theta", 1e-6, 1e15, theta, &r.theta, err)))
        return st;
    warn_unknown(params);
    if (r.kind != ENG_ROPE_DEFAULT && (st = required(params, "factor", 1e6, &r.factor, err)))
        return st;
    if (r.kind == ENG_ROPE_LLAMA3 || r.kind == ENG_ROPE_YARN)
        if ((st = parse_original_max(config, params, &r, err))) return st;
    if (r.kind == ENG_ROPE_LLAMA3 && (st = parse_llama3(params, &r, err))) return st;
    if (r.kind == ENG_ROPE_YARN && (st = parse_yarn(params, &r, err))) return st;
    if (r.kind == ENG_ROPE_DYNAMIC && (head_dim == 2 || r.factor < 1))
        return err_set(err, ST_UNSUPPORTED,
                       "dynamic rope scaling needs a head_dim above 2 and a factor of at least 1");
    *out = r;
    return ST_OK;
}

int32_t eng_rope_context(const struct eng_rope *r)
{
    double n = r->position_max;
    if (r->kind == ENG_ROPE_LINEAR || r->kind == ENG_ROPE_DYNAMIC) n *= r->factor;
    if (r->kind == ENG_ROPE_YARN) n = r->original_max * r->factor;
    n = floor(n);
    return n < 1 ? 1 : n > POSITION_LIMIT ? POSITION_LIMIT : (int32_t)n;
}

/* --- frequencies -------------------------------------------------------------------------------
 */

/* base^(2i/D), rounded as fp32 arithmetic rounds it. */
static float power(double base, int32_t i, int32_t head_dim)
{
    float exponent = (float)(2 * i) / (float)head_dim;
    return (float)pow(base, (double)exponent);
}

static float llama3_frequency(const struct eng_rope *r, float f)
{
    double low_wavelen = r->original_max / r->low_freq_factor;
    double high_wavelen = r->original_max / r->high_freq_factor;
    float factor = (float)r->factor, wavelen = (float)(2 * PI) / f;
    if ((double)wavelen < high_wavelen) return f;
    if ((double)wavelen > low_wavelen) return f / factor;
    float smooth = ((float)r->original_max / wavelen - (float)r->low_freq_factor) /
                   (float)(r->high_freq_factor - r->low_freq_factor);
    return (1 - smooth) * f / factor + smooth * f;
}

/* The dimension whose pair turns `rotations` times over the original length. */
static double yarn_dimension(const struct eng_rope *r, double rotations)
{
    return r->head_dim * log(r->original_max / (rotations * 2 * PI)) / (2 * log(r->theta));
}

static void yarn_frequencies(const struct eng_rope *r, float *f)
{
    double low = yarn_dimension(r, r->beta_fast), high = yarn_dimension(r, r->beta_slow);
    if (r->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, r->head_dim - 1);
    if (low == high) high += 0.001;
    for (int32_t i = 0; i < r->head_dim / 2; i++) {
        float p = power(r->theta, i, r->head_dim);
        float ramp = ((float)i - (float)low) / (float)(high - low);
        float keep = 1 - fminf(fmaxf(ramp, 0), 1);
        f[i] = 1 / ((float)r->factor * p) * (1 - keep) + 1 / p * keep;
    }
}

/* The D/2 frequencies of a position. */
static void frequencies(const struct eng_rope *r, int32_t position, float *f)
{
    double base = r->theta;
    if (r->kind == ENG_ROPE_YARN) {
        yarn_frequencies(r, f);
        return;
    }
    if (r->kind == ENG_ROPE_DYNAMIC && position + 1 > r->position_max) {
        double stretch = r->factor * (position + 1) / r->position_max - (r->factor - 1);
        base *= pow(stretch, (double)r->head_dim / (r->head_dim - 2));
    }
    for (int32_t i = 0; i < r->head_dim / 2; i++) {
        f[i] = 1 / power(base, i, r->head_dim);
        if (r->kind == ENG_ROPE_LINEAR) f[i] /= (float)r->factor;
        if (r->kind == ENG_ROPE_LLAMA3) f[i] = llama3_frequency(r, f[i]);
    }
}

void eng_rope_table(const struct eng_rope *r, int32_t position_begin, int32_t row_count,
                    float *table)
{
    float f[HEAD_DIM_MAX / 2];
    int32_t half = r->head_dim / 2;
    float scale = (float)r->attention_factor;
    CHECK(position_begin >= 0 && r->head_dim <= HEAD_DIM_MAX);
    for (int32_t row = 0; row < row_count; row++) {
        int32_t position = position_begin + row;
        bool moving = r->kind == ENG_ROPE_DYNAMIC && position >= r->position_max;
        if (row == 0 || moving) frequencies(r, position, f);
        float *cosines = table + (size_t)row * (size_t)r->head_dim, *sines = cosines + half;
        for (int32_t i = 0; i < half; i++) {
            float angle = (float)position * f[i];
            cosines[i] = (float)cos((double)angle) * scale;
            sines[i] = (float)sin((double)angle) * scale;
        }
    }
}
