/*
 * http_gate.h - the strict line scanner in front of llhttp.
 *
 * llhttp forgives what smuggling is made of: folded lines, CR without LF, blanks around header
 * names.  The gate walks the bytes of a head (request line and headers) or of the trailers of a
 * chunked body before llhttp sees them and refuses everything that is not this grammar, to the
 * byte:
 *
 *     head     = *CRLF method SP target SP "HTTP/" DIGIT "." DIGIT CRLF lines
 *     lines    = *( token ":" *( HTAB / %x20-7E / %x80-FF ) CRLF ) CRLF
 *
 * It also enforces the limits on bytes and lines.  Pure: no memory, no clock.
 */
#ifndef DAKD_SERVER_HTTP_GATE_H
#define DAKD_SERVER_HTTP_GATE_H

#include <stdbool.h>
#include <stddef.h>

enum srv_gate_verdict { SRV_GATE_MORE, SRV_GATE_DONE, SRV_GATE_REFUSED };

struct srv_gate {
    int state;
    size_t bytes; /* taken so far */
    size_t bytes_max;
    int line_count;
    int line_count_max;
    int matched;         /* bytes of the version taken */
    int refused_status;  /* with SRV_GATE_REFUSED: 400, 414, 431, 505 */
    const char *refusal; /* a sentence */
};

/* For a head, or (trailers) for lines alone. */
void srv_gate_init(struct srv_gate *g, bool trailers, size_t bytes_max, int line_count_max);
/* Takes bytes of p[0..n) up to the end of the head and returns how many; *verdict says what they
 * amount to. */
size_t srv_gate_run(struct srv_gate *g, const char *p, size_t n, enum srv_gate_verdict *verdict);
/* RFC 9110 token characters. */
bool srv_gate_is_token(unsigned char c);

#endif
