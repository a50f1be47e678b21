/* version.h - what `dakd --version` and GET /version say. */
#ifndef DAKD_CONFIG_VERSION_H
#define DAKD_CONFIG_VERSION_H

const char *version_string(void); /* "0.1.0" */
const char *version_commit(void); /* abbreviated commit, or "unknown" */

#endif
