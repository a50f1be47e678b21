/*
 * norm.c - RMSNorm and LayerNorm of rows.  Sums are taken in double, in eight lanes (cpu.h): a row
 * of several thousand elements then loses nothing before the one rounding to fp32 at the end, and
 * costs little beside a product with a weight.  LayerNorm takes the mean first and sums squares of
 * differences from it.
 */
#include <math.h>

#include "kernels/cpu/cpu.h"

/* Sum of (x - shift)^power, power 1 or 2. */
static double sum_powers(const float *x, int32_t n, double shift, int power)
{
    double lane[KN_CPU_LANES] = {0};
    int32_t i = 0;
    for (; i + KN_CPU_LANES <= n; i += KN_CPU_LANES)
        for (int l = 0; l < KN_CPU_LANES; l++) {
            double d = (double)x[i + l] - shift;
            lane[l] += power == 2 ? d * d : d;
        }
    for (int l = 0; i + l < n; l++) {
        double d = (double)x[i + l] - shift;
        lane[l] += power == 2 ? d * d : d;
    }
    return ((lane[0] + lane[1]) + (lane[2] + lane[3])) +
           ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

void kn_cpu_rms_norm_row(const float *x, const float *weight, float eps, int32_t n, float *y)
{
    float scale = (float)(1.0 / sqrt(sum_powers(x, n, 0.0, 2) / n + (double)eps));
    for (int32_t i = 0; i < n; i++) y[i] = x[i] * scale * weight[i];
}

static void layer_norm_row(const struct kn_norm_args *a, const float *x, float *y)
{
    double mean = sum_powers(x, a->cols, 0.0, 1) / a->cols;
    double variance = sum_powers(x, a->cols, mean, 2) / a->cols;
    double scale = 1.0 / sqrt(variance + (double)a->eps);
    for (int32_t i = 0; i < a->cols; i++)
        y[i] = (float)(((double)x[i] - mean) * scale) * a->weight[i];
}

static void norm_item(const void *arg, int32_t row, int worker)
{
    (void)worker;
    const struct kn_norm_args *a = arg;
    const float *x = a->x + (size_t)row * (size_t)a->cols;
    float *y = (float *)a->y + (size_t)row * (size_t)a->cols;
    if (a->kind == KN_RMS_NORM) kn_cpu_rms_norm_row(x, a->weight, a->eps, a->cols, y);
    else layer_norm_row(a, x, y);
    if (!a->bias) return;
    for (int32_t i = 0; i < a->cols; i++) y[i] += a->bias[i];
}

void kn_cpu_norm(struct kn *kn, const struct kn_norm_args *a)
{
    kn_cpu_for((struct kn_cpu *)kn, norm_item, a, a->row_count,
               (size_t)a->row_count * (size_t)a->cols);
}
