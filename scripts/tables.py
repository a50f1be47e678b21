"""The tables of README.md, in Markdown, from what scripts/reproduce.sh measured.

    python3 scripts/tables.py FOLDER >FOLDER/tables.md
    python3 scripts/tables.py --parts FOLDER             what parts of dakd are worth, alone

FOLDER/results holds the JSON files of scripts/gpu.sh bench, FOLDER/PART.txt its reports.  Of several runs of the same
measurement the last counts.  What is not there makes no table; what is there of a table that is not whole is shown
with dashes.  Nothing but the standard library.
"""

import json
import re
import sys
from pathlib import Path

DASH = "-"


class Results:
    """Of a folder, by name: "hbm", "pcie10", "compare-8b-pcie"."""

    def __init__(self, folder):
        self.folder = folder
        self.runs = {}
        for path in sorted((folder / "results").glob("*.json"), key=lambda p: p.stat().st_mtime):
            match = re.fullmatch(r"\d{4}-\d\d-\d\d-[^-]+-[0-9a-f]+\+?-(?:bench-(?:8b-)?)?(.+)\.json", path.name)
            if match:
                self.runs[match[1]] = json.loads(path.read_text())

    def batches(self, name):
        """{sequences: result} of a run of `dakd bench`."""
        runs = self.runs.get(name, [])
        return {r["batch_sequences"]: r for r in (runs if isinstance(runs, list) else [runs])}

    def names(self, pattern):
        return [name for name in self.runs if re.fullmatch(pattern, name)]


def table(title, head, rows):
    """Markdown; nothing where no row has a figure."""
    if not any(cell not in (DASH, "") for row in rows for cell in row[1:]):
        return ""
    lines = [title, "", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n\n"


def figure(value, digits=2):
    return DASH if value is None else f"{value:,.{digits}f}"


# --- what was measured on what ------------------------------------------------------------------------------------

def head(results):
    """Commit, device, driver and date as the reports have them; all parts must agree but for the date."""
    found = {}
    for path in sorted(results.folder.glob("*.txt")):
        for key, value in re.findall(r"^(commit|date|device|machine): +(.*)$", path.read_text(errors="replace"), re.M):
            found.setdefault(key, [])
            if value not in found[key]:
                found[key].append(value)
    lines = ["# dakd, measured", ""]
    for key in ("commit", "device", "machine"):
        if key in found:
            lines.append(f"- {key}: {'; '.join(found[key])}")
    dates = sorted(found.get("date", []))
    if dates:
        lines.append(f"- date: {dates[0]}" + (f" to {dates[-1]}" if len(dates) > 1 else ""))
    if len(found.get("commit", [])) > 1:
        lines.append("- **parts of several commits: their figures are not of one program**")
    return "\n".join(lines) + "\n\n"


# --- whole steps ------------------------------------------------------------------------------------------------------

def steps(results):
    runs = {**results.batches("hbm"), **results.batches("hbm-batch128-context1024")}
    row = ["floor / time"]
    heads = [""]
    for batch, r in sorted(runs.items()):
        heads.append(f"batch {batch}, context {r['input_tokens_per_sequence']:.0f}")
        row.append(f"{r['floor_over_tpot_ratio']:.3f} ({r['tpot_steady_median_ms']:.2f} ms)")
    return table("## Whole decode steps, all in HBM", heads, [row])


def products(results):
    """Of the report of gpu_gemm --bench: a step's products in one graph."""
    path = results.folder / "kernels.txt"
    found = re.findall(r"^T +(\d+): [\d.]+ ms, floor/time ([\d.]+)(?:, cuBLAS .*cuBLAS/ours ([\d.]+))?",
                       path.read_text(errors="replace") if path.exists() else "", re.M)
    rows = [["floor / time"] + [share for _, share, _ in found], ["times cuBLAS's speed"] + [times or DASH for _, _, times in found]]
    return table("## The products of a step, in one graph", ["tokens"] + [tokens for tokens, _, _ in found], rows)


def share_of(name):
    return float(re.search(r"([\d.]+)$", name)[1])


def remote(results, link, title):
    """floor / TPOT, and TPOT over that of all in HBM."""
    names = sorted((n for n in results.names(link + r"[\d.]+") if share_of(n) > 0), key=share_of)
    base = results.batches(link + "0")
    rows = []
    for batch in sorted({b for n in names for b in results.batches(n)}):
        row = [f"batch {batch}"]
        for name in names:
            r = results.batches(name).get(batch)
            cell = figure(r and r["floor_over_tpot_ratio"])
            if r and batch in base:
                cell += f" ({r['tpot_steady_median_ms'] / base[batch]['tpot_steady_median_ms']:.3f} ×)"
            row.append(cell)
        rows.append(row)
    return table(f"## A share of the weights over {title}: floor / time (time over all in HBM)",
                 [title] + [f"{share_of(n):g} %" for n in names], rows)


def controls(results):
    """Of each case and batch: adaptive and off over the best static window."""
    rows = []
    for name in sorted(results.names("windows-.*")):
        runs = results.runs[name]
        for batch in sorted({r["batch_sequences"] for r in runs}):
            own = {r["congestion_control"]: r["tpot_steady_median_ms"] for r in runs if r["batch_sequences"] == batch}
            static = [ms for control, ms in own.items() if control not in ("off", "adaptive")]
            best = min(static, default=None)
            over = lambda control: best and own.get(control) and own[control] / best
            rows.append([name[len("windows-"):], str(batch), figure(best, 3), figure(over("adaptive"), 3),
                         figure(over("off"), 3)])
    return table("## Windows: time over that of the best static one",
                 ["case", "batch", "best static, ms", "adaptive", "no bound"], rows)


# --- prompts ------------------------------------------------------------------------------------------------------

def prompts(results):
    rows = []
    for name in sorted(results.names(r"prefill-\d+x\d+"), key=lambda n: [int(x) for x in re.findall(r"\d+", n)]):
        for batch, r in results.batches(name).items():
            rows.append([f"{batch} × {r['input_tokens_per_sequence']:,.0f}", figure(r["prefill_tokens_per_s"], 0),
                         figure(r.get("prefill_mfu_ratio")), figure(r["ttft_median_ms"], 0)])
    return table("## Prompts, all in HBM", ["prompts", "tokens/s", "of the probed peak (MFU)", "TTFT median, ms"], rows)


def remote_prompts(results):
    rows = []
    for name in results.names(r"(pcie|peer)-prompt\d+-[\d.]+"):
        link, tokens, share = re.fullmatch(r"(pcie|peer)-prompt(\d+)-([\d.]+)", name).groups()
        base = results.batches(f"{link}-prompt{tokens}-0")
        for batch, r in results.batches(name).items():
            if batch not in base or "prompt_link_floor_ms" not in r:
                continue
            larger = max(r["prompt_link_floor_ms"], base[batch]["prompt_ms"])
            crossed = r["tiers"][1]["prompt_step_counted_bytes"] / r["tiers"][1]["prompt_step_weight_bytes"]
            rows.append([link, f"{share} %", tokens, figure(r["prompt_ms"] / larger, 3), figure(crossed, 4)])
    return table("## Prompts of 8,192 tokens with remote weights",
                 ["link", "share", "tokens a step", "time / larger of all-HBM and link", "weights crossed, times"], rows)


def worth(results):
    """What is slower without a part of dakd: a step, or for multicast a prompt; with other windows, or placements."""
    rows = []
    for name in sorted(results.names(r"parts-(hbm|pcie-even|peer-even)")):
        runs = results.runs[name]
        kept = {r["batch_sequences"]: r for r in runs if not r["without"]}
        for r in runs:
            key = "prompt_ms" if r["without"] == "multicast" else "tpot_steady_median_ms"
            batch = r["batch_sequences"]
            if r["without"] and batch in kept:
                rows.append([r["without"], name[len("parts-"):], str(batch), figure(r[key] / kept[batch][key], 3)])
    for name in sorted(results.names(r"parts-(pcie|peer)-control")):
        by = {(r["batch_sequences"], r["congestion_control"]): r for r in results.runs[name]}
        for batch in sorted({batch for batch, _ in by}):
            ms = {control: by[batch, control]["tpot_steady_median_ms"] for control in ("static", "off", "adaptive")
                  if (batch, control) in by}
            where = f"{name[len('parts-'):-len('-control')]}, {100 * next(iter(by.values()))['offload_ratio']:.0f} %"
            if len(ms) == 3:
                rows += [["windows (none instead)", where, str(batch), figure(ms["off"] / ms["static"], 3)],
                         ["adaptive windows (static ones instead)", where, str(batch), figure(ms["static"] / ms["adaptive"], 3)]]
    for name in sorted(results.names(r"greedy-.*-planned")):
        planned, case = results.batches(name), name[len("greedy-"):-len("-planned")]
        where = re.sub(r"([0-9.]+)$", r", \1 %", case)
        for other, what in (("even", "every weight alike instead"), ("even-as-read", "the same, as many bytes read")):
            for batch, r in results.batches(f"greedy-{case}-{other}").items():
                if batch in planned:
                    rows.append([f"planned placement ({what})", where, str(batch),
                                 figure(r["tpot_steady_median_ms"] / planned[batch]["tpot_steady_median_ms"], 3)])
    return table("## Parts: time without over time with", ["part", "weights", "batch", "times"], rows)


# --- KV beyond HBM ------------------------------------------------------------------------------------------------

LINKS = {"peer": "NVLink", "pcie": "PCIe"}


def live(results):
    """Steps of sequences of which an eighth of the KV is in HBM."""
    rows = []
    for name in results.names(r"kv-(peer|pcie)-\d+x\d+"):
        for batch, r in results.batches(name).items():
            near, far = r["tiers"]
            rows.append([f"{batch} × {r['input_tokens_per_sequence']:,.0f} over {LINKS[name.split('-')[1]]}",
                         figure(near["step_kv_bytes"] / 1e9), figure(far["step_kv_bytes"] / 1e9),
                         figure(r["floor_per_step_ms"]), figure(r["tpot_steady_median_ms"]),
                         figure(1 / r["floor_over_tpot_ratio"], 3)])
    return table("## Live KV beyond HBM, read in place",
                 ["sequences", "KV read of HBM, GB", "over the link, GB", "floor, ms", "a step, ms", "step / floor"], rows)


def short(results):
    """A workload to its end, by what is done about KV that HBM has no room for."""
    rows = []
    for name in results.names(r"kv-short-\w+"):
        for r in results.runs[name]:
            shape = f"{r['batch_sequences']} × {r['input_tokens_per_sequence']:,} and {r['output_tokens_per_sequence']}"
            gb = lambda key: figure(r[key] / 1e9 if key in r else None)
            ms = lambda key: figure(r.get(key), 1)
            rows.append([f"{name[len('kv-short-'):]}, {shape}: {r['kv_when_short']}", figure(r.get("duration_s")),
                         figure(r.get("output_tokens_per_s"), 0), ms("ttft_max_ms"), ms("itl_max_ms"),
                         figure(r.get("recomputed_tokens"), 0), gb("kv_moved_back_bytes"), gb("kv_remote_read_bytes")])
    return table("## A workload with more live KV than HBM has room for, until all is done",
                 ["link, sequences, when short", "all done, s", "tokens/s", "longest wait for a first token, ms",
                  "longest pause, ms", "tokens computed again", "moved back, GB", "read in place, GB"], rows)


def opt(results):
    """OPT-30B's shape, six layers: the same bytes behind the link, as KV, as weights, or as planned."""
    rows = []
    for name in results.names(r"kv-opt-\w+-\d+-mix"):
        link, batch = name.split("-")[2:4]
        row = [f"{LINKS[link]}, batch {batch}"]
        for what in ("kv", "weights", "mix"):
            r = results.batches(f"{name[:-len('mix')]}{what}").get(int(batch))
            row.append(f"{r['tpot_steady_median_ms']:.2f} ms ({r['floor_over_tpot_ratio']:.2f})" if r else DASH)
        mix = results.batches(name)[int(batch)]
        far = mix["tiers"][1]
        rows.append([*row, f"{far['step_kv_bytes'] / 1e9:.2f} + {far['step_weight_bytes'] / 1e9:.2f}"])
    return table("## OPT-30B, 6 of 48 layers, contexts of 1,024: the same bytes over the link (floor / time)",
                 ["", "KV alone", "weights alone", "the planner's mix", "its KV + weights, GB a step"], rows)


def fp8(results):
    """Steps that read much KV, in bfloat16 and in fp8."""
    wide, narrow, rows = results.batches("kv-bfloat16"), results.batches("kv-fp8"), []
    for batch in sorted(wide.keys() & narrow.keys()):
        row = [f"{batch} × {wide[batch]['input_tokens_per_sequence']:,}"]
        for r in (wide[batch], narrow[batch]):
            row.append(f"{r['tpot_steady_median_ms']:.2f} ms ({r['floor_over_tpot_ratio']:.2f})")
        rows.append([*row, figure(narrow[batch]["tpot_steady_median_ms"] / wide[batch]["tpot_steady_median_ms"], 3)])
    return table("## KV in fp8: a step (floor / time)", ["sequences", "bfloat16", "fp8", "fp8 / bfloat16"], rows)


def chat(results):
    """Multi-turn chat, of scripts/chat.py: under load, and one request at a time."""
    rows, alone = [], []
    for name in results.names("chat-.+"):
        run = results.runs[name]
        for key in ("on", "off") if "load" in run else ():
            f = run["load"][key]
            p50 = lambda what: figure(f[what] and f[what]["p50_ms"], 1)
            tiers = ", ".join(f"{tier} {100 * share:.1f} %" for tier, share in f["hits_by_tier"].items())
            rows.append([f"{name[len('chat-'):]}, {key}", figure(f["seconds"]), f"{100 * f['hit_ratio']:.1f} % ({tiers})",
                         p50("ttft_cached"), p50("ttft_uncached"), p50("itl")])
        for turn in run.get("pairs", {}):
            for what in ("ttft", "itl", "total"):
                v = run["pairs"][turn][what]
                alone.append([f"{name[len('chat-'):]}, {turn} turn", what, figure(v["off_p50_ms"], 3), figure(v["on_over_off"], 3),
                              figure(v["off_over_off"], 3), f"{v['slower']} ({v['off_slower'][0]}, {v['off_slower'][1]})"])
    return table("## Chat of many turns, with the prefix cache and without",
                 ["model, cache", "seconds", "prompt tokens found", "TTFT of cached turns, ms", "of others, ms", "ITL, ms"], rows) + table(
                 "## One request at a time: with the cache over without (without again over without)",
                 ["model", "time", "without, ms", "with / without", "again / without", "3 % over both others (the others)"], alone)


# --- comparison -----------------------------------------------------------------------------------------------------------

def comparison(results, name):
    run = results.runs[name]
    modes = []
    for row in run["rows"]:
        if row["mode"] not in modes and row["mode"] != "hbm":
            modes.append(row["mode"])
    found = {}
    for row in run["rows"]:
        found.setdefault((row["placement"], row["offload_ratio"], row["batch_sequences"]), {})[row["mode"]] = row
    rows = []
    for (placement, share, batch), own in found.items():
        time = {mode: row.get("tpot_ms") for mode, row in own.items()}
        others = [ms for mode, ms in time.items() if mode not in ("auto", "hbm") and ms]
        first = next(iter(own.values()))
        shown = own.get("auto", first)
        star = "*" if first["is_free_fraction"] else ""
        cells = [placement, f"{100 * share:.3g} %{star}", str(batch)]
        if "hbm" in own:
            cells += [figure(time["hbm"])] * len(modes) + [DASH]
        else:
            cells += [figure(time.get(mode)) for mode in modes]
            cells.append(figure(time["auto"] / min(others), 3) if time.get("auto") and others else DASH)
        cells += [figure(shown.get("link_over_copy_engine_ratio"), 3), figure(shown.get("effective_over_model_ratio"), 3)]
        rows.append(cells)
    tier, hbm, link = run["tier"], run["hbm_read_bytes_per_s"] / 1e9, run["link_read_bytes_per_s"] / 1e9
    copy, free = run["copy_engine_bytes_per_s"] / 1e9, 100 * run["free_fraction_ratio"]
    title = (f"## Modes: {Path(run['model']).name} over {tier}, TPOT in ms\n\nHBM {hbm:,.0f} GB/s, {tier} {link:.1f} (copy engine {copy:.1f}); * the "
             f"free fraction, {free:.2f} %; prompts of {run['input_tokens_per_sequence']} tokens.  The last two columns are of auto.")
    return table(title, ["placement", "remote", "batch", *modes, "auto / best other", "of the copy engine's rate", "of EB(x)"], rows)


def comparisons(results):
    """Of every comparison what auto comes to: median and worst of its cells."""
    rows = []
    for name in sorted(results.names("compare-.*")):
        run = results.runs[name]
        both = lambda key: (f"{run[key + '_median_ratio']:.3f}, {run[key + '_worst_ratio']:.3f}" if key + "_median_ratio" in run
                            else DASH)
        layers = json.loads(run.get("hf_overrides") or "{}").get("num_hidden_layers")
        rows.append([Path(run["model"]).name + (f", {layers} layers" if layers else ""), run["tier"],
                     f"{run['input_tokens_per_sequence']:,}", both("auto_over_best_other"), both("auto_link_over_copy_engine"),
                     both("auto_effective_over_model"), both("auto_limit_over_time"), f"{run.get('auto_effective_over_model_count', 0)}"
                     + (f" ({run['not_measured_for_want_of_time_count']} rows missing)"
                        if run.get("not_measured_for_want_of_time_count") else "")])
    return table("## Modes: auto beside all others; median, worst",
                 ["model", "remote in", "context", "time / best other", "link rate / copy engine's, where that is the limit",
                  "bandwidth / EB(x)", "of the limit", "cells"], rows)


def plots(results):
    found = sorted((results.folder / "results").glob("*.svg"))
    return "## Plots\n\n" + "".join(f"- results/{path.name}\n" for path in found) if found else ""


def main():
    parts_alone = sys.argv[1:2] == ["--parts"]
    folder = sys.argv[-1]
    if len(sys.argv) != 2 + parts_alone or not Path(folder).is_dir():
        sys.exit("usage: python3 scripts/tables.py [--parts] FOLDER   (of scripts/reproduce.sh; --parts: that table alone)")
    results = Results(Path(folder))
    if parts_alone:
        print(worth(results).rstrip())
        return
    parts = [head(results), steps(results), products(results), remote(results, "pcie", "PCIe"), remote(results, "peer", "NVLink"),
             controls(results), worth(results), live(results), short(results), opt(results), fp8(results), prompts(results),
             remote_prompts(results), chat(results), comparisons(results)]
    parts += [comparison(results, name) for name in sorted(results.names("compare-.*"))]
    parts.append(plots(results))
    print("".join(parts).rstrip())


if __name__ == "__main__":
    main()
