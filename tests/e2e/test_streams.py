"""Many streams at once, of mixed lengths, some left by their clients: what is read is exact, and nothing stays behind."""

import concurrent.futures
import json
import os
import random
import socket
import time

import pytest

from daemon import counts, parse_events, text_of

SEED = int(os.environ.get("DAKD_TEST_SEED", "42"))
WORDS = "dakd serves large models on one small GPU and reads remote weights in place".split()


def body_of(i, rng):
    prompt = " ".join(rng.choices(WORDS, k=rng.randint(1, 60)))
    body = {"max_tokens": rng.randint(1, 40), "temperature": rng.choice([0, 0.8]), "seed": i,
            "stream_options": {"include_usage": True}}
    if i % 2:
        return "/v1/completions", {"prompt": prompt, **body}
    return "/v1/chat/completions", {"messages": [{"role": "user", "content": prompt}], **body}


def leave_early(dakd, path, body, rng):
    """Reads a little of the stream and cuts the connection."""
    connection = dakd.connect()
    response = dakd.send(connection, "POST", path, {**body, "stream": True})
    taken = response.read1(rng.choice([1, 200, 2000]))
    connection.sock and connection.sock.close()
    response.close()
    connection.close()
    return taken


def test_64_streams_with_disconnects(dakd):
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    jobs = [(*body_of(i, rng), rng.random() < 0.3, random.Random(i)) for i in range(64)]

    def do(job):
        path, body, leaves, own = job
        if leaves:
            return leave_early(dakd, path, body, own) and None
        return dakd.stream(path, body)

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        streams = list(pool.map(do, jobs))
    dakd.wait_idle()
    for (path, body, leaves, _), chunks in zip(jobs, streams):
        if leaves:
            continue
        body = {key: value for key, value in body.items() if key != "stream_options"}
        whole = dakd.post(path, body)
        choice = whole["choices"][0]
        expected = choice["text"] if "text" in choice else choice["message"]["content"]
        assert text_of(chunks) == expected
        assert counts(chunks[-1]["usage"]) == counts(whole["usage"])
        assert chunks[-2]["choices"][0]["finish_reason"] == choice["finish_reason"]
        assert len({chunk["id"] for chunk in chunks}) == 1
    dakd.wait_idle()


def test_choices_of_one_stream(dakd):
    body = {"prompt": ["dakd is", "The weights"], "n": 3, "max_tokens": 12, "temperature": 1, "seed": 5, "logprobs": 1,
            "return_token_ids": True}
    whole = dakd.post("/v1/completions", body)["choices"]
    chunks = dakd.stream("/v1/completions", body)
    for choice in whole:
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert text_of(chunks, choice["index"]) == choice["text"]
        assert [i for c in mine for i in c["token_ids"]] == choice["token_ids"]
        assert mine[0]["prompt_token_ids"] == choice["prompt_token_ids"]
        for key in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
            assert [v for c in mine if c["logprobs"] for v in c["logprobs"][key]] == choice["logprobs"][key]
        assert [c["finish_reason"] for c in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]


def test_continuous_usage(dakd):
    chunks = dakd.stream("/v1/completions", {"prompt": "dakd", "max_tokens": 6, "ignore_eos": True, "temperature": 0,
                                             "stream_options": {"include_usage": True, "continuous_usage_stats": True}})
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 6


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_cancels(start, stream):
    """A client that goes away frees its sequence long before max_tokens."""
    daemon = start("--max-num-batched-tokens", 64)
    limit = daemon.request("GET", "/v1/models")[1]["data"][0]["max_model_len"]
    before = daemon.metrics()
    connection = daemon.connect()
    body = {"prompt": "a", "max_tokens": limit - 10, "ignore_eos": True, "stream": stream, "n": 4}
    connection.request("POST", "/v1/completions", json.dumps(body))
    if stream:
        connection.getresponse().read1(100)
    else:
        deadline = time.monotonic() + 60
        while not daemon.metrics()["dakd_num_requests_running"]:
            assert time.monotonic() < deadline
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    after = daemon.wait_idle()
    aborted = 'dakd_request_success_total{finished_reason="abort"}'
    assert after[aborted] - before[aborted] == 4
    assert after["dakd_generation_tokens_total"] - before["dakd_generation_tokens_total"] < 4 * (limit - 10)
    assert after["dakd_requests_client_left_total"] - before["dakd_requests_client_left_total"] == 1


def test_slow_reader_gets_everything(dakd):
    """A reader that pauses loses nothing, and the answer is the one a quick reader gets."""
    body = {"prompt": "dakd", "max_tokens": 60, "temperature": 0, "ignore_eos": True, "n": 8, "logprobs": 20}
    expected = dakd.stream("/v1/completions", body)
    raw = socket.create_connection(("127.0.0.1", dakd.port))
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    data = json.dumps({**body, "stream": True}).encode()
    raw.sendall(b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
    time.sleep(1)
    got = b""
    while part := raw.recv(65536):
        got += part
    raw.close()
    chunks = parse_events(got.partition(b"\r\n\r\n")[2].decode())
    for index in range(8):
        assert text_of(chunks, index) == text_of(expected, index)
