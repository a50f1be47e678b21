/*
 * compare_report.h - a comparison for people (standard output), for programs (CSV and JSON, units
 * in the names of columns and keys) and as plots.
 */
#ifndef DAKD_SERVER_COMPARE_REPORT_H
#define DAKD_SERVER_COMPARE_REPORT_H

#include "server/compare_rows.h"

/* What was compared on what, and the heading of the lines that follow. */
void srv_compare_print_head(const struct srv_comparison *c);
/* One line, at once: a comparison takes minutes. */
void srv_compare_print_row(const struct srv_comparison *c, const struct srv_compare_row *r);
/* By share and batch: the TPOT of each mode, and auto beside the best of the others. */
void srv_compare_print_summary(const struct srv_comparison *c);

/* Whether all files that flags name can be written.  ST_IO, ST_LIMIT. */
MUST_USE enum status srv_compare_check_files(const struct options *o, char *err);
/* Writes --csv and --json of the rows there are so far, which are few enough to be written anew
 * with each.  As srv_compare_write_files. */
MUST_USE enum status srv_compare_write_rows(const struct srv_comparison *c, char *err);
/* Writes --csv, --json and the plots of --svg, of the rows there are.  ST_IO, ST_NOMEM, ST_LIMIT.
 */
MUST_USE enum status srv_compare_write_files(const struct srv_comparison *c, char *err);

/* --- pure ------------------------------------------------------------------------------------- */

void srv_compare_put_csv(struct buf *b, const struct srv_comparison *c);
void srv_compare_put_json(struct buf *b, const struct srv_comparison *c);
/* compare_svg.c: effective bandwidth against the share, a panel a placement and batch, and TPOT
 * against the batch, a panel a placement and share. */
void srv_compare_put_bandwidth_svg(struct buf *b, const struct srv_comparison *c);
void srv_compare_put_tpot_svg(struct buf *b, const struct srv_comparison *c);

#endif
