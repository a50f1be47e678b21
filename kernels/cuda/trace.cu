/*
 * trace.cu - the host's side of trace.h.  Empty but in the TRACE flavour.
 */
#ifdef DAKD_TRACE
#include <cuda_runtime.h>

#include "kernels/cuda/trace.h"

enum { SYMBOLS_MAX = 16 };

/* Written by static initialisers alone. */
static const void *symbols[SYMBOLS_MAX];
static int symbol_count;
static kn_cu_trace_log *device_log;

extern "C" void kn_cu_trace_register(const void *symbol)
{
    if (symbol_count < SYMBOLS_MAX) symbols[symbol_count] = symbol;
    symbol_count++;
}

static enum status traced(cudaError_t e, const char *what, char *err)
{
    if (e == cudaSuccess) return ST_OK;
    return err_set(err, ST_DEVICE, "tracing: %s failed: %s", what, cudaGetErrorString(e));
}

extern "C" enum status kn_cu_trace_open(char *err)
{
    if (symbol_count > SYMBOLS_MAX)
        return err_set(err, ST_UNSUPPORTED, "more than %d files are traced", SYMBOLS_MAX);
    cudaError_t e = cudaMalloc((void **)&device_log, sizeof *device_log);
    if (!e) e = cudaMemset(device_log, 0, sizeof *device_log);
    for (int i = 0; i < symbol_count && !e; i++)
        e = cudaMemcpyToSymbol(symbols[i], &device_log, sizeof device_log);
    return traced(e, "opening the log", err);
}

extern "C" enum status kn_cu_trace_reset(char *err)
{
    cudaError_t e = cudaMemset(device_log->used, 0, sizeof device_log->used);
    if (!e) e = cudaDeviceSynchronize();
    return traced(e, "clearing the log", err);
}

extern "C" enum status kn_cu_trace_read(kn_cu_trace_log *log, int32_t kernel_count, char *err)
{
    if (kernel_count > KN_CU_TRACE_KERNELS) kernel_count = KN_CU_TRACE_KERNELS;
    const size_t bytes =
        offsetof(kn_cu_trace_log, stamp) + (size_t)kernel_count * sizeof log->stamp[0];
    return traced(cudaMemcpy(log, device_log, bytes, cudaMemcpyDeviceToHost), "reading the log",
                  err);
}
#endif
