/* file.h - whole-file reads with a bound, and writes that a reader sees all of or none of. */
#ifndef DAKD_CONFIG_FILE_H
#define DAKD_CONFIG_FILE_H

#include <stdbool.h>
#include <stddef.h>

#include "config/status.h"

/* Reads a regular file of at most max bytes into *data (owned by the caller, free();
 * NUL-terminated).  ST_NOT_FOUND, ST_IO, ST_LIMIT, ST_NOMEM; the sentence names the path. */
MUST_USE enum status file_read(const char *path, size_t max, char **data, size_t *len, char *err);
/* Gives `path` these contents.  They are written to path.new, synced and renamed: whoever reads
 * sees the old contents or all of the new ones, also after a power cut.  On failure path is as it
 * was and path.new is gone.  ST_IO names the path; ST_LIMIT where it is too long. */
MUST_USE enum status file_replace(const char *path, const void *data, size_t len, char *err);
/* Whether file_replace could write there, found out early by making path.new and removing it. */
MUST_USE enum status file_can_replace(const char *path, char *err);
/* Makes a folder, readable by its owner alone, and those above it that are missing. */
MUST_USE enum status file_make_folders(const char *path, char *err);
bool file_exists(const char *path);
/* Joins dir and name into out[cap]; ST_LIMIT where it does not fit. */
MUST_USE enum status file_join(char *out, size_t cap, const char *dir, const char *name, char *err);

#endif
