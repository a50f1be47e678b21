"""Starting, asking and stopping a daemon; nothing but the standard library."""

import http.client
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("DAKD_BUILD", "build"))
DAKD = (BUILD if BUILD.is_absolute() else ROOT / BUILD) / "dakd"
MODEL = ROOT / "config" / "demo-model"
# Of every daemon: the whole suite in another mode, e.g. DAKD_TEST_FLAGS="--async-scheduling on".
FLAGS = os.environ.get("DAKD_TEST_FLAGS", "").split()
START_LIMIT_S = 180  # a sanitizer build on a busy machine
REQUEST_LIMIT_S = 300


def environment():
    """Ours without DAKD_*: an unknown one of these is an error, and DAKD_BUILD is meant for the tests."""
    return {key: value for key, value in os.environ.items() if not key.startswith("DAKD_")}


def run(*args, timeout=START_LIMIT_S):
    """Runs dakd to its end."""
    return subprocess.run([DAKD, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=timeout, env=environment(), cwd=ROOT)


class Daemon:
    def __init__(self, *flags, model=MODEL, key=None, program=(DAKD,)):
        self.folder = tempfile.TemporaryDirectory(prefix="dakd-")
        self.log_path = Path(self.folder.name) / "log"
        self.key = key
        port_file = Path(self.folder.name) / "port"
        command = [*program, "serve", model, "--port", 0, "--port-file", port_file, *FLAGS, *flags]
        if key:
            command += ["--api-key", key]
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log,
                                            env=environment(), cwd=ROOT)
        limit = time.monotonic() + START_LIMIT_S
        while not port_file.exists():
            if self.process.poll() is not None or time.monotonic() > limit:
                self.process.kill()
                raise RuntimeError(f"the daemon did not start:\n{self.log()}")
            time.sleep(0.02)
        self.port = int(port_file.read_text())
        self.url = f"http://127.0.0.1:{self.port}"
        assert self.request("GET", "/readyz")[0] == 200

    def log(self):
        return self.log_path.read_text(errors="replace")

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=REQUEST_LIMIT_S)

    def send(self, connection, method, path, body=None, headers=None):
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
        if isinstance(body, str):
            body = body.encode()
        headers = dict(headers or {})
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
        if self.key and "Authorization" not in headers:
            headers["Authorization"] = f"Bearer {self.key}"
        connection.request(method, path, body, headers)
        return connection.getresponse()

    def request(self, method, path, body=None, headers=None):
        """(status, parsed JSON or text, headers)"""
        connection = self.connect()
        try:
            response = self.send(connection, method, path, body, headers)
            text = response.read().decode()
            kind = response.getheader("Content-Type", "")
            return response.status, json.loads(text) if kind.startswith("application/json") else text, response.headers
        finally:
            connection.close()

    def post(self, path, body):
        """The parsed answer of a request that must succeed."""
        status, answer, _ = self.request("POST", path, body)
        assert status == 200, answer
        return answer

    def completion(self, **body):
        return self.post("/v1/completions", body)

    def chat(self, content, **body):
        return self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": content}], **body})

    def stream(self, path, body):
        """The parsed chunks of a stream; checks its framing and its [DONE]."""
        connection = self.connect()
        try:
            response = self.send(connection, "POST", path, {**body, "stream": True})
            assert response.status == 200, response.read()
            assert response.getheader("Content-Type").startswith("text/event-stream")
            return parse_events(response.read().decode())
        finally:
            connection.close()

    def metrics(self):
        """{series: value}"""
        status, text, _ = self.request("GET", "/metrics")
        assert status == 200
        return {name: float(value) for name, value in
                re.findall(r"^([a-z_]+(?:\{[^\n]*\})?) (\S+)$", text, re.M)}

    def wait_idle(self, limit_s=60):
        """Waits until nothing runs or waits and no KV page is in use."""
        limit = time.monotonic() + limit_s
        while True:
            now = self.metrics()
            busy = [now["dakd_num_requests_running"], now["dakd_num_requests_waiting"], now["dakd_kv_cache_usage_perc"]]
            if busy == [0, 0, 0]:
                return now
            assert time.monotonic() < limit, f"running, waiting, KV usage: {busy}"
            time.sleep(0.05)

    def stop(self, number=signal.SIGTERM, limit_s=90):
        """The exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait(limit_s)

    def wait(self, limit_s=90):
        """The exit status of a daemon that ends by itself."""
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise RuntimeError(f"the daemon did not stop:\n{self.log()}")

    def close(self):
        status = self.stop()
        log = self.log()
        self.folder.cleanup()
        assert status == 0, f"exit status {status}:\n{log[-8000:]}"

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.close()
        else:
            self.process.kill()
            self.process.wait()
            self.folder.cleanup()


def parse_events(text):
    """The chunks of a stream's body: each event is one data line and a blank line; the last is [DONE]."""
    assert text.endswith("\n\n")
    chunks = []
    events = text[:-2].split("\n\n")
    for event in events:
        if event.startswith(":"):
            continue
        assert event.startswith("data: ") and "\n" not in event, repr(event)
        chunks.append(event[6:])
    assert chunks[-1] == "[DONE]" and chunks.count("[DONE]") == 1
    return [json.loads(chunk) for chunk in chunks[:-1]]


def text_of(chunks, index=0):
    """The text of one choice of a stream."""
    out = []
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] == index:
                out.append(choice["text"] if "text" in choice else choice["delta"].get("content") or "")
    return "".join(out)


def counts(usage):
    """A usage without what was cached, which depends on what was asked before."""
    return {key: value for key, value in usage.items() if key != "prompt_tokens_details"}


def cached(answer):
    """Tokens of the prompt that the prefix cache had; of an answer or a usage chunk."""
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]
