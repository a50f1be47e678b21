#include "config/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *status_text(enum status st)
{
    static const char *const texts[] = {
#define X(name, text) [ST_##name] = text,
        STATUS_MAP(X)
#undef X
    };
    return (unsigned)st < ST_COUNT ? texts[st] : "unknown status";
}

enum status err_set(char *err, enum status st, const char *fmt, ...)
{
    if (!err) return st;
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(err, ERR_CAP, fmt, args);
    va_end(args);
    if (n >= ERR_CAP) {
        /* Step back over a multi-byte character that the cut went through. */
        size_t end = ERR_CAP - 1;
        while (end > 0 && ((unsigned char)err[end - 1] & 0xC0) == 0x80) end--;
        if (end > 0 && (unsigned char)err[end - 1] >= 0xC0) end--;
        err[end] = '\0';
    }
    return st;
}
