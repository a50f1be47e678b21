#include "engine/dummy.h"

#include "config/random.h"
#include "kernels/convert.h"

void eng_dummy_init(struct eng_dummy *d, uint64_t seed, enum kn_dtype dtype)
{
    /* (i + 1/2) / n is uniform in (-1, 1), never 0, with standard deviation 1 / sqrt(3). */
    const float unit = 0.02f * 1.7320508f / (ENG_DUMMY_VALUES / 2);
    d->seed = seed;
    d->element_bytes = kn_dtype_bytes(dtype);
    for (int i = 0; i < ENG_DUMMY_VALUES; i++)
        kn_store(dtype, d->f32, (size_t)i, ((float)(i - ENG_DUMMY_VALUES / 2) + 0.5f) * unit);
}

/* Four to a random word. */
void eng_dummy_row(const struct eng_dummy *d, uint64_t matrix, int32_t row, int32_t cols, void *out)
{
    uint64_t state =
        random_mix(random_mix(d->seed ^ 0x64616B64) + random_mix(matrix << 32 | (uint32_t)row));
    float *f32 = out;
    uint16_t *half = out;
    for (int32_t c = 0; c < cols; c += 4) {
        uint64_t r = random_mix(state++);
        for (int32_t i = c; i < c + 4 && i < cols; i++, r >>= 16) {
            if (d->element_bytes == sizeof *half) half[i] = d->half[r % ENG_DUMMY_VALUES];
            else f32[i] = d->f32[r % ENG_DUMMY_VALUES];
        }
    }
}
