"""The daemon as a process among others: its descriptors, its signals, what it tells systemd and its log."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from daemon import DAKD, MODEL, REQUEST_LIMIT_S, ROOT, START_LIMIT_S, environment


def heed_hangup():
    """Tests started by nohup would hand down that SIGHUP is ignored."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def launch(folder, *flags, shell_head="", shell_tail="", env=None):
    """(process, port file, log path); shell_head and shell_tail: what a shell does before it becomes the daemon."""
    port_file, log = folder / "port", folder / "log"
    command = [str(part) for part in (DAKD, "serve", MODEL, "--port", 0, "--port-file", port_file, *flags)]
    if shell_head or shell_tail:
        command = ["sh", "-c", f'{shell_head} exec "$@" {shell_tail}', "sh", *command]
    with open(log, "wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={**environment(), **(env or {})}, cwd=ROOT,
                                   preexec_fn=heed_hangup)
    return process, port_file, log


def wait_for(process, port_file, log):
    limit = time.monotonic() + START_LIMIT_S
    while not port_file.exists():
        assert process.poll() is None and time.monotonic() < limit, log.read_text(errors="replace")
        time.sleep(0.02)
    return int(port_file.read_text())


def stop(process, number=signal.SIGTERM):
    process.send_signal(number)
    try:
        return process.wait(START_LIMIT_S)
    finally:
        process.kill()


@pytest.mark.parametrize("tail", ["<&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_standard_descriptors_missing_or_full(tmp_path, tail):
    """No socket takes the place of a closed descriptor: the log would be written into it."""
    process, port_file, log = launch(tmp_path, shell_tail=tail)
    wait_for(process, port_file, log)
    for fd in range(3):
        assert not os.readlink(f"/proc/{process.pid}/fd/{fd}").startswith(("anon_inode:", "socket:", "pipe:"))
    assert stop(process) == 0


def test_stop_while_loading(tmp_path):
    """At once, and as the first process of a container too, for which SIGTERM has no default action."""
    command = [DAKD, "serve", MODEL, "--port", "0"]
    for head in ([], ["unshare", "--pid", "--fork", "--mount-proc"]):
        if head and subprocess.run([*head, "true"], capture_output=True).returncode:
            continue  # not allowed here
        with subprocess.Popen([*head, *command], stderr=subprocess.PIPE, env=environment(), cwd=ROOT) as process:
            process.stderr.readline()
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(children[0]) if head else process.pid, signal.SIGTERM)
            assert process.wait(START_LIMIT_S) == 0


def test_hangup_drains(tmp_path):
    process, port_file, log = launch(tmp_path)
    wait_for(process, port_file, log)
    assert stop(process, signal.SIGHUP) == 0
    assert "SIGHUP: draining" in log.read_text()


def test_hangup_is_ignored_under_nohup(tmp_path):
    process, port_file, log = launch(tmp_path, shell_head="trap '' HUP;")
    wait_for(process, port_file, log)
    process.send_signal(signal.SIGHUP)
    assert stop(process) == 0
    assert "SIGTERM: draining" in log.read_text() and "SIGHUP" not in log.read_text()


@pytest.mark.parametrize("host,key,url,warned", [
    ("::1", "", "http://[::1]:", False), ("127.0.0.1", "", "http://127.0.0.1:", False),
    ("0.0.0.0", "", "http://0.0.0.0:", True), ("0.0.0.0", "secret", "http://0.0.0.0:", False)])
def test_log_names_the_address_and_warns_of_an_open_door(tmp_path, host, key, url, warned):
    process, port_file, log = launch(tmp_path, "--host", host, env={"DAKD_API_KEY": key})
    port = wait_for(process, port_file, log)
    assert stop(process) == 0
    text = log.read_text()
    assert f"on {url}{port}," in text
    assert ("DAKD_API_KEY is not set" in text) == warned
    assert "secret" not in text


def test_systemd_is_told(tmp_path):
    """READY=1 once a client can connect and not before, WATCHDOG=1 from then on, STOPPING=1 at the end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
        inbox.bind(str(tmp_path / "notify"))
        inbox.settimeout(START_LIMIT_S)
        process, port_file, log = launch(tmp_path, env={"NOTIFY_SOCKET": str(tmp_path / "notify"),
                                                        "WATCHDOG_USEC": "60000000"})
        messages = []
        while sum(message == "WATCHDOG=1" for message in messages) < 3:
            messages.append(inbox.recv(4096).decode())
            if messages[-1].startswith("READY=1\nSTATUS=Serving demo-model on 127.0.0.1:"):
                socket.create_connection(("127.0.0.1", int(port_file.read_text())), 10).close()
        ready = [message.split("\n")[0] for message in messages].index("READY=1")
        assert "WATCHDOG=1" not in messages[:ready] and messages[ready + 1:] == ["WATCHDOG=1"] * 3
        loading = [message for message in messages[:ready] if "STATUS=Loading weights" in message]
        assert loading and all(message.startswith("EXTEND_TIMEOUT_USEC=") for message in loading)
        assert stop(process) == 0
        inbox.settimeout(1)
        while not messages[-1].startswith("STOPPING=1"):
            messages.append(inbox.recv(4096).decode())


@pytest.mark.parametrize("flags,model,skipped", [
    ((), MODEL, 0), (("--load-format", "dummy"), ROOT / "tests" / "fixtures" / "models" / "llama-gqa", 2)])
def test_smoke_script(start, flags, model, skipped):
    """Of a model that speaks token ids only, the script skips what such a model cannot do, and nothing else."""
    daemon = start(*flags, model=model)
    done = subprocess.run([ROOT / "scripts" / "smoke.sh", daemon.url], capture_output=True, text=True,
                          timeout=REQUEST_LIMIT_S)
    assert done.returncode == 0 and "FAIL" not in done.stdout, done.stdout
    lines = [line.split()[0] for line in done.stdout.splitlines()[:-1]]
    assert len(lines) == 12 and lines.count("skip") == skipped
