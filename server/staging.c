#include "server/staging.h"

#include <inttypes.h>
#include <string.h>

#include "config/log.h"
#include "config/size.h"
#include "server/mode.h"

#define MIB 1048576.0
/* Measured: with one layer's share the copies never wait for room.  A ring loses what is left of it
 * before its end, up to a product's part; and small rings stay in L2. */
#define AUTO_LAYERS 1.5
/* What rounding to whole tiles may add to four products. */
#define AUTO_SLACK_BYTES (16u << 20)

static bool is_auto(const struct options *o)
{
    return strcmp(o->prefill_staging_bytes, "auto") == 0;
}

/* Whether steps are so large that they fetch. */
static bool fetches(const struct options *o, bool gpu)
{
    return gpu && o->max_num_batched_tokens > KN_FETCH_TOKENS;
}

/* Whether the mode leaves prompts' weights where they are. */
static bool in_place(const struct options *o)
{
    enum off_mode mode;
    return off_mode_parse(o->offload_mode, &mode) && !off_mode_fetches_prompts(mode);
}

/* Decode steps of more than KN_FETCH_TOKENS sequences fetch the head as well, whose part is several
 * layers'.  Where it does not fit, kernels read it, and copies stop meanwhile.  Measured, 512
 * sequences and 30 % of an 8B model over NVLink: 17.1 ms a step without room for it, 15.8 with 1
 * GiB; all in HBM 15.0. */
static double head_bytes(const struct eng_model_info *info)
{
    return (double)info->vocab * info->hidden * (double)kn_dtype_bytes(info->dtype);
}

enum status srv_staging_choose(const struct options *o, const struct eng_model_info *info,
                               double share, bool gpu, uint64_t *out, char *err)
{
    uint64_t given = 0;
    *out = 0;
    if (!is_auto(o) && size_parse(o->prefill_staging_bytes, &given))
        return err_set(err, ST_INVALID,
                       "--prefill-staging-bytes: '%s' is neither auto nor a size such as 512MiB",
                       o->prefill_staging_bytes);
    if (!is_auto(o) && !gpu)
        log_warn("startup", "--prefill-staging-bytes is of the GPU, and the CPU computes");
    if (!fetches(o, gpu) || share == 0 || !srv_mode_fetches_prompts(o)) return ST_OK;
    const double layer = share * (double)info->weight_bytes / info->layer_count;
    const double head = o->max_num_seqs > KN_FETCH_TOKENS ? share * head_bytes(info) : 0;
    *out = is_auto(o) ? (uint64_t)(AUTO_LAYERS * layer + head) + AUTO_SLACK_BYTES : given;
    return ST_OK;
}

enum status srv_staging_open(const struct options *o, const struct eng_traffic *t, bool gpu,
                             uint64_t bytes, struct kn *kn, uint64_t *taken, char *err)
{
    const double far = (double)t->far_bytes_max / MIB;
    *taken = 0;
    if (!fetches(o, gpu) || t->far_bytes_max == 0) return ST_OK;
    if (bytes == 0 && o->max_num_batched_tokens <= KN_REMOTE_TOKENS)
        return kn_fetch_reserve(kn, 0, err);
    if (bytes == 0 && in_place(o))
        return err_set(err, ST_LIMIT,
                       "with --offload-mode %s, steps of --max-num-batched-tokens %" PRId64
                       " would read remote weights more than once: lower it to %d",
                       o->offload_mode, o->max_num_batched_tokens, KN_REMOTE_TOKENS);
    if (bytes == 0)
        return err_set(err, ST_LIMIT,
                       "with --prefill-staging-bytes 0, steps of --max-num-batched-tokens %" PRId64
                       " would read remote weights more than once: lower it to %d, or give at "
                       "least %.2f MiB",
                       o->max_num_batched_tokens, KN_REMOTE_TOKENS, far);
    if (bytes < t->far_bytes_max)
        return err_set(err, ST_LIMIT,
                       "--prefill-staging-bytes: the remote part of the largest product takes "
                       "%.2f MiB, and there are %.2f: raise it, or give 0, with which kernels read "
                       "remote weights where they lie",
                       far, (double)bytes / MIB);
    enum status st = kn_fetch_reserve(kn, bytes, err);
    if (st) return st;
    *taken = bytes;
    log_info("startup", "prompts: remote weights are copied through %.2f MiB of GPU memory",
             (double)bytes / MIB);
    return ST_OK;
}
