/*
 * size.h - sizes of memory as people write them: "64GiB", "1.5GiB", "512MB", "1048576".
 * KiB, MiB, GiB and TiB are powers of 1024; KB, MB, GB and TB (also K, M, G, T) powers of 1000.
 */
#ifndef DAKD_CONFIG_SIZE_H
#define DAKD_CONFIG_SIZE_H

#include <stdint.h>

#include "config/status.h"

/* The whole of text, as bytes; ST_INVALID where it is no such size, no whole number of bytes, or
 * above 10^18 (so that sizes add up without overflow). */
MUST_USE enum status size_parse(const char *text, uint64_t *out);
/* For a sentence: "1.50 GiB", "64.00 KiB", "1000 bytes". */
#define SIZE_TEXT_CAP 32
const char *size_text(uint64_t bytes, char text[SIZE_TEXT_CAP]);

#endif
