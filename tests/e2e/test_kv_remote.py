"""KV pages beyond local memory: `--kv-remote` gives the same answers, computes nothing again, says where pages are, and
refuses what cannot be."""

import json
import re
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


def answers(daemon, prompts=PROMPTS):
    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(lambda prompt: answer(daemon, prompt), prompts))


@pytest.mark.parametrize("near,flags", [
    (12, ["--kv-admission", "all"]),
    (7, ["--max-num-batched-tokens", 128]),
    (7, ["--offload", 0.3, "--force-offload", "--remote", "host:16MiB", "--async-scheduling", "on"]),
])
def test_answers_are_the_same(start, near, flags):
    common = ["--max-num-seqs", 6, "--max-model-len", 1024]
    local = answers(start(*common))
    daemon = start(*common, "--kv-cache-memory-bytes", near * PAGE, "--kv-remote", "host:32MiB", *flags)
    assert answers(daemon) == local
    now = daemon.wait_idle()
    assert now["dakd_kv_page_bytes"] == PAGE
    assert now["dakd_tier_kv_pages" + HBM] == near
    assert now["dakd_tier_kv_pages" + HOST] == min(32 * 4, (16 + 1) * 6 - near)
    assert now["dakd_kv_pages_moved_out_total"] > 0
    assert now["dakd_tier_kv_moved_bytes_total" + HOST] == PAGE * (
        now["dakd_kv_pages_moved_out_total"] + now["dakd_kv_pages_moved_back_total"])
    assert now["dakd_tier_kv_read_bytes_total" + HOST] > 0
    assert now["dakd_num_preemptions_total"] == 0 and now["dakd_recomputed_tokens_total"] == 0
    assert now["dakd_tier_kv_pages_used" + HBM] == now["dakd_tier_kv_pages_used" + HOST] == now["dakd_kv_pages_moving"]
    assert "more in tier host, for what local memory has no room for" in daemon.log()


def test_one_sequence_longer_than_local_memory(start):
    """Start-up counts both tiers for the longest sequence."""
    daemon = start("--max-num-seqs", 2, "--kv-cache-memory-bytes", 4 * PAGE, "--kv-remote", f"host:{12 * PAGE}B",
                   "--max-model-len", 1024)
    prompt = "a long way " * 60
    assert answer(daemon, prompt) == answer(start(), prompt)
    assert daemon.metrics()["dakd_tier_kv_read_bytes_total" + HOST] > 0


@pytest.mark.parametrize("policy", ["swap", "recompute", "in-place"])
def test_answers_are_the_same_whatever_is_done_when_short(start, policy):
    """vLLM's two modes of preemption, and admission that weighs what the link costs."""
    common = ["--max-num-seqs", 6, "--max-model-len", 640]
    remote = [] if policy == "recompute" else ["--kv-remote", "host:32MiB"]
    local = answers(start(*common))
    daemon = start(*common, "--kv-cache-memory-bytes", 16 * PAGE, "--kv-policy", policy, "--no-prefix-cache", *remote)
    assert answers(daemon) == local
    now = daemon.wait_idle()
    assert (now["dakd_num_preemptions_total"] == 0) == (policy == "in-place")
    assert (now["dakd_recomputed_tokens_total"] > 0) == (policy == "recompute")
    if policy == "swap":
        assert now["dakd_kv_pages_moved_out_total"] == now["dakd_kv_pages_moved_back_total"] > 0
        assert now["dakd_tier_kv_read_bytes_total" + HOST] == 0


def test_what_local_memory_holds_stays(start):
    daemon = start("--max-num-seqs", 1, "--max-model-len", 128, "--kv-cache-memory-bytes", 3 * PAGE, "--kv-remote",
                   "host:16MiB")
    assert "--kv-remote stays empty" in daemon.log()
    assert daemon.metrics()["dakd_tier_kv_pages" + HOST] == 0


def test_weights_and_kv_leave_together(start):
    """Start-up shares local memory out between both, tells where they lie, and answers are the same."""
    common = ["--max-num-seqs", 6, "--max-model-len", 1024]
    prompts = [prompt + prompt for prompt in PROMPTS]
    local = answers(start(*common), prompts)
    daemon = start(*common, "--hbm-size", "9MiB", "--plan-batch", 6, "--plan-context", 640, "--kv-remote", "host:32MiB",
                   "--remote", "host:32MiB")
    assert answers(daemon, prompts) == local
    now = daemon.wait_idle()
    assert now["dakd_tier_weight_bytes" + HOST] > 2**20 and now["dakd_tier_kv_read_bytes_total" + HOST] > 0
    assert now["dakd_num_preemptions_total"] == 0
    # The workload's pages, 66 with those in reserve: what is not local has room.
    near, far = (now["dakd_tier_kv_pages" + tier] for tier in (HBM, HOST))
    assert 12 <= near < 66 <= near + far
    assert now["dakd_tier_weight_bytes" + HBM] + near * PAGE <= 9 * 2**20
    assert "what leaves is planned for a step of 6 sequences of 640 tokens" in daemon.log()
    row = next(line.split() for line in daemon.log().split("\n") if "startup: host " in line and "/" not in line)[-8:]
    assert float(row[6]) == pytest.approx(far * PAGE / 2**30, abs=1e-3) and 0 < float(row[7]) < float(row[4])


@pytest.mark.parametrize("flags", [
    ["--hbm-size", "16MiB"],
    ["--hbm-size", "16MiB", "--max-num-seqs", 4, "--max-model-len", 512],
    ["--hbm-size", "40MiB"],
])
def test_nothing_else_is_needed(start, flags):
    """A model that does not fit starts with a tier for KV alone, as it does with none."""
    assert answer(start(*flags, "--kv-remote", "host:16MiB"), PROMPTS[0]) == answer(start(*flags), PROMPTS[0])


@pytest.mark.parametrize("flags,words", [
    (["--kv-remote", "64GiB"], "--kv-remote: '64GiB' is neither host:SIZE nor peer:DEVICE:SIZE"),
    (["--kv-remote", "host:64"], "--kv-remote: the size '64' in 'host:64' needs a unit"),
    (["--kv-remote", "host:1KiB"], "--kv-remote host:1KiB has no room for one page of KV, 256.00 KiB"),
    (["--kv-remote", "host:1MiB,peer:1:1MiB"], "--kv-remote: 'host:1MiB,peer:1:1MiB' is more than one tier"),
    (["--kv-policy", "swap"], "--kv-policy swap moves pages to a remote tier: name one with --kv-remote"),
    (["--kv-policy", "recompute", "--kv-remote", "host:1MiB"], "--kv-policy recompute keeps no pages in a remote tier"),
    (["--kv-policy", "swap", "--kv-remote", "host:64MiB"], "--kv-policy swap moves pages of one sequence alone"),
    (["--kv-policy", "swap", "--no-prefix-cache", "--kv-remote", "host:64MiB", "--kv-cache-memory-bytes", "1MiB",
      "--max-model-len", 1024],
     "one sequence of --max-model-len 1024"),
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


def test_bench_of_a_tier_that_stays_empty(tmp_path):
    """It is measured as without the tier, of which every figure is a zero."""
    path = tmp_path / "result.json"
    done = run("bench", MODEL, "--device", "cpu", "--load-format", "dummy", "--batch", 1, "--input-len", 8, "--output-len", 12,
               "--kv-remote", "host:16MiB", "--json", path)
    assert done.returncode == 0, done.stdout
    assert "tier host stays empty: its reading is not measured" in done.stdout and "nan" not in done.stdout
    near, far = json.loads(path.read_text(), parse_constant=pytest.fail)["tiers"]
    assert near["read_bytes_per_s"] > 0 and near["step_bytes"] > 0 and near["step_at_least_ms"] > 0
    assert far["name"] == "host" and not any(value for key, value in far.items() if key.endswith(("_bytes", "_s", "_ms", "_ratio")))


def sweep(tmp_path, *flags):
    path = tmp_path / "sweep.json"
    done = run("bench", MODEL, "--device", "cpu", "--load-format", "dummy", "--batch", 6, "--input-len", 300, "--output-len", 70,
               "--given-context", "--kv-remote", "host:16MiB", "--json", path, "--log-level", "warn", *flags)
    return done, json.loads(path.read_text()) if done.returncode == 0 else None


def test_sweep_of_what_is_done_when_short(tmp_path):
    """Six sequences of 5 pages that grow to 6, where 13 are local."""
    done, results = sweep(tmp_path, "--kv-cache-memory-bytes", 13 * PAGE, "--kv-sweep", "all,swap,recompute,throughput")
    assert done.returncode == 0, done.stdout
    by = {r["kv_when_short"]: r for r in results}
    assert list(by) == ["all", "swap", "recompute", "throughput"] == re.findall(r"^(\w+) +\d+\.\d+ ", done.stdout, re.M)
    for r in results:
        assert r["duration_s"] > 0 and r["output_tokens_per_s"] == pytest.approx(6 * 70 / r["duration_s"], rel=1e-6)
        assert 0 < r["ttft_mean_ms"] <= r["ttft_max_ms"] and 0 < r["itl_mean_ms"] <= r["itl_max_ms"]
        assert (r["kv_local_pages"], r["kv_remote_pages"], r["kv_page_bytes"]) == (13, 6 * 7 - 13, PAGE)
    assert by["all"]["step_count"] == 70 < by["swap"]["step_count"]
    assert by["all"]["kv_remote_read_bytes"] > 70 * 16 * PAGE
    # Two run at a time; the other four come back, whole, and of those that lost all 299 tokens each are computed again.
    assert by["swap"]["kv_remote_read_bytes"] == by["swap"]["recomputed_tokens"] == 0
    assert by["swap"]["kv_moved_back_bytes"] >= 4 * 5 * PAGE
    assert by["recompute"]["recomputed_tokens"] >= 4 * 299
    assert by["recompute"]["kv_moved_out_bytes"] == by["recompute"]["kv_moved_back_bytes"] == 0
    assert by["all"]["recomputed_tokens"] == by["all"]["preemption_count"] == by["throughput"]["preemption_count"] == 0


def test_one_context_longer_than_local_memory_runs_in_place_alone(tmp_path):
    done, results = sweep(tmp_path, "--kv-cache-memory-bytes", 4 * PAGE, "--max-num-batched-tokens", 64, "--kv-sweep", "throughput,swap")
    assert done.returncode == 0, done.stdout
    runs, cannot = results
    assert runs["output_tokens_per_s"] > 0
    assert "the KV cache holds 256 tokens, fewer than one sequence of 370" in cannot["missing"] and "duration_s" not in cannot


def test_sweep_of_sequences_shorter_than_what_warms_up(tmp_path):
    done, results = sweep(tmp_path, "--batch", 2, "--input-len", 8, "--output-len", 3, "--kv-cache-memory-bytes", 2 * PAGE,
                          "--kv-sweep", "all,swap")
    assert done.returncode == 0, done.stdout
    assert [r["output_tokens_per_s"] > 0 for r in results] == [True, True]


def test_sweep_in_steps_of_a_few_tokens(tmp_path):
    """What was given is computed again in more steps than there are answer tokens."""
    done, results = sweep(tmp_path, "--batch", 2, "--input-len", 600, "--output-len", 2, "--max-num-batched-tokens", 2,
                          "--kv-cache-memory-bytes", 13 * PAGE, "--kv-sweep", "recompute")
    assert done.returncode == 0, done.stdout
    assert results[0]["recomputed_tokens"] >= 599 and results[0]["step_count"] > 300


@pytest.mark.parametrize("flags,words", [
    (["--kv-sweep", "all,all"], "is not a list of all, throughput, swap and recompute"),
    (["--kv-sweep", "page"], "is not a list of all, throughput, swap and recompute"),
    (["--kv-sweep", "all", "--kv-policy", "swap"], "are what --kv-sweep varies"),
    (["--kv-sweep", "all", "--request-rate", 1], "--kv-sweep is measured alone"),
    (["--kv-sweep", "all"], "nothing to measure"),
])
def test_sweep_refused(tmp_path, flags, words):
    done, _ = sweep(tmp_path, *flags)
    assert done.returncode != 0 and words in done.stdout, done.stdout
