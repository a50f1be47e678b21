"""The bytes on the wire, as curl shows them."""

import json
import re
import subprocess


def curl(*args):
    done = subprocess.run(["curl", "-sS", "--max-time", "300", *args], stdout=subprocess.PIPE, check=True)
    return done.stdout


def post(dakd, path, body, *args):
    return curl(*args, "-H", "Content-Type: application/json", "-d", json.dumps(body), dakd.url + path)


def test_chat_stream_bytes(dakd):
    raw = post(dakd, "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5,
                                              "temperature": 0, "ignore_eos": True, "stream": True,
                                              "stream_options": {"include_usage": True}}, "-i", "-N")
    head, _, body = raw.partition(b"\r\n\r\n")
    head = head.decode().lower()
    assert head.startswith("http/1.1 200")
    assert re.search(r"^content-type: text/event-stream", head, re.M)
    assert re.search(r"^x-accel-buffering: no\r?$", head, re.M)
    assert re.search(r"^cache-control: no-", head, re.M)
    assert re.search(r"^x-request-id: \S+", head, re.M)
    assert body.endswith(b"\n\ndata: [DONE]\n\n") and b"\r" not in body
    events = [e for e in body.decode()[:-2].split("\n\n") if not e.startswith(":")]
    assert all(re.fullmatch(r"data: [^\n]+", e) for e in events)
    chunks = [json.loads(e[6:]) for e in events[:-1]]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-2]["choices"][0]["delta"] == {} and chunks[-2]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 5
    for chunk in chunks[:-2]:
        assert chunk["choices"][0]["finish_reason"] is None and chunk["usage"] is None


def test_completion_stream_bytes(dakd):
    body = post(dakd, "/v1/completions", {"prompt": "dakd", "max_tokens": 3, "stream": True, "ignore_eos": True,
                                          "temperature": 0}, "-N").decode()
    chunks = [json.loads(e[6:]) for e in body[:-2].split("\n\n")[:-1]]
    assert all("text" in c["choices"][0] and c["object"] == "text_completion" for c in chunks)
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert all("usage" not in c for c in chunks)


def test_request_id_is_echoed(dakd):
    head = curl("-i", "-H", "X-Request-Id: my-id.1", dakd.url + "/version").decode().lower()
    assert re.search(r"^x-request-id: my-id\.1\r?$", head, re.M)


def test_curl_default_content_type(dakd):
    """People forget the header; curl then says it is a form."""
    answer = json.loads(curl("-d", '{"prompt": "a", "max_tokens": 1}', dakd.url + "/v1/completions"))
    assert answer["choices"][0]["index"] == 0


def test_operators_pages(dakd):
    for path in ("/health", "/livez", "/readyz"):
        assert curl("-o", "/dev/null", "-w", "%{http_code}", dakd.url + path) == b"200"
    version = json.loads(curl(dakd.url + "/version"))
    assert re.fullmatch(r"\d+\.\d+\.\d+", version["version"]) and version["commit"]
    head = curl("-i", dakd.url + "/metrics").decode()
    assert re.search(r"^content-type: text/plain; version=0\.0\.4", head, re.M | re.I)


def test_keep_alive_comments_during_a_silent_prefill(start):
    """A stream's head goes out at once, and comments follow while the prompt is computed."""
    daemon = start("--keep-alive-interval", 0.02, "--max-num-batched-tokens", 16)
    limit = daemon.request("GET", "/v1/models")[1]["data"][0]["max_model_len"]
    body = post(daemon, "/v1/completions", {"prompt": [5] * (limit - 8), "max_tokens": 2, "stream": True}, "-N").decode()
    assert body.startswith(": "), body[:200]
    assert body.endswith("data: [DONE]\n\n")


def test_tokenize_and_back(dakd):
    text = "Größe: 3 µs — ok? \U0001F600"
    answer = json.loads(post(dakd, "/tokenize", {"prompt": text, "add_special_tokens": False,
                                                 "return_token_strs": True}))
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"]) > 0
    assert answer["max_model_len"] > 0
    assert json.loads(post(dakd, "/detokenize", {"tokens": answer["tokens"]})) == {"prompt": text}


def test_tokenize_messages_is_what_chat_computes(dakd):
    messages = [{"role": "user", "content": "What is dakd?"}]
    tokens = json.loads(post(dakd, "/tokenize", {"messages": messages}))["tokens"]
    answer = json.loads(post(dakd, "/v1/chat/completions", {"messages": messages, "max_tokens": 1,
                                                            "return_token_ids": True}))
    assert answer["prompt_token_ids"] == tokens and answer["usage"]["prompt_tokens"] == len(tokens)


def test_long_prompt_is_tokenised_off_the_loop(dakd):
    """Beyond 32 KB the thread pool does it; the answer is the same as in pieces."""
    text = "one two three four " * 4000
    answer = json.loads(post(dakd, "/tokenize", {"prompt": text, "add_special_tokens": False}))
    assert json.loads(post(dakd, "/detokenize", {"tokens": answer["tokens"]}))["prompt"] == text
