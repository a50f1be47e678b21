"""Weights over two tiers: the same answers, and what /metrics says of how the tiers are read."""

import pytest

from daemon import MODEL, run

HOST = '{tier="host"}'
HBM = '{tier="hbm"}'


def answer(daemon):
    body = {"prompt": "dakd reads", "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    status, result, _ = daemon.request("POST", "/v1/completions", body)
    assert status == 200
    return result["choices"][0]["text"]


def test_tiers_are_read_and_told(start):
    local = answer(start())
    daemon = start("--offload", 0.4, "--remote", "host:64MiB", "--force-offload")
    before = daemon.metrics()
    assert before["dakd_tier_window_bytes" + HOST] == 16 * 2 * 16384
    assert answer(daemon) == local
    after = daemon.metrics()
    remote = after["dakd_tier_weight_bytes" + HOST]
    share = remote / (remote + after["dakd_tier_weight_bytes" + HBM])
    assert share == pytest.approx(0.4, abs=0.02)
    # The warm-up step read something before; of 25 tokens, 24 were steps of their own, at least.
    for tier in (HOST, HBM):
        read = after["dakd_tier_read_bytes_total" + tier] - before["dakd_tier_read_bytes_total" + tier]
        assert read >= 24 * 0.9 * after["dakd_tier_weight_bytes" + tier]
        assert after["dakd_tier_read_bandwidth_bytes_per_second" + tier] > 0
    assert after["dakd_tier_round_trips_total" + HOST] == 0  # the CPU times no copies


def check_told(daemon, tiers, exact):
    """What was asked for, placed and predicted is told alike in the log and by /metrics."""
    now = daemon.metrics()
    log = daemon.log()
    assert "a step reads MB" in log
    for tier in tiers:
        placed, requested, reads, predicted = (now[f'dakd_tier_{name}_bytes{{tier="{tier}"}}'] for name in (
            "weight", "weight_requested", "step", "step_predicted"))
        assert placed == requested if exact else placed == pytest.approx(requested, abs=3e5)
        assert reads == pytest.approx(predicted, rel=1e-3, abs=2**20)
        row = next(line.split() for line in log.split("\n") if f"startup: {tier} " in line)[-8:]
        assert row[0] == tier
        assert float(row[1]) == pytest.approx(requested / 2**30, abs=1e-3)
        assert float(row[2]) == pytest.approx(placed / 2**30, abs=1e-3)
        assert float(row[4]) == pytest.approx(predicted / 1e6, abs=1e-2)
    return {tier: now[f'dakd_tier_weight_bytes{{tier="{tier}"}}'] for tier in tiers}


def test_what_fits_stays(start):
    daemon = start("--remote", "host:64MiB")
    weights = check_told(daemon, ["hbm", "host"], exact=True)
    assert "the tiers of --remote stay empty" in daemon.log()
    assert weights["host"] == 0 and weights["hbm"] > 16e6


@pytest.mark.parametrize("size,flags,remote", [
    ("14MiB", [], ["host"]),
    ("4MiB", [], ["host"]),
    ("6MiB", ["--remote", "peer:1:4MiB,host:64MiB"], ["peer1", "host"]),
])
def test_what_does_not_fit_goes_out(start, size, flags, remote):
    """With no flag about tiers the host's memory is taken, and with nothing else changed answers are the same."""
    local = answer(start())
    daemon = start("--hbm-size", size, "--plan-batch", 2, "--plan-context", 64, *flags)
    assert "planned for a step of 2 sequences of 64 tokens" in daemon.log()
    assert answer(daemon) == local
    weights = check_told(daemon, ["hbm", *remote], exact=True)
    now = daemon.metrics()
    used = weights["hbm"] + now["dakd_tier_kv_pages" + HBM] * now["dakd_kv_page_bytes"]
    assert used <= int(size[:-3]) * 2**20 and now["dakd_tier_kv_pages" + HBM] >= 4
    # No more left than had to, to within two tiles of 64 x 704 and a page.
    assert used > int(size[:-3]) * 2**20 - 2 * 64 * 1024 * 2 - now["dakd_kv_page_bytes"]
    if not flags:
        assert now["dakd_tier_capacity_bytes" + HOST] - weights["host"] < 1024
    # Sequences are as long as there is KV for, and one token more is refused.
    longest = int(now["dakd_tier_kv_pages" + HBM]) * 64
    assert f"sequences of up to {longest} tokens" in daemon.log()
    status, result, _ = daemon.request("POST", "/v1/completions", {"prompt": "a", "max_tokens": longest})
    assert status == 400 and str(longest) in result["error"]["message"]


def test_offload_by_hand_where_it_is_needed(start):
    """A share that is said is the user's will where the model does not fit; no force is needed."""
    daemon = start("--hbm-size", "10MiB", "--remote", "host:64MiB", "--offload", 0.6, "--plan-batch", 2, "--plan-context", 64)
    weights = check_told(daemon, ["hbm", "host"], exact=False)
    assert weights["host"] / sum(weights.values()) == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize("flags,words", [
    (["--remote", "host:64MiB", "--offload", 0.1], "where the model fits whole with its KV cache: leave it out, or add --force-offload"),
    (["--offload", 0.1], "--offload 0.1 needs a remote tier"),
    (["--force-offload"], "--force-offload is of a share"),
    (["--hbm-size", "14MiB", "--offload", 0], "the model needs 15.52 MiB of local memory for weights"),
    (["--hbm-size", "14MiB", "--remote", "host:1MiB", "--plan-batch", 2], "all tiers hold"),
    (["--hbm-size", "1MiB", "--plan-context", 64, "--plan-batch", 4], "what must lie in hbm (KV, norms, biases) needs"),
    (["--hbm-size", "20MiB", "--kv-cache-memory-bytes", "19MiB", "--offload", 0], "lower --kv-cache-memory-bytes"),
    (["--hbm-size", "14MiB", "--max-model-len", 2048, "--offload", 0.5, "--remote", "host:64MiB"], "of local memory are left beside"),
    (["--plan-context", 4096], "--plan-context 4096 is more than the 2048 tokens"),
])
def test_memory_that_is_not_there(flags, words):
    done = run("serve", MODEL, "--port", 0, *flags)
    assert done.returncode == 1 and words in done.stdout, done.stdout
    assert "a step reads MB" not in done.stdout, "found before anything was loaded"


def test_windows_of_the_settings(start):
    unbounded = start("--remote", "host:1MiB", "--congestion-control", "off")
    assert unbounded.metrics()["dakd_tier_window_bytes" + HOST] == float("inf")
    narrow = start("--remote", "host:1MiB", "--congestion-control", "static", "--remote-window", "host:4x2")
    assert narrow.metrics()["dakd_tier_window_bytes" + HOST] == 8 * 16384


def test_adaptive_control_without_round_trips(start):
    """The CPU times no copies, so the window stays as it was, and the controller says it holds."""
    daemon = start("--offload", 0.4, "--force-offload", "--remote", "host:64MiB", "--congestion-control", "adaptive")
    assert answer(daemon) == answer(start())
    metrics = daemon.metrics()
    assert metrics["dakd_tier_window_bytes" + HOST] == 16 * 2 * 16384
    assert (metrics["dakd_tier_window_ctas" + HOST], metrics["dakd_tier_window_blocks" + HOST]) == (16, 2)
    assert metrics['dakd_tier_congestion_state{tier="host",state="hold"}'] == 1
    assert metrics['dakd_tier_window_moves_total{tier="host",direction="up"}'] == 0


@pytest.mark.parametrize("flags,words", [
    (["--congestion-control", "on"], "'on' is none of off, static and adaptive"),
    (["--congestion-control", "peer:adaptive"], "no tier that --remote names"),
    (["--congestion-control", "adaptive", "--remote-window", "host:1x1"], "adaptive control begins with"),
    (["--congestion-control", "off", "--remote-window", "host:16x1"], "leave one of them out"),
    (["--remote-window", "host:16x0"], "1 to 65536"),
    (["--remote-window", "peer:16x4"], "no tier that --remote names"),
    (["--offload-mode", "prefetch"], "the CPU computes, which reads all memory alike"),
    (["--offload-mode", "uva"], "leave it out, or say direct"),
    (["--offload-mode", "direct", "--offload-staging-bytes", "1GiB"], "is of --offload-mode auto, and the mode is direct"),
    (["--prefetch-layers", 2], "is of --offload-mode prefetch, and the mode is auto"),
    (["--offload-mode", "direct", "--prefill-staging-bytes", "1GiB"], "is of --offload-mode auto or prefetch"),
    (["--offload-staging-bytes", "much"], "'much' is neither auto nor a size"),
])
def test_refused(flags, words):
    done = run("serve", MODEL, "--port", 0, "--remote", "host:1MiB", *flags)
    assert done.returncode != 0 and words in done.stdout, done.stdout
