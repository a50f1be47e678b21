#include "kernels/copy.h"

#include "config/check.h"
#include "kernels/backend.h"

enum status kn_copy_open(struct kn *kn, enum kn_mem mem, int device, double bytes_per_s,
                         struct kn_copy **out, char *err)
{
    CHECK((mem == KN_MEM_HOST || mem == KN_MEM_PEER) && bytes_per_s >= 0);
    *out = NULL;
    if (kn->backend->copy_open)
        return kn->backend->copy_open(kn, mem, device, bytes_per_s, out, err);
    return err_set(err, ST_UNSUPPORTED,
                   "a background copy needs a copy engine, and %s computes without one",
                   kn_name(kn));
}

uint64_t kn_copy_bytes(const struct kn_copy *copy)
{
    return copy->kn->backend->copy_bytes(copy);
}

enum status kn_copy_close(struct kn_copy *copy, char *err)
{
    return copy->kn->backend->copy_close(copy, err);
}
