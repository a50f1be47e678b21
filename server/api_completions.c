/* api_completions.c - POST /v1/completions. */
#include "server/generate.h"

void srv_api_completions(struct srv_exchange *x, void *user)
{
    struct srv_api *api = user;
    struct srv_request request;
    if (srv_api_parse(api, x, SRV_COMPLETIONS, &request))
        srv_job_start(api, x, &request, NULL, 0);
}
