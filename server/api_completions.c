/* api_completions.c - POST /v1/completions. */
#include "server/generate.h"

void srv_api_completions(struct srv_exchange *x, void *user)
{
    static const struct srv_intake_route route = {SRV_COMPLETIONS, NULL, srv_job_start};
    srv_intake_start(user, x, &route);
}
