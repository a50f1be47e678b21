"""A daemon of one's own and requests to it, for scripts that measure and soak it: Python's standard library alone.

`arguments` reads the command line that they have in common; `Daemon` starts `dakd serve` and asks /metrics and /proc
what it does; `Client` is one connection that asks one request after another, checks how each stream is framed, and can
leave in the middle of one.
"""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

START_LIMIT_S = 240
ANSWER_LIMIT_S = 300
STOP_LIMIT_S = 120


class Malformed(Exception):
    """What came back is not what the API says."""


def check(condition, sentence):
    if not condition:
        raise Malformed(sentence)


def arguments(parser):
    """The parser's, and what all scripts take: program and model, --seed, --json, and behind "--" `flags` of the daemon;
    and the model's `vocab`."""
    parser.add_argument("dakd")
    parser.add_argument("model")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("DAKD_TEST_SEED", "42")))
    parser.add_argument("--json")
    own, flags = sys.argv[1:], []
    if "--" in own:
        own, flags = own[:own.index("--")], own[own.index("--") + 1:]
    args = parser.parse_args(own)
    args.flags = flags
    args.vocab = json.loads((Path(args.model) / "config.json").read_text())["vocab_size"]
    return args


class Daemon:
    """Serving once made; stop() says how it ended."""

    def __init__(self, program, model, flags):
        self.folder = tempfile.TemporaryDirectory(prefix="dakd-")
        self.log_path = Path(self.folder.name) / "log"
        port_file = Path(self.folder.name) / "port"
        self.command = [str(part) for part in
                        (program, "serve", model, "--port", 0, "--port-file", port_file, *flags)]
        limit = time.monotonic() + START_LIMIT_S
        with open(self.log_path, "wb") as out:
            self.process = subprocess.Popen(self.command, stdout=out, stderr=out,
                                            env={k: v for k, v in os.environ.items() if not k.startswith("DAKD_")})
        while not (port_file.exists() and port_file.read_text().endswith("\n")):
            if self.process.poll() is not None or time.monotonic() > limit:
                self.process.kill()
                raise RuntimeError(f"the daemon did not start: {self.log()[-2000:]}")
            time.sleep(0.02)
        self.port = int(port_file.read_text())

    def log(self):
        return self.log_path.read_text(errors="replace")

    def metrics(self):
        """{series: value}"""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_LIMIT_S)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        return {name: float(value) for name, value in re.findall(r"^(\w+(?:\{[^\n]*\})?) (\S+)$", text, re.M)}

    def rss_bytes(self):
        """Memory of the process that is not shared with files or devices: its heap, stacks and arenas."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.search(r"^RssAnon:\s+(\d+) kB", status, re.M)[1])

    def drain(self, limit_s=120):
        """The metrics once nothing runs, waits or moves."""
        limit = time.monotonic() + limit_s
        while True:
            now = self.metrics()
            busy = {name: now[f"dakd_{name}"] for name in ("num_requests_running", "num_requests_waiting", "kv_pages_moving",
                                                           "kv_cache_usage_perc")}
            if not any(busy.values()):
                return now
            check(time.monotonic() < limit, f"not idle {limit_s} s after the last request: {busy}")
            time.sleep(0.05)

    def stop(self):
        """The exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return "none: it did not end"

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def tiers_of(metrics, family):
    """{tier: value} of a family with one sample a tier."""
    found = {}
    for name, value in metrics.items():
        match = re.fullmatch(re.escape(family) + r'\{tier="([^"]+)"\}', name)
        if match:
            found[match[1]] = value
    return found


@dataclass
class Answer:
    status: int
    error: dict = None  # of a status other than 200
    sent: float = 0  # time.monotonic
    tokens_at: list = field(default_factory=list)  # of a stream: (time, tokens that came)
    end: float = 0
    token_ids: dict = field(default_factory=dict)  # {choice: ids}
    texts: dict = field(default_factory=dict)
    finish: dict = field(default_factory=dict)
    logprobs: dict = field(default_factory=dict)  # of completions: {choice: [...]}
    usage: dict = None
    left: bool = False

    @property
    def cached(self):
        return self.usage["prompt_tokens_details"]["cached_tokens"]

    @property
    def ttft(self):
        return self.tokens_at[0][0] - self.sent

    @property
    def total(self):
        return self.end - self.sent

    @property
    def itls(self):
        """Seconds between tokens; of tokens that came together, each its share."""
        out = []
        for (before, _), (at, count) in zip(self.tokens_at, self.tokens_at[1:]):
            out += [(at - before) / count] * count
        return out


class Client:
    """One connection, opened again where the daemon or an early leave closed it."""

    def __init__(self, port):
        self.port = port
        self.connection = None

    def close(self):
        if self.connection:
            self.connection.close()
        self.connection = None

    def ask(self, path, body, leave_after=None):
        """leave_after: events of the stream after which the client goes; 0: as soon as it has sent."""
        data = json.dumps(body).encode()
        fresh = self.connection is None
        try:
            sent, response = self._send(path, data, leave_after == 0)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            self.close()
            if fresh:
                raise
            sent, response = self._send(path, data, leave_after == 0)  # an idle connection was closed meanwhile
        if response is None:
            self.close()
            return Answer(0, sent=sent, left=True)
        return self._read(response, body, sent, leave_after)

    def _send(self, path, data, leave):
        """When it was sent and, unless the client leaves, the beginning of what came back."""
        if not self.connection:
            self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_LIMIT_S)
        sent = time.monotonic()
        self.connection.request("POST", path, data, {"Content-Type": "application/json"})
        return sent, None if leave else self.connection.getresponse()

    def _read(self, response, body, sent, leave_after):
        if response.status != 200:
            text = response.read()
            return Answer(response.status, error=json.loads(text).get("error"), sent=sent, end=time.monotonic())
        if not body.get("stream"):
            answer = Answer(200, sent=sent)
            text = response.read()
            answer.end = time.monotonic()
            whole = json.loads(text)
            for choice in whole["choices"]:
                take_choice(answer, choice)
            answer.usage = whole["usage"]
            return answer
        return self._read_stream(response, sent, leave_after)

    def _read_stream(self, response, sent, leave_after):
        events = []
        while line := response.readline():
            if line[:5] == b"data:":
                events.append((time.monotonic(), line))
                if len(events) == leave_after:
                    response.close()
                    self.close()
                    return Answer(200, sent=sent, left=True)
            else:
                check(line == b"\n" or line[:1] == b":", f"not an event: {line[:200]!r}")
        answer = read_events(events)
        answer.sent = sent
        return answer


def take_choice(answer, choice):
    """Adds a choice of a whole answer or of a chunk."""
    index = choice["index"]
    check(answer.finish.get(index) is None, f"choice {index} goes on after its finish_reason")
    message = choice.get("message") or choice.get("delta") or {}
    text = choice["text"] if "text" in choice else message.get("content") or ""
    answer.texts[index] = answer.texts.get(index, "") + text
    answer.token_ids.setdefault(index, []).extend(choice.get("token_ids") or [])
    scores = choice.get("logprobs")
    if scores and "token_logprobs" in scores:
        answer.logprobs.setdefault(index, []).extend(scores["token_logprobs"])
    answer.finish[index] = choice["finish_reason"]
    return len(choice.get("token_ids") or [])


def read_events(events):
    """From [(time, b"data: ...\\n")], whose last is [DONE]."""
    answer, ids = Answer(200), set()
    check(events and events[-1][1] == b"data: [DONE]\n", "a stream without [DONE] at its end")
    for at, line in events[:-1]:
        chunk = json.loads(line[5:])
        check("error" not in chunk, f"a stream ended with {chunk}")
        ids.add(chunk["id"])
        count = sum([take_choice(answer, choice) for choice in chunk["choices"]])
        if count:
            answer.tokens_at.append((at, count))
        answer.usage = chunk.get("usage") or answer.usage
    answer.end = events[-1][0]
    check(len(ids) == 1, f"a stream with {len(ids)} ids")
    check(all(answer.finish.values()), f"a stream with an open choice: {answer.finish}")
    return answer
