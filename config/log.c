#include "config/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static _Atomic int sink_level = LOG_INFO;
static _Atomic int sink_journal;

void log_init(enum log_level level, int journal)
{
    sink_level = (int)level;
    sink_journal = journal;
}

int log_level_parse(const char *name)
{
    static const char *const names[] = {"error", "warn", "info", "debug"};
    for (int i = 0; i < 4; i++)
        if (strcmp(name, names[i]) == 0) return i;
    return -1;
}

int log_enabled(enum log_level level)
{
    return (int)level <= sink_level;
}

static size_t put_prefix(char *line, size_t cap, enum log_level level, const char *area)
{
    static const char *const names[] = {"ERROR", "WARN ", "INFO ", "DEBUG"};
    static const int priorities[] = {3, 4, 6, 7};
    if (sink_journal) return (size_t)snprintf(line, cap, "<%d>%s: ", priorities[level], area);
    struct timespec ts;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &ts);
    gmtime_r(&ts.tv_sec, &tm);
    size_t n = strftime(line, cap, "%Y-%m-%dT%H:%M:%S", &tm);
    return n + (size_t)snprintf(line + n, cap - n, ".%03ldZ %s %s: ", ts.tv_nsec / 1000000,
                                names[level], area);
}

void log_write(enum log_level level, const char *area, const char *fmt, ...)
{
    if (!log_enabled(level)) return;
    char text[2048], line[4096];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    size_t n = put_prefix(line, sizeof line, level, area);
    for (const char *p = text; *p && n < sizeof line - 6; p++) {
        unsigned char c = (unsigned char)*p;
        if (c < 0x20 || c == 0x7f) n += (size_t)snprintf(line + n, 5, "\\x%02x", c);
        else line[n++] = (char)c;
    }
    line[n++] = '\n';
    /* One write per line keeps lines whole between threads; a broken stderr must not stop the
     * daemon. */
    ssize_t done = write(STDERR_FILENO, line, n);
    (void)done;
}
