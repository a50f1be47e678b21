/*
 * log.h - one line per event on standard error, in the form journald and a person both read:
 *
 *     2026-11-21T08:00:00.123Z INFO  engine: step took 3.1 ms
 *
 * Under systemd (JOURNAL_STREAM set) the time is left out and the line starts with "<6>", the
 * syslog priority. The sink is the program's only mutable global; any thread may log, lines never
 * interleave.
 */
#ifndef DAKD_CONFIG_LOG_H
#define DAKD_CONFIG_LOG_H

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

/* Sets the level and whether the journal's form is used.  Call before other threads start. */
void log_init(enum log_level level, int journal);
/* "error", "warn", "info", "debug"; returns -1 for any other name. */
int log_level_parse(const char *name);
int log_enabled(enum log_level level);
/* `area` names the folder or module; control characters in the message are escaped. */
void log_write(enum log_level level, const char *area, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#define log_error(area, ...) log_write(LOG_ERROR, area, __VA_ARGS__)
#define log_warn(area, ...) log_write(LOG_WARN, area, __VA_ARGS__)
#define log_info(area, ...) log_write(LOG_INFO, area, __VA_ARGS__)
#define log_debug(area, ...)                                                                       \
    (log_enabled(LOG_DEBUG) ? log_write(LOG_DEBUG, area, __VA_ARGS__) : (void)0)

#endif
