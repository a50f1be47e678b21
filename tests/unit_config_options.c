/* Settings: precedence, ranges, and an error sentence for every mistake. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config/options.h"

static char path[64];

static void write_file(const char *text)
{
    snprintf(path, sizeof path, "/tmp/dakd-options-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
}

/* args and env end in NULL. */
static enum status read_for(enum options_command command, struct options *o,
                            const char *const *args, const char *const *env, char *err)
{
    int argc = 0;
    while (args[argc]) argc++;
    err[0] = '\0';
    return options_read(o, command, argc, (char *const *)args, 0, (char *const *)env, err);
}

static enum status read_options(struct options *o, const char *const *args, const char *const *env,
                                char *err)
{
    return read_for(OPTIONS_SERVE, o, args, env, err);
}

#define ARGS(...) ((const char *const[]){__VA_ARGS__, NULL})
static const char *const no_env[] = {"PATH=/bin", NULL};

static void test_defaults(void **state)
{
    (void)state;
    struct options o;
    char err[ERR_CAP];
    assert_int_equal(read_options(&o, ARGS("model"), no_env, err), ST_OK);
    assert_string_equal(o.model_dir, "model");
    assert_string_equal(o.host, "127.0.0.1");
    assert_int_equal(o.port, 8000);
    assert_int_equal(o.max_num_seqs, 64);
    assert_true(o.shutdown_timeout == 30.0);
    assert_int_equal(o.max_body_bytes, 32u << 20);
    assert_string_equal(o.device, "auto");
    assert_string_equal(o.congestion_control, "adaptive");
    assert_string_equal(o.remote_window, "");
    assert_true(o.offload == OPT_AUTO && !o.force_offload && !o.reprobe);
    assert_string_equal(o.prefill_staging_bytes, "auto");
    assert_string_equal(o.offload_mode, "auto");
    assert_string_equal(o.offload_staging_bytes, "auto");
    assert_int_equal(o.prefetch_layers, 1);
    assert_int_equal(o.offload_modes_more, 0);
    assert_true(o.gpu_memory_utilization == 0.0); /* not given */
}

static void test_precedence(void **state)
{
    (void)state;
    struct options o;
    char err[ERR_CAP], config[80];
    write_file(
        "{\"model\": \"m\", \"port\": 1, \"max_num_seqs\": 2, \"seed\": \"3\", \"offload\": 0.5}");
    snprintf(config, sizeof config, "DAKD_CONFIG=%s", path);
    const char *const env[] = {config,
                               "DAKD_PORT=10",
                               "DAKD_MAX_NUM_SEQS=20",
                               "NOTIFY_SOCKET=/run/x",
                               "WATCHDOG_USEC=5000000",
                               "JOURNAL_STREAM=1:2",
                               NULL};
    assert_int_equal(read_options(&o, ARGS("--port", "100"), env, err), ST_OK);
    assert_string_equal(o.model_dir, "m");
    assert_int_equal(o.port, 100);
    assert_int_equal(o.max_num_seqs, 20);
    assert_int_equal(o.seed, 3);
    assert_true(o.offload == 0.5);
    assert_string_equal(o.notify_socket, "/run/x");
    assert_int_equal(o.watchdog_usec, 5000000);
    assert_true(o.journal);
    assert_int_equal(read_options(&o, ARGS("other", "--config", path, "--port=7"), no_env, err),
                     ST_OK);
    assert_string_equal(o.model_dir, "other");
    assert_int_equal(o.port, 7);
    unlink(path);
}

static void test_bad_flags(void **state)
{
    (void)state;
    static const char *const bad[][4] = {
        {"m", "--prot", "1"},
        {"m", "--port", "65536"},
        {"m", "--port", "-1"},
        {"m", "--port", "1.5"},
        {"m", "--port", "x"},
        {"m", "--port", ""},
        {"m", "--port"},
        {"m", "-x"},
        {"m", "n"},
        {"m", "--offload", "1.1"},
        {"m", "--device", "tpu"},
        {"m", "--cuda-graphs", "maybe"},
        {"m", "--gpu-memory-utilization", "1.01"},
        {"m", "--offload", "nan"},
        {"m", "--offload", "inf"},
        {"m", "--dtype", "float"},
        {"m", "--dtype", "auto|float32"},
        {"m", "--dtype", ""},
        {"m", "--max-num-seqs", "0"},
        {"m", "--max-body-bytes", "1Q"},
        {"m", "--max-body-bytes", "1e"},
        {"m", "--kv-cache-memory-bytes", "-1"},
        {"m", "--kv-cache-memory-bytes", "1.5B"},
        {"--port", "1"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct options o;
        char err[ERR_CAP];
        if (read_options(&o, bad[i], no_env, err) != ST_INVALID || !err[0])
            fail_msg("accepted: %s %s", bad[i][0], bad[i][1] ? bad[i][1] : "");
    }
}

static void test_bad_files_and_environment(void **state)
{
    (void)state;
    static const char *const bad[] = {"",
                                      "[]",
                                      "{\"prot\": 1}",
                                      "{\"port\": true}",
                                      "{\"port\": 1.5}",
                                      "{\"port\": 1, \"port\": 2}",
                                      "{\"api-key\": 5, }",
                                      "{\"model\": 5}"};
    struct options o;
    char err[ERR_CAP];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_file(bad[i]);
        if (read_options(&o, ARGS("m", "--config", path), no_env, err) == ST_OK)
            fail_msg("accepted: %s", bad[i]);
        assert_non_null(strstr(err, path));
        unlink(path);
    }
    assert_int_equal(read_options(&o, ARGS("m", "--config", "/nonexistent"), no_env, err),
                     ST_NOT_FOUND);
    assert_string_equal(err, "--config /nonexistent: No such file or directory");
    const char *const other[] = {"DAKD_CONFIG=/nonexistent", NULL};
    assert_int_equal(read_options(&o, ARGS("m"), other, err), ST_NOT_FOUND);
    assert_string_equal(err, "DAKD_CONFIG /nonexistent: No such file or directory");
    const char *const env[] = {"DAKD_PROT=1", NULL};
    assert_int_equal(read_options(&o, ARGS("m"), env, err), ST_INVALID);
    assert_string_equal(err, "DAKD_PROT in the environment is not a setting; see dakd serve "
                             "--help");
}

/* Each command has its flags and those of all; files and the environment may hold any. */
static void test_commands(void **state)
{
    (void)state;
    struct options o;
    char err[ERR_CAP];
    const char *const *bench = ARGS("m", "--batch", "4", "--seed", "7", "--json=f");
    assert_int_equal(read_for(OPTIONS_BENCH, &o, bench, no_env, err), ST_OK);
    assert_string_equal(o.batch, "4");
    assert_int_equal(o.input_len, 0);
    assert_int_equal(o.seed, 7);
    assert_int_equal(o.max_num_batched_tokens, 2048);
    assert_string_equal(o.json, "f");
    assert_int_equal(read_for(OPTIONS_SERVE, &o, bench, no_env, err), ST_INVALID);
    assert_string_equal(err, "--batch is not a flag of dakd serve; see dakd serve --help");
    assert_int_equal(read_for(OPTIONS_BENCH, &o, ARGS("m", "--port", "1"), no_env, err),
                     ST_INVALID);
    assert_string_equal(err, "--port is not a flag of dakd bench; see dakd bench --help");
    const char *const env[] = {"DAKD_PORT=9", "DAKD_BATCH=3", NULL};
    assert_int_equal(read_for(OPTIONS_BENCH, &o, ARGS("m"), env, err), ST_OK);
    assert_int_equal(o.port, 9);
    assert_string_equal(o.batch, "3");
    const char *const bad[] = {"DAKD_PORT=x", NULL};
    assert_int_equal(read_for(OPTIONS_BENCH, &o, ARGS("m"), bad, err), ST_INVALID);
    const char *const none[] = {NULL};
    assert_int_equal(read_for(OPTIONS_BENCH, &o, none, no_env, err), ST_INVALID);
    assert_non_null(strstr(err, "dakd bench MODEL_DIR"));
    const char *const *plan =
        ARGS("m", "--machine", "gh200", "--plan-batch", "8", "--hbm-size=80GiB", "--json", "f");
    assert_int_equal(read_for(OPTIONS_PLAN, &o, plan, no_env, err), ST_OK);
    assert_int_equal(o.plan_batch, 8);
    assert_int_equal(o.plan_context, 0);
    assert_true(o.hbm_size == 80ull << 30 && o.hbm_gbps == 0);
    assert_string_equal(o.machine, "gh200");
    assert_int_equal(read_for(OPTIONS_BENCH, &o, plan, no_env, err), ST_INVALID);
    assert_string_equal(err, "--machine is not a flag of dakd bench; see dakd bench --help");
    assert_int_equal(read_for(OPTIONS_PLAN, &o, ARGS("m", "--offload", "1"), no_env, err),
                     ST_INVALID);
}

/* A flag that needs no value, a number that may be auto, and a command without a model. */
static void test_kinds(void **state)
{
    (void)state;
    struct options o;
    char err[ERR_CAP], config[80];
    const char *const *args = ARGS("m", "--force-offload", "--offload", "0.25", "--reprobe=off");
    assert_int_equal(read_options(&o, args, no_env, err), ST_OK);
    assert_true(o.force_offload && o.offload == 0.25 && !o.reprobe);
    assert_string_equal(o.model_dir, "m");
    assert_int_equal(read_options(&o, ARGS("--force-offload", "m"), no_env, err), ST_OK);
    assert_string_equal(o.model_dir, "m");
    assert_int_equal(read_options(&o, ARGS("m", "--force-offload=yes"), no_env, err), ST_INVALID);
    assert_string_equal(err, "--force-offload must be one of off|on, not 'yes'");
    assert_int_equal(read_options(&o, ARGS("m", "--offload", "most"), no_env, err), ST_INVALID);
    assert_string_equal(err, "--offload: 'most' is not a number or auto");
    write_file("{\"force_offload\": true, \"offload\": 0.5, \"reprobe\": \"on\"}");
    snprintf(config, sizeof config, "DAKD_CONFIG=%s", path);
    const char *const env[] = {config, "DAKD_OFFLOAD=auto", "DAKD_REPROBE=off", NULL};
    assert_int_equal(read_options(&o, ARGS("m"), env, err), ST_OK);
    assert_true(o.force_offload && o.offload == OPT_AUTO && !o.reprobe);
    unlink(path);
    assert_int_equal(read_for(OPTIONS_PROBE, &o, ARGS("--svg", "f", "--reprobe"), no_env, err),
                     ST_OK);
    assert_true(o.reprobe && !o.model_dir[0]);
    assert_string_equal(o.svg, "f");
    assert_int_equal(read_for(OPTIONS_PROBE, &o, ARGS("m"), no_env, err), ST_INVALID);
    assert_int_equal(read_for(OPTIONS_PROBE, &o, ARGS("--offload", "1"), no_env, err), ST_INVALID);
    assert_string_equal(err, "--offload is not a flag of dakd probe; see dakd probe --help");
}

/* What is on or off is turned off by --no-NAME, and has vLLM's name beside ours. */
static void test_switches(void **state)
{
    (void)state;
    struct options o;
    char err[ERR_CAP];
    assert_int_equal(read_options(&o, ARGS("m"), no_env, err), ST_OK);
    assert_true(o.prefix_cache);
    static const struct {
        const char *flag;
        bool on;
    } flags[] = {{"--no-prefix-cache", false},
                 {"--prefix-cache", true},
                 {"--no-enable-prefix-caching", false},
                 {"--enable-prefix-caching", true},
                 {"--no_enable_prefix_caching", false},
                 {"--prefix-cache=off", false},
                 {"--no-enable-prefix-caching=off", true}};
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        const char *const env[] = {flags[i].on ? "DAKD_PREFIX_CACHE=off" : "DAKD_PREFIX_CACHE=on",
                                   NULL};
        assert_int_equal(read_options(&o, ARGS("m", flags[i].flag), env, err), ST_OK);
        if (o.prefix_cache != flags[i].on) fail_msg("%s", flags[i].flag);
    }
    assert_int_equal(
        read_options(&o, ARGS("m", "--prefix-cache", "--no-prefix-cache"), no_env, err), ST_OK);
    assert_false(o.prefix_cache); /* the last wins */
    static const char *const bad[] = {"--no-port", "--no-no-prefix-cache", "--no-", "--no-dtype"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(read_options(&o, ARGS("m", bad[i], "1"), no_env, err), ST_INVALID);
        assert_non_null(strstr(err, "unknown flag"));
    }
    assert_int_equal(read_options(&o, ARGS("m", "--no-prefix-cache=maybe"), no_env, err),
                     ST_INVALID);
    assert_string_equal(err, "--no-prefix-cache must be one of off|on, not 'maybe'");
    assert_int_equal(read_for(OPTIONS_BENCH, &o, ARGS("m", "--no-prefix-cache"), no_env, err),
                     ST_INVALID);
    assert_string_equal(err,
                        "--no-prefix-cache is not a flag of dakd bench; see dakd bench --help");
    const char *const twice[] = {"DAKD_PREFIX_CACHE=on", "DAKD_ENABLE_PREFIX_CACHING=off", NULL};
    assert_int_equal(read_options(&o, ARGS("m"), twice, err), ST_INVALID);
    assert_string_equal(err, "DAKD_ENABLE_PREFIX_CACHING: 'prefix-cache' is set there by another "
                             "name too: keep one");
    write_file("{\"enable_prefix_caching\": false}");
    assert_int_equal(read_options(&o, ARGS("m", "--config", path), no_env, err), ST_OK);
    assert_false(o.prefix_cache);
    unlink(path);
    write_file("{\"no_prefix_cache\": true, \"prefix-cache\": true}");
    assert_int_equal(read_options(&o, ARGS("m", "--config", path), no_env, err), ST_INVALID);
    assert_non_null(strstr(err, "by another name too"));
    unlink(path);
}

static void test_state_dir(void **state)
{
    (void)state;
    static const struct {
        const char *env[4], *dir;
    } cases[] = {{{"HOME=/home/a"}, "/home/a/.local/state/dakd"},
                 {{"HOME=/home/a", "XDG_STATE_HOME=/s"}, "/s/dakd"},
                 {{"HOME=/home/a", "XDG_STATE_HOME=s"}, "/home/a/.local/state/dakd"},
                 {{"HOME=/h", "STATE_DIRECTORY=/var/lib/dakd:/var/lib/b"}, "/var/lib/dakd"},
                 {{"HOME="}, ""},
                 {{"A=b"}, ""}};
    struct options o;
    char err[ERR_CAP], home[OPT_STRING_CAP + 8] = "HOME=/";
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(read_options(&o, ARGS("m"), cases[i].env, err), ST_OK);
        assert_string_equal(o.state_dir, cases[i].dir);
    }
    memset(home + 6, 'a', OPT_STRING_CAP);
    const char *const env[] = {home, NULL};
    assert_int_equal(read_options(&o, ARGS("m"), env, err), ST_OK);
    assert_string_equal(o.state_dir, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),  cmocka_unit_test(test_precedence),
        cmocka_unit_test(test_bad_flags), cmocka_unit_test(test_bad_files_and_environment),
        cmocka_unit_test(test_commands),  cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_switches),  cmocka_unit_test(test_state_dir),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
