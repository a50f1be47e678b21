#include "config/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static enum status read_all(int fd, const char *path, char *data, size_t len, char *err)
{
    size_t got = 0;
    while (got < len) {
        ssize_t n = read(fd, data + got, len - got);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return err_set(err, ST_IO, "%s: %s", path, strerror(errno));
        if (n == 0) return err_set(err, ST_IO, "%s: the file shrank while it was read", path);
        got += (size_t)n;
    }
    data[len] = '\0';
    return ST_OK;
}

enum status file_read(const char *path, size_t max, char **data, size_t *len, char *err)
{
    enum status st = ST_OK;
    struct stat info;
    *data = NULL;
    *len = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return err_set(err, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "%s: %s", path,
                       strerror(errno));
    if (fstat(fd, &info) < 0) {
        st = err_set(err, ST_IO, "%s: %s", path, strerror(errno));
    } else if (!S_ISREG(info.st_mode)) {
        st = err_set(err, ST_INVALID, "%s is not a regular file", path);
    } else if ((unsigned long long)info.st_size > max) {
        st = err_set(err, ST_LIMIT, "%s has %lld bytes; at most %zu are accepted", path,
                     (long long)info.st_size, max);
    } else if (!(*data = malloc((size_t)info.st_size + 1))) {
        st = err_set(err, ST_NOMEM, "%s: no memory for its %lld bytes", path,
                     (long long)info.st_size);
    } else {
        st = read_all(fd, path, *data, (size_t)info.st_size, err);
        if (st) {
            free(*data);
            *data = NULL;
        } else {
            *len = (size_t)info.st_size;
        }
    }
    close(fd);
    return st;
}

bool file_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

enum status file_join(char *out, size_t cap, const char *dir, const char *name, char *err)
{
    int n = snprintf(out, cap, "%s/%s", dir, name);
    if (n < 0 || (size_t)n >= cap)
        return err_set(err, ST_LIMIT, "the path %s/%s is longer than %zu bytes", dir, name,
                       cap - 1);
    return ST_OK;
}
