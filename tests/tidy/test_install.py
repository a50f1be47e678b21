"""`make install` puts everything where the unit file looks for it, and systemd accepts the unit."""

import json
import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def install(tmp_path, prefix="/usr"):
    subprocess.run(["make", "-s", "install", f"DESTDIR={tmp_path}", f"PREFIX={prefix}"], cwd=ROOT, check=True,
                   env={k: v for k, v in os.environ.items() if k not in ("SAN", "MAKEFLAGS", "MFLAGS")})
    return tmp_path


def test_installed_files(tmp_path):
    top = install(tmp_path)
    dakd = top / "usr/bin/dakd"
    assert os.access(dakd, os.X_OK)
    assert "dakd" in subprocess.run([dakd, "--version"], check=True, capture_output=True, text=True).stdout
    assert (top / "usr/share/dakd/demo-model/config.json").exists()
    settings = json.loads((top / "etc/dakd/demo.json").read_text())
    assert settings["model"] == "/usr/share/dakd/demo-model"


def test_a_second_install_keeps_the_settings(tmp_path):
    top = install(tmp_path)
    (top / "etc/dakd/demo.json").write_text('{"port": 9}')
    install(tmp_path)
    assert (top / "etc/dakd/demo.json").read_text() == '{"port": 9}'


def test_systemd_accepts_the_unit(tmp_path):
    top = install(tmp_path)
    unit = top / "usr/lib/systemd/system/dakd@.service"
    text = unit.read_text()
    assert "@PREFIX@" not in text
    # Verification wants the program to exist where the unit names it.
    here = tmp_path / "dakd@.service"
    here.write_text(text.replace("/usr/bin/dakd", str(top / "usr/bin/dakd")))
    analyze = shutil.which("systemd-analyze")
    assert analyze, "systemd-analyze is missing; scripts/setup.sh installs it"
    done = subprocess.run([analyze, "verify", "--man=no", here], capture_output=True, text=True)
    complaints = [line for line in done.stderr.split("\n") if "dakd" in line]
    assert done.returncode == 0 and not complaints, done.stderr
