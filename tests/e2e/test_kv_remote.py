"""KV pages beyond local memory: `--kv-remote` gives the same answers, computes nothing again, says where pages are, and
refuses what cannot be."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from daemon import MODEL, run

HOST = '{tier="host"}'
HBM = '{tier="hbm"}'
PAGE = 256 * 1024  # of the demo model
PROMPTS = [f"{i}: " + "what dakd reads, and from where. " * (6 + 3 * i) for i in range(6)]


def answer(daemon, prompt):
    body = {"prompt": prompt, "max_tokens": 90, "temperature": 0, "ignore_eos": True}
    status, result, _ = daemon.request("POST", "/v1/completions", body)
    assert status == 200, result
    return result["choices"][0]["text"]


def answers(daemon):
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        return list(pool.map(lambda prompt: answer(daemon, prompt), PROMPTS))


@pytest.mark.parametrize("near,flags", [
    (12, []),
    (7, ["--max-num-batched-tokens", 128]),
    (7, ["--offload", 0.3, "--force-offload", "--remote", "host:16MiB", "--async-scheduling", "on"]),
])
def test_answers_are_the_same(start, near, flags):
    common = ["--max-num-seqs", 6, "--max-model-len", 1024]
    local = answers(start(*common))
    daemon = start(*common, "--kv-cache-memory-bytes", near * PAGE, "--kv-remote", "host:32MiB", *flags)
    assert answers(daemon) == local
    now = daemon.metrics()
    assert now["dakd_kv_page_bytes"] == PAGE
    assert now["dakd_tier_kv_pages" + HBM] == near
    assert now["dakd_tier_kv_pages" + HOST] == min(32 * 4, (16 + 1) * 6 - near)
    assert now["dakd_kv_pages_moved_out_total"] > 0
    assert now["dakd_tier_kv_moved_bytes_total" + HOST] == PAGE * (
        now["dakd_kv_pages_moved_out_total"] + now["dakd_kv_pages_moved_back_total"])
    assert now["dakd_tier_kv_read_bytes_total" + HOST] > 0
    assert now["dakd_num_preemptions_total"] == 0 and now["dakd_recomputed_tokens_total"] == 0
    assert now["dakd_tier_kv_pages_used" + HBM] == now["dakd_tier_kv_pages_used" + HOST] == now["dakd_kv_pages_moving"]
    assert "more in tier host, where full pages go" in daemon.log()


def test_one_sequence_longer_than_local_memory(start):
    """Start-up counts both tiers for the longest sequence."""
    daemon = start("--max-num-seqs", 2, "--kv-cache-memory-bytes", 4 * PAGE, "--kv-remote", f"host:{12 * PAGE}B",
                   "--max-model-len", 1024)
    prompt = "a long way " * 60
    assert answer(daemon, prompt) == answer(start(), prompt)
    assert daemon.metrics()["dakd_tier_kv_read_bytes_total" + HOST] > 0


def test_what_local_memory_holds_stays(start):
    daemon = start("--max-num-seqs", 1, "--max-model-len", 128, "--kv-cache-memory-bytes", 3 * PAGE, "--kv-remote",
                   "host:16MiB")
    assert "--kv-remote stays empty" in daemon.log()
    assert daemon.metrics()["dakd_tier_kv_pages" + HOST] == 0


@pytest.mark.parametrize("flags,words", [
    (["--kv-remote", "64GiB"], "--kv-remote: '64GiB' is neither host:SIZE nor peer:DEVICE:SIZE"),
    (["--kv-remote", "host:64"], "--kv-remote: the size '64' in 'host:64' needs a unit"),
    (["--kv-remote", "host:1KiB"], "--kv-remote host:1KiB has no room for one page of KV, 0.25 MiB"),
    (["--kv-remote", "host:1MiB,peer:1:1MiB"], "--kv-remote: 'host:1MiB,peer:1:1MiB' is more than one tier"),
    (["--kv-remote", "host:1MiB", "--offload", 0.1], "--offload 0.1 needs a remote tier"),
    (["--kv-remote", "peer:3:1MiB", "--remote", "host:1MiB,peer:1:1MiB,peer:2:1MiB"], "a tier beside the 3 that --remote names"),
    (["--kv-remote", "host:1MiB", "--kv-cache-memory-bytes", "1MiB", "--max-model-len", 1024], "one sequence of --max-model-len 1024"),
])
def test_refused(flags, words):
    done = run("serve", MODEL, "--port", 0, *flags)
    assert done.returncode != 0 and words in done.stdout, done.stdout


def test_bench_tells_kv_by_tier(tmp_path):
    path = tmp_path / "result.json"
    done = run("bench", MODEL, "--device", "cpu", "--batch", 6, "--input-len", 150, "--output-len", 30, "--json", path,
               "--kv-cache-memory-bytes", 9 * PAGE, "--kv-remote", "host:16MiB")
    assert done.returncode == 0, done.stdout
    result = json.loads(path.read_text())
    assert result["kv_remote"] == "host:16MiB" and result["kv_pages_out_count"] > 0
    near, far = result["tiers"]
    assert far["name"] == "host" and far["step_weight_bytes"] == 0
    assert far["step_bytes"] == far["step_kv_bytes"] > 0
    context = result["steady_context_mean_tokens"]
    every = 6 * context * PAGE / 64
    assert near["step_kv_bytes"] + far["step_kv_bytes"] == pytest.approx(every, rel=0.01)
    few = run("bench", MODEL, "--device", "cpu", "--batch", 6, "--input-len", 150, "--output-len", 30,
              "--kv-cache-memory-bytes", 4 * PAGE, "--kv-remote", "host:16MiB")
    assert few.returncode != 0 and "need a page of KV each in local memory and there are 4" in few.stdout
