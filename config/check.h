/*
 * check.h - assertions on the program itself.  CHECK stays on in release builds and aborts with the
 * place and the condition; DCHECK is for inner loops and is compiled out unless DAKD_DEBUG is
 * defined.
 */
#ifndef DAKD_CONFIG_CHECK_H
#define DAKD_CONFIG_CHECK_H

#include <stddef.h>

#ifdef __cplusplus /* host code of CUDA files */
extern "C" [[noreturn]] void check_failed(const char *file, int line, const char *condition);
#else
_Noreturn void check_failed(const char *file, int line, const char *condition);
#endif

#define CHECK(cond) ((cond) ? (void)0 : check_failed(__FILE__, __LINE__, #cond))

#ifdef DAKD_DEBUG
#define DCHECK(cond) CHECK(cond)
#else
#define DCHECK(cond) ((void)sizeof(!(cond)))
#endif

#define ARRAY_COUNT(a) (sizeof(a) / sizeof((a)[0]))

static inline size_t size_min(size_t a, size_t b)
{
    return a < b ? a : b;
}
static inline size_t size_max(size_t a, size_t b)
{
    return a > b ? a : b;
}
/* Rounds up to a multiple of a power of two or of any positive unit. */
static inline size_t round_up(size_t n, size_t unit)
{
    return (n + unit - 1) / unit * unit;
}
static inline size_t div_up(size_t n, size_t unit)
{
    return (n + unit - 1) / unit;
}

#endif
