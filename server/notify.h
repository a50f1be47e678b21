/*
 * notify.h - the sd_notify protocol (systemd.exec, sd_notify(3)): one datagram per message to the
 * socket systemd names. Without a socket every call does nothing.
 */
#ifndef DAKD_SERVER_NOTIFY_H
#define DAKD_SERVER_NOTIFY_H

#include "config/status.h"

struct srv_notify {
    int fd; /* -1: not run by systemd */
};

/* socket_path: NOTIFY_SOCKET ("@..." is the abstract namespace), or "". */
MUST_USE enum status srv_notify_open(struct srv_notify *n, const char *socket_path, char *err);
void srv_notify_close(struct srv_notify *n);
/* E.g. "READY=1\nSTATUS=Serving llama on 127.0.0.1:8000". */
void srv_notify_send(const struct srv_notify *n, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

#endif
