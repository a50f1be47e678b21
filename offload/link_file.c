/*
 * link_file.c - the file of a measurement: one table of figures, by which they are written, read
 * and checked.
 *
 * Nothing of a file is trusted: what is not JSON, of another format, of another device or driver,
 * or has a figure that no machine gives, is refused with a sentence, and whoever asked measures
 * anew.
 */
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "config/check.h"
#include "config/file.h"
#include "config/json.h"
#include "offload/link.h"

#define FORMAT 2 /* of the file, and of what is measured: another one is measured anew */
#define FILE_BYTES_MAX ((size_t)1 << 20)
#define RATE_MIN 1e6
#define RATE_MAX 1e15
#define TRIP_MIN 1e-9
#define TRIP_MAX 10

struct figure {
    const char *key;
    size_t offset;
    double min, max;
};
#define RATE(type, field)                                                                          \
    {                                                                                              \
#field, offsetof(struct type, field), RATE_MIN, RATE_MAX                                   \
    }
#define TRIP(type, key, field)                                                                     \
    {                                                                                              \
        key, offsetof(struct type, field), TRIP_MIN, TRIP_MAX                                      \
    }

static const struct figure link_figures[] = {
    RATE(off_link, read_bytes_per_s),          TRIP(off_link, "round_trip_s", trip_s),
    RATE(off_link, copy_bytes_per_s),          RATE(off_link, busy_copy_bytes_per_s),
    RATE(off_link, busy_copy_hbm_bytes_per_s), RATE(off_link, both_read_bytes_per_s),
    RATE(off_link, both_copy_bytes_per_s),     RATE(off_link, both_hbm_bytes_per_s),
};
static const char *const multicast_keys[OFF_LINK_CLUSTERS] = {
    "multicast_2_ratio", "multicast_4_ratio", "multicast_8_ratio"};
static const struct figure point_figures[] = {
    RATE(off_link_point, link_bytes_per_s),
    RATE(off_link_point, hbm_bytes_per_s),
    TRIP(off_link_point, "round_trip_mean_s", trip_mean_s),
    TRIP(off_link_point, "round_trip_max_s", trip_max_s),
};

/* --- writing ---------------------------------------------------------------------------------- */

static void put_figures(struct buf *b, const void *from, const struct figure *f, size_t count)
{
    for (size_t i = 0; i < count; i++)
        buf_printf(b, ", \"%s\": %.9g", f[i].key,
                   *(const double *)((const char *)from + f[i].offset));
}

static void put_link(struct buf *b, const struct off_link *link)
{
    buf_puts(b, "\n    {\"name\": ");
    buf_put_json_string(b, link->name, strlen(link->name));
    put_figures(b, link, link_figures, ARRAY_COUNT(link_figures));
    for (int i = 0; i < OFF_LINK_CLUSTERS; i++)
        buf_printf(b, ", \"%s\": %.9g", multicast_keys[i], link->multicast[i]);
    buf_puts(b, ",\n     \"windows\": [");
    for (int i = 0; i < link->point_count; i++) {
        const struct off_link_point *p = &link->point[i];
        buf_printf(b, "%s\n      {\"ctas\": %d, \"blocks\": %d", i ? "," : "", p->ctas, p->blocks);
        put_figures(b, p, point_figures, ARRAY_COUNT(point_figures));
        buf_putc(b, '}');
    }
    buf_puts(b, "]}");
}

void off_links_put_json(struct buf *b, const struct off_links *links)
{
    buf_printf(b, "{\n  \"format\": %d,\n  \"identity\": ", FORMAT);
    buf_put_json_string(b, links->identity, strlen(links->identity));
    buf_printf(b, ",\n  \"measured_unix_s\": %lld,\n  \"hbm_bytes_per_s\": %.9g,\n  \"links\": [",
               (long long)links->unix_s, links->hbm_bytes_per_s);
    for (int i = 0; i < links->link_count; i++) {
        if (i) buf_putc(b, ',');
        put_link(b, &links->link[i]);
    }
    buf_puts(b, "]\n}\n");
}

enum status off_links_save(const char *path, const struct off_links *links, char *err)
{
    char *folder = strdup(path), *slash = folder ? strrchr(folder, '/') : NULL;
    struct buf b;
    enum status st = ST_OK;
    if (slash && slash != folder) {
        *slash = '\0';
        st = file_make_folders(folder, err);
    }
    free(folder);
    if (st) return st;
    buf_init(&b, FILE_BYTES_MAX);
    off_links_put_json(&b, links);
    if ((st = buf_status(&b))) err_set(err, st, "%s: %s", path, status_text(st));
    else st = file_replace(path, b.data, b.len, err);
    buf_deinit(&b);
    return st;
}

/* --- reading ---------------------------------------------------------------------------------- */

/* A number that must be there. */
static enum status get(const cJSON *object, const char *key, double min, double max, double *out,
                       char *err)
{
    if (!json_member(object, key)) return err_set(err, ST_CORRUPT, "'%s' is missing", key);
    return json_get_double(object, key, min, max, min, out, err);
}

static enum status get_count(const cJSON *object, const char *key, int32_t *out, char *err)
{
    double n = 0;
    enum status st = get(object, key, 1, KN_WINDOW_NO_BOUND, &n, err);
    if (!st && n != floor(n)) return err_set(err, ST_CORRUPT, "'%s' is no whole number", key);
    *out = (int32_t)n;
    return st;
}

static enum status get_figures(const cJSON *object, void *to, const struct figure *f, size_t count,
                               char *err)
{
    enum status st = ST_OK;
    for (size_t i = 0; i < count && !st; i++)
        st = get(object, f[i].key, f[i].min, f[i].max, (double *)((char *)to + f[i].offset), err);
    return st;
}

static enum status get_text(const cJSON *object, const char *key, char *out, size_t cap, char *err)
{
    const char *text = NULL;
    enum status st = json_get_string(object, key, NULL, &text, err);
    if (st) return st;
    if (!text || !*text || strlen(text) >= cap)
        return err_set(err, ST_CORRUPT, "'%s' is missing or too long", key);
    memcpy(out, text, strlen(text) + 1);
    return ST_OK;
}

static enum status get_array(const cJSON *object, const char *key, int max, const cJSON **out,
                             char *err)
{
    *out = json_member(object, key);
    if (cJSON_IsArray(*out) && cJSON_GetArraySize(*out) <= max) return ST_OK;
    return err_set(err, ST_CORRUPT, "'%s' is not an array of at most %d", key, max);
}

static enum status get_point(const cJSON *object, struct off_link_point *p, char *err)
{
    enum status st = get_count(object, "ctas", &p->ctas, err);
    if (st || (st = get_count(object, "blocks", &p->blocks, err))) return st;
    return get_figures(object, p, point_figures, ARRAY_COUNT(point_figures), err);
}

static enum status get_link(const cJSON *object, struct off_link *link, char *err)
{
    const cJSON *points, *point;
    enum status st = get_text(object, "name", link->name, sizeof link->name, err);
    if (st || (st = get_figures(object, link, link_figures, ARRAY_COUNT(link_figures), err)) ||
        (st = get_array(object, "windows", OFF_LINK_POINTS_MAX, &points, err)))
        return st;
    for (int i = 0; i < OFF_LINK_CLUSTERS && !st; i++)
        st = get(object, multicast_keys[i], 0.01, 100, &link->multicast[i], err);
    for (point = points->child; point && !st; point = point->next)
        st = get_point(point, &link->point[link->point_count++], err);
    return st;
}

static enum status get_all(const cJSON *root, struct off_links *out, char *err)
{
    const cJSON *links, *link;
    double format = 0, unix_s = 0;
    enum status st = get(root, "format", 0, 1e9, &format, err);
    if (st) return st;
    if (format != FORMAT)
        return err_set(err, ST_CORRUPT, "it is of format %g, and this is %d", format, FORMAT);
    if ((st = get_text(root, "identity", out->identity, sizeof out->identity, err)) ||
        (st = get(root, "measured_unix_s", 0, 1e11, &unix_s, err)) ||
        (st = get(root, "hbm_bytes_per_s", RATE_MIN, RATE_MAX, &out->hbm_bytes_per_s, err)) ||
        (st = get_array(root, "links", KN_TIER_MAX - 1, &links, err)))
        return st;
    out->unix_s = (int64_t)unix_s;
    for (link = links->child; link && !st; link = link->next)
        if (!(st = get_link(link, &out->link[out->link_count], err))) out->link_count++;
    return st;
}

enum status off_links_parse(const char *text, size_t len, struct off_links *out, char *err)
{
    cJSON *root = NULL;
    *out = (struct off_links){0};
    enum status st = json_parse(text, len, &json_limits_request, &root, err);
    if (!st && !cJSON_IsObject(root)) st = err_set(err, ST_CORRUPT, "it is not an object");
    if (!st) st = get_all(root, out, err);
    cJSON_Delete(root);
    if (st) *out = (struct off_links){0};
    return st == ST_NOMEM || !st ? st : ST_CORRUPT;
}

enum status off_links_load(const char *path, const char *identity, struct off_links *out, char *err)
{
    char *text, why[ERR_CAP];
    size_t len;
    *out = (struct off_links){0};
    enum status st = file_read(path, FILE_BYTES_MAX, &text, &len, err);
    if (st) return st == ST_NOT_FOUND || st == ST_NOMEM ? st : ST_CORRUPT;
    st = off_links_parse(text, len, out, why);
    free(text);
    if (st) return err_set(err, st, "%s: %.300s", path, why);
    if (strcmp(out->identity, identity) == 0) return ST_OK;
    err_set(err, ST_INVALID, "%s is of %.150s, and this is %.150s", path, out->identity, identity);
    *out = (struct off_links){0};
    return ST_INVALID;
}
