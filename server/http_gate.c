/*
 * http_gate.c - a byte-at-a-time machine; one state per position in the grammar of http_gate.h.
 *
 *     START ─CR▶ START_LF ─LF▶ START
 *     START ─token▶ METHOD ─SP▶ TARGET ─SP▶ VERSION ─8 bytes▶ VERSION_CR ─CR▶ VERSION_LF ─LF▶ LINE
 *     LINE ─token▶ NAME ─":"▶ VALUE ─CR▶ VALUE_LF ─LF▶ LINE
 *     LINE ─CR▶ END_LF ─LF▶ done
 */
#include "server/http_gate.h"

#include <string.h>

enum {
    START,
    START_LF,
    METHOD,
    TARGET,
    VERSION,
    VERSION_CR,
    VERSION_LF,
    LINE,
    NAME,
    VALUE,
    VALUE_LF,
    END_LF
};

bool srv_gate_is_token(unsigned char c)
{
    if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) return true;
    return c && strchr("!#$%&'*+-.^_`|~", c);
}

void srv_gate_init(struct srv_gate *g, bool trailers, size_t bytes_max, int line_count_max)
{
    *g = (struct srv_gate){
        .state = trailers ? LINE : START, .bytes_max = bytes_max, .line_count_max = line_count_max};
}

static bool refuse(struct srv_gate *g, int status, const char *sentence)
{
    g->refused_status = status;
    g->refusal = sentence;
    return false;
}

/* Moves on with `next` where c is what the grammar wants here, else refuses. */
static bool expect(struct srv_gate *g, unsigned char c, unsigned char wanted, int next,
                   const char *sentence)
{
    if (c != wanted) return refuse(g, 400, sentence);
    g->state = next;
    return true;
}

static bool step_version(struct srv_gate *g, unsigned char c)
{
    static const char pattern[] = "HTTP/#.#";
    char wanted = pattern[g->matched];
    bool ok = wanted == '#' ? c >= '0' && c <= '9' : c == (unsigned char)wanted;
    if (!ok) return refuse(g, 400, "The request line does not end in an HTTP version.");
    if (g->matched == 5 && c != '1')
        return refuse(g, 505, "This server speaks HTTP/1.1 and HTTP/1.0.");
    if (g->matched == 7 && c > '1')
        return refuse(g, 505, "This server speaks HTTP/1.1 and HTTP/1.0.");
    if (++g->matched == (int)sizeof pattern - 1) g->state = VERSION_CR;
    return true;
}

static bool step_request_line(struct srv_gate *g, unsigned char c)
{
    switch (g->state) {
    case START:
        if (c == '\r') g->state = START_LF;
        else if (srv_gate_is_token(c)) g->state = METHOD;
        else return refuse(g, 400, "The request does not begin with a method.");
        return true;
    case START_LF: return expect(g, c, '\n', START, "A carriage return without a line feed.");
    case METHOD:
        if (c == ' ') g->state = TARGET;
        else if (!srv_gate_is_token(c)) return refuse(g, 400, "The method is not a token.");
        return true;
    case TARGET:
        if (c == ' ') g->state = VERSION;
        else if (c <= 0x20 || c >= 0x7F)
            return refuse(g, 400,
                          "The request target has a character that must be percent-encoded.");
        return true;
    case VERSION: return step_version(g, c);
    case VERSION_CR:
        return expect(g, c, '\r', VERSION_LF, "The request line does not end after the version.");
    default: return expect(g, c, '\n', LINE, "A carriage return without a line feed.");
    }
}

static bool step_line(struct srv_gate *g, unsigned char c)
{
    switch (g->state) {
    case LINE:
        if (c == '\r') {
            g->state = END_LF;
            return true;
        }
        if (c == ' ' || c == '\t') return refuse(g, 400, "Folded header lines are not accepted.");
        if (!srv_gate_is_token(c))
            return refuse(g, 400, "A header line does not begin with a name.");
        if (++g->line_count > g->line_count_max) return refuse(g, 431, "Too many header lines.");
        g->state = NAME;
        return true;
    case NAME:
        if (c == ':') g->state = VALUE;
        else if (!srv_gate_is_token(c))
            return refuse(g, 400, "A header name has a blank or a character that is not allowed.");
        return true;
    case VALUE:
        if (c == '\r') g->state = VALUE_LF;
        else if ((c < 0x20 && c != '\t') || c == 0x7F)
            return refuse(g, 400, "A header value has a control character.");
        return true;
    case VALUE_LF: return expect(g, c, '\n', LINE, "A carriage return without a line feed.");
    default: return expect(g, c, '\n', END_LF + 1, "A carriage return without a line feed.");
    }
}

size_t srv_gate_run(struct srv_gate *g, const char *p, size_t n, enum srv_gate_verdict *verdict)
{
    *verdict = SRV_GATE_REFUSED;
    if (g->refused_status) return 0;
    for (size_t i = 0; i < n; i++) {
        bool in_line = g->state < LINE;
        if (g->bytes == g->bytes_max) {
            refuse(g, in_line ? 414 : 431,
                   in_line ? "The request line is too long." : "The headers are too long.");
            return i;
        }
        g->bytes++;
        unsigned char c = (unsigned char)p[i];
        if (!(in_line ? step_request_line(g, c) : step_line(g, c))) return i;
        if (g->state > END_LF) {
            *verdict = SRV_GATE_DONE;
            return i + 1;
        }
    }
    *verdict = SRV_GATE_MORE;
    return n;
}
