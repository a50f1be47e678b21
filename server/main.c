/*
 * main.c - the daemon from the command line to the exit status.
 *
 *     settings -> tokenizer, template -> machine (startup.c) -> listen -> READY=1 -> loop
 *
 *             SIGTERM, SIGINT, SIGHUP, engine failure    last connection gone
 *     SERVING ------------------------------------> DRAINING ----------------> STOPPING -> exit
 *              begin_drain                              |  finish                ^
 *                                                       +---- on_patience -------+
 *                                          (--shutdown-timeout: what is left is told so, then cut)
 *
 * A signal before SERVING ends the process, a second one while draining the patience, at once.  The
 * exit status is 0 after a signal, 1 where the daemon could not start or the engine failed (systemd
 * then restarts it).
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include <uv.h>

#include "config/check.h"
#include "config/clock.h"
#include "config/file.h"
#include "config/log.h"
#include "config/options.h"
#include "config/version.h"
#include "server/api.h"
#include "server/bench.h"
#include "server/http.h"
#include "server/notify.h"
#include "server/output.h"
#include "server/plan.h"
#include "server/probe.h"
#include "server/startup.h"

#define NAMES_MAX 16
/* How often the loop looks at the engine when nobody asks. */
#define TICK_MS 500
/* After the patience is over, what a client's error message gets to arrive. */
#define LAST_WORDS_MS 1000

struct daemon {
    struct options options;
    uv_loop_t loop;
    struct srv_notify notify;
    struct eng_tok *tok;
    struct eng_chat_template *chat;
    struct srv_api *api;
    struct srv_machine machine;
    struct srv_http *http;
    struct srv_tier tiers[KN_TIER_MAX];
    char names_text[OPT_STRING_CAP], origins_text[OPT_STRING_CAP];
    const char *names[NAMES_MAX], *origins[NAMES_MAX];
    int name_count, origin_count;
    uv_signal_t on_term, on_int, on_hup;
    uv_timer_t tick, patience;
    bool handles_open, draining, aborted, stopping;
    int exit_status;
};

/* --- the loop's end --------------------------------------------------------------------------- */

/* Also after a start that failed half-way: ends what was opened, so that the loop runs out. */
static void finish(struct daemon *d)
{
    if (d->stopping) return;
    d->stopping = true;
    if (d->http) srv_http_close(d->http, NULL, NULL);
    if (d->machine.engine) eng_stop(d->machine.engine);
    if (d->api) srv_api_stop(d->api);
    uv_handle_t *const handles[] = {(uv_handle_t *)&d->on_term, (uv_handle_t *)&d->on_int,
                                    (uv_handle_t *)&d->on_hup, (uv_handle_t *)&d->tick,
                                    (uv_handle_t *)&d->patience};
    /* Nobody listens to signals from here on.  Closing the handles restores the default action, so
     * a late signal would kill: hold it back until it is ignored. */
    sigset_t late;
    sigemptyset(&late);
    sigaddset(&late, SIGTERM);
    sigaddset(&late, SIGINT);
    sigaddset(&late, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &late, NULL);
    for (size_t i = 0; i < ARRAY_COUNT(handles) && d->handles_open; i++) uv_close(handles[i], NULL);
    signal(SIGTERM, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
}

static void on_drained(void *arg)
{
    finish(arg);
}

static void on_patience(uv_timer_t *timer)
{
    struct daemon *d = timer->data;
    if (d->aborted) {
        finish(d);
        return;
    }
    d->aborted = true;
    log_warn("server", "%d requests are still under way after %.3g s: ending them",
             srv_api_active(d->api), d->options.shutdown_timeout);
    srv_api_abort(d->api);
    uv_timer_start(&d->patience, on_patience, LAST_WORDS_MS, 0);
}

static void begin_drain(struct daemon *d, const char *why)
{
    if (d->draining) {
        on_patience(&d->patience);
        return;
    }
    d->draining = true;
    log_info("server", "%s: draining %d requests", why, srv_api_active(d->api));
    srv_notify_send(&d->notify, "STOPPING=1\nSTATUS=Draining");
    srv_api_drain(d->api);
    srv_http_drain(d->http, on_drained, d);
    uv_timer_start(&d->patience, on_patience, (uint64_t)(d->options.shutdown_timeout * 1000), 0);
}

static void on_signal(uv_signal_t *handle, int number)
{
    begin_drain(handle->data, number == SIGINT   ? "SIGINT"
                              : number == SIGHUP ? "SIGHUP"
                                                 : "SIGTERM");
}

/* Feeds the watchdog while the engine makes progress, and ends the daemon when the engine has
 * failed. */
static void on_tick(uv_timer_t *timer)
{
    struct daemon *d = timer->data;
    struct eng_stats stats;
    eng_stats(d->machine.engine, &stats);
    if (stats.failed && !d->draining) {
        d->exit_status = 1;
        begin_drain(d, "the engine failed");
    }
    uint64_t silent = clock_now_ns() - stats.progress_ns;
    if (d->options.watchdog_usec && silent < d->options.watchdog_usec * 1000)
        srv_notify_send(&d->notify, "WATCHDOG=1");
}

/* --- start ------------------------------------------------------------------------------------ */

static void on_progress(void *user, int percent)
{
    struct daemon *d = user;
    bool terminal = isatty(STDERR_FILENO);
    if (terminal) {
        fprintf(stderr, "\rloading weights %3d %%%s", percent, percent == 100 ? "\n" : "");
        fflush(stderr);
    } else if (percent % 10 == 0) {
        log_info("startup", "loading weights %d %%", percent);
    }
    srv_notify_send(&d->notify, "EXTEND_TIMEOUT_USEC=120000000\nSTATUS=Loading weights, %d %%",
                    percent);
}

/* Splits text at commas in place. */
static enum status split(char *text, const char **parts, int *count, const char *flag, char *err)
{
    *count = 0;
    for (char *save = NULL, *part = strtok_r(text, ",", &save); part;
         part = strtok_r(NULL, ",", &save)) {
        if (*count == NAMES_MAX)
            return err_set(err, ST_LIMIT, "%s names more than %d", flag, NAMES_MAX);
        parts[(*count)++] = part;
    }
    return ST_OK;
}

/* The names a model is served under: as told, or the last part of the folder's path. */
static enum status choose_names(struct daemon *d, char *err)
{
    const struct options *o = &d->options;
    enum status st;
    snprintf(d->names_text, sizeof d->names_text, "%s", o->served_model_name);
    if (!d->names_text[0]) {
        char *path = realpath(o->model_dir, NULL);
        if (!path) return err_set(err, ST_NOT_FOUND, "%s: %s", o->model_dir, strerror(errno));
        const char *slash = strrchr(path, '/');
        snprintf(d->names_text, sizeof d->names_text, "%.*s", OPT_STRING_CAP - 1,
                 slash[1] ? slash + 1 : "model");
        free(path);
        d->names[0] = d->names_text; /* whole: a folder's name may hold a comma */
        d->name_count = 1;
    } else if ((st = split(d->names_text, d->names, &d->name_count, "--served-model-name", err))) {
        return st;
    }
    if (!d->name_count) return err_set(err, ST_INVALID, "--served-model-name names nothing");
    snprintf(d->origins_text, sizeof d->origins_text, "%s", o->allowed_origins);
    return split(d->origins_text, d->origins, &d->origin_count, "--allowed-origins", err);
}

/* A model of random weights may come without a tokenizer; it then speaks token ids. */
static enum status open_text(struct daemon *d, char *err)
{
    const struct options *o = &d->options;
    char path[2 * OPT_STRING_CAP];
    char why[ERR_CAP];
    enum status st = file_join(path, sizeof path, o->model_dir, "config.json", err);
    if (st) return st;
    if (!file_exists(path))
        return err_set(err, ST_NOT_FOUND,
                       "%.400s is not the folder of a Hugging Face model: it has no config.json",
                       o->model_dir);
    if ((st = file_join(path, sizeof path, o->model_dir, "tokenizer.json", err))) return st;
    bool dummy = strcmp(o->load_format, "dummy") == 0;
    if (dummy && !file_exists(path) && !o->chat_template[0]) {
        log_warn("startup", "no tokenizer.json: prompts and answers are token ids");
        return ST_OK;
    }
    if ((st = eng_tok_open(o->model_dir, &d->tok, err))) return st;
    st = eng_chat_template_open(o->model_dir, o->chat_template[0] ? o->chat_template : NULL,
                                &d->chat, why);
    if (st == ST_NOT_FOUND && !o->chat_template[0]) {
        log_warn("startup",
                 "the model has no chat template: /v1/chat/completions needs --chat-template");
        return ST_OK;
    }
    if (!st) return ST_OK;
    bool flag = o->chat_template[0] && st == ST_NOT_FOUND;
    return err_set(err, st, "%s%.400s", flag ? "--chat-template " : "", why);
}

/* Every connection is a descriptor; the soft limit is often 1024. */
static enum status raise_descriptors(const struct options *o, char *err)
{
    struct rlimit limit;
    rlim_t need = (rlim_t)o->max_connections + 64;
    if (getrlimit(RLIMIT_NOFILE, &limit)) return ST_OK;
    if (limit.rlim_cur >= need) return ST_OK;
    if (limit.rlim_max != RLIM_INFINITY && limit.rlim_max < need)
        return err_set(
            err, ST_LIMIT,
            "--max-connections %" PRId64
            " needs %llu open files and the system allows %llu: lower it or raise LimitNOFILE",
            o->max_connections, (unsigned long long)need, (unsigned long long)limit.rlim_max);
    limit.rlim_cur = need;
    if (setrlimit(RLIMIT_NOFILE, &limit))
        return err_set(err, ST_LIMIT, "the limit of open files cannot be raised: %s",
                       strerror(errno));
    return ST_OK;
}

static enum status open_api(struct daemon *d, char *err)
{
    struct srv_api_config config = srv_api_config_default();
    struct srv_http_config http = srv_http_config_default();
    config.model_names = d->names;
    config.model_name_count = d->name_count;
    config.api_key = d->options.api_key;
    config.keep_alive_ms = (uint64_t)(d->options.keep_alive_interval * 1000);
    config.write_buffer_max = http.write_buffer_max;
    config.sequences_max = (int32_t)size_min(
        (size_t)config.sequences_max, (size_t)(d->options.max_num_seqs + d->options.max_waiting));
    return srv_api_open(&d->loop, &config, d->tok, d->chat, &d->api, err);
}

static enum status open_http(struct daemon *d, char *err)
{
    const struct options *o = &d->options;
    struct srv_http_config config = srv_http_config_default();
    size_t route_count;
    const struct srv_route *routes = srv_api_routes(&route_count);
    config.host = o->host;
    config.port = (int)o->port;
    config.conn_max = (int)o->max_connections;
    config.body_bytes_max = o->max_body_bytes;
    config.body_bytes_total_max = size_max(config.body_bytes_total_max, 4 * o->max_body_bytes);
    config.header_timeout_ms = (uint64_t)(o->header_timeout * 1000);
    config.body_timeout_ms = (uint64_t)(o->body_timeout * 1000);
    config.idle_timeout_ms = (uint64_t)(o->idle_timeout * 1000);
    config.write_timeout_ms = (uint64_t)(o->write_timeout * 1000);
    config.cors_origins = d->origins;
    config.cors_origin_count = (size_t)d->origin_count;
    config.access_log_info = true;
    config.admit = srv_api_admit;
    return srv_http_open(&d->loop, &config, routes, route_count, d->api, &d->http, err);
}

/* Port 0 only tries: a path that cannot be written is found before the model is loaded. */
static enum status write_port_file(const struct options *o, int port, char *err)
{
    struct buf text;
    if (!port) return srv_output_check("--port-file", o->port_file, err);
    buf_init(&text, 16);
    buf_printf(&text, "%d\n", port);
    enum status st = srv_output_write("--port-file", o->port_file, &text, err);
    buf_deinit(&text);
    return st;
}

/* While the model loads there is nothing to drain.  The default action would do, but the first
 * process of a container has none. */
static void on_early_signal(int number)
{
    (void)number;
    _exit(0);
}

static void start_handles(struct daemon *d)
{
    uv_signal_init(&d->loop, &d->on_term);
    uv_signal_init(&d->loop, &d->on_int);
    uv_signal_init(&d->loop, &d->on_hup);
    uv_timer_init(&d->loop, &d->tick);
    uv_timer_init(&d->loop, &d->patience);
    d->handles_open = true;
    d->on_term.data = d->on_int.data = d->on_hup.data = d->tick.data = d->patience.data = d;
    uv_signal_start(&d->on_term, on_signal, SIGTERM);
    uv_signal_start(&d->on_int, on_signal, SIGINT);
    struct sigaction hup; /* nohup: started with SIGHUP ignored, and then it stays so */
    if (!sigaction(SIGHUP, NULL, &hup) && hup.sa_handler != SIG_IGN)
        uv_signal_start(&d->on_hup, on_signal, SIGHUP);
    uv_timer_start(&d->tick, on_tick, 0, TICK_MS);
}

static int describe_tiers(struct daemon *d)
{
    int count = off_tiers_count(d->machine.tiers);
    for (int t = 0; t < count; t++)
        d->tiers[t] =
            (struct srv_tier){.name = off_tier_name(d->machine.tiers, t),
                              .weight_bytes = d->machine.memory.share[t].placed,
                              .requested_bytes = d->machine.memory.share[t].requested,
                              .predicted_step_bytes = d->machine.memory.share[t].predicted_read,
                              .step_bytes = d->machine.memory.share[t].placed_read,
                              .copied_step_bytes = d->machine.mode.copied_bytes[t],
                              .mode = off_mode_name(d->machine.mode.mode),
                              .capacity_bytes = off_tier_capacity(d->machine.tiers, t)};
    return count;
}

static bool is_loopback(const char *host)
{
    return strncmp(host, "127.", 4) == 0 || strcmp(host, "::1") == 0 ||
           strcmp(host, "localhost") == 0;
}

static void announce(struct daemon *d, uint64_t begin_ns)
{
    const char *host = d->options.host;
    char address[OPT_STRING_CAP + 16];
    snprintf(address, sizeof address, strchr(host, ':') ? "[%s]:%d" : "%s:%d", host,
             srv_http_port(d->http));
    log_info("server", "serving %s on http://%s, ready after %.2f s", d->names[0], address,
             (double)(clock_now_ns() - begin_ns) / 1e9);
    if (!is_loopback(host) && !d->options.api_key[0])
        log_warn("server", "whoever reaches %s may use this server: DAKD_API_KEY is not set",
                 address);
    srv_notify_send(&d->notify, "READY=1\nSTATUS=Serving %s on %s", d->names[0], address);
}

/* Everything up to the moment a client may connect.  What was opened is closed by close_all. */
static enum status start(struct daemon *d, char *err)
{
    enum status st;
    uint64_t begin = clock_now_ns();
    struct srv_startup_hooks hooks = {
        .wake = srv_api_wake, .progress = on_progress, .progress_user = d};
    if ((st = srv_notify_open(&d->notify, d->options.notify_socket, err)) ||
        (st = raise_descriptors(&d->options, err)) || (st = choose_names(d, err)) ||
        (st = open_text(d, err)) || (st = open_api(d, err)))
        return st;
    hooks.wake_user = d->api;
    /* A port in use is found before the model is loaded, and held meanwhile; whoever connects is
     * refused until it is there. */
    if ((st = open_http(d, err)) || (st = write_port_file(&d->options, 0, err)) ||
        (st = srv_startup(&d->options, &hooks, &d->machine, err)))
        return st;
    srv_api_set_tiers(d->api, d->tiers, describe_tiers(d), kn_kv_page_bytes(&d->machine.kv));
    srv_api_attach(d->api, d->machine.engine, eng_model_info(d->machine.model), d->http);
    start_handles(d);
    if ((st = srv_http_listen(d->http, err))) return st;
    if ((st = write_port_file(&d->options, srv_http_port(d->http), err))) return st;
    announce(d, begin);
    return ST_OK;
}

static void close_all(struct daemon *d)
{
    /* The engine's thread may be waking the API until it has been joined. */
    srv_shutdown(&d->machine);
    if (d->api) srv_api_close(d->api);
    if (d->chat) eng_chat_template_close(d->chat);
    if (d->tok) eng_tok_close(d->tok);
    srv_notify_close(&d->notify);
    CHECK(uv_loop_close(&d->loop) == 0);
}

/* A descriptor of 0 to 2 that came closed would be given to the first socket or file opened, and
 * then be logged into. */
static void fill_standard_descriptors(void)
{
    int fd;
    do fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0) close(fd);
}

static int print_version(void)
{
    printf("dakd %s (%s)\n", version_string(), version_commit());
    return 0;
}

static int serve(const struct options *o)
{
    static struct daemon d; /* large, and one */
    char err[ERR_CAP] = "";
    d.options = *o;
    d.notify.fd = -1;
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, on_early_signal);
    signal(SIGINT, on_early_signal);
    CHECK(uv_loop_init(&d.loop) == 0);
    if (start(&d, err)) {
        log_error("startup", "%s", err);
        d.exit_status = 1;
        finish(&d);
    }
    uv_run(&d.loop, UV_RUN_DEFAULT);
    if (d.handles_open) log_info("server", "stopped");
    close_all(&d);
    return d.exit_status;
}

static int run(enum options_command command, int argc, char **argv, char **env)
{
    static struct options o;
    char err[ERR_CAP] = "";
    if (options_read(&o, command, argc, argv, 2, env, err)) {
        fprintf(stderr, "dakd: %s\n", err);
        return 2;
    }
    if (o.help) {
        options_print_help(command);
        return 0;
    }
    if (o.version) return print_version();
    log_init((enum log_level)log_level_parse(o.log_level), o.journal);
    if (command == OPTIONS_PLAN) return srv_plan(&o);
    if (command == OPTIONS_PROBE) return srv_probe(&o);
    if (command == OPTIONS_SERVE) return serve(&o);
    o.prefix_cache = false; /* one prompt is measured many times: each time it is computed */
    return srv_bench(&o);
}

static void print_usage(FILE *out)
{
    fputs("usage: dakd serve MODEL_DIR [flags]   serve a model (dakd serve --help)\n"
          "       dakd bench MODEL_DIR [flags]   measure one (dakd bench --help)\n"
          "       dakd plan MODEL_DIR [flags]    predict one's floor (dakd plan --help)\n"
          "       dakd probe [flags]             measure HBM and links (dakd probe --help)\n"
          "       dakd --version | --help\n",
          out);
}

int main(int argc, char **argv, char **env)
{
    const char *command = argc > 1 ? argv[1] : "";
    fill_standard_descriptors();
    if (strcmp(command, "serve") == 0) return run(OPTIONS_SERVE, argc, argv, env);
    if (strcmp(command, "bench") == 0) return run(OPTIONS_BENCH, argc, argv, env);
    if (strcmp(command, "plan") == 0) return run(OPTIONS_PLAN, argc, argv, env);
    if (strcmp(command, "probe") == 0) return run(OPTIONS_PROBE, argc, argv, env);
    if (strcmp(command, "--version") == 0) return print_version();
    if (strcmp(command, "--help") == 0 || strcmp(command, "-h") == 0) {
        print_usage(stdout);
        return 0;
    }
    if (command[0]) fprintf(stderr, "dakd: unknown command '%s'\n", command);
    print_usage(stderr);
    return 2;
}
