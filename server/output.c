#include "server/output.h"

#include "config/file.h"

enum status srv_output_check(const char *flag, const char *path, char *err)
{
    char why[ERR_CAP];
    enum status st = path[0] ? file_can_replace(path, why) : ST_OK;
    return st ? err_set(err, st, "%s %.400s", flag, why) : ST_OK;
}

enum status srv_output_write(const char *flag, const char *path, const struct buf *text, char *err)
{
    char why[ERR_CAP];
    if (!path[0]) return ST_OK;
    enum status st = buf_status(text);
    if (st) err_set(why, st, "%.400s: %s", path, status_text(st));
    else st = file_replace(path, text->data, text->len, why);
    return st ? err_set(err, st, "%s %.400s", flag, why) : ST_OK;
}
