#include "config/options.h"

#include <ctype.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "config/file.h"
#include "config/json.h"
#include "config/machine.h"
#include "config/size.h"

/* SHARE: a number, or auto.  SWITCH: on or off; a flag alone means on. */
enum kind { TEXT, CHOICE, INT, UINT, BYTES, REAL, SHARE, SWITCH };

struct option {
    const char *name; /* without the two dashes */
    enum kind kind;
    size_t offset, cap; /* of the field; cap of text */
    unsigned commands;  /* bits 1 << enum options_command */
    double min, max;
    const char *initial; /* default, in the form a user would write */
    const char *choices; /* of CHOICE, separated by '|' */
    const char *help;
};

/* A field of serve and bench, of those and plan, of every command, of one or two. */
#define AT(field) FIELD(field, 1u << OPTIONS_SERVE | 1u << OPTIONS_BENCH)
#define ALL(field) FIELD(field, 1u << OPTIONS_SERVE | 1u << OPTIONS_BENCH | 1u << OPTIONS_PLAN)
#define EVERY(field)                                                                               \
    FIELD(field,                                                                                   \
          1u << OPTIONS_SERVE | 1u << OPTIONS_BENCH | 1u << OPTIONS_PLAN | 1u << OPTIONS_PROBE)
#define MEASURED(field)                                                                            \
    FIELD(field, 1u << OPTIONS_SERVE | 1u << OPTIONS_BENCH | 1u << OPTIONS_PROBE)
#define SERVE(field) FIELD(field, 1u << OPTIONS_SERVE)
#define BENCH(field) FIELD(field, 1u << OPTIONS_BENCH)
#define PLAN(field) FIELD(field, 1u << OPTIONS_PLAN)
#define PROBE(field) FIELD(field, 1u << OPTIONS_PROBE)
#define DRAWN(field) FIELD(field, 1u << OPTIONS_BENCH | 1u << OPTIONS_PROBE)
#define OFFLINE(field) FIELD(field, 1u << OPTIONS_BENCH | 1u << OPTIONS_PLAN | 1u << OPTIONS_PROBE)
#define FIELD(field, commands)                                                                     \
    offsetof(struct options, field), sizeof(((struct options *)0)->field), commands

static const struct {
    const char *name, *about;
} commands[] = {
    [OPTIONS_SERVE] = {"serve", "Serves a Hugging Face model folder over the OpenAI HTTP API."},
    [OPTIONS_BENCH] = {"bench", "Measures a model offline, against the floor its bytes and this "
                                "machine's bandwidths set:\nthe bytes a step reads of each tier "
                                "over the rate of that tier, the slowest tier's.  Where the copy\n"
                                "engine brings a part of a tier's bytes (--offload-mode), its rate "
                                "is the better of what kernels and\nwhat the copy engine get of "
                                "the link alone."},
    [OPTIONS_PLAN] =
        {"plan",
         "Says from config.json alone which weights, and with --kv-remote which KV, would lie in "
         "which tier, and the floor\nof a decode step: what no placement beats, and no "
         "measurement.  "
         "serve places by the same planner\nwhat does not fit, with what dakd probe measured."},
    [OPTIONS_PROBE] = {"probe",
                       "Measures HBM and the links to remote tiers of this machine's GPU, "
                       "alone and side by side, and keeps the\nresult for serve and bench, "
                       "which otherwise measure when they first need it."},
};

static const struct option table[] = {
    {"served-model-name", TEXT, SERVE(served_model_name), 0, 0, "", NULL,
     "names clients may use, comma-separated (default: the model folder's name)"},
    {"load-format", CHOICE, AT(load_format), 0, 0, "auto", "auto|safetensors|dummy",
     "dummy: seeded random weights at the shapes of config.json"},
    {"hf-overrides", TEXT, ALL(hf_overrides), 0, 0, "", NULL,
     "sizes that replace those of config.json, as a JSON object: {\"num_hidden_layers\": 8}; with "
     "--load-format dummy, for a checkpoint has the sizes it has"},
    {"dtype", CHOICE, ALL(dtype), 0, 0, "auto", "auto|float32|bfloat16|float16",
     "of the weights; auto: as stored"},
    {"kv-cache-dtype", CHOICE, ALL(kv_cache_dtype), 0, 0, "auto",
     "auto|float32|bfloat16|float16|fp8|fp8_e4m3",
     "of the KV cache; auto: float32 for float32 weights, else as the weights; fp8, or fp8_e4m3: "
     "half the bytes of 16 bits, with a scale for each token and kv-head"},
    {"chat-template", TEXT, SERVE(chat_template), 0, 0, "", NULL,
     "a Jinja file in place of the model's own template"},
    {"seed", UINT, AT(seed), 0, 9007199254740992.0, "0", NULL,
     "of dummy weights, and of the prompts of bench"},
    {"max-model-len", INT, AT(max_model_len), 0, 16777216, "0", NULL,
     "prompt and answer together, in tokens; 0: what the model allows, and there is KV cache for"},
    {"max-num-seqs", INT, SERVE(max_num_seqs), 1, 4096, "64", NULL, "sequences computed at once"},
    /* tests/gpu/results/README.md has the sweep that led to it. */
    {"max-num-batched-tokens", INT, ALL(max_num_batched_tokens), 1, 65536, "2048", NULL,
     "tokens of one step, prompts and decodes together: the more, the sooner prompts are computed, "
     "and the longer decodes wait for the step"},
    {"itl-target-ms", REAL, AT(itl_target_ms), 0, 60000, "0", NULL,
     "inter-token latency to keep while prompts are computed: a step with decodes has only so many "
     "tokens of prompts (64 at least) that it takes no longer, as learnt from steps before; 0: "
     "--max-num-batched-tokens alone"},
    {"max-waiting", INT, SERVE(max_waiting), 0, 65536, "1024", NULL,
     "sequences that may wait; one more is answered 503"},
    {"kv-cache-memory-bytes", BYTES, AT(kv_cache_memory_bytes), 0, 1e15, "0", NULL,
     "of the KV cache; 0: what --max-num-seqs sequences of --max-model-len need, up to what "
     "--gpu-memory-utilization leaves, or on the CPU up to 1GiB or one sequence"},
    {"kv-remote", TEXT, ALL(kv_remote), 0, 0, "", NULL,
     "a remote tier for KV pages that local memory has no room for, and its size, e.g. host:64GiB "
     "or peer:1:20GiB: full pages move there and are read in place; beside what --remote has "
     "there"},
    {"kv-policy", CHOICE, AT(kv_policy), 0, 0, "in-place", "in-place|swap|recompute",
     "when local KV memory is short: in-place moves full pages to --kv-remote and reads them "
     "there; "
     "swap and recompute are what others do, to measure against: the youngest sequence stops, and "
     "all its pages move to --kv-remote and back before it goes on, or are computed again"},
    {"kv-admission", CHOICE, AT(kv_admission), 0, 0, "auto", "auto|throughput|all",
     "of in-place, which sequences begin though local KV memory is taken: throughput: those with "
     "which steps are predicted to give more tokens a second; all: every one that --kv-remote has "
     "room for, so that all go on at once, if slowly; auto: throughput, and all where bench times "
     "steps. None waits for ever, and none that runs stops"},
    {"prefix-cache", SWITCH, SERVE(prefix_cache), 0, 0, "on", "off|on",
     "compute every prompt from its first token; without this flag, KV of prompts and answers "
     "stays "
     "while there is room, in both tiers, and a prompt that begins alike takes it from there"},
    {"device", CHOICE, MEASURED(device), 0, 0, "auto", "auto|cpu|cuda",
     "what computes; auto: the GPU where there is a supported one"},
    {"gpu-memory-utilization", REAL, ALL(gpu_memory_utilization), 0, 1, "0", NULL,
     "share of the GPU's memory that may be in use; 0: 0.9"},
    {"hbm-size", BYTES, ALL(hbm_size), 0, 1e15, "0", NULL,
     "take the GPU's memory for this large; on the CPU, of the arena that stands for it"},
    {"threads", INT, AT(threads), 0, 1024, "0", NULL,
     "of the CPU backend; 0: every core it may use"},
    {"remote", TEXT, MEASURED(remote), 0, 0, "", NULL,
     "remote tiers, e.g. peer:1:40GiB,host:64GiB (on the CPU backend, further arenas); without it, "
     "as much of the host's memory as is needed, at most what is available less an eighth of all"},
    {"offload", SHARE, AT(offload), 0, 1, "auto", NULL,
     "share of the weights kept in the remote tiers; auto: what does not fit in the GPU's memory "
     "beside the KV cache, where a step of --plan-batch sequences suffers least"},
    {"force-offload", SWITCH, AT(force_offload), 0, 0, "off", "off|on",
     "keep the share of --offload out of the GPU's memory although everything fits there"},
    {"placement", CHOICE, AT(placement), 0, 0, "auto", "auto|even|planned",
     "which weights a share of --offload moves; auto: those that cost a step least whose products "
     "wait for memory; planned: those that cost one of --plan-batch sequences of --plan-context "
     "tokens least, some of whose products may wait for arithmetic; even: the same share of each"},
    {"congestion-control", TEXT, AT(congestion_control), 0, 0, "adaptive", NULL,
     "adaptive, static or off, or by tier, e.g. host:adaptive,peer:static: how remote bytes in "
     "flight are bounded; adaptive: by what the link does; off: not at all, which stalls the GPU's "
     "own memory"},
    {"remote-window", TEXT, AT(remote_window), 0, 0, "", NULL,
     "of static, in place of what fills the link, and of adaptive, to begin with: CTAs that read a "
     "tier x 16 KiB blocks in flight each, e.g. host:16x2,peer:16x4"},
    {"prefill-staging-bytes", TEXT, ALL(prefill_staging_bytes), 0, 0, "auto", NULL,
     "GPU memory through which the copy engine brings remote weights to steps of more than 256 "
     "tokens, once for all of them; auto: what a layer and a half have there, and the head where "
     "steps have more than 256 sequences; 0: kernels read them where they lie, in steps of up to "
     "2048"},
    {"offload-mode", CHOICE, AT(offload_mode), 0, 0, "auto", "auto|direct|prefetch|uva",
     "how remote weights reach the GPU. direct: read where they lie, inside windows, prompts too; "
     "prefetch: all copied ahead by the copy engine; uva: read by plain loads with no window; "
     "auto: "
     "of what decode steps read, the share that makes them shortest is copied, up to the free "
     "fraction none, and the rest read directly (by the links' rates; where these leave it open "
     "steps are timed at start-up), prompts' copied. On the CPU: direct, auto"},
    {"prefetch-layers", INT, AT(prefetch_layers), 1, 64, "1", NULL,
     "of --offload-mode prefetch: layers that are copied ahead, in GPU memory of so many and one"},
    {"offload-staging-bytes", TEXT, ALL(offload_staging_bytes), 0, 0, "auto", NULL,
     "of --offload-mode auto: the most GPU memory through which the copy engine brings remote "
     "weights to decode steps; auto: what two layers have there, at most 512MiB where --offload "
     "is not given; 0: none is copied"},
    {"cuda-graphs", CHOICE, AT(cuda_graphs), 0, 0, "on", "on|off",
     "off: decode steps on a GPU are issued kernel by kernel (to measure against)"},
    {"async-scheduling", CHOICE, AT(async_scheduling), 0, 0, "auto", "auto|on|off",
     "issue a step before the tokens of the one before are known; auto: on a GPU"},
    {"host", TEXT, SERVE(host), 0, 0, "127.0.0.1", NULL, "address to listen on"},
    {"port", INT, SERVE(port), 0, 65535, "8000", NULL, "0: any free port"},
    {"port-file", TEXT, SERVE(port_file), 0, 0, "", NULL, "the port is written there once serving"},
    {"api-key", TEXT, SERVE(api_key), 0, 0, "", NULL,
     "required as 'Authorization: Bearer KEY' (better given as DAKD_API_KEY)"},
    {"allowed-origins", TEXT, SERVE(allowed_origins), 0, 0, "", NULL,
     "origins for CORS, comma-separated, or *; empty: CORS off"},
    {"max-connections", INT, SERVE(max_connections), 1, 65536, "1024", NULL, "open at once"},
    {"max-body-bytes", BYTES, SERVE(max_body_bytes), 1024, 67108864, "32MiB", NULL,
     "of one request"},
    {"header-timeout", REAL, SERVE(header_timeout), 0.01, 3600, "10", NULL,
     "seconds to send a header"},
    {"body-timeout", REAL, SERVE(body_timeout), 0.01, 3600, "60", NULL, "seconds to send a body"},
    {"idle-timeout", REAL, SERVE(idle_timeout), 0.01, 86400, "75", NULL,
     "seconds between requests"},
    {"write-timeout", REAL, SERVE(write_timeout), 0.01, 86400, "60", NULL,
     "seconds a reader may make no progress"},
    {"keep-alive-interval", REAL, SERVE(keep_alive_interval), 0.01, 3600, "10", NULL,
     "seconds between comments on a silent stream"},
    {"shutdown-timeout", REAL, SERVE(shutdown_timeout), 0, 86400, "30", NULL,
     "seconds that requests in flight get after SIGTERM"},
    {"log-level", CHOICE, EVERY(log_level), 0, 0, "info", "error|warn|info|debug",
     "of standard error"},
    {"batch", TEXT, BENCH(batch), 0, 0, "", NULL,
     "sequences computed at once; 1,32,128: one measurement each, of one loading"},
    {"control-sweep", TEXT, BENCH(control_sweep), 0, 0, "", NULL,
     "ways to read the remote tiers, each measured, of one loading: e.g. off,static,adaptive,8x2"},
    {"background-copy", TEXT, BENCH(background_copy), 0, 0, "", NULL,
     "a copy engine that uses the link to a remote tier beside the steps: host:25GB/s, or host for "
     "as fast as it goes"},
    {"without", TEXT, BENCH(without), 0, 0, "", NULL,
     "for measuring: a list of dependent-launch, split-k and multicast, each left out in turn "
     "beside "
     "a measurement with all of them, of one loading"},
    {"input-len", INT, BENCH(input_len), 0, 16777216, "0", NULL, "tokens of each prompt, random"},
    {"output-len", INT, BENCH(output_len), 0, 16777216, "0", NULL, "tokens of each answer"},
    {"given-context", SWITCH, BENCH(given_context), 0, 0, "off", "off|on",
     "of --load-format dummy: sequences begin as decodes behind --input-len tokens that nobody "
     "computed, with random KV in pages that lie where computing would have left them"},
    {"kv-sweep", TEXT, BENCH(kv_sweep), 0, 0, "", NULL,
     "what is done when local KV memory is short, each measured until all requests are done, of "
     "one "
     "loading: e.g. all,throughput (of --kv-policy in-place),swap,recompute"},
    {"compare", SWITCH, BENCH(compare), 0, 0, "off", "off|on",
     "measure every mode at every share of the weights in the one tier of --remote and at every "
     "--batch, with --output-len tokens at most; of one loading where every memory holds all "
     "weights, else of one a share"},
    {"compare-modes", TEXT, BENCH(compare_modes), 0, 0, "", NULL,
     "ways to bring remote weights, e.g. direct,prefetch,uva,auto (default: all the backend has)"},
    {"compare-offload", TEXT, BENCH(compare_offload), 0, 0, "0,free,0.1,0.3,0.5,1", NULL,
     "shares of the weights; free: what the tier's link delivers while HBM delivers the rest"},
    {"compare-placement", TEXT, BENCH(compare_placement), 0, 0, "even", NULL,
     "which weights a share moves, as --placement: even, auto or even,auto"},
    {"compare-seconds", REAL, BENCH(compare_seconds), 0.01, 3600, "1", NULL,
     "that a configuration's steps may take, where that is enough for a TPOT"},
    {"compare-limit-seconds", REAL, BENCH(compare_limit_seconds), 0, 1e6, "0", NULL,
     "of --compare: after so long no other configuration is begun; those that are missing are "
     "told, "
     "what was measured is written, and the exit status is 3; 0: no limit"},
    {"csv", TEXT, BENCH(csv), 0, 0, "", NULL, "of --compare: a file with a line a configuration"},
    {"request-rate", REAL, BENCH(request_rate), 0, 1e6, "0", NULL,
     "prompts that arrive a second, evenly, while --batch sequences decode: what they cost each "
     "other"},
    {"num-prompts", INT, BENCH(num_prompts), 1, 4096, "32", NULL, "of --request-rate"},
    {"sweep-batched-tokens", TEXT, BENCH(sweep_batched_tokens), 0, 0, "", NULL,
     "of --request-rate: one measurement with each of these --max-num-batched-tokens, e.g. "
     "512,2048"},
    {"sweep-itl-target-ms", TEXT, BENCH(sweep_itl_target_ms), 0, 0, "", NULL,
     "of --request-rate: and with each of these --itl-target-ms, e.g. 0,20"},
    {"json", TEXT, OFFLINE(json), 0, 0, "", NULL, "a file the results are written to as well"},
    {"machine", CHOICE, PLAN(machine), 0, 0, "h200-pcie", &machine_names[1],
     "whose figures are taken; each may be replaced"},
    {"hbm-gbps", REAL, PLAN(hbm_gbps), 0, 1e6, "0", NULL, "HBM, GB/s; 0: the machine's, as above"},
    {"link-gbps", REAL, PLAN(link_gbps), 0, 1e6, "0", NULL, "the remote tier's link, GB/s"},
    {"link-size", BYTES, PLAN(link_size), 0, 1e15, "0", NULL, "of the remote tier"},
    {"tflops", REAL, PLAN(tflops), 0, 1e6, "0", NULL, "of the GPU at the weights' type"},
    {"plan-batch", INT, ALL(plan_batch), 0, 4096, "0", NULL,
     "sequences of the step that is planned for; 0: --max-num-seqs, at most 64, and as many as a "
     "quarter of the GPU's memory holds the KV of (plan: 1)"},
    {"plan-context", INT, ALL(plan_context), 0, 16777216, "0", NULL,
     "tokens of each of them, whose KV is kept in HBM; 0: 1024, or the longest sequence"},
    {"svg", TEXT, DRAWN(svg), 0, 0, "", NULL,
     "probe: a file the rates are drawn in, against the window; bench --compare: what the names of "
     "the plots begin with"},
    {"reprobe", SWITCH, MEASURED(reprobe), 0, 0, "off", "off|on",
     "measure the machine's links again, whatever was kept of them"},
};

/* What vLLM calls a setting, where that is not our name. */
static const struct {
    const char *name, *ours;
} aliases[] = {{"enable-prefix-caching", "prefix-cache"}};

/* A setting as it was named: --no-NAME turns a SWITCH off. */
struct named {
    const struct option *opt; /* NULL: there is none */
    bool negated;
};

static bool is_choice(const char *choices, const char *value)
{
    size_t n = strlen(value);
    for (const char *p = choices; p; p = strchr(p, '|') ? strchr(p, '|') + 1 : NULL)
        if (n && !strchr(value, '|') && strncmp(p, value, n) == 0 && (p[n] == '|' || p[n] == '\0'))
            return true;
    return false;
}

static enum status set_number(const struct option *opt, const char *from, const char *value,
                              void *field, char *err)
{
    char *end = NULL;
    double v;
    if (opt->kind == BYTES) {
        uint64_t bytes;
        if (size_parse(value, &bytes))
            return err_set(err, ST_INVALID, "%s: '%s' is not a size such as 512MiB or 8GiB", from,
                           value);
        v = (double)bytes;
    } else {
        v = strtod(value, &end);
        bool real = opt->kind == REAL || opt->kind == SHARE, whole = real || v == floor(v);
        if (!value[0] || isspace((unsigned char)value[0]) || *end || !isfinite(v) || !whole)
            return err_set(err, ST_INVALID, "%s: '%s' is not %s", from, value,
                           opt->kind == SHARE ? "a number or auto"
                           : real             ? "a number"
                                              : "a whole number");
    }
    if (v < opt->min || v > opt->max)
        return err_set(err, ST_INVALID, "%s must be between %.16g and %.16g, not %s", from,
                       opt->min, opt->max, value);
    if (opt->kind == REAL || opt->kind == SHARE) *(double *)field = v;
    else if (opt->kind == INT) *(int64_t *)field = (int64_t)v;
    else *(uint64_t *)field = (uint64_t)v;
    return ST_OK;
}

/* `from` is how the user gave it: "--port", "DAKD_PORT", or the file and key. */
static enum status set_option(struct options *o, struct named named, const char *from,
                              const char *value, char *err)
{
    const struct option *opt = named.opt;
    char *field = (char *)o + opt->offset;
    if (opt->kind == SHARE && strcmp(value, "auto") == 0) {
        *(double *)field = OPT_AUTO;
        return ST_OK;
    }
    if (opt->kind != TEXT && !opt->choices) return set_number(opt, from, value, field, err);
    if (opt->choices && !is_choice(opt->choices, value))
        return err_set(err, ST_INVALID, "%s must be one of %s, not '%s'", from, opt->choices,
                       value);
    if (opt->kind == SWITCH) {
        *(bool *)field = (strcmp(value, "on") == 0) != named.negated;
        return ST_OK;
    }
    if (strlen(value) >= opt->cap)
        return err_set(err, ST_INVALID, "%s is longer than %zu bytes", from, opt->cap - 1);
    memcpy(field, value, strlen(value) + 1);
    return ST_OK;
}

/* '_' and '-' are the same. */
static bool is_named(const char *name, size_t len, const char *want)
{
    size_t k = 0;
    while (k < len && want[k] && (name[k] == want[k] || (name[k] == '_' && want[k] == '-'))) k++;
    return k == len && !want[k];
}

static const struct option *find_plain(const char *name, size_t len)
{
    for (size_t i = 0; i < ARRAY_COUNT(aliases); i++)
        if (is_named(name, len, aliases[i].name))
            return find_plain(aliases[i].ours, strlen(aliases[i].ours));
    for (size_t i = 0; i < ARRAY_COUNT(table); i++)
        if (is_named(name, len, table[i].name)) return &table[i];
    return NULL;
}

static struct named find(const char *name, size_t len)
{
    struct named found = {.opt = find_plain(name, len)};
    if (found.opt || len <= 3 || !is_named(name, 3, "no-")) return found;
    const struct option *opt = find_plain(name + 3, len - 3);
    if (opt && opt->kind == SWITCH) found = (struct named){.opt = opt, .negated = true};
    return found;
}

/* In one file, or in the environment, nothing says which of two names would win. */
static enum status set_once(struct options *o, struct named named, const char *from,
                            const char *value, bool given[], char *err)
{
    bool *mine = &given[named.opt - table];
    if (*mine)
        return err_set(err, ST_INVALID, "%s: '%s' is set there by another name too: keep one", from,
                       named.opt->name);
    *mine = true;
    return set_option(o, named, from, value, err);
}

/* `who` names the file: "--config", "DAKD_CONFIG". */
static enum status read_file(struct options *o, enum options_command command, const char *who,
                             const char *path, char *err)
{
    cJSON *root;
    char why[ERR_CAP];
    bool given[ARRAY_COUNT(table)] = {false};
    enum status st = json_parse_file(path, &json_limits_request, &root, why);
    if (st) return err_set(err, st, "%s %.400s", who, why);
    if (!cJSON_IsObject(root))
        st = err_set(err, ST_INVALID, "%s: an object of settings was expected", path);
    for (const cJSON *item = st ? NULL : root->child; item && !st; item = item->next) {
        char from[OPT_STRING_CAP + 64], number[64];
        const struct named named = find(item->string, strlen(item->string));
        const char *value = number;
        snprintf(from, sizeof from, "%.400s: \"%.80s\"", path, item->string);
        if (strcmp(item->string, "model") == 0) {
            if (!cJSON_IsString(item)) st = err_set(err, ST_INVALID, "%s must be a string", from);
            else if (!o->model_dir[0])
                snprintf(o->model_dir, sizeof o->model_dir, "%s", item->valuestring);
            continue;
        }
        if (cJSON_IsString(item)) value = item->valuestring;
        else if (cJSON_IsBool(item) && named.opt && named.opt->kind == SWITCH)
            value = cJSON_IsTrue(item) ? "on" : "off";
        else if (cJSON_IsNumber(item)) snprintf(number, sizeof number, "%.17g", item->valuedouble);
        else value = NULL;
        if (!named.opt)
            st = err_set(err, ST_INVALID, "%s is not a setting; see dakd %s --help", from,
                         commands[command].name);
        else if (!value) st = err_set(err, ST_INVALID, "%s must be a string or a number", from);
        else st = set_once(o, named, from, value, given, err);
    }
    cJSON_Delete(root);
    return st;
}

static enum status read_env(struct options *o, enum options_command command, char *const *env,
                            char *err)
{
    bool given[ARRAY_COUNT(table)] = {false};
    for (; env && *env; env++) {
        if (strncmp(*env, "DAKD_", 5)) continue;
        const char *equals = strchr(*env, '=');
        if (!equals) continue;
        char name[128], from[128];
        size_t n = (size_t)(equals - *env) - 5;
        if (n >= sizeof name - 6) n = sizeof name - 6;
        for (size_t i = 0; i < n; i++) name[i] = (char)tolower((unsigned char)(*env)[5 + i]);
        snprintf(from, sizeof from, "%.*s", (int)(n + 5), *env);
        if (n == 6 && memcmp(name, "config", 6) == 0) continue;
        const struct named named = find(name, n);
        if (!named.opt)
            return err_set(err, ST_INVALID,
                           "%s in the environment is not a setting; see dakd %s --help", from,
                           commands[command].name);
        enum status st = set_once(o, named, from, equals + 1, given, err);
        if (st) return st;
    }
    return ST_OK;
}

static const char *env_value(char *const *env, const char *name)
{
    size_t n = strlen(name);
    for (; env && *env; env++)
        if (strncmp(*env, name, n) == 0 && (*env)[n] == '=') return *env + n + 1;
    return NULL;
}

/* Splits "--name=value" or "--name value"; *value points into argv.  A switch has no value behind a
 * space. */
static enum status next_flag(int argc, char *const *argv, int *i, const char **name, size_t *len,
                             const char **value, char *err)
{
    const char *arg = argv[*i] + 2, *equals = strchr(arg, '=');
    *name = arg;
    *len = equals ? (size_t)(equals - arg) : strlen(arg);
    *value = equals ? equals + 1 : NULL;
    const struct option *opt = find(*name, *len).opt;
    if (!*value && opt && opt->kind == SWITCH) *value = "on";
    if (!*value) {
        if (*i + 1 >= argc) return err_set(err, ST_INVALID, "%s needs a value", argv[*i]);
        *value = argv[++*i];
    }
    return ST_OK;
}

/* One pass over argv.  With config given, only --help, --version and --config are looked for;
 * without, flags are set. */
static enum status read_flags(struct options *o, enum options_command command, int argc,
                              char *const *argv, int first, const char **config, char *err)
{
    int model_count = 0;
    for (int i = first; i < argc; i++) {
        const char *arg = argv[i], *name, *value;
        size_t len;
        if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) {
            o->help = true;
            continue;
        }
        if (strcmp(arg, "--version") == 0) {
            o->version = true;
            continue;
        }
        if (strncmp(arg, "--", 2) || !arg[2]) {
            if (arg[0] == '-' && arg[1])
                return err_set(err, ST_INVALID, "unknown flag %.100s; see dakd %s --help", arg,
                               commands[command].name);
            if (config) continue;
            if (strlen(arg) >= sizeof o->model_dir)
                return err_set(err, ST_INVALID, "the model folder's path is too long");
            if (model_count++)
                return err_set(err, ST_INVALID,
                               "two model folders were given: '%s' is one too many", arg);
            snprintf(o->model_dir, sizeof o->model_dir, "%s", arg);
            continue;
        }
        enum status st = next_flag(argc, argv, &i, &name, &len, &value, err);
        if (st) return st;
        bool is_config = len == 6 && memcmp(name, "config", 6) == 0;
        if (is_config && config) *config = value;
        if (is_config || config) continue;
        char from[128];
        snprintf(from, sizeof from, "--%.*s", (int)size_min(len, 100), name);
        const struct named named = find(name, len);
        if (!named.opt)
            return err_set(err, ST_INVALID, "unknown flag %s; see dakd %s --help", from,
                           commands[command].name);
        if (!(named.opt->commands & 1u << command))
            return err_set(err, ST_INVALID, "%s is not a flag of dakd %s; see dakd %s --help", from,
                           commands[command].name, commands[command].name);
        if ((st = set_option(o, named, from, value, err))) return st;
    }
    return ST_OK;
}

/* Where a service manager, or else the XDG base directories, keep what outlives a process. */
static void find_state_dir(struct options *o, char *const *env)
{
    const char *service = env_value(env, "STATE_DIRECTORY"),
               *xdg = env_value(env, "XDG_STATE_HOME"), *home = env_value(env, "HOME");
    int n = 0;
    if (service && *service == '/')
        n = snprintf(o->state_dir, sizeof o->state_dir, "%.*s", (int)strcspn(service, ":"),
                     service);
    else if (xdg && *xdg == '/') n = snprintf(o->state_dir, sizeof o->state_dir, "%s/dakd", xdg);
    else if (home && *home == '/')
        n = snprintf(o->state_dir, sizeof o->state_dir, "%s/.local/state/dakd", home);
    if (n >= (int)sizeof o->state_dir) o->state_dir[0] = '\0';
}

enum status options_read(struct options *o, enum options_command command, int argc,
                         char *const *argv, int first, char *const *env, char *err)
{
    enum status st;
    const char *of_env = env_value(env, "DAKD_CONFIG"), *config = of_env, *text;
    *o = (struct options){0};
    for (size_t i = 0; i < ARRAY_COUNT(table); i++)
        CHECK(!set_option(o, (struct named){.opt = &table[i]}, table[i].name, table[i].initial,
                          NULL));
    if ((st = read_flags(o, command, argc, argv, first, &config, err))) return st;
    if (o->help || o->version) return ST_OK;
    const char *who = config == of_env ? "DAKD_CONFIG" : "--config";
    if (config && (st = read_file(o, command, who, config, err))) return st;
    if ((st = read_env(o, command, env, err))) return st;
    if ((st = read_flags(o, command, argc, argv, first, NULL, err))) return st;
    if ((text = env_value(env, "NOTIFY_SOCKET")))
        snprintf(o->notify_socket, sizeof o->notify_socket, "%s", text);
    if ((text = env_value(env, "WATCHDOG_USEC"))) o->watchdog_usec = strtoull(text, NULL, 10);
    o->journal = env_value(env, "JOURNAL_STREAM") != NULL;
    find_state_dir(o, env);
    if (command == OPTIONS_PROBE) {
        if (!o->model_dir[0] || config) return ST_OK;
        return err_set(err, ST_INVALID, "dakd probe takes no model folder: '%.200s'", o->model_dir);
    }
    if (!o->model_dir[0])
        return err_set(err, ST_INVALID, "no model folder was given: dakd %s MODEL_DIR",
                       commands[command].name);
    return ST_OK;
}

void options_print_help(enum options_command command)
{
    const char *folder = command == OPTIONS_PROBE ? "" : " MODEL_DIR";
    printf("usage: dakd %s%s [flags]\n\n%s\n", commands[command].name, folder,
           commands[command].about);
    if (command == OPTIONS_PLAN) {
        printf("Machines, each with %g TFLOPS, the datasheet's for dense bfloat16:\n",
               MACHINE_TFLOPS);
        machine_print_table();
    }
    printf("Every flag may also stand in a JSON file\n"
           "(--config FILE, same names) or in the environment (DAKD_MAX_NUM_SEQS=8); a flag wins "
           "over the\n"
           "environment, the environment over the file.\n\n");
    for (size_t i = 0; i < ARRAY_COUNT(table); i++) {
        const struct option *opt = &table[i];
        char left[96];
        if (!(opt->commands & 1u << command)) continue;
        if (opt->kind == SWITCH)
            snprintf(left, sizeof left, "--%s%s", strcmp(opt->initial, "on") ? "" : "no-",
                     opt->name);
        else if (opt->choices) snprintf(left, sizeof left, "--%s %s", opt->name, opt->choices);
        else
            snprintf(left, sizeof left, "--%s %s", opt->name,
                     opt->kind == TEXT    ? "TEXT"
                     : opt->kind == BYTES ? "SIZE"
                     : opt->kind == SHARE ? "N|auto"
                                          : "N");
        printf("  %-46s %s", left, opt->help);
        if (opt->initial[0] && strcmp(opt->initial, "0") && opt->kind != SWITCH)
            printf(" [%s]", opt->initial);
        putchar('\n');
    }
    printf("  %-46s %s\n  %-46s %s\n  %-46s %s\n", "--config FILE", "settings as a JSON object",
           "--help", "this text", "--version", "version and commit");
}
