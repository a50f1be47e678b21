"""What cuDNN's causal attention takes for whole prompts, through PyTorch: the baseline of gpu_prefill_attention --bench.

bf16, one sequence, heads of 128 and 64 dimensions; grouped heads where PyTorch takes them, else keys and values repeated beforehand."""

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

SHAPES = ((32, 8, 128, 8192, 7), (32, 8, 128, 32768, 3), (32, 32, 128, 8192, 7), (32, 8, 64, 8192, 7))  # heads, kv-heads, dim, tokens, calls


def median_ms(call, calls):
    times = []
    for i in range(calls + 2):
        begin, end = torch.cuda.Event(True), torch.cuda.Event(True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        if i >= 2:
            times.append(begin.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def main():
    torch.manual_seed(0)
    print("torch", torch.__version__, "cudnn", torch.backends.cudnn.version())
    for heads, kv_heads, dim, tokens, calls in SHAPES:
        query = torch.randn(1, heads, tokens, dim, dtype=torch.bfloat16, device="cuda")
        key = torch.randn(1, kv_heads, tokens, dim, dtype=torch.bfloat16, device="cuda")
        value = torch.randn_like(key)
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            ms = median_ms(lambda: F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=heads != kv_heads), calls)
        tflops = 4 * dim * heads * tokens * (tokens + 1) / 2 / ms / 1e9
        print(f"cuDNN heads {heads}/{kv_heads} of {dim}, {tokens} tokens: {ms:.3f} ms {tflops:.1f} TFLOPS", flush=True)


if __name__ == "__main__":
    main()
