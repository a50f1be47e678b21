/*
 * gpu_control.c - remote tiers read by windows that change while steps are computed: recorded steps
 * and those issued kernel by kernel, a step ahead and not, obey them and give the same tokens for
 * every window a controller may choose, and for one that chooses itself.
 *
 *     gpu_control [--quick]
 */
#include <string.h>
#include <unistd.h>

#include "engine/engine.h"
#include "tests/gpu_common.h"

enum { TOKENS_MAX = 512, PROMPT = 40, ANSWER = 96, MOST = 40, LEN = 256 };

static struct kn *gpu;

struct machine {
    struct off_tiers *tiers;
    struct eng_model *model;
    struct kn_kv kv;
};

/* The demo model, half of each weight in pinned memory. */
static void machine_open(struct machine *m)
{
    const char *dir = "config/demo-model";
    const struct eng_model_options opt = {.load_format = ENG_LOAD_SAFETENSORS,
                                          .dtype = ENG_DTYPE_BF16,
                                          .offload = 0.5,
                                          .placement = OFF_PLACE_EVEN,
                                          .model_len_max = LEN,
                                          .tokens_max = TOKENS_MAX,
                                          .rows_max = 64};
    struct off_remote remote;
    struct eng_model_info info;
    char err[ERR_CAP] = "";
    test_must(off_remote_parse("host:256MiB", &remote, err), err);
    test_must(eng_model_read_info(dir, &opt, &info, err), err);
    m->kv = (struct kn_kv){KN_BF16, info.layer_count, info.kv_heads, info.head_dim, {NULL}};
    const size_t bytes = 2 * MOST * kn_kv_page_bytes(&m->kv) * (LEN / KN_PAGE_TOKENS);
    test_must(off_tiers_open(gpu, info.weight_bytes + bytes + (64u << 20), &remote, &m->tiers, err),
              err);
    test_must(off_tier_alloc(m->tiers, 0, bytes, "KV", &m->kv.base[0], err), err);
    test_must(eng_model_open(gpu, m->tiers, dir, &opt, &m->model, err), err);
}

static struct eng_engine *engine_open(const struct machine *m, int32_t seqs, bool record,
                                      bool ahead, const struct off_control *control)
{
    char err[ERR_CAP] = "";
    struct eng_engine *e;
    struct eng_config config = {.sched = {.seqs_max = seqs,
                                          .tokens_step_max = TOKENS_MAX,
                                          .page_count = {2 * MOST * (LEN / KN_PAGE_TOKENS)}},
                                .model_len_max = LEN,
                                .queue_max = seqs,
                                .event_ring = 4096,
                                .tokens_max = TOKENS_MAX,
                                .rows_max = 64,
                                .ahead = ahead,
                                .record = record};
    memcpy(config.control, control, sizeof config.control);
    test_must(eng_open(gpu, m->model, &m->kv, &config, &e, err), err);
    return e;
}

static void fill_requests(struct eng_request *q, int32_t *tokens, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        q[i] = (struct eng_request){.tokens = tokens + (size_t)i * (PROMPT + ANSWER),
                                    .prompt_count = PROMPT,
                                    .sampling = {.temperature = i % 2 ? 0.8f : 0,
                                                 .top_p = 1,
                                                 .repetition_penalty = 1,
                                                 .seed = (uint64_t)i,
                                                 .max_tokens = ANSWER - i % 7,
                                                 .ignore_eos = true,
                                                 .logprobs = -1,
                                                 .prompt_logprobs = -1}};
        for (int32_t k = 0; k < PROMPT; k++) q[i].tokens[k] = (i * 131 + k * 17 + 5) % 4096;
    }
}

static void control_of(const char *mode, struct off_control control[KN_TIER_MAX])
{
    struct off_remote remote;
    char err[ERR_CAP] = "";
    test_must(off_remote_parse("host:256MiB", &remote, err), err);
    test_must(off_control_read(mode, "", &remote, control, err), err);
}

/* To the end; churn: another window at every event, any that a controller may choose, or none. */
static void serve(struct eng_engine *e, struct eng_request *q, int32_t count, bool churn)
{
    const struct off_congestion_config limits = off_congestion_config_default(KN_MEM_HOST);
    struct off_control control[KN_TIER_MAX];
    struct eng_event event;
    control_of("static", control);
    test_must(eng_submit_all(e, q, count), "submit");
    for (int32_t left = count; left > 0;) {
        if (!eng_poll(e, &event)) {
            usleep(30);
            continue;
        }
        left -= event.kind == ENG_EVENT_FINISHED;
        if (!churn) continue;
        const int32_t n =
            limits.least + (int32_t)(test_random() % (uint64_t)(limits.cap - limits.least + 1));
        control[1].window = off_congestion_shape(&limits, n);
        if (test_random() % 16 == 0)
            control[1].window.ctas = control[1].window.blocks = KN_WINDOW_NO_BOUND;
        eng_set_control(e, control);
    }
}

static void test_windows(const struct machine *m, int32_t count)
{
    static const char *const ways[] = {"static", "churn", "adaptive", "off"};
    static int32_t first[MOST * (PROMPT + ANSWER)], tokens[MOST * (PROMPT + ANSWER)];
    static struct eng_request q[MOST];
    for (size_t way = 0; way < ARRAY_COUNT(ways); way++)
        for (int mode = 0; mode < 4; mode++) {
            struct off_control control[KN_TIER_MAX];
            struct eng_stats t;
            control_of(way == 1 ? "static" : ways[way], control);
            struct eng_engine *e = engine_open(m, count, mode & 1, mode & 2, control);
            memset(tokens, 0, sizeof tokens);
            fill_requests(q, tokens, count);
            serve(e, q, count, way == 1);
            if (way == 0 && mode == 0) memcpy(first, tokens, sizeof first);
            EXPECT(!memcmp(first, tokens, sizeof first), "%d requests, %s, recorded %d, ahead %d",
                   count, ways[way], mode & 1, mode >> 1);
            eng_stats(e, &t);
            if (way == 2)
                EXPECT(t.control[1].up_count + t.control[1].down_count > 0,
                       "adaptive never moved in %llu steps",
                       (unsigned long long)t.control[1].step_count);
            eng_close(e);
        }
    printf("%d sequences: %d passed, %d failed\n", count, test_passed, test_failed);
}

int main(int argc, char **argv)
{
    char err[ERR_CAP] = "";
    struct machine m;
    const bool quick = argc > 1 && !strcmp(argv[1], "--quick");
    setvbuf(stdout, NULL, _IOLBF, 0);
    test_seed();
    test_must(kn_open_cuda(0, &gpu, err), err);
    machine_open(&m);
    test_windows(&m, 1);
    if (!quick) test_windows(&m, 3);
    if (!quick) test_windows(&m, MOST);
    eng_model_close(m.model);
    off_tiers_close(m.tiers);
    kn_close(gpu);
    return test_report();
}
