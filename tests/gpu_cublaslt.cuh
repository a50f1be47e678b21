/*
 * gpu_cublaslt.cuh - cuBLASLt's products, loaded where it is installed, as a bar for ours: bf16 in
 * and out, fp32 accumulation, no epilogue, each of the algorithms that its heuristics put first.
 *
 * Its header need not be installed: what is declared here is cublasLt.h's of CUDA 12 and 13.
 */
#ifndef DAKD_TESTS_GPU_CUBLASLT_CUH
#define DAKD_TESTS_GPU_CUBLASLT_CUH

#include <dlfcn.h>

#include "config/check.h"
#include "tests/gpu_check.cuh"

#define LT_ALGORITHMS 16
#define LT_WORKSPACE_BYTES ((size_t)64 << 20)

struct lt_algorithm { /* cublasLtMatmulHeuristicResult_t */
    uint64_t algo[8];
    size_t workspace_bytes;
    int state;
    float waves;
    int reserved[4];
};

struct lt {
    void *handle; /* NULL: none */
    void *workspace, *preference;
    int (*desc_create)(void **, int, int);
    int (*desc_set)(void *, int, const void *, size_t);
    int (*layout_create)(void **, int, uint64_t, uint64_t, int64_t);
    int (*layout_destroy)(void *);
    int (*desc_destroy)(void *);
    int (*heuristic)(void *, void *, void *, void *, void *, void *, void *, int,
                     struct lt_algorithm *, int *);
    int (*matmul)(void *, void *, const void *, const void *, void *, const void *, void *,
                  const void *, const void *, void *, void *, void *, const void *, void *, size_t,
                  cudaStream_t);
};

/* out[T,N] = x[T,K] . w[N,K]^T, all row after row. */
struct lt_product {
    void *desc, *w, *x, *out;
    struct lt_algorithm algorithm[LT_ALGORITHMS];
    int count;
};

static void *lt_symbol(void *library, const char *name)
{
    void *p = dlsym(library, name);
    CHECK(p);
    return p;
}

static void lt_open(struct lt *lt, const char *path)
{
    *lt = {};
    void *library = dlopen(path ? path : "libcublasLt.so.13", RTLD_NOW);
    if (!library) {
        printf("no comparison with cuBLASLt: %s\n", dlerror());
        return;
    }
    enum { MAX_WORKSPACE_BYTES = 1 };
    const size_t bytes = LT_WORKSPACE_BYTES;
    int (*create)(void **), (*preference_create)(void **),
        (*preference_set)(void *, int, const void *, size_t);
    *(void **)&create = lt_symbol(library, "cublasLtCreate");
    *(void **)&preference_create = lt_symbol(library, "cublasLtMatmulPreferenceCreate");
    *(void **)&preference_set = lt_symbol(library, "cublasLtMatmulPreferenceSetAttribute");
    *(void **)&lt->desc_create = lt_symbol(library, "cublasLtMatmulDescCreate");
    *(void **)&lt->desc_set = lt_symbol(library, "cublasLtMatmulDescSetAttribute");
    *(void **)&lt->desc_destroy = lt_symbol(library, "cublasLtMatmulDescDestroy");
    *(void **)&lt->layout_create = lt_symbol(library, "cublasLtMatrixLayoutCreate");
    *(void **)&lt->layout_destroy = lt_symbol(library, "cublasLtMatrixLayoutDestroy");
    *(void **)&lt->heuristic = lt_symbol(library, "cublasLtMatmulAlgoGetHeuristic");
    *(void **)&lt->matmul = lt_symbol(library, "cublasLtMatmul");
    CUDA(cudaMalloc(&lt->workspace, bytes));
    CHECK(!create(&lt->handle) && !preference_create(&lt->preference));
    CHECK(!preference_set(lt->preference, MAX_WORKSPACE_BYTES, &bytes, sizeof bytes));
}

static void lt_product_open(const struct lt *lt, int rows, int cols, int tokens,
                            struct lt_product *p)
{
    enum { OP_T = 1, F32 = 0, BF16 = 14, COMPUTE_32F = 68, TRANSPOSE_A = 3 };
    const int transposed = OP_T;
    *p = {};
    CHECK(!lt->desc_create(&p->desc, COMPUTE_32F, F32));
    CHECK(!lt->desc_set(p->desc, TRANSPOSE_A, &transposed, sizeof transposed));
    CHECK(!lt->layout_create(&p->w, BF16, cols, rows, cols));
    CHECK(!lt->layout_create(&p->x, BF16, cols, tokens, cols));
    CHECK(!lt->layout_create(&p->out, BF16, rows, tokens, rows));
    CHECK(!lt->heuristic(lt->handle, p->desc, p->w, p->x, p->out, p->out, lt->preference,
                         LT_ALGORITHMS, p->algorithm, &p->count));
    CHECK(p->count > 0);
}

static void lt_product_close(const struct lt *lt, struct lt_product *p)
{
    CHECK(!lt->layout_destroy(p->w) && !lt->layout_destroy(p->x) && !lt->layout_destroy(p->out));
    CHECK(!lt->desc_destroy(p->desc));
}

static void lt_launch(const struct lt *lt, const struct lt_product *p, int algorithm,
                      const void *weights, const void *x, void *out, cudaStream_t stream)
{
    const float one = 1.f, zero = 0.f;
    CHECK(!lt->matmul(lt->handle, p->desc, &one, weights, p->w, x, p->x, &zero, out, p->out, out,
                      p->out, p->algorithm[algorithm].algo, lt->workspace, LT_WORKSPACE_BYTES,
                      stream));
}

#endif
