/*
 * host.c - how much of the host's memory there is: the machine's, or what our control group (a
 * container's limit) leaves of it.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "config/check.h"
#include "kernels/kernels.h"

/* The number that follows `key` at the start of a line, in a file of the kernel's. */
static bool read_number(const char *path, const char *key, uint64_t *out)
{
    char line[128];
    size_t len = strlen(key);
    bool found = false;
    FILE *f = fopen(path, "re");
    while (f && !found && fgets(line, sizeof line, f))
        found = strncmp(line, key, len) == 0 && sscanf(line + len, "%" SCNu64, out) == 1;
    if (f) fclose(f);
    return found;
}

enum status kn_host_memory(uint64_t *total, uint64_t *available, char *err)
{
    uint64_t limit, used, cached = 0;
    *total = *available = 0;
    if (!read_number("/proc/meminfo", "MemTotal:", total) ||
        !read_number("/proc/meminfo", "MemAvailable:", available))
        return err_set(err, ST_IO, "/proc/meminfo does not say how much memory there is");
    *total *= 1024;
    *available *= 1024;
    if (!read_number("/sys/fs/cgroup/memory.max", "", &limit) ||
        !read_number("/sys/fs/cgroup/memory.current", "", &used))
        return ST_OK;
    /* The group's cached files are given back when memory is asked for. */
    if (read_number("/sys/fs/cgroup/memory.stat", "inactive_file ", &cached))
        used = used > cached ? used - cached : 0;
    *total = size_min(*total, limit);
    *available = size_min(*available, limit > used ? limit - used : 0);
    return ST_OK;
}
