/*
 * fault.h - a request that cannot be served, as a value: status, OpenAI's error type, the field that is wrong, and a
 * sentence.  The pure parts of the API layer fill one; the parts that hold an exchange send it.  Pure.
 */
#ifndef DAKD_SERVER_FAULT_H
#define DAKD_SERVER_FAULT_H

#include <stdbool.h>
#include <stdint.h>

#include "config/buf.h"
#include "config/status.h"

#define SRV_PARAM_CAP 128

struct srv_fault {
    int status;       /* of HTTP; 0: no fault */
    const char *type; /* static: "invalid_request_error", ... */
    const char *code; /* static, or NULL */
    char param[SRV_PARAM_CAP]; /* name of the field; "": none */
    char message[ERR_CAP];
    int64_t prompt_tokens, context_tokens; /* of a context overflow; context_tokens 0: not one */
};

/* 400 invalid_request_error about a field ("" for none).  Always false, so that a reader says `return srv_fault_bad()`. */
bool srv_fault_bad(struct srv_fault *f, const char *param, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* The same with code "not_supported": the field is known and this server cannot do what it asks. */
bool srv_fault_unsupported(struct srv_fault *f, const char *param, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Any other fault.  type and code are static; code may be NULL. */
bool srv_fault_set(struct srv_fault *f, int status, const char *type, const char *code,
                   const char *param, const char *fmt, ...) __attribute__((format(printf, 6, 7)));
/* 400 context_length_exceeded, worded as OpenAI words it.  answer_tokens: what max_tokens asked for, or -1. */
bool srv_fault_context(struct srv_fault *f, const char *param, int64_t prompt_tokens,
                       int64_t answer_tokens, int64_t context_tokens);
/* Appends {"error":{...}}. */
void srv_fault_format(const struct srv_fault *f, struct buf *out);

#endif
