#include "server/notify.h"

#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "config/log.h"

enum status srv_notify_open(struct srv_notify *n, const char *socket_path, char *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t len = strlen(socket_path);
    n->fd = -1;
    if (len == 0) return ST_OK;
    if (len >= sizeof address.sun_path || (socket_path[0] != '/' && socket_path[0] != '@'))
        return err_set(err, ST_INVALID, "NOTIFY_SOCKET '%s' is not a socket path", socket_path);
    memcpy(address.sun_path, socket_path, len);
    if (socket_path[0] == '@') address.sun_path[0] = '\0';
    n->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len);
    if (n->fd < 0 || connect(n->fd, (struct sockaddr *)&address, size)) {
        int why = errno;
        srv_notify_close(n);
        return err_set(err, ST_IO, "NOTIFY_SOCKET '%s': %s", socket_path, strerror(why));
    }
    return ST_OK;
}

void srv_notify_close(struct srv_notify *n)
{
    if (n->fd >= 0) close(n->fd);
    n->fd = -1;
}

void srv_notify_send(const struct srv_notify *n, const char *fmt, ...)
{
    char text[512];
    va_list args;
    if (n->fd < 0) return;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (send(n->fd, text, strlen(text), MSG_NOSIGNAL) < 0)
        log_warn("server", "systemd cannot be notified: %s", strerror(errno));
}
