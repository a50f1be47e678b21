/*
 * status.h - the one success convention of dakd.
 *
 * Every function that can fail for a reason outside the program (input, memory, disk, peer) returns
 * `enum status`; ST_OK is 0.  Functions on the start-up and request paths also fill `char
 * err[ERR_CAP]` with one sentence that says what was wrong and what to do.  A mistake of the
 * program itself is not a status: it stops at CHECK (check.h).
 */
#ifndef DAKD_CONFIG_STATUS_H
#define DAKD_CONFIG_STATUS_H

#define STATUS_MAP(X)                                                                              \
    X(OK, "ok")                                                                                    \
    X(NOMEM, "out of memory")                                                                      \
    X(INVALID, "invalid input")                                                                    \
    X(NOT_FOUND, "not found")                                                                      \
    X(IO, "input/output error")                                                                    \
    X(CORRUPT, "corrupt file")                                                                     \
    X(LIMIT, "over a configured limit")                                                            \
    X(UNSUPPORTED, "not supported")                                                                \
    X(FULL, "queue full")                                                                          \
    X(DEVICE, "device error")

enum status {
#define X(name, text) ST_##name,
    STATUS_MAP(X)
#undef X
        ST_COUNT
};

/* Callers must look at a status.  `(void)` does not silence it; a deliberate drop reads `if (f())
 * {}`. */
#define MUST_USE __attribute__((warn_unused_result))

/* Capacity of every error sentence, terminator included. */
#define ERR_CAP 512

#ifdef __cplusplus /* host code of CUDA files */
extern "C" {
#endif

const char *status_text(enum status st);

/* Formats the sentence into err (may be NULL) and returns st, so a failure reads
 * `return err_set(err, ST_INVALID, "...", ...)`.  Truncates at a UTF-8 character boundary. */
enum status err_set(char *err, enum status st, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#ifdef __cplusplus
}
#endif

#endif
