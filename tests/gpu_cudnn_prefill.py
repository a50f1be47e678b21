"""What cuDNN's causal attention takes for whole prompts, through PyTorch: the baseline of gpu_prefill_attention --bench.

bf16, one sequence, the shapes of whole prompts that the other program times."""

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

SHAPES = (  # heads, kv-heads, dim, tokens
    (32, 32, 128, 2048), (32, 8, 128, 2048), (32, 4, 128, 2048), (32, 32, 128, 8192), (32, 8, 128, 8192), (32, 4, 128, 8192), (32, 8, 128, 32768),
    (32, 32, 64, 2048), (32, 8, 64, 2048), (32, 32, 64, 8192), (32, 8, 64, 8192), (32, 4, 64, 8192), (32, 8, 64, 32768),
    (32, 8, 96, 2048), (32, 32, 96, 8192), (32, 8, 96, 8192), (16, 16, 256, 2048), (16, 2, 256, 8192))


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
    for heads, kv_heads, dim, tokens in SHAPES:
        query = torch.randn(1, heads, tokens, dim, dtype=torch.bfloat16, device="cuda")
        key = torch.randn(1, kv_heads, tokens, dim, dtype=torch.bfloat16, device="cuda")
        value = torch.randn_like(key)
        try:
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                ms = median_ms(lambda: F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=heads != kv_heads), 3 if tokens > 8192 else 9)
        except RuntimeError as error:
            print(f"cuDNN heads {heads}/{kv_heads} of {dim}, {tokens} tokens: {str(error).splitlines()[0]}", flush=True)
            continue
        tflops = 4 * dim * heads * tokens * (tokens + 1) / 2 / ms / 1e9
        print(f"cuDNN heads {heads}/{kv_heads} of {dim}, {tokens} tokens: {ms:.3f} ms {tflops:.1f} TFLOPS", flush=True)


if __name__ == "__main__":
    main()
