"""A KV cache in fp8: how far the demo model's answers move, what a page takes, and that where its pages lie and how
prompts are cut changes nothing."""

import json

import pytest
import test_kv_remote

from daemon import ROOT, run
from test_kv_remote import HOST

CASES = json.loads((ROOT / "tests" / "fixtures" / "demo_answers.json").read_text())
LLAMA_8B = ROOT / "config" / "models" / "Llama-3.1-8B"
PAGE = 8 * 2 * (64 * 128 + 128)  # of the demo model: layers, kv-heads, elements and scales of 64 tokens
# What the demo's fixed prompts may lose to fp8; the test prints what they do lose.
ANSWERS_KEPT, TOKENS_KEPT = 0.95, 0.98


def answers(daemon):
    """Greedy answers to the fixed prompts, as token ids."""
    return [daemon.post("/v1/chat/completions",
                        {"messages": case["messages"], "temperature": 0, "return_token_ids": True,
                         "max_tokens": len(case["answer_ids"]) + 1})["choices"][0]["token_ids"] for case in CASES]


def same_tokens(a, b):
    """Up to the first that differs: what follows answers another prompt."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def test_answers_stay(start, capsys):
    got = answers(start("--kv-cache-dtype", "fp8"))
    want = [case["answer_ids"] for case in CASES]
    kept = sum(ids[:len(ref)] == ref for ids, ref in zip(got, want))
    tokens = sum(same_tokens(ids, ref) for ids, ref in zip(got, want))
    total = sum(map(len, want))
    with capsys.disabled():
        print(f"fp8 KV: {kept} of {len(CASES)} greedy answers as with bfloat16 KV, {tokens} of {total} tokens")
    assert kept >= ANSWERS_KEPT * len(CASES) and tokens >= TOKENS_KEPT * total


def test_the_same_in_every_tier_and_chunking(start):
    common = ["--kv-cache-dtype", "fp8_e4m3", "--max-num-seqs", 6, "--max-model-len", 1024]
    local = test_kv_remote.answers(start(*common))
    daemon = start(*common, "--kv-cache-memory-bytes", 7 * PAGE, "--kv-remote", "host:32MiB",
                   "--max-num-batched-tokens", 128)
    assert test_kv_remote.answers(daemon) == local
    now = daemon.wait_idle()
    assert now["dakd_kv_page_bytes"] == PAGE and now["dakd_kv_pages_moved_out_total"] > 0
    assert now["dakd_tier_kv_moved_bytes_total" + HOST] == PAGE * (
        now["dakd_kv_pages_moved_out_total"] + now["dakd_kv_pages_moved_back_total"])
    assert now["dakd_tier_kv_read_bytes_total" + HOST] > 0


def kv_bytes(tmp_path, dtype, *flags):
    path = tmp_path / f"{dtype}.json"
    done = run("plan", LLAMA_8B, "--plan-batch", 8, "--plan-context", 4096, "--kv-cache-dtype", dtype, "--json", path, *flags)
    assert done.returncode == 0, done.stdout
    result = json.loads(path.read_text())
    return result, sum(tier["step_kv_bytes"] for tier in result["tiers"]), done.stdout


def test_plan_counts_half(tmp_path):
    wide, wide_bytes, _ = kv_bytes(tmp_path, "bfloat16")
    packed, packed_bytes, text = kv_bytes(tmp_path, "fp8")
    assert packed["kv_cache_dtype"] == "fp8_e4m3" and "KV fp8_e4m3" in text
    assert packed_bytes / wide_bytes == pytest.approx((128 + 1) / 256)  # elements, and a scale for each row
    assert packed["predicted_attention_ms"] < wide["predicted_attention_ms"]
    assert packed["floor_per_step_ms"] < wide["floor_per_step_ms"]


def test_bench_takes_it(tmp_path):
    """With prompts' KV taken as given, which fills pages with numbers, and with prompts that are computed."""
    for flags in (["--given-context", "--load-format", "dummy"], []):
        path = tmp_path / "result.json"
        done = run("bench", ROOT / "config" / "demo-model", "--device", "cpu", "--batch", 3, "--input-len", 150,
                   "--output-len", 12, "--kv-cache-dtype", "fp8", "--json", path, *flags)
        assert done.returncode == 0, done.stdout
        assert json.loads(path.read_text())["kv_cache_dtype"] == "fp8_e4m3"
