#!/usr/bin/env python3
"""Runs every test of one build: each C test program, then pytest, and counts.

usage: run_tests.py BUILD_DIR [name-filter]
       run_tests.py BUILD_DIR --programs NAME...    these C test programs, and no pytest

A C test program is a cmocka main; it passes when it exits 0, and its tests are counted from cmocka's lines.  A program
that dies, hangs past its limit or runs no test counts as one failure; one that exits 77 says why it cannot run in this
build, and counts as nothing.  The last line is `N passed, N failed`; the exit
status is 0 only when nothing failed and something ran.
"""

import concurrent.futures
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 900
SKIPPED = 77  # the exit status of a program that this build cannot run


def run_program(path):
    start = time.monotonic()
    try:
        done = subprocess.run([path], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              timeout=LIMIT_S, env=environment(path.parent.parent))
        output, code = done.stdout.decode(errors="replace"), done.returncode
    except subprocess.TimeoutExpired as late:
        output, code = (late.stdout or b"").decode(errors="replace") + "\ntimed out", -1
    passed = len(re.findall(r"^\[       OK \]", output, re.M))
    failed = len(re.findall(r"^\[  FAILED  \] (?!\d+ test\(s\), listed below)\S+\s*$", output, re.M))
    listed = re.search(r"^\[  FAILED  \] (\d+) test\(s\), listed below", output, re.M)
    failed = int(listed.group(1)) if listed else failed
    if code not in (0, SKIPPED) and failed == 0:
        failed = 1
    if code == SKIPPED:
        failed = 0
    elif code == 0 and passed == 0:
        output, failed = output + "\nran no test", 1
    return path.name, passed, failed, time.monotonic() - start, output, code


def environment(build):
    env = dict(os.environ, DAKD_BUILD=str(build))
    # Leaks are failures; a sanitizer report must end the program.
    env.setdefault("ASAN_OPTIONS", "detect_leaks=1:allocator_may_return_null=1")
    env.setdefault("UBSAN_OPTIONS", "print_stacktrace=1")
    env.setdefault("TSAN_OPTIONS", "halt_on_error=1:second_deadlock_stack=1")
    return env


def run_pytest(build, name):
    report = build / "pytest.xml"
    report.unlink(missing_ok=True)
    command = [ROOT / ".venv/bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short",
               "--durations=5", f"--junitxml={report}", "tests"]
    if name:
        command += ["-k", name]
    code = subprocess.run(command, cwd=ROOT, env=environment(build)).returncode
    if name and code == 5:
        return 0, 0
    if not report.exists():
        return 0, 1
    suite = xml.parse(report).getroot().find("testsuite")
    count = {key: int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped")}
    bad = count["failures"] + count["errors"]
    good = count["tests"] - bad - count["skipped"]
    return good, bad if code in (0, 1) and good + bad else max(bad, 1)


def main():
    build = Path(sys.argv[1]).resolve()
    only = sys.argv[3:] if sys.argv[2:3] == ["--programs"] else None
    name = sys.argv[2] if len(sys.argv) > 2 and only is None else ""
    programs = [build / "tests" / p for p in only] if only else sorted(p for p in (build / "tests").glob("*")
                      if p.name.split("_")[0] in ("unit", "sim", "fuzz", "fault") and name in p.name
                      and (ROOT / "tests" / (p.name + ".c")).exists())
    passed = failed = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for program, good, bad, took, output, code in pool.map(run_program, programs):
            passed, failed = passed + good, failed + bad
            word = "FAIL" if bad else "skip" if code == SKIPPED else "ok  "
            print(f"{word} {program:36} {good:4} passed {took:7.1f} s", flush=True)
            if bad or code == SKIPPED:
                print(f"--- {program} exited {code}\n{output[-8000:]}\n---", flush=True)
    good, bad = (0, 0) if only else run_pytest(build, name)
    passed, failed = passed + good, failed + bad
    print(f"{passed} passed, {failed} failed", flush=True)
    return 0 if failed == 0 and passed > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
