"""Allocations that fail while the daemon serves: the N-th of each request, for every N until the request reaches none.

Each ends in the answer the request has anyway, in an error its client can read, or in a cut connection; afterwards the
daemon answers as before, nothing runs, and nothing stays allocated.
"""

import http.client
import json
import mmap
import struct
import subprocess
import tempfile
import time

import pytest

from daemon import BUILD, ROOT, Daemon, parse_events

TOOL = (BUILD if BUILD.is_absolute() else ROOT / BUILD) / "tests" / "tool_faultd"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": [{"type": "text", "text": "What is dakd?"}]}]
LONG = "many words of a long prompt " * 1500  # tokenised on the pool, and refused for its length
REQUESTS = {
    "models": ("GET", "/v1/models", None),
    "metrics": ("GET", "/metrics", None),
    "unknown route": ("GET", "/nothing", None),
    "malformed": ("POST", COMPLETIONS, {"prompt": "a", "no_such_field": 1}),
    "tokenize": ("POST", "/tokenize", {"messages": USER, "return_token_strs": True}),
    "detokenize": ("POST", "/detokenize", {"tokens": [5, 6, 7]}),
    "too long": ("POST", COMPLETIONS, {"prompt": LONG}),
    "completion": ("POST", COMPLETIONS, {"prompt": ["dakd is", "The"], "n": 2, "max_tokens": 3, "echo": True, "logprobs": 3,
                                         "stop": ["zq", "qz"], "logit_bias": {"5": 1}, "stop_token_ids": [9], "seed": 1,
                                         "temperature": 0}),
    "chat": ("POST", CHAT, {"messages": USER, "max_tokens": 3, "logprobs": True, "top_logprobs": 2, "temperature": 0}),
    "stream": ("POST", CHAT, {"messages": USER, "max_tokens": 3, "temperature": 0, "stream": True,
                              "stream_options": {"include_usage": True}}),
    "conversation": ("POST", CHAT, {
        "messages": [{"role": "developer", "content": "short"}, *USER,
                     {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [
                         {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": [1, 2]}"}}]},
                     {"role": "tool", "content": "3", "tool_call_id": "1"}, {"role": "assistant", "content": "It is"}],
        "max_tokens": 2, "temperature": 0, "add_generation_prompt": False, "continue_final_message": True}),
    "stream with scores": ("POST", COMPLETIONS, {"prompt": "dakd is", "max_tokens": 3, "temperature": 0, "logprobs": 2,
                                                 "n": 2, "stream": True, "seed": 1, "return_token_ids": True}),
}
VOLATILE = ("id", "created", "prompt_tokens_details")


@pytest.fixture(scope="module")
def faulty():
    if subprocess.run([TOOL]).returncode == 77:
        pytest.skip("this sanitizer has its own malloc")
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(24))
        file.flush()
        control = mmap.mmap(file.fileno(), 24)
        with Daemon("--log-level", "error", "--threads", 1, program=[TOOL, file.name]) as daemon:
            yield daemon, control


def read(control, field):
    return struct.unpack_from("=q", control, 8 * ("countdown", "failures", "live").index(field))[0]


def arm(control, countdown):
    struct.pack_into("=q", control, 8, 0)
    struct.pack_into("=q", control, 0, countdown)


def plain(answer):
    """The answer without what differs from one request to the next."""
    if isinstance(answer, dict):
        return {key: plain(value) for key, value in answer.items() if key not in VOLATILE}
    return [plain(item) for item in answer] if isinstance(answer, list) else answer


def ask(daemon, method, path, body):
    """(status, answer without volatile members); (0, None) for a connection that was cut."""
    connection = daemon.connect()
    try:
        response = daemon.send(connection, method, path, body)
        text = response.read().decode()
        if response.status == 200 and body and body.get("stream"):
            # Choices take turns as they come; each one's chunks keep their order.
            return 200, sorted(plain(parse_events(text)),
                               key=lambda chunk: ["error" in chunk, *(c["index"] for c in chunk.get("choices", []))])
        return response.status, plain(json.loads(text)) if text.startswith("{") else text
    except (http.client.HTTPException, ConnectionError):
        return 0, None
    finally:
        connection.close()


def settled(daemon, control, blocks):
    """Waits until no more blocks are allocated than `blocks`; returns how many there are."""
    limit = time.monotonic() + 10
    while read(control, "live") > blocks and time.monotonic() < limit:
        time.sleep(0.01)
    return read(control, "live")


@pytest.mark.parametrize("name", REQUESTS)
def test_every_allocation(faulty, name):
    daemon, control = faulty
    request = REQUESTS[name]
    for _ in range(3):  # what is allocated once and kept
        expected = ask(daemon, *request)
    daemon.wait_idle()
    time.sleep(0.2)
    blocks = read(control, "live")
    outcomes, n = {}, 0
    while True:
        n += 1
        arm(control, n)
        status, answer = ask(daemon, *request)
        failed = read(control, "failures")
        arm(control, 0)
        if status == 200 and isinstance(answer, list) and "error" in (answer or [{}])[-1]:
            status, answer = answer[-1]["error"]["type"], None
        outcomes[status] = outcomes.get(status, 0) + 1
        if status == expected[0]:
            assert name == "metrics" or answer == expected[1], f"allocation {n} changed the answer"
        else:
            assert status in (0, 500, 503, "server_error", "unavailable_error"), f"allocation {n}: {status} {answer}"
            if status in (500, 503):
                assert answer["error"]["message"]
        assert daemon.process.poll() is None, f"allocation {n}: {daemon.log()[-2000:]}"
        assert settled(daemon, control, blocks) <= blocks, f"allocation {n} left something behind"
        if not failed:
            break
    print(f"{name}: {n - 1} allocations: {outcomes}")
    assert n > 3
    assert status == expected[0]
    daemon.wait_idle()
