/*
 * failing_malloc.h - the allocator of tests that let the N-th allocation fail: in front of the C
 * library's, included by one file of a program.  Not for builds whose sanitizer brings its own.
 */
#ifndef DAKD_TESTS_FAILING_MALLOC_H
#define DAKD_TESTS_FAILING_MALLOC_H

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);
void __libc_free(void *);

static struct control {
    _Atomic int64_t countdown; /* > 0: the allocation that takes it to 0 fails; 0: none fails */
    _Atomic int64_t failures;  /* allocations that failed */
    _Atomic int64_t live;      /* blocks allocated and not freed */
} own_control, *control = &own_control;

static bool fails(void)
{
    if (atomic_load(&control->countdown) <= 0 || atomic_fetch_sub(&control->countdown, 1) != 1)
        return false;
    atomic_fetch_add(&control->failures, 1);
    errno = ENOMEM;
    return true;
}

static void *counted(void *p)
{
    if (p) atomic_fetch_add(&control->live, 1);
    return p;
}

void *malloc(size_t n)
{
    return fails() ? NULL : counted(__libc_malloc(n));
}

void *calloc(size_t n, size_t size)
{
    return fails() ? NULL : counted(__libc_calloc(n, size));
}

void *realloc(void *p, size_t n)
{
    if (fails()) return NULL;
    void *q = __libc_realloc(p, n);
    if (!p) counted(q);
    return q;
}

void *aligned_alloc(size_t alignment, size_t n)
{
    return fails() ? NULL : counted(__libc_memalign(alignment, n));
}

void free(void *p)
{
    if (p) atomic_fetch_sub(&control->live, 1);
    __libc_free(p);
}

#endif
