"""`dakd bench --compare`: a row for each configuration, the same in the table, CSV, JSON and plots; what does not fit is
a row that says so; lists that make no comparison are refused with a sentence.  No figure is held against a limit."""

import csv
import json
import re
import subprocess
import xml.etree.ElementTree as ElementTree

import pytest

from daemon import DAKD, ROOT, environment, run
from test_bench import TINY

TEXT = "{http://www.w3.org/2000/svg}text"
UNBOUNDED = ["--compare-seconds", 3600]  # as many steps as --output-len says, on however busy a machine


@pytest.fixture
def tiny(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    return folder


def compare(model, *flags, batch="1,3", answer=20):
    return run("bench", model, "--load-format", "dummy", "--compare", "--threads", 1, "--log-level", "warn", "--batch", batch,
               "--input-len", 6, "--output-len", answer, *([] if "--remote" in flags else ["--remote", "host:64MiB"]), *flags)


def files(tmp_path):
    return ["--csv", tmp_path / "c.csv", "--json", tmp_path / "c.json", "--svg", tmp_path / "plot"]


def read(tmp_path):
    with open(tmp_path / "c.csv", newline="") as lines:
        rows = list(csv.DictReader(lines))
    return rows, json.loads((tmp_path / "c.json").read_text())


def test_every_configuration(tmp_path, tiny):
    done = compare(tiny, "--compare-modes", "direct", "--compare-offload", "1,0,free,0.5", "--compare-placement", "even,auto",
                   *UNBOUNDED, *files(tmp_path))
    assert done.returncode == 0, done.stdout
    assert not list(tmp_path.glob("*.new"))
    rows, result = read(tmp_path)
    free = result["free_fraction_ratio"]
    hbm, link = result["hbm_read_bytes_per_s"], result["link_read_bytes_per_s"]
    assert free == pytest.approx(link / (link + hbm), rel=1e-9) and result["copy_engine_bytes_per_s"] == 0
    shares = sorted([0, free, 0.5, 1])
    expected = [("even", s, b) for s in shares for b in (1, 3)] + [("auto", s, b) for s in shares[1:] for b in (1, 3)]
    found = [(r["placement"], r["offload_ratio"], r["batch_sequences"]) for r in result["rows"]]
    assert found == [(p, pytest.approx(s, rel=1e-6), b) for p, s, b in expected]
    for row, line in zip(result["rows"], rows, strict=True):
        assert "missing" not in row and line["missing"] == ""
        assert row["mode"] == line["mode"] == ("direct" if row["offload_ratio"] else "hbm")
        assert row["is_free_fraction"] == (line["is_free_fraction"] == "1") == (row["offload_ratio"] == pytest.approx(free))
        assert row["steady_step_count"] >= 8 and row["tpot_ms"] > 0
        bytes_read = row["step_hbm_bytes"] + row["step_link_bytes"]
        assert row["effective_bytes_per_s"] == pytest.approx(bytes_read / row["tpot_ms"] * 1e3, rel=1e-6)
        assert row["model_bytes_per_s"] == pytest.approx(bytes_read / row["model_floor_ms"] * 1e3, rel=1e-6)
        # Operations wait for each other: their floor is none below that of the bytes, but for the planner's whole contexts.
        assert row["model_floor_ms"] >= max(row["hbm_at_least_ms"], row["link_at_least_ms"]) * 0.97
        assert row["link_at_least_ms"] == pytest.approx(row["step_link_bytes"] / link * 1e3, rel=1e-6)
        for key in ("tpot_ms", "step_hbm_bytes", "model_bytes_per_s"):
            assert float(line[key]) == pytest.approx(row[key], rel=1e-6)
        assert (row["step_link_bytes"] > 0) == (row["offload_ratio"] > 0)
        if row["placement"] == "even":
            assert row["placed_ratio"] == pytest.approx(row["offload_ratio"], abs=0.05)
        # People read the same figures: the line of the table, and the summary's.
        star = re.escape("*") if row["is_free_fraction"] else " "
        begin = rf"^{row['placement']} +{row['offload_ratio']:.4f}{star} +{row['batch_sequences']} "
        assert len(re.findall(begin, done.stdout, re.M)) == 2
        shown = re.search(begin + rf"{row['mode']} +\d+ +([\d.]+) ", done.stdout, re.M)
        assert shown and float(shown[1]) == pytest.approx(row["tpot_ms"], abs=0.51e-4), done.stdout


def test_plots(tmp_path, tiny):
    done = compare(tiny, "--compare-offload", "0,0.5", *files(tmp_path))
    assert done.returncode == 0, done.stdout
    texts = {what: [t.text for t in ElementTree.parse(tmp_path / f"plot-{what}.svg").iter(TEXT)]
             for what in ("bandwidth", "tpot", "window")}
    for batch in (1, 3):
        assert any(f"batch {batch}, even placement" in t for t in texts["bandwidth"])
    assert texts["bandwidth"].count("direct") == 2 and texts["bandwidth"].count("EB(x), the planner's floor") == 2
    assert any("50 % of the weights in host" in t for t in texts["tpot"])
    assert texts["window"] == ["No link was measured."]


def test_what_does_not_fit(tmp_path, tiny):
    """Weights beyond their tier, and sequences beyond the memory for their KV; the others are measured."""
    done = compare(tiny, "--compare-offload", "0,0.2,1", "--remote", "host:256KiB", *files(tmp_path))
    assert done.returncode == 0, done.stdout
    rows, result = read(tmp_path)
    # All the modes there are on a CPU.
    assert [row["mode"] for row in rows] == ["hbm"] * 2 + ["direct"] * 2 + ["auto"] * 2 + ["direct", "auto"] * 2
    for row, line in zip(result["rows"], rows, strict=True):
        fits = row["offload_ratio"] < 1
        assert ("tpot_ms" in row) == fits == ("missing" not in row) == (line["tpot_ms"] != "")
        if not fits:
            assert row["missing"] == line["missing"] and row["missing"] in done.stdout
            assert row["missing"].startswith("does not fit: ") and "--remote names 256.00 KiB" in row["missing"]
    # Weights of 769 KiB; a sequence of 30 tokens takes two pages with its reserve.
    done = compare(tiny, "--compare-offload", "0", "--hbm-size", "2000KiB", *files(tmp_path), batch="64,1,8", answer=24)
    assert done.returncode == 0, done.stdout
    _, result = read(tmp_path)
    assert [(r["batch_sequences"], "missing" in r) for r in result["rows"]] == [(64, True), (1, False), (8, False)]
    assert "KV" in result["rows"][0]["missing"]


def test_one_loading_or_many(tmp_path, tiny):
    """Where both memories hold all weights a share is a choice of addresses: of the same bytes as a loading of each share."""
    rows = {}
    for tier in ("host:64MiB", "host:620KiB"):  # of weights of 769 KiB
        done = compare(tiny, "--compare-offload", "0,free,0.25,0.75", "--compare-placement", "even,auto", "--remote", tier,
                       *files(tmp_path), batch="2", answer=12)
        assert done.returncode == 0, done.stdout
        assert ("all shares of one loading" in done.stdout) == (tier == "host:64MiB")
        _, result = read(tmp_path)
        rows[tier] = {(r["placement"], f"{r['offload_ratio']:.2g}", r["mode"]): [
            r[key] for key in ("placed_ratio", "step_hbm_bytes", "step_link_bytes")]
            for r in result["rows"] if not r["is_free_fraction"]}
        assert result["loading_s"] > 0 and result["not_measured_for_want_of_time_count"] == 0
    one, many = rows.values()
    assert one == many and len(one) == 1 + 2 * 2 * 2


def test_a_context_that_is_given(tmp_path, tiny):
    done = compare(tiny, "--compare-offload", "0.5", "--given-context", "--input-len", 300, *UNBOUNDED, *files(tmp_path), answer=12)
    assert done.returncode == 0 and "the prompts' KV is random and was not computed" in done.stdout, done.stdout
    _, result = read(tmp_path)
    assert result["given_context"]
    for row in result["rows"]:
        assert row["context_mean_tokens"] == 300 + (2 + 12) / 2 - 1 and row["steady_step_count"] == 11


def test_a_limit_of_time(tmp_path, tiny):
    """What was not begun is named, in rows and on the screen; files are whole; the exit status tells."""
    done = compare(tiny, "--compare-offload", "0,0.5", "--compare-limit-seconds", 0.01, *files(tmp_path))
    assert done.returncode == 3, done.stdout
    rows, result = read(tmp_path)
    assert len(rows) == 2 + 4 == result["not_measured_for_want_of_time_count"]
    assert all(r["missing"] == "not measured: --compare-limit-seconds 0.01 were over" for r in rows)
    assert done.stdout.count("--compare-limit-seconds 0.01 were over") == 6 and "6 of them not measured" in done.stdout
    assert not list(tmp_path.glob("*.new")) and (tmp_path / "plot-tpot.svg").exists()
    done = compare(tiny, "--compare-offload", "0", "--compare-limit-seconds", 600, *files(tmp_path))
    assert done.returncode == 0 and re.search(r"^took \d+\.\d s: probing .* 2 configurations$", done.stdout, re.M), done.stdout


def test_rows_are_written_as_they_are_measured(tmp_path, tiny):
    """A comparison that is killed leaves the rows that it had."""
    command = [DAKD, "bench", tiny, "--load-format", "dummy", "--compare", "--threads", 1, "--log-level", "warn", "--batch", "2",
               "--input-len", 6, "--output-len", 400, "--remote", "host:64MiB", "--compare-offload", "0,0.5,1",
               *UNBOUNDED, *files(tmp_path)]
    with subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True, cwd=ROOT,
                          env=environment()) as process:
        for line in process.stdout:
            if re.match("even +0.5000 .* auto ", line):
                break
        else:
            pytest.fail("it ended by itself, with no such row")
        process.kill()
        process.stdout.read()
    rows, result = read(tmp_path)
    modes = [r["mode"] for r in rows]
    assert modes[:2] == ["hbm", "direct"]
    # A row is printed, then written as CSV, then as JSON: it may be killed before either.
    assert [r["mode"] for r in result["rows"]] in (modes, modes[:-1])


def test_long_steps_are_fewer(tmp_path, tiny):
    """--output-len is the most; the time of a configuration bounds it, and what a TPOT needs bounds that."""
    done = compare(tiny, "--compare-offload", "0", "--compare-seconds", 0.01, *files(tmp_path), batch="16", answer=400)
    assert done.returncode == 0, done.stdout
    _, result = read(tmp_path)
    assert 3 <= result["rows"][0]["steady_step_count"] < 399  # of slow steps three will do (bench_stats.h)
    done = compare(tiny, "--compare-offload", "0", *UNBOUNDED, *files(tmp_path), batch="2", answer=100)
    _, result = read(tmp_path)
    assert result["rows"][0]["steady_step_count"] == 99


@pytest.mark.parametrize("flags,words", [
    (["--compare-modes", "fast"], "--compare-modes 'fast' is not a list of some of "),
    (["--compare-modes", "direct,direct"], "--compare-modes names direct twice"),
    (["--compare-offload", "0,1.5"], "--compare-offload '0,1.5' is not a list of shares"),
    (["--compare-offload", "all"], "or the word free"),
    (["--compare-placement", "greedy"], "--compare-placement 'greedy' is not a list of some of even, auto"),
    (["--remote", "peer:1:1MiB,host:1MiB"], "--compare wants one tier, and --remote names 2"),
    (["--batch", "1,x"], "--batch '1,x' is not a list"),
    (["--output-len", 9], "--output-len 9 is too few: with --batch 3, prompts take so many steps that a TPOT wants 11"),
    (["--offload", 0.5], "--offload says what --compare varies"),
    (["--placement", "even"], "--placement says what --compare varies"),
    (["--control-sweep", "off"], "--control-sweep says what --compare varies"),
    (["--kv-remote", "host:1MiB"], "--kv-remote says what --compare varies or cannot measure"),
    (["--max-num-batched-tokens", 2], "cannot decode together in steps of --max-num-batched-tokens 2"),
])
def test_refused(tiny, flags, words):
    done = compare(tiny, *flags)
    assert done.returncode == 2 and words in done.stdout, done.stdout


@pytest.mark.parametrize("mode", ["prefetch", "uva"])
def test_modes_of_a_gpu(tiny, mode):
    done = compare(tiny, "--compare-modes", f"direct,{mode}", "--device", "cpu")
    assert done.returncode == 1 and "TPOT" not in done.stdout
    assert f"--offload-mode {mode} is a way for a GPU to read remote weights" in done.stdout, done.stdout


def test_auto_beside_the_others(tmp_path, tiny):
    done = compare(tiny, "--compare-modes", "auto,direct", "--compare-offload", "0,0.5", *files(tmp_path), batch="2")
    assert done.returncode == 0, done.stdout
    _, result = read(tmp_path)
    time = {row["mode"]: row["tpot_ms"] for row in result["rows"]}
    assert list(time) == ["hbm", "auto", "direct"]
    line = re.search(r"^even +0\.5000 +2 +([\d.]+) +([\d.]+) +([\d.]+) +auto ", done.stdout, re.M)
    assert line, done.stdout
    assert float(line[1]) == pytest.approx(time["auto"], abs=0.51e-4) and float(line[2]) == pytest.approx(time["direct"], abs=0.51e-4)
    assert float(line[3]) == pytest.approx(time["auto"] / time["direct"], abs=0.51e-4)
    assert result["auto_over_best_other_worst_ratio"] == pytest.approx(time["auto"] / time["direct"], rel=1e-5)
    assert "auto over the best other mode, time" in done.stdout


def test_wrong_paths_cost_nothing(tmp_path, tiny):
    for flag, path in (("--csv", tmp_path / "no" / "c.csv"), ("--json", tmp_path), ("--svg", tmp_path / "no" / "p")):
        done = compare(tiny, flag, path)
        assert done.returncode == 1 and re.search(rf"{flag} .*{tmp_path.name}", done.stdout), done.stdout
        assert "TPOT" not in done.stdout


def test_flags_of_compare_alone(tmp_path, tiny):
    for flags in (["--csv", tmp_path / "x"], ["--compare-limit-seconds", 60]):
        done = run("bench", tiny, "--batch", 1, "--input-len", 4, "--output-len", 12, *flags)
        assert done.returncode == 2 and "are of --compare" in done.stdout
