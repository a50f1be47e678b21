#include "config/size.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum status size_parse(const char *text, uint64_t *out)
{
    static const char units[] = "kmgt";
    char *end;
    errno = 0;
    if (!isdigit((unsigned char)text[0]) || text[1] == 'x' || text[1] == 'X') return ST_INVALID;
    double v = strtod(text, &end);
    double scale = 1;
    if (*end && tolower((unsigned char)*end) != 'b') {
        const char *unit = strchr(units, tolower((unsigned char)*end));
        if (!unit) return ST_INVALID;
        bool binary = end[1] == 'i';
        scale = pow(binary ? 1024.0 : 1000.0, (double)(unit - units + 1));
        end += binary ? 2 : 1;
    }
    if (tolower((unsigned char)*end) == 'b') end++;
    v *= scale;
    if (*end || errno || !(v >= 0 && v <= 1e18) || v != floor(v)) return ST_INVALID;
    *out = (uint64_t)v;
    return ST_OK;
}

const char *size_text(uint64_t bytes, char text[SIZE_TEXT_CAP])
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB"};
    int unit = 0;
    double v = (double)bytes;
    for (; v >= 1024 && unit < 5; unit++) v /= 1024;
    if (unit == 0) snprintf(text, SIZE_TEXT_CAP, "%d bytes", (int)bytes);
    else snprintf(text, SIZE_TEXT_CAP, "%.2f %s", v, units[unit]);
    return text;
}
