"""`dakd plan`: its figures agree with themselves and with the model's config.json, every byte has a place, and what
cannot be planned is refused with a sentence.  It reads no weights: the folders hold none."""

import json
import math

import pytest

from daemon import ROOT, run

MODELS = sorted(p for p in (ROOT / "config" / "models").iterdir() if (p / "config.json").exists())
LLAMA_8B = ROOT / "config" / "models" / "Llama-3.1-8B"
LLAMA_70B = ROOT / "config" / "models" / "Llama-3.1-70B"


def machines():
    """By name what the help says of each: GB/s and GiB of HBM, the tier behind the link, its GB/s and GiB."""
    rows = run("plan", "--help").stdout.split("TFLOPS", 1)[1].split("Every flag", 1)[0].split("\n")[2:-1]
    return {name: (float(hbm), float(hbm_gib), link, float(gbps), float(gib))
            for name, hbm, hbm_gib, link, gbps, gib, *_ in map(str.split, rows)}


MACHINES = machines()


def close(a, b):
    return math.isclose(a, b, rel_tol=1e-6)


def plan(tmp_path, model, *flags):
    path = tmp_path / "plan.json"
    done = run("plan", model, "--json", path, *flags)
    assert done.returncode == 0, done.stdout
    assert not path.with_name("plan.json.new").exists()
    return json.loads(path.read_text()), done.stdout


def check_prediction(result, text):
    """A time above the floor, whose parts people read; none of weights that no GPU kernel of dakd reads."""
    parts = [f"predicted_{part}_ms" for part in ("products", "links", "attention", "between")]
    if result["weight_dtype"] != "bfloat16":
        assert not any("predicted" in key for key in result) and "nothing: on a GPU dakd computes in bfloat16" in text
        return
    assert close(result["predicted_per_step_ms"], sum(result[part] for part in parts))
    assert result["predicted_per_step_ms"] > 0.95 * result["floor_per_step_ms"]
    assert close(result["predicted_tokens_per_s"], result["batch_sequences"] / result["predicted_per_step_ms"] * 1e3)
    assert f"{result['predicted_tokens_per_s']:.2f}" in text
    for key in ["predicted_per_step_ms"] + parts:
        assert result[key] >= 0 and f"{result[key]:.4f}" in text.split("predicted of dakd's kernels")[1]
    rates = [t["read_bytes_per_s"] for t in result["tiers"]] + [result["flops_per_s"]]
    assert ("Unverified: " in text) == (rates not in ([4720e9, 51.5e9, 989e12], [4630e9, 377e9, 989e12]))


def check(result, text):
    """What holds of every plan."""
    local, remote = result["tiers"]
    operations = {o["name"]: o for o in result["operations"]}
    for tier, key in ((local, "local_bytes"), (remote, "remote_bytes")):
        assert tier["stored_bytes"] == sum(o[key] for o in operations.values()) <= tier["capacity_bytes"]
        assert close(tier["step_bytes"], tier["step_weight_bytes"] + tier["step_kv_bytes"])
        assert close(tier["step_at_least_ms"], tier["step_bytes"] / tier["read_bytes_per_s"] * 1e3)
    for o in operations.values():
        stored = o["local_bytes"] + o["remote_bytes"]
        assert stored % (o["count"] * o["tile_bytes"]) == o["local_bytes"] % o["tile_bytes"] == 0
        # No operation is faster than its bytes spread evenly over layers, or than its arithmetic.
        seconds = max(o["step_bytes"] * o[key] / stored / tier["read_bytes_per_s"]
                      for tier, key in ((local, "local_bytes"), (remote, "remote_bytes")))
        assert o["at_least_ms"] >= max(seconds * 1e3, o["compute_ms"]) * (1 - 1e-6)
        if o["step_bytes"] == 0:
            assert o["name"] == "KV in reserve" and o["at_least_ms"] == 0 and o["bound"] == "nothing"
            continue
        assert close(o["read_bytes_per_s"], o["step_bytes"] / o["at_least_ms"] * 1e3)
        assert o["bound"] in ("hbm", remote["name"], "compute")
    for pinned in ("norms, biases", "KV in reserve") + (() if result["kv_pool_bytes"] else ("attention KV",)):
        assert operations[pinned]["remote_bytes"] == 0
    floor = result["floor_per_step_ms"]
    assert close(floor, sum(o["at_least_ms"] for o in operations.values()))
    assert result["relaxed_floor_per_step_ms"] * (1 - 1e-6) <= floor
    assert floor <= result["relaxed_floor_per_step_ms"] + result["tile_error_at_most_ms"] * (1 + 1e-6)
    assert floor >= max(t["step_at_least_ms"] for t in result["tiers"]) * (1 - 1e-6)
    assert close(result["decode_tokens_per_s"], result["batch_sequences"] / floor * 1e3)
    assert close(result["step_read_bytes_per_s"], (local["step_bytes"] + remote["step_bytes"]) / floor * 1e3)
    usable = int(result["hbm_size_bytes"] * result["gpu_memory_utilization"])
    staging = result["prefill_staging_bytes"] + result["decode_staging_bytes"]
    assert result["decode_staging_bytes"] <= 512 * 2**20
    assert abs(local["capacity_bytes"] - (usable - result["workspace_bytes"] - staging)) <= 1
    assert ("copied through" in text) == (staging > 0)
    # People read the same figures, and that it is a floor.
    assert f"{floor:.4f}" in text and f"{result['decode_tokens_per_s']:.2f}" in text and "A floor, not a time" in text
    assert f"<- bound by {result['floor_bound']}" in text
    check_prediction(result, text)
    return operations


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("model", MODELS, ids=lambda p: p.name)
def test_every_model_on_every_machine(tmp_path, model, machine):
    result, text = plan(tmp_path, model, "--machine", machine, "--plan-batch", 4, "--plan-context", 512)
    operations = check(result, text)
    config = json.loads((model / "config.json").read_text())
    hbm, hbm_gib, link, link_gbps, link_gib = MACHINES[machine]
    assert [t["read_bytes_per_s"] / 1e9 for t in result["tiers"]] == pytest.approx([hbm, link_gbps])
    assert (result["tiers"][1]["name"], result["tiers"][1]["capacity_bytes"]) == (link, link_gib * 2**30)
    assert result["hbm_size_bytes"] == hbm_gib * 2**30
    assert (result["machine"], result["batch_sequences"], result["context_tokens"]) == (machine, 4, 512)
    assert result["architecture"] == config["architectures"][0] and result["weight_dtype"] == config["torch_dtype"]
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    assert operations["down"]["count"] == layers
    inner = config.get("intermediate_size") or config["ffn_dim"]
    assert operations["down"]["step_bytes"] == 2 * layers * hidden * inner
    heads = config.get("num_key_value_heads", config["num_attention_heads"])
    width = config.get("head_dim", hidden // config["num_attention_heads"])
    assert operations["attention KV"]["step_bytes"] == 4 * 512 * layers * 2 * 2 * heads * width


def test_bytes_of_8b(tmp_path):
    result, text = plan(tmp_path, LLAMA_8B, "--machine", "h200-nvlink-peer")
    operations = check(result, text)
    assert list(operations) == ["embedding", "qkv", "o", "gate-up", "down", "head", "norms, biases", "attention KV", "KV in reserve"]
    weights = 32 * (6144 * 4096 + 4096 * 4096 + 3 * 14336 * 4096) + 128256 * 4096
    read = sum(t["step_weight_bytes"] for t in result["tiers"])
    assert read == pytest.approx(2 * weights + 2 * 4096 + 4 * 65 * 4096)
    # Reading both memories beats HBM alone, by no more than their sum allows.
    hbm, _, _, link, _ = MACHINES["h200-nvlink-peer"]
    alone = sum(t["step_bytes"] for t in result["tiers"]) / (hbm * 1e9) * 1e3
    assert alone * hbm / (hbm + link) < result["floor_per_step_ms"] < alone
    assert 0.05 < operations["gate-up"]["remote_bytes"] / 7516192768 < link / (hbm + link)


def test_what_does_not_fit_goes_out(tmp_path):
    result, text = plan(tmp_path, LLAMA_70B, "--plan-batch", 8)
    operations = check(result, text)
    local, remote = result["tiers"]
    assert result["floor_bound"] == "host" and local["capacity_bytes"] - local["stored_bytes"] < 8e6
    assert operations["embedding"]["remote_bytes"] == 128256 // 64 * 64 * 8192 * 2  # a step reads next to none of it
    assert result["floor_per_step_ms"] < 1.01 * result["relaxed_floor_per_step_ms"]
    # A faster link or more HBM is never slower.
    last = math.inf
    for size in (80, 100, 120, 141, 180, 250):
        more, text = plan(tmp_path, LLAMA_70B, "--plan-batch", 8, "--hbm-size", f"{size}GB")
        check(more, text)
        assert more["relaxed_floor_per_step_ms"] <= last
        last = more["relaxed_floor_per_step_ms"]
    assert last < 35


def test_own_figures_and_compute(tmp_path):
    result, text = plan(tmp_path, LLAMA_8B, "--hbm-gbps", 2000, "--link-gbps", 100, "--hbm-size", "80GiB", "--link-size",
                        "40GiB", "--tflops", 10, "--plan-batch", 64, "--plan-context", 128,
                        "--gpu-memory-utilization", 0.5)
    operations = check(result, text)
    assert operations["gate-up"]["bound"] == result["floor_bound"] == "compute"
    assert operations["gate-up"]["compute_ms"] == pytest.approx(2 * 64 * 32 * 2 * 14336 * 4096 / 10e12 * 1e3)
    assert result["hbm_size_bytes"] == 80 * 2**30 and result["gpu_memory_utilization"] == 0.5
    assert result["tiers"][1]["capacity_bytes"] == 40 * 2**30 and result["flops_per_s"] == 1e13
    assert result["workspace_bytes"] > 512 * 2**20


def test_what_prompts_are_copied_through(tmp_path):
    """It is as much as serve sets aside: a layer and a half of what lies outside, and slack; where it was asked for."""
    layers = json.loads((LLAMA_70B / "config.json").read_text())["num_hidden_layers"]
    auto, text = plan(tmp_path, LLAMA_70B, "--plan-batch", 8)
    check(auto, text)
    remote = auto["tiers"][1]["stored_bytes"]
    assert -1 <= auto["prefill_staging_bytes"] - (1.5 * remote / layers + 2**24) < 1e8
    for flags, staging in ((["--prefill-staging-bytes", "3GiB"], 3 * 2**30), (["--prefill-staging-bytes", 0], 0),
                           (["--max-num-batched-tokens", 256], 0)):
        asked, text = plan(tmp_path, LLAMA_70B, "--plan-batch", 8, *flags)
        check(asked, text)
        assert asked["prefill_staging_bytes"] == staging
        if "--max-num-batched-tokens" not in flags:  # what is set aside has made way in HBM
            moved = asked["tiers"][1]["stored_bytes"] - remote
            ring = asked["decode_staging_bytes"] - auto["decode_staging_bytes"]
            assert moved == pytest.approx(staging + ring - auto["prefill_staging_bytes"], abs=2e7)
    # All of a small model in HBM: nothing is copied.
    result, text = plan(tmp_path, LLAMA_8B, "--link-gbps", 0.001)
    check(result, text)
    assert result["tiers"][1]["stored_bytes"] == 0 == result["prefill_staging_bytes"]


def test_weights_and_kv(tmp_path):
    """With --kv-remote both leave, as whole pages and whole tiles, and the step is shorter than with weights alone."""
    common = ["--machine", "h200-nvlink-peer", "--hbm-size", "24GiB", "--plan-batch", 64, "--plan-context", 2048]
    alone, text = plan(tmp_path, LLAMA_8B, *common)
    check(alone, text)
    both, text = plan(tmp_path, LLAMA_8B, *common, "--kv-remote", "peer:1:64GiB")
    operations = check(both, text)
    kv, down = operations["attention KV"], operations["down"]
    page = 2 * 32 * 8 * 64 * 128 * 2
    assert kv["tile_bytes"] == page and kv["remote_bytes"] % page == 0
    assert kv["local_bytes"] + kv["remote_bytes"] == 64 * 32 * page and operations["KV in reserve"]["local_bytes"] == 64 * page
    share = kv["remote_bytes"] / (kv["local_bytes"] + kv["remote_bytes"])
    assert share == pytest.approx(down["remote_bytes"] / (down["local_bytes"] + down["remote_bytes"]), abs=0.02) and share > 0.2
    assert both["tiers"][1]["step_kv_bytes"] == pytest.approx(kv["remote_bytes"])
    assert both["floor_per_step_ms"] < 0.95 * alone["floor_per_step_ms"]
    assert both["predicted_per_step_ms"] < 0.95 * alone["predicted_per_step_ms"]
    assert f"KV may leave, up to 64.00 GiB; {100 * share:.1f} %" in text
    # Where it fits, up to the free fraction of either: no byte of the link is idle, and the step is shorter.
    fits, text = plan(tmp_path, LLAMA_8B, "--machine", "h200-nvlink-peer", "--plan-batch", 64, "--kv-remote", "peer:1:20GiB")
    check(fits, text)
    kv = check(fits, text)["attention KV"]
    assert kv["remote_bytes"] / (kv["local_bytes"] + kv["remote_bytes"]) == pytest.approx(377 / 5007, abs=1e-3)


def test_what_decode_steps_are_copied_through(tmp_path):
    """It is what serve sets aside for a ring: two layers' part of what lies outside, at most 512 MiB."""
    for flags, most in (([], 512 * 2**20), (["--offload-staging-bytes", "0"], 0), (["--offload-staging-bytes", "96MiB"], 96 * 2**20)):
        result, text = plan(tmp_path, LLAMA_70B, "--plan-batch", 8, *flags)
        check(result, text)
        two_layers = 2 * (result["tiers"][1]["stored_bytes"] / 80 + 2**24)
        assert result["decode_staging_bytes"] == pytest.approx(min(two_layers, most), abs=2e6)
    assert run("plan", LLAMA_70B, "--offload-staging-bytes", "much").returncode == 1


@pytest.mark.parametrize("flags,words", [
    (["--machine", "tpu"], "--machine must be one of"),
    (["--plan-batch", 4097], "--plan-batch must be between 0 and 4096"),
    (["--plan-context", -1], "--plan-context must be between"),
    (["--hbm-gbps", -1], "--hbm-gbps must be between"),
    (["--offload", 0.5], "--offload is not a flag of dakd plan"),
    (["--batch", 1], "--batch is not a flag of dakd plan"),
])
def test_refused_flags(flags, words):
    done = run("plan", LLAMA_8B, *flags)
    assert done.returncode == 2 and words in done.stdout, done.stdout


@pytest.mark.parametrize("flags,words", [
    (["--plan-context", 200000], "more than the 131072 positions this model was made for"),
    (["--hbm-size", "8GiB", "--link-size", "4GiB"], "all tiers hold"),
    (["--plan-batch", 64, "--plan-context", 65536], "what must lie in hbm (KV, norms, biases) needs"),
    (["--plan-batch", 64, "--plan-context", 65536], "lower --plan-batch or --plan-context"),
    (["--hbm-size", "256MiB"], "to work in, and 230.40 MiB of the GPU's memory may be used"),
    (["--kv-remote", "peer:1:1GiB"], "--kv-remote peer:1:1GiB: the remote tier of h200-pcie is host"),
    (["--kv-remote", "host:600GiB"], "--kv-remote asks for 600.00 GiB of host, which has 512.00 GiB"),
    (["--prefill-staging-bytes", "much"], "--prefill-staging-bytes: 'much' is neither auto nor a size"),
    (["--json", "/nonexistent/x"], "--json /nonexistent/x: No such file"),
])
def test_refused_plans(flags, words):
    done = run("plan", LLAMA_8B, *flags)
    assert done.returncode == 1 and words in done.stdout, done.stdout
    assert "floor of a step" not in done.stdout


def test_refused_models(tmp_path):
    done = run("plan", tmp_path)
    assert done.returncode == 1 and "config.json" in done.stdout
    config = json.loads((LLAMA_8B / "config.json").read_text())
    del config["torch_dtype"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = run("plan", tmp_path)
    assert done.returncode == 1 and "names no type" in done.stdout and "--dtype bfloat16" in done.stdout
    assert run("plan", tmp_path, "--dtype", "bfloat16").returncode == 0


def test_steps_too_large_to_predict(tmp_path):
    result, text = plan(tmp_path, LLAMA_8B, "--plan-batch", 513, "--plan-context", 64)
    assert "predicted_per_step_ms" not in result and "nothing: steps of more than 512 sequences" in text
    result, _ = plan(tmp_path, LLAMA_8B, "--plan-batch", 512, "--plan-context", 64)
    assert result["predicted_per_step_ms"] > result["floor_per_step_ms"]


def test_help():
    shown = run("plan", "--help")
    assert shown.returncode == 0 and "dakd plan MODEL_DIR" in shown.stdout and "--machine" in shown.stdout
    # Its table is the planner's (test_every_model_on_every_machine); the flag knows the same names.
    assert len(MACHINES) >= 4 and f"--machine {'|'.join(MACHINES)}" in shown.stdout
    assert "--machine" not in run("serve", "--help").stdout and "plan" in run("--help").stdout
    assert (ROOT / "README.md").read_text().count("dakd plan")
