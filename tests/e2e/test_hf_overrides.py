"""--hf-overrides: `plan`, `bench` and `serve` take the same sizes in place of config.json's and say so wherever a model is
named; what is no size is refused, and so are other sizes than a checkpoint has."""

import json

import pytest

from daemon import MODEL, ROOT, run

LLAMA_8B = ROOT / "config" / "models" / "Llama-3.1-8B"
SMALL = '{"num_hidden_layers": 3, "hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, ' \
        '"intermediate_size": 256, "vocab_size": 128256}'


def test_plan(tmp_path):
    results = {}
    for layers in (None, 8):
        flags = ["--hf-overrides", json.dumps({"num_hidden_layers": layers})] if layers else []
        done = run("plan", LLAMA_8B, "--json", tmp_path / "plan.json", *flags)
        assert done.returncode == 0, done.stdout
        results[layers] = json.loads((tmp_path / "plan.json").read_text())
        assert results[layers]["hf_overrides"] == (flags[1] if flags else "")
        assert (f'Llama-3.1-8B {flags[1]} (LlamaForCausalLM)' if flags else 'Llama-3.1-8B (LlamaForCausalLM)') in done.stdout
    whole, cut = ({o["name"]: o for o in results[layers]["operations"]} for layers in (None, 8))
    assert (whole["down"]["count"], cut["down"]["count"]) == (32, 8)
    for name in ("qkv", "o", "gate-up", "down"):
        assert cut[name]["step_bytes"] * 4 == whole[name]["step_bytes"]
    assert cut["head"]["step_bytes"] == whole["head"]["step_bytes"]


def test_bench(tmp_path):
    done = run("bench", LLAMA_8B, "--load-format", "dummy", "--hf-overrides", SMALL, "--batch", 2, "--input-len", 5, "--output-len", 12,
               "--threads", 1, "--log-level", "warn", "--json", tmp_path / "result.json")
    assert done.returncode == 0, done.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["hf_overrides"] == SMALL and f"Llama-3.1-8B {SMALL} (LlamaForCausalLM)" in done.stdout
    weights = 2 * (3 * (256 * 128 + 128 * 128 + 3 * 256 * 128) + 128256 * 128) + 4 * 7 * 128
    assert result["tiers"][0]["step_weight_bytes"] == weights + 2 * 2 * 128


def test_serve(start):
    daemon = start("--load-format", "dummy", "--hf-overrides", '{"num_hidden_layers": 1}', model=MODEL)
    assert daemon.completion(prompt="Hi", max_tokens=3, ignore_eos=True)["usage"]["completion_tokens"] == 3
    assert daemon.stop() == 0
    assert "1 layers" in daemon.log()


@pytest.mark.parametrize("command,model,overrides,words", [
    ("plan", LLAMA_8B, "8", "'8' is not a JSON object: write {\"num_hidden_layers\": 8}"),
    ("plan", LLAMA_8B, '{"num_layers": 8}', "'num_layers' is not one of the sizes that may be replaced: num_hidden_layers, "),
    ("plan", LLAMA_8B, '{"rope_scaling": {"factor": 2}}', "'rope_scaling' is not one of the sizes"),
    ("plan", LLAMA_8B, '{"num_hidden_layers": [8]}', "'num_hidden_layers' must be a number"),
    ("serve", MODEL, '{"num_hidden_layers": 1}', "add --load-format dummy, or leave it out"),
])
def test_refused(command, model, overrides, words):
    done = run(command, model, "--hf-overrides", overrides)
    assert done.returncode != 0 and words in done.stdout, done.stdout


def test_not_of_probe():
    done = run("probe", "--hf-overrides", "{}")
    assert done.returncode == 2 and "--hf-overrides is not a flag of dakd probe" in done.stdout
