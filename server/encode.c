/* encode.c - see encode.h. */
#include "server/encode.h"

#include "config/check.h"

/* About what takes a millisecond or two. */
#define INLINE_BYTES_MAX (32u << 10)

static void encode_all(struct srv_encode *e)
{
    for (int32_t i = 0; i < e->prompt_count && !e->status; i++) {
        struct srv_prompt *p = &e->prompts[i];
        size_t count = 0;
        if (!p->text) continue;
        e->status = eng_tok_encode(e->tok, p->text, p->len, e->flags, INT32_MAX, &p->tokens, &count,
                                   e->err);
        p->token_count = (int32_t)count;
    }
    if (e->made && !e->status) e->made(e);
}

static void work_on_pool(uv_work_t *work)
{
    encode_all(work->data);
}

static void work_done(uv_work_t *work, int uv_status)
{
    struct srv_encode *e = work->data;
    if (uv_status && !e->status)
        e->status =
            err_set(e->err, ST_NOMEM, "the prompt was not tokenised: %s", uv_strerror(uv_status));
    e->done(e);
}

uint64_t srv_encode_bytes(const struct srv_encode *e)
{
    uint64_t bytes = 0;
    for (int32_t i = 0; i < e->prompt_count; i++)
        if (e->prompts[i].text) bytes += e->prompts[i].len * (1 + sizeof(int32_t));
    return bytes;
}

void srv_encode_start(struct srv_encode *e, uv_loop_t *loop)
{
    size_t bytes = 0;
    e->status = ST_OK;
    for (int32_t i = 0; i < e->prompt_count; i++) {
        if (!e->prompts[i].text) continue;
        bytes += e->prompts[i].len;
        if (!e->tok && !e->status)
            e->status = err_set(e->err, ST_UNSUPPORTED,
                                "text prompts are not supported: the model has no tokenizer; send "
                                "token ids");
    }
    e->work.data = e;
    if (!e->status && bytes > INLINE_BYTES_MAX &&
        uv_queue_work(loop, &e->work, work_on_pool, work_done) == 0)
        return;
    if (!e->status) encode_all(e);
    e->done(e);
}

void srv_encode_cancel(struct srv_encode *e)
{
    uv_cancel((uv_req_t *)&e->work); /* in vain where the pool is at it */
}

bool srv_encode_fault(const struct srv_encode *e, const char *param, struct srv_fault *fault)
{
    CHECK(e->status);
    if (e->status == ST_NOMEM)
        return srv_fault_set(fault, 503, "unavailable_error", NULL, "",
                             "The server has no memory left for this request.");
    if (e->status == ST_UNSUPPORTED)
        return srv_fault_unsupported(fault, param, "'%s': %s.", param, e->err);
    return srv_fault_bad(fault, param, "'%s' could not be tokenised: %s.", param, e->err);
}
