/*
 * output.h - files that a flag names and results are written to: --json, --csv, --svg, --port-file.
 * A reader sees all of one or none (config/file.h).
 */
#ifndef DAKD_SERVER_OUTPUT_H
#define DAKD_SERVER_OUTPUT_H

#include "config/buf.h"
#include "config/status.h"

/* `flag` with its dashes, for the sentence; an empty path: not asked for, and ST_OK. */

/* Whether it can be written: before anything is measured, so that a wrong path costs nothing.
 * ST_IO, ST_LIMIT. */
MUST_USE enum status srv_output_check(const char *flag, const char *path, char *err);
/* Gives the file this text.  What went wrong while the text was made is told too.  ST_IO, ST_NOMEM,
 * ST_LIMIT. */
MUST_USE enum status srv_output_write(const char *flag, const char *path, const struct buf *text,
                                      char *err);

#endif
