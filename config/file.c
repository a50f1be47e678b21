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

#define PATH_CAP 4096

/* O_NOFOLLOW: a link that somebody left at path.new is not written through. */
static enum status open_aside(const char *path, char aside[PATH_CAP], int *fd, char *err)
{
    if (snprintf(aside, PATH_CAP, "%s.new", path) >= PATH_CAP)
        return err_set(err, ST_LIMIT, "the path %.100s... is longer than %d bytes", path,
                       PATH_CAP - 5);
    *fd = open(aside, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (*fd >= 0) return ST_OK;
    return err_set(err, ST_IO, "%s: %s", path, strerror(errno));
}

static bool write_all(int fd, const char *data, size_t len)
{
    while (len) {
        ssize_t n = write(fd, data, len);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return false;
        data += n;
        len -= (size_t)n;
    }
    return fsync(fd) == 0 || errno == EINVAL; /* of what cannot be synced: a pipe, say */
}

/* So that the new name outlives a power cut; a folder that cannot be synced is not our loss. */
static void sync_folder(const char *path)
{
    char folder[PATH_CAP];
    const char *slash = strrchr(path, '/');
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path) : 1, slash ? path : ".");
    int fd = open(folder[0] ? folder : "/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;
    if (fsync(fd)) { /* as above */
    }
    close(fd);
}

enum status file_replace(const char *path, const void *data, size_t len, char *err)
{
    char aside[PATH_CAP];
    int fd, reason = 0;
    enum status st = open_aside(path, aside, &fd, err);
    if (st) return st;
    if (!write_all(fd, data, len)) reason = errno;
    if (close(fd) && !reason) reason = errno;
    if (!reason && rename(aside, path)) reason = errno;
    if (!reason) {
        sync_folder(path);
        return ST_OK;
    }
    if (unlink(aside)) { /* what is left of it does no harm */
    }
    return err_set(err, ST_IO, "%s: %s", path, strerror(reason));
}

enum status file_can_replace(const char *path, char *err)
{
    char aside[PATH_CAP];
    struct stat info;
    int fd;
    enum status st = open_aside(path, aside, &fd, err);
    if (st) return st;
    close(fd);
    if (unlink(aside)) { /* it is empty */
    }
    if (stat(path, &info) == 0 && S_ISDIR(info.st_mode))
        return err_set(err, ST_IO, "%s: %s", path, strerror(EISDIR));
    return ST_OK;
}

enum status file_make_folders(const char *path, char *err)
{
    char part[PATH_CAP];
    size_t len = strlen(path);
    if (len >= sizeof part)
        return err_set(err, ST_LIMIT, "the path %.100s... is longer than %zu bytes", path,
                       sizeof part - 1);
    memcpy(part, path, len + 1);
    for (size_t i = 1; i <= len; i++) {
        if (part[i] != '/' && part[i]) continue;
        part[i] = '\0';
        if (mkdir(part, 0700) && errno != EEXIST)
            return err_set(err, ST_IO, "%s: %s", part, strerror(errno));
        if (i < len) part[i] = '/';
    }
    return ST_OK;
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
