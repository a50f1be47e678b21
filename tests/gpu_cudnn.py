"""What cuDNN's attention takes for one new token a sequence, through PyTorch: the baseline of gpu_attention --bench.

32 query heads, 8 key heads of 128 dimensions, bf16; distinct keys and values for every layer, in one CUDA graph."""

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

SHAPES = ((64, 4096, 4), (1, 131072, 8), (8, 16384, 8), (128, 1024, 8), (1, 512, 32), (1, 4096, 32))  # sequences, tokens, layers
REPLAYS = 11


def median_us(call, layers):
    """Median time of one call, of REPLAYS replays of a graph of `layers` calls."""
    call(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for layer in range(layers):
            call(layer)
    times = []
    for replay in range(REPLAYS + 2):
        begin, end = torch.cuda.Event(True), torch.cuda.Event(True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if replay >= 2:
            times.append(begin.elapsed_time(end))
    return sorted(times)[len(times) // 2] * 1e3 / layers


def main():
    torch.manual_seed(0)
    print("torch", torch.__version__, "cudnn", torch.backends.cudnn.version())
    for sequences, tokens, layers in SHAPES:
        query = torch.randn(sequences, 32, 1, 128, dtype=torch.bfloat16, device="cuda")
        key = torch.randn(layers, sequences, 8, tokens, 128, dtype=torch.bfloat16, device="cuda")
        value = torch.randn_like(key)
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            us = median_us(lambda i: F.scaled_dot_product_attention(query, key[i], value[i], enable_gqa=True), layers)
        gbps = 2 * sequences * 8 * tokens * 128 * 2 / us / 1e3
        print(f"cuDNN {sequences} x {tokens}: {us:.2f} us, {gbps:.0f} GB/s", flush=True)


if __name__ == "__main__":
    main()
