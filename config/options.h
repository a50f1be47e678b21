/*
 * options.h - every setting of the daemon, from one table (options.c): name, environment variable,
 * JSON key, type, range, default, help text, and the commands that have it.
 *
 * A flag beats its environment variable (DAKD_ and the name in upper case), which beats the file
 * given by --config.  Names follow vLLM where it has the flag.  Unknown flags, keys and DAKD_*
 * variables are errors; so is a value out of range, and a flag of another command.  The environment
 * and the file may hold settings of other commands: they are checked and have no effect.  A setting
 * that is on or off is turned off by --no-NAME too; vLLM's name for one is taken where it differs.
 * Of flags that say the same the last wins; in the file and in the environment a setting stands
 * once.
 */
#ifndef DAKD_CONFIG_OPTIONS_H
#define DAKD_CONFIG_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "config/status.h"

#define OPT_STRING_CAP 512

enum options_command { OPTIONS_SERVE, OPTIONS_BENCH, OPTIONS_PLAN, OPTIONS_PROBE };

#define OPT_AUTO (-1.0) /* a share that is left to dakd */

struct options {
    /* What and how to serve. */
    char model_dir[OPT_STRING_CAP];
    char served_model_name[OPT_STRING_CAP]; /* comma-separated; "" means the last part of model_dir
                                             */
    char load_format[16];                   /* auto, safetensors, dummy */
    char hf_overrides[OPT_STRING_CAP];      /* JSON merged over config.json; "": none */
    char dtype[16];                         /* auto, float32, bfloat16, float16 */
    char kv_cache_dtype[16];                /* auto, float32, bfloat16, float16, fp8, fp8_e4m3 */
    char chat_template[OPT_STRING_CAP];     /* a file, "" means the model's own */
    uint64_t seed;
    /* Limits. */
    int64_t max_model_len; /* 0: what the model allows, and there is KV cache for */
    int64_t max_num_seqs;
    int64_t max_num_batched_tokens;
    double itl_target_ms; /* 0: none */
    int64_t max_waiting;
    char kv_remote[OPT_STRING_CAP]; /* tier and size; "": KV pages are local */
    char kv_policy[16];             /* in-place, swap, recompute */
    char kv_admission[16];          /* auto, throughput, all */
    uint64_t kv_cache_memory_bytes; /* 0: what max_num_seqs sequences of max_model_len need; at most
                                     * what gpu_memory_utilization leaves, or on the CPU 1 GiB or
                                     * one such sequence */
    bool prefix_cache;              /* KV that is left is kept for prompts that begin alike */
    /* Machine. */
    char device[8];                /* auto, cpu, cuda */
    double gpu_memory_utilization; /* 0: not given */
    uint64_t hbm_size;             /* 0: what there is */
    int64_t threads;
    char remote[OPT_STRING_CAP];
    double offload; /* OPT_AUTO, or 0..1 */
    bool force_offload, reprobe;
    char placement[8];            /* auto, even, planned */
    char congestion_control[128]; /* off, static, adaptive, or one of them by tier */
    char remote_window[OPT_STRING_CAP];
    char prefill_staging_bytes[32]; /* auto, or a size */
    char offload_mode[16];          /* auto, direct, prefetch, uva */
    int64_t prefetch_layers;
    char offload_staging_bytes[32]; /* auto, or a size */
    char cuda_graphs[8];            /* on, off */
    char async_scheduling[8];       /* auto, on, off */
    /* Server. */
    char host[256];
    int64_t port;
    char port_file[OPT_STRING_CAP];
    char api_key[OPT_STRING_CAP];
    char allowed_origins[OPT_STRING_CAP]; /* comma-separated; "" is CORS off */
    int64_t max_connections;
    uint64_t max_body_bytes;
    double header_timeout, body_timeout, idle_timeout, write_timeout,
        keep_alive_interval; /* seconds */
    double shutdown_timeout;
    char log_level[8];
    /* Bench. */
    char batch[OPT_STRING_CAP];    /* numbers of sequences, comma-separated; "": not given */
    int64_t input_len, output_len; /* 0: not given */
    bool given_context;            /* no prompts are computed */
    char kv_sweep[64];             /* policies and admissions, comma-separated */
    char control_sweep[OPT_STRING_CAP], background_copy[64], without[64];
    bool compare;                         /* modes, at the shares and placements that follow */
    char compare_modes[64];               /* "": all that the backend has */
    char compare_offload[OPT_STRING_CAP]; /* shares, and the word free */
    char compare_placement[16];
    double compare_seconds;       /* of a run */
    double compare_limit_seconds; /* of all; 0: none */
    char csv[OPT_STRING_CAP];
    double request_rate; /* prompts a second beside sequences that decode; 0: not given */
    int64_t num_prompts;
    char sweep_batched_tokens[OPT_STRING_CAP], sweep_itl_target_ms[OPT_STRING_CAP];
    char json[OPT_STRING_CAP];
    /* Plan; 0: what the machine has. */
    char machine[24];
    double hbm_gbps, link_gbps, tflops;
    uint64_t link_size;
    int64_t plan_batch, plan_context; /* 0: not given */
    /* Probe: a file; bench: what the names of several begin with. */
    char svg[OPT_STRING_CAP];
    /* Not a flag: modes that one loading takes on later, a bit 1 << enum off_mode each. */
    unsigned offload_modes_more;
    /* Not flags: all tiers hold all weights (eng_model_options.everywhere); numbers of sequences
     * whose steps are recorded (eng_config.record_only). */
    bool everywhere;
    int32_t record_only[8];
    int record_only_count;
    /* Not flags: what systemd or the session passes. */
    char state_dir[OPT_STRING_CAP]; /* "": there is none */
    char notify_socket[256];
    uint64_t watchdog_usec;
    bool journal;
    /* Out: what was asked for instead of serving. */
    bool help, version;
};

/* Fills *o from argv[first..argc), the environment and the file.  ST_INVALID with a sentence that
 * names the flag. */
MUST_USE enum status options_read(struct options *o, enum options_command command, int argc,
                                  char *const *argv, int first, char *const *env, char *err);
/* The text of `dakd COMMAND --help`. */
void options_print_help(enum options_command command);

#endif
