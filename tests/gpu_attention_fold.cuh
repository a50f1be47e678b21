/*
 * gpu_attention_fold.cuh - part of gpu_attention.cu: attention that makes q, k and v itself against
 * attention behind the kernel that does.
 */
#ifndef DAKD_TESTS_GPU_ATTENTION_FOLD_CUH
#define DAKD_TESTS_GPU_ATTENTION_FOLD_CUH

static bool can_fold(const problem &p)
{
    char err[ERR_CAP];
    size_t bytes;
    const kn_cu_attention_shape shape = {p.q_heads, p.kv_heads, p.dim, 1, 1};
    kn_cu_qkv_args qkv = {};
    STATUS(kn_cu_attention_bytes(&shape, &bytes, err), err);
    kn_cu_attention a = {};
    a.shape = shape;
    qkv.qkv.count = p.parts;
    qkv.qkv.bias = p.bias ? (const float *)16 : NULL;
    return kn_cu_attention_folds(&a, &qkv);
}

/* Attention that makes q, k and v gives the bits it gives behind a kernel that does: the new token
 * first in its page, last, and between, in the only page of its item or the last of many. */
static void check_folds(bool small, bool quick)
{
    const int dims[] = {64, 96, 128, 256},
              heads[][2] = {{3, 3}, {4, 2}, {8, 2}, {14, 2}, {16, 2}, {16, 1}, {32, 8}};
    std::vector<int> lengths = {1, 2, 63, 64, 65, 127, 128, 129, 1000, 1024, 1025, 2100};
    if (quick) lengths = {1, 64, 65, 1025};
    if (small) lengths = {1, 65, 128, 700};
    int n = 0, folded = 0;
    for (int dim : dims)
        for (const auto &h : heads) {
            problem p = make(dim, h[0], h[1], 0, lengths);
            p.norm = n & 1;
            p.rope = n & 2;
            p.bias = n % 3 == 0;
            p.parts = 1 + n * 5 % 4;
            p.window = n % 5 == 4 ? 100 : 0;
            n++;
            if (small && n % 4) continue;
            const bool fits = dim < 256 || h[0] / h[1] <= 11;
            EXPECT(&g_tally, can_fold(p) == fits, "D %d heads %d/%d: folds %d", dim, h[0], h[1],
                   !fits);
            if (!fits) continue;
            folded++;
            way one;
            const outcome apart = run(p, one);
            check_reference("fold", p, apart);
            one.fold = true;
            check_same("folded", p, apart, run(p, one));
            way mixed = one;
            mixed.where = MIXED;
            mixed.ctas = 3;
            mixed.blocks = 2;
            mixed.shuffle = 7;
            check_same("folded, pages elsewhere", p, apart, run(p, mixed));
            if (small) continue;
            way graph = one;
            graph.graph = true;
            graph.shuffle = 8;
            check_same("folded, replayed", p, apart, run(p, graph));
            mixed.where = HOST;
            mixed.ctas = 40;
            mixed.blocks = 6;
            check_same("folded, all pages remote", p, apart, run(p, mixed));
            for (int item_pages : {-1, 1, 4}) {
                way cut = one;
                cut.item_pages = item_pages;
                check_same("folded, cut otherwise", p, apart, run(p, cut));
            }
        }
    printf("%d shapes folded\n", folded);
    if (small) return;
    std::vector<int> many;
    for (int i = 0; i < (quick ? 40 : 255); i++)
        many.push_back(1 + random_bits(9, i, 0) % (quick ? 300 : 500));
    problem p = make(128, 32, 8, 0, many);
    p.rope = true;
    p.parts = 4;
    way one;
    const outcome apart = run(p, one);
    one.fold = true;
    check_same("folded batch", p, apart, run(p, one));
    one.graph = true;
    one.shuffle = 3;
    check_same("folded batch, replayed", p, apart, run(p, one));
    one.where = MIXED;
    one.blocks = 3;
    check_same("folded batch, pages elsewhere", p, apart, run(p, one));
}

#endif
