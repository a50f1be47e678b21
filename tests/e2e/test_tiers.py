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
    daemon = start("--offload", 0.4, "--remote", "host:64MiB")
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


def test_windows_of_the_settings(start):
    unbounded = start("--remote", "host:1MiB", "--congestion-control", "off")
    assert unbounded.metrics()["dakd_tier_window_bytes" + HOST] == float("inf")
    narrow = start("--remote", "host:1MiB", "--congestion-control", "static", "--remote-window", "host:4x2")
    assert narrow.metrics()["dakd_tier_window_bytes" + HOST] == 8 * 16384


def test_adaptive_control_without_round_trips(start):
    """The CPU times no copies, so the window stays as it was, and the controller says it holds."""
    daemon = start("--offload", 0.4, "--remote", "host:64MiB", "--congestion-control", "adaptive")
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
])
def test_refused(flags, words):
    done = run("serve", MODEL, "--port", 0, "--remote", "host:1MiB", *flags)
    assert done.returncode != 0 and words in done.stdout, done.stdout
