"""`dakd probe` where there is no GPU: it says what it cannot measure, and refuses to write figures it has not got."""

import pytest

from daemon import MODEL, run


def test_without_a_gpu():
    done = run("probe", "--device", "cpu")
    assert done.returncode == 0, done.stdout
    assert "GB/s, read by all threads" in done.stdout
    assert "Not measured, for there is no GPU: HBM, links, windows, multicast, copy engines." in done.stdout


@pytest.mark.parametrize("flags,status,words", [
    (["--json", "x"], 1, "--json and --svg are of a GPU's links"),
    (["--svg", "x"], 1, "--json and --svg are of a GPU's links"),
    ([MODEL], 2, "dakd probe takes no model folder"),
    (["--device", "tpu"], 2, "--device must be one of"),
    (["--offload", 1], 2, "--offload is not a flag of dakd probe"),
    (["--reprobe=maybe"], 2, "--reprobe must be one of off|on, not 'maybe'"),
])
def test_refused(flags, status, words):
    done = run("probe", *([] if "--device" in flags else ["--device", "cpu"]), *flags)
    assert done.returncode == status and words in done.stdout, done.stdout


def test_help():
    shown = run("probe", "--help")
    assert shown.returncode == 0 and "usage: dakd probe [flags]" in shown.stdout
    assert "--reprobe " in shown.stdout and "--svg TEXT" in shown.stdout and "--offload" not in shown.stdout
    assert "dakd probe" in run("--help").stdout and "--reprobe" in run("serve", "--help").stdout
