/*
 * dummy.h - weights that nobody trained, for measuring without a checkpoint.
 *
 * Row r of fused matrix m is drawn from a generator seeded by (seed, m, r): uniform, zero mean,
 * standard deviation 0.02, never zero.  So a tile holds the same wherever it lies and whoever
 * writes it.  Pure.
 */
#ifndef DAKD_ENGINE_DUMMY_H
#define DAKD_ENGINE_DUMMY_H

#include "kernels/kernels.h"

#define ENG_DUMMY_VALUES 4096

/* The values that rows are drawn from, already in the type they are wanted in. */
struct eng_dummy {
    uint64_t seed;
    size_t element_bytes;
    union {
        float f32[ENG_DUMMY_VALUES];
        uint16_t half[ENG_DUMMY_VALUES];
    };
};

/* dtype: F32, BF16 or F16. */
void eng_dummy_init(struct eng_dummy *d, uint64_t seed, enum kn_dtype dtype);
/* The first `cols` values of row `row` of fused matrix `matrix` to out, in the dtype. */
void eng_dummy_row(const struct eng_dummy *d, uint64_t matrix, int32_t row, int32_t cols,
                   void *out);

#endif
