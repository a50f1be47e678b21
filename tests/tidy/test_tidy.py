"""The layout and style rules that a machine can check."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ["config", "kernels", "offload", "engine", "server"]  # each may include itself and those before it
TOP_LEVEL = {"Makefile", "README.md", "LICENSE", "server", "engine", "kernels", "offload", "config", "scripts", "tests"}


def tracked():
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True,
                           capture_output=True, text=True).stdout.split("\n")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


FILES = tracked()
C_FILES = [p for p in FILES if p.suffix in (".c", ".h", ".cu", ".cuh")]
OURS = [p for p in C_FILES if p.relative_to(ROOT).parts[0] in LAYERS]


def where(path, line):
    return f"{path.relative_to(ROOT)}:{line}"


def test_there_are_files():
    assert len(OURS) > 10


def test_includes_point_down():
    wrong = []
    for path in OURS:
        layer = LAYERS.index(path.relative_to(ROOT).parts[0])
        for number, text in enumerate(path.read_text().split("\n"), 1):
            found = re.match(r'\s*#\s*include\s+"([^"/]+)/', text)
            if found and (found[1] not in LAYERS or LAYERS.index(found[1]) > layer):
                wrong.append(f"{where(path, number)} includes {found[1]}/")
    assert not wrong, "\n".join(wrong)


def test_top_level():
    names = {p.relative_to(ROOT).parts[0] for p in FILES}
    assert {n for n in names if not n.startswith(".")} <= TOP_LEVEL


@pytest.mark.parametrize("limit,paths", [(800, C_FILES), (800, [p for p in FILES if p.suffix in (".py", ".sh")])],
                         ids=["C", "scripts"])
def test_file_length(limit, paths):
    long = [f"{p.relative_to(ROOT)}: {n} lines" for p in paths if (n := p.read_text().count("\n")) > limit]
    assert not long, "\n".join(long)


def test_c_lines():
    """No tabs, no trailing space, at most 100 columns."""
    wrong = []
    for path in C_FILES:
        for number, text in enumerate(path.read_text().split("\n"), 1):
            if "\t" in text or text != text.rstrip() or len(text) > 100:
                wrong.append(where(path, number))
    assert not wrong, "\n".join(wrong)


def test_environment_is_read_in_config_only():
    wrong = [str(p.relative_to(ROOT)) for p in OURS
             if p.relative_to(ROOT).parts[0] != "config" and re.search(r"\bgetenv\s*\(", p.read_text())]
    assert not wrong


def test_ptx_lives_in_one_file():
    wrong = [str(p.relative_to(ROOT)) for p in OURS
             if p.name != "ptx.cuh" and p.suffix in (".cu", ".cuh") and re.search(r"\basm\b", p.read_text())]
    assert not wrong


def test_functions_are_short():
    """A function of C code has at most 70 lines or so; CUDA kernels may be longer."""
    wrong = []
    for path in OURS:
        if path.suffix not in (".c", ".h"):
            continue
        start = None
        lines = path.read_text().split("\n")
        for number, text in enumerate(lines, 1):
            if text == "{":
                start = number
            elif text == "}" and start:
                if number - start > 75:
                    wrong.append(f"{where(path, start)}: {number - start} lines")
                start = None
    assert not wrong, "\n".join(wrong)


def test_no_double_underscore_or_suffix_t_names():
    wrong = []
    for path in OURS:
        for number, text in enumerate(path.read_text().split("\n"), 1):
            if re.search(r"\btypedef\b.*\b\w+_t\s*;", text):
                wrong.append(where(path, number))
    assert not wrong


def test_every_c_file_is_described():
    """A source file opens with a comment that says what it is for (a .c file may leave that to its header)."""
    wrong = []
    for path in OURS:
        header = path.with_suffix(".h")
        if path.suffix == ".c" and header.exists():
            continue
        if not path.read_text().lstrip().startswith("/*"):
            wrong.append(str(path.relative_to(ROOT)))
    assert not wrong, "\n".join(wrong)
