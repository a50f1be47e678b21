"""scripts/soak.py for a few seconds, with the prefix cache and without; scripts/chat.py as a small run, and the tables of it."""

import json
import subprocess
import sys

import pytest

from daemon import DAKD, FLAGS, MODEL, ROOT, environment


def script(name, *args):
    return subprocess.run([sys.executable, ROOT / "scripts" / name, *map(str, args)], capture_output=True, text=True, timeout=800,
                          env=environment(), cwd=ROOT)


@pytest.mark.parametrize("flags", [[], ["--no-prefix-cache"]])
def test_soak(tmp_path, flags):
    done = script("soak.py", DAKD, MODEL, "--seconds", 6, "--segment", 3, "--clients", 5, "--local", "5MiB", "--remote", "host:2MiB",
                  "--json", tmp_path / "soak.json", "--", *FLAGS, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("soak passed\n")
    result = json.loads((tmp_path / "soak.json").read_text())
    assert result["failures"] == [] and len(result["rests"]) >= 2
    assert result["compared"] == result["agreed"] > 0 and result["left"] > 0
    assert (result["cached_tokens"] > 0) == (not flags)


def test_soak_says_what_is_wrong(tmp_path):
    """A process that grows beyond what it may is told, and so is a daemon that does not start."""
    done = script("soak.py", DAKD, MODEL, "--seconds", 2, "--segment", 1, "--clients", 2, "--growth", -1000, "--reference", "none",
                  "--", *FLAGS)
    assert done.returncode == 1 and "FAILED: Malformed: the process grew by" in done.stdout and "soak failed" in done.stdout
    done = script("soak.py", DAKD, MODEL, "--remote", "host:1KiB", "--seconds", 1)
    assert done.returncode == 1 and "the daemon did not start" in done.stdout


def test_soak_tells_an_answer_that_is_not_what_it_is_alone(tmp_path):
    """And ends, whatever waits to be compared: here the daemon without a cache has other weights."""
    program = tmp_path / "dakd"
    program.write_text(f"""#!/bin/sh
case " $* " in
*" --no-prefix-cache "*) exec {DAKD} "$@" --load-format dummy ;;
esac
exec {DAKD} "$@"
""")
    program.chmod(0o755)
    done = script("soak.py", program, MODEL, "--seconds", 2, "--segment", 1, "--clients", 16, "--local", "24MiB", "--", *FLAGS)
    assert done.returncode == 1 and "FAILED: comparing: Malformed: an answer is not what it is alone" in done.stdout
    assert done.stdout.endswith("soak failed\n")


def test_chat(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    path = results / "2026-11-22-cpu-0123abc-chat-demo.json"
    done = script("chat.py", DAKD, MODEL, "--conversations", 4, "--turns", 3, "--clients", 2, "--pairs", 1,
                  "--system-len", 130, "--pair-len", 130, "--user-len", 20, "--answer-len", 8, "--json", path, "--", *FLAGS)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(path.read_text())
    on, off = result["load"]["on"], result["load"]["off"]
    assert on["requests"] == off["requests"] == 12 and on["prompt_tokens"] == off["prompt_tokens"]
    assert result["load"]["matched"]["answers_equal"] == 12, "on the CPU the cache changes no token"
    assert off["cached_tokens"] == 0 and off["computed_prompt_tokens"] == off["prompt_tokens"]
    assert on["cached_tokens"] > on["prompt_tokens"] / 2
    assert on["computed_prompt_tokens"] == on["prompt_tokens"] - on["cached_tokens"]
    assert sum(on["hits_by_tier"].values()) == pytest.approx(on["hit_ratio"])
    assert result["pairs"]["uncached"]["cached_tokens"] == 0 < result["pairs"]["cached"]["cached_tokens"]
    tables = script("tables.py", tmp_path).stdout
    assert "## Chat of many turns" in tables and "| demo, on |" in tables and "| demo, cached turn | ttft |" in tables
