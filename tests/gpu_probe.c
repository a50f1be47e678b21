/*
 * gpu_probe.c - measuring links on a GPU: every kind of measurement alone, then all of them, whose
 * figures must agree with each other.  Rates are held to what follows from them, not to a table:
 * a link is slower than HBM, more in flight waits longer, a multicast block crosses the link once.
 *
 * Quick, for compute-sanitizer: the single measurements, which any speed passes; tiny, for its
 * slowest tools: one of each kind.
 */
#include "offload/link.h"
#include "tests/gpu_common.h"

#define LOCAL_BYTES ((size_t)64 << 20)
#define REMOTE_BYTES ((size_t)16 << 20)
#define SHORT_NS 300000

static struct kn *gpu;

static struct kn_link_rates measure(struct kn_link_args a)
{
    struct kn_link_rates r;
    char err[ERR_CAP] = "";
    a.ns = SHORT_NS;
    if (!a.cluster) a.cluster = 1;
    EXPECT(kn_measure_link(gpu, &a, &r, err) == ST_OK, "%s", err);
    return r;
}

/* One of each kind, of few blocks. */
static void test_tiny(void)
{
    char err[ERR_CAP] = "";
    void *local, *remote;
    const size_t bytes = (size_t)4 << 20;
    test_must(kn_alloc(gpu, KN_MEM_LOCAL, 0, bytes, &local, err), err);
    test_must(kn_alloc(gpu, KN_MEM_HOST, 0, bytes, &remote, err), err);
    struct kn_link_args a = {.local = local,
                             .remote = remote,
                             .local_bytes = bytes,
                             .remote_bytes = bytes,
                             .ctas = 4,
                             .blocks = 2,
                             .cluster = 1,
                             .ns = 20000};
    struct kn_link_rates r;
    for (; a.cluster <= 4; a.cluster *= 2) {
        EXPECT(kn_measure_link(gpu, &a, &r, err) == ST_OK, "%s", err);
        EXPECT(r.remote_bytes_per_s > 0, "clusters of %d", a.cluster);
    }
    kn_free(gpu, KN_MEM_LOCAL, local, bytes);
    kn_free(gpu, KN_MEM_HOST, remote, bytes);
}

/* Memory that is read is not written, and what is copied arrives. */
static void test_single(void)
{
    char err[ERR_CAP] = "";
    void *local, *remote;
    uint32_t *words = test_malloc(REMOTE_BYTES);
    for (size_t i = 0; i < REMOTE_BYTES / 4; i++) words[i] = (uint32_t)test_random();
    test_must(kn_alloc(gpu, KN_MEM_LOCAL, 0, LOCAL_BYTES, &local, err), err);
    test_must(kn_alloc(gpu, KN_MEM_HOST, 0, REMOTE_BYTES, &remote, err), err);
    test_must(kn_upload(gpu, remote, words, REMOTE_BYTES), "");
    const struct kn_link_args all = {
        .local = local, .remote = remote, .local_bytes = LOCAL_BYTES, .remote_bytes = REMOTE_BYTES};
    struct kn_link_args a = all;
    struct kn_link_rates r = measure(a);
    EXPECT(r.local_bytes_per_s > 0 && r.remote_bytes_per_s == 0 && r.trip_mean_s == 0, "HBM alone");
    const int32_t sms = kn_sm_count(gpu), ctas[] = {1, 5, 16, sms};
    for (size_t i = 0; i < ARRAY_COUNT(ctas); i++)
        for (int32_t blocks = 1; blocks <= KN_LINK_BLOCKS_MAX; blocks += 5)
            for (int hbm = 0; hbm < 2; hbm++) {
                a.ctas = ctas[i];
                a.blocks = blocks;
                a.local = hbm ? local : NULL;
                r = measure(a);
                EXPECT((r.local_bytes_per_s > 0) == hbm && r.remote_bytes_per_s > 0,
                       "%d x %d, HBM %d", ctas[i], blocks, hbm);
                EXPECT(r.trip_min_s > 0 && r.trip_min_s <= r.trip_mean_s &&
                           r.trip_mean_s <= r.trip_max_s,
                       "trips %g %g %g", r.trip_min_s, r.trip_mean_s, r.trip_max_s);
            }
    a = all;
    a.local = NULL;
    for (a.cluster = 1; a.cluster <= 8; a.cluster *= 2)
        for (a.ctas = 1; a.ctas <= 12; a.ctas += 11)
            for (a.blocks = 1; a.blocks <= KN_LINK_BLOCKS_MAX; a.blocks++) {
                r = measure(a);
                EXPECT(r.remote_bytes_per_s > 0, "%d clusters of %d", a.ctas, a.cluster);
            }
    a = all;
    a.copy_to = (char *)local + LOCAL_BYTES - REMOTE_BYTES;
    for (int hbm = 0; hbm < 2; hbm++) {
        a.local = hbm ? local : NULL;
        r = measure(a);
        EXPECT(r.copy_bytes_per_s > 0 && r.remote_bytes_per_s == 0 &&
                   (r.local_bytes_per_s > 0) == hbm,
               "copies");
        a.ctas = 16;
        a.blocks = 2;
        r = measure(a);
        EXPECT(r.copy_bytes_per_s > 0 && r.remote_bytes_per_s > 0 &&
                   (r.local_bytes_per_s > 0) == hbm,
               "copies and reads");
        a.ctas = 0;
    }
    /* One block, read by all at once. */
    a = (struct kn_link_args){
        .remote = remote, .remote_bytes = KN_BLOCK_BYTES, .ctas = sms, .blocks = 6};
    EXPECT(measure(a).remote_bytes_per_s > 0, "one block");
    EXPECT(memcmp(remote, words, REMOTE_BYTES) == 0, "the remote memory changed");
    uint32_t *copied = test_malloc(REMOTE_BYTES);
    EXPECT(cudaMemcpy(copied, (char *)local + LOCAL_BYTES - REMOTE_BYTES, REMOTE_BYTES,
                      cudaMemcpyDefault) == cudaSuccess,
           "copying back");
    EXPECT(memcmp(copied, words, REMOTE_BYTES) == 0, "the copy engine copied something else");
    free(copied);
    free(words);
    kn_free(gpu, KN_MEM_LOCAL, local, LOCAL_BYTES);
    kn_free(gpu, KN_MEM_HOST, remote, REMOTE_BYTES);
}

static void check_link(const struct off_links *l, const struct off_link *k)
{
    const struct off_link_point *least = &k->point[0], *most = &k->point[k->point_count - 1];
    struct kn_window w;
    EXPECT(k->point_count == 24 && k->read_bytes_per_s > 5e9, "%s: %g", k->name,
           k->read_bytes_per_s);
    EXPECT(k->read_bytes_per_s < l->hbm_bytes_per_s / 4, "%s as fast as HBM", k->name);
    EXPECT(k->trip_s > 0.3e-6 && k->trip_s < 20e-6, "%s: one block in %g s", k->name, k->trip_s);
    EXPECT(least->trip_mean_s < most->trip_mean_s, "%s: more in flight waits no longer", k->name);
    for (int i = 0; i < k->point_count; i++)
        EXPECT(k->point[i].link_bytes_per_s < 1.05 * k->read_bytes_per_s &&
                   k->point[i].hbm_bytes_per_s < 1.05 * l->hbm_bytes_per_s,
               "%s: point %d is faster than either memory alone", k->name, i);
    for (int i = 0; i < OFF_LINK_CLUSTERS; i++)
        EXPECT(fabs(k->multicast[i] / (2 << i) - 1) < 0.1, "%s: multicast to %d gives %g", k->name,
               2 << i, k->multicast[i]);
    EXPECT(off_link_window(l, k, &w), "%s: no window", k->name);
    EXPECT(k->copy_bytes_per_s > 0.8 * k->read_bytes_per_s, "%s: copies %g", k->name,
           k->copy_bytes_per_s);
    const double both = k->both_read_bytes_per_s + k->both_copy_bytes_per_s;
    EXPECT(both > 0.9 * fmin(k->read_bytes_per_s, k->busy_copy_bytes_per_s) &&
               both < 1.1 * fmax(k->read_bytes_per_s, k->copy_bytes_per_s),
           "%s: both at once %g", k->name, both);
    printf("%s: copies %.1f GB/s alone, %.1f beside HBM at %.3f TB/s; both %.1f + %.1f, %.3f\n",
           k->name, k->copy_bytes_per_s / 1e9, k->busy_copy_bytes_per_s / 1e9,
           k->busy_copy_hbm_bytes_per_s / 1e12, k->both_read_bytes_per_s / 1e9,
           k->both_copy_bytes_per_s / 1e9, k->both_hbm_bytes_per_s / 1e12);
    printf("%s: %.1f GB/s alone, window %d x %d, cost %.1f\n", k->name, k->read_bytes_per_s / 1e9,
           w.ctas, w.blocks, (double)w.cost);
}

static void test_all(void)
{
    static struct off_links links;
    struct off_remote remote = {.count = 1, .spec = {{KN_MEM_HOST, 0, 1 << 30}}};
    char err[ERR_CAP] = "";
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess && count > 1)
        remote.spec[remote.count++] = (struct off_tier_spec){KN_MEM_PEER, 1, 1 << 30};
    else printf("one GPU: no link to a peer was measured\n");
    test_must(off_links_measure(gpu, &remote, &links, err), err);
    EXPECT(strncmp(links.identity, "GPU-", 4) == 0 && strstr(links.identity, "driver"), "%s",
           links.identity);
    EXPECT(links.hbm_bytes_per_s > 1e12 && links.hbm_bytes_per_s < 4.9e12, "HBM %g",
           links.hbm_bytes_per_s); /* the datasheet's of an H200 is 4.8 TB/s */
    printf("%s\nHBM %.3f TB/s\n", links.identity, links.hbm_bytes_per_s / 1e12);
    EXPECT(off_links_steady(&links), "the GPU had other work");
    for (int i = 0; i < links.link_count; i++) check_link(&links, &links.link[i]);
}

int main(int argc, char **argv)
{
    char err[ERR_CAP] = "";
    bool quick = argc > 1 && !strcmp(argv[1], "--quick"),
         tiny = argc > 1 && !strcmp(argv[1], "--tiny");
    setvbuf(stdout, NULL, _IOLBF, 0);
    test_seed();
    test_must(kn_open_cuda(0, &gpu, err), err);
    printf("%s\n", kn_name(gpu));
    if (tiny) test_tiny();
    else test_single();
    if (!quick && !tiny) test_all();
    kn_close(gpu);
    return test_report();
}
