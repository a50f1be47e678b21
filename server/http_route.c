/*
 * http_route.c - which handler a request belongs to, and the answers that need none: OPTIONS with
 * CORS preflight, 404, 405.  The table is small and scanned; an exact path beats one that ends in
 * "/" "*".
 */
#include <string.h>
#include <strings.h>

#include "config/check.h"
#include "server/http_conn.h"

/* The rest of path behind a pattern's "*", "" for an exact match, NULL for none. */
static const char *match(const char *pattern, const char *path)
{
    size_t n = strlen(pattern);
    if (pattern[n - 1] != '*') return strcmp(pattern, path) == 0 ? "" : NULL;
    return strncmp(pattern, path, n - 1) == 0 && path[n - 1] ? path + n - 1 : NULL;
}

static bool method_fits(const struct srv_route *route, const char *method)
{
    if (strcmp(route->method, method) == 0) return true;
    return strcmp(route->method, "GET") == 0 && strcmp(method, "HEAD") == 0;
}

void srv_route_find(struct srv_exchange *x)
{
    const struct srv_http *http = x->conn->http;
    const struct srv_request *r = &x->conn->request;
    for (size_t i = 0; i < http->route_count; i++) {
        const struct srv_route *route = &http->routes[i];
        const char *rest = match(route->path, r->path);
        if (!rest || !method_fits(route, r->method)) continue;
        x->route_idx = i;
        x->path_rest = rest;
        if (!*rest) return;
    }
}

/* Lists the methods of a path ("*": of all), each once; false where the path has none. */
static bool allowed_methods(const struct srv_http *http, const char *path, char *list, size_t cap)
{
    bool any = false;
    list[0] = '\0';
    for (size_t i = 0; i < http->route_count; i++) {
        const struct srv_route *route = &http->routes[i];
        if (strcmp(path, "*") != 0 && !match(route->path, path)) continue;
        any = true;
        if (strstr(list, route->method)) continue;
        CHECK(strlen(list) + strlen(route->method) + 32 < cap);
        strcat(list, route->method);
        strcat(list, strcmp(route->method, "GET") == 0 ? ", HEAD, " : ", ");
    }
    if (!strstr(list, "OPTIONS")) strcat(list, "OPTIONS");
    else list[strlen(list) - 2] = '\0';
    return any;
}

/* ---- CORS ---- */

/* The configured origin that the request's Origin matches, or NULL. */
static const char *cors_origin(const struct srv_exchange *x)
{
    const struct srv_http_config *config = &x->conn->http->config;
    const char *origin = srv_request_header(&x->conn->request, "Origin");
    for (size_t i = 0; origin && i < config->cors_origin_count; i++) {
        const char *allowed = config->cors_origins[i];
        if (strcmp(allowed, "*") == 0 || strcasecmp(allowed, origin) == 0) return allowed;
    }
    return NULL;
}

void srv_route_put_cors(struct srv_exchange *x, struct buf *out)
{
    if (!x->conn->http->config.cors_origin_count) return;
    const char *origin = cors_origin(x);
    /* What is sent depends on Origin, also where nothing is. */
    buf_puts(out, "Vary: Origin\r\n");
    if (!origin) return;
    buf_printf(out, "Access-Control-Allow-Origin: %s\r\n", origin);
    buf_puts(out, "Access-Control-Expose-Headers: X-Request-Id, Retry-After\r\n");
}

/* A header list a browser asks for, if it is only tokens, commas and blanks of reasonable length.
 */
static bool header_list_is_plain(const char *list)
{
    if (strlen(list) > 1024) return false;
    for (; *list; list++)
        if (*list != ',' && *list != ' ' && !srv_gate_is_token((unsigned char)*list)) return false;
    return true;
}

static void answer_options(struct srv_exchange *x, const char *methods)
{
    const struct srv_request *r = &x->conn->request;
    bool preflight = srv_request_header(r, "Access-Control-Request-Method") && cors_origin(x);
    srv_x_header(x, "Allow", methods);
    if (preflight) {
        const char *wanted = srv_request_header(r, "Access-Control-Request-Headers");
        srv_x_header(x, "Access-Control-Allow-Methods", methods);
        if (wanted && *wanted && header_list_is_plain(wanted))
            srv_x_header(x, "Access-Control-Allow-Headers", wanted);
        srv_x_header(x, "Access-Control-Max-Age", "600");
    }
    srv_x_reply(x, 204, NULL, NULL, 0);
}

void srv_route_refuse(struct srv_exchange *x)
{
    const struct srv_request *r = &x->conn->request;
    char methods[512];
    if (!allowed_methods(x->conn->http, r->path, methods, sizeof methods)) {
        srv_x_error(x, 404, NULL, NULL, "unknown_url", "There is nothing at %s %s.", r->method,
                    r->path);
        return;
    }
    if (strcmp(r->method, "OPTIONS") == 0) {
        answer_options(x, methods);
        return;
    }
    srv_x_header(x, "Allow", methods);
    srv_x_error(x, 405, NULL, NULL, "method_not_allowed", "%s does not take %s, but %s.", r->path,
                r->method, methods);
}
