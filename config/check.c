#include "config/check.h"

#include <stdio.h>
#include <stdlib.h>

_Noreturn void check_failed(const char *file, int line, const char *condition)
{
    fprintf(stderr, "dakd: %s:%d: broken invariant: %s\n", file, line, condition);
    fflush(stderr);
    abort();
}
