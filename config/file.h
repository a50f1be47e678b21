/* file.h - whole-file reads with a bound. */
#ifndef DAKD_CONFIG_FILE_H
#define DAKD_CONFIG_FILE_H

#include <stdbool.h>
#include <stddef.h>

#include "config/status.h"

/* Reads a regular file of at most max bytes into *data (owned by the caller, free();
 * NUL-terminated).  ST_NOT_FOUND, ST_IO, ST_LIMIT, ST_NOMEM; the sentence names the path. */
MUST_USE enum status file_read(const char *path, size_t max, char **data, size_t *len, char *err);
bool file_exists(const char *path);
/* Joins dir and name into out[cap]; ST_LIMIT where it does not fit. */
MUST_USE enum status file_join(char *out, size_t cap, const char *dir, const char *name, char *err);

#endif
