/* fault.c - see fault.h. */
#include "server/fault.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "config/utf8.h"

static void fill(struct srv_fault *f, int status, const char *type, const char *code,
                 const char *param, const char *fmt, va_list args)
{
    *f = (struct srv_fault){.status = status, .type = type, .code = code};
    snprintf(f->param, sizeof f->param, "%s", param);
    f->param[utf8_valid_prefix(f->param, strlen(f->param))] = '\0';
    vsnprintf(f->message, sizeof f->message, fmt, args);
    f->message[utf8_valid_prefix(f->message, strlen(f->message))] = '\0';
}

bool srv_fault_bad(struct srv_fault *f, const char *param, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    fill(f, 400, "invalid_request_error", NULL, param, fmt, args);
    va_end(args);
    return false;
}

bool srv_fault_unsupported(struct srv_fault *f, const char *param, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    fill(f, 400, "invalid_request_error", "not_supported", param, fmt, args);
    va_end(args);
    return false;
}

bool srv_fault_set(struct srv_fault *f, int status, const char *type, const char *code,
                   const char *param, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    fill(f, status, type, code, param, fmt, args);
    va_end(args);
    return false;
}

bool srv_fault_context(struct srv_fault *f, const char *param, int64_t prompt_tokens,
                       int64_t answer_tokens, int64_t context_tokens)
{
    long long p = prompt_tokens, a = answer_tokens, n = context_tokens;
    if (a < 0)
        srv_fault_set(f, 400, "invalid_request_error", "context_length_exceeded", param,
                      "This model's maximum context length is %lld tokens. However, your %s "
                      "resulted in %lld tokens, which leaves no room for an answer. Please reduce "
                      "the length of the %s.",
                      n, param, p, param);
    else
        srv_fault_set(f, 400, "invalid_request_error", "context_length_exceeded", param,
                      "This model's maximum context length is %lld tokens. However, you requested "
                      "%lld tokens (%lld in the %s, %lld in the completion). Please reduce the "
                      "length of the %s or of the completion.",
                      n, p + a, p, param, a, param);
    f->prompt_tokens = prompt_tokens;
    f->context_tokens = context_tokens;
    return false;
}

static void put_string_or_null(struct buf *out, const char *text)
{
    if (text && *text) buf_put_json_string(out, text, strlen(text));
    else buf_puts(out, "null");
}

void srv_fault_format(const struct srv_fault *f, struct buf *out)
{
    buf_puts(out, "{\"error\":{\"message\":");
    buf_put_json_string(out, f->message, strlen(f->message));
    buf_puts(out, ",\"type\":");
    put_string_or_null(out, f->type);
    buf_puts(out, ",\"param\":");
    put_string_or_null(out, f->param);
    buf_puts(out, ",\"code\":");
    put_string_or_null(out, f->code);
    if (f->context_tokens > 0)
        buf_printf(out, ",\"n_prompt_tokens\":%lld,\"n_ctx\":%lld", (long long)f->prompt_tokens,
                   (long long)f->context_tokens);
    buf_puts(out, "}}");
}
