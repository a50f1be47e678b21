/*
 * gpu_kv.c - KV pages in any tier, and on the move (kernels/cuda/move.c), on a GPU.
 *
 * Answers.  The engine serves the demo model with its pages all local, half of them in a remote
 * tier or nearly all; local memory is always large enough for a step's chunks, so that steps are
 * made of the same tokens, and the tokens given must be the same, with nothing computed again.
 *
 * Moves.  Pages are written, moved, moved on, and written anew, again and again, between pools of
 * local, host and, where there is one, another GPU's memory, in random order and without the host
 * waiting for anything; every page must then hold what was moved there.  What a move waits for is
 * late, for long reads stand before it in the stream, and what waits for a move follows at once: an
 * order that is not kept shows as another page's bytes.  --quick: less of it, for
 * compute-sanitizer.
 */
#include "tests/gpu_common.h"
#include "tests/kv_rig.h"

enum { PAGES = 24, TIERS = 3 };

static struct kn *gpu;

/* What should be in the pools, a number a page, which all of its bytes are made of. */
struct pools {
    struct kn_kv kv;
    size_t page;
    int tiers;
    uint32_t value[TIERS][PAGES], last;
    uint32_t *image; /* [page] */
    void *noise;     /* that is read to pass the time */
    size_t noise_bytes;
    uint64_t moved[TIERS], begun;
};

static void put(struct pools *p, kn_page page, uint32_t value)
{
    char *at = (char *)p->kv.base[kn_page_tier(page)] + kn_page_index(page) * p->page;
    for (size_t i = 0; i < p->page / 4; i++) p->image[i] = value ^ (uint32_t)i * 2654435761u;
    test_must(kn_upload(gpu, at, p->image, p->page), "upload");
    p->value[kn_page_tier(page)][kn_page_index(page)] = value;
}

static struct pools pools_open(int32_t layers, size_t noise_bytes)
{
    struct pools p = {.kv = {KN_BF16, layers, 2, 128, {0}}, .noise_bytes = noise_bytes};
    char err[ERR_CAP] = "";
    p.tiers = test_gpu_count() > 1 ? 3 : 2;
    p.page = kn_kv_page_bytes(&p.kv);
    p.image = test_malloc(p.page);
    for (int t = 0; t < p.tiers; t++)
        test_must(kn_alloc(gpu, test_mem_of(t), t == 2, PAGES * p.page, &p.kv.base[t], err), err);
    p.noise = test_upload(gpu, KN_MEM_LOCAL, NULL, noise_bytes);
    for (int t = 0; t < p.tiers; t++)
        for (uint32_t i = 0; i < PAGES; i++) put(&p, kn_page_make((unsigned)t, i), ++p.last);
    return p;
}

static void pools_close(struct pools *p)
{
    for (int t = 0; t < p->tiers; t++) kn_free(gpu, test_mem_of(t), p->kv.base[t], PAGES * p->page);
    kn_free(gpu, KN_MEM_LOCAL, p->noise, p->noise_bytes);
    free(p->image);
}

static kn_page random_page(const struct pools *p)
{
    return kn_page_make(test_random() % (unsigned)p->tiers, test_random() % PAGES);
}

/* Some moves at once; each may be of what one before it brought. */
static void move_some(struct pools *p)
{
    struct kn_page_move moves[4];
    int32_t count = 0, wanted = 1 + (int32_t)(test_random() % 4);
    for (int32_t i = 0; i < wanted; i++) {
        const struct kn_page_move m = {random_page(p), random_page(p)};
        if (m.from == m.to) continue;
        const unsigned from = kn_page_tier(m.from), to = kn_page_tier(m.to);
        p->value[to][kn_page_index(m.to)] = p->value[from][kn_page_index(m.from)];
        p->moved[from] += p->page;
        if (to != from) p->moved[to] += p->page;
        moves[count++] = m;
    }
    kn_move_pages(gpu, &p->kv, moves, count);
    p->begun += (uint64_t)count;
}

static void check_pages(const struct pools *p, int round)
{
    for (int t = 0; t < p->tiers; t++) {
        uint32_t *got = test_download(gpu, p->kv.base[t], PAGES * p->page);
        for (size_t i = 0; i < PAGES; i++) {
            size_t wrong = 0;
            for (size_t k = 0; k < p->page / 4; k++)
                wrong += got[i * (p->page / 4) + k] != (p->value[t][i] ^ (uint32_t)k * 2654435761u);
            EXPECT(wrong == 0, "round %d, tier %d, page %zu: %zu words are not those of %u", round,
                   t, i, wrong, p->value[t][i]);
        }
        free(got);
    }
}

/* Moves begun so far are not over before kn_moves_done says so, and then in order. */
static void random_moves(int32_t layers, size_t noise_bytes, int rounds, int turns)
{
    struct pools p = pools_open(layers, noise_bytes);
    struct kn_traffic before[TIERS], after[TIERS];
    const uint64_t done_before = kn_moves_done(gpu);
    for (int t = 0; t < p.tiers; t++) kn_traffic(gpu, t, &before[t]);
    for (int r = 0; r < rounds; r++) {
        uint64_t last = kn_moves_done(gpu);
        for (int i = 0; i < turns; i++) {
            if (test_random() % 2) kn_stream_read(gpu, p.noise, p.noise_bytes);
            for (unsigned k = test_random() % 3; k > 0; k--)
                put(&p, kn_page_make(0, test_random() % PAGES), ++p.last);
            move_some(&p);
            /* Writing to a page that a move is of, or to: after it. */
            if (test_random() % 4) kn_moves_wait(gpu);
            else
                while (kn_moves_done(gpu) < done_before + p.begun) {
                }
            const uint64_t now = kn_moves_done(gpu);
            EXPECT(now >= last && now <= done_before + p.begun, "%llu of %llu moves are over",
                   (unsigned long long)(now - done_before), (unsigned long long)p.begun);
            last = now;
        }
        check_pages(&p, r); /* waits for all */
        EXPECT(kn_moves_done(gpu) == done_before + p.begun, "moves are left after kn_sync");
    }
    for (int i = 0; i < 2 * 8; i++) { /* counters are told a kn_sync late */
        kn_stream_read(gpu, p.noise, KN_ALIGN);
        test_sync(gpu);
    }
    for (int t = 0; t < p.tiers; t++) {
        kn_traffic(gpu, t, &after[t]);
        EXPECT(after[t].moved_bytes - before[t].moved_bytes == p.moved[t],
               "tier %d: %llu bytes moved, %llu counted", t, (unsigned long long)p.moved[t],
               (unsigned long long)(after[t].moved_bytes - before[t].moved_bytes));
    }
    pools_close(&p);
}

/* --- answers --- */

enum { COUNT = 20, LEN = 1200 };

static const struct kv_load load = {.model = "config/demo-model",
                                    .dtype = ENG_DTYPE_BF16,
                                    .count = COUNT,
                                    .len_max = LEN,
                                    .prompt_min = 300,
                                    .prompt_max = 1000,
                                    .answer_min = 80,
                                    .answer_max = 190};

static void serve(const int32_t *expected, const struct kv_way *w, double least, double most)
{
    static int32_t tokens[COUNT * LEN];
    struct eng_stats s;
    memset(tokens, 0, sizeof tokens);
    kv_run(gpu, &load, w, tokens, &s);
    const double share = kv_far_share(&s), ms = (double)s.device_ns_sum / 1e6;
    printf("%s: %d near, %d far, steps of %d: %.2f of KV read was far, %llu pages out, %llu back, "
           "%llu of %llu steps waited, %llu played, %.1f ms\n",
           w->mem == KN_MEM_HOST ? "host" : "peer", w->near, w->far, w->budget, share,
           (unsigned long long)s.sched.pages_out_count,
           (unsigned long long)s.sched.pages_back_count,
           (unsigned long long)s.sched.move_wait_count, (unsigned long long)s.step_count,
           (unsigned long long)s.played_step_count, ms);
    for (int32_t i = 0; i < COUNT; i++) {
        const int32_t n = kv_prompt(&load, i) + kv_answer(&load, i);
        int32_t same = 0;
        while (same < n && tokens[i * LEN + same] == expected[i * LEN + same]) same++;
        EXPECT(same == n, "sequence %d: token %d of %d differs", i, same, n);
    }
    EXPECT(!s.failed && s.recomputed_tokens == 0, "%s", s.failure);
    EXPECT(share >= least && share <= most, "%.3f of KV read was far, not %.2f to %.2f", share,
           least, most);
    if (w->far && least > 0)
        EXPECT(s.traffic[1].moved_bytes > 0 && s.traffic[1].bytes > 0, "nothing read or moved");
}

static void answers(bool quick)
{
    static int32_t expected[COUNT * LEN];
    const bool peer = test_gpu_count() > 1;
    for (int32_t budget = 512; budget >= 128; budget /= 4) {
        const struct kv_way local = {600, 0, COUNT, budget, true, KN_MEM_HOST, false};
        struct eng_stats s;
        kv_run(gpu, &load, &local, expected, &s);
        printf("all local: %.1f ms, %llu of %llu steps played\n", (double)s.device_ns_sum / 1e6,
               (unsigned long long)s.played_step_count, (unsigned long long)s.step_count);
        for (int tier = 0; tier < 1 + peer; tier++) {
            const enum kn_mem mem = tier ? KN_MEM_PEER : KN_MEM_HOST;
            serve(expected, &(struct kv_way){600, 600, COUNT, budget, true, mem, false}, 0, 0);
            serve(expected, &(struct kv_way){600, 600, COUNT, budget, true, mem, true}, 0.1, 0.4);
            serve(expected, &(struct kv_way){130, 600, COUNT, budget, true, mem, false}, 0.2, 0.8);
            if (quick) return;
            serve(expected, &(struct kv_way){60, 600, COUNT, budget, true, mem, false}, 0.5, 1);
            serve(expected, &(struct kv_way){60, 600, COUNT, budget, false, mem, false}, 0.5, 1);
            serve(expected, &(struct kv_way){36, 600, COUNT, budget, true, mem, false}, 0.7, 1);
        }
    }
}

int main(int argc, char **argv)
{
    const bool quick = argc > 1 && !strcmp(argv[1], "--quick");
    char err[ERR_CAP] = "";
    test_seed();
    test_must(kn_open_cuda(0, &gpu, err), err);
    if (quick) {
        random_moves(1, (size_t)4 << 20, 1, 20);
    } else {
        random_moves(1, (size_t)64 << 20, 4, 150); /* 64 KB a page */
        random_moves(16, (size_t)1 << 30, 3, 150); /* 1 MB a page */
    }
    answers(quick);
    kn_close(gpu);
    return test_report();
}
