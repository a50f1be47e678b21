#include "server/probe.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "config/clock.h"
#include "config/log.h"
#include "config/version.h"
#include "offload/probe.h"
#include "offload/window.h"
#include "server/output.h"

#define PEERS_LOOKED_FOR 8
#define PEER_TRIAL_BYTES ((size_t)2 << 20)
#define TIER_BYTES (256ull << 20)
#define FILE_BYTES_MAX ((size_t)1 << 20)
#define PATH_CAP (OPT_STRING_CAP + 128)

/* --- kept or measured ------------------------------------------------------------------------- */

/* "GPU-1b2c..." of an identity names the file.  "" where there is no place for one. */
static void file_path(const struct options *o, const char *identity, char out[PATH_CAP])
{
    int len = (int)strcspn(identity, ", /");
    out[0] = '\0';
    if (o->state_dir[0]) snprintf(out, PATH_CAP, "%s/probe-%.*s.json", o->state_dir, len, identity);
}

static void load(const struct options *o, const char *path, const char *identity,
                 struct off_links *kept)
{
    char err[ERR_CAP] = "";
    *kept = (struct off_links){0};
    if (!path[0] || o->reprobe) return;
    enum status st = off_links_load(path, identity, kept, err);
    if (st && st != ST_NOT_FOUND)
        log_warn("probe", "what was measured before is of no use, and is measured anew: %s", err);
}

static void add(struct off_links *links, const struct off_link *link)
{
    if (links->link_count < KN_TIER_MAX - 1 && !off_links_find(links, link->name))
        links->link[links->link_count++] = *link;
}

/* The tiers of remote that `kept` knows nothing of. */
static struct off_remote missing_in(const struct off_links *kept, const struct off_remote *remote)
{
    struct off_remote missing = {0};
    for (int i = 0; i < remote->count; i++) {
        if (off_links_of(kept, &remote->spec[i])) continue;
        missing.pool_bytes[missing.count] = remote->pool_bytes[i];
        missing.spec[missing.count++] = remote->spec[i];
    }
    return missing;
}

enum status srv_probe_links(const struct options *o, struct kn *kn, const struct off_remote *remote,
                            struct off_links *out, char *err)
{
    char path[PATH_CAP], why[ERR_CAP] = "";
    struct off_links kept;
    file_path(o, kn_identity(kn), path);
    load(o, path, kn_identity(kn), &kept);
    *out = kept;
    const struct off_remote missing = missing_in(&kept, remote);
    if (kept.hbm_bytes_per_s > 0 && !missing.count) {
        log_info("probe", "the links of this machine are known from %s", path);
        return ST_OK;
    }
    uint64_t begin = clock_now_ns();
    enum status st = off_links_measure(kn, &missing, out, err);
    if (st) return st;
    log_info("probe", "HBM and %d links measured in %.2f s", missing.count,
             (double)(clock_now_ns() - begin) / 1e9);
    for (int i = 0; i < kept.link_count; i++) add(out, &kept.link[i]);
    if (!off_links_steady(out))
        log_warn("probe", "the GPU had other work meanwhile: the measurement is used and not kept");
    else if (path[0] && off_links_save(path, out, why))
        log_warn("probe", "the measurement is not kept: %s", why);
    return ST_OK;
}

/* --- for people ------------------------------------------------------------------------------- */

static void print_links(const struct off_links *l)
{
    printf("\n%-8s %11s %11s %11s   %23s %14s\n", "", "read alone", "one block", "copy engine",
           "multicast to 2, 4, 8", "free fraction");
    printf("%-8s %11s %11s %11s   %23s %14s\n", "link", "GB/s", "us", "GB/s", "times", "%");
    for (int i = 0; i < l->link_count; i++) {
        const struct off_link *k = &l->link[i];
        printf("%-8s %11.2f %11.2f %11.2f   %7.2f %7.2f %7.2f %14.2f\n", k->name,
               k->read_bytes_per_s / 1e9, k->trip_s * 1e6, k->copy_bytes_per_s / 1e9,
               k->multicast[0], k->multicast[1], k->multicast[2],
               100 * k->read_bytes_per_s / (k->read_bytes_per_s + l->hbm_bytes_per_s));
    }
}

static void print_points(const struct off_links *l, const struct off_link *k)
{
    struct kn_window w = {0};
    bool chosen = off_link_window(l, k, &w);
    printf("\n%s, while every SM streams HBM\n%6s x %-6s %10s %10s %10s %8s %10s %10s\n", k->name,
           "SMs", "blocks", "in flight", "link GB/s", "HBM TB/s", "of alone", "trip us", "largest");
    for (int i = 0; i < k->point_count; i++) {
        const struct off_link_point *p = &k->point[i];
        bool taken = chosen && p->ctas == w.ctas && p->blocks == w.blocks;
        printf("%6d x %-6d %7.0f KB %10.2f %10.3f %8.3f %10.2f %10.2f%s\n", p->ctas, p->blocks,
               (double)p->ctas * p->blocks * KN_BLOCK_BYTES / 1024, p->link_bytes_per_s / 1e9,
               p->hbm_bytes_per_s / 1e12, p->hbm_bytes_per_s / l->hbm_bytes_per_s,
               p->trip_mean_s * 1e6, p->trip_max_s * 1e6, taken ? "  <- the window" : "");
    }
    printf("%-15s %10s %10.2f %10.3f %8.3f\n", "copy engine", "", k->busy_copy_bytes_per_s / 1e9,
           k->busy_copy_hbm_bytes_per_s / 1e12, k->busy_copy_hbm_bytes_per_s / l->hbm_bytes_per_s);
    printf("%-15s %10s %10.2f %10.3f %8.3f   %.2f in the window and %.2f copied\n", "both", "",
           (k->both_read_bytes_per_s + k->both_copy_bytes_per_s) / 1e9,
           k->both_hbm_bytes_per_s / 1e12, k->both_hbm_bytes_per_s / l->hbm_bytes_per_s,
           k->both_read_bytes_per_s / 1e9, k->both_copy_bytes_per_s / 1e9);
    if (!chosen)
        printf("No window of %d SMs fills this link without harm to HBM: the usual one is taken.\n",
               OFF_LINK_WINDOW_CTAS);
}

static void print_all(const struct off_links *l)
{
    char date[CLOCK_TEXT_CAP];
    printf("dakd %s (%s), %s, measured %s\n", version_string(), version_commit(), l->identity,
           clock_text(l->unix_s, date));
    printf("HBM: %.3f TB/s, read by every SM\n", l->hbm_bytes_per_s / 1e12);
    if (l->link_count) print_links(l);
    for (int i = 0; i < l->link_count; i++) print_points(l, &l->link[i]);
}

/* --- the command ------------------------------------------------------------------------------ */

/* --remote, or the host's memory and that of every GPU that can be reached. */
static enum status choose_tiers(const struct options *o, struct kn *kn, struct off_remote *remote,
                                char *err)
{
    if (o->remote[0]) return off_remote_parse(o->remote, remote, err);
    *remote = (struct off_remote){.count = 1, .spec = {{KN_MEM_HOST, 0, TIER_BYTES}}};
    for (int d = 0; d < PEERS_LOOKED_FOR && remote->count < KN_TIER_MAX - 1; d++) {
        void *p;
        if (kn_alloc(kn, KN_MEM_PEER, d, PEER_TRIAL_BYTES, &p, NULL)) continue;
        kn_free(kn, KN_MEM_PEER, p, PEER_TRIAL_BYTES);
        remote->spec[remote->count++] = (struct off_tier_spec){KN_MEM_PEER, d, TIER_BYTES};
    }
    return ST_OK;
}

static enum status write_file(const char *path, const char *flag, const struct off_links *links,
                              void (*put)(struct buf *, const struct off_links *), char *err)
{
    struct buf b;
    buf_init(&b, FILE_BYTES_MAX);
    put(&b, links);
    enum status st = srv_output_write(flag, path, &b, err);
    buf_deinit(&b);
    return st;
}

/* On the CPU there is one memory, and nothing beside it. */
static enum status probe_cpu(const struct options *o, struct kn *kn, char *err)
{
    const struct off_probe_config config = off_probe_config_default();
    struct off_tiers *tiers;
    double rate;
    if (o->json[0] || o->svg[0])
        return err_set(err, ST_UNSUPPORTED,
                       "--json and --svg are of a GPU's links, and %s has none", kn_name(kn));
    enum status st = off_tiers_open(kn, config.bytes_max, NULL, &tiers, err);
    if (st) return st;
    st = off_probe_read(kn, tiers, 0, &config, &rate, err);
    off_tiers_close(tiers);
    if (st) return st;
    printf("dakd %s (%s), %s\nmemory: %.2f GB/s, read by all threads\n"
           "Not measured, for there is no GPU: HBM, links, windows, multicast, copy engines.  The "
           "CPU reads every\ntier with the same loads.\n",
           version_string(), version_commit(), kn_name(kn), rate / 1e9);
    return ST_OK;
}

static enum status probe_gpu(const struct options *o, struct kn *kn, char *err)
{
    struct off_remote remote;
    static struct off_links links; /* large, and one */
    enum status st = choose_tiers(o, kn, &remote, err);
    if (st || (st = srv_probe_links(o, kn, &remote, &links, err))) return st;
    if ((st = write_file(o->json, "--json", &links, off_links_put_json, err)) ||
        (st = write_file(o->svg, "--svg", &links, srv_probe_put_svg, err)))
        return st;
    print_all(&links);
    return ST_OK;
}

int srv_probe(const struct options *o)
{
    char err[ERR_CAP] = "", why[ERR_CAP] = "";
    struct kn *kn = NULL;
    bool gpu = strcmp(o->device, "cpu") != 0;
    enum status st = gpu ? kn_open_cuda(0, &kn, why) : ST_OK;
    if (st == ST_UNSUPPORTED && strcmp(o->device, "auto") == 0) {
        log_info("probe", "no GPU: %s", why);
        gpu = false;
        st = ST_OK;
    }
    if (st) err_set(err, st, "%s", why);
    if (!st && !gpu) st = kn_open_cpu(0, &kn, err);
    if (!st) st = gpu ? probe_gpu(o, kn, err) : probe_cpu(o, kn, err);
    if (kn) kn_close(kn);
    if (!st) return 0;
    log_error("probe", "%s", err);
    return 1;
}
