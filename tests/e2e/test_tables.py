"""scripts/tables.py makes the tables of what was measured, and leaves out what was not; scripts/reproduce.sh refuses a part
that there is not, before it builds or measures anything."""

import json
import re
import shutil
import subprocess
import sys

from daemon import ROOT

RESULTS = ROOT / "tests" / "gpu" / "results"


def tables(folder):
    return subprocess.run([sys.executable, ROOT / "scripts" / "tables.py", folder], capture_output=True, text=True)


def cells(text, title, first):
    """The row that begins with `first` in the table under a title."""
    part = text[text.index(title):]
    row = re.search(rf"^\| {re.escape(first)} \|(.*)\|$", part, re.M)
    assert row, part
    return [cell.strip() for cell in row[1].split("|")]


def row(mode, share, batch, tpot, **more):
    return {"placement": "even", "mode": mode, "offload_ratio": share, "is_free_fraction": False, "batch_sequences": batch,
            "tpot_ms": tpot} | more


def test_of_results(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    for path in RESULTS.glob("*-6886f1d-bench-8b-*.json"):
        shutil.copy(path, results)
    for what in ("bench-hbm", "gemm-bench"):
        (name,) = RESULTS.glob(f"*-6886f1d-{what}.txt")
        shutil.copy(name, tmp_path / {"bench-hbm": "hbm.txt", "gemm-bench": "kernels.txt"}[what])
    done = tables(tmp_path)
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert "- commit: 6886f1d7df34" in text and "NVIDIA H200, 580.159.04" in text and "several commits" not in text
    (path,) = RESULTS.glob("*-6886f1d-bench-8b-pcie10.json")
    (base,) = RESULTS.glob("*-6886f1d-bench-8b-pcie0.json")
    ten, none = json.loads(path.read_text()), json.loads(base.read_text())
    shares = re.search(r"^\| PCIe \|(.*)\|$", text, re.M)[1].split("|")
    at = [share.strip() for share in shares].index("10 %")
    for r, b in zip(ten, none, strict=True):
        cell = cells(text, "over PCIe", f"batch {r['batch_sequences']}")[at]
        assert cell == (f"{r['floor_over_tpot_ratio']:.2f} "
                        f"({r['tpot_steady_median_ms'] / b['tpot_steady_median_ms']:.3f} ×)")
    assert len(cells(text, "## The products of a step", "floor / time")) == 7
    assert "## Prompts" not in text and "## Modes" not in text and "## Plots" not in text


def test_of_a_comparison(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    run = {"model": "config/models/OPT-30B", "tier": "host", "hbm_read_bytes_per_s": 4.6e12, "link_read_bytes_per_s": 51e9,
           "copy_engine_bytes_per_s": 55e9, "free_fraction_ratio": 0.011, "input_tokens_per_sequence": 32,
           "hf_overrides": '{"num_hidden_layers": 6}', "auto_over_best_other_median_ratio": 0.95, "auto_over_best_other_worst_ratio": 1.01,
           "auto_effective_over_model_median_ratio": 0.97, "auto_effective_over_model_worst_ratio": 0.5,
           "auto_effective_over_model_count": 33, "not_measured_for_want_of_time_count": 2,
           "rows": [row("hbm", 0, 8, 4.0), row("direct", 0.1, 8, 30.0), row("prefetch", 0.1, 8, 33.0),
                    row("auto", 0.1, 8, 28.5, link_over_copy_engine_ratio=0.97, effective_over_model_ratio=0.99),
                    {k: v for k, v in row("direct", 0.1, 512, 0).items() if k != "tpot_ms"} | {"missing": "does not fit"}]}
    (results / "2026-11-21-h200-0123abc-compare-30b-pcie.json").write_text(json.dumps(run))
    (results / "2026-11-21-h200-0123abc-compare-30b-pcie-tpot.svg").write_text("<svg/>")
    done = tables(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "## Modes: OPT-30B over host" in done.stdout and "- results/2026-11-21-h200-0123abc-compare-30b-pcie-tpot.svg" in done.stdout
    assert ("| OPT-30B, 6 layers | host | 32 | 0.950, 1.010 | - | 0.970, 0.500 | - | 33 (2 rows missing) |") in done.stdout
    assert "| even | 0 % | 8 | 4.00 | 4.00 | 4.00 | - | - | - |" in done.stdout
    assert "| even | 10 % | 8 | 30.00 | 33.00 | 28.50 | 0.950 | 0.970 | 0.990 |" in done.stdout
    assert "| even | 10 % | 512 | - | - | - | - | - | - |" in done.stdout


def test_of_parts(tmp_path):
    (tmp_path / "results").mkdir()
    one = lambda without, tpot, prompt: {"batch_sequences": 32, "without": without, "tpot_steady_median_ms": tpot, "prompt_ms": prompt}
    (tmp_path / "results" / "2026-11-21-h200-0123abc-bench-8b-parts-pcie-even.json").write_text(json.dumps(
        [one("", 4.0, 50.0), one("split-k", 5.0, 50.0), one("multicast", 4.0, 60.0)]))
    text = tables(tmp_path).stdout
    assert "| split-k | pcie-even | 32 | 1.250 |" in text and "| multicast | pcie-even | 32 | 1.200 |" in text


def test_of_ways_to_place_and_to_bound(tmp_path):
    (tmp_path / "results").mkdir()
    one = lambda control, tpot: {"batch_sequences": 1, "without": "", "congestion_control": control, "tpot_steady_median_ms": tpot,
                                 "offload_ratio": 0.1}
    for what, runs in (("parts-peer-control", [one("static", 5.0), one("off", 5.5), one("adaptive", 5.1)]),
                       ("greedy-pcie10-even", one("static", 6.0)), ("greedy-pcie10-planned", one("static", 5.0)),
                       ("greedy-pcie10-even-as-read", one("static", 5.2))):
        (tmp_path / "results" / f"2026-11-21-h200-0123abc-bench-8b-{what}.json").write_text(json.dumps(runs))
    text = tables(tmp_path).stdout
    lines = ("windows (none instead) | peer, 10 % | 1 | 1.100", "adaptive windows (static ones instead) | peer, 10 % | 1 | 0.980",
             "planned placement (every weight alike instead) | pcie, 10 % | 1 | 1.200",
             "planned placement (the same, as many bytes read) | pcie, 10 % | 1 | 1.040")
    for line in lines:
        assert f"| {line} |" in text
    alone = subprocess.run([sys.executable, ROOT / "scripts" / "tables.py", "--parts", tmp_path], capture_output=True, text=True)
    assert alone.returncode == 0 and alone.stdout in text and all(line in alone.stdout for line in lines)


def test_of_kv_in_fp8(tmp_path):
    (tmp_path / "results").mkdir()
    for dtype, tpots in (("bfloat16", (2.5, 6.0)), ("fp8", (2.4, 4.5))):
        runs = [{"batch_sequences": batch, "input_tokens_per_sequence": 4096, "tpot_steady_median_ms": tpot, "floor_over_tpot_ratio": 0.8}
                for batch, tpot in zip((8, 64), tpots)]
        (tmp_path / "results" / f"2026-11-22-h200-0123abc-bench-8b-kv-{dtype}.json").write_text(json.dumps(runs))
    text = tables(tmp_path).stdout
    assert "| 8 × 4,096 | 2.50 ms (0.80) | 2.40 ms (0.80) | 0.960 |" in text
    assert "| 64 × 4,096 | 6.00 ms (0.80) | 4.50 ms (0.80) | 0.750 |" in text


def test_usage(tmp_path):
    assert tables(tmp_path / "no").returncode != 0
    done = subprocess.run(["sh", ROOT / "scripts" / "reproduce.sh", "--only", "hbm,weather"], capture_output=True, text=True)
    assert done.returncode == 2 and "there is no part 'weather'" in done.stderr
    done = subprocess.run(["sh", ROOT / "scripts" / "reproduce.sh", "--all"], capture_output=True, text=True)
    assert done.returncode == 2 and "scripts/reproduce.sh [--only PART" in done.stderr and "set -u" not in done.stderr
