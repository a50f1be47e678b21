"""`dakd bench`: what it prints and writes is complete and agrees with itself; flags that make no measurement are
refused with a sentence.  No figure is compared with another machine's, or with a limit."""

import json
import math
import re

import pytest

from daemon import MODEL, ROOT, run

TINY = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 1000, "hidden_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False,
        "rope_theta": 10000.0, "torch_dtype": "bfloat16"}
SUMMARIES = [f"{what}_{which}_ms" for what in ("ttft", "tpot", "itl") for which in ("mean", "median", "p99")]


@pytest.fixture
def tiny(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    return folder


def bench(tmp_path, model, *flags):
    path = tmp_path / "result.json"
    done = run("bench", model, "--json", path, "--log-level", "warn", *flags)
    assert done.returncode == 0, done.stdout
    assert not path.with_name("result.json.new").exists()
    return json.loads(path.read_text()), done.stdout


def check(result, text, batch, prompt, answer):
    """What holds for every run."""
    close = lambda a, b: math.isclose(a, b, rel_tol=1e-6)
    assert (result["batch_sequences"], result["input_tokens_per_sequence"], result["output_tokens_per_sequence"]) == \
        (batch, prompt, answer)
    assert result["total_input_tokens"] == batch * prompt and result["total_output_tokens"] == batch * answer
    assert result["completed_request_count"] == batch
    assert 8 <= result["steady_step_count"] <= answer - 1
    assert prompt < result["steady_context_mean_tokens"] < prompt + answer
    for tier in result["tiers"]:
        assert tier["read_bytes_per_s"] > 0
        assert tier["step_bytes"] == tier["step_weight_bytes"] + tier["step_kv_bytes"]
        assert close(tier["step_at_least_ms"], tier["step_bytes"] / tier["read_bytes_per_s"] * 1e3)
    slowest = max(result["tiers"], key=lambda tier: tier["step_at_least_ms"])
    assert slowest["name"] == result["floor_tier"] and close(slowest["step_at_least_ms"], result["floor_per_step_ms"])
    assert close(result["floor_over_tpot_ratio"], result["floor_per_step_ms"] / result["tpot_steady_median_ms"])
    read = sum(tier["step_bytes"] for tier in result["tiers"])
    assert close(result["effective_gb_per_s"], read / result["tpot_steady_median_ms"] / 1e6)
    assert result["offload_mode"] == "auto" and result["ring_bytes"] == 0
    # Times are predicted of GPUs: nothing is made up here.
    assert "predicted_per_step_ms" not in result and "No time is predicted: that is for GPUs" in text
    host, device = result["engine_outside_device_per_step_ms"], result["device_per_step_ms"]
    assert host > 0 and device > 0 and close(result["engine_outside_device_share_ratio"], host / (host + device))
    seconds = result["duration_s"]
    assert close(result["output_tokens_per_s"], batch * answer / seconds)
    assert close(result["total_tokens_per_s"], batch * (prompt + answer) / seconds)
    assert close(result["request_throughput_per_s"], batch / seconds)
    assert result["prefill_tokens_per_s"] >= batch * prompt / seconds
    # A request's time is its TTFT and its ITLs; no more than the whole run.
    assert close(result["tpot_mean_ms"], result["itl_mean_ms"])
    assert result["ttft_mean_ms"] + result["tpot_mean_ms"] * (answer - 1) <= seconds * 1e3 * (1 + 1e-6)
    for what in ("ttft", "tpot", "itl"):
        assert 0 < result[f"{what}_median_ms"] <= result[f"{what}_p99_ms"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", result["date"])
    version = run("--version").stdout
    assert version == f"dakd {result['version']} ({result['commit']})\n"
    assert result["backend"].startswith("cpu (")
    # People read the same figures.
    assert result["backend"] in text and version.strip() in text
    for label, key, digits in (("floor / TPOT", "floor_over_tpot_ratio", 4), ("TPOT, median (ms)", "tpot_steady_median_ms", 4),
                               ("steps in which every sequence decoded", "steady_step_count", 0)):
        shown = re.search(rf"^ +{re.escape(label)} +(\S+)$", text, re.M)
        # The file has nine digits: of a half there, the table's rounding may go either way.
        assert shown and len(shown[1].partition(".")[2]) == digits, text
        assert abs(float(shown[1]) - result[key]) <= 0.5 * 10**-digits + 1e-8 * abs(result[key]), text


def test_demo_model(tmp_path):
    result, text = bench(tmp_path, MODEL, "--batch", 3, "--input-len", 70, "--output-len", 20)
    check(result, text, 3, 70, 20)
    assert result["architecture"] == "LlamaForCausalLM" and result["weight_dtype"] == "bfloat16"
    # All prompts fit one step, so every decode step is steady: contexts 71 to 89.
    assert result["steady_step_count"] == 19 and result["steady_context_mean_tokens"] == 80
    (tier,) = result["tiers"]
    # Eight layers of 868,352 weights, a head of 4096 x 256, in 2 bytes; 17 norms of 256 floats; a row of the
    # embedding a sequence.  KV: 8 layers x 2 heads x 64 x (K and V) x 2 bytes.
    assert tier["step_weight_bytes"] == 2 * (8 * 868352 + 4096 * 256) + 4 * 17 * 256 + 3 * 512
    assert tier["step_kv_bytes"] == 3 * 80 * 4096


def test_dummy_model_over_two_tiers(tmp_path, tiny):
    result, text = bench(tmp_path, tiny, "--load-format", "dummy", "--batch", 2, "--input-len", 5, "--output-len", 12,
                         "--offload", 0.5, "--force-offload", "--remote", "host:64MiB", "--placement", "even", "--kv-cache-dtype", "float32",
                         "--threads", 1, "--congestion-control", "static", "--remote-window", "host:8x2")
    check(result, text, 2, 5, 12)
    local, remote = result["tiers"]
    assert (local["name"], remote["name"]) == ("hbm", "host")
    # Layer: q k v 128 x 64, o 64 x 64, gate and up 256 x 64, down 64 x 128; the head 1000 x 64; 2 bytes each.  Norms
    # and the biases of q, k, v are floats.
    weights = 2 * (2 * (128 * 64 + 64 * 64 + 256 * 64 + 64 * 128) + 1000 * 64) + 4 * (5 * 64 + 2 * 128)
    assert local["step_weight_bytes"] + remote["step_weight_bytes"] == weights + 2 * 2 * 64
    assert remote["step_weight_bytes"] > 0.3 * weights and remote["step_kv_bytes"] == 0
    assert local["step_kv_bytes"] == 2 * 11 * (2 * 2 * 32 * 4 * 2) / 2
    assert result["kv_cache_dtype"] == "float32" and result["offload_ratio"] == pytest.approx(0.5, abs=0.05)
    assert result["placement"] == "even" and result["congestion_control"] == "static"
    assert (remote["window_ctas"], remote["window_blocks"]) == (8, 2) and "window_ctas" not in local
    for tier in result["tiers"]:
        # The CPU counts the weights its products read, whole tiles of 64 rows of 128 inputs.
        assert tier["step_counted_bytes"] > 0 and "round_trip_count" not in tier
        if tier["name"] != "hbm":  # the CPU has no copy engine: all is read in place
            assert tier["step_copied_bytes"] == 0 == tier["copied_share_ratio"] == tier["copy_engine_bytes_per_s"]
            assert tier["step_in_place_bytes"] == tier["step_counted_bytes"]
        seconds = result["tpot_steady_median_ms"] / 1e3
        assert tier["achieved_bytes_per_s"] == pytest.approx(tier["step_bytes"] / seconds, rel=1e-6)


def test_what_does_not_fit_is_planned(tmp_path, tiny):
    """The floor is of the bytes as they were placed; the share is what had to leave, and no flag names a tier."""
    fits, _ = bench(tmp_path, tiny, "--load-format", "dummy", "--batch", 2, "--input-len", 5, "--output-len", 12, "--threads", 1)
    assert fits["offload_ratio"] == 0 and len(fits["tiers"]) == 1
    weights = fits["tiers"][0]["capacity_bytes"]
    result, text = bench(tmp_path, tiny, "--load-format", "dummy", "--batch", 2, "--input-len", 5, "--output-len", 12,
                         "--threads", 1, "--hbm-size", f"{int(weights * 0.7)}B")
    check(result, text, 2, 5, 12)
    local, remote = result["tiers"]
    assert result["placement"] == "planned" and "offload auto: 0." in text
    assert 0.3 * weights <= remote["capacity_bytes"] < 0.3 * weights + 4 * 128 * 64 * 2 + 1024
    assert local["capacity_bytes"] <= int(weights * 0.7)
    for key in ("step_weight_bytes", "step_kv_bytes"):
        assert local[key] + remote[key] == fits["tiers"][0][key]


def test_prompts_over_two_tiers(tmp_path, tiny):
    """Each chunk reads the remote weights once, and the head only where it gives a token; no tile has padding."""
    (tiny / "config.json").write_text(json.dumps(TINY | {"hidden_size": 128, "vocab_size": 1024}))
    result, text = bench(tmp_path, tiny, "--load-format", "dummy", "--batch", 2, "--input-len", 100, "--output-len", 30,
                         "--offload", 0.5, "--force-offload", "--remote", "host:64MiB", "--placement", "even",
                         "--threads", 1, "--max-num-batched-tokens", 48)
    check(result, text, 2, 100, 30)
    # 48 + 48 + 4 of the first prompt with 44 of the second, then 47 beside a decode, then the rest.
    assert result["prompt_step_count"] == 5
    _, remote = result["tiers"]
    # But for the rows of the embedding table, 256 bytes a token: which of them are remote, chance decides.
    spread = abs(remote["prompt_step_counted_bytes"] - remote["prompt_step_weight_bytes"]) * 5
    assert spread < 0.3 * 200 * 256 and remote["prompt_step_counted_bytes"] * 5 % 256 == 0
    assert remote["prompt_step_weight_bytes"] > 1.5 * 200 * 256
    assert 0 < result["prompt_device_ms"] <= result["prompt_ms"]
    floor = remote["prompt_step_weight_bytes"] * 5 / remote["read_bytes_per_s"] * 1e3
    assert result["prompt_link_floor_ms"] == pytest.approx(floor, rel=1e-6)
    assert result["prompt_over_link_floor_ratio"] == pytest.approx(result["prompt_ms"] / floor, rel=1e-6)
    assert result["staging_bytes"] == 0 and "of a step of the prompts" in text


def test_several_batches_of_one_loading(tmp_path, tiny):
    results, text = bench(tmp_path, tiny, "--load-format", "dummy", "--batch", "2,4,1", "--input-len", 5, "--output-len", 12,
                          "--threads", 1)
    assert [r["batch_sequences"] for r in results] == [2, 4, 1]
    parts = re.split(r"^(?=dakd )", text, flags=re.M)[1:]
    for result, part in zip(results, parts, strict=True):
        check(result, part, result["batch_sequences"], 5, 12)
    assert len({r["tiers"][0]["read_bytes_per_s"] for r in results}) == 1  # probed once


def test_several_controls_of_one_loading(tmp_path, tiny):
    results, text = bench(tmp_path, tiny, "--load-format", "dummy", "--batch", "2,1", "--input-len", 5, "--output-len", 24,
                          "--offload", 0.5, "--force-offload", "--remote", "host:64MiB", "--threads", 1,
                          "--control-sweep", "static,8x2,off,adaptive")
    names = ["static", "8x2", "off", "adaptive"]
    assert [(r["batch_sequences"], r["congestion_control"]) for r in results] == [(b, n) for b in (2, 1) for n in names]
    for result in results:
        name, tier = result["congestion_control"], result["tiers"][1]
        assert tier["control"] == (name if name in ("off", "adaptive") else "static")
        windows = {"8x2": (8, 2), "off": (None, None)}
        # The CPU times no copies: adaptive keeps what it begins with.
        assert (tier.get("window_ctas"), tier.get("window_blocks")) == windows.get(name, (16, 2))
        assert tier["window_ups"] == tier["window_downs"] == tier["window_found_steps"] == 0
    rows = re.findall(r"^ +(\d+) (\S+) +(\S+) +\S+ +(\S+)  .*host", text, re.M)
    assert [(int(b), n) for b, n, _, _ in rows] == [(b, n) for b in (2, 1) for n in names]
    for result, (_, _, _, ratio) in zip(results, rows, strict=True):
        best = min(r["tpot_steady_median_ms"] for r in results if r["batch_sequences"] == result["batch_sequences"]
                   and r["congestion_control"] in ("static", "8x2"))
        assert float(ratio) == pytest.approx(result["tpot_steady_median_ms"] / best, abs=1e-4)


def test_given_context(tmp_path, tiny):
    """No prompt is computed, and steps read what they would behind computed ones, in every tier."""
    flags = ["--load-format", "dummy", "--batch", 4, "--input-len", 300, "--output-len", 30, "--threads", 1]
    result, text = bench(tmp_path, tiny, *flags, "--given-context")
    assert result["given_context"] is True and "the prompts' KV is random and was not computed" in text
    assert result["steady_step_count"] == 29 and result["steady_context_mean_tokens"] == 315
    assert result["total_output_tokens"] == 120
    for key in ("prompt_ms", "prefill_tokens_per_s", "ttft_mean_ms", "total_input_tokens", "total_tokens_per_s"):
        assert key not in result
    (tier,) = result["tiers"]
    assert tier["step_kv_bytes"] == 4 * 315 * 2 * 2 * 16 * 2 * 2
    flags += ["--kv-cache-memory-bytes", f"{8 * 64}KiB", "--kv-remote", "host:2MiB"]  # of a page: 2 layers, 2 heads, K and V
    computed, _ = bench(tmp_path, tiny, *flags)
    given, _ = bench(tmp_path, tiny, *flags, "--given-context")
    assert given["kv_move_wait_step_count"] <= 2 and given["kv_pages_out_count"] < computed["kv_pages_out_count"]
    assert given["tiers"][1]["step_kv_bytes"] > 0.5 * given["tiers"][0]["step_kv_bytes"]


def test_cheap_bytes_leave_first(tmp_path, tiny):
    """A table of which a step reads a row a token costs nothing elsewhere."""
    result, _ = bench(tmp_path, tiny, "--load-format", "dummy", "--batch", 2, "--input-len", 5, "--output-len", 12,
                      "--offload", 0.1, "--force-offload", "--remote", "host:64MiB", "--threads", 1,
                      "--congestion-control", "off")
    local, remote = result["tiers"]
    assert 0 < remote["step_weight_bytes"] <= 2 * 2 * 64 and remote["step_counted_bytes"] <= 2 * 2 * 64
    assert result["placement"] == "auto" and "window_ctas" not in remote


def test_prompts_in_chunks(tmp_path, tiny):
    """Sequences begin one after another; only steps in which all decode are steady."""
    result, text = bench(tmp_path, tiny, "--load-format", "dummy", "--batch", 4, "--input-len", 30, "--output-len", 40,
                         "--max-num-batched-tokens", 16)
    check(result, text, 4, 30, 40)
    assert result["steady_step_count"] < 39
    assert result["ttft_mean_ms"] > 0


def test_prompts_beside_decodes(tmp_path, tiny):
    """Each setting of the sweep is measured, and the target of latency acts on those that have one."""
    results, text = bench(tmp_path, tiny, "--load-format", "dummy", "--batch", 3, "--input-len", 200, "--output-len", 9,
                          "--request-rate", 200, "--num-prompts", 5, "--sweep-batched-tokens", "64,256",
                          "--sweep-itl-target-ms", "0,0.001", "--threads", 1)
    assert "weights bfloat16, KV bfloat16, offload auto: 0\n" in text
    assert [(r["step_tokens_max"], r["itl_target_ms"]) for r in results] == [(64, 0), (64, 0.001), (256, 0), (256, 0.001)]
    for r in results:
        assert (r["decoding_sequences"], r["prompts"], r["request_rate_per_s"]) == (3, 5, 200)
        assert 0 < r["ttft_median_ms"] <= r["ttft_p99_ms"] <= r["duration_s"] * 1e3
        assert 0 < r["itl_median_ms"] <= r["itl_p99_ms"] and r["itl_alone_median_ms"] > 0
        assert r["prompt_tokens_per_s"] == pytest.approx(5 * 200 / r["duration_s"], rel=1e-6)
        assert 0 < r["mixed_step_prompt_tokens_mean"] <= r["step_tokens_max"] - 3
        # A microsecond is less than any step takes: every step with decodes is beyond it, and cut to the least.
        assert (r["over_target_step_count"] > 0) == (r["itl_target_ms"] > 0)
        if not r["itl_target_ms"]:
            assert r["held_back_step_count"] == 0
        elif r["step_tokens_max"] == 256:
            assert r["held_back_step_count"] > 0 and r["mixed_step_prompt_tokens_mean"] <= 64
    rows = re.findall(r"^ +(\d+) +\S+ +(\d+\.\d) ", text, re.M)
    for r, (step_tokens, ttft) in zip(results, rows, strict=True):
        assert int(step_tokens) == r["step_tokens_max"], text
        assert float(ttft) == pytest.approx(r["ttft_median_ms"], abs=0.051), text


@pytest.mark.parametrize("flags,words", [
    (["--input-len", 5, "--output-len", 20], "--batch is missing"),
    (["--batch", 1, "--output-len", 20], "--input-len is missing"),
    (["--batch", "1,x", "--input-len", 5, "--output-len", 20], "--batch '1,x' is not a list of up to 8 numbers"),
    (["--batch", "1,", "--input-len", 5, "--output-len", 20], "--batch '1,' is not a list of up to 8 numbers"),
    (["--batch", "0", "--input-len", 5, "--output-len", 20], "--batch '0' is not a list"),
    (["--batch", "4097", "--input-len", 5, "--output-len", 20], "between 1 and 4096"),
    (["--batch", "1,2,3,4,5,6,7,8,9", "--input-len", 5, "--output-len", 20], "up to 8 numbers"),
    (["--batch", 1, "--input-len", 5], "--output-len is missing"),
    (["--batch", 1, "--input-len", 5, "--output-len", 8], "7 decode steps at most, and a TPOT is not reported"),
    (["--batch", 40, "--input-len", 5, "--output-len", 20, "--max-num-batched-tokens", 32], "--batch 40 sequences"),
    (["--batch", 1, "--input-len", 5, "--output-len", 20, "--max-model-len", 24], "more than --max-model-len 24"),
    (["--batch", 1, "--input-len", 5, "--output-len", 20, "--port", 1], "--port is not a flag of dakd bench"),
    (["--batch", 1, "--input-len", 5, "--output-len", 20, "--given-context"], "add --load-format dummy, or leave it out"),
    (["--batch", 1, "--input-len", 5, "--output-len", 20, "--given-context", "--load-format", "dummy", "--request-rate", 1],
     "--given-context has no prompts to compute"),
    (["--batch", 1, "--input-len", 5, "--output-len", 20, "--request-rate", 1, "--control-sweep", "off"],
     "not measured with --request-rate"),
    (["--batch", 1, "--input-len", 5, "--output-len", 20, "--request-rate", 1, "--without", "split-k"],
     "not measured with --request-rate"),
    (["--batch", 1, "--input-len", 5, "--output-len", 20, "--control-sweep", "off", "--without", "split-k"],
     "one at a time"),
    (["--batch", 1, "--input-len", -5, "--output-len", 20], "--input-len must be between"),
    (["--batch", "1,2", "--input-len", 5, "--output-len", 2, "--request-rate", 1], "one number of sequences that decode"),
    (["--batch", 1, "--request-rate", 1], "length of the prompts that arrive"),
    (["--batch", 8, "--input-len", 5, "--output-len", 2, "--request-rate", 1, "--sweep-batched-tokens", "64,4"],
     "in steps of 4 tokens"),
    (["--batch", 8, "--input-len", 5, "--output-len", 2, "--request-rate", 1, "--sweep-itl-target-ms", "1,x"],
     "--sweep-itl-target-ms '1,x' is not a list"),
    (["--batch", 8, "--input-len", 5, "--output-len", 2, "--request-rate", 1, "--sweep-batched-tokens", "64.5"],
     "--sweep-batched-tokens 64.5 is not a number of tokens"),
])
def test_refused_flags(flags, words):
    done = run("bench", MODEL, *flags)
    assert done.returncode == 2 and words in done.stdout, done.stdout


@pytest.mark.parametrize("flags,words", [
    (["--input-len", 2000, "--output-len", 100], "more than the 2048 positions"),
    (["--input-len", 64, "--output-len", 20, "--offload", 0.5], "--remote"),
    (["--input-len", 64, "--output-len", 20, "--remote", "host:1MiB", "--congestion-control", "on"], "'on' is none of off"),
    (["--input-len", 64, "--output-len", 20, "--control-sweep", "off,static"], "--remote names none"),
    (["--input-len", 64, "--output-len", 20, "--remote", "host:1MiB", "--control-sweep", "off,often"], "'often' is none of"),
    (["--input-len", 64, "--output-len", 20, "--remote", "host:1MiB", "--control-sweep", "8x"], "not a window"),
    (["--input-len", 64, "--output-len", 20, "--remote", "host:1MiB", "--background-copy", "host:25"], "host:25GB/s"),
    (["--input-len", 64, "--output-len", 20, "--remote", "host:1MiB", "--background-copy", "peer1:25GB/s"],
     "no tier that --remote names"),
    (["--input-len", 64, "--output-len", 20, "--remote", "host:1MiB", "--background-copy", "host:25GB/s"], "copy engine"),
    (["--input-len", 64, "--output-len", 20, "--remote-window", "host:16x1"], "no tier that --remote names"),
    (["--input-len", 64, "--output-len", 20, "--remote", "host:1MiB", "--remote-window", "host:16"], "not a window"),
    (["--input-len", 64, "--output-len", 20, "--without", "split-k,often"], "not a list of dependent-launch, split-k"),
    (["--input-len", 64, "--output-len", 20, "--without", "split-k,split-k"], "each at most once"),
    (["--input-len", 64, "--output-len", 20, "--without", "split-k"], "nothing it could do without"),
    (["--input-len", 64, "--output-len", 20, "--prefill-staging-bytes", "much"], "neither auto nor a size"),
    (["--input-len", 640, "--output-len", 20, "--kv-cache-memory-bytes", "4MiB"], "KV pages together"),
    (["--input-len", 64, "--output-len", 20, "--json", "/nonexistent/x"], "--json /nonexistent/x: No such file"),
    (["--input-len", 64, "--output-len", 9, "--max-num-batched-tokens", 32], "raise --output-len"),
])
def test_refused_runs(flags, words):
    done = run("bench", MODEL, "--batch", 4, *flags)
    assert done.returncode == 1 and words in done.stdout, done.stdout
    assert "floor / TPOT" not in done.stdout


def test_failed_run_leaves_no_file(tmp_path):
    done = run("bench", tmp_path / "nothing", "--batch", 1, "--input-len", 5, "--output-len", 20, "--json",
               tmp_path / "result.json")
    assert done.returncode == 1 and "nothing" in done.stdout
    assert not list(tmp_path.iterdir())


def test_help():
    shown = run("bench", "--help")
    assert shown.returncode == 0
    assert "dakd bench MODEL_DIR" in shown.stdout and "--batch" in shown.stdout and "--offload" in shown.stdout
    assert "--port" not in shown.stdout and "--api-key" not in shown.stdout
    assert "--batch" not in run("serve", "--help").stdout
    assert "bench" in run("--help").stdout and (ROOT / "README.md").read_text().count("dakd bench")
