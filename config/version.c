#include "config/version.h"

const char *version_string(void)
{
    return DAKD_VERSION;
}

const char *version_commit(void)
{
    return DAKD_COMMIT;
}
