/*
 * tool_faultd.c - the daemon with allocations that fail when a test says so: server/main.c as it
 * is, behind a malloc of its own.
 *
 * The first argument names a file of 24 bytes, mapped and shared with the test:
 *
 *     int64 countdown   > 0: the allocation that takes it to 0 fails; 0: none fails
 *     int64 failures    allocations that failed
 *     int64 live        blocks allocated and not freed
 *
 * The other arguments are the daemon's.  Sanitizers bring their own malloc: under them the program
 * says so and exits with 77.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>

#define main daemon_main
int daemon_main(int argc, char **argv, char **env);
#include "server/main.c"
#undef main

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)

int main(void)
{
    (void)daemon_main;
    return 77;
}

#else

#include "tests/failing_malloc.h"

int main(int argc, char **argv, char **env)
{
    int fd = argc > 1 ? open(argv[1], O_RDWR | O_CLOEXEC) : -1;
    void *shared = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || shared == MAP_FAILED) {
        fprintf(stderr, "usage: tool_faultd CONTROL_FILE serve ...\n");
        return 2;
    }
    close(fd);
    control = shared;
    return daemon_main(argc - 1, argv + 1, env);
}

#endif
